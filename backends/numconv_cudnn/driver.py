"""Graphs built and executed by cuDNN, and kernels launched: the only module that touches the frontend and CuPy."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from numconv.plugin import DeviceArray, UnsupportedProblemError

from .kernels import THREADS, Launch, Macros, source
from .translation import Graph, Tensor

__all__ = ["PLAN_BYTES", "Driver", "Plan", "build"]

PLAN_BYTES = 64 << 20
"""Host memory that cached plans may take, by the size of their serialised form."""

_TYPES = {"float16": "HALF", "bfloat16": "BFLOAT16", "float32": "FLOAT"}


class Plan(NamedTuple):
    """A built graph, which any thread may execute with a handle of its own."""

    graph: Any
    uids: tuple[int, ...]
    """Of the inputs in order, then of the output."""
    workspace: int
    size: int


def build(cudnn: Any, handle: int, graph: Graph) -> Plan:
    """The first engine of cuDNN's heuristics that a graph allows.

    Raises
    ------
    UnsupportedProblemError
        If cuDNN has no engine for it, with its own words.
    """
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
    try:
        built.validate()
        built.build_operation_graph()
        built.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        built.deselect_numeric_notes([getattr(cudnn.numerical_note, note) for note in graph.excluded])
        built.deselect_workspace_greater_than(graph.workspace)
        built.check_support()
        built.build_plans(cudnn.build_plan_policy.HEURISTICS_CHOICE)
    except (cudnn.cudnnGraphNotSupportedError, RuntimeError) as error:
        operations = " + ".join(node.operation for node in graph.nodes)
        raise UnsupportedProblemError(
            f"cuDNN has no engine for {operations} of {', '.join(f'{t.name} {t.dims} {t.dtype}' for t in graph.inputs)} at this "
            f"accuracy ({error}); leave backend='cudnn' out, or ask for backend='cupy'"
        ) from error
    uids = tuple(known[each.name].get_uid() for each in (*graph.inputs, graph.output))
    return Plan(built, uids, int(built.get_workspace_size()), len(built.serialize()))


def _type(cudnn: Any, tensor: Tensor) -> Any:
    return getattr(cudnn.data_type, _TYPES[tensor.dtype])


def _tensor(cudnn: Any, built: Any, tensor: Tensor) -> Any:
    return built.tensor(name=tensor.name, dim=list(tensor.dims), stride=list(tensor.strides), data_type=_type(cudnn, tensor))


def _add(built: Any, node: Any, known: dict[str, Any]) -> Any:
    arguments: dict[str, Any] = {parameter: known[name] for parameter, name in node.inputs}
    arguments |= {name: list(value) for name, value in node.parameters}
    return getattr(built, node.operation)(**arguments, name=node.output)


class Driver:
    """Plans in a cache that all threads share, a handle for each thread and device, compiled kernels."""

    def __init__(self, limit: int = PLAN_BYTES):
        self._limit = limit
        self._plans: OrderedDict[tuple[int, Graph], Plan] = OrderedDict()
        self._lock = threading.Lock()
        self._local = threading.local()

    def device(self) -> int:
        """The current device."""
        import cupy

        found: int = cupy.cuda.runtime.getDevice()
        return found

    def address(self, array: Any) -> int:
        """Of the first element of an array on a GPU."""
        found: int = array.pointer if type(array) is DeviceArray else array.data.ptr
        return found

    def launcher(self, macros: Macros) -> Launch:
        """What launches the kernels that are compiled for these types."""
        return _launcher(macros)

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

                found = self._plans[key] = build(cudnn, self._handle(device), graph)
                self._shrink()
            else:
                self._plans.move_to_end(key)
            return found

    def execute(self, device: int, plan: Plan, addresses: Sequence[int], workspace: int) -> None:
        """Run a plan on the current stream, with the addresses of its inputs and of its output."""
        plan.graph.execute(dict(zip(plan.uids, addresses, strict=True)), workspace, handle=self._handle(device))

    def _handle(self, device: int) -> int:
        """The handle of this thread and a device, set to CuPy's current stream: handles are not for two threads at once."""
        import cupy

        stream: int = cupy.cuda.get_current_stream().ptr
        try:
            handle: _Handle = self._local.handles[device]
        except (AttributeError, KeyError):
            import cudnn

            handle = self._local.__dict__.setdefault("handles", {})[device] = _Handle(cudnn)
        return handle.on(stream)

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
def _launcher(macros: Macros) -> Launch:
    import cupy

    options = ("--std=c++17", *(f"-D{name}={value}" for name, value in macros._asdict().items()))
    module = cupy.RawModule(code=source(), options=options)
    function = functools.cache(module.get_function)

    def launch(kernel: str, blocks: int, arguments: tuple[Any, ...]) -> None:
        function(kernel)((blocks,), (THREADS,), arguments)

    return launch
