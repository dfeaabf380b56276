"""The largest elements of windows and their places, for every dtype, a row of results at a time; and the gradient.

The gradient adds up the windows that an element won in the row-major order of y.
"""

from __future__ import annotations

import math
from typing import Any

from numba import types
from numba.extending import overload

from numconv_numba.compiling.compiler import Address, Tag, helper, kernel
from numconv_numba.elements import INT64, itemsize, memory, numbers, release, scratch
from numconv_numba.geometry import DILATION, DIMS, LOW, OPTION, OUTPUT, PARTS, SIZE, STRIDE, WINDOW, part, span
from numconv_numba.rows import outer_size
from numconv_numba.scalar import add, address, inlined, is_null, load, pointer, store, wide_vectors, zero
from numconv_numba.threads import parallel_for

from .window_rows import (
    PART,
    ROW,
    chunk_of,
    fill,
    flat_step,
    linked_rows,
    part_of,
    place_of,
    row_of,
    volume,
    volume_offset,
    write_row,
)

__all__ = ["max_pool", "max_pool_backward"]


def lowest(number: Any) -> Any:
    """The lowest value of a number's type."""
    raise NotImplementedError("for kernels only")


@overload(lowest)
def _lowest(number):
    least = number(number.minval) if isinstance(number, types.Integer) else number(-math.inf)
    return lambda number: least


@helper
def keep_largest(best, where, x, count, step, position, advance, xt, at):
    """best[q] = the larger of best[q] and x[q], NaN if either is.

    Unless `where` is null, it gets the positions of what was kept, -1 before the first: the first NaN, else the first of equals.
    """
    inlined()
    if is_null(where):
        for q in range(count):
            new, old = load(x + q * step, xt, at), load(best + q * itemsize(at), at)
            store(best + q * itemsize(at), new if (new > old) | (new != new) else old, at)
    else:
        for q in range(count):
            new, old, holder = load(x + q * step, xt, at), load(best + q * itemsize(at), at), load(where + q * 8, INT64)
            wins = (holder < 0) | (new > old) | ((new != new) & (old == old))
            store(best + q * itemsize(at), new if wins else old, at)
            store(where + q * 8, position + q * advance if wins else holder, INT64)


@helper
def find_largest(best, where, x, flats, offsets, first, last, g, xt, at):
    """The largest elements in the windows first..last of a row, and their flat positions unless `where` is null."""
    wide_vectors()
    axis = g[DIMS] - 1
    size, stride, step = g[part(g, SIZE) + axis], g[part(g, STRIDE) + axis], g[part(g, PARTS) + 3 + axis]
    fill(best, last - first, lowest(zero(at)), at)
    if not is_null(where):
        fill(where, last - first, -1, INT64)
    for tap in range(outer_size(g, WINDOW)):
        if flats[tap] < 0:
            continue
        for r in range(g[part(g, WINDOW) + axis]):
            offset = r * g[part(g, DILATION) + axis] - g[part(g, LOW) + axis]
            low, high = span(first, last, stride, offset, size)
            source, target = x + (offsets[tap] + (low * stride + offset) * step), best + (low - first) * itemsize(at)
            position, advance = flats[tap], 0
            if not g[OPTION]:
                position, advance = flats[tap] * size + low * stride + offset, stride
            held = address(0) if is_null(where) else where + (low - first) * 8
            if stride * step == itemsize(xt):
                keep_largest(target, held, source, high - low, itemsize(xt), position, advance, xt, at)
            elif stride * step == 2 * itemsize(xt):
                keep_largest(target, held, source, high - low, 2 * itemsize(xt), position, advance, xt, at)
            else:
                keep_largest(target, held, source, high - low, stride * step, position, advance, xt, at)


@helper
def _max_pool(begin, end, args):
    xt, yt, at, x, indices, y, g = args
    axis, taps = g[DIMS] - 1, outer_size(g, WINDOW)
    xs, step, places_step = part(g, PARTS), g[part(g, PARTS + 2) + 3 + axis], g[part(g, PARTS + 1) + 3 + axis]
    buffer = scratch(ROW * (itemsize(at) + 8))
    best = memory(buffer)
    where = address(0) if is_null(indices) else best + ROW * itemsize(at)
    lists = scratch(16 * taps)
    flats, offsets = numbers(lists, 0), numbers(lists, taps)
    for item in range(begin, end):
        n, channel, row, first, last = chunk_of(g, item, OUTPUT)
        linked_rows(g, row, False, flats, offsets)
        find_largest(best, where, x + (n * g[xs] + channel * g[xs + 1]), flats, offsets, first, last, g, xt, at)
        write_row(best, row_of(y, g, n, channel, row, OUTPUT, PARTS + 2) + first * step, last - first, step, yt, at)
        if not is_null(indices):
            target = row_of(indices, g, n, channel, row, OUTPUT, PARTS + 1) + first * places_step
            write_row(where, target, last - first, places_step, INT64, INT64)
    release(buffer)
    release(lists)


