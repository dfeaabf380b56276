"""Claim 11: convolutions move with their input; they do not turn or grow with it, but a network can learn that nearly."""

from __future__ import annotations

from typing import Any

import numpy as np

from numconv import nn
from numconv.demo import data
from numconv.equivariance import Row, Transform, measure, operation, rotation, scaling, translation

from . import material, nets
from .lesson import Lesson

__all__ = ["CLAIM", "TITLE", "photograph", "show", "teach", "upright_digits", "upright_net"]

TITLE = "Equivariance"
CLAIM = (
    "Convolutions are equivariant to translation; not to rotation or scale, but a network that learned from rotated inputs becomes "
    "nearly so, for the rotations that it learned."
)

Array = np.ndarray[Any, Any]

ANGLE = 40
"""Degrees by which digits are turned at most."""


def photograph() -> Array:
    """A grey photograph ``[1, 1, 48, 48]`` of whole numbers around 0."""
    pixels = data.photograph(8).mean(axis=0)[2:50, 10:58]
    whole: Array = np.rint(pixels - pixels.mean())
    return whole[None, None]


def show(lesson: Lesson, rows: list[Row]) -> None:
    """Errors of layers under transformations, with their parts."""

    def cell(value: float) -> str:
        return f"{value:.2f}" if value >= 0.005 else f"{value:.1e}" if value else "0"

    parts = Row._fields[2:]
    lesson.table(
        ("layer", "transformation", *parts),
        [
            (
                row.layer,
                row.transform,
                *map(cell, row[2:]),
            )
            for row in rows
        ],
    )


def teach(lesson: Lesson) -> None:
    """Layers under transformations, then a network before and after it saw turned digits."""
    of_layers(lesson)
    learned(lesson)


def of_layers(lesson: Lesson) -> None:
    """`numconv.equivariance` on three convolutions."""
    x = photograph()
    operations = [operation(name, x, lesson.setting.seed) for name in ("conv circular", "conv zeros", "conv stride 2")]
    transforms = [translation(4, 6), translation(1, 1), rotation(90), rotation(30), scaling(1.25)]
    rows = measure(operations, x, transforms)
    lesson.text("""The error of equivariance, norm(f(T x) - T f(x)) / norm(f(x)), of convolutions with random weights on a
        photograph, as `numconv.equivariance` measures it, and its parts: what the operation itself does, what stride, border
        and interpolation add. 0 is exactly 0. `numconv equivariance` makes such tables for more layers.""")
    show(lesson, rows)
    at = {(row.layer, row.transform): row for row in rows}
    shift, small, quarter, turn, scale = (each.name for each in transforms)
    lesson.figure("error_of_shift", at["conv circular", shift].error)
    lesson.figure("error_of_quarter_turn", at["conv circular", quarter].error)
    lesson.figure("error_of_scaling", at["conv circular", scale].error)
    lesson.check(
        "A convolution is equivariant to translation",
        f"error {at['conv circular', shift].error:g}",
        at["conv circular", shift].error < 1e-12,
    )
    lesson.check(
        "Zero padding breaks it at the border only, a stride of 2 for odd shifts only",
        f"but for the border {at['conv zeros', shift].exact:g}; stride 2: {at['conv stride 2', shift].error:.1g} for even shifts, "
        f"{at['conv stride 2', small].stride:.2f} for odd ones",
        at["conv zeros", shift].exact < 1e-12 and at["conv stride 2", shift].error < 1e-12 < at["conv stride 2", small].stride,
    )
    errors = [at["conv circular", name].exact for name in (quarter, turn, scale)]
    lesson.check(
        "It is not equivariant to rotation or scale",
        f"error at least {min(errors):.2f}, interpolation not counted",
        min(errors) > 0.03,
    )


def turned(x: Array, angles: Array) -> Array:
    """Each image turned by its own angle in degrees."""
    return np.concatenate([rotation(float(angle))(image[None], 1) for image, angle in zip(x, angles, strict=True)]).astype(x.dtype)


