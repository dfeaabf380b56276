"""Executors of convolutions by fast Fourier transforms: what is transformed, multiplied and written, task by task.

The transforms are SciPy's. A task takes some blocks through all steps, so that they stay in the caches of one thread: gather,
transform, multiply with the spectra of the weights, transform back, scatter. A weight gradient sums the products of all blocks of a
group before its only transforms back.
"""

from __future__ import annotations

import functools
import itertools
import math
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
from .overlap import TASK_BYTES, TASKS, Layout, layout_for
from .spectra import transforming, walk

__all__ = ["TransformedForward", "TransformedWeightGrad"]


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
        self.walks = functools.lru_cache(maxsize=64)(lambda x, y: (self._walk_x(x), self._walk_y(y)))

    def there(self, planes: Any) -> Any:
        """The spectra of planes, which are padded with zeros to the length of a transform."""
        transform = _fourier().fftn if self.dtype.kind == "c" else _fourier().rfftn
        return transform(planes, self.layout.lengths, self.dimensions)

    def back(self, spectra: Any) -> Any:
        """The planes of spectra."""
        transform = _fourier().ifftn if self.dtype.kind == "c" else _fourier().irfftn
        return transform(spectra, self.layout.lengths, self.dimensions)

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
        problem, per_k = self.problem, self.layout.outputs
        rows = [
            (
                cut.length, cut.outputs, size, 0, cut.outputs * axis.out_phases, 1, 0, axis.out_phases, step,
                cut.blocks, axis.out_phases, 1,
            )
            for axis, cut, size, step in zip(self.layout.axes, self.layout.cuts, problem.output, strides[2:], strict=True)
        ]  # fmt: skip
        return walk("zeros", problem.n, per_k, (strides[0], strides[1] * per_k, strides[1]), rows)


def _largest(array: Any) -> float:
    return float(np.abs(array).max(initial=0.0))


def _needs_definition(problem: ConvProblem) -> bool:
    """Whether what is not finite is left to `Direct`: where terms are complex, or the range of results is not that of sums."""
    return problem.acc_dtype.startswith("complex") or problem.out_dtype in ("float16", "bfloat16")


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
        spectra = self._weights(members(original, VALUE))
        return lambda outs, ins: self._run(outs[0], (ins[0], original, *ins[1:]), spectra)

    def _weights(self, w: Any) -> Any:
        """The spectra of finite weights: [K][channel, phase of taps][*spectrum], of conjugates where they are complex."""
        transforms, layout = self._transforms, self._layout
        if self._problem.flip:
            w = np.flip(w, transforms.dimensions)
        spectra = np.empty((*w.shape[:2], len(transforms.phases), *layout.spectrum), transforms.spectral)
        most = TASK_BYTES // (layout.inputs * math.prod(layout.lengths) * layout.item)
        rows = max(1, min(most, -(-w.shape[0] // TASKS)))

        def body(first: int) -> None:
            part = transforms.split(w[first : first + rows])
            spectra[first : first + rows] = transforms.there(part.conj() if part.dtype.kind == "c" else part)

        share(range(0, w.shape[0], rows), layout.weights_seconds, layout.at_once, body)
        return spectra

    def _run(self, y: Any, ins: Any, spectra: Any) -> None:
        layout, (x, w, *biases) = self._layout, ins
        if not layout.units:
            return
        finite = bool(np.isfinite(w).all())
        values, only = w if finite else members(w, VALUE), None
        bias = np.ascontiguousarray(biases[0], np_dtype(self._problem.acc_dtype)) if biases else 0
        largest = _largest(values) * layout.inputs if self._wide else 0.0
        bad, wrong = np.zeros(layout.tasks, bool), np.zeros(layout.tasks, bool)

        def body(item: int) -> None:
            bad[item], wrong[item] = self._task(item, x, y, spectra, bias, largest=largest, read=only)

        with lent(layout.lent_seconds) as workers, _fourier().set_workers(workers):
            if spectra is None and layout.side_by_side:
                spectra, only = self._side_by_side(values, x, y)
            elif spectra is None:
                spectra = self._weights(values)
            share(range(layout.tasks), self._transforms.seconds, layout.at_once, body)
        if _needs_definition(self._problem):
            wrong |= bad | (not finite)
        elif bad.any() or not finite:
            self._mark(y, x, w, bias, np.flatnonzero(bad) if finite else np.arange(layout.tasks))
        if wrong.any():
            self._again(y, ins, np.flatnonzero(wrong))
        self._bands(y, ins)

    def _side_by_side(self, w: Any, x: Any, y: Any) -> tuple[Any, Any]:
        """The spectra of the only kernel and of the only task, each by a thread of its own: their transforms are as long."""
        found: list[Any] = [None, None]

        def body(side: int) -> None:
            found[side] = self._read(0, x, y, VALUE) if side else self._weights(w)

        share((0, 1), self._layout.weights_seconds + self._layout.read_seconds, 2, body)
        return found[0], found[1]

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
        self, item: int, x: Any, y: Any, w: Any, bias: Any, *, code: int = VALUE, becomes: int = -1, largest: float = 0.0,
        read: Any = None,
    ) -> tuple[int, int]:  # fmt: skip
        """Some blocks; returns how many inputs are not finite, or belong to a class, and how many sums are not finite.

        `read`: what `_read` gives, if it is there already.
        """
        transforms, first = self._transforms, item * self._layout.batch
        found, spectra, size = read or self._read(item, x, y, code)
        if spectra is None:
            return 0, 0
        anchor = transforms.anchor(size * largest) if largest else 0.0
        units, written = len(spectra), transforms.walks(x.strides, y.strides)[1]
        results = transforms.back(self._products(spectra, w, first, units))
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
            run = functools.partial(self._task, x=x, y=y, w=self._weights(factors), bias=bias, code=of_x, becomes=becomes)
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
                wrong[base] = self._finish(w, base, sums, largest, becomes)

        share(range(parts), self._transforms.seconds, layout.at_once, body)
        for base in range(layout.groups if splits > 1 else 0):
            (total, _), *others = own = found[base * splits : (base + 1) * splits]
            for sums, _ in others:
                total += sums
            wrong[base] = self._finish(w, base, total, max(largest for _, largest in own), becomes)
        return bool(bad.any()), bool(wrong.any())

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

    def _finish(self, w: Any, base: int, sums: Any, largest: float, becomes: int) -> bool:
        """The taps of some groups from their sums; returns whether one is not finite."""
        transforms, layout = self._transforms, self._layout
        planes = transforms.back(sums)
        if planes.dtype.kind == "c":
            planes = planes.conj()
        if self._wide:
            anchor = transforms.anchor(largest * layout.of_group) * (1 + 1j if planes.dtype.kind == "c" else 1)
            planes = planes + anchor - anchor
        target = w[base * layout.outputs : (base + len(sums)) * layout.outputs]
        planes = planes.reshape(*target.shape[:2], len(transforms.phases), *layout.lengths)
        if self._problem.flip:
            target = np.flip(target, transforms.dimensions)
        for i, phase in enumerate(transforms.phases):
            place = target[(..., *transforms.taps_of(phase))]
            values = planes[(slice(None), slice(None), i, *map(slice, place.shape[2:]))]
            if becomes < 0:
                place[...] = values
            else:
                overwrite(place, abs(values) > 0.5, becomes)
        return not np.isfinite(planes).all()
