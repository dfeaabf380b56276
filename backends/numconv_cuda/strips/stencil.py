"""Convolutions with small kernels and few channels a group: a thread computes a strip of results, see `strips`.

Such problems are bound by memory, so that what counts is how seldom an element is loaded and how many loads are under way. A thread
loads each element of the rows under its strip once. The gradient for x is computed likewise from that for y, whose taps come in
phases if the stride is above 1. For the gradient for w a block goes through strips of outputs of one channel, keeps a sum for every
tap in the registers of each thread, adds these up over its threads, and a second kernel over the blocks, in a fixed order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem
from numconv_cuda.direct import most_parts
from numconv_cuda.geometry import (
    BIASED,
    CHANNELS_INNER,
    Geometry,
    advanced,
    coordinates,
    start_of,
    tap_offset,
)
from numconv_cuda.primitives.elements import activated, add, div, load, mod, poke, repeated, replaced, store
from numconv_cuda.runtime.compiler import SIMULATED, Kernel, cuda, device, kernel, types

from .strip_places import (
    Launch,
    coarse_of,
    divisors,
    last_two,
    lifted,
    locator,
    outer,
    outer_offset,
    run_along,
    strip_place,
    strip_shape,
    typed,
)  # fmt: skip
from .strip_terms import finite, put, split, spread, strip_gradients, strip_sums, strip_taps
from .strips import Divisor, Run, Strip, forward_axis, gradient_axis

__all__ = ["Direction", "gradients_kernel", "parts_of", "planned", "strips_kernel", "suits"]

TAPS = dict.fromkeys(("float32", "float64"), 12) if SIMULATED else {"float32": 49, "float64": 25}
"""The most taps of the last two axes, of which a gradient for w keeps one sum each in registers."""
THREADS = 2 if SIMULATED else 128
"""Of a block."""
LANES = 2 if SIMULATED else 32
"""Threads of a block with a channel each, where channels are neighbours in memory."""
STRIDES = 8
"""The largest stride of a gradient for x, of which a strip has a whole number."""
BLOCKS, LEAST = 1536, 2
"""Blocks that the gradient for w aims at, and the least strips of a thread."""

FINISHED = BIASED | 3
"""The bits of an option that change results: bias and activation."""
ALIGNMENT = None if SIMULATED else 16
"""Of shared memory, for loads of four numbers; the simulator knows none."""
SEGMENTS = 16
"""Into how many parts the threads of a block are divided first when their sums are added up."""


# --- the two directions --------------------------------------------------------------------------------------------------------


class Direction(NamedTuple):
    """What distinguishes the gradient for x from the convolution: who is read and who is written."""

    name: str
    ends: Any
    """(source, its sizes, result, its sizes, channels summed, channels made)"""
    weights: Any
    """The offset of the weights of (group, channel made, channel summed)."""
    outer: Any
    """Whether a result has a source under a tap on all but the last two axes, and the offset there."""


@device
def forward_ends(g):
    """Of a convolution."""
    return g.x, g.size, g.y, g.output, g.per_c, g.per_k


@device
def gradient_ends(g):
    """Of the gradient for x."""
    return g.y, g.output, g.x, g.size, g.per_k, g.per_c


@device
def forward_weights(g, group, made, summed):
    """Of an output channel and an input channel."""
    return group * g.w.group + made * g.w.k + summed * g.w.c


@device
def gradient_weights(g, group, made, summed):
    """Of an input channel and an output channel."""
    return group * g.w.group + made * g.w.c + summed * g.w.k


@device
def forward_outer(g, output, tap):
    """The place in x of an output's tap."""
    offset = 0
    inside = True
    for axis in range(len(g.size) - 2):
        position = output[axis] * g.stride[axis] + tap_offset(g, axis, tap[axis]) - g.low[axis]
        inside = inside and 0 <= position < g.size[axis]
        offset += position * g.x.spatial[axis]
    return inside, offset


