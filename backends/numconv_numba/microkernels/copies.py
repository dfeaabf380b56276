"""Rows of x packed: their phases apart, zeros around them, in the dtype of sums, by vector loads and shuffles."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiler import Address, Tag, intrinsic, kernel
from numconv_numba.scalar import PAIRS

from .emit import Emitter, check_kinds, emitter_of
from .memory import Memory, PairMemory, stored_bytes

__all__ = ["join_neighbours", "split", "split_strip", "spread"]

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
def _lanes(typingctx: Any, shape: Any) -> Any:
    """The lanes of a shape, as a constant."""
    return types.int64(shape), lambda context, builder, sig, args: _i64(shape.value[1])


@intrinsic
def _rows_at_once(typingctx: Any, dtype: Any) -> Any:
    """Rows of x that make one of y, as a constant."""
    return types.int64(dtype), lambda context, *_: context.get_constant(types.int64, 2 if dtype.value[1] == PAIRS else 1)


@intrinsic
def _split(
    typingctx: Any, shape: Any, dtype: Any, x: Any, start: Any, size: Any, y: Any, y_step: Any, count: Any, x_row: Any,
    complete: Any,
) -> Any:  # fmt: skip
    check_kinds((shape, dtype), (x, y))
    each, lanes = shape.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, start, size, y, y_step, count, x_row, complete = args
        stored, factor = dtype.value
        emit = emitter_of(builder, factor, lanes)
        if factor == PAIRS:
            memory: Memory = PairMemory(context, builder, emit, x_row, complete)
        else:
            memory = Memory(context, builder, emit, stored)
        vectors = builder.sdiv(builder.add(count, _i64(emit.lanes - 1)), _i64(emit.lanes))
        with cgutils.for_range(builder, vectors) as vector:
            position = builder.add(start, builder.mul(vector.index, _i64(each * emit.lanes)))
            left = builder.sub(count, builder.mul(vector.index, _i64(emit.lanes)))
            source = emit.at(x, builder.mul(position, _i64(memory.item)))
            target = emit.at(y, builder.mul(vector.index, _i64(emit.width)))
            inside = builder.and_(
                builder.icmp_signed(">=", position, _i64(0)),
                builder.icmp_signed("<=", builder.add(position, _i64(each * emit.lanes)), size),
            )
            whole = builder.and_(builder.and_(inside, complete), builder.icmp_signed(">=", left, _i64(emit.lanes)))
            with builder.if_else(whole) as (fast, careful):
                with fast:
                    loaded = [memory.load(emit.at(source, v * memory.width)) for v in range(each)]
                    for p, part in enumerate(_phases(emit, loaded)):
                        emit.store(part, emit.at(target, emit.times(y_step, p)))
                with careful:
                    loaded = []
                    for v in range(each):
                        first = builder.add(position, _i64(v * emit.lanes))
                        mask = builder.and_(emit.first(builder.sub(size, first)), builder.not_(emit.first(builder.neg(first))))
                        loaded.append(memory.load_masked(emit.at(source, v * memory.width), mask))
                    wanted = emit.first(left)
                    for p, part in enumerate(_phases(emit, loaded)):
                        emit.store_masked(part, emit.at(target, emit.times(y_step, p)), wanted)
        return context.get_dummy_value()

    integers = types.int64, types.int64
    return types.void(shape, dtype, x, *integers, y, *integers, types.int64, types.boolean), codegen


@intrinsic
def _split_short(
    typingctx: Any, shape: Any, dtype: Any, x: Any, start: Any, size: Any, y: Any, y_step: Any, count: Any, rows: Any, x_row: Any,
    y_row: Any, planes: Any, x_plane: Any, y_plane: Any,
) -> Any:  # fmt: skip
    check_kinds((shape, dtype), (x, y))
    each, lanes = shape.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, start, size, y, y_step, count, rows, x_row, y_row, planes, x_plane, y_plane = args
        stored, factor = dtype.value
        if factor == PAIRS:  # not called
            return context.get_dummy_value()
        emit = emitter_of(builder, factor, lanes)
        memory = Memory(context, builder, emit, stored)
        starts = [builder.add(start, _i64(v * lanes)) for v in range(each)]
        masks = [builder.and_(emit.first(builder.sub(size, s)), builder.not_(emit.first(builder.neg(s)))) for s in starts]
        wanted, source = emit.first(count), emit.at(x, builder.mul(start, _i64(memory.item)))
        with cgutils.for_range(builder, planes) as plane, cgutils.for_range(builder, rows) as row:
            line, into = (
                emit.at(emit.at(base, builder.mul(plane.index, far)), builder.mul(row.index, near))
                for base, far, near in ((source, x_plane, x_row), (y, y_plane, y_row))
            )
            loaded = [memory.load_masked(emit.at(line, v * memory.width), mask) for v, mask in enumerate(masks)]
            for p, part in enumerate(_phases(emit, loaded)):
                emit.store_masked(part, emit.at(into, emit.times(y_step, p)), wanted)
        return context.get_dummy_value()

    integers = types.int64, types.int64
    return types.void(shape, dtype, x, *integers, y, *integers, *integers, *integers, *integers), codegen


AHEAD = 8
"""Rows that are fetched before they are copied: about as many as are copied in the time that the third-level cache takes."""


@intrinsic
def _fetch(typingctx: Any, shape: Any, dtype: Any, x: Any, start: Any, size: Any, count: Any) -> Any:
    """Bring the part of a row that `_split` reads into the first-level cache."""
    check_kinds((shape, dtype), (x,))
    each, lanes = shape.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, start, size, count = args
        emit, item, line = Emitter(builder, "float32", lanes), _i64(stored_bytes(dtype.value[0])), _i64(64)
        first = _clamp(builder, start, _i64(0), size)
        last = _clamp(builder, builder.add(start, builder.mul(count, _i64(each))), first, size)
        length = builder.mul(builder.sub(last, first), item)
        source = emit.at(x, builder.mul(first, item))
        with cgutils.for_range_slice(builder, _i64(0), length, line) as (offset, _):
            emit.prefetch(emit.at(source, offset), write=False)
        return context.get_dummy_value()

    return types.void(shape, dtype, x, types.int64, types.int64, types.int64), codegen


@kernel
def split(
    shape: Tag, dtype: Tag, x: Address, start: int, size: int, y: Address, y_step: int, count: int, rows: int, x_row: int,
    y_row: int, planes: int, x_plane: int, y_plane: int,
) -> None:  # fmt: skip
    """y[p][i] = x[start + phases * i + p] for i < count and each phase p, zero where that lies outside 0..size.

    For so many rows of so many planes. The shape is (phases, lanes), `dtype` a pair: of x, and of y. Phases of y lie `y_step` bytes
    apart, rows of x and y `x_row` and `y_row`, planes `x_plane` and `y_plane`. Where y has pairs, each of its rows is made of two
    of x, of which the last may be missing.
    """
    several = _rows_at_once(dtype)
    if (count <= _lanes(shape)) & (several == 1):  # masks are found once
        _split_short(shape, dtype, x, start, size, y, y_step, count, rows, x_row, y_row, planes, x_plane, y_plane)
    else:
        for plane in range(planes):
            for row in range(0, rows, several):
                source, target = x + (plane * x_plane + row * x_row), y + (plane * y_plane + row // several * y_row)
                if row + AHEAD < rows:
                    _fetch(shape, dtype, source + AHEAD * x_row, start, size, count)
                _split(shape, dtype, source, start, size, target, y_step, count, x_row, row + several <= rows)


@intrinsic
def _join_neighbours(
    typingctx: Any, lanes: Any, dtype: Any, x: Any, start: Any, size: Any, y: Any, distance: Any, count: Any
) -> Any:
    check_kinds((lanes, dtype), (x, y))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, start, size, y, distance, count = args
        emit = emitter_of(builder, PAIRS, lanes.value)
        whole = ir.Constant(ir.IntType(1), 1)
        memory = PairMemory(context, builder, emit, builder.mul(distance, _i64(2)), whole)
        vectors = builder.sdiv(builder.add(count, _i64(emit.lanes - 1)), _i64(emit.lanes))

        def inside(first: Any) -> Any:
            return builder.and_(emit.first(builder.sub(size, first)), builder.not_(emit.first(builder.neg(first))))

        with cgutils.for_range(builder, vectors) as vector:
            done = builder.mul(vector.index, _i64(emit.lanes))
            position, left = builder.add(start, done), builder.sub(count, done)
            second = builder.add(position, distance)
            source, target = emit.at(x, builder.mul(position, _i64(2))), emit.at(y, builder.mul(done, _i64(4)))
            ends = builder.icmp_signed("<=", builder.add(second, _i64(emit.lanes)), size)
            simple = builder.and_(builder.icmp_signed(">=", position, _i64(0)), ends)
            simple = builder.and_(simple, builder.icmp_signed(">=", left, _i64(emit.lanes)))
            with builder.if_else(simple) as (fast, careful):
                with fast:
                    emit.store(memory.load(source), target)
                with careful:
                    emit.store_masked(memory.load_both(source, inside(position), inside(second)), target, emit.first(left))
        return context.get_dummy_value()

    integers = types.int64, types.int64
    return types.void(lanes, dtype, x, *integers, y, *integers), codegen


@kernel
def join_neighbours(
    lanes: Tag, dtype: Tag, x: Address, start: int, size: int, y: Address, distance: int, count: int, rows: int, x_row: int,
    y_row: int, planes: int, x_plane: int, y_plane: int,
) -> None:  # fmt: skip
    """y[i] = the pair x[start + i], x[start + i + distance] for i < count, zero where that lies outside 0..size.

    For so many rows of so many planes, as `split` has them. `dtype`: of x, bfloat16.
    """
    for plane in range(planes):
        for row in range(rows):
            source, target = x + (plane * x_plane + row * x_row), y + (plane * y_plane + row * y_row)
            _join_neighbours(lanes, dtype, source, start, size, target, distance, count)


@intrinsic
def _split_strip(
    typingctx: Any, shape: Any, dtype: Any, x: Any, start: Any, size: Any, y: Any, y_step: Any, count: Any, rows: Any, x_row: Any,
    y_row: Any,
) -> Any:  # fmt: skip
    check_kinds((shape, dtype), (x, y))
    each, lanes = shape.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, start, size, y, y_step, count, rows, x_row, y_row = args
        stored, computed = dtype.value
        emit = Emitter(builder, computed, lanes)
        memory = Memory(context, builder, emit, stored)
        item, none, one, width = _i64(memory.item), _i64(0), _i64(1), each * emit.lanes
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
            places = [emit.at(place, v * memory.width) for v in range(each)]
            loaded = list(map(memory.load_masked, places, wanted)) if wanted else list(map(memory.load, places))
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


@kernel
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


@kernel
def spread(lanes: Tag, dtype: Tag, x: Address, x_row: int, y: Address, y_row: int, rows: int, count: int) -> None:
    """y[2 * i] = x[i] for i < count, in so many rows; what lies between stays. Whole vectors of x are read."""
    _spread(lanes, dtype, x, x_row, y, y_row, rows, count)
