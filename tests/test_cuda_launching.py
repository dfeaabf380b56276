"""How the CUDA backend launches, without a GPU: what reaches the driver, which a stand-in plays that reads what it is given."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import sys
import threading
import time
import types
from typing import Any, NamedTuple

import numconv_cuda
import numpy as np
import pytest

from numconv.plugin import DeviceArray, NumconvError, np_dtype, parse

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="the package numba-cuda is not installed"),
    pytest.mark.skipif(numconv_cuda.simulated(), reason="the simulator runs kernels by itself"),
]

CONTEXT = 0xC0


class Launched(NamedTuple):
    """A launch as the driver sees it: each parameter as eight bytes."""

    kernel: str
    grid: tuple[int, ...]
    threads: int
    stream: int
    parameters: tuple[int, ...]


class Driver:
    """The driver's library, as far as it is called."""

    def __init__(self) -> None:
        self.context, self.status, self.pause = CONTEXT, 0, 0.0
        self.launches: list[Launched] = []
        self.kernels: list[Any] = []

    def cuCtxGetCurrent(self, found):
        found._obj.value = self.context
        return 0

    def cuGetErrorName(self, status, name):
        name._obj.value = b"CUDA_ERROR_OF_A_KIND"
        return 0

    def cuLaunchKernelEx(self, config, handle, parameters, extra):
        """Read the launch from memory, after a pause in which other threads run."""
        time.sleep(self.pause)
        kernel = self.kernels[handle]
        numbers = (ctypes.c_uint * 7).from_address(config)
        (stream, attributes) = (ctypes.c_uint64 * 2).from_address(config + 32)
        assert (numbers[4], numbers[5], numbers[6], attributes, extra) == (1, 1, 0, 0, None)
        places = (ctypes.c_uint64 * kernel.count).from_address(parameters)
        found = tuple(ctypes.c_uint64.from_address(place).value for place in places)
        self.launches.append(Launched(kernel.name, tuple(numbers[:3]), numbers[3], stream, found))
        return self.status


class Compiled:
    """numba-cuda's kernel, which is never compiled."""

    extensions = ()

    def __init__(self, driver: Driver, name: str, args: tuple[Any, ...]):
        from numconv_cuda.runtime.compiler import type_of

        self.name, self.argument_types, self.count = name, tuple(map(type_of, args)), len(list(flat(args)))
        number = len(driver.kernels)
        driver.kernels.append(self)
        self._codelibrary = types.SimpleNamespace(get_cufunc=lambda: types.SimpleNamespace(handle=number), _entry_name=name)

    def _prepare_args(self, *given: Any) -> None:
        from numba.cuda.dispatcher import _Kernel

        _Kernel._prepare_args(self, *given)


def flat(args: Any) -> Any:
    """The parameters among nested arguments, as integers of the bytes that they have."""
    from numconv_cuda.runtime.pointers import Pointer

    for value in args:
        if isinstance(value, Pointer):
            yield value.address
        elif isinstance(value, tuple):
            yield from flat(value)
        elif isinstance(value, np.complexfloating):
            yield from flat((value.real, value.imag))
        else:
            yield int.from_bytes(np.asarray(value).tobytes(), "little")


@pytest.fixture
def driver(monkeypatch):
    from numconv_cuda.runtime import compiler, recording
    from numconv_cuda.runtime import driver as home

    found = Driver()
    monkeypatch.setattr(home, "_driver", lambda: found)
    monkeypatch.setattr(compiler.Kernel, "compiled", lambda self, args: Compiled(found, self.name, tuple(args)))
    monkeypatch.setattr(recording, "device_of_context", lambda context: 0)
    monkeypatch.setattr("numconv_cuda.tensor_cores.tensor_cores.capability", lambda: (9, 0))
    monkeypatch.setitem(sys.modules, "pool", types.ModuleType("pool"))
    monkeypatch.setattr(sys.modules["pool"], "empty", lambda shape, dtype: Pooled(SCRATCH, shape, dtype), raising=False)
    return found


