"""Pooling and its gradients on Dask arrays, and maxima put back: every check, then the blocks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from numconv.arguments import PoolGeometry, flag, freeze, pool_options
from numconv.arguments import shape as as_shape
from numconv.context import current
from numconv.dispatch import Choice
from numconv.errors import ProblemError
from numconv.plugin import np_dtype

from . import checks
from .blocks import (
    Call,
    Frame,
    blockwise,
    edges,
    gathered,
    haloed,
    item,
    maxima_block,
    pool_block,
    share_block,
    shared,
    started,
    unpool_block,
)

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
) -> Any:
    """`numconv.max_pool` on a Dask array.

    Parameters
    ----------
    x : dask.array.Array ``[N, C, *S]`` or ``[C, *S]``
    window, stride, padding, dilation, ceil_mode, layout, return_indices, backend, algorithm, accuracy, dtype
        As for `numconv.max_pool`.

    Returns
    -------
    y : dask.array.Array ``[N, C, *Q]`` or ``[C, *Q]``
    indices : dask.array.Array of int64, of y's shape and chunks
        Only with `return_indices`: positions in the volume of the whole array, whatever its chunks.

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
    wanted = flag(return_indices, "return_indices")
    options = PoolGeometry(*pool_options(stride, padding, dilation, layout, ceil_mode, indices=wanted))
    return _pooled("max_pool", x, window, options, Choice(backend, algorithm, accuracy, dtype))


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
) -> Any:
    """`numconv.max_pool_backward` on Dask arrays.

    Parameters
    ----------
    grad_y : dask.array.Array ``[N, C, *Q]`` or ``[C, *Q]``
    x : dask.array.Array ``[N, C, *S]`` or ``[C, *S]``
    indices : dask.array.Array of int64, of y's shape, optional
        Those that `max_pool` returned; without them the winners are found again, in each chunk with what its windows reach.
    window, stride, padding, dilation, ceil_mode, layout, backend, algorithm, accuracy, dtype
        As for `numconv.max_pool_backward`.

    Returns
    -------
    dask.array.Array of x's shape
        With chunks along space where grad_y has them.

    Raises
    ------
    ProblemError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import dask.array as da, numpy as np, numconv.dask
    >>> x = da.from_array(np.array([[1.0, 5.0, 2.0, 7.0, 8.0]]), chunks=2)
    >>> numconv.dask.max_pool_backward(da.ones((1, 4), chunks=2), x, (2,), stride=1).compute()
    array([[0., 2., 0., 1., 1.]])
    """
    options = PoolGeometry(*pool_options(stride, padding, dilation, layout, ceil_mode, indices=indices is not None))
    choice = Choice(backend, algorithm, accuracy, dtype)
    grad_y, x, indices = checks.arrays("max_pool_backward", grad_y=grad_y, x=x, indices=indices)
    return _shared("max_pool_backward", x.shape, grad_y, None if options.indices else x, indices, window, options, choice)


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
) -> Any:
    """`numconv.max_unpool` on Dask arrays, with any chunks of the batch and the channels.

    Parameters
    ----------
    y : dask.array.Array ``[N, C, *Q]``
        In one chunk along space, since an index may be any position of the volume.
    indices : dask.array.Array of int64, of y's shape
        In one chunk along space.
    x_shape : sequence of int
    ndim, layout, backend, algorithm, accuracy, dtype
        As for `numconv.max_unpool`.

    Returns
    -------
    dask.array.Array of shape `x_shape`
        In one chunk along space.

    Raises
    ------
    ProblemError, UnknownBackendError
        As for `conv`; also if an array has several chunks along space.

    Examples
    --------
    >>> import dask.array as da, numconv.dask
    >>> x = da.arange(8.0, chunks=4).reshape(1, 2, 4)
    >>> y, indices = numconv.dask.max_pool(x, 2, return_indices=True)
    >>> numconv.dask.max_unpool(y, indices, x.shape).compute()
    array([[[0., 1., 0., 3.],
            [0., 5., 0., 7.]]])
    """
    y, indices = checks.arrays("max_unpool", y=y, indices=indices)
    options = PoolGeometry(*pool_options(layout=layout, ndim=ndim))
    shape = as_shape(x_shape, "x_shape")
    checks.expect("max_unpool", "indices", indices, y.shape)
    return _unpooled("max_unpool", "y", y, indices, (shape, y.shape), options, Choice(backend, algorithm, accuracy, dtype))


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
) -> Any:
    """`numconv.max_unpool_backward` on Dask arrays, with any chunks of the batch and the channels.

    Parameters
    ----------
    grad : dask.array.Array ``[N, C, *S]``
        In one chunk along space.
    indices : dask.array.Array of int64 ``[N, C, *Q]``
        In one chunk along space.
    ndim, layout, backend, algorithm, accuracy, dtype
        As for `numconv.max_unpool_backward`.

    Returns
    -------
    dask.array.Array of the shape of `indices`

    Raises
    ------
    ProblemError, UnknownBackendError
        As for `max_unpool`.

    Examples
    --------
    >>> import dask.array as da, numpy as np, numconv.dask
    >>> numconv.dask.max_unpool_backward(da.arange(4.0)[None, None], np.array([[[1, 3]]])).compute()
    array([[[1., 3.]]])
    """
    grad, indices = checks.arrays("max_unpool_backward", grad=grad, indices=indices)
    options = PoolGeometry(*pool_options(layout=layout, ndim=ndim))
    choice = Choice(backend, algorithm, accuracy, dtype)
    return _unpooled("max_unpool_backward", "grad", grad, indices, (grad.shape, indices.shape), options, choice)


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
) -> Any:
    """`numconv.avg_pool_backward` on Dask arrays.

    Parameters
    ----------
    grad_y : dask.array.Array ``[N, C, *Q]`` or ``[C, *Q]``
    x_shape : sequence of int
    window, stride, padding, dilation, ceil_mode, count_include_pad, layout, backend, algorithm, accuracy, dtype
        As for `numconv.avg_pool_backward`.

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
    >>> import dask.array as da, numconv.dask
    >>> numconv.dask.avg_pool_backward(da.ones((1, 4), chunks=2), (1, 5), (2,), stride=1).compute()
    array([[0.5, 1. , 1. , 1. , 0.5]])
    """
    options = PoolGeometry(*pool_options(stride, padding, dilation, layout, ceil_mode, count_include_pad))
    choice = Choice(backend, algorithm, accuracy, dtype)
    (grad_y,) = checks.arrays("avg_pool_backward", grad_y=grad_y)
    return _shared("avg_pool_backward", as_shape(x_shape, "x_shape"), grad_y, None, None, window, options, choice)


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
) -> Any:
    """`numconv.lp_pool_backward` on Dask arrays.

    Parameters
    ----------
    grad_y : dask.array.Array ``[N, C, *Q]`` or ``[C, *Q]``
    x : dask.array.Array ``[N, C, *S]`` or ``[C, *S]``
    window, p, stride, padding, dilation, ceil_mode, layout, backend, algorithm, accuracy, dtype
        As for `numconv.lp_pool_backward`.

    Returns
    -------
    dask.array.Array of x's shape
        With chunks along space where grad_y has them.

    Raises
    ------
    ProblemError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import dask.array as da, numpy as np, numconv.dask
    >>> x = da.from_array(np.array([[3.0, -4.0, 6.0, 8.0]]), chunks=2)
    >>> numconv.dask.lp_pool_backward(da.ones((1, 2), chunks=1), x, (2,)).compute().round(3)
    array([[ 0.6, -0.8,  0.6,  0.8]])
    """
    options = PoolGeometry(*pool_options(stride, padding, dilation, layout, ceil_mode, p=p))
    choice = Choice(backend, algorithm, accuracy, dtype)
    grad_y, x = checks.arrays("lp_pool_backward", grad_y=grad_y, x=x)
    return _shared("lp_pool_backward", x.shape, grad_y, x, None, window, options, choice)


