"""Bad calls: the right error class, a text with the numbers that disagree, and nothing written."""

from __future__ import annotations

import functools
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import numconv as nc
from numconv import BackendUnavailableError, ProblemError, UnknownBackendError, UnsupportedProblemError

X = np.ones((1, 3, 6, 6), np.float32)
W = np.ones((4, 3, 3, 3), np.float32)
Y = np.ones((1, 4, 4, 4), np.float32)
BIAS = np.ones(4, np.float32)
WAVE = np.ones((1, 2, 8), np.float32)
HALVES = np.ones((1, 2, 4), np.float32)
POSITIONS = np.zeros((1, 2, 4), np.int64)


@pytest.fixture(autouse=True)
def reference():
    """What is refused before a backend is asked needs no compiled one."""
    with nc.using(backend="reference"):
        yield


def bad(text: str, function: Callable[..., Any], *args: Any, error: type[Exception] = ProblemError, **options: Any) -> Any:
    """A row: what the error text must match, the function and its arguments."""
    return pytest.param(function, args, options, error, text, id=f"{function.__name__} {text}")


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def unaligned(shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape))
    return np.zeros(4 * count + 1, np.uint8)[1:].view(np.float32).reshape(shape)


def call_plan(*arrays: Any) -> Any:
    return nc.plan("conv", X.shape, W.shape)(*arrays)


def call_bound(*arrays: Any) -> Any:
    return nc.plan("conv", X.shape, W.shape).bind(W)(*arrays)


def bind(op: str, second: Any, w: Any) -> Any:
    return nc.plan(op, X.shape, second).bind(w)


SHAPES = [
    bad(r"x has 5 dimensions, but 2 spatial dimensions need 4 \(\[N, C, \*S\]\) or 3 \(\[C, \*S\]\)", nc.conv, X[None], W),
    bad(r"x has 2 dimensions, but 2 spatial dimensions need 4", nc.conv, X[0, 0], W),
    bad(r"x has 5 dimensions.*\[N, \*S, C\]", nc.conv, X[None], W, layout="channels_last"),
    bad(r"w has 2 dimensions; it needs at least 3: .*one spatial dimension$", nc.conv, X, W[0, 0]),
    bad(r"w has 1 dimensions.*; for one channel and one filter give x\[None\] and w\[None, None\]",
        nc.conv, X[0, 0, 0], W[0, 0, 0]),
    bad(r"x_shape is an array of shape \(1, 3, 6, 6\); give integers", nc.conv_input_grad, Y, W, X),
    bad(r"w has the shape \(0, 3, 3, 3\): every size must be at least 1", nc.conv, X, W[:0]),
    bad(r"x has the shape \(1, 3, 0, 6\): only the batch may be empty", nc.conv, X[:, :, :0], W),
    bad(r"x has 3 channels, but w \(4, 2, 3, 3\) takes w.shape\[1\] \* groups = 2 \* 1 = 2", nc.conv, X, W[:, :2]),
    bad(r"x has 3 channels.*1 \* 1 = 1; with groups=1 w must be \(4, 3, ...\)", nc.conv, X, W[:, :1]),
    bad(r"x has 6 channels.*if the channels of x are its last axis, say layout='channels_last'",
        nc.conv, X.transpose(0, 2, 3, 1), W),
    bad(r"3 input channels cannot be split into groups=2: 3 % 2 = 1", nc.conv, X, W, groups=2),
    bad(r"4 output channels cannot be split into groups=3: 4 % 3 = 1", nc.conv, X, W[:, :1], groups=3),
    bad(r"bias has shape \(3,\) and dtype float32, and must have \(4,\)", nc.conv, X, W, BIAS[:3]),
    bad(r"bias has shape \(4, 1\).*must have \(4,\)", nc.conv, X, W, BIAS[:, None]),
    bad(r"grad_y has shape \(1, 4, 6, 6\).*must have \(1, 4, 4, 4\).*S=\(6, 6\): \(4, 4\)",
        nc.conv_input_grad, np.ones((1, 4, 6, 6), np.float32), W, X.shape),
    bad(r"grad_y has shape \(1, 4, 4, 4\).*must have \(1, 4, 2, 2\)", nc.conv_input_grad, Y, W, X.shape, stride=2),
    bad(r"grad_y has shape \(1, 4, 4, 4\).*must have \(2, 4, 4, 4\)", nc.conv_weight_grad, Y, X.repeat(2, 0), W.shape),
    bad(r"grad_y has shape \(1, 4, 4, 4\).*must have \(1, 4, 6, 6\)", nc.conv_backward, Y, X, W, padding=1),
    bad(r"x_shape=\(1, -3, 6, 6\) has a negative size, -3", nc.conv_input_grad, Y, W, (1, -3, 6, 6)),
    bad(r"x_shape=7 must be a tuple of integers", nc.conv_input_grad, Y, W, 7),
    bad(r"w_shape=3 must be a tuple of integers", nc.conv_weight_grad, Y, X, 3),
    bad(r"x_shape=6.0 is a float", nc.conv_input_grad, Y, W, (1, 3, 6.0, 6)),
]  # fmt: skip

