"""`polyphase` of the numba backend: convolutions with a dilation, phase by phase."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numconv_numba.dense.blocked import Blocked
from numconv_numba.dense.polyphase import Polyphase, _plan

import numconv as nc
from numconv.plugin import parse
from numconv.testing import check

DILATED = [
    "f32 n2 c5 k19 g1 in33x31 w3x3 s1 p12 d12",  # borders of which two taps see padding only
    "f32 n1 c6 k10 g2 in26x9 w3x2 s1 p5:3x1 d4x3 flip=1",  # phases that differ, groups
    "f64 n2 c3 k5 g1 in40 w3 s1 p9 d9",  # of the last dimension
    "f32 n1 c4 k6 g1 in5x17 w4x3 s1 p9x20 d3x11",  # outputs that no tap sees, phases without an x
    "f64 n1 c3 k4 g1 in9x8x21 w2x3x2 s1x1x2 p1x4x0 d5x4x3",
    "f32 n2 c9 k7 g1 in20x15 w3x3 s1 p6 d6 layout=channels_last",
]


@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("geometry", DILATED)
def test_every_phase_and_border(op, geometry, rng):
    """Integers exactly, other numbers within the bound, and what is not finite where it belongs."""
    problem = parse(f"conv {op} {geometry}")
    check(problem, "numba", "polyphase", rng=rng)
    check(problem, "numba", "polyphase", rng=rng, integer=False)
    check(problem, "numba", "polyphase", rng=rng, nonfinite=(0,))
    check(problem, "numba", "polyphase", rng=rng, nonfinite=(1,))


@pytest.mark.parametrize(
    "text",
    [
        "forward f32 n2 c4 k8 g1 in5x17 w4x3 s1 p9x20 d3x11 bias=y act=silu",
        "forward f16 n1 c8 k5 g1 in30x30 w3x3 s1 p8 d8 bias=y act=relu",
        "input_grad f32 n1 c8 k5 g1 in30x30 w3x3 s1 p8 d8 bias=x",
        "weight_grad f32 n2 c4 k8 g1 in5x17 w4x3 s1 p9x20 d3x11 bias=y",
    ],
)
def test_biases_reach_what_no_tap_sees(text, rng):
    check(parse(f"conv {text}"), "numba", "polyphase", rng=rng)


@pytest.mark.parametrize("geometry", DILATED)
def test_parts_hold_every_output_once(geometry):
    problem = parse(f"conv forward {geometry}")
    seen = np.zeros(problem.y_shape)
    _, parts = _plan(problem)
    for part in parts:
        part.view(seen, problem.dilation, of_x=False)[...] += 1
    assert (seen == 1).all()


def test_borders_leave_out_the_taps_that_meet_no_x():
    """At a dilation of half the size five of nine products go, and no padding is left."""
    problem = parse("conv forward f32 n1 c256 k256 g1 in36x36 w3x3 s1 p18 d18")
    _, parts = _plan(problem)
    assert sum(part.problem.flops for part in parts) * 9 == problem.flops * 4
    assert all(not any(map(any, part.problem.padding)) for part in parts)


def test_strict_sums_have_the_same_order(rng):
    """The bits of `blocked`, of which the parts are made."""
    problem = parse("conv forward f32 n1 c12 k20 g1 in30x31 w3x3 s1 p9 d9 accuracy=strict")
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in problem.input_shapes]
    results = []
    for implementation in (Polyphase(), Blocked()):
        out = np.full(problem.y_shape, np.nan, np.float32)
        implementation.build(problem)((out,), arrays)
        results.append(out)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    ("op", "geometry"),
    [
        *itertools.product(("conv", "conv_input_grad", "conv_weight_grad"), [(256, (33, 33), 18), (256, (3000,), 512)]),
        ("conv_weight_grad", (256, (33, 33), 6)),
    ],
)
def test_chosen_where_windows_span_more_than_the_caches(op, geometry):
    channels, spatial, d = geometry
    shapes = (1, channels, *spatial), (channels, channels, *(3,) * len(spatial))
    assert nc.plan(op, *shapes, np.float32, padding=d, dilation=d).algorithm == "polyphase"


@pytest.mark.parametrize(
    ("geometry", "reason"),
    [
        ("in30x30 w3x3 s1 p1 d1", "phases of a dilation"),
        ("in30x30 w3x1 s2x1 p1x0 d4x1", "phases of a dilation"),
        ("in30x30 w3x3 s1 p4 d4 pad=reflect", "pad_mode reflect"),
        ("in21x21x21x21x21x21 w2x2x2x2x2x2 s1 p1 d3", "at most 128 calls, and here are"),
    ],
)
def test_refusals(geometry, reason):
    verdict = Polyphase().supports(parse(f"conv forward f32 n1 c4 k4 g1 {geometry}"))
    assert not verdict
    assert reason in verdict.reason
