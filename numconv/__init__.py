"""numconv: N-dimensional, multi-channel convolutions and their gradients on NumPy arrays, by the fastest implementation at hand.

Public names are loaded when they are first used, so that importing numconv costs little more than importing NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "functional": (
        "ConvGrads", "avg_pool", "avg_pool_backward", "conv", "conv_backward", "conv_input_grad", "conv_transpose",
        "conv_transpose_backward", "conv_weight_grad", "fold", "lp_pool", "lp_pool_backward", "max_pool", "max_pool_backward",
        "max_unpool", "max_unpool_backward", "pad", "pad_backward", "unfold",
    ),
    "planning": ("backends", "explain", "output_shape", "plan"),
    "analysis": ("as_matrix", "receptive_field"),
    "context": ("using",),
    "warming": ("warmup",),
    "errors": ("BackendUnavailableError", "NumconvError", "ProblemError", "UnknownBackendError", "UnsupportedProblemError"),
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME, "__version__"])

if TYPE_CHECKING:
    from .analysis import as_matrix, receptive_field
    from .context import using
    from .errors import BackendUnavailableError, NumconvError, ProblemError, UnknownBackendError, UnsupportedProblemError
    from .functional import (
        ConvGrads,
        avg_pool,
        avg_pool_backward,
        conv,
        conv_backward,
        conv_input_grad,
        conv_transpose,
        conv_transpose_backward,
        conv_weight_grad,
        fold,
        lp_pool,
        lp_pool_backward,
        max_pool,
        max_pool_backward,
        max_unpool,
        max_unpool_backward,
        pad,
        pad_backward,
        unfold,
    )
    from .planning import backends, explain, output_shape, plan
    from .warming import warmup


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'numconv' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
