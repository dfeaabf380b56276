"""`planewise` of the numba backend: strips, bands, strides, slices and edges that the contract's small problems do not reach."""

from __future__ import annotations

import numpy as np
import pytest
from numconv_numba.depthwise.plane_plans import plan_for, runs_of
from numconv_numba.microkernels.emit import host

import numconv as nc
from numconv.plugin import parse
from numconv.registry import default_registry
from numconv.testing import check

OPS = ("forward", "input_grad", "weight_grad")
GEOMETRIES = [
    "f32 n2 c5 k5 g5 in13x19 w3x3 s1 p1 d1",  # many planes at a call, two vectors of which the last is short
    "f32 n1 c3 k3 g3 in14x150 w5x5 s1 p2 d1",  # several strips
    "f32 n2 c5 k5 g5 in13x19 w3x3 s2 p1 d1",  # phases parted in registers, and put together
    "f64 n2 c3 k3 g3 in41x50 w5x7 s2x1 p5 d1x2",  # padding beyond the kernel, a dilation along the rows
    "f32 n1 c2 k2 g2 in9x8 w2x3 s4x2 p0:3x1 d1",  # fewer rows of taps than the stride
    "f32 n1 c6 k9 g3 in9x33 w3x3 s1 p1 d1 flip=1",  # several channels a group on both sides
    "f32 n2 c3 k3 g3 in3x3 w7x7 s1 p3 d1",  # the kernel is larger than x
    "f32 n1 c1 k1 g1 in70x131 w5x5 s1 p2 d1",  # bands of one plane
    "f32 n1 c4 k4 g2 in7x210 w3x3 s1 p1 d1",  # strips that lie inside x, several slices
    "f32 n2 c9 k9 g9 in150 w4 s1 p3:0 d1",  # strips of one dimension as rows
    "f32 n2 c3 k6 g3 in301 w5 s2 p7 d1",
    "f32 n1 c4 k4 g4 in5x9x20 w3x3x3 s1 p1 d1",  # slices of outer dimensions
    "f32 n1 c2 k2 g2 in3x4x20 w2x3x3 s1 p2x1x1 d1",  # outer windows with no tap inside x
    "f32 n1 c1 k1 g1 in3x1x1 w1x1x1 s1 p0 d1",  # one slice, which begins elsewhere for each plane of results
    "f32 n2 c3 k3 g3 in3x5x18 w1x3x3 s1 p1 d1",
    *(f"f32 n2 c5 k5 g5 in6x{size} w3x3 s1 p1 d1" for size in (7, 14, 28, 57)),  # strips and vectors that end with the row
    "f32 n1 c3 k3 g3 in7x113 w3x3 s2 p1 d1",
    "f64 n1 c2 k2 g2 in6x19 w2x3 s1 p0x2 d1x2",  # two vectors of columns reach beside the row
]
DILATED = [
    "f32 n2 c5 k5 g5 in19x20 w3x3 s1 p6 d6",  # the phases of the rows have different numbers of rows
    "f32 n1 c3 k3 g3 in5x9 w3x3 s1 p7 d7 flip=1",  # more phases than rows
    "f32 n1 c4 k4 g4 in4x25x13 w2x3x3 s1 p1x0x2 d2x3x1",
    "f32 n1 c1 k1 g1 in99x30 w3x3 s1 p3:5x1 d2x1",  # bands of one plane
]


@pytest.mark.parametrize("geometry", DILATED)
def test_dilations(geometry, rng):
    for op in ("forward", "input_grad"):
        for integer in (True, False):
            check(parse(f"conv {op} {geometry}"), "numba", "planewise", rng=rng, integer=integer)
    for position in (0, 1):
        check(parse(f"conv forward {geometry}"), "numba", "planewise", rng=rng, nonfinite=(position,))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_dilations_with_an_activation(activation, rng):
    problem = parse(f"conv forward {DILATED[-1]} bias=y act={activation}")
    check(problem, "numba", "planewise", rng=rng, integer=False)


APART = [
    "f32 n2 c3 k3 g3 in20x150 w2x5 s3 p1 d1",  # columns of taps in groups of three and two
    "f64 n1 c4 k2 g2 in9x41 w1x3 s2x4 p1 d1",  # fewer columns than the stride
]


