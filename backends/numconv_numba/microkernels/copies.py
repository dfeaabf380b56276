"""Rows copied with a step: every element, every second, every fourth, by vector loads and shuffles."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from ..compiler import intrinsic
from .emit import Emitter, check_kinds

__all__ = ["copy_row", "split_row"]

_i64 = ir.IntType(64)


def _every(emit: Emitter, vectors: list[Any]) -> Any:
    """The elements at the multiples of ``len(vectors)``, which is a power of two, from neighbouring vectors."""
    evens = [2 * lane for lane in range(emit.lanes)]
    while len(vectors) > 1:
        vectors = [emit.shuffle(a, b, evens) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    return vectors[0]


@intrinsic
def copy_row(typingctx: Any, lanes: Any, step: Any, dtype: Any, x: Any, y: Any, count: Any) -> Any:
    """y[i] = x[step * i] for i < count; step is 1, 2 or 4. Nothing beyond the last element is read or written."""
    check_kinds((lanes, step, dtype), (x, y))
    each = step.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, _, x, y, count = args
        emit = Emitter(builder, dtype, lanes.value)

        def copy(source: Any, target: Any, left: Any) -> None:
            """One vector, of which `left` elements are wanted; None: all, and more of x follow."""
            parts = [emit.at(source, v * emit.width) for v in range(each)]
            if left is None:
                emit.store(_every(emit, [emit.load(part) for part in parts]), target)
                return
            reach = builder.add(builder.mul(builder.sub(left, _i64(1)), _i64(each)), _i64(1))
            masks = [emit.first(builder.sub(reach, _i64(v * emit.lanes))) for v in range(each)]
            loaded = [emit.load_masked(part, mask) for part, mask in zip(parts, masks, strict=True)]
            emit.store_masked(_every(emit, loaded), target, emit.first(left))

        def place(vector: Any) -> tuple[Any, Any]:
            return emit.at(x, builder.mul(vector, _i64(each * emit.width))), emit.at(y, builder.mul(vector, _i64(emit.width)))

        with builder.if_then(builder.icmp_signed(">", count, _i64(0))):
            whole = builder.sdiv(builder.sub(count, _i64(1)), _i64(emit.lanes))
            with cgutils.for_range(builder, whole) as vector:
                copy(*place(vector.index), None)
            copy(*place(whole), builder.sub(count, builder.mul(whole, _i64(emit.lanes))))
        return context.get_dummy_value()

    return types.void(lanes, step, dtype, x, y, types.int64), codegen


@intrinsic
def split_row(
    typingctx: Any, lanes: Any, phases: Any, dtype: Any, x: Any, start: Any, size: Any, y: Any, y_step: Any, count: Any
) -> Any:
    """y[p][i] = x[start + phases * i + p] for i < count and each phase p, zero where that lies outside 0..size.

    `phases` is 1, 2 or 4; phases of y lie `y_step` bytes apart.
    """
    check_kinds((lanes, phases, dtype), (x, y))
    each = phases.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, _, x, start, size, y, y_step, count = args
        emit = Emitter(builder, dtype, lanes.value)
        vectors = builder.sdiv(builder.add(count, _i64(emit.lanes - 1)), _i64(emit.lanes))
        with cgutils.for_range(builder, vectors) as vector:
            loaded = []
            for v in range(each):
                ahead = builder.add(builder.mul(vector.index, _i64(each * emit.lanes)), _i64(v * emit.lanes))
                position = builder.add(start, ahead)
                inside = emit.first(builder.sub(size, position))
                before = emit.first(builder.neg(position))
                mask = builder.and_(inside, builder.not_(before))
                loaded.append(emit.load_masked(emit.at(x, builder.mul(position, _i64(emit.width // emit.lanes))), mask))
            wanted = emit.first(builder.sub(count, builder.mul(vector.index, _i64(emit.lanes))))
            place = builder.mul(vector.index, _i64(emit.width))
            for p, part in enumerate(_phases(emit, loaded)):
                emit.store_masked(part, emit.at(emit.at(y, emit.times(y_step, p)), place), wanted)
        return context.get_dummy_value()

    integers = types.int64, types.int64
    return types.void(lanes, phases, dtype, x, *integers, y, *integers), codegen


def _phases(emit: Emitter, vectors: list[Any]) -> list[Any]:
    """The elements of neighbouring vectors at each remainder by their number, which is a power of two."""
    if len(vectors) == 1:
        return vectors
    pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
    even = [emit.shuffle(a, b, range(0, 2 * emit.lanes, 2)) for a, b in pairs]
    odd = [emit.shuffle(a, b, range(1, 2 * emit.lanes, 2)) for a, b in pairs]
    return [part for both in zip(_phases(emit, even), _phases(emit, odd), strict=True) for part in both]
