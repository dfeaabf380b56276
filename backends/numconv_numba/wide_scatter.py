"""The gradient of max pooling over wide windows: winners are found as `wide_pool` finds them, some images at a time."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from numconv.plugin import Implementation, PoolProblem, Verdict, np_dtype

from .vector_scatter import VectorScatter
from .wide_pooling import WidePool

__all__ = ["WideScatter"]

TOGETHER = 1 << 17
"""Results of some images whose winners are kept."""


def _found(problem: PoolProblem) -> PoolProblem:
    """The pooling that finds the winners."""
    return problem.replace(op="max_pool", indices=True)


def _images(problem: PoolProblem) -> int:
    """Images whose winners are found together."""
    return min(problem.n, max(1, TOGETHER // (problem.c * math.prod(problem.output))))


class _Executor:
    """Some images at a time: their winners, then their gradients."""

    def __init__(self, problem: PoolProblem):
        self._problem = problem
        self._steps = functools.lru_cache(maxsize=2)(self._build)

    def _build(self, images: int) -> tuple[Any, Any]:
        some = self._problem.replace(n=images)
        return WidePool().build(_found(some)), VectorScatter().build(some.replace(indices=True))

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        (grad,), (y, x) = outs, ins
        together = _images(self._problem)
        for first in range(0, self._problem.n, max(together, 1)):
            part = slice(first, first + together)
            values, places = np.empty(y[part].shape, y.dtype), np.empty(y[part].shape, np.int64)
            find, scatter = self._steps(len(values))
            find((values, places), (x[part],))
            scatter((grad[part],), (y[part], places))


class WideScatter(Implementation):
    """The gradient of max pooling where `wide_pool` finds the winners."""

    name = "wide_scatter"
    ops = frozenset(("max_pool_backward",))

    def supports(self, problem: PoolProblem) -> Verdict:
        """What `wide_pool` takes, without indices."""
        if problem.indices:
            return Verdict.no("the winners are given: it finds them")
        return WidePool().supports(_found(problem)) and VectorScatter().supports(problem.replace(indices=True))

    def cost(self, problem: PoolProblem) -> float:
        """Of both steps, and of the arrays between them."""
        return 1e-5 + WidePool().cost(_found(problem)) + VectorScatter().cost(problem.replace(indices=True))

    def workspace(self, problem: PoolProblem) -> int:
        """The winners and largest values of some images; what either step needs."""
        kept = (8 + np_dtype(problem.dtype).itemsize) * _images(problem) * problem.c * math.prod(problem.output)
        return kept + max(WidePool().workspace(_found(problem)), VectorScatter().workspace(problem.replace(indices=True)))

    def build(self, problem: PoolProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
