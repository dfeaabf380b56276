"""Convolution as a matrix product whose second factor is gathered on the way: the kernels.

Rows are the channels of the result within a group, columns its positions through the batch, and the inner dimension runs over the
channels and the taps that a result sums, in the strict order: channel, then kernel row-major. For a weight gradient rows are output
channels, columns are input channels and taps, and the inner dimension is the batch and the positions of y, split into parts.

A block computes a tile of the product. Its threads carry a slice of both factors at a time into shared memory, the next slice into
registers meanwhile, and each thread multiplies its own small tile out of registers (S. Chetlur et al., "cuDNN: Efficient primitives
for deep learning", arXiv:1410.0759, section 3; V. Volkov and J. Demmel, "Benchmarking GPUs to tune dense linear algebra", SC 2008).

Every term that lies on padding is a product with a zero. So that a factor that is not finite adds nothing there, a block that meets
one in its part of the first factor computes its results anew, term by term, and skips those.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from numconv.plugin import np_dtype

from .compiler import SIMULATED, Kernel, cuda, device, kernel, types
from .direct import finish, forward_chain, gradient_chain, weight_chain
from .elements import div, mod, outer, outer_second, poke, quads, repeated, replaced, shifted, store, unpack
from .gathering import Factor, Way, following, jump, reader, spread_of, strange, term_at
from .geometry import coordinates, offset_of, source_index, tap_offset

__all__ = ["FORWARD", "INPUT_GRAD", "TILES", "WEIGHT_GRAD", "Operation", "Tile", "product_kernel", "slices_of", "tiles_of",
           "writer"]  # fmt: skip

ALIGNMENT = None if SIMULATED else 16
"""Of shared memory, for loads of four numbers; the simulator knows none."""
GAP = 4
"""Numbers between the rows of a slice in shared memory, so that writing a column of it meets different banks."""


class Tile(NamedTuple):
    """The part of the product that a block computes, the depth of a slice, and the part of a thread; all multiples of 4."""

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return (self.rows // self.thread_rows) * (self.columns // self.thread_columns)


TILES: tuple[Tile, ...]
if SIMULATED:  # a thread of the simulator is one of Python's
    TILES = (Tile(32, 4, 4, 8, 4), Tile(16, 4, 4, 4, 4))
else:
    TILES = (Tile(128, 128, 8, 8, 8), Tile(64, 128, 8, 8, 8), Tile(64, 64, 8, 4, 4), Tile(32, 128, 8, 4, 4))
"""The largest first. A block has a thread for each column at least."""
REGISTERS = 64
"""Registers for a thread's tile, which leave room for the rest; the largest tile has as many numbers of 32 bits."""


def tiles_of(dtype: str) -> tuple[Tile, ...]:
    """The tiles of numbers of an accumulation dtype, the largest first."""
    each = np_dtype(dtype).itemsize // 4
    return tuple(tile for tile in TILES if tile.thread_rows * tile.thread_columns * each <= REGISTERS)


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
    ways: tuple[Way, Way]
    """How the factors are read where nothing is known of their memory."""
    second_leads: bool
    """Whether a complex product is that of the second factor by the first, which rounds otherwise than the contrary."""


