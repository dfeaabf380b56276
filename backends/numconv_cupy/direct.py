"""Convolution by the kernels of ``kernels/convolution.cu``: any problem, few channels, depthwise.

The three differ only in the tile that one thread computes; all keep the order of accuracy="strict", so their results have the
same bits. `redo` computes again what another algorithm could not know: the images whose flag is set, where the flags lie on the
device, so that nobody waits for them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from numconv.plugin import CONV_OPS, ConvProblem, Executor, Implementation, Verdict, np_dtype

from .costs import estimate
from .flags import Box, Redo, redo_nonfinite
from .launching import Launcher
from .namespaces import Arrays, empty_like, on_namespace
from .source import MAX_NDIM, NULL, geometry, kernel, strides_of

__all__ = ["Depthwise", "Direct", "FewChannels", "limits", "parts_of", "redo"]

_PARTS = 1 << 17
"""Threads that a weight gradient aims at."""
_LEAST = 256
"""Terms that a partial sum has at least."""


class Direct(Implementation):
    """One thread an output; everything."""

    name: ClassVar[str] = "direct"
    ops: ClassVar[frozenset[str]] = frozenset(CONV_OPS)
    measured_error: ClassVar[Mapping[str, float]] = {  # of one chain of 1,152 terms, run on a host
        "float32": 6e-7, "float64": 1e-15, "complex64": 6e-7, "complex128": 1e-15,
    }  # fmt: skip

    def __init__(self, kernels: Launcher):
        self.kernels = kernels

    def supports(self, problem: ConvProblem) -> Verdict:
        """All that fits 32-bit positions and a kernel's parameters."""
        return limits(problem)

    def cost(self, problem: ConvProblem) -> float:
        """By the table of `costs`."""
        return estimate(problem, self.name)

    def workspace(self, problem: ConvProblem) -> int:
        """Partial sums of weight gradients."""
        return _workspace(problem)

    def build(self, problem: ConvProblem) -> Executor:
        """Launches alone."""
        return on_namespace(functools.partial(_run, self.kernels, self.tile(problem), problem))

    def tile(self, problem: ConvProblem) -> Mapping[str, int]:
        """What a thread computes."""
        return {"KT": 1, "PT": 1, "SLIDE": 0}

    def repair(self, problem: ConvProblem, watched: Sequence[int]) -> Executor | None:
        """Behind flags that stay on the device."""
        if not limits(problem):
            return None
        return on_namespace(functools.partial(_repair, redo(self.kernels, problem), problem, tuple(watched)))


class FewChannels(Direct):
    """A thread has eight channels of the result: each value of x or grad_y is loaded once for all of them."""

    name = "few_channels"
    ops = frozenset({"forward", "input_grad"})

    def supports(self, problem: ConvProblem) -> Verdict:
        """Two channels of the result a group at least."""
        channels = (problem.k if problem.op == "forward" else problem.c) // problem.groups
        if channels < 2:
            return Verdict.no(f"{channels} channel of the result a group leaves nothing to share (needs 2)")
        return limits(problem)

    def tile(self, problem: ConvProblem) -> Mapping[str, int]:
        """Eight channels, or four where there are no more."""
        channels = (problem.k if problem.op == "forward" else problem.c) // problem.groups
        return {"KT": 8 if channels > 4 else 4, "PT": 1, "SLIDE": 0}


class Depthwise(Direct):
    """One channel a group; a thread has neighbouring outputs, through which a loaded value of x moves."""

    name = "depthwise"
    ops = frozenset({"forward"})

    def supports(self, problem: ConvProblem) -> Verdict:
        """One channel a group, and a step of the taps equal to that of the outputs on the last axis."""
        if problem.c != problem.groups:
            return Verdict.no(f"{problem.c // problem.groups} input channels a group; this is for one")
        if problem.stride[-1] != problem.dilation[-1]:
            return Verdict.no(f"stride {problem.stride[-1]} and dilation {problem.dilation[-1]} of the last axis differ")
        if problem.flip:
            return Verdict.no("with flip=True the taps move against the outputs")
        return limits(problem)

    def tile(self, problem: ConvProblem) -> Mapping[str, int]:
        """Four outputs, which are neighbours."""
        return {"KT": 1, "PT": 4, "SLIDE": 1}


def limits(problem: Any) -> Verdict:
    """What the kernels' geometry can hold."""
    if problem.ndim > MAX_NDIM:
        return Verdict.no(f"{problem.ndim} spatial dimensions; the kernels have at most {MAX_NDIM}")
    reaches = [
        size + low + max(high, 0) + stride * q
        for size, (low, high), stride, q in zip(problem.spatial, problem.padding, problem.stride, problem.output, strict=True)
    ]
    if max(reaches) >= 1 << 30:
        return Verdict.no(f"an axis of {max(reaches)} positions; the kernels count in 32 bits")
    return Verdict.yes()


