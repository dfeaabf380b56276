"""Rows woven from the phases of a stride, in registers: the reverse of what `copies.split` does."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds

__all__ = ["weave"]

_i64 = ir.IntType(64)


def _woven(emit: Emitter, phases: list[Any]) -> list[Any]:
    """The elements of so many vectors in turn, as vectors that follow each other."""
    count, lanes = len(phases), emit.lanes
    if count % 2 == 0:
        halves = zip(_woven(emit, phases[::2]), _woven(emit, phases[1::2]), strict=True)
        both = [[half * lanes // 2 + i // 2 + i % 2 * lanes for i in range(lanes)] for half in range(2)]
        return [emit.shuffle(a, b, picked) for a, b in halves for picked in both]
    found = []
    for number in range(count):
        places = [number * lanes + lane for lane in range(lanes)]
        result = phases[0]
        for phase, vector in enumerate(phases):
            picked = [lanes + u // count if u % count == phase else lane for lane, u in enumerate(places)]
            result = emit.shuffle(result, vector, picked)
        found.append(result)
    return found


@intrinsic
def _weave(typingctx: Any, shape: Any, dtype: Any, x: Any, x_phase: Any, first: Any, y: Any, count: Any) -> Any:
    check_kinds((shape, dtype), (x, y))
    phases, lanes = shape.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, x_phase, first, y, count = args
        emit = Emitter(builder, dtype, lanes)
        end, each = builder.add(first, count), phases * lanes
        start = builder.sdiv(first, _i64(each))
        stop = builder.sdiv(builder.add(end, _i64(each - 1)), _i64(each))
        origin = emit.at(y, builder.mul(builder.neg(first), _i64(emit.width // lanes)))
        with cgutils.for_range_slice(builder, start, stop, _i64(1)) as (vector, _):
            source = emit.at(x, builder.mul(vector, _i64(emit.width)))
            loaded = [emit.load(emit.at(source, emit.times(x_phase, phase))) for phase in range(phases)]
            place, target = builder.mul(vector, _i64(each)), emit.at(origin, builder.mul(vector, _i64(phases * emit.width)))
            inside = builder.and_(
                builder.icmp_signed(">=", place, first), builder.icmp_signed("<=", builder.add(place, _i64(each)), end)
            )
            with builder.if_else(inside) as (whole, part):
                with whole:
                    for number, one in enumerate(_woven(emit, loaded)):
                        emit.store(one, emit.at(target, number * emit.width))
                with part:
                    for number, one in enumerate(_woven(emit, loaded)):
                        begin = builder.add(place, _i64(number * lanes))
                        before = emit.first(builder.sub(first, begin))
                        mask = builder.and_(emit.first(builder.sub(end, begin)), builder.not_(before))
                        emit.store_masked(one, emit.at(target, number * emit.width), mask)
        return context.get_dummy_value()

    return types.void(shape, dtype, x, types.int64, types.int64, y, types.int64), codegen


@kernel(emitted=True)
def weave(shape: Tag, dtype: Tag, x: Address, x_phase: int, first: int, y: Address, count: int) -> None:
    """y[i] = x[phase][place] for i < count, where first + i = place * phases + phase. Whole vectors of x are read.

    The shape is (phases, lanes); phases of x lie `x_phase` bytes apart.
    """
    _weave(shape, dtype, x, x_phase, first, y, count)
