"""How far a result may be from the reference's: one table."""

from __future__ import annotations

import math
from typing import Any

from numconv.plugin import Implementation

__all__ = ["TINY", "bound", "is_exact"]

_EPS = {
    "float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52,
    "complex64": 2.0**-23, "complex128": 2.0**-52,
}  # fmt: skip
TINY = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "complex64": 2.0**-149}
# What the levels allow at least where sums are held in single and in double precision. "fast": both factors rounded to bfloat16.
_LEAST = {"strict": (0.0, 0.0), "high": (0.0, 0.0), "default": (1e-5, 1e-13), "fast": (2.0**-8, 1e-13)}
_MOVES = ("max_pool", "pad", "unfold", "max_unpool", "max_unpool_backward")


def bound(problem: Any) -> float:
    """The largest error that a result may have, relative to the magnitude of its element.

    The magnitude is the same operation on the absolute values of x, w and bias. The error of a sum in plain arithmetic grows about
    with the square root of the number of its terms, so that is the bound at the levels "strict" and "high".

    ==================== =========================================================================================
    integers, moves      0: pad, unfold, max_pool, max_unpool and its gradient do no arithmetic
    "strict", "high"     eps of the accumulation dtype * (2 + 2 sqrt(terms)); for lp_pool times 1 + max(p, 1/p)
    "default"            the larger of that and 1e-5 in single precision, 1e-13 in double
    "fast"               the larger of that and 2**-8 in single precision, 1e-13 in double
    float16, bfloat16    eps of the dtype is added: the rounding of the result
    ==================== =========================================================================================

    Parameters
    ----------
    problem : ConvProblem, PoolProblem or WindowProblem

    Returns
    -------
    float

    Examples
    --------
    >>> from numconv.plugin import parse
    >>> from numconv.testing import bound
    >>> bound(parse("conv forward f32 n1 c1 k1 g1 in8 w4 s1 p0 d1 accuracy=high")) / 2**-23
    6.0
    """
    if problem.op in _MOVES or "int" in problem.dtype:
        return 0.0
    double = problem.acc_dtype in ("float64", "complex128")
    sums = _EPS[problem.acc_dtype] * (2 + 2 * math.sqrt(problem.terms))
    if problem.op.startswith("lp_pool"):
        sums *= 1 + max(problem.p, 1 / problem.p)
    rounding = _EPS[problem.out_dtype] if problem.out_dtype in ("float16", "bfloat16") else 0.0
    return max(sums, _LEAST[problem.level][double]) + rounding


def is_exact(problem: Any, implementation: Implementation, integer: bool) -> bool:
    """Whether the result must be that of the reference, bit for bit (promise 1)."""
    if bound(problem) == 0:
        return True
    divides = problem.op.startswith(("avg_pool", "lp_pool")) or getattr(problem, "activation", None) in ("silu", "gelu")
    return integer and not divides and not implementation.levels.isdisjoint(("strict", "high"))
