"""How `planewise` cuts a problem: which tile it takes, strips of columns and bands of rows, what that costs, what it refuses."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, np_dtype
from numconv_numba.activations import ACTIVATIONS
from numconv_numba.dense.strips import ITEMS
from numconv_numba.microkernels.edges import EDGES, ZEROS
from numconv_numba.microkernels.emit import host, lanes_of
from numconv_numba.microkernels.planes import PRELOADED, Sweep, accumulators

__all__ = [
    "AHEAD_PLANE",
    "FAR",
    "FAR_BYTES",
    "FAR_GROUP_BYTES",
    "FAR_ROW_CYCLES",
    "MOST_COLUMNS",
    "MOST_ROWS",
    "SLICED",
    "WIDTHS",
    "WORK",
    "Plan",
    "Run",
    "column_offsets",
    "fits",
    "has_rows",
    "is_adjoint",
    "lines_of",
    "phases_of",
    "plan_for",
    "plane_cycles",
    "refusal",
    "runs_of",
    "shapes_of",
    "slices_of",
    "source_of",
    "strip_marks",
    "target_of",
]


MOST_ROWS = 8
"""Of a kernel: their sums are in registers."""
MOST_COLUMNS = 31
MOST_STEP = 4
"""A stride of which the phases of a row are parted in registers."""
WIDTHS = (1, 2, 3, 4, 7)
"""Vectors of a tile: few, so that few are compiled."""
SLICED = 1.45
"""What sums over several slices cost against what is counted, on the scale of other tiles."""
PART_CYCLES = 12
"""Of storing some lanes of a vector where that is slow, for a row that has no other to hide it behind: measured with AVX2, on
Zen 3."""
LOOP, LOOP_FEW = 1.1, 1.5
"""Cycles of a turn of a loop over the columns of taps, and where sixteen registers hold the sums: measured with AVX2."""
FEW_MASKS = 4.0, 0.6, 2.4
"""Cycles of a row of a slice, and of a vector of it and of results, of tiles that take few masks: measured with AVX2, on Zen 3."""
WORK = 16
"""Multiply-adds that would take a cycle: with small planes most of the time is not theirs."""
AHEAD_PLANE = 64 * 1024
"""A plane of x up to which the next one is fetched while it is read."""
FAR_BYTES, FAR = 14 * 1024 * 1024, 2.2
"""A plane beyond the caches, and what walking down its columns costs where a row is read again for each column of taps."""
BAND_BYTES = 192 * 1024
"""Rows of a band: what one strip reads stays in the second-level cache for the next."""
FAR_GROUP_BYTES, FAR_ROW_CYCLES = 6 * 1024 * 1024, 170
"""The planes of a group beyond the caches, and a row of a strip that comes from memory: each output channel reads all of them, and
rows of a strip are no neighbours."""
UNROLLED = 3
"""Columns of a kernel up to which a tile has the code of each."""


class Plan(NamedTuple):
    """How a problem is cut.

    Attributes
    ----------
    shape : Sweep
    width : int
        Columns of results of a strip.
    strips : int
    band, bands : int
        Rows of results of a work item, and items of a plane.
    """

    shape: Sweep
    width: int
    strips: int
    band: int
    bands: int


def is_adjoint(problem: ConvProblem) -> bool:
    """Whether the results are the gradient of x."""
    return problem.op == "input_grad"


def target_of(problem: ConvProblem) -> tuple[int, ...]:
    """The spatial size of the results."""
    return tuple(problem.spatial if is_adjoint(problem) else problem.output)


def phases_of(problem: ConvProblem) -> int:
    """Of the rows: the dilation of windows of several rows, each of which sees rows of one phase only."""
    return problem.dilation[-2] if problem.ndim > 1 and problem.kernel[-2] > 1 else 1


def source_of(problem: ConvProblem) -> tuple[int, ...]:
    """The spatial size of what is read."""
    return tuple(problem.output if is_adjoint(problem) else problem.spatial)


def fits(shape: Sweep) -> bool:
    """Whether the registers hold a tile."""
    return accumulators(shape) + shape.vectors + 2 < host().registers


def shapes_of(problem: ConvProblem) -> list[Sweep]:
    """The tiles that fit the registers."""
    adjoint, taps = is_adjoint(problem), problem.kernel[-1]
    rows, row_step = (problem.kernel[-2], problem.stride[-2]) if problem.ndim > 1 else (1, 1)
    step = problem.stride[-1]
    columns = taps if taps <= UNROLLED or step > 1 or adjoint else 0
    first = problem.padding[-1][0] % step if adjoint else 0
    # where a slice begins depends on the outer dimensions of the output
    sliced = slices_of(problem) > 1 or problem.ndim > 2
    lanes, code = lanes_of(problem.dtype), ACTIVATIONS[problem.activation]
    smooth = code if code > ACTIVATIONS["relu"] else 0
    edges = EDGES[problem.pad_mode]
    shapes = [Sweep(vectors, rows, columns, row_step, step, adjoint, first, sliced, lanes, smooth, edges) for vectors in WIDTHS]
    return [each for each in shapes if fits(each)]


@functools.lru_cache(maxsize=256)
def plan_for(problem: ConvProblem) -> Plan:
    """The plan with the tile that needs the fewest cycles."""
    plan = min((_cut(problem, shape) for shape in shapes_of(problem)), key=lambda plan: plane_cycles(problem, plan))
    return plan._replace(shape=plan.shape._replace(ends=_has_ends(problem, plan)))


def _cut(problem: ConvProblem, shape: Sweep) -> Plan:
    width = shape.vectors * shape.lanes * (shape.column_step if shape.adjoint else 1)
    target = target_of(problem)
    planes = max(1, problem.n * (problem.c if shape.adjoint else problem.k) * math.prod(target[:-2]))
    rows = -(-target[-2] // phases_of(problem)) if problem.ndim > 1 else 1
    plane = math.prod(source_of(problem)[-2:]) * np_dtype(problem.dtype).itemsize
    bands = max(1, min(-(-rows // (4 * shape.rows)), max(-(-ITEMS // planes), plane // BAND_BYTES)))
    band = -(-rows // bands)
    return Plan(shape, width, -(-target[-1] // width), band, -(-rows // band))


def slices_of(problem: ConvProblem) -> int:
    """Sweeps over a plane of results."""
    channels = problem.k if is_adjoint(problem) else problem.c
    return channels // problem.groups * math.prod(problem.kernel[:-2])


def lines_of(problem: ConvProblem, plan: Plan) -> float:
    """Rows of a slice that the sweeps over a strip read: those of padding are left out."""
    shape, phases = plan.shape, phases_of(problem)
    rows, there = (target_of(problem)[-2], source_of(problem)[-2]) if problem.ndim > 1 else (1, 1)
    reached = (rows / shape.row_step if shape.adjoint else rows * shape.row_step) + plan.bands * phases * (shape.rows - 1)
    return min(reached, there + (plan.bands - 1) * phases * (shape.rows - 1))


def plane_cycles(problem: ConvProblem, plan: Plan) -> float:
    """Of a sweep over a plane, fitted to measurements."""
    shape, taps = plan.shape, problem.kernel[-1]
    rows = target_of(problem)[-2] if problem.ndim > 1 else 1
    users = shape.rows if shape.adjoint else shape.rows / shape.row_step
    loads = shape.vectors * (1 if shape.adjoint else shape.column_step)
    slow_masks = not host().masks(np_dtype(problem.dtype).itemsize, write=True)
    line, load, store = FEW_MASKS if slow_masks and shape.columns and not shape.adjoint else (1.8, 0.86, 2.9)
    weights = 0 if not shape.sliced and 0 < shape.rows * shape.columns <= PRELOADED else users
    column = max(0.17 * users * shape.vectors + load * loads, 0.34 * (weights + host().unaligned * loads))
    column += 0.0 if shape.columns else LOOP if host().registers >= 32 else LOOP_FEW
    stored = rows * shape.vectors * store * (1 + shape.adjoint)
    slow = slow_masks and target_of(problem)[-1] < shape.lanes
    sweeps = plan.bands * phases_of(problem)
    swept = plan.strips * (slices_of(problem) * lines_of(problem, plan) * (taps * column + line) + stored + sweeps * 10)
    return swept + rows * PART_CYCLES * slow


def column_offsets(problem: ConvProblem) -> list[int]:
    """Where each column of taps reads, against the first of a strip's."""
    taps, low, step = problem.kernel[-1], problem.padding[-1][0], problem.stride[-1]
    if is_adjoint(problem):
        return [
            ((place - low) % step + low - place) // step for place in range(0, taps * problem.dilation[-1], problem.dilation[-1])
        ]
    return [(taps - 1 - t if problem.flip else t) * problem.dilation[-1] - low for t in range(taps)]


