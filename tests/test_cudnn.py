"""The cuDNN backend on machines without a GPU: what its graphs say, computed by the reference; what the frontend thinks of them."""

import contextlib
import ctypes
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from array import array
from types import SimpleNamespace

import numpy as np
import pytest
from numconv_cudnn import CudnnBackend
from numconv_cudnn.convolution import Convolution, Transforms
from numconv_cudnn.driver import Driver, Plan, build
from numconv_cudnn.kernels import NO_RECORD, THREADS, _witness, source
from numconv_cudnn.translation import LAYOUTS, graph_of, supported
from numconv_cupy.on_host import compiler, grid_of

import numconv as nc
from numconv.plugin import ConvProblem, DeviceArray, UnsupportedProblemError, Verdict, np_dtype, parse
from numconv.registry import default_registry
from numconv.testing import CONV_PROBLEMS, BackendContract, check

SUPPORTED = [text for text in CONV_PROBLEMS if supported(parse(text))]


def graph(text, layout="channels_first"):
    return graph_of(parse(text), layout)


# --- graphs, computed by the reference ----------------------------------------------------------------------------------------


class ReferenceDriver:
    """Computes what the nodes of a graph say, on views of the dims and strides of its tensors; kernels run as C++."""

    def on_device_of(self, array):
        return contextlib.nullcontext()

    def place(self, arrays):
        return 0, 7

    def address(self, array):
        return array.ctypes.data

    def plan(self, device, graph):
        return Plan(graph, 0, (), 0, 0)

    def launcher(self, device, macros):
        return functools.partial(launch_on_host, macros)

    def execute(self, device, stream, plan, addresses, workspace):
        assert stream == 7
        graph = plan.graph
        tensors = [*graph.inputs, graph.output]
        views = [view(address, tensor) for address, tensor in zip(addresses, tensors, strict=True)]
        values = {tensor.name: each for tensor, each in zip(graph.inputs, views, strict=False)}
        for node in graph.nodes:
            operation = getattr(self, f"_{node.operation}")
            values[node.output] = operation({name: values[given] for name, given in node.inputs}, dict(node.parameters), graph)
        if graph.transforms:
            spoil_tiles(values[graph.output.name])
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


def launch_on_host(macros, kernel, blocks, numbers, stream, record=NO_RECORD):
    """The kernel in a loop; those that share work among any number of blocks have two, since blocks with barriers are slow."""
    assert stream == 7
    buffer = np.array([*record, *numbers], np.int64)  # as the driver takes them
    places = [*([0] if record else []), *range(len(record), buffer.size)]
    pointers = (ctypes.c_void_p * len(places))(*(buffer.ctypes.data + 8 * place for place in places))
    options = ("-DNUMCONV_BARRIERS", *(f"-D{name}={value}" for name, value in macros._asdict().items()))
    grid_of(kernel, source(), options)(pointers, blocks if "sums" in kernel or kernel == "look" else min(blocks, 2), THREADS)


def view(address, tensor):
    """The elements of a tensor where it lies, as an array."""
    dtype = np_dtype(tensor.dtype)
    reach = 1 + sum(step * (size - 1) for step, size in zip(tensor.strides, tensor.dims, strict=True))
    memory = (ctypes.c_char * (reach * dtype.itemsize)).from_address(address)
    return np.ndarray(tensor.dims, dtype, memory, strides=[step * dtype.itemsize for step in tensor.strides])


