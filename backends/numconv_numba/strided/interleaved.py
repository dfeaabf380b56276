"""Input gradients with a stride, so also transposed convolutions, by Winograd's algorithm for all phases of the stride together.

Positions of x with the same remainder by the stride are read by the same taps: each such phase is a convolution of the gradient of
y with a kernel of few taps, or of one tap less. A work item packs and transforms what a block reads of the gradient of y once,
multiplies it with the transformed taps of each phase, and puts the results of those along a row side by side as they are
transformed back, so that lines of x are written once, whole. A phase with one tap less is zero at infinity: that product is left
out, so that 3x3 with stride 2 takes 9 x 9 products for 8 x 8 elements, where the definition takes 12 x 12. It is the transpose of
what `winograd` does with a stride. Lavin and Gray, "Fast algorithms for convolutional neural networks" (CVPR 2016), section 4; Shi
et al., "Is the deconvolution layer the same as a convolutional layer?" (2016), on the phases as channels.

Positions behind the last window are no part of it: they get the bias. Images with a sum that is not finite are computed again by
`subpixel`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Implementation, Verdict, np_dtype
from numconv_numba.activations import ACTIVATIONS
from numconv_numba.dense.base import ForwardExecutor, Weights, fill
from numconv_numba.dense.blocked import CALL_SECONDS, divided, panel_shape, parts_for, seconds, tile_cycles
from numconv_numba.dense.slab import WRITE_CYCLES, Block, block_vector
from numconv_numba.geometry import conv_vectors
from numconv_numba.microkernels.emit import host
from numconv_numba.threads import MAX_THREADS, Areas, run_with
from numconv_numba.winograd.forward import LEAST_TERMS, Winograd, accepts, tools_of
from numconv_numba.winograd.kernels import SHARED, TRANSFORMED, UNPACKED
from numconv_numba.winograd.layout import (
    BLOCK_BYTES,
    BOUND_BYTES,
    CHANNELS_AT_ONCE,
    FEW_TILES,
    OTHERS_CYCLES,
    RESULT_BYTES,
    STREAMED_CYCLES,
    WEIGHT_BYTES,
    Layout,
    input_cycles,
    steps_of,
)
from numconv_numba.winograd.tiles import MOST_TAPS, Tiles, cut_tiles, direct_terms, input_places, lead_axes, spread, tiles_of

from .aligned import Aligned, AlignedPhase, aligned, least_taps, read_part
from .interleaved_kernels import KERNELS
from .subpixel import Subpixel, follow_each_other, parted_address
from .writing import axes_entries

__all__ = ["Interleaved"]

PACKED_CYCLES, WEIGHT_CYCLES = 0.4, 2.0
"""Of packing a weight, and of a vector of an element of a transformed kernel."""


class _Layout(NamedTuple):
    """How an input_grad is cut: its phases, and how the forward problems from y to its places are."""

    phases: Aligned
    cutting: Layout

    @property
    def window(self) -> ConvProblem:
        """The first of the forward problems: others differ in their padding."""
        return self.phases.windows[0]

    @property
    def panels(self) -> int:
        """Panels of a group."""
        return -(-(self.window.k // self.window.groups) // self.cutting.shape.width)


def _elements(tiles: Tiles, phase: AlignedPhase) -> int:
    """Of a transformed tile of a phase: those at infinity, that it lacks, are none."""
    taps = ([1] * (2 - len(phase.taps[-2:]))) + list(phase.taps[-2:])
    return math.prod(m + r - 1 for m, r in zip(tiles.outputs, taps, strict=True))


def _cut(problem: ConvProblem, phases: Aligned, tiles: Tiles, budget: int, deep: bool) -> Layout:
    """The layout of a window with these tiles, whose transformed input and products of a phase stay in so many bytes."""
    window, inner = phases.windows[0], problem.stride[-1]
    item, per_c, per_k = np_dtype(window.acc_dtype).itemsize, window.c // window.groups, window.k // window.groups
    width = panel_shape(window.acc_dtype, per_k, 1 << 20).width * item
    units = -(-per_k * item // width) * math.prod(problem.stride[:-1])

    def fits(block: Block) -> bool:
        places = len(phases.windows) * input_places(window, tiles, block, per_c, deep)
        small = tiles.elements * (places * item + block.tiles * width) <= budget and block.pixels * inner * width <= RESULT_BYTES
        return small and (units > 1 or block.tiles <= FEW_TILES or divided(window, block, width))

    block = cut_tiles(window, tiles, fits)
    shape = panel_shape(window.acc_dtype, per_k, block.tiles)
    each = tiles.elements * direct_terms(window, tiles) * shape.width * item
    chunk = min(per_c, max(1, WEIGHT_BYTES // 2 // each // CHANNELS_AT_ONCE) * CHANNELS_AT_ONCE)
    return Layout(tiles, shape, block, chunk, False, deep)


def _phase_bytes(layout: _Layout) -> list[int]:
    """Transformed weights of a panel, of each phase."""
    window, (tiles, shape, *_) = layout.window, layout.cutting
    item, per_c, line = np_dtype(window.acc_dtype).itemsize, window.c // window.groups, 64 // np_dtype(window.acc_dtype).itemsize
    return [
        tiles.elements * spread(per_c * len(layout.phases.leads[phase.lead]) * shape.width, line) * item
        for phase in layout.phases.phases
    ]


def _weight_bytes(layout: _Layout) -> int:
    """All transformed weights."""
    return layout.window.groups * layout.panels * sum(_phase_bytes(layout))


def _cost(problem: ConvProblem, layout: _Layout) -> float:
    """Cycles of the products and of the transforms, counted in vectors; see `winograd.layout.cost_of`."""
    window, (tiles, shape, block, *_) = layout.window, layout.cutting
    per_c, panels, pieces = window.c // window.groups, layout.panels, block.pieces * window.groups
    phases, passes = layout.phases.phases, -(-per_c // layout.cutting.chunk)
    multiplied = [_elements(tiles, phase) * len(layout.phases.leads[phase.lead]) for phase in phases]
    cycles = sum(multiplied) * per_c * tile_cycles(shape.vectors, shape.positions) + len(phases) * tiles.elements * passes * 60
    products = pieces * panels * -(-block.tiles // shape.positions) * cycles
    odd, units = pieces % 2 / max(pieces, 1), panels * math.prod(problem.stride[:-1])
    uneven = 1 + odd * (units % 2 / units)
    inputs = (1 + odd) * window.groups * len(layout.phases.windows) * input_cycles(window, layout.cutting)
    output = (tiles.elements * 1.4 + math.prod(tiles.outputs) * 1.7) * host().moving
    outputs = pieces * panels * shape.vectors * block.tiles * len(phases) * output
    vectors = panels * shape.vectors * per_c * sum(multiplied) * host().moving
    weights = panels * shape.width * per_c * math.prod(problem.kernel) * PACKED_CYCLES + vectors * WEIGHT_CYCLES
    if layout.cutting.shared:
        weights = window.groups * weights + vectors * (window.groups * OTHERS_CYCLES + pieces * STREAMED_CYCLES)
    else:
        weights *= pieces
    results = math.prod(problem.x_shape) * WRITE_CYCLES
    return CALL_SECONDS + 4e-6 + seconds(uneven * (products * 1.05 + outputs + weights + results) + inputs)


def _takes(window: ConvProblem) -> Verdict:
    """Whether Winograd's tiles take a window whole."""
    if (most := max(window.kernel[-2:])) > MOST_TAPS:
        return Verdict.no(f"its tiles are for 2 to {MOST_TAPS} taps of a phase, and here are {most}")
    return accepts(window)


