"""Winograd's algorithm for kernels with a dilation along the last two dimensions: tiles of all phases of the dilation.

Outputs a dilation apart read the same inputs, and those between them others: each of these phases is a convolution without
dilation, of an image as many times smaller (see `dense.polyphase`). Phases of one size are one part: they are leading dimensions,
with a kernel of one tap, of views of x and y, so that nothing is copied. 33 pixels at a dilation of 6 are three phases of six
pixels and three of five. All parts are multiplied with the same transformed weights, which are made once.

What is not finite has spread over its tile, so that such images are computed again by `blocked`.
"""

from __future__ import annotations

import collections
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from numconv.plugin import ConvProblem, Verdict, np_dtype
from numconv_numba.activations import ACTIVATIONS
from numconv_numba.compiling.compiler import Address, Tag, kernel
from numconv_numba.dense.base import DenseImplementation, ForwardExecutor, Weights, fill
from numconv_numba.dense.blocked import Blocked, most_workers, parts_for, seconds
from numconv_numba.dense.polyphase import Piece, pieces_along
from numconv_numba.elements import INT64
from numconv_numba.geometry import conv_vectors
from numconv_numba.microkernels.emit import host
from numconv_numba.scalar import address, pointer
from numconv_numba.threads import Areas, common_area, parallel_for, run, run_with, threads

from .forward import Winograd, accepts, block_vector_of, tools_of
from .kernels import AREAS, SHARED, TRANSFORMED, multiply_blocks, share_weights
from .layout import (
    BLOCK_BYTES,
    BOUND_BYTES,
    CHANNELS_AT_ONCE,
    Layout,
    areas_of,
    common_of,
    cost_of,
    input_cycles,
    layout_with,
    shared_seconds,
    with_shared_weights,
)
from .tiles import Tiles, tiles_of
from .units import KERNELS

__all__ = ["DilatedWinograd"]

SMALL_OUTPUTS = 3
"""Of a tile, beside those that `tiles_of` has: phases of five and six pixels are two of them, with 5 x 5 products for 9 outputs."""
APART_READ, APART_WRITTEN = 1.0, 1.6
"""Where neighbours of a phase lie apart, along the last dimension: of reading its input, in what it takes where they do not, and
cycles of writing a result."""
STREAMED_RATE = 1e10
"""Bytes a second of transformed weights that no cache holds, for each block."""
KEPT = 64


def _split_axes(problem: ConvProblem) -> list[int]:
    """Those of the last two dimensions that have phases."""
    first = max(problem.ndim - 2, 0)
    return [axis for axis in range(first, problem.ndim) if problem.dilation[axis] > 1 < problem.kernel[axis]]


class _Part(NamedTuple):
    """Phases of one size; `problem` is None where no tap meets x."""

    problem: ConvProblem | None
    pieces: tuple[Piece, ...]

    def strides(self, strides: tuple[int, ...], dilation: Sequence[int]) -> tuple[int, ...]:
        """Those of x or y, as the problem has its dimensions."""
        split, own = [stride for piece, stride in zip(self.pieces, strides[2:], strict=True) if piece.split], []
        for piece, stride, d in zip(self.pieces, strides[2:], dilation, strict=True):
            own.append(stride * d if piece.split else stride)
        return (*strides[:2], *split, *own)

    def offset(self, strides: tuple[int, ...], of_x: bool) -> int:
        """Of the first position of the first phase, in bytes."""
        firsts = [piece.x_phase if of_x else piece.y_phase for piece in self.pieces]
        return sum(first * stride for first, stride in zip(firsts, strides[2:], strict=True))

    def results(self, y: Any, dilation: Sequence[int]) -> Any:
        """What the part has of y."""
        firsts = (slice(piece.y_phase, None) for piece in self.pieces)
        shape = *(piece.phases for piece in self.pieces if piece.split), *(piece.outputs[1] for piece in self.pieces)
        return as_strided(y[(..., *firsts)], (*y.shape[:2], *shape), self.strides(y.strides, dilation))


