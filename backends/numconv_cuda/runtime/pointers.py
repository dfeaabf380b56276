"""Pointers as arguments of kernels: an address and the dtype behind it, without the shape and strides of Numba's arrays.

Numba passes an array as seven and more numbers and finds each out anew at every launch. Kernels here know the layout of their
arrays from the problem, so that an address suffices.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from numconv.plugin import np_dtype

from .compiler import SIMULATED, extending, type_of, types

__all__ = ["Pointer", "storage_type"]


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


if not SIMULATED:

    @extending.typeof_impl.register(Pointer)
    def _(value: Pointer, context: Any) -> Any:
        return _pointer_type(value.dtype)
