"""Convolution by fast Fourier transforms, overlap-save, in any number of dimensions; transforms by cuFFT, whose plans CuPy caches.

Blocks of the source are transformed, the spectra of all channels multiplied with those of the weights and summed, and an inverse
transform an output channel gives a block of results (Oppenheim and Schafer, "Discrete-time signal processing", section 8.7.3).
Strides are computed and left out, dilated weights and strided gradients get zeros between: this is for long kernels.

The error of a result is relative to the values of a whole block, not of its own window. So sums of few terms at the border are
computed directly; where that would be all of them single precision is computed in double, and double precision not here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from numconv.plugin import CONV_OPS, ConvProblem, Executor, Implementation, Verdict

from .costs import seconds
from .device import Device
from .direct import limits
from .flags import Box, Redo
from .forecasts import transform_seconds
from .layouts import Layout, layout_of
from .namespaces import on_namespace
from .spectral import convolve, correlate_weights
from .transforms import is_transformed, rounds_of, transformed

__all__ = ["Fft", "FftDouble"]

_LEAST_TERMS = {"float32": (16, 2), "complex64": (16, 2), "float64": (8, 8), "complex128": (8, 8)}
"""Sums shorter than the first number, or than the square root of the number of terms over the second, have an error that is not
small beside them, since that of a transform is relative to a whole block. Double precision has more room below its bound."""
Counts = np.ndarray[Any, np.dtype[np.int64]]

_OPERATIONS = 100
"""Launches in the time of the array operations of a round."""
_WIDER = {"float32": "float64", "complex64": "complex128"}


class Fft(Implementation):
    """In the precision of the data, or in double where sums are short."""

    name: ClassVar[str] = "fft"
    ops: ClassVar[frozenset[str]] = frozenset(CONV_OPS)
    levels: ClassVar[frozenset[str]] = frozenset({"default", "fast"})
    measured_error: ClassVar[Mapping[str, float]] = {"float32": 4e-7, "float64": 2e-15}  # with NumPy's transforms
    double: ClassVar[bool] = False

    def __init__(self, redo: Callable[[ConvProblem], Redo], device: Device | None = None):
        self.redo, self.device = redo, device

    def supports(self, problem: ConvProblem) -> Verdict:
        """Floats, where sums are long enough or double precision makes up for it."""
        if "int" in problem.dtype:
            return Verdict.no(f"transforms round, and results of {problem.dtype} are exact")
        if problem.op == "input_grad" and problem.pad_mode != "zeros":
            return Verdict.no(f"pad_mode {problem.pad_mode!r} makes gradients fold back (has zeros)")
        if arithmetic_of(problem, double=self.double) is None:
            return Verdict.no(
                f"its error is relative to a whole block, sums of a kernel of {problem.kernel} on {problem.spatial} with padding "
                f"{problem.padding} are short, and there is no wider arithmetic than {problem.acc_dtype}"
            )
        return limits(problem)

    def cost(self, problem: ConvProblem) -> float:
        """The launches one by one, see `forecasts`; or array operations, each of which keeps the host busy."""
        layout = self._layout(problem)
        if self._is_prepared(problem, layout):
            return transform_seconds(problem, layout)
        wide = 8 if layout.dtype in _WIDER.values() and problem.acc_dtype in _WIDER else 1
        operations = wide * layout.operations
        return seconds(problem, operations, 0.2, problem.bytes + layout.traffic, _OPERATIONS * layout.rounds)

    def workspace(self, problem: ConvProblem) -> int:
        """Spectra of weights, source and results of one block."""
        layout = self._layout(problem)
        return rounds_of(problem, layout)[1] if self._is_prepared(problem, layout) else layout.bytes

    def build(self, problem: ConvProblem) -> Executor:
        """Prepared steps, or array operations, on the caller's stream."""
        layout = self._layout(problem)
        if self.device and self._is_prepared(problem, layout):
            short = () if problem.op == "weight_grad" else bands(problem) or ()
            return transformed(problem, layout, short, self.device)
        if problem.op == "weight_grad":
            redo = self.redo(problem.replace(bias=""))
            return on_namespace(functools.partial(correlate_weights, problem, layout, redo))
        short = bands(problem) or () if layout.dtype == problem.acc_dtype else ()
        return on_namespace(functools.partial(convolve, problem, layout, short, self.redo(problem)))

    def _is_prepared(self, problem: ConvProblem, layout: Layout) -> bool:
        return self.device is not None and is_transformed(problem, layout.dtype)

    def _layout(self, problem: ConvProblem) -> Layout:
        dtype = arithmetic_of(problem, double=self.double) or problem.acc_dtype
        return layout_of(problem, dtype, together=self.device is not None and is_transformed(problem, dtype))