def spoil_tiles(sums):
    """What is not finite makes a whole tile NaN in Winograd's algorithm: here a block of the last axis, in all channels."""
    tiles = sums[..., : sums.shape[-1] // 2], sums[..., sums.shape[-1] // 2 :]
    for tile in tiles:
        tile[~np.isfinite(tile).all(axis=tuple(range(1, tile.ndim)))] = np.nan


def convolution(op, first, second, parameters, made):
    """As cuDNN's engines do it: what is padded, and what lies between strided gradients, are zeros that are multiplied."""
    steps = {"stride": parameters["stride"], "dilation": parameters["dilation"]}
    pads = list(zip(parameters["pre_padding"], parameters["post_padding"], strict=True))
    if op == "input_grad":
        reach = [d * (r - 1) for d, r in zip(steps["dilation"], second.shape[2:], strict=True)]
        images, groups = spread(first, steps["stride"], reach, pads, made.dims[2:]), made.dims[1] // second.shape[1]
        return reference("forward", (images, transposed(second, groups)), made, groups, steps | {"stride": (1,) * len(reach)})
    image = first if op == "forward" else second
    padded = np.pad(image, [(0, 0), (0, 0), *pads])
    groups = image.shape[1] // (second.shape if op == "forward" else made.dims)[1]
    return reference(op, (padded, second) if op == "forward" else (first, padded), made, groups, steps)


def spread(grad_y, stride, reach, pads, size):
    """grad_y with zeros between and around its elements, so that a convolution of step 1 makes the gradient of x."""
    wide = [(q - 1) * s + 1 for q, s in zip(grad_y.shape[2:], stride, strict=True)]
    around = [(max(r - low, 0), low) for r, (low, _) in zip(reach, pads, strict=True)]
    room = [lead + most + more for (lead, _), most, more in zip(around, map(max, wide, size), reach, strict=True)]
    images = np.zeros((*grad_y.shape[:2], *(each + low for each, (_, low) in zip(room, around, strict=True))), grad_y.dtype)
    places = tuple(slice(lead, lead + w, s) for (lead, _), w, s in zip(around, wide, stride, strict=True))
    images[(..., *places)] = grad_y
    starts = [max(low - r, 0) for r, (low, _) in zip(reach, pads, strict=True)]
    return images[(..., *(slice(start, start + s + r) for start, s, r in zip(starts, size, reach, strict=True)))]


def transposed(w, groups):
    """Weights [K, C/G, *R] as [C, K/G, *R], with their taps in reverse."""
    parts = np.stack(np.split(w, groups)).swapaxes(1, 2)
    return np.flip(parts.reshape(-1, *parts.shape[2:]), axis=tuple(range(2, w.ndim)))


def reference(op, arrays, made, groups, steps):
    """A convolution without padding by the reference backend, in float32."""
    x = arrays[0] if op == "forward" else arrays[1]
    w = arrays[1].shape if op == "forward" else made.dims
    problem = ConvProblem(
        op=op, dtype=x.dtype.name, out_dtype="float32", n=x.shape[0], c=x.shape[1], k=w[0], groups=groups, spatial=x.shape[2:],
        kernel=w[2:], padding=((0, 0),) * (x.ndim - 2), **steps,
    )  # fmt: skip
    assert problem.output_shapes[0] == made.dims
    out = np.empty(made.dims, np.float32)
    implementation = next(i for i in default_registry().backend("reference").implementations() if op in i.ops)
    implementation.build(problem)([out], list(arrays))
    return out


class OnReference:
    name, device, automatic, version = "cudnn-on-reference", "cpu", False, "0"

    def availability(self):
        return Verdict.yes() if compiler() else Verdict.no("no C++ compiler, which makes the kernels for this host")

    def implementations(self):
        return (Transforms(ReferenceDriver()), Convolution(ReferenceDriver()))


class TestCudnnGraphs(BackendContract):
    backend = OnReference()
    problems = CONV_PROBLEMS
    levels = ("default",)
    forms = ("C-contiguous", "channels-last", "mixed")


def test_a_graph_that_says_something_else_is_seen(monkeypatch):
    monkeypatch.setattr(ReferenceDriver, "_relu", lambda self, given, parameters, graph: given["input"])
    problem = parse("conv forward f32 n2 c5 k7 g1 in13x19 w3x3 s1 p1 d1 bias=y act=relu accuracy=high")
    with pytest.raises(AssertionError, match=r"the reference gives 0\.0"):
        check(problem, OnReference(), rng=np.random.default_rng(1))


@pytest.mark.parametrize(
    "text",
    [
        "conv forward f32 n2 c5 k7 g1 in13x19 w3x3 s1 p1 d1 bias=y act=silu",
        "conv forward f16 n1 c3 k4 g1 in9x8 w3x3 s1 p1 d1 bias=y act=relu layout=channels_last",
        "conv input_grad f32 n2 c5 k7 g1 in13x19 w3x3 s2 p1 d1 bias=x",
        "conv weight_grad f32 n2 c70 k7 g1 in13x19 w3x3 s1 p1 d1 bias=x",
    ],
)
@pytest.mark.parametrize("refused", ["fused", "the arrays' layout", "everything"])
def test_another_graph_is_taken_where_cudnn_has_no_engine_for_the_first(text, refused, monkeypatch):
    plan, asked = ReferenceDriver.plan, []

    def without(self, device, graph):
        asked.append(graph)
        if graph is asked[0] or refused == "everything" or (refused == "fused" and len(graph.nodes) > 1):
            raise UnsupportedProblemError("no engine")
        return plan(self, device, graph)

    monkeypatch.setattr(ReferenceDriver, "plan", without)
    check(parse(text), OnReference(), rng=np.random.default_rng(1), integer=False)
    assert len(set(asked)) > 1


def test_what_is_not_finite_would_spread_through_padding_without_a_repair(monkeypatch):
    problem = parse("conv forward f32 n2 c3 k4 g1 in9x8 w3x3 s1 p1 d1")
    check(problem, OnReference(), rng=np.random.default_rng(1), nonfinite=(1,))
    monkeypatch.setattr("numconv_cudnn.calls._meets_zeros", lambda problem: False)
    with pytest.raises(AssertionError, match="is nan, and the reference gives"):
        check(problem, OnReference(), rng=np.random.default_rng(1), nonfinite=(1,))


@pytest.mark.parametrize("each", [2048, 128])
@pytest.mark.parametrize(
    ("form", "act"),
    [
        ("in9x8 w3x3 s2 p1 d1", ""),
        ("in9x8 w3x3 s2 p1 d1", " act=relu"),
        ("in2x3 w3x3 s1 p1 d1", ""),
        ("in9x12 w3x2 s3x2 p2x0 d1x3", ""),
    ],
)
def test_weights_that_are_not_finite_are_seen(form, act, each, monkeypatch):
    monkeypatch.setattr("numconv_cudnn.kernels._EACH", each)
    for op in ("forward", "input_grad"):
        problem = parse(f"conv {op} f32 n2 c6 k8 g2 {form}{act}")
        check(problem, OnReference(), "graph", rng=np.random.default_rng(1), nonfinite=(1,))


def test_a_witness_reads_every_tap_and_no_padding():
    seen = 0
    for text in SUPPORTED:
        problem = parse(text)
        witness = None if problem.op == "weight_grad" else _witness(problem)
        if witness is None:
            continue
        small = problem.replace(n=1, groups=1, c=1, k=1, bias="", activation=None, dtype="float32", out_dtype="float32")
        source, taps = (np.ones(shape, np.float32) for shape in small.input_shapes)
        out = np.empty(small.output_shapes[0], np.float32)
        implementation = next(i for i in default_registry().backend("reference").implementations() if problem.op in i.ops)
        implementation.build(small)([out], [source, taps])
        assert out[(0, 0, *witness)] == taps.size, text
        seen += 1
    assert seen > 20


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
    assert set(graph(text).excluded) - set(graph_of(parse(text), "channels_first", transforms=True).excluded) == {
        "FFT", "WINOGRAD", "WINOGRAD_TILE_4x4", "WINOGRAD_TILE_6x6",
    }  # fmt: skip
    notes = {level: set(graph(f"{text} accuracy={level}").excluded) for level in ("high", "fast")}
    assert {"NONDETERMINISTIC", "WINOGRAD", "FFT", "DOWN_CONVERT_INPUTS"} <= notes["fast"]
    assert notes["high"] - notes["fast"] == {"TENSOR_CORE", "REDUCED_PRECISION_REDUCTION"}, "those round float32 to TF32"
    assert "TENSOR_CORE" not in graph(text.replace("f32", "f16")).excluded


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


# --- the choice of an engine --------------------------------------------------------------------------------------------------


class Anything(SimpleNamespace):
    """What has every attribute, and returns itself from every call: cuDNN's enumerations and tensors."""

    def __getattr__(self, name):
        return Anything()

    def __call__(self, *args, **kwargs):
        return self


class FakeCudnn(Anything):
    """The frontend for one graph whose heuristics name these engines: name, workspace, and whether it can be built."""

    cudnnGraphNotSupportedError = ValueError

    def __init__(self, *engines):
        super().__init__(engines=engines, built=[], asked={}, executed=[])

    def backend_version(self):
        return 91900

    def pygraph(self, **types):
        return FakeGraph(cudnn=self)


class FakeTensor(Anything):
    def get_uid(self):
        return self.name


class FakeGraph(Anything):
    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.cudnn.asked[name] = args
            return FakeTensor(name=kwargs.get("name"))

        return call

    def execute_plan_at_index(self, pack, workspace, index, handle):
        self.cudnn.executed.append((pack, workspace, index, handle))

    def get_execution_plan_count(self):
        return len(self.cudnn.engines)

    def get_plan_name_at_index(self, index):
        return self.cudnn.engines[index][0]

    def get_workspace_size_plan_at_index(self, index):
        return self.cudnn.engines[index][1]

    def build_plan_at_index(self, index):
        if not self.cudnn.engines[index][2]:
            raise ValueError("this engine needs 8 channels")
        self.cudnn.built.append(index)

    def serialize(self):
        return b"1234"


TEXT = "conv forward f32 n1 c3 k4 g1 in9x8 w3x3 s1 p1 d1"


def test_the_first_engine_that_can_be_built_is_taken():
    plan = build(FakeCudnn(("a", 0, False), ("b", 7, True), ("c", 0, True)), 1, graph(TEXT))
    assert (plan.index, plan.workspace, plan.size) == (1, 7, 4)


def test_a_graph_is_built_with_its_accuracy_and_its_limit():
    cudnn = FakeCudnn(("a", 0, True))
    wanted = graph("conv forward f16 n1 c8 k8 g1 in9x8 w3x3 s1 p1 d1 bias=y act=relu")
    assert build(cudnn, 5, wanted).uids == ("image", "weight", "bias", "activated")
    assert len(cudnn.asked["deselect_numeric_notes"][0]) == len(wanted.excluded)
    assert cudnn.asked["deselect_workspace_greater_than"] == (256 << 20,)


def test_execution_passes_addresses_in_the_order_of_the_arrays(monkeypatch):
    cudnn = FakeCudnn(("a", 0, False), ("b", 0, True))
    cudnn.create_handle = lambda: 3
    monkeypatch.setitem(sys.modules, "cudnn", cudnn)
    driver = Driver()
    driver.execute(0, 7, driver.plan(0, graph(TEXT)), [10, 20, 30], 900)
    assert cudnn.executed == [({"image": 10, "weight": 20, "sums": 30}, 900, 1, 3)]


def test_a_call_runs_on_the_stream_of_its_first_array_which_waits_for_the_others(monkeypatch):
    import numconv_cudnn.driver as module

    used, waited = [], []
    device = SimpleNamespace(getDevice=lambda: 2)
    cuda = SimpleNamespace(runtime=device, Device=lambda number: used.append(number) or contextlib.nullcontext())
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, "cudnn", FakeCudnn())
    monkeypatch.setattr(module, "cupy_stream", lambda array: contextlib.nullcontext())
    monkeypatch.setattr(module, "cupy_view", waited.append)
    one, two = (DeviceArray("owner", 4096, (3,), (4,), np.dtype(np.float32), stream) for stream in (9, 8))
    driver = Driver()
    assert driver.place([one, one]) == (2, 9)
    assert waited == []
    assert driver.place([two, one]) == (2, 8)
    assert waited == [two, one]
    default = DeviceArray("owner", 4096, (3,), (4,), np.dtype(np.float32))
    assert driver.place([default]) == (2, 0)
    assert [driver.address(each) for each in (one, SimpleNamespace(data=SimpleNamespace(ptr=5)))] == [4096, 5]
    for number in (None, 2, 1):
        monkeypatch.setattr(module, "device_number", lambda array, number=number: number)
        driver.on_device_of(one)
    assert used == [1], "only where it is another"


