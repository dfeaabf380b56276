"""Input gradients of long kernels with a stride and few input channels, as in decoders of sound: one product, then col2im.

A matrix product of the gradient of y with all taps of all input channels gives, for each window, what it adds to the positions
that it reads; `vector_windows` adds these columns up. The product has a row for each tap of each input channel, where each phase
of the stride would be a product of few rows. Columns are computed some windows at a time, so that they stay in the second-level
cache. (Chellapilla, Puri and Simard, "High performance convolutional neural networks for document processing", 2006, section 3,
the other way round.)
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Implementation, Verdict, WindowProblem, activate, np_dtype
from numconv_numba.dense.base import with_weights
from numconv_numba.dense.blocked import CALL_SECONDS, Blocked
from numconv_numba.dense.implicit_gemm import ImplicitGemm
from numconv_numba.dense.patches import kept_arrays, patch_products, product_weights
from numconv_numba.depthwise.depthwise import is_scattered
from numconv_numba.direct import MEASURED_ERROR
from numconv_numba.microkernels.emit import host, lanes_of
from numconv_numba.pooling.vector_windows import VectorWindows

__all__ = ["Col2im"]

_PRODUCTS: tuple[Implementation, ...] = (ImplicitGemm(), Blocked())
COLUMN_BYTES = 1 << 20
"""Columns that are computed before they are added up."""
MOST_BYTES = 16 << 20
"""Of the columns of one slice of windows, at least: those of wide images are left to others."""
PIECE_SECONDS = 6e-6
"""Of a piece's calls beside the kernels."""
MOVED_SECONDS = 4e-10
"""Of an element of x that is added to, or gets its bias and activation."""
SCATTERED_SECONDS = 4e-9
"""Of an element of the columns whose neighbours of x are other channels: added up one by one."""
APART_SECONDS = 7e-10
"""Of an element of the columns of windows that lie apart, which is moved only, on its way out of the caches and back: measured with
AVX2 on kernels of two by two. With AVX-512 none was."""


class _Piece(NamedTuple):
    """Some images and windows.

    Attributes
    ----------
    images : slice
    windows, places : slice
        Along the first dimension: windows, and the positions of x that they read.
    product : ConvProblem
        From grad_y to columns.
    fold : WindowProblem
        From columns to x.
    """

    images: slice
    windows: slice
    places: slice
    product: ConvProblem
    fold: WindowProblem


def _columns(problem: ConvProblem, images: int, windows: int) -> ConvProblem:
    """The product for so many images, and windows along the first dimension."""
    products, outputs = patch_products(problem), (windows, *problem.output[1:])
    return products.replace(n=images, spatial=outputs, bias="", activation=None, layout="channels_first")


def _fold(problem: ConvProblem, images: int, size: int, pads: tuple[int, int]) -> WindowProblem:
    """Adding up, for so many images and positions along the first dimension."""
    return WindowProblem(
        op="fold", dtype=problem.dtype, n=images, c=problem.c, spatial=(size, *problem.spatial[1:]), window=problem.kernel,
        stride=problem.stride, padding=(pads, *problem.padding[1:]), dilation=problem.dilation, accuracy=problem.accuracy,
        max_workspace=problem.max_workspace,
    )  # fmt: skip


def _slice_bytes(problem: ConvProblem) -> int:
    """Of the columns of one window along the first dimension, and all along the others."""
    rows = problem.c * math.prod(problem.kernel) * math.prod(problem.output[1:])
    return max(1, rows * np_dtype(problem.dtype).itemsize)


