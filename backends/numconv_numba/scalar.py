"""Typed loads, stores and arithmetic for kernels, each a single step with the rounding that numconv promises.

Everything here is used inside jitted code. Where a dtype is asked for, give a `compiler.Tag` with its name. Values have the
dtype's Numba type, except float16 and bfloat16, which are their bits in a uint16 until they are widened, and pairs of
bfloat16, which are moved only.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

from .compiling.compiler import AddressType, TagType, address_type, intrinsic
from .halves import BFLOAT_PARTS, HALVES, narrow_half, take_part, widen_half

__all__ = [
    "PAIRS",
    "ROW_PAIRS",
    "add",
    "address",
    "as_integer",
    "cast",
    "conj",
    "inlined",
    "is_null",
    "load",
    "move",
    "muladd",
    "one_by_one",
    "pointer",
    "prefetch",
    "store",
    "wide_vectors",
    "zero",
]

PAIRS = "bfloat16x2"
"""Two bfloat16 numbers that are multiplied together, of neighbouring channels, the first in the lower half."""
ROW_PAIRS = "bfloat16x2 in rows"
"""The same of neighbouring results of a row, which read places of x that lie a stride apart."""
_DTYPES = {
    **dict.fromkeys((PAIRS, ROW_PAIRS), types.uint32),
    **dict.fromkeys(HALVES, types.uint16),
    **dict.fromkeys(BFLOAT_PARTS, types.float32),
    **{name: getattr(types, name) for name in ("float32", "float64", "complex64", "complex128")},
    **{f"{sign}int{bits}": getattr(types, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_i32 = ir.IntType(32)


def storage_type(tag: Any) -> types.Type:
    """The Numba type of a stored element."""
    if not isinstance(tag, TagType) or tag.value not in _DTYPES:
        raise TypingError(f"{tag} is not the tag of a dtype")
    return _DTYPES[tag.value]


def value_type(tag: Any) -> types.Type:
    """The Numba type in which values of a dtype are computed."""
    found = storage_type(tag)
    if tag.value in HALVES:
        raise TypingError(f"{tag.value} is a storage dtype: compute in float32")
    return found


def _alignment(dtype: Any) -> int:
    part = getattr(dtype, "underlying_float", dtype)
    return int(part.bitwidth // 8)


class _AddressArithmetic(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        if len(args) == 2 and isinstance(args[0], AddressType) and isinstance(args[1], types.Integer):
            return signature(address_type, address_type, types.int64)
        return None


@infer_global(operator.add)
class _AddressAdd(_AddressArithmetic):
    pass


@infer_global(operator.sub)
class _AddressSub(_AddressArithmetic):
    pass


@lower_builtin(operator.add, AddressType, types.Integer)
def _lower_add(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.gep(args[0], [args[1]])


@lower_builtin(operator.sub, AddressType, types.Integer)
def _lower_sub(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.gep(args[0], [builder.neg(args[1])])


@intrinsic
def address(typingctx: Any, integer: Any) -> Any:
    """An integer as an Address. Do it outside the loops: inside, it hides from LLVM how the address moves."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return address_type(types.int64), codegen


@intrinsic
def as_integer(typingctx: Any, where: Any) -> Any:
    """An Address as an integer."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.int64(address_type), codegen


@intrinsic
def is_null(typingctx: Any, where: Any) -> Any:
    """Whether an address is 0: an array that is absent."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return cgutils.is_null(builder, args[0])

    return types.boolean(address_type), codegen


@intrinsic
def pointer(typingctx: Any, where: Any, dtype: Any) -> Any:
    """An address as Numba's typed pointer, for code that emits its own vector loads."""
    result = types.CPointer(storage_type(dtype))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(result))

    return result(address_type, dtype), codegen


def _check_address(where: Any) -> None:
    if not isinstance(where, AddressType):
        raise TypingError(f"expected an Address, not {where}: convert an integer with address()")


@intrinsic
def load(typingctx: Any, where: Any, dtype: Any, acc: Any = None) -> Any:
    """The element at an address: as stored, or widened to the dtype `acc`."""
    _check_address(where)
    stored = storage_type(dtype)
    result = stored if acc is None else value_type(acc)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        loaded = builder.load(builder.bitcast(args[0], context.get_data_type(stored).as_pointer()))
        loaded.align = _alignment(stored)
        return loaded if acc is None else _widen(context, builder, loaded, dtype.value, result)

    return result(where, dtype, types.none if acc is None else acc), codegen


@intrinsic
def store(typingctx: Any, where: Any, number: Any, dtype: Any) -> Any:
    """Write a value at an address, rounded to nearest even or wrapped modulo 2^n."""
    _check_address(where)
    stored = storage_type(dtype)
    number = types.unliteral(number)
    if dtype.value in HALVES and number != types.float32:
        raise TypingError(f"a {dtype.value} is rounded from a float32, not from a {number}")

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        narrow = _narrow(context, builder, args[1], number, dtype.value)
        target = builder.bitcast(args[0], context.get_data_type(stored).as_pointer())
        builder.store(narrow, target).align = _alignment(stored)
        return context.get_dummy_value()

    return types.void(where, number, dtype), codegen


