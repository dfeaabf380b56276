"""Input gradients of depthwise convolutions with a small stride, so also upsampling by transposed convolutions, for real floats.

A row of the gradient is gathered, as in `vector_pooling`: each phase of the stride has taps of its own along the row, its sums
stay in a register from the first term to the last, and the phases are woven together as they are stored. So the gradient is
written once, row after row, and no zeros are multiplied.

The terms of an element form one chain in the order of the "strict" level.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from numconv.plugin import ConvProblem, Implementation, Verdict, activate, np_dtype
from numconv_numba.direct import MEASURED_ERROR, Direct
from numconv_numba.microkernels.emit import lanes_of
from numconv_numba.microkernels.windows import HEAD, ROW_ENTRY
from numconv_numba.sliding import ADVANCE, Rows, gathered_in_vectors, slide
from numconv_numba.threads import MAX_THREADS, run

__all__ = ["Woven"]

TERM_SECONDS = 3e-10
"""Of a vector of one tap, on two threads."""
ROW_SECONDS = 8e-9
"""Of a row of results, on two threads."""


class _Executor:
    """The microkernel, its tables, and `direct` for arrays whose rows are not neighbours in memory."""

    def __init__(self, problem: ConvProblem):
        self._problem = problem
        self._rows = Rows(problem, back=True, innermost=False)
        self._run = functools.partial(run, slide.specialise(), self._rows.items, 3 * problem.bytes + problem.flops)
        self._tool = self._rows.tool("product", problem.dtype)
        self._relu = problem.activation == "relu"
        self._vectors = functools.lru_cache(maxsize=64)(self._vector)

    @functools.cached_property
    def _general(self) -> Any:
        return Direct().build(self._problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        (grad,), (y, w, *bias) = outs, ins
        if any(array.strides[-1] != array.itemsize for array in (grad, y)):
            self._general(outs, ins)
        elif self._problem.n:
            weights = self._packed(w, bias)
            self._run(self._tool, y, grad, weights, 0, self._vectors(y.strides, grad.strides, weights.strides[0]))
            if not self._relu:
                activate(grad, self._problem.activation)

    def _packed(self, w: Any, bias: Any) -> Any:
        """Of each channel what is added, whether results are rectified, and the weights."""
        packed = np.empty((len(w), HEAD + math.prod(w.shape[1:])), w.dtype)
        packed[:, 0] = bias[0] if bias else 0
        packed[:, 1] = self._relu
        packed[:, HEAD:] = w.reshape(len(w), -1)
        return packed

    def _vector(self, y: tuple[int, ...], grad: tuple[int, ...], channel: int) -> Any:
        """The vector of the driver for arrays of these strides."""
        g = self._rows.vector(y, grad, (0, channel, *(0,) * self._problem.ndim)).copy()
        g[ADVANCE] = self._problem.kernel[-1]
        return g


class Woven(Implementation):
    """The input gradient of a depthwise convolution with a stride of 2 to 4 along the rows."""

    name = "woven"
    ops = frozenset(("input_grad",))
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def supports(self, problem: ConvProblem) -> Verdict:
        """One channel a group, float32 or float64, up to four dimensions, padding of zeros."""
        if problem.dtype not in ("float32", "float64") or problem.out_dtype != problem.dtype:
            return Verdict.no(f"{problem.dtype} to {problem.out_dtype}: it takes and gives float32, or float64")
        if not problem.c == problem.groups == problem.k:
            return Verdict.no(f"{problem.c} and {problem.k} channels in {problem.groups} groups: it takes one a group")
        if problem.layout == "channels_last" or problem.pad_mode != "zeros" or problem.flip:
            return Verdict.no(f"layout {problem.layout}, mode {problem.pad_mode}, flip {problem.flip}: it takes none of these")
        if problem.stride[-1] == 1:
            return Verdict.no("stride 1 along the rows: there are no phases to weave")
        return gathered_in_vectors(problem)

    def cost(self, problem: ConvProblem) -> float:
        """The time to move the arrays, to begin the rows, and for each vector of terms."""
        rows, phases = problem.n * problem.c * math.prod(problem.spatial[:-1]), problem.stride[-1]
        vectors = -(-problem.spatial[-1] // (phases * lanes_of(problem.dtype))) * phases
        terms = math.prod(taps / s for taps, s in zip(problem.kernel, problem.stride, strict=True))
        return 3e-6 + problem.bytes / 5e10 + rows * (ROW_SECONDS + vectors * (1 + terms) * TERM_SECONDS)

    def workspace(self, problem: ConvProblem) -> int:
        """For each thread the lists of the rows of a plane; the weights with their heads."""
        lists = math.prod(problem.spatial[-2:-1]) * ROW_ENTRY * (math.prod(problem.kernel[:-1]) + 1)
        return MAX_THREADS * (lists + 256) + problem.c * (HEAD + math.prod(problem.kernel)) * np_dtype(problem.dtype).itemsize

    def build(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
