"""One process that times one implementation: it reads a case a line from its standard input, and answers each with a line.

This folder imports nothing outside of itself but NumPy and the implementation, because it also runs where there is no numconv: in
the interpreter of a peer (``LAUNCH`` in `numconv.benchmarking.processes` says how), and beside an older version of numconv. Each
answer is a JSON object: ``seconds`` (the median of the calls), ``best`` (the least), ``calls``, ``variant`` (what was called), and
where they were asked for the rates of the machine measured right after, ``multiply_adds`` and ``copies``; or ``declined`` or
``error`` with the reason. Results are compared with sums of their terms before they are timed.
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
from .timing import sample

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
    for line in sys.stdin:
        _reply(replies, _answer(make, json.loads(line)))


def _answer(make: Callable[[Case], Calls], request: dict[str, Any]) -> dict[str, Any]:
    case = Case.of(request["case"])
    try:
        calls = make(case)
        if request["checked"]:
            for call in calls.values():
                check(case, call())
        samples = {variant: sample(call, request["seconds"]) for variant, call in calls.items()}
        variant = min(samples, key=lambda name: samples[name].median)
        limits = ours.rates(variant.split()[0], case.dtype, request["size"]) if request["size"] else {}
    except Declined as reason:
        return {"declined": str(reason)}
    except Exception as error:  # noqa: BLE001 - one case that fails must not take the others with it
        return {"error": _told(error)}
    best = samples[variant]
    return {"variant": variant, "seconds": best.median, "best": best.best, "calls": best.calls} | limits


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
