"""The plan cache, plans, bound plans, explanations and shapes."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import numconv as nc
from numconv import ProblemError, UnsupportedProblemError, dispatch, functional
from numconv.dispatch import cached_plan
from numconv.problem import parse

SHAPES = (2, 4, 7, 6), (6, 2, 3, 2)


@pytest.fixture(autouse=True)
def only(request):
    """A test that is not for every backend is of the core, and the reference will do."""
    name = request.getfixturevalue("backend") if "backend" in request.fixturenames else "reference"
    with nc.using(backend=name):
        yield


every_backend = pytest.mark.usefixtures("backend")


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-4, 5, shape).astype(np.float64)


@pytest.fixture
def arrays(rng):
    x_shape, w_shape = SHAPES
    return integers(rng, *x_shape), integers(rng, *w_shape), integers(rng, w_shape[0])


@pytest.fixture
def built(monkeypatch):
    """The requests for which a problem was built, from an empty cache on."""
    requests: list[Any] = []
    build = dispatch.problem_of

    def count(request: Any) -> Any:
        requests.append(request)
        return build(request)

    monkeypatch.setattr(dispatch, "problem_of", count)
    cached_plan.cache_clear()
    return requests


# --- the cache


def test_a_repeated_call_builds_no_problem(built, arrays):
    x, w, bias = arrays
    for _ in range(3):
        nc.conv(x, w, bias, groups=2, stride=(2, 1), padding="same")
        nc.conv(x + 1, w - 1, bias, groups=2, stride=[2, 1], padding="same")
        nc.max_pool(x, 2, padding=((1, 0), (0, 1)))
    assert [request.op for request in built] == ["conv", "max_pool"]


def test_what_differs_gets_its_own_plan(built, arrays):
    x, w, bias = arrays
    single = x.astype(np.float32), w.astype(np.float32)
    calls = [
        lambda: nc.conv(x, w, groups=2),
        lambda: nc.conv(x, w, bias, groups=2),
        lambda: nc.conv(x[1:], w, groups=2),
        lambda: nc.conv(x[0], w, groups=2),
        lambda: nc.conv(x, w, groups=2, stride=2),
        lambda: nc.conv(x, w, groups=2, flip=True),
        lambda: nc.conv(x, w, groups=2, activation="relu"),
        lambda: nc.conv(x, w, groups=2, accuracy="strict"),
        lambda: nc.conv(*single, groups=2),
        lambda: nc.conv(*single, groups=2, dtype="float64"),
    ]
    for call in calls:
        call()
    with nc.using(max_workspace=2**30):
        calls[0]()
    assert len(built) == len(calls) + 1


def test_a_plan_is_found_by_calls_and_calls_by_plans(built, arrays):
    x, w, _ = arrays
    plan = nc.plan("conv", *SHAPES, np.dtype("float64"), groups=2)
    nc.conv(x, w, groups=2)
    assert nc.plan("conv", *SHAPES, np.dtype("float64"), groups=2) is plan
    assert len(built) == 1


def test_a_refusal_is_not_remembered(built, arrays):
    x, w, _ = arrays
    for _ in range(2):
        with pytest.raises(ProblemError, match="groups"):
            nc.conv(x, w)
    assert len(built) == 2


def test_the_cache_is_bounded():
    assert cached_plan.cache_parameters()["maxsize"] == 4096


def test_a_cached_plan_holds_no_arrays(arrays):
    x, w, _ = (array.copy() for array in arrays)
    nc.conv(x, w, groups=2)
    references = weakref.ref(x), weakref.ref(w)
    del x, w
    assert [reference() for reference in references] == [None, None]


# --- plans


def test_plan_attributes(backend):
    plan = nc.plan("conv", *SHAPES, "float64", groups=2, bias=True)
    assert plan.backend == backend
    assert plan.algorithm in {row.algorithm for row in plan.explain().candidates}
    assert plan.workspace_bytes >= 0
    assert plan.op == "conv"
    assert plan.problem == parse("conv forward f64 n2 c4 k6 g2 in7x6 w3x2 s1 p0 d1 bias=y")
    assert repr(plan) == f"<Plan conv: {plan.problem} -> {backend} {plan.algorithm}>"
    assert repr(plan.bind(np.ones(SHAPES[1]))) == f"<Bound{plan!r}>"


def test_plan_of_other_dtypes(arrays):
    x, w, _ = (array.astype(np.float32) for array in arrays)
    plan = nc.plan("conv", *SHAPES, groups=2, out_dtype="float64")
    assert plan(x, w).dtype == np.float64


def test_plan_takes_what_its_function_takes(arrays):
    x, w, bias = arrays
    plan, expected = nc.plan("conv", *SHAPES, "float64", groups=2), nc.conv(x, w, groups=2)
    for args in ((x, w), (x, w, None), (x.tolist(), w), (x.astype(">f8"), w.astype(">f8")), (np.asfortranarray(x), w)):
        np.testing.assert_array_equal(plan(*args), expected)
    out = np.full_like(expected, np.nan)
    assert plan(x, w, out=out) is out
    np.testing.assert_array_equal(out, expected)
    with_bias = nc.plan("conv", *SHAPES, "float64", groups=2, bias=True)
    np.testing.assert_array_equal(with_bias(x, w, bias), nc.conv(x, w, bias, groups=2))


def test_plan_with_layout_and_without_batch(arrays):
    x, w, _ = arrays
    last = np.moveaxis(x[0], 0, -1)
    plan = nc.plan("conv", last.shape, w.shape, "float64", groups=2, layout="channels_last")
    np.testing.assert_array_equal(plan(last, w), np.moveaxis(nc.conv(x, w, groups=2)[0], 0, -1))


@every_backend
def test_a_plan_is_shared_between_threads(rng):
    plan = nc.plan("conv", *SHAPES, "float64", groups=2, padding=1)
    pairs = [(integers(rng, *SHAPES[0]), integers(rng, *SHAPES[1])) for _ in range(32)]
    expected = [plan(*pair) for pair in pairs]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda pair: plan(*pair), pairs))
    np.testing.assert_array_equal(found, expected)


def test_threads_find_their_plans_at_the_same_time(built, rng, backend):
    x = integers(rng, 1, 1, 40)
    kernels = [integers(rng, 1, 1, 1 + i % 8) for i in range(64)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda w: nc.conv(x, w, backend=backend), kernels))
    for w, y in zip(kernels, found, strict=True):
        np.testing.assert_array_equal(y[0, 0], np.correlate(x[0, 0], w[0, 0], "valid"))


# --- bound plans


BOUND = [
    ("conv", {}),
    ("conv", {"bias": True}),
    ("conv_input_grad", {}),
    ("conv_transpose", {}),
    ("conv_transpose", {"bias": True}),
]


@every_backend
@pytest.mark.parametrize(("op", "options"), BOUND)
def test_bound_plan(rng, op, options):
    x_shape, w_shape = SHAPES if op != "conv_transpose" else ((2, 6, 4, 3), (6, 2, 3, 2))
    plan = nc.plan(op, x_shape, w_shape, "float64", groups=2, **options)
    first, w, *rest = (integers(rng, *shape) for shape in plan.problem.input_shapes)
    expected = plan(first, w, *rest)
    bound = plan.bind(w)
    w[...] = 99
    np.testing.assert_array_equal(bound(first, *rest), expected)
    assert bound.plan is plan
    out = np.full_like(expected, np.nan)
    assert bound(first, *rest, out=out) is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("form", [np.asfortranarray, lambda w: w.astype(">f8"), np.ndarray.tolist])
def test_bound_plan_of_other_arrays(arrays, form):
    x, w, _ = arrays
    bound = nc.plan("conv", *SHAPES, "float64", groups=2).bind(form(w))
    np.testing.assert_array_equal(bound(x), nc.conv(x, w, groups=2))


@every_backend
def test_bound_plan_with_layout_and_without_batch(arrays):
    x, w, _ = arrays
    last = np.moveaxis(x[0], 0, -1)
    bound = nc.plan("conv", last.shape, w.shape, "float64", groups=2, layout="channels_last").bind(w)
    np.testing.assert_array_equal(bound(last), np.moveaxis(nc.conv(x, w, groups=2)[0], 0, -1))


@every_backend
def test_a_bound_plan_is_shared_between_threads(rng, arrays):
    bound = nc.plan("conv", *SHAPES, "float64", groups=2).bind(arrays[1])
    batches = [integers(rng, *SHAPES[0]) for _ in range(32)]
    expected = [bound(x) for x in batches]
    with ThreadPoolExecutor(8) as pool:
        np.testing.assert_array_equal(list(pool.map(bound, batches)), expected)


# --- every function


# A function's name, the two shapes of its plan, its options, and what the function takes after its arrays.
FUNCTIONS = [
    ("conv", *SHAPES, {"groups": 2, "stride": 2, "padding": 1}, ()),
    ("conv", *SHAPES, {"groups": 2, "padding": "same", "stride": (3, 2)}, ()),
    ("conv_input_grad", *SHAPES, {"groups": 2, "stride": 2}, (SHAPES[0],)),
    ("conv_weight_grad", *SHAPES, {"groups": 2, "dilation": 2}, (SHAPES[1],)),
    ("conv_transpose", (2, 4, 5, 6), (4, 3, 3, 2), {"stride": 3, "output_padding": (2, 1)}, ()),
    ("conv_transpose", (2, 4, 5, 6), (4, 3, 3, 2), {"stride": 3, "padding": "same"}, ()),
    ("max_pool", (2, 4, 7, 6), 2, {"ceil_mode": True}, (2,)),
    ("max_pool_backward", (2, 4, 7, 6), (3, 2), {"stride": 1}, ((3, 2),)),
    ("max_unpool", (2, 4, 7, 6), (2, 4, 3, 3), {}, ((2, 4, 7, 6),)),
    ("max_unpool_backward", (2, 4, 7, 6), (2, 4, 3, 3), {}, ()),
    ("avg_pool", (2, 4, 7, 6), 3, {"padding": 1, "count_include_pad": False}, (3,)),
    ("avg_pool_backward", (2, 4, 7, 6), 3, {"stride": 2}, ((2, 4, 7, 6), 3)),
    ("lp_pool", (2, 4, 7, 6), 2, {"p": 3, "dilation": 2}, (2,)),
    ("lp_pool_backward", (2, 4, 7, 6), 2, {"p": 1}, (2,)),
    ("pad", (2, 4, 7, 6), ((1, 2), (3, 0)), {"mode": "circular"}, (((1, 2), (3, 0)),)),
    ("pad_backward", (2, 4, 7, 6), 1, {"mode": "reflect"}, (1,)),
    ("unfold", (2, 4, 7, 6), (3, 2), {"stride": 2, "padding": 1}, ((3, 2),)),
    ("fold", (2, 4, 7, 6), (3, 2), {"dilation": 2}, ((2, 4, 7, 6), (3, 2))),
]


@every_backend
@pytest.mark.parametrize(("op", "x_shape", "second", "options", "rest"), FUNCTIONS)
def test_plans_and_shapes_of_every_function(rng, op, x_shape, second, options, rest):
    plan = nc.plan(op, x_shape, second, "float64", **options)
    arrays = [integers(rng, *shape) for shape in plan.problem.input_shapes]
    if "unpool" in op:
        arrays[1] = np.argsort(rng.random((2, 4, 42)))[..., :9].reshape(2, 4, 3, 3)
    y = getattr(nc, op)(*arrays, *rest, **options)
    np.testing.assert_array_equal(plan(*arrays), y)
    assert nc.output_shape(op, x_shape, second, **options) == y.shape


def test_every_function_has_a_row():
    backward = {"conv_backward", "conv_transpose_backward"}
    assert {row[0] for row in FUNCTIONS} | backward == set(functional.__all__) - {"ConvGrads"}


@pytest.mark.parametrize(
    ("args", "options", "shape"),
    [
        (("conv", (5, 5, 3), (2, 3, 3, 3)), {"stride": 2, "padding": 1, "layout": "channels_last"}, (3, 3, 2)),
        (("conv", (7, 5, 5, 3), (2, 3, 3, 3)), {"layout": "channels_last"}, (7, 3, 3, 2)),
        (("conv", (0, 3, 5), (2, 3, 3)), {}, (0, 2, 3)),
        (("conv_weight_grad", (3, 5), (2, 3, 3)), {}, (2, 3, 3)),
        (("conv_transpose", (4, 6), (4, 2, 3)), {"stride": 2}, (2, 13)),
        (("max_pool", (3, 8, 8), (2, 2)), {}, (3, 4, 4)),
        (("max_pool", (3, 8, 8), 2), {"return_indices": True}, (3, 8, 4)),
        (("unfold", (3, 8, 8), (2, 2)), {}, (12, 49)),
    ],
)
def test_output_shape(args, options, shape):
    assert nc.output_shape(*args, **options) == shape


@every_backend
def test_plan_of_pooling_with_indices(rng):
    x = rng.permutation(96).reshape(2, 2, 4, 6).astype(float)
    y, indices = nc.plan("max_pool", x.shape, 2, "float64", return_indices=True)(x)
    back = nc.plan("max_pool_backward", x.shape, 2, "float64", indices=True)
    np.testing.assert_array_equal(back(y, indices), np.where(np.isin(x, y), x, 0))


# --- plans of backward functions


@every_backend
@pytest.mark.parametrize("needs", [("x", "w", "bias"), ("x",), ("w",), ("bias",), ("x", "bias"), "w"])
@pytest.mark.parametrize("op", ["conv_backward", "conv_transpose_backward"])
def test_backward_plans(rng, op, needs):
    x_shape, w_shape = SHAPES if op == "conv_backward" else ((2, 6, 4, 3), (6, 2, 3, 2))
    options = {"groups": 2, "stride": 2}
    y_shape = nc.output_shape(op.removesuffix("_backward"), x_shape, w_shape, **options)
    g, x, w = (integers(rng, *shape) for shape in (y_shape, x_shape, w_shape))
    found = nc.plan(op, x_shape, w_shape, "float64", needs=needs, **options)(g, x, w)
    expected = getattr(nc, op)(g, x, w, needs=needs, **options)
    assert type(found) is nc.ConvGrads
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_backward_plan_attributes(backend):
    plan = nc.plan("conv_backward", *SHAPES, "float64", groups=2)
    assert plan.op == "conv_backward"
    assert plan.backend == backend
    assert set(plan.algorithm.split(" + ")) == {plan.plans["x"].algorithm, plan.plans["bias"].algorithm}
    assert plan.workspace_bytes == max(each.workspace_bytes for each in plan.plans.values())
    assert "conv input_grad" in str(plan.explain())
    assert "conv weight_grad" in str(plan.explain())


# --- explanations


@pytest.mark.parametrize(("op", "x_shape", "second", "options", "rest"), FUNCTIONS)
def test_explain_every_function(backend, op, x_shape, second, options, rest):
    explanation = nc.explain(op, x_shape, second, "float64", **options)
    plan = nc.plan(op, x_shape, second, "float64", **options)
    assert explanation.problem == plan.problem
    assert (explanation.chosen.backend, explanation.chosen.algorithm) == (plan.backend, plan.algorithm)
    assert {row.backend for row in explanation.candidates} == {backend}
    first, header, *rows = str(explanation).splitlines()
    assert first == str(plan.problem)
    assert header.split() == ["backend", "algorithm", "estimate", "workspace", "verdict"]
    assert [row.startswith("> ") for row in rows] == [True] + [False] * (len(rows) - 1)
    assert len(rows) == len(explanation.candidates)


def test_an_explanation_has_columns_whatever_the_names():
    """A long name moves the whole column."""
    from numconv.plugin import Verdict
    from numconv.registry import Candidate

    long = Candidate("theirs", "an_algorithm_with_a_long_name", Verdict.no("too long"), 0.0, 0, None)
    table = str(dispatch.Explanation("problem", (Candidate("ours", "fft", Verdict.yes(), 1e-6, 1234567890, None), long)))
    _, header, first, second = table.splitlines()
    assert header.index("verdict") == first.index("yes") == second.index("no: too long")
    assert header.index("algorithm") == first.index("fft") == second.index("an_algorithm")


# --- devices


class OnTheGpu:
    """What an array of another library shows of itself."""

    def __init__(self, array: np.ndarray):
        self.__cuda_array_interface__ = array.__array_interface__ | {"version": 3, "stream": None}


def test_arrays_on_two_devices(arrays):
    x, w, _ = arrays
    with pytest.raises(ProblemError, match="x lives on the cpu and w on the gpu; move one of them"):
        nc.conv(x, OnTheGpu(w), groups=2)


def test_nobody_computes_on_the_gpu(arrays):
    x, w, _ = map(OnTheGpu, arrays)
    if any(info.device == "gpu" and info.available for info in nc.backends()):
        pytest.skip("somebody does")
    with pytest.raises(UnsupportedProblemError, match="No installed backend could"):
        nc.conv(x, w, groups=2)


def test_backward_plan_writes_nothing_before_every_check():
    """A result that does not fit is refused before the other gradient is written."""
    x, w = np.ones((1, 2, 5)), np.ones((3, 2, 3))
    plan = nc.plan("conv_backward", x.shape, w.shape, "float64", backend="reference")
    grad_x = np.full(x.shape, 7.0)
    with pytest.raises(nc.ProblemError, match=r"\(3, 2, 4\).*\(3, 2, 3\)"):
        plan(np.ones((1, 3, 3)), x, w, out=(grad_x, np.empty((3, 2, 4)), None))
    assert (grad_x == 7).all()
    out = (grad_x, np.empty(w.shape), np.empty(3))
    grads = plan(np.ones((1, 3, 3)), x, w, out=out)
    assert all(got is given for got, given in zip(grads, out, strict=True))
    for got, expected in zip(grads, nc.conv_backward(np.ones((1, 3, 3)), x, w, backend="reference"), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("op", "x_shape", "w_shape", "options"),
    [
        ("conv", (1, 2, 8), (3, 2, 3), {"bias": True, "activation": "relu", "padding": "same", "accuracy": "strict"}),
        ("conv_backward", (2, 2, 8), (3, 2, 3), {"stride": 2}),
        ("max_pool", (2, 8), (2,), {"return_indices": True}),
        ("conv", (1, 2, 8), (3, 2, 3), {"backend": "reference", "algorithm": "direct", "out_dtype": "float64"}),
    ],
)
def test_plans_are_copied_and_pickled(op, x_shape, w_shape, options):
    plan = nc.plan(op, x_shape, w_shape, **options)
    for other in (pickle.loads(pickle.dumps(plan)), copy.copy(plan), copy.deepcopy(plan)):
        assert repr(other) == repr(plan)
    text = pickle.dumps(plan)
    cached_plan.cache_clear()
    assert repr(pickle.loads(text)) == repr(plan)
    assert len(text) < 2000


def test_a_pickled_plan_keeps_the_settings_that_it_was_made_under():
    with nc.using(backend="reference", accuracy="high"):
        text = pickle.dumps(nc.plan("conv", (1, 2, 8), (3, 2, 3)))
    plan = pickle.loads(text)
    assert (plan.backend, plan.problem.accuracy) == ("reference", "high")


def test_plans_go_to_other_processes():
    plan = nc.plan("conv", (1, 1, 5), (1, 1, 3), "float64", backend="reference")
    code = (
        "import pickle, sys, numpy as np; plan = pickle.loads(sys.stdin.buffer.read()); "
        "print(plan(np.ones((1, 1, 5)), np.ones((1, 1, 3))).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(plan), capture_output=True, check=True)
    assert done.stdout.split() == b"[[[3.0, 3.0, 3.0]]]".split()


def test_bound_plans_say_how_to_pickle_them():
    bound = nc.plan("conv", (1, 1, 5), (1, 1, 3), "float64").bind(np.ones((1, 1, 3)))
    with pytest.raises(TypeError, match=r"cannot be pickled: send the plan, which can be, and w, and call plan\.bind\(w\) there"):
        pickle.dumps(bound)
    assert copy.deepcopy(bound) is bound
    assert copy.copy(bound) is bound
