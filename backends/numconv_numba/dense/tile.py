"""Direct convolution on register tiles with the lanes over pixels, for real floats: pack a block of x, then multiply.

A work item takes a block of outputs of one image and group (see `slab`). In its slab the phases of a stride lie apart and rows
follow each other at one pitch, so that a register tile runs over the pixels of the whole block as over one row; what it computes
between the rows is not used. Of few terms, lines (in one dimension pieces of the row) are stored as soon as they are computed,
while their sums are near, and the memory that they go to is fetched meanwhile; or each vector of a tile has a place of its own in
the lines, where its sums go from registers. Weights are read where they lie. It serves few output channels, which would leave lanes
of `blocked` empty.

The terms of an output form one chain in the order of the "strict" level. Images with a sum that is not finite are computed again
by `direct`, for which padding zeros are not terms.
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
from numconv_numba.elements import INT64, itemsize, memory, numbers, release, scratch
from numconv_numba.entries import LANES, LINES, MULTIPLY, PACK, PRODUCT
from numconv_numba.geometry import DIMS, OPTION, PARTS, PER_C, PER_K, WINDOW, part
from numconv_numba.microkernels import placed as job_of
from numconv_numba.microkernels.emit import host, lanes_of
from numconv_numba.microkernels.lines import write_lines
from numconv_numba.microkernels.placed import multiply_placed
from numconv_numba.microkernels.tiles import Tile, multiply_tiles, tile_for, tile_share
from numconv_numba.results import write_rows
from numconv_numba.rows import clear, outer_offset
from numconv_numba.scalar import as_integer, is_null, load, pointer, store, wide_vectors, zero
from numconv_numba.threads import MAX_THREADS, SERIAL_WORK, parallel_items, run, taken_items, threads
from numconv_numba.tools import tools_for

from .base import DenseImplementation, ForwardExecutor, Weights, accumulated
from .blocked import CALL_SECONDS, seconds
from .slab import (
    B_PITCH,
    BLOCKS,
    CHANNEL,
    EXTRA,
    FEW_PIECES,
    SHARES,
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
    shareable,
    steps,
    tap_offsets,
    tap_positions,
)  # fmt: skip

__all__ = ["RegisterTile"]

SLAB_BYTES = 768 * 1024
"""The packed input of a block: it stays in the second-level cache while all output channels pass over it."""
RESULT_BYTES = 256 * 1024
"""The sums of a block for the channels of a tile: they share that cache with the slab."""

LINE_CYCLES, NEAR_CYCLES, PLANE_CYCLES = 0.35, 0.17, 60
"""Of storing four bytes of a line of neighbours, of a whole block or soon after they are computed, and of each further call that
stores the lines of a plane."""
GROUP_CYCLES = 150
"""Of each call for lines that are computed and stored together."""
PRODUCT_CYCLES = 1.15
"""Against those that are counted. With sixteen registers vectors at places of their own were measured to take no more, where the
taps of a kernel read neighbours: AVX2."""
PLACED_CYCLES, PLACE_CYCLES = 0.7, 4
"""Of a vector of results that goes to its place from registers, and of finding that place, once for all output channels."""
BLOCK_CYCLES, CALL_CYCLES = 200, 200
"""Of the start of a block of a group, and of the calls that compute and store the channels of a tile."""
FAR_BYTES, FAR_SECONDS = 1 << 20, 3e-10
"""Of a gradient that the second-level caches of few threads do not hold, and of each of its elements."""
APART_CYCLES = 0.9, 1.2
"""Of packing an element of x, and of storing a result, where neighbours in memory are other channels."""
SQUARE_CYCLES = 100
"""Of a square of vectors that is transposed for that."""


def flat_pixels(block: Block) -> int:
    """Pixels from the first to the last output of a block, those between the rows included."""
    return 1 + sum((size - 1) * step for size, step in zip(block.size, steps(block.pitch), strict=True))


def block_for(problem: ConvProblem, tile: Tile, pieces: int) -> Block:
    """The largest block of one image whose slab and results fit the caches; `pieces`: items of a large problem at least."""
    per_c, item = problem.c // problem.groups, np_dtype(problem.acc_dtype).itemsize
    tiles, least = problem.groups * -(-(problem.k // problem.groups) // tile.channels), pieces_for(problem.flops / 2, pieces)

    def fits(block: Block) -> bool:
        slab, pixels = per_c * block.channel * item, flat_pixels(block)
        few = pixels < 2 * SHARES * tile.vectors * tile.lanes
        shared = few or (block.pieces * tiles >= least and shareable(problem, block))
        return slab <= SLAB_BYTES and tile.channels * pixels * item <= RESULT_BYTES and shared

    return cut(problem, problem.stride, tap_positions(problem), (1,) * problem.ndim, fits, min(problem.n, 1))


def moved_cycles(problem: ConvProblem) -> float:
    """Of storing the results, and of packing x beyond what rows of neighbours take."""
    last = problem.layout == "channels_last"
    of_x, of_y = APART_CYCLES
    # of few channels squares of vectors stay nearly empty
    lanes, per_c, per_k = lanes_of(problem.acc_dtype), problem.c // problem.groups, problem.k // problem.groups
    of_x, of_y = max(of_x, SQUARE_CYCLES / (lanes * per_c)), max(of_y, SQUARE_CYCLES / (lanes * min(per_k, lanes)))
    packed = math.prod(problem.x_shape) * of_x if last and problem.c > 1 else 0.0
    return packed + math.prod(problem.y_shape) * (of_y if last and problem.k > 1 else 0.0)


def chunk_for(problem: ConvProblem, tile: Tile) -> int:
    """Input channels that are added up in one pass: what a tile reads of them stays in the first-level cache for its neighbour."""
    item = np_dtype(problem.acc_dtype).itemsize
    pixels = math.prod(problem.kernel[:-1]) * (tile.vectors * tile.lanes + problem.kernel[-1] * problem.dilation[-1])
    return max(1, host().resident // (item * (pixels + tile.channels * math.prod(problem.kernel))))


PLACED = -1
"""Instead of a number of lines: each vector has a place of its own."""


class Lines(NamedTuple):
    """Lines of a block that are computed and stored together, 0 for all; the pixels that they take; cycles beyond products.

    Or `PLACED`, and the vectors of a block, in whole tiles.
    """

    together: int
    row: int
    cycles: float


def lines_for(problem: ConvProblem, tile: Tile, block: Block) -> Lines:
    """Lines whose sums stay in the first-level cache, if that is worth the pixels beyond their end, which tiles compute in vain."""
    width, item, planes = tile.vectors * tile.lanes, np_dtype(problem.acc_dtype).itemsize, math.prod(block.size[:-2])
    # in one dimension they are single pixels, without any between them
    lines, columns, step = (block.size[-2], block.size[-1], block.pitch[-1]) if problem.ndim > 1 else (block.size[0], 1, 1)
    apart = problem.layout == "channels_last" and problem.k > 1  # see `moved_cycles`
    stored = 0.0 if apart else tile.channels * math.prod(block.size) * item / 4
    whole = Lines(0, 0, stored * LINE_CYCLES + (planes - 1) * PLANE_CYCLES)
    per_c = problem.c // problem.groups
    if chunk_for(problem, tile) < per_c or apart:
        return whole
    terms = per_c * math.prod(problem.kernel)
    each = terms * tile.channels / 2 / tile.lanes * tile_share(tile.vectors, tile.channels)

    def pixels(count: int) -> int:
        return -(-((count - 1) * step + columns) // width) * width if count else 0

    def option(count: int) -> Lines:
        groups, left = divmod(lines, count)
        beyond = groups * pixels(count) + pixels(left) - lines * step
        calls = (groups + (left > 0)) * GROUP_CYCLES
        return Lines(count, pixels(count), stored * NEAR_CYCLES + planes * (beyond * each + calls))

    most = min(host().resident * 2 // 3 // (tile.channels * item * step), lines)
    counts = range(1, most + 1) if problem.ndim > 1 else {max(most if most == lines else most // width * width, 1)}
    found = [whole, *map(option, counts)]
    if problem.ndim > 1 and can_place(problem, tile, block):
        vectors = -(-math.prod(block.size[:-1]) * -(-block.size[-1] // tile.lanes) // tile.vectors) * tile.vectors
        beyond = vectors * tile.lanes - planes * lines * step
        tiles = -(-(problem.k // problem.groups) // tile.channels)
        placed = vectors * (tile.channels * PLACED_CYCLES + PLACE_CYCLES / tiles)
        found.append(Lines(PLACED, vectors, placed + beyond * each))
    return min(found, key=lambda one: one.cycles)


def can_place(problem: ConvProblem, tile: Tile, block: Block) -> bool:
    """Whether every line has a vector at least, and y holds sums as they are, with no other activation than relu."""
    last = problem.output[-1] - (block.blocks[-1] - 1) * block.size[-1]
    plain = problem.out_dtype == problem.acc_dtype and problem.activation in (None, "relu")
    return plain and min(last, block.size[-1]) >= tile.lanes


# A block's own numbers: pixels from the first to the last one, taps, input channels of a pass.
# Pixels and output channels of a tile. Lines that are computed and stored together, 0 for all, and the pixels that they take.
FLAT, TAPS, CHUNK, WIDTH, CHANNELS, TOGETHER, ROW = range(EXTRA, EXTRA + 7)
UINT8 = Tag("uint8")


@helper(fastmath={"reassoc"})
def is_finite_row(sums, count, at):
    """Whether a row of sums holds neither NaN nor an infinity."""
    wide_vectors()
    bad = zero(at)
    for q in range(count):
        value = load(sums + q * itemsize(at), at)
        bad += abs(value - value)
    return bad == 0


@helper
def flat_extent(g, b, block):
    """Pixels from the first to the last output of this block."""
    ndim = g[DIMS]
    flat, step = 1, 1
    for axis in range(ndim - 1, -1, -1):
        flat += (block_extent(g, b, block, axis) - 1) * step
        step *= axis_entry(b, ndim, B_PITCH, axis)
    return flat


@helper
def all_finite(sums, pixels, count, length, at):
    """Whether the first `length` sums of `count` channels hold neither NaN nor an infinity."""
    finite = True
    for channel in range(count):
        finite &= is_finite_row(sums + channel * pixels * itemsize(at), length, at)
    return finite


@helper
def line_place(line, axes, step, block, g, b):
    """Where a line begins, counted along the first `axes` dimensions: pixels in the sums, `step` apart, and bytes in y."""
    ndim, place, offset = g[DIMS], 0, 0
    for axis in range(axes - 1, -1, -1):
        size = block_extent(g, b, block, axis)
        place += line % size * step
        offset += (block_start(b, ndim, block, axis) + line % size) * g[part(g, PARTS + 2) + 3 + axis]
        line //= size
        step *= axis_entry(b, ndim, B_PITCH, axis)
    return place, offset


@helper
def write_block(sums, pixels, bias, y, group, k, count, block, g, b, tools, yt, at):
    """Results of a block for the channels k .. k + count."""
    ndim, ys = g[DIMS], part(g, PARTS + 2)
    axis, lines = ndim - 1, 1
    for other in range(axis):
        lines *= block_extent(g, b, block, other)
    start, extent = block_start(b, ndim, block, axis), block_extent(g, b, block, axis)
    k_step, q_step, row = g[ys + 2], g[ys + 3 + axis], pixels * itemsize(at)
    shift = bias if is_null(bias) else bias + (group * g[PER_K] + k) * itemsize(at)
    step = axis_entry(b, ndim, B_PITCH, axis)
    for line in range(lines):
        place, offset = line_place(line, axis, step, block, g, b)
        source, target = sums + place * itemsize(at), y + (k * k_step + offset + start * q_step)
        write_rows(source, row, count, extent, shift, g[OPTION], target, k_step, q_step, tools, yt, at)


@helper
def finish_block(sums, pixels, length, bias, y, group, k, count, block, g, b, tools, yt, at):
    """Results of a block for the channels k .. k + count; returns whether a sum is not finite."""
    finite = all_finite(sums, pixels, count, length, at)  # before they are overwritten
    write_block(sums, pixels, bias, y, group, k, count, block, g, b, tools, yt, at)
    return not finite


@helper
def finish_lines(slab, x_taps, w, w_taps, sums, pixels, bias, y, group, k, skip, block, g, b, tools, yt, at):
    """What `multiply_block` and `finish_block` do for the channels of a tile from k on, the first `skip` of which are not written.

    For y whose rows are neighbours in memory, and no activation but relu. Lines whose sums stay in the first-level cache are
    computed and stored together, if the block has a number of those; else all sums are there, `pixels` for a channel. In one
    dimension lines are single pixels, and those that follow each other are stored as one.
    """
    ndim, ys, size, axis = g[DIMS], part(g, PARTS + 2), itemsize(at), g[DIMS] - 1
    lines, planes, bad = 1, 1, 0
    if ndim > 1:
        lines = block_extent(g, b, block, axis - 1)
    for other in range(axis - 1):
        planes *= block_extent(g, b, block, other)
    columns, step, y_line = block_extent(g, b, block, axis), axis_entry(b, ndim, B_PITCH, axis), 0
    new = k + skip
    shift = bias if is_null(bias) else bias + (group * g[PER_K] + new) * size
    corner = block_start(b, ndim, block, axis) * itemsize(yt) + new * g[ys + 2]
    outer, flat = step, ndim == 1
    if flat:
        lines, columns, step, y_line = columns, 1, 1, itemsize(yt)
    else:
        outer *= axis_entry(b, ndim, B_PITCH, axis - 1)
        y_line = g[ys + 2 + axis]
        corner += block_start(b, ndim, block, axis - 1) * y_line
    together = b[TOGETHER] or lines
    row = (b[ROW] if b[TOGETHER] else pixels) * size
    for plane in range(planes):
        place, offset = line_place(plane, axis - 1, outer, block, g, b)
        for first in range(0, lines, together):
            count, start = min(together, lines - first), place + first * step
            source, target = sums + skip * row, y + (corner + offset + first * y_line)
            if b[TOGETHER]:
                length, x_lines = (count - 1) * step + columns, slab + start * size
                fetched = target + -skip * g[ys + 2] if itemsize(yt) == size else sums
                multiply_block(x_lines, x_taps, w, w_taps, sums, b[ROW], length, fetched, g[ys + 2], g, b, tools, at)
            else:
                source = source + start * size
            bad |= invoke(
                tools[LINES], source, row, step * size, b[CHANNELS] - skip, 1 if flat else count, count if flat else columns, shift,
                g[OPTION], target, g[ys + 2], y_line,
            )  # fmt: skip
    return bad != 0


@helper
def find_places(places, block, g, b, tools, at):
    """The byte offsets of each vector of a block in its slab and in y; returns how many, in whole tiles of vectors.

    The last vector of a line overlaps the one before it, and the last one of all stands for those that are left of a tile.
    """
    axis, lines, size, lanes, last = g[DIMS] - 1, 1, itemsize(at), tools[LANES], 0
    for other in range(axis):
        lines *= block_extent(g, b, block, other)
    columns, step, found = block_extent(g, b, block, axis), axis_entry(b, g[DIMS], B_PITCH, axis), 0
    corner = block_start(b, g[DIMS], block, axis) * size
    for line in range(lines):
        place, offset = line_place(line, axis, step, block, g, b)
        for first in range(0, columns, lanes):
            start = min(first, columns - lanes) * size
            places[2 * found], places[2 * found + 1] = place * size + start, offset + corner + start
            found += 1
    last = found - 1
    while found % (b[WIDTH] // lanes):
        places[2 * found], places[2 * found + 1] = places[2 * last], places[2 * last + 1]
        found += 1
    return found


@helper
def start_job(job, slab, taps, w_taps, places, tiles, g, b, at):
    """What the tiles of all output channels of a block have in common."""
    ws = part(g, PARTS + 1)
    job[job_of.X], job[job_of.X_TAPS], job[job_of.W_TAPS] = as_integer(slab), as_integer(taps), as_integer(w_taps)
    job[job_of.C], job[job_of.TAPS], job[job_of.X_C] = g[PER_C], b[TAPS], b[CHANNEL] * itemsize(at)
    job[job_of.W_C], job[job_of.W_K], job[job_of.Y_K] = g[ws + 2], g[ws + 1], g[part(g, PARTS + 2) + 2]
    job[job_of.PLACES], job[job_of.TILES], job[job_of.RELU] = as_integer(places), tiles, g[OPTION]


@helper
def weight_taps(g, taps, table):
    """The byte offset of each tap in w."""
    axis = g[DIMS] - 1
    window, step = g[part(g, WINDOW) + axis], g[part(g, PARTS + 1) + 3 + axis]
    for tap in range(taps):
        table[tap] = outer_offset(g, tap // window, WINDOW, PARTS + 1) + tap % window * step


@helper
def multiply_block(slab, x_taps, w, w_taps, sums, pixels, length, result, result_k, g, b, tools, at):
    """The sums of a block's first `length` pixels for the channels of one tile; `result`: of what memory is asked for."""
    ws, step = part(g, PARTS + 1), b[CHANNEL] * itemsize(at)
    for first in range(0, g[PER_C], b[CHUNK]):
        count = min(b[CHUNK], g[PER_C] - first)
        invoke(
            tools[MULTIPLY], length, slab + first * step, x_taps, w + first * g[ws + 2], w_taps, sums, count, b[TAPS], step,
            g[ws + 2], g[ws + 1], pixels * itemsize(at), min(first, 1), result, result_k,
        )  # fmt: skip