GEOMETRY = [
    bad(r"floor\(\(6 \+ 0 \+ 0 - 1\*\(7 - 1\) - 1\) / 1\) \+ 1 = 0: a kernel that spans 7 .* there are 6; pad by 1",
        nc.conv, X, np.ones((4, 3, 7, 7), np.float32)),
    bad(r"dimension 1:.*floor\(\(6 \+ 1 \+ 2 - 5\*\(3 - 1\) - 1\) / 2\) \+ 1 = 0: a kernel that spans 11.*there are 9; pad by 2",
        nc.conv, X, W, padding=((2, 3), (1, 2)), dilation=5, stride=(1, 2)),
    bad(r"stride=0 must be at least 1 in every dimension, but holds 0", nc.conv, X, W, stride=0),
    bad(r"padding='reflect' says what the padding holds, not how much there is; say pad_mode='reflect'",
        nc.conv, X, W, padding="reflect"),
    bad(r"padding=\(\(0, 1180591620717411303424\),\) holds 1180591620717411303424, and no array reaches further",
        nc.conv, X[0, :1, 0], W[:1, :1, 0], padding=((0, 2**70),)),
    bad(r"stride=1180591620717411303424 holds 1180591620717411303424, and no array reaches further", nc.conv, X, W, stride=2**70),
    bad(r"stride=\(1, -2\) must be at least 1.*holds -2", nc.conv, X, W, stride=(1, -2)),
    bad(r"stride=\(1, 1, 1\) has 3 entries, but there are 2 spatial dimensions", nc.conv, X, W, stride=(1, 1, 1)),
    bad(r"stride=1.5 is a float", nc.conv, X, W, stride=1.5),
    bad(r"stride=True: a truth value", nc.conv, X, W, stride=True),
    bad(r"stride=None is a NoneType; give an integer or a tuple of integers$", nc.conv, X, W, stride=None),
    bad(r"stride='2' must be an integer", nc.conv, X, W, stride="2"),
    bad(r"stride=\{.*\} is a dict", nc.conv, X, W, stride={"h": 1}),
    bad(r"dilation=0 must be at least 1", nc.conv, X, W, dilation=0),
    bad(r"dilation=\(2,\) has 1 entries, but there are 2", nc.conv, X, W, dilation=(2,)),
    bad(r"padding=-1 must be at least 0 in every dimension, but holds -1", nc.conv, X, W, padding=-1),
    bad(r"padding=\(\(0, 1\), \(-2, 1\)\) must be at least 0.*holds -2", nc.conv, X, W, padding=((0, 1), (-2, 1))),
    bad(r"padding=\(1, 2, 3\) has 3 entries, but there are 2 spatial dimensions", nc.conv, X, W, padding=(1, 2, 3)),
    bad(r"padding=\(1, 1, 2, 2\) has 4 entries", nc.conv, X, W, padding=(1, 1, 2, 2)),
    bad(r"padding=\(\(1, 2\),\) has 1 pairs, but there are 2", nc.conv, X, W, padding=((1, 2),)),
    bad(r"padding=\(1, \(1, 2\)\) mixes forms", nc.conv, X, W, padding=(1, (1, 2))),
    bad(r"padding=\(\(1, 2, 3\), \(1, 2, 3\)\) mixes forms", nc.conv, X, W, padding=((1, 2, 3), (1, 2, 3))),
    bad(r"padding='SAME' is not one of valid, same, full, causal; say padding='same'", nc.conv, X, W, padding="SAME"),
    bad(r"padding=nan is a float; give an integer, a tuple of integers or a word$", nc.conv, X, W, padding=float("nan")),
    bad(r"groups=0 must be an integer of at least 1", nc.conv, X, W, groups=0),
    bad(r"groups=\(1, 1\) must be an integer", nc.conv, X, W, groups=(1, 1)),
    bad(r"groups=1.0 is a float; give an integer$", nc.conv, X, W, groups=1.0),
    bad(r"pad_mode='edge' is not one of .*; say pad_mode='replicate'", nc.conv, X, W, pad_mode="edge"),
    bad(r"unhashable", nc.conv, X, W, pad_mode=["zeros"]),
    bad(r"flip=1 must be True or False", nc.conv, X, W, flip=1),
    bad(r"layout='NCHW' is not one of channels_first, channels_last; say layout='channels_first'", nc.conv, X, W, layout="NCHW"),
    bad(r"activation='tanh' is not one of relu, silu, gelu$", nc.conv, X, W, activation="tanh"),
    bad(r"activation='relu' is for real floats.*the dtype is complex64",
        nc.conv, X.astype("c8"), W.astype("c8"), activation="relu"),
    bad(r"activation='gelu' is for real floats.*the dtype is int16", nc.conv, X.astype("i2"), W.astype("i2"), activation="gelu"),
    bad(r"needs=\(\) must name at least one of x, w, bias", nc.conv_backward, Y, X, W, needs=()),
    bad(r"needs=\('x', 'y'\) must name", nc.conv_backward, Y, X, W, needs=("x", "y")),
    bad(r"needs=None must name at least one of x, w, bias", nc.conv_backward, Y, X, W, needs=None),
    bad(r"a result of shape \(1, 4, 20000004, 20000004\), float32, has 6400002560000256 bytes, more than",
        nc.conv, X, W, padding=10**7),
    bad(r"a result of shape \(1, 3, 30000003, 30000003\), float32, has 108\d+ bytes", nc.conv_transpose, Y, W, stride=10**7),
    bad(r"a result of shape \(1, 3, 20000006, 20000006\)", nc.pad, X, 10**7),
    bad(r"window='2' must be an integer or one integer for each spatial dimension", nc.max_pool, X, "2"),
    bad(r"width='2' must be an integer or one", nc.pad, X, "2"),
]  # fmt: skip

