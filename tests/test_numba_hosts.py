"""What the kernels of the CPU know of processors other than the one at hand, and what they choose there."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir
from numba.core import cgutils
from numconv_numba.depthwise.depthwise_plans import rows_inside
from numconv_numba.microkernels import emit
from numconv_numba.microkernels.gemm import touched_lines

from numconv.plugin import parse

X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
PROCESSORS = {
    "haswell": (X86, "+avx,+avx2,+fma"),
    "znver3": (X86, "+avx,+avx2,+fma"),
    "alderlake": (X86, "+avx,+avx2,+fma"),
    "skylake-avx512": (X86, "+avx,+avx2,+fma,+avx512f,+avx512vl"),
    "znver4": (X86, "+avx,+avx2,+fma,+avx512f,+avx512vl,+avx512bf16"),
    "sapphirerapids": (X86, "+avx,+avx2,+fma,+avx512f,+avx512vl,+avx512bf16"),
    "nehalem": (X86, "+sse4.2"),
    "neoverse-n1": (ARM, "+neon"),
}


@pytest.fixture
def host_of(monkeypatch):
    """The host of a processor of this name."""

    def found(name):
        triple, features = PROCESSORS[name]
        codegen = SimpleNamespace(magic_tuple=lambda: (triple, name, features))
        target = SimpleNamespace(target_context=SimpleNamespace(codegen=lambda: codegen))
        monkeypatch.setattr(emit, "cpu_target", target)
        return emit.host.__wrapped__()

    return found


@pytest.mark.parametrize("name", PROCESSORS)
def test_tiles_fit_the_registers(host_of, name):
    """The accumulators, all vectors of the operand of which a term has fewer, and one of the other."""
    host = host_of(name)
    for one, other in itertools.chain(host.pixel_tiles, host.channel_tiles, host.sliding_tiles):
        assert one * other + min(one, other) + 1 <= host.registers, (one, other)
    assert any(channels == 1 for _, channels in host.pixel_tiles)
    assert any(positions == 1 for positions, _ in host.dot_tiles)


@pytest.mark.parametrize(
    ("name", "width", "registers", "kibibytes"),
    [
        ("haswell", 32, 16, (32, 256)),
        ("znver3", 32, 16, (32, 512)),
        ("alderlake", 32, 16, (48, 1024)),
        ("skylake-avx512", 64, 32, (32, 1024)),
        ("znver4", 64, 32, (32, 1024)),
        ("sapphirerapids", 64, 32, (48, 1024)),
        ("nehalem", 16, 16, (32, 256)),
        ("neoverse-n1", 16, 32, (32, 1024)),
    ],
)
def test_vectors_and_caches(host_of, name, width, registers, kibibytes):
    host = host_of(name)
    first, second = (size * 1024 for size in kibibytes)
    assert (host.width, host.registers, host.first_level, host.second_level) == (width, registers, first, second)
    assert 0 < host.resident < host.first_level
    assert host.near(3 * 2**18) * 4 == 3 * second


def test_all_lines_of_a_panel_are_fetched_wherever_it_begins():
    for item in (4, 8):
        for size in range(item, 512, item):
            most = max((start + size - 1) // 64 - start // 64 + 1 for start in range(0, 64, item))
            assert touched_lines(size, item) == most


def test_narrow_vectors_cross_fewer_lines_and_cost_less(host_of):
    wide, narrow, least = map(host_of, ("sapphirerapids", "haswell", "neoverse-n1"))
    places = range(0, 64, 4)
    for host in (wide, narrow, least):
        assert host.unaligned == 1 + sum(place + host.width > 64 for place in places) / len(places)
    assert 1 == wide.moving > narrow.moving > least.moving > least.width / wide.width


@pytest.mark.parametrize(
    "geometry",
    [
        "in9x9 w3x3 s1 p1 d1",
        "in28x28 w31x31 s1 p15 d1",
        "in20x7 w5x3 s3x1 p4x1 d2x1",
        "in6x6 w3x3 s1 p0 d1",
        "in4x5x6 w3x4x3 s2 p3 d1",
    ],
)
def test_rows_of_padding_are_not_counted(geometry):
    problem = parse(f"conv forward f32 n1 c4 k4 g4 {geometry}")
    rows = [
        0 <= q * problem.stride[-2] - problem.padding[-2][0] + r * problem.dilation[-2] < problem.spatial[-2]
        for q in range(problem.output[-2])
        for r in range(problem.kernel[-2])
    ]
    assert rows_inside(problem) == pytest.approx(sum(rows) / len(rows))
    assert rows_inside(problem.replace(pad_mode="replicate")) == 1


CHOICES = """
import json, sys
from numconv.plugin import parse
from numconv.registry import default_registry

def chosen(text):
    found = [each for each in default_registry().candidates(parse(text), "cpu", "numba", None) if each.verdict.ok]
    return min(found, key=lambda each: each.cost).implementation.name

