"""Operations that move values: padding, unfold and fold, max_unpool, and their adjoints; a thread for each result."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from numconv.plugin import WINDOW_OPS, Executor, Implementation, Verdict, WindowProblem, check_indices, scratch

from .costs import moved
from .geometry import (
    advanced,
    coordinates,
    elements_of,
    geometry,
    inner,
    offset_of,
    reader,
    result_place,
    slots,
    source_offset,
    start_of,
    strides_of,
    volume_of,
)
from .pooling import clear
from .primitives.elements import add, atomic_max, div, load, mod, store
from .runtime.compiler import SIMULATED, cuda, kernel
from .runtime.launching import over, pointer, zero
from .runtime.recording import recorded
from .strips import window_strips

__all__ = ["Windows"]

OWNERS = 2**20
"""Elements of the table of `max_unpool` at a time, or as many as a channel has."""


@kernel
def gather(x, y, g, items, zero):
    """Unfold; padding is the case of a window of one tap."""
    for item in range(cuda.grid(1), items, cuda.gridsize(1)):
        n, row, output = result_place(item, g.groups * g.taps, g.output, g.outputs, g.option)
        c, tap = div(row, g.taps), mod(row, g.taps)
        inside, source = source_offset(g, output, coordinates(tap, g.window))
        value = zero
        if inside:
            value = load(x, n * g.x.n + c * g.x.group + source, zero)
        store(y, n * g.y.n + c * g.y.group + tap * g.y.channel + offset_of(output, g.y.spatial), value)


@kernel
def scatter(y, x, g, items, zero):
    """The adjoint of `gather`: each result adds up what read it, in the order of the taps."""
    for item in range(cuda.grid(1), items, cuda.gridsize(1)):
        n, c, index = result_place(item, g.groups, g.size, g.volume, g.option)
        start = n * g.y.n + c * g.y.group
        acc = zero
        tap = start_of(g.window)
        for place in range(g.taps):
            ways = slots(g, tap)
            slot = start_of(g.window)
            for _ in range(volume_of(ways)):
                found, source = reader(g, tap, index, slot)
                if found:
                    acc = add(acc, load(y, start + place * g.y.channel + source, zero))
                slot = advanced(slot, ways)
            tap = advanced(tap, g.window)
        store(x, n * g.x.n + c * g.x.group + offset_of(index, g.x.spatial), acc)


# --- unpooling: of several values for one position the last in row-major order stays ---------------------------------------------


@kernel
def claim(indices, owners, g, first, items, one):
    """The owner of each position: the last element of y whose index it is. Integers have a maximum in any order of threads."""
    for item in range(cuda.grid(1), items, cuda.gridsize(1)):
        plane, element = first + div(item, g.outputs), mod(item, g.outputs)
        n, c = div(plane, g.groups), mod(plane, g.groups)
        place = load(indices, n * g.w.n + c * g.w.group + offset_of(coordinates(element, g.output), g.w.spatial), one)
        if 0 <= place < g.volume:
            atomic_max(owners, (plane - first) * g.volume + place, element)


@kernel
def unpool(y, owners, x, g, first, items, one, zero):
    """x from the owners of its positions."""
    for item in range(cuda.grid(1), items, cuda.gridsize(1)):
        plane, place = first + div(item, g.volume), mod(item, g.volume)
        n, c = div(plane, g.groups), mod(plane, g.groups)
        owner = load(owners, item, one)
        value = zero
        if owner >= 0:
            value = load(y, n * g.y.n + c * g.y.group + offset_of(coordinates(owner, g.output), g.y.spatial), zero)
        store(x, n * g.x.n + c * g.x.group + offset_of(coordinates(place, g.size), g.x.spatial), value)


@kernel
def unpool_backward(x, indices, owners, y, g, first, items, one, zero):
    """The gradient for y: that of the position which the element owns, 0 where a later one replaced it."""
    for item in range(cuda.grid(1), items, cuda.gridsize(1)):
        plane, element = first + div(item, g.outputs), mod(item, g.outputs)
        n, c = div(plane, g.groups), mod(plane, g.groups)
        output = coordinates(element, g.output)
        place = load(indices, n * g.w.n + c * g.w.group + offset_of(output, g.w.spatial), one)
        value = zero
        if 0 <= place < g.volume and load(owners, (plane - first) * g.volume + place, one) == element:
            value = load(x, n * g.x.n + c * g.x.group + offset_of(coordinates(place, g.size), g.x.spatial), zero)
        store(y, n * g.y.n + c * g.y.group + offset_of(output, g.y.spatial), value)


# --- the implementation --------------------------------------------------------------------------------------------------------


def _column_strides(problem: WindowProblem, y: Any) -> tuple[Any, ...]:
    """(n, channel, tap, spatial) of what is padded or unfolded."""
    if problem.op in ("pad", "pad_backward"):
        return strides_of(y, 1)
    n, row, column = elements_of(y)
    spatial = tuple(column * math.prod(problem.output[axis + 1 :]) for axis in range(problem.ndim))
    return (n, row * math.prod(problem.window), row, spatial)


def _gather(problem: WindowProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
    x, y = ins[0], outs[0]
    if window_strips.suits(problem):
        window_strips.unfold(problem, outs, ins, _column_strides(problem, y))
        return
    option = inner(y) if problem.op == "pad" else 0
    g = geometry(problem, (x, y), strides_of(x, 1), y=_column_strides(problem, y), option=option)
    items = math.prod(y.shape)
    over(gather, items, (y, x), pointer(x), pointer(y), g, items, zero(problem.acc_dtype))


def _scatter(problem: WindowProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
    y, x = ins[0], outs[0]
    if window_strips.suits(problem):
        window_strips.fold(problem, outs, ins, _column_strides(problem, y))
        return
    g = geometry(problem, (x, y), strides_of(x, 1), y=_column_strides(problem, y), option=inner(x))
    items = math.prod(x.shape)
    over(scatter, items, (x, y), pointer(y), pointer(x), g, items, zero(problem.acc_dtype))


def _planes(problem: WindowProblem) -> int:
    """The channels that are unpooled at a time."""
    return max(1, OWNERS // math.prod(problem.spatial))


def _unpool(problem: WindowProblem, outs: Sequence[Any], ins: Sequence[Any]) -> None:
    """`max_unpool` and its gradient, some channels at a time."""
    (values, indices), out = ins, outs[0]
    x, y = (out, values) if problem.op == "max_unpool" else (values, out)
    if SIMULATED:  # elsewhere it would wait for the device; an index outside reaches nothing
        check_indices(problem.op, indices, math.prod(problem.spatial))
    g = geometry(problem, (out, *ins), strides_of(x, 1), strides_of(indices, 1), strides_of(y, 1))
    volume, outputs, one = math.prod(problem.spatial), math.prod(problem.output), zero("int64") + 1
    total = problem.n * problem.c
    count = min(_planes(problem), total)
    owners = scratch((max(count, 1), volume), np.dtype(np.int64), values)
    arrays = (out, owners, *ins)
    for first in range(0, total, max(count, 1)):
        planes = min(count, total - first)
        over(clear, planes * volume, arrays, pointer(owners), planes * volume, -one)
        over(claim, planes * outputs, arrays, pointer(indices), pointer(owners), g, first, planes * outputs, one)
        start = zero(problem.acc_dtype)
        if problem.op == "max_unpool":
            items = planes * volume
            over(unpool, items, arrays, pointer(y), pointer(owners), pointer(x), g, first, items, one, start)
        else:
            pointers, items = (pointer(x), pointer(indices), pointer(owners), pointer(y)), planes * outputs
            over(unpool_backward, items, arrays, *pointers, g, first, items, one, start)


class Windows(Implementation):
    """Moving values by their definition, for every problem."""

    name = "windows"
    ops = frozenset(WINDOW_OPS)

    def supports(self, problem: WindowProblem) -> Verdict:
        """Yes: there is no limit."""
        return Verdict.yes()

    def cost(self, problem: WindowProblem) -> float:
        """Memory."""
        return moved(problem)

    def workspace(self, problem: WindowProblem) -> int:
        """The owners of the positions of some channels."""
        if not problem.op.startswith("max_unpool"):
            return 0
        return 8 * math.prod(problem.spatial) * max(1, min(_planes(problem), problem.n * problem.c))

    def build(self, problem: WindowProblem) -> Executor:
        """``executor(outs, ins)`` of the operation."""
        runs: dict[str, Callable[[WindowProblem, Sequence[Any], Sequence[Any]], None]] = {
            "pad": _gather, "unfold": _gather, "pad_backward": _scatter, "fold": _scatter,
            "max_unpool": _unpool, "max_unpool_backward": _unpool,
        }  # fmt: skip
        return recorded(functools.partial(runs[problem.op], problem))
