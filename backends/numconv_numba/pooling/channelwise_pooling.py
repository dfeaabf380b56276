"""Max and average pooling of channels that are last, pixel by pixel: x is read, and y written, in the order of memory.

What windows read beside x are zeros for averages, which a row of zeros holds, and for maxima an element of the window once more.
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
from numconv_numba.microkernels.pixels import PIXELS, pixels
from numconv_numba.scalar import as_integer, pointer
from numconv_numba.sliding import outer_axis, rows_read
from numconv_numba.threads import MAX_THREADS, parallel_for, run

from .averages import axis_counts
from .pool import Pool
from .vector_pooling import averaged_in_vectors, pooled_in_vectors
from .window_rows import fill_memory

__all__ = ["ChannelwisePool"]

UNROLLED = 12
"""Taps of a window up to which there is code for each."""
VECTORS = 4
"""Of a block of channels, at most: their sums, or largest elements, and what is compared with them are in registers."""
CYCLE_SECONDS = 8e-11
"""On two threads, beside the estimates of other poolings: fitted with AVX2."""
LOOKS, ADDRESS = {"avg_pool": 0.25, "max_pool": 0.5}, 6
"""Cycles of a tap of a vector, and of its address."""
WORK_CYCLE, WORK_BYTE = 12, 0.25
"""Multiply-adds that take as long as a cycle, and as a byte."""
MAX_TABLES = 1 << 20
"""Bytes of what rows and columns of results read."""

# The driver's vector: the microkernel's job; rows of results of an image, taps along the outer axes and along the rows; bytes of an
# image of x and of y, of a row of results and of its shares; then, in bytes, which row of x each row of results reads with each
# outer tap, or -1, and which position each result of a row with each other.
ROWS, OUTER, INNER, X_IMAGE, Y_IMAGE, Y_ROW, SHARES, HEAD = range(len(PIXELS), len(PIXELS) + 8)


@helper
def fill_places(places, x, zeros, row, g):
    """The addresses that each window of a row of results reads; x is that of an image."""
    results, outer, inner, nowhere = g[0], g[OUTER], g[INNER], as_integer(zeros)
    rows, columns = HEAD + row * outer, HEAD + g[ROWS] * outer
    for tap in range(outer):
        before, start = g[rows + tap], as_integer(x) + g[rows + tap]
        for result in range(results):
            entry, column = (result * outer + tap) * inner, columns + result * inner
            for i in range(inner):
                beside = g[column + i]
                places[entry + i] = nowhere if (before | beside) < 0 else start + beside


@helper
def _pool(begin, end, args):
    tool, x, y, zeros, shares, vector = args
    g = pointer(vector, INT64)
    buffer = scratch(8 * g[0] * g[1])
    places = memory(buffer)
    for item in range(begin, end):
        n, row = item // g[ROWS], item % g[ROWS]
        fill_places(pointer(places, INT64), x + n * g[X_IMAGE], zeros, row, g)
        invoke(tool, places, shares + row * g[SHARES], y + (n * g[Y_IMAGE] + row * g[Y_ROW]), vector)
    release(buffer)


@kernel
def pool(
    region: int, workers: int, items: int, tool: int, x: Address, y: Address, zeros: Address, shares: Address, g: Address
) -> None:
    """y from x by the microkernel `pixels`: an item is a row of results; `zeros` are as many as there are channels."""
    parallel_for(region, workers, items, _pool, (tool, x, y, zeros, shares, g))


# --- what is known of a problem ------------------------------------------------------------------------------------------------


def _tables(problem: PoolProblem) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Where the row of x begins that each row of results reads with each outer tap, or -1; which position each result of a row."""
    *outer, inner = (outer_axis(problem, axis, False).table for axis in range(problem.ndim))
    rows, _ = rows_read(outer, problem.spatial)
    columns, _ = rows_read([inner], problem.spatial[-1:])
    if problem.op == "max_pool":  # those that are there come first
        rows, columns = (np.where(table < 0, table[:, :1], table) for table in (rows, columns))
    step = problem.c * np_dtype(problem.dtype).itemsize
    return np.maximum(rows * problem.spatial[-1] * step, -1), np.maximum(columns * step, -1)


