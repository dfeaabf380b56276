"""Input gradients with a stride, so also transposed convolutions, by one Winograd convolution with the phases as channels.

Counted from the padding, all phases of a stride read the same window of the gradient of y. So they are output channels of one
forward convolution, whose input is packed and transformed once, and whose results are then woven together, some images or rows at
a time. Shi et al., "Is the deconvolution layer the same as a convolutional layer?" (2016). Phases that have fewer taps than
others are filled up with zeros. Positions behind the last window are no part of it: they get the bias.

What is not finite would meet these zeros, so that images with a sum that is not finite are computed again by `subpixel`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Implementation, Verdict, activate, np_dtype
from numconv_numba.compiling.compiler import Address, Tag, Unit, helper, invoke, kernel
from numconv_numba.dense.base import Weights
from numconv_numba.elements import INT64, itemsize, keep, memory, scratch
from numconv_numba.microkernels.emit import lanes_of
from numconv_numba.microkernels.weaving import weave
from numconv_numba.scalar import load, pointer, store, zero
from numconv_numba.threads import Kept, parallel_for, run
from numconv_numba.tools import split_address
from numconv_numba.winograd.forward import Winograd, WinogradExecutor

from .subpixel import Subpixel

__all__ = ["Interleaved"]

MOST_BYTES, MOST_WEIGHTS = 4 * 2**20, 8
"""Results that are computed before they are woven, near the caches; or so many times the weights, which each piece transforms."""
LEAST_ROWS = 20
"""Of such results: a multiple of what most tiles compute."""
WOVEN_SECONDS = 1.4e-10
"""Of weaving an element, on two threads."""
PIECE_SECONDS = 6e-6
"""Of a piece's calls beside the kernels."""
DEALT_SECONDS = 2.5e-10
"""Of sorting a weight by its phase, on two threads."""


class _Axis(NamedTuple):
    """One dimension: taps of the window, its first place counted from the padding, places, and the taps of each phase."""

    window: int
    first: int
    size: int
    taps: tuple[int, ...]


