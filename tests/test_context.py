"""Settings: `using`, its isolation, the environment, and the order in which they decide."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import numconv as nc
from numconv import ProblemError
from numconv.context import Context, current, environment
from numconv.dispatch import cached_plan
from numconv.plugin import Implementation, Verdict, requested_threads
from numconv.registry import Registry

SHAPES = (1, 2, 8), (3, 2, 3)
X, W = (np.ones(shape, np.float32) for shape in SHAPES)


class Sleeper(Implementation):
    """Takes as long as it says, and says that it costs nothing."""

    ops = frozenset({"forward"})

    def __init__(self, name: str, seconds: float):
        self.name = name
        self.seconds = seconds
        self.runs = 0

    def supports(self, problem: Any) -> Verdict:
        return Verdict.yes()

    def cost(self, problem: Any) -> float:
        return -self.seconds

    def build(self, problem: Any) -> Callable[[Any, Any], None]:
        def execute(outs: Any, ins: Any) -> None:
            self.runs += 1
            time.sleep(self.seconds)
            outs[0][...] = self.seconds

        return execute


def backend(name: str, *implementations: Any, device: str = "cpu") -> Any:
    return SimpleNamespace(
        name=name, device=device, automatic=True, version="1", availability=Verdict.yes, implementations=lambda: implementations
    )


@pytest.fixture
def install(monkeypatch):
    """Make a registry of these backends the one that the public functions use."""

    def use(*backends: Any) -> None:
        registry = Registry(SimpleNamespace(name=b.name, load=lambda b=b: b, dist=SimpleNamespace(name="tests")) for b in backends)
        monkeypatch.setattr("numconv.registry._default", lambda: registry)
        cached_plan.cache_clear()

    yield use
    cached_plan.cache_clear()


@pytest.fixture
def variables(monkeypatch):
    """Set environment variables, as a new process would find them."""

    def use(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"NUMCONV_{name}", value)
        environment.cache_clear()
        cached_plan.cache_clear()

    yield use
    monkeypatch.undo()
    environment.cache_clear()
    cached_plan.cache_clear()


@pytest.fixture
def three(install):
    install(backend("a", Sleeper("direct", 0)), backend("b", Sleeper("direct", 0)), backend("c", Sleeper("direct", 0)))


def chosen(**options: Any) -> str:
    return nc.plan("conv", *SHAPES, **options).backend


# --- using


def test_inner_settings_stand_over_outer_ones():
    assert current() == Context()
    with nc.using(accuracy="high", threads=2) as outer:
        assert outer == current() == Context(accuracy="high", threads=2)
        with nc.using(accuracy="strict", max_workspace=10):
            assert current() == Context(accuracy="strict", threads=2, max_workspace=10)
        assert current() == outer
    assert current() == Context()


def test_numbers_of_any_integer_type():
    with nc.using(threads=np.int64(2), max_workspace=np.uint32(5000)) as settings:
        assert (settings.threads, settings.max_workspace) == (2, 5000)
        assert type(settings.threads) is type(settings.max_workspace) is int


def test_settings_end_with_an_error():
    with pytest.raises(KeyError), nc.using(accuracy="high"):
        raise KeyError
    assert current() == Context()


def test_tuning_can_be_switched_off_inside():
    with nc.using(tune=True), nc.using(tune=False):
        assert not current().tune


def test_settings_change_the_problem(three):
    with nc.using(accuracy="strict", max_workspace=1000):
        problem = nc.plan("conv", *SHAPES).problem
        assert (problem.level, problem.max_workspace) == ("strict", 1000)
        assert nc.plan("conv", *SHAPES, accuracy="high").problem.level == "high", "an argument stands over the context"
    problem = nc.plan("conv", *SHAPES).problem
    assert (problem.level, problem.max_workspace) == ("default", 256 * 2**20)


def test_threads_do_not_inherit():
    with nc.using(accuracy="high"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(current).result() == Context()
        assert pool.submit(copy_context().run, current).result() == Context(accuracy="high"), "unless they are told to"


def test_threads_do_not_disturb_each_other():
    barrier = threading.Barrier(3)

    def work(level: str) -> str | None:
        with nc.using(accuracy=level):
            barrier.wait(10)
            seen = current().accuracy
            barrier.wait(10)
        return seen

    levels = ["strict", "high", "fast"]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(work, levels)) == levels


def test_tasks_do_not_disturb_each_other():
    async def work(level: str) -> str | None:
        with nc.using(accuracy=level):
            await asyncio.sleep(0)
            return current().accuracy

    async def both() -> list[str | None]:
        return await asyncio.gather(work("strict"), work("high"))

    assert asyncio.run(both()) == ["strict", "high"]


def test_a_task_inherits_from_where_it_was_started():
    async def work() -> str | None:
        return current().accuracy

    async def outer() -> str | None:
        with nc.using(accuracy="high"):
            task = asyncio.create_task(work())
        return await task

    assert asyncio.run(outer()) == "high"


# --- the order of selection


def test_argument_over_using_over_environment_over_automatic(three, variables):
    assert chosen() == "a"
    variables(BACKEND="b")
    assert chosen() == "b"
    with nc.using(backend="c"):
        assert chosen() == "c"
        assert chosen(backend="a") == "a"
    assert chosen() == "b"
    assert chosen(backend="a") == "a"


def test_an_empty_variable_is_none(three, variables):
    variables(BACKEND="  ", NUM_THREADS="")
    assert chosen() == "a"
    assert requested_threads() is None


@pytest.mark.parametrize("names", ["b,gpu", "gpu, b", " b ,gpu"])
def test_a_list_names_one_backend_a_device(install, variables, names):
    install(
        backend("a", Sleeper("direct", 0)), backend("b", Sleeper("direct", 0)), backend("gpu", Sleeper("direct", 0), device="gpu")
    )
    with nc.using(backend=[name.strip() for name in names.split(",")]):
        assert chosen() == "b"
    variables(BACKEND=names)
    assert chosen() == "b"


def test_a_device_without_a_name_uses_its_default(install, variables):
    install(
        backend("a", Sleeper("direct", 0)), backend("b", Sleeper("direct", 0)), backend("gpu", Sleeper("direct", 0), device="gpu")
    )
    with nc.using(backend="gpu"):
        assert chosen() == "a"
    variables(BACKEND="b")
    with nc.using(backend="gpu"):
        assert chosen() == "b"


def test_the_array_says_the_device(install):
    install(backend("a", Sleeper("direct", 0)), backend("gpu", Sleeper("direct", 0), device="gpu"))
    like = SimpleNamespace(__cuda_array_interface__={})
    assert chosen(like=like) == "gpu"
    with nc.using(backend="a"):
        assert chosen(like=like) == "gpu"


def test_a_plan_does_not_outlive_the_settings_of_its_cache_entry(three):
    for name in ("b", "c", "b"):
        with nc.using(backend=name):
            assert chosen() == name


# --- threads


def test_requested_threads(variables):
    assert requested_threads() is None
    variables(NUM_THREADS="3")
    assert requested_threads() == 3
    with nc.using(threads=1):
        assert requested_threads() == 1
    assert requested_threads() == 3


ENVIRONMENT_CHECKS = """
import json, os
import numconv as nc
shapes = (1, 2, 8), (3, 2, 3)
seen = [nc.plan("conv", *shapes).backend]
os.environ["NUMCONV_BACKEND"] = "nonsense"  # read once
seen.append(nc.plan("max_pool", (1, 2, 8), 2).backend)
from numconv.plugin import requested_threads
seen.append(requested_threads())
print(json.dumps(seen))
"""


def test_the_environment_is_read_once():
    values = os.environ | {"NUMCONV_BACKEND": "reference", "NUMCONV_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", ENVIRONMENT_CHECKS], env=values, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["reference", "reference", 2]


# --- tuning


@pytest.fixture
def sleepers(install, monkeypatch, tmp_path):
    """Two candidates, the slower of which promises to be the faster; and the folder for what tuning finds."""
    slow, quick = Sleeper("slow", 0.02), Sleeper("quick", 0.001)
    install(backend("a", slow, quick))
    monkeypatch.setenv("NUMCONV_CACHE_DIR", str(tmp_path / "cache"))
    return slow, quick, tmp_path / "cache"


def test_tuning_measures_once(sleepers):
    slow, quick, folder = sleepers
    assert nc.plan("conv", *SHAPES).algorithm == "slow"
    assert not folder.exists()
    with nc.using(tune=True):
        assert nc.plan("conv", *SHAPES).algorithm == "quick"
        (file,) = folder.iterdir()
        assert nc.__version__ in file.name
        ((key, winner),) = json.loads(file.read_text()).items()
        assert key.endswith("conv forward f32 n1 c2 k3 g1 in8 w3 s1 p0 d1")
        assert winner == ["a", "quick"]
        runs = slow.runs, quick.runs
        cached_plan.cache_clear()
        assert nc.plan("conv", *SHAPES).algorithm == "quick"
        assert nc.conv(X, W).max() == np.float32(0.001)
    assert (slow.runs, quick.runs) == (runs[0], runs[1] + 1), "read from the file, not measured again"
    assert nc.plan("conv", *SHAPES).algorithm == "slow", "only inside the block"


def test_tuning_obeys_algorithm(sleepers):
    with nc.using(tune=True):
        assert nc.plan("conv", *SHAPES, algorithm="slow").algorithm == "slow"
    assert not sleepers[2].exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"other problem": ["a", "slow"]}'])
def test_tuning_survives_a_spoilt_file(sleepers, text):
    folder = sleepers[2]
    folder.mkdir()
    (folder / f"tuning-{nc.__version__}.json").write_text(text)
    with nc.using(tune=True):
        assert nc.plan("conv", *SHAPES).algorithm == "quick"
    assert len(list(folder.iterdir())) == 1


def test_tuning_survives_a_folder_that_cannot_be_written(sleepers):
    folder = sleepers[2]
    folder.write_text("a file where the folder should be")
    with nc.using(tune=True):
        assert nc.plan("conv", *SHAPES).algorithm == "quick"


def test_a_winner_that_is_gone_is_replaced(sleepers, install):
    with nc.using(tune=True):
        nc.plan("conv", *SHAPES)
        install(backend("a", Sleeper("slow", 0.02), Sleeper("other", 0.001)))
        assert nc.plan("conv", *SHAPES).algorithm == "other"


@pytest.mark.parametrize("name", ["threads", "max_workspace"])
@pytest.mark.parametrize("value", [0, -1, 1.0, "1", True, [1]])
def test_positive_integers(name, value):
    with pytest.raises(ProblemError, match=f"{name}=.* must be an integer of at least 1"), nc.using(**{name: value}):
        pytest.fail("the block was entered")
