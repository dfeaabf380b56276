"""numconv as it is called: through its public functions, on arrays of the device of its backend."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from .cases import Calls, Case, Declined

__all__ = ["rates", "start"]


def start(backend: str | None = None, algorithm: str | None = None) -> tuple[Callable[[Case], Calls], dict[str, Any]]:
    """The maker of calls, and what is to be told at the beginning."""
    import numconv

    device = "cpu"
    if backend is not None:
        known = {info.name: info for info in numconv.backends()}
        if backend not in known:
            raise numconv.UnknownBackendError(f"no backend is called {backend!r}; installed are {', '.join(known)}")
        if not known[backend].available:
            raise numconv.BackendUnavailableError(f"{backend}: {known[backend].reason}")
        device = known[backend].device
    return functools.partial(_make, device, backend, algorithm), {"version": numconv.__version__}


def _make(device: str, backend: str | None, algorithm: str | None, case: Case) -> Calls:
    """One call, under the name of the implementation that it uses."""
    import numconv

    arrays = case.arrays()
    if device == "gpu":
        cupy = importlib.import_module("cupy")
        arrays = type(arrays)(*map(cupy.asarray, arrays))
    x, w, grad_y = arrays
    options: dict[str, Any] = {name: getattr(case, name) for name in ("stride", "padding", "dilation", "groups")}
    chosen: dict[str, Any] = {"backend": backend, "algorithm": algorithm}
    op = "conv" if case.direction == "forward" else "conv_backward"
    try:
        plan = numconv.plan(op, case.x_shape, case.w_shape, case.dtype, like=x, **options, **chosen)
    except numconv.UnsupportedProblemError as refusal:
        raise Declined(str(refusal)) from refusal
    if case.direction == "forward":
        call = functools.partial(numconv.conv, x, w, **options, **chosen)
    else:
        call = functools.partial(numconv.conv_backward, grad_y, x, w, **options, **chosen)
    return {f"{plan.backend} {plan.algorithm}": call if device == "cpu" else _finished(call)}


def _finished(call: Callable[[], Any]) -> Callable[[], Any]:
    """Until the GPU is done."""
    cupy = importlib.import_module("cupy")

    def run() -> Any:
        results = call()
        cupy.cuda.get_current_stream().synchronize()
        return results

    return run


def rates(backend: str, dtype: str, size: int) -> dict[str, float]:
    """What the machine does at most, measured by a backend that can; else nothing."""
    from numconv.registry import default_registry

    measure = getattr(default_registry().backend(backend), "rates", None)
    return measure(dtype, size)._asdict() if measure else {}
