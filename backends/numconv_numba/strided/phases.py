"""The phases of a strided input_grad: positions of x with the same remainder by the stride, which are read by the same taps."""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

from numconv.plugin import ConvProblem

__all__ = ["Phases", "phases_of"]


class _Tap(NamedTuple):
    """A tap along one dimension: its number in w, and the output that it reads, relative to that of the element of x."""

    number: int
    output: int


class Phases(NamedTuple):
    """The phases of an input_grad.

    Attributes
    ----------
    counts : tuple of int
        Phases per dimension.
    window : ConvProblem
        The forward problem, from y to every first phase of x, whose window holds what all phases read.
    taps : tuple of tuple of (int, tuple of int)
        Of each phase, row-major: the number of each tap in w, and its position in the window.
    """

    counts: tuple[int, ...]
    window: ConvProblem
    taps: tuple[tuple[tuple[int, tuple[int, ...]], ...], ...]

    @property
    def leads(self) -> int:
        """Phases of all dimensions but the last one."""
        return math.prod(self.counts[:-1])

    @property
    def most_taps(self) -> int:
        """Of a phase."""
        return max(map(len, self.taps))


def _axis_taps(problem: ConvProblem, axis: int) -> list[list[_Tap]]:
    """Position p = s * m + phase of x is read by tap t of output m + (phase + low - t*d) / s, where that is a whole number."""
    s, d, r, low = problem.stride[axis], problem.dilation[axis], problem.kernel[axis], problem.padding[axis][0]
    found = []
    for phase in range(min(s, problem.spatial[axis])):
        read = [(number, r - 1 - number if problem.flip else number) for number in range(r)]
        found.append([_Tap(number, (phase + low - t * d) // s) for number, t in read if (phase + low - t * d) % s == 0])
    return found


@functools.lru_cache(maxsize=256)
def phases_of(problem: ConvProblem) -> Phases:
    """The phases of an input_grad with padding of zeros."""
    axes = [_axis_taps(problem, axis) for axis in range(problem.ndim)]
    sizes = [-(-size // s) for size, s in zip(problem.spatial, problem.stride, strict=True)]
    read = [[tap.output for phase in each for tap in phase] or [0] for each in axes]
    firsts, lasts = [min(each) for each in read], [max(each) for each in read]
    padding = tuple(
        (-first, size + last - outputs) for first, last, size, outputs in zip(firsts, lasts, sizes, problem.output, strict=True)
    )
    ones = (1,) * problem.ndim
    reach = tuple(last - first + 1 for first, last in zip(firsts, lasts, strict=True))
    window = problem.replace(
        op="forward", c=problem.k, k=problem.c, spatial=problem.output, kernel=reach,
        stride=ones, padding=padding, dilation=ones, flip=False, bias="y" if problem.bias else "",
    )  # fmt: skip
    taps = tuple(
        tuple(
            (
                int(np.ravel_multi_index([tap.number for tap in each], problem.kernel)),
                tuple(tap.output - first for tap, first in zip(each, firsts, strict=True)),
            )
            for each in itertools.product(*phase)
        )
        for phase in itertools.product(*axes)
    )
    return Phases(tuple(map(len, axes)), window, taps)
