"""Input gradients where the padding is not of zeros, for `planewise`: what lies beside x is added where the mode has it from.

With one place of padding at an end, that place has one product for each row of taps: it goes to a lane of the sums while these are
in registers. What rows of padding get is added while the plane is in the cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numconv.plugin import ConvProblem, np_dtype
from numconv_numba.compiling.compiler import helper
from numconv_numba.dense.base import forward_parts
from numconv_numba.elements import INT64, itemsize
from numconv_numba.geometry import OUTPUT, PARTS, SIZE, part
from numconv_numba.microkernels.emit import flag_table, lanes_of
from numconv_numba.scalar import load, muladd, pointer, store, wide_vectors

from .plane_padding import is_padded, numbers_of
from .plane_plans import UNROLLED, Run, slices_of

__all__ = ["add_folds", "fold_columns", "folded", "folds_of", "strip_folds"]

# Of each end of a dimension: the place that gets what lies beside it, or -1; the place of grad_y and the tap that give it.
ONTO, SOURCE, TAP, FOLD = range(4)


# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def add_row(x, y, w, taps, columns, size, length, folds, at):
    """x += the row y, of `length`, with a row of taps, and what lies beside x where it belongs."""
    wide_vectors()
    item = itemsize(at)
    for tap in range(taps):
        offset, weight = columns[tap] // item, load(w + tap * item, at)
        for i in range(max(0, -offset), min(size, length - offset)):
            store(x + i * item, muladd(load(y + (i + offset) * item, at), weight, load(x + i * item, at)), at)
    for end in range(2):
        onto, source, tap = folds[end * FOLD + ONTO], folds[end * FOLD + SOURCE], folds[end * FOLD + TAP]
        if onto >= 0:
            place = x + onto * item
            store(place, muladd(load(y + source * item, at), load(w + tap * item, at), load(place, at)), at)


@helper
def add_folds(x, y, w, first_row, end_row, taps, columns, table, g, at):
    """What the rows beside x give to a band of rows of a plane; x and y are the addresses of planes of the gradients of both."""
    folds, offsets = pointer(table, INT64), pointer(columns, INT64)
    y_row, x_row = g[part(g, PARTS) + 3], g[part(g, PARTS + 2) + 3]
    for end in range(2):
        onto, source, tap = folds[end * FOLD + ONTO], folds[end * FOLD + SOURCE], folds[end * FOLD + TAP]
        if first_row <= onto < end_row:
            weights = w + tap * taps * itemsize(at)
            of_columns = pointer(table + 8 * 2 * FOLD, INT64)
            size, length = g[part(g, OUTPUT) + 1], g[part(g, SIZE) + 1]
            add_row(x + onto * x_row, y + source * y_row, weights, taps, offsets, size, length, of_columns, at)


# --- tables --------------------------------------------------------------------------------------------------------------------


def folded(problem: ConvProblem) -> ConvProblem | None:
    """The forward problem that is swept for an input_grad, if its padding can be added meanwhile."""
    narrow = problem.ndim == 2 and all(0 <= pads <= 1 for pair in problem.padding for pads in pair)
    if not narrow or problem.op != "input_grad" or not is_padded(problem) or problem.bias or problem.activation:
        return None
    if max(problem.stride) > 1 or max(problem.dilation) > 1 or problem.kernel[-1] > UNROLLED:
        return None
    (only,) = forward_parts(problem.replace(pad_mode="zeros"))
    return None if only.problem is None or slices_of(only.problem) > 1 else only.problem


def folds_of(problem: ConvProblem) -> np.ndarray[Any, Any]:
    """The folds of an input_grad: of both ends of the rows, then of the columns."""
    found = []
    for axis in range(2):
        taps, (low, high), numbers = problem.kernel[axis], problem.padding[axis], numbers_of(problem, axis)
        first, last = (taps - 1, 0) if problem.flip else (0, taps - 1)
        found += [numbers[0] if low else -1, 0, first, numbers[-1] if high else -1, problem.output[axis] - 1, last]
    return np.array(found, np.int64)


def fold_columns(problem: ConvProblem) -> list[int]:
    """The columns of x that get what lies beside it."""
    return [onto for onto in folds_of(problem)[2 * FOLD :: FOLD].tolist() if onto >= 0]


def strip_folds(problem: ConvProblem, run: Run, width: int) -> tuple[Any, Any]:
    """Of a strip, for both ends: masks of a lane; the vector it belongs to or -1, where that of grad_y begins, the tap's place.

    The last two in bytes, the former from the strip's own place on.
    """
    lanes, item = lanes_of(problem.dtype), np_dtype(problem.dtype).itemsize
    masks, numbers = np.zeros((2, lanes), bool), np.full((2, FOLD), -1, np.int64)
    for end, (onto, source, tap) in enumerate(folds_of(problem)[2 * FOLD :].reshape(2, FOLD)):
        place = onto - run.target
        if onto >= 0 and 0 <= place < width:
            # the last vector is stored last, where it overlaps the one before it
            vector, lane = (width // lanes - 1, place - run.last) if place >= run.last else divmod(place, lanes)
            masks[end, lane] = True
            numbers[end] = vector, (source - lane - run.source) * item, tap * item
    return flag_table(masks, problem.dtype), numbers.ravel()
