"""Rectangles transposed in registers: between layouts with the lanes over channels and those with pixels side by side.

As many rows as a vector has lanes are taken together. Blocks of 16 bytes are loaded to where they belong, and only the elements
within them change places by shuffles. Where there are many rows, whole vectors are loaded, a square at a time: there the time goes
into lines of memory, and fewer loads are in the way of the stores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel, value
from numconv_numba.scalar import is_null

from .emit import Emitter, check_kinds, rolled
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
    """The columns of a square of vectors: elements change places within 16 bytes, then such blocks, which processors do fastest.

    Fewer rows than lanes, a power of two of them, are as many squares side by side.
    """
    lanes, count, run = emit.lanes, len(rows), 1
    held = [(row, [lane % count for lane in range(lanes)]) for row in rows]  # vectors, and the column of each of their elements
    while run < count:
        for i in range(count):
            if i & run:
                continue
            (a, columns), (b, _) = held[i], held[i + run]
            for place, picked in zip((i, i + run), _halves(lanes, 16 * lanes // emit.width, run), strict=True):
                held[place] = emit.shuffle(a, b, picked), [(columns * 2)[lane] for lane in picked]
        run *= 2
    return [vector for vector, _ in sorted(held, key=lambda each: each[1][0])]


def _wider(dtypes: tuple[str, str]) -> str:
    return "float64" if "float64" in dtypes else "float32"


def _between(context: Any, builder: Any, dtypes: tuple[str, str], lanes: int) -> tuple[Emitter, Memory, Memory]:
    """Vectors of the wider of two dtypes, and the memory of each."""
    emit = Emitter(builder, _wider(dtypes), lanes)
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
            there = builder.icmp_signed("<", _i64(i), rows)
            offset = builder.select(there, emit.times(x_step, i), _i64(0))
            loaded.append(source.load_masked(emit.at(x, offset), emit.both(used, there)))
        # no sum without a bias: words of other numbers would not stay what they are
        moved = [builder.select(emit.spread(absent), vector, builder.fadd(vector, shift)) for vector in loaded]
        vectors = [emit.positive(vector, clip) for vector in moved]
        for j, vector in enumerate(_transposed(emit, vectors)):
            with builder.if_then(builder.icmp_signed("<", _i64(j), columns)):
                target.store_masked(vector, emit.at(y, emit.times(y_step, j)), mask)
        return emit.any_not_finite(loaded)

    integers = types.int64, types.int64, types.int64
    return types.int64(lanes, dtype, x, *integers, bias, types.int64, y, types.int64), codegen


def _gathered(emit: Emitter, builder: Any, places: list[Any]) -> Any:
    """A vector of blocks of neighbours, from as many addresses."""
    block = emit.lanes // len(places)
    kind, everywhere = ir.VectorType(emit.vector.element, block), [lane % block for lane in range(emit.lanes)]
    gathered = ir.Constant(emit.vector, ir.Undefined)
    for i, place in enumerate(places):
        loaded = builder.load(builder.bitcast(place, kind.as_pointer()))
        loaded.align = emit.width // emit.lanes
        here = [lane + emit.lanes * (lane // block == i) for lane in range(emit.lanes)]
        gathered = emit.shuffle(gathered, emit.shuffle(loaded, loaded, everywhere), here)
    return gathered


class _Strip:
    """Emits the transposition of as many rows as there are lanes: of `blocks` of 16 bytes, if x has the dtype of the arithmetic."""

    def __init__(self, context: Any, builder: Any, dtypes: tuple[str, str], lanes: int, bias: Any, relu: Any, *, blocks: bool):
        self.builder = builder
        self.emit, self.source, self.target = _between(context, builder, dtypes, lanes)
        self.blocks = blocks and dtypes[0] == _wider(dtypes)
        self.at_once = max(1, 16 * lanes // self.emit.width) if self.blocks else lanes
        self.absent = builder.icmp_unsigned("==", builder.ptrtoint(bias, _i64), _i64(0))
        nothing = cgutils.alloca_once_value(builder, ir.Constant(self.emit.vector.element, -0.0))
        self.nothing = builder.bitcast(nothing, bias.type)
        self.bias, self.relu = bias, builder.icmp_signed("!=", relu, _i64(0))
        self.undressed = builder.and_(self.absent, builder.not_(self.relu))
        self.sums = [self.emit.accumulator() for _ in range(4)]

    def columns_at(self, x: Any, x_step: Any) -> list[Any]:
        """The first columns of the rows at x."""
        emit = self.emit
        if not self.blocks:
            return _transposed(emit, [self.source.load(emit.at(x, emit.times(x_step, i))) for i in range(emit.lanes)])
        starts = [emit.at(x, emit.times(x_step, i)) for i in range(0, emit.lanes, self.at_once)]
        places = ([emit.at(start, emit.times(x_step, i)) for start in starts] for i in range(self.at_once))
        return _transposed(emit, [_gathered(emit, self.builder, each) for each in places])

    def dressed(self, column: Any, number: Any) -> Any:
        """A column with its bias, which changes nothing where there is none, and relu."""
        emit, builder = self.emit, self.builder
        place = emit.at(self.bias, builder.mul(number, _i64(emit.width // emit.lanes)))
        shift = emit.load_one(builder.select(self.absent, self.nothing, place))
        return emit.positive(builder.fadd(column, emit.spread(shift)), emit.spread(self.relu))

    def put(self, j: int, column: Any, finished: Any, y: Any) -> None:
        """Store the j-th of some columns, and keep whether it was finite: zero times what is not is NaN, which stays in a sum."""
        slot = self.sums[j % 4]
        self.builder.store(self.emit.fma(column, self.emit.zero, self.builder.load(slot)), slot)
        self.target.store(finished, y)

    def all_columns(self, x: Any, x_step: Any, columns: Any, y: Any, y_step: Any, finish: Callable[..., Any]) -> None:
        """Some at a time; the last ones overlap those before them."""
        emit, builder, step = self.emit, self.builder, self.at_once
        last = builder.sub(columns, _i64(step))
        with rolled(builder, builder.sdiv(builder.add(columns, _i64(step - 1)), _i64(step))) as turn:
            first = builder.mul(turn, _i64(step))
            first = builder.select(builder.icmp_signed("<", first, last), first, last)
            target = emit.at(y, builder.mul(first, y_step))
            for j, column in enumerate(self.columns_at(emit.at(x, builder.mul(first, _i64(self.source.item))), x_step)):
                self.put(j, column, finish(column, builder.add(first, _i64(j))), emit.at(target, emit.times(y_step, j)))

    def few_columns(self, x: Any, x_step: Any, columns: Any, y: Any, y_step: Any) -> None:
        """Fewer than are transposed at once."""
        emit, builder, used = self.emit, self.builder, self.emit.first(columns)
        rows = [self.source.load_masked(emit.at(x, emit.times(x_step, i)), used) for i in range(emit.lanes)]
        for j, column in enumerate(_transposed(emit, rows)[: self.at_once - 1]):
            with builder.if_then(builder.icmp_signed("<", _i64(j), columns)):
                finished = builder.select(emit.spread(self.undressed), column, self.dressed(column, _i64(j)))
                self.put(j, column, finished, emit.at(y, emit.times(y_step, j)))

    def bad(self) -> Any:
        """Whether an element was not finite, as an int64."""
        found = [self.emit.not_finite(self.builder.load(slot)) for slot in self.sums]
        return self.emit.any(functools.reduce(self.builder.or_, found))


def _transpose_strip(blocks: bool, signature: Any, lanes: int) -> Any:
    """The code of `_transpose_wide`, which takes any number of columns, or of `_transpose_tall`, which takes a square or more."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, x_step, columns, bias, relu, y, y_step = args
        strip = _Strip(context, builder, sig.args[1].value, lanes, bias, relu, blocks=blocks)
        few = builder.icmp_signed("<", columns, _i64(strip.at_once if blocks else 0))
        with builder.if_then(few):
            strip.few_columns(x, x_step, columns, y, y_step)
        with builder.if_then(builder.not_(few)), builder.if_else(strip.undressed) as (plain, dressed):
            with plain:
                strip.all_columns(x, x_step, columns, y, y_step, lambda column, *_: column)
            with dressed:
                strip.all_columns(x, x_step, columns, y, y_step, strip.dressed)
        return strip.bad()

    return signature, codegen


