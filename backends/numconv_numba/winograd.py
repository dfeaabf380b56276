"""Winograd convolution with kernels of three taps, for real floats: fewer multiplications, within the default error bound.

Tiles of m outputs along the last two dimensions (the last, if there is one only) are computed from m + 2 inputs with m + 2
multiplications a dimension: F(4x4, 3x3) needs a quarter of those of the definition, F(2x2, 3x3) four ninths. Further dimensions,
and channels, are summed between the transforms. A work item takes a block of tiles: it packs the input, split into the m phases
that make every element of all its tiles a row of neighbours; transforms it, a vector of tiles at a time; multiplies each element
with the transformed weights on register tiles with the lanes over output channels; and transforms the products back, a vector of
channels at a time. Lavin and Gray, "Fast algorithms for convolutional neural networks" (CVPR 2016), section 4.

An error in one input spreads over its tile, so that images with a sum that is not finite are computed again by `blocked`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Verdict, np_dtype

from .blocked import CALL_SECONDS, Blocked, Shape, most_workers, panel_shape, parts_for, seconds, tile_cycles
from .compiler import Address, Tag, helper, invoke, kernel
from .dense import DenseImplementation, ForwardExecutor, Weights
from .elements import INT64, itemsize, keep, memory, scratch
from .entries import LANES, PACK, PACK_WEIGHTS, PRODUCT, SPLIT, WRITE
from .geometry import DIMS, FLIPPED, OPTION, PARTS, PER_C, PER_K, WINDOW, part
from .microkernels.transforms import input_transform, output_transform, weight_transform
from .panels import fill_places, fill_terms, tiles_along
from .scalar import is_null, pointer
from .slab import (
    B_PITCH,
    BLOCKS,
    CHANNEL,
    EXTRA,
    WRITE_CYCLES,
    Block,
    axis_entry,
    block_extent,
    block_image,
    block_images,
    block_vector,
    cut,
    pack_cycles,
    tap_positions,
)  # fmt: skip
from .threads import MAX_THREADS, Areas, parallel_for, run, run_with, worker_area
from .tools import tools_for

__all__ = ["COLUMNS", "ROWS", "V_STEP", "Winograd", "fill_elements", "lead_axes", "place_steps", "spread", "transform_inputs"]

BLOCK_BYTES = (640 * 1024, 1280 * 1024, 1920 * 1024)
"""What the transformed input of a block and the products of a panel may take of the second-level cache."""
RESULT_BYTES = 512 * 1024
"""The sums of a block for a panel."""
WEIGHT_BYTES = 512 * 1024
"""Transformed weights that are multiplied in one pass over a block."""
KEPT_BYTES = 4 * 1024 * 1024
"""Transformed weights that a worker keeps from block to block."""
CHANNELS_AT_ONCE = 8
"""Input channels whose weights are packed before they are transformed: transposing runs of neighbours is cheaper in one go."""
LEAST_CHANNELS = 4
"""Of a group: in one or two channels the window of an output may hold nothing beside a full tile, and the transforms cost most."""
PACKED_BYTES = 64 * 1024
"""Packed input that is transformed in one go: it stays near the first-level cache."""


class _Layout(NamedTuple):
    """How a forward problem is cut: outputs of a tile along the last two dimensions, register tile, block, channels of a pass."""

    tile: tuple[int, int]
    shape: Shape
    block: Block
    chunk: int
    kept: bool
    slab_channels: int

    @property
    def elements(self) -> int:
        """Of a transformed tile."""
        return math.prod(m + 2 if m > 1 else 1 for m in self.tile)

    @property
    def lead(self) -> int:
        """Positions along the dimensions that are summed directly."""
        return math.prod(p for p, unit in zip(self.block.pitch, self.block.unit, strict=True) if unit == 1)

    @property
    def rows(self) -> int:
        """Places of the tiles at one of these positions, in whole vectors: rows of tiles at the pitch of the slab."""
        tile_rows = -(-self.block.size[-2] // self.tile[0]) if self.tile[0] > 1 else 1
        return -(-tile_rows * self.block.pitch[-1] // self.shape.lanes) * self.shape.lanes

    @property
    def places(self) -> int:
        """Tiles of a block, rounded up to register tiles."""
        return -(-self.block.tiles // self.shape.positions) * self.shape.positions

    @property
    def plane(self) -> int:
        """Places of a transformed channel."""
        return self.lead * self.rows


def lead_axes(problem: ConvProblem) -> int:
    """The number of dimensions that are summed directly."""
    return max(problem.ndim - 2, 0)


def _layout_with(problem: ConvProblem, m: int, budget: int) -> _Layout:
    item, per_c, per_k = np_dtype(problem.acc_dtype).itemsize, problem.c // problem.groups, problem.k // problem.groups
    lead = lead_axes(problem)
    tile = (1 if problem.ndim == 1 else m, m)
    units = (*[1] * lead, *tile[-(problem.ndim - lead) :])
    elements = math.prod(m + 2 if m > 1 else 1 for m in tile)
    taps = math.prod(problem.kernel[:lead])
    width = panel_shape(problem.acc_dtype, per_k, 1 << 20).width * item

    def fits(block: Block) -> bool:
        wide = math.prod(block.pitch[:lead]) * math.prod(p - 1 for p in block.pitch[lead:-1]) * block.pitch[-1]
        transformed = elements * (block.images * per_c * wide * item + block.tiles * width)
        return transformed <= budget and block.pixels * width <= RESULT_BYTES

    block = cut(problem, units, tap_positions(problem), units, fits, problem.n)
    shape = panel_shape(problem.acc_dtype, per_k, block.tiles)
    each = elements * taps * shape.width * item
    allowed = min(KEPT_BYTES, problem.max_workspace // MAX_THREADS - budget - RESULT_BYTES - PACKED_BYTES)
    kept = -(-per_k // shape.width) * per_c * each <= allowed and block.pieces * problem.groups > 1
    chunk = per_c if kept else min(per_c, max(1, WEIGHT_BYTES // each))
    slab_channels = min(per_c, max(1, PACKED_BYTES // (block.channel * item)))
    return _Layout(tile, shape, block, chunk, kept, slab_channels)


def _cost(problem: ConvProblem, layout: _Layout) -> float:
    """Cycles of the products and of the transforms, counted in vectors."""
    tile, shape, block, *_ = layout
    per_c, per_k, pieces = problem.c // problem.groups, problem.k // problem.groups, block.pieces * problem.groups
    panels, taps = -(-per_k // shape.width), math.prod(problem.kernel[: lead_axes(problem)])
    groups = -(-block.tiles // shape.positions)
    terms = per_c * taps
    products = layout.elements * pieces * panels * groups * (terms * tile_cycles(shape.vectors, shape.positions) + 60)
    # loads, stores and about as many multiply-adds for each element of a transform; packing and transposing. Where one block is
    # shared, both of two threads transform its input; weights that are kept, each thread transforms for itself.
    shared = 2 if pieces == 1 else 1
    inputs = shared * (
        pack_cycles(block, problem.c) * 1.5 + pieces * block.images * per_c * layout.plane / shape.lanes * layout.elements * 7
    )
    outputs = pieces * panels * shape.vectors * block.tiles * (layout.elements * 4 + math.prod(tile) * 8)
    times = 2 * problem.groups if layout.kept else pieces
    weights = times * panels * shape.vectors * terms * layout.elements * 5.5
    results = math.prod(problem.y_shape) * WRITE_CYCLES
    return CALL_SECONDS + 3e-6 + seconds(products * 1.1 + inputs + outputs * 1.3 + weights * 2 + results)


@functools.lru_cache(maxsize=256)
def _layout(problem: ConvProblem) -> _Layout:
    """The layout with the least cost."""
    candidates = (_layout_with(problem, m, budget) for m in (4, 2) for budget in BLOCK_BYTES)
    return min(candidates, key=lambda layout: _cost(problem, layout))


def spread(size: int, line: int) -> int:
    """A size in elements rounded up to an odd number of cache lines, so that what lies so far apart falls into different sets."""
    return (-(-size // line) | 1) * line


# A block's own numbers: channels of a panel, tiles of a register tile, input channels of a pass, whether transformed weights are
# kept from block to block, tiles rounded up to register tiles, taps that are summed directly, channels that are packed together;
# elements from one element of transformed tiles to the next in the input and in the products, places of one direct position,
# elements from one element of transformed weights to the next; outputs of a tile.
PANEL, GROUP, CHUNK, KEPT, PLACES, TAPS, SLAB, V_STEP, M_STEP, V_ROWS, U_STEP, ROWS, COLUMNS = range(EXTRA, EXTRA + 13)


UINT8 = Tag("uint8")

# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def spread_step(size):
    """`spread` of bytes."""
    return (-(-size // 64) | 1) * 64


@helper
def fill_elements(table, g, b, rows, columns, size):
    """The byte offset in a channel's slab of each element of the first tile."""
    ndim, plane = g[DIMS], 1
    for axis in range(ndim):
        plane *= axis_entry(b, ndim, B_PITCH, axis)
    n_rows, n_columns = rows + 2 if rows > 1 else 1, columns + 2
    for i in range(n_rows):
        for j in range(n_columns):
            combination = i % rows * columns + j % columns
            place = i // rows * axis_entry(b, ndim, B_PITCH, ndim - 1) + j // columns
            table[i * n_columns + j] = (combination * plane + place) * size


