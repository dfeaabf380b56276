"""Convolution of few channels on register tiles over rows: depthwise, image filters, long filters of sound, for real floats.

A work item takes a band of rows of the results of one image and group, and a strip of it at a time (see `strips`). Kernels of few
rows roll down the strip (`microkernels.rolling`), others slide over it tile by tile (`microkernels.sliding`): either way a loaded
vector of x serves several rows of results. Where tiles slide, rows of padding zeros are left out.

The terms of an output form one chain in the order of the "strict" level; a flipped kernel is walked backwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np

from numconv.plugin import ConvProblem, Verdict, np_dtype
from numconv_numba.activations import ACTIVATIONS, activate_rows
from numconv_numba.compiling.compiler import Address, Tag, Unit, helper, invoke, kernel
from numconv_numba.dense.base import Adjoint, DenseImplementation, Part, accumulated, fill, redo
from numconv_numba.dense.blocked import CALL_SECONDS, seconds
from numconv_numba.dense.strips import (
    BANDS,
    CLASSES,
    COLUMNS,
    EXTRA,
    FOLDED,
    ITEMS,
    KERNEL_ROWS,
    LAG,
    OUTER_OUTPUTS,
    OUTER_TAPS,
    PACK,
    PHASE_ROWS,
    REACHED,
    ROLLING,
    ROWS,
    SMOOTH,
    SPLIT,
    SPREAD,
    STRIP,
    SUMS_TILE,
    TILE,
    UINT8,
    WIDTH,
    band_lines,
    band_of,
    column_places,
    entry_table,
    first_row_of,
    layout_vector,
    line_bytes_of,
    outer_place,
    short_pixels,
    slab_places,
    slices_of,
    strip_of,
)
from numconv_numba.direct import MEASURED_ERROR
from numconv_numba.elements import INT64, itemsize, same
from numconv_numba.geometry import DIMS, FLIPPED, GROUPS, MODE, OPTION, OUTPUT, PARTS, PER_C, PER_K, WINDOW, conv_vectors, part
from numconv_numba.microkernels import sliding as job_of
from numconv_numba.microkernels.emit import host, lanes_of
from numconv_numba.microkernels.rolling import roll
from numconv_numba.microkernels.sliding import slide
from numconv_numba.rows import finish_row
from numconv_numba.scalar import address, as_integer, is_null, load, pointer, store, zero
from numconv_numba.threads import MAX_THREADS, Areas, area_of, parallel_items, run_with, taken_items

from .depthwise_plans import cycles_of, lag_refusal, layout_for, schedule

__all__ = ["SCATTERED_CYCLES", "Depthwise", "is_scattered"]

WEIGHT_BYTES = 512 * 1024
"""The packed weights of a group."""
SCATTERED_CYCLES = 7
"""Of an element of x, where its neighbours in memory are other channels."""
KEPT = 64
"""Combinations of strides whose frames an executor keeps."""
Strides: TypeAlias = tuple[int, ...]


# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def pack_weights(target, w, g, b, at):
    """The kernels of a group, [k][slice][column][phase][row of the phase]; returns whether one is not finite."""
    ndim, ws, size = g[DIMS], part(g, PARTS + 1), itemsize(at)
    column, bad = b[LAG] * b[PHASE_ROWS] * size, zero(at)
    row_step = g[ws + 3] * b[COLUMNS] if b[FOLDED] else g[ws + 1 + ndim]
    column_step, place = g[ws + 2 + ndim], target
    for k in range(g[PER_K]):
        for c in range(g[PER_C]):
            for tap in range(b[OUTER_TAPS]):
                source, left = w + (k * g[ws + 1] + c * g[ws + 2]), tap
                for axis in range(ndim - 3, -1, -1):
                    source = source + left % g[part(g, WINDOW) + axis] * g[ws + 3 + axis]
                    left //= g[part(g, WINDOW) + axis]
                for row in range(b[REACHED]):
                    into = place + (row % b[LAG] * b[PHASE_ROWS] + row // b[LAG]) * size
                    line = source + row * row_step
                    for t in range(b[EXTRA] if row == b[KERNEL_ROWS] else b[COLUMNS]):
                        value = load(line + t * column_step, at)
                        bad += abs(value - value)
                        store(into + t * column, value, at)
                place = place + b[COLUMNS] * column
    return bad != 0


@helper
def tile_lines(first_row, count, inside, beyond, g, b):
    """For `count` rows of results from one on: the line at which the tile starts, its first and last line counted from there."""
    flipped = g[part(g, FLIPPED)] != 0
    if b[FOLDED]:
        return first_row + (count - 1 if flipped else 0), 0, count - 1 + b[REACHED]
    top, lines = b[LAG] * first_row, b[LAG] * (count - 1) + b[KERNEL_ROWS]
    first, last = max(0, inside - top), min(lines, beyond - top)
    if flipped:
        return top + lines - 1, lines - last, lines - first
    return top, first, last


@helper
def multiply_rows(source, line_bytes, lines, slices, w, channel, y, y_row, count, pixels, short, frame, yt, at):
    """`count` rows of results of one output channel, of which the last one has `short` pixels if that is not 0.

    `source` is the address of the first line, `lines` the range of lines that are read, counted from there; y is the address of
    the first row of results.
    """
    g, b, entries, areas, bias = frame
    axis, size, job = g[DIMS] - 1, itemsize(at), pointer(areas[FIELDS], INT64)
    y_step, flipped, each = g[part(g, PARTS + 2) + 3 + axis], g[part(g, FLIPPED)] != 0, 2 if b[EXTRA] > 0 else 1
    # the tile writes results of any dtype itself, but only sums that are spread out afterwards
    inline = (y_step == itemsize(yt)) & ((g[OPTION] <= 1) | same(yt, at))
    finished = inline | (same(yt, at) & (y_step == 2 * size))
    target, row_bytes, shift, relu = areas[SUMS], b[WIDTH] * size, address(0), 0
    if finished:
        relu, shift = 1 if g[OPTION] == 1 else 0, bias if is_null(bias) else bias + channel * size
    if inline:
        target, row_bytes = y, y_row
    last = count - 1
    if flipped:
        target, row_bytes, line_bytes = target + last * row_bytes, -row_bytes, -line_bytes
    job[job_of.X], job[job_of.X_ROW], job[job_of.W], job[job_of.SLICES] = as_integer(source), line_bytes, as_integer(w), slices
    job[job_of.FIRST], job[job_of.LAST] = lines[0] * each, max(lines[1], lines[0]) * each
    job[job_of.BIAS], job[job_of.RELU], job[job_of.Y], job[job_of.Y_ROW] = as_integer(shift), relu, as_integer(target), row_bytes
    job[job_of.USED_ROWS], job[job_of.USED], job[job_of.LEFT] = count, pixels, short
    job[job_of.SHORT] = -1 if short == 0 else 0 if flipped else last
    invoke(entries[TILE if inline else SUMS_TILE], areas[FIELDS])
    whole = last if short > 0 else count
    if finished and not inline and g[OPTION] > 1:
        activate_rows(entries[SMOOTH], areas[SUMS], b[WIDTH] * size, whole, pixels, g[OPTION], at)
        activate_rows(entries[SMOOTH], areas[SUMS] + whole * b[WIDTH] * size, 0, count - whole, short, g[OPTION], at)
    if finished and not inline:
        invoke(entries[SPREAD], areas[SUMS], b[WIDTH] * size, y, y_row, whole, pixels)
        invoke(
            entries[SPREAD], areas[SUMS] + whole * b[WIDTH] * size, b[WIDTH] * size, y + whole * y_row, y_row, count - whole, short
        )
    elif not finished:
        for row in range(count):
            stored = short if (short > 0) & (row == last) else pixels
            sums = areas[SUMS] + row * b[WIDTH] * size
            finish_row(sums, y + row * y_row, stored, y_step, bias, channel, g[OPTION], yt, at)


@helper
def multiply_strip(slices, group, first_row, end_row, residue, lines, y, pixels, frame, yt, at):
    """The rows first_row..end_row of a strip, for all output channels of a group; `lines`: see `band_lines`."""
    g, b, entries, areas, _ = frame
    _, inside, beyond, origin, _ = lines
    size, per_k, ys, line_bytes = itemsize(at), g[PER_K], part(g, PARTS + 2), line_bytes_of(b, at)
    kernel_bytes = g[PER_C] * b[OUTER_TAPS] * b[COLUMNS] * b[LAG] * b[PHASE_ROWS] * size
    for row in range(first_row, end_row, b[ROWS]):
        count = min(b[ROWS], end_row - row)
        start, first, last = tile_lines(row, count, inside, beyond, g, b)
        offset, y_row = first_row_of(g, b, row, residue)
        for column in range(0, pixels, b[WIDTH]):
            source, used = areas[SLAB] + ((start - origin) * line_bytes + column * size), min(b[WIDTH], pixels - column)
            for k in range(per_k):
                multiply_rows(
                    source, line_bytes, (first, last), slices, areas[WEIGHTS] + k * kernel_bytes, group * per_k + k,
                    y + (k * g[ys + 2] + offset + column * g[ys + 2 + g[DIMS]]), y_row, count, used,
                    short_pixels(g, b, row + count), frame, yt, at,
                )  # fmt: skip
    if g[OPTION] > 1 and same(yt, at) and g[ys + 2 + g[DIMS]] == size:
        offset, y_row = first_row_of(g, b, first_row, residue)
        rows = end_row - first_row
        if b[FOLDED]:
            pixels, rows = min(rows * pixels, g[part(g, OUTPUT)] - first_row * pixels), 1
        for k in range(per_k):
            activate_rows(entries[SMOOTH], y + (k * g[ys + 2] + offset), y_row, rows, pixels, g[OPTION], at)


@helper
def band_strips(x, y, group, output, residue, first_row, end_row, frame, xt, yt, at):
    """A band of rows of results, strip by strip; x and y are the addresses of the group in an image."""
    g, b, entries, areas, _ = frame
    axis = g[DIMS] - 1
    # a tile that rolls reads the rows of padding zeros too
    lines = band_lines(first_row, end_row, residue, 1 if b[ROLLING] else g[MODE], g, b)
    base, _, _, origin, end = lines
    for column in range(0, 1 if b[FOLDED] else g[part(g, OUTPUT) + axis], b[STRIP] * b[WIDTH]):
        start, pixels = strip_of(g, b, column, first_row)
        slices = invoke(entries[PACK], areas[SLAB], areas[PLACES], x, output, base, origin, end, start, entries[SPLIT], g, b)
        target = y + column * g[part(g, PARTS + 2) + 3 + axis]
        multiply_strip(slices, group, first_row, end_row, residue, lines, target, pixels, frame, yt, at)


@helper
def fill_job(areas, columns, schedule, b, at):
    """The fields of a job that all tiles share."""
    job = pointer(areas[FIELDS], INT64)
    job[job_of.PLACES], job[job_of.COLUMNS], job[job_of.COUNT] = as_integer(areas[PLACES]), as_integer(columns), b[COLUMNS]
    job[job_of.SCHEDULE], job[job_of.W_COLUMN] = as_integer(schedule), b[LAG] * b[PHASE_ROWS] * itemsize(at)


# Numbers in a frame; the parts of a worker's scratch memory.
FRAME = 7
SLAB, WEIGHTS, PLACES, SUMS, FIELDS, AREAS = range(6)


@helper
def _bands(worker, queue, args):
    xt, yt, at, scratch, areas, parts, frames, x, all_w, bias, all_y, status = args
    own = area_of(scratch, areas, AREAS, worker)
    memory = own + areas[SLAB], own + areas[WEIGHTS], own + areas[PLACES], own + areas[SUMS], own + areas[FIELDS]
    packed = -1
    for item in taken_items(queue, worker):
        for one in range(parts):
            fields = pointer(frames + one * (8 * FRAME), INT64)
            g, b = pointer(address(fields[0]), INT64), pointer(address(fields[1]), INT64)
            entries = pointer(address(fields[2]), INT64)
            w, y = all_w + fields[5], all_y + fields[6]
            xs, ys, each = part(g, PARTS), part(g, PARTS + 2), b[BANDS] * b[CLASSES] * b[OUTER_OUTPUTS]
            # with several parts an item is all of a group in an image, so that they find its results in the cache
            first, count = (0, each) if parts > 1 else (item % each, 1)
            where = item if parts > 1 else item // each
            group, n = where % g[GROUPS], where // g[GROUPS]
            fill_job(memory, address(fields[3]), address(fields[4]), b, at)
            if parts > 1 or group != packed:
                packed = group
                if pack_weights(memory[WEIGHTS], w + group * g[part(g, PARTS + 1)], g, b, at):
                    store(status, np.uint8(1), UINT8)
            for band in range(first, first + count):
                first_row, end_row, residue, output = band_of(band, g, b)
                target = y + (n * g[ys] + group * g[ys + 1] + outer_place(g, output))
                source = x + (n * g[xs] + group * g[xs + 1])
                frame = g, b, entries, memory, bias
                band_strips(source, target, group, output, residue, first_row, end_row, frame, xt, yt, at)


@kernel
def depthwise(
    xt: Tag, yt: Tag, at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, parts: int, frames: Address,
    x: Address, w: Address, bias: Address, y: Address, status: Address,
) -> None:  # fmt: skip
    """y from x and w: an item is a band of rows of one image and group, or all of them for each of several parts.

    `frames` has of each part the addresses of the vectors of the problem and of the layout, of the functions called by address, and
    of the tables of columns and of the schedule, and where it begins in w and y, in bytes. `status` gets a 1 if a weight is not
    finite. Weights and bias are in the accumulation dtype.
    """
    args = xt, yt, at, scratch, pointer(areas, INT64), parts, frames, x, w, bias, y, status
    parallel_items(region, workers, items, _bands, args)


def _sliding() -> list[tuple[int, int, bool]]:
    """The host's tiles, and that of long filters of sound, which have few rows."""
    tiles = host().sliding_tiles
    return [*((*tile, False) for tile in tiles), (*tiles[1], True)]


