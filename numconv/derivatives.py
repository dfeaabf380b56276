"""Which function is the derivative of which: what the bridges to other libraries' automatic differentiation share.

The convolution is bilinear, so with x, w and y it makes one trilinear form, <y, conv(x, w)>. Each of its three operations is the
gradient of that form for one of the three: they are each other's derivatives, of any order. The same holds for the transposed
convolution. Functions of windows are linear, but for maxima and norms, and come in pairs of a function and its adjoint; so does
what puts maxima back, at positions that are known.

Nothing is computed here: arrays are those of `numconv.dispatch.run`. All objects are hashable, without arrays.
"""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from .arguments import Geometry, PoolGeometry, problem_of
from .context import Context, current, resumed
from .dispatch import Choice, _arrays_of, make_request, run

__all__ = ["Folded", "Trilinear", "Unpooling", "Windows", "parsed"]

Shape = tuple[int, ...]

# Per family and gradient asked for: the operation, and which arrays it takes, in its order.
_OPERATIONS = {
    ("conv", "y"): ("conv", "xw"),
    ("conv", "x"): ("conv_input_grad", "yw"),
    ("conv", "w"): ("conv_weight_grad", "yx"),
    ("conv_transpose", "y"): ("conv_transpose", "xw"),
    ("conv_transpose", "x"): ("conv_transpose_input_grad", "yw"),
    ("conv_transpose", "w"): ("conv_transpose_weight_grad", "xy"),
}


class Folded(NamedTuple):
    """One call that computes another for each entry of mapped inputs, and where in its arrays the mapped axis goes.

    Attributes
    ----------
    call : Trilinear
    axes : tuple of int or None
        Of each input the axis, counted from the end, before which the mapped one is put; None: it has none, and gets none.
    result : int
        The same for the result.
    joined : bool
        Whether the mapped axis makes one axis with that one. Else it stands before it: arrays without N get a batch axis.
    """

    call: Trilinear
    axes: tuple[int | None, ...]
    result: int
    joined: bool


@dataclass(frozen=True, slots=True)
class Trilinear:
    """One of the three operations of a convolution.

    Parameters
    ----------
    family : {"conv", "conv_transpose"}
    target : {"y", "x", "w"}
        What is computed, from the other two.
    x_shape, w_shape : tuple of int
        The shapes of the function's x and w, which with the options determine that of y.
    options : tuple
        As `numconv.arguments.geometry_options` gives them.
    choice : Choice
    context : Context or None
        The settings in force when the function was called, which hold for its derivatives, in whatever thread they run. None: those
        in force when it runs.
    """

    family: str
    target: str
    x_shape: Shape
    w_shape: Shape
    options: tuple[Any, ...]
    choice: Choice
    context: Context | None

    @property
    def op(self) -> str:
        """The operation's name in `numconv.dispatch`."""
        return _OPERATIONS[self.family, self.target][0]

    @property
    def roles(self) -> str:
        """The letters of the two arrays that it takes."""
        return _OPERATIONS[self.family, self.target][1]

    def _derived(self, target: str) -> Trilinear:
        """Towards another of the three, by whatever algorithm: one that was asked for need not have that operation."""
        choice, context = _any_algorithm(self.choice, self.context)
        return replace(self, target=target, choice=choice, context=context)

    def derivative(self, role: str, cotangent: Any, first: Any, second: Any) -> tuple[Trilinear, Any, Any]:
        """The operation, with its two arrays, that takes the gradient of the result back to the input `role`."""
        arrays = {self.target: cotangent} | dict(zip(self.roles, (first, second), strict=True))
        towards = self._derived(role)
        return towards, arrays[towards.roles[0]], arrays[towards.roles[1]]

    def run(self, first: Any, second: Any, bias: Any = None) -> Any:
        """Compute, on arrays."""
        arrays = (first, second) if bias is None else (first, second, bias)
        call = (self.op, arrays, self.x_shape, self.w_shape, self.options, self.choice, None, bias is not None)
        if self.context is None or self.context is current():  # the usual case, at a third of the time
            return run(*call)
        with resumed(self.context):
            return run(*call)

    def result_shape(self, dtype: str) -> Shape:
        """The shape of the result, every option checked."""
        return _result_shape(self.op, self.x_shape, self.w_shape, dtype, Geometry(*self.options), self.choice)

    @property
    def channel_axis(self) -> int:
        """The axis of the channels in x and y, counted from the end."""
        return -1 if Geometry(*self.options).layout == "channels_last" else 1 - len(self.w_shape)

    def channels(self, dtype: str) -> int:
        """The number of channels of the result, every option checked."""
        return self.result_shape(dtype)[self.channel_axis]

    @property
    def batchless(self) -> bool:
        """Whether x and y have no N."""
        return len(self.x_shape) == len(self.w_shape) - 1

    @property
    def text(self) -> str:
        """Everything but the shapes, as literals; see `parsed`."""
        return repr(("trilinear", self.family, self.target, self.options, *_plain(self)))

    def folded(self, size: int, mapped: tuple[bool, bool]) -> Folded:
        """The one call that computes this one for each of `size` entries of its mapped inputs.

        Where w is not mapped the entries become part of the batch, else groups of channels.
        """
        if self.target != "w" and not mapped[self.roles.index("w")]:
            first = -len(self.x_shape)
            axes = tuple(None if role == "w" else first for role in self.roles)
            return Folded(replace(self, x_shape=_more(self.x_shape, size, self.batchless)), axes, first, not self.batchless)
        axis = self.channel_axis
        x_shape, w_shape = list(self.x_shape), (size * self.w_shape[0], *self.w_shape[1:])
        x_shape[axis] *= size
        geometry = Geometry(*self.options)
        options = tuple(geometry._replace(groups=size * geometry.groups))
        call = replace(self, x_shape=tuple(x_shape), w_shape=w_shape, options=options)
        of_w = -len(w_shape)
        return Folded(call, tuple(of_w if role == "w" else axis for role in self.roles), of_w if self.target == "w" else axis, True)