@kernel
def max_pool(
    xt: Tag, yt: Tag, at: Tag, region: int, workers: int, items: int, x: Address, indices: Address, y: Address, g: Address
) -> None:
    """y, and indices unless null, from x: an item is a part of a row of y."""
    parallel_for(region, workers, items, _max_pool, (xt, yt, at, x, indices, y, pointer(g, INT64)))


@helper
def touches(flats, g, first, last):
    """Whether windows with these rows may hold positions first..last, counted over all axes of x."""
    size = g[part(g, SIZE) + g[DIMS] - 1]
    for tap in range(outer_size(g, WINDOW)):
        if flats[tap] >= 0 and flats[tap] * size < last and (flats[tap] + 1) * size > first:
            return True
    return False


@helper
def add_won(acc, where, where_step, y, count, step, begin, first, last, g, xt, at):
    """Add the gradients of a row of windows, from the one at `begin`, to those of positions first..last that are their winners."""
    for q in range(count):
        i = place_of(g, load(where + q * where_step, INT64), begin + q) - first
        inside = 0 <= i < last - first
        place = acc + (i if inside else 0) * itemsize(at)
        store(place, add(load(place, at), load(y + q * step, xt, at) if inside else zero(at)), at)


@helper
def _max_pool_backward(begin, end, args):
    xt, yt, at, y, x, indices, grad, g = args
    axis, taps, step = g[DIMS] - 1, outer_size(g, WINDOW), flat_step(g, SIZE, PARTS + 1)
    xs, steps, length = part(g, PARTS), part(g, PARTS + 1), g[part(g, OUTPUT) + axis]
    y_step, where_step = g[part(g, PARTS + 2) + 3 + axis], 8 if is_null(indices) else g[xs + 3 + axis]
    buffer = scratch(min(PART, volume(g, SIZE)) * itemsize(at) + ROW * (itemsize(at) + 8))
    lists = scratch(16 * taps)
    flats, offsets = numbers(lists, 0), numbers(lists, taps)
    where = memory(buffer)
    best, acc = where + ROW * 8, where + ROW * (itemsize(at) + 8)
    for item in range(begin, end):
        n, channel, first, last = part_of(g, item)
        fill(acc, last - first, zero(at), at)
        for row in range(outer_size(g, OUTPUT)):
            source = row_of(y, g, n, channel, row, OUTPUT, PARTS + 2)
            if not is_null(indices):
                places = row_of(indices, g, n, channel, row, OUTPUT, PARTS)
                add_won(acc, places, where_step, source, length, y_step, 0, first, last, g, xt, at)
                continue
            linked_rows(g, row, False, flats, offsets)
            if not touches(flats, g, first, last):
                continue
            for q in range(0, length, ROW):
                count, x_c = min(ROW, length - q), x + (n * g[xs] + channel * g[xs + 1])
                find_largest(best, where, x_c, flats, offsets, q, q + count, g, xt, at)
                add_won(acc, where, 8, source + q * y_step, count, y_step, q, first, last, g, xt, at)
        target = grad + (n * g[steps] + channel * g[steps + 1])
        if step:
            write_row(acc, target + first * step, last - first, step, yt, at)
        else:
            for i in range(last - first):
                offset = volume_offset(g, first + i, 0, SIZE, PARTS + 1)
                store(target + offset, load(acc + i * itemsize(at), at), yt)
    release(buffer)
    release(lists)


@kernel
def max_pool_backward(
    xt: Tag, yt: Tag, at: Tag, region: int, workers: int, items: int,
    y: Address, x: Address, indices: Address, grad: Address, g: Address,
) -> None:  # fmt: skip
    """The gradient of x from that of y, and the winners' indices, or x if these are null: an item is a part of a channel."""
    parallel_for(region, workers, items, _max_pool_backward, (xt, yt, at, y, x, indices, grad, pointer(g, INT64)))
