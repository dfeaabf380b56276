"""Register tiles with the lanes over channels.

For each term the tile loads `vectors` vectors of `a` and multiplies them with one broadcast of `b` for each of `positions`
positions, which may lie anywhere: so pixels need no common pitch, and no lane is spent on what lies between two rows. In a forward
convolution a holds packed weights and b the input; in a weight gradient a holds the packed gradient of y and the positions are
taps; in Winograd's products they are tiles of the input.

Tiles are compiled by themselves and called by address: drivers are compiled once for all shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds, emitter_of, host

__all__ = ["product", "products"]

_i64 = ir.IntType(64)


class _Tiles:
    """Emits the tiles of a call; `offsets`, `terms` and so on are the parameters of `product`."""

    def __init__(self, emit: Emitter, builder: Any, vectors: int, args: Sequence[Any]):
        self.emit, self.builder, self.vectors = emit, builder, vectors
        self.a, self.b, self.places, self.y, _, self.terms, self.offsets, self.y_step, self.resume = args

    def add_term(self, sums: list[list[Any]], starts: list[Any], term: Any) -> None:
        """One term of a tile, whose positions begin at `starts`."""
        emit, builder = self.emit, self.builder
        row, offset = emit.at(self.a, builder.mul(term, _i64(self.vectors * emit.width))), emit.offset(self.offsets, term)
        loaded = [emit.load(emit.at(row, v * emit.width)) for v in range(self.vectors)]
        for slots, start in zip(sums, starts, strict=True):
            factor = emit.broadcast(emit.at(start, offset))
            for vector, slot in zip(loaded, slots, strict=True):
                builder.store(emit.fma(vector, factor, builder.load(slot)), slot)

    def tile(self, first: Any, positions: int) -> None:
        """The tile of so many positions from `first` on."""
        emit, builder, vectors = self.emit, self.builder, self.vectors
        sums = [[emit.accumulator() for _ in range(vectors)] for _ in range(positions)]
        target, table = emit.at(self.y, builder.mul(first, self.y_step)), emit.at(self.places, builder.mul(first, _i64(8)))
        rows = [emit.at(target, emit.times(self.y_step, j)) for j in range(positions)]
        starts = [emit.at(self.b, emit.offset(table, j)) for j in range(positions)]
        each = [(sums[j][v], emit.at(rows[j], v * emit.width)) for j in range(positions) for v in range(vectors)]
        with builder.if_else(builder.icmp_signed("!=", self.resume, _i64(0))) as (go_on, begin):
            with go_on:
                for slot, place in each:
                    builder.store(emit.load(place), slot)
            with begin:
                for slot, _ in each:
                    builder.store(emit.zero, slot)
        for _, place in each:
            emit.prefetch(emit.at(place, emit.times(self.y_step, positions)), write=True)
        # two terms a turn: the loop's own additions compete with the multiply-adds for ports
        with cgutils.for_range(builder, builder.ashr(self.terms, _i64(1))) as pair:
            turn = builder.shl(pair.index, _i64(1))
            self.add_term(sums, starts, turn)
            self.add_term(sums, starts, builder.or_(turn, _i64(1)))
        with builder.if_then(builder.trunc(self.terms, ir.IntType(1))):
            self.add_term(sums, starts, builder.sub(self.terms, _i64(1)))
        for slot, place in each:
            emit.store(builder.load(slot), place)


@intrinsic
def _product(
    typingctx: Any, shape: Any, dtype: Any, a: Any, b: Any, places: Any, y: Any, count: Any, terms: Any, offsets: Any, y_step: Any,
    resume: Any,
) -> Any:  # fmt: skip
    check_kinds((shape, dtype), (a, b, places, y, offsets))
    vectors, positions, lanes = shape.value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        tiles, count, few = _Tiles(emitter_of(builder, dtype.value, lanes), builder, vectors, args[2:]), args[6], positions - 1
        each = builder.sdiv(builder.add(count, _i64(few)), _i64(positions))
        lacking = builder.sub(builder.mul(each, _i64(positions)), count)
        short = builder.select(builder.icmp_signed("<", lacking, each), lacking, each)
        whole = builder.sub(each, short)
        with cgutils.for_range(builder, whole) as turn:
            tiles.tile(builder.mul(turn.index, _i64(positions)), positions)
        done = builder.mul(whole, _i64(positions))
        with cgutils.for_range(builder, short) as turn:
            tiles.tile(builder.add(done, builder.mul(turn.index, _i64(few))), few)
        return context.get_dummy_value()

    return types.void(shape, dtype, a, b, places, y, types.int64, types.int64, offsets, types.int64, types.int64), codegen


@kernel(emitted=True)
def product(
    shape: Tag, dtype: Tag, a: Address, b: Address, places: Address, y: Address, count: int, terms: int, offsets: Address,
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
    count : int
        j < count, in tiles of `positions` or one less; what the last ones of few lack, they have in `places` and y beyond.
    terms : int
        Number of terms.
    y_step : int
        Bytes from row to row of y.
    resume : int
        1 to go on with the sums that y holds, 0 to start from zero.
    """
    _product(shape, dtype, a, b, places, y, count, terms, offsets, y_step, resume)


def products(lanes: int, dtype: str) -> list[Any]:
    """For all of the host's tiles: members of a unit."""
    return [(product, ((*tile, lanes), dtype)) for tile in host().channel_tiles]
