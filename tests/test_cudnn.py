"""The cuDNN backend on machines without a GPU: what its graphs say, computed by the reference; what the frontend thinks of them."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from numconv_cudnn import CudnnBackend
from numconv_cudnn.convolution import Convolution
from numconv_cudnn.driver import Driver, Plan
from numconv_cudnn.translation import graph_of, supported

from numconv.plugin import ConvProblem, Verdict, parse
from numconv.registry import default_registry
from numconv.testing import CONV_PROBLEMS, BackendContract, check

SUPPORTED = [text for text in CONV_PROBLEMS if supported(parse(text))]


def contiguous(shape):
    return tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))


def graph(text):
    problem = parse(text)
    return graph_of(problem, [contiguous(s) for s in problem.input_shapes[:2]], contiguous(problem.output_shapes[0]))


# --- graphs, computed by the reference ----------------------------------------------------------------------------------------


class ReferenceDriver:
    """Computes what the nodes of a graph say, on views that have the dims and strides of its tensors."""

    def execute(self, graph, arrays):
        tensors = [*graph.inputs, graph.output]
        views = [view(array, tensor) for array, tensor in zip(arrays, tensors, strict=True)]
        values = {tensor.name: each for tensor, each in zip(graph.inputs, views, strict=False)}
        for node in graph.nodes:
            operation = getattr(self, f"_{node.operation}")
            values[node.output] = operation({name: values[given] for name, given in node.inputs}, dict(node.parameters), graph)
        views[-1][...] = values[graph.output.name].astype(views[-1].dtype)

    def _conv_fprop(self, given, parameters, graph):
        return convolution("forward", given["image"], given["weight"], parameters, graph.made[0])

    def _conv_dgrad(self, given, parameters, graph):
        return convolution("input_grad", given["loss"], given["filter"], parameters, graph.made[0])

    def _conv_wgrad(self, given, parameters, graph):
        return convolution("weight_grad", given["loss"], given["image"], parameters, graph.made[0])

    def _add(self, given, parameters, graph):
        return given["a"] + given["b"].astype(np.float32)

    def _relu(self, given, parameters, graph):
        return np.maximum(given["input"], 0)

    def _swish(self, given, parameters, graph):
        with np.errstate(all="ignore"):
            return given["input"] / (1 + np.exp(-given["input"]))

    def _gelu(self, given, parameters, graph):
        from scipy.special import erfc

        return 0.5 * given["input"] * erfc(given["input"] * -np.sqrt(0.5))

    def _reduction(self, given, parameters, graph):
        assert parameters == {"mode": "ADD"}
        axes = tuple(
            a for a, (size, kept) in enumerate(zip(given["input"].shape, graph.output.dims, strict=True)) if kept == 1 < size
        )
        return given["input"].sum(axis=axes, keepdims=True, dtype=np.float64)


def view(array, tensor):
    steps = [step * array.dtype.itemsize for step in tensor.strides]
    assert array.dtype.name == tensor.dtype
    return np.lib.stride_tricks.as_strided(array, tensor.dims, steps)


def convolution(op, first, second, parameters, made):
    x, w, y = {
        "forward": (first.shape, second.shape, made.dims),
        "input_grad": (made.dims, second.shape, first.shape),
        "weight_grad": (second.shape, made.dims, first.shape),
    }[op]
    problem = ConvProblem(
        op=op, dtype=first.dtype.name, out_dtype="float32", n=x[0], c=x[1], k=w[0], groups=x[1] // w[1],
        spatial=x[2:], kernel=w[2:], stride=parameters["stride"], dilation=parameters["dilation"],
        padding=tuple(zip(parameters["pre_padding"], parameters["post_padding"], strict=True)),
    )  # fmt: skip
    assert problem.y_shape == y
    out = np.empty(made.dims, np.float32)
    reference = next(i for i in default_registry().backend("reference").implementations() if op in i.ops)
    reference.build(problem)([out], [first, second])
    return out


class OnReference:
    name, device, automatic, version = "cudnn-on-reference", "cpu", False, "0"

    def availability(self):
        return Verdict.yes()

    def implementations(self):
        return (Convolution(ReferenceDriver()),)


class TestCudnnGraphs(BackendContract):
    backend = OnReference()
    problems = CONV_PROBLEMS
    levels = ("high",)
    forms = ("C-contiguous", "channels-last", "mixed")


def test_a_graph_that_says_something_else_is_seen(monkeypatch):
    monkeypatch.setattr(ReferenceDriver, "_relu", lambda self, given, parameters, graph: given["input"])
    problem = parse("conv forward f32 n2 c5 k7 g1 in13x19 w3x3 s1 p1 d1 bias=y act=relu accuracy=high")
    with pytest.raises(AssertionError, match=r"the reference gives 0\.0"):
        check(problem, OnReference(), rng=np.random.default_rng(1))


# --- what a graph is ----------------------------------------------------------------------------------------------------------


def test_bias_and_activation_stay_on_the_chip():
    found = graph("conv forward f16 n1 c3 k4 g1 in9x8 w3x3 s1 p1 d1 bias=y act=relu")
    assert [node.operation for node in found.nodes] == ["conv_fprop", "add", "relu"]
    assert [tensor.dtype for tensor in found.made] == ["float32", "float32", "float16"]
    assert found.inputs[2].dims == (1, 4, 1, 1)


def test_one_dimension_becomes_two():
    found = graph("conv forward f32 n2 c6 k4 g2 in41 w7 s3 p5:2 d2")
    assert [tensor.dims for tensor in (*found.inputs, found.output)] == [(2, 6, 1, 41), (4, 3, 1, 7), (2, 4, 1, 12)]
    assert found.inputs[0].strides == (246, 41, 41, 1)
    assert dict(found.nodes[0].parameters) == {
        "pre_padding": (0, 5), "post_padding": (0, 2), "stride": (1, 3), "dilation": (1, 2),
    }  # fmt: skip


def test_accuracy_decides_which_engines_are_left_out():
    text = "conv forward f32 n1 c3 k4 g1 in9x8 w3x3 s1 p1 d1"
    notes = {level: set(graph(f"{text} accuracy={level}").excluded) for level in ("high", "fast")}
    assert {"NONDETERMINISTIC", "WINOGRAD", "FFT"} <= notes["fast"]
    assert notes["high"] - notes["fast"] == {"DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("conv forward f64 n1 c3 k4 g1 in9 w3 s1 p0 d1", "dtype float64 is not supported (has float16, bfloat16, float32)"),
        ("conv forward f32 n1 c3 k4 g1 in9 w3 s1 p0 d1 out=f64", "results of float64 from float32 are not supported"),
        ("conv forward f32 n1 c2 k3 g1 in4x3x5x3 w2 s1 p0 d1", "4 spatial dimensions are not supported (has 1 to 3)"),
        ("conv forward f32 n1 c3 k4 g1 in9 w3 s1 p1 d1 pad=reflect", "pad_mode 'reflect' is not supported (has zeros)"),
        ("conv forward f32 n1 c3 k4 g1 in9 w3 s1 p1:-1 d1", "padding ((1, -1),) cuts x"),
        ("conv forward f32 n1 c3 k4 g1 in9 w3 s1 p1 d1 flip=1", "flip=True is not supported"),
        ("conv forward f32 n1024 c512 k512 g1 in64x64 w3x3 s1 p1 d1", "2**31 elements"),
    ],
)
def test_refusals(text, reason):
    if "w2 " in text:
        text = text.replace("w2 ", "w2x2x2x2 ")
    verdict = supported(parse(text))
    assert not verdict
    assert reason in verdict.reason


# --- the driver ---------------------------------------------------------------------------------------------------------------


def test_the_driver_shares_plans_and_bounds_them(monkeypatch):
    import numconv_cudnn.driver as module

    built = []
    monkeypatch.setattr(module, "build", lambda cudnn, handle, graph: built.append(graph) or Plan(None, (), 0, 40))
    driver, graphs = Driver(limit=100), [graph(f"conv forward f32 n{n} c3 k4 g1 in9 w3 s1 p0 d1") for n in (1, 2, 3)]
    for each in (0, 1, 0, 2, 0, 1):
        driver.plan(None, 0, 1, graphs[each])
    assert built == [graphs[0], graphs[1], graphs[2], graphs[1]], "two fit, and the least recently used is dropped"
    driver.plan(None, 1, 1, graphs[1])
    assert len(built) == 5, "another device has plans of its own"


def test_each_thread_has_a_handle_of_its_own():
    made, streams, destroyed = [], [], []
    cudnn = SimpleNamespace(
        create_handle=lambda: made.append(len(made) + 1) or made[-1],
        set_stream=lambda handle, stream: streams.append((handle, stream)),
        destroy_handle=destroyed.append,
    )
    driver = Driver()
    assert [driver._handle(cudnn, 0, stream) for stream in (7, 8)] == [1, 1]
    thread = threading.Thread(target=lambda: [driver._handle(cudnn, device, 9) for device in (0, 1)])
    thread.start()
    thread.join()
    assert streams == [(1, 7), (1, 8), (2, 9), (3, 9)]
    assert sorted(destroyed) == [2, 3]


def test_availability_names_what_is_missing():
    verdict = CudnnBackend().availability()
    if verdict:
        pytest.skip("cuDNN is available here")
    assert any(
        words in verdict.reason
        for words in (
            "nvidia-cudnn-frontend is not installed",
            "cupy is not installed",
            "NVIDIA driver",
            "libcudnn",
            "CUDA_VISIBLE",
        )
    )


# --- the frontend itself --------------------------------------------------------------------------------------------------------

_STUB = 'extern "C" unsigned long cudnnGetVersion(void) { return 91400; }\n'
_VALIDATE = """
import json, math, sys
import cudnn
from numconv.plugin import parse
from numconv_cudnn import driver
from numconv_cudnn.translation import graph_of

