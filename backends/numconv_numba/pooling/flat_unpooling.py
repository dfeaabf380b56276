"""max_unpool and its gradient where channels fill their memory: places count elements of a channel, which is one row.

An item is a channel. Of several values for one place the last stays, as in `windows`.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from numconv.plugin import Implementation, Verdict, WindowProblem, np_dtype
from numconv_numba.compiling.compiler import Address, Tag, helper, kernel
from numconv_numba.elements import INT64, itemsize, memory, release, scratch
from numconv_numba.scalar import load, store, zero
from numconv_numba.threads import MAX_THREADS, parallel_for, run

from .places import check_places
from .window_rows import fill, fill_memory
from .windows import Windows

__all__ = ["FlatUnpool"]

INT32 = Tag("int32")
MAX_MARK = 2**31 - 1
MAX_VOLUME = 1 << 18
"""Elements of a channel of which the gradient keeps a mark each: these fit the second-level cache."""


@helper
def _unpool(begin, end, args):
    dtype, y, places, x, count, volume = args
    for channel in range(begin, end):
        source, where, target = (
            y + channel * count * itemsize(dtype),
            places + channel * count * 8,
            x + channel * volume * itemsize(dtype),
        )
        fill(target, volume, zero(dtype), dtype)
        for q in range(count):
            store(target + load(where + q * 8, INT64) * itemsize(dtype), load(source + q * itemsize(dtype), dtype), dtype)


@kernel
def unpool(
    dtype: Tag, region: int, workers: int, items: int, y: Address, places: Address, x: Address, count: int, volume: int
) -> None:  # fmt: skip
    """x from y and the places of its values: an item is a channel of `count` values and `volume` places."""
    parallel_for(region, workers, items, _unpool, (dtype, y, places, x, count, volume))


@helper
def gather_all(source, where, target, count, marks, mark, dtype):
    """The elements at all places; returns whether a place occurs twice. `marks` has no `mark` before."""
    twice = False
    for q in range(count):
        place = load(where + q * 8, INT64)
        twice |= load(marks + place * 4, INT32) == mark
        store(marks + place * 4, mark, INT32)
        store(target + q * itemsize(dtype), load(source + place * itemsize(dtype), dtype), dtype)
    return twice


@helper
def clear_replaced(where, target, count, marks, first, dtype):
    """Zero for the values that a later one has replaced; `marks` gets the numbers of those that stay, from `first` on."""
    for q in range(count):
        store(marks + load(where + q * 8, INT64) * 4, np.int32(first + q), INT32)
    for q in range(count):
        if load(marks + load(where + q * 8, INT64) * 4, INT32) != first + q:
            store(target + q * itemsize(dtype), zero(dtype), dtype)


@helper
def _gather(begin, end, args):
    dtype, x, places, y, count, volume = args
    buffer = scratch(4 * volume)
    marks, mark = memory(buffer), MAX_MARK
    for channel in range(begin, end):
        if mark > MAX_MARK - count - 2:
            fill(marks, volume, 0, INT32)
            mark = 0
        mark += 1
        source, where, target = (
            x + channel * volume * itemsize(dtype), places + channel * count * 8, y + channel * count * itemsize(dtype)
        )  # fmt: skip
        if gather_all(source, where, target, count, marks, np.int32(mark), dtype):
            clear_replaced(where, target, count, marks, mark, dtype)
            mark += count
    release(buffer)


@kernel
def gather(
    dtype: Tag, region: int, workers: int, items: int, x: Address, places: Address, y: Address, count: int, volume: int
) -> None:  # fmt: skip
    """The gradient of y from that of x, and the places of y's values: an item is a channel."""
    parallel_for(region, workers, items, _gather, (dtype, x, places, y, count, volume))


class _Executor:
    """The kernel, and the general implementation for arrays that do not fill their memory in row-major order."""

    def __init__(self, problem: WindowProblem):
        self._problem = problem
        dtype, sizes = f"uint{8 * np_dtype(problem.dtype).itemsize}", (math.prod(problem.output), math.prod(problem.spatial))
        self._volume = sizes[1]
        compiled = (unpool if problem.op == "max_unpool" else gather).specialise(dtype)
        self._run = functools.partial(run, compiled, problem.n * problem.c, 4 * problem.bytes)
        self._sizes = sizes

    @functools.cached_property
    def _general(self) -> Any:
        return Windows().build(self._problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        if not fill_memory((*outs, *ins)):
            self._general(outs, ins)
        elif self._problem.n:
            check_places(self._problem.op, ins[1], self._volume)
            self._run(*ins, *outs, *self._sizes)


class FlatUnpool(Implementation):
    """Values to and from the places that they won, channels first."""

    name = "flat_unpool"
    ops = frozenset(("max_unpool", "max_unpool_backward"))

    def supports(self, problem: WindowProblem) -> Verdict:
        """Elements of up to 8 bytes that keep their dtype, in the layout channels_first."""
        if problem.out_dtype != problem.dtype or np_dtype(problem.dtype).itemsize > 8:
            return Verdict.no(f"{problem.dtype} to {problem.out_dtype}: it moves elements of up to 8 bytes as they are")
        if problem.layout == "channels_last":
            return Verdict.no("layout channels_last: it takes channels whose elements are neighbours")
        if problem.op == "max_unpool_backward" and math.prod(problem.spatial) > MAX_VOLUME:
            return Verdict.no(f"{math.prod(problem.spatial)} elements of a channel: it takes at most {MAX_VOLUME}")
        return Verdict.yes()

    def cost(self, problem: WindowProblem) -> float:
        """The time to move the arrays, and to place values one by one."""
        return 2e-6 + problem.bytes / 3e10 + math.prod(problem.y_shape) * 1e-9

    def workspace(self, problem: WindowProblem) -> int:
        """For each thread a mark for each place of a channel."""
        return MAX_THREADS * 4 * math.prod(problem.spatial) if problem.op == "max_unpool_backward" else 0

    def build(self, problem: WindowProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
