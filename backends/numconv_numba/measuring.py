"""What this machine can do: its rate of multiply-adds and its bandwidth, for reports only.

No choice and no result depends on these figures: they differ from run to run.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable, Mapping

import numpy as np

from numconv.plugin import Rates

from .microkernels.emit import host, lanes_of
from .microkernels.peak import CHAINS, copy_lines, multiply_add
from .scalar import PAIRS
from .threads import SERIAL_WORK, run, threads

__all__ = ["copy_rate", "measurements", "multiply_add_rate", "rates"]

TURNS = 200_000
COPIED = 64 * 2**20
"""Bytes: more than the caches of a core, as the arrays of large calls are."""
LEAST = 2**20
"""Bytes: less would measure the entry into the parallel region."""


def _best(call: Callable[[], None]) -> float:
    call()
    return min(timeit.repeat(call, number=1, repeat=7))


def multiply_add_rate(dtype: str, count: int) -> float:
    """FLOP/s of `count` threads at the peak; a multiply-add is two. `dtype` may be `PAIRS`, of which a product is two of them."""
    stored, each = ("float32", 2) if dtype == PAIRS else (dtype, 1)
    lanes, step = lanes_of(stored), max(host().width, 64)
    data = np.full(count * step // np.dtype(stored).itemsize, 0.5, stored)
    compiled = multiply_add.specialise(lanes, dtype)
    work = 2.0 * SERIAL_WORK if count > 1 else 0.0
    best = _best(lambda: run(compiled, count, work, data, step, TURNS))
    return count * CHAINS * lanes * 2 * each * TURNS / best


def copy_rate(count: int, copied: int = COPIED) -> float:
    """Bytes per second that `count` threads read and write, each as many, in a copy of `copied` bytes."""
    lanes, step = lanes_of("float32"), copied // count
    x, y = np.ones(copied, np.uint8), np.ones(copied, np.uint8)
    compiled = copy_lines.specialise(lanes, "float32")
    work = 2.0 * SERIAL_WORK if count > 1 else 0.0
    return 2 * copied / _best(lambda: run(compiled, count, work, x, y, step, step // host().width))


def rates(dtype: str, size: int) -> Rates:
    """Rates of all threads that a call may use, the bandwidth in copies that touch `size` bytes within [`LEAST`, 2 `COPIED`]."""
    copied = min(max(LEAST, 1 << (size // 2).bit_length()), COPIED)
    return Rates(multiply_add_rate(dtype, threads()), copy_rate(threads(), copied))


def measurements() -> Mapping[str, str]:
    """Rates of one thread and of all that a call may use."""
    counts = sorted({1, threads()})
    rows = {}
    for dtype in ("float32", "float64", *((PAIRS,) if host().pairs else ())):
        rates = (f"{multiply_add_rate(dtype, count) / 1e9:.0f} GFLOP/s on {_threads(count)}" for count in counts)
        name = "bfloat16 multiply-adds in pairs" if dtype == PAIRS else f"{dtype} multiply-adds"
        rows[name] = ", ".join(rates)
    rates = (f"{copy_rate(count) / 1e9:.1f} GB/s on {_threads(count)}" for count in counts)
    rows["copy, read and written"] = ", ".join(rates)
    return rows


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
