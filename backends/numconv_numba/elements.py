"""Small typed helpers of kernels beside those of `scalar`: sizes, scratch memory."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .compiling.compiler import Tag, TagType, address_type, helper, intrinsic
from .compiling.tags import constant
from .scalar import PAIRS, ROW_PAIRS, address, as_integer, pointer, storage_type

__all__ = ["INT64", "arithmetic", "element", "held", "in_rows", "itemsize", "memory", "numbers", "release", "same", "scratch"]

_LINE = 64  # bytes of a cache line

INT64 = Tag("int64")


@intrinsic
def itemsize(typingctx: Any, dtype: Any) -> Any:
    """Bytes of a dtype's element, as a constant."""
    stored = storage_type(dtype)
    size = int(stored.bitwidth) // 8  # type: ignore[attr-defined]

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.get_constant(types.int64, size)

    return types.int64(dtype), codegen


@constant
def same(one: Any, other: Any) -> bool:
    """Whether two tags are equal, as a constant."""
    return bool(one == other)


@constant
def held(factor: Any) -> int:
    """How many channels an element of factors holds, as a constant: 2 for pairs, else 1."""
    return 2 if factor == PAIRS else 1


@constant
def in_rows(factor: Any) -> bool:
    """Whether factors are pairs of neighbouring results, as a constant."""
    return bool(factor == ROW_PAIRS)


@intrinsic
def element(typingctx: Any, factor: Any) -> Any:
    """The tag of the dtype in which factors lie in memory, one by one: bfloat16 for pairs, else their own."""
    return TagType("bfloat16" if factor.value in (PAIRS, ROW_PAIRS) else factor.value)(factor), _no_value


@intrinsic
def arithmetic(typingctx: Any, factor: Any) -> Any:
    """The tag of the dtype in which products of factors are summed: float32 for pairs, else their own."""
    return TagType("float32" if factor.value in (PAIRS, ROW_PAIRS) else factor.value)(factor), _no_value


def _no_value(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return context.get_dummy_value()


@intrinsic
def scratch(typingctx: Any, size: Any) -> Any:
    """The address of `size` bytes, and some for alignment, for a body's own use: see `memory` and `release`.

    A process without memory for them ends: a body can neither raise nor leave results unwritten.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(cgutils.voidptr_t, [args[0].type])
        allocate = cgutils.get_or_insert_function(builder.module, kind, "NRT_Allocate")
        found = builder.call(allocate, [builder.add(args[0], args[0].type(_LINE))])
        with builder.if_then(cgutils.is_null(builder, found), likely=False):
            builder.call(builder.module.declare_intrinsic("llvm.trap", fnty=ir.FunctionType(ir.VoidType(), [])), [])
        return found

    return address_type(types.int64), codegen


@helper
def memory(allocated):
    """The address of a cache line's start, the first in what `scratch` allocated."""
    return address((as_integer(allocated) + (_LINE - 1)) & -_LINE)


@helper
def numbers(allocated, first):
    """A pointer to the int64 numbers in what `scratch` allocated, from the one at `first`."""
    return pointer(memory(allocated) + 8 * first, INT64)


@intrinsic
def release(typingctx: Any, allocated: Any) -> Any:
    """Free what `scratch` allocated, after its last use."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "NRT_Free"), args)
        return context.get_dummy_value()

    return types.void(address_type), codegen
