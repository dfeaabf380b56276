"""The functions of numconv on arrays of JAX: names and defaults."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from numconv.arguments import flag, freeze, geometry_options, pool_options, shape
from numconv.context import current
from numconv.derivatives import Trilinear, Unpooling, Windows
from numconv.dispatch import Choice
from numconv.errors import ProblemError

from . import primitives

__all__ = ["avg_pool", "conv", "conv_transpose", "fold", "lp_pool", "max_pool", "max_unpool", "pad", "unfold"]

_ACTIVATIONS = {"relu": jax.nn.relu, "silu": jax.nn.silu, "gelu": functools.partial(jax.nn.gelu, approximate=False)}


def conv(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    pad_mode: str = "zeros",
    flip: bool = False,
    layout: str = "channels_first",
    activation: str | None = None,
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
) -> Any:
    """`numconv.conv` in JAX.

    Parameters
    ----------
    x : array ``[N, C, *S]`` or ``[C, *S]``
    w : array ``[K, C/G, *R]``
    bias : array ``[K]``, optional
    stride, padding, dilation, groups, pad_mode, flip, layout, backend, accuracy
        As for `numconv.conv`, for the derivatives too.
    activation : {None, "relu", "silu", "gelu"}
        Computed by JAX.
    algorithm : str, optional
        As for `numconv.conv`; derivatives choose theirs by themselves.

    Returns
    -------
    jax.Array ``[N, K, *Q]`` or ``[K, *Q]``
        With derivatives of any order, backward and forward.

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `numconv.conv`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numconv.jax
    >>> def total(w):
    ...     return numconv.jax.conv(jnp.arange(5.0)[None], w, padding=1, pad_mode="reflect").sum()
    >>> jax.jit(jax.value_and_grad(total))(jnp.ones((1, 1, 3)))
    (Array(30., dtype=float32), Array([[[ 7., 10., 13.]]], dtype=float32))
    """
    options = geometry_options(stride, padding, dilation, groups, pad_mode, flip, layout)
    return _convolution("conv", (x, w, bias), options, Choice(backend, algorithm, accuracy), activation)


def conv_transpose(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    pad_mode: str = "zeros",
    flip: bool = False,
    layout: str = "channels_first",
    output_padding: Any = 0,
    activation: str | None = None,
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
) -> Any:
    """`numconv.conv_transpose` in JAX.

    Parameters
    ----------
    x : array ``[N, C, *Q]`` or ``[C, *Q]``
    w : array ``[C, K/G, *R]``
    bias : array ``[K]``, optional
    stride, padding, dilation, groups, pad_mode, flip, layout, output_padding
        As for `numconv.conv_transpose`.
    activation, backend, algorithm, accuracy
        As for `conv`.

    Returns
    -------
    jax.Array ``[N, K, *S]`` or ``[K, *S]``

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `numconv.conv_transpose`.

    Examples
    --------
    >>> import jax.numpy as jnp, numconv.jax
    >>> numconv.jax.conv_transpose(jnp.array([[1.0, 2.0]]), jnp.array([[[1.0, 10.0, 100.0]]]), stride=2)
    Array([[  1.,  10., 102.,  20., 200.]], dtype=float32)
    """
    options = geometry_options(stride, padding, dilation, groups, pad_mode, flip, layout, None, output_padding)
    return _convolution("conv_transpose", (x, w, bias), options, Choice(backend, algorithm, accuracy), activation)


def _convolution(family: str, given: tuple[Any, ...], options: tuple[Any, ...], choice: Choice, activation: str | None) -> Any:
    if activation is not None and activation not in _ACTIVATIONS:
        raise ProblemError(f"{family}: activation={activation!r} is not one of {', '.join(_ACTIVATIONS)}")
    x, w = _array(family, "x", given[0]), _array(family, "w", given[1])
    bias = None if given[2] is None else jnp.asarray(given[2])
    for name, array in (("w", w), ("bias", bias)):
        if array is not None and array.dtype != x.dtype:
            raise ProblemError(
                f"numconv.jax.{family}: x has dtype {x.dtype} and {name} has {array.dtype}: all arrays of a call have one dtype; "
                f"convert one of them, for example {name}.astype(x.dtype)"
            )
    call = Trilinear(family, "y", x.shape, w.shape, options, choice, current())
    channels = call.channels(x.dtype.name)
    if bias is not None and bias.shape != (channels,):
        raise ProblemError(f"numconv.jax.{family}: bias has shape {bias.shape}, and must have ({channels},)")
    if family == "conv_transpose":
        w = w.conj()  # as an adjoint has it
    y = primitives.bilinear.bind(x, w, call=call)
    if bias is not None:
        y = y + bias.reshape(-1, *[1] * (-1 - call.channel_axis))
    return y if activation is None else _ACTIVATIONS[activation](y)


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
) -> Any:
    """`numconv.max_pool` in JAX.

    Parameters
    ----------
    x : array ``[N, C, *S]`` or ``[C, *S]``
    window, stride, padding, dilation, ceil_mode, layout, return_indices
        As for `numconv.max_pool`.
    backend, algorithm, accuracy
        As for `conv`.

    Returns
    -------
    y : jax.Array ``[N, C, *Q]`` or ``[C, *Q]``
    indices : int64 array of y's shape, int32 where JAX has no 64 bits
        Only with `return_indices`.

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `numconv.max_pool`.

    Examples
    --------
    >>> import jax.numpy as jnp, numconv.jax
    >>> numconv.jax.max_pool(jnp.array([[1.0, 5.0, 3.0, 2.0]]), (2,))
    Array([[5., 3.]], dtype=float32)
    """
    wanted = flag(return_indices, "return_indices")
    x = _array("max_pool", "x", x)
    options = pool_options(stride, padding, dilation, layout, ceil_mode, indices=True)
    call = _windows("max_pool", "max_pool_backward", x, window, options, Choice(backend, algorithm, accuracy))
    found = primitives.max_pool(call, x)
    return found if wanted else found[0]


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
) -> Any:
    """`numconv.max_unpool` in JAX: values put back to the positions from which `max_pool` took them.

    Parameters
    ----------
    y : array ``[N, C, *Q]``
    indices : integer array of y's shape
        As `max_pool` gives them; int32 and int64 are taken.
    x_shape : sequence of int
        The shape of the result.
    ndim, layout
        As for `numconv.max_unpool`.
    backend, algorithm, accuracy
        As for `conv`.

    Returns
    -------
    jax.Array of shape `x_shape`
        Differentiable for y; of several elements put at one position the last is kept, and the others have no gradient.

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `numconv.max_unpool`.

    Examples
    --------
    >>> import jax.numpy as jnp, numconv.jax
    >>> y, indices = numconv.jax.max_pool(jnp.array([[[1.0, 5.0, 3.0, 2.0]]]), 2, return_indices=True)
    >>> numconv.jax.max_unpool(y, indices, (1, 1, 4))
    Array([[[0., 5., 3., 0.]]], dtype=float32)
    """
    y, indices = _array("max_unpool", "y", y), _array("max_unpool", "indices", indices)
    if indices.dtype not in (jnp.int32, jnp.int64) or indices.shape != y.shape:
        raise ProblemError(
            f"numconv.jax.max_unpool: indices have shape {indices.shape} and dtype {indices.dtype}, and must have y's shape "
            f"{y.shape} and dtype int32 or int64, as max_pool gives them"
        )
    options = pool_options(layout=layout, ndim=ndim)
    choice = Choice(backend, algorithm, accuracy)
    call = Unpooling(shape(x_shape, "x_shape"), y.shape, options, choice, current())
    return primitives.taken.bind(y, indices, call=call)


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
) -> Any:
    """`numconv.avg_pool` in JAX.

    Parameters
    ----------
    x : array ``[N, C, *S]`` or ``[C, *S]``
    window, stride, padding, dilation, ceil_mode, count_include_pad, layout
        As for `numconv.avg_pool`.
    backend, algorithm, accuracy
        As for `conv`.

    Returns
    -------
    jax.Array ``[N, C, *Q]`` or ``[C, *Q]``

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `numconv.avg_pool`.

    Examples
    --------
    >>> import jax.numpy as jnp, numconv.jax
    >>> numconv.jax.avg_pool(jnp.array([[1.0, 5.0, 3.0, 2.0]]), (2,))
    Array([[3. , 2.5]], dtype=float32)
    """
    x = _array("avg_pool", "x", x)
    options = pool_options(stride, padding, dilation, layout, ceil_mode, count_include_pad)
    return primitives.windows.bind(
        x, call=_windows("avg_pool", "avg_pool_backward", x, window, options, Choice(backend, algorithm, accuracy))
    )


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
) -> Any:
    """`numconv.lp_pool` in JAX.

    Parameters
    ----------
    x : array ``[N, C, *S]`` or ``[C, *S]``
    window, stride, padding, dilation, ceil_mode, p, layout
        As for `numconv.lp_pool`.
    backend, algorithm, accuracy
        As for `conv`.

    Returns
    -------
    jax.Array ``[N, C, *Q]`` or ``[C, *Q]``
        Derivatives are 0 where x or y is, as those of `numconv.lp_pool_backward`.

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `numconv.lp_pool`.

    Examples
    --------
    >>> import jax.numpy as jnp, numconv.jax
    >>> numconv.jax.lp_pool(jnp.array([[3.0, 4.0, 5.0, -12.0]]), (2,))
    Array([[ 5., 13.]], dtype=float32)
    """
    x = _array("lp_pool", "x", x)
    options = pool_options(stride, padding, dilation, layout, ceil_mode, p=p)
    call = _windows("lp_pool", "lp_pool_backward", x, window, options, Choice(backend, algorithm, accuracy))
    return primitives.lp_pool(call, x)


def pad(
    x: Any,
    width: Any,
    mode: str = "zeros",
    *,
    layout: str = "channels_first",
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
) -> Any:
    """`numconv.pad` in JAX.

    Parameters
    ----------
    x : array ``[N, C, *S]`` or ``[C, *S]``
    width, mode, layout
        As for `numconv.pad`.
    backend, algorithm, accuracy
        As for `conv`.

    Returns
    -------
    jax.Array ``[N, C, *S + low + high]`` or without N

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `numconv.pad`.

    Examples
    --------
    >>> import jax.numpy as jnp, numconv.jax
    >>> numconv.jax.pad(jnp.array([[1, 2, 3]]), (2,), "symmetric")
    Array([[2, 1, 1, 2, 3, 3, 2]], dtype=int32)
    """
    x = _array("pad", "x", x)
    options = pool_options(layout=layout, pad_mode=mode)
    return primitives.windows.bind(x, call=_windows("pad", "pad_backward", x, width, options, Choice(backend, algorithm, accuracy)))


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
) -> Any:
    """`numconv.unfold` in JAX, of any number of spatial dimensions.

    Parameters
    ----------
    x : array ``[N, C, *S]`` or ``[C, *S]``
    window, stride, padding, dilation
        As for `numconv.unfold`.
    backend, algorithm, accuracy
        As for `conv`.

    Returns
    -------
    jax.Array ``[N, C*prod(R), prod(Q)]`` or without N

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `numconv.unfold`.

    Examples
    --------
    >>> import jax.numpy as jnp, numconv.jax
    >>> numconv.jax.unfold(jnp.array([[1, 2, 3, 4]]), (2,))
    Array([[1, 2, 3],
           [2, 3, 4]], dtype=int32)
    """
    x = _array("unfold", "x", x)
    options = pool_options(stride, padding, dilation)
    return primitives.windows.bind(x, call=_windows("unfold", "fold", x, window, options, Choice(backend, algorithm, accuracy)))


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
) -> Any:
    """`numconv.fold` in JAX.

    Parameters
    ----------
    columns : array ``[N, C*prod(R), prod(Q)]`` or without N
    x_shape : sequence of int
        The shape of the result.
    window, stride, padding, dilation
        As for `numconv.fold`.
    backend, algorithm, accuracy
        As for `conv`.

    Returns
    -------
    jax.Array of shape `x_shape`

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `numconv.fold`.

    Examples
    --------
    >>> import jax.numpy as jnp, numconv.jax
    >>> numconv.jax.fold(jnp.array([[1, 2, 3], [2, 3, 4]]), (1, 4), (2,))
    Array([[1, 4, 6, 4]], dtype=int32)
    """
    options = pool_options(stride, padding, dilation)
    choice = Choice(backend, algorithm, accuracy)
    whole, frozen = shape(x_shape, "x_shape"), freeze(window, "window")
    call = Windows("unfold", "fold", whole, frozen, options, choice, current(), gradient=True)
    return primitives.windows.bind(_array("fold", "columns", columns), call=call)


def _array(function: str, name: str, value: Any) -> Any:
    if value is None:
        raise ProblemError(f"numconv.jax.{function}: {name} is None; give an array")
    return jnp.asarray(value)


def _windows(forward: str, backward: str, x: Any, window: Any, options: tuple[Any, ...], choice: Choice) -> Windows:
    what = "width" if forward == "pad" else "window"
    return Windows(forward, backward, x.shape, freeze(window, what), options, choice, current())
