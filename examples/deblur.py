"""A blurred photograph made sharp again, by gradient descent on the picture itself.

Blurring is a convolution A with a known kernel; looked for is the picture x with A x = b. The gradient of 1/2 |A x - b|^2 is
A^T (A x - b), and A^T, the adjoint, is the transposed convolution with the same kernel. One sees that both are adjoint to
rounding, and how far each step brings the picture back to the original (peak signal to noise ratio in dB: higher is better).

    python examples/deblur.py sharp.png     # also writes: original, blurred, restored, side by side
"""

import sys

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

import numconv as nc


def psnr(x, true):
    """Peak signal to noise ratio in dB of values from 0 to 1, away from the border."""
    return -10 * np.log10(np.square(x - true)[:, 8:-8, 8:-8].mean())


def main(target=None):
    """Blur with a 9x9 bell and a little noise, then restore in 100 accelerated steps."""
    rng = np.random.default_rng(0)
    photograph = Image.fromarray(load_sample_image("china.jpg")).reduce(2)
    true = np.ascontiguousarray(np.asarray(photograph).transpose(2, 0, 1), dtype="float32") / 255  # [C, H, W]
    bell = np.exp(-np.square(np.arange(-4, 5)) / (2 * 1.5**2))
    kernel = (np.outer(bell, bell) / bell.sum() ** 2).astype("float32")
    w = np.tile(kernel, (3, 1, 1, 1))  # each colour is a group of its own

    def blur(x):
        return nc.conv(x, w, groups=3)  # valid: only pixels whose window is known

    def adjoint(y):
        return nc.conv_transpose(y, w, groups=3)

    b = blur(true)
    b += 0.001 * rng.standard_normal(b.shape, dtype="float32")
    y = rng.standard_normal(b.shape, dtype="float32")
    print(f"<A x, y> = {np.vdot(blur(true), y):.3f}, <x, A^T y> = {np.vdot(true, adjoint(y)):.3f}")

    x = ahead = blurred = nc.pad(b, (4, 4), "replicate")
    print(f"blurred: {psnr(x, true):.1f} dB")
    for step in range(1, 101):
        before, x = x, np.clip(ahead - adjoint(blur(ahead) - b), 0, 1)  # |A| <= 1, so that a step of 1 descends
        ahead = x + (step - 1) / (step + 2) * (x - before)  # Nesterov's acceleration
        if step in (1, 10, 30, 100):
            print(f"step {step:3}: {psnr(x, true):.1f} dB")
    if target:
        picture = np.clip(np.concatenate([true, blurred, x], axis=2), 0, 1).transpose(1, 2, 0)
        Image.fromarray(np.rint(255 * picture).astype("uint8")).save(target)
        print(f"written: {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
