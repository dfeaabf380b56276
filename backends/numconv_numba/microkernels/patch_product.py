"""Register tiles with the lanes over pixels, whose results are woven into patches that lie side by side.

Where the windows of an input gradient share no position, each result is written once, and those of neighbouring taps are neighbours
in memory, as are those of neighbouring pixels if a patch is as long as some taps. A tile holds the sums of `channels` rows of a
matrix, taps of a channel one after the other, at `vectors` vectors of pixels; it weaves those of `taps` rows together as they leave
the registers. Pixels come in pieces of a part of a vector, which may lie anywhere: so few are computed in vain at the ends of rows.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds
from .gemm import repeat

__all__ = ["pack_rows", "patch_product"]

_i64 = ir.IntType(64)
_LINE = 64

(
    VECTORS, PANEL, TERMS, W, W_TILE, TILES, SUMS, RESUME, FINISH, X, PLACES, ROWS, STEP, BIAS, RELU, Y, Y_TERM, PIECES, NEXT,
    JOB,
) = range(20)  # fmt: skip
"""The fields of a job: addresses, bytes and numbers.

VECTORS: of a term of the PANEL ``[term][vector]``, which has so many TERMS. W: the weights of the TILES ``[term][channel]``, W_TILE
bytes apart. SUMS: ``[tile][channel][vector]``, to RESUME with, and to leave there unless they FINISH. X: where results go, by the
PLACES of pieces, some of each vector, and by the ROWS, an offset for so many taps as are woven. STEP: from pixel to pixel where
patches are longer than these. BIAS: a number for each of the ROWS, or 0. RELU: whether negative results become 0. Y: what the panel
is gathered from first, or 0: terms lie Y_TERM bytes apart, and PIECES has the offset of each. NEXT: where that of the next panel
begins, which is fetched, or 0.
"""


def _woven(emit: Emitter, rows: list[Any]) -> list[Any]:
    """Vectors that together hold the first element of each row, then the second ones, and so on; a power of two of rows."""
    if len(rows) == 1:
        return rows
    even, odd = _woven(emit, rows[::2]), _woven(emit, rows[1::2])
    lanes = range(emit.lanes)
    both = [[emit.shuffle(a, b, [i // 2 + i % 2 * emit.lanes + first for i in lanes]) for first in (0, emit.lanes // 2)]
            for a, b in zip(even, odd, strict=True)]  # fmt: skip
    return [vector for pair in both for vector in pair]


class _Code:
    """The tiles of a panel of so many vectors under construction, of pieces of `length` pixels.

    So many `taps` are woven, all of a row of a patch if it is `whole`.
    """

    def __init__(self, builder: Any, shape: tuple[int, ...], vectors: int, dtype: Any, job: Any):
        _, self.channels, lanes, self.length, self.taps, self.whole = shape
        self.builder, self.vectors, self.pieces = builder, vectors, lanes // self.length
        self.emit = emit = Emitter(builder, dtype, lanes)
        self.item = emit.width // lanes
        self.field = {i: emit.offset(job, i) for i in range(JOB)}
        addresses = PANEL, W, SUMS, X, PLACES, ROWS, BIAS, Y, PIECES, NEXT
        self.at = {i: builder.inttoptr(self.field[i], cgutils.voidptr_t) for i in addresses}
        self.slots = [[emit.accumulator() for _ in range(vectors)] for _ in range(self.channels)]
        self.on = {i: builder.icmp_signed("!=", self.field[i], _i64(0)) for i in (RESUME, FINISH, BIAS, RELU, Y, NEXT)}

    def gather(self) -> None:
        """The panel, piece by piece."""
        emit, builder = self.emit, self.builder
        kind = ir.VectorType(emit.vector.element, self.length).as_pointer()
        sources = [emit.at(self.at[Y], emit.offset(self.at[PIECES], i)) for i in range(self.pieces * self.vectors)]

        def copy(term: Any) -> None:
            offset, row = builder.mul(term, self.field[Y_TERM]), builder.mul(term, _i64(self.vectors * emit.width))
            loads = [builder.load(builder.bitcast(emit.at(source, offset), kind)) for source in sources]
            for i, loaded in enumerate(loads):
                loaded.align = self.item
                place = emit.at(emit.at(self.at[PANEL], row), i * self.length * self.item)
                builder.store(loaded, builder.bitcast(place, kind)).align = self.item

        repeat(builder, self.field[TERMS], copy)

    def each(self) -> Any:
        """(number, accumulator) of a tile."""
        return enumerate(slot for row in self.slots for slot in row)

    def start(self, sums: Any) -> None:
        """Zero, or the sums so far."""
        with self.builder.if_else(self.on[RESUME]) as (go_on, begin):
            with go_on:
                for i, slot in self.each():
                    self.builder.store(self.emit.load(self.emit.at(sums, i * self.emit.width)), slot)
            with begin:
                for _, slot in self.each():
                    self.builder.store(self.emit.zero, slot)

    def add_term(self, w: Any, term: Any) -> None:
        """One term."""
        emit, builder = self.emit, self.builder
        # LLVM would keep a register for each channel of each term of a turn, and load those of the next one ahead
        weights = emit.opaque(emit.at(w, builder.mul(term, _i64(self.channels * self.item))), now=True)
        row = emit.at(self.at[PANEL], builder.mul(term, _i64(self.vectors * emit.width)))
        pixels = [emit.load(emit.at(row, v * emit.width)) for v in range(self.vectors)]
        for k, slots in enumerate(self.slots):
            weight = emit.broadcast(emit.at(weights, k * self.item))
            for slot, pixel in zip(slots, pixels, strict=True):
                builder.store(emit.fma(pixel, weight, builder.load(slot)), slot)

    def add_terms(self, w: Any, tile: Any) -> None:
        """All terms; of each the first tiles fetch a line that the next panel is gathered from."""
        emit, builder = self.emit, self.builder
        lines = _i64(self.vectors * emit.width // _LINE + 1)
        place, add = emit.at(self.at[NEXT], emit.times(tile, _LINE)), functools.partial(self.add_term, w)

        def fetch(term: Any) -> None:
            emit.prefetch(emit.at(place, builder.mul(term, self.field[Y_TERM])), write=False, level=2)

        some = builder.and_(self.on[NEXT], builder.icmp_signed("<", tile, lines))
        with builder.if_else(some) as (fetching, plain):
            with fetching:
                repeat(builder, self.field[TERMS], add, fetch)
            with plain:
                repeat(builder, self.field[TERMS], add)

    def fetch(self, targets: list[list[Any]]) -> None:
        """Bring the lines that a tile will write."""
        with self.builder.if_then(self.on[FINISH]):
            for target in (place for row in targets for place in row):
                self.emit.prefetch(target, write=True)

    def targets(self, first: Any) -> list[list[Any]]:
        """Where the pieces of a tile go, for each of its rows of x; `first`: the number of these."""
        emit, builder = self.emit, self.builder
        rows = [emit.offset(self.at[ROWS], builder.add(first, _i64(i))) for i in range(self.channels // self.taps)]
        places = [emit.offset(self.at[PLACES], i) for i in range(self.pieces * self.vectors)]
        return [[emit.at(emit.at(self.at[X], row), place) for place in places] for row in rows]

    def dress(self, first: Any) -> None:
        """Bias and relu."""
        emit, builder = self.emit, self.builder
        with builder.if_then(self.on[BIAS]):
            for k, slots in enumerate(self.slots):
                shift = emit.broadcast(emit.at(self.at[BIAS], emit.times(builder.add(first, _i64(k // self.taps)), self.item)))
                for slot in slots:
                    builder.store(builder.fadd(builder.load(slot), shift), slot)
        with builder.if_then(self.on[RELU]):
            for _, slot in self.each():
                builder.store(emit.positive(builder.load(slot), emit.spread(self.on[RELU])), slot)

    def write(self, targets: list[list[Any]]) -> None:
        """To x."""
        for i, places in enumerate(targets):
            rows = self.slots[i * self.taps : (i + 1) * self.taps]
            for v in range(self.vectors):
                woven = _woven(self.emit, [self.builder.load(row[v]) for row in rows])
                for piece in range(self.pieces):
                    self.write_piece(woven, piece, places[v * self.pieces + piece])

    def write_piece(self, woven: list[Any], piece: int, place: Any) -> None:
        """The pixels of a piece: all at once, or the taps of each; by vectors, or parts of them."""
        emit, builder, count = self.emit, self.builder, self.length * self.taps
        together = min(emit.lanes, count if self.whole else self.taps)
        kind = ir.VectorType(emit.vector.element, together).as_pointer()
        for first in range(0, count, together):
            vector, lane = divmod(piece * count + first, emit.lanes)
            part = woven[vector] if together == emit.lanes else emit.shuffle(woven[vector], emit.zero, range(lane, lane + together))
            pixel, tap = (0, first) if self.whole else divmod(first, self.taps)
            target = emit.at(emit.at(place, emit.times(self.field[STEP], pixel)), tap * self.item)
            builder.store(part, builder.bitcast(target, kind)).align = self.item

    def emit_all(self) -> None:
        """The panel, then all tiles one after the other."""
        emit, builder = self.emit, self.builder
        with builder.if_then(self.on[Y]):
            self.gather()
        rows = self.channels // self.taps
        self.fetch(self.targets(_i64(0)))
        with cgutils.for_range(builder, self.field[TILES]) as tile:
            sums = emit.at(self.at[SUMS], emit.times(tile.index, self.channels * self.vectors * emit.width))
            w, first = emit.at(self.at[W], builder.mul(tile.index, self.field[W_TILE])), emit.times(tile.index, rows)
            self.start(sums)
            following = builder.add(tile.index, _i64(1))
            last = builder.icmp_signed("<", following, self.field[TILES])
            self.fetch(self.targets(emit.times(builder.select(last, following, tile.index), rows)))
            self.add_terms(w, tile.index)
            with builder.if_else(self.on[FINISH]) as (finished, kept):
                with finished:
                    self.dress(first)
                    self.write(self.targets(first))
                with kept:
                    for i, slot in self.each():
                        emit.store(builder.load(slot), emit.at(sums, i * emit.width))


@intrinsic
def _patch_product(typingctx: Any, shape: Any, dtype: Any, job: Any) -> Any:
    check_kinds((shape, dtype), (job,))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vectors = Emitter(builder, dtype, shape.value[2]).offset(args[2], VECTORS)
        for used in range(1, shape.value[0] + 1):
            with builder.if_then(builder.icmp_signed("==", vectors, _i64(used))):
                _Code(builder, shape.value, used, dtype, args[2]).emit_all()
        return context.get_dummy_value()

    return types.void(shape, dtype, job), codegen


@kernel(emitted=True)
def patch_product(shape: Tag, dtype: Tag, job: Address) -> None:
    """x[row, pixel, tap] = the sum over t of w[row, tap, t] * y[t, pixel], one chain each in this order, with bias and relu.

    `shape`: most vectors, channels and lanes of a tile, pixels of a piece, taps that are woven together, both powers of two, and
    whether these are all of a row of a patch. For the fields of a job see above.
    """
    _patch_product(shape, dtype, job)


@intrinsic
def _pack_rows(
    typingctx: Any, channels: Any, dtype: Any, w: Any, step: Any, terms: Any, tiles: Any, target: Any, target_tile: Any
) -> Any:
    check_kinds((channels, dtype), (w, target))
    n = types.int64

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, w, step, terms, tiles, target, target_tile = args
        emit = Emitter(builder, dtype, channels.value)
        with cgutils.for_range(builder, terms) as term:
            source, place = emit.at(w, builder.mul(term.index, step)), emit.at(target, emit.times(term.index, emit.width))
            with cgutils.for_range(builder, tiles) as tile:
                loaded = emit.load(emit.at(source, emit.times(tile.index, emit.width)))
                emit.store(loaded, emit.at(place, builder.mul(tile.index, target_tile)))
        return context.get_dummy_value()

    return types.void(channels, dtype, w, n, n, n, target, n), codegen


@kernel(emitted=True)
def pack_rows(
    channels: Tag, dtype: Tag, w: Address, step: int, terms: int, tiles: int, target: Address, target_tile: int
) -> None:  # fmt: skip
    """Tiles of weights ``[term][channel]``, `target_tile` bytes apart; before, they are neighbours in terms `step` bytes apart."""
    _pack_rows(channels, dtype, w, step, terms, tiles, target, target_tile)
