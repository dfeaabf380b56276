"""Results compared with sums of their terms in double precision, so that nothing wrong is ever timed.

A convolution of 10 GFLOP would keep the reference busy for minutes. A few elements, drawn at random, are summed here from the
definition instead; the gradient of the bias is summed whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .cases import Case

__all__ = ["check"]

DRAWN = 24
"""Elements of each result."""
TOLERANCE = {"float32": 1e-5, "float64": 1e-13}
"""Of the sum of magnitudes of an element's terms: what the default accuracy level promises; more for long sums, see `_allowed`."""

Places = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def check(case: Case, results: Any) -> None:
    """Raise ValueError unless y, or the gradients of x, w and bias, are right where they are looked at."""
    x, w, grad_y = (array.astype(np.float64) for array in case.arrays())
    rng = np.random.default_rng(1)
    if case.direction == "forward":
        y = _on_host(results)
        _shape("y", y, case.y_shape)
        for n, k, *place in _drawn(rng, case.y_shape):
            channels = _group(k, case.y_shape[1], case.x_shape[1], case.groups)
            _compare(case, "y", y[(n, k, *place)], x[n, channels], w[k], _windows(case, place))
        return
    grad_x, grad_w, grad_bias = map(_on_host, results)
    _shape("grad_x", grad_x, case.x_shape)
    _shape("grad_w", grad_w, case.w_shape)
    for n, c, *place in _drawn(rng, case.x_shape):
        filters = _group(c, case.x_shape[1], case.y_shape[1], case.groups)
        own = w[filters, c % case.w_shape[1]]
        _compare(case, "grad_x", grad_x[(n, c, *place)], grad_y[n, filters], own, _readers(case, place))
    for k, c, *tap in _drawn(rng, case.w_shape):
        channel = k * case.groups // case.y_shape[1] * case.w_shape[1] + c
        _compare(case, "grad_w", grad_w[(k, c, *tap)], x[:, channel], grad_y[:, k], _meetings(case, tap))
    ones = np.ones((1,) * (1 + case.ndim))
    whole = [(np.arange(size), np.zeros(size, int)) for size in case.y_shape[2:]]
    for k in range(case.y_shape[1]):
        _compare(case, "grad_bias", grad_bias[k], grad_y[:, k], ones, whole)


def _on_host(array: Any) -> np.ndarray[Any, Any]:
    """As a NumPy array, from wherever it lives."""
    return np.asarray(array.get() if hasattr(array, "get") else array)


def _shape(name: str, array: np.ndarray[Any, Any], expected: tuple[int, ...]) -> None:
    if array.shape != expected:
        raise ValueError(f"{name} has the shape {array.shape}, and the case {expected}")


def _drawn(rng: np.random.Generator, shape: tuple[int, ...]) -> list[list[int]]:
    return [[int(rng.integers(size)) for size in shape] for _ in range(DRAWN)]


def _group(channel: int, of: int, others: int, groups: int) -> slice:
    """The channels on the other side that one channel meets."""
    group, size = channel * groups // of, others // groups
    return slice(group * size, (group + 1) * size)


def _windows(case: Case, place: Sequence[int]) -> list[Places]:
    """In each dimension the positions of x under the window of an output, and the taps over them."""
    found = []
    for q, size, r, s, (low, _), d in _dimensions(case, place):
        taps = np.arange(r)
        positions = q * s + taps * d - low
        inside = (positions >= 0) & (positions < size)
        found.append((positions[inside], taps[inside]))
    return found


def _readers(case: Case, place: Sequence[int]) -> list[Places]:
    """In each dimension the outputs that read a position of x, and their taps over it."""
    found = []
    for (position, _, r, s, (low, _), d), outputs in zip(_dimensions(case, place), case.y_shape[2:], strict=True):
        taps = np.arange(r)
        q, rest = np.divmod(position + low - taps * d, s)
        reading = (rest == 0) & (q >= 0) & (q < outputs)
        found.append((q[reading], taps[reading]))
    return found


def _meetings(case: Case, tap: Sequence[int]) -> list[Places]:
    """In each dimension the positions of x that a tap meets, and the outputs at which it does."""
    found = []
    for (t, size, _, s, (low, _), d), outputs in zip(_dimensions(case, tap), case.y_shape[2:], strict=True):
        q = np.arange(outputs)
        positions = q * s + t * d - low
        inside = (positions >= 0) & (positions < size)
        found.append((positions[inside], q[inside]))
    return found


def _dimensions(case: Case, place: Sequence[int]) -> Any:
    return zip(place, case.x_shape[2:], case.w_shape[2:], case.stride, case.padding, case.dilation, strict=True)


def _compare(
    case: Case, name: str, got: Any, first: np.ndarray[Any, Any], second: np.ndarray[Any, Any], places: list[Places]
) -> None:
    """Compare an element with the sum of products of two arrays ``[M, ...]`` at the given places of each dimension."""
    a, b = (np.ix_(np.arange(len(array)), *sides) for array, sides in zip((first, second), zip(*places, strict=True), strict=True))
    terms = first[a] * second[b]
    expected, size = float(terms.sum()), float(np.abs(terms).sum())
    allowed = _allowed(case.dtype, terms.size) * size
    if not abs(float(got) - expected) <= allowed:
        raise ValueError(f"{case.name} {case.direction}: {name} is {got}, and its {terms.size} terms sum up to {expected}")


def _allowed(dtype: str, terms: int) -> float:
    """Relative to the sum of magnitudes; rounding errors of a long plain sum grow as a random walk."""
    return TOLERANCE[dtype] + float(np.finfo(dtype).eps) * math.sqrt(terms)
