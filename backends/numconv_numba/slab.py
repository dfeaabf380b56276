"""Slabs: the part of x that a block of outputs reads, packed for one work item.

A block is a range of images and a box of outputs of one group. Its slab holds, for each image and channel, the positions that its
windows reach, in the dtype of the factors: padding is in place, rows follow each other at one pitch, and where the kernel wants it
the positions are split into phases (every second position, every fourth, ...), each of which lies together. There every output
is an offset and every tap another, whatever the number of dimensions. A slab is sized for the second-level cache, so that all
output channels pass over it there.

Factors have the dtype in which their products are summed; or they are pairs of bfloat16 numbers, of two channels each, of which the
last one may lack its second; or pairs of what two neighbouring results of a row read.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, np_dtype

from .compiler import Address, Tag, helper, invoke, kernel
from .direct import clear
from .elements import INT64, arithmetic, element, held, in_rows, itemsize, keep, memory, same, scratch
from .entries import LANES, READ_SQUARES, SPLIT
from .geometry import BATCH, DILATION, DIMS, LOW, MODE, OUTPUT, PARTS, SIZE, STRIDE, WINDOW, part, source_index, span
from .scalar import address, load, move, pointer, store, wide_vectors, zero
from .threads import SERIAL_WORK

__all__ = [
    "AXES",
    "BLOCKS",
    "B_STEP",
    "B_UNIT",
    "CHANNEL",
    "COMBINATIONS",
    "IMAGES",
    "IMAGE_BLOCKS",
    "MOST_PHASES",
    "SHARES",
    "WRITE_CYCLES",
    "Block",
    "axis_entry",
    "block_extent",
    "block_image",
    "block_images",
    "block_start",
    "block_vector",
    "copy_cells",
    "cut",
    "pack_borders",
    "pack_cycles",
    "pack_places",
    "pack_slab",
    "shareable",
    "slab_bytes",
    "steps",
    "tap_offsets",
    "tap_positions",
]


SHARES = 4
"""Blocks that a problem is cut into at least, where it has work for several threads: what they share need not be packed by each."""


MOST_PHASES = 12
"""Phases of a row that are split in registers; a larger stride is packed an element at a time."""


class Block(NamedTuple):
    """How a problem is cut into blocks, and how the slab of one is laid out, in elements.

    Attributes
    ----------
    images, image_blocks : int
        Images of a block, and how many such ranges there are.
    size, blocks : tuple of int
        Outputs of a block and number of blocks, per dimension.
    pitch : tuple of int
        Positions of one phase, per dimension.
    step : tuple of int
        The distance of neighbouring positions of a phase, per dimension.
    unit : tuple of int
        Outputs that a tile computes together, per dimension.
    phases : tuple of tuple of int
        Per dimension the first positions of the phases.
    """

    images: int
    image_blocks: int
    size: tuple[int, ...]
    blocks: tuple[int, ...]
    pitch: tuple[int, ...]
    step: tuple[int, ...]
    unit: tuple[int, ...]
    phases: tuple[tuple[int, ...], ...]

    @property
    def channel(self) -> int:
        """Elements of the slab for one input channel of one image."""
        return math.prod(self.pitch) * math.prod(map(len, self.phases))

    @property
    def pieces(self) -> int:
        """Blocks of a group."""
        return self.image_blocks * math.prod(self.blocks)

    @property
    def tiles(self) -> int:
        """Tiles of a block."""
        return self.images * math.prod(-(-q // u) for q, u in zip(self.size, self.unit, strict=True))

    @property
    def pixels(self) -> int:
        """Outputs of a block."""
        return self.images * math.prod(self.size)


def steps(pitch: Sequence[int]) -> tuple[int, ...]:
    """Elements between neighbours along each dimension."""
    return tuple(math.prod(pitch[axis + 1 :]) for axis in range(len(pitch)))


def tap_positions(problem: ConvProblem) -> list[list[int]]:
    """Per dimension, where each tap lies relative to the first position of its window."""
    return [
        [(r - 1 - tap if problem.flip else tap) * d for tap in range(r)]
        for r, d in zip(problem.kernel, problem.dilation, strict=True)
    ]


def tap_offsets(problem: ConvProblem, block: Block) -> list[int]:
    """The offset of each tap in a channel's part of the slab."""
    stride, places, plane, ndim = problem.stride, steps(block.pitch), math.prod(block.pitch), problem.ndim
    taps = []
    for tap in itertools.product(*tap_positions(problem)):
        combination = 0
        for axis in range(ndim):
            combination = combination * len(block.phases[axis]) + block.phases[axis].index(tap[axis] % stride[axis])
        taps.append(combination * plane + sum(tap[a] // stride[a] * places[a] for a in range(ndim)))
    return taps


def cut(
    problem: ConvProblem,
    step: Sequence[int],
    positions: Sequence[Sequence[int]],
    units: Sequence[int],
    fits: Callable[[Block], bool],
    images: int,
) -> Block:
    """The largest block that fits; ranges of images are cut first, then the outer dimensions.

    Parameters
    ----------
    step : sequence of int
        The distance of neighbouring positions of a phase, per dimension.
    positions : sequence of sequence of int
        Per dimension, what a window reads relative to its first position.
    units : sequence of int
        Outputs that a tile computes together, per dimension: sizes of blocks are multiples of them.
    fits : callable
        Whether a block is small enough.
    images : int
        Images that a block may have at most.
    """
    phases = tuple(
        tuple(range(s)) if unit > 1 else tuple(sorted({p % s for p in found}))
        for found, s, unit in zip(positions, step, units, strict=True)
    )
    whole = (images, *problem.output)

    def block(size: Sequence[int]) -> Block:
        inner = tuple(size[1:])
        whole_tiles = [-(-q // unit) * unit for q, unit in zip(inner, units, strict=True)]
        reach = [(q - 1) * s + max(found) for q, s, found in zip(whole_tiles, problem.stride, positions, strict=True)]
        pitch = tuple(r // s + 1 for r, s in zip(reach, step, strict=True))
        counts = tuple(-(-q // b) for q, b in zip(problem.output, inner, strict=True))
        return Block(size[0], -(-problem.n // max(size[0], 1)), inner, counts, pitch, tuple(step), tuple(units), phases)

    size = list(whole)
    for axis, unit in enumerate((1, *units)):
        if not fits(block(size)):
            small = functools.partial(_fits_with, size, axis, block, fits)
            size[axis] = _length(size[axis], unit, _parts(size[axis], unit, small))
    return block(size)


def shareable(problem: ConvProblem, block: Block) -> bool:
    """Whether threads can share the blocks evenly, or there is little to share."""
    return block.pieces * problem.groups >= SHARES or problem.flops / 2 < SHARES * SERIAL_WORK


def _fits_with(
    size: Sequence[int], axis: int, block: Callable[[Sequence[int]], Block], fits: Callable[[Block], bool], length: int
) -> bool:
    """Whether a block fits that has another length along one axis."""
    return fits(block([*size[:axis], length, *size[axis + 1 :]]))


def _length(whole: int, unit: int, parts: int) -> int:
    """Of the parts of an axis: equal multiples of a unit."""
    most = -(-whole // unit)
    return min(whole, -(-most // parts) * unit)


def _parts(whole: int, unit: int, fits: Callable[[int], bool]) -> int:
    """Into how many parts to cut an axis: as few as fit, but then a multiple of four, which threads share evenly."""
    most = max(1, -(-whole // unit))
    parts = 1
    while parts < most and not fits(_length(whole, unit, parts)):
        parts = min(most, parts + max(1, parts // 4))
    even = -(-parts // 4) * 4
    return even if parts > 1 and even <= most // 2 else parts


# What kernels know of a block: a head, then seven entries a dimension, then the phases.
IMAGES, IMAGE_BLOCKS, CHANNEL, BLOCKS, COMBINATIONS, EXTRA, AXES = 0, 1, 2, 3, 4, 5, 18
B_SIZE, B_BLOCKS, B_PITCH, B_PHASES, B_PLACE, B_STEP, B_UNIT = range(7)


def block_vector(block: Block, *extra: int) -> np.ndarray[Any, Any]:
    """The vector of a block; up to thirteen numbers of the kernel's own start at EXTRA."""
    combinations = math.prod(map(len, block.phases))
    head = [block.images, block.image_blocks, block.channel, block.pieces, combinations, *extra, *[0] * (AXES - EXTRA - len(extra))]
    places: list[int] = []
    values: list[int] = []
    for one in block.phases:
        places.append(len(values))
        values.extend(one)
    rows = [*block.size, *block.blocks, *block.pitch, *map(len, block.phases), *places, *block.step, *block.unit]
    return np.array([*head, *rows, *values], np.int64)


@helper
def axis_entry(b, ndim, which, axis):
    """An entry of a dimension in a block's vector."""
    return b[AXES + which * ndim + axis]


@helper
def block_start(b, ndim, block, axis):
    """The first output of a block along a dimension."""
    for other in range(ndim - 1, axis, -1):
        block //= axis_entry(b, ndim, B_BLOCKS, other)
    return block % axis_entry(b, ndim, B_BLOCKS, axis) * axis_entry(b, ndim, B_SIZE, axis)


@helper
def block_extent(g, b, block, axis):
    """The number of outputs of a block along a dimension: the last block may be short."""
    start = block_start(b, g[DIMS], block, axis)
    return min(axis_entry(b, g[DIMS], B_SIZE, axis), g[part(g, OUTPUT) + axis] - start)


@helper
def block_image(b, ndim, block):
    """The first image of a block."""
    for axis in range(ndim):
        block //= axis_entry(b, ndim, B_BLOCKS, axis)
    return block * b[IMAGES]


@helper
def block_images(g, b, block):
    """The number of images of a block."""
    return min(b[IMAGES], g[BATCH] - block_image(b, g[DIMS], block))


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
def pack_columns(slab, x, start, step, count, channels, slab_row, g, tools, xt, at):
    """Rows of channels that are neighbours in memory, a square of places and channels at a time; see `pack_borders`."""
    axis, size = g[DIMS] - 1, itemsize(at)
    stride, needed = g[part(g, PARTS) + 3 + axis], needed_places(g, start, step, count)
    low, high = span(0, needed, step, start, g[part(g, SIZE) + axis])
    if low < high:
        source = x + (start + low * step) * stride
        invoke(tools[READ_SQUARES], source, step * stride, high - low, channels, address(0), 0, slab + low * size, slab_row)
    pack_borders(slab, x, start, step, count, (1, slab_row, size), (channels, slab_row, itemsize(xt)), g, xt, at)
    for c in range(channels if needed < count else 0):
        clear(slab + (c * slab_row + needed * size), count - needed, at)


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
    few, many = (lines, channels) if held(at) == 2 or lines[0] < channels[0] else (channels, lines)
    invoke(tools[SPLIT], x, start, size, slab, step, length, many[0], many[2], many[1], few[0], few[2], few[1])


@helper
def turn_columns(slab, x, start, channels, slab_row, g, b, spare, tools, xt, at):
    """What `pack_columns` does for all phases of the last dimension, by way of some rows of channels without phases."""
    axis, size, square = g[DIMS] - 1, itemsize(at), tools[LANES]
    length, step, stride = axis_entry(b, g[DIMS], B_PITCH, axis), axis_entry(b, g[DIMS], B_STEP, axis), g[part(g, PARTS) + 3 + axis]
    plane, low, high = b[CHANNEL] // b[COMBINATIONS] * size, max(0, start), min(g[part(g, SIZE) + axis], start + length * step)
    row = (high - low) * size
    for c in range(0, channels, square):
        count, target = min(square, channels - c), slab + c * slab_row
        invoke(tools[READ_SQUARES], x + (low * stride + c * size), stride, high - low, count, address(0), 0, spare, row)
        invoke(tools[SPLIT], spare - low * size, start, high, target, plane, length, count, row, slab_row, 1, 0, 0)
    for phase in range(step if g[MODE] else 0):
        rows = channels, slab_row, size
        pack_borders(slab + phase * plane, x, start + phase, step, length, (1, slab_row, size), rows, g, xt, at)


@helper
def pack_stream(slab, x, shift, lines, channels, even, block, g, b, tools, xt, at):
    """What `pack_even` does not do of some rows, or of every second element of them; positions are `shift` further in x."""
    axis = g[DIMS] - 1
    length, step = axis_entry(b, g[DIMS], B_PITCH, axis), axis_entry(b, g[DIMS], B_STEP, axis)
    plane = b[CHANNEL] // b[COMBINATIONS] * itemsize(at)
    last = (channels[2] == itemsize(xt)) & (not even) & (held(at) == 1) & (not in_rows(at))
    few, (many, slab_row, x_row) = (lines, channels) if last or lines[0] < channels[0] else (channels, lines)
    for phase in range(axis_entry(b, g[DIMS], B_PHASES, axis)):
        target, first = slab + phase * plane, slab_position(g, b, block, axis, phase, 0) + shift
        if even:
            pack_borders(target, x, first, step, length, few, (many, slab_row, x_row), g, xt, at)
        for one in range(0 if even else few[0]):
            place, source = target + one * few[1], x + one * few[2]
            if last:
                pack_columns(place, source, first, step, length, many, slab_row, g, tools, xt, at)
            else:
                for other in range(many):
                    pack_places(place + other * slab_row, source + other * x_row, first, step, length, g, xt, at)


@helper
def pack_lines(slab, x, lines, channels, block, g, b, spare, tools, xt, at):
    """Some rows of a slab, in all phases of the last dimension.

    `lines` and `channels`: how many, bytes between them in the slab and in x. Two channels of a pair have one place in the slab.
    """
    even = is_even(g, b, tools, xt)
    if even:
        pack_even(slab, x, lines, channels, block, g, b, tools, xt, at)
        if g[MODE] == 0:
            return
    count, slab_row, x_row = channels
    start, step = slab_position(g, b, block, g[DIMS] - 1, 0, 0), axis_entry(b, g[DIMS], B_STEP, g[DIMS] - 1)
    phases = axis_entry(b, g[DIMS], B_PHASES, g[DIMS] - 1)
    if same(xt, at) & (not even) & (x_row == itemsize(xt)) & (step > 1) & (phases == step) & (tools[SPLIT] != 0):
        for line in range(lines[0]):
            place, source = slab + line * lines[1], x + line * lines[2]
            turn_columns(place, source, start, count, slab_row, g, b, spare, tools, xt, at)
        return
    if (held(at) == 2) & (count % 2 == 1) & (not even):  # what a pair lacks is zero
        clear_lines(slab + count // 2 * slab_row, lines[0], (1, slab_row, x_row), g, b, at)
    for half in range(2 if in_rows(at) else held(at)):
        shift, skipped = (half * g[part(g, STRIDE) + g[DIMS] - 1], 0) if in_rows(at) else (0, half)
        own = (count - skipped + held(at) - 1) // held(at), slab_row, held(at) * x_row
        place = slab + half * itemsize(element(at))
        pack_stream(place, x + skipped * x_row, shift, lines, own, even, block, g, b, tools, xt, at)


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
    ndim, axis = g[DIMS], g[DIMS] - 2
    line = axis_entry(b, ndim, B_PITCH, ndim - 1) * itemsize(at)
    rows, first, step, size, x_step = 1, 0, 1, 1, 0
    if axis >= 0:
        rows, step, x_step = axis_entry(b, ndim, B_PITCH, axis), axis_entry(b, ndim, B_STEP, axis), g[part(g, PARTS) + 3 + axis]
        first = slab_position(g, b, block, axis, combination % axis_entry(b, ndim, B_PHASES, axis), 0)
        size = g[part(g, SIZE) + axis]
    low, high = span(0, rows, step, first, size)
    if low < high:
        source = x + (first + low * step) * x_step
        pack_lines(slab + low * line, source, (high - low, line, step * x_step), channels, block, g, b, spare, tools, xt, at)
    for outside in range(low + rows - high):
        row = outside if outside < low else outside - low + high
        index = source_index(first + row * step, size, g[MODE])
        target, other = slab + row * line, (index - first) // step
        if index < 0:
            clear_lines(target, 1, channels, g, b, at)
        elif low <= other < high and first + other * step == index:
            copy_line(target, slab + other * line, channels, g, b, at)
        else:
            pack_lines(target, x + index * x_step, (1, line, x_step), channels, block, g, b, spare, tools, xt, at)


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
    keep(spare)


def pack_cycles(block: Block, channels: int) -> float:
    """Of packing so many channels of every block: elements, and rows, of which each has two ends under masks.

    Where some phases of a row are not wanted, the others are packed an element at a time.
    """
    rows, phases = math.prod(block.pitch[:-1]) * math.prod(map(len, block.phases[:-1])), len(block.phases[-1])
    each = 0.35 if phases == block.step[-1] and phases <= MOST_PHASES else 2.5
    return block.pieces * block.images * channels * (block.channel * each + rows * 25)


WRITE_CYCLES = 0.8
"""Of transposing and storing one result."""


def slab_bytes(problem: ConvProblem, block: Block, depth: int = 0) -> int:
    """Of the slab of a block, for so many channels, or pairs of them; for all of a group by default."""
    return block.images * (depth or problem.c // problem.groups) * block.channel * np_dtype(problem.acc_dtype).itemsize
