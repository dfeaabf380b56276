"""Direct convolution for every problem: any dimensions, options and dtypes, a thread for each result.

Each result is one chain of multiply-adds in the accumulation dtype. At accuracy "strict" its terms come in the order channel, then
kernel row-major (weight gradient: batch, then output row-major). At the other levels the kernel's loop is the outer one, so that
what a tap reads is found once for all channels, and the terms of a weight gradient are split into parts, by the problem alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from numconv.plugin import CONV_OPS, ConvProblem, Executor, Implementation, Verdict, np_dtype, scratch

from .costs import cost_of
from .geometry import (
    ACTIVATIONS,
    BIASED,
    STRICT,
    Geometry,
    advanced,
    coordinates,
    elements_of,
    geometry,
    inner,
    offset_of,
    reader,
    result_place,
    slots,
    source_offset,
    start_of,
    strides_of,
    volume_of,
    weight_strides,
)
from .primitives.elements import activated, add, conj, div, load, mod, muladd, store
from .runtime.compiler import cuda, device, kernel
from .runtime.launching import over, pointer, zero
from .runtime.recording import recorded

__all__ = ["MEASURED_ERROR", "Direct", "add_up", "bias_sums", "bias_workspace", "conv_geometry", "finish", "forward_chain",
           "gradient_chain", "most_parts", "summed_parts", "sums_workspace", "weight_chain"]  # fmt: skip

PARTS, ITEMS, LEAST = 1024, 2**17, 64
"""A weight gradient is split into at most so many parts, as long as there are fewer items than this, of at least so many terms."""
TOGETHER = 32
"""The most parts that one thread adds up."""
MEASURED_ERROR = {"float32": 4e-6, "float64": 8e-15, "complex64": 4e-6, "complex128": 8e-15}
"""Of one chain of multiply-adds, on sums of up to 5,000 terms: measured on a CPU, whose FMA rounds as a GPU's does."""


@device
def finish(acc, bias, channel, g):
    """A sum with its bias and activation."""
    if g.option & BIASED:
        acc = add(acc, load(bias, channel * g.bias, acc))
    return activated(acc, g.option & 3)


# --- forward -------------------------------------------------------------------------------------------------------------------


@device
def forward_chain(x, w, g, output, start, weight, zero):
    """The sum of one output in the strict order."""
    acc = zero
    for c in range(g.per_c):
        tap = start_of(g.window)
        for _ in range(g.taps):
            inside, source = source_offset(g, output, tap)
            if inside:
                value = load(x, start + c * g.x.channel + source, zero)
                acc = muladd(value, load(w, weight + c * g.w.c + offset_of(tap, g.w.spatial), zero), acc)
            tap = advanced(tap, g.window)
    return acc


@device
def forward_sum(x, w, g, output, start, weight, zero):
    """The same sum, the kernel's loop outside."""
    acc = zero
    tap = start_of(g.window)
    for _ in range(g.taps):
        inside, source = source_offset(g, output, tap)
        if inside:
            source += start
            place = weight + offset_of(tap, g.w.spatial)
            for c in range(g.per_c):
                acc = muladd(load(x, source + c * g.x.channel, zero), load(w, place + c * g.w.c, zero), acc)
        tap = advanced(tap, g.window)
    return acc


@kernel
def forward(x, w, bias, y, g, items, zero):
    """y from x and w."""
    for item in range(cuda.grid(1), items, cuda.gridsize(1)):
        n, channel, output = result_place(item, g.groups * g.per_k, g.output, g.outputs, g.option)
        group, k = div(channel, g.per_k), mod(channel, g.per_k)
        start, weight = n * g.x.n + group * g.x.group, group * g.w.group + k * g.w.k
        if g.option & STRICT:
            acc = forward_chain(x, w, g, output, start, weight, zero)
        else:
            acc = forward_sum(x, w, g, output, start, weight, zero)
        target = n * g.y.n + group * g.y.group + k * g.y.channel + offset_of(output, g.y.spatial)
        store(y, target, finish(acc, bias, channel, g))


