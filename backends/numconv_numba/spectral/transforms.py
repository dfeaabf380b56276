"""Executors of convolutions by fast Fourier transforms: what is transformed, multiplied and written, task by task.

The transforms are SciPy's. A task takes some blocks through all steps, so that they stay in the caches of one thread: gather,
transform, multiply with the spectra of the weights, transform back, scatter. A weight gradient sums the products of all blocks of a
group before its only transforms back.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from numconv.plugin import ConvProblem, np_dtype
from numconv_numba.activations import ACTIVATIONS
from numconv_numba.direct import Direct
from numconv_numba.microkernels.emit import lanes_of
from numconv_numba.threads import lent, share

from .bands import Band, Bands
from .nonfinite import VALUE, members, overwrite, passes
from .overlap import Layout, layout_for
from .spectra import transforming, walk

__all__ = ["TransformedForward", "TransformedWeightGrad"]

SPARED = 1 << 13
"""Elements whose rows need not be transformed, from which on the other dimensions are worth a call of their own."""
PIECES, LEAST_PIECE = 8, 1 << 12
"""In which the sums of all parts are added, and elements of a piece."""


@functools.cache
def _fourier() -> Any:
    """scipy.fft, which takes a quarter of a second to import."""
    import scipy.fft

    return scipy.fft


class _Transforms:
    """Transforms there and back, and the walks of one problem."""

    def __init__(self, problem: ConvProblem, arithmetic: str):
        self.problem = problem
        self.layout: Layout = layout_for(problem, arithmetic)
        self.dtype = np_dtype(arithmetic)
        self.spectral = np.result_type(self.dtype, np.complex64)
        part = np.empty(0, self.spectral).real.dtype.name
        self.kernels = transforming.functions(problem.dtype, arithmetic, problem.out_dtype, problem.acc_dtype, lanes_of(part), part)
        self.dimensions = tuple(range(-problem.ndim, 0))
        self.phases = tuple(itertools.product(*(range(axis.tap_phases) for axis in self.layout.axes)))
        self.seconds = self.layout.tasks * self.layout.task_seconds
        cuts, axes = self.layout.cuts, self.layout.axes
        self.rows_of_y = self.layout.lengths[:-1]
        if not self.layout.gradient:
            # results, which are transformed back; of a gradient y is transformed
            self.rows_of_y = self._rows([cut.outputs for cut in cuts], self.layout.batch * self.layout.outputs)
        pairs = self.layout.split[0] * self.layout.inputs * self.layout.outputs
        self.rows_of_w = self._rows([axis.taps for axis in axes], pairs)
        self.walks = functools.lru_cache(maxsize=64)(lambda x, y: (self._walk_x(x), self._walk_y(y)))

    def _rows(self, used: Sequence[int], planes: int) -> tuple[int, ...]:
        """How many rows of so many planes are transformed back, along each dimension but the last: those used where that pays."""
        *whole, last = self.layout.lengths
        spared = planes * last * (math.prod(whole) - math.prod(used[:-1]))
        return tuple(used[:-1]) if spared >= SPARED else tuple(whole)

    def there(self, planes: Any) -> Any:
        """The spectra of planes, which are padded with zeros to the length of a transform."""
        fourier, (*outer, last) = _fourier(), self.layout.lengths
        if planes.shape[-len(outer) - 1 : -1] == tuple(outer):
            transform = fourier.fftn if self.dtype.kind == "c" else fourier.rfftn
            return transform(planes, self.layout.lengths, self.dimensions)
        # rows of padding alone need no transform
        spectra = (fourier.fft if self.dtype.kind == "c" else fourier.rfft)(planes, last)
        for length, axis in reversed([*zip(outer, self.dimensions, strict=False)]):
            spectra = fourier.fft(spectra, length, axis, overwrite_x=True)
        return spectra

    def back(self, spectra: Any, rows: tuple[int, ...]) -> Any:
        """The planes of spectra, the first rows of each; the spectra may be overwritten."""
        fourier, lengths = _fourier(), self.layout.lengths
        if rows == lengths[:-1]:
            transform = fourier.ifftn if self.dtype.kind == "c" else fourier.irfftn
            return transform(spectra, lengths, self.dimensions, overwrite_x=True)
        for count, axis in zip(rows, self.dimensions, strict=False):
            spectra = fourier.ifft(spectra, axis=axis, overwrite_x=True)
            spectra = spectra[(..., slice(count), *[slice(None)] * (-axis - 1))]
        return (fourier.ifft if self.dtype.kind == "c" else fourier.irfft)(spectra, lengths[-1])

    def memory(self, units: int, planes: int) -> Any:
        """An array for gathered planes."""
        return np.empty((units, planes, *self.layout.lengths), self.dtype)

    def taps_of(self, phase: tuple[int, ...]) -> tuple[slice, ...]:
        """Where the taps of a phase lie."""
        return tuple(slice(first, None, axis.tap_phases) for first, axis in zip(phase, self.layout.axes, strict=True))

    def split(self, w: Any) -> Any:
        """Weights in the dtype of the transforms, by phases of taps: [K][channel][phase][*taps], short phases with a zero."""
        if len(self.phases) == 1:
            return w.astype(self.dtype)[:, :, None]
        planes = np.zeros((*w.shape[:2], len(self.phases), *(axis.taps for axis in self.layout.axes)), self.dtype)
        for i, phase in enumerate(self.phases):
            taps = w[(..., *self.taps_of(phase))]
            place: Any = (slice(None), slice(None), i, *map(slice, taps.shape[2:]))
            planes[place] = taps
        return planes

    def anchor(self, size: float) -> float:
        """The number of which the last place is just above the error of results from factors with a product of `size`.

        Sums rounded to that place are exact where all values are integers, and zero where all terms are.
        """
        length = math.prod(self.layout.lengths)
        error = 2.0**-50 * math.log2(2 * length) * length * size
        return 1.5 * 2.0 ** (52 + math.frexp(error)[1]) if error else 0.0

    def _walk_x(self, strides: tuple[int, ...]) -> Any:
        """Through x: what the blocks read."""
        problem, per_c = self.problem, self.problem.c // self.problem.groups
        columns = problem.spatial, problem.padding, problem.stride, problem.dilation, strides[2:]
        rows = [
            (
                cut.length, cut.length, size, -low, cut.outputs * axis.step, s, d, axis.step, step,
                cut.blocks, axis.out_phases, axis.tap_phases,
            )
            for axis, cut, size, (low, _), s, d, step in zip(self.layout.axes, self.layout.cuts, *columns, strict=True)
        ]  # fmt: skip
        return walk(problem.pad_mode, problem.n, per_c, (strides[0], strides[1] * per_c, strides[1]), rows)

    def _walk_y(self, strides: tuple[int, ...]) -> Any:
        """Through y: the outputs of the blocks."""
        problem, per_k, lengths = self.problem, self.layout.outputs, (*self.rows_of_y, self.layout.lengths[-1])
        rows = [
            (
                length, cut.outputs, size, 0, cut.outputs * axis.out_phases, 1, 0, axis.out_phases, step,
                cut.blocks, axis.out_phases, 1,
            )
            for axis, cut, length, size, step in zip(
                self.layout.axes, self.layout.cuts, lengths, problem.output, strides[2:], strict=True
            )
        ]  # fmt: skip
        return walk("zeros", problem.n, per_k, (strides[0], strides[1] * per_k, strides[1]), rows)


def _largest(array: Any) -> float:
    """The largest absolute value, of real numbers without an array of them all."""
    if array.dtype.kind == "c":
        return float(np.abs(array).max(initial=0.0))
    return max(float(array.max(initial=0.0)), -float(array.min(initial=0.0)))


def _needs_definition(problem: ConvProblem) -> bool:
    """Whether what is not finite is left to `Direct`: where terms are complex, or the range of results is not that of sums."""
    return problem.acc_dtype.startswith("complex") or problem.out_dtype in ("float16", "bfloat16")


class _Weights:
    """The spectra of weights, [K][channel, phase of taps][*spectrum], of conjugates where they are complex.

    What is not finite is zero in them. They are computed part by part, by several threads; whoever needs them waits for all parts.

    Parameters
    ----------
    transforms : _Transforms
    w : array
    """

    def __init__(self, transforms: _Transforms, w: Any):
        layout = transforms.layout
        self._transforms = transforms
        self._w = np.flip(w, transforms.dimensions) if transforms.problem.flip else w
        self._rows = layout.rows_of_weights
        self._all = threading.Event()
        self._done: list[int] = []
        self._seen: list[tuple[bool, float]] = []
        self._spectra = np.empty((*w.shape[:2], len(transforms.phases), *layout.spectrum), transforms.spectral)
        self.parts = range(0, w.shape[0], self._rows)

    def compute(self, first: int) -> None:
        """One of the parts."""
        try:
            split = self._transforms.split(self._w[first : first + self._rows])
            largest, finite = _largest(split), True
            if not math.isfinite(largest):
                finite = bool(np.isfinite(split).all())
                split = members(split, VALUE)
                largest = _largest(split)
            self._seen.append((finite, largest))
            spectra = self._transforms.there(split.conj() if split.dtype.kind == "c" else split)
            self._spectra[first : first + self._rows] = spectra
        finally:
            # after an error, which `share` raises, too: nobody waits for ever
            self._done.append(first)
            if len(self._done) == len(self.parts):
                self._all.set()

    def wait(self) -> Any:
        """The spectra, when all parts are there."""
        self._all.wait()
        return self._spectra

    @property
    def finite(self) -> bool:
        """Whether all weights are; after `wait`."""
        return all(finite for finite, _ in self._seen)

    @property
    def largest(self) -> float:
        """The largest absolute value; after `wait`."""
        return max(largest for _, largest in self._seen)


class TransformedForward:
    """One forward convolution.

    Parameters
    ----------
    problem : ConvProblem
    arithmetic : str
        The dtype of the transforms; if it is wider than that of the sums, these are rounded to what is certain.
    bands : sequence of Band
        Results to be computed directly.
    """

    def __init__(self, problem: ConvProblem, arithmetic: str, bands: Sequence[Band]):
        self._problem = problem
        self._transforms = transforms = _Transforms(problem, arithmetic)
        self._layout = transforms.layout
        self._wide = arithmetic != problem.acc_dtype
        self._bands = Bands(bands)
        self._gather, self._scatter, self._multiply, _ = transforms.kernels

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        self._run(outs[0], ins, None)

    def bind(self, w: Any) -> Any:
        """The executor with the transforms of w."""
        original = w.copy()
        weights = self._transformed(original)
        return lambda outs, ins: self._run(outs[0], (ins[0], original, *ins[1:]), weights)

    def _transformed(self, w: Any) -> _Weights:
        """The spectra of all weights."""
        weights, layout = _Weights(self._transforms, w), self._layout
        share(weights.parts, layout.weights_seconds, layout.at_once, weights.compute)
        return weights

    def _run(self, y: Any, ins: Any, ready: _Weights | None) -> None:
        layout, (x, w, *biases) = self._layout, ins
        if not layout.units:
            return
        bias = np.ascontiguousarray(biases[0], np_dtype(self._problem.acc_dtype)) if biases else 0
        bad, wrong = np.zeros(layout.tasks, bool), np.zeros(layout.tasks, bool)
        with lent(layout.lent_seconds) as workers, _fourier().set_workers(workers):
            weights = ready
            if weights is None:
                weights = _Weights(self._transforms, w) if layout.together else self._transformed(w)
            self._tasks(weights, ready is None and layout.together, bad, wrong, x, y, bias)
        if _needs_definition(self._problem):
            wrong |= bad | (not weights.finite)
        elif bad.any() or not weights.finite:
            self._mark(y, x, w, bias, np.flatnonzero(bad) if weights.finite else np.arange(layout.tasks))
        if wrong.any():
            self._again(y, ins, np.flatnonzero(wrong))
        self._bands(y, ins)

    def _tasks(self, weights: _Weights, own: bool, bad: Any, wrong: Any, x: Any, y: Any, bias: Any) -> None:
        """All tasks, and before them the parts of the weights, if these are `own`: tasks that have read x wait for them."""
        layout, run = self._layout, functools.partial(self._task, x=x, y=y, weights=weights, bias=bias)

        def body(item: int) -> None:
            if item < 0:
                weights.compute(~item)
            else:
                bad[item], wrong[item] = run(item)

        # in this order, so that nobody waits for what nobody has begun
        items = [*(~part for part in weights.parts if own), *range(layout.tasks)]
        seconds = self._transforms.seconds + (layout.weights_seconds if own else 0)
        share(items, seconds, 2 if layout.side_by_side and own else layout.at_once, body)

    def _read(self, item: int, x: Any, y: Any, code: int) -> tuple[int, Any, float]:
        """How many inputs of a task are not finite, or belong to a class; the spectra of its blocks; their largest value."""
        transforms, layout, first = self._transforms, self._layout, item * self._layout.batch
        units = min(layout.batch, layout.units - first)
        blocks = transforms.memory(units, layout.inputs)
        found = self._gather(code, x, blocks, first, units, transforms.walks(x.strides, y.strides)[0])
        if code != VALUE and not found:
            return 0, None, 0.0
        return found, transforms.there(blocks), _largest(blocks) if self._wide else 0.0

    def _task(
        self, item: int, *, x: Any, y: Any, weights: _Weights, bias: Any, code: int = VALUE, becomes: int = -1
    ) -> tuple[int, int]:  # fmt: skip
        """Some blocks; returns how many inputs are not finite, or belong to a class, and how many sums are not finite."""
        transforms, first = self._transforms, item * self._layout.batch
        found, spectra, size = self._read(item, x, y, code)
        if spectra is None:
            return 0, 0
        w = weights.wait()
        anchor = transforms.anchor(size * weights.largest * self._layout.inputs) if self._wide and code == VALUE else 0.0
        units, written = len(spectra), transforms.walks(x.strides, y.strides)[1]
        results = transforms.back(self._products(spectra, w, first, units), transforms.rows_of_y)
        function = ACTIVATIONS[self._problem.activation]
        return found, self._scatter(results, anchor, becomes, bias, function, y, first, units, written)

    def _products(self, x: Any, w: Any, first: int, units: int) -> Any:
        """The spectra of the outputs."""
        layout = self._layout
        products = x if layout.inputs == layout.outputs == 1 else np.empty((units, layout.outputs, *layout.spectrum), x.dtype)
        sizes = layout.of_group, layout.inputs, layout.outputs, math.prod(layout.spectrum)
        self._multiply(x, w, products, first, units, *sizes)
        return products

    def _mark(self, y: Any, x: Any, w: Any, bias: Any, tasks: Any) -> None:
        """Overwrite the results of some tasks that see something that is not finite."""
        for becomes, of_x, of_w in passes():
            factors = members(w, of_w)
            if not factors.any():
                continue
            run = functools.partial(self._task, x=x, y=y, weights=self._transformed(factors), bias=bias, code=of_x, becomes=becomes)
            share(tasks, self._transforms.seconds, self._layout.at_once, run)

    def _again(self, y: Any, ins: Any, tasks: Any) -> None:
        """Compute images again without transforms, where sums overflowed or what is not finite needs it."""
        layout, images = self._layout, self._problem.n
        units = (tasks[:, None] * layout.batch + np.arange(layout.batch)).ravel()
        executor = Direct().build(self._problem.replace(n=1))
        for n in np.unique(units[units < layout.units] * images // layout.of_group % images):
            executor((y[n : n + 1],), (ins[0][n : n + 1], *ins[1:]))


class TransformedWeightGrad:
    """One weight gradient: each part sums the spectra of some blocks of a group, or of a few groups.

    Parameters
    ----------
    problem, arithmetic
        As for `TransformedForward`.
    """

    def __init__(self, problem: ConvProblem, arithmetic: str):
        self._problem = problem
        self._transforms = transforms = _Transforms(problem, arithmetic)
        self._layout = transforms.layout
        self._wide = arithmetic != problem.acc_dtype
        self._gather, _, _, self._correlate = transforms.kernels
        self._direct = Direct().build(problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        """Compute."""
        (w, *bias), (y, x) = outs, ins
        bad, wrong = self._sum(w, x, y)
        if bad and not _needs_definition(self._problem):
            for becomes, of_x, of_y in passes():
                self._sum(w, x, y, (of_x, of_y), becomes)
        elif bad or wrong:
            self._direct(outs, ins)
            return
        if bias:
            self._direct.bias_grad(bias[0], y, x, w)

    def _sum(self, w: Any, x: Any, y: Any, codes: tuple[int, int] = (VALUE, VALUE), becomes: int = -1) -> tuple[bool, bool]:
        """Fill w, or overwrite what counts of classes say; returns whether inputs, and sums, were not finite."""
        layout, (groups, splits) = self._layout, self._layout.split
        parts = -(-layout.groups // groups) * splits
        found: list[Any] = [None] * parts
        bad, wrong = np.zeros(parts, bool), np.zeros(layout.groups, bool)

        def body(part: int) -> None:
            base, split = part // splits * groups, part % splits
            several = min(groups, layout.groups - base)
            begin, end = (layout.of_group * (base * splits + several * each) // splits for each in (split, split + 1))
            sums, largest, bad[part] = self._part(x, y, codes, base, several, begin, end)
            if splits > 1:
                found[part] = sums, largest
            else:
                planes = self._transforms.back(sums, self._transforms.rows_of_w)
                wrong[base] = self._finish(w, base, planes, largest, becomes)

        share(range(parts), self._transforms.seconds, layout.at_once, body)
        for base in range(layout.groups if splits > 1 else 0):
            own = found[base * splits : (base + 1) * splits]
            planes = self._transforms.back(self._added([sums for sums, _ in own]), self._transforms.rows_of_w)
            wrong[base] = self._finish(w, base, planes, max(largest for _, largest in own), becomes)
        return bool(bad.any()), bool(wrong.any())

    def _added(self, parts: Sequence[Any]) -> Any:
        """The first of the sums of all parts, to which the others are added."""
        total, *others = (part.reshape(-1) for part in parts)
        pieces = max(1, min(PIECES, total.size // LEAST_PIECE))

        def body(piece: int) -> None:
            own = slice(total.size * piece // pieces, total.size * (piece + 1) // pieces)
            for other in others:
                total[own] += other[own]

        # the threads that took the parts are still awake: little work is worth sharing
        share(range(pieces), self._transforms.seconds, pieces, body)
        return parts[0]

    def _part(self, x: Any, y: Any, codes: tuple[int, int], base: int, groups: int, begin: int, end: int) -> tuple[Any, float, int]:
        """(sums of spectra, product of the largest values, values that are not finite) of the units begin..end."""
        transforms, layout, bad, largest = self._transforms, self._layout, 0, [0.0, 0.0]
        walks = transforms.walks(x.strides, y.strides)
        sums = np.zeros((groups, layout.outputs, layout.inputs, *layout.spectrum), transforms.spectral)
        sizes = layout.of_group, base, layout.inputs, layout.outputs, math.prod(layout.spectrum)
        for first in range(begin, end, layout.batch):
            units = min(layout.batch, end - first)
            spectra = []
            for side, (array, planes) in enumerate(((x, layout.inputs), (y, layout.outputs))):
                blocks = transforms.memory(units, planes)
                bad += self._gather(codes[side], array, blocks, first, units, walks[side])
                if self._wide:
                    largest[side] = max(largest[side], _largest(blocks))
                spectra.append(transforms.there(blocks))
            self._correlate(*spectra, sums, first, units, *sizes)
        return sums, largest[0] * largest[1], bad

    def _finish(self, w: Any, base: int, planes: Any, largest: float, becomes: int) -> bool:
        """The taps of some groups from the planes of their sums; returns whether one is not finite."""
        transforms, layout, finite = self._transforms, self._layout, True
        if planes.dtype.kind == "c":
            planes = planes.conj()
        if self._wide:
            anchor = transforms.anchor(largest * layout.of_group) * (1 + 1j if planes.dtype.kind == "c" else 1)
            planes = planes + anchor - anchor
        target = w[base * layout.outputs : (base + len(planes)) * layout.outputs]
        planes = planes.reshape(*target.shape[:2], len(transforms.phases), *transforms.rows_of_w, layout.lengths[-1])
        if self._problem.flip:
            target = np.flip(target, transforms.dimensions)
        for i, phase in enumerate(transforms.phases):
            place = target[(..., *transforms.taps_of(phase))]
            values = planes[(slice(None), slice(None), i, *map(slice, place.shape[2:]))]
            finite = finite and bool(np.isfinite(values).all())
            if becomes < 0:
                place[...] = values
            else:
                overwrite(place, abs(values) > 0.5, becomes)
        return not finite
