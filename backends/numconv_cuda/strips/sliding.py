"""Convolutions with large kernels and few channels a group: planes slide past each other in shared memory.

A block computes a tile of one plane of results. Chunk by chunk it carries the rows of the kernel and the part of the source under
them into shared memory. A thread has four neighbours of each of some rows in registers: four taps of a row meet eight elements of a
row of the source, all loaded four at a time, so that hardly anything but multiply-adds is left. The gradient for x is the same with
the kernel flipped. In the gradient for w it is the gradient of y that slides: it is the kernel, and the taps are the results; there
every block has some of its chunks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, np_dtype
from numconv_cuda.direct import most_parts
from numconv_cuda.geometry import Geometry
from numconv_cuda.primitives.elements import div, load, mod, muladd, poke, quads, repeated, replaced
from numconv_cuda.runtime.compiler import SIMULATED, Kernel, cuda, device, kernel, types

from .stencil import ALIGNMENT, BACKWARD, FINISHED, FORWARD, Direction, finisher
from .strip_places import Launch, divisors, lifted, run_along, strip_place, typed
from .strip_terms import fetch, finite, put, slide, split
from .strips import Divisor, Run, Strip, forward_axis

__all__ = ["Tile", "parts_of", "planes_kernel", "planned", "suits", "taps_kernel"]


class Tile(NamedTuple):
    """What a block computes at a time."""

    lanes: int
    """Threads along a row, of four results each."""
    threads: int
    height: int
    """Rows of a thread."""
    depth: int
    """Rows of the kernel in a chunk."""
    taps: int
    """Columns of the kernel in a chunk, a multiple of four."""

    @property
    def rows(self) -> int:
        """Of results."""
        return self.threads // self.lanes * self.height

    @property
    def columns(self) -> int:
        """Of results."""
        return 4 * self.lanes

    @property
    def pitch(self) -> int:
        """From a row of the source to the next in shared memory."""
        return self.columns + self.taps

    @property
    def lines(self) -> int:
        """Rows of the kernel in shared memory: a chunk, and zeros before and behind it that make the rows of a thread alike."""
        return self.depth + 2 * (self.height - 1)

    @property
    def room(self) -> tuple[int, int]:
        """Numbers of shared memory for the source and for the kernel."""
        return (self.rows + self.depth - 1) * self.pitch, self.lines * self.taps


# --- what both kernels do --------------------------------------------------------------------------------------------------------


def _steps(tile: Tile, dtype: str, *, flip: bool) -> tuple[Any, Any]:
    """(fill, accumulate): the device functions that carry a chunk to shared memory, and add its terms to a thread's results."""
    _, threads, height, depth, taps = tile
    pitch, (source_room, kernel_room) = tile.pitch, tile.room
    pitches, widths = Divisor.of(pitch), Divisor.of(taps)

    @device
    def fill(sources, kernels, source, at, position, sizes, steps, w, w_at, chunk, w_sizes, w_steps, zero):
        """`position` is the place of the tile's first source, `chunk` the first row and column of the kernel."""
        for item in range(cuda.threadIdx.x, source_room, threads):
            row, column = split(item, pitches)
            place = row + position[0], column + position[1]
            poke(sources, item, fetch(source, at, place, sizes, steps, zero))
        for item in range(cuda.threadIdx.x, kernel_room, threads):
            row, column = split(item, widths)
            row -= height - 1
            place = (row + chunk[0] if 0 <= row < depth else -1), column + chunk[1]
            if flip:
                place = (w_sizes[0] - 1 - place[0] if 0 <= row < depth else -1), w_sizes[1] - 1 - place[1]
            poke(kernels, item, fetch(w, w_at, place, w_sizes, w_steps, zero))

    four, pairs, odd = 4 * height, taps // 8, taps % 8

    @device
    def accumulate(acc, sources, kernels, row, column, first, last, zero):
        """The terms of source rows first..last, counted from the thread's own row."""
        like, like_taps = repeated(zero, 4), repeated(zero, four)
        for line in range(first, last):
            at = (row + line) * pitch + column
            weights = (line + height - 1) * taps
            left = quads(sources, at, 0, like)
            for _ in range(pairs):  # two steps, so that what is right becomes left without a move
                right = quads(sources, at + 4, 0, like)
                acc = slide(acc, left, right, quads(kernels, weights, -taps, like_taps))
                left = quads(sources, at + 8, 0, like)
                acc = slide(acc, right, left, quads(kernels, weights + 4, -taps, like_taps))
                at, weights = at + 8, weights + 8
            if odd:
                acc = slide(acc, left, quads(sources, at + 4, 0, like), quads(kernels, weights, -taps, like_taps))
        return acc

    return fill, accumulate


