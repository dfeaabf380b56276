"""Rows moved: each result is an element of a row of the source, or zero."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import check_kinds
from .row_access import Row

__all__ = ["MOVE", "move"]

MOVE = ("rows", "y_step", "count", "length", "start", "stride", "borders")
_i64 = ir.IntType(64)


class _Moves(Row):
    """The code of one call of `move`."""

    def rows(self) -> None:
        """All rows of the call: first the vectors that need masks, each of all rows, then row by row those inside it."""
        builder, emit, given = self.builder, self.emit, self.given
        given["size"] = given["length"]
        step = builder.mul(_i64(self.stride) if self.stride else given["stride"], _i64(emit.lanes))
        vectors = builder.sdiv(builder.add(given["count"], _i64(emit.lanes - 1)), _i64(emit.lanes))
        before = builder.sdiv(builder.sub(builder.sub(step, _i64(1)), given["start"]), step)
        inside = builder.sdiv(builder.sub(given["length"], given["start"]), step)
        begin = self.least(self.most(before, _i64(0)), vectors)
        end = self.most(self.least(inside, builder.sdiv(given["count"], _i64(emit.lanes))), begin)
        whole = builder.sub(end, begin)
        with cgutils.for_range(builder, builder.sub(vectors, whole)) as loop:
            skipped = builder.select(builder.icmp_signed("<", loop.index, begin), _i64(0), whole)
            number = builder.add(loop.index, skipped)
            stored = emit.first(builder.sub(given["count"], builder.mul(number, _i64(emit.lanes))))
            with self.each_row() as (row, place, there):
                target = emit.at(place, builder.mul(number, _i64(emit.width)))
                with builder.if_else(there) as (read, absent):
                    with read:
                        start = builder.add(given["start"], builder.mul(number, step))
                        vector = self.fetch(self.source(row, number, step), start, False)
                        emit.store_masked(vector, target, stored)
                    with absent:
                        emit.store_masked(emit.zero, target, stored)
        some = builder.icmp_signed(">", builder.add(whole, given["borders"]), _i64(0))
        with builder.if_then(some), self.each_row() as (row, place, there), builder.if_else(there) as (read, absent):
            for block in (read, absent):
                with block:
                    source, target = self.source(row, begin, step), emit.at(place, builder.mul(begin, _i64(emit.width)))
                    with cgutils.for_range(builder, whole) as loop:
                        address = emit.at(source, builder.mul(builder.mul(loop.index, step), _i64(self.item)))
                        at = builder.add(given["start"], builder.mul(builder.add(begin, loop.index), step))
                        vector = self.fetch(address, at, True) if block is read else emit.zero
                        emit.store(vector, emit.at(target, builder.mul(loop.index, _i64(emit.width))))
                    if block is read:
                        self.borders(row, place)

    def least(self, a: Any, b: Any) -> Any:
        """The smaller number."""
        return self.builder.select(self.builder.icmp_signed("<", a, b), a, b)

    def most(self, a: Any, b: Any) -> Any:
        """The larger number."""
        return self.builder.select(self.builder.icmp_signed(">", a, b), a, b)

    @contextlib.contextmanager
    def each_row(self) -> Iterator[tuple[Any, Any, Any]]:
        """A loop over the rows: where they begin in x and y, and whether there is a row of x."""
        builder, emit, given = self.builder, self.emit, self.given
        with cgutils.for_range(builder, given["rows"]) as loop:
            offset = emit.offset(given["offsets"], loop.index)
            place = emit.at(given["y"], builder.mul(loop.index, given["y_step"]))
            yield emit.at(given["x"], offset), place, builder.icmp_signed(">=", offset, _i64(0))

    def source(self, row: Any, number: Any, step: Any) -> Any:
        """Where a vector of results begins to read."""
        builder = self.builder
        start = builder.add(self.given["start"], builder.mul(number, step))
        return self.emit.at(row, builder.mul(start, _i64(self.item)))

    def borders(self, row: Any, place: Any) -> None:
        """The elements that are copied one by one."""
        builder, emit, given = self.builder, self.emit, self.given
        element = emit.vector.element.as_pointer()
        with cgutils.for_range(builder, given["borders"]) as loop:
            entry = builder.mul(loop.index, _i64(2))
            target, source = (
                builder.bitcast(emit.at(base, emit.offset(given["border"], builder.add(entry, _i64(which)))), element)
                for which, base in enumerate((place, row))
            )
            builder.store(builder.load(source), target)


@intrinsic
def _move(typingctx: Any, shape: Any, dtype: Any, x: Any, offsets: Any, y: Any, job: Any, border: Any) -> Any:
    check_kinds((shape, dtype), (x, offsets, y, job, border))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        given = dict(zip(("x", "offsets", "y", "job", "border"), args[2:], strict=True))
        code = _Moves(builder, *shape.value, dtype, given)
        given.update({name: code.emit.offset(given["job"], number) for number, name in enumerate(MOVE)})
        code.rows()
        return context.get_dummy_value()

    return types.void(shape, dtype, *[x] * 5), codegen


@kernel
def move(shape: Tag, dtype: Tag, x: Address, offsets: Address, y: Address, job: Address, border: Address) -> None:
    """y[row, i] = x[offsets[row] + start + stride * i], zero where this position lies outside the row or the offset is negative.

    Parameters
    ----------
    shape : Tag
        (lanes, stride); a stride of 0 is one that the job has.
    dtype : Tag
        float32 or float64: any elements of that size.
    x, y : Address
        Elements of a row lie next to each other.
    offsets : Address
        Of the int64 byte offsets of the rows.
    job : Address
        Of int64 numbers, in the order of `MOVE`: how many rows; the bytes from row to row of y; results of a row; positions of
        a row of x; the position for result 0; the stride; how many elements of a row are copied one by one afterwards.
    border : Address
        Of their int64 pairs: byte offsets in the row of y and in that of x.
    """
    _move(shape, dtype, x, offsets, y, job, border)
