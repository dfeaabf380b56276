"""`numconv equivariance`: which layers move with their input, and what else they do."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .arguments import natural
from .files import check_file, check_picture

__all__ = ["EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "Measure the equivariance error of layers under shifts, rotations, reflections and scalings."
EXAMPLES = """\
  numconv equivariance                a table of layers and transformations, on a photograph
  numconv equivariance --layers "conv zeros" "p4 conv" --transforms "shift 1" "rotate 90"
  numconv equivariance --json rows.json --plot rows.png
                                      the rows for scripts, and as a picture
  numconv equivariance --data sounds.npy
                                      on your own array [N, C, *S]: sounds, images or volumes"""

_TRANSFORMS = (
    "shift 1", "shift 2", "shift 0.5", "rotate 90", "rotate 180", "rotate 30", "mirror", "scale 1.25", "scale 0.8",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--layers", nargs="+", metavar="LAYER", help="which layers; by default all (--list shows them)")
    parser.add_argument(
        "--transforms", nargs="+", metavar="TRANSFORM", help='such as "shift 0.5", "rotate 30" (degrees), "scale 1.25", mirror'
    )
    parser.add_argument(
        "--data", metavar="DATA", help="photograph (the default), digits, waves, or an .npy file with an array [N, C, *S]"
    )
    parser.add_argument("--seed", type=natural, default=0, help="of the weights (%(default)s)")
    parser.add_argument("--backend", help="compute with this backend, strictly")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table to this file, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as a list of objects")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture; the ending says the format")
    parser.add_argument("--list", action="store_true", help="show the names of the layers and stop")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, and write the files that were asked for."""
    from numconv import equivariance, using
    from numconv.equivariance.operations import OPERATIONS
    from numconv.registry import default_registry

    if arguments.list:
        print("\n".join(OPERATIONS))
        return 0
    if arguments.backend:
        default_registry().on_device(arguments.backend, "cpu", "equivariance")
    for path in (arguments.out, arguments.json, arguments.plot):
        if path is not None:
            check_file(path)
    if arguments.plot:
        check_picture(arguments.plot)
    data = _data(arguments.data, arguments.seed)
    ndim = data.x.ndim - 2
    names = arguments.layers or [name for name, (dimensions, _) in OPERATIONS.items() if ndim in dimensions]
    texts = arguments.transforms or [text for text in _TRANSFORMS if ndim > 1 or not text.startswith("rotate")]
    transforms = [equivariance.parse_transform(text, ndim) for text in texts]
    with using(backend=arguments.backend, accuracy="strict"):
        layers = [equivariance.operation(name, data.x, arguments.seed) for name in names]
        rows = equivariance.measure(layers, data.x, transforms)
    text = f"{data.description}; seed {arguments.seed}\n\n{equivariance.table(rows)}"
    print(text)
    if arguments.out:
        with _whole(arguments.out) as path:
            path.write_text(text + "\n")
    if arguments.json:
        with _whole(arguments.json) as path:
            path.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")
    if arguments.plot:
        with _whole(arguments.plot) as path:
            equivariance.plot(rows, path)
    return 0


def _data(source: str | None, seed: int) -> Any:
    """The data asked for; by default the photograph, or what needs no package."""
    from numconv.equivariance.data import missing_packages, read

    if source is None:
        missing = missing_packages("photograph")
        if missing:
            print(
                f'numconv equivariance: no photograph without {" and ".join(missing)} (pip install "numconv-nd[demo]"): '
                "random waves instead",
                file=sys.stderr,
            )
        source = "waves" if missing else "photograph"
    return read(source, seed)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Where to write what then replaces `path` as a whole."""
    temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
