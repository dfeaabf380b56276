"""Rows of x packed: their phases apart, zeros around them, by vector loads and shuffles."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds

__all__ = ["split", "split_strip", "spread"]

_i64 = ir.IntType(64)


def _phase(emit: Emitter, vectors: list[Any], phase: int) -> Any:
    """The elements of neighbouring vectors at one remainder by their number."""
    lanes, result = emit.lanes, vectors[0]
    for number, vector in enumerate(vectors):
        places = [len(vectors) * lane + phase for lane in range(lanes)]
        mine = [place - number * lanes for place in places]
        result = emit.shuffle(
            result, vector, [lanes + m if 0 <= m < lanes else lane if number else 0 for lane, m in enumerate(mine)]
        )
    return result


def _phases(emit: Emitter, vectors: list[Any]) -> list[Any]:
    """The elements of neighbouring vectors at each remainder by their number."""
    if len(vectors) == 1:
        return vectors
    if len(vectors) % 2:
        return [_phase(emit, vectors, phase) for phase in range(len(vectors))]
    pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
    even = [emit.shuffle(a, b, range(0, 2 * emit.lanes, 2)) for a, b in pairs]
    odd = [emit.shuffle(a, b, range(1, 2 * emit.lanes, 2)) for a, b in pairs]
    return [part for both in zip(_phases(emit, even), _phases(emit, odd), strict=True) for part in both]


def _clamp(builder: Any, number: Any, low: Any, high: Any) -> Any:
    raised = builder.select(builder.icmp_signed("<", number, low), low, number)
    return builder.select(builder.icmp_signed(">", raised, high), high, raised)


@intrinsic
def _split(typingctx: Any, shape: Any, dtype: Any, x: Any, start: Any, size: Any, y: Any, y_step: Any, count: Any) -> Any:
    check_kinds((shape, dtype), (x, y))
    each, lanes = shape.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, start, size, y, y_step, count = args
        emit = Emitter(builder, dtype, lanes)
        item = _i64(emit.width // emit.lanes)
        vectors = builder.sdiv(builder.add(count, _i64(emit.lanes - 1)), _i64(emit.lanes))
        with cgutils.for_range(builder, vectors) as vector:
            position = builder.add(start, builder.mul(vector.index, _i64(each * emit.lanes)))
            left = builder.sub(count, builder.mul(vector.index, _i64(emit.lanes)))
            source, target = emit.at(x, builder.mul(position, item)), emit.at(y, builder.mul(vector.index, _i64(emit.width)))
            inside = builder.and_(
                builder.icmp_signed(">=", position, _i64(0)),
                builder.icmp_signed("<=", builder.add(position, _i64(each * emit.lanes)), size),
            )
            whole = builder.and_(inside, builder.icmp_signed(">=", left, _i64(emit.lanes)))
            with builder.if_else(whole) as (fast, careful):
                with fast:
                    loaded = [emit.load(emit.at(source, v * emit.width)) for v in range(each)]
                    for p, part in enumerate(_phases(emit, loaded)):
                        emit.store(part, emit.at(target, emit.times(y_step, p)))
                with careful:
                    loaded = []
                    for v in range(each):
                        first = builder.add(position, _i64(v * emit.lanes))
                        mask = builder.and_(emit.first(builder.sub(size, first)), builder.not_(emit.first(builder.neg(first))))
                        loaded.append(emit.load_masked(emit.at(source, v * emit.width), mask))
                    wanted = emit.first(left)
                    for p, part in enumerate(_phases(emit, loaded)):
                        emit.store_masked(part, emit.at(target, emit.times(y_step, p)), wanted)
        return context.get_dummy_value()

    integers = types.int64, types.int64
    return types.void(shape, dtype, x, *integers, y, *integers), codegen


AHEAD = 8
"""Rows that are fetched before they are copied: about as many as are copied in the time that the third-level cache takes."""


@intrinsic
def _fetch(typingctx: Any, shape: Any, dtype: Any, x: Any, start: Any, size: Any, count: Any) -> Any:
    """Bring the part of a row that `_split` reads into the first-level cache."""
    check_kinds((shape, dtype), (x,))
    each, lanes = shape.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, start, size, count = args
        emit = Emitter(builder, dtype, lanes)
        item, line = _i64(emit.width // emit.lanes), _i64(64)
        first = _clamp(builder, start, _i64(0), size)
        last = _clamp(builder, builder.add(start, builder.mul(count, _i64(each))), first, size)
        length = builder.mul(builder.sub(last, first), item)
        source = emit.at(x, builder.mul(first, item))
        with cgutils.for_range_slice(builder, _i64(0), length, line) as (offset, _):
            emit.prefetch(emit.at(source, offset), write=False)
        return context.get_dummy_value()

    return types.void(shape, dtype, x, types.int64, types.int64, types.int64), codegen


@kernel(no_cfunc_wrapper=False)
def split(
    shape: Tag, dtype: Tag, x: Address, start: int, size: int, y: Address, y_step: int, count: int, rows: int, x_row: int,
    y_row: int,
) -> None:  # fmt: skip
    """y[p][i] = x[start + phases * i + p] for i < count and each phase p, zero where that lies outside 0..size; for so many rows.

    The shape is (phases, lanes). Phases of y lie `y_step` bytes apart, rows of x and y `x_row` and `y_row`.
    """
    for row in range(rows):
        if row + AHEAD < rows:
            _fetch(shape, dtype, x + (row + AHEAD) * x_row, start, size, count)
        _split(shape, dtype, x + row * x_row, start, size, y + row * y_row, y_step, count)


@intrinsic
def _split_strip(
    typingctx: Any, shape: Any, dtype: Any, x: Any, start: Any, size: Any, y: Any, y_step: Any, count: Any, rows: Any, x_row: Any,
    y_row: Any,
) -> Any:  # fmt: skip
    check_kinds((shape, dtype), (x, y))
    each, lanes = shape.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, start, size, y, y_step, count, rows, x_row, y_row = args
        emit = Emitter(builder, dtype, lanes)
        item, none, one, width = _i64(emit.width // emit.lanes), _i64(0), _i64(1), each * emit.lanes
        shift, most = _i64(width.bit_length() - 1), _i64(width - 1)
        vectors = builder.sdiv(builder.add(count, _i64(emit.lanes - 1)), _i64(emit.lanes))
        before, after = builder.neg(start), builder.sub(size, start)
        # vectors low..high hold positions of x only, and at most one on either side, first or last - 1, some
        low = _clamp(builder, builder.ashr(builder.add(before, most), shift), none, vectors)
        high = _clamp(builder, builder.ashr(after, shift), low, vectors)
        first = _clamp(builder, builder.ashr(before, shift), none, low)
        last = _clamp(builder, builder.ashr(builder.add(after, most), shift), high, vectors)
        # nothing of x at all
        first = builder.select(builder.icmp_signed("<=", after, builder.shl(first, shift)), low, first)

        def masks(vector: Any) -> list[Any]:
            starts = [builder.add(builder.add(start, builder.shl(vector, shift)), _i64(v * emit.lanes)) for v in range(each)]
            return [builder.and_(emit.first(builder.sub(size, s)), builder.not_(emit.first(builder.neg(s)))) for s in starts]

        left, right = masks(first), masks(builder.sub(last, one))

        def copy(line: Any, into: Any, vector: Any, wanted: list[Any] | None) -> None:
            place = emit.at(line, builder.mul(builder.add(start, builder.shl(vector, shift)), item))
            places = [emit.at(place, v * emit.width) for v in range(each)]
            loaded = list(map(emit.load_masked, places, wanted)) if wanted else list(map(emit.load, places))
            fill(into, vector, _phases(emit, loaded))

        def fill(into: Any, vector: Any, parts: list[Any]) -> None:
            place = emit.at(into, builder.mul(vector, _i64(emit.width)))
            for p, part in enumerate(parts):
                emit.store(part, emit.at(place, emit.times(y_step, p)))

        with cgutils.for_range(builder, rows) as row:
            line, into = emit.at(x, builder.mul(row.index, x_row)), emit.at(y, builder.mul(row.index, y_row))
            for begin, end in ((none, first), (last, vectors)):
                with cgutils.for_range_slice(builder, begin, end, one) as (vector, _):
                    fill(into, vector, [emit.zero] * each)
            with builder.if_then(builder.icmp_signed("<", first, low)):
                copy(line, into, first, left)
            with cgutils.for_range_slice(builder, low, high, one) as (vector, _):
                copy(line, into, vector, None)
            with builder.if_then(builder.icmp_signed("<", high, last)):
                copy(line, into, high, right)
        return context.get_dummy_value()

    integers = types.int64, types.int64
    return types.void(shape, dtype, x, *integers, y, *integers, *integers, types.int64), codegen


@kernel(no_cfunc_wrapper=False)
def split_strip(
    shape: Tag, dtype: Tag, x: Address, start: int, size: int, y: Address, y_step: int, count: int, rows: int, x_row: int,
    y_row: int,
) -> None:  # fmt: skip
    """What `split` does for rows that all have the same padding: masks are found once. Whole vectors of y are written.

    The number of phases is a power of two.
    """
    _split_strip(shape, dtype, x, start, size, y, y_step, count, rows, x_row, y_row)


@intrinsic
def _spread(typingctx: Any, lanes: Any, dtype: Any, x: Any, x_row: Any, y: Any, y_row: Any, rows: Any, count: Any) -> Any:
    check_kinds((lanes, dtype), (x, y))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, x_row, y, y_row, rows, count = args
        emit = Emitter(builder, dtype, lanes.value)
        every_second = ir.Constant(ir.VectorType(ir.IntType(1), emit.lanes), [1, 0] * (emit.lanes // 2))
        whole = builder.sdiv(count, _i64(emit.lanes))
        left = builder.shl(builder.srem(count, _i64(emit.lanes)), _i64(1))
        tail = [builder.and_(every_second, emit.first(builder.sub(left, _i64(half * emit.lanes)))) for half in range(2)]

        def write(line: Any, into: Any, vector: Any, masks: list[Any]) -> None:
            loaded = emit.load(emit.at(line, builder.mul(vector, _i64(emit.width))))
            place = emit.at(into, builder.mul(vector, _i64(2 * emit.width)))
            for half, mask in enumerate(masks):
                apart = emit.shuffle(loaded, loaded, [(half * emit.lanes + i) // 2 for i in range(emit.lanes)])
                emit.store_masked(apart, emit.at(place, half * emit.width), mask)

        with cgutils.for_range(builder, rows) as row:
            line, into = emit.at(x, builder.mul(row.index, x_row)), emit.at(y, builder.mul(row.index, y_row))
            with cgutils.for_range(builder, whole) as vector:
                write(line, into, vector.index, [every_second] * 2)
            with builder.if_then(builder.icmp_signed(">", left, _i64(0))):
                write(line, into, whole, tail)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(lanes, dtype, x, i64, y, i64, i64, i64), codegen


@kernel(no_cfunc_wrapper=False)
def spread(lanes: Tag, dtype: Tag, x: Address, x_row: int, y: Address, y_row: int, rows: int, count: int) -> None:
    """y[2 * i] = x[i] for i < count, in so many rows; what lies between stays. Whole vectors of x are read."""
    _spread(lanes, dtype, x, x_row, y, y_row, rows, count)
