"""Operations that move values: padding, unfold and fold, max_unpool, and their adjoints."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from numconv.plugin import WINDOW_OPS, Executor, Implementation, Verdict, WindowProblem, check_indices

from .geometry import axis_parts, axis_reads, meshes, positions, single_reads, tap_tables
from .precision import store, wide_dtype

__all__ = ["Windows"]

Array = np.ndarray[Any, Any]


class Windows(Implementation):
    """Moving values by their definition, for every problem."""

    name = "windows"
    ops = frozenset(WINDOW_OPS)

    def supports(self, problem: WindowProblem) -> Verdict:
        """Yes: there is no limit."""
        return Verdict.yes()

    def cost(self, problem: WindowProblem) -> float:
        """High: another CPU backend is preferred wherever there is one."""
        return 1e-4 + 4e-9 * problem.flops

    def build(self, problem: WindowProblem) -> Executor:
        """``executor(outs, ins)`` of the operation."""
        runs: dict[str, Callable[[WindowProblem, Sequence[Array], Sequence[Array]], None]] = {
            "pad": _gather, "unfold": _gather, "pad_backward": _scatter, "fold": _scatter,
            "max_unpool": _max_unpool, "max_unpool_backward": _max_unpool_backward,
        }  # fmt: skip
        return functools.partial(runs[problem.op], problem)


def _gather(problem: WindowProblem, outs: Sequence[Array], ins: Sequence[Array]) -> None:
    """Unfold; padding is the case of a window of one tap."""
    x = ins[0].astype(outs[0].dtype)
    reads = axis_reads(tap_tables(problem))
    columns = np.zeros((problem.n, problem.c, *problem.window, *problem.output), x.dtype)
    for tap in positions(problem.window):
        outputs, inputs = meshes(reads, tap)
        columns[:, :, *tap][..., *outputs] = x[..., *inputs]
    outs[0][...] = columns.reshape(problem.y_shape)


def _scatter(problem: WindowProblem, outs: Sequence[Array], ins: Sequence[Array]) -> None:
    """The adjoint of `_gather`: each value is added where it was read."""
    columns = ins[0].astype(wide_dtype(problem)).reshape(problem.n, problem.c, *problem.window, *problem.output)
    parts = axis_parts(tap_tables(problem))
    sums = np.zeros(problem.x_shape, columns.dtype)
    with np.errstate(all="ignore"):
        for tap in positions(problem.window):
            for outputs, inputs in single_reads(parts, tap):
                sums[..., *inputs] += columns[:, :, *tap][..., *outputs]
        store(outs[0], sums)


def _max_unpool(problem: WindowProblem, outs: Sequence[Array], ins: Sequence[Array]) -> None:
    """Place y at its indices; of several values for one position the last in row-major order stays."""
    y, indices = (array.reshape(problem.n, problem.c, math.prod(problem.output)) for array in ins)
    owners = _owners(problem, indices)
    placed = np.take_along_axis(y, np.maximum(owners, 0), axis=2).astype(outs[0].dtype)
    placed[owners < 0] = 0
    outs[0][...] = placed.reshape(problem.x_shape)


def _max_unpool_backward(problem: WindowProblem, outs: Sequence[Array], ins: Sequence[Array]) -> None:
    """Read grad_x where y was placed; a value of y that a later one replaced gets 0."""
    grad_x = ins[0].reshape(problem.n, problem.c, math.prod(problem.spatial))
    indices = ins[1].reshape(problem.n, problem.c, math.prod(problem.output))
    stayed = np.take_along_axis(_owners(problem, indices), indices, axis=2) == np.arange(indices.shape[2])
    grad_y = np.take_along_axis(grad_x, indices, axis=2).astype(outs[0].dtype)
    grad_y[~stayed] = 0
    outs[0][...] = grad_y.reshape(problem.y_shape)


def _owners(problem: WindowProblem, indices: Array) -> Array:
    """Which element of y stays at each position of x, -1 where there is none; both flat, ``[N, C, prod(S)]``."""
    check_indices(problem.op, indices, math.prod(problem.spatial))
    owners = np.full((problem.n, problem.c, math.prod(problem.spatial)), -1)
    n, c, element = np.ogrid[: problem.n, : problem.c, : indices.shape[2]]
    np.maximum.at(owners, (n, c, indices), element)
    return owners
