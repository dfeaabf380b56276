"""A correctly rounded fused multiply-add in NumPy, and the rounding that it rests on.

NumPy has no FMA. It is emulated as by S. Boldo and G. Melquiond, "Emulation of FMA and correctly rounded sums: proved
algorithms using rounding to odd", IEEE Transactions on Computers 57(4), 2008. Rounding to odd keeps, in the last bit, whether
anything was cut off; a second rounding to fewer digits then gives what one rounding of the exact value would have given.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["fma", "odd_float32"]

Array = np.ndarray[Any, Any]

_SPLIT = 2.0**27 + 1


def fma(a: Array, b: Array, c: Array) -> Array:
    """``a * b + c`` for each element, rounded once; the three are of one dtype and broadcast.

    float32 is exact in every case, float64 where ``a * b`` neither overflows when split (beyond about 2**996 it is computed as
    ``a * b + c``) nor has an error below the subnormals (``0 < |a * b| < 2**-969``). Integers wrap. A complex product takes
    four FMAs: ``re = fma(-a.imag, b.imag, fma(a.real, b.real, c.real))`` and
    ``im = fma(a.imag, b.real, fma(a.real, b.imag, c.imag))``.
    """
    if c.dtype.kind == "c":
        return _fma_complex(a, b, c)
    if c.dtype == np.float32:
        return _fma_float32(a, b, c)
    if c.dtype == np.float64:
        return _fma_float64(a, b, c)
    return a * b + c


def _fma_complex(a: Array, b: Array, c: Array) -> Array:
    out = np.empty(np.broadcast_shapes(a.shape, b.shape, c.shape), c.dtype)
    out.real = fma(-a.imag, b.imag, fma(a.real, b.real, c.real))
    out.imag = fma(a.imag, b.real, fma(a.real, b.imag, c.imag))
    return out


def _fma_float32(a: Array, b: Array, c: Array) -> Array:
    product = a.astype(np.float64) * b.astype(np.float64)  # exact: 48 digits
    return _odd_sum(product, c.astype(np.float64)).astype(np.float32)


def _fma_float64(a: Array, b: Array, c: Array) -> Array:
    high, low = _two_product(a, b)
    c_high, c_low = _two_sum(c, low)
    high, middle = _two_sum(high, c_high)
    fused = high + _odd_sum(c_low, middle)
    # The error terms lose the sign of a zero and turn an infinity into NaN.
    return np.where(np.isfinite(fused) & (fused != 0), fused, a * b + c)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded sum and its exact error (Knuth)."""
    total = a + b
    from_b = total - a
    return total, (a - (total - from_b)) + (b - from_b)


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded product and its exact error (Dekker)."""
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    product = a * b
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _halves(value: Array) -> tuple[Array, Array]:
    """Two parts of at most 26 digits whose sum is `value` (Veltkamp)."""
    scaled = _SPLIT * value
    high = scaled - (scaled - value)
    return high, value - high


def _odd_sum(a: Array, b: Array) -> Array:
    return _to_odd(*_two_sum(a, b))


def _to_odd(rounded: Array, error: Array) -> Array:
    """The exact value ``rounded + error``, of which `rounded` is the nearest float, rounded to odd instead."""
    even = rounded.view(f"i{rounded.itemsize}") & 1 == 0
    towards = np.where(error > 0, np.inf, -np.inf).astype(rounded.dtype)
    inexact = (error > 0) | (error < 0)  # not for NaN, the error of a sum that is not finite
    return np.where(even & inexact, np.nextafter(rounded, towards), rounded)


def odd_float32(values: Array) -> Array:
    """Float64 values as float32, rounded to odd: converting these to bfloat16 rounds the float64 values correctly."""
    with np.errstate(over="ignore", invalid="ignore"):
        nearest = values.astype(np.float32)
        return _to_odd(nearest, values - nearest)
