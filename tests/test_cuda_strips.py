"""Strips of results and planes in shared memory: the index maps of the backend `cuda`, and its kernels in the simulator."""

from __future__ import annotations

import importlib.util
import itertools

import numconv_cuda
import pytest

from numconv.plugin import CONV_OPS, parse
from numconv.testing import check

pytestmark = pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="the package numba-cuda is not installed")
simulated = pytest.mark.skipif(not numconv_cuda.simulated(), reason="runs in the simulator: NUMBA_ENABLE_CUDASIM=1")

AXES = list(itertools.product((1, 2, 3, 5), (1, 2, 3), (1, 2), (False, True)))  # window, stride, dilation, flip


def test_division_by_a_multiplication(rng):
    from numconv_cuda.strips.strips import Divisor

    numbers = [0, 1, 2, 2**31 - 2, 2**31 - 1, *map(int, rng.integers(0, 2**31, 200))]
    for divisor in [1, 2, 3, 5, 7, 56, 144, 641, 65535, 65537, 2**30, 2**30 + 1, 2**31 - 1, *map(int, rng.integers(1, 2**31, 50))]:
        number, factor, shift = map(int, Divisor.of(divisor))
        assert number == divisor
        assert factor < 2**32
        for index in [*numbers, divisor - 1, divisor, min(2 * divisor, 2**31 - 1)]:
            assert index * factor >> shift == index // divisor


