"""Depthwise convolution of planes where they lie: small kernels, few channels a group, for real floats with neighbouring pixels.

A work item is a plane of results, or a band of its rows. The tile of `microkernels.planes` sweeps down a strip of columns and reads
x itself, so that memory is read while products are computed; planes of one strip are done many at a call. A strided input gradient
is one sweep too, which puts the phases of the stride together in registers. Several slices of a window (channels of a group, outer
dimensions) are added up row by row, which is not the order of the "strict" level.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from numconv.plugin import ConvProblem, Verdict, np_dtype
from numconv_numba.activations import ACTIVATIONS
from numconv_numba.compiling.compiler import Address, Tag, Unit, helper, invoke, kernel
from numconv_numba.dense.base import Adjoint, DenseImplementation, redo
from numconv_numba.dense.blocked import CALL_SECONDS, seconds
from numconv_numba.dense.strips import UINT8, outer_place
from numconv_numba.direct import MEASURED_ERROR
from numconv_numba.elements import INT64, itemsize, same
from numconv_numba.geometry import (
    DIMS,
    FLIPPED,
    GROUPS,
    LOW,
    OPTION,
    OUTPUT,
    PARTS,
    PER_C,
    PER_K,
    SIZE,
    STRIDE,
    Vectors,
    channel_strides,
    part,
)
from numconv_numba.microkernels import planes as job_of
from numconv_numba.microkernels.edges import FOLDED, TURNED, WRAPPED, table_of
from numconv_numba.microkernels.emit import flag_table, host
from numconv_numba.microkernels.planes import Sweep, is_split, sweep
from numconv_numba.rows import outer_source
from numconv_numba.scalar import address, as_integer, is_null, load, pointer, store, wide_vectors
from numconv_numba.threads import MAX_THREADS, Areas, parallel_for, run_with, worker_area

from .contiguous import ContiguousExecutor
from .depthwise import Depthwise
from .plane_folds import add_folds, fold_columns, folded, folds_of, strip_folds
from .plane_padding import (
    PAD_PLANE,
    PAD_PLANES,
    is_copied,
    is_padded,
    numbers_of,
    pad_band,
    pad_cycles,
    padded,
    padded_bytes,
    padded_strides,
    padding_refusal,
    padding_vector,
)
from .plane_plans import (
    AHEAD_PLANE,
    FAR,
    FAR_BYTES,
    FAR_GROUP_BYTES,
    FAR_ROW_CYCLES,
    MOST_COLUMNS,
    MOST_ROWS,
    SLICED,
    WIDTHS,
    WORK,
    Plan,
    Run,
    column_offsets,
    fits,
    has_rows,
    is_adjoint,
    lines_of,
    phases_of,
    plan_for,
    plane_cycles,
    refusal,
    runs_of,
    shapes_of,
    slices_of,
    source_of,
    spares_masks,
    target_of,
)

__all__ = ["FoldedSweeps", "Planewise", "are_finite"]

USUAL_PIXELS = 64
"""Results of a row in the tiles that are compiled with the driver."""
BANK, BANK_CYCLES = 5, 1.4
"""Output channels of a single group that are a bank of filters, and what their sweeps cost against what is counted where sixteen
registers hold the sums of few vectors: measured with AVX2."""
EDGED, EDGED_LOOP = 1.1, 1.15
"""What padding that is read from x costs against that of zeros, and where columns of taps are a loop: measured with AVX2."""
ITEM_CYCLES = 110
"""Of the start of a band of a plane that is not swept together with others."""
PHASES_BYTES, STRIPS_BYTES = 64 * 1024, 16 * 1024
"""Of the planes of x of which one phase of the rows, or one strip, is done after the other: more would not be fetched in time."""

# What the kernel knows of a plan: the tile's address, strips and the numbers of each, rows and bands, the kernel's rows and
# columns, whether it is an adjoint, columns of results from a row to the next where strips are rows, and of x; outer dimensions;
# the dilation of rows, whose phases are swept one after the other; where the number of row 0 stands among those of rows with their
# padding, or 0, and the rows of x then, and of padding before them; the table of `folds_of`, or 0.
(
    TILE, RUNS, BAND, BANDS, KERNEL_ROWS, KERNEL_COLUMNS, ADJOINT, ROW_RESULTS, ROW_PIXELS, OUTER_TAPS, OUTER_OUTPUTS, PHASES,
    NUMBERS, NUMBERED, BEFORE, FOLDS, HEAD,
) = range(17)  # fmt: skip
INT32, FLOAT64 = Tag("int32"), Tag("float64")
EXPONENT32, EXPONENT64 = np.int32(0x7F800000), np.int64(0x7FF0000000000000)
"""The bits of an exponent, which are all set in what is not finite."""
RUN_SOURCE, RUN_TARGET, RUN_COUNT, RUN_USED, RUN_LAST, RUN_OPEN, RUN_FLAGS, RUN_EDGES, RUN = range(9)
# The parts of a worker's scratch memory: a job, places of slices, padded planes.
FIELDS, PLACES, SPARE, AREAS = range(4)


# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def are_finite(w, count, at):
    """Whether so many neighbouring numbers are: as integers, which are reduced in vectors."""
    wide_vectors()
    bad = np.int64(0)
    if same(at, FLOAT64):
        for i in range(count):
            bad |= (load(w + i * 8, INT64) & EXPONENT64) == EXPONENT64
    else:
        for i in range(count):
            bad |= (load(w + i * 4, INT32) & EXPONENT32) == EXPONENT32
    return bad == 0


@helper
def fill_rows(job, x, y, first_row, end_row, phase, g, b, at):
    """The fields of a job for a band of rows of a phase; x and y are the addresses of a plane, with the columns of the strip."""
    axis, phases = g[DIMS] - 2, b[PHASES]
    x_row, y_row = g[part(g, PARTS) + 3 + axis], g[part(g, PARTS + 2) + 3 + axis]
    stride, rows, start = g[part(g, STRIDE) + axis], b[KERNEL_ROWS], phase - g[part(g, LOW) + axis]
    low, size = -(start // phases), (g[part(g, SIZE) + axis] - start % phases + phases - 1) // phases
    x, y, x_row, y_row = x + start % phases * x_row, y + phase * y_row, phases * x_row, phases * y_row
    count = end_row - first_row
    backwards, start = g[part(g, FLIPPED) + axis] != 0, -((rows - 1) // stride)
    if b[ADJOINT]:
        rows = max(rows, stride)
        base, last = (end_row - 1 + low) // stride, (first_row + low + stride - rows) // stride
        backwards, lines, start = True, base - last + 1, end_row - (stride * base + rows - low)
    else:
        lines = stride * (count - 1) + rows
        base = end_row - 1 - low + rows - 1 if backwards else first_row * stride - low
    if b[NUMBERS]:
        base, size = base - b[BEFORE], b[NUMBERED]
        job[job_of.FIRST], job[job_of.NUMBERED_ROW] = base * x_row, x_row
        job[job_of.NUMBERS], job[job_of.NUMBER_STEP] = b[NUMBERS] + 8 * base, -8 if backwards else 8
    low = max(0, base - size + 1 if backwards else -base)
    job[job_of.LINES], job[job_of.START], job[job_of.ROWS], job[job_of.LOW] = lines, start, count, low
    job[job_of.SPAN] = max(0, min(lines, base + 1 if backwards else size - base) - low)
    job[job_of.X] = as_integer(x if b[NUMBERS] else x + base * x_row)
    job[job_of.X_ROW] = -x_row if backwards else x_row
    job[job_of.Y] = as_integer(y + (end_row - 1 if backwards else first_row) * y_row)
    job[job_of.Y_ROW] = -y_row if backwards else y_row
    # of the next plane, or of a large one the rows that follow: few, since they may all meet the same places of the cache
    job[job_of.AHEAD] = job[job_of.X_PLANE] if abs(job[job_of.X_PLANE]) <= AHEAD_PLANE else 3 * job[job_of.X_ROW]


@helper
def sweep_strips(job, fields, x, y, first_row, end_row, planes, g, b, at):
    """Every strip of a band of each phase; x and y are the addresses of the first plane."""
    size = itemsize(at)
    for i in range(b[RUNS]):
        run = HEAD + i * RUN
        source, target, count = x + b[run + RUN_SOURCE] * size, y + b[run + RUN_TARGET] * size, b[run + RUN_COUNT]
        if g[DIMS] == 1:
            job[job_of.LINES], job[job_of.START], job[job_of.ROWS], job[job_of.LOW], job[job_of.SPAN] = count, 0, count, 0, count
            job[job_of.X], job[job_of.Y] = as_integer(source), as_integer(target)
            job[job_of.X_ROW], job[job_of.Y_ROW] = b[ROW_PIXELS] * size, b[ROW_RESULTS] * size
            job[job_of.AHEAD] = 2048
        job[job_of.FLAGS], job[job_of.USED], job[job_of.PLANES] = b[run + RUN_FLAGS], b[run + RUN_USED], planes
        job[job_of.LAST], job[job_of.EDGES] = b[run + RUN_LAST] * size, b[run + RUN_EDGES]
        job[job_of.OPEN] = b[run + RUN_OPEN]
        for phase in range(b[PHASES]):
            if g[DIMS] > 1:
                rows = (g[part(g, OUTPUT) + g[DIMS] - 2] - phase + b[PHASES] - 1) // b[PHASES]
                fill_rows(job, source, target, first_row, max(first_row, min(end_row, rows)), phase, g, b, at)
            if job[job_of.ROWS] > 0:
                invoke(b[TILE], fields)


@helper
def fill_slices(job, table, output, g, b, at):
    """Where the slices of the windows of an outer output that lie inside x begin."""
    count, weights = 0, b[KERNEL_ROWS] * b[KERNEL_COLUMNS] * itemsize(at)
    for c in range(g[PER_C]):
        for tap in range(b[OUTER_TAPS]):
            inside, offset = outer_source(g, output, tap, g[DIMS] - 2)
            if inside:
                table[2 * count] = c * g[part(g, PARTS) + 2] + offset
                table[2 * count + 1] = (c * b[OUTER_TAPS] + tap) * weights
                count += 1
    job[job_of.SLICES] = count


@helper
def _planes(begin, end, args):
    at, items, workers, scratch, areas, g, b, pads, x_row, columns, x, w, bias, y, status = args
    own_area, p = worker_area(scratch, areas, AREAS, workers, items, begin), pointer(pads, INT64)
    fields, places, spare = own_area, own_area + areas[PLACES], own_area + areas[SPARE]
    job, size, axis = pointer(fields, INT64), itemsize(at), g[DIMS] - 2
    xs, ys, taps = part(g, PARTS), part(g, PARTS + 2), b[KERNEL_ROWS] * b[KERNEL_COLUMNS]
    channels, weights = g[GROUPS] * g[PER_K], g[PER_C] * b[OUTER_TAPS] * taps
    job[job_of.COLUMNS], job[job_of.COUNT] = as_integer(columns), b[KERNEL_COLUMNS]
    job[job_of.PLACES], job[job_of.RELU] = as_integer(places), g[OPTION] == 1
    job[job_of.X_PLANE], job[job_of.W_PLANE], job[job_of.BIAS_PLANE], job[job_of.Y_PLANE] = g[xs + 1], taps * size, size, g[ys + 1]
    rows = g[part(g, OUTPUT) + axis] if axis >= 0 else 1
    one_slice = (b[OUTER_TAPS] == 1) & (g[PER_C] == 1)
    together = one_slice & (b[BANDS] == 1) & (b[OUTER_OUTPUTS] == 1) & (g[PER_K] == 1)
    # few planes with several sweeps, so that each strip, or phase of a dilation, finds them in the cache
    near = PHASES_BYTES if b[RUNS] == 1 else STRIPS_BYTES
    most = channels if b[PHASES] * b[RUNS] == 1 else max(1, near // max(1, abs(g[xs + 1])))
    if not is_null(pads):
        job[job_of.X_PLANE], most = p[PAD_PLANE], min(most, p[PAD_PLANES])
    item = begin
    while item < end:
        band, plane = item % b[BANDS], item // b[BANDS]
        output, plane = plane % b[OUTER_OUTPUTS], plane // b[OUTER_OUTPUTS]
        k, n = plane % channels, plane // channels
        group = k // g[PER_K]
        count = min(channels - k, end - item, most) if together else 1
        first_row, end_row = band * b[BAND], min(-(-rows // b[PHASES]), (band + 1) * b[BAND])
        source = x + (n * g[xs] + group * g[xs + 1])
        target = y + (n * g[ys] + group * g[ys + 1] + k % g[PER_K] * g[ys + 2] + outer_place(g, output))
        own = w + k * weights * size
        if not are_finite(own, count * weights, at):
            store(status, np.uint8(1), UINT8)
        shift = bias if is_null(bias) else bias + k * size
        job[job_of.W], job[job_of.BIAS] = as_integer(own), as_integer(shift)
        if not is_null(pads):
            pad_band(spare, source, x_row, count, first_row, end_row, b[KERNEL_ROWS], g, pads, at)
            source = spare
        fill_slices(job, pointer(places, INT64), output, g, b, at)
        sweep_strips(job, fields, source, target, first_row, end_row, count, g, b, at)
        if b[FOLDS]:
            for each in range(count):
                here, there = target + each * g[ys + 1], source + each * g[xs + 1]
                table, weight = address(b[FOLDS]), own + each * taps * size
                add_folds(here, there, weight, first_row, end_row, b[KERNEL_COLUMNS], columns, table, g, at)
        item += count


@kernel
def planewise(
    xt: Tag, at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, sizes: Address, plan: Address,
    pads: Address, x_row: int, columns: Address, x: Address, w: Address, bias: Address, y: Address, status: Address,
) -> None:  # fmt: skip
    """y from x and contiguous w: an item is a band of rows of a plane. `plan` has what stands above, `columns` byte offsets.

    `pads` is a `padding_vector`, of planes whose rows lie `x_row` bytes apart, or 0. `status` gets a 1 if a weight is not finite.
    """
    g, b = pointer(sizes, INT64), pointer(plan, INT64)
    args = at, items, workers, scratch, pointer(areas, INT64), g, b, pads, x_row, columns, x, w, bias, y, status
    parallel_for(region, workers, items, _planes, args)


def _usual(lanes: int) -> list[Sweep]:
    """The tiles of 3 x 3 kernels, without a stride, with one, for the gradient of that, and of several slices; and of 7 x 7.

    They are the widest that the registers hold, for rows of some size; where that is less than such a row, also those of one
    vector, which leave no lane. Windows are taken to reach into padding with their first and their last column.
    """
    ends = spares_masks(host().width // lanes)
    found: list[Sweep] = []
    for step, adjoint, first in ((1, False, 0), (2, False, 0), (2, True, 1)):
        widths = [vectors for vectors in WIDTHS if vectors * lanes <= USUAL_PIXELS]
        shapes = [Sweep(vectors, 3, 3, step, step, adjoint, first, False, lanes, ends=ends and not adjoint) for vectors in widths]
        held = [shape for shape in shapes if fits(shape)]
        found += held[-1:] if held[-1].vectors * lanes == USUAL_PIXELS else dict.fromkeys((held[0], held[-1]))
    sliced = [each for vectors in WIDTHS if fits(each := Sweep(vectors, 3, 3, 1, 1, False, 0, True, lanes, ends=ends))]
    widths = [vectors for vectors in WIDTHS if vectors * lanes <= USUAL_PIXELS // 2]
    tall = [Sweep(vectors, 7, 0, 1, 1, False, 0, False, lanes) for vectors in widths]
    return [*found, *dict.fromkeys((sliced[0], sliced[-1])), *[shape for shape in tall if fits(shape)][-1:]]


_kernels = Unit(
    "planewise.kernels",
    lambda dtype, lanes: [(sweep, (tuple(shape), dtype)) for shape in _usual(lanes)],
    called=lambda dtype, lanes: [(planewise, (dtype, dtype))],
)


# --- the implementation --------------------------------------------------------------------------------------------------------


def _vectors(problem: ConvProblem) -> Vectors:
    """The vectors of a problem in the roles of x and y that the kernel has; its weights are contiguous."""
    lows, ones = [low for low, _ in problem.padding], [int(problem.flip)] * problem.ndim
    parts = [source_of(problem), problem.kernel, target_of(problem), problem.stride, lows, problem.dilation, ones]
    of_x, of_y = problem.c // problem.groups, problem.k // problem.groups
    if is_adjoint(problem):
        of_x, of_y = of_y, of_x

    def arrange(x: tuple[int, ...], y: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        return channel_strides(x, of_x), (0,) * (problem.ndim + 3), channel_strides(y, of_y)

    return Vectors(problem.n, problem.groups, of_x, of_y, parts, "zeros", ACTIVATIONS[problem.activation], arrange)


class _Sweeps:
    """The compiled driver and its tables; `gradient`: the input_grad that a problem is swept for, if its padding is added."""

    def __init__(self, problem: ConvProblem, gradient: ConvProblem | None = None):
        self._pads = padding_vector(problem) if is_copied(problem) else None
        given, spare, problem = problem, padded_bytes(problem), padded(problem)
        plan = plan_for(problem)
        shape = plan.shape._replace(edges=FOLDED) if gradient else plan.shape
        runs = runs_of(problem, plan, fold_columns(gradient) if gradient else ())
        size = np_dtype(problem.dtype).itemsize
        self._numbers = numbers_of(given, 0) if shape.edges in (TURNED, WRAPPED) else None
        before = given.padding[0][0]
        numbered = [0] * 3 if self._numbers is None else [self._numbers.ctypes.data + 8 * before, given.spatial[0], before]
        self._folds = folds_of(gradient) if gradient else None
        self._tables = [self._masks(given, problem, run, shape) for run in runs]
        whole = [is_split(shape) and run.flags(source_of(problem)[-1]).all() for run in runs]
        if gradient:
            ends = [strip_folds(gradient, run, plan.width) for run in runs]
            self._tables = [(np.concatenate([m, more]), e) for (m, _), (more, e) in zip(self._tables, ends, strict=True)]
            whole = [skip and (edges < 0).all() for skip, (_, edges) in zip(whole, ends, strict=True)]
        places = [[0, 0] if skip else [each.ctypes.data for each in pair] for skip, pair in zip(whole, self._tables, strict=True)]
        rows = self._rows(problem, plan, runs, places)
        outer = [math.prod(sizes[:-2]) for sizes in (problem.kernel, target_of(problem))]
        self._kernel, *tiles = _kernels.functions(problem.dtype, shape.lanes)
        usual = _usual(shape.lanes)
        tile = tiles[usual.index(shape)] if shape in usual else sweep.address(tuple(shape), problem.dtype)
        head = [
            tile, len(rows), plan.band, plan.bands, shape.rows, problem.kernel[-1],
            shape.adjoint, plan.width, plan.width // shape.column_step if shape.adjoint else plan.width * shape.column_step, *outer,
            phases_of(problem), *numbered, 0 if self._folds is None else self._folds.ctypes.data,
        ]  # fmt: skip
        self._plan = np.array([*head, *rows.ravel()], np.int64)
        self._columns = np.array(column_offsets(problem), np.int64) * size
        self._vectors = _vectors(problem)
        self._areas = Areas(8 * job_of.JOB, 16 * slices_of(problem), spare)
        planes = problem.n * (problem.c if shape.adjoint else problem.k)
        self._items, self._work = planes * outer[1] * plan.bands, WORK * planes * outer[1] * plane_cycles(problem, plan)
        if not math.prod(target_of(problem)):
            self._items = 0

    @staticmethod
    def _rows(problem: ConvProblem, plan: Plan, runs: Sequence[Run], places: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
        """What the kernel knows of each run; in several dimensions a run is a strip."""
        shape, size = plan.shape, source_of(problem)[-1]
        rows = np.array(
            [
                (run.source, run.target, run.strips, run.used, run.last, run.open_ends(shape, size), *place)
                for run, place in zip(runs, places, strict=True)
            ],
            np.int64,
        )
        if problem.ndim == 1:
            return rows
        counts = rows[:, RUN_COUNT].copy()
        rows = rows.repeat(counts, axis=0)
        numbers = np.arange(len(rows)) - (np.cumsum(counts) - counts).repeat(counts)
        rows[:, RUN_SOURCE] += numbers * (plan.width // shape.column_step if shape.adjoint else plan.width * shape.column_step)
        rows[:, RUN_TARGET] += numbers * plan.width
        rows[:, RUN_COUNT] = 1
        return rows

    @staticmethod
    def _masks(given: ConvProblem, problem: ConvProblem, run: Run, shape: Sweep) -> tuple[Any, Any]:
        """What a tile's FLAGS and EDGES are for a strip: masks, or how vectors at the edges are made, from its own source on."""
        if shape.edges not in (TURNED, WRAPPED):
            return flag_table(run.flags(source_of(problem)[-1]), problem.dtype), np.zeros(0, np.int64)
        row, (low, _) = numbers_of(given, 1), given.padding[1]
        table, offsets = table_of(run.places, row, low, given.spatial[1], shape.edges, problem.dtype)
        return table, offsets - run.source * np_dtype(problem.dtype).itemsize

    def __call__(self, x: Any, w: Any, bias: Sequence[Any], y: Any) -> bool:
        """Compute, with contiguous w. Whether a weight is not finite."""
        if not self._items:
            return False
        shift, status = np.ascontiguousarray(bias[0]) if bias else 0, np.zeros(1, np.uint8)
        strides, x_row = padded_strides(self._pads, x)
        pads = 0 if self._pads is None else self._pads
        run_with(
            self._areas, self._kernel, self._items, self._work, self._vectors(strides, y.strides), self._plan, pads, x_row,
            self._columns, x, w, shift, y, status,
        )  # fmt: skip
        return bool(status[0])


