"""Depthwise convolution of small planes with the lanes over channels: rows of few pixels would fill few lanes.

The planes of as many channels as a vector has lanes are transposed into the cache, where `microkernels.channelwise` sees each
pixel as a whole vector, and the results are transposed back. Channels that are last stay where they are: unlike `channelwise`, all
of a few planes is computed before the next ones. Padding zeros are no terms, and other padding is read from where its mode has it;
the terms of an output form one chain in the order of the "strict" level. Half types become float32 on the way. An input gradient
adds what places in the padding get to the places of x that they are (`borders`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Verdict, np_dtype
from numconv_numba.activations import ACTIVATIONS, activate_rows
from numconv_numba.compiling.compiler import Address, Tag, helper, invoke, kernel
from numconv_numba.dense.base import DenseImplementation, accumulated, forward_parts
from numconv_numba.dense.blocked import CALL_SECONDS, seconds
from numconv_numba.direct import MEASURED_ERROR
from numconv_numba.elements import INT64, itemsize
from numconv_numba.microkernels import channelwise as job_of
from numconv_numba.microkernels.activation import dress
from numconv_numba.microkernels.emit import host, lanes_of
from numconv_numba.microkernels.transpose import transpose
from numconv_numba.scalar import address, as_integer, is_null, pointer
from numconv_numba.threads import MAX_THREADS, Areas, parallel_for, run_with, worker_area

from .channelwise import MOST_TAPS, Channelwise, RowTile, addresses_of, even_results, row_tiles
from .contiguous import ContiguousExecutor
from .depthwise import Depthwise
from .depthwise_plans import lag_refusal
from .plane_padding import is_padded, numbers_of, table_refusal
from .plane_plans import WORK

__all__ = ["Crosswise", "FoldedPlanes"]

MOST_BYTES = 192 * 1024
"""Of the transposed planes of x and of y: they stay in the second-level cache."""
NEAR_BYTES = 32 * 1024
"""Of these planes in the first-level cache: transposing others costs twice as much, and channels that are last would not stay."""
TILE_CYCLES, APART_CYCLES = 10.0, 5.2
"""Of the results of a tile beside their sums, and of a vector that is written alone."""
BLOCK_CYCLES = 300
"""Of the start of a block of channels."""

# What the kernel knows of a problem: the addresses of what transposes x and w, and y, 0 for channels that are last, and of `dress`;
# bytes between pixels, as the tiles see them; channels, lanes and blocks of so many channels; pixels of a plane of x and of y,
# taps; the code of the activation; rows of results and the tiles of each. Then of each row the bytes before its pairs of offsets,
# and how many these are, of each tile its address, where it reads and where it writes; and the pairs.
(ENTER, LEAVE, DRESS, STEP, CHANNELS, LANES, BLOCKS, X_PIXELS, Y_PIXELS, TAPS, OPTION, ROWS, TILES, HEAD) = range(14)
TILE, TILE_X, TILE_Y, TILE_FIELDS = range(4)
# The parts of a worker's scratch memory: a job, transposed x and y, transposed weights of all blocks.
FIELDS, X_TURNED, Y_TURNED, WEIGHTS, AREAS = range(5)


# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def multiply_block(fields, x, y, plan):
    """All results of a block of channels, of which x and y are the planes."""
    job, b = pointer(fields, INT64), pointer(plan, INT64)
    tiles = HEAD + 2 * b[ROWS]
    row_bytes = b[Y_PIXELS] // max(b[ROWS], 1) * b[STEP]
    for row in range(b[ROWS]):
        job[job_of.TABLE], job[job_of.COUNT] = as_integer(plan + b[HEAD + 2 * row]), b[HEAD + 2 * row + 1]
        for tile in range(tiles, tiles + b[TILES] * TILE_FIELDS, TILE_FIELDS):
            job[job_of.X], job[job_of.Y] = as_integer(x + b[tile + TILE_X]), as_integer(y + (row * row_bytes + b[tile + TILE_Y]))
            invoke(b[tile + TILE], fields)


@helper
def _blocks(begin, end, args):
    xt, at, items, workers, scratch, areas, plan, x, x_image, x_plane, w, bias, y, y_image, y_plane = args
    own, b = worker_area(scratch, areas, AREAS, workers, items, begin), pointer(plan, INT64)
    fields, x_turned, y_turned = own + areas[FIELDS], own + areas[X_TURNED], own + areas[Y_TURNED]
    job, lanes, pitch, null = pointer(fields, INT64), b[LANES], b[LANES] * itemsize(at), address(0)
    w_row = b[TAPS] * itemsize(xt)
    job[job_of.X_STEP], job[job_of.W_STEP], job[job_of.Y_STEP] = b[STEP], pitch, b[STEP]
    job[job_of.AHEAD], job[job_of.RELU] = 0, b[OPTION] == 1
    for item in range(begin, end):
        n, block = item // b[BLOCKS], item % b[BLOCKS]
        # the last block overlaps the one before
        first = min(block * lanes, b[CHANNELS] - lanes)
        weights = own + (areas[WEIGHTS] + block * b[TAPS] * pitch)
        if item < begin + b[BLOCKS]:
            invoke(b[ENTER], w + first * w_row, w_row, lanes, b[TAPS], null, 0, weights, pitch)
        source, target = x + (n * x_image + first * x_plane), y + (n * y_image + first * y_plane)
        before, after = source, target
        if b[LEAVE]:
            before, after = x_turned, y_turned
            invoke(b[ENTER], source, x_plane, lanes, b[X_PIXELS], null, 0, before, pitch)
        job[job_of.W], job[job_of.BIAS] = as_integer(weights), 0 if is_null(bias) else as_integer(bias + first * itemsize(at))
        multiply_block(fields, before, after, plan)
        if b[OPTION] > 1:
            activate_rows(b[DRESS], after, b[STEP], b[Y_PIXELS], lanes, b[OPTION], at)
        if b[LEAVE]:
            invoke(b[LEAVE], after, pitch, b[Y_PIXELS], lanes, null, 0, target, y_plane)


@kernel
def crosswise_planes(
    xt: Tag, at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, plan: Address, x: Address,
    x_image: int, x_plane: int, w: Address, bias: Address, y: Address, y_image: int, y_plane: int,
) -> None:  # fmt: skip
    """y from x and contiguous w: an item is a block of channels of an image, which lie `_plane` bytes apart.

    `plan` has what stands above; the bias is in the accumulation dtype.
    """
    areas = pointer(areas, INT64)
    args = xt, at, items, workers, scratch, areas, plan, x, x_image, x_plane, w, bias, y, y_image, y_plane
    parallel_for(region, workers, items, _blocks, args)


# --- the implementation --------------------------------------------------------------------------------------------------------


class _Reads(NamedTuple):
    """What results along a dimension read, of each result as many terms.

    Attributes
    ----------
    places, taps : ndarray of int
        ``[results, terms]``: the place of x, and the tap.
    inside : ndarray of bool
        Whether the place lies inside x: others are no terms.
    """

    places: np.ndarray[Any, Any]
    taps: np.ndarray[Any, Any]
    inside: np.ndarray[Any, Any]


def _reads(problem: ConvProblem, source: ConvProblem | None, axis: int) -> _Reads:
    """Of all results along a dimension.

    `source` is the input_grad whose places inside x the problem computes, where padding is not of zeros: the terms of a place are
    followed by those of the places in the padding that are it.
    """
    size, (low, _), taps = problem.spatial[axis], problem.padding[axis], np.arange(problem.kernel[axis])
    results, steps = np.arange(problem.output[axis]), (taps[::-1] if problem.flip else taps) * problem.dilation[axis] - low
    if source is None:
        places = results[:, None] * problem.stride[axis] + steps
        if is_padded(problem) and results.size:
            places = numbers_of(problem, axis)[places + low]
        return _Reads(places, np.broadcast_to(taps, places.shape), (places >= 0) & (places < size))
    before, numbers = source.padding[axis][0], numbers_of(source, axis)
    wide = np.arange(numbers.size)[:, None] - before + steps
    beside = [[place for place in np.flatnonzero(numbers == result).tolist() if place != result + before] for result in results]
    shape = results.size, 1 + max(map(len, beside), default=0), taps.size
    places = np.full(shape, -1)
    for result, several in enumerate(beside):
        places[result, : len(several) + 1] = wide[[result + before, *several]]
    places = places.reshape(results.size, -1)
    return _Reads(places, np.broadcast_to(taps, shape).reshape(places.shape), (places >= 0) & (places < size))


def _pairs(problem: ConvProblem, source: ConvProblem | None) -> list[np.ndarray[Any, Any]]:
    """Of each row of results the byte offsets, in x and in transposed w, of the rows of taps that are its terms."""
    rows, inside = np.zeros((2, 1, 1), np.int64), np.ones((1, 1), bool)
    for axis in range(problem.ndim - 1):
        reads = _reads(problem, source, axis)
        shape = len(inside) * len(reads.inside), inside.shape[1] * reads.inside.shape[1]
        sizes = np.array([problem.spatial[axis], problem.kernel[axis]])[:, None, None, None, None]
        found = np.stack([reads.places, reads.taps])
        rows = (rows[:, :, None, :, None] * sizes + found[:, None, :, None, :]).reshape(2, *shape)
        inside = (inside[:, None, :, None] & reads.inside[None, :, None, :]).reshape(shape)
    bytes_of = np.array([problem.spatial[-1] * _step(problem), problem.kernel[-1] * _pitch(problem)])
    return [row[:, used].T * bytes_of for row, used in zip(rows.transpose(1, 0, 2), inside, strict=True)]


def _tiles(problem: ConvProblem, source: ConvProblem | None) -> list[RowTile]:
    """Those of a row."""
    row = row_tiles(problem)
    if source is None:
        return row
    reads = _reads(problem, source, problem.ndim - 1)
    return [tile._replace(shape=tile.shape._replace(folds=_folds(reads, tile))) for tile in row]


def _folds(reads: _Reads, tile: RowTile) -> tuple[tuple[int, int, int], ...]:
    """The terms of a tile's results that places in the padding would get."""
    results = np.arange(tile.first, tile.first + tile.shape.results)
    rows, terms = np.nonzero(reads.inside[results, tile.shape.taps :])
    places, taps = (part[results, tile.shape.taps :][rows, terms] for part in (reads.places - tile.position, reads.taps))
    return tuple(zip(places.tolist(), taps.tolist(), rows.tolist(), strict=True))


