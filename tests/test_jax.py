"""numconv in JAX: results, derivatives of any order, transformations, compiled functions."""

from __future__ import annotations

import functools
import inspect

import numpy as np
import pytest

import numconv as nc
from numconv.errors import ProblemError

jax = pytest.importorskip("jax", reason="the package jax is not installed")
nj = pytest.importorskip("numconv.jax")
check_grads = pytest.importorskip("jax.test_util").check_grads
jnp = jax.numpy


@pytest.fixture(autouse=True)
def double_precision():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


REFLECTED = {"stride": (2, 1), "padding": ((1, 0), (1, 2)), "dilation": (1, 2), "groups": 2, "pad_mode": "reflect"}
TRANSPOSED = {"stride": 2, "padding": 1, "dilation": (3, 1), "groups": 2, "output_padding": (2, 1)}
LAST = {"padding": "same", "groups": 2, "layout": "channels_last"}

CONVOLUTIONS = {
    "reflected": (nj.conv, (1, 4, 4, 5), (6, 2, 3, 2), REFLECTED),
    "transposed": (nj.conv_transpose, (2, 4, 2, 3), (4, 3, 2, 2), TRANSPOSED),
    "channels last, no N": (nj.conv, (6, 5, 4), (6, 2, 3, 2), LAST),
}
POSITIONS = np.random.default_rng(0).integers(0, 15, (2, 4, 4, 3))  # some of them twice
WINDOWS = {
    "max_pool": functools.partial(nj.max_pool, window=3, stride=2, padding=1),
    "max_pool, channels last": functools.partial(nj.max_pool, window=(2, 3), layout="channels_last"),
    "avg_pool": functools.partial(nj.avg_pool, window=3, stride=2, padding=1, ceil_mode=True),
    "lp_pool": functools.partial(nj.lp_pool, window=3, stride=2, p=3, padding=1, ceil_mode=True),
    "pad": functools.partial(nj.pad, width=((2, 0), (1, 3)), mode="circular"),
    "unfold": functools.partial(nj.unfold, window=2, padding=1),
    "max_unpool": functools.partial(nj.max_unpool, indices=POSITIONS, x_shape=(2, 4, 5, 3)),
    "max_unpool, channels last": functools.partial(
        nj.max_unpool, indices=POSITIONS, x_shape=(2, 4, 5, 3), ndim=2, layout="channels_last"
    ),
    "fold": functools.partial(nj.fold, x_shape=(2, 2, 2, 5), window=(2, 1), padding=((0, 1), (1, 0))),
}
GRID = {"fold": (2, 4, 12)}


def normal(*shape, dtype="float64"):
    rng = np.random.default_rng(sum(shape))
    imaginary = 1j * rng.standard_normal(shape) if dtype == "complex128" else 0
    return jnp.asarray((rng.standard_normal(shape) + imaginary).astype(dtype))


def integers(*shape, dtype="float32"):
    return jnp.asarray(np.random.default_rng(sum(shape)).integers(-4, 5, shape).astype(dtype))


def grid(case, make=integers):
    return make(*GRID.get(case, (2, 4, 4, 3)))


# --- results -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", ["float32", "complex64", "int32"])
def test_convolutions_are_those_of_numconv(case, dtype):
    function, x_shape, w_shape, options = CONVOLUTIONS[case]
    x, w, bias = (integers(*shape, dtype=dtype) for shape in (x_shape, w_shape, (6,)))
    expected = getattr(nc, function.__name__)(*map(np.asarray, (x, w, bias)), **options)
    function = functools.partial(function, **options)
    for form in (function, jax.jit(function)):
        found = form(x, w, bias)
        assert isinstance(found, jax.Array)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("case", WINDOWS)
def test_windows_are_those_of_numconv(case):
    x, function = grid(case), WINDOWS[case]
    expected = getattr(nc, function.func.__name__)(np.asarray(x), **function.keywords)
    np.testing.assert_array_equal(function(x), expected)
    np.testing.assert_array_equal(jax.jit(function)(x), expected)


@pytest.mark.parametrize("wide", [True, False])
def test_indices_of_maxima(wide):
    jax.config.update("jax_enable_x64", wide)
    x = integers(2, 4, 6)
    _, indices = jax.jit(lambda x: nj.max_pool(x, 2, return_indices=True))(x)
    assert indices.dtype == ("int64" if wide else "int32")
    np.testing.assert_array_equal(indices, nc.max_pool(np.asarray(x), 2, return_indices=True)[1])
    assert jax.grad(lambda x: nj.max_pool(x, 2).sum())(x).sum() == 24


