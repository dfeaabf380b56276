"""Register tiles that sweep down the rows of planes where they lie in memory: depthwise convolution and its adjoint.

The accumulators of the rows of results that a row of x reaches are in registers and take turns: each row of x is loaded once for
all of them. Nothing is packed: what lies beside a row is masked off as it is loaded, rows of padding are left out, and the phases
of a stride are parted, or put together again, in registers. One call serves any number of planes, so that small ones cost little
more than their products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .activation import SMOOTH
from .copies import halved, parted, swap_halves
from .edges import FOLDED, TURNED, WRAPPED, ZEROS, load_edge
from .emit import Emitter, check_kinds, host

__all__ = [
    "PRELOADED", "Sweep", "accumulators", "column_groups", "each_plane", "forward_turns", "is_split", "part_columns", "sweep",
    "walk",
]  # fmt: skip

_i64 = ir.IntType(64)

(
    X, W, BIAS, Y, COLUMNS, FLAGS, PLACES, X_ROW, Y_ROW, X_PLANE, W_PLANE, BIAS_PLANE, Y_PLANE, PLANES, LINES, LOW, SPAN, START,
    ROWS, USED, LAST, COUNT, SLICES, RELU, AHEAD, EDGES, OPEN, FIRST, NUMBERS,
    NUMBER_STEP, NUMBERED_ROW, JOB,
) = range(32)  # fmt: skip
"""The fields of a job: addresses, steps and offsets in bytes.

X, Y: of the first row and the first result, W of the weights of a plane; BIAS: of one element, or 0. The ..._ROW lead from a row
to the next, the ..._PLANE from a plane to the next, of which there are PLANES. LINES rows of x are walked, of which those from
LOW on, SPAN of them, are there at all. START: the number of the row of results that is finished first; those from 0 to ROWS are
stored, USED columns of each. LAST: where the last vector of results of a row begins, which may overlap the one before it; not of
an adjoint. COLUMNS: the offset in x of each of the COUNT columns of taps; FLAGS: of each of their vectors which lanes are there, or
0 if all are and the tile `is_split`. PLACES: where each of the SLICES of a window begins in x and in w, a pair of offsets, if the
tile has several. RELU: whether negative results become 0. AHEAD: how far from what is read memory is prefetched.