@pytest.mark.parametrize("op", ["forward", "weight_grad"])
@pytest.mark.parametrize("geometry", APART)
def test_strides_of_three_and_four(op, geometry, rng):
    for integer in (True, False):
        check(parse(f"conv {op} {geometry}"), "numba", "planewise", rng=rng, integer=integer)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_results(op, geometry, rng):
    problem = parse(f"conv {op} {geometry}")
    for integer in (True, False):
        check(problem, "numba", "planewise", rng=rng, integer=integer)


PADDED = [
    "f32 n2 c5 k5 g5 in13x19 w3x3 s1 p1 d1",  # several planes are padded together
    "f32 n1 c3 k3 g3 in40x9 w1x5 s2x1 p3:9x2:4 d1 bias=y act=relu",  # bands of one plane, of which some are of padding alone
    "f32 n2 c2 k2 g2 in5x19 w3x3 s1 p12x20 d1 flip=1",  # padding beyond x
    "f32 n3 c4 k4 g4 in150 w4 s1 p3:0 d1",
    "f64 n1 c4 k6 g2 in14x50 w5x5 s1 p2 d1",  # several slices, and strips of which some lie inside x
    "f32 n1 c3 k3 g3 in30x75 w3x3 s2 p1 d1",  # phases parted behind the edges
    "f32 n1 c1 k3 g1 in70x64 w7x7 s1 p3 d1",  # bands, columns of taps in a loop, and in weight gradients several tiles
    "f32 n1 c1 k1 g1 in100x131 w5x5 s1 p2 d1x2",
    "f32 n1 c2 k2 g2 in9x16 w3x3 s1 p1x0 d1",  # rows of padding alone
    "f32 n2 c3 k3 g3 in6x57 w3x3 s1 p1 d1 flip=1",
    "f32 n1 c3 k3 g3 in9x14 w3x3 s2 p1 d1",
]


@pytest.mark.parametrize("mode", ["reflect", "symmetric", "replicate", "circular"])
@pytest.mark.parametrize("geometry", PADDED)
@pytest.mark.parametrize("op", ["forward", "weight_grad"])
def test_padding_of_other_modes(op, geometry, mode, rng):
    problem = parse(f"conv {op} {geometry if op == 'forward' else geometry.split(' bias')[0]}").replace(pad_mode=mode)
    check(problem, "numba", "planewise", rng=rng, integer=True)
    check(problem, "numba", "planewise", rng=rng, integer=False, nonfinite=(0,))


@pytest.mark.parametrize("size", [14, 28, 56, 57, 112, 113])
@pytest.mark.parametrize("stride", [1, 2])
def test_vectors_end_with_the_row(size, stride):
    """Where a row of results holds a vector, only the first and the last vector of x of a row reach beside it."""
    problem = parse(f"conv forward f32 n1 c8 k8 g8 in{size}x{size} w3x3 s{stride} p1 d1")
    plan, results = plan_for(problem), problem.output[-1]
    runs = runs_of(problem, plan)
    assert plan.shape.ends == (results >= plan.shape.lanes)
    if plan.shape.ends:
        assert runs[-1].target + runs[-1].last + plan.shape.lanes == results
        assert [run.open_ends(plan.shape, size) & 1 for run in runs] == [1, *[0] * (len(runs) - 1)]


def test_a_long_row_is_not_copied():
    explanation = nc.explain("conv", (1, 1, 3000), (1, 1, 3), padding=1, pad_mode="circular", backend="numba")
    verdict = next(each.verdict for each in explanation.candidates if each.algorithm == "planewise")
    assert not verdict
    assert "circular" in verdict.reason


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("index", [0, 2, 5, 10, 11])
def test_bias_and_activation(op, index, rng):
    bias = "bias=y" if op == "weight_grad" else f"bias={'x' if op == 'input_grad' else 'y'} act=relu"
    check(parse(f"conv {op} {GEOMETRIES[index]} {bias}"), "numba", "planewise", rng=rng, integer=False)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize(("op", "index"), [("forward", 0), ("forward", 1), ("input_grad", 2), ("forward", 10)])
def test_smooth_activations(op, index, activation, rng):
    bias = "x" if op == "input_grad" else "y"
    problem = parse(f"conv {op} {GEOMETRIES[index]} bias={bias} act={activation}")
    check(problem, "numba", "planewise", rng=rng, integer=False)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("index", [0, 2, 3, 4, 5])
