"""How the threads of a block take slices of the two factors of a matrix product from global memory.

A factor has lines (rows of the first, columns of the second) and, along each, the terms of the inner dimension: a number of volumes
(channels or images) and a position in one (a tap or an output). No place is divided into those more than once: a `Cursor` moves
from term to term by additions with carries.

A slice is spread over the threads in one of two ways. *Along* the terms, a thread stays at one place of the inner dimension and
steps through lines; *across*, it stays on one line and steps through terms. Where neighbours in memory are certain to be aligned
(`Way.wide` > 1), a thread loads up to 16 bytes at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from numconv.plugin import np_dtype

from .compiler import SIMULATED, device
from .direct import forward_chain, gradient_chain, weight_chain
from .elements import conj, div, load, load_wide, mod, muladd, repeated, replaced, store
from .gemm import (
    finished_x,
    finished_y,
    image_column,
    output_column,
    output_sizes,
    outputs_of,
    part_of_sum,
    sums_column,
    taps_of,
    window_sizes,
)
from .geometry import Geometry, coordinates, offset_of, source_index, tap_offset

__all__ = [
    "FORWARD",
    "INPUT_GRAD",
    "WEIGHT_GRAD",
    "Cursor",
    "Factor",
    "Operation",
    "Slices",
    "Way",
    "following",
    "jump",
    "reader",
    "slices_of",
    "spread_of",
    "strange",
    "term_at",
    "ways_of",
    "widest",
    "writer",
]


class Way(NamedTuple):
    """How a slice is spread over threads, and how many elements, neighbours in memory, a thread loads at once."""

    across: bool
    wide: int = 1

    def __str__(self) -> str:
        return f"{'x' if self.across else ''}{self.wide}"


class Factor(NamedTuple):
    """Device functions by which elements of a factor are found."""

    start: Callable[..., Any]
    """(g, group, line, step) -> the place of a line, from which that of another, `step` further, may be found."""
    moved: Callable[..., Any]
    """(g, place) -> the place `step` lines further."""
    at: Callable[..., Any]
    """(g, place, volumes, position) -> whether there is an element, and its offset."""
    conjugate: bool
    """Whether complex elements are conjugated."""


class Cursor(NamedTuple):
    """A term, and by how much it moves: numbers of volumes, and positions in one."""

    volumes: Any
    position: Any
    more_volumes: Any
    more: Any


@device
def term_at(index, step, volume, sizes):
    """The cursor at an index, which moves by `step`."""
    return Cursor(
        div(index, volume), coordinates(mod(index, volume), sizes), div(step, volume), coordinates(mod(step, volume), sizes)
    )


@device
def following(cursor, sizes):
    """The cursor moved by its step."""
    found = cursor.position
    carry = 0
    for axis in range(len(sizes) - 1, -1, -1):
        value = cursor.position[axis] + cursor.more[axis] + carry
        carry = 1 if value >= sizes[axis] else 0
        found = replaced(found, axis, value - sizes[axis] if carry else value)
    return Cursor(cursor.volumes + cursor.more_volumes + carry, found, cursor.more_volumes, cursor.more)


@device
def strange(values, count, zero):
    """Whether one of the values is not finite."""
    odd = False
    for place in range(count):
        odd = odd or muladd(values[place], zero, zero) != zero
    return odd


def jump(way: Way, lines: int, depth: int, threads: int) -> int:
    """By how many terms a cursor moves: from slice to slice along the terms, from load to load across them."""
    return threads * way.wide // lines if way.across else depth


def spread_of(way: Way, lines: int, depth: int, threads: int) -> Any:
    """The device function that gives the line and the term within a slice of the number-th element of a thread."""
    across, wide = way
    if across:
        runs = lines // wide
        step = threads // runs

        @device
        def spread(thread, number):
            return mod(thread, runs) * wide + mod(number, wide), div(thread, runs) + div(number, wide) * step
    else:
        runs = depth // wide
        step = threads // runs

        @device
        def spread(thread, number):
            return div(thread, runs) + div(number, wide) * step, mod(thread, runs) * wide + mod(number, wide)

    return spread


def _fetcher(factor: Factor, wide: int) -> Any:
    """The device function that loads `wide` neighbours, or zeros where there is no element."""
    at, factor_of = factor.at, conj if factor.conjugate else _unchanged

    @device
    def fetch_one(source, g, place, cursor, zero):
        inside, offset = at(g, place, cursor.volumes, cursor.position)
        value = zero
        if inside:
            value = factor_of(load(source, offset, zero))
        return repeated(value, 1)

    @device
    def fetch_neighbours(source, g, place, cursor, zero):
        inside, offset = at(g, place, cursor.volumes, cursor.position)
        values = repeated(zero, wide)
        if inside:
            values = load_wide(source, offset, values)
        return values

    return fetch_neighbours if wide > 1 else fetch_one


@device
def _unchanged(value):
    return value


def reader(factor: Factor, way: Way, sizes_of: Any, lines: int, depth: int, threads: int) -> Any:
    """The device function by which a thread takes its elements of a slice.

    It takes (source, g, place, cursor, line, all_lines, term, last, thread, zero), where `place` is that of the thread's first
    line, and gives the elements, in the order of `spread_of`, and the cursor of the next slice.
    """
    across, wide = way
    count = lines * depth // threads
    runs = (lines if across else depth) // wide
    step = threads // runs
    moved, fetch = factor.moved, _fetcher(factor, wide)

    @device
    def along_terms(source, g, place, cursor, line, all_lines, term, last, thread, zero):
        found = repeated(zero, count)
        here = line + div(thread, runs)
        if term + mod(thread, runs) * wide < last:
            for number in range(count // wide):
                if here + number * step < all_lines:
                    values = fetch(source, g, place, cursor, zero)
                    for part in range(wide):
                        found = replaced(found, number * wide + part, values[part])
                place = moved(g, place)
        return found, following(cursor, sizes_of(g))

    @device
    def across_terms(source, g, place, cursor, line, all_lines, term, last, thread, zero):
        found = repeated(zero, count)
        here = term + div(thread, runs)
        there = line + mod(thread, runs) * wide < all_lines
        for number in range(count // wide):
            if there and here + number * step < last:
                values = fetch(source, g, place, cursor, zero)
                for part in range(wide):
                    found = replaced(found, number * wide + part, values[part])
            cursor = following(cursor, sizes_of(g))
        return found, cursor

    return across_terms if across else along_terms


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


BYTES = 16
"""Of the widest load."""
WORD = 4
"""Bytes of the least."""


def ways_of(operation: Operation, tile: Any, g: Geometry, pointers: Sequence[Any]) -> tuple[Way, Way]:
    """How both factors of a product are read, by where their elements lie.

    Parameters
    ----------
    operation : Operation
    tile : Tile or TensorTile
    g : Geometry
    pointers : sequence
        Of the two factors first.
    """
    find = {FORWARD.name: _forward, INPUT_GRAD.name: _input_grad}.get(operation.name, _weight_grad)
    lines = (tile.rows, tile.columns)
    counts = [_most(pointer, count * tile.depth // tile.threads) for pointer, count in zip(pointers[:2], lines, strict=True)]
    found = find(g, *counts)
    return tuple(plain if way is None else way for plain, way in zip(operation.ways, found, strict=True))  # type: ignore[return-value]


def widest(operation: Operation, tile: Any, dtype: str) -> Iterator[tuple[Way, Way]]:
    """The pairs of ways with the widest loads there are: for arrays with channels first, and with channels last."""
    lines = (tile.rows, tile.columns)
    wide = [_wide(dtype, count * tile.depth // tile.threads) for count in lines]
    along, across = ([Way(side, each) for each in wide] for side in (False, True))
    if operation.name == FORWARD.name:
        yield along[0], across[1]
        yield along[0], along[1]
    elif operation.name == INPUT_GRAD.name:
        yield across[0], across[1]
        yield across[0], along[1]
    else:
        yield along[0], along[1]
        yield across[0], across[1]
        yield along[0], operation.ways[1]


def _wide(dtype: str, loads: int) -> int:
    """The elements of the widest load of a thread that takes so many of a slice; less than 4 bytes are not worth one."""
    known = np_dtype(dtype)
    found = 1 if known.kind == "c" else math.gcd(BYTES // known.itemsize, loads)
    return found if found * known.itemsize >= WORD else 1


def _most(pointer: Any, loads: int) -> int:
    """The elements of a load of a thread that takes so many of a slice; 1 where the first element is not aligned."""
    if SIMULATED:
        return min(4, loads)  # a pointer there has no address, and a load says when it is not aligned
    return 1 if pointer.address % BYTES else _wide(pointer.dtype, loads)


def _whole(wide: int, *steps: Any) -> bool:
    """Whether runs of so many elements are whole and aligned wherever these steps lead."""
    return wide > 1 and all(int(step) % wide == 0 for step in steps)


def _dense(sizes: Sequence[Any], steps: Sequence[Any]) -> bool:
    """Whether a volume is contiguous, row-major."""
    expected = 1
    for size, step in zip(reversed(sizes), reversed(steps), strict=True):
        if size > 1 and step != expected:
            return False
        expected *= int(size)
    return True


def _in_place(g: Geometry) -> bool:
    """Whether each output of a kernel of one tap lies where its element of x does."""
    return g.size == g.output and set(g.stride) == {1} and not any(g.low)


def _forward(g: Geometry, wide_w: int, wide_x: int) -> tuple[Way | None, Way | None]:
    w, x, first, second = g.w, g.x, None, None
    channels_follow = g.per_c == 1 or w.c == g.taps
    if channels_follow and _dense(g.window, w.spatial) and _whole(wide_w, w.k, w.group, g.per_c * g.taps):
        first = Way(across=False, wide=wide_w)
    if g.taps == 1:
        if _in_place(g) and _dense(g.size, x.spatial) and _whole(wide_x, x.n, x.group, x.channel, g.outputs):
            second = Way(across=True, wide=wide_x)
        elif x.channel == 1 and _whole(wide_x, x.n, x.group, *x.spatial, g.per_c):
            second = Way(across=False, wide=wide_x)
    return first, second


def _input_grad(g: Geometry, wide_w: int, wide_y: int) -> tuple[Way | None, Way | None]:
    w, y, first, second = g.w, g.y, None, None
    if g.taps == 1:
        if w.c == 1 and _whole(wide_w, w.k, w.group, g.per_c):
            first = Way(across=True, wide=wide_w)
        if _in_place(g) and _dense(g.output, y.spatial) and _whole(wide_y, y.n, y.group, y.channel, g.volume):
            second = Way(across=True, wide=wide_y)
        elif y.channel == 1 and _whole(wide_y, y.n, y.group, *y.spatial, g.per_k):
            second = Way(across=False, wide=wide_y)
    return first, second


def _weight_grad(g: Geometry, wide_y: int, wide_x: int) -> tuple[Way | None, Way | None]:
    x, y, first, second = g.x, g.y, None, None
    if _dense(g.output, y.spatial) and _whole(wide_y, y.n, y.group, y.channel, g.outputs):
        first = Way(across=False, wide=wide_y)
    elif y.channel == 1 and _whole(wide_y, y.n, y.group, *y.spatial, g.per_k):
        first = Way(across=True, wide=wide_y)
    if g.taps == 1:
        if _in_place(g) and _dense(g.size, x.spatial) and _whole(wide_x, x.n, x.group, x.channel, g.outputs):
            second = Way(across=False, wide=wide_x)
        elif x.channel == 1 and _whole(wide_x, x.n, x.group, *x.spatial, g.per_c):
            second = Way(across=True, wide=wide_x)
    return first, second
