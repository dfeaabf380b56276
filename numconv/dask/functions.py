"""The functions of numconv on Dask arrays: every check, then the blocks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np

from numconv.arguments import Geometry, PoolGeometry, freeze, geometry_options, pool_options, problem_of
from numconv.arguments import shape as as_shape
from numconv.context import current
from numconv.dispatch import Choice, make_request
from numconv.errors import ProblemError
from numconv.functional.gradients import ConvGrads, check_needs
from numconv.plugin import np_dtype
from numconv.registry import default_registry

from .blocks import (
    Call,
    Frame,
    apart,
    as_one,
    blockwise,
    conv_block,
    edges,
    folded,
    gathered,
    haloed,
    padded,
    pool_block,
    spread,
    spread_block,
    weight_block,
)  # fmt: skip

__all__ = [
    "avg_pool", "conv", "conv_backward", "conv_input_grad", "conv_transpose", "conv_weight_grad", "lp_pool", "max_pool",
]  # fmt: skip


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
    options = geometry_options(stride, padding, dilation, groups, pad_mode, flip, layout, activation)
    choice = Choice(backend, algorithm, accuracy, dtype)
    x, w, bias = _arrays("conv", x=x, w=w, bias=bias)
    problem, batchless = _problem("conv", x.shape, w.shape, x.dtype, Geometry(*options), choice, bias is not None)
    _expect("conv", "bias", bias, (problem.k,))
    frame = Frame(problem.ndim, layout == "channels_last")
    x = _with_batch(x, batchless)
    if problem.groups == 1:
        x, k_chunks = as_one(x, frame), w.chunks[0]
    else:
        x, counts = apart(x, frame, problem.c // problem.groups)
        k_chunks = _times(counts, problem.k // problem.groups)
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
    chunks = {"k": k_chunks} | _outputs(frame, axes)
    block = functools.partial(conv_block, Call("conv", Geometry(*options), choice, current()), frame)
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
    grad_y, w = _arrays("conv_input_grad", grad_y=grad_y, w=w)
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
    stride, padding, dilation, groups, pad_mode, flip, layout, output_padding, backend, algorithm, accuracy, dtype
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
    options = Geometry(*geometry_options(stride, padding, dilation, groups, pad_mode, flip, layout, None, output_padding))
    x, w, bias = _arrays("conv_transpose", x=x, w=w, bias=bias)
    y = _spread("conv_transpose", x.shape, x, w, options, Choice(backend, algorithm, accuracy, dtype))
    if bias is None:
        return y
    ndim = w.ndim - 2
    last = layout == "channels_last"
    _expect("conv_transpose", "bias", bias, (y.shape[-1 if last else -1 - ndim],))
    return y + bias.astype(y.dtype).reshape(-1, *[1] * (0 if last else ndim))


def _spread(op: str, x_shape: Any, grad_y: Any, w: Any, options: Geometry, choice: Choice) -> Any:
    """`conv_input_grad`, or `conv_transpose` of what is called grad_y here."""
    problem, batchless = _problem(op, x_shape, w.shape, w.dtype, options, choice)
    frame = Frame(problem.ndim, options.layout == "channels_last")
    _expect(op, "grad_y", grad_y, frame.axes(problem.n, problem.k, problem.output)[batchless:])
    grad_y = _with_batch(grad_y, batchless)
    per_group = problem.k // problem.groups
    counts: tuple[int, ...] = (1,)
    if problem.groups == 1:
        grad_y = as_one(grad_y, frame)
    else:
        grad_y, counts = apart(grad_y, frame, per_group)
    pairs = problem.padding if problem.pad_mode == "zeros" else ((0, 0),) * problem.ndim
    axes = spread(problem, pairs, problem.kernel, [grad_y.chunks[axis] for axis in frame.spatial])
    w = w.rechunk({0: _times(counts, per_group)} | dict.fromkeys(range(1, w.ndim), -1))
    inputs = [
        (haloed(grad_y, frame, axes, [axis.outputs for axis in axes]), frame.axes("n", "c", frame.space)),
        (w, ("c", "i", *frame.window)),
    ]
    plain = Geometry(
        stride=problem.stride, dilation=problem.dilation, groups=problem.groups, flip=problem.flip, layout=options.layout
    )
    block = functools.partial(spread_block, Call("conv_input_grad", plain, choice, current()), frame, per_group)
    chunks = {"c": _times(counts, problem.c // problem.groups)}
    chunks |= {name: axis.inputs for name, axis in zip(frame.space, axes, strict=True)}
    result = frame.axes("n", "c", frame.space)
    grad_x = folded(blockwise(block, result, [*inputs, *edges(axes, frame)], chunks, np_dtype(problem.out_dtype)), problem, frame)
    return grad_x[0] if batchless else grad_x


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
        As for `numconv.conv_weight_grad`. The sums of chunks are added up in the dtype of the result, in an order of their own.

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
    grad_y, x = _arrays("conv_weight_grad", grad_y=grad_y, x=x)
    problem, batchless = _problem("conv_weight_grad", x.shape, as_shape(w_shape, "w_shape"), x.dtype, options, choice)
    frame = Frame(problem.ndim, layout == "channels_last")
    _expect("conv_weight_grad", "grad_y", grad_y, frame.axes(problem.n, problem.k, problem.output)[batchless:])
    x, grad_y = _with_batch(x, batchless), _with_batch(grad_y, batchless)
    per_group = problem.c // problem.groups
    if problem.groups == 1:
        k_chunks, c_chunks = grad_y.chunks[frame.channel], x.chunks[frame.channel]
    else:
        x, counts = apart(x, frame, per_group)
        k_chunks, c_chunks = _times(counts, problem.k // problem.groups), (per_group,)
    x, pairs = padded(x, problem, frame)
    axes = gathered(problem, pairs, problem.kernel, [x.chunks[axis] for axis in frame.spatial])
    grad_y = grad_y.rechunk(dict(enumerate(frame.axes(x.chunks[0], k_chunks, [axis.outputs for axis in axes]))))
    x = haloed(x, frame, axes, [axis.inputs for axis in axes])
    inputs = [(grad_y, frame.axes("n", "k", frame.space)), (x, frame.axes("n", "c" if problem.groups == 1 else "k", frame.space))]
    summed = ("n", *frame.space)
    new = dict(zip(frame.window, problem.kernel, strict=True)) | ({} if problem.groups == 1 else {"c": per_group})
    chunks = {"k": k_chunks, "c": c_chunks} | dict.fromkeys(summed, 1)
    block = functools.partial(weight_block, Call("conv_weight_grad", options, choice, current()), frame, problem.kernel, per_group)
    result = (*summed, "k", "c", *frame.window)
    sums = blockwise(block, result, [*inputs, *edges(axes, frame)], chunks, np_dtype(problem.out_dtype), new)
    return sums.sum(axis=tuple(range(len(summed))), dtype=sums.dtype)


def conv_backward(
    grad_y: Any,
    x: Any,
    w: Any,
    *,
    needs: Sequence[str] = ("x", "w", "bias"),
    layout: str = "channels_first",
    **options: Any,
) -> ConvGrads:
    """`numconv.conv_backward` on Dask arrays.

    Parameters
    ----------
    grad_y : dask.array.Array ``[N, K, *Q]`` or ``[K, *Q]``
    x : dask.array.Array ``[N, C, *S]`` or ``[C, *S]``
    w : dask.array.Array or array ``[K, C/G, *R]``
    needs : sequence of {"x", "w", "bias"}
        Which gradients to return.
    layout, **options
        Those of `conv_input_grad`.

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
    needs = check_needs("conv_backward", needs)
    grad_y, x, w = _arrays("conv_backward", grad_y=grad_y, x=x, w=w)
    channel = grad_y.ndim - 1 if layout == "channels_last" else grad_y.ndim - w.ndim + 1
    others = tuple(axis for axis in range(grad_y.ndim) if axis != channel)
    return ConvGrads(
        conv_input_grad(grad_y, w, x.shape, layout=layout, **options) if "x" in needs else None,
        conv_weight_grad(grad_y, x, w.shape, layout=layout, **options) if "w" in needs else None,
        grad_y.sum(axis=others, dtype=grad_y.dtype) if "bias" in needs else None,
    )


