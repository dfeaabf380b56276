"""Arrays of callers: which kind, on which device, in a form that executors accept.

What lives on a GPU is known by ``__cuda_array_interface__``, which Numba's documentation specifies. CuPy's arrays behave as NumPy's
and are passed on as they are; those of any other library become a `DeviceArray`, a view that has what the core needs.
Results are allocated by the library of the caller's arrays; large ones of NumPy in memory of earlier ones that are no longer held.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib
import math
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import ProblemError

_OVERLAP_WORK = 100_000
"""Candidate solutions examined before two views count as overlapping."""

__all__ = [
    "DeviceArray",
    "allocator",
    "as_array",
    "check_out",
    "device_of",
    "empty",
    "library_of",
    "on_line",
    "plain",
    "scratch",
    "span_of",
]


class DeviceArray:
    """A view of an array on a GPU that has shape, strides, dtype and transposition as NumPy's have.

    Parameters
    ----------
    owner : object
        The caller's array, which keeps the memory alive.
    pointer : int
        The address of the first element.
    shape, strides : tuple of int
        Strides in bytes.
    dtype : numpy.dtype
    stream : int or None
        The CUDA stream on which the memory is ready, as in version 3 of the interface; None: none is told. See
        `numconv.plugin.streams_of` for libraries that have a current stream.
    read_only : bool
    """

    __slots__ = ("dtype", "owner", "pointer", "read_only", "shape", "stream", "strides")

    def __init__(
        self,
        owner: Any,
        pointer: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        dtype: np.dtype[Any],
        stream: int | None = None,
        *,
        read_only: bool = False,
    ):
        self.owner, self.pointer, self.shape, self.strides = owner, pointer, shape, strides
        self.dtype, self.stream, self.read_only = dtype, stream, read_only

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3, "shape": self.shape, "strides": self.strides, "typestr": self.dtype.str,
            "data": (self.pointer, self.read_only), "stream": self.stream,
        }  # fmt: skip

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    def _view(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> DeviceArray:
        return type(self)(self.owner, self.pointer, shape, strides, self.dtype, self.stream, read_only=self.read_only)

    def transpose(self, axes: tuple[int, ...]) -> DeviceArray:
        """The view with its axes in this order."""
        return self._view(tuple(self.shape[a] for a in axes), tuple(self.strides[a] for a in axes))

    def __getitem__(self, index: None) -> DeviceArray:
        if index is not None:
            raise TypeError(f"a DeviceArray is indexed by None only, which adds an axis, not by {index!r}")
        return self._view((1, *self.shape), (self.itemsize, *self.strides))

    def copy(self) -> DeviceArray:
        """A copy by the owner's own library."""
        owner: Any = self.owner
        if library_of(owner) == "torch":
            copied = owner.clone()
        elif library_of(owner) == "numba":
            copied = empty(self.shape, self.dtype, self)
            copied.copy_to_device(owner)
        else:
            copied = owner.copy()
        found: DeviceArray = as_array(copied, "copy", "array")
        return found

    def scratch(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """Working memory beside this array, from the owner's own library."""
        dtype = np.dtype(dtype)
        owner = empty(shape, dtype, self)
        if library_of(owner) == "torch":  # of which all is known but the address
            return DeviceArray(owner, owner.data_ptr(), shape, _row_major(shape, dtype.itemsize), dtype)
        found: DeviceArray = as_array(owner, "scratch", "array")
        return found


def library_of(array: Any) -> str:
    """The name of the package from which an array comes, of a subclass that of the array that it is."""
    kind: Any = type(array)
    return _library(kind)


@functools.lru_cache(maxsize=256)
def _library(kind: type) -> str:
    names = [each.__module__.split(".")[0] for each in kind.__mro__]
    return next((name for name in names if name in ("cupy", "torch", "numba")), names[0])


def _interface(value: Any, asked: str) -> dict[str, Any] | None:
    """The ``__cuda_array_interface__`` of what lives on a GPU, else None."""
    try:
        found: dict[str, Any] | None = getattr(value, "__cuda_array_interface__", None)
    except RuntimeError as error:  # torch's words about tensors that record gradients
        raise ProblemError(f"{asked} of type {type(value).__name__} does not show its memory: {error}") from error
    return found


def _device_dtype(value: Any, interface: dict[str, Any], asked: str) -> np.dtype[Any]:
    """The dtype; bfloat16, for which the interface has no code, by the name that the library has for it."""
    if str(getattr(value, "dtype", "")).endswith("bfloat16"):
        from .plugin import np_dtype

        return np_dtype("bfloat16")
    dtype: np.dtype[Any] = np.dtype(interface["typestr"])
    if not dtype.isnative:
        raise ProblemError(f"{asked} has the dtype {dtype}, in the byte order of another machine; convert it")
    return dtype


@functools.cache
def _tensor_dtype(dtype: Any) -> np.dtype[Any]:
    from .plugin import np_dtype

    return np_dtype(str(dtype).removeprefix("torch."))


def _of_tensor(value: Any, op: str, name: str) -> DeviceArray:
    """torch's tensor on a GPU: its own words for what ``__cuda_array_interface__`` tells, in a tenth of the time."""
    if value.requires_grad:
        raise ProblemError(
            f"{op}: {name} of type {type(value).__name__} records gradients, which numconv's functions on arrays do not: give "
            "tensor.detach(), or call the function of the same name in numconv.torch"
        )
    if value.is_conj() or value.is_neg():
        raise ProblemError(f"{op}: {name} is conjugated or negated lazily; give tensor.resolve_conj().resolve_neg()")
    try:
        dtype = _tensor_dtype(value.dtype)
        size = dtype.itemsize
        strides = tuple([step * size for step in value.stride()])
        return DeviceArray(value, value.data_ptr(), tuple(value.shape), strides, dtype)
    except (RuntimeError, TypeError) as error:
        raise ProblemError(
            f"{op}: {name} of type {type(value).__name__}, {value.dtype} and {value.layout} does not show its memory: {error}"
        ) from error


def _as_device_array(value: Any, op: str, name: str) -> Any:
    """What lives on a GPU, as CuPy's array or a `DeviceArray`; None for anything else."""
    library = library_of(value)
    if library == "torch" and isinstance(value, sys.modules["torch"].Tensor):
        return _of_tensor(value, op, name) if value.is_cuda else None
    if isinstance(value, DeviceArray) or (library == "cupy" and hasattr(type(value), "__cuda_array_interface__")):
        return value
    asked = f"{op}: {name}"
    interface = _interface(value, asked)
    if interface is None:
        return None
    if interface.get("mask") is not None:
        raise ProblemError(f"{asked} has a mask, and a convolution has no way to leave values out; fill it first")
    dtype = _device_dtype(value, interface, asked)
    shape = tuple(map(int, interface["shape"]))
    strides = interface.get("strides")
    if strides is None:
        strides = _row_major(shape, dtype.itemsize)
    pointer, read_only = interface["data"]
    return DeviceArray(value, pointer or 0, shape, tuple(strides), dtype, interface.get("stream"), read_only=bool(read_only))


def as_array(value: Any, op: str, name: str) -> Any:
    """`value` as a plain array in native byte order, of NumPy or, for what lives on a GPU, of its own library.

    Lists, subclasses of ndarray and whatever NumPy can read become plain arrays without a copy where possible; byte-swapped data is
    copied.
    """
    if type(value) is np.ndarray and value.dtype.isnative and value.flags.aligned:
        return value
    if not isinstance(value, np.ndarray):
        on_device = _as_device_array(value, op, name)
        if on_device is not None:
            return on_device
        if value is None:
            raise ProblemError(f"{op}: {name} is None; give an array")
        try:
            value = np.asarray(value)
        except (ValueError, TypeError) as error:
            raise ProblemError(f"{op}: {name} of type {type(value).__name__} is no array: {error}") from error
    if isinstance(value, np.ma.MaskedArray):
        raise ProblemError(
            f"{op}: {name} is a masked array, and a convolution has no way to leave values out; pass {name}.filled(0)"
        )
    value = np.asarray(value)
    if not value.dtype.isnative:
        value = value.astype(value.dtype.newbyteorder("="))
    if not value.flags.aligned:
        value = value.copy()
    return value


def device_of(array: Any) -> str:
    """``cpu`` or ``gpu``."""
    if isinstance(array, np.ndarray):
        return "cpu"
    if library_of(array) == "torch" and isinstance(array, sys.modules["torch"].Tensor):
        return "gpu" if array.is_cuda else "cpu"
    return "gpu" if isinstance(array, DeviceArray) or _interface(array, "an array") is not None else "cpu"


LINE = 64
"""Bytes of a cache line, and of the widest vectors."""
ALIGNED_BYTES = 1024 * 1024
"""Results from this size on start on a cache line: there stores that cross lines cost more than finding the place."""


KEPT_BYTES = 16 * 1024 * 1024, 128 * 1024 * 1024
"""Results from the one size to the other leave their memory for later ones: the system would take it back and clear it anew."""
_kept: collections.deque[np.ndarray[Any, Any]] = collections.deque(maxlen=2)


def on_line(shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """An uninitialised NumPy array, which starts on a cache line if it is large."""
    size = math.prod(shape) * dtype.itemsize
    if size < ALIGNED_BYTES:
        return np.empty(shape, dtype)
    memory = np.empty(size + LINE, np.uint8) if size < KEPT_BYTES[0] else _kept_memory(size + LINE)
    return np.ndarray(shape, dtype, memory, -memory.ctypes.data % LINE)


def allocator(forms: list[tuple[tuple[int, ...], Any]]) -> Callable[[tuple[int, ...], Any], np.ndarray[Any, Any]]:
    """What makes arrays of these shapes and dtypes: `on_line`, or where that would ask for nothing special NumPy itself."""
    large = any(math.prod(shape) * dtype.itemsize >= ALIGNED_BYTES for shape, dtype in forms)
    return on_line if large else np.empty


class _Loan:
    """A block as an array whose base is no array: views keep that one alive, where they would skip to the block else."""

    def __init__(self, block: np.ndarray[Any, Any]) -> None:
        self.block, self.__array_interface__ = block, block.__array_interface__


def _kept_memory(size: int) -> np.ndarray[Any, Any]:
    """So many bytes or more, which serve a later result when nobody holds them any longer."""
    block = None
    for _ in range(len(_kept)):
        with contextlib.suppress(IndexError):  # another thread was faster
            block = _kept.popleft()
            if size <= block.size <= 2 * size:
                break
            _kept.append(block)
        block = None
    if block is None:
        block = np.empty(size, np.uint8)
    memory = np.asarray(_Loan(block))
    if block.size <= KEPT_BYTES[1]:
        weakref.finalize(memory, _kept.append, block).atexit = False
    return memory


def empty(shape: tuple[int, ...], dtype: Any, like: Any) -> Any:
    """An uninitialised array of the library, and on the device, of `like`."""
    if like is None or isinstance(like, np.ndarray):
        return on_line(shape, np.dtype(dtype))
    owner = like.owner if isinstance(like, DeviceArray) else like
    library = library_of(owner)
    if library == "torch":
        return sys.modules["torch"].empty(shape, dtype=_torch_dtype(np.dtype(dtype)), device=owner.device)
    if library == "numba":
        return importlib.import_module("numba.cuda").device_array(shape, dtype)
    try:
        return importlib.import_module(library).empty(shape, dtype)
    except (ImportError, AttributeError, TypeError) as error:
        raise ProblemError(
            f"there is no way to allocate a {type(owner).__name__} of shape {shape} and dtype {dtype} ({error}); give out="
        ) from error


@functools.cache
def _torch_dtype(dtype: np.dtype[Any]) -> Any:
    return getattr(sys.modules["torch"], dtype.name)


def scratch(shape: tuple[int, ...], dtype: Any, like: Any) -> Any:
    """Working memory for an executor: `empty`, in the form in which executors get arrays."""
    return like.scratch(shape, dtype) if isinstance(like, DeviceArray) else as_array(empty(shape, dtype, like), "scratch", "array")


def plain(array: Any) -> Any:
    """The array in the form in which executors get arrays, on the same memory: no subclass of ndarray, no foreign array."""
    return np.asarray(array) if isinstance(array, np.ndarray) else as_array(array, "out", "array")


def check_out(op: str, out: Any, shape: tuple[int, ...], dtype: Any, inputs: list[Any], name: str) -> None:
    """Raise ProblemError unless results can be written to `out`."""
    like = inputs[0].owner if inputs and isinstance(inputs[0], DeviceArray) else inputs[0] if inputs else None
    kind = np.ndarray if like is None else type(like)
    if not isinstance(out, kind):
        raise ProblemError(
            f"{op}: {name} is a {type(out).__name__}, and the arrays are {kind.__name__} on the {device_of(inputs[0])}; "
            "give the same kind"
        )
    found = out if isinstance(out, np.ndarray) else as_array(out, op, name)
    if tuple(found.shape) != shape or found.dtype != dtype:
        raise ProblemError(
            f"{op}: {name} has shape {tuple(found.shape)} and dtype {found.dtype}, and the result has {shape} and {dtype}"
        )
    if isinstance(out, np.ma.MaskedArray):
        raise ProblemError(f"{op}: {name} is a masked array, and a result has no mask; give {name}.data")
    if isinstance(found, np.ndarray) or not _apart(found, inputs):
        _check_memory(op, _addresses(found), dtype, [_addresses(array) for array in inputs], name)


@functools.lru_cache(maxsize=1024)
def _row_major(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The strides in bytes of an array without gaps."""
    return tuple(itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _apart(out: Any, inputs: list[Any]) -> bool:
    """Whether a glance shows that `out`, on a GPU, is plain memory that may be written and lies apart from all inputs."""
    start, writable = (out.pointer, not out.read_only) if isinstance(out, DeviceArray) else (out.data.ptr, True)
    if not writable or start % out.itemsize or out.strides != _row_major(tuple(out.shape), out.itemsize):
        return False
    end = start + out.size * out.itemsize
    return all(end <= low or high <= start for low, high in map(_reach, inputs))


def _reach(array: Any) -> tuple[int, int]:
    """The first byte of what lives on a GPU, and the one behind its last."""
    start = array.pointer if isinstance(array, DeviceArray) else array.data.ptr
    before, behind = span_of(tuple(array.shape), array.strides, array.itemsize)
    return start - before, start + behind


@functools.lru_cache(maxsize=1024)
def span_of(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """How many bytes of an array lie before its first element, and how many from there on."""
    steps = [step * (size - 1) for step, size in zip(strides, shape, strict=True) if size > 1]
    return -sum(step for step in steps if step < 0), sum(step for step in steps if step > 0) + itemsize


def _addresses(array: Any) -> Any:
    """A NumPy array of the same addresses: of what lives on a GPU to compare addresses only, since the host cannot read it."""
    if isinstance(array, np.ndarray):
        return array
    number = np.dtype(np.uint16) if array.dtype.name == "bfloat16" else array.dtype
    return np.asarray(_Addresses(array.__cuda_array_interface__ | {"version": 3, "typestr": number.str}))


class _Addresses:
    """What NumPy reads as an array without touching its memory."""

    def __init__(self, interface: dict[str, Any]):
        self.__array_interface__ = {key: interface[key] for key in ("version", "shape", "strides", "typestr", "data")}


def _check_memory(op: str, out: Any, dtype: Any, inputs: list[Any], name: str) -> None:
    """Raise ProblemError unless `out` may be written, is aligned, and no two of its elements, or an input, share memory."""
    if not out.flags.writeable:
        raise ProblemError(f"{op}: {name} is read-only; give a writable array")
    if not out.flags.aligned:
        raise ProblemError(f"{op}: {name} is not aligned to its dtype {dtype}; allocate it with numpy.empty")
    if not out.flags.forc and _folds(out):
        raise ProblemError(
            f"{op}: {name} with strides {out.strides} and shape {out.shape} has elements that share memory; give a plain array"
        )
    for array in inputs:
        if isinstance(array, np.ndarray) and np.may_share_memory(out, array) and _overlap(out, array):
            raise ProblemError(
                f"{op}: {name} overlaps an input or another result in memory, and both would be spoilt; give memory of its own"
            )


def _folds(out: Any) -> bool:
    """Whether elements may share memory: some step is shorter than the reach of the axes with smaller steps."""
    reach = out.itemsize
    for stride, size in sorted((abs(stride), size) for stride, size in zip(out.strides, out.shape, strict=True) if size > 1):
        if stride < reach:
            return True
        reach += stride * (size - 1)
    return False


def _overlap(a: Any, b: Any) -> bool:
    try:
        return np.shares_memory(a, b, max_work=_OVERLAP_WORK)  # type: ignore[arg-type]  # the stubs know only -1 and 0
    except np.exceptions.TooHardError:
        return True
