"""What Winograd's forward convolutions and weight gradients have in common: their tiles in kernels, and their transformed input.

The lanes of the transform of the input are tiles of a channel, read from a slab in which every element of all tiles is a row of
neighbours; or, for small images of many channels, whose tiles would leave most lanes empty, they are channels, read from pixels
``[pixel][channel]``, among which a table tells where the elements of each tile lie.
"""

from __future__ import annotations

from .compiler import Address, Tag, helper, invoke, kernel
from .elements import INT64, itemsize
from .entries import COPY, INPUT, LANES, PACK, PIXELS, READ_ROWS, READ_SQUARES
from .geometry import DIMS, FLIPPED, LOW, MODE, PARTS, SIZE, STRIDE, WINDOW, part, source_index
from .panels import tiles_along
from .rows import clear
from .scalar import address, pointer
from .slab import (
    B_PHASES,
    B_PITCH,
    B_SIZE,
    B_STEP,
    B_UNIT,
    CHANNEL,
    EXTRA,
    axis_entry,
    block_extent,
    block_images,
    block_start,
)  # fmt: skip

__all__ = [
    "COLUMNS", "GROUP", "PANEL", "ROWS", "TAPS", "V_STEP", "copy_pixels", "element_counts", "fill_elements", "image_elements",
    "inner_window", "phase_taps", "place_steps", "spread_step", "tile_extents", "transform_inputs", "transform_pixels",
]  # fmt: skip

# A block's own numbers that both have: channels of a panel, tiles (or terms) of a register tile, taps that are summed directly,
# channels that are packed together; elements from one element of transformed tiles to the next in the input, places of one direct
# position; outputs of a tile; elements from tile to tile of transformed input with the lanes over channels, else 0.
PANEL, GROUP, TAPS, SLAB, V_STEP, V_ROWS, ROWS, COLUMNS, V_TILE = (EXTRA + i for i in (0, 1, 5, 6, 7, 9, 11, 12, 13))


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
    """The byte distance of neighbouring places of transformed input, per dimension; returns elements from channel to channel."""
    ndim, step = g[DIMS], b[V_ROWS] * size
    if b[V_TILE] > 0:
        axis_steps[ndim - 1] = b[V_TILE] * size
        if ndim > 1:
            axis_steps[ndim - 2] = axis_steps[ndim - 1] * -(
                -axis_entry(b, ndim, B_SIZE, ndim - 1) // axis_entry(b, ndim, B_UNIT, ndim - 1)
            )
        return 1
    axis_steps[ndim - 1] = size
    if ndim > 1:
        axis_steps[ndim - 2] = axis_entry(b, ndim, B_PITCH, ndim - 1) * size
    for axis in range(ndim - 3, -1, -1):
        axis_steps[axis] = step
        step *= axis_entry(b, ndim, B_PITCH, axis)
    return step // size


