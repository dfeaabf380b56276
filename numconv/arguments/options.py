"""Options as callers give them, in hashable form: ints, words, tuples of these, and truth values."""

from __future__ import annotations

import numbers
import operator
from typing import Any, NamedTuple

from numconv.errors import ProblemError
from numconv.problem import Ints

__all__ = ["Geometry", "PoolGeometry", "flag", "freeze", "geometry_options", "pool_options", "shape"]


class Geometry(NamedTuple):
    """Options of a convolution, as the caller gave them, frozen."""

    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: Any = 1
    pad_mode: Any = "zeros"
    flip: Any = False
    layout: Any = "channels_first"
    activation: Any = None
    output_padding: Any = 0


class PoolGeometry(NamedTuple):
    """Options of pooling, unfolding and padding, as the caller gave them, frozen."""

    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    layout: Any = "channels_first"
    ceil_mode: Any = False
    count_include_pad: Any = True
    p: Any = 2.0
    indices: bool = False
    pad_mode: Any = "zeros"
    ndim: Any = None


_TAKES = {"padding": "an integer, a tuple of integers or a word", "groups": "an integer"}


def freeze(value: Any, what: str) -> Any:
    """An option in hashable form: an int, a word, or a tuple of these; anything else is a ProblemError."""
    kind = value.__class__
    if kind is int or kind is str:
        return value
    if kind is tuple:
        for entry in value:  # the usual case, for which a generator would cost a microsecond
            if entry.__class__ is not int:
                break
        else:
            return value
    if getattr(value, "ndim", 0) > 2:  # of pairs it has two
        raise ProblemError(f"{what} is an array of shape {tuple(value.shape)}; give integers, for a shape that of the array")
    if isinstance(value, tuple | list) or (hasattr(value, "tolist") and value.ndim):
        return tuple(freeze(v, what) for v in value)
    if kind is bool or kind.__name__ == "bool_":
        raise ProblemError(f"{what}={value!r}: a truth value is not a number; give an integer")
    try:
        return operator.index(value)
    except TypeError:
        takes = _TAKES.get(what, "an integer or a tuple of integers")
        raise ProblemError(f"{what}={value!r} is a {kind.__name__}; give {takes}") from None


def shape(value: Any, what: str) -> Ints:
    """A shape in hashable form; an integer, which `freeze` would take, is a ProblemError."""
    frozen = freeze(value, what)
    if not isinstance(frozen, tuple):
        raise ProblemError(f"{what}={value!r} must be a tuple of integers")
    return frozen


def real(value: Any, what: str) -> float:
    """A real number as a float; anything else is a ProblemError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ProblemError(f"{what}={value!r} must be a number")
    return float(value)


def flag(value: Any, what: str) -> bool:
    """A truth value; anything else is a ProblemError."""
    if value is True or value is False:
        return value
    if value.__class__.__name__ in ("bool", "bool_"):
        return bool(value)
    raise ProblemError(f"{what}={value!r} must be True or False")


def geometry_options(
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
    pad_mode: Any = "zeros",
    flip: Any = False,
    layout: Any = "channels_first",
    activation: Any = None,
    output_padding: Any = 0,
) -> tuple[Any, ...]:
    """The options of a convolution in hashable form, in the order of `Geometry`, whose construction would cost as much again."""
    # an integer is taken as it is: a call costs more than the look-up of a plan
    return (
        stride if stride.__class__ is int else freeze(stride, "stride"),
        padding if padding.__class__ is int else freeze(padding, "padding"),
        dilation if dilation.__class__ is int else freeze(dilation, "dilation"),
        groups if groups.__class__ is int else freeze(groups, "groups"),
        pad_mode,
        flip if flip is False else flag(flip, "flip"),
        layout,
        activation,
        output_padding if output_padding.__class__ is int else freeze(output_padding, "output_padding"),
    )


def pool_options(
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    layout: Any = "channels_first",
    ceil_mode: Any = False,
    count_include_pad: Any = True,
    p: Any = 2.0,
    indices: bool = False,
    pad_mode: Any = "zeros",
    ndim: Any = None,
) -> tuple[Any, ...]:
    """The options of a pooling or a window operation in hashable form, in the order of `PoolGeometry`."""
    # what most calls give is taken as it is, as in `geometry_options`
    return (
        stride if stride is None or stride.__class__ is int else freeze(stride, "stride"),
        padding if padding.__class__ is int else freeze(padding, "padding"),
        dilation if dilation.__class__ is int else freeze(dilation, "dilation"),
        layout,
        ceil_mode if ceil_mode is False else flag(ceil_mode, "ceil_mode"),
        count_include_pad if count_include_pad is True else flag(count_include_pad, "count_include_pad"),
        p if p.__class__ is float else real(p, "p"),
        indices,
        pad_mode,
        None if ndim is None else freeze(ndim, "ndim"),
    )
