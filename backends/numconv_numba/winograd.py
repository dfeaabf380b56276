"""Winograd convolution with short kernels, for real floats: fewer multiplications, within the default error bound.

Tiles of m outputs along the last two dimensions (the last, if there is one only) are computed from m + r - 1 inputs with as many
multiplications a dimension: F(4x4, 3x3) needs a quarter of those of the definition, F(2x2, 5x5) a third. With a stride the input
and the kernel fall into phases, each of which is a convolution of stride 1 with a kernel of r taps or less: they are summed like
input channels, so that 7x7 with stride 2 is F(3x3, 4x4) of four times the channels. Further dimensions, and channels, are summed
between the transforms. A work item takes a block of tiles: it packs the input, split so that every element of all its tiles is a
row of neighbours; transforms it, a vector of tiles at a time; multiplies each element with the transformed weights on register
tiles with the lanes over output channels; and transforms the products back, a vector of channels at a time. Lavin and Gray, "Fast
algorithms for convolutional neural networks" (CVPR 2016), section 4.

An error in one input spreads over its tile, so that images with a sum that is not finite are computed again by `blocked`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from numconv.plugin import ConvProblem, Verdict

from .blocked import Blocked, forget, most_workers, parts_for
from .compiler import Address, Tag, helper, invoke, kernel
from .dense import DenseImplementation, ForwardExecutor, Weights
from .elements import INT64, itemsize, keep, memory, scratch
from .entries import LANES, OUTPUT, PACK_WEIGHTS, PRODUCT, WEIGHT, WRITE
from .geometry import DIMS, OPTION, PARTS, PER_C, PER_K, part
from .panels import fill_places, fill_terms
from .scalar import is_null, pointer
from .slab import BLOCKS, EXTRA, block_image, block_vector
from .threads import parallel_for, run, run_with, worker_area
from .tools import tools_for
from .winograd_inputs import (
    COLUMNS,
    GROUP,
    PANEL,
    ROWS,
    TAPS,
    V_STEP,
    copy_pixels,
    element_counts,
    fill_elements,
    inner_window,
    phase_taps,
    place_steps,
    spread_step,
    tile_extents,
    transform_inputs,
)
from .winograd_layout import CHANNELS_AT_ONCE, areas_of, cost_of, layout_for, steps_of
from .winograd_tiles import direct_terms, inner_taps, lead_axes, spread, tiles_of

__all__ = ["Winograd", "WinogradExecutor"]

LEAST_CHANNELS = 4
"""Of a group, phases and taps that are summed directly included: in one or two the window of an output may hold nothing beside a
full tile, and the transforms cost most."""
MOST_TAPS = 5
"""Of a phase: more would need points at which the error grows."""
# A block's own numbers, beside those of `winograd_inputs`: input channels of a pass, whether transformed weights are kept from
# block to block, tiles rounded up to register tiles, elements from one element to the next of the products and of transformed
# weights.
CHUNK, KEPT, PLACES, M_STEP, U_STEP = (EXTRA + i for i in (2, 3, 4, 8, 10))
UINT8 = Tag("uint8")
# The form of w: as it lies, transformed, or packed in panels that are transformed when they are needed.
UNPACKED, TRANSFORMED, IN_PANELS = range(3)
BOUND_BYTES = 24 * 1024 * 1024
"""Transformed weights of a bound plan: more than a last-level cache holds would come from memory for every block of tiles."""

# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def transform_weights(u, u_step, packed, w, form, count, first, channels, g, b, tools, at):
    """Transformed weights of a panel of `count` output channels, elements `u_step` bytes apart: [element][c][phase][tap][lane].

    `w`: of the panel; `packed`: where it is packed before, unless it is in that form.
    """
    taps, width, inner = b[TAPS], b[PANEL] * itemsize(at), inner_window(g)
    _, phases = element_counts(g, b)
    vectors = b[PANEL] // tools[LANES]
    for begin in range(0, channels, CHANNELS_AT_ONCE):
        several = min(CHANNELS_AT_ONCE, channels - begin)
        kernels = packed
        if form == IN_PANELS:
            kernels = w + (first + begin) * taps * inner * width
        else:
            invoke(tools[PACK_WEIGHTS], tools, packed, w, count, first + begin, several, taps * inner, width, g)
        # of the phases, or else of the taps that are summed directly, there is one
        run = several * taps if (taps == 1) | (phases == 1) else taps
        for one in range(0, several * taps, run):
            for phase in range(phases):
                start, row_step, column_step, rows, columns = phase_taps(phase, width, g)
                source = kernels + (one * inner * width + start)
                target = u + (((begin + one // taps) * phases + phase) * taps + one % taps) * width
                invoke(
                    tools[WEIGHT], source, row_step, column_step, rows, columns, vectors, target, u_step, run, inner * width,
                    (phases if taps == 1 else 1) * width,
                )  # fmt: skip


@helper
def transform_outputs(sums, products, spare, block, g, b, tools, at):
    """The results of a block, [pixel][lane], from the products of its tiles, [element][tile][lane]."""
    size, rows, columns = itemsize(at), b[ROWS], b[COLUMNS]
    width, step, vectors = b[PANEL] * size, b[M_STEP] * size, b[PANEL] // tools[LANES]
    planes, lines, height, tiles, length = tile_extents(g, b, block)
    for line in range(planes * lines):
        row = line % lines * rows
        start = (line // lines * height + row) * length
        for tile in range(tiles):
            column = tile * columns
            source, target = products + (line * tiles + tile) * width, sums + (start + column) * width
            if (row + rows <= height) & (column + columns <= length):
                invoke(tools[OUTPUT], source, step, vectors, target, length * width, width)
            else:
                invoke(tools[OUTPUT], source, step, vectors, spare, columns * width, width)
                inside = min(rows, height - row), min(columns, length - column)
                copy_pixels(target, spare, inside[0], inside[1], length * width, width, columns * width, width, tools, at)


# The parts of a worker's scratch memory: tables, packed and transformed input, products, results of a panel, packed weights and a
# spare tile, transformed weights, which of them are there.
TABLES, SLABS, INPUTS, PRODUCTS, RESULTS, SMALL, SPARE, WEIGHTS, READY, AREAS = range(10)


@helper
def _blocks(begin, end, args):
    at, items, workers, scratch, areas, tools, splits, form, x, w, bias, y, status, g, b = args
    ndim, per_c, per_k, size = g[DIMS], g[PER_C], g[PER_K], itemsize(at)
    xs, ws, ys, width = part(g, PARTS), part(g, PARTS + 1), part(g, PARTS + 2), b[PANEL] * itemsize(at)
    count, phases = element_counts(g, b)
    own = worker_area(scratch, areas, AREAS, workers, items, begin)
    tables, slabs, inputs, products = own + areas[TABLES], own + areas[SLABS], own + areas[INPUTS], own + areas[PRODUCTS]
    results, small, spare, weights = own + areas[RESULTS], own + areas[SMALL], own + areas[SPARE], own + areas[WEIGHTS]
    ready, panels = pointer(own + areas[READY], UINT8), -(-per_k // b[PANEL])
    terms = tables + 8 * b[PLACES]
    elements = terms + 8 * b[CHUNK] * phases * b[TAPS]
    axis_steps = pointer(elements + 8 * count * phases, INT64)
    u_step = b[U_STEP] * size
    plane = place_steps(axis_steps, g, b, size)
    fill_terms(pointer(terms, INT64), b[CHUNK] * phases, plane * size, max(ndim - 2, 0), axis_steps, g)
    fill_elements(pointer(elements, INT64), g, b, size)
    where, of_group, tiles = -1, -1, 0
    for item in range(begin, end):
        block, group = item // splits % b[BLOCKS], item // splits // b[BLOCKS]
        n = block_image(b, ndim, block)
        if item // splits != where:
            where = item // splits
            tiles = fill_places(pointer(tables, INT64), b[GROUP], per_c * phases * plane * size, axis_steps, g, b, block)
            source = x + (n * g[xs] + group * g[xs + 1])
            transform_inputs(inputs, slabs, elements, source, per_c, block, plane, g, b, tools, at)
        if group != of_group:
            of_group = group
            forget(ready, panels)
        for panel in range(panels * (item % splits) // splits, panels * (item % splits + 1) // splits):
            k = panel * b[PANEL]
            used = min(per_k - k, b[PANEL])
            w_k = w + (group * g[ws] + k * g[ws + 1])
            if form == IN_PANELS:
                w_k = w + (group * panels + panel) * per_c * b[TAPS] * inner_window(g) * width
            for first in range(0, per_c, b[CHUNK]):
                passed = min(b[CHUNK], per_c - first)
                u, step = weights + (panel * count * u_step if b[KEPT] else 0), u_step
                if form == TRANSFORMED:
                    step = spread_step(per_c * phases * b[TAPS] * width)
                    u = w + ((group * panels + panel) * count * step + first * phases * b[TAPS] * width)
                elif not (b[KEPT] and ready[panel]):
                    transform_weights(u, step, small, w_k, form, used, first, passed, g, b, tools, at)
                for element in range(count):
                    invoke(
                        tools[PRODUCT], u + element * step, inputs + (element * b[V_STEP] + first * phases * plane) * size, tables,
                        products + element * b[M_STEP] * size, -(-tiles // b[GROUP]), passed * phases * b[TAPS], terms, width,
                        1 if first > 0 else 0,
                    )  # fmt: skip
            ready[panel] = 1
            transform_outputs(results, products, spare, block, g, b, tools, at)
            shift = bias if is_null(bias) else bias + (group * per_k + k) * size
            target = y + (group * g[ys + 1] + k * g[ys + 2])
            invoke(tools[WRITE], tools, results, width, used, shift, g[OPTION], target, status, block, g, b)


@kernel
def winograd(
    at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, tools: Address, splits: int, form: int,
    x: Address, w: Address, bias: Address, y: Address, status: Address, g: Address, b: Address,
) -> None:  # fmt: skip
    """y from x and w: an item is a block of tiles for some of the panels.

    `tools`: see `tools_for`; w has one of the forms above, and lies as the vector g says if it is UNPACKED. `status` gets a 1 for
    each image of which a sum is not finite. The bias is in the accumulation dtype.
    """
    parallel_for(
        region,
        workers,
        items,
        _blocks,
        (
            at, items, workers, scratch, pointer(areas, INT64), pointer(tools, INT64), splits, form, x, w, bias, y, status,
            pointer(g, INT64), pointer(b, INT64),
        ),
    )  # fmt: skip


@helper
def _panels(begin, end, args):
    at, tools, form, w, target, g, b = args
    ws, per_c, per_k, width, panels = part(g, PARTS + 1), g[PER_C], g[PER_K], b[PANEL] * itemsize(at), -(-g[PER_K] // b[PANEL])
    count, phases = element_counts(g, b)
    step, taps = spread_step(per_c * phases * b[TAPS] * width), b[TAPS] * inner_window(g)
    small = scratch(CHANNELS_AT_ONCE * taps * width)
    for item in range(begin, end):
        group, k = item // panels, item % panels * b[PANEL]
        source, used = w + (group * g[ws] + k * g[ws + 1]), min(per_k - k, b[PANEL])
        if form == IN_PANELS:
            invoke(tools[PACK_WEIGHTS], tools, target + item * per_c * taps * width, source, used, 0, per_c, taps, width, g)
        else:
            place = target + item * count * step
            transform_weights(place, step, memory(small), source, UNPACKED, used, 0, per_c, g, b, tools, at)
    keep(small)


@kernel
def bind_weights(
    at: Tag,
    region: int,
    workers: int,
    items: int,
    tools: Address,
    form: int,
    w: Address,
    target: Address,
    g: Address,
    b: Address,
) -> None:
    """All panels of w in a form for `winograd`: an item is a panel of a group."""
    args = at, pointer(tools, INT64), form, w, target, pointer(g, INT64), pointer(b, INT64)
    parallel_for(region, workers, items, _panels, args)


# --- the implementation --------------------------------------------------------------------------------------------------------


class WinogradExecutor(ForwardExecutor):
    """One Winograd convolution."""

    def __init__(self, problem: ConvProblem):
        layout = layout_for(problem)
        tiles, shape, block = layout[:3]
        super().__init__(problem, block.pieces * problem.groups)
        self._layout = layout
        self._panels = -(-(problem.k // problem.groups) // shape.width)
        self._work = problem.flops / 8
        self._areas = areas_of(problem, layout)
        taps = math.prod(problem.kernel[: lead_axes(problem)])
        numbers = layout.chunk, layout.kept, layout.places, taps, layout.slab_channels, *steps_of(problem, layout), *tiles.outputs
        self._block = block_vector(block, shape.width, shape.positions, *numbers)
        self._tools = tools_for(
            problem.dtype, problem.acc_dtype, shape.lanes, phases=block.step[-1], out=problem.out_dtype, product_shape=shape[:2],
            transform_shape=tiles.transform,
        )  # fmt: skip
        self._kernel = winograd.specialise(problem.acc_dtype)
        transformed = self._panels * problem.c * direct_terms(problem, tiles) * tiles.elements
        self._form = TRANSFORMED if transformed * shape.width * self._acc.itemsize <= BOUND_BYTES else IN_PANELS

    def packed(self, w: Any) -> Weights:
        """w transformed, or in panels if it would be too large."""
        problem, (tiles, shape) = self._problem, self._layout[:2]
        rows, per_c = problem.groups * self._panels, problem.c // problem.groups
        size = per_c * math.prod(problem.kernel) * shape.width
        if self._form == TRANSFORMED:
            size = tiles.elements * spread(per_c * direct_terms(problem, tiles) * shape.width, 64 // self._acc.itemsize)
        packed = np.empty(rows * size, self._acc)
        compiled = bind_weights.specialise(problem.acc_dtype)
        vector = self._vectors((0,) * w.ndim, w.strides, (0,) * w.ndim)
        run(compiled, rows, packed.size, self._tools, self._form, w, packed, vector, self._block)
        return Weights(packed, w.strides, True)

    def launch(self, x: Any, w: Weights, shift: Any, y: Any, status: Any, vector: Any) -> None:
        """Run `winograd`."""
        splits = parts_for(self._items, self._panels, self._work)
        run_with(
            self._areas, self._kernel, self._items * splits, self._work, self._tools, splits,
            self._form if w.packed else UNPACKED, x, w.array, shift, y, status, vector, self._block,
        )  # fmt: skip

    def again(self, y: Any, ins: Any, images: Any) -> None:
        """Compute images again with `Blocked`, since what is not finite has spread over its tile."""
        executor = Blocked().build(self._problem.replace(n=1))
        for n in images:
            executor((y[n : n + 1],), (ins[0][n : n + 1], *ins[1:]))


class Winograd(DenseImplementation):
    """Winograd convolution of real floats with short kernels along the last two dimensions."""

    name = "winograd"
    levels = frozenset(("default", "fast"))
    measured_error: ClassVar[Mapping[str, float]] = {"float32": 4e-6, "float64": 8e-15}

    def accepts(self, problem: ConvProblem) -> Verdict:
        """Few taps and dilation 1 along the last two dimensions; some channels."""
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
            return Verdict.no(
                f"windows that hold nothing but padding {problem.padding} would get the rounding errors of their tile"
            )
        tiles = tiles_of(problem)
        if not tiles:
            return Verdict.no(f"no tile has both {taps[0]} and {taps[-1]} taps a phase")
        if problem.c // problem.groups * direct_terms(problem, tiles[0]) < LEAST_CHANNELS:
            return Verdict.no(
                f"its error is relative to a whole tile, and {problem.c // problem.groups} channels of a group may be small in one "
                "window"
            )
        return Verdict.yes()

    def forward_cost(self, problem: ConvProblem) -> float:
        """See `cost_of`."""
        return cost_of(problem, layout_for(problem))

    def forward_workspace(self, problem: ConvProblem) -> int:
        """For each thread: packed and transformed input, products, results, transformed weights, tables."""
        layout = layout_for(problem)
        workers = most_workers(problem, layout.block, layout.shape.width)
        return max(workers * areas_of(problem, layout).bytes, Blocked().forward_workspace(problem))

    def forward(self, problem: ConvProblem) -> WinogradExecutor:
        """The executor."""
        return WinogradExecutor(problem)
