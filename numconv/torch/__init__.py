"""numconv in torch: its functions on tensors, with derivatives of any order, and layers in which it computes.

Tensors of the CPU are read where they lie, and results are tensors on numconv's memory: nothing is copied. The functions have the
options of those of `numconv`, but for `out`, which torch's differentiation excludes; `numconv.using` holds for them and, as it
was at the call, for their derivatives.

`convert` swaps the convolutions of a model for those of numconv, with the same parameters. See ``docs/frameworks.md``.
"""

from __future__ import annotations

from numconv.errors import MissingPackageError

try:
    import torch as _torch  # noqa: F401 - whether it is there
except ImportError as error:
    raise MissingPackageError(
        f'numconv.torch needs torch, which cannot be imported ({error}): pip install "numconv-nd[torch]"'
    ) from error

from .functions import avg_pool, conv, conv_transpose, fold, lp_pool, max_pool, max_unpool, pad, unfold
from .layers import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, convert

__all__ = [
    "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "avg_pool", "conv", "conv_transpose",
    "convert", "fold", "lp_pool", "max_pool", "max_unpool", "pad", "unfold",
]  # fmt: skip
