"""The gradient of max pooling: winners that are given, or found in vectors, get the gradients of their windows where they lie.

Windows come in the row-major order of y, as in `pooling`. An item is a channel, or some channels where these are neighbours in
memory: no two items write to the same element.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from numconv.plugin import Implementation, PoolProblem, Verdict

from .compiler import Address, Tag, helper, invoke, kernel
from .elements import INT64, itemsize, keep, memory, scratch
from .places import check_places
from .pooling import Pool
from .scalar import add, address, load, pointer, store, zero
from .sliding import (
    ADVANCE,
    BESIDE,
    CHANNELS,
    INNER,
    JOB_SIZE,
    LENGTH,
    OUTER,
    SIZE,
    SOURCE,
    TAPS,
    Rows,
    X,
    Y,
    list_bytes,
    list_rows,
    place_in,
)  # fmt: skip
from .threads import MAX_THREADS, parallel_for, run
from .vector_pooling import lists_bytes, pooled_in_vectors, seconds_in_vectors, stepped_in_vectors
from .window_rows import fill

__all__ = ["VectorScatter"]

BLOCK, ITEMS = 32, 8
"""Channels of an item where they are neighbours in memory: whole cache lines, and more where so many items stay."""
FOUND = 4096
"""Winners that are found before their gradients are added."""


@helper
def clear(grad, g, first, last, dtype):
    """Set a channel of grad, or some channels, to zero."""
    volume = g[SOURCE] * g[SOURCE + 1] * g[SOURCE + 2]
    if g[ADVANCE] or last - first == g[SIZE]:
        fill(grad, volume * g[SIZE], zero(dtype), dtype)
        return
    for place in range(volume):
        fill(grad + (place * g[SIZE] + first) * itemsize(dtype), last - first, zero(dtype), dtype)


@helper
def add_won(grad, places, y, first, last, step, advance, dtype):
    """Add the results first..last of a row of gradients to where their places say."""
    if advance == 0:
        for q in range(first, last):
            place = grad + load(places + q * 8, INT64) * itemsize(dtype)
            store(place, add(load(place, dtype), load(y + q * itemsize(dtype), dtype)), dtype)
        return
    for q in range(first, last):
        place = grad + (load(places + q * 8, INT64) * step + q * advance)
        store(place, add(load(place, dtype), load(y + q * itemsize(dtype), dtype)), dtype)


@helper
def _scatter(begin, end, args):
    dtype, tool, block, x, y, places, grad, vector = args
    g = pointer(vector, INT64)
    length, innermost = g[LENGTH], g[ADVANCE] == 0
    step, advance = (g[SIZE] * itemsize(dtype), itemsize(dtype)) if innermost else (itemsize(dtype), 0)
    blocks = -(-length // block)
    together = min(max(FOUND // length, 1), g[OUTER + 2])
    buffer = scratch(8 * JOB_SIZE + g[OUTER + 2] * list_bytes(g) + together * length * (8 + itemsize(dtype)))
    job, lists = pointer(memory(buffer), INT64), memory(buffer) + 8 * JOB_SIZE
    found = lists + g[OUTER + 2] * list_bytes(g)
    values = found + together * length * 8
    job[1], job[2], job[3] = list_bytes(g), length * itemsize(dtype), length * 8
    job[6], job[7], job[8] = g[SIZE], g[TAPS + 3], g[ADVANCE]
    volume, listed = g[SOURCE] * g[SOURCE + 1] * g[SOURCE + 2] * g[SIZE], -1
    for item in range(begin, end):
        plane, first = item // blocks, item % blocks * block
        last, n, channel = min(first + block, length), plane // g[CHANNELS], plane % g[CHANNELS]
        job[4], job[5] = first, last
        target, x_c = grad + plane * volume * itemsize(dtype), x + (n * g[X] + channel * g[X + 1])
        clear(target, g, first, last, dtype)
        if not (tool or innermost):
            source, where = place_in(g, y, Y, n, channel, 0, 0, 0), place_in(g, places, BESIDE, n, channel, 0, 0, 0)
            add_won(target, where, source, 0, g[OUTER] * g[OUTER + 1] * g[OUTER + 2] * length, step, 0, dtype)
            continue
        for outer in range(g[OUTER] * g[OUTER + 1]):
            a, b = outer // g[OUTER + 1], outer % g[OUTER + 1]
            if tool and listed != outer:
                list_rows(g, address(0), address(0), lists, a, b)
                listed = outer
            for c in range(0, g[OUTER + 2], together):
                rows, where = min(together, g[OUTER + 2] - c), place_in(g, places, BESIDE, n, channel, a, b, c)
                place_step = g[BESIDE + 4]
                if tool:
                    job[0], where, place_step = rows, found, length * 8
                    invoke(tool, x_c, lists + c * list_bytes(g), values, found, memory(buffer), vector + 8 * g[INNER])
                source = place_in(g, y, Y, n, channel, a, b, c)
                for row in range(rows):
                    add_won(target, where + row * place_step, source + row * g[Y + 4], first, last, step, advance, dtype)
    keep(buffer)


@kernel
def scatter(
    dtype: Tag, region: int, workers: int, items: int, tool: int, block: int, x: Address, y: Address, places: Address,
    grad: Address, g: Address,
) -> None:  # fmt: skip
    """The gradient of x from that of y, and the winners' places, or x where `tool` is not 0.

    An item is `block` results of each row of a channel.
    """
    parallel_for(region, workers, items, _scatter, (dtype, tool, block, x, y, places, grad, g))


class _Executor:
    """The kernel, its tables, and the general implementation for arrays that do not fill their memory in the layout's order."""

    def __init__(self, problem: PoolProblem):
        self._problem = problem
        self._innermost = problem.layout == "channels_last"
        self._in_memory = (0, *range(2, problem.ndim + 2), 1)
        self._rows = Rows(problem, back=False, innermost=self._innermost)
        self._block = self._rows.inner.results
        if self._innermost:
            self._block = -(-problem.c // BLOCK // max(1, ITEMS // max(problem.n, 1))) * BLOCK
        items = problem.n * (-(-problem.c // self._block) if self._innermost else problem.c)
        self._run = functools.partial(run, scatter.specialise(problem.dtype), items, 3 * problem.bytes)
        self._tool = 0 if problem.indices else self._rows.tool("argmax", problem.dtype)

    @functools.cached_property
    def _general(self) -> Any:
        return Pool().build(self._problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        (grad,), (y, second) = outs, ins
        if not all(self._fills_memory(array) for array in (grad, y, second)):
            self._general(outs, ins)
            return
        if self._problem.indices:
            check_places(self._problem.op, second, math.prod(self._problem.spatial))
        g = self._rows.vector(second.strides, y.strides, second.strides)
        x, places = (0, second) if self._problem.indices else (second, 0)
        self._run(self._tool, self._block, x, y, places, grad, g)

    def _fills_memory(self, array: np.ndarray[Any, Any]) -> bool:
        return bool((array.transpose(self._in_memory) if self._innermost else array).flags.c_contiguous)


class VectorScatter(Implementation):
    """The gradient of max pooling in float32 and float64."""

    name = "vector_scatter"
    ops = frozenset(("max_pool_backward",))

    def supports(self, problem: PoolProblem) -> Verdict:
        """What `vector_pool` takes, at any stride if the winners are given."""
        return pooled_in_vectors(problem) and (Verdict.yes() if problem.indices else stepped_in_vectors(problem))

    def cost(self, problem: PoolProblem) -> float:
        """The time to move the arrays, to look at the windows unless winners are given, and to add gradients one by one."""
        found = 0 if problem.indices else seconds_in_vectors(problem, places=True)
        return 2e-6 + problem.bytes / 1e11 + math.prod(problem.y_shape) * 5e-10 + found

    def workspace(self, problem: PoolProblem) -> int:
        """For each thread the lists of the rows of a plane, and the winners of some rows."""
        return MAX_THREADS * (lists_bytes(problem) + 16 * max(FOUND, problem.output[-1], problem.c) + 256)

    def build(self, problem: PoolProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
