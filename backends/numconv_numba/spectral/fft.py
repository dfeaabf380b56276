"""Convolution by fast Fourier transforms, overlap-save: for long signals and large kernels, in any number of dimensions.

Blocks of x are gathered and transformed, the spectra of all channels are multiplied with those of the weights and summed, and one
inverse transform an output channel gives a block of outputs (Oppenheim and Schafer, "Discrete-time signal processing", section
8.7.3). `overlap` says how a problem is cut, `transforms` has the executors.

The error of an output is relative to the values of a whole block, not of its own window; so sums of few terms at the border are
computed directly (`bands`), and problems that have too many of them in double precision, or not here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from numconv.plugin import ConvProblem, Implementation, Verdict
from numconv_numba.dense.base import DenseImplementation, few_phases, forward_problems

from .bands import Band, bands_of
from .folded import Folded, folded_bytes, unpadded
from .overlap import layout_for
from .transforms import TransformedForward, TransformedWeightGrad

__all__ = ["Fft", "FftDouble", "FftDoubleWeights", "FftWeights"]

_LEAST_TERMS = {"float32": (16, 2), "complex64": (16, 2), "float64": (8, 8), "complex128": (8, 8)}
"""Sums shorter than the first number, or than the square root of the number of terms over the second, have an error that is not
small beside them, since that of a transform is relative to a whole block. Double precision has more room below its bound."""
MOST_DILATION = 1 << 20
"""Of which each phase is gathered."""

# --- which arithmetic ----------------------------------------------------------------------------------------------------------


def _seen(size: int, outputs: int, stride: int, low: int, dilation: int, tap: int) -> int:
    """Outputs for which a tap lies inside x, along one dimension."""
    start = tap * dilation - low
    return max(0, min(outputs, (size - 1 - start) // stride + 1) - max(0, -(start // stride)))


def _least_pixels(problem: ConvProblem) -> int:
    """The smallest number of terms that a tap of a weight gradient has, padding zeros not counted: it is that of a corner."""
    if problem.pad_mode != "zeros":
        return problem.terms
    least = problem.n
    rows = zip(problem.spatial, problem.kernel, problem.stride, problem.padding, problem.dilation, problem.output, strict=True)
    for size, window, stride, (low, _), dilation, outputs in rows:
        least *= min(_seen(size, outputs, stride, low, dilation, tap) for tap in (0, window - 1))
    return least


def _needed(problem: ConvProblem) -> int:
    """How many terms make a sum of which the error of a transform is a small part."""
    least, over = _LEAST_TERMS[problem.acc_dtype]
    return max(least, math.isqrt(problem.terms) // over)


@functools.lru_cache(maxsize=256)
def _bands(problem: ConvProblem) -> list[Band] | None:
    """Short sums of a forward problem, for computing them directly; None if there are too many."""
    return bands_of(problem, _needed(problem))


def _suffices(problem: ConvProblem) -> bool:
    """Whether sums are long enough for transforms in their own precision."""
    return _least_pixels(problem) >= _needed(problem) if problem.op == "weight_grad" else _bands(problem) is not None


def arithmetic_of(problem: ConvProblem, double: bool) -> str:
    """The dtype of the computation: that of the sums; double precision if it is asked for, and where sums are short."""
    if not double and _suffices(problem):
        return problem.acc_dtype
    return "complex128" if problem.acc_dtype.startswith("complex") else "float64"


def _direct_bands(problem: ConvProblem, double: bool) -> list[Band]:
    """What is computed directly beside the transforms of a forward problem."""
    return _bands(problem) or [] if arithmetic_of(problem, double) == problem.acc_dtype else []


def _verdict(problem: ConvProblem, double: bool) -> Verdict:
    if "int" in problem.dtype:
        return Verdict.no(f"transforms round, and results of {problem.dtype} are exact")
    if max(problem.dilation) > MOST_DILATION:
        return Verdict.no(f"it transforms each phase of a dilation, of at most {MOST_DILATION}, and here is {problem.dilation}")
    if arithmetic_of(problem, double) != problem.acc_dtype:
        return Verdict.yes("in double precision")
    if double:
        return Verdict.no(f"its error is relative to a whole block, and there is no wider arithmetic than {problem.acc_dtype}")
    if not _suffices(problem):
        return Verdict.no(
            f"its error is relative to a whole block, so that it needs sums of {_needed(problem)} terms, and many of a kernel of "
            f"{problem.kernel} on {problem.spatial} with padding {problem.padding} have fewer"
        )
    return Verdict.yes()


def _folds(problem: ConvProblem) -> bool:
    """Whether the gradient of padding comes back to x."""
    return problem.op == "input_grad" and problem.pad_mode != "zeros"


# --- implementations -----------------------------------------------------------------------------------------------------------


class Fft(DenseImplementation):
    """Convolution by fast Fourier transforms, in the precision of the data, or in double where sums are short."""

    name = "fft"
    levels = frozenset(("default", "fast"))
    measured_error: ClassVar[Mapping[str, float]] = {"float32": 3e-6, "float64": 2e-14}
    double: ClassVar[bool] = False

    def supports(self, problem: ConvProblem) -> Verdict:
        """Floats, where sums are long enough or double precision makes up for it."""
        if problem.op != "input_grad":
            return _verdict(problem, self.double)
        if _folds(problem) and min(high for _, high in problem.padding) < 0:
            return Verdict.no(f"it folds back what was padded, and cannot leave out what padding {problem.padding} does not read")
        whole = unpadded(problem) if _folds(problem) else problem
        if not (few := few_phases(whole)):
            return few
        verdicts = [_verdict(part, self.double) for part in forward_problems(whole)]
        return next((verdict for verdict in verdicts if not verdict), Verdict.yes())

    def cost(self, problem: ConvProblem) -> float:
        """Of the parts of an input_grad, for each image where padding is folded back."""
        if not _folds(problem):
            return super().cost(problem)
        return problem.n * (super().cost(unpadded(problem)) + folded_bytes(problem) * 5e-10)

    def workspace(self, problem: ConvProblem) -> int:
        """Of the part that needs most, and of the image that is folded."""
        if not _folds(problem):
            return super().workspace(problem)
        return super().workspace(unpadded(problem)) + folded_bytes(problem)

    def build(self, problem: ConvProblem) -> Any:
        """The executor."""
        if not _folds(problem):
            return super().build(problem)
        return Folded(problem, super().build(unpadded(problem)))

    def forward_cost(self, problem: ConvProblem) -> float:
        """See `overlap.Layout`; and that of the bands."""
        return layout_for(problem, arithmetic_of(problem, self.double)).seconds + sum(
            band.seconds for band in _direct_bands(problem, self.double)
        )

    def forward_workspace(self, problem: ConvProblem) -> int:
        """The spectra of the weights, and for each thread what its task transforms; or what the bands need."""
        return max(
            layout_for(problem, arithmetic_of(problem, self.double)).bytes,
            *(band.bytes for band in _direct_bands(problem, self.double)),
            0,
        )

    def forward(self, problem: ConvProblem) -> TransformedForward:
        """The executor."""
        return TransformedForward(problem, arithmetic_of(problem, self.double), _direct_bands(problem, self.double))


class FftDouble(Fft):
    """The same always in double precision: for single precision at the level "high"."""

    name = "fft64"
    levels = frozenset(("high",))
    measured_error: ClassVar[Mapping[str, float]] = {"float32": 6e-8}
    double = True


class FftWeights(Implementation):
    """Weight gradients by fast Fourier transforms."""

    name = "fft"
    ops = frozenset(("weight_grad",))
    levels = Fft.levels
    measured_error = Fft.measured_error
    double: ClassVar[bool] = False

    def supports(self, problem: ConvProblem) -> Verdict:
        """As `Fft`."""
        return _verdict(problem, self.double)

    def cost(self, problem: ConvProblem) -> float:
        """See `overlap.Layout`."""
        return layout_for(problem, arithmetic_of(problem, self.double)).seconds

    def workspace(self, problem: ConvProblem) -> int:
        """Sums of spectra, and for each thread what its task transforms."""
        return layout_for(problem, arithmetic_of(problem, self.double)).bytes

    def build(self, problem: ConvProblem) -> TransformedWeightGrad:
        """The executor."""
        return TransformedWeightGrad(problem, arithmetic_of(problem, self.double))


class FftDoubleWeights(FftWeights):
    """The same always in double precision."""

    name = FftDouble.name
    levels = FftDouble.levels
    measured_error = FftDouble.measured_error
    double = True
