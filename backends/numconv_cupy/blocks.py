"""How products of columns are cut and placed: blocks of images or rows, and arrays as matrices for cuBLAS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from numconv.plugin import ConvProblem, np_dtype

from .bias import bias_workspace
from .recipes import Place
from .source import Strides

__all__ = [
    "TILE", "Matrices", "Operand", "Part", "is_bare", "is_contiguous", "is_prepared", "is_short", "item_size", "limit_of",
    "matrices_of", "moved", "parts_of", "rounded", "workspace_of",
]  # fmt: skip

BLOCK_BYTES = 128 << 20
"""Of the columns of a block. Smaller ones would stay in the cache of a large GPU, but their products fill it less."""
_SHORT = 256
"""Images with fewer outputs are joined to one product of a block."""
_LEADING = 8
"""Rows of matrices begin at multiples of so many elements, as tensor cores want it."""
TILE = 128
"""Rows and columns of a tile of a product."""
_MULTIPROCESSORS = 132
"""Of an H100 and an H200: a constant, so that sums are cut in the same way everywhere."""
_MOST = 2**31 - 1
"""Threads of a launch."""
_BATCH = 2**16 - 1
"""Matrices of a batch: as many as a grid has blocks along its last axis."""
_ACCUMULATORS = {"float32": "float32", "float64": "float64", "float16": "float32", "bfloat16": "float32"}


def is_prepared(problem: ConvProblem) -> bool:
    """Whether `columns` computes it: real floats with sums as cuBLAS makes them, something to compute, and 32-bit positions."""
    sizes = (problem.n, problem.c, problem.k, *problem.spatial, *problem.output)
    positions = problem.n * max(math.prod(problem.spatial), math.prod(problem.output))
    return _ACCUMULATORS.get(problem.dtype) == problem.acc_dtype and all(sizes) and positions <= _MOST


class Part(NamedTuple):
    """Images, and rows of the first spatial axis of the result (of y for weight_grad), of a block."""

    image: int
    images: int
    row: int
    rows: int


class Matrices(NamedTuple):
    """Columns, products or an array as matrices ``[channels (and taps), pixels]``, one an image."""

    place: Place
    image_step: int
    row_step: int
    joint: bool = False
    """All images side by side in one matrix."""


def is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether all axes lie row-major one behind another."""
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def matrices_of(place: Place, shape: Sequence[int], strides: Strides) -> Matrices | None:
    """An array ``[images, channels, *positions]`` as matrices where it lies; None if its positions are not one behind another."""
    pixels = math.prod(shape[2:])
    steps = [0 if size == 1 else stride for size, stride in zip(shape[:2], strides[:2], strict=True)]
    if not is_contiguous(shape[2:], strides[2:]) or min(steps) < 0 or (shape[1] > 1 and steps[1] < pixels):
        return None
    return Matrices(place, steps[0], max(steps[1], pixels))


def limit_of(problem: ConvProblem) -> int:
    """Bytes of a block; a quarter of the working memory is for weights and partial sums."""
    return max(1, min(BLOCK_BYTES, problem.max_workspace // 4 * 3))


def parts_of(problem: ConvProblem, pixel_bytes: int, image_bytes: int, rows: int) -> list[Part]:
    """Blocks of images, or of rows of one, of which the working memory stays under its limit.

    `pixel_bytes` are those of an output, `image_bytes` those of an image beside.
    """
    limit = limit_of(problem)
    row_bytes = pixel_bytes * math.prod(problem.output[1:])
    halo = 0
    if problem.op == "input_grad":
        halo = 1 + problem.dilation[0] * (problem.kernel[0] - 1) // problem.stride[0]
    whole = row_bytes * (problem.output[0] + halo) + image_bytes
    elements = max(problem.c, problem.k) * max(math.prod(problem.output), math.prod(problem.spatial))
    most = min(_BATCH, _MOST // max(1, elements))
    if whole <= limit:
        images = _filling(problem, max(1, min(limit // max(1, whole), most)))
        return [Part(image, min(images, problem.n - image), 0, rows) for image in range(0, problem.n, images)]
    share = _even(rows, max(1, limit // max(1, row_bytes) - halo))
    return [Part(image, 1, row, min(share, rows - row)) for image in range(problem.n) for row in range(0, rows, share)]


def _filling(problem: ConvProblem, most: int) -> int:
    """How many images a block has, of at most so many: such that the tiles of its products fill rounds of the multiprocessors."""
    if most >= problem.n:
        return problem.n
    rows = problem.k if problem.op == "forward" else problem.c * math.prod(problem.kernel)
    tiles = -(-rows // TILE) * -(-math.prod(problem.output) // TILE)

    def filled(images: int) -> float:
        return images * tiles / -(-images * tiles // _MULTIPROCESSORS)

    return max(range(_even(problem.n, most) * 2 // 3 + 1, most + 1), key=filled)


def _even(whole: int, most: int) -> int:
    """At most `most`, in parts of nearly one size."""
    return -(-whole // -(-whole // most))


def rounded(elements: int) -> int:
    """Elements of a row, up to where the next one begins."""
    return -(-elements // _LEADING) * _LEADING


def is_bare(problem: ConvProblem) -> bool:
    """Whether the columns are x itself."""
    unpadded = all(low == high == 0 for low, high in problem.padding)
    return unpadded and math.prod(problem.kernel) == 1 and set(problem.stride) == {1}


def is_short(problem: ConvProblem) -> bool:
    """Whether images are joined to one product of a block: each has few outputs, or they are summed anyway."""
    summed = problem.op == "weight_grad" and not is_bare(problem)
    return problem.op != "input_grad" and problem.n > 1 and (summed or math.prod(problem.output) < _SHORT)


class Operand(NamedTuple):
    """A factor or a result: matrices by image and group."""

    matrices: Matrices
    group_step: int
    """In elements."""
    dtype: str
    turned: bool = False

    def at(self, image: int, group: int) -> Place:
        """The matrix of an image and group."""
        elements = image * self.matrices.image_step + group * self.group_step
        array, offset = self.matrices.place
        return Place(array, offset + elements * np_dtype(self.dtype).itemsize)


def workspace_of(problem: ConvProblem) -> int:
    """Upper bound of the bytes of any recipe: blocks with columns and products, parts and sums of weights, a copy of w."""
    item, wide = item_size(problem.dtype), item_size(problem.acc_dtype)
    columns = problem.c * math.prod(problem.kernel)
    pixel = columns * (wide if problem.op == "input_grad" else item) + problem.k * wide
    weights = math.prod(problem.w_shape) * wide
    halo = 2 + problem.dilation[0] * (problem.kernel[0] - 1) // problem.stride[0] if problem.op == "input_grad" else 0
    row = math.prod(problem.output[1:])
    whole = problem.n * (rounded((problem.output[0] + halo) * row) * pixel + (weights if problem.op == "weight_grad" else 0))
    limit = max(limit_of(problem), rounded((1 + halo) * row) * pixel)
    parts = 2 * weights + limit_of(problem) // 4 if problem.op == "weight_grad" else weights
    return max(min(whole, limit + _LEADING * pixel) + parts + 1024, bias_workspace(problem))


def item_size(dtype: str) -> int:
    """Bytes of an element."""
    return np_dtype(dtype).itemsize


def moved(matrices: Matrices, part: Part, first: int, dtype: str) -> Matrices:
    """From a part's first image and output on."""
    elements = part.image * matrices.image_step + first
    array, offset = matrices.place
    return matrices._replace(place=Place(array, offset + elements * item_size(dtype)))
