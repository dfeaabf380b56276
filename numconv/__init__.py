"""numconv: N-dimensional, multi-channel convolutions and their gradients on NumPy arrays, by the fastest implementation at hand.

Public names are loaded when they are first used, so that importing numconv costs little more than importing NumPy.
"""

from __future__ import annotations

import importlib
import sys
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

_MODULES = ("equivariance", "media", "nn", "signal", "training")
_BRIDGES = ("dask", "jax", "torch")  # those who name one have the package, so `import *` leaves them out

__all__ = sorted([*_HOME, *_MODULES, "__version__"])

if TYPE_CHECKING:
    from . import dask as dask
    from . import equivariance as equivariance
    from . import jax as jax
    from . import media as media
    from . import nn as nn
    from . import signal as signal
    from . import torch as torch
    from . import training as training
    from .analysis import as_matrix as as_matrix
    from .analysis import receptive_field as receptive_field
    from .context import using as using
    from .errors import BackendUnavailableError as BackendUnavailableError
    from .errors import NumconvError as NumconvError
    from .errors import ProblemError as ProblemError
    from .errors import UnknownBackendError as UnknownBackendError
    from .errors import UnsupportedProblemError as UnsupportedProblemError
    from .functional import ConvGrads as ConvGrads
    from .functional import avg_pool as avg_pool
    from .functional import avg_pool_backward as avg_pool_backward
    from .functional import conv as conv
    from .functional import conv_backward as conv_backward
    from .functional import conv_input_grad as conv_input_grad
    from .functional import conv_transpose as conv_transpose
    from .functional import conv_transpose_backward as conv_transpose_backward
    from .functional import conv_weight_grad as conv_weight_grad
    from .functional import fold as fold
    from .functional import lp_pool as lp_pool
    from .functional import lp_pool_backward as lp_pool_backward
    from .functional import max_pool as max_pool
    from .functional import max_pool_backward as max_pool_backward
    from .functional import max_unpool as max_unpool
    from .functional import max_unpool_backward as max_unpool_backward
    from .functional import pad as pad
    from .functional import pad_backward as pad_backward
    from .functional import unfold as unfold
    from .planning import backends as backends
    from .planning import explain as explain
    from .planning import output_shape as output_shape
    from .planning import plan as plan
    from .warming import warmup as warmup


if not TYPE_CHECKING:  # a type checker knows what there is

    def __getattr__(name: str) -> Any:
        if name in _MODULES or name in _BRIDGES:
            return importlib.import_module(f".{name}", __name__)
        home = _HOME.get(name)
        if home is None:
            ours = name[:-2].rstrip("_") if name[-2:] in ("1d", "2d", "3d") else ""
            hint = f"; numconv.{ours} takes any number of spatial dimensions" if ours in _HOME else ""
            hint = "; layers for any number of spatial dimensions are in numconv.nn" if ours[:1].isupper() else hint
            raise AttributeError(f"module 'numconv' has no attribute {name!r}{hint}", name=name, obj=sys.modules[__name__])
        value = getattr(importlib.import_module(f".{home}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
