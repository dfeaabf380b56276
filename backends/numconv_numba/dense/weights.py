"""Weight gradients on register tiles with the lanes over output channels, for real floats.

The gradient of w is a sum over all pixels of products of grad_y with the x that each tap reads. A work item takes some panels of
output channels and some taps, and passes over all blocks of pixels: x is packed into a slab or read where it lies, and stays in the
second-level cache while the panels pass over it one after the other. For each, grad_y is packed with the channels of the panel side
by side, ``[pixel][lane]``, and the tile of `microkernels.product` sums over the pixels of the block, with taps in the place of
pixels. No matrix of columns is formed. The gradient of a bias on y is summed on the way.

Where kernels have one tap, which reads every place of x, x and grad_y are of one kind: the one with fewer channels is packed, the
other is read where it lies, and the gradient of w is written transposed.

Every element is one chain of multiply-adds over the images, then the outputs row-major, so that neither threads nor the cut change
a bit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Implementation, Verdict, np_dtype
from numconv_numba.compiling.compiler import Address, Tag, helper, invoke, kernel
from numconv_numba.direct import MEASURED_ERROR, Direct
from numconv_numba.direct_gradients import row_sum
from numconv_numba.elements import INT64, element, in_rows, itemsize
from numconv_numba.entries import PRODUCT, WRITE_WEIGHTS
from numconv_numba.geometry import DIMS, OPTION, PARTS, PER_C, PER_K, conv_vectors, part
from numconv_numba.matrix_tiles.layers import configure_tiles, pack_layers, read_layers, release_tiles
from numconv_numba.microkernels.emit import host
from numconv_numba.microkernels.totals import add_rows
from numconv_numba.rows import clear
from numconv_numba.scalar import ROW_PAIRS, add, address, is_null, load, pointer, store
from numconv_numba.threads import MAX_THREADS, Areas, area_of, parallel_items, run_with, taken_items
from numconv_numba.tools import tools_for

from .blocked import (
    ALIKE,
    CALL_SECONDS,
    MOST_PARTS,
    Shape,
    array_origin,
    panel_shape,
    parts_for,
    reads_in_place,
    seconds,
    tile_cycles,
    window_steps,
)
from .panels import fill_places, fill_terms
from .slab import (
    BLOCKS,
    CHANNEL,
    EXTRA,
    FEW_PIECES,
    IMAGES,
    WRITE_CYCLES,
    Block,
    block_image,
    block_images,
    block_vector,
    cut,
    pack_cycles,
    pieces_for,
    slab_bytes,
    tap_positions,
)

__all__ = ["BlockedWeights", "Layout", "WeightsExecutor", "areas_of", "exchanged", "layout_with"]

SLAB_BYTES = 512 * 1024
"""The packed input of a block, for all input channels of a group."""
SHARED_BYTES = 256 * 1024
"""Of x of a block for the taps of an item: it stays in a second-level cache of 512 KiB while several panels pass over it."""
SUM_BYTES = 128 * 1024
"""The sums of an item's panels, which share that cache with x."""
READ_CYCLES = 0.7
"""Of transposing an element of grad_y."""


class Layout(NamedTuple):
    """The tile, the block of pixels that is summed in one pass, whether x is read where it lies, the factors, and items.

    Factors have so many layers, and the tile takes multiples of `step` pixels, or pairs of them. An item has so many panels
    `together`, and the taps of a panel are shared by `shares` items at least.
    """

    shape: Shape
    block: Block
    in_place: bool
    layers: int = 1
    step: int = 1
    together: int = 1
    shares: int = 1