@helper
def place_steps(axis_steps, g, b, size):
    """The byte distance of neighbouring places of transformed input, per dimension."""
    ndim, step = g[DIMS], b[V_ROWS] * size
    axis_steps[ndim - 1] = size
    if ndim > 1:
        axis_steps[ndim - 2] = axis_entry(b, ndim, B_PITCH, ndim - 1) * size
    for axis in range(ndim - 3, -1, -1):
        axis_steps[axis] = step
        step *= axis_entry(b, ndim, B_PITCH, axis)
    return step // size


@helper
def transform_channel(v, slab, elements, g, b, shape, tools, at):
    """One channel of one image: a row of places after the other, at each position along the dimensions that are summed directly."""
    ndim, size = g[DIMS], itemsize(at)
    inner, lead = axis_entry(b, ndim, B_PITCH, ndim - 1), 1
    if ndim > 1:
        inner *= axis_entry(b, ndim, B_PITCH, ndim - 2)
    for axis in range(ndim - 2):
        lead *= axis_entry(b, ndim, B_PITCH, axis)
    for position in range(lead):
        for place in range(0, b[V_ROWS], tools[LANES]):
            source, target = slab + (position * inner + place) * size, v + (position * b[V_ROWS] + place) * size
            input_transform(shape, at, source, elements, target, b[V_STEP] * size)