class _Executor(ContiguousExecutor):
    """A forward convolution; arrays whose pixels are no neighbours go to `Depthwise`."""

    def __init__(self, problem: ConvProblem):
        self._problem = problem
        self._sweeps = _Sweeps(problem)

    @functools.cached_property
    def _other(self) -> Any:
        return Depthwise().forward(self._problem)

    def _run(self, outs: Any, ins: Any, w: Any) -> None:
        if not (has_rows(ins[0]) and has_rows(outs[0])):
            self._other(outs, ins)
        elif self._sweeps(ins[0], w, ins[2:], outs[0]) and max(max(pair) for pair in self._problem.padding) > 0:
            redo(self._problem, outs[0], ins, range(self._problem.n))


class _Adjoint(ContiguousExecutor, Adjoint):
    """An input_grad with a stride: one sweep; weights that are not finite, and other arrays, go to `Depthwise`."""

    def __init__(self, problem: ConvProblem):
        super().__init__(problem, [], [])
        self._sweeps = _Sweeps(problem)

    def _ready(self, w: Any) -> Any:
        return np.ascontiguousarray(self.swapped(w))

    @functools.cached_property
    def _other(self) -> Any:
        return Depthwise().build(self._problem)

    def _run(self, outs: Any, ins: Any, w: Any) -> None:
        if not (has_rows(ins[0]) and has_rows(outs[0])) or self._sweeps(ins[0], w, ins[2:], outs[0]):
            self._other(outs, ins)


