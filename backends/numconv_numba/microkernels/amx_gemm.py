"""Matrix products on AMX's tiles, with the lanes over pixels: what `gemm` does, of pairs of bfloat16 numbers.

A block of up to 32 output channels and 32 pixels takes four registers; each step of 16 terms loads two tiles of weights and two of
the panel for four products, so that loads take half as long as products where both lie in the first-level cache. The panel,
``[term][layer][pixel]``, is a tile of b as it lies. Weights are packed as tiles of a: ``[tile][step][layer][channel][16 terms]``.

Factors of float32 are sums of two or three bfloat16 numbers, their layers. Three products of two layers leave out the smallest, six
of three layers the three smallest: Henry, Tang and Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for
higher-precision computations" (2019), section III.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .amx import ROW_BYTES, ROWS, tile_registers
from .emit import Emitter, check_kinds, rolled
from .gemm import Columns
from .memory import Memory

__all__ = ["PRODUCTS", "layers_of", "multiply_tiles"]

PRODUCTS = {1: ((0, 0),), 3: ((0, 1), (0, 0), (1, 0)), 6: ((2, 0), (1, 0), (1, 1), (0, 1), (0, 0), (0, 2))}
"""The layers of both factors of each product, in an order in which one of them is loaded already."""
STRIPS, VECTORS = 2, 2
"""Registers of a block, across channels and across pixels."""
_i64 = ir.IntType(64)


def layers_of(products: int) -> int:
    """Layers of factors that have so many products."""
    return 1 + max(max(pair) for pair in PRODUCTS[products])


class _Block:
    """Emits one block of sums: so many strips of channels, so many vectors of pixels."""

    def __init__(self, emit: Emitter, builder: Any, body: str, products: int, strips: int, vectors: int):
        self.emit, self.builder, self.tiles = emit, builder, tile_registers(builder, body)
        self.products, self.strips, self.vectors, self.layers = PRODUCTS[products], strips, vectors, layers_of(products)

    def sums_of(self, rows: list[Any]) -> Any:
        """(register, rows, where in the sums) of each strip and vector."""
        return (
            (strip * VECTORS + v, rows[strip], strip * ROWS * self.vectors * ROW_BYTES + v * ROW_BYTES)
            for strip in range(self.strips)
            for v in range(self.vectors)
        )

    def compute(self, panel: Any, w: Any, sums: Any, channels: Any, steps: Any, resume: Any) -> None:
        """The sums of so many steps, from zero or from where they are."""
        emit, builder, width = self.emit, self.builder, _i64(self.vectors * ROW_BYTES)
        rows = [_i64(ROWS), builder.sub(channels, _i64(ROWS))] if self.strips == STRIPS else [channels]
        with builder.if_else(builder.icmp_signed("!=", resume, _i64(0))) as (go_on, begin):
            with go_on:
                for tile, count, offset in self.sums_of(rows):
                    self.tiles.load(tile, emit.at(sums, offset), width, count)
            with begin:
                for tile, count, _ in self.sums_of(rows):
                    self.tiles.zero(tile, count)
        layer = emit.times(channels, ROW_BYTES)
        with rolled(builder, steps) as step:
            weights = emit.at(w, builder.mul(step, emit.times(layer, self.layers)))
            pixels = emit.at(panel, emit.times(step, ROWS * self.layers * self.vectors * ROW_BYTES))
            self.add_step(weights, pixels, layer, rows)
        for tile, count, offset in self.sums_of(rows):
            self.tiles.store(tile, emit.at(sums, offset), width, count)

    def add_step(self, weights: Any, pixels: Any, layer: Any, rows: list[Any]) -> None:
        """All products of 16 terms; a layer that is loaded already is not loaded again."""
        emit, loaded = self.emit, (-1, -1)
        for mine, theirs in self.products:
            if mine != loaded[0]:
                start = emit.at(weights, emit.times(layer, mine))
                for strip in range(self.strips):
                    self.tiles.load(4 + strip, emit.at(start, strip * ROWS * ROW_BYTES), _i64(ROW_BYTES), rows[strip])
            if theirs != loaded[1]:
                for v in range(self.vectors):
                    start = emit.at(pixels, (theirs * self.vectors + v) * ROW_BYTES)
                    self.tiles.load(6 + v, start, _i64(self.layers * self.vectors * ROW_BYTES), _i64(ROWS))
            for strip in range(self.strips):
                for v in range(self.vectors):
                    self.tiles.multiply(strip * VECTORS + v, 4 + strip, 6 + v, rows[strip])
            loaded = mine, theirs


class _Results:
    """Emits the way of a block's sums to y."""

    def __init__(
        self, emit: Emitter, builder: Any, memory: Memory, vectors: int, places: Any, pixels: Any, bias: Any, relu: Any, finish: Any
    ):
        self.emit, self.builder, self.memory, self.bias = emit, builder, memory, bias
        self.places = [emit.offset(places, v) for v in range(vectors)]
        self.masks = [emit.first(builder.sub(pixels, _i64(v * emit.lanes))) for v in range(vectors)]
        self.biased = builder.icmp_unsigned("!=", builder.ptrtoint(bias, _i64), _i64(0))
        self.clip = emit.spread(builder.icmp_signed("!=", relu, _i64(0)))
        self.finished = builder.icmp_signed("!=", finish, _i64(0))

    def write(self, sums: Any, channels: Any, first: Any, y: Any, y_k: Any, flag: Any) -> None:
        """With bias and activation, where they are `finished`; sets the flag if one is not finite. `first`: the block's channel."""
        emit, builder = self.emit, self.builder
        with rolled(builder, channels) as channel:
            row = emit.at(sums, emit.times(channel, len(self.masks) * ROW_BYTES))
            found = [emit.load(emit.at(row, v * ROW_BYTES)) for v in range(len(self.masks))]
            wanted = [builder.select(mask, each, emit.zero) for mask, each in zip(self.masks, found, strict=True)]
            builder.store(builder.or_(builder.load(flag), emit.any_not_finite(wanted)), flag)
            with builder.if_then(self.finished):
                k = builder.add(first, channel)
                place = builder.select(self.biased, emit.at(self.bias, emit.times(k, 4)), row)
                shift = emit.broadcast(place)
                for v, (vector, mask) in enumerate(zip(found, self.masks, strict=True)):
                    total = builder.select(emit.spread(self.biased), builder.fadd(vector, shift), vector)
                    target = emit.at(emit.at(y, builder.mul(k, y_k)), self.places[v])
                    self.memory.store_masked(emit.positive(total, self.clip), target, mask)


