"""Graphs built and executed by cuDNN, and kernels launched: the only module that touches the frontend and CuPy."""

from __future__ import annotations

import functools
import math
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from numconv.plugin import DeviceArray, UnsupportedProblemError, cupy_stream, cupy_view, device_number, remembered, streams_of

from .kernels import NO_RECORD, THREADS, Launch, Macros, source
from .translation import Graph, Tensor

__all__ = ["PLAN_BYTES", "Driver", "Plan", "build"]

PLAN_BYTES = 64 << 20
"""Host memory that cached plans may take, by the size of their serialised form."""

_BYTE = 0x3C
"""Of which every number consists while engines are timed: an ordinary one in each dtype."""
_GROUPS, _RUNS = 4, 3

_TYPES = {"float16": "HALF", "bfloat16": "BFLOAT16", "float32": "FLOAT"}


@dataclass(frozen=True, slots=True)
class Plan:
    """An engine that was built for a graph, which any thread may execute with a handle of its own."""

    graph: Any
    index: int
    uids: tuple[int, ...]
    """Of the inputs in order, then of the output."""
    workspace: int
    size: int


def build(cudnn: Any, handle: int, graph: Graph) -> Plan:
    """The first engine of cuDNN's heuristics that a graph allows, or of those it allows the fastest if it is to be timed.

    Raises
    ------
    UnsupportedProblemError
        If cuDNN has no engine for it, with its own words.
    """
    try:
        built, uids = _declared(cudnn, handle, graph)
        index = _first(cudnn, built, [_fastest(cudnn, handle, graph)] if graph.timed else range(built.get_execution_plan_count()))
    except (cudnn.cudnnGraphNotSupportedError, RuntimeError) as error:
        operations = " + ".join(node.operation for node in graph.nodes)
        raise UnsupportedProblemError(
            f"cuDNN has no engine for {operations} of {', '.join(f'{t.name} {t.dims} {t.dtype}' for t in graph.inputs)} at this "
            f"accuracy ({error}); leave backend='cudnn' out, or ask for backend='cupy'"
        ) from error
    return Plan(built, index, uids, int(built.get_workspace_size_plan_at_index(index)), len(built.serialize()))


def _declared(cudnn: Any, handle: int, graph: Graph) -> tuple[Any, tuple[int, ...]]:
    """cuDNN's graph with the engines that its heuristics name, the most promising first, and the numbers of its tensors."""
    built = cudnn.pygraph(
        handle=handle,
        io_data_type=_type(cudnn, graph.inputs[0]),
        intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT,
    )
    known = {each.name: _tensor(cudnn, built, each) for each in graph.inputs}
    for node, tensor in zip(graph.nodes, graph.made, strict=True):
        known[node.output] = _add(built, node, known)
        known[node.output].set_dim(list(tensor.dims)).set_stride(list(tensor.strides))
    output = known[graph.output.name]
    output.set_output(True).set_data_type(_type(cudnn, graph.output))
    built.validate()
    built.build_operation_graph()
    built.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    built.deselect_numeric_notes([getattr(cudnn.numerical_note, note) for note in graph.excluded])
    built.deselect_workspace_greater_than(graph.workspace)
    return built, tuple(known[each.name].get_uid() for each in (*graph.inputs, graph.output))


def _first(cudnn: Any, built: Any, indices: Iterable[int]) -> int:
    """The first engine that can be built; a refusal is the last one's."""
    refusal: Exception = RuntimeError("its heuristics name none")
    for index in indices:
        try:
            built.build_plan_at_index(index)
        except (cudnn.cudnnGraphNotSupportedError, RuntimeError) as error:
            refusal = error
        else:
            return index
    raise refusal


def _fastest(cudnn: Any, handle: int, graph: Graph) -> int:
    """The engine that took the shortest time on memory of its own, now or in an earlier process."""
    import cupy

    built, uids = _declared(cudnn, handle, graph)
    names = [built.get_plan_name_at_index(index) for index in range(built.get_execution_plan_count())]
    device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())["name"].decode()

    def seconds(name: str) -> float:
        try:
            index = _first(cudnn, built, [names.index(name)])
        except (cudnn.cudnnGraphNotSupportedError, RuntimeError):
            return math.inf
        memory = [cupy.full(each.bytes, _BYTE, "uint8") for each in (*graph.inputs, graph.output)]
        memory.append(cupy.empty(built.get_workspace_size_plan_at_index(index), "uint8"))
        *addresses, workspace = (each.data.ptr for each in memory)
        return _seconds(
            lambda: built.execute_plan_at_index(dict(zip(uids, addresses, strict=True)), workspace, index, handle=handle)
        )

    return names.index(remembered(f"cuDNN {cudnn.backend_version()} {device} {graph.text}", names, seconds)) if names else 0


def _seconds(run: Callable[[], None]) -> float:
    """Of one run on the default stream: the best of a few groups of runs, the first of which is not counted."""
    import cupy

    stream, found = cupy.cuda.Stream.null, list[float]()
    for _ in range(_GROUPS):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record(stream)
        for _ in range(_RUNS):
            run()
        end.record(stream)
        end.synchronize()
        found.append(cupy.cuda.get_elapsed_time(begin, end) / 1e3 / _RUNS)
    return min(found[1:])


def _type(cudnn: Any, tensor: Tensor) -> Any:
    return getattr(cudnn.data_type, _TYPES[tensor.dtype])


def _tensor(cudnn: Any, built: Any, tensor: Tensor) -> Any:
    return built.tensor(name=tensor.name, dim=list(tensor.dims), stride=list(tensor.strides), data_type=_type(cudnn, tensor))


