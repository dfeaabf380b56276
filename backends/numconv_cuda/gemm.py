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

from .compiler import SIMULATED, Kernel, cuda, device, kernel, types
from .direct import finish, forward_chain, gradient_chain, weight_chain
from .elements import div, load, mod, muladd, outer, poke, quads, repeated, replaced, shifted, store, unpack
from .geometry import coordinates, offset_of, source_index, tap_offset

__all__ = ["FORWARD", "INPUT_GRAD", "TILES", "WEIGHT_GRAD", "Operation", "Tile", "product_kernel", "readers", "tiles_of"]

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
    TILES = (Tile(8, 8, 4, 4, 8), Tile(4, 8, 4, 4, 4))
else:
    TILES = (Tile(128, 128, 8, 8, 8), Tile(64, 128, 8, 8, 8), Tile(64, 64, 8, 4, 4), Tile(32, 128, 8, 4, 4))
"""The largest first."""
WIDE = 64
"""Numbers of a thread's tile in float32; two registers hold a float64, so that only tiles below this leave room for the rest."""


def tiles_of(dtype: str) -> tuple[Tile, ...]:
    """The tiles of numbers of an accumulation dtype."""
    return TILES if dtype == "float32" else tuple(tile for tile in TILES if tile.thread_rows * tile.thread_columns < WIDE)


# --- places: an offset and a position, of a column or of the inner dimension -----------------------------------------------------


@device
def window_start(g, group, column):
    """Of an output: the offset of its image and group in x, and where its window starts."""
    n, output = div(column, g.outputs), coordinates(mod(column, g.outputs), g.output)
    position = g.size
    for axis in range(len(g.size)):
        position = replaced(position, axis, output[axis] * g.stride[axis] - g.low[axis])
    return n * g.x.n + group * g.x.group, position


@device
def tap_of_x(g, term):
    """Of an input channel and a tap: the offset of the channel in x, and where the tap lies in a window."""
    c, tap = div(term, g.taps), coordinates(mod(term, g.taps), g.window)
    return c * g.x.channel, tap_position(g, tap)


@device
def tap_of_y(g, term):
    """Of an output channel and a tap: the offset of the channel in y, and where the tap lies in a window."""
    k, tap = div(term, g.taps), coordinates(mod(term, g.taps), g.window)
    return k * g.y.channel, tap_position(g, tap)


@device
def tap_position(g, tap):
    """Where a tap lies relative to the first position of its window."""
    position = g.size
    for axis in range(len(g.size)):
        position = replaced(position, axis, tap_offset(g, axis, tap[axis]))
    return position


@device
def image_position(g, group, column):
    """Of an element of x: the offset of its image and group in y, and its position counted from the low padding."""
    n, index = div(column, g.volume), coordinates(mod(column, g.volume), g.size)
    position = g.size
    for axis in range(len(g.size)):
        position = replaced(position, axis, index[axis] + g.low[axis])
    return n * g.y.n + group * g.y.group, position


@device
def from_x(x, g, first, second, zero):
    """The element of x at the sum of two places, zero on padding."""
    offset = first[0] + second[0]
    inside = True
    for axis in range(len(g.size)):
        index = source_index(first[1][axis] + second[1][axis], g.size[axis], g.mode)
        inside = inside and index >= 0
        offset += index * g.x.spatial[axis]
    value = zero
    if inside:
        value = load(x, offset, zero)
    return value


@device
def from_y(y, g, first, second, zero):
    """The element of y whose window has the tap `second` on the element of x `first`, zero where there is none."""
    offset = first[0] + second[0]
    inside = True
    for axis in range(len(g.size)):
        distance = first[1][axis] - second[1][axis]
        output = div(max(distance, 0), g.stride[axis])
        inside = inside and distance >= 0 and output * g.stride[axis] == distance and output < g.output[axis]
        offset += output * g.y.spatial[axis]
    value = zero
    if inside:
        value = load(y, offset, zero)
    return value


# --- the first factor ------------------------------------------------------------------------------------------------------------


@device
def weight_of_x(g, term):
    """The offset in w of an input channel and a tap."""
    return div(term, g.taps) * g.w.c + offset_of(coordinates(mod(term, g.taps), g.window), g.w.spatial)


@device
def weight_of_y(g, term):
    """The offset in w of an output channel and a tap."""
    return div(term, g.taps) * g.w.k + offset_of(coordinates(mod(term, g.taps), g.window), g.w.spatial)


@device
def output_term(g, term):
    """The offset in y of an output, counted through the batch."""
    return div(term, g.outputs) * g.y.n + offset_of(coordinates(mod(term, g.outputs), g.output), g.y.spatial)


