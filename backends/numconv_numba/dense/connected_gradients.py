"""Gradients of fully connected layers, for real floats: rows of w, or of x, combined where they lie.

The gradient of x is a combination of the rows of w, that of w combines those of x; neither is packed or transposed. See
`microkernels.combinations`. As a transposed convolution, such as the first layer of a generator of images, the former gets a bias
and an activation before it leaves the caches. Every element is one chain of multiply-adds in the order of the "strict" level.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from numconv.plugin import ConvProblem, Implementation, Verdict, np_dtype
from numconv_numba.activations import ACTIVATIONS
from numconv_numba.compiling.compiler import Address, Tag, helper, invoke, kernel
from numconv_numba.direct import MEASURED_ERROR, Direct
from numconv_numba.elements import itemsize
from numconv_numba.entries import DRESS
from numconv_numba.microkernels.combinations import combine
from numconv_numba.microkernels.emit import lanes_of
from numconv_numba.scalar import is_null
from numconv_numba.threads import parallel_for, run
from numconv_numba.tools import dot_tools

from .blocked import CALL_SECONDS, parts_for, seconds
from .inner_product import STREAM_BYTES, copied_bytes, in_order, is_beyond_copying, is_connected, lies_in_order

__all__ = ["ConnectedGradients"]

LEAST_COLUMNS, LEAST_ROWS = 512, 16
"""Of a row, and rows, that are worth an item of their own."""
LOAD_CYCLES, AGAIN_CYCLES = 0.8, 1.5
"""Of a vector of multiply-adds, with few rows to share what is loaded; where w is read again for more images."""
DRESS_CYCLES = 4
"""Of a vector of results that gets its bias and activation."""


@helper
def _parts(begin, end, args):
    size, call, dressed, row_parts, column_parts, factors, source, target, bias, code, sizes, steps, groups = args
    rows, terms, columns = sizes
    factor_i, factor_j, source_j, target_i = steps
    factor_group, source_group, target_group = groups
    for item in range(begin, end):
        column, row, group = item % column_parts, item // column_parts % row_parts, item // column_parts // row_parts
        first, last = rows * row // row_parts, rows * (row + 1) // row_parts
        left, right = columns * column // column_parts, columns * (column + 1) // column_parts
        place = target + (group * target_group + first * target_i + left * size)
        invoke(
            call, factors + (group * factor_group + first * factor_i), factor_i, factor_j,
            source + (group * source_group + left * size), source_j, place, target_i, last - first, terms, right - left,
        )  # fmt: skip
        if dressed:
            shift = bias if is_null(bias) else bias + (group * columns + left) * size
            invoke(dressed, place, target_i, last - first, right - left, shift, 0, code, place, target_i)


@kernel
def combinations(
    at: Tag, region: int, workers: int, items: int, call: int, dressed: int, row_parts: int, column_parts: int, factors: Address,
    source: Address, target: Address, bias: Address, code: int, rows: int, terms: int, columns: int, factor_i: int, factor_j: int,
    source_j: int, target_i: int, factor_group: int, source_group: int, target_group: int,
) -> None:  # fmt: skip
    """`combine`, at the address `call`, for each group: an item is a part of the rows and of the columns.

    `dressed`: the address of `dress`, which adds the bias of each column of each group and applies the activation, or 0.
    """
    parallel_for(
        region,
        workers,
        items,
        _parts,
        (
            itemsize(at), call, dressed, row_parts, column_parts, factors, source, target, bias, code, (rows, terms, columns),
            (factor_i, factor_j, source_j, target_i), (factor_group, source_group, target_group),
        ),
    )  # fmt: skip


def _is_dressed(problem: ConvProblem) -> bool:
    """Whether a gradient of x gets a bias or an activation."""
    return problem.op == "input_grad" and bool(problem.bias or problem.activation)


class _Executor:
    """One gradient of a fully connected layer."""

    def __init__(self, problem: ConvProblem):
        self._problem = problem
        self._per_c, self._per_k = problem.c // problem.groups, problem.k // problem.groups
        self._columns = self._per_c * math.prod(problem.kernel)
        self._of_x = problem.op == "input_grad"
        rows, terms = (problem.n, self._per_k) if self._of_x else (self._per_k, problem.n)
        self._sizes = rows, terms, self._columns
        self._work = problem.flops / 2 + problem.groups * rows * self._columns
        lanes = lanes_of(problem.dtype)
        self._call = combine.address(lanes, problem.dtype)
        self._dressed = int(dot_tools(problem.dtype, lanes)[DRESS]) if _is_dressed(problem) else 0
        self._kernel = combinations.specialise(problem.dtype)

    @functools.cached_property
    def _direct(self) -> Any:
        """What gives the gradient of the bias, and takes arrays in any order."""
        return Direct().build(self._problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        target, y = outs[0], ins[0]
        if is_beyond_copying(ins[1], 1) or is_beyond_copying(target, 1):
            self._direct(outs, ins)
            return
        source = in_order(ins[1], 1)
        result = target if lies_in_order(target, 1) else np.empty(target.shape, target.dtype)
        n, k = y.strides[0], y.strides[1]
        if self._of_x:
            steps = n, k, source.strides[0], result.strides[0]
            groups = self._per_k * k, self._per_k * source.strides[0], self._per_c * result.strides[1]
        else:
            steps = k, n, source.strides[0], result.strides[0]
            groups = self._per_k * k, self._per_c * source.strides[1], self._per_k * result.strides[0]
        self._launch(y, source, result, ins[2:], steps, groups)
        if result is not target:
            target[...] = result
        if len(outs) > 1:
            self._direct.bias_grad(outs[1], y, ins[1], target)

    def _launch(self, factors: Any, source: Any, target: Any, bias: Any, steps: tuple[int, ...], groups: tuple[int, ...]) -> None:
        rows = self._problem.groups
        shift = np.repeat(bias[0], math.prod(self._problem.kernel)) if bias else 0
        row_parts = parts_for(rows, max(1, self._sizes[0] // LEAST_ROWS), self._work)
        column_parts = parts_for(rows * row_parts, max(1, self._columns // LEAST_COLUMNS), self._work)
        run(
            self._kernel, rows * row_parts * column_parts, self._work, self._call, self._dressed, row_parts, column_parts, factors,
            source, target, shift, ACTIVATIONS[self._problem.activation], *self._sizes, *steps, *groups,
        )  # fmt: skip


class ConnectedGradients(Implementation):
    """Gradients of layers whose kernels cover x, with the lanes over the terms of an output channel."""

    name = "inner_product"
    ops = frozenset(("input_grad", "weight_grad"))
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def supports(self, problem: ConvProblem) -> Verdict:
        """Fully connected layers in float32 or float64."""
        if problem.dtype not in ("float32", "float64") or problem.out_dtype != problem.dtype:
            return Verdict.no(f"its tiles are for float32 or float64 alone, and here {problem.dtype} becomes {problem.out_dtype}")
        if not is_connected(problem) or any(low or high for low, high in problem.padding):
            return Verdict.no(f"kernels have to cover x, and {problem.kernel} is not all of {problem.spatial} without padding")
        return Verdict.yes()

    def cost(self, problem: ConvProblem) -> float:
        """Products; the way of w from or to memory, which its gradient takes twice; a bias and an activation of their own pass."""
        item = np_dtype(problem.dtype).itemsize
        sweeps = -(-problem.n // 8) if problem.op == "input_grad" else 2
        streamed = math.prod(problem.w_shape) * item * sweeps / STREAM_BYTES
        again = problem.op == "input_grad" and sweeps > 1
        products = problem.flops / 2 / lanes_of(problem.dtype) * (AGAIN_CYCLES if again else LOAD_CYCLES)
        dressed = math.prod(problem.x_shape) / lanes_of(problem.dtype) * DRESS_CYCLES * _is_dressed(problem)
        return CALL_SECONDS + 1e-6 + seconds(products + streamed + dressed)

    def workspace(self, problem: ConvProblem) -> int:
        """Copies of what does not lie in order, and a bias for each column; or what `direct` needs."""
        shift = math.prod(problem.x_shape[1:]) * np_dtype(problem.dtype).itemsize * _is_dressed(problem)
        return max(copied_bytes(problem) + shift, Direct().workspace(problem))

    def build(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
