"""How a problem is cut for transforms: lengths, blocks, images and channels at a time, under the limit of working memory."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

from numconv.plugin import ConvProblem, np_dtype

__all__ = ["Channels", "Layout", "layout_of"]

_CHOICES = {1: 16, 2: 7, 3: 4}
"""Lengths of an axis that are tried, by the number of axes."""
_LAUNCHES = 1e8
"""Operations in the time that the launches of one block take."""


class Channels(NamedTuple):
    """Neighbouring channels that are computed together: some groups, or some outputs of one group."""

    groups: int
    sources: slice
    """Of the source ``[N, groups * inputs, ...]``."""
    results: slice
    """Of the result ``[N, groups * outputs, ...]``."""


class Layout(NamedTuple):
    """A problem as correlations with unit stride: source ``[N, G, inputs, ...]``, results ``[N, G, outputs, *positions]``."""

    dtype: str
    extents: tuple[int, ...]
    """Of the kernel with its dilation."""
    positions: tuple[int, ...]
    """Of the results, those that a stride leaves out included; for weight_grad of the spread grad_y."""
    every: tuple[int, ...]
    """Which of them are kept."""
    lengths: tuple[int, ...]
    """Of the transforms."""
    groups: int
    inputs: int
    outputs: int
    n: int
    images: int
    """At a time."""
    groups_at_once: int
    outputs_at_once: int
    """All of them, or some of one group."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Positions that a block gives: as many as do not wrap around, in whole strides."""
        return tuple((length - e + 1) // s * s for length, e, s in zip(self.lengths, self.extents, self.every, strict=True))

    @property
    def bytes(self) -> int:
        """Source, weights and results: their values, their spectra in two orders, and what a transform works in."""
        item = np_dtype(self.dtype).itemsize
        channels = self.groups_at_once * (self.inputs + self.outputs_at_once)
        weights = self.groups_at_once * self.inputs * self.outputs_at_once
        return 6 * item * math.prod(self.lengths) * (self.images * channels + weights)

    @property
    def blocks(self) -> int:
        """Of one image."""
        return math.prod(-(-p // s) for p, s in zip(self.positions, self.steps, strict=True))

    @property
    def _passes(self) -> int:
        return -(-self.groups // self.groups_at_once) * -(-self.outputs // self.outputs_at_once)

    @property
    def rounds(self) -> int:
        """Times that a block is transformed."""
        return self._passes * self.blocks * -(-max(1, self.n) // self.images)

    @property
    def operations(self) -> float:
        """Of transforms (2.5 n log2 n) and products of spectra."""
        size = math.prod(self.lengths)
        transform = 2.5 * size * math.log2(max(2, size))
        passes = self.inputs * -(-self.outputs // self.outputs_at_once) + self.outputs
        products = 4 * size * self.inputs * self.outputs
        weights = self.inputs * self.outputs * transform
        return self.groups * (self.n * self.blocks * (passes * transform + products) + weights)

    @property
    def traffic(self) -> float:
        """Bytes that transforms and products read and write."""
        item = np_dtype(self.dtype).itemsize
        channels = self.groups * (self.inputs + self.outputs)
        return 8.0 * item * math.prod(self.lengths) * self.n * self.blocks * channels

    def channels(self) -> Iterator[Channels]:
        """The parts in which channels are computed."""
        for group in range(0, self.groups, self.groups_at_once):
            groups = min(self.groups - group, self.groups_at_once)
            sources = slice(group * self.inputs, (group + groups) * self.inputs)
            for output in range(0, self.outputs, self.outputs_at_once):
                first = group * self.outputs + output
                count = min(self.outputs - output, self.outputs_at_once) + (groups - 1) * self.outputs
                yield Channels(groups, sources, slice(first, first + count))


@functools.lru_cache(maxsize=1024)
def layout_of(problem: ConvProblem, dtype: str, *, together: bool = False) -> Layout:
    """The cheapest cut that stays under the limit of working memory, or the smallest if none does.

    `together` says that blocks are computed together, so that their number costs no launches.
    """
    extents = tuple(d * (r - 1) + 1 for d, r in zip(problem.dilation, problem.kernel, strict=True))
    spread = tuple((q - 1) * s + 1 for q, s in zip(problem.output, problem.stride, strict=True))
    ones = (1,) * problem.ndim
    inputs, outputs = problem.c // problem.groups, problem.k // problem.groups
    if problem.op == "input_grad":
        inputs, outputs = outputs, inputs
    positions = problem.spatial if problem.op == "input_grad" else spread
    every = problem.stride if problem.op == "forward" else ones
    most = _CHOICES[min(problem.ndim, 3)]
    choices = [_thinned(_lengths(e, p, s), most) for e, p, s in zip(extents, positions, every, strict=True)]
    found = [
        _fitted(Layout(dtype, extents, positions, every, lengths, problem.groups, inputs, outputs, problem.n, 1,
                       problem.groups, outputs), problem.max_workspace)
        for lengths in itertools.product(*choices)
    ]  # fmt: skip
    fitting = [each for each in found if each.bytes <= problem.max_workspace]
    if not fitting:
        return min(found, key=lambda each: each.bytes)
    return min(fitting, key=lambda each: each.operations + (0 if together else _LAUNCHES * each.rounds))


def _lengths(extent: int, positions: int, step: int) -> list[int]:
    """Even lengths of transforms, from the shortest that gives a result to the one that needs a single block."""
    from scipy.fft import next_fast_len

    found, wanted, most = [], extent - 1 + step, positions + extent - 1
    while wanted < most:
        found.append(2 * next_fast_len(-(-wanted // 2), real=True))
        wanted = max(wanted + 1, 3 * wanted // 2)
    found.append(2 * next_fast_len(-(-max(most, extent - 1 + step) // 2), real=True))
    return sorted(set(found))


def _thinned(lengths: list[int], count: int) -> list[int]:
    """At most so many, the shortest and the longest among them."""
    if len(lengths) <= count:
        return lengths
    return [lengths[place * (len(lengths) - 1) // (count - 1)] for place in range(count)]


def _fitted(layout: Layout, limit: int) -> Layout:
    """With as many channels at a time as fit, then as many images."""
    while layout.bytes > limit and layout.groups_at_once > 1:
        layout = layout._replace(groups_at_once=-(-layout.groups_at_once // 2))
    while layout.bytes > limit and layout.outputs_at_once > 1:
        layout = layout._replace(outputs_at_once=-(-layout.outputs_at_once // 2))
    one = layout.bytes
    more = layout._replace(images=2).bytes - one
    return layout._replace(images=max(1, min(layout.n, 1 + (limit - one) // more)))
