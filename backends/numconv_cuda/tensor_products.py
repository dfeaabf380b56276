"""The matrix product of packed factors on tensor cores, by the instruction ``mma.sync`` of compute capability 8.0 and later.

Rows, columns and terms are those of `numconv_cuda.gemm`, but the taps of the kernel are outside and the channels inside: see
`numconv_cuda.tensor_layouts` for the memory that is read, `numconv_cuda.forms` for shared memory. Slices are copied to it
asynchronously, some ahead of the one that is multiplied (NVIDIA, CUTLASS, "Efficient GEMM in CUDA", section "Pipelining"). Results
go through shared memory, so that neighbouring threads write neighbours.

Padding is packed as zeros. A factor that is not finite would add NaN there: results that are not finite are computed anew, term by
term, where there is padding, and skip it.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from .compiler import Kernel, cuda, device, kernel, types
from .elements import cast, div, mod, muladd, repeated, replaced, store
from .forms import UNITS, Form, Tile
from .fragments import commit, copy_unit, fetch_number, keep_number, multiplier, peek_float, peek_number, spreader, wait_until
from .gemm import (
    ALIGNMENT,
    finished_x,
    finished_y,
    forward_again,
    input_grad_again,
    part_of_sum,
    weight_grad_again,
)
from .geometry import CHANNELS_INNER, coordinates, offset_of, tap_offset, volume_of
from .tensor_layouts import phase_rests, phase_sizes, phase_taps

__all__ = ["Operation", "tensor_kernel"]


class Operation(NamedTuple):
    """What distinguishes the three operations, as device functions."""

    name: str
    across: bool
    """Whether units hold neighbouring lines, not terms."""
    span: Any
    """(g, lay, z) -> the first slice of terms and how many follow, of a phase or part."""
    rows: Any
    columns: Any
    """(g, lay, z) -> how many there are."""
    first: Any
    second: Any
    """(g, lay, group, z, line) -> the first unit of a line, or the unit of neighbouring lines, -1 for none."""
    target: Any
    """(g, lay, group, z, column) -> whether it is a result, its offset in the first row, and the step to the next."""
    finish: Any
    again: Any
    """(first, second, g, lay, group, z, row, column, span, depth, zero) -> a result, term by term."""


# --- forward ---------------------------------------------------------------------------------------------------------------------


@device
def all_slices(g, lay, z):
    return 0, lay.chunks


@device
def output_channels(g, lay, z):
    return g.per_k


@device
def outputs(g, lay, z):
    return lay.n * g.outputs


@device
def weights_of_output(g, lay, group, z, line):
    return (group * g.per_k + min(line, g.per_k - 1)) * g.taps * lay.units


@device
def window_start(g, lay, group, z, line):
    line = min(line, lay.n * g.outputs - 1)
    output = coordinates(mod(line, g.outputs), g.output)
    place = div(line, g.outputs) * lay.image + group * lay.units
    for axis in range(len(g.output)):
        place += output[axis] * g.stride[axis] * lay.steps[axis]
    return place


@device
def output_target(g, lay, group, z, column):
    image, output = div(column, g.outputs), coordinates(mod(column, g.outputs), g.output)
    return True, image * g.y.n + group * g.y.group + offset_of(output, g.y.spatial), g.y.channel


@device
def forward_anew(first, second, g, lay, group, z, row, column, begin, end, zero):
    return forward_again(first, second, g, group, row, column, begin, end, zero)


# --- input_grad ------------------------------------------------------------------------------------------------------------------


@device
def phase_slices(g, lay, z):
    _, _, taps = phase_taps(g, lay, phase_rests(g, z))
    return 0, div(taps * lay.units + UNITS - 1, UNITS)


@device
def input_channels(g, lay, z):
    return g.per_c


@device
def phase_columns(g, lay, z):
    return lay.n * volume_of(phase_sizes(g, phase_rests(g, z)))


@device
def weights_of_input(g, lay, group, z, line):
    return (group * g.per_c + min(line, g.per_c - 1)) * g.taps * lay.units


@device
def phase_place(g, lay, z, column):
    """The image of a column, and its position in the phase."""
    sizes = phase_sizes(g, phase_rests(g, z))
    volume = cast(volume_of(sizes), g.n)
    return div(column, volume), coordinates(mod(column, volume), sizes)


@device
def phase_start(g, lay, group, z, line):
    image, position = phase_place(g, lay, z, min(line, phase_columns(g, lay, z) - 1))
    place = image * lay.image + group * lay.units
    for axis in range(len(g.size)):
        place += position[axis] * lay.steps[axis]
    return place


@device
def phase_target(g, lay, group, z, column):
    image, position = phase_place(g, lay, z, column)
    rests = phase_rests(g, z)
    offset = image * g.x.n + group * g.x.group
    for axis in range(len(g.size)):
        offset += (rests[axis] + position[axis] * g.stride[axis]) * g.x.spatial[axis]
    return True, offset, g.x.channel


@device
def gradient_anew(first, second, g, lay, group, z, row, column, begin, end, zero):
    image, position = phase_place(g, lay, z, column)
    rests = phase_rests(g, z)
    flat = image
    for axis in range(len(g.size)):
        flat = flat * g.size[axis] + rests[axis] + position[axis] * g.stride[axis]
    return input_grad_again(first, second, g, group, row, flat, begin, end, zero)


# --- weight_grad -----------------------------------------------------------------------------------------------------------------


def _weight_operation(each: int) -> Operation:
    """The gradient of w, whose lines are channels, `each` of a unit."""

    @device
    def part_slices(g, lay, z):
        slices = div(lay.n * g.outputs + UNITS * each - 1, UNITS * each)
        first = z * lay.chunks
        return first, max(min(lay.chunks, slices - first), 0)

    @device
    def tap_columns(g, lay, z):
        return g.taps * lay.units * each

    @device
    def output_unit(g, lay, group, z, line):
        unit = div(line, each)
        return group * lay.others + unit if unit < lay.others else -1

    @device
    def tap_unit(g, lay, group, z, line):
        number = div(line, each)
        if number >= g.taps * lay.units:
            return -1
        tap, place = coordinates(div(number, lay.units), g.window), group * lay.units + mod(number, lay.units)
        for axis in range(len(g.window)):
            place += tap_offset(g, axis, tap[axis]) * lay.steps[axis]
        return place

    @device
    def place_of(lay, column):
        width = lay.units * each
        tap = div(column, width)
        return tap, column - tap * width

    @device
    def sum_target(g, lay, group, z, column):
        tap, channel = place_of(lay, column)
        width = g.taps * g.per_c
        offset = (z * g.groups + group) * g.per_k * width + tap * g.per_c + channel
        return channel < g.per_c, offset, width

    @device
    def sum_anew(first, second, g, lay, group, z, row, column, begin, end, zero):
        tap, channel = place_of(lay, column)
        begin, end = begin * UNITS * each, min(end * UNITS * each, lay.n * g.outputs)
        return weight_grad_again(first, second, g, group, row, channel * g.taps + tap, begin, end, zero)

    return Operation("weight_grad", True, part_slices, output_channels, tap_columns, output_unit, tap_unit, sum_target, part_of_sum,
                     sum_anew)  # fmt: skip


_FORWARD = Operation(
    "forward", False, all_slices, output_channels, outputs, weights_of_output, window_start, output_target, finished_y, forward_anew,
)  # fmt: skip
_INPUT_GRAD = Operation(
    "input_grad", False, phase_slices, input_channels, phase_columns, weights_of_input, phase_start, phase_target, finished_x,
    gradient_anew,
)  # fmt: skip


@functools.cache
def operation_of(op: str, each: int) -> Operation:
    """The operation for units of so many elements."""
    return {"forward": _FORWARD, "input_grad": _INPUT_GRAD}[op] if op != "weight_grad" else _weight_operation(each)


# --- slices ----------------------------------------------------------------------------------------------------------------------


class Copier(NamedTuple):
    """The device functions by which the threads of a block copy slices of a factor."""

    begin: Any
    """(g, lay, group, z, line, thread) -> where the lines of a thread begin."""
    entries: Any
    """(table, lay, z, slice, thread) -> how far the units of a slice lie from there."""
    copy: Any
    """(shared, unit, pointer, places, entries, thread): begin to copy to the stage that begins with a unit."""


def _along(form: Form, which: int, start: Any) -> Copier:
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
    def entries(table, lay, z, chunk, thread):
        return repeated(fetch_number(table, 2 * (z * lay.table + chunk * UNITS + mod(thread, UNITS)) + which), 1)

    @device
    def copy(shared, unit, pointer, places, found, thread):
        own, there = mod(thread, UNITS), found[0] >= 0
        for number in range(count):
            line = div(thread, UNITS) + number * step
            copy_unit(shared, unit + line * UNITS + (own ^ ((line >> shift) & mask)), pointer, places[number], found[0], there)

    return Copier(begin, entries, copy)


def _across(form: Form, which: int, start: Any) -> Copier:
    units, threads, depth, each = form.tile[which] // form.each, form.tile.threads, form.depth, form.each
    count, step = depth * units // threads, threads // units
    _, mask, turn = form.swizzle(which)

    @device
    def begin(g, lay, group, z, line, thread, like):
        return repeated(cast(start(g, lay, group, z, line + mod(thread, units) * each), like), 1)

    @device
    def entries(table, lay, z, chunk, thread):
        found = repeated(fetch_number(table, 2 * (chunk * depth + div(thread, units)) + which), count)
        for number in range(1, count):
            place = chunk * depth + div(thread, units) + number * step
            found = replaced(found, number, fetch_number(table, 2 * place + which))
        return found

    @device
    def copy(shared, unit, pointer, places, found, thread):
        own = mod(thread, units)
        for number in range(count):
            term = div(thread, units) + number * step
            there = places[0] >= 0 and found[number] >= 0
            copy_unit(shared, unit + term * units + (own ^ ((term & mask) * turn)), pointer, places[0], found[number], there)

    return Copier(begin, entries, copy)


def _writer(operation: Operation, form: Form) -> Any:
    """The device functions that find the places of a block's columns, and that write the part of its results in shared memory."""
    height, width, threads, pitch = form.part, form.tile.columns, form.tile.threads, form.pitch
    target, finish, again, behind = operation.target, operation.finish, operation.again, height * pitch
    count_rows, count_columns = operation.rows, operation.columns

    @device
    def locate(shared, g, lay, group, z, column, thread):
        columns = count_columns(g, lay, z)
        for number in range(thread, width, threads):
            there, offset, _ = target(g, lay, group, z, min(column + number, columns - 1))
            there = there and column + number < columns
            keep_number(shared, behind + 2 * number, offset & 0x3FFFFFFF if there else -1)
            keep_number(shared, behind + 2 * number + 1, offset >> 30)

    @device
    def write(shared, first, second, bias, out, g, lay, group, z, row, column, begin, end, thread, zero):
        rows = count_rows(g, lay, z)
        _, _, step = target(g, lay, group, z, column)
        for item in range(thread, height * width, threads):
            i, j = div(item, width), mod(item, width)
            if g.option & CHANNELS_INNER:
                i, j = mod(item, height), div(item, height)
            low = peek_number(shared, behind + 2 * j)
            if row + i < rows and low >= 0:
                offset = peek_number(shared, behind + 2 * j + 1) * 0x40000000 + low
                value = peek_float(shared, i * pitch + j)
                if lay.border and muladd(value, zero, zero) != zero:
                    value = again(first, second, g, lay, group, z, row + i, column + j, begin, end, zero)
                store(out, offset + (row + i) * step, finish(value, bias, g, group, row + i))

    return locate, write


