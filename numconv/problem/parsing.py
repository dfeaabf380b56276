"""From a problem's text form to the problem."""

from __future__ import annotations

from typing import Any

from numconv.errors import ProblemError

from .convolution import ConvProblem
from .names import LONG, Ints, Pairs
from .pooling import PoolProblem
from .windows import WindowProblem
from .writing import SIZES

__all__ = ["parse"]


def _parse_dims(text: str, ndim: int | None = None) -> Ints:
    values = tuple(int(v) for v in text.split("x"))
    return values * ndim if ndim and len(values) == 1 else values


def _parse_pairs(text: str, ndim: int) -> Pairs:
    pairs = []
    for word in text.split("x"):
        low, _, high = word.partition(":")
        pairs.append((int(low), int(high or low)))
    return tuple(pairs * ndim if len(pairs) == 1 else pairs)


_OPTION_FIELDS = {
    "pad": ("pad_mode", str), "flip": ("flip", lambda v: v == "1"), "bias": ("bias", str), "act": ("activation", str),
    "ceil": ("ceil_mode", lambda v: v == "1"), "countpad": ("count_include_pad", lambda v: v == "1"), "norm": ("p", float),
    "indices": ("indices", lambda v: v == "1"), "target": ("target", _parse_dims), "layout": ("layout", str),
    "out": ("out_dtype", LONG.__getitem__), "accuracy": ("accuracy", str), "workspace": ("max_workspace", int),
}  # fmt: skip


def parse(text: str) -> ConvProblem | PoolProblem | WindowProblem:
    """The problem that has this text form.

    Parameters
    ----------
    text : str
        For example ``conv forward f32 n1 c64 k64 g1 in56x56 w3x3 s1 p1 d1``.

    Raises
    ------
    ProblemError
        If the text is not the form of a problem.

    Examples
    --------
    >>> from numconv.problem import parse
    >>> problem = parse("conv forward f32 n1 c64 k64 g1 in56x56 w3x3 s1 p1 d1")
    >>> problem.output, problem.flops
    ((56, 56), 231211008)
    >>> str(problem)
    'conv forward f32 n1 c64 k64 g1 in56x56 w3x3 s1 p1 d1'
    """
    kinds: dict[str, Any] = {kind.word: kind for kind in (ConvProblem, PoolProblem, WindowProblem)}
    try:
        word, op, dtype, *rest = text.split()
        fields: dict[str, Any] = {"op": op, "dtype": LONG[dtype]}
        sizes = {part.rstrip("0123456789x:-"): part for part in rest if "=" not in part}
        ndim = len(_parse_dims(sizes["in"][2:]))
        fields["spatial"] = _parse_dims(sizes.pop("in")[2:])
        fields["kernel" if word == "conv" else "window"] = _parse_dims(sizes.pop("w")[1:])
        fields["stride"] = _parse_dims(sizes.pop("s")[1:], ndim)
        fields["padding"] = _parse_pairs(sizes.pop("p")[1:], ndim)
        fields["dilation"] = _parse_dims(sizes.pop("d")[1:], ndim)
        fields |= {SIZES[letter]: int(part[1:]) for letter, part in sizes.items()}
        for part in rest:
            if "=" in part:
                key, _, value = part.partition("=")
                field, convert = _OPTION_FIELDS[key]
                fields[field] = convert(value)  # type: ignore[operator]
        problem: ConvProblem | PoolProblem | WindowProblem = kinds[word](**fields)
    except ProblemError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        example = "conv forward f32 n1 c64 k64 g1 in56x56 w3x3 s1 p1 d1"
        raise ProblemError(f"{text!r} is not the text form of a problem ({error!r}); an example: {example}") from error
    return problem
