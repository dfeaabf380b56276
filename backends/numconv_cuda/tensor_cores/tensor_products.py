"""The matrix product of two factors on tensor cores, by the instruction ``mma.sync`` of compute capability 8.0 and later.

See `tensor_layouts` for the memory that is read, `forms` for shared memory. Slices are copied to it
asynchronously, some ahead of the one that is multiplied (NVIDIA, CUTLASS, "Efficient GEMM in CUDA", section "Pipelining"). Results
go through shared memory, so that neighbouring threads write neighbours.

Padding is packed as zeros. A factor that is not finite would add NaN there: where there is padding, results that are NaN are
computed anew, term by term, and skip it.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from numconv_cuda.gemm.gemm import ALIGNMENT, part_of_sum
from numconv_cuda.geometry import ACTIVATIONS, BIASED, CHANNELS_INNER
from numconv_cuda.primitives.elements import add, cast, div, is_nan, load, mod, repeated, replaced, store
from numconv_cuda.primitives.forms import ITEMSIZE, UNITS, Form, Tile
from numconv_cuda.primitives.fragments import (
    commit,
    copy_cached_unit,
    copy_unit,
    fresh,
    keep_number,
    multiplier,
    narrow,
    peek_float,
    peek_number,
    reload,
    spreader,
    wait_until,
)
from numconv_cuda.runtime.compiler import Kernel, cuda, device, kernel, types

from . import tensor_pointwise
from .tensor_operations import FORWARD, INPUT_GRAD, Factor, Operation, weight_grad

__all__ = ["finish_kernel", "tensor_kernel"]

ACTIVATED = max(ACTIVATIONS.values())
"""The bits of an option that tell the activation."""


def _operation(op: str, each: int, *, pointwise: bool) -> Operation:
    """A product of packed factors, or of arrays as they are, whose units have so many elements."""
    if pointwise:
        return tensor_pointwise.operation(op, each)
    return weight_grad(each) if op == "weight_grad" else {"forward": FORWARD, "input_grad": INPUT_GRAD}[op]


def _split(operation: Operation) -> Operation:
    """The operation of which parts are summed: sums[part, phase, group, row, column]."""
    count_rows, count_columns = operation.rows, operation.columns

    @device
    def sum_target(g, lay, group, z, part, column):
        width = count_columns(g, lay, 0)
        return True, ((part * lay.phases + z) * g.groups + group) * count_rows(g, lay, z) * width + column, width

    return operation._replace(target=sum_target, finish=part_of_sum)


@functools.cache
def finish_kernel(op: str) -> Kernel:
    """The kernel that adds up the parts of each result, in a fixed order, and writes it.

    It takes (sums, first, second, bias, out, g, lay, items, parts, zero), where the factors are as `tensor_kernel` has them.
    """
    operation = _operation(op, 1, pointwise=False)
    count_rows, count_columns, target = operation.rows, operation.columns, operation.target
    finish, again = operation.finish, operation.again

    def finish_sums(sums, first, second, bias, out, g, lay, items, parts, zero):
        columns, rows = cast(count_columns(g, lay, 0), g.n), count_rows(g, lay, 0)
        for item in range(cuda.grid(1), items, cuda.gridsize(1)):
            column, rest = mod(item, columns), div(item, columns)
            row, rest = mod(rest, rows), div(rest, rows)
            group, z = mod(rest, g.groups), div(rest, g.groups)
            if column < count_columns(g, lay, z):
                value = load(sums, item, zero)
                for part in range(1, parts):
                    value = add(value, load(sums, part * items + item, zero))
                if lay.border and is_nan(value):
                    value = again(first, second, g, lay, group, z, 0, row, column, zero)
                _, offset, step = target(g, lay, group, z, 0, column)
                store(out, offset + row * step, finish(value, bias, g, group, row))

    finish_sums.__name__ = finish_sums.__qualname__ = f"{op}_finish_sums"
    return kernel(finish_sums)


# --- slices ----------------------------------------------------------------------------------------------------------------------


class Copier(NamedTuple):
    """The device functions by which the threads of a block copy slices of a factor."""

    begin: Any
    """(g, lay, group, z, line, thread) -> where the lines of a thread begin."""
    entries: Any
    """(table, g, lay, z, slice, thread) -> how far the units of a slice lie from there."""
    copy: Any
    """(shared, unit, pointer, places, entries, thread): begin to copy to the stage that begins with a unit."""


def _bring(form: Form, which: int) -> Any:
    """How units are copied: neighbouring taps of the kernel read nearly the same units of a packed image."""
    return copy_cached_unit if which == 1 and form.packed else copy_unit


def _along(form: Form, which: int, factor: Factor) -> Copier:
    start, entry, bring = factor.start, factor.entry, _bring(form, which)
    lines, threads = form.tile[which], form.tile.threads
    count, step = lines * UNITS // threads, threads // UNITS
    shift, mask, _ = form.swizzle(which)

    @device
    def begin(g, lay, group, z, line, thread, like):
        places = repeated(like, count)
        for number in range(count):
            places = replaced(places, number, start(g, lay, group, z, line + div(thread, UNITS) + number * step))
        return places

    @device
    def entries(table, g, lay, z, chunk, thread):
        return repeated(narrow(entry(table, g, lay, z, chunk * UNITS + mod(thread, UNITS))), 1)

    @device
    def copy(shared, unit, pointer, places, found, thread):
        own, there = mod(thread, UNITS), found[0] >= 0
        for number in range(count):
            line = div(thread, UNITS) + number * step
            bring(shared, unit + line * UNITS + (own ^ ((line >> shift) & mask)), pointer, places[number], found[0], there)

    return Copier(begin, entries, copy)


def _across(form: Form, which: int, factor: Factor) -> Copier:
    start, entry, bring = factor.start, factor.entry, _bring(form, which)
    units, threads, depth, each = form.tile[which] // form.each, form.tile.threads, form.depth, form.each
    count, step = depth * units // threads, threads // units
    _, mask, turn = form.swizzle(which)

    @device
    def begin(g, lay, group, z, line, thread, like):
        return repeated(cast(start(g, lay, group, z, line + mod(thread, units) * each), like), 1)

    @device
    def entries(table, g, lay, z, chunk, thread):
        term = chunk * depth + div(thread, units)
        found = repeated(narrow(entry(table, g, lay, z, term)), count)
        for number in range(1, count):
            found = replaced(found, number, entry(table, g, lay, z, term + number * step))
        return found

    @device
    def copy(shared, unit, pointer, places, found, thread):
        own = mod(thread, units)
        for number in range(count):
            term = div(thread, units) + number * step
            there = places[0] >= 0 and found[number] >= 0
            bring(shared, unit + term * units + (own ^ ((term & mask) * turn)), pointer, places[0], found[number], there)

    return Copier(begin, entries, copy)


def _writer(operation: Operation, form: Form) -> Any:
    """The device functions that find the places of a block's columns, write a part of its results, and compute some anew."""
    height, width, threads, pitch = form.part, form.tile.columns, form.tile.threads, form.pitch
    target, finish, again, behind = operation.target, operation.finish, operation.again, height * pitch
    count_columns, row_step = operation.columns, threads // width

    @device
    def locate(shared, g, lay, group, z, part, column, thread):
        columns = count_columns(g, lay, z)
        for number in range(thread, width, threads):
            there, offset, _ = target(g, lay, group, z, part, min(column + number, columns - 1))
            there = there and column + number < columns
            keep_number(shared, behind + 2 * number, offset & 0x3FFFFFFF if there else -1)
            keep_number(shared, behind + 2 * number + 1, offset >> 30)

    @device
    def place_of(shared, g, item, step, row, rows):
        i, j = div(item, width), mod(item, width)
        if g.option & CHANNELS_INNER:
            i, j = mod(item, height), div(item, height)
        low, high = peek_number(shared, behind + 2 * j), peek_number(shared, behind + 2 * j + 1)
        return row + i < rows and low >= 0, i, j, high * 0x40000000 + low + (row + i) * step

    @device
    def write_columns(shared, bias, out, g, group, step, row, rows, thread, zero):
        j, first, odd = mod(thread, width), div(thread, width), False
        low = peek_number(shared, behind + 2 * j)
        offset = peek_number(shared, behind + 2 * j + 1) * 0x40000000 + low + (row + first) * step
        mine = min(rows - row - first, height) if low >= 0 else 0
        if g.option & (BIASED | ACTIVATED):
            for i in range(0, mine, row_step):
                value = peek_float(shared, (first + i) * pitch + j)
                odd = odd or is_nan(value)
                store(out, offset + i * step, finish(value, bias, g, group, row + first + i))
        else:
            for i in range(0, mine, row_step):
                value = peek_float(shared, (first + i) * pitch + j)
                odd = odd or is_nan(value)
                store(out, offset + i * step, value)
        return odd

    @device
    def write_rows(shared, bias, out, g, group, step, row, rows, thread, zero):
        odd = False
        for item in range(thread, height * width, threads):
            there, i, j, offset = place_of(shared, g, item, step, row, rows)
            if there:
                value = peek_float(shared, i * pitch + j)
                odd = odd or is_nan(value)
                store(out, offset, finish(value, bias, g, group, row + i))
        return odd

    @device
    def write(shared, bias, out, g, group, step, row, rows, thread, zero):
        if g.option & CHANNELS_INNER:
            return write_rows(shared, bias, out, g, group, step, row, rows, thread, zero)
        return write_columns(shared, bias, out, g, group, step, row, rows, thread, zero)

    @device
    def repair(shared, first, second, bias, out, g, lay, group, z, part, step, row, rows, column, thread, zero):
        for item in range(thread, height * width, threads):
            there, i, j, offset = place_of(shared, g, item, step, row, rows)
            if there and is_nan(reload(out, offset, zero)):
                value = again(first, second, g, lay, group, z, part, row + i, column + j, zero)
                store(out, offset, finish(value, bias, g, group, row + i))

    return locate, write, repair


