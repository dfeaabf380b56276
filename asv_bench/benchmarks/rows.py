"""Real layers and filters, by backend. Each is compared with the reference before it is timed."""

import functools
import itertools

import numpy as np

from . import ROWS, TINY, check, inputs, parse, plan, seconds


class Forward:
    """One forward convolution through its plan."""

    params = (list(ROWS.values()), ["numba"])
    param_names = ("problem", "backend")
    timeout = 120

    def setup_cache(self):
        """The verdict on every row: None if it is right, else the error to raise when its turn comes."""
        rows = [*itertools.product(*Forward.params), *itertools.product(*Reference.params)]
        return {row: _verdict(*row) for row in rows}

    setup_cache.timeout = 600

    def setup(self, verdicts, problem, backend):
        if verdicts[problem, backend] is not None:
            raise verdicts[problem, backend]
        self.call = _warm_call(problem, backend)

    def time_forward(self, verdicts, problem, backend):
        self.call()

    def track_gflops(self, verdicts, problem, backend):
        return parse(problem).flops / seconds(self.call) / 1e9

    track_gflops.unit = "GFLOP/s"

    def track_share_of_matmul(self, verdicts, problem, backend):
        """Its FLOP/s over those of NumPy's matrix product in the same process: comparable between machines and moods."""
        return parse(problem).flops / seconds(self.call) / _matmul_rate(parse(problem).dtype)

    track_share_of_matmul.unit = "ratio"


class Reference(Forward):
    """The smallest row only: it is not made to be fast."""

    params = ([TINY], ["reference"])


class Memory:
    """The peak of a process that computes one row, checked by nothing else: the reference would need more."""

    params = tuple(ROWS.values())
    param_names = ("problem",)

    def peakmem_forward(self, problem):
        _warm_call(problem, None)()


def _verdict(text, backend):
    try:
        check(text, backend)
    except (NotImplementedError, ValueError) as error:
        return error
    return None


@functools.cache
def _warm_call(text, backend):
    """A call that has run once: asv repeats setup, and `--quick` does not warm up."""
    problem = parse(text)
    call = functools.partial(plan(problem, backend), *inputs(problem))
    call()
    return call


def _matmul_rate(dtype):
    a = np.ones((1024, 1024), dtype)
    return 2 * 1024**3 / seconds(lambda: a @ a)
