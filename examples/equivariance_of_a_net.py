"""A network becomes equivariant to what its training data showed, and to nothing more.

A convolutional network is trained on handwritten digits: once as they are, once with each image turned by up to 40 degrees and
scaled by 0.8 to 1.25 at random. What one sees, in the relative change of the scores and in the digits recognised: a shift changes
little in both, since convolution and global pooling are made for it. Rotations and scalings change less in the second network, but
only within what it saw: a quarter turn is as far away for it as for the first one.

Run it with the number of epochs as argument: `python equivariance_of_a_net.py 20`.
"""

import sys

import numpy as np
from sklearn.datasets import load_digits

from numconv import nn
from numconv.equivariance import Transform, equivariance_error, rotation, scaling, translation

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 3
TRANSFORMS = (translation(1, 1), rotation(20), rotation(40), rotation(90), scaling(0.8), scaling(1.25))


def digits():
    """Images ``[N, 1, 12, 12]`` with a margin, and labels, in random order."""
    found = load_digits()
    x = np.pad(found.images[:, None] / 16, ((0, 0), (0, 0), (2, 2), (2, 2))).astype("float32")
    order = np.random.default_rng(0).permutation(len(x))
    return x[order], found.target[order]


def turned_and_scaled(x, rng):
    """Each image by its own angle and factor."""
    matrices = [
        np.exp(rng.uniform(np.log(0.8), np.log(1.25))) * np.array(rotation(rng.uniform(-40, 40)).matrix) for _ in range(len(x))
    ]
    return np.concatenate([Transform("", matrix, (0, 0))(image[None], 1) for matrix, image in zip(matrices, x, strict=True)])


def trained(x, labels, augment=None):
    """A network with two convolutions and the maximum over all positions."""
    model = nn.Sequential(
        nn.Conv(8, 5, padding="same"), nn.BatchNorm(), nn.ReLU(),
        nn.Conv(24, 5, padding="same"), nn.BatchNorm(), nn.ReLU(), nn.GlobalMaxPool(), nn.Linear(10),
    )  # fmt: skip
    model.build(x.shape[1:], rng=0)
    nn.fit(model, (x, labels), epochs=EPOCHS, optimiser=nn.AdamW(0.01), augment=augment, progress=False)
    return model


def main():
    """Train both, and print how much their scores change when their input does."""
    x, labels = digits()
    before, after = trained(x[:1200], labels[:1200]), trained(x[:1200], labels[:1200], turned_and_scaled)
    x, labels = x[1200:], labels[1200:]

    def cell(model, transform):
        error = equivariance_error(model, x, transform).error
        return f"{error:.2f}, {nn.evaluate(model, (transform(x), labels)).accuracy:.1%} right"

    print(f"{'test images':15s}{'trained on digits':>22s}{'turned and scaled':>22s}")
    for transform in (translation(0, 0), *TRANSFORMS):
        print(f"{transform.name:15s}{cell(before, transform):>22s}{cell(after, transform):>22s}")


if __name__ == "__main__":
    main()
