"""What `crosswise_pooling` knows before it sees arrays: groups of channels, bands of planes, and what each result reads."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from numconv.plugin import PoolProblem, np_dtype
from numconv_numba.microkernels.crosswise import CROSSWISE, ENTRY
from numconv_numba.microkernels.emit import lanes_of
from numconv_numba.sliding import outer_axis, rows_read

from .averages import axis_counts

__all__ = [
    "JOB_SIZE",
    "LISTS",
    "PER_INDEX",
    "SPANS",
    "Groups",
    "band_extents",
    "bands_of",
    "groups_of",
    "list_bytes",
    "reached",
    "sweeps_of",
]

JOB_SIZE = len(CROSSWISE)
LISTS, SPANS, PER_INDEX, HEAD = JOB_SIZE, JOB_SIZE + 1, JOB_SIZE + 2, JOB_SIZE + 3
"""In the vector of a sweep, behind the job: where its tables begin, and the rows of results of one index of the first axis."""
BAND = 1 << 18
"""Bytes of transposed x that a work item takes, if its windows need no more: they stay in the second-level cache."""
ITEMS = 8
"""Work items at least, where planes are large enough to be parted into bands."""
VECTORS, DEEP = 4, 3
"""Of a result, where there are channels enough, and a band has place for so many times what overlapping windows of a row read."""


class Groups(NamedTuple):
    """The channels that are taken together.

    Attributes
    ----------
    vectors, channels : int
        Of a group.
    blocks : int
        Groups of an image, where its channels are neighbours in memory.
    total : int
        Groups of all images.
    pitch : int
        Bytes between positions of transposed planes.
    """

    vectors: int
    channels: int
    blocks: int
    total: int
    pitch: int


def groups_of(problem: PoolProblem) -> Groups:
    """How the channels of a problem are grouped."""
    lanes, item = lanes_of(problem.acc_dtype), np_dtype(problem.acc_dtype).itemsize
    last = problem.layout == "channels_last"
    planes, many = problem.c if last else problem.n * problem.c, VECTORS * lanes
    reach = _reach(problem) if _reach(problem) <= problem.stride[0] else DEEP * _reach(problem)
    small = last or min(problem.spatial[0], reach) * math.prod(problem.spatial[1:]) * many * item <= BAND
    # the last group has few channels, or overlaps the one before it
    vectors = VECTORS if small and (planes % many == 0 or planes >= VECTORS * many) else 1
    if last and planes % many:
        vectors = _fitting(-(-planes // lanes), planes // lanes)
    channels = vectors * lanes
    blocks = -(-problem.c // channels) if last else 1
    total = problem.n * blocks if last else -(-planes // channels)
    return Groups(vectors, channels, blocks, total, channels * item)


def _fitting(needed: int, most: int) -> int:
    """The vectors of a group, of at most so many, where an image needs so many: a group takes as long as one more."""
    return min(range(min(VECTORS, most), 0, -1), key=lambda vectors: -(-needed // vectors) * (vectors + 1))


def _reach(problem: PoolProblem) -> int:
    """The indices of the first axis that a window spans."""
    return problem.dilation[0] * (problem.window[0] - 1) + 1


# --- bands ---------------------------------------------------------------------------------------------------------------------


def reached(table: np.ndarray[Any, Any], first: int, last: int) -> tuple[int, int]:
    """From where to where the results first..last of an axis read."""
    found = table[first:last][table[first:last] >= 0]
    return (int(found.min()), int(found.max()) + 1) if found.size else (0, 0)


def bands_of(problem: PoolProblem, groups: Groups) -> np.ndarray[Any, Any]:
    """``[bands, 6]``: from where to where the results go along their first axis, what they read, and x where winners are found."""
    back = problem.op.endswith("_backward")
    results = problem.spatial[0] if back else problem.output[0]
    reach, stride = _reach(problem), problem.stride[0]
    least = reach if back else -(-reach // stride)  # fewer read more beside their own than their own
    # beside each other, groups share what they read; where winners are found again at its ends, a band is as large as one can be
    together = 1 if problem.op == "max_pool_backward" else groups.blocks
    plane = math.prod(problem.spatial) * groups.pitch * together
    parts = max(-(-plane // BAND), -(-ITEMS // max(groups.total, 1)) if plane > BAND // ITEMS else 1)
    step = max(-(-results // parts), min(results, least))
    if back and step < results:
        step = -(-step // stride) * stride
    ahead, table = outer_axis(problem, 0, False).table, outer_axis(problem, 0, back).table
    bands = []
    for first in range(0, results, step):
        last = min(first + step, results)
        read = reached(table, first, last)
        bands.append((first, last, *read, *(reached(ahead, *read) if back else (0, 0))))
    return np.array(bands, np.int64)


def band_extents(problem: PoolProblem, groups: Groups) -> tuple[int, int, int]:
    """Bytes of a band, at most: of transposed x, of transposed y, and of places."""
    bands = bands_of(problem, groups)
    results, read, found = (int(length.max()) for length in (bands[:, 1::2] - bands[:, ::2]).T)
    x_row, y_row = math.prod(problem.spatial[1:]) * groups.pitch, math.prod(problem.output[1:]) * groups.pitch
    if problem.op.endswith("_backward"):
        return max(results, found) * x_row, read * y_row, read * y_row
    return read * x_row, results * y_row, results * y_row if problem.indices else 0


# --- sweeps --------------------------------------------------------------------------------------------------------------------


class _Sides(NamedTuple):
    """Which index of the source each result of an axis reads with each tap, -1 for none; how many results and sources axes have.

    `step` and `stride`: along the last axis, between the elements of a result, and between those of results that read all taps;
    a stride of 0: there are none that follow each other.
    """

    tables: list[np.ndarray[Any, Any]]
    results: tuple[int, ...]
    sources: tuple[int, ...]
    step: int
    stride: int


def _forward(problem: PoolProblem) -> _Sides:
    tables = [outer_axis(problem, axis, False).table for axis in range(problem.ndim)]
    return _Sides(tables, problem.output, problem.spatial, problem.dilation[-1], problem.stride[-1])


def _backward(problem: PoolProblem, *, of_taps: bool) -> _Sides:
    """Windows come in the order of an element's taps, or in that of y."""
    order = 1 if of_taps else -1
    tables = [outer_axis(problem, axis, True).table[:, ::order] for axis in range(problem.ndim)]
    stride, dilation = problem.stride[-1], problem.dilation[-1]
    step = -order * (dilation // math.gcd(stride, dilation))
    return _Sides(tables, problem.spatial, problem.output, step, 1 if stride == 1 else 0)


def _alone(problem: PoolProblem) -> _Sides:
    """Each window is a result that reads itself."""
    return _Sides([np.arange(size)[:, None] for size in problem.output], problem.output, problem.output, 1, 1)


def sweeps_of(problem: PoolProblem, outside: int, inside: int) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """The kind and the vector of each sweep of an operation.

    `outside` and `inside`: bytes between positions of what is read first and written last, and of what lies between.
    """
    if problem.op == "max_pool":
        kind = "argmax" if problem.indices else "max"
        return [(kind, _sweep(_forward(problem), (outside, outside, inside), None))]
    if problem.op == "max_pool_backward":
        found = _sweep(_forward(problem), (outside, 0, inside), None)
        back = _sweep(_backward(problem, of_taps=False), (outside, outside, inside), None, places_stay=True)
        return [("winner", found), ("won", back)]
    counts = axis_counts(problem)
    if problem.op == "avg_pool":
        return [("mean", _sweep(_forward(problem), (outside, outside, 0), counts))]
    back = _sweep(_backward(problem, of_taps=True), (inside, outside, 0), None)
    return [("mean", _sweep(_alone(problem), (outside, inside, 0), counts)), ("sum", back)]


def _sweep(
    sides: _Sides, pitches: tuple[int, int, int], counts: Sequence[np.ndarray[Any, Any]] | None, *, places_stay: bool = False
) -> np.ndarray[Any, Any]:
    """The vector of a sweep: the job, where its tables begin, the rows of an index, and these tables.

    `pitches`: bytes between positions of x, y and places; `counts`: of the results of each axis, for a mean; `places_stay`: places
    are read, by any row, not written.
    """
    *outer, inner = sides.tables
    rows, spans, length = _lists(outer, sides, pitches[0]), _spans(inner), sides.results[-1]
    if counts is None:
        rows[:, 0, 1] = np.arange(len(rows)) * length
    else:
        rows[:, 0, 1] = functools.reduce(np.multiply.outer, counts[:-1], np.ones(1)).ravel().view(np.int64)
        spans[:, 2] = counts[-1].view(np.int64)
    alike = np.flatnonzero(spans[:, 1] == inner.shape[1]) if sides.stride else np.zeros(0, np.int64)
    low, high = (int(alike[0]), int(alike[-1]) + 1) if alike.size else (0, 0)
    per_index = len(rows) // sides.results[0] if outer else 0
    steps = rows.strides[0], length * pitches[1], 0 if places_stay else length * pitches[2]
    job = [0, *steps, 0, length, low, high, sides.stride, sides.step, *pitches]
    head = np.array([*job, HEAD, HEAD + rows.size, per_index], np.int64)
    return np.concatenate([head, rows.ravel(), spans.ravel()])


def _lists(outer: Sequence[np.ndarray[Any, Any]], sides: _Sides, pitch: int) -> np.ndarray[Any, Any]:
    """``[rows, 1 + taps, 3]``: for each row of results how many rows of the source it reads; where these begin, their places."""
    found, counts = rows_read(outer, sides.sources)
    lists = np.zeros((len(found), found.shape[1] + 1, ENTRY // 8), np.int64)
    lists[:, 0, 0] = counts
    lists[:, 1:, 1] = found * sides.sources[-1]
    lists[:, 1:, 0] = lists[:, 1:, 1] * pitch
    return lists


def _spans(inner: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """``[results, 3]``: the first position that each result of a row reads, and how many."""
    there = inner >= 0
    firsts = np.take_along_axis(inner, there.argmax(1)[:, None], axis=1)[:, 0]
    return np.stack([np.where(there.any(1), firsts, 0), there.sum(1), np.zeros_like(firsts)], axis=1)


def list_bytes(problem: PoolProblem) -> int:
    """Of the lists of a plane."""
    rows = max(math.prod(problem.output[:-1]), math.prod(problem.spatial[:-1]))
    return rows * (math.prod(problem.window[:-1]) + 1) * ENTRY
