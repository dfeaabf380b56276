"""Where the elements of the two factors of a matrix product lie: an offset and a position that a line and a term add up to.

A factor has lines (rows of the first, columns of the second) and, along each, the terms of the inner dimension: a number of volumes
(channels or images) and a position in one (a tap or an output). An element lies at the sum of the offsets of its line and its term.
The second factor has padding: the positions of line and term add up to one in its volume, on each axis, or there is no element.
So both are found once for each line and once for each term, and an element costs additions and comparisons alone. Only padding that
copies values maps each position by itself (`Factor.folded`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from numconv_cuda.geometry import coordinates, offset_of, source_index, tap_offset
from numconv_cuda.primitives.elements import div, mod, replaced
from numconv_cuda.runtime.compiler import device

__all__ = ["FORWARD_PLACES", "INPUT_GRAD_PLACES", "NOWHERE", "WEIGHT_GRAD_PLACES", "Places"]

NOWHERE = -(2**30)
"""A position that no other one brings into a volume: of lines and terms that do not exist. Sizes are smaller than that."""


class Places(NamedTuple):
    """Device functions that find lines and terms of both factors.

    Those of the first factor give an offset; those of the second one also a position. `at` and `steps` give the offset that a
    position adds where padding copies values: offsets of lines and terms then leave it out.
    """

    row: Callable[..., Any]
    """(g, group, line) -> offset in the first factor."""
    column: Callable[..., Any]
    """(g, group, line, folded) -> offset in the second factor, and position."""
    term: Callable[..., Any]
    """(g, volumes, position, folded) -> offsets in both, and the position in the second."""
    sizes: Callable[..., Any]
    """(g) -> the sizes of the second factor's volume."""
    steps: Callable[..., Any]
    """(g) -> its steps in memory."""


@device
def kernel_row(g, group, line):
    """An output channel of w."""
    return group * g.w.group + line * g.w.k


@device
def transposed_row(g, group, line):
    """An input channel of w."""
    return group * g.w.group + line * g.w.c


@device
def channel_row(g, group, line):
    """A channel of y."""
    return group * g.y.group + line * g.y.channel


@device
def tap_offsets(g, tap):
    """Where a tap lies in its window."""
    found = g.window
    for axis in range(len(g.window)):
        found = replaced(found, axis, tap_offset(g, axis, tap[axis]))
    return found


@device
def window_start(g, output):
    """Where the window of an output starts."""
    found = g.size
    for axis in range(len(g.size)):
        found = replaced(found, axis, output[axis] * g.stride[axis] - g.low[axis])
    return found


@device
def window_column(g, group, line, folded):
    """An output: its image and group in x, and where its window starts."""
    start = window_start(g, coordinates(mod(line, g.outputs), g.output))
    offset = div(line, g.outputs) * g.x.n + group * g.x.group
    return offset if folded else offset + offset_of(start, g.x.spatial), start


@device
def tap_term(g, channel, tap, folded):
    """An input channel and a tap: in w and in x."""
    shift = tap_offsets(g, tap)
    offset = channel * g.x.channel
    in_w = channel * g.w.c + offset_of(tap, g.w.spatial)
    return in_w, offset if folded else offset + offset_of(shift, g.x.spatial), shift


@device
def element_column(g, group, line, folded):
    """An element of x: its image and group in y, and its position counted from the low padding."""
    index = coordinates(mod(line, g.volume), g.size)
    for axis in range(len(g.size)):
        index = replaced(index, axis, index[axis] + g.low[axis])
    offset = div(line, g.volume) * g.y.n + group * g.y.group
    return offset if folded else offset + offset_of(index, g.y.spatial), index


@device
def backward_term(g, channel, tap, folded):
    """An output channel and a tap: in w and, backwards, in y."""
    shift = tap_offsets(g, tap)
    for axis in range(len(g.size)):
        shift = replaced(shift, axis, -shift[axis])
    offset = channel * g.y.channel
    in_w = channel * g.w.k + offset_of(tap, g.w.spatial)
    return in_w, offset if folded else offset + offset_of(shift, g.y.spatial), shift


@device
def tap_column(g, group, line, folded):
    """An input channel and a tap: in x."""
    shift = tap_offsets(g, coordinates(mod(line, g.taps), g.window))
    offset = group * g.x.group + div(line, g.taps) * g.x.channel
    return offset if folded else offset + offset_of(shift, g.x.spatial), shift


@device
def output_term(g, image, output, folded):
    """An image and an output: in y, and in x where its window starts."""
    start = window_start(g, output)
    offset = image * g.x.n
    in_y = image * g.y.n + offset_of(output, g.y.spatial)
    return in_y, offset if folded else offset + offset_of(start, g.x.spatial), start


@device
def x_sizes(g):
    """The sizes of an image of x."""
    return g.size


@device
def y_sizes(g):
    """The sizes of an image of y."""
    return g.output


@device
def x_steps(g):
    """The steps of x."""
    return g.x.spatial


@device
def y_steps(g):
    """The steps of y."""
    return g.y.spatial


@device
def folded_offset(g, position, sizes, steps):
    """Whether a padded position reads an element, and the offset of that."""
    offset, inside = 0, True
    for axis in range(len(sizes)):
        index = source_index(position[axis], sizes[axis], g.mode)
        inside = inside and index >= 0
        offset += index * steps[axis]
    return inside, offset


FORWARD_PLACES = Places(kernel_row, window_column, tap_term, x_sizes, x_steps)
INPUT_GRAD_PLACES = Places(transposed_row, element_column, backward_term, y_sizes, y_steps)
WEIGHT_GRAD_PLACES = Places(channel_row, tap_column, output_term, x_sizes, x_steps)
