"""Winograd convolution with 3x3 kernels: transforms by the kernels of ``kernels/winograd.cu``, a matrix product a point by cuBLAS.

F(4x4, 3x3) has a quarter of the multiplications of the definition, and moves each array through memory two and a quarter times
more: A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016), section 4. The sums of a gradient for w
are split into parts that depend on the problem alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from numconv.plugin import CONV_OPS, ConvProblem, Executor, Implementation, Verdict, np_dtype

from .costs import seconds
from .direct import limits
from .epilogue import bias_sums
from .gemm import batched_matmul
from .launching import Launcher
from .namespaces import Arrays, empty_like, on_namespace, zeros_like
from .source import NULL, geometry, kernel, strides_of

__all__ = ["Winograd", "parts_of"]

TILE, TAPS = 4, 3
POINTS = (TILE + TAPS - 1) ** 2
LEAST_CHANNELS = 4
"""Summed ones of a group: the error is relative to a whole tile, and fewer channels may be small in one window."""
BLOCK_BYTES = 192 << 20
"""Of the points of the images that are computed at a time: large arrays of points would not stay in a cache, small ones leave the
device idle."""
LEAST_TILES = 256
"""Of a part of a gradient for w."""
PRODUCTS = 1024
"""Matrix products of 64 x 64 results, or fewer, that a gradient for w aims at."""
MOST_ITEMS = 2**31 - 1
"""Tiles of all channels, which the kernels count in 32 bits."""
_NUMBERS = np.dtype([(name, np.uint32) for name in ("images", "all", "share", "across")])


class Winograd(Implementation):
    """For real floats and two dimensions, where sums need not be in order."""

    name: ClassVar[str] = "winograd"
    ops: ClassVar[frozenset[str]] = frozenset(CONV_OPS)
    levels: ClassVar[frozenset[str]] = frozenset({"default", "fast"})
    measured_error: ClassVar[Mapping[str, float]] = {"float32": 2e-6, "float64": 4e-15}

    def __init__(self, kernels: Launcher):
        self.kernels = kernels

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
        tiles, item = problem.n * math.prod(_tiles(problem)), np_dtype(problem.acc_dtype).itemsize
        points = POINTS * tiles * (problem.c + problem.k)
        weights = POINTS * (1 + parts_of(problem)) * problem.k * problem.c // problem.groups
        operations = 2 * POINTS * tiles * problem.k * problem.c // problem.groups
        blocks = -(-problem.n // _images(problem)) if problem.n else 0
        return seconds(problem, operations, 0.6, problem.bytes + 2 * item * (points + weights), 1 + 3 * blocks)

    def workspace(self, problem: ConvProblem) -> int:
        """The points of both factors and of the products."""
        return _bytes_of_weights(problem, 1 + parts_of(problem)) + _images(problem) * _bytes_of_an_image(problem)

    def build(self, problem: ConvProblem) -> Executor:
        """Three launches and a product for some images at a time, and one for the weights."""
        run = _weight_grad if problem.op == "weight_grad" else _convolve
        return on_namespace(functools.partial(_quietly, run, self.kernels, problem))


def _quietly(run: Any, kernels: Launcher, problem: ConvProblem, outs: Arrays, ins: Arrays) -> None:
    """NumPy would warn of infinities; CuPy never does."""
    with np.errstate(all="ignore"):
        run(kernels, problem, outs, ins)


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
    for first in range(0, problem.n, max(1, step)):
        yield first, min(step, problem.n - first)


def _numbers(tiles: int, images: int, parts: int = 1) -> np.ndarray[Any, Any]:
    """The tiles of some images as the kernels take them: see ``struct Tiles``."""
    share = -(-tiles // parts)
    record = np.zeros(1, _NUMBERS)
    record[0] = (images, tiles, share, parts * share)
    return record


def _convolve(kernels: Launcher, problem: ConvProblem, outs: Arrays, ins: Arrays) -> None:
    (out,), (source, w, *bias) = outs, ins
    gradient = problem.op == "input_grad"
    tile = {"GRADIENT": int(gradient)}
    low = tuple(TAPS - 1 - low if gradient else low for low, _ in problem.padding)
    fields: dict[str, Any] = {"spatial": source.shape[2:], "output": out.shape[2:], "low": low, "count": _tiles(problem)}
    steps = strides_of(source), strides_of(w), strides_of(out)
    read = geometry(problem, *steps, **fields | {"c": source.shape[1]})
    rest = geometry(problem, *steps, bias_step=strides_of(bias[0])[0] if bias else 1, **fields)
    rows, summed = out.shape[1] // problem.groups, source.shape[1] // problem.groups
    weights = empty_like(w, (POINTS * problem.groups, rows, summed), problem.acc_dtype)
    kernels.launch(kernel("conv_winograd_weights", problem, tile), problem.groups * rows * summed, (rest, w, weights))
    in_order = np.int64(_rows_in_order(out))
    for first, images in _blocks(problem):
        tiles = images * math.prod(_tiles(problem))
        block = _numbers(tiles, images)
        points = empty_like(source, (POINTS * problem.groups, summed, tiles), problem.acc_dtype)
        arguments: tuple[Any, ...] = (read, block, source, points, np.int64(first))
        kernels.launch(kernel("conv_winograd_input", problem, tile), source.shape[1] * tiles, arguments)
        products = batched_matmul(weights, points)
        arguments = (rest, block, products, source, w, bias[0] if bias else NULL, out, np.int64(first), in_order)
        kernels.launch(kernel("conv_winograd_output", problem, tile), out.shape[1] * tiles, arguments)


def _rows_in_order(array: Any) -> bool:
    """Whether four neighbours of each row, from every fourth, are aligned together."""
    address = array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr
    item, steps = array.dtype.itemsize, strides_of(array)
    return bool(address % min(16, TILE * item) == 0 and steps[-1] == 1 and all(step % TILE == 0 for step in steps[:-1]))


def _weight_grad(kernels: Launcher, problem: ConvProblem, outs: Arrays, ins: Arrays) -> None:
    grad_y, x = ins
    parts, channels = parts_of(problem), math.prod(problem.w_shape[:2])
    sums = (empty_like if problem.n else zeros_like)(x, (POINTS * channels,), problem.acc_dtype)
    for first, images in _blocks(problem):
        block = _numbers(images * math.prod(_tiles(problem)), images, parts)
        points = [_points(kernels, problem, name, array, block, first) for name, array in (("gradient", grad_y), ("input", x))]
        products = batched_matmul(points[0], points[1].transpose(0, 2, 1))
        code = kernel("conv_winograd_sums", problem)
        kernels.launch(code, POINTS * channels, (products, sums, np.int64(channels), np.int64(parts), np.int64(first)))
    record = geometry(problem, strides_of(grad_y), strides_of(x), strides_of(outs[0]))
    kernels.launch(kernel("conv_winograd_taps", problem), channels, (record, sums, grad_y, x, outs[0]))
    if problem.bias:
        bias_sums(problem, outs[1], x if problem.bias == "x" else grad_y)


def _points(kernels: Launcher, problem: ConvProblem, name: str, array: Any, block: Any, first: int) -> Any:
    """A factor of a gradient for w: the points of some images, ``[POINTS * parts * G, channels of a group, share]``."""
    parts, share, across = parts_of(problem), int(block["share"][0]), int(block["across"][0])
    found = empty_like(array, (POINTS * parts * problem.groups, array.shape[1] // problem.groups, share), problem.acc_dtype)
    record = geometry(problem, strides_of(array), count=_tiles(problem))
    kernels.launch(
        kernel(f"conv_winograd_{name}", problem), array.shape[1] * across, (record, block, array, found, np.int64(first))
    )
    return found
