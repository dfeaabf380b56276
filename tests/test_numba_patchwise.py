"""`patchwise` of the numba backend: input gradients whose windows cover x without overlap."""

from __future__ import annotations

import numpy as np
import pytest
from numconv_numba.strided import patchwise

import numconv as nc
from numconv.plugin import parse
from numconv.testing import check

PATCHES = [
    "f32 n2 c5 k9 g1 in18x30 w2x2 s2 p0 d1 bias=x",  # the last piece of a line overlaps the one before
    "f32 n2 c90 k9 g1 in18x28 w2x2 s2 p0 d1 bias=x",  # pieces are shorter, for none does
    "f64 n2 c90 k9 g1 in14x14 w2x2 s2 p0 d1",  # single pixels
    "f32 n3 c5 k9 g1 in2x2 w2x2 s2 p0 d1",
    "f32 n3 c3 k7 g1 in45 w2 s2 p0 d1 flip=1 bias=x act=relu",  # the last tile overlaps, and a position no window reads
    "f64 n2 c3 k5 g1 in19x27 w2x2 s2 p0 d1 bias=x act=silu",
    "f32 n1 c4 k6 g2 in32x32 w4x4 s4 p0 d1 bias=x",
    "f32 n1 c3 k10 g1 in9x10x26 w2x2x2 s2 p0 d1 bias=x",
    "f64 n1 c3 k10 g1 in24x64 w8x8 s8 p0 d1",  # pixels of a row of patches lie apart
    "f32 n1 c2 k9 g1 in14x70 w14x14 s14 p0 d1 bias=x",
    "f32 n2 c1 k4 g1 in64 w2 s2 p0 d1",
    "f32 n1 c6 k3 g3 in7x18 w1x2 s1x2 p0 d1",
]


@pytest.mark.parametrize("panel_bytes", [1, 1 << 20])
@pytest.mark.parametrize("geometry", PATCHES)
def test_results_in_their_places(geometry, panel_bytes, rng, monkeypatch):
    """Integers exactly, other numbers within the bound, and what is not finite where it belongs; with sums parted by panels."""
    monkeypatch.setattr(patchwise, "PANEL_BYTES", panel_bytes)
    patchwise._layout.cache_clear()
    problem = parse(f"conv input_grad {geometry}")
    check(problem, "numba", "patchwise", rng=rng)
    check(problem, "numba", "patchwise", rng=rng, integer=False)
    if problem.activation is None:
        for watched in (0, 1):
            check(problem, "numba", "patchwise", rng=rng, nonfinite=(watched,))
    patchwise._layout.cache_clear()


def test_strict_bits_are_those_of_subpixel(rng):
    """One chain of multiply-adds an element, in the same order."""
    x, w, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 70, 9, 13), (70, 6, 2, 2), 6))
    results = [
        nc.conv_transpose(x, w, bias, stride=2, accuracy="strict", backend="numba", algorithm=name)
        for name in ("patchwise", "subpixel")
    ]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("apart", ["x", "out"])
def test_arrays_whose_neighbours_lie_apart(apart, rng):
    x, w = rng.standard_normal((2, 6, 5, 16)).astype(np.float32), rng.standard_normal((6, 3, 2, 2)).astype(np.float32)
    expected = nc.conv_transpose(x, w, stride=2, backend="reference")
    out = np.empty((*expected.shape[:-1], 2 * expected.shape[-1]), np.float32)[..., ::2] if apart == "out" else None
    given = np.repeat(x, 2, axis=-1)[..., ::2] if apart == "x" else x
    plan = nc.plan("conv_transpose", x.shape, w.shape, np.float32, stride=2, backend="numba", algorithm="patchwise")
    np.testing.assert_allclose(plan(given, w, out=out), expected, atol=1e-5)
    np.testing.assert_allclose(plan.bind(w)(given, out=out), expected, atol=1e-5)


@pytest.mark.parametrize("processor", ["haswell", "x86-64-v2"])
def test_narrower_processors(check_on, processor):
    """The same kernels for AVX2 and for 128 bits."""
    jobs = [("patchwise", f"conv input_grad {geometry}") for geometry in PATCHES[:3]]
    check_on(processor, jobs)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("f16 n1 c2 k3 g1 in30 w2 s2 p0 d1", "float16 becomes float16"),
        ("f32 n1 c2 k3 g1 in30 w2 s2 p0 d1 layout=channels_last", "layout channels_last"),
        ("f32 n1 c2 k3 g1 in30 w3 s2 p0 d1", "those of (3,) begin every (2,)"),
        ("f32 n1 c2 k3 g1 in30 w1 s1 p0 d1", "those of (1,) begin every (1,)"),
        ("f32 n1 c2 k3 g1 in30 w2 s2 p1 d1", "padding is ((1, 1),)"),
        ("f32 n1 c2 k3 g1 in31 w2 s2 p0:1 d1", "padding is ((0, 1),)"),
        ("f32 n1 c2 k3 g1 in61x30 w2x2 s2 p0 d3x1", "dilation (3, 1)"),
        ("f32 n1 c2 k3 g1 in30x30 w2x3 s2x3 p0 d1", "rows of windows have 3"),
    ],
)
def test_refusals(text, reason):
    verdict = patchwise.Patchwise().supports(parse(f"conv input_grad {text}"))
    assert not verdict
    assert reason in verdict.reason


def test_panels_are_about_equal():
    """And cover all lines of all images."""
    for n, size in ((1, 7), (2, 9), (1, 28), (3, 4)):
        problem = parse(f"conv input_grad f32 n{n} c8 k3 g1 in{2 * size}x{2 * size} w2x2 s2 p0 d1")
        layout = patchwise._layout(problem)
        parts = [layout.vectors * panel // layout.panels for panel in range(layout.panels + 1)]
        counts = np.diff(parts)
        assert parts[-1] == layout.vectors
        assert counts.max() <= layout.tile.vectors
        assert np.ptp(counts) <= 1


@pytest.mark.parametrize(
    ("images", "channels", "size"),
    [(1, (256, 128), (28, 28)), (8, (128, 64), (56, 56)), (1, (64, 32), (16, 16, 16)), (2, (128, 64), (500,))],
)
def test_chosen_for_twofold_upsampling(images, channels, size):
    shapes = (images, channels[0], *size), (*channels, *[2] * len(size))
    assert nc.plan("conv_transpose", *shapes, np.float32, stride=2, bias=True).algorithm == "patchwise"
