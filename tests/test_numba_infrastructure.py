"""The Numba plugin below its kernels: typed loads and arithmetic, tags, the disk cache, and who may enter the parallel region.

Functions named ``child_*`` run in processes of their own, whose environment and history matter.
"""

from __future__ import annotations

import ast
import gc
import json
import logging
import multiprocessing
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("numba")

import numconv_numba
from numba.core.errors import TypingError
from numba.core.registry import cpu_target
from numconv_numba import threads, tools
from numconv_numba.compiling import cache, compiler
from numconv_numba.compiling.compiler import Address, Tag, Unit, Vector, helper, invoke, kernel, matches, value
from numconv_numba.compiling.parts import Draft, compiling
from numconv_numba.elements import held, same
from numconv_numba.microkernels.emit import host
from numconv_numba.scalar import add, conj, is_null, load, muladd, store, wide_vectors, zero
from numconv_numba.threads import parallel_for, run

import numconv.context
from numconv import kernel_files
from numconv.benchmarking.rows import all_rows
from numconv.plugin import np_dtype

HERE = pathlib.Path(__file__).resolve()
ROOT = HERE.parents[1]
LARGE = 1e9
INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
INT64 = Tag("int64")
FLOAT16 = Tag("float16")
FLOAT32 = Tag("float32")
FLOAT64 = Tag("float64")
MADE_UP = Tag("float8")


@helper
def _axpy_rows(begin, end, args):
    x, w, y, sizes, dtype, size = args
    columns = sizes[0]
    step = value(size)
    for row in range(begin, end):
        x_row = x + row * columns * step
        y_row = y + row * columns * step
        weight = load(w + row * step, dtype)
        for column in range(columns):
            at = y_row + column * step
            store(at, muladd(load(x_row + column * step, dtype), weight, load(at, dtype)), dtype)


@kernel
def axpy(dtype: Tag, size: Tag, region, workers, items, x: Address, w: Address, y: Address, sizes: Vector):
    """y[i, j] += x[i, j] * w[i]."""
    parallel_for(region, workers, items, _axpy_rows, (x, w, y, sizes, dtype, size))


@helper
def _scale_wide(begin, end, args):
    wide_vectors()
    y, weight = args
    for i in range(begin, end):
        store(y + i * 4, muladd(load(y + i * 4, FLOAT32), weight, weight), FLOAT32)


@kernel
def scale_wide(region, workers, items, y: Address, w: Address):
    parallel_for(region, workers, items, _scale_wide, (y, load(w, FLOAT32)))


@kernel
def convert(source: Tag, source_size: Tag, computed: Tag, target: Tag, target_size: Tag, items, x: Address, y: Address):
    for i in range(items):
        store(y + i * value(target_size), load(x + i * value(source_size), source, computed), target)


@kernel
def fused(dtype: Tag, size: Tag, items, a: Address, b: Address, c: Address, y: Address):
    for i in range(items):
        at = i * value(size)
        store(y + at, muladd(load(a + at, dtype), load(b + at, dtype), load(c + at, dtype)), dtype)


@kernel
def conjugate_sum(dtype: Tag, size: Tag, items, a: Address, b: Address, y: Address):
    for i in range(items):
        at = i * value(size)
        store(y + at, conj(add(add(load(a + at, dtype), load(b + at, dtype)), zero(dtype))), dtype)


@kernel
def described(tag: Tag, flag: Tag, where: Address, y: Address):
    store(y, 1 if matches(tag, "relu") else 2, INT64)
    store(y + 8, 1 if is_null(where) else 2, INT64)
    store(y + 16, 1 if value(flag) else 2, INT64)
    store(y + 32 - 8, zero(INT64), INT64)


def address(array):
    return array.ctypes.data


def converted(x, source, computed, target):
    y = np.empty(x.shape, np_dtype(target))
    arguments = (source, x.itemsize, computed, target, y.itemsize)
    convert.specialise(*arguments)(x.size, address(x), address(y))
    return y


