"""Gradients: of x, w and bias together for every row, and those of x and of w alone by each implementation that can."""

import functools

import numpy as np

import numconv
from numconv.plugin import parse

from . import CONTESTED, ROWS, case, warm_call


class Backward:
    """Results are compared with sums of their terms before they are timed."""

    params = (list(ROWS.values()), ["auto"])
    param_names = ("problem", "implementation")
    timeout = 120

    def setup(self, problem, implementation):
        self.call = warm_call(problem, "backward", implementation)

    def time_backward(self, problem, implementation):
        self.call()


class InputGradForced:
    """What the choice had to choose from, for the gradient of x."""

    params = (
        CONTESTED,
        [
            f"numba {name}"
            for name in ("tile", "depthwise", "planewise", "separable", "winograd", "implicit_gemm", "blocked", "fft", "direct")
        ],
    )
    param_names = ("problem", "implementation")
    timeout = 120
    op = "conv_input_grad"

    def setup(self, problem, implementation):
        self.call = _gradient(self.op, problem, implementation)

    def time_gradient(self, problem, implementation):
        self.call()


class WeightGradForced(InputGradForced):
    """The same for the gradient of w."""

    params = (CONTESTED, [f"numba {name}" for name in ("depthwise", "planewise", "winograd", "blocked", "fft", "direct")])
    op = "conv_weight_grad"


@functools.cache
def _gradient(op, text, implementation):
    """A warm call by one implementation, whose result is that of the automatic choice, which is checked against sums of terms."""
    problem, (backend, algorithm) = parse(text), implementation.split()
    options = {name: getattr(problem, name) for name in ("stride", "padding", "dilation", "groups")}
    x, w, grad_y = case(text, "backward").arrays()
    arrays, shape = ((grad_y, w), problem.x_shape) if op == "conv_input_grad" else ((grad_y, x), problem.w_shape)
    call = functools.partial(getattr(numconv, op), *arrays, shape, backend=backend, algorithm=algorithm, **options)
    try:
        result = call()
    except numconv.NumconvError as refusal:
        raise NotImplementedError(str(refusal)) from refusal
    grads = warm_call(text, "backward")()
    expected = grads.x if op == "conv_input_grad" else grads.w
    error = float(np.abs(result - expected).max() / np.abs(expected).max())
    allowed = 1e-4 if problem.dtype == "float32" else 1e-12
    if not error <= allowed:
        raise ValueError(f"{op} of {text} by {implementation}: differs from the automatic choice by {error:.1e} of the maximum")
    return call
