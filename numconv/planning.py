"""Plans, explanations and shapes for people: `plan`, `explain`, `output_shape`, `backends`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal, overload

from . import functional
from .arguments import Geometry, PoolGeometry, Request, flag, freeze, geometry_options, pool_options, problem_of
from .arrays import device_of
from .context import current
from .dispatch import Choice, Explanation, Plan, _arrays_of, explain_request, find_plan, make_request
from .errors import ProblemError, did_you_mean
from .functional.gradients import ConvGrads, as_grads, check_needs, compute_grads
from .registry import BackendInfo, default_registry

__all__ = ["BackendTable", "BackwardPlan", "backends", "explain", "output_shape", "plan"]

_CHOICE = ("backend", "algorithm", "accuracy", "dtype", "out")


class BackendTable(tuple[BackendInfo, ...]):
    """A tuple of `BackendInfo`; printed, a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        lines = [f"{'backend':12s}{'available':11s}{'device':8s}{'version':10s}{'from':26s}reason"]
        for row in self:
            available = ("yes" if row.automatic else "on demand") if row.available else "no"
            lines.append(
                f"{row.name:12s}{available:11s}{row.device:8s}{row.version:10s}{row.distribution:26s}{row.reason}".rstrip()
            )
        return "\n".join(lines)


def backends() -> BackendTable:
    """Every backend that is installed: whether it is available, and why not.

    Returns
    -------
    tuple of BackendInfo
        With name, available, reason, device, version, automatic, distribution; printed, a table. No kernel code is imported.

    Examples
    --------
    >>> import numconv as nc
    >>> [info.available for info in nc.backends() if info.name == "reference"]
    [True]
    """
    return BackendTable(default_registry().infos())


def _options(op: str, given: dict[str, Any]) -> tuple[Any, ...]:
    """The options of a public function from keywords, with that function's defaults."""
    parameters = inspect.signature(getattr(functional, op)).parameters.values()
    known = {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in (*_CHOICE, "needs", "bias")}
    unknown = sorted(set(given) - set(known))
    if unknown:
        names = ", ".join(unknown)
        hint = did_you_mean(unknown[0], known)
        raise ProblemError(f"plan for {op}: no option is called {names}; it takes {', '.join(known)}{hint}")
    values = known | given
    if "mode" in values:
        values["pad_mode"] = values.pop("mode")
    if "return_indices" in values:
        values["indices"] = flag(values.pop("return_indices"), "return_indices")
    if op == "max_pool_backward":
        values["indices"] = bool(values["indices"])
    return geometry_options(**values) if op.startswith("conv") else pool_options(**values)


def _check_op(op: Any, bias: bool = False) -> None:
    if op not in functional.__all__ or op == "ConvGrads":
        names = ", ".join(name for name in functional.__all__ if name != "ConvGrads")
        hint = did_you_mean(op, functional.__all__)
        raise ProblemError(f"op={op!r} is not the name of a function; use one of {names}{hint}")
    if flag(bias, "bias") and op not in ("conv", "conv_transpose"):
        raise ProblemError(f"bias={bias!r}: {op} takes no bias; conv and conv_transpose do")


def _parts(op: str, needs: Sequence[str]) -> dict[str, str]:
    """The internal operations behind a backward function, by the gradient that they give."""
    base = op.removesuffix("_backward")
    weights = "bias" if "bias" in needs else "w"
    parts = {"x": f"{base}_input_grad", weights: f"{base}_weight_grad"}
    return {name: part for name, part in parts.items() if name in needs or (name != "x" and "w" in needs)}