# --- results: written from the tile, or computed directly where a first factor is not finite --------------------------------------


@device
def write_forward(value, direct, w, x, bias, y, g, group, row, column, first, last, zero):
    """A result of a convolution."""
    n, output = div(column, g.outputs), coordinates(mod(column, g.outputs), g.output)
    if direct:
        value = forward_chain(x, w, g, output, n * g.x.n + group * g.x.group, group * g.w.group + row * g.w.k, zero)
    target = n * g.y.n + group * g.y.group + row * g.y.channel + offset_of(output, g.y.spatial)
    store(y, target, finish(value, bias, group * g.per_k + row, g))


@device
def write_input_grad(value, direct, w, y, bias, x, g, group, row, column, first, last, zero):
    """A gradient of x, or a result of a transposed convolution."""
    n, index = div(column, g.volume), coordinates(mod(column, g.volume), g.size)
    if direct:
        value = gradient_chain(y, w, g, index, n * g.y.n + group * g.y.group, group * g.w.group + row * g.w.c, zero)
    target = n * g.x.n + group * g.x.group + row * g.x.channel + offset_of(index, g.x.spatial)
    store(x, target, finish(value, bias, group * g.per_c + row, g))


@device
def write_weight_grad(value, direct, y, x, bias, sums, g, group, row, column, first, last, zero):
    """A part of a gradient of w: sums[part, k, c, tap]."""
    c, tap = div(column, g.taps), mod(column, g.taps)
    if direct:
        from_y, from_x = group * g.y.group + row * g.y.channel, group * g.x.group + c * g.x.channel
        value = weight_chain(y, x, g, coordinates(tap, g.window), from_y, from_x, first, last, zero)
    store(sums, (group * g.per_k + row) * (g.per_c * g.taps) + column, value)


# --- the kernels -----------------------------------------------------------------------------------------------------------------


class Operation(NamedTuple):
    """What distinguishes the three operations: device functions for places and elements, see above."""

    name: str
    rows: Any
    first_term: Any
    columns: Any
    second_term: Any
    element: Any
    write: Any
    across: bool
    """Whether neighbouring threads gather the second factor along the columns, else along the inner dimension."""


@device
def weight_row(g, group, row):
    """The offset in w of an output channel."""
    return group * g.w.group + row * g.w.k


@device
def weight_column(g, group, row):
    """The offset in w of an input channel."""
    return group * g.w.group + row * g.w.c


@device
def output_row(g, group, row):
    """The offset in y of an output channel."""
    return group * g.y.group + row * g.y.channel


@device
def tap_column(g, group, column):
    """`tap_of_x` of a group."""
    offset, position = tap_of_x(g, column)
    return offset + group * g.x.group, position


@device
def window_term(g, term):
    """`window_start` without a group."""
    return window_start(g, 0, term)


FORWARD = Operation("forward", weight_row, weight_of_x, window_start, tap_of_x, from_x, write_forward, across=True)
INPUT_GRAD = Operation("input_grad", weight_column, weight_of_y, image_position, tap_of_y, from_y, write_input_grad, across=True)
WEIGHT_GRAD = Operation("weight_grad", output_row, output_term, tap_column, window_term, from_x, write_weight_grad, across=False)


def readers(operation: Operation, tile: Any) -> tuple[Any, Any, Any]:
    """The device functions by which a thread takes its elements of a slice: their places, of the first factor, of the second."""
    _, rows_of, first_term, columns_of, second_term, element, _, across = operation
    height, width, depth, threads = tile.rows, tile.columns, tile.depth, tile.threads
    loads_a, loads_b = height * depth // threads, width * depth // threads

    @device
    def spread(place, lines, along):
        """(line, depth) of the place-th element of a slice."""
        if along:
            return mod(place, lines), div(place, lines)
        return div(place, depth), mod(place, depth)

    @device
    def read_a(a, g, group, row, rows, term, last, thread, zero):
        """The elements of the first factor, and whether one of them is not finite."""
        found = repeated(zero, loads_a)
        odd = False
        for load_number in range(loads_a):
            line, inner = spread(thread + load_number * threads, height, False)
            value = zero
            if row + line < rows and term + inner < last:
                value = load(a, rows_of(g, group, row + line) + first_term(g, term + inner), zero)
            odd = odd or muladd(value, zero, zero) != zero
            found = replaced(found, load_number, value)
        return found, odd

    @device
    def read_b(b, g, group, column, columns, term, last, thread, zero):
        """The elements of the second factor."""
        found = repeated(zero, loads_b)
        for load_number in range(loads_b):
            line, inner = spread(thread + load_number * threads, width, across)
            place = columns_of(g, group, min(column + line, columns - 1))
            value = zero
            if column + line < columns and term + inner < last:
                value = element(b, g, place, second_term(g, term + inner), zero)
            found = replaced(found, load_number, value)
        return found

    return spread, read_a, read_b


