"""Padding, its adjoint and unfolding: rows of results that are runs of rows of the source, copied in vectors.

What reads the padding along a row, in modes other than zeros, is copied element by element from where the mode leads. And in the
adjoint what several padded elements read is added up afterwards, in the order of `windows`: that of these elements.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from numconv.plugin import WindowProblem, np_dtype
from numconv_numba.compiling.compiler import Address, Tag, helper, invoke, kernel
from numconv_numba.elements import INT64, itemsize, memory, release, scratch
from numconv_numba.microkernels.emit import lanes_of
from numconv_numba.microkernels.moves import MOVE, move
from numconv_numba.microkernels.row_access import MAX_STRIDE
from numconv_numba.scalar import add, load, pointer, store, wide_vectors, zero
from numconv_numba.sliding import KEPT, outer_axis
from numconv_numba.threads import parallel_for, run

__all__ = ["MAX_OFFSETS", "MovedRows", "moved_rows_count"]

PART = 1 << 12
"""Elements that a work item copies for each tap, at least a row: they stay in the first-level cache."""
MAX_OFFSETS = 1 << 17
"""Rows of all taps of a problem, whose places are kept in a table."""
TOGETHER = 256
"""Rows of several small channels that one work item takes."""
NUMPY_MODES = {"reflect": "reflect", "symmetric": "symmetric", "replicate": "edge", "circular": "wrap"}
JOB_SIZE = len(MOVE)

# The driver's vector: channels; outer and inner taps; rows of a result and of a part; parts; the byte strides (n, c) of x and y,
# and those of y from tap to tap and row to row; the job of `move`; how many elements of a row the padding reads too; in the table
# of the border, where that of the rows begins (-1: nothing is added up), and its size; then the inner taps' positions, this table,
# the offsets of the rows.
CHANNELS, OUTER_TAPS, TAPS, ROWS, PART_ROWS, PARTS, X, Y, Y_TAP, Y_ROW, JOB = 0, 1, 2, 3, 4, 5, 6, 8, 10, 11, 12
FOLDED, ROW_TABLE, TABLES, HEAD = 19, 20, 21, 22


@helper
def fold_border(x, y, y_row, first, rows, length, low, columns, row_table, table, dtype):
    """Add up, in some rows from row `first` on, the elements that several padded ones read.

    The table has for each such column (column, begin, end), the places in the table of the positions that read it; and from
    `row_table` on, for each row, where the byte offsets of the padded rows that read it begin, and where the last ones end.
    """
    wide_vectors()
    for row in range(rows):
        begin, end, target = table[row_table + first + row], table[row_table + first + row + 1], y + row * y_row
        for reader in range(begin if end - begin > 1 else end, end):
            source = x + (table[reader] + low * itemsize(dtype))
            for q in range(length):
                place = target + q * itemsize(dtype)
                before = zero(dtype) if reader == begin else load(place, dtype)
                store(place, add(before, load(source + q * itemsize(dtype), dtype)), dtype)
        for number in range(columns):
            total = zero(dtype)
            for reader in range(begin, end):
                for place in range(table[3 * number + 1], table[3 * number + 2]):
                    total = add(total, load(x + (table[reader] + table[place] * itemsize(dtype)), dtype))
            store(target + table[3 * number] * itemsize(dtype), total, dtype)


@helper
def _copy(begin, end, args):
    dtype, tool, x, y, vector = args
    g = pointer(vector, INT64)
    border = vector + 8 * (HEAD + g[TAPS])
    offsets = border + 8 * g[TABLES]
    buffer = scratch(8 * JOB_SIZE)
    job = pointer(memory(buffer), INT64)
    for entry in range(JOB_SIZE):
        job[entry] = g[JOB + entry]
    taps = g[OUTER_TAPS] * g[TAPS]
    tap, part, plane = begin % taps, begin // taps % g[PARTS], begin // taps // g[PARTS]
    for _ in range(begin, end):
        n, channel, first = plane // g[CHANNELS], plane % g[CHANNELS], part * g[PART_ROWS]
        job[0], job[4] = min(g[PART_ROWS], g[ROWS] - first), g[HEAD + tap % g[TAPS]]
        source, target = x + (n * g[X] + channel * g[X + 1]), n * g[Y] + channel * g[Y + 1] + tap * g[Y_TAP] + first * g[Y_ROW]
        rows = offsets + 8 * (tap // g[TAPS] * g[ROWS] + first)
        invoke(tool, source, rows, y + target, memory(buffer), border)
        if g[ROW_TABLE] >= 0:
            low, table = g[HEAD], pointer(border, INT64)
            fold_border(
                source, y + target, g[Y_ROW], first, job[0], job[2], low, g[FOLDED], g[ROW_TABLE], table, dtype
            )  # fmt: skip
        tap += 1
        if tap == taps:
            tap, part = 0, part + 1
        if part == g[PARTS]:
            part, plane = 0, plane + 1
    release(buffer)


@kernel
def copy(dtype: Tag, region: int, workers: int, items: int, tool: int, x: Address, y: Address, g: Address) -> None:
    """y from x by the microkernel `move` at the address `tool`: an item is a part of the rows of a channel for one tap."""
    parallel_for(region, workers, items, _copy, (dtype, tool, x, y, g))


class _Lines(NamedTuple):
    """Rows as runs of rows.

    Attributes
    ----------
    tables : list of ndarray
        Of each outer axis the index of the source for each result and tap; -1 for none.
    results, sources, stride : int
        Along a row.
    places : list of int
        The position that each inner tap has for result 0.
    border : ndarray
        Pairs: a result that reads the padding, and the position that it reads.
    readers : list of ndarray
        For the adjoint of a mode other than zeros: of each axis the padded positions that read each index, in order, then -1.
    """

    tables: list[np.ndarray[Any, Any]]
    results: int
    sources: int
    stride: int
    places: list[int]
    border: np.ndarray[Any, Any] = np.zeros((0, 2), np.int64)
    readers: tuple[np.ndarray[Any, Any], ...] = ()


def _padded_places(problem: WindowProblem, axis: int) -> np.ndarray[Any, Any]:
    """The index that each padded position of an axis reads, in a mode other than zeros."""
    mode = NUMPY_MODES[problem.pad_mode]
    return np.pad(np.arange(problem.spatial[axis]), problem.padding[axis], mode)  # type: ignore[call-overload]


def _readers(problem: WindowProblem, axis: int) -> np.ndarray[Any, Any]:
    """The padded positions that read each index of an axis, in order; then -1."""
    places = _padded_places(problem, axis)
    order, counts = np.argsort(places, kind="stable"), np.bincount(places)
    table = np.full((counts.size, counts.max()), -1, np.int64)
    table[np.arange(counts.max()) < counts[:, None]] = order
    return table


def _lines(problem: WindowProblem) -> _Lines:
    """What the rows of results are."""
    low, size, output, mode = problem.padding[-1][0], problem.spatial[-1], problem.output[-1], problem.pad_mode
    outer = range(problem.ndim - 1)
    if problem.op == "pad_backward":
        tables = [np.arange(problem.spatial[axis])[:, None] + problem.padding[axis][0] for axis in outer]
        readers = () if mode == "zeros" else tuple(_readers(problem, axis) for axis in range(problem.ndim))
        return _Lines(tables, size, output, 1, [low], readers=readers)
    if mode != "zeros":
        around = np.r_[:low, low + size : output]
        border = np.stack([around, _padded_places(problem, -1)[around]], axis=1)
        return _Lines([_padded_places(problem, axis)[:, None] for axis in outer], output, size, 1, [-low], border)
    tables = [outer_axis(problem, axis, False).table for axis in outer]
    places = [problem.dilation[-1] * number - low for number in range(problem.window[-1])]
    return _Lines(tables, output, size, problem.stride[-1], places)


def _of_channels(lines: _Lines, c: int) -> _Lines:
    """The same rows where an element is one of c channels, which are neighbours in memory; for a stride of 1."""
    border = (lines.border[:, None, :] * c + np.arange(c)[:, None]).reshape(-1, 2)
    *outer, last = lines.readers or (None,)
    if last is not None:
        many = np.where(last[:, None, :] < 0, -1, last[:, None, :] * c + np.arange(c)[:, None])
        outer.append(many.reshape(-1, last.shape[1]))
    places = [place * c for place in lines.places]
    return lines._replace(results=lines.results * c, sources=lines.sources * c, places=places, border=border, readers=tuple(outer))


def moved_rows_count(problem: WindowProblem) -> int:
    """Rows of all taps of a channel, or rows that read those of a channel."""
    sizes = problem.spatial if problem.op == "pad_backward" and problem.pad_mode == "zeros" else problem.output
    return math.prod(sizes[:-1]) * math.prod(problem.window[:-1])


class MovedRows:
    """A pad, its adjoint, or an unfold: what is known of its rows."""

    def __init__(self, problem: WindowProblem):
        self._problem = problem
        lines, self._channels = _lines(problem), problem.c
        self._last = problem.layout == "channels_last"
        if self._last:
            lines, self._channels = _of_channels(lines, problem.c), 1
        rows = math.prod(len(table) for table in lines.tables)
        # several small channels are one more outer axis
        together = 1 if problem.op == "unfold" or self._last else _divisor(problem.c, TOGETHER // max(rows, 1))
        self._lines = lines._replace(tables=[np.arange(together)[:, None], *lines.tables])
        self._together, self._channels, rows = together, self._channels // together, rows * together
        self._part = min(rows, max(1, PART // lines.results))
        self._parts = -(-rows // self._part)
        self._taps = math.prod(problem.window[:-1])
        items = problem.n * self._channels * self._parts * math.prod(problem.window)
        dtype = f"float{8 * np_dtype(problem.dtype).itemsize}"
        self._run = functools.partial(run, copy.specialise(dtype), items, 3 * problem.bytes)
        self._tool = move.address((lanes_of(dtype), lines.stride if lines.stride <= MAX_STRIDE else 0), dtype)
        self._vectors = functools.lru_cache(maxsize=KEPT)(self._vector)

    def fits(self, out: Any, source: Any) -> bool:
        """Whether results fill their memory, and elements of a row of the source are neighbours."""
        if not self._last:
            return bool(out.flags.c_contiguous) and source.strides[-1] == source.itemsize
        near = source.strides[1] == source.itemsize and source.strides[-1] == source.itemsize * self._problem.c
        return near and bool(np.moveaxis(out, 1, -1).flags.c_contiguous)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        (y,), (x,) = outs, ins
        if self._problem.n:
            self._run(self._tool, x, y, self._vectors(x.strides))

    def _vector(self, x: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """The driver's vector for an x of these strides; those of y follow from its sizes."""
        # not from y: along an axis of one element a stride may be anything, even where an array fills its memory
        lines, together, item = self._lines, self._together, np_dtype(self._problem.dtype).itemsize
        offsets, columns, row_table = _offsets(lines.tables, x[1:-1]), 0, -1
        row = lines.results * item
        tap = offsets.shape[1] * row
        channel = self._taps * len(lines.places) * tap
        border = lines.border.ravel() * item
        if lines.readers:
            columns, row_table, border = _reading(lines, together, x[1:-1])
        head = [
            self._channels, self._taps, len(lines.places), offsets.shape[1], self._part, self._parts, x[0], x[1] * together,
            self._channels * channel, channel, tap, row, 0, row, lines.results, lines.sources, 0, lines.stride, len(lines.border),
            columns, row_table, border.size, *lines.places,
        ]  # fmt: skip
        return np.concatenate([np.array(head, np.int64), border, offsets.ravel()])


