"""Who may compute, who is chosen, and what is said of the others: on registries of dummy entry points."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import numconv as nc
from numconv import BackendUnavailableError, ProblemError, UnknownBackendError, UnsupportedProblemError, demo
from numconv.cli import main
from numconv.dispatch import cached_plan
from numconv.plugin import Backend, Implementation, Verdict
from numconv.problem import LEVELS, parse
from numconv.registry import Registry

PROBLEM = parse("conv forward f32 n1 c2 k3 g1 in8 w3 s1 p0 d1")
YES = Verdict.yes()
X, W = np.ones((1, 2, 8), np.float32), np.ones((3, 2, 3), np.float32)


class Dummy(Implementation):
    """Fills its output with a number; a verdict that is an exception is raised."""

    def __init__(
        self,
        name: str = "dummy",
        seconds: float = 1.0,
        *,
        verdict: Any = YES,
        workspace: Any = 0,
        fill: float = 0.0,
        ops: tuple[str, ...] = ("forward",),
        levels: tuple[str, ...] = LEVELS,
    ):
        self.name = name
        self.ops = frozenset(ops)
        self.levels = frozenset(levels)
        self._answers = (seconds, verdict, workspace)
        self._fill = fill

    def cost(self, problem: Any) -> float:
        return self._answers[0]

    def supports(self, problem: Any) -> Verdict:
        if isinstance(self._answers[1], Exception):
            raise self._answers[1]
        return self._answers[1]

    def workspace(self, problem: Any) -> int:
        return self._answers[2]

    def build(self, problem: Any) -> Callable[[Any, Any], None]:
        def execute(outs: Any, ins: Any) -> None:
            outs[0][...] = self._fill

        return execute


class DummyBackend:
    """A backend of given implementations."""

    version = "1.2"

    def __init__(self, name: str, *implementations: Any, automatic: bool = True, device: str = "cpu", available: Any = YES):
        self.name = name
        self.automatic = automatic
        self.device = device
        self._implementations = implementations
        self._available = available

    def availability(self) -> Any:
        return self._available

    def implementations(self) -> Any:
        if self._implementations and isinstance(self._implementations[0], Exception):
            raise self._implementations[0]
        return self._implementations


def entry(backend: Any, name: str | None = None, distribution: str = "somebody") -> Any:
    """An entry point; `backend` may be an exception that loading raises."""

    def load() -> Any:
        if isinstance(backend, BaseException):
            raise backend
        return backend

    return SimpleNamespace(name=name or backend.name, load=load, dist=SimpleNamespace(name=distribution))


def select(registry: Registry, backend: str | None = None, algorithm: str | None = None, problem: Any = PROBLEM) -> list[Any]:
    return registry.select(problem, "conv(...)", "cpu", backend, algorithm)


def chosen(*backends: Any, **options: Any) -> tuple[str, str]:
    row = select(Registry(map(entry, backends)), **options)[0]
    return row.backend, row.algorithm


@pytest.fixture
def install(monkeypatch) -> Iterator[Callable[..., Registry]]:
    """Make a registry of these entries the one that the public functions use."""

    def use(*entries: Any) -> Registry:
        registry = Registry(entries)
        monkeypatch.setattr("numconv.registry._default", lambda: registry)
        cached_plan.cache_clear()
        return registry

    yield use
    cached_plan.cache_clear()


# --- loading


BROKEN = [
    (ImportError("No module named 'cupy'"), "failed to load: ImportError: No module named 'cupy'"),
    (AttributeError("module has no attribute 'backend'"), "failed to load: AttributeError: module has no attribute 'backend'"),
    (SyntaxError("invalid syntax"), "failed to load: SyntaxError"),
    (object(), "is not a backend: it lacks name, device, automatic, version, availability, implementations"),
    (SimpleNamespace(name="odd", device="cpu"), "it lacks automatic, version, availability, implementations"),
    (DummyBackend("other"), "its entry point is called 'odd', the backend calls itself 'other'"),
    (DummyBackend("odd", available=True), "TypeError: it answered True, which is no Verdict"),
    (DummyBackend("odd", available=Verdict.no("needs a GPU")), "needs a GPU"),
]


@pytest.mark.parametrize(("plugin", "reason"), BROKEN, ids=[reason for _, reason in BROKEN])
def test_a_broken_plugin_is_listed_and_breaks_nothing(install, plugin, reason):
    good = DummyBackend("good", Dummy(fill=7))
    install(entry(plugin, "odd"), entry(good))
    infos = {info.name: info for info in nc.backends()}
    assert not infos["odd"].available
    assert reason in infos["odd"].reason
    assert reason in repr(nc.backends())
    assert infos["good"].available
    assert (nc.conv(X, W) == 7).all()
    with pytest.raises(BackendUnavailableError, match=r"backend 'odd' is not available: .*Available: good"):
        nc.conv(X, W, backend="odd")
    assert reason in str(nc.explain("conv", X.shape, W.shape))


def test_infos():
    backend = DummyBackend("fast", automatic=False, device="gpu")
    info = Registry([entry(backend, distribution="fast-conv")]).infos()[0]
    assert info == ("fast", True, "", "gpu", "1.2", False, "fast-conv")


def test_the_table_says_which_compute_on_demand(install):
    install(entry(DummyBackend("shy", automatic=False)), entry(DummyBackend("bold")))
    lines = repr(nc.backends()).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["bold", "yes"], ["shy", "on"]]


def test_a_dummy_backend_is_a_backend():
    assert isinstance(DummyBackend("dummy"), Backend)


def test_no_backend_at_all(install):
    install()
    for call in (lambda: nc.conv(X, W), lambda: nc.conv(X, W, backend="reference"), lambda: nc.explain("conv", X.shape, W.shape)):
        with pytest.raises(BackendUnavailableError, match=r"no backend is registered.*python -m pip install -e \."):
            call()
    assert nc.backends() == ()


def test_equal_names_warn_and_ours_wins():
    entries = [
        entry(DummyBackend("numba", Dummy("theirs")), distribution="a-first-one"),
        entry(DummyBackend("numba", Dummy("ours")), distribution="numconv-nd"),
        entry(DummyBackend("numba", Dummy("more")), distribution="zz-last-one"),
    ]
    for order in (entries, entries[::-1]):
        with pytest.warns(RuntimeWarning, match="two numconv backends are called 'numba'") as warned:
            registry = Registry(order)
        texts = [str(w.message) for w in warned]
        assert all("'numconv-nd'" in text for text in texts)
        assert [other in text for text, other in zip(texts, ("'a-first-one'", "'zz-last-one'"), strict=True)] == [True, True]
        assert select(registry)[0].algorithm == "ours"
        assert registry.infos()[0].distribution == "numconv-nd"


def test_equal_names_of_strangers_are_settled_by_the_distribution():
    entries = [entry(DummyBackend("fast", Dummy(d)), distribution=d) for d in ("beta", "alpha")]
    for order in (entries, entries[::-1]):
        with pytest.warns(RuntimeWarning, match="'alpha' is used, that of 'beta' is not; uninstall one of them"):
            registry = Registry(order)
        assert select(registry)[0].algorithm == "alpha"


def test_the_same_entry_found_twice_is_no_duplicate():
    """An editable checkout on the path beside its installed metadata."""
    twice = [entry(DummyBackend("numba", Dummy()), distribution="numconv-nd")] * 2
    assert Registry(twice).names == ["numba"]


def test_installed_backends_are_found_by_their_entry_points():
    assert {"numba", "reference"} <= {info.name for info in nc.backends() if info.distribution == "numconv-nd"}


# --- choice


def test_the_cheapest_is_chosen_in_any_order():
    backends = [DummyBackend(f"b{i}", Dummy("slow", 3 + i), Dummy("quick", 2 - i / 10)) for i in range(3)]
    for order in (backends, backends[::-1]):
        assert chosen(*order) == ("b2", "quick")
        rows = select(Registry(map(entry, order)))
        assert [row.cost for row in rows] == sorted(row.cost for row in rows)


def test_equal_costs_are_settled_the_same_way_in_any_order():
    backends = [DummyBackend(name, Dummy()) for name in "dacb"]
    random.Random(0).shuffle(backends)
    assert chosen(*backends) == chosen(*backends[::-1]) == ("a", "dummy")


def test_order_within_a_backend_settles_equal_costs():
    assert chosen(DummyBackend("b", Dummy("special"), Dummy("general"))) == ("b", "special")


def test_a_refusal_is_passed_over():
    refused = DummyBackend("cheap", Dummy(seconds=0.1, verdict=Verdict.no("only even sizes")))
    rows = select(Registry(map(entry, (refused, DummyBackend("dear", Dummy())))))
    assert [row.backend for row in rows] == ["dear", "cheap"]
    assert rows[1].verdict.reason == "only even sizes"


def test_other_operations_are_not_asked():
    pooling = Dummy("pool", 0.1, ops=("max_pool",), verdict=RuntimeError("not asked"))
    assert chosen(DummyBackend("b", pooling, Dummy())) == ("b", "dummy")


def test_a_third_party_computes_only_when_asked(install):
    install(entry(DummyBackend("good", Dummy(fill=1))), entry(DummyBackend("shy", Dummy(seconds=1e-9, fill=2), automatic=False)))
    assert (nc.conv(X, W) == 1).all()
    assert "shy" in str(nc.explain("conv", X.shape, W.shape))
    assert "computes only when asked for: backend='shy'" in str(nc.explain("conv", X.shape, W.shape))
    assert (nc.conv(X, W, backend="shy") == 2).all()
    with nc.using(backend="shy"):
        assert (nc.conv(X, W) == 2).all()


def test_other_devices_are_not_candidates():
    gpu = DummyBackend("gpu", Dummy(seconds=1e-9), device="gpu")
    rows = select(Registry(map(entry, (gpu, DummyBackend("cpu", Dummy())))))
    assert [row.backend for row in rows] == ["cpu"]


def test_backend_is_strict(install):
    install(entry(DummyBackend("good", Dummy())), entry(DummyBackend("picky", Dummy(verdict=Verdict.no("only even sizes")))))
    with pytest.raises(
        UnsupportedProblemError, match=r"on 'picky' was declined.*picky dummy: only even sizes\. Who could: good \(dummy\)"
    ):
        nc.conv(X, W, backend="picky")


def test_data_stays_on_its_device(install):
    install(entry(DummyBackend("good", Dummy())), entry(DummyBackend("cuda", Dummy(), device="gpu")))
    with pytest.raises(
        UnsupportedProblemError, match=r"'cuda' computes on the gpu, and the arrays live on the cpu; numconv never moves data"
    ):
        nc.conv(X, W, backend="cuda")


@pytest.mark.parametrize(
    "command",
    [("demo",), ("lecture",), ("equivariance", "--data", "waves"), ("classify", "folder", "file")],
    ids=lambda words: words[0],
)
def test_commands_on_numpy_arrays_refuse_a_backend_of_another_device(install, capsys, tmp_path, monkeypatch, command):
    """A setting for the GPU says nothing of NumPy's arrays: such a command would compute with the default instead."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "_NEEDED", {})
    install(entry(DummyBackend("good", Dummy())), entry(DummyBackend("cuda", Dummy(), device="gpu")))
    assert main([*command, "--backend", "cuda"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "backend 'cuda' computes on the gpu, and the arrays live on the cpu" in err
    assert not list(tmp_path.iterdir())


def test_unknown_names():
    registry = Registry(map(entry, (DummyBackend("numba"), DummyBackend("cuda"))))
    with pytest.raises(UnknownBackendError, match=r"no backend is called 'nmba'; installed: cuda, numba; did you mean 'numba'\?"):
        registry.backend("nmba")
    with pytest.raises(UnknownBackendError, match=r"installed: cuda, numba$"):
        registry.backend("quantum")


def test_one_name_a_device():
    registry = Registry(map(entry, (DummyBackend("a"), DummyBackend("b"), DummyBackend("c", device="gpu"))))
    registry.check_names(("a", "c"), "here")
    with pytest.raises(ProblemError, match="here: 'a' and 'b' both compute on the cpu; name one backend a device"):
        registry.check_names(("a", "b"), "here")


def test_algorithm_is_strict(install):
    install(entry(DummyBackend("a", Dummy("direct", 1), Dummy("fft", 2))), entry(DummyBackend("b", Dummy("fft", 3))))
    plan = nc.plan("conv", X.shape, W.shape, algorithm="fft")
    assert (plan.backend, plan.algorithm) == ("a", "fft")
    assert "algorithm='fft' was asked for" in str(plan.explain())
    assert nc.plan("conv", X.shape, W.shape, backend="b", algorithm="fft").backend == "b"
    with pytest.raises(
        ProblemError, match=r"no implementation of forward is called 'winograd'; there are a: direct, a: fft, b: fft"
    ):
        nc.plan("conv", X.shape, W.shape, algorithm="winograd")
    with nc.using(algorithm="fft"):
        assert nc.plan("conv", X.shape, W.shape).algorithm == "fft"


def test_refused_algorithm(install):
    install(entry(DummyBackend("a", Dummy("direct"), Dummy("fft", verdict=Verdict.no("only with stride 1")))))
    with pytest.raises(UnsupportedProblemError, match=r"a fft: only with stride 1.*Who could: a \(direct\)"):
        nc.conv(X, W, algorithm="fft")


# --- what is refused for an implementation


@pytest.mark.parametrize(
    ("accuracy", "algorithm"), [(None, "fft"), ("default", "fft"), ("high", "direct"), ("strict", "direct"), ("fast", "split")]
)
def test_accuracy_levels(install, accuracy, algorithm):
    split, fft = Dummy("split", 1, levels=("fast",)), Dummy("fft", 2, levels=("default", "fast"))
    install(entry(DummyBackend("a", split, fft, Dummy("direct", 3))))
    assert nc.plan("conv", X.shape, W.shape, accuracy=accuracy).algorithm == algorithm


def test_an_algorithm_outside_the_level_is_refused(install):
    install(entry(DummyBackend("a", Dummy("direct"), Dummy("fft", levels=("default", "fast")))))
    with pytest.raises(UnsupportedProblemError, match="accuracy='strict' was asked for, and it is offered at default, fast only"):
        nc.conv(X, W, algorithm="fft", accuracy="strict")


def test_workspace_over_the_limit(install):
    install(entry(DummyBackend("a", Dummy("fft", 1, workspace=1000), Dummy("direct", 2, workspace=10))))
    assert nc.plan("conv", X.shape, W.shape).algorithm == "fft"
    assert nc.plan("conv", X.shape, W.shape).workspace_bytes == 1000
    with nc.using(max_workspace=999):
        assert nc.plan("conv", X.shape, W.shape).algorithm == "direct"
        with pytest.raises(UnsupportedProblemError, match="needs 1000 bytes of working memory, and max_workspace is 999"):
            nc.plan("conv", X.shape, W.shape, algorithm="fft")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (DummyBackend("bad", Dummy(verdict=ZeroDivisionError("division by zero"))), "failed: ZeroDivisionError: division by zero"),
        (DummyBackend("bad", ImportError("no numba")), "failed: ImportError: no numba"),
        (DummyBackend("bad", Dummy(verdict="maybe")), "failed: TypeError: it answered 'maybe', which is no Verdict"),
        (DummyBackend("bad", Dummy(workspace="lots")), "failed: TypeError"),
    ],
)
def test_a_plugin_that_raises_is_a_refusal(install, broken, reason):
    install(entry(DummyBackend("good", Dummy(fill=3))), entry(broken))
    assert (nc.conv(X, W) == 3).all()
    assert reason in str(nc.explain("conv", X.shape, W.shape))
    with pytest.raises(UnsupportedProblemError, match=reason):
        nc.conv(X, W, backend="bad")


