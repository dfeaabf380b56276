"""The gradient of max pooling whose winners are given: they get the gradients of their windows where they lie.

Windows come in the row-major order of y, as in `pooling`. An item is some channels: no two items write to the same element. Those
of channels first take turns, so that no addition waits for the one before it, which neighbouring windows often have the same winner
for. Half types are added up in float32.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from numconv.plugin import Implementation, PoolProblem, Verdict, np_dtype
from numconv_numba.compiling.compiler import Address, Tag, helper, kernel
from numconv_numba.elements import INT64, itemsize, memory, release, same, scratch
from numconv_numba.scalar import add, inlined, load, store, wide_vectors, zero
from numconv_numba.threads import MAX_THREADS, parallel_for, run

from .places import check_places
from .pool import Pool
from .window_rows import fill, fill_memory, write_row

__all__ = ["VectorScatter"]

DTYPES = ("float16", "bfloat16", "float32", "float64")
BLOCK, ITEMS = 32, 8
"""Channels of an item where they are neighbours in memory: whole cache lines, and more where so many items stay."""
TURNS = 4
"""Channels that take turns: as many additions take as long as one waits for the store before it."""
NEAR, FAR = 1 << 14, 1 << 19
"""Bytes of the channels of an item, if more than those that take turns; and of these, at most: they are cleared, and still in the
second-level cache when they are added to."""
ADD_SECONDS, TURN_SECONDS = 4e-10, 2e-10
"""Of a winner, on two threads: alone, and where channels take turns."""


# --- channels first ------------------------------------------------------------------------------------------------------------


@helper
def add_in_turns(sums, places, y, planes, volume, results, dtype):
    """Add the gradients of some channels to where their places say, one of each in turn."""
    inlined()
    for q in range(results):
        for plane in range(planes):
            at = plane * results + q
            target = sums + (plane * volume + load(places + at * 8, INT64)) * itemsize(dtype)
            store(target, add(load(target, dtype), load(y + at * itemsize(dtype), dtype)), dtype)


@helper
def scatter_planes(sums, places, y, planes, volume, results, dtype):
    """The sums of some channels that lie one behind the other, as do their places and gradients."""
    fill(sums, planes * volume, zero(dtype), dtype)
    alone = planes % TURNS
    for plane in range(0, planes - alone, TURNS):
        where, given = places + plane * results * 8, y + plane * results * itemsize(dtype)
        add_in_turns(sums + plane * volume * itemsize(dtype), where, given, TURNS, volume, results, dtype)
    for plane in range(planes - alone, planes):
        where, given = places + plane * results * 8, y + plane * results * itemsize(dtype)
        add_in_turns(sums + plane * volume * itemsize(dtype), where, given, 1, volume, results, dtype)


@helper
def widen_row(row, target, count, dtype, acc):
    """Copy a contiguous row in a wider dtype."""
    wide_vectors()
    for q in range(count):
        store(target + q * itemsize(acc), load(row + q * itemsize(dtype), dtype, acc), acc)


@helper
def _scatter(begin, end, args):
    dtype, acc, block, planes, volume, results, y, places, grad = args
    buffer = scratch(0 if same(dtype, acc) else block * (volume + results) * itemsize(acc))
    for item in range(begin, end):
        first, count = item * block, min(block, planes - item * block)
        where, given = places + first * results * 8, y + first * results * itemsize(dtype)
        target = grad + first * volume * itemsize(dtype)
        if same(dtype, acc):
            scatter_planes(target, where, given, count, volume, results, acc)
            continue
        sums = memory(buffer)
        wide = sums + block * volume * itemsize(acc)
        widen_row(given, wide, count * results, dtype, acc)
        scatter_planes(sums, where, wide, count, volume, results, acc)
        write_row(sums, target, count * volume, itemsize(dtype), dtype, acc)
    release(buffer)


@kernel
def scatter(
    dtype: Tag, acc: Tag, region: int, workers: int, items: int, block: int, planes: int, volume: int, results: int,
    y: Address, places: Address, grad: Address,
) -> None:  # fmt: skip
    """The gradient of x, of `volume` elements a channel, from the `results` of y, and the winners' places.

    An item is `block` of all `planes`: channels of all images.
    """
    parallel_for(region, workers, items, _scatter, (dtype, acc, block, planes, volume, results, y, places, grad))


# --- channels last -------------------------------------------------------------------------------------------------------------


@helper
def add_beside(grad, places, y, channels, count, dtype):
    """Add a gradient of each of some channels, which lie beside each other among all `channels`, to where its place says."""
    for channel in range(count):
        target = grad + (load(places + channel * 8, INT64) * channels + channel) * itemsize(dtype)
        store(target, add(load(target, dtype), load(y + channel * itemsize(dtype), dtype)), dtype)


@helper
def _scatter_beside(begin, end, args):
    dtype, block, channels, volume, results, y, places, grad = args
    blocks = -(-channels // block)
    for item in range(begin, end):
        image, first = item // blocks, item % blocks * block
        count, at = min(block, channels - first), image * results * channels + first
        where, source = places + at * 8, y + at * itemsize(dtype)
        target = grad + (image * volume * channels + first) * itemsize(dtype)
        if count == channels:
            fill(target, volume * channels, zero(dtype), dtype)
        else:
            for place in range(volume):
                fill(target + place * channels * itemsize(dtype), count, zero(dtype), dtype)
        for q in range(results):
            row = q * channels
            add_beside(target, where + row * 8, source + row * itemsize(dtype), channels, count, dtype)


@kernel
def scatter_beside(
    dtype: Tag, region: int, workers: int, items: int, block: int, channels: int, volume: int, results: int,
    y: Address, places: Address, grad: Address,
) -> None:  # fmt: skip
    """The same where the channels are neighbours in memory: an item is `block` channels of an image."""
    parallel_for(region, workers, items, _scatter_beside, (dtype, block, channels, volume, results, y, places, grad))


# --- the implementation --------------------------------------------------------------------------------------------------------


def _block(problem: PoolProblem) -> int:
    """The channels of an item."""
    if problem.layout == "channels_last":
        return -(-problem.c // BLOCK // max(1, ITEMS // max(problem.n, 1))) * BLOCK
    plane = math.prod(problem.spatial) * np_dtype(problem.acc_dtype).itemsize
    turns = TURNS if TURNS * plane <= FAR else 1
    return max(1, min(turns * max(1, NEAR // (turns * plane)), problem.n * problem.c // ITEMS))


class _Executor:
    """The kernel, and the general implementation for arrays that do not fill their memory in the layout's order."""

    def __init__(self, problem: PoolProblem):
        self._problem, last = problem, problem.layout == "channels_last"
        self._in_memory = (0, *range(2, problem.ndim + 2), 1) if last else None
        block, self._volume = _block(problem), math.prod(problem.spatial)
        planes, compiled = problem.n * problem.c, scatter.specialise
        items, tags = -(-planes // block), [problem.dtype, problem.acc_dtype]
        if last:
            planes, compiled = problem.c, scatter_beside.specialise
            items, tags = problem.n * -(-planes // block), [problem.dtype]
        fixed = items, 3 * problem.bytes, block, planes, self._volume, math.prod(problem.output)
        self._run = functools.partial(run, compiled(*tags), *fixed)

    @functools.cached_property
    def _general(self) -> Any:
        return Pool().build(self._problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        (grad,), (y, places) = outs, ins
        if not fill_memory((grad, y, places), self._in_memory):
            self._general(outs, ins)
            return
        check_places(self._problem.op, places, self._volume)
        self._run(y, places, grad)


class VectorScatter(Implementation):
    """The gradient of max pooling whose winners are given, in real floats."""

    name = "vector_scatter"
    ops = frozenset(("max_pool_backward",))

    def supports(self, problem: PoolProblem) -> Verdict:
        """Real floats of one dtype, with indices; half types channels first."""
        if not problem.indices:
            return Verdict.no("no winners are given: it takes their indices")
        if problem.dtype not in DTYPES or problem.out_dtype != problem.dtype:
            return Verdict.no(f"{problem.dtype} to {problem.out_dtype}: it takes and gives one dtype, of real floats")
        if problem.layout == "channels_last" and problem.dtype != problem.acc_dtype:
            return Verdict.no(f"channels of {problem.dtype} beside each other: it adds them up in {problem.acc_dtype}")
        return Verdict.yes()

    def cost(self, problem: PoolProblem) -> float:
        """The time to move the arrays, and to add gradients one by one."""
        turns = problem.layout == "channels_first" and _block(problem) >= TURNS
        return 2e-6 + problem.bytes / 1e11 + math.prod(problem.y_shape) * (TURN_SECONDS if turns else ADD_SECONDS)

    def workspace(self, problem: PoolProblem) -> int:
        """Of half types, for each thread the sums and the gradients of an item."""
        if problem.dtype == problem.acc_dtype:
            return 0
        positions = math.prod(problem.spatial) + math.prod(problem.output)
        return MAX_THREADS * _block(problem) * positions * np_dtype(problem.acc_dtype).itemsize

    def build(self, problem: PoolProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
