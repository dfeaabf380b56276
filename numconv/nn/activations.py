"""Activations: ReLU, SiLU, GELU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from .devices import namespace
from .layer import Array, Backward, Grads, Layer

__all__ = ["GELU", "Activation", "ReLU", "SiLU", "positive_part"]


class Activation(Layer, abstract=True):
    """A function of each element.

    Attributes
    ----------
    word : str
        What `numconv.conv` calls it as its argument `activation`.
    """

    word: ClassVar[str]


@dataclass(eq=False, repr=False)
class ReLU(Activation):
    """max(x, 0), with the gradient 0 at 0."""

    word = "relu"
    fresh = True

    def forward(self, x: Array, training: bool = False, rng: Any = None) -> tuple[Array, Backward]:
        """Compute y, and the function that takes its gradient back; see `Layer.forward`."""
        y = namespace(x).maximum(x, 0)

        def backward(grad_y: Array, needs_x: bool = True) -> tuple[Array, Grads]:
            return (positive_part(grad_y, y) if needs_x else None), {}

        return y, backward


def positive_part(grad: Array, y: Array, out: Array | None = None) -> Array:
    """The gradient where y is positive, else 0; written to `out` if that is given."""
    return namespace(grad).multiply(grad, y > 0, out=out)


@dataclass(eq=False, repr=False)
class SiLU(Activation):
    """x / (1 + exp(-x)).

    References
    ----------
    S. Elfwing, E. Uchibe and K. Doya, "Sigmoid-weighted linear units for neural network function approximation in reinforcement
    learning", Neural Networks 107, 2018.
    """

    word = "silu"
    fresh = True

    def forward(self, x: Array, training: bool = False, rng: Any = None) -> tuple[Array, Backward]:
        """Compute y, and the function that takes its gradient back; see `Layer.forward`."""
        # 1 / (1 + exp(-x)), in a form that overflows nowhere
        sigmoid = 0.5 + 0.5 * namespace(x).tanh(0.5 * x)
        y = x * sigmoid

        def backward(grad_y: Array, needs_x: bool = True) -> tuple[Array, Grads]:
            return (grad_y * (sigmoid + y * (1 - sigmoid)) if needs_x else None), {}

        return y, backward


@dataclass(eq=False, repr=False)
class GELU(Activation):
    """x Phi(x), with Phi the distribution function of the standard normal distribution (the exact form, by erf).

    References
    ----------
    D. Hendrycks and K. Gimpel, "Gaussian Error Linear Units (GELUs)", arXiv:1606.08415, section 2.
    """

    word = "gelu"
    fresh = True

    def forward(self, x: Array, training: bool = False, rng: Any = None) -> tuple[Array, Backward]:
        """Compute y, and the function that takes its gradient back; see `Layer.forward`."""
        phi = 0.5 * _erfc(x * -math.sqrt(0.5))
        xp = namespace(x)

        def backward(grad_y: Array, needs_x: bool = True) -> tuple[Array, Grads]:
            density = xp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
            return (grad_y * (phi + x * density) if needs_x else None), {}

        return x * phi, backward


def _erfc(x: Array) -> Array:
    """1 - erf(x), by SciPy, or what CuPy has of it."""
    import importlib

    xp = namespace(x)
    special = "scipy.special" if xp.__name__ == "numpy" else f"{xp.__name__}x.scipy.special"
    return importlib.import_module(special).erfc(x)
