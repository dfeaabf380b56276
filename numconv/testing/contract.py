"""The tests that every backend has to pass."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np

from numconv.plugin import CONV_OPS, LEVELS, POOL_OPS, WINDOW_OPS, Backend, Implementation, Verdict, parse
from numconv.registry import Candidate, consider, default_registry

from .cases import Case, inputs, make_case
from .checking import check_case, registry_of
from .memory import FORMS, execute
from .problems import CONV_PROBLEMS, POOL_PROBLEMS, WINDOW_PROBLEMS

__all__ = ["BackendContract"]


_problem = functools.cache(parse)
_ORDERS = ("C-contiguous", "channels-last", "mixed")


class BackendContract:
    """Tests that every backend has to pass; pytest collects a subclass that is called ``Test...``.

    Attributes
    ----------
    backend : str or Backend
        The name of the entry point, or an object that need not be installed. A backend that is not available here skips its tests,
        with its reason.
    problems : tuple of str
        Text forms; each runs with each implementation whose Verdict on it is yes when tests are collected. An implementation that
        computes none of them is a skip, with the reason of its Verdict on the first.
    levels, forms : tuple of str
        The accuracy levels, and the forms of memory of the arrays: all, unless a backend that runs slowly here leaves some out.
    seed : int
        Of the random inputs.
    """

    backend: ClassVar[str | Backend]
    problems: ClassVar[tuple[str, ...]] = CONV_PROBLEMS + POOL_PROBLEMS + WINDOW_PROBLEMS
    levels: ClassVar[tuple[str, ...]] = LEVELS
    forms: ClassVar[tuple[str, ...]] = tuple(FORMS)
    seed: ClassVar[int] = 2

    @classmethod
    def setup_class(cls) -> None:
        """Skip what is not available."""
        verdict = cls._availability()
        if not verdict:
            _skip(f"{cls.backend if isinstance(cls.backend, str) else cls.backend.name}: {verdict.reason}")

    @classmethod
    def _availability(cls) -> Verdict:
        if not isinstance(cls.backend, str):
            return cls.backend.availability()
        default_registry().check_names((cls.backend,), "BackendContract")
        info = next(info for info in default_registry().infos() if info.name == cls.backend)
        return Verdict(info.available, info.reason)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """One test for each problem, or for each problem and each implementation that computes it."""
        asked = {"text", "algorithm"} & set(metafunc.fixturenames)
        if asked == {"text"}:
            metafunc.parametrize("text", self.problems if self._availability() else ())
        if asked != {"text", "algorithm"}:
            return
        contract: Any = type(self)
        rows = _rows(contract)
        if metafunc.function.__name__ == "test_nonfinite":
            rows = [(text, algorithm) for text, algorithm in rows if "int" not in _problem(text).dtype]
        metafunc.parametrize(("text", "algorithm"), rows, ids=[f"{algorithm}: {text}" for text, algorithm in rows])

    def _implementations(self) -> Sequence[Implementation]:
        return registry_of(self.backend)[1].implementations() if self._availability() else ()

    def _device(self) -> str:
        return registry_of(self.backend)[1].device

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def _supported(self, text: str, algorithm: str) -> list[tuple[Any, Candidate]]:
        """(problem, candidate) for each accuracy level at which the implementation computes it; a skip with the reasons if none."""
        problem = _problem(text)
        if "bfloat16" in (problem.dtype, problem.out_dtype) and importlib.util.find_spec("ml_dtypes") is None:
            _skip("dtype bfloat16 needs the package ml_dtypes")
        implementation = next(each for each in self._implementations() if each.name == algorithm and problem.op in each.ops)
        rows = [(each, consider(self._name(), implementation, each)) for each in self._at_levels(problem)]
        if not any(row.verdict for _, row in rows):
            _skip("; ".join(dict.fromkeys(row.verdict.reason for _, row in rows)))
        return [(each, row) for each, row in rows if row.verdict]

    def _at_levels(self, problem: Any) -> list[Any]:
        return [problem.replace(accuracy=None if level == "default" else level) for level in self.levels]

    def _name(self) -> str:
        return registry_of(self.backend)[1].name

    def test_declaration(self) -> None:
        """Names, operations and levels are known ones, and no two implementations of an operation share a name."""
        backend = registry_of(self.backend)[1]
        assert backend.device in ("cpu", "gpu"), f"device {backend.device!r} is neither cpu nor gpu"
        seen = set()
        for each in backend.implementations():
            assert each.ops <= {*CONV_OPS, *POOL_OPS, *WINDOW_OPS}, f"{each.name} has unknown operations: {sorted(each.ops)}"
            assert each.levels <= set(LEVELS), f"{each.name} has unknown levels: {sorted(each.levels)}"
            assert len(each.ops) * len(each.levels) > 0, f"{each.name} can never be chosen"
            for op in each.ops:
                assert (op, each.name) not in seen, f"two implementations of {op} are called {each.name!r}"
                seen.add((op, each.name))

    def test_verdict(self, text: str) -> None:
        """Of each implementation a verdict with a reason, a workspace and a cost, the same whenever they are asked for."""
        problem = _problem(text)
        for each in self._implementations():
            for level in sorted(each.levels) if problem.op in each.ops else ():
                _check_verdict(each, problem.replace(accuracy=None if level == "default" else level))

    def test_result(self, text: str, algorithm: str) -> None:
        """The reference's result at every level: exactly for integers in every form of memory, within `bound` else."""
        rows = self._supported(text, algorithm)
        for integer in (True, False):
            case = _case(_problem(text), self.seed, integer)
            # Integers tell for every form that its elements are found; how they are summed differs with the order of axes at most.
            forms = self.forms if integer else [form for form in self.forms if form in _ORDERS] or self.forms
            for problem, row in rows:
                check_case(case._replace(problem=problem), row, self._device(), forms)

    def test_nonfinite(self, text: str, algorithm: str) -> None:
        """NaN and Inf in an input reach the outputs that the reference gives, with its class and sign, and no other (promise 2)."""
        rows = self._supported(text, algorithm)
        for position in range(_floating(rows[0][0])):
            case = _case(_problem(text), self.seed, True, (position,))
            for problem, row in rows:
                check_case(case._replace(problem=problem), row, self._device(), ("C-contiguous",))

    def test_empty_batch(self, text: str, algorithm: str) -> None:
        """A batch of none: an empty result, and a gradient of zeros for the weights."""
        for problem, row in self._supported(text, algorithm)[:1]:
            case = _case(problem.replace(n=0), self.seed, True)
            check_case(case, row, self._device(), ("C-contiguous", "Fortran-ordered"))

    def test_threads(self, text: str, algorithm: str) -> None:
        """The same bits from an executor that several threads call at once, and from a second executor."""
        for problem, row in self._supported(text, algorithm):
            case = Case(problem, inputs(problem, self._rng(), False), [], None, False)
            assert row.implementation is not None
            executor, again = row.implementation.build(problem), row.implementation.build(problem)

            def bits(run: Any, case: Case = case) -> list[bytes]:
                return [result.tobytes() for result in execute(run, case, "C-contiguous", self._device())]

            expected = bits(again)
            with ThreadPoolExecutor(2) as pool:
                found = list(pool.map(bits, [executor] * 4))
            assert all(each == expected for each in found), f"{problem}: {row.algorithm}: the bits differ from call to call"


