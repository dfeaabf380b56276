"""The functions of `elements` for the compiler: their types, and the instructions that they become.

Values are LLVM's own: a bfloat16 in memory is the 16 bits of a float32's upper half, a float16 LLVM's half, a complex number a
struct of two. What a kernel only reads is loaded as invariant memory, which the hardware keeps in its read-only cache.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir

from numconv_cuda.runtime.compiler import device, extending, types

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

intrinsic, overload = extending.intrinsic, extending.overload
_i16, _i32, _f32 = ir.IntType(16), ir.IntType(32), ir.FloatType()
_GLOBAL = 1
"""LLVM's number of the address space of device memory."""


# Not fpext and fptrunc: NVVM would make vectors of neighbouring halves, which it then calls unsupported.
_WIDEN_HALF = ir.InlineAsm(ir.FunctionType(_f32, [_i16]), "cvt.f32.f16 $0, $1;", "=f,h")
_NARROW_HALF = ir.InlineAsm(ir.FunctionType(_i16, [_f32]), "cvt.rn.f16.f32 $0, $1;", "=h,f")


def _as_global(builder: Any, pointer: Any) -> Any:
    return builder.addrspacecast(pointer, ir.PointerType(pointer.type.pointee, _GLOBAL))


def _element(context: Any, builder: Any, pointer: Any, index: Any, index_type: Any) -> Any:
    offset = context.cast(builder, index, index_type, types.int64)
    return _as_global(builder, builder.gep(pointer, [offset]))


def _widen(context: Any, builder: Any, value: Any, stored: Any, result: Any) -> Any:
    """An element in another dtype; the 16 bits of a bfloat16 where a float is asked for."""
    if stored == types.uint16 and result in types.real_domain:
        bits = builder.shl(builder.zext(value, _i32), _i32(16))
        return context.cast(builder, builder.bitcast(bits, _f32), types.float32, result)
    if stored == types.float16:
        return context.cast(builder, builder.call(_WIDEN_HALF, [value]), types.float32, result)
    return context.cast(builder, value, stored, result)


def _narrow(context: Any, builder: Any, value: Any, number: Any, stored: Any) -> Any:
    if stored == types.uint16 and number in types.real_domain:
        return _to_bfloat(builder, context.cast(builder, value, number, types.float32))
    if stored == types.float16:
        single = context.cast(builder, value, number, types.float32)
        return builder.call(_NARROW_HALF, [single])
    return context.cast(builder, value, number, stored)


def _to_bfloat(builder: Any, number: Any) -> Any:
    """The upper half of a float32, rounded to nearest even; a NaN keeps its payload's upper bits and is made quiet."""
    bits = builder.bitcast(number, _i32)
    last = builder.and_(builder.lshr(bits, _i32(16)), _i32(1))
    rounded = builder.lshr(builder.add(builder.add(bits, _i32(0x7FFF)), last), _i32(16))
    quiet = builder.or_(builder.lshr(bits, _i32(16)), _i32(0x40))
    return builder.trunc(builder.select(builder.fcmp_unordered("uno", number, number), quiet, rounded), _i16)


def _negative(builder: Any, value: Any) -> Any:
    """The number with the other sign: NVVM has no fneg."""
    return builder.fsub(value.type(-0.0), value)


