"""Register tiles of the weight gradients of planes where they lie: the taps are the accumulators, the lanes are pixels.

A tile holds one vector for each of some rows and columns of taps. It walks down the rows of x, a vector of results wide; at each
column of taps it loads the pixels of x once and multiplies them with the rows of grad_y that meet them, which stay in registers. In
the end the lanes of each vector are added up. One call serves any number of planes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .copies import swap_halves
from .correlation import lane_sums
from .emit import Emitter, check_kinds
from .planes import column_groups, each_plane, forward_turns, load_columns, walk

__all__ = ["Collect", "collect", "registers"]

_i64 = ir.IntType(64)

(
    X, G, SUMS, SHIFT, COLUMNS, FLAGS, X_ROW, G_ROW, X_PLANE, G_PLANE, SUMS_PLANE, SHIFT_PLANE, PLANES, VECTORS, LINES, LOW, SPAN,
    ROWS, SKIP, X_AHEAD, G_AHEAD, JOB,
) = range(22)  # fmt: skip
"""The fields of a job: addresses, steps and offsets in bytes.

X: of the row and the place of x that the first tap of result 0 meets, G: of grad_y, SUMS: of what the sums of the taps are added
to, SHIFT: to what that of grad_y is, or 0. The ..._ROW lead from a row to the next, the ..._PLANE from a plane to the next, of
which there are PLANES. VECTORS: of results in a row, ROWS: of grad_y. LINES rows of x are walked, of which those from LOW on,
SPAN of them, are there at all. COLUMNS: the offset of each column of taps in x; FLAGS: for each vector the lanes of x of each
column that are there, then those of grad_y. SKIP: first taps that are not added. ..._AHEAD: how far from what is read memory is
prefetched.
"""


class Collect(NamedTuple):
    """The shape of a tile: rows and columns of taps, the stride, lanes."""

    rows: int
    columns: int
    row_step: int
    column_step: int
    lanes: int


def registers(shape: Collect) -> int:
    """Vectors that a tile holds."""
    return shape.rows * shape.columns + -(-shape.rows // shape.row_step) + shape.column_step + 1


class _Tile:
    """A tile under construction: what its parts share."""

    def __init__(self, builder: Any, shape: Collect, dtype: Any, job: Any):
        self.builder, self.shape = builder, shape
        self.emit = emit = Emitter(builder, dtype, shape.lanes)
        self.item = emit.width // shape.lanes
        self.field = {i: emit.offset(job, i) for i in range(JOB)}
        self.flags = builder.inttoptr(self.field[FLAGS], cgutils.voidptr_t)
        table = builder.inttoptr(self.field[COLUMNS], cgutils.voidptr_t)
        self.offsets = [emit.offset(table, t) for t in range(shape.columns)]
        self.sums = [[emit.accumulator() for _ in range(shape.columns)] for _ in range(shape.rows)]
        self.total = emit.accumulator()
        self.held = [emit.accumulator() for _ in range(-(-shape.rows // shape.row_step))]

    def hold(self, slot: Any, row: Any, place: Any, mask: Any) -> None:
        """Load a row of grad_y, or zeros below the last, and add it to the total."""
        builder, emit = self.builder, self.emit
        builder.store(emit.zero, slot)
        emit.prefetch(emit.at(place, self.field[G_AHEAD]), write=False)
        with builder.if_then(builder.icmp_signed("<", row, self.field[ROWS]), likely=True):
            loaded = emit.load_masked(place, mask)
            builder.store(swap_halves(emit, loaded) if self.shape.column_step == 2 else loaded, slot)
        builder.store(builder.fadd(builder.load(self.total), builder.load(slot)), self.total)

    def add_line(self, users: list[tuple[int, int]], x_line: Any, masks: list[list[Any]]) -> None:
        """The products of a row of x."""
        ahead = self.emit.at(x_line, self.field[X_AHEAD])
        for offset in range(0, self.shape.column_step * self.emit.width, 64):
            self.emit.prefetch(self.emit.at(ahead, offset), write=False)
        for together in column_groups(self.shape.columns, self.shape.column_step):
            place = self.emit.at(x_line, self.offsets[together[0]])
            for column, pixels in zip(together, load_columns(self.emit, place, masks[together[0]], len(together)), strict=True):
                for held, row in users:
                    slot = self.sums[row][column]
                    total = self.emit.fma(pixels, self.builder.load(self.held[held]), self.builder.load(slot))
                    self.builder.store(total, slot)

    def column(self, x: Any, g: Any, masks: list[list[Any]], mask: Any) -> None:
        """Down the rows of one vector of results."""
        builder, emit, field = self.builder, self.emit, self.field
        for slot in self.held:
            builder.store(emit.zero, slot)
        row = cgutils.alloca_once(builder, _i64)
        source, target = (cgutils.alloca_once(builder, cgutils.voidptr_t) for _ in range(2))
        for slot, value in ((row, _i64(0)), (source, x), (target, g)):
            builder.store(value, slot)
        turns = forward_turns(self.shape.rows, self.shape.row_step)
        for index, (turn, now) in enumerate(walk(builder, turns, field[LINES])):
            if index % self.shape.row_step == 0:
                held = self.held[index // self.shape.row_step]
                self.hold(held, builder.load(row), builder.load(target), mask)
                builder.store(builder.add(builder.load(row), _i64(1)), row)
                builder.store(emit.at(builder.load(target), field[G_ROW]), target)
            with builder.if_then(builder.icmp_unsigned("<", builder.sub(now, field[LOW]), field[SPAN]), likely=True):
                self.add_line(turn.users, builder.load(source), masks)
            builder.store(emit.at(builder.load(source), field[X_ROW]), source)

    def plane(self, x: Any, g: Any, sums: Any, shift: Any) -> None:
        """All rows and columns of a plane."""
        builder, emit, step = self.builder, self.emit, self.shape.column_step
        slots = [slot for row in self.sums for slot in row]
        for slot in (*slots, self.total):
            builder.store(emit.zero, slot)
        each = self.shape.columns * step + 1
        with cgutils.for_range(builder, self.field[VECTORS]) as vector:
            entry, offset = builder.mul(vector.index, _i64(each)), builder.mul(vector.index, _i64(emit.width))
            flags = [emit.flags(self.flags, builder.add(entry, _i64(i))) for i in range(each)]
            masks = [flags[t * step : (t + 1) * step] for t in range(self.shape.columns)]
            self.column(emit.at(x, emit.times(offset, step)), emit.at(g, offset), masks, flags[-1])
        self.write(slots, sums, shift)

    def write(self, slots: list[Any], sums: Any, shift: Any) -> None:
        """Add the sums of all lanes to what is there."""
        builder, emit, lanes = self.builder, self.emit, self.shape.lanes
        for first in range(0, len(slots) + 1, lanes):
            some = [*slots, self.total][first : first + lanes]
            vectors = [builder.load(slot) for slot in some] + [emit.zero] * (lanes - len(some))
            found, place = lane_sums(emit, builder, vectors), emit.at(sums, first * self.item)
            count = min(lanes, len(slots) - first)
            if count > 0:
                below = emit.first(builder.sub(self.field[SKIP], _i64(first)))
                mask = builder.and_(emit.first(_i64(count)), builder.not_(below))
                emit.store_masked(builder.fadd(emit.load_masked(place, mask), found), place, mask)
            if len(some) > count:
                with builder.if_then(builder.icmp_signed("!=", self.field[SHIFT], _i64(0))):
                    total = builder.extract_element(found, ir.IntType(32)(max(count, 0)))
                    slot = builder.bitcast(shift, total.type.as_pointer())
                    builder.store(builder.fadd(builder.load(slot), total), slot)


@intrinsic
def _collect(typingctx: Any, tag: Any, dtype: Any, job: Any) -> Any:
    check_kinds((tag, dtype), (job,))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        tile = _Tile(builder, Collect(*tag.value), dtype, args[2])
        steps = ((X, X_PLANE), (G, G_PLANE), (SUMS, SUMS_PLANE), (SHIFT, SHIFT_PLANE))
        each_plane(builder, tile.field[PLANES], [(tile.field[i], tile.field[step]) for i, step in steps], tile.plane)
        return context.get_dummy_value()

    return types.void(tag, dtype, job), codegen


@kernel  # optimised as other code is: left as it is emitted, tiles of 3 x 3 taps took 4 % longer
def collect(shape: Tag, dtype: Tag, job: Address) -> None:
    """sums[a, t] += the sum over results (i, j) of x[step * i + a, step * j + columns[t]] * g[i, j].

    `shape` is a `Collect`; for the fields of a job see above.
    """
    _collect(shape, dtype, job)
