"""Max and average pooling where no window reaches padding: a vector of neighbouring results in one pass.

The ends of rows are whole vectors that run into the rows behind them, which get their results later. The last rows of those that a
worker computes, behind which others write, take masks.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from numconv.plugin import Implementation, PoolProblem, Verdict, np_dtype
from numconv_numba.compiling.compiler import Address, helper, invoke, kernel
from numconv_numba.elements import INT64, memory, release, scratch
from numconv_numba.microkernels.emit import host, lanes_of
from numconv_numba.microkernels.inside import INSIDE, InsideShape, inside, vectors_under
from numconv_numba.microkernels.row_access import MAX_STRIDE
from numconv_numba.scalar import pointer
from numconv_numba.threads import MAX_THREADS, parallel_for, run

from .flat_pooling import Blocks, blocks_of
from .pool import Pool
from .vector_pooling import averaged_in_vectors, pooled_in_vectors
from .window_rows import fill_memory

__all__ = ["InsidePool"]

MOST_TAPS = 12
"""Of a window: each is unrolled."""
INSTRUCTION_SECONDS = {"max_pool": 1.5e-11, "avg_pool": 4e-11}
"""On two threads, beside the estimates of other poolings: fitted with AVX2."""
UNTIMED_SECONDS = 1e-10
"""The same where masks store as fast as whole vectors, so that others lose nothing at the ends of rows: not timed there (AVX-512),
but taken to be so slow that those stay chosen which were."""
ROW_INSTRUCTIONS, VECTOR_INSTRUCTIONS, PLACES_INSTRUCTIONS = 40, 8, 10
"""Of a row, of a vector of its results, and of their places, beside the taps."""
WORK_INSTRUCTION = 3.0
"""Multiply-adds that take as long as an instruction."""
JOB_SIZE = len(INSIDE)
NUMBER, X_BLOCK, Y_BLOCK, ROWS, X_STEP, Y_STEP, POSITION, VOLUME, MASKED = map(
    INSIDE.index, ("blocks", "x_block", "y_block", "rows", "x_step", "y_step", "position", "volume", "masked")
)

# The driver's vector: how many of the last rows need masks, bytes of an element, entries of the job, then the job.
TAIL, ITEM, LENGTH, HEAD = range(4)


@helper
def some_rows(tool, g, area, x, y, places, block, row, blocks, rows, masked):
    """Rows of blocks, from one of a block on; `area` is the memory of the job."""
    job = pointer(area, INT64)
    before = block * g[HEAD + X_BLOCK] + row * g[HEAD + X_STEP]
    behind = block * g[HEAD + Y_BLOCK] + row * g[HEAD + Y_STEP]
    job[NUMBER], job[ROWS], job[MASKED] = blocks, rows, masked
    job[POSITION] = before // g[ITEM] % g[HEAD + VOLUME]
    invoke(tool, x + before, y + behind, places + behind // g[ITEM] * 8, area)


@helper
def _pool(begin, end, args):
    tool, x, y, places, vector = args
    g = pointer(vector, INT64)
    buffer = scratch(8 * g[LENGTH])
    area, rows = memory(buffer), g[HEAD + ROWS]
    job = pointer(area, INT64)
    for entry in range(g[LENGTH]):
        job[entry] = g[HEAD + entry]
    safe = max((end - begin) * rows - g[TAIL], 0)
    block, rest = begin + safe // rows, safe % rows
    some_rows(tool, g, area, x, y, places, begin, 0, block - begin, rows, 0)
    if rest:
        some_rows(tool, g, area, x, y, places, block, 0, 1, rest, 0)
    if block < end:
        some_rows(tool, g, area, x, y, places, block, rest, 1, rows - rest, 1)
        some_rows(tool, g, area, x, y, places, block + 1, 0, end - block - 1, rows, 1)
    release(buffer)


@kernel
def pool(region: int, workers: int, items: int, tool: int, x: Address, y: Address, places: Address, g: Address) -> None:
    """y from x, and places where the kind is "argmax", by the microkernel `inside`: an item is a block."""
    parallel_for(region, workers, items, _pool, (tool, x, y, places, g))


# --- what is known of a problem ------------------------------------------------------------------------------------------------


def _shape(problem: PoolProblem) -> InsideShape:
    kind = "mean" if problem.op == "avg_pool" else "argmax" if problem.indices else "max"
    places = tuple(problem.dilation[-1] * tap for tap in range(problem.window[-1]))
    return InsideShape(kind, lanes_of(problem.dtype), problem.stride[-1], places, math.prod(problem.window[:-1]))


def _tail(problem: PoolProblem, blocks: Blocks) -> int:
    """The last rows of all, that need masks: from which vectors would be read behind x, or written behind y."""
    shape, results = _shape(problem), problem.output[-1]
    vectors = -(-results // shape.lanes)
    written = vectors * shape.lanes - results
    read = max(blocks.taps) + ((vectors - 1) * shape.stride + vectors_under(shape)) * shape.lanes
    tail, total = -(-written // results), blocks.total * blocks.rows
    while tail < total:
        block, row = divmod(total - 1 - tail, blocks.rows)
        if block * blocks.volume + row * blocks.step + read <= blocks.total * blocks.volume:
            break
        tail += 1
    return tail


def _reaching(problem: PoolProblem) -> Verdict:
    """Whether all windows lie inside x, and blocks of rows of them one behind the other."""
    axes = zip(problem.spatial, problem.window, problem.stride, problem.output, problem.padding, problem.dilation, strict=True)
    for axis, (size, window, stride, output, (low, _), dilation) in enumerate(axes):
        if low > 0 or (output - 1) * stride + dilation * (window - 1) >= size:
            return Verdict.no(f"windows along axis {axis} that reach into padding")
        if axis < problem.ndim - 2 and size != output * stride:
            return Verdict.no(f"windows along axis {axis} that leave something behind them, or overlap")
    return Verdict.yes()


class _Executor:
    """The microkernel and its job, and the general implementation for arrays that do not fill their memory in row-major order."""

    def __init__(self, problem: PoolProblem):
        self._problem, blocks, item = problem, blocks_of(problem), np_dtype(problem.dtype).itemsize
        share = np.array([1 / math.prod(problem.window)]).view(np.int64)[0]
        job = [
            1, blocks.volume * item, blocks.rows * problem.output[-1] * item, blocks.rows, blocks.step * item,
            problem.output[-1] * item, problem.output[-1], problem.spatial[-1], 0, math.prod(problem.spatial), 0, share,
            *(tap * item for tap in blocks.taps),
        ]  # fmt: skip
        self._vector = np.array([_tail(problem, blocks), item, len(job), *job], np.int64)
        tool = inside.address(tuple(_shape(problem)), problem.dtype)
        self._run = functools.partial(run, pool.specialise(), blocks.total, WORK_INSTRUCTION * _instructions(problem), tool)

    @functools.cached_property
    def _general(self) -> Any:
        return Pool().build(self._problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        if not fill_memory((*outs, *ins)):
            self._general(outs, ins)
        elif self._problem.n:
            (x,), (y, places) = ins, (*outs, 0)[:2]
            self._run(x, y, places, self._vector)


def _instructions(problem: PoolProblem) -> float:
    """Of all rows: of each its start, and of each vector of results the loads, what joins them, and the shuffles."""
    shape, taps = _shape(problem), math.prod(problem.window)
    joined, picked = (1 if shape.kind == "mean" else 3), min(shape.stride, 3) - (shape.stride == 1)
    columns = vectors_under(shape) * (shape.outer * (1 + joined) - joined)
    each = VECTOR_INSTRUCTIONS + columns + problem.window[-1] * (picked + joined)
    if shape.kind == "argmax":
        each = VECTOR_INSTRUCTIONS + PLACES_INSTRUCTIONS + vectors_under(shape) * shape.outer + taps * (picked + 5)
    rows = problem.n * problem.c * math.prod(problem.output[:-1])
    return rows * (ROW_INSTRUCTIONS + -(-problem.output[-1] // shape.lanes) * each)


class InsidePool(Implementation):
    """Max and average pooling of real floats where no window reaches padding."""

    name = "inside_pool"
    ops = frozenset(("max_pool", "avg_pool"))

    def supports(self, problem: PoolProblem) -> Verdict:
        """Channels first, two dimensions or three, few taps, a stride of at most 4 along the rows, and float32 or float64."""
        if problem.layout == "channels_last" or problem.ndim == 1:
            return Verdict.no("it takes two dimensions or three, channels first")
        if problem.stride[-1] > MAX_STRIDE or math.prod(problem.window) > MOST_TAPS:
            return Verdict.no(
                f"stride {problem.stride[-1]} along the last axis, {math.prod(problem.window)} taps: it takes at most {MAX_STRIDE} "
                f"and {MOST_TAPS}"
            )
        return _reaching(problem) and pooled_in_vectors(problem) and averaged_in_vectors(problem)

    def cost(self, problem: PoolProblem) -> float:
        """The time to move the arrays, and of the instructions."""
        masks = host().masks(np_dtype(problem.dtype).itemsize, write=True)
        each = UNTIMED_SECONDS if masks else INSTRUCTION_SECONDS[problem.op]
        return 2e-6 + problem.bytes / 1e11 + _instructions(problem) * each

    def workspace(self, problem: PoolProblem) -> int:
        """For each thread a job."""
        return MAX_THREADS * (8 * (JOB_SIZE + MOST_TAPS) + 64)

    def build(self, problem: PoolProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
