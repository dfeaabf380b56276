"""Convolution and its gradients by cuDNN."""

from __future__ import annotations

from typing import ClassVar

from numconv.plugin import CONV_OPS, ConvProblem, Executor, Implementation, Verdict, requested_tuning

from .calls import Calls
from .driver import Driver
from .translation import supported

__all__ = ["Convolution", "Transforms"]

_LAUNCH = 3e-5
_SHARES = {"float16": 8.0, "bfloat16": 8.0, "float32": 0.8}
_PEAK = 1e13
_BANDWIDTH = 1e12


class Convolution(Implementation):
    """What cuDNN's heuristics choose among the engines that an accuracy level allows."""

    name: ClassVar[str] = "graph"
    ops: ClassVar[frozenset[str]] = frozenset(CONV_OPS)
    levels: ClassVar[frozenset[str]] = frozenset({"high", "default", "fast"})

    def __init__(self, driver: Driver):
        self.driver = driver

    def supports(self, problem: ConvProblem) -> Verdict:
        """What is known before a graph is built."""
        return supported(problem)

    def cost(self, problem: ConvProblem) -> float:
        """On no particular GPU, for an order: see ``docs/cupy.md``."""
        share = _SHARES[problem.dtype] * (6 if problem.level == "fast" and problem.dtype == "float32" else 1)
        if problem.c == problem.groups:
            share *= 0.05
        return _LAUNCH + max(problem.flops / (_PEAK * share), problem.bytes / _BANDWIDTH)

    def workspace(self, problem: ConvProblem) -> int:
        """Engines that need more are not taken; how much the chosen one needs is known when a graph is built."""
        return problem.max_workspace

    def build(self, problem: ConvProblem) -> Executor:
        """Graphs are built at the first call with arrays of some strides, and kept; with tuning their engines are timed then."""
        return Calls(self.driver, problem, timed=requested_tuning())


class Transforms(Convolution):
    """As `Convolution`, with cuDNN's engines of Winograd's algorithm and by FFT among those that its heuristics choose from.

    For gradients of x alone: in runs on an H200, whose figures are not kept, they were faster there and slower in other passes.
    """

    name = "transforms"
    ops = frozenset({"input_grad"})
    levels = frozenset({"default", "fast"})

    def supports(self, problem: ConvProblem) -> Verdict:
        """Dense, two-dimensional, with more than one tap, in float32."""
        if problem.dtype != "float32" or problem.ndim != 2:
            return Verdict.no(f"{problem.dtype} in {problem.ndim} dimensions; this is for float32 in 2")
        if problem.groups > 1 or max(problem.kernel) == 1:
            return Verdict.no("this is for dense convolutions of more than one tap")
        return supported(problem)

    def cost(self, problem: ConvProblem) -> float:
        """Less than that of the other engines, but for those on tensor cores."""
        return super().cost(problem) * (2.0 if problem.level == "fast" else 0.6)

    def build(self, problem: ConvProblem) -> Executor:
        """As `Convolution`, with other engines."""
        return Calls(self.driver, problem, transforms=True, timed=requested_tuning())