@device
def careful_sum(acc, source, at, position, sizes, steps, w, w_at, chunk, last, w_sizes, w_steps, flip, zero):
    """Add to a result the terms of kernel rows and columns from `chunk` up to `last` that meet a source."""
    for row in range(chunk[0], last[0]):
        for column in range(chunk[1], last[1]):
            place = position[0] + row, position[1] + column
            if 0 <= place[0] < sizes[0] and 0 <= place[1] < sizes[1]:
                own_row, own_column = row, column
                if flip:
                    own_row, own_column = w_sizes[0] - 1 - row, w_sizes[1] - 1 - column
                value = load(source, at + place[0] * steps[0] + place[1] * steps[1], zero)
                acc = muladd(value, load(w, w_at + own_row * w_steps[0] + own_column * w_steps[1], zero), acc)
    return acc


# --- the kernels -----------------------------------------------------------------------------------------------------------------


@functools.cache
def planes_kernel(direction: Direction, tile: Tile, strip: Strip, dtype: str, option: int, flip: bool) -> Kernel:
    """The kernel of a convolution or a gradient for x, of two dimensions.

    It takes (source, w, bias, result, g, tiles, made, channels, bases, zero) on a grid of tiles of planes: `tiles` are the sizes of
    the result in tiles as divisors, as are the channels made of a group and in all, and `bases` the position of the first source of
    the first tile.
    """
    ends, weights_of = direction.ends, direction.weights
    number, (source_room, kernel_room), write = getattr(types, dtype), tile.room, put(strip)
    fill, accumulate = _steps(tile, dtype, flip=flip)
    finished = finisher(strip.results, option)
    lanes, height, depth, taps, rows, columns = tile.lanes, tile.height, tile.depth, tile.taps, tile.rows, tile.columns
    results = strip.results

    def planes(source, w, bias, result, g, tiles, made, channels, bases, zero):
        sources = cuda.shared.array(source_room, number, ALIGNMENT)
        kernels = cuda.shared.array(kernel_room, number, ALIGNMENT)
        read, sizes, written, limits, summed, _ = ends(g)
        item, place = strip_place(cuda.blockIdx.x, tiles)
        n, channel = split(item, channels)
        group, own = split(channel, made)
        row, column = div(cuda.threadIdx.x, lanes) * height, mod(cuda.threadIdx.x, lanes) * 4
        origin = place[0] * rows + bases[0], place[1] * columns + bases[1]
        start = n * read.n + group * read.group
        acc = repeated(zero, results)
        for c in range(summed):
            at, weight = start + c * read.channel, weights_of(g, group, own, c)
            for chunk_row in range(0, g.window[0], depth):
                for chunk_column in range(0, g.window[1], taps):
                    position = origin[0] + chunk_row, origin[1] + chunk_column
                    cuda.syncthreads()
                    fill(
                        sources, kernels, source, at, position, sizes, read.spatial,
                        w, weight, (chunk_row, chunk_column), g.window, g.w.spatial, zero,
                    )  # fmt: skip
                    cuda.syncthreads()
                    first, end = max(-position[0] - row, 0), sizes[0] - position[0] - row
                    end = min(height - 1 + min(depth, g.window[0] - chunk_row), end)
                    acc = accumulate(acc, sources, kernels, row, column, first, end, zero)
        if not finite(acc):
            for which in range(results):
                position = origin[0] + row + div(which, 4), origin[1] + column + mod(which, 4)
                value = zero
                for c in range(summed):
                    value = careful_sum(
                        value, source, start + c * read.channel, position, sizes, read.spatial,
                        w, weights_of(g, group, own, c), (0, 0), g.window, g.window, g.w.spatial, flip, zero,
                    )  # fmt: skip
                acc = replaced(acc, which, value)
        if option:
            acc = finished(acc, bias, channel, g, zero)
        at = n * written.n + group * written.group + own * written.channel
        write(result, at, (place[0] * rows + row, place[1] * columns + column), limits, written.spatial, acc)

    name = f"planes_{direction.name}_{'x'.join(map(str, tile))}_{strip.name}_{option}_{int(flip)}_{dtype}"
    planes.__name__ = planes.__qualname__ = name
    return kernel(planes)


