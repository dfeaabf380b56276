"""Direct convolution on register tiles with the lanes over output channels, for real floats.

A work item takes a block of outputs and some panels of output channels. The part of x that the block reads is packed into a slab
(see `slab`), or read where it lies if nothing of it is padding. The weights of a panel are packed, some input channels at a time,
which stay in the second-level cache while the tile passes over the pixels of the block. This is the blocked direct
convolution of Georganas et al., "Anatomy of high-performance deep learning convolutions on SIMD architectures" (SC18), section II,
on arrays that need not be blocked themselves.

The terms of an output form one chain in the order of the "strict" level.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Verdict, np_dtype
from numconv_numba.compiling.compiler import Address, Tag, helper, invoke, kernel
from numconv_numba.direct import MEASURED_ERROR
from numconv_numba.elements import INT64, itemsize
from numconv_numba.entries import COPY, LANES, PACK, PACK_WEIGHTS, PRODUCT, WRITE
from numconv_numba.geometry import DIMS, LOW, OPTION, PARTS, PER_C, PER_K, STRIDE, part
from numconv_numba.microkernels.emit import host, lanes_of
from numconv_numba.scalar import PAIRS, is_null, move, pointer
from numconv_numba.threads import (
    MAX_THREADS,
    SERIAL_WORK,
    Areas,
    area_of,
    parallel_for,
    parallel_items,
    run,
    run_with,
    taken_items,
    threads,
)
from numconv_numba.tools import tools_for

from .base import DenseImplementation, ForwardExecutor, Weights
from .panels import fill_places, fill_terms
from .slab import (
    B_PITCH,
    B_STEP,
    BLOCKS,
    CHANNEL,
    EXTRA,
    FEW_PIECES,
    MANY_PIECES,
    WRITE_CYCLES,
    Block,
    axis_entry,
    block_image,
    block_images,
    block_start,
    block_vector,
    cut,
    pack_cycles,
    pieces_for,
    pieces_here,
    shareable,
    slab_bytes,
    tap_positions,
)  # fmt: skip

__all__ = [
    "BLOCK_CYCLES", "MOST_PARTS", "PLACE_CYCLES", "Blocked", "Layout", "Shape", "array_origin", "divided", "most_workers",
    "pack_weight_cycles", "panel_shape", "parts_for", "reads_in_place", "seconds", "shares_of", "tile_cycles", "window_steps",
]  # fmt: skip

SLAB_BYTES = 896 * 1024
"""The packed input of a block: it stays in the second-level cache while all output channels pass over it."""
RESULT_BYTES = 256 * 1024
"""The sums of a block for a panel: they share that cache with the slab."""
LEAST_PIXELS = 128
"""Of a block of one image that is not cut further for more threads: some tiles, beside which packing the weights is little."""
KEPT_BYTES = 2 * 1024 * 1024
"""Packed weights that a worker keeps from block to block."""
PAIRED_WRITE_CYCLES = 0.6
"""As `slab.WRITE_CYCLES`, of results of half the size."""


PANEL_BYTES = 128 * 1024
"""Weights of a panel that are packed at a time: tiles read them as a stream from the second-level cache, which costs less than to
part their sums."""


LINE = 64
"""Bytes of a line of the caches. Of vectors as long, weights are most of what a term of a tile reads; of shorter ones, x is."""
GATHERED_PANELS = 4
"""More of these share the gathering of what their tiles read in place."""
GATHERED_CYCLES, APART_CYCLES = 3, 2
"""Of gathering a tile's neighbours of a channel, and each of its positions where they lie apart: counted, with AVX2."""
ALIKE = 1.03
"""Estimates of tiles that are nearer to each other are taken for the same."""
SCATTERED = 1.3
"""What products of short vectors take with channels that lie apart, and that the first-level cache does not hold: with AVX2."""


class Shape(NamedTuple):
    """A register tile with the lanes over channels: `vectors` x `positions` accumulators."""

    vectors: int
    positions: int
    lanes: int

    @property
    def width(self) -> int:
        """Channels of a panel."""
        return self.vectors * self.lanes


