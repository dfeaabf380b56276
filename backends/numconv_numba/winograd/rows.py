"""Winograd's algorithm along one dimension, for few input channels: fewer multiplications where transforms in two would cost more.

m rows of results are computed from m + r - 1 rows of x, each as one row of a convolution along the columns alone: F(2, 5) takes 6
products where the definition has 10, F(4, 3) 6 for 12. Rows are transformed whole, a vector of neighbours at a time, so that
nothing is moved between lanes, and the columns of the kernel are terms of the sums, as are the channels: a register tile has
enough of them even if there are three channels. A work item packs a block of rows of x; of each group of m rows of results it
transforms the input once for all output channels, and multiplies some columns for the channels of a tile, so that what it adds up
for each point stays in the first-level cache until it is transformed back.

Images with a sum that is not finite are computed again by `tile`, since an error in one row spreads over m rows of results.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Verdict, np_dtype
from numconv_numba.activations import ACTIVATIONS
from numconv_numba.compiling.compiler import Address, Tag, Unit, helper, invoke, kernel
from numconv_numba.dense.base import DenseImplementation, ForwardExecutor, Weights
from numconv_numba.dense.blocked import CALL_SECONDS, seconds
from numconv_numba.dense.slab import (
    B_PITCH,
    BLOCKS,
    CHANNEL,
    EXTRA,
    FEW_PIECES,
    MANY_PIECES,
    Block,
    axis_entry,
    block_extent,
    block_image,
    block_start,
    block_vector,
    cut,
    pack_cycles,
    pieces_for,
    pieces_here,
    tap_positions,
)
from numconv_numba.dense.tile import RegisterTile
from numconv_numba.elements import INT64, itemsize, same
from numconv_numba.entries import INPUT, LANES, MULTIPLY, PACK, PRODUCT
from numconv_numba.geometry import FLIPPED, GROUPS, OPTION, PARTS, PER_C, PER_K, WINDOW, part
from numconv_numba.microkernels import rows as job_of
from numconv_numba.microkernels.activation import SMOOTH
from numconv_numba.microkernels.emit import host
from numconv_numba.microkernels.rows import POINTS, multiply_rows
from numconv_numba.microkernels.tiles import Tile, tile_for, tile_share
from numconv_numba.microkernels.transforms import matrices, transform_input
from numconv_numba.results import write_rows
from numconv_numba.rows import clear
from numconv_numba.scalar import as_integer, is_null, load, pointer, store, zero
from numconv_numba.threads import MAX_THREADS, Areas, area_of, parallel_items, run_with, taken_items
from numconv_numba.tools import tools_for

__all__ = ["WinogradRows"]

SLAB_BYTES = 512 * 1024
"""The packed input of a block: it stays in the second-level cache."""
LEAST_TERMS = 8
"""Of every window: in fewer, it may hold little beside the rows of a whole tile. Of 8 terms, ten million random sums had errors
below 3e-6, of 4 terms below 1e-5."""
START_SECONDS, NARROW_START_SECONDS = 3e-6, 5e-6
"""Of a call beside that of `tile`: each thread transforms the weights before it begins. Measured with AVX-512, and with AVX2."""
APART_CYCLES = 2.0
"""Of a result whose neighbours in memory are other channels: a tile has few of these, so that lines are written in parts."""
LINE_BYTES, SHORT_CYCLES = 64, 4.0
"""Of a vector of results in a third row or fourth, for each further one that its line of memory has room for: these rows of several
channels are written in turns, so that lines are left before they are whole. Measured with AVX2."""
UINT8 = Tag("uint8")

# A block's own numbers: rows of results, output channels and columns of a tile, elements from channel to channel and from
# point to point of the transformed input, vectors of a row of it, and elements that are read beyond it.
HEIGHT, CHANNELS, WIDTH, LINE, POINT, VECTORS, BEYOND = range(EXTRA, EXTRA + 7)
# The parts of a worker's scratch memory: a job, packed and transformed x, transformed weights, sums, results.
FIELDS, SLAB, TURNED, WEIGHTS, SUMS, RESULTS, AREAS = range(7)


# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def transform_weights(target, w, matrix, g, b, at):
    """The kernels of all groups, [group][panel][point][term][k], from the matrix of the transform."""
    ws, size, window, channels = part(g, PARTS + 1), itemsize(at), part(g, WINDOW), b[CHANNELS]
    rows, columns, flipped = g[window], g[window + 1], g[part(g, FLIPPED)] != 0
    panels, terms = -(-g[PER_K] // channels), g[PER_C] * columns
    for panel in range(g[GROUPS] * panels):
        # the last panel of a group overlaps the one before
        first = min(panel % panels * channels, g[PER_K] - channels)
        source = w + (panel // panels * g[ws] + first * g[ws + 1])
        into = target + panel * (POINTS * terms * channels * size)
        for term in range(terms):
            for k in range(channels):
                taps = source + (k * g[ws + 1] + term // columns * g[ws + 2] + term % columns * g[ws + 4])
                for point in range(POINTS):
                    total = zero(at)
                    for row in range(rows):
                        line = rows - 1 - row if flipped else row
                        total += load(matrix + (point * rows + row) * size, at) * load(taps + line * g[ws + 3], at)
                    store(into + ((point * terms + term) * channels + k) * size, total, at)


@helper
def multiply_tile(own, y, rows, length, shift, g, b, tools, yt, at):
    """Some columns of a group of rows of results, from y on, for the channels of one tile; 1 if not all are finite, else 0."""
    size, ys, job = itemsize(at), part(g, PARTS + 2), pointer(own[FIELDS], INT64)
    job[job_of.ROWS], job[job_of.USED] = rows, length
    if (g[ys + 4] == itemsize(yt)) & same(yt, at):
        job[job_of.Y], job[job_of.Y_CHANNEL], job[job_of.Y_ROW] = as_integer(y), g[ys + 2], g[ys + 3]
        job[job_of.BIAS], job[job_of.RELU] = as_integer(shift), g[OPTION] == 1
        return invoke(tools[MULTIPLY], own[FIELDS])
    channel, line = b[WIDTH] * size, b[CHANNELS] * b[WIDTH] * size
    job[job_of.Y], job[job_of.Y_CHANNEL], job[job_of.Y_ROW] = as_integer(own[RESULTS]), channel, line
    job[job_of.BIAS], job[job_of.RELU] = 0, 0
    bad = invoke(tools[PRODUCT], own[FIELDS])
    for row in range(rows):
        target = y + row * g[ys + 3]
        write_rows(
            own[RESULTS] + row * line, channel, b[CHANNELS], length, shift, g[OPTION], target, g[ys + 2], g[ys + 4], tools, yt, at
        )  # fmt: skip
    return bad


@helper
def multiply_block(block, group, own, bias, y, tables, g, b, tools, yt, at):
    """All results of a packed block; y is the address of the group in its image. Whether all are finite."""
    ys, size, bad, job = part(g, PARTS + 2), itemsize(at), 0, pointer(own[FIELDS], INT64)
    rows, columns, per_k, channels = block_extent(g, b, block, 0), block_extent(g, b, block, 1), g[PER_K], b[CHANNELS]
    corner = y + (block_start(b, 2, block, 0) * g[ys + 3] + block_start(b, 2, block, 1) * g[ys + 4])
    panels, terms = -(-per_k // channels), g[PER_C] * g[part(g, WINDOW) + 1]
    job[job_of.X_POINT], job[job_of.W_POINT], job[job_of.TERMS] = b[POINT] * size, terms * channels * size, terms
    job[job_of.OUTPUTS] = b[HEIGHT]
    job[job_of.PLACES], job[job_of.SUMS] = as_integer(tables + 8 * POINTS), as_integer(own[SUMS])
    for first in range(0, rows, b[HEIGHT]):
        for c in range(g[PER_C]):
            source = own[SLAB] + (c * b[CHANNEL] + first * axis_entry(b, 2, B_PITCH, 1)) * size
            invoke(tools[INPUT], source, tables, b[VECTORS], own[TURNED] + c * b[LINE] * size, b[POINT] * size, 1, 1)
        for column in range(0, columns, b[WIDTH]):
            job[job_of.X] = as_integer(own[TURNED] + column * size)
            for panel in range(panels):
                k = min(panel * channels, per_k - channels)
                weights = (group * panels + panel) * (POINTS * terms * channels * size)
                job[job_of.W] = as_integer(own[WEIGHTS] + weights)
                shift = bias if is_null(bias) else bias + (group * per_k + k) * size
                target = corner + (k * g[ys + 2] + first * g[ys + 3] + column * g[ys + 4])
                bad |= multiply_tile(
                    own, target, min(b[HEIGHT], rows - first), min(b[WIDTH], columns - column), shift, g, b, tools, yt, at
                )  # fmt: skip
    return bad == 0


@helper
def _blocks(worker, queue, args):
    yt, at, scratch, areas, tools, x, w, bias, y, status, g, b, tables, matrix = args
    area, size, xs, ys = area_of(scratch, areas, AREAS, worker), itemsize(at), part(g, PARTS), part(g, PARTS + 2)
    own = (
        area + areas[FIELDS], area + areas[SLAB], area + areas[TURNED], area + areas[WEIGHTS], area + areas[SUMS],
        area + areas[RESULTS],
    )  # fmt: skip
    transform_weights(own[WEIGHTS], w, matrix, g, b, at)
    # whole vectors are read beyond the last pixel
    clear(own[SLAB] + g[PER_C] * b[CHANNEL] * size, tools[LANES], at)
    clear(own[TURNED] + POINTS * b[POINT] * size, b[BEYOND], at)
    for item in taken_items(queue, worker):
        block, group = item % b[BLOCKS], item // b[BLOCKS]
        n = block_image(b, 2, block)
        invoke(tools[PACK], tools, own[SLAB], x + (n * g[xs] + group * g[xs + 1]), block, 1, g[PER_C], g, b)
        if not multiply_block(block, group, own, bias, y + (n * g[ys] + group * g[ys + 1]), tables, g, b, tools, yt, at):
            store(status + n, np.uint8(1), UINT8)


@kernel
def winograd_rows(
    yt: Tag, at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, tools: Address, x: Address,
    w: Address, bias: Address, y: Address, status: Address, g: Address, b: Address, tables: Address, matrix: Address,
) -> None:  # fmt: skip
    """y from x and w, both in the accumulation dtype but x: an item is a block of rows of an image and group.

    `tables` has the byte offsets of the rows that are transformed together, and of each term in them; `matrix` is that of the
    weights. `status` gets a 1 for each image of which a sum is not finite.
    """
    args = (
        yt, at, scratch, pointer(areas, INT64), pointer(tools, INT64), x, w, bias, y, status, pointer(g, INT64),
        pointer(b, INT64), tables, matrix,
    )  # fmt: skip
    parallel_items(region, workers, items, _blocks, args)


_kernels = Unit(
    "winograd.rows",
    lambda out, acc, lanes: [
        (transform_input, ((1, POINTS, 1, 1, lanes), acc)),
        *((multiply_rows, ((*tile, lanes, 0), acc)) for tile in host().pixel_tiles),
    ],
    called=lambda out, acc, lanes: [(winograd_rows, (out, acc))],
)
"""With all tiles of the host, which differ by the number of output channels; those of x are the same for any number of taps."""


# --- the implementation --------------------------------------------------------------------------------------------------------


class _Layout(NamedTuple):
    """The tile that computes a problem, and how it is cut."""

    tile: Tile
    block: Block
    outputs: int

    @property
    def width(self) -> int:
        """Columns of a tile."""
        return self.tile.vectors * self.tile.lanes

    @property
    def line(self) -> int:
        """Elements of a row of transformed input, in whole vectors."""
        return -(-self.block.pitch[-1] // self.tile.lanes) * self.tile.lanes

    def beyond(self, problem: ConvProblem) -> int:
        """Elements that are read behind it."""
        return self.width + (problem.kernel[-1] - 1) * problem.dilation[-1]

    def areas(self, problem: ConvProblem) -> Areas:
        """A worker's scratch memory."""
        tile, per_c, item = self.tile, problem.c // problem.groups, np_dtype(problem.acc_dtype).itemsize
        panels, sums = problem.groups * -(-(problem.k // problem.groups) // tile.channels), tile.channels * self.width
        sizes = (
            per_c * self.block.channel + tile.lanes, POINTS * per_c * self.line + self.beyond(problem),
            panels * POINTS * per_c * problem.kernel[-1] * tile.channels, POINTS * sums, self.outputs * sums,
        )  # fmt: skip
        return Areas(8 * job_of.JOB, *(size * item for size in sizes))


@functools.lru_cache(maxsize=64)
def _layout(problem: ConvProblem, pieces: int = FEW_PIECES) -> _Layout:
    """The layout of a problem, which its cost, its workspace and its executor ask for one after the other."""
    per_c, item, outputs = problem.c // problem.groups, np_dtype(problem.acc_dtype).itemsize, POINTS + 1 - problem.kernel[0]
    tile, least = tile_for(problem.acc_dtype, problem.k // problem.groups), pieces_for(problem.flops / 2, pieces)

    def fits(block: Block) -> bool:
        return per_c * block.channel * item <= SLAB_BYTES and block.pieces * problem.groups >= least

    return _Layout(tile, cut(problem, (1, 1), tap_positions(problem), (outputs, 1), fits, min(problem.n, 1)), outputs)


class _Executor(ForwardExecutor):
    """One convolution."""

    def __init__(self, problem: ConvProblem):
        layout = _layout(problem, pieces_here())
        tile, block, outputs = layout
        super().__init__(problem, block.pieces * problem.groups)
        self._work, self._areas, per_c = problem.flops / 2, layout.areas(problem), problem.c // problem.groups
        self._block = block_vector(
            block, outputs, tile.channels, layout.width, layout.line, per_c * layout.line,
            layout.line // tile.lanes, layout.beyond(problem),
        )  # fmt: skip
        _kernels.begin(problem.out_dtype, problem.acc_dtype, tile.lanes)
        self._tools = tools_for(problem.dtype, problem.acc_dtype, tile.lanes, out=problem.out_dtype).copy()
        self._kernel, turn, *tiles = _kernels.functions(problem.out_dtype, problem.acc_dtype, tile.lanes)
        plain, code = tiles[host().pixel_tiles.index((tile.vectors, tile.channels))], ACTIVATIONS[problem.activation]
        finished = multiply_rows.address((*tile, code), problem.acc_dtype) if code in SMOOTH else plain
        self._tools[[INPUT, PRODUCT, MULTIPLY]] = turn, plain, finished
        terms = np.arange(per_c)[:, None] * layout.line + tap_positions(problem)[-1]
        self._tables = np.array([*np.arange(POINTS) * block.pitch[-1], *terms.ravel()], np.int64) * self._acc.itemsize
        self._matrix = np.array(matrices(outputs, problem.kernel[0]).weights, self._acc)

    def unpacked(self, w: Any) -> Weights:
        """w in the accumulation dtype."""
        wide = w if w.dtype is self._acc else np.asarray(w, self._acc)
        return Weights(wide, wide.strides)

    packed = unpacked

    def launch(self, x: Any, w: Weights, shift: Any, y: Any, status: Any, vector: Any) -> None:
        """Run `winograd_rows`."""
        run_with(
            self._areas, self._kernel, self._items, self._work, self._tools, x, w.array, shift, y, status, vector, self._block,
            self._tables, self._matrix,
        )  # fmt: skip

    def again(self, y: Any, ins: Any, images: Any) -> None:
        """Compute images again with `RegisterTile`, since what is not finite has spread over the rows of its tile."""
        executor = RegisterTile().build(self._problem.replace(n=1))
        for n in images:
            executor((y[n : n + 1],), (ins[0][n : n + 1], *ins[1:]))


def _least_terms(problem: ConvProblem) -> int:
    """Of the windows that hold the most padding."""
    least = problem.c // problem.groups
    for size, taps, step, pads in zip(problem.spatial, problem.kernel, problem.dilation, problem.padding, strict=True):
        beside = -(-max(*pads, 0) // step) if problem.pad_mode == "zeros" else 0
        least *= max(0, min(taps - beside, -(-size // step) if problem.pad_mode == "zeros" else taps))
    return least


class WinogradRows(DenseImplementation):
    """Winograd convolution of real floats along the columns of planes, for few channels."""

    name = "winograd_rows"
    levels = frozenset(("default", "fast"))
    measured_error: ClassVar[Mapping[str, float]] = {"float32": 4e-6, "float64": 8e-15}

    def accepts(self, problem: ConvProblem) -> Verdict:
        """Planes, 3 to 5 rows of taps without stride or dilation; some terms in every window."""
        if problem.ndim != 2:
            return Verdict.no(f"its tiles are of planes, and here are {problem.ndim} spatial dimensions")
        if max(problem.stride) > 1 or problem.dilation[0] > 1:
            return Verdict.no(
                f"rows of its tiles overlap without stride and dilation, and here are {problem.stride} and {problem.dilation}"
            )
        if not 3 <= problem.kernel[0] <= 5:
            return Verdict.no(f"its transforms are for 3 to 5 rows of taps, and the kernel is {problem.kernel}")
        terms = _least_terms(problem)
        if terms < LEAST_TERMS:
            return Verdict.no(
                f"its error is relative to whole rows, and it takes windows of {LEAST_TERMS} terms; some have {terms} here"
            )
        return Verdict.yes()

    def forward_cost(self, problem: ConvProblem) -> float:
        """Products at the rate that the tile's shape allows; transforms, counted in loads, arithmetic and stores; packing."""
        layout = _layout(problem)
        tile, block, outputs = layout
        per_c, per_k = problem.c // problem.groups, problem.k // problem.groups
        vectors, terms = tile.vectors * tile.channels, per_c * problem.kernel[-1]
        multiplied = 1.05 * POINTS * (vectors * (terms * tile_share(tile.vectors, tile.channels) / 2 + 1) + 10)
        # loads and stores, about as many multiply-adds, bias and relu, and what is not finite
        short = max(0, outputs - 2) * SHORT_CYCLES * (LINE_BYTES // host().width - 1)
        written = vectors * (POINTS + outputs * 2.25 + short) + 20
        tiles = -(-per_k // tile.channels) * -(-block.size[1] // layout.width)
        inputs = per_c * layout.line // tile.lanes * POINTS * 4.8
        lines, weights = block.pieces * -(-block.size[0] // outputs), problem.k * terms * POINTS * problem.kernel[0]
        cycles = problem.groups * (lines * (tiles * (multiplied + written) + inputs) + pack_cycles(block, per_c)) + weights
        apart = math.prod(problem.y_shape) * APART_CYCLES if problem.layout == "channels_last" and problem.k > 1 else 0.0
        start = START_SECONDS if host().width == 64 else NARROW_START_SECONDS
        return CALL_SECONDS + start + seconds(cycles + apart)

    def forward_workspace(self, problem: ConvProblem) -> int:
        """What each thread has, and weights in the accumulation dtype; or what `RegisterTile` needs."""
        item = np_dtype(problem.acc_dtype).itemsize
        widened = 0 if problem.dtype == problem.acc_dtype else math.prod(problem.w_shape) * item
        each = max(_layout(problem, pieces).areas(problem).bytes for pieces in (FEW_PIECES, MANY_PIECES))
        return max(MAX_THREADS * each + widened, RegisterTile().forward_workspace(problem))

    def forward(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
