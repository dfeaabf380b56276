"""Sums over pixels on AMX's tiles, with the lanes over channels: what `product` does for a weight gradient.

A tile of b is 16 pairs of pixels of packed grad_y for 16 output channels, as they lie; a tile of a holds what 16 taps read of x
for these pixels, which is gathered: neighbours by loads and a shuffle, others by the processor's gathers. Some steps are gathered
before any of them is multiplied, because a tile cannot be loaded before what was stored there has left the store buffer.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .amx import ROW_BYTES, ROWS, raw_memory, tile_registers
from .amx_gemm import PRODUCTS, layers_of
from .emit import Emitter, check_kinds, rolled

__all__ = ["product_tiles"]

GATHERED = 8
"""Steps that are gathered together."""
TILE_BYTES = ROWS * ROW_BYTES
_i32, _i64 = ir.IntType(32), ir.IntType(64)


class _Taps:
    """Emits the tiles of taps: ``[step][layer][tap][16 pairs]``, of so many steps at a time."""

    def __init__(self, emit: Emitter, builder: Any, x: Any, layers: int):
        self.emit, self.builder, self.x, self.layers = emit, builder, x, layers
        self.memory = raw_memory(builder, GATHERED * layers * TILE_BYTES)

    def gather(self, places: Any, offsets: Any, step: Any) -> None:
        """One step. `offsets`: of its pairs."""
        emit, builder, eight = self.emit, self.builder, ir.VectorType(_i64, ROWS // 2)
        halves = []
        for half in range(2):
            place = builder.bitcast(emit.at(offsets, 64 * half), eight.as_pointer())
            halves.append(builder.load(place))
            halves[-1].align = 8
        first = builder.extract_element(halves[0], _i32(0))
        spread = builder.insert_element(ir.Constant(eight, ir.Undefined), first, _i32(0))
        spread = builder.shuffle_vector(spread, spread, ir.Constant(ir.VectorType(_i32, ROWS // 2), [0] * (ROWS // 2)))
        wrong = []
        for half, found in enumerate(halves):
            row = ir.Constant(eight, [8 * (half * ROWS // 2 + i) for i in range(ROWS // 2)])
            wrong.append(builder.icmp_signed("!=", builder.sub(found, spread), row))
        flags = builder.bitcast(builder.or_(*wrong), ir.IntType(ROWS // 2))
        even = builder.icmp_unsigned("==", flags, ir.Constant(flags.type, 0))
        with builder.if_else(even) as (neighbours, others):
            with neighbours:
                self._each_row(places, step, lambda start, target: self._join(emit.at(start, first), target))
            with others:
                places_of = builder.shuffle_vector(*halves, ir.Constant(ir.VectorType(_i32, ROWS), list(range(ROWS))))
                self._each_row(places, step, lambda start, target: self._pick(start, places_of, target))

    def _each_row(self, places: Any, step: Any, body: Any) -> None:
        emit, builder = self.emit, self.builder
        into = emit.at(self.memory, emit.times(step, self.layers * TILE_BYTES))
        with rolled(builder, _i64(self.layers * ROWS)) as row:
            body(emit.at(self.x, emit.offset(places, row)), emit.at(into, emit.times(row, ROW_BYTES)))

    def _join(self, start: Any, target: Any) -> None:
        """Every second word of two vectors."""
        emit = self.emit
        words = emit.shuffle(emit.load(start), emit.load(emit.at(start, ROW_BYTES)), range(0, 2 * ROWS, 2))
        emit.store(words, target)

    def _pick(self, start: Any, offsets: Any, target: Any) -> None:
        """A word at each of a vector of offsets."""
        emit, builder = self.emit, self.builder
        pointers, words = ir.VectorType(_i32.as_pointer(), ROWS), ir.VectorType(_i32, ROWS)
        flags = ir.Constant(ir.VectorType(ir.IntType(1), ROWS), [1] * ROWS)
        places = builder.inttoptr(builder.add(emit.spread(builder.ptrtoint(start, _i64)), offsets), pointers)
        kind = ir.FunctionType(words, [pointers, _i32, flags.type, words])
        gather = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.gather.v{ROWS}i32.v{ROWS}p0")
        found = builder.call(gather, [places, _i32(4), flags, ir.Constant(words, None)])
        emit.store(builder.bitcast(found, emit.vector), target)


@intrinsic
def _product_tiles(
    typingctx: Any, shape: Any, kind: Any, a: Any, b: Any, places: Any, y: Any, count: Any, terms: Any, offsets: Any, y_step: Any,
    resume: Any,
) -> Any:  # fmt: skip
    check_kinds((shape, kind), (a, b, places, y, offsets))
    vectors, products = shape.value
    layers = layers_of(products)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, a, b, places, y, positions, terms, offsets, y_step, resume = args
        emit, tiles, width = Emitter(builder, "float32", ROWS), tile_registers(builder, kind.value), vectors * ROW_BYTES
        taps, rows = _Taps(emit, builder, b, layers), _i64(ROWS)
        steps = builder.sdiv(builder.add(terms, _i64(ROWS - 1)), rows)
        layer = emit.times(steps, ROWS * width)

        def multiply(pixels: Any, gathered: Any) -> None:
            """All products of a step."""
            loaded = -1
            for mine, theirs in PRODUCTS[products]:
                if mine != loaded:
                    tiles.load(4, emit.at(gathered, mine * TILE_BYTES), _i64(ROW_BYTES), rows)
                    loaded = mine
                start = emit.at(pixels, emit.times(layer, theirs))
                for v in range(vectors):
                    tiles.load(6 + v % 2, emit.at(start, v * ROW_BYTES), _i64(width), rows)
                    tiles.multiply(v, 4, 6 + v % 2, rows)

        groups = builder.sdiv(builder.add(positions, _i64(ROWS - 1)), rows)
        with cgutils.for_range(builder, groups) as group:
            table = emit.at(places, emit.times(group.index, 8 * layers * ROWS))
            sums = emit.at(y, builder.mul(group.index, emit.times(y_step, ROWS)))
            with builder.if_else(builder.icmp_signed("!=", resume, _i64(0))) as (go_on, begin):
                with go_on:
                    for v in range(vectors):
                        tiles.load(v, emit.at(sums, v * ROW_BYTES), y_step, rows)
                with begin:
                    for v in range(vectors):
                        tiles.zero(v, rows)
            with cgutils.for_range_slice(builder, _i64(0), steps, _i64(GATHERED)) as (first, _):
                left = builder.sub(steps, first)
                count = builder.select(builder.icmp_signed("<", left, _i64(GATHERED)), left, _i64(GATHERED))
                with rolled(builder, count) as step:
                    pairs = emit.times(builder.add(first, step), 8 * ROWS)
                    taps.gather(table, emit.at(offsets, pairs), step)
                with rolled(builder, count) as step:
                    pixels = emit.at(a, emit.times(builder.add(first, step), ROWS * width))
                    multiply(pixels, emit.at(taps.memory, emit.times(step, layers * TILE_BYTES)))
            for v in range(vectors):
                tiles.store(v, emit.at(sums, v * ROW_BYTES), y_step, rows)
        return context.get_dummy_value()

    return types.void(shape, kind, a, b, places, y, types.int64, types.int64, offsets, types.int64, types.int64), codegen


@kernel
def product_tiles(
    shape: Tag, kind: Tag, a: Address, b: Address, places: Address, y: Address, count: int, terms: int, offsets: Address,
    y_step: int, resume: int,
) -> None:  # fmt: skip
    """What `product.product` does, with the same parameters, for pairs of pixels; registers are configured as full.

    Parameters that differ:

    shape : Tag
        (vectors, number of products): four vectors at most; see `amx_gemm.PRODUCTS`.
    kind : Tag
        The body: see `amx`.
    a : Address
        ``[layer][term][vector]``, in each layer zeros up to a whole step of 16 terms.
    places, offsets : Address
        ``[group][layer][16 taps]``, and those of whole steps of terms.
    """
    _product_tiles(shape, kind, a, b, places, y, count, terms, offsets, y_step, resume)
