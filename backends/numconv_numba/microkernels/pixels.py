"""Pooling of channels that are last, one pixel after the other: a few vectors of neighbouring channels at a time.

So x is read, and y written, in the order of memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds, rolled

__all__ = ["PIXELS", "PixelShape", "pixels"]

PIXELS = ("pixels", "taps", "blocks", "last", "y_step")
_i64 = ir.IntType(64)


class PixelShape(NamedTuple):
    """What of a problem is compiled.

    Attributes
    ----------
    kind : str
        "max" or "mean".
    lanes, vectors : int
        Of a block of channels.
    taps : int
        Of a window, or 0 where their number is known at run time only.
    """

    kind: str
    lanes: int
    vectors: int
    taps: int


class _Pixels:
    """The code of one call of `pixels`."""

    def __init__(self, builder: Any, shape: PixelShape, dtype: Any, given: dict[str, Any]):
        self.builder, self.shape, self.given = builder, shape, given
        self.emit = Emitter(builder, dtype, shape.lanes)
        given.update({name: self.emit.offset(given["job"], number) for number, name in enumerate(PIXELS)})

    def all_of_them(self) -> None:
        """All pixels, and all blocks of channels of each; the last one may overlap that before it."""
        builder, emit, given = self.builder, self.emit, self.given
        with rolled(builder, given["pixels"]) as pixel:
            table = emit.at(given["places"], builder.mul(builder.mul(pixel, given["taps"]), _i64(8)))
            target = emit.at(given["y"], builder.mul(pixel, given["y_step"]))
            item = emit.width // self.shape.lanes
            share = emit.broadcast(emit.at(given["shares"], builder.mul(pixel, _i64(item))))
            sources = [self.source(table, _i64(tap)) for tap in range(self.shape.taps)]
            with rolled(builder, given["blocks"]) as block:
                before = builder.mul(block, _i64(self.shape.vectors * emit.width))
                before = builder.select(builder.icmp_signed("<", before, given["last"]), before, given["last"])
                if sources:
                    results = self.results([self.block(source, before) for source in sources])
                else:
                    results = self.results_in_turn(table, before)
                for v, result in enumerate(results):
                    value = builder.fmul(result, share) if self.shape.kind == "mean" else result
                    emit.store(value, emit.at(emit.at(target, before), v * emit.width))

    def source(self, table: Any, tap: Any) -> Any:
        """Where the channels begin that a tap reads."""
        return self.builder.inttoptr(self.emit.offset(table, tap), cgutils.voidptr_t)

    def block(self, source: Any, before: Any) -> list[Any]:
        """The vectors of a block of a pixel."""
        place = self.emit.at(source, before)
        return [self.emit.load(self.emit.at(place, v * self.emit.width)) for v in range(self.shape.vectors)]

    def results(self, taps: list[list[Any]]) -> list[Any]:
        """The sums, or the largest elements, NaN where one is."""
        return [self.sum(column) if self.shape.kind == "mean" else self.largest(column) for column in zip(*taps, strict=True)]

    def sum(self, vectors: tuple[Any, ...]) -> Any:
        """The sum of some vectors, from the first to the last."""
        total = vectors[0]
        for vector in vectors[1:]:
            total = self.builder.fadd(total, vector)
        return total

    def largest(self, vectors: tuple[Any, ...]) -> Any:
        """The largest lanes of some vectors: a comparison sees the NaNs of two."""
        builder, most, nan = self.builder, vectors[0], None
        for vector in vectors[1:]:
            most = builder.select(builder.fcmp_ordered(">", vector, most), vector, most)
        for pair in zip(vectors[::2], (*vectors[1::2], vectors[-1]), strict=False):
            there = builder.fcmp_unordered("uno", *pair)
            nan = there if nan is None else builder.or_(nan, there)
        return builder.select(nan, self.emit.constant(float("nan")), most)

    def results_in_turn(self, table: Any, before: Any) -> list[Any]:
        """`results` of a number of taps that is known at run time only."""
        builder = self.builder
        slots = [cgutils.alloca_once_value(builder, vector) for vector in self.block(self.source(table, _i64(0)), before)]
        with rolled(builder, builder.sub(self.given["taps"], _i64(1))) as turn:
            taken = self.block(self.source(table, builder.add(turn, _i64(1))), before)
            for slot, new in zip(slots, taken, strict=True):
                old = builder.load(slot)
                builder.store(builder.fadd(old, new) if self.shape.kind == "mean" else self.larger(old, new), slot)
        return list(map(builder.load, slots))

    def larger(self, old: Any, new: Any) -> Any:
        """The larger lanes, NaN where one is: what is not less than the largest so far, and this stays where it is NaN."""
        builder = self.builder
        wins = builder.and_(builder.fcmp_unordered(">", new, old), builder.fcmp_ordered("ord", old, old))
        return builder.select(wins, new, old)


@intrinsic
def _pixels(typingctx: Any, shape: Any, dtype: Any, places: Any, shares: Any, y: Any, job: Any) -> Any:
    check_kinds((shape, dtype), (places, shares, y, job))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        given = dict(zip(("places", "shares", "y", "job"), args[2:], strict=True))
        _Pixels(builder, PixelShape(*shape.value), dtype, given).all_of_them()
        return context.get_dummy_value()

    return types.void(shape, dtype, *[places] * 4), codegen


@kernel
def pixels(shape: Tag, dtype: Tag, places: Address, shares: Address, y: Address, job: Address) -> None:
    """The results of some pixels, in all channels.

    Parameters
    ----------
    shape : Tag
        A `PixelShape`.
    dtype : Tag
        float32 or float64.
    places : Address
        For each pixel, and each tap of its window, the int64 address of channel 0.
    shares : Address
        For each pixel one over the count of its window, in the dtype; of "mean" only, but to be read.
    y : Address
        Channel 0 of the first pixel.
    job : Address
        Of int64 numbers, in the order of `PIXELS`: pixels, taps, blocks of channels, the bytes from channel 0 to the last block,
        and from a pixel of y to the next.
    """
    _pixels(shape, dtype, places, shares, y, job)
