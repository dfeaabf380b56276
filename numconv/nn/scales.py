"""Convolutions on a scale-space, which are equivariant to halving the resolution as well as to shifts.

A map on a scale-space of M levels is an array ``[N, C * M, *S]``: channel ``c * M + m`` is channel c at level m, blurred as if the
input were seen from 2^m times as far. Seen from twice as far, the maps move one level down.

References
----------
D. E. Worrall and M. Welling, "Deep Scale-spaces: Equivariance Over Scale", NeurIPS 2019: their semigroup of scalings, for powers
of 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from numconv import functional
from numconv.errors import ProblemError

from .convolution import he_normal
from .devices import namespace
from .groups import MemberPool, channels_of
from .layer import Array, Backward, Grads, Layer, Shape, check_counts, check_flags, check_numbers

__all__ = ["ScaleConv", "ScaleLift", "ScalePool"]

_TAIL = 4
"""Standard deviations after which a Gaussian is cut off."""


def gaussian(level: int, blur: float, ndim: int) -> np.ndarray[Any, Any]:
    """What brings an image of blur `blur` (in samples) to ``2^level blur``: a Gaussian of variance ``blur^2 (4^level - 1)``."""
    deviation = blur * math.sqrt(4**level - 1)
    radius = math.ceil(_TAIL * deviation)
    line = np.exp(-0.5 * (np.arange(-radius, radius + 1) / (deviation or 1)) ** 2)
    line /= line.sum()
    kernel = line
    for _ in range(ndim - 1):
        kernel = np.multiply.outer(kernel, line)
    return kernel


@dataclass(eq=False, repr=False)
class ScaleLift(Layer):
    """From an image to its scale-space: the image at 1, 2, 4, ... times its blur. Nothing is learned.

    Parameters
    ----------
    scales : int
        M, the number of levels.
    blur : float
        The standard deviation, in samples, of the blur that the input is taken to have already.
    pad_mode : str
        As for `numconv.conv`; the size of the image stays.

    Examples
    --------
    >>> from numconv import nn
    >>> nn.ScaleLift(scales=3).output_shape((1, 16, 16))
    (3, 16, 16)
    """

    scales: int = 3
    blur: float = 0.5
    pad_mode: str = "zeros"

    def __post_init__(self) -> None:
        check_counts(self, "scales")
        check_numbers(self, "blur")
        if not 0 < self.blur < math.inf:
            raise ProblemError(f"ScaleLift: blur={self.blur!r} must be positive")

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of y for an x of this shape, both without N."""
        return (shape[0] * self.scales, *shape[1:])

    def _kernels(self, x: Array) -> list[tuple[Array, int]]:
        """The depthwise kernel of each level after the first one, and its padding."""
        found = []
        for level in range(1, self.scales):
            kernel = gaussian(level, self.blur, x.ndim - 2)
            w = np.broadcast_to(kernel, (x.shape[1], 1, *kernel.shape)).astype(x.dtype)
            found.append((namespace(x).asarray(w), kernel.shape[0] // 2))
        return found

    def forward(self, x: Array, training: bool = False, rng: Any = None) -> tuple[Array, Backward]:
        """Compute y, and the function that takes its gradient back; see `Layer.forward`."""
        xp, options = namespace(x), {"groups": x.shape[1], "pad_mode": self.pad_mode}
        kernels = self._kernels(x)
        levels = [x, *(functional.conv(x, w, padding=padding, **options) for w, padding in kernels)]

        def backward(grad_y: Array, needs_x: bool = True) -> tuple[Array, Grads]:
            if not needs_x:
                return None, {}
            grads = grad_y.reshape(x.shape[0], x.shape[1], self.scales, *x.shape[2:])
            grad_x = grads[:, :, 0].copy()
            for level, (w, padding) in enumerate(kernels, start=1):
                grad_x += functional.conv_input_grad(grads[:, :, level], w, x.shape, padding=padding, **options)
            return grad_x, {}

        return xp.stack(levels, axis=2).reshape(x.shape[0], x.shape[1] * self.scales, *x.shape[2:]), backward

    def flops(self, shape: Shape) -> int:
        """Multiplications and additions for one x of this shape, each counted; padding counts too."""
        ndim = len(shape) - 1
        return sum(2 * math.prod(shape) * gaussian(level, self.blur, ndim).size for level in range(1, self.scales))


@dataclass(eq=False, repr=False)
class ScaleConv(Layer):
    """From a scale-space to another one: the same kernels at every level, dilated by 1, 2, 4, ...

    Parameters
    ----------
    channels : int
        K; the output has as many levels as the input.
    window : int
        R, odd, in all dimensions alike.
    scales : int
        M, the number of levels.
    span : int
        How many levels a kernel sees: its own and the following ones. Levels beyond the last one count as zero.
    pad_mode : str
        As for `numconv.conv`; the size of the maps stays.
    bias : bool
        Whether a learned number is added to each channel, the same at all levels.

    Notes
    -----
    Parameters: ``w [K, C, span, *R]``, by He's initialisation, and ``bias [K]``. Level m of the output is the sum over l of the
    convolutions of level m + l of the input with ``w[:, :, l]``, dilated by 2^m. If one map
    is another one seen from twice as far, ``x'[m](p) = x[m + 1](2 p)``, then so are their outputs, up to the last levels.

    Examples
    --------
    >>> from numconv import nn
    >>> layer = nn.ScaleConv(8, 3, scales=3).build((3, 16, 16))
    >>> layer.output_shape((3, 16, 16)), layer.parameters["w"].shape
    ((24, 16, 16), (8, 1, 2, 3, 3))
    """

    channels: int
    window: int
    scales: int = 3
    span: int = 2
    pad_mode: str = "zeros"
    bias: bool = True

    def __post_init__(self) -> None:
        check_counts(self, "channels", "window", "scales", "span")
        check_flags(self, "bias")
        if self.window % 2 == 0:
            raise ProblemError(f"ScaleConv: window={self.window!r} must be an odd integer, so that kernels stay centred")
        if self.span > self.scales:
            raise ProblemError(f"ScaleConv: span={self.span} must be 1 to scales={self.scales}")

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of y for an x of this shape, both without N."""
        channels_of(self, shape, self.scales)
        return (self.channels * self.scales, *shape[1:])

    def initial(self, shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        """The parameters to begin with, for an x of this shape."""
        w_shape = (channels_of(self, shape, self.scales), self.span, *(self.window,) * (len(shape) - 1))
        w = {"w": he_normal((self.channels, *w_shape), math.prod(w_shape), rng)}
        return w | ({"bias": np.zeros(self.channels)} if self.bias else {})

    def _level(self, level: int) -> tuple[slice, dict[str, Any]]:
        """Which levels of the input a level of the output sees, and the options of its convolution."""
        dilation = 2**level
        options = {"dilation": dilation, "padding": dilation * (self.window // 2), "pad_mode": self.pad_mode}
        return slice(level, min(level + self.span, self.scales)), options

    def forward(self, x: Array, training: bool = False, rng: Any = None) -> tuple[Array, Backward]:
        """Compute y, and the function that takes its gradient back; see `Layer.forward`."""
        xp, w, bias = namespace(x), self.parameters["w"], self.parameters.get("bias")
        n, size, k = x.shape[0], x.shape[2:], self.channels
        channels = channels_of(self, x.shape[1:], self.scales)
        levels = x.reshape(n, channels, self.scales, *size)
        calls = []
        for level in range(self.scales):
            seen, options = self._level(level)
            part = w[:, :, : seen.stop - seen.start].reshape(k, -1, *w.shape[3:])
            calls.append((levels[:, :, seen].reshape(n, part.shape[1], *size), part, options))
        ys = [functional.conv(inputs, part, bias, **options) for inputs, part, options in calls]

        def backward(grad_y: Array, needs_x: bool = True) -> tuple[Array, Grads]:
            grad_levels = grad_y.reshape(n, k, self.scales, *size)
            grad_x, grad_w = xp.zeros_like(levels), xp.zeros_like(w)
            grad_bias = None if bias is None else xp.zeros_like(bias)
            needs = ("x", "w", "bias")[0 if needs_x else 1 : 2 if bias is None else 3]
            for level, (inputs, part, options) in enumerate(calls):
                found = functional.conv_backward(grad_levels[:, :, level], inputs, part, needs=needs, **options)
                seen, _ = self._level(level)
                span = seen.stop - seen.start
                grad_w[:, :, :span] += found.w.reshape(k, -1, span, *w.shape[3:])
                if grad_bias is not None:
                    grad_bias += found.bias
                if needs_x:
                    grad_x[:, :, seen] += found.x.reshape(n, channels, span, *size)
            grads = {"w": grad_w} if grad_bias is None else {"w": grad_w, "bias": grad_bias}
            return (grad_x.reshape(x.shape) if needs_x else None), grads

        return xp.stack(ys, axis=2).reshape(n, k * self.scales, *size), backward

    def flops(self, shape: Shape) -> int:
        """Multiplications and additions for one x of this shape, each counted; padding counts too."""
        spans = sum(min(self.span, self.scales - level) for level in range(self.scales))
        pairs = self.channels * channels_of(self, shape, self.scales)
        return 2 * spans * pairs * math.prod(shape[1:]) * math.prod((self.window,) * (len(shape) - 1))


@dataclass(eq=False, repr=False)
class ScalePool(MemberPool):
    """The largest (or average) level of each channel: what is left does not tell the scale.

    Parameters
    ----------
    scales : int
        M, the number of levels.
    mode : {"max", "avg"}

    Examples
    --------
    >>> from numconv import nn
    >>> nn.ScalePool(3).output_shape((24, 16, 16))
    (8, 16, 16)
    """

    scales: int = 3
    mode: str = "max"

    def __post_init__(self) -> None:
        check_counts(self, "scales")
        super().__post_init__()

    def members(self) -> int:
        """The number of levels."""
        return self.scales
