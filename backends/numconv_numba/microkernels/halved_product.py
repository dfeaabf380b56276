"""Winograd's products of few tiles where sixteen registers do not hold the sums of a row of elements: see `fused_product`.

Kernels are transformed along their columns of taps first, into memory that stays near the first-level cache: of half the size of
what the whole transform gives. The other half of the transform is sums and differences of three vectors, in registers on the way to
the products of three elements of a row with four tiles at a time. To have no factors in it, the points of the interpolation are 0,
1, -1, 2, -2 and infinity, after taps were scaled by the powers of the first point of `transforms`; what its matrix has in front of
each element is left to the end of the sums.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds, rolled
from .transforms import Matrix, matrices, multiply

__all__ = ["HALVED_TAPS", "HALVED_TILES", "halve", "halved_product"]

_i64 = ir.IntType(64)

HALVED_TILES, HALVED_TAPS = 4, 3
"""Tiles that are multiplied together, and vectors of a row of a half-transformed kernel."""
_HALVES = (0, 1, 2), (5, 3, 4)
"""The elements of a row that are multiplied together: of the points 0, 1 and -1; of infinity, 2 and -2."""


def _scaled(matrix: Matrix) -> tuple[float, list[float]]:
    """The point that becomes 1, and what the elements of a row, as `_Half` makes them, are multiplied with.

    Of the points 0, p, -p, 2p, -2p and infinity, the last of which it has four times.
    """
    point = matrix[1][1] / matrix[1][0]
    return point, [*(row[0] for row in matrix[:-1]), 1 / (4 * point**2)]


@intrinsic
def _halve(
    typingctx: Any, shape: Any, dtype: Any, w: Any, row_step: Any, column_step: Any, w_next: Any, channels: Any, u: Any, u_row: Any
) -> Any:
    check_kinds((shape, dtype), (w, u))
    rows, row_taps, columns, column_taps, lanes = shape.value
    down, (point, _) = matrices(rows, row_taps).weights, _scaled(matrices(columns, column_taps).weights)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, w, row_step, column_step, w_next, channels, u, u_row = args
        emit = Emitter(builder, dtype, lanes)
        with rolled(builder, channels) as c:
            source, target = emit.at(w, builder.mul(c, w_next)), emit.at(u, emit.times(c, column_taps * emit.width))
            for s in range(column_taps):
                column = emit.at(source, emit.times(column_step, s))
                taps = [emit.load(emit.at(column, emit.times(row_step, r))) for r in range(row_taps)]
                matrix = tuple(tuple(each * point**s for each in row) for row in down)
                for i, half in enumerate(multiply(builder, emit, matrix, taps)):
                    emit.store(half, emit.at(emit.at(target, emit.times(u_row, i)), s * emit.width))
        return context.get_dummy_value()

    n = types.int64
    return types.void(shape, dtype, w, n, n, n, n, u, n), codegen


@kernel(emitted=True)
def halve(
    shape: Tag, dtype: Tag, w: Address, row_step: int, column_step: int, w_next: int, channels: int, u: Address, u_row: int
) -> None:
    """Kernels, a vector of output channels, transformed along their columns: u[i, c, s, :], for `halved_product`.

    Taps lie `row_step` and `column_step` bytes apart, and channels `w_next`; rows of u `u_row` bytes.
    """
    _halve(shape, dtype, w, row_step, column_step, w_next, channels, u, u_row)


class _Half:
    """Emits the products of three elements of a row; of every second tile without that at infinity, where `narrow` is 1."""

    def __init__(self, emit: Emitter, builder: Any, which: int, tiles: int, narrow: Any):
        self.emit, self.builder, self.which, self.narrow = emit, builder, which, narrow
        self.slots = [[emit.accumulator() for _ in range(tiles)] for _ in _HALVES[which]]

    def each(self, first: Any, step: Any) -> Any:
        """All sums, with the element of the row to which they belong, and where they lie."""
        emit = self.emit
        for j, row in zip(_HALVES[self.which], self.slots, strict=True):
            place = emit.at(first, emit.times(step, j))
            for tile, slot in enumerate(row):
                yield j, slot, emit.at(place, tile * emit.width)

    def add(self, u: Any, u_step: Any, v: Any, v_step: Any) -> None:
        """The products of a channel: a row of its half-transformed kernel, and of its tiles, element after element."""
        emit, builder = self.emit, self.builder
        first, second, third = (emit.at(u, emit.times(u_step, s)) for s in range(HALVED_TAPS))
        places = [emit.at(v, emit.times(v_step, j)) for j in _HALVES[self.which]]
        slots = [list(enumerate(row)) for row in self.slots]
        if self.which == 0:
            alone = emit.load(first)
            self.add_element(alone, places[0], slots[0])
            even, odd = builder.fadd(alone, emit.load(third)), emit.load(second)
        else:
            alone = self.twice(self.twice(emit.load(third)))
            self.add_element(alone, places[0], slots[0][::2])
            # asked anew each time: two loops, one for each answer, would take as long again to compile
            with builder.if_then(builder.icmp_signed("==", emit.opaque(self.narrow, now=True), _i64(0))):
                self.add_element(alone, places[0], slots[0][1::2])
            even, odd = builder.fadd(alone, emit.load(first)), self.twice(emit.load(second))
        self.add_element(builder.fadd(even, odd), places[1], slots[1])
        self.add_element(builder.fsub(even, odd), places[2], slots[2], shuffled=len(slots[2]) == HALVED_TILES)

    def twice(self, vector: Any) -> Any:
        """A sum, since products take the multipliers."""
        return self.builder.fadd(vector, vector)

    def add_element(self, element: Any, v: Any, slots: Iterable[tuple[int, Any]], *, shuffled: bool = False) -> None:
        """The products of an element with its broadcasts; `shuffled`: loaded together, as far as 16 bytes hold them."""
        emit, builder, blocks = self.emit, self.builder, dict[int, Any]()
        item = emit.width // emit.lanes
        several = 16 // item if shuffled else 1
        for tile, slot in slots:
            first, one = tile // several * several, tile % several
            if first not in blocks:
                blocks[first] = self.block(emit.at(v, first * item), several)
            factor = emit.shuffle(blocks[first], blocks[first], [lane // several * several + one for lane in range(emit.lanes)])
            builder.store(emit.fma(element, factor, builder.load(slot)), slot)

    def block(self, place: Any, several: int) -> Any:
        """So many neighbours, again and again in a vector."""
        emit, builder = self.emit, self.builder
        if several == 1:
            return emit.broadcast(place)
        kind = ir.VectorType(emit.vector.element, several)
        loaded = builder.load(builder.bitcast(place, kind.as_pointer()))
        loaded.align = emit.width // emit.lanes
        # LLVM would make a load of each broadcast again
        return emit.settled(emit.shuffle(loaded, loaded, [lane % several for lane in range(emit.lanes)]))

    def begin(self, goes_on: Any, target: Any, m_step: Any) -> None:
        """The sums from zero, or from where they were left."""
        emit, builder = self.emit, self.builder
        with builder.if_else(goes_on) as (go_on, begin):
            with go_on:
                for _, slot, place in self.each(target, m_step):
                    builder.store(emit.load(place), slot)
            with begin:
                for _, slot, _ in self.each(target, m_step):
                    builder.store(emit.zero, slot)

    def end(self, is_last: Any, target: Any, m_step: Any, factors: list[float]) -> None:
        """The sums to where they are left, or end."""
        emit, builder = self.emit, self.builder
        with builder.if_else(is_last) as (end, pause):
            with end:
                for j, slot, place in self.each(target, m_step):
                    emit.store(builder.fmul(builder.load(slot), emit.constant(factors[j])), place)
            with pause:
                for _, slot, place in self.each(target, m_step):
                    emit.store(builder.load(slot), place)


class _Rows:
    """Emits all rows of elements; the arguments are those of `halved_product`."""

    def __init__(self, builder: Any, shape: tuple[int, ...], dtype: Any, args: Any):
        rows, row_taps, columns, column_taps, lanes = shape
        self.builder, self.emit, self.count = builder, Emitter(builder, dtype, lanes), rows + row_taps - 1
        self.across = columns + column_taps - 1
        _, self.factors = _scaled(matrices(columns, column_taps).weights)
        (
            self.u, self.row_step, self.column_step, self.u_next, self.v, self.v_step, self.row_next, self.channels, self.m,
            self.m_step, resume, last, low, self.narrow,
        ) = args  # fmt: skip
        self.goes_on, self.is_last, self.is_low = (builder.icmp_signed("!=", flag, _i64(0)) for flag in (resume, last, low))

    def emit_all(self) -> None:
        """One row after the other."""
        builder = self.builder
        with cgutils.for_range(builder, _i64(self.count)) as row:
            is_end = builder.icmp_signed("==", row.index, _i64(self.count - 1))
            with builder.if_else(builder.and_(is_end, self.is_low)) as (two, four):
                for branch, tiles in ((two, HALVED_TILES // 2), (four, HALVED_TILES)):
                    with branch:
                        for which in range(len(_HALVES)):
                            self.emit_half(row.index, which, tiles)

    def emit_half(self, row: Any, which: int, tiles: int) -> None:
        """A half of a row of so many tiles, with all channels."""
        emit, builder = self.emit, self.builder
        half = _Half(emit, builder, which, tiles, self.narrow)
        u, v = emit.at(self.u, builder.mul(row, self.row_step)), emit.at(self.v, builder.mul(row, self.row_next))
        m = emit.at(self.m, builder.mul(row, emit.times(self.m_step, self.across)))
        half.begin(self.goes_on, m, self.m_step)
        with rolled(builder, self.channels) as c:
            factors = emit.at(v, builder.mul(c, emit.times(self.v_step, self.across)))
            half.add(emit.at(u, builder.mul(c, self.u_next)), self.column_step, factors, self.v_step)
        half.end(self.is_last, m, self.m_step, self.factors)


@intrinsic
def _halved_product(
    typingctx: Any, shape: Any, dtype: Any, u: Any, row_step: Any, column_step: Any, u_next: Any, v: Any, v_step: Any,
    row_next: Any, channels: Any, m: Any, m_step: Any, resume: Any, last: Any, low: Any, narrow: Any,
) -> Any:  # fmt: skip
    check_kinds((shape, dtype), (u, v, m))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _Rows(builder, shape.value, dtype, args[2:]).emit_all()
        return context.get_dummy_value()

    n = types.int64
    return types.void(shape, dtype, u, n, n, n, v, n, n, n, m, n, n, n, n, n), codegen


@kernel(emitted=True)
def halved_product(
    shape: Tag, dtype: Tag, u: Address, row_step: int, column_step: int, u_next: int, v: Address, v_step: int, row_next: int,
    channels: int, m: Address, m_step: int, resume: int, last: int, low: int, narrow: int,
) -> None:  # fmt: skip
    """m[i, j, tile, :] = the sum over c of the transformed kernel w[c][i, j, :] * v[i, c, j, tile], for `HALVED_TILES` tiles.

    What `fused_product` does with kernels w does this with what `halve` made of them.

    Parameters
    ----------
    shape : Tag
        Of the transform, as in `transforms`.
    dtype : Tag
        Of u, v and m.
    u : Address
        Half-transformed kernels, rows `row_step` bytes apart, columns `column_step`, and channels `u_next`.
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
    _halved_product(
        shape, dtype, u, row_step, column_step, u_next, v, v_step, row_next, channels, m, m_step, resume, last, low, narrow
    )