def max_pool(
    x: Any,
    window: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    layout: str = "channels_first",
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
) -> Any:
    """`numconv.max_pool` on a Dask array.

    Parameters
    ----------
    x : dask.array.Array ``[N, C, *S]`` or ``[C, *S]``
    window, stride, padding, dilation, ceil_mode, layout, backend, algorithm, accuracy
        As for `numconv.max_pool`.

    Returns
    -------
    dask.array.Array ``[N, C, *Q]`` or ``[C, *Q]``

    Raises
    ------
    ProblemError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import dask.array as da, numconv.dask
    >>> numconv.dask.max_pool(da.arange(8.0, chunks=3)[None], (2,)).compute()
    array([[1., 3., 5., 7.]])
    """
    options = PoolGeometry(*pool_options(stride, padding, dilation, layout, ceil_mode))
    return _pooled("max_pool", x, window, options, Choice(backend, algorithm, accuracy))


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
) -> Any:
    """`numconv.avg_pool` on a Dask array.

    Parameters
    ----------
    x : dask.array.Array ``[N, C, *S]`` or ``[C, *S]``
    window, stride, padding, dilation, ceil_mode, count_include_pad, layout, backend, algorithm, accuracy, dtype
        As for `numconv.avg_pool`.

    Returns
    -------
    dask.array.Array ``[N, C, *Q]`` or ``[C, *Q]``

    Raises
    ------
    ProblemError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import dask.array as da, numconv.dask
    >>> numconv.dask.avg_pool(da.arange(8.0, chunks=3)[None], (2,)).compute()
    array([[0.5, 2.5, 4.5, 6.5]])
    """
    options = PoolGeometry(*pool_options(stride, padding, dilation, layout, ceil_mode, count_include_pad))
    return _pooled("avg_pool", x, window, options, Choice(backend, algorithm, accuracy, dtype))


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
) -> Any:
    """`numconv.lp_pool` on a Dask array.

    Parameters
    ----------
    x : dask.array.Array ``[N, C, *S]`` or ``[C, *S]``
    window, stride, padding, dilation, ceil_mode, p, layout, backend, algorithm, accuracy, dtype
        As for `numconv.lp_pool`.

    Returns
    -------
    dask.array.Array ``[N, C, *Q]`` or ``[C, *Q]``

    Raises
    ------
    ProblemError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import dask.array as da, numpy as np, numconv.dask
    >>> numconv.dask.lp_pool(da.from_array(np.array([[3.0, 4.0, 5.0, 12.0]]), chunks=1), (2,)).compute()
    array([[ 5., 13.]])
    """
    options = PoolGeometry(*pool_options(stride, padding, dilation, layout, ceil_mode, p=p))
    return _pooled("lp_pool", x, window, options, Choice(backend, algorithm, accuracy, dtype))


