"""Products of spectra: runs of complex numbers times conjugates of others, summed over a few terms."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import intrinsic

from .emit import Emitter, check_kinds

__all__ = ["add_conjugates"]

_i64 = ir.IntType(64)


def _tile(emit: Emitter, shape: tuple[int, int], loads: Any) -> list[Any]:
    """For each row the sum over the terms of x * conj(w), real and imaginary parts side by side.

    With x times the real part of w, and x times its imaginary part, summed apart, only the sum needs its parts exchanged.
    """
    rows, terms = shape
    lanes = range(emit.lanes)
    real, imaginary, swapped = [i & ~1 for i in lanes], [i | 1 for i in lanes], [i ^ 1 for i in lanes]
    signs = ir.Constant(emit.vector, [1.0, -1.0] * (emit.lanes // 2))
    sums = [(emit.zero, emit.zero)] * rows
    for term in range(terms):
        factor, values = loads(term)
        both = [emit.shuffle(factor, factor, which) for which in (real, imaginary)]
        sums = [
            (emit.fma(value, both[0], straight), emit.fma(value, both[1], crossed))
            for value, (straight, crossed) in zip(values, sums, strict=True)
        ]
    return [emit.fma(emit.shuffle(crossed, crossed, swapped), signs, straight) for straight, crossed in sums]


@intrinsic
def add_conjugates(
    typingctx: Any, rows: Any, terms: Any, lanes: Any, dtype: Any, x: Any, w: Any, y: Any, count: Any, x_row: Any, x_term: Any,
    w_term: Any, y_row: Any, resume: Any,
) -> Any:  # fmt: skip
    """y[row] = the sum over the terms of x[row, term] * conj(w[term]), added to y where `resume` is not 0.

    Parameters
    ----------
    rows, terms, lanes : Tag
    dtype : Tag
        Of the real and imaginary parts.
    x, w, y : Address
        The first run of each, of `count` complex numbers.
    x_row, x_term, w_term, y_row : int
        Bytes from run to run.
    """
    check_kinds((rows, terms, lanes, dtype), (x, w, y))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, w, y, count, x_row, x_term, w_term, y_row, resume = args[4:]
        emit = Emitter(builder, dtype, lanes.value)
        go_on, numbers = builder.icmp_signed("!=", resume, _i64(0)), builder.shl(count, _i64(1))
        vectors, left = builder.sdiv(numbers, _i64(emit.lanes)), builder.srem(numbers, _i64(emit.lanes))

        def compute(place: Any, load: Any, store: Any) -> None:
            def loads(term: int) -> Any:
                sources = [emit.at(emit.at(x, emit.times(x_row, row)), emit.times(x_term, term)) for row in range(rows.value)]
                return load(emit.at(emit.at(w, emit.times(w_term, term)), place)), [load(emit.at(each, place)) for each in sources]

            all_or_none = emit.both(emit.first(_i64(emit.lanes)), go_on)
            for row, total in enumerate(_tile(emit, (rows.value, terms.value), loads)):
                target = emit.at(emit.at(y, emit.times(y_row, row)), place)
                old = builder.select(all_or_none, load(target), emit.zero)
                store(builder.fadd(total, old), target)

        with cgutils.for_range(builder, vectors) as vector:
            compute(builder.mul(vector.index, _i64(emit.width)), emit.load, emit.store)
        with builder.if_then(builder.icmp_signed(">", left, _i64(0))):
            mask = emit.first(left)
            compute(
                builder.mul(vectors, _i64(emit.width)),
                lambda address: emit.load_masked(address, mask),
                lambda value, address: emit.store_masked(value, address, mask),
            )
        return context.get_dummy_value()

    return types.void(rows, terms, lanes, dtype, x, w, y, *[types.int64] * 6), codegen
