"""Winograd's products of few tiles, whose kernels are transformed in registers.

Where an image has few tiles, each transformed kernel meets so few of them that to write it, and to read it again, takes longer than
to multiply it. Here a row of its elements is made of the taps, a vector of output channels at a time, and multiplied with one
broadcast for each tile: the sums of a row of elements are all that is held, and the rows follow each other. The points of the
interpolation are those of `transforms`; what its matrix has in front of each row is left to the end of the sums.

Elements at infinity are terms of the fourth row, or column, of the outputs alone. The tiles of an image that is five to seven wide
lie two by two, and those at its ends have no fourth column: these products are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir
from numba import types

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds, host, rolled
from .transforms import Matrix, combine, matrices, multiply

__all__ = ["FUSED_TILES", "fused_product", "is_fused"]

_i64 = ir.IntType(64)

FUSED_TILES = 4
"""Tiles that are multiplied together: with the six elements of a row their sums take 24 of 32 registers."""


def is_fused(shape: tuple[int, ...]) -> bool:
    """Whether there are such products for transforms of this shape: of 3x3 kernels, where 32 registers hold the sums of a row."""
    return shape == (4, 3, 4, 3) and host().registers >= 32


def _monic(matrix: Matrix) -> tuple[Matrix, list[float]]:
    """The matrix with rows whose first coefficient is one, which take fewer operations, and what they were divided by."""
    factors = [next(filter(None, row)) for row in matrix]
    return tuple(tuple(c / factor for c in row) for row, factor in zip(matrix, factors, strict=True)), factors


class _Row:
    """Emits the products of a row of elements, of so many tiles; of every second one without the last, where `narrow` is 1."""

    def __init__(self, emit: Emitter, builder: Any, down: tuple[float, ...], across: Matrix, tiles: int, narrow: Any):
        self.emit, self.builder, self.down, self.across, self.narrow = emit, builder, down, across, narrow
        self.slots = [[emit.accumulator() for _ in range(tiles)] for _ in across]

    def each(self, first: Any, step: Any) -> Any:
        """All sums, with the element of the row to which they belong, and where they lie."""
        emit = self.emit
        for j, row in enumerate(self.slots):
            place = emit.at(first, emit.times(step, j))
            for tile, slot in enumerate(row):
                yield j, slot, emit.at(place, tile * emit.width)

    def add(self, w: Any, steps: tuple[Any, Any], v: Any, v_step: Any) -> None:
        """The products of a channel: its taps lie in rows and columns from w on, its tiles side by side, element after element."""
        emit, builder = self.emit, self.builder
        taps = []
        for s in range(len(self.across[0])):
            column = emit.at(w, emit.times(steps[1], s))
            used = [emit.load(emit.at(column, emit.times(steps[0], r))) if c else None for r, c in enumerate(self.down)]
            taps.append(combine(builder, emit, self.down, used))
        *elements, infinite = multiply(builder, emit, self.across, taps)
        for j, element in enumerate(elements):
            self.add_element(element, emit.at(v, emit.times(v_step, j)), enumerate(self.slots[j]))
        place, slots = emit.at(v, emit.times(v_step, len(elements))), list(enumerate(self.slots[-1]))
        self.add_element(infinite, place, slots[::2])
        # asked anew each time: two loops, one for each answer, would take as long again to compile
        with builder.if_then(builder.icmp_signed("==", emit.opaque(self.narrow, now=True), _i64(0))):
            self.add_element(infinite, place, slots[1::2])

    def add_element(self, element: Any, v: Any, slots: Iterable[tuple[int, Any]]) -> None:
        """The products of an element with its broadcasts."""
        for tile, slot in slots:
            factor = self.emit.broadcast(self.emit.at(v, tile * (self.emit.width // self.emit.lanes)))
            self.builder.store(self.emit.fma(element, factor, self.builder.load(slot)), slot)

    def emit_sums(self, ends: tuple[Any, Any], target: Any, m_step: Any, factors: list[float], turns: Callable[[], None]) -> None:
        """The sums from their beginning, or from where they were left, by some turns, to where they are left or end."""
        emit, builder, (goes_on, is_last) = self.emit, self.builder, ends
        with builder.if_else(goes_on) as (go_on, begin):
            with go_on:
                for _, slot, place in self.each(target, m_step):
                    builder.store(emit.load(place), slot)
            with begin:
                for _, slot, _ in self.each(target, m_step):
                    builder.store(emit.zero, slot)
        turns()
        with builder.if_else(is_last) as (end, pause):
            with end:
                for j, slot, place in self.each(target, m_step):
                    emit.store(builder.fmul(builder.load(slot), emit.constant(factors[j])), place)
            with pause:
                for _, slot, place in self.each(target, m_step):
                    emit.store(builder.load(slot), place)


@intrinsic
def _fused_product(
    typingctx: Any, shape: Any, dtype: Any, w: Any, row_step: Any, column_step: Any, w_next: Any, v: Any, v_step: Any,
    row_next: Any, channels: Any, m: Any, m_step: Any, resume: Any, last: Any, low: Any, narrow: Any,
) -> Any:  # fmt: skip
    check_kinds((shape, dtype), (w, v, m))
    rows, row_taps, columns, column_taps, lanes = shape.value
    down, row_factors = _monic(matrices(rows, row_taps).weights)
    across, column_factors = _monic(matrices(columns, column_taps).weights)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, w, row_step, column_step, w_next, v, v_step, row_next, channels, m, m_step, resume, last, low, narrow = args
        emit = Emitter(builder, dtype, lanes)
        goes_on, is_last, is_low = (builder.icmp_signed("!=", flag, _i64(0)) for flag in (resume, last, low))

        def emit_row(i: int, tiles: int) -> None:
            row, source = _Row(emit, builder, down[i], across, tiles, narrow), emit.at(v, emit.times(row_next, i))

            def turns() -> None:
                with rolled(builder, channels) as c:
                    factors = emit.at(source, builder.mul(c, emit.times(v_step, len(across))))
                    row.add(emit.at(w, builder.mul(c, w_next)), (row_step, column_step), factors, v_step)

            target = emit.at(m, emit.times(m_step, i * len(across)))
            row.emit_sums((goes_on, is_last), target, m_step, [row_factors[i] * factor for factor in column_factors], turns)

        for i in range(len(down) - 1):
            emit_row(i, FUSED_TILES)
        with builder.if_else(is_low) as (two, four):
            with two:
                emit_row(len(down) - 1, FUSED_TILES // 2)
            with four:
                emit_row(len(down) - 1, FUSED_TILES)
        return context.get_dummy_value()

    n = types.int64
    return types.void(shape, dtype, w, n, n, n, v, n, n, n, m, n, n, n, n, n), codegen


@kernel(emitted=True)
def fused_product(
    shape: Tag, dtype: Tag, w: Address, row_step: int, column_step: int, w_next: int, v: Address, v_step: int, row_next: int,
    channels: int, m: Address, m_step: int, resume: int, last: int, low: int, narrow: int,
) -> None:  # fmt: skip
    """m[i, j, tile, :] = the sum over c of the transformed kernel w[c][i, j, :] * v[i, c, j, tile], for `FUSED_TILES` tiles.

    Parameters
    ----------
    shape : Tag
        Of the transform, as in `transforms`.
    dtype : Tag
        Of w, v and m.
    w : Address
        Vectors of output channels, taps `row_step` and `column_step` bytes apart, and channels `w_next`.
    v : Address
        Transformed input: tiles are neighbours, elements of a row are `v_step` bytes apart and follow each other for one channel
        after the other, and rows are `row_next` bytes apart.
    channels : int
        Number of terms.
    m : Address
        Sums, of neighbouring tiles, in elements `m_step` bytes apart.
    resume, last : int
        1 to go on with the sums that m holds; 1 if these are their last terms. Until then sums lack a factor.
    low, narrow : int
        1 if the last two tiles need no elements at infinity of the rows; and every second one none of the columns.
    """
    _fused_product(
        shape, dtype, w, row_step, column_step, w_next, v, v_step, row_next, channels, m, m_step, resume, last, low, narrow
    )
