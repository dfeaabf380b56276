"""Group convolutions: layers that are equivariant to rotations and reflections by construction, as convolutions are to shifts.

A map on a group of G elements is an array ``[N, C * G, *S]``: channel ``c * G + g`` is member g of channel c, so that all other
layers, such as ReLU and poolings over windows, apply to it as it is. Each layer here expands its kernels by index maps into those
of one ordinary convolution; gradients go back by the same maps.

References
----------
T. S. Cohen and M. Welling, "Group Equivariant Convolutional Networks", ICML 2016, sections 5 to 7.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from numconv import functional
from numconv.errors import ProblemError
from numconv.planning import output_shape

from .convolution import he_normal
from .devices import namespace
from .layer import Array, Backward, Grads, Layer, Shape, check_counts, check_flags
from .normalisation import BatchNorm
from .symmetry import Group, symmetry_group

__all__ = ["GroupBatchNorm", "GroupConv", "GroupLift", "GroupPool", "MemberPool", "channels_of"]


def channels_of(layer: Layer, shape: Shape, members: int) -> int:
    """C of an input ``[C * members, *S]``."""
    if shape[0] % members:
        raise ProblemError(
            f"{layer!r}: the input {shape} without N has {shape[0]} channels, no multiple of {members}; lift it before"
        )
    return shape[0] // members


@dataclass(eq=False, repr=False)
class _GroupConvolution(Layer, abstract=True):
    """Kernels on `_members` members, expanded to one for each element of the group."""

    activations = frozenset({"relu", "silu", "gelu"})
    channels: int
    window: int
    group: str = "p4"
    stride: Any = 1
    padding: Any = 0
    pad_mode: str = "zeros"
    bias: bool = True

    def __post_init__(self) -> None:
        self._elements()  # an unknown group is refused now
        check_counts(self, "channels")
        check_flags(self, "bias")
        window: Any = self.window
        if not isinstance(window, int | np.integer):
            raise ProblemError(f"{type(self).__name__}: window={window!r} must be an int: a kernel that turns has equal sides")
        self._options = {name: getattr(self, name) for name in ("stride", "padding", "pad_mode")}

    def _elements(self) -> Group:
        return symmetry_group(self.group)

    def _members(self) -> int:
        raise NotImplementedError

    def _sources(self) -> np.ndarray[Any, Any]:
        """``[G, members * prod(R)]``: where each weight of each expanded kernel comes from."""
        raise NotImplementedError

    def _kernel(self, shape: Shape) -> Shape:
        """The shape of the weights without the axis of members: ``[K, C, *R]``."""
        ndim = self._elements().ndim
        if len(shape) != ndim + 1:
            raise ProblemError(f"{self!r}: {self.group!r} acts on {ndim} spatial dimensions, and the input without N is {shape}")
        return (self.channels, channels_of(self, shape, self._members()), *(self.window,) * ndim)

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of y for an x of this shape, both without N."""
        k, _, *window = self._kernel(shape)
        return output_shape("conv", shape, (k * self._elements().order, shape[0], *window), **self._options)

    def initial(self, shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        """The parameters to begin with, for an x of this shape."""
        k, c, *window = self._kernel(shape)
        members = self._members()
        w_shape = (k, c, *((members,) if members > 1 else ()), *window)
        w = {"w": he_normal(w_shape, math.prod(w_shape[1:]), rng)}
        return w | ({"bias": np.zeros(k)} if self.bias else {})

    def forward(self, x: Array, training: bool = False, rng: Any = None, activation: str | None = None) -> tuple[Array, Backward]:
        """Compute y, and the function that takes the gradient of what `activation` was applied to back; see `Layer.forward`."""
        w, bias = self.parameters["w"], self.parameters.get("bias")
        k, order = w.shape[0], self._elements().order
        kernels = expand(w, self._sources(), self._elements().ndim)
        y = functional.conv(x, kernels, None if bias is None else bias.repeat(order), activation=activation, **self._options)

        def backward(grad_y: Array, needs_x: bool = True) -> tuple[Array, Grads]:
            needs = ("x", "w", "bias")[0 if needs_x else 1 : 2 if bias is None else 3]
            found = functional.conv_backward(grad_y, x, kernels, needs=needs, **self._options)
            grads = {"w": fold(found.w, self._sources(), w.shape)}
            if bias is not None:
                grads["bias"] = found.bias.reshape(k, order).sum(axis=1)
            return found.x, grads

        return y, backward

    def flops(self, shape: Shape) -> int:
        """Multiplications and additions for one x of this shape, each counted; padding counts too."""
        return 2 * math.prod(self.output_shape(shape)) * math.prod((shape[0], *(self.window,) * (len(shape) - 1)))


def expand(w: Array, sources: np.ndarray[Any, Any], ndim: int) -> Array:
    """The kernels of the ordinary convolution, from those of a layer.

    Parameters
    ----------
    w : array ``[K, C, *R]`` or ``[K, C, H, *R]``
        With `ndim` spatial dimensions, on H members.
    sources : array of int ``[G, H * prod(R)]``
        From where in ``[H, *R]`` each weight of the kernel for each element comes.

    Returns
    -------
    array ``[K * G, C * H, *R]``
    """
    xp, (k, c), order = namespace(w), w.shape[:2], len(sources)
    turned = xp.take(w.reshape(k, c, -1), xp.asarray(sources.reshape(-1)), axis=2).reshape(k, c, order, -1)
    return turned.swapaxes(1, 2).reshape(k * order, -1, *w.shape[-ndim:])


def fold(grad: Array, sources: np.ndarray[Any, Any], w_shape: Shape) -> Array:
    """The adjoint of `expand`: the gradient of the expanded kernels, added up where their weights come from."""
    xp, (k, c), order = namespace(grad), w_shape[:2], len(sources)
    # each weight occurs once for each element: the inverse map gathers, where the map itself would have to scatter
    places = np.argsort(sources, axis=1) + sources.shape[1] * np.arange(order)[:, None]
    parts = grad.reshape(k, order, c, -1).swapaxes(1, 2).reshape(k, c, -1)
    return xp.take(parts, xp.asarray(places.reshape(-1)), axis=2).reshape(k, c, order, -1).sum(axis=2).reshape(w_shape)


class GroupLift(_GroupConvolution):
    """From an image to a map on a group: each kernel in all its rotations and reflections.

    Parameters
    ----------
    channels : int
        K; the output has K times as many channels as the group has elements.
    window : int
        R, in all dimensions alike.
    group : {"p4", "p4m", "mirror", "cube", "cube_m"}
        Quarter turns of the plane, or these and reflections; reflection of a line; rotations of a cube, or these and reflections.
    stride, padding, pad_mode
        As for `numconv.conv`. What is not the same on both sides of a dimension, or in two dimensions, breaks the equivariance.
    bias : bool
        Whether a learned number is added to each channel, the same for its members.

    Notes
    -----
    Parameters: ``w [K, C, *R]``, by He's initialisation, and ``bias [K]``. Member g of output channel k is the convolution with
    ``w[k]`` turned by g (Cohen and Welling 2016, section 6.1). If x is turned by u, then y is, and its members go to where u brings
    them.

    Examples
    --------
    >>> from numconv import nn
    >>> layer = nn.GroupLift(8, 3, padding=1).build((1, 9, 9))
    >>> layer.output_shape((1, 9, 9)), layer.parameters["w"].shape
    ((32, 9, 9), (8, 1, 3, 3))
    """

    def _members(self) -> int:
        return 1

    def _sources(self) -> np.ndarray[Any, Any]:
        return _taps(self.group, self.window)


class GroupConv(_GroupConvolution):
    """From a map on a group to another one: each kernel has weights for all members, and is applied in all its rotations.

    Parameters
    ----------
    channels, window, group, stride, padding, pad_mode, bias
        As for `GroupLift`.

    Notes
    -----
    Parameters: ``w [K, C, G, *R]``, by He's initialisation, and ``bias [K]``. Member g of output channel k is the convolution with
    the kernel that has ``w[k, c, g^-1 h]``, turned by g, for member h of input channel c (Cohen and Welling 2016, section 6.1).

    Examples
    --------
    >>> from numconv import nn
    >>> layer = nn.GroupConv(4, 3, group="p4m", padding=1).build((16, 9, 9))
    >>> layer.output_shape((16, 9, 9)), layer.parameters["w"].shape
    ((32, 9, 9), (4, 2, 8, 3, 3))
    """

    def _members(self) -> int:
        return self._elements().order

    def _sources(self) -> np.ndarray[Any, Any]:
        return _members_and_taps(self.group, self.window)


@functools.cache
def _taps(group: str, window: int) -> np.ndarray[Any, Any]:
    return symmetry_group(group).taps(window)


@functools.cache
def _members_and_taps(group: str, window: int) -> np.ndarray[Any, Any]:
    return symmetry_group(group).members_and_taps(window)


class MemberPool(Layer, abstract=True):
    """Pooling over the members of each channel, ``[N, C * M, *S]`` to ``[N, C, *S]``; derived layers say what M is."""

    mode: str

    def __post_init__(self) -> None:
        mode: Any = self.mode
        if not isinstance(mode, str) or mode not in ("max", "avg"):
            raise ProblemError(f"{type(self).__name__}: mode={self.mode!r} is not max or avg")

    def members(self) -> int:
        """M."""
        raise NotImplementedError

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of y for an x of this shape, both without N."""
        return (channels_of(self, shape, self.members()), *shape[1:])

    def forward(self, x: Array, training: bool = False, rng: Any = None) -> tuple[Array, Backward]:
        """Compute y, and the function that takes its gradient back; see `Layer.forward`."""
        members = self.members()
        channels = channels_of(self, x.shape[1:], members)
        columns = x.reshape(x.shape[0], channels, members, math.prod(x.shape[2:]))
        window = (members, 1)
        pooled = functional.max_pool(columns, window) if self.mode == "max" else functional.avg_pool(columns, window)

        def backward(grad_y: Array, needs_x: bool = True) -> tuple[Array, Grads]:
            if not needs_x:
                return None, {}
            grad = grad_y.reshape(pooled.shape)
            if self.mode == "max":
                return functional.max_pool_backward(grad, columns, window).reshape(x.shape), {}
            return functional.avg_pool_backward(grad, columns.shape, window).reshape(x.shape), {}

        return pooled.reshape(x.shape[0], channels, *x.shape[2:]), backward

    def flops(self, shape: Shape) -> int:
        """One operation for each element of one x of this shape."""
        return math.prod(shape)


@dataclass(eq=False, repr=False)
class GroupPool(MemberPool):
    """The largest (or average) member of each channel: what is left moves with the input, and has no orientation.

    Parameters
    ----------
    group : {"p4", "p4m", "mirror", "cube", "cube_m"}
    mode : {"max", "avg"}

    Examples
    --------
    >>> from numconv import nn
    >>> nn.GroupPool("p4").output_shape((32, 9, 9))
    (8, 9, 9)
    """

    group: str = "p4"
    mode: str = "max"

    def members(self) -> int:
        """The number of elements of the group."""
        return symmetry_group(self.group).order


@dataclass(eq=False, repr=False)
class GroupBatchNorm(BatchNorm):
    """Batch normalisation with one mean, variance, factor and offset for all members of a channel, so that they stay alike.

    Parameters
    ----------
    momentum, epsilon
        As for `BatchNorm`.
    group : {"p4", "p4m", "mirror", "cube", "cube_m"}

    Examples
    --------
    >>> from numconv import nn
    >>> sorted(array.shape for array in nn.GroupBatchNorm(group="p4").build((32, 9, 9)).parameters.values())
    [(8,), (8,)]
    """

    group: str = "p4"

    def _channels(self, shape: Shape) -> int:
        return channels_of(self, shape, symmetry_group(self.group).order)

    def initial(self, shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        """The parameters to begin with, for an x of this shape."""
        return super().initial((self._channels(shape), *shape[1:]), rng)

    def initial_state(self, shape: Shape) -> dict[str, np.ndarray[Any, Any]]:
        """The state to begin with."""
        return super().initial_state((self._channels(shape), *shape[1:]))

    def forward(self, x: Array, training: bool = False, rng: Any = None, activation: str | None = None) -> tuple[Array, Backward]:
        """Compute y, and the function that takes the gradient of what `activation` was applied to back; see `Layer.forward`."""
        members = x.reshape(x.shape[0], self._channels(x.shape[1:]), -1)  # members are further positions of their channel
        y, inner = super().forward(members, training, rng, activation)

        def backward(grad_y: Array, needs_x: bool = True) -> tuple[Array, Grads]:
            grad, grads = inner(grad_y.reshape(members.shape), needs_x)
            return None if grad is None else grad.reshape(x.shape), grads

        return y.reshape(x.shape), backward
