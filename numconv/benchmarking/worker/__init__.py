"""One process that times one implementation: it reads a case a line from its standard input, and answers each with a line.

This folder imports nothing outside of itself but NumPy and the implementation, because it also runs where there is no numconv: in
the interpreter of a peer (``LAUNCH`` in `numconv.benchmarking.processes` says how), and beside an older version of numconv. Each
answer is a JSON object: ``seconds`` (the median of the calls), ``best`` (the least), ``calls``, ``variant`` (what was called), and
where they were asked for the rates of the machine measured right after, ``multiply_adds`` and ``copies``; or ``declined`` or
``error`` with the reason. Results are compared with sums of their terms before they are timed. A case that is asked again goes on:
its answer tells of all calls so far.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, TextIO

from . import ours, peers
from .cases import Calls, Case, Declined
from .checking import check
from .timing import Timer

__all__ = ["main"]


def main(implementation: str, options: dict[str, Any]) -> None:
    """Serve until the standard input ends.

    Parameters
    ----------
    implementation : str
        ``numconv`` or a name in `peers.MAKERS`.
    options : dict
        For numconv: ``backend`` and ``algorithm``.
    """
    _die_with_parent()
    replies = _own_the_output()
    try:
        make, hello = ours.start(**options) if implementation == "numconv" else peers.start(implementation)
    except Exception as error:  # noqa: BLE001 - whatever an import raises is the answer
        _reply(replies, {"missing": _told(error)})
        return
    _reply(replies, hello)
    desk = _Desk(make)
    for line in sys.stdin:
        _reply(replies, desk.answer(json.loads(line)))


class _Desk:
    """Answers requests, and holds what the last one needed."""

    def __init__(self, make: Callable[[Case], Calls]):
        self._make = make
        self._fields: dict[str, Any] | None = None
        self._timers: dict[str, Timer] = {}
        self._limits: dict[str, float] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The times of the case so far, with those of one burst of calls more."""
        try:
            if request["case"] != self._fields:
                self._prepare(request)
            for timer in self._timers.values():
                timer.burst(request["seconds"])
            variant, best = min(self._timers.items(), key=lambda item: item[1].median)
            if request["size"] and not self._limits:
                self._limits = ours.rates(variant.split()[0], request["case"]["dtype"], request["size"])
        except Exception as error:  # noqa: BLE001 - one case that fails must not take the others with it
            self._fields = None
            return {"declined": str(error)} if isinstance(error, Declined) else {"error": _told(error)}
        return {"variant": variant, "seconds": best.median, "best": best.best, "calls": best.calls} | self._limits

    def _prepare(self, request: dict[str, Any]) -> None:
        self._timers = {}  # so that the arrays of two cases are never there at once
        case = Case.of(request["case"])
        calls = self._make(case)
        if request["checked"]:
            for call in calls.values():
                check(case, call())
        self._fields, self._limits = request["case"], {}
        self._timers = {variant: Timer(call) for variant, call in calls.items()}


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _own_the_output() -> TextIO:
    """The standard output for replies alone: what libraries print goes to the standard error."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def _reply(replies: TextIO, answer: dict[str, Any]) -> None:
    replies.write(json.dumps(answer) + "\n")
    replies.flush()


def _die_with_parent() -> None:
    """On Linux: a process that is stopped between its turns must not outlive the one that would wake it."""
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
