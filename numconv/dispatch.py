"""From a call to its executor: the plan cache, the plan, the choice made visible.

A repeated call costs one look-up by its raw arguments. A `Plan` is immutable, holds neither scratch nor weights, and may be shared
between threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .arguments import Geometry, PoolGeometry, Request, problem_of
from .arrays import DeviceArray, allocator, as_array, check_out, device_of, empty, plain, scratch
from .context import Context, current
from .errors import BackendUnavailableError, ProblemError
from .plugin import np_dtype
from .problem import DEFAULT_WORKSPACE, SHORT, ConvProblem
from .registry import Candidate, default_registry

__all__ = ["BoundPlan", "Choice", "Chosen", "Explanation", "Plan", "cached_plan", "find_plan", "make_request", "prepare", "run"]

# What the caller calls the arrays of a function: inputs, then outputs. A name in capitals is used as it is; the others have a batch
# axis and follow the layout.
SIGNATURES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "conv": (("x", "W", "BIAS"), ("y",)),
    "conv_input_grad": (("grad_y", "W"), ("grad_x",)),
    "conv_weight_grad": (("grad_y", "x"), ("GRAD_W", "GRAD_BIAS")),
    "conv_transpose": (("x", "W", "BIAS"), ("y",)),
    "conv_transpose_input_grad": (("grad_y", "W"), ("grad_x",)),
    "conv_transpose_weight_grad": (("x", "grad_y"), ("GRAD_W", "GRAD_BIAS")),
    "max_pool": (("x",), ("y", "indices")),
    "max_pool_backward": (("grad_y", "x"), ("grad_x",)),
    "max_unpool": (("y", "indices"), ("x",)),
    "max_unpool_backward": (("grad", "indices"), ("grad_y",)),
    "avg_pool": (("x",), ("y",)),
    "avg_pool_backward": (("grad_y",), ("grad_x",)),
    "lp_pool": (("x",), ("y",)),
    "lp_pool_backward": (("grad_y", "x"), ("grad_x",)),
    "pad": (("x",), ("y",)),
    "pad_backward": (("grad",), ("grad_x",)),
    "unfold": (("x",), ("columns",)),
    "fold": (("columns",), ("x",)),
}


class Choice(NamedTuple):
    """Who computes, as the caller asked. Calls pass a plain tuple of the same: to construct this costs half a look-up."""

    backend: str | None = None
    algorithm: str | None = None
    accuracy: str | None = None
    dtype: Any = None


Chosen: TypeAlias = tuple[str | None, str | None, str | None, Any]
Form: TypeAlias = tuple[tuple[int, ...], np.dtype[Any]]


def forms_of(arrays: Sequence[Any]) -> list[Form] | None:
    """The shapes and dtypes of NumPy arrays that executors take as they are; None if there are others among them."""
    forms = []
    for array in arrays:
        if type(array) is not np.ndarray or not array.flags.aligned:
            return None
        forms.append((array.shape, array.dtype))
    return forms


class _Array(NamedTuple):
    """What a plan knows of an array: name, the caller's shape and dtype, and how to see it channels first with a batch axis."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    add_axis: bool
    axes: tuple[int, ...] | None

    def canonical(self, array: Any) -> Any:
        if self.add_axis:
            array = array[None]
        return array if self.axes is None else array.transpose(self.axes)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Plan:
    """One problem, and the implementation chosen for it. Call it with the arrays of the public function that it was made for."""

    op: str
    problem: Any
    backend: str
    algorithm: str
    workspace_bytes: int
    _request: Request
    _rows: tuple[Candidate, ...]
    _executor: Any
    _ins: tuple[_Array, ...]
    _outs: tuple[_Array, ...]
    _plain: bool
    _forms: list[Form]
    _allocate: Callable[[tuple[int, ...], Any], Any]
    gradient_names: tuple[str, ...]
    """The arrays of which the results are the gradients."""
    _key: tuple[Any, ...]

    @classmethod
    def of(
        cls, request: Request, problem: Any, batchless: bool, rows: list[Candidate], executor: Any, key: tuple[Any, ...]
    ) -> Plan:
        """The plan for a request, whose first candidate was chosen; `key`: the arguments of `cached_plan`."""
        ins, outs = _arrays_of(request.op, problem, batchless)
        plain = all(a.axes is None and not a.add_axis for a in ins + outs)
        chosen = rows[0]
        return cls(
            request.op,
            problem,
            chosen.backend,
            chosen.algorithm,
            chosen.workspace,
            request,
            tuple(rows),
            executor,
            ins,
            outs,
            plain,
            [(each.shape, each.dtype) for each in ins],
            allocator([(each.shape, each.dtype) for each in outs]),
            tuple(each.name.removeprefix("grad_") for each in outs),
            key,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """What was asked for, of which a copy, or another process, makes the plan of the machine where it is."""
        return cached_plan, self._key

    def __call__(self, *arrays: Any, out: Any = None) -> Any:
        """Compute.

        Parameters
        ----------
        *arrays
            The function's arrays, in its order, of the plan's shapes and dtypes.
        out : array or tuple of arrays, optional
            Where to write the results.
        """
        return self.execute(self.accept(arrays), out)

    def accept(self, arrays: Sequence[Any], known: tuple[_Array, ...] | None = None) -> Sequence[Any]:
        """The arrays of a call in a form that executors take, checked against those of the plan (or `known` ones of them)."""
        if known is None and forms_of(arrays) == self._forms:
            return arrays
        expected = self._ins if known is None else known
        if len(arrays) == len(expected) + 1 and arrays[-1] is None:
            arrays = arrays[:-1]
        if len(arrays) != len(expected):
            names = ", ".join(a.name for a in expected)
            raise ProblemError(f"plan for {self.op}: called with {len(arrays)} arrays, and it takes {len(expected)}: {names}")
        ins = [as_array(a, self.op, k.name) for a, k in zip(arrays, expected, strict=True)]
        for array, each in zip(ins, expected, strict=True):
            if array.shape != each.shape or array.dtype != each.dtype:
                self._refuse(array, each)
        return ins

    def _refuse(self, array: Any, known: _Array) -> None:
        dims = ""
        if isinstance(self.problem, ConvProblem) and known.name in ("grad_y", "x") and self.op != "conv":
            dims = (
                "; the spatial sizes follow floor((S + low + high - d*(r - 1) - 1) / s) + 1 with "
                f"S={self.problem.spatial}: {self.problem.output}"
            )
        raise ProblemError(
            f"{self._request.asked}: {known.name} has shape {tuple(array.shape)} and dtype {array.dtype}, and must have "
            f"{known.shape} and {known.dtype}{dims}"
        )

    def execute(self, ins: Sequence[Any], out: Any = None) -> Any:
        """Compute on arrays that are known to fit."""
        if out is None and self._plain and len(self._outs) == 1 and type(ins[0]) is np.ndarray:
            (known,) = self._outs  # most calls: the steps into the methods below would take as long as the look-up of the plan
            y = self._allocate(known.shape, known.dtype)
            self._executor((y,), ins)
            return y
        outs, forms = self.results(ins, out)
        self.compute(forms, ins)
        return outs[0] if len(outs) == 1 else tuple(outs)

    def results(self, ins: Sequence[Any], out: Any) -> tuple[list[Any], list[Any]]:
        """The arrays for the results, as the caller gets them and as executors take them.

        Those of `out`, checked, or new ones where it is None.
        """
        if out is None:
            if type(ins[0]) is np.ndarray:
                outs = [self._allocate(each.shape, each.dtype) for each in self._outs]
                return outs, outs
            forms = [scratch(each.shape, each.dtype, ins[0]) for each in self._outs]
            return [form.owner if isinstance(form, DeviceArray) else form for form in forms], forms
        given = list(out) if isinstance(out, tuple | list) else [out]
        if any(isinstance(each, tuple | list | int | float | complex) for each in given):
            raise ProblemError(
                f"{self.op}: out is a {type(out).__name__} of numbers, and results are written to arrays; give "
                f"numpy.empty({self._outs[0].shape}, {self._outs[0].dtype.name!r})"
            )
        if len(given) != len(self._outs):
            names = ", ".join(a.name for a in self._outs)
            raise ProblemError(f"{self.op}: out holds {len(given)} arrays, and there are {len(self._outs)} results: {names}")
        outs = []
        for array, known in zip(given, self._outs, strict=True):
            if array is not None:
                name = "out" if len(self._outs) == 1 else f"out for {known.name}"
                check_out(self.op, array, known.shape, known.dtype, [*ins, *outs], name)
            outs.append(empty(known.shape, known.dtype, ins[0]) if array is None else array)
        return outs, list(map(plain, outs))

    def compute(self, forms: list[Any], ins: Sequence[Any]) -> None:
        """Fill the arrays for the results."""
        self._compute_with(self._executor, self._ins, forms, ins)

    def _compute_with(self, executor: Any, known: tuple[_Array, ...], forms: list[Any], ins: Sequence[Any]) -> None:
        if not self._plain:
            forms = [a.canonical(v) for a, v in zip(self._outs, forms, strict=True)]
            ins = [a.canonical(v) for a, v in zip(known, ins, strict=True)]
        executor(forms, ins)

    def bind(self, w: Any) -> BoundPlan:
        """The plan with the weights `w` in the executor's own form; later changes of `w` are not seen.

        Raises
        ------
        ProblemError
            If the function takes no weights, or `w` does not fit.
        """
        position = next((i for i, a in enumerate(self._ins) if a.name == "w"), None)
        if position is None:
            raise ProblemError(
                f"plan for {self.op}: bind(w) is for functions that take weights: conv, conv_input_grad, conv_transpose"
            )
        return BoundPlan(self, self.accept((w,), (self._ins[position],))[0])

    def explain(self) -> Explanation:
        """Every candidate that was considered, the chosen one first, and why."""
        return Explanation(self.problem, self._rows)

    def __repr__(self) -> str:
        return f"<Plan {self.op}: {self.problem} -> {self.backend} {self.algorithm}>"


class BoundPlan:
    """A plan with weights bound: call it with the other arrays."""

    __slots__ = ("_executor", "_forms", "_ins", "plan")

    def __init__(self, plan: Plan, w: Any):
        self.plan = plan
        self._ins = tuple(a for a in plan._ins if a.name != "w")
        self._forms = [(each.shape, each.dtype) for each in self._ins]
        bind = getattr(plan._executor, "bind", None)
        self._executor = _Bound(plan._executor, w.copy()) if bind is None else bind(w)

    def __call__(self, *arrays: Any, out: Any = None) -> Any:
        """Compute with the bound weights; the arrays are those of the function without w."""
        plan = self.plan
        ins = arrays if forms_of(arrays) == self._forms else plan.accept(arrays, self._ins)
        outs, forms = plan.results(ins, out)
        plan._compute_with(self._executor, self._ins, forms, ins)
        return outs[0]

    def __copy__(self) -> BoundPlan:
        """Itself: nothing can change it."""
        return self

    def __deepcopy__(self, memo: Any) -> BoundPlan:
        """Itself: nothing can change it."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse: the weights may be in a form of this machine, of which they cannot be told."""
        raise TypeError(
            f"{self!r} holds weights in a form of this machine and cannot be pickled: send the plan, which can be, and w, and call "
            "plan.bind(w) there"
        )

    def __repr__(self) -> str:
        return f"<Bound{self.plan!r}>"


class _Bound(NamedTuple):
    """An executor with its own copy of the weights, for those that have no form of their own."""

    executor: Any
    w: Any

    def __call__(self, outs: Any, ins: Any) -> None:
        self.executor(outs, (ins[0], self.w, *ins[1:]))


def _arrays_of(op: str, problem: Any, batchless: bool) -> tuple[tuple[_Array, ...], tuple[_Array, ...]]:
    names_in, names_out = SIGNATURES[op]
    if op == "max_pool_backward" and problem.indices:
        names_in = ("grad_y", "indices")
    dtype, out_dtype = np_dtype(problem.dtype), np_dtype(problem.out_dtype)
    ins = [_array(n, s, dtype, problem, batchless) for n, s in zip(names_in, problem.input_shapes, strict=False)]
    outs = [_array(n, s, out_dtype, problem, batchless) for n, s in zip(names_out, problem.output_shapes, strict=False)]
    return tuple(ins), tuple(outs)


def _array(name: str, shape: tuple[int, ...], dtype: Any, problem: Any, batchless: bool) -> _Array:
    if name == "indices":
        dtype = np.dtype(np.int64)
    if name.isupper():
        return _Array(name.lower(), shape, dtype, False, None)
    axes = None
    if problem.layout == "channels_last":
        rank = len(shape)
        axes = (0, rank - 1, *range(1, rank - 1))
        shape = (shape[0], *shape[2:], shape[1])
    return _Array(name, shape[1:] if batchless else shape, dtype, batchless, axes)


class Explanation:
    """The candidates for a problem, the chosen one first; printed, a table of who was asked, who refused and why.

    Attributes
    ----------
    problem : ConvProblem, PoolProblem or WindowProblem
    candidates : tuple of Candidate
        With backend, algorithm, verdict, cost (estimated seconds) and workspace (bytes).
    """

    def __init__(self, problem: Any, candidates: tuple[Candidate, ...]):
        self.problem = problem
        self.candidates = candidates

    @property
    def chosen(self) -> Candidate | None:
        """The candidate that computes; None if all refused."""
        return self.candidates[0] if self.candidates and self.candidates[0].verdict else None

    def __str__(self) -> str:
        backend, algorithm = (
            2 + max(map(len, [name, *(getattr(row, name) for row in self.candidates)])) for name in ("backend", "algorithm")
        )
        head = f"  {'backend':{backend}s}{'algorithm':{algorithm}s}{'estimate':>12s}{'workspace':>12s}  verdict"
        lines = [str(self.problem), head]
        for row in self.candidates:
            mark = "> " if row is self.chosen else "  "
            cost = f"{row.cost * 1e6:.1f} us" if row.verdict else "-"
            verdict = (
                ("yes" + (f": {row.verdict.reason}" if row.verdict.reason else "")) if row.verdict else f"no: {row.verdict.reason}"
            )
            lines.append(f"{mark}{row.backend:{backend}s}{row.algorithm:{algorithm}s}{cost:>12s}{row.workspace:>12d}  {verdict}")
        return "\n".join(lines)

    __repr__ = __str__


def dtype_name(dtype: Any, asked: str) -> str:
    """numconv's name of a dtype given as a name, a type or a NumPy dtype."""
    if isinstance(dtype, str) and dtype in SHORT:
        return dtype
    try:
        name: str = np.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in SHORT:
        raise ProblemError(f"{asked}: dtype {name} is not supported; use one of {', '.join(SHORT)}")
    return name


def make_request(
    op: str, x_shape: Any, w_shape: Any, dtype: Any, options: Any, choice: Choice, context: Context, bias: bool = False
) -> Request:
    """The request of a call: names canonical, defaults from the context."""
    name = dtype_name(dtype, op)
    out = None if choice.dtype is None else dtype_name(choice.dtype, op)
    accuracy = context.accuracy if choice.accuracy is None else choice.accuracy
    return Request(op, x_shape, w_shape, name, out, options, bias, accuracy, context.max_workspace or DEFAULT_WORKSPACE)


def explain_request(request: Request, choice: Choice, device: str) -> Explanation:
    """The candidates for a request, refused or not."""
    problem = problem_of(request).problem
    registry = default_registry()
    if choice.backend is not None:
        registry.check_names((choice.backend,), request.asked)
    return Explanation(problem, tuple(registry.candidates(problem, device, choice.backend, choice.algorithm)))


@functools.lru_cache(maxsize=4096)
def cached_plan(
    op: str, x_shape: Any, w_shape: Any, dtype: Any, options: Any, chosen: Chosen, context: Context, bias: bool, device: str
) -> Plan:
    """The plan of these raw arguments; the context is an argument, so that a plan never outlives the settings it was made under."""
    choice = Choice(*chosen)
    kind = Geometry if op.startswith("conv") else PoolGeometry
    request = make_request(op, x_shape, w_shape, dtype, kind(*options), choice, context, bias)
    problem, batchless = problem_of(request)
    rows = default_registry().select(problem, request.asked, device, choice.backend, choice.algorithm)
    if context.tune and choice.algorithm is None:
        from .tuning import tuned

        rows = tuned(problem, rows, device)
    implementation = rows[0].implementation
    if implementation is None:
        raise BackendUnavailableError(f"{request.asked}: {rows[0].backend} has no implementation")
    key = (op, x_shape, w_shape, dtype, options, chosen, context, bias, device)
    return Plan.of(request, problem, batchless, rows, implementation.build(problem), key)


def find_plan(op: str, x_shape: Any, w_shape: Any, dtype: Any, options: Any, choice: Chosen, bias: bool, device: str) -> Plan:
    """`cached_plan` under the settings in force, with an error text for what cannot be a key."""
    try:
        return cached_plan(op, x_shape, w_shape, dtype, options, choice, current(), bias, device)
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        raise ProblemError(
            f"{op}: an option is of a kind that none takes ({error}): options {options}, {Choice(*choice)}"
        ) from None


def prepare(
    op: str, arrays: tuple[Any, ...], x: Any, w: Any, options: tuple[Any, ...], choice: Chosen, bias: bool = False
) -> tuple[Plan, Sequence[Any]]:
    """The plan of a call, and its arrays, checked.

    `x` and `w` are the two shapes of a `numconv.arguments.Request`, or the positions in `arrays` of the arrays that have them.
    """
    forms = forms_of(arrays)
    if forms is None:
        return _prepare_any(op, arrays, x, w, options, choice, bias)
    x_shape = forms[x][0] if x.__class__ is int else x
    w_shape = forms[w][0] if w.__class__ is int and op in _WEIGHTED else w
    try:
        plan = find_plan(op, x_shape, w_shape, forms[0][1], options, choice, bias, "cpu")
    except ProblemError:
        _check_kinds(op, _names(op, options), arrays)
        raise
    # a dtype in the byte order of another machine is never the plan's own
    return (plan, arrays) if forms == plan._forms else _prepare_any(op, arrays, x, w, options, choice, bias)


def _prepare_any(
    op: str, arrays: tuple[Any, ...], x: Any, w: Any, options: tuple[Any, ...], choice: Chosen, bias: bool
) -> tuple[Plan, Sequence[Any]]:
    """`prepare` for arrays of any kind, and for those that do not fit."""
    ins = [as_array(array, op, name) for array, name in zip(arrays, _names(op, options), strict=False)]
    first = ins[0]
    device = device_of(first)
    x_shape = ins[x].shape if x.__class__ is int else x
    w_shape = ins[w].shape if w.__class__ is int and op in _WEIGHTED else w
    try:
        plan = find_plan(op, x_shape, w_shape, first.dtype, options, choice, bias, device)
    except ProblemError:
        _check_kinds(op, _names(op, options), ins)
        raise
    kind = type(first)
    for array, known in zip(ins, plan._ins, strict=True):
        if array.shape == known.shape and array.dtype is known.dtype and type(array) is kind:
            continue
        _check_kinds(op, _names(op, options), ins)
        if array.shape != known.shape or array.dtype != known.dtype:
            plan._refuse(array, known)
    return plan, ins


def run(
    op: str, arrays: tuple[Any, ...], x: Any, w: Any, options: tuple[Any, ...], choice: Chosen, out: Any = None, bias: bool = False
) -> Any:
    """The one door of the public functions: arrays -> plan -> result; see `prepare`."""
    plan, ins = prepare(op, arrays, x, w, options, choice, bias)
    return plan.execute(ins, out)


_INPUTS = {op: tuple(name.lower() for name in names) for op, (names, _) in SIGNATURES.items()}

# The functions whose second shape is that of an array: for the others an integer is a window or a width.
_WEIGHTED = frozenset(name for name in SIGNATURES if name.startswith(("conv", "max_unpool")))


def _names(op: str, options: tuple[Any, ...]) -> tuple[str, ...]:
    if op == "max_pool_backward" and PoolGeometry(*options).indices:
        return ("grad_y", "indices")
    return _INPUTS[op]


def _conversion(first: str, of_first: np.dtype[Any], name: str, dtype: np.dtype[Any]) -> str:
    """What to write so that two arrays have one dtype: of an integer and a float the float's, else that of the first."""
    if of_first.kind in "biu" and dtype.kind not in "biu":
        return f"{first}.astype({str(dtype)!r})"
    return f"{name}.astype({str(of_first)!r})"


def _check_kinds(op: str, names: tuple[str, ...], ins: Sequence[Any]) -> None:
    """Raise if two inputs differ in dtype, or live on different devices."""
    first = ins[0]
    for name, array in zip(names, ins, strict=False):
        dtype_name(array.dtype, f"{op}: {name}")
        if name != "indices" and array.dtype != first.dtype:
            raise ProblemError(
                f"{op}: {names[0]} has dtype {first.dtype} and {name} has {array.dtype}: all arrays of a call have one dtype; "
                f"convert one of them, for example {_conversion(names[0], first.dtype, name, array.dtype)}"
            )
        if device_of(array) != device_of(first):
            raise ProblemError(
                f"{op}: {names[0]} lives on the {device_of(first)} and {name} on the {device_of(array)}; move one of them"
            )