@pytest.mark.parametrize("wide", [True, False])
def test_maxima_put_back(wide):
    jax.config.update("jax_enable_x64", wide)
    x = integers(2, 4, 6)

    @jax.jit
    def kept(x):
        return nj.max_unpool(*nj.max_pool(x, 2, return_indices=True), x.shape)

    expected = nc.max_unpool(*nc.max_pool(np.asarray(x), 2, return_indices=True), x.shape)
    np.testing.assert_array_equal(kept(x), expected)
    np.testing.assert_array_equal(jax.grad(lambda x: (kept(x) ** 2).sum())(x), 2 * expected)


def test_maxima_put_back_without_n():
    y, indices = nj.max_pool(integers(3, 4, 6), 3, return_indices=True)
    unpool = functools.partial(nj.max_unpool, x_shape=(4, 6), ndim=1)
    np.testing.assert_array_equal(jax.vmap(unpool)(y, indices), nj.max_unpool(y, indices, (3, 4, 6)))
    expected = jnp.stack([unpool(y[1], each) for each in indices])
    np.testing.assert_array_equal(jax.vmap(unpool, (None, 0))(y[1], indices), expected)


def test_bfloat16():
    x, w = integers(1, 3, 9, dtype="bfloat16"), integers(4, 3, 3, dtype="bfloat16")
    y, pull = jax.vjp(jax.jit(nj.conv), x, w)
    assert y.dtype == pull(y)[1].dtype == "bfloat16"
    np.testing.assert_array_equal(y.astype("float32"), nc.conv(np.asarray(x, "float32"), np.asarray(w, "float32")))


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_activations(activation):
    x, w = normal(1, 2, 9), normal(3, 2, 3)
    expected = nc.conv(np.asarray(x), np.asarray(w), activation=activation)
    np.testing.assert_allclose(nj.conv(x, w, activation=activation), expected, rtol=1e-12, atol=1e-12)


def test_large_results_are_not_copied(monkeypatch):
    from numconv.derivatives import Trilinear

    results = []
    run = Trilinear.run
    monkeypatch.setattr(Trilinear, "run", lambda *given: results.append(run(*given)) or results[-1])
    y = nj.conv(integers(1, 8, 2**16), integers(8, 8, 3))
    assert y.unsafe_buffer_pointer() == results[0].ctypes.data


def test_large_arrays_in_a_compiled_chain():
    """Callbacks that hand their arrays to JAX again are known to wait for ever; these do not."""
    x, w = integers(1, 8, 2**18), integers(8, 8, 3)

    @jax.jit
    def chain(x, w):
        for _ in range(3):
            x = nj.max_pool(nj.conv(jnp.sign(x), w, padding=1), 2)
        return x

    y = chain(x, w)
    assert y.shape == (1, 8, 2**15)
    np.testing.assert_array_equal(y, chain(x + 0, w))


@pytest.mark.parametrize("function", nj.__all__)
def test_options_are_those_of_numconv(function):
    ours = inspect.signature(getattr(nj, function)).parameters.values()
    plain = inspect.signature(getattr(nc, function)).parameters.values()
    assert {(p.name, p.default) for p in plain if p.name not in ("dtype", "out")} == {(p.name, p.default) for p in ours}


# --- derivatives and transformations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_derivatives_of_convolutions(case):
    function, x_shape, w_shape, options = CONVOLUTIONS[case]
    function = functools.partial(function, **options)
    check_grads(function, (normal(*x_shape), normal(*w_shape), normal(6)), order=2)
    check_grads(jax.jit(function), (normal(*x_shape), normal(*w_shape)), order=1, modes=("rev",))


def test_derivatives_of_complex_convolutions():
    x, w = normal(1, 2, 5, dtype="complex128"), normal(3, 2, 2, dtype="complex128")
    check_grads(nj.conv, (x, w), order=2)
    check_grads(lambda x: nj.conv_transpose(x, w[:2], stride=2), (x,), order=2)


@pytest.mark.parametrize("case", WINDOWS)
def test_derivatives_of_windows(case):
    check_grads(WINDOWS[case], (grid(case, normal),), order=2)


def test_norms_of_nothing_have_a_derivative():
    x = jnp.zeros((1, 1, 4))
    assert not jax.hessian(lambda x: nj.lp_pool(x, 2).sum())(x).any()


