"""Schedules: by what the rate is multiplied at each step of a training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from numconv.errors import ProblemError

from .layer import is_number

__all__ = ["Schedule", "constant", "cosine", "step"]

Schedule = Callable[[int, int], float]
"""``schedule(step, steps)``, with step from 0 to steps - 1, returns the factor."""


def _rise(step: int, steps: int, warmup: float) -> float:
    """From almost 0 to 1 in the first part of the steps."""
    rising = warmup * steps
    return min(1.0, (step + 1) / rising) if rising else 1.0


@dataclass(frozen=True)
class _Constant:
    warmup: float

    def __call__(self, step: int, steps: int) -> float:
        return _rise(step, steps, self.warmup)


@dataclass(frozen=True)
class _Cosine:
    warmup: float
    last: float

    def __call__(self, step: int, steps: int) -> float:
        rising = self.warmup * steps
        if step < rising:
            return _rise(step, steps, self.warmup)
        turn = (step - rising) / max(1.0, steps - rising)
        return self.last + (1 - self.last) * (1 + math.cos(math.pi * turn)) / 2


@dataclass(frozen=True)
class _Step:
    at: tuple[float, ...]
    factor: float
    warmup: float

    def __call__(self, step: int, steps: int) -> float:
        fallen: float = self.factor ** sum(step >= place * steps for place in self.at)
        return fallen * _rise(step, steps, self.warmup)


def _check(name: str, **fractions: float) -> None:
    for what, value in fractions.items():
        if not is_number(value) or not 0 <= value <= 1:
            raise ProblemError(f"{name}: {what}={value!r} must lie between 0 and 1: it is a part of the whole")


def constant(warmup: float = 0.0) -> Schedule:
    """The rate as it is.

    Parameters
    ----------
    warmup : float
        The part of all steps in which the rate rises to its value.

    Returns
    -------
    function
        ``schedule(step, steps) -> factor``.

    Raises
    ------
    ProblemError
        If `warmup` is no part.
    """
    _check("constant", warmup=warmup)
    return _Constant(warmup)


def cosine(warmup: float = 0.0, last: float = 0.0) -> Schedule:
    """Half a wave of the cosine, from the rate to `last` times the rate.

    Parameters
    ----------
    warmup : float
        The part of all steps in which the rate rises to its value before.
    last : float
        What is left of the rate at the end.

    Returns
    -------
    function
        ``schedule(step, steps) -> factor``.

    Raises
    ------
    ProblemError
        If an argument does not lie between 0 and 1.

    References
    ----------
    I. Loshchilov and F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, equation 5, without restarts.

    Examples
    --------
    >>> from numconv import nn
    >>> schedule = nn.cosine(warmup=0.1)
    >>> [round(schedule(step, 100), 3) for step in (0, 9, 10, 55, 99)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    _check("cosine", warmup=warmup, last=last)
    return _Cosine(warmup, last)


def step(at: tuple[float, ...] = (0.5, 0.75), factor: float = 0.1, warmup: float = 0.0) -> Schedule:
    """The rate, multiplied by `factor` at some places.

    Parameters
    ----------
    at : tuple of float
        The places, as parts of all steps.
    factor : float
    warmup : float
        The part of all steps in which the rate rises to its value.

    Returns
    -------
    function
        ``schedule(step, steps) -> factor``.

    Raises
    ------
    ProblemError
        If a place or `warmup` does not lie between 0 and 1.

    Examples
    --------
    >>> from numconv import nn
    >>> schedule = nn.step(at=(0.5,), factor=0.1)
    >>> schedule(49, 100), schedule(50, 100)
    (1.0, 0.1)
    """
    _check("step", warmup=warmup, **{f"at[{i}]": place for i, place in enumerate(at)})
    return _Step(tuple(at), factor, warmup)
