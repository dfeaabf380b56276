"""Every gradient of `numconv.nn` against finite differences in float64."""

from __future__ import annotations

import numpy as np
import pytest

import numconv as nc
from numconv import nn


@pytest.fixture(autouse=True)
def reference():
    """The chain rule is the same on any backend, and this one compiles nothing."""
    with nc.using(backend="reference"):
        yield


LAYERS = {
    "conv": (nn.Conv(3, 3, padding=1, stride=2), (2, 7)),
    "conv2d": (nn.Conv(4, (3, 2), padding="same", groups=2, pad_mode="reflect"), (2, 5, 6)),
    "conv3d": (nn.Conv(2, 2, dilation=2, bias=False), (1, 4, 5, 4)),
    "transpose": (nn.ConvTranspose(3, 3, stride=2, padding=1, output_padding=1), (2, 4, 3)),
    "transpose groups": (nn.ConvTranspose(2, 4, stride=2, groups=2, bias=False), (4, 5)),
    "max pool": (nn.MaxPool(3, stride=2, padding=1), (2, 7, 6)),
    "avg pool": (nn.AvgPool(2, ceil_mode=True, count_include_pad=False), (2, 5, 5)),
    "lp pool": (nn.LpPool(2, p=3), (2, 6)),
    "global average": (nn.GlobalAvgPool(), (3, 4, 2)),
    "global maximum": (nn.GlobalMaxPool(), (3, 4, 2)),
    "linear": (nn.Linear(4), (5,)),
    "linear without bias": (nn.Linear(4, bias=False), (5,)),
    "relu": (nn.ReLU(), (3, 4)),
    "silu": (nn.SiLU(), (3, 4)),
    "gelu": (nn.GELU(), (3, 4)),
    "flatten": (nn.Flatten(), (3, 4)),
    "dropout": (nn.Dropout(0.4), (3, 4)),
    "batch norm": (nn.BatchNorm(), (3, 4, 2)),
    "batch norm of features": (nn.BatchNorm(epsilon=0.1), (5,)),
    "residual": (nn.Residual(nn.Conv(3, 3, padding=1), nn.ReLU(), nn.Conv(3, 1), nn.ReLU()), (3, 5)),
    "shortcut": (nn.Residual(nn.Conv(4, 3, padding=1), nn.SiLU(), shortcut=nn.Conv(4, 1, bias=False)), (2, 5)),
    "parallel": (nn.Parallel(nn.Conv(2, 3, padding=1), nn.Conv(1, 1), nn.MaxPool(3, stride=1, padding=1)), (2, 5)),
    "fused": (nn.Sequential(nn.Conv(4, 3), nn.ReLU(), nn.MaxPool(2), nn.Conv(3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2)), (2, 9)),
    "fused norm": (nn.Sequential(nn.Conv(3, 3), nn.BatchNorm(), nn.ReLU(), nn.MaxPool(2), nn.BatchNorm(), nn.ReLU()), (2, 8)),
    "fused, then a view": (nn.Sequential(nn.Conv(3, 3), nn.ReLU(), nn.Flatten()), (2, 6)),
    "fused, then a sum": (nn.Sequential(nn.Conv(3, 3), nn.ReLU(), nn.Residual(nn.Conv(3, 1), nn.ReLU())), (2, 6)),
    "not fused": (nn.Sequential(nn.ReLU(), nn.Conv(3, 3), nn.GELU(), nn.ReLU(), nn.AvgPool(2)), (2, 8)),
    "nested": (nn.Sequential(nn.Sequential(nn.Conv(3, 3), nn.ReLU()), nn.MaxPool(2), nn.Residual(nn.Conv(3, 1))), (1, 8)),
}  # fmt: skip


def numeric(function, array, step=1e-6):
    """Central differences of a function of no argument, for each element of `array`, which it reads."""
    grad = np.zeros_like(array)
    for place in np.ndindex(array.shape):
        value = array[place]
        results = []
        for moved in (value + step, value - step):
            array[place] = moved
            results.append(function())
        array[place] = value
        grad[place] = (results[0] - results[1]) / (2 * step)
    return grad


def distinct(rng, shape):
    """Values far enough from each other, and from 0, for maxima and kinks to stay where they are."""
    size = int(np.prod(shape))
    return (rng.permutation(size) - size / 2 + 0.25).reshape(shape) / size * 3


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_layers(name, rng):
    layer, shape = LAYERS[name]
    layer.build(shape, rng=1, dtype="float64")
    for array in layer.parameters.values():
        array[...] += 0.1 * rng.standard_normal(array.shape)
    x = distinct(rng, (3, *shape))
    y, backward = layer.forward(x, training=True, rng=np.random.default_rng(5))
    assert y.shape == (3, *layer.output_shape(shape))
    g = rng.standard_normal(y.shape)
    kept = g.copy()
    grad_x, grads = backward(g)
    np.testing.assert_array_equal(g, kept)

    def loss():
        return float((layer.forward(x, training=True, rng=np.random.default_rng(5))[0] * g).sum())

    assert set(grads) == set(layer.parameters)
    np.testing.assert_allclose(grad_x, numeric(loss, x), rtol=1e-6, atol=1e-7)
    for parameter, array in layer.parameters.items():
        np.testing.assert_allclose(grads[parameter], numeric(loss, array), rtol=1e-6, atol=1e-7, err_msg=parameter)
    nothing, again = backward(g, needs_x=False)
    assert nothing is None
    for parameter, array in grads.items():
        np.testing.assert_array_equal(again[parameter], array)


@pytest.mark.parametrize("name", LAYERS)
def test_an_empty_batch(name):
    layer, shape = LAYERS[name]
    layer.build(shape, dtype="float64")
    y, backward = layer.forward(np.zeros((0, *shape)))
    assert y.shape == (0, *layer.output_shape(shape))
    grad_x, grads = backward(np.zeros(y.shape))
    assert grad_x.shape == (0, *shape)
    assert {name: grad.shape for name, grad in grads.items()} == {name: w.shape for name, w in layer.parameters.items()}
    assert not any(grad.any() for grad in grads.values())


def test_gradient_of_batch_norm_in_inference(rng):
    layer = nn.BatchNorm().build((3, 4), dtype="float64")
    layer.state["mean"][...] = rng.standard_normal(3)
    x, g = rng.standard_normal((2, 2, 3, 4))
    grad_x, grads = layer.forward(x)[1](g)
    arrays = {"x": x, **layer.parameters}

    def loss():
        return (layer(x) * g).sum()

    for name, grad in {"x": grad_x, **grads}.items():
        np.testing.assert_allclose(grad, numeric(loss, arrays[name]), rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4), (2, 3, 2, 2)])
def test_gradient_of_cross_entropy(shape, rng):
    scores = rng.standard_normal(shape)
    labels = rng.integers(shape[1], size=(shape[0], *shape[2:]))
    loss, grad = nn.cross_entropy(scores, labels)
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    chosen = np.take_along_axis(probabilities, labels[:, None], axis=1)
    np.testing.assert_allclose(loss, -np.log(chosen).mean(), rtol=1e-12)
    np.testing.assert_allclose(grad, numeric(lambda: nn.cross_entropy(scores, labels)[0], scores), rtol=1e-6, atol=1e-9)


def test_gradient_of_mean_squared_error(rng):
    y, target = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 3, 4))
    grad = nn.mean_squared_error(y, target)[1]
    np.testing.assert_allclose(grad, numeric(lambda: nn.mean_squared_error(y, target)[0], y), rtol=1e-6, atol=1e-9)
