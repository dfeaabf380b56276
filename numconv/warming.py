"""Compiling and caching kernels ahead of time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .dispatch import dtype_name
from .errors import ProblemError
from .plugin import np_dtype
from .problem import CONV_OPS, POOL_OPS, SHORT, parse
from .registry import default_registry

__all__ = ["WarmedUp", "warmup"]

_CONV = "n1 c3 k5 g1 in9x10 w3x3 s1 p1 d1"
_CONV_MANY = "n1 c16 k16 g1 in9x10 w3x3 s1 p1 d1"
_POOL = "n1 c2 in9x10 w2x2 s2 p0 d1"
_MOVE = "n1 c2 in9x10 w1x1 s1 p1 d1"
_SAMPLES = {
    **{f"conv {op}": (_CONV, _CONV_MANY) for op in CONV_OPS},
    **{f"pool {op}": (_POOL,) for op in POOL_OPS},
    **{f"window {op}": (_MOVE,) for op in ("pad", "pad_backward")},
    **{f"window {op}": (_POOL,) for op in ("unfold", "fold")},
}


class WarmedUp(NamedTuple):
    """One implementation that was run once."""

    backend: str
    algorithm: str
    problem: str
    seconds: float


def warmup(
    dtypes: Sequence[Any] = ("float32",), *, backend: str | None = None, progress: Callable[[WarmedUp], None] | None = None
) -> list[WarmedUp]:
    """Compile the kernels of the CPU backends, so that later calls and later processes find them in the cache.

    Parameters
    ----------
    dtypes : sequence of dtype
        For which to compile.
    backend : str, optional
        Only this backend; by default every one that is chosen automatically.
    progress : callable, optional
        Called after each implementation.

    Returns
    -------
    list of WarmedUp
        With backend, algorithm, problem (its text form) and seconds.

    Raises
    ------
    ProblemError, UnknownBackendError, BackendUnavailableError
        If a dtype is not supported, or a backend is not there.

    Examples
    --------
    >>> import numconv as nc
    >>> {row.algorithm for row in nc.warmup(["float32"], backend="reference") if row.problem.startswith("conv")}
    {'direct'}
    """
    if isinstance(dtypes, str):
        raise ProblemError(f"warmup: dtypes={dtypes!r} must be a sequence of dtypes, for example [{dtypes!r}]")
    rows = []
    registry = default_registry()
    if backend is not None:
        registry.backend(backend)
    for name in (dtype_name(dtype, "warmup") for dtype in dtypes):
        for kind, samples in _SAMPLES.items():
            for sample in samples:
                problem = _problem(kind, SHORT[name], sample)
                if problem is None:
                    continue
                for row in registry.candidates(problem, "cpu", backend, None):
                    if row.verdict and row.implementation is not None:
                        rows.append(_run(row, problem))
                        if progress:
                            progress(rows[-1])
    return rows


def _problem(kind: str, dtype: str, sample: str) -> Any:
    """The sample problem; None where the operation has none of this dtype."""
    family = kind.split()[1].split("_", maxsplit=1)[0]
    if (family == "max" and dtype[0] == "c") or (family == "avg" and dtype[0] in "iu") or (family == "lp" and dtype[0] in "ciu"):
        return None
    return parse(f"{kind} {dtype} {sample}")


def _run(row: Any, problem: Any) -> WarmedUp:
    start = time.perf_counter()
    dtype = np_dtype(problem.dtype)
    executor = row.implementation.build(problem)
    executor([np.empty(s, dtype) for s in problem.output_shapes], [np.ones(s, dtype) for s in problem.input_shapes])
    return WarmedUp(row.backend, row.algorithm, str(problem), time.perf_counter() - start)
