"""Register tiles over the rows of one channel, which use each loaded vector of x for several rows of results.

A tile holds `rows` x `vectors` accumulators: pixels of `vectors` vectors, in `rows` rows of results. It walks over the rows of x;
for each column of the kernel it loads the pixels of the row once and multiplies them with one weight for each row of results
whose window reaches this row of x. So loads stay below what a processor does beside its multiply-adds, though there is one output
channel only. Which rows of results a row of x reaches is known at run time, and there is a loop for each usual range of them, and
one that asks for each row: the tile serves any size of kernel, any stride and any dilation, and is compiled once.

A sum over one dimension is folded: neighbouring outputs are cut into rows of the tile's width, its taps into rows of the kernel, of
which the last may be short.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds
from .memory import Memory

# Fields of a job.
(
    X,
    PLACES,
    COLUMNS,
    W,
    SCHEDULE,
    BIAS,
    Y,
    X_ROW,
    FIRST,
    LAST,
    SLICES,
    W_COLUMN,
    RELU,
    Y_ROW,
    USED_ROWS,
    USED,
    SHORT,
    LEFT,
    COUNT,
    JOB,
) = range(20)
__all__ = [
    "BIAS",
    "COLUMNS",
    "COUNT",
    "FIRST",
    "JOB",
    "LAST",
    "LEFT",
    "PLACES",
    "RELU",
    "SCHEDULE",
    "SHORT",
    "SLICES",
    "USED",
    "USED_ROWS",
    "W_COLUMN",
    "X_ROW",
    "Y_ROW",
    "W",
    "X",
    "Y",
    "slide",
]  # fmt: skip

_i1, _i64 = ir.IntType(1), ir.IntType(64)


def _least(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_signed("<", a, b), a, b)


def _most(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_signed(">", a, b), a, b)


def _ranges(rows: int, few: bool) -> list[tuple[int, int]]:
    """Ranges of rows of results that have code of their own: any, if windows have few rows, else those at an edge."""
    every = [(first, last) for first in range(rows) for last in range(first + 1, rows + 1)]
    return [each for each in every if few or each[0] == 0 or each[1] == rows]


def _branch(builder: Any, rows: int, few: bool, low: Any, high: Any, body: Callable[[Sequence[int], Any], None]) -> None:
    """Run the code that `body` emits for the rows low..high; nothing if there are none.

    It gets rows, and what says which of them are meant, bit by bit: None for all.
    """
    end, others = builder.append_basic_block("rows.end"), builder.append_basic_block("rows.others")
    switch = builder.switch(builder.add(builder.mul(low, _i64(rows + 1)), high), others)
    for first, last in _ranges(rows, few):
        block = builder.append_basic_block(f"rows.{first}.{last}")
        switch.add_case(_i64(first * (rows + 1) + last), block)
        builder.position_at_end(block)
        body(range(first, last), None)
        builder.branch(end)
    builder.position_at_end(others)
    if not few:
        with builder.if_then(builder.icmp_signed("<", low, high)):
            body(range(rows), builder.sub(builder.shl(_i64(1), high), builder.shl(_i64(1), low)))
    builder.branch(end)
    builder.position_at_end(end)


def _store_rows(
    emit: Emitter, results: Memory, builder: Any, sums: Any, y: Any, y_row: Any, count: Any, used: Any, short: Any, left: Any
) -> None:
    """Write the first `count` rows: `used` pixels each, or `left` in the row `short`."""
    lanes = emit.lanes
    masks = [emit.first(builder.sub(used, _i64(v * lanes))) for v in range(len(sums[0]))]
    for row, vectors in enumerate(sums):
        with builder.if_then(builder.icmp_signed("<", _i64(row), count)):
            place = emit.at(y, emit.times(y_row, row))
            with builder.if_else(builder.icmp_signed("==", _i64(row), short)) as (few, usual):
                with few:
                    for v, slot in enumerate(vectors):
                        mask = emit.first(builder.sub(left, _i64(v * lanes)))
                        results.store_masked(builder.load(slot), emit.at(place, v * results.width), mask)
                with usual:
                    for v, slot in enumerate(vectors):
                        results.store_masked(builder.load(slot), emit.at(place, v * results.width), masks[v])


@intrinsic
def _slide(typingctx: Any, shape: Any, dtype: Any, job: Any) -> Any:
    check_kinds((shape, dtype), (job,))
    rows, vectors, lanes, few = shape.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        emit = Emitter(builder, dtype.value[0], lanes)
        results = Memory(context, builder, emit, dtype.value[1])
        item = emit.width // lanes
        fields = [emit.offset(args[2], i) for i in range(JOB)]
        x, places, columns, w, schedule, bias, y = (builder.inttoptr(field, cgutils.voidptr_t) for field in fields[:X_ROW])
        x_row, first, last, slices, w_column, relu, y_row, used_rows, used, short, left, _ = fields[X_ROW:]
        sums = [[emit.accumulator() for _ in range(vectors)] for _ in range(rows)]

        def add_row(row: int, pixels: list[Any], weights: Any) -> None:
            weight = emit.broadcast(emit.at(weights, -row * item))
            for slot, pixel in zip(sums[row], pixels, strict=True):
                builder.store(emit.fma(pixel, weight, builder.load(slot)), slot)

        def add_columns(x_line: Any, w_line: Any, begin: Any, end: Any, active: Sequence[int], bits: Any) -> None:
            """All products of one row of x with the columns begin..end of the kernel, for the active rows of results."""
            with cgutils.for_range_slice(builder, begin, end, _i64(1)) as (column, _):
                x_tap = emit.at(x_line, emit.offset(columns, column))
                w_tap = emit.at(w_line, builder.mul(column, w_column))
                pixels = [emit.load(emit.at(x_tap, v * emit.width)) for v in range(vectors)]
                for row in active:
                    if bits is None:
                        add_row(row, pixels, w_tap)
                        continue
                    with builder.if_then(builder.icmp_unsigned("!=", builder.and_(bits, _i64(1 << row)), _i64(0))):
                        add_row(row, pixels, w_tap)

        with cgutils.for_range(builder, slices) as slice_:
            entry = builder.mul(slice_.index, _i64(2))
            x_slice = emit.at(x, emit.offset(places, entry))
            w_slice = emit.at(w, emit.offset(places, builder.add(entry, _i64(1))))
            with cgutils.for_range_slice(builder, first, last, _i64(1)) as (step, _):
                entry = builder.mul(step, _i64(6))
                line, begin, end, weights, low, high = (emit.offset(schedule, builder.add(entry, _i64(i))) for i in range(6))
                x_line, w_line = emit.at(x_slice, builder.mul(line, x_row)), emit.at(w_slice, weights)
                high = builder.select(builder.icmp_signed("<", high, used_rows), high, used_rows)
                _branch(builder, rows, few, low, high, functools.partial(add_columns, x_line, w_line, begin, end))
        with builder.if_then(builder.icmp_unsigned("!=", builder.ptrtoint(bias, _i64), _i64(0))):
            shift = emit.broadcast(bias)
            for slot in (slot for line in sums for slot in line):
                builder.store(builder.fadd(builder.load(slot), shift), slot)
        with builder.if_then(builder.icmp_signed("!=", relu, _i64(0))):
            every = ir.Constant(ir.VectorType(_i1, lanes), [1] * lanes)
            for slot in (slot for line in sums for slot in line):
                builder.store(emit.positive(builder.load(slot), every), slot)
        _store_rows(emit, results, builder, sums, y, y_row, used_rows, used, short, left)
        return context.get_dummy_value()

    return types.void(shape, dtype, job), codegen


@kernel(emitted=True)
def slide(shape: Tag, dtype: Tag, job: Address) -> None:
    """y[r, j] = the sum over slices, kernel rows a and columns t of x[lag * r + a, j + columns[t]] * w[a, t], in this order.

    Its many parameters are the int64 fields of a job: on the stack, the entry would copy them in vectors, which has to wait for
    all stores before.

    Parameters
    ----------
    shape : Tag
        (rows, vectors, lanes) of the tile, and whether windows have fewer rows than it.
    dtype : Tag
        A pair: of the sums, and of y.
    job : Address

    Notes
    -----
    The fields, addresses first:

    ``X``, ``X_ROW``, ``FIRST``, ``LAST``
        Row 0 of x, of which pixels are neighbours; bytes between rows, negative ones walk backwards; the steps of the schedule
        that are done: what lies outside is no term.
    ``PLACES``, ``SLICES``
        Pairs of byte offsets, and how many: where each slice begins in x and in w.
    ``COLUMNS``, ``COUNT``
        The byte offset of each column of the kernel in a row of x, and how many there are.
    ``W``, ``W_COLUMN``
        The weights, [column][phase][row of the phase], with row a in phase a % lag; bytes between columns.
    ``SCHEDULE``
        Steps of six numbers: a row of x, the first and the last column, the byte offset of the weights for row 0 of results, the
        first and the last row of results.
    ``BIAS``, ``RELU``
        One element that is added, or 0; 1 if the positive part is stored.
    ``Y``, ``Y_ROW``, ``USED_ROWS``, ``USED``, ``SHORT``, ``LEFT``
        `USED` pixels are stored in the first rows, but `LEFT` in the row `SHORT`.
    """
    _slide(shape, dtype, job)
