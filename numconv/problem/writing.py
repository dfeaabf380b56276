"""From a problem to its text form."""

from __future__ import annotations

import dataclasses
from typing import Any

from .names import SHORT, Ints, Pairs

__all__ = ["SIZES", "text_of"]

SIZES = {"n": "n", "c": "c", "k": "k", "g": "groups"}
"""The letters before the numbers of a text form, with the fields that they stand for."""


def text_of(problem: Any, window: Ints, **words: str) -> str:
    """Operation, sizes and geometry, then ``word=value`` for every option that is not at its default.

    Parameters
    ----------
    problem : ConvProblem, PoolProblem or WindowProblem
    window : tuple of int
        R.
    **words
        The words of its own options, by field; those that all problems share are added.
    """
    parts = [
        problem.word, problem.op, SHORT[problem.dtype],
        *(f"{letter}{getattr(problem, field)}" for letter, field in SIZES.items() if hasattr(problem, field)),
        f"in{_dims(problem.spatial)}", f"w{_dims(window)}", f"s{_short(problem.stride)}", f"p{_short_pairs(problem.padding)}",
        f"d{_short(problem.dilation)}",
    ]  # fmt: skip
    return " ".join(parts + _options(problem, words))


def _dims(values: Ints) -> str:
    return "x".join(map(str, values))


def _short(values: Ints) -> str:
    return str(values[0]) if len(set(values)) == 1 else _dims(values)


def _short_pairs(pairs: Pairs) -> str:
    words = [str(low) if low == high else f"{low}:{high}" for low, high in pairs]
    return words[0] if len(set(words)) == 1 else "x".join(words)


def _options(problem: Any, words: dict[str, str]) -> list[str]:
    words |= {"layout": "layout", "out_dtype": "out", "accuracy": "accuracy", "max_workspace": "workspace"}
    defaults = {f.name: f.default for f in dataclasses.fields(problem)} | {"out_dtype": problem.dtype}
    found = []
    for field, word in words.items():
        value = getattr(problem, field)
        if value != defaults[field]:
            value = SHORT[value] if field == "out_dtype" else _dims(value) if isinstance(value, tuple) else value
            found.append(f"{word}={int(value) if isinstance(value, bool) else value}")
    return found
