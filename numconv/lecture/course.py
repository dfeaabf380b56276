"""The order of the chapters, and one run of them."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numconv as nc
from numconv import media
from numconv.registry import default_registry

from . import (
    advantages,
    boundaries,
    definition,
    dimensions,
    equivariance,
    filters,
    groups,
    images,
    inputs,
    learning,
    material,
    page,
    perceptron,
    volumes,
)
from .lesson import Lesson, Setting

__all__ = ["CHAPTERS", "teach"]

CHAPTERS = dict(
    enumerate(
        (
            inputs,
            perceptron,
            filters,
            definition,
            learning,
            advantages,
            volumes,
            boundaries,
            dimensions,
            images,
            equivariance,
            groups,
        ),
        1,
    )
)


def teach(
    folder: Path, chapters: Sequence[int], *, backend: str | None, seed: int, quick: bool, voices: Path | None
) -> dict[str, Any]:
    """Run chapters in the order of the lecture, print the table of claims, write the page; returns all figures."""
    start = time.perf_counter()
    if backend is not None:
        default_registry().on_device(backend, "cpu", "the lecture")
    if voices is not None:
        media.list_folder(voices, kind="sound")  # a wrong folder is an error before anything is computed
    with nc.using(backend=backend):
        setting = Setting(folder / "lecture", quick, seed, voices or material.find_voices(), {})
        setting.folder.mkdir(parents=True, exist_ok=True)
        lessons = [lesson_of(number, setting) for number in sorted(set(chapters))]
    summary(lessons)
    command = command_of(folder, [lesson.number for lesson in lessons], backend=backend, seed=seed, quick=quick, voices=voices)
    (folder / "lecture.md").write_text(page.markdown(lessons, command, setting.folder.name), encoding="utf-8")
    seconds = time.perf_counter() - start
    print(f"\nWritten: {folder / 'lecture.md'} with its pictures. Done in {seconds:.0f} s.", flush=True)
    return page.figures(lessons, backend=backend, seed=seed, quick=quick, seconds=round(seconds, 1))


def command_of(folder: Path, chapters: Sequence[int], *, backend: str | None, seed: int, quick: bool, voices: Path | None) -> str:
    """The command line of such a run; what has its default is left out."""
    words = ["numconv", "lecture", "--out", str(folder)]
    words += ["--quick"] * quick
    words += [] if len(chapters) == len(CHAPTERS) else ["--chapter", *map(str, chapters)]
    for option, value in {"--backend": backend, "--seed": seed or None, "--voices": voices}.items():
        words += [] if value is None else [option, str(value)]
    return shlex.join(words)


def lesson_of(number: int, setting: Setting) -> Lesson:
    """One chapter, run."""
    chapter = CHAPTERS[number]
    lesson = Lesson(number, chapter.TITLE, chapter.CLAIM, setting)
    chapter.teach(lesson)
    return lesson


def summary(lessons: Sequence[Lesson]) -> None:
    """Every claim with what was measured."""
    print("\nThe claims\n----------")
    for lesson in lessons:
        print(f"{lesson.number:3d}  {'holds' if lesson.holds else 'FAILS'}  {lesson.title}")
        for check in lesson.checks:
            print(f"       {'holds' if check.holds else 'FAILS'}  {check.statement}: {check.measured}")
