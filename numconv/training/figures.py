"""What goes to a folder: the learning curve, the confusion matrix, the first kernels, the model and the result."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from numconv import nn
from numconv.media import MissingPackageError
from numconv.media.saving import new_file

from .training import Result

__all__ = ["check_file", "check_folder", "write_json", "write_result"]

_SHOWN = 32
"""Kernels."""


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder, made if it is not there; MissingPackageError if something could not be written later."""
    for package, extra in (("matplotlib", "plot"), ("safetensors", "nn")):
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(
                f'figures and models are written by packages of which {package} is not installed: pip install "numconv-nd[{extra}]"'
            )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_file(path: str | os.PathLike[str]) -> None:
    """Make the folder of a file that is to be written later; IsADirectoryError if a folder has its name."""
    if Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder, and a file is to be written: give a name in it")
    Path(path).parent.mkdir(parents=True, exist_ok=True)


def write_json(result: Result, path: str | os.PathLike[str]) -> None:
    """The result as JSON."""
    with new_file(Path(path)) as temporary:
        temporary.write_text(json.dumps(result.as_dict(), indent=1) + "\n", encoding="utf-8")


def write_result(result: Result, folder: str | os.PathLike[str]) -> list[Path]:
    """Write everything to a folder.

    Parameters
    ----------
    result : Result
        From `train`.
    folder : path-like
        Made if it is not there.

    Returns
    -------
    list of Path
        learning_curve.png, confusion.png, first_layer.png, model.safetensors, result.json.

    Raises
    ------
    MissingPackageError
        If matplotlib is not installed.
    """
    folder = check_folder(folder)
    paths = [
        folder / name for name in ("learning_curve.png", "confusion.png", "first_layer.png", "model.safetensors", "result.json")
    ]
    nn.save(result.model, paths[3])  # what cannot be made again comes first
    write_json(result, paths[4])
    drawn = (_draw_curve, _draw_confusion, _draw_kernels)
    for path, draw in zip(paths, drawn, strict=False):
        _draw(result, path, draw)
    return paths


def _text(name: str) -> str:
    """The name of a folder as matplotlib takes it: no formulas, and escapes for bytes that are no text."""
    return name.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")


def _draw(result: Result, path: Path, draw: Any) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    draw(result, figure)
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _draw_curve(result: Result, figure: Any) -> None:
    epochs = np.arange(1, len(result.history.loss) + 1)
    loss, accuracy = figure.subplots(1, 2)
    loss.semilogy(epochs, result.history.loss)
    loss.set(xlabel="epoch", ylabel="loss", title="loss on the training data")
    accuracy.plot(epochs, result.history.accuracy, label="training, while learning")
    accuracy.axhline(result.test_accuracy, color="tab:red", linestyle="--", label=f"test, at the end: {result.test_accuracy:.1%}")
    accuracy.set(xlabel="epoch", title="accuracy", ylim=(0, 1.02))
    accuracy.legend(frameon=False)


def _draw_confusion(result: Result, figure: Any) -> None:
    rates = result.confusion / np.maximum(result.confusion.sum(axis=1, keepdims=True), 1)
    ax = figure.subplots()
    image = ax.imshow(rates, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="part of the true class")
    ax.set(xlabel="found", ylabel="true class", title=f"{_text(result.task.name)}: test accuracy {result.test_accuracy:.1%}")
    if len(rates) <= 30:
        names = [_text(name) for name in result.task.classes]
        ax.set_xticks(range(len(rates)), names, rotation=90)
        ax.set_yticks(range(len(rates)), names)
    if len(rates) <= 12:
        for (i, j), count in np.ndenumerate(result.confusion):
            ax.text(j, i, count, ha="center", va="center", color="white" if rates[i, j] > 0.5 else "black")


def _draw_kernels(result: Result, figure: Any) -> None:
    """The kernels of the first layer that has any: as curves, or as pictures, of a video one frame beside the other."""
    name, w = next(
        ((name, array) for name, array in result.model.parameters.items() if array.ndim > 2), ("none", np.zeros((1, 1, 1)))
    )
    w = w[:_SHOWN]
    grid = figure.subplots(-(-len(w) // 8), 8, squeeze=False).ravel()
    limit = float(np.abs(w).max()) or 1.0
    for ax in grid:
        ax.axis("off")
    for ax, kernel in zip(grid, w, strict=False):
        if w.ndim == 3:
            ax.plot(kernel.T, linewidth=0.8)
            ax.set_ylim(-limit, limit)
        elif w.ndim == 4 and len(kernel) == 3:
            ax.imshow((kernel.transpose(1, 2, 0) / limit + 1) / 2)
        else:
            ax.imshow(np.concatenate(list(kernel.reshape(-1, *w.shape[-2:])), axis=1), cmap="RdBu_r", vmin=-limit, vmax=limit)
    figure.suptitle(f"{_text(result.task.name)}: kernels {name}, {list(w.shape[1:])}")
