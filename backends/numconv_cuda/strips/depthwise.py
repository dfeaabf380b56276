"""Few channels a group: depthwise convolutions and filters of one channel.

Most have kernels of their own, of `stencil` and `sliding`. The kernels here are those of the others: any
kernel, stride, dilation and padding, and the strict order for gradients of w, with a thread for several results of a row.

A thread keeps neighbouring results in registers. From one tap of a row to the next it reads one new element of x and has the others
still from the tap before, as long as stride and dilation are 1; with others it reads all of them, and shares the weight. Gradients
for x of stride 1 are the same with the kernel flipped; gradients for w keep neighbouring taps in registers instead of neighbouring
results. Terms come in the strict order and skip padding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from numconv.plugin import CONV_OPS, ConvProblem, Executor, Implementation, Verdict, np_dtype, scratch
from numconv_cuda.costs import again, cost_of
from numconv_cuda.direct import MEASURED_ERROR, add_up, bias_sums, bias_workspace, conv_geometry, finish, sums_workspace
from numconv_cuda.geometry import (
    Geometry,
    WeightStrides,
    advanced,
    coordinates,
    elements_of,
    offset_of,
    source_index,
    start_of,
    tap_offset,
    volume_of,
)
from numconv_cuda.primitives.elements import div, load, mod, repeated, replaced, row_muladd, shift_in, store, unpack
from numconv_cuda.runtime.compiler import Kernel, cuda, device, kernel, types
from numconv_cuda.runtime.launching import launch, over, pointer, zero
from numconv_cuda.runtime.recording import recorded

from . import sliding, stencil
from .strip_places import addresses_of

__all__ = ["CHANNELS", "WIDTHS", "Depthwise", "rows_kernel", "taps_kernel"]

WIDTHS = (8, 4)
"""Results, or taps, of a thread: the wider where a row fills it."""
CHANNELS = 4
"""The most channels of a group, of x or of y, for which this is offered."""
PARTS, ITEMS, LEAST = 4096, 2**17, 8
"""A weight gradient is split into at most so many parts, as long as there are fewer items than this, of at least so many rows."""


@device
def outer(sizes):
    """The sizes without the last axis, which counts 1."""
    return replaced(sizes, len(sizes) - 1, 1)


@device
def outer_source(g, output, tap):
    """Whether a tap of an output lies inside x on all but the last axis, and the offset there."""
    offset = 0
    inside = True
    for axis in range(len(g.size) - 1):
        position = output[axis] * g.stride[axis] + tap_offset(g, axis, tap[axis]) - g.low[axis]
        index = source_index(position, g.size[axis], g.mode)
        inside = inside and index >= 0
        offset += index * g.x.spatial[axis]
    return inside, offset


@device
def read(x, g, row, position, zero):
    """The element at a position of the last axis of a row of x, and 1; or 0 and 0 on padding."""
    axis = len(g.size) - 1
    index = source_index(position, g.size[axis], g.mode)
    if index >= 0:
        return load(x, row + index * g.x.spatial[axis], zero), 1
    return zero, 0


@device
def fill(x, g, row, position, step, values, there, count, zero):
    """`read` at so many positions, `step` apart."""
    for place in range(count):
        value, present = read(x, g, row, position + place * step, zero)
        values = replaced(values, place, value)
        there = replaced(there, place, present)
    return values, there


@functools.cache
def rows_kernel(width: int, dtype: str) -> Kernel:
    """The kernel of `width` results a thread; `coarse` are the sizes of the output with that many in one on the last axis."""
    number = getattr(types, dtype)

    def rows(x, w, bias, y, g, coarse, items, zero):
        results = cuda.local.array(width, number)
        last = len(g.size) - 1
        blocks = volume_of(coarse)
        for item in range(cuda.grid(1), items, cuda.gridsize(1)):
            n, channel = div(item, blocks * g.groups * g.per_k), mod(div(item, blocks), g.groups * g.per_k)
            group, k = div(channel, g.per_k), mod(channel, g.per_k)
            output = coordinates(mod(item, blocks), coarse)
            first = output[last] * width
            acc = repeated(zero, width)
            for c in range(g.per_c):
                start = n * g.x.n + group * g.x.group + c * g.x.channel
                tap = start_of(g.window)
                for _ in range(div(g.taps, g.window[last])):
                    inside, row = outer_source(g, output, tap)
                    if inside:
                        weights = group * g.w.group + k * g.w.k + c * g.w.c + offset_of(tap, g.w.spatial)
                        acc = add_row(acc, x, w, g, start + row, weights, first, zero)
                    tap = advanced(tap, outer(g.window))
            unpack(results, acc)
            target = n * g.y.n + group * g.y.group + k * g.y.channel
            for place in range(min(width, g.output[last] - first)):
                at = target + offset_of(replaced(output, last, first + place), g.y.spatial)
                store(y, at, finish(results[place], bias, channel, g))

    @device
    def add_row(acc, x, w, g, row, weights, first, zero):
        """Add the terms of one row of the kernel to neighbouring results."""
        last = len(g.size) - 1
        stride, steps = g.stride[last], g.w.spatial[last]
        origin = first * stride - g.low[last]
        values, there = repeated(zero, width), repeated(0, width)
        slides = stride == 1 and g.dilation[last] == 1
        for r in range(g.window[last]):
            position = origin + tap_offset(g, last, r)
            if slides and r > 0:
                value, present = read(x, g, row, position if g.flip else position + width - 1, zero)
                values, there = shift_in(values, value, g.flip == 0), shift_in(there, present, g.flip == 0)
            else:
                values, there = fill(x, g, row, position, stride, values, there, width, zero)
            acc = row_muladd(acc, values, there, load(w, weights + r * steps, zero))
        return acc

    rows.__name__ = rows.__qualname__ = f"rows_{width}_{dtype}"
    return kernel(rows)


@functools.cache
def taps_kernel(width: int, dtype: str) -> Kernel:
    """The kernel of `width` neighbouring taps of a weight gradient a thread; `coarse` are the sizes of the kernel so divided."""
    number = getattr(types, dtype)

    def taps(y, x, sums, g, coarse, items, length, zero):
        results = cuda.local.array(width, number)
        last = len(g.size) - 1
        blocks = volume_of(coarse)
        rows = g.n * div(g.outputs, g.output[last])
        weights = g.groups * g.per_k * g.per_c
        for item in range(cuda.grid(1), items, cuda.gridsize(1)):
            part, pair = div(item, blocks * weights), mod(div(item, blocks), weights)
            c, channel = mod(pair, g.per_c), div(pair, g.per_c)
            group, k = div(channel, g.per_k), mod(channel, g.per_k)
            tap = coordinates(mod(item, blocks), coarse)
            first = tap[last] * width
            from_y, from_x = group * g.y.group + k * g.y.channel, group * g.x.group + c * g.x.channel
            acc = repeated(zero, width)
            for number_of_row in range(part * length, max(min((part + 1) * length, rows), part * length)):
                n, output = div(number_of_row, div(rows, g.n)), coordinates(mod(number_of_row, div(rows, g.n)), outer(g.output))
                inside, row = outer_source(g, output, tap)
                if inside:
                    place = from_y + n * g.y.n + offset_of(output, g.y.spatial)
                    acc = add_outputs(acc, y, x, g, place, from_x + n * g.x.n + row, first, zero)
            unpack(results, acc)
            for place in range(min(width, g.window[last] - first)):
                at = tap_place(replaced(tap, last, first + place), g.window)
                store(sums, (part * weights + pair) * g.taps + at, results[place])

    @device
    def add_outputs(acc, y, x, g, y_row, x_row, first, zero):
        """Add the terms of one row of outputs to neighbouring taps."""
        last = len(g.size) - 1
        stride, step = g.stride[last], g.dilation[last]
        origin = tap_offset(g, last, first) - g.low[last]
        step = -step if g.flip else step
        values, there = repeated(zero, width), repeated(0, width)
        slides = stride == 1 and g.dilation[last] == 1
        for q in range(g.output[last]):
            position = origin + q * stride
            if slides and q > 0:
                value, present = read(x, g, x_row, position if g.flip else position + width - 1, zero)
                values, there = shift_in(values, value, g.flip == 0), shift_in(there, present, g.flip == 0)
            else:
                values, there = fill(x, g, x_row, position, step, values, there, width, zero)
            acc = row_muladd(acc, values, there, load(y, y_row + q * g.y.spatial[last], zero))
        return acc

    taps.__name__ = taps.__qualname__ = f"taps_{width}_{dtype}"
    return kernel(taps)


@device
def tap_place(tap, sizes):
    """The flat place of a tap."""
    place = 0
    for axis in range(len(sizes)):
        place = place * sizes[axis] + tap[axis]
    return place


# --- the implementation --------------------------------------------------------------------------------------------------------


def _special(problem: ConvProblem) -> Any:
    """The module whose kernels are made for such a problem; None for those of this one."""
    return next((each for each in (stencil, sliding) if each.suits(problem)), None)


def _run(module: Any, problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
    """Launch the kernels of a special module."""
    first, second, *bias = ins
    if problem.op == "weight_grad":
        y, x, w, parts = first, second, outs[0], module.parts_of(problem)
        whole = parts == 1 and _in_order(w) and w.dtype == np_dtype(problem.acc_dtype)
        sums = w if whole else scratch((parts, math.prod(problem.w_shape)), np_dtype(problem.acc_dtype), y)
        pointers: tuple[Any, ...] = pointer(y), pointer(x), pointer(sums)
        g, arrays = conv_geometry(problem, x, w, y, w), (w, sums, y, x)
        plan = module.planned(problem, g, addresses_of(pointers[1], pointers[0]))
    else:
        x, y = (outs[0], first) if problem.op == "input_grad" else (first, outs[0])
        g, arrays = conv_geometry(problem, x, second, y, outs[0], bias), (outs[0], *ins)
        pointers = pointer(first), pointer(second), pointer(bias[0] if bias else second), pointer(outs[0])
        plan = module.planned(problem, g, addresses_of(pointers[0], pointers[3]))
    if plan.blocks:
        launch(plan.kernel, plan.blocks, plan.threads, arrays, *pointers, *plan.arguments, zero(problem.acc_dtype))
    if problem.op == "weight_grad" and not whole:
        add_up(problem, sums, w, parts)


def _in_order(array: Any) -> bool:
    """Whether elements follow each other in memory, row-major."""
    steps = elements_of(array)
    return all(step == math.prod(array.shape[axis + 1 :]) for axis, step in enumerate(steps) if array.shape[axis] > 1)


def _width(row: int) -> int:
    return next((width for width in WIDTHS if row >= width), WIDTHS[-1])


def _coarse(sizes: Sequence[int], width: int) -> tuple[int, ...]:
    return (*sizes[:-1], -(-sizes[-1] // width))


def _rows(problem: ConvProblem, g: Geometry, arrays: Sequence[Any], pointers: Sequence[Any]) -> None:
    output = tuple(map(int, g.output))
    width = _width(output[-1])
    coarse = _coarse(output, width)
    items = problem.n * int(g.groups) * int(g.per_k) * math.prod(coarse)
    sizes = tuple(type(g.n)(size) for size in coarse)
    over(rows_kernel(width, problem.acc_dtype), items, arrays, *pointers, g, sizes, items, zero(problem.acc_dtype))


def _forward(problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
    if special := _special(problem):
        _run(special, problem, outs, ins)
        return
    (x, w, *bias), y = ins, outs[0]
    pointers = pointer(x), pointer(w), pointer(bias[0] if bias else w), pointer(y)
    _rows(problem, conv_geometry(problem, x, w, y, y, bias), (y, *ins), pointers)


def _as_forward(g: Geometry) -> Geometry:
    """The gradient for x of stride 1 as a convolution of that for y: the flipped kernel, padded by what the window has beyond."""
    number = type(g.n)
    low = tuple(number(d * (r - 1) - low) for r, d, low in zip(g.window, g.dilation, g.low, strict=True))
    weights = WeightStrides(g.w.group, g.w.c, g.w.k, g.w.spatial)
    return g._replace(
        per_c=g.per_k, per_k=g.per_c, size=g.output, output=g.size, low=low, flip=number(1 - g.flip), volume=g.outputs,
        outputs=g.volume, x=g.y, y=g.x, w=weights,
    )  # fmt: skip


def _input_grad(problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
    if special := _special(problem):
        _run(special, problem, outs, ins)
        return
    (y, w, *bias), x = ins, outs[0]
    pointers = pointer(y), pointer(w), pointer(bias[0] if bias else w), pointer(x)
    _rows(problem, _as_forward(conv_geometry(problem, x, w, y, x, bias)), (x, *ins), pointers)


def _parts(problem: ConvProblem) -> int:
    """Into how many parts the rows of outputs are split: a function of the problem alone."""
    if special := _special(problem):
        return special.parts_of(problem)
    if problem.level == "strict":
        return 1
    blocks = math.prod(_coarse(problem.kernel, _width(problem.kernel[-1]))) * problem.k * (problem.c // problem.groups)
    rows = problem.n * math.prod(problem.output[:-1])
    return max(1, min(PARTS, ITEMS // blocks, -(-rows // LEAST)))


def _weight_grad(problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
    if special := _special(problem):
        _run(special, problem, outs, ins)
    else:
        _taps(problem, outs, ins)
    if problem.bias:
        bias_sums(problem, outs[1], ins[0 if problem.bias == "y" else 1])


def _taps(problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
    (y, x), w = ins[:2], outs[0]
    g, parts, start = conv_geometry(problem, x, w, y, w), _parts(problem), zero(problem.acc_dtype)
    width = _width(problem.kernel[-1])
    coarse = _coarse(problem.kernel, width)
    sums = scratch((parts, math.prod(problem.w_shape)), np_dtype(problem.acc_dtype), y)
    items = parts * problem.k * (problem.c // problem.groups) * math.prod(coarse)
    length = -(-problem.n * math.prod(problem.output[:-1]) // parts)
    sizes = tuple(type(g.n)(size) for size in coarse)
    pointers = pointer(y), pointer(x), pointer(sums)
    over(taps_kernel(width, problem.acc_dtype), items, (w, sums, *ins), *pointers, g, sizes, items, length, start)
    add_up(problem, sums, w, parts)


class Depthwise(Implementation):
    """For real floats and few channels a group."""

    name = "depthwise"
    ops = frozenset(CONV_OPS)
    measured_error: ClassVar[Mapping[str, float]] = {key: MEASURED_ERROR[key] for key in ("float32", "float64")}

    def supports(self, problem: ConvProblem) -> Verdict:
        """Up to `CHANNELS` channels a group, of x or of y."""
        if problem.acc_dtype not in ("float32", "float64"):
            return Verdict.no(f"computes in float32 and float64, not in {problem.acc_dtype}")
        channels = min(problem.c, problem.k) // problem.groups
        if channels > CHANNELS:
            return Verdict.no(f"{channels} channels of x and of y a group at least, and it is made for at most {CHANNELS} of one")
        if problem.op == "input_grad" and problem.pad_mode != "zeros":
            return Verdict.no("computes gradients of x for padding with zeros only")
        if problem.op == "input_grad" and max(problem.stride) > 1 and not stencil.suits(problem):
            return Verdict.no("computes gradients of x for strides above 1 with small kernels only")
        return Verdict.yes()

    def cost(self, problem: ConvProblem) -> float:
        """See `costs`."""
        kernels = {stencil: "strips", sliding: "planes", None: "rows"}[_special(problem)]
        seconds = cost_of(problem, kernels)
        per_c, per_k = problem.c // problem.groups, problem.k // problem.groups
        return max(seconds, again(math.prod(problem.x_shape) * per_k + math.prod(problem.y_shape) * per_c, problem))

    def workspace(self, problem: ConvProblem) -> int:
        """Parts of the sums of a weight gradient and of the bias."""
        if problem.op != "weight_grad":
            return 0
        return sums_workspace(problem, math.prod(problem.w_shape), _parts(problem)) + bias_workspace(problem)

    def build(self, problem: ConvProblem) -> Executor:
        """``executor(outs, ins)`` of the operation."""
        run = {"forward": _forward, "input_grad": _input_grad, "weight_grad": _weight_grad}[problem.op]
        return recorded(functools.partial(run, problem))