@device
def gradient_outer(g, index, tap):
    """The place in y of the output that reads an index through a tap."""
    offset = 0
    inside = True
    for axis in range(len(g.size) - 2):
        distance = index[axis] - tap_offset(g, axis, tap[axis]) + g.low[axis]
        output = distance // g.stride[axis]
        inside = inside and distance >= 0 and output * g.stride[axis] == distance and output < g.output[axis]
        offset += output * g.y.spatial[axis]
    return inside, offset


FORWARD = Direction("forward", forward_ends, forward_weights, forward_outer)
BACKWARD = Direction("input_grad", gradient_ends, gradient_weights, gradient_outer)


def finisher(results: int, option: int) -> Any:
    """The device function that gives so many results of a channel the bias and the activation that an option tells."""
    code = option & 3

    @device
    def finished(acc, bias, channel, g, zero):
        number = load(bias, channel * g.bias, zero) if option & BIASED else zero
        for place in range(results):
            value = acc[place]
            if option & BIASED:
                value = add(value, number)
            acc = replaced(acc, place, activated(value, code))
        return acc

    return finished


# --- results -------------------------------------------------------------------------------------------------------------------


@functools.cache
def strips_kernel(direction: Direction, strip: Strip, dtype: str, option: int) -> Kernel:
    """The kernel of a strip, with the bias and the activation that the option tells, and threads along channels or along a row.

    It takes (source, w, bias, result, g, coarse, made, channels, bases, items, zero): `coarse` are the sizes of the result in
    strips as divisors, as are the channels made of a group and in all, and `bases` the position of the first source of the first
    strip.
    """
    ends, weights_of, outer_source = direction[1:]
    load_taps, write = strip_taps(strip), put(strip)
    add_terms, add_carefully = strip_sums(strip, careful=False), strip_sums(strip, careful=True)
    results, height, width, taps = strip.results, strip.height, strip.width, strip.taps
    rows_apart, columns_apart = strip.rows.advance, strip.columns.advance
    finished, locate = finisher(results, option), locator(option)

    def strips(source, w, bias, result, g, coarse, made, channels, bases, items, zero):
        item = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if item < items:
            read, sizes, written, limits, summed, _ = ends(g)
            last = len(g.size) - 1
            n, channel, place = locate(item, coarse, channels)
            group, own = split(channel, made)
            start = n * read.n + group * read.group
            position = place[last - 1] * rows_apart + bases[0], place[last] * columns_apart + bases[1]
            acc = repeated(zero, results)
            tap = start_of(g.window)
            for c in range(summed):
                for _ in range(div(g.taps, taps)):
                    inside, offset = outer_source(g, place, tap)
                    if inside:
                        at = weights_of(g, group, own, c) + outer_offset(tap, g.w.spatial)
                        factors = load_taps(w, at, last_two(g.w.spatial), zero)
                        at = start + c * read.channel + offset
                        if finite(factors):
                            acc = add_terms(acc, source, at, position, last_two(sizes), last_two(read.spatial), factors)
                        else:
                            acc = add_carefully(acc, source, at, position, last_two(sizes), last_two(read.spatial), factors)
                    tap = advanced(tap, outer(g.window))
            if option & FINISHED:
                acc = finished(acc, bias, channel, g, zero)
            first = place[last - 1] * height, place[last] * width
            target = n * written.n + group * written.group + own * written.channel + outer_offset(place, written.spatial)
            write(result, target, first, last_two(limits), last_two(written.spatial), acc)

    strips.__name__ = strips.__qualname__ = f"strips_{direction.name}_{strip.name}_{option}_{dtype}"
    return kernel(strips)


# --- gradients for w -----------------------------------------------------------------------------------------------------------


