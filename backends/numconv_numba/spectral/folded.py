"""Input gradients where the padding is not of zeros: the gradient of the padded x, an image at a time, folded back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numconv.plugin import ConvProblem, WindowProblem, activate, np_dtype
from numconv_numba.pooling.windows import Windows

__all__ = ["Folded", "folded_bytes", "unpadded"]


def unpadded(problem: ConvProblem) -> ConvProblem:
    """The input_grad of one padded image, as if x had been padded before."""
    spatial = tuple(size + low + high for size, (low, high) in zip(problem.spatial, problem.padding, strict=True))
    return problem.replace(
        n=1,
        spatial=spatial,
        padding=((0, 0),) * problem.ndim,
        pad_mode="zeros",
        bias="",
        activation=None,
        out_dtype=problem.acc_dtype,
    )


def folded_bytes(problem: ConvProblem) -> int:
    """Of a padded image, and of one that is folded."""
    return problem.c * (math.prod(unpadded(problem).spatial) + math.prod(problem.spatial)) * np_dtype(problem.acc_dtype).itemsize


class Folded:
    """Executes an input_grad through the executor of `unpadded`."""

    def __init__(self, problem: ConvProblem, executor: Any):
        self._problem = problem
        self._executor = executor
        self._fold = Windows().build(
            WindowProblem(
                op="pad_backward", dtype=problem.acc_dtype, n=1, c=problem.c, spatial=problem.spatial, window=(1,) * problem.ndim,
                stride=(1,) * problem.ndim, padding=problem.padding, dilation=(1,) * problem.ndim, pad_mode=problem.pad_mode,
            )
        )  # fmt: skip

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        self._run(outs[0], ins[0], ins[2:], lambda outs, y: self._executor(outs, (y, ins[1])))

    def bind(self, w: Any) -> Any:
        """The executor with the bound weights of the other."""
        bound = self._executor.bind(w)
        return lambda outs, ins: self._run(outs[0], ins[0], ins[1:], lambda outs, y: bound(outs, (y,)))

    def _run(self, x: Any, y: Any, bias: Any, executor: Any) -> None:
        problem, dtype = self._problem, np_dtype(self._problem.acc_dtype)
        padded = np.empty((1, problem.c, *unpadded(problem).spatial), dtype)
        folded = np.empty((1, problem.c, *problem.spatial), dtype)
        for n in range(problem.n):
            executor((padded,), y[n : n + 1])
            self._fold((folded,), (padded,))
            if bias:
                folded += bias[0].reshape(-1, *[1] * problem.ndim)
            activate(folded, problem.activation)
            x[n] = folded[0]
