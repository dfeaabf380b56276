"""Gradients through the public functions, compared with finite differences in float64."""

import functools
import itertools

import numpy as np
import pytest

import numconv as nc

STEP = 1e-5
CONVS = {
    "1-D": ((2, 2, 9), (3, 2, 4), {"stride": 2, "padding": 1}),
    "2-D": ((1, 2, 5, 6), (3, 2, 3, 2), {"padding": ((1, 0), (0, 2)), "dilation": (1, 2), "flip": True}),
    "3-D": ((1, 2, 4, 3, 3), (2, 1, 2, 3, 2), {"groups": 2, "padding": 1, "stride": (1, 2, 1)}),
    "reflect": ((1, 2, 4, 5), (2, 2, 3, 3), {"padding": 3, "pad_mode": "reflect"}),
    "symmetric": ((1, 2, 4, 5), (2, 2, 3, 3), {"padding": 2, "pad_mode": "symmetric", "stride": 2}),
    "replicate": ((1, 2, 6), (2, 2, 3), {"padding": "causal", "pad_mode": "replicate", "dilation": 3}),
    "circular": ((2, 4, 5), (4, 1, 3), {"padding": "same", "pad_mode": "circular", "groups": 4}),
    "channels_last": ((2, 5, 4, 3), (2, 3, 3, 3), {"padding": "same", "layout": "channels_last"}),
    "batchless": ((2, 5, 6), (3, 2, 3, 3), {"padding": "full"}),
}
TRANSPOSED = {
    "1-D": ((2, 3, 5), (3, 2, 4), {"stride": 2, "padding": 1, "output_padding": 1}),
    "2-D": ((1, 4, 3, 4), (4, 1, 3, 2), {"stride": (2, 1), "groups": 2, "dilation": (1, 2), "flip": True}),
    "3-D": ((1, 2, 2, 3, 2), (2, 2, 2, 1, 3), {"padding": (1, 0, 1)}),
    "same": ((1, 2, 4, 4), (2, 3, 3, 3), {"stride": 2, "padding": "same"}),
    "circular": ((1, 2, 5), (2, 2, 3), {"padding": 1, "pad_mode": "circular"}),
    "channels_last": ((1, 3, 4, 2), (2, 3, 3, 3), {"stride": 2, "layout": "channels_last"}),
}
POOLS = {
    "1-D": ((2, 2, 9), 3, {"stride": 2, "padding": 1}),
    "2-D": ((1, 2, 6, 7), (3, 2), {"stride": (2, 1), "padding": ((1, 0), (0, 1)), "ceil_mode": True}),
    "3-D": ((1, 2, 4, 4, 3), 2, {}),
    "dilated": ((1, 1, 8, 7), 2, {"stride": 1, "dilation": (3, 2), "padding": 1}),
    "channels_last": ((2, 5, 6, 3), 2, {"layout": "channels_last", "ceil_mode": True}),
    "batchless": ((2, 5, 6), (2, 3), {"padding": "same"}),
}


def numerical_gradient(loss, array):
    """Central differences of `loss` for each element of `array`, which is put back."""
    gradient = np.empty_like(array)
    for at in np.ndindex(*array.shape):
        kept = array[at]
        array[at] = kept + STEP
        above = loss()
        array[at] = kept - STEP
        gradient[at] = (above - loss()) / (2 * STEP)
        array[at] = kept
    return gradient


def close(gradient, expected):
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)


def weighted_sum(function, grad_y):
    return lambda: float((function() * grad_y).sum())


@pytest.mark.parametrize("name", CONVS)
def test_conv(backend, rng, name):
    x_shape, w_shape, options = CONVS[name]
    options = options | {"backend": backend}
    x, w, bias = rng.standard_normal(x_shape), rng.standard_normal(w_shape), rng.standard_normal(w_shape[0])

    def forward():
        return nc.conv(x, w, bias, **options)

    grad_y = rng.standard_normal(forward().shape)
    grads = nc.conv_backward(grad_y, x, w, **options)
    for gradient, array in zip(grads, (x, w, bias), strict=True):
        close(gradient, numerical_gradient(weighted_sum(forward, grad_y), array))
    close(nc.conv_input_grad(grad_y, w, x_shape, **options), grads.x)
    close(nc.conv_weight_grad(grad_y, x, w_shape, **options), grads.w)


@pytest.mark.parametrize("name", TRANSPOSED)
def test_conv_transpose(backend, rng, name):
    x_shape, w_shape, options = TRANSPOSED[name]
    options = options | {"backend": backend}
    x, w = rng.standard_normal(x_shape), rng.standard_normal(w_shape)
    bias = rng.standard_normal(w_shape[1] * options.get("groups", 1))

    def forward():
        return nc.conv_transpose(x, w, bias, **options)

    grad_y = rng.standard_normal(forward().shape)
    grads = nc.conv_transpose_backward(grad_y, x, w, **options)
    for gradient, array in zip(grads, (x, w, bias), strict=True):
        close(gradient, numerical_gradient(weighted_sum(forward, grad_y), array))


