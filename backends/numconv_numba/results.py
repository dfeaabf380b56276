"""Results of tiles with the lanes over pixels: rows of sums, one for each output channel, on their way to y."""

from __future__ import annotations

from .compiling.compiler import helper, invoke
from .elements import itemsize, same
from .entries import DRESS, WRITE_SQUARES
from .rows import finish_row
from .scalar import address

__all__ = ["write_rows"]


@helper
def write_rows(sums, sums_row, rows, columns, bias, code, y, y_row, step, tools, yt, at):
    """y[k, q] = the activation of sums[k, q] + bias[k]; neighbouring q lie `step` bytes apart in y. `sums` may be overwritten."""
    size = itemsize(yt)
    if same(yt, at) and step == size:
        invoke(tools[DRESS], sums, sums_row, rows, columns, bias, 1, code, y, y_row)
    elif y_row == size:
        invoke(tools[DRESS], sums, sums_row, rows, columns, bias, 1, code, sums, sums_row)
        invoke(tools[WRITE_SQUARES], sums, sums_row, rows, columns, address(0), 0, y, step)
    else:
        for k in range(rows):
            finish_row(sums + k * sums_row, y + k * y_row, columns, step, bias, k, code, yt, at)
