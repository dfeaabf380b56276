"""`numconv train`: a folder of labelled sounds, images or videos -> a network and its accuracy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .arguments import count, duration

__all__ = ["EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "Train a network on a folder of labelled sounds, images or videos, and test it."
EXAMPLES = """\
  numconv train FOLDER                subfolders are the classes; a part of the files is held out to test on
  numconv train FOLDER --test FOLDER2 --json result.json
                                      test on another folder; accuracy, confusion and more go to a file
  numconv train voices --out trained  a named example (digits, shapes, voices); figures and model go to a folder
  numconv train FOLDER --model small.toml --epochs 50 --checkpoint state.safetensors --resume
                                      one's own layers; goes on where it was stopped"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("data", metavar="FOLDER", help="a folder whose subfolders are the classes, or: digits, shapes, voices")
    parser.add_argument(
        "--test", type=Path, metavar="FOLDER2", help="a folder to test on, with the same subfolders or some of them"
    )
    parser.add_argument("--held-out", type=float, metavar="PART", help="without --test: how much of each class is held out (0.2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write accuracy, parameters, seconds, classes, confusion here")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write figures, model.safetensors and result.json here")
    how = parser.add_argument_group("how to train; by default all suits the data")
    how.add_argument("--model", type=Path, metavar="TOML", help="layers, one table [[model]] each, and any of the settings below")
    how.add_argument("--epochs", type=count, metavar="N", help="how often to go through the data")
    how.add_argument("--batch-size", type=count, metavar="N", help="samples in a step (32)")
    how.add_argument("--rate", type=float, help="step size of AdamW (0.003)")
    how.add_argument("--shift", type=float, metavar="PART", help="samples move at random by this part of each axis (0.125)")
    how.add_argument("--seed", type=int, help="of the split, the weights and the order of samples (0)")
    how.add_argument("--checkpoint", type=Path, metavar="FILE", help="write the state of the training here after each epoch")
    how.add_argument("--resume", action="store_true", help="go on from the checkpoint, if there is one")
    how.add_argument("--backend", help="compute with this backend, strictly; where it is one of a GPU, model and batches go there")
    how.add_argument("--threads", type=count, metavar="N", help="number of threads of a CPU backend")
    limits = parser.add_argument_group("what files are brought to at most; by default what most of them have")
    limits.add_argument("--max-rate", type=count, metavar="HZ", help="sounds: samples a second (16000)")
    limits.add_argument("--max-seconds", type=duration, metavar="S", help="sounds: length (4)")
    limits.add_argument("--max-side", type=count, metavar="PIXELS", help="images (64) and videos (32): longer side")
    limits.add_argument("--max-frames", type=count, metavar="N", help="videos: frames (16)")


def run(arguments: argparse.Namespace) -> int:
    """Train, print, and write what is asked for."""
    import numconv
    from numconv import training
    from numconv.training import figures

    settings = training.read_settings(arguments.model) if arguments.model else training.Settings()
    settings = settings.changed(**{name: getattr(arguments, name) for name in ("epochs", "batch_size", "rate", "shift", "seed")})
    if arguments.resume and arguments.checkpoint is None:
        raise numconv.ProblemError("--resume goes on from a file: give --checkpoint FILE")
    for path in (arguments.json, arguments.checkpoint):
        if path:
            figures.check_file(path)
    if arguments.out:
        figures.check_folder(arguments.out)
    with numconv.using(backend=arguments.backend, threads=arguments.threads):
        task = _task(arguments, settings.seed)
        print(training.describe_task(task), flush=True)
        like = training.array_for(arguments.backend)
        model = training.build_model(task, settings, like)
        print(f"\n{model.summary()}\n", flush=True)
        result = training.train(
            task,
            settings,
            model=model,
            checkpoint=arguments.checkpoint,
            resume=arguments.resume,
            progress=sys.stderr.isatty(),
            like=like,
        )
    print(f"\n{training.describe_result(result)}")
    if arguments.json:
        figures.write_json(result, arguments.json)
    if arguments.out:
        print("\n" + "\n".join(map(str, figures.write_result(result, arguments.out))))
    return 0


def _task(arguments: argparse.Namespace, seed: int) -> Any:
    """The example of this name, or the folder; a path such as ./digits is always a folder."""
    import numconv
    from numconv import training

    names = ("max_rate", "max_seconds", "max_side", "max_frames")
    limits = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.data not in training.EXAMPLES:
        return training.folder_task(
            arguments.data,
            arguments.test,
            held_out=arguments.held_out,
            seed=seed,
            limits=limits,
            progress=_counter(),
        )
    if arguments.test:
        raise numconv.ProblemError(f"{arguments.data} is an example that brings its own test data: leave out --test")
    if limits:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in limits)
        raise numconv.ProblemError(f"{arguments.data} is an example whose samples have one form: leave out {flags}")
    return training.example_task(arguments.data, held_out=arguments.held_out, seed=seed)


def _counter() -> Callable[[], object]:
    """Counts files on stderr while they are read, where that is a terminal, tqdm is installed and the reading takes long."""
    try:
        from tqdm import tqdm
    except ImportError:
        return lambda: None
    update: Callable[[], object] = tqdm(desc="reading", unit=" files", delay=1, leave=False, disable=None).update
    return update
