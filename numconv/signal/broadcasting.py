"""`fftconvolve` and `oaconvolve`: along some axes; along the others, shapes broadcast."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .inputs import MODES, convolved, covers, is_known, mode_padding, scipy_signal

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


class _Arrangement(NamedTuple):
    """How two shapes become a convolution.

    Attributes
    ----------
    swapped : bool
        Whether the first array is the kernel.
    kept : tuple of slice
        Of the kernel.
    order : tuple of int
        Axes of both arrays: images, along which the kernel has length one, so that every signal meets the same one; groups, where
        both have the same length, so that each signal has a kernel of its own; kernels, where the signal has length one and meets
        every kernel; and those that are convolved.
    signal, filters : tuple of int
        The shapes of x and w.
    padding : tuple of (low, high)
    groups : int
    outer : tuple of int
        The result's lengths along images, groups and kernels.
    back : tuple of int
        The result's axes, as the caller has them.
    """

    swapped: bool
    kept: tuple[slice, ...]
    order: tuple[int, ...]
    signal: tuple[int, ...]
    filters: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    groups: int
    outer: tuple[int, ...]
    back: tuple[int, ...]


def _along(in1: Any, in2: Any, mode: str, axes: Any, name: str) -> Any:
    x, k = np.asarray(in1), np.asarray(in2)
    dtype, found = _float_of(x.dtype, k.dtype), None
    if mode in MODES and is_known(dtype):
        found = _arranged(x.shape, k.shape, mode, axes if axes is None or axes.__class__ is int else _as_key(axes))
    if found is None:
        return getattr(scipy_signal(), name)(in1, in2, mode, axes)
    if found.swapped:
        x, k = k, x
    signal = x.astype(dtype, copy=False).transpose(found.order).reshape(found.signal)
    filters = k.astype(dtype, copy=False)[found.kept].transpose(found.order).reshape(found.filters)
    y = convolved(signal, filters, found.padding, groups=found.groups)
    return np.ascontiguousarray(y.reshape(*found.outer, *y.shape[2:]).transpose(found.back))


@functools.lru_cache(maxsize=64)
def _float_of(*dtypes: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which SciPy transforms."""
    wide = {"b": np.float64, "i": np.float64, "u": np.float64}
    return np.result_type(*(np.float32 if each == np.float16 else wide.get(each.kind, each) for each in dtypes))


def _as_key(axes: Any) -> Any:
    """Axes as a hashable value; what cannot be one is no integer."""
    try:
        return tuple(np.atleast_1d(np.asarray(axes)).tolist())
    except (TypeError, ValueError):
        return ()


def _chosen_axes(x: Sequence[int], k: Sequence[int], mode: str, axes: Any) -> list[int] | None:
    """The axes along which both shapes are longer than one, in order; None if SciPy has to say what is wrong."""
    rank = len(x)
    if rank != len(k) or not rank or 0 in (*x, *k):
        return None
    asked: Sequence[int] = range(rank)
    if axes is not None:
        given = axes if isinstance(axes, tuple) else (axes,)
        try:
            asked = [int(axis) + rank * (axis < 0) for axis in given if axis == int(axis)]
        except (TypeError, ValueError):
            return None
        inside = all(0 <= axis < rank for axis in asked)
        if not given or len(asked) != len(given) or len(set(asked)) != len(asked) or not inside:
            return None
    sizes = list(enumerate(zip(x, k, strict=True)))
    chosen = [axis for axis, (a, b) in sizes if axis in asked and min(a, b) > 1]
    if any(a != b and min(a, b) > 1 for axis, (a, b) in sizes if axis not in chosen):
        return None
    pairs = [pair for axis, pair in sizes if axis in chosen]
    if mode == "valid" and not (all(a >= b for a, b in pairs) or all(b >= a for a, b in pairs)):
        return None
    return chosen


@functools.lru_cache(maxsize=256)
def _arranged(x: tuple[int, ...], k: tuple[int, ...], mode: str, axes: Any) -> _Arrangement | None:
    """How two arrays of these shapes are convolved; None if they are SciPy's affair."""
    spatial = _chosen_axes(x, k, mode, axes)
    if not spatial:
        return None
    lengths = [[shape[axis] for axis in spatial] for shape in (x, k)]
    swapped = (mode == "valid" and not covers(*lengths)) or (mode == "full" and math.prod(lengths[0]) < math.prod(lengths[1]))
    if swapped:
        x, k = k, x
    kept = [slice(None)] * len(k)
    if mode == "same":  # where the signal has length one beside many kernels, the result of SciPy has only that of the middle one
        for axis, n in enumerate(k):
            if x[axis] == 1 and axis not in spatial:
                kept[axis] = slice((n - 1) // 2, (n - 1) // 2 + 1)
        k = tuple(len(range(n)[part]) for n, part in zip(k, kept, strict=True))
    others = [axis for axis in range(len(x)) if axis not in spatial]
    images = [axis for axis in others if k[axis] == 1]
    groups = [axis for axis in others if k[axis] > 1 and x[axis] > 1]
    kernels = [axis for axis in others if k[axis] > 1 and x[axis] == 1]
    order = (*images, *groups, *kernels, *spatial)
    count = math.prod(x[axis] for axis in groups)
    taps = tuple(k[axis] for axis in spatial)
    return _Arrangement(
        swapped,
        tuple(kept),
        order,
        (math.prod(x[axis] for axis in images), count, *(x[axis] for axis in spatial)),
        (count * math.prod(k[axis] for axis in kernels), 1, *taps),
        mode_padding(taps, mode),
        count,
        (*(x[axis] for axis in (*images, *groups)), *(k[axis] for axis in kernels)),
        tuple(sorted(range(len(order)), key=order.__getitem__)),
    )
