"""Problems as plain data: shapes, counts, dtypes, equality and the text form, against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from numconv import ProblemError
from numconv.problem import CONV_OPS, POOL_OPS, WIDER, WINDOW_OPS, ConvProblem, PoolProblem, WindowProblem, accumulator, parse

CONV: dict[str, Any] = {
    "op": "forward", "dtype": "float32", "n": 2, "c": 4, "k": 6, "groups": 2, "spatial": (5, 7), "kernel": (3, 2), "stride": (2, 1),
    "padding": ((1, 1), (0, 2)), "dilation": (1, 2),
}  # fmt: skip
POOL: dict[str, Any] = {
    "op": "max_pool", "dtype": "float32", "n": 2, "c": 3, "spatial": (7, 6), "window": (3, 2), "stride": (2, 2),
    "padding": ((1, 1), (0, 0)), "dilation": (1, 1),
}  # fmt: skip
WINDOW: dict[str, Any] = {
    "op": "unfold", "dtype": "int16", "n": 2, "c": 3, "spatial": (5,), "window": (2,), "stride": (2,), "padding": ((1, 0),),
    "dilation": (1,),
}  # fmt: skip


def conv(**changes: Any) -> ConvProblem:
    return ConvProblem(**CONV | changes)


def pool(**changes: Any) -> PoolProblem:
    return PoolProblem(**POOL | changes)


def window(**changes: Any) -> WindowProblem:
    return WindowProblem(**WINDOW | changes)


# Every option away from its default, alone.
OPTIONS = [
    *(conv(op=op) for op in CONV_OPS),
    *(conv(dtype=dtype) for dtype in ("float16", "bfloat16", "complex64", "int8", "uint64")),
    *(conv(pad_mode=mode) for mode in ("reflect", "symmetric", "replicate", "circular")),
    *(conv(activation=activation) for activation in ("relu", "silu", "gelu")),
    *(conv(accuracy=level) for level in ("strict", "high", "fast")),
    conv(flip=True), conv(layout="channels_last"), conv(bias="y"), conv(op="input_grad", bias="x"), conv(out_dtype="float64"),
    conv(max_workspace=1), conv(n=0), conv(padding=((0, 3), (2, -1))),
    conv(stride=(3, 3), dilation=(1, 1), padding=((2, 2), (2, 2))),
    conv(spatial=(9,), kernel=(3,), stride=(1,), padding=((2, 2),), dilation=(1,)),
    conv(spatial=(2, 3, 4, 5), kernel=(1, 2, 1, 2), stride=(1,) * 4, padding=((0, 1),) * 4, dilation=(1,) * 4),
    *(pool(op=op) for op in POOL_OPS),
    pool(ceil_mode=True), pool(count_include_pad=False), pool(indices=True), pool(layout="channels_last"), pool(p=2.5),
    *(window(op=op) for op in WINDOW_OPS),
    window(op="pad", pad_mode="circular", window=(1,), stride=(1,)), window(op="max_unpool", target=(3,)),
]  # fmt: skip


@pytest.mark.parametrize("problem", OPTIONS, ids=str)
def test_text_form_parses_back(problem):
    parsed = parse(str(problem))
    assert parsed == problem
    assert hash(parsed) == hash(problem)
    assert type(parsed) is type(problem)


def test_text_forms_differ_where_problems_do():
    distinct = set(OPTIONS)
    assert len({str(problem) for problem in distinct}) == len(distinct)


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (conv(), "conv forward f32 n2 c4 k6 g2 in5x7 w3x2 s2x1 p1x0:2 d1x2"),
        (conv(padding=((1, 2), (1, 2)), flip=True), "conv forward f32 n2 c4 k6 g2 in5x7 w3x2 s2x1 p1:2 d1x2 flip=1"),
        (conv(bias="y", activation="relu"), "conv forward f32 n2 c4 k6 g2 in5x7 w3x2 s2x1 p1x0:2 d1x2 bias=y act=relu"),
        (pool(), "pool max_pool f32 n2 c3 in7x6 w3x2 s2 p1x0 d1"),
        (window(), "window unfold i16 n2 c3 in5 w2 s2 p1:0 d1"),
    ],
)
def test_text_form_as_written(problem, text):
    assert str(problem) == text


def test_text_form_of_the_design():
    text = "conv forward f32 n1 c64 k64 g1 in56x56 w3x3 s1 p1 d1"
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "conv", "nonsense", "conv forward f32", "conv forward f33 n1 c1 k1 g1 in5 w3 s1 p0 d1", "pool forward f32 n1",
        "tensor forward f32 n1 c1 k1 g1 in5 w3 s1 p0 d1", "conv forward f32 n1 c1 k1 g1 in5 w3 s1 p0",
        "conv forward f32 n1 c1 k1 g1 in5 w3 s1 p0 d1 colour=red", "conv forward f32 n1 c1 k1 g1 in5xx w3 s1 p0 d1",
        "conv forward f32 n1 c1 g1 in5 w3 s1 p0 d1", "conv forward f32 n1 c1 k1 g1 in5 w3 s1 p0 d1 ceil=1",
        "pool max_pool f32 n1 c1 k1 in5 w3 s1 p0 d1",
    ],
)  # fmt: skip
def test_text_that_is_no_problem(text):
    with pytest.raises(ProblemError, match=r"not the text form of a problem.*conv forward f32 n1 c64 k64"):
        parse(text)


def test_text_of_an_impossible_problem():
    with pytest.raises(ProblemError, match=r"spatial shape \(-1,\)"):
        parse("conv forward f32 n1 c1 k1 g1 in3 w5 s1 p0 d1")


def test_equality_and_hash():
    assert conv() == conv()
    assert hash(conv()) == hash(conv())
    assert conv() != conv(n=3)
    assert conv(out_dtype="float32") == conv(), "the default is filled in"
    assert {conv(): 1}[conv()] == 1


def test_problems_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        conv().n = 3


def test_replace():
    assert conv().replace(n=3) == conv(n=3)


def test_conv_shapes():
    problem = conv()
    assert problem.output == (3, 7)  # (5 + 2 - 2 - 1) // 2 + 1, (7 + 2 - 2 - 1) // 1 + 1
    assert problem.x_shape == (2, 4, 5, 7)
    assert problem.w_shape == (6, 2, 3, 2)
    assert problem.y_shape == (2, 6, 3, 7)
    assert problem.ndim == 2


@pytest.mark.parametrize(
    ("changes", "ins", "outs"),
    [
        ({}, ["x", "w"], ["y"]),
        ({"bias": "y"}, ["x", "w", (6,)], ["y"]),
        ({"op": "input_grad"}, ["y", "w"], ["x"]),
        ({"op": "input_grad", "bias": "x"}, ["y", "w", (4,)], ["x"]),
        ({"op": "weight_grad"}, ["y", "x"], ["w"]),
        ({"op": "weight_grad", "bias": "y"}, ["y", "x"], ["w", (6,)]),
        ({"op": "weight_grad", "bias": "x"}, ["y", "x"], ["w", (4,)]),
    ],
)
def test_conv_arrays(changes, ins, outs):
    shapes = {"x": (2, 4, 5, 7), "w": (6, 2, 3, 2), "y": (2, 6, 3, 7)}
    problem = conv(**changes)
    assert problem.input_shapes == tuple(shapes.get(s, s) for s in ins)
    assert problem.output_shapes == tuple(shapes.get(s, s) for s in outs)


@pytest.mark.parametrize("op", CONV_OPS)
def test_conv_flops(op):
    # n * k * c/g * taps * outputs products, a multiplication and an addition each, or 8 real operations if complex.
    products = 2 * 6 * 2 * 6 * 21
    assert conv(op=op).flops == 2 * products
    assert conv(op=op, dtype="complex64").flops == 8 * products


@pytest.mark.parametrize(
    ("problem", "terms"),
    [
        (conv(), 2 * 6),  # c/g * taps
        (conv(op="input_grad"), 3 * 6),  # k/g * taps
        (conv(op="weight_grad"), 2 * 21),  # n * outputs
        (conv(op="weight_grad", bias="x"), 2 * 5 * 7),  # the bias gradient adds up all of x
        (conv(op="input_grad", pad_mode="circular"), 3 * 6 * 2 * 2),  # padding of 2 over 5, and of 2 over 7, folds back once more
        (pool(), 6),
        (window(op="fold"), 2),
        (window(), 1),
    ],
)
def test_terms(problem, terms):
    assert problem.terms == terms


def test_bytes():
    x, w, y = 2 * 4 * 5 * 7, 6 * 2 * 3 * 2, 2 * 6 * 3 * 7
    assert conv().bytes == 4 * (x + w + y)
    assert conv(bias="y", out_dtype="float64").bytes == 4 * (x + w + 6) + 8 * y
    assert conv(dtype="complex128").bytes == 16 * (x + w + y)
    assert window().bytes == 2 * (2 * 3 * 5 + 2 * 6 * 3)


@pytest.mark.parametrize(
    ("spatial", "size", "stride", "pads", "dilation", "ceil_mode", "output"),
    [
        (7, 3, 2, (0, 0), 1, False, 3),
        (8, 3, 2, (0, 0), 1, False, 3),
        (8, 3, 2, (0, 0), 1, True, 4),
        (4, 1, 3, (0, 0), 1, True, 2),
        (5, 1, 3, (0, 0), 1, True, 2),  # rounded up there are 3 windows, and the third would start at 6, beyond 5
        (5, 2, 3, (1, 1), 1, True, 2),  # the third would start at 6 = S + low
        (5, 3, 3, (0, 1), 2, True, 2),
        (9, 3, 2, (2, 2), 2, False, 5),
    ],
)
def test_pool_output(spatial, size, stride, pads, dilation, ceil_mode, output):
    problem = pool(
        spatial=(spatial,), window=(size,), stride=(stride,), padding=(pads,), dilation=(dilation,), ceil_mode=ceil_mode
    )  # fmt: skip
    assert problem.output == (output,)


@pytest.mark.parametrize(
    ("changes", "ins", "outs"),
    [
        ({}, "x", "y"),
        ({"indices": True}, "x", "yy"),
        ({"op": "max_pool_backward"}, "yx", "x"),
        ({"op": "max_pool_backward", "indices": True}, "yy", "x"),
        ({"op": "avg_pool"}, "x", "y"),
        ({"op": "avg_pool_backward"}, "y", "x"),
        ({"op": "lp_pool_backward"}, "yx", "x"),
    ],
)
def test_pool_arrays(changes, ins, outs):
    shapes = {"x": (2, 3, 7, 6), "y": (2, 3, 4, 3)}
    problem = pool(**changes)
    assert problem.input_shapes == tuple(shapes[s] for s in ins)
    assert problem.output_shapes == tuple(shapes[s] for s in outs)
    assert problem.flops == 2 * 3 * 4 * 3 * 6


@pytest.mark.parametrize(
    ("changes", "ins", "outs"),
    [
        ({}, [(2, 3, 5)], [(2, 6, 3)]),  # rows c * prod(R), columns prod(Q) with Q = (5 + 1 - 1 - 1) // 2 + 1
        ({"op": "fold"}, [(2, 6, 3)], [(2, 3, 5)]),
        ({"op": "pad", "window": (1,), "stride": (1,), "padding": ((2, 3),)}, [(2, 3, 5)], [(2, 3, 10)]),
        ({"op": "pad_backward", "window": (1,), "stride": (1,), "padding": ((2, 3),)}, [(2, 3, 10)], [(2, 3, 5)]),
        ({"op": "max_unpool", "target": (2,)}, [(2, 3, 2), (2, 3, 2)], [(2, 3, 5)]),
        ({"op": "max_unpool_backward", "target": (2,)}, [(2, 3, 5), (2, 3, 2)], [(2, 3, 2)]),
    ],
)
def test_window_arrays(changes, ins, outs):
    problem = window(**changes)
    assert list(problem.input_shapes) == ins
    assert list(problem.output_shapes) == outs


FLOATS = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
INTS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


@pytest.mark.parametrize(
    ("dtype", "wider"),
    [
        ("float16", {"float32", "float64"}),
        ("bfloat16", {"float32", "float64"}),
        ("float32", {"float64"}),
        ("float64", set()),
        ("complex64", {"complex128"}),
        ("complex128", set()),
        ("int8", {"int16", "int32", "int64"}),
        ("int64", set()),
        ("uint8", {"uint16", "uint32", "uint64", "int16", "int32", "int64"}),
        ("uint32", {"uint64", "int64"}),
        ("uint64", set()),
    ],
)
def test_output_dtypes(dtype, wider):
    assert set(WIDER.get(dtype, ())) == wider
    for out in FLOATS + INTS:
        if out == dtype or out in wider:
            assert conv(dtype=dtype, out_dtype=out).out_dtype == out
        else:
            with pytest.raises(ProblemError, match=f"dtype {out} from inputs of {dtype}"):
                conv(dtype=dtype, out_dtype=out)


@pytest.mark.parametrize(
    ("dtype", "out", "held"),
    [
        ("float16", "float16", "float32"),
        ("bfloat16", "bfloat16", "float32"),
        ("float16", "float64", "float64"),
        ("float32", "float32", "float32"),
        ("float32", "float64", "float64"),
        ("int8", "int8", "int8"),
        ("int8", "int32", "int32"),
        ("complex64", "complex64", "complex64"),
    ],
)
def test_accumulation_dtype(dtype, out, held):
    assert accumulator(out) == held
    assert conv(dtype=dtype, out_dtype=out).acc_dtype == held


@pytest.mark.parametrize(
    ("build", "error"),
    [
        (lambda: conv(dtype="bool"), "dtype bool is not one of float16"),
        (lambda: conv(op="backward"), "'backward' is not one of forward, input_grad, weight_grad"),
        (lambda: conv(pad_mode="edge"), "'edge' is not one of zeros"),
        (lambda: conv(activation="tanh"), "'tanh' is not one of None, relu"),
        (lambda: conv(layout="NHWC"), "'NHWC' is not one of channels_first"),
        (lambda: conv(accuracy="exact"), "'exact' is not one of strict"),
        (lambda: conv(kernel=(9, 2)), r"spatial shape \(0, 7\)"),
        (lambda: conv(kernel=(3,)), r"window \(3,\) for spatial sizes \(5, 7\): one entry each"),
        (lambda: conv(stride=(1, 1, 1)), r"stride \(1, 1, 1\) for spatial sizes \(5, 7\): one entry each"),
        (lambda: conv(padding=((0, 0),)), r"padding \(\(0, 0\),\) for spatial sizes \(5, 7\): one pair each"),
        (lambda: conv(stride=(0, 1)), r"stride \(0, 1\) holds 0, and must be at least 1"),
        (lambda: conv(groups=0), "4 input and 6 output channels cannot be split into 0 groups"),
        (lambda: conv(groups=4), "4 input and 6 output channels cannot be split into 4 groups"),
        (lambda: conv(n=-1), "a batch of -1 and 4 channels"),
        (lambda: pool(dilation=(1, 0)), r"dilation \(1, 0\) holds 0"),
        (lambda: window(spatial=()), r"sizes \(\) for spatial sizes \(\)"),
        (lambda: pool(op="min_pool"), "'min_pool' is not one of max_pool"),
        (lambda: pool(window=(10, 2)), r"spatial shape \(0, 3\)"),
        (lambda: window(op="roll"), "'roll' is not one of pad"),
        (lambda: window(pad_mode="edge"), "'edge' is not one of zeros"),
        (lambda: window(window=(9,)), r"spatial shape \(-1,\)"),
    ],
)
def test_impossible_problems(build, error):
    with pytest.raises(ProblemError, match=error):
        build()


def test_level():
    assert conv().level == "default"
    assert conv(accuracy="strict").level == "strict"


def test_a_mode_of_padding_where_nothing_is_padded_is_that_of_zeros():
    assert conv(pad_mode="reflect", padding=((0, 0), (0, 0))).pad_mode == "zeros"
    assert conv(op="input_grad", pad_mode="circular", padding=((0, -1), (0, 0)), stride=(2, 2)).pad_mode == "zeros"
    assert conv(pad_mode="reflect", padding=((0, 0), (0, 1))).pad_mode == "reflect"
