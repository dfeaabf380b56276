"""Claim 12: group convolutions are equivariant to rotations and reflections by construction."""

from __future__ import annotations

from typing import Any

from numconv.equivariance import measure, operation, reflection, rotation, translation

from . import nets
from .equivariance import photograph, show, upright_digits, upright_net
from .lesson import Lesson

__all__ = ["CLAIM", "TITLE", "teach"]

TITLE = "Beyond: group convolutions"
CLAIM = (
    "Group convolutions are equivariant to rotations and reflections by construction (Cohen and Welling, 2016): "
    "what they learned upright they recognise turned."
)


def teach(lesson: Lesson) -> None:
    """The errors of group layers, then a p4 network beside the plain one of the chapter before."""
    x = photograph()
    operations = [operation(name, x, lesson.setting.seed) for name in ("conv circular", "p4 conv", "p4m conv")]
    transforms = [translation(4, 6), rotation(90), reflection(1), rotation(30)]
    rows = measure(operations, x, transforms)
    lesson.text("""Errors of equivariance of an ordinary convolution, and of a lifting layer with a group convolution after it:
        on p4 each kernel acts in its four rotations, on p4m in its reflections, too. A transformation then moves the positions
        and permutes the members of the group. (Zero padding is as good as none here, since the border is turned with the
        image.)""")
    show(lesson, rows)
    at = {(row.layer, row.transform): row for row in rows}
    quarter, mirror = transforms[1].name, transforms[2].name
    lesson.figure("error_p4_quarter_turn", at["p4 conv", quarter].error)
    lesson.figure("error_p4m_reflection", at["p4m conv", mirror].error)
    lesson.check(
        "p4 is equivariant to quarter turns, p4m to reflections, too",
        f"errors {at['p4 conv', quarter].error:.0e} and {at['p4m conv', mirror].error:.0e}; the ordinary convolution "
        f"{at['conv circular', quarter].error:.2f} and {at['conv circular', mirror].error:.2f}",
        max(at["p4 conv", quarter].error, at["p4m conv", mirror].error) < 1e-6 and at["conv circular", quarter].error > 0.1,
    )
    lesson.check(
        "p4 is not equivariant to other angles",
        f"error at 30 degrees {at['p4 conv', transforms[3].name].exact:.2f}, interpolation not counted",
        at["p4 conv", transforms[3].name].exact > 0.1,
    )
    recognise(lesson)


def recognise(lesson: Lesson) -> None:
    """Both networks learn from upright digits, and are tested on turned ones."""
    upright = upright_digits(lesson)
    plain = upright_net(lesson, upright)
    options: dict[str, Any] = {"epochs": 3 if lesson.setting.quick else 15, "rate": 1e-2, "seed": lesson.setting.seed}
    p4 = nets.train(nets.p4_net(), upright, **options)
    tests = {
        "upright": upright.test_x,
        "turned by 90 degrees": rotation(90)(upright.test_x),
        "by 180": rotation(180)(upright.test_x),
    }
    accuracy = {
        (name, test): nets.accuracy(trained.model, (x, upright.test_labels))
        for name, trained in (("plain", plain), ("p4", p4))
        for test, x in tests.items()
    }
    lesson.text("""The plain network of the chapter before and a p4 network of about its size, both trained on upright digits.
        The price: to a p4 network with a pooling over orientations a 6 and a 9 look alike.""")
    lesson.table(
        ("network", "weights", *(f"test: {test}" for test in tests)),
        [
            (name, trained.parameters, *(f"{accuracy[name, test]:.1%}" for test in tests))
            for name, trained in (("plain", plain), ("p4", p4))
        ],
    )
    for (name, test), value in accuracy.items():
        lesson.figure(f"{name}_accuracy_{test.replace(' ', '_')}", value)
    same, lost = (accuracy[name, "upright"] - accuracy[name, "turned by 90 degrees"] for name in ("p4", "plain"))
    lesson.check(
        "What a p4 network learned upright it recognises turned",
        f"of upright and of turned digits {accuracy['p4', 'upright']:.1%} and {accuracy['p4', 'turned by 90 degrees']:.1%}; "
        f"the plain network loses {100 * lost:.0f} points",
        abs(same) < 0.005 and lost > 0.3,
    )
