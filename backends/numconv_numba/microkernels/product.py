"""Register tiles with the lanes over channels.

For each term the tile loads `vectors` vectors of `a` and multiplies them with one broadcast of `b` for each of `positions`
positions, which may lie anywhere: so pixels need no common pitch, and no lane is spent on what lies between two rows. In a forward
convolution a holds packed weights and b the input; in a weight gradient a holds the packed gradient of y and the positions are
taps; in Winograd's products they are tiles of the input.

Tiles are compiled by themselves and called by address: drivers are compiled once for all shapes.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import check_kinds, emitter_of, host

__all__ = ["product", "products"]

_i64 = ir.IntType(64)


@intrinsic
def _product(
    typingctx: Any, shape: Any, dtype: Any, a: Any, b: Any, places: Any, y: Any, groups: Any, terms: Any, offsets: Any, y_step: Any,
    resume: Any,
) -> Any:  # fmt: skip
    check_kinds((shape, dtype), (a, b, places, y, offsets))
    vectors, positions, lanes = shape.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, a, b, places, y, groups, terms, offsets, y_step, resume = args
        emit = emitter_of(builder, dtype.value, lanes)
        sums = [[emit.accumulator() for _ in range(vectors)] for _ in range(positions)]
        group_step = emit.times(y_step, positions)

        def each_sum(rows: list[Any]) -> Any:
            return ((sums[j][v], emit.at(rows[j], v * emit.width)) for j in range(positions) for v in range(vectors))

        def add_term(starts: list[Any], term: Any) -> None:
            row, offset = emit.at(a, builder.mul(term, _i64(vectors * emit.width))), emit.offset(offsets, term)
            loaded = [emit.load(emit.at(row, v * emit.width)) for v in range(vectors)]
            for j in range(positions):
                factor = emit.broadcast(emit.at(starts[j], offset))
                for v in range(vectors):
                    builder.store(emit.fma(loaded[v], factor, builder.load(sums[j][v])), sums[j][v])

        with cgutils.for_range(builder, groups) as group:
            target = emit.at(y, builder.mul(group.index, group_step))
            rows = [emit.at(target, emit.times(y_step, j)) for j in range(positions)]
            table = emit.at(places, builder.mul(group.index, _i64(8 * positions)))
            starts = [emit.at(b, emit.offset(table, j)) for j in range(positions)]
            with builder.if_else(builder.icmp_signed("!=", resume, _i64(0))) as (go_on, begin):
                with go_on:
                    for slot, place in each_sum(rows):
                        builder.store(emit.load(place), slot)
                with begin:
                    for slot, _ in each_sum(rows):
                        builder.store(emit.zero, slot)
            for _, place in each_sum(rows):
                emit.prefetch(emit.at(place, group_step), write=True)
            # two terms a turn: the loop's own additions compete with the multiply-adds for ports
            with cgutils.for_range(builder, builder.ashr(terms, _i64(1))) as pair:
                first = builder.shl(pair.index, _i64(1))
                add_term(starts, first)
                add_term(starts, builder.or_(first, _i64(1)))
            with builder.if_then(builder.trunc(terms, ir.IntType(1))):
                add_term(starts, builder.sub(terms, _i64(1)))
            for slot, place in each_sum(rows):
                emit.store(builder.load(slot), place)
        return context.get_dummy_value()

    return types.void(shape, dtype, a, b, places, y, types.int64, types.int64, offsets, types.int64, types.int64), codegen


@kernel(emitted=True)
def product(
    shape: Tag, dtype: Tag, a: Address, b: Address, places: Address, y: Address, groups: int, terms: int, offsets: Address,
    y_step: int, resume: int,
) -> None:  # fmt: skip
    """y[j, :] = the sum over t of a[t, :] * b[places[j] + offsets[t]]: one chain each, in this order.

    Parameters
    ----------
    shape : Tag
        (vectors, positions, lanes).
    dtype : Tag
        Of a, b and y; or pairs of a and b, the products of both of which are summed in float32.
    a, b, y : Address
        Rows of a and y are `vectors` vectors; those of a follow each other.
    places, offsets : Address
        Of int64 tables: the byte offset in b of each position and of each term.
    groups : int
        j < groups * positions.
    terms : int
        Number of terms.
    y_step : int
        Bytes from row to row of y.
    resume : int
        1 to go on with the sums that y holds, 0 to start from zero.
    """
    _product(shape, dtype, a, b, places, y, groups, terms, offsets, y_step, resume)


def products(lanes: int, dtype: str) -> list[Any]:
    """For all of the host's tiles: members of a unit."""
    return [(product, ((*tile, lanes), dtype)) for tile in host().channel_tiles]
