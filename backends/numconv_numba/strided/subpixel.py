"""Input gradients with a stride, so also transposed convolutions, for real floats: all phases of the stride in one pass.

Positions of x with the same remainder by the stride are read by the same taps. Each such phase is a convolution of its own, with
stride 1, whose results lie a stride apart: stored one by one, they would write each line of memory several times. Here a work
item computes all phases of a block from one slab of the gradient of y, with the lanes over channels as in `blocked`. A tile leaves
its rows of results a stride apart in scratch memory, so that those of the phases along a row interleave by themselves, and lines
of x are written once, whole. Shi et al., "Real-time single image and video super-resolution using an efficient sub-pixel
convolutional neural network" (CVPR 2016), section 3.2, with a kernel for each phase that holds no zeros.

The terms of an element form one chain in the order of the "strict" level.
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
from numconv_numba.compiling.compiler import Address, Tag, Unit, helper, invoke, kernel
from numconv_numba.dense.base import ForwardExecutor, Weights
from numconv_numba.dense.blocked import (
    CALL_SECONDS,
    SLAB_BYTES,
    Shape,
    array_origin,
    most_workers,
    panel_shape,
    parts_for,
    reads_in_place,
    seconds,
    tile_cycles,
    window_steps,
)
from numconv_numba.dense.panels import fill_places
from numconv_numba.dense.slab import (
    BLOCKS,
    CHANNEL,
    EXTRA,
    WRITE_CYCLES,
    Block,
    block_image,
    block_images,
    block_vector,
    cut,
    pack_cycles,
    shareable,
    slab_bytes,
    tap_positions,
)  # fmt: skip
from numconv_numba.direct import MEASURED_ERROR
from numconv_numba.elements import INT64, itemsize
from numconv_numba.entries import COPY, PACK, PACK_WEIGHTS, PRODUCT
from numconv_numba.geometry import DIMS, OPTION, PARTS, PER_C, PER_K, conv_vectors, part
from numconv_numba.microkernels.emit import host
from numconv_numba.scalar import is_null, pointer
from numconv_numba.threads import MAX_THREADS, Areas, Kept, area_of, parallel_items, run_with, taken_items
from numconv_numba.tools import split_address, tools_for

from .phases import Phases, phases_of
from .writing import INNER, LEADS, axes_entries, own_entries, write_phases

__all__ = ["Subpixel"]

RESULT_BYTES = 128 * 1024
"""The sums of a block for a panel, at all phases of the last dimension; twice as many where the block has few pixels."""
LEAST_PIXELS = 128
"""Of a block that is not made smaller for that: some tiles, beside which starting them is little."""
ORDERED_BYTES = 32 * 1024
"""Packed weights that are put in the order of the phases in one go: they stay in the first-level cache."""
PARTED_TAPS = 2, 4, 8
"""Of a kernel, which few shuffles part: squares of as many columns as a vector has lanes would stay nearly empty."""
PACK_WORK = 20
"""Multiply-adds that take as long as packing one weight."""
TILE_CYCLES = 60
"""Of the start and the end of a tile."""
ORDER_CYCLES, PARTED_CYCLES, SINGLE_CYCLES = 1.2, 0.7, 0.45
"""Of packing one weight, and of putting it in the order of the phases; of one whose taps are parted; if each is a phase, alone."""

MOST_PHASES, MOST_PLACES = 4096, 1 << 16
"""That are listed, each with its taps: 16 a dimension of a volume. Planning takes half a microsecond each."""


class _Layout(NamedTuple):
    """How an input_grad is cut.

    The tile, the block of outputs of the window problem, channels of y of a pass of the phase of the most taps, what is read.
    """

    phases: Phases
    shape: Shape
    block: Block
    chunk: int
    in_place: bool

    @property
    def places(self) -> int:
        """Elements of a phase of a block, rounded up to tiles."""
        return -(-self.block.pixels // self.shape.positions) * self.shape.positions

    @property
    def terms(self) -> int:
        """Of a pass, for the phase of the most taps."""
        return self.chunk * max(1, self.phases.most_taps)

    def panels(self, per_k: int) -> int:
        """Panels of a group."""
        return -(-per_k // self.shape.width)


@functools.lru_cache(maxsize=256)
def _layout(problem: ConvProblem) -> _Layout:
    """The layout of a problem, which its cost, its workspace and its executor ask for one after the other."""
    phases = phases_of(problem)
    window, inner = phases.window, phases.counts[-1]
    item, per_k, depth = np_dtype(problem.acc_dtype).itemsize, window.k // window.groups, window.c // window.groups
    width = panel_shape(problem.acc_dtype, per_k, 1 << 20).width * item
    several = phases.leads > 1 or per_k * item > width

    def fits(block: Block) -> bool:
        most = RESULT_BYTES if block.pixels > LEAST_PIXELS else 2 * RESULT_BYTES
        small = slab_bytes(window, block) <= SLAB_BYTES and block.pixels * inner * width <= most
        # where threads share the phases or panels of one block, both pack its slab
        return small and ((several and block.images * block.channel <= per_k * len(phases.taps)) or shareable(window, block))

    units = (1,) * problem.ndim
    block = cut(window, units, tap_positions(window), units, fits, window.n)
    shape = panel_shape(problem.acc_dtype, per_k, block.pixels)
    # of the phase of the most taps; those of the others have more channels in a pass
    chunk = min(depth, max(1, host().resident // (max(1, phases.most_taps) * shape.width * item)))
    return _Layout(phases, shape, block, chunk, reads_in_place(window))


# A block's own numbers: channels of a panel, elements of a tile, terms of a pass, elements rounded up to tiles.
PANEL, GROUP, PASS, PLACES = range(EXTRA, EXTRA + 4)
# What kernels know of the phases, behind what `writing` knows: taps of all, and of the kernel, which has more where x is shorter
# than the stride; two a phase, its first tap and how many; then of each tap its number in w and its position in the window.
TAPS, KERNEL, OWN = range(3)


def _phases_vector(problem: ConvProblem, phases: Phases) -> np.ndarray[Any, Any]:
    """The vector of the phases."""
    counts = list(map(len, phases.taps))
    firsts = [0, *itertools.accumulate(counts)]
    each = [value for both in zip(firsts, counts, strict=False) for value in both]
    taps = [value for phase in phases.taps for number, place in phase for value in (number, *place)]
    head = axes_entries(problem, phases.counts, [0] * problem.ndim)
    return np.array([*head, sum(counts), math.prod(problem.kernel), *each, *taps], np.int64)


# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def phase_taps(p, ndim, phase):
    """(the first tap of a phase, how many)."""
    place = own_entries(ndim) + OWN + 2 * phase
    return p[place], p[place + 1]


@helper
def tap_entry(p, ndim, tap, which):
    """The number in w of a tap, or its position in the window along dimension `which` - 1."""
    return p[own_entries(ndim) + OWN + 2 * p[LEADS] * p[INNER] + tap * (1 + ndim) + which]


@helper
def fill_phase_terms(table, terms, channel, axis_steps, p, ndim):
    """The offset of each term of a pass in the window, of every tap in each channel: so many `terms` for each phase."""
    for phase in range(p[LEADS] * p[INNER]):
        first, count = phase_taps(p, ndim, phase)
        for tap in range(count):
            offset = 0
            for axis in range(ndim):
                offset += tap_entry(p, ndim, first + tap, 1 + axis) * axis_steps[axis]
            for c in range(terms // count):
                table[phase * terms + c * count + tap] = offset + c * channel


# The parts of a worker's scratch memory: places and terms, the slab, results of a panel.
TABLES, SLAB, RESULTS, AREAS = range(4)


@helper
def multiply_phases(a, source, tables, terms, results, pixels, lead, channel, width, g, b, p, tools):
    """The sums of a block at one phase of all dimensions but the last, those of the last interleaved; `a`: the panel's weights."""
    ndim, depth = g[DIMS], g[PER_C]
    for phase in range(p[INNER]):
        number = lead * p[INNER] + phase
        begin, taps = phase_taps(p, ndim, number)
        chunk = b[PASS] // max(taps, 1)
        for first in range(0, depth, chunk):
            invoke(
                tools[PRODUCT], a + (begin * depth + first * taps) * width, source + first * channel, tables,
                results + phase * width, pixels, min(chunk, depth - first) * taps, terms + 8 * b[PASS] * number,
                p[INNER] * width, 1 if first > 0 else 0,
            )  # fmt: skip


