"""Claim 7: several filters make an output volume; the next layer's kernels span all of its channels."""

from __future__ import annotations

from typing import Any

import numpy as np

import numconv as nc
from numconv.demo import data
from numconv.demo.pictures import COLOURS, show_map

from . import material, nets
from .advantages import digit_cnn, framed_digits
from .lesson import Lesson

__all__ = ["CLAIM", "TITLE", "teach"]

TITLE = "Several filters, several layers"
CLAIM = (
    "Several filters give several output channels, an output volume; a further layer is a convolution over the output volume "
    "of the layer before, with kernels that span all its channels."
)

Array = np.ndarray[Any, Any]


def teach(lesson: Lesson) -> None:
    """Volumes by hand, then what a trained network has in them: filters, maps, and what it takes for what."""
    spanning(lesson)
    on_digits(lesson)
    if lesson.setting.voices is None:
        lesson.text("The part on recorded voices is left out: their folder is not here; `--voices FOLDER` names it.")
    elif not lesson.setting.quick:
        on_voices(lesson, material.voices(lesson.setting.voices, lesson.setting.seed))


def spanning(lesson: Lesson) -> None:
    """A photograph through two layers of integers: the second sums over all channels of the first."""
    rng = np.random.default_rng(lesson.setting.seed)
    x = data.photograph(8).astype(np.int64)
    first, second = rng.integers(-2, 3, (8, 3, 3, 3)), rng.integers(-2, 3, (16, 8, 3, 3))
    volume = np.maximum(nc.conv(x, first, padding=1), 0)
    y = nc.conv(volume, second, padding=1)
    lesson.text("""A photograph through 8 filters of 3x3x3, ReLU, and 16 filters of 3x3 over the 8 channels that come out. A
        layer of K filters over C channels has K x C x 3 x 3 weights.""")
    lesson.table(
        ("", "input", "weights", "number of weights", "output volume"),
        [
            (name, str(list(a.shape)), str(list(w.shape)), w.size, str(list(b.shape)))
            for name, a, w, b in (("layer 1", x, first, volume), ("layer 2", volume, second, y))
        ],
    )
    by_channel = sum(nc.conv(volume[c : c + 1], second[:, c : c + 1], padding=1) for c in range(8))
    one_by_one = np.concatenate([nc.conv(volume, second[k : k + 1], padding=1) for k in range(16)])
    lesson.check(
        "Each filter gives one channel of the output volume",
        f"16 filters one by one: {y.size:,} numbers equal",
        np.array_equal(y, one_by_one),
    )
    lesson.check(
        "A filter of the second layer spans all channels of the first",
        f"the sum of 8 one-channel convolutions: {y.size:,} numbers equal",
        np.array_equal(y, by_channel),
    )


def on_digits(lesson: Lesson) -> None:
    """Filters and feature maps of the CNN for digits, and its confusions."""
    split = framed_digits(lesson)
    trained = digit_cnn(lesson, split)
    confusion = nets.confusion(trained.model, split.test)
    lesson.text("""The CNN of the chapter before (trained on digits in the middle of 16x16 pixels): its first filters, what they
        and the next layer make of a digit, and which held-out digits it takes for which.""")
    right = int(np.trace(confusion))
    lesson.table(("true", *split.classes), [(name, *map(int, row)) for name, row in zip(split.classes, confusion, strict=True)])
    lesson.figure("digits_right", right)
    lesson.figure("digits_tested", len(split.test_x))
    lesson.check(
        "The trained volumes are enough to tell digits apart", f"{right} of {len(split.test_x)} right", trained.accuracy > 0.85
    )
    draw_digits(lesson, split, trained.model, confusion)


def draw_digits(lesson: Lesson, split: material.Split, model: Any, confusion: Array) -> None:
    """First-layer filters, their maps of one digit, some maps of the second layer, the confusion matrix."""
    digit = split.test_x[np.flatnonzero(split.test_labels == 3)[:1]]
    maps = []
    for layer in model.layers[:4]:
        digit = layer(digit)
        maps.append(digit[0])
    w = model.parameters["0.w"][:, 0]
    caption = "The eight filters of the first layer, what they make of a 3, eight channels of the second layer; confusions."
    with lesson.picture("digit_volumes", 9.5, 3.9, caption) as figure:
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(2.4, 1))[0]
        grid = left.subplots(3, 8)
        for k in range(8):
            show_map(grid[0, k], w[k], f"filter {k}", limit=float(np.abs(w).max()))
            show_map(grid[1, k], maps[1][k], limit=float(maps[1].max()))
            show_map(grid[2, k], maps[3][k], limit=float(maps[3][:8].max()))
        draw_confusion(right.subplots(), confusion, split.classes)


