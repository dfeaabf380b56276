"""One thread and two: what the second is worth."""

import numconv

from . import PASSES, ROWS, warm_call


class Threads:
    """The bits of the results do not depend on their number; a test keeps that."""

    params = (
        [ROWS[name] for name in ("resnet50.56", "depthwise3.144", "image11", "soundfir1025", "digits8")],
        PASSES,
        [1, 2],
    )
    param_names = ("problem", "direction", "threads")

    def setup(self, problem, direction, threads):
        self.call = warm_call(problem, direction)
        with numconv.using(threads=threads):
            self.call()

    def time_pass(self, problem, direction, threads):
        with numconv.using(threads=threads):
            self.call()
