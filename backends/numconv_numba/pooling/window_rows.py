"""Rows of windows in arrays of any strides: which rows of the source a row of results reads, and how rows are written.

Rows run along the last spatial axis, or along the channels where these are neighbours in memory: the channels are then one more
spatial axis, with a window of one tap, and the vector's OPTION is 1.

The vectors come to the kernels as addresses, not as arrays: these would be counted as references by each helper that they are
passed to, which takes longer than a short row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba.extending import overload

from numconv.plugin import PoolProblem, WindowProblem
from numconv_numba.compiling.compiler import helper
from numconv_numba.elements import itemsize
from numconv_numba.geometry import (
    DILATION,
    DIMS,
    GROUPS,
    LOW,
    MODE,
    OPTION,
    OUTPUT,
    PARTS,
    SIZE,
    STRIDE,
    WINDOW,
    Vectors,
    channel_strides,
    part,
    source_index,
)
from numconv_numba.rows import outer_offset, outer_size
from numconv_numba.scalar import load, store, wide_vectors

__all__ = [
    "PART",
    "ROW",
    "Rows",
    "chunk_of",
    "fill",
    "fill_memory",
    "flat_step",
    "linked",
    "linked_rows",
    "part_of",
    "place_of",
    "rounded",
    "row_of",
    "volume",
    "volume_offset",
    "volume_parts",
    "window_parts",
    "write_row",
]

ROW = 1024
"""Results computed together: a few such rows fit the first-level cache."""
PART = 1 << 18
"""Positions of a channel that one work item fills: that many sums fit the second-level cache."""
CHANNELS = 16
"""Fewer channels than this are too short a row."""


# --- places --------------------------------------------------------------------------------------------------------------------


@helper
def chunk_of(g, item, which):
    """(n, channel, outer index, first, last) of a work item: a part of a row of y (`which` = OUTPUT) or of x (SIZE)."""
    length, rows = g[part(g, which) + g[DIMS] - 1], outer_size(g, which)
    chunks = -(-length // ROW)
    first, line = item % chunks * ROW, item // chunks
    plane = line // rows
    return plane // g[GROUPS], plane % g[GROUPS], line % rows, first, min(first + ROW, length)


@helper
def row_of(array, g, n, channel, row, which, strides):
    """The address of a row, by its flat index over the outer axes, in the array with these sizes and strides."""
    steps = part(g, strides)
    return array + (n * g[steps] + channel * g[steps + 1] + outer_offset(g, row, which, strides))


@helper
def linked(g, axis, index, tap, back):
    """The index of x that a tap reads for an output, or, `back`, the output whose tap reads an index of x; -1 if there is none."""
    offset, stride = tap * g[part(g, DILATION) + axis] - g[part(g, LOW) + axis], g[part(g, STRIDE) + axis]
    if not back:
        return source_index(index * stride + offset, g[part(g, SIZE) + axis], g[MODE])
    output = (index - offset) // stride
    return output if output * stride == index - offset and 0 <= output < g[part(g, OUTPUT) + axis] else -1


@helper
def linked_rows(g, index, back, flats, offsets):
    """For every outer tap the row of x that it reads for an outer output, as flat index (-1: none) and byte offset.

    With `back` the row of y that has the tap on an outer index of x. The taps of each axis multiply what was found before it.
    """
    here, there, steps = (SIZE, OUTPUT, PARTS + 2) if back else (OUTPUT, SIZE, PARTS)
    rest, filled = outer_size(g, here), 1
    flats[0] = offsets[0] = 0
    for axis in range(g[DIMS] - 1):
        window, size, step = g[part(g, WINDOW) + axis], g[part(g, there) + axis], g[part(g, steps) + 3 + axis]
        rest //= g[part(g, here) + axis]
        own = index // rest % g[part(g, here) + axis]
        for known in range(filled - 1, -1, -1):
            flat, offset = flats[known], offsets[known]
            for tap in range(window - 1, -1, -1):
                found = linked(g, axis, own, tap, back)
                flats[known * window + tap] = flat * size + found if flat >= 0 and found >= 0 else -1
                offsets[known * window + tap] = offset + found * step
        filled *= window


@helper
def volume(g, which):
    """The number of positions of a channel."""
    return outer_size(g, which) * g[part(g, which) + g[DIMS] - 1]


@helper
def flat_step(g, which, strides):
    """The bytes between neighbours of a channel, taken row-major; 0 if they are not everywhere the same."""
    sizes, steps = part(g, which), part(g, strides) + 3
    for axis in range(g[DIMS] - 1):
        if g[steps + axis] != g[steps + axis + 1] * g[sizes + axis + 1]:
            return 0
    return g[steps + g[DIMS] - 1]


@helper
def volume_offset(g, position, step, which, strides):
    """The byte offset of a flat position in a channel; `step` comes from `flat_step`."""
    if step:
        return position * step
    axis = g[DIMS] - 1
    last = g[part(g, which) + axis]
    return outer_offset(g, position // last, which, strides) + position % last * g[part(g, strides) + 3 + axis]


@helper
def place_of(g, index, q):
    """The position, counted over all axes of x, of an index into the spatial volume that belongs to result q of a row."""
    return index * g[part(g, SIZE) + g[DIMS] - 1] + q if g[OPTION] else index


@helper
def part_of(g, item):
    """(n, channel, first, last) of a work item: a part of the positions of a channel of x."""
    parts = -(-volume(g, SIZE) // PART)
    first, plane = item % parts * PART, item // parts
    return plane // g[GROUPS], plane % g[GROUPS], first, min(first + PART, volume(g, SIZE))


# --- rows ----------------------------------------------------------------------------------------------------------------------


@helper
def fill(row, count, number, at):
    """Set a contiguous row to a number."""
    wide_vectors()
    for q in range(count):
        store(row + q * itemsize(at), number, at)


def rounded(number: Any, dtype: Any) -> Any:
    """What `store` can round to a dtype: halves are rounded from float32."""
    raise NotImplementedError("for kernels only")


@overload(rounded)
def _rounded(number, dtype):
    if dtype.value in ("float16", "bfloat16"):
        return lambda number, dtype: np.float32(number)
    return lambda number, dtype: number


@helper
def write_row(row, y, count, step, yt, at):
    """Copy a contiguous row of sums to an array."""
    wide_vectors()
    if step == itemsize(yt):
        for q in range(count):
            store(y + q * itemsize(yt), rounded(load(row + q * itemsize(at), at), yt), yt)
    else:
        for q in range(count):
            store(y + q * step, rounded(load(row + q * itemsize(at), at), yt), yt)


# --- arrays --------------------------------------------------------------------------------------------------------------------


def fill_memory(arrays: Sequence[np.ndarray[Any, Any]], axes: tuple[int, ...] | None = None) -> bool:
    """Whether arrays fill their memory in row-major order, or in that of these axes."""
    for array in arrays:  # noqa: SIM110 - a generator would take as long as a small kernel
        if not (array if axes is None else array.transpose(axes)).flags.c_contiguous:
            return False
    return True


# --- what the vector holds -----------------------------------------------------------------------------------------------------


def window_parts(problem: PoolProblem | WindowProblem) -> list[Sequence[int]]:
    """The parts of the vector of a problem; no window is flipped."""
    lows = [low for low, _ in problem.padding]
    return [problem.spatial, problem.window, problem.output, problem.stride, lows, problem.dilation, [0] * problem.ndim]


class Rows:
    """The work items of a call and the vector that describes it, with rows along the last spatial axis or along the channels.

    Parameters
    ----------
    problem : PoolProblem or WindowProblem
    sizes : sequence of int
        The spatial sizes of the side, x or y, whose rows are the items.
    """

    def __init__(self, problem: PoolProblem | WindowProblem, sizes: Sequence[int]):
        n, c, parts = problem.n, problem.c, window_parts(problem)
        wider = [[*entries, more] for entries, more in zip(parts, (c, 1, c, 1, 0, 1, 0), strict=True)]
        mode = getattr(problem, "pad_mode", "zeros")
        self._plain = Vectors(n, c, 1, 1, parts, mode, 0, _channels_apart)
        self._innermost = Vectors(n, 1, 1, 1, wider, mode, 1, _channels_last)
        self._items = n * c * math.prod(sizes[:-1]) * -(-sizes[-1] // ROW), n * math.prod(sizes) * -(-c // ROW)
        self._has_rows = c >= CHANNELS

    def __call__(self, x: Any, w: Any, y: Any) -> tuple[bool, int, np.ndarray[Any, Any]]:
        """Whether rows run along the channels, the number of items, and the vector for arrays in the places of x, w and y."""
        innermost = self._has_rows and all(array.strides[1] == array.itemsize for array in (x, w, y))
        vectors = self._innermost if innermost else self._plain
        return innermost, self._items[innermost], vectors(x.strides, w.strides, y.strides)


def _channels_apart(*strides: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(channel_strides(each, 1) for each in strides)


def _channels_last(*strides: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple((n, 0, 0, *spatial, c) for n, c, *spatial in strides)


def volume_parts(problem: PoolProblem | WindowProblem, innermost: bool) -> int:
    """The number of parts, as `part_of` has them, of one sample of x."""
    volume, c = math.prod(problem.spatial), problem.c
    return -(-volume * c // PART) if innermost else c * -(-volume // PART)