@overload
def plan(
    op: Literal["conv_backward", "conv_transpose_backward"],
    x_shape: Sequence[int],
    w_shape: Any,
    dtype: Any = "float32",
    *,
    bias: bool = False,
    activation: str | None = None,
    like: Any = None,
    needs: Sequence[str] = ("x", "w", "bias"),
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
    out_dtype: Any = None,
    **options: Any,
) -> BackwardPlan: ...
@overload
def plan(
    op: str,
    x_shape: Sequence[int],
    w_shape: Any,
    dtype: Any = "float32",
    *,
    bias: bool = False,
    activation: str | None = None,
    like: Any = None,
    needs: Sequence[str] = ("x", "w", "bias"),
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
    out_dtype: Any = None,
    **options: Any,
) -> Plan: ...
def plan(
    op: str,
    x_shape: Sequence[int],
    w_shape: Any,
    dtype: Any = "float32",
    *,
    bias: bool = False,
    activation: str | None = None,
    like: Any = None,
    needs: Sequence[str] = ("x", "w", "bias"),
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
    out_dtype: Any = None,
    **options: Any,
) -> Plan | BackwardPlan:
    """The implementation that a call would use, found beforehand, to be called many times.

    Parameters
    ----------
    op : str
        A public function's name, for example "conv" or "max_pool_backward".
    x_shape : sequence of int
        The shape of x (for conv_transpose of its input, for pad_backward and max_unpool_backward of grad).
    w_shape : sequence of int
        The shape of w; for pooling, unfold and fold the window, for pad the width, for max_unpool the shape of y.
    dtype : dtype
        Of the arrays.
    bias : bool
        Whether a bias will be given (conv, conv_transpose).
    activation : str, optional
        As for `conv`.
    like : array, optional
        An array of the kind that will be given: it decides the device. By default NumPy's.
    needs : sequence of {"x", "w", "bias"}
        For conv_backward and conv_transpose_backward.
    backend, algorithm, accuracy
        As for `conv`.
    out_dtype : dtype, optional
        The function's `dtype`: that of the result.
    **options
        The function's own options: stride, padding, ...

    Returns
    -------
    Plan, or BackwardPlan for conv_backward and conv_transpose_backward
        Called with the function's arrays and `out`. `bind(w)` holds the weights in the executor's own form; `backend`,
        `algorithm`, `workspace_bytes`, `problem` and `explain()` tell what was chosen. Immutable, and shared between threads.

    Raises
    ------
    ProblemError, UnsupportedProblemError, BackendUnavailableError, UnknownBackendError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np, numconv as nc
    >>> plan = nc.plan("conv", (1, 1, 5), (1, 1, 3), "float64", padding=1, backend="reference")
    >>> plan.backend, plan.algorithm
    ('reference', 'direct')
    >>> plan(np.ones((1, 1, 5)), np.ones((1, 1, 3)))
    array([[[2., 3., 3., 3., 2.]]])
    """
    _check_op(op, bias)
    if activation is not None:
        options["activation"] = activation
    frozen = _options(op, options)
    choice = Choice(backend, algorithm, accuracy, out_dtype)
    device = "cpu" if like is None else device_of(like)
    first, second = freeze(x_shape, "x_shape"), freeze(w_shape, "w_shape")

    def part(name: str, with_bias: bool) -> Plan:
        return find_plan(name, first, second, dtype, frozen, choice, with_bias, device)

    if not op.startswith("conv") or not op.endswith("_backward"):
        return part(op, bias)
    needs = check_needs(op, needs)
    return BackwardPlan(op, {need: part(name, need == "bias") for need, name in _parts(op, needs).items()}, needs)


