"""Convolutions of few pixels and many weights as inner products, for real floats: weights are not packed.

Fully connected layers, the small planes at the end of a network and embeddings of large patches have more weights than all else: to
pack them, as `blocked` does, takes as long as to multiply them. Here the terms of an output channel are read as they lie, and so
are those of a fully connected layer's x; of other x the columns are gathered, ``[pixel][term]``, some pixels at a time. See
`microkernels.dots`.

A sum is as many chains as a vector has lanes, so the "strict" level leaves it out. Padding zeros are terms: where w is not finite,
images whose sums are not are computed again by `direct`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Implementation, Verdict, np_dtype
from numconv_numba.activations import ACTIVATIONS
from numconv_numba.compiling.compiler import Address, Tag, helper, invoke, kernel
from numconv_numba.direct import MEASURED_ERROR
from numconv_numba.elements import INT64, itemsize
from numconv_numba.entries import DOTS
from numconv_numba.geometry import DIMS, OPTION, PARTS, PER_K, conv_vectors, part
from numconv_numba.microkernels.emit import host, lanes_of
from numconv_numba.results import write_rows
from numconv_numba.scalar import is_null, pointer
from numconv_numba.threads import MAX_THREADS, Areas, area_of, common_area, parallel_for, parallel_items, run_with, taken_items
from numconv_numba.tools import dot_tools

from .base import accumulated, is_padded, redo
from .blocked import CALL_SECONDS, Blocked, parts_for, seconds
from .columns import CHANNELS, IMAGES, READY, TAPS, WINDOWS, even_run, fill_columns, image_size, line_offset, step_of
from .panels import is_not_finite

__all__ = ["STREAM_BYTES", "InnerProduct", "copied_bytes", "in_order", "is_beyond_copying", "is_connected", "lies_in_order"]

PANEL_BYTES = 512 * 1024
"""The gathered columns of a block: they stay in the second-level cache while all output channels pass over them."""
BLOCK_PIXELS = 128
ROWS, LEAST_ROWS = 96, 24
"""Output channels that pass over a block together, so that columns come into the first-level cache for many of them, and those that
are worth an item: whole tiles of any shape."""
ROW_BYTES = 384 * 1024
"""Of the weights of these channels in a pass: with the columns they stay in the second-level cache from tile to tile."""
SUM_CYCLES = 1.5
"""Of adding up the lanes of a sum."""
RESUMED = 1.08
"""What products take whose terms are added up in several passes, with AVX2: measured."""
NARROW, FEW_TILES = 1.12, 3
"""What products of vectors of at most 32 bytes take, beside what was fitted to longer ones, of pixels that are more than so many
tiles: measured with AVX2."""
COPIED_BYTES = 16 * 1024 * 1024
"""Arrays up to this size are copied where they do not lie in order; larger ones are left to what takes any order."""
STREAM_BYTES = 20
"""Of weights that come from memory, or a cache that all share, in a cycle."""
GATHER_CYCLES, GATHER_APART_CYCLES = 0.6, 2.0
"""Of an element of a column, from pixels that are neighbours or lie apart."""
ROW_CYCLES, TAP_CYCLES, FEW_CYCLES = 3.0, 4.0, 2.0
"""Of a vector of a row of a window, of an element that lies apart from its neighbours, and of one of few that do not."""
COLUMN_CYCLES, WINDOW_CYCLES = 15, 190
"""Of the start of a column, and of one that holds a window."""


class _Layout(NamedTuple):
    """How a problem is cut: pixels of all images and of a block, terms of an output channel and of a pass."""

    pixels: int
    block: int
    terms: int
    chunk: int

    @property
    def blocks(self) -> int:
        """Blocks of a group."""
        return -(-self.pixels // max(self.block, 1))


def _even(whole: int, most: int, unit: int) -> int:
    """The length of equal parts of at most `most`, a multiple of `unit`."""
    parts = max(1, -(-whole // most))
    return -(-whole // (parts * unit)) * unit


def _most_positions() -> int:
    """Of a tile: one of an odd number stands in for the last two."""
    return host().dot_tiles[0][0] & ~1


@functools.lru_cache(maxsize=256)
def _layout(problem: ConvProblem) -> _Layout:
    item, lanes = np_dtype(problem.dtype).itemsize, lanes_of(problem.dtype)
    pixels, terms = problem.n * math.prod(problem.output), problem.c // problem.groups * math.prod(problem.kernel)
    most = _most_positions()
    block = _even(pixels, max(most, min(BLOCK_PIXELS, PANEL_BYTES // (max(terms, 1) * item))), 1)
    chunk = _even(terms, max(lanes, host().resident // (min(most, max(pixels, 1)) * item)), lanes)
    return _Layout(pixels, min(block, pixels), terms, chunk)


def _rows_of(problem: ConvProblem) -> int:
    """Output channels that pass over a block together."""
    layout = _layout(problem)
    if layout.block <= _most_positions():  # a single tile: weights come once
        return ROWS
    held = host().near(ROW_BYTES) // (layout.chunk * np_dtype(problem.dtype).itemsize)
    return max(LEAST_ROWS, min(ROWS, held // LEAST_ROWS * LEAST_ROWS))


def is_connected(problem: ConvProblem) -> bool:
    """Whether each kernel covers its image, in the order in which both lie."""
    whole = problem.kernel == problem.spatial and (not problem.flip or math.prod(problem.kernel) == 1)
    dense = all(d == 1 or r == 1 for d, r in zip(problem.dilation, problem.kernel, strict=True))
    return whole and dense and (problem.layout == "channels_first" or math.prod(problem.spatial) == 1)


# A block's own numbers.
PIXELS, BLOCK, BLOCKS, TERMS, CHUNK, PITCH, TOGETHER = range(7)
SHARED_TERMS = 8192
"""Of all columns: fewer are gathered by each thread for itself sooner than they wait for each other."""
UINT8 = Tag("uint8")
# The parts of a worker's scratch memory.
SUMS, PANEL, AREAS = range(3)


# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def watch_sums(status, sums, pitch, rows, first, count, g, at):
    """A 1 in `status` for each image of which one of these sums is not finite."""
    size, image, flags = itemsize(at), image_size(g), pointer(status, UINT8)
    for row in range(rows):
        if is_not_finite(sums + row * pitch, count, at):
            for one in range(count):
                if is_not_finite(sums + (row * pitch + one * size), 1, at):
                    flags[(first + one) // image] = 1


@helper
def write_pixels(sums, pitch, rows, first, count, bias, y, g, tools, at):
    """The results of pixels first .. first + count for `rows` channels; y at the first of them."""
    ys, size, image = part(g, PARTS + 2), itemsize(at), image_size(g)
    if image == 1:
        write_rows(sums, pitch, rows, count, bias, g[OPTION], y + first * g[ys], g[ys + 2], g[ys], tools, at, at)
        return
    inner, run = even_run(g, PARTS + 2, False)
    step, done = step_of(g, PARTS + 2, False, g[DIMS] - 1), 0
    while done < count:
        n, q = (first + done) // image, (first + done) % image
        length = min(run - q % run, count - done)
        target = y + (n * g[ys] + line_offset(g, PARTS + 2, False, inner, q // run) + q % run * step)
        write_rows(sums + done * size, pitch, rows, length, bias, g[OPTION], target, g[ys + 2], step, tools, at, at)
        done += length


@helper
def _columns(begin, end, args):
    at, tools, columns_of, x, panel, g, b = args
    fill_columns(panel + begin * b[PITCH], b[PITCH], columns_of, x, begin, end - begin, b[TERMS], g, tools, at)


@helper
def _blocks(worker, queue, args):
    at, scratch, areas, tools, splits, columns_of, x, w, bias, y, status, g, b = args
    own = area_of(scratch, areas, AREAS, worker)
    sums, panel, size = own + areas[SUMS], own + areas[PANEL], itemsize(at)
    xs, ws, ys, per_k, pitch = part(g, PARTS), part(g, PARTS + 1), part(g, PARTS + 2), g[PER_K], b[BLOCK] * itemsize(at)
    where = -1
    for item in taken_items(queue, worker):
        split, block, group = item % splits, item // splits % b[BLOCKS], item // splits // b[BLOCKS]
        first = block * b[BLOCK]
        count = min(b[BLOCK], b[PIXELS] - first)
        columns, step = x + group * g[xs + 1], b[PITCH]
        if columns_of == IMAGES and b[PIXELS] == 1:
            step = g[xs]
        elif columns_of != READY:
            if item // splits != where:
                where = item // splits
                fill_columns(panel, step, columns_of, columns, first, count, b[TERMS], g, tools, at)
            columns = panel
        for k in range(per_k * split // splits, per_k * (split + 1) // splits, b[TOGETHER]):
            rows = min(b[TOGETHER], per_k * (split + 1) // splits - k)
            for term in range(0, b[TERMS], b[CHUNK]):
                passed = min(b[CHUNK], b[TERMS] - term)
                w_k = w + (group * g[ws] + k * g[ws + 1] + term * size)
                invoke(
                    tools[DOTS], columns + term * size, step, count, passed, w_k, g[ws + 1], rows, sums, pitch, 1 if term > 0 else 0
                )
            if not is_null(status):
                watch_sums(status, sums, pitch, rows, first, count, g, at)
            shift = bias if is_null(bias) else bias + (group * per_k + k) * size
            write_pixels(sums, pitch, rows, first, count, shift, y + (group * g[ys + 1] + k * g[ys + 2]), g, tools, at)


@kernel
def inner_product(
    at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, tools: Address, splits: int, columns: int,
    shared: int, x: Address, w: Address, bias: Address, y: Address, status: Address, g: Address, b: Address,
) -> None:  # fmt: skip
    """y from x and w, whose terms follow each other: an item is a block of pixels for a part of the output channels.

    `columns`: one of the kinds above. If they are `shared`, all workers gather those of the only block first, into their common
    memory. `status`, if it is not 0, gets a 1 for each image of which a sum is not finite.
    """
    offsets, table, sizes, cutting = pointer(areas, INT64), pointer(tools, INT64), pointer(g, INT64), pointer(b, INT64)
    source, kind = x, columns
    if shared:
        source, kind = common_area(scratch, offsets, AREAS, workers), READY
        parallel_for(region, workers, cutting[PIXELS], _columns, (at, table, columns, x, source, sizes, cutting))
    parallel_items(
        region,
        workers,
        items,
        _blocks,
        (at, scratch, offsets, table, splits, kind, source, w, bias, y, status, sizes, cutting),
    )


# --- the implementation --------------------------------------------------------------------------------------------------------


def _columns_of(problem: ConvProblem) -> int:
    """The kind of columns that x has."""
    if is_connected(problem) and not any(map(any, problem.padding)):
        return IMAGES
    if math.prod(problem.kernel) == 1 and not any(map(any, problem.padding)):
        return CHANNELS
    # to store a few lanes may take longer than to store them one by one
    item = np_dtype(problem.dtype).itemsize
    few = problem.kernel[-1] < lanes_of(problem.dtype)
    return TAPS if few and not host().masks(item, write=True) else WINDOWS


def _gather_cycles(problem: ConvProblem) -> float:
    """Of an element of a column."""
    kind, first = _columns_of(problem), problem.layout == "channels_first"
    if kind == IMAGES:
        return 0.25
    if kind == CHANNELS:
        return GATHER_CYCLES if first and problem.stride[-1] == 1 else GATHER_APART_CYCLES
    window = problem.kernel[-1]
    in_rows = first and problem.dilation[-1] == 1 and not problem.flip and problem.pad_mode == "zeros"
    if kind == TAPS and in_rows:
        return FEW_CYCLES
    return ROW_CYCLES * -(-window // lanes_of(problem.dtype)) / window if in_rows else TAP_CYCLES


def _pitch(problem: ConvProblem) -> int:
    """The bytes from column to column of the panel: a cache line more than it holds, so that they crowd no sets of a cache."""
    return -(-_layout(problem).terms * np_dtype(problem.dtype).itemsize // 64) * 64 + 64


def _areas(problem: ConvProblem) -> Areas:
    """A worker's scratch memory."""
    layout = _layout(problem)
    return Areas(ROWS * layout.block * np_dtype(problem.dtype).itemsize, layout.block * _pitch(problem))


