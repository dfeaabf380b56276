"""Claim 10: images and videos, and the worked example of a 5x5x3 input, number by number."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

import numconv as nc
from numconv.demo import data
from numconv.demo.pictures import bare
from numconv.demo.video import SPEED, energies, motion_filters, pan

from .lesson import Lesson

__all__ = ["BIAS", "CLAIM", "TITLE", "W", "X", "by_hand", "teach"]

TITLE = "Images and videos: filters in two and three dimensions"
CLAIM = (
    "A colour image is a 3-D tensor and its filters are 3-D, a colour video is a 4-D tensor and its filters are 4-D: "
    "they span all channels and move in space and time; the output has floor((S + 2p - d(r - 1) - 1) / s) + 1 positions."
)

Array = np.ndarray[Any, Any]

X = np.array([
    [[1, 0, 2, 1, 0], [2, 1, 0, 0, 1], [0, 2, 2, 1, 1], [1, 1, 0, 2, 0], [0, 1, 2, 0, 2]],
    [[0, 1, 1, 2, 0], [1, 0, 2, 1, 1], [2, 1, 0, 0, 2], [0, 2, 1, 1, 0], [1, 0, 0, 2, 1]],
    [[2, 0, 1, 0, 1], [0, 1, 1, 2, 0], [1, 2, 0, 1, 2], [2, 0, 1, 0, 1], [0, 1, 2, 1, 0]],
])  # fmt: skip
"""The input ``[3, 5, 5]``: three channels of 5 x 5."""

W = np.array([
    [[[-1, 0, 1], [0, 1, 0], [1, 0, -1]], [[0, 1, 0], [1, -1, 1], [0, 0, -1]], [[1, 1, 0], [0, 0, -1], [-1, 0, 1]]],
    [[[0, -1, 0], [1, 1, 0], [0, 0, 1]], [[1, 0, -1], [0, 1, 0], [-1, 0, 0]], [[0, 0, 1], [-1, 1, 0], [0, 1, -1]]],
])  # fmt: skip
"""Two filters ``[2, 3, 3, 3]``."""

BIAS = np.array([1, 0])


def by_hand(x: Array, w: Array, bias: Array, stride: int, padding: int) -> Array:
    """y[k, i, j] = bias[k] + the sum of all products of filter k with the part of the padded input below it."""
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    rows, columns = ((size - 3) // stride + 1 for size in padded.shape[1:])
    y = np.zeros((len(w), rows, columns), x.dtype)
    for k, i, j in itertools.product(range(len(w)), range(rows), range(columns)):
        part = padded[:, stride * i : stride * i + 3, stride * j : stride * j + 3]
        y[k, i, j] = (part * w[k]).sum() + bias[k]
    return y


def teach(lesson: Lesson) -> None:
    """The worked example, the formula for the size of the output, then a photograph and a video."""
    worked(lesson)
    formula(lesson)
    channels_and_time(lesson)


def worked(lesson: Lesson) -> None:
    """5x5x3, padding 1, two 3x3x3 filters with biases, stride 2: 3x3x2."""
    y = nc.conv(X, W, BIAS, stride=2, padding=1)
    lesson.text("""The worked example: an input of 5x5x3 (here [3, 5, 5]: channels first), padding 1 makes it 7x7x3; two filters
        of 3x3x3 with a bias each, stride 2. A filter of 3 fits into 7 at the positions 0, 2, 4: three of them, floor((5 + 2 - 2
        - 1) / 2) + 1 = 3; two filters give two channels: 3x3x2. The output of filter 0 in the middle is the sum of 27 products
        and the bias:""")
    padded = np.pad(X, ((0, 0), (1, 1), (1, 1)))
    rows = []
    for c in range(3):
        part = padded[c, 2:5, 2:5]
        products = " + ".join(
            f"{a}·{b}" if b >= 0 else f"{a}·({b})" for a, b in zip(part.ravel(), W[0, c].ravel(), strict=True) if a
        )
        rows.append(
            (
                f"channel {c}",
                " / ".join(" ".join(map(str, row)) for row in part),
                " / ".join(" ".join(map(str, row)) for row in W[0, c]),
                products or "0",
                int((part * W[0, c]).sum()),
            )
        )
    total = sum(row[-1] for row in rows)
    lesson.table(("", "padded input, rows 2-4, columns 2-4", "filter 0", "products with what is not zero", "sum"), rows)
    lesson.text(
        f"{' + '.join(str(row[-1]) for row in rows)} + bias {BIAS[0]} = {total + BIAS[0]} = y[0, 1, 1]. All outputs:".replace(
            "+ -", "- "
        )
    )
    lesson.table(("filter", "row 0", "row 1", "row 2"), [(f"{k}", *(" ".join(map(str, row)) for row in y[k])) for k in range(2)])
    hand = by_hand(X, W, BIAS, stride=2, padding=1)
    lesson.check(
        "5x5x3 with two 3x3x3 filters, padding 1, stride 2 gives 3x3x2",
        f"conv gives {list(y.shape)}, channels first",
        y.shape == (2, 3, 3),
    )
    lesson.check(
        "Each output is the sum of 27 products and a bias",
        f"{int((y == hand).sum())} of {y.size} numbers equal the sums by hand",
        np.array_equal(y, hand),
    )
    draw(lesson, padded, y)


def draw(lesson: Lesson, padded: Array, y: Array) -> None:
    """The padded input, both filters and the output with their numbers; what makes y[0, 1, 1] is framed."""
    with lesson.picture(
        "worked_example",
        7.5,
        5.6,
        "The 5x5x3 example: padded input, two filters, output; framed: what makes the output in the middle.",
    ) as figure:
        grid = figure.subplots(3, 4, width_ratios=(5, 3, 3, 3))
        for c in range(3):
            numbers(grid[c, 0], padded[c], f"input, channel {c}, padded", frame=(2, 2))
            for k in range(2):
                numbers(grid[c, 1 + k], W[k, c], f"filter {k}, channel {c}", frame=(0, 0) if k == 0 else None)
        for k in range(2):
            numbers(grid[k, 3], y[k], f"output, channel {k}\nbias {BIAS[k]}", frame=(1, 1) if k == 0 else None, side=1)
        grid[2, 3].axis("off")


def numbers(ax: Any, values: Array, title: str, frame: tuple[int, int] | None, side: int = 3) -> None:
    """A matrix with its numbers; a frame of so many cells."""
    from matplotlib.patches import Rectangle

    limit = max(3, int(np.abs(values).max()))
    ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=0.5)
    for (row, column), value in np.ndenumerate(values):
        ax.text(column, row, str(value), ha="center", va="center", fontsize=7)
    if frame:
        ax.add_patch(Rectangle((frame[1] - 0.5, frame[0] - 0.5), side, side, fill=False, edgecolor="black", linewidth=1.5))
    bare(ax, "")
    ax.set_title(title, fontsize=7)


def formula(lesson: Lesson) -> None:
    """The number of positions, against what `conv` returns and against counting."""
    lesson.text("""The formula floor((S + 2p - d(r - 1) - 1) / s) + 1 beside the shape of what `conv` returns, and beside
        counting the positions where the kernel fits, for every combination of S = 1..12, r = 1..4, p = 0..2, s = 1..3, d = 1..2
        that has an output.""")
    sizes, kernels, paddings, strides, dilations = range(1, 13), range(1, 5), range(3), range(1, 4), range(1, 3)
    tried = agree = 0
    for size, r, p, s, d in itertools.product(sizes, kernels, paddings, strides, dilations):
        if size + 2 * p < d * (r - 1) + 1:
            continue
        tried += 1
        counted = len(range(0, size + 2 * p - d * (r - 1), s))
        returned = nc.conv(np.ones((1, size), np.int64), np.ones((1, 1, r), np.int64), stride=s, padding=p, dilation=d).shape[1]
        agree += returned == counted == (size + 2 * p - d * (r - 1) - 1) // s + 1
    lesson.figure("shapes_tried", tried)
    lesson.figure("shapes_that_agree", agree)
    lesson.check("The formula gives the number of outputs", f"in {agree:,} of {tried:,} combinations", agree == tried)


def channels_and_time(lesson: Lesson) -> None:
    """A colour filter sees all channels, a filter for videos also several frames."""
    image = data.photograph(8).astype(np.int64)
    rng = np.random.default_rng(lesson.setting.seed)
    w = rng.integers(-3, 4, (4, 3, 5, 5))
    y = nc.conv(image, w, padding=2)
    by_channel = sum(nc.conv(image[c : c + 1], w[:, c : c + 1], padding=2) for c in range(3))
    video = pan(image, 2, frames=8, height=24, width=32)
    w4 = rng.integers(-3, 4, (4, 3, 5, 5, 9))
    y4 = nc.conv(video, w4)
    # frame t of the output: filter frame f on input frame t + f, summed
    by_frame = np.stack([sum(nc.conv(video[:, t + f], w4[:, :, f]) for f in range(5)) for t in range(y4.shape[1])], axis=1)
    lesson.text("""A photograph has the shape [channels, height, width], a video [channels, time, height, width]. A filter has
        all channels of its input, so that it does not move along them; along time it moves as along height and width.""")
    lesson.table(
        ("", "input", "filters", "output"),
        [
            ("photograph", str(list(image.shape)), str(list(w.shape)), str(list(y.shape))),
            ("video", str(list(video.shape)), str(list(w4.shape)), str(list(y4.shape))),
        ],
    )
    lesson.check(
        "An image's filter sums over all channels",
        f"{y.size:,} numbers equal the sum of three one-channel convolutions",
        np.array_equal(y, by_channel),
    )
    lesson.check(
        "A video's filter sums over frames, too",
        f"{y4.size:,} numbers equal the sum of five 2-D convolutions a frame",
        np.array_equal(y4, by_frame),
    )
    right, left = (
        energies(nc.conv(pan(image / 255, speed, 12, 24, 40).astype(np.float32), motion_filters(SPEED))).mean(axis=1)
        for speed in (SPEED, -SPEED)
    )
    ratios = right[0] / right[1], left[1] / left[0]
    lesson.figure("motion_right_ratio", float(ratios[0]))
    lesson.figure("motion_left_ratio", float(ratios[1]))
    lesson.check(
        "A 4-D filter sees motion, which no single frame shows",
        f"filters for right find {ratios[0]:.0f} times as much as those for left where things move right, "
        f"{1 / ratios[1]:.2g} times where they move left",
        min(ratios) > 3,
    )
