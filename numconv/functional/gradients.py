"""Several gradients of one convolution: which were asked for, and where they go. Every check comes before any is computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from numconv.arrays import as_array
from numconv.dispatch import Chosen, Plan, prepare
from numconv.errors import ProblemError

__all__ = ["ConvGrads", "as_grads", "backward", "check_needs", "compute_grads"]


class ConvGrads(NamedTuple):
    """The gradients of a convolution; None where it was not asked for."""

    x: Any = None
    w: Any = None
    bias: Any = None


NO_GRADS = ConvGrads()


def check_needs(op: str, needs: Any) -> tuple[str, ...]:
    """The gradients asked for, by name."""
    if isinstance(needs, tuple) and needs == ConvGrads._fields:
        return ConvGrads._fields
    names = (needs,) if isinstance(needs, str) else tuple(needs) if isinstance(needs, Iterable) else ()
    if not names or any(name not in ConvGrads._fields for name in names):
        raise ProblemError(f"{op}: needs={needs!r} must name at least one of {', '.join(ConvGrads._fields)}")
    return names


def as_grads(op: str, out: Any) -> ConvGrads:
    """The argument `out` of a function that returns the three gradients."""
    if out is not None and not (isinstance(out, tuple | list) and len(out) == len(ConvGrads._fields)):
        raise ProblemError(
            f"{op}: out must be a sequence of three arrays or None, for x, w and bias, and is a {type(out).__name__}"
        )
    return NO_GRADS if out is None else ConvGrads(*out)


def backward(
    op: str, grad_y: Any, x: Any, w: Any, needs: Sequence[str], options: tuple[Any, ...], choice: Chosen, out: Any
) -> ConvGrads:
    """The gradients of `conv` or `conv_transpose` that were asked for, bias and w in one pass."""
    name = f"{op}_backward"
    needs = check_needs(name, needs)
    outs = as_grads(name, out)
    x, w = as_array(x, name, "x"), as_array(w, name, "w")
    calls = []
    if "x" in needs:
        calls.append(prepare(f"{op}_input_grad", (grad_y, w), x.shape, 1, options, choice))
    if "w" in needs or "bias" in needs:
        arrays, position = ((x, grad_y), 0) if op == "conv_transpose" else ((grad_y, x), 1)
        calls.append(prepare(f"{op}_weight_grad", arrays, position, w.shape, options, choice, "bias" in needs))
    return compute_grads(calls, (x, w), outs, needs)


def compute_grads(
    calls: Sequence[tuple[Plan, Sequence[Any]]], others: Sequence[Any], outs: ConvGrads, needs: Sequence[str]
) -> ConvGrads:
    """The gradients of plans with their arrays; every result is checked before any of them is computed.

    A result must overlap neither the `others` nor those of the other plans, which are read or written after it.
    """
    found: dict[str, Any] = {}
    jobs = []
    taken = list(others)
    for plan, ins in calls:
        names = plan.gradient_names
        if outs is NO_GRADS:
            results, forms = plan.results(ins, None)  # new arrays, which overlap nothing
        else:
            results, forms = plan.results([*ins, *taken], tuple([getattr(outs, name) for name in names]))
            taken += results
        found.update(zip(names, results, strict=True))
        jobs.append((plan, forms, ins))
    for plan, forms, ins in jobs:
        plan.compute(forms, ins)
    return ConvGrads(*[found[name] if name in needs else None for name in ConvGrads._fields])
