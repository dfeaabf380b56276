"""Winograd's algorithm on the phases of a dilation."""

from __future__ import annotations

import numpy as np
import pytest
from numconv_numba.winograd import dilated
from numconv_numba.winograd.dilated import DilatedWinograd

import numconv as nc
from numconv.plugin import parse
from numconv.testing import check

DILATED = DilatedWinograd()
PROBLEMS = [
    "f32 n1 c16 k24 g1 in33x31 w3x3 s1 p6 d6",  # phases of six and five rows
    "f32 n2 c17 k9 g1 in23x26 w3x3 s1 p2 d2 layout=channels_last",
    "f32 n1 c12 k10 g1 in13x40 w3x3 s1 p1x6 d1x6",  # a dilation of the columns alone
    "f64 n2 c9 k7 g1 in29x14 w3x5 s1 p4x2 d4x1 flip=1",  # and of the rows alone
    "f32 n1 c24 k18 g2 in11x9 w3x3 s1 p12 d12",  # larger than the image: phases of one pixel, which reads the middle tap
    "f32 n1 c16 k8 g1 in20x19 w3x3 s1 p0 d5",
    "f32 n3 c8 k6 g1 in41 w3 s1 p8 d4",  # windows at the ends hold padding and a single tap
    "f32 n1 c20 k24 g1 in47x21 w7x3 s1 p0 d4x2",  # halves of a kernel
    "f32 n1 c32 k20 g1 in12x31 w2x2 s1 p0 d3x7",
    "f64 n1 c8 k5 g1 in5x17x18 w2x3x3 s1 p1x3x2 d2x3x2",
    "f16 n1 c16 k9 g1 in21x18 w3x3 s1 p3 d3",
    "f32 n1 c16 k9 g1 in21x18 w3x3 s1x2 p3x1 d3x1",  # a stride along the other dimension
]


@pytest.mark.parametrize("op", ["forward", "input_grad"])
@pytest.mark.parametrize("text", PROBLEMS)
def test_every_phase(op, text, rng):
    problem = parse(f"conv {op} {text}")
    if not (verdict := DILATED.supports(problem)):
        pytest.skip(verdict.reason)
    check(problem, "numba", "dilated_winograd", rng=rng, integer=False)


@pytest.mark.parametrize("position", [0, 1])
def test_what_is_not_finite_stays_where_it_belongs(position, rng):
    problem = parse("conv forward f32 n2 c16 k9 g1 in21x18 w3x3 s1 p3 d3")
    check(problem, "numba", "dilated_winograd", rng=rng, integer=False, nonfinite=(position,))


@pytest.mark.parametrize("more", ["bias=y act=relu", "bias=y act=silu"])
def test_biases_and_activations(more, rng):
    for text in PROBLEMS[:2]:
        check(parse(f"conv forward {text} {more}"), "numba", "dilated_winograd", rng=rng, integer=False)


def test_outputs_that_no_tap_sees_hold_the_bias(rng):
    # the windows of three phases in eight begin before x and end behind it
    problem = parse("conv forward f32 n1 c32 k9 g1 in5 w2 s1 p8 d8 bias=y act=relu")
    assert DILATED.supports(problem)
    assert any(part.problem is None for part in dilated._parts(problem))
    check(problem, "numba", "dilated_winograd", rng=rng, integer=False)


@pytest.mark.parametrize("text", PROBLEMS)
def test_parts_hold_every_output_once(text):
    problem = parse(f"conv forward {text}")
    seen = np.zeros(problem.y_shape)
    for part in dilated._parts(problem):
        part.results(seen, problem.dilation)[...] += 1
    assert (seen == 1).all()


def test_many_pieces_take_several_rounds(monkeypatch, rng):
    problem = parse("conv forward f32 n5 c24 k40 g2 in19x23 w3x3 s1 p2 d2")
    x, w = rng.standard_normal(problem.x_shape, np.float32), rng.standard_normal(problem.w_shape, np.float32)

    def computed():
        y = np.full(problem.y_shape, np.nan, np.float32)
        DILATED.build(problem)((y,), (x, w))
        return y

    whole = computed()
    monkeypatch.setattr(dilated, "PHASE_BYTES", 0)
    dilated._plan.cache_clear()
    assert len(dilated._plan(problem).rounds) > 8
    try:
        np.testing.assert_array_equal(computed(), whole)
    finally:
        dilated._plan.cache_clear()


@pytest.mark.parametrize("op", ["conv", "conv_input_grad"])
def test_bound_weights_and_any_number_of_threads_give_the_same_bits(op, rng):
    x, w = rng.standard_normal((2, 40, 33, 31), np.float32), rng.standard_normal((40, 40, 3, 3), np.float32)
    results = []
    for count in (1, 2, 5):
        with nc.using(threads=count):
            plan = nc.plan(op, x.shape, w.shape, "float32", padding=6, dilation=6, algorithm="dilated_winograd")
            results += [plan(x, w), plan.bind(w)(x)]
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_dilated_layers_are_computed_by_it():
    for size, dilation in ((33, 6), (28, 2), (65, 4)):
        shapes = (1, 256, size, size), (256, 256, 3, 3)
        assert nc.plan("conv", *shapes, "float32", padding=dilation, dilation=dilation).algorithm == "dilated_winograd"


@pytest.mark.parametrize(
    ("geometry", "reason"),
    [
        ("in20x20 w3x3 s1 p1 d1", "without a stride there, and here are dilation (1, 1) and stride (1, 1)"),
        ("in20x20 w3x3 s2 p2 d2", "and here are dilation (2, 2) and stride (2, 2)"),
        ("in20x20 w3x3 s1 p2 d2 pad=circular", "a phase does not hold what pad_mode circular puts beside it"),
        ("in200x200 w3x3 s1 p1x40 d1x40", "at most 32 apart along the last dimension, and here is dilation (1, 40)"),
        ("in20x20 w3x3 s1 p9 d3", "would get the rounding errors of their tile"),
    ],
)
def test_refusals_tell_why(geometry, reason):
    verdict = DILATED.supports(parse(f"conv forward f32 n1 c16 k16 g1 {geometry}"))
    assert not verdict
    assert reason in verdict.reason
