"""Averages of windows row by row: along the outer axes first, then along the row, from registers.

A row of results reads some rows of x. Their sum stays in vectors; what each tap along the row takes of these is known when the code
is made, so that it is a shuffle: nothing is loaded twice, and a row that is shorter than a vector costs one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds, host, rolled
from .memory import Memory
from .row_access import picked

__all__ = ["BOX", "LINE", "BoxShape", "boxes", "vectors_read"]

BOX = (
    "planes", "rows", "plane_step", "y_plane", "list_step", "y_step", "start", "advance", "begin", "end", "chunks", "plane_lines",
    "row_lines", "row_advance",
)  # fmt: skip
UNROLLED = 9
"""Rows of x that are read without a loop, where none is missing."""
LINE, AHEAD = 64, 4096
"""Bytes that one prefetch brings; how far ahead x is fetched: masked loads of short rows train no prefetcher."""
_i64, _double = ir.IntType(64), ir.DoubleType()


def vectors_read(lanes: int, stride: int, places: Sequence[int], results: int) -> int:
    """How many vectors of x so many vectors of results read."""
    return (stride * (lanes * results - 1) + places[-1]) // lanes + 1


class BoxShape(NamedTuple):
    """What the code of `boxes` is made for.

    Attributes
    ----------
    lanes, stride : int
    places : tuple of int
        The positions of the taps of result 0.
    outer : int
        The rows of x that most rows of results read.
    vectors, results : int
        A chunk of a row is so many vectors of results, and reads so many of x: what lies behind these is zero.
    packed, length : int
        So many rows of this length are taken together, and fit into one vector of results; 1 and 0 where the length is not known.
    single : bool
        Whether a row is one chunk, as those that are packed are.
    scaled : bool
        Whether rows have scales of their own.
    """

    lanes: int
    stride: int
    places: tuple[int, ...]
    outer: int
    vectors: int
    results: int
    packed: int
    length: int
    single: bool
    scaled: bool


_Masks: TypeAlias = tuple[list[Any], list[Any]] | None
"""Which lanes of the vectors of x, and of those of results, exist: all of them."""


class _Boxes:
    """The code of one call of `boxes`."""

    def __init__(self, context: Any, builder: Any, shape: BoxShape, dtypes: tuple[str, str], given: dict[str, Any]):
        self.builder, self.shape, self.given = builder, shape, given
        self.emit = Emitter(builder, dtypes[1], shape.lanes)
        self.memory = Memory(context, builder, self.emit, dtypes[0])
        self.item = self.emit.width // shape.lanes
        given.update({name: self.emit.offset(given["job"], number) for number, name in enumerate(BOX)})
        self.known = self.masks(_i64(0)) if shape.single else None

    def masks(self, number: Any) -> _Masks:
        """Those of a chunk that has such a number in the table."""
        builder, each = self.builder, self.shape.vectors + self.shape.results
        begin = builder.mul(number, _i64(each))
        flags = [self.emit.flags(self.given["flags"], builder.add(begin, _i64(i))) for i in range(each)]
        return flags[: self.shape.vectors], flags[self.shape.vectors :]

    def planes(self) -> None:
        """All rows of results, some together: the last ones of a plane overlap those before them."""
        builder, emit, given, together = self.builder, self.emit, self.given, self.shape.packed
        last = builder.sub(given["rows"], _i64(together))
        size = builder.mul(builder.sub(given["planes"], _i64(1)), given["y_plane"])
        size = builder.add(size, builder.mul(given["rows"], given["y_step"]))
        given["behind"] = builder.add(builder.ptrtoint(given["y"], _i64), size)
        with rolled(builder, given["planes"]) as plane:
            given["plane"] = emit.at(given["x"], builder.mul(plane, given["plane_step"]))
            self.fetch_ahead(given["plane"], given["plane_lines"])
            y = emit.at(given["y"], builder.mul(plane, given["y_plane"]))
            with rolled(builder, builder.udiv(builder.add(given["rows"], _i64(together - 1)), _i64(together))) as turn:
                row = builder.mul(turn, _i64(together))
                if together > 1:
                    row = builder.select(builder.icmp_signed("<", row, last), row, last)
                self.fetch_ahead(emit.at(given["plane"], builder.mul(row, given["row_advance"])), given["row_lines"])
                first = emit.at(given["lists"], builder.mul(row, given["list_step"]))
                given["target"] = emit.at(y, builder.mul(row, given["y_step"]))
                self.together([emit.at(first, emit.times(given["list_step"], number)) for number in range(together)])

    def number(self, double: Any) -> Any:
        """A float64 in all lanes."""
        element = self.emit.vector.element
        return self.emit.spread(double if element == _double else self.builder.fptrunc(double, element))

    def fetch_ahead(self, x: Any, lines: Any) -> None:
        """Bring what is read some time after x into the cache."""
        with rolled(self.builder, lines) as line:
            place = self.builder.add(self.builder.mul(line, _i64(LINE)), _i64(AHEAD))
            self.emit.prefetch(self.emit.at(x, place), write=False)

    def together(self, lists: list[Any]) -> None:
        """Some rows: a chunk, or of one of them those that lie inside it, and those at its ends."""
        builder, given = self.builder, self.given
        if self.shape.single:
            self.chunk(lists, _i64(0), self.known)
            return
        inside = builder.sub(given["end"], given["begin"])
        with rolled(builder, builder.sub(given["chunks"], inside)) as number:
            behind = builder.icmp_signed(">=", number, given["begin"])
            self.chunk(lists, builder.add(number, builder.select(behind, inside, _i64(0))), self.masks(number))
        with rolled(builder, inside) as number:
            self.chunk(lists, builder.add(given["begin"], number), None)

    def chunk(self, lists: list[Any], number: Any, masks: _Masks) -> None:
        """Some vectors of results."""
        builder, emit, given, lanes = self.builder, self.emit, self.given, self.shape.lanes
        start = builder.add(given["start"], builder.mul(number, given["advance"]))
        vectors = [vector for each in lists for vector in self.columns(each, start, masks)]
        scale = self.scales(lists) if self.shape.scaled else None
        before = builder.mul(number, _i64(self.shape.results * lanes))
        shares = emit.at(given["shares"], builder.mul(before, _i64(self.item)))
        target = emit.at(given["target"], builder.mul(before, _i64(self.memory.item)))
        for result in range(self.shape.results):
            share = emit.load(emit.at(shares, result * emit.width))
            mean = builder.fmul(self.total(vectors, result), builder.fmul(share, scale) if self.shape.scaled else share)
            place = emit.at(target, result * self.memory.width)
            if masks is None:
                self.memory.store(mean, place)
            else:
                self.put(mean, place, masks[1][result])

    def put(self, mean: Any, place: Any, mask: Any) -> None:
        """Write the lanes of a mask; or all, where that is faster and later rows get their results behind this one's."""
        store = functools.partial(self.memory.store_masked, mean, place, mask)
        if host().masks(self.memory.item, write=True):
            store()
            return
        end = self.builder.ptrtoint(self.emit.at(place, self.memory.width), _i64)
        with self.builder.if_else(self.builder.icmp_unsigned("<=", end, self.given["behind"]), likely=True) as (all_of_it, some):
            with all_of_it:
                self.memory.store(mean, place)
            with some:
                store()

    def columns(self, rows: Any, start: Any, masks: _Masks) -> list[Any]:
        """The sums of the rows of x in a list, from a position on."""
        builder, emit = self.builder, self.emit
        x, outer, count = emit.at(self.given["plane"], start), self.shape.outer, emit.offset(rows, 0)
        sums = [cgutils.alloca_once(builder, emit.vector) for _ in range(self.shape.vectors)]

        def add(entry: Any, *, first: bool = False) -> None:
            place = emit.at(x, emit.offset(rows, entry))
            for slot, new in zip(sums, self.loaded(place, masks), strict=True):
                builder.store(new if first else builder.fadd(builder.load(slot), new), slot)

        add(2, first=True)
        if outer > UNROLLED:
            with rolled(builder, builder.sub(count, _i64(1))) as number:
                add(builder.add(number, _i64(3)))
        elif outer > 1:
            with builder.if_else(builder.icmp_signed("==", count, _i64(outer))) as (all_of_them, some):
                with all_of_them:
                    for number in range(1, outer):
                        add(number + 2)
                with some, rolled(builder, builder.sub(count, _i64(1))) as number:
                    add(builder.add(number, _i64(3)))
        return list(map(builder.load, sums))

    def loaded(self, x: Any, masks: _Masks) -> list[Any]:
        """The vectors of a row of x."""
        places = [self.emit.at(x, v * self.memory.width) for v in range(self.shape.vectors)]
        if masks is None:
            return list(map(self.memory.load, places))
        return [self.memory.load_masked(place, mask) for place, mask in zip(places, masks[0], strict=True)]

    def scales(self, lists: list[Any]) -> Any:
        """The scale of each lane's row."""
        builder, lanes, length = self.builder, self.shape.lanes, self.shape.length
        *before, scales = (self.number(builder.bitcast(self.emit.offset(each, 1), _double)) for each in lists)
        for number, scale in reversed(list(enumerate(before))):
            own = ir.Constant(ir.VectorType(ir.IntType(1), lanes), [lane < (number + 1) * length for lane in range(lanes)])
            scales = builder.select(own, scale, scales)
        return scales

    def total(self, vectors: list[Any], result: int) -> Any:
        """The sums of a vector of windows: the taps in order."""
        total = None
        for place in self.shape.places:
            taken = self.taken(
                vectors, [self.position(result * self.shape.lanes + lane, place) for lane in range(self.shape.lanes)]
            )
            if taken is not None:
                total = taken if total is None else self.builder.fadd(total, taken)
        return total

    def position(self, lane: int, place: int) -> int | None:
        """What a lane of results takes from the vectors of all rows; None if it lies behind those of its row."""
        shape = self.shape
        row, q = divmod(lane, shape.length) if shape.length else (0, lane)
        position, behind = shape.stride * q + place, shape.vectors * shape.lanes
        return None if position >= behind or row >= shape.packed else row * behind + position

    def taken(self, vectors: list[Any], positions: list[int | None]) -> Any:
        """The elements at some positions, else zero; None if all are."""
        lanes, there = self.shape.lanes, [position for position in positions if position is not None]
        if not there:
            return None
        first, last = there[0] // lanes, there[-1] // lanes
        inside = [position is not None for position in positions]
        found = picked(
            self.emit, vectors[first : last + 1], [(first * lanes if p is None else p) - first * lanes for p in positions]
        )
        if all(inside):
            return found
        return self.builder.select(ir.Constant(ir.VectorType(ir.IntType(1), lanes), inside), found, self.emit.zero)


