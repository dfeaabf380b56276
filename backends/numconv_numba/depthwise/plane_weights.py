"""Weight gradients of planes where they lie: small kernels, few channels a group, for real floats with neighbouring pixels.

A work item is a plane of grad_y of every image, or of some of them or a band of their rows where there are few planes. A worker
takes the planes of an image one behind the other, as memory has them, and then those of the next image. Which images and rows an
item adds up, and so the order of every sum, depends on the problem alone.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Implementation, Verdict, np_dtype
from numconv_numba.compiling.compiler import Address, Tag, Unit, helper, invoke, kernel
from numconv_numba.dense.blocked import CALL_SECONDS, seconds
from numconv_numba.dense.strips import ITEMS, UINT8, outer_place
from numconv_numba.direct import MEASURED_ERROR
from numconv_numba.elements import INT64, itemsize
from numconv_numba.geometry import BATCH, DIMS, GROUPS, LOW, OUTPUT, PARTS, PER_C, PER_K, SIZE, STRIDE, conv_vectors, part
from numconv_numba.microkernels import plane_gradients as job_of
from numconv_numba.microkernels.edges import EDGES, table_of
from numconv_numba.microkernels.emit import flag_table, host, lanes_of
from numconv_numba.microkernels.plane_gradients import Collect, collect, registers
from numconv_numba.rows import outer_source
from numconv_numba.scalar import address, as_integer, is_null, pointer, store
from numconv_numba.threads import MAX_THREADS, Areas, parallel_for, run_with, worker_area

from .depthwise_weights import DepthwiseWeights
from .plane_padding import (
    PAD_PLANE,
    PAD_PLANES,
    is_copied,
    numbers_of,
    pad_band,
    pad_cycles,
    padded,
    padded_bytes,
    padded_strides,
    padding_refusal,
    padding_vector,
)
from .plane_plans import AHEAD_PLANE, MOST_ROWS, WORK, column_offsets, has_rows, phases_of, refusal, strip_marks
from .planewise import are_finite
from .weight_sums import Finish, in_order

__all__ = ["PlanewiseWeights"]

MOST_COLUMNS = 12
APART_CYCLES = 110
"""Of the start of a walk over a plane whose slices, or whose channels, are walked one by one."""
SLICED, LARGE = 1.11, 1.2
"""What several slices, and planes beyond the first-level cache, cost against what is counted."""


class _Plan(NamedTuple):
    """How a weight gradient is cut.

    Attributes
    ----------
    shape : Collect
    tiles : tuple of int
        The first row of taps of each tile; the last ones may overlap.
    band, bands : int
        Rows of grad_y that are walked at a time, and how often.
    shares : int
        Parts of the images and bands, which are added up apart.
    """

    shape: Collect
    tiles: tuple[int, ...]
    band: int
    bands: int
    shares: int


def _steps(problem: ConvProblem) -> tuple[int, int, int]:
    """Rows of the kernel, and the stride."""
    return (problem.kernel[-2], problem.stride[-2], problem.stride[-1]) if problem.ndim > 1 else (1, 1, problem.stride[-1])


def _shapes(problem: ConvProblem) -> list[Collect]:
    """The tiles that fit the registers, the largest first."""
    (rows, *step), edges = _steps(problem), EDGES[problem.pad_mode]
    shapes = [Collect(count, problem.kernel[-1], *step, lanes_of(problem.dtype), edges) for count in range(rows, 0, -1)]
    return [shape for shape in shapes if registers(shape) <= host().registers]


@functools.lru_cache(maxsize=256)
def plan_for(problem: ConvProblem) -> _Plan:
    """The plan of a problem: as few tiles as the registers allow."""
    rows, most = _steps(problem)[0], _shapes(problem)[0].rows
    tiles = -(-rows // most)
    shape = _shapes(problem)[0]._replace(rows=-(-rows // tiles))
    firsts = tuple(min(i * shape.rows, rows - shape.rows) for i in range(tiles))
    height = problem.output[-2] if problem.ndim > 1 else 1
    planes = problem.n * problem.k * math.prod(problem.output[:-2])
    bands = max(1, min(height // (4 * rows), -(-ITEMS // max(1, planes))))
    band = -(-height // bands)
    bands = -(-height // max(band, 1))
    units = problem.n * math.prod(problem.output[:-2]) * bands
    return _Plan(shape, firsts, band, bands, max(1, min(units, -(-ITEMS // problem.k))))


def _plane_cycles(problem: ConvProblem, plan: _Plan) -> float:
    """Of a plane of grad_y with one slice of x, fitted to measurements."""
    shape, vectors = plan.shape, -(-problem.output[-1] // plan.shape.lanes)
    alone = problem.c == problem.k == problem.groups
    if problem.ndim == 1:
        # loads across two lines, which no other row of taps shares
        loads = host().unaligned * shape.columns * shape.column_step
        start = 100 if alone else 100 + 2 * APART_CYCLES
        return len(plan.tiles) * (vectors * (0.36 * shape.columns + 0.5 * loads + 5) + start)
    lines, columns = problem.output[-2] * shape.row_step, vectors
    products = shape.rows * shape.columns / shape.row_step
    line = 0.36 * products + 0.5 * (shape.columns * shape.column_step + 1 / shape.row_step) + 3
    return len(plan.tiles) * plan.bands * (columns * (lines / plan.bands + shape.rows - 1) * line + (28 if alone else APART_CYCLES))


def _cycles(problem: ConvProblem, plan: _Plan) -> float:
    """Of all walks."""
    slices = problem.c // problem.groups * math.prod(problem.kernel[:-2])
    return problem.n * problem.k * math.prod(problem.output[:-2]) * slices * _plane_cycles(problem, plan)


class _Run(NamedTuple):
    """Vectors of results side by side, or in one dimension those that have all their lanes, one behind the other.

    `places` are what each column of taps reads, in vectors of neighbours, for each vector of results; `used` lanes of it are there.
    """

    result: int
    vectors: int
    lines: int
    places: Any
    used: Any


def _runs(problem: ConvProblem, shape: Collect) -> list[_Run]:
    """All vectors of a row of results."""
    size, end, lanes = problem.spatial[-1], problem.output[-1], shape.lanes
    offsets, reach = column_offsets(problem.replace(flip=False)), shape.column_step * lanes
    parts = np.array(offsets)[:, None, None] + np.arange(reach).reshape(-1, lanes)

    def run(first: int, vectors: int, lines: int) -> _Run:
        starts = lanes * np.arange(first, first + vectors)[:, None]
        places = starts[:, :, None, None] * shape.column_step + parts
        return _Run(first * lanes, vectors, lines, places.reshape(vectors, -1, lanes), starts + np.arange(lanes) < end)

    if problem.ndim > 1:
        return [run(0, -(-end // lanes), 1)]
    found: list[_Run] = []
    for first, stop in itertools.pairwise([*strip_marks(offsets, reach, size, end // lanes), -(-end // lanes)]):
        vector = first
        while vector < stop:
            one = run(vector, 1, 1)
            there = ((one.places >= 0) & (one.places < size)).reshape(len(offsets), -1)
            alike = one.used.all() and (there.all(axis=1) | ~there.any(axis=1)).all()
            found.append(one._replace(lines=stop - vector) if alike else one)
            vector += found[-1].lines
    return found


def _flags(problem: ConvProblem, run: _Run) -> Any:
    """A tile's FLAGS: for each vector of results the lanes of x of each column of taps, unless rows have edges, then its own."""
    if problem.pad_mode != "zeros":
        return flag_table(run.used, problem.dtype)
    inside = (run.places >= 0) & (run.places < problem.spatial[-1])
    return flag_table(np.concatenate([inside, run.used[:, None]], axis=1), problem.dtype)


