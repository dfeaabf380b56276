"""Prepared products of the CuPy backend without a GPU: its kernels run on the host, cuBLAS as its documentation says."""

import numconv_cupy.blocks
import numconv_cupy.columns
import numpy as np
import pytest
from numconv_cupy.blocks import is_prepared
from numconv_cupy.fft import Fft, FftDouble, arithmetic_of
from numconv_cupy.host_device import HostDevice
from numconv_cupy.on_host import HostKernels, compiler
from numconv_cupy.products import Matmul, Pointwise
from numconv_cupy.recipes import divisor
from numconv_cupy.transforms import is_transformed

from numconv.plugin import Verdict, parse
from numconv.testing import CONV_PROBLEMS, BackendContract, check, inputs

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: neither g++ nor clang++")
DEVICE = HostDevice(HostKernels())


def never(problem):
    """Nothing is computed again by another kernel."""
    return lambda outs, ins, flags=None, box=None: None


class PreparedFft(Fft):
    """Without what array operations compute in double precision."""

    def supports(self, problem):
        if not is_transformed(problem, arithmetic_of(problem, double=False)):
            return Verdict.no("in wider arithmetic by array operations")
        return super().supports(problem)


class Prepared:
    name, device, automatic, version = "cupy-prepared", "cpu", False, "0"

    def availability(self):
        return Verdict.yes()

    def implementations(self):
        return Pointwise(never, DEVICE), Matmul(never, DEVICE), PreparedFft(never, DEVICE)


class TestPreparedProducts(BackendContract):
    backend = Prepared()
    problems = tuple(text for text in CONV_PROBLEMS if is_prepared(parse(text)))
    levels = ("default",)
    forms = ("mixed",)


SIDES = {"forward": "y", "input_grad": "x", "weight_grad": "y"}
BLOCKED = (
    "conv {op} f32 n5 c4 k6 g1 in33x21 w3x3 s1 p1 d1 bias={side}",
    "conv {op} f32 n3 c4 k6 g2 in29x17 w4x3 s3x2 p2:0x1 d2x1",
    "conv {op} f64 n2 c6 k3 g3 in301 w9 s2 p0 d3 flip=1",
    "conv {op} f16 n7 c3 k5 g1 in9x8 w3x3 s1 p1 d1",
    "conv {op} f32 n4 c5 k7 g1 in12x9 w1x1 s1 p0 d1",
    "conv {op} f32 n1 c2 k3 g1 in64x48 w3x2 s1 p1x0 d1",
    "conv {op} f32 n3 c61 k67 g1 in17x16 w1x1 s1 p0 d1",
    "conv {op} f32 n2 c3 k4 g1 in5x6x7 w2x3x2 s1x2x1 p1 d1",
)


@pytest.mark.parametrize("limit", [8_000, 1 << 20])
@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("geometry", BLOCKED)
def test_blocks_of_every_size(geometry, op, limit, monkeypatch):
    """Blocks of rows, of images and of everything; what is asked of the device stays under what was said."""
    monkeypatch.setattr(numconv_cupy.blocks, "BLOCK_BYTES", limit)
    monkeypatch.setattr(numconv_cupy.columns, "_LEAST_TERMS", 16)
    asked = []
    monkeypatch.setattr(DEVICE, "buffer", lambda size: asked.append(size) or HostDevice.buffer(DEVICE, size))
    problem = parse(geometry.format(op=op, side=SIDES[op]))
    for each in Prepared().implementations():
        if op in each.ops and each.supports(problem):
            check(problem, Prepared(), each.name, rng=np.random.default_rng(3))
            assert max(asked, default=0) <= each.workspace(problem)
            asked.clear()


def test_images_are_one_batch_of_products_with_the_weights_in_common():
    problem = parse("conv forward f32 n8 c16 k12 g1 in20x20 w3x3 s1 p1 d1")
    DEVICE.products.clear()
    Matmul(never, DEVICE).build(problem)([np.empty(problem.y_shape, np.float32)], inputs(problem, np.random.default_rng(4)))
    assert {(product.batch, product.a[2], product.c) for product in DEVICE.products} == {(8, 0, (400, 12 * 400))}