_kernels = Unit(
    "depthwise.kernels",
    lambda dtype, out, acc, lanes: [
        (slide, ((rows, vectors, lanes, few), (acc, each)))
        for each in dict.fromkeys((out, acc))
        for rows, vectors, few in _sliding()
    ],
    called=lambda dtype, out, acc, lanes: [(depthwise, (dtype, out, acc))],
)


# --- the implementation --------------------------------------------------------------------------------------------------------


def _functions(problem: ConvProblem, lanes: int) -> tuple[Any, ...]:
    """The driver, and all of the host's tiles that slide: first those that write results, then those that write sums."""
    return _kernels.functions(problem.dtype, problem.out_dtype, problem.acc_dtype, lanes)


def _tiles(problem: ConvProblem, layout: Any) -> list[int]:
    """The addresses of the tiles of a layout: that which writes results, and that which writes sums."""
    acc, tile = problem.acc_dtype, (layout.rows, layout.vectors, layout.phase_rows < layout.rows)
    if layout.rolling:
        shape = layout.vectors, layout.kernel_rows, layout.lag, layout.lanes
        return [roll.address(shape, (acc, dtype)) for dtype in (problem.out_dtype, acc)]
    places = _sliding()
    if tile not in places:
        few = layout.rows, layout.vectors, layout.lanes, True
        return [slide.address(few, (acc, dtype)) for dtype in (problem.out_dtype, acc)]
    found, first = _functions(problem, layout.lanes)[1:], places.index(tile)
    return [found[first], found[first - len(places)]]  # the same where results are sums


