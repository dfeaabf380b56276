"""Register tiles with the lanes over pixels.

A tile holds `vectors` x `channels` accumulators in registers: pixels of `vectors` vectors of `lanes` elements, for `channels`
output channels. For each term it loads the pixels once and multiplies them with one broadcast weight a channel, so that loads stay
below what a processor does beside its multiply-adds. The shape travels in tags, never in a closure: a closure would miss the
disk cache.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel
from numconv_numba.compiling.tags import constant

from .emit import Emitter, check_kinds, host, lanes_of, rolled

__all__ = ["Tile", "multiply_tiles", "tile_for", "tile_share"]


class Tile(NamedTuple):
    """The shape of a register tile."""

    vectors: int
    channels: int
    lanes: int


@functools.lru_cache(maxsize=256)
def tile_for(dtype: str, channels: int) -> Tile:
    """The tile for sums of this dtype that computes the fewest output channels in vain, the first one of several; none has more."""
    shapes = [shape for shape in host().pixel_tiles if shape[1] <= channels]
    vectors, used = min(shapes, key=lambda shape: -(-channels // shape[1]) * shape[1] * tile_share(*shape))
    return Tile(vectors, used, lanes_of(dtype))


def tile_share(vectors: int, channels: int) -> float:
    """Cycles of a term against those of its multiply-adds, two of which take a cycle; so do two loads."""
    return max(1.0, (host().unaligned * vectors + channels) / (vectors * channels))


@constant
def _pixels(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[2]


@constant
def _item(dtype: str) -> int:
    return int(np.dtype(dtype).itemsize)


@intrinsic
def _multiply_tile(
    typingctx: Any,
    shape: Any,
    dtype: Any,
    x: Any,
    x_taps: Any,
    w: Any,
    w_taps: Any,
    y: Any,
    c: Any,
    taps: Any,
    x_c: Any,
    w_c: Any,
    w_k: Any,
    y_k: Any,
    resume: Any,
    result: Any,
    result_k: Any,
) -> Any:
    check_kinds((shape, dtype), (x, x_taps, w, w_taps, y, result))
    vectors, channels, lanes = shape.value
    signature = types.void(shape, dtype, x, x_taps, w, w_taps, y, *[types.int64] * 6, types.boolean, result, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, x_taps, w, w_taps, y, c, taps, x_c, w_c, w_k, y_k, resume, result, result_k = args
        emit = Emitter(builder, dtype, lanes)
        sums = [[emit.accumulator() for _ in range(vectors)] for _ in range(channels)]
        rows = [emit.at(y, builder.mul(y_k, ir.Constant(y_k.type, k))) for k in range(channels)]
        with builder.if_then(resume):
            for k in range(channels):
                for v in range(vectors):
                    builder.store(emit.load(emit.at(rows[k], v * emit.width)), sums[k][v])
        # written all at once, their memory would be waited for
        for k in range(channels):
            line = emit.at(result, builder.mul(result_k, ir.Constant(result_k.type, k)))
            for v in range(vectors):
                emit.prefetch(emit.at(line, v * emit.width), write=True)
        steps = [builder.mul(w_k, ir.Constant(w_k.type, k)) for k in range(channels)]

        def add_tap(x_row: Any, w_row: Any, tap: Any) -> None:
            x_tap, w_tap = emit.at(x_row, emit.offset(x_taps, tap)), emit.at(w_row, emit.offset(w_taps, tap))
            pixels = [emit.load(emit.at(x_tap, v * emit.width)) for v in range(vectors)]
            for k in range(channels):
                weight = emit.broadcast(emit.at(w_tap, steps[k]))
                for v in range(vectors):
                    builder.store(emit.fma(pixels[v], weight, builder.load(sums[k][v])), sums[k][v])

        with cgutils.for_range(builder, c) as channel:
            x_row, w_row = emit.at(x, builder.mul(channel.index, x_c)), emit.at(w, builder.mul(channel.index, w_c))
            with rolled(builder, taps) as tap:
                add_tap(x_row, w_row, tap)
        for k in range(channels):
            for v in range(vectors):
                emit.store(builder.load(sums[k][v]), emit.at(rows[k], v * emit.width))
        return context.get_dummy_value()

    return signature, codegen


@kernel(emitted=True)
def multiply_tiles(
    shape: Tag, dtype: Tag, pixels: int, x: Address, x_taps: Address, w: Address, w_taps: Address, y: Address, c: int, taps: int,
    x_c: int, w_c: int, w_k: int, y_k: int, resume: int, result: Address, result_k: int,
) -> None:  # fmt: skip
    """y[k, i] = the sum over c and taps t of x[c, i + t] * w[k, c, t]: one chain of fused multiply-adds each, in this order.

    Parameters
    ----------
    shape : Tag
        A `Tile`: k < channels.
    dtype : Tag
        Of all three arrays.
    pixels : int
        i < pixels, rounded up to whole tiles.
    x, w, y : Address
        x and y are contiguous in i.
    x_taps, w_taps : Address
        Of int64 tables: the byte offset of each tap in x and in w.
    c, taps : int
        Number of channels and of taps.
    x_c, w_c, w_k, y_k : int
        Byte strides.
    resume : int
        1 to go on with the sums that y holds, instead of zero.
    result, result_k : Address, int
        Where the results of these pixels are to be written, about, and bytes between channels: that memory is asked for.
    """
    for pixel in range(0, pixels, _pixels(shape)):
        offset = pixel * _item(dtype)
        _multiply_tile(
            shape, dtype, x + offset, x_taps, w, w_taps, y + offset, c, taps, x_c, w_c, w_k, y_k, resume != 0,
            result + offset, result_k,
        )  # fmt: skip
