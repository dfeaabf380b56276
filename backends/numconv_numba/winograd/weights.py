"""Weight gradients by Winograd's algorithm, for short kernels and real floats.

With y = A^T [(G w) * (B^T x)] on a tile, the gradient of w is G^T [(B^T x) * (A grad_y)], summed over all tiles: the adjoint of the
forward algorithm (see `winograd`), at the same points and with the same savings. Sums are formed between the transforms. A work
item takes one panel of output channels and a range of input channels, and passes over all blocks of tiles: x is packed and
transformed as in the forward convolution, grad_y is packed with the channels of the panel side by side and transformed, and for
each element of a tile a matrix product over the tiles adds to the sums. At the end these are transformed once. Lavin and Gray,
"Fast algorithms for convolutional neural networks" (CVPR 2016), section 4; Barabasz et al. (TOMS 2020) on its accuracy.

Every sum is one chain over the tiles in their order, so that neither threads nor the ranges change a bit. What is not finite
spreads over all taps of a kernel: then `blocked` computes everything again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Implementation, Verdict, np_dtype
from numconv_numba.compiling.compiler import Address, Tag, helper, invoke, kernel
from numconv_numba.dense.blocked import CALL_SECONDS, Shape, panel_shape, parts_for, seconds, tile_cycles
from numconv_numba.dense.panels import fill_places
from numconv_numba.dense.slab import (
    BLOCKS,
    EXTRA,
    WRITE_CYCLES,
    Block,
    block_image,
    block_vector,
    pack_cycles,
)
from numconv_numba.dense.weights import BlockedWeights
from numconv_numba.elements import INT64, itemsize
from numconv_numba.entries import GRADIENT, KERNEL, LANES, PRODUCT, READ, WRITE_WEIGHTS
from numconv_numba.geometry import DIMS, GROUPS, PARTS, PER_C, PER_K, conv_vectors, part
from numconv_numba.microkernels.emit import host
from numconv_numba.microkernels.totals import add_rows
from numconv_numba.rows import clear
from numconv_numba.scalar import is_null, load, pointer, store
from numconv_numba.threads import MAX_THREADS, Areas, area_of, parallel_items, run_with, taken_items

from .forward import Winograd, tools_of
from .inputs import (
    COLUMNS,
    GROUP,
    PANEL,
    ROWS,
    TAPS,
    V_STEP,
    copy_pixels,
    element_counts,
    fill_elements,
    fill_pass,
    inner_window,
    input_steps,
    phase_range,
    phase_taps,
    place_steps,
    tile_extents,
    transform_inputs,
)
from .tiles import (
    Inputs,
    Tiles,
    channel_inputs_of,
    cut_tiles,
    deep_cycles,
    direct_terms,
    input_places,
    inputs_of,
    lead_axes,
    spread,
    tile_rows,
    tiles_of,
)  # fmt: skip
from .turned import Turned, turned, turned_order

__all__ = ["WinogradWeights"]

BLOCK_BYTES = 1024 * 1024
"""What the transformed input and gradient of a block may take of the second-level cache."""
ITEMS = 16
"""Work items that a large problem is cut into, by parting the sums where there are few channels."""
SHARE_COST = 0.05
"""What parted sums may cost more."""
SUM_BYTES = 512 * 1024
"""The sums of an item, which share that cache."""
LEAST_TERMS = 16
"""Of a sum: on normal data one of 4 terms may be so small that the error of its tile is 5 times the bound, of 16 a twentieth."""


class _Layout(NamedTuple):
    """How a problem is cut: tiles, register tile, block, input channels of an item, shares of the blocks.

    `deep`: whether the lanes of the input's transform are channels.
    """

    tiles: Tiles
    shape: Shape
    block: Block
    channels: int
    deep: bool
    shares: int = 1

    @property
    def rows(self) -> int:
        """See `tile_rows`."""
        return tile_rows(self.tiles, self.block, self.shape.lanes)

    def inputs(self, problem: ConvProblem) -> Inputs:
        """How the input of a block is packed and transformed."""
        if self.deep:
            return channel_inputs_of(problem, self.tiles, self.block, self.channels)
        return inputs_of(problem, self.tiles, self.block, self.channels, self.rows)


def _layout_with(problem: ConvProblem, tiles: Tiles, deep: bool) -> _Layout:
    item, per_c, per_k = np_dtype(problem.acc_dtype).itemsize, problem.c // problem.groups, problem.k // problem.groups
    terms = direct_terms(problem, tiles)
    shape = panel_shape(problem.acc_dtype, per_k, per_c * terms)
    width = shape.width * item
    channels = min(per_c, max(1, SUM_BYTES // (tiles.elements * terms * width)))

    def fits(block: Block) -> bool:
        places = input_places(problem, tiles, block, channels, deep)
        return tiles.elements * (places * item + block.tiles * width) <= BLOCK_BYTES

    block = cut_tiles(problem, tiles, fits)
    layout = _Layout(tiles, shape, block, channels, deep)
    return layout._replace(shares=_shares(problem, layout))


def _cycles(problem: ConvProblem, layout: _Layout) -> tuple[float, float]:
    """Of the products and the transforms before them, and of what follows for each share of the sums."""
    tiles, shape, block, channels, *_ = layout
    per_c, per_k, terms = problem.c // problem.groups, problem.k // problem.groups, direct_terms(problem, tiles)
    panels, ranges, blocks = problem.groups * -(-per_k // shape.width), -(-per_c // channels), block.pieces
    groups, elements = -(-per_c * terms // shape.positions), tiles.elements
    multiplied = tiles.products / math.prod(tiles.phases)
    products = multiplied * panels * blocks * groups * (block.tiles * tile_cycles(shape.vectors, shape.positions) * 1.05 + 60)
    inputs = panels * _input_cycles(problem, layout)
    # each range packs and transforms the gradients of its panel; so does each of two threads that share a single item
    gradient = (elements * 3 + math.prod(tiles.outputs) * 4) * host().moving
    times = max(panels * ranges, 2 if layout.shares == 1 else 1) * blocks
    gradients = times * (shape.vectors * block.tiles * gradient + block.pixels * shape.width)
    kernels = panels * shape.vectors * per_c * terms * (elements * 6 + 60) * host().moving
    return products + inputs + gradients, kernels + math.prod(problem.w_shape) * WRITE_CYCLES


def _input_cycles(problem: ConvProblem, layout: _Layout) -> float:
    """Of packing and transforming the input of all blocks of a group, for one panel."""
    tiles, shape, block, channels, *_ = layout
    per_c = problem.c // problem.groups
    if layout.deep:
        return -(-per_c // channels) * deep_cycles(problem, tiles, block, channels)
    vectors = (
        block.pieces * block.images * per_c * math.prod(tiles.phases) * layout.rows * math.prod(block.pitch[:-2]) / shape.lanes
    )
    return pack_cycles(block, per_c) * 1.5 + vectors * host().moving * tiles.elements * 7


def _shares(problem: ConvProblem, layout: _Layout) -> int:
    """Into how many sums over some of the blocks each gradient is parted: a power of two that costs little beside the products."""
    if problem.out_dtype != problem.acc_dtype:
        return 1
    products, finish = _cycles(problem, layout)
    panels = problem.groups * -(-(problem.k // problem.groups) // layout.shape.width)
    items = panels * -(-(problem.c // problem.groups) // layout.channels)
    # parted sums are read and added up once more
    shares, most = 1, min(layout.block.pieces, SHARE_COST * products / max(1.3 * finish, 1))
    while shares * items < ITEMS and 2 * shares <= most:
        shares *= 2
    return shares


def _cost(problem: ConvProblem, layout: _Layout) -> float:
    """Cycles of the products and of the transforms, counted in vectors."""
    products, finish = _cycles(problem, layout)
    return CALL_SECONDS + 3e-6 + seconds(products + layout.shares * finish, problem.flops / 8)


@functools.lru_cache(maxsize=256)
def _layout(problem: ConvProblem) -> _Layout:
    """The layout with the least cost."""
    layouts = (_layout_with(problem, tiles, deep) for tiles in tiles_of(problem) for deep in (False, True))
    return min(layouts, key=lambda layout: _cost(problem, layout))


# A block's own numbers, beside those of `winograd.inputs`: input channels of an item, shares of the blocks, outputs of a block,
# elements from one element to the next in the transformed gradient and in the sums.
CHANNELS, SHARES, PIXELS, M_STEP, S_STEP = (EXTRA + i for i in (2, 3, 4, 8, 10))
UINT8 = Tag("uint8")
# The parts of a worker's scratch memory: tables, packed and transformed input, packed and transformed gradient, a spare tile, sums,
# taps, sums of the bias.
TABLES, SLABS, INPUTS, ROWS_OF_Y, GRADIENTS, SPARE, SUMS, KERNELS, BIAS, AREAS = range(10)

# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def transform_gradients(m, pixels, spare, block, g, b, tools, at):
    """The transformed gradients of a block's tiles, [element][tile][lane], from those of its outputs, [pixel][lane]."""
    size, rows, columns = itemsize(at), b[ROWS], b[COLUMNS]
    width, step, vectors = b[PANEL] * size, b[M_STEP] * size, b[PANEL] // tools[LANES]
    planes, lines, height, tiles, length = tile_extents(g, b, block)
    for line in range(planes * lines):
        row = line % lines * rows
        start = (line // lines * height + row) * length
        for tile in range(tiles):
            column = tile * columns
            source, target = pixels + (start + column) * width, m + (line * tiles + tile) * width
            if (row + rows <= height) & (column + columns <= length):
                invoke(tools[GRADIENT], source, length * width, width, vectors, target, step)
            else:
                clear(spare, rows * columns * b[PANEL], at)
                inside = min(rows, height - row), min(columns, length - column)
                copy_pixels(spare, source, inside[0], inside[1], columns * width, width, length * width, width, tools, at)
                invoke(tools[GRADIENT], spare, columns * width, width, vectors, target, step)


@helper
def transform_kernels(kernels, sums, channels, phases, g, b, tools, at):
    """The kernels of so many input channels, [c][lead tap][tap][lane], from the sums of their elements, [phase][c][lead tap]."""
    taps, size, inner = b[TAPS], itemsize(at), inner_window(g)
    width, vectors = b[PANEL] * size, b[PANEL] // tools[LANES]
    for one in range(channels * phases * taps):
        phase, c, tap = one // (channels * taps), one // taps % channels, one % taps
        start, row_step, column_step, rows, columns = phase_taps(phase, width, g)
        target = kernels + ((c * taps + tap) * inner * width + start)
        invoke(tools[KERNEL], sums + one * width, b[S_STEP] * size, vectors, target, row_step, column_step, rows, columns)


@helper
def add_products(sums, gradients, inputs, positions, each, offsets, tiles, resume, g, b, elements, tools, at):
    """The sums of every element += its products, over the tiles of a block; `each`: sums of a phase."""
    size = itemsize(at)
    v_step, width = b[V_STEP] * size, b[PANEL] * size
    for element in range(elements):
        begin, end = phase_range(element, g, b)
        invoke(
            tools[PRODUCT], gradients + element * b[M_STEP] * size, inputs + element * v_step, positions + 8 * begin * each,
            sums + element * b[S_STEP] * size + begin * each * width, (end - begin) * each, tiles, offsets, width,
            resume,
        )  # fmt: skip


@helper
def _items(worker, queue, args):
    yt, at, scratch, areas, tools, splits, y, x, w, bias, status, g, b = args
    ndim, per_c, per_k, size, width = g[DIMS], g[PER_C], g[PER_K], itemsize(at), b[PANEL] * itemsize(at)
    xs, ws, ys = part(g, PARTS), part(g, PARTS + 1), part(g, PARTS + 2)
    count, phases = element_counts(g, b)
    own, terms = area_of(scratch, areas, AREAS, worker), phases * b[TAPS]
    slabs, inputs, pixels, gradients = own + areas[SLABS], own + areas[INPUTS], own + areas[ROWS_OF_Y], own + areas[GRADIENTS]
    spare, sums, kernels, bias_sums = own + areas[SPARE], own + areas[SUMS], own + areas[KERNELS], own + areas[BIAS]
    positions = own + areas[TABLES]
    elements = positions + 8 * (b[CHANNELS] * terms + b[GROUP])
    axis_steps = pointer(elements + 8 * count * phases, INT64)
    offsets = elements + 8 * (count * phases + ndim)
    panels, plane = -(-per_k // b[PANEL]), place_steps(axis_steps, g, b, size) * size
    fill_elements(pointer(elements, INT64), g, b, size)
    table, filled, steps = pointer(positions, INT64), 0, (0, 0, 0)
    for item in taken_items(queue, worker):
        split, panel, group = item % splits, item // splits % panels, item // splits // panels % g[GROUPS]
        share = item // splits // panels // g[GROUPS]
        k, c = panel * b[PANEL], per_c * split // splits
        used, channels = min(per_k - k, b[PANEL]), per_c * (split + 1) // splits - c
        if channels == 0:
            continue
        if channels != filled:
            filled, steps = channels, input_steps(channels, plane // size, g, b, tools)
            fill_pass(table, channels, steps, axis_steps, g, b, size)
            for more in range(channels * terms, channels * terms + b[GROUP]):
                table[more] = table[0]
        y_k, x_c = y + (group * g[ys + 1] + k * g[ys + 2]), x + (group * g[xs + 1] + c * g[xs + 2])
        summed = (split == 0) & (not is_null(bias))
        clear(bias_sums, b[PANEL], at)
        clear(pixels, b[PIXELS] * b[PANEL] if used < b[PANEL] else 0, at)
        clear(sums, count * b[S_STEP] if b[BLOCKS] == 0 else 0, at)
        begun = b[BLOCKS] * share // b[SHARES]
        for block in range(begun, b[BLOCKS] * (share + 1) // b[SHARES]):
            source = x_c + block_image(b, ndim, block) * g[xs]
            transform_inputs(inputs, slabs, elements, source, channels, 0, channels, block, plane // size, g, b, tools, at)
            tiles = fill_places(pointer(offsets, INT64), 1, steps[0] * size, axis_steps, g, b, block)
            invoke(tools[READ], tools, pixels, width, used, y_k, block, g, b)
            if summed:
                planes, _, height, _, length = tile_extents(g, b, block)
                add_rows(bias_sums, pixels, planes * height * length, b[PANEL], at)
            transform_gradients(gradients, pixels, spare, block, g, b, tools, at)
            resume = 1 if block > begun else 0
            each = channels * b[TAPS]
            add_products(sums, gradients, inputs, positions, each, offsets, tiles, resume, g, b, count, tools, at)
        transform_kernels(kernels, sums, channels, phases, g, b, tools, at)
        w_k, taps = w + ((share * g[GROUPS] + group) * g[ws] + k * g[ws + 1] + c * g[ws + 2]), b[TAPS] * inner_window(g)
        if invoke(tools[WRITE_WEIGHTS], tools, kernels, width, used, w_k, 0, channels * taps, taps, inputs, g):
            status[0] = 1
        if summed:
            for lane in range(used):
                store(bias + ((share * g[GROUPS] + group) * per_k + k + lane) * itemsize(yt), load(bias_sums + lane * size, at), yt)


@kernel
def winograd_weights(
    yt: Tag, at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, tools: Address, splits: int,
    y: Address, x: Address, w: Address, bias: Address, status: Address, g: Address, b: Address,
) -> None:  # fmt: skip
    """The gradient of w from that of y and x, [share][k][c][tap].

    An item is a panel of output channels and a range of input channels, summed over a share of the blocks.
    `tools`: see `tools_for`; `bias`, if not 0, gets the gradient of a bias on y. `status` gets a 1 if a sum is not finite.
    """
    parallel_items(
        region,
        workers,
        items,
        _items,
        (
            yt, at, scratch, pointer(areas, INT64), pointer(tools, INT64), splits, y, x, w, bias,
            pointer(status, UINT8), pointer(g, INT64), pointer(b, INT64),
        ),
    )  # fmt: skip


# --- the implementation --------------------------------------------------------------------------------------------------------


def _steps(problem: ConvProblem, layout: _Layout) -> tuple[int, int, int]:
    """From element to element of the transformed input, of the transformed gradient, and of the sums."""
    tiles, shape, block, channels, *_ = layout
    line = 64 // np_dtype(problem.acc_dtype).itemsize
    rounded = channels * direct_terms(problem, tiles) + shape.positions
    return (
        spread(layout.inputs(problem).places, line),
        spread(block.tiles * shape.width, line),
        spread(rounded * shape.width, line),
    )


def _areas(problem: ConvProblem, layout: _Layout) -> Areas:
    """A worker's scratch memory."""
    tiles, shape, block, channels, *_ = layout
    item, elements = np_dtype(problem.acc_dtype).itemsize, tiles.elements
    v_step, m_step, s_step = _steps(problem, layout)
    rounded = channels * direct_terms(problem, tiles) + shape.positions
    tables = 8 * (rounded + elements * math.prod(tiles.phases) + problem.ndim + block.tiles)
    sizes = (
        layout.inputs(problem).elements,
        max(elements * v_step, shape.lanes**2),
        block.pixels * shape.width,
        elements * m_step,
        math.prod(tiles.outputs) * shape.width,
        elements * s_step,
        channels * math.prod(problem.kernel) * shape.width,
        shape.width,
    )
    return Areas(tables, *(count * item for count in sizes))


class _Executor:
    """One weight gradient."""

    def __init__(self, problem: ConvProblem):
        layout = _layout(problem)
        tiles, shape, block = layout[:3]
        taps = math.prod(problem.kernel[: lead_axes(problem)])
        v_step, m_step, s_step = _steps(problem, layout)
        inputs = layout.inputs(problem)
        self._problem = problem
        self._shares = layout.shares
        self._panels = layout.shares * problem.groups * -(-(problem.k // problem.groups) // shape.width)
        self._ranges = -(-problem.c // problem.groups // layout.channels)
        self._channels = layout.channels
        self._work = problem.flops / 8
        self._vectors = conv_vectors(problem, 0)
        numbers = (
            layout.channels,
            layout.shares,
            block.pixels,
            taps,
            inputs.channels,
            v_step,
            m_step,
            layout.rows,
            s_step,
            *tiles.outputs,
            inputs.tile,
        )
        self._block = block_vector(block, shape.width, shape.positions, *numbers)
        self._areas = _areas(problem, layout)
        winograd_weights.begin(problem.out_dtype, problem.acc_dtype)
        self._tools = tools_of(problem, tiles, shape, block, reads=True)
        self._kernel = winograd_weights.specialise(problem.out_dtype, problem.acc_dtype)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        (w, *bias), (y, x) = outs, ins
        on_y = bool(bias) and self._problem.bias == "y"
        sums: Any = np.empty((self._shares, self._problem.k), w.dtype) if on_y else 0
        parts = np.empty((self._shares, *w.shape), w.dtype) if self._shares > 1 else w[None]
        vector = self._vectors(x.strides, parts.strides[1:], y.strides)
        splits = self._ranges * parts_for(self._panels * self._ranges, self._channels, self._work)
        status = np.zeros(1, np.uint8)
        run_with(
            self._areas, self._kernel, self._panels * splits, self._work, self._tools, splits, y, x, parts, sums, status, vector,
            self._block,
        )  # fmt: skip
        if status[0]:
            BlockedWeights().build(self._problem)(outs, ins)
            return
        if self._shares > 1:
            parts.sum(axis=0, out=w)
        if on_y:
            bias[0][...] = sums.sum(axis=0) if self._shares > 1 else sums[0]


class WinogradWeights(Implementation):
    """Weight gradients of real floats by Winograd's algorithm, for three taps along the last two dimensions."""

    name = "winograd"
    ops = frozenset(("weight_grad",))
    levels = Winograd.levels
    measured_error: ClassVar[Mapping[str, float]] = Winograd.measured_error

    def supports(self, problem: ConvProblem) -> Verdict:
        """What the forward convolution supports; a bias on x is left to others."""
        if problem.acc_dtype not in ("float32", "float64"):
            return Verdict.no(f"its tiles are for real floats, and sums of {problem.dtype} are {problem.acc_dtype}")
        if problem.bias == "x":
            return Verdict.no("it sums the gradient of a bias on y only")
        terms = problem.n * math.prod(problem.output)
        if terms < LEAST_TERMS:
            return Verdict.no(f"sums of {terms} terms are small beside the error of a tile; it takes {LEAST_TERMS} or more")
        return Winograd().accepts(problem)

    def cost(self, problem: ConvProblem) -> float:
        """See `_cost`."""
        problem = turned(problem)
        return _cost(problem, _layout(problem))

    def workspace(self, problem: ConvProblem) -> int:
        """For each thread: packed and transformed input and gradient, sums, taps, tables."""
        problem = turned(problem)
        layout = _layout(problem)
        parted = layout.shares * math.prod(problem.w_shape) * np_dtype(problem.out_dtype).itemsize
        items = (
            layout.shares * problem.groups * -(-(problem.k // problem.groups) // layout.shape.width) * (problem.c // problem.groups)
        )
        return max(min(MAX_THREADS, max(items, 1)) * _areas(problem, layout).bytes + parted, BlockedWeights().workspace(problem))

    def build(self, problem: ConvProblem) -> _Executor | Turned:
        """The executor."""
        order, executor = turned_order(problem), _Executor(turned(problem))
        return executor if order is None else Turned(executor, order)
