"""Inputs of a problem, and what the reference makes of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from numconv.plugin import CONV_OPS, np_dtype
from numconv.registry import default_registry

from .tolerances import bound

__all__ = ["Array", "Case", "inputs", "make_case", "out_dtypes"]

Array = np.ndarray[Any, Any]


def inputs(problem: Any, rng: np.random.Generator, integer: bool = True, nonfinite: Sequence[int] = ()) -> list[Array]:
    """Random arrays for a problem.

    Parameters
    ----------
    problem : ConvProblem, PoolProblem or WindowProblem
    rng : numpy.random.Generator
    integer : bool
        Small integers, of which sums are exact; else normally distributed floats, or integers of the whole range.
    nonfinite : sequence of int
        The positions of the arrays in which up to three elements become NaN, Inf and -Inf.

    Returns
    -------
    list of arrays of the shapes ``problem.input_shapes``
    """
    arrays = [_random(shape, np_dtype(problem.dtype), rng, integer) for shape in problem.input_shapes]
    if problem.op.startswith("max_unpool"):
        arrays[1] = rng.integers(0, math.prod(problem.spatial), problem.y_shape)
    elif problem.op == "max_pool_backward" and problem.indices:
        x = _random(problem.x_shape, np.dtype(np.float32), rng, integer)
        arrays[1] = _reference(problem.replace(op="max_pool", dtype="float32", out_dtype="float32"), [x])[1]
    for position in nonfinite:
        _sow(arrays[position], rng)
    return arrays


def _random(shape: tuple[int, ...], dtype: np.dtype[Any], rng: np.random.Generator, integer: bool) -> Array:
    if dtype.kind in "iu" and not integer:
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    parts = [rng.integers(0 if dtype.kind == "u" else -4, 5, shape) if integer else rng.standard_normal(shape) for _ in range(2)]
    return np.asarray(parts[0] + 1j * parts[1] if dtype.kind == "c" else parts[0]).astype(dtype)


def _sow(array: Array, rng: np.random.Generator) -> None:
    count = min(3, array.size)
    places = rng.permutation(array.size)[:count]
    array.reshape(-1)[places] = rng.permutation([np.nan, np.inf, -np.inf])[:count]


def out_dtypes(problem: Any) -> list[np.dtype[Any]]:
    """Of the outputs."""
    return [np_dtype(problem.out_dtype), np.dtype(np.int64) if problem.op == "max_pool" else np_dtype(problem.out_dtype)]


def _reference(problem: Any, arrays: Sequence[Array]) -> list[Array]:
    implementations = default_registry().backend("reference").implementations()
    implementation = next(each for each in implementations if problem.op in each.ops)
    outs = [np.empty(shape, dtype) for shape, dtype in zip(problem.output_shapes, out_dtypes(problem), strict=False)]
    implementation.build(problem)(outs, arrays)
    return outs


def _magnitudes(problem: Any, arrays: Sequence[Array]) -> list[Array]:
    """The operation on absolute values, in float64; a value that is not finite counts nothing."""
    changes: dict[str, Any] = {"dtype": "float64", "out_dtype": "float64", "accuracy": "high"}
    if problem.op in CONV_OPS:
        changes["activation"] = None
    chosen = 1 if problem.op == "max_pool_backward" else len(arrays)  # its second array says where, not how much
    sizes = [_absolute(array) for array in arrays[:chosen]]
    return _reference(problem.replace(**changes), [*sizes, *arrays[chosen:]])


def _absolute(array: Array) -> Array:
    wide = np.abs(array.astype(np.complex128 if array.dtype.kind == "c" else np.float64))
    return np.where(np.isfinite(wide), wide, 0.0)


class Case(NamedTuple):
    """Inputs of a problem, with the results of the reference in its own wide arithmetic and the magnitudes of their elements."""

    problem: Any
    arrays: list[Array]
    expected: list[Array]
    magnitudes: list[Array] | None
    integer: bool


def make_case(problem: Any, rng: np.random.Generator, integer: bool, nonfinite: Sequence[int] = ()) -> Case:
    """Inputs and the reference's results: those of a problem serve its replacements at other accuracy levels too."""
    arrays = inputs(problem, rng, integer, nonfinite)
    magnitudes = _magnitudes(problem, arrays) if bound(problem) else None
    return Case(problem, arrays, _reference(problem.replace(accuracy="high"), arrays), magnitudes, integer)
