"""Padding with zeros, unfold and fold over two dimensions: a thread moves a strip, see `strips`.

Padding and unfold copy words of memory, whatever they mean. Fold gathers: a thread adds up what the columns hold of its elements.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from numconv.plugin import WindowProblem, np_dtype
from numconv_cuda.geometry import CHANNELS_INNER, Geometry, geometry, inner, strides_of
from numconv_cuda.primitives.elements import repeated
from numconv_cuda.runtime.compiler import SIMULATED, Kernel, cuda, kernel
from numconv_cuda.runtime.launching import launch, pointer, zero

from .strip_places import Launch, addresses_of, coarse_of, divisors, lifted, locator, run_along, strip_shape, typed
from .strip_terms import put, split, strip_folds, strip_words
from .strips import Divisor, Run, Strip, forward_axis, gradient_axis

__all__ = ["fold", "suits", "unfold"]

THREADS = 2 if SIMULATED else 128
"""Of a block."""
TAPS = 49
"""The most of a fold, which are written out."""
WORDS = {2: "uint16", 4: "uint32", 8: "uint64"}
"""By the bytes of an element: as what it is copied."""


@functools.cache
def copy_kernel(strip: Strip, word: str, option: int) -> Kernel:
    """The kernel of padding and unfold: (x, y, g, coarse, taps, row, channels, items).

    `taps` and `row` are the taps of the window and of a row of it as divisors, `channels` the channels times the taps.
    """
    load_words, write, locate = strip_words(strip), put(strip), locator(option)
    height, width, rows_apart, columns_apart = strip.height, strip.width, strip.rows.advance, strip.columns.advance

    def copy_strips(x, y, g, coarse, taps, row, channels, items):
        item = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if item < items:
            n, line, place = locate(item, coarse, channels)
            c, tap = split(line, taps)
            tap_row, tap_column = split(tap, row)
            position = (
                place[0] * rows_apart + tap_row * g.dilation[0] - g.low[0],
                place[1] * columns_apart + tap_column * g.dilation[1] - g.low[1],
            )
            words = load_words(x, n * g.x.n + c * g.x.group, position, g.size, g.x.spatial)
            at = n * g.y.n + c * g.y.group + tap * g.y.channel
            write(y, at, (place[0] * height, place[1] * width), g.output, g.y.spatial, words)

    copy_strips.__name__ = copy_strips.__qualname__ = f"copy_strips_{strip.name}_{option}_{word}"
    return kernel(copy_strips)


@functools.cache
def fold_kernel(strip: Strip, dtype: str, option: int) -> Kernel:
    """The kernel of fold: (y, x, g, coarse, channels, bases, items, zero)."""
    add_folds, write, locate = strip_folds(strip), put(strip), locator(option)
    results, height, width = strip.results, strip.height, strip.width
    rows_apart, columns_apart = strip.rows.advance, strip.columns.advance

    def fold_strips(y, x, g, coarse, channels, bases, items, zero):
        item = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if item < items:
            n, channel, place = locate(item, coarse, channels)
            position = place[0] * rows_apart + bases[0], place[1] * columns_apart + bases[1]
            acc, at = repeated(zero, results), n * g.y.n + channel * g.y.group
            acc = add_folds(acc, y, at, position, g.output, g.y.spatial, g.y.channel)
            write(x, n * g.x.n + channel * g.x.group, (place[0] * height, place[1] * width), g.size, g.x.spatial, acc)

    fold_strips.__name__ = fold_strips.__qualname__ = f"fold_strips_{strip.name}_{option}_{dtype}"
    return kernel(fold_strips)


# --- from a problem to launches ------------------------------------------------------------------------------------------------


def suits(problem: WindowProblem) -> bool:
    """Whether up to two dimensions are padded with zeros, in elements that are words or, where they are added, floats."""
    if problem.ndim > 2 or problem.pad_mode != "zeros":
        return False
    if max(math.prod(shape) for shape in (*problem.input_shapes, *problem.output_shapes)) >= 2**31:
        return False
    if problem.op in ("fold", "pad_backward"):
        floating = problem.acc_dtype in ("float32", "float64")
        return floating and math.prod(problem.window) <= TAPS and max(problem.stride) <= 8
    return np_dtype(problem.dtype).itemsize in WORDS


def planned_copy(problem: WindowProblem, g: Geometry, source: int, result: int) -> Launch:
    g = lifted(g)
    size = np_dtype(problem.dtype).itemsize
    counts = strip_shape(g.output, math.prod(problem.output_shapes[0]))
    rows, columns = (forward_axis(1, int(s), 1, False, count) for s, count in zip(g.stride, counts, strict=True))
    unit = bool(g.x.spatial[-1] == 1 and g.y.spatial[-1] == 1)
    load = run_along(source, g.x, g.size[-1], problem.dtype, columns.advance) if unit and int(g.taps) == 1 else 1
    keep = run_along(result, g.y, g.output[-1], problem.dtype, counts[1]) if unit else 1
    strip = Strip(rows, columns, (1, 1), Run(load, int(g.low[-1]) % load), Run(keep), unit)
    coarse = coarse_of(g.output, strip)
    lines = problem.c * int(g.taps)
    items = problem.n * lines * math.prod(coarse)
    function = copy_kernel(strip, WORDS[size], int(g.option) & CHANNELS_INNER)
    numbers = Divisor.of(int(g.taps)), Divisor.of(int(g.window[1])), Divisor.of(lines), np.int32(items)
    return Launch(function, -(-items // THREADS), THREADS, (g, divisors(coarse), *numbers))


def planned_fold(problem: WindowProblem, g: Geometry, result: int) -> Launch:
    g = lifted(g)
    axes, bases = [], []
    for axis, most in enumerate((4, 1)):
        window, stride, dilation, low = (int(values[axis]) for values in (g.window, g.stride, g.dilation, g.low))
        axes.append(gradient_axis(window, stride, dilation, False, low, stride * -(-min(most, int(g.size[axis])) // stride)))
        bases.append(low // stride + axes[-1].first)
    unit = bool(g.x.spatial[-1] == 1 and g.y.spatial[-1] == 1)
    run = run_along(result, g.x, g.size[-1], problem.dtype, len(axes[1].terms)) if unit else 1
    strip = Strip(axes[0], axes[1], (int(g.window[0]), int(g.window[1])), Run(), Run(run), unit)
    coarse = coarse_of(g.size, strip)
    items = problem.n * problem.c * math.prod(coarse)
    function = fold_kernel(strip, problem.acc_dtype, int(g.option) & CHANNELS_INNER)
    arguments = g, divisors(coarse), Divisor.of(problem.c), typed(bases, g), np.int32(items)
    return Launch(function, -(-items // THREADS), THREADS, arguments)


def _words(array: Any) -> Any:
    """The pointer to an array's elements as words."""
    found = pointer(array)
    return found if SIMULATED else found._replace(dtype=WORDS[array.dtype.itemsize])


def unfold(problem: WindowProblem, outs: Sequence[Any], ins: Sequence[Any], columns: tuple[Any, ...]) -> None:
    """Columns of windows, or the padded array, whose strides (n, channel, tap, spatial) are given."""
    x, y = ins[0], outs[0]
    g = geometry(problem, (x, y), strides_of(x, 1), y=columns, option=inner(y) if problem.op == "pad" else 0)
    pointers = _words(x), _words(y)
    plan = planned_copy(problem, g, *addresses_of(*pointers))
    if plan.blocks:
        launch(plan.kernel, plan.blocks, plan.threads, (y, x), *pointers, *plan.arguments)


def fold(problem: WindowProblem, outs: Sequence[Any], ins: Sequence[Any], columns: tuple[Any, ...]) -> None:
    """The adjoint of `unfold`."""
    y, x = ins[0], outs[0]
    g = geometry(problem, (x, y), strides_of(x, 1), y=columns, option=inner(x))
    pointers = pointer(y), pointer(x)
    plan = planned_fold(problem, g, *addresses_of(pointers[1]))
    if plan.blocks:
        launch(plan.kernel, plan.blocks, plan.threads, (x, y), *pointers, *plan.arguments, zero(problem.acc_dtype))