class BackwardPlan:
    """The plans behind `conv_backward` or `conv_transpose_backward`: called with (grad_y, x, w), it returns `ConvGrads`."""

    def __init__(self, op: str, plans: dict[str, Plan], needs: tuple[str, ...]):
        self.op = op
        self.plans = plans
        self.needs = needs

    def __call__(self, grad_y: Any, x: Any, w: Any, out: Any = None) -> ConvGrads:
        """The gradients; `out` as for `conv_backward`."""
        outs = as_grads(self.op, out)
        for_w = (x, grad_y) if self.op == "conv_transpose_backward" else (grad_y, x)
        calls = [(each, each.accept((grad_y, w) if name == "x" else for_w)) for name, each in self.plans.items()]
        return compute_grads(calls, (x, w), outs, self.needs)

    def __repr__(self) -> str:
        return f"<BackwardPlan {self.op}: {', '.join(map(repr, self.plans.values()))}>"

    @property
    def backend(self) -> str:
        """The backends, joined by ' + ' where they differ."""
        return " + ".join(dict.fromkeys(each.backend for each in self.plans.values()))

    @property
    def algorithm(self) -> str:
        """The implementations, joined by ' + ' where they differ."""
        return " + ".join(dict.fromkeys(each.algorithm for each in self.plans.values()))

    @property
    def workspace_bytes(self) -> int:
        """Of the plan that needs most: they run one after the other."""
        return max(each.workspace_bytes for each in self.plans.values())

    def explain(self) -> str:
        """The explanations of all plans."""
        return "\n\n".join(str(each.explain()) for each in self.plans.values())


def _request(op: str, x_shape: Any, w_shape: Any, dtype: Any, options: dict[str, Any], choice: Choice, bias: bool) -> Request:
    kind = Geometry if op.startswith("conv") else PoolGeometry
    shapes = freeze(x_shape, "x_shape"), freeze(w_shape, "w_shape")
    return make_request(op, *shapes, dtype, kind(*_options(op, options)), choice, current(), bias)


def explain(
    op: str,
    x_shape: Sequence[int],
    w_shape: Any,
    dtype: Any = "float32",
    *,
    bias: bool = False,
    like: Any = None,
    backend: str | None = None,
    algorithm: str | None = None,
    accuracy: str | None = None,
    out_dtype: Any = None,
    **options: Any,
) -> Explanation:
    """Every backend and implementation for a problem: the chosen one first, the others with their estimate or their refusal.

    Parameters
    ----------
    op, x_shape, w_shape, dtype, bias, like, backend, algorithm, accuracy, out_dtype, **options
        As for `plan`; not for conv_backward and conv_transpose_backward, which are two problems.

    Returns
    -------
    Explanation
        Printed, a table. Nothing is built, and a problem that every backend refuses is explained too.

    Raises
    ------
    ProblemError, UnknownBackendError
        If there is no such problem or backend.

    Examples
    --------
    >>> import numconv as nc
    >>> explanation = nc.explain("conv", (1, 3, 32, 32), (8, 3, 3, 3), backend="reference")
    >>> explanation.chosen.algorithm
    'direct'
    """
    _check_op(op, bias)
    if op.startswith("conv") and op.endswith("_backward"):
        raise ProblemError(f"explain: {op} is two problems; ask for conv_input_grad and conv_weight_grad, or plan(...).explain()")
    choice = Choice(backend, algorithm, accuracy, out_dtype)
    request = _request(op, x_shape, w_shape, dtype, options, choice, bias)
    return explain_request(request, choice, "cpu" if like is None else device_of(like))


def output_shape(op: str, x_shape: Sequence[int], w_shape: Any, **options: Any) -> tuple[int, ...]:
    """The shape that a function returns, computed from shapes alone.

    Parameters
    ----------
    op : str
        A public function's name.
    x_shape, w_shape : sequence of int
        As for `plan`.
    **options
        The function's own options.

    Returns
    -------
    tuple of int

    Raises
    ------
    ProblemError
        If there is no such problem.

    Examples
    --------
    >>> import numconv as nc
    >>> nc.output_shape("conv", (3, 5, 5), (2, 3, 3, 3), stride=2, padding=1)
    (2, 3, 3)
    >>> nc.output_shape("max_pool", (1, 8, 7, 7), 2, ceil_mode=True)
    (1, 8, 4, 4)
    """
    _check_op(op)
    if op.startswith("conv") and op.endswith("_backward"):
        raise ProblemError(f"output_shape: {op} returns three arrays, of the shapes of x, w and bias")
    request = _request(op, x_shape, w_shape, "float32", options, Choice(), False)
    problem, batchless = problem_of(request)
    shape: tuple[int, ...] = _arrays_of(op, problem, batchless)[1][0].shape
    return shape
