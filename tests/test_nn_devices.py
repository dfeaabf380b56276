"""`numconv.nn` on arrays of another library: a stand-in for CuPy's, which no function of NumPy takes, and which counts reads."""

from __future__ import annotations

import functools
import operator
import sys
import types
from typing import Any

import numpy as np
import pytest
import scipy.special

import numconv as nc
from numconv import functional, nn, training
from numconv.training import placing

FUNCTIONS = (
    "arange", "asarray", "bincount", "concatenate", "einsum", "exp", "full", "log", "maximum", "multiply", "sqrt", "tanh", "where",
    "zeros_like",
)  # fmt: skip
"""What `numconv.nn` may call; all of it is in CuPy."""
OF_TRAINING = ("empty_like", "pad")
"""What `numconv.training` calls besides."""

READS: list[str] = []


class Board:
    """An array on a board, which is host memory that only this class touches."""

    __module__ = "board"
    __array_ufunc__ = None

    def __init__(self, host):
        self.host = np.asarray(host)

    def __array__(self, *args, **options):
        raise TypeError("implicit conversion to a NumPy array")

    def get(self):
        READS.append("get")
        return self.host.copy()

    def __getitem__(self, place):
        return Board(self.host[bare(place)])

    def __setitem__(self, place, value):
        if isinstance(value, np.ndarray):
            raise TypeError("an array of the host")
        self.host[bare(place)] = bare(value)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self.host, name)
        return board(value) if callable(value) else Board(value) if name == "T" else value


def bare(value: Any) -> Any:
    if isinstance(value, Board):
        return value.host
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("an array of the host")
    return type(value)(map(bare, value)) if type(value) in (tuple, list) else value


def board(function):
    """A function of NumPy on arrays of the board."""

    @functools.wraps(function)
    def call(*args, **options):
        return wrapped(function(*map(bare, args), **{name: bare(value) for name, value in options.items()}))

    return call


def anywhere(function):
    """A function of numconv, which takes arrays of the host too."""

    @functools.wraps(function)
    def call(*args, **options):
        return (board(function) if isinstance(args[0], Board) else function)(*args, **options)

    return call


def wrapped(value: Any) -> Any:
    if isinstance(value, tuple) and any(isinstance(each, np.ndarray) for each in value):
        return type(value)(*map(wrapped, value)) if hasattr(value, "_fields") else tuple(map(wrapped, value))
    return Board(value) if isinstance(value, np.ndarray | np.generic) else value


def define(name, reflected):
    function = getattr(operator, name)
    setattr(Board, f"__{name}__", board(function))
    if reflected:
        setattr(Board, f"__r{name}__", lambda a, b: board(function)(b, a))

        def in_place(a, b):
            a.host[...] = bare(board(function)(a, b))
            return a

        setattr(Board, f"__i{name}__", in_place)


def read(kind):
    def convert(array):
        READS.append(kind.__name__)
        return kind(array.host)

    return convert


for word in ("add", "sub", "mul", "truediv", "pow", "matmul"):
    define(word, True)
for word in ("eq", "ne", "lt", "le", "gt", "ge"):
    define(word, False)
Board.__neg__ = lambda a: Board(-a.host)  # type: ignore[attr-defined]
for scalar in (float, int, bool):
    setattr(Board, f"__{scalar.__name__}__", read(scalar))
Board.__index__ = read(operator.index)  # type: ignore[attr-defined]
Board.__hash__ = None  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def library(monkeypatch):
    """The library "board", and numconv's functions on it, by the reference backend."""
    module: Any = types.ModuleType("board")
    for name in FUNCTIONS + OF_TRAINING:
        setattr(module, name, board(getattr(np, name)))
    module.asarray = lambda host: Board(np.array(host))  # the way to the device
    module.nan = np.nan

    class Generator:
        def __init__(self, seed):
            self.random = board(np.random.default_rng(seed).random)

    module.random = types.SimpleNamespace(default_rng=Generator)
    special: Any = types.ModuleType("special")
    special.erfc = board(scipy.special.erfc)
    for name, each in (("board", module), ("boardx", module), ("boardx.scipy", module), ("boardx.scipy.special", special)):
        monkeypatch.setitem(sys.modules, name, each)
    for name in functional.__all__:
        if name != "ConvGrads":
            monkeypatch.setattr(functional, name, anywhere(getattr(functional, name)))
    READS.clear()
    with nc.using(backend="reference"):
        yield module


def network():
    return nn.Sequential(
        nn.Conv(4, 3, padding="same"), nn.BatchNorm(), nn.ReLU(), nn.MaxPool(2),
        nn.Parallel(nn.Sequential(nn.Conv(3, 3, padding=1), nn.SiLU()), nn.AvgPool(3, stride=1, padding=1)), nn.GELU(),
        nn.Residual(nn.Conv(7, 1), nn.ReLU(), nn.LpPool(1), shortcut=nn.ConvTranspose(7, 3, padding=1)), nn.Dropout(0.2),
        nn.Parallel(nn.GlobalAvgPool(), nn.GlobalMaxPool(), nn.Flatten()), nn.Linear(3),
    )  # fmt: skip


