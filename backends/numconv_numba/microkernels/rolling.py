"""Register tiles that roll down the rows of one channel, for kernels of few rows.

The accumulators of the rows of results that a row of x reaches are in registers, and take turns: each row of x is loaded once for
all of them, and finishes one of them. So a strip of any height costs no more loads than it has rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds
from .memory import Memory
from .sliding import BIAS, COLUMNS, COUNT, JOB, RELU, USED, USED_ROWS, X_ROW, Y_ROW, W, X, Y

__all__ = ["Roll", "roll"]

_i64 = ir.IntType(64)


class Roll(NamedTuple):
    """The shape of a tile: vectors of pixels, rows of the kernel, rows of x from one row of results to the next."""

    vectors: int
    rows: int
    lag: int
    lanes: int


def _turns(shape: Roll) -> list[tuple[list[tuple[int, int]], int | None]]:
    """For each row of x of a period: pairs (accumulator, row of the kernel), and the accumulator that this row finishes."""
    count = -(-shape.rows // shape.lag)
    found = []
    for line in range(shape.lag * count):
        users = [((line - row) // shape.lag % count, row) for row in range(shape.rows) if (line - row) % shape.lag == 0]
        done = line - (shape.rows - 1)
        found.append((users, done // shape.lag % count if done % shape.lag == 0 else None))
    return found


def _place(shape: Roll, row: int) -> int:
    """Of a row of the kernel among the weights of a column: the rows of a phase of the lag are neighbours."""
    return row % shape.lag * -(-shape.rows // shape.lag) + row // shape.lag


def _shift(emit: Emitter, builder: Any, bias: Any) -> Any:
    """The bias in all lanes; -0, which changes no sum, if its address is 0."""
    slot = cgutils.alloca_once_value(builder, emit.constant(-0.0))
    with builder.if_then(builder.icmp_unsigned("!=", builder.ptrtoint(bias, _i64), _i64(0))):
        builder.store(emit.broadcast(bias), slot)
    return builder.load(slot)


def _write(emit: Emitter, results: Memory, values: Sequence[Any], place: Any, masks: Sequence[Any]) -> None:
    for v, (value, mask) in enumerate(zip(values, masks, strict=True)):
        results.store_masked(value, emit.at(place, v * results.width), mask)


@intrinsic
def _roll(typingctx: Any, tag: Any, dtype: Any, job: Any) -> Any:
    check_kinds((tag, dtype), (job,))
    shape = Roll(*tag.value)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        emit = Emitter(builder, dtype.value[0], shape.lanes)
        results = Memory(context, builder, emit, dtype.value[1])
        item, fields = emit.width // shape.lanes, {i: emit.offset(args[2], i) for i in range(JOB)}
        x, w, bias, y = (builder.inttoptr(fields[i], cgutils.voidptr_t) for i in (X, W, BIAS, Y))
        columns = builder.inttoptr(fields[COLUMNS], cgutils.voidptr_t)
        turns = _turns(shape)
        sums = [[emit.accumulator() for _ in range(shape.vectors)] for _ in range(-(-shape.rows // shape.lag))]
        masks = [emit.first(builder.sub(fields[USED], _i64(v * shape.lanes))) for v in range(shape.vectors)]
        shift = _shift(emit, builder, bias)
        relu = emit.spread(builder.icmp_signed("!=", fields[RELU], _i64(0)))
        plain = builder.icmp_signed("==", builder.or_(fields[RELU], fields[BIAS]), _i64(0))
        lines = builder.add(builder.mul(builder.sub(fields[USED_ROWS], _i64(1)), _i64(shape.lag)), _i64(shape.rows))
        line = cgutils.alloca_once_value(builder, _i64(0))
        source, target = cgutils.alloca_once_value(builder, x), cgutils.alloca_once_value(builder, y)

        def add_line(users: list[tuple[int, int]]) -> None:
            x_line = builder.load(source)
            with cgutils.for_range(builder, fields[COUNT]) as column:
                x_tap = emit.at(x_line, emit.offset(columns, column.index))
                w_tap = emit.at(w, builder.mul(column.index, _i64(-(-shape.rows // shape.lag) * shape.lag * item)))
                pixels = [emit.load(emit.at(x_tap, v * emit.width)) for v in range(shape.vectors)]
                for accumulator, row in users:
                    weight = emit.broadcast(emit.at(w_tap, _place(shape, row) * item))
                    for slot, pixel in zip(sums[accumulator], pixels, strict=True):
                        builder.store(emit.fma(pixel, weight, builder.load(slot)), slot)
            builder.store(emit.at(x_line, fields[X_ROW]), source)

        def finish(vectors: Sequence[Any]) -> None:
            place = builder.load(target)
            values = [builder.load(slot) for slot in vectors]
            with builder.if_else(plain) as (bare, dressed):
                with bare:
                    _write(emit, results, values, place, masks)
                with dressed:
                    _write(emit, results, [emit.positive(builder.fadd(value, shift), relu) for value in values], place, masks)
            builder.store(emit.at(place, fields[Y_ROW]), target)

        start, end = builder.append_basic_block("period"), builder.append_basic_block("end")
        builder.branch(start)
        builder.position_at_end(start)
        for users, done in turns:
            add_line(users)
            now = builder.load(line)
            if done is not None:
                # the first rows finish sums that began above the strip
                with builder.if_then(builder.icmp_signed(">=", now, _i64(shape.rows - 1)), likely=True):
                    finish(sums[done])
                for slot in sums[done]:
                    builder.store(emit.zero, slot)
            after, following = builder.add(now, _i64(1)), builder.append_basic_block("line")
            builder.store(after, line)
            builder.cbranch(builder.icmp_signed("<", after, lines), following, end)
            builder.position_at_end(following)
        builder.branch(start)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(tag, dtype, job), codegen


@kernel(emitted=True)
def roll(shape: Tag, dtype: Tag, job: Address) -> None:
    """y[r, j] = the sum over kernel rows a and columns t of x[lag * r + a, j + columns[t]] * w[a, t], in this order.

    Parameters
    ----------
    shape : Tag
        A `Roll`.
    dtype : Tag
        A pair: of the sums, and of y.
    job : Address
        Fields as `sliding.slide` has them, and weights as there; it reads X, X_ROW, COLUMNS, COUNT, W, BIAS, RELU, Y, Y_ROW,
        USED_ROWS and USED.
    """
    _roll(shape, dtype, job)