def _common_bytes(problem: ConvProblem) -> int:
    """Of the columns that workers share: those of the only block, if they are gathered and many."""
    layout = _layout(problem)
    alone = layout.blocks * problem.groups == 1 and layout.pixels > 1
    return layout.pixels * _pitch(problem) if alone and layout.pixels * layout.terms >= SHARED_TERMS else 0


def lies_in_order(array: Any, first: int) -> bool:
    """Whether the axes from `first` on are one piece."""
    if array.flags.c_contiguous:
        return True
    reach = array.itemsize
    for size, step in zip(array.shape[: first - 1 : -1], array.strides[: first - 1 : -1], strict=True):
        if size > 1 and step != reach:
            return False
        reach *= size
    return True


def in_order(array: Any, first: int) -> Any:
    """The array, or a copy, with the axes from `first` on in one piece."""
    return array if lies_in_order(array, first) else np.ascontiguousarray(array)


def is_beyond_copying(array: Any, first: int) -> bool:
    """Whether an array that does not lie in order is too large to be copied."""
    return array.nbytes > COPIED_BYTES and not lies_in_order(array, first)


def copied_bytes(problem: ConvProblem) -> int:
    """An upper bound of the copies of x and w."""
    item = np_dtype(problem.dtype).itemsize
    return sum(min(COPIED_BYTES, math.prod(shape) * item) for shape in (problem.x_shape, problem.w_shape))


