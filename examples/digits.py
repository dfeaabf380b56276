"""Handwritten digits by a small network, written out: layers, training, test, and what it does to digits that it finds hardest.

It prints the network, how many digits of a third that was held out it gets right, and draws the three that it is surest about and
wrong. More --epochs get more of them right.
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.datasets import load_digits

from numconv import media, nn
from numconv.training import Shift


def main() -> None:
    """Train, test, and draw the worst mistakes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=6)
    epochs = parser.parse_args().epochs

    found = load_digits()
    x, labels = (found.images[:, None] / 16).astype("float32"), found.target  # [N, 1, 8, 8]
    train, test = media.stratified_split(labels, 1 / 3, rng=0)

    model = nn.Sequential(
        *(nn.Conv(16, 3, padding="same"), nn.BatchNorm(), nn.ReLU()),
        *(nn.Conv(32, 3, padding="same"), nn.BatchNorm(), nn.ReLU(), nn.MaxPool(2)),
        *(nn.Conv(64, 3, padding="same"), nn.BatchNorm(), nn.ReLU(), nn.GlobalAvgPool()),
        nn.Linear(10),
    ).build((1, 8, 8), rng=0)
    print(model.summary())

    optimiser, schedule = nn.AdamW(3e-3, weight_decay=0.1), nn.cosine(warmup=0.1)
    data = (x[train], labels[train])
    nn.fit(model, data, epochs=epochs, optimiser=optimiser, schedule=schedule, augment=Shift(0.125), progress=False)
    print(f"\n{nn.evaluate(model, (x[test], labels[test])).accuracy:.1%} of {len(test)} digits that it has not seen are right")

    scores = nn.predict(model, x[test])
    said = scores.argmax(axis=1)
    margin = scores.max(axis=1) - scores[np.arange(len(test)), labels[test]]  # 0 where it is right
    for i in np.argsort(-margin)[:3]:
        print(f"\nthis is a {labels[test[i]]}, and it says {said[i]}:")
        for row in x[test[i], 0]:
            print("".join(" .:-=+*#%@"[int(9 * value)] * 2 for value in row))


if __name__ == "__main__":
    main()
