"""Convolution as matrix products: pointwise without a copy, else of columns that are gathered a block at a time.

Written against an array namespace. A block is some images, or some rows of one image (positions of the first spatial axis). Its
columns ``[G, C/G * taps, pixels]`` are put together from strided windows of a padded slab: no full matrix of columns is ever held.
With padding zeros a factor that is not finite would meet terms that are none: where there is one, a flag that stays on the device
makes a kernel of `direct` compute those results again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from numconv.plugin import CONV_OPS, ConvProblem, Executor, Implementation, Verdict, np_dtype

from .blocks import is_prepared, workspace_of
from .columns import executor_of
from .costs import LAUNCH
from .device import Device
from .direct import limits, parts_of
from .epilogue import bias_sums, store
from .flags import Redo, redo_nonfinite
from .forecasts import matmul_seconds
from .gemm import batched_matmul
from .namespaces import Arrays, dtype_in, namespace, on_namespace, strided_windows, zeros_like
from .slabs import Rows, padded_slab

__all__ = ["Matmul", "Pointwise"]

_OPERATIONS = 40
"""Launches in the time of the array operations of a call."""
_TF32 = {"float32", "complex64"}


class _Product(Implementation):
    """What both have in common: floats only, and no order of the terms."""

    levels = frozenset({"high", "default", "fast"})
    measured_error: ClassVar[Mapping[str, float]] = {"float32": 6e-7, "float64": 1e-15, "complex64": 6e-7, "complex128": 1e-15}

    def __init__(self, redo: Callable[[ConvProblem], Redo], device: Device | None = None):
        self.redo, self.device = redo, device

    def cost(self, problem: ConvProblem) -> float:
        """The launches one by one, see `forecasts`; or array operations, each of which keeps the host busy."""
        launches = 0 if self.device and is_prepared(problem) else _OPERATIONS
        return matmul_seconds(problem) + launches * LAUNCH

    def build(self, problem: ConvProblem) -> Executor:
        """Prepared steps, or array operations, on the caller's stream."""
        if self.device and is_prepared(problem):
            return executor_of(problem, self.device)
        return on_namespace(functools.partial(_quietly, self.run(problem), problem))

    def run(self, problem: ConvProblem) -> Callable[[ConvProblem, Arrays, Arrays], None]:
        """The function that computes the operation."""
        raise NotImplementedError


def _quietly(run: Callable[[ConvProblem, Arrays, Arrays], None], problem: ConvProblem, outs: Arrays, ins: Arrays) -> None:
    """NumPy would warn of infinities; CuPy never does."""
    with np.errstate(all="ignore"):
        run(problem, outs, ins)


def _floats_only(problem: ConvProblem) -> Verdict:
    if "int" in problem.dtype:
        return Verdict.no(f"dtype {problem.dtype}: cuBLAS multiplies floats only")
    return Verdict.yes()


def _is_fast(problem: ConvProblem) -> bool:
    """Whether TF32 is allowed: by the level, or because its 11 digits hold every factor."""
    halves = problem.dtype in ("float16", "bfloat16")
    return problem.acc_dtype in _TF32 and (problem.level == "fast" or halves)


class Pointwise(_Product):
    """Kernels of one tap: a product an image and group, read and written where the arrays lie."""

    name = "pointwise"
    ops = frozenset({"forward", "input_grad"})
    groups = 8

    def supports(self, problem: ConvProblem) -> Verdict:
        """One tap, no padding, few groups."""
        if math.prod(problem.kernel) != 1:
            return Verdict.no(f"a kernel of {'x'.join(map(str, problem.kernel))} taps; this is for one")
        if any(low or high > 0 for low, high in problem.padding):
            return Verdict.no(f"padding {problem.padding} makes results without a term")
        if problem.groups > self.groups:
            return Verdict.no(f"{problem.groups} groups, a product each (has up to {self.groups})")
        return _floats_only(problem) and limits(problem)

    def workspace(self, problem: ConvProblem) -> int:
        """The factors in the dtype of the sums and the products, of some images."""
        if self.device and is_prepared(problem):
            return workspace_of(problem)
        return _pointwise_images(problem) * _pointwise_bytes(problem)

    def run(self, problem: ConvProblem) -> Callable[[ConvProblem, Arrays, Arrays], None]:
        """One function for both operations."""
        return functools.partial(_pointwise, self.redo(problem))


