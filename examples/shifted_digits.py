"""A network learns digits in the middle of a picture, and is asked about digits elsewhere.

Handwritten digits of 8x8 pixels are pasted into pictures of 16x16: in the middle for training, shifted by up to 4 pixels for the
test. One sees the accuracy by shift: a convolutional network with global pooling loses nothing, since its weights are those of
every position; a perceptron of many times its size falls to chance, since it has learned each position for itself.

    python examples/shifted_digits.py 15    # epochs: the more, the better both are in the middle
"""

import sys

import numpy as np
from sklearn.datasets import load_digits

from numconv import nn

SHIFTS = (0, 1, 2, 4)


def pasted(images, farthest, rng):
    """Pictures ``[N, 1, 16, 16]``: each digit in the middle, shifted at random by up to so many pixels."""
    pictures = np.zeros((len(images), 1, 16, 16), "float32")
    for picture, image, (row, column) in zip(
        pictures, images, rng.integers(-farthest, farthest + 1, (len(images), 2)), strict=True
    ):
        picture[0, 4 + row : 12 + row, 4 + column : 12 + column] = image / 16
    return pictures


def main(epochs=4):
    """Train both, and print their accuracy by shift."""
    found, rng = load_digits(), np.random.default_rng(0)
    order = rng.permutation(len(found.images))
    images, labels = found.images[order], found.target[order]
    train = pasted(images[:1200], 0, rng), labels[:1200]
    tests = [(pasted(images[1200:], shift, rng), labels[1200:]) for shift in SHIFTS]
    networks = {
        # six zeros around make room for every window that sees a part of a digit; the other layers need no padding
        "convolutional": nn.Sequential(
            nn.Conv(8, 3, padding=6), nn.ReLU(), nn.Conv(16, 3), nn.ReLU(), nn.Conv(32, 3), nn.ReLU(),
            nn.GlobalMaxPool(), nn.Linear(10),
        ),
        "perceptron": nn.Sequential(nn.Flatten(), nn.Linear(256), nn.ReLU(), nn.Linear(10)),
    }  # fmt: skip
    print(f"{'network':16}{'parameters':>12}" + "".join(f"{f'up to {shift}':>10}" for shift in SHIFTS))
    for name, model in networks.items():
        model.build((1, 16, 16), rng=0)
        nn.fit(model, train, epochs=int(epochs), optimiser=nn.AdamW(0.01), progress=False)
        size = sum(array.size for array in model.parameters.values())
        print(f"{name:16}{size:12,}" + "".join(f"{nn.evaluate(model, test).accuracy:10.1%}" for test in tests))


if __name__ == "__main__":
    main(*sys.argv[1:])
