"""Operations that move values, padding, unfold and max_unpool, and their adjoints, for every problem, a row at a time.

What is only moved is compiled once for each size of an element. Sums run over the taps in row-major order, from zero, in the
accumulation dtype, and for one tap over the results in row-major order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from numconv.plugin import WINDOW_OPS, Implementation, Verdict, WindowProblem, np_dtype
from numconv_numba.compiling.compiler import Address, Tag, helper, kernel
from numconv_numba.elements import INT64, itemsize, memory, numbers, release, scratch
from numconv_numba.geometry import (
    DIMS,
    LOW,
    MODE,
    OUTPUT,
    PARTS,
    SIZE,
    STRIDE,
    WINDOW,
    Vectors,
    channel_strides,
    part,
    source_index,
    span,
)
from numconv_numba.rows import outer_offset, outer_size, outer_source, tap_position
from numconv_numba.scalar import add, load, pointer, store, wide_vectors, zero
from numconv_numba.threads import MAX_THREADS, parallel_for, run

from .places import check_places
from .window_rows import (
    PART,
    ROW,
    Rows,
    chunk_of,
    fill,
    flat_step,
    linked,
    part_of,
    place_of,
    row_of,
    volume,
    volume_offset,
    volume_parts,
    window_parts,
    write_row,
)

__all__ = ["Windows", "row_major"]

UINT8 = Tag("uint8")


# --- pad and unfold ------------------------------------------------------------------------------------------------------------


@helper
def copy_row(y, x, first, last, offset, y_step, g, xt, yt):
    """y[q] = x[q*s + offset], padding as its mode has it, for the outputs first..last of a row; `y` is the address of the first."""
    wide_vectors()
    axis = g[DIMS] - 1
    stride, step = g[part(g, STRIDE) + axis], g[part(g, PARTS) + 3 + axis]
    low, high = span(first, last, stride, offset, g[part(g, SIZE) + axis])
    source, target = x + (low * stride + offset) * step, y + (low - first) * y_step
    copy_padding(y, x, first, low, first, offset, y_step, g, xt, yt)
    if stride * step == itemsize(xt) and y_step == itemsize(yt):
        for q in range(high - low):
            store(target + q * itemsize(yt), load(source + q * itemsize(xt), xt, yt), yt)
    else:
        for q in range(high - low):
            store(target + q * y_step, load(source + q * (stride * step), xt, yt), yt)
    copy_padding(y, x, high, last, first, offset, y_step, g, xt, yt)


@helper
def copy_padding(y, x, begin, end, first, offset, y_step, g, xt, yt):
    """`copy_row` for the outputs begin..end, which read the padding."""
    axis = g[DIMS] - 1
    size, stride, step = g[part(g, SIZE) + axis], g[part(g, STRIDE) + axis], g[part(g, PARTS) + 3 + axis]
    for q in range(begin, end):
        index = source_index(q * stride + offset, size, g[MODE])
        store(y + (q - first) * y_step, load(x + index * step, xt, yt) if index >= 0 else zero(yt), yt)


@helper
def _unfold(begin, end, args):
    xt, yt, x, y, g = args
    axis, outer = g[DIMS] - 1, outer_size(g, WINDOW)
    window, low, xs, ws = g[part(g, WINDOW) + axis], g[part(g, LOW) + axis], part(g, PARTS), part(g, PARTS + 1)
    taps, step = outer * window, g[part(g, PARTS + 2) + 3 + axis]
    lines = outer_size(g, OUTPUT) * -(-g[part(g, OUTPUT) + axis] // ROW)
    for item in range(begin, end):
        tap = item // lines % taps
        n, channel, row, first, last = chunk_of(g, item // lines // taps * lines + item % lines, OUTPUT)
        place = first * step + outer_offset(g, tap // window, WINDOW, PARTS + 1) + tap % window * g[ws + 3 + axis]
        target = row_of(y, g, n, channel, row, OUTPUT, PARTS + 2) + place
        inside, source = outer_source(g, row, tap // window, g[DIMS] - 1)
        if inside:
            offset = tap_position(g, axis, tap % window) - low
            copy_row(target, x + (n * g[xs] + channel * g[xs + 1] + source), first, last, offset, step, g, xt, yt)
        else:
            for q in range(last - first):
                store(target + q * step, zero(yt), yt)


@kernel
def unfold(xt: Tag, yt: Tag, region: int, workers: int, items: int, x: Address, y: Address, g: Address) -> None:
    """y ``[N, C, *R, *Q]`` from x: an item is a part of a row of y. Padding is the case of a window of one tap."""
    parallel_for(region, workers, items, _unfold, (xt, yt, x, y, pointer(g, INT64)))


# --- pad_backward and fold -----------------------------------------------------------------------------------------------------


@helper
def readers(g, axis, index, tap, found, begin):
    """The outputs, in order, whose tap reads an index of x, into ``found[begin:]``; returns how many."""
    if g[MODE] == 0:
        found[begin] = linked(g, axis, index, tap, True)
        return 1 if found[begin] >= 0 else 0
    size, stride, outputs = g[part(g, SIZE) + axis], g[part(g, STRIDE) + axis], g[part(g, OUTPUT) + axis]
    offset, count = tap_position(g, axis, tap) - g[part(g, LOW) + axis], 0
    low, high = span(0, outputs, stride, offset, size)
    for q in range(low):
        if source_index(q * stride + offset, size, g[MODE]) == index:
            found[begin + count] = q
            count += 1
    inside = (index - offset) // stride
    if inside * stride == index - offset and low <= inside < high:
        found[begin + count] = inside
        count += 1
    for q in range(high, outputs):
        if source_index(q * stride + offset, size, g[MODE]) == index:
            found[begin + count] = q
            count += 1
    return count


@helper
def outer_readers(g, index, tap, longest, found, counts):
    """`readers` of an outer tap and an outer index for each outer axis: ``found[axis * longest:]``. Returns the number of rows."""
    rows = 1
    for axis in range(g[DIMS] - 2, -1, -1):
        window, size = g[part(g, WINDOW) + axis], g[part(g, SIZE) + axis]
        counts[axis] = readers(g, axis, index % size, tap % window, found, axis * longest)
        rows *= counts[axis]
        tap //= window
        index //= size
    return rows


@helper
def reader_offset(g, row, longest, found, counts):
    """The byte offset in y of one of the rows that `outer_readers` found, counted in row-major order."""
    offset, steps = 0, part(g, PARTS + 2) + 3
    for axis in range(g[DIMS] - 2, -1, -1):
        offset += found[axis * longest + row % counts[axis]] * g[steps + axis]
        row //= counts[axis]
    return offset


@helper
def add_back(acc, y, first, last, offset, g, xt, at):
    """acc[q*s + offset] += y[q] wherever this lies in first..last of a row of x, padding folded back; in the order of q."""
    wide_vectors()
    axis = g[DIMS] - 1
    size, stride = g[part(g, SIZE) + axis], g[part(g, STRIDE) + axis]
    outputs, step = g[part(g, OUTPUT) + axis], g[part(g, PARTS + 2) + 3 + axis]
    low, high = span(0, outputs, stride, offset, size)
    begin, end = span(low, high, stride, offset - first, last - first)
    source, target = y + begin * step, acc + (begin * stride + offset - first) * itemsize(at)
    add_padding(acc, y, 0, low, first, last, offset, g, xt, at)
    if stride == 1 and step == itemsize(xt):
        for q in range(end - begin):
            place = target + q * itemsize(at)
            store(place, add(load(place, at), load(source + q * itemsize(xt), xt, at)), at)
    else:
        for q in range(end - begin):
            place = target + q * (stride * itemsize(at))
            store(place, add(load(place, at), load(source + q * step, xt, at)), at)
    add_padding(acc, y, high, outputs, first, last, offset, g, xt, at)


@helper
def add_padding(acc, y, begin, end, first, last, offset, g, xt, at):
    """`add_back` for the outputs begin..end, which read the padding."""
    axis = g[DIMS] - 1
    size, stride, step = g[part(g, SIZE) + axis], g[part(g, STRIDE) + axis], g[part(g, PARTS + 2) + 3 + axis]
    for q in range(begin, end if g[MODE] else begin):
        index = source_index(q * stride + offset, size, g[MODE])
        if first <= index < last:
            place = acc + (index - first) * itemsize(at)
            store(place, add(load(place, at), load(y + q * step, xt, at)), at)


@helper
def longest_readers(g):
    """How many outputs may at most read one index of an outer axis with one tap."""
    longest = 1
    for axis in range(g[DIMS] - 1 if g[MODE] else 0):
        longest = max(longest, g[part(g, OUTPUT) + axis])
    return longest


@helper
def _fold(begin, end, args):
    xt, yt, at, y, x, g = args
    axis, longest, taps = g[DIMS] - 1, longest_readers(g), outer_size(g, WINDOW)
    ws, ys, step = part(g, PARTS + 1), part(g, PARTS + 2), g[part(g, PARTS) + 3 + axis]
    buffer, lists = scratch(ROW * itemsize(at)), scratch(8 * g[DIMS] * (longest + 1))
    acc, found, counts = memory(buffer), numbers(lists, 0), numbers(lists, g[DIMS] * longest)
    for item in range(begin, end):
        n, channel, row, first, last = chunk_of(g, item, SIZE)
        y_c = y + (n * g[ys] + channel * g[ys + 1])
        fill(acc, last - first, zero(at), at)
        for tap in range(taps):
            rows = outer_readers(g, row, tap, longest, found, counts)
            y_tap = y_c + outer_offset(g, tap, WINDOW, PARTS + 1)
            for r in range(g[part(g, WINDOW) + axis]):
                offset = tap_position(g, axis, r) - g[part(g, LOW) + axis]
                for reader in range(rows):
                    source = y_tap + (r * g[ws + 3 + axis] + reader_offset(g, reader, longest, found, counts))
                    add_back(acc, source, first, last, offset, g, xt, at)
        write_row(acc, row_of(x, g, n, channel, row, SIZE, PARTS) + first * step, last - first, step, yt, at)
    release(buffer)
    release(lists)


@kernel
def fold(xt: Tag, yt: Tag, at: Tag, region: int, workers: int, items: int, y: Address, x: Address, g: Address) -> None:
    """The adjoint of `unfold`: an item is a part of a row of x."""
    parallel_for(region, workers, items, _fold, (xt, yt, at, y, x, pointer(g, INT64)))


# --- max_unpool ----------------------------------------------------------------------------------------------------------------


@helper
def _max_unpool(begin, end, args):
    xt, yt, y, indices, x, g = args
    axis, step = g[DIMS] - 1, flat_step(g, SIZE, PARTS)
    xs, length = part(g, PARTS), g[part(g, OUTPUT) + axis]
    index_step, y_step = g[part(g, PARTS + 1) + 3 + axis], g[part(g, PARTS + 2) + 3 + axis]
    for item in range(begin, end):
        n, channel, first, last = part_of(g, item)
        target = x + (n * g[xs] + channel * g[xs + 1])
        for place in range(first, last):
            store(target + volume_offset(g, place, step, SIZE, PARTS), zero(yt), yt)
        for row in range(outer_size(g, OUTPUT)):
            source = row_of(y, g, n, channel, row, OUTPUT, PARTS + 2)
            places = row_of(indices, g, n, channel, row, OUTPUT, PARTS + 1)
            for q in range(length):
                place = place_of(g, load(places + q * index_step, INT64), q)
                if first <= place < last:
                    store(target + volume_offset(g, place, step, SIZE, PARTS), load(source + q * y_step, xt, yt), yt)


@kernel
def max_unpool(
    xt: Tag, yt: Tag, region: int, workers: int, items: int, y: Address, indices: Address, x: Address, g: Address
) -> None:  # fmt: skip
    """x from y and the positions of its values, of which the last stays: an item is a part of a channel of x."""
    parallel_for(region, workers, items, _max_unpool, (xt, yt, y, indices, x, pointer(g, INT64)))


@helper
def _max_unpool_backward(begin, end, args):
    xt, yt, x, indices, y, g = args
    axis, step = g[DIMS] - 1, flat_step(g, SIZE, PARTS)
    xs, length = part(g, PARTS), g[part(g, OUTPUT) + axis]
    index_step, y_step = g[part(g, PARTS + 1) + 3 + axis], g[part(g, PARTS + 2) + 3 + axis]
    buffer = scratch(min(PART, volume(g, SIZE)))
    taken = memory(buffer)
    for item in range(begin, end):
        n, channel, first, last = part_of(g, item)
        source = x + (n * g[xs] + channel * g[xs + 1])
        fill(taken, last - first, 0, UINT8)
        for row in range(outer_size(g, OUTPUT) - 1, -1, -1):  # from the end: the last value for a position is the one that stayed
            target = row_of(y, g, n, channel, row, OUTPUT, PARTS + 2)
            places = row_of(indices, g, n, channel, row, OUTPUT, PARTS + 1)
            for q in range(length - 1, -1, -1):
                place = place_of(g, load(places + q * index_step, INT64), q)
                if first <= place < last:
                    stayed = load(taken + (place - first), UINT8) == 0
                    store(taken + (place - first), 1, UINT8)
                    value = load(source + volume_offset(g, place, step, SIZE, PARTS), xt, yt)
                    store(target + q * y_step, value if stayed else zero(yt), yt)
    release(buffer)


@kernel
def max_unpool_backward(
    xt: Tag, yt: Tag, region: int, workers: int, items: int, x: Address, indices: Address, y: Address, g: Address
) -> None:  # fmt: skip
    """The gradient of y from that of x, and the positions of y's values: an item is a part of a channel of x."""
    parallel_for(region, workers, items, _max_unpool_backward, (xt, yt, x, indices, y, pointer(g, INT64)))