@functools.cache
def gradients_kernel(strip: Strip, threads: int, lanes: int, dtype: str) -> Kernel:
    """The kernel of gradients for w by blocks of so many threads, of which `lanes` neighbours have a channel each.

    It takes (y, x, sums, g, coarse, bases, strips, length, zero) on a grid of pairs of some output channels and an input channel;
    parts, of which each goes through `length` of the strips; and taps of all but the last two axes.
    """
    number = getattr(types, dtype)
    add_terms, add_carefully = strip_gradients(strip, careful=False), strip_gradients(strip, careful=True)
    taps, room, workers = strip.taps, strip.taps * threads, threads // lanes
    segments = min(SEGMENTS, workers)
    height, width, rows_apart, columns_apart = strip.height, strip.width, strip.rows.advance, strip.columns.advance

    def gradients(y, x, sums, g, coarse, bases, strips, length, zero):
        kept = cuda.shared.array(room, number)
        thread, part, outer_tap = cuda.threadIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
        c, first_channel = mod(cuda.blockIdx.x, g.per_c), div(cuda.blockIdx.x, g.per_c) * lanes
        channel = first_channel + mod(thread, lanes)
        group, k = div(channel, g.per_k), mod(channel, g.per_k)
        from_y, from_x = group * g.y.group + k * g.y.channel, group * g.x.group + c * g.x.channel
        tap = coordinates(outer_tap, outer(g.window))
        first, end = part * length + div(thread, lanes), min((part + 1) * length, strips)
        if channel >= g.groups * g.per_k:
            end = first
        acc = repeated(zero, taps)
        for item in range(first, end, workers):
            acc = add_strip(acc, y, x, g, item, coarse, bases, tap, from_y, from_x)
        if not finite(acc):
            acc = repeated(zero, taps)
            for item in range(first, end, workers):
                acc = add_strip_carefully(acc, y, x, g, item, coarse, bases, tap, from_y, from_x)
        spread(kept, thread, threads, acc)
        cuda.syncthreads()
        for item in range(thread, taps * segments * lanes, threads):
            at = div(item, segments * lanes) * threads + mod(item, segments * lanes)
            poke(kept, at, added(kept, at, segments * lanes, div(workers, segments)))
        cuda.syncthreads()
        for item in range(thread, taps * lanes, threads):
            place, lane = div(item, lanes), mod(item, lanes)
            if first_channel + lane < g.groups * g.per_k:
                at = ((part * g.groups * g.per_k + first_channel + lane) * g.per_c + c) * g.taps + outer_tap * taps + place
                store(sums, at, added(kept, place * threads + lane, lanes, segments))

    def adder(terms):
        @device
        def add_strip(acc, y, x, g, item, coarse, bases, tap, from_y, from_x):
            """Add the terms of a strip."""
            last = len(g.size) - 1
            n, place = strip_place(item, coarse)
            inside, offset = forward_outer(g, place, tap)
            if inside:
                output = place[last - 1] * height, place[last] * width
                position = place[last - 1] * rows_apart + bases[0], place[last] * columns_apart + bases[1]
                at_y, at_x = from_y + n * g.y.n + outer_offset(place, g.y.spatial), from_x + n * g.x.n + offset
                acc = terms(
                    acc, y, at_y, output, last_two(g.output), last_two(g.y.spatial),
                    x, at_x, position, last_two(g.size), last_two(g.x.spatial),
                )  # fmt: skip
            return acc

        return add_strip

    add_strip, add_strip_carefully = adder(add_terms), adder(add_carefully)

    @device
    def added(kept, at, step, count):
        """The sum of so many numbers of shared memory."""
        acc = kept[at]
        for place in range(1, count):
            acc = add(acc, kept[at + place * step])
        return acc

    gradients.__name__ = gradients.__qualname__ = f"gradients_{strip.name}_{threads}x{lanes}_{dtype}"
    return kernel(gradients)


# --- from a problem to launches ------------------------------------------------------------------------------------------------


