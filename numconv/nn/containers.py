"""Layers made of layers: one after the other, beside a shortcut, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from numconv.errors import ProblemError

from .activations import Activation, ReLU, positive_part
from .dense import Flatten
from .devices import namespace
from .layer import Array, Backward, Grads, Layer, Shape, from_config
from .pooling import MaxPool

__all__ = ["Parallel", "Residual", "Sequential"]

Generator = np.random.Generator


class _Composite(Layer, abstract=True):
    """What layers with layers inside share; their parameters have the names ``child.name``."""

    layers: tuple[Layer, ...]
    children: dict[str, Layer]

    def _adopt(self, layers: tuple[Any, ...]) -> None:
        for layer in layers:
            if not isinstance(layer, Layer):
                raise ProblemError(f"{type(self).__name__}: {layer!r} is no layer; give layers, such as nn.ReLU()")
        self.layers = layers
        self.children = {str(i): layer for i, layer in enumerate(layers)}

    @property
    def parameters(self) -> MappingProxyType[str, Array]:
        """The arrays that are learned, by name; they are written in place: ``parameters["0.w"][...] = w``."""
        return self._named("parameters")

    @property
    def state(self) -> MappingProxyType[str, Array]:
        """The arrays that are measured, by name; they are written in place."""
        return self._named("state")

    def _named(self, which: str) -> MappingProxyType[str, Array]:
        return MappingProxyType(
            {f"{child}.{name}": array for child, layer in self.children.items() for name, array in getattr(layer, which).items()}
        )

    def _set(self, name: str, array: Array) -> None:
        child, _, rest = name.partition(".")
        self.children[child]._set(rest, array)

    @property
    def config(self) -> dict[str, Any]:
        """The layer as plain data, for TOML or JSON; see `from_config`."""
        return {"layer": type(self).__name__, "layers": [layer.config for layer in self.layers]}

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Layer:
        """The layer with these fields of a configuration."""
        if "layers" not in fields:
            raise ProblemError(f"from_config: {cls.__name__} is made of layers; give a list of them under 'layers'")
        rest = dict(fields)
        made: Layer = cls(*map(from_config, rest.pop("layers")), **rest)
        return made

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.layers))})"

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, place: int) -> Layer:
        return self.layers[place]


class _Step(NamedTuple):
    """What is computed at once: a layer, an activation that it applies too, and where the gradient of a ReLU is taken."""

    child: str
    layer: Layer
    activation: str | None = None
    masked: bool = False
    """Whether grad_y counts only where y is positive, before it goes to the layer."""


class Sequential(_Composite):
    """Layers one after the other.

    Parameters
    ----------
    *layers : Layer
        Their parameters are called ``"0.w"``, ``"0.bias"``, ``"3.w"`` and so on.

    Notes
    -----
    What gives the same results with fewer passes over the data is computed so: activations are applied by the convolutions before
    them (`numconv.conv` with ``activation=``; in training only ReLU, whose gradient needs no more than y). The gradient of a ReLU
    before a max pooling is taken after it, where there is less of it: maxima and the positive part commute.

    Examples
    --------
    >>> import numpy as np
    >>> from numconv import nn
    >>> model = nn.Sequential(nn.Conv(4, 3, padding="same"), nn.ReLU(), nn.MaxPool(2), nn.Flatten(), nn.Linear(10))
    >>> model.build((1, 8, 8), rng=0)(np.ones((5, 1, 8, 8), "float32")).shape
    (5, 10)
    >>> {name: array.shape for name, array in model.parameters.items()}
    {'0.w': (4, 1, 3, 3), '0.bias': (4,), '4.w': (10, 64), '4.bias': (10,)}
    """

    def __init__(self, *layers: Layer):
        self._adopt(layers)
        self._inference = _steps(layers, training=False)
        self._training = _steps(layers, training=True)

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of y for an x of this shape, both without N."""
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape

    def leaves(self, shape: Shape, prefix: str = "") -> Iterator[tuple[str, Layer, Shape]]:
        """The layers inside that have no further ones, each with the prefix of its names and the shape of its input."""
        for child, layer in self.children.items():
            yield from layer.leaves(shape, f"{prefix}{child}.")
            try:
                shape = layer.output_shape(shape)
            except ProblemError as error:
                raise ProblemError(f"layer {prefix}{child}, {layer!r}, on an input of shape {shape} without N: {error}") from error

    def __call__(self, x: Array) -> Array:
        """Y of an x ``[N, C, *S]``, as in inference; what lies between two layers is freed as soon as the second has run."""
        for step in self._inference:
            x = step.layer(x) if step.activation is None else step.layer.forward(x, activation=step.activation)[0]  # type: ignore[call-arg]
        return x

    def forward(self, x: Array, training: bool = False, rng: Generator | None = None) -> tuple[Array, Backward]:
        """Compute y, and the function that takes its gradient back; see `Layer.forward`."""
        steps = self._training
        backwards = []
        for step in steps:
            if step.activation is None:
                x, backward = step.layer.forward(x, training, rng)
            else:
                x, backward = step.layer.forward(x, training, rng, activation=step.activation)  # type: ignore[call-arg]
            backwards.append((step, x if step.masked else None, backward))

        def backward_all(grad: Array, needs_x: bool = True) -> tuple[Array, Grads]:
            grads: Grads = {}
            learned = [i for i, step in enumerate(steps) if step.layer.parameters]
            first = 0 if needs_x else min(learned, default=len(steps))
            ours = False  # whether the gradient is an array of our own
            for i in range(len(steps) - 1, first - 1, -1):
                step, y, backward = backwards[i]
                if step.masked:
                    grad = positive_part(grad, y, out=grad if ours else None)
                grad, inner = backward(grad, needs_x or i > first)
                ours = step.layer.fresh or (ours and isinstance(step.layer, Flatten))
                for name, array in inner.items():
                    grads[f"{step.child}.{name}"] = array
            return grad if needs_x else None, grads

        return x, backward_all


