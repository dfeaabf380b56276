"""What all functions do with their arrays: a common dtype, an order, and what is left to SciPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from numconv.problem import SHORT

__all__ = ["MODES", "common_arrays", "conjugated", "covers", "mode_padding", "ordered", "scipy_signal"]

MODES = ("full", "valid", "same")


def scipy_signal() -> Any:
    """scipy.signal, which takes a second to import."""
    import scipy.signal

    return scipy.signal


def common_arrays(in1: Any, in2: Any, mode: str) -> tuple[Any, Any] | None:
    """Both inputs in their common dtype; None if that or something else is SciPy's affair."""
    x, k = np.asarray(in1), np.asarray(in2)
    if x.ndim != k.ndim or not x.ndim or not (x.size and k.size) or mode not in MODES:
        return None
    dtype = np.result_type(x, k)
    if dtype.name not in SHORT and dtype.kind != "b":
        return None
    if mode == "valid" and not (covers(x.shape, k.shape) or covers(k.shape, x.shape)):
        return None
    return x.astype(dtype, copy=False), k.astype(dtype, copy=False)


def covers(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Whether a shape is at least as large as another in every dimension."""
    return all(a >= b for a, b in zip(shape, other, strict=True))


def conjugated(array: Any) -> Any:
    """The complex conjugate; a real array as it is."""
    return array.conj() if array.dtype.kind == "c" else array


def ordered(x: Any, k: Any, mode: str) -> tuple[Any, Any]:
    """The signal and the kernel: convolution is commutative, and the result of "same" has the shape of the first."""
    if (mode == "full" and k.size > x.size) or (mode == "valid" and not covers(x.shape, k.shape)):
        return k, x
    return x, k


def mode_padding(kernel: Sequence[int], mode: str) -> tuple[tuple[int, int], ...]:
    """(low, high) of each dimension."""
    if mode == "valid":
        return ((0, 0),) * len(kernel)
    return tuple((r - 1, r - 1) if mode == "full" else (r // 2, (r - 1) // 2) for r in kernel)
