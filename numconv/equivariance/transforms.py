"""Transformations of the plane, of a line or of space: affine maps about the centre of a signal, as plain data.

A signal ``[N, C, *S]`` stands for the periodic function on all of space of which it is one period. So nothing lies outside: a
transformation moves the whole plane, and what it brings into the frame is the plane's continuation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from numconv.errors import ProblemError

from .sampling import by_splines, samples

__all__ = ["Transform", "parse_transform", "reflection", "rotation", "scaling", "translation"]

Array = np.ndarray[Any, Any]
_QUARTER = {0: (1.0, 0.0), 90: (0.0, 1.0), 180: (-1.0, 0.0), 270: (0.0, -1.0)}
"""Cosine and sine without rounding."""
_FORM = re.compile(r"(shift|rotate|scale)[ :](\S+)|mirror")


@dataclass(frozen=True)
class Transform:
    """An invertible affine map: what is at p goes to ``matrix @ (p - c) + c + shift``, with c the centre of the signal.

    Attributes
    ----------
    name : str
        As tables show it.
    matrix : tuple of tuple of float, ``[d, d]``
        For d spatial dimensions.
    shift : tuple of float, ``[d]``
        In samples of the input.
    """

    name: str
    matrix: tuple[tuple[float, ...], ...]
    shift: tuple[float, ...]

    @property
    def ndim(self) -> int:
        """The number of spatial dimensions, d."""
        return len(self.shift)

    def __call__(self, x: Any, order: int = 3) -> Any:
        """T x: an array transformed, each image in the frame of the old one.

        Parameters
        ----------
        x : array ``[N, C, *S]``
            One period of the plane.
        order : int
            Of the splines that interpolate where no sample arrives at a sample, 0 to 5.

        Returns
        -------
        array of the shape and dtype of x

        Examples
        --------
        >>> import numpy as np
        >>> from numconv.equivariance import reflection, translation
        >>> sound = np.array([[[1, 2, 3, 4]]])
        >>> translation(1)(sound), reflection(ndim=1)(sound)
        (array([[[4, 1, 2, 3]]]), array([[[4, 3, 2, 1]]]))
        """
        x = np.asarray(x)
        return by_splines(x, self.sources(samples(x.shape[2:]), x.shape[2:]), order)

    def sources(self, points: Array, size: Sequence[int]) -> Array:
        """Where what arrives at some points comes from.

        Parameters
        ----------
        points : array ``[d, ...]``
            In samples of the input.
        size : sequence of int
            S; the centre is at (S - 1) / 2.

        Returns
        -------
        array ``[d, ...]``
            Without rounding for whole shifts, quarter turns and reflections.

        Examples
        --------
        >>> import numpy as np
        >>> from numconv.equivariance import translation
        >>> translation(2).sources(np.arange(4.0)[None], (4,))
        array([[-2., -1.,  0.,  1.]])
        """
        column = (-1, *(1,) * (points.ndim - 1))
        centre = ((np.asarray(size, float) - 1) / 2).reshape(column)
        moved = points - centre - np.asarray(self.shift).reshape(column)
        return np.asarray(np.tensordot(np.linalg.inv(np.asarray(self.matrix)), moved, axes=1) + centre)


def translation(*amount: float) -> Transform:
    """Shift by some samples in each dimension, whole or not; what leaves at one end comes in at the other.

    Parameters
    ----------
    *amount : float
        One for each spatial dimension.

    Returns
    -------
    Transform

    Raises
    ------
    ProblemError
        If there is no amount, or one is not finite.

    Examples
    --------
    >>> from numconv.equivariance import translation
    >>> translation(0, 0.5).name
    'shift (0, 0.5)'
    """
    if not amount or not all(math.isfinite(each) for each in amount):
        raise ProblemError(f"translation{amount}: give one finite number for each spatial dimension")
    text = f"{amount[0]:g}" if len(set(amount)) == 1 else f"({', '.join(f'{each:g}' for each in amount)})"
    return Transform(f"shift {text}", _identity(len(amount)), tuple(float(each) for each in amount))


def rotation(degrees: float, *, ndim: int = 2, axes: tuple[int, int] = (-2, -1)) -> Transform:
    """Turn about the centre; quarter turns are exact.

    Parameters
    ----------
    degrees : float
        From the first axis of `axes` towards the second one, as `numpy.rot90` turns.
    ndim : int
        Number of spatial dimensions.
    axes : (int, int)
        The plane in which to turn, as two of the spatial dimensions.

    Returns
    -------
    Transform

    Raises
    ------
    ProblemError
        If there is no such plane, or the angle is not finite.

    Examples
    --------
    >>> from numconv.equivariance import rotation
    >>> rotation(90).matrix
    ((0.0, -1.0), (1.0, 0.0))
    """
    if not math.isfinite(degrees):
        raise ProblemError(f"rotation({degrees}): give a finite angle")
    if not all(-ndim <= axis < ndim for axis in axes) or axes[0] % ndim == axes[1] % ndim:
        raise ProblemError(f"rotation: axes={axes} must name two different ones of {ndim} spatial dimensions")
    radians = math.radians(degrees)
    cos, sin = _QUARTER.get(degrees % 360, (math.cos(radians), math.sin(radians)))  # type: ignore[call-overload]
    matrix = np.eye(ndim)
    first, second = axes
    matrix[first, first], matrix[first, second] = cos, -sin
    matrix[second, first], matrix[second, second] = sin, cos
    plane = "" if ndim == 2 else f" in plane {axes[0] % ndim}{axes[1] % ndim}"
    return Transform(f"rotate {degrees:g}{plane}", _frozen(matrix), (0.0,) * ndim)


def reflection(axis: int = -1, *, ndim: int = 2) -> Transform:
    """Mirror along one dimension, about the centre; for sound, time reversed.

    Parameters
    ----------
    axis : int
        The spatial dimension that changes direction.
    ndim : int
        Number of spatial dimensions.

    Returns
    -------
    Transform

    Raises
    ------
    ProblemError
        If there is no such dimension.

    Examples
    --------
    >>> from numconv.equivariance import reflection
    >>> reflection(ndim=1).matrix
    ((-1.0,),)
    """
    if not -ndim <= axis < ndim:
        raise ProblemError(f"reflection: axis={axis} is none of {ndim} spatial dimensions")
    matrix = np.eye(ndim)
    matrix[axis, axis] = -1
    name = "mirror" if axis % ndim == ndim - 1 else f"mirror axis {axis % ndim}"
    return Transform(name, _frozen(matrix), (0.0,) * ndim)


def scaling(factor: float, *, ndim: int = 2) -> Transform:
    """Enlarge about the centre (factor above 1), or make smaller; for sound, slower or faster.

    Parameters
    ----------
    factor : float
    ndim : int
        Number of spatial dimensions.

    Returns
    -------
    Transform

    Raises
    ------
    ProblemError
        If the factor is not positive and finite.

    Examples
    --------
    >>> from numconv.equivariance import scaling
    >>> scaling(1.25).name
    'scale 1.25'
    """
    if not (math.isfinite(factor) and factor > 0):
        raise ProblemError(f"scaling({factor}): the factor must be positive and finite")
    return Transform(f"scale {factor:g}", _frozen(factor * np.eye(ndim)), (0.0,) * ndim)


def parse_transform(text: str, ndim: int = 2) -> Transform:
    """The transformation that a text names.

    Parameters
    ----------
    text : str
        "shift 3" (in every dimension), "rotate 30" (degrees), "scale 1.25" or "mirror"; a colon may stand for the space.
    ndim : int
        Number of spatial dimensions.

    Returns
    -------
    Transform

    Raises
    ------
    ProblemError
        If the text is none of these, or there is nothing to rotate in one dimension.

    Examples
    --------
    >>> from numconv.equivariance import parse_transform
    >>> parse_transform("shift:0.5").shift
    (0.5, 0.5)
    """
    found = _FORM.fullmatch(text.strip())
    try:
        amount = float(found[2]) if found and found[2] else 0.0
    except ValueError:
        found = None
    if found is None:
        raise ProblemError(f"{text!r} is no transformation; give shift AMOUNT, rotate DEGREES, scale FACTOR or mirror")
    if found[1] == "shift":
        return translation(*(amount,) * ndim)
    if found[1] == "rotate":
        return rotation(amount, ndim=ndim)
    return scaling(amount, ndim=ndim) if found[1] == "scale" else reflection(ndim=ndim)


def _identity(ndim: int) -> tuple[tuple[float, ...], ...]:
    return _frozen(np.eye(ndim))


def _frozen(matrix: Array) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in matrix)
