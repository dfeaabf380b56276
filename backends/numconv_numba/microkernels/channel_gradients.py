"""Register tiles of depthwise weight gradients with the lanes over channels: for arrays whose channels are neighbours in memory.

A tile holds one vector for each of some rows and columns of taps, and runs along a row of grad_y: neighbouring results share
positions of x, each of which is loaded once for all taps that meet it there. Taps beside x are left out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds

__all__ = ["Beside", "beside"]

_i64 = ir.IntType(64)

(X, G, SUMS, SHIFT, X_STEP, G_STEP, X_ROW, LOW, HIGH, START, SIZE, FIRST, LAST, COUNT, JOB) = range(15)
"""The fields of a job: addresses, steps and offsets in bytes.

X: of the place that the first tap of result 0 meets, G: of result 0 of grad_y; SUMS: of a vector for each tap, SHIFT: of one for
grad_y itself, to which is added. The ..._STEP lead from a position to the next, X_ROW from a row of taps to the next, of which
those
from LOW to HIGH are there. START: the position of X, of SIZE in a row. Results FIRST to LAST of COUNT meet x with all taps.
"""


class Beside(NamedTuple):
    """The shape of a tile: rows and columns of taps, the stride and the dilation along a row, results together, lanes."""

    rows: int
    columns: int
    stride: int
    dilation: int
    results: int
    lanes: int


class _Tile:
    """A tile under construction: what its parts share."""

    def __init__(self, builder: Any, shape: Beside, dtype: Any, job: Any):
        self.builder, self.shape = builder, shape
        self.emit = emit = Emitter(builder, dtype, shape.lanes)
        self.field = {i: emit.offset(job, i) for i in range(JOB)}
        self.sums = [[emit.accumulator() for _ in range(shape.columns)] for _ in range(shape.rows)]
        self.total = emit.accumulator()

    def place(self, which: int) -> Any:
        """A field that is an address."""
        return self.builder.inttoptr(self.field[which], cgutils.voidptr_t)

    def fetch(self, *, back: bool) -> None:
        """The sums from memory, or back."""
        slots = [slot for row in self.sums for slot in row]
        places = [self.emit.at(self.place(SUMS), i * self.emit.width) for i in range(len(slots))]
        for slot, at in ((self.total, self.place(SHIFT)), *zip(slots, places, strict=True)):
            if back:
                self.emit.store(self.builder.load(slot), at)
            else:
                self.builder.store(self.emit.load(at), slot)

    def add(self, slot: Any, a: Any, b: Any) -> None:
        """One product."""
        self.builder.store(self.emit.fma(a, b, self.builder.load(slot)), slot)

    def rows(self, first: Any, body: Any) -> None:
        """The code of `body` for each row of taps that is there, with the address of x for result `first`."""
        builder, emit, field = self.builder, self.emit, self.field
        place = emit.at(self.place(X), builder.mul(builder.mul(first, field[X_STEP]), _i64(self.shape.stride)))
        for row in range(self.shape.rows):
            above = builder.icmp_signed("<=", field[LOW], _i64(row))
            with builder.if_then(builder.and_(above, builder.icmp_signed("<", _i64(row), field[HIGH])), likely=True):
                body(row, emit.at(place, emit.times(field[X_ROW], row)))

    def gradients(self, first: Any, count: int) -> list[Any]:
        """Neighbouring vectors of grad_y."""
        builder, emit, step = self.builder, self.emit, self.field[G_STEP]
        place = emit.at(self.place(G), builder.mul(first, step))
        found = [emit.load(emit.at(place, emit.times(step, i))) for i in range(count)]
        for each in found:
            builder.store(builder.fadd(builder.load(self.total), each), self.total)
        return found

    def inner(self, first: Any, results: int) -> None:
        """Results whose windows lie inside x along the row."""
        shape, emit, found = self.shape, self.emit, self.gradients(first, results)
        uses: dict[int, list[tuple[int, int]]] = {}
        for result in range(results):
            for tap in range(shape.columns):
                uses.setdefault(result * shape.stride + tap * shape.dilation, []).append((result, tap))

        def products(row: int, place: Any) -> None:
            for position, users in sorted(uses.items()):
                pixels = emit.load(emit.at(place, emit.times(self.field[X_STEP], position)))
                for result, tap in users:
                    self.add(self.sums[row][tap], pixels, found[result])

        self.rows(first, products)

    def border(self, result: Any) -> None:
        """One result, with the taps that meet x."""
        shape, emit, builder = self.shape, self.emit, self.builder
        (gradient,) = self.gradients(result, 1)
        start = builder.add(self.field[START], builder.mul(result, _i64(shape.stride)))

        def products(row: int, place: Any) -> None:
            for tap in range(shape.columns):
                position = builder.add(start, _i64(tap * shape.dilation))
                with builder.if_then(builder.icmp_unsigned("<", position, self.field[SIZE])):
                    pixels = emit.load(emit.at(place, emit.times(self.field[X_STEP], tap * shape.dilation)))
                    self.add(self.sums[row][tap], pixels, gradient)

        self.rows(result, products)


@intrinsic
def _beside(typingctx: Any, tag: Any, dtype: Any, job: Any) -> Any:
    check_kinds((tag, dtype), (job,))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        tile = _Tile(builder, Beside(*tag.value), dtype, args[2])
        first, last, count, several = tile.field[FIRST], tile.field[LAST], tile.field[COUNT], _i64(tile.shape.results)
        whole = builder.add(first, builder.mul(builder.sdiv(builder.sub(last, first), several), several))
        tile.fetch(back=False)
        for begin, end in ((_i64(0), first), (last, count)):
            with cgutils.for_range_slice(builder, begin, end, _i64(1)) as (result, _):
                tile.border(result)
        with cgutils.for_range_slice(builder, first, whole, several) as (result, _):
            tile.inner(result, tile.shape.results)
        with cgutils.for_range_slice(builder, whole, last, _i64(1)) as (result, _):
            tile.inner(result, 1)
        tile.fetch(back=True)
        return context.get_dummy_value()

    return types.void(tag, dtype, job), codegen


@kernel
def beside(shape: Tag, dtype: Tag, job: Address) -> None:
    """sums[a, t] += the sum over results p of x[a, p * stride + t * dilation] * g[p], a vector of channels each.

    `shape` is a `Beside`; for the fields of a job see above.
    """
    _beside(shape, dtype, job)
