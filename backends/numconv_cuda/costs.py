"""The order of implementations on a GPU that nobody has calibrated: a table by class of problem.

A cost is the larger of two floors, arithmetic and memory, over the share of it that the implementation is expected to reach, plus a
launch. The rates are round numbers of no device in particular; only their order decides, and only within this backend. No figure
here was measured on a device.
"""

from __future__ import annotations

from typing import Any

from numconv.plugin import ConvProblem

__all__ = ["cost_of", "moved"]

LAUNCH = 1e-5
"""Seconds of a launch from Python."""
FLOPS = {"float64": 1e12, "complex64": 1e13, "complex128": 1e12}
BYTES = 1e12
"""A second."""
SHARE = {"direct": 0.02, "implicit_gemm": 0.6, "tensor_cores": 1.5, "depthwise": 0.5}
"""Of the arithmetic floor."""


def cost_of(problem: ConvProblem, name: str, waste: float = 1.0) -> float:
    """Estimated seconds of an implementation that computes `waste` times the products of the problem."""
    arithmetic = waste * problem.flops / (FLOPS.get(problem.acc_dtype, 1e13) * SHARE[name])
    return LAUNCH + max(arithmetic, problem.bytes / BYTES)


def moved(problem: Any) -> float:
    """Estimated seconds of an operation that is bound by memory."""
    return LAUNCH + problem.bytes / BYTES + problem.flops / 1e12
