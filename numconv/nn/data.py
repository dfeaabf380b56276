"""Samples in batches: arrays, or any object that yields batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from numconv.errors import ProblemError

from .devices import namespace
from .layer import Array, Layer

__all__ = ["Arrays", "Data", "as_data", "check_batch"]


class Data(Protocol):
    """What `fit` and `evaluate` take instead of two arrays."""

    def __len__(self) -> int:
        """The number of samples."""

    def batches(self, batch_size: int, rng: np.random.Generator | None = None) -> Iterator[tuple[Array, Array]]:
        """All samples as (x, targets), in an order that `rng` draws, or in their own."""


class Arrays(NamedTuple):
    """Samples x ``[N, ...]`` and their targets ``[N, ...]``."""

    x: Array
    targets: Array

    def __len__(self) -> int:
        return int(self.x.shape[0])

    def batches(self, batch_size: int, rng: np.random.Generator | None = None) -> Iterator[tuple[Array, Array]]:
        """All samples, the last batch perhaps smaller."""
        count = len(self)
        if rng is None:
            for start in range(0, count, batch_size):
                yield self.x[start : start + batch_size], self.targets[start : start + batch_size]
            return
        order = namespace(self.x).asarray(rng.permutation(count))
        for start in range(0, count, batch_size):
            chosen = order[start : start + batch_size]
            yield self.x[chosen], self.targets[chosen]


def as_data(data: Any, name: str) -> Data:
    """(x, targets) or an object with `batches`, checked."""
    if hasattr(data, "batches"):
        return cast(Data, data)
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise ProblemError(f"{name} must be (x, targets), or an object with __len__ and batches(batch_size, rng=None)")
    x, targets = data
    for array, what in ((x, "x"), (targets, "targets")):
        if not hasattr(array, "shape") or not array.ndim:
            raise ProblemError(f"{name}: {what} of type {type(array).__name__} is no array with a batch axis")
    if x.shape[0] != targets.shape[0] or not x.shape[0]:
        raise ProblemError(
            f"{name}: x has {x.shape[0]} samples and targets have {targets.shape[0]}; both need the same, and one at least"
        )
    return Arrays(x, targets)


def check_batch(model: Layer, x: Array, name: str) -> None:
    """Raise where x has as many axes as a sample: layers would take its first one for the batch, and complain of others."""
    built = model._built
    if built is not None and x.ndim == len(built.shape):
        raise ProblemError(
            f"{name} of shape {tuple(x.shape)} has no batch axis: the model was built for samples of shape {built.shape}; "
            "for one sample give x[None], for samples without channels x[:, None]"
        )