# --- input_grad ----------------------------------------------------------------------------------------------------------------


@device
def gradient_chain(y, w, g, index, start, weight, zero):
    """The sum of one gradient in the strict order: output channel, kernel row-major, outputs row-major."""
    acc = zero
    for k in range(g.per_k):
        tap = start_of(g.window)
        for _ in range(g.taps):
            ways = slots(g, tap)
            slot = start_of(g.window)
            for _ in range(volume_of(ways)):
                found, source = reader(g, tap, index, slot)
                if found:
                    factor = conj(load(w, weight + k * g.w.k + offset_of(tap, g.w.spatial), zero))
                    acc = muladd(load(y, start + k * g.y.channel + source, zero), factor, acc)
                slot = advanced(slot, ways)
            tap = advanced(tap, g.window)
    return acc


@device
def gradient_sum(y, w, g, index, start, weight, zero):
    """The same sum, the kernel's loop outside."""
    acc = zero
    tap = start_of(g.window)
    for _ in range(g.taps):
        ways = slots(g, tap)
        slot = start_of(g.window)
        for _ in range(volume_of(ways)):
            found, source = reader(g, tap, index, slot)
            if found:
                source += start
                place = weight + offset_of(tap, g.w.spatial)
                for k in range(g.per_k):
                    factor = conj(load(w, place + k * g.w.k, zero))
                    acc = muladd(load(y, source + k * g.y.channel, zero), factor, acc)
            slot = advanced(slot, ways)
        tap = advanced(tap, g.window)
    return acc


@kernel
def input_grad(y, w, bias, x, g, items, zero):
    """The gradient for x from that for y, and w; also the transposed convolution, with its bias and activation."""
    for item in range(cuda.grid(1), items, cuda.gridsize(1)):
        n, channel, index = result_place(item, g.groups * g.per_c, g.size, g.volume, g.option)
        group, c = div(channel, g.per_c), mod(channel, g.per_c)
        start, weight = n * g.y.n + group * g.y.group, group * g.w.group + c * g.w.c
        if g.option & STRICT:
            acc = gradient_chain(y, w, g, index, start, weight, zero)
        else:
            acc = gradient_sum(y, w, g, index, start, weight, zero)
        target = n * g.x.n + group * g.x.group + c * g.x.channel + offset_of(index, g.x.spatial)
        store(x, target, finish(acc, bias, channel, g))


# --- weight_grad ---------------------------------------------------------------------------------------------------------------


@device
def weight_chain(y, x, g, tap, from_y, from_x, first, last, zero):
    """The part of the sum of one weight over the outputs first..last, counted through the batch."""
    n, done = div(first, g.outputs), mod(first, g.outputs)
    output = coordinates(done, g.output)
    acc = zero
    for _ in range(last - first):
        inside, source = source_offset(g, output, tap)
        if inside:
            value = load(y, from_y + n * g.y.n + offset_of(output, g.y.spatial), zero)
            acc = muladd(value, conj(load(x, from_x + n * g.x.n + source, zero)), acc)
        output = advanced(output, g.output)
        done += 1
        if done == g.outputs:
            done = 0
            n += 1
    return acc


@kernel
def weight_grad(y, x, sums, g, items, length, zero):
    """Parts of the gradient for w: sums[part, k, c, tap] over `length` outputs, counted through the batch, from part * length."""
    weights = g.groups * g.per_k * g.per_c * g.taps
    for item in range(cuda.grid(1), items, cuda.gridsize(1)):
        part, place = div(item, weights), mod(item, weights)
        tap = coordinates(mod(place, g.taps), g.window)
        row = div(place, g.taps)
        c, channel = mod(row, g.per_c), div(row, g.per_c)
        group, k = div(channel, g.per_k), mod(channel, g.per_k)
        from_y, from_x = group * g.y.group + k * g.y.channel, group * g.x.group + c * g.x.channel
        first = part * length
        last = max(min(first + length, g.n * g.outputs), first)
        store(sums, item, weight_chain(y, x, g, tap, from_y, from_x, first, last, zero))