TRANSPOSED = [
    bad(r"x has 3 channels, but w \(4, 3, 3, 3\).*w.shape\[0\] = 4", nc.conv_transpose, X, W),
    bad(r"4 input channels cannot be split into groups=3", nc.conv_transpose, Y, W, groups=3),
    bad(r"output_padding 2 in spatial dimension 0 must be less than max\(stride, dilation\) = max\(2, 1\) = 2",
        nc.conv_transpose, Y, W, stride=2, output_padding=2),
    bad(r"output_padding 3 in spatial dimension 1.*max\(1, 3\) = 3", nc.conv_transpose, Y, W, dilation=3, output_padding=(0, 3)),
    bad(r"output_padding=-1 must be at least 0", nc.conv_transpose, Y, W, output_padding=-1),
    bad(r"output_padding=1 with padding='same'", nc.conv_transpose, Y, W, stride=2, padding="same", output_padding=1),
    bad(r"padding='full' is not one of valid, same", nc.conv_transpose, Y, W, padding="full"),
    bad(r"padding='causal' is not one of valid, same", nc.conv_transpose, Y, W, padding="causal"),
    bad(r"\(4 - 1\)\*1 \+ 1\*\(3 - 1\) \+ 1 - 3 - 3 \+ 0 = 0; use less padding", nc.conv_transpose, Y, W, padding=3),
    bad(r"bias has shape \(4,\).*must have \(3,\)", nc.conv_transpose, Y, W, BIAS),
    bad(r"grad_y has shape \(1, 3, 6, 6\).*must have \(1, 3, 9, 9\)", nc.conv_transpose_backward, X, Y, W, stride=2),
]  # fmt: skip

POOLING = [
    bad(r"padding 2 in spatial dimension 0 must stay below the window's extent d\*\(r - 1\) \+ 1 = 1\*\(2 - 1\) \+ 1 = 2",
        nc.max_pool, X, 2, padding=2),
    bad(r"padding 5 .* = 2\*\(3 - 1\) \+ 1 = 5", nc.avg_pool, X, 3, dilation=2, padding=5),
    bad(r"window 0 in spatial dimension 0 holds no element: its taps lie at -2..2 in steps of 4, and x has 2",
        nc.max_pool, WAVE[..., :2], 2, dilation=4, padding=2),
    bad(r"x has 4 dimensions, but 4 spatial dimensions need 6", nc.max_pool, X, (2, 2, 2, 2)),
    bad(r"x has 4 dimensions, but 1 spatial dimensions need 3", nc.max_pool, X, (2,)),
    bad(r"an integer means that x has a batch axis.*x has 2", nc.max_pool, WAVE[0], 2),
    bad(r"window=0 must be at least 1", nc.max_pool, X, 0),
    bad(r"window=2.0 is a float", nc.max_pool, X, 2.0),
    bad(r"window=None is a NoneType", nc.max_pool, X, None),
    bad(r"window is larger than the padded input.*floor\(\(6 \+ 0 \+ 0 - 1\*\(9 - 1\) - 1\) / 9\)", nc.avg_pool, X, 9),
    bad(r"padding='full' is not one of valid, same", nc.max_pool, X, 2, padding="full"),
    bad(r"stride=0 must be at least 1", nc.max_pool, X, 2, stride=0),
    bad(r"ceil_mode='yes' must be True or False", nc.max_pool, X, 2, ceil_mode="yes"),
    bad(r"count_include_pad=0 must be True or False", nc.avg_pool, X, 2, count_include_pad=0),
    bad(r"return_indices=None must be True or False", nc.max_pool, X, 2, return_indices=None),
    bad(r"complex64 has no maximum", nc.max_pool, X.astype("c8"), 2),
    bad(r"average of integers \(int32\)", nc.avg_pool, X.astype("i4"), 2),
    bad(r"lp_pool is for real floats, and the dtype is int32", nc.lp_pool, X.astype("i4"), 2),
    bad(r"lp_pool is for real floats, and the dtype is complex64", nc.lp_pool, X.astype("c8"), 2),
    bad(r"p=0.0 must be a finite number above 0", nc.lp_pool, X, 2, p=0),
    bad(r"p=-1.5 must be a finite number above 0", nc.lp_pool, X, 2, p=-1.5),
    bad(r"p=inf must be a finite number above 0", nc.lp_pool, X, 2, p=float("inf")),
    bad(r"p='2' must be", nc.lp_pool, X, 2, p="2"),
    bad(r"p=\[2\] must be", nc.lp_pool, X, 2, p=[2]),
    bad(r"grad_y has shape \(1, 2, 8\).*must have \(1, 2, 4\)", nc.max_pool_backward, WAVE, WAVE, 2),
    bad(r"grad_y has shape \(1, 2, 4\).*must have \(1, 2, 2\)", nc.avg_pool_backward, HALVES, (1, 2, 8), 4),
]  # fmt: skip

