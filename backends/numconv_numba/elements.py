"""Small typed helpers of kernels beside those of `scalar`: sizes, memory that must stay alive."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from .compiler import Tag, TagType, helper, intrinsic
from .scalar import PAIRS, ROW_PAIRS, address, pointer, storage_type

__all__ = ["INT64", "arithmetic", "element", "held", "in_rows", "itemsize", "keep", "memory", "numbers", "same", "scratch"]

INT64 = Tag("int64")


@intrinsic
def itemsize(typingctx: Any, dtype: Any) -> Any:
    """Bytes of a dtype's element, as a constant."""
    stored = storage_type(dtype)
    size = int(stored.bitwidth) // 8  # type: ignore[attr-defined]

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.get_constant(types.int64, size)

    return types.int64(dtype), codegen


@intrinsic
def same(typingctx: Any, one: Any, other: Any) -> Any:
    """Whether two tags are equal, as a constant."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.get_constant(types.boolean, one.value == other.value)

    return types.boolean(one, other), codegen


@intrinsic
def held(typingctx: Any, factor: Any) -> Any:
    """How many channels an element of factors holds, as a constant: 2 for pairs, else 1."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.get_constant(types.int64, 2 if factor.value == PAIRS else 1)

    return types.int64(factor), codegen


@intrinsic
def in_rows(typingctx: Any, factor: Any) -> Any:
    """Whether factors are pairs of neighbouring results, as a constant."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.get_constant(types.boolean, factor.value == ROW_PAIRS)

    return types.boolean(factor), codegen


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


@helper
def scratch(size):
    """An array of `size` bytes, and some for alignment, for a body's own use: see `memory` and `keep`."""
    return np.empty(size + 64, np.uint8)


@helper
def memory(array):
    """The address of a scratch array, on a cache line's start; `keep` must name the array after the last use of the address."""
    return address((array.ctypes.data + 63) & ~63)


@helper
def numbers(array, first):
    """A pointer to the int64 numbers of a scratch array, from the one at `first`.

    Kernels index tables through pointers: an array that is passed on to a helper costs atomic reference counts.
    """
    return pointer(memory(array) + 8 * first, INT64)


@helper
def keep(array):
    """Does nothing: naming an array here keeps Numba from freeing it before this line."""
