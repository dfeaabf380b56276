"""Max, average and power-mean pooling and their gradients for every problem, a row of results at a time.

Sums run over the taps of a window in row-major order, from zero, in the accumulation dtype; power means in float64. The gradient
of max pooling adds up the windows that an element won in the row-major order of y. So every accuracy level gets the same bits.

Rows run along the last spatial axis, or along the channels where these are neighbours in memory: the channels are then one more
spatial axis, with a window of one tap, and the vector's OPTION is 1.

The vectors come to the kernels as addresses, not as arrays: these would be counted as references by each helper that they are
passed to, which takes longer than a short row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from numconv.plugin import POOL_OPS, Implementation, PoolProblem, Verdict, WindowProblem, np_dtype

from .compiler import Address, Tag, helper, kernel
from .elements import INT64, itemsize, keep, memory, numbers, scratch
from .geometry import (
    DILATION,
    DIMS,
    GROUPS,
    LOW,
    MODE,
    OPTION,
    OUTPUT,
    PARTS,
    SIZE,
    STRIDE,
    WINDOW,
    Vectors,
    channel_strides,
    part,
    source_index,
    span,
)
from .places import check_places
from .rows import outer_offset, outer_size
from .scalar import add, address, is_null, load, pointer, store, wide_vectors, zero
from .threads import MAX_THREADS, parallel_for, run

__all__ = [
    "PART",
    "ROW",
    "Pool",
    "Rows",
    "axis_counts",
    "chunk_of",
    "fill",
    "flat_step",
    "linked",
    "linked_rows",
    "part_of",
    "place_of",
    "row_of",
    "volume",
    "volume_offset",
    "volume_parts",
    "window_parts",
    "write_row",
]

ROW = 1024
"""Results computed together: a few such rows fit the first-level cache."""
PART = 1 << 18
"""Positions of a channel that one work item fills: that many sums fit the second-level cache."""
CHANNELS = 16
"""Fewer channels than this are too short a row."""
FLOAT64 = Tag("float64")
AVERAGE = Tag(0)


# --- geometry ------------------------------------------------------------------------------------------------------------------


@helper
def chunk_of(g, item, which):
    """(n, channel, outer index, first, last) of a work item: a part of a row of y (`which` = OUTPUT) or of x (SIZE)."""
    length, rows = g[part(g, which) + g[DIMS] - 1], outer_size(g, which)
    chunks = -(-length // ROW)
    first, line = item % chunks * ROW, item // chunks
    plane = line // rows
    return plane // g[GROUPS], plane % g[GROUPS], line % rows, first, min(first + ROW, length)


@helper
def row_of(array, g, n, channel, row, which, strides):
    """The address of a row, by its flat index over the outer axes, in the array with these sizes and strides."""
    steps = part(g, strides)
    return array + (n * g[steps] + channel * g[steps + 1] + outer_offset(g, row, which, strides))


@helper
def linked(g, axis, index, tap, back):
    """The index of x that a tap reads for an output, or, `back`, the output whose tap reads an index of x; -1 if there is none."""
    offset, stride = tap * g[part(g, DILATION) + axis] - g[part(g, LOW) + axis], g[part(g, STRIDE) + axis]
    if not back:
        return source_index(index * stride + offset, g[part(g, SIZE) + axis], g[MODE])
    output = (index - offset) // stride
    return output if output * stride == index - offset and 0 <= output < g[part(g, OUTPUT) + axis] else -1


@helper
def linked_rows(g, index, back, flats, offsets):
    """For every outer tap the row of x that it reads for an outer output, as flat index (-1: none) and byte offset.

    With `back` the row of y that has the tap on an outer index of x. The taps of each axis multiply what was found before it.
    """
    here, there, steps = (SIZE, OUTPUT, PARTS + 2) if back else (OUTPUT, SIZE, PARTS)
    rest, filled = outer_size(g, here), 1
    flats[0] = offsets[0] = 0
    for axis in range(g[DIMS] - 1):
        window, size, step = g[part(g, WINDOW) + axis], g[part(g, there) + axis], g[part(g, steps) + 3 + axis]
        rest //= g[part(g, here) + axis]
        own = index // rest % g[part(g, here) + axis]
        for known in range(filled - 1, -1, -1):
            flat, offset = flats[known], offsets[known]
            for tap in range(window - 1, -1, -1):
                found = linked(g, axis, own, tap, back)
                flats[known * window + tap] = flat * size + found if flat >= 0 and found >= 0 else -1
                offsets[known * window + tap] = offset + found * step
        filled *= window


@helper
def reach(g, first, last):
    """The outputs of a row whose windows may touch the indices first..last of a row of x."""
    axis = g[DIMS] - 1
    stride, low = g[part(g, STRIDE) + axis], g[part(g, LOW) + axis]
    extent = g[part(g, DILATION) + axis] * (g[part(g, WINDOW) + axis] - 1)
    begin, end = -((extent - first - low) // stride), (last - 1 + low) // stride + 1
    return max(begin, 0), min(end, g[part(g, OUTPUT) + axis])


@helper
def volume(g, which):
    """The number of positions of a channel."""
    return outer_size(g, which) * g[part(g, which) + g[DIMS] - 1]


@helper
def flat_step(g, which, strides):
    """The bytes between neighbours of a channel, taken row-major; 0 if they are not everywhere the same."""
    sizes, steps = part(g, which), part(g, strides) + 3
    for axis in range(g[DIMS] - 1):
        if g[steps + axis] != g[steps + axis + 1] * g[sizes + axis + 1]:
            return 0
    return g[steps + g[DIMS] - 1]


@helper
def volume_offset(g, position, step, which, strides):
    """The byte offset of a flat position in a channel; `step` comes from `flat_step`."""
    if step:
        return position * step
    axis = g[DIMS] - 1
    last = g[part(g, which) + axis]
    return outer_offset(g, position // last, which, strides) + position % last * g[part(g, strides) + 3 + axis]


@helper
def place_of(g, index, q):
    """The position, counted over all axes of x, of an index into the spatial volume that belongs to result q of a row."""
    return index * g[part(g, SIZE) + g[DIMS] - 1] + q if g[OPTION] else index


@helper
def part_of(g, item):
    """(n, channel, first, last) of a work item: a part of the positions of a channel of x."""
    parts = -(-volume(g, SIZE) // PART)
    first, plane = item % parts * PART, item // parts
    return plane // g[GROUPS], plane % g[GROUPS], first, min(first + PART, volume(g, SIZE))


# --- rows ----------------------------------------------------------------------------------------------------------------------


@helper
def fill(row, count, number, at):
    """Set a contiguous row to a number."""
    wide_vectors()
    for q in range(count):
        store(row + q * itemsize(at), number, at)


def rounded(number: Any, dtype: Any) -> Any:
    """What `store` can round to a dtype: halves are rounded from float32."""
    raise NotImplementedError("for kernels only")


@overload(rounded)
def _rounded(number, dtype):
    if dtype.value in ("float16", "bfloat16"):
        return lambda number, dtype: np.float32(number)
    return lambda number, dtype: number


@helper
def write_row(row, y, count, step, yt, at):
    """Copy a contiguous row of sums to an array."""
    wide_vectors()
    if step == itemsize(yt):
        for q in range(count):
            store(y + q * itemsize(yt), rounded(load(row + q * itemsize(at), at), yt), yt)
    else:
        for q in range(count):
            store(y + q * step, rounded(load(row + q * itemsize(at), at), yt), yt)


@helper
def add_row(acc, row, first, last, begin, end, offset, stride, at):
    """acc[q*s + offset] += row[q] for the outputs begin..end wherever this lies in first..last; both rows are contiguous."""
    wide_vectors()
    low, high = span(begin, end, stride, offset - first, last - first)
    source, target = row + (low - begin) * itemsize(at), acc + (low * stride + offset - first) * itemsize(at)
    if stride == 1:
        for q in range(high - low):
            place = target + q * itemsize(at)
            store(place, add(load(place, at), load(source + q * itemsize(at), at)), at)
    else:
        for q in range(high - low):
            place = target + q * (stride * itemsize(at))
            store(place, add(load(place, at), load(source + q * itemsize(at), at)), at)


# --- max_pool ------------------------------------------------------------------------------------------------------------------


def lowest(number: Any) -> Any:
    """The lowest value of a number's type."""
    raise NotImplementedError("for kernels only")


