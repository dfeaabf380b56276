"""All that a plugin needs to know of numconv: the only module that a plugin imports.

A **backend** is a light object found by an entry point of the group ``numconv.backends``. It says whether it can run here and
lists its implementations, the general ones last. An **implementation** is one algorithm for one or more operations. It says
which problems it supports, or the reason why not, what it would cost, and builds an **executor**: a callable
``executor(outs, ins)`` that reads the arrays ``ins`` and writes every element of the arrays ``outs``.

What an executor may rely on: the problem was validated; ``ins`` and ``outs`` have the shapes ``problem.input_shapes`` and
``problem.output_shapes``, channels first (channels-last memory arrives as a transposed view), native byte order, any strides;
outs are writable, overlap nothing, and hold arbitrary bits. On a GPU they are CuPy's arrays or `DeviceArray` views of another
library's; working memory comes from `scratch`, in the caller's library and so from its memory pool. What it must keep: inputs stay
as they are, the promises of the documentation hold, several threads may call it at once, and it holds no scratch between calls.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np

from . import __version__
from .arrays import DeviceArray, scratch
from .context import current, environment
from .errors import BackendUnavailableError, NumconvError, ProblemError, UnknownBackendError, UnsupportedProblemError
from .gpu import NvidiaRates, cupy_stream, cupy_view, device_number, nvidia_devices, nvidia_rates, streams_of
from .kernel_files import KernelFiles, cache_dir
from .problem import (
    CONV_OPS,
    LEVELS,
    POOL_OPS,
    WINDOW_OPS,
    ConvProblem,
    PoolProblem,
    Problem,
    WindowProblem,
    accumulator,
    parse,
)
from .tuning import remembered

__all__ = [
    "CONV_OPS", "LEVELS", "POOL_OPS", "WINDOW_OPS", "Backend", "BackendUnavailableError", "ConvProblem", "DeviceArray",
    "Executor", "Implementation", "KernelFiles", "NumconvError", "NvidiaRates", "PoolProblem", "Problem", "ProblemError", "Rates",
    "UnknownBackendError", "UnsupportedProblemError", "Verdict", "WindowProblem", "__version__", "accumulator", "activate",
    "cache_dir", "check_indices", "cupy_stream", "cupy_view", "device_number", "np_dtype", "nvidia_devices", "nvidia_rates",
    "parse", "remembered", "requested_threads", "requested_tuning", "scratch", "streams_of",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """Yes, or no with a reason: a refusal without a reason cannot be constructed."""

    ok: bool
    reason: str = ""

    def __post_init__(self) -> None:
        reason: Any = self.reason
        if not self.ok and not (isinstance(reason, str) and reason.strip()):
            raise ValueError("a refusal needs a reason")

    @classmethod
    def yes(cls, note: str = "") -> Verdict:
        """It can be done; `note` is shown beside it."""
        return cls(True, note)

    @classmethod
    def no(cls, reason: str) -> Verdict:
        """It cannot be done, because of `reason`."""
        return cls(False, reason)

    def __bool__(self) -> bool:
        return self.ok


Executor = Callable[[Sequence[Any], Sequence[Any]], None]
"""``executor(outs, ins) -> None``; a method ``bind(w)``, if any, returns ``bound(outs, (x[, bias]))``, which holds w."""


class Implementation(ABC):
    """One algorithm of one backend."""

    name: ClassVar[str]
    ops: ClassVar[frozenset[str]]
    levels: ClassVar[frozenset[str]] = frozenset(LEVELS)
    """The accuracy levels at which it may be chosen."""
    measured_error: ClassVar[Mapping[str, float]] = {}
    """Largest ``|y - y64|`` measured, relative to the convolution of ``|x|`` with ``|w|``, by accumulation dtype; see docs."""

    @abstractmethod
    def supports(self, problem: Any) -> Verdict:
        """Whether `build` would work for this problem, whose operation is one of `ops`."""

    @abstractmethod
    def cost(self, problem: Any) -> float:
        """Estimated seconds: a function of the problem, the instruction set and constants, never of a timing."""

    @abstractmethod
    def build(self, problem: Any) -> Executor:
        """The executor of a supported problem."""

    def workspace(self, problem: Any) -> int:
        """Upper bound of the bytes that a call allocates besides its outputs."""
        return 0


class Rates(NamedTuple):
    """What a machine does at most, measured: the limits that a benchmark compares a backend with.

    A backend may offer ``rates(dtype, size) -> Rates``, for data of `size` bytes: small data may stay in caches.
    """

    multiply_adds: float
    """FLOP/s, a multiply-add counted as two."""
    copies: float
    """Bytes a second, those read and those written together."""


@runtime_checkable
class Backend(Protocol):
    """A plugin. Its module must be light: kernels are imported by `implementations`.

    Attributes
    ----------
    name : str
        The name of its entry point.
    device : {"cpu", "gpu"}
        Where its arrays live.
    automatic : bool
        Whether it takes part in the automatic choice. A plugin that leaves this False computes only when asked for by name.
    version : str
        Shown by `numconv.backends`.
    """

    name: str
    device: str
    automatic: bool
    version: str

    def availability(self) -> Verdict:
        """Whether it can run here, found without importing kernel code; a refusal says what to install."""

    def implementations(self) -> Sequence[Implementation]:
        """All of them, the general ones last."""


def np_dtype(name: str) -> np.dtype[Any]:
    """NumPy's dtype of this name; ``bfloat16`` comes from ml_dtypes."""
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise BackendUnavailableError("dtype bfloat16 needs the package ml_dtypes: pip install ml_dtypes") from error
        name = ml_dtypes.bfloat16
    found: np.dtype[Any] = np.dtype(name)
    return found


_BLOCK = 1 << 16


def activate(values: np.ndarray[Any, Any], activation: str | None) -> None:
    """Apply an activation in place, a block at a time; for implementations that cannot fuse it.

    ``silu`` is x / (1 + exp(-x)), ``gelu`` its exact form x * erfc(-x / sqrt(2)) / 2; both are computed in float64.
    """
    if activation is None:
        return
    if activation == "relu":
        np.maximum(values, 0, out=values)
        return
    first = values.shape[0]
    step = max(1, _BLOCK // max(1, values.size // max(first, 1)))
    for start in range(0, first, step):
        part = values[start : start + step]
        wide = part.astype(np.float64)
        if activation == "silu":
            with np.errstate(over="ignore", invalid="ignore"):
                part[...] = wide / (1 + np.exp(-wide))
        else:
            from scipy.special import erfc

            with np.errstate(invalid="ignore"):
                part[...] = 0.5 * wide * erfc(wide * -math.sqrt(0.5))


def check_indices(op: str, indices: np.ndarray[Any, Any], volume: int) -> None:
    """Raise ProblemError unless every index lies in [0, volume)."""
    if not indices.size:
        return
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= volume:
        raise ProblemError(
            f"{op}: indices range from {low} to {high}, but positions in the spatial volume of a channel range from 0 to "
            f"{volume - 1}; pass the indices that max_pool(..., return_indices=True) returned for this x_shape"
        )


def requested_threads() -> int | None:
    """The number of threads that the caller asked for, by `using(threads=)` or NUMCONV_NUM_THREADS; None: the backend decides."""
    return current().threads or environment().threads


def requested_tuning() -> bool:
    """Whether the caller asked that candidates be timed once, by `using(tune=True)`: known where an executor is built.

    An implementation that has several ways to compute a problem then finds the fastest by `remembered`.
    """
    return current().tune