@dataclass(frozen=True, slots=True)
class Windows:
    """A function of windows, or its gradient; where it is linear they are each other's.

    Parameters
    ----------
    forward, backward : str
        The names of the two functions.
    x_shape : tuple of int
        The shape of the function's x.
    window : int or tuple of int
        As the function takes it; of a padding the width.
    options : tuple
        As `numconv.arguments.pool_options` gives them.
    choice : Choice
    context : Context or None
    gradient : bool
        Which of the two is computed.
    """

    forward: str
    backward: str
    x_shape: Shape
    window: Any
    options: tuple[Any, ...]
    choice: Choice
    context: Context | None
    gradient: bool = False

    def other(self) -> Windows:
        """The other one of the two, by whatever algorithm."""
        choice, context = _any_algorithm(self.choice, self.context)
        return replace(self, gradient=not self.gradient, choice=choice, context=context)

    def run(self, array: Any, other: Any = None) -> Any:
        """Compute; of a gradient that needs it, `other` is x, or the indices of the maxima."""
        op = self.backward if self.gradient else self.forward
        arrays = (array,) if other is None else (array, other)
        x_shape = 0 if op == "pad_backward" else self.x_shape
        with resumed(self.context):
            return run(op, arrays, x_shape, self.window, self.options, self.choice)

    def averages(self) -> Windows:
        """The averages of the same windows, of the elements that they have."""
        options = PoolGeometry(*self.options)._replace(count_include_pad=False)
        return replace(self, forward="avg_pool", backward="avg_pool_backward", options=tuple(options))

    def counting(self) -> Windows:
        """What tells, given ones in one image of one channel, how many elements the windows have: their norm with p = 1."""
        last = self.channels_last
        spatial = self.x_shape[-1 - self.ndim : -1] if last else self.x_shape[-self.ndim :]
        first = (1,) * (len(self.x_shape) - self.ndim - last)
        options = tuple(PoolGeometry(*self.options)._replace(p=1.0))
        return replace(self, x_shape=first + spatial + (1,) * last, options=options, gradient=False)

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions."""
        return len(self.x_shape) - 2 if isinstance(self.window, int) else len(self.window)

    @property
    def channels_last(self) -> bool:
        """Whether the channels are the last axis."""
        return bool(PoolGeometry(*self.options).layout == "channels_last")

    @property
    def batchless(self) -> bool:
        """Whether x has no N."""
        return len(self.x_shape) == self.ndim + 1

    def result_shape(self, dtype: str) -> Shape:
        """The shape of the result, every option checked."""
        if self.gradient:
            return self.x_shape
        return _result_shape(self.forward, self.x_shape, self.window, dtype, PoolGeometry(*self.options), self.choice)

    @property
    def text(self) -> str:
        """Everything but the shape, as literals; see `parsed`. Of norms only `counting`: graphs are made of their parts."""
        options = _without_p(self.options)
        return repr(("windows", self.forward, self.backward, self.gradient, self.window, options, *_plain(self)))

    def folded(self, size: int) -> Windows:
        """The one call that computes this one for `size` arrays, joined in front of N, or as N."""
        return replace(self, x_shape=_more(self.x_shape, size, self.batchless))


@dataclass(frozen=True, slots=True)
class Unpooling:
    """`max_unpool`, or its gradient: linear where the indices are known, and each other's adjoints.

    Parameters
    ----------
    x_shape, y_shape : tuple of int
        The shapes of the result of `max_unpool` and of what it takes.
    options : tuple
        As `numconv.arguments.pool_options` gives them.
    choice : Choice
    context : Context or None
    gradient : bool
        Which of the two is computed.
    """

    x_shape: Shape
    y_shape: Shape
    options: tuple[Any, ...]
    choice: Choice
    context: Context | None
    gradient: bool = False

    @property
    def op(self) -> str:
        """The operation's name in `numconv.dispatch`."""
        return "max_unpool_backward" if self.gradient else "max_unpool"

    def other(self) -> Unpooling:
        """The other one of the two, by whatever algorithm."""
        choice, context = _any_algorithm(self.choice, self.context)
        return replace(self, gradient=not self.gradient, choice=choice, context=context)

    def run(self, array: Any, indices: Any) -> Any:
        """Compute, on arrays."""
        with resumed(self.context):
            return run(self.op, (array, indices), self.x_shape, self.y_shape, self.options, self.choice)

    @property
    def batchless(self) -> bool:
        """Whether x and y have no N."""
        ndim = PoolGeometry(*self.options).ndim
        return ndim is not None and len(self.x_shape) == ndim + 1

    def result_shape(self, dtype: str) -> Shape:
        """The shape of the result, every option and both shapes checked."""
        return _result_shape(self.op, self.x_shape, self.y_shape, dtype, PoolGeometry(*self.options), self.choice)

    @property
    def text(self) -> str:
        """Everything but the shapes, as literals; see `parsed`."""
        return repr(("unpooling", self.gradient, _without_p(self.options), *_plain(self)))

    def folded(self, size: int) -> Unpooling:
        """The one call that computes this one for `size` arrays, joined in front of N, or as N."""
        return replace(self, x_shape=_more(self.x_shape, size, self.batchless), y_shape=_more(self.y_shape, size, self.batchless))


