"""Vectors in memory as another dtype than that of the arithmetic: converted as they are loaded and stored."""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from numconv_numba.halves import BFLOAT_PARTS, HALVES, narrow_half, take_part, widen_half

from .emit import Emitter, rounded_type

__all__ = ["FLUSHED", "Memory", "PairMemory", "stored_bytes"]

_i16, _i32 = ir.IntType(16), ir.IntType(32)
FLUSHED = "bfloat16, flushed"
"""bfloat16 as AVX512-BF16 rounds it, 16 numbers at a time: to nearest even, but to zero what is smaller than 2**-126."""
_SHORT, _SINGLE = (*HALVES, FLUSHED), ("float32", *BFLOAT_PARTS)
_ELEMENTS = {**dict.fromkeys(_SHORT, _i16), **dict.fromkeys(_SINGLE, ir.FloatType()), "float64": ir.DoubleType()}
_LETTERS = {**dict.fromkeys(_SHORT, "i16"), **dict.fromkeys(_SINGLE, "f32"), "float64": "f64"}


def stored_bytes(dtype: str) -> int:
    """Of an element in memory."""
    return {"i16": 2, "f32": 4, "f64": 8}[_LETTERS[dtype]]


class Memory:
    """Loads and stores of as many elements as a vector has lanes: what is loaded, and what is to be stored, are vectors of sums.

    Parameters
    ----------
    context, builder
        Of the function under construction.
    emit : Emitter
        Of the arithmetic.
    dtype : str
        As which elements lie in memory: no wider than the arithmetic; `FLUSHED` for stores only, `BFLOAT_PARTS` for loads.

    Attributes
    ----------
    item, width : int
        Bytes of an element, and of as many as a vector has lanes.
    """

    def __init__(self, context: Any, builder: Any, emit: Emitter, dtype: str):
        self._context, self._builder, self._emit, self._dtype = context, builder, emit, dtype
        self.item = stored_bytes(dtype)
        self.width = emit.lanes * self.item
        self._stored = ir.VectorType(_ELEMENTS[dtype], emit.lanes)

    def load(self, address: Any) -> Any:
        """A vector."""
        return self._widened(self.bits(address))

    def load_masked(self, address: Any, mask: Any) -> Any:
        """A vector with zeros where the mask is off; nothing is read there."""
        return self._widened(self.bits_masked(address, mask))

    def store(self, vector: Any, address: Any) -> None:
        """Write a vector, rounded to nearest even."""
        self._put(self._narrowed(vector), self._pointer(address))

    def store_masked(self, vector: Any, address: Any, mask: Any) -> None:
        """Write the lanes of a mask, rounded to nearest even."""
        pointer, narrow = self._pointer(address), self._narrowed(vector)
        kind = ir.FunctionType(ir.VoidType(), [self._stored, pointer.type, _i32, mask.type])
        function = cgutils.get_or_insert_function(self._builder.module, kind, self._name("store"))
        arguments = [narrow, pointer, _i32(self.item), mask]
        whole = functools.partial(self._put, narrow, pointer)
        self._emit.whole_or(mask, self.item, whole, lambda: self._builder.call(function, arguments), write=True)

    def bits(self, address: Any) -> Any:
        """A vector as it lies in memory."""
        loaded = self._builder.load(self._pointer(address))
        loaded.align = self.item
        return loaded

    def bits_masked(self, address: Any, mask: Any) -> Any:
        """A vector as it lies in memory, with zeros where the mask is off; nothing is read there."""
        pointer = self._pointer(address)
        kind = ir.FunctionType(self._stored, [pointer.type, _i32, mask.type, self._stored])
        function = cgutils.get_or_insert_function(self._builder.module, kind, self._name("load"))
        arguments = [pointer, _i32(self.item), mask, ir.Constant(self._stored, None)]
        whole = functools.partial(self.bits, address)
        return self._emit.whole_or(mask, self.item, whole, lambda: self._builder.call(function, arguments), write=False)

    def _put(self, narrow: Any, pointer: Any) -> None:
        self._builder.store(narrow, pointer).align = self.item

    def _pointer(self, address: Any) -> Any:
        return self._builder.bitcast(address, self._stored.as_pointer())

    def _name(self, what: str) -> str:
        return f"llvm.masked.{what}.v{self._emit.lanes}{_LETTERS[self._dtype]}.p0"

    def _widened(self, bits: Any) -> Any:
        if self._dtype in HALVES:
            bits = widen_half(self._context, self._builder, bits, self._dtype)
        if self._dtype in BFLOAT_PARTS:
            bits = take_part(self._builder, bits, self._dtype)
        return bits if bits.type == self._emit.vector else self._builder.fpext(bits, self._emit.vector)

    def _narrowed(self, vector: Any) -> Any:
        if self._dtype in HALVES:
            return narrow_half(self._context, self._builder, vector, self._dtype)
        return self._flushed(vector) if self._dtype == FLUSHED else vector

    def _flushed(self, vector: Any) -> Any:
        kind = ir.FunctionType(rounded_type(self._emit.lanes), [vector.type])
        function = cgutils.get_or_insert_function(self._builder.module, kind, "llvm.x86.avx512bf16.cvtneps2bf16.512")
        return self._builder.bitcast(self._builder.call(function, [vector]), self._stored)


class PairMemory(Memory):
    """Loads pairs: an element of one row of bfloat16 numbers, or parts of float32 numbers, and the one below it.

    Parameters
    ----------
    context, builder, emit, dtype
        As `Memory` has them.
    row : int64
        Bytes to the row below.
    complete : bool
        Whether there is one; else its numbers are zero.
    """

    def __init__(self, context: Any, builder: Any, emit: Emitter, dtype: str, row: Any, complete: Any):
        super().__init__(context, builder, emit, dtype)
        self._row, self._complete = row, complete

    def load(self, address: Any) -> Any:
        """A vector of pairs, of which the second numbers are zero in the row that is not there."""
        builder = self._builder
        below = self.bits(self._emit.at(address, builder.select(self._complete, self._row, ir.Constant(self._row.type, 0))))
        return self._joined(self.bits(address), builder.select(self._complete, below, ir.Constant(below.type, None)))

    def load_masked(self, address: Any, mask: Any) -> Any:
        """A vector of pairs, zeros where the mask is off and in the row that is not there."""
        return self.load_both(address, mask, self._emit.both(mask, self._complete))

    def load_both(self, address: Any, mask: Any, below: Any) -> Any:
        """A vector of pairs, zeros where the mask of their first or their second numbers is off."""
        second = self.bits_masked(self._emit.at(address, self._row), below)
        return self._joined(self.bits_masked(address, mask), second)

    def _joined(self, first: Any, second: Any) -> Any:
        builder, words = self._builder, ir.VectorType(_i32, self._emit.lanes)
        half = ir.Constant(words, [16] * self._emit.lanes)
        if self._dtype in BFLOAT_PARTS:
            low, high = (builder.bitcast(take_part(builder, each, self._dtype), words) for each in (first, second))
            joined = builder.or_(builder.lshr(low, half), builder.shl(builder.lshr(high, half), half))
        else:
            joined = builder.or_(builder.zext(first, words), builder.shl(builder.zext(second, words), half))
        return builder.bitcast(joined, self._emit.vector)