def _part_problem(problem: ConvProblem, pieces: tuple[Piece, ...]) -> ConvProblem | None:
    """The problem of a part: phases first, then the dimensions."""
    if any(piece.inputs[1] == 0 for piece in pieces):
        return None
    split = [piece for piece in pieces if piece.split]
    ones, lead = (1,) * len(split), max(problem.ndim - 2, 0)
    return problem.replace(
        spatial=(*(piece.phases for piece in split), *(piece.inputs[1] for piece in pieces)),
        kernel=(*ones, *problem.kernel),
        stride=(*ones, *problem.stride),
        padding=(*((0, 0) for _ in split), *(piece.padding for piece in pieces)),
        dilation=(*ones, *problem.dilation[:lead], *(1 for _ in pieces[lead:])),
    )


@functools.lru_cache(maxsize=256)
def _parts(problem: ConvProblem) -> tuple[_Part, ...]:
    """All parts, those of the largest phases first."""
    axes = _split_axes(problem)
    along = (pieces_along(problem, axis, axis in axes, False) for axis in range(problem.ndim))
    parts = [_Part(_part_problem(problem, pieces), pieces) for pieces in itertools.product(*along)]
    return tuple(sorted(parts, key=lambda part: -math.prod(part.problem.spatial) if part.problem else 0))


def _tiles(problem: ConvProblem) -> list[Tiles]:
    """The tiles that can be had for a part."""
    found = tiles_of(problem)
    small = (tiles._replace(outputs=tuple(min(m, SMALL_OUTPUTS) for m in tiles.outputs)) for tiles in found)
    return list(dict.fromkeys((*found, *small)))


class _Plan(NamedTuple):
    """How the parts are cut, all with the same tiles and panels: the layout of each problem, estimated seconds, and bytes."""

    layouts: Mapping[ConvProblem, Layout]
    seconds: float
    workspace: int


def _apart_seconds(problem: ConvProblem, layout: Layout) -> float:
    """Of elements of a row that lie apart, in x and in y."""
    read = problem.groups * input_cycles(problem, layout) * APART_READ
    return seconds(read + math.prod(problem.y_shape) * APART_WRITTEN, problem.flops / 8)


def _plan_with(problem: ConvProblem, tiles: Tiles, budget: int, deep: bool) -> _Plan:
    """The plan with these tiles."""
    counted = collections.Counter(part.problem for part in _parts(problem) if part.problem)
    layouts = {each: with_shared_weights(each, layout_with(each, tiles, budget, deep)) for each in counted}
    first, apart = next(iter(layouts)), _split_axes(problem)[-1] == problem.ndim - 1
    shape = layouts[first].shape
    layouts = {each: layout._replace(shape=shape) for each, layout in layouts.items()}
    once, weights = shared_seconds(first, layouts[first]), common_of(first, layouts[first]).weights
    total, areas = once, 0
    for each, layout in layouts.items():
        own = cost_of(each, layout) - shared_seconds(each, layout) + (_apart_seconds(each, layout) if apart else 0.0)
        own += weights / STREAMED_RATE * layout.block.pieces * (weights > BOUND_BYTES)
        total += counted[each] * own
        workers = most_workers(each, layout.block, shape.width)
        areas = max(areas, workers * areas_of(each, layout, weights=False).bytes)
    return _Plan(layouts, total, areas + weights)


@functools.lru_cache(maxsize=256)
def _plan(problem: ConvProblem) -> _Plan:
    """The plan with the least cost, of those that there is memory for."""
    first = next(part.problem for part in _parts(problem) if part.problem)
    plans = [
        _plan_with(problem, tiles, budget, deep) for tiles in _tiles(first) for budget in BLOCK_BYTES for deep in (False, True)
    ]
    ordered = sorted(plans, key=lambda plan: plan.seconds)
    return next((plan for plan in ordered if plan.workspace <= problem.max_workspace), ordered[-1])


