"""Strips: the small rectangles of neighbouring results that a thread computes from registers.

What a strip reads overlaps: each row of the source that any of its results needs is loaded once, and is multiplied by every tap
that meets it there. All of that is known when a kernel is compiled, so that it is written out without loops, divisions or
tests of the taps. An `Axis` tells which taps meet which sources; the same strips serve a convolution and a strided gradient of x,
whose taps come in phases. What is done with a strip is in `strip_terms`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["RUN_BYTES", "Axis", "Divisor", "Pooled", "Run", "Strip", "forward_axis", "gradient_axis", "loads",
           "longest_run"]  # fmt: skip

RUN_BYTES = 16
"""Of a wide load."""


class Run(NamedTuple):
    """Neighbours of a row that are loaded or stored at once: `length` of them, from the column `lead` on or any whole runs away."""

    length: int = 1
    lead: int = 0


def longest_run(address: int, size: int, count: int, steps: Sequence[int]) -> int:
    """The elements of the widest loads of rows, which begin at an address and lie so many elements apart, `steps` among them.

    Parameters
    ----------
    address, size : int
        Of the first element, and its bytes.
    count : int
        Of which a run must be a part.
    steps : sequence of int
    """
    runs = [run for run in (4, 2) if run * size <= RUN_BYTES and address % (run * size) == 0]
    return next((run for run in runs if all(step % run == 0 for step in (count, *steps))), 1)


class Divisor(NamedTuple):
    """A number by which indices below 2^31 are divided with one multiplication (H. Warren, "Hacker's Delight", chapter 10)."""

    number: np.int32
    factor: np.uint32
    shift: np.int32

    @classmethod
    def of(cls, number: int) -> Divisor:
        """The quotient of i is ``i * factor >> shift``, with a product of 64 bits."""
        bits = 31 + max(number - 1, 0).bit_length()
        return cls(np.int32(number), np.uint32(-(-(1 << bits) // max(number, 1))), np.int32(bits))


class Axis(NamedTuple):
    """One axis of a strip."""

    terms: tuple[tuple[tuple[int, int], ...], ...]
    """For each result its pairs (tap, source) in the order of the taps; sources count from the first that the strip reads."""
    advance: int
    """Sources from the first of a strip to the first of the next."""
    first: int
    """The first source of the first strip, but for the padding, see `forward_axis` and `gradient_axis`."""

    @property
    def span(self) -> int:
        """Sources of a strip."""
        return 1 + max((source for terms in self.terms for _, source in terms), default=-1)

    @property
    def sources(self) -> tuple[int, ...]:
        """Those that are read."""
        return tuple(sorted({source for terms in self.terms for _, source in terms}))

    @property
    def order(self) -> tuple[int, ...]:
        """The sources in an order that meets the taps of each result in theirs."""
        falls = any(later[1] < sooner[1] for terms in self.terms for sooner, later in itertools.pairwise(terms))
        return tuple(range(self.span - 1, -1, -1) if falls else range(self.span))

    def readers(self, source: int) -> list[tuple[int, int]]:
        """The results that read a source, and by which tap."""
        return [(place, tap) for place, terms in enumerate(self.terms) for tap, read in terms if read == source]


def forward_axis(window: int, stride: int, dilation: int, flip: bool, count: int) -> Axis:
    """The axis of `count` outputs of a convolution; the first source is the position ``-low``."""
    taps = [(window - 1 - tap if flip else tap) * dilation for tap in range(window)]
    return Axis(tuple(tuple(enumerate(place * stride + at for at in taps)) for place in range(count)), count * stride, 0)


def gradient_axis(window: int, stride: int, dilation: int, flip: bool, low: int, count: int) -> Axis:
    """The axis of `count` gradients of x, a multiple of the stride; the first source is the output ``low // stride + first``."""
    taps = [(window - 1 - tap if flip else tap) * dilation for tap in range(window)]
    found = [
        [(tap, (low % stride + place - at) // stride) for tap, at in enumerate(taps) if (low + place - at) % stride == 0]
        for place in range(count)
    ]
    first = min((source for terms in found for _, source in terms), default=0)
    return Axis(tuple(tuple((tap, source - first) for tap, source in terms) for terms in found), count // stride, first)


class Strip(NamedTuple):
    """What a thread computes, and how its elements lie in memory."""

    rows: Axis
    columns: Axis
    window: tuple[int, int]
    """Taps of the last two axes."""
    source: Run
    """How a row of sources is loaded."""
    result: Run
    """How a row of results is stored; in a gradient for w, how one of y is loaded."""
    unit: bool
    """Whether elements of the last axis are neighbours."""

    @property
    def height(self) -> int:
        """Rows of results."""
        return len(self.rows.terms)

    @property
    def width(self) -> int:
        """Results of a row."""
        return len(self.columns.terms)

    @property
    def results(self) -> int:
        """Of the strip."""
        return self.height * self.width

    @property
    def taps(self) -> int:
        """Of the last two axes."""
        return math.prod(self.window)

    @property
    def name(self) -> str:
        """For the names of kernels."""
        axes = "_".join(f"{len(axis.terms)}x{axis.advance}x{axis.span}x{axis.first}".replace("-", "m") for axis in self[:2])
        runs = "_".join(f"{run.length}l{run.lead}" for run in (self.source, self.result))
        return f"{axes}_{'x'.join(map(str, self.window))}_{runs}{'u' if self.unit else ''}"


class Pooled(NamedTuple):
    """Strips of pooling: of windows, or of elements of x with the windows that hold them as their sources."""

    windows: Strip
    """Of outputs."""
    elements: Strip
    """Of gradients for x."""
    reads: tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]
    """For each source of `elements` on both axes, the positions of its window, counted from that of the first source's."""


def loads(used: Sequence[int], run: Run) -> list[tuple[int, int]]:
    """(first, count) of the loads of a row: whole runs where they hold two columns that are used, else single elements."""
    wanted, found = set(used), []
    for first in range(run.lead % run.length - run.length, max(used) + 1, run.length):
        held = sorted(wanted.intersection(range(first, first + run.length)))
        found += [(first, run.length)] if len(held) > 1 else [(column, 1) for column in held]
    return found
