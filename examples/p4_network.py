"""A network that is equivariant to quarter turns by construction, beside a plain one of equal size, on turned digits.

Both have two convolutions and the maximum over all positions; the kernels of the p4 network are applied in four orientations, whose
maximum is taken before the positions'. Each is trained on upright digits, and on digits turned by any angle. What one sees: trained
upright, the p4 network recognises digits turned by 90 degrees exactly as often as upright ones, and the plain one hardly. The price
is that 6 and 9 look alike.

Run it with the numbers of epochs and of splits as arguments: `python p4_network.py 20 5`.
"""

import sys

import numpy as np
from sklearn.datasets import load_digits

from numconv import nn
from numconv.equivariance import rotation

EPOCHS, SPLITS = (int(text) for text in (sys.argv[1:3] if len(sys.argv) > 2 else ("2", "1")))


def plain():
    """Kernels of two layers, and their normalisation."""
    return nn.Sequential(
        nn.Conv(16, 5, padding="same"), nn.BatchNorm(), nn.ReLU(),
        nn.Conv(32, 3, padding="same"), nn.BatchNorm(), nn.ReLU(), nn.GlobalMaxPool(), nn.Linear(10),
    )  # fmt: skip


def p4():
    """The same with half as many channels, of which each has four members."""
    return nn.Sequential(
        nn.GroupLift(8, 5, padding="same"), nn.GroupBatchNorm(), nn.ReLU(),
        nn.GroupConv(16, 3, padding="same"), nn.GroupBatchNorm(), nn.ReLU(), nn.GroupPool(), nn.GlobalMaxPool(), nn.Linear(10),
    )  # fmt: skip


def turned(x, rng):
    """Each image by its own angle."""
    return np.concatenate([rotation(rng.uniform(0, 360))(image[None], 1) for image in x])


def accuracies(make, split):
    """Trained upright and turned: how many of the upright, quarter-turned and turned test images are recognised."""
    found = load_digits()
    x = np.pad(found.images[:, None] / 16, ((0, 0), (0, 0), (1, 1), (1, 1))).astype("float32")
    order = np.random.default_rng(split).permutation(len(x))
    x, labels = x[order], found.target[order]
    train, test, test_labels = (x[:1200], labels[:1200]), x[1200:], labels[1200:]
    tests = (test, rotation(90)(test), turned(test, np.random.default_rng(split)))
    for augment in (None, turned):
        model = make().build(x.shape[1:], rng=split)
        nn.fit(model, train, epochs=EPOCHS, optimiser=nn.AdamW(0.01), augment=augment, rng=split, progress=False)
        yield [nn.evaluate(model, (images, test_labels)).accuracy for images in tests]


def main():
    """Print means, and standard deviations over the splits."""
    print(f"{'network':26s}{'trained':>9s}" + "".join(f"{name:>16s}" for name in ("upright", "turned by 90", "by any angle")))
    for make in (plain, p4):
        size = sum(array.size for array in make().build((1, 10, 10)).parameters.values())
        runs = np.array([list(accuracies(make, split)) for split in range(SPLITS)])
        for name, means, spreads in zip(("upright", "turned"), runs.mean(0), runs.std(0), strict=True):
            cells = "".join(f"{f'{mean:.1%} +- {spread:.1%}':>16s}" for mean, spread in zip(means, spreads, strict=True))
            print(f"{f'{make.__name__}, {size:,} parameters':26s}{name:>9s}{cells}")


if __name__ == "__main__":
    main()
