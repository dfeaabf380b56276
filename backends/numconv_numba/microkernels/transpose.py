"""Square blocks transposed in registers: between layouts with the lanes over channels and those with pixels side by side."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from numconv_numba.compiler import Address, Tag, intrinsic, kernel, value
from numconv_numba.scalar import is_null

from .emit import Emitter, check_kinds
from .memory import Memory

__all__ = ["read_square", "transpose"]

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


def _between(context: Any, builder: Any, dtypes: tuple[str, str], lanes: int) -> tuple[Emitter, Memory, Memory]:
    """Vectors of the wider of two dtypes, and the memory of each."""
    wide = "float64" if "float64" in dtypes else "float32"
    emit = Emitter(builder, wide, lanes)
    return emit, Memory(context, builder, emit, dtypes[0]), Memory(context, builder, emit, dtypes[1])


@intrinsic
def _transpose(
    typingctx: Any, lanes: Any, dtype: Any, x: Any, x_step: Any, rows: Any, columns: Any, bias: Any, relu: Any, y: Any, y_step: Any
) -> Any:
    check_kinds((lanes, dtype), (x, bias, y))
    count = lanes.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, x_step, rows, columns, bias, relu, y, y_step = args
        emit, source, target = _between(context, builder, dtype.value, count)
        used, mask = emit.first(columns), emit.first(rows)
        absent = builder.icmp_unsigned("==", builder.ptrtoint(bias, _i64), _i64(0))
        # -0 changes no sum
        loaded = emit.load_masked(bias, emit.both(used, builder.not_(absent)))
        shift = builder.select(emit.spread(absent), emit.constant(-0.0), loaded)
        clip = emit.spread(builder.icmp_signed("!=", relu, _i64(0)))
        bad, vectors = None, []
        for i in range(count):
            inside = emit.both(used, builder.icmp_signed("<", _i64(i), rows))
            vector = source.load_masked(emit.at(x, emit.times(x_step, i)), inside)
            wrong = emit.not_finite(vector)
            bad = wrong if bad is None else builder.or_(bad, wrong)
            vectors.append(emit.positive(builder.fadd(vector, shift), clip))
        for j, vector in enumerate(_transposed(emit, vectors)):
            with builder.if_then(builder.icmp_signed("<", _i64(j), columns)):
                target.store_masked(vector, emit.at(y, emit.times(y_step, j)), mask)
        return emit.any(bad)

    integers = types.int64, types.int64, types.int64
    return types.int64(lanes, dtype, x, *integers, bias, types.int64, y, types.int64), codegen


@intrinsic
def _transpose_whole(typingctx: Any, lanes: Any, dtype: Any, x: Any, x_step: Any, y: Any, y_step: Any) -> Any:
    check_kinds((lanes, dtype), (x, y))
    count = lanes.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, x_step, y, y_step = args
        emit, source, target = _between(context, builder, dtype.value, count)
        bad, vectors = None, []
        for i in range(count):
            vectors.append(source.load(emit.at(x, emit.times(x_step, i))))
            wrong = emit.not_finite(vectors[i])
            bad = wrong if bad is None else builder.or_(bad, wrong)
        for j, vector in enumerate(_transposed(emit, vectors)):
            target.store(vector, emit.at(y, emit.times(y_step, j)))
        return emit.any(bad)

    return types.int64(lanes, dtype, x, types.int64, y, types.int64), codegen


@kernel(no_cfunc_wrapper=False)
def transpose(
    lanes: Tag, dtype: Tag, x: Address, x_step: int, rows: int, columns: int, bias: Address, relu: int, y: Address, y_step: int
) -> int:
    """y[j, i] = x[i, j] + bias[j], or its positive part if `relu` is 1, for i < rows and j < columns.

    `dtype` is a pair: of x, and of y; the bias has the wider one. No more rows and columns than lanes are done. Elements of a row
    of x, and of y, are neighbours. `bias` may be 0. Returns 1 if one of these x is NaN or an infinity, else 0.
    """
    if (rows >= value(lanes)) & (columns >= value(lanes)) & is_null(bias) & (relu == 0):
        return _transpose_whole(lanes, dtype, x, x_step, y, y_step)
    return _transpose(lanes, dtype, x, x_step, rows, columns, bias, relu, y, y_step)


@intrinsic
def _read_square(typingctx: Any, lanes: Any, dtype: Any, x: Any, x_step: Any, rows: Any, columns: Any, y: Any, y_step: Any) -> Any:
    check_kinds((lanes, dtype), (x, y))
    count = lanes.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, x_step, rows, columns, y, y_step = args
        emit, source, target = _between(context, builder, dtype.value, count)
        enough = [builder.icmp_signed(">=", number, _i64(count)) for number in (rows, columns)]
        places = [emit.at(x, emit.times(x_step, i)) for i in range(count)]
        with builder.if_else(builder.and_(*enough)) as (whole, partial):
            with whole:
                for j, vector in enumerate(_transposed(emit, [source.load(place) for place in places])):
                    target.store(vector, emit.at(y, emit.times(y_step, j)))
            with partial:
                used, mask = emit.first(columns), emit.first(rows)
                flags = [builder.icmp_signed("<", _i64(i), rows) for i in range(count)]
                vectors = [source.load_masked(place, emit.both(used, flag)) for place, flag in zip(places, flags, strict=True)]
                end = builder.append_basic_block("columns.end")
                for j, vector in enumerate(_transposed(emit, vectors)):
                    target.store_masked(vector, emit.at(y, emit.times(y_step, j)), mask)
                    following = builder.append_basic_block("column")
                    builder.cbranch(builder.icmp_signed("<", _i64(j + 1), columns), following, end)
                    builder.position_at_end(following)
                builder.branch(end)
                builder.position_at_end(end)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(lanes, dtype, x, i64, i64, i64, y, i64), codegen


@kernel(no_cfunc_wrapper=False)
def read_square(lanes: Tag, dtype: Tag, x: Address, x_step: int, rows: int, columns: int, y: Address, y_step: int) -> None:
    """y[j, i] = x[i, j] for i < rows and j < columns, one of each at least: what `transpose` does, without its additions."""
    _read_square(lanes, dtype, x, x_step, rows, columns, y, y_step)
