"""Rounds: in each, every implementation gets a fresh process, and the rows are timed one after the other, by all in bursts in turn.

So two figures that are compared with each other were measured within milliseconds, in an order that rotates: a machine that is
faster in one second than in the next is so for all of them. The chances of a process (where its memory lies, which core it started
on) are drawn again in every round.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from numconv.errors import BackendUnavailableError, UnknownBackendError

from .processes import Worker, WorkerDiedError
from .rows import Row, case_of, work_of
from .worker.peers import MAKERS
from .worker.timing import LONG

__all__ = ["Contender", "Turn", "installed", "peers", "turns"]

BURSTS = 8
"""Into which the calls of a row are split."""
ENOUGH = 3
"""Calls, of those that fit into no burst."""


@dataclass(frozen=True)
class Contender:
    """What is timed: an implementation in an interpreter, under a name of its own.

    Attributes
    ----------
    name : str
        In results; differs where one implementation takes part twice.
    implementation : str
        ``numconv`` or a peer.
    options : mapping
        For numconv: ``backend``, ``algorithm``.
    python : str
        The interpreter.
    environment : mapping
        Variables to set, or to remove where the value is None.
    """

    name: str
    implementation: str
    options: Mapping[str, Any] = field(default_factory=dict)
    python: str = sys.executable
    environment: Mapping[str, str | None] = field(default_factory=dict)

    def start(self) -> Worker:
        """Its process."""
        return Worker(self.implementation, self.options, self.python, self.environment)


class Turn(NamedTuple):
    """One contender's answer for one pass of a row in one round."""

    contender: str
    row: Row
    direction: str
    answer: dict[str, Any]


def peers(names: Sequence[str] | None, python: str = sys.executable) -> list[Contender]:
    """Other libraries by name, all that are known by default, in an interpreter that may be of another environment.

    Raises
    ------
    UnknownBackendError
        If no peer has this name.
    """
    unknown = sorted(set(names or ()) - set(MAKERS))
    if unknown:
        raise UnknownBackendError(f"no peer is called {', '.join(map(repr, unknown))}; known are {', '.join(MAKERS)}")
    # What is on the path for numconv's sake may not fit the peer's interpreter.
    environment = {} if python == sys.executable else {"PYTHONPATH": None}
    return [Contender(name, name, python=python, environment=environment) for name in MAKERS if names is None or name in names]


def installed(contenders: Sequence[Contender]) -> tuple[dict[str, str], dict[str, str]]:
    """The versions of those that start, and the reasons of the others."""
    versions, reasons = {}, {}
    for contender in contenders:
        try:
            with contender.start() as worker:
                versions[contender.name] = worker.version
        except (BackendUnavailableError, WorkerDiedError) as error:
            reasons[contender.name] = str(error)
    return versions, reasons


def turns(
    contenders: Sequence[Contender], rows: Sequence[Row], passes: Sequence[str], *, rounds: int, seconds: float, limits: bool
) -> Iterator[Turn]:
    """Time every pass of every row by every contender, in rounds; what an answer holds is told in `worker`.

    Parameters
    ----------
    contenders, rows, passes
        Who, what, and which of "forward" and "backward".
    rounds : int
        How often.
    seconds : float
        How long each contender times calls of a row, in all its bursts together.
    limits : bool
        Whether numconv also measures what the machine does at most, each time.
    """
    for number in range(rounds):
        with contextlib.ExitStack() as stack:
            team = [_Seat(contender, stack) for contender in _rotated(contenders, number)]
            for place, (row, direction) in enumerate((row, direction) for row in rows for direction in passes):
                ordered = _rotated(team, place)
                size = work_of(row, direction)[1] if limits else 0
                answers = _answers(ordered, {"case": case_of(row, direction), "checked": number == 0}, seconds, size)
                for seat in ordered:
                    yield Turn(seat.contender.name, row, direction, answers[seat])


def _answers(team: Sequence[_Seat], request: dict[str, Any], seconds: float, size: int) -> dict[_Seat, dict[str, Any]]:
    """The last answer of each contender for a row: they take turns until each was timed for so long."""
    found = {}
    going = list(team)
    while going:
        for seat in going:
            own = size if seat.contender.implementation == "numconv" else 0
            found[seat] = seat.ask(request | {"seconds": seconds / BURSTS, "size": own})
        going = [seat for seat in _rotated(going, 1) if _goes_on(found[seat], seconds)]
    return found


def _goes_on(answer: dict[str, Any], seconds: float) -> bool:
    if "seconds" not in answer or answer["seconds"] > LONG:
        return False
    return bool(answer["calls"] < ENOUGH or answer["calls"] * answer["seconds"] < seconds)


def _rotated(items: Sequence[Any], by: int) -> list[Any]:
    by %= max(len(items), 1)
    return [*items[by:], *items[:by]]


class _Seat:
    """A contender in a round: its process, started again after a crash, so that one row costs one answer."""

    def __init__(self, contender: Contender, stack: contextlib.ExitStack):
        self.contender = contender
        self._stack = stack
        self._start()

    def _start(self) -> None:
        self._worker = self._stack.enter_context(self.contender.start())

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._worker.ask(request)
        except WorkerDiedError as error:
            self._start()
            return {"error": str(error)}