class Validated(Exception):
    pass

def contiguous(shape):
    return tuple(math.prod(shape[axis + 1:]) for axis in range(len(shape)))

def stop(self):
    raise Validated

found = {}
cudnn.pygraph.build_operation_graph = stop  # from here on a device is needed
tensors = {}
add = driver._add
def recorded(cudnn, built, node, known):
    tensors[node.output] = add(cudnn, built, node, known)
    return tensors[node.output]
driver._add = recorded
for text in json.load(sys.stdin):
    problem = parse(text)
    strides = [contiguous(shape) for shape in problem.input_shapes[:2]]
    steps = contiguous(problem.output_shapes[0])
    try:
        driver.build(cudnn, 1, graph_of(problem, strides, steps))
    except Validated:
        found[text] = {name: tensor.get_dim() for name, tensor in tensors.items()}
    tensors.clear()
json.dump(found, sys.stdout)
"""


@pytest.mark.skipif(importlib.util.find_spec("cudnn") is None, reason="the package nvidia-cudnn-frontend is not installed")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler: it makes a libcudnn that only tells its version")
def test_the_frontend_validates_every_graph(tmp_path):
    (tmp_path / "stub.cpp").write_text(_STUB)
    subprocess.run(["g++", "-shared", "-fPIC", "-o", tmp_path / "libcudnn.so.9", tmp_path / "stub.cpp"], check=True)
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _VALIDATE], input=json.dumps(SUPPORTED), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == SUPPORTED
    for text, dims in found.items():
        assert all(tuple(each) == graph(text).output.dims for each in dims.values()), text