def _pooled(op: str, x: Any, window: Any, options: PoolGeometry, choice: Choice) -> Any:
    (x,) = checks.arrays(op, x=x)
    problem, batchless = checks.problem(op, x.shape, freeze(window, "window"), x.dtype, options, choice)
    frame = Frame(problem.ndim, options.layout == "channels_last")
    x = checks.with_batch(x, batchless)
    axes = gathered(problem, problem.padding, problem.window, [x.chunks[axis] for axis in frame.spatial])
    names, chunks, dtype = frame.axes("n", "c", frame.space), checks.outputs(frame, axes), np_dtype(problem.out_dtype)
    call, read = Call(op, options, choice, current()), haloed(x, frame, axes, [axis.inputs for axis in axes])
    if not options.indices:
        block = functools.partial(pool_block, call, problem.window)
        y = blockwise(block, names, [(read, names), *edges(axes, frame)], chunks, dtype)
        return y[0] if batchless else y
    block = functools.partial(maxima_block, call, frame, problem.window, problem.spatial)
    both = blockwise(block, names, [(read, names), *edges(started(axes), frame)], chunks, dtype)
    kinds = (dtype, np.dtype(np.int64))
    parts = [both.map_blocks(item, which, dtype=kind, meta=both._meta.astype(kind)) for which, kind in enumerate(kinds)]
    return tuple(each[0] if batchless else each for each in parts)