SCRATCH = 0x7F00_0000_0000


class Pooled:
    """An array of a library "pool", all of whose arrays have one address."""

    __module__ = "pool"

    def __init__(self, address: int, shape: tuple[int, ...], dtype: Any):
        self.dtype = dtype
        number = np.dtype(np.uint16) if dtype.name == "bfloat16" else dtype
        self.__cuda_array_interface__ = {
            "shape": shape, "strides": None, "typestr": number.str, "data": (address, False), "version": 3, "stream": 5,
        }  # fmt: skip


class Direct(DeviceArray):
    """An array for which a raw executor launches at once: its owner notes the arguments."""

    __slots__ = ()

    def scratch(self, shape, dtype):
        return Direct(self.owner, SCRATCH, shape, (np.dtype(dtype).itemsize,) * len(shape), np.dtype(dtype))


def arrays_of(problem, start=0x1000_0000, apart=0x100_0000, stream=5, kind=DeviceArray, owner=None):
    """(outs, ins) of a problem at addresses of which the lower bytes are those of `start`."""
    forms = [(shape, problem.out_dtype) for shape in problem.output_shapes] + [(s, problem.dtype) for s in problem.input_shapes]
    found = []
    for number, (shape, name) in enumerate(forms):
        dtype = np_dtype(name)
        if getattr(problem, "indices", False) and number == len(problem.output_shapes) * 2 - 1 and len(shape) > 2:
            dtype = np.dtype(np.int64)
        strides = tuple(dtype.itemsize * int(np.prod(shape[axis + 1 :], dtype=int)) for axis in range(len(shape)))
        address = start + (number + 1) * apart
        found.append(kind(owner or Pooled(address, shape, dtype), address, shape, strides, dtype, stream))
    return found[: len(problem.output_shapes)], found[len(problem.output_shapes) :]


PROBLEMS = [
    "conv forward f32 n2 c16 k32 g1 in14x14 w3x3 s1 p1 d1 bias=y act=relu",
    "conv forward f32 n2 c16 k32 g1 in8x8 w1x1 s1 p0 d1",
    "conv input_grad f32 n2 c16 k32 g1 in14x14 w3x3 s2 p1 d1",
    "conv input_grad c64 n2 c3 k4 g1 in9 w3 s1 p1 d1",
    "conv weight_grad bf16 n2 c16 k32 g1 in14x14 w3x3 s1 p1 d1 bias=y",
    "conv forward u8 n2 c3 k4 g1 in9 w3 s1 p1 d1",
    "conv forward c128 n2 c3 k4 g1 in9 w3 s1 p1 d1",
    "pool lp_pool f32 n2 c3 in11x13 w2x2 s2 p0 d1",
    "pool max_pool_backward f32 n2 c3 in11x13 w2x2 s2 p0 d1",
    "window pad f16 n2 c3 in9x8 w1x1 s1 p1 d1",
    "window fold f64 n2 c3 in9x8 w2x2 s1 p0 d1",
]


def implementations(problem):
    found = [each for each in numconv_cuda.backend.implementations() if problem.op in each.ops and each.supports(problem)]
    assert found
    return found


class Noting:
    """What a raw executor asks of its arrays' owner."""

    def __init__(self) -> None:
        self.launches: list[Launched] = []

    def launch(self, kernel, blocks, threads, args):
        grid = (blocks, 1, 1) if isinstance(blocks, int) else (*blocks, 1, 1)[:3]
        self.launches.append(Launched(kernel.name, tuple(grid), threads, 5, tuple(flat(args))))


@pytest.mark.parametrize("text", PROBLEMS)
def test_launches_are_played_again_at_other_addresses(driver, text):
    """The driver gets what the executor would have launched on these very arrays; the executor ran once for their form."""
    problem = parse(text)
    for each in implementations(problem):
        executor = each.build(problem)
        executor(*arrays_of(problem))
        count = len(driver.kernels)
        driver.launches.clear()
        executor(*arrays_of(problem, 0x5000_0000, 0x300_0000))
        assert len(driver.kernels) == count, "nothing is compiled again"
        noting = Noting()
        executor._run(*arrays_of(problem, 0x5000_0000, 0x300_0000, kind=Direct, owner=noting))
        assert driver.launches == noting.launches
        assert driver.launches


