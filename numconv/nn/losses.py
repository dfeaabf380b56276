"""Losses: each returns its value, a mean over the batch, and its gradient."""

from __future__ import annotations

import numpy as np

from numconv.errors import ProblemError

from .devices import namespace
from .layer import Array

__all__ = ["cross_entropy", "mean_squared_error"]


def cross_entropy(scores: Array, labels: Array) -> tuple[Array, Array]:
    """Softmax cross-entropy: minus the logarithm of the probability that the scores give to the right class, on average.

    Parameters
    ----------
    scores : array ``[N, classes]`` or ``[N, classes, *Q]``
        Logits, of a real float dtype.
    labels : integer array ``[N]`` or ``[N, *Q]``
        The right classes, counted from 0.

    Returns
    -------
    loss : scalar
        Of the dtype of the scores, on their device.
    grad_scores : array of the shape of `scores`
        (softmax(scores) - 1 at the right class) / the number of labels.

    Raises
    ------
    ProblemError
        If the shapes disagree, or a label is no class. Labels on a device are not read: the loss is then NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from numconv import nn
    >>> loss, grad = nn.cross_entropy(np.array([[0.0, 0.0], [0.0, np.log(3)]]), np.array([0, 1]))
    >>> loss.round(4), grad.round(3)
    (np.float64(0.4904), array([[-0.25 ,  0.25 ],
           [ 0.125, -0.125]]))
    """
    classes = scores.shape[1] if scores.ndim > 1 else 0
    expected = (*scores.shape[:1], *scores.shape[2:])
    if not classes or tuple(labels.shape) != expected:
        raise ProblemError(
            f"cross_entropy: scores {tuple(scores.shape)} are [N, classes, *Q], so labels must be {expected}, and are "
            f"{tuple(labels.shape)}"
        )
    if labels.dtype.kind not in "iu":
        raise ProblemError(f"cross_entropy: labels have dtype {labels.dtype}, and must be integers; labels.astype('int64')")
    if isinstance(labels, np.ndarray) and labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ProblemError(
            f"cross_entropy: labels range from {labels.min()} to {labels.max()}, and scores {tuple(scores.shape)} have classes "
            f"0 to {classes - 1}"
        )
    xp = namespace(scores)
    places = xp.arange(classes).reshape(-1, *(1,) * (scores.ndim - 2))
    right = labels[:, None] == places
    shifted = scores - scores.max(axis=1, keepdims=True)
    grad = xp.exp(shifted)
    total = grad.sum(axis=1, keepdims=True)
    chosen = xp.where(right.any(axis=1), (shifted * right).sum(axis=1), xp.nan)
    loss = (xp.log(total[:, 0]) - chosen).mean()
    grad /= total
    grad -= right
    grad *= 1 / labels.size
    return loss, grad


def mean_squared_error(y: Array, target: Array) -> tuple[Array, Array]:
    """The mean of (y - target)^2 over all elements.

    Parameters
    ----------
    y, target : arrays of one shape

    Returns
    -------
    loss : scalar
    grad_y : array of y's shape

    Raises
    ------
    ProblemError
        If the shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> from numconv import nn
    >>> nn.mean_squared_error(np.array([[1.0, 5.0]]), np.array([[1.0, 3.0]]))
    (np.float64(2.0), array([[0., 2.]]))
    """
    if tuple(y.shape) != tuple(target.shape):
        raise ProblemError(f"mean_squared_error: y has shape {tuple(y.shape)} and target {tuple(target.shape)}; they must be equal")
    error = y - target
    return (error * error).mean(), error * (2 / error.size)
