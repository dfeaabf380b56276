"""`numconv classify`: files that nobody labelled -> their classes, by a network of `numconv train`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .arguments import count

__all__ = ["EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "Tell the classes of sounds, images or videos by a trained network."
EXAMPLES = """\
  numconv classify trained new.wav other.wav
                                      by the network that `numconv train FOLDER --out trained` wrote"""

_SHOWN = 3
"""Classes of a file."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("trained", type=Path, metavar="TRAINED", help="a folder that `numconv train --out` wrote")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="sounds, images or videos, as it learned from")
    parser.add_argument("--backend", help="compute with this backend, strictly")
    parser.add_argument("--threads", type=count, metavar="N", help="number of threads of a CPU backend")


def run(arguments: argparse.Namespace) -> int:
    """Print a line each; a file that cannot be read is told on stderr, and the others follow."""
    import numconv
    from numconv import media, training
    from numconv.registry import default_registry

    if arguments.backend:
        default_registry().on_device(arguments.backend, "cpu", "classify")
    classifier = training.load_classifier(arguments.trained)
    width = max(len(str(path)) for path in arguments.files)
    code = 0
    with numconv.using(backend=arguments.backend, threads=arguments.threads):
        for path in arguments.files:
            try:
                found = list(classifier.probabilities(path).items())
            except (media.MediaError, OSError) as error:
                print(f"numconv classify: {error}", file=sys.stderr)
                code = 1
                continue
            print(f"{path!s:{width}}  {', '.join(f'{name} {likely:.1%}' for name, likely in found[:_SHOWN])}", flush=True)
    return code
