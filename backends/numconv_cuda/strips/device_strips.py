"""The functions of `strips` for the compiler: every term of a strip written out.

Elements are loaded under a predicate, in one instruction: what lies outside an axis is 0, and nothing branches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from llvmlite import ir

from numconv_cuda.primitives.device_elements import _as_global, _narrow, _shared_element, _widen
from numconv_cuda.runtime.compiler import extending, types

from .strips import Run, Strip, loads

__all__ = ["fetch", "finite", "put", "slide", "split", "spread", "strip_folds", "strip_gradients", "strip_sums", "strip_taps",
           "strip_words"]  # fmt: skip

intrinsic = extending.intrinsic
_i16, _i32, _i64 = (ir.IntType(bits) for bits in (16, 32, 64))

_WORDS = {16: ("b16", "h", _i16), 32: ("b32", "r", _i32), 64: ("b64", "l", _i64)}
"""By the bits of an element: its type in PTX, the constraint of a register, and LLVM's type."""


class Rows:
    """Rows of an array that a strip reads: where they lie, and which of their elements there are.

    Parameters
    ----------
    context, builder
        Of the function that is being compiled.
    stored, like : Numba types
        Of an element in memory, and of the numbers in which it computes.
    pointer, offset, position, sizes, steps
        The array and the offset of its first element; the row and the column of the first source; how many of both there are, and
        how far they lie apart: LLVM's values, all but the pointer of one integer type.
    sources, run, unit
        The columns that are read or written, and as in `Strip`.
    """

    def __init__(self, context, builder, stored, like, pointer, offset, position, sizes, steps, sources, run, unit):
        self.context, self.builder, self.stored, self.like = context, builder, stored, like
        self.bits, self.sizes, self.steps, self.unit = stored.bitwidth, sizes, steps, unit
        self.position = self.row, column = position
        self.base = builder.ptrtoint(_as_global(builder, pointer), _i64)
        self.start = builder.add(offset, column if unit else builder.mul(column, steps[1]))
        self.loads = loads(sources, run)
        self.there = [builder.icmp_unsigned("<", builder.add(column, column.type(first)), sizes[1]) for first, _ in self.loads]

    def places(self, number: int) -> Iterator[tuple[Any, int, Any, int, int]]:
        """(address, bytes behind it, whether it is there, first column, count) of each load of the number-th row."""
        builder = self.builder
        row = builder.add(self.row, self.row.type(number))
        inside = builder.icmp_unsigned("<", row, self.sizes[0])
        line = builder.add(self.start, builder.mul(row, self.steps[0]))
        for (first, count), there in zip(self.loads, self.there, strict=True):
            at = line if self.unit else builder.add(line, builder.mul(self.steps[1], line.type(first)))
            wide = builder.sext(at, _i64) if at.type != _i64 else at
            address = builder.add(self.base, builder.mul(wide, _i64(self.bits // 8)))
            yield address, first * self.bits // 8 if self.unit else 0, builder.and_(inside, there), first, count

    def load(self, number: int) -> dict[int, tuple[Any, Any]]:
        """The elements of the number-th row by their columns, 0 where there is none, and whether there is one."""
        found = {}
        for address, away, there, first, count in self.places(number):
            for place, word in enumerate(_load(self.builder, address, away, there, self.bits, count)):
                found[first + place] = self._number(word), there
        return found

    def _number(self, word: Any) -> Any:
        kind = self.context.get_value_type(self.stored)
        value = word if self.stored in types.integer_domain else self.builder.bitcast(word, kind)
        return _widen(self.context, self.builder, value, self.stored, self.like)


def _load(builder: Any, address: Any, away: int, there: Any, bits: int, count: int) -> list[Any]:
    """Elements of memory that no thread writes, so many bytes behind an address; 0 unless they are there."""
    kind, constraint, word = _WORDS[bits]
    names = [f"${place}" for place in range(count)]
    zeros = "".join(f"mov.{kind} {name}, 0; " for name in names)
    target = names[0] if count == 1 else "{" + ", ".join(names) + "}"
    form = f"v{count}." if count > 1 else ""
    text = f"{{ .reg .pred p; setp.ne.b32 p, ${count + 1}, 0; {zeros}@p ld.global.nc.{form}{kind} {target}, [${count}+{away}]; }}"
    result = word if count == 1 else ir.LiteralStructType([word] * count)
    asm = ir.InlineAsm(ir.FunctionType(result, [_i64, _i32]), text, ",".join([f"={constraint}"] * count + ["l", "r"]))
    found = builder.call(asm, [address, builder.zext(there, _i32)])
    return [found] if count == 1 else [builder.extract_value(found, place) for place in range(count)]


def _store(builder: Any, address: Any, away: int, there: Any, bits: int, words: Sequence[Any]) -> None:
    """Write elements so many bytes behind an address if the condition holds."""
    kind, constraint, word = _WORDS[bits]
    count = len(words)
    names = [f"${place + 2}" for place in range(count)]
    source = names[0] if count == 1 else "{" + ", ".join(names) + "}"
    form = f"v{count}." if count > 1 else ""
    text = f"{{ .reg .pred p; setp.ne.b32 p, $1, 0; @p st.global.{form}{kind} [$0+{away}], {source}; }}"
    kinds = [_i64, _i32, *[word] * count]
    asm = ir.InlineAsm(
        ir.FunctionType(ir.VoidType(), kinds), text, ",".join(["l", "r", *[constraint] * count, "~{memory}"]), side_effect=True
    )
    builder.call(asm, [address, builder.zext(there, _i32), *words])


def strip_taps(strip: Strip) -> Any:
    """The intrinsic that loads the taps of a strip's two axes."""
    rows, columns = strip.window

    @intrinsic
    def load_taps(typingctx: Any, pointer: Any, offset: Any, steps: Any, like: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            whole = steps.dtype
            first = context.cast(builder, args[1], sig.args[1], whole)
            outer, inner = _pair(context, builder, sig, args, 2, whole)
            values = []
            for row, column in itertools.product(range(rows), range(columns)):
                place = builder.add(builder.mul(outer, outer.type(row)), builder.mul(inner, inner.type(column)))
                value = builder.load(_as_global(builder, builder.gep(args[0], [builder.add(first, place)])))
                value.set_metadata("invariant.load", builder.module.add_metadata([]))
                values.append(_widen(context, builder, value, sig.args[0].dtype, like))
            return _tuple(context, builder, sig.return_type, values)

        return types.UniTuple(like, rows * columns)(pointer, offset, steps, like), codegen

    return load_taps


def strip_sums(strip: Strip, *, careful: bool) -> Any:
    """The intrinsic that adds a strip's terms of one channel; its arguments are in `host_strips`."""
    columns = strip.columns.sources
    width = strip.window[1]

    @intrinsic
    def add_terms(typingctx, acc, pointer, offset, position, sizes, steps, factors):
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            source = _rows(context, builder, sig, args, 1, acc.dtype, columns, strip.source, strip.unit)
            sums = [builder.extract_value(args[0], place) for place in range(acc.count)]
            weights = [builder.extract_value(args[6], place) for place in range(factors.count)]
            for number in strip.rows.order:
                values = source.load(number)
                for o, tap in strip.rows.readers(number):
                    for place, terms in enumerate(strip.columns.terms):
                        for other, at_column in terms:
                            which, (value, there) = o * strip.width + place, values[at_column]
                            total = builder.fma(value, weights[tap * width + other], sums[which])
                            sums[which] = builder.select(there, total, sums[which]) if careful else total
            return _tuple(context, builder, acc, sums)

        return acc(acc, pointer, offset, position, sizes, steps, factors), codegen

    return add_terms


def _rows(context, builder, sig, args, place, like, columns, run, unit):
    """The rows of the array whose pointer, offset, position, sizes and steps are the arguments from a place on."""
    whole = sig.args[place + 3].dtype
    offset = context.cast(builder, args[place + 1], sig.args[place + 1], whole)
    pairs = [_pair(context, builder, sig, args, place + 2 + i, whole) for i in range(3)]
    return Rows(context, builder, sig.args[place].dtype, like, args[place], offset, *pairs, columns, run, unit)


def _pair(context: Any, builder: Any, sig: Any, args: Any, place: int, kind: Any) -> list[Any]:
    """The two integers of an argument in one type."""
    return [context.cast(builder, builder.extract_value(args[place], i), sig.args[place][i], kind) for i in range(2)]


def _tuple(context: Any, builder: Any, kind: Any, values: Sequence[Any]) -> Any:
    result = ir.Constant(context.get_value_type(kind), ir.Undefined)
    for place, value in enumerate(values):
        result = builder.insert_value(result, value, place)
    return result


def strip_gradients(strip: Strip, *, careful: bool) -> Any:
    """The intrinsic that adds the terms of a strip of outputs to the gradients of the taps of one channel."""
    columns = strip.columns.sources
    width = strip.window[1]

    @intrinsic
    def add_gradients(typingctx, acc, y, y_offset, output, outputs, y_steps, x, offset, position, sizes, steps):
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            grads = _rows(context, builder, sig, args, 1, acc.dtype, range(strip.width), strip.result, strip.unit)
            source = _rows(context, builder, sig, args, 6, acc.dtype, columns, strip.source, strip.unit)
            sums = [builder.extract_value(args[0], place) for place in range(acc.count)]
            factors = [grads.load(o) for o in range(strip.height)]
            for number in strip.rows.order:
                values = source.load(number)
                for o, tap in strip.rows.readers(number):
                    for place, terms in enumerate(strip.columns.terms):
                        for other, at_column in terms:
                            which, (value, there), (factor, given) = tap * width + other, values[at_column], factors[o][place]
                            total = builder.fma(factor, value, sums[which])
                            both = builder.and_(there, given)
                            sums[which] = builder.select(both, total, sums[which]) if careful else total
            return _tuple(context, builder, acc, sums)

        return acc(acc, y, y_offset, output, outputs, y_steps, x, offset, position, sizes, steps), codegen

    return add_gradients


def strip_words(strip: Strip) -> Any:
    """The intrinsic that loads the sources of a strip of one tap as they are."""
    columns = strip.columns.sources

    @intrinsic
    def load_words(typingctx, pointer, offset, position, sizes, steps):
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            source = _rows(context, builder, sig, args, 0, pointer.dtype, columns, strip.source, strip.unit)
            words = []
            for ((_, row),) in strip.rows.terms:
                loaded = source.load(row)
                words += [loaded[column][0] for ((_, column),) in strip.columns.terms]
            return _tuple(context, builder, sig.return_type, words)

        return types.UniTuple(pointer.dtype, strip.results)(pointer, offset, position, sizes, steps), codegen

    return load_words


def strip_folds(strip: Strip) -> Any:
    """The intrinsic that adds up what lies in the columns of an unfolded array for each of a strip's elements."""

    @intrinsic
    def add_folds(typingctx, acc, pointer, offset, position, sizes, steps, apart):
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            whole = sizes.dtype
            pairs = [_pair(context, builder, sig, args, place, whole) for place in (3, 4, 5)]
            first, step = (context.cast(builder, args[place], sig.args[place], whole) for place in (2, 6))
            sums = [builder.extract_value(args[0], place) for place in range(strip.results)]
            for number, (tap, other) in enumerate(itertools.product(*map(range, strip.window))):
                reads = [(place, at) for place, terms in enumerate(strip.columns.terms) for each, at in terms if each == other]
                lines = [(o, at) for o, terms in enumerate(strip.rows.terms) for each, at in terms if each == tap]
                if not reads or not lines:
                    continue
                at = builder.add(first, builder.mul(step, step.type(number)))
                columns = [column for _, column in reads]
                source = Rows(context, builder, sig.args[1].dtype, acc.dtype, args[1], at, *pairs, columns, Run(), strip.unit)
                for o, row in lines:
                    loaded = source.load(row)
                    for place, column in reads:
                        which = o * strip.width + place
                        sums[which] = builder.fadd(sums[which], loaded[column][0])
            return _tuple(context, builder, acc, sums)

        return acc(acc, pointer, offset, position, sizes, steps, apart), codegen

    return add_folds


def put(strip: Strip) -> Any:
    """The intrinsic that writes a strip's results, as far as they lie inside the array."""

    @intrinsic
    def write(typingctx, pointer, offset, position, sizes, steps, values):
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            stored, number = sig.args[0].dtype, values.dtype
            target = _rows(context, builder, sig, args, 0, number, range(strip.width), strip.result, strip.unit)
            for line in range(strip.height):
                for where, away, there, first, count in target.places(line):
                    numbers = [builder.extract_value(args[5], line * strip.width + first + i) for i in range(count)]
                    words = [_word(context, builder, each, number, stored) for each in numbers]
                    _store(builder, where, away, there, stored.bitwidth, words)
            return context.get_dummy_value()

        return types.void(pointer, offset, position, sizes, steps, values), codegen

    return write


def _word(context: Any, builder: Any, value: Any, number: Any, stored: Any) -> Any:
    narrow = _narrow(context, builder, value, number, stored)
    word = _WORDS[stored.bitwidth][2]
    return narrow if narrow.type == word else builder.bitcast(narrow, word)


@intrinsic
def fetch(typingctx: Any, pointer: Any, offset: Any, position: Any, sizes: Any, steps: Any, zero: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _rows(context, builder, sig, args, 0, zero, [0], Run(), False).load(0)[0][0]

    return zero(pointer, offset, position, sizes, steps, zero), codegen


@intrinsic
def spread(typingctx: Any, array: Any, index: Any, step: Any, values: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        first, apart = (context.cast(builder, args[place], sig.args[place], types.int64) for place in (1, 2))
        for place in range(values.count):
            at = builder.add(first, builder.mul(apart, _i64(place)))
            element = _shared_element(context, builder, sig.args[0], args[0], at, types.int64)
            builder.store(builder.extract_value(args[3], place), element)
        return context.get_dummy_value()

    return types.void(array, index, step, values), codegen


@intrinsic
def finite(typingctx: Any, values: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        nothing = context.get_value_type(values.dtype)(0.0)
        sums = nothing
        for place in range(values.count):
            sums = builder.fma(builder.extract_value(args[0], place), nothing, sums)
        return builder.fcmp_ordered("==", sums, nothing)

    return types.boolean(values), codegen


@intrinsic
def split(typingctx: Any, index: Any, divisor: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        number, factor, shift = (builder.extract_value(args[1], place) for place in range(3))
        whole = context.cast(builder, args[0], sig.args[0], types.int32)
        product = builder.mul(builder.zext(whole, _i64), builder.zext(factor, _i64))
        quotient = builder.trunc(builder.lshr(product, builder.zext(shift, _i64)), _i32)
        rest = builder.sub(whole, builder.mul(quotient, number))
        return _tuple(context, builder, sig.return_type, [quotient, rest])

    return types.UniTuple(types.int32, 2)(index, divisor), codegen


@intrinsic
def slide(typingctx: Any, acc: Any, left: Any, right: Any, taps: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        sums, factors = ([builder.extract_value(arg, place) for place in range(acc.count)] for arg in (args[0], args[3]))
        values = [builder.extract_value(arg, place) for arg in args[1:3] for place in range(4)]
        for tap in range(4):
            for row, place in itertools.product(range(acc.count // 4), range(4)):
                which = 4 * row + place
                sums[which] = builder.fma(values[place + tap], factors[4 * row + tap], sums[which])
        return _tuple(context, builder, acc, sums)

    return acc(acc, left, right, taps), codegen
