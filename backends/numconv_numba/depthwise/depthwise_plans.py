"""How `depthwise` cuts a problem: which tile it takes, what a tile does with each line, and what that costs."""

from __future__ import annotations

import functools
import math

import numpy as np

from numconv.plugin import ConvProblem
from numconv_numba.dense.strips import Layout, layout_with, packing_cycles, slices_of
from numconv_numba.microkernels.emit import host

__all__ = ["class_refusal", "cycles_of", "lag_refusal", "layout_for", "rows_inside", "schedule"]

MOST_LAG = 64
"""Rows that lie between those that neighbouring rows of results read first: a tile has a list of them, and they are packed."""
MOST_CLASSES = 1 << 16
"""Classes of rows that share no row of x: beyond, most have none."""
ROLLING_ROWS = 8
"""Rows of the kernel up to which tiles roll."""


def lag_refusal(problem: ConvProblem) -> str:
    """Why the rows of windows lie too far apart for tiles over several rows of results, or nothing."""
    if problem.ndim == 1:
        return ""
    lag = problem.stride[-2] // math.gcd(problem.stride[-2], problem.dilation[-2])
    if lag > MOST_LAG:
        return f"it packs the rows between those that neighbouring windows begin with, up to {MOST_LAG}, and here are {lag}"
    return class_refusal(problem)


def class_refusal(problem: ConvProblem) -> str:
    """Why there are too many classes of rows that share no row of x, or nothing."""
    if problem.ndim == 1:
        return ""
    classes = problem.dilation[-2] // math.gcd(problem.stride[-2], problem.dilation[-2])
    if classes <= MOST_CLASSES:
        return ""
    return f"it takes one class of rows after the other, up to {MOST_CLASSES}, and a dilation of {problem.dilation} has {classes}"


def schedule(rows: int, lag: int, kernel_rows: int, columns: int, extra: int) -> list[tuple[int, int, int, int, int, int]]:
    """What a tile does with each line: (line, first column, last column, place of the weights, first row, last row)."""
    reached = kernel_rows + (extra > 0)
    phase_rows = -(-reached // lag)
    parts = [(0, extra, reached), (extra, columns, kernel_rows)] if extra else [(0, columns, kernel_rows)]
    found = []
    for line in range(lag * (rows - 1) + reached):
        weights = line % lag * phase_rows + line // lag
        for begin, end, count in parts:
            found.append((line, begin, end, weights, max(0, (line - count) // lag + 1), min(rows, line // lag + 1)))
    return found


def _tile_cycles(rows: int, vectors: int, steps: list[tuple[int, int, int, int, int, int]]) -> float:
    """Of one slice: two multiply-adds or two loads a cycle, where a load across two lines of memory counts twice."""
    cycles = 0.0
    for _, begin, end, _, low, high in steps:
        active = max(0, high - low)
        if active:
            cycles += 11 + (end - begin) * (max(active * vectors, active + host().unaligned * vectors) / 2 + 0.5)
    return cycles


def _rolling_vectors(problem: ConvProblem) -> list[int]:
    """The widths of tiles that can roll down the rows of this problem: sums, pixels and a weight fit the registers."""
    if problem.ndim != 2 or problem.c > problem.groups or problem.kernel[0] > ROLLING_ROWS:
        return []
    lag = problem.stride[0] // math.gcd(problem.stride[0], problem.dilation[0])
    sums = -(-problem.kernel[0] // lag)
    return [v for v in (4, 3, 2, 1) if (sums + 1) * v + 1 < host().registers] if lag <= 2 else []


@functools.lru_cache(maxsize=256)
def layout_for(problem: ConvProblem) -> Layout:
    """The layout of a forward problem: the tile that needs the fewest cycles, and bands of rows that fit the cache."""
    shapes = [(False, *shape) for shape in host().sliding_tiles] + [(True, 1, vectors) for vectors in _rolling_vectors(problem)]
    return min((layout_with(problem, *shape) for shape in shapes), key=lambda layout: cycles_of(problem, layout))


def cycles_of(problem: ConvProblem, layout: Layout) -> float:
    """Of all tiles and of packing what they read."""
    slices, per_k = slices_of(problem), problem.k // problem.groups
    tiles = 1 if layout.folded else -(-problem.output[-1] // layout.width)
    others = problem.n * problem.groups * math.prod(problem.output[:-2]) * layout.classes
    if layout.rolling:
        products = tiles * per_k * (_rolling_cycles(layout) * (layout.total + layout.bands) + layout.bands * 100)
    else:
        shape = layout.rows, layout.lag, layout.kernel_rows, layout.columns, layout.extra
        whole, left = divmod(layout.total, layout.rows)
        tile = _tile_cycles(layout.rows, layout.vectors, schedule(*shape))
        last = _tile_cycles(left, layout.vectors, schedule(left, *shape[1:])) if left else 0.0
        stored = 100 + layout.rows * layout.vectors * 2
        products = tiles * per_k * (slices * (whole * tile + last) * rows_inside(problem) + (whole + (left > 0)) * stored)
    return others * (products + slices * -(-tiles // layout.strip) * packing_cycles(layout))


def rows_inside(problem: ConvProblem) -> float:
    """The share of the rows of all windows that lie in x: those of padding zeros are left out where tiles slide."""
    if problem.ndim == 1 or problem.pad_mode != "zeros":
        return 1.0
    stride, rows = problem.stride[-2], problem.output[-2]
    places = np.arange(problem.kernel[-2]) * problem.dilation[-2] - problem.padding[-2][0]
    first = np.clip(-(places // stride), 0, rows)
    beyond = np.clip((problem.spatial[-2] - 1 - places) // stride + 1, first, rows)
    return float((beyond - first).mean() / max(rows, 1))


def _rolling_cycles(layout: Layout) -> float:
    """Of one row of results."""
    products = layout.vectors * layout.kernel_rows / 2
    loads = (layout.lag * host().unaligned * layout.vectors + layout.kernel_rows) / 2
    return layout.columns * (max(products, loads) + layout.lag * 0.5) + layout.lag * 3 + layout.vectors
