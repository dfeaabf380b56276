"""From arrays to launches: what a call does is found once for each set of strides, and is then a list of steps on addresses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from numconv.plugin import ConvProblem, UnsupportedProblemError, cupy_stream, cupy_view, scratch

from .driver import Driver
from .kernels import BiasSums, Finish, Launch, Move, Repair, macros
from .translation import LAYOUTS, Graph, graph_of, steps_of

__all__ = ["Calls"]

_ALIGNED = 16
"""Bytes to which the frontend declares every tensor aligned."""
_APART = 256
"""Bytes to which parts of the working memory are aligned."""

_KEPT = 64
"""Sets of strides whose steps are kept."""

Step = Callable[[list[int], int, int], None]
"""``step(addresses, memory, stream)``: addresses of the inputs and then of the outputs, and that of the working memory."""


class Calls:
    """The executor of a problem, on arrays of any strides.

    Parameters
    ----------
    driver : Driver
    problem : ConvProblem
        One that is `supported`.
    transforms : bool
        Whether an engine of Winograd's algorithm or by FFT may be chosen.
    timed : bool
        Whether the engines of a graph are timed, and not chosen by cuDNN's heuristics.
    """

    def __init__(self, driver: Driver, problem: ConvProblem, *, transforms: bool = False, timed: bool = False):
        self._driver = driver
        self._problem = problem
        self._transforms = transforms
        self._timed = timed
        self._found: dict[tuple[Any, ...], _Call] = {}

    def __call__(self, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        """Compute, on the device and the stream of the results."""
        with self._driver.on_device_of(outs[0]):
            if self._problem.n == 0:
                self._clear(outs)
            else:
                self._compute(outs, ins)

    def _clear(self, outs: Sequence[Any]) -> None:
        with cupy_stream(outs[0]):
            for array in outs:
                cupy_view(array)[...] = 0

    def _compute(self, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        driver, arrays = self._driver, (*ins, *outs)
        device, stream = driver.place((*outs, *ins))
        addresses = [driver.address(array) for array in arrays]
        key = (device, *[array.strides for array in arrays], *[address % _ALIGNED for address in addresses])
        call = self._found.get(key)
        if call is None:
            layout, graph = self._first_graph(device, _layout_of(arrays[0]))
            call = self._kept(key, _Call(driver, self._problem, graph, layout, device, arrays, addresses))
        held = scratch((call.size,), "uint8", ins[0]) if call.size else None
        memory = 0 if held is None else driver.address(held)
        for step in call.steps:
            step(addresses, memory, stream)

    def _first_graph(self, device: int, layout: str) -> tuple[str, Graph | None]:
        """The first graph for which cuDNN has an engine, and its layout; none if it has none for any."""
        for option in _options(self._problem, layout, self._transforms):
            graph = graph_of(self._problem, *option, self._timed)
            with contextlib.suppress(UnsupportedProblemError):
                self._driver.plan(device, graph)
                return option[0], graph
        return layout, None

    def _kept(self, key: tuple[Any, ...], call: _Call) -> _Call:
        while len(self._found) >= _KEPT:
            self._found.pop(next(iter(self._found)), None)
        self._found[key] = call
        return call


class _Call:
    """The steps of a call on arrays of some strides: the convolution by cuDNN, what must be done before and after it."""

    def __init__(
        self,
        driver: Driver,
        problem: ConvProblem,
        graph: Graph | None,
        layout: str,
        device: int,
        arrays: Sequence[Any],
        addresses: Sequence[int],
    ):
        self.steps: list[Step] = []
        self.size = 0
        self._driver = driver
        self._problem = problem
        self._launch: Launch = driver.launcher(device, macros(problem))
        self._result = len(problem.input_shapes)
        self._bias = self._result - 1 if problem.bias and problem.op != "weight_grad" else None
        wanted = [steps_of(array.shape, layout) for array in arrays[: self._result + 1]]
        foreign = [
            position
            for position, steps in enumerate(wanted)
            if addresses[position] % _ALIGNED or not _lies(arrays[position], steps)
        ]
        for position in foreign:
            self._move(arrays[position], position, wanted[position])
        if graph is None:
            self._redo(layout, "all", fused=True)
        else:
            self._convolve(device, graph)
            self._complete(layout, graph)
        if problem.bias and problem.op == "weight_grad":
            self._sum(layout, _elements(arrays[-1])[0])
        if self._result in foreign:
            self._move_back(arrays[self._result], wanted[-1])

    def _complete(self, layout: str, graph: Graph) -> None:
        """What a graph leaves: spoilt results, bias and activation."""
        fused = len(graph.nodes) > 1
        if graph.transforms or _meets_zeros(self._problem):
            self._redo(layout, "each" if graph.transforms or self._problem.op == "weight_grad" else "witnesses", fused=fused)
        if not fused and (self._problem.activation or self._bias is not None):
            self._finish(layout)

    def _reserve(self, size: int) -> int:
        """Where in the working memory so many bytes lie."""
        at = self.size
        self.size += -(-size // _APART) * _APART
        return at

    def _move(self, array: Any, position: int, wanted: Sequence[int]) -> None:
        """An input is copied to memory of the graph's strides; a result gets such memory, and leaves its address at the end."""
        at, launch, is_result = self._reserve(array.size * array.dtype.itemsize), self._launch, position == self._result
        move = Move.of("move_in", array.shape, _elements(array), wanted)

        def step(addresses: list[int], memory: int, stream: int) -> None:
            if is_result:
                addresses.append(addresses[position])
            else:
                move.run(launch, addresses[position], memory + at, stream)
            addresses[position] = memory + at

        self.steps.append(step)

    def _move_back(self, array: Any, given: Sequence[int]) -> None:
        move, position, launch = Move.of("move_out", array.shape, given, _elements(array)), self._result, self._launch
        self.steps.append(lambda addresses, _, stream: move.run(launch, addresses[position], addresses[-1], stream))

    def _convolve(self, device: int, graph: Graph) -> None:
        driver, at = self._driver, self._reserve(self._driver.plan(device, graph).workspace)
        operands = (*range(len(graph.inputs)), self._result)

        def step(addresses: list[int], memory: int, stream: int) -> None:
            plan = driver.plan(device, graph)
            driver.execute(device, stream, plan, [addresses[each] for each in operands], memory + at)

        self.steps.append(step)

    def _finish(self, layout: str) -> None:
        finish, launch, bias, result = Finish.of(self._problem, layout), self._launch, self._bias, self._result

        def step(addresses: list[int], _: int, stream: int) -> None:
            finish.run(launch, addresses[result], 0 if bias is None else addresses[bias], stream)

        self.steps.append(step)

    def _sum(self, layout: str, step_of_result: int) -> None:
        sums, launch = BiasSums.of(self._problem, layout), self._launch
        at, values, out = self._reserve(sums.bytes), 1 if self._problem.bias == "x" else 0, self._result + 1

        def step(addresses: list[int], memory: int, stream: int) -> None:
            sums.run(launch, addresses[values], memory + at, addresses[out], step_of_result, stream)

        self.steps.append(step)

    def _redo(self, layout: str, by: str, *, fused: bool) -> None:
        repair = Repair.of(self._problem, layout, by, fused=fused)
        launch, result, at, bias = self._launch, self._result, self._reserve(repair.flags), self._bias if fused else None

        def step(addresses: list[int], memory: int, stream: int) -> None:
            given = 0 if bias is None else addresses[bias]
            repair.run(launch, addresses[0], addresses[1], given, addresses[result], memory + at, stream)

        self.steps.append(step)


