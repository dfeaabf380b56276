"""Optimisers: plain settings, whose state lies in vectors beside the vector of all parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from numconv.errors import ProblemError

from .devices import namespace
from .layer import Array, check_numbers, is_number

__all__ = ["SGD", "AdamW", "Optimiser", "clip_norm"]


class Optimiser(Protocol):
    """What `fit` asks of an optimiser."""

    def start(self, vector: Array) -> dict[str, Array]:
        """The state before the first step, for the vector of all parameters."""

    def update(self, vector: Array, grad: Array, state: dict[str, Array], *, step: int, factor: float, decays: Array) -> None:
        """Change `vector` and `state` in place, with the rate times `factor`; `grad` may be overwritten.

        `step` counts from 0; `decays` is 1 where weight decay applies, else 0.
        """


def _check(kind: str, **values: tuple[float, bool]) -> None:
    for name, (value, fits) in values.items():
        if not fits:
            raise ProblemError(f"{kind}: {name}={value!r} is out of range")


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, with momentum: v = momentum v + g, w = w - rate v.

    Parameters
    ----------
    rate : float
    momentum : float
        0 <= momentum < 1.
    nesterov : bool
        Look ahead: w = w - rate (g + momentum v).
    weight_decay : float
        Decoupled: w = w - rate weight_decay w, for weights of more than one dimension.

    References
    ----------
    I. Sutskever, J. Martens, G. Dahl and G. Hinton, "On the importance of initialization and momentum in deep learning", ICML 2013,
    section 2; momentum and Nesterov's form as PyTorch writes them.
    """

    rate: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(self, "rate", "momentum", "weight_decay")
        _check("SGD", rate=(self.rate, 0 < self.rate < math.inf), momentum=(self.momentum, 0 <= self.momentum < 1),
               weight_decay=(self.weight_decay, self.weight_decay >= 0))  # fmt: skip

    def start(self, vector: Array) -> dict[str, Array]:
        """The state before the first step."""
        return {"velocity": namespace(vector).zeros_like(vector)} if self.momentum else {}

    def update(self, vector: Array, grad: Array, state: dict[str, Array], *, step: int, factor: float, decays: Array) -> None:
        """One step, in place."""
        rate = self.rate * factor
        if self.momentum:
            velocity = state["velocity"]
            velocity *= self.momentum
            velocity += grad
            grad = grad + self.momentum * velocity if self.nesterov else velocity
        if self.weight_decay:
            vector -= vector * decays * (rate * self.weight_decay)
        vector -= grad * rate


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay.

    Parameters
    ----------
    rate : float
    betas : (float, float)
        How much of the mean and of the mean square of the gradient is kept at each step.
    epsilon : float
        Added to the root of the mean square.
    weight_decay : float
        w = w - rate weight_decay w, for weights of more than one dimension; biases and scales don't decay.

    References
    ----------
    D. Kingma and J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1; I. Loshchilov and F. Hutter,
    "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2.
    """

    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        check_numbers(self, "rate", "epsilon", "weight_decay")
        betas: Any = self.betas
        if not isinstance(betas, tuple | list) or len(betas) != 2 or not all(map(is_number, betas)):
            raise ProblemError(f"AdamW: betas={self.betas!r} must be two numbers")
        _check("AdamW", rate=(self.rate, 0 < self.rate < math.inf), epsilon=(self.epsilon, self.epsilon > 0),
               weight_decay=(self.weight_decay, self.weight_decay >= 0),
               **{f"betas[{i}]": (beta, 0 <= beta < 1) for i, beta in enumerate(self.betas)})  # fmt: skip

    def start(self, vector: Array) -> dict[str, Array]:
        """The state before the first step."""
        zeros = namespace(vector).zeros_like
        return {"mean": zeros(vector), "square": zeros(vector)}

    def update(self, vector: Array, grad: Array, state: dict[str, Array], *, step: int, factor: float, decays: Array) -> None:
        """One step, in place."""
        rate = self.rate * factor
        first, second = self.betas
        mean, square = state["mean"], state["square"]
        mean *= first
        mean += grad * (1 - first)
        square *= second
        grad *= grad
        grad *= 1 - second
        square += grad
        root = namespace(vector).sqrt(square)
        root *= 1 / math.sqrt(1 - second ** (step + 1))
        root += self.epsilon
        if self.weight_decay:
            vector -= vector * decays * (rate * self.weight_decay)
        vector -= mean / root * (rate / (1 - first ** (step + 1)))


def clip_norm(grad: Array, limit: float) -> None:
    """Scale a gradient in place so that its Euclidean norm is at most `limit`.

    References
    ----------
    R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural networks", ICML 2013, algorithm 1.
    """
    xp = namespace(grad)
    norm = xp.sqrt((grad * grad).sum())
    grad *= limit / xp.maximum(norm, limit)
