"""How the threads of a block take slices of the two factors of a matrix product from global memory.

A factor has lines (rows of the first, columns of the second) and, along each, the terms of the inner dimension: a number of volumes
(channels or images) and a position in one (a tap or an output). No place is divided into those more than once: a `Cursor` moves
from term to term by additions with carries.

A slice is spread over the threads in one of two ways. *Along* the terms, a thread stays at one place of the inner dimension and
steps through lines; *across*, it stays on one line and steps through terms. Where neighbours in memory are certain to be aligned
(`Way.wide` > 1), a thread loads up to 16 bytes at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .compiler import device
from .elements import conj, div, load, load_wide, mod, muladd, repeated, replaced
from .geometry import coordinates

__all__ = ["Cursor", "Factor", "Way", "following", "jump", "reader", "spread_of", "strange", "term_at"]


class Way(NamedTuple):
    """How a slice is spread over threads, and how many elements, neighbours in memory, a thread loads at once."""

    across: bool
    wide: int = 1

    def __str__(self) -> str:
        return f"{'x' if self.across else ''}{self.wide}"


class Factor(NamedTuple):
    """Device functions by which elements of a factor are found."""

    start: Callable[..., Any]
    """(g, group, line, step) -> the place of a line, from which that of another, `step` further, may be found."""
    moved: Callable[..., Any]
    """(g, place) -> the place `step` lines further."""
    at: Callable[..., Any]
    """(g, place, volumes, position) -> whether there is an element, and its offset."""
    conjugate: bool
    """Whether complex elements are conjugated."""


class Cursor(NamedTuple):
    """A term, and by how much it moves: numbers of volumes, and positions in one."""

    volumes: Any
    position: Any
    more_volumes: Any
    more: Any


@device
def term_at(index, step, volume, sizes):
    """The cursor at an index, which moves by `step`."""
    return Cursor(
        div(index, volume), coordinates(mod(index, volume), sizes), div(step, volume), coordinates(mod(step, volume), sizes)
    )


@device
def following(cursor, sizes):
    """The cursor moved by its step."""
    found = cursor.position
    carry = 0
    for axis in range(len(sizes) - 1, -1, -1):
        value = cursor.position[axis] + cursor.more[axis] + carry
        carry = 1 if value >= sizes[axis] else 0
        found = replaced(found, axis, value - sizes[axis] if carry else value)
    return Cursor(cursor.volumes + cursor.more_volumes + carry, found, cursor.more_volumes, cursor.more)


@device
def strange(values, count, zero):
    """Whether one of the values is not finite."""
    odd = False
    for place in range(count):
        odd = odd or muladd(values[place], zero, zero) != zero
    return odd


def jump(way: Way, lines: int, depth: int, threads: int) -> int:
    """By how many terms a cursor moves: from slice to slice along the terms, from load to load across them."""
    return threads * way.wide // lines if way.across else depth


def spread_of(way: Way, lines: int, depth: int, threads: int) -> Any:
    """The device function that gives the line and the term within a slice of the number-th element of a thread."""
    across, wide = way
    if across:
        runs = lines // wide
        step = threads // runs

        @device
        def spread(thread, number):
            return mod(thread, runs) * wide + mod(number, wide), div(thread, runs) + div(number, wide) * step
    else:
        runs = depth // wide
        step = threads // runs

        @device
        def spread(thread, number):
            return div(thread, runs) + div(number, wide) * step, mod(thread, runs) * wide + mod(number, wide)

    return spread


def _fetcher(factor: Factor, wide: int) -> Any:
    """The device function that loads `wide` neighbours, or zeros where there is no element."""
    at, factor_of = factor.at, conj if factor.conjugate else _unchanged

    @device
    def fetch_one(source, g, place, cursor, zero):
        inside, offset = at(g, place, cursor.volumes, cursor.position)
        value = zero
        if inside:
            value = factor_of(load(source, offset, zero))
        return repeated(value, 1)

    @device
    def fetch_neighbours(source, g, place, cursor, zero):
        inside, offset = at(g, place, cursor.volumes, cursor.position)
        values = repeated(zero, wide)
        if inside:
            values = load_wide(source, offset, values)
        return values

    return fetch_neighbours if wide > 1 else fetch_one


@device
def _unchanged(value):
    return value


def reader(factor: Factor, way: Way, sizes_of: Any, lines: int, depth: int, threads: int) -> Any:
    """The device function by which a thread takes its elements of a slice.

    It takes (source, g, place, cursor, line, all_lines, term, last, thread, zero), where `place` is that of the thread's first
    line, and gives the elements, in the order of `spread_of`, and the cursor of the next slice.
    """
    across, wide = way
    count = lines * depth // threads
    runs = (lines if across else depth) // wide
    step = threads // runs
    moved, fetch = factor.moved, _fetcher(factor, wide)

    @device
    def along_terms(source, g, place, cursor, line, all_lines, term, last, thread, zero):
        found = repeated(zero, count)
        here = line + div(thread, runs)
        if term + mod(thread, runs) * wide < last:
            for number in range(count // wide):
                if here + number * step < all_lines:
                    values = fetch(source, g, place, cursor, zero)
                    for part in range(wide):
                        found = replaced(found, number * wide + part, values[part])
                place = moved(g, place)
        return found, following(cursor, sizes_of(g))

    @device
    def across_terms(source, g, place, cursor, line, all_lines, term, last, thread, zero):
        found = repeated(zero, count)
        here = term + div(thread, runs)
        there = line + mod(thread, runs) * wide < all_lines
        for number in range(count // wide):
            if there and here + number * step < last:
                values = fetch(source, g, place, cursor, zero)
                for part in range(wide):
                    found = replaced(found, number * wide + part, values[part])
            cursor = following(cursor, sizes_of(g))
        return found, cursor

    return across_terms if across else along_terms
