"""Last stop: shift the input and the output shifts; turn the input and the output does something else."""

from __future__ import annotations

from typing import Any

import numpy as np

import numconv as nc

from .digits import FILTERS
from .report import Report

__all__ = ["show"]

Array = np.ndarray[Any, Any]


def show(report: Report, photograph: Array, rows: int = 17, columns: int = 40) -> None:
    """Convolve and shift, shift and convolve: the same numbers, each of them."""
    report.section(
        "Equivariance: shift the input, and the output shifts",
        f"""The photograph with its integer pixels, the integer filters of the digits, a boundary that wraps (pad_mode="circular"):
        every number is exact, so equal means equal. The shift is {rows} rows and {columns} columns.""",
    )
    x = photograph.astype(np.int64)
    # each filter looks at the three colours alike
    w = np.repeat(np.array(list(FILTERS.values()), np.int64)[:, None], 3, axis=1)
    options: dict[str, Any] = {"padding": 1, "pad_mode": "circular"}

    def moved(image: Array) -> Array:
        return np.roll(image, (rows, columns), axis=(1, 2))

    def turned(image: Array) -> Array:
        return np.rot90(image, axes=(1, 2))

    y = report.run("integer filters", nc.conv, x, w, **options)
    report.line()
    for name, change in (("shift", moved), ("quarter turn", turned)):
        equal = int((nc.conv(change(x), w, **options) == change(y)).sum())
        report.line(f"  {name:13s} conv({name}(x)) == {name}(conv(x)) in {equal:,} of {y.size:,} numbers ({equal / y.size:.1%})")
    report.line(
        "  A convolution finds a pattern wherever it is, but not a turned one: only the filter 'spot', which looks the same from"
    )
    report.line("  all sides, gives the same for a turned image; the others would have to be turned too.")
