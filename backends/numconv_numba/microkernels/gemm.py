"""Matrix products on register tiles with the lanes over pixels, whose results are stored where they belong.

The terms of some neighbouring outputs are gathered into a panel, ``[term][pixel]``: a few columns of the matrix that im2col would
build, which every output channel then reads. A tile holds `vectors` x `channels` accumulators, as in `tiles`; here its pixels are
aligned and follow each other term by term, weights lie at one step, and bias and activation are applied in registers. Goto and
van de Geijn, "Anatomy of high-performance matrix multiplication" (2008), section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

from .emit import Emitter, check_kinds, emitter_of, rolled
from .memory import Memory

__all__ = ["Columns", "multiply", "repeat", "touched_lines"]

_i64 = ir.IntType(64)
_LINE = 64
UNROLLED = 2
PIECES = 5
"""Pieces that are copied together: each takes a mask register and two general ones."""


def touched_lines(size: int, item: int) -> int:
    """Cache lines that so many bytes lie in at most, wherever an element of `item` bytes may begin."""
    return 1 + -(-(size - item) // _LINE)


def repeat(builder: Any, count: Any, body: Callable[[Any], None], after: Callable[[Any], None] = lambda i: None) -> None:
    """body(i) for i < count, `UNROLLED` in a turn: a loop's own additions compete with the multiply-adds for ports.

    At the end of a turn comes after(i) for each of its i.
    """
    with rolled(builder, builder.sdiv(count, _i64(UNROLLED))) as turn:
        turns = [builder.add(builder.mul(turn, _i64(UNROLLED)), _i64(i)) for i in range(UNROLLED)]
        for each in (body, after):
            for i in turns:
                each(i)
    rest = builder.srem(count, _i64(UNROLLED))
    with cgutils.for_range(builder, rest) as turn:
        body(builder.add(builder.sub(count, rest), turn.index))


class Columns:
    """Emits the copies of a panel's terms from x: of each term some pieces, which are runs of neighbours.

    Parameters
    ----------
    x, offsets, terms, pieces, panel, width
        See `multiply`.
    """

    def __init__(self, emit: Emitter, builder: Any, x: Any, offsets: Any, terms: Any, pieces: Any, panel: Any, width: Any):
        self.emit, self.builder = emit, builder
        self.x, self.offsets, self.terms, self.pieces, self.panel, self.width = x, offsets, terms, pieces, panel, width

    def places(self, first: Any, several: int) -> list[Any]:
        """(source, target, mask) of so many pieces; the masks stay in registers."""
        emit, builder = self.emit, self.builder
        start = builder.mul(first, _i64(3))
        entries = [
            [emit.offset(self.pieces, builder.add(start, _i64(3 * piece + i))) for i in range(3)] for piece in range(several)
        ]
        return [(emit.at(self.x, source), emit.at(self.panel, target), emit.first(length)) for source, target, length in entries]

    def copy(self, places: list[Any], term: Any) -> None:
        """One term of these pieces."""
        emit, builder = self.emit, self.builder
        offset, row = emit.offset(self.offsets, term), builder.mul(term, self.width)
        vectors = [emit.load_masked(emit.at(source, offset), mask) for source, _, mask in places]
        for vector, (_, target, mask) in zip(vectors, places, strict=True):
            emit.store_masked(vector, emit.at(target, row), mask)

    def copy_all(self, count: Any) -> None:
        """All terms of all pieces."""
        builder = self.builder

        def copy(first: Any, several: int) -> None:
            places = self.places(first, several)
            repeat(builder, self.terms, lambda term: self.copy(places, term))

        with cgutils.for_range(builder, builder.sdiv(count, _i64(PIECES))) as turn:
            copy(builder.mul(turn.index, _i64(PIECES)), PIECES)
        rest = builder.srem(count, _i64(PIECES))
        for several in range(1, PIECES):
            with builder.if_then(builder.icmp_signed("==", rest, _i64(several))):
                copy(builder.sub(count, _i64(several)), several)


class _Tiles:
    """Emits the tiles of one number of vectors, for all channels."""

    def __init__(self, emit: Emitter, builder: Any, results: Memory, args: Any, vectors: int, channels: int):
        self.emit, self.builder, self.results, self.vectors, self.channels = emit, builder, results, vectors, channels
        (
            self.panel, self.terms, self.w, self.w_step, self.w_k, self.w_tile, self.tiles, self.sums, self.resume, self.finish,
            self.y, self.y_k, places, self.pixels, self.bias, self.relu, x, offsets, pieces, self.count, self.ahead,
        ) = args  # fmt: skip
        self.masks = [emit.first(builder.sub(self.pixels, _i64(v * emit.lanes))) for v in range(vectors)]
        self.slots = [[emit.accumulator() for _ in range(vectors)] for _ in range(channels)]
        self.columns = Columns(emit, builder, x, offsets, self.terms, pieces, self.panel, _i64(vectors * emit.width))
        self.filling = builder.icmp_signed("<", self.count, _i64(0))
        self.places = [emit.offset(places, v) for v in range(vectors)]
        self.sources = [emit.at(x, emit.offset(pieces, 3 * v)) for v in range(vectors)]

    def each(self) -> Any:
        """(channel, vector, accumulator) of a tile."""
        return ((k, v, self.slots[k][v]) for k in range(self.channels) for v in range(self.vectors))

    def start(self, sums: Any) -> None:
        """Zero, or the sums so far."""
        emit, builder = self.emit, self.builder
        with builder.if_else(builder.icmp_signed("!=", self.resume, _i64(0))) as (go_on, begin):
            with go_on:
                for k, v, slot in self.each():
                    builder.store(emit.load(emit.at(sums, (k * self.vectors + v) * emit.width)), slot)
            with begin:
                for _, _, slot in self.each():
                    builder.store(emit.zero, slot)

    def fetch(self, y: Any) -> None:
        """Bring the lines of y that a tile will write: a row that begins within one ends in another."""
        emit, builder = self.emit, self.builder
        rows = [emit.at(y, emit.times(self.y_k, k)) for k in range(self.channels)]
        with builder.if_then(builder.icmp_signed("!=", self.finish, _i64(0))):
            for row in rows:
                for place in self.places:
                    emit.prefetch(emit.at(row, place), write=True)
            # the last vector's end; that of another is mostly where the next one begins
            start = emit.at(y, self.places[-1])
            apart = builder.and_(builder.or_(builder.ptrtoint(start, _i64), self.y_k), _i64(_LINE - 1))
            with builder.if_then(builder.icmp_signed("!=", apart, _i64(0))):
                for row in rows:
                    emit.prefetch(emit.at(emit.at(row, self.places[-1]), self.results.width - 1), write=True)

    def add_term(self, w: Any, term: Any, places: list[Any], copies: Sequence[Any] = ()) -> None:
        """One term, whose pixels lie at these places, and are stored at those of the copies."""
        emit, builder = self.emit, self.builder
        # LLVM would keep a register for each channel of each term of a turn, and load those of the next one ahead
        weights = emit.opaque(emit.at(w, builder.mul(term, self.w_step)), now=True)
        pixels = list(map(emit.load, places))
        for pixel, copy in zip(pixels, copies, strict=False):
            emit.store(pixel, copy)
        for k in range(self.channels):
            weight = emit.broadcast(emit.at(weights, emit.times(self.w_k, k)))
            for v in range(self.vectors):
                builder.store(emit.fma(pixels[v], weight, builder.load(self.slots[k][v])), self.slots[k][v])

    def in_panel(self, term: Any) -> list[Any]:
        """Where the pixels of a term lie in the panel."""
        row = self.emit.at(self.panel, self.builder.mul(term, _i64(self.vectors * self.emit.width)))
        return [self.emit.at(row, v * self.emit.width) for v in range(self.vectors)]

    def in_source(self, term: Any) -> list[Any]:
        """Where they lie in x."""
        offset = self.emit.offset(self.columns.offsets, term)
        return [self.emit.at(source, offset) for source in self.sources]

    def add_terms(self, w: Any, tile: Any) -> None:
        """All terms, of a panel that is full or from x itself; the first tiles fetch what is read after this panel.

        Each of those fetches a line of every term. The others are spared the look for it: loads compete with those of factors.
        """
        emit, builder = self.emit, self.builder
        lines = _i64(touched_lines(self.vectors * emit.width, emit.width // emit.lanes))
        some = builder.and_(builder.icmp_signed("!=", self.ahead, _i64(0)), builder.icmp_signed("<", tile, lines))
        step = builder.select(some, builder.add(self.ahead, emit.times(tile, _LINE)), _i64(0))
        place = emit.at(self.sources[0], step)

        def fetch(term: Any) -> None:
            emit.prefetch(emit.at(place, emit.offset(self.columns.offsets, term)), write=False, level=2)

        def copied(term: Any) -> None:
            self.add_term(w, term, self.in_panel(term))

        def direct(term: Any) -> None:
            self.add_term(w, term, self.in_source(term), self.in_panel(term))

        # the first tile copies what it reads: its loads and stores take their turns beside the multiply-adds
        copies = builder.and_(self.filling, builder.icmp_signed("==", tile, _i64(0)))
        with builder.if_else(copies) as (first, other):
            with first:
                repeat(builder, self.terms, direct, fetch)
            with other, builder.if_else(some) as (fetching, plain):
                with fetching:
                    repeat(builder, self.terms, copied, fetch)
                with plain:
                    repeat(builder, self.terms, copied)

    def write(self, y: Any, bias: Any) -> None:
        """To y with bias and activation; whole vectors without masks."""
        emit, builder = self.emit, self.builder
        clip = builder.icmp_signed("!=", self.relu, _i64(0))
        starts = [emit.at(y, place) for place in self.places]
        each = [(k, v, slot, emit.at(starts[v], emit.times(self.y_k, k))) for k, v, slot in self.each()]
        with builder.if_then(builder.icmp_unsigned("!=", builder.ptrtoint(bias, _i64), _i64(0))):
            for k, _, slot, _ in each:
                shift = emit.broadcast(emit.at(bias, k * emit.width // emit.lanes))
                builder.store(builder.fadd(builder.load(slot), shift), slot)
        with builder.if_then(clip):
            for _, _, slot, _ in each:
                builder.store(emit.positive(builder.load(slot), emit.spread(clip)), slot)
        full = builder.icmp_signed("==", self.pixels, _i64(self.vectors * emit.lanes))
        with builder.if_else(full) as (whole, part):
            with whole:
                for _, _, slot, place in each:
                    self.results.store(builder.load(slot), place)
            with part:
                for _, v, slot, place in each:
                    self.results.store_masked(builder.load(slot), place, self.masks[v])

    def store(self, sums: Any, y: Any, bias: Any) -> Any:
        """To y with bias and activation, or the bare sums; returns whether a sum is not finite, as an int64."""
        emit, builder = self.emit, self.builder
        checks: list[Any] = [None] * self.vectors  # what is not finite stays in a sum; one that overflows costs a second look at w
        for _, v, slot in self.each():
            value = builder.load(slot)
            checks[v] = value if checks[v] is None else builder.fadd(checks[v], value)
        bad = ir.Constant(self.masks[0].type, None)
        for check, mask in zip(checks, self.masks, strict=True):
            bad = builder.or_(bad, builder.and_(emit.not_finite(check), mask))
        found = emit.opaque(emit.any(bad), now=True)  # LLVM would keep all sums beside the results that are made of them
        with builder.if_else(builder.icmp_signed("!=", self.finish, _i64(0))) as (finished, kept):
            with finished:
                self.write(y, bias)
            with kept:
                for k, v, slot in self.each():
                    emit.store(builder.load(slot), emit.at(sums, (k * self.vectors + v) * emit.width))
        return found

    def emit_all(self) -> Any:
        """The panel, then all tiles one after the other; whether a sum is not finite, as an int64."""
        emit, builder = self.emit, self.builder
        flag = cgutils.alloca_once_value(builder, _i64(0))
        absent = builder.icmp_unsigned("==", builder.ptrtoint(self.bias, _i64), _i64(0))
        bias_step = builder.select(absent, _i64(0), _i64(self.channels * emit.width // emit.lanes))
        self.columns.copy_all(self.count)
        self.fetch(self.y)
        with cgutils.for_range(builder, self.tiles) as tile:
            sums = emit.at(self.sums, emit.times(tile.index, self.channels * self.vectors * emit.width))
            y = emit.at(self.y, builder.mul(tile.index, emit.times(self.y_k, self.channels)))
            w = emit.at(self.w, builder.mul(tile.index, self.w_tile))
            self.start(sums)
            following = builder.add(tile.index, _i64(1))
            step = builder.select(builder.icmp_signed("<", following, self.tiles), emit.times(self.y_k, self.channels), _i64(0))
            self.fetch(emit.at(y, step))
            self.add_terms(w, tile.index)
            found = self.store(sums, y, emit.at(self.bias, builder.mul(tile.index, bias_step)))
            builder.store(builder.or_(builder.load(flag), found), flag)
        return builder.load(flag)


@intrinsic
def _multiply(
    typingctx: Any, shape: Any, dtype: Any, vectors: Any, panel: Any, terms: Any, w: Any, w_step: Any, w_k: Any, w_tile: Any,
    tiles: Any, sums: Any, resume: Any, finish: Any, y: Any, y_k: Any, places: Any, pixels: Any, bias: Any, relu: Any, x: Any,
    offsets: Any, pieces: Any, count: Any, ahead: Any,
) -> Any:  # fmt: skip
    check_kinds((shape, dtype), (panel, w, sums, y, places, bias, x, offsets, pieces))
    most, channels, lanes = shape.value
    n = types.int64

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        factor, out = dtype.value
        emit, result = emitter_of(builder, factor, lanes), cgutils.alloca_once_value(builder, _i64(0))
        results = Memory(context, builder, emit, out)
        for used in range(1, most + 1):
            with builder.if_then(builder.icmp_signed("==", args[2], _i64(used))):
                builder.store(_Tiles(emit, builder, results, args[3:], used, channels).emit_all(), result)
        return builder.load(result)

    return n(shape, dtype, n, panel, n, w, n, n, n, n, sums, n, n, y, n, places, n, bias, n, x, offsets, pieces, n, n), codegen


@kernel(emitted=True)
def multiply(
    shape: Tag, dtype: Tag, vectors: int, panel: Address, terms: int, w: Address, w_step: int, w_k: int, w_tile: int, tiles: int,
    sums: Address, resume: int, finish: int, y: Address, y_k: int, places: Address, pixels: int, bias: Address, relu: int,
    x: Address, offsets: Address, pieces: Address, count: int, ahead: int,
) -> int:  # fmt: skip
    """y[k, i] = the sum over t of w[k, t] * panel[t, i]: one chain each, in this order. Returns 1 if a sum is not finite, else 0.

    Before, panel[t, target + i] = x[source + offsets[t] + i] for i < length, for each piece (source, target, length). If `count` is
    negative, each vector is a piece, and the first tile copies them as it reads them.

    Parameters
    ----------
    shape : Tag
        (most vectors, channels, lanes) of a tile.
    dtype : Tag
        A pair: of the factors, which may be pairs of bfloat16 numbers, and of y. Sums have the dtype of the factors, or float32.
    vectors : int
        Vectors of a term of the panel, no more than a tile has.
    panel : Address
        ``[term][vector]``.
    terms : int
    w : Address
    w_step, w_k, w_tile : int
        Bytes from term to term, from channel to channel of a tile, and from tile to tile.
    tiles : int
        How many tiles of output channels, one at least.
    sums : Address
        ``[tile][channel][vector]``: the sums between calls that share a chain.
    resume, finish : int
        1 to go on with `sums`; 1 to write y, 0 to leave the results in `sums`.
    y : Address
    y_k : int
        Bytes from channel to channel.
    places : Address
        Of an int64 table: the byte offset in y of each vector.
    pixels : int
        Pixels that are wanted, no more than the vectors hold.
    bias : Address
        Of the first channel's, or 0.
    relu : int
        1 to write the positive part.
    x : Address
    offsets : Address
        Of an int64 table: the byte offset in x of each term.
    pieces : Address
        Of an int64 table: source in x and target in a term of the panel, in bytes, and length in elements, no more than lanes.
    count : int
        Number of pieces; 0 where the panel is full, -1 where the first tile fills it.
    ahead : int
        Bytes from the first pixel to that in x of the next panel, which is fetched; 0 if there is none.
    """
    return _multiply(
        shape, dtype, vectors, panel, terms, w, w_step, w_k, w_tile, tiles, sums, resume, finish, y, y_k, places, pixels, bias,
        relu, x, offsets, pieces, count, ahead,
    )  # fmt: skip
