"""What is to be computed, as plain data: `ConvProblem`, `PoolProblem` and `WindowProblem`.

A problem is frozen and hashable. It holds everything on which the choice of an algorithm may depend (design promise 3) and
nothing else: no arrays, no device, no number of threads. Shapes are always in the order channels-first; `layout` only says which
axis the caller's memory has last. The letters are those of the whole project: x ``[N, C, *S]``, w ``[K, C/G, *R]``,
y ``[N, K, *Q]``.

Every problem has a text form, ``str(problem)``, that `parse` turns back into an equal object.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from .errors import ProblemError

__all__ = ["CONV_OPS", "POOL_OPS", "WINDOW_OPS", "ConvProblem", "PoolProblem", "Problem", "WindowProblem", "accumulator", "parse"]

Ints = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]

CONV_OPS = ("forward", "input_grad", "weight_grad")
POOL_OPS = ("max_pool", "max_pool_backward", "avg_pool", "avg_pool_backward", "lp_pool", "lp_pool_backward")
WINDOW_OPS = ("pad", "pad_backward", "unfold", "fold", "max_unpool", "max_unpool_backward")
PAD_MODES = ("zeros", "reflect", "symmetric", "replicate", "circular")
LAYOUTS = ("channels_first", "channels_last")
ACTIVATIONS = ("relu", "silu", "gelu")
LEVELS = ("strict", "high", "default", "fast")
DEFAULT_WORKSPACE = 256 * 2**20

SHORT = {
    "float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64", "complex64": "c64", "complex128": "c128",
    "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64", "uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64",
}  # fmt: skip
LONG = {short: name for name, short in SHORT.items()}
ITEMSIZE = {name: int("".join(filter(str.isdigit, name))) // 8 for name in SHORT}

_SIGNED = ("int8", "int16", "int32", "int64")
_UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
# The dtypes that an output may have, by the dtype of the inputs: the same, or a wider one that holds every value.
WIDER: dict[str, tuple[str, ...]] = {
    "float16": ("float32", "float64"),
    "bfloat16": ("float32", "float64"),
    "float32": ("float64",),
    "complex64": ("complex128",),
    **{name: _SIGNED[i + 1 :] for i, name in enumerate(_SIGNED)},
    **{name: _UNSIGNED[i + 1 :] + _SIGNED[i + 1 :] for i, name in enumerate(_UNSIGNED)},
}


def accumulator(out_dtype: str) -> str:
    """The dtype in which sums are held: that of the output, but float32 for the half types."""
    return "float32" if out_dtype in ("float16", "bfloat16") else out_dtype


class Problem:
    """What the three problems share: the text form, the size in bytes, and the check of dtypes."""

    __slots__ = ()
    word: ClassVar[str]
    op: str
    dtype: str
    out_dtype: str
    layout: str
    accuracy: str | None
    max_workspace: int

    @property
    def acc_dtype(self) -> str:
        """The dtype in which sums are held."""
        return accumulator(self.out_dtype)

    @property
    def level(self) -> str:
        """The accuracy level asked for: ``strict``, ``high``, ``default`` (None) or ``fast``."""
        return self.accuracy or "default"

    @property
    def input_shapes(self) -> tuple[Ints, ...]:
        """Shapes of the arrays an executor reads, channels first."""
        raise NotImplementedError

    @property
    def output_shapes(self) -> tuple[Ints, ...]:
        """Shapes of the arrays an executor writes, channels first."""
        raise NotImplementedError

    @property
    def terms(self) -> int:
        """The largest number of products accumulated into one element of the result."""
        raise NotImplementedError

    @property
    def bytes(self) -> int:
        """Bytes that have to be read and written at least once."""
        read = sum(math.prod(s) for s in self.input_shapes) * ITEMSIZE[self.dtype]
        return read + sum(math.prod(s) for s in self.output_shapes) * ITEMSIZE[self.out_dtype]

    def replace(self, **changes: Any) -> Any:
        """The same problem with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def _check_common(self) -> None:
        for name in (self.dtype, self.out_dtype):
            if name not in SHORT:
                raise ProblemError(f"{self.op}: dtype {name} is not one of {', '.join(SHORT)}")
        if self.out_dtype != self.dtype and self.out_dtype not in WIDER.get(self.dtype, ()):
            allowed = ", ".join((self.dtype, *WIDER.get(self.dtype, ())))
            raise ProblemError(
                f"{self.op}: an output of dtype {self.out_dtype} from inputs of {self.dtype}: it must be the same or wider "
                f"({allowed}); convert the inputs first"
            )
        for value, known, what in ((self.layout, LAYOUTS, "layout"), (self.level, LEVELS, "accuracy")):
            if value not in known:
                raise ProblemError(f"{self.op}: {what} {value!r} is not one of {', '.join(known)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvProblem(Problem):
    """A convolution, or its gradient for the input or the weights.

    Attributes
    ----------
    op : {"forward", "input_grad", "weight_grad"}
        forward: (x, w, bias) -> y. input_grad: (grad_y, w, bias) -> grad_x. weight_grad: (grad_y, x) -> grad_w, grad_bias.
    dtype, out_dtype : str
        Of the inputs, and of the outputs.
    n, c, k, groups : int
        Batch, input channels, output channels, groups.
    spatial, kernel, stride, dilation : tuple of int
        One entry a spatial dimension.
    padding : tuple of (int, int)
        (low, high) for each dimension; a negative high (from a transposed convolution) leaves the last values of x unread.
    pad_mode : str
        What the padding holds; "zeros" where nothing is padded, so that every algorithm may serve.
    bias : {"", "x", "y"}
        The side whose channels the bias has: "y" for conv, "x" for a transposed convolution (bias of length C).
        With op="weight_grad" the gradient of that bias is a second output: the sum of grad_y ("y") or of x ("x") over each channel.
    """

    word: ClassVar[str] = "conv"
    op: str
    dtype: str
    n: int
    c: int
    k: int
    groups: int = 1
    spatial: Ints
    kernel: Ints
    stride: Ints
    padding: Pairs
    dilation: Ints
    pad_mode: str = "zeros"
    flip: bool = False
    layout: str = "channels_first"
    bias: str = ""
    activation: str | None = None
    out_dtype: str = ""
    accuracy: str | None = None
    max_workspace: int = DEFAULT_WORKSPACE

    def __post_init__(self) -> None:
        if not self.out_dtype:
            object.__setattr__(self, "out_dtype", self.dtype)
        self._check_common()
        if self.op not in CONV_OPS:
            raise ProblemError(f"conv: operation {self.op!r} is not one of {', '.join(CONV_OPS)}")
        if self.pad_mode not in PAD_MODES:
            raise ProblemError(f"conv: pad_mode {self.pad_mode!r} is not one of {', '.join(PAD_MODES)}")
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise ProblemError(f"conv: activation {self.activation!r} is not one of None, {', '.join(ACTIVATIONS)}")
        if self.pad_mode != "zeros" and all(width <= 0 for pair in self.padding for width in pair):
            object.__setattr__(self, "pad_mode", "zeros")
        if any(q < 1 for q in self.output):
            raise ProblemError(f"conv {self}: the output would have the spatial shape {self.output}")

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions."""
        return len(self.spatial)

    @property
    def output(self) -> Ints:
        """Q, the spatial shape of y: floor((S + low + high - d(r - 1) - 1) / s) + 1."""
        return tuple(
            (size + low + high - d * (r - 1) - 1) // s + 1
            for size, r, s, (low, high), d in zip(self.spatial, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        )

    @property
    def x_shape(self) -> Ints:
        """``[N, C, *S]``."""
        return (self.n, self.c, *self.spatial)

    @property
    def w_shape(self) -> Ints:
        """``[K, C/G, *R]``."""
        return (self.k, self.c // self.groups, *self.kernel)

    @property
    def y_shape(self) -> Ints:
        """``[N, K, *Q]``."""
        return (self.n, self.k, *self.output)

    @property
    def bias_shape(self) -> Ints:
        """``[K]`` for a bias on y, ``[C]`` for one on x, ``[]`` without."""
        return {"y": (self.k,), "x": (self.c,), "": ()}[self.bias]

    @property
    def input_shapes(self) -> tuple[Ints, ...]:  # noqa: D102 - inherited
        if self.op == "weight_grad":
            return (self.y_shape, self.x_shape)
        bias = (self.bias_shape,) if self.bias else ()
        return (self.x_shape if self.op == "forward" else self.y_shape, self.w_shape, *bias)

    @property
    def output_shapes(self) -> tuple[Ints, ...]:  # noqa: D102 - inherited
        if self.op == "weight_grad":
            return (self.w_shape, self.bias_shape) if self.bias else (self.w_shape,)
        return (self.y_shape if self.op == "forward" else self.x_shape,)

    @property
    def terms(self) -> int:  # noqa: D102 - inherited
        taps = math.prod(self.kernel)
        if self.op == "forward":
            return self.c // self.groups * taps
        if self.op == "weight_grad":
            summed = map(max, self.output, self.spatial) if self.bias == "x" else self.output
            return self.n * math.prod(summed)
        folded = math.prod(1 if self.pad_mode == "zeros" else 1 + -(-(low + max(high, 0)) // size)
                           for size, (low, high) in zip(self.spatial, self.padding, strict=True))  # fmt: skip
        return self.k // self.groups * taps * folded

    @property
    def flops(self) -> int:
        """Real multiplications and additions, padding counted as terms; a complex product counts 8."""
        products = self.n * self.k * (self.c // self.groups) * math.prod(self.kernel) * math.prod(self.output)
        return products * (8 if self.dtype.startswith("complex") else 2)

    def __str__(self) -> str:
        parts = [
            self.word, self.op, SHORT[self.dtype], f"n{self.n}", f"c{self.c}", f"k{self.k}", f"g{self.groups}",
            f"in{_dims(self.spatial)}", f"w{_dims(self.kernel)}", f"s{_short(self.stride)}", f"p{_short_pairs(self.padding)}",
            f"d{_short(self.dilation)}",
        ]  # fmt: skip
        return " ".join(parts + _options(self, pad_mode="pad", flip="flip", bias="bias", activation="act"))


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolProblem(Problem):
    """Max, average or power-mean pooling over windows, or its gradient.

    Attributes
    ----------
    op : one of `POOL_OPS`
        max_pool: (x) -> y[, indices]. max_pool_backward: (grad_y, x), or (grad_y, indices) if `indices`, -> grad_x.
        avg_pool: (x) -> y. avg_pool_backward: (grad_y) -> grad_x. lp_pool: (x) -> y. lp_pool_backward: (grad_y, x) -> grad_x.
    indices : bool
        max_pool also writes int64 indices, max_pool_backward reads them: flat positions in the unpadded volume of a channel.
    """

    word: ClassVar[str] = "pool"
    op: str
    dtype: str
    n: int
    c: int
    spatial: Ints
    window: Ints
    stride: Ints
    padding: Pairs
    dilation: Ints
    ceil_mode: bool = False
    count_include_pad: bool = True
    p: float = 2.0
    indices: bool = False
    layout: str = "channels_first"
    out_dtype: str = ""
    accuracy: str | None = None
    max_workspace: int = DEFAULT_WORKSPACE

    def __post_init__(self) -> None:
        if not self.out_dtype:
            object.__setattr__(self, "out_dtype", self.dtype)
        self._check_common()
        if self.op not in POOL_OPS:
            raise ProblemError(f"pool: operation {self.op!r} is not one of {', '.join(POOL_OPS)}")
        if any(q < 1 for q in self.output):
            raise ProblemError(f"pool {self}: the output would have the spatial shape {self.output}")

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions."""
        return len(self.spatial)

    @property
    def output(self) -> Ints:
        """Q: as for a convolution; under `ceil_mode` rounded up, less the windows that start at or beyond S + low."""
        return tuple(map(self._windows, range(self.ndim)))

    def _windows(self, axis: int) -> int:
        (low, high), s = self.padding[axis], self.stride[axis]
        room = self.spatial[axis] + low + high - self.dilation[axis] * (self.window[axis] - 1) - 1
        if room < 0 or not self.ceil_mode:
            return room // s + 1
        q = -(-room // s) + 1
        return min(q, -(-(self.spatial[axis] + low) // s))

    @property
    def x_shape(self) -> Ints:
        """``[N, C, *S]``."""
        return (self.n, self.c, *self.spatial)

    @property
    def y_shape(self) -> Ints:
        """``[N, C, *Q]``."""
        return (self.n, self.c, *self.output)

    @property
    def input_shapes(self) -> tuple[Ints, ...]:  # noqa: D102 - inherited
        if not self.op.endswith("_backward"):
            return (self.x_shape,)
        if self.op == "avg_pool_backward":
            return (self.y_shape,)
        return (self.y_shape, self.y_shape if self.indices else self.x_shape)

    @property
    def output_shapes(self) -> tuple[Ints, ...]:  # noqa: D102 - inherited
        if self.op.endswith("_backward"):
            return (self.x_shape,)
        return (self.y_shape, self.y_shape) if self.indices else (self.y_shape,)

    @property
    def terms(self) -> int:  # noqa: D102 - inherited
        return math.prod(self.window)

    @property
    def flops(self) -> int:
        """One operation for each tap of each window."""
        return math.prod(self.y_shape) * math.prod(self.window)

    def __str__(self) -> str:
        parts = [
            self.word, self.op, SHORT[self.dtype], f"n{self.n}", f"c{self.c}", f"in{_dims(self.spatial)}", f"w{_dims(self.window)}",
            f"s{_short(self.stride)}", f"p{_short_pairs(self.padding)}", f"d{_short(self.dilation)}",
        ]  # fmt: skip
        return " ".join(parts + _options(self, ceil_mode="ceil", count_include_pad="countpad", p="norm", indices="indices"))


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowProblem(Problem):
    """Operations that only move or add up values: pad, unfold, fold and max_unpool, with their gradients.

    Attributes
    ----------
    op : one of `WINDOW_OPS`
        pad: (x) -> padded; pad_backward: (grad) -> grad_x. unfold: (x) -> columns ``[N, C*prod(R), prod(Q)]``;
        fold: (columns) -> x, its adjoint. max_unpool: (y, indices) -> x; max_unpool_backward: (grad_x, indices) -> grad_y.
    window, stride, dilation : tuple of int
        Of unfold and fold; ones for the others.
    target : tuple of int
        For max_unpool the spatial shape Q of y; else empty.
    """

    word: ClassVar[str] = "window"
    op: str
    dtype: str
    n: int
    c: int
    spatial: Ints
    window: Ints
    stride: Ints
    padding: Pairs
    dilation: Ints
    pad_mode: str = "zeros"
    target: Ints = ()
    layout: str = "channels_first"
    out_dtype: str = ""
    accuracy: str | None = None
    max_workspace: int = DEFAULT_WORKSPACE

    def __post_init__(self) -> None:
        if not self.out_dtype:
            object.__setattr__(self, "out_dtype", self.dtype)
        self._check_common()
        if self.op not in WINDOW_OPS:
            raise ProblemError(f"window: operation {self.op!r} is not one of {', '.join(WINDOW_OPS)}")
        if self.pad_mode not in PAD_MODES:
            raise ProblemError(f"{self.op}: mode {self.pad_mode!r} is not one of {', '.join(PAD_MODES)}")
        if any(q < 1 for q in self.output):
            raise ProblemError(f"window {self}: the output would have the spatial shape {self.output}")

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions."""
        return len(self.spatial)

    @property
    def output(self) -> Ints:
        """The padded shape for pad, the number of windows for unfold and fold, Q for max_unpool."""
        if self.target:
            return self.target
        return tuple(
            (size + low + high - d * (r - 1) - 1) // s + 1
            for size, r, s, (low, high), d in zip(self.spatial, self.window, self.stride, self.padding, self.dilation, strict=True)
        )

    @property
    def x_shape(self) -> Ints:
        """``[N, C, *S]``: unpadded, folded or unpooled."""
        return (self.n, self.c, *self.spatial)

    @property
    def y_shape(self) -> Ints:
        """``[N, C, *Q]``: padded or pooled; for unfold and fold ``[N, C*prod(R), prod(Q)]``."""
        if self.op in ("unfold", "fold"):
            return (self.n, self.c * math.prod(self.window), math.prod(self.output))
        return (self.n, self.c, *self.output)

    @property
    def input_shapes(self) -> tuple[Ints, ...]:  # noqa: D102 - inherited
        return {
            "pad": (self.x_shape,), "pad_backward": (self.y_shape,), "unfold": (self.x_shape,), "fold": (self.y_shape,),
            "max_unpool": (self.y_shape, self.y_shape), "max_unpool_backward": (self.x_shape, self.y_shape),
        }[self.op]  # fmt: skip

    @property
    def output_shapes(self) -> tuple[Ints, ...]:  # noqa: D102 - inherited
        return (self.y_shape if self.op in ("pad", "unfold", "max_unpool_backward") else self.x_shape,)

    @property
    def terms(self) -> int:  # noqa: D102 - inherited
        if self.op == "fold":
            return math.prod(self.window)
        if self.op == "pad_backward":
            return math.prod(2 + (low + high) // size for size, (low, high) in zip(self.spatial, self.padding, strict=True))
        return 1

    @property
    def flops(self) -> int:
        """One operation for each value moved."""
        return max(math.prod(self.x_shape), math.prod(self.y_shape))

    def __str__(self) -> str:
        parts = [
            self.word, self.op, SHORT[self.dtype], f"n{self.n}", f"c{self.c}", f"in{_dims(self.spatial)}", f"w{_dims(self.window)}",
            f"s{_short(self.stride)}", f"p{_short_pairs(self.padding)}", f"d{_short(self.dilation)}",
        ]  # fmt: skip
        return " ".join(parts + _options(self, pad_mode="pad", target="target"))


# --- the text form -------------------------------------------------------------------------------------------------------------


def _dims(values: Ints) -> str:
    return "x".join(map(str, values))


def _short(values: Ints) -> str:
    return str(values[0]) if len(set(values)) == 1 else _dims(values)


def _short_pairs(pairs: Pairs) -> str:
    words = [str(low) if low == high else f"{low}:{high}" for low, high in pairs]
    return words[0] if len(set(words)) == 1 else "x".join(words)


def _options(problem: Problem, **words: str) -> list[str]:
    """``word=value`` for every option that is not at its default."""
    words |= {"layout": "layout", "out_dtype": "out", "accuracy": "accuracy", "max_workspace": "workspace"}
    defaults = {f.name: f.default for f in dataclasses.fields(problem)} | {"out_dtype": problem.dtype}  # type: ignore[arg-type]
    found = []
    for field, word in words.items():
        value = getattr(problem, field)
        if value != defaults[field]:
            value = SHORT[value] if field == "out_dtype" else _dims(value) if isinstance(value, tuple) else value
            found.append(f"{word}={int(value) if isinstance(value, bool) else value}")
    return found


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
_SIZES = {"n": "n", "c": "c", "k": "k", "g": "groups"}


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
        fields |= {_SIZES[letter]: int(part[1:]) for letter, part in sizes.items()}
        for part in rest:
            if "=" in part:
                key, _, value = part.partition("=")
                field, convert = _OPTION_FIELDS[key]
                fields[field] = convert(value)  # type: ignore[operator]
        kind = kinds[word]
    except (ValueError, KeyError) as error:
        example = "conv forward f32 n1 c64 k64 g1 in56x56 w3x3 s1 p1 d1"
        raise ProblemError(f"{text!r} is not the text form of a problem ({error!r}); an example: {example}") from error
    problem: ConvProblem | PoolProblem | WindowProblem = kind(**fields)
    return problem
