"""How a problem is cut for tensor cores: tiles, parts of its sums, and images that are packed at a time.

All of it is a function of the problem and of constants, so that results have the same bits on every device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

from numconv.plugin import ConvProblem
from numconv_cuda.gemm.implicit_gemm import MOST_GROUPS
from numconv_cuda.primitives.forms import ITEMSIZE, UNITS, Form, Tile
from numconv_cuda.runtime.compiler import SIMULATED

from .tensor_layouts import extent_of, units_of

__all__ = ["TILES", "Memory", "Product", "bytes_of", "memory_of", "parts_of", "product_of", "sums_of", "tile_of"]

TILES: tuple[Tile, ...]
if SIMULATED:  # a thread of the simulator is one of Python's
    TILES = (Tile(16, 8, 1, 1, 2),)
else:
    TILES = (Tile(128, 128, 2, 4, 3), Tile(64, 128, 1, 4, 4), Tile(128, 64, 2, 2, 4), Tile(64, 64, 2, 2, 4))
"""The largest first."""
MULTIPROCESSORS = 1 if SIMULATED else 132
"""Of a large device, on which work is shared out."""
LARGE = 1.25
"""Time that blocks of more than four warps take for what they copy, which wait for each other longer: an estimate, see `costs`."""
LEAST_SLICES = 1 if SIMULATED else 8
"""Slices of a part of the terms."""


class Product(NamedTuple):
    """The matrix product that a problem is."""

    rows: int
    columns: int
    beside: int
    """Products side by side: groups, times the phases of a gradient of x."""
    slices: int
    """Of the terms."""

    def blocks(self, tile: Tile) -> int:
        """Tiles of it."""
        return -(-self.rows // tile.rows) * -(-self.columns // tile.columns) * self.beside


@functools.lru_cache(maxsize=1024)
def product_of(problem: ConvProblem) -> Product:
    """The product of all images; of the largest phase."""
    per_c, per_k, taps = problem.c // problem.groups, problem.k // problem.groups, math.prod(problem.kernel)
    if problem.op == "forward":
        slices = -(-taps * units_of(per_c, problem.dtype) // UNITS)
        return Product(per_k, problem.n * math.prod(problem.output), problem.groups, slices)
    if problem.op == "weight_grad":
        each = 16 // ITEMSIZE[problem.dtype]
        columns = taps * units_of(per_c, problem.dtype) * each
        return Product(per_k, columns, problem.groups, -(-problem.n * math.prod(problem.output) // (UNITS * each)))
    apart = (s // math.gcd(s, d) for s, d in zip(problem.stride, problem.dilation, strict=True))
    taps = math.prod(-(-r // step) for r, step in zip(problem.kernel, apart, strict=True))
    columns = problem.n * math.prod(-(-n // s) for n, s in zip(problem.spatial, problem.stride, strict=True))
    slices = -(-taps * units_of(per_k, problem.dtype) // UNITS)
    return Product(per_c, columns, problem.groups * math.prod(problem.stride), slices)


def parts_of(problem: ConvProblem, tile: Tile) -> int:
    """Into how many parts the terms are split: as many as a device has room for at a time."""
    product, across = product_of(problem), problem.op == "weight_grad"
    room = MULTIPROCESSORS * Form(tile, problem.dtype, (across, across), packed=True).blocks
    wanted = room // max(product.blocks(tile), 1)
    return max(1, min(wanted, product.slices // LEAST_SLICES, MOST_GROUPS // product.beside))


@functools.lru_cache(maxsize=1024)
def tile_of(problem: ConvProblem) -> Tile:
    """The tile with which the busiest multiprocessor copies to shared memory for the shortest time."""
    product = product_of(problem)

    def time(tile: Tile) -> float:
        parts = parts_of(problem, tile)
        each = (tile.rows + tile.columns) * (LARGE if tile.threads > 128 else 1) * -(-product.slices // parts)
        return -(-product.blocks(tile) * parts // MULTIPROCESSORS) * each

    return min(TILES, key=time)


class Memory(NamedTuple):
    """The working memory that a problem takes, in units of 16 bytes where nothing else is said."""

    images: int
    """At a time."""
    image: int
    """Of a packed image."""
    other: int
    """Of the packed weights; for a gradient of w, of that many images of y."""
    entries: int
    """Of the table, 8 bytes each."""
    slices: int
    """Of the terms of a phase."""
    length: int
    """Slices of a part of them."""
    parts: int
    """Into which the terms are split; for a gradient of w, those of so many images."""

    @property
    def packed(self) -> tuple[int, int, int]:
        """Units of the packed image, of the other factor, and of the table."""
        return self.images * self.image, self.other, self.entries // 2 + 1


@functools.lru_cache(maxsize=1024)
def memory_of(problem: ConvProblem) -> Memory:
    """The most images at a time for which `max_workspace` suffices, but one at least."""
    product, backward = product_of(problem), problem.op == "input_grad"
    per_c, per_k = problem.c // problem.groups, problem.k // problem.groups
    units = units_of(per_k if backward else per_c, problem.dtype)
    image = math.prod(extent_of(problem).sizes) * units * problem.groups
    if problem.op == "weight_grad":
        return _weight_memory(problem, image)
    slices, phases = product.slices, product.beside // problem.groups
    weights = problem.groups * product.rows * math.prod(problem.kernel) * units
    length = max(1, -(-slices // parts_of(problem, tile_of(problem))))

    def cut(images: int) -> Memory:
        return Memory(images, image, weights, slices * UNITS * phases, slices, length, max(1, -(-slices // length)))

    return _fitted(problem, cut)


def _weight_memory(problem: ConvProblem, image: int) -> Memory:
    depth, outputs = UNITS * 16 // ITEMSIZE[problem.dtype], math.prod(problem.output)
    other = outputs * problem.groups * units_of(problem.k // problem.groups, problem.dtype)
    wanted = parts_of(problem, tile_of(problem))

    def cut(images: int) -> Memory:
        slices = -(-images * outputs // depth)
        length = max(1, -(-slices // max(1, min(wanted, slices // LEAST_SLICES))))
        return Memory(images, image, images * other, slices * depth, slices, length, max(1, -(-slices // length)))

    return _fitted(problem, cut)


def _fitted(problem: ConvProblem, cut: Callable[[int], Memory]) -> Memory:
    """All images at a time, or about as many as fit, equally many each time."""
    images = max(problem.n, 1)
    while images > 1 and (bytes_of(problem, cut(images)) > problem.max_workspace or images * cut(images).image >= 2**31):
        images -= -(-images // 8)
    turns = -(-problem.n // images)
    return cut(-(-problem.n // turns) if turns else images)


def sums_of(problem: ConvProblem, images: int) -> int:
    """Sums of a part of the terms, of so many images of a convolution or a gradient of x."""
    if problem.op == "weight_grad":
        return math.prod(problem.w_shape)
    product = product_of(problem)
    return product.rows * (product.columns // max(problem.n, 1)) * product.beside * images


def bytes_of(problem: ConvProblem, memory: Memory) -> int:
    """Of the packed factors, and of the sums of parts."""
    parts = memory.parts if problem.op == "weight_grad" or memory.parts > 1 else 0
    turns = -(-problem.n // memory.images)
    parts += turns if problem.op == "weight_grad" and turns > 1 else 0
    return 16 * sum(memory.packed) + 4 * parts * sums_of(problem, memory.images)