WINDOWS = [
    bad(r"mode='constant' is not one of zeros, reflect.*; say mode='zeros'", nc.pad, X, 1, "constant"),
    bad(r"mode='edge' is not one of zeros, reflect", nc.pad, X, 1, "edge"),
    bad(r"width=-1 must be at least 0", nc.pad, X, -1),
    bad(r"x has 4 dimensions, but 1 spatial dimensions need 3", nc.pad, X, ((1, 2),)),
    bad(r"width=1: an integer means that x has a batch axis.*x has 2", nc.pad, WAVE[0], 1),
    bad(r"grad has the spatial shape \(8,\), which a width of 4 would leave with \(0,\)", nc.pad_backward, WAVE, 4),
    bad(r"window is larger than the padded input", nc.unfold, X, 7),
    bad(r"columns has shape \(1, 2, 4\).*must have \(1, 4, 4\)", nc.fold, HALVES, (1, 2, 5), (2,)),
    bad(r"x has 4 dimensions, but 1 spatial dimensions need 3", nc.fold, HALVES, (1, 1, 2, 5), (2,)),
    bad(r"y has batch and channels \(1, 2\), x_shape has \(1, 3\)", nc.max_unpool, HALVES, POSITIONS, (1, 3, 8)),
    bad(r"same number of dimensions, and have 3 and 4", nc.max_unpool, HALVES, POSITIONS, (1, 1, 2, 8)),
    bad(r"ndim=0: there must be at least one spatial dimension", nc.max_unpool, HALVES[0], POSITIONS[0], (2, 8)),
    bad(r"ndim=1.0", nc.max_unpool, HALVES, POSITIONS, (1, 2, 8), ndim=1.0),
    bad(r"indices has shape \(1, 2, 3\).*must have \(1, 2, 4\)", nc.max_unpool, HALVES, POSITIONS[..., :3], (1, 2, 8)),
]  # fmt: skip

INDICES = [
    bad(r"indices range from 0 to 8, but positions.*0 to 7", nc.max_unpool, HALVES, POSITIONS + np.array([0, 2, 4, 8]), (1, 2, 8)),
    bad(r"indices range from -1 to -1, but positions.*0 to 7", nc.max_unpool, HALVES, POSITIONS - 1, (1, 2, 8)),
    bad(r"indices range from 99 to 99", nc.max_unpool_backward, WAVE, POSITIONS + 99),
    bad(r"indices range from 0 to 8", nc.max_pool_backward, HALVES, WAVE, 2, indices=POSITIONS + np.array([0, 2, 4, 8])),
    bad(r"indices has shape \(1, 2, 4\) and dtype int32.*and int64", nc.max_unpool, HALVES, POSITIONS.astype("i4"), (1, 2, 8)),
    bad(r"dtype float64.*and int64", nc.max_unpool, HALVES, POSITIONS.astype("f8"), (1, 2, 8)),
    bad(r"indices has shape \(1, 2, 3\)", nc.max_pool_backward, HALVES, WAVE, 2, indices=POSITIONS[..., :3]),
]  # fmt: skip

