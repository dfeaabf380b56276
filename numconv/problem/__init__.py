"""What is to be computed, as plain data: `ConvProblem`, `PoolProblem` and `WindowProblem`.

A problem is frozen and hashable. It holds everything on which the choice of an algorithm may depend, and nothing else: no arrays,
no device, no number of threads. Shapes are always in the order channels-first; `layout` only says which axis the caller's memory
has last. The letters are those of the whole project: x ``[N, C, *S]``, w ``[K, C/G, *R]``, y ``[N, K, *Q]``.

Every problem has a text form, ``str(problem)``, that `parse` turns back into an equal object.
"""

from .base import Problem
from .convolution import ConvProblem
from .names import (
    ACTIVATIONS,
    CONV_OPS,
    DEFAULT_WORKSPACE,
    ITEMSIZE,
    LAYOUTS,
    LEVELS,
    LONG,
    PAD_MODES,
    POOL_OPS,
    SHORT,
    WIDER,
    WINDOW_OPS,
    Ints,
    Pairs,
    accumulator,
)
from .parsing import parse
from .pooling import PoolProblem
from .windows import WindowProblem

__all__ = [
    "ACTIVATIONS", "CONV_OPS", "DEFAULT_WORKSPACE", "ITEMSIZE", "LAYOUTS", "LEVELS", "LONG", "PAD_MODES", "POOL_OPS", "SHORT",
    "WIDER", "WINDOW_OPS", "ConvProblem", "Ints", "Pairs", "PoolProblem", "Problem", "WindowProblem", "accumulator", "parse",
]  # fmt: skip
