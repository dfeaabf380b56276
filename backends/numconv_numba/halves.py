"""float16 and bfloat16 as bits: widened to float32 and rounded from it, one number or a vector of them at a time.

Processors that convert float16 themselves are asked to; bfloat16, which is the upper half of a float32, takes shifts. A float32 is
also the sum of three bfloat16 numbers: itself rounded, what is left rounded, and what is left then.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

__all__ = ["BFLOAT_PARTS", "HALVES", "converts_halves", "narrow_half", "take_part", "widen_half"]

HALVES = ("float16", "bfloat16")
BFLOAT_PARTS = ("first part of float32", "second part of float32", "third part of float32")
"""float32 in memory, of which a bfloat16 part is taken as it is loaded: see `take_part`."""
_i16, _i32, _f32 = ir.IntType(16), ir.IntType(32), ir.FloatType()


def converts_halves(context: Any) -> bool:
    """Whether the processor converts float16; elsewhere LLVM would call a routine that the process may not have."""
    triple, _, features = context.codegen().magic_tuple()
    return "+f16c" in features.split(",") or triple.startswith(("aarch64", "arm64"))


def widen_half(context: Any, builder: Any, bits: Any, dtype: str) -> Any:
    """The float32 of the bits of a half type, which are i16 or a vector of i16."""
    if dtype == "bfloat16":
        wide = builder.zext(bits, _like(bits, _i32))
        return builder.bitcast(builder.shl(wide, _constant(wide, 16)), _like(bits, _f32))
    if converts_halves(context):
        return builder.fpext(builder.bitcast(bits, _like(bits, ir.HalfType())), _like(bits, _f32))
    return _half_to_float(builder, bits)


def narrow_half(context: Any, builder: Any, number: Any, dtype: str) -> Any:
    """The bits of a half type, rounded to nearest even from float32, one or a vector; NaN stays NaN."""
    if dtype == "bfloat16":
        return _float_to_bfloat(builder, number)
    if converts_halves(context):
        return builder.bitcast(builder.fptrunc(number, _like(number, ir.HalfType())), _like(number, _i16))
    return _float_to_half(builder, number)


def take_part(builder: Any, number: Any, dtype: str) -> Any:
    """One of the `BFLOAT_PARTS` of a float32, one or a vector, as a float32. What is not finite is all in its first part."""
    for _ in range(BFLOAT_PARTS.index(dtype)):
        rest = builder.fsub(number, _rounded(builder, number))
        number = builder.select(builder.fcmp_unordered("uno", rest, rest), _constant(rest, 0.0), rest)
    return _rounded(builder, number)


def _rounded(builder: Any, number: Any) -> Any:
    """A float32 rounded to bfloat16."""
    return widen_half(None, builder, _float_to_bfloat(builder, number), "bfloat16")


def _like(value: Any, element: Any) -> Any:
    """The type of one element, or of as many as a value has."""
    return ir.VectorType(element, value.type.count) if isinstance(value.type, ir.VectorType) else element


def _constant(value: Any, number: float) -> Any:
    """A number of the type of a value, in all its lanes."""
    vector = isinstance(value.type, ir.VectorType)
    return ir.Constant(value.type, [number] * value.type.count if vector else number)


def _round_off(builder: Any, bits: Any, count: int) -> Any:
    """Bits shifted right by `count`, rounded to nearest even."""
    last = builder.and_(builder.lshr(bits, _constant(bits, count)), _constant(bits, 1))
    return builder.lshr(builder.add(builder.add(bits, _constant(bits, (1 << count - 1) - 1)), last), _constant(bits, count))


def _float_to_bfloat(builder: Any, number: Any) -> Any:
    bits = builder.bitcast(number, _like(number, _i32))
    quiet = builder.or_(builder.lshr(bits, _constant(bits, 16)), _constant(bits, 0x40))
    rounded = builder.select(builder.fcmp_unordered("uno", number, number), quiet, _round_off(builder, bits, 16))
    return builder.trunc(rounded, _like(number, _i16))


def _half_to_float(builder: Any, bits: Any) -> Any:
    wide = builder.zext(bits, _like(bits, _i32))
    single = _like(bits, _f32)
    sign = builder.shl(builder.and_(wide, _constant(wide, 0x8000)), _constant(wide, 16))
    moved = builder.shl(builder.and_(wide, _constant(wide, 0x7FFF)), _constant(wide, 13))
    # the exponents' biases differ by 112; the product is exact and normalises subnormals
    magnitude = builder.bitcast(moved, single)
    scaled = builder.bitcast(builder.fmul(magnitude, _constant(magnitude, 2.0**112)), wide.type)
    special = builder.icmp_unsigned(">=", moved, _constant(wide, 0x7C00 << 13))
    magnitude = builder.select(special, builder.or_(moved, _constant(wide, 0x7F800000)), scaled)
    return builder.bitcast(builder.or_(magnitude, sign), single)


def _float_to_half(builder: Any, number: Any) -> Any:
    bits = builder.bitcast(number, _like(number, _i32))

    def constant(value: int) -> Any:
        return _constant(bits, value)

    sign = builder.and_(builder.lshr(bits, constant(16)), constant(0x8000))
    magnitude = builder.and_(bits, constant(0x7FFFFFFF))
    normal = _round_off(builder, builder.sub(magnitude, constant(112 << 23)), 13)
    # the last place of a number in [1/2, 1) is that of half precision's subnormals, so this sum rounds as they do
    shifted = builder.fadd(builder.bitcast(magnitude, number.type), _constant(number, 0.5))
    subnormal = builder.sub(builder.bitcast(shifted, bits.type), constant(0x3F000000))
    result = builder.select(builder.icmp_unsigned("<", magnitude, constant(113 << 23)), subnormal, normal)
    result = builder.select(builder.icmp_unsigned(">=", magnitude, constant(0x47800000)), constant(0x7C00), result)
    result = builder.select(builder.icmp_unsigned(">", magnitude, constant(0x7F800000)), constant(0x7E00), result)
    return builder.trunc(builder.or_(result, sign), _like(number, _i16))
