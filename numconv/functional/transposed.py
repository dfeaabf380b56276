"""Transposed convolution: the adjoint of a convolution, as a layer, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numconv.arguments import geometry_options
from numconv.dispatch import run

from .gradients import ConvGrads, backward

__all__ = ["conv_transpose", "conv_transpose_backward"]


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
    dtype: Any = None,
    out: Any = None,
) -> Any:
    """Transposed convolution: the adjoint of `conv`, which brings the dimension up again.

    It is `conv_input_grad` of the convolution with the same stride, padding and dilation, whose input has
    S = (Q - 1)s + d(r - 1) + 1 - low - high + o, with Q the size of x and o the output padding.

    Parameters
    ----------
    x : array ``[N, C, *Q]`` or ``[C, *Q]``
    w : array ``[C, K/G, *R]``
    bias : array ``[K]``, optional
        Added to every element of the output.
    padding : int, sequence of int, sequence of (low, high), "valid" or "same"
        How much of the output is cut off; "same": S = Q s. "full" and "causal" are refused.
    output_padding : int or sequence of int
        o, 0 <= o < max(stride, dilation): rows at the high end that the stride would leave out.
    stride, dilation, groups, pad_mode, flip, layout, activation, backend, algorithm, accuracy, dtype, out
        As for `conv`; with ``flip=True`` the adjoint of conv with flip.

    Returns
    -------
    array ``[N, K, *S]`` or ``[K, *S]``
        With complex arrays w is conjugated, as an adjoint has it.

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `conv`.

    References
    ----------
    V. Dumoulin and F. Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285, section 4.

    Examples
    --------
    >>> import numpy as np, numconv as nc
    >>> nc.conv_transpose(np.array([[1.0, 2.0]]), np.array([[[1.0, 10.0, 100.0]]]), stride=2)
    array([[  1.,  10., 102.,  20., 200.]])
    """
    options = geometry_options(stride, padding, dilation, groups, pad_mode, flip, layout, activation, output_padding)
    arrays = (x, w) if bias is None else (x, w, bias)
    return run("conv_transpose", arrays, 0, 1, options, (backend, algorithm, accuracy, dtype), out, bias is not None)


def conv_transpose_backward(
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
    output_padding: Any = 0,
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
    dtype: Any = None,
    out: Any = None,
) -> ConvGrads:
    """The gradients of `conv_transpose` for x, w and bias.

    That for x is the convolution of grad_y, that for w the `conv_weight_grad` with the two arrays exchanged.

    Parameters
    ----------
    grad_y : array ``[N, K, *S]`` or ``[K, *S]``
    x : array ``[N, C, *Q]`` or ``[C, *Q]``
    w : array ``[C, K/G, *R]``
    needs, out
        As for `conv_backward`.
    stride, padding, dilation, groups, pad_mode, flip, layout, output_padding, backend, algorithm, accuracy, dtype
        As for `conv_transpose`.

    Returns
    -------
    ConvGrads
        ``(x, w, bias)``; None where it was not asked for. With complex arrays the adjoints, as for `conv_backward`.

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np, numconv as nc
    >>> grads = nc.conv_transpose_backward(np.ones((1, 5)), np.array([[1.0, 2.0]]), np.ones((1, 1, 3)), stride=2)
    >>> grads.x, grads.w, grads.bias
    (array([[3., 3.]]), array([[[3., 3., 3.]]]), array([5.]))
    """
    options = geometry_options(stride, padding, dilation, groups, pad_mode, flip, layout, None, output_padding)
    choice = (backend, algorithm, accuracy, dtype)
    return backward("conv_transpose", grad_y, x, w, needs, options, choice, out)