@pytest.mark.parametrize("position", [0, 1])
def test_not_finite_values_reach_the_right_results(op, index, position, rng):
    check(parse(f"conv {op} {GEOMETRIES[index]}"), "numba", "planewise", rng=rng, nonfinite=(position,))


@pytest.mark.parametrize("op", ["forward", "input_grad"])
@pytest.mark.parametrize("index", [0, 2, 3, 4])
def test_strict_results_have_the_bits_of_direct(op, index, rng):
    problem = parse(f"conv {op} {GEOMETRIES[index]} accuracy=strict")
    implementations = default_registry().backend("numba").implementations()
    arrays = [rng.standard_normal(shape).astype(problem.dtype) for shape in problem.input_shapes]
    found = []
    for name in ("planewise", "direct"):
        out = np.full(problem.output_shapes[0], np.nan, problem.dtype)
        next(each for each in implementations if each.name == name and op in each.ops).build(problem)((out,), arrays)
        found.append(out)
    np.testing.assert_array_equal(*found)


def test_strict_sums_of_several_slices_are_refused():
    with pytest.raises(nc.errors.UnsupportedProblemError, match="from slice to slice"):
        nc.plan("conv", (1, 4, 9, 9), (4, 2, 3, 3), "float32", groups=2, accuracy="strict", backend="numba", algorithm="planewise")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("geometry", ["n3 c37 k37 g37 in30x31 w5x5 s1 p2 d1", "n1 c1 k1 g1 in200x90 w3x3 s2 p1 d1"])
def test_threads_change_no_bit(op, geometry, rng):
    problem = parse(f"conv {op} f32 {geometry}")
    implementations = default_registry().backend("numba").implementations()
    executor = next(each for each in implementations if each.name == "planewise" and op in each.ops).build(problem)
    arrays = [rng.standard_normal(shape, dtype="float32") for shape in problem.input_shapes]
    found = set()
    for threads in (1, 2, 3):
        out = np.full(problem.output_shapes[0], np.nan, "float32")
        with nc.using(threads=threads):
            executor((out,), arrays)
        found.add(out.tobytes())
    assert len(found) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"layout": "channels_last"}, "channels_first"),
        ({"pad_mode": "reflect", "groups": 2}, "one kernel each"),
        ({"stride": 5}, "strides of up to 4"),
        ({"stride": (1, 2), "dilation": (1, 2)}, "dilation"),
        ({"stride": (2, 1), "dilation": (2, 1)}, "dilation of its rows"),
        ({"stride": 2, "flip": True}, "not flipped"),
    ],
)
def test_what_it_refuses_it_says(options, reason):
    x = (1, 9, 7, 4) if "layout" in options else (1, 4, 9, 7)  # rows shorter than a vector
    options = {"groups": 4} | options
    explanation = nc.explain("conv", x, (4, 4 // options["groups"], 3, 3), padding=1, backend="numba", **options)
    verdict = next(each.verdict for each in explanation.candidates if each.algorithm == "planewise")
    assert not verdict
    assert reason in verdict.reason


@pytest.mark.parametrize("op", ["conv", "conv_input_grad", "conv_weight_grad"])
@pytest.mark.parametrize(
    ("size", "channels", "kernel", "stride"), [(56, 144, 3, 1), (28, 576, 3, 2), (14, 384, 3, 1), (28, 192, 7, 1)]
)
def test_it_is_chosen_for_layers_of_mobile_networks(op, size, channels, kernel, stride):
    options = {"stride": stride, "padding": kernel // 2, "groups": channels, "backend": "numba"}
    chosen = nc.explain(op, (1, channels, size, size), (channels, 1, kernel, kernel), **options).chosen
    # sixteen registers hold the sums of few of seven rows
    assert chosen.algorithm in (("crosswise", "depthwise") if kernel == 7 and host().registers < 32 else ("planewise",))


def test_a_narrower_processor(check_on):
    texts = [f"conv {op} f32 n1 c3 k3 g3 in9x21 w3x3 s{stride} p1 d1" for op in OPS for stride in (1, 2)]
    texts.append("conv forward f32 n1 c3 k3 g3 in9x31 w1x3 s1x3 p1 d1")
    texts += [f"conv {op} f64 n1 c2 k2 g2 in9x21 w3x3 s2 p1 d1" for op in OPS]
    check_on("haswell", [("planewise", text) for text in texts])
