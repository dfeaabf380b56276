#!/usr/bin/env python3
"""Says which rows became slower from one commit to another, run in turns on this machine, with the noise measured beside them.

    python gate.py main HEAD                                   # every row, both passes: about half an hour
    python gate.py main . --rows dense image11 --pass forward  # the checkout as it is, changes and all; a group and a row
    python gate.py HEAD HEAD                                   # the noise alone: should report nothing

A commit is checked out in a folder of its own; a folder is taken as it is. Each round starts fresh processes for A, for A again
and for B, which time each row one after the other in rotated order. A row is reported if its times are told apart by an exact rank
test that allows for the number of rows, and its ratio exceeds the tolerance and the noise. Packages and entry points are those
of this interpreter, so an installation of numconv is needed. Exit: 0; 1 if a row became slower or failed in B; 2 if nothing could
be measured.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from numconv.benchmarking.measuring import Contender, turns
from numconv.benchmarking.rows import PASSES, Row, select
from numconv.benchmarking.verdicts import Verdict, check_rounds, verdict
from numconv.commands.arguments import count, duration
from numconv.commands.bench import progress_bar
from numconv.errors import NumconvError

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAMES = ("A", "A again", "B")
WORDS = {"slower": 0, "faster": 1, "can't tell": 2, "same": 3}
"""In the order of the report."""


@contextlib.contextmanager
def checkout(what: str) -> Iterator[pathlib.Path]:
    """A folder with the tree of a commit, for a while; or the folder itself."""
    folder = pathlib.Path(what)
    if (folder / "numconv").is_dir():
        yield folder.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="numconv-gate-") as temporary:
        tree = pathlib.Path(temporary) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        done = subprocess.run([*git, "add", "--detach", str(tree), what], capture_output=True, text=True, check=False)
        if done.returncode:
            raise NumconvError(f"{what!r} is neither a commit nor a folder that holds numconv: {done.stderr.strip()}")
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], capture_output=True, check=False)


def contender(name: str, tree: pathlib.Path) -> Contender:
    """numconv of a tree, whatever is installed."""
    return Contender(name, "numconv", environment={"PYTHONPATH": os.pathsep.join([str(tree), str(tree / "backends")])})


def measure(trees: list[pathlib.Path], rows: list[Row], passes: list[str], rounds: int, seconds: float) -> dict:
    """By row and pass, the answers of each contender in each round."""
    contenders = [contender(name, tree) for name, tree in zip(NAMES, trees, strict=True)]
    answers: dict = {(row.name, direction): {name: [] for name in NAMES} for row in rows for direction in passes}
    with progress_bar(len(answers) * len(NAMES) * rounds) as progress:
        for turn in turns(contenders, rows, passes, rounds=rounds, seconds=seconds, limits=False):
            answers[turn.row.name, turn.direction][turn.contender].append(turn.answer)
            progress(turn)
    return answers


def judge(answers: dict, tolerance: float) -> tuple[list[tuple[str, Verdict, str]], list[str]]:
    """Verdicts, the worst first, and what failed. Of each turn the best call counts: what disturbs a call only adds to it."""
    verdicts, failures = [], []
    for (row, direction), by_name in answers.items():
        reasons = {
            name: text for name, each in by_name.items() for one in each if (text := one.get("error") or one.get("declined"))
        }
        if reasons:
            failures += [f"{row} {direction}: {name}: {text}" for name, text in reasons.items()]
            continue
        a, again, b = ([one["best"] for one in by_name[name]] for name in NAMES)
        before, after = by_name["A"][0]["variant"], by_name["B"][0]["variant"]
        variant = before if before == after else f"{before} -> {after}"
        verdicts.append((f"{row} {direction}", verdict(a, again, b, rows=len(answers), tolerance=tolerance), variant))
    return sorted(verdicts, key=lambda each: (WORDS[each[1].word], -each[1].ratio)), failures


def report(verdicts: list[tuple[str, Verdict, str]], failures: list[str]) -> None:
    """One line a row."""
    print(f"{'row':28s} {'verdict':10s} {'B/A':>6s} {'noise':>6s} {'chance':>8s}  implementation")
    for name, each, variant in verdicts:
        print(f"{name:28s} {each.word:10s} {each.ratio:6.3f} {each.noise:6.1%} {each.chance:8.1g}  {variant}")
    for failure in failures:
        print(f"failed: {failure}")
    counts = [f"{sum(each.word == word for _, each, _ in verdicts)} {word}" for word in WORDS]
    print(", ".join([*counts, f"{len(failures)} failed"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A", help="a commit, or a folder with a checkout")
    parser.add_argument("b", metavar="B", help="likewise")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="rows and groups of rows; all by default")
    parser.add_argument("--pass", dest="passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--rounds", type=count, default=8, help="%(default)s")
    parser.add_argument("--seconds", type=duration, default=0.2, help="of calls a row, in turns (%(default)s)")
    parser.add_argument("--tolerance", type=float, default=0.05, help="a change below it is of no interest (%(default)s)")
    options = parser.parse_args()
    try:
        rows = select(options.rows)
        check_rounds(options.rounds, len(rows) * len(options.passes))
        with checkout(options.a) as first, checkout(options.b) as second:
            answers = measure([first, first, second], rows, options.passes, options.rounds, options.seconds)
    except NumconvError as error:
        print(f"gate.py: {error}", file=sys.stderr)
        return 2
    verdicts, failures = judge(answers, options.tolerance)
    report(verdicts, failures)
    return int(bool(failures) or any(each.word == "slower" for _, each, _ in verdicts))


if __name__ == "__main__":
    sys.exit(main())
