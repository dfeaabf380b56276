"""The gradient of max pooling in vectors: the winners of windows are found, then each element adds up the windows that it won.

Nothing is scattered: neighbouring elements compare their own places with those of the winners, a phase of the stride at a time, and
each element of the result is written once. Windows come in the row-major order of y, as in `pooling`. An item is a band of rows of
a channel, whose winners stay in the cache.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from numconv.plugin import Implementation, PoolProblem, Verdict, np_dtype
from numconv_numba.compiling.compiler import Address, helper, invoke, kernel
from numconv_numba.elements import INT64, memory, release, scratch
from numconv_numba.microkernels.emit import lanes_of
from numconv_numba.scalar import address, pointer
from numconv_numba.sliding import (
    CHANNELS,
    FETCHED,
    INNER,
    JOB_SIZE,
    LENGTH,
    OUTER,
    SIZE,
    TAPS,
    Rows,
    X,
    list_bytes,
    list_rows,
    outer_axis,
)
from numconv_numba.threads import MAX_THREADS, parallel_for, run

from .crosswise_plans import reached
from .pool import Pool
from .vector_pooling import call_seconds, lists_bytes, pooled_in_vectors, seconds_in_vectors, stepped_in_vectors

__all__ = ["VectorGather"]

BAND = 1 << 17
"""Bytes of the rows of x that an item fills, if its windows need no more."""
ITEMS = 16
"""Work items at least, where channels have rows enough."""
WON_SECONDS, VECTOR_SECONDS = 2.5e-10, 5e-10
"""On two threads: of a tap of a vector of windows, compared; of a vector of elements."""
PLACE_BYTES = 4
"""Of the place of a winner: fewer than 2**31 positions are in a channel."""


@helper
def each_row(tool, vector, area, lists, listed, x, y, y_step, beside, beside_step, advance, first, last):
    """The rows first..last of results, counted over the outer axes, by `tool`; returns the outer index whose rows `lists` has.

    `area` is the memory of the job. `advance` is what the first result adds to the places, for each element of a row before it
    where `beside` does not move.
    """
    g, job, row = pointer(vector, INT64), pointer(area, INT64), first
    while row < last:
        outer, c = row // g[OUTER + 2], row % g[OUTER + 2]
        if listed != outer:
            list_rows(g, address(0), address(0), lists, outer // g[OUTER + 1], outer % g[OUTER + 1])
            listed = outer
        job[0], job[1], job[2], job[3], job[4] = min(g[OUTER + 2] - c, last - row), list_bytes(g), y_step, beside_step, 0
        job[5], job[6], job[7], job[8] = g[LENGTH], g[SIZE], g[TAPS + 3], advance if beside_step else row * g[LENGTH]
        job[9], entries = g[FETCHED], lists + c * list_bytes(g)
        invoke(tool, x, entries, y + row * y_step, beside + row * beside_step, area, vector + 8 * g[INNER])
        row += job[0]
    return listed


@helper
def _gather(begin, end, args):
    finder, tool, item, stride, places, x, y, grad, bands, table, ahead, back = args
    there, here, band = pointer(ahead, INT64), pointer(back, INT64), pointer(table, INT64)
    sizes = there[OUTER + 2] * list_bytes(there), here[OUTER + 2] * list_bytes(here)
    buffer = scratch(8 * JOB_SIZE + sizes[0] + sizes[1] + places)
    area = memory(buffer)
    lists = area + 8 * JOB_SIZE
    more = lists + sizes[0]
    found, listed, more_listed = more + sizes[1], -1, -1
    step, volume = PLACE_BYTES * there[LENGTH], here[OUTER] * here[OUTER + 1] * here[OUTER + 2] * here[LENGTH]
    for number in range(begin, end):
        plane, entry = number // bands, 4 * (number % bands)
        n, channel = plane // here[CHANNELS], plane % here[CHANNELS]
        winners = found - band[entry + 2] * step
        x_c, y_c = x + (n * there[X] + channel * there[X + 1]), y + (n * here[X] + channel * here[X + 1])
        listed = each_row(
            finder, ahead, area, lists, listed, x_c, address(0), 0, winners, step, stride, band[entry + 2], band[entry + 3]
        )
        target = grad + plane * volume * item
        more_listed = each_row(
            tool, back, area, more, more_listed, y_c, target, here[LENGTH] * item, winners, 0, 0, band[entry], band[entry + 1]
        )
    release(buffer)


@kernel
def gather(
    region: int, workers: int, items: int, finder: int, tool: int, item: int, stride: int, places: int,
    x: Address, y: Address, grad: Address, bands: int, table: Address, ahead: Address, back: Address,
) -> None:  # fmt: skip
    """The gradient of x from that of y, and x, by two sweeps of `windows`: an item is one of the `bands` of a channel.

    `finder` and `tool` are the addresses of "winner" and "won", `ahead` and `back` the drivers' vectors, `item` the bytes of an
    element, `places` those of the winners of a band. `table` has four numbers for each band: from where to where the rows of x go,
    and those of y that read them.
    """
    args = finder, tool, item, stride, places, x, y, grad, bands, table, ahead, back
    parallel_for(region, workers, items, _gather, args)


# --- the implementation --------------------------------------------------------------------------------------------------------


def _bands(problem: PoolProblem) -> np.ndarray[Any, Any]:
    """``[bands, 4]``: from where to where the rows of x go, and those of y that read them; whole indices of the first axis."""
    *x_outer, _ = problem.spatial
    if not x_outer:
        return np.array([[0, 1, 0, 1]], np.int64)
    size, table = problem.spatial[0], outer_axis(problem, 0, True).table
    plane = math.prod(problem.spatial) * np_dtype(problem.dtype).itemsize
    parts = max(-(-plane // BAND), -(-ITEMS // max(problem.n * problem.c, 1)) if plane > BAND // ITEMS else 1)
    # a band of fewer indices than its windows span finds more winners beside it than in it
    step = max(-(-size // parts), min(size, 2 * (problem.dilation[0] * (problem.window[0] - 1) + 1)))
    x_rows, y_rows = math.prod(problem.spatial[1:-1]), math.prod(problem.output[1:-1])
    bands = []
    for first in range(0, size, step):
        last = min(first + step, size)
        begin, end = reached(table, first, last)
        bands.append((first * x_rows, last * x_rows, begin * y_rows, end * y_rows))
    return np.array(bands, np.int64)


def _place_bytes(problem: PoolProblem) -> int:
    """Of the winners of a band, at most."""
    bands = _bands(problem)
    return int((bands[:, 3] - bands[:, 2]).max()) * problem.output[-1] * PLACE_BYTES


class _Executor:
    """The kernel, its tables, and the general implementation for arrays without neighbours in memory."""

    def __init__(self, problem: PoolProblem):
        self._problem = problem
        self._ahead, self._back = (Rows(problem, back=back, innermost=False) for back in (False, True))
        bands = _bands(problem)
        items = problem.n * problem.c * len(bands)
        self._run = functools.partial(run, gather.specialise(), items, 3 * problem.bytes + problem.flops)
        tools = self._ahead.tool("winner", problem.dtype), self._back.tool("won", problem.dtype)
        self._fixed = *tools, np_dtype(problem.dtype).itemsize, problem.stride[-1], _place_bytes(problem)
        self._bands = len(bands), bands

    @functools.cached_property
    def _general(self) -> Any:
        return Pool().build(self._problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        (grad,), (y, x) = outs, ins
        if not grad.flags.c_contiguous or any(array.strides[-1] != array.itemsize for array in (x, y)):
            self._general(outs, ins)
        elif self._problem.n:
            none = (0,) * x.ndim
            ahead, back = self._ahead.vector(x.strides, none, none), self._back.vector(y.strides, none, none)
            self._run(*self._fixed, x, y, grad, *self._bands, ahead, back)


class VectorGather(Implementation):
    """The gradient of max pooling whose winners are found, channels first."""

    name = "vector_gather"
    ops = frozenset(("max_pool_backward",))

    def supports(self, problem: PoolProblem) -> Verdict:
        """What `vector_pool` takes, channels first, without indices."""
        if problem.indices:
            return Verdict.no("the winners are given: it finds them")
        if problem.layout == "channels_last":
            return Verdict.no("layout channels_last: it takes rows along the last axis")
        return pooled_in_vectors(problem) and stepped_in_vectors(problem)

    def cost(self, problem: PoolProblem) -> float:
        """The time to move the arrays, to find the winners, and to compare each with the places of its window."""
        lanes, rows = lanes_of(problem.dtype), problem.n * problem.c * math.prod(problem.spatial[:-1])
        windows = problem.n * problem.c * math.prod(problem.output[:-1]) * -(-problem.output[-1] // lanes)
        elements = rows * -(-problem.spatial[-1] // (lanes * problem.stride[-1])) * problem.stride[-1]
        won = windows * math.prod(problem.window) * WON_SECONDS + elements * VECTOR_SECONDS
        return 2e-6 + problem.bytes / 1e11 + seconds_in_vectors(problem) + won + call_seconds(problem)

    def workspace(self, problem: PoolProblem) -> int:
        """For each thread the lists of the rows of both sides, and the winners of a band."""
        return MAX_THREADS * (2 * lists_bytes(problem) + _place_bytes(problem) + 8 * JOB_SIZE + 128)

    def build(self, problem: PoolProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
