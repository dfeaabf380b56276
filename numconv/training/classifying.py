"""What `numconv train --out` wrote, and a file that nobody labelled -> its class."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from numconv import media, nn
from numconv.errors import ProblemError

__all__ = ["Classifier", "load_classifier"]


@dataclass(frozen=True)
class Classifier:
    """A trained network, what files become for it, and what its scores stand for."""

    model: nn.Layer
    form: media.Form
    classes: tuple[str, ...]

    def probabilities(self, path: str | os.PathLike[str]) -> dict[str, float]:
        """How likely the network finds each class of a file.

        Parameters
        ----------
        path : path-like
            A sound, an image or a video, as the network learned from; it is brought to their form.

        Returns
        -------
        dict of str to float
            The likeliest class first; they add up to 1.

        Raises
        ------
        MediaError
            If the file cannot be read as what the network takes.
        """
        from scipy.special import softmax

        x = self.form.fit(self.form.load(Path(path)))
        found = softmax(nn.predict(self.model, x[None])[0].astype(np.float64))
        return {self.classes[i]: float(found[i]) for i in np.argsort(-found, kind="stable")}


def load_classifier(folder: str | os.PathLike[str]) -> Classifier:
    """The network in a folder that `numconv train --out` or `write_result` wrote.

    Parameters
    ----------
    folder : path-like
        With result.json and model.safetensors.

    Returns
    -------
    Classifier

    Raises
    ------
    ProblemError
        If it is no such folder.
    FileError
        If the model's file cannot be read.

    Examples
    --------
    An image without light, shown to a network that has not learned anything:

    >>> import json, pathlib, tempfile, numpy as np
    >>> from numconv import media, nn, training
    >>> about = {"kind": "image", "shape": [1, 8, 8], "sample_rate": None, "classes": ["cat", "dog"]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     nn.save(nn.Sequential(nn.GlobalAvgPool(), nn.Linear(2)).build((1, 8, 8)), f"{folder}/model.safetensors")
    ...     _ = pathlib.Path(folder, "result.json").write_text(json.dumps(about))
    ...     media.write_image(f"{folder}/new.png", np.zeros((1, 20, 20)))
    ...     training.load_classifier(folder).probabilities(f"{folder}/new.png")
    {'cat': 0.5, 'dog': 0.5}
    """
    folder = Path(folder)
    files = [folder / name for name in ("result.json", "model.safetensors")]
    for path in files:
        if not path.is_file():
            raise ProblemError(f"{folder} has no {path.name}: give a folder that `numconv train --out` wrote")
    try:
        result = json.loads(files[0].read_text(encoding="utf-8"))
        kind, shape, rate = result["kind"], tuple(result["shape"]), result["sample_rate"]
        classes = tuple(result["classes"])
        form = _form(kind, shape, rate)
    except (ValueError, KeyError, TypeError) as error:
        raise ProblemError(f"{files[0]} is not what `numconv train --out` writes: {error!r}") from error
    model = nn.load(files[1])
    if model.output_shape(shape) != (len(classes),):
        raise ProblemError(f"{files[1]} gives {model.output_shape(shape)} for {shape}, and {files[0]} has {len(classes)} classes")
    return Classifier(model, form, classes)


def _form(kind: str, shape: tuple[int, ...], rate: int | None) -> media.Form:
    channels, *sizes = shape
    match kind, sizes:
        case "sound", [samples] if rate:
            return media.SoundForm(rate, samples, channels)
        case "image", [height, width]:
            return media.ImageForm(height, width, channels)
        case "video", [frames, height, width]:
            return media.VideoForm(frames, height, width, channels)
    raise ValueError(f"kind {kind!r} with shape {shape} and sample_rate {rate}")
