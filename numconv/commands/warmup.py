"""`numconv warmup`: compile ahead of time."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "Compile and cache the kernels ahead of time."
EXAMPLES = """\
  numconv warmup --dtype float32 float64
                                      compile the kernels now, so that no later call waits for it"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--dtype", nargs="+", default=["float32"], metavar="DTYPE", help="for which dtypes (float32)")
    parser.add_argument("--backend", help="only this backend; by default every one that is chosen automatically")


def run(arguments: argparse.Namespace) -> int:
    """Compile, and print what each problem took."""
    from numconv.warming import warmup

    start = time.perf_counter()
    with _progress() as progress:
        rows = warmup(arguments.dtype, backend=arguments.backend, progress=progress)
    print(f"{'backend':12s}{'algorithm':14s}{'seconds':>8s}  problem")
    for row in rows:
        print(f"{row.backend:12s}{row.algorithm:14s}{row.seconds:8.2f}  {row.problem}")
    print(f"{len(rows)} problems run once in {time.perf_counter() - start:.1f} s")
    return 0


@contextmanager
def _progress() -> Iterator[Callable[[Any], None]]:
    """A bar on stderr where that is a terminal and tqdm is installed, else one line each."""
    if not sys.stderr.isatty() or importlib.util.find_spec("tqdm") is None:
        yield lambda row: print(f"{row.backend} {row.algorithm}: {row.problem}", file=sys.stderr)
        return
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    with logging_redirect_tqdm([logging.getLogger("numconv")]), tqdm(desc="warmup", unit=" problems") as bar:

        def advance(row: Any) -> None:
            bar.set_postfix_str(f"{row.backend} {row.algorithm}")
            bar.update()

        yield advance
