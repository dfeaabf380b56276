"""The functions of `fragments` for the simulator: plain Python on NumPy's arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from numconv.plugin import np_dtype

from .forms import UNITS, Form

__all__ = [
    "commit", "copy_cached_unit", "copy_unit", "fetch_number", "fresh", "keep_float", "keep_number", "multiplier", "narrow",
    "peek_float", "peek_number", "reload", "spreader", "store_unit", "wait_until",
]  # fmt: skip


def fetch_number(pointer: Any, index: Any) -> Any:
    """An integer of 32 bits that no thread of this kernel writes."""
    return int(pointer[index])


def narrow(value: Any) -> Any:
    """An integer in 32 bits, which suffice for units."""
    return int(value)


def copy_unit(shared: Any, unit: Any, pointer: Any, place: Any, more: Any, there: Any) -> None:
    """Begin to copy the unit at `place` + `more` of global memory to a unit of shared memory; zeros where there is none."""
    size = 4
    if not there:
        shared[unit * size : unit * size + size] = 0
        return
    count = 16 // pointer[0].dtype.itemsize
    first = (int(place) + int(more)) * count
    found = np.array([pointer[first + number] for number in range(count)])
    shared[unit * size : unit * size + size] = found.view(np.int32)


copy_cached_unit = copy_unit
"""The same of a unit that this multiprocessor may read again soon."""


def commit() -> None:
    """The copies that a thread began since the last time are a group."""


def wait_until(pending: int) -> None:
    """Wait until so many groups of copies of this thread at most, the last ones, are not done."""


def _rounded(value: Any) -> Any:
    """A float32 as TF32, of 10 bits behind the point, rounded to nearest, ties away from zero."""
    bits = int(np.float32(value).view(np.uint32))
    finite = bits & 0x7F800000 != 0x7F800000
    return np.uint32((bits + 0x1000) & 0xFFFFE000).view(np.float32) if finite else value


def store_unit(pointer: Any, unit: Any, values: tuple[Any, ...]) -> None:
    """Write a unit of float32 numbers, rounded to the dtype of the pointer: to TF32 where that is float32."""
    wide = pointer[0].dtype.itemsize == 4
    for number, value in enumerate(values):
        pointer[unit * len(values) + number] = _rounded(value) if wide else value


def peek_float(shared: Any, index: Any) -> Any:
    """A float32 in shared memory."""
    return shared[int(index)].view(np.float32)


def reload(pointer: Any, index: Any, like: Any) -> Any:
    """What this thread wrote before, in the dtype of `like`."""
    return type(like)(pointer[index])


def fresh(value: Any) -> Any:
    """An index, of which the compiler forgets how it was found: what follows from it is computed anew, not held in registers."""
    return value


def peek_number(shared: Any, index: Any) -> Any:
    """An integer in shared memory."""
    return int(shared[int(index)])


def keep_float(shared: Any, index: Any, value: Any) -> None:
    """Write a float32 to shared memory."""
    shared[int(index)] = np.float32(value).view(np.int32)


def keep_number(shared: Any, index: Any, value: Any) -> None:
    """Write an integer of 32 bits to shared memory."""
    shared[int(index)] = value


_round_all = np.vectorize(_rounded, otypes=[np.float32])


def _slice(shared: Any, first: int, form: Form, which: int) -> np.ndarray[Any, Any]:
    """The slice of a factor that begins at a unit: float32 numbers [lines, terms]."""
    lines, across = form.tile[which], form.across[which]
    rows, units = (form.depth, lines // form.each) if across else (lines, UNITS)
    shift, mask, step = form.swizzle(which)
    words = shared[first * 4 : (first + rows * units) * 4].reshape(rows, units, 4)
    order = np.arange(units) ^ (np.arange(rows)[:, None] >> shift & mask) * step
    found = words[np.arange(rows)[:, None], order].view(np_dtype(form.dtype)).reshape(rows, -1).astype(np.float32)
    found = _round_all(found) if not form.packed and form.each == 4 else found
    return found.T if across else found


def _places(form: Form, lane: int) -> list[tuple[int, int]]:
    """The rows and columns of a lane's results within the part of its warp."""
    high, wide = form.tile.blocks
    return [
        (i * 16 + lane // 4 + part // 2 * 8, j * 8 + lane % 4 * 2 + part % 2)
        for i in range(high)
        for j in range(wide)
        for part in range(4)
    ]


def multiplier(form: Form) -> Any:
    """The function that adds a lane's part of the product of a stage's slices.

    It takes (acc, shared, stage, row, column, lane): the first unit of the stage, and where the part of the warp begins, all lanes
    of which take part. A warp's part is cut into pieces of 16 by 8, row-major, and each gives a lane four numbers: rows lane // 4
    and 8 more, columns 2 (lane % 4) and one more (PTX ISA, "Matrix Fragments for mma.m16n8k16").
    """

    def multiply(acc: Any, shared: Any, stage: Any, row: Any, column: Any, lane: Any) -> Any:
        a, b = _slice(shared, stage, form, 0), _slice(shared, stage + form.tile.rows * UNITS, form, 1)
        with np.errstate(all="ignore"):
            return tuple(np.float32(old + a[row + i] @ b[column + j]) for old, (i, j) in zip(acc, _places(form, lane), strict=True))

    return multiply


def spreader(form: Form) -> Any:
    """The function that writes a lane's results to shared memory with the form's pitch: (shared, acc, row, column, lane)."""

    def spread(shared: Any, acc: Any, row: Any, column: Any, lane: Any) -> None:
        for value, (i, j) in zip(acc, _places(form, lane), strict=True):
            shared[(row + i) * form.pitch + column + j] = np.float32(value).view(np.int32)

    return spread
