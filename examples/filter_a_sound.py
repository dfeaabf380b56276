"""Filters made by hand, moved along a recorded voice.

One sees how much of the energy in each band of frequencies three kernels let through: a moving average keeps what is slow, a
difference what is fast, a band-pass its band. Run it on a sound of your own, and listen to the result:

    python examples/filter_a_sound.py voice.wav filtered.wav
"""

import sys
from importlib import resources
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import firwin

import numconv as nc

BANDS = ((0, 500), (500, 1000), (1000, 2000), (2000, 4000))  # Hz


def energy(x, rate):
    """The energy of x [T] in each of the bands."""
    power = np.abs(np.fft.rfft(x)) ** 2
    frequency = np.fft.rfftfreq(len(x), 1 / rate)
    return np.array([power[(frequency >= low) & (frequency < high)].sum() for low, high in BANDS])


def main(source=None, target=None):
    """Filter one sound; write what the band-pass makes of it if asked."""
    voice = resources.files("numconv.demo") / "voices" / "italian.flac"
    with (Path(source) if source else voice).open("rb") as file:
        x, rate = soundfile.read(file, dtype="float32", always_2d=True)
    x = x.T  # [C, T]: the channels of a sound are filtered alike
    kernels = {
        "moving average": np.full(9, 1 / 9),
        "difference": np.array([0, 1, -1]),  # k(-1), k(0), k(1): x(t) - x(t - 1)
        "band-pass": firwin(129, (1000, 2000), pass_zero=False, fs=rate),
    }
    print(f"{x.shape[1]:,} samples at {rate:,} Hz; energy that each filter lets through, by frequency")
    print(" " * 16 + "".join(f"{f'{low}-{high} Hz':>16}" for low, high in BANDS))
    for name, kernel in kernels.items():
        w = np.tile(kernel.astype("float32"), (len(x), 1, 1))  # [K, C/G, R], one group a channel
        y = nc.conv(x, w, padding="same", groups=len(x), flip=True)
        print(f"{name:16}" + "".join(f"{share:16.1%}" for share in energy(y[0], rate) / energy(x[0], rate)))
    if target:
        soundfile.write(target, y.T / np.abs(y).max(), rate)
        print(f"written: {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
