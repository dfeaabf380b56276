"""Models and trainings in files: safetensors, with a description in the metadata. Nothing that a file says is executed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from numconv import __version__
from numconv.errors import BackendUnavailableError, NumconvError, ProblemError

from .devices import namespace, to_host
from .layer import Array, Layer, from_config

__all__ = ["FileError", "check_path", "describe", "fill", "load", "read", "save", "write"]

FORMAT = 1
_KEY = "numconv.nn"


class FileError(NumconvError):
    """A file cannot be read as a model or a checkpoint."""


def save(model: Layer, path: str | Path) -> None:
    """Write a model to a file: its configuration, parameters and state.

    Parameters
    ----------
    model : Layer
        Built.
    path : path
        A safetensors file, replaced as a whole.

    Raises
    ------
    ProblemError
        If the model was not built.
    BackendUnavailableError
        Without the package safetensors.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from numconv import nn
    >>> model = nn.Sequential(nn.Linear(2)).build((3,))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     nn.save(model, f"{folder}/model.safetensors")
    ...     again = nn.load(f"{folder}/model.safetensors")
    >>> bool((again.parameters["0.w"] == model.parameters["0.w"]).all())
    True
    """
    write(Path(path), "model", model.parameters | model.state, describe(model))


def load(path: str | Path, like: Array = None) -> Layer:
    """The model in a file that `save` wrote.

    Parameters
    ----------
    path : path
    like : array, optional
        An array of the library and on the device where the parameters are to live; NumPy by default.

    Returns
    -------
    Layer

    Raises
    ------
    FileError
        If it is no such file.
    BackendUnavailableError
        Without the package safetensors.
    """
    arrays, header = read(Path(path), "model")
    model = from_config(header["config"])
    model.build(header["shape"], dtype=header["dtype"], like=like)
    fill(model.parameters | model.state, arrays, f"load {path}")
    return model


def describe(model: Layer) -> dict[str, Any]:
    """A model without its arrays, as plain data."""
    if model._built is None:
        raise ProblemError("the model was not built; call model.build(shape) first")
    return {"config": model.config, "shape": list(model._built.shape), "dtype": model._built.dtype}


def fill(ours: Mapping[str, Array], arrays: Mapping[str, np.ndarray[Any, Any]], what: str) -> None:
    """Set our arrays in place to those of a file; checked before any of them changes."""
    if set(ours) != set(arrays):
        raise FileError(f"{what}: the file has the arrays {', '.join(sorted(arrays))}, and needed are {', '.join(sorted(ours))}")
    for name, array in ours.items():
        if array.shape != arrays[name].shape or array.dtype != arrays[name].dtype:
            raise FileError(
                f"{what}: {name} is {arrays[name].dtype} {arrays[name].shape} in the file, and {array.dtype} {array.shape} here"
            )
    for name, array in ours.items():
        array[...] = namespace(array).asarray(arrays[name])


def check_path(path: Path) -> None:
    """Raise, before much is computed, what `write` would: without the folder of the file, or the package."""
    _safetensors()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, and a file is to be written: give a name in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}; make it first")


def write(path: Path, kind: str, arrays: Mapping[str, Array], header: Mapping[str, Any]) -> None:
    """Replace the file at once: who reads it finds the old one or the new one, also after a crash."""
    safetensors = _safetensors()
    check_path(path)
    about = json.dumps({"format": FORMAT, "kind": kind, "numconv": __version__, **header})
    content = safetensors.numpy.save({name: np.ascontiguousarray(to_host(a)) for name, a in arrays.items()}, {_KEY: about})
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read(path: Path, kind: str) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """The arrays and the description in a file of this kind."""
    safetensors = _safetensors()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, and a file is to be read")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get(_KEY, "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except safetensors.SafetensorError as error:
        raise FileError(f"{path} is no whole safetensors file, perhaps truncated: {error}") from error
    except ValueError as error:
        raise FileError(f"{path} was not written by numconv.nn: its metadata {_KEY!r} is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise FileError(f"{path} was not written by numconv.nn: its metadata has no {_KEY!r}")
    if header.get("format") != FORMAT:
        raise FileError(
            f"{path} has format {header.get('format')}, written by numconv {header.get('numconv')}, and numconv {__version__} "
            f"reads format {FORMAT}; read it with that version"
        )
    if header.get("kind") != kind:
        raise FileError(f"{path} holds a {header.get('kind')}, and a {kind} is asked for")
    if missing := sorted({"config", "shape", "dtype"} - set(header)):
        raise FileError(f"{path} was not written by numconv.nn: its metadata does not say {', '.join(missing)}")
    return arrays, header


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise BackendUnavailableError(
            "models are kept in files of the package safetensors: pip install 'numconv-nd[nn]'"
        ) from error
    return safetensors
