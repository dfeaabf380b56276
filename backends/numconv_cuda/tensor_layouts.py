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

from .compiler import Kernel, cuda, device, kernel
from .elements import cast, div, load, mod, repeated, replaced, store
from .forms import ITEMSIZE, UNITS
from .fragments import store_unit
from .geometry import Geometry, coordinates, offset_of, source_index, tap_offset, volume_of

__all__ = ["Extent", "Layout", "extent_of", "layout_of", "pack_kernel", "phase_rests", "phase_sizes", "phase_taps", "units_of"]


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
    chunks: Any
    """Slices of the terms; of a part of them in a gradient of w."""
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


def layout_of(problem: ConvProblem, g: Geometry, images: int, chunks: int) -> Layout:
    """The layout for so many images at a time."""
    number = type(g.n)
    extent = extent_of(problem)
    channels, others = (g.per_k, g.per_c) if problem.op == "input_grad" else (g.per_c, g.per_k)
    units = units_of(int(channels), problem.dtype)
    pixel = units * problem.groups
    steps = [pixel * math.prod(extent.sizes[axis + 1 :]) for axis in range(problem.ndim)]
    apart = [s // math.gcd(s, d) for s, d in zip(problem.stride, problem.dilation, strict=True)]
    table = chunks * UNITS if problem.op == "input_grad" else 0

    def typed(values: Any) -> tuple[Any, ...]:
        return tuple(map(number, values))

    return Layout(
        number(images), typed(extent.low), typed(extent.sizes), typed(steps), number(pixel * math.prod(extent.sizes)),
        number(units), number(units_of(int(others), problem.dtype)), typed(apart), number(table), number(chunks),
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


def _image_packer(each: int) -> Any:
    """The device function that packs two units of an image; an item is a position and a pair of units."""

    @device
    def pack_image(source, target, strides, size, low, sizes, mode, groups, channels, units, inner, item, zero):
        pairs, volume = cast(div(units + 1, 2), groups), cast(volume_of(sizes), groups)
        if inner:
            pair, rest = mod(item, pairs), div(item, pairs)
            group, rest = mod(rest, groups), div(rest, groups)
            at, image = mod(rest, volume), div(rest, volume)
        else:
            at, rest = mod(item, volume), div(item, volume)
            pair, rest = mod(rest, pairs), div(rest, pairs)
            group, image = mod(rest, groups), div(rest, groups)
        position = coordinates(at, sizes)
        offset, inside = image * strides.n + group * strides.group, True
        for axis in range(len(sizes)):
            index = source_index(position[axis] - low[axis], size[axis], mode)
            inside = inside and index >= 0
            offset += index * strides.spatial[axis]
        first = ((image * volume + at) * groups + group) * units + 2 * pair
        for part in range(2):
            if 2 * pair + part < units:
                values = repeated(zero, each)
                if inside:
                    channel = (2 * pair + part) * each
                    for number in range(each):
                        if channel + number < channels:
                            values = replaced(values, number, load(source, offset + (channel + number) * strides.channel, zero))
                store_unit(target, first + part, values)

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
            if channel < channels:
                values = replaced(values, number, load(w, offset + channel * step, zero))
        store_unit(target, ((group * rows + row) * g.taps + tap) * lay.units + unit, values)

    return pack_weights


@device
def forward_entry(g, lay, number):
    """Where the units of terms lie in a row of weights, and from the start of a window; -1 behind the last."""
    if number >= g.taps * lay.units:
        return -1, -1
    tap, unit = coordinates(div(number, lay.units), g.window), mod(number, lay.units)
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
    unit, place = mod(number, lay.units), coordinates(div(number, lay.units), counts)
    flat, offset = 0, unit
    for axis in range(len(g.window)):
        tap = firsts[axis] + place[axis] * lay.tap_step[axis]
        flat = flat * g.window[axis] + tap
        distance = (rests[axis] + g.low[axis] - tap_offset(g, axis, tap)) // g.stride[axis]
        offset += (distance + lay.low[axis]) * lay.steps[axis]
    return flat * lay.units + unit, offset


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
    """The kernel that packs both factors and writes the table.

    It takes (image, other, to_image, to_other, table, g, lay, counts, items, zero) with the numbers of items of each of the three.
    """
    each, entry_of = 16 // ITEMSIZE[dtype], _ENTRIES[op]
    pack_image, pack_weights = _image_packer(each), _weight_packer(each, turned=op == "input_grad")

    @device
    def pack_other(other, to_other, g, lay, item, zero):
        pack_weights(other, to_other, g, lay, item, zero)

    @device
    def pack_first(image, to_image, g, lay, item, zero):
        pack_image(image, to_image, g.x, g.size, lay.low, lay.sizes, g.mode, g.groups, g.per_c, lay.units, lay.inner, item, zero)

    @device
    def pack_y(image, to_image, g, lay, item, zero):
        pack_image(image, to_image, g.y, g.output, lay.low, lay.sizes, 0, g.groups, g.per_k, lay.units, lay.inner, item, zero)

    @device
    def pack_outputs(other, to_other, g, lay, item, zero):
        nothing = g.output
        for axis in range(len(g.output)):
            nothing = replaced(nothing, axis, 0)
        pack_image(other, to_other, g.y, g.output, nothing, g.output, 0, g.groups, g.per_k, lay.others, lay.inner, item, zero)

    first = pack_y if op == "input_grad" else pack_first
    second = pack_outputs if op == "weight_grad" else pack_other

    def pack(image, other, to_image, to_other, table, g, lay, counts, items, zero):
        for item in range(cuda.grid(1), items, cuda.gridsize(1)):
            if item < counts[0]:
                first(image, to_image, g, lay, item, zero)
            elif item < counts[0] + counts[1]:
                second(other, to_other, g, lay, item - counts[0], zero)
            else:
                number = item - counts[0] - counts[1]
                in_first, in_second = entry_of(g, lay, number)
                store(table, 2 * number, in_first)
                store(table, 2 * number + 1, in_second)

    pack.__name__ = pack.__qualname__ = f"pack_{op}_{dtype}"
    return kernel(pack)