@pytest.mark.parametrize("needs", [np.array(["x", "bias"]), ["x", "bias"], {"x", "bias"}, iter(["x", "bias"])])
def test_needs_in_any_collection(needs, rng):
    x, w = rng.standard_normal((2, 3, 5)), rng.standard_normal((4, 3, 2))
    grads = nc.conv_backward(rng.standard_normal((2, 4, 4)), x, w, needs=needs)
    assert [grad is None for grad in grads] == [False, True, False]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("needs", [n for size in (1, 2, 3) for n in itertools.permutations(("x", "w", "bias"), size)], ids="-".join)
def test_needs(backend, rng, needs, transposed):
    x, w = rng.standard_normal((2, 3, 7)), rng.standard_normal((3, 3, 3))
    forward, backward = (nc.conv_transpose, nc.conv_transpose_backward) if transposed else (nc.conv, nc.conv_backward)
    grad_y = rng.standard_normal(forward(x, w, stride=2).shape)
    every = backward(grad_y, x, w, stride=2, backend=backend)
    some = backward(grad_y, x, w, needs=needs, stride=2, backend=backend)
    for name in ("x", "w", "bias"):
        if name in needs:
            close(getattr(some, name), getattr(every, name))
        else:
            assert getattr(some, name) is None


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("op", ["max_pool", "avg_pool", "avg_pool without padding", "lp_pool", "lp_pool p=3"])
def test_pooling(backend, rng, op, name):
    x_shape, window, options = POOLS[name]
    op, _, variant = op.partition(" ")
    options = options | {"backend": backend} | {"without padding": {"count_include_pad": False}, "p=3": {"p": 3}}.get(variant, {})
    # Neither ties, nor values near zero, where the functions have no derivative.
    values = rng.permutation(np.prod(x_shape)) + 1.0
    x = (values * rng.choice([-0.1, 0.1], values.size)).reshape(x_shape)
    forward = functools.partial(getattr(nc, op), x, window, **options)
    grad_y = rng.standard_normal(forward().shape)
    given = x_shape if op == "avg_pool" else x
    gradient = getattr(nc, f"{op}_backward")(grad_y, given, window, **options)
    close(gradient, numerical_gradient(weighted_sum(forward, grad_y), x))


@pytest.mark.parametrize("name", POOLS)
def test_max_pool_with_indices(backend, rng, name):
    x_shape, window, options = POOLS[name]
    x = rng.permutation(np.prod(x_shape)).astype(float).reshape(x_shape)
    y, indices = nc.max_pool(x, window, return_indices=True, backend=backend, **options)
    grad_y = rng.standard_normal(y.shape)
    expected = nc.max_pool_backward(grad_y, x, window, backend=backend, **options)
    close(nc.max_pool_backward(grad_y, x, window, indices=indices, backend=backend, **options), expected)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_max_unpool(backend, rng, layout):
    y = rng.standard_normal((2, 3, 4, 2))
    indices = rng.integers(0, 12, y.shape)  # some positions twice
    x_shape = (2, 3, 3, 4) if layout == "channels_first" else (2, 4, 3, 2)
    forward = functools.partial(nc.max_unpool, y, indices, x_shape, layout=layout, backend=backend)
    grad = rng.standard_normal(x_shape)
    gradient = nc.max_unpool_backward(grad, indices, layout=layout, backend=backend)
    close(gradient, numerical_gradient(weighted_sum(forward, grad), y))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "symmetric", "replicate", "circular"])
def test_pad(backend, rng, mode):
    x, width = rng.standard_normal((2, 2, 3, 4)), ((5, 0), (2, 9))
    forward = functools.partial(nc.pad, x, width, mode, backend=backend)
    grad = rng.standard_normal(forward().shape)
    close(nc.pad_backward(grad, width, mode, backend=backend), numerical_gradient(weighted_sum(forward, grad), x))


def test_unfold_and_fold(backend, rng):
    window, options = (3, 2), {"stride": (2, 1), "padding": ((1, 0), (0, 2)), "dilation": (1, 2), "backend": backend}
    x = rng.standard_normal((2, 2, 6, 5))
    unfold = functools.partial(nc.unfold, x, window, **options)
    columns = rng.standard_normal(unfold().shape)
    close(nc.fold(columns, x.shape, window, **options), numerical_gradient(weighted_sum(unfold, columns), x))
    fold = functools.partial(nc.fold, columns, x.shape, window, **options)
    close(nc.unfold(x, window, **options), numerical_gradient(weighted_sum(fold, x.copy()), columns))
