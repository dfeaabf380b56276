"""Small typed helpers of kernels beside those of `scalar`: sizes, memory that must stay alive."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from .compiling.compiler import Tag, TagType, helper, intrinsic
from .compiling.tags import constant
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