@intrinsic
def move(typingctx: Any, target: Any, source: Any, dtype: Any) -> Any:
    """Copy an element as it is stored."""
    _check_address(target)
    _check_address(source)
    stored = storage_type(dtype)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = context.get_data_type(stored).as_pointer()
        loaded = builder.load(builder.bitcast(args[1], kind))
        loaded.align = _alignment(stored)
        builder.store(loaded, builder.bitcast(args[0], kind)).align = _alignment(stored)
        return context.get_dummy_value()

    return types.void(target, source, dtype), codegen


@intrinsic
def cast(typingctx: Any, number: Any, dtype: Any) -> Any:
    """A value in another dtype, rounded to nearest even."""
    result = value_type(dtype)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.cast(builder, args[0], number, result)

    return result(number, dtype), codegen


@intrinsic
def zero(typingctx: Any, dtype: Any) -> Any:
    """The zero of a dtype."""
    result = value_type(dtype)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return cgutils.get_null_value(context.get_value_type(result))

    return result(dtype), codegen


@intrinsic
def conj(typingctx: Any, number: Any) -> Any:
    """The complex conjugate; a real number itself."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if number not in types.complex_domain:
            return args[0]
        pair = context.make_complex(builder, number, args[0])
        pair.imag = builder.fneg(pair.imag)
        return pair._getvalue()

    return number(number), codegen


def _check_same(operation: str, *operands: types.Type) -> None:
    if len(set(operands)) > 1:
        raise TypingError(f"{operation} takes operands of one type, not {', '.join(map(str, operands))}")


@intrinsic
def add(typingctx: Any, a: Any, b: Any) -> Any:
    """The sum in the operands' own type: integers wrap."""
    _check_same("add", a, b)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if a in types.integer_domain:
            return builder.add(*args)
        if a in types.real_domain:
            return builder.fadd(*args)
        left, right = (context.make_complex(builder, a, arg) for arg in args)
        left.real, left.imag = builder.fadd(left.real, right.real), builder.fadd(left.imag, right.imag)
        return left._getvalue()

    return a(a, b), codegen


@intrinsic
def muladd(typingctx: Any, a: Any, b: Any, acc: Any) -> Any:
    """a * b + acc in the operands' own type.

    Floats: one rounding, on every processor. Integers wrap. Complex: the real part is
    ``fma(-a.imag, b.imag, fma(a.real, b.real, acc.real))``, the imaginary part
    ``fma(a.imag, b.real, fma(a.real, b.imag, acc.imag))``.
    """
    _check_same("muladd", a, b, acc)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if a in types.integer_domain:
            return builder.add(builder.mul(args[0], args[1]), args[2])
        if a in types.real_domain:
            return builder.fma(*args)
        x, y, z = (context.make_complex(builder, a, arg) for arg in args)
        real = builder.fma(builder.fneg(x.imag), y.imag, builder.fma(x.real, y.real, z.real))
        z.imag = builder.fma(x.imag, y.real, builder.fma(x.real, y.imag, z.imag))
        z.real = real
        return z._getvalue()

    return a(a, b, acc), codegen


@intrinsic
def wide_vectors(typingctx: Any) -> Any:
    """Let LLVM's vectoriser use 512-bit registers in the function that contains this call; without it, Intel gets 256 bits.

    The function is not inlined, since its caller's loops need not have the attribute.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        # llvmlite's own add() knows the attributes without a value only
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def inlined(typingctx: Any) -> Any:
    """Put the function that contains this call into its callers, where its arguments may be constants."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.function.attributes.add("alwaysinline")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def prefetch(typingctx: Any, place: Any) -> Any:
    """Bring a line of memory into the caches; an address that is not mapped does no harm."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [args[0].type, _i32, _i32, _i32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [args[0], _i32(0), _i32(3), _i32(1)])
        return context.get_dummy_value()

    return types.void(address_type), codegen


@intrinsic
def one_by_one(typingctx: Any) -> Any:
    """Keep LLVM from vectorising the loop that contains this call.

    Of divisions and loads with a stride it makes vectors element by element: for 64 lanes of 8 bits that took 36 s to compile.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.asm(ir.FunctionType(ir.VoidType(), []), "", "", [], True)
        return context.get_dummy_value()

    return types.void(), codegen


def _widen(context: Any, builder: Any, loaded: Any, dtype: str, result: types.Type) -> Any:
    if dtype in BFLOAT_PARTS:
        return context.cast(builder, take_part(builder, loaded, dtype), types.float32, result)
    if dtype not in HALVES:
        return context.cast(builder, loaded, _DTYPES[dtype], result)
    return context.cast(builder, widen_half(context, builder, loaded, dtype), types.float32, result)


def _narrow(context: Any, builder: Any, number: Any, number_type: types.Type, dtype: str) -> Any:
    if dtype in HALVES:
        return narrow_half(context, builder, number, dtype)
    return context.cast(builder, number, number_type, _DTYPES[dtype])
