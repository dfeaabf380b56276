"""The public functions: names, defaults and documentation. They compute nothing; every call goes through `numconv.dispatch.run`.

Letters, here and everywhere: x ``[N, C, *S]``, w ``[K, C/G, *R]``, y ``[N, K, *Q]`` with N the batch, C input channels, K output
channels, G groups, S, R and Q the spatial sizes of input, kernel and output. With ``layout="channels_last"`` x is
``[N, *S, C]`` and y ``[N, *Q, K]``; w keeps its axes. An x without N gives a y without N.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .arguments import flag, freeze, geometry_options, pool_options, shape
from .arrays import as_array
from .dispatch import Chosen, Plan, prepare, run
from .errors import ProblemError

__all__ = [
    "ConvGrads", "avg_pool", "avg_pool_backward", "conv", "conv_backward", "conv_input_grad", "conv_transpose",
    "conv_transpose_backward", "conv_weight_grad", "fold", "lp_pool", "lp_pool_backward", "max_pool", "max_pool_backward",
    "max_unpool", "max_unpool_backward", "pad", "pad_backward", "unfold",
]  # fmt: skip


class ConvGrads(NamedTuple):
    """The gradients of a convolution; None where it was not asked for."""

    x: Any = None
    w: Any = None
    bias: Any = None


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
    return _backward("conv", ("conv_input_grad", (grad_y, w)), ("conv_weight_grad", (grad_y, x)), x, w, needs, options, choice, out)


_NO_GRADS = ConvGrads()


def check_needs(op: str, needs: Sequence[str]) -> tuple[str, ...]:
    """The gradients asked for, by name."""
    if needs == ConvGrads._fields:
        return ConvGrads._fields
    needs = (needs,) if isinstance(needs, str) else tuple(needs)
    if not needs or any(name not in ConvGrads._fields for name in needs):
        raise ProblemError(f"{op}: needs={needs!r} must name at least one of {', '.join(ConvGrads._fields)}")
    return needs


def _backward(
    op: str,
    for_x: tuple[str, tuple[Any, Any]],
    for_w: tuple[str, tuple[Any, Any]],
    x: Any,
    w: Any,
    needs: Sequence[str],
    options: tuple[Any, ...],
    choice: Chosen,
    out: Any,
) -> ConvGrads:
    """The gradients asked for, bias and w in one pass; every check comes before any of them is computed."""
    name = f"{op}_backward"
    needs = check_needs(name, needs)
    outs = as_grads(name, out)
    x, w = as_array(x, name, "x"), as_array(w, name, "w")
    calls = []
    if "x" in needs:
        calls.append(prepare(*for_x, x.shape, 1, options, choice))
    if "w" in needs or "bias" in needs:
        calls.append(prepare(*for_w, 0 if op == "conv_transpose" else 1, w.shape, options, choice, "bias" in needs))
    return compute_grads(calls, (x, w), outs, needs)


def as_grads(op: str, out: Any) -> ConvGrads:
    """The argument `out` of a function that returns the three gradients."""
    if out is not None and not (isinstance(out, tuple | list) and len(out) == len(ConvGrads._fields)):
        raise ProblemError(
            f"{op}: out must be a sequence of three arrays or None, for x, w and bias, and is a {type(out).__name__}"
        )
    return _NO_GRADS if out is None else ConvGrads(*out)


def compute_grads(
    calls: Sequence[tuple[Plan, Sequence[Any]]], others: Sequence[Any], outs: ConvGrads, needs: Sequence[str]
) -> ConvGrads:
    """The gradients of plans with their arrays; every result is checked before any of them is computed.

    A result must overlap neither the `others` nor those of the other plans, which are read or written after it.
    """
    found: dict[str, Any] = {}
    jobs = []
    taken = list(others)
    for plan, ins in calls:
        names = plan.gradient_names
        if outs is _NO_GRADS:
            results = plan.results(ins, None)  # new arrays, which overlap nothing
        else:
            results = plan.results([*ins, *taken], tuple([getattr(outs, name) for name in names]))
            taken += results
        for number, name in enumerate(names):
            found[name] = results[number]
        jobs.append((plan, results, ins))
    for plan, results, ins in jobs:
        plan.compute(results, ins)
    return ConvGrads(*[found[name] if name in needs else None for name in ConvGrads._fields])


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
    for_x, for_w = ("conv_transpose_input_grad", (grad_y, w)), ("conv_transpose_weight_grad", (x, grad_y))
    return _backward("conv_transpose", for_x, for_w, x, w, needs, options, choice, out)


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
        R. An int means that x has a batch axis; without N give one entry a spatial dimension.
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
        R. An int means that x has a batch axis; without N give one entry a spatial dimension.
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
    """The p-norm of each window: (sum of |x|^p)^(1/p).

    Parameters
    ----------
    x : array ``[N, C, *S]`` or ``[C, *S]``
        Of a real float dtype.
    window : int or sequence of int
        R. An int means that x has a batch axis; without N give one entry a spatial dimension.
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
    """Gradient of `lp_pool`: grad_y sign(x) |x|^(p - 1) y^(1 - p), and zero where x or y is.

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
        R. An int means that x has a batch axis; without N give one entry a spatial dimension.
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
