"""The factors of a convolution as tensor cores read them: channels last, padded, rounded, in working memory.

One pass over an image of x (or of y, for a gradient of x) writes it with its padding, in units of 16 bytes of neighbouring
channels, the last filled with zeros, so that a tap of the kernel moves every position by the same number of units. Weights become
[groups, rows, taps, units of channels], and a table says for each unit of terms where it lies in a row of weights, and how far from
the start of a window. That is what cuDNN does with arrays whose channels are not last, too.

A strided gradient of x is cut into phases, the elements of x that lie alike to the stride: each is a gradient of stride 1 of some
of the taps, and has a table of its own.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

from numconv.plugin import ConvProblem
from numconv_cuda.geometry import Geometry, coordinates, offset_of, source_index, start_of, tap_offset, volume_of
from numconv_cuda.primitives.elements import cast, div, load, mod, repeated, replaced, store
from numconv_cuda.primitives.forms import ITEMSIZE, UNITS
from numconv_cuda.primitives.fragments import keep_float, peek_float, store_unit
from numconv_cuda.runtime.compiler import SIMULATED, Kernel, cuda, device, kernel, types

__all__ = [
    "PACK_TILE", "Extent", "Layout", "extent_of", "layout_of", "pack_kernel", "phase_rests", "phase_sizes", "phase_taps", "unit_of",
    "units_of",
]  # fmt: skip


class Layout(NamedTuple):
    """Where the units of the packed factors lie."""

    n: Any
    """Images that are packed at a time."""
    low: tuple[Any, ...]
    """Positions before the first of an image."""
    sizes: tuple[Any, ...]
    """Of an image with what is around it."""
    steps: tuple[Any, ...]
    """Units from position to position, per axis."""
    image: Any
    """Units of an image."""
    units: Any
    """Units of the channels of a group."""
    others: Any
    """The same of the other image of a gradient of w: of y."""
    tap_step: tuple[Any, ...]
    """From one tap to the next that reaches the same phase."""
    table: Any
    """Entries of the table of a phase."""
    length: Any
    """Slices of a part of the terms."""
    phases: Any
    """Of a gradient of x; else 1."""
    border: Any
    """Whether some terms are padding zeros."""
    inner: Any
    """Whether neighbours in memory are channels."""


class Extent(NamedTuple):
    """The part of a packed image that is read, along each axis."""

    low: tuple[int, ...]
    sizes: tuple[int, ...]
    border: bool


@functools.lru_cache(maxsize=1024)
def extent_of(problem: ConvProblem) -> Extent:
    """How far windows reach beyond x, or for its gradient taps beyond y."""
    low, sizes, border = [], [], False
    for size, output, taps, stride, dilation, (padding, _) in zip(
        problem.spatial, problem.output, problem.kernel, problem.stride, problem.dilation, problem.padding, strict=True
    ):
        reach = dilation * (taps - 1)
        if problem.op == "input_grad":
            before, last, source = max((reach - padding) // stride, 0), (size - 1 + padding) // stride, output
        else:
            before, last, source = padding, (output - 1) * stride + reach - padding, size
        low.append(before)
        sizes.append(before + max(last, 0) + 1)
        border = border or before > 0 or last >= source
    return Extent(tuple(low), tuple(sizes), border and problem.pad_mode == "zeros")


def units_of(channels: int, dtype: str) -> int:
    """Units that hold the channels of a group."""
    return -(-channels * ITEMSIZE[dtype] // 16)


def inner_channels(problem: ConvProblem, g: Geometry) -> bool:
    """Whether channels are neighbours in the image that is packed."""
    steps = g.y if problem.op == "input_grad" else g.x
    return abs(int(steps.channel)) < abs(int(steps.spatial[-1]))


def layout_of(problem: ConvProblem, g: Geometry, images: int, slices: int, length: int) -> Layout:
    """The layout for so many images at a time, whose terms have so many slices, and so many a part."""
    number = type(g.n)
    extent = extent_of(problem)
    channels, others = (g.per_k, g.per_c) if problem.op == "input_grad" else (g.per_c, g.per_k)
    units = units_of(int(channels), problem.dtype)
    pixel = units * problem.groups
    steps = [pixel * math.prod(extent.sizes[axis + 1 :]) for axis in range(problem.ndim)]
    apart = [s // math.gcd(s, d) for s, d in zip(problem.stride, problem.dilation, strict=True)]
    backward = problem.op == "input_grad"
    table, phases = (slices * UNITS, math.prod(problem.stride)) if backward else (0, 1)

    def typed(values: Any) -> tuple[Any, ...]:
        return tuple(map(number, values))

    return Layout(
        number(images), typed(extent.low), typed(extent.sizes), typed(steps), number(pixel * math.prod(extent.sizes)),
        number(units), number(units_of(int(others), problem.dtype)), typed(apart), number(table), number(length), number(phases),
        number(extent.border), number(inner_channels(problem, g)),
    )  # fmt: skip


# --- phases of a gradient of x ---------------------------------------------------------------------------------------------------


@device
def phase_rests(g, phase):
    """The first element of a phase."""
    return coordinates(phase, g.stride)


@device
def phase_sizes(g, rests):
    """The number of its elements along each axis."""
    found = g.size
    for axis in range(len(g.size)):
        found = replaced(found, axis, div(g.size[axis] - rests[axis] + g.stride[axis] - 1, g.stride[axis]))
    return found


@device
def phase_axis(g, lay, axis, rest):
    """The first tap that reaches a phase, and the number of those that do, along an axis."""
    first = -1
    for tap in range(min(lay.tap_step[axis], g.window[axis])):
        if first < 0 and (rest + g.low[axis] - tap_offset(g, axis, tap)) % g.stride[axis] == 0:
            first = tap
    if first < 0:
        return 0, 0
    return first, div(g.window[axis] - first + lay.tap_step[axis] - 1, lay.tap_step[axis])


@device
def phase_taps(g, lay, rests):
    """Of all axes: the first taps, the numbers of taps, and the product of these."""
    firsts, counts, product = g.window, g.window, 1
    for axis in range(len(g.window)):
        first, count = phase_axis(g, lay, axis, rests[axis])
        firsts, counts = replaced(firsts, axis, first), replaced(counts, axis, count)
        product *= count
    return firsts, counts, product


# --- packing ---------------------------------------------------------------------------------------------------------------------


class PackTile(NamedTuple):
    """What a block of threads packs at a time: so many positions, and so many channels of them."""

    positions: int
    channels: int
    threads: int


PACK_TILE = PackTile(8, 16, 8) if SIMULATED else PackTile(64, 64, 256)
AHEAD = 4
"""Elements that a thread loads before it writes them."""


def _image_packer(each: int) -> Any:
    """The device function that packs the channels of some positions, which go through shared memory: both ways neighbours move."""
    positions, channels_at_once, threads = PACK_TILE
    pitch, units_at_once, step = positions + 1, channels_at_once // each, threads // positions

    @device
    def source_of(strides, size, low, sizes, mode, image, at):
        position, offset, inside = coordinates(at, sizes), image * strides.n, True
        for axis in range(len(sizes)):
            index = source_index(position[axis] - low[axis], size[axis], mode)
            inside = inside and index >= 0
            offset += index * strides.spatial[axis]
        return inside, offset if inside else 0

    @device
    def fill_by_positions(shared, source, place, strides, size, low, sizes, mode, channels, count, pixels, thread, zero):
        pixel, first, start = place
        volume, at, channel = cast(volume_of(sizes), pixels), mod(thread, positions), div(thread, positions)
        here = min(pixel + at, pixels - 1)
        inside, offset = source_of(strides, size, low, sizes, mode, div(here, volume), mod(here, volume))
        offset += start
        for beyond in range(channel, count, AHEAD * step):
            values = repeated(zero, AHEAD)
            for part in range(AHEAD):
                from_channel = min(first + beyond + part * step, channels - 1)
                values = replaced(values, part, load(source, offset + from_channel * strides.channel, zero))
            for part in range(AHEAD):
                there = inside and first + beyond + part * step < channels
                keep_float(shared, (beyond + part * step) * pitch + at, values[part] if there else zero)

    @device
    def fill_by_channels(shared, source, place, strides, size, low, sizes, mode, channels, count, pixels, thread, zero):
        pixel, first, start = place
        volume = cast(volume_of(sizes), pixels)
        for number in range(thread, positions * count, threads):
            at, channel = div(number, count), mod(number, count)
            here = min(pixel + at, pixels - 1)
            inside, offset = source_of(strides, size, low, sizes, mode, div(here, volume), mod(here, volume))
            value = load(source, start + offset + min(first + channel, channels - 1) * strides.channel, zero)
            keep_float(shared, channel * pitch + at, value if inside and first + channel < channels else zero)

    @device
    def fill(shared, source, place, strides, size, low, sizes, mode, channels, count, pixels, inner, thread, zero):
        if inner:
            fill_by_channels(shared, source, place, strides, size, low, sizes, mode, channels, count, pixels, thread, zero)
        else:
            fill_by_positions(shared, source, place, strides, size, low, sizes, mode, channels, count, pixels, thread, zero)

    @device
    def pack_image(shared, source, target, strides, size, low, sizes, mode, g, lay, channels, units, block, thread, zero):
        blocks = cast(div(units + units_at_once - 1, units_at_once), g.n)
        slab, rest = mod(block, blocks), div(block, blocks)
        group, pixel = mod(rest, g.groups), div(rest, g.groups) * positions
        first, start = slab * channels_at_once, group * strides.group
        here, pixels = cast(min(units - slab * units_at_once, units_at_once), g.n), cast(lay.n * volume_of(sizes), g.n)
        place, count = (pixel, first, start), cast(here * each, g.n)
        fill(shared, source, place, strides, size, low, sizes, mode, channels, count, pixels, lay.inner, thread, zero)
        cuda.syncthreads()
        for number in range(thread, positions * here, threads):
            unit, at = mod(number, here), div(number, here)
            if pixel + at < pixels:
                values = repeated(zero, each)
                for part in range(each):
                    values = replaced(values, part, peek_float(shared, (unit * each + part) * pitch + at))
                store_unit(target, ((pixel + at) * g.groups + group) * units + slab * units_at_once + unit, values)

    return pack_image


def _weight_packer(each: int, *, turned: bool) -> Any:
    """The device function that packs a unit of weights: of output channels, or turned, of input channels."""

    @device
    def pack_weights(w, target, g, lay, item, zero):
        rows, channels, row_step, step = g.per_k, g.per_c, g.w.k, g.w.c
        if turned:
            rows, channels, row_step, step = g.per_c, g.per_k, g.w.c, g.w.k
        tap, rest = mod(item, g.taps), div(item, g.taps)
        unit, rest = mod(rest, lay.units), div(rest, lay.units)
        row, group = mod(rest, rows), div(rest, rows)
        offset = group * g.w.group + row * row_step + offset_of(coordinates(tap, g.window), g.w.spatial)
        values = repeated(zero, each)
        for number in range(each):
            channel = unit * each + number
            value = load(w, offset + min(channel, channels - 1) * step, zero)
            values = replaced(values, number, value if channel < channels else zero)
        store_unit(target, (group * rows + row) * g.taps * lay.units + number_of(lay, g.taps, tap, unit), values)

    return pack_weights


@device
def number_of(lay, taps, tap, unit):
    """The number of a unit of channels under a tap: first come all taps of the first units of a slice's line, and so on."""
    block = div(unit, UNITS) * UNITS
    return block * taps + tap * min(lay.units - block, UNITS) + unit - block


