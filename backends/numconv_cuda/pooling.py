"""Max, average and power-mean pooling, and their gradients: a thread for each result, no atomic additions.

A gradient gathers from the windows that hold its element, in the order of the taps through which they read it; what a window chose
or summed is found again, so that nothing is kept between the passes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from numconv.plugin import POOL_OPS, Executor, Implementation, PoolProblem, Verdict, check_indices, scratch

from .costs import moved
from .geometry import (
    advanced,
    coordinates,
    geometry,
    inner,
    offset_of,
    result_place,
    source_place,
    start_of,
    strides_of,
    volume_of,
)
from .primitives.elements import add, cast, is_nan, load, magnitude, muladd, poke, power, quotient, replaced, store
from .runtime.compiler import SIMULATED, Kernel, cuda, device, kernel, types
from .runtime.launching import launch, over, pointer, zero
from .runtime.recording import recorded
from .strips import pool_strips

__all__ = ["Pool", "clear"]

TOGETHER = 2 if SIMULATED else 64
"""Threads that go through a large window together."""
LARGE = 16 if SIMULATED else 64
"""Taps of a large window."""
REPAIRING = 2**18
"""Threads of the kernel that has nothing to do as long as indices lie in their windows."""


@device
def winner(x, g, output, start, zero):
    """The largest element of a window and its flat position: the first of equal ones, and the first NaN before all."""
    best, found = zero, -1
    tap = start_of(g.window)
    for _ in range(g.taps):
        inside, offset, place = source_place(g, output, tap)
        if inside:
            value = load(x, start + offset, zero)
            if found < 0 or (not is_nan(best) and (value > best or is_nan(value))):
                best, found = value, place
        tap = advanced(tap, g.window)
    return best, found


@kernel
def max_pool(x, y, indices, g, items, zero):
    """y, and where each element of it comes from if the option asks for it."""
    for item in range(cuda.grid(1), items, cuda.gridsize(1)):
        n, c, output = result_place(item, g.groups, g.output, g.outputs, g.option)
        best, place = winner(x, g, output, n * g.x.n + c * g.x.group, zero)
        store(y, n * g.y.n + c * g.y.group + offset_of(output, g.y.spatial), best)
        if g.option & 1:
            store(indices, n * g.w.n + c * g.w.group + offset_of(output, g.w.spatial), place)


@device
def replaces(value, place, best, found):
    """Whether an element and its place come before the best ones so far, whose place is -1 where there is none yet."""
    if place < 0 or found < 0 or is_nan(best) or is_nan(value):
        return place >= 0 and (found < 0 or (is_nan(value) and (not is_nan(best) or place < found)))
    return value > best or (value == best and place < found)


@device
def counted(g, output, floors, limits):
    """By how many the sum of a window is divided: on each axis the taps from the floor up to the limit."""
    product = 1
    for axis in range(len(g.size)):
        first, step = output[axis] * g.stride[axis] - g.low[axis], g.dilation[axis]
        lower, upper = floors[axis] - first, limits[axis] - first
        if step > 1:
            lower, upper = (lower + step - 1) // step, (upper + step - 1) // step
        product *= max(min(upper, g.window[axis]) - max(lower, 0), 0)
    return product


@functools.cache
def max_whole_kernel(dtype: str) -> Kernel:
    """The kernel of maxima of large windows, a block for each: as `max_pool`."""
    number = getattr(types, dtype)

    def max_whole(x, y, indices, g, zero):
        values = cuda.shared.array(TOGETHER, number)
        places = cuda.shared.array(TOGETHER, types.int64)
        thread = cuda.threadIdx.x
        n, c, output = result_place(cuda.blockIdx.x, g.groups, g.output, g.outputs, g.option)
        start = n * g.x.n + c * g.x.group
        best, found = zero, -1
        for number_of_tap in range(thread, g.taps, TOGETHER):
            inside, offset, place = source_place(g, output, coordinates(number_of_tap, g.window))
            if inside:
                value = load(x, start + offset, zero)
                if replaces(value, place, best, found):
                    best, found = value, place
        poke(values, thread, best)
        poke(places, thread, found)
        half = TOGETHER // 2
        while half > 0:
            cuda.syncthreads()
            if thread < half and replaces(values[thread + half], places[thread + half], values[thread], places[thread]):
                poke(values, thread, values[thread + half])
                poke(places, thread, places[thread + half])
            half //= 2
        if thread == 0:
            store(y, n * g.y.n + c * g.y.group + offset_of(output, g.y.spatial), values[0])
            if g.option & 1:
                store(indices, n * g.w.n + c * g.w.group + offset_of(output, g.w.spatial), places[0])

    max_whole.__name__ = max_whole.__qualname__ = f"max_whole_{dtype}"
    return kernel(max_whole)


@functools.cache
def avg_whole_kernel(dtype: str) -> Kernel:
    """The kernel of means of large windows, a block for each: as `avg_pool`."""
    number = getattr(types, dtype)

    def avg_whole(x, y, g, floors, limits, zero):
        sums = cuda.shared.array(TOGETHER, number)
        thread = cuda.threadIdx.x
        n, c, output = result_place(cuda.blockIdx.x, g.groups, g.output, g.outputs, g.option)
        start = n * g.x.n + c * g.x.group
        acc = zero
        for number_of_tap in range(thread, g.taps, TOGETHER):
            inside, offset, _ = source_place(g, output, coordinates(number_of_tap, g.window))
            if inside:
                acc = add(acc, load(x, start + offset, zero))
        poke(sums, thread, acc)
        half = TOGETHER // 2
        while half > 0:
            cuda.syncthreads()
            if thread < half:
                poke(sums, thread, add(sums[thread], sums[thread + half]))
            half //= 2
        if thread == 0:
            mean = quotient(sums[0], cast(counted(g, output, floors, limits), zero))
            store(y, n * g.y.n + c * g.y.group + offset_of(output, g.y.spatial), mean)

    avg_whole.__name__ = avg_whole.__qualname__ = f"avg_whole_{dtype}"
    return kernel(avg_whole)


@device
def holders(g, index):
    """On each axis the last output whose window may hold an index of x, and how many outputs there are back to the first."""
    last = start_of(g.window)
    count = start_of(g.window)
    for axis in range(len(g.size)):
        position = index[axis] + g.low[axis]
        final = min(position // g.stride[axis], g.output[axis] - 1)
        behind = position - g.dilation[axis] * (g.window[axis] - 1) + g.stride[axis] - 1
        last = replaced(last, axis, final)
        count = replaced(count, axis, max(final - max(behind // g.stride[axis], 0) + 1, 0))
    return last, count


@device
def holder(g, index, last, back):
    """The output so far back from the last, and whether its window has a tap on the index; the taps rise as outputs fall."""
    found = True
    output = last
    for axis in range(len(g.size)):
        place = last[axis] - back[axis]
        distance = index[axis] + g.low[axis] - place * g.stride[axis]
        found = found and distance % g.dilation[axis] == 0
        output = replaced(output, axis, place)
    return found, output


@kernel
def max_pool_backward(grad, x, out, g, items, zero):
    """The gradient for x: that of each window whose largest element it is."""
    for item in range(cuda.grid(1), items, cuda.gridsize(1)):
        n, c, index = result_place(item, g.groups, g.size, g.volume, g.option)
        place = flat_place(index, g.size)
        acc = zero
        last, count = holders(g, index)
        back = start_of(g.window)
        for _ in range(volume_of(count)):
            found, output = holder(g, index, last, back)
            if found:
                chosen = winner(x, g, output, n * g.x.n + c * g.x.group, zero)[1]
                if chosen == place:
                    acc = add(acc, load(grad, n * g.y.n + c * g.y.group + offset_of(output, g.y.spatial), zero))
            back = advanced(back, count)
        store(out, n * g.w.n + c * g.w.group + offset_of(index, g.w.spatial), acc)


@device
def flat_place(index, sizes):
    """The flat position in a volume."""
    place = 0
    for axis in range(len(sizes)):
        place = place * sizes[axis] + index[axis]
    return place


@device
def in_window(g, output, place):
    """Whether a flat position of x is read by a window."""
    index = coordinates(place, g.size)
    inside = True
    for axis in range(len(g.size)):
        distance = index[axis] + g.low[axis] - output[axis] * g.stride[axis]
        tap = distance // g.dilation[axis]
        inside = inside and distance >= 0 and tap * g.dilation[axis] == distance and tap < g.window[axis]
    return inside


@kernel
def find_strays(indices, strays, g, items, one):
    """Set the flag if an index lies outside the window of its element: `max_pool` gives none such, but a caller may."""
    for item in range(cuda.grid(1), items, cuda.gridsize(1)):
        n, c, output = result_place(item, g.groups, g.output, g.outputs, g.option)
        place = load(indices, n * g.x.n + c * g.x.group + offset_of(output, g.x.spatial), one)
        if place < 0 or place >= g.volume or not in_window(g, output, place):
            store(strays, 0, one)


@kernel
def indexed_backward(grad, indices, strays, out, g, items, one, zero):
    """The gradient for x: that of each element of y whose index it is; if any strays from its window, all of y is searched."""
    for item in range(cuda.grid(1), items, cuda.gridsize(1)):
        n, c, index = result_place(item, g.groups, g.size, g.volume, g.option)
        place = flat_place(index, g.size)
        from_grad, from_indices = n * g.y.n + c * g.y.group, n * g.x.n + c * g.x.group
        acc = zero
        if load(strays, 0, one) == 0:
            last, count = holders(g, index)
            back = start_of(g.window)
            for _ in range(volume_of(count)):
                found, output = holder(g, index, last, back)
                if found and load(indices, from_indices + offset_of(output, g.x.spatial), one) == place:
                    acc = add(acc, load(grad, from_grad + offset_of(output, g.y.spatial), zero))
                back = advanced(back, count)
        else:
            acc = searched(grad, indices, g, place, from_grad, from_indices, one, zero)
        store(out, n * g.w.n + c * g.w.group + offset_of(index, g.w.spatial), acc)


@device
def searched(grad, indices, g, place, from_grad, from_indices, one, zero):
    """The gradient of an element, for which all of y is searched."""
    acc = zero
    output = start_of(g.output)
    for _ in range(g.outputs):
        if load(indices, from_indices + offset_of(output, g.x.spatial), one) == place:
            acc = add(acc, load(grad, from_grad + offset_of(output, g.y.spatial), zero))
        output = advanced(output, g.output)
    return acc


@kernel
def searched_backward(grad, indices, strays, out, g, items, one, zero):
    """The gradient for x once more, if any index strays from its window."""
    if load(strays, 0, one) != 0:
        for item in range(cuda.grid(1), items, cuda.gridsize(1)):
            n, c, index = result_place(item, g.groups, g.size, g.volume, g.option)
            place = flat_place(index, g.size)
            acc = searched(grad, indices, g, place, n * g.y.n + c * g.y.group, n * g.x.n + c * g.x.group, one, zero)
            store(out, n * g.w.n + c * g.w.group + offset_of(index, g.w.spatial), acc)


# --- average -------------------------------------------------------------------------------------------------------------------


@kernel
def avg_pool(x, y, g, floors, limits, items, zero):
    """The mean of each window."""
    for item in range(cuda.grid(1), items, cuda.gridsize(1)):
        n, c, output = result_place(item, g.groups, g.output, g.outputs, g.option)
        start = n * g.x.n + c * g.x.group
        acc = zero
        tap = start_of(g.window)
        for _ in range(g.taps):
            inside, offset, _ = source_place(g, output, tap)
            if inside:
                acc = add(acc, load(x, start + offset, zero))
            tap = advanced(tap, g.window)
        mean = quotient(acc, cast(counted(g, output, floors, limits), zero))
        store(y, n * g.y.n + c * g.y.group + offset_of(output, g.y.spatial), mean)


@kernel
def avg_pool_backward(grad, x, g, floors, limits, items, zero):
    """The share of each window that holds the element."""
    for item in range(cuda.grid(1), items, cuda.gridsize(1)):
        n, c, index = result_place(item, g.groups, g.size, g.volume, g.option)
        acc = zero
        last, count = holders(g, index)
        back = start_of(g.window)
        for _ in range(volume_of(count)):
            found, output = holder(g, index, last, back)
            if found:
                value = load(grad, n * g.y.n + c * g.y.group + offset_of(output, g.y.spatial), zero)
                acc = add(acc, quotient(value, cast(counted(g, output, floors, limits), zero)))
            back = advanced(back, count)
        store(x, n * g.x.n + c * g.x.group + offset_of(index, g.x.spatial), acc)


# --- power mean ----------------------------------------------------------------------------------------------------------------


@device
def power_mean(x, g, output, start, p, zero):
    """(sum of |x|^p over a window)^(1/p)."""
    acc = zero
    tap = start_of(g.window)
    for _ in range(g.taps):
        inside, offset, _ = source_place(g, output, tap)
        if inside:
            acc = add(acc, power(magnitude(load(x, start + offset, zero)), p))
        tap = advanced(tap, g.window)
    return power(acc, quotient(cast(1, p), p))


@kernel
def lp_pool(x, y, g, p, items, zero):
    """The power mean of each window, not divided by its count."""
    for item in range(cuda.grid(1), items, cuda.gridsize(1)):
        n, c, output = result_place(item, g.groups, g.output, g.outputs, g.option)
        mean = power_mean(x, g, output, n * g.x.n + c * g.x.group, p, zero)
        store(y, n * g.y.n + c * g.y.group + offset_of(output, g.y.spatial), mean)


@device
def slope(value, mean, p, zero):
    """sign(x) |x|^(p - 1) mean^(1 - p): 0 where x or the mean is 0, NaN in a window that holds one."""
    if is_nan(mean):
        return mean
    if value == 0 or mean == 0:
        return zero
    size = muladd(power(magnitude(value), p - cast(1, p)), power(mean, cast(1, p) - p), zero)
    return size if value > 0 else -size


@kernel
def lp_pool_backward(grad, x, out, g, p, items, zero):
    """The gradient for x."""
    for item in range(cuda.grid(1), items, cuda.gridsize(1)):
        n, c, index = result_place(item, g.groups, g.size, g.volume, g.option)
        start = n * g.x.n + c * g.x.group
        value = load(x, start + offset_of(index, g.x.spatial), zero)
        acc = zero
        last, count = holders(g, index)
        back = start_of(g.window)
        for _ in range(volume_of(count)):
            found, output = holder(g, index, last, back)
            if found:
                factor = slope(value, power_mean(x, g, output, start, p, zero), p, zero)
                acc = muladd(load(grad, n * g.y.n + c * g.y.group + offset_of(output, g.y.spatial), zero), factor, acc)
            back = advanced(back, count)
        store(out, n * g.w.n + c * g.w.group + offset_of(index, g.w.spatial), acc)


# --- the implementation --------------------------------------------------------------------------------------------------------


def _large(problem: PoolProblem) -> bool:
    """Whether windows are large enough for a block each, and there are some."""
    return math.prod(problem.window) >= LARGE and 0 < math.prod(problem.output_shapes[0]) < 2**31


def _max_pool(problem: PoolProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
    if pool_strips.suits(problem):
        pool_strips.max_pool(problem, outs, ins)
        return
    (x,), (y, *rest) = ins, outs
    indices = rest[0] if problem.indices else y
    strides = strides_of(x, 1), strides_of(indices, 1), strides_of(y, 1)
    g = geometry(problem, (x, *outs), *strides, option=inner(y) | int(problem.indices))
    start = zero(problem.acc_dtype)
    if _large(problem):
        pointers = pointer(x), pointer(y), pointer(indices)
        launch(max_whole_kernel(problem.acc_dtype), math.prod(y.shape), TOGETHER, (*outs, x), *pointers, g, start)
        return
    over(max_pool, math.prod(y.shape), (*outs, x), pointer(x), pointer(y), pointer(indices), g, math.prod(y.shape), start)


def _max_pool_backward(problem: PoolProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
    (grad, second), out = ins, outs[0]
    strides = strides_of(second, 1), strides_of(out, 1), strides_of(grad, 1)
    g = geometry(problem, (out, *ins), *strides, option=inner(out))
    items, start = math.prod(out.shape), zero(problem.acc_dtype)
    if not problem.indices:
        if pool_strips.suits(problem):
            pool_strips.max_pool_backward(problem, outs, ins)
            return
        over(max_pool_backward, items, (out, *ins), pointer(grad), pointer(second), pointer(out), g, items, start)
        return
    if SIMULATED:  # elsewhere it would wait for the device; an index outside reaches nothing
        check_indices(problem.op, second, math.prod(problem.spatial))
    strays, one = scratch((1,), np.dtype(np.int64), grad), zero("int64") + 1
    over(clear, 1, (strays, *ins), pointer(strays), 1, zero("int64"))
    pointers = pointer(grad), pointer(second), pointer(strays), pointer(out)
    if pool_strips.suits(problem):
        pool_strips.find_strays(problem, strays, grad, second)
        pool_strips.max_pool_backward(problem, outs, ins)
        few = min(items, REPAIRING)
        over(searched_backward, few, (out, strays, *ins), *pointers, g, items, one, start)
        return
    over(find_strays, math.prod(second.shape), (strays, *ins), pointer(second), pointer(strays), g, math.prod(second.shape), one)
    over(indexed_backward, items, (out, strays, *ins), *pointers, g, items, one, start)


@kernel
def clear(out, items, value):
    """Set every element to a value."""
    for item in range(cuda.grid(1), items, cuda.gridsize(1)):
        store(out, item, value)


def _avg_pool(problem: PoolProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
    if pool_strips.suits(problem):
        pool_strips.avg_pool(problem, outs, ins)
        return
    x, y = ins[0], outs[0]
    g = geometry(problem, (x, y), strides_of(x, 1), y=strides_of(y, 1), option=inner(y))
    items = math.prod(y.shape)
    if _large(problem):
        arguments = (pointer(x), pointer(y), g, *pool_strips.counting(problem), zero(problem.acc_dtype))
        launch(avg_whole_kernel(problem.acc_dtype), items, TOGETHER, (y, x), *arguments)
        return
    over(avg_pool, items, (y, x), pointer(x), pointer(y), g, *pool_strips.counting(problem), items, zero(problem.acc_dtype))


def _avg_pool_backward(problem: PoolProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
    if pool_strips.suits(problem):
        pool_strips.avg_pool_backward(problem, outs, ins)
        return
    grad, x = ins[0], outs[0]
    g = geometry(problem, (x, grad), strides_of(x, 1), y=strides_of(grad, 1), option=inner(x))
    items = math.prod(x.shape)
    over(
        avg_pool_backward,
        items,
        (x, grad),
        pointer(grad),
        pointer(x),
        g,
        *pool_strips.counting(problem),
        items,
        zero(problem.acc_dtype),
    )


def _lp_pool(problem: PoolProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
    x, y, start = ins[0], outs[0], zero(problem.acc_dtype)
    g = geometry(problem, (x, y), strides_of(x, 1), y=strides_of(y, 1), option=inner(y))
    items = math.prod(y.shape)
    over(lp_pool, items, (y, x), pointer(x), pointer(y), g, type(start)(problem.p), items, start)


def _lp_pool_backward(problem: PoolProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
    (grad, x), out, start = ins, outs[0], zero(problem.acc_dtype)
    g = geometry(problem, (out, *ins), strides_of(x, 1), strides_of(out, 1), strides_of(grad, 1), inner(out))
    items = math.prod(out.shape)
    over(lp_pool_backward, items, (out, *ins), pointer(grad), pointer(x), pointer(out), g, type(start)(problem.p), items, start)


class Pool(Implementation):
    """Pooling by its definition, for every problem."""

    name = "pool"
    ops = frozenset(POOL_OPS)

    def supports(self, problem: PoolProblem) -> Verdict:
        """Yes: there is no limit."""
        return Verdict.yes()

    def cost(self, problem: PoolProblem) -> float:
        """Memory, and an operation a tap."""
        return moved(problem)

    def workspace(self, problem: PoolProblem) -> int:
        """A flag, where indices are given."""
        return 8 if problem.op == "max_pool_backward" and problem.indices else 0

    def build(self, problem: PoolProblem) -> Executor:
        """``executor(outs, ins)`` of the operation."""
        runs: dict[str, Callable[[PoolProblem, Sequence[Any], Sequence[Any]], None]] = {
            "max_pool": _max_pool, "max_pool_backward": _max_pool_backward,
            "avg_pool": _avg_pool, "avg_pool_backward": _avg_pool_backward,
            "lp_pool": _lp_pool, "lp_pool_backward": _lp_pool_backward,
        }  # fmt: skip
        return recorded(functools.partial(runs[problem.op], problem))
