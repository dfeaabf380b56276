"""Weight gradients of few channels on register tiles with the lanes over pixels, for real floats.

A work item takes all or some of the pixels of one group. As in `depthwise` it passes over bands of rows in strips; the tile of
`microkernels.correlation` adds up the products of grad_y with what some taps read of x, in the lanes of one vector each tap. How the
pixels are shared among items, and so the order of every sum, depends on the problem alone; the sums of items are added in order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Implementation, Verdict, np_dtype

from .blocked import CALL_SECONDS, seconds
from .compiler import Address, Tag, helper, invoke, kernel
from .depthwise import (
    BAND,
    BANDS,
    CLASSES,
    COLUMNS,
    EXTRA,
    FOLDED,
    ITEMS,
    LAG,
    OUTER_OUTPUTS,
    OUTER_TAPS,
    PHASE_ROWS,
    PHASES,
    PITCH,
    REACHED,
    SPLIT,
    STRIP,
    TILE,
    TOTAL,
    UINT8,
    WIDTH,
    Layout,
    column_places,
    first_row_of,
    inside_lines,
    layout_vector,
    layout_with,
    outer_place,
    pack_strip,
    packing_cycles,
    slab_places,
    slices_of,
)
from .direct import MEASURED_ERROR, Direct, added, clear, conv_vectors
from .elements import INT64, itemsize, same
from .geometry import BATCH, DILATION, DIMS, FLIPPED, LOW, MODE, OUTPUT, PARTS, PER_C, PER_K, SIZE, STRIDE, WINDOW, part
from .microkernels import correlation as task_of
from .microkernels.copies import split_strip
from .microkernels.correlation import TASK, correlate, sum_places
from .microkernels.emit import host, lanes_of
from .scalar import add, as_integer, load, pointer, store, zero
from .threads import MAX_THREADS, Areas, parallel_for, run_with, worker_area

__all__ = ["DepthwiseWeights"]

GRADIENT_BYTES = 512 * 1024
"""The sums of a group, for all its taps."""


class _Plan(NamedTuple):
    """How a weight gradient is cut.

    Attributes
    ----------
    layout : Layout
        Of the forward problem without flip: strips and bands.
    rows, columns : int
        Taps of a tile.
    row_tiles : tuple of (int, int)
        Of each tile the phase of the lag, and its first row of taps in that phase.
    column_tiles : tuple of int
        Of each tile its first column; the last ones may overlap.
    parts : int
        Work items of a group.
    """

    layout: Layout
    rows: int
    columns: int
    row_tiles: tuple[tuple[int, int], ...]
    column_tiles: tuple[int, ...]
    parts: int


def _tiled(problem: ConvProblem, layout: Layout, rows: int, columns: int) -> _Plan:
    """The plan with a given tile."""
    counts = [-(-(layout.reached - phase) // layout.lag) for phase in range(min(layout.lag, layout.reached))]
    row_tiles = tuple((phase, first) for phase, count in enumerate(counts) for first in range(0, count, rows))
    column_tiles = tuple(min(first, layout.columns - columns) for first in range(0, layout.columns, columns))
    units = _units(problem, layout)
    parts = max(1, min(units, -(-ITEMS // problem.groups)))
    return _Plan(layout, rows, columns, row_tiles, column_tiles, parts)


def _units(problem: ConvProblem, layout: Layout) -> int:
    """Bands of all images of a group."""
    return problem.n * math.prod(problem.output[:-2]) * layout.classes * layout.bands


def _cycles(problem: ConvProblem, plan: _Plan) -> float:
    """Of one group: two multiply-adds a cycle, and two thirds of a load, of which most cross two lines of memory."""
    layout, lanes = plan.layout, plan.layout.lanes
    pairs = slices_of(problem) * (problem.k // problem.groups)
    pixels = layout.width if layout.folded else problem.output[-1]
    strips = 1 if layout.folded else -(-pixels // (layout.strip * layout.width))
    line = max(plan.rows * plan.columns / 2, plan.columns * 1.5, 4) + 2
    walk = -(-pixels // lanes) * (line * (layout.band + plan.rows - 1) + 10) + strips * (plan.rows * plan.columns * 3 + 60)
    products = pairs * len(plan.row_tiles) * len(plan.column_tiles) * walk * layout.bands
    return _units(problem, layout) / layout.bands * (products + slices_of(problem) * strips * packing_cycles(layout))


@functools.lru_cache(maxsize=256)
def plan_for(problem: ConvProblem) -> _Plan:
    """The plan of a problem: the tile that needs the fewest cycles."""
    forward = problem.replace(op="forward", bias="", flip=False)
    registers = host().registers
    plans = []
    for vectors in (1, 2, 4) if problem.ndim == 1 else (1,):
        layout = layout_with(forward, False, 1, vectors)
        most = -(-layout.reached // layout.lag)
        for rows in range(1, min(most, 8) + 1):
            for columns in range(1, min(layout.columns, 12) + 1):
                if rows * columns + rows + 1 < registers:
                    plans.append(_tiled(problem, layout, rows, columns))
    return min(plans, key=lambda plan: _cycles(problem, plan))


# What the kernel knows of a plan: items of a group, rows and columns of a tile, tiles of rows and of columns, elements of the sums of
# a tile, taps of a slice of a kernel; whether grad_y itself is added up.
SHARES, ROWS, COLS, ROW_TILES, COLUMN_TILES, PLACES, TAPS, BIAS = range(8)
# The parts of a worker's scratch memory.
SLAB, SLICES, GRADIENTS, SUMS, FIELDS, AREAS = range(6)


# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def copy_rows(target, y, rows, y_row, pixels, y_step, xt, at):
    """Rows of grad_y, side by side in the accumulation dtype."""
    for row in range(rows):
        for q in range(pixels):
            store(target + (row * pixels + q) * itemsize(at), load(y + (row * y_row + q * y_step), xt, at), at)


@helper
def add_sums(sums, y, rows, y_row, left, pixels, y_step, k_step, per_k, xt, at):
    """sums[k] += grad_y of each output channel, of which the last row has `left` pixels if that is not 0."""
    for k in range(per_k):
        for row in range(rows):
            count = left if (left > 0) & (row == rows - 1) else pixels
            place = sums + k * itemsize(at)
            total = added(y + (k * k_step + row * y_row), count, y_step, xt, at)
            store(place, add(load(place, at), total), at)


@helper
def add_tiles(x, origin, line_bytes, first_row, inside, beyond, y, y_row, rows, pixels, sums, frame, at):
    """The products of `rows` rows of grad_y with a slice of x, whose slab begins with the line `origin`, for all tiles of taps."""
    b, p, entry, columns, row_tiles, column_tiles, fields = frame
    lag, task, place = b[LAG], pointer(fields, INT64), sums
    task[task_of.G], task[task_of.G_ROW], task[task_of.ROWS], task[task_of.PIXELS] = as_integer(y), y_row, rows, pixels
    task[task_of.X_ROW] = lag * line_bytes
    for tile in range(p[ROW_TILES]):
        phase, top = row_tiles[2 * tile], row_tiles[2 * tile + 1]
        used = min(p[ROWS], (b[REACHED] - phase + lag - 1) // lag - top)
        start = top + first_row
        task[task_of.X] = as_integer(x + (lag * start + phase - origin) * line_bytes)
        task[task_of.FIRST] = max(0, -((phase - inside) // lag) - start)
        task[task_of.LAST] = min(rows + used - 1, -((phase - beyond) // lag) - start)
        for column in range(p[COLUMN_TILES]):
            task[task_of.COLUMNS] = as_integer(columns + 8 * column_tiles[column])
            task[task_of.SUMS] = as_integer(place)
            invoke(entry, fields)
            place = place + p[PLACES] * itemsize(at)


@helper
def short_pixels(g, b, end_row):
    """The pixels of the last row before `end_row`, if they are folded and it is the last one at all; else 0."""
    if b[FOLDED] and end_row == b[TOTAL]:
        return g[part(g, OUTPUT)] - (b[TOTAL] - 1) * b[WIDTH]
    return 0


@helper
def add_rows(x, origin, line_bytes, first_row, inside, beyond, y, y_row, rows, pixels, sums, buffer, frame, g, b, xt, at):
    """`add_tiles` for `rows` rows, of which the last one may be short if they are folded; grad_y is copied where it must be."""
    y_step, left = g[part(g, PARTS + 2) + 2 + g[DIMS]], short_pixels(g, b, first_row + rows)
    whole = rows - 1 if left > 0 else rows
    for short in range(2):
        row, count, used = (whole, 1, left) if short else (0, whole, pixels)
        if count > 0 and used > 0:
            source, step = y + row * y_row, y_row
            if not (same(xt, at) & (y_step == itemsize(at))):
                copy_rows(buffer, source, count, y_row, used, y_step, xt, at)
                source, step = buffer, used * itemsize(at)
            add_tiles(x, origin, line_bytes, first_row + row, inside, beyond, source, step, count, used, sums, frame, at)


@helper
def add_band(x, y, output, residue, first_row, end_row, areas, entries, tables, g, b, p, xt, at):
    """A band of rows of grad_y of one image, for all kernels of a group; x and y are the addresses of the group in the image."""
    slab, slices, buffer, sums, fields, shifts = areas
    columns, row_tiles, column_tiles = tables
    axis, ys, size = g[DIMS] - 1, part(g, PARTS + 2), itemsize(at)
    low, stride, length = g[part(g, LOW) + axis], g[part(g, STRIDE) + axis], g[part(g, OUTPUT) + axis]
    base, inside, beyond, origin, end = 0, -(1 << 60), 1 << 60, first_row, end_row
    if not b[FOLDED]:
        base = residue * g[part(g, STRIDE) + axis - 1] - g[part(g, LOW) + axis - 1]
        inside, beyond = inside_lines(base, g[part(g, DILATION) + axis - 1], g[part(g, SIZE) + axis - 1], g[MODE])
        origin = max(inside, b[LAG] * first_row)
        end = max(origin, min(beyond, b[LAG] * (end_row - 1) + b[REACHED]))
    frame = b, p, entries[TILE], columns, row_tiles, column_tiles, fields
    line_bytes = b[WIDTH] * size if b[FOLDED] else b[PHASES] * b[PITCH] * size
    slice_bytes = (1 if b[FOLDED] else end - origin) * b[PHASES] * b[PITCH] * size
    of_slice, table = p[ROW_TILES] * p[COLUMN_TILES] * p[PLACES] * size, pointer(slices, INT64)
    weight_bytes = b[COLUMNS] * b[LAG] * b[PHASE_ROWS] * size
    offset, y_row = first_row_of(g, b, first_row, residue)
    for column in range(0, 1 if b[FOLDED] else length, b[STRIP] * b[WIDTH]):
        start = (first_row * b[WIDTH] if b[FOLDED] else column) * stride - low
        pixels = b[WIDTH] if b[FOLDED] else min(b[STRIP] * b[WIDTH], length - column)
        count = pack_strip(x, output, base, origin, end, start, (g, b, entries, (slab, slab, slices, sums, fields), y), entries[SPLIT], xt, at)
        # whole vectors are read, and must be finite
        clear(slab + count * slice_bytes, b[WIDTH] + b[PITCH] if b[FOLDED] else b[PITCH], at)
        if p[BIAS]:
            add_sums(
                shifts, y + (offset + column * g[ys + 3 + axis]), end_row - first_row, y_row, short_pixels(g, b, end_row), pixels,
                g[ys + 3 + axis], g[ys + 2], g[PER_K], xt, at,
            )  # fmt: skip
        for index in range(count):
            which = table[2 * index + 1] // weight_bytes
            for k in range(g[PER_K]):
                source = y + (k * g[ys + 2] + offset + column * g[ys + 3 + axis])
                into = sums + (k * g[PER_C] * b[OUTER_TAPS] + which) * of_slice
                add_rows(
                    slab + table[2 * index], origin, line_bytes, first_row, inside, beyond, source, y_row, end_row - first_row, pixels,
                    into, buffer, frame, g, b, xt, at,
                )  # fmt: skip


@helper
def scatter(sums, target, kernels, g, b, p, row_tiles, column_tiles, at):
    """The sums of the tiles to [kernel][tap]; returns whether one is not finite."""
    flipped, size, bad = g[part(g, FLIPPED)] != 0, itemsize(at), zero(at)
    for which in range(kernels):
        out = target + which * p[TAPS] * size
        for tile in range(p[ROW_TILES]):
            for row in range(p[ROWS]):
                line = row_tiles[2 * tile] + b[LAG] * (row_tiles[2 * tile + 1] + row)
                if line < b[REACHED]:
                    for column in range(p[COLUMN_TILES]):
                        place = ((which * p[ROW_TILES] + tile) * p[COLUMN_TILES] + column) * p[PLACES] + row * p[COLS]
                        first = line * b[COLUMNS] + column_tiles[column]
                        for t in range(min(p[COLS], p[TAPS] - first)):
                            value = load(sums + (place + t) * size, at)
                            bad += abs(value - value)
                            tap = p[TAPS] - 1 - first - t if flipped else first + t
                            store(out + tap * size, value, at)
    return bad != 0


@helper
def _parts(begin, end, args):
    xt, at, items, workers, scratch, areas, entries, tables, y, x, partial, shifts, status, g, b, p = args
    own = worker_area(scratch, areas, AREAS, workers, items, begin)
    _, row_tiles, column_tiles = tables
    xs, ys, kernels = part(g, PARTS), part(g, PARTS + 2), g[PER_K] * g[PER_C] * b[OUTER_TAPS]
    units = g[BATCH] * b[OUTER_OUTPUTS] * b[CLASSES] * b[BANDS]
    for item in range(begin, end):
        group, share = item // p[SHARES], item % p[SHARES]
        memory = (
            own + areas[SLAB], own + areas[SLICES], own + areas[GRADIENTS], own + areas[SUMS], own + areas[FIELDS],
            shifts + item * g[PER_K] * itemsize(at),
        )  # fmt: skip
        if p[BIAS]:
            clear(memory[5], g[PER_K], at)
        clear(memory[SUMS], kernels * p[ROW_TILES] * p[COLUMN_TILES] * p[PLACES], at)
        for unit in range(units * share // p[SHARES], units * (share + 1) // p[SHARES]):
            first_row, left = unit % b[BANDS] * b[BAND], unit // b[BANDS]
            residue, left = left % b[CLASSES], left // b[CLASSES]
            output, n = left % b[OUTER_OUTPUTS], left // b[OUTER_OUTPUTS]
            rows = b[TOTAL]
            if not b[FOLDED]:
                rows = (g[part(g, OUTPUT) + g[DIMS] - 2] - residue + b[CLASSES] - 1) // b[CLASSES]
            end_row = min(first_row + b[BAND], rows)
            if first_row < end_row:
                source, grads = x + (n * g[xs] + group * g[xs + 1]), y + (n * g[ys] + group * g[ys + 1] + outer_place(g, output))
                add_band(source, grads, output, residue, first_row, end_row, memory, entries, tables, g, b, p, xt, at)
        if scatter(memory[SUMS], partial + item * kernels * p[TAPS] * itemsize(at), kernels, g, b, p, row_tiles, column_tiles, at):
            store(status, np.uint8(1), UINT8)


@kernel
def depthwise_weights(
    xt: Tag, at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, entries: Address, columns: Address,
    row_tiles: Address, column_tiles: Address, y: Address, x: Address, partial: Address, shifts: Address, status: Address, g: Address, b: Address,
    p: Address,
) -> None:  # fmt: skip
    """The gradient of w from that of y and x, [group][share][k][slice][tap]: an item is a share of the pixels of a group.

    `shifts`, [group][share][k], gets the sums of grad_y if p asks for them, `status` a 1 if a sum is not finite.
    """
    parallel_for(
        region,
        workers,
        items,
        _parts,
        (
            xt, at, items, workers, scratch, pointer(areas, INT64), pointer(entries, INT64),
            (columns, pointer(row_tiles, INT64), pointer(column_tiles, INT64)), y, x, partial, shifts, status, pointer(g, INT64),
            pointer(b, INT64), pointer(p, INT64),
        ),
    )  # fmt: skip


# --- the implementation --------------------------------------------------------------------------------------------------------


def _areas(problem: ConvProblem, plan: _Plan) -> Areas:
    """A worker's scratch memory."""
    layout, item, slices = plan.layout, np_dtype(problem.acc_dtype).itemsize, slices_of(problem)
    slab = slices * slab_places(layout) + 2 * (layout.width + layout.pitch)
    pixels = layout.band * (layout.width if layout.folded else min(layout.strip * layout.width, problem.output[-1]))
    return Areas(slab * item, 16 * slices, pixels * item, _sums(problem, plan) * item, 8 * TASK)


