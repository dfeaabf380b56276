"""Kernels: functions on raw addresses, compiled once for each combination of compile-time tags and kept on disk.

A kernel's parameters are typed by their annotations, so that a call unboxes machine words and looks up no types:

``Tag``
    A compile-time constant: a dtype's name, a tile size, an activation. Tags come first, travel in the *type* alone and are
    given to `Kernel.specialise`, not to the call. (A constant in a closure is never found again in the disk cache; a type is.)
``Address``
    The address of an array's first element, passed as an array of NumPy or as an int. In the kernel it is a pointer to bytes:
    ``x + 4 * j`` is the address of another element. (An integer turned into a pointer inside a loop would keep LLVM from
    vectorising it.)
``Vector``
    A contiguous array of int64, read-only in the kernel: sizes and byte strides. Copy what a loop needs into locals.
``int``, ``float``
    int64 and float64.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import logging
import operator
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from typing import Any, NewType, TypeAlias

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.core.errors import TypingError
from numba.extending import NativeValue, models, register_model, unbox

from . import cache
from .parts import Draft, Helper, Library, Part, PartCompiler, compiling
from .tags import Tag, TagType

__all__ = [
    "Address",
    "Kernel",
    "Statistics",
    "Tag",
    "TagType",
    "Unit",
    "Vector",
    "helper",
    "invoke",
    "kernel",
    "matches",
    "statistics",
    "value",
]

# untyped on purpose: Numba's annotations know neither all options nor how an intrinsic is called
intrinsic: Any = numba.extending.intrinsic

_logger = logging.getLogger("numconv")
_LOGGED_SECONDS = 1.0
_PACKAGE = f"{__package__.partition('.')[0]}."

Address = NewType("Address", int)
Vector: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


class AddressType(types.Type):
    """The Numba type of `Address`: a pointer to bytes."""

    def __init__(self) -> None:
        super().__init__(name="Address")


address_type = AddressType()
_PARAMETERS: dict[Any, types.Type] = {
    inspect.Parameter.empty: types.int64,
    int: types.int64,
    float: types.float64,
    Address: address_type,
    Vector: types.Array(types.int64, 1, "C", readonly=True),
}

register_model(AddressType)(models.OpaqueModel)


# Where an object has its type, and an ndarray the address of its data: the first field behind the object's head.
_TYPE_AT, _DATA_AT = object.__basicsize__ - ctypes.sizeof(ctypes.c_void_p), object.__basicsize__
_probe = np.empty(1)
if ctypes.c_void_p.from_address(id(_probe) + _DATA_AT).value != _probe.ctypes.data:
    raise ImportError("NumPy arrays are laid out in an unknown way in this build of Python")


@unbox(AddressType)
def _unbox_address(address: AddressType, obj: Any, c: Any) -> NativeValue:
    """The address from an int, or that of an array's data, which through `ndarray.ctypes` would cost a microsecond a call."""
    builder, slot = c.builder, cgutils.alloca_once(c.builder, cgutils.voidptr_t)
    field = functools.partial(_field, builder, builder.bitcast(obj, cgutils.voidptr_t))
    is_int = builder.icmp_unsigned("==", field(_TYPE_AT), builder.bitcast(c.pyapi.get_c_object("PyLong_Type"), cgutils.voidptr_t))
    with builder.if_else(is_int) as (number, array):
        with number:
            builder.store(builder.inttoptr(c.pyapi.number_as_ssize_t(obj), cgutils.voidptr_t), slot)
        with array:
            builder.store(field(_DATA_AT), slot)
    return NativeValue(builder.load(slot))


def _field(builder: Any, obj: Any, offset: int) -> Any:
    place = builder.gep(obj, [ir.Constant(ir.IntType(64), offset)])
    return builder.load(builder.bitcast(place, cgutils.voidptr_t.as_pointer()))


@intrinsic
def value(typingctx: Any, tag: Any) -> Any:
    """The int or bool of a tag, as a constant that LLVM folds."""
    if not isinstance(tag, TagType) or not isinstance(tag.value, int):
        raise TypingError(f"value() takes a tag with an int or a bool, not {tag}")
    result = types.boolean if isinstance(tag.value, bool) else types.int64

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_constant(result, tag.value)

    return result(tag), codegen


@intrinsic(prefer_literal=True)
def matches(typingctx: Any, tag: Any, literal: Any) -> Any:
    """Whether a tag's value equals a literal, as a constant; the branch not taken costs nothing but must have valid types."""
    if not isinstance(tag, TagType) or not isinstance(literal, types.Literal):
        raise TypingError(f"matches() takes a tag and a literal, not {tag} and {literal}")
    equal = tag.value == literal.literal_value

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(ir.IntType(1), int(equal))

    return types.boolean(tag, literal), codegen


