"""Averages and power means of windows and their gradients, for every dtype, a row of results at a time.

Sums run over the taps of a window in row-major order, from zero, in the accumulation dtype; power means in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from numconv.plugin import PoolProblem
from numconv_numba.compiling.compiler import Address, Tag, helper, kernel
from numconv_numba.elements import INT64, itemsize, memory, numbers, release, scratch
from numconv_numba.geometry import DILATION, DIMS, LOW, OUTPUT, PARTS, SIZE, STRIDE, WINDOW, part, span
from numconv_numba.rows import outer_size
from numconv_numba.scalar import add, inlined, load, pointer, store, wide_vectors, zero
from numconv_numba.threads import parallel_for

from .window_rows import ROW, chunk_of, fill, linked_rows, rounded, row_of, write_row

__all__ = ["avg_pool_backward", "axis_counts", "lp_pool_backward", "pool"]

FLOAT64 = Tag("float64")
AVERAGE = Tag(0)


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


# --- what is added up, and what becomes of it ----------------------------------------------------------------------------------


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


# --- averages and power means --------------------------------------------------------------------------------------------------


@helper
def add_powers(acc, x, count, step, p, norm, xt, at):
    """acc[q] += the power of x[q]."""
    inlined()
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


@helper
def mean_row(y, y_step, totals, step, count, outer, counts, p, norm, xt, yt, at):
    """y[q] = the mean of a window with this sum; `counts` is the address of what the last axis counts for the first of them."""
    inlined()
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
    release(buffer)
    release(lists)


@kernel
def pool(
    norm: Tag, xt: Tag, yt: Tag, at: Tag, region: int, workers: int, items: int,
    x: Address, y: Address, p: float, counts: Address, g: Address,
) -> None:  # fmt: skip
    """y from x: an item is a part of a row of y. The norm is 0 for averages, 1 or 2 for these powers, else None."""
    parallel_for(region, workers, items, _pool, (norm, xt, yt, at, x, y, p, counts, pointer(g, INT64)))


# --- gradients -----------------------------------------------------------------------------------------------------------------


@helper
def reach(g, first, last):
    """The outputs of a row whose windows may touch the indices first..last of a row of x."""
    axis = g[DIMS] - 1
    stride, low = g[part(g, STRIDE) + axis], g[part(g, LOW) + axis]
    extent = g[part(g, DILATION) + axis] * (g[part(g, WINDOW) + axis] - 1)
    begin, end = -((extent - first - low) // stride), (last - 1 + low) // stride + 1
    return max(begin, 0), min(end, g[part(g, OUTPUT) + axis])


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
    release(buffer)
    release(lists)


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
    release(buffer)
    release(lists)


@kernel
def lp_pool_backward(
    norm: Tag, xt: Tag, yt: Tag, region: int, workers: int, items: int,
    y: Address, x: Address, grad: Address, p: float, g: Address,
) -> None:  # fmt: skip
    """The gradient of x from that of y, and x: an item is a part of a row of x, whose windows are summed again."""
    parallel_for(region, workers, items, _lp_pool_backward, (norm, xt, yt, y, x, grad, p, pointer(g, INT64)))
