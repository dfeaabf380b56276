"""The end of a convolution in array operations: bias, activation, one rounding; and the gradient of the bias."""

from __future__ import annotations

import math
from typing import Any

from numconv.plugin import ConvProblem

from .namespaces import Arrays, dtype_in, namespace

__all__ = ["bias_sums", "store"]


def store(problem: ConvProblem, out: Any, sums: Any, bias: Arrays) -> None:
    """Write sums ``[n, channels, *positions]`` with the bias and the activation of a problem; they may broadcast."""
    xp = namespace(out)
    if bias:
        sums = sums + xp.reshape(xp.astype(bias[0], sums.dtype, copy=False), (1, -1, *(1,) * (sums.ndim - 2)))
    sums = activated(xp, sums, problem.activation if problem.op != "weight_grad" else None)
    out[...] = xp.astype(sums, dtype_in(xp, problem.out_dtype), copy=False)


def activated(xp: Any, sums: Any, activation: str | None) -> Any:
    """The activation in the dtype of the sums."""
    if activation == "relu":
        return xp.where(sums < 0, xp.zeros_like(sums), sums)
    if activation == "silu":
        return sums / (1 + xp.exp(-sums))
    if activation == "gelu":
        return 0.5 * sums * _erfc(xp, sums * -math.sqrt(0.5))
    return sums


def _erfc(xp: Any, values: Any) -> Any:
    """Which the array API does not have."""
    if xp.__name__ == "cupy":
        from cupyx.scipy.special import erfc
    else:
        from scipy.special import erfc
    return erfc(values)


def bias_sums(problem: ConvProblem, out: Any, values: Any) -> None:
    """The sum over all but the channels."""
    xp = namespace(values)
    axes = (0, *range(2, values.ndim))
    sums = xp.sum(values, axis=axes, dtype=dtype_in(xp, problem.acc_dtype))
    out[...] = xp.astype(sums, dtype_in(xp, problem.out_dtype), copy=False)
