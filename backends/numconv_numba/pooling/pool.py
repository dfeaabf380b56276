"""Max, average and power-mean pooling and their gradients for every problem, a row of results at a time.

Sums have one order whatever the level, so every accuracy level gets the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from numconv.plugin import POOL_OPS, Implementation, PoolProblem, Verdict, np_dtype
from numconv_numba.threads import MAX_THREADS, run

from .averages import avg_pool_backward, axis_counts, lp_pool_backward, pool
from .maxima import max_pool, max_pool_backward
from .places import check_places
from .window_rows import PART, ROW, Rows, volume_parts

__all__ = ["Pool"]


def _compiled(problem: PoolProblem) -> Callable[..., None]:
    dtypes, norm = (problem.dtype, problem.out_dtype), {1.0: 1, 2.0: 2}.get(problem.p)
    if problem.op == "lp_pool":
        return pool.specialise(norm, *dtypes, "float64")
    if problem.op == "lp_pool_backward":
        return lp_pool_backward.specialise(norm, *dtypes)
    if problem.op == "avg_pool":
        return pool.specialise(0, *dtypes, problem.acc_dtype)
    kernels = {"max_pool": max_pool, "max_pool_backward": max_pool_backward, "avg_pool_backward": avg_pool_backward}
    return kernels[problem.op].specialise(*dtypes, problem.acc_dtype)


class _Executor:
    """One pooling operation: the compiled kernel, and what is known of its rows."""

    def __init__(self, problem: PoolProblem):
        self._problem = problem
        self._kernel = _compiled(problem)
        self._rows = Rows(problem, problem.spatial if problem.op.endswith("_backward") else problem.output)
        counts = axis_counts(problem)
        self._counts = np.concatenate(counts), np.concatenate([*counts, np.ones(problem.c)])
        self._work = problem.flops + math.prod(problem.x_shape)

    def __call__(self, outs: Any, ins: Any) -> None:
        if self._problem.n:
            getattr(self, f"_{self._problem.op}")(outs, ins)

    def _max_pool(self, outs: Any, ins: Any) -> None:
        (y, *indices), (x,) = outs, ins
        _, items, g = self._rows(x, indices[0] if indices else y, y)
        run(self._kernel, items, self._work, x, indices[0] if indices else 0, y, g)

    def _max_pool_backward(self, outs: Any, ins: Any) -> None:
        (grad,), (y, second) = outs, ins
        if self._problem.indices:
            check_places(self._problem.op, second, math.prod(self._problem.spatial))
        x, indices = (0, second) if self._problem.indices else (second, 0)
        innermost, _, g = self._rows(second, grad, y)
        items = self._problem.n * volume_parts(self._problem, innermost)
        run(self._kernel, items, self._work, y, x, indices, grad, g)

    def _avg_pool(self, outs: Any, ins: Any) -> None:
        (y,), (x,) = outs, ins
        innermost, items, g = self._rows(x, x, y)
        run(self._kernel, items, self._work, x, y, self._problem.p, self._counts[innermost], g)

    _lp_pool = _avg_pool

    def _avg_pool_backward(self, outs: Any, ins: Any) -> None:
        (grad,), (y,) = outs, ins
        innermost, items, g = self._rows(grad, grad, y)
        run(self._kernel, items, self._work, y, grad, self._counts[innermost], g)

    def _lp_pool_backward(self, outs: Any, ins: Any) -> None:
        (grad,), (y, x) = outs, ins
        _, items, g = self._rows(x, grad, y)
        run(self._kernel, items, self._work, y, x, grad, self._problem.p, g)


class Pool(Implementation):
    """Pooling a row at a time: every problem, every level."""

    name = "pool"
    ops = frozenset(POOL_OPS)

    def supports(self, problem: PoolProblem) -> Verdict:
        """Everything."""
        return Verdict.yes()

    def cost(self, problem: PoolProblem) -> float:
        """The time to move the arrays, and to look at every tap."""
        return 2e-6 + problem.bytes / 1e10 + problem.flops / (6e9 if problem.op == "avg_pool" else 4e9)

    def workspace(self, problem: PoolProblem) -> int:
        """For each thread some rows of sums and the tables of the rows that they read, or the sums of a part of a channel."""
        taps = math.prod(problem.window[:-1])
        sums = min(PART, problem.c * math.prod(problem.spatial)) if problem.op == "max_pool_backward" else 0
        return MAX_THREADS * (4 * ROW * 8 + 32 * taps + np_dtype(problem.acc_dtype).itemsize * sums)

    def build(self, problem: PoolProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
