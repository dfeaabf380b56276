"""Rows reduced with the rows that lie at fixed distances behind them: columns of windows; or one row copied to all of these.

Of the largest elements the places may be written too, as integers of the elements' size: a NaN is larger than all, and of equal
ones the first stays.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds, host, rolled

__all__ = ["STACK", "stacks"]

STACK = ("blocks", "x_block", "y_block", "rows", "x_step", "y_step", "count", "places", "position", "volume")
AHEAD = 4096
"""Bytes that what is read is fetched ahead: masked loads of short rows train no prefetcher."""
_i32, _i64 = ir.IntType(32), ir.IntType(64)


class _Stacks:
    """The code of one call of `stacks`."""

    def __init__(self, builder: Any, shape: Any, dtype: Any, given: dict[str, Any]):
        self.kind, lanes, taps = shape
        self.builder, self.emit, self.given = builder, Emitter(builder, dtype, lanes), given
        self.item = self.emit.width // lanes
        given.update({name: self.emit.offset(given["job"], number) for number, name in enumerate(STACK)})
        self.offsets = [self.emit.offset(given["job"], len(STACK) + tap) for tap in range(taps)]

    def blocks(self) -> None:
        """All rows of all blocks."""
        builder, given = self.builder, self.given
        begin, position = cgutils.alloca_once_value(builder, given["position"]), cgutils.alloca_once(builder, _i64)
        source, target = (cgutils.alloca_once(builder, given[side].type) for side in "xy")
        with cgutils.for_range(builder, given["blocks"]) as block:
            for slot, side in ((source, "x"), (target, "y")):
                builder.store(self.emit.at(given[side], builder.mul(block.index, given[f"{side}_block"])), slot)
            builder.store(builder.load(begin), position)
            with cgutils.for_range(builder, given["rows"]):
                self.row(*map(builder.load, (source, target, position)))
                for slot, side in ((source, "x"), (target, "y")):
                    builder.store(self.emit.at(builder.load(slot), given[f"{side}_step"]), slot)
                self.advance(position, given["x_step"])
            self.advance(begin, given["x_block"])

    def row(self, source: Any, target: Any, position: Any) -> None:
        """A row; `position` is that of its first element in its channel. Most are short: loops are not unrolled."""
        builder, emit = self.builder, self.emit
        vectors = builder.udiv(self.given["count"], _i64(emit.lanes))
        left = builder.sub(self.given["count"], emit.times(vectors, emit.lanes))
        # rows are written one after the other: in turns they would be lines of several pages
        targets = [emit.at(target, offset) for offset in self.offsets] if self.kind == "copy" else [target]
        for row_start in targets:
            with rolled(builder, vectors) as vector:
                self.column(source, row_start, vector, position, None)
            with builder.if_then(builder.icmp_signed(">", left, _i64(0))):
                self.column(source, row_start, vectors, position, emit.first(left))

    def advance(self, slot: Any, step: Any) -> None:
        """Let a position go on by less than a channel, into the next one where this one ends."""
        builder, volume = self.builder, self.given["volume"]
        behind = builder.add(builder.load(slot), self.elements(step))
        builder.store(builder.select(builder.icmp_signed("<", behind, volume), behind, builder.sub(behind, volume)), slot)

    def elements(self, size: Any) -> Any:
        """How many elements so many bytes are."""
        return self.builder.udiv(size, _i64(self.item))

    def column(self, source: Any, target: Any, number: Any, position: Any, mask: Any) -> None:
        """A vector of a row, or the lanes of a mask; `position` is that of the row."""
        here = self.emit.times(number, self.emit.width)
        source, target = self.emit.at(source, here), self.emit.at(target, here)
        if self.kind == "copy":
            self.store(self.load(source, mask), target, mask)
            return
        values = []
        for offset in self.offsets:
            self.emit.prefetch(self.emit.at(self.emit.at(source, offset), AHEAD), write=False)
            values.append(self.load(self.emit.at(source, offset), mask))
        if self.kind == "argmax":
            largest, places = self.placed(values, self.builder.add(position, self.emit.times(number, self.emit.lanes)))
        else:
            largest, places = self.largest(values), None
        if mask is not None and not host().masks(self.item, write=True):  # the row behind this one is written after it
            largest, mask = self.builder.select(mask, largest, self.emit.constant(float("-inf"))), None
        if places is not None:
            self.store(places, self.emit.at(target, self.given["places"]), mask)
        self.store(largest, target, mask)

    def placed(self, values: list[Any], position: Any) -> tuple[Any, Any]:
        """The first of the largest elements or NaNs, and their places, seen as elements; `position`: of the first lane."""
        builder, emit = self.builder, self.emit
        kind = ir.IntType(8 * emit.width // emit.lanes)
        lanes = ir.Constant(ir.VectorType(kind, emit.lanes), list(range(emit.lanes)))
        starts = [builder.add(position, self.elements(offset)) for offset in self.offsets]
        first, *others = (
            builder.add(emit.spread(start if kind == _i64 else builder.trunc(start, kind)), lanes) for start in starts
        )
        most, place = values[0], first
        for value, other in zip(values[1:], others, strict=True):
            wins = builder.and_(builder.fcmp_unordered(">", value, most), builder.fcmp_ordered("ord", most, most))
            most, place = builder.select(wins, value, most), builder.select(wins, other, place)
        return most, builder.bitcast(place, emit.vector)

    def largest(self, values: list[Any]) -> Any:
        """The first of the largest elements, NaN if one is."""
        builder, most = self.builder, values[0]
        for value in values[1:]:
            most = builder.select(builder.fcmp_ordered(">", value, most), value, most)
        pairs = zip(values[::2], [*values[1::2], values[-1]], strict=False)
        nans = functools.reduce(builder.or_, (builder.fcmp_unordered("uno", *pair) for pair in pairs))
        return builder.select(nans, self.emit.constant(float("nan")), most)

    def load(self, address: Any, mask: Any) -> Any:
        """A vector, or the lanes of a mask."""
        return self.emit.load(address) if mask is None else self.emit.load_masked(address, mask)

    def store(self, value: Any, address: Any, mask: Any) -> None:
        """Write a vector, or the lanes of a mask."""
        if mask is None:
            self.emit.store(value, address)
        else:
            self.emit.store_masked(value, address, mask)


@intrinsic
def _stacks(typingctx: Any, shape: Any, dtype: Any, x: Any, y: Any, job: Any) -> Any:
    check_kinds((shape, dtype), (x, y, job))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _Stacks(builder, shape.value, dtype, dict(zip(("x", "y", "job"), args[2:], strict=True))).blocks()
        return context.get_dummy_value()

    return types.void(shape, dtype, x, y, job), codegen


@kernel
def stacks(shape: Tag, dtype: Tag, x: Address, y: Address, job: Address) -> None:
    """Some blocks of rows.

    Parameters
    ----------
    shape : Tag
        (kind, lanes, taps). Kinds: "max", over the taps of x; "argmax", which also writes places; "copy", to the taps of
        y.
    dtype : Tag
        float32 or float64.
    x, y : Address
        The first element of the first row of the first block. Elements lie next to each other. Of maxima, rows of y come one
        after the other, and without masks that store fast, minus infinity may be written to what is less than a vector behind
        each, and anything to what lies so behind its places.
    job : Address
        Of int64 numbers, in the order of `STACK`: how many blocks; the bytes from one to the next in x and in y; rows of a block,
        and the bytes from one to the next; elements of a row; for "argmax" the bytes from y to the places, the position of x in its
        channel, and the positions of a channel. Behind them, the bytes by which each tap lies behind its row.
    """
    _stacks(shape, dtype, x, y, job)
