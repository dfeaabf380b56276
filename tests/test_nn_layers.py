"""The layers of `numconv.nn`: shapes, configurations, what is fused, errors."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest

import numconv as nc
from numconv import ProblemError, nn
from numconv.nn.activations import Activation
from numconv.nn.layer import pack

EVERY = nn.Sequential(
    nn.Conv(4, (3, 2), stride=2, padding=((1, 1), (0, 1)), pad_mode="circular", bias=False),
    nn.BatchNorm(momentum=0.2),
    nn.SiLU(),
    nn.Residual(nn.Conv(4, 3, padding="same", groups=2), nn.GELU(), shortcut=nn.Sequential(nn.Conv(4, 1))),
    nn.Parallel(nn.MaxPool(3, stride=1, padding=1), nn.LpPool(3, p=3, stride=1, padding=1), nn.AvgPool(1, ceil_mode=True)),
    nn.ConvTranspose(6, 4, stride=(2, 1), padding=1, output_padding=(1, 0), dilation=1),
    nn.Residual(nn.ReLU()),
    nn.Parallel(
        nn.GlobalAvgPool(), nn.Sequential(nn.GlobalMaxPool(), nn.Dropout(0.25)), nn.Sequential(nn.MaxPool(2), nn.Flatten())
    ),
    nn.Linear(5, bias=False),
)


@pytest.fixture
def reference():
    """What is tested here is the same on any backend, and this one compiles nothing."""
    with nc.using(backend="reference"):
        yield


@pytest.mark.usefixtures("reference")
def test_configurations_go_round_through_json(rng):
    named = json.dumps(EVERY.config)
    kinds = {n for n, kind in vars(nn).items() if isinstance(kind, type) and issubclass(kind, nn.Layer) and kind is not nn.Layer}
    kinds = {n for n in kinds if not n.startswith(("Group", "Scale"))}  # they have tests of their own
    assert {name for name in kinds if f'"{name}"' not in named} == set(), "every layer takes part"
    again = nn.from_config(json.loads(named))
    assert again.config == EVERY.config
    assert repr(again) == repr(EVERY)
    x = rng.standard_normal((3, 2, 9, 8), dtype="float32")
    EVERY.build((2, 9, 8), rng=3)
    again.build((2, 9, 8), rng=3)
    assert EVERY(x).shape == (3, *EVERY.output_shape((2, 9, 8)))
    np.testing.assert_array_equal(again(x), EVERY(x))
    for (name, ours), (other, theirs) in zip(EVERY.parameters.items(), again.parameters.items(), strict=True):
        assert name == other
        assert ours.tobytes() == theirs.tobytes()


def test_a_list_is_a_sequence():
    model = nn.from_config([{"layer": "Conv", "channels": 3, "window": [3, 1]}, {"layer": "Flatten"}])
    assert repr(model) == "Sequential(Conv(3, (3, 1)), Flatten())"


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"layer": "Convolve"}, "no layer is called 'Convolve'; known are AvgPool, BatchNorm, Conv, "),
        ({"channels": 3}, "no layer is called None"),
        ({"layer": ["Conv"]}, r"no layer is called \['Conv'\]"),
        ({"layer": "MemberPool"}, "no layer is called 'MemberPool'"),
        ({"layer": "_GroupConvolution", "channels": 3, "window": 3}, "no layer is called '_GroupConvolution'"),
        ({"layer": "Sequential"}, "Sequential is made of layers; give a list of them under 'layers'"),
        ({"layer": "Conv", "channels": 3, "size": 3}, "Conv with .*unexpected keyword argument 'size'"),
        ({"layer": "Conv", "channels": 3}, "missing 1 required positional argument: 'window'"),
        ("Conv", "'Conv' is no dict with the name of a layer under 'layer', nor a list of such"),
        (["Conv"], "nor a list of such"),
        (None, "None is no dict"),
    ],
)
def test_wrong_configurations(config, text):
    with pytest.raises(nc.ProblemError, match=text):
        nn.from_config(config)


@pytest.mark.parametrize(
    ("layers", "shape", "text"),
    [
        ([nn.Linear(3)], (2, 4), r"layer 0, Linear\(3\), on an input of shape \(2, 4\).*put Flatten or GlobalAvgPool before"),
        ([nn.ReLU(), nn.Conv(3, (3, 3))], (2, 4), r"layer 1, .*window has 2 entries and the input \(2, 4\) 1 spatial"),
        ([nn.Conv(3, 3, groups=2)], (3, 4), "3 input channels cannot be split into groups=2"),
        ([nn.ConvTranspose(3, 3, groups=2)], (2, 4), "3 output channels cannot be split into groups=2"),
        ([nn.Conv(3, 9)], (2, 4), r"layer 0, Conv\(3, 9\)"),
        ([nn.Sequential(nn.MaxPool(9))], (2, 4), r"layer 0.0, MaxPool\(9\)"),
        ([nn.Residual(nn.Conv(3, 3))], (2, 4), r"the layers give \(3, 2\) and the shortcut \(2, 4\)"),
        ([nn.Parallel(nn.Conv(3, 3), nn.ReLU())], (2, 4), r"the layers give \(3, 2\), \(2, 4\), which differ in more than"),
        ([nn.GlobalAvgPool(), nn.Conv(2, 1)], (2, 4), r"shape \(2,\) without N has no spatial dimension"),
        ([nn.GlobalMaxPool()], (2,), "no spatial dimension to pool over"),
        ([SHARED := nn.Linear(2), SHARED], (2,), "the same layer object occurs twice"),
    ],
)
def test_layers_that_do_not_fit(layers, shape, text):
    with pytest.raises(nc.ProblemError, match=text):
        nn.Sequential(*layers).build(shape)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: nn.Dropout(1.0), "rate=1.0 must be at least 0 and below 1"),
        (lambda: nn.BatchNorm(epsilon=0), "epsilon above 0"),
        (lambda: nn.Conv(4, 3, groups=0), "Conv: groups=0 must be an integer of at least 1"),
        (lambda: nn.ConvTranspose(4, 3, groups=0), "ConvTranspose: groups=0 must be an integer of at least 1"),
        (lambda: nn.Linear(0), "Linear: features=0 must be an integer of at least 1"),
        (lambda: nn.Linear(2.5), "Linear: features=2.5 must be an integer of at least 1"),
        (lambda: nn.Sequential(nn.ReLU), "is no layer; give layers, such as nn.ReLU()"),
        (nn.Parallel, "at least one layer"),
        (lambda: nn.Linear(3)(np.ones((1, 2), "float32")), "no array 'w' yet; call model.build"),
        (lambda: nn.Linear(3).build((2,))(np.ones((1, 4), "float32")), r"x has shape \(1, 4\), and must be \[N, 2\]"),
        (lambda: nn.Linear(3).build((2,))(np.ones((1, 2))), r"x has dtype float64 and w float32; .* model.to\('float64'\)"),
        (lambda: nn.BatchNorm().build((2,))(np.ones((1, 2))), "x has dtype float64 and w float32"),
        (lambda: nn.BatchNorm().build((2, 3))(np.ones((1, 4, 3), "float32")), r"must be \[N, 2, \*S\]"),
        (lambda: nn.Dropout().forward(np.ones((1, 4)), training=True), "give rng="),
        (lambda: nn.Linear(3).summary(), "give the shape of x"),
        (lambda: nn.Linear(3).build(2), r"shape=2 must be the shape of x without N, such as \(1, 28, 28\)"),
        (lambda: nn.Linear(3).build(()), r"shape=\(\) must be the shape of x without N"),
        (lambda: nn.Linear(3).build((0,)), r"shape=\(0,\) must be the shape of x without N"),
        (lambda: nn.Linear(3).build((2.0,)), r"shape=\(2.0,\) must be the shape of x without N"),
        (lambda: nn.BatchNorm().build((-3, 4)), r"shape=\(-3, 4\) must be the shape of x without N"),
        (lambda: nn.Linear(3).build((2,), dtype="int32"), "parameters of dtype int32: they are real floats"),
        (lambda: nn.Linear(3).build((2,), dtype="float31"), "parameters of dtype float31: they are real floats"),
        (lambda: nn.Linear(3).build((2,), dtype=None), "parameters of dtype None: they are real floats"),
        (lambda: nn.Linear(3).build((2,)).to("int8"), "parameters of dtype int8: they are real floats"),
        (lambda: nn.Conv(3, 1.5).build((2, 4)), "window=1.5 is a float; give an integer"),
        (lambda: nn.predict(nn.Linear(3).build((2,)), [[1.0, 2.0]]), "x of type list is no array with a batch axis"),
        (
            lambda: nn.predict(nn.Conv(3, 1).build((1, 4)), np.ones((8, 4), "float32")),
            r"predict: x of shape \(8, 4\) has no batch axis",
        ),
    ],
)
def test_wrong_arguments(make, text):
    with pytest.raises(nc.ProblemError, match=text):
        make()


@pytest.mark.parametrize("make", [lambda: nn.Conv(3, 4, 3), lambda: nn.Linear(128, 10), lambda: nn.LpPool(2, 3)])
def test_other_libraries_orders_of_arguments_are_no_options(make):
    """(channels in, channels out, window), (features in, features out), (p, window)."""
    with pytest.raises(TypeError, match="positional arguments"):
        make()


def test_initial_weights_follow_he(rng):
    model = nn.Sequential(nn.Conv(64, 5, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(50)).build((8, 20), rng=7)
    again = nn.Sequential(nn.Conv(64, 5, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(50)).build(
        (8, 20), rng=np.random.default_rng(7)
    )
    for name, fan_in in (("0.w", 4 * 5), ("3.w", 64 * 16)):
        w = model.parameters[name]
        assert w.dtype == np.float32
        assert abs(w.std() / np.sqrt(2 / fan_in) - 1) < 5 / np.sqrt(2 * w.size), "five standard errors"
        np.testing.assert_array_equal(w, again.parameters[name])
    assert not model.parameters["0.bias"].any()


def plainly(model, x):
    for layer in model.layers:
        x = plainly(layer, x) if isinstance(layer, nn.Sequential) else layer.forward(x)[0]
    return x


@pytest.mark.parametrize("kind", [nn.ReLU, nn.SiLU, nn.GELU])
def test_activations_are_applied_by_the_convolution(kind, rng, monkeypatch):
    model = nn.Sequential(nn.Conv(5, 3), kind(), nn.MaxPool(2), nn.ConvTranspose(2, 3), kind(), nn.Flatten(), nn.Linear(3))
    model.build((2, 11))
    x = rng.standard_normal((4, 2, 11), dtype="float32")
    want = plainly(model, x)
    y = model.forward(x, training=True)[0]
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)

    def never(*args, **options):
        raise AssertionError("a pass of its own")

    monkeypatch.setattr(kind, "forward", never)
    np.testing.assert_allclose(model(x), want, rtol=1e-5, atol=1e-6)
    if kind is nn.ReLU:
        np.testing.assert_array_equal(model.forward(x, training=True)[0], y)


@pytest.mark.usefixtures("reference")
def test_maxima_of_negative_values_have_no_gradient():
    """Where the gradient of ReLU is taken after the pooling, as where it is taken before."""
    model = nn.Sequential(nn.Conv(1, 1, bias=False), nn.ReLU(), nn.MaxPool(2)).build((1, 6), dtype="float64")
    model.parameters["0.w"][...] = 1
    x = np.array([[[-1.0, -2.0, 0.0, -1.0, 3.0, 3.0]]])
    y, backward = model.forward(x, training=True)
    np.testing.assert_array_equal(y, [[[0, 0, 3]]])
    grad_x, grads = backward(np.array([[[5.0, 7.0, 11.0]]]))
    np.testing.assert_array_equal(grad_x, [[[0, 0, 0, 0, 11, 0]]])
    np.testing.assert_array_equal(grads["0.w"], [[[33]]])


def test_backward_leaves_out_what_nobody_needs(rng, monkeypatch):
    """Without needs_x, no gradient is taken back past the first layer that learns."""
    model = nn.Sequential(nn.MaxPool(2), nn.AvgPool(2), nn.Conv(2, 3), nn.ReLU()).build((1, 20))
    y, backward = model.forward(rng.standard_normal((2, 1, 20), dtype="float32"), training=True)
    asked = []
    monkeypatch.setattr(
        "numconv.functional.gradients.compute_grads",
        lambda calls, *rest: asked.extend(plan.op for plan, _ in calls) or nc.ConvGrads(),
    )
    backward(np.ones_like(y), needs_x=False)
    assert asked == ["conv_weight_grad"]


def test_running_averages(rng):
    layer = nn.BatchNorm(momentum=0.25).build((3, 4), dtype="float64")
    mean, variance = np.zeros(3), np.ones(3)
    for _ in range(5):
        x = rng.standard_normal((2, 3, 4)) * 3 + 1
        layer.forward(x, training=True)
        mean += 0.25 * (x.mean(axis=(0, 2)) - mean)
        variance += 0.25 * (x.var(axis=(0, 2), ddof=1) - variance)
    np.testing.assert_allclose(layer.state["mean"], mean, rtol=1e-12)
    np.testing.assert_allclose(layer.state["variance"], variance, rtol=1e-12)
    before = {name: array.copy() for name, array in layer.state.items()}
    y = layer(x)
    shape = (3, 1)
    np.testing.assert_allclose(y, (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + 1e-5), rtol=1e-12)
    assert all((layer.state[name] == array).all() for name, array in before.items())


def test_a_channel_far_from_zero_is_normalised(rng):
    """The variance is that of the differences, not a difference of large squares."""
    x = (rng.standard_normal((8, 1, 500)) + 1e4).astype("float32")
    y, _ = nn.BatchNorm().build((1, 500)).forward(x, training=True)
    exact = (x.astype("float64") - x.mean(dtype="float64")) / x.std(dtype="float64")
    assert np.abs(y - exact).max() < 1e-2


def test_dropout(rng):
    layer = nn.Dropout(0.25).build((1000,))
    x = np.ones((50, 1000), "float32")
    assert layer(x) is x
    y = layer.forward(x, training=True, rng=rng)[0]
    assert y.dtype == np.float32
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / y.size)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.usefixtures("reference")
def test_inference_in_other_dtypes(dtype, rng):
    layers = [nn.Conv(4, 3), nn.BatchNorm(), nn.ReLU(), nn.AvgPool(2), nn.Flatten(), nn.Linear(3)]
    exact = nn.Sequential(*layers).build((2, 10), rng=1, dtype="float64")
    model = exact.to(dtype)
    assert all(str(array.dtype) == dtype for array in (model.parameters | model.state).values())
    x = rng.standard_normal((5, 2, 10))
    y = model(x.astype(next(iter(model.parameters.values())).dtype))
    assert str(y.dtype) == dtype
    bound = {"float16": 2e-2, "bfloat16": 0.2, "float32": 1e-5, "float64": 0}[dtype]
    np.testing.assert_allclose(y.astype("float64"), exact(x), rtol=0, atol=bound)
    assert model.config == exact.config


def test_parameters_are_parts_of_one_vector():
    model = nn.Sequential(nn.Conv(3, 3), nn.BatchNorm(), nn.Flatten(), nn.Linear(2)).build((1, 6))
    vector = pack(model)
    assert vector.size == sum(array.size for array in model.parameters.values())
    vector[...] = np.arange(vector.size)
    np.testing.assert_array_equal(np.concatenate([array.ravel() for array in model.parameters.values()]), vector)
    assert pack(model) is vector
    part = nn.Sequential(*model.layers[:2])
    other = pack(part)
    other += 1
    assert model.parameters["0.w"][0, 0, 0] == 1, "layers of both have the new vector"
    assert pack(model) is not vector


@pytest.mark.parametrize("model", [nn.Conv(3, 3), nn.Sequential(nn.Conv(3, 3), nn.BatchNorm())], ids=["layer", "model"])
def test_arrays_are_written_in_place_and_not_replaced(model):
    """What would be lost without a word is an error: a model's names are made of those of its layers."""
    model.build((1, 6))
    name, w = next(iter(model.parameters.items()))
    with pytest.raises(TypeError, match="does not support item assignment"):
        model.parameters[name] = w
    model.parameters[name][...] = 7
    assert (model(np.ones((1, 1, 6), "float32")) != 0).all()


