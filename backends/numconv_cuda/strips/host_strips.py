"""The functions of `strips` for the simulator: plain Python on NumPy scalars.

Arrays are given by a pointer, the offset of their first element, the position (row, column) of the first element of the strip, the
sizes of both axes and the steps between their elements; what lies outside is not read, and counts as 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from numconv_cuda.primitives.host_elements import add, load, muladd, store

from .strips import Divisor, Strip

__all__ = ["fetch", "finite", "put", "slide", "split", "spread", "strip_folds", "strip_gradients", "strip_sums", "strip_taps",
           "strip_words"]  # fmt: skip

_Pair = tuple[Any, Any]


def _place(offset: Any, position: _Pair, sizes: _Pair, steps: _Pair, row: int, column: int) -> int | None:
    at = position[0] + row, position[1] + column
    if all(0 <= place < size for place, size in zip(at, sizes, strict=True)):
        return int(offset + at[0] * steps[0] + at[1] * steps[1])
    return None


def _element(pointer: Any, place: int | None, zero: Any) -> Any:
    return zero if place is None else load(pointer, place, zero)


def _terms(strip: Strip) -> Iterator[tuple[int, int, int, int]]:
    """(result, tap, row, column) of every term, those of a result in the order of the taps."""
    for (o, rows), (place, columns) in itertools.product(enumerate(strip.rows.terms), enumerate(strip.columns.terms)):
        for (tap, row), (other, column) in itertools.product(rows, columns):
            yield o * strip.width + place, tap * strip.window[1] + other, row, column


def strip_taps(strip: Strip) -> Any:
    """``(w, offset, steps, zero)`` -> the taps of the last two axes, row-major."""

    def load_taps(pointer: Any, offset: Any, steps: _Pair, zero: Any) -> tuple[Any, ...]:
        places = itertools.product(range(strip.window[0]), range(strip.window[1]))
        return tuple(load(pointer, offset + row * steps[0] + column * steps[1], zero) for row, column in places)

    return load_taps


def strip_sums(strip: Strip, *, careful: bool) -> Any:
    """``(acc, x, offset, position, sizes, steps, taps)`` -> the sums with the terms of one channel.

    What lies outside counts as 0; if `careful` it is no term at all, whatever the tap is.
    """

    def add_terms(
        acc: Sequence[Any], pointer: Any, offset: Any, position: _Pair, sizes: _Pair, steps: _Pair, factors: Sequence[Any]
    ) -> tuple[Any, ...]:
        sums = list(acc)
        for result, tap, row, column in _terms(strip):
            place = _place(offset, position, sizes, steps, row, column)
            if place is not None or not careful:
                sums[result] = muladd(_element(pointer, place, type(factors[tap])(0)), factors[tap], sums[result])
        return tuple(sums)

    return add_terms


def strip_gradients(strip: Strip, *, careful: bool) -> Any:
    """``(acc, y, offset, position, sizes, steps, x, offset, ...)`` -> the sums of the taps with a strip of outputs."""

    def add_gradients(
        acc: Sequence[Any], y: Any, at_y: Any, output: _Pair, outputs: _Pair, y_steps: _Pair,
        x: Any, at_x: Any, position: _Pair, sizes: _Pair, steps: _Pair,
    ) -> tuple[Any, ...]:  # fmt: skip
        sums, zero = list(acc), type(acc[0])(0)
        for result, tap, row, column in _terms(strip):
            from_y = _place(at_y, output, outputs, y_steps, *divmod(result, strip.width))
            from_x = _place(at_x, position, sizes, steps, row, column)
            if not careful or (from_y is not None and from_x is not None):
                sums[tap] = muladd(_element(y, from_y, zero), _element(x, from_x, zero), sums[tap])
        return tuple(sums)

    return add_gradients


def strip_words(strip: Strip) -> Any:
    """``(x, offset, position, sizes, steps)`` -> the sources of a strip of one tap as they are; 0 outside."""

    def load_words(pointer: Any, offset: Any, position: _Pair, sizes: _Pair, steps: _Pair) -> tuple[Any, ...]:
        places = [_place(offset, position, sizes, steps, row, column) for _, _, row, column in _terms(strip)]
        return tuple(0 if place is None else pointer[place] for place in places)

    return load_words


def strip_folds(strip: Strip) -> Any:
    """``(acc, columns, offset, position, sizes, steps, apart)`` -> the sums of what all taps, so far apart, hold of a strip."""

    def add_folds(
        acc: Sequence[Any], pointer: Any, offset: Any, position: _Pair, sizes: _Pair, steps: _Pair, apart: Any
    ) -> tuple[Any, ...]:
        sums = list(acc)
        for which, tap, row, column in _terms(strip):
            place = _place(offset + tap * apart, position, sizes, steps, row, column)
            if place is not None:
                sums[which] = add(sums[which], load(pointer, place, acc[0]))
        return tuple(sums)

    return add_folds


def put(strip: Strip) -> Any:
    """``(y, offset, position, sizes, steps, results)``: write those that lie inside."""

    def write(pointer: Any, offset: Any, position: _Pair, sizes: _Pair, steps: _Pair, values: Sequence[Any]) -> None:
        for result, value in enumerate(values):
            place = _place(offset, position, sizes, steps, *divmod(result, strip.width))
            if place is not None:
                store(pointer, place, value)

    return write


def fetch(pointer: Any, offset: Any, position: _Pair, sizes: _Pair, steps: _Pair, zero: Any) -> Any:
    """The element at a position; 0 outside."""
    return _element(pointer, _place(offset, position, sizes, steps, 0, 0), zero)


def spread(array: Any, index: Any, step: Any, values: Sequence[Any]) -> None:
    """Write a tuple to shared memory, its elements so far apart."""
    for place, value in enumerate(values):
        array[index + place * step] = value


def finite(values: Sequence[Any]) -> bool:
    """Whether all numbers of a tuple are finite."""
    return all(map(math.isfinite, values))


def split(index: Any, divisor: Divisor) -> tuple[int, int]:
    """The quotient and the remainder of an index that is not negative."""
    quotient = int(index) * int(divisor.factor) >> int(divisor.shift)
    return quotient, int(index) - quotient * int(divisor.number)


def slide(acc: Sequence[Any], left: Sequence[Any], right: Sequence[Any], taps: Sequence[Any]) -> tuple[Any, ...]:
    """Four taps a row of results, on four results: acc[row, i] + the sum over j of (left, right)[i + j] * taps[row, j]."""
    values, sums = (*left, *right), list(acc)
    for tap, which in itertools.product(range(4), range(len(acc))):
        row, place = divmod(which, 4)
        sums[which] = muladd(values[place + tap], taps[4 * row + tap], sums[which])
    return tuple(sums)
