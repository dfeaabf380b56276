"""Square blocks transposed in registers: between layouts with the lanes over channels and those with pixels side by side."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiler import Address, Tag, intrinsic, kernel, value
from numconv_numba.scalar import is_null

from .emit import Emitter, check_kinds
from .memory import Memory, stored_bytes

__all__ = ["transpose"]

_i64 = ir.IntType(64)


def _halves(lanes: int, block: int, run: int) -> list[list[int]]:
    """Which elements of two vectors make the first, and the second: runs of both in turn, or every second of their blocks."""
    both = range(2 * lanes)
    if run >= block:
        return [[lane for lane in both if lane // block % 2 == half] for half in range(2)]
    starts = [[at for at in range(0, lanes, run) if at % block // run // (block // run // 2) == half] for half in range(2)]
    return [[lane for at in some for lane in (*both[at:][:run], *both[lanes + at :][:run])] for some in starts]


def _transposed(emit: Emitter, rows: list[Any]) -> list[Any]:
    """The columns of a square of vectors: elements change places within 16 bytes, then such blocks, which processors do fastest."""
    lanes, run = emit.lanes, 1
    held = [(row, list(range(lanes))) for row in rows]  # vectors, and the column of each of their elements
    while run < lanes:
        for i in range(lanes):
            if i & run:
                continue
            (a, columns), (b, _) = held[i], held[i + run]
            for place, picked in zip((i, i + run), _halves(lanes, 16 * lanes // emit.width, run), strict=True):
                held[place] = emit.shuffle(a, b, picked), [(columns * 2)[lane] for lane in picked]
        run *= 2
    return [vector for vector, _ in sorted(held, key=lambda each: each[1][0])]


def _between(context: Any, builder: Any, dtypes: tuple[str, str], lanes: int) -> tuple[Emitter, Memory, Memory]:
    """Vectors of the wider of two dtypes, and the memory of each."""
    wide = "float64" if "float64" in dtypes else "float32"
    emit = Emitter(builder, wide, lanes)
    return emit, Memory(context, builder, emit, dtypes[0]), Memory(context, builder, emit, dtypes[1])


@intrinsic
def _sizes(typingctx: Any, dtype: Any) -> Any:
    """Bytes of an element of x, of y, and of the wider of them, as constants."""
    result = types.UniTuple(types.int64, 3)
    one, other = map(stored_bytes, dtype.value)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.make_tuple(builder, result, [_i64(size) for size in (one, other, max(4, one, other))])

    return result(dtype), codegen


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
        # a load of no lanes is slow where there is no memory
        shift = emit.load_masked(builder.select(absent, x, bias), emit.both(used, builder.not_(absent)))
        clip = emit.spread(builder.icmp_signed("!=", relu, _i64(0)))
        loaded = []
        for i in range(count):
            inside = emit.both(used, builder.icmp_signed("<", _i64(i), rows))
            loaded.append(source.load_masked(emit.at(x, emit.times(x_step, i)), inside))
        # no sum without a bias: words of other numbers would not stay what they are
        moved = [builder.select(emit.spread(absent), vector, builder.fadd(vector, shift)) for vector in loaded]
        vectors = [emit.positive(vector, clip) for vector in moved]
        for j, vector in enumerate(_transposed(emit, vectors)):
            with builder.if_then(builder.icmp_signed("<", _i64(j), columns)):
                target.store_masked(vector, emit.at(y, emit.times(y_step, j)), mask)
        return emit.any_not_finite(loaded)

    integers = types.int64, types.int64, types.int64
    return types.int64(lanes, dtype, x, *integers, bias, types.int64, y, types.int64), codegen


@intrinsic
def _transpose_whole(typingctx: Any, lanes: Any, dtype: Any, x: Any, x_step: Any, columns: Any, y: Any, y_step: Any) -> Any:
    check_kinds((lanes, dtype), (x, y))
    count = lanes.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, x_step, columns, y, y_step = args
        emit, source, target = _between(context, builder, dtype.value, count)
        result = cgutils.alloca_once_value(builder, _i64(0))
        rows, places = ([emit.at(base, emit.times(step, i)) for i in range(count)] for base, step in ((x, x_step), (y, y_step)))
        with builder.if_else(builder.icmp_signed(">=", columns, _i64(count))) as (square, narrow):
            with square:
                vectors = [source.load(row) for row in rows]
                for place, vector in zip(places, _transposed(emit, list(vectors)), strict=True):
                    target.store(vector, place)
                builder.store(emit.any_not_finite(vectors), result)
            with narrow:
                used = emit.first(columns)
                vectors = [source.load_masked(row, used) for row in rows]
                for j, vector in enumerate(_transposed(emit, list(vectors))[:-1]):
                    with builder.if_then(builder.icmp_signed("<", _i64(j), columns)):
                        target.store(vector, places[j])
                builder.store(emit.any_not_finite(vectors), result)
        return builder.load(result)

    return types.int64(lanes, dtype, x, types.int64, types.int64, y, types.int64), codegen


@kernel(emitted=True)
def transpose(
    lanes: Tag, dtype: Tag, x: Address, x_step: int, rows: int, columns: int, bias: Address, relu: int, y: Address, y_step: int
) -> int:
    """y[j, i] = x[i, j] + bias[j], or its positive part if `relu` is 1, for i < rows and j < columns, a square at a time.

    `dtype` is a pair: of x, and of y; the bias has the wider one. Elements of a row of x, and of y, are neighbours. `bias` may be
    0. Returns 1 if one of these x is NaN or an infinity, else 0.
    """
    side, bad = value(lanes), 0
    x_item, y_item, bias_item = _sizes(dtype)
    down, across = -(-rows // side), -(-columns // side)
    plain, tall = is_null(bias) & (relu == 0), down > across
    # along the longer side: a square's rows lie far apart, and more of them would crowd the sets of the first-level cache
    for outer in range(min(down, across)):
        for inner in range(max(down, across)):
            # the last squares overlap those before them: whole ones are faster
            i = min((inner if tall else outer) * side, max(0, rows - side))
            j = min((outer if tall else inner) * side, max(0, columns - side))
            source, target = x + (i * x_step + j * x_item), y + (j * y_step + i * y_item)
            if plain & (rows - i >= side):
                bad |= _transpose_whole(lanes, dtype, source, x_step, columns - j, target, y_step)
            else:
                shift = bias if is_null(bias) else bias + j * bias_item
                bad |= _transpose(lanes, dtype, source, x_step, rows - i, columns - j, shift, relu, target, y_step)
    return bad
