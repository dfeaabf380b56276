"""From the arguments of the public functions to problems: every check of shapes, options and dtypes, in one place.

`freeze` makes an option hashable; `problem_of` builds the problem of a public function. Both run before anything is computed, and
every refusal names what was asked, the numbers that disagree and a way out.
"""

from numconv.problem import POOL_OPS

from .checks import check_results
from .convolution import conv_problem, conv_transpose_problem
from .options import Geometry, PoolGeometry, flag, freeze, geometry_options, pool_options, shape
from .pooling import pool_problem
from .request import Call, Request
from .windows import columns_problem, pad_problem, unpool_problem

__all__ = [
    "Call",
    "Geometry",
    "PoolGeometry",
    "Request",
    "flag",
    "freeze",
    "geometry_options",
    "pool_options",
    "problem_of",
    "shape",
]

_BUILDERS = {
    **dict.fromkeys(("conv", "conv_input_grad", "conv_weight_grad"), conv_problem),
    **dict.fromkeys(("conv_transpose", "conv_transpose_input_grad", "conv_transpose_weight_grad"), conv_transpose_problem),
    **dict.fromkeys(POOL_OPS, pool_problem),
    **dict.fromkeys(("pad", "pad_backward"), pad_problem),
    **dict.fromkeys(("unfold", "fold"), columns_problem),
    **dict.fromkeys(("max_unpool", "max_unpool_backward"), unpool_problem),
}


def problem_of(request: Request) -> Call:
    """The problem of a public function, checked.

    Raises
    ------
    ProblemError
        If shapes, options and dtypes do not make a problem.
    """
    call = _BUILDERS[request.op](request)
    check_results(request.asked, call.problem)
    return call
