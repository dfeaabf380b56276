"""The kernels of matrix products whose second factor is gathered on the way.

A block computes a tile of the product. Slices of both factors come into shared memory by asynchronous copies, some slices ahead, so
that no thread waits for memory and none holds what it copies; padding is copied as zeros (PTX ISA, "cp.async"). Each thread
multiplies its own small tile out of registers. Lanes are arranged so that those who share rows or columns of a warp's tile load
them from shared memory together (NVIDIA CUTLASS, "Efficient GEMM in CUDA"; S. Gray, "SGEMM", 2015).

What a line of the second factor needs is in a table in shared memory, and what a term needs in a ring that some of the threads keep
ahead of the copies: see `numconv_cuda.places`.

Every term that lies on padding is a product with a zero. So that a factor that is not finite adds nothing there, a block with a
result that is not finite looks through its part of the first factor, and computes its results anew, term by term, if it meets one.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from numconv.plugin import np_dtype

from .compiler import SIMULATED, Kernel, cuda, device, kernel, types
from .copies import (
    anew,
    copies_end,
    copies_wait,
    copy_grid,
    copy_grid_wide,
    copy_sums,
    copy_sums_wide,
    entries,
    index_as,
    store_tile,
    vanished,
)
from .elements import (
    activated,
    add,
    cast,
    conj,
    div,
    load,
    mod,
    muladd,
    outer,
    outer_second,
    poke,
    quads,
    repeated,
    replaced,
    shifted,
    store,
    unpack,
)
from .gemm import ALIGNMENT, Operation
from .geometry import BIASED, coordinates, offset_of
from .neighbours import Way
from .phases import phase_of
from .places import NOWHERE, folded_offset

__all__ = ["TILES", "Recipe", "Tile", "product_kernel", "tiles_of"]

GAP = 4
"""Numbers between the rows of a slice in shared memory, so that writing a column of it meets different banks."""
QUAD = 4
LARGEST = 256
"""Threads of a block."""
AT_ONCE = 8
"""Parts of a sum, and places of lines, that are loaded together."""


class Tile(NamedTuple):
    """The part of the product that a block computes, the depth of a slice, the part of a thread, and the arrangement of lanes.

    Numbers of rows and columns are multiples of 4, those of lanes even.
    """

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int
    lane_rows: int
    lane_columns: int
    stages: int = 4

    @property
    def threads(self) -> int:
        """Of a block."""
        return (self.rows // self.thread_rows) * (self.columns // self.thread_columns)

    @property
    def warp(self) -> tuple[int, int]:
        """Rows and columns of a warp's tile."""
        return self.thread_rows * self.lane_rows, self.thread_columns * self.lane_columns

    @property
    def residents(self) -> int:
        """Blocks for which a multiprocessor must have registers: 65,536, of which a thread gets 128, and more in a small block."""
        return max(512 // self.threads - (self.threads < 128), 1)


TILES: dict[int, tuple[Tile, ...]]
if SIMULATED:  # a thread of the simulator is one of Python's
    TILES = dict.fromkeys((4, 8, 16), (Tile(16, 8, 4, 8, 4, 2, 2, 3), Tile(8, 8, 4, 4, 4, 2, 2, 3), Tile(4, 16, 4, 4, 4, 1, 2, 3)))
else:
    TILES = {
        4: (Tile(128, 128, 8, 8, 8, 4, 8), Tile(64, 128, 8, 8, 8, 4, 8), Tile(64, 64, 8, 8, 8, 4, 8),
            Tile(32, 128, 8, 8, 8, 4, 8), Tile(16, 256, 8, 8, 8, 2, 16), Tile(4, 512, 4, 4, 8, 1, 32, 3)),
        8: (Tile(64, 128, 8, 4, 8, 4, 8, 3), Tile(32, 128, 8, 4, 8, 4, 8, 3)),
        16: (Tile(32, 64, 4, 4, 4, 4, 8, 3), Tile(16, 64, 4, 4, 4, 4, 8, 3)),
    }  # fmt: skip
"""By the bytes of a number, the largest first. A thread's tile has up to 64 registers."""


def tiles_of(dtype: str) -> tuple[Tile, ...]:
    """The tiles of numbers of an accumulation dtype."""
    return TILES[max(np_dtype(dtype).itemsize, 4)]


class Recipe(NamedTuple):
    """What a kernel is made for."""

    tile: Tile
    dtype: str
    """Of accumulation."""
    ways: tuple[Way, Way]
    """How both factors are copied."""
    ndim: int
    folded: bool = False
    """Whether padding copies values."""
    phased: bool = False
    """Whether it computes a strided gradient of x by phases."""
    converted: bool = False
    """Whether elements are of another dtype in memory."""
    index_dtype: str = "int32"

    def __str__(self) -> str:
        tile, ways = self.tile, "_".join(map(str, self.ways))
        shape = f"{tile.rows}x{tile.columns}x{tile.depth}_{tile.thread_rows}x{tile.thread_columns}_{tile.stages}"
        kind = f"{'_folded' * self.folded}{'_phased' * self.phased}{'_converted' * self.converted}"
        return f"{shape}_{self.dtype}_{ways}_{self.ndim}d{kind}_{self.index_dtype}"

    @property
    def residents(self) -> int:
        """Blocks for which a multiprocessor must have registers: fewer where there is more to hold than a thread's tile."""
        most = self.tile.residents
        if self.index_dtype != "int32":
            return max(most // 2, 1)
        more = self.phased or self.converted or (np_dtype(self.dtype).itemsize > QUAD and self.tile.threads < LARGEST)
        return max(most - max(most // 4, 1), 1) if more else most

    @property
    def entry(self) -> int:
        """Numbers of an entry of the tables: an offset and a position, a multiple of 4 of them."""
        return -(-(1 + self.ndim) // QUAD) * QUAD


# --- tables ----------------------------------------------------------------------------------------------------------------------


class _Tables(NamedTuple):
    """Device functions for the tables in shared memory, whose entries are an offset and a position."""

    fill_columns: Any
    """Write the place of each column of the block."""
    begin: Any
    """Write the first entries of the ring of terms, and the cursors by which it goes on: (volumes, position) of a term."""
    go_on: Any
    """Write an entry of the ring for the term of a cursor, and move the cursor by the depth of a slice."""


def _tables(operation: Operation, recipe: Recipe) -> _Tables:
    places, folded, entry, ndim = operation.places, recipe.folded, recipe.entry, recipe.ndim
    tile = recipe.tile
    width, threads, depth, ring = tile.columns, tile.threads, tile.depth, tile.depth * tile.stages
    find_column, find_term, volume, sizes = places.column, places.term, operation.volume, operation.sizes

    @device
    def fill_columns(table, g, group, column, columns, thread):
        for line in range(thread, width, threads):
            here = column + line
            offset, position = find_column(g, group, min(here, columns - 1), folded)
            poke(table, line * entry, offset)
            for axis in range(ndim):
                poke(table, line * entry + 1 + axis, position[axis] if here < columns else NOWHERE)

    @device
    def fill_term(ring_a, ring_b, g, place, volumes, position, there):
        offset_a, offset, shift = find_term(g, volumes, position, folded)
        poke(ring_a, place, offset_a)
        poke(ring_b, place * entry, offset)
        for axis in range(ndim):
            poke(ring_b, place * entry + 1 + axis, shift[axis] if there else NOWHERE)

    @device
    def begin(ring_a, ring_b, cursors, g, first, last, thread):
        for place in range(thread, ring + depth + 1, threads):
            index = depth if place == ring + depth else first + place
            volumes, position = div(index, volume(g)), coordinates(mod(index, volume(g)), sizes(g))
            if place < ring:
                fill_term(ring_a, ring_b, g, place, volumes, position, first + place < last)
            else:
                poke(cursors, (place - ring) * entry, volumes)
                for axis in range(ndim):
                    poke(cursors, (place - ring) * entry + 1 + axis, position[axis])

    @device
    def go_on(ring_a, ring_b, cursors, g, buffer, term, last, thread):
        one = repeated(g.n, entry)
        cursor, step = entries(cursors, thread * entry, 0, one, one), entries(cursors, depth * entry, 0, one, one)
        position, carry, limits = sizes(g), 0, sizes(g)
        for axis in range(ndim):
            position = replaced(position, axis, cursor[1 + axis])
        fill_term(ring_a, ring_b, g, buffer * depth + thread, cursor[0], position, term + thread < last)
        for axis in range(ndim - 1, -1, -1):
            moved = index_as(position[axis] + step[1 + axis] + carry, g.n)
            carry = 1 if moved >= limits[axis] else 0
            poke(cursors, thread * entry + 1 + axis, moved - limits[axis] if carry else moved)
        poke(cursors, thread * entry, cursor[0] + step[0] + carry)

    return _Tables(fill_columns, begin, go_on)


# --- copies ----------------------------------------------------------------------------------------------------------------------


class _Spread(NamedTuple):
    """How the copies of a slice are spread over threads."""

    first: Any
    """The device function that gives the first line and term of a thread."""
    busy: int
    """Threads that have any."""
    lines: int
    terms: int
    """How many of both a thread copies."""
    line_step: int
    term_step: int


def _spread(way: Way, lines: int, tile: Tile) -> _Spread:
    """Across the terms, neighbouring threads copy neighbouring lines; along them, neighbouring terms."""
    across, wide = way
    depth, busy = tile.depth, min(tile.threads, lines // way.wide * tile.depth)
    side = min(lines // wide if across else depth, busy)
    others = busy // side

    @device
    def first(thread):
        if across:
            return mod(thread, side) * wide, div(thread, side)
        return div(thread, side), mod(thread, side)

    if across:
        return _Spread(first, busy, lines // wide // side, depth // others, side * wide, others)
    return _Spread(first, busy, lines // others, 1, others, 0)


def _first_copier(operation: Operation, recipe: Recipe) -> Any:
    """The device function by which a thread begins its copies of a slice of the first factor."""
    tile, way = recipe.tile, recipe.ways[0]
    depth, pitch = tile.depth, tile.rows + GAP
    spread, busy, count_lines, count_terms, line_step, term_step = _spread(way, tile.rows, tile)
    idle, pitches = busy < tile.threads, (line_step, term_step * pitch)
    find_row, copy = operation.places.row, copy_grid_wide if way.wide > 1 else copy_grid

    @device
    def copy_first(slices, table, source, g, group, row, rows, buffer, term, last, thread):
        if idle and thread >= busy:
            return
        line, inner = spread(thread)
        offsets = entries(table, buffer * depth + inner, term_step, repeated(g.n, 1), repeated(g.n, count_terms))
        start = index_as(find_row(g, group, row + line), g.n)
        step = index_as(find_row(g, group, row + line + line_step) - start, g.n)
        left, steps = (rows - row - line, last - term - inner), (line_step, term_step)
        at, like = (buffer * depth + inner) * pitch + line, repeated(g.n, count_lines)
        copy(slices, index_as(at, g.n), pitches, source, start, step, offsets, left, steps, like)

    return copy_first


def _second_copier(operation: Operation, recipe: Recipe) -> Any:
    """The device function by which a thread begins its copies of a slice of the second factor."""
    tile, way, entry = recipe.tile, recipe.ways[1], recipe.entry
    depth, pitch = tile.depth, tile.columns + GAP
    spread, busy, count_lines, count_terms, line_step, term_step = _spread(way, tile.columns, tile)
    idle, pitches = busy < tile.threads, (line_step, term_step * pitch)
    some = min(count_lines, max(AT_ONCE // count_terms, 1))  # whose entries are in registers together
    in_columns, in_terms, chunks = entry * some, entry * count_terms, count_lines // some
    sizes_of, copy = operation.places.sizes, copy_sums_wide if way.wide > 1 else copy_sums

    @device
    def copy_second(slices, table, ring, source, g, buffer, thread):
        if idle and thread >= busy:
            return
        line, inner = spread(thread)
        one = repeated(g.n, entry)
        terms = entries(ring, (buffer * depth + inner) * entry, term_step * entry, one, repeated(g.n, in_terms))
        at = index_as((buffer * depth + inner) * pitch + line, g.n)
        for chunk in range(chunks):
            ahead = chunk * some * line_step
            columns = entries(table, (line + ahead) * entry, line_step * entry, one, repeated(g.n, in_columns))
            copy(slices, at + ahead, pitches, source, columns, terms, sizes_of(g), one)

    return _folding_copier(operation, recipe) if recipe.folded else copy_second


def _folding_copier(operation: Operation, recipe: Recipe) -> Any:
    """The same where padding copies values, so that each position is mapped by itself."""
    tile, entry, ndim = recipe.tile, recipe.entry, recipe.ndim
    depth, pitch = tile.depth, tile.columns + GAP
    spread, busy, count_lines, count_terms, line_step, term_step = _spread(recipe.ways[1], tile.columns, tile)
    idle = busy < tile.threads
    sizes_of, steps_of = operation.places.sizes, operation.places.steps

    @device
    def copy_second(slices, table, ring, source, g, buffer, thread):
        if idle and thread >= busy:
            return
        first_line, first_term = spread(thread)
        one, offsets = repeated(g.n, entry), repeated(g.n, 1)
        for number in range(count_lines * count_terms):
            line = first_line + div(number, count_terms) * line_step
            term = buffer * depth + first_term + mod(number, count_terms) * term_step
            column, shift, position = (
                entries(table, line * entry, 0, one, one),
                entries(ring, term * entry, 0, one, one),
                sizes_of(g),
            )
            for axis in range(ndim):
                position = replaced(position, axis, column[1 + axis] + shift[1 + axis])
            inside, more = folded_offset(g, position, sizes_of(g), steps_of(g))
            offsets = replaced(offsets, 0, column[0] + shift[0] + more)
            there = 1 if inside and position[0] > NOWHERE // 2 else 0
            copy_grid(slices, index_as(term * pitch + line, g.n), (0, 0), source, 0, 0, offsets, (there, there), (0, 0), offsets)

    return copy_second


# --- products --------------------------------------------------------------------------------------------------------------------


def _multiplier(operation: Operation, recipe: Recipe) -> Any:
    """The device function that adds the products of a buffer's slices to a thread's tile."""
    tile = recipe.tile
    row_step, column_step = QUAD * tile.lane_rows, QUAD * tile.lane_columns
    pitch_a, pitch_b = tile.rows + GAP, tile.columns + GAP
    product = outer_second if operation.second_leads else outer
    complex_numbers = recipe.dtype.startswith("complex")
    conjugate_a = complex_numbers and operation.conjugate[0]
    conjugate_b = complex_numbers and operation.conjugate[1]

    @device
    def conjugated(values):
        for place in range(len(values)):
            values = replaced(values, place, conj(values[place]))
        return values

    @device
    def one(acc, slices_a, slices_b, at_a, at_b, like_a, like_b):
        left, right = quads(slices_a, at_a, row_step, like_a), quads(slices_b, at_b, column_step, like_b)
        if conjugate_a:
            left = conjugated(left)
        if conjugate_b:
            right = conjugated(right)
        return product(acc, left, right)

    return _repeatedly(one, tile.depth, pitch_a, pitch_b)


def _repeatedly(one: Any, count: int, pitch_a: int, pitch_b: int) -> Any:
    """The device function that does so many steps: the compiler does not unroll so long a body itself."""
    if count == 1:
        return one
    half = _repeatedly(one, count // 2, pitch_a, pitch_b)
    ahead_a, ahead_b = count // 2 * pitch_a, count // 2 * pitch_b

    @device
    def both(acc, slices_a, slices_b, at_a, at_b, like_a, like_b):
        acc = half(acc, slices_a, slices_b, at_a, at_b, like_a, like_b)
        return half(acc, slices_a, slices_b, at_a + ahead_a, at_b + ahead_b, like_a, like_b)

    return both


# --- results ---------------------------------------------------------------------------------------------------------------------


def _searcher(operation: Operation, recipe: Recipe) -> Any:
    """The device function that tells whether a thread meets a factor that is not finite in the block's rows of the first one."""
    height, threads = recipe.tile.rows, recipe.tile.threads
    places = operation.places
    find_row, find_term, volume, sizes = places.row, places.term, operation.volume, operation.sizes

    @device
    def search(a, g, group, row, rows, first, last, thread, zero):
        odd = False
        for term in range(first + thread, last, threads):
            place = find_term(g, div(term, volume(g)), coordinates(mod(term, volume(g)), sizes(g)), False)
            for line in range(row, min(row + height, rows)):
                odd = odd or muladd(load(a, find_row(g, group, line) + place[0], zero), zero, zero) != zero
        return odd

    return search


def _chainer(operation: Operation, recipe: Recipe) -> Any:
    """The device function that computes a result, or a part of it, anew: without the terms that lie on padding."""
    places = operation.places
    find_row, find_column, find_term = places.row, places.column, places.term
    volume, sizes, sizes_of, steps_of = operation.volume, operation.sizes, places.sizes, places.steps
    (conjugate_a, conjugate_b), second_leads = operation.conjugate, operation.second_leads
    ndim = recipe.ndim

    @device
    def chain(a, b, g, group, row, column, first, last, zero):
        start, acc = find_row(g, group, row), zero
        offset, origin = find_column(g, group, column, True)
        for term in range(first, last):
            in_a, in_b, shift = find_term(g, div(term, volume(g)), coordinates(mod(term, volume(g)), sizes(g)), True)
            position = origin
            for axis in range(ndim):
                position = replaced(position, axis, origin[axis] + shift[axis])
            inside, more = folded_offset(g, position, sizes_of(g), steps_of(g))
            if inside:
                left, right = load(a, start + in_a, zero), load(b, offset + in_b + more, zero)
                left, right = conj(left) if conjugate_a else left, conj(right) if conjugate_b else right
                acc = muladd(right, left, acc) if second_leads else muladd(left, right, acc)
        return acc

    return chain


def _writer(operation: Operation, recipe: Recipe) -> Any:
    """The device function that writes the results of a thread one at a time, with activations, computed anew if need be."""
    row_of, column_of = _steps(recipe.tile)
    thread_rows, thread_columns = recipe.tile.thread_rows, recipe.tile.thread_columns
    target, finished, chain = operation.target, operation.finish, _chainer(operation, recipe)

    @device
    def write(results, direct, a, b, bias, out, g, group, row, column, rows, columns, first, last, zero):
        for j in range(thread_columns):
            beside = column + column_of(j)
            if beside < columns:
                offset, step = target(g, group, beside)
                for i in range(thread_rows):
                    at = row + row_of(i)
                    if at < rows:
                        value = results[i * thread_columns + j]
                        if direct:
                            value = chain(a, b, g, group, at, beside, first, last, zero)
                        store(out, offset + at * step, finished(value, bias, g, group, at))

    return write


def _steps(tile: Tile) -> tuple[Any, Any]:
    """The device functions that give how far the rows and columns of a thread lie from its first ones."""
    row_step, column_step = QUAD * tile.lane_rows, QUAD * tile.lane_columns

    @device
    def row_of(i):
        return div(i, QUAD) * row_step + mod(i, QUAD)

    @device
    def column_of(j):
        return div(j, QUAD) * column_step + mod(j, QUAD)

    return row_of, column_of


def _plain_writer(operation: Operation, recipe: Recipe) -> tuple[Any, Any]:
    """The device functions that find where the columns of a block are written, and write results without an activation."""
    tile = recipe.tile
    width, threads = tile.columns, tile.threads
    thread_rows, thread_columns = tile.thread_rows, tile.thread_columns
    column_step = QUAD * tile.lane_columns
    target, channels = operation.target, operation.channels
    row_of, column_of = _steps(tile)
    biased = channels is not None and not recipe.dtype.startswith("complex")

    @device
    def fill_targets(table, g, group, column, columns, thread):
        for line in range(thread, width, threads):
            poke(table, line, target(g, group, min(column + line, columns - 1))[0])

    @device
    def write(acc, table, bias, out, g, group, row, column, own_column, rows, columns, zero):
        step = target(g, group, column)[1]
        offsets, ends = repeated(g.n, thread_rows), repeated(g.n, thread_rows)
        for i in range(thread_rows):
            offsets = replaced(offsets, i, (row + row_of(i)) * step)
            ends = replaced(ends, i, columns - column if row + row_of(i) < rows else 0)
        if biased and g.option & BIASED:
            biases = repeated(zero, thread_rows)
            for i in range(thread_rows):
                at = min(row + row_of(i), rows - 1)
                biases = replaced(biases, i, load(bias, (group * channels(g) + at) * g.bias, zero))
            acc = outer(acc, biases, repeated(cast(1, zero), thread_columns))
        steps = repeated(g.n, thread_columns)
        places = entries(table, own_column, column_step, repeated(g.n, QUAD), steps)
        for j in range(thread_columns):
            steps = replaced(steps, j, column_of(j))
        store_tile(out, acc, offsets, ends, places, steps)

    return fill_targets, write


class _Assignment(NamedTuple):
    """What a block computes."""

    g: Any
    """The geometry, perhaps of a phase."""
    thread: Any
    row: Any
    column: Any
    columns: Any
    """How many the product has."""
    group: Any
    part: Any
    first: Any
    last: Any
    """Its terms."""
    from_a: Any
    to_out: Any
    """Offsets of a phase."""


def _assigner(recipe: Recipe) -> Any:
    """The device function that finds it, each time anew, so that no register holds it through the loop."""
    tile, phased = recipe.tile, recipe.phased
    height, width, depth = tile.rows, tile.columns, tile.depth

    @device
    def assigned(g, columns, terms, parts):
        thread, x, y, z = anew(cuda.threadIdx.x), anew(cuda.blockIdx.x), anew(cuda.blockIdx.y), anew(cuda.blockIdx.z)
        terms, parts, group, part = anew(terms), index_as(parts, g.n), mod(z, g.groups), div(z, g.groups)
        own, from_a, to_out = g, 0, 0
        if phased:
            own, to_out, from_a, taps = phase_of(g, div(part, parts))
            part = mod(part, parts)
            columns, terms = g.n * own.volume, g.per_k * taps
        length = div(div(terms + parts - 1, parts) + depth - 1, depth) * depth  # parts begin where a thread's loads are aligned
        first = part * length
        return _Assignment(
            own, index_as(thread, g.n), index_as(y * height, g.n), index_as(x * width, g.n), index_as(columns, g.n), group, part,
            index_as(first, g.n), index_as(min(first + length, terms), g.n), from_a, to_out,
        )  # fmt: skip

    return assigned


def _corner(tile: Tile) -> Any:
    """The device function that gives the first row and column of a thread in its block's tile."""
    warp_rows, warp_columns = tile.warp
    beside, lanes, lane_columns = tile.columns // warp_columns, tile.lane_rows * tile.lane_columns, tile.lane_columns
    pair = min(tile.lane_rows, 2)

    @device
    def corner(thread):
        lane, warp = mod(thread, lanes), div(thread, lanes)
        row = div(warp, beside) * warp_rows + (div(lane, pair * lane_columns) * pair + mod(lane, pair)) * QUAD
        return row, mod(warp, beside) * warp_columns + mod(div(lane, pair), lane_columns) * QUAD

    return corner


def _finisher(operation: Operation, recipe: Recipe) -> Any:
    """The device function that writes the results of a block."""
    number, accumulators = getattr(types, recipe.dtype), recipe.tile.thread_rows * recipe.tile.thread_columns
    special = 3 | (BIASED if recipe.dtype.startswith("complex") else 0)
    write, search = _writer(operation, recipe), _searcher(operation, recipe)
    fill_targets, write_plainly = _plain_writer(operation, recipe)
    corner = _corner(recipe.tile)

    @device
    def finish(acc, table, a, b, bias, out, task, rows, zero):
        results = cuda.local.array(accumulators, number)
        g, row, column, columns, group = task.g, task.row, task.column, task.columns, task.group
        own_row, own_column = corner(task.thread)
        direct = cuda.syncthreads_or(1 if vanished(acc, zero) != zero else 0) != 0
        if direct:
            odd = search(a, g, group, row, rows, task.first, task.last, task.thread, zero)
            direct = cuda.syncthreads_or(1 if odd else 0) != 0
        if not direct and g.option & special == 0:
            fill_targets(table, g, group, column, columns, task.thread)
            cuda.syncthreads()
            write_plainly(acc, table, bias, out, g, group, row + own_row, column + own_column, own_column, rows, columns, zero)
        else:
            unpack(results, acc)
            row, column = row + own_row, column + own_column
            write(results, direct, a, b, bias, out, g, group, row, column, rows, columns, task.first, task.last, zero)

    return finish


@functools.cache
def product_kernel(operation: Operation, recipe: Recipe) -> Kernel:
    """The kernel of an operation.

    It takes (a, b, bias, out, g, rows, columns, terms, parts, between, zero) on a grid of column tiles, row tiles, and groups times
    parts (times phases, see `numconv_cuda.phases`), of which each sums some of the terms; the results of parts lie `between`
    elements apart.
    """
    tile, entry = recipe.tile, recipe.entry
    depth, stages = tile.depth, tile.stages
    number, index = getattr(types, recipe.dtype), getattr(types, recipe.index_dtype)
    buffer_a, buffer_b = depth * (tile.rows + GAP), depth * (tile.columns + GAP)
    size_a, size_b, size_columns, size_terms = stages * buffer_a, stages * buffer_b, tile.columns * entry, stages * depth * entry
    size_cursors, ring, ahead, newest = (depth + 1) * entry, stages * depth, stages - 1, stages - 2
    thread_rows, thread_columns, accumulators = tile.thread_rows, tile.thread_columns, tile.thread_rows * tile.thread_columns
    fill_columns, begin, go_on = _tables(operation, recipe)
    copy_first, copy_second = _first_copier(operation, recipe), _second_copier(operation, recipe)
    assigned, corner, multiply, finish = (
        _assigner(recipe),
        _corner(tile),
        _multiplier(operation, recipe),
        _finisher(operation, recipe),
    )

    def product(a, b, bias, out, g, rows, columns, terms, parts, between, zero):
        slices_a = cuda.shared.array(size_a, number, ALIGNMENT)
        slices_b = cuda.shared.array(size_b, number, ALIGNMENT)
        of_columns = cuda.shared.array(size_columns, index, ALIGNMENT)
        of_terms = cuda.shared.array(size_terms, index, ALIGNMENT)
        first_of_terms = cuda.shared.array(ring, index, ALIGNMENT)
        cursors = cuda.shared.array(size_cursors, index, ALIGNMENT)
        rows = index_as(rows, g.n)
        task = assigned(g, columns, terms, parts)
        if task.column >= task.columns:  # of a phase with fewer elements than the largest
            return
        own, thread, row, group, last = task.g, task.thread, task.row, task.group, task.last
        from_a = shifted(a, task.from_a)
        fill_columns(of_columns, own, group, task.column, task.columns, thread)
        begin(first_of_terms, of_terms, cursors, own, task.first, last, thread)
        cuda.syncthreads()
        for early in range(ahead):
            copy_first(slices_a, first_of_terms, from_a, own, group, row, rows, early, task.first + early * depth, last, thread)
            copy_second(slices_b, of_columns, of_terms, b, own, early, thread)
            copies_end()
        own_row, own_column = corner(thread)
        acc, like_a, like_b = repeated(zero, accumulators), repeated(zero, thread_rows), repeated(zero, thread_columns)
        buffer, start = index_as(0, g.n), task.first
        while start < last:
            copies_wait(newest)
            cuda.syncthreads()
            if thread < depth:
                go_on(first_of_terms, of_terms, cursors, own, buffer, index_as(start + ring, g.n), last, thread)
            free = index_as(buffer + ahead if buffer < 1 else buffer - 1, g.n)
            if start + ahead * depth < last:
                copy_first(slices_a, first_of_terms, from_a, own, group, row, rows, free, start + ahead * depth, last, thread)
                copy_second(slices_b, of_columns, of_terms, b, own, free, thread)
            copies_end()
            acc = multiply(acc, slices_a, slices_b, buffer * buffer_a + own_row, buffer * buffer_b + own_column, like_a, like_b)
            buffer, start = index_as(0 if buffer == ahead else buffer + 1, g.n), index_as(start + depth, g.n)
        task = assigned(g, columns, terms, parts)
        out = shifted(out, task.part * between + task.to_out)
        finish(acc, of_columns, shifted(a, task.from_a), b, bias, out, task, rows, zero)

    product.__name__ = product.__qualname__ = f"{operation.name}_{recipe}"
    return kernel(product, (tile.threads, recipe.residents))


@device
def added(sums, item, items, parts, zero):
    """The sum of the parts of a result in order, of which some are loaded ahead."""
    acc, part = load(sums, item, zero), 1
    while part + AT_ONCE <= parts:
        some = repeated(zero, AT_ONCE)
        for number in range(AT_ONCE):
            some = replaced(some, number, load(sums, (part + number) * items + item, zero))
        for number in range(AT_ONCE):
            acc = add(acc, some[number])
        part += AT_ONCE
    while part < parts:
        acc = add(acc, load(sums, part * items + item, zero))
        part += 1
    return acc


@kernel
def finish_sums(sums, bias, out, sizes, steps, option, step, items, parts, zero):
    """Add up the parts of each result in a fixed order, with bias and activation, and write them to an array of these sizes."""
    volume = 1
    for axis in range(2, len(sizes)):
        volume *= sizes[axis]
    for item in range(cuda.grid(1), items, cuda.gridsize(1)):
        acc = added(sums, item, items, parts, zero)
        if option & BIASED:
            acc = add(acc, load(bias, item // volume % sizes[1] * step, zero))
        store(out, offset_of(coordinates(item, sizes), steps), activated(acc, option & 3))
