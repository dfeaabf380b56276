"""Which position of x a tap reads for an output: tables of integers, one for each axis.

Every operation here is a sum over pairs (output position, tap). Which position of x such a pair reads is separable: it is
the tuple of what each axis reads. A **tap table** ``[R, Q]`` of an axis holds that position, or -1 for a padding zero, so the
loops that compute need to know nothing of strides, dilation, padding or flipping.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from numconv.plugin import ConvProblem, PoolProblem, WindowProblem

__all__ = ["Index", "Table", "axis_parts", "axis_reads", "meshes", "positions", "single_reads", "sources", "tap_tables"]

Table = np.ndarray[Any, np.dtype[np.intp]]
Read = tuple[Table, Table]
"""Positions of outputs along an axis, and of what each of them reads."""
Index = tuple[Any, ...]
"""One integer or array an axis; untyped, so that it may follow slices in an index."""


def sources(places: Table, size: int, pad_mode: str = "zeros") -> Table:
    """The position in x that each place of an axis reads, -1 for a padding zero: the index maps of `numpy.pad`, at any width.

    Parameters
    ----------
    places : ndarray of intp
        Counted from the first position of x, so that those of the padding before it are negative.
    size : int
        Length of the axis in x.
    pad_mode : str
        One of numconv's padding modes.

    Returns
    -------
    ndarray of intp, of the shape of `places`
    """
    if pad_mode == "zeros":
        return np.where((places >= 0) & (places < size), places, -1)
    if pad_mode == "replicate":
        return np.clip(places, 0, size - 1)
    if pad_mode == "circular":
        return places % size
    # a mirror at both ends: the position comes again after a period, and goes backwards in its second half
    between = 1 if pad_mode == "symmetric" else 0
    period = max(2 * (size - 1 + between), 1)
    forth = places % period
    return np.where(forth < size, forth, period - between - forth)


def tap_tables(problem: ConvProblem | PoolProblem | WindowProblem) -> list[Table]:
    """The tap table ``[R, Q]`` of each axis.

    Row r belongs to entry r of the kernel as it was passed: with `flip` the first entry reads the last tap. A window that
    reaches beyond the padding (`ceil_mode`) reads nothing there.
    """
    taps = problem.kernel if isinstance(problem, ConvProblem) else problem.window
    pad_mode = "zeros" if isinstance(problem, PoolProblem) else problem.pad_mode
    step = -1 if isinstance(problem, ConvProblem) and problem.flip else 1
    tables = []
    for size, r, q, stride, dilation, (low, _) in zip(
        problem.spatial, taps, problem.output, problem.stride, problem.dilation, problem.padding, strict=True
    ):
        places = dilation * np.arange(r)[::step, None] + stride * np.arange(q) - low
        tables.append(sources(places, size, pad_mode))
    return tables


def positions(shape: Sequence[int]) -> Iterator[Index]:
    """All positions of a volume in row-major order."""
    return np.ndindex(*shape)


def axis_reads(tables: Sequence[Table]) -> list[list[Read]]:
    """For each axis and tap the outputs for which it reads x, and the positions that it reads: found once for all channels.

    Outputs for which the tap lies on a padding zero are left out: such a product is no term of the sum.
    """
    return [[_opened(_reads(row), axis, len(tables)) for row in table] for axis, table in enumerate(tables)]


def axis_parts(tables: Sequence[Table]) -> list[list[list[Read]]]:
    """`axis_reads` in parts, none of which reads a position of x twice.

    Padding that copies values makes several outputs read the same position through one tap. The parts come in such an order
    that each position meets its outputs in row-major order.
    """
    return [
        [[_opened(part, axis, len(tables)) for part in _without_repeats(*_reads(row))] for row in table]
        for axis, table in enumerate(tables)
    ]


def meshes(reads: Sequence[Sequence[Read]], tap: Sequence[int]) -> tuple[Index, Index]:
    """Open meshes (as of `numpy.ix_`) of the outputs for which a tap reads x, and of the positions that it reads."""
    return _mesh([axis[r] for axis, r in zip(reads, tap, strict=True)])


def single_reads(parts: Sequence[Sequence[Sequence[Read]]], tap: Sequence[int]) -> Iterator[tuple[Index, Index]]:
    """`meshes` for each of the parts of a tap."""
    for one_each in itertools.product(*(axis[r] for axis, r in zip(parts, tap, strict=True))):
        yield _mesh(one_each)


def _mesh(reads: Sequence[Read]) -> tuple[Index, Index]:
    return tuple(outputs for outputs, _ in reads), tuple(inputs for _, inputs in reads)


def _reads(row: Table) -> Read:
    outputs = np.flatnonzero(row >= 0)
    return outputs, row[outputs]


def _opened(read: Read, axis: int, ndim: int) -> Read:
    """With as many dimensions as there are axes, as in an open mesh."""
    shape = [-1 if each == axis else 1 for each in range(ndim)]
    return read[0].reshape(shape), read[1].reshape(shape)


def _without_repeats(outputs: Table, inputs: Table) -> list[Read]:
    """Outputs and the inputs that they read, in parts: the j-th holds the j-th occurrence of each input."""
    parts = []
    while inputs.size:
        first = np.sort(np.unique(inputs, return_index=True)[1])
        parts.append((outputs[first], inputs[first]))
        outputs, inputs = np.delete(outputs, first), np.delete(inputs, first)
    return parts
