"""Winograd convolution with short kernels, for real floats: fewer multiplications, within the default error bound.

Tiles of m outputs along the last two dimensions (the last, if there is one only) are computed from m + r - 1 inputs with as many
multiplications a dimension: F(4x4, 3x3) needs a quarter of those of the definition, F(2x2, 5x5) a third. With a stride the input
and the kernel fall into phases, each of which is a convolution of stride 1 with a kernel of r taps or less: they are summed like
input channels, so that 7x7 with stride 2 is F(3x3, 4x4) of four times the channels. Further dimensions, and channels, are summed
between the transforms. A work item takes a block of tiles: it packs the input, split so that every element of all its tiles is a
row of neighbours; transforms it, a vector of tiles at a time; multiplies each element with the transformed weights on register
tiles with the lanes over output channels; and transforms the products back, a vector of channels at a time. Lavin and Gray, "Fast
algorithms for convolutional neural networks" (CVPR 2016), section 4.

An error in one input spreads over its tile, so that images with a sum that is not finite are computed again by `blocked`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Verdict, np_dtype

from .blocked import (
    CALL_SECONDS,
    Blocked,
    Shape,
    divided,
    forget,
    most_workers,
    pack_weight_cycles,
    panel_shape,
    parts_for,
    seconds,
    tile_cycles,
)
from .compiler import Address, Tag, helper, invoke, kernel
from .dense import DenseImplementation, ForwardExecutor, Weights
from .elements import INT64, itemsize, keep, memory, scratch
from .entries import COPY, INPUT, LANES, OUTPUT, PACK, PACK_WEIGHTS, PRODUCT, WEIGHT, WRITE
from .geometry import DIMS, FLIPPED, OPTION, PARTS, PER_C, PER_K, STRIDE, WINDOW, part
from .microkernels.emit import lanes_of
from .panels import fill_places, fill_terms, tiles_along
from .scalar import is_null, pointer
from .slab import (
    B_PHASES,
    B_PITCH,
    B_STEP,
    BLOCKS,
    CHANNEL,
    EXTRA,
    WRITE_CYCLES,
    Block,
    axis_entry,
    block_extent,
    block_image,
    block_images,
    block_vector,
    cut,
    pack_cycles,
    tap_positions,
)  # fmt: skip
from .threads import MAX_THREADS, Areas, parallel_for, run, run_with, worker_area
from .tools import tools_for

__all__ = [
    "COLUMNS",
    "ROWS",
    "V_STEP",
    "Tiles",
    "Winograd",
    "WinogradExecutor",
    "copy_pixels",
    "cut_tiles",
    "direct_terms",
    "element_counts",
    "fill_elements",
    "inner_window",
    "lead_axes",
    "packed_together",
    "phase_taps",
    "place_steps",
    "spread",
    "tile_extents",
    "tile_rows",
    "tiles_of",
    "transform_inputs",
]

BLOCK_BYTES = (640 * 1024, 1280 * 1024, 1920 * 1024)
"""What the transformed input of a block and the products of a panel may take of the second-level cache."""
RESULT_BYTES = 512 * 1024
"""The sums of a block for a panel."""
WEIGHT_BYTES = 512 * 1024
"""Transformed weights that are multiplied in one pass over a block."""
KEPT_BYTES = 4 * 1024 * 1024
"""Transformed weights that a worker keeps from block to block."""
CHANNELS_AT_ONCE = 8
"""Input channels whose weights are packed before they are transformed: transposing runs of neighbours is cheaper in one go."""
LEAST_CHANNELS = 4
"""Of a group, phases and taps that are summed directly included: in one or two the window of an output may hold nothing beside a
full tile, and the transforms cost most."""
MOST_TAPS = 5
"""Of a phase: more would need points at which the error grows."""
ELEMENTS = 6, 4
"""Of a tile along a dimension."""
PACKED_BYTES = 64 * 1024
"""Packed input that is transformed in one go: it stays near the first-level cache."""


class Tiles(NamedTuple):
    """What tiles are along the last two dimensions; the first of them is trivial in one dimension.

    Attributes
    ----------
    outputs, taps : (int, int)
        m and r of F(m, r); 1 and 1 stand for no transform.
    strides, phases : (int, int)
        Of the input, and how many of its phases the kernel reads.
    """

    outputs: tuple[int, int]
    taps: tuple[int, int]
    strides: tuple[int, int]
    phases: tuple[int, int]

    @property
    def elements(self) -> int:
        """Of a transformed tile."""
        return math.prod(m + r - 1 for m, r in zip(self.outputs, self.taps, strict=True))

    @property
    def transform(self) -> tuple[int, int, int, int]:
        """The shape of the transforms."""
        return self.outputs[0], self.taps[0], self.outputs[1], self.taps[1]


def lead_axes(problem: ConvProblem) -> int:
    """The number of dimensions that are summed directly."""
    return max(problem.ndim - 2, 0)


def inner_taps(problem: ConvProblem) -> list[int]:
    """The taps of a phase along the last two dimensions."""
    return [-(-r // s) for r, s in zip(problem.kernel[-2:], problem.stride[-2:], strict=True)]


def tiles_of(problem: ConvProblem) -> list[Tiles]:
    """The tiles that can be had, those with the fewest multiplications first."""
    taps, strides = inner_taps(problem), problem.stride[-2:]
    phases = [min(r, s) for r, s in zip(problem.kernel[-2:], strides, strict=True)]
    trivial, found = [1] * (2 - len(taps)), []
    for elements in ELEMENTS:
        outputs = [1 if r == 1 else elements - r + 1 for r in taps]
        if all(m > 1 or r == 1 for m, r in zip(outputs, taps, strict=True)):
            m, r, s, p = ((*trivial, *each) for each in (outputs, taps, strides, phases))
            found.append(Tiles(m, r, s, p))
    return found


def cut_tiles(problem: ConvProblem, tiles: Tiles, fits: Callable[[Block], bool]) -> Block:
    """The block, for tiles along the last two dimensions."""
    lead, inner = lead_axes(problem), -min(problem.ndim, 2)
    units = (*[1] * lead, *tiles.outputs[inner:])
    steps = (*[1] * lead, *(m * s for m, s in zip(tiles.outputs[inner:], tiles.strides[inner:], strict=True)))
    # all taps of every phase, also those that only some phases have
    reach = [
        [a + s * i for a in range(p) for i in range(r)]
        for r, s, p in zip(tiles.taps[inner:], tiles.strides[inner:], tiles.phases[inner:], strict=True)
    ]
    return cut(problem, steps, [*tap_positions(problem)[:lead], *reach], units, fits, problem.n)


def tile_rows(tiles: Tiles, block: Block, lanes: int) -> int:
    """Places of a block's tiles at one position along the leading dimensions: rows at the pitch of the slab, in whole vectors."""
    rows = -(-block.size[-2] // tiles.outputs[0]) if len(block.size) > 1 else 1
    return -(-rows * block.pitch[-1] // lanes) * lanes


class _Layout(NamedTuple):
    """How a forward problem is cut: also channels of a pass, whether weights are kept, channels of a slab."""

    tiles: Tiles
    shape: Shape
    block: Block
    chunk: int
    kept: bool
    slab_channels: int

    @property
    def rows(self) -> int:
        """See `tile_rows`."""
        return tile_rows(self.tiles, self.block, self.shape.lanes)

    @property
    def places(self) -> int:
        """Tiles of a block, rounded up to register tiles."""
        return -(-self.block.tiles // self.shape.positions) * self.shape.positions

    @property
    def plane(self) -> int:
        """Places of a transformed channel."""
        return self.rows * math.prod(self.block.pitch[:-2])


def direct_terms(problem: ConvProblem, tiles: Tiles) -> int:
    """Terms of a sum between the transforms, for each input channel: phases and taps of the leading dimensions."""
    return int(math.prod(tiles.phases) * math.prod(problem.kernel[: lead_axes(problem)]))


def _layout_with(problem: ConvProblem, tiles: Tiles, budget: int) -> _Layout:
    item, per_c, per_k = np_dtype(problem.acc_dtype).itemsize, problem.c // problem.groups, problem.k // problem.groups
    terms, phases = direct_terms(problem, tiles), math.prod(tiles.phases)
    width = panel_shape(problem.acc_dtype, per_k, 1 << 20).width * item

    def fits(block: Block) -> bool:
        wide = math.prod(block.pitch[:-2]) * tile_rows(tiles, block, 1)
        transformed = tiles.elements * (block.images * per_c * phases * wide * item + block.tiles * width)
        return transformed <= budget and block.pixels * width <= RESULT_BYTES and divided(problem, block, width)

    block = cut_tiles(problem, tiles, fits)
    shape = panel_shape(problem.acc_dtype, per_k, block.tiles)
    each = tiles.elements * terms * shape.width * item
    allowed = min(KEPT_BYTES, problem.max_workspace // MAX_THREADS - budget - RESULT_BYTES - PACKED_BYTES)
    kept = -(-per_k // shape.width) * per_c * each <= allowed and block.pieces * problem.groups > 1
    chunk = per_c if kept else min(per_c, max(1, WEIGHT_BYTES // each))
    return _Layout(tiles, shape, block, chunk, kept, packed_together(problem, block, per_c))


def packed_together(problem: ConvProblem, block: Block, channels: int) -> int:
    """Channels of a slab: as many as stay near the first-level cache; of channels that are last whole vectors."""
    count = PACKED_BYTES // (block.channel * np_dtype(problem.acc_dtype).itemsize)
    if problem.layout == "channels_last":
        lanes = lanes_of(problem.acc_dtype)
        count = max(lanes, count // lanes * lanes)
    return min(channels, max(1, count))


def _cost(problem: ConvProblem, layout: _Layout) -> float:
    """Cycles of the products and of the transforms, counted in vectors."""
    tiles, shape, block, *_ = layout
    per_c, per_k, pieces = problem.c // problem.groups, problem.k // problem.groups, block.pieces * problem.groups
    panels, terms = -(-per_k // shape.width), per_c * direct_terms(problem, tiles)
    groups = -(-block.tiles // shape.positions)
    products = tiles.elements * pieces * panels * groups * (terms * tile_cycles(shape.vectors, shape.positions) + 60)
    # loads, stores and about as many multiply-adds for each element of a transform; packing and transposing. Where one block is
    # shared, both of two threads transform its input; weights that are kept, each thread transforms for itself.
    shared = 2 if pieces == 1 else 1
    vectors = pieces * block.images * per_c * math.prod(tiles.phases) * layout.plane / shape.lanes
    inputs = shared * (pack_cycles(block, problem.c) * 2 + vectors * tiles.elements * 5)
    outputs = pieces * panels * shape.vectors * block.tiles * (tiles.elements * 2.5 + math.prod(tiles.outputs) * 3)
    times = 2 * problem.groups if layout.kept else pieces
    transformed = panels * shape.vectors * terms * tiles.elements * 3
    weights = times * (pack_weight_cycles(problem, panels * shape.width * per_c) + transformed)
    results = math.prod(problem.y_shape) * WRITE_CYCLES
    return CALL_SECONDS + 3e-6 + seconds(products * 1.1 + inputs + outputs + weights + results)


@functools.lru_cache(maxsize=256)
def _layout(problem: ConvProblem) -> _Layout:
    """The layout with the least cost."""
    candidates = (_layout_with(problem, tiles, budget) for tiles in tiles_of(problem) for budget in BLOCK_BYTES)
    return min(candidates, key=lambda layout: _cost(problem, layout))


def spread(size: int, line: int) -> int:
    """A size in elements rounded up to an odd number of cache lines, so that what lies so far apart falls into different sets."""
    return (-(-size // line) | 1) * line


# A block's own numbers: channels of a panel, tiles of a register tile, input channels of a pass, whether transformed weights are
# kept from block to block, tiles rounded up to register tiles, taps that are summed directly, channels that are packed together;
# elements from one element of transformed tiles to the next in the input and in the products, places of one direct position,
# elements from one element of transformed weights to the next; outputs of a tile.
PANEL, GROUP, CHUNK, KEPT, PLACES, TAPS, SLAB, V_STEP, M_STEP, V_ROWS, U_STEP, ROWS, COLUMNS = range(EXTRA, EXTRA + 13)


UINT8 = Tag("uint8")

# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def spread_step(size):
    """`spread` of bytes."""
    return (-(-size // 64) | 1) * 64


@helper
def inner_axis(g, back):
    """(window, stride, taps of a phase, phases) of the last dimension or, with `back` = 1, of the one before, if there is one."""
    axis = g[DIMS] - 1 - back
    if axis < 0:
        return 1, 1, 1, 1
    window, stride = g[part(g, WINDOW) + axis], g[part(g, STRIDE) + axis]
    return window, stride, -(-window // stride), min(window, stride)


@helper
def element_counts(g, b):
    """(elements of a tile, phases of the input)."""
    _, _, row_taps, row_phases = inner_axis(g, 1)
    _, _, column_taps, column_phases = inner_axis(g, 0)
    return (b[ROWS] + row_taps - 1) * (b[COLUMNS] + column_taps - 1), row_phases * column_phases


@helper
def fill_elements(table, g, b, size):
    """The byte offset in a channel's slab of each element of the first tile, for one phase of the input after the other."""
    ndim, plane, filled = g[DIMS], 1, 0
    for axis in range(ndim):
        plane *= axis_entry(b, ndim, B_PITCH, axis)
    _, row_stride, row_taps, row_phases = inner_axis(g, 1)
    _, column_stride, column_taps, column_phases = inner_axis(g, 0)
    row_step = axis_entry(b, ndim, B_STEP, ndim - 2) if ndim > 1 else 1
    column_step, pitch = axis_entry(b, ndim, B_STEP, ndim - 1), axis_entry(b, ndim, B_PITCH, ndim - 1)
    split = axis_entry(b, ndim, B_PHASES, ndim - 1)
    for phase in range(row_phases * column_phases):
        for i in range(b[ROWS] + row_taps - 1):
            for j in range(b[COLUMNS] + column_taps - 1):
                row, column = row_stride * i + phase // column_phases, column_stride * j + phase % column_phases
                combination = row % row_step * split + column % column_step
                table[filled] = (combination * plane + row // row_step * pitch + column // column_step) * size
                filled += 1


@helper
def place_steps(axis_steps, g, b, size):
    """The byte distance of neighbouring places of transformed input, per dimension."""
    ndim, step = g[DIMS], b[V_ROWS] * size
    axis_steps[ndim - 1] = size
    if ndim > 1:
        axis_steps[ndim - 2] = axis_entry(b, ndim, B_PITCH, ndim - 1) * size
    for axis in range(ndim - 3, -1, -1):
        axis_steps[axis] = step
        step *= axis_entry(b, ndim, B_PITCH, axis)
    return step // size


@helper
def transform_channel(v, slab, elements, g, b, tools, at):
    """One phase of a channel of one image, at each position along the dimensions that are summed directly."""
    ndim, size = g[DIMS], itemsize(at)
    inner, lead = axis_entry(b, ndim, B_PITCH, ndim - 1), 1
    if ndim > 1:
        inner *= axis_entry(b, ndim, B_PITCH, ndim - 2)
    for axis in range(ndim - 2):
        lead *= axis_entry(b, ndim, B_PITCH, axis)
    for position in range(lead):
        source, target = slab + position * inner * size, v + position * b[V_ROWS] * size
        invoke(tools[INPUT], source, elements, b[V_ROWS] // tools[LANES], target, b[V_STEP] * size)


@helper
def transform_inputs(v, slab, elements, x, channels, block, plane, g, b, tools, at):
    """The transformed input of a block: [element][image][channel][phase][place]; `x`: the first channel in its first image."""
    size = itemsize(at)
    count, phases = element_counts(g, b)
    for image in range(block_images(g, b, block)):
        for first in range(0, channels, b[SLAB]):
            packed = min(b[SLAB], channels - first)
            source = x + (image * g[part(g, PARTS)] + first * g[part(g, PARTS) + 2])
            invoke(tools[PACK], tools, slab, source, block, 1, packed, g, b)
            for c in range(packed):
                for phase in range(phases):
                    target = v + ((image * channels + first + c) * phases + phase) * plane * size
                    transform_channel(target, slab + c * b[CHANNEL] * size, elements + 8 * phase * count, g, b, tools, at)


@helper
def phase_taps(phase, width, g):
    """Where the taps of a phase lie in a packed kernel: the first one, from row to row, from column to column, and how many."""
    rows, row_stride, _, _ = inner_axis(g, 1)
    columns, column_stride, _, column_phases = inner_axis(g, 0)
    row, column = phase // column_phases, phase % column_phases
    n_rows, n_columns = -(-(rows - row) // row_stride), -(-(columns - column) // column_stride)
    row_step, column_step = row_stride * columns * width, column_stride * width
    if g[part(g, FLIPPED) + g[DIMS] - 1]:
        # with flip, taps are counted from the last one back
        return ((rows - 1 - row) * columns + columns - 1 - column) * width, -row_step, -column_step, n_rows, n_columns
    return (row * columns + column) * width, row_step, column_step, n_rows, n_columns


@helper
def inner_window(g):
    """Taps of a kernel along the last two dimensions."""
    return inner_axis(g, 1)[0] * inner_axis(g, 0)[0]


@helper
def transform_weights(u, u_step, packed, w, count, first, channels, g, b, tools, at):
    """Transformed weights of a panel of `count` output channels, elements `u_step` bytes apart: [element][c][phase][tap][lane]."""
    taps, width, inner = b[TAPS], b[PANEL] * itemsize(at), inner_window(g)
    _, phases = element_counts(g, b)
    vectors = b[PANEL] // tools[LANES]
    for begin in range(0, channels, CHANNELS_AT_ONCE):
        several = min(CHANNELS_AT_ONCE, channels - begin)
        invoke(tools[PACK_WEIGHTS], tools, packed, w, count, first + begin, several, taps * inner, width, g)
        # of the phases, or else of the taps that are summed directly, there is one
        run = several * taps if (taps == 1) | (phases == 1) else taps
        for one in range(0, several * taps, run):
            for phase in range(phases):
                start, row_step, column_step, rows, columns = phase_taps(phase, width, g)
                source = packed + (one * inner * width + start)
                target = u + (((begin + one // taps) * phases + phase) * taps + one % taps) * width
                invoke(
                    tools[WEIGHT], source, row_step, column_step, rows, columns, vectors, target, u_step, run, inner * width,
                    (phases if taps == 1 else 1) * width,
                )  # fmt: skip


@helper
def copy_pixels(target, source, rows, columns, target_row, target_column, source_row, source_column, tools, at):
    """So many rows and columns of pixels, a panel of channels each."""
    count = min(target_column, source_column) // itemsize(at)
    invoke(
        tools[COPY], source, 0, count, target, 0, count, columns, source_column, target_column, rows, source_row, target_row
    )  # fmt: skip


@helper
def tile_extents(g, b, block):
    """(planes of a block, tiles and outputs of a column, tiles and outputs of a row)."""
    axis, planes, lines, height = g[DIMS] - 1, block_images(g, b, block), 1, 1
    if axis > 0:
        lines, height = tiles_along(g, b, block, axis - 1), block_extent(g, b, block, axis - 1)
    for other in range(axis - 1):
        planes *= block_extent(g, b, block, other)
    return planes, lines, height, tiles_along(g, b, block, axis), block_extent(g, b, block, axis)


@helper
def transform_outputs(sums, products, spare, block, g, b, tools, at):
    """The results of a block, [pixel][lane], from the products of its tiles, [element][tile][lane]."""
    size, rows, columns = itemsize(at), b[ROWS], b[COLUMNS]
    width, step, vectors = b[PANEL] * size, b[M_STEP] * size, b[PANEL] // tools[LANES]
    planes, lines, height, tiles, length = tile_extents(g, b, block)
    for line in range(planes * lines):
        row = line % lines * rows
        start = (line // lines * height + row) * length
        for tile in range(tiles):
            column = tile * columns
            source, target = products + (line * tiles + tile) * width, sums + (start + column) * width
            if (row + rows <= height) & (column + columns <= length):
                invoke(tools[OUTPUT], source, step, vectors, target, length * width, width)
            else:
                invoke(tools[OUTPUT], source, step, vectors, spare, columns * width, width)
                inside = min(rows, height - row), min(columns, length - column)
                copy_pixels(target, spare, inside[0], inside[1], length * width, width, columns * width, width, tools, at)


# The parts of a worker's scratch memory: tables, packed and transformed input, products, results of a panel, packed weights and a
# spare tile, transformed weights, which of them are there.
TABLES, SLABS, INPUTS, PRODUCTS, RESULTS, SMALL, SPARE, WEIGHTS, READY, AREAS = range(10)


@helper
def _blocks(begin, end, args):
    at, items, workers, scratch, areas, tools, splits, packed, x, w, bias, y, status, g, b = args
    ndim, per_c, per_k, size = g[DIMS], g[PER_C], g[PER_K], itemsize(at)
    xs, ws, ys, width = part(g, PARTS), part(g, PARTS + 1), part(g, PARTS + 2), b[PANEL] * itemsize(at)
    count, phases = element_counts(g, b)
    own = worker_area(scratch, areas, AREAS, workers, items, begin)
    tables, slabs, inputs, products = own + areas[TABLES], own + areas[SLABS], own + areas[INPUTS], own + areas[PRODUCTS]
    results, small, spare, weights = own + areas[RESULTS], own + areas[SMALL], own + areas[SPARE], own + areas[WEIGHTS]
    ready, panels = pointer(own + areas[READY], UINT8), -(-per_k // b[PANEL])
    terms = tables + 8 * b[PLACES]
    elements = terms + 8 * b[CHUNK] * phases * b[TAPS]
    axis_steps = pointer(elements + 8 * count * phases, INT64)
    u_step = b[U_STEP] * size
    plane = place_steps(axis_steps, g, b, size)
    fill_terms(pointer(terms, INT64), b[CHUNK] * phases, plane * size, max(ndim - 2, 0), axis_steps, g)
    fill_elements(pointer(elements, INT64), g, b, size)
    where, of_group, tiles = -1, -1, 0
    for item in range(begin, end):
        block, group = item // splits % b[BLOCKS], item // splits // b[BLOCKS]
        n = block_image(b, ndim, block)
        if item // splits != where:
            where = item // splits
            tiles = fill_places(pointer(tables, INT64), b[GROUP], per_c * phases * plane * size, axis_steps, g, b, block)
            source = x + (n * g[xs] + group * g[xs + 1])
            transform_inputs(inputs, slabs, elements, source, per_c, block, plane, g, b, tools, at)
        if group != of_group:
            of_group = group
            forget(ready, panels)
        for panel in range(panels * (item % splits) // splits, panels * (item % splits + 1) // splits):
            k = panel * b[PANEL]
            used = min(per_k - k, b[PANEL])
            w_k = w + (group * g[ws] + k * g[ws + 1])
            for first in range(0, per_c, b[CHUNK]):
                passed = min(b[CHUNK], per_c - first)
                u, step = weights + (panel * count * u_step if b[KEPT] else 0), u_step
                if packed:
                    step = spread_step(per_c * phases * b[TAPS] * width)
                    u = w + ((group * panels + panel) * count * step + first * phases * b[TAPS] * width)
                elif not (b[KEPT] and ready[panel]):
                    transform_weights(u, step, small, w_k, used, first, passed, g, b, tools, at)
                for element in range(count):
                    invoke(
                        tools[PRODUCT], u + element * step, inputs + (element * b[V_STEP] + first * phases * plane) * size, tables,
                        products + element * b[M_STEP] * size, -(-tiles // b[GROUP]), passed * phases * b[TAPS], terms, width,
                        1 if first > 0 else 0,
                    )  # fmt: skip
            ready[panel] = 1
            transform_outputs(results, products, spare, block, g, b, tools, at)
            shift = bias if is_null(bias) else bias + (group * per_k + k) * size
            target = y + (group * g[ys + 1] + k * g[ys + 2])
            invoke(tools[WRITE], tools, results, width, used, shift, g[OPTION], target, status, block, g, b)


@kernel
def winograd(
    at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, tools: Address, splits: int, packed: int,
    x: Address, w: Address, bias: Address, y: Address, status: Address, g: Address, b: Address,
) -> None:  # fmt: skip
    """y from x and w: an item is a block of tiles for some of the panels.

    `tools`: see `tools_for`; w is `packed`: transformed, in panels, or lies as the vector g says. `status` gets a 1 for each image
    of which a sum is not finite. The bias is in the accumulation dtype.
    """
    parallel_for(
        region,
        workers,
        items,
        _blocks,
        (
            at, items, workers, scratch, pointer(areas, INT64), pointer(tools, INT64), splits, packed, x, w, bias, y, status,
            pointer(g, INT64), pointer(b, INT64),
        ),
    )  # fmt: skip


@helper
def _panels(begin, end, args):
    at, tools, w, target, g, b = args
    ws, per_c, per_k, width, panels = part(g, PARTS + 1), g[PER_C], g[PER_K], b[PANEL] * itemsize(at), -(-g[PER_K] // b[PANEL])
    count, phases = element_counts(g, b)
    step = spread_step(per_c * phases * b[TAPS] * width)
    small = scratch(CHANNELS_AT_ONCE * b[TAPS] * inner_window(g) * width)
    for item in range(begin, end):
        group, k = item // panels, item % panels * b[PANEL]
        source, used = w + (group * g[ws] + k * g[ws + 1]), min(per_k - k, b[PANEL])
        transform_weights(target + item * count * step, step, memory(small), source, used, 0, per_c, g, b, tools, at)
    keep(small)


@kernel
def transform_all_weights(
    at: Tag, region: int, workers: int, items: int, tools: Address, w: Address, target: Address, g: Address, b: Address
) -> None:
    """All panels of w, transformed, for `winograd`: an item is a panel of a group."""
    parallel_for(region, workers, items, _panels, (at, pointer(tools, INT64), w, target, pointer(g, INT64), pointer(b, INT64)))


# --- the implementation --------------------------------------------------------------------------------------------------------


def _steps(problem: ConvProblem, layout: _Layout) -> tuple[int, int, int, int]:
    """V_STEP, M_STEP, V_ROWS, U_STEP."""
    line, phases = 64 // np_dtype(problem.acc_dtype).itemsize, math.prod(layout.tiles.phases)
    return (
        spread(layout.block.images * (problem.c // problem.groups) * phases * layout.plane, line),
        spread(layout.places * layout.shape.width, line),
        layout.rows,
        spread(layout.chunk * direct_terms(problem, layout.tiles) * layout.shape.width, line),
    )


def _areas(problem: ConvProblem, layout: _Layout) -> Areas:
    """A worker's scratch memory."""
    tiles, shape, block, item, taps = *layout[:3], np_dtype(problem.acc_dtype).itemsize, math.prod(problem.kernel)
    v_step, m_step, _, u_step = _steps(problem, layout)
    panels, elements = -(-(problem.k // problem.groups) // shape.width), tiles.elements
    terms = layout.chunk * direct_terms(problem, tiles)
    tables = 8 * (layout.places + terms + elements * math.prod(tiles.phases) + problem.ndim)
    sizes = (
        layout.slab_channels * block.channel + 2 * shape.lanes,  # tiles are read in whole vectors, beyond the last position
        elements * v_step,
        elements * m_step,
        block.pixels * shape.width,
        CHANNELS_AT_ONCE * taps * shape.width,
        math.prod(tiles.outputs) * shape.width,
        elements * u_step * (panels if layout.kept else 1),
    )
    return Areas(tables, *(count * item for count in sizes), panels)


class WinogradExecutor(ForwardExecutor):
    """One Winograd convolution."""

    def __init__(self, problem: ConvProblem):
        layout = _layout(problem)
        tiles, shape, block = layout[:3]
        super().__init__(problem, block.pieces * problem.groups)
        self._layout = layout
        self._panels = -(-(problem.k // problem.groups) // shape.width)
        self._work = problem.flops / 8
        self._areas = _areas(problem, layout)
        taps = math.prod(problem.kernel[: lead_axes(problem)])
        numbers = layout.chunk, layout.kept, layout.places, taps, layout.slab_channels, *_steps(problem, layout), *tiles.outputs
        self._block = block_vector(block, shape.width, shape.positions, *numbers)
        self._tools = tools_for(
            problem.dtype, problem.acc_dtype, shape.lanes, phases=block.step[-1], out=problem.out_dtype, product_shape=shape[:2],
            transform_shape=tiles.transform,
        )  # fmt: skip
        self._kernel = winograd.specialise(problem.acc_dtype)

    def packed(self, w: Any) -> Weights:
        """w transformed."""
        problem = self._problem
        rows, line = problem.groups * self._panels, 64 // self._acc.itemsize
        tiles, shape = self._layout[:2]
        step = spread((problem.c // problem.groups) * direct_terms(problem, tiles) * shape.width, line)
        packed = np.empty(rows * tiles.elements * step, self._acc)
        compiled = transform_all_weights.specialise(problem.acc_dtype)
        vector = self._vectors((0,) * w.ndim, w.strides, (0,) * w.ndim)
        run(compiled, rows, packed.size, self._tools, w, packed, vector, self._block)
        return Weights(packed, w.strides, True)

    def launch(self, x: Any, w: Weights, shift: Any, y: Any, status: Any, vector: Any) -> None:
        """Run `winograd`."""
        splits = parts_for(self._items, self._panels, self._work)
        run_with(
            self._areas, self._kernel, self._items * splits, self._work, self._tools, splits, int(w.packed), x, w.array, shift, y,
            status, vector, self._block,
        )  # fmt: skip

    def again(self, y: Any, ins: Any, images: Any) -> None:
        """Compute images again with `Blocked`, since what is not finite has spread over its tile."""
        executor = Blocked().build(self._problem.replace(n=1))
        for n in images:
            executor((y[n : n + 1],), (ins[0][n : n + 1], *ins[1:]))


class Winograd(DenseImplementation):
    """Winograd convolution of real floats with short kernels along the last two dimensions."""

    name = "winograd"
    levels = frozenset(("default", "fast"))
    measured_error: ClassVar[Mapping[str, float]] = {"float32": 4e-6, "float64": 8e-15}

    def accepts(self, problem: ConvProblem) -> Verdict:
        """Few taps and dilation 1 along the last two dimensions; some channels."""
        taps = inner_taps(problem)
        if max(problem.dilation[-2:]) > 1:
            return Verdict.no(f"its tiles overlap at dilation 1, and this one is {problem.dilation}")
        if max(taps) > MOST_TAPS or max(taps) == 1:
            return Verdict.no(
                f"its transforms are for 2 to {MOST_TAPS} taps a phase along the last two dimensions, and a kernel of "
                f"{problem.kernel} with stride {problem.stride} has {max(taps)}"
            )
        beside = [max(pads) - (r - 1) for pads, r in zip(problem.padding[-2:], problem.kernel[-2:], strict=True)]
        if problem.pad_mode == "zeros" and max(beside) > 0:
            return Verdict.no(
                f"windows that hold nothing but padding {problem.padding} would get the rounding errors of their tile"
            )
        tiles = tiles_of(problem)
        if not tiles:
            return Verdict.no(f"no tile has both {taps[0]} and {taps[-1]} taps a phase")
        if problem.c // problem.groups * direct_terms(problem, tiles[0]) < LEAST_CHANNELS:
            return Verdict.no(
                f"its error is relative to a whole tile, and {problem.c // problem.groups} channels of a group may be small in one "
                "window"
            )
        return Verdict.yes()

    def forward_cost(self, problem: ConvProblem) -> float:
        """See `_cost`."""
        return _cost(problem, _layout(problem))

    def forward_workspace(self, problem: ConvProblem) -> int:
        """For each thread: packed and transformed input, products, results, transformed weights, tables."""
        layout = _layout(problem)
        workers = most_workers(problem, layout.block, layout.shape.width)
        return max(workers * _areas(problem, layout).bytes, Blocked().forward_workspace(problem))

    def forward(self, problem: ConvProblem) -> WinogradExecutor:
        """The executor."""
        return WinogradExecutor(problem)
