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

from numconv.plugin import CONV_OPS, ConvProblem, Executor, Implementation, Verdict, np_dtype, scratch

from .compiler import Kernel
from .costs import cost_of
from .direct import MEASURED_ERROR, add_up, bias_sums, bias_workspace, conv_geometry
from .gathering import Way
from .gemm import FORWARD, INPUT_GRAD, WEIGHT_GRAD, Operation, Tile, product_kernel, tiles_of
from .geometry import Geometry
from .launching import launch, pointer, zero
from .neighbours import ways_of
from .recording import recorded

__all__ = ["ImplicitGemm", "Phase", "has_phases", "parts_of", "phases", "shape_of", "tile_of"]

BLOCKS = 264
"""Two for each multiprocessor of a large device: below this a smaller tile, or more parts, keep more of it busy."""
LEAST = 256
"""Terms of a part of a weight gradient."""
MOST_GROUPS = 65535
"""The limit of a grid's third dimension, on every device."""


@functools.lru_cache(maxsize=1024)
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


@functools.lru_cache(maxsize=1024)
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


class Phase(NamedTuple):
    """The elements of x that lie alike to the stride, and the taps that reach them: a gradient of stride 1."""

    geometry: Geometry
    taps: int
    """0 where no tap does; the geometry then has one, of which nothing is summed."""
    x_offset: int
    w_offset: int


def has_phases(problem: ConvProblem) -> bool:
    """Whether a gradient of x is computed phase by phase."""
    return max(problem.stride) > 1 and max(problem.dilation) == 1 and not problem.flip


def phases(problem: ConvProblem, g: Geometry) -> Iterator[Phase]:
    """The phases of a strided gradient of x, each element of which is in one.

    On an axis a tap r of an output q reads i = q s + r - low, so the taps r = f, f + s, ... reach the elements whose i + low leaves
    the rest f, and no others: i = i0 + s j with i0 = (f - low) mod s, and q = (i0 + low - f) / s + j - t for r = f + s t.
    """
    number = type(g.n)
    for rests in itertools.product(*map(range, problem.stride)):
        starts = [(rest - low) % s for rest, s, (low, _) in zip(rests, problem.stride, problem.padding, strict=True)]
        size = [max(-(-(n - i) // s), 0) for n, i, s in zip(problem.spatial, starts, problem.stride, strict=True)]
        window = [max(-(-(r - rest) // s), 0) for r, rest, s in zip(problem.kernel, rests, problem.stride, strict=True)]
        low = [(i + p - rest) // s for i, rest, s, (p, _) in zip(starts, rests, problem.stride, problem.padding, strict=True)]
        if math.prod(size):
            geometry = g._replace(
                size=tuple(map(number, size)), window=tuple(number(max(r, 1)) for r in window), low=tuple(map(number, low)),
                stride=(number(1),) * problem.ndim, volume=number(math.prod(size)),
                taps=number(math.prod(max(r, 1) for r in window)),
                x=g.x._replace(spatial=_stretched(g.x.spatial, problem.stride, size)),
                w=g.w._replace(spatial=_stretched(g.w.spatial, problem.stride, window)),
            )  # fmt: skip
            yield Phase(geometry, math.prod(window), _offset(starts, g.x.spatial), _offset(rests, g.w.spatial))


def _stretched(steps: tuple[Any, ...], stride: tuple[int, ...], sizes: Sequence[int]) -> tuple[Any, ...]:
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
        return tile_of(problem)

    def kernel(self, problem: ConvProblem, operation: Operation, ways: tuple[Way, Way]) -> Kernel:
        """The kernel of an operation with that tile."""
        return product_kernel(operation, tile_of(problem), problem.acc_dtype, ways)

    def cost(self, problem: ConvProblem) -> float:
        """See `numconv_cuda.costs`: the part of the tiles that is not wasted, and of the terms that are not zero."""
        rows, columns, _ = shape_of(problem)
        tile = self.tile(problem)
        waste = _blocks(tile, rows, columns, 1) * tile.rows * tile.columns / max(rows * columns, 1)
        zeros = math.prod(problem.stride) if problem.op == "input_grad" and not has_phases(problem) else 1
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
        return recorded(functools.partial(run, problem))

    def _forward(self, problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        (x, w, *bias), y = ins, outs[0]
        g = conv_geometry(problem, x, w, y, y, bias)
        pointers = pointer(w), pointer(x), pointer(bias[0] if bias else w), pointer(y)
        self._multiply(problem, FORWARD, g, (y, *ins), pointers)

    def _input_grad(self, problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        (y, w, *bias), x = ins, outs[0]
        g = conv_geometry(problem, x, w, y, x, bias)
        from_w, from_y, from_bias, to_x = pointer(w), pointer(y), pointer(bias[0] if bias else w), pointer(x)
        if not has_phases(problem):
            self._multiply(problem, INPUT_GRAD, g, (x, *ins), (from_w, from_y, from_bias, to_x))
            return
        for phase in phases(problem, g) if problem.n else ():
            pointers = from_w.shifted(phase.w_offset), from_y, from_bias, to_x.shifted(phase.x_offset)
            columns, terms = problem.n * int(phase.geometry.volume), int(g.per_k) * phase.taps
            shape = (int(g.per_c), columns, terms)
            self._launch(problem, INPUT_GRAD, INPUT_GRAD.ways, phase.geometry, (x, *ins), pointers, shape)

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
        parts: int = 1,
    ) -> None:
        """Launch a product of this shape."""
        rows, columns, terms = shape
        tile = self.tile(problem)
        grid = (-(-columns // tile.columns), -(-rows // tile.rows), problem.groups * parts)
        length = -(-terms // (parts * tile.depth)) * tile.depth  # parts begin where a thread's loads are aligned
        sizes = (rows, columns, terms, length)
        launch(self.kernel(problem, operation, ways), grid, tile.threads, arrays, *pointers, g, *sizes, zero(problem.acc_dtype))