@overload(lowest)
def _lowest(number):
    least = number(number.minval) if isinstance(number, types.Integer) else number(-math.inf)
    return lambda number: least


@helper(inline="always")
def keep_largest(best, where, x, count, step, position, advance, xt, at):
    """best[q] = the larger of best[q] and x[q], NaN if either is.

    Unless `where` is null, it gets the positions of what was kept, -1 before the first: the first NaN, else the first of equals.
    """
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
    keep(buffer)
    keep(lists)


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
    keep(buffer)
    keep(lists)


@kernel
def max_pool_backward(
    xt: Tag, yt: Tag, at: Tag, region: int, workers: int, items: int,
    y: Address, x: Address, indices: Address, grad: Address, g: Address,
) -> None:  # fmt: skip
    """The gradient of x from that of y, and the winners' indices, or x if these are null: an item is a part of a channel."""
    parallel_for(region, workers, items, _max_pool_backward, (xt, yt, at, y, x, indices, grad, pointer(g, INT64)))


# --- avg_pool and lp_pool ------------------------------------------------------------------------------------------------------


def power(number: Any, p: Any, norm: Any) -> Any:
    """What a window adds up: ``|x|**p``, or x itself where the norm is 0."""
    raise NotImplementedError("for kernels only")


@overload(power)
def _power(number, p, norm):
    return {
        0: lambda number, p, norm: number,
        1: lambda number, p, norm: abs(number),
        2: lambda number, p, norm: number * number,
        None: lambda number, p, norm: math.pow(abs(number), p),
    }[norm.value]


