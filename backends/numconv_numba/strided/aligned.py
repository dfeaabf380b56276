"""The phases of a strided input_grad in places whose windows begin with the first tap of every phase.

Position p of x is phase f of place i where p + origin = i * s + f. Each phase reads some outputs that follow each other, from the
one where its window begins; counted from there it has all taps of the longest phase, or lacks the last one. With one origin all
phases begin at the same output; with origin 0 places are as few as can be, but phases may begin at two outputs that differ.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

from numconv.plugin import ConvProblem

__all__ = ["Aligned", "AlignedPhase", "aligned", "least_taps", "read_part"]


class _Phase(NamedTuple):
    """Along one dimension: which of the windows, the tap that its window begins with, how many taps, each a stride less."""

    window: int
    first: int
    taps: int


class _Axis(NamedTuple):
    """One dimension: the origin, places, the output at which each window of the first place begins, and the phases."""

    origin: int
    places: int
    starts: tuple[int, ...]
    phases: tuple[_Phase, ...]


class AlignedPhase(NamedTuple):
    """A phase of all dimensions.

    Attributes
    ----------
    window : int
        Of `Aligned.windows`.
    first : int
        The number in w of the tap at the beginning of its window, of those of the last two dimensions alone.
    taps : tuple of int
        Along each dimension.
    lead : int
        The phase of the dimensions before the last two: an index of `Aligned.leads`.
    """

    window: int
    first: int
    taps: tuple[int, ...]
    lead: int


class Aligned(NamedTuple):
    """The phases of an input_grad, row-major.

    Attributes
    ----------
    origins : tuple of int
        Per dimension.
    windows : tuple of ConvProblem
        From y to every place of x: forward problems that differ in their padding alone.
    phases : tuple of AlignedPhase
    leads : tuple of tuple of (int, tuple of int)
        Of each phase of the dimensions before the last two, row-major: the number in w of each of its taps, of these dimensions
        alone, and its place in the window.
    """

    origins: tuple[int, ...]
    windows: tuple[ConvProblem, ...]
    phases: tuple[AlignedPhase, ...]
    leads: tuple[tuple[tuple[int, tuple[int, ...]], ...], ...]


def _axis(problem: ConvProblem, axis: int, fewest: bool) -> _Axis:
    """One dimension; `fewest`: whether it has the fewest places, or one window."""
    s, r, low, size = problem.stride[axis], problem.kernel[axis], problem.padding[axis][0], problem.spatial[axis]
    origin = 0 if fewest else (low + s - r) % s
    begins = [-((r - 1 - low + origin - f) // s) for f in range(s)]
    starts = tuple(sorted(set(begins)))
    firsts = [f - origin + low - s * start for f, start in enumerate(begins)]
    phases = tuple(_Phase(starts.index(start), t, t // s + 1) for start, t in zip(begins, firsts, strict=True))
    return _Axis(origin, (size - 1 + origin) // s + 1, starts, phases)


@functools.lru_cache(maxsize=256)
def aligned(problem: ConvProblem, fewest: bool) -> Aligned:
    """The phases of an input_grad of dilation 1, with padding of zeros and no stride beyond the kernel.

    `fewest`: whether the last two dimensions have the fewest places, instead of one window.
    """
    ndim = problem.ndim
    inner = max(0, ndim - 2)
    axes = [_axis(problem, axis, fewest and axis >= inner) for axis in range(ndim)]
    steps = [math.prod(problem.kernel[axis + 1 :]) for axis in range(ndim)]

    def number(axis: int, tap: int) -> int:
        return (problem.kernel[axis] - 1 - tap if problem.flip else tap) * steps[axis]

    counts = [len(axis.starts) for axis in axes]
    leads = [
        tuple(
            (
                sum(number(a, one.first - problem.stride[a] * j) for a, (one, j) in enumerate(zip(each, places, strict=True))),
                places,
            )
            for places in itertools.product(*(range(one.taps) for one in each))
        )
        for each in itertools.product(*(axis.phases for axis in axes[:inner]))
    ]
    phases = []
    for place, each in enumerate(itertools.product(*(axis.phases for axis in axes))):
        window = 0
        for count, one in zip(counts, each, strict=True):
            window = window * count + one.window
        first = sum(number(a, each[a].first) for a in range(inner, ndim))
        lead = place // math.prod(problem.stride[inner:])
        phases.append(AlignedPhase(window, first, tuple(one.taps for one in each), lead))
    windows = tuple(_window(problem, axes, starts) for starts in itertools.product(*(axis.starts for axis in axes)))
    return Aligned(tuple(axis.origin for axis in axes), windows, tuple(phases), tuple(leads))


def _window(problem: ConvProblem, axes: list[_Axis], starts: tuple[int, ...]) -> ConvProblem:
    """The forward problem whose windows begin at these outputs at the first place."""
    kernel = tuple(-(-r // s) for r, s in zip(problem.kernel, problem.stride, strict=True))
    each = zip(axes, starts, kernel, problem.output, strict=True)
    padding = tuple((-start, axis.places - 1 + start + taps - outputs) for axis, start, taps, outputs in each)
    ones = (1,) * problem.ndim
    return problem.replace(
        op="forward", c=problem.k, k=problem.c, spatial=problem.output, kernel=kernel, stride=ones, padding=padding,
        dilation=ones, flip=False, bias="y" if problem.bias else "",
    )  # fmt: skip


def least_taps(problem: ConvProblem, axis: int) -> int:
    """How many outputs are read at least, along a dimension, for any position of x."""
    s, r, low, outputs = problem.stride[axis], problem.kernel[axis], problem.padding[axis][0], problem.output[axis]
    ends = {*range(min(r, problem.spatial[axis])), *range(max(0, problem.spatial[axis] - r), problem.spatial[axis])}
    return min((sum(0 <= (p + low) // s - j < outputs for j in range(len(range((p + low) % s, r, s)))) for p in ends), default=0)


def read_part(problem: ConvProblem) -> ConvProblem:
    """The problem without the positions of x behind the last window."""
    ends = [
        min(size, (outputs - 1) * s + r - low)
        for size, outputs, s, r, (low, _) in zip(
            problem.spatial, problem.output, problem.stride, problem.kernel, problem.padding, strict=True
        )
    ]
    if min(ends) < 1:
        return problem
    padding = tuple(
        (low, high if end == size else 0) for (low, high), end, size in zip(problem.padding, ends, problem.spatial, strict=True)
    )
    return problem.replace(spatial=tuple(ends), padding=padding)