@pytest.mark.parametrize(("engines", "words"), [([("a", 0, False)], "needs 8 channels"), ([], "heuristics name none")])
def test_no_engine_is_refused_with_its_words(engines, words):
    with pytest.raises(UnsupportedProblemError, match=rf"no engine for conv_fprop of image \(1, 3, 9, 8\) float32.*{words}"):
        build(FakeCudnn(*engines), 1, graph(TEXT))


def test_tuning_takes_the_fastest_engine_and_remembers_it(monkeypatch, tmp_path):
    import numconv_cudnn.driver as module

    memory = SimpleNamespace(data=SimpleNamespace(ptr=64))
    runtime = SimpleNamespace(getDevice=lambda: 0, getDeviceProperties=lambda device: {"name": b"a device"})
    cupy = SimpleNamespace(full=lambda *a: memory, empty=lambda *a: memory, cuda=SimpleNamespace(runtime=runtime))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setenv("NUMCONV_CACHE_DIR", str(tmp_path))
    times = iter((3.0, 1.0, 2.0))
    monkeypatch.setattr(module, "_seconds", lambda run: next(times))
    timed = graph_of(parse(TEXT), "channels_first", timed=True)
    cudnn = FakeCudnn(("a", 0, True), ("bad", 0, False), ("b", 5, True), ("c", 0, True))
    plan = build(cudnn, 1, timed)
    assert (plan.index, plan.workspace) == (2, 5)
    cudnn.built.clear()
    assert build(cudnn, 1, timed).index == 2, "from the file: nothing is left to time"
    assert cudnn.built == [2]


