"""Pooling over windows, with its gradients: maxima, averages, p-norms, and maxima put back to where they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numconv.arguments import flag, freeze, pool_options, shape
from numconv.arrays import as_array
from numconv.dispatch import run

__all__ = [
    "avg_pool", "avg_pool_backward", "lp_pool", "lp_pool_backward", "max_pool", "max_pool_backward", "max_unpool",
    "max_unpool_backward",
]  # fmt: skip


def max_pool(
    x: Any,
    window: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    layout: str = "channels_first",
    return_indices: bool = False,
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    """The largest element of each window.

    Parameters
    ----------
    x : array ``[N, C, *S]`` or ``[C, *S]``
    window : int or sequence of int
        R; an int means that x has a batch axis; without N give one entry a spatial dimension.
    stride : int or sequence of int, optional
        The window by default.
    padding : int, sequence of int, sequence of (low, high), "valid" or "same"
        Below the window's extent. Padding holds no elements.
    dilation : int or sequence of int
    ceil_mode : bool
        Round the number of windows up; windows that start at or beyond S + low are dropped.
    return_indices : bool
        Return the positions too.
    layout, backend, algorithm, accuracy, dtype, out
        As for `conv`.

    Returns
    -------
    y : array ``[N, C, *Q]`` or ``[C, *Q]``
        The first NaN of a window wins; of equal elements the first in row-major order.
    indices : int64 array of y's shape
        With ``return_indices=True``: flat positions in the unpadded spatial volume of the channel.

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np, numconv as nc
    >>> y, indices = nc.max_pool(np.array([[1.0, 5.0, 2.0, 7.0]]), (2,), return_indices=True)
    >>> y, indices
    (array([[5., 7.]]), array([[1, 3]]))
    """
    options = pool_options(stride, padding, dilation, layout, ceil_mode, indices=flag(return_indices, "return_indices"))
    return run("max_pool", (x,), 0, freeze(window, "window"), options, (backend, algorithm, accuracy, dtype), out)


def max_pool_backward(
    grad_y: Any,
    x: Any,
    window: Any,
    *,
    indices: Any = None,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    layout: str = "channels_first",
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    """Gradient of `max_pool`: grad_y goes to the element that won its window.

    Parameters
    ----------
    grad_y : array ``[N, C, *Q]`` or ``[C, *Q]``
    x : array ``[N, C, *S]`` or ``[C, *S]``
    window, stride, padding, dilation, ceil_mode
        As for `max_pool`.
    indices : int64 array of y's shape, optional
        Those that `max_pool` returned; without them the winners are found again.
    layout, backend, algorithm, accuracy, dtype, out
        As for `conv`.

    Returns
    -------
    array of x's shape

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np, numconv as nc
    >>> nc.max_pool_backward(np.array([[1.0, 2.0]]), np.array([[1.0, 5.0, 2.0, 7.0]]), (2,))
    array([[0., 1., 0., 2.]])
    """
    options = pool_options(stride, padding, dilation, layout, ceil_mode, indices=indices is not None)
    arrays = (grad_y, x if indices is None else indices)
    choice = (backend, algorithm, accuracy, dtype)
    return run(
        "max_pool_backward", arrays, as_array(x, "max_pool_backward", "x").shape, freeze(window, "window"), options, choice, out
    )


def max_unpool(
    y: Any,
    indices: Any,
    x_shape: Sequence[int],
    *,
    ndim: int | None = None,
    layout: str = "channels_first",
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    """Values put back to the positions from which `max_pool` took them, zeros elsewhere.

    Parameters
    ----------
    y : array ``[N, C, *Q]``
    indices : int64 array of y's shape
        Flat positions in the spatial volume of the channel. If one occurs twice, the last in row-major order of y is kept.
    x_shape : sequence of int
        The shape of the result.
    ndim : int, optional
        Number of spatial dimensions; needed for arrays without N, else two less than y has.
    layout, backend, algorithm, accuracy, dtype, out
        As for `conv`.

    Returns
    -------
    array of shape `x_shape`

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np, numconv as nc
    >>> nc.max_unpool(np.array([[[5.0, 7.0]]]), np.array([[[1, 3]]]), (1, 1, 4))
    array([[[0., 5., 0., 7.]]])
    """
    options = pool_options(layout=layout, ndim=ndim)
    choice = (backend, algorithm, accuracy, dtype)
    return run("max_unpool", (y, indices), shape(x_shape, "x_shape"), 0, options, choice, out)


def max_unpool_backward(
    grad: Any,
    indices: Any,
    *,
    ndim: int | None = None,
    layout: str = "channels_first",
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    """Gradient of `max_unpool` for y: the gradient at the positions to which y was written.

    Parameters
    ----------
    grad : array ``[N, C, *S]``
    indices : int64 array ``[N, C, *Q]``
        Those given to `max_unpool`. An element of y that a later one overwrote has no gradient.
    ndim : int, optional
        As for `max_unpool`.
    layout, backend, algorithm, accuracy, dtype, out
        As for `conv`.

    Returns
    -------
    array of the shape of `indices`

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np, numconv as nc
    >>> nc.max_unpool_backward(np.array([[[0.0, 1.0, 2.0, 3.0]]]), np.array([[[1, 3]]]))
    array([[[1., 3.]]])
    """
    options = pool_options(layout=layout, ndim=ndim)
    choice = (backend, algorithm, accuracy, dtype)
    return run("max_unpool_backward", (grad, indices), 0, 1, options, choice, out)


def avg_pool(
    x: Any,
    window: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    layout: str = "channels_first",
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    """The average of each window.

    Parameters
    ----------
    x : array ``[N, C, *S]`` or ``[C, *S]``
        Of a float or complex dtype.
    window : int or sequence of int
        R; an int means that x has a batch axis; without N give one entry a spatial dimension.
    stride : int or sequence of int, optional
        The window by default.
    padding : int, sequence of int, sequence of (low, high), "valid" or "same"
        Below the window's extent. Padding holds no elements.
    dilation : int or sequence of int
    ceil_mode : bool
        Round the number of windows up; windows that start at or beyond S + low are dropped.
    count_include_pad : bool
        Divide by the number of taps in [-low, S + high), else by the number of elements of x.
    layout, backend, algorithm, accuracy, dtype, out
        As for `conv`.

    Returns
    -------
    array ``[N, C, *Q]`` or ``[C, *Q]``

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np, numconv as nc
    >>> nc.avg_pool(np.array([[1.0, 5.0, 2.0, 7.0]]), (2,))
    array([[3. , 4.5]])
    """
    options = pool_options(stride, padding, dilation, layout, ceil_mode, count_include_pad)
    return run("avg_pool", (x,), 0, freeze(window, "window"), options, (backend, algorithm, accuracy, dtype), out)


def avg_pool_backward(
    grad_y: Any,
    x_shape: Sequence[int],
    window: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    layout: str = "channels_first",
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    """Gradient of `avg_pool`: grad_y spread evenly over each window.

    Parameters
    ----------
    grad_y : array ``[N, C, *Q]`` or ``[C, *Q]``
    x_shape : sequence of int
    window, stride, padding, dilation, ceil_mode, count_include_pad
        As for `avg_pool`.
    layout, backend, algorithm, accuracy, dtype, out
        As for `conv`.

    Returns
    -------
    array of shape `x_shape`

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np, numconv as nc
    >>> nc.avg_pool_backward(np.array([[2.0, 4.0]]), (1, 4), (2,))
    array([[1., 1., 2., 2.]])
    """
    options = pool_options(stride, padding, dilation, layout, ceil_mode, count_include_pad)
    choice = (backend, algorithm, accuracy, dtype)
    return run("avg_pool_backward", (grad_y,), shape(x_shape, "x_shape"), freeze(window, "window"), options, choice, out)


def lp_pool(
    x: Any,
    window: Any,
    *,
    p: float = 2,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    layout: str = "channels_first",
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    """The p-norm of each window: ``(sum of |x|^p)^(1/p)``.

    Parameters
    ----------
    x : array ``[N, C, *S]`` or ``[C, *S]``
        Of a real float dtype.
    window : int or sequence of int
        R; an int means that x has a batch axis; without N give one entry a spatial dimension.
    stride : int or sequence of int, optional
        The window by default.
    padding : int, sequence of int, sequence of (low, high), "valid" or "same"
        Below the window's extent. Padding holds no elements.
    dilation : int or sequence of int
    ceil_mode : bool
        Round the number of windows up; windows that start at or beyond S + low are dropped.
    p : float
        The exponent, above 0.
    layout, backend, algorithm, accuracy, dtype, out
        As for `conv`.

    Returns
    -------
    array ``[N, C, *Q]`` or ``[C, *Q]``

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np, numconv as nc
    >>> nc.lp_pool(np.array([[3.0, -4.0, 5.0, 12.0]]), (2,))
    array([[ 5., 13.]])
    """
    options = pool_options(stride, padding, dilation, layout, ceil_mode, p=p)
    return run("lp_pool", (x,), 0, freeze(window, "window"), options, (backend, algorithm, accuracy, dtype), out)


def lp_pool_backward(
    grad_y: Any,
    x: Any,
    window: Any,
    *,
    p: float = 2,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    layout: str = "channels_first",
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    """Gradient of `lp_pool`: ``grad_y sign(x) |x|^(p - 1) y^(1 - p)``, and zero where x or y is.

    Parameters
    ----------
    grad_y : array ``[N, C, *Q]`` or ``[C, *Q]``
    x : array ``[N, C, *S]`` or ``[C, *S]``
    window, p, stride, padding, dilation, ceil_mode
        As for `lp_pool`.
    layout, backend, algorithm, accuracy, dtype, out
        As for `conv`.

    Returns
    -------
    array of x's shape

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np, numconv as nc
    >>> nc.lp_pool_backward(np.array([[1.0, 1.0]]), np.array([[3.0, -4.0, 5.0, 12.0]]), (2,)).round(3)
    array([[ 0.6  , -0.8  ,  0.385,  0.923]])
    """
    options = pool_options(stride, padding, dilation, layout, ceil_mode, p=p)
    return run("lp_pool_backward", (grad_y, x), 1, freeze(window, "window"), options, (backend, algorithm, accuracy, dtype), out)
