"""Packing: the input of a block into its slab, padding in place, in the dtype of the factors.

Rows whose places are neighbours in x are split into phases by vectors (`microkernels.copies`), channels that are neighbours are
turned by squares (`microkernels.transpose`); what neither does, the borders of other padding than zeros among it, is moved element
by element. Long helpers that have one caller are inlined whatever LLVM thinks of their length.
"""

from __future__ import annotations

from numconv_numba.compiling.compiler import Address, Tag, helper, invoke, kernel
from numconv_numba.elements import INT64, arithmetic, element, held, in_rows, itemsize, memory, release, same, scratch
from numconv_numba.entries import LANES, READ_SQUARES, SPLIT
from numconv_numba.geometry import DILATION, DIMS, LOW, MODE, OUTPUT, PARTS, SIZE, STRIDE, WINDOW, part, source_index, span
from numconv_numba.rows import clear
from numconv_numba.scalar import address, inlined, load, move, pointer, store, wide_vectors, zero

from .slab import AXES, B_PHASES, B_PITCH, B_PLACE, B_STEP, CHANNEL, COMBINATIONS, axis_entry, block_start

__all__ = ["copy_cells", "pack_borders", "pack_places", "pack_slab", "slab_row"]

FEW_LINES = 8
"""Rows of a channel up to which those of all channels are copied one after the other."""


@helper
def slab_position(g, b, block, axis, phase, i):
    """The position in x, along a dimension, of place `i` of a phase of the slab."""
    ndim = g[DIMS]
    value = b[AXES + 7 * ndim + axis_entry(b, ndim, B_PLACE, axis) + phase]
    start = block_start(b, ndim, block, axis) * g[part(g, STRIDE) + axis] - g[part(g, LOW) + axis]
    return start + value + i * axis_entry(b, ndim, B_STEP, axis)


@helper
def slab_row(g, b, block, combination, row, axes):
    """Whether a row of a slab lies inside x along the first `axes` dimensions, and its byte offset there in a channel of x."""
    ndim, xs = g[DIMS], part(g, PARTS)
    inside, offset, left, phase = True, 0, row, combination
    for other in range(axes - 1, -1, -1):
        pitch, phases = axis_entry(b, ndim, B_PITCH, other), axis_entry(b, ndim, B_PHASES, other)
        position = slab_position(g, b, block, other, phase % phases, left % pitch)
        index = source_index(position, g[part(g, SIZE) + other], g[MODE])
        inside = inside and index >= 0
        offset += index * g[xs + 3 + other]
        left //= pitch
        phase //= phases
    return inside, offset


@helper
def pack_places(slab, x, start, step, count, g, xt, at):
    """Places of a row one by one, place i from position start + i * step."""
    axis = g[DIMS] - 1
    size, stride = g[part(g, SIZE) + axis], g[part(g, PARTS) + 3 + axis]
    low, high = span(0, count, step, start, size)
    source = x + start * stride
    for i in range(low, high):
        store(slab + i * itemsize(at), load(source + i * (step * stride), xt, arithmetic(at)), element(at))
    for border in range(low + count - high):
        i = border if border < low else border - low + high
        index = source_index(start + i * step, size, g[MODE])
        value = zero(arithmetic(at)) if index < 0 else load(x + index * stride, xt, arithmetic(at))
        store(slab + i * itemsize(at), value, element(at))


