"""Layers that pool: over windows, and over all positions."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from numconv import functional
from numconv.arguments import freeze
from numconv.errors import ProblemError
from numconv.planning import output_shape

from .layer import Array, Backward, Grads, Layer, Shape

__all__ = ["AvgPool", "GlobalAvgPool", "GlobalMaxPool", "LpPool", "MaxPool"]


class _Pool(Layer, abstract=True):
    """Pooling over windows; the fields but `window` are the options of the function of numconv."""

    _name: ClassVar[str]
    _x_by_shape: ClassVar[bool] = False
    """Whether the gradient needs no more of x than its shape."""

    fresh = True

    window: Any

    def __post_init__(self) -> None:
        self._options = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "window"}  # type: ignore[attr-defined]
        self._op = getattr(functional, self._name)
        self._grad = getattr(functional, f"{self._name}_backward")

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of y for an x of this shape, both without N."""
        return output_shape(self._name, (1, *shape), self.window, **self._options)[1:]

    def forward(self, x: Array, training: bool = False, rng: Any = None) -> tuple[Array, Backward]:
        """Compute y, and the function that takes its gradient back; see `Layer.forward`."""
        known = x.shape if self._x_by_shape else x

        def backward(grad_y: Array, needs_x: bool = True) -> tuple[Array, Grads]:
            return (self._grad(grad_y, known, self.window, **self._options) if needs_x else None), {}

        return self._op(x, self.window, **self._options), backward

    def flops(self, shape: Shape) -> int:
        """One operation for each element of each window, for one x of this shape."""
        window = freeze(self.window, "window")
        taps: int = window ** (len(shape) - 1) if isinstance(window, int) else math.prod(window)
        return math.prod(self.output_shape(shape)) * taps


@dataclass(eq=False, repr=False)
class MaxPool(_Pool):
    """The largest element of each window; see `numconv.max_pool`.

    Parameters
    ----------
    window : int or sequence of int
    stride : int or sequence of int, optional
        The window by default.
    padding, dilation, ceil_mode
        As for `numconv.max_pool`.
    """

    window: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False

    _name = "max_pool"


@dataclass(eq=False, repr=False)
class AvgPool(_Pool):
    """The average of each window; see `numconv.avg_pool`.

    Parameters
    ----------
    window, stride, padding, dilation, ceil_mode
        As for `MaxPool`.
    count_include_pad : bool
        As for `numconv.avg_pool`.
    """

    window: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False
    count_include_pad: bool = True

    _name = "avg_pool"
    _x_by_shape = True


@dataclass(eq=False, repr=False)
class LpPool(_Pool):
    """The p-norm of each window; see `numconv.lp_pool`.

    Parameters
    ----------
    window, stride, padding, dilation, ceil_mode
        As for `MaxPool`.
    p : float
        The exponent, above 0.
    """

    window: Any
    _: KW_ONLY
    p: float = 2
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False

    _name = "lp_pool"


class _GlobalPool(Layer, abstract=True):
    """Pooling over all positions: ``[N, C, *S]`` becomes ``[N, C]``."""

    _name: ClassVar[str]
    _x_by_shape: ClassVar[bool]

    fresh = True

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of y for an x of this shape, both without N."""
        if len(shape) < 2:
            raise ProblemError(f"{self!r}: an input of shape {shape} without N has no spatial dimension to pool over")
        return shape[:1]

    def forward(self, x: Array, training: bool = False, rng: Any = None) -> tuple[Array, Backward]:
        """Compute y, and the function that takes its gradient back; see `Layer.forward`."""
        window, known = x.shape[2:], x.shape if self._x_by_shape else x
        y = getattr(functional, self._name)(x, window)

        def backward(grad_y: Array, needs_x: bool = True) -> tuple[Array, Grads]:
            if not needs_x:
                return None, {}
            return getattr(functional, f"{self._name}_backward")(grad_y.reshape(y.shape), known, window), {}

        return y.reshape(x.shape[:2]), backward

    def flops(self, shape: Shape) -> int:
        """One operation for each element of one x of this shape."""
        return math.prod(shape)


@dataclass(eq=False, repr=False)
class GlobalAvgPool(_GlobalPool):
    """The average of each channel over all positions: ``[N, C, *S]`` becomes ``[N, C]``."""

    _name = "avg_pool"
    _x_by_shape = True


@dataclass(eq=False, repr=False)
class GlobalMaxPool(_GlobalPool):
    """The largest element of each channel over all positions: ``[N, C, *S]`` becomes ``[N, C]``."""

    _name = "max_pool"
    _x_by_shape = False
