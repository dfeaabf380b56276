"""Padding, unfold and fold, max_unpool and their adjoints by the kernels of ``kernels/windows.cu``."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from numconv.plugin import WINDOW_OPS, Executor, Implementation, Verdict, WindowProblem

from .costs import moved
from .direct import limits
from .launching import Launcher, Run, by_strides
from .namespaces import Arrays, empty_like, on_namespace
from .pooling import SHARES, channel_blocks, contiguous_strides
from .source import Strides, geometry, kernel, strides_of

__all__ = ["Windows"]


class Windows(Implementation):
    """One thread an element of the result."""

    name = "windows"
    ops = frozenset(WINDOW_OPS)

    def __init__(self, kernels: Launcher):
        self.kernels = kernels

    def supports(self, problem: WindowProblem) -> Verdict:
        """All that fits the kernels' geometry."""
        return limits(problem)

    def cost(self, problem: WindowProblem) -> float:
        """Bound by memory."""
        return moved(problem)

    def workspace(self, problem: WindowProblem) -> int:
        """For max_unpool, which element stays at each position, of one block of channels."""
        if not problem.op.startswith("max_unpool"):
            return 0
        channel = 8 * math.prod(problem.spatial)
        return max(channel, min(problem.max_workspace, problem.n * problem.c * channel))

    def build(self, problem: WindowProblem) -> Executor:
        """Launches alone."""
        if problem.op.startswith("max_unpool"):
            return on_namespace(functools.partial(_max_unpool, self.kernels, problem))
        prepared = _gather if problem.op in ("pad", "unfold") else _add_back
        return by_strides(functools.partial(prepared, self.kernels, problem))


def _column_strides(problem: WindowProblem, columns: Any) -> tuple[Strides, int]:
    """The steps of ``[N, C, *Q]`` in padded values or columns, and the step of a tap."""
    steps = strides_of(columns)
    if problem.op.startswith("pad"):
        return steps, 0
    image, row, position = steps
    axes = (step * position for step in contiguous_strides(problem.output))
    return (image, math.prod(problem.window) * row, *axes), row


def _gather(kernels: Launcher, problem: WindowProblem, outs: Arrays, ins: Arrays) -> Run:
    steps, tap = _column_strides(problem, outs[0])
    return _moved(kernels, "gather", problem, geometry(problem, strides_of(ins[0]), steps), tap, math.prod(outs[0].shape))


def _add_back(kernels: Launcher, problem: WindowProblem, outs: Arrays, ins: Arrays) -> Run:
    steps, tap = _column_strides(problem, ins[0])
    record = geometry(problem, steps, y=strides_of(outs[0]))
    return _moved(kernels, "add_back", problem, record, tap, math.prod(outs[0].shape))


def _moved(kernels: Launcher, name: str, problem: WindowProblem, record: Any, tap: int, threads: int) -> Run:
    record, step = kernels.constant(record), kernels.constant(np.int64(tap))
    launch = kernels.prepare(kernel(name, problem), threads)
    return lambda outs, ins: launch(record, step, ins[0], outs[0])


def _max_unpool(kernels: Launcher, problem: WindowProblem, outs: Arrays, ins: Arrays) -> None:
    """`ins` are (y, indices) or (grad_x, indices)."""
    volume = math.prod(problem.spatial)
    for images, channels in channel_blocks(problem.n, problem.c, 8 * volume, problem.max_workspace):
        (out,), (values, indices) = ([array[images, channels] for array in arrays] for arrays in (outs, ins))
        sizes = {"n": out.shape[0], "c": out.shape[1]}
        rows = sizes["n"] * sizes["c"]
        found = empty_like(indices, (rows * volume,), "int64")
        record = geometry(problem, strides_of(indices), **sizes)
        kernels.prepare(kernel("owners", problem), rows * SHARES)(record, np.int64(SHARES), indices, found)
        record = geometry(problem, strides_of(values), strides_of(indices), strides_of(out), **sizes)
        if problem.op == "max_unpool":
            kernels.prepare(kernel("place", problem), rows * volume)(record, values, found, out)
        else:
            kernels.prepare(kernel("pick", problem), math.prod(out.shape))(record, values, indices, found, out)
