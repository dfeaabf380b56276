"""Register tiles of the weight gradients of planes where they lie: the taps are the accumulators, the lanes are pixels.

A tile holds one vector for each of some rows and columns of taps. It walks down the rows of x, a vector of results wide; at each
column of taps it loads the pixels of x once and multiplies them with the rows of grad_y that meet them, which stay in registers. In
the end the lanes of each vector are added up. One call serves any number of planes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .copies import swap_halves
from .correlation import lane_sums
from .edges import ZEROS, load_edge
from .emit import Emitter, check_kinds
from .planes import column_groups, each_plane, forward_turns, part_columns, walk

__all__ = ["Collect", "collect", "registers"]

_i64 = ir.IntType(64)

(
    X, G, SUMS, SHIFT, COLUMNS, FLAGS, X_ROW, G_ROW, X_PLANE, G_PLANE, SUMS_PLANE, SHIFT_PLANE, PLANES, VECTORS, LINES, LOW, SPAN,
    ROWS, SKIP, X_AHEAD, G_AHEAD, TABLE, EDGES, INNER, OUTER, LINE, JOB,
) = range(27)  # fmt: skip
"""The fields of a job: addresses, steps and offsets in bytes.

X: of the row and the place of x that the first tap of result 0 meets, G: of grad_y, SUMS: of what the sums of the taps are added
to, SHIFT: to what that of grad_y is, or 0. The ..._ROW lead from a row to the next, the ..._PLANE from a plane to the next, of
which there are PLANES. VECTORS: of results in a row, ROWS: of grad_y. LINES rows of x are walked, of which those from LOW on,
SPAN of them, are there at all. COLUMNS: the offset of each column of taps in x; FLAGS: for each vector the lanes of x of each
column that are there, then those of grad_y. SKIP: first taps that are not added. ..._AHEAD: how far from what is read memory is
prefetched.

