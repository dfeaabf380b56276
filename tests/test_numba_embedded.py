"""`float_products` and `real_products` of the numba backend: small integers and complex numbers by way of real floats."""

from __future__ import annotations

import numpy as np
import pytest

import numconv as nc
from numconv.plugin import parse
from numconv.registry import default_registry
from numconv.testing import check

GEOMETRIES = [
    "n3 c6 k4 g2 in9x10 w3x3 s1 p1 d1",
    "n2 c4 k6 g1 in11x9 w3x3 s2 p1 d1 flip=1 layout=channels_last",
    "n2 c4 k4 g4 in8x9 w3x2 s2x1 p1 d1",
]


SIDES = {"forward": "y", "input_grad": "x", "weight_grad": "y"}


@pytest.mark.parametrize("op", SIDES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_complex_numbers(op, geometry, rng):
    for integer in (True, False):
        check(parse(f"conv {op} c64 {geometry} bias={SIDES[op]}"), "numba", "real_products", rng=rng, integer=integer)


@pytest.mark.parametrize("op", ["forward", "input_grad"])
@pytest.mark.parametrize("dtype", ["i8", "u8", "u16"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_integers_are_exact_and_wrap(op, dtype, geometry, rng):
    problem = parse(f"conv {op} {dtype} {geometry} bias={SIDES[op]} act=relu")
    check(problem, "numba", "float_products", rng=rng, integer=False)


@pytest.mark.parametrize("op", ["forward", "input_grad"])
@pytest.mark.parametrize("dtype", ["i8", "u8"])
def test_integers_of_8_bits_are_exact_in_pairs(op, dtype, rng):
    """Up to the largest sums that float32 holds: of bytes without a sign those of 256 channels."""
    for channels in ("c256 k24", "c258 k24") if op == "forward" else ("c24 k256", "c24 k258"):
        problem = parse(f"conv {op} {dtype} n1 {channels} g1 in7x9 w1x1 s1 p0 d1 out=i32")
        check(problem, "numba", "float_products", rng=rng, integer=False)
    largest = 255 if dtype == "u8" else -128
    x, w = (np.full(shape, largest, {"i8": "int8", "u8": "uint8"}[dtype]) for shape in ((1, 256, 3, 5), (4, 256, 1, 1)))
    y = nc.conv(x, w, dtype="int32", backend="numba", algorithm="float_products")
    np.testing.assert_array_equal(y, np.full(y.shape, 256 * largest**2))


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("bits", [5, 20, 31])
def test_large_integers_are_exact_and_wrap_whatever_their_values(dtype, bits, rng):
    """By single precision, by double precision, and where no float holds the sums."""
    x, w = (rng.integers(0, 2**bits, shape).astype(dtype) for shape in ((2, 6, 9, 10), (4, 3, 3, 3)))
    if dtype.startswith("int"):
        x[0], w[:, 0] = -x[0], -w[:, 0]
    options = {"padding": 1, "groups": 2, "activation": "relu"}
    found = nc.conv(x, w, w[:, 0, 0, 0], backend="numba", algorithm="float_products", **options)
    np.testing.assert_array_equal(found, nc.conv(x, w, w[:, 0, 0, 0], backend="reference", **options))


def test_wider_results_of_integers(rng):
    check(parse("conv forward u8 n2 c5 k3 g1 in9x9 w3x3 s1 p1 d1 out=u32"), "numba", "float_products", rng=rng, integer=False)


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_padding_modes(mode, rng):
    check(parse(f"conv forward c64 {GEOMETRIES[0]} pad={mode}"), "numba", "real_products", rng=rng)
    check(parse(f"conv forward i16 {GEOMETRIES[0]} pad={mode}"), "numba", "float_products", rng=rng, integer=False)


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
def test_not_finite_values_reach_the_right_results(op, position, rng):
    check(parse(f"conv {op} c64 {GEOMETRIES[0]}"), "numba", "real_products", rng=rng, nonfinite=(position,))


@pytest.mark.parametrize("dtype", ["complex64", "int8"])
def test_images_are_converted_some_at_a_time(dtype, rng, monkeypatch):
    """The same results, also for the last images, of which there are fewer."""
    x, w = rng.integers(-9, 9, (5, 3, 12, 12)).astype(dtype), rng.integers(-9, 9, (4, 3, 3, 3)).astype(dtype)
    expected = nc.conv(x, w, backend="reference")
    grad = nc.conv_weight_grad(expected, x, w.shape, backend="reference")
    monkeypatch.setattr("numconv_numba.embedded.IMAGE_BYTES", 9000)
    name = "real_products" if dtype == "complex64" else "float_products"
    with nc.using(max_workspace=2**27):  # plans of other tests are of another workspace
        np.testing.assert_array_equal(nc.conv(x, w, backend="numba", algorithm=name), expected)
        if dtype == "complex64":
            found = nc.conv_weight_grad(expected, x, w.shape, backend="numba", algorithm=name)
            np.testing.assert_array_equal(found, grad)


def test_refusals_say_what_is_too_much():
    reasons = {}
    for text in (
        "conv forward i16 n1 c9000000 k1 g1 in3 w3 s1 p0 d1",
        "conv forward u8 n1 c1 k1 g1 in9000x9000 w3x3 s1 p0 d1",
        "conv forward f32 n1 c1 k1 g1 in9 w3 s1 p0 d1",
    ):
        found = default_registry().candidates(parse(text), "cpu", "numba", None)
        reasons[text] = " ".join(
            each.verdict.reason for each in found if each.implementation.name in ("float_products", "real_products")
        )
    assert "27000000 products of int16" in reasons["conv forward i16 n1 c9000000 k1 g1 in3 w3 s1 p0 d1"]
    assert "it converts at most 67108864" in reasons["conv forward u8 n1 c1 k1 g1 in9000x9000 w3x3 s1 p0 d1"]
    assert "it takes and gives complex64" in reasons["conv forward f32 n1 c1 k1 g1 in9 w3 s1 p0 d1"]
