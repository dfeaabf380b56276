"""Direct convolution as a blocked matrix product, for real floats: the columns of im2col are gathered a panel at a time.

A work item takes a block of outputs. Outputs that fill a register tile get a panel of all that they read, ``[c][tap][pixel]``,
gathered from the block's slab or from x itself; every output channel passes over it, a stream from the second-level cache, while
what is read next is fetched (see `microkernels.gemm`). Pixels of a panel may belong to several images: see `gemm_blocks`, which has
the kernel. Gathering costs a few cycles a term and is shared by all output channels, and results are stored as they come, pixels
side by side: so this serves many output channels. No matrix of columns is ever held. Chetlur et al., "cuDNN: efficient primitives
for deep learning" (2014), section 3.

The terms of an output form one chain in the order of the "strict" level.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Verdict, np_dtype
from numconv_numba.direct import MEASURED_ERROR
from numconv_numba.microkernels.emit import host
from numconv_numba.microkernels.tiles import Tile, tile_for
from numconv_numba.scalar import PAIRS
from numconv_numba.threads import SERIAL_WORK, Areas, run, run_with
from numconv_numba.tools import tools_for

from .base import DenseImplementation, ForwardExecutor, Weights
from .blocked import CALL_SECONDS, LINE, depth_of, most_workers, parts_for, seconds
from .gemm_blocks import gemm_kernels
from .panels import PACK_WORK
from .patches import is_patchwise
from .slab import SHARES, WRITE_CYCLES, Block, block_vector, cut, pack_cycles, shareable, slab_bytes, tap_offsets, tap_positions

__all__ = ["GemmExecutor", "ImplicitGemm", "Layout", "areas_of", "layout_with"]

SLAB_BYTES = 768 * 1024
"""The packed input of a block: it shares the second-level cache with a panel and the weights."""
PANEL_BYTES = 128 * 1024
"""What is gathered at a time: tiles read it as a stream from the second-level cache, which costs less than to part their sums."""
STREAM_BYTES = 16
"""That a tile may take from there in a cycle; wide ones take more, and read panels that stay in the first-level cache."""
SHARED_PIXELS = 1024
"""Of a block that is read where it lies and not cut further for more threads, which share its output channels."""
BLOCK_CYCLES, PLACE_CYCLES = 200, 7
"""Of the start of a block of a group, and of finding the place of one of its pixels."""
FILLED_CYCLES = 3
"""Of a vector of a term that the first tile copies into the panel, beyond its products."""
GATHERED_CYCLES = 5
"""Of a vector that is gathered from pieces, and of each piece."""
TILE_CYCLES = 2.5
"""Of the start and the end of each vector of a tile's sums."""
LINE_CYCLES = 3
"""Of a vector of results on its way through the caches, which is fetched while the terms of a tile are added up."""
PAGES = 1.12
"""What products with channels of x take that lie pages apart."""
RUN_CYCLES, PARTED_CYCLES = 200, 6
"""Of a piece of results, which are stored by a pass of their own, and of that piece of an output channel."""
LOADED_CYCLES = 0.4
"""Of a weight on its way to the first-level cache, once for a block."""
WAY = 64 * 1024
"""Bytes of a way of the second-level cache: lines that lie a multiple of it apart share a set."""
CROWDED_CYCLES = 1
"""Of a term of a tile whose weights the second-level cache has lost to others in their sets: measured with AVX2."""
APART_CYCLES = 24
"""Of a term of a tile in a phase of a strided input_grad: its weights lie a kernel apart, and those of the next term pages away."""


class Layout(NamedTuple):
    """How a problem is cut, and its factors.

    The tile, the block, input channels (or pairs) of a panel, whether panels are gathered from x itself, channels of a group; the
    layers of a factor, and terms of which the panel has room for a multiple.
    """

    tile: Tile
    block: Block
    chunk: int
    in_place: bool
    depth: int
    layers: int = 1
    step: int = 1

    @property
    def width(self) -> int:
        """Pixels of a panel."""
        return self.tile.vectors * self.tile.lanes


def _in_place(problem: ConvProblem) -> bool:
    """Whether all windows stay inside x, and neighbouring outputs read neighbours."""
    inside = all(low <= 0 and high <= 0 for low, high in problem.padding)
    return inside and problem.dtype == problem.acc_dtype and max(problem.stride) == 1 and problem.layout == "channels_first"


