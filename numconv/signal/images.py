"""`convolve2d` and `correlate2d`: images, and what lies beyond their borders."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from numconv.errors import ProblemError

from .inputs import common_arrays, conjugated, convolved, covers, mode_padding, scipy_signal

__all__ = ["convolve2d", "correlate2d"]

_BOUNDARIES = {
    "fill": "zeros", "pad": "zeros", "wrap": "circular", "circular": "circular", "symm": "symmetric", "symmetric": "symmetric",
}  # fmt: skip


def convolve2d(in1: Any, in2: Any, mode: str = "full", boundary: str = "fill", fillvalue: Any = 0) -> Any:
    """`scipy.signal.convolve2d`: convolution of two images, with what lies beyond the borders of the first one.

    Parameters
    ----------
    in1, in2 : array_like
        Of two dimensions.
    mode : {"full", "valid", "same"}
        As for `convolve`.
    boundary : {"fill", "wrap", "symm"}
        `fillvalue`; the opposite border; the border mirrored.
    fillvalue : scalar

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
    >>> signal.convolve2d([[1, 2], [3, 4]], [[1, 1]], mode="same", boundary="wrap")
    array([[3, 3],
           [7, 7]])
    """
    image = _image(in1, in2, mode, boundary, fillvalue)
    if image is None:
        return scipy_signal().convolve2d(in1, in2, mode, boundary, fillvalue)
    return _filtered(*image, mode, boundary, flip=True)


def correlate2d(in1: Any, in2: Any, mode: str = "full", boundary: str = "fill", fillvalue: Any = 0) -> Any:
    """`scipy.signal.correlate2d`: cross-correlation of two images; the second one is conjugated.

    Parameters
    ----------
    in1, in2, mode, boundary, fillvalue
        As for `convolve2d`.

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
    >>> signal.correlate2d([[1, 2], [3, 4]], [[1, 0], [0, 1]], mode="valid")
    array([[5]])
    """
    image = _image(in1, in2, mode, boundary, fillvalue)
    if image is None:
        return scipy_signal().correlate2d(in1, in2, mode, boundary, fillvalue)
    x, k, fill = image
    result = _filtered(x, conjugated(k), fill, mode, boundary, flip=False)
    swapped = mode == "valid" and x.shape != np.shape(in1)
    return np.flip(result) if swapped else result


def _image(in1: Any, in2: Any, mode: str, boundary: str, fillvalue: Any) -> tuple[Any, Any, Any] | None:
    """Both images, ordered, in their common dtype, and the value that fills; None if it is SciPy's affair."""
    arrays = common_arrays(in1, in2, mode)
    if arrays is None:
        if mode == "full" and not np.size(in1) and np.size(in2) and _BOUNDARIES.get(boundary, "zeros") != "zeros":
            raise ProblemError(  # SciPy 1.17 divides by zero here, which ends the process
                f"in1 has the shape {np.shape(in1)}: there is nothing that boundary={boundary!r} could repeat; use boundary='fill'"
            )
        return None
    x, k = arrays
    if x.ndim != 2 or boundary not in _BOUNDARIES or x.dtype.kind not in "iufc" or x.dtype == np.float16:
        return None
    try:
        fill = _filling(fillvalue, x.dtype)
    except TypeError:  # an array, which cannot be a key
        fill = None
    if fill is None:
        return None
    if mode == "valid" and not covers(x.shape, k.shape):
        x, k = k, x
    return x, k, fill


@functools.lru_cache(maxsize=64, typed=True)
def _filling(value: Any, dtype: np.dtype[Any]) -> Any:
    """The value that fills, if it is one of this dtype, or becomes one by rounding; else None."""
    fill = np.asarray(value)
    if not np.isscalar(value) or fill.dtype.kind not in "biufc" or (fill.dtype.kind == "c" and dtype.kind != "c"):
        return None
    return None if dtype.kind == "u" and fill < 0 else fill.astype(dtype)


def _filtered(x: Any, k: Any, fill: Any, mode: str, boundary: str, *, flip: bool) -> Any:
    """The convolution or correlation of an image."""
    padding, pad_mode = mode_padding(k.shape, mode), _BOUNDARIES[boundary]
    if not flip:  # the middle of a correlation is that of the reversed kernel
        padding = tuple((high, low) for low, high in padding)
    if pad_mode == "zeros" and fill != 0:
        x, padding = np.pad(x, padding, constant_values=fill), mode_padding(k.shape, "valid")
    return convolved(x[None, None], k[None, None], padding, "auto", pad_mode, flip=flip)[0, 0]