# What the kernel knows of a plan: the tile's address, tiles, runs, rows and columns of taps of a tile and of the kernel, the rows
# of a band, bands, shares, the outer dimensions, results of a vector; where the numbers of rows with those of padding stand, or
# 0, how the vectors at edges are made, and which are none; then the first rows of the tiles, and the numbers of each run.
(
    TILE, TILES, RUNS, ROWS, COLUMNS, KERNEL_ROWS, BAND, BANDS, SHARES, OUTER_TAPS, OUTER_OUTPUTS, LANES, NUMBERS, TABLE,
    EDGE_OFFSETS, INNER, OUTER, HEAD,
) = range(18)  # fmt: skip
RUN_RESULT, RUN_VECTORS, RUN_COUNT, RUN_FLAGS, RUN = range(5)
# The parts of a worker's scratch memory: a job, padded planes.
FIELDS, SPARE, AREAS = range(3)


# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def fill_rows(job, x, y, top, first_row, count, g, b):
    """The fields of a job for `count` rows of grad_y, and rows of taps from `top` on; x and y are the addresses of a plane."""
    axis = g[DIMS] - 2
    x_row, y_row, stride = g[part(g, PARTS) + 3 + axis], g[part(g, PARTS + 2) + 3 + axis], g[part(g, STRIDE) + axis]
    base = first_row * stride + top - g[part(g, LOW) + axis]
    lines, low = stride * (count - 1) + b[ROWS], max(0, -base)
    job[job_of.LINES], job[job_of.LOW], job[job_of.ROWS] = lines, low, count
    job[job_of.SPAN] = max(0, min(lines, g[part(g, SIZE) + axis] - base) - low)
    job[job_of.X], job[job_of.X_ROW] = as_integer(x if b[NUMBERS] else x + base * x_row), x_row
    job[job_of.LINE] = b[NUMBERS] + 8 * base
    job[job_of.G], job[job_of.G_ROW] = as_integer(y + first_row * y_row), y_row