def _add(built: Any, node: Any, known: dict[str, Any]) -> Any:
    arguments: dict[str, Any] = {parameter: known[name] for parameter, name in node.inputs}
    arguments |= {name: list(value) for name, value in node.parameters}
    return getattr(built, node.operation)(**arguments, name=node.output)


_LEGACY = 1
"""cudaStreamLegacy, which is the default stream; all that is called here knows that by 0."""


class Driver:
    """Plans in a cache that all threads share, a handle for each thread and device, compiled kernels."""

    def __init__(self, limit: int = PLAN_BYTES):
        self._limit = limit
        self._plans: OrderedDict[tuple[int, Graph], Plan] = OrderedDict()
        self._lock = threading.Lock()
        self._local = threading.local()

    def on_device_of(self, array: Any) -> AbstractContextManager[Any]:
        """A context in which the device of an array is the current one, as far as its library tells it."""
        import cupy

        device = device_number(array)
        return nullcontext() if device in (None, cupy.cuda.runtime.getDevice()) else cupy.cuda.Device(device)

    def place(self, arrays: Sequence[Any]) -> tuple[int, int]:
        """The current device, and the stream on which a call runs: the first array's, which waits for those of the others."""
        import cupy

        stream, *others = streams_of(arrays)
        if others:
            with cupy_stream(arrays[0]):
                for each in arrays:
                    cupy_view(each)
        device: int = cupy.cuda.runtime.getDevice()
        self._handle(device)  # the first one of a thread makes the context of the device current there
        return device, 0 if stream == _LEGACY else stream

    def address(self, array: Any) -> int:
        """Of the first element of an array on a GPU."""
        found: int = array.pointer if type(array) is DeviceArray else array.data.ptr
        return found

    def launcher(self, device: int, macros: Macros) -> Launch:
        """What launches the kernels that are compiled for these types."""
        return _Launcher(device, _module(macros))

    def plan(self, device: int, graph: Graph) -> Plan:
        """The plan of a graph on a device, built once; the least recently used ones are dropped beyond the limit.

        Raises
        ------
        UnsupportedProblemError
            If cuDNN has no engine for it.
        """
        key = (device, graph)
        with self._lock:
            found = self._plans.get(key)
            if found is None:
                import cudnn

                found = self._plans[key] = build(cudnn, self._handle(device).on(0), graph)
                self._shrink()
            else:
                self._plans.move_to_end(key)
            return found

    def execute(self, device: int, stream: int, plan: Plan, addresses: Sequence[int], workspace: int) -> None:
        """Run a plan, with the addresses of its inputs and of its output."""
        handle = self._handle(device).on(stream)
        plan.graph.execute_plan_at_index(dict(zip(plan.uids, addresses, strict=True)), workspace, plan.index, handle=handle)

    def _handle(self, device: int) -> _Handle:
        """The handle of this thread and a device: handles are not for two threads at once."""
        try:
            found: _Handle = self._local.handles[device]
        except (AttributeError, KeyError):
            import cudnn

            found = self._local.__dict__.setdefault("handles", {})[device] = _Handle(cudnn)
        return found

    def _shrink(self) -> None:
        total = sum(plan.size for plan in self._plans.values())
        while total > self._limit and len(self._plans) > 1:
            _, dropped = self._plans.popitem(last=False)
            total -= dropped.size


class _Handle:
    """Destroyed with the thread that it belongs to."""

    def __init__(self, cudnn: Any):
        self._cudnn = cudnn
        self._value: int = cudnn.create_handle()
        self._stream: int | None = None

    def on(self, stream: int) -> int:
        """The handle, set to a stream."""
        if stream != self._stream:
            self._cudnn.set_stream(handle=self._value, stream=stream)
            self._stream = stream
        return self._value

    def __del__(self) -> None:
        self._cudnn.destroy_handle(self._value)


@functools.cache
def _module(macros: Macros) -> Any:
    import cupy

    options = ("--std=c++17", *(f"-D{name}={value}" for name, value in macros._asdict().items()))
    return cupy.RawModule(code=source(), options=options)


_BUFFER, _SIZE, _END = 1, 2, 0
"""CU_LAUNCH_PARAM_BUFFER_POINTER, CU_LAUNCH_PARAM_BUFFER_SIZE, CU_LAUNCH_PARAM_END: arguments packed in a buffer."""


class _Launcher:
    """The driver's own launch, which takes a third of the time of CuPy's kernels: arguments are numbers of 64 bits in a row."""

    def __init__(self, device: int, module: Any):
        self._device = device
        self._module = module
        self._functions: dict[str, int] = {}

    def __call__(self, kernel: str, blocks: int, numbers: Sequence[int], stream: int, record: array[int] = NO_RECORD) -> None:
        function = self._functions.get(kernel) or self._load(kernel)
        values = array("q", record)
        values.extend(numbers)
        size = array("Q", (8 * len(values),))
        packed = array("Q", (_BUFFER, values.buffer_info()[0], _SIZE, size.buffer_info()[0], _END))
        _driver().launchKernel(function, blocks, 1, 1, THREADS, 1, 1, 0, stream, 0, packed.buffer_info()[0])

    def _load(self, kernel: str) -> int:
        """The function, compiled at the first launch of one from its module."""
        import cupy

        with cupy.cuda.Device(self._device):
            found: int = self._module.get_function(kernel).kernel.ptr
        self._functions[kernel] = found
        return found


@functools.cache
def _driver() -> Any:
    from cupy.cuda import driver

    return driver