@device
def unit_of(lay, taps, number):
    """The tap and the unit of such a number."""
    block = div(number, UNITS * taps) * UNITS
    rest, width = number - block * taps, cast(min(lay.units - block, UNITS), lay.n)
    return div(rest, width), block + mod(rest, width)


@device
def forward_entry(g, lay, number):
    """Where the units of terms lie in a row of weights, and from the start of a window; -1 behind the last."""
    if number >= g.taps * lay.units:
        return -1, -1
    tap, unit = unit_of(lay, g.taps, number)
    tap = coordinates(tap, g.window)
    for axis in range(len(g.window)):
        unit += tap_offset(g, axis, tap[axis]) * lay.steps[axis]
    return number, unit


@device
def gradient_entry(g, lay, number):
    """The same of the phases of a gradient of x, one behind the other, from the element of y that its first element reads."""
    rests = phase_rests(g, div(number, lay.table))
    firsts, counts, taps = phase_taps(g, lay, rests)
    number = mod(number, lay.table)
    if number >= taps * lay.units:
        return -1, -1
    place, unit = unit_of(lay, taps, number)
    place, flat, offset = coordinates(place, counts), 0, unit
    for axis in range(len(g.window)):
        tap = firsts[axis] + place[axis] * lay.tap_step[axis]
        flat = flat * g.window[axis] + tap
        distance = (rests[axis] + g.low[axis] - tap_offset(g, axis, tap)) // g.stride[axis]
        offset += (distance + lay.low[axis]) * lay.steps[axis]
    return number_of(lay, g.taps, flat, unit), offset