SHARED_CACHE = 8 * 1024 * 1024
"""Bytes of x that cores are taken to find in a cache that they share."""
WAITED_CYCLES = 0.9
"""Of an element of x beyond it that is read where it lies, and that nothing has fetched before."""
CALL_SECONDS = 3e-6
"""Of a call that computes nothing."""
BLOCK_CYCLES, PLACE_CYCLES = 1000, 4
"""Of the start of a block of a group, and of finding the place of one of its pixels."""
MOST_PARTS = 16
"""That the output channels of a block, or the taps of a panel, are shared in at most."""


def seconds(cycles: float, work: float = SERIAL_WORK) -> float:
    """On two threads at the clock of a server, and on one where `run` is told of so little work.

    Estimates must not depend on the machine that computes them.
    """
    return cycles / 2.8e9 / (1 if work < SERIAL_WORK else 2)


def tile_cycles(vectors: int, positions: int) -> float:
    """Of a term of a tile: two multiply-adds a cycle, less where the loads of few vectors for many positions get in the way."""
    return vectors * positions / 2 * (1, 1.35, 1.06, 1.04, 1.04)[vectors]


def fitted_cycles(vectors: int, positions: int, count: int) -> float:
    """Of a term of the tiles of so many positions, some of which have one position less than others: see `product`."""
    tiles = -(-count // positions)
    return tile_cycles(vectors, 1) * max(count, tiles * (positions - 1))


def pack_weight_cycles(problem: ConvProblem, pairs: int) -> float:
    """Of packing the kernels of so many pairs of channels: those of an input_grad lie in short runs, far apart."""
    return pairs * math.prod(problem.kernel) * (0.8 if problem.flip and math.prod(problem.kernel) > 1 else 0.45)


@functools.lru_cache(maxsize=256)
def panel_shape(dtype: str, channels: int, positions: int) -> Shape:
    """The tile that does the least work for so many channels and positions, what it does in vain included: tiles are whole."""
    lanes = lanes_of(dtype)

    def cycles(shape: tuple[int, int]) -> float:
        vectors, group = shape
        return -(-channels // (vectors * lanes)) * -(-positions // group) * tile_cycles(vectors, group)

    return Shape(*min(host().channel_tiles, key=cycles), lanes)


def fitted_shape(dtype: str, channels: int, positions: int) -> Shape:
    """As `panel_shape`, with tiles that fit the number of positions; narrow panels where they cost the same: they are more."""
    lanes, tiles = lanes_of(dtype), host().channel_tiles
    cycles = {shape: -(-channels // (shape[0] * lanes)) * fitted_cycles(*shape, positions) for shape in tiles}
    alike = [shape for shape in tiles if cycles[shape] <= ALIKE * min(cycles.values())]
    return Shape(*min(alike, key=lambda shape: (shape[0], cycles[shape])), lanes)


class Layout(NamedTuple):
    """How a forward problem is cut: the tile, the block, input channels of a pass, and what is kept, packed or gathered."""

    shape: Shape
    block: Block
    chunk: int
    kept: bool
    in_place: bool
    gathered: bool
    depth: int


def depth_of(problem: ConvProblem, paired: bool) -> int:
    """Input channels of a group, or pairs of them."""
    return -(-(problem.c // problem.groups) // (2 if paired else 1))


def divided(problem: ConvProblem, block: Block, width: int) -> bool:
    """Whether threads share the blocks evenly, or panels of `width` bytes, where more of w than of x would be packed twice."""
    per_k = problem.k // problem.groups
    panels = per_k * np_dtype(problem.acc_dtype).itemsize > width
    return (panels and block.images * block.channel <= per_k * math.prod(problem.kernel)) or shareable(problem, block)


@functools.lru_cache(maxsize=256)
def layout_for(problem: ConvProblem, paired: bool = False, pieces: int = FEW_PIECES) -> Layout:
    """The layout of a forward problem, which its cost, its workspace and its executor ask for one after the other.

    `pieces`: items that a large problem has at least.
    """
    item, per_k, depth = np_dtype(problem.acc_dtype).itemsize, problem.k // problem.groups, depth_of(problem, paired)
    taps = math.prod(problem.kernel)
    width = panel_shape(problem.acc_dtype, per_k, 1 << 20).width * item
    least = max(pieces_for(problem.flops / 2, pieces), FEW_PIECES if problem.n > 1 else 1)

    def fits(block: Block) -> bool:
        small = slab_bytes(problem, block, depth) <= SLAB_BYTES and block.pixels * width <= RESULT_BYTES
        few = block.images == 1 and block.pixels <= LEAST_PIXELS
        return small and (few or items_of(block) >= least) and divided(problem, block, width)

    def items_of(block: Block) -> int:
        panels = -(-per_k // fitted_shape(problem.acc_dtype, per_k, block.pixels).width)
        return block.pieces * problem.groups * panels

    units = (1,) * problem.ndim
    block = cut(problem, _steps(problem), tap_positions(problem), units, fits, problem.n)
    shape = fitted_shape(problem.acc_dtype, per_k, block.pixels)
    most = max(1, PANEL_BYTES // (taps * shape.width * item))
    chunk = -(-depth // max(1, -(-depth // most)))
    packed = -(-per_k // shape.width) * shape.width * depth * taps * item
    kept = packed <= KEPT_BYTES and block.pieces * problem.groups > 1
    in_place = reads_in_place(problem)
    gathered = in_place and taps == 1 and host().width < LINE and per_k > GATHERED_PANELS * shape.width
    return Layout(shape, block, chunk, kept, in_place, gathered, depth)


def _steps(problem: ConvProblem) -> tuple[int, ...]:
    """Of neighbouring positions in the slab: rows that a kernel of one tap skips are left out, but no elements of a row."""
    outer = zip(problem.stride[:-1], problem.kernel[:-1], strict=True)
    return (*(s if r == 1 else 1 for s, r in outer), 1)


def reads_in_place(problem: ConvProblem) -> bool:
    """Whether windows stay inside x, in the dtype of the sums, at channel strides that do not crowd the same sets of the caches."""
    inside = all(low <= 0 and high <= 0 for low, high in problem.padding)
    plane = math.prod(problem.spatial) * np_dtype(problem.dtype).itemsize
    crowded = plane > 3840 and not 256 <= plane % 4096 <= 3840
    return inside and problem.dtype == problem.acc_dtype and not crowded


# A block's own numbers: channels of a panel, pixels of a tile, input channels (or pairs of them) of a pass, whether packed weights
# are kept from block to block, pixels rounded up to tiles, taps, input channels (or pairs) of a group, whether what tiles read in
# place is gathered.
PANEL, GROUP, CHUNK, KEPT, PLACES, TAPS, DEPTH, GATHERED = range(EXTRA, EXTRA + 8)
UINT8 = Tag("uint8")


# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def window_steps(axis_steps, in_place, g, b, size):
    """The byte distance of neighbouring positions per dimension, in x itself or in an unphased slab."""
    step = size
    for axis in range(g[DIMS] - 1, -1, -1):
        axis_steps[axis] = g[part(g, PARTS) + 3 + axis] * axis_entry(b, g[DIMS], B_STEP, axis) if in_place else step
        step *= axis_entry(b, g[DIMS], B_PITCH, axis)


@helper
def array_origin(g, b, block):
    """The byte offset in x of the first window of a block that is read in place."""
    offset = 0
    for axis in range(g[DIMS]):
        start = block_start(b, g[DIMS], block, axis) * g[part(g, STRIDE) + axis] - g[part(g, LOW) + axis]
        offset += start * g[part(g, PARTS) + 3 + axis]
    return offset


@helper
def are_neighbours(places, first, count, size):
    """Whether pixels follow each other in what is read."""
    found = True
    for j in range(1, count):
        found &= places[first + j] == places[first] + j * size
    return found


@helper
def gather_tiles(slab, places, pixels, x, channel, g, b, tools, at):
    """What each tile reads of x, side by side: ``[tile][channel][position]``; `places` become those of its positions.

    Tiles are those of `product`. A row of one is written as whole vectors, and what these write beyond it is written later.
    """
    size, group, depth, lanes, first = itemsize(at), b[GROUP], b[DEPTH], tools[LANES], 0
    tiles = -(-pixels // group)
    whole = tiles - min(tiles * group - pixels, tiles)
    for tile in range(tiles):
        count, row, start = group if tile < whole else group - 1, group * size, tile * depth * group * size
        if are_neighbours(places, first, count, size):
            source, width = x + places[first], -(-count // lanes) * lanes
            invoke(tools[COPY], source, 0, count, slab + start, 0, width, depth, channel, row, 1, 0, 0)
        else:
            for j in range(count):
                for c in range(depth):
                    move(slab + (start + c * row + j * size), x + (places[first + j] + c * channel), at)
        for j in range(count):
            places[first + j] = start + j * size
        first += count


@helper
def forget(ready, panels):
    """No panel is packed yet."""
    for panel in range(panels):
        ready[panel] = 0


# The parts of a worker's scratch memory: places and terms, the slab, results of a panel, packed weights, which of them are there.
TABLES, SLAB, RESULTS, WEIGHTS, READY, AREAS = range(6)


@helper
def _blocks(worker, queue, args):
    at, scratch, areas, tools, splits, packed, in_place, x, w, bias, y, status, g, b = args
    ndim, depth, per_k, width, gathered = g[DIMS], b[DEPTH], g[PER_K], b[PANEL] * itemsize(at), b[GATHERED] != 0
    xs, ws, ys, size = part(g, PARTS), part(g, PARTS + 1), part(g, PARTS + 2), itemsize(at)
    own = area_of(scratch, areas, AREAS, worker)
    tables, slab, results = own + areas[TABLES], own + areas[SLAB], own + areas[RESULTS]
    weights, ready = own + areas[WEIGHTS], pointer(own + areas[READY], UINT8)
    taps, panels = b[TAPS], -(-per_k // b[PANEL])
    terms = tables + 8 * b[PLACES]
    axis_steps = pointer(terms + 8 * b[CHUNK] * taps, INT64)
    window_steps(axis_steps, in_place, g, b, size)
    each = (depth if b[KEPT] else b[CHUNK]) * taps * width
    channel, image = (g[xs + 2], g[xs]) if in_place else (b[CHANNEL] * size, depth * b[CHANNEL] * size)
    read = b[GROUP] * size if gathered else channel
    fill_terms(pointer(terms, INT64), b[CHUNK], read, ndim, axis_steps, g)
    where, of_group, source, pixels = -1, -1, x, 0
    for item in taken_items(queue, worker):
        block, group = item // splits % b[BLOCKS], item // splits // b[BLOCKS]
        n = block_image(b, ndim, block)
        if item // splits != where:
            where, source = item // splits, x + (n * g[xs] + group * g[xs + 1])
            pixels = fill_places(pointer(tables, INT64), b[GROUP], image, axis_steps, g, b, block)
            if in_place:
                source = source + array_origin(g, b, block)
                if gathered:
                    gather_tiles(slab, pointer(tables, INT64), pixels, source, channel, g, b, tools, at)
                    source = slab
            else:
                invoke(tools[PACK], tools, slab, source, block, block_images(g, b, block), g[PER_C], g, b)
                source = slab
        if group != of_group:
            of_group = group
            forget(ready, panels)
        for panel in range(panels * (item % splits) // splits, panels * (item % splits + 1) // splits):
            k = panel * b[PANEL]
            count = min(per_k - k, b[PANEL])
            w_k = w + (group * g[ws] + k * g[ws + 1])
            shift = bias if is_null(bias) else bias + (group * per_k + k) * size
            target = y + (group * g[ys + 1] + k * g[ys + 2])
            for first in range(0, depth, b[CHUNK]):
                passed = min(b[CHUNK], depth - first)
                if packed:
                    a = w + ((group * panels + panel) * depth + first) * taps * width
                else:
                    a = weights + (panel * each + first * taps * width if b[KEPT] else 0)
                    if not (b[KEPT] and ready[panel]):
                        invoke(tools[PACK_WEIGHTS], tools, a, w_k, count, first, passed, taps, width, g)
                invoke(
                    tools[PRODUCT], a, source + first * read, tables, results, pixels, passed * taps, terms, width,
                    1 if first > 0 else 0,
                )  # fmt: skip
            invoke(tools[WRITE], tools, results, width, count, shift, g[OPTION], target, status, block, g, b)
            ready[panel] = 1


@kernel
def blocked(
    at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, tools: Address, splits: int, packed: int,
    in_place: int, x: Address, w: Address, bias: Address, y: Address, status: Address, g: Address, b: Address,
) -> None:  # fmt: skip
    """y from x and w: an item is a block of outputs for some of the panels.

    `tools`: see `tools_for`; w is `packed` into panels, or lies as the vector g says. `status` gets a 1 for each image
    of which a sum is not finite. The bias is in the accumulation dtype.
    """
    parallel_items(
        region,
        workers,
        items,
        _blocks,
        (
            at, scratch, pointer(areas, INT64), pointer(tools, INT64), splits, packed, in_place, x, w, bias, y,
            status, pointer(g, INT64), pointer(b, INT64),
        ),
    )  # fmt: skip


@helper
def _panels(begin, end, args):
    at, tools, w, target, g, b = args
    ws, depth, per_k, width, panels = part(g, PARTS + 1), b[DEPTH], g[PER_K], b[PANEL] * itemsize(at), -(-g[PER_K] // b[PANEL])
    for item in range(begin, end):
        group, k = item // panels, item % panels * b[PANEL]
        place = target + item * depth * b[TAPS] * width
        source = w + (group * g[ws] + k * g[ws + 1])
        invoke(tools[PACK_WEIGHTS], tools, place, source, min(per_k - k, b[PANEL]), 0, depth, b[TAPS], width, g)


@kernel
def pack_weights(
    at: Tag, region: int, workers: int, items: int, tools: Address, w: Address, target: Address, g: Address, b: Address
) -> None:
    """All panels of w, for `blocked`: an item is a panel of a group."""
    parallel_for(region, workers, items, _panels, (at, pointer(tools, INT64), w, target, pointer(g, INT64), pointer(b, INT64)))


# --- the implementation --------------------------------------------------------------------------------------------------------


def parts_for(base: int, most: int, work: float) -> int:
    """Into how many parts to cut the output channels of each of `base` blocks, so that the threads have equal shares."""
    count = 1 if work < SERIAL_WORK else threads()
    if count == 1:
        return 1
    able = range(1, min(most, MOST_PARTS) + 1)
    return min((-(-base * parts // count) * count / (base * parts) + 0.01 * parts, parts) for parts in able)[1]


def shares_of(base: int, most: int, work: float) -> int:
    """As `parts_for`, where the items of a block share what a worker has packed: more of a single one than there are threads.

    So one that is done, while another began late or is slowed down, has something to take over.
    """
    parts = parts_for(base, most, work)
    return parts * (min(most, MOST_PARTS) // parts) if base == 1 and parts > 1 else parts


def _places(layout: Layout) -> int:
    """Pixels of a block, rounded up to tiles."""
    return -(-layout.block.pixels // layout.shape.positions) * layout.shape.positions


def _areas(problem: ConvProblem, layout: Layout) -> Areas:
    """A worker's scratch memory."""
    shape, block, chunk, kept, in_place, gathered, depth = layout
    item, taps = np_dtype(problem.acc_dtype).itemsize, math.prod(problem.kernel)
    panels, places = -(-(problem.k // problem.groups) // shape.width), _places(layout)
    weights = (panels * depth if kept else chunk) * taps * shape.width * item
    tables = 8 * (places + chunk * taps + problem.ndim)
    slab = (places * depth + shape.lanes) * item if gathered else 0 if in_place else slab_bytes(problem, block, depth)
    return Areas(tables, slab, places * shape.width * item, weights, panels)


def most_workers(problem: ConvProblem, block: Block, width: int) -> int:
    """How many threads can have work at most, where a tile has `width` output channels."""
    items = block.pieces * problem.groups * -(-(problem.k // problem.groups) // width)
    return min(MAX_THREADS, max(items, 1))


class _Executor(ForwardExecutor):
    """One blocked convolution; `paired`: of pairs of bfloat16 numbers."""

    def __init__(self, problem: ConvProblem, paired: bool):
        layout = layout_for(problem, paired, pieces_here())
        shape, block = layout.shape, layout.block
        super().__init__(problem, block.pieces * problem.groups)
        self._panels = -(-(problem.k // problem.groups) // shape.width)
        self._work = problem.flops / 2
        self._taps = math.prod(problem.kernel)
        self._depth = layout.depth
        numbers = layout.chunk, layout.kept, _places(layout), self._taps, layout.depth, layout.gathered
        self._block = block_vector(block, shape.width, shape.positions, *numbers)
        self._areas = _areas(problem, layout)
        self._in_place = int(layout.in_place)
        self._width = shape.width
        blocked.begin(problem.acc_dtype)
        self._tools = tools_for(
            problem.dtype, problem.acc_dtype, shape.lanes, factor=PAIRS if paired else "", out=problem.out_dtype,
            product_shape=shape[:2],
        )  # fmt: skip
        self._kernel = blocked.specialise(problem.acc_dtype)

    def packed(self, w: Any) -> Weights:
        """w in panels."""
        problem = self._problem
        rows = problem.groups * self._panels
        packed = np.empty(rows * self._width * self._depth * self._taps, self._acc)
        vector = self._vectors((0,) * w.ndim, w.strides, (0,) * w.ndim)
        run(pack_weights.specialise(problem.acc_dtype), rows, packed.size, self._tools, w, packed, vector, self._block)
        return Weights(packed, w.strides, True)

    def launch(self, x: Any, w: Weights, shift: Any, y: Any, status: Any, vector: Any) -> None:
        """Run `blocked`."""
        splits = shares_of(self._items, self._panels, self._work)
        run_with(
            self._areas, self._kernel, self._items * splits, self._work, self._tools, splits, int(w.packed), self._in_place, x,
            w.array, shift, y, status, vector, self._block,
        )  # fmt: skip


def _in_place_cycles(problem: ConvProblem, layout: Layout, products: float) -> float:
    """Of reading x where it lies, or gathering it for tiles, beyond products of so many cycles."""
    item, shape, block = np_dtype(problem.dtype).itemsize, layout.shape, layout.block
    waited = max(0, math.prod(problem.x_shape) * item - SHARED_CACHE) / item * WAITED_CYCLES
    if layout.gathered:
        pieces = block.pieces * problem.groups * (2 if block.pieces == 1 else 1)  # by each thread that shares a block
        apart = max(problem.stride) > 1
        each = block.pixels * APART_CYCLES if apart else -(-block.pixels // shape.positions) * GATHERED_CYCLES
        return waited + pieces * layout.depth * each
    held = layout.chunk * (shape.width * item + 2 * LINE)
    if math.prod(problem.kernel) == 1 and host().width < LINE and held > host().resident:
        return waited + products * (SCATTERED - 1)
    plane = math.prod(problem.spatial) * item
    return waited + products * (0.06 if plane >= 4096 else 0)  # channels of x lie pages apart


class Blocked(DenseImplementation):
    """Direct convolution of real floats with the lanes over output channels."""

    name = "blocked"
    apart_seconds: ClassVar[float] = 8e-10
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR
    paired = False
    """Whether the factors are pairs of bfloat16 numbers."""

    def accepts(self, problem: ConvProblem) -> Verdict:
        """All of them."""
        return Verdict.yes()

    def forward_cost(self, problem: ConvProblem) -> float:
        """Products, those of unused lanes included; packing; transposing the results; start-up."""
        layout = layout_for(problem, self.paired)
        shape, block, _, kept, in_place, _, depth = layout
        per_k, taps = problem.k // problem.groups, math.prod(problem.kernel)
        panels, pieces = -(-per_k // shape.width), block.pieces * problem.groups
        cycles = pieces * panels * depth * taps * fitted_cycles(shape.vectors, shape.positions, block.pixels)
        cycles *= host().pair_cycles if self.paired else 1
        packed = _in_place_cycles(problem, layout, cycles) if in_place else pack_cycles(block, depth * problem.groups)
        # lanes that stay empty are packed too
        times = min(2, block.pieces) if kept else block.pieces  # by each thread, or for each block
        size = np_dtype(problem.acc_dtype).itemsize / 4  # found for float32: of larger ones a vector has fewer
        weights = pack_weight_cycles(problem, panels * shape.width * problem.c) * times * size
        started = pieces * (BLOCK_CYCLES + block.pixels * PLACE_CYCLES)
        # and transposed with the others
        results = problem.n * math.prod(problem.output) * problem.groups * -(-per_k // shape.lanes) * shape.lanes
        written = results * (PAIRED_WRITE_CYCLES if self.paired else WRITE_CYCLES)
        return CALL_SECONDS + 2e-6 + seconds(started + cycles + packed + weights + written, problem.flops / 2)

    def forward_workspace(self, problem: ConvProblem) -> int:
        """For each thread a slab, the results of a block, weights and tables."""
        layouts = (layout_for(problem, self.paired, pieces) for pieces in (FEW_PIECES, MANY_PIECES))
        return max(most_workers(problem, each.block, each.shape.width) * _areas(problem, each).bytes for each in layouts)

    def forward(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem, self.paired)