@functools.lru_cache(maxsize=256)
def _layout(problem: ConvProblem) -> _Layout:
    """The layout with the least cost, of those that there is memory for."""
    found = {}
    for phases in dict.fromkeys(aligned(problem, fewest) for fewest in (False, True)):
        if all(map(_takes, phases.windows)):
            for tiles, budget, deep in itertools.product(tiles_of(phases.windows[0]), BLOCK_BYTES, (False, True)):
                layout = _Layout(phases, _cut(problem, phases, tiles, budget, deep))
                found[layout] = _cost(problem, layout)
                shared = layout._replace(cutting=layout.cutting._replace(shared=True, chunk=problem.k // problem.groups))
                if layout.cutting.block.pieces > 1 and _weight_bytes(layout) <= BOUND_BYTES:
                    found[shared] = _cost(problem, shared)
    ordered = sorted(found, key=lambda layout: found[layout])
    return next((layout for layout in ordered if _workspace(problem, layout) <= problem.max_workspace), ordered[-1])


def _areas(problem: ConvProblem, layout: _Layout) -> Areas:
    """A worker's scratch memory."""
    window, cutting = layout.window, layout.cutting
    tiles, shape, block, chunk, *_ = cutting
    item, per_c = np_dtype(window.acc_dtype).itemsize, window.c // window.groups
    v_step, m_step, _, u_step = steps_of(window, cutting)
    direct = direct_terms(window, tiles)
    tables = cutting.places + len(layout.phases.leads) * chunk * direct + tiles.elements + window.ndim
    sizes = (
        cutting.inputs(window).elements,
        len(layout.phases.windows) * tiles.elements * v_step,
        tiles.elements * m_step,
        block.pixels * problem.stride[-1] * shape.width,
        (CHANNELS_AT_ONCE if cutting.shared else per_c) * math.prod(problem.kernel) * shape.width,
        math.prod(tiles.outputs) * shape.width,
        0 if cutting.shared else tiles.elements * u_step,
    )
    return Areas(8 * tables, *(count * item for count in sizes))


def _workspace(problem: ConvProblem, layout: _Layout) -> int:
    """Of all threads, and transformed weights that they have in common."""
    units = layout.panels * math.prod(problem.stride[:-1])
    workers = min(MAX_THREADS, max(1, layout.cutting.block.pieces * problem.groups * units))
    return workers * _areas(problem, layout).bytes + (_weight_bytes(layout) if layout.cutting.shared else 0)


def _phases_vector(problem: ConvProblem, layout: _Layout, entries: int) -> np.ndarray[Any, Any]:
    """The vector of the phases; `entries`: of the vector of a window."""
    phases, sizes = layout.phases, _phase_bytes(layout)
    sign = 1 if problem.flip else -1
    rows = sign * problem.stride[-2] * problem.kernel[-1] if problem.ndim > 1 else 0
    windows, leads = len(phases.windows), phases.leads
    own = [math.prod(problem.kernel), rows, sign * problem.stride[-1], windows, entries, sum(sizes), len(leads)]
    for phase, place in zip(phases.phases, itertools.accumulate(sizes, initial=0), strict=False):
        rows_and_columns = phase.taps[-2:] if problem.ndim > 1 else (1, *phase.taps)
        own += [phase.window, *rows_and_columns, phase.first, place, phase.lead]
    first = len(own) + 2 * len(leads)
    for taps in leads:
        own += [first, len(taps)]
        first += len(taps) * (1 + lead_axes(problem))
    own += [value for taps in leads for number, places in taps for value in (number, *places)]
    return np.array([*axes_entries(problem, problem.stride, phases.origins), *own], np.int64)


class _Executor(ForwardExecutor):
    """One input gradient, computed like a forward convolution of the gradient of y."""

    def __init__(self, whole: ConvProblem):
        problem = read_part(whole)
        layout = _layout(problem)
        window, cutting, option = layout.window, layout.cutting, ACTIVATIONS[problem.activation]
        tiles, shape, block, *_ = cutting
        super().__init__(problem, block.pieces * problem.groups)
        self._whole, self._layout, self._work = whole, layout, problem.flops / 4
        each = [conv_vectors(one, option, swapped=True) for one in layout.phases.windows]
        self._vectors = functools.lru_cache(maxsize=64)(lambda *strides: np.concatenate([one(*strides) for one in each]))
        kernel = window.replace(spatial=problem.kernel, kernel=problem.kernel, padding=((0, 0),) * problem.ndim)
        self._kernels = conv_vectors(kernel, option, swapped=True)
        self._units = layout.panels * math.prod(problem.stride[:-1])
        inputs = cutting.inputs(window)
        lead_taps = math.prod(window.kernel[: lead_axes(problem)])
        numbers = cutting.chunk, 0, cutting.places, lead_taps, inputs.channels, *steps_of(window, cutting)
        self._block = block_vector(block, shape.width, shape.positions, *numbers, *tiles.outputs, inputs.tile)
        entries = len(each[0](*((0,) * (problem.ndim + 2),) * 3))
        self._phases = _phases_vector(problem, layout, entries)
        self._areas, self._weights = _areas(problem, layout), _weight_bytes(layout)
        self._tools, self._parted = tools_of(window, tiles, shape, block), parted_address(problem, shape.lanes)
        self._kernel, self._transform, self._write = KERNELS.functions(problem.out_dtype, problem.acc_dtype)

    def packed(self, w: Any) -> Weights:
        """w transformed, unless it would be too large."""
        if self._weights > BOUND_BYTES:
            return Weights(w, w.strides)
        target, (layout, parted) = np.empty(self._weights // self._acc.itemsize, self._acc), (self._layout, self._parted)
        vector, items = self._vectors((0,) * w.ndim, w.strides, (0,) * w.ndim), layout.panels * self._problem.groups
        run_with(
            self._areas, self._transform, items * -(-layout.window.c // self._problem.groups // CHANNELS_AT_ONCE), target.size,
            self._tools, parted if follow_each_other(w) else 0, w, target, vector, self._kernel_vector(w.strides), self._block,
            self._phases,
        )  # fmt: skip
        return Weights(target, w.strides, True)

    def _kernel_vector(self, strides: tuple[int, ...]) -> np.ndarray[Any, Any]:
        none = (0,) * len(strides)
        return self._kernels(none, strides, none)

    def launch(self, x: Any, w: Weights, shift: Any, y: Any, status: Any, vector: Any) -> None:
        """Run `interleaved`: `x` is the gradient of y, and `y` that of x."""
        splits, form = parts_for(self._items, self._units, self._work), TRANSFORMED
        if not w.packed:
            form = SHARED if self._layout.cutting.shared else UNPACKED
        parted = self._parted if form != TRANSFORMED and follow_each_other(w.array) else 0
        run_with(
            self._areas, self._kernel, self._items * splits, self._work, self._tools, self._write, parted, splits, form, x, w.array,
            shift, y, status, vector, self._kernel_vector(w.strides), self._block, self._phases,
            common=self._weights if form == SHARED else 0,
        )  # fmt: skip

    def _run(self, y: Any, ins: Any, w: Weights) -> None:
        read, whole = self._problem.spatial, self._whole.spatial
        where = tuple(map(slice, read))
        super()._run(y[(..., *where)], ins, w)
        for axis, (end, size) in enumerate(zip(read, whole, strict=True)):
            if end < size:
                fill(y[(slice(None), slice(None), *[slice(None)] * axis, slice(end, None))], ins[2:], self._problem.activation)

    def again(self, y: Any, ins: Any, images: Any) -> None:
        """Compute images again with `Subpixel`, since what is not finite has spread over its tile."""
        executor = Subpixel().build(self._problem.replace(n=1))
        for n in images:
            executor((y[n : n + 1],), (ins[0][n : n + 1], *ins[1:]))


class Interleaved(Implementation):
    """The input gradient of a convolution with a stride, by Winograd's algorithm."""

    name = "interleaved"
    ops = frozenset(("input_grad",))
    levels = Winograd.levels
    measured_error: ClassVar[Mapping[str, float]] = Winograd.measured_error

    def supports(self, problem: ConvProblem) -> Verdict:
        """Real floats, dilation 1, a stride within the kernel; what Winograd's tiles take."""
        if problem.acc_dtype not in ("float32", "float64"):
            return Verdict.no(f"its tiles are for real floats, and sums of {problem.dtype} are {problem.acc_dtype}")
        if max(problem.stride) == 1:
            return Verdict.no("stride 1: there are no phases to put together")
        if problem.pad_mode != "zeros" or max(problem.dilation) > 1:
            return Verdict.no(f"mode {problem.pad_mode}, dilation {problem.dilation}: it takes padding of zeros, and dilation 1")
        if any(s > r for s, r in zip(problem.stride, problem.kernel, strict=True)):
            return Verdict.no(f"a kernel of {problem.kernel} with stride {problem.stride} has phases without taps")
        problem = read_part(problem)
        terms = problem.k // problem.groups * math.prod(least_taps(problem, axis) for axis in range(problem.ndim))
        if terms == 0:
            return Verdict.no("positions that no window reads would get the rounding errors of their tile")
        if terms < (least := LEAST_TERMS[problem.ndim > 1]):
            return Verdict.no(
                f"its error is relative to a whole tile, and it takes {least} terms an element; some have {terms} here"
            )
        verdicts = [_takes(window) for window in aligned(problem, False).windows]
        return next((verdict for verdict in verdicts if not verdict), Verdict.yes())

    def cost(self, problem: ConvProblem) -> float:
        """See `_cost`."""
        problem = read_part(problem)
        return _cost(problem, _layout(problem))

    def workspace(self, problem: ConvProblem) -> int:
        """For each thread: packed and transformed input, products, results, packed and transformed weights, tables."""
        return max(_workspace(read_part(problem), _layout(read_part(problem))), Subpixel().workspace(problem))

    def build(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
