"""Seconds of a call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Sample", "sample"]

LONG = 1.0
"""Seconds: a call that takes longer is timed once."""


class Sample(NamedTuple):
    """Seconds a call: the median and the least of so many."""

    median: float
    best: float
    calls: int


def sample(call: Callable[[], Any], seconds: float) -> Sample:
    """Time single calls for so many seconds, three at least; the first call, which may compile, does not count."""
    call()
    times = [_once(call)]
    if times[0] > LONG:
        return Sample(times[0], times[0], 1)
    times.clear()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        times.append(_once(call))
    return Sample(statistics.median(times), min(times), len(times))


def _once(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
