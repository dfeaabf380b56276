"""What is left of a weight gradient when tiles have summed up taps: to write it, the bias, and what is not finite."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from numconv.plugin import ConvProblem
from numconv_numba.direct import Direct

__all__ = ["Finish", "in_order"]


def in_order(found: Any, problem: ConvProblem) -> Any:
    """A gradient whose taps lie in the order in which windows meet them, in the order of w."""
    return np.flip(found, tuple(range(2, found.ndim))) if problem.flip else found


class Finish:
    """Writes the gradient of a problem, with the help of `direct`."""

    def __init__(self, problem: ConvProblem):
        self._problem = problem

    @functools.cached_property
    def _direct(self) -> Any:
        return Direct().build(self._problem)

    def again(self, outs: Any, ins: Any) -> bool:
        """Whether the inputs hold what is not finite, which zeros that are no terms may have met: then `direct` has computed."""
        if all(np.isfinite(each).all() for each in ins):
            return False
        self._direct(outs, ins)
        return True

    def __call__(self, outs: Any, ins: Any, found: Any, shift: Any) -> None:
        """The results from the gradient of w, which may be there already, and, if it is one of y, of the bias."""
        (w, *bias), (y, x) = outs, ins
        if found is not w:
            w[...] = found
        if bias and shift is not None:
            bias[0][...] = shift
        elif bias:
            self._direct.bias_grad(bias[0], y, x, w)
