"""Average pooling as box filters: along the outer axes first, then along the row, from registers.

A mean is the sum of its window times the reciprocal of its count. Half types become float32 on the way.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from numconv.plugin import Implementation, PoolProblem, Verdict, np_dtype
from numconv_numba.compiling.compiler import Address, helper, invoke, kernel
from numconv_numba.elements import INT64, memory, release, scratch
from numconv_numba.microkernels.boxes import BOX, LINE, BoxShape, boxes, vectors_read
from numconv_numba.microkernels.emit import flag_table, lanes_of
from numconv_numba.scalar import pointer
from numconv_numba.sliding import outer_axis, rows_read
from numconv_numba.threads import MAX_THREADS, parallel_for, run

from .averages import axis_counts
from .pool import Pool
from .vector_pooling import averaged_in_vectors
from .window_rows import fill_memory

__all__ = ["BoxPool"]

DTYPES = ("float16", "bfloat16", "float32", "float64")
MOST_TAPS = 64
"""Along a row, each of which is a shuffle."""
MOST_VECTORS, MOST_READ = 9, 16
"""Of x, whose sums stay in registers; and where windows or strides are wide, those of one vector of results."""
MOST_RESULTS = 4
"""Vectors of a chunk, of longer rows."""
MOST_PACKED = 4
"""Vectors of x from which a vector of results takes what several short rows read."""
MAX_LISTS = 1 << 23
"""Bytes of the lists of a plane."""
CYCLE_SECONDS = 1.8e-10
"""On two threads."""
WORK_CYCLE, WORK_BYTE = 12, 0.25
"""Multiply-adds that take as long as a cycle, and as a byte: threads start where they save more than their 3 microseconds."""
FETCHED = 1 << 13
"""Bytes of a plane up to which one is fetched as a whole, ahead of its turn; larger ones are fetched row by row."""
ITEMS = 64
"""Work items at least, where there are rows enough."""
JOB_SIZE, JOB_BYTES = len(BOX), 256
PLANES, ROWS, PLANE, Y_PLANE, LIST_STEP, Y_STEP = map(BOX.index, ("planes", "rows", "plane_step", "y_plane", "list_step", "y_step"))


@helper
def _pool(begin, end, args):
    bands, tool, x, y, lists, shares, flags, vector = args
    g = pointer(vector, INT64)
    buffer = scratch(8 * JOB_SIZE)
    job = pointer(memory(buffer), INT64)
    for entry in range(JOB_SIZE):
        job[entry] = g[entry]
    if bands == 1:
        job[PLANES] = end - begin
        invoke(tool, x + begin * g[PLANE], lists, y + begin * g[Y_PLANE], shares, flags, memory(buffer))
    for item in range(begin, end if bands > 1 else begin):
        plane, band = item // bands, item % bands
        first = band * g[ROWS] // bands
        job[ROWS] = (band + 1) * g[ROWS] // bands - first
        target = y + (plane * g[Y_PLANE] + first * g[Y_STEP])
        invoke(tool, x + plane * g[PLANE], lists + first * g[LIST_STEP], target, shares, flags, memory(buffer))
    release(buffer)


@kernel
def pool(
    region: int, workers: int, items: int, bands: int, tool: int, x: Address, y: Address, lists: Address,
    shares: Address, flags: Address, g: Address,
) -> None:  # fmt: skip
    """y from x by the microkernel `boxes`, whose tables and job the others are: an item is one of so many bands of a plane."""
    parallel_for(region, workers, items, _pool, (bands, tool, x, y, lists, shares, flags, g))


# --- what is known of a problem ------------------------------------------------------------------------------------------------


class _Chunks(NamedTuple):
    """How rows of results are parted.

    Attributes
    ----------
    results, vectors : int
        Vectors of results of a chunk, and of x that it reads.
    total : int
        Chunks of a row.
    packed : int
        Rows that are taken together: their results fit into a vector.
    """

    results: int
    vectors: int
    total: int
    packed: int


def _places(problem: PoolProblem) -> tuple[int, ...]:
    return tuple(problem.dilation[-1] * tap for tap in range(problem.window[-1]))


def _chunks(problem: PoolProblem) -> _Chunks:
    """A row that its vectors of x fit into registers is one chunk."""
    lanes, stride = lanes_of(problem.acc_dtype), problem.stride[-1]
    read = functools.partial(vectors_read, lanes, stride, _places(problem))
    whole = -(-problem.output[-1] // lanes)
    vectors = min(read(whole), -(-(problem.spatial[-1] + problem.padding[-1][0]) // lanes))
    if vectors <= MOST_VECTORS:
        packed = min(lanes // problem.output[-1], math.prod(problem.output[:-1]), max(MOST_PACKED // vectors, 1))
        return _Chunks(whole, vectors, 1, max(packed, 1))
    results = max((n for n in range(1, MOST_RESULTS + 1) if read(n) <= MOST_VECTORS), default=1)
    return _Chunks(results, read(results), -(-whole // results), 1)


def _inside(problem: PoolProblem, chunks: _Chunks) -> tuple[int, int]:
    """From which to which chunk all lanes exist; the only one has masks."""
    lanes, low = lanes_of(problem.acc_dtype), problem.padding[-1][0]
    step = chunks.results * lanes
    begin = -(-low // (problem.stride[-1] * step))
    reading = (problem.spatial[-1] + low - chunks.vectors * lanes) // (problem.stride[-1] * step) + 1
    end = max(min(problem.output[-1] // step, reading), 0)
    return (begin, end) if begin < end and chunks.total > 1 else (chunks.total, chunks.total)


def _flags(problem: PoolProblem, chunks: _Chunks) -> np.ndarray[Any, Any]:
    """Which lanes exist, for each chunk that is not inside the row the vectors of x, then those of results."""
    lanes, (begin, end) = lanes_of(problem.acc_dtype), _inside(problem, chunks)
    numbers = np.r_[:begin, end : chunks.total][:, None] * (chunks.results * lanes)
    read = problem.stride[-1] * numbers - problem.padding[-1][0] + np.arange(chunks.vectors * lanes)
    made = numbers + np.arange(chunks.results * lanes)
    there = np.concatenate([(read >= 0) & (read < problem.spatial[-1]), made < chunks.packed * problem.output[-1]], axis=1)
    return np.ascontiguousarray(flag_table(there.reshape(-1, lanes), problem.acc_dtype))


def _lists(problem: PoolProblem, scales: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """``[rows, 2 + taps]``: how many rows of x each row of results reads, its scale, their byte offsets in the plane."""
    outer = range(problem.ndim - 1)
    found, counts = rows_read([outer_axis(problem, axis, False).table for axis in outer], problem.spatial)
    lists = np.empty((len(found), 2 + found.shape[1]), np.int64)
    lists[:, 0] = counts
    lists[:, 1] = functools.reduce(np.multiply.outer, scales, np.ones(1)).ravel().view(np.int64)
    lists[:, 2:] = found * (problem.spatial[-1] * np_dtype(problem.dtype).itemsize)
    return lists


def _image_bytes(problem: PoolProblem) -> int:
    """Of copies of x and y of an image; 0 where there is no memory for them."""
    size = problem.c * (math.prod(problem.spatial) + math.prod(problem.output)) * np_dtype(problem.dtype).itemsize
    return size if MAX_THREADS * JOB_BYTES + size <= problem.max_workspace else 0


def _list_bytes(problem: PoolProblem) -> int:
    return 8 * math.prod(problem.output[:-1]) * (2 + math.prod(problem.window[:-1]))


class _Executor:
    """The microkernel and its tables.

    Arrays that do not fill their memory in row-major order are copied, an image at a time; one too large for that goes to `Pool`.
    """

    def __init__(self, problem: PoolProblem):
        self._problem, chunks, acc = problem, _chunks(problem), problem.acc_dtype
        item, lanes, stride, low = np_dtype(problem.dtype).itemsize, lanes_of(acc), problem.stride[-1], problem.padding[-1][0]
        *scales, last = (1 / counts for counts in axis_counts(problem))
        scaled = any(scale.size and (scale != scale[0]).any() for scale in scales)
        if not scaled:
            last = last * math.prod(scale[0] for scale in scales)
        shares = np.zeros(chunks.total * chunks.results * lanes, acc)
        shares[: chunks.packed * last.size] = np.tile(last, chunks.packed)
        lists, rows, planes = _lists(problem, scales), math.prod(problem.output[:-1]), problem.n * problem.c
        x_plane, y_plane = math.prod(problem.spatial) * item, math.prod(problem.output) * item
        short = x_plane <= FETCHED
        fetched = -(-x_plane // LINE) * short, -(-chunks.packed * x_plane // (LINE * rows)) * (not short)
        job = [
            1, rows, x_plane, y_plane, lists.strides[0], problem.output[-1] * item, -low * item,
            stride * chunks.results * lanes * item, *_inside(problem, chunks), chunks.total,
            *fetched, x_plane // max(rows, 1),
        ]  # fmt: skip
        self._tables = lists, shares, _flags(problem, chunks), np.array(job, np.int64)
        shape = BoxShape(
            lanes, stride, _places(problem), math.prod(problem.window[:-1]), chunks.vectors, chunks.results, chunks.packed,
            problem.output[-1] if chunks.packed > 1 else 0, chunks.total == 1, scaled,
        )  # fmt: skip
        tool = boxes.address(tuple(shape), (problem.dtype, acc))
        bands = min(-(-ITEMS // max(planes, 1)), rows // chunks.packed)
        work = WORK_CYCLE * _cycles(problem) + WORK_BYTE * problem.bytes
        self._run = functools.partial(run, pool.specialise(), planes * bands, work, bands, tool)

    @functools.cached_property
    def _image(self) -> Any:
        one = self._problem.replace(n=1)
        return _Executor(one) if _image_bytes(one) else Pool().build(one)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        if fill_memory((*outs, *ins)):
            if self._problem.n:
                self._run(*ins, *outs, *self._tables)
            return
        for n in range(self._problem.n):
            x, y = ins[0][n : n + 1], outs[0][n : n + 1]
            if _image_bytes(self._problem):
                result = np.empty(y.shape, y.dtype)
                self._image((result,), (np.ascontiguousarray(x),))
                y[...] = result
            else:
                self._image((y,), (x,))


def _cycles(problem: PoolProblem) -> float:
    """Of one thread: of each row its start, the vectors of x that are summed, and for each result the taps and the store."""
    chunks, stride = _chunks(problem), problem.stride[-1]
    spread = min(stride + 1, chunks.vectors * chunks.packed)  # vectors from which a tap takes its elements
    columns = chunks.packed * (1 + 0.6 * chunks.vectors * math.prod(problem.window[:-1]))
    along = chunks.results * (1 + 0.7 * problem.window[-1] * (1 + 0.5 * max(spread - 2, 0)))
    groups = problem.n * problem.c * math.prod(problem.output[:-1]) / chunks.packed
    return groups * (2 + chunks.total * (columns + along))


class BoxPool(Implementation):
    """Average pooling of real floats, along the outer axes first."""

    name = "box_pool"
    ops = frozenset(("avg_pool",))

    def supports(self, problem: PoolProblem) -> Verdict:
        """Channels first, one dtype of real floats, few taps along the rows, not at "strict": sums have another order."""
        if problem.layout == "channels_last":
            return Verdict.no("channels last: it takes rows along the last axis")
        if problem.dtype not in DTYPES or problem.out_dtype != problem.dtype:
            return Verdict.no(f"{problem.dtype} to {problem.out_dtype}: it takes and gives one dtype, of real floats")
        if problem.window[-1] > MOST_TAPS or _chunks(problem).vectors > MOST_READ:
            return Verdict.no(
                f"{problem.window[-1]} taps along the rows, {_chunks(problem).vectors} vectors of x for some of results: "
                f"it takes at most {MOST_TAPS} and {MOST_READ}"
            )
        if _list_bytes(problem) > MAX_LISTS:
            return Verdict.no(f"{_list_bytes(problem)} bytes of lists of rows: it takes at most {MAX_LISTS}")
        return averaged_in_vectors(problem)

    def cost(self, problem: PoolProblem) -> float:
        """The time to move the arrays, and of the rows."""
        return 2e-6 + problem.bytes / 1e11 + _cycles(problem) * CYCLE_SECONDS

    def workspace(self, problem: PoolProblem) -> int:
        """For each thread a job; copies of an image."""
        return MAX_THREADS * JOB_BYTES + _image_bytes(problem)

    def build(self, problem: PoolProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
