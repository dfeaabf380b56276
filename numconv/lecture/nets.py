"""The networks of the lecture: small convolutional ones, and perceptrons to set beside them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numconv import nn

from .material import Split, moved

__all__ = [
    "Trained",
    "accuracy",
    "confusion",
    "count",
    "digit_cnn",
    "p4_net",
    "perceptron",
    "plain_net",
    "train",
    "voice_cnn",
    "voice_mlp",
]


def digit_cnn(pool: bool = False) -> Any:
    """Three 3x3 convolutions, global maxima, ten scores; `pool` halves the size after the first.

    Six zeros around the input make room for every window that sees a part of a digit, wherever that is; the other layers have no
    padding, so that a shift of the input is exactly a shift of their outputs.
    """
    halve = [nn.MaxPool(2)] if pool else []
    first = [nn.Conv(8, 3, padding=6), nn.ReLU(), *halve]
    return nn.Sequential(*first, nn.Conv(16, 3), nn.ReLU(), nn.Conv(32, 3), nn.ReLU(), nn.GlobalMaxPool(), nn.Linear(10))


def voice_cnn() -> Any:
    """Four convolutions along the raw wave, each with fewer positions, global means, five scores."""
    layers: list[Any] = []
    for channels, window, stride in ((16, 64, 4), (32, 9, 2), (64, 9, 2), (64, 9, 2)):
        layers += [nn.Conv(channels, window, stride=stride, padding="same"), nn.BatchNorm(), nn.ReLU()]
    return nn.Sequential(*layers, nn.GlobalAvgPool(), nn.Linear(5))


def plain_net() -> Any:
    """Two convolutions and global maxima, ten scores."""
    first = [nn.Conv(16, 5, padding="same"), nn.BatchNorm(), nn.ReLU()]
    second = [nn.Conv(32, 3, padding="same"), nn.BatchNorm(), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.GlobalMaxPool(), nn.Linear(10))


def p4_net() -> Any:
    """The same with every kernel in four orientations, whose maximum is taken before that over positions."""
    first = [nn.GroupLift(8, 5, padding="same"), nn.GroupBatchNorm(), nn.ReLU()]
    second = [nn.GroupConv(16, 3, padding="same"), nn.GroupBatchNorm(), nn.ReLU(), nn.GroupPool()]
    return nn.Sequential(*first, *second, nn.GlobalMaxPool(), nn.Linear(10))


def perceptron(*hidden: int, classes: int) -> Any:
    """A multilayer perceptron: every input has its own weight for every hidden neuron."""
    layers = [layer for width in hidden for layer in (nn.Linear(width), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(classes))


def voice_mlp() -> Any:
    """64 hidden neurons over the raw wave, five scores."""
    return perceptron(64, classes=5)


def count(model: Any) -> int:
    """Number of parameters of a model that was built."""
    return sum(array.size for array in model.parameters.values())


def accuracy(model: Any, data: tuple[Any, Any]) -> float:
    """The part of examples (x, labels) that a model recognises."""
    right = nn.evaluate(model, data).accuracy
    assert right is not None, "labels are classes"
    return right


def confusion(model: Any, data: tuple[Any, Any]) -> np.ndarray[Any, Any]:
    """How often a class (row) is taken for another (column)."""
    counts = nn.evaluate(model, data).confusion
    assert counts is not None, "labels are classes"
    return counts


class Trained(NamedTuple):
    """A network after its training."""

    model: Any
    parameters: int
    accuracy: float
    """On what was held out."""
    fit: float
    """On what it learned from."""


def train(model: Any, split: Split, *, epochs: int, rate: float = 3e-3, seed: int = 0, shift: int = 0) -> Trained:
    """Build, train with AdamW and a rate that falls to zero, and evaluate.

    Parameters
    ----------
    model : nn.Layer
    split : Split
    epochs, rate, seed
        Of the training.
    shift : int
        Training moves each example by up to so many positions, another way each time.
    """

    def augment(x: Any, rng: np.random.Generator) -> Any:
        return moved(x, rng.integers(-shift, shift + 1, (len(x), x.ndim - 2)))

    model.build(split.x.shape[1:], rng=seed)
    nn.fit(model, split.train, epochs=epochs, optimiser=nn.AdamW(rate), rng=seed, augment=augment if shift else None)
    return Trained(model, count(model), accuracy(model, split.test), accuracy(model, split.train))
