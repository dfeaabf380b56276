"""Pooling with small windows over two dimensions: a thread computes a strip of results, see `strips`.

A forward pass is a convolution without weights. A gradient gathers, so that nothing is added by two threads: a thread has a strip
of elements of x, and finds for every window that holds one of them what it chose or by what it divided, once
for all of its elements.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from numconv.plugin import PoolProblem, np_dtype
from numconv_cuda.geometry import CHANNELS_INNER, Geometry, geometry, inner, strides_of
from numconv_cuda.primitives.elements import repeated, store
from numconv_cuda.runtime.compiler import SIMULATED, Kernel, cuda, device, kernel
from numconv_cuda.runtime.launching import launch, pointer, zero

from .pool_terms import strip_chosen, strip_max, strip_means, strip_shares, strip_strays, strip_winners
from .strip_places import Launch, addresses_of, coarse_of, divisors, lifted, locator, run_along, strip_shape, typed
from .strip_terms import put, strip_sums
from .strips import Divisor, Pooled, Run, Strip, forward_axis, gradient_axis

__all__ = ["avg_pool", "avg_pool_backward", "counting", "find_strays", "max_pool", "max_pool_backward", "suits"]

THREADS = 2 if SIMULATED else 128
"""Of a block."""
TAPS, TESTS = 49, 400
"""The most taps of a window, and the most tests of an element against the others of a window that a kernel writes out."""


# --- the kernels -----------------------------------------------------------------------------------------------------------------


@functools.cache
def max_kernel(pooled: Pooled, dtype: str, inner_channels: int, index_strip: Strip | None) -> Kernel:
    """The kernel of maxima, and of their indices: (x, y, indices, g, coarse, channels, bases, items, least)."""
    strip, indexed = pooled.windows, index_strip is not None
    take, write, write_indices = strip_max(pooled, indexed=indexed), put(strip), put(index_strip or strip)
    results, height, width, locate = strip.results, strip.height, strip.width, locator(inner_channels)
    rows_apart, columns_apart = strip.rows.advance, strip.columns.advance
    nowhere = np.int64(-1)

    def max_strips(x, y, indices, g, coarse, channels, bases, items, least):
        item = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if item < items:
            n, channel, place = locate(item, coarse, channels)
            position = place[0] * rows_apart + bases[0], place[1] * columns_apart + bases[1]
            best, places = repeated(least, results), repeated(nowhere, results)
            best, places = take(best, places, x, n * g.x.n + channel * g.x.group, position, g.size, g.x.spatial)
            first = place[0] * height, place[1] * width
            write(y, n * g.y.n + channel * g.y.group, first, g.output, g.y.spatial, best)
            if indexed:
                write_indices(indices, n * g.w.n + channel * g.w.group, first, g.output, g.w.spatial, places)

    return _named(max_strips, strip, dtype, inner_channels, f"i{index_strip.result.length}" if index_strip is not None else "")


@functools.cache
def avg_kernel(pooled: Pooled, dtype: str, inner_channels: int) -> Kernel:
    """The kernel of means: (x, y, g, coarse, channels, bases, items, floors, reaches, zero, one)."""
    strip = pooled.windows
    add_terms, divide, write = strip_sums(strip, careful=False), strip_means(pooled), put(strip)
    results, height, width, taps, locate = strip.results, strip.height, strip.width, strip.taps, locator(inner_channels)
    rows_apart, columns_apart = strip.rows.advance, strip.columns.advance

    def avg_strips(x, y, g, coarse, channels, bases, items, floors, reaches, zero, one):
        item = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if item < items:
            n, channel, place = locate(item, coarse, channels)
            position = place[0] * rows_apart + bases[0], place[1] * columns_apart + bases[1]
            acc, ones = repeated(zero, results), repeated(one, taps)
            acc = add_terms(acc, x, n * g.x.n + channel * g.x.group, position, g.size, g.x.spatial, ones)
            acc = divide(acc, position, floors, reaches)
            write(y, n * g.y.n + channel * g.y.group, (place[0] * height, place[1] * width), g.output, g.y.spatial, acc)

    return _named(avg_strips, strip, dtype, inner_channels)


def _shares(pooled: Pooled) -> Any:
    """The device function that adds up the shares of the means that hold an element."""
    add_shares = strip_shares(pooled)

    @device
    def gather(acc, grad, other, g, n, channel, first, output, window, floors, reaches):
        return add_shares(acc, grad, n * g.y.n + channel * g.y.group, output, g.output, g.y.spatial, window, floors, reaches)

    return gather


def _winners(pooled: Pooled) -> Any:
    """The device function that adds up the gradients of the windows whose largest element each is; the other array is x."""
    add_won = strip_winners(pooled)

    @device
    def gather(acc, grad, other, g, n, channel, first, output, window, floors, reaches):
        at, at_x = n * g.y.n + channel * g.y.group, n * g.x.n + channel * g.x.group
        return add_won(acc, grad, at, output, g.output, g.y.spatial, other, at_x, window, g.size, g.x.spatial)

    return gather


def _chosen(pooled: Pooled) -> Any:
    """The device function that adds up the gradients of the windows that chose an element; the other array has the indices."""
    add_chosen = strip_chosen(pooled)

    @device
    def gather(acc, grad, other, g, n, channel, first, output, window, floors, reaches):
        at, at_index = n * g.y.n + channel * g.y.group, n * g.x.n + channel * g.x.group
        here = first[0] * g.size[1] + first[1], g.size[1]
        return add_chosen(acc, grad, at, output, g.output, g.y.spatial, other, at_index, g.x.spatial, here)

    return gather


@functools.cache
def backward_kernel(gatherer: Any, pooled: Pooled, dtype: str, inner_channels: int) -> Kernel:
    """The kernel of a gradient for x: (grad, other, out, g, coarse, channels, bases, items, floors, reaches, zero)."""
    strip, gather = pooled.elements, gatherer(pooled)
    write, results, height, width, locate = put(strip), strip.results, strip.height, strip.width, locator(inner_channels)
    rows_apart, columns_apart = strip.rows.advance, strip.columns.advance

    def backward_strips(grad, other, out, g, coarse, channels, bases, items, floors, reaches, zero):
        item = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if item < items:
            n, channel, place = locate(item, coarse, channels)
            output = place[0] * rows_apart + bases[0], place[1] * columns_apart + bases[1]
            window = output[0] * g.stride[0] - g.low[0], output[1] * g.stride[1] - g.low[1]
            first, acc = (place[0] * height, place[1] * width), repeated(zero, results)
            acc = gather(acc, grad, other, g, n, channel, first, output, window, floors, reaches)
            write(out, n * g.w.n + channel * g.w.group, first, g.size, g.w.spatial, acc)

    return _named(backward_strips, strip, dtype, inner_channels, gatherer.__name__)


@functools.cache
def strays_kernel(pooled: Pooled, inner_channels: int) -> Kernel:
    """The kernel that finds indices outside their windows: (indices, strays, g, coarse, channels, bases, items, one)."""
    strip = pooled.windows
    strayed, height, width, locate = strip_strays(pooled), strip.height, strip.width, locator(inner_channels)
    rows_apart, columns_apart = strip.rows.advance, strip.columns.advance

    def find_strays(indices, strays, g, coarse, channels, bases, items, one):
        item = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if item < items:
            n, channel, place = locate(item, coarse, channels)
            position = place[0] * rows_apart + bases[0], place[1] * columns_apart + bases[1]
            first, at = (place[0] * height, place[1] * width), n * g.x.n + channel * g.x.group
            if strayed(indices, at, first, g.output, g.x.spatial, position, g.size):
                store(strays, 0, one)

    return _named(find_strays, strip, "int64", inner_channels)


def _named(function: Any, strip: Strip, dtype: str, inner_channels: int, more: str = "") -> Kernel:
    name = f"{function.__name__}_{strip.name}_{inner_channels}{more}_{dtype}"
    function.__name__ = function.__qualname__ = name
    return kernel(function)


# --- from a problem to launches ------------------------------------------------------------------------------------------------


def suits(problem: PoolProblem) -> bool:
    """Whether pooling is over up to two dimensions of floats, with a window that is written out."""
    if problem.ndim > 2 or problem.acc_dtype not in ("float32", "float64") or math.prod(problem.window) > TAPS:
        return False
    if problem.op.startswith("lp") or max(math.prod(shape) for shape in (*problem.input_shapes, *problem.output_shapes)) >= 2**31:
        return False
    backward = problem.op.endswith("backward")
    if backward and max(problem.stride) > 8:
        return False
    if problem.op == "max_pool_backward" and not problem.indices:
        axes = zip(problem.window, problem.stride, problem.dilation, strict=True)
        windows = [(3 + d * (r - 1)) // stride + 1 for r, stride, d in axes]
        return math.prod(windows) * math.prod(problem.window) <= TESTS
    return True


def _pooled(problem: PoolProblem, g: Geometry, source: int, result: int) -> tuple[Pooled, tuple[int, int]]:
    """The strips of a problem, and where the first source of the first one is, for arrays at these addresses."""
    backward = problem.op.endswith("backward")
    windows, elements, reads, bases = [], [], [], []
    shape = strip_shape(g.size if backward else g.output, math.prod(problem.output_shapes[0]))
    for axis in range(2):
        window, stride, dilation, low = (int(values[axis]) for values in (g.window, g.stride, g.dilation, g.low))
        count = stride * -(-shape[axis] // stride) if backward else shape[axis]
        windows.append(forward_axis(window, stride, dilation, False, count))
        elements.append(gradient_axis(window, stride, dilation, False, low, count if backward else stride))
        reads.append(tuple(tuple(at * stride + tap * dilation for tap in range(window)) for at in range(elements[-1].span)))
        bases.append(low // stride + elements[-1].first if backward else -low)
    written, limit = (g.w, g.size) if backward else (g.y, g.output)
    read, size = (g.y, g.output) if backward else (g.x, g.size)
    axes = elements if backward else windows
    unit = all(steps.spatial[-1] == 1 for steps in ((g.x, g.y, g.w) if problem.op.startswith("max") else (g.x, g.y)))
    load = run_along(source, read, size[-1], problem.dtype, axes[1].advance) if unit else 1
    keep = run_along(result, written, limit[-1], problem.out_dtype, len(axes[1].terms)) if unit else 1
    window_sizes = int(g.window[0]), int(g.window[1])
    runs = Run(load, -bases[1] % load), Run(keep)
    strip, other = (Strip(pair[0], pair[1], window_sizes, *runs, unit) for pair in (windows, elements))
    return Pooled(strip, other, (reads[0], reads[1])), (bases[0], bases[1])


def planned(problem: PoolProblem, g: Geometry, source: int, result: int, places: int) -> Launch:
    """The kernel of a problem for arrays at these addresses: what is read, what is written, and indices."""
    g = lifted(g)
    pooled, bases = _pooled(problem, g, source, result)
    backward = problem.op.endswith("backward")
    strip = pooled.elements if backward else pooled.windows
    dtype, channels_inner = problem.acc_dtype, int(g.option) & CHANNELS_INNER
    if problem.op == "max_pool":
        run = run_along(places, g.w, g.output[-1], "int64", strip.width) if strip.unit else 1
        indices = strip._replace(result=Run(run)) if problem.indices else None
        function = max_kernel(pooled, dtype, channels_inner, indices)
    elif backward:
        gatherer = _shares if problem.op == "avg_pool_backward" else _chosen if problem.indices else _winners
        function = backward_kernel(gatherer, pooled, dtype, channels_inner)
    else:
        function = avg_kernel(pooled, dtype, channels_inner)
    coarse = coarse_of(g.size if backward else g.output, strip)
    items = problem.n * problem.c * math.prod(coarse)
    arguments: tuple[Any, ...] = (g, divisors(coarse), Divisor.of(problem.c), typed(bases, g), np.int32(items))
    if problem.op != "max_pool":
        floors, limits = counting(problem)
        floors, limits = (0, *floors)[-2:], (1, *limits)[-2:]
        arguments += typed(floors, g), typed([limit - floor for limit, floor in zip(limits, floors, strict=True)], g)
    return Launch(function, -(-items // THREADS), THREADS, arguments)


def planned_strays(problem: PoolProblem, g: Geometry) -> Launch:
    g = lifted(g)
    forward = problem.replace(op="max_pool")
    pooled, bases = _pooled(forward, g, 1, 1)
    strip = pooled.windows
    coarse = coarse_of(g.output, strip)
    items = problem.n * problem.c * math.prod(coarse)
    function = strays_kernel(pooled, int(g.option) & CHANNELS_INNER)
    arguments = g, divisors(coarse), Divisor.of(problem.c), typed(bases, g), np.int32(items)
    return Launch(function, -(-items // THREADS), THREADS, arguments)


def _start(plan: Launch, arrays: Sequence[Any], pointers: Sequence[Any], *numbers: Any) -> None:
    if plan.blocks:
        launch(plan.kernel, plan.blocks, plan.threads, arrays, *pointers, *plan.arguments, *numbers)


def max_pool(problem: PoolProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
    """y, and the indices if they are asked for."""
    (x,), (y, *rest) = ins, outs
    indices = rest[0] if problem.indices else y
    g = geometry(problem, (x, *outs), strides_of(x, 1), strides_of(indices, 1), strides_of(y, 1), option=inner(y))
    pointers = pointer(x), pointer(y), pointer(indices)
    _start(planned(problem, g, *addresses_of(*pointers)), (*outs, x), pointers, np_dtype(problem.acc_dtype).type(-np.inf))


def max_pool_backward(problem: PoolProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
    """The gradient for x, which is given, or the indices in its place."""
    (grad, second), out = ins, outs[0]
    g = geometry(problem, (out, *ins), strides_of(second, 1), strides_of(out, 1), strides_of(grad, 1), inner(out))
    pointers = pointer(grad), pointer(second), pointer(out)
    plan = planned(problem, g, *addresses_of(pointers[0], pointers[2], pointers[1]))
    _start(plan, (out, *ins), pointers, zero(problem.acc_dtype))


def find_strays(problem: PoolProblem, strays: Any, grad: Any, indices: Any) -> None:
    """Set the flag if an index lies outside the window of its element."""
    g = geometry(problem, (grad, indices), strides_of(indices, 1), strides_of(indices, 1), strides_of(indices, 1), inner(indices))
    _start(planned_strays(problem, g), (strays, grad, indices), (pointer(indices), pointer(strays)), zero("int64") + 1)


def avg_pool(problem: PoolProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
    """The means."""
    x, y = ins[0], outs[0]
    g = geometry(problem, (x, y), strides_of(x, 1), strides_of(y, 1), strides_of(y, 1), inner(y))
    pointers, start = (pointer(x), pointer(y)), zero(problem.acc_dtype)
    _start(planned(problem, g, *addresses_of(*pointers), 0), (y, x), pointers, start, start + 1)


def avg_pool_backward(problem: PoolProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
    """The gradient of means for x."""
    grad, x = ins[0], outs[0]
    g = geometry(problem, (x, grad), strides_of(x, 1), strides_of(x, 1), strides_of(grad, 1), inner(x))
    pointers = pointer(grad), pointer(grad), pointer(x)
    _start(planned(problem, g, *addresses_of(pointers[0], pointers[2]), 0), (x, grad), pointers, zero(problem.acc_dtype))


def counting(problem: PoolProblem) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(floors, limits) of the positions that count in a mean."""
    if problem.count_include_pad:
        reach = tuple(size + high for size, (_, high) in zip(problem.spatial, problem.padding, strict=True))
        return tuple(-low for low, _ in problem.padding), reach
    return (0,) * problem.ndim, problem.spatial
