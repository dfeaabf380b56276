"""The executors of `fft`, in array operations.

What is not finite is transformed as 0; a flag an image, which stays on the device, makes a kernel of `direct` compute the results
of that image again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from numconv.plugin import ConvProblem

from .epilogue import bias_sums, store
from .flags import Box, Redo, redo_nonfinite
from .gemm import batched_matmul
from .layouts import Channels, Layout
from .namespaces import Arrays, dtype_in, namespace, zeros_like
from .slabs import padded_part, spread_part
from .source import NULL

__all__ = ["convolve", "correlate_weights"]

Block = tuple[slice, ...]
"""Positions along each axis."""


def convolve(problem: ConvProblem, layout: Layout, short: Sequence[Box], redo: Redo, outs: Arrays, ins: Arrays) -> None:
    """y from x and w, or grad_x from grad_y and w: correlations with the weights, or with the mirrored ones."""
    (out,), (source, w, *bias) = outs, ins
    with np.errstate(all="ignore"):  # NumPy would warn of infinities; CuPy never does
        for channels in layout.channels():
            weights = _weight_spectra(problem, layout, w, channels)
            largest = _largest(layout, problem, w)
            part = [each[channels.results] for each in bias]
            for images, block in _blocks(layout):
                sums = _block_of_results(problem, layout, source[images, channels.sources, ...], weights, largest, channels, block)
                places = (slice(b.start // s, -(-b.stop // s)) for b, s in zip(block, layout.every, strict=True))
                target = out[(images, channels.results, *places)]
                store(problem, target, namespace(out).reshape(sums, target.shape), part)
        redo_nonfinite(redo, problem, outs, ins, (0, 1))
    for box in short:
        redo(outs, ins, NULL, box)


def _block_of_results(
    problem: ConvProblem, layout: Layout, source: Any, weights: Any, largest: Any, channels: Channels, block: Block
) -> Any:
    """``[n, groups, outputs, *kept positions]``."""
    values = _source(problem, layout, source, block)
    scale = _largest(layout, problem, values) * largest
    sums = _back(layout, _multiplied(_spectra(layout, values, channels.groups), weights))
    kept = (slice(0, b.stop - b.start, s) for b, s in zip(block, layout.every, strict=True))
    return _rounded(problem, layout, sums[(..., *kept)], scale)


def correlate_weights(problem: ConvProblem, layout: Layout, redo: Redo, outs: Arrays, ins: Arrays) -> None:
    """grad_w from grad_y and x: their spectra multiplied and summed over images and blocks, one inverse transform at the end."""
    grad_y, x = ins
    with np.errstate(all="ignore"):
        for channels in layout.channels():
            target = outs[0][channels.results, ...]
            gradient = _weight_gradient(problem, layout, channels, grad_y, x)
            store(problem, target, namespace(x).reshape(gradient, target.shape), ())
        if problem.bias:
            bias_sums(problem, outs[1], x if problem.bias == "x" else grad_y)
        redo_nonfinite(redo, problem, outs[:1], ins, (0, 1))


def _weight_gradient(problem: ConvProblem, layout: Layout, channels: Channels, grad_y: Any, x: Any) -> Any:
    """``[groups, outputs, inputs, *R]`` of some channels."""
    xp = namespace(x)
    count = channels.results.stop - channels.results.start
    shape = (channels.groups, count // channels.groups, layout.inputs)
    sums: Any = None
    scale: Any = 0.0
    for images, block in _blocks(layout):
        part = grad_y[images, channels.results, ...], x[images, channels.sources, ...]
        product, largest = _block_of_spectra(problem, layout, channels.groups, part, block)
        sums = product if sums is None else sums + product
        scale = scale + largest
    if sums is None:
        return zeros_like(x, (*shape, *problem.kernel), layout.dtype)
    taps = (slice(0, e, d) for e, d in zip(layout.extents, problem.dilation, strict=True))
    gradient = _back(layout, sums)[(..., *taps)]
    if problem.dtype.startswith("complex"):
        gradient = xp.conj(gradient)
    if problem.flip:
        gradient = xp.flip(gradient, axis=tuple(range(3, gradient.ndim)))
    return _rounded(problem, layout, gradient, scale)


def _block_of_spectra(problem: ConvProblem, layout: Layout, groups: int, part: tuple[Any, Any], block: Block) -> tuple[Any, Any]:
    """A block's part of the sums of spectra, and a bound of what it holds divided by the number of its terms."""
    grad_y, x = part
    firsts, extents = [b.start for b in block], [b.stop - b.start for b in block]
    left = _finite(spread_part(grad_y, firsts, extents, problem.stride, layout.dtype))
    right = _source(problem, layout, x, block)
    largest = _largest(layout, problem, left) * _largest(layout, problem, right)
    return _correlated(_spectra(layout, left, groups), _spectra(layout, right, groups)), largest


