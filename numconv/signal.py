"""SciPy's functions for convolution, computed by numconv: the names, arguments, results and errors of `scipy.signal`.

Nothing is computed here: arguments are mapped to `numconv.conv`. What numconv has no kernels for is handed to SciPy: inputs without
dimensions or elements, dtypes such as object and longdouble, and arguments that SciPy refuses, with its errors. See
``docs/signal.md`` for the few differences.
"""

from __future__ import annotations

import functools
import math
import timeit
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .context import Context, current
from .errors import NumconvError, ProblemError
from .functional import conv
from .planning import explain
from .problem import SHORT

__all__ = ["choose_conv_method", "convolve", "convolve2d", "correlate", "correlate2d", "fftconvolve", "oaconvolve"]

_MODES = ("full", "valid", "same")
_METHODS = ("auto", "direct", "fft")
_BOUNDARIES = {
    "fill": "zeros", "pad": "zeros", "wrap": "circular", "circular": "circular", "symm": "symmetric", "symmetric": "symmetric",
}  # fmt: skip
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
    arrays = _arrays(in1, in2, mode)
    if arrays is None or method not in _METHODS:
        return _scipy().convolve(in1, in2, mode, method)
    return _convolved(*_ordered(*arrays, mode), mode, method)


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
    arrays = _arrays(in1, in2, mode)
    if arrays is None or method not in _METHODS:
        return _scipy().correlate(in1, in2, mode, method)
    x, k = arrays
    return _convolved(*_ordered(x, _conjugated(np.flip(k)), mode), mode, method)


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
        return _scipy().convolve2d(in1, in2, mode, boundary, fillvalue)
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
        return _scipy().correlate2d(in1, in2, mode, boundary, fillvalue)
    x, k, fill = image
    result = _filtered(x, _conjugated(k), fill, mode, boundary, flip=False)
    swapped = mode == "valid" and x.shape != np.shape(in1)
    return np.flip(result) if swapped else result


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
    arrays = _arrays(in1, in2, mode)
    if arrays is None:
        return _scipy().choose_conv_method(in1, in2, mode, measure)
    if measure:
        times = {method: _seconds(lambda method=method: convolve(in1, in2, mode, method)) for method in ("fft", "direct")}  # type: ignore[misc]
        return min(times, key=lambda method: times[method]), times
    x, k = _ordered(*arrays, mode)
    if x.dtype.kind == "b":
        return "direct"
    if x.dtype.kind in "iu":
        return "fft" if _faster_in_floats(x, k, mode) else "direct"
    return "fft" if _estimate(x, k, mode, x.dtype)[1].startswith("fft") else "direct"


# --- convolution along all axes ------------------------------------------------------------------------------------------------


def _scipy() -> Any:
    """scipy.signal, which takes a second to import."""
    import scipy.signal

    return scipy.signal


def _arrays(in1: Any, in2: Any, mode: str) -> tuple[Any, Any] | None:
    """Both inputs in their common dtype; None if that or something else is SciPy's affair."""
    x, k = np.asarray(in1), np.asarray(in2)
    if x.ndim != k.ndim or not x.ndim or not (x.size and k.size) or mode not in _MODES:
        return None
    dtype = np.result_type(x, k)
    if dtype.name not in SHORT and dtype.kind != "b":
        return None
    if mode == "valid" and not (_covers(x.shape, k.shape) or _covers(k.shape, x.shape)):
        return None
    return x.astype(dtype, copy=False), k.astype(dtype, copy=False)


def _covers(shape: Sequence[int], other: Sequence[int]) -> bool:
    return all(a >= b for a, b in zip(shape, other, strict=True))


def _conjugated(array: Any) -> Any:
    return array.conj() if array.dtype.kind == "c" else array


def _ordered(x: Any, k: Any, mode: str) -> tuple[Any, Any]:
    """The signal and the kernel: convolution is commutative, and the result of "same" has the shape of the first."""
    if (mode == "full" and k.size > x.size) or (mode == "valid" and not _covers(x.shape, k.shape)):
        return k, x
    return x, k


