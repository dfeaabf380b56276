"""Which results of a transform see NaN or infinities: found by counting them, with transforms of zeros and ones.

A transform spreads one NaN over its block, so blocks are gathered with zeros in the place of what is not finite. Then for each way
in which a product is not finite, x in one class and w in another, the convolution of the two indicators counts such terms of
every output, and an output with one of them is overwritten: a sum is infinite with the sign of its infinite terms, and NaN if they
have both signs or a term is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

__all__ = ["VALUE", "classified", "marked", "members", "overwrite", "passes"]

VALUE, ANY, NAN, INFINITE, ZERO, PLUS_INFINITE, MINUS_INFINITE, PLUS, MINUS, FINITE_PLUS, FINITE_MINUS = range(11)
"""Classes of numbers; VALUE stands for the number itself, if it is finite."""
TO_PLUS, TO_MINUS, TO_NAN = range(3)
# In this order: what is infinite already becomes NaN where a term of the other sign, or a NaN, follows.
_WAYS = {
    TO_PLUS: ((PLUS_INFINITE, PLUS), (MINUS_INFINITE, MINUS), (FINITE_PLUS, PLUS_INFINITE), (FINITE_MINUS, MINUS_INFINITE)),
    TO_MINUS: ((PLUS_INFINITE, MINUS), (MINUS_INFINITE, PLUS), (FINITE_PLUS, MINUS_INFINITE), (FINITE_MINUS, PLUS_INFINITE)),
    TO_NAN: ((NAN, ANY), (ANY, NAN), (INFINITE, ZERO), (ZERO, INFINITE)),
}


def passes() -> Iterator[tuple[int, int, int]]:
    """(what becomes of the sum, class of x, class of the other factor), in order."""
    for becomes, pairs in _WAYS.items():
        for one, other in pairs:
            yield becomes, one, other


def members(array: Any, code: int) -> Any:
    """Where an array has numbers of a class; for VALUE the array with zeros in the place of what is not finite."""
    if code == VALUE:
        return np.where(np.isfinite(array), array, array.dtype.type(0))
    found = {
        ANY: lambda: np.ones(array.shape, bool),
        NAN: lambda: np.isnan(array),
        INFINITE: lambda: np.isinf(array),
        ZERO: lambda: array == 0,
        PLUS_INFINITE: lambda: array == math.inf,
        MINUS_INFINITE: lambda: array == -math.inf,
        PLUS: lambda: array > 0,
        MINUS: lambda: array < 0,
    }
    return found[code]()


def classified(value: Any, code: int) -> Any:
    """In kernels: 1 for a member of a class and 0 for others, or the value itself if that is finite."""
    raise NotImplementedError("for kernels only")


@overload(classified)
def _classified(value, code):
    if isinstance(value, types.Complex):
        return lambda value, code: value if value - value == 0 else value * 0
    kind = value

    def real(value, code):
        finite = value - value == 0
        if code == VALUE:
            return value if finite else kind(0)
        infinite = (value == value) and not finite
        member = True
        if code == NAN:
            member = value != value
        elif code == INFINITE:
            member = infinite
        elif code == ZERO:
            member = value == 0
        elif code == PLUS_INFINITE:
            member = infinite and value > 0
        elif code == MINUS_INFINITE:
            member = infinite and value < 0
        elif code == PLUS:
            member = value > 0
        elif code == MINUS:
            member = value < 0
        elif code == FINITE_PLUS:
            member = finite and value > 0
        elif code == FINITE_MINUS:
            member = finite and value < 0
        return kind(1) if member else kind(0)

    return real


def marked(old: Any, becomes: int) -> Any:
    """In kernels: a sum of terms that are not finite, from what it was and what one more of them makes of it."""
    raise NotImplementedError("for kernels only")


@overload(marked)
def _marked(old, becomes):
    if isinstance(old, types.Complex):
        return lambda old, becomes: old
    kind = old

    def real(old, becomes):
        if becomes == TO_PLUS:
            return kind(np.inf)
        if becomes == TO_NAN or old != old or old == kind(np.inf):
            return kind(np.nan)
        return kind(-np.inf)

    return real


def overwrite(array: Any, where: Any, becomes: int) -> None:
    """`marked` for an array of NumPy."""
    if becomes == TO_MINUS:
        array[where & ~np.isnan(array) & (array != math.inf)] = -math.inf
        array[where & (array != -math.inf)] = math.nan
    else:
        array[where] = math.inf if becomes == TO_PLUS else math.nan