@functools.lru_cache(maxsize=256)
def _layout(problem: ConvProblem, paired: bool) -> Layout:
    taps = problem.c // problem.groups * math.prod(problem.kernel)
    shape = panel_shape(problem.acc_dtype, problem.k // problem.groups, taps)
    return _with_items(problem, layout_with(problem, shape, paired, reads_in_place(problem)))


def _with_items(problem: ConvProblem, layout: Layout) -> Layout:
    """A layout whose items have several panels, where enough items are left."""
    shape, block, item = layout.shape, layout.block, np_dtype(problem.acc_dtype).itemsize
    panels = -(-(problem.k // problem.groups) // shape.width)
    tiles = -(-problem.c // problem.groups * math.prod(problem.kernel) // shape.positions)
    if panels < 2:
        return layout
    shares = max(1, min(-(-slab_bytes(problem, block) // SHARED_BYTES), tiles, MOST_PARTS))
    sums = -(-tiles // shares) * shape.positions * shape.width * item
    most = panels if block.pieces == 1 else max(1, SUM_BYTES // sums)
    enough = problem.groups * panels * shares // pieces_for(problem.flops / 2, FEW_PIECES)
    parts = -(-panels // max(1, min(most, enough)))
    together = -(-panels // parts)
    return layout._replace(together=together, shares=shares) if together > 1 else layout


def _reads_all(problem: ConvProblem) -> bool:
    """Whether kernels of one tap read each place of x once."""
    return math.prod(problem.kernel) == 1 and max(problem.stride) == 1 and not any(map(any, problem.padding))


def exchanged(problem: ConvProblem) -> ConvProblem | None:
    """The problem with x and grad_y in each other's place, which gives the gradient of w transposed; None if there is none."""
    if problem.groups > 1 or not _reads_all(problem) or problem.layout != "channels_first":
        return None
    return problem.replace(c=problem.k, k=problem.c, bias={"": "", "x": "y", "y": "x"}[problem.bias])


def layout_with(problem: ConvProblem, shape: Shape, paired: bool, in_place: bool, layers: int = 1, step: int = 1) -> Layout:
    """The largest block of pixels, or pairs, that fits the caches: for a panel, which the taps pass over, the first one."""
    item = np_dtype(problem.acc_dtype).itemsize

    def fits(block: Block) -> bool:
        slab = 0 if in_place else layers * slab_bytes(problem, block)
        return slab <= SLAB_BYTES and layers * block.tiles * shape.width * item <= host().resident * 5 // 4

    ones = (1,) * problem.ndim
    units = (*ones[1:], 2 if paired else 1)
    return Layout(shape, cut(problem, ones, tap_positions(problem), units, fits, problem.n), in_place, layers, step)


# A block's own numbers: channels of a panel, taps of a tile, taps of a kernel, taps of all kernels rounded up to tiles, layers of a
# factor, pixels or pairs of a step, panels of an item.
PANEL, GROUP, TAPS, ROUNDED, LAYERS, STEP, TOGETHER = range(EXTRA, EXTRA + 7)
UINT8 = Tag("uint8")
# The parts of a worker's scratch memory: places of pixels and taps, the slab, grad_y of a panel, sums, sums of the bias.
TABLES, SLAB, PANELS, SUMS, BIAS, AREAS = range(6)


@helper
def fill_taps(table, first, last, channel, layer_step, axis_steps, g, b, spare):
    """The places of the taps first..last of all kernels in a slab that begins with the channel of the first, in each layer.

    ``[tile][layer][tap]``; tiles are completed by the last tap.
    """
    fill_terms(spare, 1, channel, g[DIMS], axis_steps, g)
    start, group = first // b[TAPS], b[GROUP]
    for number in range(-(-(last - first) // group) * group):
        tap = min(first + number, last - 1)
        place = (tap // b[TAPS] - start) * channel + spare[tap % b[TAPS]]
        for layer in range(b[LAYERS]):
            table[(number // group * b[LAYERS] + layer) * group + number % group] = place + layer * layer_step


@helper
def add_halves(sums, rows, count, width, half, at):
    """sums += both halves of each of `count` rows of `width` pairs, one after the other."""
    for row in range(count):
        for part_of in range(2):
            for lane in range(width):
                place, source = sums + lane * itemsize(at), rows + (row * width + lane) * itemsize(at)
                store(place, add(load(place, at), load(source + part_of * itemsize(half), half, at)), at)


@helper
def read_results(rows, width, used, y_k, sums, block, count, g, b, kinds, tables_of):
    """grad_y of a block for the `used` channels of a panel; the sums of the bias, if wanted, go on with it."""
    ft, at = kinds
    pixels = -(-count // b[STEP]) * b[STEP]
    if used < b[PANEL]:
        clear(rows, b[LAYERS] * pixels * b[PANEL], at)  # of the panel before
    read_layers(tables_of, b[LAYERS], pixels, rows, width, used, y_k, block, count, g, b)
    if not is_null(sums):
        if in_rows(ft):
            add_halves(sums, rows, count, b[PANEL], element(ft), at)
        else:
            add_rows(sums, rows, count, b[PANEL], at)


@helper
def add_channels(sums, source, channel, channels, pixels, count, strict, at):
    """sums[c] += what so many pixels hold of each of `channels` channels, one after the other; in vectors unless `strict`."""
    size, first = itemsize(at), 0
    while first < count:
        start, run = pixels[first], 1
        while first + run < count and pixels[first + run] == start + run * size:
            run += 1
        for c in range(channels):
            place = sums + c * size
            store(place, row_sum(load(place, at), source + (c * channel + start), run, size, strict, at, at), at)
        first += run


@helper
def write_sums(bias, sums, count, yt, at):
    """The gradient of a bias."""
    for i in range(count):
        store(bias + i * itemsize(yt), load(sums + i * itemsize(at), at), yt)


@helper
def write_panel(sums, width, used, w_k, taps, bias, bias_sums, spare, g, b, kinds, tools, status):
    """The gradients of the taps of a panel, and of its bias, if wanted."""
    yt, at = kinds
    if invoke(tools[WRITE_WEIGHTS], tools, sums, width, used, w_k, taps[0], taps[1], b[TAPS], spare, g):
        status[0] = 1
    if not is_null(bias):
        write_sums(bias, bias_sums, used, yt, at)


@helper
def block_source(slab, x, channels, channel, layer_step, in_place, block, tables_of, g, b):
    """What is read of a block, x itself or a slab, and the bytes from image to image there; x at the first of the channels."""
    image = g[part(g, PARTS)]
    source = x + block_image(b, g[DIMS], block) * image
    if in_place:
        return source + array_origin(g, b, block), image
    pack_layers(tables_of, b[LAYERS], layer_step, slab, source, block, block_images(g, b, block), channels, g, b)
    return slab, channels * channel


@helper
def _parts(worker, queue, args):
    ft, yt, at, scratch, areas, tables_of, splits, in_place, y, x, w, bias, on_x, status, g, b = args
    tools = pointer(tables_of, INT64)
    ndim, per_c, per_k, size, width = g[DIMS], g[PER_C], g[PER_K], itemsize(at), b[PANEL] * itemsize(at)
    xs, ws, ys = part(g, PARTS), part(g, PARTS + 1), part(g, PARTS + 2)
    own = area_of(scratch, areas, AREAS, worker)
    tables, slab, panel_rows, sums, bias_sums = (
        own + areas[TABLES], own + areas[SLAB], own + areas[PANELS], own + areas[SUMS], own + areas[BIAS],
    )  # fmt: skip
    steps, spare = pointer(tables, INT64), pointer(tables + 8 * ndim, INT64)
    places, pixels = tables + 8 * (ndim + b[TAPS]), tables + 8 * (ndim + b[TAPS] + b[LAYERS] * b[ROUNDED])
    window_steps(steps, in_place, g, b, size)
    channel = g[xs + 2] if in_place else b[CHANNEL] * size
    panels, taps = -(-per_k // b[PANEL]), per_c * b[TAPS]
    parts = -(-panels // b[TOGETHER])
    configure_tiles(tools)
    for item in taken_items(queue, worker):
        split, first_panel, group = item % splits, item // splits % parts * b[TOGETHER], item // splits // parts
        together, tiles = min(b[TOGETHER], panels - first_panel), -(-taps // b[GROUP])
        first, last = tiles * split // splits * b[GROUP], min(tiles * (split + 1) // splits * b[GROUP], taps)
        if last <= first:
            continue
        c, last_c = first // b[TAPS], (last - 1) // b[TAPS] + 1
        layer_step = b[IMAGES] * (last_c - c) * channel
        fill_taps(pointer(places, INT64), first, last, channel, layer_step, steps, g, b, spare)
        x_c, groups = x + (group * g[xs + 1] + c * g[xs + 2]), -(-(last - first) // b[GROUP])
        summed = (first_panel if on_x else split) == 0 and not is_null(bias)
        kept = groups * b[GROUP] * width if b[BLOCKS] > 1 else 0  # sums of one block alone are written at once
        clear(bias_sums, last_c - c if on_x else together * b[PANEL], at)
        if b[BLOCKS] == 0:
            clear(sums, groups * b[GROUP] * b[PANEL], at)
        for block in range(max(b[BLOCKS], 1)):
            count, source = 0, x_c
            if b[BLOCKS] > 0:
                source, image = block_source(slab, x_c, last_c - c, channel, layer_step, in_place, block, tables_of, g, b)
                count = fill_places(pointer(pixels, INT64), b[STEP], image, steps, g, b, block)
                if summed and on_x and not in_rows(ft):
                    add_channels(bias_sums, source, channel, last_c - c, pointer(pixels, INT64), count, g[OPTION], at)
            for panel in range(together):
                k = (first_panel + panel) * b[PANEL]
                used, sums_k, bias_k = min(per_k - k, b[PANEL]), sums + panel * kept, bias_sums + panel * width
                if b[BLOCKS] > 0:
                    y_k, on_y = y + (group * g[ys + 1] + k * g[ys + 2]), bias_k if summed and not on_x else address(0)
                    read_results(panel_rows, width, used, y_k, on_y, block, count, g, b, (ft, at), tables_of)
                    resume = 1 if block > 0 else 0
                    invoke(tools[PRODUCT], panel_rows, source, places, sums_k, last - first, count, pixels, width, resume)
                if block + 1 >= b[BLOCKS]:
                    target = bias + (group * per_k + k) * itemsize(yt) if summed and not on_x else address(0)
                    w_k, span = w + (group * g[ws] + k * g[ws + 1]), (first, last)
                    write_panel(sums_k, width, used, w_k, span, target, bias_k, slab, g, b, (yt, at), tools, status)
        if summed and on_x:
            write_sums(bias + (group * per_c + c) * itemsize(yt), bias_sums, last_c - c, yt, at)
    release_tiles(tools)


@kernel
def weight_tiles(
    ft: Tag, yt: Tag, at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, tools: Address,
    splits: int, in_place: int, y: Address, x: Address, w: Address, bias: Address, on_x: int, status: Address, g: Address,
    b: Address,
) -> None:  # fmt: skip
    """The gradient of w from that of y and x: an item is some panels of output channels and a part of the taps.

    `ft` is the dtype of the factors: that of the sums, or pairs of neighbouring pixels.
    `tools`: see `tools_for`, or a table for each layer; `bias`, if not 0, gets the gradient of a bias on y, or `on_x`, all of whose
    places kernels of one tap read. `status` gets a 1 if a sum is not finite.
    """
    parallel_items(
        region,
        workers,
        items,
        _parts,
        (
            ft, yt, at, scratch, pointer(areas, INT64), tools, splits, in_place, y, x, w, bias, on_x,
            pointer(status, UINT8), pointer(g, INT64), pointer(b, INT64),
        ),
    )  # fmt: skip


class WeightsExecutor:
    """One weight gradient; `factor`: the dtype of the factors."""

    def __init__(self, problem: ConvProblem, layout: Layout, factor: str):
        shape, block, self._factor = layout.shape, layout.block, factor
        per_c, taps = problem.c // problem.groups, math.prod(problem.kernel)
        self._problem = problem
        self._parts = problem.groups * -(-(problem.k // problem.groups) // (shape.width * layout.together))
        self._shares = layout.shares
        self._tiles = -(-per_c * taps // shape.positions)
        self._work = problem.flops / 2
        self._padded = problem.pad_mode == "zeros" and any(low > 0 or high > 0 for low, high in problem.padding)
        self._vectors = conv_vectors(problem, int(problem.level == "strict"))
        numbers = (
            shape.width, shape.positions, taps, self._tiles * shape.positions, layout.layers, layout.step, layout.together,
        )  # fmt: skip
        self._block = block_vector(block, *numbers)
        self._areas = functools.cache(functools.partial(areas_of, problem, layout))
        # what the last pair of a row lacks is a zero of grad_y, beside whatever x has there
        self._lacking = factor == ROW_PAIRS and problem.output[-1] % 2 == 1
        self._in_place = int(layout.in_place)
        self._on_x = problem.bias == "x"
        self._sums_bias = problem.bias == "y" or (self._on_x and factor != ROW_PAIRS and _reads_all(problem))
        weight_tiles.begin(factor, problem.out_dtype, problem.acc_dtype)
        self._tools = self.tools(shape)
        self._kernel = weight_tiles.specialise(factor, problem.out_dtype, problem.acc_dtype)

    def tools(self, shape: Shape) -> Any:
        """What the kernel calls by address."""
        problem, options = self._problem, {"out": self._problem.out_dtype, "product_shape": shape[:2], "reads": True}
        return tools_for(problem.dtype, problem.acc_dtype, shape.lanes, factor=self._factor, **options)

    def is_lost(self, y: Any, x: Any) -> bool:
        """Whether zeros that are no terms may have met what is not finite, where a sum is not finite."""
        return (self._padded and not np.isfinite(y).all()) or (self._lacking and not np.isfinite(x).all())

    @functools.cached_property
    def _direct(self) -> Any:
        """What few calls need."""
        return Direct().build(self._problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        (w, *bias), (y, x) = outs, ins
        summed = bool(bias) and self._sums_bias
        sums = np.empty(self._problem.bias_shape, w.dtype) if summed else 0
        vector = self._vectors(x.strides, w.strides, y.strides)
        splits = self._shares * parts_for(self._parts * self._shares, self._tiles // self._shares, self._work)
        status = np.zeros(1, np.uint8)
        run_with(
            self._areas(splits), self._kernel, self._parts * splits, self._work, self._tools, splits, self._in_place, y, x, w,
            sums, int(self._on_x), status, vector, self._block,
        )  # fmt: skip
        if status[0] and self.is_lost(y, x):
            self._direct(outs, ins)
        elif summed:
            bias[0][...] = sums
        elif bias:
            self._direct.bias_grad(bias[0], y, x, w)


class _Exchanged:
    """A weight gradient by the executor of the problem that `exchanged` gives."""

    def __init__(self, executor: WeightsExecutor):
        self._executor = executor

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        (w, *bias), (y, x) = outs, ins
        self._executor((w.swapaxes(0, 1), *bias), (x, y))


def areas_of(problem: ConvProblem, layout: Layout, splits: int = 1) -> Areas:
    """A worker's scratch memory, where the taps are shared by so many items."""
    shape, block, in_place, layers, step, together, _ = layout
    pixels = -(-block.tiles // step) * step
    item, taps = np_dtype(problem.acc_dtype).itemsize, math.prod(problem.kernel)
    tiles = -(-problem.c // problem.groups * taps // shape.positions)
    rounded, own = tiles * shape.positions, -(-tiles // splits) * shape.positions
    tables = 8 * (problem.ndim + taps + layers * rounded + pixels)
    kept = together if block.pieces > 1 else 1
    elements = layers * pixels * shape.width, kept * own * shape.width, max(together * shape.width, own)
    return Areas(
        tables,
        max(shape.lanes**2 * item, 0 if in_place else layers * slab_bytes(problem, block)),
        *(count * item for count in elements),
    )


class BlockedWeights(Implementation):
    """Weight gradients of real floats with the lanes over output channels."""

    name = "blocked"
    ops = frozenset(("weight_grad",))
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR
    paired = False
    """Whether the factors are pairs of bfloat16 numbers."""

    def supports(self, problem: ConvProblem) -> Verdict:
        """Real floats."""
        if problem.acc_dtype not in ("float32", "float64"):
            return Verdict.no(f"its tiles are for real floats, and sums of {problem.dtype} are {problem.acc_dtype}")
        return Verdict.yes()

    def layout(self, problem: ConvProblem) -> Layout:
        """How a problem is cut."""
        return _layout(problem, self.paired)

    def faced(self, problem: ConvProblem) -> ConvProblem:
        """The problem, or the one that `exchanged` makes of it, where that costs less."""
        other = None if self.paired else exchanged(problem)
        return problem if other is None or self._cycles(problem) <= ALIKE * self._cycles(other) else other

    def _cycles(self, problem: ConvProblem) -> float:
        """Products, those of unused lanes included; packing; writing."""
        layout = self.layout(problem)
        shape, block, in_place, *_ = layout
        per_c, taps = problem.c // problem.groups, math.prod(problem.kernel)
        panels = problem.groups * -(-(problem.k // problem.groups) // shape.width)
        tiles = -(-per_c * taps // shape.positions)
        rate = host().pair_cycles if self.paired else 1
        products = panels * tiles * block.pieces * (block.tiles * tile_cycles(shape.vectors, shape.positions) * rate + 60)
        packed = 0 if in_place else -(-panels // layout.together) / problem.groups * pack_cycles(block, problem.c)
        read = panels * layout.shares * block.pieces * block.pixels * shape.width * READ_CYCLES
        return products + packed + read + math.prod(problem.w_shape) * WRITE_CYCLES

    def cost(self, problem: ConvProblem) -> float:
        """Of the way that it is computed; start-up."""
        return CALL_SECONDS + 2e-6 + seconds(self._cycles(self.faced(problem)), problem.flops / 2)

    def workspace(self, problem: ConvProblem) -> int:
        """For each thread a slab, grad_y of a block, sums and tables."""
        problem = self.faced(problem)
        layout = self.layout(problem)
        parts = max(1, problem.groups * -(-(problem.k // problem.groups) // (layout.shape.width * layout.together)))
        counts = range(layout.shares, layout.shares * MOST_PARTS + 1, layout.shares)
        return max(min(MAX_THREADS, parts * splits) * areas_of(problem, layout, splits).bytes for splits in counts)

    def build(self, problem: ConvProblem) -> WeightsExecutor | _Exchanged:
        """The executor."""
        faced = self.faced(problem)
        executor = WeightsExecutor(faced, self.layout(faced), ROW_PAIRS if self.paired else problem.acc_dtype)
        return executor if faced is problem else _Exchanged(executor)
