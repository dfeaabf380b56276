"""Rows on a GPU, by backend; skipped with the reason where there is none. A call ends when the device is done."""

from . import CONTESTED, PASSES, warm_call


class Gpu:
    """Arrays live on the device; results are compared with sums of their terms before anything is timed."""

    params = (CONTESTED, PASSES, ["cuda", "cupy", "cudnn"])
    param_names = ("problem", "direction", "backend")

    def setup(self, problem, direction, backend):
        self.call = warm_call(problem, direction, backend)

    def time_pass(self, problem, direction, backend):
        self.call()
