"""The dtypes in which the reference computes, and the one rounding at its end."""

from __future__ import annotations

from typing import Any

import numpy as np

from numconv.plugin import Problem, np_dtype

from .fma import odd_float32

__all__ = ["store", "wide_dtype"]

_WIDE = {
    "float16": np.float64, "bfloat16": np.float64, "float32": np.float64, "float64": np.longdouble,
    "complex64": np.complex128, "complex128": np.clongdouble,
}  # fmt: skip


def wide_dtype(problem: Problem) -> np.dtype[Any]:
    """A dtype wider than that of the output, so that one rounding decides the result; integers wrap in their own."""
    return np.dtype(_WIDE.get(problem.out_dtype) or np_dtype(problem.out_dtype))


def store(out: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> None:
    """Write `values` to `out`, rounded once to its dtype, whatever the strides of `out`."""
    if out.dtype.name == "bfloat16":
        values = odd_float32(values.astype(np.float64))  # ml_dtypes itself rounds to float32 first
    out[...] = values.astype(out.dtype)
