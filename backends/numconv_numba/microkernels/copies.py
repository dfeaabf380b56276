"""Rows of x packed: their phases apart, zeros around them, in the dtype of sums, by vector loads and shuffles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel
from numconv_numba.scalar import PAIRS

from .emit import Emitter, check_kinds, emitter_of
from .memory import Memory, PairMemory, stored_bytes

__all__ = ["halved", "join_neighbours", "parted", "split", "spread", "swap_halves"]

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


def parted(emit: Emitter, vectors: list[Any]) -> list[Any]:
    """The elements of neighbouring vectors at each remainder by their number."""
    if len(vectors) == 1:
        return vectors
    if len(vectors) % 2:
        return [_phase(emit, vectors, phase) for phase in range(len(vectors))]
    pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
    even = [emit.shuffle(a, b, range(0, 2 * emit.lanes, 2)) for a, b in pairs]
    odd = [emit.shuffle(a, b, range(1, 2 * emit.lanes, 2)) for a, b in pairs]
    return [part for both in zip(parted(emit, even), parted(emit, odd), strict=True) for part in both]


def halved(emit: Emitter, a: Any, b: Any) -> list[Any]:
    """`parted` of two vectors, in the order of `swap_halves`."""
    block = _block(emit)
    starts = [half + first for first in range(0, emit.lanes, block) for half in (0, emit.lanes)]
    return [emit.shuffle(a, b, [start + place for start in starts for place in range(odd, block, 2)]) for odd in (0, 1)]


def swap_halves(emit: Emitter, vector: Any) -> Any:
    """A vector with the halves of its blocks in another order, which it undoes.

    AVX2 parts two vectors by one instruction in each block of 16 bytes, and takes one more to put the halves of blocks in order,
    which is done to sums only. Wider and narrower vectors are parted by one.
    """
    half, count = _block(emit) // 2, 2 * emit.lanes // _block(emit)
    order = [*range(0, count, 2), *range(1, count, 2)]
    lanes = [half * place + lane for place in order for lane in range(half)]
    return vector if lanes == list(range(emit.lanes)) else emit.shuffle(vector, vector, lanes)


def _block(emit: Emitter) -> int:
    """Elements that are shuffled among themselves: of 16 bytes with AVX2, else all of a vector."""
    return emit.lanes * 16 // emit.width if emit.width == 32 else emit.lanes


def _clamp(builder: Any, number: Any, low: Any, high: Any) -> Any:
    raised = builder.select(builder.icmp_signed("<", number, low), low, number)
    return builder.select(builder.icmp_signed(">", raised, high), high, raised)


AHEAD = 8
"""Rows, also of the next plane, that are fetched before they are copied: about as many as are copied in the time that the
third-level cache takes."""


class _Rows:
    """Emits the copies of rows that all have the same padding: what is whole and what needs masks is found once.

    Vectors low..high of a row of y are whole and hold positions of x only; the ones beside them, at most one on either side, have
    masks that stay in registers; those of any other are found again in each row.
    """

    def __init__(self, builder: Any, emit: Emitter, each: int, item: int, start: Any, size: Any, count: Any):
        self.builder, self.emit, self.each, self.item = builder, emit, each, item
        self.start, self.size, self.count = start, size, count
        none, one, width = _i64(0), _i64(1), _i64(each * emit.lanes)
        self.vectors = builder.sdiv(builder.add(count, _i64(emit.lanes - 1)), _i64(emit.lanes))
        before = builder.sdiv(builder.sub(_i64(each * emit.lanes - 1), start), width)
        inside = builder.sdiv(builder.sub(size, start), width)
        self.low = _clamp(builder, before, none, self.vectors)
        full = builder.sdiv(count, _i64(emit.lanes))
        least = builder.select(builder.icmp_signed("<", inside, full), inside, full)
        self.high = _clamp(builder, least, self.low, self.vectors)
        self.edges = builder.sub(self.low, one), self.high
        self.edge_masks = [self.masks(vector) for vector in self.edges]
        self.present = (
            builder.select(builder.icmp_signed(">", self.low, none), none, one),
            builder.select(builder.icmp_signed("<", self.high, self.vectors), _i64(2), one),
        )
        # the vectors that are neither whole nor beside whole ones
        self.left = builder.select(builder.icmp_signed(">", self.low, none), self.edges[0], none)
        self.others = builder.add(self.left, _clamp(builder, builder.sub(builder.sub(self.vectors, self.high), one), none, count))

    def masks(self, vector: Any) -> list[Any]:
        """Of the elements of x that lie inside it, for each of the vectors that make one of y; last that of y."""
        builder, emit = self.builder, self.emit
        position = self.position(vector)
        starts = [builder.add(position, _i64(v * emit.lanes)) for v in range(self.each)]
        read = [builder.and_(emit.first(builder.sub(self.size, s)), builder.not_(emit.first(builder.neg(s)))) for s in starts]
        return [*read, emit.first(builder.sub(self.count, builder.mul(vector, _i64(emit.lanes))))]

    def position(self, vector: Any) -> Any:
        """Of the first element that a vector of y is made from."""
        return self.builder.add(self.start, self.builder.mul(vector, _i64(self.each * self.emit.lanes)))

    def fetch(self, line: Any) -> None:
        """Bring the part of a row that is read into the first-level cache."""
        builder, emit, item = self.builder, self.emit, _i64(self.item)
        first = _clamp(builder, self.start, _i64(0), self.size)
        last = _clamp(builder, builder.add(self.start, builder.mul(self.count, _i64(self.each))), first, self.size)
        begin, end = builder.mul(first, item), builder.mul(last, item)
        with cgutils.for_range_slice(builder, begin, end, _i64(64)) as (offset, _):
            emit.prefetch(emit.at(line, offset), write=False)

    def places(self, memory: Memory, line: Any, into: Any, y_step: Any, vector: Any) -> tuple[list[Any], list[Any]]:
        """What a vector of y is made from, and where it goes in each phase."""
        builder, emit = self.builder, self.emit
        source = emit.at(line, builder.mul(self.position(vector), _i64(self.item)))
        target = emit.at(into, builder.mul(vector, _i64(emit.width)))
        phases = [emit.at(target, emit.times(y_step, p)) for p in range(self.each)]
        return [emit.at(source, v * memory.width) for v in range(self.each)], phases

    def copy_masked(self, memory: Memory, line: Any, into: Any, y_step: Any, vector: Any, masks: list[Any]) -> None:
        """One vector of a row, in all its phases."""
        sources, targets = self.places(memory, line, into, y_step, vector)
        for part, target in zip(parted(self.emit, list(map(memory.load_masked, sources, masks))), targets, strict=True):
            self.emit.store_masked(part, target, masks[-1])

    def copy(self, memory: Memory, line: Any, into: Any, y_step: Any) -> None:
        """A row."""
        builder, emit, row = self.builder, self.emit, (memory, line, into, y_step)
        with cgutils.for_range_slice(builder, self.low, self.high, _i64(1)) as (vector, _):
            sources, targets = self.places(*row, vector)
            for part, target in zip(parted(emit, list(map(memory.load, sources))), targets, strict=True):
                emit.store(part, target)
        with cgutils.for_range_slice(builder, *self.present, _i64(1)) as (side, _):
            first = builder.icmp_signed("==", side, _i64(0))
            masks = [builder.select(first, *both) for both in zip(*self.edge_masks, strict=True)]
            self.copy_masked(*row, builder.select(first, *self.edges), masks)
        with cgutils.for_range(builder, self.others) as turn:
            behind = builder.add(builder.sub(turn.index, self.left), builder.add(self.high, _i64(1)))
            vector = builder.select(builder.icmp_signed("<", turn.index, self.left), turn.index, behind)
            self.copy_masked(*row, vector, self.masks(vector))


@intrinsic
def _split(
    typingctx: Any, shape: Any, dtype: Any, x: Any, start: Any, size: Any, y: Any, y_step: Any, count: Any, rows: Any, x_row: Any,
    y_row: Any, planes: Any, x_plane: Any, y_plane: Any,
) -> Any:  # fmt: skip
    check_kinds((shape, dtype), (x, y))
    each, lanes = shape.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, start, size, y, y_step, count, rows, x_row, y_row, planes, x_plane, y_plane = args
        stored, factor = dtype.value
        emit, several = emitter_of(builder, factor, lanes), 2 if factor == PAIRS else 1
        copies = _Rows(builder, emit, each, stored_bytes(stored), start, size, count)
        pieces = builder.sdiv(builder.add(rows, _i64(several - 1)), _i64(several))

        def each_row(body: Callable[[Any, Any, Memory, Any, Any], None]) -> None:
            with cgutils.for_range(builder, planes) as plane, cgutils.for_range(builder, pieces) as piece:
                row = builder.mul(piece.index, _i64(several))
                line = emit.at(emit.at(x, builder.mul(plane.index, x_plane)), builder.mul(row, x_row))
                into = emit.at(emit.at(y, builder.mul(plane.index, y_plane)), builder.mul(piece.index, y_row))
                if factor == PAIRS:
                    complete = builder.icmp_signed("<", builder.add(row, _i64(1)), rows)
                    memory: Memory = PairMemory(context, builder, emit, stored, x_row, complete)
                else:
                    memory = Memory(context, builder, emit, stored)
                body(plane.index, row, memory, line, into)

        def long(plane: Any, row: Any, memory: Memory, line: Any, into: Any) -> None:
            ahead, last = builder.add(row, _i64(AHEAD)), builder.icmp_signed("==", builder.add(plane, _i64(1)), planes)
            here, beyond = builder.icmp_signed("<", ahead, rows), builder.icmp_signed("<", builder.sub(ahead, rows), rows)
            with builder.if_then(builder.or_(here, builder.and_(beyond, builder.not_(last)))):
                following = builder.select(here, _i64(0), builder.sub(x_plane, builder.mul(rows, x_row)))
                copies.fetch(emit.at(line, builder.add(emit.times(x_row, AHEAD), following)))
            copies.copy(memory, line, into, y_step)

        with builder.if_else(builder.icmp_signed("<=", count, _i64(lanes))) as (one, many):
            with one:
                masks = copies.masks(_i64(0))
                each_row(lambda _, row, memory, line, into: copies.copy_masked(memory, line, into, y_step, _i64(0), masks))
            with many:
                each_row(long)
        return context.get_dummy_value()

    integers = types.int64, types.int64
    return types.void(shape, dtype, x, *integers, y, *integers, *integers, *integers, *integers), codegen


@kernel(emitted=True)
def split(
    shape: Tag, dtype: Tag, x: Address, start: int, size: int, y: Address, y_step: int, count: int, rows: int, x_row: int,
    y_row: int, planes: int, x_plane: int, y_plane: int,
) -> None:  # fmt: skip
    """y[p][i] = x[start + phases * i + p] for i < count and each phase p, zero where that lies outside 0..size.

    For so many rows of so many planes. The shape is (phases, lanes), `dtype` a pair: of x, and of y. Phases of y lie `y_step` bytes
    apart, rows of x and y `x_row` and `y_row`, planes `x_plane` and `y_plane`. Where y has pairs, each of its rows is made of two
    of x, of which the last may be missing.
    """
    _split(shape, dtype, x, start, size, y, y_step, count, rows, x_row, y_row, planes, x_plane, y_plane)


@intrinsic
def _join_neighbours(
    typingctx: Any, lanes: Any, dtype: Any, x: Any, start: Any, size: Any, y: Any, distance: Any, count: Any
) -> Any:
    check_kinds((lanes, dtype), (x, y))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, start, size, y, distance, count = args
        emit, stored = emitter_of(builder, PAIRS, lanes.value), dtype.value
        whole = ir.Constant(ir.IntType(1), 1)
        memory = PairMemory(context, builder, emit, stored, builder.mul(distance, _i64(stored_bytes(stored))), whole)
        vectors = builder.sdiv(builder.add(count, _i64(emit.lanes - 1)), _i64(emit.lanes))

        def inside(first: Any) -> Any:
            return builder.and_(emit.first(builder.sub(size, first)), builder.not_(emit.first(builder.neg(first))))

        with cgutils.for_range(builder, vectors) as vector:
            done = builder.mul(vector.index, _i64(emit.lanes))
            position, left = builder.add(start, done), builder.sub(count, done)
            second = builder.add(position, distance)
            source, target = emit.at(x, builder.mul(position, _i64(memory.item))), emit.at(y, builder.mul(done, _i64(4)))
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


@kernel(emitted=True)
def join_neighbours(
    lanes: Tag, dtype: Tag, x: Address, start: int, size: int, y: Address, distance: int, count: int, rows: int, x_row: int,
    y_row: int, planes: int, x_plane: int, y_plane: int,
) -> None:  # fmt: skip
    """y[i] = the pair x[start + i], x[start + i + distance] for i < count, zero where that lies outside 0..size.

    For so many rows of so many planes, as `split` has them. `dtype`: of x, bfloat16 or a part of float32.
    """
    for plane in range(planes):
        for row in range(rows):
            source, target = x + (plane * x_plane + row * x_row), y + (plane * y_plane + row * y_row)
            _join_neighbours(lanes, dtype, source, start, size, target, distance, count)


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


@kernel(emitted=True)
def spread(lanes: Tag, dtype: Tag, x: Address, x_row: int, y: Address, y_row: int, rows: int, count: int) -> None:
    """y[2 * i] = x[i] for i < count, in so many rows; what lies between stays. Whole vectors of x are read."""
    _spread(lanes, dtype, x, x_row, y, y_row, rows, count)
