"""Max, average and power-mean pooling and their gradients, one tap of all windows at a time.

Padding is no element of a window: a tap that lies on it takes part in nothing, and only counts for `count_include_pad`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from numconv.plugin import POOL_OPS, Executor, Implementation, PoolProblem, Verdict, check_indices

from .geometry import axis_reads, meshes, positions, tap_tables
from .precision import store, wide_dtype

__all__ = ["Pool"]

Array = np.ndarray[Any, Any]


class Pool(Implementation):
    """Pooling by its definition, for every problem."""

    name = "pool"
    ops = frozenset(POOL_OPS)

    def supports(self, problem: PoolProblem) -> Verdict:
        """Yes: there is no limit."""
        return Verdict.yes()

    def cost(self, problem: PoolProblem) -> float:
        """High: another CPU backend is preferred wherever there is one."""
        return 1e-4 + 4e-9 * problem.flops

    def build(self, problem: PoolProblem) -> Executor:
        """``executor(outs, ins)`` of the operation."""
        runs: dict[str, Callable[[PoolProblem, Sequence[Array], Sequence[Array]], None]] = {
            "max_pool": _max_pool, "max_pool_backward": _max_pool_backward,
            "avg_pool": _avg_pool, "avg_pool_backward": _avg_pool_backward,
            "lp_pool": _lp_pool, "lp_pool_backward": _lp_pool_backward,
        }  # fmt: skip
        return functools.partial(runs[problem.op], problem)


def _max_pool(problem: PoolProblem, outs: Sequence[Array], ins: Sequence[Array]) -> None:
    largest, winners = _largest(problem, ins[0])
    store(outs[0], largest)
    if problem.indices:
        outs[1][...] = winners


def _max_pool_backward(problem: PoolProblem, outs: Sequence[Array], ins: Sequence[Array]) -> None:
    grad_y, second = ins
    if problem.indices:
        check_indices(problem.op, second, math.prod(problem.spatial))
    winners = second if problem.indices else _largest(problem, second)[1]
    sums = np.zeros((problem.n, problem.c, math.prod(problem.spatial)), wide_dtype(problem))
    n, c, _ = np.ogrid[: problem.n, : problem.c, :1]
    flat = (problem.n, problem.c, math.prod(problem.output))
    with np.errstate(all="ignore"):
        np.add.at(sums, (n, c, winners.reshape(flat)), grad_y.reshape(flat).astype(sums.dtype))
        store(outs[0], sums.reshape(problem.x_shape))


def _largest(problem: PoolProblem, x: Array) -> tuple[Array, Array]:
    """The largest element of each window, and its flat position in the volume of its channel.

    The first of equal elements wins, and the first NaN wins over everything else.
    """
    x = x.astype(wide_dtype(problem))
    reads = axis_reads(tap_tables(problem))
    largest = np.empty(problem.y_shape, x.dtype)
    winners = np.full(problem.y_shape, -1)
    for tap in positions(problem.window):
        outputs, inputs = meshes(reads, tap)
        new, old = x[..., *inputs], largest[..., *outputs]
        wins = (winners[..., *outputs] < 0) | (new > old) | (np.isnan(new) & ~np.isnan(old))
        largest[..., *outputs] = np.where(wins, new, old)
        position = np.ravel_multi_index(inputs, problem.spatial)
        winners[..., *outputs] = np.where(wins, position, winners[..., *outputs])
    return largest, winners


def _avg_pool(problem: PoolProblem, outs: Sequence[Array], ins: Sequence[Array]) -> None:
    x = ins[0].astype(wide_dtype(problem))
    with np.errstate(all="ignore"):
        store(outs[0], _shares(_sum_windows(problem, x), problem))


def _avg_pool_backward(problem: PoolProblem, outs: Sequence[Array], ins: Sequence[Array]) -> None:
    with np.errstate(all="ignore"):
        share = _shares(ins[0].astype(wide_dtype(problem)), problem)
        sums = np.zeros(problem.x_shape, share.dtype)
        reads = axis_reads(tap_tables(problem))
        for tap in positions(problem.window):
            outputs, inputs = meshes(reads, tap)
            sums[..., *inputs] += share[..., *outputs]
        store(outs[0], sums)


def _shares(total: Array, problem: PoolProblem) -> Array:
    """Sums of windows, each divided by its count; complex ones part by part, since an infinite part must not reach the other."""
    counts = _counts(problem)
    if not np.iscomplexobj(total):
        return total / counts
    shares = np.empty_like(total)
    shares.real, shares.imag = total.real / counts, total.imag / counts
    return shares


def _counts(problem: PoolProblem) -> Array:
    """The number by which the sum of each window is divided, ``[*Q]``: the product of what each axis counts."""
    counts = np.ones((), np.intp)
    for table, size, stride, dilation, (low, high) in zip(
        tap_tables(problem), problem.spatial, problem.stride, problem.dilation, problem.padding, strict=True
    ):
        taps, outputs = map(np.arange, table.shape)
        position = dilation * taps[:, None] + stride * outputs - low
        counted = position < size + high if problem.count_include_pad else table >= 0
        counts = np.multiply.outer(counts, counted.sum(axis=0))
    return counts


def _lp_pool(problem: PoolProblem, outs: Sequence[Array], ins: Sequence[Array]) -> None:
    with np.errstate(all="ignore"):
        store(outs[0], _power_mean(problem, ins[0].astype(wide_dtype(problem))))


def _lp_pool_backward(problem: PoolProblem, outs: Sequence[Array], ins: Sequence[Array]) -> None:
    """Add ``grad_y * sign(x) * |x|**(p - 1) * y**(1 - p)``: zero where x or y is 0, NaN in a window that holds a NaN."""
    dtype = wide_dtype(problem)
    grad_y, x = ins[0].astype(dtype), ins[1].astype(dtype)
    reads = axis_reads(tap_tables(problem))
    sums = np.zeros(problem.x_shape, dtype)
    with np.errstate(all="ignore"):
        y = _power_mean(problem, x)
        for tap in positions(problem.window):
            outputs, inputs = meshes(reads, tap)
            element, mean = x[..., *inputs], y[..., *outputs]
            slope = np.sign(element) * np.abs(element) ** (problem.p - 1) * mean ** (1 - problem.p)
            slope = np.where(np.isnan(mean), mean, np.where((element == 0) | (mean == 0), 0, slope))
            sums[..., *inputs] += grad_y[..., *outputs] * slope
        store(outs[0], sums)


def _power_mean(problem: PoolProblem, x: Array) -> Array:
    return _sum_windows(problem, np.abs(x) ** problem.p) ** (1 / problem.p)


def _sum_windows(problem: PoolProblem, x: Array) -> Array:
    """The sum of the elements of each window, ``[N, C, *Q]``."""
    reads = axis_reads(tap_tables(problem))
    sums = np.zeros(problem.y_shape, x.dtype)
    for tap in positions(problem.window):
        outputs, inputs = meshes(reads, tap)
        sums[..., *outputs] += x[..., *inputs]
    return sums
