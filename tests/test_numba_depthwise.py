"""`depthwise` of the numba backend: folds, strips, bands and classes of rows that the contract's small problems do not reach."""

from __future__ import annotations

import numpy as np
import pytest
from numconv_numba.depthwise.depthwise_weights import plan_for

import numconv as nc
from numconv.plugin import parse
from numconv.registry import default_registry
from numconv.testing import check

OPS = ("forward", "input_grad", "weight_grad")
GEOMETRIES = [
    "f32 n1 c1 k1 g1 in1700 w129 s1 p64 d1",  # folded, with a short last row of taps
    "f64 n2 c3 k6 g3 in301 w75 s2 p37 d1",  # folded in phases, a multiplier
    "f32 n1 c2 k2 g2 in401 w40 s4 p7 d3 flip=1",  # dilation does not divide the width: one row of taps
    "f32 n1 c1 k1 g1 in70x131 w11x11 s1 p5 d1",  # slides over several strips and bands
    "f32 n1 c1 k1 g1 in67x300 w3x3 s1 p1 d1",  # rolls over several tiles
    "f32 n2 c2 k2 g2 in41x50 w5x7 s2x1 p5 d1x2",  # rolls with a lag
    "f32 n1 c2 k2 g2 in41x50 w5x4 s3x2 p5 d2x3 flip=1",  # classes of rows
    "f32 n2 c3 k3 g3 in9x8 w31x31 s1 p15 d1",  # the kernel is larger than x
    "f32 n1 c4 k6 g2 in11x9x20 w3x4x5 s2x1x2 p1 d1x2x1 flip=1",  # slices of several planes and channels
]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_results(op, geometry, rng):
    problem = parse(f"conv {op} {geometry}")
    for integer in (True, False):
        check(problem, "numba", "depthwise", rng=rng, integer=integer)


@pytest.mark.parametrize("op", OPS)
def test_not_finite_values_reach_the_right_results(op, rng):
    problem = parse(f"conv {op} f32 n2 c3 k3 g3 in13x70 w7x9 s1 p4 d1")
    for position in (0, 1):
        check(problem, "numba", "depthwise", rng=rng, nonfinite=(position,))


@pytest.mark.parametrize(
    "geometry",
    ["n4 c5 k5 g5 in21x22 w3x3 s2 p1 d1", "n2 c9 k9 g9 in50 w2 s3 p1 d1", "n1 c20 k20 g20 in9x50 w5x4 s1x2 p2 d1x3 flip=1"],
)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_phases_of_a_strided_gradient_together(geometry, dtype, rng):
    """With bias and activation, where some places of x are seen by no tap, and where w is not finite."""
    problem = parse(f"conv input_grad {dtype} {geometry} bias=x act=relu")
    check(problem, "numba", "depthwise", rng=rng, integer=False)
    for position in (0, 1):
        check(problem, "numba", "depthwise", rng=rng, nonfinite=(position,))


@pytest.mark.parametrize("mode", ["reflect", "symmetric", "replicate", "circular"])
@pytest.mark.parametrize("kernel", ["w3x3", "w12x9"])
def test_borders(mode, kernel, rng):
    check(
        parse(f"conv forward f32 n1 c2 k2 g2 in20x90 {kernel} s1x2 p5x7 d1 pad={mode}"), "numba", "depthwise", rng=rng, integer=True
    )


@pytest.mark.parametrize("geometry", ["c3 k3 g3 in40x41 w3x3 s1 p1 d1", "c1 k1 g1 in140x150 w9x9 s1 p4 d1 flip=1"])
def test_strict_results_have_the_bits_of_direct(geometry, rng):
    problem = parse(f"conv forward f32 n2 {geometry} accuracy=strict")
    x, w = (rng.standard_normal(shape, dtype="float32") for shape in problem.input_shapes)
    options = {"padding": problem.padding, "groups": problem.groups, "flip": problem.flip, "accuracy": "strict", "backend": "numba"}
    expected = nc.conv(x, w, algorithm="direct", **options)
    np.testing.assert_array_equal(nc.conv(x, w, algorithm="depthwise", **options), expected)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("geometry", ["n3 c5 k5 g5 in30x31 w5x5 s1 p2 d1", "n1 c1 k1 g1 in200x90 w9x9 s1 p4 d1"])
def test_threads_change_no_bit(op, geometry, rng):
    problem = parse(f"conv {op} f32 {geometry}")
    implementations = default_registry().backend("numba").implementations()
    executor = next(each for each in implementations if each.name == "depthwise" and op in each.ops).build(problem)
    arrays = [rng.standard_normal(shape, dtype="float32") for shape in problem.input_shapes]
    found = set()
    for threads in (1, 2, 3):
        out = np.full(problem.output_shapes[0], np.nan, "float32")
        with nc.using(threads=threads):
            executor((out,), arrays)
        found.add(out.tobytes())
    assert len(found) == 1


def test_weight_gradients_with_a_bias(rng):
    for geometry in (
        "n2 c5 k5 g5 in13x19 w3x3 s1 p1 d1 bias=y",
        "n3 c4 k6 g2 in211 w30 s1 p3 d1 bias=y",
        "n2 c3 k3 g3 in9x9 w3x3 s1 p1 d1 bias=x",
    ):
        check(parse(f"conv weight_grad f32 {geometry}"), "numba", "depthwise", rng=rng, integer=False)


def test_it_is_chosen_for_few_channels_only():
    def chosen(x, w, **options):
        return nc.explain("conv", x, w, backend="numba", **options).chosen.algorithm

    assert chosen((1, 96, 56, 56), (96, 1, 9, 9), padding=4, groups=96) == "depthwise"
    assert chosen((1, 1, 512, 512), (1, 1, 11, 11), padding=5, accuracy="high") == "depthwise"
    assert chosen((1, 1, 100_000), (1, 1, 129), padding=64) == "depthwise"
    assert chosen((1, 64, 28, 28), (64, 64, 3, 3), padding=1) != "depthwise"
    assert chosen((1, 64, 4000), (64, 64, 9), padding=4) != "depthwise"


@pytest.mark.parametrize("processor", ["haswell", "x86-64-v2"])
def test_narrower_processors(check_on, processor):
    geometries = ("f32 n1 c2 k2 g2 in20x41 w3x3 s1 p1 d1", "f32 n1 c2 k2 g2 in20x41 w9x9 s2 p4 d1")
    jobs = [("depthwise", f"conv {op} {geometry}") for op in ("forward", "weight_grad") for geometry in geometries]
    check_on(processor, jobs)


@pytest.mark.parametrize("size", ["1024x1024 w31x31 s1 p15", "512x512 w5x5 s1 p2", "700x900 w15x15 s1 p7", "200000 w1025 s1 p512"])
def test_weight_gradients_have_even_shares(size):
    plan = plan_for(parse(f"conv weight_grad f32 n1 c1 k1 g1 in{size} d1"))
    assert plan.parts == 16
    shares = [plan.layout.bands * (part + 1) // plan.parts - plan.layout.bands * part // plan.parts for part in range(plan.parts)]
    assert max(shares) * plan.parts <= 1.1 * plan.layout.bands