@pytest.mark.parametrize(("window", "stride", "dilation", "flip"), AXES)
def test_axes_meet_the_taps_of_a_convolution(window, stride, dilation, flip):
    """Both axes have exactly the terms of y[q] += x[q * stride + at(tap) - low] * w[tap], in the order of the taps."""
    from numconv_cuda.strips.strips import forward_axis, gradient_axis

    low, size = 2, 17
    outputs = (size + 2 * low - dilation * (window - 1) - 1) // stride + 1
    places = [(window - 1 - tap if flip else tap) * dilation for tap in range(window)]
    every = {(q, q * stride + at - low, tap) for q in range(outputs) for tap, at in enumerate(places)}

    axis = forward_axis(window, stride, dilation, flip, 4)
    found = {
        (4 * strip + place, strip * axis.advance + source - low, tap)
        for strip in range(-(-outputs // 4)) for place, terms in enumerate(axis.terms) for tap, source in terms
    }  # fmt: skip
    assert {term for term in found if term[0] < outputs} == every

    count = 2 * stride
    axis = gradient_axis(window, stride, dilation, flip, low, count)
    found = {
        (strip * axis.advance + low // stride + axis.first + source, strip * count + place, tap)
        for strip in range(-(-size // count)) for place, terms in enumerate(axis.terms) for tap, source in terms
    }  # fmt: skip
    assert {term for term in found if term[1] < size and 0 <= term[0] < outputs} == {t for t in every if 0 <= t[1] < size}
    for terms in axis.terms:
        assert [tap for tap, _ in terms] == sorted(tap for tap, _ in terms)
        met = [axis.order.index(source) for _, source in terms]
        assert met == sorted(met)


@pytest.mark.parametrize(
    ("used", "lead", "count"), [(range(6), 1, 4), (range(10), 3, 4), ([0, 2, 4, 6], 0, 4), (range(5), 0, 1), ([7], 3, 2)]
)
def test_wide_loads_begin_where_they_are_aligned(used, lead, count):
    from numconv_cuda.strips.strips import Run, loads

    found = loads(list(used), Run(count, lead))
    for first, length in found:
        assert length == 1 or (length == count and (first - lead) % count == 0)
        assert len(set(used) & set(range(first, first + length))) >= min(2, length)
    held = [place for first, length in found for place in range(first, first + length)]
    assert set(used) <= set(held)
    assert len(held) == len(set(held))


@pytest.mark.parametrize(
    ("address", "size", "count", "steps", "run"),
    [
        (0, 4, 4, [56], 4), (8, 4, 4, [56], 2), (4, 4, 4, [56], 1), (0, 4, 4, [14], 2), (0, 8, 4, [56], 2), (0, 2, 4, [56], 4),
        (0, 4, 1, [56], 1),
    ],
)  # fmt: skip
def test_the_widest_load(address, size, count, steps, run):
    from numconv_cuda.strips.strips import longest_run

    assert longest_run(address, size, count, steps) == run


@pytest.mark.parametrize("text", ["f32 n64 c64 k64 g64 in56x56 w5x5 s1 p2 d1", "f32 n4 c2 k2 g2 in512x512 w31x31 s1 p15 d1"])
def test_parts_keep_to_the_workspace(text):
    from numconv_cuda.strips.depthwise import Depthwise

    problem = parse(f"conv weight_grad {text}")
    generous = Depthwise().workspace(problem)
    assert 0 < generous <= problem.max_workspace
    tight = problem.replace(max_workspace=generous // 3)
    assert 0 < Depthwise().workspace(tight) <= tight.max_workspace


def module_of(problem):
    from numconv_cuda.strips import depthwise

    special = depthwise._special(problem)
    return special.__name__.rsplit(".")[-1] if special else None


@simulated
@pytest.mark.parametrize("op", CONV_OPS)
@pytest.mark.parametrize(
    ("text", "module"),
    [
        ("f32 n2 c2 k2 g2 in5x6 w3x3 s1 p1 d1", "stencil"),
        ("f32 n1 c2 k2 g1 in5x4 w2x2 s1 p1 d1 act=relu bias=y", "stencil"),
        ("f32 n1 c2 k2 g2 in7x8 w3x2 s2x3 p1:2x0 d1x2 flip=1", "stencil"),
        ("bf16 n1 c1 k2 g1 in6x6 w3x3 s2 p1 d1", "stencil"),
        ("f64 n1 c1 k1 g1 in3x4x5 w2x3x2 s2x1x2 p1 d1", "stencil"),
        ("f32 n2 c2 k2 g2 in13 w5 s2 p2 d2", "stencil"),
        ("f32 n1 c2 k2 g2 in5x6 w5x3 s1 p3x1 d1", "sliding"),
        ("f64 n2 c1 k2 g1 in4x6 w2x7 s1 p1:0x4 d1 flip=1", "sliding"),
        ("f16 n1 c2 k2 g1 in12 w13 s1 p5 d1", "sliding"),
    ],
)
def test_convolutions_of_few_channels(op, text, module, rng):
    """Exactly, where nothing is finite too, and with the array in every form of memory."""
    problem = parse(f"conv {op} {text}")
    assert module_of(problem) == module
    check(problem, "cuda", "depthwise", rng=rng)
    check(problem, "cuda", "depthwise", rng=rng, integer=False, nonfinite=(0, 1))


@simulated
@pytest.mark.parametrize("op", CONV_OPS)
@pytest.mark.parametrize("text", ["f32 n2 c3 k3 g3 in6x5 w3x3 s2x1 p1 d1", "f32 n1 c2 k2 g1 in5x4 w2x7 s1 p1x3 d1"])
def test_channels_last_and_wide_indices(op, text, rng, monkeypatch):
    from numconv_cuda import geometry

    monkeypatch.setattr(geometry, "_NARROW", 0)
    geometry._geometry.cache_clear()
    check(parse(f"conv {op} {text}").replace(layout="channels_last"), "cuda", "depthwise", rng=rng, nonfinite=(1,))
    geometry._geometry.cache_clear()


@simulated
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(
    "text",
    [
        "pool max_pool f32 n1 c2 in9x10 w3x3 s2 p1 d1 indices=1",
        "pool max_pool f64 n2 c2 in7 w3 s1 p1 d2",
        "pool max_pool_backward f32 n1 c2 in9x10 w3x3 s2 p1 d1",
        "pool max_pool_backward f32 n1 c2 in9x10 w3x2 s3x1 p1x0 d1x2 indices=1",
        "pool avg_pool f32 n1 c2 in9x10 w3x3 s2 p1 d1",
        "pool avg_pool f32 n1 c2 in7x7 w7x7 s1 p0 d1",
        "pool avg_pool_backward f16 n1 c2 in9x10 w3x3 s2 p1 d1 countpad=0",
    ],
)
def test_pooling(text, layout, rng):
    from numconv_cuda.strips import pool_strips

    problem = parse(text).replace(layout=layout)
    assert pool_strips.suits(problem)
    check(problem, "cuda", rng=rng)


@simulated
@pytest.mark.parametrize(
    "text",
    [
        "pool max_pool f32 n1 c2 in5x5x5 w4x2x5 s1x2x1 p1 d1 indices=1",
        "pool max_pool i32 n1 c2 in7x6 w7x6 s1 p0 d1 indices=1",
        "pool avg_pool c64 n1 c2 in7x6 w6x6 s1 p1 d1",
        "pool max_pool_backward f32 n1 c1 in3x5x5 w3x2x3 s1x2x1 p1x0x1 d1x2x1",
        "pool avg_pool_backward c64 n1 c2 in7x6 w6x6 s1 p1 d1",
    ],
)
def test_pooling_without_strips(text, rng):
    """Large windows by a block each; gradients from the windows that hold an element."""
    problem = parse(text)
    check(problem, "cuda", rng=rng)
    if problem.dtype == "float32":
        check(problem, "cuda", rng=rng, integer=False, nonfinite=(0,))


@simulated
@pytest.mark.parametrize(
    "text",
    [
        "window pad f32 n2 c2 in5x8 w1x1 s1 p1x0:3 d1",
        "window pad i64 n1 c2 in5 w1 s1 p2 d1",
        "window pad_backward f64 n2 c2 in5x8 w1x1 s1 p1x0:3 d1",
        "window unfold c64 n1 c2 in6x7 w2x3 s2x1 p1 d1x2",
        "window fold f32 n1 c2 in6x7 w2x3 s2x1 p1 d1x2",
    ],
)
def test_moves(text, rng):
    from numconv_cuda.strips import window_strips

    problem = parse(text)
    assert window_strips.suits(problem)
    check(problem, "cuda", rng=rng)
