"""Convolutions with a large dilation, as such without one along some dimensions: the phases of the dilation, on views.

Outputs a dilation apart read the same inputs, and those between them read others: each of these phases is a convolution of its own,
without dilation (the polyphase decomposition of Vaidyanathan, "Multirate systems and filter banks", 1993, section 4.3; "space to
batch" where it is made by copies). Here the phases are a further dimension, with a kernel of one tap, of views of x and y: nothing
is copied, and the rows that a block holds are those that its windows read, however far they lie apart.

With a wide padding most taps of the outputs along a border read nothing but padding. Those outputs become parts of their own, which
have only the taps that meet x, along the first dimension or along all, with phases or without: 3 x 3 taps at a dilation of half of
the size leave out three of five products. Parts that are cut along all dimensions have no padding, and may be read where they lie.

The terms of an output form one chain in the order of the "strict" level; those of a weight gradient do not.
"""

from __future__ import annotations

import collections
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from numconv.plugin import ConvProblem, Implementation, Verdict, np_dtype
from numconv_numba.direct import MEASURED_ERROR

from .base import DenseImplementation, fill, with_weights
from .blocked import Blocked
from .implicit_gemm import ImplicitGemm
from .tile import RegisterTile
from .weights import BlockedWeights

__all__ = ["Piece", "Polyphase", "PolyphaseWeights", "pieces_along"]

_OTHERS: tuple[Implementation, ...] = (Blocked(), ImplicitGemm(), RegisterTile())
PART_SECONDS, PHASES_SECONDS = 1e-5, 2.5e-5
"""Of one more call: views, a parallel region; the views of phases take longer."""
LEAST_ROW = 8
"""Phases along the last dimension, which are neighbours in memory, that are worth a dimension of their own."""
LEAST_SAVED = 0.1
"""The share of the products that must read padding only, for the borders to become parts."""
GATHERED_SECONDS = 5e-10
"""Of a weight that `implicit_gemm` would read where it lies, were its taps not some of a larger kernel, which it packs before."""
MOST_PARTS = 128
"""Planning takes some hundred microseconds for each."""
ADD_SECONDS, ADD_SOME_SECONDS = 5e-10, 4e-9
"""Of adding an element of a part's weight gradient; if it has only some of the taps, they are added in runs as short as these."""


class Piece(NamedTuple):
    """What one part is along one dimension, positions being those of one phase if they are `split`.

    Attributes
    ----------
    split : bool
    phases, y_phase, x_phase : int
        How many phases; the first of them in y and in x.
    outputs, inputs : tuple of int
        First position and how many.
    taps : slice
    padding : tuple of int
    """

    split: bool
    phases: int
    y_phase: int
    x_phase: int
    outputs: tuple[int, int]
    inputs: tuple[int, int]
    taps: slice
    padding: tuple[int, int]


