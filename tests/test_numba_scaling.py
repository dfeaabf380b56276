"""Many threads, on any machine: a region of the test takes the place of the package's, and has a thread for each worker."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from numconv_numba import threads
from numconv_numba.compiling.compiler import Address, helper, kernel
from numconv_numba.dense.blocked import parts_for, shares_of
from numconv_numba.microkernels.emit import host
from numconv_numba.threads import parallel_items, taken_items

import numconv as nc
from numconv.plugin import parse
from numconv.registry import default_registry

INT64, POINTER = ctypes.c_int64, ctypes.c_void_p
BODY = ctypes.CFUNCTYPE(None, POINTER, POINTER, POINTER, POINTER)
LOOP = ctypes.CFUNCTYPE(None, *[POINTER] * 5, *[INT64] * 3)
ASKED, SET = ctypes.CFUNCTYPE(ctypes.c_int), ctypes.CFUNCTYPE(None, ctypes.c_int)


@pytest.fixture
def regions(monkeypatch):
    """(items, workers) of every parallel loop: the last worker begins first, and all share the processors that there are."""
    found = []

    def work(body, worker, steps, data):
        first, one = INT64(worker * INT64.from_address(steps).value), INT64(1)
        BODY(body)(ctypes.addressof(first), ctypes.addressof(one), steps, data)

    def loop(body, firsts, counts, steps, data, dimensions, arrays, team):
        workers, frame = INT64.from_address(counts).value, (INT64 * 2).from_address(data)
        assert workers == frame[0] <= team
        found.append((frame[1], workers))
        assert INT64.from_address(firsts).value == 0
        others = [threading.Thread(target=work, args=(body, worker, steps, data)) for worker in reversed(range(workers))]
        for other in others:
            other.start()
        for other in others:
            other.join()

    entries = LOOP(loop), ASKED(lambda: threads.MAX_THREADS), SET(lambda count: None)
    table = np.array([ctypes.cast(each, POINTER).value for each in entries])
    monkeypatch.setattr(threads, "_launched", lambda: threads.MAX_THREADS)
    monkeypatch.setattr(threads, "_entries", lambda: table)
    threads._region_of.cache_clear()  # it may have the package's region for as many workers
    yield found
    threads._region_of.cache_clear()
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
    ("blocked", "conv forward f32 n1 c30 k1024 g1 in14x13 w3x3 s2 p1 d1"),
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


@helper
def _first_waits(worker, queue, args):
    who, items, patience = args
    for item in taken_items(queue, worker):
        turns, others = 0, 1 if item == 0 else items
        while others < items and turns < patience:
            turns += 1
            others += threads._seen(who + 8 * others) > 0
        threads._show(who + 8 * item, worker + 1 if turns < patience else -1)


@helper
def _in_order(worker, queue, args):
    (place,) = args
    for item in taken_items(queue, worker):
        threads._show(place, item + 1)
        place = place + 8


@kernel
def in_order(region, workers, items, order: Address):
    """The items, counted from 1, as they are done."""
    parallel_items(region, workers, items, _in_order, (order,))


@kernel
def first_waits(region, workers, items, who: Address, patience):
    """The worker of each item, counted from 1; item 0 waits until all others are done, or its patience is."""
    parallel_items(region, workers, items, _first_waits, (who, items, patience))


@pytest.mark.parametrize(("count", "items"), [(2, 2), (2, 41), (3, 40), (7, 8), (16, 1000)])
def test_workers_that_are_done_help_others(regions, count, items):
    """Each item is done once, and those behind a slow one by others."""
    who = np.zeros(items, np.int64)
    with nc.using(threads=count):
        threads.run(first_waits.specialise(), items, 1e9, who, 10**11)
    assert regions == [(items, count)]
    assert who.min() > 0
    assert who.max() <= count


@pytest.mark.parametrize("items", [0, 1, 2, 5, 64])
def test_one_worker_takes_items_in_their_order(items):
    order = np.zeros(items + 1, np.int64)
    with nc.using(threads=1):
        threads.run(in_order.specialise(), items, 1e9, order)
    np.testing.assert_array_equal(order, [*range(1, items + 1), 0])


def test_a_single_block_has_something_to_take_over(regions):
    """Its items share what a worker has packed; those of several blocks are as many as the threads need."""
    for count in (2, 3, 5, 16):
        with nc.using(threads=count):
            assert shares_of(1, 100, 1e9) == 16 // count * count
            assert shares_of(1, 100, 0) == shares_of(1, 1, 1e9) == 1
            for blocks in (2, 4, 9):
                assert shares_of(blocks, 100, 1e9) == parts_for(blocks, 100, 1e9)
    with nc.using(threads=1):
        assert shares_of(1, 100, 1e9) == 1


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
