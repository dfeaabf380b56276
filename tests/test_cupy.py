"""The CuPy backend on machines without a GPU: its array operations on NumPy and on array_api_strict, its kernels on the host."""

import importlib.util

import numpy as np
import pytest
from numconv_cupy.direct import Depthwise, Direct, FewChannels
from numconv_cupy.fft import Fft, FftDouble
from numconv_cupy.on_host import HostKernels, compiler
from numconv_cupy.pooling import Pool
from numconv_cupy.products import Matmul, Pointwise
from numconv_cupy.source import NULL
from numconv_cupy.windows import Windows

from numconv.plugin import Implementation, Verdict
from numconv.registry import default_registry
from numconv.testing import CONV_PROBLEMS, BackendContract

HAS_STRICT = importlib.util.find_spec("array_api_strict") is not None
needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: neither g++ nor clang++")
needs_strict = pytest.mark.skipif(not HAS_STRICT, reason="the package array_api_strict is not installed")


class StandIn:
    """The implementations of the plugin with something in place of CuPy."""

    device = "cpu"
    automatic = False
    version = "0"

    def __init__(self, name, implementations, reason=""):
        self.name, self._implementations, self._reason = name, implementations, reason

    def availability(self):
        return Verdict.no(self._reason) if self._reason else Verdict.yes()

    def implementations(self):
        return self._implementations


def reference_redo(problem):
    """In place of a kernel, which needs a compiler: the reference, where a flag is set, in a box of positions."""
    reference = next(i for i in default_registry().backend("reference").implementations() if problem.op in i.ops)

    def run(outs, ins, flags=NULL, box=None):
        everything = flags is NULL
        if not (everything or flags.any()):
            return
        results = [np.empty(out.shape, out.dtype) for out in outs]
        reference.build(problem)(results, ins)
        if problem.op == "weight_grad":
            outs[0][...] = results[0]
            return
        first, count = box or ((0,) * problem.ndim, outs[0].shape[2:])
        places = tuple(slice(begin, begin + size) for begin, size in zip(first, count, strict=True))
        for image in range(problem.n):
            if everything or flags[image]:
                outs[0][(image, ..., *places)] = results[0][(image, ..., *places)]

    return run


def by_arrays(redo_of):
    return Pointwise(redo_of), Matmul(redo_of), Fft(redo_of), FftDouble(redo_of)


# --- array operations, on NumPy ------------------------------------------------------------------------------------------------


class TestCupyOnNumpy(BackendContract):
    backend = StandIn("cupy-on-numpy", by_arrays(reference_redo))
    problems = CONV_PROBLEMS
    levels = ("high", "default")
    forms = ("channels-last", "mixed")


# --- array operations, on array_api_strict -------------------------------------------------------------------------------------


class OnStrict(Implementation):
    """An implementation on arrays of array_api_strict that lie on its second device."""

    name, ops = "", frozenset()

    def __init__(self, inner):
        self.inner, self.name, self.ops, self.levels = inner, inner.name, inner.ops, inner.levels

    def supports(self, problem):
        if "float16" in problem.dtype:
            return Verdict.no(f"array_api_strict has no {problem.dtype}")
        if problem.activation == "gelu":
            return Verdict.no("the array API has no erfc")
        return self.inner.supports(problem)

    def cost(self, problem):
        return self.inner.cost(problem)

    def workspace(self, problem):
        return self.inner.workspace(problem)

    def build(self, problem):
        import array_api_strict as xp

        executor = self.inner.build(problem)

        def run(outs, ins):
            moved = [[xp.asarray(a, device=xp.Device("device1"), copy=True) for a in arrays] for arrays in (outs, ins)]
            executor(*moved)
            for out, result in zip(outs, moved[0], strict=True):
                out[...] = result._array

        return run


def strict_redo(problem):
    """A kernel reads the memory of a device; this one the arrays behind those of array_api_strict."""
    run = reference_redo(problem)
    return lambda outs, ins, flags=NULL, box=None: run(
        [a._array for a in outs], [a._array for a in ins], flags if flags is NULL else flags._array, box
    )


@needs_strict
class TestCupyOnArrayApiStrict(BackendContract):
    """Nothing may ask for a value on the host: what would wait for a GPU is an error here."""

    backend = StandIn("cupy-on-strict", tuple(map(OnStrict, by_arrays(strict_redo))))
    problems = CONV_PROBLEMS[::2]
    levels = ("high", "default")
    forms = ("C-contiguous",)

    @pytest.fixture(autouse=True)
    def _no_waiting(self, monkeypatch):
        import array_api_strict as xp

        for method in ("__bool__", "__int__", "__float__", "__complex__", "__index__", "__array__", "__buffer__", "__dlpack__"):
            monkeypatch.setattr(xp._array_object.Array, method, _refuse, raising=False)


def _refuse(array, *args, **kwargs):
    raise AssertionError("a value was asked for on the host")


@needs_strict
def test_asking_for_a_value_is_seen(monkeypatch):
    import array_api_strict as xp

    TestCupyOnArrayApiStrict._no_waiting.__wrapped__(None, monkeypatch)
    array = xp.asarray([1.0], device=xp.Device("device1"))
    for ask in (lambda: bool(array[0] > 0), lambda: float(array[0]), lambda: np.asarray(array)):
        with pytest.raises(AssertionError, match="a value was asked for on the host"):
            ask()
