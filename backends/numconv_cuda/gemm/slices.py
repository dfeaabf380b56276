"""How slices of the two factors come into shared memory: tables of places, and the copies of each thread."""

from __future__ import annotations

from typing import Any, NamedTuple

from numconv_cuda.geometry import coordinates
from numconv_cuda.primitives.copies import (
    copy_grid,
    copy_grid_wide,
    copy_sums,
    copy_sums_wide,
    entries,
    index_as,
)
from numconv_cuda.primitives.elements import (
    div,
    mod,
    poke,
    repeated,
    replaced,
)
from numconv_cuda.runtime.compiler import device

from .gemm import Operation
from .neighbours import Way
from .places import NOWHERE, folded_offset
from .tiles import GAP, Recipe, Tile

__all__ = ["Tables", "first_copier", "second_copier", "tables_of"]

AT_ONCE = 8
"""Entries of a table that a thread has in registers together."""


# --- tables ----------------------------------------------------------------------------------------------------------------------


class Tables(NamedTuple):
    """Device functions for the tables in shared memory, whose entries are an offset and a position."""

    fill_columns: Any
    """Write the place of each column of the block."""
    begin: Any
    """Write the first entries of the ring of terms, and the cursors by which it goes on: (volumes, position) of a term."""
    go_on: Any
    """Write an entry of the ring for the term of a cursor, and move the cursor by the depth of a slice."""


def tables_of(operation: Operation, recipe: Recipe) -> Tables:
    """The tables of a kernel."""
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

    return Tables(fill_columns, begin, go_on)


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


def first_copier(operation: Operation, recipe: Recipe) -> Any:
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


def second_copier(operation: Operation, recipe: Recipe) -> Any:
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
