"""What distinguishes the products of packed factors: where lines begin, where units of terms lie, and where results belong.

Rows, columns and terms are those of `gemm`, but the taps of the kernel are outside and the channels inside.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numconv_cuda.gemm.gemm import finished_x, finished_y, part_of_sum
from numconv_cuda.geometry import advanced, coordinates, offset_of, source_offset, start_of, tap_offset, volume_of
from numconv_cuda.primitives.elements import cast, div, load, mod, muladd
from numconv_cuda.primitives.forms import UNITS
from numconv_cuda.primitives.fragments import fetch_number
from numconv_cuda.runtime.compiler import device

from .tensor_layouts import phase_rests, phase_sizes, phase_taps, unit_of

__all__ = [
    "FORWARD", "INPUT_GRAD", "Factor", "Operation", "all_slices", "input_channels", "output_channels", "output_target",
    "outputs", "phase_columns", "phase_target", "weight_grad",
]  # fmt: skip


class Factor(NamedTuple):
    """How the units of a factor are found, as device functions. Units are counted from the start of its memory."""

    across: bool
    """Whether a unit holds neighbouring lines, not terms."""
    start: Any
    """(g, lay, group, z, line) -> the first unit of a line, or that of the neighbouring lines from this one on; -1 for none."""
    entry: Any
    """(table, g, lay, z, number) -> how far a unit of terms, or across them a term, lies from there; -1 for none."""


class Operation(NamedTuple):
    """A product, as device functions."""

    first: Factor
    second: Factor
    slices: Any
    """(g, lay, z) -> how many slices the terms of a phase have."""
    rows: Any
    columns: Any
    """(g, lay, z) -> how many there are."""
    target: Any
    """(g, lay, group, z, part, column) -> whether it is a result, its offset in the first row, and the step to the next."""
    finish: Any
    """(value, bias, g, group, row) -> what is written."""
    again: Any
    """(first, second, g, lay, group, z, part, row, column, zero) -> a result, or a part of it, term by term."""


@device
def first_entry(table, g, lay, z, number):
    """Of the first factor, from the table."""
    return fetch_number(table, 2 * (z * lay.table + number))


@device
def second_entry(table, g, lay, z, number):
    """Of the second."""
    return fetch_number(table, 2 * (z * lay.table + number) + 1)


# --- forward ---------------------------------------------------------------------------------------------------------------------


@device
def all_slices(g, lay, z):
    """Of all taps."""
    return div(g.taps * lay.units + UNITS - 1, UNITS)


@device
def output_channels(g, lay, z):
    """Of a group."""
    return g.per_k


@device
def outputs(g, lay, z):
    """Of all images."""
    return lay.n * g.outputs


@device
def weights_of_output(g, lay, group, z, line):
    """The weights of an output channel."""
    return (group * g.per_k + min(line, g.per_k - 1)) * g.taps * lay.units


@device
def window_start(g, lay, group, z, line):
    """Where the window of an output begins; lines behind the last repeat it."""
    line = min(line, lay.n * g.outputs - 1)
    output = coordinates(mod(line, g.outputs), g.output)
    place = div(line, g.outputs) * lay.image + group * lay.units
    for axis in range(len(g.output)):
        place += output[axis] * g.stride[axis] * lay.steps[axis]
    return place


@device
def output_target(g, lay, group, z, part, column):
    """An output of the first channel of a group."""
    image, output = div(column, g.outputs), coordinates(mod(column, g.outputs), g.output)
    return True, image * g.y.n + group * g.y.group + offset_of(output, g.y.spatial), g.y.channel


@device
def forward_anew(first, second, g, lay, group, z, part, row, column, zero):
    """A result of a convolution."""
    image, output = div(column, g.outputs), coordinates(mod(column, g.outputs), g.output)
    start, weight = image * g.x.n + group * g.x.group, group * g.w.group + row * g.w.k
    acc, tap = zero, start_of(g.window)
    for _ in range(g.taps):
        inside, source = source_offset(g, output, tap)
        if inside:
            source, at = source + start, weight + offset_of(tap, g.w.spatial)
            for c in range(g.per_c):
                acc = muladd(load(second, source + c * g.x.channel, zero), load(first, at + c * g.w.c, zero), acc)
        tap = advanced(tap, g.window)
    return acc


# --- input_grad ------------------------------------------------------------------------------------------------------------------


@device
def phase_slices(g, lay, z):
    """Of the taps that reach a phase."""
    _, _, taps = phase_taps(g, lay, phase_rests(g, z))
    return div(taps * lay.units + UNITS - 1, UNITS)


@device
def input_channels(g, lay, z):
    """Of a group."""
    return g.per_c


@device
def phase_columns(g, lay, z):
    """The elements of a phase, of all images."""
    return lay.n * volume_of(phase_sizes(g, phase_rests(g, z)))


@device
def weights_of_input(g, lay, group, z, line):
    """The weights of an input channel."""
    return (group * g.per_c + min(line, g.per_c - 1)) * g.taps * lay.units


@device
def phase_place(g, lay, z, column):
    """The image of a column, and its position in the phase."""
    sizes = phase_sizes(g, phase_rests(g, z))
    volume = cast(volume_of(sizes), g.n)
    return div(column, volume), coordinates(mod(column, volume), sizes)


@device
def phase_start(g, lay, group, z, line):
    """Where the taps of an element begin in y."""
    image, position = phase_place(g, lay, z, min(line, phase_columns(g, lay, z) - 1))
    place = image * lay.image + group * lay.units
    for axis in range(len(g.size)):
        place += position[axis] * lay.steps[axis]
    return place


@device
def phase_target(g, lay, group, z, part, column):
    """An element of the first channel of a group."""
    image, position = phase_place(g, lay, z, column)
    rests = phase_rests(g, z)
    offset = image * g.x.n + group * g.x.group
    for axis in range(len(g.size)):
        offset += (rests[axis] + position[axis] * g.stride[axis]) * g.x.spatial[axis]
    return True, offset, g.x.channel


@device
def reader_of(g, rests, position, tap):
    """Whether an output reads an element of a phase through a tap, and the offset of that output in y."""
    found, offset = True, 0
    for axis in range(len(g.size)):
        distance = rests[axis] + position[axis] * g.stride[axis] + g.low[axis] - tap_offset(g, axis, tap[axis])
        output = distance // g.stride[axis]
        found = found and output >= 0 and output * g.stride[axis] == distance and output < g.output[axis]
        offset += output * g.y.spatial[axis]
    return found, offset


@device
def gradient_anew(first, second, g, lay, group, z, part, row, column, zero):
    """A gradient of x."""
    image, position = phase_place(g, lay, z, column)
    rests, start, weight = phase_rests(g, z), image * g.y.n + group * g.y.group, group * g.w.group + row * g.w.c
    acc, tap = zero, start_of(g.window)
    for _ in range(g.taps):
        inside, source = reader_of(g, rests, position, tap)
        if inside:
            source, at = source + start, weight + offset_of(tap, g.w.spatial)
            for k in range(g.per_k):
                acc = muladd(load(second, source + k * g.y.channel, zero), load(first, at + k * g.w.k, zero), acc)
        tap = advanced(tap, g.window)
    return acc


# --- weight_grad -----------------------------------------------------------------------------------------------------------------


def weight_grad(each: int) -> Operation:
    """The gradient of w, whose lines are channels, `each` of a unit."""

    @device
    def in_first(table, g, lay, z, number):
        """Where an output lies in y, from the table."""
        return fetch_number(table, 2 * number)

    @device
    def in_second(table, g, lay, z, number):
        """Where its window lies in x."""
        return fetch_number(table, 2 * number + 1)

    @device
    def output_slices(g, lay, z):
        """Of the outputs of all images."""
        return div(lay.n * g.outputs + UNITS * each - 1, UNITS * each)

    @device
    def tap_columns(g, lay, z):
        """Taps, and the channels of whole units."""
        return g.taps * lay.units * each

    @device
    def output_unit(g, lay, group, z, line):
        """A unit of output channels."""
        unit = div(line, each)
        return group * lay.others + unit if unit < lay.others else -1

    @device
    def tap_unit(g, lay, group, z, line):
        """A unit of input channels under a tap."""
        number = div(line, each)
        if number >= g.taps * lay.units:
            return -1
        tap, unit = unit_of(lay, g.taps, number)
        tap, place = coordinates(tap, g.window), group * lay.units + unit
        for axis in range(len(g.window)):
            place += tap_offset(g, axis, tap[axis]) * lay.steps[axis]
        return place

    @device
    def place_of(g, lay, column):
        """The tap and the input channel of a column."""
        tap, unit = unit_of(lay, g.taps, div(column, each))
        return tap, unit * each + mod(column, each)

    @device
    def sum_target(g, lay, group, z, part, column):
        """A sum, in sums[part, k, tap, c]."""
        tap, channel = place_of(g, lay, column)
        width = g.taps * g.per_c
        offset = (part * g.groups + group) * g.per_k * width + tap * g.per_c + channel
        return channel < g.per_c, offset, width

    @device
    def sum_anew(first, second, g, lay, group, z, part, row, column, zero):
        """A part of a gradient of w."""
        tap, channel = place_of(g, lay, column)
        tap, length = coordinates(tap, g.window), lay.length * UNITS * each
        from_y, from_x = group * g.y.group + row * g.y.channel, group * g.x.group + channel * g.x.channel
        acc = zero
        for term in range(part * length, min((part + 1) * length, lay.n * g.outputs)):
            image, output = div(term, g.outputs), coordinates(mod(term, g.outputs), g.output)
            inside, source = source_offset(g, output, tap)
            if inside:
                value = load(first, from_y + image * g.y.n + offset_of(output, g.y.spatial), zero)
                acc = muladd(value, load(second, from_x + image * g.x.n + source, zero), acc)
        return acc

    return Operation(
        Factor(True, output_unit, in_first), Factor(True, tap_unit, in_second), output_slices, output_channels, tap_columns,
        sum_target, part_of_sum, sum_anew,
    )  # fmt: skip


FORWARD = Operation(
    Factor(False, weights_of_output, first_entry), Factor(False, window_start, second_entry), all_slices, output_channels, outputs,
    output_target, finished_y, forward_anew,
)  # fmt: skip
INPUT_GRAD = Operation(
    Factor(False, weights_of_input, first_entry), Factor(False, phase_start, second_entry), phase_slices, input_channels,
    phase_columns, phase_target, finished_x, gradient_anew,
)  # fmt: skip
