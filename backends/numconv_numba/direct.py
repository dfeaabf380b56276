"""Direct convolution for every problem: any dimensions, options and dtypes, a row of results at a time.

Each result is one chain of multiply-adds in the accumulation dtype with the terms in the order of the "strict" level, so these
kernels serve every level. A row of results stays in the first-level cache while all its terms are added.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from numconv.plugin import ConvProblem, Implementation, Verdict, np_dtype

from .activations import ACTIVATIONS
from .compiling.compiler import Address, Tag, helper, kernel
from .direct_gradients import ROW, TAPS, bias_grad, input_grad, weight_grad
from .elements import INT64, itemsize, memory, numbers, release, scratch
from .geometry import (
    DIMS,
    GROUPS,
    LOW,
    MODE,
    OPTION,
    OUTPUT,
    PARTS,
    PER_C,
    PER_K,
    SIZE,
    STRIDE,
    WINDOW,
    conv_vectors,
    part,
    source_index,
    span,
)
from .rows import clear, finish_row, outer_offset, outer_rows, outer_size, tap_position
from .scalar import load, muladd, pointer, store, wide_vectors
from .threads import MAX_THREADS, SERIAL_WORK, parallel_for, run

__all__ = ["MEASURED_ERROR", "Direct"]

MEASURED_ERROR = {"float32": 4e-6, "float64": 8e-15}
"""Of one chain of multiply-adds, on sums of up to 5,000 terms."""


# --- forward -------------------------------------------------------------------------------------------------------------------


@helper
def add_row(acc, x, w, first, last, offset, g, xt, at):
    """acc[q] += x[q*s + offset] * w for the outputs first..last of a row; `acc` is the address of the first one."""
    wide_vectors()
    axis = g[DIMS] - 1
    size, stride, mode = g[part(g, SIZE) + axis], g[part(g, STRIDE) + axis], g[MODE]
    step = g[part(g, PARTS) + 3 + axis]
    low, high = span(first, last, stride, offset, size)
    source, target = x + (low * stride + offset) * step, acc + (low - first) * itemsize(at)
    if stride * step == itemsize(xt):
        for q in range(high - low):
            place = target + q * itemsize(at)
            store(place, muladd(load(source + q * itemsize(xt), xt, at), w, load(place, at)), at)
    else:
        for q in range(high - low):
            place = target + q * itemsize(at)
            store(place, muladd(load(source + q * (stride * step), xt, at), w, load(place, at)), at)
    if mode:
        add_border(acc, x, w, first, first, low, offset, g, xt, at)
        add_border(acc, x, w, first, high, last, offset, g, xt, at)


@helper
def add_border(acc, x, w, start, first, last, offset, g, xt, at):
    """`add_row` for the outputs first..last, which read the padding; `acc` is the address of the output `start`."""
    axis = g[DIMS] - 1
    size, stride, step = g[part(g, SIZE) + axis], g[part(g, STRIDE) + axis], g[part(g, PARTS) + 3 + axis]
    for q in range(first, last):
        place = acc + (q - start) * itemsize(at)
        source = x + source_index(q * stride + offset, size, g[MODE]) * step
        store(place, muladd(load(source, xt, at), w, load(place, at)), at)


@helper
def forward_row(acc, rows, inside, x, w, group, k, first, last, g, xt, at):
    """The sums of the outputs first..last of a row for one output channel: c, then the kernel row-major."""
    axis = g[DIMS] - 1
    window, taps, low = g[part(g, WINDOW) + axis], outer_size(g, WINDOW), g[part(g, LOW) + axis]
    xs, ws = part(g, PARTS), part(g, PARTS + 1)
    clear(acc, last - first, at)
    for c in range(g[PER_C]):
        x_c = x + (group * g[xs + 1] + c * g[xs + 2])
        w_c = w + (group * g[ws] + k * g[ws + 1] + c * g[ws + 2])
        for tap in range(taps):
            if inside[tap]:
                w_row = w_c + outer_offset(g, tap, WINDOW, PARTS + 1)
                for r in range(window):
                    weight = load(w_row + r * g[ws + 3 + axis], xt, at)
                    add_row(acc, x_c + rows[tap], weight, first, last, tap_position(g, axis, r) - low, g, xt, at)


@helper
def _forward(begin, end, args):
    xt, yt, at, x, w, bias, y, g = args
    wide_vectors()
    axis = g[DIMS] - 1
    xs, ys, per_k, length = part(g, PARTS), part(g, PARTS + 2), g[PER_K], g[part(g, OUTPUT) + axis]
    rows_out, taps, chunks = outer_size(g, OUTPUT), outer_size(g, WINDOW), -(-length // ROW)
    sums, lists = scratch(min(ROW, length) * itemsize(at)), scratch(16 * taps)
    acc, rows, inside = memory(sums), numbers(lists, 0), numbers(lists, taps)
    for item in range(begin, end):
        first = item % chunks * ROW
        output = item // chunks % rows_out
        channel = item // chunks // rows_out % (g[GROUPS] * per_k)
        n = item // chunks // rows_out // (g[GROUPS] * per_k)
        group, k, last = channel // per_k, channel % per_k, min(first + ROW, length)
        outer_rows(g, output, taps, rows, inside)
        forward_row(acc, rows, inside, x + n * g[xs], w, group, k, first, last, g, xt, at)
        target = y + (n * g[ys] + group * g[ys + 1] + k * g[ys + 2] + outer_offset(g, output, OUTPUT, PARTS + 2))
        step = g[ys + 3 + axis]
        finish_row(acc, target + first * step, last - first, step, bias, channel, g[OPTION], yt, at)
    release(sums)
    release(lists)


@kernel
def forward(
    xt: Tag, yt: Tag, at: Tag, region: int, workers: int, items: int, x: Address, w: Address, bias: Address, y: Address, g: Address
) -> None:
    """y from x and w: an item is a part of a row of one output channel."""
    parallel_for(region, workers, items, _forward, (xt, yt, at, x, w, bias, y, pointer(g, INT64)))


# --- the implementation --------------------------------------------------------------------------------------------------------


class _Executor:
    """One direct convolution: the compiled kernel, the vectors of its problem, the number of work items."""

    def __init__(self, problem: ConvProblem):
        option = problem.level == "strict" if problem.op == "weight_grad" else ACTIVATIONS[problem.activation]
        self._dtypes = problem.dtype, problem.out_dtype, problem.acc_dtype
        self._vectors = conv_vectors(problem, int(option))
        self._work = problem.flops * 2  # rows are about four times as slow as register tiles
        self._items = {"forward": _row_items, "input_grad": _row_items, "weight_grad": _tap_items}[problem.op](problem)
        self._problem = problem
        self._acc = np_dtype(problem.acc_dtype)

    @functools.cached_property
    def _kernel(self) -> Any:
        """Compiled when it is called first: others have an executor for the gradient of the bias alone."""
        compiled = {"forward": forward, "input_grad": input_grad, "weight_grad": weight_grad}[self._problem.op]
        return compiled.specialise(*self._dtypes)

    def __call__(self, outs: Any, ins: Any) -> None:
        if not self._items:
            return
        getattr(self, f"_{self._problem.op}")(outs, ins)

    def _forward(self, outs: Any, ins: Any) -> None:
        (y,), (x, w, *bias) = outs, ins
        shift = np.ascontiguousarray(bias[0], self._acc) if bias else 0
        addresses = x, w, shift, y
        run(self._kernel, self._items, self._work, *addresses, self._vectors(x.strides, w.strides, y.strides))

    def _input_grad(self, outs: Any, ins: Any) -> None:
        (x,), (y, w, *bias) = outs, ins
        shift = np.ascontiguousarray(bias[0], self._acc) if bias else 0
        addresses = y, w, shift, x
        run(self._kernel, self._items, self._work, *addresses, self._vectors(x.strides, w.strides, y.strides))

    def _weight_grad(self, outs: Any, ins: Any) -> None:
        (w, *bias), (y, x) = outs, ins
        run(self._kernel, self._items, self._work, y, x, w, self._vectors(x.strides, w.strides, y.strides))
        if bias:
            self.bias_grad(bias[0], y, x, w)

    def bias_grad(self, bias: Any, y: Any, x: Any, w: Any) -> None:
        """The gradient of the bias alone."""
        problem, on_y = self._problem, self._problem.bias == "y"
        channels = problem.k if on_y else problem.c
        sums = bias if bias.flags.c_contiguous else np.empty_like(bias)
        compiled = bias_grad.specialise(*self._dtypes)
        where = (OUTPUT, PARTS + 2) if on_y else (SIZE, PARTS)
        source, vector = y if on_y else x, self._vectors(x.strides, w.strides, y.strides)
        run(compiled, channels, source.size, source, sums, *where, channels // problem.groups, vector)
        if sums is not bias:
            bias[...] = sums


def _row_items(problem: ConvProblem) -> int:
    shape = problem.y_shape if problem.op == "forward" else problem.x_shape
    return math.prod(shape[:-1]) * -(-shape[-1] // ROW)


def _tap_items(problem: ConvProblem) -> int:
    return math.prod(problem.w_shape[:-1]) * -(-problem.w_shape[-1] // TAPS)


class Direct(Implementation):
    """Direct convolution: every problem, every level."""

    name = "direct"
    ops = frozenset(("forward", "input_grad", "weight_grad"))
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def supports(self, problem: ConvProblem) -> Verdict:
        """Everything."""
        return Verdict.yes()

    def cost(self, problem: ConvProblem) -> float:
        """Rows are short of registers: about a tenth of the peak, and some time for each row; integers and complex fare better."""
        rows = problem.flops / 2 / max(1, min(problem.output[-1], ROW))
        if "int" in problem.dtype:
            return 3e-6 + problem.flops * np_dtype(problem.acc_dtype).itemsize / 1.2e11 + rows * 2.5e-9
        neighbours = problem.stride[-1] == 1 and problem.layout == "channels_first"  # which are computed in vectors
        if "complex" in problem.dtype and problem.op == "forward":
            each = np_dtype(problem.acc_dtype).itemsize / (1e12 if neighbours else 1e11)
            return 3e-6 + problem.flops * each + rows * 1e-9
        if problem.op == "weight_grad" and problem.level != "strict" and "complex" not in problem.dtype:
            together = problem.flops / (5e10 if neighbours else 3.7e9) + rows * 2.2e-8
            return 3e-6 + together * (2 if problem.flops * 2 < SERIAL_WORK else 1)
        return 3e-6 + problem.flops / (8e9 if "complex" in problem.dtype else 1.5e10) + rows * 1.5e-8

    def workspace(self, problem: ConvProblem) -> int:
        """For each thread a row of sums, and the table of the rows that go into it."""
        rows = math.prod(problem.kernel[:-1])
        if problem.op == "input_grad" and problem.pad_mode != "zeros":
            pairs = zip(problem.output[:-1], problem.padding[:-1], strict=True)
            rows *= math.prod(min(q, 1 + low + max(high, 0)) for q, (low, high) in pairs)
        longest = max(problem.output) if problem.op == "input_grad" else 0
        return MAX_THREADS * (ROW * 16 + 16 * (rows + 1) + 8 * problem.ndim * longest)

    def build(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
