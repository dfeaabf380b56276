"""Convolution and its two gradients, term by term.

x ``[N, C, *S]``, w ``[K, C/G, *R]`` and y ``[N, K, *Q]`` are seen here as ``[N, G, C/G, *S]``, ``[G, K/G, C/G, *R]`` and
``[N, G, K/G, *Q]``. Python loops over the terms of a sum in the order that accuracy "strict" prescribes; NumPy adds one term
to many sums at a time.

The order of the terms of one sum:

- forward: input channel, then w row-major;
- input_grad: output channel, then w row-major, then y row-major, where padding makes several outputs read one input;
- weight_grad: n, then y row-major.

"w row-major" is the order of the entries of w as it was passed, with `flip` as well.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from numconv.plugin import CONV_OPS, ConvProblem, Executor, Implementation, Verdict, activate

from .fma import fma
from .geometry import axis_parts, axis_reads, meshes, positions, single_reads, tap_tables
from .precision import store, wide_dtype

__all__ = ["Direct"]

Array = np.ndarray[Any, Any]


class Direct(Implementation):
    """The definition of convolution, for every problem."""

    name = "direct"
    ops = frozenset(CONV_OPS)
    measured_error: ClassVar[Mapping[str, float]] = {  # of "strict", sums of 1,152 terms
        "float32": 3e-7, "float64": 4e-16, "complex64": 3e-7, "complex128": 4e-16,
    }  # fmt: skip

    def supports(self, problem: ConvProblem) -> Verdict:
        """Yes: there is no limit."""
        return Verdict.yes()

    def cost(self, problem: ConvProblem) -> float:
        """High: another CPU backend is preferred wherever there is one."""
        return 1e-4 + 2e-9 * problem.flops * (20 if problem.level == "strict" else 1)

    def build(self, problem: ConvProblem) -> Executor:
        """``executor(outs, ins)`` of the operation."""
        run = {"forward": _forward, "input_grad": _input_grad, "weight_grad": _weight_grad}[problem.op]
        return functools.partial(run, problem)


def _forward(problem: ConvProblem, outs: Sequence[Array], ins: Sequence[Array]) -> None:
    dtype, add_product = _arithmetic(problem)
    x, w = _grouped_x(problem, ins[0], dtype), _grouped_w(problem, ins[1], dtype)
    reads = axis_reads(tap_tables(problem))
    sums = np.zeros((problem.n, problem.groups, w.shape[1], *problem.output), dtype)
    with np.errstate(all="ignore"):
        for c in range(w.shape[2]):
            for tap in positions(problem.kernel):
                outputs, inputs = meshes(reads, tap)
                factor = _per_channel(w[:, :, c, *tap], problem.ndim)
                sums[..., *outputs] = add_product(x[:, :, c, *inputs][:, :, None], factor, sums[..., *outputs])
        _finish(problem, outs[0], sums, ins[2:])


def _input_grad(problem: ConvProblem, outs: Sequence[Array], ins: Sequence[Array]) -> None:
    dtype, add_product = _arithmetic(problem)
    grad_y, w = _grouped_y(problem, ins[0], dtype), _grouped_w(problem, ins[1], dtype).conj()
    parts = axis_parts(tap_tables(problem))
    sums = np.zeros((problem.n, problem.groups, w.shape[2], *problem.spatial), dtype)
    with np.errstate(all="ignore"):
        for k in range(w.shape[1]):
            for tap in positions(problem.kernel):
                factor = _per_channel(w[:, k, :, *tap], problem.ndim)
                for outputs, inputs in single_reads(parts, tap):
                    sums[..., *inputs] = add_product(grad_y[:, :, k, *outputs][:, :, None], factor, sums[..., *inputs])
        _finish(problem, outs[0], sums, ins[2:])


def _weight_grad(problem: ConvProblem, outs: Sequence[Array], ins: Sequence[Array]) -> None:
    dtype, _ = _arithmetic(problem)
    grad_y, x = _grouped_y(problem, ins[0], dtype), _grouped_x(problem, ins[1], dtype).conj()
    with np.errstate(all="ignore"):
        sums = _weight_chains(problem, grad_y, x) if problem.level == "strict" else _weight_sums(problem, grad_y, x)
        store(outs[0], sums.reshape(problem.w_shape))
        if problem.bias:
            _bias_grad(problem, outs[1], ins[0 if problem.bias == "y" else 1].astype(dtype))


def _weight_sums(problem: ConvProblem, grad_y: Array, x: Array) -> Array:
    """The gradient of each tap, summed over all outputs at a time."""
    reads = axis_reads(tap_tables(problem))
    sums = np.empty((problem.groups, grad_y.shape[2], x.shape[2], *problem.kernel), x.dtype)
    for tap in positions(problem.kernel):
        outputs, inputs = meshes(reads, tap)
        count = math.prod(position.size for position in outputs)
        terms_y = grad_y[..., *outputs].reshape(*grad_y.shape[:3], count)
        terms_x = x[..., *inputs].reshape(*x.shape[:3], count)
        sums[..., *tap] = np.einsum("ngkq,ngcq->gkc", terms_y, terms_x)
    return sums


def _weight_chains(problem: ConvProblem, grad_y: Array, x: Array) -> Array:
    """The gradient of all taps, one output after the other."""
    reads = axis_reads([table.T for table in tap_tables(problem)])
    sums = np.zeros((problem.groups, grad_y.shape[2], x.shape[2], *problem.kernel), x.dtype)
    for n in range(problem.n):
        for output in positions(problem.output):
            taps, inputs = meshes(reads, output)
            factor = _per_channel(grad_y[n, :, :, *output][..., None], problem.ndim)[0]
            sums[..., *taps] = fma(factor, x[n][..., *inputs][:, None], sums[..., *taps])
    return sums


def _bias_grad(problem: ConvProblem, out: Array, values: Array) -> None:
    """The sum over all but the channels of `values`, at accuracy "strict" one chain: n, then row-major."""
    flat = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
    if problem.level == "strict":
        store(out, functools.reduce(np.add, flat.T, np.zeros_like(out, dtype=values.dtype)))
    else:
        store(out, flat.sum(axis=1, dtype=values.dtype))


def _finish(problem: ConvProblem, out: Array, sums: Array, bias: Sequence[Array]) -> None:
    """Add the bias, if any, apply the activation and round to the dtype of the output."""
    sums = sums.reshape(out.shape)
    if bias:
        sums += bias[0].astype(sums.dtype).reshape(-1, *[1] * problem.ndim)
    activate(sums, problem.activation)
    store(out, sums)


def _arithmetic(problem: ConvProblem) -> tuple[np.dtype[Any], Callable[[Array, Array, Array], Array]]:
    """The dtype of the sums and the operation ``(a, b, c) -> a * b + c`` that adds a term to them."""
    if problem.level == "strict":
        return np.dtype(problem.acc_dtype), fma
    return wide_dtype(problem), lambda a, b, c: a * b + c


def _grouped_x(problem: ConvProblem, x: Array, dtype: np.dtype[Any]) -> Array:
    return x.astype(dtype).reshape(problem.n, problem.groups, problem.c // problem.groups, *problem.spatial)


def _grouped_w(problem: ConvProblem, w: Array, dtype: np.dtype[Any]) -> Array:
    return w.astype(dtype).reshape(problem.groups, problem.k // problem.groups, problem.c // problem.groups, *problem.kernel)


def _grouped_y(problem: ConvProblem, y: Array, dtype: np.dtype[Any]) -> Array:
    return y.astype(dtype).reshape(problem.n, problem.groups, problem.k // problem.groups, *problem.output)


def _per_channel(values: Array, ndim: int) -> Array:
    """``[G, channels]`` as ``[1, G, channels, 1, ...]``: one value for a whole volume."""
    return values.reshape(1, *values.shape, *[1] * ndim)
