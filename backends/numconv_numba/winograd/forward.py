"""Winograd convolution with short kernels, for real floats: fewer multiplications, within the default error bound.

Tiles of m outputs along the last two dimensions (the last, if there is one only) are computed from m + r - 1 inputs with as
many multiplications a dimension: F(4x4, 3x3) needs a quarter of those of the definition, F(2x2, 5x5) a third. With a stride the
input and the kernel fall into phases, each of which is a convolution of stride 1 with a kernel of r taps or one less: they are
summed like input channels, so that 7x7 with stride 2 is F(3x3, 4x4) of four times the channels. More taps without a stride are
two halves, the second of x further on, which are summed in the same way: 7 taps are F(3, 4) and F(3, 3). A kernel with one tap less
is zero at infinity: that product is left out, so that 3x3 with stride 2 takes 9 x 9 for 4 x 4 outputs, not 10 x 10, and 7 taps 11
for 3. Further dimensions, and channels, are summed between the transforms. A work item takes a block of tiles: it packs the
input, split so that every element of all its tiles is a row of neighbours; transforms it, a vector of tiles at a time;
multiplies each element with the transformed weights on register tiles with the lanes over output channels; and transforms the
products back, a vector of channels at a time. Lavin and Gray, "Fast algorithms for convolutional neural networks" (CVPR 2016),
section 4.

An error in one input spreads over its tile, so that images with a sum that is not finite are computed again by `blocked`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from numconv.plugin import ConvProblem, Verdict
from numconv_numba.dense.base import DenseImplementation, ForwardExecutor, Weights
from numconv_numba.dense.blocked import Blocked, Shape, parts_for
from numconv_numba.dense.slab import Block, block_vector
from numconv_numba.entries import PIXELS
from numconv_numba.threads import MAX_THREADS, run, run_with, workers
from numconv_numba.tools import tools_for

from .kernels import IN_PANELS, ITEMS_OF_THREAD, KERNELS, SHARED, TRANSFORMED, UNPACKED, bind_weights, winograd_phases
from .layout import (
    BOUND_BYTES,
    CHANNELS_AT_ONCE,
    Layout,
    apart,
    areas_of,
    common_of,
    cost_of,
    layout_for,
    layout_here,
    lines_seconds,
    steps_of,
    ways_of,
    workspace_of,
)
from .tiles import MOST_TAPS, Tiles, inner_taps, is_halved, lead_axes, tiles_of
from .turned import TurnedForward, turned, turned_order

__all__ = ["Winograd", "WinogradExecutor", "accepts", "block_vector_of", "tools_of"]

LEAST_CHANNELS = 4
"""Of a group, phases and taps that are summed directly included: in one or two the window of an output may hold nothing beside a
full tile, and the transforms cost most."""
LEAST_TERMS = 8, 20
"""Of every window: of one tap in 4 channels, one sum in a million has an error of 1e-5, of 8 terms half of that. And where a phase
has two taps, or the kernel is halved, along two dimensions: of the four taps that meet a corner of x in 4 channels, as of one tap
in 16, one sum in a million has an error of 1e-5, of 20 terms and more half of that."""
LEAST_SHARE = 4
"""One in so many taps is left of every window there: of one in nine and sixteen the error was 1e-5 and 2e-5 with any channels."""
SHARED_BYTES = 1024 * 1024
"""Transformed weights of all threads that are worth waiting for each other, rather than that each transforms its own."""
FEW_THREADS = 4
"""Up to so many threads each transforms what it needs: two that shared were 10 to 19 % slower in layers of 14 and 56 pixels."""
UNEVEN = 1.1
"""How much longer than its equal share a thread may take for its blocks."""


def block_vector_of(problem: ConvProblem, layout: Layout) -> Any:
    """What kernels know of the blocks."""
    taps, shape = math.prod(problem.kernel[: lead_axes(problem)]), layout.shape
    inputs = layout.inputs(problem)
    numbers = layout.chunk, layout.kept, layout.places, taps, inputs.channels, *steps_of(problem, layout)
    return block_vector(layout.block, shape.width, shape.positions, *numbers, *layout.tiles.outputs, inputs.tile)


def tools_of(problem: ConvProblem, tiles: Tiles, shape: Shape, block: Block, *, reads: bool = False) -> Any:
    """The table of tools for tiles in blocks; `reads`: as for `tools_for`."""
    KERNELS.begin(problem.dtype, problem.acc_dtype)
    table = tools_for(
        problem.dtype, problem.acc_dtype, shape.lanes, phases=block.step[-1], out=problem.out_dtype, product_shape=shape[:2],
        transform_shape=tiles.transform, reads=reads,
    ).copy()  # fmt: skip
    _, table[PIXELS] = KERNELS.functions(problem.dtype, problem.acc_dtype)
    return table


class WinogradExecutor(ForwardExecutor):
    """One Winograd convolution."""

    def __init__(self, problem: ConvProblem):
        layout = layout_here(problem)
        tiles, shape, block = layout[:3]
        super().__init__(problem, block.pieces * problem.groups)
        self._layout = layout
        self._panels = -(-(problem.k // problem.groups) // shape.width)
        self._work = problem.flops / 8
        self._areas, self._shared_areas = areas_of(problem, layout), areas_of(problem, layout, weights=False)
        self._ways, self._common = ways_of(problem, layout), common_of(problem, layout)
        self._phases: dict[int, tuple[Any, int, int]] = {}
        self._block, self._apart = (block_vector_of(problem, each) for each in (layout, apart(layout)))
        self._tools = tools_of(problem, tiles, shape, block)
        self._kernel, _ = KERNELS.functions(problem.dtype, problem.acc_dtype)
        self._form = TRANSFORMED if self._common.weights <= BOUND_BYTES else IN_PANELS

    def packed(self, w: Any) -> Weights:
        """w transformed, or in panels if it would be too large."""
        panels, size = self._problem.groups * self._panels, self._common.weights // self._acc.itemsize
        if self._form == IN_PANELS:
            size = self._panels * self._problem.c * math.prod(self._problem.kernel) * self._layout.shape.width
        packed = np.empty(size, self._acc)
        vector = self._vectors((0,) * w.ndim, w.strides, (0,) * w.ndim)
        items = panels * -(-self._problem.c // self._problem.groups // CHANNELS_AT_ONCE)
        run(bind_weights.specialise(self._acc.name), items, packed.size, self._tools, self._form, w, packed, vector, self._block)
        return Weights(packed, w.strides, True)

    def launch(self, x: Any, w: Weights, shift: Any, y: Any, status: Any, vector: Any) -> None:
        """Run `winograd`, or `winograd_phases` where threads could not share the blocks evenly."""
        count, form = workers(MAX_THREADS, self._work), self._form if w.packed else UNPACKED
        arrays, many = (x, w.array, shift, y, status, vector), count > FEW_THREADS
        if many and self._ways.phases and form != IN_PANELS and -(-self._items // count) * count > UNEVEN * self._items:
            vector, most, common = self._phases.get(count) or self._phases.setdefault(count, self._shares(count))
            compiled = winograd_phases.specialise(self._acc.name)
            run_with(self._ways.phases, compiled, most, self._work, self._tools, vector, form, *arrays, self._apart, common=common)
            return
        splits = parts_for(self._items, self._panels, self._work)
        wait = many and self._ways.shared and self._common.weights * count >= SHARED_BYTES
        if form == UNPACKED and (wait or self._layout.shared):
            form = SHARED
        run_with(
            self._areas if form in (UNPACKED, IN_PANELS) else self._shared_areas, self._kernel, self._items * splits, self._work,
            self._tools, splits, form, *arrays, self._block, common=self._common.weights if form == SHARED else 0,
        )  # fmt: skip

    def _shares(self, count: int) -> tuple[Any, int, int]:
        """For so many threads: how they share the phases, how many have work at most, and the bytes that they have in common."""
        problem, layout, most = self._problem, self._layout, ITEMS_OF_THREAD * count
        unit = layout.shape.lanes if layout.deep or problem.layout == "channels_last" else LEAST_CHANNELS
        ranges = min(-(-(problem.c // problem.groups) // unit), -(-most // self._items))
        parts = min(layout.tiles.elements, -(-most // (self._items * self._panels)))
        weights, inputs, products = common_of(problem, apart(layout))
        numbers = weights, weights + inputs * self._items, ranges, unit, parts
        return np.array(numbers, np.int64), self._items * max(ranges, self._panels * parts), numbers[1] + products * self._items

    def again(self, y: Any, ins: Any, images: Any) -> None:
        """Compute images again with `Blocked`, since what is not finite has spread over its tile."""
        executor = Blocked().build(self._problem.replace(n=1))
        for n in images:
            executor((y[n : n + 1],), (ins[0][n : n + 1], *ins[1:]))


def _least_taps(problem: ConvProblem, axes: range) -> int:
    """What the windows that hold the most padding along some dimensions have left of their taps."""
    least = 1
    for axis in axes:
        step, kernel = problem.dilation[axis], problem.kernel[axis]
        beside = -(-max(*problem.padding[axis], 0) // step) if problem.pad_mode == "zeros" else 0
        size = -(-problem.spatial[axis] // step) if problem.pad_mode == "zeros" else kernel
        least *= max(1, min(kernel - beside, size))
    return int(least)


def _enough_terms(problem: ConvProblem, per_c: int, halved: bool) -> Verdict:
    """Whether no window is small beside the error of a tile."""
    terms, taps = per_c * _least_taps(problem, range(problem.ndim)), inner_taps(problem)
    parted = halved or 2 in taps
    least = LEAST_TERMS[parted and min(taps) > 1 and problem.ndim > 1]
    if terms < least:
        return Verdict.no(f"its error is relative to a whole tile, and it takes windows of {least} terms; some have {terms} here")
    left, inner = _least_taps(problem, range(lead_axes(problem), problem.ndim)), math.prod(problem.kernel[-2:])
    if parted and left * LEAST_SHARE < inner:
        return Verdict.no(f"its error is relative to a whole tile, and some windows have {left} of {inner} taps beside the padding")
    return Verdict.yes()


def accepts(problem: ConvProblem) -> Verdict:
    """Whether the dimensions have tiles as they are: few taps and dilation 1 along the last two; some channels."""
    taps = inner_taps(problem)
    if max(problem.dilation[-2:]) > 1:
        return Verdict.no(f"its tiles overlap at dilation 1, and this one is {problem.dilation}")
    if max(taps) > MOST_TAPS or max(taps) == 1:
        return Verdict.no(
            f"its transforms are for 2 to {MOST_TAPS} taps a phase along the last two dimensions, and a kernel of "
            f"{problem.kernel} with stride {problem.stride} has {max(taps)}"
        )
    beside = [max(pads) - (r - 1) for pads, r in zip(problem.padding[-2:], problem.kernel[-2:], strict=True)]
    if problem.pad_mode == "zeros" and max(beside) > 0:
        return Verdict.no(f"windows that hold nothing but padding {problem.padding} would get the rounding errors of their tile")
    tiles = tiles_of(problem)
    if not tiles:
        return Verdict.no(f"no tile has both {taps[0]} and {taps[-1]} taps a phase")
    per_c, lead = problem.c // problem.groups, _least_taps(problem, range(lead_axes(problem)))
    halved = any(is_halved(*each) for each in zip(problem.kernel[-2:], problem.stride[-2:], strict=True))
    if per_c * (1 if halved else math.prod(tiles[0].phases)) * lead < LEAST_CHANNELS:
        return Verdict.no(f"its error is relative to a whole tile, and {per_c} channels of a group may be small in one window")
    return _enough_terms(problem, per_c, halved)


class Winograd(DenseImplementation):
    """Winograd convolution of real floats with short kernels along two dimensions."""

    name = "winograd"
    levels = frozenset(("default", "fast"))
    measured_error: ClassVar[Mapping[str, float]] = {"float32": 4e-6, "float64": 8e-15}

    def accepts(self, problem: ConvProblem) -> Verdict:
        """See `accepts`; its dimensions may be in another order."""
        return accepts(turned(problem))

    def forward_cost(self, problem: ConvProblem) -> float:
        """See `cost_of`, and `lines_seconds` where the dimensions are in another order."""
        order, problem = turned_order(problem), turned(problem)
        layout = layout_for(problem)
        return cost_of(problem, layout) + (lines_seconds(problem, layout) if order else 0.0)

    def forward_workspace(self, problem: ConvProblem) -> int:
        """For each thread: packed and transformed input, products, results, transformed weights, tables."""
        problem = turned(problem)
        return max(workspace_of(problem), Blocked().forward_workspace(problem))

    def forward(self, problem: ConvProblem) -> WinogradExecutor | TurnedForward:
        """The executor."""
        order, executor = turned_order(problem), WinogradExecutor(turned(problem))
        return executor if order is None else TurnedForward(executor, order)