Where padding is not of zeros, X is of row 0 and LINE the address of the number of the first row that is walked, which those of the
next ones follow. The vectors from INNER to OUTER lie inside x; what the others read, column by column, is made as TABLE and EDGES
say, which are those of `edges.table_of`.
"""


class Collect(NamedTuple):
    """The shape of a tile: rows and columns of taps, the stride, lanes, and what lies beside a row, one of `edges`."""

    rows: int
    columns: int
    row_step: int
    column_step: int
    lanes: int
    edges: int = ZEROS


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

    def pixels(self, x_line: Any, columns: range, masks: list[list[Any]]) -> list[Any]:
        """What some columns of taps meet in a row of x, of which the lanes of the masks are there: of None all."""
        emit, place, found = self.emit, self.emit.at(x_line, self.offsets[columns[0]]), masks[columns[0]]
        places = [emit.at(place, part * emit.width) for part in range(len(found))]
        loaded = [emit.load(at) if mask is None else emit.load_masked(at, mask) for at, mask in zip(places, found, strict=True)]
        return part_columns(emit, loaded, len(columns))

    def edge_pixels(self, vector: Any, line: Any, columns: range) -> list[Any]:
        """The same of a vector at an edge, from the beginning of a row."""
        builder, step = self.builder, self.shape.column_step
        tables = [builder.inttoptr(self.field[i], cgutils.voidptr_t) for i in (TABLE, EDGES)]
        first = builder.add(builder.mul(vector, _i64(self.shape.columns * step)), _i64(columns[0] * step))
        entries = [builder.add(first, _i64(part)) for part in range(step)]
        loaded = [load_edge(self.emit, builder, self.shape.edges, line, *tables, entry) for entry in entries]
        return part_columns(self.emit, loaded, len(columns))

    def add_line(self, users: list[tuple[int, int]], x_line: Any, pixels_of: Callable[[Any, range], list[Any]]) -> None:
        """The products of a row of x."""
        ahead = self.emit.at(x_line, self.field[X_AHEAD])
        for offset in range(0, self.shape.column_step * self.emit.width, 64):
            self.emit.prefetch(self.emit.at(ahead, offset), write=False)
        for together in column_groups(self.shape.columns, self.shape.column_step):
            for column, pixels in zip(together, pixels_of(x_line, together), strict=True):
                for held, row in users:
                    slot = self.sums[row][column]
                    total = self.emit.fma(pixels, self.builder.load(self.held[held]), self.builder.load(slot))
                    self.builder.store(total, slot)

    def column(self, x: Any, g: Any, pixels_of: Callable[[Any, range], list[Any]], mask: Any) -> None:
        """Down the rows of one vector of results; `mask`: of its lanes."""
        builder, emit, field = self.builder, self.emit, self.field
        for slot in self.held:
            builder.store(emit.zero, slot)
        row = cgutils.alloca_once(builder, _i64)
        source, target = (cgutils.alloca_once(builder, cgutils.voidptr_t) for _ in range(2))
        numbered = self.shape.edges != ZEROS
        line = builder.inttoptr(field[LINE], cgutils.voidptr_t) if numbered else x
        for slot, value in ((row, _i64(0)), (source, line), (target, g)):
            builder.store(value, slot)
        turns = forward_turns(self.shape.rows, self.shape.row_step)
        for index, (turn, now) in enumerate(walk(builder, turns, field[LINES])):
            if index % self.shape.row_step == 0:
                held = self.held[index // self.shape.row_step]
                self.hold(held, builder.load(row), builder.load(target), mask)
                builder.store(builder.add(builder.load(row), _i64(1)), row)
                builder.store(emit.at(builder.load(target), field[G_ROW]), target)
            with builder.if_then(builder.icmp_unsigned("<", builder.sub(now, field[LOW]), field[SPAN]), likely=True):
                place = builder.load(source)
                if numbered:
                    place = emit.at(x, builder.mul(emit.offset(place, 0), field[X_ROW]))
                self.add_line(turn.users, place, pixels_of)
            builder.store(emit.at(builder.load(source), _i64(8) if numbered else field[X_ROW]), source)

    def masks(self, vector: Any) -> tuple[list[list[Any]], Any]:
        """Which lanes of a vector are there: for each column of taps those of x, and those of grad_y."""
        step = self.shape.column_step
        each = self.shape.columns * step + 1
        entry = self.builder.mul(vector, _i64(each))
        flags = [self.emit.flags(self.flags, self.builder.add(entry, _i64(i))) for i in range(each)]
        return [flags[t * step : (t + 1) * step] for t in range(self.shape.columns)], flags[-1]

    def edged_column(self, x: Any, vector: Any, place: Any, g: Any) -> None:
        """Down the rows of a vector of results, at `place` in row 0 of x where no lane is beside the row."""
        builder, field = self.builder, self.field
        mask, inner = self.emit.flags(self.flags, vector), builder.sub(vector, field[INNER])
        inside = builder.icmp_unsigned("<", inner, builder.sub(field[OUTER], field[INNER]))
        whole = [[None] * self.shape.column_step] * self.shape.columns
        with builder.if_else(inside) as (within, beside):
            with within:
                self.column(place, g, functools.partial(self.pixels, masks=whole), mask)
            with beside:
                self.column(x, g, functools.partial(self.edge_pixels, vector), mask)

    def plane(self, x: Any, g: Any, sums: Any, shift: Any) -> None:
        """All rows and columns of a plane."""
        builder, emit, step = self.builder, self.emit, self.shape.column_step
        slots = [slot for row in self.sums for slot in row]
        for slot in (*slots, self.total):
            builder.store(emit.zero, slot)
        with cgutils.for_range(builder, self.field[VECTORS]) as loop:
            offset = builder.mul(loop.index, _i64(emit.width))
            place, results = emit.at(x, emit.times(offset, step)), emit.at(g, offset)
            if self.shape.edges == ZEROS:
                masks, mask = self.masks(loop.index)
                self.column(place, results, functools.partial(self.pixels, masks=masks), mask)
            else:
                self.edged_column(x, loop.index, place, results)
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