def test_nobody_can(install):
    install(entry(DummyBackend("a", Dummy(verdict=Verdict.no("only pooling")))), entry(ImportError("no driver"), "b"))
    with pytest.raises(UnsupportedProblemError) as caught:
        nc.conv(X, W)
    for part in (
        "conv(x (1, 2, 8), w (3, 2, 3), float32)",
        str(PROBLEM),
        "a dummy: only pooling",
        "ImportError: no driver",
        "No installed backend could",
    ):
        assert part in str(caught.value)


def test_an_operation_without_implementation(install):
    install(entry(DummyBackend("a", Dummy())), entry(DummyBackend("pools", Dummy("pool", ops=("max_pool",)), automatic=False)))
    assert re.search(r"a +- +- +0  no: has no implementation of max_pool", str(nc.explain("max_pool", X.shape, 2)))
    with pytest.raises(UnsupportedProblemError, match=r"a -: has no implementation of max_pool.*Who could: pools \(pool\)"):
        nc.max_pool(X, 2)


def test_who_could_is_told_inside_using(install):
    install(entry(DummyBackend("good", Dummy())), entry(DummyBackend("picky", Dummy(verdict=Verdict.no("only even sizes")))))
    with nc.using(backend="picky"), pytest.raises(UnsupportedProblemError, match=r"only even sizes\. Who could: good \(dummy\)"):
        nc.conv(X, W)


