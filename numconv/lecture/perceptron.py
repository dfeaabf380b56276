"""Claim 2: what a multilayer perceptron would cost on large inputs, and that it knows no order of its inputs."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any, NamedTuple

import numpy as np

from numconv import nn
from numconv.demo.pictures import COLOURS

from . import material, nets
from .lesson import Lesson

__all__ = ["CLAIM", "TITLE", "Cost", "cost", "teach", "training_bytes"]

TITLE = "Limits of a multilayer perceptron"
CLAIM = (
    "On such inputs a multilayer perceptron (MLP) has too many weights, would not fit into the memory of a GPU, all the less with "
    "gradients, and does not know the order of its inputs: permute them in one fixed way and nothing changes for it."
)

Array = np.ndarray[Any, Any]

HIDDEN = 4096
"""Neurons of the hidden layer, as many as VGG has (Simonyan and Zisserman, ICLR 2015, table 1)."""
INPUTS = {
    "digit": (1, 8, 8),
    "small colour image": (3, 32, 32),
    "second of a voice, 8 kHz": (1, 8000),
    "photograph, 224x224": (3, 224, 224),
    "photograph of a megapixel": (3, 1000, 1000),
    "minute of sound, 44.1 kHz, stereo": (2, 60 * 44_100),
}
GPU = 80e9
"""Bytes of memory of a large GPU."""
MEASURED = 0.7e9
"""Trainings that should take fewer bytes are measured."""


class Cost(NamedTuple):
    """What a training step on one example keeps, in numbers of four bytes."""

    weights: int
    values: int
    """Of the input and the outputs of all layers; a ReLU writes into the array of the layer before."""

    @property
    def bytes(self) -> int:
        """Weights, their gradients and the two moments of AdamW; values and their gradients."""
        return 4 * (4 * self.weights + 2 * self.values)


def mlp() -> Any:
    """One hidden layer, ten classes."""
    return nets.perceptron(HIDDEN, classes=10)


def cnn() -> Any:
    """Four convolutions with stride 2, global means, ten classes: for an input of any size and any number of dimensions."""
    layers = [layer for channels in (16, 32, 64, 64) for layer in (nn.Conv(channels, 3, stride=2, padding="same"), nn.ReLU())]
    return nn.Sequential(*layers, nn.GlobalAvgPool(), nn.Linear(10))


def cost(model: Any, shape: tuple[int, ...]) -> Cost:
    """Count without making the arrays; the layers are those of `mlp` and `cnn`."""
    weights, values = 0, math.prod(shape)
    for _, layer, x_shape in model.leaves(shape):
        y_shape = layer.output_shape(x_shape)
        taps = {nn.Linear: 1, nn.Conv: 3 ** (len(shape) - 1)}.get(type(layer))
        if taps is not None:
            weights += y_shape[0] * (x_shape[0] * taps + 1)
        if not isinstance(layer, nn.ReLU):
            values += math.prod(y_shape)
    return Cost(weights, values)


def training_bytes(model: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """Weights counted in the arrays themselves, and the most memory held at a time during a step of training."""
    example = np.zeros((1, *shape), np.float32), np.zeros(1, int)

    def count_from_here(x: Array, _: np.random.Generator) -> Array:
        tracemalloc.reset_peak()
        return x

    def step() -> None:
        nn.fit(model.build(shape), example, epochs=1, progress=False, augment=count_from_here)

    step()  # kernels are compiled and loaded at the first time
    model.build((1,) * len(shape))
    tracemalloc.start()
    try:
        step()
        return nets.count(model), tracemalloc.get_traced_memory()[1] + example[0].nbytes
    finally:
        tracemalloc.stop()


def teach(lesson: Lesson) -> None:
    """Weights and memory as inputs grow; then all positions permuted."""
    growing(lesson)
    order_is_forgotten(lesson)
    permuted(lesson)


def growing(lesson: Lesson) -> None:
    """Both models for all inputs, computed, and measured where it is small."""
    lesson.text(f"""An MLP with one hidden layer of {HIDDEN:,} neurons (the width of VGG's) and a CNN of four convolutions (3
        taps an axis, stride 2, 16 to 64 channels, global mean), both with ten classes. Memory of training with AdamW in
        float32, for one example at a time: weights, their gradients and two moments, all values and their gradients.""")
    costs = {what: (cost(mlp(), shape), cost(cnn(), shape)) for what, shape in INPUTS.items()}
    rows = [
        (what, math.prod(shape), a.weights, b.weights, _size(a.bytes), _size(b.bytes))
        for (what, shape), (a, b) in zip(INPUTS.items(), costs.values(), strict=True)
    ]
    lesson.table(("input", "numbers", "MLP: weights", "CNN: weights", "MLP: training", "CNN: training"), rows)
    for what, (a, b) in costs.items():
        name = what.split(",")[0].replace(" ", "_")
        lesson.figure(f"mlp_weights_{name}", a.weights)
        lesson.figure(f"cnn_weights_{name}", b.weights)
        lesson.figure(f"mlp_bytes_{name}", a.bytes)
        lesson.figure(f"cnn_bytes_{name}", b.bytes)
    compare_with_measurements(lesson, costs)
    a, b = costs["photograph of a megapixel"]
    lesson.check(
        "An MLP has too many weights", f"{a.weights:,} for a megapixel, the CNN {b.weights:,}", b.weights < 1e6 and a.weights > 1e9
    )
    large = min(costs[what][0].bytes for what in list(INPUTS)[-2:])
    lesson.check(
        f"It would not fit into a GPU of {GPU / 1e9:.0f} GB, above all because of gradients",
        f"a megapixel: {_size(4 * a.weights)} of weights, {_size(a.bytes)} to train; the CNN: {_size(b.bytes)}",
        large > GPU and b.bytes < GPU / 100,
    )
    with lesson.picture("growth", 7, 2.9, "Memory of training as the input grows: MLP and CNN; crosses: measured.") as figure:
        ax = figure.subplots()
        sizes = [math.prod(shape) for shape in INPUTS.values()]
        for i, (name, colour) in enumerate((("MLP", COLOURS[2]), ("CNN", COLOURS[1]))):
            ax.loglog(sizes, [pair[i].bytes for pair in costs.values()], "o", color=colour, label=name, markersize=4)
            marks = [
                (math.prod(INPUTS[what]), took) for (what, kind), took in lesson.setting.kept["memory"].items() if kind == name
            ]
            ax.loglog(*zip(*marks, strict=True), "x", color=colour, markersize=9)
        ax.axhline(GPU, color="grey", linestyle="--")
        ax.text(sizes[0], GPU * 1.3, f"a GPU's {GPU / 1e9:.0f} GB", fontsize=8)
        ax.set(xlabel="numbers of one input", ylabel="bytes", ylim=(1e4, 1e13))
        ax.legend(frameon=False)


def compare_with_measurements(lesson: Lesson, costs: dict[str, tuple[Cost, Cost]]) -> None:
    """Make the models and train them for a step, where that takes less than a gigabyte."""
    rows, ratios, equal = [], [], True
    measured: dict[tuple[str, str], int] = {}
    for what, shape in INPUTS.items():
        for name, make, computed in zip(("MLP", "CNN"), (mlp, cnn), costs[what], strict=True):
            if computed.bytes > (MEASURED / 10 if lesson.setting.quick else MEASURED):
                continue
            weights, took = training_bytes(make(), shape)
            measured[what, name] = took
            equal &= weights == computed.weights
            if computed.bytes > 1e6:
                ratios.append(took / computed.bytes)
            rows.append((name, what, computed.weights, weights, _size(computed.bytes), _size(took)))
    lesson.setting.kept["memory"] = measured
    lesson.text("""Measured where it is small enough: the arrays of the models that were built, and the largest memory that
        Python and NumPy held during a step of `nn.fit`.""")
    lesson.table(("model", "input", "weights, computed", "counted", "memory, computed", "measured"), rows)
    lesson.figure("memory_measured_to_computed_least", min(ratios))
    lesson.figure("memory_measured_to_computed_most", max(ratios))
    lesson.check("The numbers of weights are those of the models", f"{len(rows)} models built", equal)
    lesson.check(
        "The memory of training is of the size computed",
        f"measured {min(ratios):.2f} to {max(ratios):.2f} times that, where it is more than a megabyte",
        min(ratios) > 0.5 and max(ratios) < 2.5,
    )


def _size(count: float) -> str:
    """Bytes in the usual units."""
    power = min(int(math.log10(count)) // 3, 4)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def order_is_forgotten(lesson: Lesson) -> None:
    """Permute the inputs, and the weights of the first layer in the same way: the same numbers, whatever the permutation."""
    rng = np.random.default_rng(lesson.setting.seed)
    split = material.digits(lesson.setting.seed)
    x = np.rint(16 * split.test_x).astype(np.float64)
    model = nets.perceptron(32, classes=10).build(x.shape[1:], dtype="float64")
    for array in model.parameters.values():
        array[...] = rng.integers(-9, 10, array.shape)
    scores = model(x)
    order = rng.permutation(64)
    model.parameters["1.w"][...] = model.parameters["1.w"][:, order]
    mixed = model(x.reshape(-1, 64)[:, order].reshape(x.shape))
    lesson.text("""An MLP with integer weights on digits of integers, then with all 64 positions of all digits permuted in one
        fixed way and the columns of its first layer in the same way. Learning finds either as easily: an MLP sees no
        difference.""")
    lesson.check(
        "For every MLP there is one that does the same on permuted inputs",
        f"{int((scores == mixed).sum()):,} of {scores.size:,} scores equal",
        np.array_equal(scores, mixed),
    )


def permuted(lesson: Lesson) -> None:
    """Train both kinds of network on the inputs as they are, and on permuted ones."""
    seed, quick = lesson.setting.seed, lesson.setting.quick
    split = material.digits(seed)
    split = split._replace(x=material.framed(split.x, 4), test_x=material.framed(split.test_x, 4))
    lesson.text("""Trained with all positions in their order, and with one fixed permutation of all positions: digits in the
        middle of 16x16 pixels, and recorded voices in five languages (raw waveforms, 8,000 samples; chance 20 %). Accuracy on
        examples that were held out:""")
    digits = {"epochs": 5 if quick else 12, "rate": 1e-2, "seed": seed}
    found = {
        "digits: MLP": both_orders(
            lesson, "digit MLP", lambda: nets.perceptron(64, classes=10), split, {"epochs": 20, "seed": seed}
        ),
        "digits: CNN": both_orders(lesson, "digit CNN", nets.digit_cnn, split, digits),
    }
    if lesson.setting.voices and not quick:
        voices, options = material.voices(lesson.setting.voices, seed), {"epochs": 12, "rate": 5e-3, "seed": seed}
        found["voices: MLP"] = both_orders(lesson, "voice MLP", nets.voice_mlp, voices, options)
        found["voices: CNN"] = both_orders(lesson, "voice CNN", nets.voice_cnn, voices, options)
    lesson.table(("", "in order", "permuted"), [(name, f"{a:.1%}", f"{b:.1%}") for name, (a, b) in found.items()])
    for name, (a, b) in found.items():
        lesson.figure(f"{name.replace(': ', '_')}_in_order".lower(), a)
        lesson.figure(f"{name.replace(': ', '_')}_permuted".lower(), b)
    (a, b), (c, d) = found["digits: MLP"], found["digits: CNN"]
    lesson.check("A permutation leaves the MLP as it was", f"digits: {a:.1%} and {b:.1%}", abs(a - b) < 0.03)
    lesson.check(
        "For the CNN it is a loss: it has learned to expect neighbours",
        f"digits: {c:.1%} and {d:.1%}, {(1 - d) / max(1 - c, 1e-3):.1f} times the errors",
        1 - d > 1.5 * (1 - c),
    )
    if "voices: CNN" in found:
        c, d = found["voices: CNN"]
        lesson.check("On voices, where everything lies in the order, it is ruined", f"{c:.1%} and {d:.1%}", c > 0.7 and d < c - 0.3)


def both_orders(lesson: Lesson, name: str, make: Any, split: material.Split, options: dict[str, Any]) -> tuple[float, float]:
    """Accuracy with the positions as they are, and permuted; a later chapter looks at the first network again."""
    in_order = lesson.kept(name, lambda: nets.train(make(), split, **options))
    mixed = nets.train(make(), material.shuffled(split, options["seed"] + 1), **options)
    return in_order.accuracy, mixed.accuracy
