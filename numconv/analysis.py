"""What a convolution is, looked at from outside: the field that one output sees, and the matrix that it multiplies by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .arguments import freeze
from .errors import ProblemError
from .functional import pad, unfold

__all__ = ["ReceptiveField", "as_matrix", "receptive_field"]


class ReceptiveField(NamedTuple):
    """What one output of a stack of layers sees, per spatial dimension.

    Attributes
    ----------
    size : tuple of int
        Number of inputs from the first to the last one seen.
    stride : tuple of int
        Distance, in inputs, between the fields of neighbouring outputs.
    start : tuple of int
        The first input that output 0 sees; negative in the padding.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    start: tuple[int, ...]


def receptive_field(layers: Sequence[Any]) -> ReceptiveField:
    """The receptive field of a stack of convolutions and poolings.

    Parameters
    ----------
    layers : sequence
        First layer first; each a mapping with ``kernel`` and optionally ``stride``, ``dilation`` and ``padding`` (low side), or a
        tuple in this order. Each value is an int or one int a spatial dimension.

    Returns
    -------
    ReceptiveField

    Raises
    ------
    ProblemError
        If a layer is of another form, or layers disagree on the number of dimensions.

    References
    ----------
    A. Araujo, W. Norris and J. Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill, 2019.

    Examples
    --------
    >>> import numconv as nc
    >>> nc.receptive_field([dict(kernel=3), dict(kernel=2, stride=2), dict(kernel=3, dilation=2)])
    ReceptiveField(size=(12,), stride=(2,), start=(0,))
    """
    if not isinstance(layers, Iterable):
        raise ProblemError(f"receptive_field: layers={layers!r} must be a sequence of layers")
    parsed = [_layer(layer, position) for position, layer in enumerate(layers)]
    if not parsed:
        raise ProblemError("receptive_field: there are no layers; give at least one")
    ndim = max(len(value) for layer in parsed for value in layer)
    size, jump, start = [1] * ndim, [1] * ndim, [0] * ndim
    for position, layer in enumerate(parsed):
        bad = [value for value in layer if len(value) not in (1, ndim)]
        if bad:
            raise ProblemError(
                f"receptive_field: layer {position} has {len(bad[0])} spatial dimensions ({bad[0]}), another has {ndim}"
            )
        for axis, (r, s, d, low) in enumerate(zip(*(v * ndim if len(v) == 1 else v for v in layer), strict=True)):
            size[axis] += d * (r - 1) * jump[axis]
            start[axis] -= low * jump[axis]
            jump[axis] *= s
    return ReceptiveField(tuple(size), tuple(jump), tuple(start))


def _layer(layer: Any, position: int) -> list[tuple[int, ...]]:
    names = ("kernel", "stride", "dilation", "padding")
    if isinstance(layer, Mapping):
        unknown = sorted(set(layer) - set(names))
        if unknown or "kernel" not in layer:
            raise ProblemError(
                f"receptive_field: layer {position} is {dict(layer)!r}; it needs kernel, and may have stride, dilation, padding"
            )
        values = [layer.get(name, default) for name, default in zip(names, (None, 1, 1, 0), strict=True)]
    else:
        given = tuple(layer) if isinstance(layer, Iterable) else (layer,)
        if not 1 <= len(given) <= 4:
            raise ProblemError(
                f"receptive_field: layer {position} has {len(given)} entries; give (kernel, stride, dilation, padding)"
            )
        values = [*given, *(1, 1, 0)[len(given) - 1 :]]
    frozen = [freeze(value, name) for value, name in zip(values, names, strict=True)]
    result = [(value,) if isinstance(value, int) else value for value in frozen]
    for name, value, least in zip(names, result, (1, 1, 1, 0), strict=True):
        if not value or not all(isinstance(v, int) and v >= least for v in value):
            raise ProblemError(f"receptive_field: layer {position} has {name}={value!r}; give integers of at least {least}")
    return result


def as_matrix(
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
) -> Any:
    """The sparse matrix A with ``conv(x, w).ravel() == A @ x.ravel()``: a Toeplitz matrix in one dimension with one channel.

    A convolution is a perceptron whose weights are shared between positions and zero outside the kernel; this matrix shows it.

    Parameters
    ----------
    w : array ``[K, C/G, *R]``
    x_shape : sequence of int
        ``[C, *S]``, or ``[N, C, *S]`` for a block-diagonal matrix over the batch; C last with ``layout="channels_last"``.
    stride, padding, dilation, groups, pad_mode, flip, layout
        As for `conv`.

    Returns
    -------
    scipy.sparse.csr_array ``[K*prod(Q), C*prod(S)]``

    Raises
    ------
    ProblemError
        If shapes and options do not make a convolution.

    Examples
    --------
    >>> import numpy as np, numconv as nc
    >>> nc.as_matrix(np.array([[[1, 2, 3]]]), (1, 5)).toarray()
    array([[1, 2, 3, 0, 0],
           [0, 1, 2, 3, 0],
           [0, 0, 1, 2, 3]])
    """
    from scipy import sparse

    from .planning import explain

    w = np.asarray(w)
    options: dict[str, Any] = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "pad_mode": pad_mode,
        "flip": flip,
        "layout": layout,
    }
    problem = explain("conv", x_shape, w.shape, "int64", **options).problem
    positions = _read_positions(problem)
    k, per_group = problem.k, problem.c // problem.groups
    taps, outputs, volume = math.prod(problem.kernel), math.prod(problem.output), math.prod(problem.spatial)
    kernel = np.flip(w, tuple(range(2, w.ndim))) if flip else w
    first = np.arange(k) // (k // problem.groups) * per_group
    channel = first[:, None] + np.arange(per_group)
    shape = (k, per_group, taps, outputs)
    # elements from a channel to the next, and from a position to the next, of y and of x
    of_y, of_x = ((1, k), (1, problem.c)) if layout == "channels_last" else ((outputs, 1), (volume, 1))
    row = np.broadcast_to(np.arange(k)[:, None, None, None] * of_y[0] + np.arange(outputs) * of_y[1], shape)
    column = channel[:, :, None, None] * of_x[0] + positions * of_x[1]
    value = np.broadcast_to(kernel.reshape(k, per_group, taps, 1), shape)
    inside = np.broadcast_to(positions >= 0, shape)
    entries = (value[inside], (row[inside], column[inside]))
    matrix = sparse.csr_array(sparse.coo_array(entries, shape=(k * outputs, problem.c * volume)))
    return (
        matrix if len(x_shape) == w.ndim - 1 else sparse.csr_array(sparse.kron(sparse.eye_array(problem.n, dtype=w.dtype), matrix))
    )


def _read_positions(problem: Any) -> np.ndarray[Any, Any]:
    """``[prod(R), prod(Q)]``: the flat position in a channel of x that each tap reads for each output, -1 for a padding zero."""
    numbers = np.arange(1, 1 + math.prod(problem.spatial)).reshape(1, *problem.spatial)
    padded = pad(numbers, problem.padding, problem.pad_mode)
    columns: np.ndarray[Any, Any] = unfold(padded, problem.kernel, stride=problem.stride, dilation=problem.dilation)
    return columns - 1
