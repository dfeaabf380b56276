"""What compiled kernels promise beyond right results: one signature, one compilation, an error within the level."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from numconv_numba.microkernels.emit import host

import numconv as nc
from numconv.plugin import parse
from numconv.registry import default_registry

CALLS = """
import json, sys
import numpy as np
import numconv as nc

rng = np.random.default_rng(0)
def call(x_shape, w_shape, view=lambda a: a, **options):
    x, w = view(rng.standard_normal(x_shape, dtype="float32")), rng.standard_normal(w_shape, dtype="float32")
    with nc.using(backend="numba"):
        y = nc.conv(x, w, **options)
        options.pop("activation", None)
        try:
            nc.conv_backward(y, x, w, **options)
        except nc.UnsupportedProblemError:
            assert algorithm == "tile"

def read_only(a):
    a.flags.writeable = False
    return a

for algorithm in ("direct", "tile"):
    with nc.using(algorithm=algorithm):
        call((2, 8, 9), (8, 8, 3))
        call((2, 8, 9, 7), (8, 8, 3, 2), padding=1)
        call((8, 9, 7), (8, 8, 3, 2), stride=2, activation="relu")
        call((1, 16, 5, 6, 7), (16, 8, 2, 2, 3), groups=2, pad_mode="reflect", padding=1)
        call((1, 8, 3, 4, 5, 6), (8, 8, 1, 2, 2, 1))
        call((2, 9, 7, 8), (8, 8, 3, 3), layout="channels_last")
        call((2, 8, 9, 7), (8, 8, 3, 3), view=read_only, dilation=2)
        call((2, 8, 9, 7), (8, 8, 3, 3), view=lambda a: a[:, :, ::-1, ::-1], flip=True)
        call((2, 8, 9, 7), (8, 8, 3, 3), view=np.asfortranarray)

import numconv_numba.compiling.compiler as compiler
print(json.dumps({name: [s.signatures, s.hits, s.misses] for name, s in compiler.statistics().items()}))
"""


def run(script, folder, **environment):
    """The last line that a fresh process prints, as JSON."""
    environment = os.environ | {"NUMCONV_CACHE_DIR": str(folder)} | environment
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Kernel statistics of two processes that make the same calls, one after the other, and the cache's files after each."""
    folder = tmp_path_factory.mktemp("cache")
    found = []
    for _ in range(2):
        statistics = run(CALLS, folder)
        found.append((statistics, sorted(str(p) for p in folder.rglob("*") if p.is_file())))
    return found


def test_one_signature_per_kernel_and_dtype(processes):
    """Ranks, strides, layouts, read-only inputs and options all share one signature; a tile has one for each of its shapes."""
    statistics = processes[0][0]
    assert {"direct.forward", "direct_gradients.input_grad", "direct_gradients.weight_grad", "tile.kernels"} <= set(statistics)
    for name, (signatures, _, misses) in statistics.items():
        assert signatures == 1 or name.startswith(("microkernels.", "tools.")), name
        assert misses == signatures, name


def test_second_process_compiles_nothing(processes):
    (first, files), (second, files_after) = processes
    assert set(second) == set(first)
    for name, (signatures, hits, misses) in second.items():
        assert (hits, misses) == (signatures, 0), name
    assert files_after == files


def test_compilations_over_a_second_are_logged(caplog):
    """One line that names the kernel; shorter ones are silent."""
    from numconv_numba.compiling.compiler import Unit

    unit = Unit("nothing", lambda dtype: [])
    with caplog.at_level("INFO", logger="numconv"):
        unit._count(("float32",), True, 0.9)
        unit._count(("float32",), True, 1.5)
        unit._count(("float32",), False, 1.5)
        unit._count((), True, 1.5)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["compiled kernel nothing for float32 in 1.5 s", "compiled kernel nothing in 1.5 s"]


ROWS = [
    "conv forward f32 n1 c64 k24 g1 in12x13 w3x3 s1 p1 d1",
    "conv forward f32 n1 c512 k9 g1 in7x7 w3x3 s1 p1 d1",
    "conv input_grad f32 n1 c24 k64 g1 in12x13 w3x3 s1 p1 d1",
    "conv weight_grad f32 n3 c5 k6 g1 in40x41 w3x3 s1 p1 d1",
    "conv forward f64 n1 c64 k24 g1 in12x13 w3x3 s1 p1 d1",
    "conv forward f64 n1 c512 k9 g1 in7x7 w3x3 s1 p1 d1",
    "conv weight_grad f64 n3 c5 k6 g1 in40x41 w3x3 s1 p1 d1",
]


