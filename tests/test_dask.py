"""numconv on Dask arrays: the same results whatever the chunks, lazily, in blocks of bounded size."""

from __future__ import annotations

import inspect
import pickle

import numpy as np
import pytest

import numconv as nc
from numconv.errors import ProblemError

da = pytest.importorskip("dask.array", reason="the package dask is not installed")
ncd = pytest.importorskip("numconv.dask")


@pytest.fixture(autouse=True)
def one_thread():
    import dask

    with dask.config.set(scheduler="synchronous"):
        yield


def integers(rng, shape, dtype="float64"):
    return rng.integers(-4, 5, tuple(shape)).astype(dtype)


def chunked(rng, array):
    """A Dask array with borders anywhere."""
    chunks = []
    for size in array.shape:
        borders = {0, size, *rng.integers(0, size + 1, rng.integers(0, 4)).tolist()}
        chunks.append(tuple(np.diff(sorted(borders)).tolist()))
    return da.from_array(array, chunks=tuple(chunks))


def problem(seed):
    """Arrays and options of a convolution with every option in any combination."""
    rng = np.random.default_rng(seed)
    while True:
        ndim, groups = int(rng.integers(1, 4)), int(rng.choice([1, 1, 2, 3]))
        per_group, filters, n = rng.integers(1, 3, 3).tolist()
        size, kernel, stride, dilation = (
            tuple(rng.integers(low, high, ndim).tolist()) for low, high in ((3, 12), (1, 5), (1, 5), (1, 3))
        )
        pairs = tuple(map(tuple, rng.integers(0, 7, (ndim, 2)).tolist()))
        options = {
            "stride": stride, "dilation": dilation, "padding": [0, 1, "same", "full", "causal", pairs][rng.integers(6)],
            "groups": groups, "flip": bool(rng.integers(2)), "layout": str(rng.choice(["channels_first", "channels_last"])),
            "pad_mode": str(rng.choice(["zeros", "zeros", "reflect", "symmetric", "replicate", "circular"])),
        }  # fmt: skip
        shape = (n, *size, groups * per_group) if options["layout"] == "channels_last" else (n, groups * per_group, *size)
        x = integers(rng, shape[rng.integers(2) :] if n == 1 else shape)
        w, bias = integers(rng, (groups * filters, per_group, *kernel)), integers(rng, (groups * filters,))
        try:
            return rng, x, w, bias, integers(rng, nc.output_shape("conv", x.shape, w.shape, **options)), options
        except ProblemError:
            continue


def agrees(found, expected):
    assert (found.shape, found.dtype, type(found._meta)) == (expected.shape, expected.dtype, np.ndarray)
    computed = found.compute()
    assert computed.shape == found.shape
    np.testing.assert_array_equal(computed, expected)


# --- results -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_chunks_change_no_result(seed):
    rng, x, w, bias, grad, options = problem(seed)
    chunked_x, chunked_w, chunked_grad = (chunked(rng, array) for array in (x, w, grad))
    with nc.using(backend="reference"):
        agrees(ncd.conv(chunked_x, chunked_w, bias, **options), nc.conv(x, w, bias, **options))
        agrees(ncd.conv_input_grad(chunked_grad, chunked_w, x.shape, **options), nc.conv_input_grad(grad, w, x.shape, **options))
        agrees(ncd.conv_weight_grad(chunked_grad, chunked_x, w.shape, **options), nc.conv_weight_grad(grad, x, w.shape, **options))


@pytest.mark.parametrize("seed", range(8))
def test_transposed(seed):
    rng, _, w, _, grad, options = problem(seed)
    options["padding"] = 0
    options["output_padding"] = tuple(max(s, d) - 1 for s, d in zip(options["stride"], options["dilation"], strict=True))
    bias = integers(rng, (w.shape[1] * options["groups"],))
    with nc.using(backend="reference"):
        agrees(ncd.conv_transpose(chunked(rng, grad), w, bias, **options), nc.conv_transpose(grad, w, bias, **options))


