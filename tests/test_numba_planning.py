"""Planning of the numba backend takes no time or memory in proportion to numbers of a problem."""

import tracemalloc
from typing import Any

import numpy as np
import pytest

import numconv as nc
from numconv.plugin import ConvProblem, parse
from numconv.testing import candidates, check

pytest.importorskip("numba")
from numconv_numba.depthwise.plane_folds import folded
from numconv_numba.depthwise.plane_plans import plan_for, runs_of
from numconv_numba.depthwise.planewise import FoldedSweeps

HUGE = [
    ("conv", (1, 1, 8, 8), (1, 1, 3, 3), {"padding": 2**40, "stride": 2**39}),
    ("conv", (1, 16, 8, 8), (16, 1, 3, 3), {"padding": 2**40, "stride": 2**39, "groups": 16}),
    ("conv", (1, 8, 8, 16), (16, 1, 3, 3), {"padding": 2**40, "stride": 2**39, "groups": 16, "layout": "channels_last"}),
    ("conv", (1, 1, 8, 8), (1, 1, 3, 3), {"padding": 2**40, "stride": (2**39, 1), "dilation": (1, 2**40)}),
    ("conv", (1, 1, 9, 9), (1, 1, 3, 3), {"padding": ((2**31, 0), (2**31, 0)), "dilation": 2**30}),
    ("conv", (1, 1, 9, 20), (1, 1, 3, 3), {"padding": (1, 2**32), "dilation": (1, 2**32), "pad_mode": "reflect"}),
    ("conv_input_grad", (1, 8, 12, 20), (8, 8, 1, 2), {"padding": (0, 2**33), "dilation": (1, 2**33), "pad_mode": "circular"}),
    ("conv_input_grad", (1, 1, 17), (1, 8, 3), {"padding": ((1, 2**34 - 1),), "dilation": 2**33 + 1, "stride": 2}),
    ("conv_input_grad", (1, 4, 9, 9), (8, 4, 7, 3), {"padding": ((2**20, 0), (1, 10)), "stride": (8**6, 1), "pad_mode": "reflect"}),
    ("conv_weight_grad", (1, 1, 8, 8), (1, 1, 3, 3), {"padding": 2**40, "stride": 2**39}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "x_shape", "w_shape", "options"), HUGE)
