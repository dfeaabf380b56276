"""The gradient of max pooling in two steps, some images at a time: the cheapest pooling finds the winners, then they are scattered.

For wide windows, which overlap so often that gathering compares each element with many winners, and for few channels that are
neighbours.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from numconv.plugin import Implementation, PoolProblem, Verdict, np_dtype

from .crosswise_pooling import CrosswisePool
from .flat_pooling import FlatPool
from .vector_pooling import VectorPool
from .vector_scatter import VectorScatter
from .wide_pooling import WidePool

__all__ = ["FoundScatter"]

TOGETHER = 1 << 17
"""Results of some images whose winners are kept."""
FINDERS: tuple[Implementation, ...] = (CrosswisePool(), FlatPool(), VectorPool(), WidePool())


def _found(problem: PoolProblem) -> PoolProblem:
    """The pooling that finds the winners of some images."""
    return problem.replace(op="max_pool", indices=True, n=_images(problem))


def _images(problem: PoolProblem) -> int:
    """Images whose winners are found together."""
    return min(problem.n, max(1, TOGETHER // (problem.c * math.prod(problem.output))))


def _finder(problem: PoolProblem) -> Implementation:
    """The cheapest pooling that finds winners, of those that support the problem."""
    found = _found(problem)
    return min((each for each in FINDERS if each.supports(found)), key=lambda each: each.cost(found))


class _Executor:
    """Some images at a time: their winners, then their gradients."""

    def __init__(self, problem: PoolProblem):
        self._problem = problem
        self._steps = functools.lru_cache(maxsize=2)(self._build)

    def _build(self, images: int) -> tuple[Any, Any]:
        some = self._problem.replace(n=images)
        return _finder(some).build(_found(some)), VectorScatter().build(some.replace(indices=True))

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        (grad,), (y, x) = outs, ins
        together = _images(self._problem)
        for first in range(0, self._problem.n, max(together, 1)):
            part = slice(first, first + together)
            values, places = self._empty(y[part], y.dtype), self._empty(y[part], np.dtype(np.int64))
            find, scatter = self._steps(len(values))
            find((values, places), (x[part],))
            scatter((grad[part],), (y[part], places))

    def _empty(self, like: Any, dtype: np.dtype[Any]) -> Any:
        """New memory, in the order of the layout."""
        if self._problem.layout == "channels_first":
            return np.empty(like.shape, dtype)
        return np.moveaxis(np.empty(np.moveaxis(like, 1, -1).shape, dtype), -1, 1)


class FoundScatter(Implementation):
    """The gradient of max pooling whose winners are found first."""

    name = "found_scatter"
    ops = frozenset(("max_pool_backward",))

    def supports(self, problem: PoolProblem) -> Verdict:
        """What `vector_scatter` takes, without indices, where another pooling finds them."""
        if problem.indices:
            return Verdict.no("the winners are given: it finds them")
        if not any(each.supports(_found(problem)) for each in FINDERS):
            return Verdict.no(f"{', '.join(each.name for each in FINDERS)} do not take it: they find the winners")
        return VectorScatter().supports(problem.replace(indices=True))

    def cost(self, problem: PoolProblem) -> float:
        """Of both steps, and of the arrays between them."""
        found, parts = _found(problem), -(-problem.n // max(_images(problem), 1))
        near = math.prod(found.y_shape) <= TOGETHER  # else what lies between leaves the second-level cache
        between = math.prod(problem.y_shape) * (8 + np_dtype(problem.dtype).itemsize) / (5e10 if near else 2e10)
        return parts * (1e-5 + _finder(problem).cost(found)) + VectorScatter().cost(problem.replace(indices=True)) + between

    def workspace(self, problem: PoolProblem) -> int:
        """The winners and largest values of some images; what the finder needs."""
        kept = (8 + np_dtype(problem.dtype).itemsize) * _images(problem) * problem.c * math.prod(problem.output)
        return kept + _finder(problem).workspace(_found(problem))

    def build(self, problem: PoolProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
