"""Winograd convolution with 3x3 kernels: transforms by the kernels of ``kernels/winograd.cu``, a matrix product a point by cuBLAS.

F(4x4, 3x3) has a quarter of the multiplications of the definition, and moves each array through memory two and a quarter times
more: A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016), section 4. The sums of a gradient for w
are split into parts that depend on the problem alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from numconv.plugin import CONV_OPS, ConvProblem, Executor, Implementation, Verdict, np_dtype

from .bias import add_bias_gradient, bias_workspace
from .costs import Work, issued, product, streamed
from .device import Device, Product
from .direct import limits
from .recipes import Place, Recipe, executor_by
from .source import geometry

__all__ = ["Winograd", "parts_of"]

TILE, TAPS = 4, 3
POINTS = (TILE + TAPS - 1) ** 2
LEAST_CHANNELS = 4
"""Summed ones of a group: the error is relative to a whole tile, and fewer channels may be small in one window."""
BLOCK_BYTES = 192 << 20
"""Of the points of the images that are computed at a time."""
LEAST_TILES = 256
"""Of a part of a gradient for w."""
PRODUCTS = 1024
"""Matrix products of 64 x 64 results, or fewer, that a gradient for w aims at."""
MOST_ITEMS = 2**31 - 1
"""Tiles of all channels, which the kernels count in 32 bits."""
_TILES = np.dtype([(name, np.uint32) for name in ("images", "all", "share", "across")])


class Winograd(Implementation):
    """For real floats and two dimensions, where sums need not be in order."""

    name: ClassVar[str] = "winograd"
    ops: ClassVar[frozenset[str]] = frozenset(CONV_OPS)
    levels: ClassVar[frozenset[str]] = frozenset({"default", "fast"})
    measured_error: ClassVar[Mapping[str, float]] = {"float32": 2e-6, "float64": 4e-15}

    def __init__(self, device: Device):
        self.device = device

    def supports(self, problem: ConvProblem) -> Verdict:
        """Kernels of 3x3 without stride or dilation; some channels to be summed."""
        if problem.kernel != (TAPS, TAPS):
            return Verdict.no(f"a kernel of {'x'.join(map(str, problem.kernel))} taps; this is for {TAPS}x{TAPS}")
        if max(*problem.stride, *problem.dilation) > 1:
            return Verdict.no(f"stride {problem.stride} and dilation {problem.dilation}; this is for 1")
        if not problem.acc_dtype.startswith("float"):
            return Verdict.no(f"dtype {problem.dtype}; its points are real floats")
        if max(map(max, problem.padding)) >= TAPS or min(map(min, problem.padding)) < 0:
            return Verdict.no(f"padding {problem.padding} makes windows that hold none of x, or cuts it")
        if problem.op == "input_grad" and problem.pad_mode != "zeros":
            return Verdict.no(f"pad_mode {problem.pad_mode!r} makes gradients fold back (has zeros)")
        summed = {"forward": problem.c, "input_grad": problem.k}.get(problem.op, LEAST_CHANNELS * problem.groups) // problem.groups
        if summed < LEAST_CHANNELS:
            return Verdict.no(f"{summed} channels summed a group; its error needs {LEAST_CHANNELS}")
        items = _images(problem) * (math.prod(_tiles(problem)) + LEAST_TILES) * max(problem.c, problem.k)
        if items > MOST_ITEMS:
            return Verdict.no(f"{items} tiles of all channels; the kernels count {MOST_ITEMS}")
        return limits(problem)

    def cost(self, problem: ConvProblem) -> float:
        """Products at the speed of cuBLAS, and what the transforms read and write."""
        tiles, item = math.prod(_tiles(problem)), np_dtype(problem.acc_dtype).itemsize
        per_c, per_k, taken = problem.c // problem.groups, problem.k // problem.groups, parts_of(problem)
        weights = item * POINTS * problem.k * per_c
        running, launches = streamed(weights), 1
        for _, images in _blocks(problem):
            rows, inner, columns, batch = per_k, per_c, images * tiles, POINTS * problem.groups
            if problem.op == "input_grad":
                rows, inner = inner, rows
            if problem.op == "weight_grad":
                inner, columns, batch = -(-columns // taken), inner, taken * batch
            running += product(Work(rows, inner, columns, batch), problem.acc_dtype, tf32=False)
            moved = (POINTS + TILE * TILE) * item * images * tiles
            running += streamed(moved * problem.c) + streamed(moved * problem.k) + (taken > 1) * streamed(taken * weights)
            launches += 3 + (taken > 1)
        return issued(launches, running)

    def workspace(self, problem: ConvProblem) -> int:
        """The points of both factors and of the products."""
        weights = _bytes_of_weights(problem, 1 + parts_of(problem))
        return weights + _images(problem) * _bytes_of_an_image(problem) + bias_workspace(problem) + 8 * 256  # aligned to 256

    def build(self, problem: ConvProblem) -> Executor:
        """Two transforms and a product for some images at a time, and a transform for the weights."""
        return executor_by(_weight_grad if problem.op == "weight_grad" else _convolve, problem, self.device)


def _result(problem: ConvProblem) -> tuple[int, ...]:
    return problem.spatial if problem.op == "input_grad" else problem.output


def _tiles(problem: ConvProblem) -> tuple[int, ...]:
    return tuple(-(-size // TILE) for size in _result(problem))


def _bytes_of_weights(problem: ConvProblem, copies: int) -> int:
    return copies * POINTS * problem.k * problem.c // problem.groups * np_dtype(problem.acc_dtype).itemsize


def _bytes_of_an_image(problem: ConvProblem) -> int:
    return POINTS * math.prod(_tiles(problem)) * (problem.c + problem.k) * np_dtype(problem.acc_dtype).itemsize


def _images(problem: ConvProblem) -> int:
    """At a time."""
    allowed = min(BLOCK_BYTES, problem.max_workspace - _bytes_of_weights(problem, 1 + _wanted(problem)))
    return max(1, min(problem.n, allowed // max(1, _bytes_of_an_image(problem))))


def _wanted(problem: ConvProblem) -> int:
    """Parts of a gradient for w of which each has a matrix product: as many as keep a device busy."""
    if problem.op != "weight_grad":
        return 1
    products = POINTS * problem.groups * -(-problem.k // problem.groups // 64) * -(-problem.c // problem.groups // 64)
    return -(-PRODUCTS // products)


def parts_of(problem: ConvProblem) -> int:
    """Into how many parts the tiles of some images are split for a gradient for w: a function of the problem alone."""
    return max(1, min(_wanted(problem), _images(problem) * math.prod(_tiles(problem)) // LEAST_TILES))


def _blocks(problem: ConvProblem) -> Iterator[tuple[int, int]]:
    """(first image, images) of what is computed at a time."""
    step = _images(problem)
    for first in range(0, problem.n, step):
        yield first, min(step, problem.n - first)


def _numbers(problem: ConvProblem, images: int) -> np.ndarray[Any, Any]:
    """The tiles of some images as the kernels take them: see ``struct Tiles``."""
    tiles, parts = images * math.prod(_tiles(problem)), parts_of(problem)
    share = -(-tiles // parts)
    record = np.zeros(1, _TILES)
    record[0] = (images, tiles, share, parts * share)
    return record


def _convolve(recipe: Recipe) -> None:
    """The forward pass, or a gradient of x: a convolution of grad_y with w, turned and its channels exchanged."""
    problem = recipe.problem
    out_steps, source_steps, w_steps, *bias = recipe.strides
    gradient = problem.op == "input_grad"
    channels, source_channels = (problem.c, problem.k) if gradient else (problem.k, problem.c)
    low = tuple(TAPS - 1 - low if gradient else low for low, _ in problem.padding)
    source = problem.output if gradient else problem.spatial
    fields: dict[str, Any] = {"spatial": source, "output": _result(problem), "low": low, "count": _tiles(problem)}
    read = geometry(problem, source_steps, w_steps, out_steps, **fields | {"c": source_channels})
    about = geometry(problem, source_steps, w_steps, out_steps, bias_step=bias[0][0] if bias else 1, **fields)
    rows, summed, batch = channels // problem.groups, source_channels // problem.groups, POINTS * problem.groups
    in_order = out_steps[-1] == 1 and all(step % TILE == 0 for step in out_steps[:-1])
    macros = {"GRADIENT": int(gradient)}
    weights = recipe.reserve(batch * rows * summed, problem.acc_dtype)
    recipe.launch("conv_winograd_weights", problem.groups * rows * summed, (about,), (Place(2), weights), macros)
    behind = recipe.end
    for first, images in _blocks(problem):
        tiles, block = images * math.prod(_tiles(problem)), _numbers(problem, images)
        points = recipe.reserve(batch * summed * tiles, problem.acc_dtype, behind)
        products = recipe.reserve(batch * rows * tiles, problem.acc_dtype, recipe.end)
        recipe.launch("conv_winograd_input", source_channels * tiles, (read, block), (Place(1), points), macros, [first])
        shape = Product(
            rows, summed, tiles, (False, summed, rows * summed), (False, tiles, summed * tiles), (tiles, rows * tiles), batch,
            problem.acc_dtype, problem.acc_dtype,
        )  # fmt: skip
        recipe.multiply(shape, weights, points, products)
        places = (products, Place(1), Place(2), Place(3) if bias else None, Place(0))
        recipe.launch("conv_winograd_output", channels * tiles, (about, block), places, macros, [first, int(in_order)])


def _weight_grad(recipe: Recipe) -> None:
    """F(3x3, 4x4): the sums of parts of the tiles are added up in their order."""
    problem, second = recipe.problem, Place(recipe.scratch - 1)
    y_steps, x_steps = recipe.strides[recipe.scratch - 2 :]
    per_c, per_k, parts = problem.c // problem.groups, problem.k // problem.groups, parts_of(problem)
    channels, batch = problem.k * per_c, POINTS * parts * problem.groups
    first_place = Place(recipe.scratch - 2)
    sums = recipe.reserve(POINTS * channels, problem.acc_dtype)
    products = recipe.reserve(batch * per_k * per_c, problem.acc_dtype, recipe.end)
    behind = recipe.end
    for first, images in list(_blocks(problem)) or [(0, 0)]:
        block = _numbers(problem, images)
        share = int(block["share"][0])
        factors: list[Place] = []
        for name, place, steps, count in (("gradient", first_place, y_steps, problem.k), ("input", second, x_steps, problem.c)):
            points = recipe.reserve(POINTS * parts * count * share, problem.acc_dtype, recipe.end if factors else behind)
            about = geometry(problem, steps, count=_tiles(problem))
            if images:
                recipe.launch(f"conv_winograd_{name}", count * parts * share, (about, block), (place, points), {}, [first])
            factors.append(points)
        shape = Product(
            per_k, share, per_c, (False, share, per_k * share), (True, share, per_c * share), (per_c, per_k * per_c), batch,
            problem.acc_dtype, problem.acc_dtype,
        )  # fmt: skip
        if images:
            recipe.multiply(shape, factors[0], factors[1], products)
        recipe.launch("conv_winograd_sums", POINTS * channels, (), (products, sums), {}, [channels, parts if images else 0, first])
    about = geometry(problem, y_steps, x_steps, recipe.strides[0])
    recipe.launch("conv_winograd_taps", channels, (about,), (sums, first_place, second, Place(0)), {})
    if problem.bias:
        add_bias_gradient(recipe)