def _reading(lines: _Lines, together: int, strides: tuple[int, ...]) -> tuple[int, int, np.ndarray[Any, Any]]:
    """The table of `fold_border`, with the number of columns and where the rows begin in it."""
    *outer, last = lines.readers
    columns = np.flatnonzero((last >= 0).sum(1) > 1)
    positions, begins = _ragged(last[columns], 3 * columns.size)
    rows = _offsets([np.arange(together)[:, None], *outer], strides).T
    row_table = 3 * columns.size + positions.size
    offsets, starts = _ragged(rows, row_table + len(rows) + 1)
    triples = np.stack([columns, begins[:-1], begins[1:]], axis=1)
    return columns.size, row_table, np.concatenate([triples.ravel(), positions, starts, offsets])


def _ragged(table: np.ndarray[Any, Any], begin: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The entries of all rows that are not -1, and where those of each row begin from `begin` on, and where the last ones end."""
    there = table >= 0
    return table[there], begin + np.concatenate([[0], np.cumsum(there.sum(1))])


def _divisor(number: int, most: int) -> int:
    """The largest divisor that is at most this, at least 1."""
    return next((each for each in range(min(number, most), 1, -1) if number % each == 0), 1)


def _offsets(tables: list[np.ndarray[Any, Any]], strides: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The byte offset in x of the row that each outer tap reads for each outer result, ``[taps, results]``; -1 for none."""
    offsets = np.zeros((1, 1), np.int64)
    for table, stride in zip(tables, strides, strict=True):
        step = np.where(table.T < 0, -1, table.T * stride)
        both = offsets[:, None, :, None] + step[None, :, None, :]
        there = (offsets[:, None, :, None] >= 0) & (step[None, :, None, :] >= 0)
        offsets = np.where(there, both, -1).reshape(offsets.shape[0] * step.shape[0], -1)
    return offsets