def _pitch(problem: ConvProblem) -> int:
    """Bytes from a pixel of transposed planes to the next."""
    return lanes_of(problem.acc_dtype) * np_dtype(problem.acc_dtype).itemsize


def _is_last(problem: ConvProblem) -> bool:
    return problem.layout == "channels_last"


def _step(problem: ConvProblem) -> int:
    """Bytes from a pixel to the next, as the tiles see them."""
    return problem.c * np_dtype(problem.dtype).itemsize if _is_last(problem) else _pitch(problem)


def _plan(problem: ConvProblem, source: ConvProblem | None) -> np.ndarray[Any, Any]:
    """What the kernel knows of a problem."""
    acc, lanes, step = problem.acc_dtype, lanes_of(problem.acc_dtype), _step(problem)
    leave = 0 if _is_last(problem) else transpose.address(lanes, (acc, problem.out_dtype))
    pairs, row = _pairs(problem, source), _tiles(problem, source)
    addresses = addresses_of(row, acc)
    tiles = [(entry, tile.position * step, tile.first * step) for entry, tile in zip(addresses, row, strict=True)]
    head = [
        transpose.address(lanes, (problem.dtype, acc)), leave, dress.address(lanes, acc), step, problem.c, lanes,
        _block_count(problem), math.prod(problem.spatial), math.prod(problem.output), math.prod(problem.kernel),
        ACTIVATIONS[problem.activation], len(pairs), len(tiles),
    ]  # fmt: skip
    fixed = len(head) + 2 * len(pairs) + TILE_FIELDS * len(tiles)
    starts = 8 * (fixed + np.cumsum([0, *(2 * len(row) for row in pairs)]))
    rows = [(start, len(row)) for start, row in zip(starts, pairs, strict=False)]
    return np.concatenate([np.array(each, np.int64).ravel() for each in (head, rows, tiles, *pairs)])


