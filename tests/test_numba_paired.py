"""Half types on register tiles: bfloat16 in pairs, and conversion in vectors."""

import numpy as np
import pytest

from numconv.plugin import np_dtype, parse
from numconv.testing import candidates, check, inputs

PAIRED = ("blocked_bf16", "implicit_gemm_bf16")
# Odd channels, sizes off every tile's edge, strides, padding that is mapped, groups, three dimensions, other layouts by `check`.
ROWS = (
    "conv forward bf16 n2 c7 k19 g1 in13x18 w3x3 s1 p1 d1 bias=y act=relu",
    "conv forward bf16 n1 c34 k70 g1 in11x37 w1x1 s1 p0 d1",
    "conv forward bf16 n1 c5 k9 g1 in9x20 w3x2 s2x3 p1 d2x1 pad=reflect",
    "conv forward bf16 n3 c6 k12 g2 in40 w5 s1 p2 d1 out=f32",
    "conv forward bf16 n1 c3 k17 g1 in5x6x18 w2x3x3 s1 p1 d1 act=silu",
    "conv input_grad bf16 n2 c7 k9 g1 in12x17 w3x3 s2 p1 d1",
    "conv input_grad bf16 n1 c6 k10 g2 in9x9 w3x3 s1 p1 d1",
)
WEIGHT_ROWS = (
    "conv weight_grad bf16 n2 c5 k18 g1 in11x19 w3x3 s1 p1 d1 bias=y",
    "conv weight_grad bf16 n2 c6 k70 g2 in9x32 w3x2 s2 p1 d1",
    "conv weight_grad bf16 n1 c8 k33 g1 in12x40 w1x1 s1 p0 d1 out=f32",
)
HALVES = (
    "conv forward f16 n2 c7 k19 g1 in13x18 w3x3 s1 p1 d1 bias=y act=relu",
    "conv forward bf16 n1 c5 k9 g1 in9x20 w3x2 s2x3 p1 d1 pad=reflect",
    "conv input_grad bf16 n2 c7 k9 g1 in12x17 w3x3 s2 p1 d1",
    "conv weight_grad bf16 n2 c5 k18 g1 in11x19 w3x3 s1 p1 d1 bias=y",
)


def found(text, names=None):
    """(problem, name) of the implementations that take part."""
    problem = parse(text)
    return [
        (problem, each.algorithm)
        for each in candidates(problem, "numba")
        if each.verdict and (names is None or each.algorithm in names)
    ]


@pytest.mark.parametrize("row", ROWS + WEIGHT_ROWS)
def test_pairs_are_exact_on_integers_and_local_where_not_finite(row, rng):
    cases = found(row, PAIRED)
    if not cases:
        reasons = {each.algorithm: each.verdict.reason for each in candidates(parse(row), "numba")}
        pytest.skip(reasons["blocked_bf16"])
    assert len(cases) == (1 if row in WEIGHT_ROWS else 2)
    for problem, name in cases:
        arrays = inputs(problem, rng)
        results = []
        for backend, algorithm in (("numba", name), ("reference", None)):
            results.append([np.empty(shape, np_dtype(problem.out_dtype)) for shape in problem.output_shapes])
            chosen = (each for each in candidates(problem, backend) if algorithm in (None, each.algorithm))
            next(chosen).implementation.build(problem)(tuple(results[-1]), arrays)
        if problem.activation != "silu":
            for found_one, expected in zip(*results, strict=True):
                np.testing.assert_array_equal(found_one, expected)
        for nonfinite in ((0,), (1,)):
            check(problem, "numba", name, rng=rng, nonfinite=nonfinite)
        check(problem, "numba", name, rng=rng, integer=False)


def test_levels_that_keep_the_order_leave_pairs_out():
    for level in ("strict", "high"):
        refused = {each.algorithm: each for each in candidates(parse(f"{ROWS[0]} accuracy={level}"), "numba")}
        assert not any(refused[name].verdict for name in PAIRED)


def test_pairs_are_for_bfloat16_in_single_precision():
    for text in ("f32 n1 c4 k4 g1 in8 w3 s1 p1 d1", "f16 n1 c4 k4 g1 in8 w3 s1 p1 d1", "bf16 n1 c4 k4 g1 in8 w3 s1 p1 d1 out=f64"):
        verdicts = {each.algorithm: each.verdict for each in candidates(parse(f"conv forward {text}"), "numba")}
        assert "it sums products of bfloat16 in float32" in verdicts["blocked_bf16"].reason


@pytest.mark.parametrize("row", HALVES)
def test_every_implementation_of_half_types(row, rng):
    for problem, name in found(row):
        check(problem, "numba", name, rng=rng)
        check(problem, "numba", name, rng=rng, integer=False)


NARROW = """
import sys
import numpy as np
from numconv.plugin import parse
from numconv.testing import candidates, check
for text in sys.argv[1:]:
    check(parse(text), "numba", "blocked", rng=np.random.default_rng(0), integer=False)
    reasons = {each.algorithm: each.verdict.reason for each in candidates(parse(text), "numba")}
    assert "AVX512-BF16" in reasons["blocked_bf16"] or " f16 " in text, reasons
"""


@pytest.mark.parametrize(
    ("processor", "text"),
    [
        ("haswell", "conv weight_grad bf16 n1 c3 k10 g1 in9x13 w3x3 s1 p1 d1"),
        ("haswell", "conv forward f16 n1 c5 k19 g1 in9x13 w3x3 s2 p1 d1"),
        ("x86-64-v2", "conv forward f16 n1 c5 k19 g1 in9x13 w3x3 s2 p1 d1"),  # without an instruction that converts float16
    ],
)
def test_narrower_processors_convert_and_refuse_pairs(run_narrower, processor, text):
    run_narrower(processor, NARROW, text)
