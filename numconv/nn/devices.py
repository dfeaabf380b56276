"""Arrays wherever they live: the module with their functions, and their way to the host."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

__all__ = ["namespace", "to_host"]


def namespace(array: Any) -> Any:
    """The module with the functions for arrays of this kind: NumPy, or that from which their type comes (CuPy)."""
    if array is None or isinstance(array, np.ndarray):
        return np
    return sys.modules[type(array).__module__.split(".")[0]]


def to_host(array: Any) -> np.ndarray[Any, Any]:
    """The array in NumPy's memory: itself, or a copy from its device."""
    copied: np.ndarray[Any, Any] = array if isinstance(array, np.ndarray) else array.get()
    return copied