def test_what_changes_the_form(driver):
    """Other strides, an address that is aligned otherwise, and another context; each form is kept."""
    problem = parse(PROBLEMS[1])
    (each,) = [each for each in implementations(problem) if each.name == "implicit_gemm"]
    executor = each.build(problem)

    def recorded(outs, ins):
        before = len(driver.kernels)
        executor(outs, ins)
        return len(driver.kernels) > before

    outs, ins = arrays_of(problem)
    y = outs[0]
    backwards = DeviceArray(y.owner, y.pointer, y.shape, tuple(-step for step in y.strides), y.dtype, 5)
    assert recorded(outs, ins)
    assert recorded([backwards], ins)
    assert recorded(*arrays_of(problem, 0x1000_0004))
    driver.context = CONTEXT + 1
    assert recorded(outs, ins)
    driver.context = CONTEXT
    assert not any(recorded(*given) for given in ((outs, ins), ([backwards], ins), arrays_of(problem, 0x2000_0004)))
    assert {launched.kernel for launched in driver.launches} == {driver.launches[0].kernel, driver.launches[2].kernel}
    assert driver.launches[0].kernel != driver.launches[2].kernel, "what is not aligned is loaded in narrower pieces"


def test_forms_are_not_kept_without_end(driver):
    from numconv_cuda.runtime import recording

    problem = parse("window pad f32 n1 c1 in9 w1 s1 p1 d1")
    executor = implementations(problem)[0].build(problem)
    for low in range(0, 256, 4):
        executor(*arrays_of(problem, 0x1000_0000 + low))
        executor(*arrays_of(problem, 0x1000_0000, 0x100_0000 + low))
    assert len(executor._programs) == recording._KEPT
    assert len({launched.parameters for launched in driver.launches}) == 127


def test_a_batch_of_none_launches_nothing(driver):
    problem = parse("conv forward f32 n0 c3 k4 g1 in9 w3 s1 p1 d1")
    for each in implementations(problem):
        each.build(problem)(*arrays_of(problem))
    assert driver.launches == []