DTYPES = [
    bad(r"x has dtype float32 and w has float64.*w.astype\('float32'\)", nc.conv, X, W.astype("f8")),
    bad(r"x has dtype int64 and w has float32.*x.astype\('float32'\)", nc.conv, X.astype("i8"), W),
    bad(r"x has dtype float32 and bias has int64", nc.conv, X, W, [1, 2, 3, 4]),
    bad(r"x has dtype int8 and w has uint8", nc.conv, X.astype("i1"), W.astype("u1")),
    bad(r"grad_y has dtype float32 and x has float16", nc.conv_weight_grad, Y, X.astype("f2"), W.shape),
    bad(r"grad_y has dtype float32 and w has float64", nc.conv_backward, Y, X, W.astype("f8")),
    bad(r"grad_y has dtype float32 and x has float64", nc.lp_pool_backward, HALVES, WAVE.astype("f8"), 2),
    bad(r"dtype bool is not supported; use one of float16", nc.conv, X.astype(bool), W.astype(bool)),
    bad(r"x: dtype object is not supported; use one of float16", nc.conv, X.astype(object), W),
    bad(r"bias: dtype bool is not supported; use one of float16", nc.conv, X, W, True),
    bad(r"dtype object is not supported", nc.conv, X.astype(object), W.astype(object)),
    bad(r"dtype (longdouble|float128|float96) is not supported", nc.conv, X.astype(np.longdouble), W.astype(np.longdouble)),
    bad(r"dtype str\d+ is not supported", nc.pad, X.astype(str), 1),
    bad(r"dtype datetime64.* is not supported", nc.max_pool, X.astype("M8[s]"), 2),
    bad(r"dtype bool is not supported", nc.max_pool, X.astype(bool), 2),
    bad(r"dtype=float16 .* neither the dtype of the inputs nor wider \(from float32: float32, float64\)",
        nc.conv, X, W, dtype="float16"),
    bad(r"dtype=float64 .*from int32: int32, int64", nc.conv, X.astype("i4"), W.astype("i4"), dtype=float),
    bad(r"dtype=complex64 ", nc.conv, X, W, dtype="complex64"),
    bad(r"dtype nonsense is not supported", nc.conv, X, W, dtype="nonsense"),
    bad(r"x is None; give an array", nc.conv, None, W),
    bad(r"w is None; give an array", nc.conv, X, None),
    bad(r"x of type list is no array", nc.conv, [[1.0, 2.0], [3.0]], W),
    bad(r"x of type list is no array", nc.conv_backward, Y, [[1.0, 2.0], [3.0]], W),
    bad(r"x of type list is no array", nc.max_pool_backward, HALVES, [[1.0, 2.0], [3.0]], 2, indices=POSITIONS),
    bad(r"x is a masked array.*x.filled\(0\)", nc.conv, np.ma.masked_array(X, X > 0), W),
    bad(r"w is a masked array", nc.conv, X, np.ma.masked_array(W, W > 0)),
]  # fmt: skip

OVERLAPPING = np.zeros(200, np.float32)

OUT = [
    bad(r"out has shape \(1, 4, 6, 6\) and dtype float32, and the result has \(1, 4, 4, 4\)",
        nc.conv, X, W, out=np.zeros((1, 4, 6, 6), np.float32)),
    bad(r"dtype float64, and the result has .* float32", nc.conv, X, W, out=np.zeros(Y.shape)),
    bad(r"dtype float32, and the result has .* float64", nc.conv, X, W, dtype="float64", out=np.zeros_like(Y)),
    bad(r"dtype >f4, and the result has", nc.conv, X, W, out=np.zeros(Y.shape, ">f4")),
    bad(r"out is read-only", nc.conv, X, W, out=read_only(Y)),
    bad(r"out is not aligned", nc.conv, X, W, out=unaligned(Y.shape)),
    bad(r"out overlaps an input", nc.pad, X, 0, out=X),
    bad(r"out overlaps an input", nc.max_pool, X, (2, 2), out=X[:, :, :3, :3]),
    bad(r"elements that share memory", nc.conv, X, W, out=np.lib.stride_tricks.as_strided(OVERLAPPING, Y.shape, (0, 0, 0, 4))),
    bad(r"strides \(64, 16, 4, 4\).*elements that share memory", nc.conv, X, W,
        out=np.lib.stride_tricks.as_strided(OVERLAPPING, Y.shape, (64, 16, 4, 4))),
    bad(r"out is a list", nc.conv, X, W, out=[Y.tolist()]),
    bad(r"out is a int", nc.conv, X, W, out=5),
    bad(r"out is a masked array", nc.conv, X, W, out=np.ma.masked_array(Y)),
    bad(r"out holds 2 arrays, and there are 1 results: y", nc.conv, X, W, out=(Y, Y)),
    bad(r"out for indices has shape \(1, 2, 8\)",
        nc.max_pool, WAVE, 2, return_indices=True, out=(np.zeros_like(HALVES), np.zeros(WAVE.shape, "i8"))),
    bad(r"out holds 1 arrays, and there are 2 results: y, indices",
        nc.max_pool, WAVE, 2, return_indices=True, out=np.zeros_like(HALVES)),
    bad(r"dtype int32, and the result has .* int64",
        nc.max_pool, WAVE, 2, return_indices=True, out=(np.zeros_like(HALVES), POSITIONS.astype("i4"))),
    bad(r"overlaps", nc.max_pool, X.astype("i8"), 2, return_indices=True, out=(np.zeros((1, 3, 3, 3), "i8"),) * 2),
    bad(r"out must be a sequence of three arrays or None, for x, w and bias", nc.conv_backward, Y, X, W, out=(None, None)),
    bad(r"out must be a sequence of three", nc.conv_backward, Y, X, W, out=np.zeros_like(X)),
    bad(r"out has shape \(4, 3, 3, 3\).*the result has \(1, 3, 6, 6\)",
        nc.conv_backward, Y, X, W, out=(np.zeros_like(W), None, None)),
    bad(r"out overlaps", nc.conv_backward, Y, X, W, out=(X, None, None)),
    bad(r"out for grad_w overlaps", nc.conv_backward, Y, X, W, out=(None, W, None)),
    bad(r"out for grad_w overlaps", nc.conv_transpose_backward, X, Y, W, out=(None, W, None)),
]  # fmt: skip

