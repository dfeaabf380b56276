"""Matrix tiles (AMX): emulated results by the whole contract, the machine code for a processor that has them, and the switch."""

import ctypes
import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import ml_dtypes
import numpy as np
import pytest

import numconv as nc
from numconv.plugin import np_dtype, parse
from numconv.testing import CONV_PROBLEMS, BackendContract, candidates, check, inputs

if "numba" not in {info.name for info in nc.backends() if info.available}:
    pytest.skip("the backend numba is not available", allow_module_level=True)

from numconv_numba.matrix_tiles import amx
from numconv_numba.matrix_tiles.tiled_gemm import MEASURED_ERROR
from numconv_numba.microkernels.amx import COUNTS, EMULATED, PROCESSOR, configuration, tile_registers
from numconv_numba.microkernels.amx_gemm import PRODUCTS, layers_of

TILED = {"forward": "implicit_gemm_amx", "input_grad": "implicit_gemm_amx", "weight_grad": "blocked_amx"}
SAPPHIRE_RAPIDS = {
    "NUMBA_CPU_NAME": "sapphirerapids",
    "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c,+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512bf16,+amx-tile,+amx-bf16",
}
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux") or os.uname().machine != "x86_64", reason="Linux on x86-64 only")


@pytest.fixture
def switch(monkeypatch):
    """Sets NUMCONV_AMX for a test."""

    def to(value):
        monkeypatch.setenv(amx.VARIABLE, value) if value else monkeypatch.delenv(amx.VARIABLE, raising=False)
        amx.forget()

    yield to
    monkeypatch.undo()
    amx.forget()


@pytest.fixture
def emulated(switch):
    """Tiles are emulated."""
    switch("emulate")


def float_problems(op):
    """Of the contract, those whose sums tiles can hold, and some that fill several tiles, steps of terms, panels and layers."""
    rows = [text for text in CONV_PROBLEMS if re.match(rf"conv {op} b?f(16|32) ", text) and " f16 " not in text]
    more = {
        "forward": (
            "bf16 n2 c7 k19 g1 in13x18 w3x3 s1 p1 d1 bias=y act=relu",
            "bf16 n1 c34 k70 g1 in11x37 w1x1 s1 p0 d1 out=f32",
            "f32 n2 c22 k35 g1 in9x13 w3x3 s1 p1 d1 bias=y act=silu",
            "f32 n1 c130 k18 g1 in5x37 w1x1 s1 p0 d1",
        ),
        "input_grad": ("bf16 n2 c7 k9 g1 in12x17 w3x3 s2 p1 d1", "f32 n1 c10 k44 g2 in9x9 w3x3 s2 p1 d1"),
        "weight_grad": ("bf16 n1 c6 k70 g1 in12x70 w1x1 s1 p0 d1", "f32 n2 c4 k70 g2 in9x33 w3x2 s1 p1 d1 bias=y"),
    }[op]
    return [*rows, *(f"conv {op} {text}" for text in more)]


