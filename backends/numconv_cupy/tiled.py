"""Convolution as a product of gathered matrices in tiles, by the kernel of ``kernels/tiled.cu``: every dtype, all three operations.

A sum is one chain in the order of accuracy="strict"; at the other levels it is the sum of parts of one where results are too few to
fill a GPU: how many is a function of the problem and of nominal numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, NamedTuple

from numconv.plugin import ConvProblem, Executor, Verdict, np_dtype

from .costs import seconds
from .direct import Direct, bias_bytes, bias_launch, limits
from .launching import Launcher, by_strides, scratch
from .namespaces import Arrays
from .source import NULL, geometry, kernel, strides_of

__all__ = ["TensorCores", "Tile", "Tiled", "cut_of"]

MOST_POSITIONS = 2**31 - 1
LEAST_TERMS = 64
"""Of a part."""
MULTIPROCESSORS = 132
"""That a cut aims at, whatever GPU there is: results do not depend on it."""
_RATE = 1.5e11
"""Multiply-adds a second of one multiprocessor; only its ratio to the next two matters."""
_BANDWIDTH = 2e12
_LAUNCH = 3e-6
_START = 48
"""Terms in the time that a block takes to start and to end."""


class Tile(NamedTuple):
    """Rows and columns of results of a block, and of each thread; a warp is four threads high and eight wide."""

    rows: int
    columns: int
    thread_rows: int
    thread_columns: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.rows * self.columns // (self.thread_rows * self.thread_columns)

    @property
    def macros(self) -> dict[str, int]:
        """As the kernel knows it."""
        return {"TM": self.rows, "TN": self.columns, "RM": self.thread_rows, "RN": self.thread_columns}


TILES = {
    4: (Tile(128, 128, 8, 8), Tile(64, 128, 8, 8), Tile(128, 64, 8, 8), Tile(64, 64, 8, 4), Tile(32, 128, 8, 4)),
    8: (Tile(64, 64, 8, 4), Tile(32, 128, 8, 4)),
    16: (Tile(64, 32, 4, 4),),
}
"""By the bytes of a sum."""


class Sides(NamedTuple):
    """A product: rows and columns of results, terms of each; products of that size."""

    rows: int
    columns: int
    terms: int
    products: int


class Cut(NamedTuple):
    """How a product is dealt out to blocks."""

    tile: Tile
    parts: int


def sides_of(problem: ConvProblem) -> Sides:
    """The product that a problem is, of one group and the phase of the stride that has the most taps."""
    per_c, per_k = problem.c // problem.groups, problem.k // problem.groups
    taps = math.prod(problem.kernel)
    if problem.op == "forward":
        return Sides(per_k, problem.n * math.prod(problem.output), per_c * taps, problem.groups)
    if problem.op == "weight_grad":
        return Sides(per_k, per_c * taps, problem.n * math.prod(problem.output), problem.groups)
    positions = math.prod(-(-s // step) for s, step in zip(problem.spatial, problem.stride, strict=True))
    taps = math.prod(-(-r // every) for r, every in zip(problem.kernel, _every(problem), strict=True))
    return Sides(per_c, problem.n * positions, per_k * taps, problem.groups * math.prod(problem.stride))


def _every(problem: ConvProblem) -> list[int]:
    """On each axis, how far apart the taps of a phase are."""
    return [step // math.gcd(step, d) for step, d in zip(problem.stride, problem.dilation, strict=True)]


@functools.lru_cache(maxsize=1024)
def cut_of(problem: ConvProblem) -> Cut:
    """The quickest cut by a model of one GPU: a function of the problem alone."""
    return min(_cuts(problem), key=functools.partial(_seconds, problem))


def _cuts(problem: ConvProblem) -> Iterator[Cut]:
    sides = sides_of(problem)
    most = 1 if problem.level == "strict" else max(1, sides.terms // LEAST_TERMS)
    for tile in TILES[max(4, np_dtype(problem.acc_dtype).itemsize)]:
        parts = 1
        while parts <= most and (parts == 1 or _part_bytes(problem) * parts <= problem.max_workspace):
            yield Cut(tile, parts)
            parts *= 2


def _seconds(problem: ConvProblem, cut: Cut) -> float:
    added = _LAUNCH + 2 * cut.parts * _part_bytes(problem) / _BANDWIDTH if cut.parts > 1 else 0.0
    return _products(problem, cut) / _RATE + added


def _products(problem: ConvProblem, cut: Cut) -> float:
    """Multiply-adds in the time that the busiest multiprocessor takes; twelve warps keep one busy."""
    sides, tile = sides_of(problem), cut.tile
    rounds = max(1, -(-_blocks(sides, cut) // MULTIPROCESSORS))
    warps = min(rounds * tile.threads, 512) / 32
    filled = min(1.0, warps / 12) * (1.0 if tile.thread_columns == 8 else 0.8)
    return rounds * tile.rows * tile.columns * (-(-sides.terms // cut.parts) + _START) / filled


def _blocks(sides: Sides, cut: Cut) -> int:
    return -(-sides.rows // cut.tile.rows) * -(-sides.columns // cut.tile.columns) * sides.products * cut.parts


def _part_bytes(problem: ConvProblem) -> int:
    sides = sides_of(problem)
    return sides.rows * sides.columns * sides.products * np_dtype(problem.acc_dtype).itemsize


class Tiled(Direct):
    """Slices of both factors in shared memory, tiles of results in registers."""

    name = "tiled"
    tensor_cores: ClassVar[bool] = False
    share: ClassVar[float] = 0.45
    """Of the peak that full tiles reach; where it comes from: `costs`."""

    def cost(self, problem: ConvProblem) -> float:
        """Of the tiles as they are cut, full or not."""
        cut = cut_of(problem)
        operations = 2.0 * MULTIPROCESSORS * _products(problem, cut)
        if problem.op == "input_grad":  # other phases have fewer taps
            operations *= math.prod(r / (-(-r // every) * every) for r, every in zip(problem.kernel, _every(problem), strict=True))
        moved = problem.bytes + (2 * cut.parts * _part_bytes(problem) if cut.parts > 1 else 0)
        return seconds(problem, operations, self.share, moved, 1 + (cut.parts > 1))

    def supports(self, problem: ConvProblem) -> Verdict:
        """Gradients of x only where padding holds zeros."""
        if problem.op == "input_grad" and problem.pad_mode != "zeros":
            return Verdict.no(f"input_grad with pad_mode {problem.pad_mode!r} folds the padding back, which it does not")
        sides = sides_of(problem)
        blocks = _blocks(sides, cut_of(problem))
        if max(blocks, sides.terms, sides.columns, _results(problem)) > MOST_POSITIONS:
            return Verdict.no(f"{blocks} blocks of {sides.terms} terms, {sides.columns} columns: they are counted in 32 bits")
        return limits(problem)

    def workspace(self, problem: ConvProblem) -> int:
        """Sums of parts, then those of the gradient of a bias."""
        parts = cut_of(problem).parts
        sums = parts * _part_bytes(problem) if parts > 1 else 0
        return max(sums, bias_bytes(problem)) if problem.op == "weight_grad" else sums

    def build(self, problem: ConvProblem) -> Executor:
        """One launch, a second one where there are parts."""
        return by_strides(functools.partial(_prepared, self.kernels, problem, self.tensor_cores))


class TensorCores(Tiled):
    """The same product on tensor cores, in the format TF32, which holds float16 and bfloat16 exactly."""

    name = "tensor_cores"
    tensor_cores = True
    share = 0.65
    levels = frozenset({"high", "default", "fast"})
    measured_error: ClassVar[Mapping[str, float]] = {"float32": 1e-3}

    def supports(self, problem: ConvProblem) -> Verdict:
        """Half types, and float32 at the level that allows TF32."""
        if problem.acc_dtype != "float32":
            return Verdict.no(f"tensor cores here multiply float32, float16 and bfloat16, not {problem.dtype}")
        if problem.level != "fast" and "float32" in (problem.dtype, problem.out_dtype):
            return Verdict.no("float32 is rounded to TF32, which needs accuracy='fast'")
        if self.kernels.capability < (8, 0):
            return Verdict.no(f"compute capability {self.kernels.capability} has no TF32 (needs 8.0)")
        return super().supports(problem)


def _results(problem: ConvProblem) -> int:
    return max(math.prod(shape) for shape in problem.output_shapes)


def _prepared(
    kernels: Launcher, problem: ConvProblem, tensor_cores: bool, outs: Arrays, ins: Arrays
) -> Callable[[Arrays, Arrays], None]:
    """What launches the kernel on arrays of these strides."""
    cut, sides = cut_of(problem), sides_of(problem)
    macros = cut.tile.macros | {
        "OP": ("forward", "input_grad", "weight_grad").index(problem.op), "COPYING": int(problem.pad_mode != "zeros"),
        "MMA": int(tensor_cores),
    }  # fmt: skip
    biased = problem.op != "weight_grad" and len(ins) > 2
    record = kernels.constant(geometry(
        problem, strides_of(ins[0]), strides_of(ins[1]), strides_of(outs[0]), parts=cut.parts,
        bias_step=strides_of(ins[2])[0] if biased else 1,
    ))  # fmt: skip
    blocks = _blocks(sides, cut) if _results(problem) else 0
    multiply = kernels.prepare(kernel("conv_tiled", problem, macros), blocks * cut.tile.threads, cut.tile.threads)
    count = sides.rows * sides.columns * sides.products
    add = kernels.prepare(kernel("sum_parts", problem, macros), count)
    bias_gradient = bias_launch(kernels, problem, outs, ins) if problem.op == "weight_grad" and problem.bias else None

    def run(outs: Arrays, ins: Arrays) -> None:
        bias = ins[2] if biased else NULL
        if cut.parts == 1:
            multiply(record, ins[0], ins[1], bias, outs[0], NULL)
        else:
            sums = scratch(ins[0], (cut.parts * count,), problem.acc_dtype)
            multiply(record, ins[0], ins[1], bias, outs[0], sums)
            add(record, sums, bias, outs[0])
        if bias_gradient:
            bias_gradient(outs, ins)

    return run
