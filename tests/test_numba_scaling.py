"""Many threads, on any machine: a region of the test takes the place of the package's, and runs the workers one after the other."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest
from numconv_numba import threads
from numconv_numba.microkernels.emit import host

import numconv as nc
from numconv.plugin import parse
from numconv.registry import default_registry

INT64, POINTER = ctypes.c_int64, ctypes.c_void_p
BODY = ctypes.CFUNCTYPE(None, POINTER, POINTER, POINTER, POINTER)
LOOP = ctypes.CFUNCTYPE(None, *[POINTER] * 5, *[INT64] * 3)
ASKED, SET = ctypes.CFUNCTYPE(ctypes.c_int), ctypes.CFUNCTYPE(None, ctypes.c_int)


@pytest.fixture
def regions(monkeypatch):
    """(items, workers) of every parallel loop: the last worker's part is done first."""
    found = []

    def loop(body, firsts, counts, steps, data, dimensions, arrays, team):
        workers, frame = INT64.from_address(counts).value, (INT64 * 2).from_address(data)
        assert workers == frame[0] <= team
        found.append((frame[1], workers))
        for worker in reversed(range(workers)):
            first = INT64(INT64.from_address(firsts).value + worker * INT64.from_address(steps).value)
            BODY(body)(ctypes.addressof(first), ctypes.addressof(INT64(1)), steps, data)

    entries = LOOP(loop), ASKED(lambda: threads.MAX_THREADS), SET(lambda count: None)
    table = np.array([ctypes.cast(each, POINTER).value for each in entries])
    monkeypatch.setattr(threads, "_launched", lambda: threads.MAX_THREADS)
    monkeypatch.setattr(threads, "_entries", lambda: table)
    yield found
    del entries


PROBLEMS = [
    ("winograd", "conv forward f32 n1 c48 k48 g1 in28x28 w3x3 s1 p1 d1"),
    ("winograd", "conv forward f32 n1 c100 k72 g1 in14x13 w3x3 s1 p1 d1"),
    ("winograd", "conv forward f32 n1 c20 k24 g1 in70x66 w5x5 s1 p2 d1"),
    ("winograd", "conv forward f32 n2 c32 k48 g2 in17x19 w3x3 s1 p1 d1"),
    ("winograd", "conv forward f32 n1 c16 k24 g1 in9x14x13 w3x3x3 s1 p1 d1"),
    ("winograd", "conv weight_grad f32 n4 c4 k48 g1 in56x58 w3x3 s1 p1 d1"),
    ("winograd", "conv weight_grad f32 n1 c16 k20 g2 in60x60 w5x5 s1 p2 d1"),
    ("blocked", "conv forward f32 n1 c160 k64 g1 in56x56 w1x1 s1 p0 d1"),
    ("blocked", "conv forward f32 n1 c32 k80 g1 in57x56 w3x3 s2 p1 d1"),
    pytest.param(
        "fused_winograd",
        "conv forward f32 n1 c70 k400 g1 in7x7 w3x3 s1 p1 d1",
        marks=pytest.mark.skipif(host().registers < 32, reason="its sums need 32 vector registers"),
    ),
    ("inner_product", "conv forward f32 n1 c70 k400 g1 in4x4 w3x3 s1 p1 d1"),
    ("tile", "conv forward f32 n1 c24 k3 g1 in190x191 w3x3 s1 p1 d1"),
    ("planewise", "conv weight_grad f32 n1 c1 k1 g1 in33x32x31 w3x3x3 s1 p1 d1"),
    ("depthwise", "conv weight_grad f32 n1 c48 k48 g48 in28x28 w13x13 s1 p6 d1"),
]


def computed(algorithm, problem, arrays):
    """The results by one implementation, from its own executor."""
    found = default_registry().candidates(problem, "cpu", "numba", None)
    (each,) = [one.implementation for one in found if one.implementation.name == algorithm and one.verdict.ok]
    executor, outs = each.build(problem), [np.full(shape, np.nan, problem.out_dtype) for shape in problem.output_shapes]
    executor(outs, arrays)
    return [out.tobytes() for out in outs]


@pytest.mark.parametrize(("algorithm", "text"), PROBLEMS)
def test_many_threads_share_evenly_and_change_no_bit(algorithm, text, regions, rng):
    """No thread of sixteen has more than 1.6 times its share of the loop with the most items; any number gives the same."""
    problem = parse(text)
    arrays = [rng.standard_normal(shape, dtype="float32") for shape in problem.input_shapes]
    with nc.using(threads=1):
        expected = computed(algorithm, problem, arrays)
    assert not regions
    for count in (2, 5, 16, 64):
        regions.clear()
        with nc.using(threads=count):
            assert computed(algorithm, problem, arrays) == expected, count
        if count == 16:
            items, workers = max(regions)
            assert workers == 16
            assert -(-items // 16) * 16 <= 1.6 * items


def test_bound_weights_are_shared_too(regions, rng):
    x, w = (rng.standard_normal(shape, dtype="float32") for shape in ((1, 64, 14, 14), (64, 64, 3, 3)))
    with nc.using(threads=16, backend="numba", algorithm="winograd"):
        plan = nc.plan("conv", x.shape, w.shape, "float32", padding=1)
        bound = plan.bind(w)
        np.testing.assert_array_equal(bound(x), plan(x, w))
    assert all(workers > 8 for _, workers in regions)


def test_memory_of_many_workers_is_kept_once(regions):
    """Not for each Python thread, which keeps that of one."""
    problem = parse("conv forward f32 n2 c64 k64 g1 in56x56 w3x3 s1 p1 d1")
    arrays = [np.ones(shape, "float32") for shape in problem.input_shapes]
    with nc.using(threads=32):
        computed("blocked", problem, arrays)
        kept = threads._shared.take(1)
        computed("blocked", problem, arrays)
    assert kept is threads._shared.take(1)
    assert kept.size > threads._kept.take(1).size


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_a_small_loop_ends_no_thread():
    """GCC's OpenMP would end those that it leaves out, and start others for the next large loop."""
    code = """
import os
import numpy as np
import numconv as nc

def threads(size):
    with nc.using(threads=4, algorithm="blocked"):
        nc.conv(np.ones((1, 32, size, size), "f4"), np.ones((128, 32, 3, 3), "f4"), padding=1)
    return set(os.listdir("/proc/self/task"))

assert threads(40) == threads(6) == threads(40)
"""
    environment = {**os.environ, "NUMBA_NUM_THREADS": "4"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=100)
