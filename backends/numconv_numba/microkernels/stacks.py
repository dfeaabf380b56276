"""Rows reduced with the rows that lie at fixed distances behind them: columns of windows; or one row copied to all of these."""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds

__all__ = ["STACK", "stacks"]

STACK = ("blocks", "x_block", "y_block", "rows", "x_step", "y_step", "count")
AHEAD = 4096
"""Bytes that what is read is fetched ahead: masked loads of short rows train no prefetcher."""
_i64 = ir.IntType(64)


class _Stacks:
    """The code of one call of `stacks`."""

    def __init__(self, builder: Any, shape: Any, dtype: Any, given: dict[str, Any]):
        self.kind, lanes, taps = shape
        self.builder, self.emit, self.given = builder, Emitter(builder, dtype, lanes), given
        given.update({name: self.emit.offset(given["job"], number) for number, name in enumerate(STACK)})
        self.offsets = [self.emit.offset(given["job"], len(STACK) + tap) for tap in range(taps)]

    def blocks(self) -> None:
        """All rows of all blocks."""
        builder, given = self.builder, self.given
        vectors = builder.udiv(given["count"], _i64(self.emit.lanes))
        done = builder.mul(vectors, _i64(self.emit.lanes))
        left = builder.sub(given["count"], done)
        rest, some = self.emit.first(left), builder.icmp_signed(">", left, _i64(0))
        with cgutils.for_range(builder, given["blocks"]) as block, cgutils.for_range(builder, given["rows"]) as row:
            source, target = (
                builder.add(builder.mul(block.index, given[f"{side}_block"]), builder.mul(row.index, given[f"{side}_step"]))
                for side in "xy"
            )
            source, target = self.emit.at(given["x"], source), self.emit.at(given["y"], target)
            # rows are written one after the other: in turns they would be lines of several pages
            targets = [self.emit.at(target, offset) for offset in self.offsets] if self.kind == "copy" else [target]
            for row_start in targets:
                with cgutils.for_range(builder, vectors) as vector:
                    here = builder.mul(vector.index, _i64(self.emit.width))
                    self.column(self.emit.at(source, here), self.emit.at(row_start, here), None)
                with builder.if_then(some):
                    here = builder.mul(vectors, _i64(self.emit.width))
                    self.column(self.emit.at(source, here), self.emit.at(row_start, here), rest)

    def column(self, source: Any, target: Any, mask: Any) -> None:
        """A vector of a row, or the lanes of a mask."""
        if self.kind == "copy":
            self.store(self.load(source, mask), target, mask)
            return
        values = []
        for offset in self.offsets:
            self.emit.prefetch(self.emit.at(self.emit.at(source, offset), AHEAD), write=False)
            values.append(self.load(self.emit.at(source, offset), mask))
        self.store(self.largest(values) if self.kind == "max" else self.sum(values), target, mask)

    def sum(self, values: list[Any]) -> Any:
        """The sum of vectors."""
        return functools.reduce(self.builder.fadd, values)

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
        (kind, lanes, taps). Kinds: "max" and "sum", over the taps of x; "copy", to the taps of y.
    dtype : Tag
        float32 or float64.
    x, y : Address
        The first element of the first row of the first block. Elements lie next to each other.
    job : Address
        Of int64 numbers, in the order of `STACK`: how many blocks; the bytes from one to the next in x and in y; rows of a block,
        and the bytes from one to the next; elements of a row. Behind them, the bytes by which each tap lies behind its row.
    """
    _stacks(shape, dtype, x, y, job)
