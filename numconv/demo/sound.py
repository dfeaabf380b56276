"""First stop, 1-D: a filter is a short kernel that is moved along the wave."""

from __future__ import annotations

from typing import Any

import numpy as np
import soundfile

import numconv as nc

from .data import Voices
from .pictures import COLOURS, picture, stems
from .report import Report

__all__ = ["BANDS", "band_energies", "band_pass", "difference", "moving_average", "show", "spectrum"]

Array = np.ndarray[Any, Any]

BANDS = ((0, 500), (500, 1000), (1000, 2000), (2000, 4000))  # Hz


def moving_average(taps: int) -> Array:
    """Each sample becomes the mean of its neighbourhood."""
    return np.full(taps, 1 / taps)


def difference() -> Array:
    """x(t) - x(t - 1): with taps k(-1), k(0), k(1), the mathematical convolution reads x(t - tau)."""
    return np.array([0.0, 1.0, -1.0])


def band_pass(low: float, high: float, taps: int, rate: float) -> Array:
    """Keeps what lies between two frequencies: the ideal filter (a difference of two sincs), faded out by a Hamming window."""
    tau = np.arange(taps) - taps // 2
    ideal = 2 * high / rate * np.sinc(2 * high / rate * tau) - 2 * low / rate * np.sinc(2 * low / rate * tau)
    kernel: Array = ideal * np.hamming(taps)
    return kernel


def show(report: Report, voices: Voices) -> None:
    """Filter the voices with three kernels; print what happened to their energy, draw and write them."""
    report.section(
        "Sound: three kernels by hand",
        f"""Goodbye, recorded in {", ".join(map(str.capitalize, voices.names))}: {voices.x.shape[-1]:,} samples at {voices.rate:,}
        Hz each. A kernel k is moved along the wave x: h(t) = sum over tau of x(t - tau) k(tau), the mathematical convolution
        (flip=True).""",
    )
    kernels = {
        "moving average": moving_average(9),
        "difference": difference(),
        "band-pass": band_pass(1000, 2000, 129, voices.rate),
    }
    filtered = {
        name: report.run(name, nc.conv, voices.x, kernel.astype(np.float32)[None, None], padding="same", flip=True)
        for name, kernel in kernels.items()
    }
    report.line("\n  energy kept, by frequency " + "".join(f"{f'{low}-{high} Hz':>15s}" for low, high in BANDS))
    before = band_energies(voices.x, voices.rate)
    for name, wave in filtered.items():
        kept = band_energies(wave, voices.rate) / before
        report.line(f"  {name:26s}" + "".join(f"{share:15.1%}" for share in kept))
    report.line("  The average keeps what is slow, the difference what is fast, the band-pass what lies between 1000 and 2000 Hz.")
    waves = {"voice": voices.x, **filtered}
    draw(report, voices, kernels, waves)
    write_sounds(report, voices, waves)


def band_energies(x: Array, rate: int) -> Array:
    """The energy of all waves in each of `BANDS`."""
    power = (np.abs(np.fft.rfft(x)) ** 2).sum(axis=(0, 1))
    frequency = np.fft.rfftfreq(x.shape[-1], 1 / rate)
    return np.array([power[(frequency >= low) & (frequency < high)].sum() for low, high in BANDS])


def write_sounds(report: Report, voices: Voices, waves: dict[str, Array]) -> None:
    """Each wave as WAV, as loud as the recording at its peak, so that it can be listened to."""
    for i, language in enumerate(voices.names):
        for name, wave in waves.items():
            scale = np.abs(voices.x[i]).max() / np.abs(wave[i]).max()
            label = language if name == "voice" else f"{language}-{name.replace(' ', '-')}"
            soundfile.write(report.file(f"voice-{label}.wav"), scale * wave[i, 0], voices.rate, subtype="PCM_16")


def draw(report: Report, voices: Voices, kernels: dict[str, Array], waves: dict[str, Array]) -> None:
    """A row for the voice and one for each filter: its kernel, the wave, a part of it beside the voice, the spectrum."""
    time = np.arange(voices.x.shape[-1]) / voices.rate
    loudest = int(np.abs(voices.x[0, 0]).argmax())
    part = slice(max(loudest - voices.rate // 100, 0), loudest + voices.rate // 100)
    with picture(report.file("waveforms.png"), 13, 8.5, "A voice and what three filters make of it") as figure:
        grid = figure.subplots(len(waves), 4, width_ratios=(2, 4, 3, 3))
        for (taps, whole, near, frequencies), (name, wave), colour in zip(grid, waves.items(), COLOURS, strict=True):
            if name in kernels:
                stems(taps, np.arange(len(kernels[name])) - len(kernels[name]) // 2, kernels[name], colour)
                taps.set_title(f"kernel: {name}, {np.count_nonzero(kernels[name])} taps")
                taps.locator_params(axis="x", integer=True, nbins=5)
            else:
                taps.axis("off")
                taps.text(0, 0.5, f"a recorded voice\nsays goodbye\n({voices.names[0].capitalize()})", fontsize=11, va="center")
            whole.plot(time, wave[0, 0], color=colour, linewidth=0.5)
            whole.set_title(name)
            near.plot(time[part] * 1e3, voices.x[0, 0, part], color="silver", linewidth=2.5)
            near.plot(time[part] * 1e3, wave[0, 0, part], color=colour, linewidth=1.2)
            near.set_title("20 ms of it" + (" (grey: the voice)" if name in kernels else ""))
            frequencies.plot(*spectrum(wave[0, 0], voices.rate), color=colour, linewidth=1)
            frequencies.set_title("spectrum")
            frequencies.set_ylim(-80, 5)
        for ax, label in zip(grid[-1], ("tap tau (samples)", "time (s)", "time (ms)", "frequency (Hz)"), strict=True):
            ax.set_xlabel(label)
        for taps, whole, near, frequencies in grid:
            taps.set_ylabel("weight")
            whole.set_ylabel("amplitude")
            near.set_ylabel("amplitude")
            frequencies.set_ylabel("power (dB)")


def spectrum(wave: Array, rate: int) -> tuple[Array, Array]:
    """Frequencies in Hz, and the mean power of short windowed pieces at each of them in dB (full scale: 0)."""
    size = 256
    pieces = np.lib.stride_tricks.sliding_window_view(wave, size)[:: size // 2] * np.hanning(size)
    power = (np.abs(np.fft.rfft(pieces)) ** 2).mean(axis=0)
    return np.fft.rfftfreq(size, 1 / rate), 10 * np.log10(power / (size / 4) ** 2 + 1e-12)
