"""The command ``numconv``: info, demo, warmup. It parses, calls and prints; what it prints is computed elsewhere."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import __version__
from .errors import NumconvError

__all__ = ["main"]

_DESCRIPTION = "N-dimensional convolutions and their gradients on NumPy arrays."
_EXAMPLES = """\
examples:
  numconv info                        versions, processor, threads, caches, and every backend with its reason
  numconv info --implementations      also what each backend offers
  numconv info --measure              also what the machine can do: multiply-adds, bandwidth
  numconv demo                        a tour on real sound, images and video; pictures go to numconv-demo
  numconv demo --backend reference    the same with one backend, strictly
  numconv warmup --dtype float32 float64
                                      compile the kernels now, so that no later call waits for it
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; by default those of the process.

    Returns
    -------
    int
        0, or 1 after an error that the user can mend; bad usage raises SystemExit(2), as argparse does.
    """
    arguments = _parser().parse_args(argv)
    try:
        with _log_to_stderr():
            code: int = arguments.command(arguments)
        return code
    except (NumconvError, OSError) as error:
        print(f"numconv {arguments.name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"numconv {arguments.name}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="numconv", description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"numconv {__version__}")
    commands = parser.add_subparsers(dest="name", required=True, metavar="{info,demo,warmup}")

    def add(name: str, command: Callable[[Any], int], summary: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
        sub.set_defaults(command=command)
        return sub

    info = add("info", _info, "Show versions, processor, threads, caches and backends.", "numconv info --implementations")
    info.add_argument("--implementations", action="store_true", help="also list what each backend offers")
    info.add_argument("--measure", action="store_true", help="also measure the machine: multiply-adds, bandwidth (seconds)")

    demo = add("demo", _demo, "A tour on real sound, images and video.", "numconv demo --out pictures --threads 2")
    demo.add_argument(
        "--out", type=Path, default=Path("numconv-demo"), metavar="FOLDER", help="where pictures and sounds go (%(default)s)"
    )
    demo.add_argument("--backend", help="compute with this backend, strictly")
    demo.add_argument("--threads", type=_count, metavar="N", help="number of threads of a CPU backend")
    demo.add_argument("--quick", action="store_true", help="less data, for a slow machine or backend")

    warmup = add("warmup", _warmup, "Compile and cache the kernels ahead of time.", "numconv warmup --dtype float32 float64")
    warmup.add_argument("--dtype", nargs="+", default=["float32"], metavar="DTYPE", help="for which dtypes (float32)")
    warmup.add_argument("--backend", help="only this backend; by default every one that is chosen automatically")
    return parser


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


@contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Show what numconv logs, above all the kernels that it compiles, as plain lines."""
    logger = logging.getLogger("numconv")
    handler, level = logging.StreamHandler(), logger.level
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _info(arguments: argparse.Namespace) -> int:
    from .information import describe

    print(describe(arguments.implementations, arguments.measure))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from . import demo

    missing = demo.missing_packages()
    if missing:
        print(f'numconv demo needs {", ".join(missing)}: pip install "numconv-nd[demo]"', file=sys.stderr)
        return 1
    demo.run(arguments.out, backend=arguments.backend, threads=arguments.threads, quick=arguments.quick)
    return 0


def _warmup(arguments: argparse.Namespace) -> int:
    from .warming import warmup

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
    """A bar on stderr where tqdm is installed, else one line each."""
    if importlib.util.find_spec("tqdm") is None:
        yield lambda row: print(f"{row.backend} {row.algorithm}: {row.problem}", file=sys.stderr)
        return
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    with logging_redirect_tqdm([logging.getLogger("numconv")]), tqdm(desc="warmup", unit=" problems") as bar:

        def advance(row: Any) -> None:
            bar.set_postfix_str(f"{row.backend} {row.algorithm}")
            bar.update()

        yield advance