Where padding is not of zeros, X is of row 0, FIRST leads from there to the first row that is walked, and all of these are there:
but for the SPAN from LOW on, they are rows of x that are read again. Their numbers begin at the address NUMBERS, NUMBER_STEP apart,
and NUMBERED_ROW leads from a row of x to that of the next number. FLAGS is a table of `edges.table_of` then, and EDGES its offsets;
OPEN: 1 if the first vector of the first column of taps reaches beside the row, plus 2 if the last one of the last column does.
"""
PRELOADED = 9
"""Weights that may stay in registers."""


class Sweep(NamedTuple):
    """The shape of a tile.

    Attributes
    ----------
    vectors : int
        Of pixels of a row.
    rows, columns : int
        Of the kernel; `columns` is 0 where their number is known at run time only.
    row_step, column_step : int
        The stride: of x, or, of an adjoint, of the results.
    adjoint : bool
        Whether the results are the gradient of x; rows are then walked from the last to the first.
    first : int
        Of an adjoint, the phase of the results that the first column of taps belongs to.
    sliced : bool
        Whether results are sums over several slices, channels or places of outer dimensions.
    lanes : int
    smooth : int
        The code of silu or of gelu if one is applied, else 0.
    edges : int
        Of `edges`: what lies beside a row.
    ends : bool
        Whether all results are there, and only the first vector of the first column of taps, and the last one of the last, may
        reach beside a row: no other takes masks. Not of an adjoint, nor where the number of columns is known at run time only.
    """

    vectors: int
    rows: int
    columns: int
    row_step: int
    column_step: int
    adjoint: bool
    first: int
    sliced: bool
    lanes: int
    smooth: int = 0
    edges: int = ZEROS
    ends: bool = False


class _Turn(NamedTuple):
    """What a row of x does: pairs (accumulator, row of the kernel), and the accumulators of the rows of results it finishes."""

    users: list[tuple[int, int]]
    finished: list[int]


def accumulators(shape: Sweep) -> int:
    """Vectors that a tile sums up in."""
    rows = max(shape.rows, shape.row_step) if shape.adjoint else -(-shape.rows // shape.row_step)
    return rows * shape.vectors * (shape.column_step if shape.adjoint else 1)


def is_split(shape: Sweep) -> bool:
    """Whether a tile has loads without masks too: of many columns, or where there are several masks and each is a vector.

    Else the choice between them costs a few per cent: AVX-512 loads its masks beside products, and those of a slice are few.
    """
    return not shape.ends and (shape.edges != ZEROS or not shape.columns or (host().width < 64 and not shape.sliced))


def forward_turns(rows: int, step: int) -> list[_Turn]:
    """Of each row of x of a period, with a stride."""
    count, found = -(-rows // step), []
    for line in range(step * count):
        users = [((line - row) // step % count, row) for row in range(rows) if (line - row) % step == 0]
        done = line - (rows - 1)
        found.append(_Turn(users, [done // step % count] if done % step == 0 else []))
    return found


def _adjoint_turns(rows: int, step: int) -> list[_Turn]:
    """The same where results are spread with a stride."""
    count = max(rows, step)
    return [
        _Turn(
            [((step * line + count - 1 - row) % count, row) for row in range(rows)],
            [(step * line + i) % count for i in range(step)],
        )
        for line in range(count // math.gcd(count, step))
    ]


def part_columns(emit: Emitter, loaded: list[Any], count: int) -> list[Any]:
    """The pixels that `count` neighbouring columns of taps meet: every one of one vector, every second one of two, and so on.

    Every second one is in the order of `swap_halves`.
    """
    return (halved(emit, *loaded) if len(loaded) == 2 else parted(emit, loaded))[:count]


def column_groups(columns: int, step: int) -> list[range]:
    """Columns of taps whose pixels are loaded together."""
    return [range(first, min(first + step, columns)) for first in range(0, columns, step)]


def walk(builder: Any, turns: Sequence[_Turn], lines: Any) -> Iterator[tuple[_Turn, Any]]:
    """Emit a loop over rows of x, of which each iteration is a period: its turns, with the number of the row."""
    line = cgutils.alloca_once(builder, _i64)
    builder.store(_i64(0), line)
    start, end = builder.append_basic_block("period"), builder.append_basic_block("end")
    builder.branch(start)
    builder.position_at_end(start)
    for turn in turns:
        now = builder.load(line)
        yield turn, now
        after, following = builder.add(now, _i64(1)), builder.append_basic_block("line")
        builder.store(after, line)
        builder.cbranch(builder.icmp_signed("<", after, lines), following, end)
        builder.position_at_end(following)
    builder.branch(start)
    builder.position_at_end(end)


def each_plane(builder: Any, count: Any, places: Sequence[tuple[Any, Any]], body: Callable[..., None]) -> None:
    """Emit a loop over planes: `body` with the addresses of one, from pairs (that of the first, bytes to the next)."""
    with cgutils.for_range(builder, count) as plane:
        here = [builder.add(first, builder.mul(plane.index, step)) for first, step in places]
        body(*(builder.inttoptr(place, cgutils.voidptr_t) for place in here))


class _Tile:
    """A tile under construction: what its parts share."""

    def __init__(self, builder: Any, shape: Sweep, dtype: Any, job: Any):
        self.builder, self.shape = builder, shape
        self.emit = emit = Emitter(builder, dtype, shape.lanes)
        self.item = emit.width // shape.lanes
        self.field = {i: emit.offset(job, i) for i in range(JOB)}
        tables = (builder.inttoptr(self.field[i], cgutils.voidptr_t) for i in (COLUMNS, FLAGS, EDGES))
        self.columns, self.flags, self.edges = tables
        self.inside = builder.icmp_signed("==", self.field[FLAGS], _i64(0))
        self.phases = shape.column_step if shape.adjoint else 1
        self.per_load = 1 if shape.adjoint else shape.column_step
        rows = accumulators(shape) // (shape.vectors * self.phases)
        self.sums = [[[emit.accumulator() for _ in range(shape.vectors)] for _ in range(self.phases)] for _ in range(rows)]
        self.masks = [self.result_masks(v) for v in range(shape.vectors)]
        self.relu = emit.spread(builder.icmp_signed("!=", self.field[RELU], _i64(0)))
        dressed = builder.or_(self.field[RELU], self.field[BIAS])
        self.plain = builder.icmp_signed("==", dressed, _i64(0))

    def begin(self, vector: int) -> Any:
        """Where a vector of results begins, in bytes, or all phases of an adjoint's."""
        if self.shape.adjoint or vector == 0 or vector < self.shape.vectors - 1:
            return _i64(vector * self.phases * self.emit.width)
        return self.field[LAST]

    def result_masks(self, vector: int) -> list[Any]:
        """Which results of a vector are there, in all its phases; None stands for all lanes."""
        builder, lanes = self.builder, self.shape.lanes
        if self.shape.ends:
            return [None] * self.phases
        left = builder.sub(self.field[USED], builder.udiv(self.begin(vector), _i64(self.item)))
        return [self.emit.first(builder.sub(left, _i64(half * lanes))) for half in range(self.phases)]

    def clear(self, slots: Sequence[Sequence[Any]]) -> None:
        """Start sums."""
        for slot in (slot for line in slots for slot in line):
            self.builder.store(self.emit.zero, slot)

    def settle(self) -> None:
        """Have all sums computed: no branch around the products of a row says that they are needed before they are stored."""
        for slot in (slot for line in self.sums for phase in line for slot in phase):
            self.builder.store(self.emit.settled(self.builder.load(slot)), slot)

    def pixels(self, x_line: Any, column: Any, count: int, inside: bool) -> list[list[Any]]:
        """Of `count` columns of taps from one on the vectors of pixels; several are parted from the same loads."""
        emit, builder, each = self.emit, self.builder, self.per_load
        place = emit.at(x_line, emit.offset(self.columns, column))
        entry = builder.mul(column if not isinstance(column, int) else _i64(column), _i64(self.shape.vectors * each))
        found: list[list[Any]] = [[] for _ in range(count)]
        for v in range(self.shape.vectors):
            here = emit.at(place, _i64(v * emit.width) if self.shape.adjoint else builder.mul(self.begin(v), _i64(each)))
            loaded = []
            for part in range(each):
                number, at = builder.add(entry, _i64(v * each + part)), emit.at(here, part * emit.width)
                loaded.append(self.load(x_line, at, number, 0 if inside else self.end(column, count, v, part)))
            columns = part_columns(emit, loaded, count)
            for t, vector in enumerate(columns):
                found[t].append(vector)
        return found

    def end(self, column: Any, count: int, vector: int, part: int) -> int:
        """At which end a vector may reach beside a row: 1, 2, both, or none, 0; `count` columns are parted from such."""
        shape = self.shape
        if not shape.ends:
            return 3
        last = (column + count, vector, part) == (shape.columns, shape.vectors - 1, self.per_load - 1)
        return ((column, vector, part) == (0, 0, 0)) + 2 * last

    def load(self, x_line: Any, place: Any, entry: Any, end: int) -> Any:
        """A vector of a row of x; by an entry of the table of FLAGS if it may reach beside the row at an `end`, or at any, 3."""
        emit, builder, kind = self.emit, self.builder, self.shape.edges
        if not end:
            return emit.load(place)
        if kind not in (TURNED, WRAPPED):
            return emit.load_masked(place, emit.flags(self.flags, entry))
        if not self.shape.ends:
            return load_edge(emit, builder, kind, x_line, self.flags, self.edges, entry)
        slot = cgutils.alloca_once(builder, emit.vector)
        is_open = builder.icmp_signed("!=", builder.and_(self.field[OPEN], _i64(end)), _i64(0))
        with builder.if_else(is_open) as (beside, inside):
            with beside:
                builder.store(load_edge(emit, builder, kind, x_line, self.flags, self.edges, entry), slot)
            with inside:
                builder.store(emit.load(place), slot)
        return builder.load(slot)

    def store(self, value: Any, place: Any, mask: Any) -> None:
        """Write a vector of results, of a mask of None all of it."""
        if mask is None:
            self.emit.store(value, place)
        else:
            self.emit.store_masked(value, place, mask)

    def add(self, users: list[tuple[int, int]], pixels: list[Any], phase: int, weight: Any) -> None:
        """The products of a column of taps; `weight` gives that of a row."""
        for accumulator, row in users:
            value = weight(row)
            for slot, pixel in zip(self.sums[accumulator][phase], pixels, strict=True):
                self.builder.store(self.emit.fma(pixel, value, self.builder.load(slot)), slot)

    def add_line(self, users: list[tuple[int, int]], x_line: Any, w: Any, held: dict[tuple[int, int], Any]) -> None:
        """All products of a row of x of one slice; with masks where some of its lanes are not there."""
        shape, emit = self.shape, self.emit
        ahead = emit.at(x_line, self.field[AHEAD])
        for offset in range(0, shape.vectors * self.per_load * emit.width, 64):
            emit.prefetch(emit.at(ahead, offset), write=False)
        if not is_split(shape):
            self.add_columns(users, x_line, w, held, inside=False)
            return
        with self.builder.if_else(self.inside) as (whole, masked):
            with whole:
                self.add_columns(users, x_line, w, held, inside=True)
            with masked:
                self.add_columns(users, x_line, w, held, inside=False)

    def add_columns(
        self, users: list[tuple[int, int]], x_line: Any, w: Any, held: dict[tuple[int, int], Any], *, inside: bool
    ) -> None:
        """The products of all columns of taps with a row of x; `inside`: without masks."""
        shape, emit, builder = self.shape, self.emit, self.builder
        if not shape.columns:
            w_row = builder.mul(self.field[COUNT], _i64(self.item))
            with cgutils.for_range(builder, self.field[COUNT]) as column:
                place = emit.at(w, builder.mul(column.index, _i64(self.item)))
                (pixels,) = self.pixels(x_line, column.index, 1, inside)
                self.add(users, pixels, 0, lambda row: emit.broadcast(emit.at(place, builder.mul(w_row, _i64(row)))))
            return
        for together in column_groups(shape.columns, self.per_load):
            for column, pixels in zip(together, self.pixels(x_line, together[0], len(together), inside), strict=True):
                phase = (shape.first + column) % self.phases
                self.add(users, pixels, phase, lambda row, t=column: self.weight(w, row, t, held))
        if shape.edges == FOLDED and not inside:
            self.add_folds(users, x_line, w)

    def add_folds(self, users: list[tuple[int, int]], x_line: Any, w: Any) -> None:
        """The products of both ends of a row that belong beside the results, in the lanes that they are added to."""
        shape, emit, builder = self.shape, self.emit, self.builder
        for end in range(2):
            vector, offset, tap = (emit.offset(self.edges, 3 * end + i) for i in range(3))
            with builder.if_then(builder.icmp_signed(">=", vector, _i64(0))):
                mask = emit.flags(self.flags, _i64(shape.columns * shape.vectors + end))
                pixels, place = emit.load_masked(emit.at(x_line, offset), mask), emit.at(w, tap)
                weights = [emit.broadcast(emit.at(place, row * shape.columns * self.item)) for _, row in users]
                for v in range(shape.vectors):
                    with builder.if_then(builder.icmp_signed("==", vector, _i64(v))):
                        for (accumulator, _), weight in zip(users, weights, strict=True):
                            slot = self.sums[accumulator][0][v]
                            builder.store(emit.fma(pixels, weight, builder.load(slot)), slot)

    def add_slices(self, users: list[tuple[int, int]], x_line: Any, w: Any, held: dict[tuple[int, int], Any]) -> None:
        """All products of a row of x of every slice."""
        if not self.shape.sliced:
            self.add_line(users, x_line, w, held)
            return
        emit, builder = self.emit, self.builder
        places = builder.inttoptr(self.field[PLACES], cgutils.voidptr_t)
        with cgutils.for_range(builder, self.field[SLICES]) as each:
            entry = builder.mul(each.index, _i64(2))
            x_slice, w_slice = emit.offset(places, entry), emit.offset(places, builder.add(entry, _i64(1)))
            self.add_line(users, emit.at(x_line, x_slice), emit.at(w, w_slice), {})

    def weight(self, w: Any, row: int, column: int, held: dict[tuple[int, int], Any]) -> Any:
        """A weight in all lanes."""
        if (row, column) in held:
            return held[row, column]
        return self.emit.broadcast(self.emit.at(w, (row * self.shape.columns + column) * self.item))

    def hold(self, w: Any) -> dict[tuple[int, int], Any]:
        """The weights that stay in registers: all or none."""
        shape = self.shape
        if shape.sliced or not 0 < shape.rows * shape.columns <= PRELOADED or accumulators(shape) + shape.rows * shape.columns > 24:
            return {}
        taps = [(row, column) for row in range(shape.rows) for column in range(shape.columns)]
        return {tap: self.weight(w, *tap, {}) for tap in taps}

    def put_in_order(self, slots: list[list[Any]]) -> None:
        """Sums of pixels that `load_columns` gave, in the order of the results."""
        if self.per_load == 2:
            for slot in slots[0]:
                self.builder.store(swap_halves(self.emit, self.builder.load(slot)), slot)

    def finish(self, slots: list[list[Any]], place: Any, shift: Any) -> None:
        """Write a row of results."""
        builder, emit, shape = self.builder, self.emit, self.shape
        for v, masks in enumerate(self.masks):
            values = self.row_values(slots, v)
            places = [emit.at(emit.at(place, self.begin(v)), half * emit.width) for half in range(self.phases)]
            if shape.smooth:
                self.finish_smoothly(v, values, places, masks, shift)
                continue
            with builder.if_else(self.plain) as (bare, dressed):
                with bare:
                    for value, at, mask in zip(values, places, masks, strict=True):
                        self.store(value, at, mask)
                with dressed:
                    for value, at, mask in zip(values, places, masks, strict=True):
                        self.store(emit.positive(builder.fadd(value, shift), self.relu), at, mask)

    def finish_smoothly(self, v: int, values: list[Any], places: list[Any], masks: list[Any], shift: Any) -> None:
        """Write the v-th vectors of a row with silu or gelu.

        Each in a block of its own: the compiler would compute several at a time, for which there are not enough registers.
        """
        builder, shape = self.builder, self.shape
        for half, (value, place, mask) in enumerate(zip(values, places, masks, strict=True)):
            first = _i64((self.phases * v + half) * shape.lanes)
            with builder.if_then(builder.icmp_signed("<", first, self.field[USED])):
                self.store(SMOOTH[shape.smooth](builder, builder.fadd(value, shift)), place, mask)

    def row_values(self, slots: list[list[Any]], v: int) -> list[Any]:
        """The v-th vectors of a row of results, of which there are as many as phases."""
        values, lanes = [self.builder.load(phase[v]) for phase in slots], self.emit.lanes
        if self.phases == 1:
            return values
        halves = ([half * lanes // 2 + i // 2 + i % 2 * lanes for i in range(lanes)] for half in range(2))
        return [self.emit.shuffle(*values, half) for half in halves]

    def shift(self, bias: Any) -> Any:
        """The bias in all lanes; -0, which changes no sum, if there is none."""
        slot = cgutils.alloca_once(self.builder, self.emit.vector)
        self.builder.store(self.emit.constant(-0.0), slot)
        with self.builder.if_then(self.builder.icmp_signed("!=", self.field[BIAS], _i64(0))):
            self.builder.store(self.emit.broadcast(bias), slot)
        return self.builder.load(slot)

    def line(self, x: Any, here: Any, now: Any, inside: Any) -> Any:
        """Where the row of x lies that is walked: `here` if it is `inside`, else where its number says."""
        builder, emit, field = self.builder, self.emit, self.field
        place = cgutils.alloca_once_value(builder, here)
        with builder.if_then(builder.not_(inside), likely=False):
            entry = builder.add(field[NUMBERS], builder.mul(now, field[NUMBER_STEP]))
            number = emit.offset(builder.inttoptr(entry, cgutils.voidptr_t), 0)
            builder.store(emit.at(x, builder.mul(number, field[NUMBERED_ROW])), place)
        return builder.load(place)

    def plane(self, x: Any, w: Any, bias: Any, y: Any) -> None:
        """All rows of a plane."""
        builder, emit, field, shape = self.builder, self.emit, self.field, self.shape
        shift, held = self.shift(bias), self.hold(w)
        for slots in self.sums:
            self.clear(slots)
        row = cgutils.alloca_once(builder, _i64)
        source, target = (cgutils.alloca_once(builder, cgutils.voidptr_t) for _ in range(2))
        first = emit.at(y, builder.mul(field[START], field[Y_ROW]))
        numbered = shape.edges in (TURNED, WRAPPED)
        walked = emit.at(x, field[FIRST]) if numbered else x
        for slot, value in ((row, field[START]), (source, walked), (target, first)):
            builder.store(value, slot)
        turns = (_adjoint_turns if shape.adjoint else forward_turns)(shape.rows, shape.row_step)
        for turn, now in walk(builder, turns, field[LINES]):
            here = builder.load(source)
            inside = builder.icmp_unsigned("<", builder.sub(now, field[LOW]), field[SPAN])
            if numbered:
                self.add_slices(turn.users, self.line(x, here, now, inside), w, held)
                if shape.ends:
                    self.settle()
            else:
                with builder.if_then(inside, likely=True):
                    self.add_slices(turn.users, here, w, held)
            builder.store(emit.at(here, field[X_ROW]), source)
            for accumulator in turn.finished:
                with builder.if_then(builder.icmp_unsigned("<", builder.load(row), field[ROWS]), likely=True):
                    self.put_in_order(self.sums[accumulator])
                    self.finish(self.sums[accumulator], builder.load(target), shift)
                self.clear(self.sums[accumulator])
                builder.store(builder.add(builder.load(row), _i64(1)), row)
                builder.store(emit.at(builder.load(target), field[Y_ROW]), target)


@intrinsic
def _sweep(typingctx: Any, tag: Any, dtype: Any, job: Any) -> Any:
    check_kinds((tag, dtype), (job,))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        tile = _Tile(builder, Sweep(*tag.value), dtype, args[2])
        steps = ((X, X_PLANE), (W, W_PLANE), (BIAS, BIAS_PLANE), (Y, Y_PLANE))
        each_plane(builder, tile.field[PLANES], [(tile.field[i], tile.field[step]) for i, step in steps], tile.plane)
        return context.get_dummy_value()

    return types.void(tag, dtype, job), codegen


@kernel(emitted=True)
def sweep(shape: Tag, dtype: Tag, job: Address) -> None:
    """y[i, j] = the sum over rows a and columns t of taps of x[step * i + a, step * j + columns[t]] * w[a, t], in this order.

    Or its adjoint, which spreads the rows of x instead. `shape` is a `Sweep`; for the fields of a job see above.
    """
    _sweep(shape, dtype, job)