def test_threads_launch_at_the_same_time(driver):
    """Each launch has the addresses and the stream of its own thread, though others write theirs while the driver reads."""
    problem = parse(PROBLEMS[0])
    executor = implementations(problem)[-1].build(problem)
    driver.pause = 0.001

    def work(number):
        for _ in range(5):
            executor(*arrays_of(problem, number << 32, stream=100 + number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(driver.launches) == 30
    assert len(driver.kernels) == 1, "the first of them records for all"
    for launched in driver.launches:
        number = launched.stream - 100
        assert {parameter >> 32 for parameter in launched.parameters if parameter >> 32 and parameter < 1 << 40} == {number}


def test_an_executor_that_is_not_recorded():
    from numconv_cuda.direct import _forward

    problem = parse(PROBLEMS[1])
    with pytest.raises(TypeError, match=r"forward is launched outside of a recording: .* must return recorded\(run\)"):
        _forward(problem, *arrays_of(problem))


def test_a_thread_without_a_context_gets_one(driver, monkeypatch):
    from numconv_cuda.runtime import driver as home

    def current_context():
        driver.context = CONTEXT

    monkeypatch.setattr(home, "cuda", types.SimpleNamespace(current_context=current_context))
    driver.context = 0
    assert home.current_context() == CONTEXT


def test_arrays_on_another_device(driver, monkeypatch):
    """Their device's context is current while their kernels are launched."""
    from numconv_cuda.runtime import recording

    class Device:
        def __enter__(self):
            driver.context = CONTEXT + 1

        def __exit__(self, *_):
            driver.context = CONTEXT

    seen = []
    monkeypatch.setattr(recording, "cuda", types.SimpleNamespace(gpus={1: Device()}))
    monkeypatch.setattr(recording, "device_number", lambda array: 1)
    monkeypatch.setattr(recording, "device_of_context", lambda context: context - CONTEXT)
    problem = parse("window pad f32 n1 c1 in9 w1 s1 p1 d1")
    executor = implementations(problem)[0].build(problem)
    monkeypatch.setattr(Driver, "cuLaunchKernelEx", lambda self, *_: seen.append(self.context) or 0)
    executor(*arrays_of(problem))
    assert (seen, driver.context) == ([CONTEXT + 1], CONTEXT)


def test_a_refusal_of_the_driver(driver):
    problem = parse("window pad f32 n1 c1 in9 w1 s1 p1 d1")
    executor = implementations(problem)[0].build(problem)
    driver.status = 1
    words = r"cannot launch copy_strips_\w+ on a grid of \(1, 1, 1\) blocks of 128 threads: error 1, CUDA_ERROR_OF_A_KIND"
    with pytest.raises(NumconvError, match=words):
        executor(*arrays_of(problem))
    driver.status = 0
    executor(*arrays_of(problem))


class Stream:
    def __init__(self, log, handle):
        self.log, self.handle = log, handle


class Event:
    def __init__(self, log):
        self.log = log

    def record(self, stream):
        self.log.append(("record", stream.handle))

    def wait(self, stream):
        self.log.append(("wait", stream.handle))


def test_kernels_run_on_the_streams_of_their_arrays(monkeypatch):
    from numconv_cuda.runtime import recording

    log: list[tuple[str, int]] = []
    fake = types.SimpleNamespace(
        legacy_default_stream=lambda: Stream(log, 1), per_thread_default_stream=lambda: Stream(log, 2),
        external_stream=lambda handle: Stream(log, handle), event=lambda timing: Event(log),
    )  # fmt: skip
    monkeypatch.setattr(recording, "cuda", fake)
    arrays = [types.SimpleNamespace(stream=handle) for handle in (77, 77, None, 1, 2)]
    assert recording._common_stream(arrays[:2]) == 77
    assert log == []  # one stream needs no event
    assert recording._common_stream(arrays) == 77
    assert log == [("record", 1), ("wait", 77), ("record", 2), ("wait", 77)]


@pytest.mark.parametrize("text", [PROBLEMS[0], PROBLEMS[3], *PROBLEMS[4::3]])
def test_parameters_have_the_sizes_that_kernels_expect(monkeypatch, text):
    """Size by size, against the parameters of the compiled kernel, of the implementation that compiles fastest."""
    from numconv_cuda.resources import toolkit_reason
    from numconv_cuda.runtime import compiler, recording

    if reason := toolkit_reason():
        pytest.skip(reason)
    monkeypatch.setattr("numconv_cuda.tensor_cores.tensor_cores.capability", lambda: (9, 0))
    problem = parse(text)
    outs, ins = arrays_of(problem)
    found = recording.Recording([*outs, *ins])
    implementations(problem)[-1].build(problem)._run(found.arrays[: len(outs)], found.arrays[len(outs) :])
    assert found.launches
    for launch in found.launches:
        compiled = Compiled(Driver(), launch.kernel.name, launch.args)
        passed = recording._parameters(found, compiled, compiled.argument_types, launch.args)
        sizes = [len(value) if isinstance(value, bytes) else 8 for value in passed]
        source = compiler.ptx(launch.kernel, compiled.argument_types, (8, 0))
        assert sizes == [int(bits) // 8 for bits in re.findall(r"\.param \.[a-z](\d+) ", source)], launch.kernel.name


def test_pointers_are_passed_as_integers():
    from numba.cuda import types as numba_types
    from numba.cuda.typing.typeof import typeof
    from numconv_cuda.runtime.pointers import Pointer

    pointer = Pointer(2**40, "bfloat16")
    assert typeof(pointer) == numba_types.CPointer(numba_types.uint16)
    assert pointer.shifted(-3) == Pointer(2**40 - 6, "bfloat16")