@helper
def _blocks(worker, queue, args):
    at, scratch, areas, tools, write, splits, in_place, y, w, bias, x, status, g, b, p = args
    ndim, depth, per_k, width = g[DIMS], g[PER_C], g[PER_K], b[PANEL] * itemsize(at)
    ys, xs, size, panels, leads = part(g, PARTS), part(g, PARTS + 2), itemsize(at), -(-g[PER_K] // b[PANEL]), p[LEADS]
    own = area_of(scratch, areas, AREAS, worker)
    tables, slab, results = own + areas[TABLES], own + areas[SLAB], own + areas[RESULTS]
    terms = tables + 8 * b[PLACES]
    axis_steps = pointer(terms + 8 * b[PASS] * p[LEADS] * p[INNER], INT64)
    window_steps(axis_steps, in_place, g, b, size)
    channel, image = (g[ys + 2], g[ys]) if in_place else (b[CHANNEL] * size, depth * b[CHANNEL] * size)
    fill_phase_terms(pointer(terms, INT64), b[PASS], channel, axis_steps, p, ndim)
    where, source, pixels, taps = -1, y, 0, p[own_entries(ndim) + TAPS]
    for item in taken_items(queue, worker):
        block, group = item // splits % b[BLOCKS], item // splits // b[BLOCKS]
        if item // splits != where:
            where, source = item // splits, y + (block_image(b, ndim, block) * g[ys] + group * g[ys + 1])
            pixels = fill_places(pointer(tables, INT64), b[GROUP], image, axis_steps, g, b, block)
            if in_place:
                source = source + array_origin(g, b, block)
            else:
                invoke(tools[PACK], tools, slab, source, block, block_images(g, b, block), depth, g, b)
                source = slab
        for unit in range(panels * leads * (item % splits) // splits, panels * leads * (item % splits + 1) // splits):
            panel, lead = unit // leads, unit % leads
            k = panel * b[PANEL]
            a = w + (group * panels + panel) * depth * taps * width
            multiply_phases(a, source, tables, terms, results, pixels, lead, channel, width, g, b, p, tools)
            shift = bias if is_null(bias) else bias + (group * per_k + k) * size
            target, columns = x + (group * g[xs + 1] + k * g[xs + 2]), min(per_k - k, b[PANEL])
            invoke(write, tools, results, width, columns, shift, g[OPTION], target, status, block, lead, g, b, p)


@kernel
def subpixel(
    at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, tools: Address, write: int, splits: int,
    in_place: int, y: Address, w: Address, bias: Address, x: Address, status: Address, g: Address, b: Address, p: Address,
) -> None:  # fmt: skip
    """x from y and packed w: an item is a block, for some of the panels and phases of all dimensions but the last.

    `tools`: see `tools_for`; `write`: the address of `write_phases`. `status` gets a 1 for each image of which a sum is not finite.
    The bias is in the accumulation dtype.
    """
    parallel_items(
        region,
        workers,
        items,
        _blocks,
        (
            at, scratch, pointer(areas, INT64), pointer(tools, INT64), write, splits, in_place, y, w, bias, x,
            status, pointer(g, INT64), pointer(b, INT64), pointer(p, INT64),
        ),
    )  # fmt: skip


@helper
def pack_kernels(packed, w, columns, c, count, taps, parted, g, b, tools, at):
    """The kernels of so many channels of y from c on, [c][tap][lane], for a panel of so many channels of x at `w`.

    `parted`: the address of a `split` that parts the taps of kernels which follow each other in memory, or 0.
    """
    step, width = g[part(g, PARTS + 1) + 2], b[PANEL] * itemsize(at)
    if parted:
        invoke(parted, w + c * step, 0, columns * taps, packed, width, b[PANEL], count, step, taps * width, 1, 0, 0)
    else:
        invoke(tools[PACK_WEIGHTS], tools, packed, w, columns, c, count, taps, width, g)


@helper
def _panels(worker, queue, args):
    at, scratch, areas, tools, parted, single, w, target, chunk, g, b, p = args
    ws, depth, per_k, width, panels = part(g, PARTS + 1), g[PER_C], g[PER_K], b[PANEL] * itemsize(at), -(-g[PER_K] // b[PANEL])
    own = area_of(scratch, areas, 1, worker)
    ndim, chunks = g[DIMS], -(-g[PER_C] // chunk)
    kernel, row, ordered = p[own_entries(ndim) + KERNEL], p[own_entries(ndim) + KERNEL] * width, p[own_entries(ndim) + TAPS] * width
    for item in taken_items(queue, worker):
        panel, c = item // chunks, item % chunks * chunk
        group, k, count = panel // panels, panel % panels * b[PANEL], min(chunk, depth - c)
        source, place = w + (group * g[ws] + k * g[ws + 1]), target + panel * depth * ordered
        columns, step = min(per_k - k, b[PANEL]), g[ws + 2]
        if parted and single:
            into = place + c * width
            invoke(parted, source + c * step, 0, columns * kernel, into, depth * width, b[PANEL], count, step, width, 1, 0, 0)
            continue
        pack_kernels(own, source, columns, c, count, kernel, parted, g, b, tools, at)
        for phase in range(p[LEADS] * p[INNER]):
            first, taps = phase_taps(p, ndim, phase)
            for tap in range(taps):
                invoke(
                    tools[COPY], own + tap_entry(p, ndim, first + tap, 0) * width, 0, b[PANEL],
                    place + (first * depth + c * taps + tap) * width, 0, b[PANEL], count, row, taps * width, 1, 0, 0,
                )  # fmt: skip


@kernel
def pack_phases(
    at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, tools: Address, parted: int, single: int,
    w: Address, target: Address, chunk: int, g: Address, b: Address, p: Address,
) -> None:  # fmt: skip
    """All panels of w, ``[panel][phase][c][tap][lane]``: an item is `chunk` channels of y in a panel of a group.

    `parted`: see `pack_kernels`; `single`: whether each tap is a phase, in their order.
    """
    parallel_items(
        region,
        workers,
        items,
        _panels,
        (
            at, scratch, pointer(areas, INT64), pointer(tools, INT64), parted, single, w, target, chunk,
            pointer(g, INT64), pointer(b, INT64), pointer(p, INT64),
        ),
    )  # fmt: skip


_kernels = Unit(
    "subpixel.kernels",
    lambda out, acc: [(write_phases, (out, acc))],
    called=lambda out, acc: [(subpixel, (acc,)), (pack_phases, (acc,))],
)


# --- the implementation --------------------------------------------------------------------------------------------------------


def _areas(problem: ConvProblem, layout: _Layout) -> Areas:
    """A worker's scratch memory."""
    phases, shape, block, _, in_place = layout
    tables = 8 * (layout.places + layout.terms * len(phases.taps) + problem.ndim)
    results = layout.places * phases.counts[-1] * shape.width * np_dtype(problem.acc_dtype).itemsize
    return Areas(tables, 0 if in_place else slab_bytes(phases.window, block), results)


def parted_address(problem: ConvProblem, lanes: int) -> int:
    """Of the `split` that parts the taps of kernels which follow each other in memory, or 0; see `pack_kernels`."""
    taps = math.prod(problem.kernel)
    return split_address(taps, problem.dtype, problem.acc_dtype, problem.acc_dtype, lanes) if taps in PARTED_TAPS else 0


def _are_single(problem: ConvProblem, phases: Phases) -> bool:
    """Whether each tap is a phase, in their order."""
    numbers = [tuple(number for number, _ in taps) for taps in phases.taps]
    return numbers == [(number,) for number in range(math.prod(problem.kernel))]


def follow_each_other(w: Any) -> bool:
    """Whether the kernels of an output channel follow each other in memory."""
    return bool(w[0, 0].flags.c_contiguous and w.strides[1] == w[0, 0].nbytes)


_kept = Kept()
LINE = 64
"""Bytes that packed weights start at a multiple of."""


class _Executor(ForwardExecutor):
    """One input gradient, computed like a forward convolution of the gradient of y."""

    def __init__(self, problem: ConvProblem):
        layout = _layout(problem)
        phases, shape, block, _, in_place = layout
        window, option = phases.window, ACTIVATIONS[problem.activation]
        super().__init__(problem, block.pieces * problem.groups)
        self._padded = any(low > 0 or high > 0 for low, high in window.padding)
        self._vectors = conv_vectors(window, option, swapped=True)
        kernel = window.replace(spatial=problem.kernel, kernel=problem.kernel, padding=((0, 0),) * problem.ndim)
        self._kernels = conv_vectors(kernel, option, swapped=True)
        self._panels = layout.panels(window.k // window.groups)
        self._units = self._panels * phases.leads
        self._work = problem.flops / 2
        self._width, self._depth = shape.width, window.c // window.groups
        self._taps = math.prod(problem.kernel)
        self._panel_weights = problem.groups * self._panels * self._depth * self._width * self._taps
        self._block = block_vector(block, shape.width, shape.positions, layout.terms, layout.places)
        self._phases = _phases_vector(problem, phases)
        self._areas, self._in_place = _areas(problem, layout), int(in_place)
        self._ordered = min(self._depth, max(1, ORDERED_BYTES // (self._taps * shape.width * self._acc.itemsize)))
        _kernels.begin(problem.out_dtype, problem.acc_dtype)
        self._tools = tools_for(
            problem.dtype, problem.acc_dtype, shape.lanes, out=problem.out_dtype, product_shape=shape[:2]
        )  # fmt: skip
        self._kernel, self._pack, self._write = _kernels.functions(problem.out_dtype, problem.acc_dtype)
        self._parted = parted_address(problem, shape.lanes)
        self._single = int(_are_single(problem, phases))

    def unpacked(self, w: Any) -> Weights:
        """w in panels, in memory that this thread keeps: fresh pages would take longer than packing."""
        size, item = self._panel_weights, self._acc.itemsize
        memory = _kept.take(size * item + LINE)
        start = -memory.ctypes.data % LINE
        return self._in_panels(w, memory[start : start + size * item].view(self._acc))

    def packed(self, w: Any) -> Weights:
        """w in panels."""
        return self._in_panels(w, np.empty(self._panel_weights, self._acc))

    def _in_panels(self, w: Any, target: Any) -> Weights:
        each, panels = self._width * self._taps, self._problem.groups * self._panels
        run_with(
            Areas(self._ordered * each * self._acc.itemsize), self._pack, panels * -(-self._depth // self._ordered),
            target.size * PACK_WORK, self._tools, self._parted if follow_each_other(w) else 0, self._single, w, target,
            self._ordered,
            self._kernels((0,) * w.ndim, w.strides, (0,) * w.ndim), self._block, self._phases,
        )  # fmt: skip
        return Weights(target, w.strides, True)

    def launch(self, x: Any, w: Weights, shift: Any, y: Any, status: Any, vector: Any) -> None:
        """Run `subpixel`: `x` is the gradient of y, and `y` that of x."""
        splits = parts_for(self._items, self._units, self._work)
        run_with(
            self._areas, self._kernel, self._items * splits, self._work, self._tools, self._write, splits, self._in_place, x,
            w.array, shift, y, status, vector, self._block, self._phases,
        )  # fmt: skip


class Subpixel(Implementation):
    """The input gradient of a convolution with a stride."""

    name = "subpixel"
    ops = frozenset(("input_grad",))
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def supports(self, problem: ConvProblem) -> Verdict:
        """Real floats, a stride, padding of zeros."""
        if problem.acc_dtype not in ("float32", "float64"):
            return Verdict.no(f"its tiles are for real floats, and sums of {problem.dtype} are {problem.acc_dtype}")
        if max(problem.stride) == 1:
            return Verdict.no("stride 1: there are no phases to put together")
        if problem.pad_mode != "zeros":
            return Verdict.no(f"an input_grad with pad_mode {problem.pad_mode} folds back: it is no dense convolution")
        phases = math.prod(map(min, problem.stride, problem.spatial))
        if phases > MOST_PHASES:
            return Verdict.no(f"it lists the phases of the stride, and {phases} are more than {MOST_PHASES}")
        reach = [d * (r - 1) // s for s, d, r in zip(problem.stride, problem.dilation, problem.kernel, strict=True)]
        if max(reach) > MOST_PLACES:
            return Verdict.no(f"it lists the outputs that its phases reach, and {max(reach)} in a row are more than {MOST_PLACES}")
        return Verdict.yes()

    def cost(self, problem: ConvProblem) -> float:
        """Products, those of unused lanes included; packing; transposing the results; start-up."""
        layout = _layout(problem)
        phases, shape, block, _, in_place = layout
        window = phases.window
        pieces, panels = block.pieces * problem.groups, layout.panels(window.k // window.groups)
        outputs = window.n * math.prod(window.output)
        # the last blocks may be short
        tiles = layout.places / shape.positions * outputs / max(block.pieces * block.pixels, 1)
        depth = window.c // window.groups
        terms = depth * math.prod(problem.kernel)
        cycles = pieces * panels * tiles * (terms * tile_cycles(shape.vectors, shape.positions) + len(phases.taps) * TILE_CYCLES)
        plane = math.prod(window.spatial) * np_dtype(problem.dtype).itemsize
        cycles *= 1.12 if in_place and plane >= 4096 else 1  # channels of y lie pages apart
        packed = 0 if in_place else pack_cycles(block, depth * problem.groups)
        ordered = SINGLE_CYCLES if _are_single(problem, phases) else PARTED_CYCLES
        weights = math.prod(problem.w_shape) * (ordered if math.prod(problem.kernel) in PARTED_TAPS else ORDER_CYCLES)
        written = outputs * len(phases.taps) * problem.c * WRITE_CYCLES
        return CALL_SECONDS + 4e-6 + seconds(cycles + packed + weights + written, problem.flops / 2)

    def workspace(self, problem: ConvProblem) -> int:
        """For each thread a slab, the results of a block and tables, or weights on their way; packed weights."""
        layout = _layout(problem)
        width, item, taps = layout.shape.width, np_dtype(problem.acc_dtype).itemsize, math.prod(problem.kernel)
        per_k, depth = problem.c // problem.groups, problem.k // problem.groups
        packed = problem.groups * layout.panels(per_k) * width * depth * taps * item
        ordered = max(ORDERED_BYTES, width * taps * item)
        workers = most_workers(layout.phases.window, layout.block, width) * layout.phases.leads
        return packed + min(MAX_THREADS, workers) * max(_areas(problem, layout).bytes, ordered)

    def build(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
