"""Pointers as arguments of kernels: an address and the dtype behind it, without the shape and strides of Numba's arrays.

Numba passes an array as seven and more numbers and finds each out anew at every launch. Kernels here know the layout of their
arrays from the problem, so that an address suffices. A launch finds the compiled kernel by `kind`.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, NamedTuple

import numpy as np

from numconv.plugin import np_dtype

from .compiler import extending, type_of, types
from .geometry import Geometry

__all__ = ["Pointer", "kind", "pass_cheaply", "storage_type"]


class Pointer(NamedTuple):
    """The address of an array's first element."""

    address: int
    dtype: str

    def shifted(self, offset: int) -> Pointer:
        """The pointer moved by so many elements."""
        return Pointer(self.address + offset * np_dtype(self.dtype).itemsize, self.dtype)


def storage_type(dtype: str) -> Any:
    """Numba's type of an element in memory; a bfloat16 is stored as the 16 bits that it is."""
    return types.uint16 if dtype == "bfloat16" else type_of(np.dtype(dtype).type(0))


@functools.cache
def _pointer_type(dtype: str) -> Any:
    return types.CPointer(storage_type(dtype))


@extending.typeof_impl.register(Pointer)
def _(value: Pointer, context: Any) -> Any:
    return _pointer_type(value.dtype)


def kind(value: Any) -> Any:
    """What tells arguments of different types apart, in less time than it takes to find the types."""
    if isinstance(value, Pointer):
        return value.dtype
    if isinstance(value, Geometry):
        return type(value.n), len(value.size), type(value.w), len(value.x.spatial), len(value.w.spatial), len(value.y.spatial)
    return tuple(map(kind, value)) if isinstance(value, tuple) else type(value)


def pass_cheaply(compiled: Any) -> None:
    """Make a compiled kernel of numba-cuda pass pointers as integers, and the numbers of a geometry as they were found once.

    What numba-cuda does with every launch is to convert each of a geometry's forty numbers.
    """
    otherwise = compiled._prepare_args

    def prepare(ty: Any, value: Any, stream: Any, retr: Any, passed: list[Any]) -> None:
        if isinstance(value, Pointer):
            passed.append(ctypes.c_uint64(value.address))
        elif isinstance(value, Geometry):
            passed.extend(_numbers(value, narrow=type(value.n) is np.int32))
        else:
            otherwise(ty, value, stream, retr, passed)

    compiled._prepare_args = prepare


@functools.lru_cache(maxsize=1024)
def _numbers(values: tuple[Any, ...], *, narrow: bool) -> tuple[Any, ...]:
    """The integers of nested tuples, in order, as the driver takes them: narrow ones have 32 bits, the others 64."""
    integer = ctypes.c_int32 if narrow else ctypes.c_int64
    found: list[Any] = []
    for value in values:
        found.extend(_numbers(value, narrow=narrow) if isinstance(value, tuple) else (integer(int(value)),))
    return tuple(found)
