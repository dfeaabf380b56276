"""numconv in torch: results, derivatives of any order, transformations, graphs, layers."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import pickle
import threading
import weakref

import numpy as np
import pytest

import numconv as nc
from numconv.errors import ProblemError

torch = pytest.importorskip("torch", reason="the package torch is not installed")
nt = pytest.importorskip("numconv.torch")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::DeprecationWarning:networkx")

REFLECTED = {"stride": (2, 1), "padding": ((1, 0), (1, 2)), "dilation": (1, 2), "groups": 2, "pad_mode": "reflect"}
TRANSPOSED = {"stride": 2, "padding": 1, "dilation": (3, 1), "groups": 2, "output_padding": (2, 1)}
LAST = {"padding": "same", "groups": 2, "layout": "channels_last"}

CONVOLUTIONS = {
    "reflected": (nt.conv, (1, 4, 4, 5), (6, 2, 3, 2), REFLECTED),
    "transposed": (nt.conv_transpose, (2, 4, 2, 3), (4, 3, 2, 2), TRANSPOSED),
    "channels last, no N": (nt.conv, (6, 5, 4), (6, 2, 3, 2), LAST),
    "flipped volume": (nt.conv, (1, 1, 3, 4, 3), (6, 1, 2, 3, 1), {"flip": True, "padding": "full"}),
}
GRID = (2, 4, 4, 3)
POSITIONS = torch.from_numpy(np.random.default_rng(0).integers(0, 15, GRID))  # some of them twice
WINDOWS = {
    "max_pool": functools.partial(nt.max_pool, window=3, stride=2, padding=1),
    "max_pool, channels last": functools.partial(nt.max_pool, window=(2, 3), layout="channels_last"),
    "avg_pool": functools.partial(nt.avg_pool, window=3, stride=2, padding=1, ceil_mode=True),
    "lp_pool": functools.partial(nt.lp_pool, window=3, stride=2, p=3, padding=1, ceil_mode=True),
    "pad": functools.partial(nt.pad, width=((2, 0), (1, 3)), mode="circular"),
    "unfold": functools.partial(nt.unfold, window=2, padding=1),
    "max_unpool": functools.partial(nt.max_unpool, indices=POSITIONS, x_shape=(2, 4, 5, 3)),
    "max_unpool, channels last": functools.partial(
        nt.max_unpool, indices=POSITIONS, x_shape=(2, 4, 5, 3), ndim=2, layout="channels_last"
    ),
    "fold": lambda x: nt.fold(x.flatten(2), (2, 2, 4, 2), (2, 1), padding=((0, 1), (1, 0))),
}


def normal(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=dtype, generator=generator, requires_grad=True)


def integers(*shape, dtype=torch.float32):
    return torch.from_numpy(np.random.default_rng(sum(shape)).integers(-4, 5, shape)).to(dtype)


# --- results -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "int32"])
def test_convolutions_are_those_of_numconv(case, dtype):
    function, x_shape, w_shape, options = CONVOLUTIONS[case]
    x, w, bias = (integers(*shape, dtype=getattr(torch, dtype)) for shape in (x_shape, w_shape, (6,)))
    plain = getattr(nc, function.__name__)
    expected = plain(x.numpy(), w.numpy(), bias.numpy(), **options)
    np.testing.assert_array_equal(function(x, w, bias, **options).numpy(), expected)


@pytest.mark.parametrize("case", WINDOWS)
def test_windows_are_those_of_numconv(case):
    x = integers(*GRID)
    function = WINDOWS[case]
    if case == "fold":
        expected = nc.fold(x.flatten(2).numpy(), (2, 2, 4, 2), (2, 1), padding=((0, 1), (1, 0)))
    else:
        options = {name: np.asarray(value) if name == "indices" else value for name, value in function.keywords.items()}
        expected = getattr(nc, function.func.__name__)(x.numpy(), **options)
    np.testing.assert_array_equal(function(x).numpy(), expected)


def test_indices_of_maxima():
    x = integers(*GRID)
    y, indices = nt.max_pool(x, 2, return_indices=True)
    expected = nc.max_pool(x.numpy(), 2, return_indices=True)
    np.testing.assert_array_equal(indices.numpy(), expected[1])
    assert not indices.requires_grad
    assert y.dtype == x.dtype


def test_maxima_put_back():
    x = integers(*GRID).requires_grad_()
    pooled = nt.max_pool(x, 2, return_indices=True)
    y = nt.max_unpool(*pooled, x.shape)
    assert torch.equal(y, torch.nn.functional.max_unpool2d(*pooled, 2, output_size=x.shape))
    y.square().sum().backward()
    assert torch.equal(x.grad, 2 * y)


def test_maxima_put_back_without_n():
    x = integers(3, 4, 6)
    y, indices = nt.max_pool(x, (3,), return_indices=True)
    found = nt.max_unpool(y[1], indices[1], (4, 6), ndim=1)
    assert torch.equal(found, nt.max_unpool(y, indices, x.shape)[1])
    unpool = functools.partial(nt.max_unpool, x_shape=(4, 6), ndim=1)
    assert torch.equal(torch.func.vmap(unpool)(y, indices), nt.max_unpool(y, indices, x.shape))
    expected = torch.stack([unpool(y[1], each) for each in indices])
    assert torch.equal(torch.func.vmap(unpool, (None, 0))(y[1], indices), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_keep_their_bits(dtype):
    pytest.importorskip("ml_dtypes")
    x, w = integers(1, 3, 9, dtype=getattr(torch, dtype)), integers(4, 3, 3, dtype=getattr(torch, dtype))
    w.requires_grad_()
    y = nt.conv(x, w)
    y.sum().backward()
    assert y.dtype == w.grad.dtype == x.dtype
    assert torch.equal(y.float(), torch.nn.functional.conv1d(x.float(), w.float()))


def test_views_conjugates_and_strides():
    x = integers(5, 2, 8, dtype=torch.complex64).permute(2, 1, 0)[::2].conj()
    w = integers(3, 4, 2, dtype=torch.complex64).permute(1, 2, 0)
    expected = nc.conv(x.resolve_conj().numpy(), w.numpy())
    np.testing.assert_array_equal(nt.conv(x, w).numpy(), expected)


def test_nothing_is_copied(monkeypatch):
    seen = []
    from numconv.torch import operators

    of = operators.array_of
    monkeypatch.setattr(operators, "array_of", lambda tensor: seen.append(of(tensor)) or seen[-1])
    x, w = integers(1, 2, 7), integers(2, 2, 3)
    nt.conv(x, w.requires_grad_())
    assert [array.__array_interface__["data"][0] for array in seen] == [x.data_ptr(), w.data_ptr()]


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_activations(activation):
    x, w = normal(1, 2, 9), normal(3, 2, 3)
    y = nt.conv(x, w, activation=activation)
    expected = nc.conv(x.detach().numpy(), w.detach().numpy(), activation=activation)
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-12, atol=1e-12)
    with torch.inference_mode():
        np.testing.assert_array_equal(nt.conv(x, w, activation=activation).numpy(), expected)


def test_autocast():
    pytest.importorskip("ml_dtypes")
    x, w, bias = integers(1, 3, 9).requires_grad_(), integers(4, 3, 3), integers(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = nt.conv(x.bfloat16(), w, bias)
        z = nt.conv(x, w, bias)
    assert y.dtype == z.dtype == torch.bfloat16
    z.sum().backward()
    assert x.grad.dtype == torch.float32


def test_tensors_without_memory():
    x = torch.empty(2, 4, 8, 8, device="meta")
    assert nt.conv(x, torch.empty(6, 2, 3, 3, device="meta"), groups=2, stride=2).shape == (2, 6, 3, 3)
    assert nt.lp_pool(x, 3).shape == nt.max_pool(x, 3).shape == (2, 4, 2, 2)
    assert nt.fold(nt.unfold(x, 2), x.shape, 2).shape == x.shape


@pytest.mark.parametrize("function", nt.functions.__all__)
def test_options_are_those_of_numconv(function):
    ours = inspect.signature(getattr(nt, function)).parameters.values()
    plain = inspect.signature(getattr(nc, function)).parameters.values()
    assert {(p.name, p.default) for p in plain if p.name not in ("dtype", "out")} == {(p.name, p.default) for p in ours}


# --- derivatives ---------------------------------------------------------------------------------------------------------------


def check(function, *inputs):
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_derivatives_of_convolutions(case):
    function, x_shape, w_shape, options = CONVOLUTIONS[case]
    check(functools.partial(function, **options), normal(*x_shape), normal(*w_shape), normal(6))


def test_derivatives_of_complex_convolutions():
    x, w = normal(1, 2, 5, dtype=torch.complex128), normal(3, 2, 2, dtype=torch.complex128)
    check(nt.conv, x, w)
    check(functools.partial(nt.conv_transpose, stride=2), x, normal(2, 1, 3, dtype=torch.complex128))


@pytest.mark.parametrize("case", WINDOWS)
def test_derivatives_of_windows(case):
    check(WINDOWS[case], normal(*GRID))


def test_norms_of_nothing_have_a_derivative():
    x = torch.zeros(1, 1, 4, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(nt.lp_pool(x, 2).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert not first.any()
    assert not second.any()


def test_gradients_are_those_of_torch():
    x, w, bias = (integers(*shape).requires_grad_() for shape in ((2, 4, 9, 8), (6, 2, 3, 3), (6,)))
    ours = torch.autograd.grad(nt.conv(x, w, bias, stride=2, padding=1, groups=2).square().sum(), (x, w, bias))
    theirs = torch.autograd.grad(torch.nn.functional.conv2d(x, w, bias, 2, 1, 1, 2).square().sum(), (x, w, bias))
    assert all(map(torch.equal, ours, theirs))


def test_what_has_no_tangent_is_no_term():
    """Forward differentiation along the bias, or along w, meets no product with zero."""
    x, w, bias = normal(1, 1, 5).detach(), torch.tensor([[[1.0, torch.inf]]], dtype=torch.float64), normal(1).detach()
    _, along_bias = torch.func.jvp(lambda bias: nt.conv(x, w, bias), (bias,), (torch.ones_like(bias),))
    assert torch.equal(along_bias, torch.ones(1, 1, 4, dtype=torch.float64))
    _, along_x = torch.func.jvp(lambda x: nt.conv(x, w[:, :, :1], bias), (x,), (torch.ones_like(x),))
    assert torch.equal(along_x, torch.ones(1, 1, 5, dtype=torch.float64))


def test_frozen_weights_keep_no_input():
    """What is not needed for a gradient is freed as soon as its owner is."""
    w = integers(2, 2, 3)
    x = integers(1, 2, 8).requires_grad_()
    hidden = x * 2
    alive = weakref.ref(hidden)
    y = nt.conv(hidden, w)
    del hidden
    gc.collect()
    assert alive() is None
    y.sum().backward()
    assert x.grad is not None


def test_settings_hold_for_derivatives():
    x, w = integers(1, 2, 8).requires_grad_(), integers(2, 2, 3)
    with nc.using(backend="reference", accuracy="strict"):
        y = nt.conv(x, w)
    assert y.grad_fn.call.context.backend == ("reference",)
    y.sum().backward()
    assert torch.equal(x.grad, torch.autograd.grad(torch.nn.functional.conv1d(x, w).sum(), x)[0])


def test_an_algorithm_is_asked_for_the_result_alone():
    x, w = normal(1, 8, 40, 40, dtype=torch.float32), normal(8, 8, 3, 3, dtype=torch.float32)
    y = nt.conv(x, w, algorithm="winograd")
    assert y.grad_fn.call.choice.algorithm == "winograd"
    y.sum().backward()
    assert torch.isfinite(w.grad).all()
    with pytest.raises(nc.UnsupportedProblemError, match="winograd"):
        nt.conv(x, w, stride=40, algorithm="winograd")


def test_threads_at_once():
    x, w = integers(2, 8, 40, 40), integers(8, 8, 3, 3)
    grads: list[torch.Tensor] = []

    def work():
        mine = w.clone().requires_grad_()
        nt.conv(x, mine, padding=1).square().sum().backward()
        grads.append(mine.grad)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(grads) == 4
    assert all(torch.equal(grads[0], each) for each in grads)


# --- transformations -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"groups": 2}, LAST], ids=["channels first", "channels last"])
@pytest.mark.parametrize("mapped", [(0, 0, 0), (1, None, None), (None, 2, None), (None, None, 0), (0, None, 0)], ids=str)
def test_vmap(options, mapped):
    shapes = [(2, 6, 5, 4) if options is LAST else (2, 4, 6, 5), (6, 2, 3, 2), (6,)]
    many = [integers(3, *shape) for shape in shapes]
    moved = [each[0] if axis is None else each.movedim(0, axis) for each, axis in zip(many, mapped, strict=True)]
    function = functools.partial(nt.conv, **options)
    expected = [
        function(*(each[0] if axis is None else each[i] for each, axis in zip(many, mapped, strict=True))) for i in range(3)
    ]
    assert torch.equal(torch.func.vmap(function, mapped)(*moved), torch.stack(expected))


@pytest.mark.parametrize("case", WINDOWS)
def test_vmap_of_windows(case):
    x = integers(3, *GRID)
    expected = torch.stack([WINDOWS[case](each) for each in x])
    assert torch.equal(torch.func.vmap(WINDOWS[case], 1)(x.movedim(0, 1)), expected)


def test_gradients_of_each_sample():
    x, w = integers(3, 4, 7), integers(2, 2, 3)

    def loss(w, x):
        return nt.conv(x, w, groups=2).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(w, x)
    assert torch.equal(each, torch.stack([torch.func.grad(loss)(w, one) for one in x]))


@pytest.mark.parametrize("function", [nt.max_pool, functools.partial(nt.lp_pool, p=3), nt.avg_pool])
def test_hessians_forward_and_backward(function):
    x = normal(2, 4).detach()

    def loss(x):
        return function(x, (2,)).pow(3).sum()

    forward_over_backward = torch.func.hessian(loss)(x)
    assert forward_over_backward.any()
    torch.testing.assert_close(forward_over_backward, torch.autograd.functional.hessian(loss, x))


# --- graphs --------------------------------------------------------------------------------------------------------------------


def network(x, w, bias):
    y = nt.conv(x, w, bias, padding="same", groups=2, pad_mode="symmetric", activation="gelu")
    pooled, indices = nt.max_pool(y, 2, return_indices=True)
    y = nt.lp_pool(pooled, 2, stride=1, p=3) + nt.max_unpool(pooled, indices, y.shape)[..., 1:4, 1:4]
    y = nt.avg_pool(nt.pad(y, 1, "reflect"), 2)
    return nt.fold(nt.unfold(y, 2), y.shape, 2)


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed sizes", "open sizes"])
def test_compiled_graphs_are_whole(dynamic):
    inputs = normal(2, 4, 8, 8), normal(6, 2, 3, 3), normal(6)
    torch.compiler.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    y, expected = compiled(*inputs), network(*inputs)
    torch.testing.assert_close(y, expected)
    ours, theirs = (torch.autograd.grad(each.square().sum(), inputs) for each in (y, expected))
    torch.testing.assert_close(ours, theirs)


def test_operators_keep_the_rules_of_torch():
    from numconv.derivatives import Trilinear

    call = Trilinear("conv", "y", (1, 2, 8), (2, 2, 3), tuple(nc.arguments.Geometry()), nc.dispatch.Choice(), None)
    torch.library.opcheck(torch.ops.numconv.call, ([normal(1, 2, 8), normal(2, 2, 3)], call.text, [1, 2, 8, 2, 2, 3], 3))


# --- layers --------------------------------------------------------------------------------------------------------------------


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular")
        self.second = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False), torch.nn.ReLU())
        self.last = torch.nn.ConvTranspose2d(4, 2, 3, stride=2, output_padding=1)

    def forward(self, x):
        return self.last(self.second(self.first(x)), output_size=(20, 19))


def test_a_model_converted():
    torch.manual_seed(0)
    net, x = Net(), torch.randn(2, 3, 9, 9)
    parameters, state = list(net.parameters()), copy.deepcopy(net.state_dict())
    expected = net(x)
    theirs = torch.autograd.grad(expected.sum(), parameters)
    called = []
    net.first.register_forward_hook(lambda *_: called.append(1))
    assert nt.convert(net) is net
    assert [type(m).__module__ for m in (net.first, net.second[0], net.last)] == ["numconv.torch.layers"] * 3
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    y = net(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), parameters), theirs)
    assert called
    Net().load_state_dict(net.state_dict())
    assert net.state_dict().keys() == state.keys()
    again = pickle.loads(pickle.dumps(net.second))
    assert type(again[0]) is nt.Conv2d


def test_what_is_not_converted():
    class Own(torch.nn.Conv2d):
        pass

    net = torch.nn.Sequential(Own(1, 1, 3), torch.nn.Conv2d(1, 1, 3), torch.nn.Conv2d(1, 1, 9))
    nt.convert(net, where=lambda name, module: max(module.kernel_size) > 7)
    assert [type(layer) for layer in net] == [Own, torch.nn.Conv2d, nt.Conv2d]


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_layers_begin_as_those_of_torch(ndim):
    for name in ("Conv", "ConvTranspose"):
        layers = []
        for module in (torch.nn, nt):
            torch.manual_seed(1)
            layers.append(getattr(module, f"{name}{ndim}d")(2, 4, 3, stride=2, padding=1, groups=2))
        x = torch.randn(2, 2, *(5, 6, 7)[:ndim])
        torch.testing.assert_close(layers[1](x), layers[0](x))
        assert repr(layers[0]) == repr(layers[1])


def test_layers_have_what_torch_refuses():
    layer = nt.Conv1d(1, 1, 3, stride=2, padding="same", padding_mode="symmetric")
    x = torch.arange(7.0)[None]
    expected = nc.conv(
        x.numpy(), layer.weight.detach().numpy(), layer.bias.detach().numpy(), stride=2, padding="same", pad_mode="symmetric"
    )
    np.testing.assert_array_equal(layer(x).detach().numpy(), expected)
    assert nt.Conv2d(1, 1, 3, padding=((1, 0), (2, 0)))(torch.zeros(1, 5, 5)).shape == (1, 4, 5)


# --- errors --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x, w: nt.conv(x.numpy(), w), "conv: x is a ndarray, and must be a torch.Tensor; for arrays there is numconv.conv"),
        (lambda x, w: nt.conv(x, None), "conv: w is a NoneType, and must be a torch.Tensor"),
        (lambda x, w: nt.max_pool(None, 2), "max_pool: x is a NoneType, and must be a torch.Tensor"),
        (lambda x, w: nt.max_unpool(x, None, x.shape), "max_unpool: indices is a NoneType, and must be a torch.Tensor"),
        (
            lambda x, w: nt.max_pool(x.to(torch.float8_e4m3fn), 2),
            "x has dtype torch.float8_e4m3fn; use one of float16, .* uint64",
        ),
        (lambda x, w: nt.max_pool(x > 0, 2), "max_pool: x has dtype torch.bool; use one of"),
        (lambda x, w: nt.conv(x, w.double()), r"x has dtype torch.float32 and w has torch.float64.*w.to\(torch.float32\)"),
        (lambda x, w: nt.conv(x, w.to("meta")), "x lives on cpu and w on meta; move one of them"),
        (lambda x, w: nt.conv(x.to_sparse(), w), r"x has the layout torch.sparse_coo; give x.to_dense\(\)"),
        (lambda x, w: nt.conv(x, w, groups=3), r"2 input channels cannot be split into groups=3: 2 % 3 = 2"),
        (lambda x, w: nt.conv(x, w, activation="tanh"), "activation='tanh' is not one of relu, silu, gelu"),
        (lambda x, w: nt.max_pool(x, 9), "the window is larger than the padded input"),
        (lambda x, w: nt.fold(x[0], (2, 2, 3), (2,)), "must have"),
        (lambda x, w: nt.fold(x, 3, 2), "x_shape=3 must be a tuple of integers"),
        (lambda x, w: nt.max_unpool(x, x, x.shape), r"dtype torch.float32, and must have .* torch.int64, as max_pool gives them"),
        (lambda x, w: nt.max_unpool(x, x.long()[..., 1:], x.shape), r"indices have shape \(1, 2, 7\) .* y's shape \(1, 2, 8\)"),
        (lambda x, w: nt.max_unpool(x, x.long().to("meta"), x.shape), "y lives on cpu and indices on meta"),
        (lambda x, w: nt.max_unpool(x, x.long(), (1, 3, 8)), r"y has batch and channels \(1, 2\), x_shape has \(1, 3\)"),
        (lambda x, w: nt.max_unpool(x, 0 * x.long() + 8, x.shape), "indices range from 8 to 8, but positions.*0 to 7"),
        (lambda x, w: nt.max_unpool(x.to("meta"), x.long().to("meta"), (1, 3, 8)), r"y has batch and channels \(1, 2\)"),
    ],
)
def test_errors(call, text):
    with pytest.raises(ProblemError, match=text):
        call(integers(1, 2, 8), integers(2, 2, 3))