print(json.dumps([chosen(text) for text in sys.argv[1:]]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.uname().machine != "x86_64", reason="forces x86 processors")
def test_the_choice_with_avx2(tmp_path):
    """Where what vectors of 64 bytes cost would lead to an algorithm that takes 1.2 to 2.5 times as long; and a late layer."""
    expected = {
        "conv forward f32 n1 c384 k384 g384 in28x28 w31x31 s1 p15 d1": "depthwise",
        "conv forward f32 n1 c64 k256 g1 in56x56 w1x1 s1 p0 d1": "implicit_gemm",
        "conv weight_grad f32 n1 c256 k256 g1 in14x14 w3x3 s1 p1 d1": "winograd",
        "conv input_grad f32 n1 c512 k512 g1 in7x7 w3x3 s1 p1 d1": "fused_winograd",  # 0.94 of the time of winograd
    }
    environment = os.environ | {
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c",
        "NUMCONV_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", CHOICES, *expected], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert dict(zip(expected, json.loads(done.stdout), strict=True)) == expected


@pytest.mark.parametrize("name", ["neoverse-n1", "haswell"])
def test_some_lanes_are_loaded_and_stored(host_of, monkeypatch, name):
    """With masks, and around them: lanes that are off stay as they are, and what is not loaded is zero."""
    host = host_of(name)
    monkeypatch.setattr(emit, "host", lambda: host)
    module, lanes = ir.Module(), 4
    module.triple = llvm.get_process_triple()
    kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, cgutils.voidptr_t, ir.IntType(64), ir.IntType(64)])
    function = ir.Function(module, kind, "move")
    builder = ir.IRBuilder(function.append_basic_block())
    emitter, (source, target, read, written) = emit.Emitter(builder, "float32", lanes), function.args
    emitter.store_masked(emitter.load_masked(source, emitter.first(read)), target, emitter.first(written))
    builder.ret_void()
    machine = llvm.Target.from_triple(module.triple).create_target_machine()
    with llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), machine) as engine:
        move = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 2)(engine.get_function_address("move"))
        x = np.arange(1, lanes + 1, dtype="float32")
        for counts in itertools.product(range(lanes + 1), repeat=2):
            y = np.full(lanes, -1, "float32")
            move(x.ctypes.data, y.ctypes.data, *counts)
            loaded = np.where(np.arange(lanes) < counts[0], x, 0)
            np.testing.assert_array_equal(y, np.where(np.arange(lanes) < counts[1], loaded, -1))


SPILLS = r"""
import json, re
from numconv_numba.compiling.compiler import compiling
from numconv_numba.microkernels import dots, emit, gemm, patch_product, product, sliding, tiles
from numconv_numba.compiling.parts import Draft

def spilled(code):
    # (multiply-adds, vectors stored to the stack) of each innermost loop: a jump back, and no label between that is jumped back to
    lines, labels, loops = code.splitlines(), {}, []
    for number, line in enumerate(lines):
        if label := re.match(r"(\.LBB\w+):", line):
            labels[label[1]] = number
        elif (jump := re.match(r"\s+j\w+\s+(\.LBB\w+)", line)) and jump[1] in labels:
            loops.append((labels[jump[1]], number))
    inner = [(a, b) for a, b in loops if not any((a, b) != (c, d) and a <= c and d <= b for c, d in loops)]
    counts = [
        (sum("vfmadd" in each for each in lines[a:b]), sum(bool(STORE.search(each)) for each in lines[a:b])) for a, b in inner
    ]
    return [each for each in counts if each[0]]

STORE = re.compile(r"\sv?mov\w+\s+%[xyz]mm\d+, -?\w*\(%rsp\)")
host, lanes = emit.host(), emit.lanes_of("float32")
kernels = [(product.product, ((*tile, lanes), "float32")) for tile in host.channel_tiles]
kernels += [(tiles.multiply_tiles, ((*tile, lanes), "float32")) for tile in host.pixel_tiles]
kernels += [(sliding.slide, ((*tile, lanes, False), ("float32", "float32"))) for tile in host.sliding_tiles[:1]]
kernels += [(gemm.multiply, ((*host.pixel_tiles[1], lanes), ("float32", "float32"))), (dots.dots, (lanes, "float32"))]
kernels += [(patch_product.patch_product, ((*host.pixel_tiles[0], lanes, 4, taps, 1), "float32")) for taps in (2, 4)]
with compiling():
    found = {
        f"{kernel.name} {tags}": spilled(Draft.of("one", [kernel.part(tags, python=False)]).assembly())
        for kernel, tags in kernels
    }
print(json.dumps(found))
"""


def test_no_accumulator_of_a_tile_is_spilled_with_avx2(run_on):
    """By the machine code: a loop that multiplies stores no vector to the stack."""
    found = json.loads(run_on("haswell", SPILLS))
    assert len(found) > 8
    for kernel, loops in found.items():
        assert max(loops, default=[0])[0] >= 8, kernel
        assert all(stored == 0 for _, stored in loops), (kernel, loops)


def test_slow_masks_are_told(host_of):
    """16 bits have none with AVX2, whose stores are slow on some processors."""
    wide, narrow, least = map(host_of, ("skylake-avx512", "haswell", "nehalem"))
    cases = list(itertools.product((2, 4, 8), (False, True)))
    assert all(wide.masks(item, write=write) for item, write in cases)
    assert [narrow.masks(item, write=write) for item, write in cases] == [False, False, True, False, True, False]
    assert not any(least.masks(item, write=write) for item, write in cases)
