"""From the arguments of the public functions to problems: every check of shapes, options and dtypes, in one place.

`freeze` makes an option hashable; `problem_of` builds the problem of a public function. Both run before anything is computed, and
every refusal names what was asked, the numbers that disagree and a way out.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

from .errors import ProblemError
from .problem import ACTIVATIONS, LAYOUTS, LEVELS, PAD_MODES, WIDER, ConvProblem, Pairs, PoolProblem, WindowProblem

__all__ = [
    "Call",
    "Geometry",
    "PoolGeometry",
    "Request",
    "flag",
    "freeze",
    "geometry_options",
    "pool_options",
    "problem_of",
    "shape",
]

Ints = tuple[int, ...]


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


class Request(NamedTuple):
    """A public function's name with the shapes and options that determine its problem.

    `x_shape` is the shape of the array that the docstrings call x (for conv_transpose the input, for max_unpool the result);
    `w_shape` that of w, or the window of a pooling, the width of a padding, the shape of y for max_unpool.
    """

    op: str
    x_shape: Any
    w_shape: Any
    dtype: str
    out_dtype: str | None
    options: Any
    bias: bool
    accuracy: str | None
    max_workspace: int

    @property
    def asked(self) -> str:
        """How error texts name the call."""
        return (
            f"{self.op}({_FIRST.get(self.op, 'x')} {self.x_shape}, {_SECOND.get(self.op, 'window')} {self.w_shape}, {self.dtype})"
        )


class Call(NamedTuple):
    """A problem, and whether the caller's arrays have no batch axis."""

    problem: Any
    batchless: bool


_CONV_FUNCTIONS = (
    "conv",
    "conv_input_grad",
    "conv_weight_grad",
    "conv_transpose",
    "conv_transpose_input_grad",
    "conv_transpose_weight_grad",
)
_FIRST = {"pad_backward": "grad", "fold": "x_shape", "max_unpool": "x_shape", "max_unpool_backward": "grad"}
_SECOND = dict.fromkeys(_CONV_FUNCTIONS, "w") | {
    "pad": "width",
    "pad_backward": "width",
    "max_unpool": "y",
    "max_unpool_backward": "indices",
}


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
    if kind is tuple or kind is list or (hasattr(value, "tolist") and value.ndim):
        return tuple(freeze(v, what) for v in value)
    if kind is bool or kind.__name__ == "bool_":
        raise ProblemError(f"{what}={value!r}: a truth value is not a number; give an integer")
    try:
        return operator.index(value)
    except TypeError:
        raise ProblemError(f"{what}={value!r} is a {kind.__name__}; give an integer, a tuple of integers or a word") from None


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
    stride = None if stride is None else freeze(stride, "stride")
    return (
        stride, freeze(padding, "padding"), freeze(dilation, "dilation"), layout, flag(ceil_mode, "ceil_mode"),
        flag(count_include_pad, "count_include_pad"), real(p, "p"), indices, pad_mode,
        None if ndim is None else freeze(ndim, "ndim"),
    )  # fmt: skip


# How other libraries call these words.
_ELSEWHERE = {
    "constant": "zeros", "edge": "replicate", "nearest": "replicate", "wrap": "circular", "mirror": "reflect", "symm": "symmetric",
    "nchw": "channels_first", "ncl": "channels_first", "nhwc": "channels_last", "nlc": "channels_last", "swish": "silu",
}  # fmt: skip


def _word(value: Any, known: Sequence[str], what: str, asked: str) -> str:
    if not isinstance(value, str) or value not in known:
        ours = _ELSEWHERE.get(value.lower(), value.lower()) if isinstance(value, str) else ""
        hint = f"; say {what}={ours!r}" if ours in known else ""
        raise ProblemError(f"{asked}: {what}={value!r} is not one of {', '.join(known)}{hint}")
    return value


_LARGEST = 2**48
"""Of a stride, a dilation or a padding: beyond any memory, and far from where 64 bits of an address end."""