class _Part:
    """One forward convolution: its tables, and what a worker needs for it."""

    def __init__(self, problem: ConvProblem):
        layout, self._acc = layout_for(problem), np_dtype(problem.acc_dtype)
        item, slices, per_k = self._acc.itemsize, slices_of(problem), problem.k // problem.groups
        self.bands = math.prod(problem.output[:-2]) * layout.classes * layout.bands
        rows = layout.band if layout.rolling else layout.rows
        # the last pixels of a tile lie beyond the strip, and are read
        slab, weights = slices * slab_places(layout) + 2 * layout.width, per_k * slices * layout.slice_weights
        self.areas = slab * item, weights * item, 16 * slices, rows * layout.width * item, 8 * job_of.JOB
        self._problem, self._layout = problem, layout

    def prepare(self) -> None:
        """Compile the tile and fill the tables."""
        problem, layout, item = self._problem, self._layout, self._acc.itemsize
        self._vectors = conv_vectors(problem, ACTIVATIONS[problem.activation])
        places = [phase * layout.pitch + place for phase, place in column_places(problem, layout.columns)]
        rows = schedule(layout.rows, layout.lag, layout.kernel_rows, layout.columns, layout.extra)
        self._tables = [
            layout_vector(problem, layout), entry_table(problem, *_tiles(problem, layout)), np.array(places, np.int64) * item,
            np.array(rows, np.int64) * np.array([1, 1, 1, item, 1, 1]),
        ]  # fmt: skip
        self._fixed = [table.ctypes.data for table in self._tables]

    def frame(self, x: Strides, w: Strides, y: Strides) -> tuple[Any, list[int]]:
        """The vector of the problem, which must stay alive, and the addresses of the frame."""
        vector = self._vectors(x, w, y)
        return vector, [vector.ctypes.data, *self._fixed]


