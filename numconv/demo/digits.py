"""Fourth stop: small images, many of them; and where the gradient of a weight comes from."""

from __future__ import annotations

from typing import Any

import numpy as np

import numconv as nc

from .pictures import bare, picture, show_map
from .report import Report

__all__ = ["FILTERS", "show"]

Array = np.ndarray[Any, Any]

FILTERS = {
    "left to right": [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],
    "top to bottom": [[-1, -2, -1], [0, 0, 0], [1, 2, 1]],
    "stroke rising": [[-1, -1, 2], [-1, 2, -1], [2, -1, -1]],
    "stroke falling": [[2, -1, -1], [-1, 2, -1], [-1, -1, 2]],
    "spot": [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]],
}

WATCHED = (("left to right", 1, 2), ("top to bottom", 2, 1))
"""Weights whose gradient is looked at: filter, row, column."""


def show(report: Report, x: Array, labels: Array) -> None:
    """Feature maps of all digits, pooled; then the gradient of the kernels in two ways."""
    report.section(
        "Digits: shared weights learn from every position",
        f"""{len(x):,} handwritten digits of 8 x 8 pixels, integers from 0 to 16: with an integer dtype every sum is exact. Five
        3 x 3 filters, then max pooling. The loss is half the sum of all squared outputs, so its gradient for the output y is
        y itself.""",
    )
    w = np.array(list(FILTERS.values()), np.int64)[:, None]
    y = report.run("five filters", nc.conv, x, w, padding=1)
    pooled = report.run("max pooling 2 x 2", nc.max_pool, y, 2)
    grad_w = report.run("gradient of the filters", nc.conv_weight_grad, y, x, w.shape, padding=1)

    parts = contributions(y, x)
    name, row, column = WATCHED[0]
    k = list(FILTERS).index(name)
    report.line(f"\n  {list(x.shape)} through {list(w.shape)} gives {list(y.shape)}, pooled {list(pooled.shape)}.")
    report.line(f"  Gradient of one weight ({name!r}, row {row}, column {column}): dL/dy times the pixel under the weight,")
    report.line(f"  summed by hand over {len(x):,} digits x {y[0, 0].size} positions: {parts[k, 0, row, column].sum():,};")
    report.line(f"  conv_weight_grad gives {grad_w[k, 0, row, column]:,}.")
    equal = np.count_nonzero(parts.sum(axis=(-2, -1)) == grad_w)
    report.line(f"  Equal to the last bit: {equal} of {grad_w.size} weights.")
    draw(report, x, y, pooled, labels, parts)


def contributions(grad_y: Array, x: Array) -> Array:
    """What each position adds to the gradient of each weight, ``[K, 1, 3, 3, 8, 8]``, summed over the digits only."""
    # column q of an unfolded digit holds the nine pixels that the filters see at position q
    windows = nc.unfold(x, 3, padding=1)
    by_position: Array = np.einsum("nkq,ntq->ktq", grad_y.reshape(*grad_y.shape[:2], -1), windows)
    return by_position.reshape(grad_y.shape[1], 1, 3, 3, *x.shape[2:])


def draw(report: Report, x: Array, y: Array, pooled: Array, labels: Array, parts: Array) -> None:
    """Some digits with their feature maps, pooled below; at the right the positions that two of the weights learn from."""
    chosen = [int(np.flatnonzero(labels == digit)[0]) for digit in (0, 3, 7)]
    with picture(report.file("digits.png"), 13.5, 8, "") as figure:
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(3, 1), wspace=0.03)[0]
        left.suptitle("Handwritten digits, five filters (blue: negative, red: positive), max pooling")
        grid = left.subplots(2 * len(chosen), 1 + len(FILTERS), height_ratios=(8, 5) * len(chosen))
        limit = float(np.abs(y[chosen]).max())
        for n, above, below in zip(chosen, grid[::2], grid[1::2], strict=True):
            above[0].imshow(x[n, 0], cmap="gray_r")
            bare(above[0], f"digit {labels[n]}, 8 x 8")
            below[0].axis("off")
            for k in range(len(FILTERS)):
                show_map(above[k + 1], y[n, k], limit=limit)
                show_map(below[k + 1], pooled[n, k], limit=limit)
            below[1].set_ylabel("pooled\n4 x 4")
        for ax, name in zip(grid[0, 1:], FILTERS, strict=True):
            ax.set_title(name)

        right.suptitle("Where a weight's gradient comes from")
        for ax, (name, row, column) in zip(right.subplots(len(WATCHED), 1), WATCHED, strict=True):
            part = parts[list(FILTERS).index(name), 0, row, column]
            show_map(ax, part / 1000, f"{name!r}, row {row}, column {column}\nsum over all positions: {part.sum():,}")
            right.colorbar(ax.images[0], ax=ax, location="bottom", shrink=0.8, label="dL/dy times pixel, thousands")
