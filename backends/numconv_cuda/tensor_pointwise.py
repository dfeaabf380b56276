"""Products of kernels of one tap on tensor cores, whose factors are read as they lie: nothing is packed.

Positions are neighbours in x and y, channels in w, and each output lies where its element of x does, so that units of 16 bytes are
whole and aligned: see `numconv_cuda.neighbours`. Elements of 32 bits are rounded to TF32 on the way to the tensor cores.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from .compiler import SIMULATED, device
from .elements import div, mod
from .forms import UNITS
from .gemm import finished_x, finished_y, part_of_sum
from .geometry import Geometry
from .tensor_operations import (
    Factor,
    Operation,
    all_slices,
    input_channels,
    output_channels,
    output_target,
    outputs,
    phase_columns,
    phase_target,
)

__all__ = ["fits", "operation"]


def fits(op: str, g: Geometry, each: int, pointers: Sequence[Any]) -> bool:
    """Whether the factors of a product, at these pointers, are made of whole units of so many elements as they lie."""
    if g.taps != 1 or g.size != g.output or set(g.stride) != {1} or any(g.low):
        return False
    steps = [int(g.outputs)]
    for volume, image in ((g.size, g.x), (g.output, g.y)):
        if (op == "forward" and image is g.y) or (op == "input_grad" and image is g.x):
            continue
        if not _dense(volume, image.spatial):
            return False
        steps += [image.n, image.group, image.channel]
    if op != "weight_grad":
        if g.w.c != 1 and g.per_c != 1:
            return False
        steps += [g.w.group, g.w.k, g.per_c]
    return all(int(step) % each == 0 for step in steps) and (SIMULATED or all(each.address % 16 == 0 for each in pointers))


def _dense(sizes: Sequence[Any], steps: Sequence[Any]) -> bool:
    """Whether a volume is contiguous, row-major."""
    expected = 1
    for size, step in zip(reversed(sizes), reversed(steps), strict=True):
        if size > 1 and step != expected:
            return False
        expected *= int(size)
    return True


@device
def sum_columns(g, lay, z):
    """Input channels."""
    return g.per_c


@device
def sum_target(g, lay, group, z, part, column):
    """A sum, in sums[part, k, c]."""
    return True, (part * g.groups + group) * g.per_k * g.per_c + column, g.per_c


@device
def never_anew(first, second, g, lay, group, z, part, row, column, zero):
    """There is no padding."""
    return zero


def _forward(each: int) -> Operation:
    @device
    def weights(g, lay, group, z, line):
        return div(group * g.w.group + min(line, g.per_k - 1) * g.w.k, each)

    @device
    def channels(table, g, lay, z, number):
        return number if number * each < g.per_c else -1

    @device
    def image(g, lay, group, z, line):
        if line >= lay.n * g.outputs:
            return -1
        return div(div(line, g.outputs) * g.x.n + group * g.x.group + mod(line, g.outputs), each)

    @device
    def channel(table, g, lay, z, number):
        return number * div(g.x.channel, each) if number < g.per_c else -1

    return Operation(
        Factor(False, weights, channels), Factor(True, image, channel), all_slices, output_channels, outputs, output_target,
        finished_y, never_anew,
    )  # fmt: skip


def _input_grad(each: int) -> Operation:
    @device
    def weights(g, lay, group, z, line):
        return div(group * g.w.group + line, each) if line < g.per_c else -1

    @device
    def weights_of(table, g, lay, z, number):
        return number * div(g.w.k, each) if number < g.per_k else -1

    @device
    def image(g, lay, group, z, line):
        if line >= lay.n * g.outputs:
            return -1
        return div(div(line, g.outputs) * g.y.n + group * g.y.group + mod(line, g.outputs), each)

    @device
    def channel(table, g, lay, z, number):
        return number * div(g.y.channel, each) if number < g.per_k else -1

    return Operation(
        Factor(True, weights, weights_of), Factor(True, image, channel), all_slices, input_channels, phase_columns, phase_target,
        finished_x, never_anew,
    )  # fmt: skip


def _weight_grad(each: int) -> Operation:
    @device
    def slices(g, lay, z):
        return div(lay.n * g.outputs + UNITS * each - 1, UNITS * each)

    @device
    def of_outputs(g, lay, group, z, line):
        return div(group * g.y.group + min(line, g.per_k - 1) * g.y.channel, each)

    @device
    def image(g, lay, group, z, line):
        return div(group * g.x.group + min(line, g.per_c - 1) * g.x.channel, each)

    @device
    def unit_of(g, lay, number, step):
        if number * each >= lay.n * g.outputs:
            return -1
        return div(div(number * each, g.outputs) * step + mod(number * each, g.outputs), each)

    @device
    def outputs_of(table, g, lay, z, number):
        return unit_of(g, lay, number, g.y.n)

    @device
    def image_of(table, g, lay, z, number):
        return unit_of(g, lay, number, g.x.n)

    return Operation(
        Factor(False, of_outputs, outputs_of), Factor(False, image, image_of), slices, output_channels, sum_columns, sum_target,
        part_of_sum, never_anew,
    )  # fmt: skip


@functools.cache
def operation(op: str, each: int) -> Operation:
    """An operation for units of so many elements."""
    return {"forward": _forward, "input_grad": _input_grad, "weight_grad": _weight_grad}[op](each)
