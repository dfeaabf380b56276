"""Estimated costs: seconds on the GPU at hand, whose rates its driver tells.

A call takes as long as its launches need to be issued or to run, whichever is longer. What runs is bound by arithmetic or by
memory, at a share of the rate that is a constant, so that every run chooses the same. The shares, here and beside each algorithm,
were set after runs on an H200, and ``asv_bench/gpu/nvidia-h200.json`` keeps what the rows of `numconv bench` took there. What no
row shows by itself (CALL, LAUNCH, START) is an estimate. They make the table in ``docs/cupy.md``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numconv.plugin import ConvProblem, np_dtype, nvidia_rates

__all__ = ["CALL", "LAUNCH", "Work", "direct_seconds", "issued", "moved", "product", "seconds", "streamed"]

CALL = 1.5e-5
"""Seconds of a call beside its launches."""
LAUNCH = 9e-6
"""Seconds that a launch takes to be issued."""
START = 3e-6
"""Seconds that a launch takes to run at least."""
_STREAM = 0.85
"""The share of the rate of memory that copies reach."""

_DIRECT = 0.004
"""The share of the peak that a thread a result reaches."""


def direct_seconds(problem: ConvProblem) -> float:
    """Seconds with a thread a result."""
    alone = problem.op == "weight_grad" and problem.level == "strict"  # a chain an element leaves most of a GPU idle
    return seconds(problem, problem.flops, _DIRECT / (50 if alone else 1), problem.bytes, 1)


def seconds(problem: ConvProblem, operations: float, share: float, moved_bytes: float, launches: int) -> float:
    """Of so many operations at a share of the peak, and so many bytes."""
    rates = nvidia_rates()
    peak = rates.double if problem.acc_dtype in ("float64", "complex128") else rates.single
    return issued(launches, max(operations / (share * peak), moved_bytes / (_STREAM * rates.memory)) + START * launches)


def issued(launches: int, running: float) -> float:
    """Of a call whose launches run for so long."""
    return CALL + max(LAUNCH * launches, running)


def streamed(size: float) -> float:
    """Seconds in which a launch reads and writes so many bytes."""
    return START + size / (_STREAM * nvidia_rates().memory)


def moved(problem: Any, launches: int = 1) -> float:
    """Seconds for pooling and windows, which are bound by memory."""
    return issued(launches, launches * streamed(problem.bytes / launches) + problem.flops / (0.1 * nvidia_rates().single))


class Work(NamedTuple):
    """A batch of products of cuBLAS."""

    rows: int
    inner: int
    columns: int
    batch: int
    shared: bool = False
    """Whether the batch has one left factor in common."""


_TILE = 64, 128
_SPLIT = 512
"""Terms of a product that cuBLAS leaves to one multiprocessor, where there are too few tiles for all; a batch it does not split."""
_REAL = {"complex64": "float32", "complex128": "float64"}
_REACHED = {"float32": 0.75, "float64": 1.6, "tf32": 0.55, "half": 0.5}
"""Shares of the rates that large products reach; of those of double precision more, by tensor cores."""


def product(work: Work, dtype: str, *, tf32: bool) -> float:
    """Seconds of a batch of products: tiles in rounds of the multiprocessors, or memory."""
    rates = nvidia_rates()
    item = np_dtype(dtype).itemsize
    kind = "half" if item == 2 else "tf32" if tf32 else _REAL.get(dtype, dtype)
    peak = {
        "half": _REACHED["half"] * 2 * rates.tf32, "tf32": _REACHED["tf32"] * rates.tf32,
        "float32": _REACHED["float32"] * rates.single, "float64": _REACHED["float64"] * rates.double,
    }[kind]  # fmt: skip
    tiles = max(1, -(-work.rows // _TILE[0]) * -(-work.columns // _TILE[1]) * work.batch)
    splits = 1 if work.batch > 1 else max(1, min(work.inner // _SPLIT, 2 * rates.multiprocessors // tiles))
    units = tiles * splits
    rounds = -(-units // rates.multiprocessors) * rates.multiprocessors / units
    operations = (8.0 if dtype in _REAL else 2.0) * tiles * _TILE[0] * _TILE[1] * work.inner
    factors = work.rows * work.inner * (1 if work.shared else work.batch) + work.inner * work.columns * work.batch
    size = item * factors + max(4, item) * work.rows * work.columns * work.batch
    return START + max(operations * rounds / peak, size / (_STREAM * rates.memory))