def _areas(parts: list[_Part]) -> Areas:
    """A worker's scratch memory, for any of the parts."""
    return Areas(*map(max, zip(*(part.areas for part in parts), strict=True)))


class _Kernel:
    """The compiled driver, for one part or several, each with some of the taps of w and some of the places of y."""

    def __init__(self, problem: ConvProblem, parts: list[_Part], views: Sequence[tuple[Any, Any]] = ((..., ...),)):
        for each in parts:
            each.prepare()
        self._parts, self._views = parts, views
        self._items = problem.n * problem.groups * (parts[0].bands if len(parts) == 1 else 1)
        self._work = problem.flops / 2
        self._acc = np_dtype(problem.acc_dtype)
        self._areas = _areas(parts)
        self._kernel = _functions(problem, lanes_of(problem.acc_dtype))[0]
        self._made: dict[tuple[Strides, ...], tuple[Any, list[Any]]] = {}

    def __call__(self, x: Any, w: Any, bias: Sequence[Any], y: Any) -> bool:
        """Compute, with w in the accumulation dtype. Whether a weight is not finite."""
        if not self._items:
            return False
        frames, _ = self._frames(x, w, y)
        shift = accumulated(bias[0], self._acc) if bias else 0
        status = np.zeros(1, np.uint8)
        run_with(self._areas, self._kernel, self._items, self._work, len(frames), frames, x, w, shift, y, status)
        return bool(status[0])

    def _frames(self, x: Any, w: Any, y: Any) -> tuple[Any, list[Any]]:
        """The frames for arrays of these strides, and what they point to; those seen before are kept."""
        key = x.strides, w.strides, y.strides
        found = self._made.get(key)
        if found is None:
            rows, vectors = [], []
            for each, (taps, places) in zip(self._parts, self._views, strict=True):
                some_w, some_y = w[taps], y[places]
                vector, addresses = each.frame(x.strides, some_w.strides, some_y.strides)
                rows.append([*addresses, some_w.ctypes.data - w.ctypes.data, some_y.ctypes.data - y.ctypes.data])
                vectors.append(vector)
            found = np.array(rows, np.int64), vectors
            if len(self._made) < KEPT:
                self._made[key] = found
        return found


