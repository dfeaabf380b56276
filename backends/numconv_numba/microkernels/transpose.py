"""Square blocks transposed in registers: between layouts with the lanes over channels and those with pixels side by side."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from ..compiler import intrinsic
from .emit import Emitter, check_kinds

__all__ = ["finish_block", "finish_vector", "transpose_block"]

_i64 = ir.IntType(64)


def _transposed(emit: Emitter, rows: list[Any]) -> list[Any]:
    """The columns of a square of vectors: halves are exchanged between rows at growing distance."""
    lanes, distance = emit.lanes, 1
    while distance < lanes:
        low = [lane if not lane & distance else lanes + lane - distance for lane in range(lanes)]
        high = [lane + distance if not lane & distance else lanes + lane for lane in range(lanes)]
        for i in range(lanes):
            if not i & distance:
                a, b = rows[i], rows[i + distance]
                rows[i], rows[i + distance] = emit.shuffle(a, b, low), emit.shuffle(a, b, high)
        distance *= 2
    return rows


@intrinsic
def transpose_block(
    typingctx: Any, lanes: Any, dtype: Any, x: Any, x_step: Any, rows: Any, columns: Any, y: Any, y_step: Any
) -> Any:
    """y[j, i] = x[i, j] for i < rows and j < columns, both at most `lanes`; elements of a row of x, and of y, are neighbours.

    The rest of the first `lanes` elements of a row of y becomes zero.
    """
    check_kinds((lanes, dtype), (x, y))
    count = lanes.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, x_step, rows, columns, y, y_step = args
        emit = Emitter(builder, dtype, count)
        mask = emit.first(columns)
        loaded = []
        for i in range(count):
            inside = emit.both(mask, builder.icmp_signed("<", _i64(i), rows))
            loaded.append(emit.load_masked(emit.at(x, emit.times(x_step, i)), inside))
        for j, vector in enumerate(_transposed(emit, loaded)):
            with builder.if_then(builder.icmp_signed("<", _i64(j), columns)):
                emit.store(vector, emit.at(y, emit.times(y_step, j)))
        return context.get_dummy_value()

    integers = types.int64, types.int64, types.int64
    return types.void(lanes, dtype, x, *integers, y, types.int64), codegen


@intrinsic
def finish_block(
    typingctx: Any, lanes: Any, dtype: Any, sums: Any, step: Any, rows: Any, columns: Any, bias: Any, relu: Any, y: Any, y_step: Any
) -> Any:
    """y[j, i] = sums[i, j] + bias[j], or its positive part if `relu` is 1, for i < rows and j < columns, both at most `lanes`.

    Returns 1 if one of these sums is NaN or an infinity, else 0. `bias` may be 0.
    """
    check_kinds((lanes, dtype), (sums, bias, y))
    count = lanes.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, sums, step, rows, columns, bias, relu, y, y_step = args
        emit = Emitter(builder, dtype, count)
        used = emit.first(columns)
        shift = _bias(emit, builder, bias, used)
        clip = emit.spread(builder.icmp_signed("!=", relu, _i64(0)))
        bad, finished = None, []
        for i in range(count):
            inside = emit.both(used, builder.icmp_signed("<", _i64(i), rows))
            vector = emit.load_masked(emit.at(sums, emit.times(step, i)), inside)
            wrong = emit.not_finite(vector)
            bad = wrong if bad is None else builder.or_(bad, wrong)
            finished.append(emit.positive(builder.fadd(vector, shift), clip))
        mask = emit.first(rows)
        for j, vector in enumerate(_transposed(emit, finished)):
            with builder.if_then(builder.icmp_signed("<", _i64(j), columns)):
                emit.store_masked(vector, emit.at(y, emit.times(y_step, j)), mask)
        return emit.any(bad)

    integers = types.int64, types.int64, types.int64
    return types.int64(lanes, dtype, sums, *integers, bias, types.int64, y, types.int64), codegen


@intrinsic
def finish_vector(typingctx: Any, lanes: Any, dtype: Any, sums: Any, columns: Any, bias: Any, relu: Any, y: Any) -> Any:
    """`finish_block` for one row whose results are neighbours in y too: y[j] = sums[j] + bias[j]."""
    check_kinds((lanes, dtype), (sums, bias, y))
    count = lanes.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, sums, columns, bias, relu, y = args
        emit = Emitter(builder, dtype, count)
        used = emit.first(columns)
        clip = emit.spread(builder.icmp_signed("!=", relu, _i64(0)))
        vector = emit.load_masked(sums, used)
        shifted = emit.positive(builder.fadd(vector, _bias(emit, builder, bias, used)), clip)
        emit.store_masked(shifted, y, used)
        return emit.any(emit.not_finite(vector))

    return types.int64(lanes, dtype, sums, types.int64, bias, types.int64, y), codegen


def _bias(emit: Emitter, builder: Any, bias: Any, used: Any) -> Any:
    """The vector of biases; -0, which changes no sum, where there is none."""
    absent = builder.icmp_unsigned("==", builder.ptrtoint(bias, _i64), _i64(0))
    loaded = emit.load_masked(bias, emit.both(used, builder.not_(absent)))
    return builder.select(emit.spread(absent), emit.constant(-0.0), loaded)