def parts_of(problem: ConvProblem) -> int:
    """In how many partial sums a weight gradient is computed: a function of the problem alone."""
    if problem.op != "weight_grad" or problem.level == "strict":
        return 1
    terms = problem.n * math.prod(problem.output)
    wanted = min(-(-_PARTS // max(1, _sums(problem))), terms // _LEAST)
    allowed = problem.max_workspace // (_sums(problem) * np_dtype(problem.acc_dtype).itemsize)
    return max(1, min(wanted, allowed))


def _sums(problem: ConvProblem) -> int:
    """The larger of the gradients of weights and bias: they are held one after the other."""
    return max(math.prod(problem.w_shape), problem.c, problem.k)


def _workspace(problem: ConvProblem) -> int:
    if problem.op != "weight_grad":
        return 0
    return parts_of(problem) * _sums(problem) * np_dtype(problem.acc_dtype).itemsize


def redo(kernels: Launcher, problem: ConvProblem) -> Redo:
    """The algorithm `Direct` behind flags."""
    return functools.partial(_run, kernels, Direct(kernels).tile(problem), problem)


def _repair(again: Redo, problem: ConvProblem, watched: tuple[int, ...], outs: Arrays, ins: Arrays) -> None:
    redo_nonfinite(again, problem, outs, ins, watched)


def _run(
    kernels: Launcher,
    tile: Mapping[str, int],
    problem: ConvProblem,
    outs: Arrays,
    ins: Arrays,
    flags: Any = NULL,
    box: Box | None = None,
) -> None:
    if problem.op == "weight_grad":
        _weight_grad(kernels, problem, outs, ins, flags)
    else:
        whole = (0,) * problem.ndim, problem.output if problem.op == "forward" else problem.spatial
        _forward_or_input_grad(kernels, tile, problem, outs, ins, flags, box or whole)


def _forward_or_input_grad(
    kernels: Launcher, tile: Mapping[str, int], problem: ConvProblem, outs: Arrays, ins: Arrays, flags: Any, box: Box
) -> None:
    (out,), (source, w, *bias) = outs, ins
    first, count = box
    steps = strides_of(out)
    channels = out.shape[1] // problem.groups
    record = geometry(
        problem, strides_of(source), strides_of(w), steps, first=first, count=count,
        channels_fastest=abs(steps[1]) < abs(steps[-1]), bias_step=strides_of(bias[0])[0] if bias else 1,
    )  # fmt: skip
    pixels = problem.n * math.prod(count[:-1]) * -(-count[-1] // tile["PT"])
    threads = pixels * problem.groups * -(-channels // tile["KT"])
    code = kernel(f"conv_{problem.op}", problem, tile)
    kernels.launch(code, threads, (record, source, w, bias[0] if bias else NULL, out, flags))


def _weight_grad(kernels: Launcher, problem: ConvProblem, outs: Arrays, ins: Arrays, flags: Any) -> None:
    grad_y, x = ins
    parts = parts_of(problem)
    sums = empty_like(grad_y, (parts * math.prod(problem.w_shape),), problem.acc_dtype)
    record = geometry(problem, strides_of(grad_y), strides_of(x), parts=parts)
    code = kernel("conv_weight_grad", problem)
    kernels.launch(code, parts * math.prod(problem.w_shape), (record, grad_y, x, sums, flags))
    _store(kernels, problem, outs[0], sums, parts, flags)
    if problem.bias:
        _bias_grad(kernels, problem, outs[1], x if problem.bias == "x" else grad_y, flags)


def _bias_grad(kernels: Launcher, problem: ConvProblem, out: Any, values: Any, flags: Any) -> None:
    parts, channels = parts_of(problem), values.shape[1]
    sums = empty_like(values, (parts * channels,), problem.acc_dtype)
    record = geometry(problem, strides_of(values), parts=parts, count=values.shape[2:])
    code = kernel("channel_sums", problem)
    kernels.launch(code, parts * channels, (record, np.int64(channels), values, sums))
    _store(kernels, problem, out[(slice(None), *(None,) * (problem.ndim + 1))], sums, parts, flags)


def _store(kernels: Launcher, problem: Any, out: Any, sums: Any, parts: int, flags: Any = NULL) -> None:
    """Add up partial sums of the shape of `out`, ``[d0, d1, *rest]``, and round them to its dtype."""
    record = geometry(problem, y=strides_of(out), parts=parts, count=out.shape[2:])
    code = kernel("store_sums", problem)
    kernels.launch(code, math.prod(out.shape), (record, np.int64(out.shape[0]), np.int64(out.shape[1]), sums, out, flags))
