"""Estimated costs: a fixed order by class of problem, since nobody calibrated the GPU at hand.

An estimate is the larger of operations over a share of a nominal peak and bytes over a nominal bandwidth, plus launches. The
nominal rates are those of no card, and none of this was measured on one; only the order matters. The shares make the table in
``docs/cupy.md``.
"""

from __future__ import annotations

import math
from typing import Any

from numconv.plugin import ConvProblem

__all__ = ["LAUNCH", "estimate", "moved", "problem_class", "seconds"]

LAUNCH = 1e-5
_PEAK = {"float64": 1e12, "complex64": 1e13, "complex128": 1e12}
_BANDWIDTH = 1e12

# The share of the peak that an algorithm is taken to reach, by the class of the problem.
_SHARES: dict[str, dict[str, float]] = {
    "pointwise": {"pointwise": 0.7, "matmul": 0.3, "tiled": 0.2, "few_channels": 0.06, "direct": 0.02},
    "depthwise": {"depthwise": 0.3, "direct": 0.05, "few_channels": 0.04, "matmul": 0.002, "tiled": 0.002},
    "few channels": {"few_channels": 0.1, "direct": 0.03, "matmul": 0.08, "tiled": 0.06},
    "dense": {"matmul": 0.3, "tiled": 0.25, "few_channels": 0.06, "direct": 0.02},
}
_BY_CUBLAS = ("pointwise", "matmul")
_LAUNCHES = {"direct": 1, "tiled": 1, "few_channels": 1, "depthwise": 1, "pointwise": 3, "matmul": 8}


def problem_class(problem: ConvProblem) -> str:
    """``pointwise``, ``depthwise``, ``few channels`` (up to four a group) or ``dense``."""
    if math.prod(problem.kernel) == 1 and problem.c // problem.groups > 4:
        return "pointwise"
    if problem.c == problem.groups:
        return "depthwise"
    return "few channels" if min(problem.c, problem.k) // problem.groups <= 4 else "dense"


def estimate(problem: ConvProblem, algorithm: str) -> float:
    """Seconds on no particular GPU, for an order."""
    share = _SHARES[problem_class(problem)][algorithm]
    if algorithm == "direct" and problem.op == "weight_grad" and problem.level == "strict":
        share /= 50  # a chain an element leaves most of a GPU idle
    if algorithm in _BY_CUBLAS and (problem.level == "fast" or problem.acc_dtype != problem.dtype or "complex" in problem.dtype):
        share *= 2  # TF32; and complex products have more operations a byte
    return seconds(problem, problem.flops, share, problem.bytes, _LAUNCHES[algorithm])


def seconds(problem: ConvProblem, operations: float, share: float, moved_bytes: float, launches: int) -> float:
    """The model behind every estimate of a convolution."""
    peak = _PEAK.get(problem.acc_dtype, 1e13)
    return LAUNCH * launches + max(operations / (share * peak), moved_bytes / _BANDWIDTH)


def moved(problem: Any, launches: int = 1) -> float:
    """Seconds for pooling and windows, which are bound by memory."""
    total: float = LAUNCH * launches + problem.bytes / _BANDWIDTH + problem.flops / 1e12
    return total
