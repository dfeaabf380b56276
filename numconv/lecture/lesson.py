"""What a chapter is made of: paragraphs, tables, pictures, figures, and checks of its claim."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from numconv.demo import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Block", "Check", "Lesson", "Picture", "Setting", "Table"]

_WIDTH = 116


class Setting(NamedTuple):
    """What is the same for all chapters of a run."""

    folder: Path
    """Where pictures go."""
    quick: bool
    """Less data and shorter trainings."""
    seed: int
    voices: Path | None
    """The folder of recorded voices, a subfolder a language; None where they are not at hand."""
    kept: dict[str, Any]
    """Results that a later chapter shows again, above all trained networks."""


class Table(NamedTuple):
    """Columns of text under a header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def numeric(self) -> list[bool]:
        """Which columns hold numbers only, so that they are aligned at the right."""
        return [all(cell[:1] in "0123456789-+" for cell in column) for column in zip(*self.rows, strict=True)]


class Picture(NamedTuple):
    """A file in the folder of pictures, and what one sees on it."""

    file: str
    caption: str


class Check(NamedTuple):
    """A part of the claim that can fail."""

    statement: str
    measured: str
    holds: bool


Block = str | Table | Picture | Check


class Lesson:
    """One chapter on its way: it prints what a chapter finds, and keeps it for the page.

    Parameters
    ----------
    number : int
        The number of the claim in the lecture.
    title, claim : str
        The claim is one sentence.
    setting : Setting
    """

    def __init__(self, number: int, title: str, claim: str, setting: Setting):
        self.number, self.title, self.claim, self.setting = number, title, claim, setting
        self.blocks: list[Block] = []
        self.figures: dict[str, float] = {}
        heading = f"{number}. {title}"
        print(f"\n{heading}\n{'-' * len(heading)}\n{_wrapped(f'Claim: {claim}')}", flush=True)

    def text(self, text: str) -> None:
        """A paragraph: what is run, or what one sees."""
        paragraph = " ".join(text.split())
        self.blocks.append(paragraph)
        print(_wrapped(paragraph), flush=True)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Rows of a table; numbers are shown with separators of thousands."""
        table = Table(tuple(header), tuple(tuple(_shown(value) for value in row) for row in rows))
        self.blocks.append(table)
        print(_aligned(table), flush=True)

    def figure(self, name: str, value: float) -> float:
        """Keep a number under a name, for the file of all figures."""
        self.figures[name] = round(float(value), 9)
        return value

    def check(self, statement: str, measured: str, holds: bool) -> None:
        """A part of the claim, what was measured for it, and whether it holds."""
        check = Check(statement, measured, bool(holds))
        self.blocks.append(check)
        print(_wrapped(f"{'HOLDS' if holds else 'FAILS'}: {statement} ({measured})"), flush=True)

    @contextmanager
    def picture(self, name: str, width: float, height: float, caption: str) -> Iterator[Figure]:
        """An empty figure of so many inches; written at the end with few colours, so that a page of them loads fast."""
        path = self.setting.folder / f"{name}.png"
        with pictures.picture(path, width, height, "") as figure:
            yield figure
        with Image.open(path) as image:
            small = image.convert("RGB").quantize(96, dither=Image.Dither.NONE)
        small.save(path, optimize=True)
        self.blocks.append(Picture(path.name, caption))
        print(_wrapped(f"Picture {path.name}: {caption}"), flush=True)

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What an earlier chapter of this run made under this name, or else made now."""
        if name not in self.setting.kept:
            self.setting.kept[name] = make()
        return self.setting.kept[name]

    @property
    def checks(self) -> list[Check]:
        """All checks so far."""
        return [block for block in self.blocks if isinstance(block, Check)]

    @property
    def holds(self) -> bool:
        """Whether the claim holds: it was checked, and no check failed."""
        return bool(self.checks) and all(check.holds for check in self.checks)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_on_hyphens=False, break_long_words=False)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.4g}"


def _aligned(table: Table) -> str:
    lines, numeric = [table.header, *table.rows], table.numeric()
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  " + "  ".join(f"{cell:{'>' if right else '<'}{width}}" for cell, width, right in zip(line, widths, numeric, strict=True))
        for line in lines
    )
