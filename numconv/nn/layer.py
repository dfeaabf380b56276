"""What a layer is: a configuration, parameters once it is built, and a `forward` that returns its own gradient function.

To derive a layer, write a dataclass: its fields are its configuration, which then goes through `config` and `from_config`.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self, cast

import numpy as np

from numconv.errors import ProblemError
from numconv.plugin import np_dtype

from .devices import namespace, to_host

__all__ = [
    "Array",
    "Backward",
    "Layer",
    "Shape",
    "check_counts",
    "check_flags",
    "check_numbers",
    "from_config",
    "is_number",
    "pack",
]

Array = Any
"""An array of NumPy or of a library with NumPy's functions, such as CuPy."""
Shape = tuple[int, ...]
Grads = dict[str, Array]
Backward = Callable[..., tuple[Array, Grads]]
"""``backward(grad_y, needs_x=True) -> (grad_x or None, gradients by the names of `parameters`)``; grad_y stays as it is."""

_DTYPES = "float16", "bfloat16", "float32", "float64"
_KNOWN: dict[str, type[Layer]] = {}


class Packed(NamedTuple):
    """The parameters of a model as parts of one vector, so that an optimiser's step is a few operations on that."""

    vector: Array
    views: dict[str, Array]


class Built(NamedTuple):
    """What `Layer.build` was given."""

    shape: Shape
    dtype: str


class _Unbuilt(dict[str, Array]):
    """The parameters of a layer before `Layer.build`."""

    def __missing__(self, name: str) -> Array:
        raise ProblemError(f"the layer has no array {name!r} yet; call model.build(shape) first, with the shape of x without N")