@functools.cache
def taps_kernel(tile: Tile, strip: Strip, dtype: str) -> Kernel:
    """The kernel of a gradient for w, of two dimensions.

    It takes (y, x, sums, g, tiles, chunks, bases, count, length, zero) on a grid of pairs of an output and an input channel, times
    the sizes of the kernel in tiles; times parts, of which each goes through `length` of the `count` chunks of y.
    """
    number, (source_room, kernel_room), write = getattr(types, dtype), tile.room, put(strip)
    fill, accumulate = _steps(tile, dtype, flip=False)
    lanes, height, depth, taps, rows, columns = tile.lanes, tile.height, tile.depth, tile.taps, tile.rows, tile.columns
    results = strip.results

    def slide_taps(y, x, sums, g, tiles, chunks, bases, count, length, zero):
        sources = cuda.shared.array(source_room, number, ALIGNMENT)
        kernels = cuda.shared.array(kernel_room, number, ALIGNMENT)
        part = cuda.blockIdx.y
        pair, tap = strip_place(cuda.blockIdx.x, tiles)
        c, channel = mod(pair, g.per_c), div(pair, g.per_c)
        group, k = div(channel, g.per_k), mod(channel, g.per_k)
        from_y, from_x = group * g.y.group + k * g.y.channel, group * g.x.group + c * g.x.channel
        row, column = div(cuda.threadIdx.x, lanes) * height, mod(cuda.threadIdx.x, lanes) * 4
        origin = tap[0] * rows + bases[0], tap[1] * columns + bases[1]
        begin, stop = part * length, min((part + 1) * length, count)
        acc = repeated(zero, results)
        for item in range(begin, stop):
            n, place = strip_place(item, chunks)
            chunk = place[0] * depth, place[1] * taps
            position = origin[0] + chunk[0], origin[1] + chunk[1]
            cuda.syncthreads()
            fill(
                sources, kernels, x, from_x + n * g.x.n, position, g.size, g.x.spatial,
                y, from_y + n * g.y.n, chunk, g.output, g.y.spatial, zero,
            )  # fmt: skip
            cuda.syncthreads()
            first, end = max(-position[0] - row, 0), g.size[0] - position[0] - row
            end = min(height - 1 + min(depth, g.output[0] - chunk[0]), end)
            acc = accumulate(acc, sources, kernels, row, column, first, end, zero)
        if not finite(acc):
            for which in range(results):
                position = origin[0] + row + div(which, 4), origin[1] + column + mod(which, 4)
                value = zero
                for item in range(begin, stop):
                    n, place = strip_place(item, chunks)
                    chunk = place[0] * depth, place[1] * taps
                    behind = min(chunk[0] + depth, g.output[0]), min(chunk[1] + taps, g.output[1])
                    value = careful_sum(
                        value, x, from_x + n * g.x.n, position, g.size, g.x.spatial,
                        y, from_y + n * g.y.n, chunk, behind, g.output, g.y.spatial, False, zero,
                    )  # fmt: skip
                acc = replaced(acc, which, value)
        at = ((part * g.groups * g.per_k + channel) * g.per_c + c) * g.taps
        steps = g.window[1], 1
        if g.flip:
            at += g.taps - 1
            steps = -g.window[1], -1
        write(sums, at, (tap[0] * rows + row, tap[1] * columns + column), g.window, steps, acc)

    slide_taps.__name__ = slide_taps.__qualname__ = f"slide_taps_{'x'.join(map(str, tile))}_{strip.name}_{dtype}"
    return kernel(slide_taps)


# --- from a problem to launches ------------------------------------------------------------------------------------------------

SHARED = 47 * 1024
"""Bytes of shared memory that a block may take, on every device."""
WARP = 32
"""Threads that run together."""
BLOCKS = 1024
"""Of 128 threads, that a gradient for w aims at."""
DEEPEST = 3 if SIMULATED else 32
"""Rows of a kernel in a chunk."""
WIDEST = 96
"""Columns of a kernel of two dimensions in a chunk."""
MANY = 2**19
"""Results from which on a thread has four rows of them rather than two."""


def _lanes(columns: int) -> int:
    """Threads along a row of results."""
    return 1 if SIMULATED else next((lanes for lanes in (4, 8) if columns <= 4 * lanes), 16)


