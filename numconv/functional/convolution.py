"""Convolution and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numconv.arguments import geometry_options, shape
from numconv.dispatch import run

from .gradients import ConvGrads, backward

__all__ = ["conv", "conv_backward", "conv_input_grad", "conv_weight_grad"]


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
    dtype: Any = None,
    out: Any = None,
) -> Any:
    """Convolution of any number of spatial dimensions, with several channels and filters.

    What deep learning calls convolution, that is cross-correlation: y(t) = sum over tau of x(t + tau) w(tau), summed over the
    input channels of the group. With ``flip=True`` the mathematical convolution, y(t) = sum over tau of x(t - tau) w(tau).

    Parameters
    ----------
    x : array ``[N, C, *S]`` or ``[C, *S]``
    w : array ``[K, C/G, *R]``
        Of the same dtype as x; any strides, so that a transposed view costs no copy.
    bias : array ``[K]``, optional
    stride, dilation : int or sequence of int
        One for all spatial dimensions or one each. Dilation counts from 1.
    padding : int, sequence of int, sequence of (low, high), or a word
        "valid": none. "same": Q = ceil(S / s), total = max((Q - 1)s + d(r - 1) + 1 - S, 0), low = total // 2, the rest high.
        "full": d(r - 1) on both sides. "causal": d(r - 1) low, none high, in every dimension.
    groups : int
        Channels are split into this many groups, convolved separately; ``groups=C`` is the depthwise convolution.
    pad_mode : {"zeros", "reflect", "symmetric", "replicate", "circular"}
        What the padding holds, as np.pad's constant, reflect, symmetric, edge and wrap, at any width. Padding zeros are not terms:
        a non-finite weight against one adds nothing.
    flip : bool
        Reverse the kernel in every spatial dimension.
    layout : {"channels_first", "channels_last"}
    activation : {None, "relu", "silu", "gelu"}
        Applied to y; "gelu" in its exact (erf) form. Real floats; "relu" for integers too.
    backend, algorithm : str, optional
        Compute with this backend or implementation, strictly; by default the cheapest that supports the problem.
    accuracy : {None, "strict", "high", "default", "fast"}
        Which algorithms may be chosen; None means "default", or what `using` says.
    dtype : dtype, optional
        Of y: that of x or a wider one. Integers are exact modulo 2^n of this dtype.
    out : array ``[N, K, *Q]``, optional
        Where to write y.

    Returns
    -------
    array ``[N, K, *Q]`` or ``[K, *Q]``
        Q = floor((S + low + high - d(r - 1) - 1) / s) + 1 in each dimension.

    Raises
    ------
    ProblemError
        If shapes, options and dtypes do not make a convolution.
    UnsupportedProblemError
        If no backend that may be asked computes it.
    BackendUnavailableError, UnknownBackendError
        If the backend asked for cannot run here, or does not exist.

    Notes
    -----
    With ``accuracy="strict"`` each output is one chain of fused multiply-adds in the accumulation dtype, terms in the order of the
    channels c and then of the kernel as w lies, row-major; the bias is added last.

    Examples
    --------
    A moving average over a wave, and the centre of a blurred dot:

    >>> import numpy as np, numconv as nc
    >>> wave = np.array([[0.0, 3.0, 6.0, 3.0, 0.0]])
    >>> nc.conv(wave, np.full((1, 1, 3), 1 / 3), padding="same").round(2)
    array([[1., 3., 4., 3., 1.]])
    >>> image = np.zeros((1, 1, 5, 5))
    >>> image[0, 0, 2, 2] = 9
    >>> nc.conv(image, np.ones((4, 1, 3, 3)), stride=2, padding=1).shape
    (1, 4, 3, 3)
    """
    options = geometry_options(stride, padding, dilation, groups, pad_mode, flip, layout, activation)
    arrays = (x, w) if bias is None else (x, w, bias)
    return run("conv", arrays, 0, 1, options, (backend, algorithm, accuracy, dtype), out, bias is not None)


def conv_input_grad(
    grad_y: Any,
    w: Any,
    x_shape: Sequence[int],
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    pad_mode: str = "zeros",
    flip: bool = False,
    layout: str = "channels_first",
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    """Gradient of `conv` for its input: the adjoint of x -> conv(x, w).

    Parameters
    ----------
    grad_y : array ``[N, K, *Q]`` or ``[K, *Q]``
        Gradient of the loss for y.
    w : array ``[K, C/G, *R]``
    x_shape : sequence of int
        The shape of x, which the stride leaves open.
    stride, padding, dilation, groups, pad_mode, flip, layout, backend, algorithm, accuracy, dtype, out
        As for `conv`.

    Returns
    -------
    array of shape `x_shape`
        With complex arrays w is conjugated, as an adjoint has it. What reads the padding in another mode than "zeros" is folded
        back to where it came from.

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np, numconv as nc
    >>> nc.conv_input_grad(np.ones((1, 3)), np.array([[[1.0, 2.0, 3.0]]]), (1, 5))
    array([[1., 3., 6., 5., 3.]])
    """
    options = geometry_options(stride, padding, dilation, groups, pad_mode, flip, layout)
    choice = (backend, algorithm, accuracy, dtype)
    return run("conv_input_grad", (grad_y, w), shape(x_shape, "x_shape"), 1, options, choice, out)


def conv_weight_grad(
    grad_y: Any,
    x: Any,
    w_shape: Sequence[int],
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    pad_mode: str = "zeros",
    flip: bool = False,
    layout: str = "channels_first",
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    """Gradient of `conv` for its weights: dL/dw(tau) = sum over n and t of dL/dy(t) x(t + tau).

    Every position of the input takes part in the gradient of each weight, because all positions share it.

    Parameters
    ----------
    grad_y : array ``[N, K, *Q]`` or ``[K, *Q]``
        Gradient of the loss for y.
    x : array ``[N, C, *S]`` or ``[C, *S]``
    w_shape : sequence of int
        ``[K, C/G, *R]``.
    stride, padding, dilation, groups, pad_mode, flip, layout, backend, algorithm, accuracy, dtype, out
        As for `conv`.

    Returns
    -------
    array of shape `w_shape`
        With complex arrays x is conjugated.

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np, numconv as nc
    >>> nc.conv_weight_grad(np.ones((1, 3)), np.arange(5.0)[None], (1, 1, 3))
    array([[[3., 6., 9.]]])
    """
    options = geometry_options(stride, padding, dilation, groups, pad_mode, flip, layout)
    choice = (backend, algorithm, accuracy, dtype)
    return run("conv_weight_grad", (grad_y, x), 1, shape(w_shape, "w_shape"), options, choice, out)


def conv_backward(
    grad_y: Any,
    x: Any,
    w: Any,
    *,
    needs: Sequence[str] = ("x", "w", "bias"),
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    pad_mode: str = "zeros",
    flip: bool = False,
    layout: str = "channels_first",
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
    dtype: Any = None,
    out: Any = None,
) -> ConvGrads:
    """The gradients of `conv` for x, w and bias.

    Parameters
    ----------
    grad_y : array ``[N, K, *Q]`` or ``[K, *Q]``
    x : array ``[N, C, *S]`` or ``[C, *S]``
    w : array ``[K, C/G, *R]``
    needs : sequence of {"x", "w", "bias"}
        Which gradients to compute.
    stride, padding, dilation, groups, pad_mode, flip, layout, backend, algorithm, accuracy, dtype
        As for `conv`.
    out : sequence of three arrays or None, optional
        Where to write the gradients of x, w and bias.

    Returns
    -------
    ConvGrads
        ``(x, w, bias)``; None where it was not asked for.

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np, numconv as nc
    >>> grads = nc.conv_backward(np.ones((1, 3)), np.arange(5.0)[None], np.ones((1, 1, 3)), needs=("w", "bias"))
    >>> grads.x, grads.w, grads.bias
    (None, array([[[3., 6., 9.]]]), array([3.]))
    """
    options = geometry_options(stride, padding, dilation, groups, pad_mode, flip, layout)
    choice = (backend, algorithm, accuracy, dtype)
    return backward("conv", grad_y, x, w, needs, options, choice, out)
