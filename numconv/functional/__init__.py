"""The public functions: names, defaults and documentation. They compute nothing; every call goes through `numconv.dispatch.run`.

Letters, here and everywhere: x ``[N, C, *S]``, w ``[K, C/G, *R]``, y ``[N, K, *Q]`` with N the batch, C input channels, K output
channels, G groups, S, R and Q the spatial sizes of input, kernel and output. With ``layout="channels_last"`` x is
``[N, *S, C]`` and y ``[N, *Q, K]``; w keeps its axes. An x without N gives a y without N.
"""

from .convolution import conv, conv_backward, conv_input_grad, conv_weight_grad
from .gradients import ConvGrads
from .pooling import (
    avg_pool,
    avg_pool_backward,
    lp_pool,
    lp_pool_backward,
    max_pool,
    max_pool_backward,
    max_unpool,
    max_unpool_backward,
)
from .transposed import conv_transpose, conv_transpose_backward
from .windows import fold, pad, pad_backward, unfold

__all__ = [
    "ConvGrads", "avg_pool", "avg_pool_backward", "conv", "conv_backward", "conv_input_grad", "conv_transpose",
    "conv_transpose_backward", "conv_weight_grad", "fold", "lp_pool", "lp_pool_backward", "max_pool", "max_pool_backward",
    "max_unpool", "max_unpool_backward", "pad", "pad_backward", "unfold",
]  # fmt: skip
