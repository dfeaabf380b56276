"""Fifth stop, 3-D: a filter over time and space that answers to motion in one direction."""

from __future__ import annotations

from typing import Any

import numpy as np

import numconv as nc

from .pictures import COLOURS, bare, picture, show_map
from .report import Report

__all__ = ["SPEED", "energies", "motion_filters", "pan", "show"]

Array = np.ndarray[Any, Any]

SPEED = 2
"""Pixels a frame: that of the videos, and that to which the filters are tuned."""


def pan(photograph: Array, speed: int, frames: int, height: int, width: int) -> Array:
    """A window moved over a photograph: a colour video ``[3, T, H, W]`` whose content moves `speed` pixels a frame to the right."""
    top, room = (photograph.shape[1] - height) // 2, photograph.shape[2] - width
    start = room // 2 + speed * (frames - 1) // 2
    return np.stack([photograph[:, top : top + height, start - speed * t :][:, :, :width] for t in range(frames)], axis=1)


def motion_filters(speed: float, wavelength: float = 8.0) -> Array:
    """Four filters ``[4, 3, 5, 5, 9]`` over colour, time, height, width: a wave that moves right, two phases of it, then left."""
    t, y, x = np.meshgrid(np.arange(-2, 3), np.arange(-2, 3), np.arange(-4, 5), indexing="ij")
    bell = np.exp(-((t / 2) ** 2 + (y / 2) ** 2 + (x / 3) ** 2) / 2)
    waves = [wave(2 * np.pi / wavelength * (x - v * t)) * bell for v in (speed, -speed) for wave in (np.cos, np.sin)]
    balanced = [w - w.sum() / bell.sum() * bell for w in waves]
    return np.stack([np.stack([w / np.abs(w).sum() / 3] * 3) for w in balanced]).astype(np.float32)


def energies(y: Array) -> Array:
    """What the filters for right and left find, ``[2, T]``: both phases squared and added, so that a wave counts wherever it is."""
    power: Array = (y**2).mean(axis=(2, 3)).reshape(2, 2, -1).sum(axis=1)
    return power


def show(report: Report, photograph: Array, frames: int) -> None:
    """Film the photograph with the content moving right, moving left, and standing still; ask both filters."""
    x = photograph.astype(np.float32) / 255
    height, width = 64, 96
    report.section(
        "Video: motion to the right, motion to the left",
        f"""A window moves over the photograph: a video [colours, frames, height, width] = {[3, frames, height, width]} whose
        content moves {SPEED} pixels a frame. Filters over time and space hold a wave that moves right, or left.""",
    )
    w = motion_filters(SPEED)
    videos = {name: pan(x, speed, frames, height, width) for name, speed in (("right", SPEED), ("left", -SPEED), ("none", 0))}
    found = {"right": energies(report.run("motion filters", nc.conv, videos["right"], w))}
    found |= {name: energies(nc.conv(videos[name], w)) for name in ("left", "none")}

    report.line(f"\n  {'motion':>10s}{'filter for right':>20s}{'filter for left':>20s}")
    for name, (right, left) in found.items():
        report.line(f"  {name:>10s}{right.mean():20.2e}{left.mean():20.2e}")
    ratios = {name: right.mean() / left.mean() for name, (right, left) in found.items()}
    report.line(
        f"  Where things move right, the filter for right finds {ratios['right']:.0f} times as much as the other; where they move"
    )
    report.line(
        f"  left, the filter for left {1 / ratios['left']:.0f} times; where nothing moves, they agree (ratio {ratios['none']:.2f})."
    )
    draw(report, videos, w, {name: energy.mean(axis=1) for name, energy in found.items()})


def draw(report: Report, videos: dict[str, Array], w: Array, found: dict[str, Array]) -> None:
    """Frames, one row of pixels over time, the filters in the same view, and their answers."""
    with picture(report.file("motion.png"), 13, 6.6, "A camera pan, and filters over time and space") as figure:
        grid = figure.subplots(2, 4)
        frames, row = videos["right"].shape[1], videos["right"].shape[2] // 2
        for ax, t in zip(grid[0, :2], (0, frames - 1), strict=True):
            ax.imshow(videos["right"][:, t].transpose(1, 2, 0))
            ax.axhline(row, color="white", linewidth=1)
            bare(ax, f"content moves right: frame {t}")
        for ax, name in zip(grid[0, 2:], ("right", "left"), strict=True):
            ax.imshow(videos[name][:, :, row].transpose(1, 2, 0), aspect="auto")
            ax.set(title=f"the white row over time, moving {name}", xlabel="x (pixels)", ylabel="frame")
        for ax, k, name in zip(grid[1, :2], (0, 2), ("right", "left"), strict=True):
            show_map(ax, w[k].sum(axis=0)[:, 2], f"filter for {name}, x and time", aspect="auto")
            ax.set(xlabel="x (9 pixels)", ylabel="time (5 frames)")
        for ax in grid[1, 2:]:
            ax.remove()
        ax = figure.add_subplot(grid[1, 2].get_gridspec()[1, 2:])
        places = np.arange(len(found))
        for i, name in enumerate(("right", "left")):
            ax.bar(
                places + 0.4 * i - 0.2,
                [energy[i] for energy in found.values()],
                0.38,
                color=COLOURS[1 + i],
                label=f"filter for {name}",
            )
        ax.set_xticks(places, [f"motion: {name}" for name in found])
        ax.set(ylabel="mean energy of the output", title="what the filters find")
        ax.legend(frameon=False)
