"""Random valid problems with all options: every backend against the reference.

`pytest -m slow` runs the 1,800 that the default run leaves out. A failure is repeated by its number.
"""

import importlib.util

import numpy as np
import pytest

from numconv import backends
from numconv.arguments import Geometry, PoolGeometry, Request, problem_of
from numconv.errors import ProblemError
from numconv.plugin import LEVELS, parse
from numconv.problem import DEFAULT_WORKSPACE, PAD_MODES, SHORT, WIDER
from numconv.testing import candidates
from numconv.testing.cases import make_case
from numconv.testing.checking import check_case
from numconv.testing.memory import FORMS

CONVS = ("conv", "conv_input_grad", "conv_weight_grad", "conv_transpose", "conv_transpose_input_grad", "conv_transpose_weight_grad")
POOLS = ("max_pool", "max_pool_backward", "avg_pool", "avg_pool_backward", "lp_pool", "lp_pool_backward")
MOVES = ("pad", "pad_backward", "unfold", "fold", "max_unpool", "max_unpool_backward")
COUNT, FAST = 2000, 200
PRODUCTS = 200_000
DTYPES = [name for name in SHORT if name != "bfloat16" or importlib.util.find_spec("ml_dtypes")]
ALL_DTYPES = [(dtype, out) for dtype in DTYPES for out in (dtype, *WIDER.get(dtype, ())) if out in DTYPES]
# A dtype may cost the compilation of kernels: the default run needs no others than the contract.
FAST_DTYPES = [(name, name) for name in DTYPES if name not in ("int16", "int32", "uint8", "uint16", "uint32", "uint64")]