def _block_count(problem: ConvProblem) -> int:
    return -(-problem.c // lanes_of(problem.acc_dtype))


def _turned_bytes(problem: ConvProblem) -> tuple[int, int]:
    """Of the transposed planes of x and of y."""
    return math.prod(problem.spatial) * _pitch(problem), math.prod(problem.output) * _pitch(problem)


def _areas(problem: ConvProblem) -> Areas:
    weights = _block_count(problem) * math.prod(problem.kernel) * _pitch(problem)
    return Areas(8 * job_of.JOB, *((0, 0) if _is_last(problem) else _turned_bytes(problem)), weights)


def _fills_memory(array: Any, last: bool) -> bool:
    """Whether each image of ``[N, C, *S]`` lies in the order of the layout, the pixels of a plane without gaps."""
    step = array.itemsize
    if last:
        if array.strides[1] != step:
            return False
        step *= array.shape[1]
    for size, stride in zip(array.shape[:1:-1], array.strides[:1:-1], strict=True):
        if stride != step and size > 1:
            return False
        step *= size
    return True


def _other(problem: ConvProblem) -> DenseImplementation:
    """What takes arrays in other orders, and planes with gaps."""
    return Channelwise() if _is_last(problem) else Depthwise()


class _Executor(ContiguousExecutor):
    """One convolution."""

    def __init__(self, problem: ConvProblem, source: ConvProblem | None = None):
        self._problem, self._plan, self._areas = problem, _plan(problem, source), _areas(problem)
        self._kernel = crosswise_planes.specialise(problem.dtype, problem.acc_dtype)
        self._acc = np_dtype(problem.acc_dtype)
        self._items = problem.n * _block_count(problem) if math.prod(problem.output) else 0
        self._work = WORK * self._items * _block_cycles(problem, source)

    @functools.cached_property
    def _other(self) -> Any:
        return _other(self._problem).forward(self._problem)

    def _run(self, outs: Any, ins: Any, w: Any) -> None:
        if not self.takes(outs, ins, w):
            self._other(outs, ins)

    def takes(self, outs: Any, ins: Any, w: Any) -> bool:
        """Compute with contiguous weights, where planes have no gaps."""
        x, y = ins[0], outs[0]
        last = _is_last(self._problem)
        if not (_fills_memory(x, last) and _fills_memory(y, last)):
            return False
        if self._items:
            shift = accumulated(ins[2], self._acc) if len(ins) > 2 else 0
            run_with(self._areas, self._kernel, self._items, self._work, self._plan, x, *x.strides[:2], w, shift, y, *y.strides[:2])
        return True


def _square_cycles() -> float:
    """Of a vector of a square that is transposed: loads of 16 bytes, two a cycle, as many of two shuffles, and a store."""
    return host().width / 16 / 2 + 2 / 2 + 1


def _block_cycles(problem: ConvProblem, source: ConvProblem | None = None) -> float:
    """Of a block of channels: vectors that are moved, and tiles."""
    lanes, taps = lanes_of(problem.acc_dtype), problem.kernel[-1]
    results = even_results(problem)
    near = sum(_turned_bytes(problem)) <= NEAR_BYTES
    x, y, w = (-(-math.prod(size) // lanes) for size in (problem.spatial, problem.output, problem.kernel))
    moved = lanes * _square_cycles() * (w + (x + y) * (1 if near else 2))
    if _is_last(problem):
        moved = lanes * _square_cycles() * w + APART_CYCLES * math.prod(problem.output)
    rows, lines, tiles = math.prod(problem.output[:-1]), math.prod(problem.kernel[:-1]), -(-problem.output[-1] // results)
    *outer, inside = (_terms(problem, source, axis) for axis in range(problem.ndim))
    products, positions = results * taps * inside, (results - 1) * problem.stride[-1] + (taps - 1) * problem.dilation[-1] + 1
    loads = min(positions, results * taps) * min(1.0, inside) + max(0.0, products - results * taps) + taps
    line = max(products, loads) / 2 + 3
    tile = lines * math.prod(outer) * line + TILE_CYCLES
    return BLOCK_CYCLES + moved + rows * tiles * tile


def _seconds(problem: ConvProblem, source: ConvProblem | None = None) -> float:
    """Of all blocks, on two threads."""
    blocks = problem.n * _block_count(problem)
    return CALL_SECONDS + seconds(2 * -(-blocks // 2) * _block_cycles(problem, source))


def _terms(problem: ConvProblem, source: ConvProblem | None, axis: int) -> float:
    """The terms of all results along a dimension, as a share of all of their taps."""
    inside = _reads(problem, source, axis).inside
    return float(inside.sum() / max(1, len(inside) * problem.kernel[axis]))


class Crosswise(DenseImplementation):
    """Depthwise convolution of small planes."""

    name = "crosswise"
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def accepts(self, problem: ConvProblem) -> Verdict:
        """A kernel for each channel, a vector of channels at least, planes that fit the cache."""
        reason = _refusal(problem)
        return Verdict.no(reason) if reason else Verdict.yes()

    def supports(self, problem: ConvProblem) -> Verdict:
        """Real floats; an input_grad without a stride."""
        if problem.op == "input_grad" and max(problem.stride) > 1:
            return Verdict.no("the phases of a strided input_grad lie apart, and it writes planes in one piece")
        return super().supports(problem)

    def forward_cost(self, problem: ConvProblem) -> float:
        """Of all blocks."""
        return _seconds(problem)

    def forward_workspace(self, problem: ConvProblem) -> int:
        """Transposed planes and weights for each thread, and weights in one piece; or what other orders need."""
        return max(_workspace(problem), _other(problem).forward_workspace(problem))

    def forward(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)


class FoldedPlanes:
    """An input_grad whose padding is not of zeros, for planes without gaps."""

    def __init__(self, problem: ConvProblem):
        forward = _folded(problem)
        assert forward is not None
        self._executor = _Executor(forward, problem)

    def __call__(self, outs: Any, ins: Any) -> bool:
        """Compute, if it can."""
        return self._executor.takes(outs, ins, np.ascontiguousarray(ins[1]))

    @staticmethod
    def cost(problem: ConvProblem) -> float:
        """Estimated seconds, infinite where a problem is not of this kind."""
        forward = _folded(problem)
        return math.inf if forward is None else _seconds(forward, problem)

    @staticmethod
    def workspace(problem: ConvProblem) -> int:
        """Transposed planes and weights for each thread, and weights in one piece."""
        forward = _folded(problem)
        return 0 if forward is None else _workspace(forward)


def _folded(problem: ConvProblem) -> ConvProblem | None:
    """The forward problem that gives an input_grad of places inside x, if what its padding gets can be added meanwhile."""
    if max(problem.stride) > 1 or min(min(pair) for pair in problem.padding) < 0 or problem.bias or problem.activation:
        return None
    if table_refusal(problem):
        return None
    (only,) = forward_parts(problem.replace(pad_mode="zeros"))
    return None if only.problem is None or _refusal(only.problem) else only.problem


def _workspace(problem: ConvProblem) -> int:
    """Transposed planes and weights for each thread, and weights in one piece."""
    return MAX_THREADS * _areas(problem).bytes + math.prod(problem.w_shape) * np_dtype(problem.dtype).itemsize


def _refusal(problem: ConvProblem) -> str:
    """Why planes are not transposed, or nothing."""
    lanes, turned = lanes_of(problem.acc_dtype), sum(_turned_bytes(problem))
    if _is_last(problem) and not problem.dtype == problem.acc_dtype == problem.out_dtype:
        return (
            f"channels that are last are loaded and stored as they are summed, and sums of {problem.dtype} are {problem.acc_dtype}"
        )
    if _is_last(problem) and problem.c % lanes and ACTIVATIONS[problem.activation] > ACTIVATIONS["relu"]:
        return f"{problem.activation} is applied to results once, and of {problem.c} channels that are last vectors overlap"
    if not problem.c == problem.k == problem.groups:
        return f"each channel has one kernel, and here {problem.c} channels in {problem.groups} groups have {problem.k}"
    if problem.c < lanes:
        return f"a vector takes {lanes} channels, and there are {problem.c}"
    if problem.kernel[-1] > MOST_TAPS:
        return f"a tile holds a row of {MOST_TAPS} taps at most, and the kernel is {problem.kernel}"
    most = NEAR_BYTES if _is_last(problem) else MOST_BYTES
    if turned > most:
        return f"the planes of {lanes} channels take {turned} bytes, and it takes up to {most} at a time"
    return table_refusal(problem) or lag_refusal(problem)  # arrays in other orders go to `Depthwise`
