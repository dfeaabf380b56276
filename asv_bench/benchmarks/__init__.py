"""What the benchmarks share: the rows, their inputs, and the check that comes before any timing."""

import json
import pathlib
import timeit

import numpy as np

import numconv
from numconv.dispatch import Plan
from numconv.plugin import ConvProblem, parse

ROWS: dict[str, str] = json.loads((pathlib.Path(__file__).parents[1] / "rows.json").read_text())
TINY = ROWS["digits8"]

# Of |y - y64|, relative to the convolution of |x| with |w|: what the default accuracy level promises.
TOLERANCE = {"float32": 1e-5, "float64": 1e-13}


def inputs(problem: ConvProblem) -> tuple[np.ndarray, np.ndarray]:
    """x and w of a problem, normally distributed."""
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal(shape).astype(problem.dtype) for shape in (problem.x_shape, problem.w_shape))


def plan(problem: ConvProblem, backend: str | None, dtype: str | None = None) -> Plan:
    """The plan of a problem; a backend that is missing, or declines it, makes asv skip the benchmark."""
    options = {name: getattr(problem, name) for name in ("stride", "padding", "dilation", "groups")}
    try:
        return numconv.plan("conv", problem.x_shape, problem.w_shape, dtype or problem.dtype, backend=backend, **options)
    except (numconv.BackendUnavailableError, numconv.UnsupportedProblemError) as refusal:
        raise NotImplementedError(str(refusal)) from refusal


def check(text: str, backend: str) -> None:
    """Raise ValueError unless the backend computes this row as the reference does in float64."""
    problem = parse(text)
    x, w = inputs(problem)
    y = plan(problem, backend)(x, w)
    reference = plan(problem, "reference", "float64")
    exact, size = (reference(change(x).astype("float64"), change(w).astype("float64")) for change in (np.asarray, np.abs))
    error = float((np.abs(y - exact) / size).max())
    if not error <= TOLERANCE[problem.dtype]:
        raise ValueError(f"{text} on {backend}: relative error {error:.1e}, allowed is {TOLERANCE[problem.dtype]:.0e}")


def seconds(call) -> float:
    """The best seconds a call of five runs, each of at least a twentieth of a second."""
    call()
    timer = timeit.Timer(call)
    once = timer.timeit(1)
    number = max(1, round(0.05 / max(once, 1e-7)))
    return min(timer.repeat(5, number)) / number
