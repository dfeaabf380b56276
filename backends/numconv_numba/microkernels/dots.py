"""Matrix products on register tiles with the lanes over terms: inner products of rows of weights with columns of x.

Where there are few pixels and many weights, as in fully connected layers and in the late ones of image networks, packing weights
costs as much as multiplying them. Here both factors are read along their terms, as they lie: a tile holds the sums of some rows and
positions, a vector of partial sums each, which are added up across the lanes at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds, host, rolled

__all__ = ["dots"]

_i64 = ir.IntType(64)


def _added_up(emit: Emitter, builder: Any, vectors: Sequence[Any]) -> Any:
    """Of as many vectors as there are lanes, or fewer, the sums across their lanes, one in each lane.

    Lanes are added in one order, whatever the number of vectors: it depends on how threads share the rows.
    """
    found, step = list(vectors), 1
    while step < emit.lanes:
        found = [*found, None] if len(found) % 2 and len(found) > 1 else found
        pairs = zip(found[::2], found[1::2] or [None], strict=True)
        found = [_paired(emit, builder, a, b, step) for a, b in pairs]
        step *= 2
    return found[0]


def _paired(emit: Emitter, builder: Any, a: Any, b: Any, step: int) -> Any:
    """Lanes of a and b added to those `step` further: the sums of b in the lanes whose number has this bit."""
    lanes = range(emit.lanes)
    other = a if b is None else b
    own = emit.shuffle(a, other, [lane + emit.lanes * bool(lane & step) for lane in lanes])
    partner = emit.shuffle(a, other, [(lane ^ step) + emit.lanes * bool(lane & step) for lane in lanes])
    return builder.fadd(own, partner)


class _Dots:
    """Emits the tile of so many rows and positions."""

    def __init__(self, emit: Emitter, builder: Any, rows: int, positions: int):
        self.emit, self.builder, self.rows, self.positions = emit, builder, rows, positions

    def add_terms(self, w: list[Any], x: list[Any], terms: Any) -> list[Any]:
        """The sums of all products, row by row."""
        emit, builder = self.emit, self.builder
        slots = [emit.accumulator() for _ in range(self.rows * self.positions)]

        def add(load: Callable[[Any], Any]) -> None:
            # the fewer ones stay in registers, each of the others passes by
            by_row = self.rows <= self.positions
            kept = list(map(load, w if by_row else x))
            for i, place in enumerate(x if by_row else w):
                passing = load(place)
                for j, other in enumerate(kept):
                    slot = slots[j * self.positions + i if by_row else i * self.positions + j]
                    builder.store(emit.fma(passing, other, builder.load(slot)), slot)

        # asked anew for each tile: loops for sums without a whole vector, or without a rest, would be compiled beside the others
        terms = emit.opaque(terms, now=True)
        whole = builder.sdiv(terms, _i64(emit.lanes))
        with rolled(builder, whole) as turn:
            offset = builder.mul(turn, _i64(emit.width))
            add(lambda place: emit.load(emit.at(place, offset)))
        rest = builder.srem(terms, _i64(emit.lanes))
        with builder.if_then(builder.icmp_signed(">", rest, _i64(0))):
            mask, end = emit.first(rest), builder.mul(whole, _i64(emit.width))
            add(lambda place: emit.load_masked(emit.at(place, end), mask))
        return [builder.load(slot) for slot in slots]

    def store(self, totals: list[Any], sums: Any, sums_k: Any, used: Any, resume: Any) -> None:
        """The totals of `used` rows, added to what is there where it goes on."""
        item, begin = self.emit.width // self.emit.lanes, 0
        while begin < self.positions:
            # powers of two, which fill a vector of sums evenly
            several = min(1 << ((self.positions - begin).bit_length() - 1), self.emit.lanes)
            some = [totals[k * self.positions + begin + p] for k in range(self.rows) for p in range(several)]
            self.store_even(some, several, self.emit.at(sums, begin * item), sums_k, used, resume)
            begin += several

    def store_even(self, totals: list[Any], positions: int, sums: Any, sums_k: Any, used: Any, resume: Any) -> None:
        """Those of a power of two of positions, no more than there are lanes."""
        emit, builder = self.emit, self.builder
        for first in range(0, len(totals), emit.lanes):
            added = _added_up(emit, builder, totals[first : first + emit.lanes])
            for start in range(first, min(first + emit.lanes, len(totals)), positions):
                k, p = divmod(start, positions)
                place = emit.at(emit.at(sums, emit.times(sums_k, k)), p * (emit.width // emit.lanes))
                moved = emit.shuffle(added, added, [(start - first + lane) % emit.lanes for lane in range(emit.lanes)])
                wanted = builder.icmp_signed("<", _i64(k), used)
                if host().masks(emit.width // emit.lanes, write=True):
                    mask = emit.first(_i64(positions))
                    before = emit.load_masked(place, emit.both(mask, builder.and_(resume, wanted)))
                    emit.store_masked(builder.fadd(moved, before), place, emit.both(mask, wanted))
                else:
                    with builder.if_then(wanted):
                        self.add_part(moved, positions, place, resume)

    def add_part(self, moved: Any, count: int, place: Any, resume: Any) -> None:
        """The first lanes of a vector, added to what is there where it goes on, as a vector of so many lanes."""
        builder, item = self.builder, self.emit.width // self.emit.lanes
        part = self.emit.shuffle(moved, moved, range(count))
        target = builder.bitcast(place, part.type.as_pointer())
        there = builder.load(target)
        there.align = item
        before = builder.select(resume, there, ir.Constant(part.type, None))
        builder.store(builder.fadd(part, before), target).align = item

    def emit_rows(self, x: Any, x_step: Any, terms: Any, w: Any, w_k: Any, count: Any, sums: Any, sums_k: Any, resume: Any) -> None:
        """All rows, a tile at a time; what the last tile lacks is its last row again, and not written."""
        emit, builder = self.emit, self.builder
        columns = [emit.at(x, emit.times(x_step, p)) for p in range(self.positions)]
        tiles = builder.sdiv(builder.add(count, _i64(self.rows - 1)), _i64(self.rows))
        with cgutils.for_range(builder, tiles) as tile:
            k = builder.mul(tile.index, _i64(self.rows))
            used = builder.sub(count, k)
            first = emit.at(w, builder.mul(k, w_k))
            last = builder.sub(used, _i64(1))
            numbers = [builder.select(builder.icmp_signed("<", _i64(i), used), _i64(i), last) for i in range(self.rows)]
            rows = [emit.at(first, builder.mul(number, w_k)) for number in numbers]
            totals = self.add_terms(rows, columns, terms)
            # asked anew each time: loops for each answer would be compiled
            go_on = builder.icmp_signed("!=", emit.opaque(resume, now=True), _i64(0))
            self.store(totals, emit.at(sums, builder.mul(k, sums_k)), sums_k, used, go_on)


def _tiles_of(builder: Any, left: Any, several: int) -> Any:
    """How many tiles of `several` positions to begin with: none is to be left alone, whose weights would come for it alone."""
    count, many = builder.sdiv(left, _i64(several)), builder.icmp_signed(">", left, _i64(1))
    if not several & several - 1:
        return count
    if several - 1 & several - 2:
        alone = builder.icmp_signed("==", builder.srem(left, _i64(several)), _i64(1))
        return builder.sub(count, builder.zext(builder.and_(alone, many), _i64))
    # of one position more than a power of two
    odd = builder.icmp_signed("==", builder.srem(left, _i64(several - 1)), _i64(1))
    return builder.zext(builder.and_(odd, many), _i64)


@intrinsic
def _dots(
    typingctx: Any, lanes: Any, dtype: Any, x: Any, x_step: Any, positions: Any, terms: Any, w: Any, w_k: Any, rows: Any, sums: Any,
    sums_k: Any, resume: Any,
) -> Any:  # fmt: skip
    check_kinds((lanes, dtype), (x, w, sums))
    n = types.int64

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, x, x_step, positions, terms, w, w_k, rows, sums, sums_k, resume = args
        emit = Emitter(builder, dtype, lanes.value)
        done = cgutils.alloca_once_value(builder, _i64(0))
        for several, at_once in host().dot_tiles:
            left = builder.sub(positions, builder.load(done))
            count = _tiles_of(builder, left, several)
            tile = _Dots(emit, builder, at_once, several)
            with cgutils.for_range(builder, count):
                start = builder.load(done)
                place = emit.at(sums, builder.mul(start, _i64(emit.width // emit.lanes)))
                tile.emit_rows(emit.at(x, builder.mul(start, x_step)), x_step, terms, w, w_k, rows, place, sums_k, resume)
                builder.store(builder.add(start, _i64(several)), done)
        return context.get_dummy_value()

    return types.void(lanes, dtype, x, n, n, n, w, n, n, sums, n, n), codegen


@kernel(emitted=True)
def dots(
    lanes: Tag, dtype: Tag, x: Address, x_step: int, positions: int, terms: int, w: Address, w_k: int, rows: int, sums: Address,
    sums_k: int, resume: int,
) -> None:  # fmt: skip
    """sums[k, p] = the sum over t of w[k, t] * x[p, t], in as many partial sums as a vector has lanes.

    Parameters
    ----------
    lanes : Tag
        Of a vector.
    dtype : Tag
        Of all arrays.
    x, w : Address
        Terms follow each other.
    x_step, w_k, sums_k : int
        Bytes from position to position of x, and from row to row of w and of the sums, whose positions are neighbours.
    positions, terms, rows : int
        How many.
    sums : Address
    resume : int
        1 to add to the sums that are there.
    """
    _dots(lanes, dtype, x, x_step, positions, terms, w, w_k, rows, sums, sums_k, resume)