@helper
def collect_tiles(job, fields, x, y, first_row, count, sums, shift, planes, alone, g, b, at):
    """The sums of all taps of a slice over a band of rows; x, y are the addresses of a plane. `alone`: of grad_y only."""
    size, taps = itemsize(at), b[COLUMNS]
    for tile in range(b[TILES]):
        top = b[HEAD + tile]
        before = b[HEAD + tile - 1] + b[ROWS] if tile > 0 else 0
        job[job_of.SUMS], job[job_of.SKIP] = as_integer(sums + top * taps * size), max(0, before - top) * taps
        job[job_of.SHIFT], job[job_of.PLANES] = as_integer(shift) if tile == 0 else 0, planes
        for i in range(b[RUNS]):
            run = HEAD + b[TILES] + i * RUN
            result = b[run + RUN_RESULT]
            if g[DIMS] == 1:
                vector = b[LANES] * size
                lines = b[run + RUN_COUNT]
                job[job_of.LINES], job[job_of.LOW], job[job_of.SPAN], job[job_of.ROWS] = lines, 0, lines, lines
                job[job_of.X], job[job_of.X_ROW] = as_integer(x + result * g[part(g, STRIDE)] * size), g[part(g, STRIDE)] * vector
                job[job_of.G], job[job_of.G_ROW] = as_integer(y + result * size), vector
            else:
                fill_rows(job, x, y, top, first_row, count, g, b)
            if alone:
                job[job_of.SPAN] = 0
            job[job_of.VECTORS], job[job_of.FLAGS] = b[run + RUN_VECTORS], b[run + RUN_FLAGS]
            invoke(b[TILE], fields)


