"""Rows that are linear combinations of other rows, which are read where they lie: register tiles with the lanes along the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds, host, rolled

__all__ = ["combine"]

_i64 = ir.IntType(64)
AHEAD = 8
"""Rows after which the processor is told what is needed: they may lie pages apart."""


class _Combinations:
    """Emits tiles of so many vectors of so many rows."""

    def __init__(
        self, emit: Emitter, builder: Any, vectors: int, rows: int, factors: tuple[Any, Any], source: tuple[Any, Any, Any]
    ):
        self.emit, self.builder, self.vectors, self.rows = emit, builder, vectors, rows
        self.factor_i, self.factor_j = factors
        self.source, self.source_j, self.terms = source

    def tile(self, factors: Any, start: Any, target: Any, target_i: Any, masks: list[Any] | None) -> None:
        """One tile, `start` bytes from the start of the rows; where masks are given, only their lanes."""
        emit, builder = self.emit, self.builder
        slots = [[emit.accumulator() for _ in range(self.vectors)] for _ in range(self.rows)]
        with rolled(builder, self.terms) as term:
            row = emit.at(emit.at(self.source, builder.mul(term, self.source_j)), start)
            places = [emit.at(row, v * emit.width) for v in range(self.vectors)]
            for place in places:
                emit.prefetch(emit.at(place, emit.times(self.source_j, AHEAD)), write=False)
            if masks is None:
                vectors = list(map(emit.load, places))
            else:
                vectors = [emit.load_masked(place, mask) for place, mask in zip(places, masks, strict=True)]
            column = emit.at(factors, builder.mul(term, self.factor_j))
            for i, sums in enumerate(slots):
                factor = emit.broadcast(emit.at(column, emit.times(self.factor_i, i)))
                for slot, vector in zip(sums, vectors, strict=True):
                    builder.store(emit.fma(vector, factor, builder.load(slot)), slot)
        for i, sums in enumerate(slots):
            place = emit.at(emit.at(target, emit.times(target_i, i)), start)
            for v, slot in enumerate(sums):
                if masks is None:
                    emit.store(builder.load(slot), emit.at(place, v * emit.width))
                else:
                    emit.store_masked(builder.load(slot), emit.at(place, v * emit.width), masks[v])

    def emit_all(self, factors: Any, target: Any, target_i: Any, columns: Any) -> None:
        """All vectors of these rows."""
        emit, builder, width = self.emit, self.builder, self.vectors * self.emit.lanes
        whole = builder.sdiv(columns, _i64(width))
        with cgutils.for_range(builder, whole) as turn:
            self.tile(factors, emit.times(turn.index, self.vectors * emit.width), target, target_i, None)
        rest = builder.srem(columns, _i64(width))
        with builder.if_then(builder.icmp_signed(">", rest, _i64(0))):
            masks = [emit.first(builder.sub(rest, _i64(v * emit.lanes))) for v in range(self.vectors)]
            self.tile(factors, emit.times(whole, self.vectors * emit.width), target, target_i, masks)


def _by_rows(builder: Any, rows: Any, emit_some: Callable[[Any, int, int], None]) -> None:
    """emit_some(first row, vectors, rows) until all rows are done, in tiles of the most rows that are left."""
    done = cgutils.alloca_once_value(builder, _i64(0))
    for vectors, several in host().pixel_tiles:
        count = builder.sdiv(builder.sub(rows, builder.load(done)), _i64(several))
        with cgutils.for_range(builder, count):
            first = builder.load(done)
            emit_some(first, vectors, several)
            builder.store(builder.add(first, _i64(several)), done)


@intrinsic
def _combine(
    typingctx: Any, lanes: Any, dtype: Any, factors: Any, factor_i: Any, factor_j: Any, source: Any, source_j: Any, target: Any,
    target_i: Any, rows: Any, terms: Any, columns: Any,
) -> Any:  # fmt: skip
    check_kinds((lanes, dtype), (factors, source, target))
    n = types.int64

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, factors, factor_i, factor_j, source, source_j, target, target_i, rows, terms, columns = args
        emit = Emitter(builder, dtype, lanes.value)

        def some(first: Any, vectors: int, several: int) -> None:
            tiles = _Combinations(emit, builder, vectors, several, (factor_i, factor_j), (source, source_j, terms))
            own = emit.at(factors, builder.mul(first, factor_i)), emit.at(target, builder.mul(first, target_i))
            tiles.emit_all(*own, target_i, columns)

        _by_rows(builder, rows, some)
        return context.get_dummy_value()

    return types.void(lanes, dtype, factors, n, n, source, n, target, n, n, n, n), codegen


@kernel(emitted=True)
def combine(
    lanes: Tag, dtype: Tag, factors: Address, factor_i: int, factor_j: int, source: Address, source_j: int, target: Address,
    target_i: int, rows: int, terms: int, columns: int,
) -> None:  # fmt: skip
    """target[i, :] = the sum over j of factors[i, j] * source[j, :]: one chain each, in this order.

    Parameters
    ----------
    lanes : Tag
        Of a vector.
    dtype : Tag
        Of all arrays.
    factors, source, target : Address
        Elements of a row of source and target are neighbours.
    factor_i, factor_j, source_j, target_i : int
        Bytes from row to row, and of the factors from term to term.
    rows, terms, columns : int
        How many i, j and elements of a row.
    """
    _combine(lanes, dtype, factors, factor_i, factor_j, source, source_j, target, target_i, rows, terms, columns)