def error(problem, implementation, rng):
    """Largest |y - y64| relative to the convolution of |x| with |w|, over positive and signed data."""
    wide = problem.replace(dtype="float64", out_dtype="float64")
    oracle = next(i for i in default_registry().backend("reference").implementations() if "forward" in i.ops)
    worst = 0.0
    for signed in (True, False):
        ins = [rng.random(shape) - 0.5 * signed for shape in problem.input_shapes]
        ins = [a.astype(problem.dtype) for a in ins]
        got, want, size = (np.empty(problem.output_shapes[0], d) for d in (problem.out_dtype, "float64", "float64"))
        implementation.build(problem)([got], ins)
        oracle.build(wide)([want], [a.astype(float) for a in ins])
        oracle.build(wide)([size], [abs(a.astype(float)) for a in ins])
        worst = max(worst, float(np.max(np.abs(got - want) / size)))
    return worst


@pytest.mark.parametrize("row", ROWS)
def test_measured_error_holds(row, rng):
    """Every implementation states its error, and keeps it at the default level."""
    problem = parse(row)
    checked = 0
    for implementation in default_registry().backend("numba").implementations():
        if problem.op in implementation.ops and implementation.supports(problem):
            stated = implementation.measured_error[problem.acc_dtype]
            measured = error(problem, implementation, rng)
            assert 0 < measured <= stated <= {"float32": 1e-5, "float64": 1e-13}[problem.acc_dtype]
            checked += 1
    assert checked


def test_working_memory_does_not_grow_with_the_problem():
    """No im2col matrix and no copy of the input: a batch of large images needs what a small one does."""
    small, large = (parse(f"conv forward f32 n{n} c64 k64 g1 in{s}x{s} w3x3 s1 p1 d1") for n, s in ((16, 512), (64, 4096)))
    able = [i for i in default_registry().backend("numba").implementations() if small.op in i.ops and i.supports(large)]
    assert {"direct", "blocked", "tile", "implicit_gemm", "winograd", "fft"} <= {i.name for i in able}
    # a panel of narrow vectors has fewer channels, so that `winograd` passes over larger blocks, which it reads once for each
    most = 2**27 if host().width == 64 else 2**28
    for implementation in able:
        assert 0 < implementation.workspace(large) < 2 * implementation.workspace(small) < 2 * most


@pytest.mark.parametrize("mode", ["zeros", "reflect", "symmetric", "replicate", "circular"])
@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
def test_direct_takes_large_volumes_with_any_padding(op, mode):
    """Its tables grow with the kernel and the padding, not with the volume: it is the last resort for everything."""
    problem = parse(f"conv {op} f32 n1 c1 k1 g1 in1000x1000x1000 w3x3x3 s1 p1 d1" + f" pad={mode}" * (mode != "zeros"))
    direct = next(i for i in default_registry().backend("numba").implementations() if i.name == "direct")
    assert direct.workspace(problem) < problem.max_workspace


def test_names_are_unique_per_operation():
    """`algorithm=` names one implementation of an operation."""
    for name in ("numba", "reference"):
        seen = collections.Counter((op, i.name) for i in default_registry().backend(name).implementations() for op in i.ops)
        assert set(seen.values()) == {1}


def test_import_of_the_backend_is_light():
    """The entry point's module brings neither numba nor kernels."""
    script = "import sys, json, numconv_numba; print(json.dumps(sorted({'numba', 'llvmlite', 'scipy'} & set(sys.modules))))"
    assert run(script, ".") == []


def test_rows_longer_than_a_chunk():
    """Rows are cut in parts of 1,024 results; the seams do not show."""
    rng = np.random.default_rng(1)
    x = rng.integers(-4, 5, (1, 2, 2500)).astype("float32")
    w = rng.integers(-4, 5, (3, 2, 5)).astype("float32")
    for options in ({"padding": 2, "pad_mode": "reflect"}, {"stride": 2, "padding": 4, "dilation": 2}):
        y = nc.conv(x, w, backend="reference", **options)
        want = nc.conv_backward(y, x, w, backend="reference", **options)
        with nc.using(backend="numba", algorithm="direct"):
            np.testing.assert_array_equal(nc.conv(x, w, **options), y)
            for got, expected in zip(nc.conv_backward(y, x, w, **options), want, strict=True):
                np.testing.assert_array_equal(got, expected)
