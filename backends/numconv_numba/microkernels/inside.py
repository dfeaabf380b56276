"""Windows inside a plane, which reach no padding: vectors of results in one pass, from the rows of x that lie under their taps.

Neighbouring results lie in the lanes. The ends of rows run into the rows behind them, which get their results later, so that no
lane needs a mask; where there is no such row, the same code takes masks.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds, rolled
from .row_access import picked
from .windows import write_places

__all__ = ["INSIDE", "InsideShape", "inside", "vectors_under"]

INSIDE = ("blocks", "x_block", "y_block", "rows", "x_step", "y_step", "results", "size", "position", "volume", "masked", "share")
LINE, AHEAD = 64, 4096
"""Bytes that one prefetch brings; how far ahead x is fetched: short rows train no prefetcher."""
_i32, _i64, _double = ir.IntType(32), ir.IntType(64), ir.DoubleType()


class InsideShape(NamedTuple):
    """What of a problem is compiled.

    Attributes
    ----------
    kind : str
        "max"; "argmax", which also writes places; "mean".
    lanes : int
    stride : int
        Along the rows.
    places : tuple of int
        The positions of the taps along a row, for result 0.
    outer : int
        Taps along the other axes.
    """

    kind: str
    lanes: int
    stride: int
    places: tuple[int, ...]
    outer: int


def vectors_under(shape: InsideShape) -> int:
    """Vectors of a row of x from which one vector of results takes its elements."""
    return (shape.stride * (shape.lanes - 1) + shape.places[-1]) // shape.lanes + 1


class _Inside:
    """The code of one call of `inside`."""

    def __init__(self, builder: Any, shape: InsideShape, dtype: Any, given: dict[str, Any]):
        self.builder, self.shape, self.given = builder, shape, given
        self.emit = Emitter(builder, dtype, shape.lanes)
        self.item = self.emit.width // shape.lanes
        given.update({name: self.emit.offset(given["job"], number) for number, name in enumerate(INSIDE)})
        self.offsets = [self.emit.offset(given["job"], len(INSIDE) + tap) for tap in range(shape.outer)]

    def blocks(self, masked: bool) -> None:
        """All rows of all blocks."""
        builder, emit, given = self.builder, self.emit, self.given
        begin = cgutils.alloca_once(builder, _i64)
        builder.store(given["position"], begin)
        with cgutils.for_range(builder, given["blocks"]) as block:
            x, y = (emit.at(given[side], builder.mul(block.index, given[f"{side}_block"])) for side in "xy")
            before, position = builder.mul(block.index, given["y_block"]), builder.load(begin)
            with cgutils.for_range(builder, given["rows"]) as row:
                below, beside = (builder.mul(row.index, given[f"{side}_step"]) for side in "xy")
                places = builder.mul(self.elements(builder.add(before, beside)), _i64(8))
                at = builder.add(position, self.elements(below))
                self.row(emit.at(x, below), emit.at(y, beside), emit.at(given["places"], places), at, masked)
            behind = builder.add(position, self.elements(given["x_block"]))
            next_one = builder.icmp_signed("<", behind, given["volume"])  # else in the next channel
            builder.store(builder.select(next_one, behind, builder.sub(behind, given["volume"])), begin)

    def elements(self, size: Any) -> Any:
        """How many elements so many bytes are."""
        return self.builder.udiv(size, _i64(self.item))

    def row(self, x: Any, y: Any, places: Any, position: Any, masked: bool) -> None:
        """A row of results; `position` is that of its first element of x in its channel."""
        builder, emit, given, lanes = self.builder, self.emit, self.given, self.shape.lanes
        count = builder.udiv(builder.add(given["results"], _i64(lanes - 1)), _i64(lanes))
        with rolled(builder, count) as number:
            first = builder.mul(number, _i64(lanes))
            before = builder.mul(first, _i64(self.shape.stride))
            there = builder.sub(given["size"], before) if masked else None
            loaded = self.loaded(emit.at(x, builder.mul(before, _i64(self.item))), there)
            value, place = self.placed(loaded) if self.shape.kind == "argmax" else (self.columns_first(loaded), None)
            left, target = builder.sub(given["results"], first), emit.at(y, builder.mul(first, _i64(self.item)))
            if masked:
                emit.store_masked(value, target, emit.first(left))
            else:
                emit.store(value, target)
            if place is not None:
                place = builder.add(place, emit.spread(builder.trunc(position, _i32)))
                write_places(emit, builder, place, first, left if masked else None, _i64(self.shape.stride), places)

    def loaded(self, x: Any, there: Any) -> list[list[Any]]:
        """Of each outer tap the vectors under the results; of a row with so many elements from `x` on, the others are undefined."""
        builder, emit, step = self.builder, self.emit, self.shape.stride * self.emit.width
        found = []
        for offset in self.offsets:
            row = emit.at(x, offset)
            for line in range(-(-step // LINE)):
                emit.prefetch(emit.at(row, AHEAD + line * LINE), write=False)
            places = [emit.at(row, number * emit.width) for number in range(vectors_under(self.shape))]
            if there is None:
                found.append(list(map(emit.load, places)))
                continue
            lefts = [builder.sub(there, _i64(number * self.shape.lanes)) for number in range(len(places))]
            found.append([emit.load_masked(place, emit.first(left)) for place, left in zip(places, lefts, strict=True)])
        return found

    def under(self, vectors: list[Any], place: int) -> Any:
        """What a tap along the row reads for each result."""
        lanes, last = self.shape.lanes, place + self.shape.stride * (self.shape.lanes - 1)
        first = place // lanes
        start = place - first * lanes
        indices = range(start, start + self.shape.stride * lanes, self.shape.stride)
        return picked(self.emit, vectors[first : last // lanes + 1], indices)

    def columns_first(self, loaded: list[list[Any]]) -> Any:
        """The largest elements, or the means: first of each column, so that fewer are shuffled."""
        columns = [functools.reduce(self.joined, column) for column in zip(*loaded, strict=True)]
        total = functools.reduce(self.joined, [self.under(columns, place) for place in self.shape.places])
        return self.builder.fmul(total, self.share()) if self.shape.kind == "mean" else total

    def joined(self, one: Any, other: Any) -> Any:
        """The sum, or the larger one, NaN if one is."""
        builder = self.builder
        if self.shape.kind == "mean":
            return builder.fadd(one, other)
        larger = builder.select(builder.fcmp_ordered(">", other, one), other, one)
        return builder.select(builder.fcmp_unordered("uno", one, other), self.emit.constant(float("nan")), larger)

    def share(self) -> Any:
        """One over the count of a window, in all lanes."""
        number = self.builder.bitcast(self.given["share"], _double)
        element = self.emit.vector.element
        return self.emit.spread(number if element == _double else self.builder.fptrunc(number, element))

    def placed(self, loaded: list[list[Any]]) -> tuple[Any, Any]:
        """The largest elements, and where from the row's first element on: the first of equal ones, and the first NaN, stay."""
        builder, emit, most, found = self.builder, self.emit, None, None
        for offset, vectors in zip(self.offsets, loaded, strict=True):
            start = builder.trunc(self.elements(offset), _i32)
            for place in self.shape.places:
                value, number = self.under(vectors, place), emit.spread(builder.add(start, _i32(place)))
                if most is None:
                    most, found = value, number
                    continue
                wins = builder.and_(builder.fcmp_unordered(">", value, most), builder.fcmp_ordered("ord", most, most))
                most, found = builder.select(wins, value, most), builder.select(wins, number, found)
        return most, found


