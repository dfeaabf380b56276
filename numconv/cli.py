"""The command ``numconv``: it finds the commands, parses, and turns errors into messages and exit codes."""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from . import __version__, commands
from .errors import NumconvError

__all__ = ["main"]

_DESCRIPTION = "N-dimensional convolutions and their gradients on NumPy arrays."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; by default those of the process. Without any it prints its help.

    Returns
    -------
    int
        0, or 1 after an error that the user can mend; bad usage raises SystemExit(2), as argparse does. As shells count: 130 after
        Ctrl-C, 141 where nobody reads any more.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.name is None:
        parser.print_help()
        return 0
    try:
        with _log_to_stderr(), _printable():
            code: int = arguments.run(arguments)
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads has seen enough, as `head` has; nothing is left to be written at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (NumconvError, OSError) as error:
        print(f"numconv {arguments.name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"numconv {arguments.name}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    modules = {name: importlib.import_module(f".{name}", commands.__name__) for name in commands.NAMES}
    look = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="numconv",
        description=_DESCRIPTION,
        epilog=_examples(module.EXAMPLES for module in modules.values()),
        formatter_class=look,
    )
    parser.add_argument("--version", action="version", version=f"numconv {__version__}")
    subparsers = parser.add_subparsers(dest="name", metavar=f"{{{','.join(modules)}}}")
    for name, module in modules.items():
        summary = module.SUMMARY
        sub = subparsers.add_parser(
            name, help=summary, description=summary, epilog=_examples([module.EXAMPLES]), formatter_class=look
        )
        sub.set_defaults(run=module.run)
        module.add_arguments(sub)
    return parser


def _examples(texts: Iterable[str]) -> str:
    return "\n".join(["examples:", *texts])


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


@contextmanager
def _printable() -> Iterator[None]:
    """Print escapes for what the terminal's encoding lacks: file names may hold any bytes, names of classes any letters."""
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    errors = stream.errors
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        stream.reconfigure(errors=errors)
