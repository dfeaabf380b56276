"""The settings in force: those of `using`, per thread and per task, over those of the environment, read once."""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from .errors import ProblemError
from .problem import LEVELS

__all__ = ["Context", "current", "environment", "resumed", "using"]


class Context(NamedTuple):
    """What `using` sets. None: not set here."""

    backend: tuple[str, ...] | None = None
    algorithm: str | None = None
    accuracy: str | None = None
    tune: bool = False
    max_workspace: int | None = None
    threads: int | None = None


_current: ContextVar[Context] = ContextVar("numconv_context", default=Context())
current = _current.get


@contextmanager
def using(
    backend: str | list[str] | tuple[str, ...] | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
    tune: bool | None = None,
    max_workspace: int | None = None,
    threads: int | None = None,
) -> Iterator[Context]:
    """Settings for every call inside the block, in this thread or task only.

    Threads started inside do not inherit them (a `contextvars.ContextVar`). What is left out keeps the value of the
    surrounding block.

    Parameters
    ----------
    backend : str or list of str, optional
        The backend to use, strictly; a list names at most one for each device.
    algorithm : str, optional
        The implementation to use, strictly.
    accuracy : {"strict", "high", "default", "fast"}, optional
        Which algorithms may be chosen where a call does not say it.
    tune : bool, optional
        Time the candidates once and remember the winner of each problem in a user cache file.
    max_workspace : int, optional
        Bytes of working memory that an implementation may use; 256 MiB by default.
    threads : int, optional
        Number of threads of a CPU backend; 1 enters no parallel region.

    Yields
    ------
    Context
        The settings in force.

    Raises
    ------
    ProblemError
        If a value makes no sense.
    UnknownBackendError
        If no plugin has this name.

    Examples
    --------
    >>> import numconv as nc
    >>> with nc.using(backend="reference"):
    ...     nc.plan("conv", (1, 3, 8, 8), (4, 3, 3, 3), "float32").backend
    'reference'
    """
    given: dict[str, Any] = {
        "backend": _names(backend), "algorithm": algorithm, "accuracy": accuracy, "tune": tune, "max_workspace": max_workspace,
        "threads": threads,
    }  # fmt: skip
    for what in ("max_workspace", "threads"):
        given[what] = _positive(given[what], what)
    for what, kind in (("algorithm", str), ("tune", bool)):
        if given[what] is not None and not isinstance(given[what], kind):
            raise ProblemError(f"numconv.using: {what}={given[what]!r} must be a {kind.__name__}")
    if accuracy is not None and accuracy not in LEVELS:
        raise ProblemError(f"numconv.using: accuracy {accuracy!r} is not one of {', '.join(LEVELS)}")
    merged = current()._replace(**{name: value for name, value in given.items() if value is not None})
    token = _current.set(merged)
    try:
        yield merged
    finally:
        _current.reset(token)


@contextmanager
def resumed(settings: Context | None) -> Iterator[None]:
    """The settings that were in force elsewhere: in another thread, or when work was put off; None: those in force here."""
    token = _current.set(current() if settings is None else settings)
    try:
        yield
    finally:
        _current.reset(token)


def _positive(value: Any, what: str) -> int | None:
    """An integer of any kind as an int; None stays None."""
    if value is None:
        return None
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ProblemError(f"numconv.using: {what}={value!r} must be an integer of at least 1")
    return number


def _names(backend: Any) -> tuple[str, ...] | None:
    """Backend names, known to the registry."""
    if backend is None:
        return None
    names = (backend,) if isinstance(backend, str) else backend
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise ProblemError(f"numconv.using: backend={backend!r} must be a name or a list of names")
    from .registry import default_registry

    default_registry().check_names(names, "numconv.using(backend=...)")
    return tuple(names)


class Environment(NamedTuple):
    """The variables that numconv reads."""

    backend: tuple[str, ...]
    threads: int | None


@functools.cache
def environment() -> Environment:
    """NUMCONV_BACKEND and NUMCONV_NUM_THREADS, read at the first use and checked strictly."""
    names = tuple(name.strip() for name in os.environ.get("NUMCONV_BACKEND", "").split(",") if name.strip())
    text = os.environ.get("NUMCONV_NUM_THREADS", "").strip()
    if text and not (text.isdecimal() and int(text) > 0):
        raise ProblemError(f"NUMCONV_NUM_THREADS={text!r} must be an integer of at least 1")
    return Environment(names, int(text) if text else None)
