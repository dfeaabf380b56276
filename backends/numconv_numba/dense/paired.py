"""Convolution of bfloat16 by products of pairs (AVX512-BF16): two multiply-adds a lane, summed in float32.

`blocked` and `implicit_gemm` with other factors: two neighbouring input channels make an element of the slab and of the packed
weights, of the size of a float32, and one instruction multiplies and adds both. Products of bfloat16 numbers are exact in float32,
so that sums are rounded as elsewhere; but the order within a pair is the processor's, and the instruction takes and gives zero for
what is smaller than 2**-126 in magnitude. So the levels "strict" and "high" leave it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from numconv.plugin import ConvProblem, Verdict
from numconv_numba.microkernels.emit import host

from .blocked import Blocked
from .implicit_gemm import ImplicitGemm
from .weights import BlockedWeights

__all__ = ["PairedBlocked", "PairedGemm", "PairedWeights"]

LEVELS = frozenset(("default", "fast"))
MEASURED_ERROR: Mapping[str, float] = {"float32": 4e-6}


def supported(problem: ConvProblem) -> Verdict:
    """Sums of bfloat16 in float32, on a processor with AVX512-BF16."""
    if problem.dtype != "bfloat16" or problem.acc_dtype != "float32":
        return Verdict.no(f"it sums products of bfloat16 in float32, and not those of {problem.dtype} in {problem.acc_dtype}")
    if not host().pairs:
        return Verdict.no("the processor has no AVX512-BF16, whose instruction vdpbf16ps it uses")
    return Verdict.yes()


class _Pairs:
    """What the forward convolutions share."""

    levels = LEVELS
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR
    paired = True

    def accepts(self, problem: ConvProblem) -> Verdict:
        """See `supported`."""
        return supported(problem)


class PairedBlocked(_Pairs, Blocked):
    """Direct convolution of bfloat16 in pairs, with the lanes over output channels."""

    name = "blocked_bf16"


class PairedGemm(_Pairs, ImplicitGemm):
    """Direct convolution of bfloat16 as a matrix product in pairs, with the lanes over pixels."""

    name = "implicit_gemm_bf16"


class PairedWeights(BlockedWeights):
    """Weight gradients of bfloat16 in pairs of neighbouring results, with the lanes over output channels."""

    name = "blocked_bf16"
    levels = LEVELS
    measured_error: ClassVar[Mapping[str, float]] = MEASURED_ERROR
    paired = True

    def supports(self, problem: ConvProblem) -> Verdict:
        """See `supported`."""
        return supported(problem)
