"""Direct convolution on register tiles, for real floats: pack a block of x, then multiply.

A work item takes a block of outputs of one image and group. The part of x that the block reads is packed into a slab of the
accumulation dtype, where padding is in place, the phases of a stride lie apart and rows follow each other at one pitch. There every
output pixel is an offset from the block's first pixel and every tap another, whatever the number of dimensions, so that a register
tile runs over the pixels of the whole block as over one row; what it computes between the rows is not used. Weights are read
where they lie.

The terms of an output form one chain in the order of the "strict" level. Images with a sum that is not finite are computed again
by `direct`, for which padding zeros are not terms.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Implementation, Verdict, np_dtype

from .compiler import Address, Tag, helper, kernel
from .direct import MEASURED_ERROR, Direct, clear, conv_vectors, finish_row, outer_offset
from .elements import ACTIVATIONS, INT64, itemsize, keep, memory, numbers, same, scratch
from .geometry import DIMS, GROUPS, LOW, MODE, OPTION, OUTPUT, PARTS, PER_C, PER_K, SIZE, STRIDE, WINDOW, part, source_index, span
from .microkernels import Tile, multiply_tile, tile_channels, tile_for, tile_pixels, write_vectors
from .scalar import is_null, load, pointer, store, wide_vectors, zero
from .threads import MAX_THREADS, SERIAL_WORK, parallel_for, run, threads

__all__ = ["RegisterTile", "block_for"]

SLAB_BYTES = 768 * 1024
"""The packed input of a block: it stays in the second-level cache while all output channels pass over it."""
RESULT_BYTES = 256 * 1024
"""The sums of a block for the channels of a tile: they share that cache with the slab."""
PASS_BYTES = 32 * 1024
"""What neighbouring tiles read again, of the input and of the weights: it stays in the first-level cache."""


class Block(NamedTuple):
    """How a problem is cut: outputs of a block, number of blocks, and where its input lies in the slab, in elements.

    Attributes
    ----------
    size, blocks, pitch : tuple of int
        Outputs of a block, blocks, and positions of a slab's row, per dimension.
    phases : tuple of tuple of int
        Per dimension the remainders of tap positions divided by the stride that occur.
    taps : tuple of int
        The offset of each tap in a channel's part of the slab.
    """

    size: tuple[int, ...]
    blocks: tuple[int, ...]
    pitch: tuple[int, ...]
    phases: tuple[tuple[int, ...], ...]
    taps: tuple[int, ...]

    @property
    def channel(self) -> int:
        """Elements of the slab for one input channel."""
        return math.prod(self.pitch) * math.prod(map(len, self.phases))

    @property
    def flat(self) -> int:
        """Pixels from the first to the last output of a block, those between the rows included."""
        steps = _steps(self.pitch)
        return 1 + sum((size - 1) * step for size, step in zip(self.size, steps, strict=True))


def _steps(pitch: tuple[int, ...]) -> tuple[int, ...]:
    """Elements between neighbours along each dimension."""
    return tuple(math.prod(pitch[axis + 1 :]) for axis in range(len(pitch)))


def _tap_positions(problem: ConvProblem) -> list[list[int]]:
    """Per dimension, where each tap lies relative to the first position of its window."""
    return [
        [(r - 1 - tap if problem.flip else tap) * d for tap in range(r)]
        for r, d in zip(problem.kernel, problem.dilation, strict=True)
    ]


def _tap_offsets(problem: ConvProblem, pitch: tuple[int, ...], phases: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """The offset of each tap in a channel's part of the slab."""
    stride, steps, plane, ndim = problem.stride, _steps(pitch), math.prod(pitch), problem.ndim
    taps = []
    for tap in itertools.product(*_tap_positions(problem)):
        combination = 0
        for axis in range(ndim):
            combination = combination * len(phases[axis]) + phases[axis].index(tap[axis] % stride[axis])
        taps.append(combination * plane + sum(tap[a] // stride[a] * steps[a] for a in range(ndim)))
    return tuple(taps)


def block_for(problem: ConvProblem, tile: Tile) -> Block:
    """The largest block whose slab and results fit the caches: outer dimensions are cut first."""
    ndim, item = problem.ndim, np_dtype(problem.acc_dtype).itemsize
    positions = _tap_positions(problem)
    phases = tuple(tuple(sorted({p % s for p in positions[a]})) for a, s in enumerate(problem.stride))
    beyond = [max(positions[a]) // problem.stride[a] for a in range(ndim)]
    least = (1,) * (ndim - 1) + (tile.lanes * tile.vectors,)
    size = problem.output
    while True:
        pitch = tuple(size[a] + beyond[a] for a in range(ndim))
        blocks = tuple(-(-q // b) for q, b in zip(problem.output, size, strict=True))
        block = Block(size, blocks, pitch, phases, ())
        slab = problem.c // problem.groups * block.channel * item
        axis = next((a for a in range(ndim) if size[a] > least[a]), None)
        if axis is None or (slab <= SLAB_BYTES and tile.channels * block.flat * item <= RESULT_BYTES):
            return block._replace(taps=_tap_offsets(problem, pitch, phases))
        size = (*size[:axis], -(-size[axis] // 2), *size[axis + 1 :])


def chunk_for(problem: ConvProblem, tile: Tile) -> int:
    """Input channels that are added up in one pass: what a tile reads of them stays in the first-level cache for its neighbour."""
    item = np_dtype(problem.acc_dtype).itemsize
    pixels = math.prod(problem.kernel[:-1]) * (tile.vectors * tile.lanes + problem.kernel[-1] * problem.dilation[-1])
    return max(1, PASS_BYTES // (item * (pixels + tile.channels * math.prod(problem.kernel))))


def _blocking_vector(block: Block, chunk: int) -> np.ndarray[Any, Any]:
    """What the kernel knows of a block; see `_at`."""
    head = [block.channel, math.prod(block.blocks), math.prod(map(len, block.phases)), block.flat, len(block.taps), chunk]
    places: list[int] = []
    values: list[int] = []
    for one in block.phases:
        places.append(len(values))
        values.extend(one)
    rows = [*block.size, *block.blocks, *block.pitch, *map(len, block.phases), *places]
    return np.array([*head, *rows, *values], np.int64)


CHANNEL, BLOCKS, COMBINATIONS, FLAT, TAPS, CHUNK, _HEAD = 0, 1, 2, 3, 4, 5, 6
UINT8 = Tag("uint8")
B_SIZE, B_BLOCKS, B_PITCH, B_PHASES, B_PLACE, B_VALUES = 0, 1, 2, 3, 4, 5


@helper
def _at(b, ndim, which, axis):
    return b[_HEAD + which * ndim + axis]


@helper
def block_start(b, ndim, block, axis):
    """The first output of a block along a dimension."""
    for other in range(ndim - 1, axis, -1):
        block //= _at(b, ndim, B_BLOCKS, other)
    return block % _at(b, ndim, B_BLOCKS, axis) * _at(b, ndim, B_SIZE, axis)


@helper
def block_extent(g, b, block, axis):
    """The number of outputs of a block along a dimension: the last block may be short."""
    start = block_start(b, g[DIMS], block, axis)
    return min(_at(b, g[DIMS], B_SIZE, axis), g[part(g, OUTPUT) + axis] - start)


@helper
def slab_position(g, b, block, axis, phase, index):
    """The position in x, padding included below zero, of a place in the slab."""
    ndim = g[DIMS]
    value = b[_HEAD + B_VALUES * ndim + _at(b, ndim, B_PLACE, axis) + phase]
    return (block_start(b, ndim, block, axis) + index) * g[part(g, STRIDE) + axis] + value - g[part(g, LOW) + axis]


@helper
def pack_row(slab, x, offset, count, g, xt, at):
    """slab[i] = x[i*s + offset] for a row, with its padding."""
    wide_vectors()
    axis = g[DIMS] - 1
    size, stride, step = g[part(g, SIZE) + axis], g[part(g, STRIDE) + axis], g[part(g, PARTS) + 3 + axis]
    low, high = span(0, count, stride, offset, size)
    source, target = x + (low * stride + offset) * step, slab + low * itemsize(at)
    if stride * step == itemsize(xt):
        for i in range(high - low):
            store(target + i * itemsize(at), load(source + i * itemsize(xt), xt, at), at)
    else:
        for i in range(high - low):
            store(target + i * itemsize(at), load(source + i * (stride * step), xt, at), at)
    pack_border(slab, x, offset, 0, low, g, xt, at)
    pack_border(slab, x, offset, high, count, g, xt, at)


@helper
def pack_border(slab, x, offset, first, last, g, xt, at):
    """`pack_row` for places that lie in the padding."""
    axis = g[DIMS] - 1
    size, stride, step = g[part(g, SIZE) + axis], g[part(g, STRIDE) + axis], g[part(g, PARTS) + 3 + axis]
    for i in range(first, last):
        index = source_index(i * stride + offset, size, g[MODE])
        store(slab + i * itemsize(at), zero(at) if index < 0 else load(x + index * step, xt, at), at)


@helper
def pack(slab, x, block, g, b, xt, at):
    """The slab of a block: all channels of a group of one image."""
    ndim = g[DIMS]
    axis = ndim - 1
    length, xs, rows = _at(b, ndim, B_PITCH, axis), part(g, PARTS), 1
    for other in range(axis):
        rows *= _at(b, ndim, B_PITCH, other)
    for combination in range(b[COMBINATIONS]):
        last_phase = combination % _at(b, ndim, B_PHASES, axis)
        for row in range(rows):
            inside, offset, left, phase = True, 0, row, combination // _at(b, ndim, B_PHASES, axis)
            for other in range(axis - 1, -1, -1):
                pitch, phases = _at(b, ndim, B_PITCH, other), _at(b, ndim, B_PHASES, other)
                position = slab_position(g, b, block, other, phase % phases, left % pitch)
                index = source_index(position, g[part(g, SIZE) + other], g[MODE])
                inside = inside and index >= 0
                offset += index * g[xs + 3 + other]
                left //= pitch
                phase //= phases
            first = slab_position(g, b, block, axis, last_phase, 0)
            for c in range(g[PER_C]):
                target = slab + (c * b[CHANNEL] + (combination * rows + row) * length) * itemsize(at)
                if inside:
                    pack_row(target, x + (c * g[xs + 2] + offset), first, length, g, xt, at)
                else:
                    clear(target, length, at)


@helper(fastmath={"reassoc"})
def is_finite_row(sums, count, at):
    """Whether a row of sums holds neither NaN nor an infinity."""
    wide_vectors()
    bad = zero(at)
    for q in range(count):
        value = load(sums + q * itemsize(at), at)
        bad += abs(value - value)
    return bad == 0


@helper
def write_rows(shape, sums, pixels, bias, y, channel, count, k_step, length, step, code, yt, at):
    """A row of results of `count` channels, the first of which is `channel`."""
    for k in range(count):
        if same(yt, at) & (code <= 1) & (step == itemsize(yt)):
            shift = -zero(at) if is_null(bias) else load(bias + (channel + k) * itemsize(at), at)
            write_vectors(shape, at, sums + k * pixels * itemsize(at), y + k * k_step, length, shift, code)
        else:
            finish_row(sums + k * pixels * itemsize(at), y + k * k_step, length, step, bias, channel + k, code, yt, at)


@helper
def flat_extent(g, b, block):
    """Pixels from the first to the last output of this block."""
    ndim = g[DIMS]
    flat, step = 1, 1
    for axis in range(ndim - 1, -1, -1):
        flat += (block_extent(g, b, block, axis) - 1) * step
        step *= _at(b, ndim, B_PITCH, axis)
    return flat


@helper
def all_finite(sums, pixels, count, length, at):
    """Whether the first `length` sums of `count` channels hold neither NaN nor an infinity."""
    finite = True
    for channel in range(count):
        finite &= is_finite_row(sums + channel * pixels * itemsize(at), length, at)
    return finite


@helper
def write_block(shape, sums, pixels, bias, y, group, k, count, block, g, b, yt, at):
    """Results of a block for the channels k .. k + count."""
    ndim, ys = g[DIMS], part(g, PARTS + 2)
    axis, lines = ndim - 1, 1
    for other in range(axis):
        lines *= block_extent(g, b, block, other)
    start, extent = block_start(b, ndim, block, axis), block_extent(g, b, block, axis)
    channel, k_step, q_step = group * g[PER_K] + k, g[ys + 2], g[ys + 3 + axis]
    for line in range(lines):
        place, offset, left, step = 0, 0, line, _at(b, ndim, B_PITCH, axis)
        for other in range(axis - 1, -1, -1):
            size = block_extent(g, b, block, other)
            place += left % size * step
            offset += (block_start(b, ndim, block, other) + left % size) * g[ys + 3 + other]
            left //= size
            step *= _at(b, ndim, B_PITCH, other)
        source, target = sums + place * itemsize(at), y + (k * k_step + offset + start * q_step)
        write_rows(shape, source, pixels, bias, target, channel, count, k_step, extent, q_step, g[OPTION], yt, at)


@helper
def weight_taps(g, taps, table):
    """The byte offset of each tap in w."""
    axis = g[DIMS] - 1
    window, step = g[part(g, WINDOW) + axis], g[part(g, PARTS + 1) + 3 + axis]
    for tap in range(taps):
        table[tap] = outer_offset(g, tap // window, WINDOW, PARTS + 1) + tap % window * step


@helper
def multiply_block(shape, at, slab, x_taps, w, w_taps, sums, pixels, length, g, b):
    """The sums of a block's first `length` pixels for the channels of one tile."""
    ws, width, step = part(g, PARTS + 1), tile_pixels(shape), b[CHANNEL] * itemsize(at)
    for first in range(0, g[PER_C], b[CHUNK]):
        count = min(b[CHUNK], g[PER_C] - first)
        for pixel in range(0, length, width):
            multiply_tile(
                shape, at, slab + (first * step + pixel * itemsize(at)), x_taps, w + first * g[ws + 2], w_taps,
                sums + pixel * itemsize(at), count, b[TAPS], step, g[ws + 2], g[ws + 1], pixels * itemsize(at), first > 0,
            )  # fmt: skip


@helper
def _blocks(begin, end, args):
    shape, xt, yt, at, splits, x, w, bias, y, status, g, b, taps = args
    wide_vectors()
    xs, ws, ys, width, channels = part(g, PARTS), part(g, PARTS + 1), part(g, PARTS + 2), tile_pixels(shape), tile_channels(shape)
    per_k, slab_size = g[PER_K], g[PER_C] * b[CHANNEL]
    pixels = -(-b[FLAT] // width) * width
    # one vector more than needed: tiles read, and vectors of results are read, beyond the last pixel
    packed, results = scratch((slab_size + width) * itemsize(at)), scratch((channels * pixels + width) * itemsize(at))
    w_taps = scratch(8 * b[TAPS])
    slab, sums, w_table = memory(packed), memory(results), memory(w_taps)
    weight_taps(g, b[TAPS], numbers(w_taps, 0))
    clear(slab + slab_size * itemsize(at), width, at)
    filled, tiles = -1, -(-per_k // channels)
    for item in range(begin, end):
        where = item // splits
        block, group, n = where % b[BLOCKS], where // b[BLOCKS] % g[GROUPS], where // b[BLOCKS] // g[GROUPS]
        if where != filled:
            pack(slab, x + (n * g[xs] + group * g[xs + 1]), block, g, b, xt, at)
            filled = where
        length = flat_extent(g, b, block)
        for tile in range(tiles * (item % splits) // splits, tiles * (item % splits + 1) // splits):
            # the last tile overlaps the one before, whose channels it does not write again
            k = min(tile * channels, per_k - channels)
            w_k, skip = w + (group * g[ws] + k * g[ws + 1]), tile * channels - k
            multiply_block(shape, at, slab, taps, w_k, w_table, sums, pixels, length, g, b)
            new, y_n = sums + skip * pixels * itemsize(at), y + (n * g[ys] + group * g[ys + 1])
            if not all_finite(new, pixels, channels - skip, length, at):
                store(status + n, np.uint8(1), UINT8)
            write_block(shape, new, pixels, bias, y_n, group, k + skip, channels - skip, block, g, b, yt, at)
    keep(packed)
    keep(results)
    keep(w_taps)


@kernel
def tiled(
    shape: Tag, xt: Tag, yt: Tag, at: Tag, region: int, workers: int, items: int, splits: int,
    x: Address, w: Address, bias: Address, y: Address, status: Address, g: Address, b: Address, taps: Address,
) -> None:  # fmt: skip
    """y from x and w: an item is a block of outputs, or the part of it that belongs to some of the output channels.

    `status` gets a 1 for each image of which a sum is not finite. Weights and bias are in the accumulation dtype.
    """
    parallel_for(
        region,
        workers,
        items,
        _blocks,
        (shape, xt, yt, at, splits, x, w, bias, y, status, pointer(g, INT64), pointer(b, INT64), taps),
    )


# --- the implementation --------------------------------------------------------------------------------------------------------


def as_forward(problem: ConvProblem) -> ConvProblem:
    """The forward problem that computes an input_grad with stride 1: grad_y convolved with the kernel reversed."""
    extents = [d * (r - 1) for d, r in zip(problem.dilation, problem.kernel, strict=True)]
    padding = tuple((e - low, e - high) for e, (low, high) in zip(extents, problem.padding, strict=True))
    changes: dict[str, Any] = {"op": "forward", "c": problem.k, "k": problem.c, "spatial": problem.output, "padding": padding}
    return problem.replace(**changes, flip=not problem.flip, bias="y" if problem.bias else "")


class _Layout(NamedTuple):
    """What a problem becomes: a forward problem, the tile that computes it, and how it is cut."""

    forward: ConvProblem
    tile: Tile
    block: Block


@functools.lru_cache(maxsize=64)
def _layout(problem: ConvProblem) -> _Layout:
    """The layout of a problem, which its cost, its workspace and its executor ask for one after the other."""
    forward = problem if problem.op == "forward" else as_forward(problem)
    tile = tile_for(problem.acc_dtype, forward.k // forward.groups)
    return _Layout(forward, tile, block_for(forward, tile))


class _Executor:
    """One tiled convolution."""

    def __init__(self, problem: ConvProblem):
        forward, tile, block = _layout(problem)
        self._problem = problem
        self._base = forward.n * forward.groups * math.prod(block.blocks)
        self._tiles = -(-(forward.k // forward.groups) // tile.channels)
        self._work = forward.flops / 2
        self._padded = problem.pad_mode == "zeros" and any(low > 0 or high > 0 for low, high in forward.padding)
        self._vectors = conv_vectors(forward, ACTIVATIONS[problem.activation], swapped=problem.op == "input_grad")
        self._block = _blocking_vector(block, chunk_for(forward, tile))
        self._acc = np_dtype(problem.acc_dtype)
        self._taps = np.array(block.taps, np.int64) * self._acc.itemsize
        self._kernel = tiled.specialise(tuple(tile), problem.dtype, problem.out_dtype, problem.acc_dtype)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute; weights of a narrower dtype are widened first."""
        self._run(outs[0], ins, np.asarray(ins[1], self._acc))

    def bind(self, w: Any) -> Any:
        """The executor with its own copy of w, in the accumulation dtype and in the order of reading."""
        original = w.copy()
        wide = np.ascontiguousarray(original, self._acc)
        return lambda outs, ins: self._run(outs[0], (ins[0], original, *ins[1:]), wide)

    def _run(self, y: Any, ins: Any, w: Any) -> None:
        if not self._base:
            return
        x, bias = ins[0], ins[2:]
        vector = self._vectors(x.strides, w.strides, y.strides)
        shift = np.ascontiguousarray(bias[0], self._acc) if bias else 0
        splits = 1 if self._work < SERIAL_WORK else max(1, min(self._tiles, -(-4 * threads() // self._base)))
        status = np.zeros(self._problem.n, np.uint8)
        items = self._base * splits
        run(self._kernel, items, self._work, splits, x, w, shift, y, status, vector, self._block, self._taps)
        if self._padded and _BAD in status.tobytes():
            self._redo(y, ins, np.flatnonzero(status))

    def _redo(self, y: Any, ins: Any, images: Any) -> None:
        """Compute images again whose sums are not all finite: there a padding zero may have met an infinite weight."""
        executor = Direct().build(self._problem.replace(n=1))
        for n in images:
            executor((y[n : n + 1],), (ins[0][n : n + 1], *ins[1:]))


_BAD = b"\1"


class RegisterTile(Implementation):
    """Direct convolution of real floats on register tiles."""

    name = "tile"
    ops = frozenset(("forward", "input_grad"))
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def supports(self, problem: ConvProblem) -> Verdict:
        """Real floats; an input_grad with stride 1 and zeros as padding."""
        if problem.acc_dtype not in ("float32", "float64"):
            return Verdict.no(f"its tiles are for real floats, and sums of {problem.dtype} are {problem.acc_dtype}")
        if problem.op == "input_grad" and (max(problem.stride) > 1 or problem.pad_mode != "zeros"):
            return Verdict.no(f"an input_grad with stride {problem.stride} and pad_mode {problem.pad_mode} is no dense convolution")
        return Verdict.yes()

    def cost(self, problem: ConvProblem) -> float:
        """Products, those between rows included, at a share of the peak that the tile's shape allows; packing; start-up."""
        forward, tile, block = _layout(problem)
        per_k = forward.k // forward.groups
        tiles, width = -(-per_k // tile.channels), tile.vectors * tile.lanes
        pieces = forward.n * forward.groups * math.prod(block.blocks)
        per_c = forward.c // forward.groups
        products = pieces * tiles * tile.channels * (-(-block.flat // width) * width) * per_c * len(block.taps)
        packed = pieces * per_c * block.channel
        return (
            2.5e-6
            + products / (tile.lanes * 4e9 * min(1, tile.vectors * tile.channels / 12))
            + packed * 4e-10
            + math.prod(forward.y_shape) * 4e-10
        )

    def workspace(self, problem: ConvProblem) -> int:
        """For each thread a slab, the results of a block, and tables; weights in the accumulation dtype."""
        forward, tile, block = _layout(problem)
        item = np_dtype(problem.acc_dtype).itemsize
        width = tile.vectors * tile.lanes
        elements = forward.c // forward.groups * block.channel + tile.channels * (block.flat + width) + 2 * width
        each = elements * item + 8 * len(block.taps)
        widened = 0 if problem.dtype == problem.acc_dtype else math.prod(problem.w_shape) * item
        return MAX_THREADS * each + widened

    def build(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
