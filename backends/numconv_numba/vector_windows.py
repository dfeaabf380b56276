"""Unfold, fold and padding with zeros in vectors: rows are copied, or added up in registers.

Sums keep the order of `windows`: the taps in row-major order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from numconv.plugin import Implementation, Verdict, WindowProblem, np_dtype

from .compiler import Address, helper, invoke, kernel
from .elements import INT64, keep, memory, scratch
from .microkernels.emit import lanes_of
from .microkernels.windows import MAX_STRIDE, MOVE, ROW_ENTRY, move
from .scalar import pointer
from .sliding import KEPT, OUTER_AXES, Rows, outer_axis, slide
from .threads import MAX_THREADS, parallel_for, run
from .windows import Windows, row_major

__all__ = ["VectorWindows"]

PART = 1 << 14
"""Elements that a work item copies for each tap, at least a row: they, and what they come from, stay in the second-level cache."""
MAX_OFFSETS = 1 << 17
"""Rows of all taps of a problem, whose places are kept in a table."""
MAX_TABLE = 1 << 16
"""Entries of the table of an outer axis."""
JOB_SIZE = len(MOVE)

# The driver's vector: channels; outer and inner taps; rows of a result and of a part; parts; the byte strides (n, c) of x and y,
# and those of y from tap to tap and row to row; the job of `move`; then the inner taps' positions, and the offsets of the rows.
CHANNELS, OUTER_TAPS, TAPS, ROWS, PART_ROWS, PARTS, X, Y, Y_TAP, Y_ROW, JOB, HEAD = 0, 1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 18


@helper
def _copy(begin, end, args):
    tool, x, y, vector = args
    g = pointer(vector, INT64)
    offsets = vector + 8 * (HEAD + g[TAPS])
    buffer = scratch(8 * JOB_SIZE)
    job = pointer(memory(buffer), INT64)
    for entry in range(JOB_SIZE):
        job[entry] = g[JOB + entry]
    taps = g[OUTER_TAPS] * g[TAPS]
    tap, part, plane = begin % taps, begin // taps % g[PARTS], begin // taps // g[PARTS]
    for _ in range(begin, end):
        n, channel, first = plane // g[CHANNELS], plane % g[CHANNELS], part * g[PART_ROWS]
        job[0], job[4] = min(g[PART_ROWS], g[ROWS] - first), g[HEAD + tap % g[TAPS]]
        target = n * g[Y] + channel * g[Y + 1] + tap * g[Y_TAP] + first * g[Y_ROW]
        rows = offsets + 8 * (tap // g[TAPS] * g[ROWS] + first)
        invoke(tool, x + (n * g[X] + channel * g[X + 1]), rows, y + target, memory(buffer))
        tap += 1
        if tap == taps:
            tap, part = 0, part + 1
        if part == g[PARTS]:
            part, plane = 0, plane + 1
    keep(buffer)


@kernel
def copy(region: int, workers: int, items: int, tool: int, x: Address, y: Address, g: Address) -> None:
    """y from x by the microkernel `move` at the address `tool`: an item is a part of the rows of a channel for one tap."""
    parallel_for(region, workers, items, _copy, (tool, x, y, g))


class _Unfold:
    """Columns, or a padded x: what is known of their rows."""

    def __init__(self, problem: WindowProblem):
        self._problem = problem
        outer = [outer_axis(problem, axis, False) for axis in range(problem.ndim - 1)]
        self._tables = [axis.table for axis in outer]
        rows, length = math.prod(axis.results for axis in outer), problem.output[-1]
        self._part = min(rows, max(1, PART // length))
        self._parts = -(-rows // self._part)
        self._taps = math.prod(problem.window[:-1])
        items = problem.n * problem.c * self._parts * math.prod(problem.window)
        self._run = functools.partial(run, copy.specialise(), items, 3 * problem.bytes)
        stride, item = problem.stride[-1], np_dtype(problem.dtype).itemsize
        dtype = f"float{8 * item}"
        self._tool = move.address((lanes_of(dtype), stride if stride <= MAX_STRIDE else 0), dtype)
        self._vectors = functools.lru_cache(maxsize=KEPT)(self._vector)

    def __call__(self, outs: Any, ins: Any) -> None:
        (y,), (x,) = outs, ins
        self._run(self._tool, x, y, self._vectors(x.strides, y.strides))

    def _vector(self, x: tuple[int, ...], y: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """The driver's vector for arrays of these strides."""
        problem = self._problem
        length, taps, size = problem.output[-1], problem.window[-1], problem.spatial[-1]
        if problem.op == "unfold":
            channel, tap, row = y[1] * math.prod(problem.window), y[1], length * y[2]
        else:
            channel, tap, row = y[1], 0, y[-2]
        positions = [problem.dilation[-1] * number - problem.padding[-1][0] for number in range(taps)]
        offsets = _offsets(self._tables, x[2:-1])
        head = [
            problem.c, self._taps, taps, offsets.shape[1], self._part, self._parts, *x[:2], y[0], channel, tap, row,
            0, row, length, size, 0, problem.stride[-1], *positions,
        ]  # fmt: skip
        return np.concatenate([np.array(head, np.int64), offsets.ravel()])


