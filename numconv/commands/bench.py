"""`numconv bench`: speed on this machine, beside its limits and beside other libraries."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .arguments import count, duration
from .files import check_file, check_picture

__all__ = ["EXAMPLES", "SUMMARY", "add_arguments", "progress_bar", "run"]

SUMMARY = "Measure speed: beside the machine's limits, beside other libraries, beside an earlier run."
EXAMPLES = """\
  numconv bench                       forward convolutions: time, share of the machine's limits, ratio to installed peers
  numconv bench --pass forward backward --rows dense image11 --peer-python ../peers/bin/python --save here.json
                                      a group of rows and a row, both passes, with the peers of another environment
  numconv bench --read here.json --plot pictures
                                      the same table again, and pictures
  numconv bench --read forward.json backward.json --save both.json
                                      passes, or rows, that were measured one after the other, as one run
  numconv bench --compare earlier.json here.json
                                      two runs side by side"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--rows", nargs="+", metavar="NAME", help="rows and groups of rows; all by default. An unknown name lists them"
    )
    parser.add_argument(
        "--pass", dest="passes", nargs="+", choices=["forward", "backward"], default=["forward"], help="which passes (forward)"
    )
    parser.add_argument("--backend", help="compute with this backend, strictly")
    parser.add_argument(
        "--peers", nargs="*", metavar="NAME", help="only these other libraries; without a name, none, as with a backend of a GPU"
    )
    parser.add_argument(
        "--peer-python", default=sys.executable, metavar="PYTHON", help="the interpreter that has the other libraries (this one)"
    )
    parser.add_argument("--rounds", type=count, default=3, metavar="N", help="rounds of all rows (%(default)s)")
    parser.add_argument("--seconds", type=duration, default=0.25, metavar="S", help="of calls a row, in turns (%(default)s)")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="write pictures to this folder")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--read", type=Path, nargs="+", metavar="FILE", help="measure nothing: show a saved file, or several as one"
    )
    instead.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="measure nothing: compare two saved files")


def run(arguments: argparse.Namespace) -> int:
    """Measure, or read, and show; 1 if a row of numconv failed."""
    from numconv.benchmarking import pictures, results, tables
    from numconv.errors import ProblemError

    if arguments.compare and (arguments.save or arguments.plot):
        raise ProblemError("--compare prints a table: it has nothing to --save or to --plot; use --read FILE --plot FOLDER")
    if arguments.compare:
        print(tables.comparison(*map(results.load, arguments.compare)))
        return 0
    if arguments.save:
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        check_file(arguments.save)
    if arguments.plot:
        check_picture()
        arguments.plot.mkdir(parents=True, exist_ok=True)
    found = results.joined([*map(results.load, arguments.read)]) if arguments.read else _measure(arguments)
    print(tables.listing(found))
    if arguments.save:
        results.save(found, arguments.save)
    if arguments.plot:
        for path in pictures.draw(found, arguments.plot):
            print(path)
    return int(any(results.OURS in row.reasons for row in found.measurements))


def _measure(arguments: argparse.Namespace) -> Any:
    from numconv.benchmarking import measuring, results, rows
    from numconv.errors import BackendUnavailableError
    from numconv.registry import default_registry

    device = "cpu" if arguments.backend is None else default_registry().backend(arguments.backend).device
    chosen = rows.select(arguments.rows)
    contenders = [measuring.Contender(results.OURS, "numconv", {"backend": arguments.backend})]
    # The peers compute on the CPU.
    wanted = [] if arguments.peers is None and device == "gpu" else arguments.peers
    contenders += measuring.peers(wanted, arguments.peer_python)
    versions, reasons = measuring.installed(contenders)
    for name, reason in reasons.items():
        if name == results.OURS or arguments.peers:
            raise BackendUnavailableError(reason)
        print(reason, file=sys.stderr)
    contenders = [each for each in contenders if each.name in versions]
    passes = list(dict.fromkeys(arguments.passes))
    with progress_bar(len(chosen) * len(passes) * len(contenders) * arguments.rounds) as progress:
        return results.measure(
            contenders, versions, chosen, passes, rounds=arguments.rounds, seconds=arguments.seconds, progress=progress
        )


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[Any], None]]:
    """A bar on stderr where that is a terminal and tqdm is installed, else nothing."""
    if importlib.util.find_spec("tqdm") is None:
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc="bench", unit=" turns", disable=None) as bar:

        def advance(turn: Any) -> None:
            bar.set_postfix_str(f"{turn.row.name} {turn.direction} {turn.contender}")
            bar.update()

        yield advance