# --- the implementation --------------------------------------------------------------------------------------------------------


def _moved(problem: WindowProblem) -> tuple[str, str]:
    """The dtypes for a kernel that moves values: of those that stay as they are only the size matters."""
    if problem.dtype != problem.out_dtype or problem.dtype.startswith("complex"):
        return problem.dtype, problem.out_dtype
    same = f"uint{8 * np_dtype(problem.dtype).itemsize}"
    return same, same


def row_major(sizes: tuple[int, ...], step: int) -> tuple[int, ...]:
    """The strides of axes of these sizes that lie flattened in one axis of stride `step`."""
    return tuple(step * math.prod(sizes[axis + 1 :]) for axis in range(len(sizes)))


def _column_vectors(problem: WindowProblem) -> Vectors:
    """The vectors from the strides of x and of columns [N, C*prod(R), prod(Q)]; the strides of the taps are where w has its own."""
    taps = math.prod(problem.window)

    def arrange(x: tuple[int, ...], columns: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        n, k, q = columns
        tap_strides, y_strides = row_major(problem.window, k), row_major(problem.output, q)
        return channel_strides(x, 1), (0, 0, 0, *tap_strides), (n, k * taps, k * taps, *y_strides)

    return Vectors(problem.n, problem.c, 1, 1, window_parts(problem), problem.pad_mode, 0, arrange)


def _compiled(problem: WindowProblem) -> Callable[..., None]:
    if problem.op in ("pad_backward", "fold"):
        return fold.specialise(problem.dtype, problem.out_dtype, problem.acc_dtype)
    kernels = {"pad": unfold, "unfold": unfold, "max_unpool": max_unpool, "max_unpool_backward": max_unpool_backward}
    return kernels[problem.op].specialise(*_moved(problem))


class _Executor:
    """One operation: the compiled kernel, and what is known of its rows."""

    def __init__(self, problem: WindowProblem):
        sizes = problem.output if problem.op in ("pad", "unfold") else problem.spatial
        self._problem = problem
        self._kernel = _compiled(problem)
        self._rows = Rows(problem, sizes)
        self._columns = _column_vectors(problem)
        self._items = problem.n * problem.c * math.prod(sizes[:-1]) * -(-sizes[-1] // ROW)
        self._work = problem.flops

    def __call__(self, outs: Any, ins: Any) -> None:
        if self._problem.n:
            getattr(self, f"_{self._problem.op}")(outs[0], *ins)

    def _pad(self, y: Any, x: Any) -> None:
        _, items, g = self._rows(x, y, y)
        run(self._kernel, items, self._work, x, y, g)

    def _pad_backward(self, x: Any, y: Any) -> None:
        _, items, g = self._rows(x, y, y)
        run(self._kernel, items, self._work, y, x, g)

    def _unfold(self, y: Any, x: Any) -> None:
        items = self._items * math.prod(self._problem.window)
        run(self._kernel, items, self._work, x, y, self._columns(x.strides, y.strides))

    def _fold(self, x: Any, y: Any) -> None:
        run(self._kernel, self._items, self._work, y, x, self._columns(x.strides, y.strides))

    def _max_unpool(self, x: Any, y: Any, indices: Any) -> None:
        items, g = self._parts(x, indices, y)
        run(self._kernel, items, self._work, y, indices, x, g)

    def _max_unpool_backward(self, y: Any, x: Any, indices: Any) -> None:
        items, g = self._parts(x, indices, y)
        run(self._kernel, items, self._work, x, indices, y, g)

    def _parts(self, x: Any, indices: Any, y: Any) -> tuple[int, np.ndarray[Any, Any]]:
        check_places(self._problem.op, indices, math.prod(self._problem.spatial))
        innermost, _, g = self._rows(x, indices, y)
        return self._problem.n * volume_parts(self._problem, innermost), g


class Windows(Implementation):
    """Moving values a row at a time: every problem, every level."""

    name = "windows"
    ops = frozenset(WINDOW_OPS)

    def supports(self, problem: WindowProblem) -> Verdict:
        """Everything."""
        return Verdict.yes()

    def cost(self, problem: WindowProblem) -> float:
        """The time to move the arrays."""
        return 2e-6 + problem.bytes / 1e10 + problem.flops / 4e9

    def workspace(self, problem: WindowProblem) -> int:
        """For each thread a row of sums, and which outputs read an index; or marks on a part of a channel."""
        if problem.op == "max_unpool_backward":
            return MAX_THREADS * min(PART, problem.c * math.prod(problem.spatial))
        if problem.op in ("pad_backward", "fold"):
            longest = 1 if problem.pad_mode == "zeros" else max(problem.output)
            return MAX_THREADS * (ROW * 16 + 8 * (problem.ndim + 1) * (longest + 1))
        return 0

    def build(self, problem: WindowProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