def _fitting(dtype: str, lanes: int, threads: int, height: int, depth: int, columns: int, most: int) -> Tile:
    """The tile with chunks of equal shares of the kernel's columns, and the most rows up to these that fit shared memory."""
    share = -(-columns // -(-columns // most))
    tile = Tile(lanes, threads, height, depth, -(-share // 4) * 4)
    while sum(tile.room) * np_dtype(dtype).itemsize > SHARED and tile.depth > 1:
        tile = tile._replace(depth=tile.depth // 2)
    return tile


def _tile(problem: ConvProblem) -> Tile:
    """A function of the problem alone."""
    threads = 2 if SIMULATED else 128
    wgrad = problem.op == "weight_grad"
    results, inner = (problem.kernel, problem.output) if wgrad else (problem.output, problem.kernel)
    if problem.op == "input_grad":
        results = problem.spatial
    if problem.ndim == 1:
        return _fitting(problem.acc_dtype, threads, threads, 1, 1, inner[-1], 8 if SIMULATED else 512)
    total = math.prod(results) * problem.n * problem.k
    height = 4 if total >= MANY and not wgrad else 2
    lanes, most = _lanes(results[-1]), 64 if wgrad else WIDEST
    depth = min(16, DEEPEST) if wgrad else -(-inner[0] // -(-inner[0] // DEEPEST))
    if wgrad and not SIMULATED:  # no more threads than there are taps, and then more blocks
        threads = min(threads, -(-lanes * -(-results[0] // height) // WARP) * WARP)
        depth = max(8, depth * threads // 128)
    return _fitting(problem.acc_dtype, lanes, threads, height, depth, inner[-1], most)


def suits(problem: ConvProblem) -> bool:
    """Whether a convolution of few channels has planes that slide past each other element by element, over padding zeros."""
    if problem.ndim > 2 or problem.pad_mode != "zeros" or {*problem.stride, *problem.dilation} != {1}:
        return False
    if problem.op == "weight_grad":
        return problem.level != "strict"
    reverse = problem.flip != (problem.op == "input_grad")
    if problem.level != "strict":
        return True
    return not reverse and (problem.ndim == 1 or problem.kernel[-1] <= WIDEST)  # else the terms come in another order


def _chunks(problem: ConvProblem, tile: Tile) -> tuple[int, int]:
    """The sizes of an image of y in chunks."""
    sizes = (1, *problem.output)[-2:]
    return -(-sizes[0] // tile.depth), -(-sizes[1] // tile.taps)


def _tiles(sizes: Sequence[Any], tile: Tile) -> tuple[int, int]:
    return -(-int(sizes[0]) // tile.rows), -(-int(sizes[1]) // tile.columns)


def parts_of(problem: ConvProblem) -> int:
    """Into how many parts a gradient for w is divided: a function of the problem alone."""
    tile = _tile(problem)
    count = problem.n * math.prod(_chunks(problem, tile))
    pairs = problem.k * (problem.c // problem.groups) * math.prod(_tiles((1, *problem.kernel)[-2:], tile))
    blocks = BLOCKS if SIMULATED else BLOCKS * 128 // tile.threads
    length = -(-count // max(1, min(count, blocks // pairs, most_parts(problem, math.prod(problem.w_shape)))))
    return -(-count // length)


def planned(problem: ConvProblem, g: Geometry, addresses: Sequence[int]) -> Launch:
    """The launch for arrays of a geometry: of x and y, the one that is read first, at these addresses."""
    g, tile = lifted(g), _tile(problem)
    if problem.op == "weight_grad":
        return _planned_taps(problem, g, tile)
    backward = problem.op == "input_grad"
    limit, written, made = (g.size, g.x, g.per_c) if backward else (g.output, g.y, g.per_k)
    bases = [(low - r + 1 if backward else -low) for low, r in zip(map(int, g.low), map(int, g.window), strict=True)]
    strip = _results(tile, run_along(addresses[1], written, limit[-1], problem.out_dtype, 4), unit=bool(written.spatial[-1] == 1))
    tiles, flip = _tiles(limit, tile), problem.flip != backward
    function = planes_kernel(BACKWARD if backward else FORWARD, tile, strip, problem.acc_dtype, int(g.option) & FINISHED, flip)
    counts = divisors(tiles), Divisor.of(int(made)), Divisor.of(int(g.groups * made))
    return Launch(function, problem.n * int(g.groups * made) * math.prod(tiles), tile.threads, (g, *counts, typed(bases, g)))


def _planned_taps(problem: ConvProblem, g: Geometry, tile: Tile) -> Launch:
    parts, chunks, tiles = parts_of(problem), _chunks(problem, tile), _tiles(g.window, tile)
    count = problem.n * math.prod(chunks)
    function = taps_kernel(tile, _results(tile, 1, unit=False), problem.acc_dtype)
    bases = typed([-int(low) for low in g.low], g)
    blocks = problem.k * int(g.per_c) * math.prod(tiles), parts
    numbers = np.int32(count), np.int32(-(-count // parts))
    return Launch(function, blocks, tile.threads, (g, divisors(tiles), divisors(chunks), bases, *numbers))


def _results(tile: Tile, run: int, *, unit: bool) -> Strip:
    """A thread's results as a strip that is written."""
    return Strip(forward_axis(1, 1, 1, False, tile.height), forward_axis(1, 1, 1, False, 4), (1, 1), Run(), Run(run), unit)