@helper
def _blocks(worker, queue, args):
    yt, at, tools, splits, x, w, bias, y, status, g, b, taps = args
    wide_vectors()
    xs, ws, ys, width, channels = part(g, PARTS), part(g, PARTS + 1), part(g, PARTS + 2), b[WIDTH], b[CHANNELS]
    per_k, slab_size = g[PER_K], g[PER_C] * b[CHANNEL]
    pixels = -(-b[FLAT] // width) * width
    # one vector more than needed: tiles read, and vectors of results are read, beyond the last pixel
    packed, results = scratch((slab_size + width) * itemsize(at)), scratch((channels * pixels + width) * itemsize(at))
    w_taps = scratch(8 * b[TAPS])
    slab, sums = memory(packed), memory(results)
    weight_taps(g, b[TAPS], numbers(w_taps, 0))
    clear(slab + slab_size * itemsize(at), width, at)
    filled, tiles = -1, -(-per_k // channels)
    plain = (g[ys + 3 + g[DIMS] - 1] == itemsize(yt)) & (g[OPTION] <= 1)
    placed = plain & (b[TOGETHER] == PLACED)
    table = scratch(16 * b[ROW] + 8 * job_of.JOB if placed else 0)
    places, job = numbers(table, 0), numbers(table, 2 * b[ROW])
    for item in taken_items(queue, worker):
        where = item // splits
        block, group = where % b[BLOCKS], where // b[BLOCKS]
        n = block_image(b, g[DIMS], block)
        if where != filled:
            invoke(tools[PACK], tools, slab, x + (n * g[xs] + group * g[xs + 1]), block, 1, g[PER_C], g, b)
            filled = where
            if placed:
                vectors = find_places(places, block, g, b, tools, at)
                start_job(job, slab, taps, memory(w_taps), memory(table), vectors * tools[LANES] // width, g, b, at)
        length = flat_extent(g, b, block)
        for tile in range(tiles * (item % splits) // splits, tiles * (item % splits + 1) // splits):
            # the last tile overlaps the one before, whose channels it does not write again
            k = min(tile * channels, per_k - channels)
            w_k, skip = w + (group * g[ws] + k * g[ws + 1]), tile * channels - k
            y_n, bad = y + (n * g[ys] + group * g[ys + 1]), False
            if not (plain and b[TOGETHER]):
                multiply_block(slab, taps, w_k, memory(w_taps), sums, pixels, length, sums, 0, g, b, tools, at)
            if placed:
                # channels that two tiles have get the same results again
                job[job_of.W], job[job_of.Y] = as_integer(w_k), as_integer(y_n + k * g[ys + 2])
                job[job_of.BIAS] = as_integer(bias if is_null(bias) else bias + (group * per_k + k) * itemsize(at))
                bad = invoke(tools[PRODUCT], memory(table) + 16 * b[ROW]) != 0
            elif plain:
                bad = finish_lines(
                    slab, taps, w_k, memory(w_taps), sums, pixels, bias, y_n, group, k, skip, block, g, b, tools, yt, at
                )
            else:
                new = sums + skip * pixels * itemsize(at)
                bad = finish_block(new, pixels, length, bias, y_n, group, k + skip, channels - skip, block, g, b, tools, yt, at)
            if bad:
                store(status + n, np.uint8(1), UINT8)
    release(packed)
    release(results)
    release(w_taps)
    release(table)


@kernel
def tiled(
    yt: Tag, at: Tag, region: int, workers: int, items: int, tools: Address, splits: int,
    x: Address, w: Address, bias: Address, y: Address, status: Address, g: Address, b: Address, taps: Address,
) -> None:  # fmt: skip
    """y from x and w: an item is a block of outputs, or the part of it that belongs to some of the output channels.

    `status` gets a 1 for each image of which a sum is not finite. Weights and bias are in the accumulation dtype.
    """
    parallel_items(
        region,
        workers,
        items,
        _blocks,
        (yt, at, pointer(tools, INT64), splits, x, w, bias, y, status, pointer(g, INT64), pointer(b, INT64), taps),
    )


_kernels = Unit(
    "tile.kernels",
    lambda out, acc, lanes: [
        (write_lines, (lanes, (acc, out))),
        *((each, ((*tile, lanes), acc)) for tile in host().pixel_tiles for each in (multiply_tiles, multiply_placed)),
    ],
    called=lambda out, acc, lanes: [(tiled, (out, acc))],
)
"""All tiles of the host, which differ by the number of output channels."""


# --- the implementation --------------------------------------------------------------------------------------------------------


class _Layout(NamedTuple):
    """The tile that computes a problem, and how it is cut."""

    tile: Tile
    block: Block
    lines: Lines


@functools.lru_cache(maxsize=64)
def _layout(problem: ConvProblem, pieces: int = FEW_PIECES) -> _Layout:
    """The layout of a problem, which its cost, its workspace and its executor ask for one after the other."""
    tile = tile_for(problem.acc_dtype, problem.k // problem.groups)
    block = block_for(problem, tile, pieces)
    return _Layout(tile, block, lines_for(problem, tile, block))


class _Executor(ForwardExecutor):
    """One tiled convolution."""

    def __init__(self, problem: ConvProblem):
        tile, block, lines = _layout(problem, pieces_here())
        super().__init__(problem, block.pieces * problem.groups)
        self._tiles = -(-(problem.k // problem.groups) // tile.channels)
        self._work = problem.flops / 2
        taps = tap_offsets(problem, block)
        width, chunk = tile.vectors * tile.lanes, chunk_for(problem, tile)
        numbers = flat_pixels(block), len(taps), chunk, width, tile.channels, lines.together, lines.row
        self._block = block_vector(block, *numbers)
        _kernels.begin(problem.out_dtype, problem.acc_dtype, tile.lanes)
        self._tools = tools_for(problem.dtype, problem.acc_dtype, tile.lanes, phases=block.step[-1], out=problem.out_dtype).copy()
        self._kernel, writing, *tiles = _kernels.functions(problem.out_dtype, problem.acc_dtype, tile.lanes)
        which = 2 * host().pixel_tiles.index((tile.vectors, tile.channels))
        self._tools[[LINES, MULTIPLY, PRODUCT]] = writing, *tiles[which : which + 2]
        self._taps = np.array(taps, np.int64) * self._acc.itemsize

    def unpacked(self, w: Any) -> Weights:
        """w in the accumulation dtype."""
        wide = w if w.dtype is self._acc else np.asarray(w, self._acc)
        return Weights(wide, wide.strides)

    def packed(self, w: Any) -> Weights:
        """w in the accumulation dtype and in the order of reading."""
        wide = accumulated(w, self._acc)
        return Weights(wide, wide.strides)

    def launch(self, x: Any, w: Weights, shift: Any, y: Any, status: Any, vector: Any) -> None:
        """Run `tiled`."""
        splits = 1 if self._work < SERIAL_WORK else max(1, min(self._tiles, -(-4 * threads() // self._items)))
        items = self._items * splits
        run(self._kernel, items, self._work, self._tools, splits, x, w.array, shift, y, status, vector, self._block, self._taps)


class RegisterTile(DenseImplementation):
    """Direct convolution of real floats with the lanes over pixels."""

    name = "tile"
    apart_seconds: ClassVar[float] = 2e-10
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def accepts(self, problem: ConvProblem) -> Verdict:
        """All of them."""
        return Verdict.yes()

    def forward_cost(self, problem: ConvProblem) -> float:
        """Products, those between rows included, at the rate that the tile's shape allows; packing; start-up."""
        tile, block, lines = _layout(problem)
        per_k, taps = problem.k // problem.groups, math.prod(problem.kernel)
        tiles, width = -(-per_k // tile.channels), tile.vectors * tile.lanes
        per_c, count = problem.c // problem.groups, block.pieces * problem.groups * tiles * -(-flat_pixels(block) // width)
        products = count * tile.vectors * tile.channels / 2 * tile_share(tile.vectors, tile.channels) * per_c * taps
        neighbours = lines.together == PLACED and taps > 1 == max(problem.stride) and tile.channels > 1
        cycles = (
            products * (1.0 if neighbours and host().registers < 32 else PRODUCT_CYCLES)
            + block.pieces * problem.groups * (BLOCK_CYCLES + tiles * CALL_CYCLES)
            + count * -(-per_c // chunk_for(problem, tile)) * host().start_cycles
            + block.pieces * problem.groups * tiles * lines.cycles
            + pack_cycles(block, problem.c)
            + moved_cycles(problem)
        )
        return CALL_SECONDS + seconds(cycles, problem.flops / 2)

    def cost(self, problem: ConvProblem) -> float:
        """More for an input_grad with a stride whose lines leave the caches before the next phase writes them again."""
        size = math.prod(problem.x_shape)
        strided = problem.op == "input_grad" and max(problem.stride) > 1
        far = strided and size * np_dtype(problem.dtype).itemsize > FAR_BYTES
        return super().cost(problem) + far * size * FAR_SECONDS

    def forward_workspace(self, problem: ConvProblem) -> int:
        """For each thread a slab, the results of a block, and tables; weights in the accumulation dtype."""
        tile, block, lines = _layout(problem)
        item = np_dtype(problem.acc_dtype).itemsize
        width = tile.vectors * tile.lanes
        elements = problem.c // problem.groups * block.channel + tile.channels * (flat_pixels(block) + width) + 2 * width
        placed = 16 * lines.row + 8 * job_of.JOB if lines.together == PLACED else 0
        each = elements * item + 8 * math.prod(problem.kernel) + placed
        widened = 0 if problem.dtype == problem.acc_dtype else math.prod(problem.w_shape) * item
        return MAX_THREADS * each + widened

    def forward(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
