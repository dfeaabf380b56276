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
    >>> import tempfile, numpy as np
    >>> from numconv import media, nn, training
    >>> from numconv.training.figures import write_json
    >>> x = np.random.default_rng(0).random((60, 1, 8, 8), dtype="float32") / 2
    >>> labels = np.arange(60) % 2
    >>> x[labels == 1, :, 2:5, 2:5] += 0.5
    >>> task = training.split_task("bright spots", "image", ("without", "with"), x, labels, held_out=0.25, seed=0)
    >>> result = training.train(task, training.Settings(epochs=10))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(result, f"{folder}/result.json")
    ...     nn.save(result.model, f"{folder}/model.safetensors")
    ...     media.write_image(f"{folder}/new.png", x[1])
    ...     next(iter(training.load_classifier(folder).probabilities(f"{folder}/new.png")))
    'with'
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