@helper
def transform_inputs(v, slab, elements, x, channels, block, plane, g, b, shape, tools, at):
    """The transformed input of a block: [element][image][channel][place]. `x`: the first of `channels` in the first image."""
    size = itemsize(at)
    for image in range(block_images(g, b, block)):
        for first in range(0, channels, b[SLAB]):
            count = min(b[SLAB], channels - first)
            source = x + (image * g[part(g, PARTS)] + first * g[part(g, PARTS) + 2])
            invoke(tools[PACK], tools, slab, source, block, 1, count, g, b)
            for c in range(count):
                target = v + (image * channels + first + c) * plane * size
                transform_channel(target, slab + c * b[CHANNEL] * size, elements, g, b, shape, tools, at)


@helper
def transform_weights(u, u_step, packed, w, count, first, channels, g, b, shape, tools, at):
    """Transformed weights of a panel of `count` output channels: [element][channel][tap][lane], elements `u_step` bytes apart."""
    ndim, size, taps = g[DIMS], itemsize(at), b[TAPS]
    width, inner, vector = b[PANEL] * size, g[part(g, WINDOW) + ndim - 1], tools[LANES] * size
    if ndim > 1:
        inner *= g[part(g, WINDOW) + ndim - 2]
    # with flip, taps are read from the last one back
    origin, step = ((inner - 1) * width, -width) if g[part(g, FLIPPED) + ndim - 1] else (0, width)
    for begin in range(0, channels, CHANNELS_AT_ONCE):
        several = min(CHANNELS_AT_ONCE, channels - begin)
        invoke(tools[PACK_WEIGHTS], tools, packed, w, count, first + begin, several, taps * inner, width, g)
        for kernel_row in range(several * taps):
            for v in range(0, width, vector):
                source, target = packed + (kernel_row * inner * width + v), u + ((begin * taps + kernel_row) * width + v)
                weight_transform(shape, at, source + origin, step, target, u_step)


