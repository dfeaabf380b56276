"""Padding, unfold and fold in vectors: rows are copied, or added up in registers, or where windows lie apart in chunks of taps.

Sums keep the order of `windows`: the taps in row-major order.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from numconv.plugin import Implementation, Verdict, WindowProblem, np_dtype
from numconv_numba.microkernels.row_access import MAX_STRIDE
from numconv_numba.microkernels.windows import ROW_ENTRY
from numconv_numba.sliding import Rows, counted_in_vectors, gathered_in_vectors, slide
from numconv_numba.threads import MAX_THREADS, run

from .apart_folding import ApartFold, chunk_bytes, folds_apart
from .moved_rows import MAX_OFFSETS, MovedRows, moved_rows_count
from .windows import Windows, row_major

__all__ = ["VectorWindows"]


class _Fold:
    """Sums of columns: what is known of their rows."""

    def __init__(self, problem: WindowProblem):
        self._problem = problem
        self._rows = Rows(problem, back=True, innermost=False)
        self._run = functools.partial(run, slide.specialise(), self._rows.items, 3 * problem.bytes)
        self._tool = self._rows.tool("sum", problem.dtype)

    def fits(self, out: Any, source: Any) -> bool:
        """Whether results fill their memory, and columns of a row are neighbours."""
        return bool(out.flags.c_contiguous) and source.strides[-1] == source.itemsize

    def __call__(self, outs: Any, ins: Any) -> None:
        (x,), (columns,) = outs, ins
        n, row, step = columns.strides
        strides = n, row * math.prod(self._problem.window), *row_major(self._problem.output, step)
        g = self._rows.vector(strides, x.strides, (0,) * x.ndim, taps=row_major(self._problem.window, row))
        self._run(self._tool, columns, x, 0, 0, g)


class _Executor:
    """One operation on arrays whose rows lie in memory one element after the other, and the general implementation for others."""

    def __init__(self, problem: WindowProblem):
        self._problem = problem
        fold = _Fold if gathered_in_vectors(problem) else ApartFold
        self._fast: Any = (fold if problem.op == "fold" else MovedRows)(problem)

    @functools.cached_property
    def _general(self) -> Any:
        return Windows().build(self._problem)

    def __call__(self, outs: Any, ins: Any) -> None:
        near = min(ins[0].strides) >= 0 and self._fast.fits(outs[0], ins[0])
        (self._fast if near else self._general)(outs, ins)


class VectorWindows(Implementation):
    """Moving and adding up rows that lie in memory one element after the other."""

    name = "vector_windows"
    ops = frozenset(("pad", "pad_backward", "unfold", "fold"))

    def supports(self, problem: WindowProblem) -> Verdict:
        """Moves of elements of 4 or 8 bytes; sums of float32 or float64."""
        if problem.out_dtype != problem.dtype:
            return Verdict.no(f"{problem.dtype} to {problem.out_dtype}: it converts nothing")
        if problem.op == "fold":
            return self._adds(problem)
        if problem.op == "unfold" and problem.pad_mode != "zeros":
            return Verdict.no(f"mode {problem.pad_mode}: it unfolds with zeros")
        return self._moves(problem)

    @staticmethod
    def _adds(problem: WindowProblem) -> Verdict:
        if problem.dtype not in ("float32", "float64"):
            return Verdict.no(f"{problem.dtype}: it adds float32 or float64")
        gathered = gathered_in_vectors(problem)
        return gathered or (folds_apart(problem) if problem.stride[-1] > MAX_STRIDE else gathered)

    @staticmethod
    def _moves(problem: WindowProblem) -> Verdict:
        if problem.op == "pad_backward" and problem.pad_mode != "zeros" and problem.dtype not in ("float32", "float64"):
            return Verdict.no(f"{problem.dtype}: it adds float32 or float64")
        if np_dtype(problem.dtype).itemsize not in (4, 8):
            return Verdict.no(f"{problem.dtype}: it moves elements of 4 or 8 bytes")
        if moved_rows_count(problem) > MAX_OFFSETS:
            return Verdict.no(f"{moved_rows_count(problem)} rows in all taps: its table holds {MAX_OFFSETS}")
        return counted_in_vectors(problem)

    def cost(self, problem: WindowProblem) -> float:
        """The time to move the arrays."""
        return 2e-6 + problem.bytes / 3e10

    def workspace(self, problem: WindowProblem) -> int:
        """For each thread, to fold, the lists of the rows of a plane, or a chunk of the taps of a row."""
        if problem.op != "fold":
            return MAX_THREADS * 256
        if not gathered_in_vectors(problem):
            return MAX_THREADS * (chunk_bytes(problem) + 256)
        lists = math.prod(problem.spatial[-2:-1]) * ROW_ENTRY * (math.prod(problem.window[:-1]) + 1)
        return MAX_THREADS * (lists + 256)

    def build(self, problem: WindowProblem) -> _Executor:
        """The executor."""
        return _Executor(problem)