class Layer:
    """Base class of all layers.

    A derived class is a dataclass (``eq=False, repr=False``) and overrides what differs: `output_shape`, `initial`, `forward`.
    Shapes in its methods are without N.

    Attributes
    ----------
    config : dict
        The name of the class under ``"layer"``, and the fields that differ from their defaults, as plain data.
    parameters : mapping of str to array
        The arrays that are learned, by name; the arrays themselves, to be read or written in place.
    state : mapping of str to array
        Arrays that are measured rather than learned: running statistics.

    Examples
    --------
    A layer of one's own, which multiplies by a learned number:

    >>> import dataclasses
    >>> import numpy as np
    >>> from numconv import nn
    >>> @dataclasses.dataclass(eq=False, repr=False)
    ... class Scale(nn.Layer):
    ...     start: float = 1.0
    ...
    ...     def initial(self, shape, rng):
    ...         return {"scale": np.array([self.start])}
    ...
    ...     def forward(self, x, training=False, rng=None):
    ...         scale = self.parameters["scale"]
    ...
    ...         def backward(grad_y, needs_x=True):
    ...             return scale * grad_y if needs_x else None, {"scale": (grad_y * x).sum().reshape(1)}
    ...
    ...         return scale * x, backward
    >>> model = nn.Sequential(nn.Flatten(), Scale(3.0)).build((2, 2))
    >>> model(np.ones((1, 2, 2), "float32"))
    array([[3., 3., 3., 3.]], dtype=float32)
    >>> nn.from_config(model.config).config
    {'layer': 'Sequential', 'layers': [{'layer': 'Flatten'}, {'layer': 'Scale', 'start': 3.0}]}
    """

    activations: ClassVar[frozenset[str]] = frozenset()
    """What `forward` takes as `activation` and applies itself, without a further pass over y."""

    fresh: ClassVar[bool] = False
    """Whether the gradient for x is always a new array, so that who gets it may overwrite it."""

    _parameters: dict[str, Array] = _Unbuilt()
    _state: dict[str, Array] = _Unbuilt()
    _packed: Packed | None = None
    _built: Built | None = None

    def __init_subclass__(cls, abstract: bool = False) -> None:
        if abstract:
            return
        known = _KNOWN.setdefault(cls.__name__, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(
                f"{cls.__module__}.{cls.__qualname__}: a layer called {cls.__name__} exists already, {known.__module__}."
                f"{known.__qualname__}, and configurations name layers; choose another name"
            )
        _KNOWN[cls.__name__] = cls

    # --- what a derived class overrides

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of y for an x of this shape, both without N."""
        return shape

    def initial(self, shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        """The parameters to begin with, for an x of this shape."""
        return {}

    def initial_state(self, shape: Shape) -> dict[str, np.ndarray[Any, Any]]:
        """The state to begin with."""
        return {}

    def forward(self, x: Array, training: bool = False, rng: np.random.Generator | None = None) -> tuple[Array, Backward]:
        """Compute y, and the function that takes its gradient back.

        Parameters
        ----------
        x : array ``[N, C, *S]``
            Of the dtype of the parameters.
        training : bool
            Whether layers behave as in training (`Dropout`, `BatchNorm`); running statistics follow x then.
        rng : numpy.random.Generator, optional
            For layers that draw numbers in training.

        Returns
        -------
        y : array
        backward : function
            ``backward(grad_y, needs_x=True)`` returns the gradient for x (None where it is not needed), and those for the
            parameters in a dict with the names of `parameters`.
        """
        raise NotImplementedError(f"{type(self).__name__}.forward")

    def flops(self, shape: Shape) -> int:
        """Multiplications and additions for one x of this shape, each counted."""
        return 0

    # --- what every layer has

    def __call__(self, x: Array) -> Array:
        """Y of an x ``[N, C, *S]``, as in inference."""
        return self.forward(x)[0]

    @property
    def parameters(self) -> MappingProxyType[str, Array]:
        """The arrays that are learned, by name; they are written in place: ``parameters["w"][...] = w``."""
        return MappingProxyType(self._parameters)

    @property
    def state(self) -> MappingProxyType[str, Array]:
        """The arrays that are measured, by name; they are written in place."""
        return MappingProxyType(self._state)

    @property
    def config(self) -> dict[str, Any]:
        """The layer as plain data, for TOML or JSON; see `from_config`."""
        return {"layer": type(self).__name__} | {name: _plain(value) for name, value, _ in self._fields()}

    def _fields(self) -> list[tuple[str, Any, bool]]:
        """Name and value of the fields that differ from their defaults, and whether they have one."""
        found = [(f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self)]  # type: ignore[arg-type]
        # an array is none: defaults are plain
        return [
            (name, value, default is not dataclasses.MISSING)
            for name, value, default in found
            if isinstance(value, np.ndarray) or value != default
        ]

    def __repr__(self) -> str:
        shown = [f"{name}={value!r}" if optional else repr(value) for name, value, optional in self._fields()]
        return f"{type(self).__name__}({', '.join(shown)})"

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Layer:
        """The layer with these fields of a configuration."""
        return cls(**{name: _frozen(value) for name, value in fields.items()})

    def leaves(self, shape: Shape, prefix: str = "") -> Iterator[tuple[str, Layer, Shape]]:
        """The layers inside that have no further ones, each with the prefix of its names and the shape of its input."""
        yield prefix, self, shape

    def build(self, shape: Sequence[int], rng: int | np.random.Generator = 0, dtype: Any = "float32", like: Array = None) -> Self:
        """Make the parameters, in one vector of memory.

        Parameters
        ----------
        shape : sequence of int
            ``[C, *S]``, the shape of x without N; channels and sizes of all layers follow from it.
        rng : int or numpy.random.Generator
            From which the initial weights are drawn.
        dtype : dtype
            Of the parameters, and so of the x that the layer takes.
        like : array, optional
            An array of the library and on the device where the parameters are to live; NumPy by default.

        Returns
        -------
        Layer
            The layer itself.

        Raises
        ------
        ProblemError
            If the layers do not fit together, one occurs twice, `shape` holds no sizes, or `dtype` is no real float.
        """
        shape, dtype = _sizes(shape), _float_dtype(dtype)
        generator = np.random.default_rng(rng)
        found = list(self.leaves(shape))
        if len({id(leaf) for _, leaf, _ in found}) < len(found):
            raise ProblemError(
                "build: the same layer object occurs twice, and shared weights are not supported; make a second layer"
            )
        self.output_shape(shape)
        to_device = namespace(like).asarray
        for _, leaf, x_shape in found:
            leaf._parameters = {n: to_device(a.astype(dtype)) for n, a in leaf.initial(x_shape, generator).items()}
            leaf._state = {n: to_device(a.astype(dtype)) for n, a in leaf.initial_state(x_shape).items()}
        self._built = Built(shape, dtype.name)
        pack(self)
        return self

    def to(self, dtype: Any = None, like: Array = None) -> Self:
        """A copy of another dtype, or on another device.

        Parameters
        ----------
        dtype : dtype, optional
            Of the copy; float16 and bfloat16 are for inference.
        like : array, optional
            An array of the library and on the device where the copy is to live; NumPy by default.

        Returns
        -------
        Layer

        Raises
        ------
        ProblemError
            If the layer was not built.

        Examples
        --------
        >>> import numpy as np
        >>> from numconv import nn
        >>> model = nn.Sequential(nn.Conv(4, 3), nn.GlobalAvgPool(), nn.Linear(2)).build((1, 8))
        >>> model.to("float16")(np.ones((5, 1, 8), "float16")).dtype
        dtype('float16')
        """
        if self._built is None:
            raise ProblemError("to: the model was not built; call model.build(shape) first")
        copy = cast(Self, from_config(self.config))
        copy.build(self._built.shape, dtype=self._built.dtype if dtype is None else dtype, like=like)
        for target, source in ((copy.parameters, self.parameters), (copy.state, self.state)):
            for name, array in target.items():
                array[...] = namespace(array).asarray(to_host(source[name])).astype(array.dtype)
        return copy

    def summary(self, shape: Sequence[int] | None = None) -> str:
        """A table of the layers, with output shapes, parameters, FLOPs and what training takes of memory.

        Parameters
        ----------
        shape : sequence of int, optional
            ``[C, *S]``, the shape of x without N; by default that given to `build`.

        Returns
        -------
        str

        Raises
        ------
        ProblemError
            If the layers do not fit together, or no shape is known.

        Examples
        --------
        >>> from numconv import nn
        >>> print(nn.Sequential(nn.Conv(8, 3, padding="same"), nn.ReLU(), nn.Flatten(), nn.Linear(10)).summary((1, 8, 8)))
           layer                       output [C, *S]  parameters   FLOPs
        0  Conv(8, 3, padding='same')  [8, 8, 8]               80   9,216
        1  ReLU()                      [8, 8, 8]                0       0
        2  Flatten()                   [512]                    0       0
        3  Linear(10)                  [10]                 5,130  10,240
        input [1, 8, 8]; 5,210 parameters; 19,456 FLOPs a sample, forward
        training: 41,680 bytes for parameters and gradients, 12,880 bytes a sample for activations and gradients
        """
        from .summary import summarise

        built = self._built if shape is None else Built(tuple(shape), self._built.dtype if self._built else "float32")
        if built is None:
            raise ProblemError("summary: give the shape of x without N, or build the model first")
        return summarise(self, built.shape, built.dtype)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: not the vector, of which copies of the parameters would be no parts; `pack` makes theirs."""
        return {name: value for name, value in vars(self).items() if name != "_packed"}

    def _set(self, name: str, array: Array) -> None:
        """Put `array` in the place of the parameter of this name."""
        self._parameters[name] = array


def _sizes(shape: Any) -> Shape:
    """The sizes of a shape without N, as Python's integers."""
    if (
        not isinstance(shape, tuple | list)
        or not shape
        or not all(isinstance(size, int | np.integer) and size > 0 for size in shape)
    ):
        raise ProblemError(f"build: shape={shape!r} must be the shape of x without N, such as (1, 28, 28)")
    return tuple(map(int, shape))


def _float_dtype(dtype: Any) -> np.dtype[Any]:
    """A dtype that parameters may have."""
    try:
        found = np_dtype(dtype) if isinstance(dtype, str) else np.dtype(dtype)
    except TypeError:
        found = None
    if found is None or dtype is None or found.name not in _DTYPES:
        name = dtype if found is None or dtype is None else found.name
        raise ProblemError(f"build: parameters of dtype {name}: they are real floats, of {', '.join(_DTYPES)}")
    return found


def check_counts(layer: Layer, *names: str) -> None:
    """Raise ProblemError unless these fields of a layer are integers of at least 1."""
    for name in names:
        value = getattr(layer, name)
        if isinstance(value, bool) or not (isinstance(value, int | np.integer) and value > 0):
            raise ProblemError(f"{type(layer).__name__}: {name}={value!r} must be an integer of at least 1")


def is_number(value: Any) -> bool:
    """Whether a value is a real number, and no truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_numbers(settings: Any, *names: str) -> None:
    """Raise ProblemError unless these fields of a layer, or of an optimiser, are real numbers."""
    for name in names:
        if not is_number(value := getattr(settings, name)):
            raise ProblemError(f"{type(settings).__name__}: {name}={value!r} must be a number")


def check_flags(layer: Layer, *names: str) -> None:
    """Raise ProblemError unless these fields of a layer are truth values."""
    for name in names:
        if not isinstance(getattr(layer, name), bool | np.bool_):
            raise ProblemError(f"{type(layer).__name__}: {name}={getattr(layer, name)!r} must be True or False")


def pack(model: Layer) -> Array | None:
    """One vector of which all parameters are views; None for a model without parameters.

    Made anew where layers were built one by one, or an array was replaced.
    """
    arrays = model.parameters
    packed = model._packed
    if packed is not None and len(arrays) == len(packed.views) and all(arrays[n] is v for n, v in packed.views.items()):
        return packed.vector
    if not arrays:
        return None
    vector = namespace(next(iter(arrays.values()))).concatenate([a.reshape(-1) for a in arrays.values()])
    start = 0
    for name, array in arrays.items():
        model._set(name, vector[start : start + array.size].reshape(array.shape))
        start += array.size
    model._packed = Packed(vector, dict(model.parameters))
    return vector


def from_config(config: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Layer:
    """The layer that a configuration describes, not yet built; a list describes a `Sequential`.

    Parameters
    ----------
    config : dict or list of dict
        As in `Layer.config`: the name of the class under ``"layer"``, and its arguments. Plain data, as TOML and JSON have it.

    Returns
    -------
    Layer

    Raises
    ------
    ProblemError
        If there is no such layer, or it has no such argument.

    Examples
    --------
    >>> from numconv import nn
    >>> nn.from_config([{"layer": "Conv", "channels": 8, "window": 3}, {"layer": "ReLU"}])
    Sequential(Conv(8, 3), ReLU())
    """
    given: Any = config
    if isinstance(given, tuple | list) and all(isinstance(layer, Mapping) for layer in given):
        given = {"layer": "Sequential", "layers": list(given)}
    if not isinstance(given, Mapping):
        raise ProblemError(f"from_config: {given!r} is no dict with the name of a layer under 'layer', nor a list of such")
    fields = dict(given)
    name = fields.pop("layer", None)
    if not isinstance(name, str) or name not in _KNOWN:
        known = ", ".join(sorted(_KNOWN))
        raise ProblemError(f"from_config: no layer is called {name!r}; known are {known}, and those of modules imported before")
    try:
        return _KNOWN[name].from_fields(fields)
    except TypeError as error:
        raise ProblemError(f"from_config: {name} with {fields}: {error}") from error


def _plain(value: Any) -> Any:
    """Tuples as lists, and NumPy's numbers as Python's, which is what TOML and JSON have."""
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _frozen(value: Any) -> Any:
    """Lists as tuples, which is what options are."""
    return tuple(map(_frozen, value)) if isinstance(value, tuple | list) else value
