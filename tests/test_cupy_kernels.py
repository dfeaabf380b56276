"""The CUDA C++ kernels of the CuPy backend without a GPU: run on the host by a C++ compiler, compiled for devices by NVRTC."""

import importlib.util
import struct

import numpy as np
import pytest
from numconv_cupy.bias import slices_layout
from numconv_cupy.columns import block_layout, border_layout
from numconv_cupy.direct import Depthwise, Direct, FewChannels, redo
from numconv_cupy.flags import redo_nonfinite
from numconv_cupy.on_host import HostKernels, compiler
from numconv_cupy.pooling import Pool
from numconv_cupy.source import _FILES, _TYPES, kernel, source_of
from numconv_cupy.tiled import Tiled, tile_of
from numconv_cupy.transforms import spectra_layout
from numconv_cupy.windows import Windows

from numconv.plugin import UnsupportedProblemError, Verdict, parse
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
        return (Depthwise(KERNELS), FewChannels(KERNELS), Tiled(KERNELS), Direct(KERNELS), Pool(KERNELS), Windows(KERNELS))


class TestCupyKernelsOnHost(BackendContract):
    backend = OnHost()
    levels = ("strict",)
    forms = ("mixed", "non-contiguous")


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
def test_a_repair_is_offered_to_other_plugins():
    problem = parse("conv weight_grad f32 n2 c2 k3 g1 in7x6 w3x3 s1 p1 d1")
    repair = Direct(KERNELS).repair(problem, (0,))
    grad_y, x = inputs(problem, np.random.default_rng(7))
    out = np.full(problem.w_shape, 7, np.float32)
    repair([out], [grad_y, x])
    assert (out == 7).all(), "everything is finite"
    grad_y[0, 1, 0, 0] = np.inf
    repair([out], [grad_y, x])
    expected = np.empty_like(out)
    Direct(KERNELS).build(problem)([expected], [grad_y, x])
    np.testing.assert_array_equal(out, expected)
    assert FewChannels(KERNELS).repair(problem.replace(op="forward"), ()) is not None


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
TILES = {
    "conv_forward": ({"KT": 1, "PT": 1, "SLIDE": 0}, {"KT": 8, "PT": 1, "SLIDE": 0}, {"KT": 1, "PT": 4, "SLIDE": 1}),
    "conv_input_grad": ({"KT": 1, "PT": 1, "SLIDE": 0}, {"KT": 8, "PT": 1, "SLIDE": 0}),
    "finish_products": (COLUMNS,),
    "repair_border": (COLUMNS,),
    "multiply_spectra": tuple({"GRADIENT": 0, "ROWS": rows, "COLUMNS": columns} for rows, columns in ((1, 1), (4, 4))),
    **{name: ({"GRADIENT": 0}, {"GRADIENT": 1}) for name in SPECTRA_KERNELS if name.endswith(("sources", "blocks"))},
    "store_gradient": ({"GRADIENT": 0},),
    "gather_columns": (COLUMNS | {"LAST": 3}, COLUMNS | {"LAST": 0, "COPIES": 1}),
    "add_columns": (COLUMNS | {"LAST": 3, "STRIDED": 0}, COLUMNS | {"LAST": 0, "STRIDED": 1}),
    "sum_gradients": (COLUMNS,),
    "conv_tiled": tuple({"GRADIENT": gradient, "WIDE": wide} for gradient, wide in ((0, 0), (0, 1), (1, 0))),
}
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
    code = kernel(name, problem, dict(tile_of(problem.acc_dtype)) | tile if name == "conv_tiled" else tile)
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
    """And fits the registers of a thread: nothing that three dimensions need is spilled, but results of `conv_tiled` are."""
    for ndim in (2, 3):
        registers, stack = resources(compiled(nvrtc, name, tile, "float32", ndim, arch))
        assert 8 <= registers <= (255 if name == "conv_tiled" else 128)
        assert stack == (64 * 4 if name == "conv_tiled" else 0)


@pytest.mark.parametrize("dtype", sorted(_TYPES))
def test_every_dtype_compiles_for_a_device(nvrtc, dtype):
    for name in ("conv_forward", "conv_tiled", "conv_input_grad", "conv_weight_grad", "store_sums", "gather", "add_back"):
        tile = TILES.get(name, ({},))[-1]
        assert resources(compiled(nvrtc, name, tile, dtype, 2, 90))[0] >= 8
