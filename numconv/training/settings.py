"""How to train: settings, from a TOML file and flags."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from numconv.errors import ProblemError

__all__ = ["Settings", "read_settings"]


@dataclass(frozen=True)
class Settings:
    """How to train. What is None is chosen to suit the data."""

    epochs: int | None = None
    batch_size: int = 32
    rate: float = 3e-3
    """Step size of AdamW; it rises over the first tenth of the training and falls as a cosine."""
    weight_decay: float = 0.1
    shift: float = 0.125
    """How far samples are moved at random, as a part of each axis."""
    seed: int = 0
    """Of the split, the first weights, the order of samples and their shifts."""
    model: tuple[dict[str, Any], ...] | None = None
    """Layers as `numconv.nn.from_config` takes them, without the scores."""

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= least) and (name, value) != ("epochs", None):
                raise ProblemError(f"{name}={value!r}: an integer of at least {least} is asked for")
        for name, from_, most in (("rate", "above", np.inf), ("weight_decay", "of at least", np.inf), ("shift", "of at least", 1)):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 <= value < most) or (from_ == "above" and value == 0):
                raise ProblemError(f"{name}={value!r}: a number {from_} 0 and below {most} is asked for")

    def changed(self, **options: Any) -> Settings:
        """These settings with those options that are not None."""
        return replace(self, **{name: value for name, value in options.items() if value is not None})


def read_settings(path: str | os.PathLike[str]) -> Settings:
    """Settings from a TOML file.

    Parameters
    ----------
    path : path-like
        Its names are those of `Settings`; each layer is a table ``[[model]]`` as `numconv.nn.from_config` takes it. The last layer,
        one score for each class, is added.

    Returns
    -------
    Settings
        Those of the file; the others have their defaults.

    Raises
    ------
    ProblemError
        If the file is no TOML, or has a name that is no setting.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from numconv import training
    >>> text = '''
    ... epochs = 5
    ... [[model]]
    ... layer = "Conv"
    ... channels = 8
    ... window = 3
    ... [[model]]
    ... layer = "GlobalAvgPool"
    ... '''
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "small.toml"
    ...     _ = path.write_text(text)
    ...     settings = training.read_settings(path)
    >>> settings.epochs, [layer["layer"] for layer in settings.model]
    (5, ['Conv', 'GlobalAvgPool'])
    """
    path = Path(path)
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProblemError(f"{path} is no TOML file: {error}") from error
    known = [each.name for each in fields(Settings)]
    if unknown := sorted(set(found) - set(known)):
        raise ProblemError(f"{path}: {', '.join(unknown)} is no setting: {', '.join(known)}")
    if "model" in found:
        if not isinstance(found["model"], list) or not all(isinstance(layer, dict) for layer in found["model"]):
            raise ProblemError(f"{path}: model={found['model']!r}: one table [[model]] for each layer is asked for")
        found["model"] = tuple(found["model"])
    return Settings(**found)