def mean(total: Any, count: Any, p: Any, norm: Any) -> Any:
    """What becomes of a window's sum: its p-th root, or its share of one element where the norm is 0."""
    raise NotImplementedError("for kernels only")


@overload(mean)
def _mean_of(total, count, p, norm):
    kind = total
    if isinstance(total, types.Complex):
        part = total.underlying_float
        # by a complex count, an infinite part would make the other one NaN
        return lambda total, count, p, norm: kind(complex(total.real / part(count), total.imag / part(count)))
    return {
        0: lambda total, count, p, norm: total / kind(count),
        1: lambda total, count, p, norm: total,
        2: lambda total, count, p, norm: math.sqrt(total),
        None: lambda total, count, p, norm: math.pow(total, 1.0 / p),
    }[norm.value]


def slope_of_element(x: Any, p: Any, norm: Any) -> Any:
    """``sign(x) * |x|**(p - 1)``: the part of a gradient that an element decides, 0 where it is 0."""
    raise NotImplementedError("for kernels only")


@overload(slope_of_element)
def _slope_of_element(x, p, norm):
    def general(x, p, norm):
        return math.pow(abs(x), p) / x if x != 0.0 else 0.0

    return {
        1: lambda x, p, norm: math.copysign(1.0, x) if x != 0.0 else 0.0,
        2: lambda x, p, norm: x,
        None: general,
    }[norm.value]


def slope_of_window(y: Any, p: Any, norm: Any) -> Any:
    """``y**(1 - p)``: the part of a gradient that the window's power mean decides, 0 where it is 0; NaN stays NaN."""
    raise NotImplementedError("for kernels only")


@overload(slope_of_window)
def _slope_of_window(y, p, norm):
    def general(y, p, norm):
        return math.pow(y, 1.0 - p) if y > 0.0 else y

    return {
        1: lambda y, p, norm: 1.0 if y > 0.0 else y,
        2: lambda y, p, norm: 1.0 / y if y > 0.0 else y,
        None: general,
    }[norm.value]


@helper(inline="always")
def add_powers(acc, x, count, step, p, norm, xt, at):
    """acc[q] += the power of x[q]."""
    for q in range(count):
        place = acc + q * itemsize(at)
        store(place, add(load(place, at), power(load(x + q * step, xt, at), p, norm)), at)


@helper
def sum_windows(acc, x, flats, offsets, first, last, p, g, norm, xt, at):
    """The sums of the powers of the elements in the windows first..last of a row."""
    wide_vectors()
    axis = g[DIMS] - 1
    size, stride, step = g[part(g, SIZE) + axis], g[part(g, STRIDE) + axis], g[part(g, PARTS) + 3 + axis]
    fill(acc, last - first, zero(at), at)
    for tap in range(outer_size(g, WINDOW)):
        if flats[tap] < 0:
            continue
        for r in range(g[part(g, WINDOW) + axis]):
            offset = r * g[part(g, DILATION) + axis] - g[part(g, LOW) + axis]
            low, high = span(first, last, stride, offset, size)
            source, target = x + (offsets[tap] + (low * stride + offset) * step), acc + (low - first) * itemsize(at)
            if stride * step == itemsize(xt):
                add_powers(target, source, high - low, itemsize(xt), p, norm, xt, at)
            elif stride * step == 2 * itemsize(xt):
                add_powers(target, source, high - low, 2 * itemsize(xt), p, norm, xt, at)
            else:
                add_powers(target, source, high - low, stride * step, p, norm, xt, at)


