"""What was measured, as plain data that is kept in a file."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
import os
import platform
import reprlib
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numconv import __version__
from numconv.errors import NumconvError, ProblemError
from numconv.information import machine, versions

from .measuring import Contender, Turn, turns
from .rows import Row, work_of

__all__ = ["OURS", "Measurement", "Results", "geometric_mean", "joined", "load", "measure", "save"]

OURS = "numconv"
FORMAT = 1
LIMITS = ("multiply_adds", "copies")


@dataclass(frozen=True)
class Measurement:
    """One pass of one row.

    Attributes
    ----------
    name, group, direction, problem, dtype : str
        Of the row; `direction` is "forward" or "backward", `problem` the text form of its forward problem.
    flops, bytes : int
        Operations, and bytes read or written at least once.
    variant : str
        The backend and the implementation of numconv.
    seconds : mapping of str to list of float
        By contender, the median of the calls of each round; NaN where a round failed.
    reasons : mapping of str to str
        Why a contender has no figure.
    """

    name: str
    group: str
    direction: str
    problem: str
    dtype: str
    flops: int
    bytes: int
    variant: str
    seconds: Mapping[str, Sequence[float]]
    reasons: Mapping[str, str]
    multiply_adds: float
    """FLOP/s that the machine reached at most, in this dtype, in any round of any row; NaN where the backend cannot measure it."""
    copies: float
    """Bytes a second, in copies of this size, in any round."""

    @property
    def ours(self) -> float:
        """Seconds of numconv: the median of the rounds; NaN where it failed."""
        return self.median(OURS)

    @property
    def floor(self) -> float:
        """Seconds in which the direct algorithm could be done at most rates: its operations, or its bytes if that takes longer."""
        return max(self.flops / self.multiply_adds, self.bytes / self.copies)

    def median(self, contender: str) -> float:
        """Its seconds: the median of the rounds; NaN without any."""
        return _median(self.seconds.get(contender, ()))

    def ratio(self, peer: str) -> float:
        """The median over the rounds of the peer's seconds over numconv's: above 1, numconv is faster. NaN without both."""
        pairs = zip(self.seconds.get(peer, ()), self.seconds.get(OURS, ()), strict=False)
        return _median([theirs / mine for theirs, mine in pairs])

    def best_peer(self) -> str | None:
        """The peer with the lowest median; None without any."""
        found = {peer: self.median(peer) for peer in self.seconds if peer != OURS}
        found = {peer: seconds for peer, seconds in found.items() if not math.isnan(seconds)}
        return min(found, key=found.__getitem__) if found else None


@dataclass(frozen=True)
class Results:
    """A run: measurements, with what there is to know about how they were made.

    Attributes
    ----------
    version, date, rounds, seconds, machine, peers
        Of numconv; when it ended (UTC); how often and how long each row was timed; processor, cores and packages; the versions of
        the peers.
    measurements : tuple of Measurement
        In the order of the rows.
    """

    version: str
    date: str
    rounds: int
    seconds: float
    machine: Mapping[str, str]
    peers: Mapping[str, str]
    measurements: tuple[Measurement, ...]

    @property
    def passes(self) -> list[str]:
        """Those that were measured."""
        return list(dict.fromkeys(each.direction for each in self.measurements))

    def of(self, direction: str) -> list[Measurement]:
        """The measurements of one pass."""
        return [each for each in self.measurements if each.direction == direction]


def measure(
    contenders: Sequence[Contender],
    versions: Mapping[str, str],
    rows: Sequence[Row],
    passes: Sequence[str],
    *,
    rounds: int,
    seconds: float,
    progress: Callable[[Turn], None],
) -> Results:
    """Time numconv, the first contender, and its peers, and gather what they answer.

    Parameters
    ----------
    contenders, rows, passes, rounds, seconds
        As for `turns`; the first contender is called ``numconv``.
    versions : mapping
        Of the contenders, as `installed` gives them.
    progress : callable
        Called after each turn.
    """
    gathered = {(row.name, direction): _Gathered() for row in rows for direction in passes}
    for turn in turns(contenders, rows, passes, rounds=rounds, seconds=seconds, limits=True):
        gathered[turn.row.name, turn.direction].add(turn)
        progress(turn)
    _share_peaks(gathered, rows)
    return Results(
        version=__version__,
        date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        rounds=rounds,
        seconds=seconds,
        machine=_here(),
        peers={name: version for name, version in versions.items() if name != OURS},
        measurements=tuple(gathered[row.name, direction].measurement(row, direction) for row in rows for direction in passes),
    )


def _here() -> dict[str, str]:
    """What speed depends on, besides numconv: nothing that tells one of two equal machines from the other."""
    about = dict(machine()) | dict(versions()) | {"Python": platform.python_version()}
    found = {name: about[name] for name in ("processor", "features", "cores", "Python", "NumPy", "Numba", "llvmlite", "SciPy")}
    held = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.endswith("NUM_THREADS")]
    return found | ({"held to": ", ".join(held)} if held else {})


def _share_peaks(gathered: Mapping[tuple[str, str], _Gathered], rows: Sequence[Row]) -> None:
    """The rate of multiply-adds is the machine's, not the row's: the highest that was seen in each dtype."""
    dtypes = {row.name: row.problem.dtype for row in rows}
    for dtype in set(dtypes.values()):
        own = [each.limits for (name, _), each in gathered.items() if dtypes[name] == dtype]
        peak = max(limits["multiply_adds"] for limits in own)
        for limits in own:
            limits["multiply_adds"] = peak


@dataclass
class _Gathered:
    """The answers for one pass of a row, as they come."""

    variant: str = ""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LIMITS, 0.0))

    def add(self, turn: Turn) -> None:
        answer = turn.answer
        if "declined" in answer:
            self.reasons[turn.contender] = answer["declined"]
            return
        if "error" in answer:
            self.reasons[turn.contender] = answer["error"]
        self.seconds.setdefault(turn.contender, []).append(answer.get("seconds", math.nan))
        if turn.contender == OURS:
            self.variant = answer.get("variant", self.variant)
            for name, value in self.limits.items():
                self.limits[name] = max(answer.get(name, value), value)

    def measurement(self, row: Row, direction: str) -> Measurement:
        flops, size = work_of(row, direction)
        about = (row.name, row.group, direction, str(row.problem), row.problem.dtype, flops, size)
        return Measurement(*about, self.variant, self.seconds, self.reasons, *(self.limits[name] or math.nan for name in LIMITS))


def save(results: Results, path: Path) -> None:
    """Write a file of JSON, whole or not at all."""
    data = {"format": FORMAT} | dataclasses.asdict(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".part", delete=False) as file:
        try:
            json.dump(_without_nan(data), file, indent=1)
            file.write("\n")
        except BaseException:
            Path(file.name).unlink()
            raise
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def load(path: Path) -> Results:
    """Read what `save` wrote.

    Raises
    ------
    NumconvError
        If the file holds something else.
    OSError
        If it cannot be read.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}, which this version reads")
        measurements = tuple(Measurement(**_with_nan(fields)) for fields in data.pop("measurements"))
        results = Results(**data, measurements=measurements)
        _check_fields(results)
        for each in measurements:
            _check_fields(each)
        for name in ("processor", "cores"):
            results.machine[name]
        return results
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NumconvError(f"{path} holds no results of `numconv bench --save`: {error}") from error


