"""Winograd's algorithm for few tiles, as of the small planes at the end of a network: kernels are transformed in registers.

What takes the time there is not the products but the weights: to pack them, to transform them and to read them again, each for a
few tiles. A work item takes all tiles of some images for a part of the output channels, a vector of them at a time. It transforms
the input once, and lays it out in the order in which it is multiplied, ``[row][c][column][tile]``; packs the weights of some input
channels, which stay in the first-level cache; and multiplies them as `microkernels.fused_product` does, or, where registers are
few, as `microkernels.halved_product`.

The sums are the same for bound weights, which are packed and not transformed, and for any number of threads.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Verdict, np_dtype
from numconv_numba.dense.base import DenseImplementation, ForwardExecutor, Weights
from numconv_numba.dense.blocked import CALL_SECONDS, Blocked, Shape, most_workers, parts_for, seconds
from numconv_numba.dense.slab import WRITE_CYCLES, Block, block_vector
from numconv_numba.entries import FUSED, HALVE
from numconv_numba.microkernels.emit import host, lanes_of
from numconv_numba.microkernels.fused_product import FUSED_TILES, is_fused
from numconv_numba.microkernels.halved_product import HALVED_TAPS
from numconv_numba.threads import Areas, run, run_with

from .forward import Winograd, tools_of
from .fused_kernels import KERNELS
from .kernels import IN_PANELS, UNPACKED, bind_weights
from .layout import BLOCK_BYTES, CHANNELS_AT_ONCE
from .tiles import PACKED_BYTES, Tiles, cut_tiles, deep_cycles, pixels_of, spread, tiles_of

__all__ = ["FusedWinograd"]


PACK_CYCLES = 0.3, 0.9
"""Of a weight, and of one of an input_grad, whose kernels lie apart."""
HALVE_CYCLES, HALVED_CYCLES = 0.75, 3.5
"""Of an element of a kernel where it is transformed in halves, and of its products with `FUSED_TILES` tiles: fitted with AVX2."""


class _Layout(NamedTuple):
    """How a problem is cut: also places of a block's tiles, and channels of a pass, and those that are transformed together."""

    tiles: Tiles
    block: Block
    chunk: int
    slab: int

    @property
    def places(self) -> int:
        """Tiles, rounded up to those that are multiplied together."""
        return -(-self.block.tiles // FUSED_TILES) * FUSED_TILES


def _even(whole: int, most: int, unit: int) -> int:
    """The length of equal parts of at most `most`, a multiple of a unit."""
    parts = -(-whole // max(unit, most // unit * unit))
    return -(-whole // (max(parts, 1) * unit)) * unit


@functools.lru_cache(maxsize=256)
def _layout(problem: ConvProblem) -> _Layout:
    tiles, item, lanes = tiles_of(problem)[0], np_dtype(problem.acc_dtype).itemsize, lanes_of(problem.acc_dtype)
    per_c = problem.c // problem.groups

    def fits(block: Block) -> bool:
        return block.tiles * tiles.elements * per_c * item <= BLOCK_BYTES[0]

    block = cut_tiles(problem, tiles, fits)
    places = -(-block.tiles // FUSED_TILES) * FUSED_TILES
    # of a channel: packed taps, and a row of elements of all tiles, or of those that are multiplied before others are
    near = min(places, FUSED_TILES) if _halved(tiles) else places
    each = (math.prod(problem.kernel) * lanes + near * (tiles.outputs[1] + tiles.taps[1] - 1)) * item
    chunk = _even(per_c, host().resident // each, CHANNELS_AT_ONCE)
    slab = _even(per_c, PACKED_BYTES // ((pixels_of(problem, tiles, block) + 1) * item), lanes)
    return _Layout(tiles, block, min(chunk, per_c), slab)


def _halved(tiles: Tiles) -> int:
    """Vectors of a half-transformed kernel, if there are such."""
    return 0 if is_fused(tiles.transform) else (tiles.outputs[0] + tiles.taps[0] - 1) * HALVED_TAPS


def _pitch(problem: ConvProblem, layout: _Layout) -> int:
    """Elements from tile to tile of what is transformed together: they lie in different sets of a cache."""
    return spread(layout.slab, 64 // np_dtype(problem.acc_dtype).itemsize)


def _block_vector(problem: ConvProblem, layout: _Layout) -> Any:
    pitch, places, lanes = _pitch(problem, layout), layout.places, lanes_of(problem.acc_dtype)
    numbers = (
        lanes, FUSED_TILES, layout.chunk, layout.block.tiles // max(layout.block.images, 1) * pitch, places, 1, layout.slab,
        places * pitch, places * lanes, _row_elements(problem, layout), pitch, *layout.tiles.outputs, pitch,
    )  # fmt: skip
    return block_vector(layout.block, *numbers)


def _row_elements(problem: ConvProblem, layout: _Layout) -> int:
    """Of transformed input: those of all tiles in a row of a tile."""
    return problem.c // problem.groups * layout.places * (layout.tiles.outputs[1] + layout.tiles.taps[1] - 1)


def _areas(problem: ConvProblem, layout: _Layout) -> Areas:
    """A worker's scratch memory."""
    tiles, block, item, lanes = layout.tiles, layout.block, np_dtype(problem.acc_dtype).itemsize, lanes_of(problem.acc_dtype)
    pixels = pixels_of(problem, tiles, block) + 1
    size, unit = block.size, block.unit
    table = tiles.elements * math.prod(-(-q // m) for q, m in zip(size, unit, strict=True))
    table += sum(-(-q // m) * m + r for q, m, r in zip(size, unit, tiles.taps, strict=True))
    sizes = (
        layout.slab * pixels + table * 8 // item,
        tiles.elements * layout.places * _pitch(problem, layout),
        (tiles.outputs[0] + tiles.taps[0] - 1) * _row_elements(problem, layout),
        tiles.elements * layout.places * lanes,
        block.pixels * lanes,
        layout.chunk * math.prod(problem.kernel) * lanes,
        math.prod(tiles.outputs) * lanes,
        layout.chunk * _halved(tiles) * lanes,
    )
    return Areas(*(count * item for count in sizes))


# --- the implementation --------------------------------------------------------------------------------------------------------


class _Executor(ForwardExecutor):
    """One convolution."""

    def __init__(self, problem: ConvProblem):
        layout = _layout(problem)
        super().__init__(problem, layout.block.pieces * problem.groups)
        self._panels = -(-(problem.k // problem.groups) // lanes_of(problem.acc_dtype))
        self._work = problem.flops / 8
        self._areas, self._block = _areas(problem, layout), _block_vector(problem, layout)
        lanes, transform = lanes_of(problem.acc_dtype), layout.tiles.transform
        KERNELS.begin(problem.acc_dtype, transform, lanes)
        self._tools = tools_of(problem, layout.tiles, Shape(*host().channel_tiles[-1], lanes), layout.block)
        self._kernel, *halved = KERNELS.functions(problem.acc_dtype, transform, lanes)
        if halved:
            self._tools[[HALVE, FUSED]] = halved

    def packed(self, w: Any) -> Weights:
        """w in panels."""
        problem = self._problem
        per_c, panels = problem.c // problem.groups, problem.groups * self._panels
        packed = np.empty(self._panels * problem.c * math.prod(problem.kernel) * lanes_of(problem.acc_dtype), self._acc)
        vector = self._vectors((0,) * w.ndim, w.strides, (0,) * w.ndim)
        items = panels * -(-per_c // CHANNELS_AT_ONCE)
        run(bind_weights.specialise(self._acc.name), items, packed.size, self._tools, IN_PANELS, w, packed, vector, self._block)
        return Weights(packed, w.strides, True)

    def launch(self, x: Any, w: Weights, shift: Any, y: Any, status: Any, vector: Any) -> None:
        """Run the kernel."""
        splits = parts_for(self._items, self._panels, self._work)
        run_with(
            self._areas, self._kernel, self._items * splits, self._work, self._tools, splits, IN_PANELS if w.packed else UNPACKED,
            x, w.array, shift, y, status, vector, self._block,
        )  # fmt: skip

    def again(self, y: Any, ins: Any, images: Any) -> None:
        """Compute images again with `Blocked`, since what is not finite has spread over its tile."""
        executor = Blocked().build(self._problem.replace(n=1))
        for n in images:
            executor((y[n : n + 1],), (ins[0][n : n + 1], *ins[1:]))


class FusedWinograd(DenseImplementation):
    """Winograd's algorithm for few tiles of two dimensions."""

    name = "fused_winograd"
    levels = Winograd.levels
    measured_error = Winograd.measured_error

    def accepts(self, problem: ConvProblem) -> Verdict:
        """3x3 kernels of two dimensions with stride 1, of what `Winograd` takes, in the dtype of their sums."""
        if problem.kernel != (3, 3) or max(problem.stride) > 1:
            return Verdict.no(f"its kernels are 3x3 with stride 1, and this one is {problem.kernel} with {problem.stride}")
        if problem.dtype != problem.acc_dtype:
            return Verdict.no(f"it is for float32 and float64, and the dtype is {problem.dtype}")
        return Winograd().accepts(problem)

    def forward_cost(self, problem: ConvProblem) -> float:
        """Cycles of the products, of packing weights, and of the transforms of input and results."""
        layout, lanes, item = _layout(problem), lanes_of(problem.acc_dtype), np_dtype(problem.acc_dtype).itemsize
        tiles, block, per_c, per_k = layout.tiles, layout.block, problem.c // problem.groups, problem.k // problem.groups
        panels, pieces = -(-per_k // lanes), block.pieces * problem.groups
        # a third of the products again for transforming the kernel; rows of few tiles share the lines of a cache
        each = HALVED_CYCLES if _halved(tiles) else (FUSED_TILES + 2) / 2 + min(layout.places * item / 64, 1.0)
        kernel = layout.places // FUSED_TILES * each + (HALVE_CYCLES if _halved(tiles) else 0.0)
        products = pieces * panels * per_c * tiles.elements * kernel
        weights = pieces * panels * lanes * per_c * math.prod(problem.kernel) * PACK_CYCLES[problem.flip]
        output = (tiles.elements * 1.4 + math.prod(tiles.outputs) * 1.7) * host().moving
        outputs = pieces * panels * block.tiles * output + math.prod(problem.y_shape) * WRITE_CYCLES * 0.5
        # each thread lays out the input for itself
        inputs = 2 * problem.groups * deep_cycles(problem, tiles, block, per_c)
        return CALL_SECONDS + 3e-6 + seconds(products + weights + outputs + inputs)

    def forward_workspace(self, problem: ConvProblem) -> int:
        """For each thread: input, products, results, packed weights; or what `Blocked` needs."""
        layout = _layout(problem)
        own = most_workers(problem, layout.block, lanes_of(problem.acc_dtype)) * _areas(problem, layout).bytes
        return max(own, Blocked().forward_workspace(problem))

    def forward(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
