"""Convolutions of few pixels and many weights as inner products, for real floats: neither factor is packed for the other.

Fully connected layers, and kernels of one tap on the small planes at the end of a network, have more weights than all else: to pack
them, as `blocked` does, takes as long as to multiply them. Here the terms of an output channel are read as they lie, and so are
those of a fully connected layer's x; of other x the columns are gathered, ``[pixel][term]``. See `microkernels.dots`.

A sum is as many chains as a vector has lanes, so the "strict" level leaves it out. No padding takes part.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Implementation, Verdict, np_dtype

from .activations import ACTIVATIONS
from .blocked import CALL_SECONDS, Blocked, parts_for, seconds
from .compiler import Address, Tag, helper, invoke, kernel
from .dense import accumulated
from .direct import MEASURED_ERROR
from .elements import INT64, itemsize
from .entries import DOTS, READ_SQUARES
from .geometry import DIMS, OPTION, OUTPUT, PARTS, PER_C, PER_K, STRIDE, conv_vectors, part
from .microkernels.emit import host, lanes_of
from .results import write_rows
from .scalar import address, is_null, load, pointer, store
from .threads import MAX_THREADS, Areas, parallel_for, run_with, worker_area
from .tools import dot_tools

__all__ = ["STREAM_BYTES", "InnerProduct", "copied_bytes", "in_order", "is_beyond_copying", "is_connected", "lies_in_order"]

PANEL_BYTES = 512 * 1024
"""The gathered columns of a block: they stay in the second-level cache while all output channels pass over them."""
BLOCK_PIXELS = 128
ROWS = 24
"""Output channels that pass over a block together: whole tiles of any shape."""
SUM_CYCLES = 2.5
"""Of adding up the lanes of a sum."""
COPIED_BYTES = 16 * 1024 * 1024
"""Arrays up to this size are copied where they do not lie in order; larger ones are left to what takes any order."""
STREAM_BYTES = 20
"""Of weights that come from memory, or a cache that all share, in a cycle."""
GATHER_CYCLES, GATHER_APART_CYCLES = 0.6, 2.0
"""Of an element of a column, from pixels that are neighbours or lie apart."""


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


@functools.lru_cache(maxsize=256)
def _layout(problem: ConvProblem) -> _Layout:
    item, lanes = np_dtype(problem.dtype).itemsize, lanes_of(problem.dtype)
    pixels, terms = problem.n * math.prod(problem.output), problem.c // problem.groups * math.prod(problem.kernel)
    most = host().dot_tiles[0][0]
    block = _even(pixels, max(most, min(BLOCK_PIXELS, PANEL_BYTES // (max(terms, 1) * item))), 1)
    chunk = _even(terms, max(lanes, host().resident // (min(most, max(pixels, 1)) * item)), lanes)
    return _Layout(pixels, min(block, pixels), terms, chunk)


def is_connected(problem: ConvProblem) -> bool:
    """Whether each kernel covers its image, in the order in which both lie."""
    whole = problem.kernel == problem.spatial and (not problem.flip or math.prod(problem.kernel) == 1)
    dense = all(d == 1 or r == 1 for d, r in zip(problem.dilation, problem.kernel, strict=True))
    return whole and dense and (problem.layout == "channels_first" or math.prod(problem.spatial) == 1)


# A block's own numbers.
PIXELS, BLOCK, BLOCKS, TERMS, CHUNK, PITCH = range(6)
# The parts of a worker's scratch memory.
SUMS, PANEL, AREAS = range(3)


# --- kernel --------------------------------------------------------------------------------------------------------------------


@helper
def step_of(g, strides, scaled, axis):
    """The bytes from output to output along a dimension, in y, or in x where strides are `scaled` by that of the convolution."""
    step = g[part(g, strides) + 3 + axis]
    return step * g[part(g, STRIDE) + axis] if scaled else step


@helper
def even_run(g, strides, scaled):
    """(dimensions before a run, outputs of a run): dimensions that follow each other evenly in an image make one run."""
    inner = g[DIMS] - 1
    step, run = step_of(g, strides, scaled, inner), g[part(g, OUTPUT) + inner]
    while inner > 0 and step_of(g, strides, scaled, inner - 1) == run * step:
        inner -= 1
        run *= g[part(g, OUTPUT) + inner]
    return inner, run


@helper
def line_offset(g, strides, scaled, inner, line):
    """The byte offset of a run in its image."""
    offset = 0
    for axis in range(inner - 1, -1, -1):
        size = g[part(g, OUTPUT) + axis]
        offset += line % size * step_of(g, strides, scaled, axis)
        line //= size
    return offset


@helper
def image_size(g):
    """Outputs of an image."""
    size = 1
    for axis in range(g[DIMS]):
        size *= g[part(g, OUTPUT) + axis]
    return size


@helper
def gather(panel, pitch, x, first, count, g, tools, at):
    """The columns of pixels first .. first + count of kernels of one tap, ``[pixel][channel]``; x at the group's first channel."""
    xs, size, image = part(g, PARTS), itemsize(at), image_size(g)
    inner, run = even_run(g, PARTS, True)
    step, done = step_of(g, PARTS, True, g[DIMS] - 1), 0
    while done < count:
        n, q = (first + done) // image, (first + done) % image
        length = min(run - q % run, count - done)
        source = x + (n * g[xs] + line_offset(g, PARTS, True, inner, q // run) + q % run * step)
        target = panel + done * pitch
        if step == size and length > 1:
            invoke(tools[READ_SQUARES], source, g[xs + 2], g[PER_C], length, address(0), 0, target, pitch)
        else:
            for one in range(length):
                for c in range(g[PER_C]):
                    store(target + (one * pitch + c * size), load(source + (one * step + c * g[xs + 2]), at), at)
        done += length


@helper
def copy_images(panel, pitch, x, first, count, terms, g, at):
    """The columns of images first .. first + count that are columns as they lie."""
    size = itemsize(at)
    for one in range(count):
        source, target = x + (first + one) * g[part(g, PARTS)], panel + one * pitch
        for term in range(terms):
            store(target + term * size, load(source + term * size, at), at)


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
def _blocks(begin, end, args):
    at, items, workers, scratch, areas, tools, splits, connected, x, w, bias, y, g, b = args
    own = worker_area(scratch, areas, AREAS, workers, items, begin)
    sums, panel, size = own + areas[SUMS], own + areas[PANEL], itemsize(at)
    xs, ws, ys, per_k, pitch = part(g, PARTS), part(g, PARTS + 1), part(g, PARTS + 2), g[PER_K], b[BLOCK] * itemsize(at)
    where = -1
    for item in range(begin, end):
        split, block, group = item % splits, item // splits % b[BLOCKS], item // splits // b[BLOCKS]
        first = block * b[BLOCK]
        count = min(b[BLOCK], b[PIXELS] - first)
        columns, step = x + group * g[xs + 1], b[PITCH]
        if connected and b[PIXELS] == 1:
            step = g[xs]
        else:
            if item // splits != where:
                where = item // splits
                if connected:
                    copy_images(panel, step, columns, first, count, b[TERMS], g, at)
                else:
                    gather(panel, step, columns, first, count, g, tools, at)
            columns = panel
        for k in range(per_k * split // splits, per_k * (split + 1) // splits, ROWS):
            rows = min(ROWS, per_k * (split + 1) // splits - k)
            for term in range(0, b[TERMS], b[CHUNK]):
                passed = min(b[CHUNK], b[TERMS] - term)
                w_k = w + (group * g[ws] + k * g[ws + 1] + term * size)
                invoke(
                    tools[DOTS], columns + term * size, step, count, passed, w_k, g[ws + 1], rows, sums, pitch, 1 if term > 0 else 0
                )
            shift = bias if is_null(bias) else bias + (group * per_k + k) * size
            write_pixels(sums, pitch, rows, first, count, shift, y + (group * g[ys + 1] + k * g[ys + 2]), g, tools, at)


@kernel
def inner_product(
    at: Tag, region: int, workers: int, items: int, scratch: Address, areas: Address, tools: Address, splits: int, connected: int,
    x: Address, w: Address, bias: Address, y: Address, g: Address, b: Address,
) -> None:  # fmt: skip
    """y from x and w, whose terms follow each other: an item is a block of pixels for a part of the output channels.

    `connected`: whether each image of x is a column as it lies.
    """
    parallel_for(
        region,
        workers,
        items,
        _blocks,
        (
            at, items, workers, scratch, pointer(areas, INT64), pointer(tools, INT64), splits, connected, x, w, bias, y,
            pointer(g, INT64), pointer(b, INT64),
        ),
    )  # fmt: skip


# --- the implementation --------------------------------------------------------------------------------------------------------


def _pitch(problem: ConvProblem) -> int:
    """The bytes from column to column of the panel: a cache line more than it holds, so that they crowd no sets of a cache."""
    return -(-_layout(problem).terms * np_dtype(problem.dtype).itemsize // 64) * 64 + 64


def _areas(problem: ConvProblem) -> Areas:
    """A worker's scratch memory."""
    layout = _layout(problem)
    return Areas(ROWS * layout.block * np_dtype(problem.dtype).itemsize, layout.block * _pitch(problem))


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
        self._parts = -(-(problem.k // problem.groups) // ROWS)
        self._work = problem.flops / 2
        self._vectors = conv_vectors(problem, ACTIVATIONS[problem.activation])
        self._connected = int(is_connected(problem))
        numbers = layout.pixels, layout.block, layout.blocks, layout.terms, layout.chunk, _pitch(problem)
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
        if is_beyond_copying(ins[1], 1) or (self._connected and is_beyond_copying(ins[0], 1)):
            self._general(outs, ins)
            return
        x, w, y = ins[0], in_order(ins[1], 1), outs[0]
        if self._connected:
            x = in_order(x, 1)
        splits = parts_for(self._items, self._parts, self._work)
        run_with(
            self._areas, self._kernel, self._items * splits, self._work, self._tools, splits, self._connected, x, w,
            accumulated(ins[2], self._acc) if len(ins) > 2 else 0, y, self._vectors(x.strides, w.strides, y.strides), self._block,
        )  # fmt: skip


class InnerProduct(Implementation):
    """Convolutions of real floats with one tap, or with kernels as large as x, with the lanes over terms."""

    name = "inner_product"
    ops = frozenset(("forward",))
    levels = frozenset(("high", "default", "fast"))
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def supports(self, problem: ConvProblem) -> Verdict:
        """Real floats in one dtype, without padding."""
        if problem.dtype not in ("float32", "float64") or problem.out_dtype != problem.dtype:
            return Verdict.no(f"its tiles are for float32 or float64 alone, and here {problem.dtype} becomes {problem.out_dtype}")
        if any(low or high for low, high in problem.padding):
            return Verdict.no(f"windows have to stay inside x, and the padding is {problem.padding}")
        if math.prod(problem.kernel) > 1 and not is_connected(problem):
            return Verdict.no(f"kernels have one tap, or cover x, and {problem.kernel} is in between for {problem.spatial}")
        return Verdict.yes()

    def cost(self, problem: ConvProblem) -> float:
        """Products; the way of the weights from memory; sums added up across lanes; columns gathered."""
        layout, lanes = _layout(problem), lanes_of(problem.dtype)
        passes, item = -(-layout.terms // layout.chunk), np_dtype(problem.dtype).itemsize
        vectors = passes * -(-layout.chunk // lanes)
        products = layout.pixels * problem.k * (vectors / 2 * 1.05 + passes * SUM_CYCLES)
        streamed = layout.blocks * math.prod(problem.w_shape) * item / STREAM_BYTES
        even = problem.stride[-1] == 1 and problem.layout == "channels_first"
        each = 0.25 if is_connected(problem) else GATHER_CYCLES if even else GATHER_APART_CYCLES
        gathered = math.prod(problem.x_shape) / math.prod(problem.stride) * each
        written = math.prod(problem.y_shape) * 1.0
        return CALL_SECONDS + 1e-6 + seconds(products + streamed + gathered + written)

    def workspace(self, problem: ConvProblem) -> int:
        """For each thread columns and sums; x and w where they do not lie in order, or what `blocked` needs."""
        items = _layout(problem).blocks * problem.groups * 16
        own = min(MAX_THREADS, max(items, 1)) * _areas(problem).bytes + copied_bytes(problem)
        return max(own, Blocked().workspace(problem))

    def build(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
