"""`using(tune=True)`: time the candidates of a problem once, and remember the winner for this machine.

This is the documented exception to the promise that no timing decides which algorithm computes.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import __version__
from .kernel_files import cache_dir

if TYPE_CHECKING:
    from .registry import Candidate

__all__ = ["remembered", "tuned"]

_REPEATS = 5


def tuned(problem: Any, rows: list[Candidate], device: str) -> list[Candidate]:
    """The candidates with the fastest one first, from the file of winners or measured now."""
    able = {(row.backend, row.algorithm): row for row in rows if row.verdict}
    # Only candidates of the same kind of device are compared, and without a second one there is nothing to measure.
    if len(able) < 2 or device != "cpu":
        return rows
    winner = remembered(str(problem), [list(names) for names in able], lambda names: _seconds(problem, able[tuple(names)]))
    return sorted(rows, key=lambda row: [row.backend, row.algorithm] != winner)


def remembered(key: str, candidates: Sequence[Any], seconds: Callable[[Any], float]) -> Any:
    """The fastest of some candidates: on this machine the same in every process, for it is written to a file.

    Parameters
    ----------
    key : str
        What is computed, with all that the answer depends on besides the machine's processor.
    candidates : sequence
        Strings, or lists of them.
    seconds : callable
        Measures a candidate; asked for all of them if the file has no winner that is one of them.

    Returns
    -------
    One of the candidates
    """
    path = cache_dir() / f"tuning-{__version__}.json"
    place = f"{platform.node()} {platform.machine()} {os.cpu_count()} {key}"
    winner = _read(path).get(place)
    if winner not in candidates:
        winner = min(candidates, key=seconds)
        _write(path, _read(path) | {place: winner})
    return winner


def _seconds(problem: Any, row: Candidate) -> float:
    """The best of a few runs on random data, stopped early when it is slow; the first, which compiles, is not counted."""
    from .plugin import np_dtype

    rng = np.random.default_rng(0)
    ins = [_sample(shape, problem, position, rng, np_dtype(problem.dtype)) for position, shape in enumerate(problem.input_shapes)]
    outs = [np.empty(shape, np_dtype(problem.out_dtype)) for shape in problem.output_shapes]
    if problem.op == "max_pool" and len(outs) == 2:
        outs[1] = np.empty(outs[1].shape, np.int64)
    executor = row.implementation.build(problem)  # type: ignore[union-attr]
    executor(outs, ins)
    best, start = float("inf"), time.perf_counter()
    for _ in range(_REPEATS):
        before = time.perf_counter()
        executor(outs, ins)
        best = min(best, time.perf_counter() - before)
        if time.perf_counter() - start > 1:
            break
    return best


def _sample(
    shape: tuple[int, ...], problem: Any, position: int, rng: np.random.Generator, dtype: np.dtype[Any]
) -> np.ndarray[Any, Any]:
    indexed = problem.op.startswith("max_unpool") or (problem.op == "max_pool_backward" and problem.indices)
    if indexed and position == 1:
        return rng.integers(0, int(np.prod(problem.spatial)), shape)
    return rng.integers(-3, 4, shape).astype(dtype)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, winners: dict[str, Any]) -> None:
    """Replace the file in one step; a cache that cannot be written is measured again in the next process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(winners, indent=1, sort_keys=True))
        scratch.replace(path)
    except OSError:
        return
