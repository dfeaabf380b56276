"""The array namespace of what an executor gets, and the few operations in which namespaces differ.

The algorithms made of array operations (`products`, `fft`) take their functions from the module of their arrays, so that the same
code runs on CuPy, and in tests on NumPy and on array_api_strict. Nothing here waits for a device or copies to the host.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from numconv.plugin import cupy_stream, cupy_view, np_dtype

__all__ = ["Arrays", "dtype_in", "empty_like", "namespace", "on_namespace", "strided_windows", "zeros_like"]

Arrays = Sequence[Any]


def namespace(array: Any) -> Any:
    """The module of functions for an array: ``cupy``, ``numpy``, ``array_api_strict``."""
    return sys.modules[type(array).__module__.split(".")[0]]


def on_namespace(run: Callable[..., None]) -> Callable[..., None]:
    """An executor on arrays that have a namespace: those of other libraries on a GPU become views of CuPy, on their stream."""

    @functools.wraps(run)
    def executor(outs: Arrays, ins: Arrays) -> None:
        with cupy_stream(outs[0]):
            run([cupy_view(each) for each in outs], [cupy_view(each) for each in ins])

    return executor


def dtype_in(xp: Any, name: str) -> Any:
    """A namespace's dtype of this name."""
    return np_dtype(name) if xp.__name__ in ("numpy", "cupy") else getattr(xp, name)


def empty_like(array: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """Working memory on the device of `array`; of CuPy from the caller's memory pool."""
    xp = namespace(array)
    if xp.__name__ in ("numpy", "cupy"):
        return xp.empty(shape, dtype_in(xp, dtype))
    return xp.empty(shape, dtype=dtype_in(xp, dtype), device=array.device)


def zeros_like(array: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """Zeros on the device of `array`."""
    xp = namespace(array)
    if xp.__name__ in ("numpy", "cupy"):
        return xp.zeros(shape, dtype_in(xp, dtype))
    return xp.zeros(shape, dtype=dtype_in(xp, dtype), device=array.device)


def strided_windows(slab: Any, window: Sequence[int], output: Sequence[int], step: Sequence[int], dilation: Sequence[int]) -> Any:
    """What the taps of every output read, ``[*lead, *R, *Q]``, of a slab ``[*lead, *S]``: a view where there are strides.

    array_api_strict has no strides: there the taps are slices, put together in a copy.
    """
    xp = namespace(slab)
    ndim = len(window)
    lead = slab.ndim - ndim
    if hasattr(xp, "lib"):
        steps = slab.strides[lead:]
        strides = (
            *slab.strides[:lead],
            *(s * d for s, d in zip(steps, dilation, strict=True)),
            *(s * each for s, each in zip(steps, step, strict=True)),
        )
        return xp.lib.stride_tricks.as_strided(slab, (*slab.shape[:lead], *window, *output), strides)
    taps = []
    for tap in np.ndindex(*window):
        where = [slice(t * d, t * d + (q - 1) * s + 1, s) for t, d, q, s in zip(tap, dilation, output, step, strict=True)]
        taps.append(slab[(..., *where)])
    return xp.reshape(xp.stack(taps, axis=lead), (*slab.shape[:lead], *window, *output))
