"""Convolutions and their gradients on Dask arrays: every check, then the blocks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from numconv.arguments import Geometry, geometry_options
from numconv.arguments import shape as as_shape
from numconv.context import current
from numconv.dispatch import Choice
from numconv.functional.gradients import ConvGrads, check_needs
from numconv.plugin import np_dtype
from numconv.problem import accumulator

from . import checks
from .blocks import (
    Call,
    Frame,
    activated,
    apart,
    as_one,
    blockwise,
    conv_block,
    edges,
    folded,
    gathered,
    haloed,
    padded,
    spread,
    spread_block,
    weight_block,
)

__all__ = ["conv", "conv_backward", "conv_input_grad", "conv_transpose", "conv_transpose_backward", "conv_weight_grad"]


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
) -> Any:
    """`numconv.conv` on Dask arrays.

    Parameters
    ----------
    x : dask.array.Array ``[N, C, *S]`` or ``[C, *S]``
    w : dask.array.Array or array ``[K, C/G, *R]``
        Chunks along K become those of y, where there are no groups.
    bias : dask.array.Array or array ``[K]``, optional
    stride, padding, dilation, groups, pad_mode, flip, layout, activation, backend, algorithm, accuracy, dtype
        As for `numconv.conv`. Padding is read at the borders of x only.

    Returns
    -------
    dask.array.Array ``[N, K, *Q]`` or ``[K, *Q]``
        With chunks along N, K and Q where x and w have them.

    Raises
    ------
    ProblemError, UnknownBackendError
        As for `numconv.conv`, before anything is computed; what no backend computes is found out when it is.

    Examples
    --------
    >>> import dask.array as da, numpy as np, numconv.dask
    >>> sound = da.arange(10.0, chunks=4)[None]
    >>> y = numconv.dask.conv(sound, np.ones((1, 1, 3)), padding="same", pad_mode="reflect")
    >>> y.chunks, y.compute()
    (((1,), (4, 4, 2)), array([[ 2.,  3.,  6.,  9., 12., 15., 18., 21., 24., 25.]]))
    """
    options = Geometry(*geometry_options(stride, padding, dilation, groups, pad_mode, flip, layout, activation))
    choice = Choice(backend, algorithm, accuracy, dtype)
    x, w, bias = checks.arrays("conv", x=x, w=w, bias=bias)
    problem, batchless = checks.problem("conv", x.shape, w.shape, x.dtype, options, choice, bias is not None)
    checks.expect("conv", "bias", bias, (problem.k,))
    return _gathered(problem, batchless, (x, w, bias), options, choice)


def _gathered(problem: Any, batchless: bool, arrays: tuple[Any, Any, Any], options: Geometry, choice: Choice) -> Any:
    """The outputs of a convolution, from x, w and bias."""
    x, w, bias = arrays
    frame = Frame(problem.ndim, options.layout == "channels_last")
    x = checks.with_batch(x, batchless)
    if problem.groups == 1:
        x, k_chunks = as_one(x, frame), w.chunks[0]
    else:
        x, counts = apart(x, frame, problem.c // problem.groups)
        k_chunks = checks.times(counts, problem.k // problem.groups)
    x, pairs = padded(x, problem, frame)
    axes = gathered(problem, pairs, problem.kernel, [x.chunks[axis] for axis in frame.spatial])
    w = w.rechunk({0: k_chunks} | dict.fromkeys(range(1, w.ndim), -1))
    # with one group every chunk of y reads all channels, else those of its groups
    inputs = [
        (haloed(x, frame, axes, [axis.inputs for axis in axes]), frame.axes("n", "c" if problem.groups == 1 else "k", frame.space)),
        (w, ("k", "i", *frame.window)),
    ]
    if bias is not None:
        inputs.append((bias.rechunk((k_chunks,)), ("k",)))
    chunks = {"k": k_chunks} | checks.outputs(frame, axes)
    plain = _plain(problem, options)._replace(activation=options.activation)
    block = functools.partial(conv_block, Call("conv", plain, choice, current()), frame)
    y = blockwise(block, frame.axes("n", "k", frame.space), [*inputs, *edges(axes, frame)], chunks, np_dtype(problem.out_dtype))
    return y[0] if batchless else y


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
) -> Any:
    """`numconv.conv_input_grad` on Dask arrays.

    Parameters
    ----------
    grad_y : dask.array.Array ``[N, K, *Q]`` or ``[K, *Q]``
    w : dask.array.Array or array ``[K, C/G, *R]``
    x_shape : sequence of int
    stride, padding, dilation, groups, pad_mode, flip, layout, backend, algorithm, accuracy, dtype
        As for `numconv.conv_input_grad`.

    Returns
    -------
    dask.array.Array of shape `x_shape`
        With chunks along space where grad_y has them.

    Raises
    ------
    ProblemError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import dask.array as da, numpy as np, numconv.dask
    >>> numconv.dask.conv_input_grad(da.ones((1, 4), chunks=2), np.array([[[1.0, 2.0, 3.0]]]), (1, 6)).compute()
    array([[1., 3., 6., 6., 5., 3.]])
    """
    options = Geometry(*geometry_options(stride, padding, dilation, groups, pad_mode, flip, layout))
    grad_y, w = checks.arrays("conv_input_grad", grad_y=grad_y, w=w)
    shape = as_shape(x_shape, "x_shape")
    return _spread("conv_input_grad", shape, grad_y, w, options, Choice(backend, algorithm, accuracy, dtype))


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
) -> Any:
    """`numconv.conv_transpose` on Dask arrays.

    Parameters
    ----------
    x : dask.array.Array ``[N, C, *Q]`` or ``[C, *Q]``
    w : dask.array.Array or array ``[C, K/G, *R]``
    bias : dask.array.Array or array ``[K]``, optional
    stride, padding, dilation, groups, pad_mode, flip, layout, output_padding, activation, backend, algorithm, accuracy, dtype
        As for `numconv.conv_transpose`.

    Returns
    -------
    dask.array.Array ``[N, K, *S]`` or ``[K, *S]``

    Raises
    ------
    ProblemError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import dask.array as da, numpy as np, numconv.dask
    >>> numconv.dask.conv_transpose(da.ones((1, 3), chunks=1), np.array([[[1.0, 10.0, 100.0]]]), stride=2).compute()
    array([[  1.,  10., 101.,  10., 101.,  10., 100.]])
    """
    options = Geometry(*geometry_options(stride, padding, dilation, groups, pad_mode, flip, layout, activation, output_padding))
    x, w, bias = checks.arrays("conv_transpose", x=x, w=w, bias=bias)
    choice = Choice(backend, algorithm, accuracy, dtype)
    problem, _ = checks.problem("conv_transpose", x.shape, w.shape, x.dtype, options, choice)
    checks.expect("conv_transpose", "bias", bias, (problem.c,))
    if bias is None and activation is None:
        return _spread("conv_transpose", x.shape, x, w, options, choice)
    wide = accumulator(problem.out_dtype)  # half types are rounded once
    y = _spread("conv_transpose", x.shape, x, w, options, choice._replace(dtype=wide))
    if bias is not None:
        y = y + bias.astype(y.dtype).reshape(-1, *[1] * (0 if layout == "channels_last" else w.ndim - 2))
    if activation is not None:
        y = y.map_blocks(activated, activation, dtype=y.dtype, meta=y._meta)
    return y.astype(np_dtype(problem.out_dtype))


def _spread(op: str, x_shape: Any, grad_y: Any, w: Any, options: Geometry, choice: Choice) -> Any:
    """`conv_input_grad`, or `conv_transpose` of what is called grad_y here."""
    problem, batchless = checks.problem(op, x_shape, w.shape, w.dtype, options, choice)
    frame = Frame(problem.ndim, options.layout == "channels_last")
    checks.expect(op, "grad_y", grad_y, frame.axes(problem.n, problem.k, problem.output)[batchless:])
    grad_y = checks.with_batch(grad_y, batchless)
    per_group = problem.k // problem.groups
    counts: tuple[int, ...] = (1,)
    if problem.groups == 1:
        grad_y = as_one(grad_y, frame)
    else:
        grad_y, counts = apart(grad_y, frame, per_group)
    pairs = problem.padding if problem.pad_mode == "zeros" else ((0, 0),) * problem.ndim
    axes = spread(problem, pairs, problem.kernel, [grad_y.chunks[axis] for axis in frame.spatial])
    w = w.rechunk({0: checks.times(counts, per_group)} | dict.fromkeys(range(1, w.ndim), -1))
    inputs = [
        (haloed(grad_y, frame, axes, [axis.outputs for axis in axes]), frame.axes("n", "c", frame.space)),
        (w, ("c", "i", *frame.window)),
    ]
    call = Call("conv_input_grad", _plain(problem, options), choice, current())
    block = functools.partial(spread_block, call, frame, per_group)
    chunks = {"c": checks.times(counts, problem.c // problem.groups)}
    chunks |= {name: axis.inputs for name, axis in zip(frame.space, axes, strict=True)}
    result = frame.axes("n", "c", frame.space)
    grad_x = folded(blockwise(block, result, [*inputs, *edges(axes, frame)], chunks, np_dtype(problem.out_dtype)), problem, frame)
    return grad_x[0] if batchless else grad_x


def _plain(problem: Any, options: Geometry) -> Geometry:
    """The options of blocks, which are told their padding."""
    return Geometry(
        stride=problem.stride, dilation=problem.dilation, groups=problem.groups, flip=problem.flip, layout=options.layout
    )


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
) -> Any:
    """`numconv.conv_weight_grad` on Dask arrays: the sum over all chunks of batch and space.

    Parameters
    ----------
    grad_y : dask.array.Array ``[N, K, *Q]`` or ``[K, *Q]``
    x : dask.array.Array ``[N, C, *S]`` or ``[C, *S]``
    w_shape : sequence of int
    stride, padding, dilation, groups, pad_mode, flip, layout, backend, algorithm, accuracy, dtype
        As for `numconv.conv_weight_grad`. The sums of chunks are added up in an order of their own, those of half types in float32.

    Returns
    -------
    dask.array.Array of shape `w_shape`

    Raises
    ------
    ProblemError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import dask.array as da, numpy as np, numconv.dask
    >>> x = da.arange(8.0, chunks=3)[None]
    >>> numconv.dask.conv_weight_grad(np.ones((1, 6)), x, (1, 1, 3)).compute()
    array([[[15., 21., 27.]]])
    """
    options = Geometry(*geometry_options(stride, padding, dilation, groups, pad_mode, flip, layout))
    choice = Choice(backend, algorithm, accuracy, dtype)
    grad_y, x = checks.arrays("conv_weight_grad", grad_y=grad_y, x=x)
    problem, batchless = checks.problem("conv_weight_grad", x.shape, as_shape(w_shape, "w_shape"), x.dtype, options, choice)
    y_shape = Frame(problem.ndim, layout == "channels_last").axes(problem.n, problem.k, problem.output)
    checks.expect("conv_weight_grad", "grad_y", grad_y, y_shape[batchless:])
    return _weight_grad(problem, batchless, (grad_y, x), options, choice)


def _weight_grad(problem: Any, batchless: bool, arrays: tuple[Any, Any], options: Geometry, choice: Choice) -> Any:
    """The gradient for w of a convolution, from grad_y and x."""
    grad_y, x = arrays
    frame = Frame(problem.ndim, options.layout == "channels_last")
    x, grad_y = checks.with_batch(x, batchless), checks.with_batch(grad_y, batchless)
    per_group = problem.c // problem.groups
    if problem.groups == 1:
        k_chunks, c_chunks = grad_y.chunks[frame.channel], x.chunks[frame.channel]
    else:
        x, counts = apart(x, frame, per_group)
        k_chunks, c_chunks = checks.times(counts, problem.k // problem.groups), (per_group,)
    x, pairs = padded(x, problem, frame)
    axes = gathered(problem, pairs, problem.kernel, [x.chunks[axis] for axis in frame.spatial])
    grad_y = grad_y.rechunk(dict(enumerate(frame.axes(x.chunks[0], k_chunks, [axis.outputs for axis in axes]))))
    x = haloed(x, frame, axes, [axis.inputs for axis in axes])
    inputs = [(grad_y, frame.axes("n", "k", frame.space)), (x, frame.axes("n", "c" if problem.groups == 1 else "k", frame.space))]
    summed = ("n", *frame.space)
    new = dict(zip(frame.window, problem.kernel, strict=True)) | ({} if problem.groups == 1 else {"c": per_group})
    chunks = {"k": k_chunks, "c": c_chunks} | dict.fromkeys(summed, 1)
    wide = accumulator(problem.out_dtype)
    call = Call("conv_weight_grad", _plain(problem, options), choice._replace(dtype=wide), current())
    block = functools.partial(weight_block, call, frame, problem.kernel, per_group)
    result = (*summed, "k", "c", *frame.window)
    sums = blockwise(block, result, [*inputs, *edges(axes, frame)], chunks, np_dtype(wide), new)
    return _total(sums, tuple(range(len(summed))), problem)


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
) -> ConvGrads:
    """`numconv.conv_backward` on Dask arrays.

    Parameters
    ----------
    grad_y : dask.array.Array ``[N, K, *Q]`` or ``[K, *Q]``
    x : dask.array.Array ``[N, C, *S]`` or ``[C, *S]``
    w : dask.array.Array or array ``[K, C/G, *R]``
    needs : sequence of {"x", "w", "bias"}
        Which gradients to return.
    stride, padding, dilation, groups, pad_mode, flip, layout, backend, algorithm, accuracy, dtype
        As for `numconv.conv_backward`.

    Returns
    -------
    ConvGrads
        ``(x, w, bias)``; None where it was not asked for.

    Raises
    ------
    ProblemError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import dask.array as da, numpy as np, numconv.dask
    >>> grads = numconv.dask.conv_backward(da.ones((1, 3)), da.arange(5.0)[None], np.ones((1, 1, 3)), needs=("w", "bias"))
    >>> grads.x, grads.w.compute(), grads.bias.compute()
    (None, array([[[3., 6., 9.]]]), array([3.]))
    """
    options = Geometry(*geometry_options(stride, padding, dilation, groups, pad_mode, flip, layout))
    return _backward("conv", {"grad_y": grad_y, "x": x, "w": w}, needs, options, Choice(backend, algorithm, accuracy, dtype))


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
) -> ConvGrads:
    """`numconv.conv_transpose_backward` on Dask arrays.

    Parameters
    ----------
    grad_y : dask.array.Array ``[N, K, *S]`` or ``[K, *S]``
    x : dask.array.Array ``[N, C, *Q]`` or ``[C, *Q]``
    w : dask.array.Array or array ``[C, K/G, *R]``
    needs : sequence of {"x", "w", "bias"}
        Which gradients to return.
    stride, padding, dilation, groups, pad_mode, flip, layout, output_padding, backend, algorithm, accuracy, dtype
        As for `numconv.conv_transpose_backward`.

    Returns
    -------
    ConvGrads
        ``(x, w, bias)``; None where it was not asked for.

    Raises
    ------
    ProblemError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import dask.array as da, numpy as np, numconv.dask
    >>> x, grad_y = da.from_array(np.array([[1.0, 2.0]]), chunks=1), da.ones((1, 5), chunks=3)
    >>> grads = numconv.dask.conv_transpose_backward(grad_y, x, np.ones((1, 1, 3)), stride=2, needs=("x", "w"))
    >>> grads.x.compute(), grads.w.compute(), grads.bias
    (array([[3., 3.]]), array([[[3., 3., 3.]]]), None)
    """
    options = Geometry(*geometry_options(stride, padding, dilation, groups, pad_mode, flip, layout, None, output_padding))
    arrays = {"grad_y": grad_y, "x": x, "w": w}
    return _backward("conv_transpose", arrays, needs, options, Choice(backend, algorithm, accuracy, dtype))


def _backward(family: str, arrays: dict[str, Any], needs: Sequence[str], options: Geometry, choice: Choice) -> ConvGrads:
    """The gradients of `conv` or `conv_transpose` that were asked for; of the latter grad_y is the x of the paired convolution."""
    op, transposed = f"{family}_backward", family == "conv_transpose"
    needs = check_needs(op, needs)
    grad_y, x, w = checks.arrays(op, **arrays)
    problem, batchless = checks.problem(f"{family}_input_grad", x.shape, w.shape, x.dtype, options, choice)
    frame = Frame(problem.ndim, options.layout == "channels_last")
    channels, spatial = (problem.c, problem.spatial) if transposed else (problem.k, problem.output)
    checks.expect(op, "grad_y", grad_y, frame.axes(problem.n, channels, spatial)[batchless:])
    grads: dict[str, Any] = {}
    if "x" in needs and transposed:
        grads["x"] = _gathered(problem, batchless, (grad_y, w, None), options, choice)
    elif "x" in needs:
        grads["x"] = _spread("conv_input_grad", x.shape, grad_y, w, options, choice)
    if "w" in needs:
        grads["w"] = _weight_grad(problem, batchless, (x, grad_y) if transposed else (grad_y, x), options, choice)
    if "bias" in needs:
        others = tuple(axis for axis in range(grad_y.ndim) if axis != frame.channel - batchless)
        grads["bias"] = _total(grad_y, others, problem)
    return ConvGrads(**grads)


def _total(array: Any, axes: tuple[int, ...], problem: Any) -> Any:
    """The sum, of half types in float32, in the dtype of the problem's results."""
    return array.sum(axis=axes, dtype=np_dtype(accumulator(problem.out_dtype))).astype(np_dtype(problem.out_dtype))
