"""The equivariance error: exact zeros where theory says zero, its parts by their formulas, and where outputs lie."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import ndimage

import numconv as nc
from numconv.equivariance import (
    Lattice,
    equivariance_error,
    locate,
    parse_transform,
    reflection,
    residuals,
    rotation,
    sampling,
    scaling,
    translation,
)  # fmt: skip
from numconv.equivariance.sampling import by_fourier_series, by_splines, grid

SHAPES = {1: (1, 2, 24), 2: (1, 2, 12, 18), 3: (1, 1, 6, 8, 6)}


@pytest.fixture(autouse=True)
def strict():
    with nc.using(accuracy="strict"):
        yield


def whole(rng, *shape):
    return rng.integers(-9, 10, shape).astype(float)


def convolution(rng, ndim, channels=2, size=3, **options):
    w = whole(rng, 3, channels, *(size,) * ndim)
    return lambda x: nc.conv(x, w, **{"padding": 1, **options})


def rotated(x, k=1):
    return np.rot90(x, k, axes=(2, 3))


# --- exact zeros


@pytest.mark.parametrize("ndim", SHAPES)
@pytest.mark.parametrize("amount", [1, -2, 5])
def test_circular_convolution_moves_with_whole_shifts(rng, ndim, amount):
    x = whole(rng, *SHAPES[ndim])
    f = convolution(rng, ndim, x.shape[1], pad_mode="circular")
    assert equivariance_error(f, x, translation(*(amount,) * ndim)) == (0, 0, 0, 0, 0)


def test_circular_convolution_of_real_data_moves_with_whole_shifts(rng):
    """Strict sums have the same order everywhere, so their roundings are the same, too."""
    x, w = rng.standard_normal((2, 3, 12, 12)), rng.standard_normal((4, 3, 3, 3))
    assert equivariance_error(lambda x: nc.conv(x, w, padding=1, pad_mode="circular"), x, translation(3, -1)).error == 0


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("shift", [1, 2, 3, 4, 6])
def test_strides_move_with_their_multiples(rng, stride, shift):
    x = whole(rng, *SHAPES[2])
    f = convolution(rng, 2, pad_mode="circular", stride=stride)
    found = equivariance_error(f, x, translation(shift, 0))
    assert found.error == found.stride
    assert (found.error == 0) == (shift % stride == 0)
    assert (found.exact, found.border, found.interpolation) == (0, 0, 0)


@pytest.mark.parametrize("padding", [0, 1, "full"])
def test_zero_padding_adds_to_the_border_only(rng, padding):
    x = whole(rng, *SHAPES[2])
    found = equivariance_error(convolution(rng, 2, padding=padding), x, translation(2, 1))
    assert found.error == found.border > 0.1
    assert (found.exact, found.stride, found.interpolation) == (0, 0, 0)


@pytest.mark.parametrize(
    "transform", [rotation(90), rotation(180), rotation(-90), reflection(0), reflection(1)], ids=lambda t: t.name
)
def test_pooling_and_symmetric_kernels_turn_with_quarter_turns(rng, transform):
    x = whole(rng, 1, 2, 12, 12)
    assert equivariance_error(lambda x: nc.max_pool(x, 2), x, transform).error == 0
    symmetric = np.array([[1.0, 2, 1], [2, 5, 2], [1, 2, 1]])[None, None]
    assert equivariance_error(lambda x: nc.conv(x[:, :1], symmetric, padding=1), x, transform).error == 0
    assert equivariance_error(lambda x: nc.conv(x[:, :1], np.tri(3)[None, None], padding=1), x, transform).exact > 0.1


def test_transposed_convolution_shifts_by_two_outputs_an_input(rng):
    x, w = whole(rng, *SHAPES[2]), whole(rng, 2, 3, 4, 4)
    f = lambda x: nc.conv_transpose(x, w, stride=2, padding=1)  # noqa: E731
    found = equivariance_error(f, x, translation(1, 2))
    assert found.error == found.border
    assert found.exact == 0
    inside = residuals(f, x, translation(1, 2)).error[:, :, 4:-4, 6:-6]
    assert not inside.any()


# --- the error and its parts


OPERATIONS = {
    "circular": {"pad_mode": "circular"},
    "zeros": {},
    "reflect": {"pad_mode": "reflect"},
    "valid": {"padding": 0},
    "full": {"padding": "full"},
    "stride": {"stride": 2},
    "asymmetric": {"padding": ((2, 0),), "stride": 3},
    "dilated": {"dilation": 2},
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("text", ["shift 1", "shift 0.25", "rotate 90", "rotate 20", "mirror", "scale 1.5", "scale 0.75"])
@pytest.mark.parametrize("ndim", [1, 2])
def test_the_parts_sum_up_to_the_error(rng, name, text, ndim):
    if ndim == 1 and text.startswith("rotate"):
        return
    options = dict(OPERATIONS[name])
    if name == "asymmetric":
        options["padding"] = options["padding"] * ndim
    x = rng.standard_normal(SHAPES[ndim])
    f = convolution(rng, ndim, **options)
    found = residuals(f, x, parse_transform(text, ndim))
    np.testing.assert_allclose(found.error, found.exact + found.stride + found.border + found.interpolation, atol=1e-9)
    norms = equivariance_error(f, x, parse_transform(text, ndim))
    assert norms.error <= sum(norms[1:]) + 1e-12
    assert norms.error == pytest.approx(np.linalg.norm(found.error) / np.linalg.norm(f(x)), rel=0.3)  # f(x) is cut by "full"


def test_the_error_of_a_shift_is_that_of_rolling(rng):
    x = whole(rng, *SHAPES[2])
    f = convolution(rng, 2)
    found = residuals(f, x, translation(2, -3))
    expected = f(np.roll(x, (2, -3), (2, 3))) - np.roll(f(x), (2, -3), (2, 3))
    np.testing.assert_array_equal(found.error, expected)
    np.testing.assert_array_equal(found.output, f(x))


def test_the_error_of_a_quarter_turn_is_that_of_rot90(rng):
    x = whole(rng, 1, 2, 8, 8)
    f = convolution(rng, 2)
    np.testing.assert_array_equal(residuals(f, x, rotation(90)).error, f(rotated(x)) - rotated(f(x)))
    np.testing.assert_array_equal(residuals(f, x, reflection()).error, f(x[..., ::-1]) - f(x)[..., ::-1])


def test_the_error_of_half_an_output_is_that_of_splines(rng):
    x = whole(rng, 1, 2, 24)
    f = convolution(rng, 1, pad_mode="circular", stride=2)
    moved = np.stack([ndimage.shift(channel, 0.5, order=3, mode="grid-wrap") for channel in f(x)[0]])
    np.testing.assert_allclose(residuals(f, x, translation(1)).error[0], f(np.roll(x, 1, 2))[0] - moved, atol=1e-9)


def test_the_border_is_the_difference_from_circular_padding(rng):
    """For whole shifts, the operation on the plane is the one with circular padding."""
    x = whole(rng, *SHAPES[2])
    w = whole(rng, 3, 2, 3, 3)

    def border(x):
        return nc.conv(x, w, padding=1) - nc.conv(x, w, padding=1, pad_mode="circular")

    found = residuals(lambda x: nc.conv(x, w, padding=1), x, translation(4, 4))
    moved = {"shift": (4, 4), "axis": (2, 3)}
    np.testing.assert_array_equal(found.border, border(np.roll(x, **moved)) - np.roll(border(x), **moved))


def test_channels_follow_the_transformation(rng):
    x = whole(rng, 1, 1, 9, 9)
    w = whole(rng, 1, 1, 3, 3)
    four = np.concatenate([rotated(w, k) for k in range(4)])
    f = lambda x: nc.conv(x, four, padding=1)  # noqa: E731
    assert equivariance_error(f, x, rotation(90)).exact > 0.1
    assert equivariance_error(f, x, rotation(90), channels=[3, 0, 1, 2]).error == 0


def gaussian(deviation=2.0, radius=9):
    line = np.exp(-0.5 * (np.arange(-radius, radius + 1) / deviation) ** 2)
    return (np.outer(line, line) / line.sum() ** 2)[None, None]


def test_a_round_kernel_is_exact_up_to_interpolation(rng):
    """A Gaussian turns with its input; splines of higher order come nearer to it."""
    x = rng.standard_normal((1, 1, 24, 24))
    f = lambda x: nc.conv(x, gaussian(), padding=9, pad_mode="circular")  # noqa: E731
    rough, smooth = (equivariance_error(f, x, rotation(30), order=order) for order in (1, 5))
    assert rough.exact == smooth.exact < 1e-3
    assert smooth.interpolation < 0.5 * rough.interpolation
    assert equivariance_error(lambda x: nc.conv(x, np.tri(3)[None, None], padding=1), x, rotation(30)).exact > 0.1
    assert equivariance_error(f, x, scaling(1.5)).exact > 0.1  # its width does not follow


def test_sub_pixel_shifts_commute_with_circular_convolution(rng):
    """Interpolation of a periodic signal is itself a convolution."""
    x = rng.standard_normal((1, 2, 12, 18))
    found = equivariance_error(convolution(rng, 2, pad_mode="circular"), x, translation(0.5, 0.3))
    assert max(found) < 1e-13


def test_volumes_turn_in_a_plane(rng):
    x = whole(rng, 1, 1, 5, 6, 6)
    turn = rotation(90, ndim=3, axes=(1, 2))
    f = convolution(rng, 3, 1)
    np.testing.assert_array_equal(residuals(f, x, turn).error, f(np.rot90(x, axes=(3, 4))) - np.rot90(f(x), axes=(3, 4)))


# --- outputs without positions, pooled outputs


def test_vectors_are_compared_as_they_are(rng):
    x = rng.standard_normal((2, 2, 12, 18))
    f = convolution(rng, 2)
    found = equivariance_error(lambda x: f(x).max(axis=(2, 3)), x, translation(1, 2))
    moved = np.roll(x, (1, 2), (2, 3))
    assert (
        found.error
        == found.exact
        == pytest.approx(np.linalg.norm(f(moved).max((2, 3)) - f(x).max((2, 3))) / np.linalg.norm(f(x).max((2, 3))))
    )
    assert math.isnan(found.stride)
    assert math.isnan(found.border)


@pytest.mark.parametrize("text", ["shift 1", "rotate 90", "rotate 20", "scale 1.25"])
@pytest.mark.parametrize("stride", [1, 2])
def test_pooled_maps_give_the_error_of_the_pooled_function(rng, text, stride):
    x = rng.standard_normal((1, 2, 12, 12))
    f = convolution(rng, 2, stride=stride)
    whole_function = equivariance_error(lambda x: f(x).mean(axis=(2, 3)), x, parse_transform(text))
    found = equivariance_error(f, x, parse_transform(text), pooled=True)
    assert found.error == pytest.approx(whole_function.error)
    parts = residuals(f, x, parse_transform(text), pooled=True)
    np.testing.assert_allclose(parts.error, parts.exact + parts.stride + parts.border + parts.interpolation, atol=1e-9)


LATTICE = Lattice((Fraction(1),), (Fraction(0),), (1,))


def test_an_output_of_zeros():
    assert equivariance_error(lambda x: 0 * x, np.ones((1, 1, 4)), translation(1), lattice=LATTICE).error == 0
    assert equivariance_error(lambda x: 1.0 * (x > 5), np.arange(4.0)[None, None], translation(1), lattice=LATTICE).error == 0


def test_functions_of_other_frameworks(rng):
    """Whatever numpy.asarray reads."""

    class Tensor:
        def __init__(self, values):
            self.values = values

        def __array__(self, dtype=None, copy=None):
            return self.values

    x, f = whole(rng, *SHAPES[1]), convolution(rng, 1, pad_mode="circular")
    assert equivariance_error(lambda x: Tensor(f(x)), x, translation(3)).error == 0


def test_whole_numbers_of_any_dtype(rng):
    w = rng.integers(-9, 9, (2, 1, 3))
    x = rng.integers(-99, 99, (1, 1, 12))
    assert equivariance_error(lambda x: nc.conv(x, w, padding=1, pad_mode="circular"), x, translation(5)).error == 0


# --- where outputs lie


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("padding", "dilation"), [(0, 1), (1, 2), (2, 1)])
def test_lattices_are_those_of_the_geometry(rng, size, stride, padding, dilation):
    w = rng.standard_normal((2, 1, size))
    found = locate(lambda x: nc.conv(x, w, stride=stride, padding=padding, dilation=dilation), rng.standard_normal((2, 1, 24)))
    field = nc.receptive_field([(size, stride, dilation, padding)])
    assert found.stride == field.stride
    assert found.offset == (field.start[0] + Fraction(field.size[0] - 1, 2),)
    assert found.reach == (math.ceil((field.size[0] - 1) / 2),)


def test_the_lattice_of_a_network(rng):
    first, second = rng.standard_normal((4, 1, 3, 3)), rng.standard_normal((4, 4, 5, 5))

    def network(x):
        x = nc.max_pool(nc.conv(x, first, padding=1, activation="relu"), 2)
        return nc.conv(x, second, stride=2, padding=1, activation="relu")

    field = nc.receptive_field([(3, 1, 1, 1), (2, 2), (5, 2, 1, 1)])
    found = locate(network, rng.standard_normal((1, 1, 16, 16)))
    assert found.stride == field.stride * 2
    assert found.offset == (field.start[0] + Fraction(field.size[0] - 1, 2),) * 2


def test_the_lattice_of_a_transposed_convolution(rng):
    w = rng.standard_normal((1, 1, 4))
    found = locate(lambda x: nc.conv_transpose(x, w, stride=2, padding=1), rng.standard_normal((1, 1, 9)))
    assert found == ((Fraction(1, 2),), (Fraction(-1, 4),), (1,))


# --- values between samples


@pytest.mark.parametrize("size", [8, 9])
def test_fourier_series_of_waves(rng, size):
    """Waves below the Nyquist frequency are known everywhere."""
    points = 3 * size * rng.random((2, 50))

    def wave(p):
        return 1 + np.cos(2 * np.pi * (2 * p[0] - p[1]) / size + 0.5) + np.sin(2 * np.pi * 3 * p[1] / size)

    x = wave(grid((0, 0), (size, size), (1, 1)))[None, None]
    np.testing.assert_allclose(by_fourier_series(x, points, np.eye(2))[0, 0], wave(points), atol=1e-12)


def test_fourier_series_leave_out_what_would_pass_for_another_frequency():
    """Made half as large, a wave of period 3 would have period 1.5, and look as one of period 3."""
    x = np.cos(2 * np.pi * np.arange(24) / 3)[None, None]
    points = np.arange(0, 48, 2.0)[None]
    assert np.abs(by_fourier_series(x, points, 0.5 * np.eye(1))).max() < 1.5e0
    np.testing.assert_allclose(by_fourier_series(x, points + 0.5, 0.5 * np.eye(1)), 0, atol=1e-12)
    assert np.abs(by_fourier_series(x, points + 0.5, np.eye(1))).max() > 0.4


def test_fourier_series_in_blocks(monkeypatch, rng):
    x, points = rng.standard_normal((2, 3, 4, 5, 6)), 10 * rng.random((3, 11))
    whole_series = by_fourier_series(x, points, np.eye(3))
    monkeypatch.setattr(sampling, "_BLOCK", 3 * 16 * 2 * 3 * 4 * 5)
    np.testing.assert_allclose(by_fourier_series(x, points, np.eye(3)), whole_series, atol=1e-12)


def test_splines_are_those_of_scipy(rng):
    x, points = rng.standard_normal((1, 2, 6, 7)), 10 * rng.random((2, 9)) - 3
    expected = [ndimage.map_coordinates(channel, points, order=3, mode="grid-wrap") for channel in x[0]]
    np.testing.assert_array_equal(by_splines(x, points, 3)[0], expected)


# --- what is refused

SHIFT = translation(1)
PLANE = Lattice((Fraction(1),) * 2, (Fraction(0),) * 2, (1, 1))
FAR = Lattice((Fraction(1, 2),), (Fraction(0),), (1,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, f: equivariance_error(f, x[0], SHIFT), r"x \(2, 24\) has 0 spatial dimensions .* 'shift 1' is for 1"),
        (lambda x, f: equivariance_error(f, x, rotation(90)), r"x \(1, 2, 24\) has 1 spatial dim.* 'rotate 90' is for 2"),
        (lambda x, f: equivariance_error(f, x + 1j, SHIFT), "dtype complex128 must hold real numbers"),
        (lambda x, f: equivariance_error(f, x[:0], SHIFT), "must hold real numbers"),
        (lambda x, f: equivariance_error(f, x, SHIFT, order=6), "order=6 of the splines must be 0 to 5"),
        (lambda x, f: equivariance_error(f, x.astype(int), translation(0.5)), "'shift 0.5'.*samples.*int64; give floats"),
        (lambda x, f: equivariance_error(f, x, "rotate 90"), "transform='rotate 90' is a str; give .* parse_transform"),
        (lambda x, f: equivariance_error(f, x, SHIFT, channels=[0, 0, 1]), r"\[0, 0, 1\] is no permutation of the 3"),
        (lambda x, f: equivariance_error(lambda x: f(x)[:, :, ::5], x, SHIFT), r"\(24,\) of x must be .* the stride \(5\)"),
        (lambda x, f: equivariance_error(f, x, SHIFT, lattice=PLANE), "f gives 1 spatial dim.*, x has 1, the lattice 2"),
        (lambda x, f: equivariance_error(f, x, SHIFT, lattice=FAR), "f gives .* asks for outputs"),
        (lambda x, f: equivariance_error(lambda x: f(x)[:, :, :9], x, SHIFT), "outputs do not lie along dimension 0"),
        (lambda x, f: equivariance_error(lambda x: x - x.mean(), x, SHIFT), "an output sees more than 72 samples"),
        (lambda x, f: equivariance_error(np.ones_like, x, SHIFT), "the function is blind"),
        (lambda x, f: translation(), "give one finite number for each spatial dimension"),
        (lambda x, f: translation(math.inf), "give one finite number"),
        (lambda x, f: rotation(math.nan), "give a finite angle"),
        (lambda x, f: rotation(90, ndim=1), r"axes=\(-2, -1\) must name two different ones of 1"),
        (lambda x, f: rotation(90, axes=(1, -1)), "must name two different ones of 2"),
        (lambda x, f: reflection(2), "axis=2 is none of 2"),
        (lambda x, f: scaling(0), "must be positive and finite"),
        (lambda x, f: parse_transform("turn 90"), "'turn 90' is no transformation; give shift AMOUNT"),
        (lambda x, f: parse_transform("shift 1.2.3"), "'shift 1.2.3' is no transformation"),
        (lambda x, f: parse_transform("shift nan"), r"translation\(nan, nan\): give one finite number"),
        (lambda x, f: locate(f, x[..., :0]), r"x of shape \(1, 2, 0\) must be \[N, C, \*S\] with at least one element"),
        (lambda x, f: locate(f, np.full_like(x, np.nan)), "at least one element, all of them finite"),
    ],
)
def test_bad_input(rng, call, message):
    with pytest.raises(nc.ProblemError, match=message):
        call(whole(rng, *SHAPES[1]), convolution(rng, 1))


def test_texts_name_transformations():
    for text in ("shift 3", "rotate 30", "scale 1.25", "mirror"):
        assert parse_transform(text).name == text
    assert parse_transform("rotate:-90").matrix == rotation(270).matrix
    assert parse_transform("shift -2", 3).shift == (-2, -2, -2)
