"""What all tests share: the backends they run on, and a random generator."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import numconv

SEED = 20260101
collect_ignore = ["amx_traps.py"]  # it compiles while it is imported, and has no doctest


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


FEATURES = {"haswell": "+avx2,+fma,+f16c", "x86-64-v2": "+fma"}
WIDTHS = {"haswell": 32, "x86-64-v2": 16}
"""Processors with narrower vectors than AVX-512 has, and the bytes of these."""

CHECKS = """
import json, sys
import numpy as np
from numconv.plugin import parse
from numconv.testing import check
from numconv_numba.microkernels.emit import host

rng = np.random.default_rng(1)
for algorithm, text in json.loads(sys.argv[1]):
    for integer in (True, False):
        check(parse(text), "numba", algorithm, rng=rng, integer=integer)
print(host().width)
"""


@pytest.fixture
def run_on(tmp_path):
    """Run a script for another x86 processor, whose instructions this one has too: (processor, script, *arguments) -> output."""
    if not sys.platform.startswith("linux") or os.uname().machine != "x86_64":
        pytest.skip("forces x86 processors")

    def run(processor, script, *arguments):
        target = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": FEATURES[processor], "NUMCONV_CACHE_DIR": str(tmp_path)}
        command = [sys.executable, "-c", script, *arguments]
        done = subprocess.run(command, env=os.environ | target, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def run_narrower(run_on):
    """`run_on` where vectors are narrower than this processor's own, which all other tests run."""
    from numconv_numba.microkernels.emit import host

    def run(processor, script, *arguments):
        if WIDTHS[processor] >= host().width:
            pytest.skip(f"vectors of {host().width} bytes are this processor's own: all other tests run them")
        return run_on(processor, script, *arguments)

    return run


@pytest.fixture
def check_on(run_narrower):
    """Check algorithms of the numba backend on another processor: (processor, [(algorithm, text)]); its vectors have its width."""

    def check(processor, jobs):
        assert int(run_narrower(processor, CHECKS, json.dumps(jobs))) == WIDTHS[processor]

    return check