@kernel
def channel_sums(values, sums, shape, strides, items, length, zero):
    """Parts of the sum over each channel: sums[part, channel] over `length` positions, counted through the batch."""
    volume = volume_of(shape[2])
    terms = shape[0] * volume
    for item in range(cuda.grid(1), items, cuda.gridsize(1)):
        part, channel = div(item, shape[1]), mod(item, shape[1])
        first = part * length
        acc = zero
        for term in range(first, min(first + length, terms)):
            place = offset_of(coordinates(mod(term, volume), shape[2]), strides[2])
            acc = add(acc, load(values, div(term, volume) * strides[0] + channel * strides[1] + place, zero))
        store(sums, item, acc)


@kernel
def fold_parts(sums, folded, items, fewer, parts, zero):
    """Add up the parts of each sum in a fixed order: every `fewer`-th from each of the first on."""
    for item in range(cuda.grid(1), fewer * items, cuda.gridsize(1)):
        acc = load(sums, item, zero)
        for place in range(item + fewer * items, parts * items, fewer * items):
            acc = add(acc, load(sums, place, zero))
        store(folded, item, acc)


@kernel
def add_parts(sums, out, sizes, steps, items, parts, zero):
    """Add up the parts of each sum in a fixed order, and write them to an array of these sizes and steps."""
    for item in range(cuda.grid(1), items, cuda.gridsize(1)):
        acc = load(sums, item, zero)
        for part in range(1, parts):
            acc = add(acc, load(sums, part * items + item, zero))
        store(out, offset_of(coordinates(item, sizes), steps), acc)


# --- the implementation --------------------------------------------------------------------------------------------------------


def epilogue(problem: ConvProblem, out: Any) -> int:
    """The option of kernels that write results: activation, bias, order of the items and of the terms."""
    strict = STRICT if problem.level == "strict" else 0
    return ACTIVATIONS[problem.activation] | (BIASED if problem.bias else 0) | inner(out) | strict


def conv_geometry(problem: ConvProblem, x: Any, w: Any, y: Any, out: Any, bias: Sequence[Any] = ()) -> Geometry:
    """The geometry of a convolution for its three arrays, one of which is the result `out`."""
    per_c, per_k = problem.c // problem.groups, problem.k // problem.groups
    strides = strides_of(x, per_c), weight_strides(w, per_k), strides_of(y, per_k)
    step = elements_of(bias[0])[0] if bias else 0
    return geometry(problem, (x, w, y), *strides, epilogue(problem, out), step)


