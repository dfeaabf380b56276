"""What Winograd's forward convolutions and weight gradients have in common: their tiles in kernels, and their transformed input.

The lanes of the transform of the input are tiles of a channel, read from a slab in which every element of all tiles is a row of
neighbours; or, for small images of many channels, whose tiles would leave most lanes empty, they are channels, read from pixels
``[pixel][channel]``, among which a table tells where the elements of each tile lie.
"""

from __future__ import annotations

from numconv_numba.compiling.compiler import Address, Tag, helper, invoke, kernel
from numconv_numba.dense.packing import slab_row
from numconv_numba.dense.panels import fill_terms, tiles_along
from numconv_numba.dense.slab import (
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
from numconv_numba.elements import INT64, itemsize
from numconv_numba.entries import COPY, INPUT, LANES, PACK, PIXELS, READ_ROWS, READ_SQUARES
from numconv_numba.geometry import DIMS, FLIPPED, LOW, MODE, PARTS, SIZE, STRIDE, WINDOW, part, source_index
from numconv_numba.rows import clear
from numconv_numba.scalar import address, load, pointer, store

from .tiles import MOST_TAPS

__all__ = [
    "COLUMNS", "GROUP", "PANEL", "ROWS", "TAPS", "V_STEP", "copy_pixels", "element_counts", "fill_elements", "fill_pass",
    "inner_window", "input_steps", "phase_range", "phase_taps", "place_steps", "spread_step", "tile_extents", "tiles_of_axis",
    "transform_inputs", "transform_pixels",
]  # fmt: skip

CHANNELS_APART = 16
"""Channels that are read together where neither they nor columns are neighbours: each is in a page of memory of its own."""

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
    """Of the last dimension or, with `back` = 1, of the one before, if there is one; see `phases_of`.

    (window, stride, taps of a phase, phases, from phase to phase).
    """
    axis = g[DIMS] - 1 - back
    if axis < 0:
        return 1, 1, 1, 1, 1
    window, stride = g[part(g, WINDOW) + axis], g[part(g, STRIDE) + axis]
    if stride == 1 and window > MOST_TAPS:
        taps = -(-window // 2)
        return window, stride, taps, 2, taps
    return window, stride, -(-window // stride), min(window, stride), 1


@helper
def element_counts(g, b):
    """(elements of a tile, phases of the input)."""
    _, _, row_taps, row_phases, _ = inner_axis(g, 1)
    _, _, column_taps, column_phases, _ = inner_axis(g, 0)
    return (b[ROWS] + row_taps - 1) * (b[COLUMNS] + column_taps - 1), row_phases * column_phases


@helper
def full_phases(g, back):
    """In how many phases of a dimension, the first ones, the kernel has all taps; in the others it has one less."""
    window, _, taps, phases, _ = inner_axis(g, back)
    return window - (taps - 1) * phases


@helper
def phase_at(number, g):
    """The phases (of the rows, of the columns) in the order of terms.

    First those with all taps along the columns only, then along both dimensions, then along the rows only, then along none.
    """
    rows, columns, full_rows, full_columns = inner_axis(g, 1)[3], inner_axis(g, 0)[3], full_phases(g, 1), full_phases(g, 0)
    short_rows, short_columns = rows - full_rows, columns - full_columns
    if number < rows * full_columns:
        row = number // full_columns
        return (row + full_rows if row < short_rows else row - short_rows), number % full_columns
    number -= rows * full_columns
    return number // max(short_columns, 1), full_columns + number % max(short_columns, 1)


@helper
def phase_range(element, g, b):
    """The phases, in the order of terms, whose products with the kernel an element has.

    Where the kernel has one tap less, its polynomial is of a lower degree, and zero at infinity: the last element.
    """
    row_taps, rows, column_taps, columns = inner_axis(g, 1)[2], inner_axis(g, 1)[3], inner_axis(g, 0)[2], inner_axis(g, 0)[3]
    full_rows, full_columns = full_phases(g, 1), full_phases(g, 0)
    width = b[COLUMNS] + column_taps - 1
    first_row, first_column = (rows - full_rows) * full_columns, rows * full_columns
    begin = first_row if element // width == b[ROWS] + row_taps - 2 else 0
    if element % width == width - 1:
        return begin, first_column
    return begin, first_column + (full_rows if begin > 0 else rows) * (columns - full_columns)


@helper
def fill_elements(table, g, b, size):
    """The byte offset in a channel's slab of each element of the first tile, for one phase of the input after the other."""
    ndim, plane, filled = g[DIMS], 1, 0
    for axis in range(ndim):
        plane *= axis_entry(b, ndim, B_PITCH, axis)
    _, row_stride, row_taps, row_phases, rows_apart = inner_axis(g, 1)
    _, column_stride, column_taps, column_phases, columns_apart = inner_axis(g, 0)
    row_step = axis_entry(b, ndim, B_STEP, ndim - 2) if ndim > 1 else 1
    column_step, pitch = axis_entry(b, ndim, B_STEP, ndim - 1), axis_entry(b, ndim, B_PITCH, ndim - 1)
    split = axis_entry(b, ndim, B_PHASES, ndim - 1)
    for phase in range(row_phases * column_phases):
        row_phase, column_phase = phase_at(phase, g)
        for i in range(b[ROWS] + row_taps - 1):
            for j in range(b[COLUMNS] + column_taps - 1):
                row, column = row_stride * i + row_phase * rows_apart, column_stride * j + column_phase * columns_apart
                combination = row % row_step * split + column % column_step
                table[filled] = (combination * plane + row // row_step * pitch + column // column_step) * size
                filled += 1


@helper
def tiles_of_axis(b, ndim, axis):
    """Tiles along a dimension, of any block but the last, which may be short."""
    return -(-axis_entry(b, ndim, B_SIZE, axis) // axis_entry(b, ndim, B_UNIT, axis))


@helper
def place_steps(axis_steps, g, b, size):
    """The byte distance of neighbouring places of transformed input, per dimension; returns elements from channel to channel."""
    ndim, step, deep = g[DIMS], b[V_ROWS] * size, b[V_TILE] > 0
    axis_steps[ndim - 1] = b[V_TILE] * size if deep else size
    if ndim > 1:
        axis_steps[ndim - 2] = axis_steps[ndim - 1] * (
            tiles_of_axis(b, ndim, ndim - 1) if deep else axis_entry(b, ndim, B_PITCH, ndim - 1)
        )
    if deep and ndim > 1:
        step = axis_steps[ndim - 2] * tiles_of_axis(b, ndim, ndim - 2)
    for axis in range(ndim - 3, -1, -1):
        axis_steps[axis] = step
        step *= axis_entry(b, ndim, B_PITCH, axis)
    return 1 if deep else step // size


@helper
def input_steps(channels, plane, g, b, tools):
    """Elements from image to image, from phase to phase and from channel to channel of transformed input, of so many channels."""
    _, phases = element_counts(g, b)
    if b[V_TILE] > 0:
        rounded = -(-channels // tools[LANES]) * tools[LANES]
        return phases * rounded, rounded, 1
    return channels * phases * plane, plane, phases * plane


@helper
def fill_pass(table, channels, steps, axis_steps, g, b, size):
    """The offset of each term of so many channels, [phase][c][tap]; `steps`: see `input_steps`."""
    _, phases = element_counts(g, b)
    _, of_phase, of_channel = steps
    count = channels * b[TAPS]
    fill_terms(table, channels, of_channel * size, max(g[DIMS] - 2, 0), axis_steps, g)
    for more in range(count, phases * count):
        table[more] = table[more - count] + of_phase * size


@helper
def is_full(phase, g):
    """Whether a phase has all taps (along the rows, along the columns), and with them products at infinity."""
    row, column = phase_at(phase, g)
    return 1 if row < full_phases(g, 1) else 0, 1 if column < full_phases(g, 0) else 0


@helper
def transform_channel(v, slab, elements, phase, g, b, tools, at):
    """One phase of a channel of one image, at each position along the dimensions that are summed directly."""
    ndim, size = g[DIMS], itemsize(at)
    inner, lead = axis_entry(b, ndim, B_PITCH, ndim - 1), 1
    if ndim > 1:
        inner *= axis_entry(b, ndim, B_PITCH, ndim - 2)
    for axis in range(ndim - 2):
        lead *= axis_entry(b, ndim, B_PITCH, axis)
    table, (last_row, last_column) = elements + 8 * phase * element_counts(g, b)[0], is_full(phase, g)
    for position in range(lead):
        source, target = slab + position * inner * size, v + position * b[V_ROWS] * size
        invoke(tools[INPUT], source, table, -(-b[V_ROWS] // tools[LANES]), target, b[V_STEP] * size, last_row, last_column)


@helper
def transform_inputs(v, slab, elements, x, channels, begin, end, block, plane, g, b, tools, at):
    """The transformed input of a block for the channels begin..end of `channels`.

    It is [element][image][channel][phase][place], or, with the lanes over channels, [element][place][image][phase][channel].
    `x`: the first channel in the first image of the block.
    """
    if b[V_TILE] > 0:
        invoke(tools[PIXELS], tools, v, slab, x, channels, begin, end, block, g, b)
        return
    size = itemsize(at)
    _, phases = element_counts(g, b)
    for image in range(block_images(g, b, block)):
        for first in range(begin, end, b[SLAB]):
            packed = min(b[SLAB], end - first)
            source = x + (image * g[part(g, PARTS)] + first * g[part(g, PARTS) + 2])
            invoke(tools[PACK], tools, slab, source, block, 1, packed, g, b)
            for c in range(packed):
                for phase in range(phases):
                    target = v + ((image * channels + first + c) * phases + phase) * plane * size
                    transform_channel(target, slab + c * b[CHANNEL] * size, elements, phase, g, b, tools, at)


@helper
def read_extent(g, b, block, back):
    """Of the positions of x that the tiles of a block read along a dimension: the first, and how many.

    All of them if padding may have its values from anywhere. `back`: see `inner_axis`.
    """
    axis = g[DIMS] - 1 - back
    if axis < 0:
        return 0, 1
    size = g[part(g, SIZE) + axis]
    if g[MODE] != 0:
        return 0, size
    _, stride, taps, phases, apart = inner_axis(g, back)
    start = block_start(b, g[DIMS], block, axis) * stride - g[part(g, LOW) + axis]
    first = min(max(start, 0), size)
    outputs = tiles_along(g, b, block, axis) * axis_entry(b, g[DIMS], B_UNIT, axis)
    last = start + (outputs + taps - 2) * stride + (phases - 1) * apart + 1
    return first, max(min(last, size) - first, 0)


@helper
def axis_offsets(table, g, b, block, back, first, step):
    """The byte offset in a box of each position along a dimension that tiles read, or -1 in the padding; how many there are.

    `first`: of the box; `step`: bytes between its positions; `back`: see `inner_axis`.
    """
    axis, (_, stride, taps, phases, apart) = g[DIMS] - 1 - back, inner_axis(g, back)
    size, start, outputs = 1, 0, 1
    if axis >= 0:
        size, start = g[part(g, SIZE) + axis], block_start(b, g[DIMS], block, axis) * stride - g[part(g, LOW) + axis]
        outputs = tiles_along(g, b, block, axis) * axis_entry(b, g[DIMS], B_UNIT, axis)
    count = (outputs + taps - 2) * stride + (phases - 1) * apart + 1
    for i in range(count):
        index = source_index(start + i, size, g[MODE])
        table[i] = (index - first) * step if index >= 0 else -1
    return count


@helper
def fill_pixels(table, box, width, block, g, b):
    """The byte offset of each element of each tile, [tile][phase][element], among the pixels of a box, behind which lies a zero.

    `box`: see `read_extent`, for rows and columns; `width`: bytes of a pixel. The table is followed by offsets of rows and columns.
    """
    count, phases = element_counts(g, b)
    _, lines, _, tiles, _ = tile_extents(g, b, block)
    _, row_stride, _, _, rows_apart = inner_axis(g, 1)
    _, column_stride, column_taps, _, columns_apart = inner_axis(g, 0)
    across = b[COLUMNS] + column_taps - 1
    first_row, height, first_column, length = box
    rows = pointer(table + 8 * lines * tiles * phases * count, INT64)
    columns = pointer(
        table + 8 * (lines * tiles * phases * count + axis_offsets(rows, g, b, block, 1, first_row, length * width)), INT64
    )
    axis_offsets(columns, g, b, block, 0, first_column, width)
    entries, behind, filled = pointer(table, INT64), height * length * width, 0
    for line in range(lines):
        for tile in range(tiles):
            for phase in range(phases):
                row_phase, column_phase = phase_at(phase, g) if phases > 1 else (0, 0)
                column = tile * b[COLUMNS] * column_stride + column_phase * columns_apart
                for i in range(count // across):
                    row = rows[(line * b[ROWS] + i) * row_stride + row_phase * rows_apart]
                    for j in range(across):
                        place = columns[column + j * column_stride]
                        entries[filled] = row + place if (row >= 0) & (place >= 0) else behind
                        filled += 1


@helper
def read_apart(slab, x, counts, steps, width, channels, xt, at):
    """Channels of so many rows and columns of pixels none of which are neighbours, a line of the slab at a time.

    `steps`: bytes in x from row to row, from column to column and from channel to channel.
    """
    size = itemsize(at)
    for first in range(0, channels, CHANNELS_APART):
        several = min(CHANNELS_APART, channels - first)
        for row in range(counts[0]):
            for column in range(counts[1]):
                source = x + (row * steps[0] + column * steps[1] + first * steps[2])
                target = slab + ((row * counts[1] + column) * width + first * size)
                for c in range(several):
                    store(target + c * size, load(source + c * steps[2], xt, at), at)


@helper
def read_pixels(slab, x, box, width, channels, g, tools, xt, at):
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
    if size not in (c_step, column_step):
        read_apart(slab, source, (rows, columns), (row_step, column_step, c_step), width, channels, xt, at)
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
    rows, row_stride, row_taps, _, rows_apart = inner_axis(g, 1)
    columns, column_stride, column_taps, _, columns_apart = inner_axis(g, 0)
    row_phase, column_phase = phase_at(phase, g)
    row, column = row_phase * rows_apart, column_phase * columns_apart
    n_rows, n_columns = min(row_taps, -(-(rows - row) // row_stride)), min(column_taps, -(-(columns - column) // column_stride))
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


@helper
def transform_tiles(v, slab, elements, line_step, vectors, phase_step, block, g, b, tools, at):
    """Tiles of so many vectors of channels at one position along the dimensions that are summed directly; see `fill_pixels`."""
    count, phases = element_counts(g, b)
    _, lines, _, tiles, _ = tile_extents(g, b, block)
    size = itemsize(at)
    for line in range(lines):
        for phase in range(phases):
            last_row, last_column = is_full(phase, g)
            for tile in range(tiles):
                target = v + (line * line_step + tile * b[V_TILE] * size + phase * phase_step)
                table = elements + 8 * count * ((line * tiles + tile) * phases + phase)
                invoke(tools[INPUT], slab, table, vectors, target, b[V_STEP] * size, last_row, last_column)


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
    first_row, rows = read_extent(g, b, block, 1)
    first_column, columns = read_extent(g, b, block, 0)
    box, width = (first_row, rows, first_column, columns), b[SLAB] * size
    of_image, of_phase, _ = input_steps(channels, 1, g, b, tools)
    behind = slab + rows * columns * width
    places = behind + width
    clear(behind, b[SLAB], at)
    fill_pixels(places, box, width, block, g, b)
    positions, inner, ndim = 1, tiles_of_axis(b, g[DIMS], axis) * b[V_TILE], g[DIMS]
    plane = inner * (tiles_of_axis(b, ndim, axis - 1) if axis > 0 else 1)
    for other in range(axis - 1):
        positions *= axis_entry(b, ndim, B_PITCH, other)
    for one in range(block_images(g, b, block) * positions):
        image, position = one // positions, one % positions
        inside, offset = slab_row(g, b, block, 0, position, max(axis - 1, 0))
        for first in range(begin, end, b[SLAB]):
            read = min(b[SLAB], end - first)
            if read % lanes > 0 or not inside:
                # stray bits could be denormal numbers, which are slow
                clear(slab, rows * columns * b[SLAB], at)
            if inside:
                source = x + (image * g[part(g, PARTS)] + first * g[part(g, PARTS) + 2] + offset)
                read_pixels(slab, source, box, width, read, g, tools, xt, at)
            target = v + (position * plane + image * of_image + first) * size
            transform_tiles(target, slab, places, inner * size, -(-read // lanes), of_phase * size, block, g, b, tools, at)
