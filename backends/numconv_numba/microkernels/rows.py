"""Register tiles of convolutions between transforms along the rows of planes, and their transform back, which writes results.

For each row of transformed x a tile adds up the products of some columns for some output channels, from all terms of this row; the
sums of all rows are in the first-level cache when they become rows of results. Memory that these are written to is asked for while
products are computed: written all at once, it would be waited for.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .activation import SMOOTH
from .emit import Emitter, check_kinds, rolled
from .tiles import Tile
from .transforms import matrices

__all__ = ["MOST_OUTPUTS", "POINTS", "multiply_rows"]

POINTS = 6
"""Rows of x that are transformed together: with more, the points would be further apart, and the error grows."""
MOST_OUTPUTS = 4
"""Rows of results that are made from them."""
_i64 = ir.IntType(64)

(X, W, SUMS, BIAS, Y, PLACES, TERMS, X_POINT, W_POINT, OUTPUTS, Y_CHANNEL, Y_ROW, ROWS, USED, RELU, JOB) = range(16)
"""The fields of a job: addresses, and bytes.

X: of the first column in the first transformed row; W: of its weights, [term][channel]; X_POINT and W_POINT lead to those of the
next row. PLACES has the offset in x of each of the TERMS. SUMS: where the sums of all rows have room. OUTPUTS: m of F(m, r). BIAS:
of the first channel's, or 0. Y: of the first result; Y_CHANNEL and Y_ROW lead to the next channel and row. ROWS: rows of results
that are written, USED columns of each. RELU: whether negative results become 0.
"""


class _Code:
    """A tile under construction; `smooth`: the code of silu or of gelu if one is applied, else 0."""

    def __init__(self, builder: Any, shape: Tile, smooth: int, dtype: Any, job: Any):
        self.builder, self.shape, self.smooth = builder, shape, smooth
        self.emit = emit = Emitter(builder, dtype, shape.lanes)
        self.item = emit.width // shape.lanes
        self.field = {i: emit.offset(job, i) for i in range(JOB)}
        self.at = {i: builder.inttoptr(self.field[i], cgutils.voidptr_t) for i in (X, W, SUMS, BIAS, Y, PLACES)}
        self.step = shape.channels * shape.vectors * emit.width
        self.bits = ir.VectorType(ir.IntType(8 * self.item), shape.lanes)
        self.found = cgutils.alloca_once_value(builder, ir.Constant(self.bits, None))

    def products(self) -> None:
        """The sums of all transformed rows."""
        builder, emit, field, shape = self.builder, self.emit, self.field, self.shape
        with cgutils.for_range(builder, _i64(POINTS)) as loop:
            self.fetch(loop.index)
            x, w = (emit.at(self.at[of], builder.mul(loop.index, field[step])) for of, step in ((X, X_POINT), (W, W_POINT)))
            slots = [[emit.accumulator() for _ in range(shape.vectors)] for _ in range(shape.channels)]
            with rolled(builder, field[TERMS]) as term:
                x_term = emit.at(x, emit.offset(self.at[PLACES], term))
                w_term = emit.at(w, emit.times(term, shape.channels * self.item))
                pixels = [emit.load(emit.at(x_term, v * emit.width)) for v in range(shape.vectors)]
                for k, sums in enumerate(slots):
                    weight = emit.broadcast(emit.at(w_term, k * self.item))
                    for slot, pixel in zip(sums, pixels, strict=True):
                        builder.store(emit.fma(pixel, weight, builder.load(slot)), slot)
            target = emit.at(self.at[SUMS], emit.times(loop.index, self.step))
            for number, slot in enumerate(slot for sums in slots for slot in sums):
                emit.store(builder.load(slot), emit.at(target, number * emit.width))

    def fetch(self, point: Any) -> None:
        """Ask for the memory of the results of some channels."""
        builder, emit, field, shape = self.builder, self.emit, self.field, self.shape
        each = -(-shape.channels // POINTS)
        for number in range(each):
            channel = builder.add(emit.times(point, each), _i64(number))
            with builder.if_then(builder.icmp_signed("<", channel, _i64(shape.channels))):
                line = emit.at(self.at[Y], builder.mul(channel, field[Y_CHANNEL]))
                for row in range(MOST_OUTPUTS):
                    there = builder.icmp_signed("<", _i64(row), field[ROWS])
                    place = emit.at(line, builder.select(there, emit.times(field[Y_ROW], row), _i64(0)))
                    for offset in range(0, shape.vectors * emit.width, 64):
                        emit.prefetch(emit.at(place, offset), write=True)

    def results(self) -> None:
        """Transform the sums back and write results: whole vectors, or what of them is used."""
        builder, shape, used = self.builder, self.shape, self.field[USED]
        whole = builder.icmp_signed(">=", used, _i64(shape.vectors * shape.lanes))
        with builder.if_else(whole, likely=True) as (all_of_them, some):
            with all_of_them:
                self.write([None] * shape.vectors)
            with some:
                self.write([self.emit.first(builder.sub(used, _i64(v * shape.lanes))) for v in range(shape.vectors)])

    def write(self, masks: list[Any]) -> None:
        """Write the results of all channels; `masks` has None for whole vectors."""
        builder, emit, field, shape = self.builder, self.emit, self.field, self.shape
        relu = emit.spread(builder.icmp_signed("!=", field[RELU], _i64(0)))
        zero, one = (ir.Constant(emit.vector.element, number) for number in (0.0, 1.0))
        lasts = [builder.icmp_signed("==", field[OUTPUTS], _i64(row + 1)) for row in range(MOST_OUTPUTS)]
        beyond = [emit.spread(builder.select(last, one, zero)) for last in lasts]
        with cgutils.for_range(builder, _i64(shape.channels)) as channel:
            source = emit.at(self.at[SUMS], emit.times(channel.index, shape.vectors * emit.width))
            line, shift = emit.at(self.at[Y], builder.mul(channel.index, field[Y_CHANNEL])), self.shift(channel.index)
            for v, mask in enumerate(masks):
                sums = [emit.load(emit.at(source, point * self.step + v * emit.width)) for point in range(POINTS)]
                halves = [(builder.fadd(*pair), builder.fsub(*pair)) for pair in (sums[1:3], sums[3:5])]
                for row in range(MOST_OUTPUTS):
                    with builder.if_then(builder.icmp_signed("<", _i64(row), field[ROWS]), likely=row < 2):
                        value = emit.fma(sums[-1], beyond[row], self.combined(row, sums[0], halves))
                        place = emit.at(emit.at(line, emit.times(field[Y_ROW], row)), v * emit.width)
                        self.write_vector(value, shift, relu, place, mask)

    def combined(self, row: int, first: Any, halves: list[tuple[Any, Any]]) -> Any:
        """A row of results without the point at infinity; `halves`: sums and differences of each point and its negative."""
        power = matrices(MOST_OUTPUTS, POINTS + 1 - MOST_OUTPUTS).output[row][1::2]
        (value, number), (other, factor) = ((half[row % 2], number) for half, number in zip(halves, power, strict=False))
        if not row:
            return self.builder.fadd(self.builder.fadd(first, value), other)
        return self.emit.fma(other, self.emit.constant(factor), self.builder.fmul(value, self.emit.constant(number)))

    def write_vector(self, value: Any, shift: Any, relu: Any, place: Any, mask: Any) -> None:
        """One vector of results."""
        builder, emit = self.builder, self.emit
        seen = value if mask is None else builder.select(mask, value, emit.zero)
        # what is not finite, times zero, is NaN, whose bits stay: a sum would wait for the one before
        bits = builder.bitcast(builder.fmul(seen, emit.zero), self.bits)
        builder.store(builder.or_(builder.load(self.found), bits), self.found)
        shifted = builder.fadd(value, shift)
        dressed = SMOOTH[self.smooth](builder, shifted) if self.smooth else emit.positive(shifted, relu)
        if mask is None:
            emit.store(dressed, place)
        else:
            emit.store_masked(dressed, place, mask)

    def shift(self, channel: Any) -> Any:
        """The bias of a channel in all lanes; -0, which changes no sum, if there is none."""
        builder, emit = self.builder, self.emit
        slot = cgutils.alloca_once_value(builder, emit.constant(-0.0))
        with builder.if_then(builder.icmp_signed("!=", self.field[BIAS], _i64(0))):
            builder.store(emit.broadcast(emit.at(self.at[BIAS], emit.times(channel, self.item))), slot)
        return builder.load(slot)


@intrinsic
def _multiply_rows(typingctx: Any, tag: Any, dtype: Any, job: Any) -> Any:
    check_kinds((tag, dtype), (job,))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        *shape, smooth = tag.value
        code = _Code(builder, Tile(*shape), smooth, dtype, args[2])
        code.products()
        code.results()
        return code.emit.any(code.emit.not_finite(builder.bitcast(builder.load(code.found), code.emit.vector)))

    return types.int64(tag, dtype, job), codegen


@kernel(emitted=True)
def multiply_rows(shape: Tag, dtype: Tag, job: Address) -> int:
    """y = the transform back of the sums over terms t of x[point, places[t] + i] * w[point, t, k].

    `shape` is a `Tile` and the code of silu or gelu, or 0; for the fields of a job see above. Returns 1 if one of these results,
    before the bias, is not finite.
    """
    return _multiply_rows(shape, dtype, job)