def _axis(problem: ConvProblem, axis: int) -> _Axis:
    """Position p of x lies at phase (p + low) % s of place (p + low) // s, which reads the outputs place - 0, place - 1, ..."""
    s, r, low = problem.stride[axis], problem.kernel[axis], problem.padding[axis][0]
    first = low // s
    size = (problem.spatial[axis] - 1 + low) // s + 1 - first
    return _Axis(-(-r // s), first, size, tuple(len(range(p, r, s)) for p in range(s)))


def _sees_taps(problem: ConvProblem, axis: int) -> bool:
    """Whether every position of x is read by some window: one that is not would get the rounding errors of its tile."""
    s, r, low, outputs = problem.stride[axis], problem.kernel[axis], problem.padding[axis][0], problem.output[axis]
    ends = {*range(min(r, problem.spatial[axis])), *range(max(0, problem.spatial[axis] - r), problem.spatial[axis])}
    return all(any(0 <= (p + low) // s - j < outputs for j in range(len(range((p + low) % s, r, s)))) for p in ends)


def read_part(problem: ConvProblem) -> ConvProblem:
    """The problem without the positions of x behind the last window."""
    ends = [
        min(size, (outputs - 1) * s + r - low)
        for size, outputs, s, r, (low, _) in zip(
            problem.spatial, problem.output, problem.stride, problem.kernel, problem.padding, strict=True
        )
    ]
    if min(ends) < 1:
        return problem
    padding = tuple(
        (low, high if end == size else 0) for (low, high), end, size in zip(problem.padding, ends, problem.spatial, strict=True)
    )
    return problem.replace(spatial=tuple(ends), padding=padding)


def combined(problem: ConvProblem) -> ConvProblem:
    """The forward problem, of which the output channels are the phases, row-major, each with the channels of x."""
    axes = [_axis(problem, axis) for axis in range(problem.ndim)]
    ones = (1,) * problem.ndim
    padding = tuple((a.window - 1 - a.first, a.size + a.first - outputs) for a, outputs in zip(axes, problem.output, strict=True))
    return problem.replace(
        op="forward", c=problem.k, k=problem.c * math.prod(problem.stride), spatial=problem.output,
        kernel=tuple(a.window for a in axes), stride=ones, padding=padding, dilation=ones, flip=True,
        bias="y" if problem.bias else "",
    )  # fmt: skip


class _Piece(NamedTuple):
    """Some images, and some places of the first dimension, that are computed together.

    Attributes
    ----------
    images : slice
    first : int
        The first of the places.
    outputs : slice
        What they read of y along the first dimension.
    problem : ConvProblem
    """

    images: slice
    first: int
    outputs: slice
    problem: ConvProblem


@functools.lru_cache(maxsize=64)
def _pieces(problem: ConvProblem) -> tuple[_Piece, ...]:
    whole = combined(problem)
    image = math.prod(whole.y_shape[1:]) * np_dtype(problem.out_dtype).itemsize
    most = max(MOST_BYTES, MOST_WEIGHTS * math.prod(problem.w_shape) * np_dtype(problem.dtype).itemsize)
    images = max(1, most // image)
    parts = max(1, min(-(-image // most), whole.output[0] // LEAST_ROWS))
    bounds = [whole.output[0] * part // parts for part in range(parts + 1)]
    low, reach, outputs = whole.padding[0][0], whole.kernel[0] - 1, problem.output[0]
    found = []
    for start in range(0, problem.n, images):
        some = slice(start, min(problem.n, start + images))
        for begin, end in itertools.pairwise(bounds):
            source, stop = max(0, begin - low), min(outputs, end - low + reach)
            padding = (source - (begin - low), end - low + reach - stop), *whole.padding[1:]
            spatial = stop - source, *whole.spatial[1:]
            piece = whole.replace(n=some.stop - some.start, spatial=spatial, padding=padding)
            found.append(_Piece(some, begin, slice(source, stop), piece))
    return tuple(found)


ABSENT = -(2**62)
"""The offset of a tap that is not there."""

# --- kernels -------------------------------------------------------------------------------------------------------------------


@helper
def _kernels(begin, end, args):
    dtype, w, w_k, w_c, count, gather, size, target, offsets, taps, phases, channels = args
    item, row = itemsize(dtype), taps * itemsize(dtype)
    gathered = scratch(count * size * item if gather else 0)
    for c in range(begin, end):
        source, step = w + c * w_c, w_k
        if gather:
            invoke(gather, source, 0, size, memory(gathered), 0, size, count, w_k, size * item, 1, 0, 0)
            source, step = memory(gathered), size * item
        for phase in range(phases):
            for tap in range(taps):
                offset, place = offsets[phase * taps + tap], target + ((phase * channels + c) * count * row + tap * item)
                for k in range(count):
                    value = zero(dtype) if offset == ABSENT else load(source + (k * step + offset), dtype)
                    store(place + k * row, value, dtype)
    keep(gathered)


@kernel
def deal(
    dtype: Tag, region: int, workers: int, items: int, w: Address, w_k: int, w_c: int, count: int, gather: int, size: int,
    target: Address, offsets: Address, taps: int, phases: int,
) -> None:  # fmt: skip
    """``[phase][c][k][tap]`` from w ``[k][c][...]``: an item is a channel c.

    `offsets`: of each phase, where each of its taps lies in a kernel of w, or `ABSENT` for a zero. `gather`: the address of a
    `split` by which the kernels of a channel, of `size` neighbours each, are first put side by side, or 0.
    """
    args = dtype, w, w_k, w_c, count, gather, size, target, pointer(offsets, INT64), taps, phases, items
    parallel_for(region, workers, items, _kernels, args)


# What `interleave` knows: channels of x and the tool; where the rows of x begin and end along the last dimension; bytes from image
# to image, from channel to channel, and from phase to phase of the last dimension in the results; the same of image and channel in
# x, and of its places along a row; how many other dimensions, one at least; then how many positions each of them has; then of each
# position where it lies in the results, and where in x.
CHANNELS, TOOL, BEGIN, END, SHIFT, R_IMAGE, R_CHANNEL, R_PHASE, X_IMAGE, X_CHANNEL, X_STEP, AXES, HEAD = range(13)


@helper
def _rows(begin, end, args):
    results, x, v = args
    axes = v[AXES]
    planes, rows = 1, HEAD + axes
    for axis in range(axes - 1):
        planes *= v[HEAD + axis]
        rows += 2 * v[HEAD + axis]
    for item in range(begin, end):
        n, c = item // v[CHANNELS], item % v[CHANNELS]
        for plane in range(planes):
            source, target, left, entries = n * v[R_IMAGE] + c * v[R_CHANNEL], n * v[X_IMAGE] + c * v[X_CHANNEL], plane, rows
            for axis in range(axes - 2, -1, -1):
                entries -= 2 * v[HEAD + axis]
                position = entries + 2 * (left % v[HEAD + axis])
                source += v[position]
                target += v[position + 1]
                left //= v[HEAD + axis]
            target += v[BEGIN] * v[X_STEP]
            for row in range(v[HEAD + axes - 1]):
                place = rows + 2 * row
                invoke(
                    v[TOOL], results + (source + v[place]), v[R_PHASE], v[BEGIN] + v[SHIFT], x + (target + v[place + 1]),
                    v[END] - v[BEGIN],
                )  # fmt: skip


@kernel
def interleave(region: int, workers: int, items: int, results: Address, x: Address, vector: Address) -> None:
    """x from the results of a piece, row by row: an item is a channel of an image."""
    parallel_for(region, workers, items, _rows, (results, x, pointer(vector, INT64)))


_shared = Unit(
    "interleaved.kernels",
    lambda dtype, stride, lanes: [(weave, ((stride, lanes), dtype))],
    called=lambda dtype, stride, lanes: [(deal, (dtype,)), (interleave, ())],
)


# --- the implementation --------------------------------------------------------------------------------------------------------


_kept = Kept()


class _Combined(WinogradExecutor):
    """A piece's convolution, which tells what to compute again."""

    def tell(self, y: Any, w: Weights, shift: Any, results: Any) -> Any:
        """Compute; the numbers of the images with a sum that is not finite."""
        status = np.zeros(self._problem.n, np.uint8)
        self.launch(y, w, shift, results, status, self._vectors(y.strides, w.strides, results.strides))
        return np.flatnonzero(status)


class _Executor:
    """An input gradient, piece by piece."""

    def __init__(self, whole: ConvProblem):
        self._whole, problem = whole, read_part(whole)
        self._problem = problem
        self._pieces = _pieces(problem)
        self._axes = [_axis(problem, axis) for axis in range(problem.ndim)]
        self._executors = {piece.problem: _Combined(piece.problem) for piece in self._pieces}
        lanes = lanes_of(problem.dtype)
        self._deal, self._interleave, self._tool = _shared.functions(problem.dtype, problem.stride[-1], lanes)
        self._gather = split_address(1, problem.dtype, problem.dtype, problem.dtype, lanes)
        self._vectors = functools.lru_cache(maxsize=64)(self._vector)
        self._offsets = functools.lru_cache(maxsize=64)(self._tap_offsets)

    @functools.cached_property
    def _general(self) -> Any:
        return Subpixel().build(self._problem.replace(n=1))

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        dealt = self._dealt(ins[1])
        self._compute(outs[0], ins, {problem: each.unpacked(dealt) for problem, each in self._executors.items()})

    def bind(self, w: Any) -> Any:
        """The executor with its own copy of w, transformed."""
        original, dealt = w.copy(), self._dealt(w)
        bound = {problem: each.packed(dealt) for problem, each in self._executors.items()}
        return lambda outs, ins: self._compute(outs[0], (ins[0], original, *ins[1:]), bound)

    def _compute(self, x: Any, ins: Any, weights: Mapping[ConvProblem, Weights]) -> None:
        read = self._problem.spatial
        self._run(x[(..., *map(slice, read))], ins, weights)
        for axis, (end, size) in enumerate(zip(read, self._whole.spatial, strict=True)):
            if end < size:
                behind = x[(slice(None), slice(None), *[slice(None)] * axis, slice(end, None))]
                behind[...] = ins[2].reshape(-1, *[1] * len(read)) if len(ins) > 2 else 0
                activate(behind, self._whole.activation)

    def _run(self, x: Any, ins: Any, weights: Mapping[ConvProblem, Weights]) -> None:
        if x.size and x.strides[-1] != x.itemsize:
            rows = np.empty(x.shape, x.dtype)
            self._run(rows, ins, weights)
            x[...] = rows
            return
        y, w, *bias = ins
        shift = np.tile(bias[0], math.prod(self._problem.stride)) if bias else 0
        spare, again = lanes_of(self._problem.dtype), set()
        for number, piece in enumerate(self._pieces):
            size, some = math.prod(piece.problem.y_shape), x[piece.images]
            results = _kept.take((size + spare) * x.itemsize).view(x.dtype)  # whole vectors are woven
            shaped = results[:size].reshape(piece.problem.y_shape)
            found = self._executors[piece.problem].tell(y[piece.images, :, piece.outputs], weights[piece.problem], shift, shaped)
            again.update((piece.images.start + found).tolist())
            run(self._interleave, len(some) * self._problem.c, 4 * some.size, results, some, self._vectors(number, x.strides))
        for n in again:
            self._general((x[n : n + 1],), (y[n : n + 1], w, *bias))

    def _dealt(self, w: Any) -> Any:
        """w as that of `combined`."""
        problem, window = self._problem, tuple(axis.window for axis in self._axes)
        phases = math.prod(problem.stride)
        dealt = np.empty((phases * problem.c, problem.k, *window), w.dtype)
        gather = self._gather if w[0, 0].flags.c_contiguous else 0
        run(
            self._deal, problem.c, 4 * dealt.size, w, w.strides[0], w.strides[1], problem.k, gather, math.prod(problem.kernel),
            dealt, self._offsets(w.strides[2:]), math.prod(window), phases,
        )  # fmt: skip
        return dealt

    def _tap_offsets(self, strides: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """See `deal`: tap j of a phase is tap phase + s * j of w."""
        offsets, flip = [], self._problem.flip
        for phase in itertools.product(*map(range, self._problem.stride)):
            for tap in itertools.product(*(range(axis.window) for axis in self._axes)):
                taps = [p + s * j for p, s, j in zip(phase, self._problem.stride, tap, strict=True)]
                inside = all(t < r for t, r in zip(taps, self._problem.kernel, strict=True))
                indices = [r - 1 - t if flip else t for t, r in zip(taps, self._problem.kernel, strict=True)]
                offsets.append(sum(i * step for i, step in zip(indices, strides, strict=True)) if inside else ABSENT)
        return np.array(offsets, np.int64)

    def _vector(self, number: int, strides: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """The vector of `interleave` for a piece, and an x of these strides."""
        problem, piece, item = self._problem, self._pieces[number], np_dtype(self._problem.dtype).itemsize
        output, inner = piece.problem.output, problem.stride[-1]
        plane = math.prod(output) * item
        channel = problem.c * plane
        counts: list[int] = []
        entries: list[Any] = []
        step = channel * inner
        for axis in range(problem.ndim - 2, -1, -1):
            s, low = problem.stride[axis], problem.padding[axis][0]
            first = self._axes[axis].first + (piece.first if axis == 0 else 0)
            position = np.arange(max(0, first * s - low), min(problem.spatial[axis], (first + output[axis]) * s - low))
            place, phase = np.divmod(position + low - first * s, s)
            results = place * (math.prod(output[axis + 1 :]) * item) + phase * step
            counts.insert(0, len(position))
            entries.insert(0, np.stack([results, position * strides[2 + axis]], 1).ravel())
            step *= s
        s, low = inner, problem.padding[-1][0]
        first = self._axes[-1].first + (piece.first if problem.ndim == 1 else 0)
        begin, end = max(0, first * s - low), min(problem.spatial[-1], (first + output[-1]) * s - low)
        head = [problem.c, self._tool, begin, end, low - first * s, channel * math.prod(problem.stride), plane, channel]
        others = [*head, *strides[:2], strides[-1], max(1, len(counts)), *(counts or [1])]
        return np.concatenate([others, *(entries or [[0, 0]])], dtype=np.int64)


class Interleaved(Implementation):
    """The input gradient of a convolution with a stride, with the phases as channels."""

    name = "interleaved"
    ops = frozenset(("input_grad",))
    levels = Winograd.levels
    measured_error: ClassVar[Mapping[str, float]] = Winograd.measured_error

    def supports(self, problem: ConvProblem) -> Verdict:
        """Float32 or float64, channels first, dilation 1, one group; what Winograd takes, without many zeros among the taps."""
        if problem.dtype not in ("float32", "float64") or problem.out_dtype != problem.dtype:
            return Verdict.no(f"{problem.dtype} to {problem.out_dtype}: it takes and gives float32, or float64")
        if max(problem.stride) == 1:
            return Verdict.no("stride 1: there are no phases to put together")
        if problem.pad_mode != "zeros" or problem.layout != "channels_first" or problem.groups > 1 or max(problem.dilation) > 1:
            return Verdict.no(
                f"mode {problem.pad_mode}, layout {problem.layout}, {problem.groups} groups, dilation {problem.dilation}: it takes "
                "none of these"
            )
        problem = read_part(problem)
        axes = [_axis(problem, axis) for axis in range(problem.ndim)]
        if any(2 * min(axis.taps) <= axis.window and axis.window > min(axis.taps) for axis in axes):
            return Verdict.no(
                f"a kernel of {problem.kernel} with stride {problem.stride} has phases of half the taps of others or fewer, which "
                "zeros would fill up"
            )
        if not all(_sees_taps(problem, axis) for axis in range(problem.ndim)):
            return Verdict.no("positions that no window reads would get the rounding errors of their tile")
        return Winograd().supports(combined(problem))

    def cost(self, problem: ConvProblem) -> float:
        """Of the pieces, of dealing the weights and of weaving."""
        problem = read_part(problem)
        woven, dealt = math.prod(problem.x_shape) * WOVEN_SECONDS, math.prod(combined(problem).w_shape) * DEALT_SECONDS
        return woven + dealt + sum(PIECE_SECONDS + Winograd().cost(piece.problem) for piece in _pieces(problem))

    def workspace(self, problem: ConvProblem) -> int:
        """Of the piece that needs most; its results and the weights as it takes them; or what `Subpixel` needs."""
        problem = read_part(problem)
        item, whole = np_dtype(problem.dtype).itemsize, combined(problem)
        pieces = {piece.problem for piece in _pieces(problem)}
        results = max((math.prod(piece.y_shape) for piece in pieces), default=0)
        most = max((Winograd().workspace(piece) for piece in pieces), default=0)
        return max(most + (results + math.prod(whole.w_shape) + 64) * item, Subpixel().workspace(problem))

    def build(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
