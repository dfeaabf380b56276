"""What a small call costs. No setup(): asv would time single calls, and 10 microseconds need many."""

import itertools

import numpy as np

import numconv
from numconv.plugin import parse

from . import TINY, case

X, W, GRAD_Y = case(TINY, "backward").arrays()
PROBLEM = parse(TINY)
PLAN = numconv.plan("conv", PROBLEM.x_shape, PROBLEM.w_shape, PROBLEM.dtype, padding=1)
BOUND = PLAN.bind(W)
SIGNAL = np.ones(64, np.float32)
numconv.conv(X, W, padding=1)
numconv.conv_backward(GRAD_Y, X, W, padding=1)
numconv.max_pool(X, 2)
numconv.signal.convolve(SIGNAL, SIGNAL[:5])
PLAN(X, W)
BOUND(X)
_fresh = itertools.count(1 << 28)


def time_conv():
    numconv.conv(X, W, padding=1)


def time_conv_backward():
    numconv.conv_backward(GRAD_Y, X, W, padding=1)


def time_max_pool():
    numconv.max_pool(X, 2)


def time_signal_convolve():
    numconv.signal.convolve(SIGNAL, SIGNAL[:5])


def time_plan():
    PLAN(X, W)


def time_bound_plan():
    BOUND(X)


def time_find_a_known_plan():
    numconv.plan("conv", PROBLEM.x_shape, PROBLEM.w_shape, PROBLEM.dtype, padding=1)


def time_conv_with_a_new_plan():
    """Settings that no earlier call had: the problem is checked, an implementation chosen, its executor built."""
    with numconv.using(max_workspace=next(_fresh)):
        numconv.conv(X, W, padding=1)


def time_explain():
    numconv.explain("conv", PROBLEM.x_shape, PROBLEM.w_shape, PROBLEM.dtype, padding=1)
