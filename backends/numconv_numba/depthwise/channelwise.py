"""Depthwise convolution of arrays with the channels last, the lanes over channels: nothing is packed but the weights.

A work item is a row of results. Tiles compute neighbouring results from the taps that there are (`microkernels.channelwise`):
padding zeros are no terms, and other padding is read from where its mode has it. The terms of an output form one chain in the order
of the "strict" level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Verdict, np_dtype
from numconv_numba.activations import ACTIVATIONS, activate_rows
from numconv_numba.compiling.compiler import Address, Tag, helper, invoke, kernel
from numconv_numba.dense.base import DenseImplementation
from numconv_numba.dense.blocked import CALL_SECONDS, seconds
from numconv_numba.direct import MEASURED_ERROR
from numconv_numba.elements import INT64, itemsize
from numconv_numba.geometry import (
    DIMS,
    GROUPS,
    LOW,
    OPTION,
    OUTPUT,
    PARTS,
    STRIDE,
    WINDOW,
    conv_vectors,
    part,
)
from numconv_numba.microkernels import channelwise as job_of
from numconv_numba.microkernels.activation import dress
from numconv_numba.microkernels.channelwise import Along, tiles
from numconv_numba.microkernels.emit import host, lanes_of
from numconv_numba.rows import outer_offset, outer_size, outer_source
from numconv_numba.scalar import as_integer, is_null, pointer
from numconv_numba.threads import MAX_THREADS, Areas, area_of, parallel_items, run_with, taken_items

from .depthwise import Depthwise
from .depthwise_plans import lag_refusal
from .plane_padding import is_padded, numbers_of, table_refusal

__all__ = [
    "MOST_TAPS",
    "Channelwise",
    "RowTile",
    "addresses_of",
    "channels_last",
    "even_results",
    "inner_results_of",
    "refusal",
    "row_tiles",
]

MOST_TAPS = 11
"""Of a row: their weights stay in registers, or at least in the first-level cache."""
AHEAD_BYTES = 2 * 1024 * 1024
"""Of x, beyond which memory is fetched ahead."""


def inner_results_of(problem: ConvProblem) -> tuple[int, int]:
    """The first result of a row whose window lies inside x along the last dimension, and the one behind the last."""
    (low, _), stride, size = problem.padding[-1], problem.stride[-1], problem.spatial[-1]
    extent = problem.dilation[-1] * (problem.kernel[-1] - 1) + 1
    first = min(problem.output[-1], -(-low // stride))
    return first, max(first, min(problem.output[-1], (size + low - extent) // stride + 1))


def even_results(problem: ConvProblem) -> int:
    """Results of a tile: as many as the registers hold beside a row of taps, in tiles of about one size."""
    most, count = max(4, min(16, host().registers - problem.kernel[-1] - 2)), max(1, problem.output[-1])
    return -(-count // -(-count // most))


class RowTile(NamedTuple):
    """Neighbouring results of a row: the first of them, the position of x where its window starts, and the shape."""

    first: int
    position: int
    shape: Along


def row_tiles(problem: ConvProblem, indices: Iterable[int] | None = None) -> list[RowTile]:
    """The tiles of a row, or some of them."""
    results, size, stride, (low, _) = even_results(problem), problem.spatial[-1], problem.stride[-1], problem.padding[-1]
    taps, lanes = problem.kernel[-1], lanes_of(problem.acc_dtype)
    inner = Along(results, taps, stride, problem.dilation[-1], 0, 0, problem.flip, lanes)
    numbers, found = numbers_of(problem, problem.ndim - 1) if is_padded(problem) else None, []
    for index in range(-(-problem.output[-1] // results)) if indices is None else indices:
        first = min(index * results, problem.output[-1] - results)  # the last one overlaps the one before
        position = first * stride - low
        before, after = max(0, -position), max(0, position + inner.positions - size)
        shape = inner._replace(before=before, after=after)
        if numbers is not None and before + after:
            shape = inner._replace(moved=tuple((numbers[position + low :][: inner.positions] - position).tolist()))
        found.append(RowTile(first, position, shape))
    return found


def _distinct(problem: ConvProblem) -> tuple[list[int], int, int]:
    """Tiles of a row among which are all shapes; the first that lies inside x, and how many like it follow and are left out."""
    results, stride, (low, high) = even_results(problem), problem.stride[-1], problem.padding[-1]
    total = -(-problem.output[-1] // results)
    # all at the end whose windows could reach behind x: the last one may overlap the one before
    left, right = (min(total, -(-padding // (stride * results))) for padding in (low, high))
    end = max(left, total - right - 1)
    alike = max(0, end - left - 1)
    return [*range(min(left + 1, total)), *range(left + alike + 1, total)], left, alike


def addresses_of(row: list[RowTile], dtype: str) -> list[int]:
    """The address of each tile."""
    shapes = dict.fromkeys(tuple(tile.shape) for tile in row)
    found = dict(zip(shapes, tiles.functions(tuple(shapes), dtype), strict=True)) if shapes else {}
    return [found[tuple(tile.shape)] for tile in row]


# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def fill_rows(table, output, g, w_step):
    """Pairs of offsets in x and w for each row of taps that an outer output sees; how many."""
    count, taps, last = 0, outer_size(g, WINDOW), g[part(g, WINDOW) + g[DIMS] - 1]
    for tap in range(taps):
        inside, offset = outer_source(g, output, tap, g[DIMS] - 1)
        if inside:
            table[2 * count], table[2 * count + 1] = offset, tap * last * w_step
            count += 1
    return count


@helper
def each_block(fields, entry, first, end, step, x, w, bias, y, size):
    """Run a tile on the blocks of channels from `first` to `end`, of `step` each; the last one may overlap the one before."""
    job = pointer(fields, INT64)
    for start in range(first, end, step):
        channel = min(start, end - step) * size
        job[job_of.X], job[job_of.W], job[job_of.Y] = as_integer(x + channel), as_integer(w + channel), as_integer(y + channel)
        job[job_of.BIAS] = 0 if is_null(bias) else as_integer(bias + channel)
        invoke(entry, fields)


@helper
def row_results(count, arrays, frame):
    """The results of a row with so many rows of taps, by tiles of which the last may overlap."""
    g, b, fields, rows, size = frame
    x, w, bias, y = arrays
    axis, results, job = g[DIMS] - 1, b[RESULTS], pointer(fields, INT64)
    length = g[part(g, OUTPUT) + axis]
    job[job_of.TABLE], job[job_of.COUNT] = as_integer(rows), count
    for start in range(0, length, results):
        q = min(start, length - results)
        source = x + (q * g[part(g, STRIDE) + axis] - g[part(g, LOW) + axis]) * job[job_of.X_STEP]
        index = start // results
        entry = b[HEAD + min(index, max(b[LEFT], index - b[ALIKE]))]
        each_block(fields, entry, 0, g[GROUPS], b[LANES], source, w, bias, y + q * job[job_of.Y_STEP], size)


# What a kernel knows of a problem's tiles: the address of `dress`, results of a tile, lanes, whether memory is prefetched; what
# `_distinct` says of those of a row, then the addresses of these. The parts of a worker's scratch memory.
DRESS, RESULTS, LANES, FETCHES, LEFT, ALIKE, HEAD = range(7)
FIELDS, ROWS, AREAS = range(3)


@helper
def _rows(worker, queue, args):
    at, scratch, areas, g, b, x, w, bias, y = args
    own, axis, size = area_of(scratch, areas, AREAS, worker), g[DIMS] - 1, itemsize(at)
    fields, rows = own + areas[FIELDS], own + areas[ROWS]
    job, xs, ys, outputs = pointer(fields, INT64), part(g, PARTS), part(g, PARTS + 2), outer_size(g, OUTPUT)
    job[job_of.X_STEP], job[job_of.W_STEP] = g[xs + 3 + axis], g[GROUPS] * size
    job[job_of.AHEAD], job[job_of.RELU], job[job_of.Y_STEP] = b[FETCHES], g[OPTION] == 1, g[ys + 3 + axis]
    frame = g, b, fields, rows, size
    for item in taken_items(queue, worker):
        n, output = item // outputs, item % outputs
        count = fill_rows(pointer(rows, INT64), output, g, job[job_of.W_STEP])
        target = y + (n * g[ys] + outer_offset(g, output, OUTPUT, PARTS + 2))
        arrays = x + n * g[xs], w, bias, target
        row_results(count, arrays, frame)
        if g[OPTION] > 1:
            activate_rows(b[DRESS], target, job[job_of.Y_STEP], g[part(g, OUTPUT) + axis], g[GROUPS], g[OPTION], at)


@kernel
def channelwise(
    xt: Tag, at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, sizes: Address, tiles: Address,
    x: Address, w: Address, bias: Address, y: Address,
) -> None:  # fmt: skip
    """y from x and w: an item is a row of results. `w` is ``[taps, K]``, contiguous; `tiles` has what stands above `_rows`."""
    args = at, scratch, pointer(areas, INT64), pointer(sizes, INT64), pointer(tiles, INT64), x, w, bias, y
    parallel_items(region, workers, items, _rows, args)


# --- the implementation --------------------------------------------------------------------------------------------------------


def channels_last(array: Any) -> bool:
    """Whether the channels of ``[N, C, *S]`` are neighbours in memory."""
    return bool(array.strides[1] == array.itemsize)


def _packed(w: Any) -> Any:
    """``[taps, K]``, contiguous."""
    return np.ascontiguousarray(w.reshape(len(w), -1).T)


def _areas(problem: ConvProblem) -> Areas:
    """Of a worker: a job, and a table of rows of taps."""
    return Areas(8 * job_of.JOB, 16 * math.prod(problem.kernel[:-1]))


class _Executor:
    """One convolution; arrays in other orders go to `Depthwise`."""

    def __init__(self, problem: ConvProblem):
        self._problem, dtype, lanes = problem, problem.dtype, lanes_of(problem.dtype)
        ahead, results = math.prod(problem.x_shape) * np_dtype(dtype).itemsize > AHEAD_BYTES, even_results(problem)
        indices, left, alike = _distinct(problem)
        row = addresses_of(row_tiles(problem, indices), dtype)
        self._tiles = np.array([dress.address(lanes, dtype), results, lanes, ahead, left, alike, *row], np.int64)
        self._vectors = conv_vectors(problem, ACTIVATIONS[problem.activation])
        self._areas = _areas(problem)
        self._kernel = channelwise.specialise(dtype, dtype)
        self._items, self._work = problem.n * math.prod(problem.output[:-1]), problem.flops / 2
        self._other = Depthwise().forward(problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        if channels_last(ins[0]) and channels_last(outs[0]):
            self._run(outs[0], ins[0], _packed(ins[1]), ins[2:])
        else:
            self._other(outs, ins)

    def bind(self, w: Any) -> Callable[[Any, Any], None]:
        """The executor with its own copy of w, packed."""
        packed, other = _packed(w.copy()), self._other.bind(w)

        def run(outs: Any, ins: Any) -> None:
            if channels_last(ins[0]) and channels_last(outs[0]):
                self._run(outs[0], ins[0], packed, ins[1:])
            else:
                other(outs, ins)

        return run

    def _run(self, y: Any, x: Any, w: Any, bias: Any) -> None:
        if self._items:
            shift = np.ascontiguousarray(bias[0]) if bias else 0
            vector = self._vectors(x.strides, self._problem.w_shape, y.strides)
            run_with(self._areas, self._kernel, self._items, self._work, vector, self._tiles, x, w, shift, y)


def refusal(problem: ConvProblem) -> str:
    """Why channels of a problem cannot be the lanes, or nothing."""
    if problem.layout != "channels_last":
        return "its lanes are channels, which must be neighbours in memory: layout channels_last"
    if not problem.c == problem.k == problem.groups:
        return f"each channel has one kernel, and here {problem.c} channels in {problem.groups} groups have {problem.k}"
    if problem.dtype != problem.acc_dtype or problem.out_dtype != problem.dtype:
        return f"it loads and stores what it sums, and sums of {problem.dtype} are {problem.acc_dtype}"
    if problem.dtype not in ("float32", "float64"):
        return f"its tiles are for real floats, not {problem.dtype}"
    if problem.c < lanes_of(problem.dtype):
        return f"a vector takes {lanes_of(problem.dtype)} channels, and there are {problem.c}"
    if problem.kernel[-1] > MOST_TAPS:
        return f"a tile holds a row of {MOST_TAPS} taps at most, and the kernel is {problem.kernel}"
    return table_refusal(problem) or lag_refusal(problem)  # arrays in other orders go to `Depthwise`


class Channelwise(DenseImplementation):
    """Depthwise convolution of real floats, channels last."""

    name = "channelwise"
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def accepts(self, problem: ConvProblem) -> Verdict:
        """Channels last, each convolved with one kernel, a vector of them at least; rows of few taps."""
        reason = refusal(problem)
        return Verdict.no(reason) if reason else Verdict.yes()

    def forward_cost(self, problem: ConvProblem) -> float:
        """Loads and multiply-adds, two a cycle, and the packing of weights."""
        results, taps = even_results(problem), problem.kernel[-1]
        blocks, rows = -(-problem.c // lanes_of(problem.dtype)), math.prod(problem.kernel[:-1])
        positions = (results - 1) * problem.stride[-1] + (taps - 1) * problem.dilation[-1] + 1
        tile = rows * (results * taps + positions + taps) / 2 + 2 * results + 20
        row = -(-problem.output[-1] // results) * tile * blocks
        weights = math.prod(problem.w_shape) * 3
        return CALL_SECONDS + seconds(problem.n * math.prod(problem.output[:-1]) * row + weights)

    def forward_workspace(self, problem: ConvProblem) -> int:
        """Tables for each thread, and packed weights; or what `Depthwise` needs for other orders."""
        own = MAX_THREADS * _areas(problem).bytes + math.prod(problem.w_shape) * np.dtype(problem.dtype).itemsize
        return max(own, Depthwise().forward_workspace(problem))

    def forward(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