def _forward(problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
    (x, w, *bias), y = ins, outs[0]
    g, items = conv_geometry(problem, x, w, y, y, bias), math.prod(y.shape)
    pointers = pointer(x), pointer(w), pointer(bias[0] if bias else w), pointer(y)
    over(forward, items, (y, *ins), *pointers, g, items, zero(problem.acc_dtype))


def _input_grad(problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
    (y, w, *bias), x = ins, outs[0]
    g, items = conv_geometry(problem, x, w, y, x, bias), math.prod(x.shape)
    pointers = pointer(y), pointer(w), pointer(bias[0] if bias else w), pointer(x)
    over(input_grad, items, (x, *ins), *pointers, g, items, zero(problem.acc_dtype))


def summed_parts(problem: ConvProblem, items: int, terms: int) -> int:
    """Into how many parts sums of so many terms are split: a function of the problem alone."""
    if problem.level == "strict":
        return 1
    return max(1, min(PARTS, ITEMS // max(items, 1), -(-terms // LEAST)))


def _weight_grad(problem: ConvProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
    y, x, w = ins[0], ins[1], outs[0]
    g = conv_geometry(problem, x, w, y, w)
    items, terms = math.prod(problem.w_shape), problem.n * math.prod(problem.output)
    parts = summed_parts(problem, items, terms)
    sums = scratch((parts, items), np_dtype(problem.acc_dtype), y)
    length = -(-terms // parts)
    start = zero(problem.acc_dtype)
    over(weight_grad, parts * items, (w, y, x), pointer(y), pointer(x), pointer(sums), g, parts * items, length, start)
    add_up(problem, sums, w, parts)
    if problem.bias:
        bias_sums(problem, outs[1], ins[0 if problem.bias == "y" else 1])


def bias_sums(problem: ConvProblem, out: Any, values: Any) -> None:
    """The gradient of the bias: the sum of `values` over all but their channels."""
    n, channels, *spatial = values.shape
    terms = n * math.prod(spatial)
    parts = summed_parts(problem, channels, terms)
    sums = scratch((parts, channels), np_dtype(problem.acc_dtype), values)
    shape, strides = (n, channels, tuple(spatial)), elements_of(values)
    start, length = zero(problem.acc_dtype), -(-terms // parts)
    steps = (strides[0], strides[1], tuple(strides[2:]))
    items, pointers = parts * channels, (pointer(values), pointer(sums))
    over(channel_sums, items, (out, values), *pointers, shape, steps, items, length, start)
    add_up(problem, sums, out, parts)


def bias_workspace(problem: ConvProblem) -> int:
    """Bytes of the parts of the sums of a bias."""
    if not problem.bias:
        return 0
    terms = problem.n * math.prod(problem.output if problem.bias == "y" else problem.spatial)
    channels = problem.bias_shape[0]
    return sums_workspace(problem, channels, summed_parts(problem, channels, terms))


def sums_workspace(problem: ConvProblem, items: int, parts: int) -> int:
    """Bytes of the parts of so many sums, and of those that `add_up` makes of them."""
    total = parts
    while parts > TOGETHER:
        parts = -(-parts // TOGETHER)
        total += parts
    return total * items * np_dtype(problem.acc_dtype).itemsize


def most_parts(problem: ConvProblem, items: int) -> int:
    """The parts of so many sums that `max_workspace` allows, with what `add_up` makes of them; one at least."""
    allowed = problem.max_workspace // (max(items, 1) * np_dtype(problem.acc_dtype).itemsize)
    return max(1, allowed - allowed // (TOGETHER - 1) - 2)


def add_up(problem: ConvProblem, sums: Any, out: Any, parts: int) -> None:
    """Add up the parts of the sums that belong in `out`, some at a time where there are many."""
    items = math.prod(out.shape)
    start = zero(problem.acc_dtype)
    while parts > TOGETHER:
        fewer = -(-parts // TOGETHER)
        folded = scratch((fewer, items), np_dtype(problem.acc_dtype), out)
        over(fold_parts, fewer * items, (folded, sums), pointer(sums), pointer(folded), items, fewer, parts, start)
        sums, parts = folded, fewer
    over(add_parts, items, (out, sums), pointer(sums), pointer(out), tuple(out.shape), elements_of(out), items, parts, start)


class Direct(Implementation):
    """The definition of convolution, for every problem."""

    name = "direct"
    ops = frozenset(CONV_OPS)
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def supports(self, problem: ConvProblem) -> Verdict:
        """Yes: there is no limit."""
        return Verdict.yes()

    def cost(self, problem: ConvProblem) -> float:
        """See `costs`."""
        return cost_of(problem, self.name)

    def workspace(self, problem: ConvProblem) -> int:
        """Parts of the sums of a weight gradient and of the bias."""
        if problem.op != "weight_grad":
            return 0
        items, terms = math.prod(problem.w_shape), problem.n * math.prod(problem.output)
        parts = summed_parts(problem, items, terms)
        return sums_workspace(problem, items, parts) + bias_workspace(problem)

    def build(self, problem: ConvProblem) -> Executor:
        """``executor(outs, ins)`` of the operation."""
        run = {"forward": _forward, "input_grad": _input_grad, "weight_grad": _weight_grad}[problem.op]
        return recorded(functools.partial(run, problem))