def _ints(value: Any, ndim: int, least: int, what: str, asked: str) -> Ints:
    """One int a spatial dimension, each at least `least`."""
    values = (value,) * ndim if isinstance(value, int) else value
    if isinstance(values, str) or not all(isinstance(v, int) for v in values):
        raise ProblemError(f"{asked}: {what}={value!r} must be an integer or one integer for each of the {ndim} spatial dimensions")
    if len(values) != ndim:
        raise ProblemError(
            f"{asked}: {what}={value!r} has {len(values)} entries, but there are {ndim} spatial dimensions; give one each"
        )
    if any(v > _LARGEST for v in values):
        raise ProblemError(f"{asked}: {what}={value!r} holds {max(values)}, and no array reaches further than {_LARGEST} elements")
    if any(v < least for v in values):
        raise ProblemError(f"{asked}: {what}={value!r} must be at least {least} in every dimension, but holds {min(values)}")
    return tuple(values)


def _pairs(value: Any, ndim: int, what: str, asked: str) -> Pairs:
    """(low, high) for each spatial dimension, from an int, a flat tuple of ints or a nested tuple of pairs."""
    nested = not isinstance(value, int) and any(isinstance(v, tuple) for v in value)
    if nested:
        if not all(isinstance(v, tuple) and len(v) == 2 and all(isinstance(i, int) for i in v) for v in value):
            raise ProblemError(
                f"{asked}: {what}={value!r} mixes forms: give one (low, high) pair for each of the {ndim} dimensions"
            )
        if len(value) != ndim:
            raise ProblemError(
                f"{asked}: {what}={value!r} has {len(value)} pairs, but there are {ndim} spatial dimensions; give one each"
            )
        if any(width < 0 for pair in value for width in pair):
            raise ProblemError(f"{asked}: {what}={value!r} must be at least 0 in every dimension, but holds {min(map(min, value))}")
        return tuple(value)
    return tuple((width, width) for width in _ints(value, ndim, 0, what, asked))


