"""Arrays on a GPU, played by host memory: views, results in the caller's kind, checks of `out`."""

from __future__ import annotations

import sys
import types
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import numconv as nc
import numconv.arrays
import numconv.gpu
from numconv.arrays import DeviceArray, as_array, check_out, device_of, empty
from numconv.errors import ProblemError, UnsupportedProblemError
from numconv.plugin import Implementation, Verdict, __version__, device_number, streams_of
from numconv.registry import Registry


class Board:
    """An array of a library "board", whose memory is said to be on a GPU."""

    __module__ = "board"

    def __init__(self, host: np.ndarray, stream: int | None = 7, **changes: Any):
        self.host, self.dtype, self.shape = host, host.dtype, host.shape
        number = np.uint16 if host.dtype.name == "bfloat16" else host.dtype
        interface = host.view(number).__array_interface__
        names = ("shape", "strides", "typestr", "data")
        self.__cuda_array_interface__ = {name: interface[name] for name in names} | {"version": 3, "stream": stream} | changes

    def copy(self):
        return Board(self.host.copy())


@pytest.fixture(autouse=True)
def library(monkeypatch):
    board = types.ModuleType("board")
    board.empty = lambda shape, dtype: Board(np.empty(shape, dtype))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "board", board)


class _Memory:
    def __init__(self, array: DeviceArray):
        number = np.uint16 if array.dtype.name == "bfloat16" else array.dtype
        interface = array.__cuda_array_interface__ | {"typestr": np.dtype(number).str}
        self.__array_interface__ = {name: interface[name] for name in ("version", "shape", "strides", "typestr", "data")}


def on_host(array: DeviceArray) -> np.ndarray:
    return np.asarray(_Memory(array)).view(array.dtype)


class OnBoard(Implementation):
    """The reference's implementation of an operation, on the memory of the board."""

    levels = frozenset(("strict", "high", "default", "fast"))

    def __init__(self, base: Implementation):
        self.name, self.ops, self.base = base.name, base.ops, base

    def supports(self, problem):
        return Verdict.yes()

    def cost(self, problem):
        return 1.0

    def build(self, problem):
        run = self.base.build(problem)

        def execute(outs, ins):
            assert all(type(array) is DeviceArray for array in (*outs, *ins))
            run([on_host(array) for array in outs], [on_host(array) for array in ins])

        return execute


class BoardBackend:
    name, device, automatic, version = "board", "gpu", True, __version__

    def availability(self):
        return Verdict.yes()

    def implementations(self):
        reference = nc.registry.default_registry().backend("reference")
        return [OnBoard(each) for each in reference.implementations()]


@pytest.fixture
def board(monkeypatch):
    """The board's backend beside the reference, and no other."""
    found = BoardBackend().implementations()
    monkeypatch.setattr(BoardBackend, "implementations", lambda self: found)
    reference = nc.registry.default_registry().backend("reference")
    entries = [types.SimpleNamespace(name=name, load=load, dist=None)
               for name, load in (("board", BoardBackend), ("reference", lambda: reference))]  # fmt: skip
    registry = Registry(entries)
    for home in ("dispatch", "planning"):
        monkeypatch.setattr(f"numconv.{home}.default_registry", lambda: registry)
    nc.dispatch.cached_plan.cache_clear()
    yield
    nc.dispatch.cached_plan.cache_clear()


def integers(rng, *shape):
    return rng.integers(-4, 5, shape).astype(np.float32)