@pytest.mark.parametrize("seed", range(12))
def test_pooling(seed):
    rng, x, _, window, rest = pooling(seed)
    with nc.using(backend="reference"):
        agrees(ncd.max_pool(chunked(rng, x), window, **rest), nc.max_pool(x, window, **rest))
        agrees(ncd.lp_pool(chunked(rng, x), window, p=1, **rest), nc.lp_pool(x, window, p=1, **rest))
        for inside in (True, False):
            found = ncd.avg_pool(chunked(rng, x), window, count_include_pad=inside, **rest)
            np.testing.assert_allclose(found.compute(), nc.avg_pool(x, window, count_include_pad=inside, **rest), rtol=1e-15)


@pytest.mark.parametrize("seed", range(12))
def test_gradients_of_transposed(seed):
    rng, _, w, _, x, options = problem(seed)
    options["padding"] = [0, "same", 1][seed % 3]
    if options["padding"] != "same":
        options["output_padding"] = tuple(max(s, d) - 1 for s, d in zip(options["stride"], options["dilation"], strict=True))
    dtype = ["float64", "complex128"][seed % 2]
    x, w = x.astype(dtype) * (1 + 1j if seed % 2 else 1), w.astype(dtype) * (2 + 1j if seed % 2 else 1)
    try:
        grad = integers(rng, nc.output_shape("conv_transpose", x.shape, w.shape, **options), dtype)
    except ProblemError:
        options["padding"] = 0
        grad = integers(rng, nc.output_shape("conv_transpose", x.shape, w.shape, **options), dtype)
    with nc.using(backend="reference"):
        found = ncd.conv_transpose_backward(chunked(rng, grad), chunked(rng, x), chunked(rng, w), **options)
        for ours, plain in zip(found, nc.conv_transpose_backward(grad, x, w, **options), strict=True):
            agrees(ours, plain)


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_activations(rng, activation):
    x, w, bias = rng.standard_normal((2, 3, 9)), rng.standard_normal((3, 4, 3)), rng.standard_normal(4)
    found = ncd.conv_transpose(da.from_array(x, chunks=4), w, bias, stride=2, activation=activation)
    np.testing.assert_allclose(
        found.compute(), nc.conv_transpose(x, w, bias, stride=2, activation=activation), rtol=1e-12, atol=1e-12
    )
    found = ncd.conv(da.from_array(x, chunks=4), w.swapaxes(0, 1), bias, activation=activation)
    np.testing.assert_allclose(found.compute(), nc.conv(x, w.swapaxes(0, 1), bias, activation=activation), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", ncd.__all__)
def test_options_are_those_of_numconv(function):
    ours = inspect.signature(getattr(ncd, function)).parameters.values()
    plain = inspect.signature(getattr(nc, function)).parameters.values()
    assert {(p.name, p.default) for p in plain if p.name != "out"} == {(p.name, p.default) for p in ours}


def pooling(seed):
    """Arrays and options of a pooling."""
    rng, x, w, _, _, options = problem(seed)
    window = w.shape[2:]
    reach = [d * (r - 1) for d, r in zip(options["dilation"], window, strict=True)]
    rest = {name: options[name] for name in ("stride", "dilation", "layout")}
    rest |= {"padding": tuple((min(1, each), min(2, each)) for each in reach), "ceil_mode": bool(seed % 2)}
    try:
        shape = nc.output_shape("max_pool", x.shape, window, **rest)
    except ProblemError:
        rest |= {"stride": 1, "dilation": 1, "padding": 0, "ceil_mode": False}
        window = (1,) * len(window)
        shape = nc.output_shape("max_pool", x.shape, window, **rest)
    return rng, x, integers(rng, shape), window, rest


@pytest.mark.parametrize("seed", range(20))
def test_gradients_of_pooling(seed):
    rng, x, grad, window, rest = pooling(seed)
    chunked_grad, chunked_x = chunked(rng, grad), chunked(rng, x)
    with nc.using(backend="reference"):
        y, indices = nc.max_pool(x, window, return_indices=True, **rest)
        agrees(ncd.max_pool_backward(chunked_grad, chunked_x, window, **rest), nc.max_pool_backward(grad, x, window, **rest))
        found = ncd.max_pool(chunked_x, window, return_indices=True, **rest)
        agrees(found[0], y)
        agrees(found[1], indices)
        given = ncd.max_pool_backward(chunked_grad, x, window, indices=found[1], **rest)
        agrees(given, nc.max_pool_backward(grad, x, window, indices=indices, **rest))
        agrees(
            ncd.lp_pool_backward(chunked_grad, chunked_x, window, p=1, **rest), nc.lp_pool_backward(grad, x, window, p=1, **rest)
        )
        for inside in (True, False):
            found = ncd.avg_pool_backward(chunked_grad, x.shape, window, count_include_pad=inside, **rest)
            agrees(found, nc.avg_pool_backward(grad, x.shape, window, count_include_pad=inside, **rest))


@pytest.mark.parametrize("options", [{"padding": "same"}, {"stride": 1, "padding": 1}, {"stride": 4}], ids=str)
def test_gradients_of_pooling_have_many_chunks(rng, options):
    x = integers(rng, (2, 3, 40, 30), "float32")
    grad = integers(rng, nc.output_shape("max_pool", x.shape, 3, **options), "float32")
    chunked_x, chunked_grad = da.from_array(x, chunks=(1, 2, 9, 8)), da.from_array(grad, chunks=(1, 1, 4, 3))
    found = ncd.max_pool_backward(chunked_grad, chunked_x, 3, **options)
    assert min(found.numblocks[2:]) > 1
    agrees(found, nc.max_pool_backward(grad, x, 3, **options))
    agrees(ncd.avg_pool_backward(chunked_grad, x.shape, 3, **options), nc.avg_pool_backward(grad, x.shape, 3, **options))


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("n", [2, None])
def test_maxima_put_back(rng, layout, n):
    shape = (3, 9, 8) if layout == "channels_first" else (9, 8, 3)
    x, window = integers(rng, shape if n is None else (n, *shape)), (2, 3)
    y, indices = ncd.max_pool(da.from_array(x, chunks=2), window, layout=layout, return_indices=True)
    space = [axis + (n is not None) for axis in ((1, 2) if layout == "channels_first" else (0, 1))]
    whole = dict.fromkeys(space, -1)
    options = {"layout": layout, "ndim": 2}
    pooled = nc.max_pool(x, window, layout=layout, return_indices=True)
    back = ncd.max_unpool(y.rechunk(whole), indices.rechunk(whole), x.shape, **options)
    agrees(back, nc.max_unpool(*pooled, x.shape, **options))
    assert max(back.numblocks) == 2
    agrees(ncd.max_unpool_backward(back, indices.rechunk(whole), **options), pooled[0])


def test_backward(rng):
    x, w, grad = integers(rng, (2, 4, 11)), integers(rng, (6, 2, 3)), integers(rng, (2, 6, 6))
    options = {"stride": 2, "padding": 1, "groups": 2}
    found = ncd.conv_backward(da.from_array(grad, chunks=2), da.from_array(x, chunks=3), w, **options)
    for ours, plain in zip(found, nc.conv_backward(grad, x, w, **options), strict=True):
        agrees(ours, plain)
    assert ncd.conv_backward(grad, da.from_array(x, chunks=3), w, needs="bias", **options)[:2] == (None, None)


@pytest.mark.parametrize("dtype", ["float32", "complex64", "int8", "float16"])
def test_dtypes(rng, dtype):
    x, w = integers(rng, (2, 3, 20), dtype), integers(rng, (4, 3, 5), dtype)
    agrees(ncd.conv(da.from_array(x, chunks=(1, 2, 7)), da.from_array(w, chunks=2)), nc.conv(x, w))


def test_a_wider_dtype(rng):
    x, w = integers(rng, (1, 3, 20), "int8") * 20, integers(rng, (4, 3, 5), "int8") * 20
    agrees(ncd.conv(da.from_array(x, chunks=6), w, dtype="int32"), nc.conv(x, w, dtype="int32"))


def test_a_wider_dtype_of_gradients(rng):
    x, w, grad = (integers(rng, shape, "int8") * 20 for shape in ((2, 3, 20), (4, 3, 5), (2, 4, 16)))
    found = ncd.conv_backward(grad, da.from_array(x, chunks=6), w, dtype="int32")
    for ours, plain in zip(found, nc.conv_backward(grad, x, w, dtype="int32"), strict=True):
        agrees(ours, plain)


def test_half_types_are_added_up_in_float32():
    """In bfloat16 256 + 1 is 256."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    x, ones = np.array([[[256, 1, 1]]], bfloat16), np.ones((1, 1, 3), bfloat16)
    assert ncd.conv_weight_grad(ones, da.from_array(x, chunks=1), (1, 1, 1)).compute() == 258
    grads = ncd.conv_backward(da.from_array(x, chunks=1), x, np.ones((1, 1, 1), bfloat16), needs="bias")
    assert grads.bias.dtype == bfloat16
    assert grads.bias.compute() == 258


def test_half_types_are_rounded_once(rng):
    x, w = integers(rng, (2, 4, 9), "float16"), integers(rng, (4, 2, 5), "float16") * 100
    bias = np.full(2, 0.5, "float16")
    agrees(ncd.conv_transpose(da.from_array(x, chunks=3), w, bias), nc.conv_transpose(x, w, bias))


def test_either_byte_order(rng):
    x, w = integers(rng, (2, 3, 20)), integers(rng, (4, 3, 5))
    agrees(ncd.conv(da.from_array(x.astype(">f8"), chunks=7), w), nc.conv(x, w))


def test_chunks_of_nothing(rng):
    x, w, grad = integers(rng, (2, 3, 20)), integers(rng, (4, 3, 5)), integers(rng, (2, 4, 16))
    chunked_x = da.from_array(x, chunks=((0, 2), (1, 0, 2), (9, 0, 11)))
    chunked_w, chunked_grad = da.from_array(w, chunks=((0, 1, 3), 3, 5)), da.from_array(grad, chunks=((2, 0), (4, 0), (0, 16)))
    agrees(ncd.conv(chunked_x, chunked_w), nc.conv(x, w))
    for ours, plain in zip(ncd.conv_backward(chunked_grad, chunked_x, chunked_w), nc.conv_backward(grad, x, w), strict=True):
        agrees(ours, plain)
    nobody = ncd.max_pool(chunked_x[:0], 2, return_indices=True)
    agrees(nobody[1], nc.max_pool(x[:0], 2, return_indices=True)[1])


def test_padding_zeros_are_no_terms(rng):
    x, w = integers(rng, (1, 1, 12)), np.array([[[np.inf, 1.0, 1.0]]])
    agrees(ncd.conv(da.from_array(x, chunks=4), w, padding=2), nc.conv(x, w, padding=2))


def test_strict_has_the_bits_of_one_call(rng):
    x, w = rng.standard_normal((2, 6, 40), dtype="float32"), rng.standard_normal((4, 6, 7), dtype="float32")
    found = ncd.conv(da.from_array(x, chunks=(1, 2, 9)), da.from_array(w, chunks=(3, 2, 2)), padding=3, accuracy="strict")
    agrees(found, nc.conv(x, w, padding=3, accuracy="strict"))


# --- chunks --------------------------------------------------------------------------------------------------------------------


def test_nothing_is_computed_before_it_is_asked_for():
    def never(block):
        raise AssertionError("computed")

    x = da.zeros((4, 2, 1000), chunks=(2, 2, 100), dtype="float32").map_blocks(
        never, dtype="float32", meta=np.empty((0, 0, 0), "float32")
    )
    y = ncd.max_pool(ncd.conv(x, np.ones((3, 2, 5), "float32"), stride=2, padding="same", pad_mode="reflect"), 2)
    assert (y.shape, y.dtype) == ((4, 3, 250), "float32")
    assert y.numblocks == (2, 1, 10)
    with pytest.raises(AssertionError, match="computed"):
        y.compute()


def test_chunks_stay():
    x = da.zeros((4, 6, 100, 90), chunks=(2, 2, 25, 30), dtype="float32")
    assert ncd.conv(x, np.ones((6, 2, 5, 5), "float32"), padding=2, groups=3).chunks == ((2, 2), (2, 2, 2), (25,) * 4, (30,) * 3)
    circular = ncd.conv(x, np.ones((6, 2, 5, 5), "float32"), padding="same", pad_mode="circular", groups=3)
    assert circular.chunks == x.chunks
    w = da.ones((8, 6, 5, 5), chunks=(3, 6, 5, 5), dtype="float32")
    assert ncd.conv(x, w, padding=2).chunks[:2] == ((2, 2), (3, 3, 2))
    assert ncd.conv(x[:, :, :, 0], np.ones((1, 6, 60), "float32")).chunks == ((2, 2), (1,), (41,)), "a kernel longer than a chunk"


def test_blocks_are_bounded(monkeypatch):
    """A signal of 512 MB that never exists: no block holds more than its chunk, its halo, and what is made of them."""
    from numconv.dask import blocks

    seen = []
    real = blocks.run

    def run(op, arrays, *rest):
        seen.append(sum(array.nbytes for array in arrays))
        return real(op, arrays, *rest)

    monkeypatch.setattr(blocks, "run", run)
    x = da.zeros((1, 1, 2**27), chunks=(1, 1, 2**24), dtype="float32")
    y = ncd.conv(x, np.ones((1, 1, 3), "float32"), stride=4096, padding="same")
    assert not y.sum().compute()
    assert len(seen) == 8
    assert max(seen) < 2**26 + 4096
    assert ncd.blocks.as_one(da.zeros((1, 64, 1000), chunks=(1, 8, 1000)), blocks.Frame(1, False)).chunksize == (1, 64, 125)


def test_many_threads(rng):
    x, w = integers(rng, (4, 3, 30, 30), "float32"), integers(rng, (4, 3, 3, 3), "float32")
    y = ncd.conv(da.from_array(x, chunks=(1, 3, 15, 15)), w, padding=1)
    np.testing.assert_array_equal(y.compute(scheduler="threads", num_workers=4), nc.conv(x, w, padding=1))


def test_settings_travel_with_the_tasks(rng, monkeypatch):
    from numconv.context import current
    from numconv.dask import blocks

    seen = []
    real = blocks.run
    monkeypatch.setattr(blocks, "run", lambda *given: seen.append(current().backend) or real(*given))
    with nc.using(backend="reference"):
        y = ncd.conv(da.from_array(integers(rng, (1, 2, 12)), chunks=4), np.ones((1, 2, 3)))
    again = pickle.loads(pickle.dumps(y))
    np.testing.assert_array_equal(again.compute(scheduler="threads"), y.compute())
    assert seen == [("reference",)] * 6


# --- errors --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x, w: ncd.conv(x, w, groups=3), r"2 input channels cannot be split into groups=3: 2 % 3 = 2"),
        (lambda x, w: ncd.conv(x, w.astype("float32")), r"x has dtype float64 and w has float32.*w.astype\('float64'\)"),
        (lambda x, w: ncd.conv(x, w, np.ones(5)), r"conv: bias has shape \(5,\), and must have \(3,\)"),
        (
            lambda x, w: ncd.conv_transpose(x, w.swapaxes(0, 1), np.ones(5)),
            r"conv_transpose: bias has shape \(5,\), and must have \(3,\)",
        ),
        (lambda x, w: ncd.conv(x[x > 0][None, None], w), r"x has chunks of unknown sizes; call x.compute_chunk_sizes\(\) first"),
        (lambda x, w: ncd.conv_weight_grad(x, x, w.shape), r"grad_y has shape \(1, 2, 8\), and must have \(1, 3, 6\)"),
        (lambda x, w: ncd.conv_input_grad(x, w, (1, 2, 9)), r"grad_y has shape \(1, 2, 8\), and must have \(1, 3, 7\)"),
        (lambda x, w: ncd.max_pool(x, 9), "the window is larger than the padded input"),
        (lambda x, w: ncd.max_pool_backward(x, x, 2), r"grad_y has shape \(1, 2, 8\), and must have \(1, 2, 4\)"),
        (lambda x, w: ncd.max_pool_backward(x, x, 1, indices=x), "indices have dtype float64, and must have int64"),
        (
            lambda x, w: ncd.max_pool_backward(x, x, 1, indices=x.astype(int) + 7).compute(),
            "indices range from 8 to 8, but positions.*0 to 7",
        ),
        (
            lambda x, w: ncd.max_pool_backward(x, x, 1, indices=x.astype(int)).compute(),
            "from 1 to 1 along spatial dimension 0, where its windows hold [36] to [57]; pass the indices",
        ),
        (lambda x, w: ncd.avg_pool_backward(x, 8, 1), "x_shape=8 must be a tuple of integers"),
        (
            lambda x, w: ncd.max_unpool(x, x.astype(int), (1, 2, 9)),
            r"y has 3 chunks along space, and must have 1, .* y.rechunk\(\{2: -1\}\)",
        ),
        (
            lambda x, w: ncd.max_unpool_backward(x[0].rechunk({1: -1}), x[0].astype(int), ndim=1),
            r"indices has 3 chunks along space.* indices.rechunk\(\{1: -1\}\)",
        ),
        (lambda x, w: ncd.max_unpool(x, None, x.shape), "max_unpool: indices is None; give an array"),
        (
            lambda x, w: ncd.max_unpool(x, x.astype(int)[..., 1:], x.shape),
            r"indices has shape \(1, 2, 7\), and must have \(1, 2, 8\)",
        ),
        (lambda x, w: ncd.conv(x, None), "numconv.dask.conv: w is None; give an array"),
        (lambda x, w: ncd.conv_input_grad(x, w, 9), "x_shape"),
        (lambda x, w: ncd.conv_weight_grad(x, x, 3), "w_shape"),
        (lambda x, w: ncd.conv_backward(x, x, w, needs="y"), "needs=.* must name at least one of x, w, bias"),
        (lambda x, w: ncd.conv_backward(x, x, w, needs="bias"), r"grad_y has shape \(1, 2, 8\), and must have \(1, 3, 6\)"),
        (
            lambda x, w: ncd.conv_transpose_backward(x, x, w.swapaxes(0, 1), needs="w"),
            r"conv_transpose_backward: grad_y has shape \(1, 2, 8\), and must have \(1, 3, 10\)",
        ),
    ],
)
def test_errors(call, text):
    with pytest.raises(ProblemError, match=text):
        call(da.ones((1, 2, 8), chunks=3), np.ones((3, 2, 3)))


def test_an_unknown_backend_is_an_error_before_anything_is_computed():
    with pytest.raises(nc.UnknownBackendError, match=r"no backend is called 'numbaa'.*did you mean 'numba'"):
        ncd.conv(da.ones((1, 2, 8), chunks=3), np.ones((3, 2, 3)), backend="numbaa")
