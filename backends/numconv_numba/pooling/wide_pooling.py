"""Max and average pooling over wide windows, such as whole channels: a window is reduced along its rows.

Windows that cover the last axis make one row of it and the axis before; and those that cover their channel make windows of one long
row of all channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba.extending import overload

from numconv.plugin import Implementation, PoolProblem, Verdict
from numconv_numba.compiling.compiler import Address, Tag, helper, invoke, kernel
from numconv_numba.elements import INT64, itemsize, memory, release, scratch
from numconv_numba.microkernels.emit import lanes_of
from numconv_numba.microkernels.reduction import REDUCTION, reduction
from numconv_numba.scalar import add, address, load, pointer, store, value_type, wide_vectors, zero
from numconv_numba.sliding import (
    ADVANCE,
    BESIDE,
    CHANNELS,
    FLOAT64,
    LENGTH,
    OUTER,
    OUTER_AXES,
    SIZE,
    SOURCE,
    Rows,
    X,
    Y,
    list_bytes,
    list_rows,
    place_in,
    split_item,
)  # fmt: skip
from numconv_numba.threads import MAX_THREADS, parallel_for, run

from .averages import axis_counts
from .pool import Pool
from .vector_pooling import averaged_in_vectors, lists_bytes, pooled_in_vectors
from .window_rows import fill, fill_memory
from .windows import row_major

__all__ = ["WidePool", "joined"]

PART = 256
"""Results of a row that one work item computes."""
RESULT_SECONDS, SUM_SECONDS, MAX_SECONDS, SPREAD_SECONDS, REST_SECONDS = 3e-10, 1.5e-10, 2.5e-10, 4e-10, 8e-10
"""Of a result, of a vector of its window, and of one that a row of the window does not fill, on two threads."""
JOB_SIZE = len(REDUCTION)


@helper
def inner_run(ends, q, last, window, stride, low, size):
    """How many results from q on have windows of the same length and share: one at the ends of a row, else all inside it."""
    inside = min((size - window + low) // stride + 1, last) if q * stride >= low else q
    return max(min(inside, load(ends + q * 8, INT64)) - q, 1)


@helper
def _reduce(begin, end, args):
    tool, item, window, stride, low, ends, x, y, places, shares, scales, vector = args
    g = pointer(vector, INT64)
    size, length, parts = g[SIZE], g[LENGTH], -(-g[LENGTH] // PART)
    buffer = scratch(8 * JOB_SIZE + g[OUTER + 2] * list_bytes(g))
    job, lists = pointer(memory(buffer), INT64), memory(buffer) + 8 * JOB_SIZE
    job[1], job[4], listed = stride * item, g[ADVANCE], -1
    for number in range(begin, end):
        n, channel, a, b, c, chunk = split_item(g, number, parts)
        if listed != a * g[OUTER + 1] + b:
            list_rows(g, address(0), scales, lists, a, b)
            listed = a * g[OUTER + 1] + b
        entries = lists + c * list_bytes(g)
        x_c, y_c = x + (n * g[X] + channel * g[X + 1]), place_in(g, y, Y, n, channel, a, b, c)
        places_c, outer, q = place_in(g, places, BESIDE, n, channel, a, b, c), load(entries + 8, FLOAT64), chunk * PART
        while q < min((chunk + 1) * PART, length):
            start = max(q * stride - low, 0)
            job[0] = inner_run(ends, q, min((chunk + 1) * PART, length), window, stride, low, size)
            job[2], job[3] = min(q * stride - low + window, size) - start, start - q * (stride - g[ADVANCE])
            store(entries + 8, outer * load(shares + q * 8, FLOAT64), FLOAT64)
            invoke(tool, x_c + start * item, entries, y_c + q * item, places_c + q * 8, memory(buffer))
            q += job[0]
        store(entries + 8, outer, FLOAT64)
    release(buffer)


@kernel
def reduce(
    region: int, workers: int, items: int, tool: int, item: int, window: int, stride: int, low: int, ends: Address, x: Address,
    y: Address, places: Address, shares: Address, scales: Address, g: Address,
) -> None:  # fmt: skip
    """y, and places where the kind is "argmax", by the microkernel `reduction`: an item is a part of a row of y.

    `item` is the size of an element; `window`, `stride` and `low` padding are those of the rows; `shares` are one over the counts
    of results along them, `ends` say where equal ones end, `scales` are those of the outer axes.
    """
    parallel_for(region, workers, items, _reduce, (tool, item, window, stride, low, ends, x, y, places, shares, scales, g))


def in_dtype(number: Any, dtype: Any) -> Any:
    """A float64 as a number of a dtype, float32 or float64."""
    raise NotImplementedError("for kernels only")


@overload(in_dtype)
def _in_dtype(number, dtype):
    kind = value_type(dtype)
    return lambda number, dtype: kind(number)


@helper
def add_number(row, count, number, dtype):
    """Add a number to each element of a contiguous row."""
    wide_vectors()
    for i in range(count):
        place = row + i * itemsize(dtype)
        store(place, add(load(place, dtype), number), dtype)


@helper
def _spread(begin, end, args):
    dtype, window, stride, low, y, grad, shares, scales, vector = args
    g = pointer(vector, INT64)
    item, size, length = itemsize(dtype), g[SIZE], g[LENGTH]
    volume = g[SOURCE] * g[SOURCE + 1] * g[SOURCE + 2] * size
    buffer = scratch(g[OUTER + 2] * list_bytes(g))
    lists, listed = memory(buffer), -1
    for plane in range(begin, end):
        n, channel = plane // g[CHANNELS], plane % g[CHANNELS]
        target = grad + plane * volume * item
        fill(target, volume, zero(dtype), dtype)
        for row in range(g[OUTER] * g[OUTER + 1] * g[OUTER + 2]):
            c, outer = row % g[OUTER + 2], row // g[OUTER + 2]
            if listed != outer:
                list_rows(g, address(0), scales, lists, outer // g[OUTER + 1], outer % g[OUTER + 1])
                listed = outer
            entries = lists + c * list_bytes(g)
            share = load(entries + 8, FLOAT64)
            source = place_in(g, y, Y, n, channel, outer // g[OUTER + 1], outer % g[OUTER + 1], c)
            for q in range(length):
                start, stop = max(q * stride - low, 0), min(q * stride - low + window, size)
                number = load(source + q * item, dtype) * in_dtype(share * load(shares + q * 8, FLOAT64), dtype)
                for entry in range(load(entries, INT64)):
                    offset = load(entries + 24 * (entry + 1), INT64)
                    add_number(target + (offset + start * item), stop - start, number, dtype)
    release(buffer)


@kernel
def spread(
    dtype: Tag, region: int, workers: int, items: int, window: int, stride: int, low: int, y: Address, grad: Address,
    shares: Address, scales: Address, g: Address,
) -> None:  # fmt: skip
    """The gradient of x from that of y, with the parameters of `reduce`: each window adds its share to its elements.

    An item is a channel.
    """
    parallel_for(region, workers, items, _spread, (dtype, window, stride, low, y, grad, shares, scales, g))


def joined(problem: PoolProblem) -> PoolProblem:
    """The same windows with the last axes joined while each of them lies in one window."""
    while problem.ndim > 1 and _covers_axis(problem, -1) and problem.dilation[-2] == 1:
        size = problem.spatial[-1]
        sizes = {name: _joined(getattr(problem, name), size) for name in ("spatial", "window", "stride")}
        low, high = problem.padding[-2]
        padding = (*problem.padding[:-2], (low * size, high * size))
        problem = problem.replace(**sizes, padding=padding, dilation=problem.dilation[:-1])
    return problem


def merged(problem: PoolProblem) -> PoolProblem:
    """The `joined` windows, as those of one row of all channels where they cover their channel."""
    problem = joined(problem)
    if problem.ndim == 1 and _covers_axis(problem, 0) and problem.op != "avg_pool_backward":
        size = problem.spatial[0]
        return problem.replace(n=1, c=1, spatial=(max(problem.n, 1) * problem.c * size,), stride=(size,))
    return problem


def _covers_axis(problem: PoolProblem, axis: int) -> bool:
    return problem.window[axis] == problem.spatial[axis] and problem.padding[axis] == (0, 0) and problem.dilation[axis] == 1


def _joined(sizes: tuple[int, ...], size: int) -> tuple[int, ...]:
    return (*sizes[:-2], sizes[-2] * size)


class _Executor:
    """The kernel, its tables, and the general implementation for arrays that do not fill their memory in row-major order."""

    def __init__(self, problem: PoolProblem):
        self._problem = problem
        wide = merged(problem)
        rows = Rows(wide, back=False, innermost=False)
        counts = axis_counts(wide)
        shares = [np.ones_like(each) if problem.op == "max_pool" else 1 / each for each in counts]
        outer = np.concatenate([*[np.ones(1)] * (OUTER_AXES + 1 - wide.ndim), *shares[:-1]])
        item = np.dtype(problem.dtype).itemsize
        g = rows.vector(row_major(wide.x_shape, item), row_major(wide.y_shape, item), row_major(wide.y_shape, 8))
        if wide.n * wide.c < problem.n * problem.c:
            g[ADVANCE] = 0  # each channel counts its positions from 0
        self._tables = shares[-1], outer, g
        self._run = _spreading(wide) if problem.op == "avg_pool_backward" else _reducing(wide, item, _ends(shares[-1]))

    @functools.cached_property
    def _general(self) -> Any:
        return Pool().build(self._problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        if fill_memory((*outs, *ins)) and self._problem.n:
            self._run(ins[0], outs, *self._tables)
        else:
            self._general(outs, ins)


def _ends(shares: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of each result of a row, where those end that follow it and have the same share."""
    ends = np.append(np.flatnonzero(np.diff(shares)) + 1, shares.size)
    return ends[np.searchsorted(ends, np.arange(shares.size), side="right")]


