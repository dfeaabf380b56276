"""Claim 3: a filter is a short kernel that moves along the wave; it is one neuron, applied at every position."""

from __future__ import annotations

from typing import Any

import numpy as np

import numconv as nc
from numconv.demo import data
from numconv.demo.pictures import COLOURS, show_map, stems
from numconv.demo.sound import BANDS, band_energies, band_pass, difference, moving_average, spectrum

from .lesson import Lesson

__all__ = ["CLAIM", "TITLE", "neuron", "teach"]

TITLE = "Sound and filters"
CLAIM = (
    "A filter is a short kernel that is moved along the wave: moving averages, differences and band-passes are made by hand; "
    "it is a perceptron in disguise, the weights of one neuron applied at every position."
)

Array = np.ndarray[Any, Any]


def neuron(inputs: Array, weights: Array) -> Any:
    """One neuron without activation: the sum of its inputs times its weights."""
    return (inputs * weights).sum()


def teach(lesson: Lesson) -> None:
    """Three kernels by hand on voices, then the same filter as a neuron and as a matrix."""
    by_hand(lesson)
    in_disguise(lesson)


def by_hand(lesson: Lesson) -> None:
    """What each kernel keeps of the voices, by frequency."""
    voices = data.voices(["english", "french", "italian"])
    kernels = {
        "moving average": moving_average(9),
        "difference": difference(),
        "band-pass": band_pass(1000, 2000, 129, voices.rate),
    }
    lesson.text(f"""Three voices, a second each at {voices.rate:,} Hz, through three kernels made by hand: the mean of 9
        samples; x(t) - x(t - 1); a band-pass of 129 taps for 1,000 to 2,000 Hz. Below: how much of the energy in each band of
        frequencies comes out.""")
    filtered = {name: nc.conv(voices.x.astype(np.float64), k[None, None], padding="same", flip=True) for name, k in kernels.items()}
    before = band_energies(voices.x, voices.rate)
    kept = {name: band_energies(wave, voices.rate) / before for name, wave in filtered.items()}
    lesson.table(
        ("kernel", *(f"{low}-{high} Hz" for low, high in BANDS)),
        [(name, *(f"{share:.1%}" for share in row)) for name, row in kept.items()],
    )
    for name, row in kept.items():
        for (low, high), share in zip(BANDS, row, strict=True):
            lesson.figure(f"{name.replace(' ', '_')}_keeps_{low}_{high}", float(share))
    average, slope, band = kept["moving average"], kept["difference"], kept["band-pass"]
    lesson.check(
        "The average keeps what is slow, the difference what is fast",
        f"lowest against highest band: {average[0]:.0%} and {average[-1]:.1%}; {slope[0]:.1%} and {slope[-1]:.0%}",
        average[0] > 10 * average[-1] and slope[-1] > 10 * slope[0],
    )
    lesson.check(
        "The band-pass keeps its band only",
        f"{band[2]:.0%} inside, at most {max(band[0], band[1], band[3]):.1%} elsewhere",
        band[2] > 0.9 and max(band[0], band[1], band[3]) < 0.05,
    )
    draw(lesson, voices, kernels, filtered)


def draw(lesson: Lesson, voices: data.Voices, kernels: dict[str, Array], filtered: dict[str, Array]) -> None:
    """The kernels, 20 ms of the wave, the spectra."""
    loudest = int(np.abs(voices.x[0, 0]).argmax())
    part = slice(loudest - voices.rate // 100, loudest + voices.rate // 100)
    time = np.arange(-voices.rate // 100, voices.rate // 100) / voices.rate * 1e3
    with lesson.picture(
        "filters", 9.5, 4.6, "Three kernels; 20 ms of a voice (grey) and what each makes of it; spectra before (grey) and after."
    ) as figure:
        grid = figure.subplots(3, 3, width_ratios=(2, 3, 3))
        for (taps, near, frequencies), (name, k), colour in zip(grid, kernels.items(), COLOURS[1:], strict=True):
            stems(taps, np.arange(len(k)) - len(k) // 2, k, colour)
            taps.set_title(f"{name}, {np.count_nonzero(k)} taps")
            near.plot(time, voices.x[0, 0, part], color="silver", linewidth=2)
            near.plot(time, filtered[name][0, 0, part], color=colour, linewidth=1)
            frequencies.plot(*spectrum(voices.x[0, 0], voices.rate), color="silver", linewidth=2)
            frequencies.plot(*spectrum(filtered[name][0, 0], voices.rate), color=colour, linewidth=1)
            frequencies.set(ylim=(-80, 5), ylabel="dB")
        for ax, label in zip(grid[-1], ("tap", "time (ms)", "frequency (Hz)"), strict=True):
            ax.set_xlabel(label)


def in_disguise(lesson: Lesson) -> None:
    """The same numbers from a loop over positions, from a matrix, and from `conv`."""
    wave = data.voices(["italian"]).x[0, 0]
    loudest = int(np.abs(wave).argmax())
    x = np.rint(wave[loudest - 32 : loudest + 32] * 2**15).astype(np.int64)
    k = np.array([1, -3, 5, -3, 1])
    h = nc.conv(x[None], k[None, None], padding="same")[0]
    padded = np.pad(x, 2)
    moved = np.array([neuron(padded[t : t + 5], k) for t in range(len(x))])
    matrix = nc.as_matrix(k[None, None], (1, len(x)), padding="same").toarray()
    lesson.text("""64 samples of a voice as integers, a kernel of 5 taps. One neuron with the kernel as its weights is applied
        at every position. The layer of a perceptron that does the same has a matrix of 64x64 weights: `numconv.as_matrix` gives
        it. It is a Toeplitz matrix, each row the row above it, moved by one: few of its entries are not zero, and these are the
        5 weights again and again.""")
    inside = np.abs(np.subtract.outer(np.arange(64), np.arange(64))) <= 2
    lesson.table(
        ("", "weights", "not zero", "free to choose"),
        [
            ("perceptron", matrix.size, matrix.size, matrix.size),
            ("convolution as a matrix", matrix.size, int(np.count_nonzero(matrix)), k.size),
            ("kernel", k.size, k.size, k.size),
        ],
    )
    lesson.figure("matrix_entries", matrix.size)
    lesson.figure("matrix_nonzero", int(np.count_nonzero(matrix)))
    equal = np.array_equal(h, moved) and np.array_equal(h, matrix @ x)
    lesson.check(
        "A convolution is one neuron applied at every position, and one matrix", f"{h.size} numbers equal, three ways", equal
    )
    toeplitz = np.array_equal(matrix[1:, 1:], matrix[:-1, :-1]) and np.array_equal(np.unique(matrix[~inside]), [0])
    lesson.check(
        "The matrix is sparse, and each row is the row above, moved by one",
        f"{np.count_nonzero(matrix)} of {matrix.size:,} entries are not zero",
        toeplitz,
    )
    with lesson.picture(
        "toeplitz", 6.5, 2.9, "The convolution as a matrix (blue: negative, red: positive), and as its kernel."
    ) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        show_map(left, matrix, "as_matrix: 64 x 64", limit=5)
        stems(right, np.arange(5) - 2, k, COLOURS[2])
        right.set(title="kernel: 5 weights", xlabel="tap")