@pytest.mark.usefixtures("board")
@pytest.mark.parametrize("options", [{}, {"layout": "channels_last"}], ids=["channels_first", "channels_last"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["batchless", "batch"])
def test_results_are_of_the_callers_kind(rng, options, batch):
    x, w, bias = integers(rng, *batch, 7, 6, 4), integers(rng, 3, 4, 3, 3), integers(rng, 3)
    if not options:
        x = np.moveaxis(x, -1, -3)
    expected = nc.conv(x, w, bias, padding=1, **options)
    y = nc.conv(Board(x), Board(w), Board(bias), padding=1, **options)
    assert type(y) is Board
    np.testing.assert_array_equal(y.host, expected)
    out = Board(np.full_like(expected, np.nan))
    assert nc.conv(Board(x), Board(w), Board(bias), padding=1, out=out, **options) is out
    np.testing.assert_array_equal(out.host, expected)


@pytest.mark.usefixtures("board")
def test_gradients_pooling_and_bound_weights(rng):
    x, w = integers(rng, 2, 4, 8, 6), integers(rng, 3, 4, 3, 3)
    grads, expected = nc.conv_backward(Board(integers(rng, 2, 3, 6, 4)), Board(x), Board(w)), (x.shape, w.shape, (3,))
    assert [each.host.shape for each in grads] == list(expected)
    y, indices = nc.max_pool(Board(x), 2, return_indices=True)
    assert (type(y), type(indices), indices.dtype) == (Board, Board, np.dtype(np.int64))
    np.testing.assert_array_equal(y.host, nc.max_pool(x, 2))
    weights = w.copy()
    bound = nc.plan("conv", x.shape, w.shape, "float32", like=Board(x)).bind(Board(weights))
    weights[...] = 0
    np.testing.assert_array_equal(bound(Board(x)).host, nc.conv(x, w))


@pytest.mark.usefixtures("board")
def test_bfloat16_by_the_name_of_its_dtype(rng):
    x = integers(rng, 1, 2, 5).astype(ml_dtypes.bfloat16)
    w = integers(rng, 1, 2, 3).astype(ml_dtypes.bfloat16)
    board = Board(x, typestr="<V2")
    assert as_array(board, "conv", "x").dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(nc.conv(board, Board(w)).host, nc.conv(x, w))


def test_a_view_of_a_device_array():
    array = as_array(Board(np.arange(24.0).reshape(2, 3, 4)[:, ::-1]), "conv", "x")
    assert (array.shape, array.strides, array.stream, array.ndim, array.size, array.itemsize) == (
        (2, 3, 4),
        (96, -32, 8),
        7,
        3,
        24,
        8,
    )
    moved = array[None].transpose((0, 3, 1, 2))
    assert (moved.shape, moved.strides[1:], moved.owner) == ((1, 4, 2, 3), (8, 96, -32), array.owner)
    assert as_array(moved, "conv", "x") is moved
    assert device_of(moved) == "gpu"
    plain = as_array(Board(np.zeros((2, 3)), strides=None), "conv", "x")
    assert plain.strides == (24, 8)
    with pytest.raises(TypeError, match="by None only"):
        array[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"mask": object()}, "x has a mask"), ({"typestr": ">f4"}, "byte order of another machine")],
)
def test_what_the_interface_cannot_say(changes, words):
    with pytest.raises(ProblemError, match=words):
        as_array(Board(np.zeros(3, np.float32), **changes), "conv", "x")


class Recording:
    """As a torch tensor that records gradients."""

    @property
    def __cuda_array_interface__(self):
        raise RuntimeError("Use tensor.detach()")


def test_an_array_that_does_not_show_its_memory():
    with pytest.raises(ProblemError, match=r"x of type Recording does not show its memory: Use tensor.detach\(\)"):
        nc.conv(Recording(), np.ones((1, 1, 1)))


class Foreign(Board):
    __module__ = "numconv_has_no_such_library"


def test_no_way_to_allocate():
    with pytest.raises(ProblemError, match=r"no way to allocate a Foreign of shape .*give out="):
        empty((2,), np.float32, as_array(Foreign(np.zeros(3)), "conv", "x"))


def test_out_is_checked_by_its_addresses():
    memory = np.zeros(40)
    x = as_array(Board(memory[:20]), "conv", "x")
    check_out("conv", Board(memory[20:30]), (10,), np.float64, [x], "out")
    check_out("conv", Board(memory[1:20:2]), (10,), np.float64, [as_array(Board(memory[:20:2]), "conv", "x")], "out")
    read_only = Board(memory[20:30], data=(memory.ctypes.data, True))
    folded = Board(memory[20:30], strides=(0,))
    for out, words in (
        (Board(memory[10:20]), "overlaps an input"), (read_only, "read-only"), (folded, "share memory"),
        (Board(memory[20:31]), r"shape \(11,\).*\(10,\)"), (memory[20:30], "out is a ndarray, and the arrays are Board on the gpu"),
    ):  # fmt: skip
        with pytest.raises(ProblemError, match=words):
            check_out("conv", out, (10,), np.float64, [x], "out")


def test_an_empty_out():
    """What is empty has no address."""
    nothing = Board(np.empty((0, 3)), data=(0, False))
    check_out("conv", nothing, (0, 3), np.float64, [as_array(nothing, "conv", "x")], "out")


