"""Convolution as a matrix product whose second factor is gathered on the way: what the operations are.

Rows are the channels of the result within a group, columns its positions through the batch, and the inner dimension runs over the
channels and the taps that a result sums, in the strict order: channel, then kernel row-major. For a weight gradient rows are output
channels, columns are input channels and taps, and the inner dimension is the batch and the positions of y
(S. Chetlur et al., "cuDNN: Efficient primitives for deep learning", arXiv:1410.0759, section 3).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numconv_cuda.direct import finish
from numconv_cuda.geometry import coordinates, offset_of
from numconv_cuda.primitives.elements import div, mod
from numconv_cuda.runtime.compiler import SIMULATED, device

from .places import FORWARD_PLACES, INPUT_GRAD_PLACES, WEIGHT_GRAD_PLACES, Places

__all__ = ["ALIGNMENT", "FORWARD", "INPUT_GRAD", "WEIGHT_GRAD", "Operation", "part_of_sum"]

ALIGNMENT = None if SIMULATED else 16
"""Of shared memory, for loads of four numbers; the simulator knows none."""


# --- the inner dimension ---------------------------------------------------------------------------------------------------------


@device
def taps_of(g):
    """The volume of the kernel, which the inner dimension of a convolution or a gradient of x goes through for each channel."""
    return g.taps


@device
def outputs_of(g):
    """The volume of an output image, which the inner dimension of a gradient of w goes through for each."""
    return g.outputs


@device
def window_sizes(g):
    """The sizes of the kernel."""
    return g.window


@device
def output_sizes(g):
    """The sizes of an output image."""
    return g.output


# --- results: where a column is written, and how a result is finished ------------------------------------------------------------


@device
def output_column(g, group, column):
    """The offset in y of an output of the first channel of a group, and the step to the next channel."""
    n, output = div(column, g.outputs), coordinates(mod(column, g.outputs), g.output)
    return n * g.y.n + group * g.y.group + offset_of(output, g.y.spatial), g.y.channel


@device
def image_column(g, group, column):
    """The same of an element of x."""
    n, index = div(column, g.volume), coordinates(mod(column, g.volume), g.size)
    return n * g.x.n + group * g.x.group + offset_of(index, g.x.spatial), g.x.channel


@device
def sums_column(g, group, column):
    """Of an input channel and a tap: the offset in sums[part, k, c, tap] for the first output channel of a group, and the step."""
    width = g.per_c * g.taps
    return group * g.per_k * width + column, width


@device
def finished_y(value, bias, g, group, row):
    """A result of a convolution with its bias and activation."""
    return finish(value, bias, group * g.per_k + row, g)


@device
def finished_x(value, bias, g, group, row):
    """A gradient of x, or a result of a transposed convolution, with its bias and activation."""
    return finish(value, bias, group * g.per_c + row, g)


@device
def part_of_sum(value, bias, g, group, row):
    """A part of a gradient of w as it is."""
    return value


@device
def output_channels(g):
    """Of a group."""
    return g.per_k


@device
def input_channels(g):
    """Of a group."""
    return g.per_c


class Operation(NamedTuple):
    """What distinguishes the three operations: where factors lie, the inner dimension, and device functions for results."""

    name: str
    places: Places
    volume: Any
    """(g) -> the volume of the inner dimension, and its sizes."""
    sizes: Any
    target: Any
    """(g, group, column) -> where the first row of a column is written, and the step to the next."""
    finish: Any
    """(value, bias, g, group, row) -> a result."""
    channels: Any
    """(g) -> how many channels of the result a group has; None where they have no bias."""
    across: tuple[bool, bool]
    """Which factors are copied across their terms, neighbouring lines by neighbouring threads, where nothing is known of them."""
    conjugate: tuple[bool, bool]
    """Which factors are conjugated, if they are complex."""
    second_leads: bool
    """Whether a complex product is that of the second factor by the first, which rounds otherwise than the contrary."""


FORWARD = Operation(
    "forward", FORWARD_PLACES, taps_of, window_sizes, output_column, finished_y, output_channels, across=(False, True),
    conjugate=(False, False), second_leads=True,
)  # fmt: skip
INPUT_GRAD = Operation(
    "input_grad", INPUT_GRAD_PLACES, taps_of, window_sizes, image_column, finished_x, input_channels, across=(False, True),
    conjugate=(True, False), second_leads=True,
)  # fmt: skip
WEIGHT_GRAD = Operation(
    "weight_grad", WEIGHT_GRAD_PLACES, outputs_of, output_sizes, sums_column, part_of_sum, None, across=(False, False),
    conjugate=(False, True), second_leads=False,
)  # fmt: skip
