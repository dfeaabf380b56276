"""The functions of `copies` for the simulator: plain Python on NumPy scalars."""

from __future__ import annotations

from typing import Any

from .host_elements import muladd, store

__all__ = [
    "anew",
    "copies_end",
    "copies_wait",
    "copy_grid",
    "copy_grid_wide",
    "copy_sums",
    "copy_sums_wide",
    "entries",
    "index_as",
    "store_tile",
    "vanished",
]

WIDE = 4
"""Elements that are copied at once in the simulator, where no memory has an alignment."""


def index_as(value: Any, like: Any) -> Any:
    """An index in the type of `like`, in which the compiler then computes it."""
    return int(value)


def anew(value: Any) -> Any:
    """The value, computed once more instead of held in a register since another use."""
    return value


def _copy(array: Any, index: Any, pointer: Any, offset: Any, there: Any, wide: int) -> None:
    if there and (index % wide or offset % wide):
        raise IndexError(f"{wide} elements are copied at once from the index {offset} to {index}")
    for place in range(wide):
        array[index + place] = array.dtype.type(pointer[offset + place]) if there else array.dtype.type(0)


def copy_grid(
    array: Any, index: Any, pitch: Any, pointer: Any, start: Any, step: Any, offsets: Any, left: Any, steps: Any, like: Any,
    wide: int = 1,
) -> None:  # fmt: skip
    """Begin to copy elements to shared memory, of as many lines as `like` has elements, and of terms with these offsets.

    That of line i and term j is at ``start + i * step + offsets[j]``, and goes to ``index + i * pitch[0] + j * pitch[1]``. There is
    none, and a zero goes there, unless i * steps[0] < left[0] and j * steps[1] < left[1]. See `copies_wait`. Elements of 4, 8 or 16
    bytes that need no conversion pass no register; any other is loaded and stored at once.
    """
    for i in range(len(like)):
        for j, offset in enumerate(offsets):
            there = i * steps[0] < left[0] and j * steps[1] < left[1]
            _copy(array, index + i * pitch[0] + j * pitch[1], pointer, start + i * step + offset, there, wide)


def copy_grid_wide(
    array: Any, index: Any, pitch: Any, pointer: Any, start: Any, step: Any, offsets: Any, left: Any, steps: Any, like: Any
) -> None:
    """`copy_grid` of the 16 bytes from each element on, aligned in both memories."""
    copy_grid(array, index, pitch, pointer, start, step, offsets, left, steps, like, WIDE)


def copy_sums(
    array: Any, index: Any, pitch: Any, pointer: Any, lines: Any, terms: Any, sizes: Any, one: Any, wide: int = 1
) -> None:
    """Begin to copy elements to shared memory, of lines and terms with these entries, each as long as `one`.

    An entry is an offset and a position. The element of line i and term j lies at the sum of both offsets, and goes to ``index +
    i * pitch[0] + j * pitch[1]``. There is none, and a zero goes there, unless the sum of both positions lies in a volume of these
    sizes. See `copy_grid`.
    """
    for i in range(len(lines) // len(one)):
        for j in range(len(terms) // len(one)):
            offset, *position = (int(lines[i * len(one) + k]) + int(terms[j * len(one) + k]) for k in range(1 + len(sizes)))
            there = all(0 <= at < size for at, size in zip(position, sizes, strict=True))
            _copy(array, index + i * pitch[0] + j * pitch[1], pointer, offset, there, wide)


def copy_sums_wide(array: Any, index: Any, pitch: Any, pointer: Any, lines: Any, terms: Any, sizes: Any, one: Any) -> None:
    """`copy_sums` of the 16 bytes from each element on, aligned in both memories."""
    copy_sums(array, index, pitch, pointer, lines, terms, sizes, one, WIDE)


def copies_end() -> None:
    """End a group of this thread's copies."""


def copies_wait(groups: int) -> None:
    """Wait until all but the last so many groups of this thread's copies have arrived."""


def entries(array: Any, index: Any, step: Any, one: tuple[Any, ...], like: tuple[Any, ...]) -> tuple[Any, ...]:
    """As many elements of shared memory as `like` has: those of `one` from `index`, as many from ``index + step``, and so on."""
    return tuple(array[index + place // len(one) * step + place % len(one)] for place in range(len(like)))


def vanished(values: tuple[Any, ...], zero: Any) -> Any:
    """The sum of all values times zero: NaN if one is not finite."""
    acc = zero
    for value in values:
        acc = muladd(value, zero, acc)
    return acc


def store_tile(pointer: Any, values: tuple[Any, ...], rows: Any, ends: Any, columns: Any, steps: Any) -> None:
    """Write values[i, j], row-major, to the index rows[i] + columns[j] where steps[j] < ends[i]."""
    for i, (row, end) in enumerate(zip(rows, ends, strict=True)):
        for j, (column, step) in enumerate(zip(columns, steps, strict=True)):
            if step < end:
                store(pointer, row + column, values[i * len(columns) + j])