# --- verdicts


@pytest.mark.parametrize("reason", ["", " ", None, 5])
def test_a_refusal_has_a_reason(reason):
    with pytest.raises(ValueError, match="a refusal needs a reason"):
        Verdict.no(reason)


def test_verdicts():
    assert Verdict.yes()
    assert Verdict.yes("in two passes").reason == "in two passes"
    assert not Verdict.no("too large")


def test_explanation_lists_everyone(install):
    install(
        entry(DummyBackend("a", Dummy("quick", 1e-6, workspace=64), Dummy("never", verdict=Verdict.no("only even sizes")))),
        entry(DummyBackend("b", Dummy("slow", 5e-6, verdict=Verdict.yes("in two passes")))),
        entry(ImportError("no driver"), "c"),
    )
    explanation = nc.explain("conv", X.shape, W.shape)
    lines = str(explanation).splitlines()
    assert lines[0] == str(PROBLEM)
    assert lines[2].split() == [">", "a", "quick", "1.0", "us", "64", "yes"]
    assert lines[3].split() == ["b", "slow", "5.0", "us", "0", "yes:", "in", "two", "passes"]
    assert {line.split(maxsplit=1)[0] for line in lines[4:]} == {"a", "c"}
    assert "no: only even sizes" in str(explanation)
    assert "no: failed to load: ImportError: no driver" in str(explanation)
    assert explanation.chosen == explanation.candidates[0]


def test_explanation_without_a_choice(install):
    install(entry(DummyBackend("a", Dummy(verdict=Verdict.no("only even sizes")))))
    explanation = nc.explain("conv", X.shape, W.shape)
    assert explanation.chosen is None
    assert "no: only even sizes" in repr(explanation)
