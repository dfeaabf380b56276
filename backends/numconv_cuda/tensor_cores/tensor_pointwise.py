"""Products of kernels of one tap on tensor cores, whose factors are read as they lie: nothing is packed.

Positions are neighbours in x and y, channels in w, and each output lies where its element of x does, so that units of 16 bytes are
whole and aligned: see `neighbours`. Elements of 32 bits are rounded to TF32 on the way to the tensor cores.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from numconv_cuda.gemm.gemm import finished_x, finished_y, part_of_sum
from numconv_cuda.gemm.neighbours import _dense
from numconv_cuda.geometry import Geometry
from numconv_cuda.primitives.elements import div, mod
from numconv_cuda.primitives.forms import UNITS
from numconv_cuda.runtime.compiler import SIMULATED, device

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


@device
def of_x(g):
    """The steps through x."""
    return g.x


@device
def of_y(g):
    """The steps through y."""
    return g.y


@device
def sum_target(g, lay, group, z, part, column):
    """A sum, in sums[part, k, c]."""
    return True, (part * g.groups + group) * g.per_k * g.per_c + column, g.per_c


@device
def never_anew(first, second, g, lay, group, z, part, row, column, zero):
    """There is no padding."""
    return zero


def _positions(each: int, steps_of: Any, count: Any) -> Factor:
    """The second factor of a convolution or a gradient of x: lines are positions, terms channels."""

    @device
    def start(g, lay, group, z, line):
        steps = steps_of(g)
        if line >= lay.n * g.outputs:
            return -1
        return div(div(line, g.outputs) * steps.n + group * steps.group + mod(line, g.outputs), each)

    @device
    def channel(table, g, lay, z, number):
        return number * div(steps_of(g).channel, each) if number < count(g, lay, z) else -1

    return Factor(True, start, channel)


def _channels(each: int, steps_of: Any, count: Any) -> Factor:
    """A factor of a gradient of w: lines are channels, terms positions."""

    @device
    def start(g, lay, group, z, line):
        steps = steps_of(g)
        return div(group * steps.group + min(line, count(g, lay, z) - 1) * steps.channel, each)

    @device
    def position(table, g, lay, z, number):
        first = number * each
        if first >= lay.n * g.outputs:
            return -1
        return div(div(first, g.outputs) * steps_of(g).n + mod(first, g.outputs), each)

    return Factor(False, start, position)


def _forward(each: int) -> Operation:
    @device
    def start(g, lay, group, z, line):
        return div(group * g.w.group + min(line, g.per_k - 1) * g.w.k, each)

    @device
    def unit(table, g, lay, z, number):
        return number if number * each < g.per_c else -1

    return Operation(
        Factor(False, start, unit), _positions(each, of_x, input_channels), all_slices, output_channels, outputs, output_target,
        finished_y, never_anew,
    )  # fmt: skip


def _input_grad(each: int) -> Operation:
    @device
    def start(g, lay, group, z, line):
        return div(group * g.w.group + line, each) if line < g.per_c else -1

    @device
    def channel(table, g, lay, z, number):
        return number * div(g.w.k, each) if number < g.per_k else -1

    return Operation(
        Factor(True, start, channel), _positions(each, of_y, output_channels), all_slices, input_channels, phase_columns,
        phase_target, finished_x, never_anew,
    )  # fmt: skip


def _weight_grad(each: int) -> Operation:
    @device
    def slices(g, lay, z):
        return div(lay.n * g.outputs + UNITS * each - 1, UNITS * each)

    return Operation(
        _channels(each, of_y, output_channels), _channels(each, of_x, input_channels), slices, output_channels, input_channels,
        sum_target, part_of_sum, never_anew,
    )  # fmt: skip


@functools.cache
def operation(op: str, each: int) -> Operation:
    """An operation for units of so many elements."""
    return {"forward": _forward, "input_grad": _input_grad, "weight_grad": _weight_grad}[op](each)
