"""Where the outputs of an operation lie on its input, found by asking the operation itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from numconv.errors import ProblemError

__all__ = ["Lattice", "locate"]

Array = np.ndarray[Any, Any]
_MORE = 120
"""Samples by which a dimension is extended to see how many outputs come with them: a multiple of most strides."""
_LOUD = 1e3
"""Size of the disturbance, relative to the signal: large enough to win every maximum."""


class Lattice(NamedTuple):
    """Output q of an operation lies at ``offset + stride * q`` of its input, in samples, one number a spatial dimension.

    Attributes
    ----------
    stride : tuple of Fraction
        Samples of the input between neighbouring outputs; 1/2 where an operation doubles the resolution.
    offset : tuple of Fraction
        The middle of what output 0 sees.
    reach : tuple of int
        No output sees farther than this from where it lies.
    """

    stride: tuple[Fraction, ...]
    offset: tuple[Fraction, ...]
    reach: tuple[int, ...]


def locate(f: Callable[[Any], Any], x: Any) -> Lattice:
    """Find the lattice of an operation by disturbing its input.

    The signal is continued periodically along one dimension, and a hyperplane in the middle of it is disturbed, for as many
    neighbouring hyperplanes as the stride. The outputs that change tell what each of them sees.

    Parameters
    ----------
    f : callable
        From ``[N, C, *S]`` to ``[N, K, *Q]``, for any S.
    x : array ``[N, C, *S]``

    Returns
    -------
    Lattice
        What outputs see only by less than 1,000 roundings of the dtype does not count: for deep networks, double precision finds
        more of it.

    Raises
    ------
    ProblemError
        If there are no more outputs where there are more inputs, an output sees everything, or x is empty or not finite.

    Examples
    --------
    >>> import numpy as np, numconv as nc
    >>> from numconv.equivariance import locate
    >>> w = np.ones((1, 1, 3))
    >>> locate(lambda x: nc.conv(x, w, stride=2, padding=1), np.ones((1, 1, 8)))
    Lattice(stride=(Fraction(2, 1),), offset=(Fraction(0, 1),), reach=(1,))
    """
    x = np.asarray(x)[:1]
    if x.ndim < 3 or not x.size or not np.isfinite(x).all():
        raise ProblemError(f"x of shape {x.shape} must be [N, C, *S] with at least one element, all of them finite")
    found = [_along(f, x, axis) for axis in range(2, x.ndim)]
    return Lattice(*(tuple(values) for values in zip(*found, strict=True)))


def _along(f: Callable[[Any], Any], x: Array, axis: int) -> tuple[Fraction, Fraction, int]:
    """Stride, offset and reach along one axis of x."""
    size = x.shape[axis]
    longer = np.pad(x, [(0, _MORE if each == axis else 0) for each in range(x.ndim)], mode="wrap")
    before, calm = np.asarray(f(x)), np.asarray(f(longer))
    if calm.ndim != x.ndim or calm.shape[axis] <= before.shape[axis]:
        raise ProblemError(
            f"the function gives {before.shape} for x {x.shape}, and {calm.shape} for {longer.shape}: its outputs do not lie "
            f"along dimension {axis - 2} of x; give the part of the network before the global pooling, and pooled=True"
        )
    more = calm.shape[axis] - before.shape[axis]
    stride = Fraction(round(_MORE / more)) if more <= _MORE else Fraction(1, round(more / _MORE))
    first = (size + _MORE) // 2
    touched = {i: _changed(f, longer, calm, axis, i) for i in range(first, first + math.ceil(stride))}
    seen = {i: (int(outputs[0]), int(outputs[-1])) for i, outputs in touched.items() if len(outputs)}
    if not seen:
        raise ProblemError(f"no output changes with the inputs at position {first} of dimension {axis - 2}: the function is blind")
    if any(low == 0 or high == calm.shape[axis] - 1 for low, high in seen.values()):
        raise ProblemError(
            f"an output sees more than {(size + _MORE) // 2} samples along dimension {axis - 2} of x {x.shape}; the parts of the "
            "error need outputs that see a neighbourhood. Give the part of the network before the global layer, and pooled=True"
        )
    # input i is seen by output q only if start <= i - s q <= end; among s neighbours, one is the first that its last output sees
    start = min(i - stride * high for i, (_, high) in seen.items())
    end = max(i - stride * low for i, (low, _) in seen.items())
    return stride, (start + end) / 2, math.ceil((end - start) / 2)


def _changed(f: Callable[[Any], Any], x: Array, calm: Array, axis: int, position: int) -> Array:
    """The outputs along an axis that change with the inputs at one position."""
    rng = np.random.default_rng(position)
    plane: tuple[Any, ...] = (*(slice(None),) * axis, position)
    shape = x[plane].shape
    if np.issubdtype(x.dtype, np.integer):
        limits = np.iinfo(x.dtype)
        noises = [rng.integers(limits.min // 2, limits.max // 2, shape, dtype=x.dtype) for _ in range(2)]
    else:
        noise = (_LOUD * (1 + float(np.abs(x).max())) * rng.standard_normal(shape)).astype(x.dtype)
        noises = [noise, -noise]  # what one of them leaves below a rectifier's threshold, the other lifts above it
    others = tuple(each for each in range(x.ndim) if each != axis)
    change = np.zeros(calm.shape[axis])
    for noise in noises:
        disturbed = x.copy()
        disturbed[plane] = noise
        change = np.maximum(change, np.abs(np.asarray(f(disturbed)).astype(np.float64) - calm).max(axis=others))
    rounding = 1e3 * np.finfo(calm.dtype).eps if np.issubdtype(calm.dtype, np.floating) else 0
    return np.flatnonzero(change > rounding * change.max())
