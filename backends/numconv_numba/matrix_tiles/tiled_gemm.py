"""Convolution on matrix tiles (AMX): bfloat16 itself, and float32 as sums of bfloat16 numbers, in layers.

`implicit_gemm` with other factors: its slabs and panels hold pairs of bfloat16 numbers, of two neighbouring input channels, and of
float32 two or three layers of them (see `layers`). float32 takes three products of two layers where sums have terms enough to
even out what that leaves away, and six of three layers else and at the level "high": see docs/amx.md. What is not finite is in the
first layer only, but its products with zeros of other layers would be NaN: images with such a sum are computed again by `direct`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from numconv.plugin import ConvProblem, Verdict
from numconv_numba.compiling.compiler import Address, Tag, helper, invoke, kernel
from numconv_numba.dense.base import Weights, compute_again
from numconv_numba.dense.blocked import CALL_SECONDS, Blocked, depth_of, most_workers, seconds
from numconv_numba.dense.gemm_blocks import CHANNELS, CHUNK, DEPTH, LAYERS, TAPS
from numconv_numba.dense.implicit_gemm import GemmExecutor, ImplicitGemm, Layout, areas_of, layout_with
from numconv_numba.dense.slab import WRITE_CYCLES, Block, pack_cycles
from numconv_numba.elements import INT64, itemsize, memory, release, scratch
from numconv_numba.entries import MULTIPLY, PACK_WEIGHTS, READ_WORDS
from numconv_numba.geometry import PARTS, PER_K, part
from numconv_numba.microkernels.amx import EMULATED, ROW_BYTES, ROWS
from numconv_numba.microkernels.amx_gemm import STRIPS, VECTORS, layers_of, multiply_tiles
from numconv_numba.microkernels.emit import host
from numconv_numba.microkernels.memory import FLUSHED
from numconv_numba.microkernels.tiles import Tile
from numconv_numba.microkernels.transpose import transpose
from numconv_numba.rows import clear
from numconv_numba.scalar import PAIRS, address, pointer
from numconv_numba.threads import parallel_for, run

from .amx import availability, body
from .layers import keeps_layers, layer_tables, layer_tools

__all__ = ["EMULATION", "LEVELS", "MEASURED_ERROR", "PRODUCT_CYCLES", "TiledGemm", "layer_cycles", "products_of", "supported"]

LEVELS = frozenset(("high", "default", "fast"))
MEASURED_ERROR: Mapping[str, float] = {"float32": 8e-6}
EVEN_TERMS = 64
"""Terms from which on three products of float32 keep the default level's bound: docs/amx.md has the errors."""
PRODUCT_CYCLES = 25.5
"""Of a product of full tiles on the scale of `blocked.seconds`: 1.8 TFLOP/s a core, as measured on a processor that has them."""
BLOCK_CYCLES = 120
"""Of the start and the end of a block of sums."""
EMULATION = 1e6
"""What the emulation is said to cost, against the processor's tiles: nothing else is dearer."""


def supported(problem: ConvProblem) -> Verdict:
    """bfloat16 and float32, with sums in float32."""
    if problem.dtype not in ("bfloat16", "float32") or problem.acc_dtype != "float32":
        return Verdict.no(f"its tiles sum bfloat16 or float32 in float32, and not {problem.dtype} in {problem.acc_dtype}")
    if problem.level == "high" and problem.dtype == "bfloat16":
        return Verdict.no("its products take subnormal numbers for zero, which the level 'high' keeps in bfloat16")
    return availability()


def products_of(problem: ConvProblem) -> int:
    """Products of bfloat16 numbers that make one of the problem's dtype."""
    if problem.dtype == "bfloat16":
        return 1
    return 3 if problem.terms >= EVEN_TERMS and problem.level != "high" else 6


def layer_cycles(block: Block, channels: int, layers: int) -> float:
    """Of packing so many channels of every block in layers: each takes the rounding of those before it."""
    roundings = layers * (layers + 1) / 2 if layers > 1 else 0
    return layers * pack_cycles(block, channels) + block.pieces * block.images * channels * block.channel * roundings * 0.4