class Run(NamedTuple):
    """A strip, or those beside each other that are alike: columns of what is read and of results, and how many.

    `last`: the first column of its last vector of results; `places`: what each column of taps reads, in vectors of neighbours.
    """

    source: int
    target: int
    strips: int
    used: int
    last: int
    places: Any

    def flags(self, size: int) -> Any:
        """Which places lie inside rows of `size`."""
        return (self.places >= 0) & (self.places < size)

    def is_even(self, size: int, shape: Sweep) -> bool:
        """Whether each column of taps reads x alone, or what is padding of zeros alone."""
        flags = self.flags(size)
        inside = flags.all(axis=1)
        return bool(inside.all() or (shape.edges == ZEROS and (inside | ~flags.any(axis=1)).all()))

    def reaching(self, shape: Sweep, size: int) -> Any:
        """Which of the vectors that are loaded for each column of taps reach beside a row; the others are parted from these."""
        loaded = self.flags(size)[:: 1 if shape.adjoint else shape.column_step]
        return ~loaded.reshape(len(loaded), -1, shape.lanes).all(axis=2)

    def open_ends(self, shape: Sweep, size: int) -> int:
        """1 if the first vector of the first column of taps reaches beside a row, plus 2 if the last one of the last does."""
        reaching = self.reaching(shape, size)
        return int(reaching[0, 0]) + 2 * int(reaching[-1, -1])