def test_the_board_refuses_what_belongs_to_the_host():
    array = Board(np.ones(3))
    for wrong in (
        lambda: np.exp(array), lambda: np.concatenate([array, array]), lambda: np.asarray(array), lambda: array + np.ones(3),
        lambda: np.ones(3) * array, lambda: array.__setitem__(0, np.ones(3)),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            wrong()
    assert isinstance(np.float32(2) * array, Board)


@pytest.mark.parametrize("loss", [nn.cross_entropy, nn.mean_squared_error])
def test_a_training_stays_on_its_device(loss, library, rng):
    host = rng.standard_normal((24, 2, 8)).astype("float32")
    targets = rng.integers(3, size=24) if loss is nn.cross_entropy else rng.standard_normal((24, 3)).astype("float32")
    x, t = Board(host), Board(targets)
    model = network().build((2, 8), like=x)
    assert all(type(array) is Board for array in (model.parameters | model.state).values())
    options = {"epochs": 4, "batch_size": 6, "loss": loss, "clip": 1.0, "optimiser": nn.AdamW(0.02), "progress": False}
    history = nn.fit(model, (x, t), **options)
    assert history.loss[-1] < history.loss[0]
    assert (["float", "float"] if loss is nn.cross_entropy else ["float"]) * 4 == READS, "loss and accuracy, once an epoch"
    nn.fit(
        model, (x, t), **options | {"optimiser": nn.SGD(0.01, momentum=0.9, nesterov=True, weight_decay=0.1)}, schedule=nn.step()
    )
    READS.clear()
    scores = nn.predict(model, x, batch_size=10)
    assert type(scores) is Board
    assert READS == []
    found = nn.evaluate(model, (x, t), batch_size=10, loss=loss)
    assert (["float", "float", "get"] if loss is nn.cross_entropy else ["float"]) == READS
    assert found.confusion is None or found.confusion.sum() == 24


def test_a_training_goes_on_on_its_device(tmp_path, rng):
    x, t = Board(rng.standard_normal((12, 2, 8)).astype("float32")), Board(rng.integers(3, size=12))
    options = {"epochs": 3, "batch_size": 6, "checkpoint": tmp_path / "a", "validation": (x, t), "patience": 9, "progress": False}
    model = network().build((2, 8), like=x)
    nn.fit(model, (x, t), **options)
    again = network().build((2, 8), rng=1, like=x)
    nn.fit(again, (x, t), **options, resume=True)
    for ours, theirs in zip(model.parameters.values(), again.parameters.values(), strict=True):
        assert ours.get().tobytes() == theirs.get().tobytes()
    nn.save(model, tmp_path / "b")
    assert type(nn.load(tmp_path / "b", like=x).parameters["0.w"]) is Board
    assert type(model.to("float64").parameters["0.w"]) is np.ndarray
    assert type(model.to(like=x).parameters["0.w"]) is Board


def test_a_task_on_the_host_is_learned_on_a_device(rng):
    """Batches are copied to where the model is, and moved about there."""
    x = rng.random((40, 1, 8, 8)).astype("float32") / 2
    labels = np.arange(40) % 2
    x[labels == 1, :, 2:5, 2:5] += 0.5
    task = training.split_task("bright spots", "image", ("without", "with"), x, labels, held_out=0.25, seed=0)
    settings = training.Settings(epochs=1, shift=0.125)
    on_board = training.train(task, settings, like=Board(x[:0]))
    assert all(type(array) is Board for array in on_board.model.parameters.values())
    assert READS.count("get") == 1, "the confusion"
    on_host = training.train(task, settings)
    assert on_board.history.loss == pytest.approx(on_host.history.loss, rel=1e-4)
    np.testing.assert_array_equal(on_board.confusion, on_host.confusion)


def test_a_backend_of_the_host_moves_nothing(monkeypatch):
    assert training.array_for(None) is training.array_for("reference") is None
    fake = types.SimpleNamespace(backend=lambda name: types.SimpleNamespace(device="gpu"))
    monkeypatch.setattr(placing, "default_registry", lambda: fake)
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(empty=lambda size, dtype: Board(np.empty(size, dtype))))
    assert type(training.array_for("cupy")) is Board
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(nc.ProblemError, match=r"'cupy' computes on a GPU.*pip install 'numconv-nd\[cupy\]'"):
        training.array_for("cupy")


def test_device_and_host_agree(rng):
    host = rng.standard_normal((6, 2, 8)).astype("float32")
    model = network().build((2, 8))
    on_board = model.to(like=Board(host))
    np.testing.assert_allclose(on_board(Board(host)).get(), model(host), rtol=1e-6, atol=1e-6)


def test_labels_that_are_no_class_on_a_device():
    scores = Board(np.zeros((2, 3), "float32"))
    loss, _ = nn.cross_entropy(scores, Board(np.array([0, 3])))
    assert np.isnan(loss.get())
    assert READS == ["get"]
