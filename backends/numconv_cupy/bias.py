"""The gradient of the bias as two prepared launches."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from numconv.plugin import ConvProblem, np_dtype

from .launching import THREADS
from .recipes import Place, Recipe, layout, record
from .source import geometry

__all__ = ["add_bias_gradient", "bias_workspace", "slices_layout"]

_BLOCKS = 1024
"""That keep a large GPU busy."""
_LEAST_TERMS = 8 * THREADS
"""Of a part."""


@functools.cache
def slices_layout(ndim: int) -> np.dtype[Any]:
    """Struct Slices of ``bias.cu``."""
    return layout(ndim, ("threads", "channels", "parts", "terms", "most"), (), ("by_channels", "by_pixels"), ("by_axis",))


def bias_workspace(problem: ConvProblem) -> int:
    """Upper bound of the bytes of partial sums."""
    if problem.op != "weight_grad" or not problem.bias:
        return 0
    return (_BLOCKS + max(problem.c, problem.k)) * np_dtype(problem.acc_dtype).itemsize


def add_bias_gradient(recipe: Recipe) -> None:
    """Sums over images and positions of grad_y, or of x for transposed convolutions, go to the second result."""
    problem = recipe.problem
    of_x = problem.bias == "x"
    source = recipe.scratch - (1 if of_x else 2)
    channels, sizes = (problem.c, problem.spatial) if of_x else (problem.k, problem.output)
    terms = problem.n * math.prod(sizes)
    parts = max(1, min(_BLOCKS // channels, terms // _LEAST_TERMS))
    most = max(1, -(-terms // parts))
    parts = max(1, -(-terms // most))
    sums = recipe.reserve(parts * channels, problem.acc_dtype)
    about = record(
        slices_layout(problem.ndim), threads=parts * channels * THREADS, channels=channels, parts=parts, terms=terms, most=most,
        by_channels=channels, by_pixels=math.prod(sizes), by_axis=sizes,
    )  # fmt: skip
    macros = {"SLICES_BYTES": slices_layout(problem.ndim).itemsize}
    values = geometry(problem, recipe.strides[source])
    recipe.launch("sum_positions", parts * channels * THREADS, (values, about), (Place(source), sums), macros)
    recipe.launch("store_bias", channels, (about,), (sums, Place(1)), macros, [recipe.strides[1][0]])