@device
def weight_entry(g, lay, number):
    """Where the units of an output begin in y, and of its window in x; -1 behind the last."""
    if number >= lay.n * g.outputs:
        return -1, -1
    image, output = div(number, g.outputs), coordinates(mod(number, g.outputs), g.output)
    offset = image * lay.image
    for axis in range(len(g.output)):
        offset += output[axis] * g.stride[axis] * lay.steps[axis]
    return number * g.groups * lay.others, offset


_ENTRIES = {"forward": forward_entry, "input_grad": gradient_entry, "weight_grad": weight_entry}


@functools.cache
def pack_kernel(op: str, dtype: str) -> Kernel:
    """The kernel that packs both factors and writes the table, with the threads of `PACK_TILE`.

    It takes (image, other, to_image, to_other, table, g, lay, blocks, counts, zero): how many blocks pack the image and the other
    factor, and how many units of weights and entries of the table there are.
    """
    each, entry_of, threads = 16 // ITEMSIZE[dtype], _ENTRIES[op], PACK_TILE.threads
    pack_image, pack_weights = _image_packer(each), _weight_packer(each, turned=op == "input_grad")
    size = PACK_TILE.channels * (PACK_TILE.positions + 1)

    @device
    def pack_x(shared, image, to_image, g, lay, block, thread, zero):
        pack_image(
            shared, image, to_image, g.x, g.size, lay.low, lay.sizes, g.mode, g, lay, g.per_c, lay.units, block, thread, zero
        )

    @device
    def pack_padded_y(shared, image, to_image, g, lay, block, thread, zero):
        pack_image(shared, image, to_image, g.y, g.output, lay.low, lay.sizes, 0, g, lay, g.per_k, lay.units, block, thread, zero)

    @device
    def pack_y(shared, other, to_other, g, lay, block, count, thread, zero):
        low = start_of(g.output)
        pack_image(shared, other, to_other, g.y, g.output, low, g.output, 0, g, lay, g.per_k, lay.others, block, thread, zero)

    @device
    def pack_w(shared, other, to_other, g, lay, block, count, thread, zero):
        item = block * threads + thread
        if item < count:
            pack_weights(other, to_other, g, lay, item, zero)

    first = pack_padded_y if op == "input_grad" else pack_x
    second = pack_y if op == "weight_grad" else pack_w

    def pack(image, other, to_image, to_other, table, g, lay, blocks, counts, zero):
        shared = cuda.shared.array(size, types.int32, None)
        block, thread = cuda.blockIdx.x, cuda.threadIdx.x
        if block < blocks[0]:
            first(shared, image, to_image, g, lay, block, thread, zero)
        elif block < blocks[0] + blocks[1]:
            second(shared, other, to_other, g, lay, block - blocks[0], counts[0], thread, zero)
        else:
            number = (block - blocks[0] - blocks[1]) * threads + thread
            if number < counts[1]:
                in_first, in_second = entry_of(g, lay, number)
                store(table, 2 * number, in_first)
                store(table, 2 * number + 1, in_second)

    pack.__name__ = pack.__qualname__ = f"pack_{op}_{dtype}"
    return kernel(pack, (threads, 4))
