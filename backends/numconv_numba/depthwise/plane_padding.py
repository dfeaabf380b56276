"""Padding of other modes than zeros, for `planewise`.

Rows of padding are rows of x that are read again, and vectors at the edges of a row are made of vectors of the row
(`microkernels.edges`). Planes whose rows are shorter than a vector, and rows of one dimension, are copied with their padding: a few
at a time, which stay in the caches.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numconv.plugin import ConvProblem, np_dtype
from numconv_numba.compiling.compiler import helper, invoke
from numconv_numba.dense.packing import copy_cells
from numconv_numba.elements import INT64, itemsize
from numconv_numba.geometry import DIMS, PARTS, STRIDE, part
from numconv_numba.microkernels.emit import lanes_of
from numconv_numba.microkernels.padding import place_rows
from numconv_numba.scalar import address, as_integer, pointer

__all__ = [
    "PAD_PLANE",
    "PAD_PLANES",
    "is_copied",
    "is_padded",
    "numbers_of",
    "pad_band",
    "pad_cycles",
    "padded",
    "padded_bytes",
    "padded_strides",
    "padding_refusal",
    "padding_vector",
    "table_refusal",
]

MOST_BYTES = 8 * 1024
"""Of a padded plane: it stays in the first-level cache with what it is made of and with its results."""
NEAR_BYTES = 16 * 1024
"""Of the planes that are padded together."""
MOST_PADDING = 4096
"""Places of padding on a side that are looked up in a table, which vectors at the edges of a row have each for themselves."""
_NUMPY_MODES = {"reflect": "reflect", "symmetric": "symmetric", "replicate": "edge", "circular": "wrap"}

# What the kernel knows: the address of `place_rows`, planes together, bytes of a padded plane and of its rows, vectors of a row;
# rows and columns of x, the padding before them, columns of padding, of each of which a pair (place, column of x) follows; then the
# row of x that each padded row is.
PLACE, PAD_PLANES, PAD_PLANE, PAD_ROW, VECTORS, ROWS, COLUMNS, LOW, BEFORE, BORDERS, PAIRS = range(11)


# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def pad_rows(target, x, rows, x_row, planes, x_plane, vector, p):
    """Neighbouring rows of so many planes, with the padding beside them."""
    pairs = as_integer(vector) + 8 * PAIRS
    invoke(
        p[PLACE], x, x_row, x_plane, target, p[PAD_ROW], p[PAD_PLANE], planes, rows, p[BEFORE], p[COLUMNS], p[VECTORS],
        address(pairs), p[BORDERS],
    )  # fmt: skip


@helper
def pad_planes(target, x, x_row, planes, x_plane, first, last, vector, at):
    """The rows first..last of so many padded planes; x is the address of the first plane."""
    p = pointer(vector, INT64)
    begin, end = max(first, p[LOW]), min(last, p[LOW] + p[ROWS])
    if begin < end:
        pad_rows(target + begin * p[PAD_ROW], x + (begin - p[LOW]) * x_row, end - begin, x_row, planes, x_plane, vector, p)
    for row in range(first, last):
        if begin <= row < end:
            continue
        source = p[PAIRS + 2 * p[BORDERS] + row]
        place, other = target + row * p[PAD_ROW], source + p[LOW]
        if begin <= other < end:
            for plane in range(planes):
                offset = plane * p[PAD_PLANE]
                copy_cells(place + offset, target + (other * p[PAD_ROW] + offset), p[PAD_ROW] // itemsize(at), at)
        else:
            pad_rows(place, x + source * x_row, 1, x_row, planes, x_plane, vector, p)


@helper
def pad_band(target, x, x_row, planes, first_row, end_row, kernel_rows, g, vector, at):
    """What the results in the rows first_row..end_row of so many planes read; x is the address of the first plane."""
    axis, low, high = g[DIMS] - 2, 0, 1
    if axis >= 0:
        stride = g[part(g, STRIDE) + axis]
        low, high = first_row * stride, (end_row - 1) * stride + kernel_rows
    pad_planes(target, x, x_row, planes, g[part(g, PARTS) + 1], low, high, vector, at)


# --- what it costs and needs ---------------------------------------------------------------------------------------------------


def is_padded(problem: ConvProblem) -> bool:
    """Whether padding is not of zeros."""
    return problem.pad_mode != "zeros" and any(low or high for low, high in problem.padding)


def is_edged(problem: ConvProblem) -> bool:
    """Whether the padding is read from x, that of rows among it."""
    return is_padded(problem) and problem.ndim == 2 and any(problem.padding[1]) and problem.spatial[1] >= lanes_of(problem.dtype)


def is_copied(problem: ConvProblem) -> bool:
    """Whether planes are copied with their padding."""
    return is_padded(problem) and not is_edged(problem)


def padded(problem: ConvProblem) -> ConvProblem:
    """The problem on an x that has its padding already: on both sides of its rows too, or only above and below them.

    A mode that is left says that rows have edges of it.
    """
    if not is_padded(problem):
        return problem.replace(pad_mode="zeros")
    sizes = [size + low + high for size, (low, high) in zip(problem.spatial, problem.padding, strict=True)]
    if is_edged(problem):
        return problem.replace(spatial=(sizes[0], problem.spatial[1]), padding=((0, 0), problem.padding[1]))
    return problem.replace(spatial=tuple(sizes), padding=((0, 0),) * problem.ndim, pad_mode="zeros")


def numbers_of(problem: ConvProblem, axis: int) -> np.ndarray[Any, Any]:
    """The place in x of each place of a dimension with its padding."""
    mode: Any = _NUMPY_MODES[problem.pad_mode]
    return np.pad(np.arange(problem.spatial[axis], dtype=np.int64), problem.padding[axis], mode=mode)


def _pitch(problem: ConvProblem) -> int:
    lanes = lanes_of(problem.dtype)
    return -(-(problem.spatial[-1] + sum(problem.padding[-1])) // lanes) * lanes


def _plane_bytes(problem: ConvProblem) -> int:
    return math.prod(padded(problem).spatial[:-1]) * _pitch(problem) * np_dtype(problem.dtype).itemsize


def table_refusal(problem: ConvProblem) -> str:
    """Why padding of other modes than zeros is too wide for a table of what it is, or nothing."""
    widest = max(max(pair) for pair in problem.padding)
    if not is_padded(problem) or widest <= MOST_PADDING:
        return ""
    return f"it has a table of what padding of the mode {problem.pad_mode} is, for up to {MOST_PADDING} places, not {widest}"


def padding_refusal(problem: ConvProblem) -> str:
    """Why padding is not read, nor planes of x copied with it, or nothing."""
    if not is_padded(problem):
        return ""
    if problem.op == "input_grad" or problem.ndim > 2:
        return f"pad_mode {problem.pad_mode} is for sums over x in one and two dimensions"
    if is_edged(problem) or table_refusal(problem):
        return table_refusal(problem)
    if not problem.c == problem.k == problem.groups:
        channels = f"{problem.c} channels in {problem.groups} groups"
        return f"pad_mode {problem.pad_mode} of short rows is for planes with one kernel each, and here are {channels}"
    if _plane_bytes(problem) > MOST_BYTES:
        return f"a plane with its {problem.pad_mode} padding takes {_plane_bytes(problem)} bytes, and it pads up to {MOST_BYTES}"
    return ""


def padded_bytes(problem: ConvProblem) -> int:
    """Of the planes that are padded together; of one that is too large for `planewise` too."""
    return max(NEAR_BYTES, _plane_bytes(problem)) if is_copied(problem) else 0


def pad_cycles(problem: ConvProblem) -> float:
    """Of copying a plane with its padding: its vectors, its rows, and columns of padding an element at a time."""
    if not is_copied(problem):
        return 0.0
    rows = math.prod(padded(problem).spatial[:-1])
    row = _pitch(problem) / lanes_of(problem.dtype) * 1.7 + 1.2 * sum(problem.padding[-1]) + 2
    return 20 + rows * row


def padding_vector(problem: ConvProblem) -> np.ndarray[Any, Any]:
    """The vector for a problem in one or two dimensions."""
    *outer, columns = (numbers_of(problem, axis) for axis in range(problem.ndim))
    rows = outer[0] if outer else np.zeros(1, np.int64)
    size, low = problem.spatial[-1], problem.padding[-1][0]
    borders = [place for place in range(columns.size) if not low <= place < low + size]
    plane, item = _plane_bytes(problem), np_dtype(problem.dtype).itemsize
    lanes, dtype = lanes_of(problem.dtype), problem.dtype
    before = problem.padding[0][0] if outer else 0, low
    head = [
        place_rows.address(lanes, dtype), max(1, NEAR_BYTES // plane), plane, _pitch(problem) * item, _pitch(problem) // lanes,
        problem.spatial[0] if outer else 1, size, *before, len(borders),
    ]  # fmt: skip
    return np.array([*head, *(number for place in borders for number in (place, columns[place])), *rows], np.int64)


def padded_strides(vector: np.ndarray[Any, Any] | None, x: Any) -> tuple[tuple[int, ...], int]:
    """The strides of x as the sweeps see it, and the bytes between its own rows; without a vector just its strides."""
    if vector is None or x.ndim == 3:
        return x.strides, 0
    return (*x.strides[:2], int(vector[PAD_ROW]), x.itemsize), x.strides[2]
