"""Loops that do nothing but multiply-add, or copy: the limits of the processor that measurements are compared with."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, helper, intrinsic, kernel
from numconv_numba.threads import parallel_for

from .emit import Emitter, check_kinds, emitter_of

__all__ = ["CHAINS", "copy_lines", "multiply_add"]

CHAINS = 12
"""Independent sums: more than the latency of a multiply-add times their number a cycle, and few enough for 16 registers."""


@intrinsic
def _multiply_add(typingctx: Any, lanes: Any, dtype: Any, data: Any, turns: Any) -> Any:
    check_kinds((lanes, dtype), (data,))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, data, turns = args
        emit = emitter_of(builder, dtype.value, lanes.value)
        sums, factor = [emit.accumulator() for _ in range(CHAINS)], emit.load(data)
        with cgutils.for_range(builder, turns):
            for slot in sums:
                builder.store(emit.fma(builder.load(slot), factor, factor), slot)
        total = emit.zero
        for slot in sums:
            total = builder.fadd(total, builder.load(slot))
        emit.store(total, data)
        return context.get_dummy_value()

    return types.void(lanes, dtype, data, types.int64), codegen


@helper
def _chains(begin, end, args):
    lanes, dtype, data, step, turns = args
    for item in range(begin, end):
        _multiply_add(lanes, dtype, data + item * step, turns)


@kernel
def multiply_add(lanes: Tag, dtype: Tag, region: int, workers: int, items: int, data: Address, step: int, turns: int) -> None:
    """`CHAINS` vectors of multiply-adds a turn, for each item with the vector at `step` bytes from that of the item before."""
    parallel_for(region, workers, items, _chains, (lanes, dtype, data, step, turns))


@intrinsic
def _copy(typingctx: Any, lanes: Any, dtype: Any, x: Any, y: Any, vectors: Any) -> Any:
    check_kinds((lanes, dtype), (x, y))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, y, vectors = args
        emit = Emitter(builder, dtype, lanes.value)
        with cgutils.for_range(builder, vectors) as vector:
            place = builder.mul(vector.index, ir.Constant(ir.IntType(64), emit.width))
            emit.store(emit.load(emit.at(x, place)), emit.at(y, place))
        return context.get_dummy_value()

    return types.void(lanes, dtype, x, y, types.int64), codegen


@helper
def _slices(begin, end, args):
    lanes, dtype, x, y, step, vectors = args
    for item in range(begin, end):
        _copy(lanes, dtype, x + item * step, y + item * step, vectors)


@kernel
def copy_lines(
    lanes: Tag, dtype: Tag, region: int, workers: int, items: int, x: Address, y: Address, step: int, vectors: int
) -> None:
    """y = x, where each item has so many vectors, `step` bytes from those of the item before."""
    parallel_for(region, workers, items, _slices, (lanes, dtype, x, y, step, vectors))
