"""The CUDA C++ kernels of the CuPy backend without a GPU: run on the host by a C++ compiler, compiled for devices by NVRTC."""

import importlib.util
import struct

import numpy as np
import pytest
from numconv_cupy.bias import slices_layout
from numconv_cupy.columns import block_layout, border_layout
from numconv_cupy.direct import Direct, redo
from numconv_cupy.flags import redo_nonfinite
from numconv_cupy.host_device import HostDevice
from numconv_cupy.on_host import HostKernels, compiler
from numconv_cupy.planes import Depthwise, FewChannels, layout_of
from numconv_cupy.pooling import Pool
from numconv_cupy.source import _FILES, _TYPES, kernel, source_of
from numconv_cupy.tiled import TILES as BLOCK_TILES
from numconv_cupy.tiled import TensorCores, Tiled, cut_of
from numconv_cupy.transforms import spectra_layout
from numconv_cupy.windows import Windows
from numconv_cupy.winograd import Winograd, parts_of

from numconv.plugin import UnsupportedProblemError, Verdict, accumulator, np_dtype, parse
from numconv.testing import BackendContract, check, inputs

NO_COMPILER = "" if compiler() else "no C++ compiler: neither g++ nor clang++"
needs_compiler = pytest.mark.skipif(bool(NO_COMPILER), reason=NO_COMPILER or "there is one")
KERNELS = HostKernels()


class OnHost:
    """The implementations that are kernels, on NumPy arrays."""

    name, device, automatic, version = "cupy-kernels", "cpu", False, "0"

    def availability(self):
        return Verdict.no(NO_COMPILER) if NO_COMPILER else Verdict.yes()

    def implementations(self):
        return (
            Depthwise(KERNELS),
            FewChannels(KERNELS),
            TensorCores(KERNELS),
            Tiled(KERNELS),
            Direct(KERNELS),
            Pool(KERNELS),
            Windows(KERNELS),
        )


class TestCupyKernelsOnHost(BackendContract):
    backend = OnHost()
    levels = ("strict",)
    forms = ("mixed", "non-contiguous")


class WinogradOnHost(OnHost):
    """Its transforms on the host, its products by NumPy."""

    name = "cupy-winograd"

    def implementations(self):
        return (Winograd(HostDevice(KERNELS)),)


class TestCupyWinogradOnHost(BackendContract):
    backend = WinogradOnHost()
    levels = ("default",)
    forms = ("mixed", "non-contiguous")
    problems = (
        "conv forward f32 n2 c8 k6 g1 in13x19 w3x3 s1 p1 d1",
        "conv forward f32 n2 c33 k18 g1 in8x4 w3x3 s1 p0 d1 bias=y act=silu",
        "conv forward f64 n3 c8 k6 g2 in7x5 w3x3 s1 p0:2x2:1 d1 pad=reflect flip=y",
        "conv forward f16 n1 c5 k4 g1 in14x14 w3x3 s1 p1 d1",
        "conv input_grad f32 n2 c8 k6 g1 in13x19 w3x3 s1 p1 d1",
        "conv input_grad f64 n3 c8 k12 g2 in7x5 w3x3 s1 p0:2x2:1 d1 flip=y",
        "conv weight_grad f32 n3 c80 k12 g2 in47x25 w3x3 s1 p1 d1",
        "conv weight_grad f64 n3 c8 k12 g2 in7x5 w3x3 s1 p0:2x2:1 d1 flip=y bias=y pad=circular",
    )


@needs_compiler
@pytest.mark.parametrize("block", [1 << 16, 1 << 20, 1 << 30])
def test_images_and_parts_of_winograd(monkeypatch, block):
    """Images a block at a time, the last ones fewer, and gradients for w in parts."""
    monkeypatch.setattr("numconv_cupy.winograd.BLOCK_BYTES", block)
    problem = parse("conv forward f32 n5 c8 k6 g1 in13x19 w3x3 s1 p1 d1")
    assert WinogradOnHost().implementations()[0].workspace(problem) <= block + (1 << 17)
    check(problem, WinogradOnHost(), rng=np.random.default_rng(5))
    gradient = parse("conv weight_grad f32 n9 c8 k12 g1 in47x49 w3x3 s1 p1 d1")
    assert parts_of(gradient) == {1 << 16: 1, 1 << 20: 1, 1 << 30: 5}[block]  # of 156 tiles an image
    check(gradient, WinogradOnHost(), rng=np.random.default_rng(6))