def _strip_signature(lanes: Any, dtype: Any, x: Any, bias: Any, y: Any) -> Any:
    check_kinds((lanes, dtype), (x, bias, y))
    return types.int64(lanes, dtype, x, types.int64, types.int64, bias, types.int64, y, types.int64)


@intrinsic
def _transpose_wide(
    typingctx: Any, lanes: Any, dtype: Any, x: Any, x_step: Any, columns: Any, bias: Any, relu: Any, y: Any, y_step: Any
) -> Any:
    return _transpose_strip(True, _strip_signature(lanes, dtype, x, bias, y), lanes.value)


@intrinsic
def _transpose_tall(
    typingctx: Any, lanes: Any, dtype: Any, x: Any, x_step: Any, columns: Any, bias: Any, relu: Any, y: Any, y_step: Any
) -> Any:
    return _transpose_strip(False, _strip_signature(lanes, dtype, x, bias, y), lanes.value)


@kernel(emitted=True)
def transpose(
    lanes: Tag, dtype: Tag, x: Address, x_step: int, rows: int, columns: int, bias: Address, relu: int, y: Address, y_step: int
) -> int:
    """y[j, i] = x[i, j] + bias[j], or its positive part if `relu` is 1, for i < rows and j < columns.

    `dtype` is a pair: of x, and of y; the bias has the wider one. Elements of a row of x, and of y, are neighbours. `bias` may be
    0. Returns 1 if one of these x is NaN or an infinity, else 0.
    """
    side, bad = value(lanes), 0
    x_item, y_item, bias_item = _sizes(dtype)
    if rows < side:
        for j in range(0, columns, side):
            shift = bias if is_null(bias) else bias + j * bias_item
            bad |= _transpose(lanes, dtype, x + j * x_item, x_step, rows, columns - j, shift, relu, y + j * y_step, y_step)
        return bad
    # along the longer side: the rows of x, or of y, lie far apart, and more of them would crowd the sets of the first-level cache
    tall = (rows > columns) & (columns >= side)
    width = side if tall else max(columns, 1)
    for j in range(0, columns, width):
        first = min(j, columns - width)  # the last columns overlap those before them, and so do rows
        shift = bias if is_null(bias) else bias + first * bias_item
        for i in range(0, rows, side):
            start = min(i, rows - side)
            source, target = x + (start * x_step + first * x_item), y + (first * y_step + start * y_item)
            if tall:
                bad |= _transpose_tall(lanes, dtype, source, x_step, side, shift, relu, target, y_step)
            else:
                bad |= _transpose_wide(lanes, dtype, source, x_step, columns, shift, relu, target, y_step)
    return bad