@intrinsic
def invoke(typingctx: Any, entry: Any, *arguments: Any) -> Any:
    """Call a kernel with two tags at an address (`Kernel.address`, `Unit`) with its other arguments; the int that it may return."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        address, *rest = values
        if len(rest) == 1 and isinstance(rest[0].type, ir.LiteralStructType):
            rest = [builder.extract_value(rest[0], i) for i in range(len(rest[0].type.elements))]
        tags = [ir.Constant(cgutils.voidptr_t, None)] * 2
        kind = ir.FunctionType(ir.IntType(64), [each.type for each in (*tags, *rest)])
        return builder.call(builder.inttoptr(address, kind.as_pointer()), [*tags, *rest])

    return types.int64(types.int64, types.StarArgTuple(arguments)), codegen


def helper(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Decorate a function that kernels call: compiled into them (see `parts`), with no entry from Python.

    Options are those of `numba.njit` that concern the code made, such as ``fastmath={"reassoc", "contract", "nsz"}`` for a
    reduction that the "strict" level does not use. `scalar.inlined` puts a helper into its callers.
    """
    if function is None:
        return functools.partial(helper, **options)
    ends = {"nopython": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return Helper(function, targetoptions=options | ends, pipeline_class=PartCompiler)


@dataclass(frozen=True)
class Statistics:
    """What became of a kernel or a unit in this process, over all its tags."""

    signatures: int = 0
    hits: int = 0
    """Loaded from disk."""
    misses: int = 0
    """Compiled."""
    seconds: float = 0.0
    """Spent compiling."""

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(*map(operator.add, astuple(self), astuple(other)))


Members = Callable[..., Iterable[tuple["Kernel", tuple[Any, ...]]]]
Task: TypeAlias = Callable[[], Any]


def _nobody(*tags: Any) -> tuple[()]:
    return ()


def _later(task: Task) -> Task:
    """Nothing is done before it is needed."""
    return task


def _in_thread(task: Task) -> Task:
    """What waits for the task, which a thread of its own does, if there can be one: LLVM holds no lock of the interpreter."""
    pool = ThreadPoolExecutor(1, "numconv_llvm")
    try:
        return pool.submit(task).result
    except RuntimeError:  # the interpreter ends, or the process has no more threads
        return task
    finally:
        pool.shutdown(wait=False)


def _timed(task: Task) -> tuple[Any, float]:
    """What a task returns, and its seconds."""
    start = time.perf_counter()
    return task(), time.perf_counter() - start


def _bound(library: Library, called: list[tuple[Kernel, tuple[Any, ...]]]) -> tuple[Any, ...]:
    """The functions of a library, the first of which are called from Python: tags are parameters too, of which nothing is read."""
    functions = library.functions()
    bound = [functools.partial(each, *[None] * len(own)) for each, (_, own) in zip(functions, called, strict=False)]
    return (*bound, *functions[len(bound) :])


class Unit:
    """Kernels that are needed together, compiled by one run of the compiler into one file on disk.

    Parameters
    ----------
    name : str
        Unique in the package.
    native : callable
        Of the unit's tags: each kernel that is called by its address, with its own tags.
    called : callable
        The same of those that are called from Python.
    """

    def __init__(self, name: str, native: Members = _nobody, *, called: Members = _nobody) -> None:
        self.name = name
        self.statistics = Statistics()
        self._native, self._called = native, called
        self._functions: dict[str, tuple[Any, ...]] = {}
        self._begun: dict[str, Task] = {}
        _units.append(self)

    def begin(self, *tags: Any) -> None:
        """Have LLVM at work for these tags, if they need it, while the caller goes on to what is needed beside: see `functions`."""
        key = repr(tags)
        if key not in self._functions:
            with global_compiler_lock:
                if key not in self._functions and key not in self._begun:
                    self._begun[key] = self._started(tags, _in_thread)

    def functions(self, *tags: Any) -> tuple[Any, ...]:
        """For these tags, those that are called from Python, compiled; then the addresses of the others, for `invoke`."""
        key = repr(tags)  # unlike the tags themselves, it tells 1 from True
        found = self._functions.get(key)
        if found is None:
            with global_compiler_lock:
                found = self._functions.get(key)
                if found is None:
                    end = self._begun.pop(key, None) or self._started(tags)
                    found = self._functions[key] = end()
        return found

    def _started(self, tags: tuple[Any, ...], by: Callable[[Task], Task] = _later) -> Task:
        """What returns the functions, and waits for LLVM, whose work `by` does: see `_in_thread`."""
        start, called, native = time.perf_counter(), [*self._called(*tags)], [*self._native(*tags)]
        members = [*called, *native]
        signatures = [str(kernel.signature(own)) for kernel, own in members]
        file = cache.file_of(self.name, (len(called), *signatures), {kernel.source for kernel, _ in members})
        library = cache.load(file)
        if library is not None:
            self._count(tags, False, time.perf_counter() - start)
            return functools.partial(_bound, library, called)
        with compiling():
            draft = Draft.of(self.name, [kernel.part(own, python=i < len(called)) for i, (kernel, own) in enumerate(members)])
        drafted, machine_code = time.perf_counter() - start, by(functools.partial(_timed, draft.machine_code))

        def end() -> tuple[Any, ...]:
            (code, lasting), seconds = machine_code()
            content = draft.dumped(code)
            if lasting:
                cache.save(file, content)
            self._count(tags, True, drafted + seconds)
            return _bound(Library.loaded(content), called)

        return end

    def _count(self, tags: tuple[Any, ...], missed: bool, seconds: float) -> None:
        self.statistics += Statistics(1, not missed, missed, missed * seconds)
        if missed and seconds > _LOGGED_SECONDS:
            what = f" for {', '.join(map(str, tags))}" if tags else ""
            _logger.info("compiled kernel %s%s in %.1f s", self.name, what, seconds)


class Kernel:
    """A lazily compiled function without the GIL; see the module's text for its parameters.

    Attributes
    ----------
    name : str
        ``module.function``, unique in the package.
    source : str
        The file that defines it.
    emitted : bool
        Whether an intrinsic emits its code as the processor shall run it, which LLVM then leaves as it is. Said of kernels that
        were measured to lose nothing by it: `channelwise` and the gradients of channels and of planes do.
    """

    def __init__(self, function: Callable[..., int | None], *, emitted: bool = False, **options: Any) -> None:
        self.name = f"{function.__module__.removeprefix(_PACKAGE)}.{function.__name__}"
        self.source = function.__code__.co_filename
        self.emitted = emitted
        annotations = [p.annotation for p in inspect.signature(function, eval_str=True).parameters.values()]
        self._tags = annotations.count(Tag)
        if Tag in annotations[self._tags :]:
            raise TypeError(f"kernel {self.name}: parameters annotated Tag come first")
        self._runtime = tuple(_PARAMETERS[annotation] for annotation in annotations[self._tags :])
        self._dispatcher = helper(function, **options)
        self._called, self._native = Unit(self.name, called=self._alone), Unit(self.name, self._alone)

    def __repr__(self) -> str:
        return f"Kernel({self.name})"

    def _alone(self, *tags: Any) -> list[tuple[Kernel, tuple[Any, ...]]]:
        return [(self, tags)]

    @property
    def statistics(self) -> Statistics:
        """What this process compiled and loaded of it alone."""
        return self._called.statistics + self._native.statistics

    def specialise(self, *tags: Any) -> Callable[..., None]:
        """The compiled function for these tags, to be called with the other parameters, positionally and of the exact types.

        Parameters
        ----------
        *tags
            The value of each parameter annotated `Tag`, in order.

        Returns
        -------
        callable
            Compiled machine code. It does not check its arguments; hold it in a plan.
        """
        (found,) = self._called.functions(*tags)
        return found

    def address(self, *tags: Any) -> int:
        """The native entry for these tags, for `invoke`."""
        (found,) = self._native.functions(*tags)
        return found

    def begin(self, *tags: Any) -> None:
        """`Unit.begin`, for `specialise`."""
        self._called.begin(*tags)

    def signature(self, tags: tuple[Any, ...]) -> tuple[types.Type, ...]:
        """The types of its parameters for these tags."""
        if len(tags) != self._tags:
            raise TypeError(f"kernel {self.name} has {self._tags} tags, not {len(tags)}")
        return (*map(TagType, tags), *self._runtime)

    def part(self, tags: tuple[Any, ...], *, python: bool) -> Part:
        """What a library is made of, for these tags."""
        signature = self.signature(tags)
        self._dispatcher.compile(signature)
        return Part(self._dispatcher.overloads[signature], python, self.emitted)


_units: list[Unit] = []


def kernel(function: Callable[..., int | None] | None = None, **options: Any) -> Any:
    """Decorate a kernel: see the module's text and `Kernel`. Other options are those of `numba.njit`."""
    return functools.partial(kernel, **options) if function is None else Kernel(function, **options)


def statistics() -> dict[str, Statistics]:
    """What became of the kernels and units that were used in this process, by name."""
    found: dict[str, Statistics] = {}
    for unit in _units:
        if unit.statistics.signatures:
            found[unit.name] = found.get(unit.name, Statistics()) + unit.statistics
    return dict(sorted(found.items()))
