"""`convolve` and `correlate`: along all axes; and by which method."""

from __future__ import annotations

import functools
import math
import timeit
from collections.abc import Callable
from typing import Any

import numpy as np

from numconv.context import Context, current
from numconv.planning import explain

from .inputs import common_arrays, conjugated, convolved, mode_padding, ordered, scipy_signal

__all__ = ["choose_conv_method", "convolve", "correlate"]

_METHODS = ("auto", "direct", "fft")
_EXACT = 2**44
"""Sums of integers below this are exact after rounding, when transforms in double precision compute them."""
_FEW_TAPS = 128
"""Shorter kernels of integers are not worth the question whether transforms are faster."""


def convolve(in1: Any, in2: Any, mode: str = "full", method: str = "auto") -> Any:
    """`scipy.signal.convolve`: convolution of two arrays with the same number of dimensions.

    Parameters
    ----------
    in1, in2 : array_like
    mode : {"full", "valid", "same"}
        All of it; what needs no zeros beyond the borders; as much as `in1` has, in the middle.
    method : {"auto", "direct", "fft"}
        "auto": numconv's choice, by estimated cost. "direct": sums as the definition has them. "fft": by fast Fourier transforms,
        where numconv has them for these inputs.

    Returns
    -------
    array
        Of the common dtype of the inputs. Integers are exact modulo 2^n; booleans are combined by "and" and "or".

    Raises
    ------
    ValueError
        As SciPy.

    Examples
    --------
    >>> from numconv import signal
    >>> signal.convolve([1, 2, 3], [0, 1, 0.5], mode="same")
    array([1. , 2.5, 4. ])
    """
    arrays = common_arrays(in1, in2, mode)
    if arrays is None or method not in _METHODS:
        return scipy_signal().convolve(in1, in2, mode, method)
    return _convolved(*ordered(*arrays, mode), mode, method)


def correlate(in1: Any, in2: Any, mode: str = "full", method: str = "auto") -> Any:
    """`scipy.signal.correlate`: cross-correlation of two arrays with the same number of dimensions.

    Parameters
    ----------
    in1, in2 : array_like
        The second one is conjugated.
    mode, method
        As for `convolve`.

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
    >>> signal.correlate([1, 2, 3], [0, 1, 0.5])
    array([0.5, 2. , 3.5, 3. , 0. ])
    """
    arrays = common_arrays(in1, in2, mode)
    if arrays is None or method not in _METHODS:
        return scipy_signal().correlate(in1, in2, mode, method)
    x, k = arrays
    return _convolved(*ordered(x, conjugated(np.flip(k)), mode), mode, method)


def choose_conv_method(in1: Any, in2: Any, mode: str = "full", measure: bool = False) -> Any:
    """`scipy.signal.choose_conv_method`: whether numconv's `convolve` is faster directly or by fast Fourier transforms.

    Parameters
    ----------
    in1, in2, mode
        As for `convolve`.
    measure : bool
        Time both methods instead of estimating.

    Returns
    -------
    method : {"direct", "fft"}
    times : dict of str to float
        Seconds of each method; with `measure` only.

    Raises
    ------
    ValueError
        As SciPy.

    Examples
    --------
    >>> import numpy as np
    >>> from numconv import signal
    >>> signal.choose_conv_method(np.ones(1_000_000), np.ones(100_000))
    'fft'
    """
    arrays = common_arrays(in1, in2, mode)
    if arrays is None:
        return scipy_signal().choose_conv_method(in1, in2, mode, measure)
    if measure:
        times = {method: _seconds(lambda method=method: convolve(in1, in2, mode, method)) for method in ("fft", "direct")}  # type: ignore[misc]
        return min(times, key=lambda method: times[method]), times
    x, k = ordered(*arrays, mode)
    if x.dtype.kind == "b":
        return "direct"
    if x.dtype.kind in "iu":
        return "fft" if _faster_in_floats(x, k, mode) else "direct"
    return "fft" if _estimate(x, k, mode, x.dtype)[1].startswith("fft") else "direct"


def _convolved(x: Any, k: Any, mode: str, method: str) -> Any:
    """The convolution of two arrays of one dtype."""
    if x.dtype.kind == "b":
        return _planes(x.astype(np.int32), k.astype(np.int32), mode, "direct") != 0
    if x.dtype.kind in "iu" and method != "direct":
        if _is_exact(x, k) if method == "fft" else _faster_in_floats(x, k, mode):
            return np.rint(_planes(x.astype(float), k.astype(float), mode, "fft")).astype(x.dtype)
        return _planes(x, k, mode, "auto")
    return _planes(x, k, mode, method)


def _planes(x: Any, k: Any, mode: str, method: str) -> Any:
    """The convolution of two arrays, as one image of one channel."""
    return convolved(x[None, None], k[None, None], mode_padding(k.shape, mode), method)[0, 0]


def _largest(array: Any) -> int:
    return max(int(array.max()), -int(array.min()))


def _is_exact(x: Any, k: Any) -> bool:
    """Whether integers are exact after a convolution in double precision."""
    return _largest(x) * _largest(k) * int(min(x.size, k.size)) < _EXACT


def _faster_in_floats(x: Any, k: Any, mode: str) -> bool:
    """Whether integers are convolved faster by transforms in double precision, and exactly."""
    if min(x.size, k.size) < _FEW_TAPS or not _is_exact(x, k):
        return False
    seconds, algorithm = _estimate(x, k, mode, np.dtype(float))
    return algorithm.startswith("fft") and seconds < _estimate(x, k, mode, x.dtype)[0]


def _estimate(x: Any, k: Any, mode: str, dtype: np.dtype[Any]) -> tuple[float, str]:
    """(estimated seconds, algorithm) of numconv's choice."""
    return _estimate_under(current(), x.shape, k.shape, mode, dtype)


@functools.lru_cache(maxsize=256)
def _estimate_under(
    _settings: Context, x: tuple[int, ...], k: tuple[int, ...], mode: str, dtype: np.dtype[Any]
) -> tuple[float, str]:
    """`_estimate` for shapes, under the settings in force: an argument, so that no answer outlives them."""
    chosen = explain("conv", (1, 1, *x), (1, 1, *k), dtype, padding=mode_padding(k, mode), flip=True).chosen
    return (chosen.cost, chosen.algorithm) if chosen else (math.inf, "")


def _seconds(call: Callable[[], Any]) -> float:
    """Of a call, the best of three runs of 10 ms or one call; the first call, which may compile, does not count."""
    call()
    timer = timeit.Timer(call)
    number = max(1, int(0.01 / max(timer.timeit(1), 1e-6)))
    return min(timer.repeat(3, number)) / number