class _Executor:
    """One convolution as inner products."""

    def __init__(self, problem: ConvProblem):
        layout = _layout(problem)
        self._problem = problem
        self._items = layout.blocks * problem.groups
        self._parts = -(-(problem.k // problem.groups) // LEAST_ROWS)
        self._work = problem.flops / 2
        self._vectors = conv_vectors(problem, ACTIVATIONS[problem.activation])
        self._columns = _columns_of(problem)
        self._padded = is_padded(problem)
        self._common = _common_bytes(problem)
        numbers = layout.pixels, layout.block, layout.blocks, layout.terms, layout.chunk, _pitch(problem), _rows_of(problem)
        self._block = np.array(numbers, np.int64)
        self._areas = _areas(problem)
        self._acc = np_dtype(problem.acc_dtype)
        self._tools = dot_tools(problem.dtype, lanes_of(problem.dtype))
        self._kernel = inner_product.specialise(problem.dtype)

    @functools.cached_property
    def _general(self) -> Any:
        """What takes arrays in any order."""
        return Blocked().build(self._problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        if not self._items:
            return
        if is_beyond_copying(ins[1], 1) or (self._columns == IMAGES and is_beyond_copying(ins[0], 1)):
            self._general(outs, ins)
            return
        x, w, y = ins[0], in_order(ins[1], 1), outs[0]
        if self._columns == IMAGES:
            x = in_order(x, 1)
        status: Any = np.zeros(self._problem.n, np.uint8) if self._padded else 0
        splits = parts_for(self._items, self._parts, self._work)
        shared = splits > 1 and self._common > 0
        run_with(
            self._areas, self._kernel, self._items * splits, self._work, self._tools, splits, self._columns, int(shared), x, w,
            accumulated(ins[2], self._acc) if len(ins) > 2 else 0, y, status, self._vectors(x.strides, w.strides, y.strides),
            self._block, common=self._common if shared else 0,
        )  # fmt: skip
        if self._padded and b"\1" in status.tobytes():
            redo(self._problem, y, ins, np.flatnonzero(status))


class InnerProduct(Implementation):
    """Forward convolutions of real floats with the lanes over the terms of a sum."""

    name = "inner_product"
    ops = frozenset(("forward",))
    levels = frozenset(("high", "default", "fast"))
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def supports(self, problem: ConvProblem) -> Verdict:
        """Real floats in one dtype."""
        if problem.dtype not in ("float32", "float64") or problem.out_dtype != problem.dtype:
            return Verdict.no(f"its tiles are for float32 or float64 alone, and here {problem.dtype} becomes {problem.out_dtype}")
        return Verdict.yes()

    def cost(self, problem: ConvProblem) -> float:
        """Products; the way of the weights from memory; sums added up across lanes; columns gathered."""
        layout, lanes = _layout(problem), lanes_of(problem.dtype)
        passes, item = -(-layout.terms // layout.chunk), np_dtype(problem.dtype).itemsize
        vectors = passes * -(-layout.chunk // lanes)
        slower = 1.0
        if host().width <= 32:
            slower = (RESUMED if passes > 1 else 1) * (NARROW if layout.pixels > FEW_TILES * _most_positions() else 1)
        products = layout.pixels * problem.k * (vectors / 2 * 1.05 * slower + passes * SUM_CYCLES)
        streamed = layout.blocks * math.prod(problem.w_shape) * item / STREAM_BYTES
        gathered = layout.pixels * problem.c * math.prod(problem.kernel) * _gather_cycles(problem)
        if _columns_of(problem) != IMAGES:
            gathered += layout.pixels * problem.groups * (COLUMN_CYCLES if _columns_of(problem) == CHANNELS else WINDOW_CYCLES)
        written = math.prod(problem.y_shape) * 1.0
        return CALL_SECONDS + 1e-6 + seconds(products + streamed + gathered + written, problem.flops / 2)

    def workspace(self, problem: ConvProblem) -> int:
        """For each thread columns and sums; x and w where they do not lie in order, or what `blocked` needs."""
        items = _layout(problem).blocks * problem.groups * 16
        own = min(MAX_THREADS, max(items, 1)) * _areas(problem).bytes + _common_bytes(problem) + copied_bytes(problem)
        return max(own, Blocked().workspace(problem))

    def build(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
