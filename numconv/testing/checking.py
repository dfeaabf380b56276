"""One implementation on one problem, compared with the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from numconv.plugin import Backend
from numconv.registry import Candidate, Registry, default_registry

from .cases import Array, Case, make_case
from .memory import FORMS, execute
from .tolerances import TINY, bound, is_exact

__all__ = ["candidates", "check", "check_case", "registry_of"]


def candidates(problem: Any, backend: str | Backend) -> list[Candidate]:
    """All implementations of a backend that have the operation of `problem`: those that can compute it first, then the refusals.

    Parameters
    ----------
    problem : ConvProblem, PoolProblem or WindowProblem
    backend : str or Backend
        A name of the registry, or an object that need not be installed.

    Returns
    -------
    list of Candidate
        With backend, algorithm, verdict, cost, workspace, implementation.
    """
    registry, found = registry_of(backend)
    return registry.candidates(problem, found.device, found.name, None)


def check(
    problem: Any,
    backend: str | Backend,
    algorithm: str | None = None,
    *,
    rng: np.random.Generator,
    integer: bool = True,
    nonfinite: Sequence[int] = (),
) -> None:
    """Compare an implementation with the reference backend on random inputs.

    Its executor is run on outputs filled with NaN, on arrays that are contiguous, shifted off their alignment, channels-last,
    Fortran-ordered, negatively strided, non-contiguous and of odd strides along axes of one element, and through ``bind`` where it
    has that. Integers, and floats that hold small integers, must agree exactly; other results within `bound`.

    Parameters
    ----------
    problem : ConvProblem, PoolProblem or WindowProblem
    backend : str or Backend
        A name of the registry, or an object that need not be installed.
    algorithm : str, optional
        An implementation's name; by default the one that the backend would choose.
    rng : numpy.random.Generator
    integer, nonfinite
        As for `inputs`.

    Raises
    ------
    AssertionError
        If a result is wrong, an element was not written, an input changed, or something beside the outputs was written. The text
        holds the problem, the position and both numbers.
    UnsupportedProblemError
        If the backend does not support the problem.

    Examples
    --------
    >>> import numpy as np
    >>> from numconv.plugin import parse
    >>> from numconv.testing import check
    >>> check(parse("conv forward f32 n2 c3 k4 g1 in9x8 w3x3 s1 p1 d1"), "reference", rng=np.random.default_rng(1))
    """
    registry, found = registry_of(backend)
    row = registry.select(problem, f"check of {problem.op}", found.device, found.name, algorithm)[0]
    check_case(make_case(problem, rng, integer, nonfinite), row, found.device)


class _Entry(NamedTuple):
    """A backend as an entry point, for one that is not installed."""

    name: str
    backend: Backend
    dist: Any = None

    def load(self) -> Backend:
        return self.backend


def registry_of(backend: str | Backend) -> tuple[Registry, Backend]:
    """A registry that knows the backend, and the backend."""
    if isinstance(backend, str):
        return default_registry(), default_registry().backend(backend)
    return Registry([_Entry(backend.name, backend)]), backend


def check_case(case: Case, row: Candidate, device: str, forms: Sequence[str] = tuple(FORMS)) -> None:
    """Run a candidate on a case in several forms of memory, and through `bind` where it is offered."""
    assert row.implementation is not None
    executor = row.implementation.build(case.problem)
    exact = is_exact(case.problem, row.implementation, case.integer)
    jobs = [(form, False) for form in forms]
    if hasattr(executor, "bind"):
        jobs += [(form, True) for form in forms]
    for number, (form, bind) in enumerate(jobs):
        try:
            # Two poisons: an element that was left out cannot hold the right integer under both.
            _compare(case, execute(executor, case, form, device, bind, (0xFF, 0x7E)[number % 2]), exact)
        except AssertionError as error:
            who = f"{row.backend} {row.algorithm} at {case.problem.level!r}"
            how = f"{form} arrays{', bound weights' if bind else ''}, {'integers' if case.integer else 'random data'}"
            raise AssertionError(f"{case.problem}: {who}, {how}: {error}") from None


def _compare(case: Case, results: Sequence[Array], exact: bool) -> None:
    """Raise AssertionError with the position and both numbers of the worst element."""
    for position, (got, expected) in enumerate(zip(results, case.expected, strict=True)):
        allowed = None
        if not exact and case.magnitudes is not None:
            allowed = case.magnitudes[position] * bound(case.problem) + TINY.get(case.problem.out_dtype, 0.0)
        _compare_arrays(position, got, expected, allowed)


def _compare_arrays(output: int, got: Array, expected: Array, allowed: Array | None) -> None:
    if np.array_equal(got, expected):  # of most results, and cheap
        return
    if got.dtype.kind == "c":  # the two parts on their own, for an infinity beside a NaN
        got, expected = (np.stack([a.real, a.imag], axis=-1) for a in (got, expected))
        allowed = None if allowed is None else allowed[..., None]
    if got.dtype.kind not in "iu":
        got, expected = got.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(got - expected)
        wrong = ~((got == expected) | (np.isnan(got) & np.isnan(expected)))
        if allowed is not None:
            wrong &= ~(error <= allowed)
    if not wrong.any():
        return
    worst = int(np.argmax(np.where(wrong, np.nan_to_num(error, nan=np.inf), -1.0)))
    at = tuple(map(int, np.unravel_index(worst, got.shape)))
    limit = "it must be equal" if allowed is None else f"the error may be {np.broadcast_to(allowed, got.shape)[at]:.3g}"
    raise AssertionError(
        f"output {output} at {list(at)} is {got[at].item()!r}, and the reference gives {expected[at].item()!r}; {limit}; "
        f"{np.count_nonzero(wrong)} of {got.size} elements differ"
    )
