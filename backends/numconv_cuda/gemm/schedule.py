"""How a matrix product is cut into blocks: the tile, and the parts of its sums, by a model of a large device.

The choice depends on the problem alone, so that results do not depend on the device. What the model weighs: tiles that reach over
the edge of the product, multiprocessors that have nothing to do in the last round of blocks, the copies that a tile of a thread
costs beside its products, and the sums of parts, which are written and read once more.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from numconv.plugin import ConvProblem, np_dtype

from .tiles import LARGEST, Tile, tiles_of

__all__ = ["MOST_GROUPS", "Schedule", "parts_fit", "phases_of", "schedule_of", "shape_of", "waste_of"]

MOST_GROUPS = 65535
"""The limit of a grid's third dimension, on every device."""
MULTIPROCESSORS = 132
LANES = 128
"""Multiply-adds of a multiprocessor in a cycle."""
FULL, HALF = 0.95, 3
"""The share of them that it reaches with many warps, and the number of warps with which it reaches half of that."""
BEST = 0.55
"""The share that a large product reaches in all."""
COPY, SLICE = 7, 60
"""Instructions of a copy, and of a slice besides."""
START, LAUNCH = 2500, 8000
"""Cycles of a block before its first product, and of one more kernel."""
BANDWIDTH = 1500
"""Bytes a cycle of the whole device."""
LEAST = 64
"""Terms of a part."""
MOST_BYTES = 2**25
"""Of the sums of parts."""
SMALL = 2**22
"""Multiply-adds below which a launch takes longer than they do: all such problems share a tile, which so is compiled once."""
COUNTS = sorted({*range(1, 17), *(2**k for k in range(10)), *(3 * 2**k for k in range(8))})
"""Of parts that are tried."""


class Schedule(NamedTuple):
    """The tile of a block, and how many parts each sum has."""

    tile: Tile
    parts: int


def phases_of(problem: ConvProblem) -> int:
    """Of a strided gradient of x, see `phases`; else 1."""
    return math.prod(problem.stride) if problem.op == "input_grad" else 1


@functools.lru_cache(maxsize=1024)
def shape_of(problem: ConvProblem) -> tuple[int, int, int]:
    """(rows, columns, terms) of the matrix product of a group."""
    taps = math.prod(problem.kernel)
    per_c, per_k = problem.c // problem.groups, problem.k // problem.groups
    if problem.op == "forward":
        return per_k, problem.n * math.prod(problem.output), per_c * taps
    if problem.op == "input_grad":
        return per_c, problem.n * math.prod(problem.spatial), per_k * taps
    return per_k, per_c * taps, problem.n * math.prod(problem.output)


def _share(tile: Tile) -> float:
    """Of products among a thread's instructions."""
    products = tile.thread_rows * tile.thread_columns * tile.depth
    copies = (tile.rows + tile.columns) * tile.depth / tile.threads
    loads = (tile.thread_rows + tile.thread_columns) // 4 * tile.depth
    return products / (products + COPY * copies + loads + SLICE)


def _cycles(schedule: Schedule, shape: tuple[int, int, int], groups: int, phases: int, size: int) -> float:
    """About how long a product takes."""
    (tile, parts), (rows, columns, terms) = schedule, shape
    columns, terms = -(-columns // phases), -(-terms // phases)
    blocks = -(-rows // tile.rows) * -(-columns // tile.columns) * groups * parts * phases
    work = tile.rows * tile.columns * (math.ceil(terms / parts / tile.depth) * tile.depth) / LANES / _share(tile) * (size / 4)

    def together(count: int) -> float:
        warps = count * tile.threads / 32
        return START + count * work / (FULL * warps / (warps + HALF))

    rounds, rest = divmod(blocks, MULTIPROCESSORS * tile.residents)
    found = rounds * together(tile.residents) + (together(-(-rest // MULTIPROCESSORS)) if rest else 0)
    if parts > 1:
        found += LAUNCH + 2 * parts * shape[0] * shape[1] * groups * size / BANDWIDTH
    return found


def waste_of(problem: ConvProblem) -> float:
    """How many times as long as a product of the same size takes at best the schedule takes by the model."""
    cycles = _cycles(
        schedule_of(problem), shape_of(problem), problem.groups, phases_of(problem), np_dtype(problem.acc_dtype).itemsize
    )
    least = problem.flops / 2 / (MULTIPROCESSORS * LANES * BEST) * np_dtype(problem.acc_dtype).itemsize / 4
    return cycles / max(least, 1)


def parts_fit(problem: ConvProblem, parts: int) -> bool:
    """Whether so many parts of the sums may be held."""
    rows, columns, terms = shape_of(problem)
    held = parts * rows * columns * problem.groups * np_dtype(problem.acc_dtype).itemsize
    blocks, room = parts * phases_of(problem) * problem.groups, min(MOST_BYTES, problem.max_workspace)
    return parts == 1 or (held <= room and parts * LEAST <= terms and blocks <= MOST_GROUPS)


def schedule_of(problem: ConvProblem) -> Schedule:
    """The schedule that takes least by the model; at "strict" sums have one part."""
    return _schedule(problem, problem.max_workspace)  # which problems that are equal may have different


@functools.lru_cache(maxsize=1024)
def _schedule(problem: ConvProblem, _room: int) -> Schedule:
    shape, size = shape_of(problem), np_dtype(problem.acc_dtype).itemsize
    phases = phases_of(problem)
    counts = [n for n in COUNTS if parts_fit(problem, n)] if problem.level != "strict" else [1]
    tiles = tiles_of(problem.acc_dtype)
    if math.prod(shape) * problem.groups < SMALL:
        return Schedule(tiles[len(tiles) // 2], 1)
    most = LARGEST if phases == 1 else LARGEST // 2  # a phase takes more registers
    schedules = [Schedule(tile, parts) for tile in tiles if tile.threads <= most for parts in counts]
    return min(schedules, key=lambda schedule: _cycles(schedule, shape, problem.groups, phases, size))