def is_scattered(problem: ConvProblem) -> bool:
    """Whether the neighbours of an element in memory are other channels."""
    return problem.layout == "channels_last" and problem.c > 1


def _is_padded(problem: ConvProblem) -> bool:
    return problem.pad_mode == "zeros" and any(low > 0 or high > 0 for low, high in problem.padding)


class _Executor:
    """One convolution."""

    def __init__(self, problem: ConvProblem):
        self._problem = problem
        self._kernel = _Kernel(problem, [_Part(problem)])
        self._acc = np_dtype(problem.acc_dtype)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute; weights of a narrower dtype are widened first."""
        w = ins[1]
        self._run(outs[0], ins, w if w.dtype is self._acc else np.asarray(w, self._acc))

    def bind(self, w: Any) -> Any:
        """The executor with its own copy of w, in the accumulation dtype."""
        original = w.copy()
        wide = accumulated(original, self._acc)
        return lambda outs, ins: self._run(outs[0], (ins[0], original, *ins[1:]), wide)

    def _run(self, y: Any, ins: Any, w: Any) -> None:
        if self._kernel(ins[0], w, ins[2:], y) and _is_padded(self._problem):
            redo(self._problem, y, ins, range(self._problem.n))


class _Phases(Adjoint):
    """An input_grad with a stride: its parts together, image by image and group by group, so that results stay in the cache."""

    def __init__(self, problem: ConvProblem, parts: list[Part], executors: list[Any]):
        super().__init__(problem, parts, executors)
        used = [(each, each.problem) for each in parts if each.problem is not None]
        views = [((..., *each.taps), (..., *each.places)) for each, _ in used]
        self._kernel = _Kernel(problem, [_Part(forward) for _, forward in used], views)
        self._unseen = [(..., *each.places) for each in parts if each.problem is None]
        self._acc = np_dtype(problem.acc_dtype)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute; where padding zeros may have met a weight that is not finite, part by part again."""
        wide = np.asarray(self.swapped(ins[1]), self._acc)
        if self._kernel(ins[0], wide, ins[2:], outs[0]):
            super().__call__(outs, ins)
            return
        for places in self._unseen:
            fill(outs[0][places], ins[2:], self._problem.activation)