def strip_marks(offsets: Sequence[int], reach: int, size: int, whole: int, own: Collection[int] = ()) -> list[int]:
    """Of `whole` strips that read `reach` places from each offset on, in rows of `size`: where others begin than before.

    From each mark to the next, strips read the same places against the ends of the row, unless one of an offset lies across an end.
    `own` are further marks.
    """
    marks = set(own)
    for offset in offsets:
        marks |= {-offset // reach, -(offset // reach), (size - reach - offset) // reach + 1, -((offset - size) // reach)}
    return sorted({mark for mark in marks if 0 < mark < whole} | {0, whole})


def runs_of(problem: ConvProblem, plan: Plan, apart: Sequence[int] = ()) -> list[Run]:
    """All strips, those that are alike together, but for those with results in columns that are `apart`.

    But for adjoints the last one, and the last vector of each, may overlap what is before, and end with the row.
    """
    shape, size, end = plan.shape, source_of(problem)[-1], target_of(problem)[-1]
    phases, step = (shape.column_step, 1) if shape.adjoint else (1, shape.column_step)
    vector = phases * shape.lanes
    overlaps = not shape.adjoint and end >= vector
    offsets, lanes = column_offsets(problem), np.arange(step * shape.lanes)
    columns, reach = np.array(offsets)[:, None, None], shape.vectors * lanes.size
    whole = end // plan.width
    own = {column // plan.width + more for column in apart for more in (0, 1)}
    runs: list[Run] = []
    for first, stop in itertools.pairwise([*strip_marks(offsets, reach, size, whole, own), plan.strips]):
        strip = first
        while strip < stop:
            target = max(0, min(strip * plan.width, end - plan.width)) if overlaps else strip * plan.width
            used, last = min(plan.width, end - target), plan.width - vector
            last = min(last, used - vector) if overlaps else last
            source, firsts = target * step // phases, np.array([*range(0, plan.width - vector, vector), last]) * step // phases
            places = (source + columns + firsts[:, None] + lanes).reshape(len(offsets), -1)
            run = Run(source, target, 1, used, last, places)
            runs.append(run._replace(strips=stop - strip) if stop <= whole and run.is_even(size, shape) else run)
            strip += runs[-1].strips
    return runs


def spares_masks(item: int) -> bool:
    """Whether tiles that take masks at the ends of a row only are of use: where masks are fast, all tiles are of one kind."""
    return not host().masks(item, write=True)


def _has_ends(problem: ConvProblem, plan: Plan) -> bool:
    """Whether vectors reach beside a row at its ends only, as the tile's shape says, and all results of all vectors are there."""
    shape, size, runs = plan.shape, source_of(problem)[-1], runs_of(problem, plan)
    if not spares_masks(np_dtype(problem.dtype).itemsize) or shape.adjoint or not shape.columns:
        return False
    if any(run.used < max(1, shape.vectors - 1) * shape.lanes for run in runs):
        return False
    reaching = np.any([run.reaching(shape, size) for run in runs], axis=0)
    reaching[0, 0] = reaching[-1, -1] = False
    return not reaching.any()


def has_rows(array: Any) -> bool:
    """Whether the pixels of a row are neighbours in memory."""
    return bool(array.strides[-1] == array.itemsize)


def refusal(problem: ConvProblem, most_rows: int, most_columns: int) -> str:
    """Why planes of a problem cannot be read where they lie, with kernels of up to so many rows and columns; or nothing."""
    rows, step = (problem.kernel[-2], problem.stride[-2]) if problem.ndim > 1 else (1, 1)
    if problem.dtype != problem.acc_dtype or problem.out_dtype != problem.dtype:
        return f"it loads and stores what it sums, and sums of {problem.dtype} are {problem.acc_dtype}"
    if problem.dtype not in ("float32", "float64"):
        return f"its tiles are for real floats, not {problem.dtype}"
    if host().width < 32:
        return "it masks vectors as it loads them, which this processor cannot"
    if problem.layout != "channels_first":
        return "its lanes are pixels, which must be neighbours in memory: layout channels_first"
    # two phases of an adjoint are put together in registers
    most_step = 2 if is_adjoint(problem) else MOST_STEP
    if rows > most_rows or problem.kernel[-1] > most_columns or problem.stride[-1] > most_step or step > MOST_STEP:
        return (
            f"it takes kernels of up to {most_rows} rows and {most_columns} columns with strides of up to {MOST_STEP} and"
            f" {most_step}, and here are kernel {problem.kernel} and stride {problem.stride}"
        )
    if problem.stride[-1] > 1 and problem.dilation[-1] > 1:
        return f"columns of taps beside a stride are neighbours, and here is a dilation of {problem.dilation}"
    return ""
