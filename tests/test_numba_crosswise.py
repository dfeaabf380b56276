"""`crosswise` of the numba backend: depthwise convolution of small planes, which are transposed."""

from __future__ import annotations

import numpy as np
import pytest

import numconv as nc
from numconv.plugin import parse
from numconv.registry import default_registry
from numconv.testing import check

GEOMETRIES = [
    "f32 n2 c37 k37 g37 in9x7 w3x3 s1 p1 d1",  # the last block of channels overlaps
    "f32 n1 c32 k32 g32 in6x40 w3x5 s2x3 p1x3 d1x2 flip=1",  # several tiles a row, of which the last one overlaps
    "f64 n1 c9 k9 g9 in4x5x13 w2x3x4 s1 p1x0x2 d1x2x1",
    "f32 n1 c16 k16 g16 in3x3 w5x5 s1 p2 d1",  # no window lies inside x
    "f32 n1 c20 k20 g20 in5 w9 s1 p11 d1",  # some windows lie beside x
]
SMALL = GEOMETRIES[0]
MODES = ["reflect", "symmetric", "replicate", "circular"]


def implementation():
    return next(each for each in default_registry().backend("numba").implementations() if each.name == "crosswise")


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_results(geometry, rng):
    for op in ("forward", "input_grad"):
        problem = parse(f"conv {op} {geometry}")
        if implementation().supports(problem):
            for integer in (True, False):
                check(problem, "numba", "crosswise", rng=rng, integer=integer)
    assert implementation().supports(parse(f"conv forward {geometry}"))


@pytest.mark.parametrize("options", ["", "bias=y act=relu", "bias=y act=gelu"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_channels_that_are_last(geometry, options, rng):
    if "gelu" in options:  # of which whole vectors are taken
        geometry = geometry.replace("37", "48").replace("20", "32").replace("c9 k9 g9", "c8 k8 g8")
    problem = parse(f"conv forward {geometry} {options} layout=channels_last")
    check(problem, "numba", "crosswise", rng=rng, integer=not options)


@pytest.mark.parametrize(
    ("dtype", "options"), [("f32", "bias=y act=relu"), ("f32", "act=silu"), ("f16", "bias=y act=gelu"), ("bf16", "bias=y act=relu")]
)
def test_bias_activation_and_half_types(dtype, options, rng):
    check(parse(f"conv forward {SMALL.replace('f32', dtype)} {options}"), "numba", "crosswise", rng=rng, integer=False)


@pytest.mark.parametrize("position", [0, 1])
def test_not_finite_values_reach_the_right_results(position, rng):
    check(parse(f"conv forward {SMALL}"), "numba", "crosswise", rng=rng, nonfinite=(position,))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_padding_that_is_not_of_zeros(geometry, mode, rng):
    for layout in ("channels_first", "channels_last"):
        problem = parse(f"conv forward {geometry} pad={mode} layout={layout}")
        for integer in (True, False):
            check(problem, "numba", "crosswise", rng=rng, integer=integer)
    check(parse(f"conv forward {geometry} pad={mode} bias=y act=relu"), "numba", "crosswise", rng=rng, nonfinite=(0,))


@pytest.mark.parametrize("options", [{"pad_mode": "zeros"}, {"pad_mode": "reflect"}, {"pad_mode": "circular", "flip": True}])
def test_strict_results_have_the_bits_of_direct(options, rng):
    x, w = rng.standard_normal((2, 37, 9, 7), dtype="float32"), rng.standard_normal((37, 1, 3, 3), dtype="float32")
    options = {"padding": 1, "groups": 37, "accuracy": "strict", "backend": "numba", **options}
    found, expected = (nc.conv(x, w, algorithm=name, **options) for name in ("crosswise", "direct"))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_threads_change_no_bit(layout, rng):
    problem = parse(f"conv forward f32 n9 c80 k80 g80 in13x14 w5x5 s1 p2 d1 layout={layout}")
    x, w = rng.standard_normal((9, 80, 13, 14), dtype="float32"), rng.standard_normal((80, 1, 5, 5), dtype="float32")
    x = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if layout == "channels_last" else x
    assert implementation().supports(problem)
    options = {"padding": 2, "groups": 80, "layout": layout, "backend": "numba", "algorithm": "crosswise"}
    found = []
    for threads in (1, 2, 3):
        with nc.using(threads=threads):
            found.append(nc.conv(x, w, **options).tobytes())
    assert found == found[:1] * 3


def test_planes_with_gaps_and_bound_weights(rng):
    x = rng.integers(-4, 5, (2, 74, 9, 9)).astype("float32")
    w = rng.integers(-4, 5, (37, 1, 3, 3)).astype("float32")
    options = {"padding": 1, "groups": 37, "backend": "numba"}
    plan = nc.plan("conv", (2, 37, 9, 7), w.shape, "float32", algorithm="crosswise", **options)
    bound = plan.bind(w)
    for part in (x[:, ::2, :, 1:8], x[:, ::2, :, :7].copy(), np.ascontiguousarray(x[:, :, :, :7])[:, 1::2]):
        expected = nc.conv(part, w, algorithm="direct", **options)
        np.testing.assert_array_equal(plan(part, w), expected)
        np.testing.assert_array_equal(bound(part), expected)


def test_it_is_chosen_where_rows_would_fill_few_lanes():
    options = {"dtype": "float32", "padding": 1, "groups": 960, "backend": "numba"}
    assert nc.plan("conv", (4, 960, 3, 3), (960, 1, 3, 3), **options).algorithm == "crosswise"
    assert nc.plan("conv", (4, 960, 3, 3), (960, 1, 3, 3), pad_mode="reflect", **options).algorithm == "crosswise"
    assert nc.plan("conv", (4, 960, 32, 32), (960, 1, 3, 3), **options).algorithm != "crosswise"
    assert (
        nc.plan("conv", (4, 7, 7, 960), (960, 1, 7, 7), layout="channels_last", **options | {"padding": 3}).algorithm == "crosswise"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"forward {SMALL.replace('f32', 'f16')} layout=channels_last", "sums of float16"),
        (f"forward {SMALL} act=silu layout=channels_last", "overlap"),
        ("forward f32 n1 c40 k80 g40 in7x7 w3x3 s1 p1 d1", "80"),
        ("forward f32 n1 c3 k3 g3 in7x7 w3x3 s1 p1 d1", "there are 3"),
        ("forward f32 n1 c64 k64 g64 in30x30 w13x13 s1 p6 d1", "row of 11 taps"),
        ("forward f32 n1 c64 k64 g64 in200x200 w3x3 s1 p1 d1", "at a time"),
        ("input_grad f32 n1 c64 k64 g64 in9x9 w3x3 s2 p1 d1", "lie apart"),
    ],
)
def test_refusals(text, reason):
    verdict = implementation().supports(parse(f"conv {text}"))
    assert not verdict
    assert reason in verdict.reason