def _copiers(operation: Operation, form: Form) -> Any:
    """The device functions of `Copier` for both factors at once."""
    make, behind = (_across if operation.across else _along), form.tile.rows * UNITS
    begin_a, entries_a, copy_a = make(form, 0, operation.first)
    begin_b, entries_b, copy_b = make(form, 1, operation.second)

    @device
    def begin(g, lay, group, z, row, column, thread, like):
        return begin_a(g, lay, group, z, row, thread, like), begin_b(g, lay, group, z, column, thread, like)

    @device
    def entries(table, lay, z, chunk, thread):
        return entries_a(table, lay, z, chunk, thread), entries_b(table, lay, z, chunk, thread)

    @device
    def copy(shared, unit, a, b, places, found, thread):
        copy_a(shared, unit, a, places[0], found[0], thread)
        copy_b(shared, unit + behind, b, places[1], found[1], thread)

    return Copier(begin, entries, copy)


@functools.cache
def tensor_kernel(op: str, tile: Tile, dtype: str) -> Kernel:
    """The kernel of an operation.

    It takes (a, b, table, first, second, bias, out, g, lay, zero): the packed factors, their table, the factors as they were, and
    the result, on a grid of column tiles, row tiles, and groups times phases or parts.
    """
    across = op == "weight_grad"
    form = Form(tile, dtype, (across, across))
    operation = operation_of(op, form.each)
    stages, stage_units, size, all_units = tile.stages, form.stage, form.words, tile.stages * form.stage
    (high, wide), (height, width, warp_rows, warp_columns, _) = tile.blocks, tile
    ahead, pending, accumulators, height_part = stages - 1, stages - 2, 4 * high * wide, form.part
    copier, multiply, spread = _copiers(operation, form), multiplier(form), spreader(form)
    start, entries, copy = copier
    span, count_columns, (locate, write) = operation.span, operation.columns, _writer(operation, form)

    def product(a, b, table, first, second, bias, out, g, lay, zero):
        shared = cuda.shared.array(size, types.int32, ALIGNMENT)
        thread = cuda.threadIdx.x
        row, column = cuda.blockIdx.y * height, cuda.blockIdx.x * width
        group, z = mod(cuda.blockIdx.z, g.groups), div(cuda.blockIdx.z, g.groups)
        if column >= count_columns(g, lay, z):
            return
        begin, chunks = span(g, lay, z)
        end, last = begin + chunks, begin + max(chunks, 1) - 1
        lane, warp = mod(thread, 32), div(thread, 32)
        own_row, own_column = div(warp, warp_columns) * (high * 16), mod(warp, warp_columns) * (wide * 8)
        places = start(g, lay, group, z, row, column, thread, fetch_number(table, 0))
        acc = repeated(zero, accumulators)
        for number in range(ahead):
            if number < chunks:
                copy(shared, number * stage_units, a, b, places, entries(table, lay, z, begin + number, thread), thread)
            commit()
        found = entries(table, lay, z, min(begin + ahead, last), thread)
        reading, writing = 0, ahead * stage_units
        for number in range(begin, end):
            wait_until(pending)
            cuda.syncthreads()
            if number + ahead < end:
                copy(shared, writing, a, b, places, found, thread)
            commit()
            found = entries(table, lay, z, min(number + 1 + ahead, last), thread)
            acc = multiply(acc, shared, reading, own_row, own_column, lane)
            reading = reading + stage_units if reading + stage_units < all_units else 0
            writing = writing + stage_units if writing + stage_units < all_units else 0
        wait_until(0)
        cuda.syncthreads()
        locate(shared, g, lay, group, z, column, thread)
        for part in range(warp_rows):
            if div(warp, warp_columns) == part:
                spread(shared, acc, 0, own_column, lane)
            cuda.syncthreads()
            write(shared, first, second, bias, out, g, lay, group, z, row + part * height_part, column, begin, end, thread, zero)
            cuda.syncthreads()

    product.__name__ = product.__qualname__ = f"{op}_tensor_{tile}_{dtype}"
    return kernel(product)