# --- kernel --------------------------------------------------------------------------------------------------------------------

# Of a part: items, into how many ranges the panels of a block fall, bytes from x and y to its own, and its vectors.
ITEMS, SPLITS, AT_X, AT_Y, SIZES, CUTTING, FRAME = range(7)


@kernel
def winograd_parts(
    at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, tools: Address, parts: Address, count: int,
    form: int, x: Address, w: Address, bias: Address, y: Address, status: Address,
) -> None:  # fmt: skip
    """What `winograd` computes, for so many parts one after the other, with the same weights: TRANSFORMED, or SHARED.

    w lies as the vector of the first part says. `status` gets a 1 for each image of which a sum is not finite.
    """
    tables, offsets, frames = pointer(tools, INT64), pointer(areas, INT64), pointer(parts, INT64)
    u = w
    if form == SHARED:
        u = common_area(scratch, offsets, AREAS, workers)
        sizes, cutting = pointer(address(frames[SIZES]), INT64), pointer(address(frames[CUTTING]), INT64)
        share_weights(region, workers, TRANSFORMED, w, u, sizes, cutting, tables, at)
    for one in range(count):
        own = one * FRAME
        sizes, cutting = pointer(address(frames[own + SIZES]), INT64), pointer(address(frames[own + CUTTING]), INT64)
        shares, of_x, of_y = frames[own + ITEMS], x + frames[own + AT_X], y + frames[own + AT_Y]
        parallel_for(
            region, workers, shares, multiply_blocks,
            (
                at, shares, workers, scratch, offsets, tables, frames[own + SPLITS], TRANSFORMED, of_x, u, bias, of_y, status, sizes,
                cutting,
            ),
        )  # fmt: skip


# --- the implementation --------------------------------------------------------------------------------------------------------


