"""Results of an input_grad with a stride, on their way to x: rows in which the phases of the last dimension alternate already."""

from __future__ import annotations

from collections.abc import Sequence

from numconv.plugin import ConvProblem
from numconv_numba.compiling.compiler import Address, Tag, helper, invoke, kernel
from numconv_numba.dense.packing import copy_cells
from numconv_numba.dense.panels import lines_of, write_run
from numconv_numba.dense.slab import block_extent, block_image, block_images, block_start
from numconv_numba.elements import INT64, itemsize, memory, release, scratch
from numconv_numba.entries import LANES, WRITE_SQUARES
from numconv_numba.geometry import DIMS, PARTS, part
from numconv_numba.scalar import is_null, pointer

__all__ = ["INNER", "LEADS", "axes_entries", "own_entries", "write_phases"]

STAGED = 112
"""Neighbours in a row of x that are put together before they are written: no power of two."""
LINE, SET_BYTES = 64, 4096
"""Of a first-level cache: lines that lie so far apart share a set, of eight ways or more."""
# What kernels know of the phases: those of all dimensions but the last, and those of the last; three entries a dimension, for the
# phases, the size of x and the origin, so that place i of phase f is position i * phases + f - origin; then what each algorithm
# has of its own.
LEADS, INNER, HEAD = range(3)
UINT8 = Tag("uint8")


def axes_entries(problem: ConvProblem, phases: Sequence[int], origins: Sequence[int]) -> list[int]:
    """The head of the vector of the phases, and the entries of the dimensions."""
    leads = 1
    for count in phases[:-1]:
        leads *= count
    return [leads, phases[-1], *(value for each in zip(phases, problem.spatial, origins, strict=True) for value in each)]


@helper
def own_entries(ndim):
    """Where an algorithm's own entries begin."""
    return HEAD + 3 * ndim


@helper
def lead_line(g, b, block, line, lead, p):
    """Whether a line of a block, for a phase of all dimensions but the last, lies inside x, and its byte offset there."""
    ndim, inside, offset = g[DIMS], True, 0
    for axis in range(ndim - 2, -1, -1):
        size, phases = block_extent(g, b, block, axis), p[HEAD + 3 * axis]
        position = (block_start(b, ndim, block, axis) + line % size) * phases + lead % phases - p[HEAD + 3 * axis + 2]
        inside &= (position >= 0) & (position < p[HEAD + 3 * axis + 1])
        offset += position * g[part(g, PARTS + 2) + 3 + axis]
        line //= size
        lead //= phases
    return inside, offset


@helper
def crowded(k_step):
    """Whether lines of as many channels as a vector takes fall into one or two sets of the first-level cache."""
    return (k_step + LINE // 2) % (SET_BYTES // 2) < LINE


@helper
def write_staged(sums, width, count, columns, bias, code, x, k_step, spare, tools, yt, at):
    """A run of neighbours, by way of a spare one of each lane; returns whether a sum is not finite."""
    bad, row, lanes = 0, STAGED * itemsize(yt), tools[LANES]
    for k in range(0, columns, lanes):
        shift, channels = bias if is_null(bias) else bias + k * itemsize(at), min(lanes, columns - k)
        for q in range(0, count, STAGED):
            length = min(STAGED, count - q)
            bad |= invoke(
                tools[WRITE_SQUARES], sums + (q * width + k * itemsize(at)), width, length, channels, shift, code, spare, row
            )
            for c in range(channels):
                copy_cells(x + ((k + c) * k_step + q * itemsize(yt)), spare + c * row, length, yt)
    return bad != 0


@kernel
def write_phases(
    yt: Tag, at: Tag, table: Address, sums: Address, width: int, columns: int, bias: Address, code: int, x: Address,
    status: Address, block: int, lead: int, sizes: Address, cutting: Address, phases: Address,
) -> None:  # fmt: skip
    """The results of a block for the channels of a panel, at one phase of all dimensions but the last: ``[line][element][lane]``.

    Images with a sum that is not finite get a 1 in `status`. `x` and `bias` are the addresses of the panel's first channel.
    """
    tools, g, b, p = pointer(table, INT64), pointer(sizes, INT64), pointer(cutting, INT64), pointer(phases, INT64)
    flags, ndim, xs = pointer(status, UINT8), g[DIMS], part(g, PARTS + 2)
    k_step, q_step, n = g[xs + 2], g[xs + 3 + ndim - 1], block_image(b, ndim, block)
    axis = HEAD + 3 * (ndim - 1)
    start, row = block_start(b, ndim, block, ndim - 1) * p[INNER] - p[axis + 2], block_extent(g, b, block, ndim - 1) * p[INNER]
    # places at both ends may have phases that lie beside x
    before = max(0, -start)
    count, lines = min(row, p[axis + 1] - start) - before, lines_of(ndim - 1, g, b, block)
    spare = scratch(tools[LANES] * STAGED * itemsize(at))
    for line in range(block_images(g, b, block) * lines):
        inside, offset = lead_line(g, b, block, line % lines, lead, p)
        place = x + ((n + line // lines) * g[xs] + offset + (start + before) * q_step)
        source, bad = sums + (line * row + before) * width, False
        if inside and code <= 1 and q_step == itemsize(yt) and count >= 2 * tools[LANES] and crowded(k_step):
            bad = write_staged(source, width, count, columns, bias, code, place, k_step, memory(spare), tools, yt, at)
        elif inside:
            bad = write_run(source, width, count, columns, bias, code, place, k_step, q_step, memory(spare), tools, yt, at)
        if bad:
            flags[n + line // lines] = 1
    release(spare)