@needs_compiler
@pytest.mark.parametrize(
    "text",
    [
        "conv forward f32 n2 c8 k16 g2 in19x23 w5x3 s1 p2 d1",
        "conv forward f32 n2 c6 k12 g6 in21x30 w5x5 s2 p2 d2 pad=reflect",
        "conv input_grad c64 n1 c3 k4 g1 in9x8 w3x3 s1 p1 d1",
    ],
)
def test_all_tiles_give_the_same_bits(text):
    problem = parse(text).replace(accuracy="strict")
    arrays = inputs(problem, np.random.default_rng(3), integer=False)
    found = []
    for each in (Depthwise(KERNELS), FewChannels(KERNELS), Tiled(KERNELS), Direct(KERNELS)):
        if problem.op in each.ops and each.supports(problem):
            out = np.empty(problem.output_shapes[0], problem.out_dtype)
            each.build(problem)([out], arrays)
            found.append(out.tobytes())
    assert len(found) > 1
    assert len(set(found)) == 1


@needs_compiler
@pytest.mark.parametrize("op", ["pool max_pool_backward", "pool lp_pool_backward", "window max_unpool_backward"])
def test_blocks_of_channels_under_a_small_limit(op):
    target = " target=4x5" if "unpool" in op else ""
    window, padding = ("w1x1", "p0") if target else ("w3x2", "p1x0")
    problem = parse(f"{op} f32 n3 c5 in9x8 {window} s{'1' if target else '2'} {padding} d1{target}").replace(max_workspace=4000)
    assert 0 < max(each.workspace(problem) for each in OnHost().implementations() if problem.op in each.ops) <= 4000
    check(problem, OnHost(), rng=np.random.default_rng(4))


