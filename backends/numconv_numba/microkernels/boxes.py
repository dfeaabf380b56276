"""Averages of windows row by row: along the outer axes first, then along the row, from registers.

A row of results reads some rows of x. Their sum stays in vectors; what each tap along the row takes of these is known when the code
is made, so that it is a shuffle: nothing is loaded twice, and a row that is shorter than a vector costs one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds, rolled
from .memory import Memory
from .row_access import picked

__all__ = ["BOX", "boxes", "vectors_read"]

BOX = ("first", "rows", "plane_rows", "plane_step", "list_step", "y_step", "start", "advance", "begin", "end", "chunks", "fetched")
LINE, AHEAD = 64, 4096
"""Bytes that one prefetch brings; how far ahead x is fetched: masked loads of short rows train no prefetcher."""
_i64, _double = ir.IntType(64), ir.DoubleType()


def vectors_read(lanes: int, stride: int, places: Sequence[int], results: int) -> int:
    """How many vectors of x so many vectors of results read."""
    return (stride * (lanes * results - 1) + places[-1]) // lanes + 1


class _Boxes:
    """The code of one call of `boxes`."""

    def __init__(self, context: Any, builder: Any, shape: Any, dtypes: Any, given: dict[str, Any]):
        lanes, self.stride, self.places, self.vectors, self.results, self.single = shape
        outside, inside = dtypes
        self.builder, self.emit, self.given = builder, Emitter(builder, inside, lanes), given
        self.memory = Memory(context, builder, self.emit, outside)
        self.item = self.emit.width // lanes
        given.update({name: self.emit.offset(given["job"], number) for number, name in enumerate(BOX)})
        self.known = self.masks(_i64(0)) if self.single else None

    def masks(self, number: Any) -> tuple[list[Any], list[Any]]:
        """Which lanes of the vectors of x and of results exist in a chunk that has such a number in the table."""
        builder, each = self.builder, self.vectors + self.results
        begin = builder.mul(number, _i64(each))
        flags = [self.emit.flags(self.given["flags"], builder.add(begin, _i64(i))) for i in range(each)]
        return flags[: self.vectors], flags[self.vectors :]

    def rows(self) -> None:
        """All rows of results, of one plane after the other."""
        builder, emit, given = self.builder, self.emit, self.given
        first, lists = given["first"], given["lists"]
        number = cgutils.alloca_once_value(builder, first)
        plane = cgutils.alloca_once_value(builder, given["x"])
        with rolled(builder, given["rows"]) as index:
            here, x = builder.load(number), builder.load(plane)
            given["list"], given["source"] = emit.at(lists, builder.mul(here, given["list_step"])), x
            given["target"] = emit.at(given["y"], builder.mul(index, given["y_step"]))
            self.row()
            following = builder.add(here, _i64(1))
            done = builder.icmp_signed("==", following, given["plane_rows"])
            builder.store(builder.select(done, _i64(0), following), number)
            builder.store(emit.at(x, builder.select(done, given["plane_step"], _i64(0))), plane)

    def row(self) -> None:
        """A row: a chunk of it, or the chunks that lie inside, and those at its ends."""
        builder, given = self.builder, self.given
        given["count"] = self.emit.offset(given["list"], 0)
        given["scale"] = self.number(builder.bitcast(self.emit.offset(given["list"], 1), _double))
        self.fetch_ahead()
        if self.single:
            self.chunk(_i64(0), self.known)
            return
        inside = builder.sub(given["end"], given["begin"])
        with rolled(builder, builder.sub(given["chunks"], inside)) as number:
            behind = builder.icmp_signed(">=", number, given["begin"])
            self.chunk(builder.add(number, builder.select(behind, inside, _i64(0))), self.masks(number))
        with rolled(builder, inside) as number:
            self.chunk(builder.add(given["begin"], number), None)

    def number(self, double: Any) -> Any:
        """A float64 in all lanes."""
        element = self.emit.vector.element
        return self.emit.spread(double if element == _double else self.builder.fptrunc(double, element))

    def fetch_ahead(self) -> None:
        """Bring what a later row reads first into the cache, as much as one of them needs."""
        builder, emit, given = self.builder, self.emit, self.given
        newest = emit.offset(given["list"], builder.add(given["count"], _i64(1)))
        begin = emit.at(given["source"], builder.add(newest, _i64(AHEAD)))
        with rolled(builder, builder.udiv(builder.add(given["fetched"], _i64(LINE - 1)), _i64(LINE))) as line:
            emit.prefetch(emit.at(begin, builder.mul(line, _i64(LINE))), write=False)

    def chunk(self, number: Any, masks: tuple[list[Any], list[Any]] | None) -> None:
        """Some vectors of results; all lanes exist without masks."""
        builder, emit, given = self.builder, self.emit, self.given
        x = emit.at(given["source"], builder.add(given["start"], builder.mul(number, given["advance"])))
        sums = [cgutils.alloca_once(builder, emit.vector) for _ in range(self.vectors)]
        for slot, new in zip(sums, self.loaded(x, _i64(2), masks), strict=True):
            builder.store(new, slot)
        with rolled(builder, builder.sub(given["count"], _i64(1))) as row:
            for slot, new in zip(sums, self.loaded(x, builder.add(row, _i64(3)), masks), strict=True):
                builder.store(builder.fadd(builder.load(slot), new), slot)
        vectors = list(map(builder.load, sums))
        before = builder.mul(number, _i64(self.results * emit.lanes))
        shares = emit.at(given["shares"], builder.mul(before, _i64(self.item)))
        target = emit.at(given["target"], builder.mul(before, _i64(self.memory.item)))
        for result in range(self.results):
            share = builder.fmul(emit.load(emit.at(shares, result * emit.width)), given["scale"])
            mean = builder.fmul(self.total(vectors, result), share)
            place = emit.at(target, result * self.memory.width)
            if masks is None:
                self.memory.store(mean, place)
            else:
                self.memory.store_masked(mean, place, masks[1][result])

    def loaded(self, x: Any, entry: Any, masks: tuple[list[Any], list[Any]] | None) -> list[Any]:
        """The vectors of a row of x, which has such an entry in the list."""
        row = self.emit.at(x, self.emit.offset(self.given["list"], entry))
        places = [self.emit.at(row, v * self.memory.width) for v in range(self.vectors)]
        if masks is None:
            return list(map(self.memory.load, places))
        return [self.memory.load_masked(place, mask) for place, mask in zip(places, masks[0], strict=True)]

    def total(self, vectors: list[Any], result: int) -> Any:
        """The sums of a vector of windows: the taps in order."""
        lanes, total = self.emit.lanes, None
        for place in self.places:
            taken = self.taken(vectors, [self.stride * (result * lanes + lane) + place for lane in range(lanes)])
            if taken is not None:
                total = taken if total is None else self.builder.fadd(total, taken)
        return total

    def taken(self, vectors: list[Any], positions: list[int]) -> Any:
        """The elements at some positions, zero behind the last vector; None if all are."""
        lanes = self.emit.lanes
        first = positions[0] // lanes
        some = vectors[first : positions[-1] // lanes + 1]
        if not some:
            return None
        inside = [position < len(vectors) * lanes for position in positions]
        found = picked(self.emit, some, [(p - first * lanes) * there for p, there in zip(positions, inside, strict=True)])
        if all(inside):
            return found
        mask = ir.Constant(ir.VectorType(ir.IntType(1), lanes), inside)
        return self.builder.select(mask, found, self.emit.zero)


@intrinsic
def _boxes(
    typingctx: Any, shape: Any, dtypes: Any, x: Any, lists: Any, y: Any, shares: Any, flags: Any, job: Any
) -> Any:  # fmt: skip
    check_kinds((shape, dtypes), (x, lists, y, shares, flags, job))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        given = dict(zip(("x", "lists", "y", "shares", "flags", "job"), args[2:], strict=True))
        _Boxes(context, builder, shape.value, dtypes.value, given).rows()
        return context.get_dummy_value()

    return types.void(shape, dtypes, *[x] * 6), codegen


@kernel
def boxes(
    shape: Tag, dtypes: Tag, x: Address, lists: Address, y: Address, shares: Address, flags: Address, job: Address
) -> None:  # fmt: skip
    """Some rows of results.

    Parameters
    ----------
    shape : Tag
        (lanes, stride, places, vectors, results, single). Places are the positions of the taps of result 0. A chunk of a row is so
        many vectors of results, and reads so many of x, what lies behind these being zero; `single`: a row is one chunk.
    dtypes : Tag
        A pair: that of the arrays, and that of sums, float32 or float64.
    x, y : Address
        The first plane, and the first row of results. Elements lie next to each other.
    lists : Address
        For each row of results of a plane int64 numbers: how many rows of x it reads; as float64, its scale; the byte offset of
        each row in the plane.
    shares : Address
        By which each result of a row is multiplied, beside the scale: of the dtype of sums, up to the end of the last chunk.
    flags : Address
        A table of `emit.flag_table`, for the dtype of sums: which lanes exist, for each chunk that is not inside the row the
        vectors of x, then those of results.
    job : Address
        Of int64 numbers, in the order of `BOX`: the first row of results in its plane; how many; rows of a plane; bytes from
        plane to plane of x, from list to list, from row to row of y; from where a row of x begins to where the first chunk reads,
        and from there to the next chunk; from which to which chunk they lie inside a row, and how many there are; bytes of x from
        row to row of results, which are fetched ahead.
    """
    _boxes(shape, dtypes, x, lists, y, shares, flags, job)