def test_tuning_is_asked_for_where_an_executor_is_built():
    implementation = Convolution(ReferenceDriver())
    asked = []
    for tune in (False, True):
        with nc.using(tune=tune):
            asked.append(implementation.build(parse(TEXT))._timed)
    assert asked == [False, True]


# --- the driver ---------------------------------------------------------------------------------------------------------------


def test_the_driver_shares_plans_and_bounds_them(monkeypatch):
    import numconv_cudnn.driver as module

    built = []
    monkeypatch.setitem(sys.modules, "cudnn", SimpleNamespace())
    monkeypatch.setattr(Driver, "_handle", lambda self, device: SimpleNamespace(on=lambda stream: 1))
    monkeypatch.setattr(module, "build", lambda cudnn, handle, graph: built.append(graph) or Plan(None, 0, (), 0, 40))
    driver, graphs = Driver(limit=100), [graph(f"conv forward f32 n{n} c3 k4 g1 in9 w3 s1 p0 d1") for n in (1, 2, 3)]
    for each in (0, 1, 0, 2, 0, 1):
        driver.plan(0, graphs[each])
    assert built == [graphs[0], graphs[1], graphs[2], graphs[1]], "two fit, and the least recently used is dropped"
    driver.plan(1, graphs[1])
    assert len(built) == 5, "another device has plans of its own"


