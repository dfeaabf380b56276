"""Every function on every kind of array: any strides, any byte order, subclasses, lists, without N, channels last, into `out`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

import numconv as nc
from numconv import arrays

RNG = np.random.default_rng(5)


class Call(NamedTuple):
    """A public function, its arrays of two spatial dimensions, its other arguments, and which results have no batch."""

    function: Callable[..., Any]
    arrays: dict[str, Any]
    rest: dict[str, Any]
    weights: tuple[int, ...] = ()

    def __call__(self, **options: Any) -> tuple[np.ndarray, ...]:
        result = self.function(**self.arrays, **self.rest | options)
        return result if isinstance(result, tuple) else (result,)

    def results(self, change: Callable[[Any], Any]) -> tuple[np.ndarray, ...]:
        """The results, those with a batch axis changed."""
        return tuple(r if i in self.weights else change(r) for i, r in enumerate(self()))

    def map(self, change: Callable[[Any], Any], names: tuple[str, ...] = ()) -> Call:
        return self._replace(arrays={k: change(v) if k in names or not names else v for k, v in self.arrays.items()})


def integers(*shape: int) -> np.ndarray:
    return RNG.integers(-4, 5, shape).astype(np.float64)


X, W, BIAS, Y = integers(2, 4, 7, 6), integers(6, 2, 3, 2), integers(6), integers(2, 6, 5, 5)
UP_W, UP_BIAS, UP_Y = integers(4, 3, 3, 2), integers(6), integers(2, 6, 9, 7)
POOLED, PADDED, COLUMNS = integers(2, 4, 3, 3), integers(2, 4, 10, 8), integers(2, 24, 25)
POSITIONS = np.argsort(RNG.random((2, 4, 42)))[..., :9].reshape(2, 4, 3, 3)
GROUPS, WINDOW, WIDTH = {"groups": 2}, {"window": (2, 2)}, {"width": ((1, 2), (2, 0)), "mode": "reflect"}

CALLS = {
    "conv": Call(nc.conv, {"x": X, "w": W, "bias": BIAS}, GROUPS),
    "conv_input_grad": Call(nc.conv_input_grad, {"grad_y": Y, "w": W}, GROUPS | {"x_shape": X.shape}),
    "conv_weight_grad": Call(nc.conv_weight_grad, {"grad_y": Y, "x": X}, GROUPS | {"w_shape": W.shape}, (0,)),
    "conv_backward": Call(nc.conv_backward, {"grad_y": Y, "x": X, "w": W}, GROUPS, (1, 2)),
    "conv_transpose": Call(nc.conv_transpose, {"x": X, "w": UP_W, "bias": UP_BIAS}, GROUPS),
    "conv_transpose_backward": Call(nc.conv_transpose_backward, {"grad_y": UP_Y, "x": X, "w": UP_W}, GROUPS, (1, 2)),
    "max_pool": Call(nc.max_pool, {"x": X}, WINDOW),
    "max_pool with indices": Call(nc.max_pool, {"x": X}, WINDOW | {"return_indices": True}),
    "max_pool_backward": Call(nc.max_pool_backward, {"grad_y": POOLED, "x": X}, WINDOW),
    "max_pool_backward with indices": Call(nc.max_pool_backward, {"grad_y": POOLED, "x": X, "indices": POSITIONS}, WINDOW),
    "max_unpool": Call(nc.max_unpool, {"y": POOLED, "indices": POSITIONS}, {"x_shape": X.shape}),
    "max_unpool_backward": Call(nc.max_unpool_backward, {"grad": X, "indices": POSITIONS}, {}),
    "avg_pool": Call(nc.avg_pool, {"x": X}, WINDOW),
    "avg_pool_backward": Call(nc.avg_pool_backward, {"grad_y": POOLED}, WINDOW | {"x_shape": X.shape}),
    "lp_pool": Call(nc.lp_pool, {"x": X}, WINDOW | {"p": 3}),
    "lp_pool_backward": Call(nc.lp_pool_backward, {"grad_y": POOLED, "x": X}, WINDOW | {"p": 3}),
    "pad": Call(nc.pad, {"x": X}, WIDTH),
    "pad_backward": Call(nc.pad_backward, {"grad": PADDED}, WIDTH),
    "unfold": Call(nc.unfold, {"x": X}, {"window": (3, 2)}),
    "fold": Call(nc.fold, {"columns": COLUMNS}, {"x_shape": X.shape, "window": (3, 2)}),
}
BATCHED = ("x", "y", "grad_y", "grad", "indices", "columns")
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))


@pytest.fixture(autouse=True)
def only(request):
    """A test that is not for every backend is of the core, and the reference will do."""
    name = request.getfixturevalue("backend") if "backend" in request.fixturenames else "reference"
    with nc.using(backend=name):
        yield


every_backend = pytest.mark.usefixtures("backend")


def assert_same(found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert type(a) is np.ndarray
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=0)


def test_every_function_is_called_here():
    skip = {"ConvGrads", "plan", "output_shape", "receptive_field", "as_matrix", "explain", "backends", "using", "warmup"}
    skip |= {"equivariance", "media", "nn", "signal", "training"}
    functions = {name for name in nc.__all__ if not name.endswith("Error") and not name.startswith("__")} - skip
    assert functions == {call.function.__name__ for call in CALLS.values()}


class Labelled(np.ndarray):
    """A subclass that would spoil results that went through it."""

    def __array_finalize__(self, source):
        self.label = "labelled"

    def __add__(self, other):
        raise AssertionError("arithmetic on the subclass")

    __iadd__ = __mul__ = __getitem__ = __setitem__ = __add__


def unaligned(array: np.ndarray) -> np.ndarray:
    moved = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    assert not moved.flags.aligned
    return moved


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "non-contiguous": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "gaps in every axis": lambda a: np.pad(a, 1)[(slice(1, -1),) * a.ndim],
    "negative strides": lambda a: np.flip(np.flip(a).copy()),
    "Fortran order": np.asfortranarray,
    "channels last in memory": lambda a: np.moveaxis(np.moveaxis(a, 0, -1).copy(), -1, 0),
    "read-only": read_only,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "unaligned": unaligned,
    "subclass": lambda a: a.view(Labelled),
    "list": np.ndarray.tolist,
    "tuple": lambda a: tuple(a.tolist()),
}


@every_backend
@every_call
@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_forms_of_arrays(call, form):
    assert_same(call.map(form)(), call())


@every_call
def test_memory_mapped(call, tmp_path):
    def mapped(array: np.ndarray) -> np.memmap:
        file = tmp_path / str(len(list(tmp_path.iterdir())))
        array.tofile(file)
        return np.memmap(file, array.dtype, "r", shape=array.shape)

    assert_same(call.map(mapped)(), call())


@every_call
def test_inputs_are_never_changed(call):
    given = call.map(np.copy)
    given()
    for name, array in call.arrays.items():
        np.testing.assert_array_equal(given.arrays[name], array)


@every_backend
@every_call
def test_broadcast_view(call):
    """Elements of an input may share memory."""
    flat = call.map(lambda a: np.broadcast_to(a[:1], a.shape))
    assert_same(flat(), flat.map(np.copy)())


def first_of_batch(call: Call, keep_axis: bool) -> Call:
    call = call.map(lambda a: a[:1] if keep_axis else a[0], BATCHED)
    rest = dict(call.rest)
    if "x_shape" in rest:
        rest["x_shape"] = (1,) * keep_axis + rest["x_shape"][1:]
    if call.function in (nc.max_unpool, nc.max_unpool_backward):
        rest["ndim"] = 2
    return call._replace(rest=rest)


@every_backend
@every_call
def test_without_batch(call):
    assert_same(first_of_batch(call, keep_axis=False)(), first_of_batch(call, keep_axis=True).results(lambda y: y[0]))


LAST = {name: call for name, call in CALLS.items() if call.function not in (nc.unfold, nc.fold)}


def channels_last(call: Call, axis: int = 1) -> Call:
    call = call.map(lambda a: np.moveaxis(a, axis, -1), BATCHED)
    rest = dict(call.rest, layout="channels_last")
    if "x_shape" in rest:
        sizes = list(rest["x_shape"])
        sizes.append(sizes.pop(axis))
        rest["x_shape"] = tuple(sizes)
    return call._replace(rest=rest)


@every_backend
@pytest.mark.parametrize("call", LAST.values(), ids=list(LAST))
def test_channels_last(call):
    assert_same(channels_last(call)(), call.results(lambda y: np.moveaxis(y, 1, -1)))


@every_backend
@pytest.mark.parametrize("call", LAST.values(), ids=list(LAST))
def test_channels_last_without_batch(call):
    call = first_of_batch(call, keep_axis=False)
    assert_same(channels_last(call, axis=0)(), call.results(lambda y: np.moveaxis(y, 0, -1)))


def test_results_channels_last_are_contiguous():
    y = nc.conv(np.moveaxis(X, 1, -1), W, groups=2, layout="channels_last")
    assert y.flags.c_contiguous


@every_backend
@every_call
def test_empty_batch(call):
    empty = call.map(lambda a: a[:0], BATCHED)
    if "x_shape" in call.rest:
        empty = empty._replace(rest=call.rest | {"x_shape": (0, *call.rest["x_shape"][1:])})
    for i, (found, full) in enumerate(zip(empty(), call(), strict=True)):
        assert found.shape == (full.shape if i in call.weights else (0, *full.shape[1:]))
        assert found.dtype == full.dtype
        assert not found.any(), "a gradient of weights without samples is zero"


def poisoned(array: np.ndarray) -> np.ndarray:
    return np.full_like(array, np.nan if array.dtype.kind in "fc" else 99)


OUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": poisoned,
    "Fortran order": lambda a: np.asfortranarray(poisoned(a)),
    "non-contiguous": lambda a: poisoned(np.repeat(a, 2, axis=-1))[..., ::2],
    "negative strides": lambda a: np.flip(poisoned(a)),
    "channels last in memory": lambda a: np.moveaxis(poisoned(np.moveaxis(a, 0, -1).copy()), -1, 0),
    "subclass": lambda a: poisoned(a).view(Labelled),
}


@every_backend
@every_call
@pytest.mark.parametrize("form", OUTS.values(), ids=list(OUTS))
def test_out(call, form):
    expected = call()
    outs = tuple(map(form, expected))
    found = call(out=outs if len(outs) > 1 else outs[0])
    for given, returned, values in zip(outs, found, expected, strict=True):
        assert returned is given
        np.testing.assert_allclose(np.asarray(given), values, rtol=1e-13)


@pytest.mark.parametrize(("side", "dtype"), [(600, "float32"), (601, "float64"), (3, "float32")])
def test_results_are_writeable_arrays_of_their_own_on_cache_lines_where_they_are_large(side, dtype):
    x, w = np.ones((1, 1, side, side), dtype), np.ones((1, 1, 1, 1), dtype)
    y, other = nc.conv(x, w), nc.conv(x, w)
    assert y.flags.carray
    assert not np.shares_memory(y, other)
    assert y.nbytes < 2**20 or y.ctypes.data % 64 == 0
    np.testing.assert_array_equal(y, x)


def test_memory_of_large_results_serves_later_ones_once_nobody_holds_it(monkeypatch):
    monkeypatch.setattr(arrays, "KEPT_BYTES", (2 * 2**20, 8 * 2**20))
    kept = arrays._kept
    kept.clear()

    def result(megabytes, fill):
        made = arrays.on_line((megabytes, 2**18), np.dtype(np.float32))
        made[...] = fill
        return made

    first, second = result(4, 1), result(4, 2)
    assert not np.shares_memory(first, second)
    place, part = first.ctypes.data, first[1:2, ::2].T.view(np.int32)
    del first
    assert not kept  # a view holds it
    other = result(4, 3)
    np.testing.assert_array_equal(part.view(np.float32), 1)
    del part
    assert len(kept) == 1
    again = result(3, 4)
    assert again.ctypes.data == place
    assert not kept
    assert np.all(second == 2)
    assert np.all(other == 3)
    del again, other, second
    assert len(kept) == 2  # what is held without a use is bounded
    small, large = result(1, 5), result(9, 6)
    del small, large
    assert sorted(block.size // 2**20 for block in kept) == [4, 4]
    kept.clear()


def test_threads_share_the_kept_memory(monkeypatch):
    monkeypatch.setattr(arrays, "KEPT_BYTES", (2**20, 2**22))
    arrays._kept.clear()

    def work(number):
        for i in range(200):
            made = arrays.on_line((2**18 + 1024 * (i % 3),), np.dtype(np.float32))
            made[::4096] = number
            assert np.all(made[::4096] == number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(arrays._kept) <= 2
    arrays._kept.clear()


@every_call
def test_out_in_a_tuple_may_be_left_open(call):
    expected = call()
    assert_same(call(out=(None,) * len(expected)), expected)


@every_backend
def test_out_with_layout_and_without_batch():
    call = channels_last(first_of_batch(CALLS["conv"], keep_axis=False), axis=0)
    out = np.full((5, 5, 6), np.nan)
    assert call(out=out)[0] is out
    np.testing.assert_array_equal(out, call()[0])


def test_out_of_a_wider_dtype():
    out = np.zeros((2, 6, 5, 5))
    nc.conv(X.astype(np.float32), W.astype(np.float32), groups=2, dtype="float64", out=out)
    np.testing.assert_array_equal(out, nc.conv(X, W, groups=2))


def test_out_beside_an_input_in_one_buffer():
    buffer = np.zeros(2 * X.size)
    x, out = buffer[: X.size].reshape(X.shape), buffer[X.size :].reshape(X.shape)
    x[...] = X
    nc.pad(x, 0, out=out)
    np.testing.assert_array_equal(out, X)


def test_out_interleaved_with_an_input():
    buffer = np.zeros((*X.shape, 2))
    buffer[..., 0] = X
    nc.pad(buffer[..., 0], 0, out=buffer[..., 1])
    np.testing.assert_array_equal(buffer[..., 1], X)


@every_backend
def test_weights_as_a_transposed_view():
    stored = np.ascontiguousarray(W.transpose(2, 3, 1, 0))  # [*R, C/G, K]
    np.testing.assert_array_equal(nc.conv(X, stored.transpose(3, 2, 0, 1), groups=2), nc.conv(X, W, groups=2))


@pytest.mark.parametrize(("dtype", "count"), [(np.float16, 3000), (ml_dtypes.bfloat16, 1000)], ids=["float16", "bfloat16"])
def test_half_types_accumulate_in_float32(dtype, count):
    """Sums of ones in the half type itself would get stuck at 2048 and 256."""
    x, w = np.ones((1, 1, count), dtype), np.ones((1, 1, count), dtype)
    for result in (nc.conv(x, w), nc.conv_weight_grad(x, x, (1, 1, 1)), nc.conv_backward(x, x, w[..., :1], needs="bias").bias):
        assert result.dtype == dtype
        assert result.ravel()[0] == count


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@every_call
def test_half_types(call, dtype):
    half = call.map(lambda a: a if a.dtype.kind == "i" else a.astype(dtype))
    for found, expected in zip(half(), call(), strict=True):
        assert found.dtype == (expected.dtype if expected.dtype.kind == "i" else dtype)
        np.testing.assert_allclose(found.astype(np.float64), expected, rtol=1e-2)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
def test_integers_wrap(dtype):
    info = np.iinfo(dtype)
    x, w = np.full((1, 1, 3), info.max, dtype), np.full((1, 1, 2), 3, dtype)
    found = nc.conv(x, w)
    assert found.dtype == dtype
    expected = (6 * int(info.max) - int(info.min)) % 2**info.bits + int(info.min)
    assert found.tolist() == [[[expected] * 2]]


@pytest.mark.parametrize(("dtype", "wider"), [("i1", "i2"), ("i1", "i8"), ("u1", "i4"), ("u1", "u8"), ("u4", "i8")])
def test_integers_in_a_wider_dtype_do_not_wrap(dtype, wider):
    x = np.full((1, 1, 3), np.iinfo(dtype).max, dtype)
    found = nc.conv(x, np.full((1, 1, 2), 3, dtype), dtype=wider)
    assert found.dtype == wider
    assert found.tolist() == [[[6 * int(np.iinfo(dtype).max)] * 2]]


def test_products_are_formed_in_the_wider_dtype():
    x, w = np.array([[[1 + 2.0**-23]]], np.float32), np.array([[[1 + 2.0**-23]]], np.float32)
    assert nc.conv(x, w, dtype=np.float64).item() == (1 + 2.0**-23) ** 2
    assert nc.conv(x, w).item() == np.float32((1 + 2.0**-23) ** 2)


def typed_calls() -> Iterator[Any]:
    """Every function with every kind of dtype that it has."""
    for name, call in CALLS.items():
        kind = call.function.__name__.split("_")[0]
        excluded = {"avg": "i", "lp": "ic", "max": "c"}.get(kind, "") if "pool" in name and "unpool" not in name else ""
        yield from (
            pytest.param(call, dtype, id=f"{name} {dtype}") for dtype in ("f4", "f8", "c8", "c16", "i2") if dtype[0] not in excluded
        )


@pytest.mark.parametrize(("call", "dtype"), list(typed_calls()))
def test_dtype_of_the_result(call, dtype):
    typed = call.map(lambda a: a if a.dtype.kind == "i" else a.astype(dtype))
    for i, found in enumerate(typed()):
        assert found.dtype == (np.int64 if i and call.function is nc.max_pool else dtype)
