"""Fully connected layers and kernels of one tap as inner products."""

from __future__ import annotations

import numpy as np
import pytest
from numconv_numba.dense import inner_product

import numconv as nc
from numconv.plugin import parse
from numconv.registry import default_registry
from numconv.testing import check

ROWS = [
    "f32 n1 c37 k29 g1 in1x1 w1x1 s1 p0 d1",
    "f32 n9 c2100 k50 g1 in1 w1 s1 p0 d1",
    "f64 n3 c7 k10 g1 in3x4 w3x4 s1 p0 d1",
    "f32 n2 c33 k31 g1 in7x7 w1x1 s1 p0 d1",
    "f32 n2 c20 k14 g2 in9x11 w1x1 s2 p0 d1",
    "f64 n3 c16 k8 g4 in5x6x7 w1x1x1 s1x2x1 p0 d1",
    "f32 n0 c4 k3 g1 in2x2 w1x1 s1 p0 d1",
    "f32 n2 c37 k29 g1 in5x6 w3x3 s2 p1 d1",
    "f64 n3 c20 k8 g2 in7x4 w3x2 s1x2 p1x0 d2x1",
    "f32 n2 c40 k7 g1 in9 w5 s1 p4 d1",
    "f32 n1 c3 k50 g1 in40x41 w20x20 s20 p0 d1",
    "f32 n1 c4 k6 g1 in4x5x6 w3x2x3 s1 p1 d1",
    "f32 n2 c4 k6 g1 in6x6 w3x3 s1 p1 d2",
    "f32 n1 c6 k4 g1 in5x5 w1x1 s1 p1 d1",
]


@pytest.mark.parametrize("integer", [True, False])
@pytest.mark.parametrize("text", ROWS)
def test_inner_products_keep_the_contract(text, integer, rng):
    problem = parse(f"conv forward {text}").replace(bias="y", activation="relu")
    check(problem, "numba", "inner_product", rng=rng, integer=integer)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_any_number_of_columns_is_cut_into_tiles(dtype, rng):
    for count in range(1, 16):
        problem = parse(f"conv forward {dtype} n{count} c37 k13 g1 in1x1 w1x1 s1 p0 d1")
        check(problem, "numba", "inner_product", rng=rng, integer=count % 2 == 1)


def test_rows_together_fit_the_second_level_cache(monkeypatch, rng):
    problem = parse("conv forward f32 n1 c96 k101 g1 in9x8 w3x3 s1 p1 d1")
    for size in (1024 * 1024, 512 * 1024, 64 * 1024):
        small = inner_product.host()._replace(second_level=size)
        monkeypatch.setattr(inner_product, "host", lambda small=small: small)
        inner_product._layout.cache_clear()
        together, chunk = inner_product._rows_of(problem), inner_product._layout(problem).chunk
        assert together in (inner_product.LEAST_ROWS, inner_product.ROWS) or together * chunk * 4 <= size
        check(problem, "numba", "inner_product", rng=rng, integer=True)
    inner_product._layout.cache_clear()
    assert together == inner_product.LEAST_ROWS


@pytest.mark.parametrize("change", [{"layout": "channels_last"}, {"flip": True}, {"pad_mode": "reflect"}], ids=str)
def test_windows_in_any_order_keep_the_contract(change, rng):
    problem = parse("conv forward f32 n2 c18 k7 g1 in5x6 w3x3 s2x1 p1 d1").replace(**change)
    check(problem, "numba", "inner_product", rng=rng, integer=True)


@pytest.mark.parametrize("position", [0, 1], ids=["x", "w"])
def test_padding_zeros_meet_no_infinite_weight(position, rng):
    for text in ("f32 n3 c6 k30 g1 in5x6 w3x3 s1 p1 d1", "f32 n5 c4 k6 g2 in4 w1 s1 p1 d1"):
        check(parse(f"conv forward {text}"), "numba", "inner_product", rng=rng, nonfinite=(position,))


CONNECTED = [
    "f32 n1 c37 k29 g1 in1x1 w1x1 s1 p0 d1",
    "f32 n9 c600 k50 g1 in1 w1 s1 p0 d1",
    "f64 n3 c14 k10 g2 in3x4 w3x4 s1 p0 d1",
    "f32 n0 c4 k3 g1 in1x1 w1x1 s1 p0 d1",
]


