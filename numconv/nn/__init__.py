"""A thin training layer on numconv's convolutions: layers, losses, optimisers, `fit`.

Every layer's `forward` returns y and the function that takes its gradient back, so there is no tape and no graph. All of it runs
on NumPy arrays, with whichever backend is chosen (`numconv.using`), and on arrays of a library with NumPy's functions.
"""

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
