"""`numconv lecture`: the claims about convolutional networks, measured."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .arguments import natural
from .files import check_file

__all__ = ["EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "Why networks for sound and images are made of convolutions: each claim measured."
EXAMPLES = """\
  numconv lecture                     all twelve chapters (minutes); page and pictures go to numconv-lecture
  numconv lecture --quick             less data and shorter trainings (half a minute)
  numconv lecture --chapter 4 5 --json figures.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from numconv.lecture import CLAIMS

    parser.add_argument(
        "--out", type=Path, default=Path("numconv-lecture"), metavar="FOLDER", help="where page and pictures go (%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="less data and shorter trainings")
    parser.add_argument(
        "--chapter", type=int, nargs="+", choices=range(1, CLAIMS + 1), default=range(1, CLAIMS + 1), metavar="N", help="only these"
    )
    parser.add_argument("--backend", help="compute with this backend, strictly")
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="for weights, splits and permutations (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument(
        "--voices", type=Path, metavar="FOLDER", help="recorded voices, a subfolder a language (those of the checkout)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Teach; 1 if a claim does not hold, or packages are missing."""
    from numconv import demo, lecture

    missing = demo.missing_packages()
    if missing:
        print(f'numconv lecture needs {", ".join(missing)}: pip install "numconv-nd[demo]"', file=sys.stderr)
        return 1
    if arguments.json:
        check_file(arguments.json)
    figures = lecture.run(
        arguments.out,
        arguments.chapter,
        backend=arguments.backend,
        seed=arguments.seed,
        quick=arguments.quick,
        voices=arguments.voices,
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    failed = [chapter["number"] for chapter in figures["chapters"] if not chapter["holds"]]
    if failed:
        print(f"numconv lecture: of the claims, {', '.join(map(str, failed))} did not hold in this run", file=sys.stderr)
    return 1 if failed else 0