def _more(shape: Shape, size: int, batchless: bool) -> Shape:
    """The shape of `size` arrays, joined in front of N, or as N."""
    return (size, *shape) if batchless else (size * shape[0], *shape[1:])


def _any_algorithm(choice: Choice, context: Context | None) -> tuple[Choice, Context | None]:
    return choice._replace(algorithm=None), context and context._replace(algorithm=None)


def _without_p(options: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(PoolGeometry(*options)._replace(p=1.0))  # a graph has a float from elsewhere as a variable


def _plain(call: Trilinear | Unpooling | Windows) -> tuple[Any, ...]:
    """Choice and settings, as literals."""
    return tuple(call.choice), call.context and tuple(call.context)


@functools.lru_cache(maxsize=4096)
def parsed(text: str, x_shape: Shape, w_shape: Shape) -> Trilinear | Unpooling | Windows:
    """The call that has this `text` and these shapes; the second is that of w, or of y for `Unpooling`, nothing to windows."""
    kind, *what, options, choice, context = ast.literal_eval(text)
    rest = (options, Choice(*choice), context and Context(*context))
    if kind == "trilinear":
        family, target = what
        return Trilinear(family, target, x_shape, w_shape, *rest)
    if kind == "unpooling":
        return Unpooling(x_shape, w_shape, *rest, *what)
    forward, backward, gradient, window = what
    return Windows(forward, backward, x_shape, window, *rest, gradient)


@functools.lru_cache(maxsize=4096)
def _result_shape(op: str, x_shape: Shape, w_shape: Any, dtype: str, options: Any, choice: Choice) -> Shape:
    request = make_request(op, x_shape, w_shape, dtype, options, choice, Context())
    problem, batchless = problem_of(request)
    shape: Shape = _arrays_of(op, problem, batchless)[1][0].shape
    return shape