def test_gradients_are_those_of_jax():
    x, w = integers(2, 4, 9, 8), integers(6, 2, 3, 3)
    ours = jax.grad(lambda x, w: (nj.conv(x, w, stride=2, padding=1, groups=2) ** 2).sum(), (0, 1))(x, w)

    def theirs(x, w):
        return (jax.lax.conv_general_dilated(x, w, (2, 2), [(1, 1)] * 2, feature_group_count=2) ** 2).sum()

    for mine, other in zip(ours, jax.grad(theirs, (0, 1))(x, w), strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("options", [{"groups": 2}, LAST], ids=["channels first", "channels last"])
@pytest.mark.parametrize("mapped", [(0, 0, 0), (1, None, None), (None, 2, None), (None, None, 0)], ids=str)
def test_vmap(options, mapped):
    shapes = [(2, 6, 5, 4) if options is LAST else (2, 4, 6, 5), (6, 2, 3, 2), (6,)]
    many = [integers(3, *shape) for shape in shapes]
    moved = [each[0] if axis is None else jnp.moveaxis(each, 0, axis) for each, axis in zip(many, mapped, strict=True)]
    function = functools.partial(nj.conv, **options)
    expected = [
        function(*(each[0] if axis is None else each[i] for each, axis in zip(many, mapped, strict=True))) for i in range(3)
    ]
    np.testing.assert_array_equal(jax.vmap(function, mapped)(*moved), jnp.stack(expected))
    np.testing.assert_array_equal(jax.jit(jax.vmap(function, mapped))(*moved), jnp.stack(expected))


@pytest.mark.parametrize("case", WINDOWS)
def test_vmap_of_windows(case):
    x = integers(3, *grid(case).shape)
    expected = jnp.stack([WINDOWS[case](each) for each in x])
    np.testing.assert_array_equal(jax.vmap(WINDOWS[case], 1)(jnp.moveaxis(x, 0, 1)), expected)


def test_gradients_of_each_sample():
    x, w = integers(3, 4, 7), integers(2, 2, 3)
    grad = jax.grad(lambda w, x: (nj.conv(x, w, groups=2) ** 2).sum())
    each = jax.jit(jax.vmap(grad, (None, 0)))(w, x)
    np.testing.assert_array_equal(each, jnp.stack([grad(w, one) for one in x]))


def test_settings_are_those_of_the_trace():
    x, w = integers(1, 2, 8), integers(2, 2, 3)
    with nc.using(backend="reference"):
        text = str(jax.make_jaxpr(nj.conv)(x, w))
    assert "reference" in text
    with pytest.raises(nc.UnsupportedProblemError, match="winograd"):
        nj.conv(x, w, stride=8, algorithm="winograd")


# --- errors --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x, w: nj.conv(x, w.astype("float64")), r"x has dtype float32 and w has float64.*w.astype\(x.dtype\)"),
        (lambda x, w: nj.conv(x, None), "numconv.jax.conv: w is None; give an array"),
        (lambda x, w: nj.max_pool(None, 2), "numconv.jax.max_pool: x is None; give an array"),
        (lambda x, w: nj.max_unpool(x, None, x.shape), "numconv.jax.max_unpool: indices is None; give an array"),
        (lambda x, w: nj.fold(None, (2, 2, 3), 2), "numconv.jax.fold: columns is None; give an array"),
        (lambda x, w: nj.conv(x, w, groups=3), r"2 input channels cannot be split into groups=3: 2 % 3 = 2"),
        (lambda x, w: nj.conv(x, w, jnp.ones(5, "float32")), r"bias has shape \(5,\), and must have \(2,\)"),
        (lambda x, w: nj.conv(x, w, activation="tanh"), "activation='tanh' is not one of relu, silu, gelu"),
        (lambda x, w: nj.max_pool(x, 9), "the window is larger than the padded input"),
        (lambda x, w: nj.fold(x, 3, 2), "x_shape=3 must be a tuple of integers"),
        (lambda x, w: nj.max_unpool(x, x, x.shape), r"dtype float32, and must have y's shape \(1, 2, 8\) and dtype int32 or int64"),
        (lambda x, w: nj.max_unpool(x, x[..., 1:].astype("int64"), x.shape), r"indices have shape \(1, 2, 7\) and dtype int64"),
        (lambda x, w: nj.max_unpool(x, x.astype("int64"), (1, 3, 8)), r"batch and channels \(1, 2\), x_shape has \(1, 3\)"),
    ],
)
def test_errors_come_with_the_trace(call, text):
    with pytest.raises(ProblemError, match=text):
        jax.make_jaxpr(call)(integers(1, 2, 8), integers(2, 2, 3))
