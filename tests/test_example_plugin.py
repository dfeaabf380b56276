"""The example plugin, built and installed as its own distribution, seen by numconv in other processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds the installed plugin and nothing else."""
    pytest.importorskip("setuptools", minversion="77", reason="the plugin is built without the network")
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "target"))
    shutil.copytree(EXAMPLE, source, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--no-warn-conflicts", "--target", target]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, source], check=True, capture_output=True)
    return target


def python(installed, *arguments, **environment):
    """What a process that can import the installed plugin prints."""
    path = os.pathsep.join(filter(None, [str(installed), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    done = subprocess.run([sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_listed_and_changes_nothing(installed):
    program = """
import numconv
row = {row.name: row for row in numconv.backends()}["example"]
print(row.available, row.automatic, row.device, row.distribution)
explanation = numconv.explain("conv", (1, 2, 8, 8), (3, 2, 3, 3))
print(explanation.chosen.backend != "example", *[c.verdict.reason for c in explanation.candidates if c.backend == "example"])
"""
    listed, explained = python(installed, "-c", program).splitlines()
    assert listed == "True False cpu numconv-example-plugin"
    assert explained == "True computes only when asked for: backend='example'"


@pytest.mark.parametrize("how", ["argument", "using", "environment"])
def test_it_computes_when_asked(installed, how):
    program = f"""
import contextlib
import numpy as np
import numconv
options = dict(stride=(2, 1), padding=((1, 0), (2, 3)), dilation=(1, 2), activation="relu")
rng = np.random.default_rng(0)
x, w, bias = (rng.integers(-9, 10, shape).astype("float32") for shape in ((2, 3, 9, 10), (4, 3, 3, 2), (4,)))
how = {how!r}
with numconv.using(backend="example") if how == "using" else contextlib.nullcontext():
    plan = numconv.plan("conv", x.shape, w.shape, x.dtype, bias=True, backend="example" if how == "argument" else None, **options)
    print(plan.backend, plan.algorithm)
    y = numconv.conv(x, w, bias, backend=plan.backend, **options)
np.testing.assert_array_equal(y, numconv.conv(x, w, bias, backend="reference", **options))
"""
    environment = {"NUMCONV_BACKEND": "example"} if how == "environment" else {}
    assert python(installed, "-c", program, **environment) == "example shifted\n"


REFUSED = {
    "conv(x, w, padding=1, pad_mode='reflect', backend='example')": "pad_mode 'reflect' is not supported",
    "conv(x, w[:, :1], groups=2, backend='example')": "groups=2 is not supported",
    "conv(x, w, flip=True, backend='example')": "flip=True is not supported",
    "conv(x, w, accuracy='strict', backend='example')": "accuracy='strict' was asked for",
    "conv(x.astype('float16'), w.astype('float16'), backend='example')": "dtype float16 is not supported",
    "conv_input_grad(x, w.swapaxes(0, 1), (1, 4, 10), backend='example')": "example",
}


@pytest.fixture(scope="module")
def refusals(installed):
    """The error of each call, by its text; one process makes them all."""
    program = f"""
import json
import numpy as np
import numconv
x, w = np.ones((1, 2, 8), "float32"), np.ones((4, 2, 3), "float32")
errors = {{}}
for call in {list(REFUSED)!r}:
    try:
        eval("numconv." + call)
    except numconv.UnsupportedProblemError as error:
        errors[call] = str(error)
print(json.dumps(errors))
"""
    return json.loads(python(installed, "-c", program))


@pytest.mark.parametrize("call", REFUSED)
def test_it_declines_with_its_reason(refusals, call):
    assert REFUSED[call] in refusals[call]
    assert "reference" in refusals[call]  # who could


def test_it_passes_the_contract_suite(installed, tmp_path):
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    printed = python(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path / "tests")
    assert " passed" in printed
