"""What all functions do with their arrays: a common dtype, an order, a plan, and what is left to SciPy."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from numconv.context import Context, current
from numconv.dispatch import Plan
from numconv.errors import NumconvError
from numconv.planning import plan
from numconv.problem import SHORT

__all__ = ["MODES", "common_arrays", "conjugated", "convolved", "covers", "is_known", "mode_padding", "ordered", "scipy_signal"]

MODES = ("full", "valid", "same")
_CHOICES: dict[str, dict[str, Any]] = {"auto": {}, "direct": {"accuracy": "strict"}, "fft": {"algorithm": "fft"}}
"""What the methods of `convolve` ask numconv for."""


def scipy_signal() -> Any:
    """scipy.signal, which takes a second to import."""
    import scipy.signal

    return scipy.signal


@functools.lru_cache(maxsize=64)
def is_known(dtype: np.dtype[Any]) -> bool:
    """Whether numconv has kernels for a dtype, whose name takes as long to find as a small convolution."""
    return dtype.name in SHORT


def common_arrays(in1: Any, in2: Any, mode: str) -> tuple[Any, Any] | None:
    """Both inputs in their common dtype; None if that or something else is SciPy's affair."""
    x, k = np.asarray(in1), np.asarray(in2)
    if x.ndim != k.ndim or not x.ndim or not (x.size and k.size) or mode not in MODES:
        return None
    dtype = np.result_type(x, k)
    if not is_known(dtype) and dtype.kind != "b":
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


@functools.lru_cache(maxsize=256)
def mode_padding(kernel: tuple[int, ...], mode: str) -> tuple[tuple[int, int], ...]:
    """(low, high) of each dimension."""
    if mode == "valid":
        return ((0, 0),) * len(kernel)
    return tuple((r - 1, r - 1) if mode == "full" else (r // 2, (r - 1) // 2) for r in kernel)


def convolved(
    x: Any, w: Any, padding: tuple[tuple[int, int], ...], method: str = "auto", pad_mode: str = "zeros", groups: int = 1,
    *, flip: bool = True,
) -> Any:  # fmt: skip
    """The convolution of x ``[N, C, *S]`` with w ``[K, C/G, *R]``, of one dtype, by a method of `convolve`."""
    return _plan(current(), x.shape, w.shape, x.dtype, padding, method, pad_mode, groups, flip)(x, w)


@functools.lru_cache(maxsize=1024)
def _plan(
    _settings: Context, x: tuple[int, ...], w: tuple[int, ...], dtype: np.dtype[Any], padding: Any, method: str, pad_mode: str,
    groups: int, flip: bool,
) -> Plan:  # fmt: skip
    """The plan for shapes, under the settings in force: an argument, so that no plan outlives them."""
    options: dict[str, Any] = {"padding": padding, "pad_mode": pad_mode, "groups": groups, "flip": flip}
    try:
        return plan("conv", x, w, dtype, **options, **_CHOICES[method])
    except NumconvError:  # a backend without transforms, or too few terms for their accuracy
        if method != "fft":
            raise
        return plan("conv", x, w, dtype, **options)