@helper
def outer_count(g, counts, output):
    """The product of what the outer axes count for an outer output; and where the counts of the last axis begin, in bytes."""
    product, begin = 1.0, 0
    rest = outer_size(g, OUTPUT)
    for axis in range(g[DIMS] - 1):
        outputs = g[part(g, OUTPUT) + axis]
        rest //= outputs
        product *= load(counts + (begin + output // rest % outputs * 8), FLOAT64)
        begin += outputs * 8
    return product, begin


@helper(inline="always")
def mean_row(y, y_step, totals, step, count, outer, counts, p, norm, xt, yt, at):
    """y[q] = the mean of a window with this sum; `counts` is the address of what the last axis counts for the first of them."""
    for q in range(count):
        counted = outer * load(counts + q * 8, FLOAT64)
        store(y + q * y_step, rounded(mean(load(totals + q * step, xt, at), counted, p, norm), yt), yt)


@helper
def means(y, y_step, totals, step, count, outer, counts, p, norm, xt, yt, at):
    """`mean_row` for any strides."""
    wide_vectors()
    if y_step == itemsize(yt) and step == itemsize(xt):
        mean_row(y, itemsize(yt), totals, itemsize(xt), count, outer, counts, p, norm, xt, yt, at)
    else:
        mean_row(y, y_step, totals, step, count, outer, counts, p, norm, xt, yt, at)


@helper
def _pool(begin, end, args):
    norm, xt, yt, at, x, y, p, counts, g = args
    axis, taps = g[DIMS] - 1, outer_size(g, WINDOW)
    xs, step = part(g, PARTS), g[part(g, PARTS + 2) + 3 + axis]
    buffer = scratch(ROW * itemsize(at))
    acc = memory(buffer)
    lists = scratch(16 * taps)
    flats, offsets = numbers(lists, 0), numbers(lists, taps)
    for item in range(begin, end):
        n, channel, row, first, last = chunk_of(g, item, OUTPUT)
        linked_rows(g, row, False, flats, offsets)
        sum_windows(acc, x + (n * g[xs] + channel * g[xs + 1]), flats, offsets, first, last, p, g, norm, xt, at)
        outer, place = outer_count(g, counts, row)
        target = row_of(y, g, n, channel, row, OUTPUT, PARTS + 2) + first * step
        means(target, step, acc, itemsize(at), last - first, outer, counts + (place + first * 8), p, norm, at, yt, at)
    keep(buffer)
    keep(lists)


@kernel
def pool(
    norm: Tag, xt: Tag, yt: Tag, at: Tag, region: int, workers: int, items: int,
    x: Address, y: Address, p: float, counts: Address, g: Address,
) -> None:  # fmt: skip
    """y from x: an item is a part of a row of y. The norm is 0 for averages, 1 or 2 for these powers, else None."""
    parallel_for(region, workers, items, _pool, (norm, xt, yt, at, x, y, p, counts, pointer(g, INT64)))


@helper
def _avg_pool_backward(begin, end, args):
    xt, yt, at, y, grad, counts, g = args
    axis, taps = g[DIMS] - 1, outer_size(g, WINDOW)
    ys, step, stride = part(g, PARTS + 2), g[part(g, PARTS + 1) + 3 + axis], g[part(g, STRIDE) + axis]
    buffer = scratch(2 * ROW * itemsize(at))
    acc = memory(buffer)
    spread = acc + ROW * itemsize(at)
    lists = scratch(16 * taps)
    outputs, rows = numbers(lists, 0), numbers(lists, taps)
    for item in range(begin, end):
        n, channel, row, first, last = chunk_of(g, item, SIZE)
        linked_rows(g, row, True, outputs, rows)
        q_begin, q_end = reach(g, first, last)
        y_c = y + (n * g[ys] + channel * g[ys + 1])
        fill(acc, last - first, zero(at), at)
        for tap in range(taps):
            if outputs[tap] < 0:
                continue
            outer, place = outer_count(g, counts, outputs[tap])
            for q_last in range(q_end, q_begin, -ROW):  # from the right, for the order of the taps
                q = max(q_last - ROW, q_begin)
                source = y_c + (rows[tap] + q * g[ys + 3 + axis])
                counted = counts + (place + q * 8)
                means(spread, itemsize(at), source, g[ys + 3 + axis], q_last - q, outer, counted, 1.0, AVERAGE, xt, at, at)
                for r in range(g[part(g, WINDOW) + axis]):
                    offset = r * g[part(g, DILATION) + axis] - g[part(g, LOW) + axis]
                    add_row(acc, spread, first, last, q, q_last, offset, stride, at)
        write_row(acc, row_of(grad, g, n, channel, row, SIZE, PARTS + 1) + first * step, last - first, step, yt, at)
    keep(buffer)
    keep(lists)


@kernel
def avg_pool_backward(
    xt: Tag, yt: Tag, at: Tag, region: int, workers: int, items: int, y: Address, grad: Address, counts: Address, g: Address
) -> None:
    """The gradient of x from that of y: an item is a part of a row of x."""
    parallel_for(region, workers, items, _avg_pool_backward, (xt, yt, at, y, grad, counts, pointer(g, INT64)))


@helper
def element_slopes(slopes, x, count, step, p, norm, xt):
    """`slope_of_element` of a part of a row of x."""
    wide_vectors()
    for i in range(count):
        store(slopes + i * 8, slope_of_element(load(x + i * step, xt, FLOAT64), p, norm), FLOAT64)


@helper
def window_slopes(slopes, grads, y, count, step, p, norm, xt):
    """`slope_of_window` of a row of sums, in place, and the gradients of the row beside it."""
    wide_vectors()
    for q in range(count):
        total = mean(load(slopes + q * 8, FLOAT64), 1.0, p, norm)
        store(slopes + q * 8, slope_of_window(total, p, norm), FLOAT64)
        store(grads + q * 8, load(y + q * step, xt, FLOAT64), FLOAT64)


@helper
def add_slopes(acc, elements, windows, grads, first, last, begin, end, offset, stride):
    """acc[q*s + offset] += the gradient of window q times its two slopes; an element of 0 has none but in a window with a NaN."""
    wide_vectors()
    low, high = span(begin, end, stride, offset - first, last - first)
    here, there = (low * stride + offset - first) * 8, (low - begin) * 8
    acc, elements, windows, grads, step = acc + here, elements + here, windows + there, grads + there, stride * 8
    for q in range(high - low):
        element, window = load(elements + q * step, FLOAT64), load(windows + q * 8, FLOAT64)
        slope = 0.0 if (element == 0.0) & (window == window) else element * window
        store(acc + q * step, load(acc + q * step, FLOAT64) + load(grads + q * 8, FLOAT64) * slope, FLOAT64)


@helper
def _lp_pool_backward(begin, end, args):
    norm, xt, yt, y, x, grad, p, g = args
    axis, taps = g[DIMS] - 1, outer_size(g, WINDOW)
    xs, ys, steps = part(g, PARTS), part(g, PARTS + 2), part(g, PARTS + 1)
    step, stride, x_step, y_step = g[steps + 3 + axis], g[part(g, STRIDE) + axis], g[xs + 3 + axis], g[ys + 3 + axis]
    buffer = scratch(4 * ROW * 8)
    acc = memory(buffer)
    elements, windows, grads = acc + ROW * 8, acc + ROW * 16, acc + ROW * 24
    lists = scratch(32 * taps)
    flats, offsets = numbers(lists, 0), numbers(lists, taps)
    outputs, rows = numbers(lists, 2 * taps), numbers(lists, 3 * taps)
    for item in range(begin, end):
        n, channel, row, first, last = chunk_of(g, item, SIZE)
        linked_rows(g, row, True, outputs, rows)
        q_begin, q_end = reach(g, first, last)
        x_c, y_c = x + (n * g[xs] + channel * g[xs + 1]), y + (n * g[ys] + channel * g[ys + 1])
        fill(acc, last - first, 0.0, FLOAT64)
        element_slopes(elements, row_of(x, g, n, channel, row, SIZE, PARTS) + first * x_step, last - first, x_step, p, norm, xt)
        for tap in range(taps):
            if outputs[tap] < 0:
                continue
            linked_rows(g, outputs[tap], False, flats, offsets)
            for q_last in range(q_end, q_begin, -ROW):  # from the right, for the order of the taps
                q = max(q_last - ROW, q_begin)
                sum_windows(windows, x_c, flats, offsets, q, q_last, p, g, norm, xt, FLOAT64)
                window_slopes(windows, grads, y_c + (rows[tap] + q * y_step), q_last - q, y_step, p, norm, xt)
                for r in range(g[part(g, WINDOW) + axis]):
                    offset = r * g[part(g, DILATION) + axis] - g[part(g, LOW) + axis]
                    add_slopes(acc, elements, windows, grads, first, last, q, q_last, offset, stride)
        target = row_of(grad, g, n, channel, row, SIZE, PARTS + 1) + first * step
        write_row(acc, target, last - first, step, yt, FLOAT64)
    keep(buffer)
    keep(lists)


@kernel
def lp_pool_backward(
    norm: Tag, xt: Tag, yt: Tag, region: int, workers: int, items: int,
    y: Address, x: Address, grad: Address, p: float, g: Address,
) -> None:  # fmt: skip
    """The gradient of x from that of y, and x: an item is a part of a row of x, whose windows are summed again."""
    parallel_for(region, workers, items, _lp_pool_backward, (norm, xt, yt, y, x, grad, p, pointer(g, INT64)))


# --- the implementation --------------------------------------------------------------------------------------------------------


def window_parts(problem: PoolProblem | WindowProblem) -> list[Sequence[int]]:
    """The parts of the vector of a problem; no window is flipped."""
    lows = [low for low, _ in problem.padding]
    return [problem.spatial, problem.window, problem.output, problem.stride, lows, problem.dilation, [0] * problem.ndim]


class Rows:
    """The work items of a call and the vector that describes it, with rows along the last spatial axis or along the channels.

    Parameters
    ----------
    problem : PoolProblem or WindowProblem
    sizes : sequence of int
        The spatial sizes of the side, x or y, whose rows are the items.
    """

    def __init__(self, problem: PoolProblem | WindowProblem, sizes: Sequence[int]):
        n, c, parts = problem.n, problem.c, window_parts(problem)
        wider = [[*entries, more] for entries, more in zip(parts, (c, 1, c, 1, 0, 1, 0), strict=True)]
        mode = getattr(problem, "pad_mode", "zeros")
        self._plain = Vectors(n, c, 1, 1, parts, mode, 0, _channels_apart)
        self._innermost = Vectors(n, 1, 1, 1, wider, mode, 1, _channels_last)
        self._items = n * c * math.prod(sizes[:-1]) * -(-sizes[-1] // ROW), n * math.prod(sizes) * -(-c // ROW)
        self._has_rows = c >= CHANNELS

    def __call__(self, x: Any, w: Any, y: Any) -> tuple[bool, int, np.ndarray[Any, Any]]:
        """Whether rows run along the channels, the number of items, and the vector for arrays in the places of x, w and y."""
        innermost = self._has_rows and all(array.strides[1] == array.itemsize for array in (x, w, y))
        vectors = self._innermost if innermost else self._plain
        return innermost, self._items[innermost], vectors(x.strides, w.strides, y.strides)


def _channels_apart(*strides: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(channel_strides(each, 1) for each in strides)


def _channels_last(*strides: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple((n, 0, 0, *spatial, c) for n, c, *spatial in strides)


def volume_parts(problem: PoolProblem | WindowProblem, innermost: bool) -> int:
    """The number of parts, as `part_of` has them, of one sample of x."""
    volume, c = math.prod(problem.spatial), problem.c
    return -(-volume * c // PART) if innermost else c * -(-volume // PART)


def axis_counts(problem: PoolProblem) -> list[np.ndarray[Any, Any]]:
    """How many taps of an average each output of each axis counts."""
    counts = []
    for axis, (size, (low, high)) in enumerate(zip(problem.spatial, problem.padding, strict=True)):
        end, begin = (size + high, -low) if problem.count_include_pad else (size, 0)
        counts.append(_taps_below(problem, axis, end) - _taps_below(problem, axis, begin))
    return counts


def _taps_below(problem: PoolProblem, axis: int, limit: int) -> np.ndarray[Any, Any]:
    """How many taps of each output of an axis lie below a position of x."""
    first = problem.stride[axis] * np.arange(problem.output[axis], dtype=np.int64) - problem.padding[axis][0]
    return np.clip(-((first - limit) // problem.dilation[axis]), 0, problem.window[axis]).astype(np.float64)


def _compiled(problem: PoolProblem) -> Callable[..., None]:
    dtypes, norm = (problem.dtype, problem.out_dtype), {1.0: 1, 2.0: 2}.get(problem.p)
    if problem.op == "lp_pool":
        return pool.specialise(norm, *dtypes, "float64")
    if problem.op == "lp_pool_backward":
        return lp_pool_backward.specialise(norm, *dtypes)
    if problem.op == "avg_pool":
        return pool.specialise(0, *dtypes, problem.acc_dtype)
    kernels = {"max_pool": max_pool, "max_pool_backward": max_pool_backward, "avg_pool_backward": avg_pool_backward}
    return kernels[problem.op].specialise(*dtypes, problem.acc_dtype)


class _Executor:
    """One pooling operation: the compiled kernel, and what is known of its rows."""

    def __init__(self, problem: PoolProblem):
        self._problem = problem
        self._kernel = _compiled(problem)
        self._rows = Rows(problem, problem.spatial if problem.op.endswith("_backward") else problem.output)
        counts = axis_counts(problem)
        self._counts = np.concatenate(counts), np.concatenate([*counts, np.ones(problem.c)])
        self._work = problem.flops + math.prod(problem.x_shape)

    def __call__(self, outs: Any, ins: Any) -> None:
        if self._problem.n:
            getattr(self, f"_{self._problem.op}")(outs, ins)

    def _max_pool(self, outs: Any, ins: Any) -> None:
        (y, *indices), (x,) = outs, ins
        _, items, g = self._rows(x, indices[0] if indices else y, y)
        run(self._kernel, items, self._work, x, indices[0] if indices else 0, y, g)

    def _max_pool_backward(self, outs: Any, ins: Any) -> None:
        (grad,), (y, second) = outs, ins
        if self._problem.indices:
            check_places(self._problem.op, second, math.prod(self._problem.spatial))
        x, indices = (0, second) if self._problem.indices else (second, 0)
        innermost, _, g = self._rows(second, grad, y)
        items = self._problem.n * volume_parts(self._problem, innermost)
        run(self._kernel, items, self._work, y, x, indices, grad, g)

    def _avg_pool(self, outs: Any, ins: Any) -> None:
        (y,), (x,) = outs, ins
        innermost, items, g = self._rows(x, x, y)
        run(self._kernel, items, self._work, x, y, self._problem.p, self._counts[innermost], g)

    _lp_pool = _avg_pool

    def _avg_pool_backward(self, outs: Any, ins: Any) -> None:
        (grad,), (y,) = outs, ins
        innermost, items, g = self._rows(grad, grad, y)
        run(self._kernel, items, self._work, y, grad, self._counts[innermost], g)

    def _lp_pool_backward(self, outs: Any, ins: Any) -> None:
        (grad,), (y, x) = outs, ins
        _, items, g = self._rows(x, grad, y)
        run(self._kernel, items, self._work, y, x, grad, self._problem.p, g)


class Pool(Implementation):
    """Pooling a row at a time: every problem, every level."""

    name = "pool"
    ops = frozenset(POOL_OPS)

    def supports(self, problem: PoolProblem) -> Verdict:
        """Everything."""
        return Verdict.yes()

    def cost(self, problem: PoolProblem) -> float:
        """The time to move the arrays, and to look at every tap."""
        return 2e-6 + problem.bytes / 1e10 + problem.flops / 4e9

    def workspace(self, problem: PoolProblem) -> int:
        """For each thread some rows of sums and the tables of the rows that they read, or the sums of a part of a channel."""
        taps = math.prod(problem.window[:-1])
        sums = min(PART, problem.c * math.prod(problem.spatial)) if problem.op == "max_pool_backward" else 0
        return MAX_THREADS * (4 * ROW * 8 + 32 * taps + np_dtype(problem.acc_dtype).itemsize * sums)

    def build(self, problem: PoolProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
