"""Direct convolution as a blocked matrix product, for real floats: the columns of im2col are gathered a panel at a time.

A work item takes a block of outputs. Neighbouring outputs that fill a register tile get a panel of all that they read,
``[c][tap][pixel]``, gathered from the block's slab or from x itself; every output channel passes over it, a stream from the
second-level cache, while what is read next is fetched (see `microkernels.gemm`). Gathering costs a few cycles a term and is
shared by all output channels, and results are stored as they come, pixels side by side: so this serves many output channels;
few of them read vectors of neighbours where they lie. Pixels of a panel may belong to several images, whose sums are stored by a
further pass. No matrix of columns is ever held. Chetlur et al., "cuDNN: efficient primitives for deep learning" (2014), section 3.

The terms of an output form one chain in the order of the "strict" level.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Verdict, np_dtype
from numconv_numba.compiling.compiler import Address, Tag, Unit, helper, invoke, kernel
from numconv_numba.direct import MEASURED_ERROR
from numconv_numba.elements import INT64, itemsize
from numconv_numba.entries import CONFIGURE, LANES, MULTIPLY, PACK_WEIGHTS
from numconv_numba.geometry import DIMS, OPTION, PARTS, PER_C, PER_K, part
from numconv_numba.matrix_tiles.layers import configure_tiles, pack_layers, release_tiles
from numconv_numba.microkernels.emit import host
from numconv_numba.microkernels.tiles import Tile, tile_for
from numconv_numba.results import write_rows
from numconv_numba.rows import clear
from numconv_numba.scalar import PAIRS, is_null, pointer, store
from numconv_numba.threads import SERIAL_WORK, Areas, parallel_for, run, run_with, worker_area
from numconv_numba.tools import tools_for

from .base import DenseImplementation, ForwardExecutor, Weights
from .blocked import (
    BLOCK_CYCLES,
    CALL_SECONDS,
    PLACE_CYCLES,
    array_origin,
    depth_of,
    most_workers,
    parts_for,
    seconds,
    window_steps,
)
from .panels import PACK_WORK, fill_places, fill_terms, lines_of, run_offset, runs_of
from .patches import is_patchwise
from .slab import (
    BLOCKS,
    CHANNEL,
    EXTRA,
    IMAGES,
    SHARES,
    WRITE_CYCLES,
    Block,
    block_image,
    block_images,
    block_vector,
    cut,
    pack_cycles,
    shareable,
    slab_bytes,
    tap_offsets,
    tap_positions,
)  # fmt: skip

__all__ = ["CHANNELS", "CHUNK", "DEPTH", "LAYERS", "TAPS", "GemmExecutor", "ImplicitGemm", "Layout", "areas_of", "layout_with"]

SLAB_BYTES = 768 * 1024
"""The packed input of a block: it shares the second-level cache with a panel and the weights."""
PANEL_BYTES = 128 * 1024
"""What is gathered at a time: tiles read it as a stream from the second-level cache, which costs less than to part their sums."""
STREAM_BYTES = 16
"""That a tile may take from there in a cycle; wide ones take more, and read panels that stay in the first-level cache."""
SHARED_PIXELS = 1024
"""Of a block that is read where it lies and not cut further for more threads, which share its output channels."""
DIRECT_TILES = 16
"""Tiles of output channels up to which vectors of neighbours are not copied into a panel, but read where they lie."""
TILE_CYCLES = 2.5
"""Of the start and the end of each vector of a tile's sums."""
LINE_CYCLES = 3
"""Of a vector of results on its way through the caches, which is fetched while the terms of a tile are added up."""
PAGES = 1.12
"""What products with channels of x take that lie pages apart."""
SHARED_CYCLES, PARTED_CYCLES = 1500, 12
"""Of a panel that belongs to two images, whose results are stored by a pass of their own, and of each vector of these."""
LOADED_CYCLES = 0.4
"""Of a weight on its way to the first-level cache, once for a block."""
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


# A block's own numbers: output channels and vectors of a tile, input channels (or pairs) of a panel, taps, channels of a group,
# layers of a factor.
CHANNELS, VECTORS, CHUNK, TAPS, DEPTH, LAYERS = range(EXTRA, EXTRA + 6)
UINT8 = Tag("uint8")

# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def panel_pieces(pieces, pixels, first, count, lanes, size):
    """Pixels first .. first + count of a block as runs of neighbours, no longer than a vector: (source, target, length)."""
    filled, start = 0, 0
    while start < count:
        source, length, most = pixels[first + start], 1, min(lanes, count - start)
        while length < most and pixels[first + start + length] == source + length * size:
            length += 1
        pieces[3 * filled], pieces[3 * filled + 1], pieces[3 * filled + 2] = source, start * size, length
        filled += 1
        start += length
    return filled


@helper
def fill_taps(terms, taps, channels, channel, count, layers, layer_step):
    """The offset of each term in a slab: of every tap in each channel, in each layer."""
    for c in range(channels):
        for tap in range(count):
            for layer in range(layers):
                terms[(c * count + tap) * layers + layer] = taps[tap] + c * channel + layer * layer_step


@helper
def write_runs(sums, width, rows, run, k, bias, y, lines, g, tools, yt, at):
    """Sums of a panel for `rows` output channels from k on; `run`: the first pixel, pixels, and those of a run of y.

    Runs begin at y + lines[i].
    """
    ys, size, (start, pixels, length) = part(g, PARTS + 2), itemsize(at), run
    k_step, q_step = g[ys + 2], g[ys + 3 + g[DIMS] - 1]
    done = 0
    while done < pixels:
        line, first = (start + done) // length, (start + done) % length
        count = min(length - first, pixels - done)
        target = y + (k * k_step + lines[line] + first * q_step)
        write_rows(sums + done * size, width, rows, count, bias, g[OPTION], target, k_step, q_step, tools, yt, at)
        done += count