def test_nobody_computes_there():
    if any(info.device == "gpu" and info.available for info in nc.backends()):
        pytest.skip("somebody does")
    with pytest.raises(UnsupportedProblemError, match="No installed backend could"):
        nc.conv(Board(np.ones((1, 1, 3))), Board(np.ones((1, 1, 1))))


# --- torch's tensors, which are read without the interface


class Tensor:
    """torch's tensor on a GPU, as far as it is asked."""

    __module__ = "torch"
    is_cuda, requires_grad, layout, device = True, False, "strided", "cuda:1"

    def __init__(self, host: np.ndarray, dtype: str = "torch.float32", **changes: Any):
        self.host, self.dtype, self.shape = host, dtype, host.shape
        self.lazy = False
        self.__dict__ |= changes

    def stride(self):
        return tuple(step // self.host.itemsize for step in self.host.strides)

    def data_ptr(self):
        return self.host.ctypes.data

    def is_conj(self):
        return self.lazy

    def is_neg(self):
        return False

    def get_device(self):
        return 1


class Parameter(Tensor):
    __module__ = "somewhere.else"


@pytest.fixture
def torch(monkeypatch):
    found = types.ModuleType("torch")
    found.Tensor, found.float32, found.bfloat16 = Tensor, "torch.float32", "torch.bfloat16"  # type: ignore[attr-defined]
    found.empty = lambda shape, dtype, device: Tensor(np.empty(shape, np.float32), dtype, device=device)  # type: ignore[attr-defined]
    found._C = types.SimpleNamespace(_cuda_getCurrentRawStream=lambda device: 70 + device)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", found)
    for cache in (numconv.arrays._tensor_dtype, numconv.arrays._torch_dtype, numconv.gpu._torch_streams):
        cache.cache_clear()
    yield found
    for cache in (numconv.arrays._tensor_dtype, numconv.arrays._torch_dtype, numconv.gpu._torch_streams):
        cache.cache_clear()


@pytest.mark.parametrize("kind", [Tensor, Parameter])
def test_a_tensor(torch, kind):
    host = np.zeros((2, 3, 4), np.float32)[:, ::2]
    array = as_array(kind(host), "conv", "x")
    assert (array.pointer, array.shape, array.strides, array.dtype) == (host.ctypes.data, (2, 2, 4), (48, 32, 4), np.float32)
    assert as_array(kind(host.view(np.int16), "torch.bfloat16"), "conv", "x").dtype == ml_dtypes.bfloat16
    assert (device_of(kind(host)), device_number(array)) == ("gpu", 1)
    fresh = empty((5,), np.float32, array)
    assert (type(fresh), fresh.shape, fresh.dtype, fresh.device) == (Tensor, (5,), "torch.float32", "cuda:1")
    assert array.scratch((5,), np.float32).shape == (5,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"requires_grad": True}, r"conv: x of type Tensor records gradients.*tensor.detach\(\).*numconv.torch"),
        ({"lazy": True}, r"conv: x is conjugated or negated lazily; give tensor.resolve_conj\(\).resolve_neg\(\)"),
        ({"dtype": "torch.quint8"}, "conv: x of type Tensor, torch.quint8 and strided does not show its memory"),
    ],
)
def test_a_tensor_that_cannot_be_read(torch, changes, words):
    with pytest.raises(ProblemError, match=words):
        as_array(Tensor(np.zeros(3, np.float32), **changes), "conv", "x")


def test_streams(torch, monkeypatch):
    """The current one of torch and of CuPy, asked once, else the one that an array tells."""
    asked = []
    stream = types.SimpleNamespace(ptr=0)
    cuda = types.SimpleNamespace(get_current_stream=lambda: asked.append(1) or stream)
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=cuda))
    tensors = [as_array(Tensor(np.zeros(3, np.float32)), "conv", "x") for _ in range(2)]
    boards = [as_array(Board(np.zeros(3), stream=told), "conv", "x") for told in (None, 7)]
    assert streams_of(tensors) == [71]
    assert streams_of([*boards, *tensors]) == [1, 7, 71]
    found = type("ndarray", (), {"__module__": "cupy"})
    assert streams_of([found(), found(), *tensors]) == [1, 71]
    assert len(asked) == 1
    stream.ptr = 9
    assert streams_of([found()]) == [9]
