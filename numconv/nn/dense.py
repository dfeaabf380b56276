"""Layers without positions: Linear, and Flatten and Dropout, which go with it."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from numconv.errors import ProblemError

from .convolution import he_normal
from .devices import namespace
from .layer import Array, Backward, Grads, Layer, Shape, check_counts, check_flags, check_numbers

__all__ = ["Dropout", "Flatten", "Linear"]


@dataclass(eq=False, repr=False)
class Linear(Layer):
    """y = x w^T + bias: every feature of the input has its own weight for every output.

    Parameters
    ----------
    features : int
        K, the outputs; the input's are found by `build`.
    bias : bool
        Whether a learned number is added to each output.

    Notes
    -----
    Parameters: ``w [K, C]``, by He's initialisation, and ``bias [K]``, zero at first.
    """

    features: int
    _: KW_ONLY
    bias: bool = True

    fresh = True

    def __post_init__(self) -> None:
        check_counts(self, "features")
        check_flags(self, "bias")

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of y for an x of this shape, both without N."""
        if len(shape) != 1:
            raise ProblemError(f"{self!r}: an input of shape {shape} without N is not [C]; put Flatten or GlobalAvgPool before it")
        return (self.features,)

    def initial(self, shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        """The parameters to begin with, for an x of this shape."""
        w = he_normal((self.features, *shape), shape[0], rng)
        return {"w": w, "bias": np.zeros(self.features)} if self.bias else {"w": w}

    def forward(self, x: Array, training: bool = False, rng: Any = None) -> tuple[Array, Backward]:
        """Compute y, and the function that takes its gradient back; see `Layer.forward`."""
        w, bias = self.parameters["w"], self.parameters.get("bias")
        if x.ndim != 2 or x.shape[1] != w.shape[1]:
            raise ProblemError(f"{self!r}: x has shape {tuple(x.shape)}, and must be [N, {w.shape[1]}] for w {tuple(w.shape)}")
        if x.dtype != w.dtype:
            raise ProblemError(f"{self!r}: x has dtype {x.dtype} and w {w.dtype}; convert one, as by model.to({str(x.dtype)!r})")
        y = (x @ w.T).astype(x.dtype, copy=False)  # bfloat16 is multiplied in float32
        if bias is not None:
            y += bias

        def backward(grad_y: Array, needs_x: bool = True) -> tuple[Array, Grads]:
            grads = {"w": grad_y.T @ x}
            if bias is not None:
                grads["bias"] = grad_y.sum(axis=0)
            return (grad_y @ w if needs_x else None), grads

        return y, backward

    def flops(self, shape: Shape) -> int:
        """Multiplications and additions for one x of this shape, each counted."""
        return 2 * self.features * math.prod(shape)


@dataclass(eq=False, repr=False)
class Flatten(Layer):
    """``[N, C, *S]`` becomes ``[N, C prod(S)]``."""

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of y for an x of this shape, both without N."""
        return (math.prod(shape),)

    def forward(self, x: Array, training: bool = False, rng: Any = None) -> tuple[Array, Backward]:
        """Compute y, and the function that takes its gradient back; see `Layer.forward`."""

        def backward(grad_y: Array, needs_x: bool = True) -> tuple[Array, Grads]:
            return (grad_y.reshape(x.shape) if needs_x else None), {}

        return x.reshape(x.shape[0], math.prod(x.shape[1:])), backward


@dataclass(eq=False, repr=False)
class Dropout(Layer):
    """In training, each element is 0 with probability `rate`, else divided by 1 - rate; in inference nothing changes.

    Parameters
    ----------
    rate : float
        0 <= rate < 1.

    References
    ----------
    N. Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", JMLR 15, 2014, section 10.
    """

    rate: float = 0.5

    def __post_init__(self) -> None:
        check_numbers(self, "rate")
        if not 0 <= self.rate < 1:
            raise ProblemError(f"Dropout: rate={self.rate!r} must be at least 0 and below 1")

    def forward(self, x: Array, training: bool = False, rng: np.random.Generator | None = None) -> tuple[Array, Backward]:
        """Compute y, and the function that takes its gradient back; see `Layer.forward`."""
        if not training or not self.rate:
            return x, _through
        if rng is None:
            raise ProblemError("Dropout: forward(x, training=True) draws numbers; give rng=numpy.random.default_rng(seed)")
        # on a device the numbers are drawn there, from a seed that the generator gives
        generator = rng if isinstance(x, np.ndarray) else namespace(x).random.default_rng(int(rng.integers(2**63)))
        kept = (generator.random(x.shape, dtype=np.float32) >= self.rate) * x.dtype.type(1 / (1 - self.rate))

        def backward(grad_y: Array, needs_x: bool = True) -> tuple[Array, Grads]:
            return (grad_y * kept if needs_x else None), {}

        return x * kept, backward


def _through(grad_y: Array, needs_x: bool = True) -> tuple[Array, Grads]:
    return (grad_y if needs_x else None), {}
