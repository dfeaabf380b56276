"""The functions of numconv on tensors: names, defaults, and what torch's settings say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from numconv.arguments import flag, freeze, geometry_options, pool_options, shape
from numconv.context import Context, current
from numconv.derivatives import Trilinear, Unpooling, Windows
from numconv.dispatch import Choice
from numconv.errors import ProblemError

from . import pooling
from .operators import apply, checked

__all__ = ["avg_pool", "conv", "conv_transpose", "fold", "lp_pool", "max_pool", "max_unpool", "pad", "unfold"]

_ACTIVATIONS = {"relu": torch.nn.functional.relu, "silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu}


def conv(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
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
) -> Tensor:
    """`numconv.conv` on tensors.

    Parameters
    ----------
    x : Tensor ``[N, C, *S]`` or ``[C, *S]``
    w : Tensor ``[K, C/G, *R]``
    bias : Tensor ``[K]``, optional
    stride, padding, dilation, groups, pad_mode, flip, layout, backend, accuracy
        As for `numconv.conv`, for the derivatives too.
    activation : {None, "relu", "silu", "gelu"}
        Computed by torch, but in `torch.inference_mode` with the convolution.
    algorithm : str, optional
        As for `numconv.conv`; derivatives choose theirs by themselves.

    Returns
    -------
    Tensor ``[N, K, *Q]`` or ``[K, *Q]``
        With derivatives of any order, backward and forward. Under `torch.autocast` of that dtype.

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `numconv.conv`.

    Examples
    --------
    >>> import torch, numconv.torch
    >>> w = torch.ones(1, 1, 3, requires_grad=True)
    >>> y = numconv.torch.conv(torch.arange(5.0)[None], w, padding=1, pad_mode="reflect")
    >>> y.sum().backward()
    >>> y.detach(), w.grad
    (tensor([[ 2.,  3.,  6.,  9., 10.]]), tensor([[[ 7., 10., 13.]]]))
    """
    options = geometry_options(stride, padding, dilation, groups, pad_mode, flip, layout)
    return _convolution("conv", (x, w, bias), options, Choice(backend, algorithm, accuracy), activation)


def conv_transpose(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
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
) -> Tensor:
    """`numconv.conv_transpose` on tensors.

    Parameters
    ----------
    x : Tensor ``[N, C, *Q]`` or ``[C, *Q]``
    w : Tensor ``[C, K/G, *R]``
    bias : Tensor ``[K]``, optional
    stride, padding, dilation, groups, pad_mode, flip, layout, output_padding
        As for `numconv.conv_transpose`.
    activation, backend, algorithm, accuracy
        As for `conv`.

    Returns
    -------
    Tensor ``[N, K, *S]`` or ``[K, *S]``

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `numconv.conv_transpose`.

    Examples
    --------
    >>> import torch, numconv.torch
    >>> numconv.torch.conv_transpose(torch.tensor([[1.0, 2.0]]), torch.tensor([[[1.0, 10.0, 100.0]]]), stride=2)
    tensor([[  1.,  10., 102.,  20., 200.]])
    """
    options = geometry_options(stride, padding, dilation, groups, pad_mode, flip, layout, None, output_padding)
    return _convolution("conv_transpose", (x, w, bias), options, Choice(backend, algorithm, accuracy), activation)


def _convolution(family: str, tensors: tuple[Any, ...], options: tuple[Any, ...], choice: Choice, activation: str | None) -> Tensor:
    if activation is not None and activation not in _ACTIVATIONS:
        raise ProblemError(f"{family}: activation={activation!r} is not one of {', '.join(_ACTIVATIONS)}")
    x, w, bias = _autocast(tensors)
    checked(family, x=x, w=w, bias=bias)
    fused = activation is not None and not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
    if fused:
        options = (*options[:7], activation, *options[8:])
    call = Trilinear(family, "y", tuple(x.shape), tuple(w.shape), options, choice, _settings())
    y = apply(call, x, w, bias)
    if activation is None or fused:
        return y
    activated: Tensor = _ACTIVATIONS[activation](y)
    return activated


def _settings() -> Context | None:
    """Those in force, for the derivatives too; a compiled graph takes them when it runs."""
    return None if torch.compiler.is_compiling() else current()


def _autocast(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """The tensors in the dtype that `torch.autocast` asks for, as torch's own convolutions take them."""
    device = tensors[0].device.type if isinstance(tensors[0], Tensor) else "meta"
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    lower = (torch.float32, torch.float16, torch.bfloat16)
    return tuple([each.to(dtype) if isinstance(each, Tensor) and each.dtype in lower else each for each in tensors])


