"""`fftconvolve` and `oaconvolve`: along some axes; along the others, shapes broadcast."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from numconv.functional import conv
from numconv.problem import SHORT

from .inputs import MODES, covers, mode_padding, scipy_signal

__all__ = ["fftconvolve", "oaconvolve"]


def fftconvolve(in1: Any, in2: Any, mode: str = "full", axes: Any = None) -> Any:
    """`scipy.signal.fftconvolve`: convolution of floats along some axes; along the others, shapes broadcast.

    Parameters
    ----------
    in1, in2 : array_like
        Integers and booleans become float64.
    mode : {"full", "valid", "same"}
        As for `convolve`.
    axes : int or sequence of int, optional
        All of them by default.

    Returns
    -------
    array
        By fast Fourier transforms where numconv estimates them to be the fastest.

    Raises
    ------
    ValueError
        As SciPy.

    Examples
    --------
    >>> import numpy as np
    >>> from numconv import signal
    >>> signal.fftconvolve(np.ones((2, 3)), [[1.0, 2.0]], axes=1)
    array([[1., 3., 3., 2.],
           [1., 3., 3., 2.]])
    """
    return _along(in1, in2, mode, axes, "fftconvolve")


def oaconvolve(in1: Any, in2: Any, mode: str = "full", axes: Any = None) -> Any:
    """`scipy.signal.oaconvolve`: as `fftconvolve`, for arrays of very different sizes; here they are the same function.

    Parameters
    ----------
    in1, in2, mode, axes
        As for `fftconvolve`.

    Returns
    -------
    array

    Raises
    ------
    ValueError
        As SciPy.

    Examples
    --------
    >>> from numconv import signal
    >>> signal.oaconvolve([1.0, 2.0, 3.0], [1.0, 1.0], mode="valid")
    array([3., 5.])
    """
    return _along(in1, in2, mode, axes, "oaconvolve")


class _Axes(NamedTuple):
    """Axes of two arrays by what happens along them.

    Attributes
    ----------
    images : list of int
        The kernel has length one: every signal meets the same kernel.
    groups : list of int
        Both have the same length: each signal has a kernel of its own.
    kernels : list of int
        The signal has length one: it meets every kernel.
    spatial : list of int
        Convolved.
    """

    images: list[int]
    groups: list[int]
    kernels: list[int]
    spatial: list[int]


def _along(in1: Any, in2: Any, mode: str, axes: Any, name: str) -> Any:
    x, k = np.asarray(in1), np.asarray(in2)
    chosen = _chosen_axes(x, k, mode, axes)
    if chosen is None:
        return getattr(scipy_signal(), name)(in1, in2, mode, axes)
    dtype = np.result_type(*(_float_of(array.dtype) for array in (x, k)))
    if dtype.name not in SHORT or not chosen:
        return getattr(scipy_signal(), name)(in1, in2, mode, axes)
    lengths = [[array.shape[axis] for axis in chosen] for array in (x, k)]
    if (mode == "valid" and not covers(*lengths)) or (mode == "full" and math.prod(lengths[0]) < math.prod(lengths[1])):
        x, k = k, x
    kept = slice(None)
    if mode == "same":  # where the signal has length one beside many kernels, the result of SciPy has only that of the middle one
        middle = [(n - 1) // 2 if x.shape[axis] == 1 and axis not in chosen else None for axis, n in enumerate(k.shape)]
        k = k[tuple(kept if m is None else slice(m, m + 1) for m in middle)]
    return _broadcast(x.astype(dtype, copy=False), k.astype(dtype, copy=False), mode, chosen)


def _float_of(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which SciPy transforms."""
    if dtype.kind in "biu":
        return np.dtype(float)
    return np.dtype(np.float32) if dtype == np.float16 else dtype


def _chosen_axes(x: Any, k: Any, mode: str, axes: Any) -> list[int] | None:
    """The axes along which both arrays are longer than one, in order; None if SciPy has to say what is wrong."""
    if x.ndim != k.ndim or not x.ndim or not (x.size and k.size) or mode not in MODES:
        return None
    if axes is not None:
        try:
            given = [int(axis) + x.ndim * (axis < 0) for axis in np.atleast_1d(np.asarray(axes)) if axis == int(axis)]
        except (TypeError, ValueError):
            return None
        if (
            len(given) != np.size(axes)
            or len(set(given)) != len(given)
            or not all(0 <= axis < x.ndim for axis in given)
            or not given
        ):
            return None
    sizes = list(enumerate(zip(x.shape, k.shape, strict=True)))
    asked = range(x.ndim) if axes is None else given
    chosen = [axis for axis, (a, b) in sizes if axis in asked and min(a, b) > 1]
    if any(a != b and min(a, b) > 1 for axis, (a, b) in sizes if axis not in chosen):
        return None
    pairs = [pair for axis, pair in sizes if axis in chosen]
    if mode == "valid" and not (all(a >= b for a, b in pairs) or all(b >= a for a, b in pairs)):
        return None
    return chosen


def _broadcast(x: Any, k: Any, mode: str, spatial: list[int]) -> Any:
    """The convolution along some axes: the others are images, groups and kernels."""
    others = [axis for axis in range(x.ndim) if axis not in spatial]
    axes = _Axes(
        [axis for axis in others if k.shape[axis] == 1],
        [axis for axis in others if k.shape[axis] > 1 and x.shape[axis] > 1],
        [axis for axis in others if k.shape[axis] > 1 and x.shape[axis] == 1],
        spatial,
    )
    order = [axis for part in axes for axis in part]
    images, groups, kernels = (
        [array.shape[axis] for axis in part] for array, part in ((x, axes.images), (x, axes.groups), (k, axes.kernels))
    )
    signal = x.transpose(order).reshape(math.prod(images), math.prod(groups), *(x.shape[axis] for axis in spatial))
    filters = k.transpose(order).reshape(-1, 1, *(k.shape[axis] for axis in spatial))
    padding = mode_padding(filters.shape[2:], mode)
    y = conv(signal, filters, padding=padding, groups=math.prod(groups), flip=True)
    result = y.reshape(*images, *groups, *kernels, *y.shape[2:])
    return np.ascontiguousarray(result.transpose(np.argsort(order)))
