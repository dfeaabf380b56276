"""The rows: real layers and filters by name, in groups, from ``rows.json`` beside this file."""

from __future__ import annotations

import difflib
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numconv.errors import ProblemError
from numconv.problem import ITEMSIZE, ConvProblem, parse

__all__ = ["PASSES", "Row", "all_rows", "case_of", "select", "work_of"]

PASSES = ("forward", "backward")


class Row(NamedTuple):
    """A forward problem with its name, as ``resnet50.56`` of the group ``dense``."""

    name: str
    group: str
    problem: ConvProblem


@functools.cache
def all_rows() -> tuple[Row, ...]:
    """Every row, in the order of the file."""
    groups = json.loads((Path(__file__).parent / "rows.json").read_text(encoding="utf-8"))
    found = []
    for group, rows in groups.items():
        for name, text in rows.items():
            problem = parse(text)
            assert isinstance(problem, ConvProblem)
            found.append(Row(name, group, problem))
    return tuple(found)


def select(names: Sequence[str] | None) -> list[Row]:
    """The rows of these names and groups, in the order of the file.

    Parameters
    ----------
    names : sequence of str, optional
        Names of rows and of groups; None for all rows.

    Raises
    ------
    ProblemError
        If there is no such row or group.

    Examples
    --------
    >>> [row.name for row in select(["tiny", "image11"])]
    ['image11', 'digits8', 'digits8.n256']
    """
    rows = all_rows()
    if names is None:
        return list(rows)
    known = {row.name: None for row in rows} | {row.group: None for row in rows}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 3)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "known are"
            groups = ", ".join(dict.fromkeys(row.group for row in rows))
            listing = "" if close else f" the groups {groups}, and the rows in them: {', '.join(row.name for row in rows)}"
            raise ProblemError(f"no row or group of rows is called {name!r}; {hint}{listing}")
    return [row for row in rows if row.name in names or row.group in names]


def case_of(row: Row, which: str) -> dict[str, Any]:
    """One pass of a row in plain data, for a process that may not have numconv."""
    problem = row.problem
    names = ("dtype", "x_shape", "w_shape", "y_shape", "stride", "padding", "dilation", "groups")
    return {"name": row.name, "direction": which} | {name: getattr(problem, name) for name in names}


def work_of(row: Row, which: str) -> tuple[int, int]:
    """Operations, and bytes read or written at least once, of one pass.

    A backward pass computes the gradients of x, w and bias together: twice the operations, and each array moved once.

    Examples
    --------
    >>> work_of(select(["digits8"])[0], "forward"), work_of(select(["digits8"])[0], "backward")
    ((18432, 4928), (36864, 5824))
    """
    if which == "forward":
        return row.problem.flops, row.problem.bytes
    problem = row.problem
    parts = (problem.replace(op="input_grad"), problem.replace(op="weight_grad", bias="y"))
    read_twice = math.prod(problem.y_shape) * ITEMSIZE[problem.dtype]
    return sum(part.flops for part in parts), sum(part.bytes for part in parts) - read_twice
