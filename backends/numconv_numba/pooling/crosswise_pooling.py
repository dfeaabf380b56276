"""Max and average pooling and their gradients with the lanes over channels: for planes of any size, strides and windows.

Channels first, a band of some planes, one for each lane, is transposed into the cache, where `microkernels/crosswise.py` sees each
element of a window as a whole vector; what it makes is transposed back. Channels last need no transposing. Half types become
float32 on the way.

The gradient of max pooling finds the winners of the windows, then each element adds up the windows that it won, in the row-major
order of y; that of average pooling adds up its windows in the order of its taps, as `pooling` does.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from numconv.plugin import Implementation, PoolProblem, Verdict, np_dtype
from numconv_numba.compiling.compiler import Address, Tag, Vector, helper, invoke, kernel
from numconv_numba.elements import INT64, itemsize
from numconv_numba.microkernels.crosswise import crosswise
from numconv_numba.microkernels.emit import lanes_of
from numconv_numba.microkernels.transpose import transpose
from numconv_numba.scalar import address, is_null, load, pointer, store, wide_vectors
from numconv_numba.threads import MAX_THREADS, Areas, parallel_for, run_with, worker_area

from .crosswise_plans import JOB_SIZE, LISTS, PER_INDEX, SPANS, Groups, band_extents, bands_of, groups_of, list_bytes, sweeps_of
from .pool import Pool
from .wide_pooling import joined
from .window_rows import fill_memory

__all__ = ["CrosswisePool"]

DTYPES = ("float16", "bfloat16", "float32", "float64")
MAX_LISTS = 1 << 20
"""Bytes of the lists of a plane."""
TURN_SECONDS, TAP_SECONDS, RESULT_SECONDS, GROUP_SECONDS = 5e-10, 7e-11, 2e-10, 5e-8
"""On two threads: of a vector, to transpose it; to look at it; to write it, and what lies beside it; and of a group of channels."""
LOOKS = {"avg_pool": 1, "avg_pool_backward": 1.5, "max_pool": 2, "max_pool_backward": 5}
"""What each tap of a result costs, against an addition."""
FRESH = 1 << 25
"""Bytes of results from which on they are new memory at each call."""
AREAS = 5

# The driver's vector: channels of a group; bytes of an element in memory, and from position to position of transposed ones; the
# channels of all images, and of one; groups of an image, where its channels are neighbours in memory; bands; positions of a channel
# of x and of y, with those of one index of their first axis; then the bands, as `bands_of` has them.
GROUP, ITEM, PITCH, PLANES, CHANNELS, BLOCKS, BANDS, X, Y, TABLE = 0, 1, 2, 3, 4, 5, 6, 7, 9, 11


# --- the drivers ---------------------------------------------------------------------------------------------------------------


@helper
def bring(tool, array, buffer, g, side, group, first, last):
    """The address of position 0 of a group, of which first..last of the first axis are there; transposed by `tool` if not 0."""
    volume, row = g[side], g[side + 1]
    if not tool:
        return array + in_place(g, side, group) * g[ITEM]
    planes = min(g[GROUP], g[PLANES] - group * g[GROUP])
    source = array + (group * g[GROUP] * volume + first * row) * g[ITEM]
    invoke(tool, source, volume * g[ITEM], planes, (last - first) * row, address(0), 0, buffer, g[PITCH])
    return buffer - first * row * g[PITCH]


@helper
def split_band(g, item):
    """The group of a work item, and where its band lies in the vector: groups of an image take turns, as they share lines."""
    block, rest = item % g[BLOCKS], item // g[BLOCKS]
    return rest // g[BANDS] * g[BLOCKS] + block, TABLE + 6 * (rest % g[BANDS])


@helper
def in_place(g, side, group):
    """How many elements lie before a group of channels that are neighbours in memory; the last group overlaps that before it."""
    channel = min(group % g[BLOCKS] * g[GROUP], g[CHANNELS] - g[GROUP])
    return group // g[BLOCKS] * g[side] * g[CHANNELS] + channel


@helper
def put(tool, array, buffer, g, side, group, first, last, item):
    """Write what lies transposed in a buffer, first..last of the first axis, to the channels of a group."""
    planes = min(g[GROUP], g[PLANES] - group * g[GROUP])
    count, target = (last - first) * g[side + 1], array + (group * g[GROUP] * g[side] + first * g[side + 1]) * item
    invoke(tool, buffer, g[PITCH], count, planes, address(0), 0, target, g[side] * item)


@helper
def sweep(tool, plan, x, y, places, begin, end, memory):
    """The results begin..end of the first axis, by `crosswise`; `x`, `y` and `places` are addresses of position 0."""
    g, job = pointer(plan, INT64), pointer(memory, INT64)
    lists, spans, rows = plan + 8 * g[LISTS], plan + 8 * g[SPANS], g[PER_INDEX]
    for entry in range(JOB_SIZE):
        job[entry] = g[entry]
    if rows == 0:
        job[0], job[4], job[5] = 1, begin, end
        job[6] = min(max(g[6], begin), end)
        job[7] = max(min(g[7], end), job[6])
    else:
        job[0] = (end - begin) * rows
        lists, y, places = lists + begin * rows * g[1], y + begin * rows * g[2], places + begin * rows * g[3]
    invoke(tool, x, lists, y, places, memory, spans)


def to_int64(place: Any) -> Any:
    """A place as int64; one in float32 by way of int32, to which AVX2 converts vectors too."""
    raise NotImplementedError("for kernels only")


@overload(to_int64)
def _to_int64(place):
    first = np.int32 if place == types.float32 else np.int64
    return lambda place: np.int64(first(place))


@helper
def as_integers(source, target, count, dtype):
    """Write places as int64."""
    wide_vectors()
    for q in range(count):
        store(target + q * 8, to_int64(load(source + q * itemsize(dtype), dtype)), INT64)


@helper
def put_places(tool, indices, found, buffer, g, group, first, last, dtype):
    """Write the places of winners, of first..last of the first axis, to the channels of a group."""
    count = (last - first) * g[Y + 1]
    if not tool:
        target, before = indices + in_place(g, Y, group) * 8, first * g[Y + 1]
        for q in range(count):
            as_integers(found + q * g[PITCH], target + (before + q) * g[CHANNELS] * 8, g[GROUP], dtype)
        return
    planes = min(g[GROUP], g[PLANES] - group * g[GROUP])
    invoke(tool, found, g[PITCH], count, planes, address(0), 0, buffer, count * itemsize(dtype))
    if count == g[Y]:
        as_integers(buffer, indices + group * g[GROUP] * count * 8, planes * count, dtype)
        return
    for plane in range(planes):
        target = indices + ((group * g[GROUP] + plane) * g[Y] + first * g[Y + 1]) * 8
        as_integers(buffer + plane * count * itemsize(dtype), target, count, dtype)


@helper
def _pool(begin, end, args):
    dtype, scratch, areas, workers, items, enter, leave, turn, tool, x, y, indices, plan, vector = args
    g, own = pointer(vector, INT64), worker_area(scratch, areas, AREAS, workers, items, begin)
    read, made, places, turned = own + areas[1], own + areas[2], own + areas[3], own + areas[4]
    for item in range(begin, end):
        group, band = split_band(g, item)
        first, last = g[band], g[band + 1]
        before = first * g[Y + 1] * g[PITCH]
        source = bring(enter, x, read, g, X, group, g[band + 2], g[band + 3])
        target = made - before if leave else y + in_place(g, Y, group) * g[ITEM]
        sweep(tool, plan, source, target, places - before, first, last, own)
        if leave:
            put(leave, y, made, g, Y, group, first, last, g[ITEM])
        if not is_null(indices):
            put_places(turn, indices, places, turned, g, group, first, last, dtype)


@kernel
def pool(
    dtype: Tag, region: int, workers: int, items: int, scratch: Address, areas: Vector, enter: int, leave: int, turn: int,
    tool: int, x: Address, y: Address, indices: Address, plan: Address, g: Address,
) -> None:  # fmt: skip
    """y, and indices unless null, from x: an item is a band of a group of channels.

    `enter`, `leave` and `turn` transpose x, y and places, 0 where channels are neighbours; `tool` is the microkernel.
    """
    args = dtype, scratch, areas, workers, items, enter, leave, turn, tool, x, y, indices, plan, g
    parallel_for(region, workers, items, _pool, args)


@helper
def _gradient(begin, end, args):
    scratch, areas, workers, items, enter, leave, first_tool, tool, x, y, grad, first_plan, plan, vector = args
    g, own = pointer(vector, INT64), worker_area(scratch, areas, AREAS, workers, items, begin)
    read, made, places = own + areas[1], own + areas[2], own + areas[3]
    for item in range(begin, end):
        group, band = split_band(g, item)
        first, last = g[band + 2], g[band + 3]
        before = first * g[Y + 1] * g[PITCH]
        source = bring(enter, y, made, g, Y, group, first, last)
        if is_null(x):
            sweep(first_tool, first_plan, source, made - before, places, first, last, own)
            source = made - before
        else:
            found = bring(enter, x, read, g, X, group, g[band + 4], g[band + 5])
            sweep(first_tool, first_plan, found, address(0), places - before, first, last, own)
        target = grad + in_place(g, X, group) * g[ITEM]
        if leave:
            target = read - g[band] * g[X + 1] * g[PITCH]
        sweep(tool, plan, source, target, places - before, g[band], g[band + 1], own)
        if leave:
            put(leave, grad, read, g, X, group, g[band], g[band + 1], g[ITEM])


@kernel
def gradient(
    region: int, workers: int, items: int, scratch: Address, areas: Vector, enter: int, leave: int, first_tool: int, tool: int,
    x: Address, y: Address, grad: Address, first_plan: Address, plan: Address, g: Address,
) -> None:  # fmt: skip
    """The gradient of x from that of y, and x for the winners, null for averages: the items and transposing are those of `pool`.

    The first sweep finds the winners, or divides the gradient of y; the second adds up.
    """
    args = scratch, areas, workers, items, enter, leave, first_tool, tool, x, y, grad, first_plan, plan, g
    parallel_for(region, workers, items, _gradient, args)


# --- the implementation --------------------------------------------------------------------------------------------------------


class _Executor:
    """The driver and its tables, and the general implementation for arrays that do not fill their memory in the layout's order."""

    def __init__(self, problem: PoolProblem):
        self._problem = problem
        self._last = problem.layout == "channels_last"
        self._in_memory = (0, *range(2, problem.ndim + 2), 1) if self._last else None
        problem = joined(problem)  # a long span takes less than many short ones
        acc, groups = problem.acc_dtype, groups_of(problem)
        bands, item = bands_of(problem, groups), np_dtype(problem.dtype).itemsize
        x_volume, y_volume = math.prod(problem.spatial), math.prod(problem.output)
        head = [
            groups.channels, item, groups.pitch, problem.n * problem.c, problem.c, groups.blocks, len(bands),
            x_volume, x_volume // problem.spatial[0], y_volume, y_volume // problem.output[0],
        ]  # fmt: skip
        self._vector = np.concatenate([np.array(head, np.int64), bands.ravel()])
        sweeps = sweeps_of(problem, problem.c * item if self._last else groups.pitch, groups.pitch)
        lanes = lanes_of(acc)
        self._sweeps = [crosswise.address((kind, lanes, groups.vectors), acc) for kind, _ in sweeps], [plan for _, plan in sweeps]
        pairs = ((problem.dtype, acc), (acc, problem.dtype), (acc, acc))
        self._turns = [0 if self._last else transpose.address(lanes, pair) for pair in pairs]
        self._kernel = gradient.specialise() if problem.op.endswith("_backward") else pool.specialise(acc)
        self._fixed = _areas(problem), self._kernel, groups.total * len(bands), _work(problem)

    @functools.cached_property
    def _general(self) -> Any:
        return Pool().build(self._problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        if not fill_memory((*outs, *ins), self._in_memory):
            self._general(outs, ins)
        elif self._problem.n:
            (enter, leave, turn), (tools, plans) = self._turns, self._sweeps
            if self._problem.op.endswith("_backward"):
                x = ins[1] if len(ins) > 1 else 0
                run_with(*self._fixed, enter, leave, *tools, x, ins[0], *outs, *plans, self._vector)
            else:
                y, indices = (*outs, 0)[:2]
                run_with(*self._fixed, enter, leave, turn, *tools, *ins, y, indices, *plans, self._vector)


def _areas(problem: PoolProblem) -> Areas:
    """A job; transposed x and y; places of winners, and these transposed back."""
    x, y, places = band_extents(problem, groups_of(problem))
    return Areas(8 * JOB_SIZE, x, y, places, places)


def _work(problem: PoolProblem) -> float:
    """Multiply-adds that take as long: what is not transposed takes little beside its taps."""
    moved = problem.bytes * (0.4 if problem.layout == "channels_last" else 3)
    return moved + 2 * problem.flops * LOOKS[problem.op]


def _vector_seconds(problem: PoolProblem, groups: Groups) -> float:
    """Of the channels of one vector."""
    back, places = problem.op.endswith("_backward"), problem.indices or problem.op == "max_pool_backward"
    moved = sum(map(math.prod, (*problem.input_shapes, *problem.output_shapes))) / max(problem.n * problem.c, 1)
    turned = 0.0 if problem.layout == "channels_last" else moved * TURN_SECONDS * (1.3 if back else 1)  # more is written
    looks = math.prod(problem.output) * math.prod(problem.window) * TAP_SECONDS * LOOKS[problem.op]
    alone = 2 if groups.vectors == 1 else 1  # less takes each step together
    return turned + alone * looks + math.prod(problem.spatial if back else problem.output) * RESULT_SECONDS * (1 + 2 * places)


def _touching_seconds(problem: PoolProblem, groups: Groups) -> float:
    """Of results that are new memory, whose pages are touched band by band."""
    size = np_dtype(problem.dtype).itemsize * max(map(math.prod, problem.output_shapes))
    return size / 5e10 if size >= FRESH and len(bands_of(problem, groups)) > 1 else 0.0


class CrosswisePool(Implementation):
    """Max and average pooling of real floats, and their gradients, with the lanes over channels."""

    name = "crosswise_pool"
    ops = frozenset(("max_pool", "avg_pool", "avg_pool_backward", "max_pool_backward"))

    def supports(self, problem: PoolProblem) -> Verdict:
        """Real floats of one dtype, but for max_pool_backward with indices; channels last where they fill a vector."""
        if problem.dtype not in DTYPES or problem.out_dtype != problem.dtype:
            return Verdict.no(f"{problem.dtype} to {problem.out_dtype}: it takes and gives one dtype, of real floats")
        if problem.op == "max_pool_backward" and problem.indices:
            return Verdict.no("the winners are given: it finds them")
        lanes, most = lanes_of(problem.acc_dtype), 1 << (24 if problem.acc_dtype == "float32" else 53)
        if problem.layout == "channels_last" and (problem.c < lanes or problem.dtype != problem.acc_dtype):
            return Verdict.no(f"{problem.c} channels of {problem.dtype} beside each other: it takes vectors of {problem.acc_dtype}")
        if math.prod(problem.spatial) >= most:
            return Verdict.no(f"{math.prod(problem.spatial)} positions in a channel: it counts fewer than {most}")
        if list_bytes(problem) > MAX_LISTS:
            return Verdict.no(f"{list_bytes(problem)} bytes of lists of rows: it takes at most {MAX_LISTS}")
        return Verdict.yes()

    def cost(self, problem: PoolProblem) -> float:
        """The time to move the arrays, to transpose them, and to look at each element of each window."""
        groups = groups_of(problem)
        vectors = groups.total * groups.vectors * _vector_seconds(problem, groups)
        return 3e-6 + problem.bytes / 1e11 + _touching_seconds(problem, groups) + groups.total * GROUP_SECONDS + vectors

    def workspace(self, problem: PoolProblem) -> int:
        """For each thread a band of x, y and places."""
        return MAX_THREADS * _areas(joined(problem)).bytes

    def build(self, problem: PoolProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