def check_axpy(items_work=LARGE, columns=37, dtype="float32"):
    """Run `axpy` on integers and compare with NumPy."""
    rows = 23
    x = (np.arange(rows * columns).reshape(rows, columns) % 11 - 5).astype(dtype)
    w = (np.arange(rows) % 7).astype(dtype)
    y = np.ones_like(x)
    expected = y + x * w[:, None]
    sizes = np.array([columns])
    run(axpy.specialise(dtype, x.itemsize), rows, items_work, address(x), address(w), address(y), sizes)
    np.testing.assert_array_equal(y, expected)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMCONV_CACHE_DIR", str(tmp_path_factory.mktemp("kernels")))
        cache.FILES.look_again()
        yield
    cache.FILES.look_again()


def process(*arguments, **environment):
    """A new process with these arguments and variables, when it is done."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, **environment}
    done = subprocess.run([sys.executable, *arguments], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def python(*arguments, **environment):
    """What a new process with these arguments and variables prints."""
    return process(*arguments, **environment).stdout


def settings_of(cache_dir, threads="2"):
    return {"NUMCONV_CACHE_DIR": str(cache_dir), "NUMCONV_NUM_THREADS": threads, "NUMBA_NUM_THREADS": "4"}


def child(name, cache_dir, threads="2", **environment):
    """Run the function `name` of this file in a process of its own; the values that it reported."""
    return json.loads(python(str(HERE), name, **settings_of(cache_dir, threads), **environment).splitlines()[-1])


# Scalars: also run on a processor without FMA and float16, see test_generic_processor.


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_scalar_halves_widen_exactly(name):
    bits = np.arange(1 << 16, dtype=np.uint16)
    halves = bits.view(np_dtype(name))
    wide = converted(halves, name, "float32", "float32")
    with np.errstate(invalid="ignore"):
        expected = halves.astype(np.float32)
    np.testing.assert_array_equal(wide, expected)
    np.testing.assert_array_equal(np.signbit(wide), bits >> 15 == 1)
    with np.errstate(invalid="ignore"):
        wider = wide.astype(np.float64)
    np.testing.assert_array_equal(converted(halves, name, "float64", "float64"), wider)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_scalar_halves_round_to_nearest_even(name):
    halves = np.arange(1 << 16, dtype=np.uint16).view(np_dtype(name)).astype(np.float32)
    halves = np.unique(halves[np.isfinite(halves)])
    ties = halves[1:] / 2 + halves[:-1] / 2
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 1 << 32, 1 << 20, dtype=np.uint32).view(np.float32)
    special = np.array([0, -0.0, np.inf, -np.inf, 65519.9, 65520, 65536, 3.4e38, -3.4e38, 1e-45, 2**-25, 2**-24], np.float32)
    values = np.concatenate([halves, ties, np.nextafter(ties, np.inf), np.nextafter(ties, -np.inf), noise, special])
    values = values[~np.isnan(values)].astype(np.float32)
    with np.errstate(over="ignore"):
        expected = values.astype(np_dtype(name))
    got = converted(values, "float32", "float32", name)
    np.testing.assert_array_equal(got.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_scalar_nan_never_becomes_infinite(name):
    bits = np.array([0x7F800001, 0x7F80FFFF, 0x7FFFFFFF, 0x7FC00000, 0xFF800001, 0xFFFFFFFF], np.uint32)
    rounded = converted(bits.view(np.float32), "float32", "float32", name)
    assert np.isnan(rounded.astype(np.float32)).all()
    np.testing.assert_array_equal(np.signbit(rounded), bits >> 31 == 1)


def test_scalar_conversions():
    numbers = np.array([-129, -128, -1, 0, 1, 127, 255, 256, 70000, 1 << 31, (1 << 40) + 5])
    for name in INTEGERS:
        np.testing.assert_array_equal(converted(numbers, "int64", "int64", name), numbers.astype(name))
        narrow = numbers.astype(name)
        np.testing.assert_array_equal(converted(narrow, name, "int64", "int64"), narrow.astype(np.int64))
    real = np.array([0.1, -0.0, np.nan, np.inf, 1e300])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(converted(real, "float64", "float64", "float32"), real.astype(np.float32))
    pair = np.array([1 + 2j, 0.1 - 0.3j], np.complex64)
    np.testing.assert_array_equal(converted(pair, "complex64", "complex128", "complex128"), pair.astype(np.complex128))
    np.testing.assert_array_equal(converted(pair, "complex64", "complex128", "complex64"), pair)


def exact_fma(a, b, c):
    """a * b + c with one rounding, in the dtype of a."""
    return type(a)(float(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))))


def fused_of(a, b, c):
    y = np.empty_like(a)
    fused.specialise(a.dtype.name, a.itemsize)(a.size, address(a), address(b), address(c), address(y))
    return y


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_scalar_muladd_rounds_once(name):
    a, b = np.random.default_rng(1).standard_normal((2, 500)).astype(name)
    c = -(a * b)
    expected = np.array([exact_fma(*terms) for terms in zip(a, b, c, strict=True)])
    assert np.count_nonzero(expected) > 400  # two roundings would give 0 everywhere
    np.testing.assert_array_equal(fused_of(a, b, c), expected)


@pytest.mark.parametrize("name", INTEGERS)
def test_scalar_muladd_of_integers_wraps(name):
    limits = np.iinfo(name)
    a, b, c = np.random.default_rng(2).integers(limits.min, limits.max, (3, 200), dtype=name, endpoint=True)
    np.testing.assert_array_equal(fused_of(a, b, c), a * b + c)


@pytest.mark.parametrize("name", ["complex64", "complex128"])
def test_scalar_muladd_of_complex_numbers_has_one_order(name):
    parts = np.random.default_rng(3).standard_normal((3, 2, 200)).astype(np.empty(0, name).real.dtype)
    a, b, c = (real + 1j * imag for real, imag in parts)
    got = fused_of(a, b, c)
    for x, y, z, result in zip(a, b, c, got, strict=True):
        assert result.real == exact_fma(-x.imag, y.imag, exact_fma(x.real, y.real, z.real))
        assert result.imag == exact_fma(x.imag, y.real, exact_fma(x.real, y.imag, z.imag))


@pytest.mark.parametrize("name", ["float32", "float64", "complex64", "complex128", "int8", "uint32"])
def test_scalar_add_conj_zero(name):
    a = (np.arange(20) * 13 - 100 + (3j if name.startswith("c") else 0)).astype("complex128")
    a = a.astype(name) if name.startswith("c") else a.real.astype(np.int64).astype(name)
    y = np.empty_like(a)
    conjugate_sum.specialise(name, a.itemsize)(a.size, address(a), address(a), address(y))
    np.testing.assert_array_equal(y, np.conj(a + a))


def test_generic_processor():
    """The same scalars without FMA and float16 instructions."""
    python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "test_scalar", str(HERE), NUMBA_CPU_NAME="generic")


def assembly(kernel, *tags):
    with compiling():
        return Draft.of(kernel.name, [kernel.part(tags, python=True)]).assembly()


def allocated_and_released(function):
    """The names of what `scratch` returned, and of what `release` got, and whether a return lies between."""
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    released = [call.args[0].id for call in calls if call.func.id == "release"]
    made = [
        target.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        for names, values in [(node.targets[0], node.value)]
        for target, value in zip(getattr(names, "elts", [names]), getattr(values, "elts", [values]), strict=False)
        if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "scratch"
    ]
    count = sum(call.func.id == "scratch" for call in calls)
    first = min((call.lineno for call in calls if call.func.id == "scratch"), default=0)
    last = max((call.lineno for call in calls if call.func.id == "release"), default=0)
    left = any(isinstance(node, ast.Return) and first < node.lineno < last for node in ast.walk(function))
    return made, released, count, left


def test_every_body_releases_its_scratch_memory():
    bodies = 0
    for file in pathlib.Path(numconv_numba.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                made, released, count, left = allocated_and_released(node)
                assert sorted(made) == sorted(released), (file.name, node.name)
                assert len(made) == count, (file.name, node.name)
                assert not left, (file.name, node.name)
                bodies += bool(made)
    assert bodies > 10


def test_unit_stride_loops_are_vectorised():
    features = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    if "+fma" not in features or "+avx2" not in features:
        pytest.skip("the register names looked for are those of x86-64 with AVX2")
    assert re.search(r"vfmadd\w+ps\s.*%[yz]mm", assembly(axpy, "float32", 4))
    if "+avx512f" in features:
        assert re.search(r"vfmadd\w+ps\s.*%zmm", assembly(scale_wide))


def test_tags_are_constants():
    y = np.empty(4, np.int64)
    described.specialise("relu", True)(0, address(y))
    np.testing.assert_array_equal(y, [1, 1, 1, 0])
    described.specialise("silu", 0)(address(y), address(y))
    np.testing.assert_array_equal(y, [2, 2, 2, 0])


@kernel
def doubled_or_kept(dtype: Tag, y: Address):
    item = load(y, dtype)
    if held(dtype) == 1 and not same(dtype, INT64):
        store(y, add(item, zero(FLOAT32)), dtype)
    else:
        store(y, add(item, item), dtype)


def test_a_branch_that_tags_decide_is_all_that_is_typed():
    y = np.full(1, 3)
    doubled_or_kept.specialise("int64")(y)
    assert y[0] == 6
    with pytest.raises(TypingError, match="add takes operands of one type"):
        doubled_or_kept.specialise("int32")
    assert gc.isenabled()


@helper
def moved(y, items):
    return y + 4 * items


@kernel
def add_second_and_third(y: Address):
    store(y, add(load(moved(y, 1), FLOAT32), load(moved(y, 2), FLOAT32)), FLOAT32)


def test_numbers_in_calls_compile_a_helper_once(fresh_folders):
    y = np.array([0, 2, 3], np.float32)
    add_second_and_third.specialise()(y)
    assert y[0] == 5
    assert len(moved.overloads) == 1


def test_specialise_compiles_once_and_counts():
    before = axpy.statistics
    first = axpy.specialise("int32", 4)
    assert axpy.specialise("int32", 4) is first
    after = compiler.statistics()[axpy.name]
    assert after.signatures == before.signatures + 1
    assert after.hits + after.misses == after.signatures


def test_one_and_true_are_different_tags():
    assert described.specialise("relu", 1) is not described.specialise("relu", True)


def test_wrong_use_is_refused():
    with pytest.raises(TypeError, match="has 2 tags, not 1"):
        axpy.specialise("float32")
    with pytest.raises(TypeError, match="come first"):

        @kernel
        def misplaced(items, dtype: Tag): ...


def test_long_compilations_are_logged(monkeypatch, caplog):
    monkeypatch.setattr(compiler, "_LOGGED_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, "numconv"):
        axpy.specialise("uint16", 2)
    (record,) = caplog.records
    assert re.fullmatch(rf"compiled kernel {re.escape(axpy.name)} for uint16, 2 in \d+\.\d s", record.getMessage())


@kernel
def twice(dtype: Tag, lanes: Tag, y: Address):
    axpy_item = load(y, dtype)
    store(y, add(axpy_item, axpy_item), dtype)


@kernel
def thrice(dtype: Tag, lanes: Tag, y: Address):
    item = load(y, dtype)
    store(y, add(add(item, item), item), dtype)


@kernel
def call_both(first: int, second: int, y: Address):
    invoke(first, y)
    invoke(second, y)


def test_a_unit_is_one_run_of_the_compiler_and_one_file(fresh_folders):
    unit = Unit("twice_and_thrice", lambda dtype: [(each, (dtype, lanes)) for each, lanes in ((twice, 1), (thrice, 2))])
    first, second = unit.functions("float32")
    y = np.ones(1, np.float32)
    call_both.specialise()(first, second, y)
    assert y[0] == 6
    assert (unit.statistics.signatures, unit.statistics.misses) == (1, 1)
    assert len(list(cache.FILES.info().path.glob("twice_and_thrice-*"))) == 1
    assert unit.functions("float32") == (first, second)
    again = Unit(unit.name, unit._native)
    loaded = again.functions("float32")
    assert (again.statistics.hits, again.statistics.misses) == (1, 0)
    call_both.specialise()(*loaded, y)
    assert y[0] == 36
    assert compiler.statistics()[unit.name].signatures == 2


class _NoThreads(ThreadPoolExecutor):
    """As where a process may have no more of them."""

    def submit(self, *_, **__):
        raise RuntimeError("can't start new thread")


@pytest.mark.usefixtures("fresh_folders")
@pytest.mark.parametrize("pool", [ThreadPoolExecutor, _NoThreads])
def test_what_is_begun_is_compiled_once_beside_the_caller(monkeypatch, pool):
    drafts, threads = [], []

    def machine_code(draft):
        threads.append(threading.current_thread())
        return made(draft)

    made = Draft.machine_code
    monkeypatch.setattr(compiler, "ThreadPoolExecutor", pool)
    monkeypatch.setattr(Draft, "machine_code", machine_code)
    units = [Unit(f"begun_{each.name}", lambda dtype, each=each: [(each, (dtype, 1))]) for each in (twice, thrice)]
    for unit in units * 2:
        unit.begin("float32")
        drafts.append(unit.statistics.misses)
    found = [unit.functions("float32")[0] for unit in units]
    assert drafts == [0] * 4
    assert [unit.statistics.misses for unit in units] == [1, 1]
    units[0].begin("float32")
    assert units[0].functions("float32")[0] == found[0]
    assert [each is threading.main_thread() for each in threads] == [pool is _NoThreads] * 2
    y = np.ones(1, np.float32)
    call_both.specialise()(*found, y)
    assert y[0] == 6


@pytest.mark.usefixtures("fresh_folders")
def test_what_fails_beside_the_caller_fails_where_it_is_needed(monkeypatch):
    def fails(draft):
        raise MemoryError(draft.name)

    unit = Unit("failing", lambda dtype: [(twice, (dtype, 3))])
    with monkeypatch.context() as patched:
        patched.setattr(Draft, "machine_code", fails)
        unit.begin("float32")
        with pytest.raises(MemoryError, match="failing"):
            unit.functions("float32")
    assert unit.functions("float32")
    assert unit.statistics.misses == 1


def refused(function, match):
    with pytest.raises(TypingError, match=match):
        kernel(function).specialise()


def test_wrong_types_are_refused():
    def writes_sizes(sizes: Vector):
        sizes[0] = 1

    def loads_integer(x: int):
        load(x, INT64)

    def mixes(x: Address):
        muladd(load(x, INT64), load(x, FLOAT32), load(x, FLOAT32))

    def unknown(x: Address):
        load(x, MADE_UP)

    def rounds_twice(x: Address):
        store(x, load(x, FLOAT64), FLOAT16)

    refused(writes_sizes, "read")
    refused(loads_integer, "expected an Address, not int64")
    refused(mixes, "operands of one type, not int64, float32, float32")
    refused(unknown, "not the tag of a dtype")
    refused(rounds_twice, "rounded from a float32")


# How much is compiled.

GIVEN = {"conv": {"bias": True}, "conv_input_grad": {}, "conv_weight_grad": {}}


def compilations_noted():
    """What would be compiled from now on is noted instead, in this list."""
    noted = []

    def note(unit, tags, by=None):
        noted.append(f"{unit.name} {tags}")
        called, native = (len([*members(*tags)]) for members in (unit._called, unit._native))
        return lambda: (*[print] * called, *range(1, native + 1))

    Unit._started = note
    return noted


def never_waited_for():
    return [unit.name for unit in compiler._units if unit._begun]


def child_planned():
    """Plan all rows of float32."""
    noted = compilations_noted()
    problems = [row.problem for row in all_rows() if row.problem.dtype == "float32"]
    for problem in problems:
        names = "stride", "padding", "dilation", "groups"
        geometry = {name: getattr(problem, name) for name in names}
        for op, given in GIVEN.items():
            numconv.plan(op, problem.x_shape, problem.w_shape, "float32", **geometry, **given)
    most = 25 if host().width == 64 else 36
    report(rows=len(problems), noted=noted, most=most, never_waited_for=never_waited_for())


def child_alone():
    """Tools for a tile that is in no unit."""
    noted = compilations_noted()
    tools.tools_for("float32", "float32", 8, product_shape=host().channel_tiles[0], transform_shape=(1, 3, 2, 3))
    report(noted=noted, never_waited_for=never_waited_for())


def test_the_rows_of_float32_need_few_compilations(tmp_path):
    """Each is one run of the compiler. Narrower vectors have more shapes of tiles to choose between."""
    found = child("child_planned", tmp_path)
    assert found["rows"] > 25
    assert len(set(found["noted"])) == len(found["noted"]) <= found["most"], "\n".join(found["noted"])
    assert found["never_waited_for"] == []


def test_a_tile_that_is_in_no_unit_is_compiled_alone(tmp_path):
    found = child("child_alone", tmp_path)
    assert any(each.startswith("microkernels.transforms.") for each in found["noted"])
    assert not any(each.startswith("tools.transforms") for each in found["noted"])
    assert found["never_waited_for"] == []


# The disk cache.


def child_cached():
    check_axpy(0)
    check_axpy(LARGE)
    info = cache.FILES.info()
    kernels = list(compiler.statistics().values())
    files = sorted(path.name for path in info.path.iterdir()) if info.path else []
    report(
        misses=sum(s.misses for s in kernels),
        hits=sum(s.hits for s in kernels),
        files=files,
        path=str(info.path),
        reason=info.reason,
    )


def test_second_process_compiles_nothing(tmp_path):
    first, second, third = (child("child_cached", tmp_path) for _ in range(3))
    assert (first["misses"], first["hits"]) == (1, 0)
    assert (second["misses"], second["hits"]) == (third["misses"], third["hits"]) == (0, 1)
    assert len(first["files"]) == 1
    assert first["files"] == second["files"] == third["files"]
    assert pathlib.Path(first["path"]).is_relative_to(tmp_path)
    assert first["reason"] == ""


def test_unwritable_folder_falls_back(tmp_path):
    file = tmp_path / "file"
    file.touch()
    found = child("child_cached", file / "below", TMPDIR=str(tmp_path))
    assert pathlib.Path(found["path"]).is_relative_to(tmp_path / f"numconv-{os.getuid()}")
    assert "below" in found["reason"]


@pytest.fixture
def fresh_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMCONV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cache.FILES.look_again()
    yield tmp_path
    cache.FILES.look_again()


def recompiled():
    """Compile `axpy` anew, or load it: (hits, misses)."""
    again = compiler.Kernel(axpy._dispatcher.py_func)
    again.specialise("float32", 4)
    return again.statistics.hits, again.statistics.misses


@pytest.mark.parametrize("given", ["~/kept", "kept"])
def test_the_folder_stays_where_it_was_when_the_process_goes_elsewhere(fresh_folders, monkeypatch, given):
    (fresh_folders / "elsewhere").mkdir()
    monkeypatch.chdir(fresh_folders)
    monkeypatch.setenv("HOME", str(fresh_folders))
    monkeypatch.setenv("NUMCONV_CACHE_DIR", given)
    assert recompiled() == (0, 1)
    monkeypatch.chdir(fresh_folders / "elsewhere")
    assert recompiled() == (1, 0)
    assert cache.FILES.info().path.is_relative_to(fresh_folders / "kept")


@pytest.mark.usefixtures("fresh_folders")
def test_kernels_in_a_folder_that_became_read_only_are_used(monkeypatch):
    assert recompiled() == (0, 1)

    def refuse(folder):
        raise PermissionError(f"{folder} is read-only")

    monkeypatch.setattr(kernel_files, "check_writable", refuse)
    cache.FILES.look_again()
    assert recompiled() == (1, 0)
    info = cache.FILES.info()
    assert info.path is None
    assert "read-only" in info.reason
    assert info.files == 0


def test_damaged_files_are_replaced(fresh_folders):
    assert recompiled() == (0, 1)
    (file,) = cache.FILES.info().path.glob("*.kernel")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert recompiled() == (0, 1)
    assert recompiled() == (1, 0)


def test_full_disk_is_no_error(fresh_folders, monkeypatch):
    def refuse(path, content):
        raise OSError("no space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", refuse)
    assert recompiled() == (0, 1)
    assert list(cache.FILES.info().path.iterdir()) == []


def test_foreign_temporary_folder_is_refused(fresh_folders):
    (fresh_folders / f"numconv-{os.getuid()}").mkdir()
    (fresh_folders / f"numconv-{os.getuid()}").chmod(0o777)
    with pytest.raises(PermissionError, match="another user"):
        kernel_files.temporary_root()


def test_folder_follows_the_sources(tmp_path):
    copy = tmp_path / "package"
    shutil.copytree(ROOT / "backends" / "numconv_numba", copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert kernel_files.source_hash(copy) == kernel_files.source_hash(cache.FILES.package)
    with (copy / "scalar.py").open("a") as stream:
        stream.write("\n")
    assert kernel_files.source_hash(copy) != kernel_files.source_hash(cache.FILES.package)


def test_old_versions_are_removed_when_unused(fresh_folders):
    kernels = fresh_folders / "cache" / "kernels"
    old, recent, foreign = (
        kernels / name
        for name in ("numconv_numba-0.0.1-0123456789ab", "numconv_numba-0.0.2-0123456789ab", "numconv_x-1-0123456789ab")
    )
    for folder in (old, recent, foreign):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    month_ago = time.time() - 31 * 24 * 3600
    os.utime(old, (month_ago, month_ago))
    os.utime(foreign, (month_ago, month_ago))
    assert recompiled() == (0, 1)
    assert [folder.exists() for folder in (old, recent, foreign)] == [False, True, True]


# Threads.


def child_forked():
    """A parallel region, then a fork: OpenMP would abort in the child if it entered one."""
    check_axpy(LARGE)
    layer = threads.layer()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            assert threads.threads() == 1
            check_axpy(LARGE)
            with numconv.context.using(threads=2):
                check_axpy(LARGE)
            code = 0
        finally:
            os._exit(code)
    report(layer=layer, status=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child_runs_serially(tmp_path):
    found = child("child_forked", tmp_path)
    assert found["layer"] != "not started"
    assert found["status"] == 0


def child_concurrent():
    """Eight Python threads call kernels at the same time."""
    failures = []

    def work():
        try:
            for _ in range(200):
                check_axpy(LARGE)
        except BaseException as error:
            failures.append(repr(error))
            raise

    group = [threading.Thread(target=work) for _ in range(8)]
    for thread in group:
        thread.start()
    for thread in group:
        thread.join()
    report(failures=failures, layer=threads.layer())


@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_concurrent_calls_are_safe(tmp_path, layer):
    found = child("child_concurrent", tmp_path, threads="4", NUMBA_THREADING_LAYER=layer)
    assert found["failures"] == []
    assert found["layer"] == "workqueue" if layer == "workqueue" else found["layer"] != "not started"


def child_single():
    check_axpy(LARGE)
    report(layer=threads.layer(), kernels=sorted(compiler.statistics()))


def test_one_thread_enters_no_region(tmp_path):
    found = child("child_single", tmp_path, threads="1")
    assert found["layer"] == "not started"
    assert found["kernels"] == ["__main__.axpy"]


def test_missing_layer_means_serial(tmp_path):
    found = child("child_single", tmp_path, NUMBA_THREADING_LAYER="nonsense")
    assert found["layer"] == "not started"


def child_waiting():
    check_axpy(LARGE)
    report(left={name: os.environ[name] for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY") if name in os.environ})


@pytest.mark.parametrize(
    ("asked", "spins"),
    [
        ({}, r"10000"),
        ({"GOMP_SPINCOUNT": "77"}, r"77"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, r"0"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, r"\d{9,}"),
    ],
)
def test_threads_spin_briefly_unless_asked_otherwise(tmp_path, asked, spins):
    """As GCC's OpenMP says; other processes and libraries inherit nothing."""
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        pytest.skip("the environment says how threads wait")
    done = process(str(HERE), "child_waiting", **settings_of(tmp_path), OMP_DISPLAY_ENV="VERBOSE", **asked)
    found = re.findall(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr)
    if not found:
        pytest.skip("Numba's threading layer is not GCC's OpenMP")
    assert len(found) == 1
    assert re.fullmatch(spins, found[0])
    assert json.loads(done.stdout.splitlines()[-1])["left"] == asked


