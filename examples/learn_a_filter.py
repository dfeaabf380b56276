"""An unknown filter, found from a photograph and its filtered version by gradient descent.

One sees the loss go down and the weights become those that made the picture: every pixel teaches every weight, because the
weights are shared. A little noise is added to the filtered picture; so many pixels average it away.
"""

import numpy as np
from sklearn.datasets import load_sample_image

import numconv as nc

UNKNOWN = np.array([
    [[[0, -1, 0], [-1, 5, -1], [0, -1, 0]]],  # sharpens
    [[[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]],  # finds edges from left to right
], dtype="float32")  # fmt: skip


def main():
    """Learn both 3x3 filters at once; print loss and error on the way, and the weights."""
    rng = np.random.default_rng(0)
    x = load_sample_image("china.jpg").mean(axis=2, dtype="float32")[None, ::2, ::2] / 255  # [C, H, W]
    x -= x.mean()  # the weights then depend less on each other, so that descent is faster
    seen = nc.conv(x, UNKNOWN)
    seen += 0.1 * rng.standard_normal(seen.shape, dtype="float32")

    w, velocity = np.zeros_like(UNKNOWN), np.zeros_like(UNKNOWN)
    rate = 1 / (9 * np.square(x).sum())  # no direction is steeper than nine times the energy of x
    for step in range(301):
        error = nc.conv(x, w) - seen
        if step % 100 == 0:
            distance = np.linalg.norm(w - UNKNOWN) / np.linalg.norm(UNKNOWN)
            print(f"step {step:3}: loss {np.square(error).mean():8.5f}, error of the weights {distance:.2%}")
        gradient = nc.conv_weight_grad(error, x, w.shape)
        velocity = 0.95 * velocity - rate * gradient
        w += velocity
    print(f"noise alone has a loss of 0.01. The weights, from {seen.size:,} noisy pixels:")
    print(w.round(2))


if __name__ == "__main__":
    main()
