"""A thin training layer on numconv's convolutions: layers, losses, optimisers, `fit`.

Every layer's `forward` returns y and the function that takes its gradient back, so there is no tape and no graph. All of it runs
on NumPy arrays, with whichever backend is chosen (`numconv.using`), and on arrays of a library with NumPy's functions.
"""

from typing import TYPE_CHECKING, Any

from .activations import GELU, ReLU, SiLU
from .containers import Parallel, Residual, Sequential
from .convolution import Conv, ConvTranspose
from .dense import Dropout, Flatten, Linear
from .evaluation import Evaluation, evaluate, predict
from .files import FileError, load, save
from .groups import GroupBatchNorm, GroupConv, GroupLift, GroupPool
from .layer import Layer, from_config
from .losses import cross_entropy, mean_squared_error
from .normalisation import BatchNorm
from .optimisers import SGD, AdamW
from .pooling import AvgPool, GlobalAvgPool, GlobalMaxPool, LpPool, MaxPool
from .scales import ScaleConv, ScaleLift, ScalePool
from .schedules import constant, cosine, step
from .training import History, fit

__all__ = [
    "GELU", "SGD", "AdamW", "AvgPool", "BatchNorm", "Conv", "ConvTranspose", "Dropout", "Evaluation", "FileError", "Flatten",
    "GlobalAvgPool", "GlobalMaxPool", "GroupBatchNorm", "GroupConv", "GroupLift", "GroupPool", "History", "Layer", "Linear",
    "LpPool", "MaxPool", "Parallel", "ReLU", "Residual", "ScaleConv", "ScaleLift", "ScalePool", "Sequential", "SiLU", "constant",
    "cosine", "cross_entropy", "evaluate", "fit", "from_config", "load", "mean_squared_error", "predict", "save", "step",
]  # fmt: skip


if not TYPE_CHECKING:  # a type checker knows what there is

    def __getattr__(name: str) -> Any:
        ours = name[:-2] if name[-2:] in ("1d", "2d", "3d") else ""
        hint = f"; nn.{ours} takes any number of spatial dimensions" if ours in __all__ else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
