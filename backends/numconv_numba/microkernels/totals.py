"""Sums of rows: the lanes along a row, one chain of additions each."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import intrinsic

from .emit import Emitter, check_kinds, lanes_of, rolled

__all__ = ["add_rows"]

TOGETHER = 4, 1
"""Vectors of a row that are summed in one pass over the rows: enough chains to hide how long an addition takes."""
_i64 = ir.IntType(64)


@intrinsic
def add_rows(typingctx: Any, sums: Any, rows: Any, count: Any, width: Any, dtype: Any) -> Any:
    """sums += each of `count` rows of `width` elements, whole vectors, that follow each other: one chain each, in this order."""
    check_kinds((dtype,), (sums, rows))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        sums, rows, count, width, _ = args
        emit = Emitter(builder, dtype, lanes_of(dtype.value))
        vectors, done = builder.sdiv(width, _i64(emit.lanes)), cgutils.alloca_once_value(builder, _i64(0))
        row_step = builder.mul(vectors, _i64(emit.width))
        for several in TOGETHER:
            turns = builder.sdiv(builder.sub(vectors, builder.load(done)), _i64(several))
            with cgutils.for_range(builder, turns):
                start = builder.mul(builder.load(done), _i64(emit.width))
                totals = [emit.at(emit.at(sums, start), v * emit.width) for v in range(several)]
                slots = [cgutils.alloca_once_value(builder, emit.load(place)) for place in totals]
                with rolled(builder, count) as row:
                    source = emit.at(emit.at(rows, builder.mul(row, row_step)), start)
                    for v, slot in enumerate(slots):
                        builder.store(builder.fadd(builder.load(slot), emit.load(emit.at(source, v * emit.width))), slot)
                for place, slot in zip(totals, slots, strict=True):
                    emit.store(builder.load(slot), place)
                builder.store(builder.add(builder.load(done), _i64(several)), done)
        return context.get_dummy_value()

    return types.void(sums, rows, count, width, dtype), codegen
