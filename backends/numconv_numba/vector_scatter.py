"""The gradient of max pooling whose winners are given: they get the gradients of their windows where they lie.

Windows come in the row-major order of y, as in `pooling`. An item is a channel, or some channels where these are neighbours in
memory: no two items write to the same element.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from numconv.plugin import Implementation, PoolProblem, Verdict

from .compiler import Address, Tag, helper, kernel
from .elements import INT64, itemsize
from .places import check_places
from .pooling import Pool
from .scalar import add, load, pointer, store, zero
from .sliding import ADVANCE, BESIDE, CHANNELS, LENGTH, OUTER, SIZE, SOURCE, Rows, Y, place_in
from .threads import parallel_for, run
from .vector_pooling import pooled_in_vectors
from .window_rows import fill

__all__ = ["VectorScatter"]

BLOCK, ITEMS = 32, 8
"""Channels of an item where they are neighbours in memory: whole cache lines, and more where so many items stay."""
ADD_SECONDS = 4e-10
"""Of a winner, on two threads."""


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
    dtype, block, y, places, grad, vector = args
    g = pointer(vector, INT64)
    length, innermost = g[LENGTH], g[ADVANCE] == 0
    step, advance = (g[SIZE] * itemsize(dtype), itemsize(dtype)) if innermost else (itemsize(dtype), 0)
    blocks, rows = -(-length // block), g[OUTER] * g[OUTER + 1] * g[OUTER + 2]
    volume = g[SOURCE] * g[SOURCE + 1] * g[SOURCE + 2] * g[SIZE]
    for item in range(begin, end):
        plane, first = item // blocks, item % blocks * block
        last, n, channel = min(first + block, length), plane // g[CHANNELS], plane % g[CHANNELS]
        source, where = place_in(g, y, Y, n, channel, 0, 0, 0), place_in(g, places, BESIDE, n, channel, 0, 0, 0)
        target = grad + plane * volume * itemsize(dtype)
        clear(target, g, first, last, dtype)
        if not innermost:
            add_won(target, where, source, 0, rows * length, step, 0, dtype)
            continue
        for row in range(rows):
            add_won(target, where + row * length * 8, source + row * length * itemsize(dtype), first, last, step, advance, dtype)


@kernel
def scatter(
    dtype: Tag, region: int, workers: int, items: int, block: int, y: Address, places: Address, grad: Address, g: Address
) -> None:
    """The gradient of x from that of y, and the winners' places: an item is `block` results of each row of a channel."""
    parallel_for(region, workers, items, _scatter, (dtype, block, y, places, grad, g))


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

    @functools.cached_property
    def _general(self) -> Any:
        return Pool().build(self._problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        (grad,), (y, places) = outs, ins
        if not all(self._fills_memory(array) for array in (grad, y, places)):
            self._general(outs, ins)
            return
        check_places(self._problem.op, places, math.prod(self._problem.spatial))
        g = self._rows.vector((0,) * y.ndim, y.strides, places.strides)
        self._run(self._block, y, places, grad, g)

    def _fills_memory(self, array: np.ndarray[Any, Any]) -> bool:
        return bool((array.transpose(self._in_memory) if self._innermost else array).flags.c_contiguous)


class VectorScatter(Implementation):
    """The gradient of max pooling whose winners are given, in float32 and float64."""

    name = "vector_scatter"
    ops = frozenset(("max_pool_backward",))

    def supports(self, problem: PoolProblem) -> Verdict:
        """What `vector_pool` takes, at any stride, with indices."""
        if not problem.indices:
            return Verdict.no("no winners are given: it takes their indices")
        return pooled_in_vectors(problem)

    def cost(self, problem: PoolProblem) -> float:
        """The time to move the arrays, and to add gradients one by one."""
        return 2e-6 + problem.bytes / 1e11 + math.prod(problem.y_shape) * ADD_SECONDS

    def workspace(self, problem: PoolProblem) -> int:
        """None."""
        return 0

    def build(self, problem: PoolProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