@functools.cache
def _rows(contract: Any) -> list[tuple[str, str]]:
    """(text, algorithm) of what is computed at any level, and the first problem of an implementation that computes none."""
    self, found = contract(), []
    refused: dict[str, str] = {}
    for text in self.problems:
        problem = _problem(text)
        for each in self._implementations():
            if problem.op not in each.ops:
                continue
            if any(consider(self._name(), each, asked).verdict for asked in self._at_levels(problem)):
                found.append((text, each.name))
            else:
                refused.setdefault(each.name, text)
    computing = {algorithm for _, algorithm in found}
    return found + [(text, algorithm) for algorithm, text in refused.items() if algorithm not in computing]


def _check_verdict(each: Implementation, asked: Any) -> None:
    who = f"{asked}: {each.name}"
    verdict = each.supports(asked)
    assert isinstance(verdict, Verdict), f"{who}: supports() returned {verdict!r}"
    assert verdict or verdict.reason.strip(), f"{who}: a refusal without a reason"
    assert each.supports(asked) == verdict, f"{who}: another verdict when asked again"
    if verdict:
        workspace, cost = each.workspace(asked), each.cost(asked)
        assert type(workspace) is int, f"{who}: a workspace of {workspace!r}"
        assert workspace >= 0, f"{who}: a workspace of {workspace} bytes"
        assert 0 < cost < math.inf, f"{who}: a cost of {cost!r} seconds"
        assert (each.workspace(asked), each.cost(asked)) == (workspace, cost), f"{who}: other costs when asked again"


@functools.lru_cache(maxsize=16)
def _case(problem: Any, seed: int, integer: bool, nonfinite: tuple[int, ...] = ()) -> Case:
    """One for all implementations, whose tests of a problem follow each other: nothing changes its arrays."""
    return make_case(problem, np.random.default_rng(seed), integer, nonfinite)


def _floating(problem: Any) -> int:
    """How many of the arrays, from the first, hold floats whose non-finite values are followed."""
    places = problem.op.startswith("max_unpool") or (problem.op == "max_pool_backward" and problem.indices)
    return 1 if places else min(2, len(problem.input_shapes))


def _skip(reason: str) -> None:
    import pytest

    pytest.skip(reason)