@pytest.mark.parametrize("integer", [True, False])
@pytest.mark.parametrize("op", ["input_grad", "weight_grad"])
@pytest.mark.parametrize("text", CONNECTED)
def test_gradients_of_connected_layers_keep_the_contract(text, op, integer, rng):
    problem = parse(f"conv {op} {text}")
    check(problem.replace(bias="y") if op == "weight_grad" else problem, "numba", "inner_product", rng=rng, integer=integer)


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("text", CONNECTED)
def test_transposed_connected_layers_keep_the_contract(text, activation, rng):
    problem = parse(f"conv input_grad {text}").replace(bias="x", activation=activation)
    check(problem, "numba", "inner_product", rng=rng, integer=activation != "gelu")
    check(problem.replace(bias=""), "numba", "inner_product", rng=rng)


def test_first_layers_of_generators_are_combinations_of_rows():
    """A vector of noise for each image, and kernels as large as what comes of it."""
    for images in (1, 64):
        plan = nc.plan("conv_transpose", (images, 100, 1, 1), (100, 512, 4, 4), np.float32, bias=True, activation="relu")
        assert plan.algorithm == "inner_product"


def test_gradients_of_connected_layers_are_strict_for_any_number_of_threads(rng):
    x, w = rng.standard_normal((20, 1500, 1, 1), dtype="float32"), rng.standard_normal((300, 1500, 1, 1), dtype="float32")
    y = rng.standard_normal((20, 300, 1, 1), dtype="float32")
    found = set()
    for algorithm, threads in (("direct", 1), ("inner_product", 1), ("inner_product", 2), ("inner_product", 3)):
        with nc.using(threads=threads, backend="numba", algorithm=algorithm, accuracy="strict"):
            grads = nc.conv_backward(y, x, w)
            found.add(grads.x.tobytes() + grads.w.tobytes() + grads.bias.tobytes())
    assert len(found) == 1


@pytest.mark.parametrize(("images", "size", "taps"), [(3, 7, 1), (1, 7, 3), (1, 4, 3), (1, 3, 1)])
def test_threads_change_no_bit(images, size, taps, rng):
    x = rng.standard_normal((images, 300, size, size), dtype="float32")
    w = rng.standard_normal((500, 300, taps, taps), dtype="float32")
    found = set()
    for threads in (1, 2, 3):
        with nc.using(threads=threads, backend="numba", algorithm="inner_product"):
            found.add(nc.conv(x, w, padding=taps // 2).tobytes())
    assert len(found) == 1


def test_inner_products_say_why_not():
    implementation = next(each for each in default_registry().backend("numba").implementations() if each.name == "inner_product")
    verdict = implementation.supports(parse("conv forward i32 n1 c4 k4 g1 in5x5 w1x1 s1 p0 d1"))
    assert not verdict
    assert "float32 or float64" in verdict.reason


def test_fully_connected_layers_are_inner_products_except_in_strict_order():
    shapes = (1, 2048, 1, 1), (1000, 2048, 1, 1)
    assert nc.explain("conv", *shapes, backend="numba").chosen.algorithm == "inner_product"
    assert nc.explain("conv", *shapes, backend="numba", accuracy="strict").chosen.algorithm != "inner_product"


def test_few_pixels_with_many_weights_are_inner_products():
    for size, taps in ((2, 3), (4, 3), (3, 2)):
        shapes = (1, 512, size, size), (512, 512, taps, taps)
        assert nc.explain("conv", *shapes, padding=1, backend="numba").chosen.algorithm == "inner_product"


def test_sums_are_added_across_narrower_vectors(check_on):
    texts = [text for text in ROWS if "c33" in text or "c37" in text or "c2100" in text]
    check_on("haswell", [("inner_product", f"conv forward {text}") for text in texts])


@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
def test_large_arrays_in_another_order_are_left_to_others(op, rng, monkeypatch):
    """They are not copied, so that weights of any size fit the working memory."""
    found = default_registry().backend("numba").implementations()
    implementation = next(i for i in found if i.name == "inner_product" and op in i.ops)
    assert implementation.workspace(parse(f"conv {op} f32 n1 c512 k4096 g1 in7x7 w7x7 s1 p0 d1")) < 2**26
    monkeypatch.setattr(inner_product, "COPIED_BYTES", 0)
    x, w, y = (rng.integers(-3, 4, shape).astype("f4") for shape in ((4, 6, 3, 5), (8, 6, 3, 5), (4, 8, 1, 1)))
    x, w = (np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) for a in (x, w))

    def called(backend, **algorithm):
        with nc.using(backend=backend):
            if op == "forward":
                return nc.conv(x, w, **algorithm)
            if op == "input_grad":
                return nc.conv_input_grad(y, w, x.shape, **algorithm)
            return nc.conv_weight_grad(y, x, w.shape, **algorithm)

    np.testing.assert_array_equal(called("numba", algorithm="inner_product"), called("reference"))
