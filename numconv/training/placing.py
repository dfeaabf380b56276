"""Training where another library's arrays live: batches go there one at a time."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from numconv.errors import ProblemError
from numconv.nn.data import Data
from numconv.nn.devices import namespace
from numconv.registry import default_registry

__all__ = ["Placed", "array_for"]


@dataclass(frozen=True)
class Placed:
    """Samples on the host, whose batches are copied to where arrays like `like` live.

    Parameters
    ----------
    data : Data
    like : array
        Of the library and on the device that compute.
    """

    data: Data
    like: Any

    def __len__(self) -> int:
        return len(self.data)

    def batches(self, batch_size: int, rng: np.random.Generator | None = None) -> Iterator[tuple[Any, Any]]:
        """All samples, as those of `data`."""
        xp = namespace(self.like)
        for x, targets in self.data.batches(batch_size, rng):
            yield xp.asarray(x), xp.asarray(targets)


def array_for(backend: str | None) -> Any:
    """An empty array on the device of a backend: CuPy's for one on a GPU, None for one on the host.

    Raises
    ------
    ProblemError
        If the backend computes on a GPU and CuPy is not installed.
    """
    if backend is None or default_registry().backend(backend).device == "cpu":
        return None
    try:
        return importlib.import_module("cupy").empty(0, "float32")
    except ImportError as error:
        raise ProblemError(
            f"backend {backend!r} computes on a GPU, and arrays go there by CuPy, which is not installed: "
            "python -m pip install 'numconv-nd[cupy]'"
        ) from error