@helper
def collect_slices(job, fields, x, y, output, first_row, count, sums, shift, g, b, at):
    """The sums of every slice over a band of rows; x is the address of the group in an image, y of the plane of `output`."""
    axes, size = g[DIMS] - 2, itemsize(at)
    step, where = b[KERNEL_ROWS] * b[COLUMNS] * size, shift
    for index in range(g[PER_C] * b[OUTER_TAPS]):
        inside, offset = outer_source(g, output, index % b[OUTER_TAPS], axes)
        if inside:
            source = x + (index // b[OUTER_TAPS] * g[part(g, PARTS) + 2] + offset)
            collect_tiles(job, fields, source, y, first_row, count, sums + index * step, where, 1, False, g, b, at)
            where = address(0)
    if not is_null(where):
        collect_tiles(job, fields, x, y, first_row, count, sums, where, 1, True, g, b, at)


@helper
def _planes(begin, end, args):
    at, items, workers, scratch, areas, g, b, pads, x_row, columns, y, x, partial, shifts, status = args
    fields, p = worker_area(scratch, areas, AREAS, workers, items, begin), pointer(pads, INT64)
    spare = fields + areas[SPARE]
    job, size, axis = pointer(fields, INT64), itemsize(at), g[DIMS] - 2
    xs, ys, channels = part(g, PARTS), part(g, PARTS + 2), g[GROUPS] * g[PER_K]
    weights = g[PER_C] * b[OUTER_TAPS] * b[KERNEL_ROWS] * b[COLUMNS]
    job[job_of.COLUMNS], job[job_of.X_PLANE], job[job_of.G_PLANE] = as_integer(columns), g[xs + 1], g[ys + 1]
    job[job_of.SUMS_PLANE], job[job_of.SHIFT_PLANE] = weights * size, size
    job[job_of.TABLE], job[job_of.EDGES], job[job_of.INNER], job[job_of.OUTER] = b[TABLE], b[EDGE_OFFSETS], b[INNER], b[OUTER]
    # of the next plane, or of large ones, which are walked a vector at a time, of the vector beside
    job[job_of.X_AHEAD] = g[xs + 1] if abs(g[xs + 1]) <= AHEAD_PLANE else 64 * g[part(g, STRIDE) + axis + 1]
    job[job_of.G_AHEAD] = g[ys + 1] if abs(g[ys + 1]) <= AHEAD_PLANE else 64
    together = (b[TILES] == 1) & (b[RUNS] == 1) & (b[OUTER_OUTPUTS] == 1) & (b[OUTER_TAPS] == 1) & (g[PER_C] == 1) & (g[PER_K] == 1)
    rows, most = g[part(g, OUTPUT) + axis] if axis >= 0 else 1, channels
    units = g[BATCH] * b[OUTER_OUTPUTS] * b[BANDS]
    if not is_null(pads):
        job[job_of.X_PLANE], job[job_of.X_AHEAD], most = p[PAD_PLANE], p[PAD_PLANE], p[PAD_PLANES]
    first = begin
    while first < end:
        share, k = first // channels, first % channels
        last = min(end, first - k + channels)
        for unit in range(units * share // b[SHARES], units * (share + 1) // b[SHARES]):
            output, top = unit // b[BANDS], unit % b[BANDS] * b[BAND]
            output, n = output % b[OUTER_OUTPUTS], output // b[OUTER_OUTPUTS]
            count = min(b[BAND], rows - top)
            item = first
            while item < last:
                channel = item % channels
                group, planes = channel // g[PER_K], min(last - item, most) if together else 1
                source = x + (n * g[xs] + group * g[xs + 1])
                target = y + (n * g[ys] + group * g[ys + 1] + channel % g[PER_K] * g[ys + 2])
                if not is_null(pads):
                    pad_band(spare, source, x_row, planes, top, top + count, b[KERNEL_ROWS], g, pads, at)
                    source = spare
                sums, shift = partial + item * weights * size, shifts if is_null(shifts) else shifts + item * size
                if together:
                    collect_tiles(job, fields, source, target, top, count, sums, shift, planes, False, g, b, at)
                else:
                    target = target + outer_place(g, output)
                    collect_slices(job, fields, source, target, output, top, count, sums, shift, g, b, at)
                item += planes
        first = last
    if begin < end and not are_finite(partial + begin * weights * size, (end - begin) * weights, at):
        store(status, np.uint8(1), UINT8)


@kernel
def plane_weights(
    xt: Tag, at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, sizes: Address, plan: Address,
    pads: Address, x_row: int, columns: Address, y: Address, x: Address, partial: Address, shifts: Address, status: Address,
) -> None:  # fmt: skip
    """The gradient of w from that of y and x, added to [share][k][slice][tap]: an item is a share of one k.

    `shifts`, [share][k], gets the sums of grad_y if it is not null, `status` a 1 if a sum is not finite. `pads` is a
    `padding_vector`, of planes whose rows lie `x_row` bytes apart, or 0.
    """
    g, b = pointer(sizes, INT64), pointer(plan, INT64)
    args = at, items, workers, scratch, pointer(areas, INT64), g, b, pads, x_row, columns, y, x, partial, shifts, status
    parallel_for(region, workers, items, _planes, args)


def _usual(lanes: int) -> list[Collect]:
    """The tiles of kernels of 3 x 3 and 5 x 5, as far as they fit the registers."""
    shapes = [Collect(size, size, step, step, lanes) for size, step in ((3, 1), (3, 2), (5, 1))]
    return [shape for shape in shapes if registers(shape) <= host().registers]


_kernels = Unit(
    "plane_weights.kernels",
    lambda dtype, lanes: [(collect, (tuple(shape), dtype)) for shape in _usual(lanes)],
    called=lambda dtype, lanes: [(plane_weights, (dtype, dtype))],
)


# --- the implementation --------------------------------------------------------------------------------------------------------


class _Edges:
    """Where the padding of x is read from, if it is not of zeros: what the kernel's plan has from NUMBERS on, and its tables."""

    def __init__(self, problem: ConvProblem, runs: Sequence[_Run], kind: int):
        self.head = [0] * 5
        if not kind:
            return
        row, (low, _), size, (run,) = numbers_of(problem, 1), problem.padding[1], problem.spatial[1], runs
        self._tables = numbers_of(problem, 0), *table_of(run.places, row, low, size, kind, problem.dtype)
        inside = np.flatnonzero(((run.places >= 0) & (run.places < size)).all(axis=(1, 2)))
        inner, outer = (inside[0], inside[-1] + 1) if inside.size else (0, 0)
        self.head = [*(table.ctypes.data for table in self._tables), inner, outer]


class _Executor:
    """One weight gradient; arrays whose pixels are no neighbours go to `DepthwiseWeights`."""

    def __init__(self, problem: ConvProblem):
        self._problem, self._finish = problem, Finish(problem)
        self._pads = padding_vector(problem) if is_copied(problem) else None
        given, spare, problem = problem, padded_bytes(problem), padded(problem)
        plan, dtype = plan_for(problem), problem.dtype
        shape, runs, self._shares = plan.shape, _runs(problem, plan.shape), plan.shares
        self._edges, self._flags = _Edges(given, runs, shape.edges), [_flags(problem, run) for run in runs]
        self._kernel, *tiles = _kernels.functions(dtype, shape.lanes)
        usual = _usual(shape.lanes)
        tile = tiles[usual.index(shape)] if shape in usual else collect.address(tuple(shape), dtype)
        head = [
            tile, len(plan.tiles), len(runs), shape.rows, shape.columns,
            _steps(problem)[0], plan.band, plan.bands, plan.shares, math.prod(problem.kernel[:-2]),
            math.prod(problem.output[:-2]), shape.lanes, *self._edges.head, *plan.tiles,
        ]  # fmt: skip
        rows = [(run.result, run.vectors, run.lines, flags.ctypes.data) for run, flags in zip(runs, self._flags, strict=True)]
        self._plan = np.array([*head, *(number for row in rows for number in row)], np.int64)
        self._columns = np.array(column_offsets(problem.replace(flip=False)), np.int64) * np_dtype(dtype).itemsize
        self._vectors = conv_vectors(problem.replace(flip=False), 0)  # as windows meet the taps: `in_order` turns them
        self._areas = Areas(8 * job_of.JOB, spare)
        self._work = WORK * _cycles(problem, plan)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        problem, (w, *bias), (y, x) = self._problem, outs, ins
        if not (has_rows(x) and has_rows(y)):
            self._other(outs, ins)
            return
        own = bias and problem.bias == "y"
        partial, status = np.zeros((self._shares, *problem.w_shape), problem.dtype), np.zeros(1, np.uint8)
        shifts: Any = np.zeros((self._shares, problem.k), problem.dtype) if own else 0
        strides, x_row = padded_strides(self._pads, x)
        if y.size:
            run_with(
                self._areas, self._kernel, self._shares * problem.k, self._work,
                self._vectors(strides, w.strides, y.strides), self._plan, 0 if self._pads is None else self._pads, x_row,
                self._columns, y, x, partial, shifts, status,
            )  # fmt: skip
        if status[0] and self._finish.again(outs, ins):
            return
        found = partial[0] if self._shares == 1 else partial.sum(axis=0)
        self._finish(outs, ins, in_order(found, problem), shifts.sum(axis=0) if own else None)

    @functools.cached_property
    def _other(self) -> Any:
        return DepthwiseWeights().build(self._problem)


class PlanewiseWeights(Implementation):
    """Weight gradients of real floats in groups of few channels, for small kernels, rows in one piece."""

    name = "planewise"
    ops = frozenset(("weight_grad",))
    levels = frozenset(("high", "default", "fast"))
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def supports(self, problem: ConvProblem) -> Verdict:
        """Channels first, kernels of few rows and columns, a stride of up to 4; padding of zeros, or small planes."""
        reason = padding_refusal(problem) or refusal(padded(problem), MOST_ROWS, MOST_COLUMNS)
        if not reason and phases_of(problem) > 1:
            reason = f"rows of taps are neighbours, and here is a dilation of {problem.dilation}"
        if not reason and not _shapes(padded(problem)):
            reason = f"no tile for a kernel {problem.kernel} fits the registers"
        return Verdict.no(reason) if reason else Verdict.yes()

    def cost(self, problem: ConvProblem) -> float:
        """Of all walks, and of padding."""
        pads = problem.n * problem.k * pad_cycles(problem)
        problem = padded(problem)
        plan = plan_for(problem)
        factor = SLICED if problem.c > problem.groups or problem.ndim > 2 else 1.0
        if math.prod(problem.spatial[-2:]) * np_dtype(problem.dtype).itemsize > AHEAD_PLANE and problem.ndim > 1:
            factor *= LARGE
        work = WORK * _cycles(problem, plan) if problem.k * plan.shares > 1 else 0.0
        return CALL_SECONDS + 3e-6 + seconds(factor * _cycles(problem, plan) + pads, work)

    def workspace(self, problem: ConvProblem) -> int:
        """A job and padded planes for each thread, the sums of all shares; or what `DepthwiseWeights` needs for other orders."""
        own = 2 * math.prod(problem.w_shape) * plan_for(padded(problem)).shares * np_dtype(problem.dtype).itemsize
        return max(MAX_THREADS * (8 * job_of.JOB + padded_bytes(problem)) + own, DepthwiseWeights().workspace(problem))

    def build(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
