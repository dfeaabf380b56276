"""What is to be timed, in plain data, and its arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Arrays", "Calls", "Case", "Declined"]


Calls = dict[str, Callable[[], Any]]
"""What to time for a case: one call, or several ways of which the fastest counts, by name."""


class Declined(Exception):
    """An implementation has no way to compute this case; the text says why."""


class Arrays(NamedTuple):
    """x ``[N, C, *S]``, w ``[K, C/G, *R]`` and grad_y ``[N, K, *Q]``."""

    x: Any
    w: Any
    grad_y: Any


class Case(NamedTuple):
    """One pass of one convolution: ``forward``, or ``backward`` with the gradients of x, w and bias together."""

    name: str
    direction: str
    dtype: str
    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    y_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Case:
        """From parsed JSON, which has lists for tuples."""
        return cls(**{name: _frozen(value) for name, value in fields.items()})

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions."""
        return len(self.stride)

    @property
    def axes(self) -> tuple[int, ...]:
        """The spatial ones."""
        return tuple(range(2, 2 + self.ndim))

    @property
    def lows(self) -> list[int]:
        """Padding at the low side of each dimension, for implementations that pad both sides alike.

        Raises
        ------
        Declined
            If the sides differ.
        """
        if any(low != high for low, high in self.padding):
            raise Declined(f"pads both sides alike, and the padding is {self.padding}")
        return [low for low, _ in self.padding]

    def arrays(self) -> Arrays:
        """Normally distributed values; w scaled so that y is about as large as x."""
        rng = np.random.default_rng(0)
        x, w, grad_y = (rng.standard_normal(shape).astype(self.dtype) for shape in (self.x_shape, self.w_shape, self.y_shape))
        w /= np.asarray(math.sqrt(math.prod(self.w_shape[1:])), self.dtype)
        return Arrays(x, w, grad_y)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
