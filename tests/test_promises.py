"""What numconv promises of every call, through the public functions and on every backend.

Promise 2: NaN and Inf stay local. 3: the same bits. 4: inputs are never changed. 7: safe in many threads and after a fork.
"""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest

import numconv as nc
from numconv.plugin import LEVELS, np_dtype, parse
from numconv.registry import default_registry
from numconv.testing import CONV_PROBLEMS, candidates, inputs


class Call(NamedTuple):
    """A public function on arrays of these shapes; the second array holds indices below `positions`, if that is given."""

    run: Callable
    shapes: tuple
    positions: int = 0


X, W = (2, 3, 11, 9), (5, 3, 3, 2)
CONV = {"stride": (2, 1), "padding": ((1, 2), (1, 0)), "dilation": (1, 2)}
POOL = {"stride": 2, "padding": 1, "ceil_mode": True}
Y, POOLED = nc.output_shape("conv", X, W, **CONV), nc.output_shape("max_pool", X, 3, **POOL)
COLUMNS = nc.output_shape("unfold", X, (3, 2), **CONV)
CALLS = {
    "conv": Call(lambda x, w, b, **o: nc.conv(x, w, b, **CONV, **o), (X, W, W[:1])),
    "conv circular": Call(lambda x, w, **o: nc.conv(x, w, padding=2, pad_mode="circular", **o), (X, W)),
    "conv pointwise": Call(nc.conv, (X, (5, 3, 1, 1))),
    "conv depthwise": Call(lambda x, w, **o: nc.conv(x, w, padding="same", groups=3, **o), (X, (3, 1, 3, 3))),
    "conv 1-D": Call(lambda x, w, **o: nc.conv(x, w, padding="causal", **o), ((2, 2, 70), (3, 2, 31))),
    "conv 3-D": Call(lambda x, w, **o: nc.conv(x, w, padding=1, **o), ((1, 2, 5, 6, 7), (3, 2, 3, 3, 3))),
    "conv_input_grad": Call(lambda g, w, **o: nc.conv_input_grad(g, w, (len(g), *X[1:]), **CONV, **o), (Y, W)),
    "conv_weight_grad": Call(lambda g, x, **o: nc.conv_weight_grad(g, x, W, **CONV, **o), (Y, X)),
    "conv_transpose": Call(lambda x, w, **o: nc.conv_transpose(x, w, stride=2, **o), ((2, 5, 4, 3), (5, 3, 3, 2))),
    "max_pool": Call(lambda x, **o: nc.max_pool(x, 3, **POOL, **o), (X,)),
    "avg_pool": Call(lambda x, **o: nc.avg_pool(x, 3, **POOL, **o), (X,)),
    "lp_pool": Call(lambda x, **o: nc.lp_pool(x, 3, **POOL, **o), (X,)),
    "max_pool_backward": Call(lambda g, x, **o: nc.max_pool_backward(g, x, 3, **POOL, **o), (POOLED, X)),
    "avg_pool_backward": Call(lambda g, **o: nc.avg_pool_backward(g, (len(g), *X[1:]), 3, **POOL, **o), (POOLED,)),
    "lp_pool_backward": Call(lambda g, x, **o: nc.lp_pool_backward(g, x, 3, **POOL, **o), (POOLED, X)),
    "max_unpool": Call(lambda y, i, **o: nc.max_unpool(y, i, (len(y), *X[1:]), **o), (POOLED, POOLED), 99),
    "max_unpool_backward": Call(nc.max_unpool_backward, (X, POOLED), 99),
    "pad": Call(lambda x, **o: nc.pad(x, ((3, 0), (1, 12)), "reflect", **o), (X,)),
    "pad_backward": Call(lambda g, **o: nc.pad_backward(g, ((3, 0), (1, 2)), "symmetric", **o), (X,)),
    "unfold": Call(lambda x, **o: nc.unfold(x, (3, 2), **CONV, **o), (X,)),
    "fold": Call(lambda c, **o: nc.fold(c, (len(c), *X[1:]), (3, 2), **CONV, **o), (COLUMNS,)),
}
# Functions that work on each image of a batch alone: at accuracy "strict" the others of the batch change no bit.
PER_IMAGE = [name for name in CALLS if name != "conv_weight_grad"]