def strip_of(problem: ConvProblem, g: Geometry, shape: tuple[int, int], addresses: Sequence[int]) -> tuple[Strip, tuple[int, int]]:
    """The strip of so many rows and columns of a problem's results, and where the first source of the first one is."""
    backward = problem.op == "input_grad"
    axes, bases = [], []
    for axis, count in zip((-2, -1), shape, strict=True):
        window, stride, dilation, low = (int(values[axis]) for values in (g.window, g.stride, g.dilation, g.low))
        if backward:
            axes.append(gradient_axis(window, stride, dilation, problem.flip, low, count))
            bases.append(low // stride + axes[-1].first)
        else:
            axes.append(forward_axis(window, stride, dilation, problem.flip, count))
            bases.append(-low)
    read, size, written, limit = (g.y, g.output, g.x, g.size) if backward else (g.x, g.size, g.y, g.output)
    dtype = problem.dtype if problem.op == "weight_grad" else problem.out_dtype
    source = run_along(addresses[0], read, size[-1], problem.dtype, axes[1].advance)
    result = run_along(addresses[1], written, limit[-1], dtype, shape[1])
    unit = bool(read.spatial[-1] == 1 and written.spatial[-1] == 1)
    window_sizes = int(g.window[-2]), int(g.window[-1])
    return Strip(axes[0], axes[1], window_sizes, Run(source, -bases[1] % source), Run(result), unit), (bases[0], bases[1])


def suits(problem: ConvProblem) -> bool:
    """Whether a convolution of few channels has a kernel that is written out, and padding zeros."""
    if problem.pad_mode != "zeros" or problem.ndim > 3 or math.prod(problem.kernel[-2:]) > TAPS[problem.acc_dtype]:
        return False
    if max(math.prod(shape) for shape in (*problem.input_shapes, *problem.output_shapes)) >= 2**31:
        return False
    if problem.op == "input_grad":
        return max(problem.stride) <= STRIDES
    return problem.op == "forward" or problem.level != "strict"


def _shape(problem: ConvProblem) -> tuple[int, int]:
    """The rows and columns of a strip: whole strides in a gradient for x."""
    backward = problem.op == "input_grad"
    shape = strip_shape(
        problem.spatial if backward else problem.output, math.prod(problem.x_shape if backward else problem.y_shape)
    )
    steps = (1, *problem.stride)[-2:] if backward else (1, 1)
    rows, columns = (step * -(-count // step) for count, step in zip(shape, steps, strict=True))
    return rows, columns


def parts_of(problem: ConvProblem) -> int:
    """Into how many parts the strips of a gradient for w are divided: a function of the problem alone."""
    height, width = _shape(problem)
    rows = math.prod(problem.output[:-2]) * -(-problem.output[-2] // height) if problem.ndim > 1 else 1
    strips = problem.n * rows * -(-problem.output[-1] // width)
    lanes = _lanes(problem)
    pairs = -(-problem.k // lanes) * (problem.c // problem.groups) * math.prod(problem.kernel[:-2])
    return max(1, min(BLOCKS // pairs, strips // (THREADS // lanes * LEAST), most_parts(problem, math.prod(problem.w_shape))))


def _lanes(problem: ConvProblem) -> int:
    """Threads with a channel each in a gradient for w, where channels are neighbours in memory."""
    return LANES if problem.layout == "channels_last" and problem.k > 1 else 1


def planned(problem: ConvProblem, g: Geometry, addresses: Sequence[int]) -> Launch:
    """The launch for arrays of a geometry: of x and y, the one that is read first, at these addresses."""
    g = lifted(g)
    strip, bases = strip_of(problem, g, _shape(problem), addresses)
    backward = problem.op == "input_grad"
    coarse = coarse_of(g.size if backward else g.output, strip)
    if problem.op == "weight_grad":
        strips, parts = problem.n * math.prod(coarse), parts_of(problem)
        lanes = _lanes(problem)
        blocks = -(-problem.k // lanes) * int(g.per_c), parts, int(g.taps) // strip.taps
        arguments = divisors(coarse), typed(bases, g), np.int32(strips), np.int32(-(-strips // parts))
        return Launch(gradients_kernel(strip, THREADS, lanes, problem.acc_dtype), blocks, THREADS, (g, *arguments))
    made = int(g.per_c if backward else g.per_k)
    items = problem.n * int(g.groups) * made * math.prod(coarse)
    option = int(g.option) & (FINISHED | CHANNELS_INNER)
    function = strips_kernel(BACKWARD if backward else FORWARD, strip, problem.acc_dtype, option)
    counts = divisors(coarse), Divisor.of(made), Divisor.of(int(g.groups) * made)
    return Launch(function, -(-items // THREADS), THREADS, (g, *counts, typed(bases, g), np.int32(items)))
