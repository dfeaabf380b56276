"""Normalisation of channels over the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from numconv.errors import ProblemError

from .devices import namespace
from .layer import Array, Backward, Grads, Layer, Shape, check_numbers

__all__ = ["BatchNorm"]


@dataclass(eq=False, repr=False)
class BatchNorm(Layer):
    """Each channel brought to a learned mean and spread: y = w (x - mean) / sqrt(variance + epsilon) + bias.

    In training, mean and variance are those of the channel over batch and positions, and their running averages follow; in
    inference they are the running averages.

    Parameters
    ----------
    momentum : float
        Running averages become (1 - momentum) running + momentum batch.
    epsilon : float
        Added to the variance.

    Notes
    -----
    Parameters: ``w [C]``, one at first, and ``bias [C]``, zero. State: ``mean [C]`` and ``variance [C]``, the latter from the
    variance of the batch with n - 1 in place of n.

    References
    ----------
    S. Ioffe and C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift", ICML
    2015, algorithms 1 and 2; gradients as in section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from numconv import nn
    >>> layer = nn.BatchNorm(momentum=1.0).build((2, 3), dtype="float64")
    >>> x = np.arange(12.0).reshape(2, 2, 3)
    >>> y, _ = layer.forward(x, training=True)
    >>> y.mean(axis=(0, 2)).round(6), y.var(axis=(0, 2)).round(4)
    (array([0., 0.]), array([1., 1.]))
    >>> layer.state["mean"]
    array([4., 7.])
    """

    momentum: float = 0.1
    epsilon: float = 1e-5

    activations = frozenset({"relu"})
    fresh = True

    def __post_init__(self) -> None:
        check_numbers(self, "momentum", "epsilon")
        if not 0 <= self.momentum <= 1 or not self.epsilon > 0:
            raise ProblemError(f"{self!r}: momentum must lie between 0 and 1, and epsilon above 0")

    def initial(self, shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        """The parameters to begin with, for an x of this shape."""
        return {"w": np.ones(shape[0]), "bias": np.zeros(shape[0])}

    def initial_state(self, shape: Shape) -> dict[str, np.ndarray[Any, Any]]:
        """The state to begin with."""
        return {"mean": np.zeros(shape[0]), "variance": np.ones(shape[0])}

    def forward(self, x: Array, training: bool = False, rng: Any = None, activation: str | None = None) -> tuple[Array, Backward]:
        """Compute y, and the function that takes the gradient of what `activation` was applied to back; see `Layer.forward`."""
        w, bias = self.parameters["w"], self.parameters["bias"]
        if x.ndim < 2 or x.shape[1] != w.shape[0]:
            raise ProblemError(f"{self!r}: x has shape {tuple(x.shape)}, and must be [N, {w.shape[0]}, *S] for w {tuple(w.shape)}")
        if x.dtype != w.dtype:
            raise ProblemError(f"{self!r}: x has dtype {x.dtype} and w {w.dtype}; convert one, as by model.to({str(x.dtype)!r})")
        volume = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
        count = x.size // x.shape[1]
        if training:
            mean = volume.mean(axis=(0, 2))
            centred = volume - mean[:, None]
            variance = _products(centred, centred) / count
            self._follow("mean", mean)
            self._follow("variance", variance * (count / max(count - 1, 1)))
        else:
            centred, variance = volume - self.state["mean"][:, None], self.state["variance"]
        inverse = (1 / namespace(x).sqrt(variance + self.epsilon)).astype(x.dtype, copy=False)
        y = centred * (w * inverse)[:, None]
        y += bias[:, None]
        if activation == "relu":
            namespace(x).maximum(y, 0, out=y)

        def backward(grad_y: Array, needs_x: bool = True) -> tuple[Array, Grads]:
            grad = grad_y.reshape(volume.shape)
            total, product = grad.sum(axis=(0, 2)), _products(grad, centred)
            grads = {"w": product * inverse, "bias": total}
            if not needs_x:
                return None, grads
            grad_x = grad * (w * inverse)[:, None]
            if training:
                grad_x -= centred * (w * inverse**3 * product / count)[:, None]
                grad_x -= (w * inverse * total / count)[:, None]
            return grad_x.reshape(x.shape), grads

        return y.reshape(x.shape), backward

    def _follow(self, name: str, value: Array) -> None:
        """Move a running average towards the value of a batch."""
        running = self.state[name]
        running *= 1 - self.momentum
        running += self.momentum * value

    def flops(self, shape: Shape) -> int:
        """A multiplication and an addition for each element of one x of this shape."""
        return 2 * math.prod(shape)


def _products(a: Array, b: Array) -> Array:
    """The sum of products over batch and positions, a channel."""
    return namespace(a).einsum("ncs,ncs->c", a, b)