def arrays_of(call, rng, dtype="float32"):
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in call.shapes]
    if call.positions:
        arrays[1] = rng.integers(0, call.positions, call.shapes[1])
    return arrays


def positive(arrays):
    return [np.abs(array) for array in arrays]


def classes(values):
    """NaN, +Inf, -Inf or finite, as numbers that compare."""
    return np.where(np.isnan(values), 2, np.where(np.isinf(values), np.sign(values), 0))


# --- promise 2 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", CALLS)
def test_nonfinite_values_reach_exactly_the_outputs_that_see_them(backend, rng, name, level):
    call = CALLS[name]
    # Positive factors, so that no product of the value is lost and the indicator of it cannot cancel.
    first, *others = positive(arrays_of(call, rng))
    places = rng.choice(first.size, 3, replace=False)
    first.flat[places] = [np.nan, np.inf, np.inf]
    indicator = np.zeros_like(first)
    indicator.flat[places] = 1
    y = call.run(first, *others, backend=backend, accuracy=level)
    if len(others) > 1:
        others[1] = np.zeros_like(others[1])  # the bias sees nothing
    seen = call.run(indicator, *others, backend="reference") > 0
    assert seen.any()
    assert not seen.all()
    np.testing.assert_array_equal(~np.isfinite(y), seen)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", CALLS)
def test_nonfinite_values_keep_their_class_and_sign(backend, rng, name, level):
    call = CALLS[name]
    arrays = arrays_of(call, rng)
    arrays[0].flat[rng.choice(arrays[0].size, 3, replace=False)] = [np.nan, np.inf, -np.inf]
    y, expected = (call.run(*arrays, backend=each, accuracy=level) for each in (backend, "reference"))
    np.testing.assert_array_equal(classes(y), classes(expected))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_padding_zeros_are_no_terms(backend, value, level):
    x, w = np.ones((1, 1, 6, 7), np.float32), np.ones((1, 1, 3, 3), np.float32)
    w[0, 0, 0, 0] = value
    y = nc.conv(x, w, padding=1, backend=backend, accuracy=level)
    assert np.isfinite(y[0, 0, 0]).all()
    assert np.isfinite(y[0, 0, :, 0]).all()
    np.testing.assert_array_equal(y[0, 0, 1:, 1:], value)


# --- promise 3 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", CALLS)
def test_same_bits_for_any_number_of_threads_and_again(backend, rng, name, level):
    call = CALLS[name]
    arrays = arrays_of(call, rng)
    results = set()
    for threads in (1, 2, 1, 2):
        with nc.using(threads=threads):
            results.add(call.run(*arrays, backend=backend, accuracy=level).tobytes())
    assert len(results) == 1


