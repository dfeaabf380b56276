"""Rows beside the limits of the machine, measured in one process: comparable between machines, and between their moods."""

import math

import numconv
from numconv.plugin import parse

from . import CHOSEN, PASSES, rates, seconds, warm_call


class Limits:
    """Backward counts twice the operations of forward. Algorithms with fewer than the direct one may pass a share of 1."""

    params = (CHOSEN, PASSES)
    param_names = ("problem", "direction")
    timeout = 60

    def setup_cache(self):
        """FLOP/s and their share of the rate of multiply-adds, by row and pass; or the error to raise when its turn comes."""
        return {(text, direction): _measured(text, direction) for text in CHOSEN for direction in PASSES}

    setup_cache.timeout = 900

    def setup(self, measured, problem, direction):
        if isinstance(measured[problem, direction], Exception):
            raise measured[problem, direction]

    def track_gflops(self, measured, problem, direction):
        return measured[problem, direction][0] / 1e9

    track_gflops.unit = "GFLOP/s"

    def track_share_of_peak(self, measured, problem, direction):
        return measured[problem, direction][1]

    track_share_of_peak.unit = "ratio"


def _measured(text, direction):
    problem = parse(text)
    try:
        took = seconds(warm_call.__wrapped__(text, direction))  # not kept: the arrays of all rows would fill the memory
    except (NotImplementedError, ValueError, numconv.NumconvError) as error:
        return error
    rate = problem.flops * (1 if direction == "forward" else 2) / took
    return rate, rate / rates("numba", problem.dtype, 1).get("multiply_adds", math.nan)