@pytest.mark.usefixtures("emulated")
class TestEmulatedTiles(BackendContract):
    backend = "numba"
    problems: ClassVar = tuple(text for op in TILED for text in float_problems(op))
    levels: ClassVar = ("default", "high")
    forms: ClassVar = ("C-contiguous", "mixed")

    def pytest_generate_tests(self, metafunc):
        """Of what is computed while tiles are emulated."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(amx.VARIABLE, "emulate")
            amx.forget()
            super().pytest_generate_tests(metafunc)
        amx.forget()

    def _implementations(self):
        return [each for each in super()._implementations() if each.name in TILED.values()]


@pytest.mark.usefixtures("emulated")
def test_every_configuration_is_released(rng):
    for op, name in TILED.items():
        check(parse(float_problems(op)[-1]), "numba", name, rng=rng)
    counts = [configuration(rows)[COUNTS:].view(np.int64) for rows in range(1, 33)]
    assert sum(configured for configured, _ in counts) > 0
    assert all(configured == released for configured, released in counts)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("op", TILED)
def test_threads_change_no_bit(op, rng):
    text = {"forward": "f32 n2 c32 k40 g1 in40x41 w3x3 s1 p1 d1", "input_grad": "f32 n1 c34 k32 g1 in40x41 w3x3 s1 p1 d1"}
    problem = parse(f"conv {op} {text.get(op, 'bf16 n2 c9 k40 g1 in40x41 w3x3 s1 p1 d1')}")
    arrays, found = inputs(problem, rng, integer=False), []
    row = next(each for each in candidates(problem, "numba") if each.algorithm == TILED[op])
    for threads in (1, 2):
        out = np.empty(problem.output_shapes[0], np_dtype(problem.out_dtype))
        with nc.using(threads=threads):
            row.implementation.build(problem)((out,), arrays)
        found.append(out.tobytes())
    assert found[0] == found[1]


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("kind", ["normal", "positive", "unequal"])
@pytest.mark.parametrize(
    "row", ["c7 k20 g1 in9x33 w3x3 s1 p1 d1", "c64 k20 g1 in5x33 w1x1 s1 p0 d1", "c555 k32 g1 in5x6 w3x3 s1 p1 d1"]
)
def test_layers_of_float32_keep_the_bound(kind, row, rng):
    problem = parse(f"conv forward f32 n1 {row}")
    x, w = (rng.standard_normal(shape) for shape in problem.input_shapes)
    if kind == "positive":
        x, w = abs(x), abs(w)
    elif kind == "unequal":
        x, w = (each * np.exp2(rng.integers(-20, 21, each.shape)) for each in (x, w))
    x, w = x.astype(np.float32), w.astype(np.float32)
    options = {"padding": problem.padding[0][0], "backend": "numba"}
    y = nc.conv(x, w, algorithm="implicit_gemm_amx", **options)
    exact, magnitude = (nc.conv(of(x).astype("f8"), of(w).astype("f8"), **options) for of in (np.positive, np.abs))
    # where one term outweighs all others, its three products have the error of one: what two layers leave, and their least product
    assert (abs(y - exact) / magnitude).max() < (2.0**-15 if kind == "unequal" else MEASURED_ERROR["float32"])


@pytest.mark.usefixtures("emulated")
def test_what_is_tiny_counts_as_zero_and_what_is_huge_as_itself():
    x = np.full((1, 64, 1, 40), 2.0**-130, np.float32)
    w = np.ones((20, 64, 1, 1), np.float32)
    options = {"backend": "numba", "algorithm": "implicit_gemm_amx"}
    assert not nc.conv(x, w, **options).any()
    # rounded to bfloat16 these are infinite
    x[...] = np.finfo(np.float32).max
    np.testing.assert_array_equal(nc.conv(x, w * np.float32(2.0**-10), **options), x[0, 0, 0, 0] * np.float32(2.0**-4))
    x[0, 0, 0, :3] = np.inf, -np.inf, np.nan
    y = nc.conv(x, w * np.float32(2.0**-10), **options)
    np.testing.assert_array_equal(y[..., :3], np.broadcast_to(x[0, 0, 0, :3], y[..., :3].shape))
    assert np.isfinite(y[..., 3:]).all()


@pytest.mark.usefixtures("emulated")
def test_the_emulated_product_rounds_like_the_instruction():
    """Two chains of the numbers of pairs, each step rounded and flushed; then their sum; then that on the result."""
    product = emulated_product()
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal((16, 32)).astype(ml_dtypes.bfloat16) for _ in range(2))
    a[0, :4], b[:, 0] = 2.0**-128, 3.0  # a subnormal number
    a[1], b[0] = 2.0**-70, 2.0**-60  # products that are
    c = rng.standard_normal((16, 16)).astype(np.float32)
    expected = c.copy()
    for m in range(16):
        chains = np.zeros((2, 16), np.float32)
        for k in range(16):
            for half in range(2):
                left, right = (flushed(each) for each in (a[m, 2 * k + half].astype("f4"), b[k, half::2].astype("f4")))
                chains[half] = flushed((chains[half].astype("f8") + left.astype("f8") * right.astype("f8")).astype("f4"))
        expected[m] = flushed(flushed(expected[m]) + flushed(chains[0] + chains[1]))
    product(c, a, b)
    np.testing.assert_array_equal(c, expected)


def flushed(numbers):
    return np.where(abs(numbers) < np.float32(2.0**-126), np.float32(0), numbers)


def emulated_product():
    """c += a * b on one tile of each."""
    from numba import types
    from numconv_numba.compiling.compiler import Address, Tag, intrinsic, kernel

    @intrinsic
    def emit(typingctx, body, c, a, b):
        def codegen(context, builder, sig, args):
            from llvmlite import ir

            tiles, width, rows = tile_registers(builder, body.value), ir.IntType(64)(64), ir.IntType(64)(16)
            for number, place in zip((0, 4, 6), args[1:], strict=True):
                tiles.load(number, place, width, rows)
            tiles.multiply(0, 4, 6, rows)
            tiles.store(0, args[1], width, rows)
            return context.get_dummy_value()

        return types.void(body, c, a, b), codegen

    @kernel
    def product(body: Tag, c: Address, a: Address, b: Address):
        emit(body, c, a, b)

    return product.specialise(EMULATED)


def test_the_emulation_is_never_chosen_by_cost(switch):
    text = "conv forward f32 n1 c64 k64 g1 in56x56 w3x3 s1 p1 d1"
    switch("")
    before = [each.algorithm for each in candidates(parse(text), "numba") if each.verdict and "amx" not in each.algorithm]
    switch("emulate")
    after = [each.algorithm for each in candidates(parse(text), "numba") if each.verdict]
    assert after == [*before, "implicit_gemm_amx"]


def test_a_change_of_the_environment_runs_no_instruction_that_was_not_checked(switch, monkeypatch):
    switch("emulate")
    assert amx.availability()
    monkeypatch.delenv(amx.VARIABLE)
    assert amx.body() == EMULATED


def test_the_switch_and_its_mistakes_are_told(switch):
    for value, reason in (("off", "NUMCONV_AMX=off"), ("of", "may be 'off', 'emulate' or not set")):
        switch(value)
        verdict = tiled_verdict("conv forward f32 n1 c4 k4 g1 in8 w3 s1 p1 d1")
        assert not verdict
        assert reason in verdict.reason
        assert reason in nc.registry.default_registry().backend("numba").information()["matrix tiles"]


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("op", TILED)
def test_levels_that_tiles_cannot_keep_leave_them_out(op):
    assert "high" in tiled_verdict(f"conv {op} bf16 n1 c64 k64 g1 in8 w3 s1 p1 d1 accuracy=high").reason
    assert tiled_verdict(f"conv {op} f32 n1 c64 k64 g1 in8 w3 s1 p1 d1 accuracy=high")
    assert not tiled_verdict(f"conv {op} f32 n1 c64 k64 g1 in8 w3 s1 p1 d1 accuracy=strict")


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("op", TILED)
@pytest.mark.parametrize("scales", [(0, -60), (-110, 0), (-48, -49)])
def test_the_level_high_keeps_what_is_small(op, scales, rng):
    problem = parse(f"conv {op} f32 n2 c9 k17 g1 in9x11 w3x3 s1 p1 d1 accuracy=high")
    arrays = [each * np.float32(2.0**scale) for each, scale in zip(inputs(problem, rng, integer=False), scales, strict=True)]
    arrays[0] = np.asfortranarray(arrays[0])
    results = []
    for change, backend, name in (({}, "numba", TILED[op]), ({"dtype": "float64", "out_dtype": "float64"}, "reference", None)):
        wide = problem.replace(**change)
        found = next(each for each in candidates(wide, backend) if name in (None, each.algorithm))
        results.append(np.empty(problem.output_shapes[0], wide.out_dtype))
        found.implementation.build(wide)((results[-1],), [each.astype(wide.dtype) for each in arrays])
    # relative to the norm of a sum that is about as large as its magnitude
    assert np.linalg.norm(results[0] - results[1]) < 1e-6 * np.linalg.norm(results[1])


def tiled_verdict(text):
    return next(each.verdict for each in candidates(parse(text), "numba") if each.algorithm == TILED[parse(text).op])


@on_linux
@pytest.mark.parametrize(
    ("answers", "reason"), [([-1], "Operation not"), ([0, -1], "though it said so"), ([0, 0], "though it said so")]
)
def test_a_refused_permission_is_a_reason(answers, reason, switch, monkeypatch):
    switch("")
    waiting = iter(answers)

    class Library:
        def syscall(self, *_):
            ctypes.set_errno(errno.EOPNOTSUPP)
            return next(waiting)

    monkeypatch.setattr(amx.ctypes, "CDLL", lambda *_, **__: Library())
    monkeypatch.setattr(amx, "_processor", amx.Verdict.yes)
    assert reason in amx.availability().reason


def test_a_wrong_product_is_a_reason(switch, monkeypatch):
    switch("")
    for name in ("_processor", "_permission"):
        monkeypatch.setattr(amx, name, amx.Verdict.yes)
    monkeypatch.setattr(amx, "product_errors", lambda kind: np.ones((2, 2)))
    assert "wrong in 4 of" in amx.availability().reason
    assert not amx.availability()


def test_the_check_of_a_product():
    assert not amx.product_errors(EMULATED).any()


def test_on_the_processor(switch, rng):
    switch("")
    if not (verdict := amx.availability()):
        pytest.skip(verdict.reason)
    assert amx.body() == PROCESSOR
    for op, name in TILED.items():
        for text in float_problems(op):
            for nonfinite in ((), (0,), (1,)):
                check(parse(text), "numba", name, rng=rng, nonfinite=nonfinite)


def bits(text, threads):
    """Of a result, on tiles."""
    problem = parse(text)
    out = np.full(problem.output_shapes[0], np.nan, np_dtype(problem.out_dtype))
    row = next(each for each in candidates(problem, "numba") if each.algorithm == TILED[problem.op])
    with nc.using(threads=threads):
        row.implementation.build(problem)((out,), inputs(problem, np.random.default_rng(4), integer=False))
    return out.tobytes()


def trapped_problems():
    """Few of them, for each instruction is a signal: all numbers of products, one strip and two, few channels and many."""
    texts = [each for op in TILED for each in float_problems(op)[-4:]]
    more = ("f32 n3 c1 k1 g1 in37 w5 s1 p2 d1", "f32 n1 c18 k40 g1 in6x37 w3x3 s1 p1 d1 accuracy=high")
    return [*texts, *(f"conv forward {text}" for text in more)]


def run_trapped():
    """On a processor without AMX: each result is right, and the same bits as emulated, for one thread and for two."""
    import amx_traps

    amx_traps.install()
    amx._processor = amx._permission = amx.Verdict.yes
    for text in trapped_problems():
        found = []
        for value, threads in (("", 1), ("", 2), ("emulate", 1)):
            os.environ[amx.VARIABLE] = value
            amx.forget()
            assert amx.availability(), amx.availability().reason
            assert amx.body() == (EMULATED if value else PROCESSOR)
            found.append(bits(text, threads))
        assert found[0] == found[1] == found[2], text
    counts, configured, mistakes = amx_traps.report()
    assert all(counts.values()), counts
    assert counts["ldtilecfg"] == counts["tilerelease"]
    assert (configured, mistakes) == (0, [])
    sys.stdout.write("done\n")


@on_linux
def test_the_machine_code_runs_by_traps(switch):
    """In a process of its own, for it answers a signal."""
    switch("")
    if amx.availability():
        pytest.skip("this processor has AMX: nothing traps")
    code = "import test_numba_amx; test_numba_amx.run_trapped()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("done\n"), f"ended with {done.returncode}: {done.stderr}"


@on_linux
def test_a_forked_child_asks_again():
    code = "import os; from numconv_numba.matrix_tiles import amx; amx.availability(); pid = os.fork()\n"
    code += "if pid == 0: os._exit(amx.availability.cache_info().currsize)\nassert os.waitpid(pid, 0)[1] == 0"
    subprocess.run([sys.executable, "-c", code], check=True)


COMPILED = """
from numconv_numba.microkernels import amx, amx_gemm, amx_product
from numconv_numba.compiling.parts import Draft, compiling
kinds = {
    "configure": (amx.configure, amx.PROCESSOR, None), "release": (amx.release, amx.PROCESSOR, None),
    "gemm": (amx_gemm.multiply_tiles, (amx.PROCESSOR, 3), "bfloat16, flushed"),
    "product": (amx_product.product_tiles, (4, 6), amx.PROCESSOR),
}
for name, (kernel, *tags) in kinds.items():
    print("kernel", name)
    with compiling():
        print(Draft.of(kernel.name, [kernel.part(tuple(tags), python=True)]).assembly())
