"""The kernels of matrix products whose second factor is gathered on the way.

A block computes a tile of the product. Slices of both factors come into shared memory by asynchronous copies, some slices ahead, so
that no thread waits for memory and none holds what it copies; padding is copied as zeros (PTX ISA, "cp.async"). Each thread
multiplies its own small tile out of registers. Lanes are arranged so that those who share rows or columns of a warp's tile load
them from shared memory together (NVIDIA CUTLASS, "Efficient GEMM in CUDA"; S. Gray, "SGEMM", 2015).

What a line of the second factor needs is in a table in shared memory, and what a term needs in a ring that some of the threads keep
ahead of the copies: see `places`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from numconv_cuda.geometry import BIASED
from numconv_cuda.primitives.copies import (
    anew,
    copies_end,
    copies_wait,
    index_as,
    vanished,
)
from numconv_cuda.primitives.elements import (
    conj,
    div,
    mod,
    outer,
    outer_second,
    quads,
    repeated,
    replaced,
    shifted,
    unpack,
)
from numconv_cuda.runtime.compiler import Kernel, cuda, device, kernel, types

from .finishing import plain_writer, searcher, writer
from .gemm import ALIGNMENT, Operation
from .phases import phase_of
from .slices import first_copier, second_copier, tables_of
from .tiles import GAP, QUAD, Recipe, Tile

__all__ = ["product_kernel"]


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
    write, search = writer(operation, recipe), searcher(operation, recipe)
    fill_targets, write_plainly = plain_writer(operation, recipe)
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
    parts (times phases, see `phases`), of which each sums some of the terms; the results of parts lie `between`
    elements apart.
    """
    tile, entry = recipe.tile, recipe.entry
    depth, stages = tile.depth, tile.stages
    number, index = getattr(types, recipe.dtype), getattr(types, recipe.index_dtype)
    buffer_a, buffer_b = depth * (tile.rows + GAP), depth * (tile.columns + GAP)
    size_a, size_b, size_columns, size_terms = stages * buffer_a, stages * buffer_b, tile.columns * entry, stages * depth * entry
    size_cursors, ring, ahead, newest = (depth + 1) * entry, stages * depth, stages - 1, stages - 2
    thread_rows, thread_columns, accumulators = tile.thread_rows, tile.thread_columns, tile.thread_rows * tile.thread_columns
    fill_columns, begin, go_on = tables_of(operation, recipe)
    copy_first, copy_second = first_copier(operation, recipe), second_copier(operation, recipe)
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