def _sums(problem: ConvProblem, plan: _Plan) -> int:
    """Elements of the sums of a group."""
    tiles = len(plan.row_tiles) * len(plan.column_tiles) * sum_places(plan.rows, plan.columns, plan.layout.lanes)
    return slices_of(problem) * (problem.k // problem.groups) * tiles


class _Executor:
    """One weight gradient."""

    def __init__(self, problem: ConvProblem):
        plan = plan_for(problem)
        layout, item = plan.layout, np_dtype(problem.acc_dtype).itemsize
        self._problem = problem
        self._parts = plan.parts
        self._padded = problem.pad_mode == "zeros" and any(low > 0 or high > 0 for low, high in problem.padding)
        self._vectors = conv_vectors(problem, 0)
        places = column_places(problem.replace(flip=False), layout.columns)
        self._columns = np.array([(phase * layout.pitch + place) * item for phase, place in places], np.int64)
        self._row_tiles = np.array(plan.row_tiles, np.int64)
        self._column_tiles = np.array(plan.column_tiles, np.int64)
        self._block = layout_vector(problem, layout)
        taps = math.prod(problem.kernel[-2:])
        tile = plan.rows, plan.columns, layout.lanes
        counts = len(plan.row_tiles), len(plan.column_tiles), sum_places(*tile), taps, int(problem.bias == "y")
        self._plan = np.array([plan.parts, plan.rows, plan.columns, *counts], np.int64)
        self._areas = _areas(problem, plan)
        entries = split_strip.address(layout.lanes, problem.acc_dtype), correlate.address(tile, problem.acc_dtype)
        self._entries = np.array(entries, np.int64)
        self._kernel = depthwise_weights.specialise(problem.dtype, problem.acc_dtype)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        problem, (w, *bias), (y, x) = self._problem, outs, ins
        partial = np.empty((problem.groups, self._parts, w.size // problem.groups), problem.acc_dtype)
        shifts = np.empty((problem.groups, self._parts, problem.k // problem.groups), problem.acc_dtype)
        status = np.zeros(1, np.uint8)
        run_with(
            self._areas, self._kernel, problem.groups * self._parts, problem.flops / 2, self._entries, self._columns, self._row_tiles,
            self._column_tiles, y, x, partial, shifts, status, self._vectors(x.strides, w.strides, y.strides), self._block,
            self._plan,
        )  # fmt: skip
        if status[0] and not (np.isfinite(y).all() and np.isfinite(x).all()):
            self._direct(outs, ins)  # padding zeros, or pixels beyond a row, have met what is not finite
            return
        w[...] = partial.sum(axis=1).reshape(w.shape)
        if bias and problem.bias == "y":
            bias[0][...] = shifts.sum(axis=1).reshape(-1)
        elif bias:
            self._direct.bias_grad(bias[0], y, x, w)

    @functools.cached_property
    def _direct(self) -> Any:
        return Direct().build(self._problem)


class DepthwiseWeights(Implementation):
    """Weight gradients of real floats in groups of few channels."""

    name = "depthwise"
    ops = frozenset(("weight_grad",))
    levels = frozenset(("high", "default", "fast"))
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def supports(self, problem: ConvProblem) -> Verdict:
        """Real floats, where the sums of a group fit the cache."""
        if problem.acc_dtype not in ("float32", "float64"):
            return Verdict.no(f"its tiles are for real floats, and sums of {problem.dtype} are {problem.acc_dtype}")
        size = math.prod(problem.w_shape) // problem.groups * np_dtype(problem.acc_dtype).itemsize
        if size > GRADIENT_BYTES:
            return Verdict.no(f"the gradients of a group take {size} bytes, and it holds at most {GRADIENT_BYTES}")
        return Verdict.yes()

    def cost(self, problem: ConvProblem) -> float:
        """Tiles and packing."""
        plan = plan_for(problem)
        return CALL_SECONDS + 4e-6 + seconds(problem.groups * _cycles(problem, plan) + math.prod(problem.w_shape) * plan.parts * 4)

    def workspace(self, problem: ConvProblem) -> int:
        """For each thread a slab, sums and tables; and the sums of all items."""
        plan = plan_for(problem)
        partial = math.prod(problem.w_shape) * plan.parts * np_dtype(problem.acc_dtype).itemsize
        return MAX_THREADS * _areas(problem, plan).bytes + 2 * partial

    def build(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