class Draw:
    """Random choices, as plain Python values."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def pick(self, *values):
        return values[int(self.rng.integers(len(values)))]

    def chance(self, share):
        return bool(self.rng.random() < share)

    def ints(self, count, low, high):
        return tuple(self.rng.integers(low, high, count, endpoint=True).tolist())

    def per_dimension(self, ndim, *values):
        """One int for all dimensions, or one each."""
        return self.pick(*values) if self.chance(0.5) else tuple(self.pick(*values) for _ in range(ndim))

    def padding(self, ndim, most, *words):
        pairs = tuple(zip(self.ints(ndim, 0, most), self.ints(ndim, 0, most), strict=True))
        return self.pick(0, self.pick(*range(most + 1)), self.ints(ndim, 0, most), pairs, self.pick(*words) if words else pairs)

    def dtypes(self, allowed):
        """(dtype, dtype of the output)."""
        return self.pick(("float32", "float32"), ("float64", "float64")) if self.chance(0.5) else self.pick(*allowed)

    def spatial(self, ndim):
        return self.ints(ndim, 1, {1: 40, 2: 14, 3: 8, 4: 5}[ndim])


def random_conv(draw, op):
    ndim, groups = draw.pick(1, 2, 2, 3, 4), draw.pick(1, 1, 2, 3)
    first, second = draw.pick(1, 2, 3, 5, 17), draw.pick(1, 2, 3, 4, 9)
    channels, layout = first * groups, draw.pick("channels_first", "channels_first", "channels_last")
    w_shape = (second * groups, first) if op in CONVS[:3] else (channels, second)
    activated = op in ("conv", "conv_transpose") and draw.chance(0.5)
    options = Geometry(
        stride=draw.per_dimension(ndim, 1, 1, 2, 3),
        padding=draw.padding(ndim, 4, "valid", "same", "full", "causal"),
        dilation=draw.per_dimension(ndim, 1, 1, 1, 2, 3),
        groups=groups,
        pad_mode=draw.pick("zeros", "zeros", "zeros", *PAD_MODES),
        flip=draw.chance(0.2),
        layout=layout,
        activation=draw.pick("relu", "silu", "gelu") if activated else None,
        output_padding=draw.per_dimension(ndim, 0, 0, 1, 2) if "transpose" in op else 0,
    )
    kernel = draw.ints(ndim, 1, {1: 9, 2: 5, 3: 3, 4: 3}[ndim])
    bias = op not in ("conv_input_grad", "conv_transpose_input_grad") and draw.chance(0.4)
    return shaped(draw, channels, draw.spatial(ndim), layout), (*w_shape, *kernel), options, bias


def random_pool(draw, op):
    ndim, layout = draw.pick(1, 2, 2, 3, 4), draw.pick("channels_first", "channels_last")
    options = PoolGeometry(
        stride=draw.pick(None, draw.per_dimension(ndim, 1, 2, 3)),
        padding=draw.padding(ndim, 2, "valid", "same"),
        dilation=draw.per_dimension(ndim, 1, 1, 2, 3),
        layout=layout,
        ceil_mode=draw.chance(0.5),
        count_include_pad=not op.startswith("avg") or draw.chance(0.5),
        p=draw.pick(1.0, 2.0, 3.0, 0.5, 2.5) if op.startswith("lp") else 2.0,
        indices=op.startswith("max") and draw.chance(0.5),
    )
    return shaped(draw, draw.pick(1, 2, 3, 17), draw.spatial(ndim), layout), draw.ints(ndim, 1, 4), options, False


def random_move(draw, op):
    ndim, layout = draw.pick(1, 2, 2, 3, 4), draw.pick("channels_first", "channels_last")
    channels, spatial = draw.pick(1, 2, 3, 17), draw.spatial(ndim)
    if op in ("unfold", "fold"):
        options = PoolGeometry(
            stride=draw.per_dimension(ndim, 1, 2, 3),
            padding=draw.padding(ndim, 3, "valid", "same", "full", "causal"),
            dilation=draw.per_dimension(ndim, 1, 1, 2),
        )
        return shaped(draw, channels, spatial, "channels_first"), draw.ints(ndim, 1, 4), options, False
    x_shape = shaped(draw, channels, spatial, layout)
    if op in ("pad", "pad_backward"):
        return x_shape, draw.padding(ndim, 6, 2, 3), PoolGeometry(layout=layout, pad_mode=draw.pick(*PAD_MODES)), False
    pooled = draw.ints(ndim, 1, 4)
    y_shape = (x_shape[0], channels, *pooled) if layout == "channels_first" else (x_shape[0], *pooled, channels)
    return x_shape, y_shape, PoolGeometry(layout=layout), False


def shaped(draw, channels, spatial, layout):
    n = draw.pick(1, 1, 2, 3) if draw.chance(0.97) else 0
    return (n, channels, *spatial) if layout == "channels_first" else (n, *spatial, channels)


def random_problem(seed):
    """The problem of this number: one that a public function could have been asked for."""
    draw = Draw(seed)
    op = draw.pick(*CONVS * 3, *POOLS, *MOVES)
    problem = None
    while problem is None or problem.flops > 2 * PRODUCTS:
        problem = attempt(draw, op, FAST_DTYPES if seed < FAST else ALL_DTYPES)
    return problem


def attempt(draw, op, allowed):
    """A problem, or None if what was drawn makes none."""
    make = random_conv if op in CONVS else random_pool if op in POOLS else random_move
    x_shape, w_shape, options, bias = make(draw, op)
    accuracy = draw.pick(*LEVELS) if draw.chance(0.4) else None
    request = Request(op, x_shape, w_shape, *draw.dtypes(allowed), options, bias, accuracy, DEFAULT_WORKSPACE)
    try:
        return problem_of(request).problem
    except ProblemError:
        return None


# Integers tell for every form of memory that its elements are found.
DATA = (
    ({"integer": True}, tuple(FORMS)),
    ({"integer": False}, ("C-contiguous", "channels-last", "mixed")),
    ({"integer": True, "nonfinite": (0,)}, ("C-contiguous", "mixed")),
)
SEEDS = [pytest.param(seed, marks=() if seed < FAST else pytest.mark.slow) for seed in range(COUNT)]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_implementation_agrees_with_the_reference(seed, other_backend):
    problem = random_problem(seed)
    assert parse(str(problem)) == problem
    rows = candidates(problem, other_backend)
    if not any(row.verdict for row in rows):
        pytest.skip(f"{problem}: " + "; ".join(f"{row.algorithm}: {row.verdict.reason}" for row in rows))
    device = next(info.device for info in backends() if info.name == other_backend)
    for options, forms in DATA[: 2 if "int" in problem.dtype else 3]:
        case = make_case(problem, np.random.default_rng(seed), **options)
        for row in rows:
            if row.verdict:
                check_case(case, row, device, forms)


def test_random_problems_cover_all_operations_options_and_dimensions():
    problems = [random_problem(seed) for seed in range(FAST)]
    assert {problem.op for problem in problems} >= {"forward", "input_grad", "weight_grad", *POOLS, *MOVES}
    assert {problem.ndim for problem in problems} == {1, 2, 3, 4}
    assert {problem.level for problem in problems} == set(LEVELS)
    assert {(problem.dtype, problem.out_dtype) for problem in problems} >= set(FAST_DTYPES)
    convolutions = [problem for problem in problems if problem.word == "conv"]
    for option, values in {"pad_mode": 5, "flip": 2, "layout": 2, "bias": 3, "activation": 4}.items():
        assert len({getattr(problem, option) for problem in convolutions}) == values, option
