"""What each option means, against numbers by hand, np.pad and np.convolve."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import numconv as nc


@pytest.fixture(autouse=True)
def only(backend):
    with nc.using(backend=backend):
        yield


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-4, 5, shape).astype(np.float64)


def conv1d(x: list[float], w: list[float], **options: object) -> list[float]:
    """A convolution with one channel in and out."""
    return nc.conv(np.array([[x]], float), np.array([[w]], float), **options)[0, 0].tolist()


# --- the definition


def test_cross_correlation_and_convolution():
    x, w = [1, 2, 4, 8], [1, 10]
    assert conv1d(x, w) == [21, 42, 84]
    assert conv1d(x, w, flip=True) == [12, 24, 48]


@pytest.mark.parametrize(("mode", "padding"), [("full", "full"), ("valid", "valid"), ("same", ((1, 1),))])
def test_flip_is_numpys_convolution(mode, padding):
    x, w = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0], [2.0, 7.0, 1.0]
    assert conv1d(x, w, flip=True, padding=padding) == np.convolve(x, w, mode).tolist()
    assert conv1d(x, w, padding=padding) == np.correlate(x, w, mode).tolist()


def test_the_definition_and_its_kernel_gradient():
    """h(t) = sum over tau of x(t - tau) k(tau), and dL/dk(tau) = sum over all t of dL/dh(t) x(t - tau)."""
    x, k, g = [3, 1, 4, 1, 5], [2, 7, 1], [1, -1, 2, 0, 3, 1, -2]
    reach = range(len(k))
    h = [sum(x[t - tau] * k[tau] for tau in reach if 0 <= t - tau < len(x)) for t in range(7)]
    slope = [sum(g[t] * x[t - tau] for t in range(7) if 0 <= t - tau < len(x)) for tau in reach]
    assert conv1d(x, k, flip=True, padding="full") == h
    grad = nc.conv_weight_grad(np.array([[g]], float), np.array([[x]], float), (1, 1, 3), flip=True, padding="full")
    assert grad.ravel().tolist() == slope


def test_flip_reverses_every_spatial_dimension(rng):
    x, w = integers(rng, 2, 4, 7, 6), integers(rng, 3, 4, 3, 2)
    np.testing.assert_array_equal(nc.conv(x, w, flip=True), nc.conv(x, w[:, :, ::-1, ::-1]))


def test_worked_example():
    """A volume of 5x5x3, padding 1, stride 2, two filters of 3x3x3 with biases: 3x3x2 outputs."""
    rows = np.arange(5.0)
    x = np.stack([np.add.outer(rows, rows), np.ones((5, 5)), np.subtract.outer(rows, rows)])
    w = np.zeros((2, 3, 3, 3))
    w[0, 0], w[0, 1], w[1, 2, 1, 1] = 1, -1, 1
    y = nc.conv(x, w, np.array([1.0, 0.0]), stride=2, padding=1)
    assert y.shape == (2, 3, 3)
    # Filter 0 sums i + j - 1 over what lies inside, plus its bias of 1; the fields are rows and columns {0, 1}, {1, 2, 3}, {3, 4}.
    assert y[0].tolist() == [[1, 10, 13], [10, 28, 28], [13, 28, 25]]
    assert y[1].tolist() == [[0, -2, -4], [2, 0, -2], [4, 2, 0]]


@pytest.mark.parametrize("ndim", [1, 2, 3, 4, 5])
def test_any_number_of_dimensions(rng, ndim):
    """A kernel with a single one shifts x."""
    x = integers(rng, 2, 1, *range(3, 3 + ndim))
    for tap in itertools.product((0, 1), repeat=ndim):
        w = np.zeros((1, 1, *(2,) * ndim))
        w[0, 0, *tap] = 1
        shifted = x[:, :, *(slice(t, t + size - 1) for t, size in zip(tap, x.shape[2:], strict=True))]
        np.testing.assert_array_equal(nc.conv(x, w), shifted)
        np.testing.assert_array_equal(nc.conv_input_grad(shifted, w, x.shape), np.where(seen(x, tap), x, 0))


def seen(x: np.ndarray, tap: tuple[int, ...]) -> np.ndarray:
    """Which elements a kernel of two taps a dimension with a single one at `tap` reads."""
    mask = np.ones(x.shape, bool)
    for axis, t in enumerate(tap, 2):
        position = np.arange(x.shape[axis]).reshape(-1, *[1] * (x.ndim - 1 - axis))
        mask &= position > 0 if t else position < x.shape[axis] - 1
    return mask


# --- stride, dilation, groups, bias


def test_stride_and_dilation():
    x, w = list(range(1, 9)), [1, 10, 100]
    assert conv1d(x, w, stride=2) == [321, 543, 765]
    assert conv1d(x, w, dilation=2) == [531, 642, 753, 864]
    assert conv1d(x, w, stride=3, dilation=2) == [531, 864]


@pytest.mark.parametrize("padding", [0, ((1, 2), (0, 4))])
def test_a_stride_far_beyond_the_input_has_one_output(rng, padding):
    """And takes no longer to find out, however long it is."""
    x, w, grad = integers(rng, 2, 3, 7, 6), integers(rng, 4, 3, 3, 2), integers(rng, 2, 4, 1, 1)
    y = nc.conv(x, w, padding=padding)[:, :, :1, :1]
    far = {"stride": (2**40, 2**48), "padding": padding}
    np.testing.assert_array_equal(nc.conv(x, w, **far), y)
    near = nc.conv_backward(grad, x, w, stride=12, padding=padding)
    for found, expected in zip(nc.conv_backward(grad, x, w, **far), near, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert (
        nc.plan("conv", x.shape, w.shape, **far).problem.stride
        == nc.plan("conv", x.shape, w.shape, **far | {"stride": 12}).problem.stride
    )


@pytest.mark.parametrize("high", [0, 1, 2])
def test_a_stride_far_beyond_one_input_of_a_transposed_convolution(rng, high):
    x, w = integers(rng, 2, 3, 1), integers(rng, 3, 4, 3)
    options = {"padding": ((1, high),), "output_padding": 3}
    y = nc.conv_transpose(x, w, stride=2**40, **options)
    whole = np.concatenate([np.einsum("nci,ckr->nkr", x, w), np.zeros((2, 4, 3))], axis=2)
    np.testing.assert_array_equal(y, whole[:, :, 1 : 6 - high])
    np.testing.assert_array_equal(y, nc.conv_transpose(x, w, stride=4, **options))


def test_one_number_for_all_dimensions_or_one_each(rng):
    x, w = integers(rng, 1, 2, 9, 9), integers(rng, 2, 2, 3, 3)
    np.testing.assert_array_equal(nc.conv(x, w, stride=2, dilation=2), nc.conv(x, w, stride=(2, 2), dilation=[2, 2]))
    np.testing.assert_array_equal(nc.conv(x, w, stride=(2, 1)), nc.conv(x, w)[:, :, ::2])
    np.testing.assert_array_equal(nc.conv(x, w, stride=np.array([1, 2])), nc.conv(x, w)[..., ::2])


def test_groups_are_separate_convolutions(rng):
    x, w = integers(rng, 2, 6, 5), integers(rng, 9, 2, 3)
    parts = [nc.conv(x[:, 2 * g : 2 * g + 2], w[3 * g : 3 * g + 3]) for g in range(3)]
    np.testing.assert_array_equal(nc.conv(x, w, groups=3), np.concatenate(parts, axis=1))


def test_depthwise():
    x, w = np.arange(6.0).reshape(1, 3, 2), np.array([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 1.0]]])
    assert nc.conv(x, w, groups=3).tolist() == [[[0], [3], [9]]]


def test_bias_is_added_to_its_channel():
    y = nc.conv(np.zeros((2, 1, 4)), np.ones((3, 1, 2)), np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(y, np.broadcast_to(np.array([[1.0], [2.0], [3.0]]), (2, 3, 3)))


def test_gradient_of_the_bias_is_the_sum_of_grad_y(rng):
    x, w, g = integers(rng, 2, 3, 6), integers(rng, 4, 3, 2), integers(rng, 2, 4, 5)
    np.testing.assert_array_equal(nc.conv_backward(g, x, w).bias, g.sum((0, 2)))
    g = integers(rng, 2, 2, 8)
    grads = nc.conv_transpose_backward(g, integers(rng, 2, 3, 6), integers(rng, 3, 2, 3))
    np.testing.assert_array_equal(grads.bias, g.sum((0, 2)))


@pytest.mark.parametrize(
    "needs", [("x",), ("w",), ("bias",), ("x", "w"), ("w", "bias"), ("x", "bias"), ("bias", "w", "x"), "w", ["x"]]
)
def test_needs(rng, needs):
    x, w, g = integers(rng, 2, 3, 6), integers(rng, 4, 3, 2), integers(rng, 2, 4, 5)
    every, some = nc.conv_backward(g, x, w), nc.conv_backward(g, x, w, needs=needs)
    for name in ("x", "w", "bias"):
        if name in ((needs,) if isinstance(needs, str) else needs):
            np.testing.assert_array_equal(getattr(some, name), getattr(every, name))
        else:
            assert getattr(some, name) is None


# --- padding


def test_forms_of_padding(rng):
    x, w = integers(rng, 1, 2, 5, 6), integers(rng, 2, 2, 3, 3)

    def padded(rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
        return nc.conv(np.pad(x, ((0, 0), (0, 0), rows, columns)), w)

    np.testing.assert_array_equal(nc.conv(x, w, padding=1), padded((1, 1), (1, 1)))
    np.testing.assert_array_equal(nc.conv(x, w, padding=(1, 2)), padded((1, 1), (2, 2)))
    np.testing.assert_array_equal(nc.conv(x, w, padding=[1, 2]), padded((1, 1), (2, 2)))
    np.testing.assert_array_equal(nc.conv(x, w, padding=((1, 2), (0, 3))), padded((1, 2), (0, 3)))
    np.testing.assert_array_equal(nc.conv(x, w, padding=np.array([[1, 2], [0, 3]])), padded((1, 2), (0, 3)))


# size, kernel, stride, dilation, and what "same" pads: max((ceil(S/s) - 1)s + d(r - 1) + 1 - S, 0), the smaller half low.
SAME = [
    (5, 3, 1, 1, (1, 1)),
    (5, 2, 1, 1, (0, 1)),
    (5, 3, 2, 1, (1, 1)),
    (6, 3, 2, 1, (0, 1)),
    (7, 4, 2, 2, (3, 3)),
    (8, 5, 3, 2, (3, 4)),
    (5, 1, 2, 1, (0, 0)),
    (10, 2, 5, 1, (0, 0)),
]


@pytest.mark.parametrize(("size", "r", "s", "d", "pads"), SAME)
@pytest.mark.parametrize("flip", [False, True])
def test_same(rng, size, r, s, d, pads, flip):
    x, w = integers(rng, 1, 1, size), integers(rng, 1, 1, r)
    y = nc.conv(x, w, stride=s, dilation=d, padding="same", flip=flip)
    assert y.shape[2] == -(-size // s)
    np.testing.assert_array_equal(y, nc.conv(x, w, stride=s, dilation=d, padding=(pads,), flip=flip))


@pytest.mark.parametrize(("r", "s", "d"), [(1, 1, 1), (3, 1, 1), (3, 2, 1), (2, 3, 4), (4, 1, 2)])
@pytest.mark.parametrize(("word", "low", "high"), [("valid", 0, 0), ("full", 1, 1), ("causal", 1, 0)])
def test_words_in_multiples_of_the_extent(rng, r, s, d, word, low, high):
    x, w = integers(rng, 1, 2, 9, 8), integers(rng, 2, 2, r, 2)
    pairs = tuple((low * d * (size - 1), high * d * (size - 1)) for size in (r, 2))
    options = {"stride": s, "dilation": d}
    np.testing.assert_array_equal(nc.conv(x, w, padding=word, **options), nc.conv(x, w, padding=pairs, **options))


def test_causal_sees_nothing_later():
    assert conv1d([0, 0, 1, 0, 0, 0], [1, 2, 3], padding="causal", flip=True) == [0, 0, 1, 2, 3, 0]


MODES = {"zeros": "constant", "reflect": "reflect", "symmetric": "symmetric", "replicate": "edge", "circular": "wrap"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("pads", [(0, 0), (1, 0), (2, 3), (7, 4), (11, 12)])
def test_pad_modes_are_those_of_numpy(mode, size, pads):
    x = np.arange(1, 1 + 2 * size).reshape(1, 2, size)
    np.testing.assert_array_equal(nc.pad(x, (pads,), mode), np.pad(x, ((0, 0), (0, 0), pads), MODES[mode]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("stride", "dilation", "flip"), [(1, 1, False), (2, 1, True), (1, 3, False)])
def test_conv_pads_as_pad_does(rng, mode, stride, dilation, flip):
    x, w = integers(rng, 2, 2, 4, 3), integers(rng, 3, 2, 3, 2)
    pads, options = ((5, 2), (4, 3)), {"stride": stride, "dilation": dilation, "flip": flip}
    np.testing.assert_array_equal(
        nc.conv(x, w, padding=pads, pad_mode=mode, **options), nc.conv(nc.pad(x, pads, mode), w, **options)
    )


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_padding_are_adjoints(rng, mode):
    x, w, pads = integers(rng, 2, 2, 4, 3), integers(rng, 3, 2, 3, 2), ((5, 2), (4, 3))
    g = integers(rng, 2, 2, 11, 10)
    assert np.vdot(nc.pad(x, pads, mode), g) == np.vdot(x, nc.pad_backward(g, pads, mode))
    options = {"padding": pads, "pad_mode": mode, "stride": (2, 1)}
    y = nc.conv(x, w, **options)
    g = integers(rng, *y.shape)
    grads = nc.conv_backward(g, x, w, **options)
    assert np.vdot(y, g) == np.vdot(x, grads.x) == np.vdot(w, grads.w)


# --- transposed convolution


def transposed_by_hand(x: list[float], w: list[float], s: int, d: int, low: int, high: int, o: int) -> list[float]:
    """Each input scatters the kernel; `low` is cut off at the start, and the size is (Q - 1)s + d(r - 1) + 1 - low - high + o."""
    y = [0.0] * ((len(x) - 1) * s + d * (len(w) - 1) + 1 - low - high + o)
    for (t, value), (tap, weight) in itertools.product(enumerate(x), enumerate(w)):
        if 0 <= t * s + tap * d - low < len(y):
            y[t * s + tap * d - low] += value * weight
    return y


TRANSPOSED = [
    (1, 1, 0, 0, 0), (2, 1, 0, 0, 0), (3, 1, 0, 0, 2), (2, 2, 1, 3, 1), (1, 3, 0, 0, 2), (2, 3, 2, 0, 2), (3, 1, 1, 2, 0),
    (1, 1, 2, 2, 0), (3, 2, 0, 0, 2), (1, 2, 0, 0, 1),
]  # fmt: skip


@pytest.mark.parametrize(("s", "d", "low", "high", "o"), TRANSPOSED)
def test_conv_transpose(s, d, low, high, o):
    x, w = [1.0, 2.0, 4.0, 8.0], [1.0, 100.0, 10000.0]
    options = {"stride": s, "dilation": d, "padding": ((low, high),)}
    y = nc.conv_transpose(np.array([[x]]), np.array([[w]]), output_padding=o, **options)
    assert y[0, 0].tolist() == transposed_by_hand(x, w, s, d, low, high, o)


@pytest.mark.parametrize(("s", "d", "low", "high", "o"), [row for row in TRANSPOSED if row[4] <= row[3]])
@pytest.mark.parametrize("flip", [False, True])
def test_conv_transpose_is_the_input_gradient(rng, s, d, low, high, o, flip):
    x, w = integers(rng, 2, 4, 5), integers(rng, 4, 3, 3)
    options = {"stride": s, "dilation": d, "groups": 2, "flip": flip}
    y = nc.conv_transpose(x, w, padding=((low, high),), output_padding=o, **options)
    np.testing.assert_array_equal(y, nc.conv_input_grad(x, w, y.shape, padding=((low, high - o),), **options))


@pytest.mark.parametrize(("s", "d", "low", "high", "o"), TRANSPOSED)
def test_conv_transpose_backward_is_adjoint(rng, s, d, low, high, o):
    x, w = integers(rng, 2, 4, 5), integers(rng, 4, 3, 3)
    options = {"stride": s, "dilation": d, "groups": 2, "padding": ((low, high),), "output_padding": o}
    y = nc.conv_transpose(x, w, **options)
    g = integers(rng, *y.shape)
    grads = nc.conv_transpose_backward(g, x, w, **options)
    assert np.vdot(y, g) == np.vdot(x, grads.x) == np.vdot(w, grads.w)


@pytest.mark.parametrize(("s", "r", "d"), [(1, 3, 1), (2, 3, 1), (3, 2, 1), (2, 4, 3), (4, 1, 1)])
def test_conv_transpose_same(rng, s, r, d):
    x, w = integers(rng, 1, 2, 5), integers(rng, 2, 3, r)
    y = nc.conv_transpose(x, w, stride=s, dilation=d, padding="same")
    assert y.shape == (1, 3, 5 * s)
    np.testing.assert_array_equal(y, nc.conv_input_grad(x, w, y.shape, stride=s, dilation=d, padding="same"))


def test_conv_transpose_valid(rng):
    x, w = integers(rng, 1, 2, 5), integers(rng, 2, 3, 3)
    np.testing.assert_array_equal(nc.conv_transpose(x, w, padding="valid", stride=2), nc.conv_transpose(x, w, stride=2))


def test_bias_reaches_every_output():
    """With a stride above the kernel some outputs get nothing else."""
    y = nc.conv_transpose(np.ones((1, 1, 3)), np.ones((1, 2, 1)), np.array([10.0, 20.0]), stride=3, output_padding=2)
    assert y[0].tolist() == [[11, 10, 10] * 3, [21, 20, 20] * 3]


# --- complex numbers


def test_complex_conventions():
    i = np.array([[[1j]]])
    assert nc.conv(i, i).item() == -1
    assert nc.conv_input_grad(i, i, (1, 1, 1)).item() == 1
    assert nc.conv_weight_grad(i, i, (1, 1, 1)).item() == 1
    assert nc.conv_transpose(i, i).item() == 1
    assert nc.conv_backward(i, i, i).bias.item() == 1j


def test_complex_gradients_are_adjoints(rng):
    x, w, g = (integers(rng, *s) + 1j * integers(rng, *s) for s in ((2, 3, 6), (4, 3, 3), (2, 4, 4)))
    grads = nc.conv_backward(g, x, w)
    assert np.vdot(g, nc.conv(x, w)) == np.vdot(grads.x, x) == np.vdot(grads.w, w)


# --- activations


def test_activations():
    x = [-10.0, -2.0, -0.5, 0.0, 0.5, 2.0, 30.0]
    assert conv1d(x, [1], activation="relu") == [max(v, 0) for v in x]
    np.testing.assert_allclose(conv1d(x, [1], activation="silu"), [v / (1 + math.exp(-v)) for v in x], rtol=1e-13)
    np.testing.assert_allclose(conv1d(x, [1], activation="gelu"), [0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x], rtol=1e-13)


@pytest.mark.parametrize("function", [nc.conv, nc.conv_transpose])
def test_activation_comes_after_the_bias(function):
    x, w, bias = np.array([[[-1.0, 2.0]]]), np.ones((1, 1, 1)), np.array([-1.5])
    assert function(x, w, bias, activation="relu").ravel().tolist() == [0, 0.5]


def test_relu_of_integers():
    assert nc.conv(np.array([[-3, 4]]), np.array([[[1]]]), activation="relu").tolist() == [[0, 4]]


# --- accuracy


@pytest.mark.parametrize("accuracy", [None, "strict", "high", "default", "fast"])
def test_every_level_computes_integers(rng, accuracy):
    x, w = integers(rng, 2, 3, 8), integers(rng, 4, 3, 3)
    np.testing.assert_array_equal(nc.conv(x, w, accuracy=accuracy), nc.conv(x, w))


BIG = 2.0**24  # in float32 BIG + 1 == BIG


def strict(x: list[list[float]], w: list[list[float]], bias: float | None = None) -> float:
    x, w = np.array([x], np.float32), np.array([w], np.float32)
    return nc.conv(x, w, None if bias is None else np.array([bias], np.float32), accuracy="strict").item()


def test_strict_adds_in_order():
    assert strict([[BIG, 1, -BIG, 1]], [[1, 1, 1, 1]]) == 1  # along the kernel: BIG + 1 is BIG
    assert strict([[BIG, -BIG, 1, 1]], [[1, 1, 1, 1]]) == 2
    assert strict([[BIG, 1], [-BIG, 1]], [[1, 1], [1, 1]]) == 1  # a channel is finished before the next one


def test_strict_fuses():
    """The square of 1 + 2**-12 has a bit that is lost where the product is rounded."""
    a = 1 + 2.0**-12
    assert strict([[-1, a]], [[1 + 2.0**-11, a]]) == 2.0**-24


def test_strict_adds_the_bias_last():
    assert strict([[1, 0.5]], [[1, 1]], bias=BIG) == BIG + 2


def test_strict_weight_gradient_adds_in_order():
    ones = np.ones((2, 1, 2), np.float32)
    g = np.array([[[BIG, 1]], [[-BIG, 1]]], np.float32)
    assert nc.conv_weight_grad(g, ones, (1, 1, 1), accuracy="strict").item() == 1  # all outputs of n = 0, then of n = 1


# --- pooling


def pool1d(function, x: list[float], window: int, **options: object) -> list[float]:
    return function(np.array([x], float), (window,), **options)[0].tolist()


def test_stride_of_pooling_is_its_window():
    assert pool1d(nc.max_pool, [1, 5, 2, 7, 3], 2) == [5, 7]
    assert pool1d(nc.max_pool, [1, 5, 2, 7, 3], 2, stride=1) == [5, 5, 7, 7]


def test_ceil_mode():
    assert pool1d(nc.max_pool, [1, 2, 3, 4, 5], 2, ceil_mode=True) == [2, 4, 5]
    assert pool1d(nc.avg_pool, [1, 2, 3, 4, 5], 2, ceil_mode=True) == [1.5, 3.5, 5]
    assert pool1d(nc.lp_pool, [3, 4, 5], 2, ceil_mode=True) == [5, 5]


def test_ceil_mode_drops_windows_that_start_beyond_x():
    # Windows start at -1, 2 and 5; the third would read nothing but padding.
    assert pool1d(nc.max_pool, [1, 2, 3, 4, 5], 2, stride=3, padding=1, ceil_mode=True) == [1, 4]


@pytest.mark.parametrize(
    ("x", "options", "included", "left_out"),
    [
        ([2, 4, 6], {"stride": 1, "padding": 1}, [2, 4, 10 / 3], [3, 4, 5]),
        ([2, 4, 6, 8], {"stride": 2, "ceil_mode": True}, [4, 7], [4, 7]),  # a tap beyond S + high does not count
        ([2, 4, 6, 8], {"stride": 2, "padding": ((0, 1),)}, [4, 14 / 3], [4, 7]),
        ([2, 4, 6, 8], {"stride": 3, "padding": ((0, 1),), "ceil_mode": True}, [4, 4], [4, 8]),  # one of two taps beyond S does
    ],
)
def test_count_include_pad(x, options, included, left_out):
    np.testing.assert_allclose(pool1d(nc.avg_pool, x, 3, **options), included)
    np.testing.assert_allclose(pool1d(nc.avg_pool, x, 3, count_include_pad=False, **options), left_out)
    grad = np.ones((1, len(included)))
    spread = nc.avg_pool_backward(grad, (1, len(x)), (3,), count_include_pad=False, **options)
    assert spread.sum() == pytest.approx(len(included)), "each output's gradient is shared out among its elements"


def test_dilated_pooling():
    x = [1, 9, 2, 8, 3]
    assert pool1d(nc.max_pool, x, 2, stride=1, dilation=2) == [2, 9, 3]
    assert pool1d(nc.avg_pool, x, 2, stride=1, dilation=2) == [1.5, 8.5, 2.5]


@pytest.mark.parametrize("padding", ["same", ((0, 1),)])
def test_padding_of_pooling(padding):
    assert pool1d(nc.max_pool, [1, 2, 3, 4, -5], 2, padding=padding) == [2, 4, -5]


def test_valid_pooling():
    assert pool1d(nc.max_pool, [1, 2, 3], 2, padding="valid") == [2]


@pytest.mark.parametrize("dtype", ["i1", "f8"])
def test_padding_is_no_element(dtype):
    low = np.iinfo(dtype).min if dtype[0] == "i" else -np.inf
    x = np.array([[low, low, -3]], dtype)
    y, indices = nc.max_pool(x, (2,), stride=1, padding=1, return_indices=True)
    assert y.tolist() == [[low, low, -3, -3]]
    assert indices.tolist() == [[0, 0, 2, 2]]


def test_the_first_of_equal_elements_wins():
    x = np.array([[[1.0, 3.0, 3.0], [3.0, 3.0, 2.0]]])
    y, indices = nc.max_pool(x, (2, 2), stride=1, return_indices=True)
    assert y.tolist() == [[[3, 3]]]
    assert indices.tolist() == [[[1, 1]]]
    assert nc.max_pool_backward(np.array([[[10.0, 1.0]]]), x, (2, 2), stride=1).tolist() == [[[0, 11, 0], [0, 0, 0]]]


def test_the_first_nan_wins():
    x = np.array([[5.0, np.nan, np.inf, np.nan]])
    y, indices = nc.max_pool(x, (4,), return_indices=True)
    assert np.isnan(y).all()
    assert indices.tolist() == [[1]]


def test_indices_are_positions_in_the_unpadded_volume():
    x = np.arange(12.0).reshape(1, 3, 4)
    y, indices = nc.max_pool(x, (2, 2), padding=1, return_indices=True)
    assert indices.dtype == np.int64
    assert indices.tolist() == [[[0, 2, 3], [8, 10, 11]]]
    assert x.ravel()[indices].tolist() == y.tolist()


def test_indices_in_the_gradient_and_back(rng):
    x = rng.permutation(96).reshape(2, 2, 4, 6).astype(float)
    y, indices = nc.max_pool(x, (2, 3), return_indices=True)
    g = integers(rng, *y.shape)
    expected = nc.max_pool_backward(g, x, (2, 3))
    np.testing.assert_array_equal(nc.max_pool_backward(g, x, (2, 3), indices=indices), expected)
    np.testing.assert_array_equal(nc.max_unpool(g, indices, x.shape), expected)
    np.testing.assert_array_equal(nc.max_unpool_backward(x, indices), y)


def test_unpooling_keeps_the_last_of_equal_indices():
    indices = np.array([[[2, 0, 2]]])
    assert nc.max_unpool(np.array([[[1.0, 2.0, 3.0]]]), indices, (1, 1, 4)).tolist() == [[[2, 0, 3, 0]]]
    assert nc.max_unpool_backward(np.array([[[1.0, 2.0, 3.0, 4.0]]]), indices).tolist() == [[[0, 1, 3]]]


@pytest.mark.parametrize(("p", "value"), [(1, 7), (2, 5), (3, 91 ** (1 / 3)), (0.5, (3**0.5 + 2) ** 2)])
def test_lp_pool_uses_magnitudes(p, value):
    assert pool1d(nc.lp_pool, [3, -4], 2, p=p) == pytest.approx([value], rel=1e-13)


def test_lp_pool_backward():
    """dy/dx = sign(x) |x|**(p - 1) y**(1 - p), and 0 at 0."""
    found = nc.lp_pool_backward(np.array([[10.0, 1.0]]), np.array([[3.0, -4.0, 0.0, 0.0]]), (2,))
    np.testing.assert_allclose(found, [[6, -8, 0, 0]], rtol=1e-13)


def test_an_integer_window_means_a_batch(rng):
    x = integers(rng, 2, 4, 6)
    assert nc.max_pool(x, 2).shape == (2, 4, 3)
    assert nc.max_pool(x, (2,)).shape == (2, 4, 3)
    assert nc.max_pool(x, (2, 2)).shape == (2, 2, 3), "one channel axis, two spatial ones"
    assert nc.pad(x, 1).shape == (2, 4, 8)
    assert nc.pad(x, (1, 1)).shape == (2, 6, 8)
    assert nc.unfold(x, 2).shape == (2, 8, 5)
    assert nc.unfold(x, (2, 2)).shape == (8, 15)


# --- unfold and fold


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": (1, 2), "padding": ((2, 0), (0, 1))}])
def test_unfold_rows(rng, options):
    """Row c * prod(R) + the row-major tap, column the row-major output: a convolution is then a matrix product."""
    x, w = integers(rng, 2, 3, 6, 5), integers(rng, 4, 3, 2, 3)
    columns, y = nc.unfold(x, (2, 3), **options), nc.conv(x, w, **options)
    np.testing.assert_array_equal(w.reshape(4, 18) @ columns, y.reshape(2, 4, -1))
    g = integers(rng, *columns.shape)
    assert np.vdot(columns, g) == np.vdot(x, nc.fold(g, x.shape, (2, 3), **options))


def test_unfold_order():
    x = np.array([[[1, 2, 3], [4, 5, 6]], [[10, 20, 30], [40, 50, 60]]])
    assert nc.unfold(x, (2, 2)).tolist() == [[1, 2], [2, 3], [4, 5], [5, 6], [10, 20], [20, 30], [40, 50], [50, 60]]


def test_shapes_may_be_tuples_of_another_class():
    class Size(tuple):
        """As torch's sizes."""

        __slots__ = ()

    assert nc.fold(np.ones((2, 3)), Size((1, 4)), Size((2,))).shape == (1, 4)
