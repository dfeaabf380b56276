"""Claim 1: what sound, images and video are as inputs: large, and near values belong together."""

from __future__ import annotations

from typing import Any

import numpy as np

import numconv as nc
from numconv.demo import data
from numconv.demo.pictures import COLOURS

from .lesson import Lesson

__all__ = ["CLAIM", "TITLE", "explained", "likeness", "teach"]

TITLE = "Input data"
CLAIM = (
    "Sound, images and video have very many dimensions; their features are not independent, and they have locality: "
    "nearby values matter together."
)

Array = np.ndarray[Any, Any]

DISTANCES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def likeness(x: Array, distance: int) -> float:
    """Correlation of all pairs of values that lie so far apart along the last axis."""
    return float(np.corrcoef(x[..., :-distance].ravel(), x[..., distance:].ravel())[0, 1])


def explained(values: Array, others: Array) -> float:
    """The share of the variance of ``values [N]`` that a linear function of ``others [M, N]`` explains on unseen values.

    The function is fitted to the even ones and measured on the odd ones.
    """
    columns = np.vstack([others, np.ones(others.shape[1])]).T
    weights = np.linalg.lstsq(columns[::2], values[::2], rcond=None)[0]
    rest = values[1::2] - columns[1::2] @ weights
    return float(1 - rest.var() / values[1::2].var())


def teach(lesson: Lesson) -> None:
    """How large inputs are; how alike values are at a distance; how well a value follows from its neighbours."""
    sizes(lesson)
    inputs = {
        "voice": data.voices(["english", "french", "italian"]).x[:, 0].astype(np.float64),
        "photograph": data.photograph(2).mean(axis=0),
    }
    at_a_distance(lesson, inputs)
    from_neighbours(lesson, inputs)


def sizes(lesson: Lesson) -> None:
    """Numbers in one example."""
    wave, photograph = data.voices(["italian"]).x, data.photograph()
    rows = [
        ("row of a table (iris)", "features", [4]),
        ("handwritten digit", "channels, height, width", [1, 8, 8]),
        ("second of a voice, 8 kHz", "channels, time", list(wave.shape[1:])),
        ("photograph of this lecture", "channels, height, width", list(photograph.shape)),
        ("minute of sound, 44.1 kHz, stereo", "channels, time", [2, 60 * 44_100]),
        ("photograph of a megapixel", "channels, height, width", [3, 1000, 1000]),
        ("10 s of video, 640x360, 25 frames/s", "channels, time, height, width", [3, 250, 360, 640]),
    ]
    lesson.text("How many numbers one example is made of:")
    lesson.table(
        ("example", "axes", "shape", "numbers"), [(what, axes, str(shape), int(np.prod(shape))) for what, axes, shape in rows]
    )
    lesson.check(
        "Inputs are large", f"this photograph has {photograph.size:,} numbers, a table's row has a few", photograph.size > 100_000
    )


def at_a_distance(lesson: Lesson, inputs: dict[str, Array]) -> None:
    """Correlation against distance, in the right order of positions and in a shuffled one."""
    rng = np.random.default_rng(lesson.setting.seed)
    shuffled = {"voice": inputs["voice"][:, rng.permutation(inputs["voice"].shape[1])]}
    shuffled["photograph"] = rng.permutation(inputs["photograph"].ravel()).reshape(inputs["photograph"].shape)
    lesson.text("""Correlation of values of three voices (samples apart) and of a photograph (columns apart). In the lower rows
        the positions were shuffled by one fixed permutation: the same numbers, with nothing left of their order.""")
    found = {
        **{name: [likeness(x, d) for d in DISTANCES] for name, x in inputs.items()},
        **{f"{name}, shuffled": [likeness(x, d) for d in DISTANCES] for name, x in shuffled.items()},
    }
    lesson.table(("distance", *map(str, DISTANCES)), [(name, *(f"{value:.2f}" for value in row)) for name, row in found.items()])
    for name, row in found.items():
        lesson.figure(f"correlation_at_1_{name.replace(', ', '_')}", row[0])
    nearest, far = min(found[name][0] for name in inputs), max(abs(found[name][-1]) for name in inputs)
    mixed = max(abs(value) for name in shuffled for value in found[f"{name}, shuffled"])
    lesson.check(
        "Neighbours are alike, distant values less",
        f"correlation of neighbours at least {nearest:.2f}, at distance {DISTANCES[-1]} at most {far:.2f}",
        nearest > 0.6 and far < nearest - 0.2,
    )
    lesson.check("The likeness lies in the order of positions", f"shuffled: at most {mixed:.2f}", mixed < 0.1)
    with lesson.picture(
        "locality",
        7,
        2.8,
        "Correlation of two values against their distance, for voices and a photograph; dashed: positions shuffled.",
    ) as figure:
        ax = figure.subplots()
        for (name, row), style in zip(found.items(), ("o-", "s-", "o--", "s--"), strict=True):
            ax.plot(DISTANCES, row, style, label=name, color=COLOURS[1] if name.startswith("voice") else COLOURS[2], markersize=4)
        ax.set(xlabel="distance (samples, columns)", ylabel="correlation")
        ax.set_xscale("log", base=2)
        ax.axhline(0, color="grey", linewidth=0.6)
        ax.legend(frameon=False)


def from_neighbours(lesson: Lesson, inputs: dict[str, Array]) -> None:
    """A value from its eight neighbours, and from eight values anywhere."""
    rng = np.random.default_rng(lesson.setting.seed)
    windows = {
        "voice": nc.unfold(inputs["voice"][:, None], (9,)).transpose(1, 0, 2).reshape(9, -1),
        "photograph": nc.unfold(inputs["photograph"][None], (3, 3)),
    }
    lesson.text("""How well does a value follow from others? A linear function of eight values, fitted to half of all positions,
        measured on the other half: the eight neighbours (four on each side in time; all around in the image), or eight values
        somewhere else.""")
    rows = []
    for name, window in windows.items():
        others = np.delete(window, 4, axis=0)
        elsewhere = others[:, rng.permutation(window.shape[1])]
        rows.append((name, explained(window[4], others), explained(window[4], elsewhere)))
    lesson.table(
        ("", "variance explained by neighbours", "by values elsewhere"),
        [(name, f"{a:.1%}", f"{max(b, 0):.1%}") for name, a, b in rows],
    )
    for name, near, far in rows:
        lesson.figure(f"explained_by_neighbours_{name}", near)
        lesson.figure(f"explained_by_others_{name}", far)
    least, most = min(near for _, near, _ in rows), max(0.0, *(far for _, _, far in rows))
    lesson.check(
        "Nearby values matter together",
        f"neighbours explain at least {least:.0%}, values elsewhere at most {most:.0%}",
        all(near > 0.8 and far < 0.05 for _, near, far in rows),
    )