"""


@on_linux
def test_the_machine_code_has_the_instructions_and_no_tile_moves(tmp_path):
    environment = os.environ | SAPPHIRE_RAPIDS | {"NUMCONV_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = {part.split("\n")[0]: part.split("\n")[1:] for part in done.stdout.split("kernel ")[1:]}
    found = {name: [tiles(line) for line in text if tiles(line)] for name, text in lines.items()}
    assert found["configure"] == [("ldtilecfg",)]
    assert found["release"] == [("tilerelease",)]
    # two strips of channels by two vectors of pixels: each product of a step after its loads, nothing between them
    assert contains(found["gemm"], expected_step(3, ((0, 4, 6), (1, 4, 7), (2, 5, 6), (3, 5, 7))))
    pairs = [("tileloadd", 6), ("tdpbf16ps", 0, 4, 6), ("tileloadd", 7), ("tdpbf16ps", 1, 4, 7)]
    pairs += [("tileloadd", 6), ("tdpbf16ps", 2, 4, 6), ("tileloadd", 7), ("tdpbf16ps", 3, 4, 7)]
    loads = [mine != other for mine, other in zip([a for a, _ in PRODUCTS[6]], [-1, *(a for a, _ in PRODUCTS[6])], strict=False)]
    assert contains(found["product"], [each for load in loads for each in [*[("tileloadd", 4)] * load, *pairs]])
    for name in ("gemm", "product"):
        assert {each[0] for each in found[name]} == {"tileloadd", "tilestored", "tilezero", "tdpbf16ps"}
        # sums alone are stored, and nothing where the compiler would save a register
        assert {each[1] for each in found[name] if each[0] == "tilestored"} <= set(range(4))
        assert not any("rsp" in line for line in lines[name] if "tilestored" in line)


def tiles(line):
    """The name of an instruction on tiles and its registers, the one that is written first."""
    words = re.match(r"\s*(ldtilecfg|tile\w+|tdp\w+)", line)
    return (words[1], *reversed([int(number) for number in re.findall(r"%tmm(\d)", line)])) if words else ()


def expected_step(products, blocks):
    """The loads and products of a step, in order."""
    step, loaded = [], (-1, -1)
    for mine, theirs in PRODUCTS[products]:
        step += [("tileloadd", tile) for tile in (4, 5) if mine != loaded[0]]
        step += [("tileloadd", tile) for tile in (6, 7) if theirs != loaded[1]]
        step += [("tdpbf16ps", *block) for block in blocks]
        loaded = mine, theirs
    return step


def contains(found, step):
    """Whether a list holds another one in a row."""
    return any(found[start : start + len(step)] == step for start in range(len(found)))


def test_products_are_those_of_the_largest_layers():
    for products, pairs in PRODUCTS.items():
        assert len(set(pairs)) == products
        assert max(sum(pair) for pair in pairs) == layers_of(products) - 1
