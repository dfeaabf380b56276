"""What all tests share: the backends they run on, and a random generator."""

import numpy as np
import pytest

import numconv

SEED = 20260101


def pytest_addoption(parser):
    parser.addoption("--backend", action="append", default=[], metavar="NAME", help="test this backend only; may be repeated")


def pytest_configure(config):
    """Refuse to run where a skip would look like a pass: without backends, or without one that was asked for."""
    infos = {info.name: info for info in numconv.backends()}
    if not infos:
        raise pytest.UsageError(_boxed("No backend is registered: numconv is not installed.", "Run: python -m pip install -e ."))
    for name in config.getoption("--backend"):
        if name not in infos:
            raise pytest.UsageError(f"--backend {name}: no backend is called {name!r}; installed: {', '.join(sorted(infos))}")
        if not infos[name].available:
            raise pytest.UsageError(f"--backend {name}: not available here: {infos[name].reason}")
    if not config.option.markexpr:
        config.option.markexpr = "not slow"


def _boxed(*lines):
    width = max(map(len, lines))
    rule = "+" + "-" * (width + 2) + "+"
    return "\n".join(["", rule, *(f"| {line:{width}} |" for line in lines), rule])


def _selected(config):
    """The names of the available backends that were asked for; all by default."""
    asked = config.getoption("--backend")
    return sorted(info.name for info in numconv.backends() if info.available and (not asked or info.name in asked))


def pytest_generate_tests(metafunc):
    """`backend` is each backend in turn, `other_backend` each but the reference."""
    names = _selected(metafunc.config)
    for fixture, values in (("backend", names), ("other_backend", [name for name in names if name != "reference"])):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, values)


def pytest_collection_modifyitems(config, items):
    """Leave out the contracts of backends that were not asked for."""
    asked = config.getoption("--backend")
    named = (getattr(getattr(item, "cls", None), "backend", None) for item in items)
    left_out = [item for item, name in zip(items, named, strict=True) if asked and isinstance(name, str) and name not in asked]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """A test on a backend that declines its problem is skipped, with the reason of the Verdict."""
    try:
        return (yield)
    except numconv.UnsupportedProblemError as error:
        if not {"backend", "other_backend"} & set(pyfuncitem.fixturenames):
            raise
        pytest.skip(str(error))


@pytest.fixture
def rng():
    return np.random.default_rng(SEED)
