"""Convolution and its gradients by cuDNN."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

from numconv.plugin import CONV_OPS, ConvProblem, Executor, Implementation, Verdict, cupy_view, repair_on, scratch

from .driver import Driver
from .translation import bias_graph, graph_of, supported

__all__ = ["Convolution"]

_LAUNCH = 3e-5
_SHARES = {"float16": 8.0, "bfloat16": 8.0, "float32": 0.8}
_PEAK = 1e13
_BANDWIDTH = 1e12


class Convolution(Implementation):
    """What cuDNN's heuristics choose among the engines that an accuracy level allows."""

    name: ClassVar[str] = "graph"
    ops: ClassVar[frozenset[str]] = frozenset(CONV_OPS)
    levels: ClassVar[frozenset[str]] = frozenset({"high", "default", "fast"})

    def __init__(self, driver: Driver):
        self.driver = driver

    def supports(self, problem: ConvProblem) -> Verdict:
        """What is known before a graph is built."""
        return supported(problem)

    def cost(self, problem: ConvProblem) -> float:
        """On no particular GPU, for an order: see ``docs/cupy.md``."""
        share = _SHARES[problem.dtype] * (6 if problem.level == "fast" and problem.dtype == "float32" else 1)
        if problem.c == problem.groups:
            share *= 0.05
        return _LAUNCH + max(problem.flops / (_PEAK * share), problem.bytes / _BANDWIDTH)

    def workspace(self, problem: ConvProblem) -> int:
        """Engines that need more are not taken; how much the chosen one needs is known when a graph is built."""
        return problem.max_workspace

    def build(self, problem: ConvProblem) -> Executor:
        """Graphs are built at the first call with arrays of some strides, and kept."""
        watched = _watched(problem)
        plain = problem.replace(bias="") if problem.op == "weight_grad" else problem
        repair = repair_on("gpu", plain, watched) if watched else None
        return functools.partial(_run, self.driver, problem, repair)


def _watched(problem: ConvProblem) -> tuple[int, ...]:
    """The inputs that meet padding zeros, or the zeros between strided gradients: with them an infinity would make NaN."""
    padded = any(low or high for low, high in problem.padding)
    if problem.op == "input_grad":
        return (1,)
    return ((0,) if problem.op == "weight_grad" else (1,)) if padded else ()


def _run(driver: Driver, problem: ConvProblem, repair: Executor | None, outs: Sequence[Any], ins: Sequence[Any]) -> None:
    given = [cupy_view(array) for array in outs]
    if problem.n == 0:
        for array in given:
            array[...] = 0
        return
    arrays = [_dense(cupy_view(array)) for array in ins]
    results = [array if _is_dense(array) else scratch(array.shape, array.dtype, array) for array in given]
    graph = graph_of(problem, [_strides(array) for array in arrays[:2]], _strides(results[0]))
    driver.execute(graph, [*arrays, results[0]])
    if problem.op == "weight_grad" and problem.bias:
        values = arrays[1] if problem.bias == "x" else arrays[0]
        driver.execute(bias_graph(problem, _strides(values)), [values, results[1]])
    if repair is not None:
        repair(results[:1], arrays)
    for array, result in zip(given, results, strict=True):
        if array is not result:
            array[...] = result


def _strides(array: Any) -> tuple[int, ...]:
    return tuple(step // array.dtype.itemsize for step in array.strides)


def _is_dense(array: Any) -> bool:
    """Whether the elements fill their memory in some order of the axes, forwards."""
    expected = array.dtype.itemsize
    for step, size in sorted(zip(array.strides, array.shape, strict=True)):
        if size > 1:
            if step != expected:
                return False
            expected *= size
    return True


def _dense(array: Any) -> Any:
    return array if _is_dense(array) else array.copy(order="C")