def _pointwise_bytes(problem: ConvProblem) -> int:
    item = np_dtype(problem.acc_dtype).itemsize
    return 2 * (problem.c + problem.k) * math.prod(problem.output) * item


def _pointwise_images(problem: ConvProblem) -> int:
    return max(1, min(problem.n, problem.max_workspace // _pointwise_bytes(problem)))


def _pointwise(redo: Redo, problem: ConvProblem, outs: Arrays, ins: Arrays) -> None:
    (out,), (source, w, *bias) = outs, ins
    xp, ndim = namespace(w), problem.ndim
    forward = problem.op == "forward"
    dtype = dtype_in(xp, problem.acc_dtype)
    weights = xp.astype(xp.reshape(w, w.shape[:2]), dtype, copy=False)
    if not forward:
        weights = xp.conj(weights) if problem.dtype.startswith("complex") else weights
        if problem.output != problem.spatial:
            store(problem, out, zeros_like(w, (1, 1, *(1,) * ndim), problem.acc_dtype), bias)
    read = tuple(slice(0, (q - 1) * s + 1, s) for q, s in zip(problem.output, problem.stride, strict=True))
    per_group = (problem.c // problem.groups, problem.k // problem.groups)
    for start in range(0, problem.n, _pointwise_images(problem)):
        images = slice(start, min(problem.n, start + _pointwise_images(problem)))
        for group in range(problem.groups):
            cs, ks = (slice(group * size, (group + 1) * size) for size in per_group)
            part = source[(images, cs, *read)] if forward else source[images, ks, ...]
            target = out[images, ks, ...] if forward else out[(images, cs, *read)]
            factor = xp.reshape(xp.astype(part, dtype, copy=False), (part.shape[0], part.shape[1], -1))
            group_weights = weights[ks, :] if forward else xp.permute_dims(weights[ks, :], (1, 0))
            product = batched_matmul(group_weights[None, ...], factor, fast=_is_fast(problem))
            store(problem, target, xp.reshape(product, target.shape), [each[ks if forward else cs] for each in bias])
    redo_nonfinite(redo, problem, outs, ins, watched(problem))


class Matmul(_Product):
    """Blocks of columns times the weights, for any kernel."""

    name = "matmul"
    ops = frozenset(CONV_OPS)

    def supports(self, problem: ConvProblem) -> Verdict:
        """Floats; gradients of x without padding that copies values."""
        if problem.op == "input_grad" and problem.pad_mode != "zeros":
            return Verdict.no(f"pad_mode {problem.pad_mode!r} makes gradients fold back (has zeros)")
        return _floats_only(problem) and limits(problem)

    def workspace(self, problem: ConvProblem) -> int:
        """A block's slab, columns and products; the partial sums of weights that are computed again."""
        if self.device and is_prepared(problem):
            return workspace_of(problem)
        item = np_dtype(problem.acc_dtype).itemsize
        weights = math.prod(problem.w_shape) * item
        if problem.op == "weight_grad":
            return _rows_of(problem).bytes + max(2 * weights, parts_of(_again(problem)) * weights)
        return _rows_of(problem).bytes + weights

    def run(self, problem: ConvProblem) -> Callable[[ConvProblem, Arrays, Arrays], None]:
        """The function of the operation."""
        run = {"forward": _forward, "input_grad": _input_grad, "weight_grad": _weight_grad}[problem.op]
        return functools.partial(run, self.redo(_again(problem)))


def _again(problem: ConvProblem) -> ConvProblem:
    """The problem whose results are computed again; a gradient of weights without that of the bias, in a part of the memory."""
    if problem.op != "weight_grad":
        return problem
    changed: ConvProblem = problem.replace(bias="", max_workspace=problem.max_workspace // 4)
    return changed


def _rows_of(problem: ConvProblem) -> Rows:
    """Images and rows of a block; a quarter of the memory is for weights."""
    item = np_dtype(problem.acc_dtype).itemsize
    taps = math.prod(problem.kernel)
    pixels = math.prod(problem.output[1:])
    return Rows.of(problem, item * pixels * (problem.c * (taps + 3) + 2 * problem.k), problem.max_workspace // 4 * 3)


def _blocks(problem: ConvProblem, rows: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of images and rows of ``[N, rows]``."""
    plan = _rows_of(problem)
    for image in range(0, problem.n, plan.images):
        for row in range(0, rows, plan.rows):
            yield slice(image, min(problem.n, image + plan.images)), slice(row, min(rows, row + plan.rows))


def _columns(problem: ConvProblem, x: Any, images: slice, rows: slice) -> Any:
    """What all taps of a block of outputs read, ``[G, C/G * taps, pixels]``, pixels over images and outputs."""
    xp, ndim = namespace(x), problem.ndim
    slab = padded_slab(problem, x[images, ...], rows)
    output = (rows.stop - rows.start, *problem.output[1:])
    windows = strided_windows(slab, problem.kernel, output, problem.stride, problem.dilation)
    if problem.flip:
        windows = xp.flip(windows, axis=tuple(range(2, 2 + ndim)))
    order = (1, *range(2, 2 + ndim), 0, *range(2 + ndim, 2 + 2 * ndim))
    taps = problem.c // problem.groups * math.prod(problem.kernel)
    return xp.reshape(xp.permute_dims(windows, order), (problem.groups, taps, -1))


def _matrix_of_outputs(problem: ConvProblem, y: Any) -> Any:
    """``[nb, K, *rows]`` as ``[G, K/G, pixels]``, in the dtype of the sums."""
    xp = namespace(y)
    moved = xp.permute_dims(xp.astype(y, dtype_in(xp, problem.acc_dtype), copy=False), (1, 0, *range(2, y.ndim)))
    return xp.reshape(moved, (problem.groups, problem.k // problem.groups, -1))


def watched(problem: ConvProblem, *meets_padding: int) -> tuple[int, ...]:
    """The inputs that must be finite: those that meet padding zeros, and all complex ones, since products multiply by 1 + 0i."""
    if problem.dtype.startswith("complex"):
        return (0, 1)
    padded = problem.pad_mode == "zeros" and any(low > 0 or high > 0 for low, high in problem.padding)
    return meets_padding if padded else ()


def _weights_matrix(problem: ConvProblem, w: Any) -> Any:
    """``[G, K/G, C/G * taps]`` in the dtype of the sums."""
    xp = namespace(w)
    return xp.reshape(xp.astype(w, dtype_in(xp, problem.acc_dtype), copy=False), (problem.groups, problem.k // problem.groups, -1))


def _forward(redo: Redo, problem: ConvProblem, outs: Arrays, ins: Arrays) -> None:
    (y,), (x, w, *bias) = outs, ins
    xp = namespace(x)
    weights = _weights_matrix(problem, w)
    for images, rows in _blocks(problem, problem.output[0]):
        product = batched_matmul(weights, _columns(problem, x, images, rows), fast=_is_fast(problem))
        target = y[images, :, rows, ...]
        shape = (problem.k, target.shape[0], *target.shape[2:])
        store(problem, target, xp.permute_dims(xp.reshape(product, shape), (1, 0, *range(2, target.ndim))), bias)
    redo_nonfinite(redo, problem, outs, ins, watched(problem, 1))


def _weight_grad(redo: Redo, problem: ConvProblem, outs: Arrays, ins: Arrays) -> None:
    grad_y, x = ins
    xp = namespace(x)
    sums = zeros_like(x, (problem.groups, problem.k // problem.groups, math.prod(problem.w_shape[1:])), problem.acc_dtype)
    for images, rows in _blocks(problem, problem.output[0]):
        sums += _weights_of_block(problem, grad_y[images, :, rows, ...], x, images, rows)
    store(problem, outs[0], xp.reshape(sums, problem.w_shape), ())
    if problem.bias:
        bias_sums(problem, outs[1], x if problem.bias == "x" else grad_y)
    redo_nonfinite(redo, problem, outs[:1], ins, watched(problem, 0))


def _weights_of_block(problem: ConvProblem, grad_y: Any, x: Any, images: slice, rows: slice) -> Any:
    """A block's part of the gradient; a function, so that its columns are gone before the next block's are gathered."""
    xp = namespace(x)
    columns = xp.permute_dims(_columns(problem, x, images, rows), (0, 2, 1))
    factor = _matrix_of_outputs(problem, grad_y)
    if problem.dtype.startswith("complex"):  # conj(conj(grad_y) x): the smaller factor is conjugated, and the result
        return xp.conj(batched_matmul(xp.conj(factor), columns, fast=_is_fast(problem)))
    return batched_matmul(factor, columns, fast=_is_fast(problem))


def _input_grad(redo: Redo, problem: ConvProblem, outs: Arrays, ins: Arrays) -> None:
    (grad_x,), (grad_y, w, *bias) = outs, ins
    xp = namespace(w)
    weights = xp.permute_dims(_weights_matrix(problem, w), (0, 2, 1))
    weights = xp.conj(weights) if problem.dtype.startswith("complex") else weights
    for images, rows in _blocks(problem, problem.spatial[0]):
        slab = _gradient_slab(problem, weights, grad_y[images, ...], rows)
        target = grad_x[images, :, rows, ...]
        store(problem, target, xp.permute_dims(slab, (1, 0, *range(2, target.ndim))), bias)
    redo_nonfinite(redo, problem, outs, ins, watched(problem))


def _gradient_slab(problem: ConvProblem, weights: Any, grad_y: Any, rows: slice) -> Any:
    """The gradient of some rows of x, ``[C, nb, rows, *S[1:]]``: the columns' gradients, added where the taps read."""
    xp = namespace(grad_y)
    stride, dilation, low = problem.stride[0], problem.dilation[0], problem.padding[0][0]
    first = max(0, -(-(rows.start + low - dilation * (problem.kernel[0] - 1)) // stride))
    stop = max(first, min(problem.output[0], (rows.stop - 1 + low) // stride + 1))
    begin = min(first * stride - low, rows.start)  # the position in x of the slab's first row
    lengths = [max((stop - 1) * stride + dilation * (problem.kernel[0] - 1) + 1 - low, rows.stop) - begin]
    axes = zip(problem.spatial, problem.padding, problem.output, problem.stride, problem.dilation, problem.kernel, strict=True)
    for size, (before, _), q, s, d, r in list(axes)[1:]:
        lengths.append(max((q - 1) * s + d * (r - 1) + 1, size + before))
    count = grad_y.shape[0]
    slab = zeros_like(grad_y, (problem.c, count, *lengths), problem.acc_dtype)
    if stop > first:
        outputs = (stop - first, *problem.output[1:])
        columns = batched_matmul(weights, _matrix_of_outputs(problem, grad_y[:, :, first:stop, ...]), fast=_is_fast(problem))
        columns = xp.reshape(columns, (problem.c, -1, count, *outputs))
        shift = (first * stride - low - begin, *(0,) * (problem.ndim - 1))
        for number, tap in enumerate(np.ndindex(*problem.kernel)):
            slab[(slice(None), slice(None), *_reads(problem, tap, outputs, shift))] += columns[:, number, ...]
    rest = (slice(before, before + size) for size, (before, _) in zip(problem.spatial[1:], problem.padding[1:], strict=True))
    return slab[(slice(None), slice(None), slice(rows.start - begin, rows.stop - begin), *rest)]


def _reads(problem: ConvProblem, tap: tuple[int, ...], outputs: tuple[int, ...], shift: tuple[int, ...]) -> Iterator[slice]:
    """Where a tap of a block of outputs reads a slab that begins `shift` before the first output's first tap."""
    for t, r, q, s, d, begin in zip(tap, problem.kernel, outputs, problem.stride, problem.dilation, shift, strict=True):
        start = begin + (r - 1 - t if problem.flip else t) * d
        yield slice(start, start + (q - 1) * s + 1, s)
