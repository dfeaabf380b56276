"""Rows of x packed: their phases apart, zeros around them, by vector loads and shuffles."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds

__all__ = ["split"]

_i64 = ir.IntType(64)


def _phase(emit: Emitter, vectors: list[Any], phase: int) -> Any:
    """The elements of neighbouring vectors at one remainder by their number."""
    lanes, result = emit.lanes, vectors[0]
    for number, vector in enumerate(vectors):
        places = [len(vectors) * lane + phase for lane in range(lanes)]
        mine = [place - number * lanes for place in places]
        result = emit.shuffle(
            result, vector, [lanes + m if 0 <= m < lanes else lane if number else 0 for lane, m in enumerate(mine)]
        )
    return result


def _phases(emit: Emitter, vectors: list[Any]) -> list[Any]:
    """The elements of neighbouring vectors at each remainder by their number."""
    if len(vectors) == 1:
        return vectors
    if len(vectors) % 2:
        return [_phase(emit, vectors, phase) for phase in range(len(vectors))]
    pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
    even = [emit.shuffle(a, b, range(0, 2 * emit.lanes, 2)) for a, b in pairs]
    odd = [emit.shuffle(a, b, range(1, 2 * emit.lanes, 2)) for a, b in pairs]
    return [part for both in zip(_phases(emit, even), _phases(emit, odd), strict=True) for part in both]


@intrinsic
def _split(typingctx: Any, shape: Any, dtype: Any, x: Any, start: Any, size: Any, y: Any, y_step: Any, count: Any) -> Any:
    check_kinds((shape, dtype), (x, y))
    each, lanes = shape.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, start, size, y, y_step, count = args
        emit = Emitter(builder, dtype, lanes)
        item = _i64(emit.width // emit.lanes)
        vectors = builder.sdiv(builder.add(count, _i64(emit.lanes - 1)), _i64(emit.lanes))
        with cgutils.for_range(builder, vectors) as vector:
            position = builder.add(start, builder.mul(vector.index, _i64(each * emit.lanes)))
            left = builder.sub(count, builder.mul(vector.index, _i64(emit.lanes)))
            source, target = emit.at(x, builder.mul(position, item)), emit.at(y, builder.mul(vector.index, _i64(emit.width)))
            inside = builder.and_(
                builder.icmp_signed(">=", position, _i64(0)),
                builder.icmp_signed("<=", builder.add(position, _i64(each * emit.lanes)), size),
            )
            whole = builder.and_(inside, builder.icmp_signed(">=", left, _i64(emit.lanes)))
            with builder.if_else(whole) as (fast, careful):
                with fast:
                    loaded = [emit.load(emit.at(source, v * emit.width)) for v in range(each)]
                    for p, part in enumerate(_phases(emit, loaded)):
                        emit.store(part, emit.at(target, emit.times(y_step, p)))
                with careful:
                    loaded = []
                    for v in range(each):
                        first = builder.add(position, _i64(v * emit.lanes))
                        mask = builder.and_(emit.first(builder.sub(size, first)), builder.not_(emit.first(builder.neg(first))))
                        loaded.append(emit.load_masked(emit.at(source, v * emit.width), mask))
                    wanted = emit.first(left)
                    for p, part in enumerate(_phases(emit, loaded)):
                        emit.store_masked(part, emit.at(target, emit.times(y_step, p)), wanted)
        return context.get_dummy_value()

    integers = types.int64, types.int64
    return types.void(shape, dtype, x, *integers, y, *integers), codegen


@kernel(no_cfunc_wrapper=False)
def split(
    shape: Tag, dtype: Tag, x: Address, start: int, size: int, y: Address, y_step: int, count: int, rows: int, x_row: int,
    y_row: int,
) -> None:  # fmt: skip
    """y[p][i] = x[start + phases * i + p] for i < count and each phase p, zero where that lies outside 0..size; for so many rows.

    The shape is (phases, lanes). Phases of y lie `y_step` bytes apart, rows of x and y `x_row` and `y_row`.
    """
    for row in range(rows):
        _split(shape, dtype, x + row * x_row, start, size, y + row * y_row, y_step, count)
