"""Who can compute: entry points -> backends -> candidates for a problem, each with a verdict.

There is no list of built-in backends: ours are declared in ``pyproject.toml`` in the group ``numconv.backends`` like anyone's.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any, NamedTuple

from .context import current, environment
from .errors import BackendUnavailableError, ProblemError, UnknownBackendError, UnsupportedProblemError, did_you_mean
from .plugin import Backend, Implementation, Verdict

__all__ = ["BackendInfo", "Candidate", "Registry", "consider", "default_registry"]

GROUP = "numconv.backends"
_DISTRIBUTION = "numconv-nd"


class BackendInfo(NamedTuple):
    """One row of `numconv.backends`."""

    name: str
    available: bool
    reason: str
    device: str
    version: str
    automatic: bool
    distribution: str


class Candidate(NamedTuple):
    """An implementation that was considered for a problem, and the verdict on it."""

    backend: str
    algorithm: str
    verdict: Verdict
    cost: float
    workspace: int
    implementation: Implementation | None


class _Entry(NamedTuple):
    name: str
    distribution: str
    backend: Backend | None
    verdict: Verdict


class Registry:
    """The backends of a list of entry points.

    Parameters
    ----------
    entries : iterable of importlib.metadata.EntryPoint, optional
        By default those installed in the group ``numconv.backends``. Tests pass objects with ``name``, ``load()`` and ``dist``.
    """

    def __init__(self, entries: Iterable[Any] | None = None):
        self._entries: dict[str, _Entry] = {}
        found = metadata.entry_points(group=GROUP) if entries is None else entries
        # The distribution that provides numconv itself comes first, so that installing another one changes no result.
        for entry in sorted(found, key=lambda e: (_distribution(e) != _DISTRIBUTION, _distribution(e), e.name)):
            if entry.name in self._entries:
                self._report_duplicate(entry)
            else:
                self._entries[entry.name] = _load(entry)

    def _report_duplicate(self, entry: Any) -> None:
        kept = self._entries[entry.name].distribution
        if kept == _distribution(entry):
            return
        warnings.warn(
            f"two numconv backends are called {entry.name!r}: the one of the distribution {kept!r} is used, "
            f"that of {_distribution(entry)!r} is not; uninstall one of them",
            RuntimeWarning,
            stacklevel=4,
        )

    @property
    def names(self) -> list[str]:
        """The names of all backends, available or not."""
        return list(self._entries)

    def backend(self, name: str) -> Backend:
        """The available backend of this name.

        Raises
        ------
        UnknownBackendError
            If there is no such plugin.
        BackendUnavailableError
            If it cannot run here.
        """
        self.check_names((name,), f"backend={name!r}")
        entry = self._entries[name]
        if not entry.verdict or entry.backend is None:
            others = [e.name for e in self._entries.values() if e.verdict]
            raise BackendUnavailableError(
                f"backend {name!r} is not available: {entry.verdict.reason}. Available: {', '.join(others) or 'none'}"
            )
        return entry.backend

    def on_device(self, name: str, device: str, asked: str) -> Backend:
        """The available backend of this name, for arrays that live on this device.

        Raises
        ------
        UnknownBackendError, BackendUnavailableError
            As `backend`.
        UnsupportedProblemError
            If it computes on another device.
        """
        found = self.backend(name)
        if found.device != device:
            raise UnsupportedProblemError(
                f"{asked}: backend {name!r} computes on the {found.device}, and the arrays live on the {device}; "
                "numconv never moves data between devices: convert the arrays, or leave backend out"
            )
        return found

    def available(self, device: str) -> list[Backend]:
        """The backends that can run here on this device."""
        return [e.backend for e in self._entries.values() if e.verdict and e.backend is not None and e.backend.device == device]

    def check_names(self, names: Sequence[str], asked: str) -> None:
        """Raise unless every name is known and no two are of one device."""
        self._check_installed()
        devices: dict[str, str] = {}
        for name in names:
            if name not in self._entries:
                known = ", ".join(self._entries)
                hint = did_you_mean(name, self._entries)
                raise UnknownBackendError(f"{asked}: no backend is called {name!r}; installed: {known}{hint}")
            backend = self._entries[name].backend
            device = backend.device if backend else name
            if device in devices:
                raise ProblemError(
                    f"{asked}: {devices[device]!r} and {name!r} both compute on the {device}; name one backend a device"
                )
            devices[device] = name

    def _check_installed(self) -> None:
        if not self._entries:
            raise BackendUnavailableError(
                "no backend is registered: numconv is imported from a place where it is not installed, so that its entry points "
                "are missing; in the checkout run: python -m pip install -e ."
            )

    def infos(self) -> list[BackendInfo]:
        """Every backend, available or not, and why."""
        rows = []
        for entry in self._entries.values():
            backend = entry.backend
            device, version = (backend.device, backend.version) if backend else ("unknown", "unknown")
            automatic = bool(backend and backend.automatic)
            rows.append(
                BackendInfo(entry.name, entry.verdict.ok, entry.verdict.reason, device, version, automatic, entry.distribution)
            )
        return rows

    def candidates(self, problem: Any, device: str, backend: str | None, algorithm: str | None) -> list[Candidate]:
        """Every implementation that may be asked, in the order of preference: those that can, cheapest first, then the refusals."""
        self._check_installed()
        strict = self._requested(device) if backend is None else backend
        there = [e for e in self._entries.values() if e.backend is None or e.backend.device == device]
        entries = [self._entries[strict]] if strict else there
        rows = [row for entry in entries for row in _of_entry(entry, problem, asked_for=bool(strict))]
        wanted = self._context_algorithm(rows) if algorithm is None else algorithm
        if wanted is not None:
            refusal = Verdict.no(f"algorithm={wanted!r} was asked for")
            rows = [r if r.algorithm == wanted or not r.verdict else r._replace(verdict=refusal) for r in rows]
        return sorted(rows, key=lambda r: (not r.verdict, r.cost if r.verdict else 0.0))

    def _context_algorithm(self, rows: Sequence[Candidate]) -> str | None:
        """The algorithm that the context names, where the operation has one of that name: the others are not bound by it.

        Raises
        ------
        ProblemError
            If no operation of any backend has it.
        """
        wanted = current().algorithm
        if wanted is None or any(r.algorithm == wanted for r in rows):
            return wanted
        able = [e.backend for e in self._entries.values() if e.verdict and e.backend is not None]
        known = dict.fromkeys(each.name for backend in able for each in backend.implementations())
        if wanted not in known:
            raise ProblemError(
                f"numconv.using(algorithm={wanted!r}): no implementation has this name; there are {', '.join(known)}"
            )
        return None

    def _requested(self, device: str) -> str | None:
        """The backend that the context or else the environment names for this device."""
        for names, asked in ((current().backend, "numconv.using"), (environment().backend, "NUMCONV_BACKEND")):
            if names:
                self.check_names(names, asked)
                for name in names:
                    found = self._entries[name].backend
                    if found is None or found.device == device:
                        return self.backend(name).name
        return None

    def select(self, problem: Any, asked: str, device: str, backend: str | None, algorithm: str | None) -> list[Candidate]:
        """The candidates, the chosen one first.

        Raises
        ------
        UnknownBackendError, BackendUnavailableError, UnsupportedProblemError, ProblemError
            With the reason of every candidate.
        """
        if backend is not None:
            self.on_device(backend, device, asked)
        rows = self.candidates(problem, device, backend, algorithm)
        if rows and rows[0].verdict:
            return rows
        raise self._refusal(problem, asked, device, backend, algorithm, rows)

    def _refusal(
        self, problem: Any, asked: str, device: str, backend: str | None, algorithm: str | None, rows: list[Candidate]
    ) -> Exception:
        known = {r.algorithm for r in rows}
        if algorithm is not None and algorithm not in known:
            names = ", ".join(f"{r.backend}: {r.algorithm}" for r in rows if r.algorithm != "-")
            return ProblemError(
                f"{asked}: no implementation of {problem.op} is called {algorithm!r}; there are {names or 'none'}"
                f"{did_you_mean(algorithm, known)}"
            )
        who = f"on {backend!r} " if backend else ""
        reasons = (
            "; ".join(f"{r.backend} {r.algorithm}: {r.verdict.reason}" for r in rows) or f"no backend computes on the {device}"
        )
        able = ", ".join(f"{r.backend} ({r.algorithm})" for r in self._able(problem, device))
        others = f"Who could: {able}" if able else "No installed backend could"
        return UnsupportedProblemError(f"{asked} {who}was declined. The problem: {problem}. Reasons: {reasons}. {others}.")

    def _able(self, problem: Any, device: str) -> list[Candidate]:
        """Those that could compute it on this device, whatever was asked."""
        backends = [(e.name, e.backend) for e in self._entries.values() if e.backend and e.backend.device == device and e.verdict]
        return [row for name, backend in backends for row in _consider_all(name, backend, problem) if row.verdict]


def _of_entry(entry: _Entry, problem: Any, *, asked_for: bool) -> list[Candidate]:
    verdict, backend = entry.verdict, entry.backend
    if verdict and backend is not None and not backend.automatic and not asked_for:
        verdict = Verdict.no(f"computes only when asked for: backend={entry.name!r}")
    if not verdict or backend is None:
        return [Candidate(entry.name, "-", verdict, 0.0, 0, None)]
    return _consider_all(entry.name, backend, problem)


def _consider_all(name: str, backend: Backend, problem: Any) -> list[Candidate]:
    """The candidates of one backend; what a plugin raises becomes its refusal, so that the others still compute."""
    try:
        able = [each for each in backend.implementations() if problem.op in each.ops]
    except Exception as error:  # noqa: BLE001 - whatever a plugin raises
        return [Candidate(name, "-", _failed(error), 0.0, 0, None)]
    refusal = Candidate(name, "-", Verdict.no(f"has no implementation of {problem.op}"), 0.0, 0, None)
    return [consider(name, each, problem) for each in able] or [refusal]


def consider(backend: str, implementation: Implementation, problem: Any) -> Candidate:
    """The candidate that one implementation is for a problem."""
    try:
        verdict, cost, workspace = _judge(implementation, problem)
    except Exception as error:  # noqa: BLE001 - whatever a plugin raises
        verdict, cost, workspace = _failed(error), 0.0, 0
    return Candidate(backend, implementation.name, verdict, cost, workspace, implementation)


def _judge(implementation: Implementation, problem: Any) -> tuple[Verdict, float, int]:
    """(verdict, estimated seconds, bytes of working memory)."""
    verdict = _level_verdict(implementation, problem)
    if not verdict or not (verdict := _checked(implementation.supports(problem))):
        return verdict, 0.0, 0
    cost, workspace = implementation.cost(problem), implementation.workspace(problem)
    if workspace > problem.max_workspace:
        verdict = Verdict.no(f"needs {workspace} bytes of working memory, and max_workspace is {problem.max_workspace}")
    return verdict, cost, workspace


def _failed(error: Exception) -> Verdict:
    return Verdict.no(f"failed: {type(error).__name__}: {error}")


def _checked(verdict: Any) -> Verdict:
    if not isinstance(verdict, Verdict):
        raise TypeError(f"it answered {verdict!r}, which is no Verdict")
    return verdict


def _level_verdict(implementation: Implementation, problem: Any) -> Verdict:
    if problem.level in implementation.levels:
        return Verdict.yes()
    return Verdict.no(
        f"accuracy={problem.level!r} was asked for, and it is offered at {', '.join(sorted(implementation.levels))} only"
    )


def _distribution(entry: Any) -> str:
    dist = getattr(entry, "dist", None)
    return dist.name if dist is not None else "unknown"


def _load(entry: Any) -> _Entry:
    """The entry's backend, or the reason why there is none: a broken plugin must neither break the core nor disappear."""
    distribution = _distribution(entry)
    try:
        backend = entry.load()
        if not isinstance(backend, Backend):
            missing = [
                n for n in ("name", "device", "automatic", "version", "availability", "implementations") if not hasattr(backend, n)
            ]
            raise TypeError(f"{backend!r} is not a backend: it lacks {', '.join(missing)}")
        if backend.name != entry.name:
            raise ValueError(f"its entry point is called {entry.name!r}, the backend calls itself {backend.name!r}")
        verdict = _checked(backend.availability())
    except Exception as error:  # noqa: BLE001 - whatever a plugin raises
        return _Entry(entry.name, distribution, None, Verdict.no(f"failed to load: {type(error).__name__}: {error}"))
    return _Entry(entry.name, distribution, backend, verdict)


_lock = threading.Lock()


@functools.cache
def _default() -> Registry:
    return Registry()


def default_registry() -> Registry:
    """The registry of the installed entry points, read at the first use."""
    with _lock:
        return _default()
