"""Identities that hold for every geometry, exactly, because all numbers are small integers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numconv as nc
from numconv.plugin import CONV_OPS, ConvProblem, parse
from numconv.problem import ACTIVATIONS, LAYOUTS, LEVELS, PAD_MODES, SHORT, WIDER

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=20, database=None)
DTYPES = ("float32", "float64", "complex128", "int64")


def integers(rng, shape, dtype):
    values = rng.integers(-4, 5, shape)
    return (values + 1j * rng.integers(-4, 5, shape) if "complex" in dtype else values).astype(dtype)


def inner(a, b):
    return (a * b.conj()).sum()


def same(a, b):
    return a.shape == b.shape and (a == b).all()


@st.composite
def axis(draw):
    """(size, r, stride, dilation, (low, high)) of an axis that the kernel fits."""
    r, stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    low, high = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    least = max(1, dilation * (r - 1) + 1 - low - high)
    return draw(st.integers(least, least + 5)), r, stride, dilation, (low, high)


@st.composite
def geometries(draw):
    """(x_shape, w_shape, options, dtype, rng) of a convolution."""
    axes = draw(st.lists(axis(), min_size=1, max_size=3))
    size, kernel, stride, dilation, padding = zip(*axes, strict=True)
    n, c, k, groups = (draw(st.integers(1, most)) for most in (2, 3, 3, 3))
    options = {
        "stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
        "pad_mode": draw(st.sampled_from(PAD_MODES)), "flip": draw(st.booleans()),
    }  # fmt: skip
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    return (n, c * groups, *size), (k * groups, c, *kernel), options, draw(st.sampled_from(DTYPES)), rng


@given(geometries())
@EXAMPLES
def test_gradients_are_adjoints(backend, geometry):
    x_shape, w_shape, options, dtype, rng = geometry
    x, w = integers(rng, x_shape, dtype), integers(rng, w_shape, dtype)
    y = nc.conv(x, w, backend=backend, **options)
    g = integers(rng, y.shape, dtype)
    grad_x = nc.conv_input_grad(g, w, x_shape, backend=backend, **options)
    grad_w = nc.conv_weight_grad(g, x, w_shape, backend=backend, **options)
    assert inner(y, g) == inner(x, grad_x) == inner(w, grad_w)


@given(geometries())
@EXAMPLES
def test_conv_is_bilinear(backend, geometry):
    x_shape, w_shape, options, dtype, rng = geometry
    (x, x2), (w, w2) = ([integers(rng, shape, dtype) for _ in range(2)] for shape in (x_shape, w_shape))

    def conv(x, w):
        return nc.conv(x, w, backend=backend, **options)

    three = np.array(3, dtype)
    assert same(conv(x + three * x2, w), conv(x, w) + three * conv(x2, w))
    assert same(conv(x, w + three * w2), conv(x, w) + three * conv(x, w2))


@given(geometries(), st.integers(-5, 5))
@EXAMPLES
def test_a_shift_passes_through_a_circular_convolution(backend, geometry, shift):
    x_shape, w_shape, options, dtype, rng = geometry
    x, w = integers(rng, x_shape, dtype), integers(rng, w_shape, dtype)
    options |= {"stride": 1, "padding": "same", "pad_mode": "circular"}
    axes = tuple(range(2, x.ndim))
    y = nc.conv(x, w, backend=backend, **options)
    assert same(nc.conv(np.roll(x, shift, axes), w, backend=backend, **options), np.roll(y, shift, axes))


@given(geometries())
@EXAMPLES
def test_groups_are_convolutions_side_by_side(backend, geometry):
    x_shape, w_shape, options, dtype, rng = geometry
    x, w = integers(rng, x_shape, dtype), integers(rng, w_shape, dtype)
    groups = options["groups"]
    parts = zip(np.split(x, groups, axis=1), np.split(w, groups), strict=True)
    alone = [nc.conv(a, b, backend=backend, **options | {"groups": 1}) for a, b in parts]
    assert same(nc.conv(x, w, backend=backend, **options), np.concatenate(alone, axis=1))


@given(geometries())
@EXAMPLES
def test_conv_transpose_is_the_adjoint_of_conv(backend, geometry):
    x_shape, w_shape, options, dtype, rng = geometry
    x, w = integers(rng, x_shape, dtype), integers(rng, w_shape, dtype)
    y = nc.conv(x, w, backend=backend, **options)
    g = integers(rng, y.shape, dtype)
    axes = zip(x_shape[2:], y.shape[2:], w.shape[2:], options["stride"], options["dilation"], options["padding"], strict=True)
    extra = tuple(size - ((q - 1) * s + d * (r - 1) + 1 - low - high) for size, q, r, s, d, (low, high) in axes)
    back = nc.conv_transpose(g, w, output_padding=extra, backend=backend, **options)
    assert back.shape == x_shape
    assert inner(y, g) == inner(x, back)
    grads = nc.conv_transpose_backward(x, g, w, output_padding=extra, backend=backend, **options)
    # A complex w is conjugated in conv_transpose, so only the real part of the product is that of its gradient.
    assert inner(back, x) == inner(g, grads.x)
    assert inner(back, x).real == inner(w, grads.w).real
    assert same(grads.bias, x.sum((0, *range(2, x.ndim))))


@given(geometries())
@EXAMPLES
def test_conv_is_its_matrix(backend, geometry):
    x_shape, w_shape, options, dtype, rng = geometry
    x, w = integers(rng, x_shape, dtype), integers(rng, w_shape, dtype)
    assert same(nc.as_matrix(w, x_shape, **options) @ x.ravel(), nc.conv(x, w, backend=backend, **options).ravel())


@given(geometries())
@EXAMPLES
def test_conv_is_unfold_and_a_matrix_product(backend, geometry):
    (n, c, *size), (k, _, *kernel), options, dtype, rng = geometry
    x, w = integers(rng, (n, c, *size), dtype), integers(rng, (k, c, *kernel), dtype)
    window = {name: options[name] for name in ("stride", "padding", "dilation")}
    columns = nc.unfold(x, tuple(kernel), backend=backend, **window)
    y = nc.conv(x, w, backend=backend, **window)
    assert same((w.reshape(k, -1) @ columns).reshape(y.shape), y)


@given(geometries())
@EXAMPLES
def test_fold_is_the_adjoint_of_unfold(backend, geometry):
    x_shape, w_shape, options, dtype, rng = geometry
    window = {name: options[name] for name in ("stride", "padding", "dilation")}
    x = integers(rng, x_shape, dtype)
    columns = nc.unfold(x, w_shape[2:], backend=backend, **window)
    g = integers(rng, columns.shape, dtype)
    assert inner(columns, g) == inner(x, nc.fold(g, x_shape, w_shape[2:], backend=backend, **window))


@given(geometries(), st.sampled_from(LAYOUTS))
@EXAMPLES
def test_pad_backward_is_the_adjoint_of_pad(backend, geometry, layout):
    x_shape, _, options, dtype, rng = geometry
    if layout == "channels_last":
        x_shape = (x_shape[0], *x_shape[2:], x_shape[1])
    x, where = integers(rng, x_shape, dtype), (options["padding"], options["pad_mode"])
    padded = nc.pad(x, *where, layout=layout, backend=backend)
    g = integers(rng, padded.shape, dtype)
    back = nc.pad_backward(g, *where, layout=layout, backend=backend)
    assert back.shape == x_shape
    assert inner(padded, g) == inner(x, back)


@given(geometries())
@EXAMPLES
def test_max_unpool_backward_is_the_adjoint_of_max_unpool(backend, geometry):
    x_shape, _, _, dtype, rng = geometry
    y_shape = (*x_shape[:2], *rng.integers(1, 5, len(x_shape) - 2).tolist())
    y, g = integers(rng, y_shape, dtype), integers(rng, x_shape, dtype)
    indices = rng.integers(0, np.prod(x_shape[2:]), y_shape)
    x = nc.max_unpool(y, indices, x_shape, backend=backend)
    assert inner(x, g) == inner(y, nc.max_unpool_backward(g, indices, backend=backend))


@given(geometries())
@EXAMPLES
def test_max_unpool_puts_back_what_max_pool_took(backend, geometry):
    x_shape, w_shape, _, _, rng = geometry
    x = rng.permutation(np.arange(1.0, 1 + np.prod(x_shape))).reshape(x_shape)
    window = tuple(min(size, r) for size, r in zip(x_shape[2:], w_shape[2:], strict=True))
    y, indices = nc.max_pool(x, window, return_indices=True, backend=backend)
    back = nc.max_unpool(y, indices, x_shape, backend=backend)
    assert same(back[back != 0], x[back != 0])
    assert np.count_nonzero(back) == y.size


@pytest.mark.parametrize("op", ["avg_pool", "max_pool"])
@given(geometry=geometries())
@EXAMPLES
def test_pooling_a_constant_gives_the_constant(backend, op, geometry):
    x_shape, w_shape, options, _, _ = geometry
    window = tuple(min(size, r) for size, r in zip(x_shape[2:], w_shape[2:], strict=True))
    options = {"count_include_pad": False} if op == "avg_pool" else {}
    y = getattr(nc, op)(np.full(x_shape, 3.0), window, padding="same", stride=1, ceil_mode=True, backend=backend, **options)
    assert same(y, np.full(x_shape, 3.0))


@st.composite
def conv_problems(draw):
    axes = draw(st.lists(axis(), min_size=1, max_size=4))
    spatial, kernel, stride, dilation, padding = zip(*axes, strict=True)
    dtype = draw(st.sampled_from(tuple(SHORT)))
    choices = {
        "op": CONV_OPS, "n": (0, 1, 77), "groups": (1, 2), "pad_mode": PAD_MODES, "flip": (False, True), "layout": LAYOUTS,
        "bias": ("", "x", "y"), "activation": (None, *ACTIVATIONS), "out_dtype": (dtype, *WIDER.get(dtype, ())),
        "accuracy": (None, *LEVELS), "max_workspace": (1, 2**28, 2**40),
    }  # fmt: skip
    drawn = {name: draw(st.sampled_from(values)) for name, values in choices.items()}
    return ConvProblem(
        dtype=dtype, c=6, k=4, spatial=spatial, kernel=kernel, stride=stride, padding=padding, dilation=dilation, **drawn
    )


@given(conv_problems())
@EXAMPLES
def test_the_text_form_of_a_problem_parses_back(problem):
    assert parse(str(problem)) == problem
    assert hash(parse(str(problem))) == hash(problem)
