"""Convolution as a matrix product whose second factor is gathered on the way: see `pipelined` for the kernels.

Every sum is one chain of multiply-adds in the strict order, whatever the tile. At other levels than "strict" it may be split into
parts, see `schedule`, which are added up in a fixed order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from numconv.plugin import CONV_OPS, ConvProblem, Executor, Implementation, Verdict, np_dtype, scratch
from numconv_cuda.costs import cost_of
from numconv_cuda.direct import MEASURED_ERROR, bias_sums, bias_workspace, conv_geometry
from numconv_cuda.geometry import ACTIVATIONS, BIASED, Geometry, elements_of
from numconv_cuda.runtime.launching import launch, over, pointer, zero
from numconv_cuda.runtime.recording import recorded

from .finishing import finish_sums
from .gemm import FORWARD, INPUT_GRAD, WEIGHT_GRAD, Operation
from .neighbours import plain_ways, ways_of
from .phases import largest_phase
from .pipelined import product_kernel
from .places import NOWHERE
from .schedule import MOST_GROUPS, phases_of, schedule_of, shape_of, waste_of
from .tiles import Recipe

__all__ = ["MOST_GROUPS", "ImplicitGemm", "shape_of"]


class ImplicitGemm(Implementation):
    """For every dtype, wherever the gradient of x needs no folding."""

    name = "implicit_gemm"
    ops = frozenset(CONV_OPS)
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def supports(self, problem: ConvProblem) -> Verdict:
        """Gradients of x only where padding holds zeros; what fits a grid and its indices."""
        if problem.op == "input_grad" and problem.pad_mode != "zeros":
            return Verdict.no(f"input_grad with pad_mode {problem.pad_mode!r} folds the padding back, which it does not")
        if problem.groups * phases_of(problem) > MOST_GROUPS:
            return Verdict.no(f"{problem.groups} groups, and a grid has room for {MOST_GROUPS // phases_of(problem)}")
        longest = max(*problem.spatial, *problem.output)
        if longest >= -NOWHERE:
            return Verdict.no(f"positions on an axis of {longest} elements, and it counts {-NOWHERE}")
        rows, columns, _ = shape_of(problem)
        if -(-rows // schedule_of(problem).tile.rows) > MOST_GROUPS or columns >= 2**31:
            return Verdict.no(f"a product of {rows} rows and {columns} columns does not fit a grid")
        return Verdict.yes()

    def cost(self, problem: ConvProblem) -> float:
        """See `costs`, and `schedule` for what is wasted."""
        return cost_of(problem, self.name, waste_of(problem))

    def workspace(self, problem: ConvProblem) -> int:
        """Parts of the sums, and of the bias."""
        parts, bias = schedule_of(problem).parts, bias_workspace(problem) if problem.op == "weight_grad" else 0
        sums = math.prod(problem.output_shapes[0]) * parts * np_dtype(problem.acc_dtype).itemsize
        return bias + (sums if parts > 1 or problem.op == "weight_grad" else 0)

    def build(self, problem: ConvProblem) -> Executor:
        """``executor(outs, ins)`` of the operation."""
        run = {"forward": self._forward, "input_grad": self._input_grad, "weight_grad": self._weight_grad}[problem.op]
        return recorded(functools.partial(run, problem))

    def _forward(self, problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        (x, w, *bias), y = ins, outs[0]
        target = _sums(problem, y)
        g = conv_geometry(problem, x, w, target, target, bias)
        _multiply(problem, FORWARD, g, (y, *ins), (w, x, bias[0] if bias else w, target))
        _finish(problem, target, y, bias)

    def _input_grad(self, problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        (y, w, *bias), x = ins, outs[0]
        target = _sums(problem, x)
        g = conv_geometry(problem, target, w, y, target, bias)
        _multiply(problem, INPUT_GRAD, g, (x, *ins), (w, y, bias[0] if bias else w, target))
        _finish(problem, target, x, bias)

    def _weight_grad(self, problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        (y, x), w = ins, outs[0]
        parts = schedule_of(problem).parts
        sums = scratch((parts, math.prod(problem.w_shape)), np_dtype(problem.acc_dtype), y)
        _multiply(problem, WEIGHT_GRAD, conv_geometry(problem, x, w, y, w), (w, *ins), (y, x, y, sums))
        _add_up(problem, sums, w, (), parts)
        if problem.bias:
            bias_sums(problem, outs[1], ins[0 if problem.bias == "y" else 1])


def _sums(problem: ConvProblem, out: Any) -> Any:
    """Where a product is written: the result itself, or its parts, one behind the other as if they were a longer batch."""
    parts = schedule_of(problem).parts
    if parts == 1:
        return out
    n, *others = problem.output_shapes[0]
    return scratch((parts * n, *others), np_dtype(problem.acc_dtype), out)


def _multiply(problem: ConvProblem, operation: Operation, g: Geometry, arrays: Sequence[Any], factors: Sequence[Any]) -> None:
    """Launch the product of every group and part, if there is anything to compute; `factors` are (a, b, bias, out)."""
    rows, columns, terms = shape_of(problem)
    tile, parts = schedule_of(problem)
    if not rows * columns:
        return
    pointers, phases = [pointer(array) for array in factors], phases_of(problem)
    ways = plain_ways(operation) if phases > 1 else ways_of(operation, g, pointers, problem.dtype, problem.acc_dtype)
    folded, index = problem.pad_mode != "zeros", np.dtype(type(g.n)).name
    recipe = Recipe(tile, problem.acc_dtype, ways, problem.ndim, folded, phases > 1, problem.dtype != problem.acc_dtype, index)
    made = product_kernel(operation, recipe)
    if parts > 1:
        g = g._replace(option=type(g.n)(0))  # bias and activation come when the parts are added up
    across = problem.n * largest_phase(problem)[0] if phases > 1 else columns
    grid = (-(-across // tile.columns), -(-rows // tile.rows), problem.groups * parts * phases)
    sizes = (rows, columns, terms, parts, math.prod(problem.output_shapes[0]))
    launch(made, grid, tile.threads, arrays, *pointers, g, *sizes, zero(problem.acc_dtype))


def _finish(problem: ConvProblem, sums: Any, out: Any, bias: Sequence[Any]) -> None:
    """Add up the parts of results, if they are in parts."""
    parts = schedule_of(problem).parts
    if parts > 1:
        _add_up(problem, sums, out, bias, parts)


def _add_up(problem: ConvProblem, sums: Any, out: Any, bias: Sequence[Any], parts: int) -> None:
    """Add up the parts of each result in a fixed order, with bias and activation."""
    option = ACTIVATIONS[problem.activation] | (BIASED if bias else 0)
    step = elements_of(bias[0])[0] if bias else 0
    start, items = zero(problem.acc_dtype), math.prod(out.shape)
    pointers = pointer(sums), pointer(bias[0] if bias else sums), pointer(out)
    over(finish_sums, items, (out, *bias), *pointers, tuple(out.shape), elements_of(out), option, step, items, parts, start)