def max_pool(
    x: Tensor,
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
    """`numconv.max_pool` on tensors.

    Parameters
    ----------
    x : Tensor ``[N, C, *S]`` or ``[C, *S]``
    window, stride, padding, dilation, ceil_mode, layout, return_indices
        As for `numconv.max_pool`.
    backend, algorithm, accuracy
        As for `conv`.

    Returns
    -------
    y : Tensor ``[N, C, *Q]`` or ``[C, *Q]``
    indices : int64 Tensor of y's shape
        Only with `return_indices`.

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `numconv.max_pool`.

    Examples
    --------
    >>> import torch, numconv.torch
    >>> numconv.torch.max_pool(torch.tensor([[1.0, 5.0, 3.0, 2.0]]), (2,))
    tensor([[5., 3.]])
    """
    wanted = flag(return_indices, "return_indices")
    options = pool_options(stride, padding, dilation, layout, ceil_mode, indices=True)
    call = _windows("max_pool", "max_pool_backward", x, window, options, Choice(backend, algorithm, accuracy))
    found = pooling.max_pool(call, x)
    return found if wanted else found[0]


def max_unpool(
    y: Tensor,
    indices: Tensor,
    x_shape: Sequence[int],
    *,
    ndim: int | None = None,
    layout: str = "channels_first",
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
) -> Tensor:
    """`numconv.max_unpool` on tensors: values put back to the positions from which `max_pool` took them.

    Parameters
    ----------
    y : Tensor ``[N, C, *Q]``
    indices : int64 Tensor of y's shape
        As `max_pool` gives them.
    x_shape : sequence of int
        The shape of the result.
    ndim, layout
        As for `numconv.max_unpool`.
    backend, algorithm, accuracy
        As for `conv`.

    Returns
    -------
    Tensor of shape `x_shape`
        Differentiable for y; of several elements put at one position the last is kept, and the others have no gradient.

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `numconv.max_unpool`.

    Examples
    --------
    >>> import torch, numconv.torch
    >>> y, indices = numconv.torch.max_pool(torch.tensor([[[1.0, 5.0, 3.0, 2.0]]]), 2, return_indices=True)
    >>> numconv.torch.max_unpool(y, indices, (1, 1, 4))
    tensor([[[0., 5., 3., 0.]]])
    """
    checked("max_unpool", y=y, indices=indices)
    if indices.dtype != torch.int64 or indices.shape != y.shape:
        raise ProblemError(
            f"numconv.torch.max_unpool: indices have shape {tuple(indices.shape)} and dtype {indices.dtype}, and must have y's "
            f"shape {tuple(y.shape)} and dtype torch.int64, as max_pool gives them"
        )
    options = pool_options(layout=layout, ndim=ndim)
    choice = Choice(backend, algorithm, accuracy)
    call = Unpooling(shape(x_shape, "x_shape"), tuple(y.shape), options, choice, _settings())
    return apply(call, y, indices)


def avg_pool(
    x: Tensor,
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
) -> Tensor:
    """`numconv.avg_pool` on tensors.

    Parameters
    ----------
    x : Tensor ``[N, C, *S]`` or ``[C, *S]``
    window, stride, padding, dilation, ceil_mode, count_include_pad, layout
        As for `numconv.avg_pool`.
    backend, algorithm, accuracy
        As for `conv`.

    Returns
    -------
    Tensor ``[N, C, *Q]`` or ``[C, *Q]``

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `numconv.avg_pool`.

    Examples
    --------
    >>> import torch, numconv.torch
    >>> numconv.torch.avg_pool(torch.tensor([[1.0, 5.0, 3.0, 2.0]]), (2,))
    tensor([[3.0000, 2.5000]])
    """
    options = pool_options(stride, padding, dilation, layout, ceil_mode, count_include_pad)
    return apply(_windows("avg_pool", "avg_pool_backward", x, window, options, Choice(backend, algorithm, accuracy)), x)


def lp_pool(
    x: Tensor,
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
) -> Tensor:
    """`numconv.lp_pool` on tensors.

    Parameters
    ----------
    x : Tensor ``[N, C, *S]`` or ``[C, *S]``
    window, stride, padding, dilation, ceil_mode, p, layout
        As for `numconv.lp_pool`.
    backend, algorithm, accuracy
        As for `conv`.

    Returns
    -------
    Tensor ``[N, C, *Q]`` or ``[C, *Q]``
        Derivatives are 0 where x or y is, as those of `numconv.lp_pool_backward`.

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `numconv.lp_pool`.

    Examples
    --------
    >>> import torch, numconv.torch
    >>> numconv.torch.lp_pool(torch.tensor([[3.0, 4.0, 5.0, -12.0]]), (2,))
    tensor([[ 5., 13.]])
    """
    options = pool_options(stride, padding, dilation, layout, ceil_mode, p=p)
    call = _windows("lp_pool", "lp_pool_backward", x, window, options, Choice(backend, algorithm, accuracy))
    return pooling.lp_pool(call, float(p), x)


def pad(
    x: Tensor,
    width: Any,
    mode: str = "zeros",
    *,
    layout: str = "channels_first",
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
) -> Tensor:
    """`numconv.pad` on tensors.

    Parameters
    ----------
    x : Tensor ``[N, C, *S]`` or ``[C, *S]``
    width, mode, layout
        As for `numconv.pad`.
    backend, algorithm, accuracy
        As for `conv`.

    Returns
    -------
    Tensor ``[N, C, *S + low + high]`` or without N

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `numconv.pad`.

    Examples
    --------
    >>> import torch, numconv.torch
    >>> numconv.torch.pad(torch.tensor([[1, 2, 3]]), (2,), "symmetric")
    tensor([[2, 1, 1, 2, 3, 3, 2]])
    """
    options = pool_options(layout=layout, pad_mode=mode)
    return apply(_windows("pad", "pad_backward", x, width, options, Choice(backend, algorithm, accuracy)), x)


def unfold(
    x: Tensor,
    window: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
) -> Tensor:
    """`numconv.unfold` on tensors, of any number of spatial dimensions.

    Parameters
    ----------
    x : Tensor ``[N, C, *S]`` or ``[C, *S]``
    window, stride, padding, dilation
        As for `numconv.unfold`.
    backend, algorithm, accuracy
        As for `conv`.

    Returns
    -------
    Tensor ``[N, C*prod(R), prod(Q)]`` or without N

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `numconv.unfold`.

    Examples
    --------
    >>> import torch, numconv.torch
    >>> numconv.torch.unfold(torch.tensor([[1, 2, 3, 4]]), (2,))
    tensor([[1, 2, 3],
            [2, 3, 4]])
    """
    options = pool_options(stride, padding, dilation)
    return apply(_windows("unfold", "fold", x, window, options, Choice(backend, algorithm, accuracy)), x)


def fold(
    columns: Tensor,
    x_shape: Sequence[int],
    window: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
) -> Tensor:
    """`numconv.fold` on tensors.

    Parameters
    ----------
    columns : Tensor ``[N, C*prod(R), prod(Q)]`` or without N
    x_shape : sequence of int
        The shape of the result.
    window, stride, padding, dilation
        As for `numconv.fold`.
    backend, algorithm, accuracy
        As for `conv`.

    Returns
    -------
    Tensor of shape `x_shape`

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `numconv.fold`.

    Examples
    --------
    >>> import torch, numconv.torch
    >>> numconv.torch.fold(torch.tensor([[1, 2, 3], [2, 3, 4]]), (1, 4), (2,))
    tensor([[1, 4, 6, 4]])
    """
    checked("fold", columns=columns)
    options = pool_options(stride, padding, dilation)
    choice = Choice(backend, algorithm, accuracy)
    whole, frozen = shape(x_shape, "x_shape"), freeze(window, "window")
    return apply(Windows("unfold", "fold", whole, frozen, options, choice, _settings(), gradient=True), columns)


def _windows(forward: str, backward: str, x: Any, window: Any, options: tuple[Any, ...], choice: Choice) -> Windows:
    checked(forward, x=x)
    what = "width" if forward == "pad" else "window"
    return Windows(forward, backward, tuple(x.shape), freeze(window, what), options, choice, _settings())