@intrinsic
def _inside(typingctx: Any, shape: Any, dtype: Any, x: Any, y: Any, places: Any, job: Any) -> Any:
    check_kinds((shape, dtype), (x, y, places, job))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        given = dict(zip(("x", "y", "places", "job"), args[2:], strict=True))
        code = _Inside(builder, InsideShape(*shape.value), dtype, given)
        with builder.if_else(builder.icmp_signed("!=", given["masked"], _i64(0))) as (some, all_of_them):
            for block, masked in ((some, True), (all_of_them, False)):
                with block:
                    code.blocks(masked)
        return context.get_dummy_value()

    return types.void(shape, dtype, x, y, places, job), codegen


@kernel
def inside(shape: Tag, dtype: Tag, x: Address, y: Address, places: Address, job: Address) -> None:
    """Some blocks of rows of results.

    Parameters
    ----------
    shape : Tag
        An `InsideShape`.
    dtype : Tag
        float32 or float64.
    x, y, places : Address
        The first element of the first block; int64 places of "argmax" only. Elements lie next to each other, and so do rows of
        results: without masks, what lies behind a row may be overwritten before the rows there get their results, and what lies
        behind a row of x is read, to the last vector's end.
    job : Address
        Of int64 numbers, in the order of `INSIDE`: how many blocks; the bytes from one to the next in x and in y; rows of a block,
        and the bytes from one to the next; results of a row, and elements of one of x; the position of x in its channel, of so
        many positions; whether to take masks; as float64, one over the count of a window. Behind them, the bytes by which each
        outer tap lies behind its row.
    """
    _inside(shape, dtype, x, y, places, job)
