"""Max and average pooling, and the gradient of the latter, in vectors: the sums and winners of a row stay in registers.

Sums keep the order of `pooling`: the taps of a window in row-major order. The gradient of an average multiplies by the reciprocals
of the counts.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from numconv.plugin import Implementation, PoolProblem, Verdict

from .averages import axis_counts
from .microkernels.emit import lanes_of
from .microkernels.row_access import MAX_STRIDE
from .microkernels.windows import ROW_ENTRY
from .pooling import Pool
from .sliding import OUTER_AXES, Rows, slide
from .threads import MAX_THREADS, run

__all__ = [
    "VectorPool",
    "averaged_in_vectors",
    "lists_bytes",
    "pooled_in_vectors",
    "seconds_in_vectors",
    "stepped_in_vectors",
    "vector_seconds",
]

DTYPES = ("float32", "float64")
MAX_POSITIONS = 2**31
"""Of a channel: places are counted in 32 bits."""
MAX_TABLE = 1 << 16
"""Entries of the table of an axis."""
MAX_LISTS = 1 << 20
"""Bytes of the lists of a plane."""
STEP_SECONDS, VECTOR_STEPS = 1e-10, 16
"""On two threads, of an operation on a vector; and how many a vector of results takes beside those of its taps."""
TAP_STEPS = {"avg_pool": 2, "avg_pool_backward": 2, "max_pool": 3}
"""Of a tap, with its load: an addition, or a maximum and half a look for NaNs."""
PLACE_STEPS = 2
"""More where the tap of a maximum is remembered."""
NO_FACTORS = np.ones(1)


class _Executor:
    """The microkernel for one operation, its tables, and the general implementation for arrays without neighbours in memory."""

    def __init__(self, problem: PoolProblem):
        self._problem = problem
        self._innermost = problem.layout == "channels_last"
        self._back = problem.op.endswith("_backward")
        self._rows = Rows(problem, back=self._back, innermost=self._innermost)
        self._factors, self._table = _factors(problem, self._innermost, self._back)
        self._run = functools.partial(run, slide.specialise(), self._rows.items, 3 * problem.bytes + problem.flops)
        self._tool = self._rows.tool(_kind(problem, self._table), problem.dtype)

    @functools.cached_property
    def _general(self) -> Any:
        return Pool().build(self._problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        along = 1 if self._innermost else -1
        if any(array.strides[along] != array.itemsize for array in (*outs, *ins)):
            self._general(outs, ins)
            return
        x, y, beside = ins[0], outs[0], outs[-1] if self._problem.indices else self._table
        g = self._rows.vector(x.strides, y.strides, beside.strides if self._problem.indices else (0,) * x.ndim)
        known = 0 if self._problem.op == "max_pool" else self._factors
        factors, scales = (known, 0) if self._back else (0, known)
        self._run(self._tool, x, y, beside, factors, scales, g)


def _kind(problem: PoolProblem, table: Any) -> str:
    if problem.op == "max_pool":
        return "argmax" if problem.indices else "max"
    return "mean" if problem.op == "avg_pool" else "share" if table is NO_FACTORS else "weighted"


def _factors(problem: PoolProblem, innermost: bool, back: bool) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """For an average or its gradient: of the outer axes, one behind the other, and of the inner axis if they differ there."""
    if problem.op == "max_pool":
        return NO_FACTORS, NO_FACTORS
    counts = axis_counts(problem)
    inner = np.ones(problem.c) if innermost else counts.pop()
    outer = [*[np.ones(1)] * (OUTER_AXES - len(counts)), *counts]
    if back and (inner == inner[0]).all():
        return 1 / np.concatenate([outer[0] * inner[0], *outer[1:]]), NO_FACTORS
    return 1 / np.concatenate(outer), (1 / inner).astype(problem.dtype)


def pooled_in_vectors(problem: PoolProblem) -> Verdict:
    """Whether the rows of windows can be taken in vectors."""
    innermost = problem.layout == "channels_last"
    outer = problem.ndim - (not innermost)
    if problem.dtype not in DTYPES or problem.out_dtype != problem.dtype:
        return Verdict.no(f"{problem.dtype} to {problem.out_dtype}: it takes and gives float32, or float64")
    if outer > OUTER_AXES:
        return Verdict.no(f"{outer} axes beside the rows: it has {OUTER_AXES}")
    if math.prod(problem.spatial) >= MAX_POSITIONS:
        return Verdict.no(f"{math.prod(problem.spatial)} positions in a channel: it counts fewer than {MAX_POSITIONS}")
    axes = zip(problem.spatial[:outer], problem.output[:outer], problem.window[:outer], strict=True)
    entries = max((max(sizes) * window for *sizes, window in axes), default=0)
    if entries > MAX_TABLE or lists_bytes(problem) > MAX_LISTS:
        return Verdict.no(f"a table of {entries} rows and {lists_bytes(problem)} bytes of lists: too many")
    return Verdict.yes()


def stepped_in_vectors(problem: PoolProblem) -> Verdict:
    """Whether neighbouring windows are near enough to lie in the lanes of a vector."""
    if problem.layout != "channels_last" and problem.stride[-1] > MAX_STRIDE:
        return Verdict.no(f"stride {problem.stride[-1]} along the last axis: it takes at most {MAX_STRIDE}")
    return Verdict.yes()


def averaged_in_vectors(problem: PoolProblem) -> Verdict:
    """Whether an average may be multiplied by the reciprocal of its count."""
    if problem.accuracy == "strict" and problem.op != "max_pool":
        return Verdict.no("accuracy strict: it multiplies by reciprocals, and strict averages are divided")
    return Verdict.yes()


def vector_seconds(problem: PoolProblem, vectors: int, taps: int, *, stride: int) -> float:
    """So many vectors of results, of so many taps, which lie in memory at a stride."""
    places = PLACE_STEPS if problem.indices or problem.op == "max_pool_backward" else 0
    tap = TAP_STEPS.get(problem.op, TAP_STEPS["max_pool"]) + places + (stride > 1)
    return vectors * (VECTOR_STEPS + taps * tap) * STEP_SECONDS


def seconds_in_vectors(problem: PoolProblem) -> float:
    """To look at the windows row by row, a vector of results at a time."""
    last, lanes = problem.layout == "channels_last", lanes_of(problem.dtype)
    row, stride = (problem.c, 1) if last else (problem.output[-1], problem.stride[-1])
    vectors = math.prod(problem.y_shape) // row * -(-row // lanes)
    return vector_seconds(problem, vectors, math.prod(problem.window), stride=stride)


def lists_bytes(problem: PoolProblem) -> int:
    """Of the lists of the rows of x that the results of a plane read."""
    outer = problem.ndim - (problem.layout != "channels_last")
    if not outer:
        return 2 * ROW_ENTRY
    return max(problem.spatial[outer - 1], problem.output[outer - 1]) * ROW_ENTRY * (math.prod(problem.window[:outer]) + 1)


class VectorPool(Implementation):
    """Pooling of real floats whose rows lie in memory one element after the other."""

    name = "vector_pool"
    ops = frozenset(("max_pool", "avg_pool", "avg_pool_backward"))

    def supports(self, problem: PoolProblem) -> Verdict:
        """Up to three dimensions, a stride of at most 4 along the rows, and one dtype, float32 or float64."""
        return pooled_in_vectors(problem) and stepped_in_vectors(problem) and averaged_in_vectors(problem)

    def cost(self, problem: PoolProblem) -> float:
        """The time to move the arrays, and to look at the windows."""
        return 2e-6 + problem.bytes / 1e11 + seconds_in_vectors(problem)

    def workspace(self, problem: PoolProblem) -> int:
        """For each thread the lists of the rows of a plane."""
        return MAX_THREADS * (lists_bytes(problem) + 256)

    def build(self, problem: PoolProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
