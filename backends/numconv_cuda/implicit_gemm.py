"""Convolution as a matrix product whose second factor is gathered on the way: see `numconv_cuda.gemm` for the kernels.

Every sum is one chain of multiply-adds in the strict order, whatever the tile; but at other levels than "strict" that of a weight
gradient is split into parts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from numconv.plugin import CONV_OPS, ConvProblem, Executor, Implementation, Verdict, np_dtype, scratch

from .compiler import Kernel
from .costs import cost_of
from .direct import MEASURED_ERROR, add_up, bias_sums, bias_workspace, conv_geometry
from .gemm import FORWARD, INPUT_GRAD, WEIGHT_GRAD, Operation, Tile, product_kernel, tiles_of
from .geometry import Geometry
from .launching import launch, pointer, zero

__all__ = ["ImplicitGemm", "parts_of", "shape_of", "tile_of"]

BLOCKS = 264
"""Two for each multiprocessor of a large device: below this a smaller tile, or more parts, keep more of it busy."""
LEAST = 256
"""Terms of a part of a weight gradient."""
MOST_GROUPS = 65535
"""The limit of a grid's third dimension, on every device."""


def shape_of(problem: ConvProblem) -> tuple[int, int, int]:
    """(rows, columns, terms) of the matrix product of a group."""
    taps = math.prod(problem.kernel)
    per_c, per_k = problem.c // problem.groups, problem.k // problem.groups
    if problem.op == "forward":
        return per_k, problem.n * math.prod(problem.output), per_c * taps
    if problem.op == "input_grad":
        return per_c, problem.n * math.prod(problem.spatial), per_k * taps
    return per_k, per_c * taps, problem.n * math.prod(problem.output)


def _blocks(tile: Any, rows: int, columns: int, groups: int) -> int:
    return -(-rows // tile.rows) * -(-columns // tile.columns) * groups


def tile_of(problem: ConvProblem) -> Tile:
    """The tile that wastes least, and among those the largest that still gives every multiprocessor work."""
    rows, columns, _ = shape_of(problem)

    def rank(tile: Tile) -> tuple[bool, int]:
        area = _blocks(tile, rows, columns, problem.groups) * tile.rows * tile.columns
        idle = problem.op != "weight_grad" and _blocks(tile, rows, columns, problem.groups) < BLOCKS
        return idle, area

    return min(tiles_of(problem.acc_dtype), key=rank)


def parts_of(problem: ConvProblem, tile: Any) -> int:
    """Into how many parts the terms are split: a function of the problem alone."""
    if problem.op != "weight_grad" or problem.level == "strict":
        return 1
    rows, columns, terms = shape_of(problem)
    wanted = -(-BLOCKS // _blocks(tile, rows, columns, problem.groups))
    return max(1, min(wanted, terms // LEAST, MOST_GROUPS // problem.groups))


class ImplicitGemm(Implementation):
    """For floats, wherever the gradient of x needs no folding."""

    name = "implicit_gemm"
    ops = frozenset(CONV_OPS)
    measured_error: ClassVar[Mapping[str, float]] = {key: MEASURED_ERROR[key] for key in ("float32", "float64")}

    def supports(self, problem: ConvProblem) -> Verdict:
        """Real floats; gradients of x where padding holds zeros."""
        if problem.acc_dtype not in ("float32", "float64"):
            return Verdict.no(f"computes in float32 and float64, not in {problem.acc_dtype}")
        if problem.op == "input_grad" and problem.pad_mode != "zeros":
            return Verdict.no(f"input_grad with pad_mode {problem.pad_mode!r} folds the padding back, which it does not")
        if problem.groups > MOST_GROUPS:
            return Verdict.no(f"{problem.groups} groups, and a grid has room for {MOST_GROUPS}")
        rows, columns, _ = shape_of(problem)
        if -(-rows // self.tile(problem).rows) > MOST_GROUPS or columns >= 2**31:
            return Verdict.no(f"a product of {rows} rows and {columns} columns does not fit a grid")
        return Verdict.yes()

    def tile(self, problem: ConvProblem) -> Any:
        """The tile of a block."""
        return tile_of(problem)

    def kernel(self, problem: ConvProblem, operation: Operation) -> Kernel:
        """The kernel of an operation with that tile."""
        return product_kernel(operation, tile_of(problem), problem.acc_dtype)

    def cost(self, problem: ConvProblem) -> float:
        """See `numconv_cuda.costs`: the part of the tiles that is not wasted, and of the terms that are not zero."""
        rows, columns, _ = shape_of(problem)
        tile = self.tile(problem)
        waste = _blocks(tile, rows, columns, 1) * tile.rows * tile.columns / max(rows * columns, 1)
        zeros = math.prod(problem.stride) if problem.op == "input_grad" else 1
        return cost_of(problem, self.name, waste * zeros)

    def workspace(self, problem: ConvProblem) -> int:
        """Parts of the sums of a weight gradient and of the bias."""
        if problem.op != "weight_grad":
            return 0
        parts = parts_of(problem, self.tile(problem))
        return math.prod(problem.w_shape) * parts * np_dtype(problem.acc_dtype).itemsize + bias_workspace(problem)

    def build(self, problem: ConvProblem) -> Executor:
        """``executor(outs, ins)`` of the operation."""
        run = {"forward": self._forward, "input_grad": self._input_grad, "weight_grad": self._weight_grad}[problem.op]
        return functools.partial(run, problem)

    def _forward(self, problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        (x, w, *bias), y = ins, outs[0]
        g = conv_geometry(problem, x, w, y, y, bias)
        pointers = pointer(w), pointer(x), pointer(bias[0] if bias else w), pointer(y)
        self._multiply(problem, FORWARD, g, (y, *ins), pointers)

    def _input_grad(self, problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        (y, w, *bias), x = ins, outs[0]
        g = conv_geometry(problem, x, w, y, x, bias)
        pointers = pointer(w), pointer(y), pointer(bias[0] if bias else w), pointer(x)
        self._multiply(problem, INPUT_GRAD, g, (x, *ins), pointers)

    def _weight_grad(self, problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        (y, x), w = ins, outs[0]
        g = conv_geometry(problem, x, w, y, w)
        parts = parts_of(problem, self.tile(problem))
        sums = scratch((parts, math.prod(problem.w_shape)), np_dtype(problem.acc_dtype), y)
        pointers = pointer(y), pointer(x), pointer(y), pointer(sums)
        self._multiply(problem, WEIGHT_GRAD, g, (w, sums, *ins), pointers, parts)
        add_up(problem, sums, w, parts)
        if problem.bias:
            bias_sums(problem, outs[1], ins[0 if problem.bias == "y" else 1])

    def _multiply(
        self,
        problem: ConvProblem,
        operation: Operation,
        g: Geometry,
        arrays: Sequence[Any],
        pointers: Sequence[Any],
        parts: int = 1,
    ) -> None:
        """Launch the product of every group and part."""
        rows, columns, terms = shape_of(problem)
        tile = self.tile(problem)
        if rows * columns == 0:
            return
        grid = (-(-columns // tile.columns), -(-rows // tile.rows), problem.groups * parts)
        sizes = (rows, columns, terms, -(-terms // parts))
        launch(self.kernel(problem, operation), grid, tile.threads, arrays, *pointers, g, *sizes, zero(problem.acc_dtype))
