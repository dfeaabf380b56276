"""The functions of `elements` for the simulator: plain Python on NumPy scalars."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np

__all__ = [
    "activated",
    "add",
    "atomic_max",
    "cast",
    "conj",
    "div",
    "is_nan",
    "load",
    "load_wide",
    "magnitude",
    "mod",
    "muladd",
    "outer",
    "outer_second",
    "poke",
    "power",
    "quads",
    "quotient",
    "repeated",
    "replaced",
    "row_muladd",
    "shift_in",
    "shifted",
    "store",
    "unpack",
]


def load(pointer: Any, index: Any, like: Any) -> Any:
    """The element at an index that no thread of this kernel writes, in the dtype of `like`."""
    return type(like)(pointer[index])


def load_wide(pointer: Any, index: Any, like: tuple[Any, ...]) -> tuple[Any, ...]:
    """As many elements as `like` has from an index on, `load` of each, at once: they must be aligned to their size together."""
    if index % len(like):
        raise IndexError(f"{len(like)} elements are loaded at once from the index {index}")
    return tuple(load(pointer, index + place, each) for place, each in enumerate(like))


def store(pointer: Any, index: Any, value: Any) -> None:
    """Write a value, rounded to nearest even or wrapped modulo 2^n."""
    pointer[index] = value


_updating = threading.Lock()


def atomic_max(pointer: Any, index: Any, value: Any) -> None:
    """Raise an integer to a value, in one step for all threads."""
    with _updating:
        pointer[index] = max(pointer[index], value)


def shifted(pointer: Any, offset: Any) -> Any:
    """The pointer moved by so many elements."""
    return pointer.shifted(offset)


def _wrapped(value: int, like: Any) -> Any:
    bits = like.dtype.itemsize * 8
    value &= (1 << bits) - 1
    if like.dtype.kind == "i" and value >> (bits - 1):
        value -= 1 << bits
    return like.dtype.type(value)


def muladd(a: Any, b: Any, acc: Any) -> Any:
    """a * b + acc in the dtype of the three.

    Floats: one rounding. Integers wrap. Complex: ``re = fma(-a.imag, b.imag, fma(a.real, b.real, acc.real))`` and
    ``im = fma(a.imag, b.real, fma(a.real, b.imag, acc.imag))``.
    """
    kind = acc.dtype.kind
    if kind in "iu":
        return _wrapped(int(a) * int(b) + int(acc), acc)
    if kind == "c":
        real = muladd(-a.imag, b.imag, muladd(a.real, b.real, acc.real))
        imag = muladd(a.imag, b.real, muladd(a.real, b.imag, acc.imag))
        return acc.dtype.type(complex(real, imag))
    return acc.dtype.type(float(a) * float(b) + float(acc))  # for float32 rounded once more than an FMA rounds, in double


def add(a: Any, b: Any) -> Any:
    """a + b; integers wrap."""
    if a.dtype.kind in "iu":
        return _wrapped(int(a) + int(b), a)
    with np.errstate(all="ignore"):
        return a + b


def quotient(a: Any, b: Any) -> Any:
    """a / b of floats; a complex `a` is divided part by part."""
    with np.errstate(all="ignore"):
        if a.dtype.kind == "c":
            return a.dtype.type(complex(a.real / b.real, a.imag / b.real))
        return a / b


def conj(value: Any) -> Any:
    """The complex conjugate; a real number itself."""
    return value.dtype.type(np.conj(value))


def magnitude(value: Any) -> Any:
    """The absolute value of a real number."""
    return abs(value)


def is_nan(value: Any) -> Any:
    """Whether it is NaN; never for integers."""
    return value.dtype.kind == "f" and math.isnan(value)


def cast(value: Any, like: Any) -> Any:
    """An integer count in the dtype of `like`."""
    return type(like)(value)


def power(base: Any, exponent: Any) -> Any:
    """A float of at least 0 to a power."""
    with np.errstate(all="ignore"):
        return type(base)(np.power(base, exponent))


def activated(value: Any, code: Any) -> Any:
    """The value after an activation: 0 none, 1 relu, 2 silu, 3 gelu; a complex number as it is."""
    if code == 0 or value.dtype.kind == "c":
        return value
    if code == 1:
        return value if value > 0 or is_nan(value) else type(value)(0)
    with np.errstate(all="ignore"):
        if code == 2:
            return value / (1 + np.exp(-value))
        return type(value)(0.5) * value * type(value)(math.erfc(value * -math.sqrt(0.5)))


def div(a: Any, b: Any) -> Any:
    """The quotient of two indices that are not negative, computed in the type of `b`."""
    return int(a) // int(b)


def mod(a: Any, b: Any) -> Any:
    """The remainder of two indices that are not negative, computed in the type of `b`."""
    return int(a) % int(b)


def replaced(values: tuple[Any, ...], position: int, value: Any) -> tuple[Any, ...]:
    """The tuple with another number at a position."""
    return (*values[:position], value, *values[position + 1 :])


def poke(array: Any, index: Any, value: Any) -> None:
    """Write an element of shared memory."""
    array[index] = value


def quads(array: Any, index: Any, step: Any, like: Any) -> tuple[Any, ...]:
    """As many elements of shared memory as `like` has: four from `index`, four from ``index + step``, and so on."""
    return tuple(array[index + block * step + place] for block in range(len(like) // 4) for place in range(4))


def outer(acc: tuple[Any, ...], a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
    """acc[i, j] + a[i] * b[j], row-major, each one multiply-add: the register tile of a matrix product."""
    return tuple(muladd(x, y, acc[row * len(b) + column]) for row, x in enumerate(a) for column, y in enumerate(b))


def outer_second(acc: tuple[Any, ...], a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
    """acc[i, j] + b[j] * a[i]: `outer` with the factors of each product exchanged, which complex numbers tell apart."""
    return tuple(muladd(y, x, acc[row * len(b) + column]) for row, x in enumerate(a) for column, y in enumerate(b))


def repeated(value: Any, count: int) -> tuple[Any, ...]:
    """A tuple of one value so many times, a literal count."""
    return (value,) * count


def unpack(array: Any, values: tuple[Any, ...]) -> None:
    """Write a tuple to memory of the thread's own, whose elements may then be taken at any index."""
    array[: len(values)] = values


def row_muladd(acc: tuple[Any, ...], values: tuple[Any, ...], there: tuple[Any, ...], factor: Any) -> tuple[Any, ...]:
    """acc[j] + values[j] * factor, one multiply-add each, where `there` is not 0."""
    return tuple(muladd(v, factor, a) if t else a for a, v, t in zip(acc, values, there, strict=True))


def shift_in(values: tuple[Any, ...], value: Any, ahead: Any) -> tuple[Any, ...]:
    """The values moved by one place, another at the end that became free: the last one if `ahead`, else the first."""
    return (*values[1:], value) if ahead else (value, *values[:-1])