@intrinsic
def _boxes(
    typingctx: Any, shape: Any, dtypes: Any, x: Any, lists: Any, y: Any, shares: Any, flags: Any, job: Any
) -> Any:  # fmt: skip
    check_kinds((shape, dtypes), (x, lists, y, shares, flags, job))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        given = dict(zip(("x", "lists", "y", "shares", "flags", "job"), args[2:], strict=True))
        _Boxes(context, builder, BoxShape(*shape.value), dtypes.value, given).planes()
        return context.get_dummy_value()

    return types.void(shape, dtypes, *[x] * 6), codegen


@kernel
def boxes(
    shape: Tag, dtypes: Tag, x: Address, lists: Address, y: Address, shares: Address, flags: Address, job: Address
) -> None:  # fmt: skip
    """Some rows of results.

    Parameters
    ----------
    shape : Tag
        A `BoxShape`.
    dtypes : Tag
        A pair: that of the arrays, and that of sums, float32 or float64.
    x, y : Address
        The first plane, and its first row of results. Elements lie next to each other, and so do rows of results: without masks
        that store fast, what lies behind a row may be overwritten before the rows there get their results.
    lists : Address
        For each of the rows of results int64 numbers: how many rows of x it reads; as float64, its scale; the byte offset of each
        of those in the plane.
    shares : Address
        By which each result of the rows of a chunk is multiplied, beside the scale: of the dtype of sums, to the last chunk's end.
    flags : Address
        A table of `emit.flag_table`, for the dtype of sums: which lanes exist, for each chunk that is not inside the row the
        vectors of x, then those of results.
    job : Address
        Of int64 numbers, in the order of `BOX`: planes, and rows of results of each; bytes from plane to plane of x and of y,
        from list to list, from row to row of y; from where a row of x begins to where the first chunk reads, and from there to the
        next chunk; from which to which chunk they lie inside a row, and how many there are; lines of memory to be fetched ahead
        for each plane, or for the rows that are taken together, and the bytes of x for each row of results.
    """
    _boxes(shape, dtypes, x, lists, y, shares, flags, job)
