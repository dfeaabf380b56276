"""Claim 6: parameter efficiency, data efficiency, generalisation; CNN and MLP beside each other."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from matplotlib.ticker import NullFormatter

from numconv.demo.pictures import COLOURS

from . import material, nets
from .lesson import Lesson

__all__ = ["CLAIM", "TITLE", "digit_cnn", "framed_digits", "teach"]

TITLE = "Three advantages"
CLAIM = (
    "Shared weights give parameter efficiency (few weights), data efficiency (every place teaches) and generalisation (a pattern "
    "is recognised wherever it appears; an MLP must have seen it there)."
)

Array = np.ndarray[Any, Any]

FARTHEST = 4
"""Pixels by which digits are shifted at most; they stay inside 16x16."""
FARTHEST_SOUND = 1000
"""Samples by which voices are shifted at most: an eighth of a second."""


def teach(lesson: Lesson) -> None:
    """Digits in a frame: parameters, shifts, examples; then voices."""
    split = framed_digits(lesson)
    lesson.text(f"""Handwritten digits of 8x8 pixels in the middle of 16x16: {len(split.x):,} to learn from, {len(split.test_x)}
        held out. The CNN has three 3x3 convolutions (8, 16, 32 channels), global maxima and ten scores; the MLPs one hidden
        layer.""")
    parameters(lesson, split)
    shifts(lesson, split)
    examples(lesson, split)
    if lesson.setting.voices is None:
        lesson.text("The part on recorded voices is left out: their folder is not here; `--voices FOLDER` names it.")
    elif not lesson.setting.quick:
        on_voices(lesson, material.voices(lesson.setting.voices, lesson.setting.seed))


def framed_digits(lesson: Lesson) -> material.Split:
    """Digits of 8x8 pixels in the middle of 16x16."""
    split = material.digits(lesson.setting.seed)
    return split._replace(x=material.framed(split.x, FARTHEST), test_x=material.framed(split.test_x, FARTHEST))


def digit_cnn(lesson: Lesson, split: material.Split) -> nets.Trained:
    """The CNN of this chapter, and of the chapters before and after."""
    options: dict[str, Any] = {"epochs": 5 if lesson.setting.quick else 12, "rate": 1e-2, "seed": lesson.setting.seed}
    trained: nets.Trained = lesson.kept("digit CNN", lambda: nets.train(nets.digit_cnn(), split, **options))
    return trained


def digit_mlps(lesson: Lesson, split: material.Split) -> dict[int, nets.Trained]:
    """MLPs from the size of the CNN to many times that."""
    widths = (23, 256) if lesson.setting.quick else (23, 64, 256, 1024)
    trained: dict[int, nets.Trained] = lesson.kept(
        "digit MLPs",
        lambda: {h: nets.train(nets.perceptron(h, classes=10), split, epochs=20, seed=lesson.setting.seed) for h in widths},
    )
    return trained


def parameters(lesson: Lesson, split: material.Split) -> None:
    """Accuracy against the number of weights."""
    cnn, mlps = digit_cnn(lesson, split), digit_mlps(lesson, split)
    rows = [("CNN", cnn.parameters, f"{cnn.accuracy:.1%}")]
    rows += [(f"MLP, {width} hidden", mlp.parameters, f"{mlp.accuracy:.1%}") for width, mlp in mlps.items()]
    lesson.table(("digits in the middle", "weights", "accuracy"), rows)
    lesson.figure("digit_cnn_parameters", cnn.parameters)
    lesson.figure("digit_cnn_accuracy", cnn.accuracy)
    for width, mlp in mlps.items():
        lesson.figure(f"digit_mlp_{width}_parameters", mlp.parameters)
        lesson.figure(f"digit_mlp_{width}_accuracy", mlp.accuracy)
    as_good = [mlp.parameters for mlp in mlps.values() if mlp.accuracy >= cnn.accuracy]
    same, largest = mlps[23], list(mlps.values())[-1]
    lesson.check(
        "Parameter efficiency: with as many weights the CNN is more accurate",
        f"{cnn.parameters:,} weights {cnn.accuracy:.1%}, {same.parameters:,} weights {same.accuracy:.1%}",
        cnn.accuracy > same.accuracy,
    )
    times = min(as_good, default=largest.parameters) / cnn.parameters
    lesson.text(
        f"The smallest of these MLPs that is as accurate as the CNN has {times:.0f} times as many weights."
        if as_good
        else f"None of these MLPs is as accurate, with up to {times:.0f} times as many weights."
    )


def accuracy_moved(model: Any, test: tuple[Array, Array], farthest: int, seed: int) -> float:
    """On examples moved by a random shift each, up to so many positions along each axis."""
    x, labels = test
    shifts = np.random.default_rng(seed).integers(-farthest, farthest + 1, (len(x), x.ndim - 2))
    return nets.accuracy(model, (material.moved(x, shifts) if farthest else x, labels))


def shifts(lesson: Lesson, split: material.Split) -> None:
    """Trained in the middle, tested elsewhere."""
    quick, seed = lesson.setting.quick, lesson.setting.seed
    options: dict[str, Any] = {"epochs": 4 if quick else 15, "rate": 1e-2, "seed": seed}
    models = {
        "CNN": digit_cnn(lesson, split).model,
        "CNN with max pooling": nets.train(nets.digit_cnn(pool=True), split, **options).model,
        "MLP, 256 hidden": digit_mlps(lesson, split)[256].model,
    }
    lesson.text(f"""The same networks, trained on digits in the middle only, tested on digits shifted by up to {FARTHEST} pixels
        up, down, left and right. In the second CNN a pooling over 2x2 follows the first layer: it is equivariant to shifts by
        two pixels, and to others nearly.""")
    distances = range(FARTHEST + 1)
    found = {name: [accuracy_moved(model, split.test, d, seed) for d in distances] for name, model in models.items()}
    lesson.table(
        ("shifted by up to", *map(str, distances)), [(name, *(f"{value:.1%}" for value in row)) for name, row in found.items()]
    )
    for name, row in found.items():
        lesson.figure(f"{name.split(',')[0].replace(' ', '_').lower()}_lost_by_shifts", row[0] - row[-1])
    lost, lost_mlp = (found[name][0] - found[name][-1] for name in ("CNN", "MLP, 256 hidden"))
    lesson.check(
        "Generalisation: the CNN recognises digits where it has never seen any, the MLP does not",
        f"shifted by up to {FARTHEST} pixels, the CNN loses {100 * lost:.1f} points, the MLP {100 * lost_mlp:.1f}",
        lost < 0.03 and lost_mlp > 0.3,
    )
    lesson.setting.kept["shifts"] = found


def steps_for(count: int, steps: int) -> int:
    """Epochs that make about so many steps of 32 examples."""
    return math.ceil(steps / math.ceil(count / 32))


def examples(lesson: Lesson, split: material.Split) -> None:
    """Accuracy against the number of examples, for digits in the middle and for digits anywhere."""
    quick, seed = lesson.setting.quick, lesson.setting.seed
    counts = (100, 400) if quick else (50, 100, 200, 400, 800)
    rng = np.random.default_rng(seed)
    anywhere = split._replace(
        x=material.moved(split.x, rng.integers(-FARTHEST, FARTHEST + 1, (len(split.x), 2))),
        test_x=material.moved(split.test_x, rng.integers(-FARTHEST, FARTHEST + 1, (len(split.test_x), 2))),
    )
    order = rng.permutation(len(split.x))
    lesson.text("""More and more examples: digits in the middle, and digits that lie anywhere in 16x16, in training and in the
        test. To this CNN both are the same: its scores do not change with the place. So it is trained once, in the middle, and
        tested anywhere.""")
    curves: dict[str, list[float]] = {"CNN, digits anywhere": [], "MLP, digits in the middle": [], "MLP, digits anywhere": []}
    for n in counts:
        few = {
            name: each._replace(x=each.x[order[:n]], labels=each.labels[order[:n]])
            for name, each in (("middle", split), ("anywhere", anywhere))
        }
        cnn = nets.train(nets.digit_cnn(), few["middle"], epochs=steps_for(n, 60 if quick else 250), rate=1e-2, seed=seed)
        curves["CNN, digits anywhere"].append(nets.accuracy(cnn.model, anywhere.test))
        for place in ("middle", "anywhere"):
            mlp = nets.train(nets.perceptron(256, classes=10), few[place], epochs=steps_for(n, 200 if quick else 600), seed=seed)
            curves[f"MLP, digits {'in the middle' if place == 'middle' else place}"].append(mlp.accuracy)
    lesson.table(("examples", *map(str, counts)), [(name, *(f"{value:.1%}" for value in row)) for name, row in curves.items()])
    for name, row in curves.items():
        for n, value in zip(counts, row, strict=True):
            lesson.figure(f"{name.replace(', ', '_').replace(' ', '_').lower()}_{n}_examples", value)
    lesson.text("""Where digits always lie in the middle an MLP has the easier task: it need not learn anything about places,
        and few examples are enough for it. Where they may lie anywhere, it has to learn every place from examples of its own.""")
    cnn_row, mlp_row = curves["CNN, digits anywhere"], curves["MLP, digits anywhere"]
    lesson.check(
        "Data efficiency: where digits lie anywhere, the CNN needs far fewer examples",
        f"{cnn_row[0]:.1%} from {counts[0]} examples; the MLP {mlp_row[-1]:.1%} from {counts[-1]}",
        cnn_row[0] > mlp_row[-1],
    )
    draw(lesson, split, counts, curves)


def draw(lesson: Lesson, split: material.Split, counts: tuple[int, ...], curves: dict[str, list[float]]) -> None:
    """Weights, shifts and examples against accuracy."""
    cnn, mlps = digit_cnn(lesson, split), digit_mlps(lesson, split)
    caption = (
        "Accuracy on digits against the number of weights, against how far digits are shifted, and against the number of examples."
    )
    with lesson.picture("advantages", 9.5, 3, caption) as figure:
        weights, shifted, learning = figure.subplots(1, 3, sharey=False)
        weights.semilogx([cnn.parameters], [cnn.accuracy], "o", color=COLOURS[1], label="CNN")
        weights.semilogx(
            [mlp.parameters for mlp in mlps.values()], [mlp.accuracy for mlp in mlps.values()], "o-", color=COLOURS[2], label="MLP"
        )
        weights.set(xlabel="weights", ylabel="accuracy")
        for (name, row), colour in zip(lesson.setting.kept["shifts"].items(), (COLOURS[1], COLOURS[3], COLOURS[2]), strict=True):
            shifted.plot(range(len(row)), row, "o-", color=colour, label=name, markersize=4)
        shifted.set(xlabel="shifted by up to (pixels)", ylim=(0, 1.02))
        for (name, row), style in zip(curves.items(), ("o-", "o--", "o-"), strict=True):
            learning.semilogx(counts, row, style, color=COLOURS[1 if name.startswith("CNN") else 2], label=name, markersize=4)
        learning.set(xlabel="examples", ylim=(0, 1.02))
        for ax in (weights, shifted, learning):
            ax.legend(frameon=False, fontsize=7)
            ax.xaxis.set_minor_formatter(NullFormatter())


def on_voices(lesson: Lesson, split: material.Split) -> None:
    """Raw waveforms in five languages: accuracy, weights, shifts; without shifts in training, and with."""
    seed = lesson.setting.seed
    lesson.text(f"""Recorded voices in {", ".join(map(str.capitalize, split.classes))}: raw waveforms of 8,000 samples,
        {len(split.x)} to learn from, {len(split.test_x)} held out; chance 20 %. The CNN has four convolutions along the wave
        and global means, the MLP 64 hidden neurons. Trained as they were recorded, and with each example shifted anew, by up to
        {FARTHEST_SOUND:,} samples, each time it is seen.""")
    makers = {"CNN": nets.voice_cnn, "MLP": nets.voice_mlp}
    rows, found = [], {}
    for name, make in makers.items():
        for shift in (0, FARTHEST_SOUND):
            options: dict[str, Any] = {"epochs": 12, "rate": 5e-3, "seed": seed, "shift": shift}
            kept = f"voice {name}{', shifted' if shift else ''}"
            trained = lesson.kept(kept, partial(nets.train, make(), split, **options))
            moved = accuracy_moved(trained.model, split.test, FARTHEST_SOUND, seed)
            found[name, shift] = trained, moved
            how = "shifted each time" if shift else "as recorded"
            rows.append((f"{name}, {how}", trained.parameters, f"{trained.fit:.1%}", f"{trained.accuracy:.1%}", f"{moved:.1%}"))
            lesson.figure(f"voice_{name}_{'shifted' if shift else 'unshifted'}_accuracy".lower(), trained.accuracy)
            lesson.figure(f"voice_{name}_{'shifted' if shift else 'unshifted'}_accuracy_moved".lower(), moved)
    lesson.table(("voices: network, training", "weights", "on what it learned", "unseen", "unseen, shifted"), rows)
    (cnn, cnn_moved), (mlp, _) = found["CNN", 0], found["MLP", 0]
    lesson.check(
        "On voices, too: fewer weights, and it generalises",
        f"CNN {cnn.parameters:,} weights {cnn.accuracy:.1%}; MLP {mlp.parameters:,} weights {mlp.accuracy:.1%} "
        f"(of what it learned {mlp.fit:.0%})",
        cnn.accuracy > 0.85 and mlp.accuracy < 0.5 and mlp.parameters > 4 * cnn.parameters,
    )
    lesson.check(
        f"The CNN recognises voices shifted by up to {FARTHEST_SOUND:,} samples, though training saw none",
        f"{cnn.accuracy:.1%}, shifted {cnn_moved:.1%}",
        cnn.accuracy - cnn_moved < 0.05,
    )