@helper
def multiply_tiles(
    tiles, k, w, y, lines, run, vectors, passed, resume, last, bias, areas, x, count, ahead, steps, g, b, tools, yt, at
):  # fmt: skip
    """So many tiles of output channels from k on, with `passed` terms that begin at w; returns whether a sum is not finite.

    `areas`: the panel, the sums of these tiles, offsets of terms, pieces. `run`, `lines`: see `write_runs`. `ahead`: see `gemm`.
    """
    size, ys, ndim, (start, pixels, length) = itemsize(at), part(g, PARTS + 2), g[DIMS], run
    k_step, q_step = g[ys + 2], g[ys + 3 + ndim - 1]
    panel, sums, offsets, pieces = areas
    # sums as the tile stores them, or rows that need more
    plain = (q_step == itemsize(yt)) & (g[OPTION] <= 1) & (start % length + pixels <= length)
    shift = bias if is_null(bias) else bias + k * size
    target = y + (k * k_step + lines[start // length] + start % length * q_step)
    bad = invoke(
        tools[MULTIPLY], vectors, panel, passed, w, steps[0], steps[1], steps[2], tiles, sums, resume, 1 if last and plain else 0,
        target, k_step, pixels, shift, g[OPTION], x, offsets, pieces, count, ahead,
    )  # fmt: skip
    if last and not plain:
        write_runs(sums, vectors * tools[LANES] * size, tiles * b[CHANNELS], run, k, shift, y, lines, g, tools, yt, at)
    return last and bad != 0


@helper
def multiply_panel(
    first_tile, last_tile, w, w_last, y, lines, run, areas, x, channel, found, following, bias, steps, g, b, tools, yt, at
):  # fmt: skip
    """The outputs of a panel for the tiles first_tile .. last_tile; w and y at the group's first output channel.

    `following`: the bytes from its first pixel to that of the next panel, or 0.
    """
    depth, per_k, channels = b[DEPTH], g[PER_K], b[CHANNELS]
    vectors, size = -(-run[1] // tools[LANES]), itemsize(at)
    panel, sums, offsets, pieces = areas
    if (found >= 0) & (run[1] < vectors * tools[LANES]):
        # stray bits could be denormal numbers, which are slow
        clear(panel, b[CHUNK] * b[TAPS] * b[LAYERS] * vectors * tools[LANES], at)
    whole, bad = max(min(last_tile, per_k // channels) - first_tile, 0), False
    for first in range(0, depth, b[CHUNK]):
        passed, resume, last = min(b[CHUNK], depth - first) * b[TAPS], 1 if first > 0 else 0, first + b[CHUNK] >= depth
        count = found
        # the next channels of this panel, or the first ones of the next panel
        ahead = (following - first * channel if following else 0) if last else b[CHUNK] * channel
        # a last tile that is not full overlaps the one before, whose channels it computes again
        for ending in range(2):
            tiles = (1 if first_tile + whole < last_tile else 0) if ending else whole
            if tiles > 0:
                k, offset, done = first_tile * channels, first_tile * steps[2], 0
                if ending:
                    k, offset, done = per_k - channels, w_last, whole * channels * vectors * tools[LANES] * size
                bad |= multiply_tiles(
                    tiles, k, w + (offset + first * b[TAPS] * steps[0]), y, lines, run, vectors, passed, resume, last, bias,
                    (panel, sums + done, offsets, pieces), x + first * channel, count, ahead, steps, g, b, tools, yt, at,
                )  # fmt: skip
                count = min(found, 0)
    return bad


@helper
def _blocks(begin, end, args):
    (
        yt, at, items, workers, scratch, areas, tables, splits, in_place, taps, x, w, w_group, w_last, steps, bias, y, status, g, b,
    ) = args  # fmt: skip
    tools = pointer(tables, INT64)
    ndim, per_k, size = g[DIMS], g[PER_K], itemsize(at)
    xs, ys, tiles, width = part(g, PARTS), part(g, PARTS + 2), -(-g[PER_K] // b[CHANNELS]), b[VECTORS] * tools[LANES]
    own = worker_area(scratch, areas, AREAS, workers, items, begin)
    pixels, terms = pointer(own + areas[PLACES], INT64), pointer(own + areas[TERMS], INT64)
    axis_steps, pieces = pointer(own + areas[STEPS], INT64), pointer(own + areas[PIECES], INT64)
    lines = pointer(own + areas[LINES], INT64)
    window_steps(axis_steps, in_place, g, b, size)
    image, channel = (g[xs], g[xs + 2]) if in_place else (b[DEPTH] * b[CHANNEL] * size, b[CHANNEL] * size)
    if in_place:
        fill_terms(terms, b[CHUNK], channel, ndim, axis_steps, g)
    else:
        fill_taps(terms, taps, b[CHUNK], channel, b[TAPS], b[LAYERS], b[IMAGES] * image)
    parts = own + areas[PANEL], own + areas[SUMS], own + areas[TERMS], own + areas[PIECES]
    where, source, run, each, total = -1, x, 1, 1, 0
    configure_tiles(tools)
    for item in range(begin, end):
        block, group = item // splits % b[BLOCKS], item // splits // b[BLOCKS]
        n = block_image(b, ndim, block)
        if item // splits != where:
            where, source = item // splits, x + (n * g[xs] + group * g[xs + 1])
            fill_places(pixels, 1, image, axis_steps, g, b, block)
            inner, run = runs_of(g, b, block, PARTS + 2)
            each = lines_of(inner, g, b, block)
            total = block_images(g, b, block) * each * run
            for line in range(total // run):
                lines[line] = (n + line // each) * g[ys] + run_offset(line % each, inner, g, b, block)
            if in_place:
                source = source + array_origin(g, b, block)
            else:
                slab, images = own + areas[SLAB], block_images(g, b, block)
                pack_layers(tables, b[LAYERS], b[IMAGES] * image, slab, source, block, images, g[PER_C], g, b)
                source = slab
        first_tile, last_tile = tiles * (item % splits) // splits, tiles * (item % splits + 1) // splits
        shift = bias if is_null(bias) else bias + group * per_k * size
        for start in range(0, total, width):
            used = min(width, total - start)
            found = panel_pieces(pieces, pixels, start, used, tools[LANES], size)
            if (tools[CONFIGURE] == 0) & (tiles <= DIRECT_TILES) & (found * tools[LANES] == used):
                found = -1
            following = pixels[start + width] - pixels[start] if start + width < total else 0
            if multiply_panel(
                first_tile, last_tile, w + group * w_group, w_last, y + group * g[ys + 1], lines, (start, used, run), parts, source,
                channel, found, following, shift, steps, g, b, tools, yt, at,
            ):  # fmt: skip
                for line in range(start // run, -(-(start + used) // run)):
                    store(status + (n + line // each), np.uint8(1), UINT8)
    release_tiles(tools)


# The parts of a worker's scratch memory: offsets of pixels, of runs in y, of terms, bytes from position to position, pieces of a
# panel; the slab, a panel, sums of all output channels.
PLACES, LINES, TERMS, STEPS, PIECES, SLAB, PANEL, SUMS, AREAS = range(9)


@kernel
def implicit_gemm(
    yt: Tag, at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, tools: Address, splits: int,
    in_place: int, taps: Address, x: Address, w: Address, w_step: int, w_k: int, w_tile: int, w_group: int, w_last: int,
    bias: Address, y: Address, status: Address, g: Address, b: Address,
) -> None:  # fmt: skip
    """y from x and w: an item is a block of outputs for some of the tiles of output channels.

    `tools`: see `tools_for`, or a table for each layer; `taps`: the byte offset of each tap in a channel of the slab. Weights lie
    `w_step` bytes apart from term to term, `w_k` from channel to channel of a tile, `w_tile` from tile to tile and `w_group` from
    group to group; the last tile, which ends with the last channel, starts at `w_last`. `status` gets a 1 for each image of which
    a sum is not finite. Weights and bias are in the accumulation dtype.
    """
    parallel_for(
        region,
        workers,
        items,
        _blocks,
        (
            yt, at, items, workers, scratch, pointer(areas, INT64), tools, splits, in_place,
            pointer(taps, INT64), x, w, w_group, w_last, (w_step, w_k, w_tile), bias, y, status, pointer(g, INT64),
            pointer(b, INT64),
        ),
    )  # fmt: skip


@helper
def _tiles(begin, end, args):
    at, tools, w, target, g, b = args
    ws, depth, per_k, width = part(g, PARTS + 1), b[DEPTH], g[PER_K], b[CHANNELS] * itemsize(at)
    tiles = -(-per_k // b[CHANNELS])
    for item in range(begin, end):
        group, k = item // tiles, min(item % tiles * b[CHANNELS], per_k - b[CHANNELS])
        place, source = target + item * depth * b[TAPS] * width, w + (group * g[ws] + k * g[ws + 1])
        invoke(tools[PACK_WEIGHTS], tools, place, source, b[CHANNELS], 0, depth, b[TAPS], width, g)


@kernel
def pack_tiles(
    at: Tag, region: int, workers: int, items: int, tools: Address, w: Address, target: Address, g: Address, b: Address
) -> None:
    """All tiles of w, ``[tile][c][tap][channel]``: an item is a tile of a group."""
    parallel_for(region, workers, items, _tiles, (at, pointer(tools, INT64), w, target, pointer(g, INT64), pointer(b, INT64)))


_kernels = Unit("implicit_gemm.kernels", called=lambda out, acc: [(implicit_gemm, (out, acc)), (pack_tiles, (acc,))])


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
        8 * terms * layout.layers,
        8 * problem.ndim,
        24 * layout.width,
        slab,
        rows * layout.width * item,
        tiles * layout.tile.channels * layout.width * item,
    )


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
        self._tools = self.tools(block.step[-1])
        self._kernel, self._pack = _kernels.functions(problem.out_dtype, problem.acc_dtype)

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
        each = max(terms / 2 * 1.02 * rate * apart, LINE_CYCLES)
        products = tiles * (vectors * tile.channels * each + panels * tile.vectors * tile.channels * TILE_CYCLES)
        # vectors of a panel that end with a run of neighbours take another piece; panels without an end are read where they lie
        run = _run(problem, block, in_place)
        ended = min(1.0, tile.vectors * tile.lanes / run) if run % tile.lanes else 0.0
        if tiles > DIRECT_TILES:
            ended = 1.0
        gathered = terms * (vectors + block.pixels / run) * (2 + 3 * ended)
        parted = min(block.images - 1, panels) * (SHARED_CYCLES + per_k * tile.vectors * PARTED_CYCLES)
        packed = 0 if in_place else pack_cycles(block, depth * problem.groups)
        # kernels are flipped in an input_grad, where the terms of an output channel do not follow each other
        packs = problem.dtype != problem.acc_dtype or (problem.flip and math.prod(problem.kernel) > 1)
        size = math.prod(problem.w_shape)
        alone = 2 if size * PACK_WORK < SERIAL_WORK else 1  # one thread packs few weights
        weights = size * (2 * alone if packs else LOADED_CYCLES * pieces / problem.groups)
        written = math.prod(problem.y_shape) * WRITE_CYCLES if problem.layout == "channels_last" else 0
        started = BLOCK_CYCLES + block.pixels * PLACE_CYCLES
        cycles = pieces * (started + products + gathered + parted) + packed + weights + written
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