def test_summary():
    model = nn.Sequential(
        nn.Conv(4, 3, padding=1, groups=2), nn.BatchNorm(), nn.Residual(nn.ConvTranspose(4, 1)), nn.Flatten(), nn.Linear(3)
    )
    text = model.summary((2, 8))
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    assert rows["0"].split()[-2:] == ["16", "192"], "4 x 3 weights and 4 biases; 2 x 4 x 8 outputs x 3 taps"
    assert nc.plugin.parse("conv forward f32 n1 c2 k4 g2 in8 w3 s1 p1 d1").flops == 192
    assert rows["1"].split()[-2:] == ["8", "64"]
    assert rows["2.0"].split()[-2:] == ["20", "256"]
    assert rows["4"].split()[-2:] == ["99", "192"]
    assert "143 parameters; 704 FLOPs" in text
    assert f"{143 * 2 * 4:,} bytes for parameters" in text
    assert model.build((2, 8), dtype="float64").summary().splitlines()[:-1] == text.splitlines()[:-1]
    assert f"{143 * 2 * 8:,} bytes for parameters" in model.summary()


def test_two_layers_cannot_have_one_name():
    with pytest.raises(TypeError, match=r"a layer called Conv exists already, numconv\.nn\.convolution\.Conv"):

        @dataclasses.dataclass(eq=False)
        class Conv(nn.Layer):
            pass

    assert nn.from_config({"layer": "Conv", "channels": 1, "window": 1}).__class__ is nn.Conv


