"""Group convolutions and scale-spaces: exactly equivariant, with the gradients of what they compute."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import numconv as nc
from numconv import nn
from numconv.equivariance import Transform, equivariance_error, reflection, rotation
from numconv.nn.symmetry import GROUPS, symmetry_group

SIZES = {"mirror": (9,), "p4": (9, 9), "p4m": (9, 9), "cube": (5, 5, 5), "cube_m": (3, 3, 3)}


def whole(rng, *shape):
    return rng.integers(-4, 5, shape).astype(float)


def with_whole_weights(layer, shape, rng):
    layer.build(shape, dtype="float64")
    for array in layer.parameters.values():
        array[...] = rng.integers(-3, 4, array.shape)
    return layer


def network(group, rng, channels=2, **options):
    """A lifting and a group convolution, which end in K=2 channels."""
    layers = (nn.GroupLift(3, 3, group=group, **options), nn.ReLU(), nn.GroupConv(2, 3, group=group, **options))
    return with_whole_weights(nn.Sequential(*layers), (channels, *SIZES[group]), rng)


def transforms(group):
    """Each element as a transformation, with its position; some of them for large groups."""
    elements = symmetry_group(group).elements
    for place in range(0, len(elements), max(1, len(elements) // 8)):
        yield place, Transform(str(place), elements[place], (0.0,) * len(elements[place]))


# --- groups


@pytest.mark.parametrize("name", GROUPS)
def test_groups_are_groups(name):
    group = symmetry_group(name)
    assert group.order == {"mirror": 2, "p4": 4, "p4m": 8, "cube": 24, "cube_m": 48}[name]
    assert len(set(group.elements)) == group.order
    determinants = {round(np.linalg.det(element)) for element in group.elements}
    assert determinants == ({1} if name in {"p4", "cube"} else {1, -1})
    products = group.products()
    for rows in (products, products.T):  # each row has each element once
        assert (np.sort(rows, axis=1) == np.arange(group.order)).all()
    assert (products[group.quotients().diagonal(), np.arange(group.order)] == np.arange(group.order)).all()


@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_kernels_turn_as_images_do(window, rng):
    kernel = rng.standard_normal((window, window))
    group = symmetry_group("p4m")
    turned = kernel.reshape(-1)[group.taps(window)].reshape(-1, window, window)
    for k in range(4):
        np.testing.assert_array_equal(turned[group.nearest(rotation(90 * k).matrix)], np.rot90(kernel, k))
    np.testing.assert_array_equal(turned[group.nearest(reflection().matrix)], kernel[:, ::-1])
    assert group.nearest(rotation(40).matrix) == 0


def test_a_group_that_does_not_exist():
    with pytest.raises(nc.ProblemError, match="no group is called 'p6'; known are mirror, p4, p4m, cube, cube_m"):
        nn.GroupLift(4, 3, group="p6")


# --- equivariance


@pytest.mark.parametrize("group", SIZES)
@pytest.mark.parametrize(
    "options", [{}, {"padding": 1}, {"padding": "same", "pad_mode": "circular"}, {"stride": 2, "padding": 1}], ids=str
)
def test_group_convolutions_are_exactly_equivariant(group, options, rng):
    """On whole numbers with strict sums; a stride of 2 keeps the symmetry of odd sizes."""
    if group in {"cube", "cube_m"} and options != {"padding": 1}:
        return
    model = network(group, rng, **options)
    x = whole(rng, 1, 2, *SIZES[group])
    with nc.using(accuracy="strict"):
        y = model(x)
        assert y.any()
        for place, transform in transforms(group):
            moved = model(act(transform.matrix, x))
            expected = act(transform.matrix, y)[:, symmetry_group(group).channels(place, 2)]
            np.testing.assert_array_equal(moved, expected)


def act(matrix, x):
    """What an element does to an array, by transposing and flipping."""
    matrix = np.array(matrix)
    axes = np.abs(matrix).argmax(axis=1)  # output axis i shows input axis axes[i]
    x = x.transpose(0, 1, *(2 + axes))
    return np.flip(x, [2 + i for i, axis in enumerate(axes) if matrix[i, axis] < 0])


@pytest.mark.parametrize("group", ["mirror", "p4", "p4m"])
@pytest.mark.parametrize("padding", [0, 1])
def test_the_analysis_says_so(group, padding, rng):
    model = network(group, rng, padding=padding)
    elements = symmetry_group(group)
    for place, transform in transforms(group):
        with nc.using(accuracy="strict"):
            found = equivariance_error(model, whole(rng, 1, 2, *SIZES[group]), transform, channels=elements.channels(place, 2))
        assert found == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("group", ["p4", "p4m"])
def test_on_real_data_up_to_rounding(group, rng):
    model = nn.Sequential(nn.GroupLift(3, 3, group=group, padding=1), nn.ReLU(), nn.GroupConv(2, 3, group=group, padding=1))
    model.build((2, *SIZES[group]), rng=1)
    x = rng.standard_normal((1, 2, *SIZES[group])).astype("float32")
    for place, transform in transforms(group):
        found = equivariance_error(model, x, transform, channels=symmetry_group(group).channels(place, 2))
        assert found.error < 1e-6


def test_p4_is_not_equivariant_to_reflections(rng):
    model = network("p4", rng, padding=1)
    assert equivariance_error(model, whole(rng, 1, 2, 9, 9), reflection()).exact > 0.1


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_pooled_over_the_group_and_all_positions_nothing_changes(mode, rng):
    model = nn.Sequential(nn.GroupLift(4, 3, group="p4m", padding=1), nn.ReLU(), nn.GroupConv(3, 3, group="p4m", padding=1))
    model = with_whole_weights(nn.Sequential(*model.layers, nn.GroupPool("p4m", mode), nn.GlobalMaxPool()), (1, 8, 8), rng)
    x = whole(rng, 5, 1, 8, 8)
    for k, mirrored in itertools.product(range(4), (False, True)):
        turned = np.rot90(x, k, (2, 3))
        with nc.using(accuracy="strict"):
            np.testing.assert_array_equal(model(turned[..., ::-1] if mirrored else turned), model(x))


def test_batch_norm_treats_members_alike(rng):
    """So that the network stays equivariant, in training and with the running statistics."""
    lift, norm = nn.GroupLift(2, 3, group="p4m"), nn.GroupBatchNorm(group="p4m")
    model = nn.Sequential(lift, norm).build((1, 7, 7), dtype="float64")
    x = whole(rng, 4, 1, 7, 7)
    permuted = symmetry_group("p4m").channels(symmetry_group("p4m").nearest(rotation(90).matrix), 2)
    for training in (True, False):
        y = model.forward(x, training)[0]
        moved = model.forward(np.ascontiguousarray(np.rot90(x, 1, (2, 3))), training)[0]
        np.testing.assert_allclose(moved, np.rot90(y, 1, (2, 3))[:, permuted], atol=1e-12)
    assert norm.state["mean"].shape == (2,)
    assert norm.state["mean"].any()


def test_shifts_remain_exact(rng):
    model = network("p4", rng, padding=1, pad_mode="circular")
    x = whole(rng, 1, 2, 9, 9)
    np.testing.assert_array_equal(model(np.roll(x, (2, 3), (2, 3))), np.roll(model(x), (2, 3), (2, 3)))


# --- gradients


LINEAR = {
    "lift": (nn.GroupLift(2, 3, group="p4m", padding=1, stride=2), (2, 5, 5)),
    "group conv": (nn.GroupConv(2, 3, group="p4", padding=1), (8, 5, 5)),
    "even window": (nn.GroupConv(1, 2, group="p4"), (4, 5, 5)),
    "line": (nn.GroupConv(2, 3, group="mirror", pad_mode="reflect", padding=1, bias=False), (4, 8)),
    "cube": (nn.GroupLift(1, 3, group="cube"), (1, 4, 4, 4)),
    "scale conv": (nn.ScaleConv(2, 3, scales=3, span=2), (6, 9)),
    "scale conv 2-D": (nn.ScaleConv(1, 3, scales=2, span=1, pad_mode="circular", bias=False), (2, 5, 6)),
    "average": (nn.GroupPool("p4", "avg"), (8, 3, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEAR)
def test_gradients_are_adjoints(name, rng):
    """A layer is linear in x, and in its parameters: exact on whole numbers."""
    layer, shape = LINEAR[name]
    with_whole_weights(layer, shape, rng)
    x, dx = whole(rng, 2, *shape), whole(rng, 2, *shape)
    y, backward = layer.forward(x, training=True)
    assert y.shape == (2, *layer.output_shape(shape))
    g = 4 * whole(rng, *y.shape)
    grad_x, grads = backward(g)
    assert ((layer(x + dx) - y) * g).sum() == (grad_x * dx).sum()
    assert set(grads) == set(layer.parameters)
    for parameter, array in layer.parameters.items():
        change = whole(rng, *array.shape)
        array[...] += change
        assert ((layer(x) - y) * g).sum() == (grads[parameter] * change).sum()
        array[...] -= change
    nothing, again = backward(g, needs_x=False)
    assert nothing is None
    for parameter, grad in grads.items():
        np.testing.assert_array_equal(again[parameter], grad)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (
            nn.Sequential(nn.GroupLift(2, 3), nn.SiLU(), nn.GroupConv(2, 3), nn.ReLU(), nn.GroupPool(), nn.GlobalAvgPool()),
            (1, 7, 7),
        ),
        (nn.Sequential(nn.ScaleLift(2), nn.ScaleConv(2, 3, scales=2), nn.ReLU(), nn.ScalePool(2), nn.Flatten()), (1, 6, 5)),
        (nn.ScaleLift(3, blur=0.4, pad_mode="reflect"), (2, 9)),
        (nn.Sequential(nn.GroupLift(2, 3), nn.GroupBatchNorm(), nn.SiLU()), (1, 5, 5)),
    ],
    ids=["p4", "scales", "lift", "batch norm"],
)
def test_gradients_by_finite_differences(model, shape, rng):
    model.build(shape, rng=3, dtype="float64")
    x = rng.standard_normal((2, *shape))
    y, backward = model.forward(x, training=True)
    g = rng.standard_normal(y.shape)
    grad_x, grads = backward(g)
    step = 1e-6
    for array, grad in [(x, grad_x), *((array, grads[name]) for name, array in model.parameters.items())]:
        for _ in range(3):
            direction = rng.standard_normal(array.shape)
            ends = []
            for sign in (1, -1):
                array[...] += sign * step * direction
                ends.append(float((model.forward(x, training=True)[0] * g).sum()))
                array[...] -= sign * step * direction
            assert (ends[0] - ends[1]) / (2 * step) == pytest.approx((grad * direction).sum(), rel=1e-5, abs=1e-7)


# --- scales


def from_twice_as_far(maps, scales):
    """What the maps on a scale-space become: each level shows the following one, with every second sample."""
    n, _, *size = maps.shape
    levels = maps.reshape(n, -1, scales, *size)[:, :, 1:]
    levels = levels[:, :, :, *(slice(None, None, 2),) * len(size)]
    return np.concatenate([levels, np.zeros_like(levels[:, :, :1])], axis=2).reshape(n, -1, *levels.shape[3:])


@pytest.mark.parametrize("shape", [(32,), (16, 24)])
@pytest.mark.parametrize("span", [1, 2])
def test_scale_convolutions_move_with_the_scale(shape, span, rng):
    """Exactly on the levels whose kernels see no level that is missing, with circular padding."""
    scales = 3
    layer = with_whole_weights(nn.ScaleConv(2, 3, scales=scales, span=span, pad_mode="circular", bias=False), (3, *shape), rng)
    x = whole(rng, 1, 3, *shape)
    y = layer(x).reshape(1, 2, scales, *shape)
    far = layer(from_twice_as_far(x, scales))
    far = far.reshape(1, 2, scales, *far.shape[2:])
    expected = y[:, :, 1:][:, :, :, *(slice(None, None, 2),) * len(shape)]
    np.testing.assert_array_equal(far[:, :, : scales - 1], expected)


def test_the_scale_space_of_a_small_image_is_a_part_of_that_of_a_large_one(rng):
    """Up to what sampled Gaussians lack: an image blurred twice as much, and every second sample of it."""
    lift = nn.ScaleLift(scales=4, blur=0.7, pad_mode="circular").build((1, 64, 64), dtype="float64")
    x = lift(rng.standard_normal((1, 1, 64, 64)))[:, 1:2]  # no finer than the samples
    levels = lift(x)
    far = lift(np.ascontiguousarray(levels[:, 1:2, ::2, ::2]))
    expected = levels[:, 2:, ::2, ::2]
    assert np.linalg.norm(far[:, 1:3] - expected) < 0.02 * np.linalg.norm(expected)
    assert np.linalg.norm(far[:, :2] - expected) > 0.2 * np.linalg.norm(expected)


# --- as layers of numconv.nn


MODELS = {
    "p4": nn.Sequential(nn.GroupLift(4, 3), nn.ReLU(), nn.GroupConv(4, 3), nn.GroupPool(), nn.GlobalAvgPool(), nn.Linear(3)),
    "scales": nn.Sequential(nn.ScaleLift(2), nn.ScaleConv(4, 3, scales=2), nn.ScalePool(2, mode="avg"), nn.GlobalAvgPool()),
}


@pytest.mark.parametrize("name", MODELS)
def test_they_are_layers_like_any(name, rng):
    model = MODELS[name].build((1, 9, 9), rng=0)
    again = nn.from_config(model.config).build((1, 9, 9), rng=0)
    x = rng.standard_normal((3, 1, 9, 9)).astype("float32")
    y = model(x)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(again(x), y)
    trained, _ = model.forward(x, training=True)
    np.testing.assert_allclose(trained, y, rtol=1e-5, atol=1e-6)
    total = sum(array.size for array in model.parameters.values())
    assert f"{total:,} parameters" in model.summary((1, 9, 9))


def test_parameters_do_not_grow_with_the_group():
    assert nn.GroupLift(4, 3, group="p4m").build((2, 9, 9)).parameters["w"].shape == (4, 2, 3, 3)
    assert nn.GroupConv(4, 3, group="p4m").build((16, 9, 9)).parameters["w"].shape == (4, 2, 8, 3, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.GroupConv(4, 3).build((6, 9, 9)), r"\(6, 9, 9\) without N has 6 channels, no multiple of 4; lift it before"),
        (lambda: nn.GroupLift(4, 3).build((1, 9)), r"'p4' acts on 2 spatial dimensions, and the input without N is \(1, 9\)"),
        (lambda: nn.GroupLift(4, (3, 5)), r"window=\(3, 5\) must be an int: a kernel that turns has equal sides"),
        (lambda: nn.GroupBatchNorm().build((6, 9, 9)), "6 channels, no multiple of 4"),
        (lambda: nn.GroupPool("p4", "sum"), "mode='sum' is not max or avg"),
        (lambda: nn.ScalePool(2).build((5, 9)), r"\(5, 9\) without N has 5 channels, no multiple of 2"),
        (lambda: nn.ScaleConv(4, 2), "window=2 must be an odd integer"),
        (lambda: nn.ScaleConv(4, 3, scales=2, span=3), "span=3 must be 1 to scales=2"),
        (lambda: nn.ScaleLift(0), "scales=0 must be an integer of at least 1"),
        (lambda: nn.ScaleLift(2.5), "scales=2.5 must be an integer of at least 1"),
        (lambda: nn.ScalePool(0), "ScalePool: scales=0 must be an integer of at least 1"),
        (lambda: nn.ScaleConv(0, 3), "channels=0 must be an integer of at least 1"),
        (lambda: nn.ScaleConv(4, -3), "window=-3 must be an integer of at least 1"),
        (lambda: nn.ScaleLift(2, blur=0), "blur=0 must be positive"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(nc.ProblemError, match=message):
        call()
