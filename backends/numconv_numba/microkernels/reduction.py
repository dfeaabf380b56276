"""Wide windows: the lanes run along the window, and as many results as there are lanes are reduced together.

The sums, or winners, that a window has in each lane are merged pairwise with those of another window: after log2(lanes) such steps
lane r holds result r. A sum is that of its lanes' sums.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds, rolled
from .windows import ROW_ENTRY, write_places

__all__ = ["REDUCTION", "reduction"]

REDUCTION = ("results", "x_step", "length", "place", "advance")
TOGETHER = 4
"""Windows that take each step together."""
LINE, LINES, AHEAD, MOST_LINES = 64, 4, 4096, 32
"""Bytes that one prefetch brings, and how many follow each other; how far ahead x is fetched, and how much of it for some windows:
longer ones are streams."""
_NOWHERE = 2**31 - 1
_i32, _i64, _double = ir.IntType(32), ir.IntType(64), ir.DoubleType()


class _Reduction:
    """The code of one call of `reduction`."""

    def __init__(self, builder: Any, kind: str, lanes: int, dtype: Any, given: dict[str, Any]):
        self.builder, self.kind, self.given = builder, kind, given
        self.emit = Emitter(builder, dtype, lanes)
        self.item = self.emit.width // lanes
        self.numbers = ir.VectorType(_i32, lanes)
        self.lane = ir.Constant(self.numbers, list(range(lanes)))
        self.values = cgutils.alloca_once(builder, self.emit.vector, size=lanes)
        self.places = cgutils.alloca_once(builder, self.numbers, size=lanes)
        self.nans = cgutils.alloca_once_value(builder, self.emit.nowhere())
        self.careful = False

    def results(self) -> None:
        """All results of the call, a vector of them at a time."""
        builder, emit, given = self.builder, self.emit, self.given
        with cgutils.for_range(
            builder, builder.sdiv(builder.add(given["results"], _i64(emit.lanes - 1)), _i64(emit.lanes))
        ) as group:
            first = builder.mul(group.index, _i64(emit.lanes))
            self.group(first, builder.sub(given["results"], first))

    def group(self, first: Any, left: Any) -> None:
        """A vector of results, or `left`; places are found again, carefully, where there was a NaN."""
        builder, emit = self.builder, self.emit
        builder.store(emit.nowhere(), self.nans)
        state = self.vector(first, left)
        if self.kind != "argmax":
            self.finish(state, first, left)
            return
        with builder.if_else(builder.trunc(emit.any(emit.noted(builder.load(self.nans))), ir.IntType(1))) as (again, done):
            with again:
                self.careful = True
                self.finish(self.vector(first, left), first, left)
                self.careful = False
            with done:
                self.finish(state, first, left)

    def vector(self, first: Any, left: Any) -> tuple[Any, Any]:
        """A vector of results from `first` on; of fewer than its lanes the others are undefined."""
        builder, emit = self.builder, self.emit
        lanes, together = _i64(emit.lanes), min(TOGETHER, emit.lanes)
        with builder.if_else(builder.icmp_signed("<", left, lanes)) as (some, all_of_them):
            for block, count, step in ((some, left, 1), (all_of_them, lanes, together)):
                with block, rolled(builder, builder.sdiv(count, _i64(step))) as turn:
                    number = builder.mul(turn, _i64(step))
                    address = emit.at(self.given["x"], builder.mul(builder.add(first, number), self.given["x_step"]))
                    self.fetch_ahead(address, step)
                    for k, (value, place) in enumerate(self.windows(address, step)):
                        slot = builder.add(number, _i64(k))
                        builder.store(builder.load(value), builder.gep(self.values, [slot]))
                        if self.kind == "argmax":
                            builder.store(builder.load(place), builder.gep(self.places, [slot]))
        slots = ([builder.load(builder.gep(each, [_i64(r)])) for r in range(emit.lanes)] for each in (self.values, self.places))
        return self.merged(list(zip(*slots, strict=True)))

    def fetch_ahead(self, x: Any, count: int) -> None:
        """Bring what some later windows begin with into the cache, as many bytes as lie between so many."""
        builder, emit = self.builder, self.emit
        between = emit.times(self.given["x_step"], count)
        most = _i64(LINE * MOST_LINES)
        between = builder.select(builder.icmp_unsigned("<", between, most), between, most)
        with rolled(builder, builder.udiv(builder.add(between, _i64(LINES * LINE - 1)), _i64(LINES * LINE))) as some:
            place = emit.at(x, builder.mul(some, _i64(LINES * LINE)))
            for line in range(LINES):
                emit.prefetch(emit.at(place, AHEAD + line * LINE), write=False)

    def windows(self, x: Any, count: int) -> list[tuple[Any, Any]]:
        """What each lane holds of some windows, in slots: the sum, or the first of the largest elements and its place."""
        builder, emit, given = self.builder, self.emit, self.given
        start = emit.constant(float("-inf")) if self.kind != "mean" else emit.zero
        slots = [(cgutils.alloca_once(builder, emit.vector), cgutils.alloca_once(builder, self.numbers)) for _ in range(count)]
        for value, place in slots:
            builder.store(start, value)
            builder.store(emit.spread(_i32(_NOWHERE)), place)
        rows, whole = emit.offset(given["list"], 0), builder.sdiv(given["length"], _i64(emit.lanes))
        end = builder.mul(whole, _i64(emit.lanes))
        rest = builder.sub(given["length"], end)
        # of places the last ones first: an equal one that comes later wins; else as processors fetch ahead
        with rolled(builder, rows) as row:
            entry = emit.at(given["list"], builder.mul(builder.sub(rows, row), _i64(ROW_ENTRY)))
            source, at = emit.at(x, emit.offset(entry, 0)), emit.offset(entry, 1)
            with builder.if_then(builder.icmp_signed(">", rest, _i64(0))):
                self.add(self.element(source, end), builder.add(at, end), slots, emit.first(rest))
            with rolled(builder, whole) as vector:
                number = builder.sub(builder.sub(whole, _i64(1)), vector) if self.kind == "argmax" else vector
                start = builder.mul(number, _i64(emit.lanes))
                self.add(self.element(source, start), builder.add(at, start), slots, None)
        return slots

    def element(self, row: Any, number: Any) -> Any:
        """The address of an element of a row."""
        return self.emit.at(row, self.builder.mul(number, _i64(self.item)))

    def add(self, address: Any, at: Any, slots: list[tuple[Any, Any]], mask: Any) -> None:
        """Let a vector of elements of each window take part in its state; `at` is the place of the first one.

        Lanes outside the mask hold minus infinity, and places that are never the first of equals.
        """
        builder, emit = self.builder, self.emit
        places, loaded = builder.add(emit.spread(builder.trunc(at, _i32)), self.lane), []
        for k, (value, place) in enumerate(slots):
            source, old = emit.at(address, emit.times(self.given["x_step"], k)), builder.load(value)
            other = emit.zero if self.kind == "mean" else emit.constant(float("-inf"))
            new = emit.load(source) if mask is None else emit.load_masked(source, mask, other)
            if self.kind != "argmax":
                builder.store(self.together(old, new), value)
                continue
            loaded.append(new)
            if self.careful:
                wins = builder.or_(builder.fcmp_ordered(">=", new, old), builder.fcmp_unordered("uno", new, new))
                builder.store(builder.select(wins, new, old), value)
            else:  # the next vector waits for the value, which does not wait for this comparison
                wins = builder.fcmp_unordered(">=", new, old)
                builder.store(builder.select(builder.fcmp_ordered(">", old, new), old, new), value)
            builder.store(builder.select(wins, places, builder.load(place)), place)
        for pair in zip(loaded[::2], [*loaded[1::2], *loaded[-1:]], strict=False):
            builder.store(builder.or_(builder.load(self.nans), emit.kept(builder.fcmp_unordered("uno", *pair))), self.nans)

    def together(self, a: Any, b: Any) -> Any:
        """The sum, or the larger number in each lane, NaN if one is."""
        builder = self.builder
        if self.kind == "mean":
            return builder.fadd(a, b)
        larger = builder.select(builder.fcmp_ordered(">", b, a), b, a)
        return builder.select(builder.fcmp_unordered("uno", a, b), self.emit.constant(float("nan")), larger)

    def merged(self, states: list[tuple[Any, Any]]) -> tuple[Any, Any]:
        """The vector whose lane r holds what all lanes of state r hold together."""
        lanes, distance = self.emit.lanes, 1
        while len(states) > 1:
            own = [lane + (lanes if lane & distance else 0) for lane in range(lanes)]
            other = [lane ^ distance for lane in own]
            pairs = list(zip(states[::2], states[1::2], strict=True))
            states = [self.better(self.mixed(*pair, own), self.mixed(*pair, other)) for pair in pairs]
            distance *= 2
        return states[0]

    def mixed(self, one: tuple[Any, Any], other: tuple[Any, Any], lanes: list[int]) -> list[Any]:
        """The state with these lanes of two."""
        return [self.emit.shuffle(a, b, lanes) for a, b in zip(one, other, strict=True)]

    def better(self, one: list[Any], other: list[Any]) -> tuple[Any, Any]:
        """What two states hold together: without places `together`, else in each lane the better one."""
        builder = self.builder
        (a, place_a), (b, place_b) = one, other
        if self.kind != "argmax":
            return self.together(a, b), place_a
        larger, same = builder.fcmp_ordered(">", b, a), builder.fcmp_ordered("==", a, b)
        if self.careful:
            nan_a, nan_b = (builder.fcmp_unordered("uno", each, each) for each in (a, b))
            larger = builder.or_(larger, builder.and_(nan_b, builder.not_(nan_a)))
            same = builder.or_(same, builder.and_(nan_a, nan_b))
        wins = builder.or_(larger, builder.and_(same, builder.icmp_signed("<", place_b, place_a)))
        return builder.select(wins, b, a), builder.select(wins, place_b, place_a)

    def finish(self, state: tuple[Any, Any], first: Any, left: Any) -> None:
        """Write a vector of results."""
        builder, emit, given = self.builder, self.emit, self.given
        value, place = state
        if self.kind == "mean":
            scale = builder.bitcast(emit.offset(given["list"], 1), _double)
            narrow = scale if emit.vector.element == _double else builder.fptrunc(scale, ir.FloatType())
            value = builder.fmul(value, emit.spread(narrow))
        emit.store_masked(value, emit.at(given["y"], builder.mul(first, _i64(self.item))), emit.first(left))
        if self.kind == "argmax":
            place = builder.add(place, emit.spread(builder.trunc(given["place"], _i32)))
            write_places(emit, builder, place, first, left, given["advance"], given["places"])


@intrinsic
def _reduction(typingctx: Any, shape: Any, dtype: Any, x: Any, entries: Any, y: Any, places: Any, job: Any) -> Any:
    check_kinds((shape, dtype), (x, entries, y, places, job))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        given = dict(zip(("x", "list", "y", "places", "job"), args[2:], strict=True))
        code = _Reduction(builder, *shape.value, dtype, given)
        given.update({name: code.emit.offset(given["job"], number) for number, name in enumerate(REDUCTION)})
        code.results()
        return context.get_dummy_value()

    return types.void(shape, dtype, *[x] * 5), codegen


@kernel
def reduction(shape: Tag, dtype: Tag, x: Address, entries: Address, y: Address, places: Address, job: Address) -> None:
    """Results of windows that read equally many elements of equal rows.

    Parameters
    ----------
    shape : Tag
        (kind, lanes), the kinds "max", "argmax" and "mean" as those of `windows`.
    dtype : Tag
        float32 or float64.
    x : Address
        What the offsets of rows are relative to, for result 0. Elements lie next to each other, those of y and places too.
    entries : Address
        The list of rows, as those of `windows`.
    y, places : Address
        Of result 0; places of "argmax" only.
    job : Address
        Of int64 numbers, in the order of `REDUCTION`: how many results; the bytes from one to the next in x; elements that a window
        reads in each row; the position of the first of them for result 0, and its step from result to result.
    """
    _reduction(shape, dtype, x, entries, y, places, job)
