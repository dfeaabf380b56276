"""Which language is this? A network on raw waves, without any features made by hand, tells five languages of telephone prompts.

It prints how many recordings that it has not heard it gets right, a confusion matrix, and to which frequencies its first kernels
answer most. By default it learns from 300 of the 900 recordings, and not for long; with --full from 720, until it gets nearly all
right. (Each language has its own speaker, but for English and Spanish, which share one: it may tell voices as much as languages.)
"""

from __future__ import annotations

import argparse

import numpy as np

from numconv import training


def main() -> None:
    """Train, test, and look at the first layer."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="learn from four fifths of the recordings, and for longer")
    full = parser.parse_args().full

    task = training.example_task("voices", held_out=0.2 if full else 2 / 3)
    print(training.describe_task(task))
    settings = training.Settings() if full else training.Settings(epochs=5)
    result = training.train(task, settings)
    print(training.describe_result(result))

    kernels = result.model.parameters["0.w"][:, 0]  # [K, 1, R]: one channel of sound
    spectra = np.abs(np.fft.rfft(kernels, 512, axis=1))
    peaks = np.sort(np.fft.rfftfreq(512, 1 / task.rate)[spectra.argmax(axis=1)])
    print(f"\nthe {len(kernels)} kernels of the first layer answer most to (Hz): {' '.join(f'{peak:.0f}' for peak in peaks)}")


if __name__ == "__main__":
    main()