def _check_fields(part: Results | Measurement) -> None:
    """Raise TypeError unless each field is what its type says."""
    for each in dataclasses.fields(part):
        if not _fits(getattr(part, each.name), str(each.type)):
            raise TypeError(f"its {each.name} is {reprlib.repr(getattr(part, each.name))}")


def _fits(value: Any, kind: str) -> bool:
    """Whether a value is of a type, by the name that it has here: numbers count or last, and are above 0 or not known."""
    if kind in ("int", "float"):
        return isinstance(value, int if kind == "int" else int | float) and not isinstance(value, bool) and not value <= 0
    if kind.startswith("Mapping["):
        inner = kind.removeprefix("Mapping[str, ")[:-1]
        return isinstance(value, dict) and all(isinstance(key, str) and _fits(each, inner) for key, each in value.items())
    if kind.startswith("Sequence["):
        return isinstance(value, list) and all(_fits(each, kind.removeprefix("Sequence[")[:-1]) for each in value)
    return isinstance(value, str if kind == "str" else tuple)


def joined(runs: Sequence[Results]) -> Results:
    """Runs of several rows or passes as one.

    Raises
    ------
    ProblemError
        If they were not made alike, or measured the same.
    """
    first, rows = runs[0], [row for run in runs for row in run.measurements]
    alike = ("version", "rounds", "seconds", "machine", "peers")
    differing = [name for name in alike if any(getattr(run, name) != getattr(first, name) for run in runs)]
    if differing:
        raise ProblemError(f"these runs are none together: they differ in {', '.join(differing)}; --compare shows two of them")
    twice = [key for key, count in Counter((row.name, row.direction) for row in rows).items() if count > 1]
    if twice:
        raise ProblemError(f"several of these runs have the row {' '.join(twice[0])}; give one of them")
    return dataclasses.replace(first, date=max(run.date for run in runs), measurements=tuple(rows))


def geometric_mean(ratios: Sequence[float]) -> float:
    """Of those that are numbers; NaN without any."""
    found = [ratio for ratio in ratios if not math.isnan(ratio)]
    return statistics.geometric_mean(found) if found else math.nan


def _median(values: Sequence[float]) -> float:
    found = [value for value in values if not math.isnan(value)]
    return statistics.median(found) if found else math.nan


def _without_nan(value: Any) -> Any:
    """None for NaN, which is no JSON."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    return [_without_nan(each) for each in value] if isinstance(value, list | tuple) else value


def _with_nan(fields: dict[str, Any]) -> dict[str, Any]:
    seconds = {name: [math.nan if each is None else each for each in values] for name, values in fields["seconds"].items()}
    limits = {name: math.nan if fields[name] is None else fields[name] for name in LIMITS}
    return fields | limits | {"seconds": seconds}
