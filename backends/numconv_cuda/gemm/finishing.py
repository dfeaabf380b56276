"""What becomes of a block's sums: results with bias and activation, parts of sums, and results that are computed anew.

Every term that lies on padding is a product with a zero. So that a factor that is not finite adds nothing there, a block with a
result that is not finite looks through its part of the first factor, and computes its results anew, term by term, if it meets one.
"""

from __future__ import annotations

from typing import Any

from numconv_cuda.geometry import BIASED, coordinates, offset_of
from numconv_cuda.primitives.copies import (
    entries,
    store_tile,
)
from numconv_cuda.primitives.elements import (
    activated,
    add,
    cast,
    conj,
    div,
    load,
    mod,
    muladd,
    outer,
    poke,
    repeated,
    replaced,
    store,
)
from numconv_cuda.runtime.compiler import cuda, device, kernel

from .gemm import Operation
from .places import folded_offset
from .tiles import QUAD, Recipe, Tile

__all__ = ["finish_sums", "plain_writer", "searcher", "writer"]

AT_ONCE = 8
"""Parts of a sum that are loaded together."""


def searcher(operation: Operation, recipe: Recipe) -> Any:
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


def writer(operation: Operation, recipe: Recipe) -> Any:
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


def plain_writer(operation: Operation, recipe: Recipe) -> tuple[Any, Any]:
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
