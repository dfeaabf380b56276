"""Graphs built and executed by cuDNN: the only module that touches the frontend."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from numconv.plugin import UnsupportedProblemError

from .translation import Graph, Tensor

__all__ = ["PLAN_BYTES", "Driver", "Plan", "build"]

PLAN_BYTES = 64 << 20
"""Host memory that cached plans may take, by the size of their serialised form."""

_TYPES = {"float16": "HALF", "bfloat16": "BFLOAT16", "float32": "FLOAT"}


class Plan(NamedTuple):
    """A built graph, which any thread may execute with a handle of its own."""

    graph: Any
    tensors: tuple[Any, ...]
    """Inputs in order, then the output."""
    workspace: int
    size: int


def build(cudnn: Any, handle: int, graph: Graph) -> Plan:
    """The cheapest engine of cuDNN's heuristics that a graph allows.

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
        known[node.output] = _add(cudnn, built, node, known)
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
    tensors = (*(known[each.name] for each in graph.inputs), output)
    return Plan(built, tensors, int(built.get_workspace_size()), len(built.serialize()))


def _type(cudnn: Any, tensor: Tensor) -> Any:
    return getattr(cudnn.data_type, _TYPES[tensor.dtype])


def _tensor(cudnn: Any, built: Any, tensor: Tensor) -> Any:
    return built.tensor(name=tensor.name, dim=list(tensor.dims), stride=list(tensor.strides), data_type=_type(cudnn, tensor))


def _add(cudnn: Any, built: Any, node: Any, known: dict[str, Any]) -> Any:
    arguments: dict[str, Any] = {parameter: known[name] for parameter, name in node.inputs}
    for name, value in node.parameters:
        arguments[name] = getattr(cudnn.reduction_mode, value) if isinstance(value, str) else list(value)
    return getattr(built, node.operation)(**arguments, name=node.output)


class Driver:
    """Plans in a cache that all threads share, and a handle for each thread and device."""

    def __init__(self, limit: int = PLAN_BYTES):
        self._limit = limit
        self._plans: OrderedDict[tuple[int, Graph], Plan] = OrderedDict()
        self._lock = threading.Lock()
        self._local = threading.local()

    def execute(self, graph: Graph, arrays: Sequence[Any]) -> None:
        """Run a graph on CuPy's arrays, its inputs and then its output, on the current stream.

        Raises
        ------
        UnsupportedProblemError
            If cuDNN has no engine for it.
        """
        import cudnn
        import cupy

        device = cupy.cuda.runtime.getDevice()
        handle = self._handle(cudnn, device, cupy.cuda.get_current_stream().ptr)
        plan = self.plan(cudnn, device, handle, graph)
        workspace = cupy.empty(max(1, plan.workspace), cupy.uint8)
        pointers = {tensor: array.data.ptr for tensor, array in zip(plan.tensors, arrays, strict=True)}
        plan.graph.execute(pointers, workspace.data.ptr, handle=handle)

    def _handle(self, cudnn: Any, device: int, stream: int) -> int:
        """The handle that belongs to this thread and a device, set to a stream: handles are not for two threads at once."""
        handles: dict[int, _Handle] = self._local.__dict__.setdefault("handles", {})
        if device not in handles:
            handles[device] = _Handle(cudnn)
        cudnn.set_stream(handle=handles[device].value, stream=stream)
        return handles[device].value

    def plan(self, cudnn: Any, device: int, handle: int, graph: Graph) -> Plan:
        """The plan of a graph on a device, built once; the least recently used ones are dropped beyond the limit."""
        key = (device, graph)
        with self._lock:
            if key not in self._plans:
                self._plans[key] = build(cudnn, handle, graph)
                self._shrink()
            self._plans.move_to_end(key)
            return self._plans[key]

    def _shrink(self) -> None:
        total = sum(plan.size for plan in self._plans.values())
        while total > self._limit and len(self._plans) > 1:
            _, dropped = self._plans.popitem(last=False)
            total -= dropped.size


class _Handle:
    """Destroyed with the thread that it belongs to."""

    def __init__(self, cudnn: Any):
        self.value: int = cudnn.create_handle()
        self._destroy = cudnn.destroy_handle

    def __del__(self) -> None:
        self._destroy(self.value)
