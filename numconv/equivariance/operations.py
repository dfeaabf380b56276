"""Layers as operations to measure: convolutions with each border, strides, pooling, group convolutions, a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from numconv.errors import ProblemError
from numconv.functional import avg_pool, conv, conv_transpose, max_pool

from .transforms import Transform

__all__ = ["OPERATIONS", "Operation", "operation"]

Array = np.ndarray[Any, Any]
_CHANNELS = 4
"""Output channels of each operation (times the elements of the group)."""


class Operation(NamedTuple):
    """A function whose equivariance is asked for.

    Attributes
    ----------
    name : str
        As tables show it.
    f : callable
        From ``[N, C, *S]`` to ``[N, K, *Q]``.
    channels : callable
        From a transformation to how it permutes the output channels, or to None if they stay.
    pooled : bool
        Whether the mean over all positions follows.
    """

    name: str
    f: Callable[[Any], Any]
    channels: Callable[[Transform], Sequence[int] | None] = lambda _: None
    pooled: bool = False


def operation(name: str, x: Any, seed: int = 0) -> Operation:
    """One of `OPERATIONS`, for inputs like x, with random weights.

    Parameters
    ----------
    name : str
    x : array ``[N, C, *S]``
        Its channels, dimensions and dtype count.
    seed : int
        Of the weights.

    Returns
    -------
    Operation

    Raises
    ------
    ProblemError
        If there is no such operation, or not in so many dimensions.

    Examples
    --------
    >>> import numpy as np
    >>> from numconv.equivariance import operation
    >>> operation("max pool 2", np.ones((1, 3, 8, 8))).f(np.ones((1, 3, 8, 8))).shape
    (1, 3, 4, 4)
    """
    if name not in OPERATIONS:
        raise ProblemError(f"no operation is called {name!r}; known are {', '.join(OPERATIONS)}")
    dimensions, make = OPERATIONS[name]
    if x.ndim - 2 not in dimensions:
        raise ProblemError(
            f"{name!r} is for {' or '.join(map(str, dimensions))} spatial dimensions, and x {x.shape} has {x.ndim - 2}"
        )
    return make(name, np.asarray(x), seed)


def _weights(x: Array, seed: int, window: int, channels: int | None = None, layer: int = 0) -> Array:
    """Weights ``[4, C, *R]`` that keep the size of values (He 2015)."""
    shape = (_CHANNELS, x.shape[1] if channels is None else channels, *(window,) * (x.ndim - 2))
    spread = np.sqrt(2 / np.prod(shape[1:]))
    return np.asarray(np.random.default_rng((seed, layer)).normal(0, spread, shape)).astype(x.dtype)


def _conv(**options: Any) -> Callable[[str, Array, int], Operation]:
    def make(name: str, x: Array, seed: int) -> Operation:
        w = _weights(x, seed, 3)
        return Operation(name, lambda x: conv(x, w, padding=1, **options))

    return make


def _conv_transpose(name: str, x: Array, seed: int) -> Operation:
    w = _weights(x, seed, 4).swapaxes(0, 1)
    return Operation(name, lambda x: conv_transpose(x, w, stride=2, padding=1))


def _pool(function: Callable[..., Any]) -> Callable[[str, Array, int], Operation]:
    return lambda name, *_: Operation(name, lambda x: function(x, 2))


def _network(name: str, x: Array, seed: int) -> Operation:
    """Two convolutions with ReLU, of which a global average pooling follows."""
    first, second = _weights(x, seed, 3), _weights(x, seed, 3, _CHANNELS, layer=1)

    def f(x: Any) -> Any:
        return conv(conv(x, first, padding=1, activation="relu"), second, padding=1, activation="relu")

    return Operation(name, f, pooled=True)


def _group(group: str) -> Callable[[str, Array, int], Operation]:
    """A lifting layer, ReLU and a group convolution, whose members a transformation permutes as its nearest element does."""

    def make(name: str, x: Array, seed: int) -> Operation:
        from numconv import nn
        from numconv.nn.symmetry import symmetry_group

        model = nn.Sequential(
            nn.GroupLift(_CHANNELS, 3, group=group, padding=1),
            nn.ReLU(),
            nn.GroupConv(_CHANNELS, 3, group=group, padding=1),
        )
        model.build(x.shape[1:], rng=seed, dtype=x.dtype)
        elements = symmetry_group(group)
        return Operation(name, model, lambda transform: elements.channels(elements.nearest(transform.matrix), _CHANNELS).tolist())

    return make


OPERATIONS: dict[str, tuple[tuple[int, ...], Callable[[str, Array, int], Operation]]] = {
    "conv circular": ((1, 2, 3), _conv(pad_mode="circular")),
    "conv zeros": ((1, 2, 3), _conv()),
    "conv stride 2": ((1, 2, 3), _conv(pad_mode="circular", stride=2)),
    "max pool 2": ((1, 2, 3), _pool(max_pool)),
    "avg pool 2": ((1, 2, 3), _pool(avg_pool)),
    "conv transpose": ((1, 2, 3), _conv_transpose),
    "mirror conv": ((1,), _group("mirror")),
    "p4 conv": ((2,), _group("p4")),
    "p4m conv": ((2,), _group("p4m")),
    "cube conv": ((3,), _group("cube")),
    "net, global pool": ((1, 2, 3), _network),
}
"""The operations of the report: in how many spatial dimensions, and how to make them."""