@helper
def image_elements(channels, plane, b, tools):
    """Elements from image to image of transformed input, for so many channels and phases."""
    return -(-channels // tools[LANES]) * tools[LANES] if b[V_TILE] > 0 else channels * plane


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
        invoke(tools[INPUT], source, elements, -(-b[V_ROWS] // tools[LANES]), target, b[V_STEP] * size)


@helper
def transform_inputs(v, slab, elements, x, channels, begin, end, block, plane, g, b, tools, at):
    """The transformed input of a block for the channels begin..end of `channels`.

    It is [element][image][channel][phase][place], or, with the lanes over channels, [element][place][image][channel].
    `x`: the first channel in the first image of the block.
    """
    if b[V_TILE] > 0:
        invoke(tools[PIXELS], tools, v, slab, x, channels, begin, end, block, g, b)
        return
    size = itemsize(at)
    count, phases = element_counts(g, b)
    for image in range(block_images(g, b, block)):
        for first in range(begin, end, b[SLAB]):
            packed = min(b[SLAB], end - first)
            source = x + (image * g[part(g, PARTS)] + first * g[part(g, PARTS) + 2])
            invoke(tools[PACK], tools, slab, source, block, 1, packed, g, b)
            for c in range(packed):
                for phase in range(phases):
                    target = v + ((image * channels + first + c) * phases + phase) * plane * size
                    transform_channel(target, slab + c * b[CHANNEL] * size, elements + 8 * phase * count, g, b, tools, at)


@helper
def read_extent(g, b, block, axis, taps):
    """Of the positions of x that the tiles of a block read along a dimension: the first, and how many.

    All of them if padding may have its values from anywhere.
    """
    if axis < 0:
        return 0, 1
    size, start = g[part(g, SIZE) + axis], block_start(b, g[DIMS], block, axis) - g[part(g, LOW) + axis]
    if g[MODE] != 0:
        return 0, size
    first = min(max(start, 0), size)
    last = start + tiles_along(g, b, block, axis) * axis_entry(b, g[DIMS], B_UNIT, axis) + taps - 1
    return first, max(min(last, size) - first, 0)


@helper
def fill_pixels(table, box, width, block, g, b):
    """The byte offset of each element of each tile, [tile][element], among the pixels of a box, behind which lies a zero.

    `box`: see `read_extent`, for rows and columns; `width`: bytes of a pixel.
    """
    ndim, axis, filled = g[DIMS], g[DIMS] - 1, 0
    first_row, rows, first_column, columns = box
    column_start, lines, row_start, row_size = block_start(b, ndim, block, axis) - g[part(g, LOW) + axis], 1, 0, 1
    if axis > 0:
        lines = tiles_along(g, b, block, axis - 1)
        row_start, row_size = block_start(b, ndim, block, axis - 1) - g[part(g, LOW) + axis - 1], g[part(g, SIZE) + axis - 1]
    for line in range(lines):
        for tile in range(tiles_along(g, b, block, axis)):
            for i in range(b[ROWS] + inner_axis(g, 1)[2] - 1):
                row = source_index(row_start + line * b[ROWS] + i, row_size, g[MODE])
                for j in range(b[COLUMNS] + inner_axis(g, 0)[2] - 1):
                    column = source_index(column_start + tile * b[COLUMNS] + j, g[part(g, SIZE) + axis], g[MODE])
                    pixel = (row - first_row) * columns + column - first_column
                    table[filled] = (pixel if row >= 0 and column >= 0 else rows * columns) * width
                    filled += 1


@helper
def read_pixels(slab, x, box, width, channels, g, tools, xt):
    """So many channels of the pixels of a box, [pixel][channel]."""
    axis, xs, size = g[DIMS] - 1, part(g, PARTS), itemsize(xt)
    first_row, rows, first_column, columns = box
    c_step, column_step, row_step = g[xs + 2], g[xs + 3 + axis], g[xs + 2 + axis] if axis > 0 else 0
    source = x + (first_row * row_step + first_column * column_step)
    if c_step == size and column_step != size:
        invoke(
            tools[READ_ROWS], source, 0, channels, slab, 0, channels, columns, column_step, width, rows, row_step, columns * width
        )  # fmt: skip
        return
    run, runs = columns if column_step == size else 1, rows
    if run == columns and row_step == columns * size:
        run, runs = rows * columns, 1
    for one in range(runs):
        for start in range(0, rows * columns // runs, run):
            place, target = source + (one * row_step + start * column_step), slab + (one * columns + start) * width
            invoke(tools[READ_SQUARES], place, c_step, channels, run, address(0), 0, target, width)


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


@kernel
def transform_pixels(
    xt: Tag, at: Tag, table: Address, v: Address, slab: Address, x: Address, channels: int, begin: int, end: int, block: int,
    sizes: Address, cutting: Address,
) -> None:  # fmt: skip
    """What `transform_inputs` does, with the lanes over channels: compiled alone, and where it is needed.

    `table`: see `tools`; `sizes` and `cutting` are the vectors of the problem and of the block.
    """
    tools, g, b = pointer(table, INT64), pointer(sizes, INT64), pointer(cutting, INT64)
    size, axis, lanes = itemsize(at), g[DIMS] - 1, tools[LANES]
    first_row, rows = read_extent(g, b, block, axis - 1, inner_axis(g, 1)[2])
    first_column, columns = read_extent(g, b, block, axis, inner_axis(g, 0)[2])
    box, width, count = (first_row, rows, first_column, columns), b[SLAB] * size, element_counts(g, b)[0]
    behind = slab + rows * columns * width
    places = behind + width
    clear(behind, b[SLAB], at)
    fill_pixels(pointer(places, INT64), box, width, block, g, b)
    _, lines, _, tiles, _ = tile_extents(g, b, block)
    across = -(-axis_entry(b, g[DIMS], B_SIZE, axis) // axis_entry(b, g[DIMS], B_UNIT, axis))
    for image in range(block_images(g, b, block)):
        for first in range(begin, end, b[SLAB]):
            read = min(b[SLAB], end - first)
            if read % lanes > 0:
                # stray bits could be denormal numbers, which are slow
                clear(slab, rows * columns * b[SLAB], at)
            read_pixels(slab, x + (image * g[part(g, PARTS)] + first * g[part(g, PARTS) + 2]), box, width, read, g, tools, xt)
            start = v + (image * image_elements(channels, 1, b, tools) + first) * size
            for line in range(lines):
                for tile in range(tiles):
                    target, elements = start + (line * across + tile) * b[V_TILE] * size, places + 8 * count * (line * tiles + tile)
                    invoke(tools[INPUT], slab, elements, -(-read // lanes), target, b[V_STEP] * size)
