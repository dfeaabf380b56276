"""Max pooling, and the gradient of average pooling, in vectors: the sums and winners of a row stay in registers.

Sums keep the order of `pooling`: the taps of a window in row-major order. They multiply by the reciprocals of the counts.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from numconv.plugin import Implementation, PoolProblem, Verdict
from numconv_numba.microkernels.emit import lanes_of
from numconv_numba.microkernels.row_access import MAX_STRIDE
from numconv_numba.microkernels.windows import ROW_ENTRY, SHORT
from numconv_numba.sliding import OUTER_AXES, Rows, counted_in_vectors, slide
from numconv_numba.threads import MAX_THREADS, run

from .averages import axis_counts
from .pool import Pool

__all__ = [
    "STEP_SECONDS",
    "VectorPool",
    "averaged_in_vectors",
    "call_seconds",
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
STEP_SECONDS = 8e-11
"""Of an operation on a vector, on two threads."""
VECTOR_STEPS, MASKED_STEPS = 2, 12
"""Of a vector of results beside its taps; and of one whose elements are not all in the row, for its masks, with one more a tap."""
TAP_STEPS = {"max_pool": 2.0, "avg_pool_backward": 1.0, "max_pool_backward": 3.5}
"""Of a tap, with its load and what it shares with others."""
PLACE_STEPS = 1.5
"""More where a maximum keeps its place."""
CALL_SECONDS, LIST_SECONDS = 1.7e-8, 1.3e-9
"""Of a call of the microkernel, and of a row in the lists of one, which several outer axes make again, on two threads."""
NO_FACTORS = np.ones(1)


class _Executor:
    """The microkernel for one operation, its tables, and the general implementation for arrays without neighbours in memory."""

    def __init__(self, problem: PoolProblem):
        self._problem = problem
        self._innermost = problem.layout == "channels_last"
        self._back = problem.op.endswith("_backward")
        self._rows = Rows(problem, back=self._back, innermost=self._innermost)
        self._factors, self._table = _factors(problem, self._innermost)
        self._apart = (0,) * (problem.ndim + 2)
        self._run = functools.partial(run, slide.specialise(), self._rows.items, 3 * problem.bytes + problem.flops)
        self._tool = self._rows.tool(_kind(problem, self._table), problem.dtype)

    @functools.cached_property
    def _general(self) -> Any:
        return Pool().build(self._problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        along = 1 if self._innermost else -1
        for array in (*outs, *ins):
            if array.strides[along] != array.itemsize:
                self._general(outs, ins)
                return
        x, y, beside = ins[0], outs[0], outs[-1] if self._problem.indices else self._table
        g = self._rows.vector(x.strides, y.strides, beside.strides if self._problem.indices else self._apart)
        self._run(self._tool, x, y, beside, self._factors if self._back else 0, g)


def _kind(problem: PoolProblem, table: Any) -> str:
    if problem.op == "max_pool":
        return "argmax" if problem.indices else "max"
    return "share" if table is NO_FACTORS else "weighted"


def _factors(problem: PoolProblem, innermost: bool) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """For the gradient of an average: of the outer axes, one behind the other, and of the inner axis if they differ there."""
    if problem.op == "max_pool":
        return NO_FACTORS, NO_FACTORS
    counts = axis_counts(problem)
    inner = np.ones(problem.c) if innermost else counts.pop()
    outer = [*[np.ones(1)] * (OUTER_AXES - len(counts)), *counts]
    if (inner == inner[0]).all():
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
    return counted_in_vectors(problem)


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


def vector_seconds(problem: PoolProblem, whole: int, masked: int, taps: float, phases: int = 1) -> float:
    """So many vectors of results, or of each of some phases, of so many taps."""
    tap = TAP_STEPS[problem.op] + PLACE_STEPS * problem.indices
    return STEP_SECONDS * (whole * (VECTOR_STEPS * phases + taps * tap) + masked * (MASKED_STEPS + taps * (tap + 1)))


def call_seconds(problem: PoolProblem) -> float:
    """Of the calls of the microkernel, one for the rows along the last outer axis, and of their lists, made again for each."""
    outer = problem.ndim - (problem.layout != "channels_last")
    calls = problem.n * (1 if problem.layout == "channels_last" else problem.c) * math.prod(problem.output[: max(outer - 1, 0)])
    listed = math.prod(problem.output[outer - 1 : outer]) * math.prod(problem.window[:outer]) if outer > 1 else 0
    return calls * (CALL_SECONDS + listed * LIST_SECONDS)


def seconds_in_vectors(problem: PoolProblem) -> float:
    """To look at the windows row by row, a vector of results at a time; of max_pool_backward, to find the winners."""
    last, back, lanes = problem.layout == "channels_last", problem.op == "avg_pool_backward", lanes_of(problem.dtype)
    results, taps = problem.spatial if back else problem.output, math.prod(problem.window)
    window, stride = problem.window[-1], problem.stride[-1]
    phases, phased = (stride, taps / math.prod(problem.stride)) if back else (1, taps)
    more = call_seconds(problem)
    if last:  # each tap is a row of its own; a result has as many of them as there are for all, on average
        phased = taps * math.prod(problem.output) / math.prod(results)
        rows, vectors, masked = problem.n * math.prod(results), -(-problem.c // lanes), int(problem.c % lanes > 0)
        return more + vector_seconds(problem, rows * (vectors - masked), rows * masked, 1.5 * phased)
    rows, vectors = problem.n * problem.c * math.prod(results[:-1]), -(-results[-1] // (lanes * phases))
    low, high = (window > stride,) * 2 if back else (side > 0 for side in problem.padding[-1])
    masked = min(vectors, low + (high or results[-1] % (lanes * phases) > 0))
    if vectors <= SHORT and masked:
        masked = vectors
    return more + vector_seconds(problem, rows * (vectors - masked), rows * masked, phased * phases, phases)


def lists_bytes(problem: PoolProblem) -> int:
    """Of the lists of the rows of x that the results of a plane read."""
    outer = problem.ndim - (problem.layout != "channels_last")
    if not outer:
        return 2 * ROW_ENTRY
    return max(problem.spatial[outer - 1], problem.output[outer - 1]) * ROW_ENTRY * (math.prod(problem.window[:outer]) + 1)


class VectorPool(Implementation):
    """Pooling of real floats whose rows lie in memory one element after the other."""

    name = "vector_pool"
    ops = frozenset(("max_pool", "avg_pool_backward"))

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
