"""What a small call costs. No setup(): asv would time single calls, and 10 microseconds need many."""

import itertools

import numconv

from . import TINY, inputs, parse, plan

X, W = inputs(parse(TINY))
PLAN = plan(parse(TINY), None)
BOUND = PLAN.bind(W)
numconv.conv(X, W, padding=1)
PLAN(X, W)
BOUND(X)
_fresh = itertools.count(1 << 28)


def time_conv():
    numconv.conv(X, W, padding=1)


def time_plan():
    PLAN(X, W)


def time_bound_plan():
    BOUND(X)


def time_conv_with_a_new_plan():
    """Settings that no earlier call had: the problem is checked, an implementation chosen, its executor built."""
    with numconv.using(max_workspace=next(_fresh)):
        numconv.conv(X, W, padding=1)
