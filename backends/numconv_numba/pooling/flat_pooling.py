"""Max pooling and the gradient of average pooling in two steps: along the outer axes, then along one row of many planes.

What the windows hold of each column is reduced first, into the first-level cache. There the rows of some planes lie one behind the
other, so far apart that windows begin at equal steps throughout: for the second step they are one row, however short each is. What
a window reads beyond its own row is padding of the next. The gradient of averages takes the same steps backwards. Where places are
asked for, the columns have places beside their largest elements.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from numconv.plugin import Implementation, PoolProblem, Verdict, np_dtype
from numconv_numba.compiling.compiler import Address, Tag, helper, invoke, kernel
from numconv_numba.elements import INT64, itemsize, memory, release, scratch
from numconv_numba.microkernels.emit import host, lanes_of
from numconv_numba.microkernels.stacks import STACK, stacks
from numconv_numba.microkernels.windows import JOB
from numconv_numba.scalar import pointer
from numconv_numba.sliding import Inner, phases_of
from numconv_numba.threads import MAX_THREADS, parallel_for, run

from .averages import axis_counts
from .pool import Pool
from .vector_pooling import STEP_SECONDS, averaged_in_vectors, pooled_in_vectors, vector_seconds
from .wide_pooling import in_dtype
from .window_rows import fill, fill_memory

__all__ = ["Blocks", "FlatPool", "blocks_of"]

MOST = 1 << 17
"""Bytes of a block between the steps, at most."""
MAX_STRIDE = 8
"""Along a row: of that many vectors results are picked, or woven into them."""
MOST_TAPS = 12
"""Along the outer axes: the place of each has a register."""
ITEMS = 8
"""Work items at least, where there are blocks enough."""
STACK_SECONDS = 1e-10
"""Of a vector of a tap along the outer axes, on two threads."""
FAR, LARGE = 4e10, 1 << 24
"""Bytes a second more that gradients take which leave the caches, and how large these are: copies of rows wait for their lines."""
JOB_SIZE = len(JOB)

# The driver's vector: blocks, and how many are taken together; bytes of one in x, in y, and between the steps; bytes before the
# first row there; which entry of the first job counts blocks; results and sources of a block in the second; where the lists and the
# taps of the second job begin, and how long the first is, which follows; the bytes of a block's places, and of an item between the
# steps; positions of a block and of a channel; then both jobs, the lists and the taps.
(
    BLOCKS, TOGETHER, X, Y, BETWEEN, LOW, COUNTED, LAST, SIZE, LISTS, TAPS, STACKED, PLACES, KEPT, POSITIONS, VOLUME, HEAD,
) = range(17)  # fmt: skip
POSITION = STACK.index("position")


@helper
def _pool(begin, end, args):
    dtype, back, start, stack, slide, x, y, beside, vector = args
    g = pointer(vector, INT64)
    buffer = scratch(8 * (g[STACKED] + JOB_SIZE) + g[KEPT])
    area = memory(buffer)
    stacked, sliding = pointer(area, INT64), pointer(area + 8 * g[STACKED], INT64)
    between = area + 8 * (g[STACKED] + JOB_SIZE)
    for entry in range(g[STACKED] + JOB_SIZE):
        stacked[entry] = g[HEAD + entry]
    fill(between, g[TOGETHER] * g[BETWEEN] // itemsize(dtype), in_dtype(start, dtype), dtype)
    rows, lists, taps, job = between + g[LOW], vector + 8 * g[LISTS], vector + 8 * g[TAPS], area + 8 * g[STACKED]
    for item in range(begin, end):
        before = item * g[TOGETHER]
        blocks = min(g[TOGETHER], g[BLOCKS] - before)
        stacked[g[COUNTED]], sliding[5], sliding[6] = blocks, blocks * g[LAST], blocks * g[SIZE]
        stacked[POSITION] = before * g[POSITIONS] % g[VOLUME]
        if back:
            invoke(slide, y + before * g[Y], lists, between, beside, job, taps)
            invoke(stack, rows, x + before * g[X], area)
        else:
            invoke(stack, x + before * g[X], rows, area)
            invoke(slide, between, lists, y + before * g[Y], beside + before * g[PLACES], job, taps)
    release(buffer)


@kernel
def pool(
    dtype: Tag, region: int, workers: int, items: int, back: int, start: float, stack: int, slide: int, x: Address, y: Address,
    beside: Address, g: Address,
) -> None:  # fmt: skip
    """y from x by the microkernels `stacks` and `windows`, or x from y if `back`: an item is some blocks.

    `start` is what the padding holds, `beside` are the shares or the places, the `extra` of `windows`.
    """
    parallel_for(region, workers, items, _pool, (dtype, back, start, stack, slide, x, y, beside, g))


# --- what is known of a problem ------------------------------------------------------------------------------------------------


class Blocks(NamedTuple):
    """How a problem is parted, in blocks that lie one behind the other in x and in y.

    Attributes
    ----------
    total : int
        Of all images.
    rows : int
        Of windows in a block.
    volume, step : int
        Positions of x of a block, and from row to row.
    pitch : int
        Positions from row to row between the steps.
    taps : tuple of int
        How many positions each outer tap lies behind its row.
    """

    total: int
    rows: int
    volume: int
    step: int
    pitch: int
    taps: tuple[int, ...]


def blocks_of(problem: PoolProblem) -> Blocks:
    """The windows along the last of the outer axes, or one row of them where nothing lies between one and the next."""
    height, width = problem.spatial[-2:]
    *strides, stride, _ = problem.stride
    steps = [dilation * math.prod(problem.spatial[axis + 1 :]) for axis, dilation in enumerate(problem.dilation[:-1])]
    total, rows = problem.n * problem.c * math.prod(problem.output[:-2]), problem.output[-2]
    volume, step = math.prod(strides) * height * width, stride * width
    if math.prod(strides) == 1 and height == rows * stride:
        total, rows, volume = total * rows, 1, step
    taps = tuple(
        sum(index * each for index, each in zip(tap, steps, strict=True))
        for tap in itertools.product(*map(range, problem.window[:-1]))
    )
    return Blocks(total, rows, volume, step, problem.stride[-1] * problem.output[-1], taps)


def _stackable(problem: PoolProblem) -> Verdict:
    """Whether windows lie at equal steps along the outer axes, all inside; and for the gradient whether each row lies in one."""
    back = problem.op.endswith("_backward")
    for axis in range(problem.ndim - 1):
        size, window, stride, output = (each[axis] for each in (problem.spatial, problem.window, problem.stride, problem.output))
        inside = problem.padding[axis][0] == 0 and (output - 1) * stride + problem.dilation[axis] * (window - 1) < size
        filled = size == output * stride and (not back or (window == stride and problem.dilation[axis] == 1))
        if not inside or (not filled and (back or axis < problem.ndim - 2)):
            return Verdict.no(f"windows along axis {axis} that reach into padding, overlap, or leave something between them")
    if math.prod(problem.window[:-1]) > MOST_TAPS:
        return Verdict.no(f"{math.prod(problem.window[:-1])} taps along the outer axes: it takes at most {MOST_TAPS}")
    return Verdict.yes()


def _in_one_row(problem: PoolProblem) -> Verdict:
    """Whether what windows read beyond their own row is padding of the next."""
    pitch, (low, _), size = problem.stride[-1] * problem.output[-1], problem.padding[-1], problem.spatial[-1]
    beyond = problem.dilation[-1] * (problem.window[-1] - 1) + 1 - problem.stride[-1]
    if problem.indices and (low > 0 or beyond > 0 or pitch + beyond > size):
        return Verdict.no("indices, and windows that overlap along a row, or reach into its padding")
    if beyond > low or (size + low > pitch and (beyond > 0 or problem.op.endswith("_backward"))):
        return Verdict.no(f"rows of {size}, padded by {low}, of windows that reach {beyond} elements beyond {pitch}")
    return Verdict.yes()


def _between(problem: PoolProblem) -> int:
    """Bytes of a block between the steps, without places."""
    blocks = blocks_of(problem)
    return blocks.rows * blocks.pitch * np_dtype(problem.dtype).itemsize


def _kept(problem: PoolProblem) -> int:
    """Bytes of an item between the steps: a vector more is written behind its last row, and behind the places of that."""
    return (_together(problem) * _between(problem) + host().width) * (1 + problem.indices)


def _together(problem: PoolProblem) -> int:
    """The blocks of an item: few, so that what is fetched ahead for the first step of the next arrives during the second."""
    most = host().first_level // 6 // _between(problem)
    return max(1, min(most, -(-blocks_of(problem).total // ITEMS)))


def _sliding(problem: PoolProblem, share: np.ndarray[Any, Any]) -> tuple[str, Inner, np.ndarray[Any, Any]]:
    """The kind of the step along the one row, its taps, and its lists; `share`: one over the count of each window of a row."""
    stride = problem.stride[-1]
    taps = tuple((tap, problem.dilation[-1] * tap) for tap in range(problem.window[-1]))
    lists = np.array([[1, 0, 0], [0, 0, 0]], np.int64)
    ones = lists.view(np.float64)
    ones[0, 1] = ones[1, 2] = 1.0
    if not problem.op.endswith("_backward"):
        lists[1, 1] = _kept(problem) // 2 if problem.indices else 0
        return "columns" if problem.indices else "max", Inner(0, 0, stride, (taps,)), lists
    kind = "weighted"
    if (share == share[0]).all():
        kind, ones[1, 2] = "share", share[0]
    return kind, Inner(0, 0, 1, phases_of(taps, stride)), lists


class _Executor:
    """The steps, and the general implementation for arrays that do not fill their memory in row-major order."""

    def __init__(self, problem: PoolProblem):
        self._problem, blocks, together, volume = problem, blocks_of(problem), _together(problem), math.prod(problem.spatial)
        back = problem.op == "avg_pool_backward"
        item, results = np_dtype(problem.dtype).itemsize, blocks.rows * problem.output[-1]
        used = min(problem.spatial[-1], blocks.pitch - problem.padding[-1][0])
        inside, outside = (blocks.volume, blocks.step), (blocks.rows * blocks.pitch, blocks.pitch)
        source, target = (outside, inside) if back else (inside, outside)
        steps = source[0], target[0], blocks.rows, source[1], target[1]
        counted = STACK.index("rows" if blocks.rows == 1 else "blocks")
        if blocks.rows == 1:
            steps = 0, 0, 1, source[0], target[0]
        apart = [step if number == 2 else step * item for number, step in enumerate(steps)]
        stacked = [1, *apart, used, _kept(problem) // 2, 0, volume, *(tap * item for tap in blocks.taps)]
        share = np.ones(1)
        if back:
            *outer, last = axis_counts(problem)
            share = 1 / (last * math.prod(count[0] for count in outer))
        sliding, inner, lists = _sliding(problem, share)
        begin = HEAD + len(stacked) + JOB_SIZE
        ends = (blocks.rows * blocks.pitch, results) if back else (results, blocks.rows * blocks.pitch)
        head = [
            blocks.total, together, blocks.volume * item, results * item, _between(problem), problem.padding[-1][0] * item,
            counted, *ends, begin, begin + lists.size, len(stacked), 8 * results * problem.indices, _kept(problem), blocks.volume,
            volume, *stacked, 1, *[0] * (JOB_SIZE - 1),
        ]  # fmt: skip
        self._vector = np.concatenate([np.array(head, np.int64), lists.ravel(), inner.table()])
        self._shares = np.tile(share, together * blocks.rows if back else 1).astype(problem.dtype)
        kind = "copy" if back else "argmax" if problem.indices else "max"
        stack = stacks.address((kind, lanes_of(problem.dtype), len(blocks.taps)), problem.dtype)
        fixed = -(-blocks.total // together), 1.5 * problem.bytes, int(back), 0.0 if back else -math.inf, stack
        self._run = functools.partial(run, pool.specialise(problem.dtype), *fixed, inner.tool(sliding, problem.dtype))

    @functools.cached_property
    def _general(self) -> Any:
        return Pool().build(self._problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        x, y = (outs[0], ins[0]) if self._problem.op.endswith("_backward") else (ins[0], outs[0])
        beside = outs[1] if self._problem.indices else self._shares
        if not fill_memory((x, y, beside)):
            self._general(outs, ins)
        elif self._problem.n:
            self._run(x, y, beside, self._vector)


class FlatPool(Implementation):
    """Max pooling of real floats, first along the outer axes, then along one row of many planes; and the gradient of averages."""

    name = "flat_pool"
    ops = frozenset(("max_pool", "avg_pool_backward"))

    def supports(self, problem: PoolProblem) -> Verdict:
        """Channels first; windows inside x along the outer axes, near each other along the last; for indices, side by side in x."""
        if problem.layout == "channels_last" or problem.ndim == 1:
            return Verdict.no("it takes two dimensions or three, channels first")
        if problem.stride[-1] > MAX_STRIDE:
            return Verdict.no(f"stride {problem.stride[-1]} along the last axis: it takes at most {MAX_STRIDE}")
        regular = _stackable(problem) and _in_one_row(problem)
        if regular and _between(problem) > MOST:
            return Verdict.no(f"blocks of {_between(problem)} bytes between the steps: it takes at most {MOST}")
        return regular and pooled_in_vectors(problem) and averaged_in_vectors(problem)

    def cost(self, problem: PoolProblem) -> float:
        """The time to move the arrays, and of both steps."""
        lanes, rows = lanes_of(problem.dtype), problem.n * problem.c * math.prod(problem.output[:-1])
        back, places, window = problem.op.endswith("_backward"), int(problem.indices), problem.window[-1]
        stacked = rows * -(-problem.spatial[-1] // lanes) * math.prod(problem.window[:-1])
        vectors = -(-rows * problem.output[-1] // lanes)
        picked = vectors * window * max(problem.stride[-1] - 2, 0) * (1 + places) * STEP_SECONDS
        slid = vector_seconds(problem, vectors, 0, window) + picked
        written = np_dtype(problem.dtype).itemsize * math.prod(problem.x_shape)
        leaving = written / FAR if back and written >= LARGE else 0.0
        # gradients are stored, not loaded; places are kept beside the largest
        return 3e-6 + problem.bytes / 1e11 + stacked * STACK_SECONDS * (1 + back + places) + slid + leaving

    def workspace(self, problem: PoolProblem) -> int:
        """For each thread what lies between the steps, and the jobs."""
        return MAX_THREADS * (_kept(problem) + 8 * (JOB_SIZE + len(STACK) + MOST_TAPS))

    def build(self, problem: PoolProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
