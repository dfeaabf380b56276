"""Vectors at the edges of rows whose padding is not of zeros: read from the row itself, so that nothing is copied.

A vector of neighbouring places mirrors a piece of the row, or repeats its end, so its lanes come from one vector of the row; of a
row that goes round they come from two. The gradient of a row is the other way round: what lies beside it is added to lanes of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .emit import Emitter, flag_table, lanes_of, places_table

__all__ = ["EDGES", "FOLDED", "TURNED", "WRAPPED", "ZEROS", "load_edge", "table_of"]

ZEROS, TURNED, WRAPPED, FOLDED = range(4)
EDGES = {"zeros": ZEROS, "reflect": TURNED, "symmetric": TURNED, "replicate": TURNED, "circular": WRAPPED}
"""How the vectors at the edges of a row are made, by the mode of its padding."""


def load_edge(emit: Emitter, builder: Any, kind: int, line: Any, table: Any, offsets: Any, entry: Any) -> Any:
    """The vector of an entry of the table and the offsets of `table_of`, of a row of x."""
    if kind == TURNED:
        return emit.turned(emit.load(emit.at(line, emit.offset(offsets, entry))), table, entry)
    first = builder.shl(entry, entry.type(1))
    numbers = [first, builder.add(first, entry.type(1))]
    return emit.either(*(emit.load_masked(emit.at(line, emit.offset(offsets, i)), emit.flags(table, i)) for i in numbers))


def table_of(places: Any, row: Any, before: int, size: int, kind: int, dtype: str) -> tuple[Any, Any]:
    """What `load_edge` needs to know of vectors of places.

    Parameters
    ----------
    places : ndarray
        Of neighbours along the last axis, with the lanes of a vector; those beyond the padding are not needed.
    row : ndarray
        For each place of the padded row the place in x, from `before` places before x on.
    before, size : int
        Places of padding before x, and of x: at least a vector of them.
    kind : int
    dtype : str

    Returns
    -------
    table, offsets : ndarray
        As bytes, and offsets in bytes from place 0.
    """
    lanes, item = lanes_of(dtype), np.dtype(dtype).itemsize
    places = places.reshape(-1, lanes)
    needed = (places >= -before) & (places < row.size - before)
    sources = row[np.clip(places + before, 0, row.size - 1)]
    if kind == TURNED:
        first = np.clip(sources.min(axis=1), 0, size - lanes)
        return places_table(sources - first[:, None], dtype).view(np.uint8), first * item
    turns = (places - sources) // size
    first, last = (np.where(needed, turns, other).T for other in (turns.max() + 1, turns.min() - 1))
    first, last = first.min(axis=0), last.max(axis=0)
    there = [needed & (turns == first[:, None]), needed & (turns == last[:, None]) & (first != last)[:, None]]
    starts = [np.where(mask.any(axis=1), places[:, 0] - size * turn, 0) for mask, turn in zip(there, (first, last), strict=True)]
    return flag_table(np.stack(there, axis=1), dtype).view(np.uint8), np.stack(starts, axis=1).ravel() * item