def _padding(kernel: Sequence[int], mode: str) -> tuple[tuple[int, int], ...]:
    """(low, high) of each dimension."""
    if mode == "valid":
        return ((0, 0),) * len(kernel)
    return tuple((r - 1, r - 1) if mode == "full" else (r // 2, (r - 1) // 2) for r in kernel)


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
    options: dict[str, Any] = {"padding": _padding(k.shape, mode), "flip": True}
    if method == "direct":
        return conv(x[None, None], k[None, None], accuracy="strict", **options)[0, 0]
    if method == "fft":
        try:
            return conv(x[None, None], k[None, None], algorithm="fft", **options)[0, 0]
        except NumconvError:  # a backend without transforms, or too few terms for their accuracy
            pass
    return conv(x[None, None], k[None, None], **options)[0, 0]


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
    chosen = explain("conv", (1, 1, *x), (1, 1, *k), dtype, padding=_padding(k, mode), flip=True).chosen
    return (chosen.cost, chosen.algorithm) if chosen else (math.inf, "")


def _seconds(call: Callable[[], Any]) -> float:
    """Of a call, the best of three; the first one, which may compile, does not count."""
    call()
    timer = timeit.Timer(call)
    number, _ = timer.autorange() if timer.timeit(1) < 0.02 else (1, 0.0)
    return min(timer.repeat(3, number)) / number


# --- convolution along some axes -----------------------------------------------------------------------------------------------


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
        return getattr(_scipy(), name)(in1, in2, mode, axes)
    dtype = np.result_type(*(_float_of(array.dtype) for array in (x, k)))
    if dtype.name not in SHORT or not chosen:
        return getattr(_scipy(), name)(in1, in2, mode, axes)
    lengths = [[array.shape[axis] for axis in chosen] for array in (x, k)]
    if (mode == "valid" and not _covers(*lengths)) or (mode == "full" and math.prod(lengths[0]) < math.prod(lengths[1])):
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
    if x.ndim != k.ndim or not x.ndim or not (x.size and k.size) or mode not in _MODES:
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
    padding = _padding(filters.shape[2:], mode)
    y = conv(signal, filters, padding=padding, groups=math.prod(groups), flip=True)
    result = y.reshape(*images, *groups, *kernels, *y.shape[2:])
    return np.ascontiguousarray(result.transpose(np.argsort(order)))


# --- images --------------------------------------------------------------------------------------------------------------------


def _image(in1: Any, in2: Any, mode: str, boundary: str, fillvalue: Any) -> tuple[Any, Any, Any] | None:
    """Both images, ordered, in their common dtype, and the value that fills; None if it is SciPy's affair."""
    if mode == "full" and not np.size(in1) and np.size(in2) and _BOUNDARIES.get(boundary, "zeros") != "zeros":
        raise ProblemError(  # SciPy 1.17 divides by zero here, which ends the process
            f"in1 has the shape {np.shape(in1)}: there is nothing that boundary={boundary!r} could repeat; use boundary='fill'"
        )
    arrays = _arrays(in1, in2, mode)
    if arrays is None or arrays[0].ndim != 2 or boundary not in _BOUNDARIES or arrays[0].dtype.kind not in "iufc":
        return None
    x, k = arrays
    fill = np.asarray(fillvalue)
    if x.dtype == np.float16 or not np.isscalar(fillvalue) or not _fits(fill, x.dtype):
        return None
    if mode == "valid" and not _covers(x.shape, k.shape):
        x, k = k, x
    return x, k, fill.astype(x.dtype)


def _fits(fill: Any, dtype: np.dtype[Any]) -> bool:
    """Whether the value that fills is one of this dtype, or becomes one by rounding."""
    if fill.dtype.kind not in "biufc" or (fill.dtype.kind == "c" and dtype.kind != "c"):
        return False
    return not (dtype.kind == "u" and fill < 0)


def _filtered(x: Any, k: Any, fill: Any, mode: str, boundary: str, *, flip: bool) -> Any:
    """The convolution or correlation of an image."""
    padding, pad_mode = _padding(k.shape, mode), _BOUNDARIES[boundary]
    if not flip:  # the middle of a correlation is that of the reversed kernel
        padding = tuple((high, low) for low, high in padding)
    if pad_mode == "zeros" and fill != 0:
        x, padding = np.pad(x, padding, constant_values=fill), _padding(k.shape, "valid")
    return conv(x[None, None], k[None, None], padding=padding, pad_mode=pad_mode, flip=flip)[0, 0]
