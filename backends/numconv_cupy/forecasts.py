"""What prepared products and transforms are expected to take: their launches one by one, see `costs`."""

from __future__ import annotations

import math

from numconv.plugin import ConvProblem, np_dtype, nvidia_rates

from .blocks import is_bare, is_short, limit_of
from .costs import START, Work, issued, product, streamed
from .layouts import Layout
from .transforms import rounds_of

__all__ = ["matmul_seconds", "transform_seconds"]

_ADDS = 40
"""Instructions of a tap of an element where columns are added."""
_PRODUCTS = 0.1
"""The share of the peak that products of spectra reach."""
_PASSES = 1 << 13
"""Values of a transform of one pass over memory."""


def matmul_seconds(problem: ConvProblem) -> float:
    """Of `matmul` and `pointwise`: blocks of columns, products, and what ends them."""
    item, wide = np_dtype(problem.dtype).itemsize, np_dtype(problem.acc_dtype).itemsize
    taps, pixels = math.prod(problem.kernel), math.prod(problem.output)
    columns = 0 if is_bare(problem) else problem.c * taps * pixels * (wide if problem.op == "input_grad" else item)
    blocks = _blocks(max(1, problem.n), columns, limit_of(problem))
    images = max(1, problem.n // blocks)
    block = columns * problem.n // blocks
    multiplied = product(_work(problem, images, pixels * problem.n // (blocks * images)), problem.dtype, tf32=_tf32(problem))
    results = math.prod(problem.y_shape) * np_dtype(problem.out_dtype).itemsize // blocks
    times = [multiplied]
    if problem.op == "input_grad":
        times += [_added(problem, images * pixels * taps)] if columns else []
    elif columns:
        times.append(streamed(block + problem.n // blocks * math.prod(problem.x_shape[1:]) * item))
    if problem.op == "weight_grad":
        parts = 1 if is_short(problem) else images
        times.append(streamed(parts * math.prod(problem.w_shape) * wide))
        times += [streamed(2 * results)] if is_short(problem) and images > 1 else []
    elif problem.op == "forward" and (problem.bias or problem.activation):
        times.append(streamed(2 * results))
    elif problem.op == "forward" and columns:
        times.append(2 * START)
    return issued(len(times) * blocks, sum(times) * blocks)


def _blocks(images: int, size: int, limit: int) -> int:
    """For so many images of `size` bytes."""
    if size <= limit:
        return -(-images // max(1, limit // max(1, size)))
    return images * -(-size // limit)


def _tf32(problem: ConvProblem) -> bool:
    return problem.level == "fast" and problem.dtype in ("float32", "complex64")


def _work(problem: ConvProblem, images: int, pixels: int) -> Work:
    """The products of a block."""
    groups, taps = problem.groups, math.prod(problem.kernel)
    inputs, outputs = problem.c // groups * taps, problem.k // groups
    if problem.op == "weight_grad":
        joint = is_short(problem)
        return Work(outputs, pixels * (images if joint else 1), inputs, groups * (1 if joint else images))
    rows, inner = (outputs, inputs) if problem.op == "forward" else (inputs, outputs)
    if problem.op == "forward" and is_short(problem):
        return Work(rows, inner, pixels * images, groups)
    return Work(rows, inner, pixels, groups * images, shared=groups == 1)


def _added(problem: ConvProblem, columns: int) -> float:
    """Of adding so many pixels' columns of each channel."""
    size = columns * problem.c * np_dtype(problem.acc_dtype).itemsize
    return max(streamed(size), START + columns * problem.c * _ADDS / (nvidia_rates().single / 2))


def transform_seconds(problem: ConvProblem, cut: Layout) -> float:
    """Of `fft`: five launches a round, bound by memory, and products of spectra."""
    rounds, _ = rounds_of(problem, cut)
    item = np_dtype(cut.dtype).itemsize
    length = math.prod(cut.lengths)
    units = cut.n * cut.blocks
    sources = units * cut.groups * cut.inputs
    results = units * cut.groups * cut.outputs
    weights = cut.groups * cut.inputs * cut.outputs
    passes = max(1, math.ceil(math.log(max(2, length)) / math.log(_PASSES)))
    transformed = (sources + results + weights) * length * item
    rates = nvidia_rates()
    peak = rates.double if item == 8 else rates.single
    products = 4.0 * length * units * cut.groups * cut.inputs * cut.outputs / (_PRODUCTS * peak)
    return issued(7 * rounds, 5 * rounds * START + streamed(transformed * (2 + 2 * passes)) + products)
