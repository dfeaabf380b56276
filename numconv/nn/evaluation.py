"""What a model does to data: scores, loss, accuracy, confusion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from numconv.errors import ProblemError

from .data import as_data, check_batch
from .devices import namespace, to_host
from .layer import Array, Layer
from .losses import cross_entropy

__all__ = ["Evaluation", "Loss", "Tally", "checked_size", "evaluate", "predict"]

Loss = Callable[[Array, Array], tuple[Array, Array]]
"""``loss(scores, targets) -> (value, gradient for the scores)``."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes
    ----------
    loss : float
        The mean over all samples.
    accuracy : float or None
        The part of the targets whose score was the largest; None where targets are no classes.
    confusion : int64 array ``[classes, classes]`` or None
        How often a class (row) was taken for another (column).
    """

    loss: float
    accuracy: float | None
    confusion: np.ndarray[Any, Any] | None


@dataclass
class Tally:
    """Sums over batches, on the device of the arrays until they are asked for."""

    loss: Any = 0.0
    right: Any = 0
    samples: int = 0
    labels: int = 0
    confusion: Any = field(default=None, repr=False)

    def add(self, loss: Any, scores: Array, targets: Array, confusion: bool = False) -> None:
        """Count a batch in."""
        size = scores.shape[0]
        self.samples += size
        self.loss = self.loss + (loss if isinstance(loss, float | int) else loss.astype(np.float64)) * size
        if targets.dtype.kind in "iu" and targets.ndim == scores.ndim - 1:
            found = scores.argmax(axis=1)
            self.right = self.right + (found == targets).sum()
            self.labels += targets.size
            if confusion:
                classes = scores.shape[1]
                pairs = (targets.astype(np.int64) * classes + found).reshape(-1)
                counts = namespace(scores).bincount(pairs, minlength=classes * classes)
                self.confusion = counts if self.confusion is None else self.confusion + counts

    @property
    def means(self) -> tuple[float, float | None]:
        """Loss and accuracy."""
        return float(self.loss) / self.samples, float(self.right) / self.labels if self.labels else None


def evaluate(model: Layer, data: Any, batch_size: int = 256, loss: Loss = cross_entropy) -> Evaluation:
    """Loss, accuracy and confusion of a model on data, as in inference.

    Parameters
    ----------
    model : Layer
    data : (x, targets) or an object with ``__len__`` and ``batches(batch_size, rng=None)``
    batch_size : int
    loss : function
        ``loss(scores, targets) -> (value, gradient)``.

    Returns
    -------
    Evaluation

    Raises
    ------
    ProblemError
        If data and model do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> from numconv import nn
    >>> model = nn.Sequential(nn.Linear(2)).build((2,))
    >>> model.parameters["0.w"][...] = [[1, 0], [0, 1]]
    >>> x = np.array([[3, 0], [0, 3], [2, 1]], "float32")
    >>> result = nn.evaluate(model, (x, np.array([0, 1, 1])))
    >>> round(result.accuracy, 3), result.confusion.tolist()
    (0.667, [[1, 0], [1, 1]])
    """
    tally = Tally()
    classes = 0
    for x, targets in as_data(data, "evaluate: data").batches(checked_size(batch_size)):
        check_batch(model, x, "evaluate: x")
        scores = model(x)
        classes = scores.shape[1] if scores.ndim > 1 else 0
        tally.add(loss(scores, targets)[0], scores, targets, confusion=True)
    mean, accuracy = tally.means
    confusion = None if tally.confusion is None else to_host(tally.confusion).reshape(classes, classes)
    return Evaluation(mean, accuracy, confusion)


def predict(model: Layer, x: Array, batch_size: int = 256) -> Array:
    """The outputs of a model for many samples, a batch at a time.

    Parameters
    ----------
    model : Layer
    x : array ``[N, ...]``
    batch_size : int

    Returns
    -------
    array ``[N, ...]``
        On the device of x.

    Raises
    ------
    ProblemError
        If x does not fit the model.

    Examples
    --------
    >>> import numpy as np
    >>> from numconv import nn
    >>> model = nn.Sequential(nn.Linear(3)).build((2,))
    >>> nn.predict(model, np.zeros((1000, 2), "float32")).shape
    (1000, 3)
    """
    if not hasattr(x, "shape") or not x.ndim:
        raise ProblemError(f"predict: x of type {type(x).__name__} is no array with a batch axis")
    if not x.shape[0]:
        raise ProblemError(f"predict: x of shape {tuple(x.shape)} holds no sample")
    check_batch(model, x, "predict: x")
    size = checked_size(batch_size)
    return namespace(x).concatenate([model(x[start : start + size]) for start in range(0, x.shape[0], size)])


def checked_size(batch_size: Any) -> int:
    """The batch size, if it is one."""
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ProblemError(f"batch_size={batch_size!r} must be an integer of at least 1")
    return int(batch_size)
