"""Register tiles with the lanes over pixels, each vector at a place of its own, whose sums go to y as they leave the registers.

Of few terms, as first layers and banks of filters have, the products of a tile take no longer than to store its sums and to load
them again, a call for some lines at a time. Here one call computes a block for the output channels of a tile: its vectors lie
anywhere in lines of results, so that none is computed in vain beyond the end of a line, where the last vector overlaps the one
before it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds, rolled
from .tiles import Tile

__all__ = ["multiply_placed"]

_i64 = ir.IntType(64)

(X, X_TAPS, W, W_TAPS, C, TAPS, X_C, W_C, W_K, Y, Y_K, PLACES, TILES, BIAS, RELU, JOB) = range(16)
"""The fields of a job: addresses, bytes and numbers.

X, W, Y: of the block, and of the first output channel. X_TAPS, W_TAPS: tables of the byte offset of each of the TAPS of a channel,
of which there are C; X_C, W_C, W_K, Y_K: from channel to channel. PLACES: for each vector of the TILES its byte offsets in x and in
y. BIAS: of the first channel's, or 0. RELU: whether negative results become 0.
"""


class _Code:
    """The tiles of a block under construction."""

    def __init__(self, builder: Any, shape: Tile, dtype: Any, job: Any):
        self.builder, self.shape = builder, shape
        self.emit = emit = Emitter(builder, dtype, shape.lanes)
        self.field = {i: emit.offset(job, i) for i in range(JOB)}
        self.at = {i: builder.inttoptr(self.field[i], cgutils.voidptr_t) for i in (X, X_TAPS, W, W_TAPS, Y, PLACES, BIAS)}
        self.slots = [[emit.accumulator() for _ in range(shape.vectors)] for _ in range(shape.channels)]
        self.bits = ir.VectorType(ir.IntType(8 * emit.width // shape.lanes), shape.lanes)
        self.found = cgutils.alloca_once_value(builder, ir.Constant(self.bits, None))
        self.given = builder.icmp_signed("!=", self.field[BIAS], _i64(0))
        self.relu = builder.icmp_signed("!=", self.field[RELU], _i64(0))

    def tile(self, number: Any) -> None:
        """One tile."""
        emit, builder, shape = self.emit, self.builder, self.shape
        first = emit.times(number, 2 * shape.vectors)
        entries = [emit.offset(self.at[PLACES], builder.add(first, _i64(i))) for i in range(2 * shape.vectors)]
        sources = [emit.at(self.at[X], entry) for entry in entries[::2]]
        lines = [emit.at(self.at[Y], emit.times(self.field[Y_K], k)) for k in range(shape.channels)]
        targets = [[emit.at(line, entry) for entry in entries[1::2]] for line in lines]
        # written all at once, their memory would be waited for
        for place in (place for row in targets for place in row):
            emit.prefetch(place, write=True)
        for slot in (slot for row in self.slots for slot in row):
            builder.store(emit.zero, slot)
        self.products(sources)
        with builder.if_else(builder.or_(self.given, self.relu)) as (dressed, bare):
            with dressed:
                self.finish(targets, dress=True)
            with bare:
                self.finish(targets, dress=False)

    def products(self, sources: list[Any]) -> None:
        """All terms."""
        emit, builder, field = self.emit, self.builder, self.field
        steps = [emit.times(field[W_K], k) for k in range(self.shape.channels)]
        with cgutils.for_range(builder, field[C]) as channel:
            rows = [emit.at(source, builder.mul(channel.index, field[X_C])) for source in sources]
            weights = emit.at(self.at[W], builder.mul(channel.index, field[W_C]))
            with rolled(builder, field[TAPS]) as tap:
                offset, weight = emit.offset(self.at[X_TAPS], tap), emit.at(weights, emit.offset(self.at[W_TAPS], tap))
                pixels = [emit.load(emit.at(row, offset)) for row in rows]
                for step, slots in zip(steps, self.slots, strict=True):
                    factor = emit.broadcast(emit.at(weight, step))
                    for slot, pixel in zip(slots, pixels, strict=True):
                        builder.store(emit.fma(pixel, factor, builder.load(slot)), slot)

    def finish(self, targets: list[list[Any]], *, dress: bool) -> None:
        """Write the sums, with bias and relu if they are dressed."""
        emit, builder = self.emit, self.builder
        item, clip = emit.width // emit.lanes, emit.spread(self.relu)
        for k, (slots, places) in enumerate(zip(self.slots, targets, strict=True)):
            shift = self.shift(k * item) if dress else None
            for slot, place in zip(slots, places, strict=True):
                value = builder.load(slot)
                # what is not finite, times zero, is NaN, whose bits stay: a sum would wait for the one before
                seen = builder.bitcast(builder.fmul(value, emit.zero), self.bits)
                builder.store(builder.or_(builder.load(self.found), seen), self.found)
                emit.store(emit.positive(builder.fadd(value, shift), clip) if dress else value, place)

    def shift(self, offset: int) -> Any:
        """The bias of a channel in all lanes; -0, which changes no sum, if there is none."""
        builder, emit = self.builder, self.emit
        slot = cgutils.alloca_once_value(builder, emit.constant(-0.0))
        with builder.if_then(self.given):
            builder.store(emit.broadcast(emit.at(self.at[BIAS], offset)), slot)
        return builder.load(slot)


@intrinsic
def _multiply_placed(typingctx: Any, tag: Any, dtype: Any, job: Any) -> Any:
    check_kinds((tag, dtype), (job,))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        code = _Code(builder, Tile(*tag.value), dtype, args[2])
        with cgutils.for_range(builder, code.field[TILES]) as loop:
            code.tile(loop.index)
        return code.emit.any(code.emit.not_finite(builder.bitcast(builder.load(code.found), code.emit.vector)))

    return types.int64(tag, dtype, job), codegen


@kernel(emitted=True)
def multiply_placed(shape: Tag, dtype: Tag, job: Address) -> int:
    """y[k, i] = the sum over c and taps t of x[c, i + t] * w[k, c, t], one chain each in this order, with bias and relu.

    `shape` is a `Tile`: k < channels; for the fields of a job see above. Returns 1 if one of these sums is not finite, else 0.
    """
    return _multiply_placed(shape, dtype, job)