def _pieces(problem: ConvProblem) -> Iterator[_Piece]:
    """All images and windows, in order."""
    slices = max(1, COLUMN_BYTES // _slice_bytes(problem))
    images, windows = max(1, slices // problem.output[0]), min(slices, problem.output[0])
    for n, first in itertools.product(range(0, problem.n, images), range(0, problem.output[0], windows)):
        some, count = min(images, problem.n - n), min(windows, problem.output[0] - first)
        start, end = 0, problem.spatial[0]
        pads = problem.padding[0]
        if count < problem.output[0]:
            reach = problem.dilation[0] * (problem.kernel[0] - 1) + 1
            low, high = first * problem.stride[0] - pads[0], (first + count - 1) * problem.stride[0] - pads[0] + reach
            start, end = max(low, 0), min(high, end)
            pads = start - low, high - end
        if start < end:
            yield _Piece(
                slice(n, n + some), slice(first, first + count), slice(start, end), _columns(problem, some, count),
                _fold(problem, some, end - start, pads),
            )  # fmt: skip


def _is_whole(problem: ConvProblem, pieces: Sequence[_Piece]) -> bool:
    """Whether each piece has all windows of its images, so that no position of x gets parts from several."""
    return bool(pieces) and all(each.windows == slice(0, problem.output[0]) for each in pieces)


def _only_moves(problem: ConvProblem) -> bool:
    """Whether windows lie apart, on vectors of less than a line, with channels enough for whole ones in each phase."""
    apart = all(r <= s for r, s in zip(problem.kernel, problem.stride, strict=True))
    return apart and host().width < 64 and problem.c // problem.groups >= 2 * lanes_of(problem.dtype)


@functools.lru_cache(maxsize=256)
def _cheapest(problem: ConvProblem) -> Any:
    """Who computes a product."""
    return min(_PRODUCTS, key=lambda each: each.cost(problem))


class _Executor:
    """One input gradient."""

    def __init__(self, problem: ConvProblem):
        self._problem = problem
        self._pieces = list(_pieces(problem))
        self._whole = _is_whole(problem, self._pieces)
        self._products = {p: _cheapest(p).build(p) for p in {each.product for each in self._pieces}}
        self._folds = {p: VectorWindows().build(p) for p in {each.fold for each in self._pieces}}

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        rows = product_weights(self._problem, ins[1])
        self._run(outs[0], ins[0], ins[2:], {p: with_weights(each, rows) for p, each in self._products.items()})

    def bind(self, w: Any) -> Any:
        """The executor with its own copy of w, packed."""
        rows = product_weights(self._problem, w)
        bound = {p: each.bind(rows) for p, each in self._products.items()}
        return lambda outs, ins: self._run(outs[0], ins[0], ins[1:], bound)

    def _run(self, x: Any, y: Any, bias: Sequence[Any], products: Mapping[ConvProblem, Any]) -> None:
        if not self._whole:
            x[...] = 0
        with np.errstate(invalid="ignore", over="ignore"):
            for images, windows, places, product, fold in self._pieces:
                target = x[images, :, places]
                columns, *added = kept_arrays(x.dtype, product.y_shape, *([] if self._whole else [fold.x_shape]))
                products[product]((columns,), (y[images, :, windows],))
                sums = target if self._whole else added[0]
                self._folds[fold]((sums,), (columns.reshape(fold.y_shape),))
                if not self._whole:
                    target += sums
            if bias:
                x += bias[0].reshape(-1, *[1] * self._problem.ndim)
        activate(x, self._problem.activation)


class Col2im(Implementation):
    """The input gradient of a convolution with a stride, as columns that are added up."""

    name = "col2im"
    ops = frozenset(("input_grad",))
    levels = frozenset(("high", "default", "fast"))
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def supports(self, problem: ConvProblem) -> Verdict:
        """float32 and float64, a stride, padding of zeros, columns of moderate size."""
        if problem.dtype not in ("float32", "float64") or problem.out_dtype != problem.dtype:
            return Verdict.no(f"columns are rounded to {problem.out_dtype}: it takes and gives float32, or float64")
        if max(problem.stride) == 1:
            return Verdict.no("stride 1: other algorithms add up in registers")
        if problem.pad_mode != "zeros":
            return Verdict.no(f"an input_grad with pad_mode {problem.pad_mode} folds back what lies beside x")
        if (size := _slice_bytes(problem)) > MOST_BYTES:
            return Verdict.no(f"the columns of one slice of windows take {size} bytes, and it computes at most {MOST_BYTES}")
        return VectorWindows().supports(_fold(problem, 1, problem.spatial[0], problem.padding[0]))

    def cost(self, problem: ConvProblem) -> float:
        """Of products, and of adding up."""
        pieces = list(_pieces(problem))
        alike = {(each.product, each.fold) for each in pieces}
        seconds = {both: _cheapest(both[0]).cost(both[0]) + VectorWindows().cost(both[1]) for both in alike}
        moved = math.prod(problem.x_shape) * MOVED_SECONDS * (not _is_whole(problem, pieces) + bool(problem.bias))
        if _only_moves(problem):
            moved += sum(math.prod(each.product.y_shape) for each in pieces) * APART_SECONDS
        if is_scattered(problem):
            moved += sum(math.prod(each.product.y_shape) for each in pieces) * SCATTERED_SECONDS
        return CALL_SECONDS + moved + sum(PIECE_SECONDS + seconds[each.product, each.fold] for each in pieces)

    def workspace(self, problem: ConvProblem) -> int:
        """The columns, what a piece adds to x, weights in rows, and what the computations need."""
        pieces, item = list(_pieces(problem)), np_dtype(problem.dtype).itemsize
        most = max((math.prod(each.product.y_shape) + math.prod(each.fold.x_shape) for each in pieces), default=0)
        inner = max((_cheapest(p).workspace(p) for p in {each.product for each in pieces}), default=0)
        folds = max((VectorWindows().workspace(p) for p in {each.fold for each in pieces}), default=0)
        return (most + math.prod(problem.w_shape)) * item + inner + folds

    def build(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
