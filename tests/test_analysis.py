"""Receptive fields, and the matrix of a convolution."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import sparse

import numconv as nc


@pytest.fixture(autouse=True)
def reference():
    with nc.using(backend="reference"):
        yield


@pytest.mark.parametrize(
    ("layers", "size", "stride", "start"),
    [
        ([3], (3,), (1,), (0,)),
        ([3, 3], (5,), (1,), (0,)),
        ([3, (2, 2), 3], (8,), (2,), (0,)),
        ([{"kernel": 3, "padding": 1}] * 2, (5,), (1,), (-2,)),
        ([{"kernel": 3, "stride": 2, "padding": 1}] * 3, (15,), (8,), (-7,)),
        ([{"kernel": 2, "dilation": d} for d in (1, 2, 4, 8)], (16,), (1,), (0,)),
        ([((3, 5), 1), (2, 2)], (4, 6), (2, 2), (0, 0)),
        ([(3, (1, 2), 1, (1, 0)), 3], (5, 7), (1, 2), (-1, 0)),
        ([[1, 4]], (1,), (4,), (0,)),
        ([np.int64(3)], (3,), (1,), (0,)),
    ],
)
def test_receptive_field(layers, size, stride, start):
    assert nc.receptive_field(layers) == (size, stride, start)
    assert nc.receptive_field(iter(layers)) == (size, stride, start)


@pytest.mark.parametrize(
    "layers",
    [
        [{"kernel": 3, "stride": 2, "padding": 1}, {"kernel": 4, "dilation": 2}, {"kernel": 2, "stride": 3, "padding": 1}],
        [{"kernel": (3, 2), "stride": (1, 2)}, {"kernel": (2, 3), "dilation": (3, 1), "padding": (0, 1)}],
    ],
)
def test_receptive_field_is_where_the_gradient_is(layers):
    """The gradient of one output for x is non-zero in its receptive field alone, and at both ends of it."""
    field = nc.receptive_field(layers)
    ndim, length = len(field.size), 60
    shape, shapes, options = (1, 1, *(length,) * ndim), [], []
    for layer in layers:
        given = {key: value for key, value in layer.items() if key != "kernel"}
        kernel = layer["kernel"] if isinstance(layer["kernel"], tuple) else (layer["kernel"],) * ndim
        shapes.append((shape, (1, 1, *kernel)))
        options.append(given)
        shape = nc.output_shape("conv", *shapes[-1], **given)
    middle = tuple(q // 2 for q in shape[2:])
    grad = np.zeros(shape)
    grad[0, 0, *middle] = 1
    for (x_shape, w_shape), given in zip(shapes[::-1], options[::-1], strict=True):
        grad = nc.conv_input_grad(grad, np.ones(w_shape), x_shape, **given)
    for axis, seen in enumerate(np.nonzero(grad[0, 0])):
        first = field.start[axis] + middle[axis] * field.stride[axis]
        assert (seen.min(), seen.max()) == (first, first + field.size[axis] - 1)


def test_matrix_is_toeplitz():
    found = nc.as_matrix(np.array([[[1.0, 2.0, 3.0]]]), (1, 5), padding=1)
    assert isinstance(found, sparse.csr_array)
    assert found.toarray().tolist() == [[2, 3, 0, 0, 0], [1, 2, 3, 0, 0], [0, 1, 2, 3, 0], [0, 0, 1, 2, 3], [0, 0, 0, 1, 2]]
    assert found.nnz == 13, "padding zeros take no entry"


OPTIONS = [
    {}, {"stride": 2}, {"padding": ((2, 1), (0, 3)), "dilation": (1, 2)}, {"groups": 2, "padding": "same", "stride": (1, 3)},
    {"flip": True, "padding": 1}, {"padding": 3, "pad_mode": "circular"}, {"padding": (5, 4), "pad_mode": "reflect", "flip": True},
    {"padding": 2, "pad_mode": "replicate", "groups": 2}, {"padding": 4, "pad_mode": "symmetric", "stride": 2},
    {"layout": "channels_last", "padding": ((1, 0), (2, 1)), "stride": (2, 1), "groups": 2},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("batch", [(), (1,), (3,)])
def test_matrix_is_the_convolution(rng, options, batch):
    groups = options.get("groups", 1)
    shape = (5, 4, 4) if options.get("layout") == "channels_last" else (4, 5, 4)
    x, w = rng.integers(-4, 5, (*batch, *shape)), rng.integers(-4, 5, (6, 4 // groups, 2, 2))
    y, matrix = nc.conv(x, w, **options), nc.as_matrix(w, x.shape, **options)
    assert matrix.shape == (y.size, x.size)
    np.testing.assert_array_equal(matrix @ x.ravel(), y.ravel())
    g = rng.integers(-4, 5, y.shape)
    grad = nc.conv_input_grad(g, w, x.shape, **options)
    np.testing.assert_array_equal(matrix.T @ g.ravel(), grad.ravel())


@pytest.mark.parametrize("dtype", ["f4", "c16", "i2"])
def test_matrix_keeps_the_dtype(dtype):
    w = np.ones((2, 1, 3), dtype)
    assert nc.as_matrix(w, (1, 6)).dtype == dtype
    assert nc.as_matrix(w, (2, 1, 6)).dtype == dtype


@pytest.mark.parametrize("ndim", [1, 3, 4])
def test_matrix_in_any_number_of_dimensions(rng, ndim):
    x, w = rng.integers(-4, 5, (1, *(3,) * ndim)), rng.integers(-4, 5, (2, 1, *(2,) * ndim))
    matrix = nc.as_matrix(w, x.shape)
    assert matrix.shape == (2 * 2**ndim, math.prod(x.shape))
    np.testing.assert_array_equal(matrix @ x.ravel(), nc.conv(x, w).ravel())