def _reducing(wide: PoolProblem, item: int, ends: np.ndarray[Any, Any]) -> Callable[..., None]:
    kind = "mean" if wide.op == "avg_pool" else "argmax" if wide.indices else "max"
    tool = reduction.address((kind, lanes_of(wide.dtype)), wide.dtype)
    items = wide.n * wide.c * math.prod(wide.output[:-1]) * -(-wide.output[-1] // PART)
    work = wide.bytes * (1.6 if wide.indices else 0.8)  # places take as long as all else
    fixed = items, work, tool, item, wide.window[-1], wide.stride[-1], wide.padding[-1][0], ends
    kernel = reduce.specialise()
    return lambda x, outs, *tables: run(kernel, *fixed, x, outs[0], outs[-1], *tables)


def _spreading(wide: PoolProblem) -> Callable[..., None]:
    fixed = wide.n * wide.c, 3 * wide.bytes, wide.window[-1], wide.stride[-1], wide.padding[-1][0]
    kernel = spread.specialise(wide.dtype)
    return lambda y, outs, *tables: run(kernel, *fixed, y, outs[0], *tables)


class WidePool(Implementation):
    """Pooling of real floats with the lanes along the windows."""

    name = "wide_pool"
    ops = frozenset(("max_pool", "avg_pool", "avg_pool_backward"))

    def supports(self, problem: PoolProblem) -> Verdict:
        """What `vector_pool` takes, at any stride, channels first, without dilation along the rows."""
        if problem.layout == "channels_last" or problem.dilation[-1] > 1:
            return Verdict.no(f"layout {problem.layout}, dilation {problem.dilation[-1]}: windows are not rows of neighbours")
        return pooled_in_vectors(problem) and averaged_in_vectors(problem)

    def cost(self, problem: PoolProblem) -> float:
        """The time to move the arrays, to reduce each result, and to look at its vectors."""
        wide = merged(problem)
        vectors, rest = divmod(wide.window[-1], lanes_of(problem.dtype))
        each = {"max_pool": MAX_SECONDS, "avg_pool": SUM_SECONDS}.get(problem.op, SPREAD_SECONDS)
        row = vectors * each + (rest > 0) * max(each, REST_SECONDS)
        return 2e-6 + problem.bytes / 1e11 + math.prod(problem.y_shape) * (RESULT_SECONDS + math.prod(wide.window[:-1]) * row)

    def workspace(self, problem: PoolProblem) -> int:
        """For each thread the lists of the rows of a plane."""
        return MAX_THREADS * (lists_bytes(problem) + 256)

    def build(self, problem: PoolProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
