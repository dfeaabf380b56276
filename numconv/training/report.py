"""What is printed: the data, the result, and the confusion matrix as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from .tasks import Task
from .training import Result

__all__ = ["describe_result", "describe_task", "draw_confusion"]

_WIDEST = 20
"""Classes that a matrix has room for in a terminal."""


def describe_task(task: Task) -> str:
    """The data in a few lines: classes, samples, shape, and what is left out.

    Parameters
    ----------
    task : Task
        The data.

    Returns
    -------
    str

    Examples
    --------
    >>> from numconv import training
    >>> print(training.describe_task(training.example_task("shapes")))
    shapes: video, 4 classes (left, right, up, down)
    800 samples to learn from, 200 held out at random; each [C, T, H, W] = [1, 8, 16, 16]
    """
    letters = {"sound": "C, T", "image": "C, H, W", "video": "C, T, H, W"}[task.kind]
    rate = f" at {task.rate:,} Hz" if task.rate else ""
    origin = "to test on" if task.folders else "held out at random"
    lines = [
        f"{task.name}: {task.kind}, {len(task.classes)} classes ({_shortened(task.classes, 8)})",
        f"{len(task.train):,} samples to learn from, {len(task.test):,} {origin}; each [{letters}] = {list(task.shape)}{rate}",
    ]
    if task.skipped:
        reasons = Counter("cannot be read" if each.unreadable else each.reason for each in task.skipped)
        lines.append(f"left out: {', '.join(f'{count} {reason}' for reason, count in reasons.items())}")
        unreadable = [each for each in task.skipped if each.unreadable]
        lines += [f"  {each.reason}" for each in unreadable[:5]]
        lines += [f"  ... and {len(unreadable) - 5} more"] * (len(unreadable) > 5)
    return "\n".join(lines)


def describe_result(result: Result) -> str:
    """The accuracy on unseen data with its uncertainty, that on the data learned from, and the confusion matrix.

    Parameters
    ----------
    result : Result
        From `train`.

    Returns
    -------
    str
    """
    right, count = int(np.trace(result.confusion)), int(result.confusion.sum())
    low, high = _wilson(right, count)
    interval = f"95 % interval {low:.1%} to {high:.1%}, chance {1 / len(result.task.classes):.1%}"
    lines = [
        f"test accuracy {result.test_accuracy:.2%}: {right:,} of {count:,} ({interval})",
        f"training accuracy {result.history.accuracy[-1] or 0:.2%} in the last of {result.settings.epochs} epochs",
        f"{result.parameters:,} parameters, {result.seconds:.1f} s",
        "",
        draw_confusion(result.confusion, result.task.classes),
    ]
    return "\n".join(lines)


def draw_confusion(confusion: np.ndarray[Any, Any], classes: Sequence[str]) -> str:
    """A confusion matrix as text; of many classes, only what was confused most often.

    Parameters
    ----------
    confusion : int array
        ``[classes, classes]``; row: true class, column: found.
    classes : sequence of str
        Their names.

    Returns
    -------
    str

    Examples
    --------
    >>> import numpy as np
    >>> from numconv import training
    >>> print(training.draw_confusion(np.array([[9, 1], [0, 10]]), ("cat", "dog")))
    true class | found: cat dog  right
           cat |          9   1  90.0%
           dog |          .  10 100.0%
    """
    if len(classes) > _WIDEST:
        return _most_confused(confusion, classes)
    names = [name if len(name) <= 12 else f"{name[:11]}~" for name in classes]
    cell = max(3, *(len(name) for name in names), len(str(confusion.max())))
    left = max(len("true class"), *(len(name) for name in names))
    head = " | found: "
    lines = [f"{'true class':>{left}}{head}{' '.join(f'{name:>{cell}}' for name in names)}  right"]
    for name, row, right in zip(names, confusion, np.diag(confusion), strict=True):
        cells = " ".join(f"{count or '.':>{cell}}" for count in row)
        lines.append(f"{name:>{left}}{' | ':<{len(head)}}{cells} {_percent(right, row.sum())}")
    return "\n".join(lines)


def _most_confused(confusion: np.ndarray[Any, Any], classes: Sequence[str]) -> str:
    wrong = confusion - np.diag(np.diag(confusion))
    worst = np.argsort(-wrong, axis=None, kind="stable")[:_WIDEST]
    pairs = [(i, j) for i, j in zip(*np.unravel_index(worst, wrong.shape), strict=True) if wrong[i, j]]
    lines = [f"{len(classes)} classes; what was taken for another class most often:" if pairs else "nothing was confused"]
    lines += [f"{wrong[i, j]:6d} of {confusion[i].sum():,} {classes[i]} for {classes[j]}" for i, j in pairs]
    return "\n".join(lines)


def _percent(right: int, count: int) -> str:
    return f"{right / count:6.1%}" if count else f"{'-':>6s}"


def _shortened(names: Sequence[str], most: int) -> str:
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])


def _wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """E. B. Wilson's interval for a rate (JASA 1927): right of count at random give the rate within it in 95 % of cases."""
    middle = (right + z * z / 2) / (count + z * z)
    half = z * np.sqrt(right * (count - right) / count + z * z / 4) / (count + z * z)
    return max(middle - half, 0.0), min(middle + half, 1.0)