FORWARD = Operation(
    "forward", Factor(weight_row, next_row, weight_of_x, conjugate=False),
    Factor(window_start, next_window, under_tap, conjugate=False), taps_of, window_sizes, output_column, finished_y,
    forward_again, (Way(across=False), Way(across=True)), second_leads=True,
)  # fmt: skip
INPUT_GRAD = Operation(
    "input_grad", Factor(weight_column, next_row, weight_of_y, conjugate=True),
    Factor(image_position, next_position, above_tap, conjugate=False), taps_of, window_sizes, image_column, finished_x,
    input_grad_again, (Way(across=False), Way(across=True)), second_leads=True,
)  # fmt: skip
WEIGHT_GRAD = Operation(
    "weight_grad", Factor(output_row, next_row, output_of, conjugate=False),
    Factor(tap_column, next_column, under_column, conjugate=True), outputs_of, output_sizes, sums_column, part_of_sum,
    weight_grad_again, (Way(across=False), Way(across=False)), second_leads=False,
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


def _putter(tile: Tile, slices: Slices) -> Any:
    """The device function that writes what a thread took of both slices to one of the two buffers."""
    height, width, depth, threads = tile.rows, tile.columns, tile.depth, tile.threads
    loads_a, loads_b = height * depth // threads, width * depth // threads
    spread_a, spread_b = slices.spread_first, slices.spread_second

    @device
    def put(slices_a, slices_b, next_a, next_b, buffer, thread):
        for number in range(loads_a):
            line, inner = spread_a(thread, number)
            poke(slices_a, (buffer * depth + inner) * (height + GAP) + line, next_a[number])
        for number in range(loads_b):
            line, inner = spread_b(thread, number)
            poke(slices_b, (buffer * depth + inner) * (width + GAP) + line, next_b[number])

    return put


def _multiplier(operation: Operation, tile: Tile) -> Any:
    """The device function that adds the products of a buffer's slices to a thread's tile."""
    height, width, depth, thread_rows, thread_columns = tile
    row_step, column_step = 4 * (height // thread_rows), 4 * (width // thread_columns)
    pitch_a, pitch_b = height + GAP, width + GAP
    product = outer_second if operation.second_leads else outer

    @device
    def step(acc, slices_a, slices_b, at_a, at_b, like_a, like_b):
        return product(acc, quads(slices_a, at_a, row_step, like_a), quads(slices_b, at_b, column_step, like_b))

    @device
    def multiply(acc, slices_a, slices_b, buffer, own_row, own_column, zero):
        like_a, like_b = repeated(zero, thread_rows), repeated(zero, thread_columns)
        at_a, at_b = buffer * depth * pitch_a + own_row, buffer * depth * pitch_b + own_column
        for _ in range(depth // 4):  # the compiler does not unroll so long a body itself
            acc = step(acc, slices_a, slices_b, at_a, at_b, like_a, like_b)
            acc = step(acc, slices_a, slices_b, at_a + pitch_a, at_b + pitch_b, like_a, like_b)
            acc = step(acc, slices_a, slices_b, at_a + 2 * pitch_a, at_b + 2 * pitch_b, like_a, like_b)
            acc = step(acc, slices_a, slices_b, at_a + 3 * pitch_a, at_b + 3 * pitch_b, like_a, like_b)
            at_a, at_b = at_a + 4 * pitch_a, at_b + 4 * pitch_b
        return acc

    return multiply


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


def _writer(operation: Operation, tile: Tile) -> Any:
    height, width, _, thread_rows, thread_columns = tile
    row_step, column_step = 4 * (height // thread_rows), 4 * (width // thread_columns)

    @device
    def row_of(i):
        return div(i, 4) * row_step + mod(i, 4)

    @device
    def column_of(j):
        return div(j, 4) * column_step + mod(j, 4)

    @device
    def place_of(i, j):
        return i * thread_columns + j

    return writer(operation, thread_rows, thread_columns, row_of, column_of, place_of)


@functools.cache
def product_kernel(operation: Operation, tile: Tile, dtype: str, ways: tuple[Way, Way]) -> Kernel:
    """The kernel of an operation with a tile of numbers of an accumulation dtype.

    It takes (a, b, bias, out, g, rows, columns, terms, length, zero) on a grid of column tiles, row tiles, and groups times parts,
    of which each sums `length` of the terms.
    """
    height, width, depth, thread_rows, thread_columns = tile
    number = getattr(types, dtype)
    size_a, size_b = 2 * depth * (height + GAP), 2 * depth * (width + GAP)
    accumulators, lanes, count_a = thread_rows * thread_columns, width // thread_columns, height * depth // tile.threads
    slices = slices_of(operation, tile, ways)
    begin, read_a, read_b, put = slices.begin, slices.first, slices.second, _putter(tile, slices)
    multiply, write = _multiplier(operation, tile), _writer(operation, tile)

    def product(a, b, bias, out, g, rows, columns, terms, length, zero):
        slices_a = cuda.shared.array(size_a, number, ALIGNMENT)
        slices_b = cuda.shared.array(size_b, number, ALIGNMENT)
        results = cuda.local.array(accumulators, number)
        thread = cuda.threadIdx.x
        row, column = cuda.blockIdx.y * height, cuda.blockIdx.x * width
        group, part = mod(cuda.blockIdx.z, g.groups), div(cuda.blockIdx.z, g.groups)
        first = part * length
        last = min(first + length, terms)
        own_row, own_column = div(thread, lanes) * 4, mod(thread, lanes) * 4
        acc = repeated(zero, accumulators)
        place_a, cursor_a, place_b, cursor_b = begin(g, group, row, column, first, thread)
        next_a, cursor_a = read_a(a, g, place_a, cursor_a, row, rows, first, last, thread, zero)
        next_b, cursor_b = read_b(b, g, place_b, cursor_b, column, columns, first, last, thread, zero)
        odd = strange(next_a, count_a, zero)
        put(slices_a, slices_b, next_a, next_b, 0, thread)
        cuda.syncthreads()
        buffer = 0
        for term in range(first, last, depth):
            more = term + depth < last
            if more:
                next_a, cursor_a = read_a(a, g, place_a, cursor_a, row, rows, term + depth, last, thread, zero)
                next_b, cursor_b = read_b(b, g, place_b, cursor_b, column, columns, term + depth, last, thread, zero)
            acc = multiply(acc, slices_a, slices_b, buffer, own_row, own_column, zero)
            buffer = 1 - buffer
            if more:
                odd = odd or strange(next_a, count_a, zero)
                put(slices_a, slices_b, next_a, next_b, buffer, thread)
            cuda.syncthreads()
        direct = cuda.syncthreads_or(1 if odd else 0) != 0
        unpack(results, acc)
        out = shifted(out, part * rows * columns * g.groups)
        write(results, direct, a, b, bias, out, g, group, row + own_row, column + own_column, rows, columns, first, last, zero)

    product.__name__ = product.__qualname__ = f"{operation.name}_{height}x{width}_{dtype}_{ways[0]}_{ways[1]}"
    return kernel(product)