@intrinsic
def load(typingctx: Any, pointer: Any, index: Any, like: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        stored = sig.args[0].dtype
        value = builder.load(_element(context, builder, args[0], args[1], sig.args[1]))
        value.set_metadata("invariant.load", builder.module.add_metadata([]))
        return _widen(context, builder, value, stored, sig.return_type)

    return like(pointer, index, like), codegen


@intrinsic
def load_wide(typingctx: Any, pointer: Any, index: Any, like: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        stored = sig.args[0].dtype
        first = _element(context, builder, args[0], args[1], sig.args[1])
        element, size = first.type.pointee, stored.bitwidth
        packed = max(32 // size, 1)  # NVVM has no vectors of eight: small elements are loaded as words that hold some each
        lanes = ir.VectorType(_i32 if packed > 1 else element, like.count // packed)
        loaded = builder.load(builder.bitcast(first, ir.PointerType(lanes, _GLOBAL)))
        loaded.align = min(_QUAD, like.count * size // 8)
        loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
        result = ir.Constant(context.get_value_type(like), ir.Undefined)
        for place in range(like.count):
            value = builder.extract_element(loaded, _i32(place // packed))
            if packed > 1:
                value = builder.trunc(builder.lshr(value, _i32(place % packed * size)), element)
            result = builder.insert_value(result, _widen(context, builder, value, stored, like.dtype), place)
        return result

    return like(pointer, index, like), codegen


@intrinsic
def store(typingctx: Any, pointer: Any, index: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        narrow = _narrow(context, builder, args[2], sig.args[2], sig.args[0].dtype)
        builder.store(narrow, _element(context, builder, args[0], args[1], sig.args[1]))
        return context.get_dummy_value()

    return types.void(pointer, index, types.unliteral(value)), codegen


@intrinsic
def atomic_max(typingctx: Any, pointer: Any, index: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        number = context.cast(builder, args[2], sig.args[2], sig.args[0].dtype)
        builder.atomic_rmw("max", _element(context, builder, args[0], args[1], sig.args[1]), number, "monotonic")
        return context.get_dummy_value()

    return types.void(pointer, index, value), codegen


@intrinsic
def shifted(typingctx: Any, pointer: Any, offset: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.gep(args[0], [context.cast(builder, args[1], sig.args[1], types.int64)])

    return pointer(pointer, offset), codegen


def _multiply_add(context: Any, builder: Any, kind: Any, a: Any, b: Any, acc: Any) -> Any:
    """The instructions of a * b + acc."""
    if kind in types.integer_domain:
        return builder.add(builder.mul(a, b), acc)
    if kind in types.real_domain:
        return builder.fma(a, b, acc)
    x, y, z = (context.make_complex(builder, kind, each) for each in (a, b, acc))
    real = builder.fma(_negative(builder, x.imag), y.imag, builder.fma(x.real, y.real, z.real))
    z.imag = builder.fma(x.imag, y.real, builder.fma(x.real, y.imag, z.imag))
    z.real = real
    return z._getvalue()


@intrinsic
def muladd(typingctx: Any, a: Any, b: Any, acc: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _multiply_add(context, builder, acc, *args)

    return acc(acc, acc, acc), codegen


@intrinsic
def add(typingctx: Any, a: Any, b: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if a in types.integer_domain:
            return builder.add(*args)
        if a in types.real_domain:
            return builder.fadd(*args)
        x, y = (context.make_complex(builder, a, arg) for arg in args)
        x.real, x.imag = builder.fadd(x.real, y.real), builder.fadd(x.imag, y.imag)
        return x._getvalue()

    return a(a, a), codegen


@intrinsic
def quotient(typingctx: Any, a: Any, b: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if a in types.real_domain:
            return builder.fdiv(*args)
        x, y = (context.make_complex(builder, a, arg) for arg in args)
        x.real, x.imag = builder.fdiv(x.real, y.real), builder.fdiv(x.imag, y.real)
        return x._getvalue()

    return a(a, a), codegen


@intrinsic
def conj(typingctx: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if value not in types.complex_domain:
            return args[0]
        pair = context.make_complex(builder, value, args[0])
        pair.imag = _negative(builder, pair.imag)
        return pair._getvalue()

    return value(value), codegen


@intrinsic
def cast(typingctx: Any, value: Any, like: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.cast(builder, args[0], sig.args[0], sig.return_type)

    return like(value, like), codegen


def _index_arithmetic(instruction: str) -> Any:
    """Unsigned division in the type of the second number: 32 bits wherever a problem's sizes fit, since 64 cost much more."""

    @intrinsic
    def arithmetic(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            first = context.cast(builder, args[0], sig.args[0], sig.args[1])
            result = getattr(builder, instruction)(first, args[1])
            return context.cast(builder, result, sig.args[1], types.int64)

        return types.int64(a, types.unliteral(b)), codegen

    return arithmetic


div, mod = _index_arithmetic("udiv"), _index_arithmetic("urem")


@intrinsic
def replaced(typingctx: Any, values: Any, position: Any, value: Any) -> Any:
    """Selects instead of a write at a variable place: once the loop over the axes is unrolled they vanish."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        result, (found, place, number) = args[0], args
        place = context.cast(builder, place, sig.args[1], types.int64)
        number = context.cast(builder, number, sig.args[2], values.dtype)
        for axis in range(values.count):
            here = builder.icmp_signed("==", place, ir.IntType(64)(axis))
            kept = builder.extract_value(found, axis)
            result = builder.insert_value(result, builder.select(here, number, kept), axis)
        return result

    return values(values, position, value), codegen


# --- shared memory and register tiles ------------------------------------------------------------------------------------------


_SHARED = 3
"""LLVM's number of the address space of a block's shared memory."""
_QUAD = 16
"""Bytes of the widest load from shared memory."""


def _shared_element(context: Any, builder: Any, array_type: Any, array: Any, index: Any, index_type: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    data = builder.addrspacecast(data, ir.PointerType(data.type.pointee, _SHARED))
    return builder.gep(data, [context.cast(builder, index, index_type, types.int64)])


@intrinsic
def poke(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        number = context.cast(builder, args[2], sig.args[2], sig.args[0].dtype)
        builder.store(number, _shared_element(context, builder, sig.args[0], args[0], args[1], sig.args[1]))
        return context.get_dummy_value()

    return types.void(array, index, value), codegen


@intrinsic
def quads(typingctx: Any, array: Any, index: Any, step: Any, like: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        first = context.cast(builder, args[1], sig.args[1], types.int64)
        stride = context.cast(builder, args[2], sig.args[2], types.int64)
        result = ir.Constant(context.get_value_type(sig.return_type), ir.Undefined)
        for block in range(like.count // 4):
            place = builder.add(first, builder.mul(stride, ir.IntType(64)(block)))
            if like.dtype in types.complex_domain:
                for lane in range(4):
                    element = _shared_element(
                        context, builder, sig.args[0], args[0], builder.add(place, ir.IntType(64)(lane)), types.int64
                    )
                    result = builder.insert_value(result, builder.load(element), block * 4 + lane)
                continue
            element = _shared_element(context, builder, sig.args[0], args[0], place, types.int64)
            vector = ir.VectorType(element.type.pointee, 4)
            loaded = builder.load(builder.bitcast(element, ir.PointerType(vector, _SHARED)))
            loaded.align = min(_QUAD, 4 * like.dtype.bitwidth // 8)
            for lane in range(4):
                result = builder.insert_value(result, builder.extract_element(loaded, _i32(lane)), block * 4 + lane)
        return result

    return like(array, index, step, like), codegen


@intrinsic
def repeated(typingctx: Any, value: Any, count: Any) -> Any:
    if not isinstance(count, types.IntegerLiteral):
        return None  # the compiler asks again with the literal

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        result = ir.Constant(context.get_value_type(sig.return_type), ir.Undefined)
        for place in range(sig.return_type.count):
            result = builder.insert_value(result, args[0], place)
        return result

    return types.UniTuple(types.unliteral(value), count.literal_value)(types.unliteral(value), count), codegen


@intrinsic
def unpack(typingctx: Any, array: Any, values: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        for place in range(values.count):
            builder.store(builder.extract_value(args[1], place), builder.gep(data, [_i32(place)]))
        return context.get_dummy_value()

    return types.void(array, values), codegen


def _outer(*, second_leads: bool) -> Any:
    """A product of each element of `a` and each of `b`; which of both comes first matters to complex numbers alone."""

    @intrinsic
    def product(typingctx: Any, acc: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            result = args[0]
            rows = [builder.extract_value(args[1], row) for row in range(a.count)]
            columns = [builder.extract_value(args[2], column) for column in range(b.count)]
            for row, x in enumerate(rows):
                for column, y in enumerate(columns):
                    place = row * b.count + column
                    pair = (y, x) if second_leads else (x, y)
                    value = _multiply_add(context, builder, acc.dtype, *pair, builder.extract_value(args[0], place))
                    result = builder.insert_value(result, value, place)
            return result

        return acc(acc, a, b), codegen

    return product


outer, outer_second = _outer(second_leads=False), _outer(second_leads=True)


@intrinsic
def row_muladd(typingctx: Any, acc: Any, values: Any, there: Any, factor: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        result = args[0]
        for place in range(acc.count):
            old, value, flag = (builder.extract_value(args[i], place) for i in range(3))
            if acc.dtype in types.integer_domain:
                new = builder.add(builder.mul(value, args[3]), old)
            else:
                new = builder.fma(value, args[3], old)
            present = builder.icmp_signed("!=", flag, flag.type(0))
            result = builder.insert_value(result, builder.select(present, new, old), place)
        return result

    return acc(acc, values, there, acc.dtype), codegen


@intrinsic
def shift_in(typingctx: Any, values: Any, value: Any, ahead: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        new = context.cast(builder, args[1], sig.args[1], values.dtype)
        old = [builder.extract_value(args[0], place) for place in range(values.count)]
        forward = context.is_true(builder, sig.args[2], args[2])
        result = args[0]
        for place, (left, right) in enumerate(zip([*old[1:], new], [new, *old[:-1]], strict=True)):
            result = builder.insert_value(result, builder.select(forward, left, right), place)
        return result

    return values(values, types.unliteral(value), ahead), codegen


@device
def power(base, exponent):
    """`math.pow` in the dtype of the base."""
    return math.pow(base, exponent)


def activated(value: Any, code: Any) -> Any:
    """For the compiler: `_activated` gives the source by the type."""
    raise NotImplementedError("called by kernels only")


def is_nan(value: Any) -> Any:
    """For the compiler, as above."""
    raise NotImplementedError("called by kernels only")


def magnitude(value: Any) -> Any:
    """For the compiler, as above."""
    raise NotImplementedError("called by kernels only")


@overload(is_nan, inline="always")
def _is_nan(value):
    return (lambda value: value != value) if value in types.real_domain else (lambda value: False)


@overload(magnitude, inline="always")
def _magnitude(value):
    return lambda value: math.fabs(value)  # noqa: PLW0108 - its source is what is compiled


@overload(activated)
def _activated(value, code):
    if value in types.complex_domain:
        return lambda value, code: value
    if value in types.integer_domain:

        def integer(value, code):
            return value if code == 0 or value > 0 else cast(0, value)

        return integer

    def real(value, code):
        if code == 0:
            return value
        if code == 1:
            return value if value > 0 or value != value else cast(0, value)
        if code == 2:
            return quotient(value, add(cast(1, value), math.exp(-value)))
        return cast(0.5, value) * value * math.erfc(value * cast(-0.7071067811865476, value))

    return real
