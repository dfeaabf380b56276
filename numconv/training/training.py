"""All together: a task and settings -> a trained model and what it does to the test data."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from numconv import nn

from .augmenting import Shift
from .networks import epochs_for, layers_for
from .placing import Placed
from .settings import Settings
from .tasks import Task

__all__ = ["Result", "build_model", "train"]


@dataclass(frozen=True)
class Result:
    """A trained model, and what it does to data that it has not seen."""

    task: Task
    settings: Settings
    """With the number of epochs that was chosen."""
    model: nn.Layer
    history: nn.History
    test_accuracy: float
    test_loss: float
    confusion: np.ndarray[Any, Any]
    """``[classes, classes]``: row: true class, column: found."""
    seconds: float
    """From the first step to the end of the test, start-up of kernels included."""

    @property
    def parameters(self) -> int:
        """How many numbers were learned."""
        return sum(array.size for array in self.model.parameters.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        task, history = self.task, self.history
        return {
            "test_accuracy": self.test_accuracy,
            "test_loss": self.test_loss,
            "parameters": self.parameters,
            "seconds": self.seconds,
            "classes": list(task.classes),
            "confusion": self.confusion.tolist(),
            "task": task.name,
            "kind": task.kind,
            "shape": list(task.shape),
            "sample_rate": task.rate,
            "train_samples": len(task.train),
            "test_samples": len(task.test),
            "skipped": [{"path": str(each.path), "reason": each.reason} for each in task.skipped],
            "epochs": self.settings.epochs,
            "batch_size": self.settings.batch_size,
            "rate": self.settings.rate,
            "weight_decay": self.settings.weight_decay,
            "shift": self.settings.shift,
            "seed": self.settings.seed,
            "model": self.model.config,
            "history": {"loss": list(history.loss), "accuracy": list(history.accuracy), "seconds": list(history.seconds)},
        }


def build_model(task: Task, settings: Settings, like: Any = None) -> nn.Sequential:
    """The model of the settings, or one that suits the task, with one score for each class.

    Parameters
    ----------
    task : Task
    settings : Settings
    like : array, optional
        Of the library and on the device where it is to compute; NumPy by default.

    Raises
    ------
    ProblemError
        If the layers don't fit the data.
    """
    if settings.model is None:
        layers = layers_for(task.kind, task.shape, task.rate)
    else:
        layers = [nn.from_config(layer) for layer in settings.model]
    model = nn.Sequential(*layers, nn.Linear(len(task.classes)))
    return model.build(task.shape, rng=settings.seed, like=like)


def train(
    task: Task,
    settings: Settings | None = None,
    *,
    model: nn.Layer | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = False,
    like: Any = None,
) -> Result:
    """Train a model on a task, and test it.

    Parameters
    ----------
    task : Task
        From `folder_task`, `example_task` or `split_task`.
    settings : Settings
        How; by default all is chosen to suit the data.
    model : Layer, optional
        Built; by default that of the settings, or one that suits the task.
    checkpoint : path-like, optional
        A file to which the state of the training goes after each epoch.
    resume : bool
        Go on from the checkpoint, if there is one.
    progress : bool
        Show a bar.
    like : array, optional
        Of the library and on the device where the model is, or is to be: each batch is copied there. NumPy by default.

    Returns
    -------
    Result

    Raises
    ------
    ProblemError
        If model and data don't fit together.

    Examples
    --------
    >>> import numpy as np
    >>> from numconv import training
    >>> x = np.random.default_rng(0).random((60, 1, 8, 8), dtype="float32") / 2
    >>> labels = np.arange(60) % 2
    >>> x[labels == 1, :, 2:5, 2:5] += 0.5
    >>> task = training.split_task("bright spots", "image", ("without", "with"), x, labels, held_out=0.25, seed=0)
    >>> training.train(task, training.Settings(epochs=10)).test_accuracy
    1.0
    """
    start = time.perf_counter()
    settings = settings or Settings()
    if model is None:
        model = build_model(task, settings, like)
    if settings.epochs is None:
        flops = sum(leaf.flops(shape) for _, leaf, shape in model.leaves(task.shape))
        settings = settings.changed(epochs=epochs_for(len(task.train), settings.batch_size, flops))
    assert settings.epochs is not None
    train, test = (task.train, task.test) if like is None else (Placed(task.train, like), Placed(task.test, like))
    history = nn.fit(
        model,
        train,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        optimiser=nn.AdamW(settings.rate, weight_decay=settings.weight_decay),
        schedule=nn.cosine(warmup=0.1),
        rng=settings.seed,
        augment=Shift(settings.shift, "constant" if task.kind == "sound" else "edge"),
        checkpoint=checkpoint,  # type: ignore[arg-type]
        resume=resume,
        progress=progress,
    )
    found = nn.evaluate(model, test)
    assert found.accuracy is not None
    assert found.confusion is not None
    return Result(task, settings, model, history, found.accuracy, found.loss, found.confusion, time.perf_counter() - start)
