"""Results of tiles with the lanes over pixels: rows of sums, one for each output channel, on their way to y."""

from __future__ import annotations

from .compiler import helper, invoke
from .direct import finish_row
from .elements import itemsize, same
from .entries import DRESS, LANES, TRANSPOSE
from .scalar import address

__all__ = ["write_rows"]


@helper
def write_rows(sums, sums_row, rows, columns, bias, code, y, y_row, step, tools, yt, at):
    """y[k, q] = the activation of sums[k, q] + bias[k]; neighbouring q lie `step` bytes apart in y. `sums` may be overwritten."""
    size, square = itemsize(at), tools[LANES]
    if same(yt, at) and step == size:
        invoke(tools[DRESS], sums, sums_row, rows, columns, bias, 1, code, y, y_row)
    elif same(yt, at) and y_row == size:
        invoke(tools[DRESS], sums, sums_row, rows, columns, bias, 1, code, sums, sums_row)
        for q in range(0, columns, square):
            for k in range(0, rows, square):
                source, target = sums + (k * sums_row + q * size), y + (q * step + k * size)
                invoke(tools[TRANSPOSE], source, sums_row, rows - k, columns - q, address(0), 0, target, step)
    else:
        for k in range(rows):
            finish_row(sums + k * sums_row, y + k * y_row, columns, step, bias, k, code, yt, at)
