"""Register tiles: the innermost loops of dense convolution, emitted as LLVM vector code.

A tile holds `vectors` x `channels` accumulators in registers: pixels of `vectors` vectors of `lanes` elements, for `channels`
output channels. For each term it loads the pixels once and multiplies them with one broadcast weight a channel, so that loads stay
below what a processor does beside its multiply-adds. The shape travels in tags, never in a closure: a closure would miss the
disk cache.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target

from .compiler import AddressType, TagType, intrinsic
from .scalar import value_type

__all__ = ["Tile", "multiply_tile", "tile_channels", "tile_for", "tile_pixels", "write_vectors"]


class Tile(NamedTuple):
    """The shape of a register tile."""

    vectors: int
    channels: int
    lanes: int


# (bytes of a vector, tile shapes): those with more channels first. Accumulators, pixels and one weight fit the registers.
_WIDE_REGISTERS = ((3, 8), (6, 4), (8, 2), (8, 1))
_FEW_REGISTERS = ((3, 4), (5, 2), (8, 1))


@functools.cache
def _machine() -> tuple[int, tuple[tuple[int, int], ...]]:
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    words = features.split(",")
    if "+avx512f" in words:
        return 64, _WIDE_REGISTERS
    if "+avx2" in words:
        return 32, _FEW_REGISTERS
    return 16, _WIDE_REGISTERS if triple.startswith(("aarch64", "arm64")) else _FEW_REGISTERS


def tile_for(dtype: str, channels: int) -> Tile:
    """The tile for sums of this dtype and at most this many output channels."""
    width, shapes = _machine()
    vectors, used = next(shape for shape in shapes if shape[1] <= channels)
    return Tile(vectors, used, width // np.dtype(dtype).itemsize)


@intrinsic
def tile_pixels(typingctx: Any, shape: Any) -> Any:
    """The pixels of a tile, as a constant."""
    return types.int64(shape), lambda context, *_: context.get_constant(types.int64, shape.value[0] * shape.value[2])


@intrinsic
def tile_channels(typingctx: Any, shape: Any) -> Any:
    """The output channels of a tile, as a constant."""
    return types.int64(shape), lambda context, *_: context.get_constant(types.int64, shape.value[1])


def _check(tags: tuple[Any, ...], addresses: tuple[Any, ...]) -> None:
    assert all(isinstance(tag, TagType) for tag in tags), tags
    assert all(isinstance(each, AddressType) for each in addresses), addresses


@intrinsic
def multiply_tile(
    typingctx: Any,
    shape: Any,
    dtype: Any,
    x: Any,
    x_taps: Any,
    w: Any,
    w_taps: Any,
    y: Any,
    c: Any,
    taps: Any,
    x_c: Any,
    w_c: Any,
    w_k: Any,
    y_k: Any,
    resume: Any,
) -> Any:
    """y[k, i] = the sum over c and taps t of x[c, i + t] * w[k, c, t]: one chain of fused multiply-adds each, in this order.

    Parameters
    ----------
    shape : Tag
        A `Tile`: i < vectors * lanes, k < channels.
    dtype : Tag
        Of all three arrays.
    x, w, y : Address
        x and y are contiguous in i.
    x_taps, w_taps : Address
        Of int64 tables: the byte offset of each tap in x and in w.
    c, taps : int
        Number of channels and of taps.
    x_c, w_c, w_k, y_k : int
        Byte strides.
    resume : bool
        Go on with the sums that y holds, instead of zero.
    """
    _check((shape, dtype), (x, x_taps, w, w_taps, y))
    vectors, channels, lanes = shape.value
    element = ir.DoubleType() if value_type(dtype) == types.float64 else ir.FloatType()
    width = lanes * (8 if isinstance(element, ir.DoubleType) else 4)
    signature = types.void(shape, dtype, x, x_taps, w, w_taps, y, *[types.int64] * 6, types.boolean)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, x_taps, w, w_taps, y, c, taps, x_c, w_c, w_k, y_k, resume = args
        emit = _Emitter(builder, element, lanes)
        sums = [[emit.accumulator() for _ in range(vectors)] for _ in range(channels)]
        rows = [emit.at(y, builder.mul(y_k, ir.Constant(y_k.type, k))) for k in range(channels)]
        with builder.if_then(resume):
            for k in range(channels):
                for v in range(vectors):
                    builder.store(emit.load(emit.at(rows[k], v * width)), sums[k][v])
        steps = [builder.mul(w_k, ir.Constant(w_k.type, k)) for k in range(channels)]
        with cgutils.for_range(builder, c) as channel:
            x_row, w_row = emit.at(x, builder.mul(channel.index, x_c)), emit.at(w, builder.mul(channel.index, w_c))
            with cgutils.for_range(builder, taps) as tap:
                x_tap = emit.at(x_row, emit.offset(x_taps, tap.index))
                w_tap = emit.at(w_row, emit.offset(w_taps, tap.index))
                pixels = [emit.load(emit.at(x_tap, v * width)) for v in range(vectors)]
                for k in range(channels):
                    weight = emit.broadcast(emit.at(w_tap, steps[k]))
                    for v in range(vectors):
                        builder.store(emit.fma(pixels[v], weight, builder.load(sums[k][v])), sums[k][v])
        for k in range(channels):
            for v in range(vectors):
                emit.store(builder.load(sums[k][v]), emit.at(rows[k], v * width))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def write_vectors(typingctx: Any, shape: Any, dtype: Any, sums: Any, y: Any, count: Any, shift: Any, relu: Any) -> Any:
    """y[i] = sums[i] + shift, or its positive part if `relu` is not 0, for i < count; a vector of `sums` may be read beyond.

    Short rows are common and a loop's scalar remainder is slow, so the last vector is stored under a mask.
    """
    _check((shape, dtype), (sums, y))
    lanes = shape.value[2]
    element = ir.DoubleType() if value_type(dtype) == types.float64 else ir.FloatType()
    width = lanes * (8 if isinstance(element, ir.DoubleType) else 4)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, sums, y, count, shift, relu = args
        emit, i64 = _Emitter(builder, element, lanes), ir.IntType(64)
        shifts, positive = emit.spread(shift), emit.spread(builder.icmp_signed("!=", relu, i64(0)))
        vectors = builder.sdiv(builder.add(count, i64(lanes - 1)), i64(lanes))
        with cgutils.for_range(builder, vectors) as vector:
            place = builder.mul(vector.index, i64(width))
            value = builder.fadd(emit.load(emit.at(sums, place)), shifts)
            negative = builder.fcmp_ordered("<", value, ir.Constant(value.type, None))
            value = builder.select(builder.and_(negative, positive), ir.Constant(value.type, None), value)
            emit.store_first(value, emit.at(y, place), builder.sub(count, builder.mul(vector.index, i64(lanes))))
        return context.get_dummy_value()

    return types.void(shape, dtype, sums, y, types.int64, shift, types.int64), codegen


class _Emitter:
    """Typed memory access from byte addresses, for one function under construction."""

    def __init__(self, builder: Any, element: Any, lanes: int):
        self._builder, self._element = builder, element
        self._vector = ir.VectorType(element, lanes)
        self._zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        self._align = 8 if isinstance(element, ir.DoubleType) else 4

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c with one rounding."""
        letters = "64" if self._align == 8 else "32"
        kind = ir.FunctionType(self._vector, [self._vector] * 3)
        function = cgutils.get_or_insert_function(self._builder.module, kind, f"llvm.fma.v{self._vector.count}f{letters}")
        return self._builder.call(function, [a, b, c])

    def accumulator(self) -> Any:
        """A stack slot that starts at zero; the optimiser turns it into a register."""
        return cgutils.alloca_once_value(self._builder, ir.Constant(self._vector, None))

    def at(self, address: Any, offset: Any) -> Any:
        """The address `offset` bytes further."""
        return self._builder.gep(address, [ir.Constant(ir.IntType(64), offset) if isinstance(offset, int) else offset])

    def offset(self, table: Any, index: Any) -> Any:
        """An entry of an int64 table."""
        i64 = ir.IntType(64)
        return self._builder.load(self._builder.gep(self._builder.bitcast(table, i64.as_pointer()), [index]))

    def load(self, address: Any) -> Any:
        """A vector."""
        loaded = self._builder.load(self._builder.bitcast(address, self._vector.as_pointer()))
        loaded.align = self._align
        return loaded

    def store(self, vector: Any, address: Any) -> None:
        """Write a vector."""
        self._builder.store(vector, self._builder.bitcast(address, self._vector.as_pointer())).align = self._align

    def spread(self, number: Any) -> Any:
        """A number in all lanes."""
        builder, undefined = self._builder, ir.Constant(ir.VectorType(number.type, self._vector.count), ir.Undefined)
        return builder.shuffle_vector(
            builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0)), undefined, self._zeros
        )

    def store_first(self, vector: Any, address: Any, count: Any) -> None:
        """Write the first `count` lanes, or all where there are fewer."""
        builder, lanes, i64 = self._builder, self._vector.count, ir.IntType(64)
        numbers = ir.Constant(ir.VectorType(i64, lanes), list(range(lanes)))
        mask = builder.icmp_signed("<", numbers, self.spread(count))
        pointer = builder.bitcast(address, self._vector.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [self._vector, pointer.type, ir.IntType(32), mask.type])
        letters = "64" if self._align == 8 else "32"
        name = f"llvm.masked.store.v{lanes}f{letters}.p0"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        builder.call(function, [vector, pointer, ir.Constant(ir.IntType(32), self._align), mask])

    def broadcast(self, address: Any) -> Any:
        """One element in all lanes."""
        return self.spread(self._builder.load(self._builder.bitcast(address, self._element.as_pointer())))