def _blocks(layout: Layout) -> Iterator[tuple[slice, Block]]:
    """Images at a time, and the positions of a block of results."""
    axes = [
        [slice(begin, min(size, begin + step)) for begin in range(0, size, step)]
        for size, step in zip(layout.positions, layout.steps, strict=True)
    ]
    for image in range(0, layout.n, layout.images):
        for block in itertools.product(*axes):
            yield slice(image, min(layout.n, image + layout.images)), block


def _finite(values: Any) -> Any:
    xp = namespace(values)
    return xp.where(xp.isfinite(values), values, xp.zeros_like(values))


def _source(problem: ConvProblem, layout: Layout, source: Any, block: Block) -> Any:
    """What a block of results reads, with the padding in place."""
    extents = [b.stop - b.start + e - 1 for b, e in zip(block, layout.extents, strict=True)]
    lows = [low for low, _ in problem.padding]
    if problem.op == "input_grad":  # of grad_y with zeros between: the adjoint reads e - 1 - low before a position
        firsts = [b.start - (e - 1 - low) for b, e, low in zip(block, layout.extents, lows, strict=True)]
        return _finite(spread_part(source, firsts, extents, problem.stride, layout.dtype))
    firsts = [b.start - low for b, low in zip(block, lows, strict=True)]
    return _finite(padded_part(source, firsts, extents, problem.pad_mode, layout.dtype))


def _weight_spectra(problem: ConvProblem, layout: Layout, w: Any, channels: Channels) -> Any:
    """``[groups, outputs, inputs, *frequencies]``, conjugated, so that a product is a correlation."""
    xp, ndim = namespace(w), problem.ndim
    grouped = xp.reshape(w, (layout.groups, -1, *w.shape[1:]))
    if problem.op == "input_grad":
        grouped = xp.permute_dims(grouped, (0, 2, 1, *range(3, 3 + ndim)))
    group, output = divmod(channels.results.start, layout.outputs)
    count = (channels.results.stop - channels.results.start) // channels.groups
    part = _finite(grouped[group : group + channels.groups, output : output + count, ...])
    part = xp.astype(part, dtype_in(xp, layout.dtype), copy=False)
    axes = tuple(range(3, 3 + ndim))
    if problem.flip != (problem.op == "input_grad"):
        part = xp.flip(part, axis=axes)
    is_complex = layout.dtype.startswith("complex")
    if is_complex and problem.op == "forward":  # grad_x takes conj(w), and a correlation conjugates: only one of them here
        part = xp.conj(part)
    if any(d > 1 for d in problem.dilation):
        spread = zeros_like(w, (*part.shape[:3], *layout.extents), layout.dtype)
        spread[(..., *(slice(0, e, d) for e, d in zip(layout.extents, problem.dilation, strict=True)))] = part
        part = spread
    return xp.conj(_transformed(layout, part))


