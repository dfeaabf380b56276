"""Seconds of a call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

__all__ = ["LONG", "Timer"]

LONG = 1.0
"""Seconds: a call that takes longer is timed once."""


class Timer:
    """Seconds of single calls, gathered in bursts."""

    def __init__(self, call: Callable[[], Any]):
        self._call = call
        self._times: list[float] = []

    def burst(self, seconds: float) -> None:
        """Time calls for so many seconds, one at least; the first, which may compile or find cold caches, does not count."""
        self._once()
        end = time.perf_counter() + seconds
        while True:
            self._times.append(self._once())
            if time.perf_counter() >= end:
                return

    @property
    def calls(self) -> int:
        """How many were timed."""
        return len(self._times)

    @property
    def median(self) -> float:
        """Seconds of the one in the middle."""
        return statistics.median(self._times)

    @property
    def best(self) -> float:
        """The least seconds."""
        return min(self._times)

    def _once(self) -> float:
        start = time.perf_counter()
        self._call()
        return time.perf_counter() - start