@pytest.mark.parametrize(
    ("change", "tf32"),
    [({}, False), ({"accuracy": "high"}, False), ({"accuracy": "fast"}, True),
     ({"accuracy": "fast", "dtype": "float64", "out_dtype": "float64"}, False),
     ({"dtype": "float16", "out_dtype": "float16"}, False)],
)  # fmt: skip
def test_tf32_is_for_fast_products_of_single_precision(change, tf32):
    DEVICE.products.clear()
    problem = parse("conv forward f32 n1 c3 k4 g1 in9 w3 s1 p0 d1").replace(**change)
    check(problem, Prepared(), "matmul", rng=np.random.default_rng(1))
    assert {product.tf32 for product in DEVICE.products} == {tf32}


def test_division_by_products():
    numbers = np.random.default_rng(2).integers(0, 2**31, 2000, dtype=np.uint64)
    for by in (1, 2, 3, 5, 7, 49, 64, 641, 3136, 2**16 + 1, 2**31 - 1):
        _, magic, shift, _ = divisor(by)
        assert 0 < magic < 2**32
        for value in (*numbers, *(np.uint64(v) for v in (0, by - 1, by, 2 * by - 1, 2**31 - 1) if v < 2**31)):
            assert (((value * np.uint64(magic)) >> np.uint64(32)) + value) >> np.uint64(shift) == value // np.uint64(by)


@pytest.mark.parametrize("limit", [900, 1 << 20])
def test_what_met_padding_is_computed_again_and_what_is_not_finite_stays(limit, monkeypatch):
    monkeypatch.setattr(numconv_cupy.blocks, "BLOCK_BYTES", limit)
    problem = parse("conv forward f32 n2 c2 k3 g1 in7x6 w3x3 s1 p1 d1")
    x, w = inputs(problem, np.random.default_rng(6))
    w[1, 0, 0, 0] = np.inf
    out = np.full(problem.y_shape, 7, np.float32)
    Matmul(never, DEVICE).build(problem)([out], [x, w])
    assert np.isfinite(out[:, 1, 0]).all(), "the first row reads padding with this tap"
    assert np.isfinite(out[:, [0, 2]]).all()
    assert not np.isfinite(out[:, 1, 1:, 1:]).any()


@pytest.mark.parametrize("limit", [50_000, 200_000])
@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("geometry", [
    "conv {op} f32 n5 c2 k3 g1 in33x41 w9x7 s1 p4x3 d1 bias={side}", "conv {op} f32 n3 c4 k6 g2 in57x43 w8x9 s2x1 p3:4x2 d2x1",
    "conv {op} f64 n2 c4 k4 g4 in301 w19 s2 p0 d3 flip=1", "conv {op} f16 n2 c1 k2 g1 in900 w133 s1 p66 d1",
])  # fmt: skip
def test_transforms_in_rounds(geometry, op, limit, monkeypatch):
    asked = []
    monkeypatch.setattr(DEVICE, "buffer", lambda size: asked.append(size) or HostDevice.buffer(DEVICE, size))
    problem = parse(geometry.format(op=op, side=SIDES[op])).replace(max_workspace=limit)
    fft = PreparedFft(never, DEVICE)
    if fft.workspace(problem) <= limit and fft.supports(problem):
        check(problem, Prepared(), "fft", rng=np.random.default_rng(3))
        assert 0 < max(asked) <= fft.workspace(problem)


@pytest.mark.parametrize("op", ["forward", "input_grad"])
@pytest.mark.parametrize("groups", [1, 2])
def test_channels_that_are_last_are_one_product(op, groups):
    problem = parse(f"conv {op} f32 n3 c4 k6 g{groups} in5x7 w1x1 s1 p0 d1 layout=channels_last")
    DEVICE.products.clear()
    check(problem, Prepared(), "pointwise", rng=np.random.default_rng(4))
    assert 105 in {product.rows for product in DEVICE.products}


@pytest.mark.parametrize("device", [None, DEVICE], ids=["arrays", "prepared"])
@pytest.mark.parametrize("change", [{}, {"n": 0}, {"n": 300}, {"accuracy": "fast"}, {"max_workspace": 3000}], ids=str)
def test_every_supported_problem_has_a_cost(change, device):
    """Complex numbers, empty batches and little memory too."""
    for text in CONV_PROBLEMS:
        problem = parse(text).replace(**change)
        for each in (Pointwise(never, device), Matmul(never, device), Fft(never, device), FftDouble(never, device)):
            if problem.op in each.ops and each.supports(problem):
                assert 1e-6 < each.cost(problem) < 100, each.name
                assert each.workspace(problem) >= 0
