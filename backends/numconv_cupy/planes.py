"""Convolution where few channels belong together, by the kernel of ``kernels/planes.cu``: depthwise, filters, the first layers.

Each channel's plane is correlated in shared memory by threads that have neighbouring results, in the order of accuracy="strict".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Executor, Verdict, np_dtype

from .costs import seconds
from .direct import Direct, bias_bytes, bias_launch, limits, store_launch
from .launching import MOST_MEMORY, Launcher, by_strides, scratch
from .namespaces import Arrays
from .source import NULL, geometry, kernel, strides_of

__all__ = ["Depthwise", "FewChannels", "layout_of"]

NEIGHBOURS = 4
"""Results of a thread on the last axis."""
_PLANES_SHARE, _TAPS_SHARE = 0.3, 0.035
"""Of the peak: products and fetching of planes; weight gradients. Where they come from: `costs`."""
_FETCH = 150
"""Operations in the time that a result takes besides its products, for each plane and thread."""
_APART = 1.6
"""The time without neighbours that share what they read, in proportion to that with them."""
_LEAST_BLOCKS = 264
"""Fewer leave multiprocessors idle."""
MOST_BLOCKS = 2**31 - 1
MOST_THREADS = 256
UNROLLED = (3, 5, 7)
"""Taps of the last axis that kernels are compiled for; they count any other number of them."""
MOST_TAPS = 28
"""Of a thread, where a sum has four bytes."""
WANTED_BLOCKS = 1056
"""Eight for each multiprocessor of an H100: a weight gradient has as many parts."""
LEAST_POSITIONS = 1024
"""Of a part."""


class Layout(NamedTuple):
    """What a block of threads computes: see the kernel."""

    channels: int
    """Of a thread."""
    rows: int
    """Of a thread."""
    lanes: int
    lines: int
    planes: int
    memory: int
    """Bytes that it needs."""
    blocks: int

    @property
    def threads(self) -> int:
        """Of a block: whole warps."""
        return -(-self.lanes * self.lines * self.planes // 32) * 32


class _Axis(NamedTuple):
    """An axis of the largest phase of a stride."""

    results: int
    taps: int
    scale: int
    apart: int


def _axes(problem: ConvProblem) -> list[_Axis]:
    geometry = zip(problem.kernel, problem.stride, problem.dilation, problem.spatial, problem.output, strict=True)
    if problem.op == "forward":
        return [_Axis(q, r, s, d) for r, s, d, _, q in geometry]
    return [_Axis(-(-size // s), -(-r // (s // math.gcd(s, d))), 1, d // math.gcd(s, d)) for r, s, d, size, _ in geometry]


def _slides(problem: ConvProblem) -> bool:
    """Whether neighbouring results read neighbouring values by neighbouring taps."""
    last = _axes(problem)[-1]
    return last.scale == last.apart == 1


def _channels(problem: ConvProblem) -> int:
    """Of the result, a group."""
    return (problem.k if problem.op == "forward" else problem.c) // problem.groups


def _steps(problem: ConvProblem) -> int:
    """Planes of which a result is the sum: channels, times taps on the axes before the last two."""
    channels = (problem.c if problem.op == "forward" else problem.k) // problem.groups
    return channels * math.prod(axis.taps for axis in _axes(problem)[:-2])


@functools.lru_cache(maxsize=1024)
def layout_of(problem: ConvProblem) -> Layout | None:
    """The largest block that fits shared memory; None if not even the smallest does."""
    *_, rows, columns = [_Axis(1, 1, 1, 1), *_axes(problem)]
    size = np_dtype(problem.acc_dtype).itemsize
    channels = min(_channels(problem), 4 if size <= 8 else 1)
    own_rows = min(rows.results, max(1, {1: 4, 2: 4}.get(channels, 2) * 4 // max(4, size)))
    pairs = problem.n * problem.groups
    most = MOST_THREADS
    while True:
        lanes = _share(-(-columns.results // NEIGHBOURS), min(most, 32 if rows.results > 1 else 128))
        lines = _share(-(-rows.results // own_rows), max(1, min(most, 196) // lanes))
        planes = max(1, min(pairs, most * 3 // 4 // (lanes * lines)))
        layout = _layout(problem, channels, own_rows, lanes, lines, planes)
        if layout.memory <= MOST_MEMORY:
            return layout
        if most == 1:
            return None
        most //= 2


def _share(items: int, most: int) -> int:
    """How many of the items each of as few equal parts as possible has, which are no larger than `most`."""
    items = max(1, items)
    return -(-items // -(-items // most))


def _layout(problem: ConvProblem, channels: int, own_rows: int, lanes: int, lines: int, planes: int) -> Layout:
    *outer, rows, columns = [_Axis(1, 1, 1, 1), *_axes(problem)]
    across, down, taps = lanes * NEIGHBOURS, lines * own_rows, -(-columns.taps // 4) * 4
    height = (down - 1) * rows.scale + (rows.taps - 1) * rows.apart + 1
    width = (across - 1) * columns.scale + (columns.taps - 1) * columns.apart + 1
    pitch = across + taps if _slides(problem) else -(-width // 4) * 4
    numbers = planes * (height * pitch + channels * rows.taps * taps) * min(2, _steps(problem))
    phases = math.prod(problem.stride) if problem.op == "input_grad" else 1
    tiles = -(-columns.results // across) * -(-rows.results // down) * math.prod(axis.results for axis in outer)
    blocks = tiles * -(-_channels(problem) // channels) * phases * -(-problem.n * problem.groups // planes)
    memory = numbers * np_dtype(problem.acc_dtype).itemsize
    return Layout(channels, own_rows, lanes, lines, planes, memory, blocks)


class Depthwise(Direct):
    """One channel of x a group."""

    name = "depthwise"

    def supports(self, problem: ConvProblem) -> Verdict:
        """One channel a group, planes that fit shared memory."""
        if problem.c != problem.groups:
            return Verdict.no(f"{problem.c // problem.groups} input channels a group; this is for one")
        return _fits(problem)

    def cost(self, problem: ConvProblem) -> float:
        """By what fetching a value of a plane costs beside its products."""
        if problem.op == "weight_grad":
            return seconds(problem, problem.flops, _TAPS_SHARE, problem.bytes, 2)
        layout = layout_of(problem)
        *_, rows, columns = [_Axis(1, 1, 1, 1), *_axes(problem)]
        each = 2 * rows.taps * columns.taps + _FETCH / (layout.channels if layout else 1)
        if not _slides(problem):
            each *= _APART
        idle = max(1.0, _LEAST_BLOCKS / layout.blocks) if layout and layout.blocks else 1.0
        results = math.prod(problem.output_shapes[0])
        return seconds(problem, results * _steps(problem) * each * idle, _PLANES_SHARE, problem.bytes, 1)

    def workspace(self, problem: ConvProblem) -> int:
        """Partial sums of a weight gradient."""
        if problem.op != "weight_grad":
            return 0
        weights = taps_of(problem).parts * math.prod(problem.w_shape) * np_dtype(problem.acc_dtype).itemsize
        return max(weights, bias_bytes(problem))

    def build(self, problem: ConvProblem) -> Executor:
        """One launch; for a weight gradient a second one, which adds up."""
        prepared = _prepared_weight_grad if problem.op == "weight_grad" else _prepared
        return by_strides(functools.partial(prepared, self.kernels, problem))


class FewChannels(Depthwise):
    """Several channels a group, of which a thread has up to four of the result."""

    name = "few_channels"

    def supports(self, problem: ConvProblem) -> Verdict:
        """More than one channel a group, planes that fit shared memory."""
        if problem.c == problem.groups:
            return Verdict.no("one input channel a group; this is for more")
        return _fits(problem)


class Taps(NamedTuple):
    """How a weight gradient is dealt out: the taps of a thread, the groups of taps, the parts of a sum."""

    rows: int
    columns: int
    groups: int
    parts: int


def taps_of(problem: ConvProblem) -> Taps:
    """A function of the problem alone."""
    most = max(1, MOST_TAPS * 4 // max(4, np_dtype(problem.acc_dtype).itemsize))
    *outer, down, across = (1, *problem.kernel)
    columns = _share(across, most if down == 1 else min(8, most))
    rows = _share(down, max(1, most // columns))
    groups = -(-across // columns) * -(-down // rows) * math.prod(outer)
    blocks = groups * math.prod(problem.w_shape[:2])
    positions = problem.n * math.prod(problem.output)
    allowed = problem.max_workspace // max(1, math.prod(problem.w_shape) * np_dtype(problem.acc_dtype).itemsize)
    parts = min(-(-WANTED_BLOCKS // max(1, blocks)), positions // LEAST_POSITIONS, allowed)
    return Taps(rows, columns, groups, max(1, parts))


def _fits(problem: ConvProblem) -> Verdict:
    if problem.op == "weight_grad":
        return _fits_weight_grad(problem)
    if problem.op == "input_grad" and problem.pad_mode != "zeros":
        return Verdict.no(f"input_grad with pad_mode {problem.pad_mode!r} folds the padding back, which it does not")
    verdict = limits(problem)
    if not verdict:
        return verdict
    layout = layout_of(problem)
    if layout is None:
        return Verdict.no(f"a kernel of {problem.kernel} with what it reads does not fit {MOST_MEMORY} bytes of shared memory")
    if layout.blocks > MOST_BLOCKS:
        return Verdict.no(f"{layout.blocks} blocks do not fit a grid")
    return Verdict.yes()


def _fits_weight_grad(problem: ConvProblem) -> Verdict:
    if problem.level == "strict":
        return Verdict.no("its sums of weight gradients have another order than that of accuracy='strict'")
    if problem.pad_mode != "zeros":
        return Verdict.no(f"weight_grad with pad_mode {problem.pad_mode!r}: it reads x alone")
    taps = taps_of(problem)
    blocks = taps.groups * math.prod(problem.w_shape[:2]) * taps.parts
    if max(blocks, problem.n * math.prod(problem.output)) > MOST_BLOCKS:
        return Verdict.no(f"{blocks} blocks of {problem.n * math.prod(problem.output)} positions: they are counted in 32 bits")
    return limits(problem)


def _prepared(kernels: Launcher, problem: ConvProblem, outs: Arrays, ins: Arrays) -> Callable[[Arrays, Arrays], None]:
    """What launches the kernel on arrays of these strides."""
    layout = layout_of(problem)
    if layout is None:
        raise AssertionError(f"not supported: {problem}")
    gradient, slides, taps = problem.op == "input_grad", _slides(problem), problem.kernel[-1]
    macros = {
        "GRADIENT": int(gradient), "COPYING": int(problem.pad_mode != "zeros"), "SLIDE": int(slides),
        "REVERSED": int(gradient != problem.flip), "KT": layout.channels, "RT": layout.rows,
        "TAPS": taps if taps in UNROLLED and (not gradient or problem.stride[-1] == 1) else 0,
    }  # fmt: skip
    biased = len(ins) > 2
    record = kernels.constant(
        geometry(
            problem, strides_of(ins[0]), strides_of(ins[1]), strides_of(outs[0]), bias_step=strides_of(ins[2])[0] if biased else 1
        )
    )
    launch = kernels.prepare(kernel("conv_planes", problem, macros), layout.blocks * layout.threads, layout.threads, layout.memory)
    sizes = [kernels.constant(np.int64(size)) for size in (layout.lanes, layout.lines, layout.planes)]

    def run(outs: Arrays, ins: Arrays) -> None:
        launch(record, *sizes, ins[0], ins[1], ins[2] if biased else NULL, outs[0])

    return run


def _prepared_weight_grad(kernels: Launcher, problem: ConvProblem, outs: Arrays, ins: Arrays) -> Callable[[Arrays, Arrays], None]:
    """What launches both kernels on arrays of these strides."""
    taps = taps_of(problem)
    record = kernels.constant(geometry(problem, strides_of(ins[0]), strides_of(ins[1]), parts=taps.parts))
    count = taps.parts * math.prod(problem.w_shape)
    blocks = taps.groups * math.prod(problem.w_shape[:2]) * taps.parts if count else 0
    launch = kernels.prepare(
        kernel("conv_taps", problem, {"TH": taps.rows, "TW": taps.columns}), blocks * MOST_THREADS, MOST_THREADS
    )
    store = store_launch(kernels, problem, problem.w_shape, strides_of(outs[0]), taps.parts)
    bias_gradient = bias_launch(kernels, problem, outs, ins) if problem.bias else None

    def run(outs: Arrays, ins: Arrays) -> None:
        sums = scratch(ins[0], (count,), problem.acc_dtype)
        launch(record, ins[0], ins[1], sums)
        store(sums, outs[0])
        if bias_gradient:
            bias_gradient(outs, ins)

    return run
