"""Bands along the borders of a result, where windows reach far into the padding and hold few terms; computed directly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from numconv.plugin import ConvProblem, Implementation
from numconv_numba.dense.blocked import Blocked
from numconv_numba.dense.tile import RegisterTile
from numconv_numba.direct import Direct

__all__ = ["Band", "Bands", "bands_of"]

_IMPLEMENTATIONS = RegisterTile(), Blocked(), Direct()


class Band(NamedTuple):
    """Outputs at one end of one dimension: the forward problem that gives them, on parts of x, w and y."""

    problem: ConvProblem
    x: tuple[slice, ...]
    w: tuple[slice, ...]
    y: tuple[slice, ...]

    @property
    def implementation(self) -> Implementation:
        """The cheapest that computes sums as they are defined."""
        return min((each for each in _IMPLEMENTATIONS if each.supports(self.problem)), key=lambda each: each.cost(self.problem))

    @property
    def seconds(self) -> float:
        """Its estimate."""
        return self.implementation.cost(self.problem)

    @property
    def bytes(self) -> int:
        """Its working memory."""
        return self.implementation.workspace(self.problem)


def _threshold(problem: ConvProblem, least: int) -> int:
    """The smallest number of taps along each dimension, as far as the window has them, that make windows of `least` terms."""
    taps = 1
    while taps < max(problem.kernel) and problem.c // problem.groups * math.prod(min(taps, r) for r in problem.kernel) < least:
        taps += 1
    return taps


def bands_of(problem: ConvProblem, least: int) -> list[Band] | None:
    """Bands that hold every output of a forward problem with fewer than `least` terms; None if that may be any output."""
    if problem.terms < least:
        return None
    if problem.pad_mode != "zeros":
        return []
    threshold, found = _threshold(problem, least), []
    for axis, (window, size) in enumerate(zip(problem.kernel, problem.spatial, strict=True)):
        s, d, low, output = problem.stride[axis], problem.dilation[axis], problem.padding[axis][0], problem.output[axis]
        taps = min(threshold, window)
        first = max(0, -(-(low - d * (window - taps)) // s))
        last = min(output, (size - 1 - d * (taps - 1) + low) // s + 1)
        if size < d * taps or first >= last:
            return None
        found += [_band(problem, axis, begin, end) for begin, end in ((0, first), (last, output)) if begin < end]
    return found


def _band(problem: ConvProblem, axis: int, begin: int, end: int) -> Band:
    """The outputs begin..end along one dimension, with the taps that reach x."""
    s, d, low, window, size = (
        problem.stride[axis], problem.dilation[axis], problem.padding[axis][0], problem.kernel[axis], problem.spatial[axis],
    )  # fmt: skip
    first = min(max(0, -(((end - 1) * s - low) // d)), window - 1)
    last = max(first + 1, min(window, (size - 1 + low - begin * s) // d + 1))
    start, stop = begin * s - low + first * d, (end - 1) * s - low + (last - 1) * d + 1
    inside = slice(min(max(0, start), size - 1), max(1, min(size, stop)))
    before = inside.start - start
    after = (end - begin - 1) * s + d * (last - first - 1) + 1 - (inside.stop - inside.start) - before
    taps = slice(window - last, window - first) if problem.flip else slice(first, last)

    def changed(values: Sequence[Any], value: Any) -> tuple[Any, ...]:
        return (*values[:axis], value, *values[axis + 1 :])

    everything = (slice(None),) * problem.ndim
    changes: dict[str, Any] = {
        "spatial": changed(problem.spatial, inside.stop - inside.start),
        "kernel": changed(problem.kernel, last - first),
        "padding": changed(problem.padding, (before, after)),
    }
    parts = (changed(everything, part) for part in (inside, taps, slice(begin, end)))
    return Band(problem.replace(**changes), *parts)


class Bands:
    """The executors of some bands."""

    def __init__(self, bands: Sequence[Band]):
        self._bands = [(band, band.implementation.build(band.problem)) for band in bands]

    def __call__(self, y: Any, ins: Sequence[Any]) -> None:
        """Compute them, with the inputs of the whole problem."""
        for band, executor in self._bands:
            executor((y[(..., *band.y)],), (ins[0][(..., *band.x)], ins[1][(..., *band.w)], *ins[2:]))
