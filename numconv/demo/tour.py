"""The order of the stops."""

from __future__ import annotations

import time
from pathlib import Path

import numconv as nc
from numconv.registry import default_registry

from . import data, digits, image, learning, shift, sound, video
from .report import Report

__all__ = ["tour"]


def tour(folder: Path, backend: str | None, threads: int | None, quick: bool) -> None:
    """Run every stop under one choice of backend and threads, then print the table of all calls."""
    start = time.perf_counter()
    if backend is not None:
        default_registry().on_device(backend, "cpu", "the tour")
    with nc.using(backend=backend, threads=threads):
        report = Report(folder, stops=6)
        voices = data.voices(["italian"] if quick else ["english", "french", "italian"])
        photograph = data.photograph(shrink=4 if quick else 1)
        sound.show(report, voices)
        image.show(report, photograph)
        learning.show(report, voices)
        digits.show(report, *data.digits(200 if quick else None))
        video.show(report, data.photograph(shrink=4 if quick else 2), frames=12 if quick else 24)
        shift.show(report, photograph)
    report.finish(time.perf_counter() - start)