def _offsets(tables: list[np.ndarray[Any, Any]], strides: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The byte offset in x of the row that each outer tap reads for each outer result, ``[taps, results]``; -1 for none."""
    offsets = np.zeros((1, 1), np.int64)
    for table, stride in zip(tables, strides, strict=True):
        step = np.where(table.T < 0, -1, table.T * stride)
        both = offsets[:, None, :, None] + step[None, :, None, :]
        there = (offsets[:, None, :, None] >= 0) & (step[None, :, None, :] >= 0)
        offsets = np.where(there, both, -1).reshape(offsets.shape[0] * step.shape[0], -1)
    return offsets


class _Fold:
    """Sums of columns: what is known of their rows."""

    def __init__(self, problem: WindowProblem):
        self._problem = problem
        self._rows = Rows(problem, back=True, innermost=False)
        self._run = functools.partial(run, slide.specialise(), self._rows.items, 3 * problem.bytes)
        self._tool = self._rows.tool("sum", problem.dtype)

    def __call__(self, outs: Any, ins: Any) -> None:
        (x,), (columns,) = outs, ins
        n, row, step = columns.strides
        strides = n, row * math.prod(self._problem.window), *row_major(self._problem.output, step)
        g = self._rows.vector(strides, x.strides, (0,) * x.ndim, taps=row_major(self._problem.window, row))
        self._run(self._tool, columns, x, 0, 0, 0, g)


class _Executor:
    """One operation on arrays whose rows lie in memory one element after the other, and the general implementation for others."""

    def __init__(self, problem: WindowProblem):
        self._problem = problem
        self._fast: Callable[[Any, Any], None] = (_Fold if problem.op == "fold" else _Unfold)(problem)

    @functools.cached_property
    def _general(self) -> Any:
        return Windows().build(self._problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        near = outs[0].flags.c_contiguous and ins[0].strides[-1] == ins[0].itemsize
        (self._fast if near else self._general)(outs, ins)


class VectorWindows(Implementation):
    """Moving and adding up rows that lie in memory one element after the other."""

    name = "vector_windows"
    ops = frozenset(("pad", "unfold", "fold"))

    def supports(self, problem: WindowProblem) -> Verdict:
        """Moves of elements of 4 or 8 bytes; sums of float32 or float64, up to four dimensions and a stride of 4."""
        if problem.out_dtype != problem.dtype:
            return Verdict.no(f"{problem.dtype} to {problem.out_dtype}: it converts nothing")
        if problem.pad_mode != "zeros" or problem.layout == "channels_last":
            return Verdict.no(f"mode {problem.pad_mode}, layout {problem.layout}: it pads with zeros, channels first")
        if problem.op != "fold":
            return self._moves(problem)
        if problem.dtype not in ("float32", "float64"):
            return Verdict.no(f"{problem.dtype}: it adds float32 or float64")
        if problem.ndim > OUTER_AXES + 1 or problem.stride[-1] > MAX_STRIDE:
            return Verdict.no(
                f"{problem.ndim} dimensions, stride {problem.stride[-1]}: it takes {OUTER_AXES + 1}, at most {MAX_STRIDE}"
            )
        entries = max(size * window for size, window in zip(problem.spatial, problem.window, strict=True))
        if max(entries, problem.spatial[-2:][0] * math.prod(problem.window[:-1])) > MAX_TABLE:
            return Verdict.no(f"a table of {entries} rows: it takes at most {MAX_TABLE}")
        return Verdict.yes()

    @staticmethod
    def _moves(problem: WindowProblem) -> Verdict:
        if np_dtype(problem.dtype).itemsize not in (4, 8):
            return Verdict.no(f"{problem.dtype}: it moves elements of 4 or 8 bytes")
        rows = math.prod(problem.output[:-1]) * math.prod(problem.window[:-1])
        if rows > MAX_OFFSETS:
            return Verdict.no(f"{rows} rows in all taps: its table holds {MAX_OFFSETS}")
        return Verdict.yes()

    def cost(self, problem: WindowProblem) -> float:
        """The time to move the arrays."""
        return 2e-6 + problem.bytes / 3e10

    def workspace(self, problem: WindowProblem) -> int:
        """For each thread the lists of the rows of a plane."""
        lists = problem.spatial[-2:][0] * (ROW_ENTRY * (math.prod(problem.window[:-1]) + 1)) if problem.op == "fold" else 0
        return MAX_THREADS * (lists + 256)

    def build(self, problem: WindowProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
