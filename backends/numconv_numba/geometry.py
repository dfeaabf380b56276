"""Where things lie: the integer vector that describes a problem to the kernels, and the index arithmetic on it.

A kernel gets one int64 vector. Its head holds the sizes at the places named below; behind it come seven parts of one entry a
spatial dimension (input size, window, output size, stride, low padding, dilation, and 1 where the window is flipped), then the
byte strides of the three arrays: x ``(n, group, channel, *S)``, w ``(group, k, c, *R)`` and y ``(n, group, channel, *Q)``.
Pooling and window operations use the same form with one channel a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from numconv.plugin import ConvProblem

from .compiling.compiler import helper

__all__ = [
    "BATCH",
    "DILATION",
    "DIMS",
    "FLIPPED",
    "GROUPS",
    "LOW",
    "MODE",
    "MODES",
    "OPTION",
    "OUTPUT",
    "PARTS",
    "PER_C",
    "PER_K",
    "SIZE",
    "STRIDE",
    "WINDOW",
    "Vectors",
    "channel_strides",
    "conv_vectors",
    "part",
    "source_index",
    "span",
    "weight_strides",
]

BATCH, GROUPS, PER_C, PER_K, DIMS, MODE, OPTION, HEAD = 0, 1, 2, 3, 4, 5, 6, 7
SIZE, WINDOW, OUTPUT, STRIDE, LOW, DILATION, FLIPPED, PARTS = 0, 1, 2, 3, 4, 5, 6, 7
MODES = {"zeros": 0, "reflect": 1, "symmetric": 2, "replicate": 3, "circular": 4}
_KEPT = 64


class Vectors:
    """The vectors of one problem: the sizes are fixed, the strides come with the arrays of a call.

    Parameters
    ----------
    n, groups, per_c, per_k : int
        Batch, groups, and channels of x and of y in each group.
    parts : sequence of sequence of int
        The seven parts, one entry a spatial dimension.
    mode : str
        The padding mode.
    option : int
        Whatever else the kernel wants to know.
    arrange : callable, optional
        From the strides of the arrays of a call to those that the vector holds; by default they are the same.
    """

    def __init__(
        self,
        n: int,
        groups: int,
        per_c: int,
        per_k: int,
        parts: Sequence[Sequence[int]],
        mode: str = "zeros",
        option: int = 0,
        arrange: Callable[..., tuple[tuple[int, ...], ...]] | None = None,
    ):
        ndim = len(parts[0])
        self._sizes = (n, groups, per_c, per_k, ndim, MODES[mode], option, *(value for one in parts for value in one))
        self._arrange = arrange
        self._made: dict[tuple[tuple[int, ...], ...], np.ndarray[Any, Any]] = {}

    def __call__(self, *strides: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """The vector for arrays of these strides; those seen before are kept, since most calls repeat them."""
        found = self._made.get(strides)
        if found is None:
            arranged = strides if self._arrange is None else self._arrange(*strides)
            found = np.array((*self._sizes, *(value for one in arranged for value in one)), np.int64)
            if len(self._made) < _KEPT:
                self._made[strides] = found
        return found


def channel_strides(strides: tuple[int, ...], per_group: int) -> tuple[int, ...]:
    """(n, group, channel, *spatial) from the strides of an array [N, C, *S]."""
    return (strides[0], strides[1] * per_group, *strides[1:])


def weight_strides(strides: tuple[int, ...], rows: int, *, swapped: bool = False) -> tuple[int, ...]:
    """(group, k, c, *R) from the strides of w [K, C/G, *R] with `rows` of it in a group; `swapped`: k and c trade places."""
    k, c, *steps = strides
    return (k * rows, c, k, *steps) if swapped else (k * rows, k, c, *steps)


def conv_vectors(problem: ConvProblem, option: int, *, swapped: bool = False) -> Vectors:
    """The vectors of a convolution, from the strides of x, w and y; `swapped`: w is that of the adjoint."""
    lows = [low for low, _ in problem.padding]
    parts = [
        problem.spatial,
        problem.kernel,
        problem.output,
        problem.stride,
        lows,
        problem.dilation,
        [int(problem.flip)] * problem.ndim,
    ]
    per_c, per_k = problem.c // problem.groups, problem.k // problem.groups
    rows = per_c if swapped else per_k

    def arrange(x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        return channel_strides(x, per_c), weight_strides(w, rows, swapped=swapped), channel_strides(y, per_k)

    return Vectors(problem.n, problem.groups, per_c, per_k, parts, problem.pad_mode, option, arrange)


@helper
def part(g, which):
    """The place in the vector of a part's first entry; `which` = PARTS, PARTS + 1 and PARTS + 2 give the strides of x, w and y."""
    place = HEAD + which * g[DIMS]
    if which > PARTS:
        place = HEAD + PARTS * g[DIMS] + (which - PARTS) * (g[DIMS] + 3)
    return place


@helper
def source_index(position, size, mode):
    """The index that a padded position reads, as np.pad has it at any width; -1 for a padding zero."""
    if 0 <= position < size:
        return position
    if mode == 0:
        return -1
    if mode == 3:
        return 0 if position < 0 else size - 1
    if mode == 4:
        return position % size
    period = 2 * size if mode == 2 else max(2 * size - 2, 1)
    folded = position % period
    if folded < size:
        return folded
    return period - 1 - folded if mode == 2 else period - folded


@helper
def span(first, last, stride, offset, size):
    """The part of the outputs first..last whose position, output * stride + offset, lies inside 0..size."""
    low = first
    if offset + first * stride < 0:
        low = (-offset + stride - 1) // stride
    high = last
    if offset + (last - 1) * stride >= size:
        high = (size - 1 - offset) // stride + 1 if size - 1 - offset >= 0 else 0
    low = min(max(low, first), last)
    return low, max(min(high, last), low)