def _copiers(operation: Operation, form: Form) -> Any:
    """The device functions of `Copier` for both factors at once."""
    factors = operation.first, operation.second
    first, second = ((_across if each.across else _along)(form, which, each) for which, each in enumerate(factors))
    (begin_a, entries_a, copy_a), (begin_b, entries_b, copy_b) = first, second
    behind = form.tile.rows * UNITS

    @device
    def begin(g, lay, group, z, row, column, thread, like):
        return begin_a(g, lay, group, z, row, thread, like), begin_b(g, lay, group, z, column, thread, like)

    @device
    def entries(table, g, lay, z, chunk, thread):
        return entries_a(table, g, lay, z, chunk, thread), entries_b(table, g, lay, z, chunk, thread)

    @device
    def copy(shared, unit, a, b, places, found, thread):
        copy_a(shared, unit, a, places[0], found[0], thread)
        copy_b(shared, unit + behind, b, places[1], found[1], thread)

    return Copier(begin, entries, copy)


@functools.cache
def tensor_kernel(op: str, tile: Tile, dtype: str, *, pointwise: bool, split: bool) -> Kernel:  # noqa: PLR0915 - most of them define the kernel
    """The kernel of an operation.

    It takes (a, b, table, first, second, bias, out, g, lay, zero): the factors that it multiplies, their table, the factors as they
    are, and the result, on a grid of column tiles, row tiles, and groups times phases times parts. If it is split, it writes sums
    of parts of the terms, for `finish_kernel`.
    """
    operation, repairs = _operation(op, 16 // ITEMSIZE[dtype], pointwise=pointwise), not split
    operation = _split(operation) if split else operation
    form = Form(tile, dtype, (operation.first.across, operation.second.across), not pointwise)
    stages, stage_units, size, all_units = tile.stages, form.stage, form.words, tile.stages * form.stage
    (high, wide), (height, width, warp_rows, warp_columns, *_) = tile.blocks, tile
    ahead, pending, accumulators, height_part = stages - 1, stages - 2, 4 * high * wide, form.part
    copier, multiply, spread = _copiers(operation, form), multiplier(form), spreader(form)
    start, entries, copy = copier
    count_slices, count_rows, count_columns, target = operation.slices, operation.rows, operation.columns, operation.target
    locate, write, repair = _writer(operation, form)

    def product(a, b, table, first, second, bias, out, g, lay, zero):
        shared = cuda.shared.array(size, types.int32, ALIGNMENT)
        thread = cuda.threadIdx.x
        row, column = cuda.blockIdx.y * height, cuda.blockIdx.x * width
        group, z = mod(cuda.blockIdx.z, g.groups), div(cuda.blockIdx.z, g.groups)
        part, z = div(z, lay.phases), mod(z, lay.phases)
        if column >= count_columns(g, lay, z):
            return
        begin = narrow(part * lay.length)
        end = narrow(max(min(begin + lay.length, count_slices(g, lay, z)), begin))
        last = max(end - 1, begin)
        lane, warp = mod(thread, 32), div(thread, 32)
        own_row, own_column = div(warp, warp_columns) * (high * 16), mod(warp, warp_columns) * (wide * 8)
        places = start(g, lay, group, z, row, column, thread, narrow(0))
        acc = repeated(zero, accumulators)
        for number in range(ahead):
            if begin + number < end:
                copy(shared, number * stage_units, a, b, places, entries(table, g, lay, z, begin + number, thread), thread)
            commit()
        found = entries(table, g, lay, z, min(begin + ahead, last), thread)
        reading, writing = narrow(0), narrow(ahead * stage_units)
        for number in range(begin, end):
            wait_until(pending)
            cuda.syncthreads()
            if number + ahead < end:
                copy(shared, writing, a, b, places, found, thread)
            commit()
            found = entries(table, g, lay, z, min(number + 1 + ahead, last), thread)
            acc = multiply(acc, shared, reading, own_row, own_column, lane)
            reading = narrow(reading + stage_units if reading + stage_units < all_units else 0)
            writing = narrow(writing + stage_units if writing + stage_units < all_units else 0)
        wait_until(0)
        cuda.syncthreads()
        row, column, group, z, part = fresh(row), fresh(column), fresh(group), fresh(z), fresh(part)
        locate(shared, g, lay, group, z, part, column, thread)
        rows, (_, _, step), odd = count_rows(g, lay, z), target(g, lay, group, z, part, column), False
        for turn in range(warp_rows):
            if div(warp, warp_columns) == turn:
                spread(shared, acc, 0, own_column, lane)
            cuda.syncthreads()
            found_odd = write(shared, bias, out, g, group, step, row + turn * height_part, rows, thread, zero)
            odd = odd or found_odd
            cuda.syncthreads()
        if repairs and odd and lay.border:
            z = fresh(z)
            for turn in range(warp_rows):
                at = row + turn * height_part
                repair(shared, first, second, bias, out, g, lay, group, z, part, step, at, rows, column, thread, zero)

    ways = f"{'_pointwise' if pointwise else ''}{'_split' if split else ''}"
    product.__name__ = product.__qualname__ = f"{op}_tensor_{tile}_{dtype}{ways}"
    return kernel(product, (tile.threads, form.blocks))