def test_each_thread_has_a_handle_of_its_own(monkeypatch):
    made, streams, destroyed = [], [], []
    cudnn = SimpleNamespace(
        create_handle=lambda: made.append(len(made) + 1) or made[-1],
        set_stream=lambda handle, stream: streams.append((handle, stream)),
        destroy_handle=destroyed.append,
    )
    monkeypatch.setitem(sys.modules, "cudnn", cudnn)
    driver = Driver()

    def handles(*wanted):
        return [driver._handle(device).on(stream) for device, stream in wanted]

    assert handles((0, 7), (0, 7), (0, 8)) == [1, 1, 1]
    thread = threading.Thread(target=lambda: handles((0, 9), (1, 9)))
    thread.start()
    thread.join()
    assert streams == [(1, 7), (1, 8), (2, 9), (3, 9)], "set where it changes"
    assert sorted(destroyed) == [2, 3]


def test_a_launch_hands_its_numbers_to_the_driver_in_a_row(monkeypatch):
    import numconv_cudnn.driver as module

    launched = []

    def launch_kernel(function, *rest):
        *grid, shared, stream, parameters, extra = rest
        kinds = (ctypes.c_uint64 * 5).from_address(extra)
        size = ctypes.c_uint64.from_address(kinds[3]).value
        numbers = list((ctypes.c_int64 * (size // 8)).from_address(kinds[1]))
        launched.append((function, grid, shared, stream, parameters, (kinds[0], kinds[2], kinds[4]), numbers))

    monkeypatch.setattr(module, "_driver", lambda: SimpleNamespace(launchKernel=launch_kernel))
    launch = module._Launcher(0, None)
    launch._functions["look"] = 77
    launch("look", 5, (1 << 40, -3), 9, array("q", (11, 12)))
    # CU_LAUNCH_PARAM_BUFFER_POINTER, CU_LAUNCH_PARAM_BUFFER_SIZE and CU_LAUNCH_PARAM_END are 1, 2 and 0
    assert launched == [(77, [5, 1, 1, THREADS, 1, 1], 0, 9, 0, (1, 2, 0), [11, 12, 1 << 40, -3])]


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
import json, sys
import cudnn
from numconv.plugin import parse
from numconv_cudnn import driver
from numconv_cudnn.translation import graph_of

class Validated(Exception):
    pass

def stop(self):
    raise Validated

found = []
cudnn.pygraph.build_operation_graph = stop  # from here on a device is needed
tensors = {}
add = driver._add
def recorded(built, node, known):
    tensors[node.output] = add(built, node, known)
    return tensors[node.output]
driver._add = recorded
for text, layout, fused in json.load(sys.stdin):
    try:
        driver.build(cudnn, 1, graph_of(parse(text), layout, fused))
    except Validated:
        found.append({name: tensor.get_dim() for name, tensor in tensors.items()})
    tensors.clear()
json.dump(found, sys.stdout)
"""


@pytest.mark.skipif(importlib.util.find_spec("cudnn") is None, reason="the package nvidia-cudnn-frontend is not installed")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler: it makes a libcudnn that only tells its version")
def test_the_frontend_validates_every_graph(tmp_path):
    (tmp_path / "stub.cpp").write_text(_STUB)
    subprocess.run(["g++", "-shared", "-fPIC", "-o", tmp_path / "libcudnn.so.9", tmp_path / "stub.cpp"], check=True)
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    cases = [(text, layout, fused) for text in SUPPORTED for layout in LAYOUTS for fused in (True, False)]
    done = subprocess.run(
        [sys.executable, "-c", _VALIDATE], input=json.dumps(cases), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for case, dims in zip(cases, json.loads(done.stdout), strict=True):
        wanted = graph_of(parse(case[0]), *case[1:])
        assert set(dims) == {tensor.name for tensor in wanted.made}, case
        assert all(tuple(each) == wanted.output.dims for each in dims.values()), case