class FoldedSweeps:
    """An input_grad whose padding is added meanwhile, for arrays whose pixels are neighbours, and finite weights."""

    def __init__(self, problem: ConvProblem):
        forward = folded(problem)
        assert forward is not None
        self._sweeps = _Sweeps(forward, problem)

    def __call__(self, outs: Any, ins: Any) -> bool:
        """Compute, if it can."""
        if not (has_rows(ins[0]) and has_rows(outs[0])):
            return False
        return not self._sweeps(ins[0], np.ascontiguousarray(ins[1]), (), outs[0])


class Planewise(DenseImplementation):
    """Convolution of real floats in groups of few channels, with small kernels, rows in one piece."""

    name = "planewise"
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def accepts(self, problem: ConvProblem) -> Verdict:
        """Channels first, kernels of few rows, a stride of up to 4 along the rows, or 2; padding of zeros, or small planes."""
        reason = padding_refusal(problem) or refusal(padded(problem), MOST_ROWS, MOST_COLUMNS)
        if not reason and phases_of(problem) > 1 and (is_adjoint(problem) or is_padded(problem) or problem.stride[-2] > 1):
            reason = f"with a dilation of its rows it takes padding of zeros, and no stride there, and here is {problem.dilation}"
        if not reason and problem.flip and max(problem.stride[-2:]) > 1:
            reason = "with a stride its kernels are not flipped"
        if not reason and problem.level == "strict" and slices_of(problem) > 1:
            reason = f"it adds up {slices_of(problem)} slices of a window row by row, and strict sums go from slice to slice"
        if not reason and not shapes_of(padded(problem)):
            reason = f"no tile for a kernel {problem.kernel} fits the registers"
        return Verdict.no(reason) if reason else Verdict.yes()

    def supports(self, problem: ConvProblem) -> Verdict:
        """Real floats; an input_grad with a stride in up to two dimensions."""
        if problem.op == "forward" or max(problem.stride) == 1:
            return super().supports(problem)
        if problem.ndim > 2:
            return Verdict.no(f"an input_grad with a stride is for one and two dimensions, and here are {problem.ndim}")
        return self.accepts(problem)

    def forward_cost(self, problem: ConvProblem) -> float:
        """Of all sweeps, and of padding."""
        pads = pad_cycles(problem)
        problem = padded(problem)
        plan = plan_for(problem)
        planes = problem.n * (problem.c if plan.shape.adjoint else problem.k) * math.prod(target_of(problem)[:-2])
        factor = SLICED if plan.shape.sliced else 1.0
        plane, item = math.prod(source_of(problem)[-2:]), np_dtype(problem.dtype).itemsize
        outputs, inputs = problem.k // problem.groups, problem.c // problem.groups
        if plan.shape.adjoint:
            outputs, inputs = inputs, outputs
        if not plan.shape.columns and plane * item > FAR_BYTES:
            factor *= FAR
        if outputs >= BANK and problem.groups == 1 and host().registers < 32:
            factor *= BANK_CYCLES
        if plan.shape.edges:
            factor *= EDGED if plan.shape.columns else EDGED_LOOP
        cycles = factor * plane_cycles(problem, plan)
        together = slices_of(problem) == outputs == plan.bands == 1 and problem.ndim <= 2
        together = together and (plan.strips == 1 or 2 * plane * item <= STRIPS_BYTES)
        apart = 0 if together else plan.bands * ITEM_CYCLES
        if outputs > 1 and plan.strips > 1 and inputs * math.prod(source_of(problem)) * item > FAR_GROUP_BYTES:
            cycles = max(cycles, plan.strips * slices_of(problem) * lines_of(problem, plan) * FAR_ROW_CYCLES)
        work = WORK * planes * plane_cycles(problem, plan) if planes * plan.bands > 1 else 0.0
        return CALL_SECONDS + 3e-7 + seconds(planes * (cycles + pads + apart), work)

    def cost(self, problem: ConvProblem) -> float:
        """Of a forward problem, or of one sweep with a stride."""
        return super().cost(problem) if problem.op == "forward" or max(problem.stride) == 1 else self.forward_cost(problem)

    def forward_workspace(self, problem: ConvProblem) -> int:
        """A job and padded planes for each thread, and weights in one piece; or what `Depthwise` needs for other orders."""
        own = (
            MAX_THREADS * (8 * job_of.JOB + padded_bytes(problem))
            + 2 * math.prod(problem.w_shape) * np_dtype(problem.dtype).itemsize
        )
        return max(own, Depthwise().workspace(problem))

    def workspace(self, problem: ConvProblem) -> int:
        """The larger of both."""
        return (
            super().workspace(problem) if problem.op == "forward" or max(problem.stride) == 1 else self.forward_workspace(problem)
        )

    def forward(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)

    def build(self, problem: ConvProblem) -> Any:
        """The executor."""
        return super().build(problem) if problem.op == "forward" or max(problem.stride) == 1 else _Adjoint(problem)
