"""Claim 8: near the ends the kernel sticks out of the input; what can be put there, and what it does to the result."""

from __future__ import annotations

from typing import Any

import numpy as np

import numconv as nc
from numconv.demo import data
from numconv.demo.pictures import COLOURS, bare

from .lesson import Lesson

__all__ = ["CLAIM", "NUMPY_MODES", "TITLE", "teach"]

TITLE = "Boundaries"
CLAIM = (
    "Near the ends the kernel sticks out: ignore the boundaries, and the dimension shrinks and the border is lost; "
    "or pad with zeros, by reflection, repetition or wrapping."
)

Array = np.ndarray[Any, Any]

NUMPY_MODES = {"zeros": "constant", "reflect": "reflect", "symmetric": "symmetric", "replicate": "edge", "circular": "wrap"}
"""numconv's names for what to put outside, and numpy.pad's."""


def teach(lesson: Lesson) -> None:
    """All modes on eight samples, the loss of size through layers, and the error at the border of a photograph."""
    on_one_signal(lesson)
    shrinking(lesson)
    on_a_photograph(lesson)


def on_one_signal(lesson: Lesson) -> None:
    """A sum of five neighbours."""
    x, k = np.array([[6, 2, 4, 8, 5, 7, 1, 9]]), np.ones((1, 1, 5), np.int64)
    lesson.text("""Eight samples, and the sum of five neighbours at each of them (k = 1 1 1 1 1): two samples are missing at
        each end. Below: what each mode puts there, in brackets, and the results.""")
    rows = [("valid (ignored)", _list(x[0]), _list(nc.conv(x, k)[0]), "8 -> 4")]
    equal = 0
    for mode, numpy_mode in NUMPY_MODES.items():
        padded = nc.pad(x, (2,), mode)[0]
        y = nc.conv(x, k, padding=2, pad_mode=mode)[0]
        rows.append((mode, f"({_list(padded[:2])}) {_list(x[0])} ({_list(padded[-2:])})", _list(y), "8 -> 8"))
        equal += np.array_equal(y, np.convolve(np.pad(x[0], 2, numpy_mode), k[0, 0], mode="valid"))  # type: ignore[call-overload]
    lesson.table(("mode", "x with what is put outside", "sums of five", "size"), rows)
    lesson.check(
        "Padding keeps the size; only the two outputs at each end differ",
        f"{equal} of 5 modes equal numpy.pad and a convolution without padding",
        equal == 5,
    )
    ones = {mode: nc.conv(np.ones((1, 8)), k / 5, padding=2, pad_mode=mode)[0] for mode in NUMPY_MODES}
    lesson.check(
        "Zeros darken the border of a constant signal, the other modes leave it constant",
        f"the mean of five ones at the end: zeros {ones['zeros'][0]:.1f}, the others {ones['reflect'][0]:.1f}",
        ones["zeros"][0] < 0.7 and all(np.allclose(y, 1) for mode, y in ones.items() if mode != "zeros"),
    )


def _list(values: Array) -> str:
    return " ".join(map(str, values))


def shrinking(lesson: Lesson) -> None:
    """3x3 layers without padding on a digit, a photograph."""
    lesson.text("Without padding each 3x3 layer takes one pixel from every side. What is left after L layers:")
    rows = []
    for what, size in (("digit 8x8", (8, 8)), ("photograph 224x224", (224, 224))):
        left: dict[int, tuple[int, ...]] = {0: size}
        for layer in range(1, 11):
            before = left[layer - 1]
            left[layer] = nc.output_shape("conv", (1, *before), (1, 1, 3, 3))[1:] if min(before) >= 3 else (0, 0)
        shown = (f"{left[n][0]}x{left[n][1]} ({left[n][0] * left[n][1] / (size[0] * size[1]):.0%})" for n in (1, 2, 3, 5, 10))
        rows.append((what, *(text if text[0] != "0" else "nothing" for text in shown)))
    lesson.table(("input", "L = 1", "L = 2", "L = 3", "L = 5", "L = 10"), rows)
    lesson.check(
        "Without padding the dimension shrinks, small inputs to nothing",
        "an 8x8 digit is 2x2 after three 3x3 layers, then nothing",
        rows[0][3].startswith("2x2") and rows[0][4] == "nothing",
    )


def on_a_photograph(lesson: Lesson) -> None:
    """The middle of a photograph: what lies outside is known, so the error at the border is, too."""
    shrink, r = 4, 15
    whole = data.photograph(shrink).astype(np.float64) / 255
    inner = whole[:, r:-r, r:-r]
    k = np.zeros((3, 3, r, r))
    k[range(3), range(3)] = 1 / r**2
    half = r // 2
    true = nc.conv(whole, k)[:, r - half : -(r - half), r - half : -(r - half)]
    border = np.ones(inner.shape[1:], bool)
    border[half:-half, half:-half] = False
    blurred = {mode: nc.conv(inner, k, padding=half, pad_mode=mode) for mode in NUMPY_MODES}
    errors = {mode: np.sqrt(np.square(y - true)[:, border].mean()) for mode, y in blurred.items()}
    inside = max(float(np.abs(y - true)[:, ~border].max()) for y in blurred.values())
    lesson.text(f"""A photograph blurred by a mean over {r}x{r} pixels. It is cut out of a larger one, so what the padding
        guesses is known: the root mean square error of the {half} outermost rows and columns ({border.mean():.0%} of the
        pixels), values from 0 to 1. With "valid" there is no error, but these pixels are not there.""")
    lesson.table(
        ("mode", "error at the border"),
        [(mode, f"{lesson.figure(f'border_error_{mode}', float(error)):.4f}") for mode, error in errors.items()],
    )
    guesses = [mode for mode in NUMPY_MODES if mode != "zeros"]
    lesson.check(
        "Boundaries touch only outputs within half a kernel of the border",
        f"largest difference further inside: {inside:.0e}",
        inside < 1e-12,
    )
    lesson.check(
        "At the border of a photograph zeros are the worst guess, reflection and repetition are far better",
        f"error of zeros {errors['zeros']:.3f}, of the best, {min(errors, key=errors.__getitem__)}, {min(errors.values()):.3f}",
        all(errors[mode] < errors["zeros"] for mode in guesses) and min(errors.values()) < errors["zeros"] / 3,
    )
    draw(lesson, blurred, true)


def draw(lesson: Lesson, blurred: dict[str, Array], true: Array) -> None:
    """One signal with all extensions, and the corner of the blurred photograph."""
    x = np.array([[6, 2, 4, 8, 5, 7, 1, 9]])
    with lesson.picture(
        "boundaries", 9.5, 3.6, "Above: what each mode puts outside of eight samples. Below: a corner of the blurred photograph."
    ) as figure:
        grid = figure.subplots(2, 6)
        for column, mode in enumerate(NUMPY_MODES):
            padded = nc.pad(x, (4,), mode)[0]
            positions = np.arange(-4, 12)
            grid[0, column].bar(positions, padded, color=[COLOURS[1] if 0 <= t < 8 else COLOURS[2] for t in positions])
            bare(grid[0, column], mode)
        grid[0, 5].bar(np.arange(8), x[0], color=COLOURS[1])
        grid[0, 5].set_xlim(-4.8, 11.8)
        bare(grid[0, 5], "the signal")
        for ax, image in zip(grid[1], [*blurred.values(), true], strict=True):
            ax.imshow(np.clip(image[:, :40, :56].transpose(1, 2, 0), 0, 1))
            bare(ax)
        grid[1, 5].set_title("with the true outside", fontsize=8)
