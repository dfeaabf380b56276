"""Pooling and its gradients on the rows of ``windows.json``, as numconv computes them unasked and by each that can."""

import functools

import numpy as np

import numconv
from numconv.plugin import parse

from . import WINDOWS

OPS = ["max_pool", "max_pool_backward", "avg_pool", "avg_pool_backward"]
ROWS = {name: WINDOWS["pool"][name] for name in ("stem", "pyramid", "global", "channels_last", "morphology", "sound")}


class Pooling:
    """The first channels of the first image are compared with the reference before anything is timed: channels are independent.

    An error counts beside the sum of the terms' magnitudes.
    """

    params = (OPS, list(ROWS.values()), ["auto"])
    param_names = ("op", "problem", "implementation")

    def setup(self, op, problem, implementation):
        self.call = _warm_call(op, problem, implementation)

    def time_pool(self, op, problem, implementation):
        self.call()


class PoolingForced(Pooling):
    """What the choice had to choose from."""

    params = (
        OPS,
        [ROWS[name] for name in ("stem", "morphology")],
        [f"numba {name}" for name in ("vector_pool", "vector_gather", "vector_scatter", "found_scatter", "wide_pool", "pool")],
    )


@functools.cache
def _warm_call(op, text, implementation):
    problem = parse(f"pool {op} f32 {text}")
    rng = np.random.default_rng(0)
    x, grad_y = (rng.standard_normal(_shape(shape, problem), np.float32) for shape in (problem.x_shape, problem.y_shape))
    options = {name: getattr(problem, name) for name in ("stride", "padding", "dilation", "ceil_mode", "layout")}
    if op.startswith("avg"):
        options["count_include_pad"] = problem.count_include_pad
    backend, _, algorithm = implementation.partition(" ")
    chosen = {} if backend == "auto" else {"backend": backend, "algorithm": algorithm}
    call = functools.partial(_apply, op, x, grad_y, problem.window, options, chosen)
    try:
        result = call()
    except numconv.NumconvError as refusal:
        raise NotImplementedError(str(refusal)) from refusal
    part = (slice(1), ..., slice(2)) if problem.layout == "channels_last" else (slice(1), slice(2))
    reference = functools.partial(_apply, op, window=problem.window, options=options, chosen={"backend": "reference"})
    terms = np.abs(x[part]) if op.startswith("avg") else x[part]
    expected, size = reference(x[part], grad_y[part]), np.abs(reference(terms, np.abs(grad_y[part])))
    if not (np.abs(result[part] - expected) <= 1e-6 * size).all():
        raise ValueError(f"{op} {text} by {implementation}: differs from the reference")
    return call


def _apply(op, x, grad_y, window, options, chosen):
    function = getattr(numconv, op)
    if op == "avg_pool_backward":
        return function(grad_y, x.shape, window, **options, **chosen)
    return function(grad_y, x, window, **options, **chosen) if "backward" in op else function(x, window, **options, **chosen)


def _shape(shape, problem):
    return (shape[0], *shape[2:], shape[1]) if problem.layout == "channels_last" else shape