BIG_X, BIG_W, BIG_Y = (2, 8, 48, 50), (16, 8, 3, 3), (2, 16, 48, 50)
LARGE = {
    "conv": Call(lambda x, w, **o: nc.conv(x, w, padding=1, **o), (BIG_X, BIG_W)),
    "conv_input_grad": Call(lambda g, w, **o: nc.conv_input_grad(g, w, BIG_X, padding=1, **o), (BIG_Y, BIG_W)),
    "conv_weight_grad": Call(lambda g, x, **o: nc.conv_weight_grad(g, x, BIG_W, padding=1, **o), (BIG_Y, BIG_X)),
    "conv 1-D": Call(nc.conv, ((1, 2, 20_000), (2, 2, 101))),
    "max_pool": Call(lambda x, **o: nc.max_pool(x, 3, **o), ((4, 16, 60, 60),)),
    "avg_pool": Call(lambda x, **o: nc.avg_pool(x, 3, **o), ((4, 16, 60, 60),)),
    "pad_backward": Call(lambda g, **o: nc.pad_backward(g, 9, "reflect", **o), ((4, 16, 60, 60),)),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", LARGE)
def test_same_bits_where_the_work_is_split(other_backend, rng, name, level):
    call = LARGE[name]
    arrays = arrays_of(call, rng)
    results = set()
    for threads in (1, 2, os.cpu_count() or 1):
        with nc.using(threads=threads):
            results.add(call.run(*arrays, backend=other_backend, accuracy=level).tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("name", PER_IMAGE)
def test_strict_gives_the_same_bits_for_any_batch(backend, rng, name):
    call = CALLS[name]
    arrays = arrays_of(call, rng)
    images = len(arrays[0])  # no weights or bias are as long
    alone = call.run(*arrays, backend=backend, accuracy="strict")
    three = [np.concatenate([array] * 3) if len(array) == images else array for array in arrays]
    assert call.run(*three, backend=backend, accuracy="strict").tobytes() == np.concatenate([alone] * 3).tobytes()


CHAINS = [text for text in CONV_PROBLEMS if "act=silu" not in text and "act=gelu" not in text]


def bits(implementation, problem, arrays):
    outs = [np.empty(shape, np_dtype(problem.out_dtype)) for shape in problem.output_shapes]
    implementation.build(problem)(outs, arrays)
    return [out.tobytes() for out in outs]


@pytest.mark.parametrize("text", CHAINS)
def test_strict_is_the_chain_of_the_reference(other_backend, rng, text):
    problem = parse(text).replace(accuracy="strict")
    rows = [row for row in candidates(problem, other_backend) if row.verdict]
    if not rows:
        pytest.skip("; ".join(row.verdict.reason for row in candidates(problem, other_backend)))
    arrays = inputs(problem, rng, integer=False)
    reference = next(each for each in default_registry().backend("reference").implementations() if problem.op in each.ops)
    expected = bits(reference, problem, arrays)
    for row in rows:
        for position, (got, chain) in enumerate(zip(bits(row.implementation, problem, arrays), expected, strict=True)):
            assert got == chain, f"{problem}: output {position} of {row.algorithm} differs from the reference's chain"


# --- promise 4 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", CALLS)
def test_inputs_are_never_changed(backend, rng, name, level):
    call = CALLS[name]
    arrays = arrays_of(call, rng)
    before = [array.tobytes() for array in arrays]
    call.run(*arrays, backend=backend, accuracy=level)
    assert [array.tobytes() for array in arrays] == before


@pytest.mark.parametrize("name", CALLS)
def test_read_only_and_byte_swapped_inputs(backend, rng, name):
    call = CALLS[name]
    arrays = arrays_of(call, rng)
    expected = call.run(*arrays, backend=backend)
    swapped = [array.astype(array.dtype.newbyteorder()) for array in arrays]
    for array in (*arrays, *swapped):
        array.flags.writeable = False
    for given in (arrays, swapped):
        y = call.run(*given, backend=backend)
        assert y.dtype.isnative
        assert y.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", CALLS)
def test_inputs_whose_images_share_memory(backend, rng, name):
    call = CALLS[name]
    arrays = arrays_of(call, rng)
    shared = [np.broadcast_to(array[:1], array.shape) for array in arrays]
    expected = call.run(*(array.copy() for array in shared), backend=backend)
    assert call.run(*shared, backend=backend).tobytes() == expected.tobytes()


# --- promise 7 -----------------------------------------------------------------------------------------------------------------


def test_many_threads_at_once(backend, rng):
    jobs = []
    for call in CALLS.values():
        try:
            arrays = arrays_of(call, rng)
            jobs.append((call, arrays, call.run(*arrays, backend=backend).tobytes()))
        except nc.UnsupportedProblemError:
            continue
    if not jobs:
        pytest.skip(f"{backend} declines every one of these calls")
    jobs *= 4
    random.Random(1).shuffle(jobs)

    def work(job):
        call, arrays, expected = job
        return call.run(*arrays, backend=backend).tobytes() == expected

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, jobs))


FORK = """
import os, sys
import numpy as np, numconv as nc

x, w = np.ones((1, 8, 40, 40), np.float32), np.ones((16, 8, 3, 3), np.float32)
def work():
    return float(nc.conv(x, w, backend=sys.argv[1]).sum())
expected = work()
child = os.fork()
if child == 0:
    os._exit(0 if work() == expected else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or (0 if work() == expected else 4))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_computes(backend):
    verdicts = [row.verdict for row in candidates(parse("conv forward f32 n1 c8 k16 g1 in40x40 w3x3 s1 p0 d1"), backend)]
    if not any(verdicts):
        pytest.skip("; ".join(verdict.reason for verdict in verdicts))
    done = subprocess.run([sys.executable, "-c", FORK, backend], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
