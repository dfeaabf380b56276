"""Weight gradients of depthwise convolutions of arrays with the channels last, the lanes over channels: nothing is packed.

A work item is a vector of channels and a share of the rows of grad_y; a worker takes the vectors of a row one behind the other, as
memory has them. How rows are shared, and so the order of every sum, depends on the problem alone. Padding zeros are no terms.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Implementation, Verdict, np_dtype
from numconv_numba.compiling.compiler import Address, Tag, helper, invoke, kernel
from numconv_numba.dense.blocked import CALL_SECONDS, seconds
from numconv_numba.dense.strips import ITEMS, outer_place
from numconv_numba.direct import MEASURED_ERROR
from numconv_numba.elements import INT64, itemsize
from numconv_numba.geometry import BATCH, DILATION, DIMS, GROUPS, LOW, OUTPUT, PARTS, SIZE, STRIDE, conv_vectors, part
from numconv_numba.microkernels import channel_gradients as job_of
from numconv_numba.microkernels.channel_gradients import Beside, beside
from numconv_numba.microkernels.emit import host, lanes_of
from numconv_numba.rows import outer_source
from numconv_numba.scalar import as_integer, pointer
from numconv_numba.threads import MAX_THREADS, Areas, parallel_for, run_with, worker_area

from .channelwise import channels_last, inner_results_of, refusal
from .depthwise_weights import DepthwiseWeights
from .weight_sums import Finish, in_order

__all__ = ["ChannelwiseWeights"]

TOGETHER = 4
"""Results of a row whose positions are loaded together."""


class _Plan(NamedTuple):
    """How a weight gradient is cut.

    Attributes
    ----------
    shape : Beside
    tiles : int
        Tiles for the rows of the kernel, the last of which may reach beyond them.
    blocks : int
        Vectors of channels; the last one may overlap the one before.
    shares : int
        Parts of the rows of grad_y, which are added up apart.
    """

    shape: Beside
    tiles: int
    blocks: int
    shares: int


@functools.lru_cache(maxsize=256)
def plan_for(problem: ConvProblem) -> _Plan:
    """The plan of a problem: as few tiles as the registers allow."""
    lanes, columns = lanes_of(problem.dtype), problem.kernel[-1]
    rows = problem.kernel[-2] if problem.ndim > 1 else 1
    most = max(1, (host().registers - 4) // columns)
    tiles = -(-rows // most)
    count = -(-rows // tiles)
    results = max(1, min(TOGETHER, host().registers - count * columns - 2))
    shape = Beside(count, columns, problem.stride[-1], problem.dilation[-1], results, lanes)
    blocks = -(-problem.c // lanes)
    return _Plan(shape, tiles, blocks, max(1, min(problem.n * math.prod(problem.output[:-1]), -(-ITEMS // blocks))))


# What the kernel knows of a plan: the tile's address, tiles, their rows, blocks, shares, lanes, the results whose windows lie
# inside x along a row; rows and columns of the kernel, the outer dimensions.
TILE, TILES, ROWS, BLOCKS, SHARES, LANES, FIRST, LAST, KERNEL_ROWS, COLUMNS, OUTER_TAPS, OUTPUT_ROWS, PLAN = range(13)
FIELDS, UNUSED, AREAS = range(3)


# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def add_row(job, fields, x, y, output, sums, shift, unused, g, b, at):
    """The products of a row of grad_y with every tap, for one vector of channels; x and y are its addresses in an image."""
    axis, xs, ys = g[DIMS] - 1, part(g, PARTS), part(g, PARTS + 2)
    height, row, x_row, dilation, low, size = 1, 0, 0, 1, 0, 1
    if axis > 0:
        height = g[part(g, OUTPUT) + axis - 1]
        row = output % height * g[part(g, STRIDE) + axis - 1]
        x_row, low, size = g[xs + 2 + axis], g[part(g, LOW) + axis - 1], g[part(g, SIZE) + axis - 1]
        dilation = g[part(g, DILATION) + axis - 1]
        y = y + output % height * g[ys + 2 + axis]
    outer = output // height
    job[job_of.G], job[job_of.X_ROW] = as_integer(y + outer_place(g, outer)), dilation * x_row
    for tap in range(b[OUTER_TAPS]):
        inside, offset = outer_source(g, outer, tap, axis - 1)
        for tile in range(b[TILES]):
            top = row + tile * b[ROWS] * dilation - low
            first = max(0, -(top // dilation))
            last = min(b[ROWS], b[KERNEL_ROWS] - tile * b[ROWS])
            job[job_of.LOW], job[job_of.HIGH] = first, min(last, (size - 1 - top) // dilation + 1) if inside else 0
            job[job_of.X] = as_integer(x + (offset + top * x_row + job[job_of.START] * job[job_of.X_STEP]))
            job[job_of.SUMS] = as_integer(sums + (tap * b[TILES] + tile) * (b[ROWS] * b[COLUMNS] * b[LANES] * itemsize(at)))
            job[job_of.SHIFT] = as_integer(shift if (tap == 0) & (tile == 0) else unused)
            invoke(b[TILE], fields)


@helper
def _blocks(begin, end, args):
    at, items, workers, scratch, areas, g, b, y, x, partial, shifts = args
    own, size, axis = worker_area(scratch, areas, AREAS, workers, items, begin), itemsize(at), g[DIMS] - 1
    fields, unused, xs, ys = own + areas[FIELDS], own + areas[UNUSED], part(g, PARTS), part(g, PARTS + 2)
    job, each = pointer(fields, INT64), b[OUTER_TAPS] * b[TILES] * b[ROWS] * b[COLUMNS] * b[LANES] * size
    job[job_of.X_STEP], job[job_of.G_STEP] = g[xs + 3 + axis], g[ys + 3 + axis]
    job[job_of.START], job[job_of.SIZE] = -g[part(g, LOW) + axis], g[part(g, SIZE) + axis]
    job[job_of.FIRST], job[job_of.LAST], job[job_of.COUNT] = b[FIRST], b[LAST], g[part(g, OUTPUT) + axis]
    units, first = g[BATCH] * b[OUTPUT_ROWS], begin
    while first < end:
        share, block = first // b[BLOCKS], first % b[BLOCKS]
        last = min(end, first - block + b[BLOCKS])
        for unit in range(units * share // b[SHARES], units * (share + 1) // b[SHARES]):
            n, output = unit // b[OUTPUT_ROWS], unit % b[OUTPUT_ROWS]
            for item in range(first, last):
                channel = min(item % b[BLOCKS] * b[LANES], g[GROUPS] - b[LANES]) * size
                source, target = x + (n * g[xs] + channel), y + (n * g[ys] + channel)
                shift = shifts + item * b[LANES] * size
                add_row(job, fields, source, target, output, partial + item * each, shift, unused, g, b, at)
        first = last


@kernel
def channelwise_weights(
    xt: Tag, at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, sizes: Address, plan: Address,
    y: Address, x: Address, partial: Address, shifts: Address,
) -> None:  # fmt: skip
    """The gradient of w from that of y and x, added to [share][block][tap][lane]: an item is a share of one block of channels.

    `shifts`, [share][block][lane], gets the sums of grad_y.
    """
    args = at, items, workers, scratch, pointer(areas, INT64), pointer(sizes, INT64), pointer(plan, INT64), y, x, partial, shifts
    parallel_for(region, workers, items, _blocks, args)


# --- the implementation --------------------------------------------------------------------------------------------------------


class _Executor:
    """One weight gradient; arrays in other orders go to `DepthwiseWeights`."""

    def __init__(self, problem: ConvProblem):
        plan, dtype = plan_for(problem), problem.dtype
        shape, outer = plan.shape, math.prod(problem.kernel[:-2])
        self._problem, self._cut, self._finish = problem, plan, Finish(problem)
        self._plan = np.array(
            [
                beside.address(tuple(shape), dtype), plan.tiles, shape.rows, plan.blocks, plan.shares, shape.lanes,
                *inner_results_of(problem), problem.kernel[-2] if problem.ndim > 1 else 1, shape.columns, outer,
                math.prod(problem.output[:-1]),
            ], np.int64,
        )  # fmt: skip
        self._sums = plan.shares, plan.blocks, outer, plan.tiles * shape.rows, shape.columns, shape.lanes
        self._vectors = conv_vectors(problem.replace(flip=False), 0)  # as windows meet the taps: `in_order` turns them
        self._areas = Areas(8 * job_of.JOB, host().width)
        self._kernel = channelwise_weights.specialise(dtype, dtype)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        problem, plan, w, (y, x) = self._problem, self._cut, outs[0], ins
        if not (channels_last(x) and channels_last(y)):
            self._other(outs, ins)
            return
        partial = np.zeros(self._sums, problem.dtype)
        shifts = np.zeros((plan.shares, plan.blocks, plan.shape.lanes), problem.dtype)
        if y.size:
            run_with(
                self._areas, self._kernel, plan.shares * plan.blocks, problem.flops / 2,
                self._vectors(x.strides, w.strides, y.strides), self._plan, y, x, partial, shifts,
            )  # fmt: skip
        rows = problem.kernel[-2] if problem.ndim > 1 else 1
        found = self._joined(partial.sum(axis=0)[:, :, :rows]).reshape(w.shape)
        shift = self._joined(shifts.sum(axis=0)) if problem.bias == "y" else None
        self._finish(outs, ins, in_order(found, problem), shift)

    def _joined(self, blocks: Any) -> Any:
        """[channel, ...] from [block, ..., lane], of which the last block may overlap the one before."""
        channels, lanes = self._problem.c, blocks.shape[-1]
        last = channels - (len(blocks) - 1) * lanes
        whole = np.moveaxis(blocks, -1, 1)
        return np.concatenate([whole[:-1].reshape(-1, *whole.shape[2:]), whole[-1, lanes - last :]])

    @functools.cached_property
    def _other(self) -> Any:
        return DepthwiseWeights().build(self._problem)


class ChannelwiseWeights(Implementation):
    """Weight gradients of depthwise convolutions of real floats, channels last."""

    name = "channelwise"
    ops = frozenset(("weight_grad",))
    levels = frozenset(("high", "default", "fast"))
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def supports(self, problem: ConvProblem) -> Verdict:
        """Channels last, each convolved with one kernel, a vector of them at least; rows of few taps, padding of zeros."""
        reason = refusal(problem)
        if not reason and problem.pad_mode != "zeros" and any(low or high for low, high in problem.padding):
            reason = f"it leaves padding out, which must be of zeros, not {problem.pad_mode}"
        return Verdict.no(reason) if reason else Verdict.yes()

    def cost(self, problem: ConvProblem) -> float:
        """Loads and multiply-adds of tiles, two a cycle; results at a border tap by tap."""
        plan, (first, last) = plan_for(problem), inner_results_of(problem)
        shape = plan.shape
        taps, inside = shape.rows * shape.columns, last - first
        loads = shape.rows * (shape.columns + shape.stride * (shape.results - 1)) / shape.results + 1
        row = inside * max(taps, loads) / 2 * 1.15 + (problem.output[-1] - inside) * taps * 2 + taps + 30
        rows = problem.n * math.prod(problem.output[:-1]) * math.prod(problem.kernel[:-2]) * plan.tiles
        return CALL_SECONDS + 8e-6 + seconds(rows * plan.blocks * row + math.prod(problem.w_shape) * plan.shares * 4)

    def workspace(self, problem: ConvProblem) -> int:
        """A job for each thread and the sums of all shares; or what `DepthwiseWeights` needs for other orders."""
        plan, item = plan_for(problem), np_dtype(problem.dtype).itemsize
        taps = math.prod(problem.kernel[:-2]) * plan.tiles * plan.shape.rows * plan.shape.columns + 1
        sums = (plan.shares + 1) * plan.blocks * plan.shape.lanes * taps * item
        return max(MAX_THREADS * 512 + 2 * sums, DepthwiseWeights().workspace(problem))

    def build(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
