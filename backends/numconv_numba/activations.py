"""Activations that a store applies: relu, silu, gelu. They have no branch and no call, so that loops over them become vectors.

silu(x) = x / (1 + exp(-x)), gelu(x) = x * erfc(-x / sqrt(2)) / 2, both in double precision and then rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import overload

from .compiler import helper, intrinsic
from .elements import itemsize
from .scalar import load, store, wide_vectors

__all__ = ["ACTIVATIONS", "activate_run", "activated", "rectified"]

ACTIVATIONS = {None: 0, "relu": 1, "silu": 2, "gelu": 3}

_F64, _I64 = ir.DoubleType(), ir.IntType(64)
_ROUNDING = 1.5 * 2.0**52
"""Added to a small number, it rounds that to an integer, which then stands in the low bits."""
_LN2 = math.log(2), 2.3190468138462996e-17
"""log(2), and what its rounding leaves."""
_EXP_TERMS = 14
"""Taylor's series for arguments up to log(2) / 2: the first term left out is 4e-18."""
_ERFC_CENTRE = 3.0
_ERFC = (
    1.17756257419656, 0.005353904539615676, -0.09377550342284209, 0.05436652555744322, -0.018976596707845208,
    0.004453426061462712, -0.0006335531710553147, 1.7661719523171593e-05, 1.2841532864056681e-05, -2.0072285659059705e-06,
    -1.8075227904145446e-07, 7.549828343828702e-08, 1.8856685238796514e-09, -2.699519049754503e-09, -1.460079115500696e-11,
    1.0361607450228662e-10, 1.4757160152014485e-12, -4.277340031843879e-12, -2.0792246802778108e-13, 1.8134503585032112e-13,
    1.973426172909187e-14, -7.287947896500856e-15, -1.5170019483940254e-15, 2.351178628468913e-16, 1.0002989611741126e-16,
)  # fmt: skip
"""Chebyshev coefficients of (1 + 2z) exp(z^2) erfc(z) for z >= 0 in t = (z - 3) / (z + 3): the form of Shepherd and Laframboise,
"Chebyshev approximation of (1 + 2x) exp(x^2) erfc x", Mathematics of Computation 36 (1981); interpolated in 40 digits. The first
one left out is 2e-18."""


def _exp(builder: Any, x: Any) -> Any:
    """exp(x) within two units in the last place; 0 below the normal numbers."""
    low, high = _F64(-708.0), _F64(709.78)
    clamped = builder.select(builder.fcmp_ordered("<", x, low), low, x)
    shifted = builder.fma(clamped, _F64(1 / math.log(2)), _F64(_ROUNDING))
    power = builder.fsub(shifted, _F64(_ROUNDING))
    rest = clamped
    for part in _LN2:
        rest = builder.fma(power, _F64(-part), rest)
    series = _F64(1 / math.factorial(_EXP_TERMS - 1))
    for term in reversed(range(_EXP_TERMS - 1)):
        series = builder.fma(series, rest, _F64(1 / math.factorial(term)))
    exponent = builder.shl(builder.bitcast(shifted, _I64), _I64(52))
    scaled = builder.bitcast(builder.add(builder.bitcast(series, _I64), exponent), _F64)
    result = builder.select(builder.fcmp_ordered("<", x, low), _F64(0.0), scaled)
    result = builder.select(builder.fcmp_ordered(">", x, high), _F64(math.inf), result)
    return builder.select(builder.fcmp_unordered("uno", x, x), x, result)


def _clenshaw(builder: Any, coefficients: Sequence[float], t: Any) -> Any:
    """A sum of Chebyshev polynomials of t."""
    twice = builder.fadd(t, t)
    last, value = _F64(0.0), _F64(coefficients[-1])
    for coefficient in coefficients[-2:0:-1]:
        last, value = value, builder.fma(twice, value, builder.fsub(_F64(coefficient), last))
    return builder.fma(t, value, builder.fsub(_F64(coefficients[0]), last))


@intrinsic
def exponential(typingctx: Any, x: Any) -> Any:
    """exp(x) of a float64; NaN stays NaN."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _exp(builder, args[0])

    return types.float64(types.float64), codegen


@intrinsic
def complementary_error(typingctx: Any, z: Any) -> Any:
    """erfc(z) of a float64 z >= 0; NaN stays NaN."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        most, centre, one = _F64(40.0), _F64(_ERFC_CENTRE), _F64(1.0)
        z = builder.select(builder.fcmp_ordered(">", args[0], most), most, args[0])
        sum_, double = builder.fadd(z, centre), builder.fma(_F64(2.0), z, one)
        inverse = builder.fdiv(one, builder.fmul(sum_, double))
        t = builder.fmul(builder.fmul(builder.fsub(z, centre), double), inverse)
        scaled = builder.fmul(_clenshaw(builder, _ERFC, t), builder.fmul(sum_, inverse))
        return builder.fmul(scaled, _exp(builder, builder.fneg(builder.fmul(z, z))))

    return types.float64(types.float64), codegen


@helper
def silu(value):
    """x / (1 + exp(-x)) of a float64."""
    return value / (1.0 + exponential(-value))


@helper
def gelu(value):
    """x * erfc(-x / sqrt(2)) / 2 of a float64."""
    tail = complementary_error(abs(value) * 0.7071067811865476)
    return 0.5 * value * (tail if value < 0.0 else 2.0 - tail)


def rectified(value: Any, code: int) -> Any:
    """max(value, 0) for the code of relu, else the value; NaN stays NaN."""
    raise NotImplementedError("for kernels only")


@overload(rectified)
def _rectified(value, code):
    if isinstance(value, types.Complex):
        return lambda value, code: value
    kind = value
    return lambda value, code: kind(0) if (code == 1) & (value < kind(0)) else value


def activated(value: Any, code: int) -> Any:
    """Silu or gelu of a value; NaN stays NaN."""
    raise NotImplementedError("for kernels only")


@overload(activated)
def _activated(value, code):
    if not isinstance(value, types.Float):
        return lambda value, code: value
    kind = value
    return lambda value, code: kind(silu(np.float64(value)) if code == 2 else gelu(np.float64(value)))


@helper
def activate_run(values, count, code, t):
    """Silu or gelu of neighbouring values in place; `values` is their address, `t` the tag of their dtype."""
    wide_vectors()
    if code == 2:
        for i in range(count):
            store(values + i * itemsize(t), activated(load(values + i * itemsize(t), t), 2), t)
    else:
        for i in range(count):
            store(values + i * itemsize(t), activated(load(values + i * itemsize(t), t), 3), t)