class Depthwise(DenseImplementation):
    """Convolution of real floats in groups of few channels."""

    name = "depthwise"
    apart_seconds: ClassVar[float] = 2e-10
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def accepts(self, problem: ConvProblem) -> Verdict:
        """Where the weights of a group fit the cache, and rows of windows lie near each other."""
        size = math.prod(problem.w_shape) // max(problem.groups, 1) * np_dtype(problem.acc_dtype).itemsize
        if size > WEIGHT_BYTES:
            return Verdict.no(f"the weights of a group take {size} bytes, and it packs at most {WEIGHT_BYTES}")
        reason = lag_refusal(problem)
        return Verdict.no(reason) if reason else Verdict.yes()

    def forward_cost(self, problem: ConvProblem) -> float:
        """Tiles, packing, weights; pixels that are no neighbours in memory are packed and stored one by one."""
        layout = layout_for(problem)
        weights = problem.k * slices_of(problem) * layout.slice_weights * 1.5
        scattered = math.prod(problem.x_shape) * SCATTERED_CYCLES if is_scattered(problem) else 0.0
        return CALL_SECONDS + seconds(cycles_of(problem, layout) + weights + scattered, problem.flops / 2)

    def forward_workspace(self, problem: ConvProblem) -> int:
        """For each thread a slab, the weights of a group, and tables; weights in the accumulation dtype."""
        item = np_dtype(problem.acc_dtype).itemsize
        widened = 0 if problem.dtype == problem.acc_dtype else math.prod(problem.w_shape) * item
        return MAX_THREADS * _areas([_Part(problem)]).bytes + widened

    def forward(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)

    def adjoint(self, problem: ConvProblem, parts: list[Part], executors: list[Any]) -> Any:
        """Together where there is a group in an image for every thread."""
        together = len(parts) > 1 and problem.n * problem.groups >= ITEMS
        return (_Phases if together else Adjoint)(problem, parts, executors)