def count_threads(requested):
    with numconv.context.using(threads=requested):
        return threads.threads()


def child_spawned():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        report(threads=pool.map(count_threads, [None, 2]))


def test_spawned_worker_is_serial_unless_asked(tmp_path):
    assert child("child_spawned", tmp_path, threads="")["threads"] == [1, 2]


def test_number_of_workers(monkeypatch):
    monkeypatch.setattr(threads, "_launched", lambda: 8)
    with numconv.context.using(threads=4):
        assert threads.workers(100, LARGE) == 4
        assert threads.workers(3, LARGE) == 3
        assert threads.workers(1, LARGE) == 1
        assert threads.workers(100, 10) == 1
    with numconv.context.using(threads=100):
        assert threads.threads() == 8


def test_default_number_of_threads(monkeypatch):
    monkeypatch.setattr(threads, "_launched", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    default = threads._default_threads.__wrapped__
    for quota, openmp, expected in ((float("inf"), "", 6), (2.5, "", 3), (0.5, "", 1), (4.0, "2,1", 2), (4.0, "many", 4)):
        monkeypatch.setattr(threads, "quota", lambda quota=quota: quota)
        monkeypatch.setenv("OMP_NUM_THREADS", openmp)
        assert default() == expected


def test_quota_files(tmp_path):
    for content, expected in (
        ("max 100000", float("inf")),
        ("150000 100000", 1.5),
        ("-1 100000", float("inf")),
        ("?", float("inf")),
    ):
        (tmp_path / "cpu.max").write_text(content)
        assert threads._ratio(tmp_path / "cpu.max") == expected
    (tmp_path / "quota").write_text("200000\n")
    (tmp_path / "period").write_text("100000\n")
    assert threads._ratio(tmp_path / "quota", tmp_path / "period") == 2
    assert threads._ratio(tmp_path / "absent") == float("inf")


def test_busy_region_means_serial():
    with threads._entered:
        check_axpy(LARGE)


@pytest.mark.parametrize("count", [2, 3, 7, 30])
def test_parts_cover_all_items(count, monkeypatch):
    """More workers than threads of this machine still compute every item once."""
    monkeypatch.setattr(threads, "workers", lambda *_: count)
    check_axpy(LARGE, dtype="int64")


def report(**values):
    sys.stdout.write(json.dumps(values) + "\n")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