def _same(size: int, s: int, r: int, d: int) -> tuple[int, int]:
    total = max((-(-size // s) - 1) * s + d * (r - 1) + 1 - size, 0)
    return total // 2, total - total // 2


def _conv_padding(value: Any, spatial: Ints, kernel: Ints, stride: Ints, dilation: Ints, words: Sequence[str], asked: str) -> Pairs:
    if not isinstance(value, str):
        return _pairs(value, len(spatial), "padding", asked)
    _word(value, words, "padding", asked)
    extents = tuple(d * (r - 1) for d, r in zip(dilation, kernel, strict=True))
    if value == "same":
        return tuple(map(_same, spatial, stride, kernel, dilation))
    low, high = {"valid": (0, 0), "full": (1, 1), "causal": (1, 0)}[value]
    return tuple((low * e, high * e) for e in extents)


def _check_fit(asked: str, what: str, spatial: Ints, kernel: Ints, stride: Ints, padding: Pairs, dilation: Ints) -> None:
    """Raise unless the kernel (or window) fits the padded input in every dimension."""
    for axis, (size, r, s, (low, high), d) in enumerate(zip(spatial, kernel, stride, padding, dilation, strict=True)):
        room = size + low + high - d * (r - 1) - 1
        if room < 0:
            raise ProblemError(
                f"{asked}: the {what} is larger than the padded input in spatial dimension {axis}: "
                f"floor((S + low + high - d*(r - 1) - 1) / s) + 1 = floor(({size} + {low} + {high} - {d}*({r} - 1) - 1) / "
                f"{s}) + 1 = "
                f"{room // s + 1}: a {what} that spans {d * (r - 1) + 1} needs as much input, and there are {size + low + high}; "
                f"pad by {-room} more, or use a smaller {what} or dilation"
            )


def _sizes(shape: Any, what: str, asked: str) -> Ints:
    """A shape: a tuple of ints, none negative."""
    if not isinstance(shape, tuple) or not all(isinstance(v, int) for v in shape):
        raise ProblemError(f"{asked}: {what}={shape!r} must be a tuple of integers")
    if any(v < 0 for v in shape):
        raise ProblemError(f"{asked}: {what}={shape!r} has a negative size, {min(shape)}")
    return shape


def _split(shape: Ints, ndim: int, layout: str, what: str, asked: str) -> tuple[int, int, Ints, bool]:
    """(N, C, spatial sizes, whether there is no batch axis) of an array with `ndim` spatial dimensions."""
    batchless = len(shape) == ndim + 1
    if len(shape) not in (ndim + 1, ndim + 2):
        last = layout == "channels_last"
        with_n, without = (("[N, *S, C]", "[*S, C]") if last else ("[N, C, *S]", "[C, *S]"))  # fmt: skip
        raise ProblemError(
            f"{asked}: {what} has {len(shape)} dimensions, but {ndim} spatial dimensions need {ndim + 2} ({with_n}) or "
            f"{ndim + 1} ({without})"
        )
    n, *rest = (1, *shape) if batchless else shape
    c, spatial = (rest[-1], tuple(rest[:-1])) if layout == "channels_last" else (rest[0], tuple(rest[1:]))
    if c < 1 or any(s < 1 for s in spatial):
        raise ProblemError(
            f"{asked}: {what} has the shape {shape}: only the batch may be empty, channels and spatial sizes are at least 1"
        )
    return n, c, spatial, batchless


def _out_dtype(request: Request) -> str:
    out = request.out_dtype or request.dtype
    allowed = (request.dtype, *WIDER.get(request.dtype, ()))
    if out not in allowed:
        raise ProblemError(
            f"{request.asked}: dtype={out} asks for an output that is neither the dtype of the inputs nor wider "
            f"(from {request.dtype}: {', '.join(allowed)}); convert the inputs first"
        )
    return out


def _common(request: Request) -> dict[str, Any]:
    if request.accuracy is not None:
        _word(request.accuracy, LEVELS, "accuracy", request.asked)
    accuracy = None if request.accuracy == "default" else request.accuracy
    return {"dtype": request.dtype, "out_dtype": _out_dtype(request), "accuracy": accuracy, "max_workspace": request.max_workspace}


# --- convolution ---------------------------------------------------------------------------------------------------------------

_CONV_OP = {
    "conv": "forward",
    "conv_input_grad": "input_grad",
    "conv_weight_grad": "weight_grad",
    "conv_transpose": "input_grad",
    "conv_transpose_input_grad": "forward",
    "conv_transpose_weight_grad": "weight_grad",
}


def _weights(request: Request) -> tuple[Ints, int]:
    w_shape = _sizes(request.w_shape, "w_shape", request.asked)
    if len(w_shape) < 3:
        plain = isinstance(request.x_shape, tuple) and len(request.x_shape) == len(w_shape) > 0
        hint = "; for one channel and one filter give x[None] and w[None, None], or use numconv.signal" if plain else ""
        raise ProblemError(
            f"{request.asked}: w has {len(w_shape)} dimensions; it needs at least 3: [K, C/G, *R] with one spatial dimension{hint}"
        )
    if any(v < 1 for v in w_shape):
        raise ProblemError(f"{request.asked}: w has the shape {w_shape}: every size must be at least 1")
    return w_shape, len(w_shape) - 2


def _groups(options: Geometry, asked: str, **channels: int) -> int:
    groups = options.groups
    if not isinstance(groups, int) or groups < 1:
        raise ProblemError(f"{asked}: groups={groups!r} must be an integer of at least 1")
    for what, count in channels.items():
        if count % groups:
            raise ProblemError(
                f"{asked}: {count} {what.replace('_', ' ')} cannot be split into groups={groups}: {count} % {groups} = "
                f"{count % groups}"
            )
    return groups


def _activation(request: Request) -> str | None:
    activation, dtype = request.options.activation, request.dtype
    if activation is None:
        return None
    _word(activation, ACTIVATIONS, "activation", request.asked)
    if dtype.startswith("complex") or ("int" in dtype and activation != "relu"):
        raise ProblemError(
            f"{request.asked}: activation={activation!r} is for real floats ('relu' for integers too), and the dtype is {dtype}"
        )
    return activation  # type: ignore[no-any-return]


def _conv(request: Request) -> Call:
    options, asked = request.options, request.asked
    w_shape, ndim = _weights(request)
    _word(options.layout, LAYOUTS, "layout", asked)
    _word(options.pad_mode, PAD_MODES, "pad_mode", asked)
    n, c, spatial, batchless = _split(_sizes(request.x_shape, "x_shape", asked), ndim, options.layout, "x", asked)
    k, kernel = w_shape[0], w_shape[2:]
    groups = _groups(options, asked, input_channels=c, output_channels=k)
    if w_shape[1] * groups != c:
        raise ProblemError(
            f"{asked}: x has {c} channels, but w {w_shape} takes w.shape[1] * groups = {w_shape[1]} * {groups} = "
            f"{w_shape[1] * groups}; "
            f"with groups={groups} w must be ({k}, {c // groups}, ...)" + _layout_hint(request, w_shape[1] * groups)
        )
    stride = _ints(options.stride, ndim, 1, "stride", asked)
    dilation = _ints(options.dilation, ndim, 1, "dilation", asked)
    padding = _conv_padding(options.padding, spatial, kernel, stride, dilation, ("valid", "same", "full", "causal"), asked)
    _check_fit(asked, "kernel", spatial, kernel, stride, padding, dilation)
    op = _CONV_OP[request.op]
    problem = ConvProblem(
        op=op, n=n, c=c, k=k, groups=groups, spatial=spatial, kernel=kernel, stride=stride, padding=padding, dilation=dilation,
        pad_mode=options.pad_mode, flip=options.flip, layout=options.layout, bias="y" if request.bias else "",
        activation=_activation(request), **_common(request),
    )  # fmt: skip
    return Call(problem, batchless)


def _layout_hint(request: Request, expected: int) -> str:
    other = {"channels_first": -1, "channels_last": -len(request.w_shape) + 1}[request.options.layout]
    if request.x_shape[other] != expected:
        return ""
    return f"; if the channels of x are its {'last' if other == -1 else 'first'} axis, say layout='{LAYOUTS[other == -1]}'"


def _transposed_axis(size: int, s: int, r: int, d: int, pair: tuple[int, int], extra: int) -> int:
    return (size - 1) * s + d * (r - 1) + 1 - pair[0] - pair[1] + extra


def _conv_transpose(request: Request) -> Call:
    """The problem of the convolution whose adjoint was asked for: its input is our output."""
    options, asked = request.options, request.asked
    w_shape, ndim = _weights(request)
    _word(options.layout, LAYOUTS, "layout", asked)
    _word(options.pad_mode, PAD_MODES, "pad_mode", asked)
    n, k, output, batchless = _split(_sizes(request.x_shape, "x_shape", asked), ndim, options.layout, "x", asked)
    kernel = w_shape[2:]
    groups = _groups(options, asked, input_channels=k)
    if w_shape[0] != k:
        raise ProblemError(
            f"{asked}: x has {k} channels, but w {w_shape} of a transposed convolution is [C, K/G, *R] with C = "
            f"w.shape[0] = {w_shape[0]}"
        )
    stride = _ints(options.stride, ndim, 1, "stride", asked)
    dilation = _ints(options.dilation, ndim, 1, "dilation", asked)
    extra = _output_padding(options, ndim, stride, dilation, asked)
    if options.padding == "same":
        if any(extra):
            raise ProblemError(
                f"{asked}: output_padding={options.output_padding!r} with padding='same', whose output is x's size times the stride"
            )
        spatial = tuple(q * s for q, s in zip(output, stride, strict=True))
        padding = tuple(map(_same, spatial, stride, kernel, dilation))
    else:
        padding = _conv_padding(options.padding, output, kernel, stride, dilation, ("valid", "same"), asked)
        spatial = tuple(map(_transposed_axis, output, stride, kernel, dilation, padding, extra))
        padding = tuple((low, high - o) for (low, high), o in zip(padding, extra, strict=True))
    _check_transposed(asked, output, kernel, stride, dilation, spatial, padding, extra)
    problem = ConvProblem(
        op=_CONV_OP[request.op], n=n, c=w_shape[1] * groups, k=k, groups=groups, spatial=spatial, kernel=kernel, stride=stride,
        padding=padding, dilation=dilation, pad_mode=options.pad_mode, flip=options.flip, layout=options.layout,
        bias="x" if request.bias else "", activation=_activation(request), **_common(request),
    )  # fmt: skip
    return Call(problem, batchless)


def _output_padding(options: Geometry, ndim: int, stride: Ints, dilation: Ints, asked: str) -> Ints:
    extra = _ints(options.output_padding, ndim, 0, "output_padding", asked)
    for axis, (o, s, d) in enumerate(zip(extra, stride, dilation, strict=True)):
        if o >= max(s, d):
            raise ProblemError(
                f"{asked}: output_padding {o} in spatial dimension {axis} must be less than max(stride, dilation) = "
                f"max({s}, {d}) = {max(s, d)}"
            )
    return extra


def _check_transposed(
    asked: str, output: Ints, kernel: Ints, stride: Ints, dilation: Ints, spatial: Ints, padding: Pairs, extra: Ints
) -> None:
    for axis, size in enumerate(spatial):
        low, high = padding[axis][0], padding[axis][1] + extra[axis]
        if size < 1:
            q, s, d, r, o = output[axis], stride[axis], dilation[axis], kernel[axis], extra[axis]
            raise ProblemError(
                f"{asked}: the output would be empty in spatial dimension {axis}: (Q - 1)*s + d*(r - 1) + 1 - low - high + o = "
                f"({q} - 1)*{s} + {d}*({r} - 1) + 1 - {low} - {high} + {o} = {size}; use less padding"
            )


# --- pooling and windows -------------------------------------------------------------------------------------------------------


def _windowed(request: Request, what: str) -> tuple[int, int, Ints, bool, Ints]:
    """(n, c, spatial, batchless, window) of an array and a window (or width): an int window means that x has a batch axis."""
    options, asked = request.options, request.asked
    _word(options.layout, LAYOUTS, "layout", asked)
    x_shape = _sizes(request.x_shape, "x_shape", asked)
    window = request.w_shape
    ndim = len(x_shape) - 2 if isinstance(window, int) else len(window)
    if ndim < 1 or isinstance(window, str):
        raise ProblemError(
            f"{asked}: {what}={window!r}: an integer means that x has a batch axis and at least one spatial dimension, so "
            "at least 3 "
            f"dimensions, and x has {len(x_shape)}; without a batch axis give a tuple, one entry a spatial dimension"
        )
    return (*_split(x_shape, ndim, options.layout, "x", asked), window)


def _pool(request: Request) -> Call:
    options, asked = request.options, request.asked
    n, c, spatial, batchless, raw = _windowed(request, "window")
    ndim = len(spatial)
    window = _ints(raw, ndim, 1, "window", asked)
    stride = window if options.stride is None else _ints(options.stride, ndim, 1, "stride", asked)
    dilation = _ints(options.dilation, ndim, 1, "dilation", asked)
    padding = _conv_padding(options.padding, spatial, window, stride, dilation, ("valid", "same"), asked)
    for axis, ((low, high), d, r) in enumerate(zip(padding, dilation, window, strict=True)):
        if max(low, high) > d * (r - 1):
            raise ProblemError(
                f"{asked}: padding {max(low, high)} in spatial dimension {axis} must stay below the window's extent "
                f"d*(r - 1) + 1 = {d}*({r} - 1) + 1 = {d * (r - 1) + 1}, else a window would lie in the padding alone"
            )
    _check_fit(asked, "window", spatial, window, stride, padding, dilation)
    _check_pool_dtype(request)
    problem = PoolProblem(
        op=request.op, n=n, c=c, spatial=spatial, window=window, stride=stride, padding=padding, dilation=dilation,
        ceil_mode=options.ceil_mode, count_include_pad=options.count_include_pad, p=_exponent(request), indices=options.indices,
        layout=options.layout, **_common(request),
    )  # fmt: skip
    _check_elements(problem, asked)
    return Call(problem, batchless)


def _exponent(request: Request) -> float:
    p = request.options.p
    if not 0 < p < math.inf:
        raise ProblemError(f"{request.asked}: p={p!r} must be a finite number above 0 (max_pool is the limit of a large p)")
    return p  # type: ignore[no-any-return]


def _check_pool_dtype(request: Request) -> None:
    kind, dtype = request.op.split("_")[0], request.dtype
    if kind == "max" and dtype.startswith("complex"):
        raise ProblemError(
            f"{request.asked}: complex numbers have no order, so {dtype} has no maximum; pool the magnitude, or use avg_pool"
        )
    if kind == "avg" and "int" in dtype:
        raise ProblemError(f"{request.asked}: the average of integers ({dtype}) is no integer; convert x to a float dtype first")
    if kind == "lp" and ("int" in dtype or dtype.startswith("complex")):
        raise ProblemError(
            f"{request.asked}: lp_pool is for real floats, and the dtype is {dtype}; convert x, or pool the magnitude"
        )


def _check_elements(problem: PoolProblem, asked: str) -> None:
    """Raise if some window holds no element of x: with dilation all its taps may fall into the padding."""
    for axis in range(problem.ndim):
        size, (low, _), s, d = problem.spatial[axis], problem.padding[axis], problem.stride[axis], problem.dilation[axis]
        # Steps of at most x's size cannot jump over x, and a window's padding is less than its extent.
        for q in range(problem.output[axis]) if d > size else ():
            taps = range(q * s - low, q * s - low + problem.window[axis] * d, d)
            if not any(0 <= tap < size for tap in taps):
                raise ProblemError(
                    f"{asked}: window {q} in spatial dimension {axis} holds no element: its taps lie at "
                    f"{taps[0]}..{taps[-1]} in steps "
                    f"of {d}, and x has {size}; use less padding or dilation"
                )


def _window(request: Request) -> Call:
    options, asked = request.options, request.asked
    if options.layout != "channels_first":
        raise ProblemError(f"{asked}: layout={options.layout!r}: {request.op} is defined for channels_first only")
    n, c, spatial, batchless, raw = _windowed(request, "window")
    ndim = len(spatial)
    window = _ints(raw, ndim, 1, "window", asked)
    stride = _ints(1 if options.stride is None else options.stride, ndim, 1, "stride", asked)
    dilation = _ints(options.dilation, ndim, 1, "dilation", asked)
    padding = _conv_padding(options.padding, spatial, window, stride, dilation, ("valid", "same", "full", "causal"), asked)
    _check_fit(asked, "window", spatial, window, stride, padding, dilation)
    problem = WindowProblem(
        op=request.op,
        n=n,
        c=c,
        spatial=spatial,
        window=window,
        stride=stride,
        padding=padding,
        dilation=dilation,
        **_common(request),
    )
    return Call(problem, batchless)


def _pad(request: Request) -> Call:
    options, asked = request.options, request.asked
    _word(options.pad_mode, PAD_MODES, "mode", asked)
    n, c, spatial, batchless, raw = _windowed(request, "width")
    padding = _pairs(raw, len(spatial), "width", asked)
    if request.op == "pad_backward":
        padded, spatial = spatial, tuple(size - low - high for size, (low, high) in zip(spatial, padding, strict=True))
        if any(size < 1 for size in spatial):
            raise ProblemError(f"{asked}: grad has the spatial shape {padded}, which a width of {raw!r} would leave with {spatial}")
    ones = (1,) * len(spatial)
    problem = WindowProblem(
        op=request.op, n=n, c=c, spatial=spatial, window=ones, stride=ones, padding=padding, dilation=ones,
        pad_mode=options.pad_mode, layout=options.layout, **_common(request),
    )  # fmt: skip
    return Call(problem, batchless)


def _unpool(request: Request) -> Call:
    asked, layout = request.asked, request.options.layout
    _word(layout, LAYOUTS, "layout", asked)
    x_shape, y_shape = _sizes(request.x_shape, "x_shape", asked), _sizes(request.w_shape, "y", asked)
    if len(x_shape) != len(y_shape) or len(x_shape) < 2:
        raise ProblemError(
            f"{asked}: y and x_shape must have the same number of dimensions, and have {len(y_shape)} and {len(x_shape)}"
        )
    ndim = len(x_shape) - 2 if request.options.ndim is None else request.options.ndim
    if not isinstance(ndim, int) or ndim < 1:
        raise ProblemError(
            f"{asked}: ndim={ndim!r}: there must be at least one spatial dimension ([N, C, *Q]; without N say ndim=)"
        )
    n, c, spatial, batchless = _split(x_shape, ndim, layout, "x_shape", asked)
    n_y, c_y, target, _ = _split(y_shape, ndim, layout, "y", asked)
    if (n, c) != (n_y, c_y):
        raise ProblemError(f"{asked}: y has batch and channels {(n_y, c_y)}, x_shape has {(n, c)}; they must agree")
    ones = (1,) * ndim
    problem = WindowProblem(
        op=request.op, n=n, c=c, spatial=spatial, window=ones, stride=ones, padding=((0, 0),) * ndim, dilation=ones, target=target,
        layout=layout, **_common(request),
    )  # fmt: skip
    return Call(problem, batchless)


_BUILDERS = {
    "conv": _conv, "conv_input_grad": _conv, "conv_weight_grad": _conv,
    "conv_transpose": _conv_transpose, "conv_transpose_input_grad": _conv_transpose, "conv_transpose_weight_grad": _conv_transpose,
    **dict.fromkeys(("max_pool", "max_pool_backward", "avg_pool", "avg_pool_backward", "lp_pool", "lp_pool_backward"), _pool),
    "pad": _pad, "pad_backward": _pad, "unfold": _window, "fold": _window, "max_unpool": _unpool, "max_unpool_backward": _unpool,
}  # fmt: skip


def problem_of(request: Request) -> Call:
    """The problem of a public function, checked.

    Raises
    ------
    ProblemError
        If shapes, options and dtypes do not make a problem.
    """
    return _BUILDERS[request.op](request)
