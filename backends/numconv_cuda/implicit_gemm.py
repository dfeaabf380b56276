"""Convolution as a matrix product whose second factor is gathered on the way: see `numconv_cuda.gemm` for the kernels.

Every sum is one chain of multiply-adds in the strict order, whatever the tile; but at other levels than "strict" that of a weight
gradient is split into parts.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import CONV_OPS, ConvProblem, Executor, Implementation, Verdict, np_dtype, scratch

from .compiler import Kernel
from .costs import cost_of
from .direct import MEASURED_ERROR, add_up, bias_sums, bias_workspace, conv_geometry
from .gathering import Way
from .gemm import FORWARD, INPUT_GRAD, WEIGHT_GRAD, Operation
from .geometry import ACTIVATIONS, BIASED, Geometry, elements_of
from .launching import launch, over, pointer, zero
from .neighbours import copied, ways_of
from .pipelined import Recipe, finish_sums, product_kernel
from .schedule import MOST_GROUPS, schedule_of, shape_of

__all__ = ["ImplicitGemm", "Phase", "has_phases", "parts_of", "phases", "shape_of"]

BLOCKS = 264
"""Two for each multiprocessor of a large device: below this a smaller tile, or more parts, keep more of it busy."""
LEAST = 256
"""Terms of a part of a weight gradient."""


def _blocks(tile: Any, rows: int, columns: int, groups: int) -> int:
    return -(-rows // tile.rows) * -(-columns // tile.columns) * groups


def parts_of(problem: ConvProblem, tile: Any) -> int:
    """Into how many parts the terms are split: a function of the problem alone."""
    if problem.op != "weight_grad" or problem.level == "strict":
        return 1
    rows, columns, terms = shape_of(problem)
    wanted = -(-BLOCKS // _blocks(tile, rows, columns, problem.groups))
    return max(1, min(wanted, terms // LEAST, MOST_GROUPS // problem.groups))


class Phase(NamedTuple):
    """The elements of x that lie alike to the stride, and the taps that reach them: a gradient of stride 1."""

    geometry: Geometry
    taps: int
    """0 where no tap does; the geometry then has one, of which nothing is summed."""
    x_offset: int
    w_offset: int


def has_phases(problem: ConvProblem) -> bool:
    """Whether a gradient of x is computed phase by phase."""
    return max(problem.stride) > 1


class _Side(NamedTuple):
    """A phase on one axis."""

    start: int
    """Of its first element."""
    size: int
    tap: int
    """The first of its taps, `between` apart."""
    between: int
    taps: int
    low: int
    dilation: int


def _sides(problem: ConvProblem, axis: int) -> list[_Side]:
    """The phases of one axis.

    A tap r lies at o = r d in its window, or at (R - 1 - r) d, and reads i = q s + o - low of an output q. So the taps with o = f
    (mod s) reach the elements with i + low = f (mod s), and no others; they are s / gcd(s, d) apart. With i = i0 + s j this is
    q = j + (i0 + low - o) / s, where o / s goes in steps of d / gcd(s, d).
    """
    s, d, taps, n = problem.stride[axis], problem.dilation[axis], problem.kernel[axis], problem.spatial[axis]
    low, common = problem.padding[axis][0], math.gcd(s, d)
    found = []
    for rest in range(s):
        places = [(taps - 1 - r if problem.flip else r) * d for r in range(taps)]
        own = [r for r in range(taps) if places[r] % s == rest]
        start = (rest - low) % s
        least = min((places[r] for r in own), default=rest)
        size = max(-(-(n - start) // s), 0)
        found.append(_Side(start, size, own[0] if own else 0, s // common, len(own), (start + low - least) // s, d // common))
    return found


def phases(problem: ConvProblem, g: Geometry) -> Iterator[Phase]:
    """The phases of a strided gradient of x, each element of which is in one."""
    number = type(g.n)
    for sides in itertools.product(*(_sides(problem, axis) for axis in range(problem.ndim))):
        size, window, low = ([getattr(side, name) for side in sides] for name in ("size", "taps", "low"))
        if math.prod(size):
            geometry = g._replace(
                size=tuple(map(number, size)), window=tuple(number(max(r, 1)) for r in window), low=tuple(map(number, low)),
                stride=(number(1),) * problem.ndim, dilation=tuple(number(side.dilation) for side in sides),
                volume=number(math.prod(size)), taps=number(math.prod(max(r, 1) for r in window)),
                x=g.x._replace(spatial=_stretched(g.x.spatial, problem.stride, size)),
                w=g.w._replace(spatial=_stretched(g.w.spatial, [side.between for side in sides], window)),
            )  # fmt: skip
            x_offset = _offset([side.start for side in sides], g.x.spatial)
            yield Phase(geometry, math.prod(window), x_offset, _offset([side.tap for side in sides], g.w.spatial))


def _stretched(steps: tuple[Any, ...], stride: Sequence[int], sizes: Sequence[int]) -> tuple[Any, ...]:
    """The steps from one element of a phase to the next, 0 where there is no other."""
    return tuple(type(step)(int(step) * s if size > 1 else 0) for step, s, size in zip(steps, stride, sizes, strict=True))


def _offset(position: Sequence[int], steps: Sequence[Any]) -> int:
    return sum(at * int(step) for at, step in zip(position, steps, strict=True))


class ImplicitGemm(Implementation):
    """For every dtype, wherever the gradient of x needs no folding."""

    name = "implicit_gemm"
    ops = frozenset(CONV_OPS)
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def supports(self, problem: ConvProblem) -> Verdict:
        """Gradients of x only where padding holds zeros."""
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
        return schedule_of(problem).tile

    def parts(self, problem: ConvProblem) -> int:
        """Of each sum."""
        return schedule_of(problem).parts

    def kernel(self, problem: ConvProblem, operation: Operation, ways: tuple[Way, Way], g: Geometry) -> Kernel:
        """The kernel of an operation with that tile."""
        ways = copied(ways, problem.dtype, problem.acc_dtype)
        folded, index = problem.pad_mode != "zeros", np.dtype(type(g.n)).name
        recipe = Recipe(schedule_of(problem).tile, problem.acc_dtype, ways, problem.ndim, folded, index)
        return product_kernel(operation, recipe)

    def cost(self, problem: ConvProblem) -> float:
        """See `numconv_cuda.costs`: the part of the tiles that is not wasted, and of the terms that are not zero."""
        rows, columns, _ = shape_of(problem)
        tile = self.tile(problem)
        waste = _blocks(tile, rows, columns, 1) * tile.rows * tile.columns / max(rows * columns, 1)
        zeros = math.prod(problem.stride) if problem.op == "input_grad" and not has_phases(problem) else 1
        return cost_of(problem, self.name, waste * zeros)

    def workspace(self, problem: ConvProblem) -> int:
        """Parts of the sums, and of the bias."""
        parts, bias = self.parts(problem), bias_workspace(problem) if problem.op == "weight_grad" else 0
        sums = math.prod(problem.output_shapes[0]) * parts * np_dtype(problem.acc_dtype).itemsize
        return bias + (sums if parts > 1 or problem.op == "weight_grad" else 0)

    def build(self, problem: ConvProblem) -> Executor:
        """``executor(outs, ins)`` of the operation."""
        run = {"forward": self._forward, "input_grad": self._input_grad, "weight_grad": self._weight_grad}[problem.op]
        return functools.partial(run, problem)

    def _forward(self, problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        (x, w, *bias), y = ins, outs[0]
        parts = self.parts(problem)
        target = _sums(problem, y, parts)
        g = conv_geometry(problem, x, w, target, target, bias)
        pointers = pointer(w), pointer(x), pointer(bias[0] if bias else w), pointer(target)
        self._multiply(problem, FORWARD, _plain(g, parts), (y, *ins), pointers, parts)
        if parts > 1:
            finish_parts(problem, target, bias, y, parts)

    def _input_grad(self, problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        (y, w, *bias), x = ins, outs[0]
        parts = self.parts(problem)
        target = _sums(problem, x, parts)
        g = _plain(conv_geometry(problem, target, w, y, target, bias), parts)
        from_w, from_y, from_bias, to_x = pointer(w), pointer(y), pointer(bias[0] if bias else w), pointer(target)
        if not has_phases(problem):
            self._multiply(problem, INPUT_GRAD, g, (x, *ins), (from_w, from_y, from_bias, to_x), parts)
        for phase in phases(problem, g) if has_phases(problem) and problem.n else ():
            pointers = from_w.shifted(phase.w_offset), from_y, from_bias, to_x.shifted(phase.x_offset)
            columns, terms = problem.n * int(phase.geometry.volume), int(g.per_k) * phase.taps
            shape = (int(g.per_c), columns, terms)
            self._launch(problem, INPUT_GRAD, INPUT_GRAD.ways, phase.geometry, (x, *ins), pointers, shape, parts)
        if parts > 1:
            finish_parts(problem, target, bias, x, parts)

    def _weight_grad(self, problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        (y, x), w = ins, outs[0]
        g = conv_geometry(problem, x, w, y, w)
        parts = self.parts(problem)
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
        parts: int,
    ) -> None:
        """Launch the product of every group and part, if there is anything to compute."""
        shape = shape_of(problem)
        if shape[0] * shape[1]:
            ways = ways_of(operation, self.tile(problem), g, pointers)
            self._launch(problem, operation, ways, g, arrays, pointers, shape, parts)

    def _launch(
        self,
        problem: ConvProblem,
        operation: Operation,
        ways: tuple[Way, Way],
        g: Geometry,
        arrays: Sequence[Any],
        pointers: Sequence[Any],
        shape: tuple[int, int, int],
        parts: int,
    ) -> None:
        """Launch a product of this shape."""
        rows, columns, terms = shape
        tile = self.tile(problem)
        grid = (-(-columns // tile.columns), -(-rows // tile.rows), problem.groups * parts)
        length = -(-terms // (parts * tile.depth)) * tile.depth  # parts begin where a thread's loads are aligned
        sizes = (rows, columns, terms, length, math.prod(problem.output_shapes[0]))
        launch(self.kernel(problem, operation, ways, g), grid, tile.threads, arrays, *pointers, g, *sizes, zero(problem.acc_dtype))


def _sums(problem: ConvProblem, out: Any, parts: int) -> Any:
    """Where a product is written: the result itself, or its parts, one behind the other as if they were a longer batch."""
    if parts == 1:
        return out
    n, *others = problem.output_shapes[0]
    return scratch((parts * n, *others), np_dtype(problem.acc_dtype), out)


def _plain(g: Geometry, parts: int) -> Geometry:
    """The geometry by which results have neither bias nor activation, if parts of sums are what is written."""
    return g if parts == 1 else g._replace(option=type(g.n)(0))


def finish_parts(problem: ConvProblem, first: Any, bias: Sequence[Any], out: Any, parts: int) -> None:
    """Add up the parts of each result in a fixed order, and finish it."""
    option = ACTIVATIONS[problem.activation] | (BIASED if bias else 0)
    step = elements_of(bias[0])[0] if bias else 0
    start, items = zero(problem.acc_dtype), math.prod(out.shape)
    pointers = pointer(first), pointer(bias[0] if bias else first), pointer(out)
    over(finish_sums, items, (out, *bias), *pointers, tuple(out.shape), elements_of(out), option, step, items, parts, start)
