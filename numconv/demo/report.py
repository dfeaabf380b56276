"""What the tour prints: sections, timed calls, the table at the end; and the list of files it wrote."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numconv as nc

__all__ = ["Report"]

# How the arguments of a function give the two shapes that `numconv.plan` asks for.
_SHAPES: dict[str, Callable[..., tuple[Any, Any]]] = {
    "conv": lambda x, w: (x.shape, w.shape),
    "conv_weight_grad": lambda _, x, w_shape: (x.shape, w_shape),
    "max_pool": lambda x, window: (x.shape, window),
}
_ENOUGH = 0.1
"""Seconds after which a call is not repeated any more; one reading of a short call is mostly chance."""


class Call(NamedTuple):
    """One call: who computed it, and how fast."""

    what: str
    problem: str
    backend: str
    algorithm: str
    seconds: float
    flops: int

    @property
    def speed(self) -> str:
        """Operations a second, in 10^9; pooling counts a comparison as one."""
        return f"{self.flops / self.seconds / 1e9:.2f}"


class Report:
    """Prints as the tour goes on, and remembers calls and files.

    Parameters
    ----------
    folder : Path
        Where files go; made if it is not there.
    stops : int
        Number of sections to come.
    """

    def __init__(self, folder: Path, stops: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.stops = stops
        self.sections = 0
        self.calls: list[Call] = []
        self.files: list[Path] = []

    def section(self, title: str, text: str) -> None:
        """Begin a stop: its title, and in a few words what happens."""
        self.sections += 1
        heading = f"{self.sections}/{self.stops}  {title}"
        print(f"\n{heading}\n{'-' * len(heading)}\n{textwrap.fill(' '.join(text.split()), 110)}", flush=True)

    def line(self, text: str = "") -> None:
        """A result in plain words."""
        print(text, flush=True)

    def run(self, what: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a function of numconv, tell who computed it and how fast, and return its result.

        The first call may compile or load a kernel, so it is not the one that counts.
        """
        result, first = _timed(function, *args, **options)
        seconds = [_timed(function, *args, **options)[1]]
        while len(seconds) < 10 and sum(seconds) < _ENOUGH:
            seconds.append(_timed(function, *args, **options)[1])
        plan = nc.plan(function.__name__, *_SHAPES[function.__name__](*args), args[0].dtype, **options)
        call = Call(what, str(plan.problem), plan.backend, plan.algorithm, min(seconds), plan.problem.flops)
        self.calls.append(call)
        self.line(f"  {what}: {call.problem}")
        text = f"      {call.backend} {call.algorithm}, {call.seconds * 1e3:.3g} ms, {call.speed} GFLOP/s"
        waited = first > 0.05 + 2 * call.seconds
        self.line(text + (f" (the first call, with compiling or loading: {first * 1e3:.0f} ms)" if waited else ""))
        return result

    def file(self, name: str) -> Path:
        """The path of a file to be written."""
        self.files.append(self.folder / name)
        return self.files[-1]

    def finish(self, seconds: float) -> None:
        """The table of all calls, and the files."""
        print("\nAll calls (the best time after the first call)\n----------------------------------------------")
        print(f"{'call':26s}{'backend':11s}{'implementation':16s}{'ms':>10s}{'GFLOP/s':>9s}  problem")
        for call in self.calls:
            who = f"{call.what:26s}{call.backend:11s}{call.algorithm:16s}"
            print(f"{who}{call.seconds * 1e3:10.3f}{call.speed:>9s}  {call.problem}")
        print(f"\nFiles in {self.folder.resolve()}")
        for suffix, kind in ((".png", "pictures"), (".wav", "sounds")):
            names = ", ".join(path.name for path in self.files if path.suffix == suffix)
            print(textwrap.fill(f"{kind}: {names}", 110, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False))
        print(f"\nDone in {seconds:.1f} s.", flush=True)


def _timed(function: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function(*args, **options)
    return result, time.perf_counter() - start