def draw_confusion(ax: Any, confusion: Array, classes: tuple[str, ...]) -> None:
    """Counts as an image with their numbers."""
    ax.imshow(confusion, cmap="Blues")
    for (row, column), value in np.ndenumerate(confusion):
        if value:
            ax.text(column, row, str(value), ha="center", va="center", fontsize=6, color="white" if row == column else "black")
    ax.set_xticks(range(len(classes)), classes, rotation=0 if len(classes[0]) == 1 else 45)
    ax.set_yticks(range(len(classes)), classes)
    ax.set(xlabel="taken for", ylabel="true")


def selective(kernels: Array) -> tuple[Array, Array, Array]:
    """Filters ``[K, R]`` for sound at 8 kHz: their gains at 257 frequencies, the peak in Hz, how much lies within 500 Hz of it."""
    gain = np.abs(np.fft.rfft(kernels, 512)) ** 2
    frequency = np.fft.rfftfreq(512, 1 / 8000)
    peak = frequency[gain.argmax(axis=1)]
    near = np.abs(frequency - peak[:, None]) <= 500
    return gain, peak, (gain * near).sum(axis=1) / gain.sum(axis=1)


def on_voices(lesson: Lesson, split: material.Split) -> None:
    """What the first filters of the CNN for voices have become, and its confusions."""
    seed = lesson.setting.seed
    options: dict[str, Any] = {"epochs": 12, "rate": 5e-3, "seed": seed, "shift": 1000}
    trained: nets.Trained = lesson.kept("voice CNN, shifted", lambda: nets.train(nets.voice_cnn(), split, **options))
    confusion = nets.confusion(trained.model, split.test)
    kernels = trained.model.parameters["0.w"][:, 0]
    untrained = nets.voice_cnn().build(split.x.shape[1:], rng=seed).parameters["0.w"][:, 0]
    before, after = (float(np.median(selective(w)[2])) for w in (untrained, kernels))
    lesson.text("""The CNN for voices: its first layer has 16 filters of 64 samples (8 ms) over the raw wave, random before
        training. Nobody told it about frequencies, and yet its filters turn to some of them, as those made by hand do. Each
        language has one speaker, English and Spanish the same one: the network tells these recordings apart, by what is said or
        by who says it. Its confusions on unseen recordings:""")
    lesson.table(("true", *split.classes), [(name, *map(int, row)) for name, row in zip(split.classes, confusion, strict=True)])
    lesson.figure("voices_accuracy", trained.accuracy)
    lesson.figure("share_of_gain_within_500_hz_before", before)
    lesson.figure("share_of_gain_within_500_hz_after", after)
    lesson.check(
        "From raw waves it tells the five languages of these recordings apart",
        f"{trained.accuracy:.1%} of {len(split.test_x)} unseen recordings",
        trained.accuracy > 0.85,
    )
    lesson.check(
        "By training its first filters become more selective for frequencies",
        f"median over 16 filters: {after:.0%} of the gain within 500 Hz of its peak, {before:.0%} before training",
        after > before,
    )
    draw_voices(lesson, kernels, confusion, split.classes)


def draw_voices(lesson: Lesson, kernels: Array, confusion: Array, classes: tuple[str, ...]) -> None:
    """Filters and their gains, by the frequency of the peak; the confusion matrix."""
    gain, peak, _ = selective(kernels)
    order = peak.argsort()
    caption = "The first filters of the network for voices, by the frequency of their peak; their gains (dark: high); confusions."
    with lesson.picture("voice_filters", 8.5, 2.8, caption) as figure:
        waves, gains, matrix = figure.subplots(1, 3, width_ratios=(2, 2, 1.6))
        for place, k in enumerate(order):
            waves.plot(kernels[k] / np.abs(kernels).max() / 1.2 + place, color=COLOURS[1], linewidth=0.8)
        waves.set(xlabel="tap (samples)", ylabel="filter")
        shares = gain[order, ::4] / gain[order].max(axis=1, keepdims=True)
        gains.imshow(
            shares, aspect="auto", origin="lower", cmap="Greys", interpolation="nearest", extent=(0, 4, -0.5, len(order) - 0.5)
        )
        gains.set(xlabel="frequency (kHz)")
        draw_confusion(matrix, confusion, classes)