@needs_compiler
def test_parts_of_a_weight_gradient_follow_the_problem():
    problem = parse("conv weight_grad f32 n2 c2 k3 g1 in64x48 w3x3 s1 p1 d1 bias=y")
    counts = [Direct(KERNELS).workspace(problem.replace(**change)) // (4 * 54) for change in ({}, {"accuracy": "strict"})]
    assert counts == [24, 1]
    assert Direct(KERNELS).workspace(problem.replace(max_workspace=1000)) <= 1000
    for change in ({}, {"max_workspace": 1000}):
        check(problem.replace(**change), OnHost(), "direct", rng=np.random.default_rng(5))


SUMS_IN_PARTS = [
    "conv forward f32 n1 c64 k30 g1 in7x7 w3x3 s1 p1 d1 bias=y act=silu",
    "conv input_grad f32 n1 c4 k70 g1 in15x13 w7x7 s2 p3 d1 bias=x",
    "conv weight_grad f32 n2 c6 k10 g2 in41x40 w5x3 s3x2 p2 d2 flip=1 bias=y",
    "conv weight_grad c64 n2 c3 k4 g1 in9x8 w3x3 s1 p1 d1 pad=circular",
    "conv weight_grad f16 n2 c8 k9 g1 in13x19 w3x3 s1 p1 d1",
]


@needs_compiler
@pytest.mark.parametrize("text", SUMS_IN_PARTS)
def test_sums_in_parts(text):
    problem = parse(text)
    cut = cut_of(problem)
    assert 1 < cut.parts <= cut_of(problem.replace(max_workspace=1 << 40)).parts
    assert cut_of(problem.replace(accuracy="strict")).parts == 1
    little = problem.replace(max_workspace=cut.parts * 1000)
    assert Tiled(KERNELS).workspace(little) <= max(little.max_workspace, Direct(KERNELS).workspace(little))
    check(problem, OnHost(), "tiled", rng=np.random.default_rng(11))


@needs_compiler
@pytest.mark.parametrize("text", [
    "conv forward f16 n1 c40 k70 g1 in9x10 w3x3 s1 p1 d1", "conv input_grad bf16 n1 c6 k9 g1 in9x10 w3x3 s2 p1 d1",
    "conv weight_grad f32 n2 c6 k10 g2 in21x20 w5x3 s3x2 p2 d2 accuracy=fast",
])  # fmt: skip
def test_results_of_tensor_cores_are_where_they_belong(text):
    """The host has none: what each lane multiplies is not tested here, but where its results go."""
    check(parse(text), OnHost(), "tensor_cores", rng=np.random.default_rng(12))


def test_tensor_cores_are_for_what_tf32_holds_or_may_round():
    problem = parse("conv forward f32 n1 c8 k8 g1 in9 w3 s1 p1 d1")
    verdicts = [
        TensorCores(KERNELS).supports(problem.replace(**change))
        for change in (
            {},
            {"accuracy": "fast"},
            {"dtype": "float16", "out_dtype": "float16"},
            {"dtype": "float64", "out_dtype": "float64"},
        )
    ]
    assert [bool(each) for each in verdicts] == [False, True, True, False]
    assert "accuracy='fast'" in verdicts[0].reason


@needs_compiler
@pytest.mark.parametrize("text", [
    "conv weight_grad f32 n2 c6 k12 g6 in21x20 w5x3 s3x2 p2 d2 flip=1 bias=y",
    "conv weight_grad f32 n2 c2 k2 g2 in30x41 w11x11 s1 p5 d1", "conv weight_grad f32 n1 c1 k1 g1 in5000 w75 s1 p37 d1",
    "conv weight_grad f32 n1 c3 k5 g1 in6x7x9 w3x3x3 s1 p1 d1", "conv weight_grad c128 n2 c3 k3 g3 in9x8 w3x3 s1 p1 d1",
])  # fmt: skip
def test_weight_gradients_of_few_channels(text):
    problem = parse(text)
    name = "depthwise" if problem.c == problem.groups else "few_channels"
    check(problem, OnHost(), name, rng=np.random.default_rng(13))
    assert "strict" in Depthwise(KERNELS).supports(problem.replace(accuracy="strict", c=problem.groups)).reason


@needs_compiler
def test_a_kernel_that_does_not_fit_shared_memory_is_refused():
    problem = parse("conv forward f32 n1 c1 k1 g1 in160000 w16001 s1 p8000 d1")
    assert "does not fit 47104 bytes of shared memory" in Depthwise(KERNELS).supports(problem).reason
    wide = parse("conv forward f32 n1 c2 k2 g2 in60x90 w61x71 s1 p30x35 d1")
    assert layout_of(wide).memory <= 47104
    check(wide, OnHost(), "depthwise", rng=np.random.default_rng(14))


@needs_compiler
@pytest.mark.parametrize("kind", [Depthwise, FewChannels, Tiled, Direct])
def test_the_gradient_of_no_image_is_zero_whatever_memory_held(kind, monkeypatch):
    def held(array, shape, dtype):
        return np.full(shape, np.nan, np_dtype(dtype))

    for module in ("direct", "planes", "tiled"):
        monkeypatch.setattr(f"numconv_cupy.{module}.scratch", held)
    groups = 3 if kind is Depthwise else 1
    problem = parse(f"conv weight_grad f32 n2 c3 k3 g{groups} in13x9 w3x3 s1 p1 d1 bias=y").replace(n=0)
    outs = [np.full(shape, np.nan, np.float32) for shape in problem.output_shapes]
    kind(KERNELS).build(problem)(outs, [np.empty(shape, np.float32) for shape in problem.input_shapes])
    assert all((out == 0).all() for out in outs)


@needs_compiler
def test_an_image_without_a_flag_is_left_as_it_is():
    problem = parse("conv forward f32 n3 c2 k3 g1 in7x6 w3x3 s1 p1 d1")
    x, w = inputs(problem, np.random.default_rng(6))
    x[1, 0, 2, 3] = np.inf
    out = np.full(problem.y_shape, 7, np.float32)
    redo_nonfinite(redo(KERNELS, problem), problem, [out], [x, w], (0, 1))
    assert (out[[0, 2]] == 7).all()
    assert not (out[1] == 7).all()
    w[0, 0, 0, 0] = np.nan
    redo_nonfinite(redo(KERNELS, problem), problem, [out], [x, w], (0, 1))
    assert not (out[0] == 7).all()


@needs_compiler
def test_an_index_outside_the_volume_belongs_to_nobody():
    problem = parse("window max_unpool f32 n1 c1 in3x3 w1x1 s1 p0 d1 target=1x3")
    out = np.full((1, 1, 3, 3), np.nan, np.float32)
    values, indices = np.ones((1, 1, 1, 3), np.float32), np.array([[[[-1, 4, 9]]]])
    Windows(KERNELS).build(problem)([out], [values, indices])
    assert out.sum() == out[0, 0, 1, 1] == 1


def test_refusals_have_their_numbers():
    many = parse(f"conv forward f32 n1 c1 k1 g1 in{'x'.join('2' * 9)} w{'x'.join('1' * 9)} s1 p0 d1")
    with pytest.raises(UnsupportedProblemError, match="9 spatial dimensions; the kernels have at most 8"):
        check(many, OnHost(), "direct", rng=np.random.default_rng(1))
    long = parse("conv forward f32 n1 c1 k1 g1 in2000000000 w1 s1 p0 d1")
    assert "the kernels count in 32 bits" in Direct(KERNELS).supports(long).reason


# --- compiled for devices -------------------------------------------------------------------------------------------------------

COLUMN_KERNELS = tuple(name for name, file in _FILES.items() if file == "im2col.cu")
BIAS_KERNELS = ("sum_positions", "store_bias")
SPECTRA_KERNELS = tuple(name for name, file in _FILES.items() if file == "spectra.cu")
COLUMNS = {"STORED": 0, "COPIES": 0}
PLANES = {"GRADIENT": 0, "COPYING": 0, "SLIDE": 1, "REVERSED": 0, "KT": 1, "RT": 4, "TAPS": 3}
PRODUCT = {"OP": 0, "COPYING": 0, "MMA": 0}
TILES = {
    "conv_planes": (
        PLANES, PLANES | {"TAPS": 0}, PLANES | {"SLIDE": 0}, PLANES | {"GRADIENT": 1, "REVERSED": 1, "KT": 3, "RT": 2, "TAPS": 0},
    ),
    "conv_tiled": tuple(
        PRODUCT | BLOCK_TILES[4][0].macros | {"OP": op, "MMA": mma} for op, mma in ((0, 0), (0, 1), (1, 0), (2, 0))
    ),
    "conv_taps": ({"TH": 3, "TW": 3}, {"TH": 4, "TW": 7}),
    "sum_parts": (PRODUCT | BLOCK_TILES[4][0].macros | {"OP": 1},),
    "finish_products": (COLUMNS,),
    "repair_border": (COLUMNS,),
    "multiply_spectra": tuple({"GRADIENT": 0, "ROWS": rows, "COLUMNS": columns} for rows, columns in ((1, 1), (4, 4))),
    **{name: ({"GRADIENT": 0}, {"GRADIENT": 1}) for name in SPECTRA_KERNELS if name.endswith(("sources", "blocks"))},
    "store_gradient": ({"GRADIENT": 0},),
    "gather_columns": (COLUMNS | {"LAST": 3}, COLUMNS | {"LAST": 0, "COPIES": 1}),
    "add_columns": (COLUMNS | {"LAST": 3, "STRIDED": 0}, COLUMNS | {"LAST": 0, "STRIDED": 1}),
    "sum_gradients": (COLUMNS,),
    **{f"conv_winograd_{part}": ({"GRADIENT": 0}, {"GRADIENT": 1}) for part in ("input", "weights", "output")},
}  # fmt: skip
VARIANTS = [(name, tile) for name in _FILES for tile in TILES.get(name, ({},))]


def title(variant):
    name, tile = variant
    return " ".join([name, *(f"{key}{value}" for key, value in tile.items())])


@pytest.fixture(scope="module")
def nvrtc():
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("the package cupy is not installed: pip install 'numconv-nd[cupy]' nvidia-cuda-nvrtc")
    from cupy.cuda import nvrtc

    try:
        nvrtc.getVersion()
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"no NVRTC is found: {error}; pip install nvidia-cuda-nvrtc")
    return nvrtc