@helper
def transform_outputs(sums, products, spare, block, g, b, shape, tools, at):
    """The results of a block, [pixel][lane], from the products of its tiles, [element][tile][lane]."""
    ndim, size, rows, columns = g[DIMS], itemsize(at), b[ROWS], b[COLUMNS]
    width, vector, step = b[PANEL] * size, tools[LANES] * size, b[M_STEP] * size
    axis, planes, tile_rows, height = ndim - 1, block_images(g, b, block), 1, 1
    if ndim > 1:
        tile_rows, height = tiles_along(g, b, block, axis - 1), block_extent(g, b, block, axis - 1)
    for other in range(axis - 1):
        planes *= block_extent(g, b, block, other)
    tiles, length = tiles_along(g, b, block, axis), block_extent(g, b, block, axis)
    for line in range(planes * tile_rows):
        row = line % tile_rows * rows
        start = (line // tile_rows * height + row) * length
        for tile in range(tiles):
            column = tile * columns
            source, target = products + (line * tiles + tile) * width, sums + (start + column) * width
            whole = (row + rows <= height) & (column + columns <= length)
            for v in range(0, width, vector):
                place, row_step, column_step = target + v, length * width, width
                if not whole:
                    place, row_step, column_step = spare, columns * vector, vector
                output_transform(shape, at, source + v, step, place, row_step, column_step)
                if not whole:
                    for i in range(min(rows, height - row)):
                        for j in range(min(columns, length - column)):
                            inside, pixel = target + ((i * length + j) * width + v), spare + (i * columns + j) * vector
                            invoke(tools[SPLIT], 1, pixel, 0, tools[LANES], inside, 0, tools[LANES], 1, 0, 0)


# The parts of a worker's scratch memory: tables, packed and transformed input, products, results of a panel, packed weights and a
# spare tile, transformed weights, which of them are there.
TABLES, SLABS, INPUTS, PRODUCTS, RESULTS, SMALL, SPARE, WEIGHTS, READY, AREAS = range(10)


@helper
def _blocks(begin, end, args):
    (
        shape, at, items, workers, scratch, areas, tools, splits, packed, x, w, bias, y, status, g, b,
    ) = args  # fmt: skip
    rows, columns = b[ROWS], b[COLUMNS]
    ndim, per_c, per_k, size = g[DIMS], g[PER_C], g[PER_K], itemsize(at)
    xs, ws, ys, width = part(g, PARTS), part(g, PARTS + 1), part(g, PARTS + 2), b[PANEL] * itemsize(at)
    count = (rows + 2 if rows > 1 else 1) * (columns + 2)
    own = worker_area(scratch, areas, AREAS, workers, items, begin)
    tables, slabs, inputs, products = own + areas[TABLES], own + areas[SLABS], own + areas[INPUTS], own + areas[PRODUCTS]
    results, small, spare, weights = own + areas[RESULTS], own + areas[SMALL], own + areas[SPARE], own + areas[WEIGHTS]
    ready, panels = pointer(own + areas[READY], UINT8), -(-per_k // b[PANEL])
    terms = tables + 8 * b[PLACES]
    elements = terms + 8 * b[CHUNK] * b[TAPS]
    axis_steps = pointer(elements + 8 * count, INT64)
    u_step = b[U_STEP] * size
    plane = place_steps(axis_steps, g, b, size)
    fill_terms(pointer(terms, INT64), b[CHUNK], plane * size, max(ndim - 2, 0), axis_steps, g)
    fill_elements(pointer(elements, INT64), g, b, rows, columns, size)
    where, of_group, tiles = -1, -1, 0
    for item in range(begin, end):
        block, group = item // splits % b[BLOCKS], item // splits // b[BLOCKS]
        n = block_image(b, ndim, block)
        if item // splits != where:
            where = item // splits
            tiles = fill_places(pointer(tables, INT64), b[GROUP], per_c * plane * size, axis_steps, g, b, block)
            source = x + (n * g[xs] + group * g[xs + 1])
            transform_inputs(inputs, slabs, elements, source, per_c, block, plane, g, b, shape, tools, at)
        if group != of_group:
            of_group = group
            for panel in range(panels):
                ready[panel] = 0
        for panel in range(panels * (item % splits) // splits, panels * (item % splits + 1) // splits):
            k = panel * b[PANEL]
            used = min(per_k - k, b[PANEL])
            w_k = w + (group * g[ws] + k * g[ws + 1])
            for first in range(0, per_c, b[CHUNK]):
                passed = min(b[CHUNK], per_c - first)
                u, step = weights + (panel * count * u_step if b[KEPT] else 0), u_step
                if packed:
                    step = spread_step(per_c * b[TAPS] * width)
                    u = w + ((group * panels + panel) * count * step + first * b[TAPS] * width)
                elif not (b[KEPT] and ready[panel]):
                    transform_weights(u, step, small, w_k, used, first, passed, g, b, shape, tools, at)
                for element in range(count):
                    invoke(
                        tools[PRODUCT], u + element * step, inputs + (element * b[V_STEP] + first * plane) * size, tables,
                        products + element * b[M_STEP] * size, -(-tiles // b[GROUP]), passed * b[TAPS], terms, width,
                        1 if first > 0 else 0,
                    )  # fmt: skip
            ready[panel] = 1
            transform_outputs(results, products, spare, block, g, b, shape, tools, at)
            shift = bias if is_null(bias) else bias + (group * per_k + k) * size
            target = y + (group * g[ys + 1] + k * g[ys + 2])
            invoke(tools[WRITE], tools, results, width, used, shift, g[OPTION], target, status, block, g, b)


@kernel
def winograd(
    shape: Tag, at: Tag, region: int, workers: int, items: int,
    scratch: Address, areas: Address, tools: Address, splits: int, packed: int, x: Address, w: Address, bias: Address, y: Address,
    status: Address, g: Address, b: Address,
) -> None:  # fmt: skip
    """y from x and w: an item is a block of tiles for some of the panels.

    `tools`: see `microkernels.tools`; w is `packed`: transformed, in panels, or lies as the vector g says. `status` gets a
    1 for each image of which a sum is not finite. The bias is in the accumulation dtype.
    """
    parallel_for(
        region,
        workers,
        items,
        _blocks,
        (
            shape, at, items, workers, scratch, pointer(areas, INT64), pointer(tools, INT64), splits, packed, x, w, bias, y,
            status, pointer(g, INT64), pointer(b, INT64),
        ),
    )  # fmt: skip


@helper
def _panels(begin, end, args):
    shape, at, tools, w, target, g, b = args
    rows, columns, ndim = b[ROWS], b[COLUMNS], g[DIMS]
    ws, per_c, per_k, width, panels = part(g, PARTS + 1), g[PER_C], g[PER_K], b[PANEL] * itemsize(at), -(-g[PER_K] // b[PANEL])
    inner = g[part(g, WINDOW) + ndim - 1] * (g[part(g, WINDOW) + ndim - 2] if ndim > 1 else 1)
    step = spread_step(per_c * b[TAPS] * width)
    count = (rows + 2 if rows > 1 else 1) * (columns + 2)
    small = scratch(CHANNELS_AT_ONCE * b[TAPS] * inner * width)
    for item in range(begin, end):
        group, k = item // panels, item % panels * b[PANEL]
        source, used = w + (group * g[ws] + k * g[ws + 1]), min(per_k - k, b[PANEL])
        transform_weights(target + item * count * step, step, memory(small), source, used, 0, per_c, g, b, shape, tools, at)
    keep(small)


@kernel
def transform_all_weights(
    shape: Tag, at: Tag, region: int, workers: int, items: int, tools: Address, w: Address, target: Address, g: Address, b: Address,
) -> None:  # fmt: skip
    """All panels of w, transformed, for `winograd`: an item is a panel of a group."""
    parallel_for(
        region, workers, items, _panels, (shape, at, pointer(tools, INT64), w, target, pointer(g, INT64), pointer(b, INT64))
    )


# --- the implementation --------------------------------------------------------------------------------------------------------


def _steps(problem: ConvProblem, layout: _Layout) -> tuple[int, int, int, int]:
    """V_STEP, M_STEP, V_ROWS, U_STEP."""
    line, taps = 64 // np_dtype(problem.acc_dtype).itemsize, math.prod(problem.kernel[: lead_axes(problem)])
    return (
        spread(layout.block.images * (problem.c // problem.groups) * layout.plane, line),
        spread(layout.places * layout.shape.width, line),
        layout.rows,
        spread(layout.chunk * taps * layout.shape.width, line),
    )


def _areas(problem: ConvProblem, layout: _Layout) -> Areas:
    """A worker's scratch memory."""
    shape, block, item, taps = layout.shape, layout.block, np_dtype(problem.acc_dtype).itemsize, math.prod(problem.kernel)
    lead = math.prod(problem.kernel[: lead_axes(problem)])
    v_step, m_step, _, u_step = _steps(problem, layout)
    panels = -(-(problem.k // problem.groups) // shape.width)
    tables = 8 * (layout.places + layout.chunk * lead + layout.elements + problem.ndim)
    slabs = layout.slab_channels * block.channel + 2 * shape.lanes  # tiles are read in whole vectors, beyond the last position
    weights = layout.elements * u_step * (panels if layout.kept else 1)
    spare = math.prod(layout.tile) * shape.lanes
    elements = (
        slabs,
        layout.elements * v_step,
        layout.elements * m_step,
        block.pixels * shape.width,
        CHANNELS_AT_ONCE * taps * shape.width,
        spare,
        weights,
    )
    return Areas(tables, *(count * item for count in elements), panels)


class _Executor(ForwardExecutor):
    """One Winograd convolution."""

    def __init__(self, problem: ConvProblem):
        layout = _layout(problem)
        shape, block = layout.shape, layout.block
        super().__init__(problem, block.pieces * problem.groups)
        self._layout = layout
        self._panels = -(-(problem.k // problem.groups) // shape.width)
        self._taps = math.prod(problem.kernel[: lead_axes(problem)])
        self._work = problem.flops / 8
        self._areas = _areas(problem, layout)
        self._block = block_vector(
            block,
            shape.width,
            shape.positions,
            layout.chunk,
            layout.kept,
            layout.places,
            self._taps,
            layout.slab_channels,
            *_steps(problem, layout),
            *layout.tile,
        )
        self._tools = tools_for(problem.dtype, problem.acc_dtype, shape.lanes, out=problem.out_dtype, product_shape=shape[:2])
        self._tags = ((*layout.tile, shape.lanes),)
        self._kernel = winograd.specialise(*self._tags, problem.acc_dtype)

    def packed(self, w: Any) -> Weights:
        """w transformed."""
        problem = self._problem
        rows, line = problem.groups * self._panels, 64 // self._acc.itemsize
        step = spread((problem.c // problem.groups) * self._taps * self._layout.shape.width, line)
        packed = np.empty(rows * self._layout.elements * step, self._acc)
        compiled = transform_all_weights.specialise(*self._tags, problem.acc_dtype)
        vector = self._vectors((0,) * w.ndim, w.strides, (0,) * w.ndim)
        run(compiled, rows, packed.size, self._tools, w, packed, vector, self._block)
        return Weights(packed, w.strides, True)

    def launch(self, x: Any, w: Weights, shift: Any, y: Any, status: Any, vector: Any) -> None:
        """Run `winograd`."""
        splits = parts_for(self._items, self._panels, self._work)
        run_with(
            self._areas, self._kernel, self._items * splits, self._work, self._tools, splits, int(w.packed), x, w.array, shift, y,
            status, vector, self._block,
        )  # fmt: skip

    def again(self, y: Any, ins: Any, images: Any) -> None:
        """Compute images again with `Blocked`, since what is not finite has spread over its tile."""
        executor = Blocked().build(self._problem.replace(n=1))
        for n in images:
            executor((y[n : n + 1],), (ins[0][n : n + 1], *ins[1:]))


class Winograd(DenseImplementation):
    """Winograd convolution of real floats with three taps along the last two dimensions."""

    name = "winograd"
    levels = frozenset(("default", "fast"))
    measured_error: ClassVar[Mapping[str, float]] = {"float32": 4e-6, "float64": 8e-15}

    def accepts(self, problem: ConvProblem) -> Verdict:
        """Three taps, stride 1 and dilation 1 along the last two dimensions; some channels."""
        last, per_c = slice(lead_axes(problem), None), problem.c // problem.groups
        if per_c < LEAST_CHANNELS:
            return Verdict.no(f"its error is relative to a whole tile, and {per_c} channels of a group may be small in one window")
        if any(r != 3 for r in problem.kernel[last]):
            return Verdict.no(
                f"its transforms are for three taps along the last two dimensions, not for a kernel of {problem.kernel}"
            )
        if max(*problem.stride[last], *problem.dilation[last]) > 1:
            return Verdict.no(
                f"its tiles overlap at stride 1 and dilation 1, and these are {problem.stride} and {problem.dilation}"
            )
        return Verdict.yes()

    def forward_cost(self, problem: ConvProblem) -> float:
        """See `_cost`."""
        return _cost(problem, _layout(problem))

    def forward_workspace(self, problem: ConvProblem) -> int:
        """For each thread: packed and transformed input, products, results, transformed weights, tables."""
        layout = _layout(problem)
        workers = most_workers(problem, layout.block, layout.shape.width)
        return max(workers * _areas(problem, layout).bytes, Blocked().forward_workspace(problem))

    def forward(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
