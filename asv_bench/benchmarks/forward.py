"""Forward convolutions: every row as numconv computes it unasked, and some by each implementation that can."""

from . import CONTESTED, ROWS, TINY, warm_call


class Forward:
    """Results are compared with sums of their terms before they are timed."""

    params = (list(ROWS.values()), ["auto"])
    param_names = ("problem", "implementation")
    timeout = 120

    def setup(self, problem, implementation):
        self.call = warm_call(problem, "forward", implementation)

    def time_forward(self, problem, implementation):
        self.call()


class ForwardForced(Forward):
    """What the choice had to choose from."""

    params = (
        CONTESTED,
        [
            f"numba {name}"
            for name in ("tile", "depthwise", "planewise", "separable", "winograd", "implicit_gemm", "blocked", "fft", "direct")
        ],
    )


class ForwardReference(Forward):
    """The smallest row only: the reference is not made to be fast."""

    params = ([TINY], ["reference"])
