"""Borders, and windows as columns: pad, unfold and fold, of which each has its adjoint here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numconv.arguments import freeze, pool_options, shape
from numconv.dispatch import run

__all__ = ["fold", "pad", "pad_backward", "unfold"]


def pad(
    x: Any,
    width: Any,
    mode: str = "zeros",
    *,
    layout: str = "channels_first",
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    """x with its borders extended.

    Parameters
    ----------
    x : array ``[N, C, *S]`` or ``[C, *S]``
    width : int, sequence of int, or sequence of (low, high)
        An int means that x has a batch axis; without N give one entry a spatial dimension.
    mode : {"zeros", "reflect", "symmetric", "replicate", "circular"}
        As np.pad's constant, reflect, symmetric, edge and wrap, at any width.
    layout, backend, algorithm, accuracy, dtype, out
        As for `conv`.

    Returns
    -------
    array ``[N, C, *S + low + high]`` or without N

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np, numconv as nc
    >>> nc.pad(np.array([[1, 2, 3]]), ((2, 1),), "reflect")
    array([[3, 2, 1, 2, 3, 2]])
    """
    options = pool_options(layout=layout, pad_mode=mode)
    return run("pad", (x,), 0, freeze(width, "width"), options, (backend, algorithm, accuracy, dtype), out)


def pad_backward(
    grad: Any,
    width: Any,
    mode: str = "zeros",
    *,
    layout: str = "channels_first",
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    """Gradient of `pad`: its adjoint, which folds the borders back and adds them up.

    Parameters
    ----------
    grad : array ``[N, C, *S + low + high]`` or without N
    width, mode
        As for `pad`.
    layout, backend, algorithm, accuracy, dtype, out
        As for `conv`.

    Returns
    -------
    array ``[N, C, *S]`` or ``[C, *S]``

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np, numconv as nc
    >>> nc.pad_backward(np.array([[1, 10, 100, 1000, 10000, 100000]]), ((2, 1),), "reflect")
    array([[   100, 101010,  10001]])
    """
    options = pool_options(layout=layout, pad_mode=mode)
    return run("pad_backward", (grad,), 0, freeze(width, "width"), options, (backend, algorithm, accuracy, dtype), out)


def unfold(
    x: Any,
    window: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    """The windows of x as the columns of a matrix (im2col). Its gradient is `fold`.

    Parameters
    ----------
    x : array ``[N, C, *S]`` or ``[C, *S]``
    window : int or sequence of int
        R; an int means that x has a batch axis; without N give one entry a spatial dimension.
    stride, padding, dilation
        As for `conv`; padding holds zeros.
    backend, algorithm, accuracy, dtype, out
        As for `conv`.

    Returns
    -------
    array ``[N, C*prod(R), prod(Q)]`` or without N
        Row c*prod(R) + the row-major tap.

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np, numconv as nc
    >>> nc.unfold(np.array([[1, 2, 3, 4]]), (2,))
    array([[1, 2, 3],
           [2, 3, 4]])
    """
    options = pool_options(stride, padding, dilation)
    return run("unfold", (x,), 0, freeze(window, "window"), options, (backend, algorithm, accuracy, dtype), out)


def fold(
    columns: Any,
    x_shape: Sequence[int],
    window: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    """The adjoint of `unfold`: columns added up at the places they were read from (col2im). Its gradient is `unfold`.

    Parameters
    ----------
    columns : array ``[N, C*prod(R), prod(Q)]`` or without N
    x_shape : sequence of int
        The shape of the result, ``[N, C, *S]`` or ``[C, *S]``.
    window, stride, padding, dilation, backend, algorithm, accuracy, dtype, out
        As for `unfold`.

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
    >>> nc.fold(np.array([[1, 2, 3], [2, 3, 4]]), (1, 4), (2,))
    array([[1, 4, 6, 4]])
    """
    options = pool_options(stride, padding, dilation)
    choice = (backend, algorithm, accuracy, dtype)
    return run("fold", (columns,), shape(x_shape, "x_shape"), freeze(window, "window"), options, choice, out)