def _pooled(op: str, x: Any, window: Any, options: PoolGeometry, choice: Choice) -> Any:
    (x,) = _arrays(op, x=x)
    problem, batchless = _problem(op, x.shape, freeze(window, "window"), x.dtype, options, choice)
    frame = Frame(problem.ndim, options.layout == "channels_last")
    x = _with_batch(x, batchless)
    axes = gathered(problem, problem.padding, problem.window, [x.chunks[axis] for axis in frame.spatial])
    names = frame.axes("n", "c", frame.space)
    inputs = [(haloed(x, frame, axes, [axis.inputs for axis in axes]), names), *edges(axes, frame)]
    block = functools.partial(pool_block, Call(op, options, choice, current()), problem.window)
    y = blockwise(block, names, inputs, _outputs(frame, axes), np_dtype(problem.out_dtype))
    return y[0] if batchless else y


# --- arguments -----------------------------------------------------------------------------------------------------------------


def _arrays(op: str, **given: Any) -> list[Any]:
    """Dask arrays of known chunks and one dtype; other arrays become one chunk."""
    found: list[Any] = []
    first = ""
    for name, value in given.items():
        if value is None:
            if name != "bias":
                raise ProblemError(f"numconv.dask.{op}: {name} is None; give an array")
            found.append(None)
            continue
        array = value if isinstance(value, da.Array) else da.from_array(np.asarray(value), chunks=-1)
        if any(np.isnan(size) for size in array.shape):
            raise ProblemError(f"numconv.dask.{op}: {name} has chunks of unknown sizes; call {name}.compute_chunk_sizes() first")
        first = first or name
        if found and array.dtype != found[0].dtype:
            raise ProblemError(
                f"numconv.dask.{op}: {first} has dtype {found[0].dtype} and {name} has {array.dtype}: all arrays of a call have "
                f"one dtype; convert one of them, for example {name}.astype({str(found[0].dtype)!r})"
            )
        found.append(array)
    return found


def _problem(op: str, x_shape: Any, w_shape: Any, dtype: Any, options: Any, choice: Choice, bias: bool = False) -> Any:
    """The problem of the whole, checked, and whether its arrays have no N."""
    request = make_request(op, x_shape, w_shape, dtype, options, choice, current(), bias)
    if choice.backend is not None:
        default_registry().check_names((choice.backend,), request.asked)
    return problem_of(request)


def _expect(op: str, name: str, array: Any, shape: tuple[int, ...]) -> None:
    if array is not None and array.shape != shape:
        raise ProblemError(f"numconv.dask.{op}: {name} has shape {array.shape}, and must have {shape}")


def _with_batch(array: Any, batchless: bool) -> Any:
    return array[None] if batchless else array


def _times(counts: tuple[int, ...], each: int) -> tuple[int, ...]:
    return tuple(count * each for count in counts)


def _outputs(frame: Frame, axes: Any) -> dict[str, tuple[int, ...]]:
    return {name: axis.outputs for name, axis in zip(frame.space, axes, strict=True)}
