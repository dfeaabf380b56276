"""Forward convolution as a sum of shifted slices of x, one for each channel and tap."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from numconv.plugin import ConvProblem, Executor, Implementation, Verdict, activate

__all__ = ["ShiftedSum"]


class ShiftedSum(Implementation):
    """``y[n, k] += w[k, c, tap] * x[n, c, shifted by tap]``, in the order c, then tap.

    Only the outputs that a tap reaches inside x are touched: padding zeros are no terms, and x is never copied.
    """

    name = "shifted"
    ops = frozenset({"forward"})
    levels = frozenset({"high", "default", "fast"})  # not "strict": a product is rounded before it is added

    def supports(self, problem: ConvProblem) -> Verdict:
        """Every stride, padding, dilation and number of dimensions; a reason for each of the rest."""
        if problem.pad_mode != "zeros":
            return Verdict.no(f"pad_mode {problem.pad_mode!r} is not supported (has zeros)")
        if problem.groups != 1:
            return Verdict.no(f"groups={problem.groups} is not supported (has 1)")
        if problem.flip:
            return Verdict.no("flip=True is not supported")
        if problem.out_dtype in ("float16", "bfloat16"):
            return Verdict.no(f"dtype {problem.out_dtype} is not supported: sums are held in the dtype of the output")
        return Verdict.yes()

    def cost(self, problem: ConvProblem) -> float:
        """Seconds: a NumPy call for every slice, and two passes over it at about 1 GFLOP/s."""
        slices = problem.n * problem.k * problem.c * math.prod(problem.kernel)
        return 3e-6 * slices + 1e-9 * problem.flops

    def workspace(self, problem: ConvProblem) -> int:
        """One product at a time."""
        return math.prod(problem.output) * np.dtype(problem.out_dtype).itemsize

    def build(self, problem: ConvProblem) -> Executor:
        """The slices depend on the shapes alone: they are worked out once."""
        terms = []
        for tap in np.ndindex(*problem.kernel):
            to, source = zip(*(_reach(problem, axis, position) for axis, position in enumerate(tap)), strict=True)
            terms.append((tap, to, source))
        return functools.partial(_run, problem.activation, terms)


def _reach(problem: ConvProblem, axis: int, tap: int) -> tuple[slice, slice]:
    """Along an axis: the outputs for which a tap lies inside x, and what they read there."""
    stride = problem.stride[axis]
    shift = tap * problem.dilation[axis] - problem.padding[axis][0]
    first = max(0, -(shift // stride))
    stop = max(first, min(problem.output[axis], (problem.spatial[axis] - 1 - shift) // stride + 1))
    start = first * stride + shift
    return slice(first, stop), slice(start, start + (stop - first) * stride, stride)


def _run(activation: str | None, terms: Sequence[Any], outs: Sequence[Any], ins: Sequence[Any]) -> None:
    (y,), (x, w, *bias) = outs, ins
    y[...] = 0
    with np.errstate(over="ignore", invalid="ignore"):
        for n, k, c in np.ndindex(y.shape[0], *w.shape[:2]):
            for tap, to, source in terms:
                y[n, k][to] += np.multiply(x[n, c][source], w[k, c][tap], dtype=y.dtype)
        if bias:
            y += bias[0].reshape(-1, *(1,) * (y.ndim - 2))
    activate(y, activation)