def _steps(layers: tuple[Layer, ...], training: bool) -> list[_Step]:
    """The layers with activations put where they cost least."""
    steps: list[_Step] = []
    moved = False  # a ReLU whose gradient is still to be taken
    for child, layer in enumerate(layers):
        if isinstance(layer, Activation) and steps and _applies(steps[-1], layer, training):
            moved = training and any(isinstance(after, MaxPool) for after in layers[child + 1 : child + 2])
            steps[-1] = steps[-1]._replace(activation=layer.word, masked=training and not moved)
        else:
            steps.append(_Step(str(child), layer, masked=moved))
            moved = False
    return steps


def _applies(step: _Step, activation: Activation, training: bool) -> bool:
    """Whether the layer of a step can apply an activation too; in training, one whose gradient needs y alone."""
    able = step.activation is None and activation.word in step.layer.activations
    return able and (not training or isinstance(activation, ReLU))


class Residual(_Composite):
    """Layers beside a shortcut: y = f(x) + x, or f(x) + g(x).

    Parameters
    ----------
    *layers : Layer
        f, one after the other.
    shortcut : Layer, optional
        g; needed where f changes the shape. Its parameters are called ``"shortcut.w"`` and so on.

    References
    ----------
    K. He, X. Zhang, S. Ren and J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 3.2.

    Examples
    --------
    >>> import numpy as np
    >>> from numconv import nn
    >>> block = nn.Residual(nn.Conv(4, 3, padding="same"), nn.ReLU(), nn.Conv(4, 3, padding="same")).build((4, 8))
    >>> block(np.ones((2, 4, 8), "float32")).shape
    (2, 4, 8)
    """

    def __init__(self, *layers: Layer, shortcut: Layer | None = None):
        self._adopt(layers if shortcut is None else (*layers, shortcut))
        self.body, self.shortcut = Sequential(*layers), shortcut
        self.layers = layers
        self.children = dict(self.body.children) | ({} if shortcut is None else {"shortcut": shortcut})

    @property
    def config(self) -> dict[str, Any]:
        """The layer as plain data, for TOML or JSON; see `from_config`."""
        return super().config | ({} if self.shortcut is None else {"shortcut": self.shortcut.config})

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Layer:
        """The layer with these fields of a configuration."""
        shortcut = {"shortcut": from_config(fields["shortcut"])} if "shortcut" in fields else {}
        return super().from_fields(fields | shortcut)

    def __repr__(self) -> str:
        shortcut = [] if self.shortcut is None else [f"shortcut={self.shortcut!r}"]
        return f"Residual({', '.join([*map(repr, self.layers), *shortcut])})"

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of y for an x of this shape, both without N."""
        ours = self.body.output_shape(shape)
        other = shape if self.shortcut is None else self.shortcut.output_shape(shape)
        if ours != other:
            raise ProblemError(f"Residual: the layers give {ours} and the shortcut {other}, and both are added; give a shortcut=")
        return ours

    def leaves(self, shape: Shape, prefix: str = "") -> Iterator[tuple[str, Layer, Shape]]:
        """The layers inside that have no further ones, each with the prefix of its names and the shape of its input."""
        yield from self.body.leaves(shape, prefix)
        if self.shortcut is not None:
            yield from self.shortcut.leaves(shape, f"{prefix}shortcut.")

    def forward(self, x: Array, training: bool = False, rng: Generator | None = None) -> tuple[Array, Backward]:
        """Compute y, and the function that takes its gradient back; see `Layer.forward`."""
        y, body = self.body.forward(x, training, rng)
        other, shortcut = (x, _through) if self.shortcut is None else self.shortcut.forward(x, training, rng)

        def backward(grad_y: Array, needs_x: bool = True) -> tuple[Array, Grads]:
            grad, grads = body(grad_y, needs_x)
            grad_other, more = shortcut(grad_y, needs_x)
            grads |= {f"shortcut.{name}": array for name, array in more.items()}
            return (grad + grad_other if needs_x else None), grads

        return y + other, backward


def _through(grad_y: Array, needs_x: bool = True) -> tuple[Array, Grads]:
    return (grad_y if needs_x else None), {}


class Parallel(_Composite):
    """Layers side by side on the same x; their channels are put one after the other.

    Parameters
    ----------
    *layers : Layer
        Whose outputs have the same spatial shape.

    Examples
    --------
    >>> import numpy as np
    >>> from numconv import nn
    >>> both = nn.Parallel(nn.Conv(4, 3, padding="same"), nn.Conv(2, 5, padding="same")).build((1, 8))
    >>> both(np.ones((2, 1, 8), "float32")).shape
    (2, 6, 8)
    """

    def __init__(self, *layers: Layer):
        self._adopt(layers)
        if not layers:
            raise ProblemError("Parallel: give at least one layer")

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of y for an x of this shape, both without N."""
        shapes = [layer.output_shape(shape) for layer in self.layers]
        if len({each[1:] for each in shapes}) > 1:
            raise ProblemError(f"Parallel: the layers give {', '.join(map(str, shapes))}, which differ in more than the channels")
        return (sum(each[0] for each in shapes), *shapes[0][1:])

    def leaves(self, shape: Shape, prefix: str = "") -> Iterator[tuple[str, Layer, Shape]]:
        """The layers inside that have no further ones, each with the prefix of its names and the shape of its input."""
        for child, layer in self.children.items():
            yield from layer.leaves(shape, f"{prefix}{child}.")

    def forward(self, x: Array, training: bool = False, rng: Generator | None = None) -> tuple[Array, Backward]:
        """Compute y, and the function that takes its gradient back; see `Layer.forward`."""
        ys, backwards = zip(*[layer.forward(x, training, rng) for layer in self.layers], strict=True)

        def backward(grad_y: Array, needs_x: bool = True) -> tuple[Array, Grads]:
            grads: Grads = {}
            grad_x, start = None, 0
            for child, y, part in zip(self.children, ys, backwards, strict=True):
                grad, inner = part(grad_y[:, start : start + y.shape[1]], needs_x)
                grads |= {f"{child}.{name}": array for name, array in inner.items()}
                if needs_x:
                    grad_x = grad if grad_x is None else grad_x + grad
                start += y.shape[1]
            return grad_x, grads

        return namespace(x).concatenate(ys, axis=1), backward
