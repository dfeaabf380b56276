"""Indices into the volume of a channel, checked in parallel before anything is written."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from numconv.plugin import check_indices
from numconv_numba.compiling.compiler import Address, helper, kernel
from numconv_numba.elements import INT64
from numconv_numba.scalar import load, store, wide_vectors
from numconv_numba.threads import parallel_for, run

__all__ = ["check_places"]

CHECKED = 1 << 14
"""Indices that a work item checks."""


@helper
def some_outside(places, count, volume):
    """Whether one of some places lies outside 0..volume."""
    wide_vectors()
    found = np.int64(0)
    for q in range(count):
        place = load(places + q * 8, INT64)
        found |= (place < 0) | (place >= volume)
    return found


@helper
def _outside(begin, end, args):
    places, count, volume, flag = args
    for item in range(begin, end):
        if some_outside(places + item * (CHECKED * 8), min(CHECKED, count - item * CHECKED), volume):
            store(flag, np.int64(1), INT64)


@kernel
def outside(region: int, workers: int, items: int, places: Address, count: int, volume: int, flag: Address) -> None:
    """Set the flag if one of the places lies outside 0..volume: an item is a part of them."""
    parallel_for(region, workers, items, _outside, (places, count, volume, flag))


@functools.cache
def _compiled() -> Callable[..., None]:
    """The kernel: to ask for it takes as long as to check some hundreds."""
    return outside.specialise()


def _fills_memory(array: np.ndarray[Any, Any]) -> bool:
    """Whether an array fills its memory, in whatever order of its axes."""
    if array.flags.c_contiguous:
        return True
    strides = array.strides
    order = sorted(range(array.ndim), key=strides.__getitem__, reverse=True)  # quicker for so few than NumPy's
    return array.transpose(order).flags.c_contiguous


def check_places(op: str, indices: np.ndarray[Any, Any], volume: int) -> None:
    """Raise ProblemError unless every index lies in 0..volume; in parallel where they fill their memory."""
    if _fills_memory(indices):
        flag = np.zeros(1, np.int64)
        run(_compiled(), -(-indices.size // CHECKED), indices.size, indices, indices.size, volume, flag)
        if not flag.item(0):
            return
    check_indices(op, indices, volume)
