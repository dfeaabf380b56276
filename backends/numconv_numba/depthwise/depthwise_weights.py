"""Weight gradients of few channels on register tiles with the lanes over pixels, for real floats.

A work item takes all or some of the pixels of one group, and passes over them in bands and strips (see `strips`). The tile of
`microkernels.correlation` adds up the products of grad_y with what some taps of w read of x, in the lanes of one vector a tap. How
the pixels are shared among items, and so the order of every sum, depends on the problem alone; the sums of items are added in turn.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Implementation, Verdict, np_dtype
from numconv_numba.compiling.compiler import Address, Tag, Unit, helper, invoke, kernel
from numconv_numba.dense.blocked import CALL_SECONDS, seconds
from numconv_numba.dense.strips import (
    BANDS,
    CLASSES,
    COLUMNS,
    FOLDED,
    ITEMS,
    LAG,
    OUTER_OUTPUTS,
    OUTER_TAPS,
    PACK,
    PHASE_ROWS,
    PHASES,
    PITCH,
    REACHED,
    SPLIT,
    STRIP,
    TILE,
    UINT8,
    WIDTH,
    Layout,
    band_lines,
    band_of,
    column_places,
    entry_table,
    first_row_of,
    layout_vector,
    layout_with,
    line_bytes_of,
    outer_place,
    packing_cycles,
    short_pixels,
    slab_places,
    slices_of,
    strip_of,
)
from numconv_numba.direct import MEASURED_ERROR
from numconv_numba.direct_gradients import added
from numconv_numba.elements import INT64, itemsize, same
from numconv_numba.geometry import BATCH, DIMS, FLIPPED, MODE, OUTPUT, PARTS, PER_C, PER_K, conv_vectors, part
from numconv_numba.microkernels import correlation as task_of
from numconv_numba.microkernels.correlation import TASK, correlate, sum_places
from numconv_numba.microkernels.emit import host
from numconv_numba.rows import clear
from numconv_numba.scalar import add, as_integer, load, pointer, store, zero
from numconv_numba.threads import MAX_THREADS, Areas, area_of, parallel_items, run_with, taken_items

from .depthwise import SCATTERED_CYCLES, is_scattered
from .depthwise_plans import class_refusal, rows_inside
from .weight_sums import Finish

__all__ = ["DepthwiseWeights"]

GRADIENT_BYTES = 512 * 1024
"""The sums of a group, for all its taps."""
USUAL = (3, 3), (7, 2), (3, 8), (4, 6)
"""Tiles of kernels with 3 and 7 columns, and of wide ones: rows and columns. They are compiled with the driver."""


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
    """Of one group: two multiply-adds a cycle, and four thirds of a load; those across two lines of memory count twice."""
    layout, lanes = plan.layout, plan.layout.lanes
    pairs = slices_of(problem) * (problem.k // problem.groups)
    pixels = layout.width if layout.folded else problem.output[-1]
    strips = 1 if layout.folded else -(-pixels // (layout.strip * layout.width))
    tiles = len(plan.row_tiles) * len(plan.column_tiles)
    near = (slab_places(layout) + layout.band * pixels) * np_dtype(problem.acc_dtype).itemsize <= host().resident
    # what stays in the first-level cache is loaded into it once for all tiles
    line = max(plan.rows * plan.columns / 2, plan.columns * host().unaligned * 0.775, 4) + 2 / (tiles if near else 1)
    column = line * (layout.band * rows_inside(problem) + plan.rows - 1) + 10
    end = plan.rows * plan.columns * 3 + 60 if layout.folded else plan.rows * plan.columns * 1.5 + 40
    walk = -(-pixels // lanes) * column + strips * end
    products = pairs * tiles * walk * layout.bands
    return _units(problem, layout) / layout.bands * (products + slices_of(problem) * strips * packing_cycles(layout))


def _fits(rows: int, columns: int) -> bool:
    """Whether the registers hold a tile."""
    return rows * (columns + 1) + 1 < host().registers


@functools.lru_cache(maxsize=256)
def plan_for(problem: ConvProblem) -> _Plan:
    """The plan of a problem: the tile that needs the fewest cycles."""
    forward = problem.replace(op="forward", bias="", flip=False)
    plans = []
    for vectors in (1, 2, 4) if problem.ndim == 1 else (1,):
        layout = layout_with(forward, False, 1, vectors)
        most = -(-layout.reached // layout.lag)
        shapes = itertools.product(range(1, min(most, 8) + 1), range(1, min(layout.columns, 12) + 1))
        layouts = dict.fromkeys((layout, _evenly(problem, layout)))
        plans += [_tiled(problem, each, *shape) for shape in shapes if _fits(*shape) for each in layouts]
    return min(plans, key=lambda plan: _cycles(problem, plan) * _unevenness(problem, plan))


def _evenly(problem: ConvProblem, layout: Layout) -> Layout:
    """The layout with more bands, as many for each work item."""
    others, parts = _units(problem, layout) // layout.bands, -(-ITEMS // problem.groups)
    some = parts // math.gcd(parts, max(others, 1))
    band = max(1, -(-layout.total // (-(-layout.bands // some) * some)))
    return layout._replace(band=band, bands=-(-layout.total // band))


def _unevenness(problem: ConvProblem, plan: _Plan) -> float:
    """What the work item with the most bands has, against the mean."""
    units = _units(problem, plan.layout)
    return -(-units // plan.parts) * plan.parts / max(units, 1)


# What the kernel knows of a plan: items of a group, rows and columns of a tile, tiles of rows and of columns, elements of the sums
# of a tile, taps of a slice of a kernel; whether grad_y itself is added up.
SHARES, ROWS, COLS, ROW_TILES, COLUMN_TILES, PLACES, TAPS, BIAS = range(8)
# The parts of a worker's scratch memory.
SLAB, SLICES, GRADIENTS, SUMS, FIELDS, AREAS = range(6)


# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def copy_rows(target, y, rows, y_row, pixels, y_step, xt, at):
    """Rows of grad_y, one behind the other in the accumulation dtype."""
    for row in range(rows):
        for q in range(pixels):
            store(target + (row * pixels + q) * itemsize(at), load(y + (row * y_row + q * y_step), xt, at), at)


@helper
def add_sums(sums, y, y_row, rows, pixels, short, g, xt, at):
    """sums[k] += the rows of grad_y of each output channel, of which the last one has `short` pixels if that is not 0."""
    ys = part(g, PARTS + 2)
    for k in range(g[PER_K]):
        place = sums + k * itemsize(at)
        for row in range(rows):
            count = short if (short > 0) & (row == rows - 1) else pixels
            total = added(y + (k * g[ys + 2] + row * y_row), count, g[ys + 2 + g[DIMS]], xt, at)
            store(place, add(load(place, at), total), at)


@helper
def add_tiles(x, first_row, lines, y, y_row, rows, pixels, sums, frame, at):
    """The products of `rows` rows of grad_y with a slice of x, which begins with the first of the band's lines, for all taps."""
    _, b, p, entries, areas, tables = frame
    columns, row_tiles, column_tiles = tables
    _, inside, beyond, origin, _ = lines
    lag, line_bytes, task, place = b[LAG], line_bytes_of(b, at), pointer(areas[FIELDS], INT64), sums
    task[task_of.G], task[task_of.G_ROW], task[task_of.ROWS], task[task_of.PIXELS] = as_integer(y), y_row, rows, pixels
    task[task_of.X_ROW] = lag * line_bytes
    for tile in range(p[ROW_TILES]):
        phase, top = row_tiles[2 * tile], row_tiles[2 * tile + 1]
        used, start = min(p[ROWS], (b[REACHED] - phase + lag - 1) // lag - top), top + first_row
        task[task_of.X] = as_integer(x + (lag * start + phase - origin) * line_bytes)
        task[task_of.FIRST] = max(0, -((phase - inside) // lag) - start)
        task[task_of.LAST] = min(rows + used - 1, -((phase - beyond) // lag) - start)
        for column in range(p[COLUMN_TILES]):
            task[task_of.COLUMNS] = as_integer(columns + 8 * column_tiles[column])
            task[task_of.SUMS] = as_integer(place)
            invoke(entries[TILE], areas[FIELDS])
            place = place + p[PLACES] * itemsize(at)


@helper
def add_rows(x, first_row, lines, y, y_row, rows, pixels, short, sums, frame, xt, at):
    """`add_tiles` for rows of which the last one has `short` pixels if that is not 0; grad_y is copied where it must be."""
    g, _, _, _, areas, _ = frame
    y_step = g[part(g, PARTS + 2) + 2 + g[DIMS]]
    whole = rows - 1 if short > 0 else rows
    for last in range(2):
        row, count, used = (whole, 1, short) if last else (0, whole, pixels)
        if count > 0 and used > 0:
            source, step = y + row * y_row, y_row
            if not (same(xt, at) & (y_step == itemsize(at))):
                copy_rows(areas[GRADIENTS], source, count, y_row, used, y_step, xt, at)
                source, step = areas[GRADIENTS], used * itemsize(at)
            add_tiles(x, first_row + row, lines, source, step, count, used, sums, frame, at)


@helper
def add_band(x, y, output, residue, first_row, end_row, shifts, frame, xt, at):
    """A band of rows of grad_y of one image, for all kernels of a group; x and y are the addresses of the group in the image."""
    g, b, p, entries, areas, _ = frame
    axis, ys, size = g[DIMS] - 1, part(g, PARTS + 2), itemsize(at)
    lines = band_lines(first_row, end_row, residue, g[MODE], g, b)
    base, _, _, origin, end = lines
    slice_bytes = (1 if b[FOLDED] else end - origin) * b[PHASES] * b[PITCH] * size
    of_kernel, table = p[ROW_TILES] * p[COLUMN_TILES] * p[PLACES] * size, pointer(areas[SLICES], INT64)
    offset, y_row = first_row_of(g, b, first_row, residue)
    rows, short = end_row - first_row, short_pixels(g, b, end_row)
    for column in range(0, 1 if b[FOLDED] else g[part(g, OUTPUT) + axis], b[STRIP] * b[WIDTH]):
        start, pixels = strip_of(g, b, column, first_row)
        count = invoke(entries[PACK], areas[SLAB], areas[SLICES], x, output, base, origin, end, start, entries[SPLIT], g, b)
        # whole vectors are read, and must be finite
        clear(areas[SLAB] + count * slice_bytes, b[WIDTH] + b[PITCH], at)
        grads = y + (offset + column * g[ys + 3 + axis])
        if p[BIAS]:
            add_sums(shifts, grads, y_row, rows, pixels, short, g, xt, at)
        for index in range(count):
            which = table[2 * index + 1] // (b[COLUMNS] * b[LAG] * b[PHASE_ROWS] * size)
            for k in range(g[PER_K]):
                sums = areas[SUMS] + (k * g[PER_C] * b[OUTER_TAPS] + which) * of_kernel
                source = areas[SLAB] + table[2 * index]
                add_rows(source, first_row, lines, grads + k * g[ys + 2], y_row, rows, pixels, short, sums, frame, xt, at)


@helper
def scatter(sums, target, kernels, tables, g, b, p, at):
    """The sums of the tiles to [kernel][tap]; returns whether one is not finite."""
    flipped, size, bad = g[part(g, FLIPPED)] != 0, itemsize(at), zero(at)
    _, row_tiles, column_tiles = tables
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
def _parts(worker, queue, args):
    xt, at, scratch, areas, entries, tables, y, x, partial, shifts, status, g, b, p = args
    own = area_of(scratch, areas, AREAS, worker)
    memory = own + areas[SLAB], own + areas[SLICES], own + areas[GRADIENTS], own + areas[SUMS], own + areas[FIELDS]
    frame = g, b, p, entries, memory, tables
    xs, ys, kernels, size = part(g, PARTS), part(g, PARTS + 2), g[PER_K] * g[PER_C] * b[OUTER_TAPS], itemsize(at)
    each = b[OUTER_OUTPUTS] * b[CLASSES] * b[BANDS]
    units = g[BATCH] * each
    for item in taken_items(queue, worker):
        group, share, shift = item // p[SHARES], item % p[SHARES], shifts + item * g[PER_K] * size
        clear(memory[SUMS], kernels * p[ROW_TILES] * p[COLUMN_TILES] * p[PLACES], at)
        clear(shift, g[PER_K], at)
        for unit in range(units * share // p[SHARES], units * (share + 1) // p[SHARES]):
            first_row, end_row, residue, output = band_of(unit % each, g, b)
            if first_row < end_row:
                n = unit // each
                source, grads = x + (n * g[xs] + group * g[xs + 1]), y + (n * g[ys] + group * g[ys + 1] + outer_place(g, output))
                add_band(source, grads, output, residue, first_row, end_row, shift, frame, xt, at)
        if scatter(memory[SUMS], partial + item * kernels * p[TAPS] * size, kernels, tables, g, b, p, at):
            store(status, np.uint8(1), UINT8)


@kernel
def depthwise_weights(
    xt: Tag, at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, entries: Address, columns: Address,
    row_tiles: Address, column_tiles: Address, y: Address, x: Address, partial: Address, shifts: Address, status: Address,
    g: Address, b: Address, p: Address,
) -> None:  # fmt: skip
    """The gradient of w from that of y and x, [group][share][k][slice][tap]: an item is a share of the pixels of a group.

    `shifts`, [group][share][k], gets the sums of grad_y if p asks for them, `status` a 1 if a sum is not finite.
    """
    parallel_items(
        region,
        workers,
        items,
        _parts,
        (
            xt, at, scratch, pointer(areas, INT64), pointer(entries, INT64),
            (columns, pointer(row_tiles, INT64), pointer(column_tiles, INT64)), y, x, partial, shifts, status, pointer(g, INT64),
            pointer(b, INT64), pointer(p, INT64),
        ),
    )  # fmt: skip


def _usual() -> list[tuple[int, int]]:
    """Those of `USUAL` that fit the registers."""
    return [shape for shape in USUAL if _fits(*shape)]


_kernels = Unit(
    "depthwise_weights.kernels",
    lambda dtype, acc, lanes: [(correlate, ((*shape, lanes), acc)) for shape in _usual()],
    called=lambda dtype, acc, lanes: [(depthwise_weights, (dtype, acc))],
)


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
        self._finish = Finish(problem)
        self._vectors = conv_vectors(problem, 0)
        places = column_places(problem.replace(flip=False), layout.columns)
        columns = [(phase * layout.pitch + place) * item for phase, place in places]
        self._tables = [np.array(table, np.int64) for table in (columns, plan.row_tiles, plan.column_tiles)]
        self._block = layout_vector(problem, layout)
        taps = math.prod(problem.kernel[-2:])
        each = sum_places(plan.rows, plan.columns, layout.lanes)
        counts = len(plan.row_tiles), len(plan.column_tiles), each, taps, int(problem.bias == "y")
        self._plan = np.array([plan.parts, plan.rows, plan.columns, *counts], np.int64)
        self._areas = _areas(problem, plan)
        self._kernel, *tiles = _kernels.functions(problem.dtype, problem.acc_dtype, layout.lanes)
        shape, usual = (plan.rows, plan.columns), dict(zip(_usual(), tiles, strict=True))
        tile = usual.get(shape) or correlate.address((*shape, layout.lanes), problem.acc_dtype)
        self._entries = entry_table(problem, tile)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        problem, w, (y, x) = self._problem, outs[0], ins
        whole = self._parts == 1 and w.flags.c_contiguous and w.dtype == np_dtype(problem.acc_dtype)
        shape = problem.groups, self._parts, w.size // problem.groups
        partial = w.reshape(shape) if whole else np.empty(shape, problem.acc_dtype)
        shifts = np.empty((problem.groups, self._parts, problem.k // problem.groups), problem.acc_dtype)
        status = np.zeros(1, np.uint8)
        run_with(
            self._areas, self._kernel, problem.groups * self._parts, problem.flops / 2, self._entries, *self._tables, y, x, partial,
            shifts, status, self._vectors(x.strides, w.strides, y.strides), self._block, self._plan,
        )  # fmt: skip
        if status[0] and self._finish.again(outs, ins):
            return
        shift = shifts.sum(axis=1).reshape(-1) if problem.bias == "y" else None
        self._finish(outs, ins, w if whole else partial.sum(axis=1).reshape(w.shape), shift)


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
        reason = class_refusal(problem)
        return Verdict.no(reason) if reason else Verdict.yes()

    def cost(self, problem: ConvProblem) -> float:
        """Tiles and packing."""
        plan = plan_for(problem)
        scattered = math.prod(problem.x_shape) + math.prod(problem.y_shape) if is_scattered(problem) else 0
        cycles = problem.groups * _cycles(problem, plan) + math.prod(problem.w_shape) * plan.parts * 4
        return CALL_SECONDS + 4e-6 + seconds(cycles + scattered * SCATTERED_CYCLES, problem.flops / 2)

    def workspace(self, problem: ConvProblem) -> int:
        """For each thread a slab, sums and tables; and the sums of all items."""
        plan = plan_for(problem)
        partial = math.prod(problem.w_shape) * plan.parts * np_dtype(problem.acc_dtype).itemsize
        return MAX_THREADS * _areas(problem, plan).bytes + 2 * partial

    def build(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