@helper
def needed_places(g, start, step, count):
    """How many places of a row, of which the first has the position `start`, some window reads."""
    axis = g[DIMS] - 1
    windows = (g[part(g, OUTPUT) + axis] - 1) * g[part(g, STRIDE) + axis] - g[part(g, LOW) + axis]
    last = windows + (g[part(g, WINDOW) + axis] - 1) * g[part(g, DILATION) + axis]
    return min(count, max(0, (last - start) // step + 1))


@helper
def pack_borders(slab, x, start, step, count, outer, inner, g, xt, at):
    """The places of rows in the padding, as far as windows read them: place i has position start + i * step.

    `outer` and `inner`: how many rows, bytes between them in the slab and in x.
    """
    axis, item = g[DIMS] - 1, itemsize(at)
    size, stride = g[part(g, SIZE) + axis], g[part(g, PARTS) + 3 + axis]
    if start >= 0 and start + (count - 1) * step < size:
        return
    needed = needed_places(g, start, step, count)
    low, high = span(0, needed, step, start, size)
    for border in range(low + needed - high):
        i = border if border < low else border - low + high
        index = source_index(start + i * step, size, g[MODE])
        for one in range(outer[0]):
            source, target = x + (index * stride + one * outer[2]), slab + (i * item + one * outer[1])
            if index < 0:
                for row in range(inner[0]):
                    store(target + row * inner[1], zero(arithmetic(at)), element(at))
            else:
                for row in range(inner[0]):
                    store(target + row * inner[1], load(source + row * inner[2], xt, arithmetic(at)), element(at))


@helper
def pack_columns(slab, x, start, step, count, lines, channels, g, tools, xt, at):
    """Rows of channels that are neighbours in memory, a square of places and channels at a time, but for the borders of x.

    See `pack_borders`, and `pack_lines` for `lines` and `channels`.
    """
    axis, size, slab_row = g[DIMS] - 1, itemsize(at), channels[1]
    stride, needed = g[part(g, PARTS) + 3 + axis], needed_places(g, start, step, count)
    low, high = span(0, needed, step, start, g[part(g, SIZE) + axis])
    for line in range(lines[0]):
        target, source = slab + line * lines[1], x + (line * lines[2] + (start + low * step) * stride)
        if low < high:
            invoke(
                tools[READ_SQUARES], source, step * stride, high - low, channels[0], address(0), 0, target + low * size, slab_row
            )
        for c in range(channels[0] if needed < count else 0):
            clear(target + (c * slab_row + needed * size), count - needed, at)


@helper
def is_even(g, b, tools, xt):
    """Whether the places of a slab's rows are neighbours in x, in every phase there is."""
    axis = g[DIMS] - 1
    phases, step = axis_entry(b, g[DIMS], B_PHASES, axis), axis_entry(b, g[DIMS], B_STEP, axis)
    return (g[part(g, PARTS) + 3 + axis] == itemsize(xt)) & (phases == step) & (tools[SPLIT] != 0)


@helper
def pack_even(slab, x, lines, channels, block, g, b, tools, xt, at):
    """Rows whose places are `is_even`, zeros where they lie outside x; see `pack_lines`."""
    axis = g[DIMS] - 1
    size, length, start = g[part(g, SIZE) + axis], axis_entry(b, g[DIMS], B_PITCH, axis), slab_position(g, b, block, axis, 0, 0)
    step = g[part(g, STRIDE) + axis] if in_rows(at) else b[CHANNEL] // b[COMBINATIONS] * itemsize(at)
    follows = (lines[1] == length * itemsize(at)) & (lines[2] == length * itemsize(xt)) & (not in_rows(at))
    if follows & (length == size) & (start == 0) & (axis_entry(b, g[DIMS], B_PHASES, axis) == 1):
        # rows that follow each other in x as they do in the slab are one
        size, length, lines = size * lines[0], length * lines[0], (1, lines[1], lines[2])
    # rows of a channel are neighbours in memory, which are fetched on the way
    few, many = (lines, channels) if held(at) == 2 or lines[0] < min(FEW_LINES, channels[0]) else (channels, lines)
    invoke(tools[SPLIT], x, start, size, slab, step, length, many[0], many[2], many[1], few[0], few[2], few[1])


@helper
def turn_columns(slab, x, lines, channels, block, g, b, spare, tools, at):
    """What `pack_columns` does for all phases of the last dimension, by way of some rows of channels without phases."""
    axis, size, square = g[DIMS] - 1, itemsize(at), tools[LANES]
    length, step, stride = axis_entry(b, g[DIMS], B_PITCH, axis), axis_entry(b, g[DIMS], B_STEP, axis), g[part(g, PARTS) + 3 + axis]
    start, plane = slab_position(g, b, block, axis, 0, 0), b[CHANNEL] // b[COMBINATIONS] * size
    low, high = max(0, start), min(g[part(g, SIZE) + axis], start + length * step)
    row, slab_row = (high - low) * size, channels[1]
    for line in range(lines[0]):
        for c in range(0, channels[0], square):
            count, target = min(square, channels[0] - c), slab + (line * lines[1] + c * slab_row)
            source = x + (line * lines[2] + low * stride + c * size)
            invoke(tools[READ_SQUARES], source, stride, high - low, count, address(0), 0, spare, row)
            invoke(tools[SPLIT], spare - low * size, start, high, target, plane, length, count, row, slab_row, 1, 0, 0)


@helper
def pack_stream(slab, x, shift, lines, channels, whole, block, g, b, tools, xt, at):
    """Rows of one channel of each pair; only their borders if they are `whole` already. Positions are `shift` further in x."""
    axis = g[DIMS] - 1
    length, step = axis_entry(b, g[DIMS], B_PITCH, axis), axis_entry(b, g[DIMS], B_STEP, axis)
    plane = b[CHANNEL] // b[COMBINATIONS] * itemsize(at)
    columns = (channels[2] == itemsize(xt)) & (not whole) & (held(at) == 1) & (not in_rows(at))
    few, many = (lines, channels) if columns or lines[0] < channels[0] else (channels, lines)
    for phase in range(axis_entry(b, g[DIMS], B_PHASES, axis)):
        target, first = slab + phase * plane, slab_position(g, b, block, axis, phase, 0) + shift
        if columns:
            pack_columns(target, x, first, step, length, lines, channels, g, tools, xt, at)
        if whole or columns:
            pack_borders(target, x, first, step, length, few, many, g, xt, at)
        else:
            for one in range(few[0]):
                place, source = target + one * few[1], x + one * few[2]
                for other in range(many[0]):
                    pack_places(place + other * many[1], source + other * many[2], first, step, length, g, xt, at)


@helper
def pack_lines(slab, x, lines, channels, block, g, b, spare, tools, xt, at):
    """Some rows of a slab, in all phases of the last dimension.

    `lines` and `channels`: how many, bytes between them in the slab and in x. Two channels of a pair have one place in the slab.
    """
    inlined()
    count, slab_row, x_row = channels
    step, phases = axis_entry(b, g[DIMS], B_STEP, g[DIMS] - 1), axis_entry(b, g[DIMS], B_PHASES, g[DIMS] - 1)
    even = is_even(g, b, tools, xt)
    turned = same(xt, at) & (not even) & (x_row == itemsize(xt)) & (step > 1) & (phases == step) & (tools[SPLIT] != 0)
    if even:
        pack_even(slab, x, lines, channels, block, g, b, tools, xt, at)
    elif turned:
        turn_columns(slab, x, lines, channels, block, g, b, spare, tools, at)
    whole = even or turned
    if whole and g[MODE] == 0:
        return
    if (held(at) == 2) & (count % 2 == 1) & (not even):  # what a pair lacks is zero
        last = count % 2, slab_row, x_row
        clear_lines(slab + count // 2 * slab_row, lines[0], last, g, b, at)
    for half in range(2 if in_rows(at) else held(at)):
        shift, skipped = (half * g[part(g, STRIDE) + g[DIMS] - 1], 0) if in_rows(at) else (0, half)
        own = (count - skipped + held(at) - 1) // held(at), slab_row, held(at) * x_row
        place = slab + half * itemsize(element(at))
        pack_stream(place, x + skipped * x_row, shift, lines, own, whole, block, g, b, tools, xt, at)


@helper
def clear_lines(slab, lines, channels, g, b, at):
    """So many rows of zeros of a slab, in all phases of the last dimension."""
    axis = g[DIMS] - 1
    phases, plane = axis_entry(b, g[DIMS], B_PHASES, axis), b[CHANNEL] // b[COMBINATIONS] * itemsize(at)
    for c in range(-(-channels[0] // held(at))):
        for phase in range(phases):
            clear(slab + (c * channels[1] + phase * plane), lines * axis_entry(b, g[DIMS], B_PITCH, axis), at)


@helper
def copy_cells(target, source, count, at):
    """So many neighbours."""
    wide_vectors()
    for i in range(count):
        move(target + i * itemsize(at), source + i * itemsize(at), at)


@helper
def copy_line(slab, source, channels, g, b, at):
    """A row of a slab from another one, in all phases of the last dimension."""
    axis = g[DIMS] - 1
    phases, plane = axis_entry(b, g[DIMS], B_PHASES, axis), b[CHANNEL] // b[COMBINATIONS] * itemsize(at)
    for c in range(-(-channels[0] // held(at))):
        for phase in range(phases):
            place = c * channels[1] + phase * plane
            copy_cells(slab + place, source + place, axis_entry(b, g[DIMS], B_PITCH, axis), at)


@helper
def pack_plane(slab, x, channels, block, combination, g, b, spare, tools, xt, at):
    """The rows of a slab along the last two dimensions; `combination`: of the phases of all but the last one."""
    inlined()
    ndim, axis = g[DIMS], g[DIMS] - 2
    line = axis_entry(b, ndim, B_PITCH, ndim - 1) * itemsize(at)
    rows, first, step, size, x_step = 1, 0, 1, 1, 0  # of one dimension
    if axis >= 0:
        rows, step, x_step = axis_entry(b, ndim, B_PITCH, axis), axis_entry(b, ndim, B_STEP, axis), g[part(g, PARTS) + 3 + axis]
        first = slab_position(g, b, block, axis, combination % axis_entry(b, ndim, B_PHASES, axis), 0)
        size = g[part(g, SIZE) + axis]
    low, high = span(0, rows, step, first, size)
    # the rows inside x together, then those of a border one by one, from where their map leads
    for piece in range(-1 if low < high else 0, low + rows - high):
        row, count, index = low, high - low, first + low * step
        if piece >= 0:
            row, count = piece if piece < low else piece - low + high, 1
            index = source_index(first + row * step, size, g[MODE])
        target, other = slab + row * line, (index - first) // step
        if index < 0:
            clear_lines(target, count, channels, g, b, at)
        elif piece >= 0 and low <= other < high and first + other * step == index:
            copy_line(target, slab + other * line, channels, g, b, at)
        else:
            lines = count, line, step * x_step
            pack_lines(target, x + index * x_step, lines, channels, block, g, b, spare, tools, xt, at)


@kernel
def pack_slab(
    xt: Tag, at: Tag, table: Address, slab: Address, x: Address, block: int, images: int, channels: int, sizes: Address,
    cutting: Address,
) -> None:  # fmt: skip
    """The slab of so many images and channels of a block: [image][channel or pair][phase][position].

    `table`: see `tools`. `x` is the address of the first channel in the first image; `sizes` and `cutting` are the vectors of the
    problem and of the block.
    """
    tools, g, b = pointer(table, INT64), pointer(sizes, INT64), pointer(cutting, INT64)
    ndim, outer, lines, row_phases = g[DIMS], 1, 1, 1
    for axis in range(ndim - 2):
        outer *= axis_entry(b, ndim, B_PITCH, axis)
    if ndim > 1:
        lines, row_phases = axis_entry(b, ndim, B_PITCH, ndim - 2), axis_entry(b, ndim, B_PHASES, ndim - 2)
    plane, phases = lines * axis_entry(b, ndim, B_PITCH, ndim - 1) * itemsize(at), axis_entry(b, ndim, B_PHASES, ndim - 1)
    each = channels, b[CHANNEL] * itemsize(at), g[part(g, PARTS) + 2]
    # a row of as many channels as a vector takes, for channels that are neighbours in memory
    row = axis_entry(b, ndim, B_PITCH, ndim - 1) * axis_entry(b, ndim, B_STEP, ndim - 1) * itemsize(at)
    spare = scratch(tools[LANES] * row if each[2] == itemsize(at) else 0)
    for image in range(images):
        for combination in range(b[COMBINATIONS] // phases):
            target = slab + (image * -(-channels // held(at)) * each[1] + combination * phases * outer * plane)
            source = x + image * g[part(g, PARTS)]
            for place in range(outer):
                inside, offset = slab_row(g, b, block, combination // row_phases, place, ndim - 2)
                if inside:
                    pack_plane(
                        target + place * plane, source + offset, each, block, combination, g, b, memory(spare), tools, xt, at
                    )
                else:
                    clear_lines(target + place * plane, lines, each, g, b, at)
    release(spare)
