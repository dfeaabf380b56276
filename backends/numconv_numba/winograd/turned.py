"""Kernels with their taps along a dimension before the last two, as 3x1x1: that one takes the place of the last but one.

Tiles lie along the last two dimensions, and a kernel that is a single tap wide there would have none. A convolution is the same
whatever the order of its dimensions, and arrays are read and written where they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numconv.plugin import ConvProblem

from .tiles import MOST_TAPS

__all__ = ["Turned", "TurnedForward", "turned", "turned_order"]


def turned_order(problem: ConvProblem) -> tuple[int, ...] | None:
    """The order of the dimensions that has tiles along the last but one; None if it has them already, or never."""
    last = problem.ndim - 2
    if problem.ndim < 3 or problem.kernel[last] > 1 or problem.stride[last] > 1:
        return None
    found = [axis for axis in range(last) if 3 <= problem.kernel[axis] <= MOST_TAPS and _tiles_along(problem, axis)]
    if not found:
        return None
    order = list(range(problem.ndim))
    order[found[-1]], order[last] = last, found[-1]
    return tuple(order)


def _tiles_along(problem: ConvProblem, axis: int) -> bool:
    """Whether tiles may lie along a dimension: see `Winograd.accepts`."""
    within = problem.pad_mode != "zeros" or max(problem.padding[axis]) < problem.kernel[axis]
    return problem.stride[axis] == problem.dilation[axis] == 1 and within


def turned(problem: ConvProblem) -> ConvProblem:
    """The problem in `turned_order`."""
    order = turned_order(problem)
    if order is None:
        return problem
    names = "spatial", "kernel", "stride", "padding", "dilation"
    changes = {name: tuple(getattr(problem, name)[axis] for axis in order) for name in names}
    return problem.replace(**changes)


class Turned:
    """An executor of the problem in this order, for arrays that have their dimensions as before."""

    def __init__(self, executor: Any, order: Sequence[int]):
        self._executor = executor
        self._axes = (0, 1, *(2 + axis for axis in order))

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        self._executor(self._turn(outs), self._turn(ins))

    def _turn(self, arrays: Sequence[Any]) -> list[Any]:
        """Views of x, w and y; a bias as it is."""
        return [array.transpose(self._axes) if array.ndim == len(self._axes) else array for array in arrays]


class TurnedForward(Turned):
    """One of a forward convolution."""

    def bind(self, w: Any) -> Any:
        """The executor with its own copy of w."""
        bound = self._executor.bind(*self._turn([w]))
        return lambda outs, ins: bound(self._turn(outs), self._turn(ins))
