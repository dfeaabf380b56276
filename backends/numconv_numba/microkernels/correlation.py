"""Register tiles of weight gradients of few channels: the taps are the accumulators, the lanes are pixels.

A tile holds one vector for each of `rows` x `columns` taps. It walks down the rows of x, vector by vector of pixels; at each column
of taps it loads the pixels of x once, and multiplies them with the last rows of grad_y, which stay in registers: one for each row
of taps. In the end the lanes are added up, and the sums to those of earlier pixels.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds

# Fields of a task.
X, COLUMNS, G, SUMS, X_ROW, G_ROW, FIRST, LAST, ROWS, PIXELS, TASK = range(11)
__all__ = [
    "COLUMNS",
    "FIRST",
    "G_ROW",
    "LAST",
    "PIXELS",
    "ROWS",
    "SUMS",
    "TASK",
    "X_ROW",
    "G",
    "X",
    "correlate",
    "lane_sums",
    "sum_places",
]  # fmt: skip

_i64 = ir.IntType(64)


def sum_places(rows: int, columns: int, lanes: int) -> int:
    """Elements that the sums of a tile take: whole vectors."""
    return -(-rows * columns // lanes) * lanes


def lane_sums(emit: Emitter, builder: Any, vectors: list[Any]) -> Any:
    """A vector of the sums of the lanes of as many vectors."""
    while len(vectors) > 1:
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [
            builder.fadd(emit.shuffle(a, b, range(0, 2 * emit.lanes, 2)), emit.shuffle(a, b, range(1, 2 * emit.lanes, 2)))
            for a, b in pairs
        ]
    return vectors[0]


def _add_to(emit: Emitter, builder: Any, slots: list[Any], y: Any) -> None:
    """y[i] += the sum of the lanes of slot i; whole vectors of y."""
    for first in range(0, len(slots), emit.lanes):
        vectors = [builder.load(slot) for slot in slots[first : first + emit.lanes]]
        vectors += [emit.zero] * (emit.lanes - len(vectors))
        place = emit.at(y, first * (emit.width // emit.lanes))
        emit.store(builder.fadd(emit.load(place), lane_sums(emit, builder, vectors)), place)


@intrinsic
def _correlate(typingctx: Any, shape: Any, dtype: Any, task: Any) -> Any:
    check_kinds((shape, dtype), (task,))
    rows, columns, lanes = shape.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        emit = Emitter(builder, dtype, lanes)
        fields = [emit.offset(args[2], i) for i in range(TASK)]
        x, table, g, y = (builder.inttoptr(field, cgutils.voidptr_t) for field in fields[:X_ROW])
        offsets = [emit.offset(table, t) for t in range(columns)]
        sums = [[emit.accumulator() for _ in range(columns)] for _ in range(rows)]
        first, last = fields[FIRST], fields[LAST]
        line = cgutils.alloca_once(builder, _i64)
        x_line, g_line = (cgutils.alloca_once(builder, cgutils.voidptr_t) for _ in range(2))
        held = [emit.accumulator() for _ in range(rows)]

        def hold(slot: Any, row: Any, place: Any, mask: Any) -> None:
            """A vector of a row of grad_y; zeros outside."""
            inside = builder.icmp_unsigned("<", row, fields[ROWS])
            builder.store(emit.zero, slot)
            with builder.if_then(inside, likely=True):
                builder.store(emit.load_masked(place, mask), slot)

        def add_line(turn: int, mask: Any) -> None:
            """The products of one row of x; the row of grad_y r rows up was held r turns ago."""
            x_place, g_place = emit.opaque(builder.load(x_line)), builder.load(g_line)
            hold(held[turn], builder.load(line), g_place, mask)
            for t in range(columns):
                pixels = emit.load(emit.at(x_place, offsets[t]))
                for row in range(rows):
                    slot = sums[row][t]
                    builder.store(emit.fma(pixels, builder.load(held[(turn - row) % rows]), builder.load(slot)), slot)
            builder.store(emit.at(x_place, fields[X_ROW]), x_line)
            builder.store(emit.at(g_place, fields[G_ROW]), g_line)
            builder.store(builder.add(builder.load(line), _i64(1)), line)

        vectors = builder.sdiv(builder.add(fields[PIXELS], _i64(lanes - 1)), _i64(lanes))
        vectors = builder.select(builder.icmp_signed("<", first, last), vectors, _i64(0))
        with cgutils.for_range(builder, vectors) as vector:
            place = builder.mul(vector.index, _i64(emit.width))
            mask = emit.first(builder.sub(fields[PIXELS], builder.mul(vector.index, _i64(lanes))))
            builder.store(first, line)
            builder.store(emit.at(emit.at(x, place), builder.mul(first, fields[X_ROW])), x_line)
            builder.store(emit.at(emit.at(g, place), builder.mul(first, fields[G_ROW])), g_line)
            for row in range(1, rows):
                source = emit.at(builder.load(g_line), emit.times(fields[G_ROW], -row))
                hold(held[-row], builder.sub(first, _i64(row)), source, mask)
            start, end = builder.append_basic_block("lines"), builder.append_basic_block("lines.end")
            builder.branch(start)
            builder.position_at_end(start)
            for turn in range(rows):
                add_line(turn, mask)
                following = builder.append_basic_block("line")
                builder.cbranch(builder.icmp_signed("<", builder.load(line), last), following, end)
                builder.position_at_end(following)
            builder.branch(start)
            builder.position_at_end(end)
        _add_to(emit, builder, [slot for line in sums for slot in line], y)
        return context.get_dummy_value()

    return types.void(shape, dtype, task), codegen


@kernel(emitted=True)
def correlate(shape: Tag, dtype: Tag, task: Address) -> None:
    """sums[a, t] += the sum over rows r and pixels j of x[r + a, j + columns[t]] * g[r, j].

    Parameters
    ----------
    shape : Tag
        (rows, columns, lanes) of the tile.
    task : Address
        Of int64 fields, as `sliding.slide` has them.

    Notes
    -----
    The fields, addresses first:

    ``X``, ``X_ROW``, ``FIRST``, ``LAST``
        Row 0 of x, bytes between rows, and the rows that are read: what lies outside is no term.
    ``COLUMNS``
        The byte offset of each column of taps in a row of x.
    ``G``, ``G_ROW``, ``ROWS``, ``PIXELS``
        grad_y: row 0, bytes between rows, number of rows, and pixels of a row. Of x whole vectors are read, which must be finite.
    ``SUMS``
        `sum_places` elements.
    """
    _correlate(shape, dtype, task)
