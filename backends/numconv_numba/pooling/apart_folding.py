"""fold where the windows lie far apart along the rows: the taps come in chunks of a stride, within which no windows overlap.

A chunk of all windows of a row is transposed, taps beside each other: it is then a stretch of a row of x, to which it is added.
Sums keep the order of `windows`: the taps in row-major order.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from numconv.plugin import Verdict, WindowProblem, np_dtype
from numconv_numba.compiling.compiler import Address, Tag, helper, invoke, kernel
from numconv_numba.elements import INT64, itemsize, memory, release, scratch
from numconv_numba.microkernels.emit import lanes_of
from numconv_numba.microkernels.transpose import transpose
from numconv_numba.scalar import add, address, load, pointer, store, wide_vectors, zero
from numconv_numba.sliding import outer_axis
from numconv_numba.threads import parallel_for, run

from .window_rows import fill

__all__ = ["ApartFold", "chunk_bytes", "folds_apart"]

CHUNK = 1 << 13
"""Elements of a transposed chunk, at least those of one window: they stay in the first-level cache."""
STRETCH = 2
"""Chunks of an item, a part of a row of x: windows that reach several items are transposed for each."""
MAX_ROWS = 1 << 16
"""Rows of x with all taps that read them, whose places are kept in a table."""

# The driver's vector: channels, rows of x, their size, that of an item; the taps of a row, its windows, those of a chunk; stride,
# low padding; the byte strides (n, row) of the columns and their rows a channel; entries of a row of x in the table: how many, then
# for each the columns' row, and the position in it.
CHANNELS, ROWS, SIZE, STEP, TAPS, WINDOWS, TOGETHER, STRIDE, LOW, N, ROW, COLUMNS, ENTRIES, TABLE = range(14)


@helper
def add_stretch(target, source, count, dtype):
    """Add a stretch of a row to another."""
    wide_vectors()
    for q in range(count):
        place = target + q * itemsize(dtype)
        store(place, add(load(place, dtype), load(source + q * itemsize(dtype), dtype)), dtype)


@helper
def add_windows(target, begin, end, source, chunk, tool, g, dtype):
    """Add to the elements begin .. end of a row of x what windows have in one row of their taps.

    The last windows come first, for the order of the taps.
    """
    stride, item = g[STRIDE], itemsize(dtype)
    least, most = max((begin + g[LOW] - g[TAPS]) // stride + 1, 0), min((end - 1 + g[LOW]) // stride + 1, g[WINDOWS])
    for last in range(most, least, -g[TOGETHER]):
        first = max(last - g[TOGETHER], least)
        for tap in range(0, g[TAPS], stride):
            width = min(stride, g[TAPS] - tap)
            if width < stride:
                fill(chunk, (last - first) * stride, zero(dtype), dtype)
            taps = source + (tap * g[ROW] + first * item)
            invoke(tool, taps, g[ROW], width, last - first, address(0), 0, chunk, stride * item)
            start = first * stride + tap - g[LOW]
            low, high = max(start, begin), min(start + (last - first - 1) * stride + width, end)
            add_stretch(target + low * item, chunk + (low - start) * item, high - low, dtype)


@helper
def _fold(begin, end, args):
    dtype, tool, columns, x, vector = args
    g = pointer(vector, INT64)
    buffer = scratch(g[TOGETHER] * g[STRIDE] * itemsize(dtype))
    parts = -(-g[SIZE] // g[STEP])
    for item in range(begin, end):
        line, first = item // parts, item % parts * g[STEP]
        row, channel, last = line % g[ROWS], line // g[ROWS], min(first + g[STEP], g[SIZE])
        source = columns + (channel // g[CHANNELS] * g[N] + channel % g[CHANNELS] * g[COLUMNS] * g[ROW])
        target, entry = x + line * g[SIZE] * itemsize(dtype), TABLE + row * g[ENTRIES]
        fill(target + first * itemsize(dtype), last - first, zero(dtype), dtype)
        for number in range(g[entry]):
            place = entry + 1 + 2 * number
            taps = source + (g[place] * g[ROW] + g[place + 1] * itemsize(dtype))
            add_windows(target, first, last, taps, memory(buffer), tool, g, dtype)
    release(buffer)


@kernel
def fold(dtype: Tag, region: int, workers: int, items: int, tool: int, columns: Address, x: Address, g: Address) -> None:
    """x from columns, whose chunks `tool` transposes: an item is a part of a row of x."""
    parallel_for(region, workers, items, _fold, (dtype, tool, columns, x, g))


def folds_apart(problem: WindowProblem) -> Verdict:
    """Whether windows can be taken in chunks of taps."""
    if problem.dilation[-1] > 1:
        return Verdict.no(f"dilation {problem.dilation[-1]} along the rows: taps of a window are no neighbours")
    rows = math.prod(problem.spatial[:-1]) * math.prod(problem.window[:-1])
    if rows > MAX_ROWS:
        return Verdict.no(f"{rows} rows with all their taps: its table holds {MAX_ROWS}")
    return Verdict.yes()


def chunk_bytes(problem: WindowProblem) -> int:
    """Of a transposed chunk."""
    return _together(problem) * problem.stride[-1] * np_dtype(problem.dtype).itemsize


def _together(problem: WindowProblem) -> int:
    """The windows of a chunk."""
    return min(problem.output[-1], max(1, CHUNK // problem.stride[-1]))


def _step(problem: WindowProblem) -> int:
    """Elements of an item."""
    return STRETCH * _together(problem) * problem.stride[-1]


def _table(problem: WindowProblem) -> np.ndarray[Any, Any]:
    """``[rows of x, 1 + 2 taps]``: how many rows of taps reach a row of x, of each the row of columns, and the place in it."""
    found = np.zeros((1, 1, 2), np.int64)
    for axis in range(problem.ndim - 1):
        table = outer_axis(problem, axis, True).table
        taps = np.broadcast_to(np.arange(table.shape[1]), table.shape)
        here = np.stack([taps, table], axis=-1)[None, :, None, :]
        before = found[:, None, :, None]
        both = before * np.array([problem.window[axis], problem.output[axis]]) + here
        there = (before[..., 1:] >= 0) & (here[..., 1:] >= 0)
        found = np.where(there, both, -1).reshape(found.shape[0] * table.shape[0], -1, 2)
    order = np.argsort(found[..., 1] < 0, axis=1, kind="stable")
    lists = np.take_along_axis(found, order[..., None], axis=1) * np.array([problem.window[-1], problem.output[-1]])
    counts = (found[..., 1] >= 0).sum(1)
    return np.concatenate([counts[:, None], lists.reshape(len(lists), -1)], axis=1)


class ApartFold:
    """A fold of windows that lie apart: what is known of its rows."""

    def __init__(self, problem: WindowProblem):
        self._problem, self._table = problem, _table(problem)
        self._tool = transpose.address(lanes_of(problem.dtype), (problem.dtype, problem.dtype))
        items = problem.n * problem.c * len(self._table) * -(-problem.spatial[-1] // _step(problem))
        self._run = functools.partial(run, fold.specialise(problem.dtype), items, 3 * problem.bytes)
        self._vectors = functools.lru_cache(maxsize=8)(self._vector)

    def fits(self, out: Any, source: Any) -> bool:
        """Whether results fill their memory, and columns of a row are neighbours."""
        return bool(out.flags.c_contiguous) and source.strides[-1] == source.itemsize

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        (x,), (columns,) = outs, ins
        if self._problem.n:
            self._run(self._tool, columns, x, self._vectors(columns.strides))

    def _vector(self, strides: tuple[int, ...]) -> np.ndarray[Any, Any]:
        problem, table = self._problem, self._table
        head = [
            problem.c, len(table), problem.spatial[-1], _step(problem), problem.window[-1], problem.output[-1], _together(problem),
            problem.stride[-1], problem.padding[-1][0], strides[0], strides[1], math.prod(problem.window), table.shape[1],
        ]  # fmt: skip
        return np.concatenate([np.array(head, np.int64), table.ravel()])
