"""`col2im` of the numba backend: input gradients as columns that are added up."""

from __future__ import annotations

import numpy as np
import pytest
from numconv_numba.microkernels.emit import host
from numconv_numba.strided import col2im

import numconv as nc
from numconv.plugin import parse
from numconv.testing import check

STRIDED = [
    "f32 n3 c2 k9 g1 in61 w16 s8 p4 d1",
    "f64 n2 c3 k5 g1 in23x19 w7x5 s3x2 p2:0x1 d1 flip=1",
    "f32 n1 c4 k6 g2 in17x30 w5x4 s2x3 p3 d2x1 bias=x act=silu",
    "f32 n2 c1 k4 g1 in9x8x14 w4x2x3 s3x1x2 p1 d1 bias=x layout=channels_last",
    "f32 n1 c1 k8 g1 in2x3x4 w1x1x2 s6x2x1 p7:2x3:0x4:5 d1",  # windows that read nothing, and nothing else
    "f32 n2 c3 k4 g1 in40 w3 s8 p0 d1",  # positions that no window reads
]


@pytest.mark.parametrize("column_bytes", [1, 2000, 1 << 20])
@pytest.mark.parametrize("geometry", STRIDED)
def test_columns_some_windows_at_a_time(geometry, column_bytes, rng, monkeypatch):
    """Integers exactly, other numbers within the bound, and what is not finite where it belongs."""
    monkeypatch.setattr(col2im, "COLUMN_BYTES", column_bytes)
    problem = parse(f"conv input_grad {geometry}")
    check(problem, "numba", "col2im", rng=rng)
    check(problem, "numba", "col2im", rng=rng, integer=False)
    if problem.activation is None:
        for watched in (0, 1):
            check(problem, "numba", "col2im", rng=rng, nonfinite=(watched,))


def test_pieces_cover_images_and_windows_once():
    problem = parse("conv input_grad f32 n5 c1 k402 g1 in64000 w400 s160 p200 d1")
    seen = np.zeros((problem.n, *problem.output))
    for piece in col2im._pieces(problem):
        seen[piece.images, piece.windows] += 1
        assert np.prod(piece.product.y_shape) * 4 <= col2im.COLUMN_BYTES
    assert (seen == 1).all()


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "stride"),
    [
        ((1, 1, 32000), (1026, 1, 1024), 256),
        ((4, 1, 16000), (512, 1, 16), 8),
        ((1, 1, 160000), (201, 1, 400), 160),  # ten seconds: working memory does not grow with their length
    ],
)
def test_chosen_for_decoders_of_sound(x_shape, w_shape, stride):
    assert nc.plan("conv_input_grad", x_shape, w_shape, np.float32, stride=stride).algorithm == "col2im"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("f16 n1 c2 k3 g1 in30 w8 s4 p0 d1", "rounded"),
        ("f32 n1 c2 k3 g1 in30 w8 s1 p0 d1", "stride 1"),
        ("f32 n1 c2 k3 g1 in30 w8 s4 p3 d1 pad=reflect", "pad_mode reflect"),
        ("f32 n1 c64 k3 g1 in3000x3000 w16x16 s4 p0 d1", "bytes, and it computes at most"),
        ("f32 n1 c2 k3 g1 in60 w8 s5 p0 d2", "dilation 2 along the rows"),
    ],
)
def test_refusals(text, reason):
    verdict = col2im.Col2im().supports(parse(f"conv input_grad {text}"))
    assert not verdict
    assert reason in verdict.reason


@pytest.mark.skipif(host().width >= 64, reason="measured with AVX2")
def test_windows_that_lie_apart_are_left_to_their_phases():
    """Their columns would only be moved, on their way out of the caches and back."""
    for images, size in ((1, 56), (4, 57)):
        shapes = (images, 128, size, size), (128, 64, 2, 2)
        plan = nc.plan("conv_transpose", *shapes, np.float32, stride=2, padding=1, bias=True)
        assert plan.algorithm == "subpixel"
