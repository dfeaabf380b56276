"""Estimated costs: seconds on the GPU at hand, whose rates its driver tells.

A kernel is bound by arithmetic or by memory: an estimate is the larger of both floors, each over the share of its rate that the
implementation reaches. All numbers here are constants, so that every run chooses the same. They were set after runs on an H200, and
``asv_bench/gpu/nvidia-h200.json`` keeps what the rows of `numconv bench` took there. What no row shows by itself (CALL, START,
CACHED, the shares of "direct" and "rows") is an estimate.
"""

from __future__ import annotations

from typing import Any

from numconv.plugin import ConvProblem, np_dtype, nvidia_rates

__all__ = ["START", "again", "cost_of", "moved"]

CALL = 1.5e-5
"""Seconds of a call, and of its first launch, from Python."""
START = 3e-6
"""Seconds that any kernel takes."""
STREAM = 0.65
"""The share of the rate of memory."""
CACHED = 1.5
"""The share of the rate of memory at which what another block has read comes from caches."""
SHARE = {"direct": 0.02, "implicit_gemm": 0.5, "tensor_cores": 0.2, "strips": 0.28, "planes": 0.45, "rows": 0.02}
"""The shares of the rate of arithmetic: that of tensor cores, or of multiply-adds."""


def cost_of(problem: ConvProblem, name: str, waste: float = 1.0) -> float:
    """Estimated seconds of kernels that compute `waste` times the products of the problem."""
    rates = nvidia_rates()
    if name == "tensor_cores":
        peak = rates.tf32 if problem.dtype == "float32" else 2 * rates.tf32
    else:
        peak = rates.double if problem.acc_dtype in ("float64", "complex128") else rates.single
    return CALL + START + max(waste * problem.flops / (peak * SHARE[name]), problem.bytes / (rates.memory * STREAM))


def again(elements: int, problem: ConvProblem) -> float:
    """Estimated seconds of a kernel that reads so many elements, which it finds in caches for the most part."""
    return CALL + START + elements * np_dtype(problem.dtype).itemsize / (nvidia_rates().memory * CACHED)


def moved(problem: Any) -> float:
    """Estimated seconds of an operation that is bound by memory."""
    rates = nvidia_rates()
    return CALL + START + problem.bytes / (rates.memory * STREAM) + problem.flops / (rates.single * SHARE["strips"])
