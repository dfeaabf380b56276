"""The gradients of `direct`: of x a row at a time, of w a row of taps at a time, of the bias a channel at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from .compiling.compiler import Address, Tag, helper, kernel
from .elements import INT64, itemsize, memory, release, scratch
from .geometry import (
    BATCH,
    DILATION,
    DIMS,
    GROUPS,
    LOW,
    MODE,
    OPTION,
    OUTPUT,
    PARTS,
    PER_C,
    PER_K,
    SIZE,
    STRIDE,
    WINDOW,
    part,
    source_index,
    span,
)
from .rows import clear, finish_row, outer_offset, outer_size, outer_source, tap_position
from .scalar import add, conj, load, muladd, one_by_one, pointer, store, wide_vectors, zero
from .threads import parallel_for

__all__ = ["ROW", "TAPS", "added", "bias_grad", "input_grad", "weight_grad"]

ROW = 1024
"""Results computed together: a row of them, and what it reads, fit the first-level cache."""
TAPS = 64
"""Taps of a weight gradient computed together."""


# --- input_grad ----------------------------------------------------------------------------------------------------------------


@helper
def find_outputs(g, axis, index, tap, found):
    """The outputs, in order, whose window has this tap on this index of x; several where padding folds back. Returns how many."""
    size, stride, mode = g[part(g, SIZE) + axis], g[part(g, STRIDE) + axis], g[MODE]
    offset, outputs = tap_position(g, axis, tap) - g[part(g, LOW) + axis], g[part(g, OUTPUT) + axis]
    count = 0
    if mode == 0:
        if (index - offset) % stride == 0 and 0 <= (index - offset) // stride < outputs:
            found[0], count = (index - offset) // stride, 1
        return count
    for q in range(outputs):
        if source_index(q * stride + offset, size, mode) == index:
            found[count] = q
            count += 1
    return count


@helper
def outer_sources(g, index, taps, starts, offsets, found, counts):
    """The byte offsets of the rows of y that each outer tap carries to an index of x: offsets[starts[tap]:starts[tap + 1]]."""
    ys, filled = part(g, PARTS + 2) + 3, 0
    starts[0] = 0
    for tap in range(taps):
        total, left, where = 1, tap, index
        for axis in range(g[DIMS] - 2, -1, -1):
            windows, size = g[part(g, WINDOW) + axis], g[part(g, SIZE) + axis]
            counts[axis] = find_outputs(g, axis, where % size, left % windows, found[axis])
            total *= counts[axis]
            left //= windows
            where //= size
        for combination in range(total):
            offset, left = 0, combination
            for axis in range(g[DIMS] - 2, -1, -1):
                offset += found[axis, left % counts[axis]] * g[ys + axis]
                left //= counts[axis]
            offsets[filled] = offset
            filled += 1
        starts[tap + 1] = filled


@helper
def scatter_row(acc, y, w, first, last, offset, g, xt, at):
    """acc[q*s + offset] += y[q] * w wherever this lies in first..last of a row of x, padding folded back; in the order of q."""
    wide_vectors()
    axis = g[DIMS] - 1
    size, stride, mode = g[part(g, SIZE) + axis], g[part(g, STRIDE) + axis], g[MODE]
    outputs, step = g[part(g, OUTPUT) + axis], g[part(g, PARTS + 2) + 3 + axis]
    low, high = span(0, outputs, stride, offset, size)
    if mode:
        fold_row(acc, y, w, 0, low, first, last, offset, g, xt, at)
    q_first, q_last = span(low, high, stride, offset - first, last - first)
    source, target = y + q_first * step, acc + (q_first * stride + offset - first) * itemsize(at)
    if stride == 1 and step == itemsize(xt):
        for q in range(q_last - q_first):
            place = target + q * itemsize(at)
            store(place, muladd(load(source + q * itemsize(xt), xt, at), w, load(place, at)), at)
    else:
        for q in range(q_last - q_first):
            place = target + q * (stride * itemsize(at))
            store(place, muladd(load(source + q * step, xt, at), w, load(place, at)), at)
    if mode:
        fold_row(acc, y, w, high, outputs, first, last, offset, g, xt, at)


@helper
def fold_row(acc, y, w, q_first, q_last, first, last, offset, g, xt, at):
    """`scatter_row` for outputs that read the padding."""
    axis = g[DIMS] - 1
    size, stride, step = g[part(g, SIZE) + axis], g[part(g, STRIDE) + axis], g[part(g, PARTS + 2) + 3 + axis]
    for q in range(q_first, q_last):
        index = source_index(q * stride + offset, size, g[MODE])
        if first <= index < last:
            place = acc + (index - first) * itemsize(at)
            store(place, muladd(load(y + q * step, xt, at), w, load(place, at)), at)


@helper
def input_grad_row(acc, starts, offsets, y, w, group, c, first, last, g, xt, at):
    """The sums of first..last of a row of x for one input channel: k, then the kernel row-major, then the outputs."""
    axis = g[DIMS] - 1
    window, low = g[part(g, WINDOW) + axis], g[part(g, LOW) + axis]
    ws, ys = part(g, PARTS + 1), part(g, PARTS + 2)
    clear(acc, last - first, at)
    for k in range(g[PER_K]):
        y_k = y + (group * g[ys + 1] + k * g[ys + 2])
        w_k = w + (group * g[ws] + k * g[ws + 1] + c * g[ws + 2])
        for tap in range(len(starts) - 1):
            if starts[tap] == starts[tap + 1]:
                continue
            w_row = w_k + outer_offset(g, tap, WINDOW, PARTS + 1)
            for r in range(window):
                weight = conj(load(w_row + r * g[ws + 3 + axis], xt, at))
                for row in range(starts[tap], starts[tap + 1]):
                    scatter_row(acc, y_k + offsets[row], weight, first, last, tap_position(g, axis, r) - low, g, xt, at)


@helper
def folds(g):
    """How many outer outputs may at most have one tap on one index of x: one inside, and each place of the padding."""
    product = 1
    for axis in range(g[DIMS] - 1):
        size, low, outputs = g[part(g, SIZE) + axis], g[part(g, LOW) + axis], g[part(g, OUTPUT) + axis]
        extent = g[part(g, DILATION) + axis] * (g[part(g, WINDOW) + axis] - 1)
        high = max((outputs - 1) * g[part(g, STRIDE) + axis] + extent - low - (size - 1), 0)
        product *= min(outputs, 1 + low + high) if g[MODE] else 1
    return product


@helper
def _input_grad(begin, end, args):
    xt, yt, at, y, w, bias, x, g = args
    wide_vectors()
    axis = g[DIMS] - 1
    xs, ys, per_c, length = part(g, PARTS), part(g, PARTS + 2), g[PER_C], g[part(g, SIZE) + axis]
    rows, taps, chunks = outer_size(g, SIZE), outer_size(g, WINDOW), -(-length // ROW)
    sums = scratch(min(ROW, length) * itemsize(at))
    acc, starts, counts = memory(sums), np.empty(taps + 1, np.int64), np.empty(g[DIMS], np.int64)
    longest = 1
    for other in range(axis):
        longest = max(longest, g[part(g, OUTPUT) + other])
    found, offsets = np.empty((g[DIMS], longest), np.int64), np.empty(taps * folds(g), np.int64)
    for item in range(begin, end):
        first = item % chunks * ROW
        index = item // chunks % rows
        channel = item // chunks // rows % (g[GROUPS] * per_c)
        n = item // chunks // rows // (g[GROUPS] * per_c)
        group, c, last = channel // per_c, channel % per_c, min(first + ROW, length)
        outer_sources(g, index, taps, starts, offsets, found, counts)
        input_grad_row(acc, starts, offsets, y + n * g[ys], w, group, c, first, last, g, xt, at)
        target = x + (n * g[xs] + group * g[xs + 1] + c * g[xs + 2] + outer_offset(g, index, SIZE, PARTS))
        step = g[xs + 3 + axis]
        finish_row(acc, target + first * step, last - first, step, bias, channel, g[OPTION], yt, at)
    release(sums)


@kernel
def input_grad(
    xt: Tag, yt: Tag, at: Tag, region: int, workers: int, items: int, y: Address, w: Address, bias: Address, x: Address, g: Address
) -> None:
    """The gradient of x from that of y and w: an item is a part of a row of one input channel."""
    parallel_for(region, workers, items, _input_grad, (xt, yt, at, y, w, bias, x, pointer(g, INT64)))


# --- weight_grad ---------------------------------------------------------------------------------------------------------------


@helper
def chain(total, y, x, count, y_step, x_step, xt, at):
    """total + the products of two rows, one after the other."""
    if y_step == itemsize(xt) and x_step == itemsize(xt):
        for q in range(count):
            total = muladd(load(y + q * itemsize(xt), xt, at), conj(load(x + q * itemsize(xt), xt, at)), total)
    else:
        for q in range(count):
            one_by_one()
            total = muladd(load(y + q * y_step, xt, at), conj(load(x + q * x_step, xt, at)), total)
    return total


@helper(fastmath={"reassoc", "contract", "nsz"})
def summed(y, x, count, y_step, x_step, xt, at):
    """The sum of the products of two rows of reals, in the order that suits the vectors: always the same one."""
    wide_vectors()
    total = zero(at)
    if y_step == itemsize(xt) and x_step == itemsize(xt):
        for q in range(count):
            total += load(y + q * itemsize(xt), xt, at) * load(x + q * itemsize(xt), xt, at)
    else:
        for q in range(count):
            total += load(y + q * y_step, xt, at) * load(x + q * x_step, xt, at)
    return total


def dot(total: Any, y: Any, x: Any, count: Any, y_step: Any, x_step: Any, strict: Any, xt: Any, at: Any) -> Any:
    """`chain` at the strict level and for what has no order of its own to gain from, `summed` for real floats."""
    raise NotImplementedError("for kernels only")


@overload(dot)
def _dot(total, y, x, count, y_step, x_step, strict, xt, at):
    if not isinstance(total, types.Float):

        def plain(total, y, x, count, y_step, x_step, strict, xt, at):
            return chain(total, y, x, count, y_step, x_step, xt, at)

        return plain

    def either(total, y, x, count, y_step, x_step, strict, xt, at):
        if strict:
            return chain(total, y, x, count, y_step, x_step, xt, at)
        return add(total, summed(y, x, count, y_step, x_step, xt, at))

    return either


@helper
def add_products(total, y, x, offset, g, xt, at):
    """total + the sum over a row of y[q] * conj(x[q*s + offset]), padding as its mode has it."""
    axis = g[DIMS] - 1
    size, stride, mode = g[part(g, SIZE) + axis], g[part(g, STRIDE) + axis], g[MODE]
    outputs, x_step, y_step = g[part(g, OUTPUT) + axis], g[part(g, PARTS) + 3 + axis], g[part(g, PARTS + 2) + 3 + axis]
    low, high = span(0, outputs, stride, offset, size)
    if mode:
        total = border_products(total, y, x, 0, low, offset, g, xt, at)
    source = x + (low * stride + offset) * x_step
    total = dot(total, y + low * y_step, source, high - low, y_step, stride * x_step, g[OPTION], xt, at)
    if mode:
        total = border_products(total, y, x, high, outputs, offset, g, xt, at)
    return total


@helper
def border_products(total, y, x, first, last, offset, g, xt, at):
    """`add_products` for outputs that read the padding."""
    axis = g[DIMS] - 1
    size, stride = g[part(g, SIZE) + axis], g[part(g, STRIDE) + axis]
    x_step, y_step = g[part(g, PARTS) + 3 + axis], g[part(g, PARTS + 2) + 3 + axis]
    for q in range(first, last):
        one_by_one()
        source = x + source_index(q * stride + offset, size, g[MODE]) * x_step
        total = muladd(load(y + q * y_step, xt, at), conj(load(source, xt, at)), total)
    return total


@helper
def weight_grad_taps(acc, x, y, tap, first, last, g, xt, at):
    """The sums of the taps first..last of a row of one kernel: n, then the outputs row-major."""
    axis = g[DIMS] - 1
    xs, ys, rows = part(g, PARTS), part(g, PARTS + 2), outer_size(g, OUTPUT)
    clear(acc, last - first, at)
    for n in range(g[BATCH]):
        for output in range(rows):
            inside, row = outer_source(g, output, tap, g[DIMS] - 1)
            if not inside:
                continue
            x_row, y_row = x + (n * g[xs] + row), y + (n * g[ys] + outer_offset(g, output, OUTPUT, PARTS + 2))
            for r in range(first, last):
                place = acc + (r - first) * itemsize(at)
                offset = tap_position(g, axis, r) - g[part(g, LOW) + axis]
                store(place, add_products(load(place, at), y_row, x_row, offset, g, xt, at), at)


@helper
def _weight_grad(begin, end, args):
    xt, yt, at, y, x, w, g = args
    wide_vectors()
    axis = g[DIMS] - 1
    xs, ws, ys = part(g, PARTS), part(g, PARTS + 1), part(g, PARTS + 2)
    per_c, per_k, window = g[PER_C], g[PER_K], g[part(g, WINDOW) + axis]
    taps, chunks = outer_size(g, WINDOW), -(-window // TAPS)
    sums = scratch(min(TAPS, window) * itemsize(at))
    acc = memory(sums)
    for item in range(begin, end):
        first = item % chunks * TAPS
        tap = item // chunks % taps
        c = item // chunks // taps % per_c
        channel = item // chunks // taps // per_c
        group, k, last = channel // per_k, channel % per_k, min(first + TAPS, window)
        x_c, y_k = x + (group * g[xs + 1] + c * g[xs + 2]), y + (group * g[ys + 1] + k * g[ys + 2])
        weight_grad_taps(acc, x_c, y_k, tap, first, last, g, xt, at)
        target = w + (group * g[ws] + k * g[ws + 1] + c * g[ws + 2] + outer_offset(g, tap, WINDOW, PARTS + 1))
        step = g[ws + 3 + axis]
        for r in range(first, last):
            store(target + r * step, load(acc + (r - first) * itemsize(at), at), yt)
    release(sums)


@kernel
def weight_grad(
    xt: Tag, yt: Tag, at: Tag, region: int, workers: int, items: int, y: Address, x: Address, w: Address, g: Address
) -> None:
    """The gradient of w from that of y and x: an item is a part of a row of one kernel of one channel."""
    parallel_for(region, workers, items, _weight_grad, (xt, yt, at, y, x, w, pointer(g, INT64)))


# --- bias ----------------------------------------------------------------------------------------------------------------------


@helper
def counted(total, x, count, step, xt, at):
    """total + the elements of a row, one after the other."""
    for q in range(count):
        total = add(total, load(x + q * step, xt, at))
    return total


@helper(fastmath={"reassoc", "contract", "nsz"})
def added(x, count, step, xt, at):
    """The sum of a row of reals, in the order that suits the vectors: always the same one."""
    wide_vectors()
    total = zero(at)
    if step == itemsize(xt):
        for q in range(count):
            total += load(x + q * itemsize(xt), xt, at)
    else:
        for q in range(count):
            total += load(x + q * step, xt, at)
    return total


def row_sum(total: Any, x: Any, count: Any, step: Any, strict: Any, xt: Any, at: Any) -> Any:
    """`counted` at the strict level and for what is not a real float, else the total and what `added` gives."""
    raise NotImplementedError("for kernels only")


@overload(row_sum)
def _row_sum(total, x, count, step, strict, xt, at):
    if not isinstance(total, types.Float):
        return lambda total, x, count, step, strict, xt, at: counted(total, x, count, step, xt, at)

    def either(total, x, count, step, strict, xt, at):
        return counted(total, x, count, step, xt, at) if strict else add(total, added(x, count, step, xt, at))

    return either


@helper
def _bias_grad(begin, end, args):
    xt, yt, at, x, sums, which, strides, per_group, g = args
    axis, first = g[DIMS] - 1, part(g, strides)
    length, rows, step = g[part(g, which) + axis], outer_size(g, which), g[first + 3 + axis]
    for channel in range(begin, end):
        total, start = zero(at), x + (channel // per_group * g[first + 1] + channel % per_group * g[first + 2])
        for n in range(g[BATCH]):
            for row in range(rows):
                place = start + (n * g[first] + outer_offset(g, row, which, strides))
                total = row_sum(total, place, length, step, g[OPTION], xt, at)
        store(sums + channel * itemsize(yt), total, yt)


@kernel
def bias_grad(
    xt: Tag, yt: Tag, at: Tag, region: int, workers: int, items: int, x: Address, sums: Address,
    which: int, strides: int, per_group: int, g: Address,
) -> None:  # fmt: skip
    """The sum of each channel of y (or of x): an item is a channel; the order is n, then row-major."""
    parallel_for(region, workers, items, _bias_grad, (xt, yt, at, x, sums, which, strides, per_group, pointer(g, INT64)))
