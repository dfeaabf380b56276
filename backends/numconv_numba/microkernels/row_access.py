"""Vectors of the elements of a row, every one or every 2nd, 3rd, ...: masked where they lie outside the row, which is never read.

So padding takes no part, and a row that is shorter than a vector costs as little as one vector.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from .emit import Emitter

__all__ = ["MAX_REACH", "MAX_STRIDE", "Row", "picked"]

MAX_STRIDE = 4
"""Of the elements that vectors are taken apart for, or woven from."""
MAX_REACH = 1 << 30
"""Positions that a row and the windows on it reach: masks compare 32 bits."""
_i32, _i64 = ir.IntType(32), ir.IntType(64)


class Row:
    """Vectors of every `stride`-th element of a row; a stride of 0 is one that is given at the call."""

    def __init__(self, builder: Any, lanes: int, stride: int, dtype: Any, given: dict[str, Any]):
        self.builder, self.emit, self.stride, self.given = builder, Emitter(builder, dtype, lanes), stride, given
        self.item = self.emit.width // lanes
        self.numbers = ir.VectorType(_i32, lanes)

    def positions(self, start: Any, step: int = 1) -> Any:
        """start + step * lane."""
        steps = ir.Constant(self.numbers, [step * lane for lane in range(self.emit.lanes)])
        return self.builder.add(self.emit.spread(self.builder.trunc(start, _i32)), steps)

    def inside(self, start: Any, step: int = 1) -> Any:
        """The mask of the positions that lie in the row."""
        size = self.emit.spread(self.builder.trunc(self.given["size"], _i32))
        return self.builder.icmp_unsigned("<", self.positions(start, step), size)

    def fetch(self, address: Any, start: Any, whole: bool, other: Any = None, ahead: int = 0) -> Any:
        """The elements at start + ahead + stride * lane, zero or `other` outside the row; `address` is that of the one at start."""
        builder, emit = self.builder, self.emit
        if self.stride == 0:
            return self.gather(address, start)
        vectors = []
        for number in range(self.stride):
            place = emit.at(address, number * emit.width)
            if whole:
                vectors.append(emit.load(place))
            else:
                vectors.append(emit.load_masked(place, self.inside(builder.add(start, _i64(number * emit.lanes))), other))
        return picked(emit, vectors, range(ahead, self.stride * emit.lanes, self.stride))

    def gather(self, address: Any, start: Any) -> Any:
        """`fetch` for a stride that is given at the call."""
        builder, emit, stride = self.builder, self.emit, self.given["stride"]
        kind = ir.VectorType(_i64, emit.lanes)
        steps = builder.mul(emit.spread(stride), ir.Constant(kind, list(range(emit.lanes))))
        positions = builder.add(emit.spread(start), steps)
        mask = builder.icmp_unsigned("<", positions, emit.spread(self.given["size"]))
        offsets = builder.mul(steps, ir.Constant(kind, [self.item] * emit.lanes))
        addresses = builder.add(emit.spread(builder.ptrtoint(address, _i64)), offsets)
        pointers = builder.inttoptr(addresses, ir.VectorType(cgutils.voidptr_t, emit.lanes))
        signature = ir.FunctionType(emit.vector, [pointers.type, _i32, mask.type, emit.vector])
        name = f"llvm.masked.gather.v{emit.lanes}f{8 * self.item}.v{emit.lanes}p0"
        function = cgutils.get_or_insert_function(builder.module, signature, name)
        return builder.call(function, [pointers, _i32(self.item), mask, emit.zero])


def picked(emit: Emitter, vectors: list[Any], indices: Any) -> Any:
    """The lanes of some vectors, one behind the other, at these indices; from each half of more than two, then from both."""
    if len(vectors) <= 2:
        return emit.shuffle(vectors[0], vectors[-1], indices)
    half = 2 if len(vectors) < 5 else 4
    first = [index if index < half * emit.lanes else 0 for index in indices]
    second = [index - half * emit.lanes if index >= half * emit.lanes else 0 for index in indices]
    chosen = [lane + emit.lanes * (index >= half * emit.lanes) for lane, index in enumerate(indices)]
    return emit.shuffle(picked(emit, vectors[:half], first), picked(emit, vectors[half:], second), chosen)
