"""Windows with the lanes over channels: every element of a window is a vector, so that no lane is masked and none is moved.

What a result reads lies at equal steps in each of some rows of the source: *spans*. A gradient reads the windows that hold an
element, which are such spans too. Places are numbers of the elements' own dtype, and exact in it.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds

__all__ = ["CROSSWISE", "ENTRY", "crosswise"]

CROSSWISE = (
    "rows", "list_step", "y_step", "places_step", "first", "last", "low", "high", "stride", "step", "x_pitch", "y_pitch",
    "places_pitch",
)  # fmt: skip
ENTRY = 24
"""Bytes of an entry of a list, and of a span."""
TOGETHER = 4
"""Results whose windows are alike, that take each step together."""
_i64, _double = ir.IntType(64), ir.DoubleType()


class _Member(NamedTuple):
    """One of the vectors that take each step together: whose result it is, counted from the first, and how many bytes behind it."""

    result: int
    shift: int


_State: TypeAlias = tuple[Any, Any]


class _Crosswise:
    """The code of one call of `crosswise`."""

    def __init__(self, builder: Any, kind: str, lanes: int, vectors: int, dtype: Any, given: dict[str, Any]):
        self.builder, self.kind, self.vectors, self.given = builder, kind, vectors, given
        self.emit = Emitter(builder, dtype, lanes)
        self.placed, self.largest = kind in ("argmax", "winner"), kind in ("max", "argmax", "winner")

    def rows(self) -> None:
        """All rows of results: those alike some at a time, the others one by one."""
        builder, emit, given = self.builder, self.emit, self.given
        lists, y, places = given["lists"], given["y"], given["places"]
        with cgutils.for_range(builder, given["rows"]) as loop:
            given["list"] = emit.at(lists, builder.mul(loop.index, given["list_step"]))
            given["y"] = emit.at(y, builder.mul(loop.index, given["y_step"]))
            if self.kind != "won":
                given["places"] = emit.at(places, builder.mul(loop.index, given["places_step"]))
            if self.vectors > 1:
                self.blocks(given["first"], given["last"], 1)
            else:
                self.alike()

    def alike(self) -> None:
        """A row of results: those whose spans are equally long some at a time."""
        builder, given = self.builder, self.given
        groups = builder.sdiv(builder.sub(given["high"], given["low"]), _i64(TOGETHER))
        middle = builder.add(given["low"], builder.mul(groups, _i64(TOGETHER)))
        self.blocks(given["first"], given["low"], 1)
        self.blocks(given["low"], middle, TOGETHER)
        self.blocks(middle, given["last"], 1)

    def blocks(self, begin: Any, end: Any, count: int) -> None:
        """The results from `begin` to `end`, so many at a time, or all vectors of one."""
        builder = self.builder
        with cgutils.for_range(builder, builder.sdiv(builder.sub(end, begin), _i64(count))) as loop:
            first = builder.add(begin, builder.mul(loop.index, _i64(count)))
            if self.vectors > 1:
                self.block(first, [_Member(0, v * self.emit.width) for v in range(self.vectors)])
            else:
                self.block(first, [_Member(k, 0) for k in range(count)])

    def block(self, first: Any, members: list[_Member]) -> None:
        """What takes each step together: vectors of a result, or of results whose spans are equally long."""
        builder, emit = self.builder, self.emit
        span = emit.at(self.given["spans"], builder.mul(first, _i64(ENTRY)))
        states, nans = self.seen(first, span, members)
        if nans is None:
            self.finish_all(states, first, span, members)
            return
        bits = ir.IntType(emit.lanes)
        any_nan = builder.icmp_unsigned("!=", builder.bitcast(emit.noted(builder.load(nans)), bits), bits(0))
        with builder.if_else(any_nan) as (again, done):
            with again:
                self.finish_all(self.seen(first, span, members, careful=True)[0], first, span, members)
            with done:
                self.finish_all(states, first, span, members)

    def seen(self, first: Any, span: Any, members: list[_Member], *, careful: bool = False) -> tuple[list[_State], Any]:
        """What all elements give to the states of the members; and for places, unless `careful`, where there were NaNs."""
        builder, emit, given = self.builder, self.emit, self.given
        position, taps = emit.offset(span, 0), emit.offset(span, 1)
        states = [self.state() for _ in members]
        nans = self.slot(emit.nowhere()) if self.placed and not careful else None
        number = cgutils.alloca_once(builder, emit.vector)
        own = [self.own(first, member) for member in members] if self.kind == "won" else []
        if self.placed:  # the first element, which stays where no other is larger than minus infinity
            start = self.spread(builder.add(emit.offset(emit.at(given["list"], ENTRY), 1), position))
            for _, place in states:
                builder.store(start, place)
        with cgutils.for_range(builder, emit.offset(given["list"], 0)) as row:
            entry = emit.at(given["list"], builder.mul(builder.add(row.index, _i64(1)), _i64(ENTRY)))
            source, place = emit.at(given["x"], emit.offset(entry, 0)), builder.add(emit.offset(entry, 1), position)
            if self.placed:
                builder.store(self.spread(place), number)
            with cgutils.for_range(builder, taps) as tap:
                reached = builder.mul(tap.index, given["step"])
                read = self.vector(source, builder.add(position, reached), "x_pitch")
                won = self.vector(given["places"], builder.add(place, reached), "places_pitch")
                elements = [emit.load(self.of_member(read, member, "x_pitch")) for member in members]
                for k, (state, member, new) in enumerate(zip(states, members, elements, strict=True)):
                    if self.kind == "won":
                        self.add_won(state[0], new, emit.load(self.of_member(won, member, "places_pitch")), own[k])
                    else:
                        self.take(state, new, number, careful)
                if nans is not None:
                    self.note_nans(nans, elements)
                if self.placed:
                    builder.store(builder.fadd(builder.load(number), self.spread(given["step"])), number)
        return states, nans

    def finish_all(self, states: list[_State], first: Any, span: Any, members: list[_Member]) -> None:
        """Write the vectors of all members."""
        for state, member in zip(states, members, strict=True):
            self.finish(state, first, member, self.emit.offset(span, 3 * member.result + 2))

    def vector(self, array: Any, position: Any, pitch: str) -> Any:
        """The address of a position in an array."""
        return self.emit.at(array, self.builder.mul(position, self.given[pitch]))

    def of_member(self, address: Any, member: _Member, pitch: str) -> Any:
        """What a member reads where the first one reads at an address."""
        apart = self.builder.mul(self.given["stride"], self.given[pitch])
        return self.emit.at(self.emit.at(address, self.emit.times(apart, member.result)), member.shift)

    def spread(self, integer: Any) -> Any:
        """An integer as a number in all lanes."""
        return self.emit.spread(self.builder.sitofp(integer, self.emit.vector.element))

    def own(self, first: Any, member: _Member) -> Any:
        """The place of a result itself."""
        result = self.builder.add(first, _i64(member.result))
        return self.spread(self.builder.add(self.emit.offset(self.given["list"], 1), result))

    def state(self) -> _State:
        """Slots for the sum or the largest element, and for its place, or whether it is NaN."""
        start = self.emit.constant(float("-inf")) if self.largest else self.emit.zero
        return self.slot(start), self.slot(self.emit.zero if self.placed else self.emit.nowhere())

    def slot(self, start: Any) -> Any:
        """A slot that holds a value."""
        return cgutils.alloca_once_value(self.builder, start)

    def note_nans(self, nans: Any, elements: list[Any]) -> None:
        """Note the NaNs among the elements of a step: a comparison sees those of two."""
        builder = self.builder
        for pair in zip(elements[::2], [*elements[1::2], elements[-1]], strict=False):
            builder.store(builder.or_(builder.load(nans), self.emit.kept(builder.fcmp_unordered("uno", *pair))), nans)

    def take(self, state: _State, new: Any, number: Any, careful: bool) -> None:
        """Let an element take part in a result; places are right where there is no NaN, or `careful`."""
        builder, (value, beside) = self.builder, state
        old = builder.load(value)
        if self.kind in ("sum", "mean"):
            builder.store(builder.fadd(old, new), value)
            return
        if self.kind == "max":
            builder.store(builder.select(builder.fcmp_ordered(">", new, old), new, old), value)
            nan = self.emit.kept(builder.fcmp_unordered("uno", new, new))
            builder.store(builder.or_(builder.load(beside), nan), beside)
            return
        wins = builder.fcmp_ordered(">", new, old)  # the first of equal ones stays
        if careful:  # and the first NaN
            wins = builder.and_(builder.fcmp_unordered(">", new, old), builder.fcmp_ordered("ord", old, old))
        builder.store(builder.select(wins, new, old), value)
        builder.store(builder.select(wins, builder.load(number), builder.load(beside)), beside)

    def add_won(self, total: Any, new: Any, winner: Any, own: Any) -> None:
        """Add the gradient of a window that the result won."""
        builder = self.builder
        old = builder.load(total)
        builder.store(builder.select(builder.fcmp_ordered("==", winner, own), builder.fadd(old, new), old), total)

    def finish(self, state: _State, first: Any, member: _Member, share: Any) -> None:
        """Write the vector of a member."""
        builder, emit, given = self.builder, self.emit, self.given
        value, result = builder.load(state[0]), builder.add(first, _i64(member.result))
        if self.kind == "max":
            value = builder.select(emit.noted(builder.load(state[1])), emit.constant(float("nan")), value)
        if self.kind == "mean":
            count = builder.fmul(*(builder.bitcast(each, _double) for each in (emit.offset(given["list"], 1), share)))
            element = emit.vector.element
            value = builder.fdiv(value, emit.spread(count if element == _double else builder.fptrunc(count, element)))
        if self.kind != "winner":
            emit.store(value, emit.at(self.vector(given["y"], result, "y_pitch"), member.shift))
        if self.placed:
            place = builder.fadd(builder.load(state[1]), self.spread(emit.times(given["stride"], member.result)))
            emit.store(place, emit.at(self.vector(given["places"], result, "places_pitch"), member.shift))


@intrinsic
def _crosswise(typingctx: Any, shape: Any, dtype: Any, x: Any, lists: Any, y: Any, places: Any, job: Any, spans: Any) -> Any:
    check_kinds((shape, dtype), (x, lists, y, places, job, spans))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        given = dict(zip(("x", "lists", "y", "places", "job", "spans"), args[2:], strict=True))
        code = _Crosswise(builder, *shape.value, dtype, given)
        given.update({name: code.emit.offset(given["job"], number) for number, name in enumerate(CROSSWISE)})
        code.rows()
        return context.get_dummy_value()

    return types.void(shape, dtype, *[x] * 6), codegen


@kernel
def crosswise(
    shape: Tag, dtype: Tag, x: Address, lists: Address, y: Address, places: Address, job: Address, spans: Address
) -> None:  # fmt: skip
    """Some rows of results, of as many channels as their vectors have lanes.

    Parameters
    ----------
    shape : Tag
        (kind, lanes, vectors of a result). Kinds: "max"; "argmax", which also writes places; "winner", which writes only these;
        "sum"; "mean": the sum over the count of its row and that of its span; "won": the sum of the windows whose winner the result
        is.
    dtype : Tag
        float32 or float64.
    x, y : Address
        What the offsets of rows are relative to; result 0 of the first row.
    lists : Address
        For each row of results, an entry of `ENTRY` bytes (the number of rows of x that it reads; "mean": the count, as float64;
        "won": the place of result 0), and behind it one for each of those (byte offset, place of its first element).
    places : Address
        Beside y. "won": the places of the winners of all windows, which the places of the rows of x count.
    job : Address
        Of int64 numbers, in the order of `CROSSWISE`: rows of results; the bytes from one list to the next; those from row to row
        of y and of places; which results of a row; which of them have spans of one length, and begin `stride` positions apart; the
        positions from element to element of a span; the bytes between positions of x, y and places.
    spans : Address
        For each result of a row, an entry of `ENTRY` bytes: the first position that it reads, how many; "mean": the count, as
        float64.
    """
    _crosswise(shape, dtype, x, lists, y, places, job, spans)
