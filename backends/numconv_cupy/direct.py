"""Convolution by the kernels of ``kernels/convolution.cu``: any problem, a thread a result, in the order of accuracy="strict".

`redo` computes again what another algorithm could not know: the images whose flag is set, where the flags lie on the
device, so that nobody waits for them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from numconv.plugin import CONV_OPS, ConvProblem, Executor, Implementation, Verdict, np_dtype

from .costs import direct_seconds
from .flags import Box, Redo
from .launching import Launch, Launcher, Run, by_strides, remembered, scratch
from .namespaces import Arrays
from .source import MAX_NDIM, NULL, Strides, geometry, kernel, strides_of

__all__ = ["Direct", "bias_bytes", "bias_launch", "limits", "parts_of", "redo", "store_launch"]


_PARTS = 1 << 17
"""Threads that a weight gradient aims at."""
_LEAST = 256
"""Terms that a partial sum has at least."""
BLOCK = 256
"""Threads of a block that adds up the gradient of a bias."""
_BLOCKS = 1056
"""That it aims at: eight for each multiprocessor of an H100."""


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
        return direct_seconds(problem)

    def workspace(self, problem: ConvProblem) -> int:
        """Partial sums of weight gradients."""
        return _workspace(problem)

    def build(self, problem: ConvProblem) -> Executor:
        """Launches alone."""
        return by_strides(functools.partial(_prepared, self.kernels, problem))


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
    weights = max(1, math.prod(problem.w_shape))
    wanted = min(-(-_PARTS // weights), problem.n * math.prod(problem.output) // _LEAST)
    return max(1, min(wanted, problem.max_workspace // (weights * np_dtype(problem.acc_dtype).itemsize)))


def bias_parts_of(problem: ConvProblem) -> int:
    """In how many partial sums the gradient of a bias is computed."""
    if problem.level == "strict":
        return 1
    channels, terms = _bias_sums(problem)
    wanted = min(-(-_BLOCKS // max(1, channels)), terms // (4 * BLOCK))
    return max(1, min(wanted, problem.max_workspace // (max(1, channels) * np_dtype(problem.acc_dtype).itemsize)))


def _bias_sums(problem: ConvProblem) -> tuple[int, int]:
    """Elements of a bias, and the terms of the gradient of each."""
    _, channels, *positions = problem.x_shape if problem.bias == "x" else problem.y_shape
    return channels, problem.n * math.prod(positions)


def bias_bytes(problem: ConvProblem) -> int:
    """Working memory of the gradient of the bias, if there is one."""
    return bias_parts_of(problem) * _bias_sums(problem)[0] * np_dtype(problem.acc_dtype).itemsize if problem.bias else 0


def _workspace(problem: ConvProblem) -> int:
    if problem.op != "weight_grad":
        return 0
    weights = parts_of(problem) * math.prod(problem.w_shape) * np_dtype(problem.acc_dtype).itemsize
    return max(weights, bias_bytes(problem))


def redo(kernels: Launcher, problem: ConvProblem) -> Redo:
    """The algorithm `Direct` behind flags."""
    find = remembered(functools.partial(_prepared, kernels, problem))

    def run(outs: Arrays, ins: Arrays, flags: Any = NULL, box: Box | None = None) -> None:
        find(outs, ins, box)(outs, ins, flags)

    return run


def _prepared(kernels: Launcher, problem: ConvProblem, outs: Arrays, ins: Arrays, box: Box | None = None) -> Run:
    """What launches the kernels on arrays of these strides."""
    if problem.op == "weight_grad":
        return _weight_grad(kernels, problem, outs, ins)
    whole = (0,) * problem.ndim, problem.output if problem.op == "forward" else problem.spatial
    return _forward_or_input_grad(kernels, problem, outs, ins, box or whole)


def _forward_or_input_grad(kernels: Launcher, problem: ConvProblem, outs: Arrays, ins: Arrays, box: Box) -> Run:
    (out,), (source, w, *bias) = outs, ins
    first, count = box
    steps = strides_of(out)
    record = kernels.constant(geometry(
        problem, strides_of(source), strides_of(w), steps, first=first, count=count,
        channels_fastest=abs(steps[1]) < abs(steps[-1]), bias_step=strides_of(bias[0])[0] if bias else 1,
    ))  # fmt: skip
    threads = problem.n * out.shape[1] * math.prod(count)
    launch = kernels.prepare(kernel(f"conv_{problem.op}", problem), threads)

    def run(outs: Arrays, ins: Arrays, flags: Any = NULL) -> None:
        launch(record, ins[0], ins[1], ins[2] if bias else NULL, outs[0], flags)

    return run


def _weight_grad(kernels: Launcher, problem: ConvProblem, outs: Arrays, ins: Arrays) -> Run:
    parts = parts_of(problem)
    count = parts * math.prod(problem.w_shape)
    record = kernels.constant(geometry(problem, strides_of(ins[0]), strides_of(ins[1]), parts=parts))
    launch = kernels.prepare(kernel("conv_weight_grad", problem), count)
    store = store_launch(kernels, problem, problem.w_shape, strides_of(outs[0]), parts)
    bias_gradient = bias_launch(kernels, problem, outs, ins) if problem.bias else None

    def run(outs: Arrays, ins: Arrays, flags: Any = NULL) -> None:
        sums = scratch(ins[0], (count,), problem.acc_dtype)
        launch(record, ins[0], ins[1], sums, flags)
        store(sums, outs[0], flags)
        if bias_gradient:
            bias_gradient(outs, ins, flags)

    return run


def bias_launch(kernels: Launcher, problem: ConvProblem, outs: Arrays, ins: Arrays) -> Run:
    """The gradient of the bias: sums over all but the channels of grad_y, or of x; by blocks, or at "strict" in one chain."""
    which = 1 if problem.bias == "x" else 0
    parts, channels = bias_parts_of(problem), ins[which].shape[1]
    count = tuple(ins[which].shape[2:])
    record = kernels.constant(geometry(problem, strides_of(ins[which]), parts=parts, count=count))
    if problem.level == "strict" or not problem.n or _bias_sums(problem)[1] >= 1 << 31:
        launch = kernels.prepare(kernel("channel_sums", problem), parts * channels)
    else:
        launch = kernels.prepare(kernel("channel_totals", problem), parts * channels * BLOCK, BLOCK)
    step, size = strides_of(outs[1])[0], kernels.constant(np.int64(channels))
    store = store_launch(kernels, problem, (channels, 1, *(1,) * problem.ndim), (step, *(0,) * (problem.ndim + 1)), parts)

    def run(outs: Arrays, ins: Arrays, flags: Any = NULL) -> None:
        sums = scratch(ins[which], (parts * channels,), problem.acc_dtype)
        launch(record, size, ins[which], sums)
        store(sums, outs[1], flags)

    return run


def store_launch(kernels: Launcher, problem: Any, shape: tuple[int, ...], steps: Strides, parts: int) -> Launch:
    """What adds up partial sums of a shape ``[d0, d1, *rest]`` and rounds them to an array with these steps."""
    record = kernels.constant(geometry(problem, y=steps, parts=parts, count=tuple(shape[2:])))
    launch = kernels.prepare(kernel("store_sums", problem), math.prod(shape))
    sizes = [kernels.constant(np.int64(size)) for size in shape[:2]]

    def store(sums: Any, out: Any, flags: Any = NULL) -> None:
        launch(record, *sizes, sums, out, flags)

    return store