CHOICE = [
    bad(r"no backend is called 'referense'; installed: .*; did you mean 'reference'\?",
        nc.conv, X, W, backend="referense", error=UnknownBackendError),
    bad(r"no backend is called 'torch'; installed", nc.max_pool, X, 2, backend="torch", error=UnknownBackendError),
    bad(r"no implementation of forward is called 'quantum'; there are .*reference: direct", nc.conv, X, W, algorithm="quantum"),
    bad(r"no implementation of forward is called 'directly'.*did you mean 'direct'", nc.conv, X, W, algorithm="directly"),
    bad(r"op='conv2d' is not the name of a function.*did you mean 'conv'", nc.plan, "conv2d", X.shape, W.shape),
    bad(r"no implementation of max_pool is called 'direct'", nc.max_pool, X, 2, backend="reference", algorithm="direct"),
    bad(r"accuracy='exact' is not one of strict, high, default, fast", nc.conv, X, W, accuracy="exact"),
    bad(r"accuracy=1e-05 is not one of", nc.conv, X, W, accuracy=1e-5),
    bad(r"unhashable", nc.conv, X, W, backend=["reference"]),
]  # fmt: skip

PLANS = [
    bad(r"op='convolve' is not the name of a function; use one of avg_pool", nc.plan, "convolve", X.shape, W.shape),
    bad(r"op=None is not the name", nc.plan, None, X.shape, W.shape),
    bad(r"no option is called strides; it takes stride, padding.*did you mean 'stride'",
        nc.plan, "conv", X.shape, W.shape, strides=2),
    bad(r"no option is called groups", nc.plan, "max_pool", X.shape, 2, groups=2),
    bad(r"x has 3 channels, but w", nc.plan, "conv", X.shape, (4, 2, 3, 3)),
    bad(r"needs=\('y',\) must name at least one of x, w, bias", nc.plan, "conv_backward", X.shape, W.shape, needs=("y",)),
    bad(r"unhashable", nc.plan, "conv", X.shape, W.shape, pad_mode=["zeros"]),
    bad(r"dtype bool is not supported", nc.plan, "conv", X.shape, W.shape, bool),
    bad(r"bias=array.* must be True or False", nc.plan, "conv", X.shape, W.shape, bias=BIAS),
    bad(r"max_pool takes no bias", nc.plan, "max_pool", X.shape, 2, bias=True),
    bad(r"conv_input_grad takes no bias", nc.plan, "conv_input_grad", X.shape, W.shape, bias=True),
    bad(r"called with 1 arrays, and it takes 2: x, w", call_plan, X),
    bad(r"called with 3 arrays, and it takes 2: x, w", call_plan, X, W, BIAS),
    bad(r"x has shape \(1, 3, 5, 6\).*must have \(1, 3, 6, 6\)", call_plan, X[:, :, 1:], W),
    bad(r"w has shape .* dtype float64, and must have .* float32", call_plan, X, W.astype("f8")),
    bad(r"called with 2 arrays, and it takes 1: x", call_bound, X, W),
    bad(r"x has shape \(3, 6, 6\).*must have \(1, 3, 6, 6\)", call_bound, X[0]),
    bad(r"w has shape \(3, 3, 3\).*must have \(4, 3, 3, 3\)", bind, "conv", W.shape, W[0]),
    bad(r"bind\(w\) is for functions that take weights", bind, "max_pool", 2, W),
    bad(r"bind\(w\) is for functions that take weights", bind, "conv_weight_grad", W.shape, W),
    bad(r"conv_backward is two problems", nc.explain, "conv_backward", X.shape, W.shape),
    bad(r"no backend is called 'numbo'", nc.explain, "conv", X.shape, W.shape, backend="numbo", error=UnknownBackendError),
    bad(r"floor\(\(6 \+ 0", nc.output_shape, "conv", X.shape, (4, 3, 7, 7)),
    bad(r"conv_backward returns", nc.output_shape, "conv_backward", X.shape, W.shape),
    bad(r"w has 2 dimensions", nc.as_matrix, W[0, 0], (3, 3)),
    bad(r"x has 3 channels, but w \(4, 2, 3, 3\)", nc.as_matrix, W[:, :2], (3, 6, 6)),
]  # fmt: skip