def test_numbers_of_a_problem_are_not_counted_through(op: str, x_shape: Any, w_shape: Any, options: dict[str, Any]) -> None:
    w_shape = (w_shape[0], x_shape[-1 if options.get("layout") == "channels_last" else 1] // options.get("groups", 1), *w_shape[2:])
    nc.explain("conv", (1, 1, 8), (1, 1, 3), "float32", backend="numba")  # imports
    tracemalloc.start()
    explanation = nc.explain(op, x_shape, w_shape, backend="numba", **options)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**24, explanation
    failed = [row for row in explanation.candidates if row.verdict.reason.startswith("failed")]
    assert not failed, explanation


LONG_ROWS = [
    "conv forward f32 n1 c1 k1 g1 in3x30000 w3x3 s1 p1 d1",
    "conv forward f32 n1 c2 k2 g2 in2x30000 w2x5 s1x2 p1x2 d1",
    "conv forward f32 n1 c1 k1 g1 in2x70 w2x3 s1 p1x9000 d1x3000",
    "conv forward f32 n1 c1 k1 g1 in2x70 w2x3 s1 p0x3000 d1",
    "conv forward f32 n1 c1 k1 g1 in70 w3 s1 p9000 d3000",
    "conv forward f32 n1 c1 k1 g1 in5000 w31 s1 p3000 d1 flip=1",
    "conv forward f32 n1 c1 k1 g1 in3x30000 w3x3 s1 p1x2 d1 pad=reflect",
    "conv forward f32 n1 c1 k1 g1 in3x30000 w3x3 s1 p1 d1 pad=circular",
    "conv input_grad f32 n1 c1 k1 g1 in3x30000 w3x3 s2 p1 d1",
    "conv input_grad f32 n1 c1 k1 g1 in9000 w5 s2 p2 d1",
    "conv weight_grad f32 n1 c1 k1 g1 in3x9000 w3x3 s1 p1 d1",
    "conv weight_grad f32 n1 c1 k1 g1 in70 w3 s1 p9000 d3000",
    "conv weight_grad f32 n1 c1 k1 g1 in5000 w5 s2 p900 d1",
]


@pytest.mark.parametrize("text", LONG_ROWS)
def test_strips_that_are_alike(text: str) -> None:
    problem = parse(text)
    rows = [row for row in candidates(problem, "numba") if row.algorithm == "planewise"]
    if not rows[0].verdict:
        pytest.skip(rows[0].verdict.reason)
    check(problem, "numba", "planewise", rng=np.random.default_rng(3))


FOLDS = [
    "conv input_grad f32 n1 c2 k2 g2 in5x3000 w3x3 s1 p1 d1 pad=reflect",
    "conv input_grad f32 n1 c2 k2 g2 in5x3000 w3x3 s1 p1 d1 pad=circular",
    "conv input_grad f64 n1 c1 k1 g1 in5x3001 w3x3 s1 p0:1x1:0 d1 pad=symmetric flip=1",
]


@pytest.mark.parametrize("text", FOLDS)
def test_strips_with_folds(text: str) -> None:

    problem = parse(text)
    assert folded(problem) is not None
    rng = np.random.default_rng(1)
    y, w = (rng.integers(-4, 5, shape).astype(problem.dtype) for shape in (problem.y_shape, problem.w_shape))
    found = np.empty(problem.x_shape, problem.dtype)
    assert FoldedSweeps(problem)([found], [y, w])
    expected = nc.conv_input_grad(
        y, w, problem.x_shape, padding=problem.padding, groups=problem.groups, pad_mode=problem.pad_mode, flip=problem.flip,
        backend="reference",
    )  # fmt: skip
    np.testing.assert_array_equal(found, expected)


def test_tables_of_long_rows_are_short() -> None:

    problem = parse("conv forward f32 n1 c1 k1 g1 in4x1048576 w3x7 s1 p1x1048576 d1")
    assert isinstance(problem, ConvProblem)
    runs = runs_of(problem, plan_for(problem))
    assert len(runs) < 32
    assert sum(run.strips for run in runs) == plan_for(problem).strips


FAR = [
    "window unfold f32 n1 c1 in5 w3 s1 p0:2199023255552 d1099511627776",
    "window unfold f32 n1 c2 in5x20 w1x2 s2x1 p0x4294967296:0 d1x4294967296",
    "window fold f32 n1 c1 in20 w3 s2 p8589934592 d8589934592",
    "pool max_pool f32 n1 c2 in8 w3 s1 p8589934592 d8589934592",
    "pool max_pool f32 n1 c1 in5x8 w1x3 s1 p0x4294967296 d1x4294967296 indices=1",
    "pool max_pool_backward f32 n1 c1 in9 w3 s1 p4294967296 d4294967296",
    "pool avg_pool f32 n1 c1 in9 w2 s1 p4294967296:0 d4294967296",
    "pool avg_pool_backward f32 n1 c1 in9 w3 s2 p8589934592 d8589934592",
    "conv input_grad f32 n1 c16 k16 g16 in20 w3 s2 p2199023255552:0 d1099511627776",
    "conv forward f32 n1 c1 k1 g1 in9x9 w3x3 s1 p8589934592 d8589934592",
    "conv weight_grad f32 n1 c16 k16 g16 in5x20 w2x2 s1x2 p4294967296:4294967297x1:0 d8589934593x1",
]


@pytest.mark.parametrize("text", FAR)
def test_positions_beyond_32_bits(text: str) -> None:
    """Padding and dilations of any size have small results: those who count positions in 32 bits leave them to others."""
    problem = parse(text)
    able = [row.algorithm for row in candidates(problem, "numba") if row.verdict]
    assert able
    for name in able:
        check(problem, "numba", name, rng=np.random.default_rng(5))
