"""The functions of `pool_terms` for the simulator: plain Python on NumPy scalars.

Arrays are given as in `host_strips`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from numconv_cuda.primitives.host_elements import add, cast, is_nan, load, quotient

from .host_strips import _element, _Pair, _place, _terms
from .strips import Pooled

__all__ = ["strip_chosen", "strip_max", "strip_means", "strip_shares", "strip_strays", "strip_winners"]


def _larger(value: Any, best: Any) -> bool:
    """Whether a value replaces the best so far: a larger one or the first NaN."""
    return not is_nan(best) and (is_nan(value) or value > best)


def strip_max(pooled: Pooled, *, indexed: bool) -> Any:
    """``(best, places, x, offset, position, sizes, steps)`` -> the largest elements of the windows, and their flat places.

    Before any element the best is the least number, and the place -1; places are kept only if `indexed`.
    """

    def take(
        best: Sequence[Any], places: Sequence[Any], pointer: Any, offset: Any, position: _Pair, sizes: _Pair, steps: _Pair
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        values, found = list(best), list(places)
        for which, _, row, column in _terms(pooled.windows):
            place = _place(offset, position, sizes, steps, row, column)
            if place is None:
                continue
            value = load(pointer, place, best[0])
            if (indexed and found[which] < 0) or _larger(value, values[which]):
                values[which] = value
                if indexed:
                    found[which] = (position[0] + row) * sizes[1] + position[1] + column
        return tuple(values), tuple(found)

    return take


def _count(first: _Pair, places: Sequence[Sequence[int]], floors: _Pair, reaches: _Pair) -> int:
    """How many positions of a window lie from the floors on within their reaches."""
    rows, columns = (sum(0 <= first[axis] + place - floors[axis] < reaches[axis] for place in places[axis]) for axis in range(2))
    return rows * columns


def strip_means(pooled: Pooled) -> Any:
    """``(sums, position, floors, reaches)`` -> the sums of windows divided by the elements that count."""
    strip = pooled.windows

    def divide(acc: Sequence[Any], position: _Pair, floors: _Pair, reaches: _Pair) -> tuple[Any, ...]:
        means = []
        for which, value in enumerate(acc):
            axes = zip(strip[:2], divmod(which, strip.width), strict=True)
            places = [[source for _, source in axis.terms[at]] for axis, at in axes]
            means.append(quotient(value, cast(_count(position, places, floors, reaches), value)))
        return tuple(means)

    return divide


def strip_shares(pooled: Pooled) -> Any:
    """``(acc, grad, offset, position, sizes, steps, window, floors, reaches)`` -> the sums with the shares of the windows.

    `window` is the position in x of the first source's window.
    """

    def add_shares(
        acc: Sequence[Any], pointer: Any, offset: Any, position: _Pair, sizes: _Pair, steps: _Pair,
        window: _Pair, floors: _Pair, reaches: _Pair,
    ) -> tuple[Any, ...]:  # fmt: skip
        sums = list(acc)
        for which, _, row, column in _terms(pooled.elements):
            place = _place(offset, position, sizes, steps, row, column)
            if place is not None:
                count = _count(window, (pooled.reads[0][row], pooled.reads[1][column]), floors, reaches)
                sums[which] = add(sums[which], quotient(load(pointer, place, acc[0]), cast(count, acc[0])))
        return tuple(sums)

    return add_shares


def strip_winners(pooled: Pooled) -> Any:
    """``(acc, grad, ..., x, ...)`` -> the sums with the gradients of the windows whose largest element each is.

    The position in x is that of the first source's window.
    """
    strip = pooled.elements

    def add_won(
        acc: Sequence[Any], grad: Any, at_grad: Any, output: _Pair, outputs: _Pair, g_steps: _Pair,
        x: Any, at_x: Any, position: _Pair, sizes: _Pair, steps: _Pair,
    ) -> tuple[Any, ...]:  # fmt: skip
        sums, zero = list(acc), type(acc[0])(0)
        for which, tap, row, column in _terms(strip):
            winner, best = -1, zero
            for number, (r, c) in enumerate(itertools.product(pooled.reads[0][row], pooled.reads[1][column])):
                place = _place(at_x, position, sizes, steps, r, c)
                value = _element(x, place, zero)
                if place is not None and (winner < 0 or _larger(value, best)):
                    winner, best = number, value
            place = _place(at_grad, output, outputs, g_steps, row, column)
            if place is not None and winner == tap:
                sums[which] = add(sums[which], load(grad, place, zero))
        return tuple(sums)

    return add_won


def strip_chosen(pooled: Pooled) -> Any:
    """``(acc, grad, offset, position, sizes, steps, indices, offset, steps, place)`` -> the sums with what chose each element.

    `place` is the flat place of the first element, and how far its rows lie apart.
    """
    strip = pooled.elements

    def add_chosen(
        acc: Sequence[Any], grad: Any, at_grad: Any, output: _Pair, outputs: _Pair, g_steps: _Pair,
        indices: Any, at_indices: Any, steps: _Pair, place: _Pair,
    ) -> tuple[Any, ...]:  # fmt: skip
        sums = list(acc)
        for which, _, row, column in _terms(strip):
            source = _place(at_grad, output, outputs, g_steps, row, column)
            chosen = _place(at_indices, output, outputs, steps, row, column)
            here = place[0] + which // strip.width * place[1] + which % strip.width
            if source is not None and chosen is not None and indices[chosen] == here:
                sums[which] = add(sums[which], load(grad, source, acc[0]))
        return tuple(sums)

    return add_chosen


def strip_strays(pooled: Pooled) -> Any:
    """``(indices, offset, first, outputs, steps, position, sizes)`` -> whether an index lies outside its window.

    `position` is that of the first window in x, whose sizes are the last argument.
    """
    strip = pooled.windows

    def strayed(indices: Any, offset: Any, first: _Pair, outputs: _Pair, steps: _Pair, position: _Pair, sizes: _Pair) -> bool:
        for which in range(strip.results):
            at = _place(offset, first, outputs, steps, *divmod(which, strip.width))
            if at is None:
                continue
            reads = [(row, column) for result, _, row, column in _terms(strip) if result == which]
            window = {_place(0, position, sizes, (sizes[1], 1), *read) for read in reads}
            if int(indices[at]) not in window:
                return True
        return False

    return strayed