ANALYSIS = [
    bad(r"there are no layers", nc.receptive_field, []),
    bad(r"layer 0 is \{'stride': 2\}; it needs kernel", nc.receptive_field, [{"stride": 2}]),
    bad(r"layer 1 is .*'strides'", nc.receptive_field, [3, {"kernel": 3, "strides": 2}]),
    bad(r"layer 0 has kernel=\(0,\); give integers of at least 1", nc.receptive_field, [0]),
    bad(r"layer 0 has padding=\(-1,\); give integers of at least 0", nc.receptive_field, [{"kernel": 3, "padding": -1}]),
    bad(r"layer 0 has padding='same'; give integers of at least 0", nc.receptive_field, [{"kernel": 3, "padding": "same"}]),
    bad(r"layer 0 has padding=", nc.receptive_field, [{"kernel": 3, "padding": ((1, 0),)}]),
    bad(r"layer 0 has 5 entries", nc.receptive_field, [(3, 1, 1, 0, 9)]),
    bad(r"layer 0 has 2 spatial dimensions \(\(3, 3\)\), another has 3", nc.receptive_field, [((3, 3), 1), ((1, 1, 1),)]),
    bad(r"kernel=None is a NoneType", nc.receptive_field, [None]),
    bad(r"layers=3", nc.receptive_field, 3),
    bad(r"dtypes='float32' must be a sequence of dtypes", nc.warmup, "float32"),
    bad(r"dtype nonsense is not supported", nc.warmup, ["nonsense"]),
    bad(r"no backend is called 'numbo'", nc.warmup, ["float32"], backend="numbo", error=UnknownBackendError),
]  # fmt: skip

CALLS = [*SHAPES, *GEOMETRY, *TRANSPOSED, *POOLING, *WINDOWS, *DTYPES, *OUT]
TABLE = [*CALLS, *CHOICE, *PLANS, *ANALYSIS]
rows = functools.partial(pytest.mark.parametrize, ("function", "args", "options", "error", "text"))


@rows(TABLE)
def test_refused(function, args, options, error, text):
    with pytest.raises(error, match=text) as caught:
        function(*args, **options)
    assert isinstance(caught.value, nc.NumconvError)


def test_the_table_is_long_enough():
    assert len({row.id for row in TABLE}) >= 75


def _results(options: dict[str, Any]) -> list[np.ndarray]:
    out = options["out"]
    return [array for array in (out if isinstance(out, tuple) else (out,)) if isinstance(array, np.ndarray)]


@rows(CALLS)
def test_nothing_is_written(function, args, options, error, text):
    inputs = [array for array in args if isinstance(array, np.ndarray)]
    if "out" not in options:
        shape = X.shape if function is nc.conv_input_grad else (1, 4, 4, 4)
        grads = function in (nc.conv_backward, nc.conv_transpose_backward)
        options = options | {"out": (np.ones_like(X), np.ones_like(W), np.ones_like(BIAS)) if grads else np.ones(shape, np.float32)}
    watched = [*inputs, *_results(options)]
    before = [array.copy() for array in watched]
    with pytest.raises(error):
        function(*args, **options)
    assert all(np.array_equal(array, old) for array, old in zip(watched, before, strict=True))


@rows(INDICES)
def test_bad_indices(backend, function, args, options, error, text):
    out = np.full(HALVES.shape if function is nc.max_unpool_backward else WAVE.shape, 7, np.float32)
    with pytest.raises(error, match=text):
        function(*args, **options, backend=backend, out=out)
    assert (out == 7).all(), "nothing is written"


def test_conv_backward_checks_both_parts_before_it_computes():
    grad_x = np.full_like(X, 7)
    with pytest.raises(ProblemError, match=r"out for grad_w has shape \(3, 3\)"):
        nc.conv_backward(Y, X, W, out=(grad_x, np.zeros((3, 3), np.float32), None))
    assert (grad_x == 7).all()


# A plan is found by the hash of its raw arguments, and True == 1 == 1.0: what looks equal to a cached call must still be refused.
EQUAL_TO_CACHED = [
    (nc.conv, (X, W), {"stride": 1}, [True, 1.0, np.True_, (1, True), np.float32(1)]),
    (nc.conv, (X, W), {"padding": (1, 1)}, [(True, True), (1.0, 1.0), np.ones(2)]),
    (nc.conv, (X, W), {"padding": ((1, 0), (1, 0))}, [((True, False), (1, 0)), ((1.0, 0), (1, 0))]),
    (nc.conv, (X, W), {"dilation": 1}, [True, 1.0]),
    (nc.conv, (X, W), {"groups": 1}, [True, 1.0]),
    (nc.conv, (X, W), {"flip": True}, [1, 1.0]),
    (nc.conv_transpose, (Y, W), {"output_padding": 0}, [False, 0.0]),
    (nc.max_pool, (X,), {"window": 2}, [2.0, np.float64(2)]),
    (nc.max_pool, (X,), {"window": (1, 1)}, [(True, True), (1.0, 1)]),
    (nc.max_pool, (X, 2), {"ceil_mode": True}, [1]),
    (nc.max_pool, (X, 2), {"return_indices": True}, [1]),
    (nc.avg_pool, (X, 2), {"count_include_pad": False}, [0]),
    (nc.lp_pool, (X, 2), {"p": 1}, [True]),
    (nc.pad, (X,), {"width": 1}, [True, 1.0]),
    (nc.max_unpool, (HALVES, POSITIONS, (1, 2, 8)), {"ndim": 1}, [True, 1.0]),
    (nc.conv_input_grad, (Y, W), {"x_shape": (1, 3, 6, 6)}, [(True, 3, 6, 6), (1.0, 3, 6, 6)]),
    (nc.plan, ("conv", X.shape, W.shape), {"stride": 1}, [True, 1.0]),
    (nc.plan, ("conv",), {"x_shape": X.shape, "w_shape": W.shape}, []),
]