@functools.lru_cache(maxsize=256)
def _layout(problem: ConvProblem) -> Layout:
    """The layout of a problem: output channels in equal tiles, of 32 at most."""
    per_k, most = problem.k // problem.groups, STRIPS * ROWS
    tile = Tile(VECTORS, -(-per_k // -(-per_k // most)), ROWS)
    layers = layers_of(products_of(problem))
    return layout_with(problem, tile, depth_of(problem, True), host().resident, layers=layers, step=ROWS)


# --- weights -------------------------------------------------------------------------------------------------------------------


@helper
def _tiles(begin, end, args):
    at, tables, w, target, g, b = args
    ws, per_k, channels, taps, layers = part(g, PARTS + 1), g[PER_K], b[CHANNELS], b[TAPS], b[LAYERS]
    width, tiles, steps = channels * itemsize(at), -(-per_k // channels), -(-b[DEPTH] * taps // ROWS)
    words = scratch(b[CHUNK] * taps * width)
    rows = memory(words)
    for item in range(begin, end):
        group, k = item // tiles, min(item % tiles * channels, per_k - channels)
        source = w + (group * g[ws] + k * g[ws + 1])
        for layer in range(layers):
            table = layer_tools(tables, layer)
            tools = pointer(table, INT64)
            for first in range(0, b[DEPTH], b[CHUNK]):
                count = min(b[CHUNK], b[DEPTH] - first)
                invoke(tools[PACK_WEIGHTS], table, rows, source, channels, first, count, taps, width, g)
                for start in range(0, count * taps, ROWS):
                    step = item * steps + (first * taps + start) // ROWS
                    place, used = target + (step * layers + layer) * channels * ROW_BYTES, min(ROWS, count * taps - start)
                    if used < ROWS:
                        clear(place, channels * ROWS, at)
                    invoke(tools[READ_WORDS], rows + start * width, width, used, channels, address(0), 0, place, ROW_BYTES)
    release(words)


@kernel
def pack_weight_tiles(
    at: Tag, region: int, workers: int, items: int, tables: Address, w: Address, target: Address, g: Address, b: Address
) -> None:
    """All tiles of w, ``[tile][step][layer][channel][16 terms]``: an item is a tile of a group. `tables`: see `layers`."""
    parallel_for(region, workers, items, _tiles, (at, tables, w, target, pointer(g, INT64), pointer(b, INT64)))


# --- the implementation --------------------------------------------------------------------------------------------------------


class _Executor(GemmExecutor):
    """One convolution on matrix tiles."""

    def __init__(self, problem: ConvProblem):
        layout, self._products = _layout(problem), products_of(problem)
        super().__init__(problem, layout, PAIRS)
        # whole steps of terms in all layers
        self._terms = _padded(self._terms) * layout.layers

    def tools(self, phases: int) -> Any:
        """A table for each layer."""
        problem, kind = self._problem, body()
        stored = FLUSHED if problem.out_dtype == "bfloat16" and host().pairs else problem.out_dtype
        entries = {
            MULTIPLY: multiply_tiles.address((kind, self._products), stored),
            READ_WORDS: transpose.address(ROWS, ("float32", "float32")),
        }
        options = {"factor": PAIRS, "phases": phases, "out": problem.out_dtype, "packs": True}
        return layer_tables(problem.dtype, self._layers, kind, self._tile.channels, entries, **options)

    def packed(self, w: Any) -> Weights:
        """w in tiles."""
        rows = self._problem.groups * self._tiles
        packed = np.empty(rows * self._tile.channels * self._terms, np.float32)
        vector = self._vectors((0,) * w.ndim, w.strides, (0,) * w.ndim)
        run(pack_weight_tiles.specialise("float32"), rows, packed.size, self._tools, w, packed, vector, self._block)
        return Weights(packed, w.strides, True)

    @functools.cached_property
    def _blocked(self) -> Any:
        """What the level "high" needs for numbers that tiles would flush."""
        return Blocked().forward(self._problem)

    def _run(self, y: Any, ins: Any, w: Weights) -> None:
        if self._problem.level == "high" and not all(map(keeps_layers, ins[:2])):
            self._blocked((y,), ins)
        else:
            super()._run(y, ins, w)

    def again(self, y: Any, ins: Any, images: Any) -> None:
        """Images with a sum that is not finite, in layers: one by one."""
        if self._layers > 1:
            compute_again(self._problem, y, ins, images)
        else:
            super().again(y, ins, images)


class TiledGemm(ImplicitGemm):
    """Direct convolution of bfloat16 and float32 as a matrix product on matrix tiles, with the lanes over pixels."""

    name = "implicit_gemm_amx"
    levels = LEVELS
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR
    paired = True

    def accepts(self, problem: ConvProblem) -> Verdict:
        """See `supported`."""
        return supported(problem)

    def layout(self, problem: ConvProblem) -> Layout:
        """See `_layout`."""
        return _layout(problem)

    def forward_cost(self, problem: ConvProblem) -> float:
        """Products, those of what is added to fill tiles included; starts and ends of blocks; gathering and packing."""
        tile, block, chunk, _, depth, layers, _ = _layout(problem)
        per_k, taps = problem.k // problem.groups, math.prod(problem.kernel)
        vectors, channels = -(-math.prod(block.size) // ROWS), -(-per_k // tile.channels) * tile.channels
        products = vectors * _padded(depth * taps) / ROWS * channels / ROWS * products_of(problem) * PRODUCT_CYCLES
        ends = -(-depth // chunk) * -(-per_k // tile.channels) * -(-vectors // VECTORS) * BLOCK_CYCLES
        gathered = layers * depth * taps * (vectors + math.prod(block.size) / block.size[-1]) * 3
        packed = layer_cycles(block, depth * problem.groups, layers)
        weights = layers * math.prod(problem.w_shape) * 2
        written = math.prod(problem.y_shape) * WRITE_CYCLES if problem.layout == "channels_last" else 0
        cycles = block.pieces * problem.groups * block.images * (products + ends + gathered) + packed + weights + written
        return (CALL_SECONDS + 2e-6 + seconds(cycles)) * (EMULATION if body() == EMULATED else 1)

    def forward_workspace(self, problem: ConvProblem) -> int:
        """For each thread a slab, a panel, sums and tables; packed w, and what is on its way there. Or what `blocked` needs."""
        layout, other = _layout(problem), Blocked().forward_workspace(problem) if problem.level == "high" else 0
        channels, taps = layout.tile.channels, math.prod(problem.kernel)
        rows = problem.groups * -(-(problem.k // problem.groups) // channels) * channels
        weights = rows * _padded(layout.depth * taps) * layout.layers * 4
        worker = areas_of(problem, layout).bytes + layout.chunk * taps * channels * 4
        return max(most_workers(problem, layout.block, channels) * worker + weights, other)

    def forward(self, problem: ConvProblem) -> GemmExecutor:
        """The executor."""
        return _Executor(problem)


def _padded(terms: int) -> int:
    """Terms of whole steps."""
    return -(-terms // ROWS) * ROWS
