"""Indices into the volume of a channel, checked in parallel before anything is written."""

from __future__ import annotations

from typing import Any

import numpy as np

from numconv.plugin import check_indices

from .compiler import Address, helper, kernel
from .elements import INT64
from .scalar import load, store
from .threads import parallel_for, run

__all__ = ["check_places"]

CHECKED = 1 << 16
"""Indices that a work item checks."""


@helper
def _outside(begin, end, args):
    places, count, volume, flags = args
    for item in range(begin, end):
        bad = np.int64(0)
        start = places + item * (CHECKED * 8)
        for q in range(min(CHECKED, count - item * CHECKED)):
            place = load(start + q * 8, INT64)
            bad |= (place < 0) | (place >= volume)
        store(flags + item * 8, bad, INT64)


@kernel
def outside(region: int, workers: int, items: int, places: Address, count: int, volume: int, flags: Address) -> None:
    """Whether each part of the places has one outside 0..volume."""
    parallel_for(region, workers, items, _outside, (places, count, volume, flags))


def check_places(op: str, indices: np.ndarray[Any, Any], volume: int) -> None:
    """Raise ProblemError unless every index lies in 0..volume; in parallel where they fill their memory."""
    if indices.transpose(np.argsort(indices.strides)[::-1]).flags.c_contiguous:
        flags = np.zeros(-(-indices.size // CHECKED), np.int64)
        run(outside.specialise(), flags.size, 24 * indices.size, indices, indices.size, volume, flags)
        if not flags.any():
            return
    check_indices(op, indices, volume)
