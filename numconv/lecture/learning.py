"""Claim 5: the gradient of a shared weight is a sum over all positions; a perceptron learns each position for itself."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

import numconv as nc
from numconv import nn
from numconv.demo import data
from numconv.demo.digits import FILTERS, contributions
from numconv.demo.pictures import COLOURS, show_map
from numconv.demo.sound import band_pass

from .lesson import Lesson

__all__ = ["CLAIM", "TITLE", "Learned", "learn", "pieces", "teach"]

TITLE = "Learning the kernel"
CLAIM = (
    "The weights are shared, so dL/dk(tau) = sum over t of dL/dh(t) x(t - tau): every position teaches every weight; "
    "a perceptron, h(t) = W(t, :) x, has weights of its own at every position, and needs far more examples for the same filter."
)

Array = np.ndarray[Any, Any]

LENGTH, TAPS = 64, 9


def teach(lesson: Lesson) -> None:
    """A gradient with all its numbers, the gradient of a bank of filters on all digits, then both models on the same data."""
    worked(lesson)
    on_digits(lesson)
    against_a_perceptron(lesson)


def worked(lesson: Lesson) -> None:
    """Six positions, three weights."""
    x, k, target = np.array([1, 3, 2, -1, 0, 2]), np.array([1, 0, -1]), np.array([2, 1, -3, -2, 4, 0])
    h = nc.conv(x[None], k[None, None], padding=1, flip=True)[0]
    slope = h - target
    at = {t: int(value) for t, value in enumerate(x)}
    products = np.array([[slope[t] * at.get(t - tau, 0) for tau in (-1, 0, 1)] for t in range(len(x))])
    lesson.text("""Six samples x, the kernel k(-1), k(0), k(1) = 1, 0, -1, its response h (flip=True), and what h should be.
        With L = half the sum of (h - target)^2, dL/dh(t) = h(t) - target(t). Each position t adds dL/dh(t) x(t - tau) to the
        gradient of k(tau):""")
    names = tuple(f"to k({tau})" for tau in (-1, 0, 1))
    rows = [(t, int(x[t]), int(h[t]), int(target[t]), int(slope[t]), *map(int, products[t])) for t in range(len(x))]
    lesson.table(("t", "x(t)", "h(t)", "target", "dL/dh(t)", *names), rows)
    by_call = nc.conv_weight_grad(slope[None], x[None], (1, 1, 3), padding=1, flip=True)[0, 0]
    loss = [[half_square(x, k + step * unit, target) for step in (1, -1)] for unit in np.eye(3, dtype=int)]
    by_loss = np.array([(up - down) / 2 for up, down in loss])
    lesson.text("""The sum over t, what `conv_weight_grad` gives, and the slope of the loss itself, (L(k + 1) - L(k - 1)) / 2
        for each weight, which is exact for a loss that is quadratic:""")
    ways = {"sum over t": products.sum(axis=0), "conv_weight_grad": by_call, "from the loss": by_loss}
    lesson.table(("", *names), [(name, *map(int, values)) for name, values in ways.items()])
    equal = np.array_equal(by_call, ways["sum over t"]) and np.array_equal(by_call, by_loss)
    lesson.check("The gradient of a shared weight is the sum over all positions", "3 weights, equal three ways", equal)


def half_square(x: Array, k: Array, target: Array) -> float:
    """The loss of the worked example."""
    h = nc.conv(x[None], k[None, None], padding=1, flip=True)[0]
    return float(np.square(h - target).sum() / 2)


def on_digits(lesson: Lesson) -> None:
    """The same with all digits, five filters, in two dimensions."""
    x, _ = data.digits(200 if lesson.setting.quick else None)
    w = np.array(list(FILTERS.values()), np.int64)[:, None]
    y = nc.conv(x, w, padding=1)
    parts = contributions(y, x)
    equal = int((parts.sum(axis=(-2, -1)) == nc.conv_weight_grad(y, x, w.shape, padding=1)).sum())
    terms = len(x) * y[0, 0].size
    lesson.text(f"""{len(x):,} handwritten digits, integers, through five 3x3 filters: each of the {w.size} weights learns from
        {len(x):,} digits at {y[0, 0].size} positions, {terms:,} terms. Summed by hand over digits and positions, beside
        `conv_weight_grad`:""")
    lesson.figure("terms_of_each_weight", terms)
    lesson.check(
        "So it is for whole images and many filters", f"{equal} of {w.size} weights equal, {terms:,} terms each", equal == w.size
    )


class Learned(NamedTuple):
    """A model after its training."""

    matrix: Array
    """What it multiplies a piece of sound by, ``[T, T]``."""
    weights: int
    error: float
    """On unseen pieces, relative to the size of the response."""


def pieces(count: int, seed: int) -> tuple[Array, Array, Array]:
    """Pieces of recorded voices ``[N, 1, T]`` of equal loudness, what a hidden filter makes of them, and the filter."""
    waves = data.voices(["english", "french", "italian"])
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, waves.x.shape[-1] - LENGTH, count)
    x = np.stack([waves.x[n % 3, :, start : start + LENGTH] for n, start in enumerate(starts)])
    x /= x.std(axis=2, keepdims=True) + 1e-3
    kernel = band_pass(1000, 2000, TAPS, waves.rate).astype(np.float32)[None, None]
    return x, nc.conv(x, kernel, padding="same"), kernel


def learn(shared: bool, x: Array, h: Array, test: tuple[Array, Array], steps: int, seed: int) -> Learned:
    """Train one kernel for all positions, or a weight for each pair of positions, on the same pieces in the same way."""
    if shared:
        model: Any = nn.Sequential(nn.Conv(1, TAPS, padding="same", bias=False))
        shape: tuple[int, ...] = (-1, 1, LENGTH)
    else:
        model = nn.Sequential(nn.Flatten(), nn.Linear(LENGTH, bias=False))
        shape = (-1, LENGTH)
    model.build(x.shape[1:])
    for array in model.parameters.values():
        array[...] = 0  # what the examples say nothing of stays zero
    batch = min(32, len(x))
    nn.fit(
        model,
        (x, h.reshape(shape)),
        epochs=math.ceil(steps * batch / len(x)),
        batch_size=batch,
        loss=nn.mean_squared_error,
        optimiser=nn.AdamW(0.01, weight_decay=0),
        rng=seed,
        progress=False,
    )
    error = model(test[0]) - test[1].reshape(shape)
    w = model.parameters["0.w" if shared else "1.w"]
    matrix = nc.as_matrix(w, (1, LENGTH), padding="same").toarray() if shared else w
    return Learned(matrix, w.size, float(np.linalg.norm(error) / np.linalg.norm(test[1])))


def against_a_perceptron(lesson: Lesson) -> None:
    """Errors of both models for more and more examples."""
    counts = (10, 100, 1000) if lesson.setting.quick else (3, 10, 30, 100, 300, 1000, 3000)
    steps, seed = 600 if lesson.setting.quick else 1500, lesson.setting.seed
    x, h, kernel = pieces(max(counts), seed)
    test_x, test_h, _ = pieces(500, seed + 1)
    lesson.text(f"""Both models learn the same hidden filter (a band-pass of {TAPS} taps) from the same examples: pieces of
        {LENGTH} samples of recorded voices, and what the filter makes of them. The one has a kernel of {TAPS} weights for all
        positions; the other, a layer of a perceptron, {LENGTH}x{LENGTH} weights W(t, :). Same loss, same optimiser, {steps:,}
        steps. Below: the error on unseen pieces, relative to the size of the response (1 is as bad as answering nothing).""")
    learned = {(shared, n): learn(shared, x[:n], h[:n], (test_x, test_h), steps, seed) for n in counts for shared in (True, False)}
    rows = [(n, f"{learned[True, n].error:.2g}", f"{learned[False, n].error:.2g}") for n in counts]
    lesson.table(("examples", f"kernel, {TAPS} weights", f"perceptron, {LENGTH**2:,} weights"), rows)
    for n in counts:
        lesson.figure(f"kernel_error_{n}_examples", learned[True, n].error)
        lesson.figure(f"perceptron_error_{n}_examples", learned[False, n].error)
    few, some, many = 10, 100, counts[-1]
    true = nc.as_matrix(kernel, (1, LENGTH), padding="same").toarray()
    farthest = float(np.abs(learned[True, many].matrix - true).max())
    lesson.check(
        f"{few} examples teach the kernel more than {some} teach the perceptron",
        f"error {learned[True, few].error:.2g} against {learned[False, some].error:.2g}",
        learned[True, few].error < learned[False, some].error / 2,
    )
    lesson.check(
        "The kernel learned is the hidden filter",
        f"largest difference of a weight {farthest:.1e}",
        farthest < 0.02,
    )
    draw(lesson, counts, learned, true)


def draw(lesson: Lesson, counts: tuple[int, ...], learned: dict[tuple[bool, int], Learned], true: Array) -> None:
    """The matrices side by side, and the errors."""
    middle, many = 100, counts[-1]
    caption = "The hidden filter as a matrix, that of the learned kernel, the weights of the perceptron; errors on unseen pieces."
    with lesson.picture("kernel_and_perceptron", 9.5, 2.7, caption) as figure:
        grid = figure.subplots(1, 5, width_ratios=(2, 2, 2, 2, 3))
        matrices = {
            "hidden filter": true,
            f"kernel, {middle} examples": learned[True, middle].matrix,
            f"perceptron, {middle}": learned[False, middle].matrix,
            f"perceptron, {many:,}": learned[False, many].matrix,
        }
        for ax, (title, matrix) in zip(grid[:4], matrices.items(), strict=True):
            show_map(ax, matrix, title, limit=0.25)
        for shared, name, colour in ((True, "kernel", COLOURS[1]), (False, "perceptron", COLOURS[2])):
            grid[4].loglog(
                counts, [max(learned[shared, n].error, 1e-6) for n in counts], "o-", color=colour, label=name, markersize=4
            )
        grid[4].set(xlabel="examples", ylabel="error")
        grid[4].legend(frameon=False)