def upright_digits(lesson: Lesson) -> material.Split:
    """Digits with a margin of a pixel."""
    split = material.digits(lesson.setting.seed)
    return split._replace(x=material.framed(split.x, 1), test_x=material.framed(split.test_x, 1))


def turned_digits(upright: material.Split, seed: int) -> material.Split:
    """Each digit turned by its own angle, up to `ANGLE` degrees."""
    rng = np.random.default_rng(seed)
    x, test_x = (turned(each, rng.uniform(-ANGLE, ANGLE, len(each))) for each in (upright.x, upright.test_x))
    return upright._replace(x=x, test_x=test_x)


def upright_net(lesson: Lesson, split: material.Split) -> nets.Trained:
    """A network that saw upright digits only; the next chapter sets another beside it."""
    options: dict[str, Any] = {"epochs": 4 if lesson.setting.quick else 15, "rate": 1e-2, "seed": lesson.setting.seed}
    trained: nets.Trained = lesson.kept("upright net", lambda: nets.train(nets.plain_net(), split, **options))
    return trained


def learned(lesson: Lesson) -> None:
    """Trained on upright digits, and on turned ones; tested on both, and on a quarter turn."""
    upright = upright_digits(lesson)
    mixed = turned_digits(upright, lesson.setting.seed)
    options: dict[str, Any] = {"epochs": 4 if lesson.setting.quick else 15, "rate": 1e-2, "seed": lesson.setting.seed}
    models = {
        "upright": upright_net(lesson, upright).model,
        f"turned by up to {ANGLE} degrees": nets.train(nets.plain_net(), mixed, **options).model,
    }
    tests = {
        "upright": upright.test_x,
        f"turned by up to {ANGLE} degrees": mixed.test_x,
        "turned by 90 degrees": rotation(90)(upright.test_x),
    }
    accuracy = {
        (name, test): nets.accuracy(model, (x, upright.test_labels)) for name, model in models.items() for test, x in tests.items()
    }
    change = {name: score_change(model, upright.test_x, rotation(ANGLE)) for name, model in models.items()}
    lesson.text(f"""A network (two convolutions, global maxima) trained on upright digits, and trained on digits each turned by
        up to {ANGLE} degrees: how many unseen digits it recognises, and by how much its scores change when a digit is turned by
        {ANGLE} degrees (relative norm).""")
    lesson.table(
        ("trained on digits", *(f"test: {test}" for test in tests), f"change of scores at {ANGLE} degrees"),
        [(name, *(f"{accuracy[name, test]:.1%}" for test in tests), f"{change[name]:.2f}") for name in models],
    )
    before, after = models
    within = f"turned by up to {ANGLE} degrees"
    lesson.figure("accuracy_turned_before", accuracy[before, within])
    lesson.figure("accuracy_turned_after", accuracy[after, within])
    lesson.check(
        "A network that learned from turned inputs becomes nearly equivariant",
        f"recognised when turned: {accuracy[before, within]:.1%} before, {accuracy[after, within]:.1%} after; "
        f"change of scores {change[before]:.2f} and {change[after]:.2f}",
        accuracy[after, within] > accuracy[before, within] and change[after] < change[before],
    )
    lesson.check(
        "Only for the rotations that it learned",
        f"turned by 90 degrees it recognises {accuracy[after, 'turned by 90 degrees']:.1%}",
        accuracy[after, "turned by 90 degrees"] < accuracy[after, within] - 0.2,
    )


def score_change(model: Any, x: Array, transform: Transform) -> float:
    """How much scores change when the input is transformed, relative to their norm around their mean."""
    scores, moved = nn.predict(model, x), nn.predict(model, transform(x, 1).astype(x.dtype))
    return float(np.linalg.norm(moved - scores) / np.linalg.norm(scores - scores.mean(axis=0)))