def example(name, dtype, ndim):
    ones = "x".join("1" * ndim)
    if name.startswith(("conv", "channel", "store", *COLUMN_KERNELS, *SPECTRA_KERNELS, *BIAS_KERNELS)):
        return parse(f"conv forward f32 n1 c1 k1 g1 in{ones} w{ones} s1 p0 d1").replace(dtype=dtype, out_dtype=dtype)
    return parse(f"window unfold f32 n1 c1 in{ones} w{ones} s1 p0 d1").replace(dtype=dtype, out_dtype=dtype)


def compiled(nvrtc, name, tile, dtype, ndim, arch):
    """The cubin of a kernel."""
    problem = example(name, dtype, ndim)
    if name in COLUMN_KERNELS:
        tile = {"BLOCK_BYTES": block_layout(ndim).itemsize, "BORDER_BYTES": border_layout(ndim).itemsize, **tile}
    if name in BIAS_KERNELS:
        tile = {"SLICES_BYTES": slices_layout(ndim).itemsize}
    if name in SPECTRA_KERNELS:
        tile = {"SPECTRA_BYTES": spectra_layout(ndim).itemsize, **tile}
    code = kernel(name, problem, tile)
    program = nvrtc.createProgram(source_of(name), f"{name}.cu", [], [])
    try:
        nvrtc.compileProgram(program, [f"-arch=sm_{arch}", "--std=c++17", *code.options])
        return nvrtc.getCUBIN(program)
    finally:
        nvrtc.destroyProgram(program)


