"""Register tiles of depthwise convolutions with the lanes over channels: for arrays whose channels are neighbours in memory.

A vector holds as many channels of one position. `along` computes neighbouring results of a row, whose windows share positions:
each is loaded once and multiplied with every tap that meets it. Which of them lie beside the row is known when the code is made, so
that it has no branches: they are left out, or read from where the padding has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, Unit, intrinsic, kernel

from .emit import Emitter, check_kinds, rolled

__all__ = ["Along", "along", "tiles"]

_i64 = ir.IntType(64)

X, COUNT, TABLE, X_STEP, W, W_STEP, BIAS, RELU, Y, Y_STEP, AHEAD, JOB = range(12)
"""The fields of a job: addresses, steps and offsets in bytes.

X: of the position where the first window starts; W: of the first tap of the first row of taps. TABLE has COUNT pairs of offsets,
one in x and one in w, of each row of taps. X_STEP: from a position to the next; W_STEP: from a tap to the next. BIAS: the address
of a vector, or 0. RELU: whether negative results become 0. Y, Y_STEP: of the results. AHEAD: whether memory is prefetched.
"""


class Along(NamedTuple):
    """The shape of a tile.

    Attributes
    ----------
    results, taps, stride, dilation : int
        Of a row.
    before, after : int
        Of the positions that its windows cover, the first and the last that lie beside the row: they are left out.
    flipped : bool
        Whether the kernel is.
    lanes : int
    moved : tuple of int
        Of each position the one that is read, where padding is not of zeros; nothing if each is read itself.
    folds : tuple of (int, int, int)
        Further terms: a position, a tap and the result that they are added to.
    """

    results: int
    taps: int
    stride: int
    dilation: int
    before: int
    after: int
    flipped: bool
    lanes: int
    moved: tuple[int, ...] = ()
    folds: tuple[tuple[int, int, int], ...] = ()

    @property
    def positions(self) -> int:
        """That its windows cover."""
        return (self.results - 1) * self.stride + (self.taps - 1) * self.dilation + 1


def _uses(shape: Along) -> list[tuple[int, list[tuple[int, int]]]]:
    """Positions from the first window's start on, those beside the row left out, with pairs (tap, result).

    In this order the terms of a result follow its taps, from the first to the last, also where the kernel is flipped.
    """
    found: dict[int, list[tuple[int, int]]] = {}
    for tap in range(shape.taps):
        place = shape.taps - 1 - tap if shape.flipped else tap
        for result in range(shape.results):
            position = result * shape.stride + place * shape.dilation
            if shape.before <= position < shape.positions - shape.after:
                found.setdefault(position, []).append((tap, result))
    return sorted(found.items(), reverse=shape.flipped)


def _fields(emit: Emitter, builder: Any, job: Any) -> tuple[list[Any], dict[int, Any]]:
    """The fields as numbers, and those that are addresses as pointers."""
    fields = [emit.offset(job, i) for i in range(JOB)]
    return fields, {i: builder.inttoptr(fields[i], cgutils.voidptr_t) for i in (X, TABLE, W, BIAS, Y)}


def _finish(emit: Emitter, builder: Any, slots: Sequence[Any], places: Sequence[Any], bias: Any, fields: list[Any]) -> None:
    """Add the bias, apply relu, and store."""
    relu = emit.spread(builder.icmp_signed("!=", fields[RELU], _i64(0)))
    with builder.if_then(builder.icmp_signed("!=", fields[BIAS], _i64(0))):
        for slot in slots:
            builder.store(builder.fadd(builder.load(slot), emit.load(bias)), slot)
    for slot, place in zip(slots, places, strict=True):
        emit.store(emit.positive(builder.load(slot), relu), place)


@intrinsic
def _along(typingctx: Any, tag: Any, dtype: Any, job: Any) -> Any:
    check_kinds((tag, dtype), (job,))
    shape = Along(*tag.value)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        emit = Emitter(builder, dtype, shape.lanes)
        fields, at = _fields(emit, builder, args[2])
        slots, uses = [emit.accumulator() for _ in range(shape.results)], _uses(shape)
        with cgutils.for_range(builder, fields[COUNT]) as row:
            entry = builder.mul(row.index, _i64(2))
            x_row = emit.at(at[X], emit.offset(at[TABLE], entry))
            w_row = emit.at(at[W], emit.offset(at[TABLE], builder.add(entry, _i64(1))))
            weights = [emit.load(emit.at(w_row, emit.times(fields[W_STEP], tap))) for tap in range(shape.taps)]
            read = [(shape.moved[position] if shape.moved else position, users) for position, users in uses]
            for place, users in [*read, *((position, [(tap, result)]) for position, tap, result in shape.folds)]:
                # LLVM keeps this order: it would load all positions first, and spill most of them
                value = emit.settled(emit.load(emit.at(x_row, emit.times(fields[X_STEP], place))))
                for tap, result in users:
                    builder.store(emit.settled(emit.fma(value, weights[tap], builder.load(slots[result]))), slots[result])
        with builder.if_then(builder.icmp_signed("!=", fields[AHEAD], _i64(0))):
            # of the rows that are read, the last one is new: what the next tile needs of it
            newest = emit.offset(at[TABLE], builder.mul(builder.sub(fields[COUNT], _i64(1)), _i64(2)))
            following = emit.at(emit.at(at[X], newest), emit.times(fields[X_STEP], shape.positions))
            with rolled(builder, _i64(shape.results * shape.stride)) as each:
                emit.prefetch(emit.at(following, builder.mul(each, fields[X_STEP])), write=False)
        places = [emit.at(at[Y], emit.times(fields[Y_STEP], result)) for result in range(shape.results)]
        _finish(emit, builder, slots, places, at[BIAS], fields)
        return context.get_dummy_value()

    return types.void(tag, dtype, job), codegen


@kernel
def along(shape: Tag, dtype: Tag, job: Address) -> None:
    """y[p] = the sum over rows of taps and taps t of x[p * stride + t * dilation] * w[t], a vector of channels each; p < results.

    `shape` is an `Along`; for the fields of a job see above.
    """
    _along(shape, dtype, job)


tiles = Unit("channelwise.tiles", lambda shapes, dtype: [(along, (shape, dtype)) for shape in shapes])
"""`along` of several shapes: those of a row."""