def _shares(problem: PoolProblem) -> np.ndarray[Any, Any]:
    """For each result one over the count of its window."""
    return functools.reduce(np.multiply.outer, (1 / counts for counts in axis_counts(problem)), np.ones(1)).astype(problem.dtype)


def _vectors(problem: PoolProblem) -> int:
    """Of a block of channels: as few blocks as can be, of as few vectors."""
    lanes = lanes_of(problem.dtype)
    needed, most = -(-problem.c // lanes), problem.c // lanes
    return min(range(min(VECTORS, most), 0, -1), key=lambda vectors: -(-needed // vectors) * (vectors + 1))


def _table_bytes(problem: PoolProblem) -> int:
    """Of the tables, and of the addresses of a row of results."""
    taps, rows = math.prod(problem.window), math.prod(problem.output[:-1])
    return 8 * (rows * (taps // problem.window[-1] + problem.output[-1]) + problem.output[-1] * (problem.window[-1] + taps))


def _cycles(problem: PoolProblem) -> float:
    """Of one thread: of the addresses of each window, of its blocks, and of their vectors."""
    taps, vectors = math.prod(problem.window), _vectors(problem)
    blocks = -(-problem.c // (vectors * lanes_of(problem.dtype)))
    block = 4 + vectors * (1.5 + taps * LOOKS[problem.op]) + (0 if taps <= UNROLLED else 2 * taps)
    return problem.n * math.prod(problem.output) * (8 + ADDRESS * taps + blocks * block)


class _Executor:
    """The microkernel and its tables, and the general implementation for arrays that fill memory in another order."""

    def __init__(self, problem: PoolProblem):
        self._problem = problem
        self._in_memory = (0, *range(2, problem.ndim + 2), 1)
        item, vectors, taps = np_dtype(problem.dtype).itemsize, _vectors(problem), math.prod(problem.window)
        lanes, step, results = lanes_of(problem.dtype), problem.c * item, problem.output[-1]
        block = vectors * lanes
        rows, columns = _tables(problem)
        head = [
            results, taps, -(-problem.c // block), (problem.c - block) * item, step, len(rows), rows.shape[1], problem.window[-1],
            math.prod(problem.spatial) * step, math.prod(problem.output) * step, results * step, results * item,
        ]  # fmt: skip
        vector = np.concatenate([np.array(head, np.int64), rows.ravel(), columns.ravel()])
        self._fixed = np.zeros(problem.c, problem.dtype), _shares(problem), vector
        kind = "max" if problem.op == "max_pool" else "mean"
        tool = pixels.address((kind, lanes, vectors, taps if taps <= UNROLLED else 0), problem.dtype)
        work = WORK_CYCLE * _cycles(problem) + WORK_BYTE * problem.bytes
        self._run = functools.partial(run, pool.specialise(), problem.n * len(rows), work, tool)

    @functools.cached_property
    def _general(self) -> Any:
        return Pool().build(self._problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        if not fill_memory((*outs, *ins), self._in_memory):
            self._general(outs, ins)
        elif self._problem.n:
            self._run(*ins, *outs, *self._fixed)


class ChannelwisePool(Implementation):
    """Max and average pooling of real floats, channels last."""

    name = "channelwise_pool"
    ops = frozenset(("max_pool", "avg_pool"))

    def supports(self, problem: PoolProblem) -> Verdict:
        """Channels last, a vector of them at least, float32 or float64, no indices."""
        if problem.layout != "channels_last" or problem.c < lanes_of(problem.dtype):
            return Verdict.no(f"it takes channels that are last, and at least a vector of them, and here are {problem.c}")
        if problem.indices:
            return Verdict.no("it does not find where the largest elements are")
        if _table_bytes(problem) > MAX_TABLES:
            return Verdict.no(f"{_table_bytes(problem)} bytes of tables: it takes at most {MAX_TABLES}")
        return pooled_in_vectors(problem) and averaged_in_vectors(problem)

    def cost(self, problem: PoolProblem) -> float:
        """The time to move the arrays, and of the windows."""
        return 2e-6 + problem.bytes / 1e11 + _cycles(problem) * CYCLE_SECONDS

    def workspace(self, problem: PoolProblem) -> int:
        """For each thread the addresses of a row of results."""
        return MAX_THREADS * (8 * problem.output[-1] * math.prod(problem.window) + 64)

    def build(self, problem: PoolProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