def _transformed(layout: Layout, values: Any) -> Any:
    xp = namespace(values)
    axes = tuple(range(values.ndim - len(layout.lengths), values.ndim))
    transform = xp.fft.fftn if layout.dtype.startswith("complex") else xp.fft.rfftn
    return transform(values, s=layout.lengths, axes=axes)


def _spectra(layout: Layout, values: Any, groups: int) -> Any:
    """``[n, groups, channels, *frequencies]`` of ``[n, groups * channels, *positions]``."""
    xp = namespace(values)
    return _transformed(layout, xp.reshape(values, (values.shape[0], groups, -1, *values.shape[2:])))


def _back(layout: Layout, spectra: Any) -> Any:
    """The values of spectra; beyond a block's results they are wrapped around."""
    xp = namespace(spectra)
    axes = tuple(range(spectra.ndim - len(layout.lengths), spectra.ndim))
    inverse = xp.fft.ifftn if layout.dtype.startswith("complex") else xp.fft.irfftn
    return inverse(spectra, s=layout.lengths, axes=axes)


def _matrices(spectra: Any) -> Any:
    """``[a, groups, b, *frequencies]`` as one matrix a frequency and group, ``[frequencies * groups, a, b]``."""
    xp = namespace(spectra)
    moved = xp.permute_dims(spectra, (*range(3, spectra.ndim), 1, 0, 2))
    return xp.reshape(moved, (-1, spectra.shape[0], spectra.shape[2]))


def _of_matrices(matrices: Any, groups: int, frequencies: tuple[int, ...]) -> Any:
    """Back to ``[groups, a, b, *frequencies]``."""
    xp = namespace(matrices)
    ndim = len(frequencies)
    parts = xp.reshape(matrices, (*frequencies, groups, *matrices.shape[1:]))
    return xp.permute_dims(parts, (ndim, ndim + 1, ndim + 2, *range(ndim)))


def _multiplied(spectra: Any, weights: Any) -> Any:
    """``[n, groups, outputs, *frequencies]``: products summed over the inputs of a group."""
    xp = namespace(spectra)
    groups, inputs, frequencies = spectra.shape[1], spectra.shape[2], spectra.shape[3:]
    if inputs == 1:
        return spectra * weights[:, :, 0, ...][None, ...]
    factors = _matrices(xp.permute_dims(weights, (2, 0, 1, *range(3, weights.ndim))))
    product = _of_matrices(batched_matmul(_matrices(spectra), factors), groups, frequencies)
    return xp.permute_dims(product, (1, 0, 2, *range(3, product.ndim)))


def _correlated(left: Any, right: Any) -> Any:
    """``[groups, outputs, inputs, *frequencies]``: products of conj(left) and right, summed over images."""
    xp = namespace(left)
    conjugated = xp.permute_dims(_matrices(xp.conj(left)), (0, 2, 1))
    return _of_matrices(batched_matmul(conjugated, _matrices(right)), left.shape[1], left.shape[3:])


def _largest(layout: Layout, problem: ConvProblem, values: Any) -> Any:
    """The largest finite absolute value, where `_rounded` needs it."""
    xp = namespace(values)
    if layout.dtype == problem.acc_dtype or not values.size:
        return 1.0
    return xp.astype(xp.max(xp.abs(_finite(values))), dtype_in(xp, "float64"), copy=False)


def _rounded(problem: ConvProblem, layout: Layout, sums: Any, scale: Any) -> Any:
    """Sums of wider arithmetic, rounded to the last place that is certain: exact where all values are integers.

    `scale` times the number of terms bounds the sums, and so the error of the transforms.
    """
    xp = namespace(sums)
    if layout.dtype == problem.acc_dtype:
        return sums
    anchor = scale * (8.0 * max(1, problem.terms))
    if layout.dtype.startswith("complex"):
        anchor = anchor * (1 + 1j)
    return xp.astype((sums + anchor) - anchor, dtype_in(xp, problem.acc_dtype), copy=False)