def _putter(operation: Operation, tile: Tile, spread: Any) -> Any:
    """The device function that writes what a thread took of both slices to one of the two buffers."""
    height, width, depth, threads, across = tile.rows, tile.columns, tile.depth, tile.threads, operation.across
    loads_a, loads_b = height * depth // threads, width * depth // threads

    @device
    def put(slices_a, slices_b, next_a, next_b, buffer, thread):
        for load_number in range(loads_a):
            line, inner = spread(thread + load_number * threads, height, False)
            poke(slices_a, (buffer * depth + inner) * (height + GAP) + line, next_a[load_number])
        for load_number in range(loads_b):
            line, inner = spread(thread + load_number * threads, width, across)
            poke(slices_b, (buffer * depth + inner) * (width + GAP) + line, next_b[load_number])

    return put


def _multiplier(tile: Tile) -> Any:
    """The device function that adds the products of a buffer's slices to a thread's tile."""
    height, width, depth, thread_rows, thread_columns = tile
    row_step, column_step = 4 * (height // thread_rows), 4 * (width // thread_columns)
    pitch_a, pitch_b = height + GAP, width + GAP

    @device
    def step(acc, slices_a, slices_b, at_a, at_b, like_a, like_b):
        return outer(acc, quads(slices_a, at_a, row_step, like_a), quads(slices_b, at_b, column_step, like_b))

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


def _writer(operation: Operation, tile: Tile) -> Any:
    """The device function that writes a thread's tile, whose numbers are in memory of its own."""
    height, width, _, thread_rows, thread_columns = tile
    row_step, column_step = 4 * (height // thread_rows), 4 * (width // thread_columns)
    write = operation.write

    @device
    def write_tile(results, direct, a, b, bias, out, g, group, row, column, rows, columns, first, last, zero):
        for i in range(thread_rows):
            at = row + div(i, 4) * row_step + mod(i, 4)
            for j in range(thread_columns):
                beside = column + div(j, 4) * column_step + mod(j, 4)
                if at < rows and beside < columns:
                    write(results[i * thread_columns + j], direct, a, b, bias, out, g, group, at, beside, first, last, zero)

    return write_tile


@functools.cache
def product_kernel(operation: Operation, tile: Tile, dtype: str) -> Kernel:
    """The kernel of an operation with a tile of numbers of an accumulation dtype.

    It takes (a, b, bias, out, g, rows, columns, terms, length, zero) on a grid of column tiles, row tiles, and groups times parts,
    of which each sums `length` of the terms.
    """
    height, width, depth, thread_rows, thread_columns = tile
    number = getattr(types, dtype)
    size_a, size_b = 2 * depth * (height + GAP), 2 * depth * (width + GAP)
    accumulators, lanes = thread_rows * thread_columns, width // thread_columns
    spread, read_a, read_b = readers(operation, tile)
    put, multiply, write_tile = _putter(operation, tile, spread), _multiplier(tile), _writer(operation, tile)

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
        next_a, odd = read_a(a, g, group, row, rows, first, last, thread, zero)
        next_b = read_b(b, g, group, column, columns, first, last, thread, zero)
        put(slices_a, slices_b, next_a, next_b, 0, thread)
        cuda.syncthreads()
        buffer = 0
        for term in range(first, last, depth):
            more = term + depth < last
            if more:
                next_a, strange = read_a(a, g, group, row, rows, term + depth, last, thread, zero)
                next_b = read_b(b, g, group, column, columns, term + depth, last, thread, zero)
                odd = odd or strange
            acc = multiply(acc, slices_a, slices_b, buffer, own_row, own_column, zero)
            buffer = 1 - buffer
            if more:
                put(slices_a, slices_b, next_a, next_b, buffer, thread)
            cuda.syncthreads()
        direct = cuda.syncthreads_or(1 if odd else 0) != 0
        unpack(results, acc)
        out = shifted(out, part * rows * columns * g.groups)
        write_tile(results, direct, a, b, bias, out, g, group, row + own_row, column + own_column, rows, columns, first, last, zero)

    product.__name__ = product.__qualname__ = f"{operation.name}_{height}x{width}_{dtype}"
    return kernel(product)