@functools.lru_cache(maxsize=256)
def _layout(problem: ConvProblem, paired: bool) -> Layout:
    """The layout of a problem, which its cost, its workspace and its executor ask for one after the other."""
    return _layout_at(problem, paired, _in_place(problem))


def _layout_at(problem: ConvProblem, paired: bool, in_place: bool) -> Layout:
    tile = tile_for(problem.acc_dtype, problem.k // problem.groups)
    streamed = 2 * host().width <= STREAM_BYTES * tile.channels
    panel = PANEL_BYTES if streamed else host().resident
    return layout_with(problem, tile, depth_of(problem, paired), panel, in_place=in_place)


def layout_with(
    problem: ConvProblem, tile: Tile, depth: int, panel: int, *, in_place: bool = False, layers: int = 1, step: int = 1
) -> Layout:
    """The largest block that fits the caches, and a panel of so many bytes.

    `step`: panels but the last of a pixel have a multiple of so many terms.
    """
    item, taps = np_dtype(problem.acc_dtype).itemsize, math.prod(problem.kernel)

    def fits(block: Block) -> bool:
        if in_place:
            alone = block.images in (1, problem.n)  # blocks of some images could be of different sizes
            return (alone and block.pixels <= SHARED_PIXELS) or shareable(problem, block)
        few = block.pixels < 2 * SHARES * tile.vectors * tile.lanes
        return layers * slab_bytes(problem, block, depth) <= SLAB_BYTES and (few or shareable(problem, block))

    block = cut(problem, problem.stride, tap_positions(problem), (1,) * problem.ndim, fits, problem.n)
    unit = step // math.gcd(step, taps)
    most = max(1, panel // (unit * layers * taps * tile.vectors * tile.lanes * item)) * unit
    chunk = -(-depth // (max(1, -(-depth // most)) * unit)) * unit
    return Layout(tile, block, min(depth, chunk), in_place, depth, layers, step)


def _run(problem: ConvProblem, block: Block, in_place: bool) -> int:
    """Neighbours in what a panel is gathered from: rows of outputs that are read whole follow each other."""
    run = 1
    for size, read in zip(reversed(block.size), reversed(problem.spatial if in_place else block.pitch), strict=True):
        run *= size
        if size < read:
            break
    return run


# --- the implementation --------------------------------------------------------------------------------------------------------


def areas_of(problem: ConvProblem, layout: Layout) -> Areas:
    """A worker's scratch memory."""
    item, terms = np_dtype(problem.acc_dtype).itemsize, layout.chunk * math.prod(problem.kernel)
    rows = layout.layers * -(-terms // layout.step) * layout.step
    tiles = -(-(problem.k // problem.groups) // layout.tile.channels)
    slab = 0 if layout.in_place else layout.layers * slab_bytes(problem, layout.block, layout.depth)
    return Areas(
        8 * layout.block.pixels,
        8 * layout.block.pixels,
        8 * layout.block.pixels,
        8 * terms * layout.layers,
        8 * problem.ndim,
        24 * layout.width,
        8 * layout.tile.vectors,
        slab,
        rows * layout.width * item,
        tiles * layout.tile.channels * layout.width * item,
    )


def _crowds(problem: ConvProblem, terms: int) -> bool:
    """Whether the weights of a tile leave the second-level cache before the next tile reads the rest of their lines.

    Those of an input_grad of one tap lie as far apart from term to term as w is wide: powers of two share few sets. Tiles of longer
    vectors have twice the time for each term.
    """
    step = problem.k // problem.groups * np_dtype(problem.dtype).itemsize
    if host().width >= LINE or not problem.flip or math.prod(problem.kernel) > 1 or step < LINE:
        return False
    sets = WAY // math.gcd(step, WAY) if step % LINE == 0 else WAY // LINE
    return terms >= sets * (host().second_level // WAY)


def term_step(w: Any) -> int | None:
    """The bytes from term to term of w ``[K, C/G, *R]``, where all terms of an output channel lie evenly spaced."""
    if w.flags.c_contiguous:
        return int(w.itemsize)
    axes = [(size, step) for size, step in zip(w.shape[:0:-1], w.strides[:0:-1], strict=True) if size > 1]
    run, first = 1, axes[0][1] if axes else w.itemsize
    for size, step in axes:
        if step != run * first:
            return None
        run *= size
    return int(first)


class GemmExecutor(ForwardExecutor):
    """One convolution as a matrix product; `factor`: the dtype of factors, where it is not that of sums."""

    def __init__(self, problem: ConvProblem, layout: Layout, factor: str):
        tile, block = layout.tile, layout.block
        super().__init__(problem, block.pieces * problem.groups)
        self._per_k = problem.k // problem.groups
        self._tile = tile
        self._tiles = -(-self._per_k // tile.channels)
        self._terms = layout.depth * math.prod(problem.kernel)
        self._factor = factor
        self._layers = layout.layers
        self._work = problem.flops / 2
        self._in_place = layout.in_place
        self._areas = areas_of(problem, layout)
        self._taps = np.array(tap_offsets(problem, block), np.int64) * self._acc.itemsize
        numbers = layout.chunk, len(self._taps), layout.depth, layout.layers
        self._block = block_vector(block, tile.channels, tile.vectors, *numbers)
        gemm_kernels.begin(problem.out_dtype, problem.acc_dtype)
        self._tools = self.tools(block.step[-1])
        self._kernel, self._pack = gemm_kernels.functions(problem.out_dtype, problem.acc_dtype)

    def tools(self, phases: int) -> Any:
        """What the kernel calls by address; `phases`: of a row of the slab."""
        problem, tile = self._problem, self._tile
        return tools_for(
            problem.dtype, problem.acc_dtype, tile.lanes, factor=self._factor, phases=phases, out=problem.out_dtype,
            gemm_shape=tuple(tile),
        )  # fmt: skip

    def unpacked(self, w: Any) -> Weights:
        """w as it lies, where it has the accumulation dtype and its terms are evenly spaced."""
        as_it_lies = w.dtype is self._acc and not self._factor and term_step(w) is not None
        return Weights(w, w.strides) if as_it_lies else self.packed(w)

    def packed(self, w: Any) -> Weights:
        """w in tiles."""
        rows = self._problem.groups * self._tiles
        packed = np.empty(rows * self._tile.channels * self._terms, self._acc)
        vector = self._vectors((0,) * w.ndim, w.strides, (0,) * w.ndim)
        run(self._pack, rows, packed.size * PACK_WORK, self._tools, w, packed, vector, self._block)
        return Weights(packed, w.strides, True)

    def _steps(self, w: Weights) -> tuple[int, int, int, int, int]:
        """From term to term, from channel to channel, from tile to tile, from group to group, and to the last tile."""
        item, channels = self._acc.itemsize, self._tile.channels
        if w.packed:
            tile = channels * self._terms * item
            return channels * self._layers * item, item, tile, self._tiles * tile, (self._tiles - 1) * tile
        step, k = term_step(w.array), w.strides[0]
        assert step is not None
        return step, k, channels * k, self._per_k * k, (self._per_k - channels) * k

    def launch(self, x: Any, w: Weights, shift: Any, y: Any, status: Any, vector: Any) -> None:
        """Run `implicit_gemm`; x whose neighbours lie apart is packed after all."""
        if self._in_place and x.strides[-1] != x.itemsize:
            self._apart.launch(x, w, shift, y, status, vector)
            return
        splits = parts_for(self._items, self._tiles, self._work)
        run_with(
            self._areas, self._kernel, self._items * splits, self._work, self._tools, splits, int(self._in_place), self._taps, x,
            w.array, *self._steps(w), shift, y, status, vector, self._block,
        )  # fmt: skip

    @functools.cached_property
    def _apart(self) -> GemmExecutor:
        """For x whose neighbours lie apart."""
        return GemmExecutor(self._problem, _layout_at(self._problem, False, False), self._factor)


class ImplicitGemm(DenseImplementation):
    """Direct convolution of real floats as a matrix product with the lanes over pixels."""

    name = "implicit_gemm"
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR
    paired = False
    """Whether the factors are pairs of bfloat16 numbers."""

    def accepts(self, problem: ConvProblem) -> Verdict:
        """All of them."""
        return Verdict.yes()

    def layout(self, problem: ConvProblem) -> Layout:
        """How a forward problem is cut."""
        return _layout(problem, self.paired)

    def forward_cost(self, problem: ConvProblem) -> float:
        """Products, those of unused lanes included; starts and ends of tiles; gathering and packing."""
        tile, block, _, in_place, depth, *_ = self.layout(problem)
        per_k, taps, rate = problem.k // problem.groups, math.prod(problem.kernel), 1.0
        if self.paired:
            rate = host().pair_cycles * 1.1  # more loads beside each product
        pieces, tiles, terms = block.pieces * problem.groups, -(-per_k // tile.channels), depth * taps
        panels, vectors = -(-block.pixels // (tile.vectors * tile.lanes)), -(-block.pixels // tile.lanes)
        apart = PAGES if in_place and math.prod(problem.spatial) * np_dtype(problem.dtype).itemsize >= 4096 else 1.0
        lost = CROWDED_CYCLES * terms * panels * tiles if _crowds(problem, terms) else 0
        each = max(terms / 2 * 1.02 * rate * apart, LINE_CYCLES)
        products = tiles * (vectors * tile.channels * each + panels * tile.vectors * tile.channels * TILE_CYCLES)
        # whole vectors of neighbours are copied by the first tile, others before, in pieces, and their sums are stored in pieces
        run = _run(problem, block, in_place)
        runs, left = block.pixels // run, run % tile.lanes
        others, ends = -(-runs * left // tile.lanes), runs if left else 0
        gathered = terms * (runs * (run // tile.lanes) * FILLED_CYCLES + (others + ends) * GATHERED_CYCLES)
        parted = ends * (RUN_CYCLES + per_k * PARTED_CYCLES) if block.images > 1 else 0
        packed = 0 if in_place else pack_cycles(block, depth * problem.groups)
        # kernels are flipped in an input_grad, where the terms of an output channel do not follow each other
        packs = problem.dtype != problem.acc_dtype or (problem.flip and math.prod(problem.kernel) > 1)
        size = math.prod(problem.w_shape)
        packing = 4 if size * PACK_WORK < SERIAL_WORK else 2  # one thread packs few weights
        weights = size * (packing if packs else LOADED_CYCLES * pieces / problem.groups)
        written = math.prod(problem.y_shape) * WRITE_CYCLES if problem.layout == "channels_last" else 0
        # by each thread that computes some of a block's output channels, or groups
        laid = block.pieces * block.pixels * PLACE_CYCLES * (2 if block.pieces == 1 or problem.groups > 1 else 1)
        alone = 2 if pieces * tiles == 1 else 1
        cycles = laid + alone * pieces * (BLOCK_CYCLES + products + lost + gathered + parted) + packed + weights + written
        return CALL_SECONDS + 2e-6 + seconds(cycles, problem.flops / 2)

    def cost(self, problem: ConvProblem) -> float:
        """Of all phases of an input_grad with a stride too, which read w where it lies."""
        cost = super().cost(problem)
        if problem.op == "forward" or max(problem.stride) == 1 or is_patchwise(problem) or problem.dtype != problem.acc_dtype:
            return cost
        tile = tile_for(problem.acc_dtype, problem.c // problem.groups)
        places = problem.n * math.prod(-(-size // s) for size, s in zip(problem.spatial, problem.stride, strict=True))
        terms = math.prod(problem.w_shape) / tile.channels * -(-places // (tile.vectors * tile.lanes))
        return cost + seconds(terms * APART_CYCLES)

    def forward_workspace(self, problem: ConvProblem) -> int:
        """For each thread a slab, a panel, sums and tables; w packed or in the accumulation dtype."""
        layout = self.layout(problem)
        item = np_dtype(problem.acc_dtype).itemsize
        weights = 2 * (math.prod(problem.w_shape) + problem.groups * layout.tile.channels * problem.c * math.prod(problem.kernel))
        layouts = (layout, _layout_at(problem, False, False)) if layout.in_place else (layout,)
        areas = (most_workers(problem, each.block, each.tile.channels) * areas_of(problem, each).bytes for each in layouts)
        return max(areas) + weights * item

    def forward(self, problem: ConvProblem) -> GemmExecutor:
        """The executor."""
        return GemmExecutor(problem, self.layout(problem), PAIRS if self.paired else "")
