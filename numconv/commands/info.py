"""`numconv info`: what is installed, and what this machine is."""

from __future__ import annotations

import argparse

__all__ = ["EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "Show versions, processor, threads, caches and backends."
EXAMPLES = """\
  numconv info                        versions, processor, threads, caches, and every backend with its reason
  numconv info --implementations      also what each backend offers
  numconv info --measure              also what the machine can do: multiply-adds, bandwidth"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--implementations", action="store_true", help="also list what each backend offers")
    parser.add_argument("--measure", action="store_true", help="also measure the machine: multiply-adds, bandwidth (seconds)")


def run(arguments: argparse.Namespace) -> int:
    """Print the description."""
    from numconv.information import describe

    print(describe(arguments.implementations, arguments.measure))
    return 0
