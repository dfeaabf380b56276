"""`numconv demo`: a tour on real data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .arguments import count

__all__ = ["EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "A tour on real sound, images and video."
EXAMPLES = """\
  numconv demo                        a tour on real sound, images and video; pictures go to numconv-demo
  numconv demo --backend reference    the same with one backend, strictly
  numconv demo --out pictures --threads 2"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--out", type=Path, default=Path("numconv-demo"), metavar="FOLDER", help="where pictures and sounds go (%(default)s)"
    )
    parser.add_argument("--backend", help="compute with this backend, strictly")
    parser.add_argument("--threads", type=count, metavar="N", help="number of threads of a CPU backend")
    parser.add_argument("--quick", action="store_true", help="less data, for a slow machine or backend")


def run(arguments: argparse.Namespace) -> int:
    """Take the tour, or say which packages it needs."""
    from numconv import demo

    missing = demo.missing_packages()
    if missing:
        print(f'numconv demo needs {", ".join(missing)}: pip install "numconv-nd[demo]"', file=sys.stderr)
        return 1
    demo.run(arguments.out, backend=arguments.backend, threads=arguments.threads, quick=arguments.quick)
    return 0
