"""Pooling and its gradients by the kernels of ``kernels/pooling.cu``."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import numpy as np

from numconv.plugin import POOL_OPS, Executor, Implementation, PoolProblem, Verdict, np_dtype

from .costs import moved
from .direct import limits, store_launch
from .launching import Launcher, Run, by_strides
from .namespaces import Arrays, empty_like, on_namespace
from .source import NULL, Strides, geometry, kernel, strides_of

__all__ = ["SHARES", "Pool", "channel_blocks", "contiguous_strides"]

SHARES = 32
"""Threads among which the positions of one channel are dealt out where values are added at given places."""


class Pool(Implementation):
    """One thread an element of the result; gradients are gathered, or added by the owner of a position, so no atomics."""

    name = "pool"
    ops = frozenset(POOL_OPS)
    measured_error: ClassVar[Mapping[str, float]] = {"float32": 6e-7, "float64": 1e-15}

    def __init__(self, kernels: Launcher):
        self.kernels = kernels

    def supports(self, problem: PoolProblem) -> Verdict:
        """All that fits the kernels' geometry."""
        return limits(problem)

    def cost(self, problem: PoolProblem) -> float:
        """Bound by memory."""
        return moved(problem, 2)

    def workspace(self, problem: PoolProblem) -> int:
        """Winners or means, and sums, of one block of channels."""
        if problem.op not in ("max_pool_backward", "lp_pool_backward"):
            return 0
        return max(_channel_bytes(problem), min(problem.max_workspace, problem.n * problem.c * _channel_bytes(problem)))

    def build(self, problem: PoolProblem) -> Executor:
        """Launches alone."""
        runs: dict[str, Callable[..., None]] = {"max_pool_backward": _max_pool_backward, "lp_pool_backward": _lp_pool_backward}
        if problem.op in runs:
            return on_namespace(functools.partial(runs[problem.op], self.kernels, problem))
        return by_strides(functools.partial(_max_pool if problem.op == "max_pool" else _one_launch, self.kernels, problem))


def _channel_bytes(problem: PoolProblem) -> int:
    """Working memory of one channel of one image."""
    item = np_dtype(problem.acc_dtype).itemsize
    outputs = math.prod(problem.output)
    return outputs * item if problem.op == "lp_pool_backward" else math.prod(problem.spatial) * item + outputs * 8


def channel_blocks(n: int, c: int, channel_bytes: int, limit: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of images and channels of which the working memory stays under `limit`, in order."""
    allowed = max(1, limit // max(1, channel_bytes))
    channels = min(c, allowed)
    images = max(1, allowed // max(1, c)) if channels == c else 1
    for image in range(0, n, images):
        for channel in range(0, c, max(1, channels)):
            yield slice(image, min(n, image + images)), slice(channel, min(c, channel + channels))


def contiguous_strides(shape: tuple[int, ...]) -> Strides:
    """The steps of a row-major array."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _one_launch(kernels: Launcher, problem: PoolProblem, outs: Arrays, ins: Arrays) -> Run:
    record = kernels.constant(geometry(problem, strides_of(ins[0]), y=strides_of(outs[0])))
    launch = kernels.prepare(kernel(problem.op, problem), math.prod(outs[0].shape))
    return lambda outs, ins: launch(record, ins[0], outs[0])


def _max_pool(kernels: Launcher, problem: PoolProblem, outs: Arrays, ins: Arrays) -> Run:
    indices = strides_of(outs[1]) if problem.indices else ()
    record = kernels.constant(geometry(problem, strides_of(ins[0]), indices, strides_of(outs[0])))
    launch = kernels.prepare(kernel("max_pool", problem), math.prod(problem.y_shape))
    return lambda outs, ins: launch(record, ins[0], outs[0], outs[1] if problem.indices else NULL)


def _max_pool_backward(kernels: Launcher, problem: PoolProblem, outs: Arrays, ins: Arrays) -> None:
    for images, channels in channel_blocks(problem.n, problem.c, _channel_bytes(problem), problem.max_workspace):
        (grad_x,), (grad_y, second) = ([array[images, channels] for array in arrays] for arrays in (outs, ins))
        sizes = {"n": grad_x.shape[0], "c": grad_x.shape[1]}
        winners = second
        if not problem.indices:
            winners = empty_like(second, grad_y.shape, "int64")
            record = geometry(problem, strides_of(second), strides_of(winners), **sizes)
            kernels.prepare(kernel("max_pool", problem), math.prod(grad_y.shape))(record, second, NULL, winners)
        sums = empty_like(grad_x, grad_x.shape, problem.acc_dtype)
        record = geometry(problem, strides_of(grad_y), strides_of(winners), **sizes)
        threads = sizes["n"] * sizes["c"] * SHARES
        kernels.prepare(kernel("add_at_winners", problem), threads)(record, np.int64(SHARES), grad_y, winners, sums)
        store_launch(kernels, problem, grad_x.shape, strides_of(grad_x), 1)(sums, grad_x)


def _lp_pool_backward(kernels: Launcher, problem: PoolProblem, outs: Arrays, ins: Arrays) -> None:
    for images, channels in channel_blocks(problem.n, problem.c, _channel_bytes(problem), problem.max_workspace):
        (grad_x,), (grad_y, x) = ([array[images, channels] for array in arrays] for arrays in (outs, ins))
        sizes = {"n": grad_x.shape[0], "c": grad_x.shape[1]}
        means = empty_like(x, grad_y.shape, problem.acc_dtype)
        record = geometry(problem, strides_of(x), y=contiguous_strides(grad_y.shape), **sizes)
        kernels.prepare(kernel("lp_pool", problem, outputs=problem.acc_dtype), math.prod(grad_y.shape))(record, x, means)
        record = geometry(problem, strides_of(grad_y), strides_of(x), strides_of(grad_x), **sizes)
        arguments = (record, grad_y, x, means, grad_x)
        kernels.prepare(kernel("lp_pool_backward", problem), math.prod(grad_x.shape))(*arguments)
