"""Convolution as a matrix product whose second factor is gathered on the way: what the operations are.

Rows are the channels of the result within a group, columns its positions through the batch, and the inner dimension runs over the
channels and the taps that a result sums, in the strict order: channel, then kernel row-major. For a weight gradient rows are output
channels, columns are input channels and taps, and the inner dimension is the batch and the positions of y
(S. Chetlur et al., "cuDNN: Efficient primitives for deep learning", arXiv:1410.0759, section 3).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .compiler import SIMULATED, device
from .direct import finish, forward_chain, gradient_chain, weight_chain
from .elements import div, mod, replaced, store
from .gathering import Factor, Way, following, jump, reader, spread_of, term_at
from .geometry import coordinates, offset_of, source_index, tap_offset

__all__ = ["ALIGNMENT", "FORWARD", "INPUT_GRAD", "WEIGHT_GRAD", "Operation", "Slices", "slices_of", "writer"]

ALIGNMENT = None if SIMULATED else 16
"""Of shared memory, for loads of four numbers; the simulator knows none."""
# --- the factors: where their lines and elements are --------------------------------------------------------------------------


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


@device
def weight_row(g, group, line, step):
    """Of an output channel: its offset in w, and the step."""
    return group * g.w.group + line * g.w.k, step * g.w.k


@device
def weight_column(g, group, line, step):
    """Of an input channel: its offset in w, and the step."""
    return group * g.w.group + line * g.w.c, step * g.w.c


@device
def output_row(g, group, line, step):
    """Of an output channel: its offset in y, and the step."""
    return group * g.y.group + line * g.y.channel, step * g.y.channel


@device
def next_row(g, place):
    """The offset of another line."""
    return place[0] + place[1], place[1]


@device
def weight_of_x(g, place, channel, tap):
    """The element of w for an input channel and a tap."""
    return True, place[0] + channel * g.w.c + offset_of(tap, g.w.spatial)


@device
def weight_of_y(g, place, channel, tap):
    """The element of w for an output channel and a tap."""
    return True, place[0] + channel * g.w.k + offset_of(tap, g.w.spatial)


@device
def output_of(g, place, image, output):
    """The element of y for an image and an output."""
    return True, place[0] + image * g.y.n + offset_of(output, g.y.spatial)


@device
def window_start(g, group, line, step):
    """Of an output: the offset of its image and group in x, where its window starts, and what `next_window` needs."""
    return window_at(g, group * g.x.group, term_at(line, step, g.outputs, g.output))


@device
def next_window(g, place):
    """The same of another output."""
    return window_at(g, place[2], following(place[3], g.output))


@device
def window_at(g, offset, cursor):
    """The same of an output given by a cursor."""
    position = g.size
    for axis in range(len(g.size)):
        position = replaced(position, axis, cursor.position[axis] * g.stride[axis] - g.low[axis])
    return cursor.volumes * g.x.n + offset, position, offset, cursor


@device
def under_tap(g, place, channel, tap):
    """The element of x for an input channel under a tap of a window."""
    offset, inside = place[0] + channel * g.x.channel, True
    for axis in range(len(g.size)):
        index = source_index(place[1][axis] + tap_offset(g, axis, tap[axis]), g.size[axis], g.mode)
        inside = inside and index >= 0
        offset += index * g.x.spatial[axis]
    return inside, offset


@device
def image_position(g, group, line, step):
    """Of an element of x: the offset of its image and group in y, its position counted from the low padding, and what follows."""
    return position_at(g, group * g.y.group, term_at(line, step, g.volume, g.size))


@device
def next_position(g, place):
    """The same of another element."""
    return position_at(g, place[2], following(place[3], g.size))


@device
def position_at(g, offset, cursor):
    """The same of an element given by a cursor."""
    position = g.size
    for axis in range(len(g.size)):
        position = replaced(position, axis, cursor.position[axis] + g.low[axis])
    return cursor.volumes * g.y.n + offset, position, offset, cursor


@device
def above_tap(g, place, channel, tap):
    """The element of y for an output channel whose window has a tap on a position of x."""
    offset, inside = place[0] + channel * g.y.channel, True
    for axis in range(len(g.size)):
        distance = place[1][axis] - tap_offset(g, axis, tap[axis])
        output = distance
        if g.stride[axis] > 1:
            output = div(max(distance, 0), g.stride[axis])
            inside = inside and output * g.stride[axis] == distance
        inside = inside and distance >= 0 and output < g.output[axis]
        offset += output * g.y.spatial[axis]
    return inside, offset


@device
def tap_column(g, group, line, step):
    """Of an input channel and a tap: the offset of the group in x, and both as a cursor."""
    return group * g.x.group, term_at(line, step, g.taps, g.window)


@device
def next_column(g, place):
    """Another input channel and tap."""
    return place[0], following(place[1], g.window)


@device
def under_column(g, place, image, output):
    """The element of x that an output has under the tap of a column."""
    offset, inside = place[0] + image * g.x.n + place[1].volumes * g.x.channel, True
    for axis in range(len(g.size)):
        position = output[axis] * g.stride[axis] - g.low[axis] + tap_offset(g, axis, place[1].position[axis])
        index = source_index(position, g.size[axis], g.mode)
        inside = inside and index >= 0
        offset += index * g.x.spatial[axis]
    return inside, offset


# --- results: where a column is written, and how a result is computed anew, term by term ----------------------------------------


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
def forward_again(w, x, g, group, row, column, first, last, zero):
    """A result of a convolution."""
    n, output = div(column, g.outputs), coordinates(mod(column, g.outputs), g.output)
    return forward_chain(x, w, g, output, n * g.x.n + group * g.x.group, group * g.w.group + row * g.w.k, zero)


@device
def input_grad_again(w, y, g, group, row, column, first, last, zero):
    """A gradient of x."""
    n, index = div(column, g.volume), coordinates(mod(column, g.volume), g.size)
    return gradient_chain(y, w, g, index, n * g.y.n + group * g.y.group, group * g.w.group + row * g.w.c, zero)


@device
def weight_grad_again(y, x, g, group, row, column, first, last, zero):
    """A part of a gradient of w."""
    c, tap = div(column, g.taps), mod(column, g.taps)
    from_y, from_x = group * g.y.group + row * g.y.channel, group * g.x.group + c * g.x.channel
    return weight_chain(y, x, g, coordinates(tap, g.window), from_y, from_x, first, last, zero)


@device
def output_channels(g):
    """Of a group."""
    return g.per_k


@device
def input_channels(g):
    """Of a group."""
    return g.per_c


class Operation(NamedTuple):
    """What distinguishes the three operations: the factors, the inner dimension, and device functions for results."""

    name: str
    first: Factor
    second: Factor
    volume: Any
    """The volume of the inner dimension, and its sizes."""
    sizes: Any
    target: Any
    finish: Any
    again: Any
    channels: Any
    """The device function that gives how many channels of the result a group has; None where they have no bias."""
    ways: tuple[Way, Way]
    """How the factors are read where nothing is known of their memory."""
    second_leads: bool
    """Whether a complex product is that of the second factor by the first, which rounds otherwise than the contrary."""


FORWARD = Operation(
    "forward", Factor(weight_row, next_row, weight_of_x, conjugate=False),
    Factor(window_start, next_window, under_tap, conjugate=False), taps_of, window_sizes, output_column, finished_y,
    forward_again, output_channels, (Way(across=False), Way(across=True)), second_leads=True,
)  # fmt: skip
INPUT_GRAD = Operation(
    "input_grad", Factor(weight_column, next_row, weight_of_y, conjugate=True),
    Factor(image_position, next_position, above_tap, conjugate=False), taps_of, window_sizes, image_column, finished_x,
    input_grad_again, input_channels, (Way(across=False), Way(across=True)), second_leads=True,
)  # fmt: skip
WEIGHT_GRAD = Operation(
    "weight_grad", Factor(output_row, next_row, output_of, conjugate=False),
    Factor(tap_column, next_column, under_column, conjugate=True), outputs_of, output_sizes, sums_column, part_of_sum,
    weight_grad_again, None, (Way(across=False), Way(across=False)), second_leads=False,
)  # fmt: skip


# --- the kernels -----------------------------------------------------------------------------------------------------------------


class Slices(NamedTuple):
    """The device functions by which a thread takes its elements of both factors."""

    begin: Any
    """(g, group, row, column, term, thread) -> the places of its first lines, and its cursors."""
    first: Any
    second: Any
    """See `reader`."""
    spread_first: Any
    spread_second: Any
    """See `spread_of`."""


def slices_of(operation: Operation, tile: Any, ways: tuple[Way, Way]) -> Slices:
    """How the threads of a block with such a tile take slices."""
    factors, lines = (operation.first, operation.second), (tile.rows, tile.columns)
    depth, threads = tile.depth, tile.threads
    start_a, start_b = (factor.start for factor in factors)
    jump_a, jump_b = (jump(way, count, depth, threads) for way, count in zip(ways, lines, strict=True))
    spread_a, spread_b = (spread_of(way, count, depth, threads) for way, count in zip(ways, lines, strict=True))
    step_a, step_b = (threads * way.wide // depth for way in ways)
    volume, sizes = operation.volume, operation.sizes

    @device
    def begin(g, group, row, column, term, thread):
        line_a, inner_a = spread_a(thread, 0)
        line_b, inner_b = spread_b(thread, 0)
        place_a, place_b = start_a(g, group, row + line_a, step_a), start_b(g, group, column + line_b, step_b)
        cursor_a = term_at(term + inner_a, jump_a, volume(g), sizes(g))
        return place_a, cursor_a, place_b, term_at(term + inner_b, jump_b, volume(g), sizes(g))

    read_a, read_b = (
        reader(factor, way, sizes, count, depth, threads) for factor, way, count in zip(factors, ways, lines, strict=True)
    )
    return Slices(begin, read_a, read_b, spread_a, spread_b)


def writer(operation: Operation, count_rows: int, count_columns: int, row_of: Any, column_of: Any, place_of: Any) -> Any:
    """The device function that writes the results of a thread, which are in memory of its own.

    `row_of` and `column_of` give how far the i-th row and the j-th column of a thread lie from its first ones, `place_of` where
    the result of both is.
    """
    target, finished, again = operation.target, operation.finish, operation.again

    @device
    def write(results, direct, a, b, bias, out, g, group, row, column, rows, columns, first, last, zero):
        for j in range(count_columns):
            beside = column + column_of(j)
            if beside < columns:
                offset, step = target(g, group, beside)
                for i in range(count_rows):
                    at = row + row_of(i)
                    if at < rows:
                        value = results[place_of(i, j)]
                        if direct:
                            value = again(a, b, g, group, at, beside, first, last, zero)
                        store(out, offset + at * step, finished(value, bias, g, group, at))

    return write
