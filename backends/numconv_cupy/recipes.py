"""Lists of prepared steps: what an executor does at each call, with only the addresses left open."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from numconv.plugin import ConvProblem, Executor, cupy_stream, np_dtype

from .device import Device, Product, Transform
from .namespaces import Arrays
from .source import kernel, strides_of

__all__ = ["Place", "Recipe", "divisor", "executor_by", "layout", "record"]

_RECIPES = 64
"""Combinations of strides that an executor remembers."""

Step = Callable[[Sequence[int]], None]
"""Runs with the addresses of a call: outs, ins, then the working memory."""


class Place(NamedTuple):
    """A position in one of the arrays of a call, or in the working memory."""

    array: int
    offset: int = 0
    """In bytes."""


def layout(
    ndim: int, numbers: Iterable[str], by_axis: Iterable[str], divisors: Iterable[str], divisors_by_axis: Iterable[str],
    before: np.dtype[Any] | None = None,
) -> np.dtype[Any]:  # fmt: skip
    """The type of a kernel's record: 64-bit numbers, the same an axis, divisors, the same an axis; behind those of another."""
    one = np.dtype([("by", np.uint32), ("magic", np.uint32), ("shift", np.uint32), ("unused", np.uint32)])
    fields: list[Any] = list(before.descr) if before else []
    fields += [(name, np.float64 if name == "scale" else np.int64) for name in numbers]
    fields += [(name, np.int64, (ndim,)) for name in by_axis]
    fields += [(name, one) for name in divisors]
    fields += [(name, one, (ndim,)) for name in divisors_by_axis]
    return np.dtype(fields)


def divisor(value: int) -> tuple[int, int, int, int]:
    """What divides numbers below 2^31 by a product, an addition and a shift (Granlund and Montgomery 1994, figure 4.1)."""
    shift = max(0, (value - 1).bit_length())
    return value, ((1 << 32) * ((1 << shift) - value)) // value + 1, shift, 0


def record(kind: np.dtype[Any], **fields: Any) -> np.ndarray[Any, Any]:
    """One record, which a launch passes by value; names that begin with ``by_`` are divisors."""
    found = np.zeros(1, kind)
    for name, value in fields.items():
        if not name.startswith("by_"):
            found[name] = value
        elif isinstance(value, int):
            found[name] = divisor(value)
        else:
            found[name][0] = [divisor(each) for each in value]
    return found


class Recipe:
    """The steps of a problem whose arrays have certain strides, put together once."""

    def __init__(self, problem: ConvProblem, device: Device, outs: Arrays, ins: Arrays):
        self.problem, self.device = problem, device
        self.strides = [strides_of(array) for array in (*outs, *ins)]
        self.scratch = len(outs) + len(ins)
        self.bytes = self.end = 0
        self.steps: list[Step] = []

    def reserve(self, elements: int, dtype: str, after: int = 0) -> Place:
        """Working memory behind `after` bytes, which blocks use in turn."""
        begin = -(-after // 256) * 256
        self.end = begin + elements * np_dtype(dtype).itemsize
        self.bytes = max(self.bytes, self.end)
        return Place(self.scratch, begin)

    def launch(
        self, name: str, threads: int, records: tuple[Any, ...], places: Sequence[Place | None], macros: Mapping[str, int],
        numbers: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """A kernel with records by value, then addresses, then numbers."""
        numbers = list(numbers)
        run = self.device.prepare(kernel(name, self.problem, macros), threads, records)

        def step(bases: Sequence[int]) -> None:
            run([0 if place is None else bases[place[0]] + place[1] for place in places] + numbers)

        self.steps.append(step)

    def multiply(self, product: Product, a: Place, b: Place, c: Place) -> None:
        """A batch of products."""
        multiply = self.device.multiply

        def step(bases: Sequence[int]) -> None:
            multiply(product, bases[a.array] + a.offset, bases[b.array] + b.offset, bases[c.array] + c.offset)

        self.steps.append(step)

    def transform(self, transform: Transform, values: Place, results: Place) -> None:
        """A batch of transforms."""
        run = self.device.transform

        def step(bases: Sequence[int]) -> None:
            run(transform, bases[values.array] + values.offset, bases[results.array] + results.offset)

        self.steps.append(step)

    def run(self, outs: Arrays, ins: Arrays) -> None:
        """All steps, on the caller's stream."""
        address = self.device.address
        bases = [address(array) for array in (*outs, *ins)]
        held = None
        if self.bytes:
            held, memory = self.device.buffer(self.bytes)
            bases.append(memory)
        for step in self.steps:
            step(bases)
        del held


def executor_by(prepare: Callable[[Recipe], None], problem: ConvProblem, device: Device) -> Executor:
    """Runs the steps that `prepare` puts together for the strides of the arrays, which it does once for each combination."""
    recipes: dict[Any, Recipe] = {}

    def executor(outs: Arrays, ins: Arrays) -> None:
        key = tuple(array.strides for array in (*outs, *ins))
        recipe = recipes.get(key)
        if recipe is None:
            recipe = Recipe(problem, device, outs, ins)
            prepare(recipe)
            if len(recipes) < _RECIPES:
                recipes[key] = recipe
        with cupy_stream(outs[0]):
            recipe.run(outs, ins)

    return executor
