"""Windows along one row: maxima and sums of what lies under the taps, with the lanes over neighbouring results.

A result takes its terms from some rows of the source, and in each of them from some positions: the *rows* and the *inner taps* of
the call, tables of int64. Positions outside a row are masked, so that padding takes no part and is never read; so a row that is
shorter than a vector costs as little as one vector.

A stride takes every 2nd, 3rd or 4th element of as many loaded vectors. A gradient has the stride on the other side: neighbouring
results then have taps of their own, one *phase* each, and are woven together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds
from .row_access import Row, picked

__all__ = ["HEAD", "JOB", "ROW_ENTRY", "SHORT", "TAP_ENTRY", "windows", "write_places"]

TOGETHER = 4
"""Vectors that share the work of finding their taps."""
SHORT = 2
"""Vectors of a row that are computed one by one in all rows."""
ROW_ENTRY, TAP_ENTRY = 24, 16
LINE, AHEAD = 64, 4096
"""Bytes that one prefetch brings; how far ahead the source is fetched: masked loads of short rows train no prefetcher."""
JOB = ("results", "list_step", "y_step", "extra_step", "first", "last", "size", "tap_step", "advance", "fetched")
HEAD = 2
"""Elements before the weights of a channel: what is added to a sum, and not 0 if only the positive part of it is stored."""
_i32, _i64, _double = ir.IntType(32), ir.IntType(64), ir.DoubleType()


class _Tap(NamedTuple):
    """One tap of a row.

    Attributes
    ----------
    place, number : int64
        Its position for result 0, and its number.
    shift : int64
        How many bytes from the row's offset the vectors begin in which its data for result 0 are.
    ahead : int
        How many elements lie before these in the vectors: taps that are less than a stride apart share what is loaded.
    """

    place: Any
    number: Any
    shift: Any
    ahead: int = 0


class _State(NamedTuple):
    """Slots of a vector of results: the sum or the largest element; of maxima the places, and where there was a NaN."""

    value: Any
    place: Any
    nans: Any


class _Windows(Row):
    """The code of one call of `windows`."""

    def __init__(self, builder: Any, shape: Any, dtype: Any, given: dict[str, Any]):
        self.kind, lanes, stride, self.phases, self.taps = shape
        super().__init__(builder, lanes, stride, dtype, given)
        self.found, self.placed = self.kind in ("argmax", "winner"), self.kind in ("argmax", "winner", "columns")
        self.largest, self.backwards = self.placed or self.kind == "max", self.found or self.kind == "won"
        self.careful = False

    def whole(self, at: Any, vectors: int) -> Any:
        """Whether so many vectors of results from `at` on exist and have all their elements inside the row."""
        builder, (least, most) = self.builder, self.bounds()
        end = builder.add(at, _i64(vectors * self.emit.lanes))
        first = builder.add(builder.mul(at, _i64(self.stride)), least)
        last = builder.add(builder.mul(end, _i64(self.stride)), most)
        there = builder.icmp_signed("<=", builder.mul(end, _i64(self.phases)), self.given["last"])
        inside = builder.and_(builder.icmp_signed(">=", first, _i64(0)), builder.icmp_signed("<=", last, self.given["size"]))
        return builder.and_(there, inside)

    def bounds(self) -> tuple[Any, Any]:
        """The least and the most position that a tap has for result 0."""
        if self.taps:
            places = [place for phase in self.taps for _, place in phase]
            return _i64(min(places)), _i64(max(places))
        builder, emit = self.builder, self.emit
        numbers = emit.offset(self.given["inner"], 0), builder.sub(emit.offset(self.given["inner"], 1), _i64(1))
        ends = [emit.offset(emit.at(self.given["inner"], builder.mul(each, _i64(TAP_ENTRY))), 0) for each in numbers]
        rising = builder.icmp_signed("<", *ends)
        return builder.select(rising, *ends), builder.select(rising, *reversed(ends))

    def rows(self) -> None:
        """All rows of results of the call: of short ones a vector of each at a time, so that masks are made once for all rows."""
        builder, given, lanes = self.builder, self.given, self.emit.lanes
        end = builder.sdiv(builder.add(given["last"], _i64(self.phases - 1)), _i64(self.phases))
        vectors = builder.sdiv(builder.add(builder.sub(end, given["first"]), _i64(lanes - 1)), _i64(lanes))
        few = builder.icmp_signed("<=", vectors, _i64(SHORT))
        masked = builder.not_(self.whole(given["first"], SHORT))
        with builder.if_else(builder.and_(few, masked)) as (short, long):
            with short, cgutils.for_range(builder, vectors) as loop:
                at = builder.add(given["first"], builder.mul(loop.index, _i64(lanes)))
                with self.each_row():
                    self.block(at, 1, False)
            with long, self.each_row():
                self.row()

    @contextlib.contextmanager
    def each_row(self) -> Iterator[None]:
        """A loop over the rows of results."""
        builder, emit, given = self.builder, self.emit, self.given
        bases = {name: given[name] for name in ("lists", "y", "extra")}
        steps = {"lists": given["list_step"], "y": given["y_step"], "extra": given["extra_step"]}
        with cgutils.for_range(builder, given["results"]) as loop:
            for name, base in bases.items():
                given[name] = emit.at(base, builder.mul(loop.index, steps[name]))
            given["count"] = emit.offset(given["lists"], 0)
            given["rows"] = emit.at(given["lists"], ROW_ENTRY)
            given["row_place"] = builder.add(given["advance"], builder.mul(loop.index, builder.sdiv(steps["y"], _i64(self.item))))
            self.fetch_ahead()
            yield
        given.update(bases)

    def fetch_ahead(self) -> None:
        """Bring what some later rows of results read first into the cache, as much as one of them needs."""
        builder, emit, given = self.builder, self.emit, self.given
        newest = emit.offset(emit.at(given["lists"], builder.mul(given["count"], _i64(ROW_ENTRY))), 0)
        begin = emit.at(given["x"], builder.add(newest, builder.add(given["fetched"], _i64(AHEAD))))
        with cgutils.for_range(builder, builder.sdiv(given["fetched"], _i64(LINE))) as loop:
            emit.prefetch(emit.at(begin, builder.mul(loop.index, _i64(LINE))), write=False)

    def row(self) -> None:
        """All vectors of a row: four together, or one, or one with masks at the ends of a row."""
        builder, phases = self.builder, self.phases
        end = builder.sdiv(builder.add(self.given["last"], _i64(phases - 1)), _i64(phases))
        slot = cgutils.alloca_once(builder, _i64)
        builder.store(self.given["first"], slot)
        test, body, done = (builder.append_basic_block(name) for name in ("vectors", "vectors.body", "vectors.end"))
        builder.branch(test)
        builder.position_at_end(test)
        at = builder.load(slot)
        builder.cbranch(builder.icmp_signed("<", at, end), body, done)
        builder.position_at_end(body)
        together = TOGETHER // max(phases, self.stride)
        ways = [(together, True)] * (together > 1 and phases == 1) + [(1, True)] * (phases == 1 or self.taps != ())
        self.choose(at, slot, [*ways, (1, False)])
        builder.branch(test)
        builder.position_at_end(done)

    def choose(self, at: Any, slot: Any, ways: list[tuple[int, bool]]) -> None:
        """The first of these (vectors, whole) that can be done at a result."""
        (vectors, whole), *others = ways
        if not others:
            self.block(at, vectors, whole)
            self.builder.store(self.builder.add(at, _i64(self.emit.lanes * vectors)), slot)
            return
        with self.builder.if_else(self.whole(at, vectors)) as (can, cannot):
            with can:
                self.block(at, vectors, whole)
                self.builder.store(self.builder.add(at, _i64(self.emit.lanes * vectors)), slot)
            with cannot:
                self.choose(at, slot, others)

    def block(self, first: Any, vectors: int, whole: bool) -> None:
        """The results of so many vectors from result `first` of the row on."""
        builder, slots = self.builder, self.seen(first, vectors, whole)
        if not self.placed or self.careful:
            self.finish_all(slots, first, whole)
            return
        with builder.if_else(self.undecided(slots[0], first, whole)) as (again, done):
            with again, self.carefully(), cgutils.for_range(builder, _i64(vectors)) as loop:
                self.block(builder.add(first, builder.mul(loop.index, _i64(self.emit.lanes))), 1, False)
            with done:
                self.finish_all(slots, first, whole)

    @contextlib.contextmanager
    def carefully(self) -> Iterator[None]:
        """Places are found one after the other: the first NaN stays, and no place outside a row is taken."""
        taps, self.taps, self.careful = self.taps, (), True
        yield
        self.taps, self.careful = taps, False

    def undecided(self, states: list[_State], first: Any, whole: bool) -> Any:
        """Whether there was a NaN, or nothing but minus infinity, which is what lies outside a row that windows reach beyond."""
        builder, emit = self.builder, self.emit
        found = ir.Constant(ir.VectorType(ir.IntType(1), emit.lanes), None)
        for number, state in enumerate(states):
            found = builder.or_(found, emit.noted(builder.load(state.nans)))
            if self.found and not whole:
                least = builder.fcmp_ordered("==", builder.load(state.value), emit.constant(float("-inf")))
                left = builder.sub(self.given["last"], builder.add(first, _i64(number * emit.lanes)))
                found = builder.or_(found, builder.and_(least, emit.first(left)))
        bits = ir.IntType(emit.lanes)
        return builder.icmp_unsigned("!=", builder.bitcast(found, bits), bits(0))

    def seen(self, first: Any, vectors: int, whole: bool) -> list[list[_State]]:
        """What all rows give to so many vectors of results, for each phase."""
        builder, emit = self.builder, self.emit
        slots = [self.accumulators(vectors) for _ in range(self.phases)]
        own = [self.own_places(first, phase, vectors) for phase in range(self.phases)] if self.kind == "won" else []
        with cgutils.for_range(builder, self.given["count"]) as loop:
            last = builder.sub(self.given["count"], _i64(1))
            number = builder.sub(last, loop.index) if self.backwards else loop.index
            row = emit.at(self.given["rows"], builder.mul(number, _i64(ROW_ENTRY)))
            for phase, states in enumerate(slots):
                loaded: list[list[Any]] = []
                for tap in self.each_tap(phase):
                    if self.kind == "won":
                        self.add_won(row, tap, first, states, own[phase], whole)
                        continue
                    loaded.append(self.add_tap(row, tap, first, states, whole))
                    if not self.taps:
                        self.note_nans(states, loaded)
                        loaded.clear()
                self.note_nans(states, loaded)
        return slots

    def finish_all(self, slots: list[list[_State]], first: Any, whole: bool) -> None:
        """Write all vectors of a block."""
        for number, states in enumerate(zip(*slots, strict=True)):
            self.finish(states, self.builder.add(first, _i64(number * self.emit.lanes)), whole)

    def each_tap(self, phase: int) -> Iterator[_Tap]:
        """The taps of a phase: those of the tag unrolled, or one in a loop over those of the table."""
        builder, emit = self.builder, self.emit
        if self.taps:
            taps = self.taps[phase]
            least = min((place for _, place in taps), default=0)
            for tap, place in taps[::-1] if self.backwards else taps:
                ahead = (place - least) % self.stride
                shift = builder.add(emit.times(self.given["tap_step"], tap), _i64((place - ahead) * self.item))
                yield _Tap(_i64(place), _i64(tap), shift, ahead)
            return
        begin, end = (emit.offset(self.given["inner"], phase + more) for more in (0, 1))
        with cgutils.for_range(builder, builder.sub(end, begin)) as loop:
            number = builder.sub(builder.sub(end, _i64(1)), loop.index) if self.backwards else builder.add(begin, loop.index)
            entry = emit.at(self.given["inner"], builder.mul(number, _i64(TAP_ENTRY)))
            shift = builder.add(
                builder.mul(emit.offset(entry, 1), self.given["tap_step"]), emit.times(emit.offset(entry, 0), self.item)
            )
            yield _Tap(emit.offset(entry, 0), emit.offset(entry, 1), shift)

    def accumulators(self, vectors: int) -> list[_State]:
        """Slots of so many vectors."""
        start = self.emit.constant(float("-inf")) if self.largest else self.emit.zero
        place = ir.Constant(self.numbers, [2**31 - 1] * self.emit.lanes if self.kind == "columns" else None)
        starts = start, place, self.emit.nowhere()
        return [_State(*(cgutils.alloca_once_value(self.builder, each) for each in starts)) for _ in range(vectors)]

    def add_tap(self, row: Any, tap: _Tap, first: Any, states: list[_State], whole: bool) -> list[Any]:
        """Let one tap of one row take part in the results of some vectors; returns its elements."""
        builder, emit = self.builder, self.emit
        place = builder.mul(first, _i64(self.stride))
        address = emit.at(emit.at(self.given["x"], builder.add(emit.offset(row, 0), tap.shift)), emit.times(place, self.item))
        step, loaded = self.stride * emit.lanes, []
        for number, state in enumerate(states):
            begin = builder.add(builder.add(tap.place, place), _i64(number * step))
            other = emit.constant(float("-inf")) if self.largest else emit.zero
            start = builder.sub(begin, _i64(tap.ahead))
            new = self.fetch(emit.at(address, number * step * self.item), start, whole, other, tap.ahead)
            loaded.append(new)
            if self.kind == "max":
                self.keep_value(state, new)
            elif self.kind == "columns":
                beside = emit.at(emit.at(address, number * step * self.item), emit.offset(row, 1))
                self.keep_first(state, new, self.fetch(beside, start, whole, None, tap.ahead))
            elif self.placed and not self.careful:
                self.keep_last(state, new, builder.add(emit.offset(row, 1), tap.place))
            elif self.placed:
                inside = None if whole else self.inside(begin, self.stride)
                self.keep_larger(state, new, inside, builder.add(emit.offset(row, 1), tap.place))
            else:
                self.add_term(state.value, new, row, begin, tap.number, whole)
        return loaded

    def note_nans(self, states: list[_State], loaded: list[list[Any]]) -> None:
        """Note the NaNs among what some taps loaded for each state: a comparison sees those of two."""
        builder = self.builder
        if not self.largest:
            return
        for state, elements in zip(states, zip(*loaded, strict=True), strict=False):
            for pair in zip(elements[::2], [*elements[1::2], elements[-1]], strict=False):
                found = builder.or_(builder.load(state.nans), self.emit.kept(builder.fcmp_unordered("uno", *pair)))
                builder.store(found, state.nans)

    def own_places(self, first: Any, phase: int, vectors: int) -> list[Any]:
        """The places of the results themselves, from result `first` of a phase on."""
        builder, lanes, phases = self.builder, self.emit.lanes, self.phases
        begin = builder.add(self.given["row_place"], builder.add(builder.mul(first, _i64(phases)), _i64(phase)))
        return [self.positions(builder.add(begin, _i64(number * lanes * phases)), phases) for number in range(vectors)]

    def add_won(self, row: Any, tap: _Tap, first: Any, states: list[_State], own: list[Any], whole: bool) -> None:
        """Add what the results won of the windows that one tap of one row leads to."""
        builder, emit = self.builder, self.emit
        begin = builder.add(tap.place, first)
        gradients = emit.at(emit.at(self.given["x"], builder.add(emit.offset(row, 0), tap.shift)), emit.times(first, self.item))
        winners = emit.at(self.given["extra"], emit.times(builder.add(emit.offset(row, 1), begin), 4))
        for number, (state, place) in enumerate(zip(states, own, strict=True)):
            at = builder.add(begin, _i64(number * emit.lanes))
            new = self.fetch(emit.at(gradients, number * emit.width), at, whole)
            won = builder.icmp_signed("==", self.load_places(emit.at(winners, 4 * number * emit.lanes), at, whole), place)
            old = builder.load(state.value)
            builder.store(builder.select(won, builder.fadd(old, new), old), state.value)

    def load_places(self, address: Any, start: Any, whole: bool) -> Any:
        """A vector of int32 places, -1 outside the row."""
        builder, lanes = self.builder, self.emit.lanes
        pointer = builder.bitcast(address, self.numbers.as_pointer())
        if whole:
            loaded = builder.load(pointer)
            loaded.align = 4
            return loaded
        mask = self.inside(start)
        signature = ir.FunctionType(self.numbers, [pointer.type, _i32, mask.type, self.numbers])
        function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.masked.load.v{lanes}i32.p0")
        return builder.call(function, [pointer, _i32(4), mask, ir.Constant(self.numbers, [-1] * lanes)])

    def keep_value(self, state: _State, new: Any) -> None:
        """The larger value, of equal ones the old one, as the processor's maximum has it."""
        builder = self.builder
        old = builder.load(state.value)
        builder.store(builder.select(builder.fcmp_ordered(">", new, old), new, old), state.value)

    def keep_last(self, state: _State, new: Any, place: Any) -> None:
        """Taps come last first, and an equal one wins. The next tap waits for the value, which does not wait for the comparison."""
        builder = self.builder
        old = builder.load(state.value)
        builder.store(builder.select(builder.fcmp_ordered(">", old, new), old, new), state.value)
        self.keep_place(state, builder.fcmp_unordered(">=", new, old), place)

    def keep_first(self, state: _State, new: Any, seen: Any) -> None:
        """The larger value, of equal ones that whose place comes first; `careful`: NaN above all. Places are seen as elements."""
        builder, lanes = self.builder, self.emit.lanes
        places = builder.bitcast(seen, ir.VectorType(ir.IntType(8 * self.item), lanes))
        places = places if places.type == self.numbers else builder.trunc(places, self.numbers)
        old, before = builder.load(state.value), builder.load(state.place)
        larger, alike = builder.fcmp_ordered(">", new, old), builder.fcmp_ordered("==", new, old)
        if self.careful:
            nan = builder.fcmp_unordered("uno", new, new)
            larger = builder.or_(larger, builder.and_(nan, builder.fcmp_ordered("ord", old, old)))
            alike = builder.or_(alike, nan)
        wins = builder.or_(larger, builder.and_(builder.icmp_signed("<", places, before), alike))
        builder.store(builder.select(wins, new, old), state.value)
        builder.store(builder.select(wins, places, before), state.place)

    def keep_place(self, state: _State, wins: Any, place: Any) -> None:
        """The place of what wins."""
        spread = self.emit.spread(self.builder.trunc(place, _i32))
        self.builder.store(self.builder.select(wins, spread, self.builder.load(state.place)), state.place)

    def keep_larger(self, state: _State, new: Any, inside: Any, place: Any) -> None:
        """The same, where the first NaN stays, and what is not inside the row never wins."""
        builder = self.builder
        old = builder.load(state.value)
        wins = builder.or_(builder.fcmp_ordered(">=", new, old), builder.fcmp_unordered("uno", new, new))
        if inside is not None:
            wins = builder.and_(inside, wins)
        builder.store(builder.select(wins, new, old), state.value)
        self.keep_place(state, wins, place)

    def add_term(self, slot: Any, new: Any, row: Any, begin: Any, tap: Any, whole: bool) -> None:
        """Add a vector to a sum, with what its kind multiplies it by."""
        builder, emit = self.builder, self.emit
        if self.kind == "product":
            number = builder.add(builder.mul(emit.offset(row, 2), self.given["advance"]), builder.add(tap, _i64(HEAD)))
            weight = emit.broadcast(emit.at(self.given["extra"], builder.mul(number, _i64(self.item))))
            old = builder.load(slot)
            sums = emit.fma(new, weight, old)
            # a position outside the row is no term: its zero must not meet an infinite weight
            builder.store(sums if whole else builder.select(self.inside(begin), sums, old), slot)
            return
        if self.kind not in ("share", "weighted"):
            builder.store(builder.fadd(builder.load(slot), new), slot)
            return
        if self.kind == "weighted":
            table = emit.at(self.given["extra"], builder.mul(begin, _i64(self.item)))
            new = builder.fmul(new, emit.load_masked(table, self.inside(begin)))
        factor = self.number(builder.bitcast(emit.offset(row, 2), _double))
        builder.store(emit.fma(new, factor, builder.load(slot)), slot)

    def extra_element(self, which: int) -> Any:
        """The address of one of the first elements of `extra`."""
        place = self.emit.at(self.given["extra"], which * self.item)
        return self.builder.bitcast(place, self.emit.vector.element.as_pointer())

    def number(self, double: Any) -> Any:
        """A float64 in all lanes."""
        element = self.emit.vector.element
        return self.emit.spread(double if element == _double else self.builder.fptrunc(double, element))

    def finish(self, states: tuple[_State, ...], at: Any, whole: bool) -> None:
        """Write a vector of results, or as many as there are phases."""
        builder, emit = self.builder, self.emit
        values = [builder.load(state.value) for state in states]
        left = builder.sub(self.given["last"], builder.mul(at, _i64(self.phases)))
        if self.kind == "max":
            values = [builder.select(emit.noted(builder.load(states[0].nans)), emit.constant(float("nan")), values[0])]
        if self.kind == "product":
            shift, relu = (builder.load(self.extra_element(which)) for which in range(HEAD))
            values = [builder.fadd(value, emit.spread(shift)) for value in values]
            flag = emit.spread(builder.fcmp_ordered("!=", relu, ir.Constant(relu.type, 0.0)))
            values = [emit.positive(value, flag) for value in values]
        target = emit.at(self.given["y"], builder.mul(at, _i64(self.phases * self.item)))
        for number in range(0 if self.kind == "winner" else self.phases):
            lanes = range(number * emit.lanes, (number + 1) * emit.lanes)
            woven = picked(emit, values, [e % self.phases * emit.lanes + e // self.phases for e in lanes])
            place = emit.at(target, number * emit.width)
            if whole:
                emit.store(woven, place)
            else:
                emit.store_masked(woven, place, emit.first(builder.sub(left, _i64(number * emit.lanes))))
        if self.placed:
            bits, count = (32 if self.kind == "winner" else 64), None if whole else left
            advance = _i64(0) if self.kind == "columns" else self.given["advance"]
            write_places(emit, builder, builder.load(states[0].place), at, count, advance, self.given["extra"], bits)


def write_places(
    emit: Emitter, builder: Any, places: Any, at: Any, left: Any, advance: Any, target: Any, bits: int = 64
) -> None:  # fmt: skip
    """Write the places of `left` results from result `at` on, all if None: those of the vector, more by `advance` a result."""
    lanes = emit.lanes
    numbers = builder.add(emit.spread(builder.trunc(at, _i32)), ir.Constant(places.type, list(range(lanes))))
    numbers = builder.add(places, builder.mul(numbers, emit.spread(builder.trunc(advance, _i32))))
    if bits == 64:
        numbers = builder.sext(numbers, ir.VectorType(_i64, lanes))
    pointer = builder.bitcast(emit.at(target, builder.mul(at, _i64(bits // 8))), numbers.type.as_pointer())

    def whole() -> None:
        builder.store(numbers, pointer).align = bits // 8

    if left is None:
        whole()
        return
    mask = emit.first(left)
    signature = ir.FunctionType(ir.VoidType(), [numbers.type, pointer.type, _i32, mask.type])
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.masked.store.v{lanes}i{bits}.p0")
    arguments = [numbers, pointer, _i32(bits // 8), mask]
    emit.whole_or(mask, bits // 8, whole, lambda: builder.call(function, arguments), write=True)


@intrinsic
def _windows(
    typingctx: Any, shape: Any, dtype: Any, x: Any, lists: Any, y: Any, extra: Any, job: Any, inner: Any
) -> Any:  # fmt: skip
    check_kinds((shape, dtype), (x, lists, y, extra, job, inner))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        given = dict(zip(("x", "lists", "y", "extra", "job", "inner"), args[2:], strict=True))
        code = _Windows(builder, shape.value, dtype, given)
        given.update({name: code.emit.offset(given["job"], number) for number, name in enumerate(JOB)})
        code.rows()
        return context.get_dummy_value()

    return types.void(shape, dtype, *[x] * 6), codegen


@kernel
def windows(
    shape: Tag, dtype: Tag, x: Address, lists: Address, y: Address, extra: Address, job: Address, inner: Address
) -> None:  # fmt: skip
    """Some rows of results.

    Parameters
    ----------
    shape : Tag
        (kind, lanes, stride, number of phases, taps): the stride or the number of phases is 1. Kinds: "max"; "argmax", which also
        writes places; "winner", which writes only these, as int32; "columns": the same as "argmax" of elements that have places, of
        their size, beside them; "won": the sum of the windows whose winner the result is; "sum"; "share": each term times the
        factor of its source's row; "weighted": and times the weight of its position; "product": each term times the weight of its
        tap. The taps are, for each phase, pairs (tap, its position for result 0), to be unrolled; where there are none, they come
        in `inner`.
    dtype : Tag
        float32 or float64.
    x, y : Address
        What the offsets of rows are relative to; result 0 of the first row. Elements lie next to each other.
    lists : Address
        For each row of results, an entry of 24 bytes (the number of rows of x that it reads), and behind it one for each of those
        (byte offset, place, factor): int64, but float64 for factors. "columns": instead of the place the bytes from the elements
        to their places.
    extra : Address
        "argmax", "columns": of the int64 places to write. "winner": of int32 ones. "won": of those of all windows, in the order
        that the places of rows count. "weighted": of the weights. "product": of the `HEAD`, and of the
        weights in rows of `advance`, of which a row of x has the number of its own instead of a factor.
    job : Address
        Of int64 numbers, in the order of `JOB`: rows of results; the bytes from one list to the next; bytes from row to row of y
        and of `extra`; which results of a row, `first` counted in a phase; how many positions a row of x has; how many bytes the
        data of a tap lie behind those of the tap before it, beside what their positions say; the step of places from result to
        result, to which the place of the row and the position are added, or for "won" the place of the first result of all, whose
        rows then lie one behind the other in y; the bytes between the source of a row and that of the next, if it is fetched ahead.
    inner : Address
        Of an int64 table: where in it the taps of each phase begin, and where the last ones end, counted in pairs; and these
        pairs (position for result 0, tap).
    """
    _windows(shape, dtype, x, lists, y, extra, job, inner)