@pytest.mark.parametrize(
    ("function", "args", "good", "value"),
    [
        pytest.param(f, args, good, value, id=f"{f.__name__} {good} {value}")
        for f, args, good, values in EQUAL_TO_CACHED
        for value in values
    ],
)
def test_refused_after_an_equal_call(function, args, good, value):
    function(*args, **good)
    name = next(iter(good))
    with pytest.raises(ProblemError, match=name):
        function(*args, **{name: value})


@pytest.mark.parametrize("value", [True, 1.0])
def test_plan_refuses_shapes_equal_to_cached_ones(value):
    nc.plan("conv", (1, 3, 6, 6), (4, 3, 1, 1))
    with pytest.raises(ProblemError, match="x_shape"):
        nc.plan("conv", (value, 3, 6, 6), (4, 3, 1, 1))
    with pytest.raises(ProblemError, match="w_shape"):
        nc.plan("conv", (1, 3, 6, 6), (4, 3, value, 1))


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"backend": "numbo"}, UnknownBackendError, r"numconv.using\(backend=...\): no backend is called 'numbo'"),
        ({"backend": ["reference", "reference"]}, ProblemError, "both compute on the cpu; name one backend a device"),
        ({"accuracy": "exact"}, ProblemError, "'exact' is not one of strict, high, default, fast"),
        ({"threads": 0}, ProblemError, "threads=0 must be an integer of at least 1"),
        ({"threads": True}, ProblemError, "threads=True must be"),
        ({"threads": 2.0}, ProblemError, "threads=2.0 must be"),
        ({"max_workspace": -5}, ProblemError, "max_workspace=-5 must be"),
        ({"max_workspace": "1G"}, ProblemError, "max_workspace='1G' must be"),
    ],
)
def test_using_refuses(settings, error, text):
    with pytest.raises(error, match=text), nc.using(**settings):
        pytest.fail("the block was entered")


@pytest.mark.parametrize(
    ("variables", "error", "text"),
    [
        ({"NUMCONV_BACKEND": "referense"}, "UnknownBackendError", "NUMCONV_BACKEND: no backend is called 'referense'"),
        ({"NUMCONV_BACKEND": "reference, reference"}, "ProblemError", "both compute on the cpu"),
        ({"NUMCONV_NUM_THREADS": "0"}, "ProblemError", "NUMCONV_NUM_THREADS='0' must be an integer of at least 1"),
        ({"NUMCONV_NUM_THREADS": "two"}, "ProblemError", "NUMCONV_NUM_THREADS='two' must be"),
    ],
)
def test_environment_refused(variables, error, text):
    code = "import numpy, numconv; numconv.pad(numpy.ones((1, 1, 3)), 1)"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{error}: " in done.stderr
    assert text in done.stderr


def test_every_error_is_also_the_built_in_one():
    assert issubclass(ProblemError, ValueError)
    assert issubclass(UnsupportedProblemError, NotImplementedError)
    assert issubclass(BackendUnavailableError, ImportError)
    assert issubclass(UnknownBackendError, ValueError)


FUNCTIONS = [name for name in nc.__all__ if inspect.isfunction(getattr(nc, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_unknown_keywords_are_refused(name):
    shapes = {"x_shape": X.shape, "w_shape": W.shape} if name in ("plan", "explain", "output_shape") else {}
    with pytest.raises((TypeError, ProblemError), match=r"colour|no option is called"):
        getattr(nc, name)(**{"op": "conv"} | shapes if shapes else {}, colour="red")


@pytest.mark.parametrize(
    ("module", "name", "text"),
    [
        (nc, "Conv2d", "layers for any number of spatial dimensions are in numconv.nn"),
        (nc, "conv2d", "no attribute 'conv2d'; numconv.conv takes any number of spatial dimensions"),
        (nc, "max_pool3d", "numconv.max_pool takes any number"),
        (nc, "convolve2d", "no attribute 'convolve2d'$"),
        (nc.nn, "Conv2d", "nn.Conv takes any number of spatial dimensions"),
        (nc.nn, "functional", "no attribute 'functional'$"),
    ],
)
def test_names_of_other_libraries(module, name, text):
    with pytest.raises(AttributeError, match=text):
        getattr(module, name)


@pytest.mark.parametrize("option", ["accuracy", "algorithm", "backend", "activation", "pad_mode", "layout", "padding", "dtype"])
def test_an_empty_word_is_no_word(option):
    with pytest.raises((ProblemError, UnknownBackendError), match=r"''|dtype  is not supported"):
        nc.conv(X, W, **{option: ""})


@pytest.mark.parametrize("out", [[0.0] * 6, [[0.0] * 6], [[[0.0] * 6] * 4], ([0], [0]), (1,)])
def test_results_are_not_written_to_numbers(out):
    with pytest.raises(ProblemError, match=r"conv: out is a .* of numbers, and results are written to arrays; give numpy\.empty\("):
        nc.conv(X, W, out=out)
