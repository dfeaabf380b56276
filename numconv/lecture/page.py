"""The page that a run writes: every chapter with its tables, pictures and figures, and the table of all claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numconv import __version__

from .lesson import Block, Check, Lesson, Picture, Table

__all__ = ["claims", "figures", "markdown"]

_INTRODUCTION = """\
Why are networks for sound, images and video made of convolutions? Each chapter takes one claim of the usual course and measures it
with numconv: on recorded voices in five languages, handwritten digits, photographs, and small examples whose numbers can be
followed by hand. The text, tables and pictures of this page are what this command wrote; it prints them, too:

```sh
{command}
```

`--quick` takes less data and shorter trainings, `--chapter 4 5` takes some of the chapters, `--json FILE` writes all figures.
"""


def claims(lessons: Sequence[Lesson]) -> Table:
    """Every check of every claim, with what was measured."""
    return Table(
        ("claim", "what must hold", "measured", "holds"),
        tuple(
            (str(lesson.number), check.statement, check.measured, "yes" if check.holds else "NO")
            for lesson in lessons
            for check in lesson.checks
        ),
    )


def markdown(lessons: Sequence[Lesson], command: str, folder: str) -> str:
    """The page.

    Parameters
    ----------
    lessons : sequence of Lesson
    command : str
        What was run.
    folder : str
        Where the pictures lie, as seen from the page.
    """
    parts = ["# The lecture, measured", _INTRODUCTION.format(command=command), "## The claims", _block(claims(lessons), folder)]
    for lesson in lessons:
        parts += [f"## {lesson.number}. {lesson.title}", f"**Claim.** {lesson.claim}"]
        parts += [_block(block, folder) for block in lesson.blocks]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def figures(lessons: Sequence[Lesson], **run: Any) -> dict[str, Any]:
    """All figures as plain data, for a file of JSON."""
    return {
        "numconv": __version__,
        **run,
        "chapters": [
            {
                "number": lesson.number,
                "title": lesson.title,
                "claim": lesson.claim,
                "holds": lesson.holds,
                "checks": [check._asdict() for check in lesson.checks],
                "figures": lesson.figures,
            }
            for lesson in lessons
        ],
    }


def _block(block: Block, folder: str) -> str:
    match block:
        case Table(header, rows):
            rule = tuple("---:" if right else "---" for right in block.numeric())
            lines = [header, rule, *rows]
            return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)
        case Picture(file, caption):
            return f"![{caption}]({folder}/{file})\n\n*{caption}*"
        case Check(statement, measured, holds):
            return f"- {'**Holds**' if holds else '**Fails**'}: {statement} ({measured})."
        case _:
            return block
