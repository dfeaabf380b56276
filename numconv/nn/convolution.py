"""Layers that convolve."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from numconv import functional
from numconv.arguments import freeze
from numconv.errors import ProblemError
from numconv.planning import output_shape

from .layer import Array, Backward, Grads, Layer, Shape, check_counts, check_flags

__all__ = ["Conv", "ConvTranspose", "he_normal"]

_GEOMETRY = ("stride", "padding", "dilation", "groups", "pad_mode")


def he_normal(shape: Shape, fan_in: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Weights that keep the size of values through layers followed by ReLU: normal, with variance 2 / fan_in.

    References
    ----------
    K. He, X. Zhang, S. Ren and J. Sun, "Delving Deep into Rectifiers", ICCV 2015, section 2.2, equation 10.
    """
    return rng.normal(0, math.sqrt(2 / fan_in), shape)


class _Convolution(Layer, abstract=True):
    """What both directions share: the fields, and the call of numconv."""

    activations = frozenset({"relu", "silu", "gelu"})
    fresh = True

    channels: int
    window: Any
    groups: int
    bias: bool

    def __post_init__(self) -> None:
        check_counts(self, "channels", "groups")
        check_flags(self, "bias")
        self._options = {name: getattr(self, name) for name in self._option_names}
        self._op = getattr(functional, self._name)
        self._grads = getattr(functional, f"{self._name}_backward")

    _name = "conv"
    _option_names: tuple[str, ...] = _GEOMETRY

    def _w_shape(self, shape: Shape) -> Shape:
        raise NotImplementedError

    def _kernel(self, shape: Shape) -> Shape:
        ndim = len(shape) - 1
        if ndim < 1:
            raise ProblemError(f"{self!r}: an input of shape {shape} without N has no spatial dimension; it must be [C, *S]")
        window = freeze(self.window, "window")
        kernel = (window,) * ndim if isinstance(window, int) else window
        if len(kernel) != ndim:
            raise ProblemError(f"{self!r}: window has {len(kernel)} entries and the input {shape} {ndim} spatial dimensions")
        return kernel

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of y for an x of this shape, both without N."""
        return output_shape(self._name, shape, self._w_shape(shape), **self._options)

    def forward(self, x: Array, training: bool = False, rng: Any = None, activation: str | None = None) -> tuple[Array, Backward]:
        """Compute y, and the function that takes the gradient of what `activation` was applied to back; see `Layer.forward`."""
        w, bias = self.parameters["w"], self.parameters.get("bias")
        y = self._op(x, w, bias, activation=activation, **self._options)

        def backward(grad_y: Array, needs_x: bool = True) -> tuple[Array, Grads]:
            needs = ("x", "w", "bias")[0 if needs_x else 1 : 2 if bias is None else 3]
            found = self._grads(grad_y, x, w, needs=needs, **self._options)
            return found.x, {"w": found.w} if bias is None else {"w": found.w, "bias": found.bias}

        return y, backward


@dataclass(eq=False, repr=False)
class Conv(_Convolution):
    """Convolution of any number of spatial dimensions; see `numconv.conv`.

    Parameters
    ----------
    channels : int
        K, the output channels; the input's are found by `build`.
    window : int or sequence of int
        R, the size of the kernels: one for all spatial dimensions or one each.
    stride, padding, dilation, groups, pad_mode
        As for `numconv.conv`.
    bias : bool
        Whether a learned number is added to each channel.

    Notes
    -----
    Parameters: ``w [K, C/G, *R]``, by He's initialisation, and ``bias [K]``, zero at first.

    Examples
    --------
    >>> from numconv import nn
    >>> layer = nn.Conv(8, (5, 3), stride=2, padding="same")
    >>> layer.output_shape((3, 32, 32))
    (8, 16, 16)
    >>> layer.build((3, 32, 32)).parameters["w"].shape
    (8, 3, 5, 3)
    """

    channels: int
    window: Any
    _: KW_ONLY
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    pad_mode: str = "zeros"
    bias: bool = True

    def _w_shape(self, shape: Shape) -> Shape:
        kernel = self._kernel(shape)
        if shape[0] % self.groups:
            raise ProblemError(f"{self!r}: {shape[0]} input channels cannot be split into groups={self.groups}")
        return (self.channels, shape[0] // self.groups, *kernel)

    def initial(self, shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        """The parameters to begin with, for an x of this shape."""
        w_shape = self._w_shape(shape)
        w = {"w": he_normal(w_shape, math.prod(w_shape[1:]), rng)}
        return w | ({"bias": np.zeros(self.channels)} if self.bias else {})

    def flops(self, shape: Shape) -> int:
        """Multiplications and additions for one x of this shape, each counted; padding counts too."""
        return 2 * math.prod(self.output_shape(shape)) * math.prod(self._w_shape(shape)[1:])


@dataclass(eq=False, repr=False)
class ConvTranspose(_Convolution):
    """Transposed convolution, which brings the dimension up again; see `numconv.conv_transpose`.

    Parameters
    ----------
    channels : int
        K, the output channels.
    window, stride, padding, dilation, groups, pad_mode, bias
        As for `Conv`.
    output_padding : int or sequence of int
        As for `numconv.conv_transpose`.

    Notes
    -----
    Parameters: ``w [C, K/G, *R]``, by He's initialisation with the C/G prod(R) / prod(stride) terms that an output has on average,
    and ``bias [K]``.

    Examples
    --------
    >>> from numconv import nn
    >>> nn.ConvTranspose(3, 4, stride=2, padding=1).output_shape((8, 16, 16))
    (3, 32, 32)
    """

    channels: int
    window: Any
    _: KW_ONLY
    stride: Any = 1
    padding: Any = 0
    output_padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    pad_mode: str = "zeros"
    bias: bool = True

    _name = "conv_transpose"
    _option_names = (*_GEOMETRY, "output_padding")

    def _w_shape(self, shape: Shape) -> Shape:
        kernel = self._kernel(shape)
        if self.channels % self.groups:
            raise ProblemError(f"{self!r}: {self.channels} output channels cannot be split into groups={self.groups}")
        return (shape[0], self.channels // self.groups, *kernel)

    def initial(self, shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        """The parameters to begin with, for an x of this shape."""
        w_shape = self._w_shape(shape)
        stride = freeze(self.stride, "stride")
        steps = stride ** (len(shape) - 1) if isinstance(stride, int) else math.prod(stride)
        terms = max(1, shape[0] // self.groups * math.prod(w_shape[2:]) // steps)
        return {"w": he_normal(w_shape, terms, rng)} | ({"bias": np.zeros(self.channels)} if self.bias else {})

    def flops(self, shape: Shape) -> int:
        """Multiplications and additions for one x of this shape, each counted; what is cut off counts too."""
        return 2 * math.prod(shape) * math.prod(self._w_shape(shape)[1:])