class _Frames:
    """What `winograd_parts` knows of each part, for arrays of some strides and a number of threads; those seen before are kept."""

    def __init__(self, problem: ConvProblem, parts: Sequence[_Part], plan: _Plan):
        self._problem, self._parts, self._layouts = problem, parts, plan.layouts
        option = ACTIVATIONS[problem.activation]
        self._vectors = {each: conv_vectors(each, option) for each in plan.layouts}
        self._blocks = {each: block_vector_of(each, layout) for each, layout in plan.layouts.items()}
        self._made: dict[tuple[Any, ...], tuple[Any, list[Any]]] = {}

    def __call__(self, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> tuple[Any, list[Any]]:
        """The frames, and the vectors to which they point."""
        key = x, w, y, threads()
        found = self._made.get(key)
        if found is None:
            rows, vectors, dilation = [], [], self._problem.dilation
            lead = (0,) * len(_split_axes(self._problem))
            for part in self._parts:
                each, layout = part.problem, self._layouts[part.problem]
                vector = self._vectors[each](part.strides(x, dilation), (*w[:2], *lead, *w[2:]), part.strides(y, dilation))
                items, panels = layout.block.pieces * each.groups, -(-(each.k // each.groups) // layout.shape.width)
                splits = parts_for(items, panels, each.flops / 8)
                addresses = vector.ctypes.data, self._blocks[each].ctypes.data
                rows.append([items * splits, splits, part.offset(x, True), part.offset(y, False), *addresses])
                vectors.append(vector)
            found = np.array(rows, np.int64), vectors
            if len(self._made) < KEPT:
                self._made[key] = found
        return found


class _Executor(ForwardExecutor):
    """One convolution with a dilation."""

    def __init__(self, problem: ConvProblem):
        plan, parts = _plan(problem), _parts(problem)
        super().__init__(problem, math.prod(problem.y_shape))
        self._empty = [part for part in parts if part.problem is None]
        some = [part for part in parts if part.problem]
        first, layout = next(iter(plan.layouts.items()))
        self._first, self._layout = first, layout
        self._vectors = _Frames(problem, some, plan)
        every = [areas_of(each, one, weights=False) for each, one in plan.layouts.items()]
        self._areas = Areas(*np.max([np.diff(areas.offsets) for areas in every], axis=0))
        self._common = common_of(first, layout).weights
        self._work = problem.flops / 8
        self._tools = tools_of(first, layout.tiles, layout.shape, layout.block)
        _, self._bind_kernel, *_ = KERNELS.functions(problem.dtype, problem.acc_dtype)

    def packed(self, w: Any) -> Weights:
        """w transformed."""
        packed = np.empty(self._common // self._acc.itemsize, self._acc)
        lead, spatial = (0,) * len(_split_axes(self._problem)), (0,) * (self._first.ndim + 2)
        vector = conv_vectors(self._first, 0)(spatial, (*w.strides[:2], *lead, *w.strides[2:]), spatial)
        panels = -(-self._first.k // self._first.groups // self._layout.shape.width) * self._first.groups
        items = panels * -(-self._first.c // self._first.groups // CHANNELS_AT_ONCE)
        block = block_vector_of(self._first, self._layout)
        run(self._bind_kernel, items, packed.size, self._tools, TRANSFORMED, w, packed, vector, block)
        return Weights(packed, w.strides, True)

    def launch(self, x: Any, w: Weights, shift: Any, y: Any, status: Any, vector: Any) -> None:
        """Run `winograd_parts`, and fill what no tap sees."""
        frames, _ = vector
        run_with(
            self._areas, winograd_parts.specialise(self._acc.name), int(frames[:, ITEMS].max()), self._work, self._tools, frames,
            len(frames), TRANSFORMED if w.packed else SHARED, x, w.array, shift, y, status, common=0 if w.packed else self._common,
        )  # fmt: skip
        for part in self._empty:
            view = part.results(y, self._problem.dilation)
            fill(view, () if isinstance(shift, int) else (shift,), self._problem.activation)

    def again(self, y: Any, ins: Any, images: Any) -> None:
        """Compute images again with `Blocked`, since what is not finite has spread over its tile."""
        executor = Blocked().build(self._problem.replace(n=1))
        for n in images:
            executor((y[n : n + 1],), (ins[0][n : n + 1], *ins[1:]))


class DilatedWinograd(DenseImplementation):
    """Winograd convolution with a dilation along the last two dimensions."""

    name = "dilated_winograd"
    levels = Winograd.levels
    measured_error: ClassVar[Mapping[str, float]] = Winograd.measured_error

    def accepts(self, problem: ConvProblem) -> Verdict:
        """A dilation without a stride there and padding of zeros, whose phases are what `winograd` takes."""
        axes = _split_axes(problem)
        if not axes or max(problem.stride[axis] for axis in axes) > 1:
            return Verdict.no(
                "it computes the phases of a dilation along the last two dimensions, without a stride there, and here are dilation "
                f"{problem.dilation} and stride {problem.stride} of a kernel of {problem.kernel}"
            )
        if problem.pad_mode != "zeros":
            return Verdict.no(f"a phase does not hold what pad_mode {problem.pad_mode} puts beside it")
        if min(map(min, problem.padding)) < 0:
            return Verdict.no(f"the windows of a phase begin in x or in its padding, and here is padding {problem.padding}")
        problems = dict.fromkeys(part.problem for part in _parts(problem) if part.problem)
        if not problems:
            return Verdict.no(f"no window meets x beside the padding {problem.padding}")
        return next((verdict for verdict in map(accepts, problems) if not verdict), Verdict.yes())

    def forward_cost(self, problem: ConvProblem) -> float:
        """Of all parts, whose weights are transformed once."""
        return _plan(problem).seconds

    def forward_workspace(self, problem: ConvProblem) -> int:
        """For each thread that of the part that needs most; transformed weights; or what `Blocked` needs."""
        return max(_plan(problem).workspace, Blocked().forward_workspace(problem))

    def forward(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