REGISTERS, STACK = 0x2F, 0x11  # EIATTR_REGCOUNT and EIATTR_FRAME_SIZE


def resources(cubin):
    """(registers, bytes of stack, where spills go) of a thread of the only kernel in a cubin, which is an ELF file."""
    offset, size, count, names = (struct.unpack_from("<Q", cubin, 40)[0], *struct.unpack_from("<HHH", cubin, 58))
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, offset + i * size) for i in range(count)]
    strings = headers[names][4]

    def title(header):
        start = strings + header[0]
        return cubin[start : cubin.index(b"\0", start)].decode()

    info = next(header for header in headers if title(header) == ".nv.info")
    data, found, at = cubin[info[4] : info[4] + info[5]], {}, 0
    while at < len(data):
        form, attribute, length = struct.unpack_from("<BBH", data, at)
        if form == 4:  # followed by its value: a symbol and a number
            found[attribute] = struct.unpack_from("<I", data, at + 8)[0]
        at += 4 + (length if form == 4 else 0)
    return found[REGISTERS], found[STACK]


@pytest.mark.parametrize(("name", "tile"), VARIANTS, ids=map(title, VARIANTS))
@pytest.mark.parametrize("arch", [80, 90])
def test_every_kernel_compiles_for_a_device(nvrtc, name, tile, arch):
    """And fits the registers of a thread: what two dimensions need is not spilled, but for a few numbers."""
    registers, stack = resources(compiled(nvrtc, name, tile, "float32", 2, arch))
    assert 8 <= registers <= 128
    assert stack <= {"conv_tiled": 64, "conv_taps": 8}.get(name, 0)


@pytest.mark.parametrize("dtype", sorted(_TYPES))
def test_every_dtype_compiles_for_a_device(nvrtc, dtype):
    for name in (
        "conv_forward",
        "conv_tiled",
        "conv_planes",
        "conv_input_grad",
        "conv_weight_grad",
        "store_sums",
        "gather",
        "add_back",
    ):
        tile = TILES.get(name, ({},))[-1]
        if name == "conv_tiled":
            tile = tile | BLOCK_TILES[max(4, np_dtype(accumulator(dtype)).itemsize)][-1].macros | {"MMA": 0}
        assert resources(compiled(nvrtc, name, tile, dtype, 2, 90))[0] >= 8