def _phase_runs(size: int, outputs: int, low: int, d: int) -> list[tuple[int, int, int, int, int, int]]:
    """Neighbouring phases of the outputs alike: (phase of y, of x, phases, outputs, inputs, low padding)."""
    runs: list[tuple[int, int, int, int, int, int]] = []
    for phase in range(min(d, outputs)):
        of_x = (phase - low) % d
        alike = -(-(outputs - phase) // d), max(-(-(size - of_x) // d), 0), (of_x - phase + low) // d
        last = runs[-1] if runs else None
        if last and last[3:] == alike and last[1] + last[2] == of_x:
            runs[-1] = (*last[:2], last[2] + 1, *alike)
        else:
            runs.append((phase, of_x, 1, *alike))
    return runs


def _ranges(size: int, outputs: int, low: int, window: int, d: int) -> list[tuple[tuple[int, int], slice]]:
    """Outputs that read x with the same taps: (first and how many, taps); those that no tap sees have none."""
    inside = [(max(low - d * tap, 0), min(size + low - d * tap, outputs)) for tap in range(window)]
    edges = sorted({0, outputs, *(min(max(edge, 0), outputs) for both in inside for edge in both)})
    found = []
    for first, end in itertools.pairwise(edges):
        seen = [tap for tap, (start, stop) in enumerate(inside) if start <= first and end <= stop]
        found.append(((first, end - first), slice(seen[0], seen[-1] + 1) if seen else slice(0, 0)))
    return found


def _cut(
    size: int, outputs: int, pads: tuple[int, int], window: int, d: int, bordered: bool
) -> list[tuple[tuple[int, int], tuple[int, int], slice, tuple[int, int]]]:
    """(outputs, inputs, taps, padding) of the parts of one dimension: a single one, or one for each set of taps that meets x."""
    whole = (0, outputs), (0, size), slice(0, window), pads
    if not bordered or max(pads) <= 0:
        return [whole]
    parts = []
    for (first, count), taps in _ranges(size, outputs, pads[0], window, d):
        start, extent = first - pads[0] + taps.start * d, count + d * max(taps.stop - taps.start - 1, 0)
        parts.append(((first, count), (start, extent), taps, (0, 0)))
    return parts


def pieces_along(problem: ConvProblem, axis: int, split: bool, bordered: bool) -> list[Piece]:
    """The parts of a dimension: runs of phases that are alike, with or without parts of their own at the borders."""
    size, outputs, window, d = problem.spatial[axis], problem.output[axis], problem.kernel[axis], problem.dilation[axis]
    low, high = problem.padding[axis]
    if not split:
        return [Piece(False, 1, 0, 0, *each) for each in _cut(size, outputs, (low, high), window, d, bordered)]
    found = []
    for y_phase, x_phase, phases, count, length, before in _phase_runs(size, outputs, low, d):
        reach = max(count + window - 1 - before, 0)
        seen, pads = min(length, reach), (before, max(reach - length, 0))
        found += [Piece(True, phases, y_phase, x_phase, *each) for each in _cut(seen, count, pads, window, 1, bordered)]
    return found


def _dims(pieces: tuple[Piece, ...], of_phases: Sequence[Any], own: Sequence[Any]) -> tuple[Any, ...]:
    """What belongs to the dimensions of the views of a part: phases of all dimensions but the last, dimensions, phases of the last.

    The last phases are neighbours in memory, as the elements of a row are. `of_phases`: one value a dimension, split or not.
    """
    phases = [value for piece, value in zip(pieces, of_phases, strict=True) if piece.split]
    lead = len(phases) - pieces[-1].split
    return (*phases[:lead], *own, *phases[lead:])


class _Part(NamedTuple):
    """A convolution on views; `problem` is None where no tap meets x."""

    problem: ConvProblem | None
    pieces: tuple[Piece, ...]

    def view(self, array: Any, dilation: tuple[int, ...], of_x: bool) -> Any:
        """What the part has of x or y."""
        if not any(piece.split for piece in self.pieces):
            ranges = [piece.inputs if of_x else piece.outputs for piece in self.pieces]
            return array[(..., *(slice(first, first + count) for first, count in ranges))]
        strides = array.strides[2:]
        steps = [d if piece.split else 1 for piece, d in zip(self.pieces, dilation, strict=True)]
        ranges = [piece.inputs if of_x else piece.outputs for piece in self.pieces]
        phases = [piece.x_phase if of_x else piece.y_phase for piece in self.pieces]
        starts = [slice(phase + first * step, None) for phase, (first, _), step in zip(phases, ranges, steps, strict=True)]
        shape = _dims(self.pieces, [piece.phases for piece in self.pieces], [count for _, count in ranges])
        apart = _dims(self.pieces, strides, [stride * step for stride, step in zip(strides, steps, strict=True)])
        return as_strided(array[(..., *starts)], (*array.shape[:2], *shape), (*array.strides[:2], *apart))

    def kernel(self, w: Any, flip: bool) -> Any:
        """What the part has of w, with the dimensions of its views."""
        taps = [piece.taps for piece in self.pieces]
        if flip:
            taps = [slice(r - each.stop, r - each.start) for each, r in zip(taps, w.shape[2:], strict=True)]
        return w[(slice(None), slice(None), *_dims(self.pieces, [None] * len(taps), taps))]


def _part_problem(problem: ConvProblem, pieces: tuple[Piece, ...]) -> ConvProblem | None:
    """The problem of the views of `_Part`."""
    if any(p.taps.stop == p.taps.start or p.inputs[1] == 0 for p in pieces):
        return None
    ones, zeros = (1,) * len(pieces), ((0, 0),) * len(pieces)
    dilation = [1 if p.split else d for p, d in zip(pieces, problem.dilation, strict=True)]
    return problem.replace(
        spatial=_dims(pieces, [p.phases for p in pieces], [p.inputs[1] for p in pieces]),
        kernel=_dims(pieces, ones, [p.taps.stop - p.taps.start for p in pieces]),
        stride=_dims(pieces, ones, problem.stride),
        padding=_dims(pieces, zeros, [p.padding for p in pieces]),
        dilation=_dims(pieces, ones, dilation),
    )


def _along(problem: ConvProblem, axes: tuple[int, ...], bordered: int) -> list[list[Piece]]:
    """The pieces of each dimension, some with phases, and those before `bordered` with borders."""
    return [
        pieces_along(problem, axis, axis in axes, axis < bordered and problem.stride[axis] == 1) for axis in range(problem.ndim)
    ]


def _count(problem: ConvProblem, axes: tuple[int, ...], bordered: int) -> int:
    """Of all parts, with phases along some dimensions."""
    return math.prod(map(len, _along(problem, axes, bordered)))


def _parts(problem: ConvProblem, axes: tuple[int, ...], bordered: int) -> list[_Part]:
    """All parts."""
    along = _along(problem, axes, bordered)
    return [_Part(_part_problem(problem, pieces), pieces) for pieces in itertools.product(*along)]


def _seen(problem: ConvProblem, axis: int) -> float:
    """The share of the products along a dimension that do not read its padding; with a stride all are counted."""
    (low, _), size, d = problem.padding[axis], problem.spatial[axis], problem.dilation[axis]
    if problem.stride[axis] > 1:
        return 1.0
    seen = (min(size + low - d * tap, problem.output[axis]) - max(low - d * tap, 0) for tap in range(problem.kernel[axis]))
    return sum(max(each, 0) for each in seen) / (problem.output[axis] * problem.kernel[axis])


def _split_axes(problem: ConvProblem) -> list[tuple[int, ...]]:
    """The sets of dimensions that may be split into phases."""
    able = [axis for axis in range(problem.ndim) if problem.dilation[axis] > 1 < problem.kernel[axis] and problem.stride[axis] == 1]
    last = problem.ndim - 1
    lead, wide = tuple(axis for axis in able if axis < last), last in able and problem.dilation[last] >= LEAST_ROW
    return [axes for axes in (lead, (*lead, last) if wide else ()) if axes]


def _ways(problem: ConvProblem) -> list[tuple[tuple[int, ...], int]]:
    """(dimensions with phases, how many of the first dimensions have borders) of all ways to cut a problem."""
    dilated = any(d > 1 < r for d, r in zip(problem.dilation, problem.kernel, strict=True))
    seen = [math.prod(_seen(problem, axis) for axis in range(count)) for count in range(problem.ndim + 1)]
    borders = [count for count in sorted({1, problem.ndim}) if dilated and seen[count] <= 1 - LEAST_SAVED]
    return [(axes, count) for axes in ((), *_split_axes(problem)) for count in (0, *borders) if axes or count]


@functools.lru_cache(maxsize=1024)
def _cheapest(problem: ConvProblem, taps: int) -> tuple[float, Any]:
    """(seconds, who computes a part), of a kernel of so many taps."""
    if problem.op == "weight_grad":
        return BlockedWeights().cost(problem), BlockedWeights()
    some = 1 < math.prod(problem.kernel) < taps and not problem.flip
    gathered = math.prod(problem.w_shape) * GATHERED_SECONDS if some else 0.0
    costs = [each.cost(problem) + (gathered if isinstance(each, ImplicitGemm) else 0.0) for each in _OTHERS]
    return min(zip(costs, _OTHERS, strict=True), key=lambda each: each[0])


def _executors(problem: ConvProblem, parts: list[_Part]) -> list[Any]:
    """Who computes each part, or None; parts that are alike have one executor."""
    taps = math.prod(problem.kernel)
    executors = {p: _cheapest(p, taps)[1].build(p) for p in {part.problem for part in parts} if p}
    return [executors[part.problem] if part.problem else None for part in parts]


def _seconds(problem: ConvProblem, parts: list[_Part]) -> float:
    """Of all parts; those of a weight gradient are added up."""
    alike = collections.Counter(part.problem for part in parts if part.problem)
    view = PHASES_SECONDS if any(piece.split for piece in parts[0].pieces) else PART_SECONDS
    taps, added = math.prod(problem.kernel), problem.op == "weight_grad" and len(parts) > 1

    def seconds(part: ConvProblem) -> float:
        each = ADD_SECONDS if math.prod(part.kernel) == taps else ADD_SOME_SECONDS
        return float(_cheapest(part, taps)[0]) + view + math.prod(part.w_shape) * each * added

    return sum(count * seconds(part) for part, count in alike.items()) + PART_SECONDS


@functools.lru_cache(maxsize=256)
def _plan(problem: ConvProblem) -> tuple[float, list[_Part]]:
    """(seconds, parts) of a forward problem or a weight gradient, cut in the cheapest way; no parts if there is none."""
    best: tuple[float, list[_Part]] = math.inf, []
    for count, way in sorted((_count(problem, *way), way) for way in _ways(problem)):
        # the calls alone may take longer than another way does
        if count <= MOST_PARTS and count * PART_SECONDS < best[0]:
            parts = _parts(problem, *way)
            best = min(best, (_seconds(problem, parts), parts), key=lambda each: each[0])
    return best


def _verdict(problem: ConvProblem) -> Verdict:
    """Whether there are phases or borders that views show."""
    ways = _ways(problem)
    if not ways:
        return Verdict.no(
            f"it computes the phases of a dilation, along the last dimension from {LEAST_ROW} on, without a stride there, or "
            f"leaves out taps in a wide padding, and here are dilation {problem.dilation}, stride {problem.stride}, "
            f"kernel {problem.kernel} and padding {problem.padding}"
        )
    if problem.pad_mode != "zeros":
        return Verdict.no(f"a phase does not hold what pad_mode {problem.pad_mode} puts beside it")
    if min(map(min, problem.padding)) < 0:
        return Verdict.no(f"the windows of a phase begin in x or in its padding, and here is padding {problem.padding}")
    if not _plan(problem)[1]:
        calls = min(_count(problem, *way) for way in ways)
        return Verdict.no(f"phases that are alike are computed together, in at most {MOST_PARTS} calls, and here are {calls}")
    return Verdict.yes()


class _Executor:
    """A forward convolution, part by part."""

    def __init__(self, problem: ConvProblem):
        self._problem = problem
        self._parts = _plan(problem)[1]
        self._executors = _executors(problem, self._parts)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        kernels = [part.kernel(ins[1], self._problem.flip) for part in self._parts]
        calls = [each and with_weights(each, w) for each, w in zip(self._executors, kernels, strict=True)]
        self._run(outs[0], ins[0], ins[2:], calls)

    def bind(self, w: Any) -> Any:
        """The executor with its own copy of w, packed part by part."""
        kernels = [part.kernel(w, self._problem.flip) for part in self._parts]
        bound = [each and each.bind(kernel) for each, kernel in zip(self._executors, kernels, strict=True)]
        return lambda outs, ins: self._run(outs[0], ins[0], ins[1:], bound)

    def _run(self, y: Any, x: Any, bias: Any, calls: Any) -> None:
        dilation = self._problem.dilation
        for part, call in zip(self._parts, calls, strict=True):
            view = part.view(y, dilation, of_x=False)
            if call is None:
                fill(view, bias, self._problem.activation)
            else:
                call((view,), (part.view(x, dilation, of_x=True), *bias))


class Polyphase(DenseImplementation):
    """Convolution with a dilation, phase by phase, and its input gradient."""

    name = "polyphase"
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def accepts(self, problem: ConvProblem) -> Verdict:
        """A dilation, padding of zeros."""
        return _verdict(problem)

    def forward_cost(self, problem: ConvProblem) -> float:
        """Of the parts."""
        return _plan(problem)[0]

    def forward_workspace(self, problem: ConvProblem) -> int:
        """Of the part that needs most."""
        parts, taps = {part.problem for part in _plan(problem)[1]}, math.prod(problem.kernel)
        return max((_cheapest(part, taps)[1].workspace(part) for part in parts if part), default=0)

    def forward(self, problem: ConvProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)


class _WeightsExecutor:
    """A weight gradient, as the sum of those of the parts."""

    def __init__(self, problem: ConvProblem):
        self._problem = problem
        self._parts = _plan(problem)[1]
        self._executors = _executors(problem, self._parts)
        first = self._parts[0].problem
        self._begun = first is not None and math.prod(first.kernel) == math.prod(problem.kernel)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute; where the first part has all taps, it writes the results that others are added to."""
        for out in () if self._begun else outs:
            out[...] = 0
        with np.errstate(invalid="ignore", over="ignore"):  # infinite sums of several parts, as in the middle of any sum
            for number, (part, executor) in enumerate(zip(self._parts, self._executors, strict=True)):
                self._add(part, executor, number == 0 and self._begun, outs, *ins)

    def _add(self, part: _Part, executor: Any, begins: bool, outs: Any, y: Any, x: Any) -> None:
        dilation = self._problem.dilation
        of_y = part.view(y, dilation, of_x=False)
        if executor is None:
            for bias in outs[1:]:
                bias[...] += of_y.sum(axis=(0, *range(2, of_y.ndim)))
            return
        found = [part.kernel(outs[0], self._problem.flip), *outs[1:]]
        sums = found if begins else [np.empty(out.shape, out.dtype) for out in found]
        executor(tuple(sums), (of_y, part.view(x, dilation, of_x=True)))
        for out, each in () if begins else zip(found, sums, strict=True):
            out[...] += each


class PolyphaseWeights(Implementation):
    """Weight gradients of convolutions with a dilation, phase by phase."""

    name = "polyphase"
    ops = frozenset(("weight_grad",))
    levels = frozenset(("high", "default", "fast"))
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR

    def supports(self, problem: ConvProblem) -> Verdict:
        """Real floats, what the forward convolution supports; a bias on x is left to others."""
        if problem.acc_dtype not in ("float32", "float64"):
            return Verdict.no(f"its tiles are for real floats, and sums of {problem.dtype} are {problem.acc_dtype}")
        if problem.dtype != problem.acc_dtype:
            return Verdict.no(f"it adds up the results of parts, which must not be rounded to {problem.out_dtype} before")
        if problem.bias == "x":
            return Verdict.no("it sums the gradient of a bias on y only")
        return _verdict(problem)

    def cost(self, problem: ConvProblem) -> float:
        """Of the parts."""
        return _plan(problem)[0]

    def workspace(self, problem: ConvProblem) -> int:
        """Of the part that needs most, and its result."""
        parts = [part.problem for part in _plan(problem)[1] if part.problem]
        item = np_dtype(problem.acc_dtype).itemsize
        return max((BlockedWeights().workspace(p) + math.prod(p.w_shape) * item for p in parts), default=0)

    def build(self, problem: ConvProblem) -> _WeightsExecutor:
        """The executor."""
        return _WeightsExecutor(problem)