@pytest.mark.usefixtures("reference")
def test_an_unknown_activation_is_a_layer_like_others(rng):
    @dataclasses.dataclass(eq=False, repr=False)
    class Square(Activation):
        word = "square"

        def forward(self, x, training=False, rng=None):
            return x * x, lambda grad_y, needs_x=True: (2 * x * grad_y, {})

    model = nn.Sequential(nn.Conv(2, 3), Square()).build((1, 5))
    assert (model(rng.standard_normal((1, 1, 5), dtype="float32")) >= 0).all()


def test_importing_it_loads_nothing_heavy():
    code = (
        "import sys; from numconv import nn; nn.Sequential(nn.Conv(3, 3), nn.GELU()).config; nn.AdamW(); "
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'numba', 'scipy', 'tqdm', 'safetensors', 'cupy', 'torch'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


NO_NUMBERS = ["a", "", None, [1], (1, 2), True, {}, np.zeros(3), 1j, b"x"]


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda v: nn.BatchNorm(momentum=v), "BatchNorm: momentum="), (lambda v: nn.BatchNorm(epsilon=v), "BatchNorm: epsilon="),
        (lambda v: nn.GroupBatchNorm(momentum=v), "momentum="), (nn.Dropout, "Dropout: rate="),
        (lambda v: nn.ScaleLift(blur=v), "ScaleLift: blur="), (nn.SGD, "SGD: rate="),
        (lambda v: nn.SGD(0.1, momentum=v), "SGD: momentum="), (lambda v: nn.AdamW(weight_decay=v), "AdamW: weight_decay="),
        (lambda v: nn.AdamW(betas=(0.9, v)), "AdamW: betas="), (lambda v: nn.cosine(last=v), "cosine: last="),
        (nn.Linear, "Linear: features="), (lambda v: nn.Conv(4, 3, groups=v), "Conv: groups="),
        (lambda v: nn.Conv(v, 3), "Conv: channels="), (lambda v: nn.GroupConv(v, 3), "GroupConv: channels="),
        (lambda v: nn.ScaleConv(v, 3), "ScaleConv: channels="),
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_number_is_told(make, field, value):
    with pytest.raises(ProblemError, match=re.escape(field)):
        make(value)


@pytest.mark.parametrize("make", [nn.Linear, lambda k, **kw: nn.Conv(k, 3, **kw), lambda k, **kw: nn.GroupLift(k, 3, **kw)])
def test_a_bias_is_there_or_not(make):
    with pytest.raises(ProblemError, match="bias='no' must be True or False"):
        make(4, bias="no")


@pytest.mark.parametrize("group", [["p4"], {}, None, np.zeros(3)], ids=repr)
def test_groups_have_names(group):
    with pytest.raises(ProblemError, match="no group is called"):
        nn.GroupLift(4, 3, group)


def test_options_may_be_arrays():
    layer = nn.Conv(4, np.array([3, 3]), stride=np.array([1, 2]))
    assert nn.from_config(layer.config).build((1, 8, 8))(np.ones((1, 1, 8, 8), "float32")).shape == (1, 4, 6, 3)
    assert "stride=array([1, 2])" in repr(layer)
