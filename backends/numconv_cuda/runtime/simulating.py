"""Repairs of numba-cuda's simulator, which runs each thread of a block as one of Python's."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba.cuda.simulator.kernelapi import FakeCUDAShared

__all__ = ["simulation"]

_running, _allocating = threading.Lock(), threading.Lock()
INTERVAL = 1e-5
"""Seconds after which another of Python's threads may go on: the simulator waits for threads by asking again and again."""


def _shared_array(self: Any, shape: Any, dtype: Any, alignment: int | None = None) -> np.ndarray[Any, Any]:
    """A block's shared memory, known by the line that asks for it.

    The simulator's own function gives two threads that come first at the same time an array each.
    """
    frame = sys._getframe(1)
    line = frame.f_code.co_filename, frame.f_lineno
    with _allocating:
        if line not in self._allocations:
            self._allocations[line] = np.empty(shape, getattr(np, str(dtype)))
        found: np.ndarray[Any, Any] = self._allocations[line]
        return found


setattr(FakeCUDAShared, "array", _shared_array)  # noqa: B010 - mypy would have no other assignment


@contextlib.contextmanager
def simulation() -> Iterator[None]:
    """One kernel at a time, whose threads take turns quickly."""
    with _running:
        before = sys.getswitchinterval()
        sys.setswitchinterval(INTERVAL)
        try:
            yield
        finally:
            sys.setswitchinterval(before)
