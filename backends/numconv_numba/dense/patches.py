"""Input gradients of windows that share no position of x, such as those of patch embeddings: one product, moved into place.

Where the stride is no less than the extent of the kernel, at most one tap of one window reads a position. The phases of the stride
would be as many convolutions of a single tap, each with few channels; here all taps are output channels of one convolution of a
single tap, whose results are then moved to their positions, some images at a time.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from numconv.plugin import ConvProblem, np_dtype
from numconv_numba.threads import Kept

__all__ = ["MOVED_SECONDS", "PATCH_SECONDS", "Moves", "is_patchwise", "kept_arrays", "patch_products", "product_weights"]

WIDE_STRIDE = 4
"""Along a row: phases of less hold pixels enough for vectors, and are stored where they belong."""
MOST_BYTES = 4 * 2**20
"""Results that are computed before they are moved: they stay near the caches."""
MOVED_SECONDS = 1e-9
"""Of moving an element by one thread."""
PATCH_SECONDS = 2e-5
"""Of the moves themselves."""


_kept = Kept()


def kept_arrays(dtype: Any, *shapes: tuple[int, ...]) -> list[Any]:
    """Arrays in memory that a thread keeps from call to call, as fresh memory costs page faults; the next ones replace them."""
    sizes = [math.prod(shape) * dtype.itemsize for shape in shapes]
    starts = [0, *itertools.accumulate(-(-size // 64) * 64 for size in sizes)]
    memory = _kept.take(starts[-1])
    parts = (memory[start : start + size] for start, size in zip(starts, sizes, strict=False))
    return [part.view(dtype).reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _extent(problem: ConvProblem, axis: int) -> int:
    """From the first to the last position of a window."""
    return problem.dilation[axis] * (problem.kernel[axis] - 1) + 1


@functools.lru_cache(maxsize=256)
def is_patchwise(problem: ConvProblem) -> bool:
    """Whether an input_grad is computed this way: windows lie apart, and sums have several terms."""
    apart = all(_extent(problem, axis) <= problem.stride[axis] for axis in range(problem.ndim))
    return apart and problem.stride[-1] >= WIDE_STRIDE and problem.k > problem.groups and problem.pad_mode == "zeros"


@functools.lru_cache(maxsize=256)
def patch_products(problem: ConvProblem) -> ConvProblem:
    """The forward problem, of as many images as are computed at a time, whose output channels are input channels and their taps."""
    ones, channels = (1,) * problem.ndim, problem.c * math.prod(problem.kernel)
    image = channels * math.prod(problem.output) * np_dtype(problem.out_dtype).itemsize
    return problem.replace(
        op="forward", n=min(problem.n, max(1, MOST_BYTES // image)), c=problem.k, k=channels, spatial=problem.output, kernel=ones,
        stride=ones, padding=((0, 0),) * problem.ndim, dilation=ones, flip=False, bias="y" if problem.bias else "",
    )  # fmt: skip


def product_weights(problem: ConvProblem, w: Any) -> Any:
    """w as that of `patch_products` ``[C*prod(R), K/G, 1...]``: of one group a view, where taps of all channels are one row."""
    if problem.flip:
        w = np.flip(w, tuple(range(2, w.ndim)))
    grouped = w.reshape(problem.groups, problem.k // problem.groups, -1).swapaxes(1, 2)
    return grouped.reshape(problem.c * math.prod(problem.kernel), -1, *[1] * problem.ndim)


class _Segment(NamedTuple):
    """Neighbouring windows along a dimension that have the same taps inside x; the first of these has a position there."""

    windows: slice
    taps: slice
    position: int


def _segments(problem: ConvProblem, axis: int) -> list[_Segment]:
    """Windows inside x together, those at a border one by one."""
    s, d, r, size = problem.stride[axis], problem.dilation[axis], problem.kernel[axis], problem.spatial[axis]
    low, outputs = problem.padding[axis][0], problem.output[axis]
    found: list[_Segment] = []
    for window in range(outputs):
        start = window * s - low
        taps = slice(max(0, -(start // d)), max(0, min(r, (size - 1 - start) // d + 1)))
        if taps.stop <= taps.start:
            continue
        if found and found[-1].taps == taps and found[-1].windows.stop == window:
            found[-1] = found[-1]._replace(windows=slice(found[-1].windows.start, window + 1))
        else:
            found.append(_Segment(slice(window, window + 1), taps, start + taps.start * d))
    return found


class Moves:
    """The results of `patch_products` to their positions.

    Attributes
    ----------
    gaps : bool
        Whether some positions of x are read by no window.
    """

    def __init__(self, problem: ConvProblem):
        self._problem = problem
        along = [_segments(problem, axis) for axis in range(problem.ndim)]
        read = [sum((e.windows.stop - e.windows.start) * (e.taps.stop - e.taps.start) for e in each) for each in along]
        self.gaps = tuple(read) != problem.spatial
        self._combinations = list(itertools.product(*along))

    def __call__(self, x: Any, products: Any) -> None:
        """Write them."""
        problem, ndim = self._problem, self._problem.ndim
        apart = products.reshape(len(products), problem.c, *problem.kernel, *problem.output)
        pairs = [part for axis in range(ndim) for part in (2 + ndim + axis, 2 + axis)]
        for segments in self._combinations:
            some = apart[(..., *(e.taps for e in segments), *(e.windows for e in segments))].transpose(0, 1, *pairs)
            steps = zip(x.strides[2:], problem.stride, problem.dilation, strict=True)
            strides = [step for one, s, d in steps for step in (one * s, one * d)]
            corner = x[(..., *(slice(e.position, None) for e in segments))]
            as_strided(corner, some.shape, (*x.strides[:2], *strides))[...] = some