class FftDouble(Fft):
    """The same in double precision: for single precision at the level "high"."""

    name = "fft64"
    levels = frozenset({"high"})
    measured_error: ClassVar[Mapping[str, float]] = {"float32": 6e-8}
    double = True


def arithmetic_of(problem: ConvProblem, *, double: bool) -> str | None:
    """The dtype of the transforms; None if there is none with enough digits."""
    if double or not _suffices(problem):
        return _WIDER.get(problem.acc_dtype)
    return problem.acc_dtype


def _needed(problem: ConvProblem) -> int:
    """How many terms make a sum of which the error of a transform is a small part."""
    least, over = _LEAST_TERMS[problem.acc_dtype]
    return max(least, math.isqrt(problem.terms) // over)


def _suffices(problem: ConvProblem) -> bool:
    if problem.op != "weight_grad":
        return bands(problem) is not None
    least = problem.n * math.prod(int(_terms_of_taps(problem, axis).min()) for axis in range(problem.ndim))
    return least >= _needed(problem)


def _not_negative(counts: Counts) -> Counts:
    return np.clip(counts, 0, None)


def _terms_of_taps(problem: ConvProblem, axis: int) -> Counts:
    """Outputs for which each tap lies inside x, along one axis."""
    if problem.pad_mode != "zeros":
        return np.full(1, problem.output[axis])
    start = np.arange(problem.kernel[axis]) * problem.dilation[axis] - problem.padding[axis][0]
    stride = problem.stride[axis]
    stop = np.minimum(problem.output[axis], (problem.spatial[axis] - 1 - start) // stride + 1)
    return _not_negative(stop - _not_negative(-(start // stride)))


def _terms_of_results(problem: ConvProblem, axis: int) -> Counts:
    """Taps that lie inside x for each output, or, for gradients of x, at least so many that reach each position."""
    low, _ = problem.padding[axis]
    taps, dilation, stride = problem.kernel[axis], problem.dilation[axis], problem.stride[axis]
    if problem.op == "forward":
        if problem.pad_mode != "zeros":
            return np.full(problem.output[axis], taps)
        start = np.arange(problem.output[axis]) * stride - low
        first, last = -(start // dilation), (problem.spatial[axis] - 1 - start) // dilation
        return _not_negative(np.minimum(taps - 1, last) - _not_negative(first) + 1)
    position = np.arange(problem.spatial[axis]) + low
    first, last = -((stride * (problem.output[axis] - 1) - position) // dilation), position // dilation
    reaching = np.minimum(taps - 1, last) - _not_negative(first) + 1
    return _not_negative(reaching) // (stride // math.gcd(stride, dilation))


@functools.lru_cache(maxsize=256)
def bands(problem: ConvProblem) -> tuple[Box, ...] | None:
    """Boxes at the borders of a result that hold every sum of too few terms; None if that may be any."""
    channels = (problem.c if problem.op == "forward" else problem.k) // problem.groups
    if problem.op == "input_grad" and any(math.gcd(s, d) > 1 for s, d in zip(problem.stride, problem.dilation, strict=True)):
        return None  # positions between the others have no terms at all
    counts = [_terms_of_results(problem, axis) for axis in range(problem.ndim)]
    most = [int(count.max()) for count in counts]
    if channels * math.prod(most) < _needed(problem):
        return None
    taps = 1
    while channels * math.prod(min(taps, each) for each in most) < _needed(problem):
        taps += 1
    shape = [count.size for count in counts]
    found: list[Box] = []
    for axis, count in enumerate(counts):
        inside = np.flatnonzero(count >= min(taps, most[axis]))
        for begin, end in ((0, int(inside[0])), (int(inside[-1]) + 1, count.size)):
            if begin < end:
                first = tuple(begin if each == axis else 0 for each in range(problem.ndim))
                found.append((first, tuple(end - begin if each == axis else size for each, size in enumerate(shape))))
    return tuple(found)
