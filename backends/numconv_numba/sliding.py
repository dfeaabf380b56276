"""Rows of windows: which rows of the source each row of results reads, and the driver that hands both to the microkernel.

A problem is seen as three outer axes and an inner one along which elements are neighbours in memory: the last spatial axis, or the
channels. Which source an outer result reads with a tap is looked up in a table for each axis, so that forward and backward are the
same to the driver: a gradient gathers what its elements gave.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from numconv.plugin import ConvProblem, PoolProblem, Verdict, WindowProblem

from .compiling.compiler import Address, Tag, helper, invoke, kernel
from .elements import INT64, memory, release, scratch
from .microkernels.emit import lanes_of
from .microkernels.row_access import MAX_REACH, MAX_STRIDE
from .microkernels.windows import JOB, windows
from .scalar import address, is_null, load, pointer, store
from .threads import parallel_for

__all__ = [
    "ADVANCE",
    "BESIDE",
    "CHANNELS",
    "FLOAT64",
    "INNER",
    "JOB_SIZE",
    "KEPT",
    "LENGTH",
    "OUTER",
    "OUTER_AXES",
    "SIZE",
    "SOURCE",
    "TAPS",
    "Axis",
    "Inner",
    "Rows",
    "X",
    "Y",
    "gathered_in_vectors",
    "list_bytes",
    "list_rows",
    "outer_axis",
    "phases_of",
    "place_in",
    "rows_read",
    "slide",
    "split_item",
]

OUTER_AXES = 3
CHUNK = 4096
"""Results of a row that one work item computes, or as many times the number of phases."""
FLOAT64 = Tag("float64")
JOB_SIZE = len(JOB)

# The driver's vector: sizes; the sizes of the outer axes of results, their windows and sizes of x; the byte strides (n, c, outer
# axes) of x, y and the array beside y; how far apart the taps of all axes lie in x beside that; where each table begins; the bytes
# of x that are fetched ahead for a row.
CHANNELS, LENGTH, SIZE, PHASES, ADVANCE, PITCH, OUTER, WINDOW, SOURCE = 0, 1, 2, 3, 4, 5, 6, 9, 12
X, Y, BESIDE, TAPS, TABLES, INNER, FETCHED, HEAD = 15, 20, 25, 30, 34, 37, 38, 39


# --- the driver ----------------------------------------------------------------------------------------------------------------


@helper
def outer_factor(g, factors, sizes, a, b, c):
    """The product of the factors of three outer indices; `sizes` says how many there are on each axis."""
    second, third = g[sizes], g[sizes] + g[sizes + 1]
    return load(factors + a * 8, FLOAT64) * load(factors + (second + b) * 8, FLOAT64) * load(factors + (third + c) * 8, FLOAT64)


@helper
def list_rows(g, factors, scales, lists, a, b):
    """What the outer results (a, b, c) read, for every c, as the microkernel wants it; without factors, the taps' numbers."""
    step, entries = list_bytes(g), pointer(lists, INT64)
    for c in range(g[OUTER + 2]):
        here, count = c * step, 0
        for i in range(g[WINDOW]):
            first = g[g[TABLES] + a * g[WINDOW] + i]
            for j in range(g[WINDOW + 1] if first >= 0 else 0):
                second = g[g[TABLES + 1] + b * g[WINDOW + 1] + j]
                for k in range(g[WINDOW + 2] if second >= 0 else 0):
                    third = g[g[TABLES + 2] + c * g[WINDOW + 2] + k]
                    if third < 0:
                        continue
                    count += 1
                    entry = here // 8 + 3 * count
                    offset = first * g[X + 2] + second * g[X + 3] + third * g[X + 4]
                    entries[entry] = offset + i * g[TAPS] + j * g[TAPS + 1] + k * g[TAPS + 2]
                    entries[entry + 1] = ((first * g[SOURCE + 1] + second) * g[SOURCE + 2] + third) * g[PITCH]
                    entries[entry + 2] = (i * g[WINDOW + 1] + j) * g[WINDOW + 2] + k
                    if not is_null(factors):
                        store(lists + (8 * entry + 16), outer_factor(g, factors, SOURCE, first, second, third), FLOAT64)
        entries[here // 8] = count
        if not is_null(scales):
            store(lists + (here + 8), outer_factor(g, scales, OUTER, a, b, c), FLOAT64)


@helper
def list_bytes(g):
    """The size of the list of one row of results."""
    return 24 * (g[WINDOW] * g[WINDOW + 1] * g[WINDOW + 2] + 1)


@helper
def place_in(g, array, steps, n, channel, a, b, c):
    """The address of a row of results."""
    outer = a * g[steps + 2] + b * g[steps + 3] + c * g[steps + 4]
    return array + (n * g[steps] + channel * g[steps + 1] + outer)


@helper
def split_item(g, item, chunks):
    """(n, channel, a, b, c, chunk) of a work item."""
    chunk, row = item % chunks, item // chunks
    c, row = row % g[OUTER + 2], row // g[OUTER + 2]
    b, row = row % g[OUTER + 1], row // g[OUTER + 1]
    a, plane = row % g[OUTER], row // g[OUTER]
    return plane // g[CHANNELS], plane % g[CHANNELS], a, b, c, chunk


@helper
def _slide(begin, end, args):
    tool, x, y, beside, factors, vector = args
    g = pointer(vector, INT64)
    chunks = -(-g[LENGTH] // (CHUNK * g[PHASES]))
    buffer = scratch(8 * JOB_SIZE + g[OUTER + 2] * list_bytes(g))
    job, lists = pointer(memory(buffer), INT64), memory(buffer) + 8 * JOB_SIZE
    job[1], job[2], job[3], job[6], job[7], job[8] = list_bytes(g), g[Y + 4], g[BESIDE + 4], g[SIZE], g[TAPS + 3], g[ADVANCE]
    job[9] = g[FETCHED]
    item, listed = begin, -1
    while item < end:
        n, channel, a, b, c, chunk = split_item(g, item, chunks)
        if listed != a * g[OUTER + 1] + b:
            list_rows(g, factors, address(0), lists, a, b)
            listed = a * g[OUTER + 1] + b
        job[0] = min(g[OUTER + 2] - c, end - item) if chunks == 1 else 1
        job[4], job[5] = chunk * CHUNK, min((chunk + 1) * CHUNK * g[PHASES], g[LENGTH])
        invoke(
            tool, x + (n * g[X] + channel * g[X + 1]), lists + c * list_bytes(g), place_in(g, y, Y, n, channel, a, b, c),
            place_in(g, beside, BESIDE, n, channel, a, b, c), memory(buffer), vector + 8 * g[INNER],
        )  # fmt: skip
        item += job[0]
    release(buffer)


@kernel
def slide(
    region: int, workers: int, items: int, tool: int, x: Address, y: Address, beside: Address, factors: Address, g: Address,
) -> None:  # fmt: skip
    """y from x by the microkernel `windows` at the address `tool`: an item is a part of a row of y.

    `beside` is its `extra`. `factors` belong to the outer indices of x; null where the kind does not read them.
    """
    parallel_for(region, workers, items, _slide, (tool, x, y, beside, factors, g))


# --- what the driver's vector holds --------------------------------------------------------------------------------------------


UNROLLED = 12
"""Taps along a row that the microkernel has unrolled."""


class Axis(NamedTuple):
    """An outer axis: how many results and sources it has, and which source each result reads with each tap, -1 for none."""

    results: int
    sources: int
    table: np.ndarray[Any, Any]


class Inner(NamedTuple):
    """The inner axis: results, sources, the stride, and for each phase the taps, and the positions that they have for result 0."""

    results: int
    sources: int
    stride: int
    phases: tuple[tuple[tuple[int, int], ...], ...]

    def tool(self, kind: str, dtype: str) -> int:
        """The address of the microkernel."""
        unrolled = self.phases if sum(map(len, self.phases)) <= UNROLLED else ()
        return windows.address((kind, lanes_of(dtype), self.stride, len(self.phases), unrolled), dtype)

    def table(self) -> np.ndarray[Any, Any]:
        """The taps as the microkernel reads them."""
        phases = len(self.phases)
        starts = np.cumsum([phases // 2 + 1, *map(len, self.phases), 0])[: phases // 2 * 2 + 2]
        pairs = [number for phase in self.phases for tap, place in phase for number in (place, tap)]
        return np.concatenate([starts, np.array(pairs, np.int64)])


Problem: TypeAlias = ConvProblem | PoolProblem | WindowProblem
"""A convolution is seen as the windows of one channel."""


def _window(problem: Problem) -> tuple[int, ...]:
    return problem.kernel if isinstance(problem, ConvProblem) else problem.window


_NO_AXIS = Axis(1, 1, np.zeros((1, 1), np.int64))


def outer_axis(problem: Problem, axis: int, back: bool) -> Axis:
    """An axis of a problem; `back`: the results are elements of x, and the sources those of y that read them."""
    size, window, output = problem.spatial[axis], _window(problem)[axis], problem.output[axis]
    stride, low, taps = problem.stride[axis], problem.padding[axis][0], problem.dilation[axis] * np.arange(window)
    if back:
        reached = np.arange(size)[:, None] + low - taps
        table = np.where(reached % stride == 0, reached // stride, -1)
        return Axis(size, output, np.where(table < output, table, -1).clip(-1))
    read = stride * np.arange(output)[:, None] + taps - low
    return Axis(output, size, np.where((read >= 0) & (read < size), read, -1))


def rows_read(tables: Sequence[np.ndarray[Any, Any]], sources: Sequence[int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Which rows of the source each row of results reads, in the order of taps, then -1: ``[rows, taps]``; and how many.

    `tables` are those of the outer axes, `sources` their sizes.
    """
    found = np.zeros((1, 1), np.int64)
    for table, size in zip(tables, sources, strict=False):
        before, here = found[:, None, :, None], table[None, :, None, :]
        both = np.where((before >= 0) & (here >= 0), before * size + here, -1)
        found = both.reshape(found.shape[0] * table.shape[0], -1)
    order = np.argsort(found < 0, axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1), (found >= 0).sum(1)


def inner_axis(problem: Problem, back: bool) -> Inner:
    """The last axis of a problem."""
    size, output, stride, low = problem.spatial[-1], problem.output[-1], problem.stride[-1], problem.padding[-1][0]
    taps = [(tap, problem.dilation[-1] * tap - low) for tap in range(_window(problem)[-1])]
    if not back:
        return Inner(output, size, stride, (tuple(taps),))
    return Inner(size, output, 1, phases_of(taps, stride))


def phases_of(taps: Sequence[tuple[int, int]], stride: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """For each phase of a stride the taps (number, place) that reach it, and the positions that they have for its first element."""
    phases = [[(tap, (p - place) // stride) for tap, place in taps if (p - place) % stride == 0] for p in range(stride)]
    return tuple(map(tuple, phases))


KEPT = 64
"""Vectors of a problem that are kept for arrays of the same strides."""
MAX_TABLE = 1 << 16
"""Entries of the table of an axis."""


def counted_in_vectors(problem: ConvProblem | PoolProblem | WindowProblem) -> Verdict:
    """Whether the positions of a row, those of padding and beside the taps among them, are few enough to be counted in 32 bits."""
    reach = problem.spatial[-1] + sum(map(abs, problem.padding[-1])) + problem.dilation[-1] * _window(problem)[-1]
    if reach > MAX_REACH:
        return Verdict.no(f"rows and windows that reach {reach} positions along the last axis: it counts up to {MAX_REACH}")
    return Verdict.yes()


def gathered_in_vectors(problem: ConvProblem | WindowProblem) -> Verdict:
    """Whether what the elements of x gave can be gathered by rows along the last axis."""
    window = _window(problem)
    if problem.ndim > OUTER_AXES + 1 or problem.stride[-1] > MAX_STRIDE:
        return Verdict.no(
            f"{problem.ndim} dimensions, stride {problem.stride[-1]}: it takes {OUTER_AXES + 1}, at most {MAX_STRIDE}"
        )
    entries = max(size * taps for size, taps in zip(problem.spatial, window, strict=True))
    if max(entries, problem.spatial[-2:][0] * math.prod(window[:-1])) > MAX_TABLE:
        return Verdict.no(f"a table of {entries} rows: it takes at most {MAX_TABLE}")
    return counted_in_vectors(problem)


class Rows:
    """The vector of the driver for one problem, and its number of work items.

    Parameters
    ----------
    problem : ConvProblem, PoolProblem or WindowProblem
    back : bool
        Whether the results are elements of x.
    innermost : bool
        Whether rows run along the channels.
    """

    def __init__(self, problem: Problem, *, back: bool, innermost: bool):
        axes = [outer_axis(problem, axis, back) for axis in range(problem.ndim - (not innermost))]
        self._outer = [*[_NO_AXIS] * (OUTER_AXES - len(axes)), *axes]
        self.inner = Inner(problem.c, problem.c, 1, (((0, 0),),)) if innermost else inner_axis(problem, back)
        self.vector = functools.lru_cache(maxsize=KEPT)(self._vector)
        self._innermost, self._channels = innermost, 1 if innermost else problem.c
        # long rows are streams that the processor fetches by itself
        self._ahead = 0 if back or innermost or problem.ndim == 1 else problem.stride[-2]
        chunks = -(-self.inner.results // (CHUNK * len(self.inner.phases)))
        self.items = problem.n * self._channels * math.prod(axis.results for axis in self._outer) * chunks

    def tool(self, kind: str, dtype: str) -> int:
        """The address of the microkernel."""
        return self.inner.tool(kind, dtype)

    def _vector(self, *strides: tuple[int, ...], taps: tuple[int, ...] = ()) -> np.ndarray[Any, Any]:
        """The vector for x, y and what lies beside y, of these byte strides; `taps`: those of the axes that x has for the taps."""
        inner, outer = self.inner, self._outer
        ends = np.cumsum([HEAD, *(axis.table.size for axis in outer)])
        head = [
            self._channels, inner.results, inner.sources, len(inner.phases),
            *((0, 1) if self._innermost else (inner.stride, inner.sources)),
            *(axis.results for axis in outer), *(axis.table.shape[1] for axis in outer), *(axis.sources for axis in outer),
            *(step for each in strides for step in self._arranged(each)), *[0] * (OUTER_AXES + 1 - len(taps)), *taps, *ends,
            self._ahead * self._arranged(strides[0])[-1],
        ]  # fmt: skip
        tables = [axis.table.ravel() for axis in outer]
        return np.concatenate([np.array(head, np.int64), *tables, inner.table()])

    def _arranged(self, strides: tuple[int, ...]) -> tuple[int, ...]:
        n, c, *spatial = strides
        outer = spatial if self._innermost else spatial[:-1]
        return (n, 0 if self._innermost else c, *[0] * (OUTER_AXES - len(outer)), *outer)