def _options(problem: ConvProblem, layout: str, transforms: bool) -> Iterator[tuple[str, bool, bool]]:
    """(layout, fused, transforms) in the order in which graphs are tried: those first for which no array has to be moved.

    What transforms make must be looked at before an activation hides that it is not finite.
    """
    if transforms:
        yield layout, False, True
    more = problem.op != "weight_grad" and (problem.bias or problem.activation)
    for each in sorted(LAYOUTS, key=lambda name: name != layout):
        for fused in (True, False) if more else (True,):
            yield each, fused, False


def _elements(array: Any) -> tuple[int, ...]:
    """Strides in elements."""
    return tuple(step // array.dtype.itemsize for step in array.strides)


def _lies(array: Any, steps: Sequence[int]) -> bool:
    """Whether an array has these strides on all axes that are stepped over."""
    return all(size == 1 or a == b for size, a, b in zip(array.shape, _elements(array), steps, strict=True))


def _layout_of(array: Any) -> str:
    """channels_last where an array lies so and not channels_first too."""
    first, last = (_lies(array, steps_of(array.shape, layout)) for layout in LAYOUTS)
    return LAYOUTS[1] if last and not first else LAYOUTS[0]


def _meets_zeros(problem: ConvProblem) -> bool:
    """Whether a tap may read a padding zero, or a zero between strided gradients."""
    padded = any(low or high for low, high in problem.padding)
    if problem.op != "input_grad":
        return padded
    return padded or any(taps > 1 or step > 1 for taps, step in zip(problem.kernel, problem.stride, strict=True))