def _shared(op: str, x_shape: Any, grad_y: Any, x: Any, indices: Any, window: Any, options: PoolGeometry, choice: Choice) -> Any:
    """The gradient of a pooling, from x where it needs that."""
    problem, batchless = checks.problem(op, x_shape, freeze(window, "window"), grad_y.dtype, options, choice)
    frame = Frame(problem.ndim, options.layout == "channels_last")
    y_shape = frame.axes(problem.n, problem.c, problem.output)[batchless:]
    checks.expect(op, "grad_y", grad_y, y_shape)
    checks.expect(op, "indices", indices, y_shape)
    grad_y = checks.with_batch(grad_y, batchless)
    axes = shared(problem, [grad_y.chunks[axis] for axis in frame.spatial])
    of_y = [axis._replace(halo=(axis.halo[0] // stride, 0)) for axis, stride in zip(axes, problem.stride, strict=True)]
    names = frame.axes("n", "c", frame.space)
    outer = {axis: grad_y.chunks[axis] for axis in (0, frame.channel)}
    given = [(grad_y, of_y, [axis.outputs for axis in axes])]
    if x is not None:
        given.append((checks.with_batch(x, batchless).rechunk(outer), axes, [axis.inputs for axis in axes]))
    if indices is not None:
        given.append((checks.with_batch(indices, batchless).rechunk(outer), of_y, [axis.outputs for axis in axes]))
    inputs = [(haloed(array, frame, halos, chunks), names) for array, halos, chunks in given]
    block = functools.partial(share_block, Call(op, options, choice, current()), frame, problem.window, problem.spatial)
    chunks = {name: axis.inputs for name, axis in zip(frame.space, axes, strict=True)}
    grad_x = blockwise(block, names, [*inputs, *edges(axes, frame)], chunks, np_dtype(problem.out_dtype))
    return grad_x[0] if batchless else grad_x


def _unpooled(op: str, name: str, array: Any, indices: Any, shapes: tuple[Any, Any], options: PoolGeometry, choice: Choice) -> Any:
    """`max_unpool` of the array, or its gradient."""
    problem, batchless = checks.problem(op, *shapes, array.dtype, options, choice)
    frame = Frame(problem.ndim, options.layout == "channels_last")
    for what, each in ((name, array), ("indices", indices)):
        along = {axis - batchless: each.numblocks[axis - batchless] for axis in frame.spatial}
        if max(along.values()) > 1:
            counts = ", ".join(map(str, along.values()))
            raise ProblemError(
                f"numconv.dask.{op}: {what} has {counts} chunks along space, and must have 1, since an index may be any position "
                f"of the volume; call {what}.rechunk({dict.fromkeys(along, -1)}), with smaller chunks of the batch and the channels"
            )
    array, indices = checks.with_batch(array, batchless), checks.with_batch(indices, batchless)
    indices = indices.rechunk({axis: array.chunks[axis] for axis in (0, frame.channel)})
    names = frame.axes("n", "c", frame.space)
    sizes = problem.output if op == "max_unpool_backward" else problem.spatial
    chunks = dict(zip(frame.space, [(size,) for size in sizes], strict=True))
    call = Call(op, options._replace(ndim=problem.ndim), choice, current())
    block = functools.partial(unpool_block, call, frame, problem.spatial)
    result = blockwise(block, names, [(array, names), (indices, names)], chunks, np_dtype(problem.out_dtype))
    return result[0] if batchless else result