def _clear_rows(emit: Emitter, builder: Any, panel: Any, first: Any, last: Any, width: int) -> None:
    with cgutils.for_range_slice(builder, first, last, _i64(1)) as (row, _):
        for offset in range(0, width, ROW_BYTES):
            emit.store(emit.zero, emit.at(panel, builder.add(emit.times(row, width), _i64(offset))))


@intrinsic
def _multiply_tiles(
    typingctx: Any, shape: Any, dtype: Any, vectors: Any, panel: Any, terms: Any, w: Any, w_step: Any, w_k: Any, w_tile: Any,
    tiles: Any, sums: Any, resume: Any, finish: Any, y: Any, y_k: Any, places: Any, pixels: Any, bias: Any, relu: Any, x: Any,
    offsets: Any, pieces: Any, count: Any, ahead: Any,
) -> Any:  # fmt: skip
    check_kinds((shape, dtype), (panel, w, sums, y, places, bias, x, offsets, pieces))
    body, products = shape.value
    n, layers = types.int64, layers_of(products)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        (
            _, _, vectors, panel, terms, w, w_step, _, w_tile, tiles, sums, resume, finish, y, y_k, places, pixels, bias, relu, x,
            offsets, pieces, count, _,
        ) = args  # fmt: skip
        emit, flag = Emitter(builder, "float32", ROWS), cgutils.alloca_once_value(builder, _i64(0))
        memory = Memory(context, builder, emit, dtype.value)
        channels = builder.sdiv(w_step, _i64(4 * layers))
        steps = builder.sdiv(builder.add(terms, _i64(ROWS - 1)), _i64(ROWS))
        rows, most = emit.times(terms, layers), emit.times(steps, ROWS * layers)
        several = builder.icmp_signed(">", channels, _i64(ROWS))
        for used in range(1, VECTORS + 1):
            with builder.if_then(builder.icmp_signed("==", vectors, _i64(used))):
                width = used * ROW_BYTES
                results = _Results(emit, builder, memory, used, places, pixels, bias, relu, finish)
                with builder.if_then(builder.icmp_signed("!=", count, _i64(0))):
                    Columns(emit, builder, x, offsets, rows, pieces, panel, _i64(width)).copy_all(count)
                    _clear_rows(emit, builder, panel, rows, most, width)
                with cgutils.for_range(builder, tiles) as tile:
                    first = builder.mul(tile.index, channels)
                    own, weights = emit.at(sums, emit.times(first, width)), emit.at(w, builder.mul(tile.index, w_tile))
                    with builder.if_else(several) as (both, one):
                        for strips, branch in ((2, both), (1, one)):
                            with branch:
                                block = _Block(emit, builder, body, products, strips, used)
                                block.compute(panel, weights, own, channels, steps, resume)
                    results.write(own, channels, first, y, y_k, flag)
        return builder.load(flag)

    return n(shape, dtype, n, panel, n, w, n, n, n, n, sums, n, n, y, n, places, n, bias, n, x, offsets, pieces, n, n), codegen


@kernel
def multiply_tiles(
    shape: Tag, dtype: Tag, vectors: int, panel: Address, terms: int, w: Address, w_step: int, w_k: int, w_tile: int, tiles: int,
    sums: Address, resume: int, finish: int, y: Address, y_k: int, places: Address, pixels: int, bias: Address, relu: int,
    x: Address, offsets: Address, pieces: Address, count: int, ahead: int,
) -> int:  # fmt: skip
    """What `gemm.multiply` does, with the same parameters; registers are configured for the channels of a tile.

    Parameters that differ:

    shape : Tag
        (body, number of products): see `amx` and `PRODUCTS`.
    dtype : Tag
        Of y.
    panel : Address
        ``[term][layer][vector]``, with room for whole steps of 16 terms.
    w : Address
        ``[step][layer][channel][16 terms]``, zeros where a step has fewer terms.
    w_step : int
        Bytes of a term: of all layers and channels of a tile, of which there are 32 at most.
    w_k : int
        Not used: channels of a tile lie 64 bytes apart.
    offsets : Address
        Of the layers of each term.
    ahead : int
        Not used.
    """
    return _multiply_tiles(
        shape, dtype, vectors, panel, terms, w, w_step, w_k, w_tile, tiles, sums, resume, finish, y, y_k, places, pixels, bias,
        relu, x, offsets, pieces, count, ahead,
    )  # fmt: skip
