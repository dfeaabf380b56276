"""The package's only parallel loop, and who may enter it.

Kernels are serial code. `parallel_for` or `parallel_items` in a kernel hands its body to the *region*, the loop of Numba's
threading layer, which the kernel reaches through an address given at the call; address 0 means serial. So nothing in a compiled
kernel depends on the layer, nothing is compiled for it, and a process that never needs two workers never starts it.

One Python thread at a time is inside the region: one that finds it taken runs serially. That keeps the layer ``workqueue`` from
aborting the process, and keeps workers of Dask or joblib from multiplying threads. A forked child runs serially for ever, because
OpenMP aborts in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import math
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import address_of_symbol
from numba import types
from numba.core import cgutils, config
from numba.core.errors import TypingError
from numba.core.imputils import RefType, iternext_impl, lower_builtin
from numba.core.typing.templates import signature
from numba.extending import models, register_model
from numba.np.ufunc.parallel import _launch_threads, threading_layer

from numconv.plugin import requested_threads

from .compiling.compiler import address_type, helper, intrinsic
from .scalar import address, as_integer

__all__ = [
    "MAX_THREADS", "SERIAL_WORK", "SHARED_SECONDS", "Areas", "Kept", "area_of", "common_area", "layer", "lent", "parallel_for",
    "parallel_items", "quota", "run", "run_with", "share", "taken_items", "threads", "worker_area", "workers",
]  # fmt: skip

MAX_THREADS = 64
"""More are never used, so that `workspace` can count working memory without knowing the machine."""
SERIAL_WORK = 5e5
"""Calls of less work than this, in multiply-adds or what takes as long, are not worth waking other threads."""
SHARED_SECONDS = 8e-4
"""Work that takes less is not shared between Python threads, which wait for each other at every step."""
_SPINS, _WAITING = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
_FEW_SPINS = "10000"  # fractions of a millisecond, longer than between one call and the next; GCC's own are 300,000
_SERIAL_WORK_WORKQUEUE = 5e6  # Numba's last resort takes over 100 us to start and to join

_entered = threading.Lock()
_i8p, _i64 = cgutils.voidptr_t, ir.IntType(64)
_i32 = ir.IntType(32)
_TEAM_BIT = 56  # addresses end before it
LINE, END = 128, (1 << 32) - 1  # bytes from range to range in a queue: processors fetch lines in pairs; the bits of its end

# What a threading layer of Numba calls, and its entries: the loop, and the threads that it may use, to ask and to set.
_body_type = ir.FunctionType(ir.VoidType(), [_i8p.as_pointer(), _i64.as_pointer(), _i64.as_pointer(), _i8p])
_loop_type = ir.FunctionType(ir.VoidType(), [_i8p, _i8p.as_pointer(), _i64.as_pointer(), _i64.as_pointer(), _i8p, _i64, _i64, _i64])
_asking_type, _setting_type = ir.FunctionType(_i32, []), ir.FunctionType(ir.VoidType(), [_i32])
_ENTRIES = "numba_parallel_for", "get_num_threads", "set_num_threads"


@functools.cache
def _entries() -> np.ndarray[Any, Any] | None:
    """The addresses of the layer's entries, or None if Numba finds no threading layer."""
    try:
        with _spinning_briefly():
            _launch_threads()
    except ValueError:
        return None
    if layer() == "workqueue":
        _Process.serial_work = _SERIAL_WORK_WORKQUEUE
    return np.array([address_of_symbol(name) for name in _ENTRIES], np.int64)


@contextlib.contextmanager
def _spinning_briefly() -> Iterator[None]:
    """GCC's OpenMP, if it is loaded in the block, lets its threads spin for a fraction of a millisecond before they sleep.

    Threads that wait for one without a processor keep others from it. Where another process computed too, each loop took
    milliseconds, and training a small network several times as long. A user who has set how threads wait is obeyed.
    """
    if {_SPINS, _WAITING} & os.environ.keys():
        yield
        return
    os.environ[_SPINS] = _FEW_SPINS
    try:
        yield
    finally:
        del os.environ[_SPINS]


@functools.cache
def _region_of(team: int) -> int:
    """What kernels take for the region: the address of its entries, and above it how many threads there are."""
    entries = _entries()
    return 0 if entries is None else int(entries.ctypes.data) | team << _TEAM_BIT


@intrinsic
def parallel_for(typingctx: Any, region: Any, workers: Any, items: Any, body: Any, args: Any) -> Any:
    """Call ``body(begin, end, args)`` so that the work items 0..items are all done, by several workers or by this thread.

    Used inside kernels. The body is compiled once, whether it runs serially or not. Workers get contiguous parts of the items.

    Parameters
    ----------
    region, workers, items : int
        What `run` passes to a kernel.
    body : function
        A `compiler.helper` that returns nothing and does not raise.
    args : tuple
        Anything that the body needs, of any types.
    """
    return _parallel(body, args, types.int64, _call_for_part)


@intrinsic
def parallel_items(typingctx: Any, region: Any, workers: Any, items: Any, body: Any, args: Any) -> Any:
    """Call ``body(worker, queue, args)``, by several workers or by this thread, where each goes through its `taken_items`.

    As `parallel_for`, for items that are worth an atomic operation each. A worker that is done helps others: none waits for one
    whose processor is slow or has other work.
    """
    return _parallel(body, args, address_type, _call_with_queue)


def _parallel(body: Any, args: Any, second: Any, calling: Callable[..., None]) -> Any:
    """Signature and code of a parallel loop, whose body takes an int, something of the type `second`, and args."""
    if not isinstance(body, types.Dispatcher) or not isinstance(args, types.BaseTuple):
        raise TypingError(f"a parallel loop takes a jitted body and a tuple, not {body} and {args}")
    compiled = body.dispatcher.get_compile_result(signature(types.none, types.int64, second, args))
    queued = calling is _call_with_queue

    def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        region, workers, items, _, arguments = values
        context.active_code_library.add_linking_library(compiled.library)
        loop = _loop_body(context, builder.module, compiled.fndesc, calling)
        parallel = builder.and_(builder.icmp_signed("!=", region, _i64(0)), builder.icmp_signed(">", workers, _i64(1)))
        workers = builder.select(parallel, workers, _i64(1))
        queue = _queue(builder, workers, items) if queued else ir.Constant(_i8p, None)
        frame = cgutils.alloca_once_value(builder, cgutils.pack_struct(builder, [workers, items, queue, arguments]))
        # worker `i` is told so by the address i, that of the layer's only array: it starts at 0, in steps of 1
        first = cgutils.alloca_once_value(builder, ir.Constant(_i8p, None))
        step = cgutils.alloca_once_value(builder, _i64(1))
        count = cgutils.alloca_once_value(builder, workers)
        data = builder.bitcast(frame, _i8p)
        with builder.if_else(parallel) as (shared, alone):
            with shared:
                _enter(builder, region, [builder.bitcast(loop, _i8p), first, count, step, data, _i64(0), _i64(1)])
            with alone:
                builder.call(loop, [first, count, step, data])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, body, args), codegen


def _queue(builder: Any, workers: Any, items: Any) -> Any:
    """What all workers see of the items that nobody took: the number of workers, then of each a range, on cache lines of their own.

    The first item and the end of a range are the halves of one number, so that one operation changes both.
    """
    memory = cgutils.alloca_once(builder, ir.ArrayType(_i64, LINE // 8 * (MAX_THREADS + 1)))
    memory.align = LINE
    queue = builder.bitcast(memory, _i64.as_pointer())
    builder.store(workers, queue)
    with cgutils.for_range(builder, workers) as each:
        begin, end = _part_of(builder, each.index, workers, items)
        place = builder.mul(builder.add(each.index, _i64(1)), _i64(LINE // 8))
        builder.store(builder.or_(builder.shl(begin, _i64(32)), end), builder.gep(queue, [place]))
    return builder.bitcast(memory, _i8p)


def _part_of(builder: Any, worker: Any, workers: Any, items: Any) -> tuple[Any, Any]:
    """The contiguous part of the items with which a worker begins."""
    begin, end = (builder.sdiv(builder.mul(items, each), workers) for each in (worker, builder.add(worker, _i64(1))))
    return begin, end


@intrinsic
def _exchanged(typingctx: Any, where: Any, known: Any, new: Any) -> Any:
    """Whether an int64 was still what is known of it, and so became new."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        where, known, new = args
        found = builder.cmpxchg(builder.bitcast(where, _i64.as_pointer()), known, new, "acq_rel", "monotonic")
        return builder.extract_value(found, 1)

    return types.boolean(address_type, types.int64, types.int64), codegen


@intrinsic
def _seen(typingctx: Any, where: Any) -> Any:
    """An int64 that other threads change."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load_atomic(builder.bitcast(args[0], _i64.as_pointer()), "acquire", 8)

    return types.int64(address_type), codegen


@intrinsic
def _show(typingctx: Any, where: Any, new: Any) -> Any:
    """Change an int64 that other threads read."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store_atomic(args[1], builder.bitcast(args[0], _i64.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(address_type, types.int64), codegen


@helper
def _helped(queue, worker):
    """Whether there was something to take from another worker: the later half of what it has left becomes the worker's own.

    No range comes back where it was: an item that was taken, or lies behind a half that was, is not in it. So a range that is as
    it was seen has not changed.
    """
    workers = _seen(queue)
    for distance in range(1, workers):
        other = queue + (1 + (worker + distance) % workers) * LINE
        left = _seen(other)
        while left >> 32 < left & END:
            begin, end = left >> 32, left & END
            middle = (begin + end) // 2
            if _exchanged(other, left, begin << 32 | middle):
                _show(queue + (1 + worker) * LINE, middle << 32 | end)
                return True
            left = _seen(other)
    return False


@helper
def _next_item(queue, worker):
    """The next item for a worker, or -1 if there is none left."""
    own = queue + (1 + worker) * LINE
    while True:
        left = _seen(own)
        while left >> 32 < left & END:
            if _exchanged(own, left, left + (1 << 32)):
                return left >> 32
            left = _seen(own)
        if not _helped(queue, worker):
            return -1


class _TakenType(types.SimpleIteratorType):  # type: ignore[name-defined,misc]
    def __init__(self) -> None:
        super().__init__("taken items", types.int64)


_taken = _TakenType()


@register_model(_TakenType)
class _TakenModel(models.StructModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, [("queue", address_type), ("worker", types.int64)])


@intrinsic
def taken_items(typingctx: Any, queue: Any, worker: Any) -> Any:
    """The items that a worker takes, one after the other: those of its own part in their order, then some of others."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        found = cgutils.create_struct_proxy(_taken)(context, builder)
        found.queue, found.worker = args
        return found._getvalue()

    return _taken(address_type, types.int64), codegen


@lower_builtin("getiter", _TakenType)
def _lower_iterator(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return args[0]


@lower_builtin("iternext", _TakenType)
@iternext_impl(RefType.UNTRACKED)
def _lower_next(context: Any, builder: Any, sig: Any, args: Any, result: Any) -> None:
    taken = cgutils.create_struct_proxy(_taken)(context, builder, args[0])
    kind = signature(types.int64, address_type, types.int64)
    compiled = _next_item.get_compile_result(kind)
    context.active_code_library.add_linking_library(compiled.library)
    item = context.call_internal(builder, compiled.fndesc, kind, [taken.queue, taken.worker])
    result.set_valid(builder.icmp_signed(">=", item, _i64(0)))
    result.yield_(item)


def _enter(builder: Any, region: Any, arguments: list[Any]) -> None:
    """Run the layer's loop.

    All threads of the team are called, whatever the number of workers: GCC's OpenMP ends those that a smaller team leaves out, and
    starts others for the next large one. Afterwards this thread may use as many as before.
    """
    team = builder.lshr(region, _i64(_TEAM_BIT))
    entries = builder.inttoptr(builder.and_(region, _i64((1 << _TEAM_BIT) - 1)), _i64.as_pointer())
    loop, asked, set_to = (
        builder.inttoptr(builder.load(builder.gep(entries, [_i64(i)])), kind.as_pointer())
        for i, kind in enumerate((_loop_type, _asking_type, _setting_type))
    )
    before = builder.call(asked, [])
    builder.call(set_to, [builder.trunc(team, _i32)])
    builder.call(loop, [*arguments, team])
    builder.call(set_to, [before])


def _loop_body(context: Any, module: Any, body: Any, calling: Callable[..., None]) -> Any:
    """A function that the layer calls, for some of the workers: each calls the body, by `calling`."""
    name = f"{body.mangled_name}.loop"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, _body_type, name)
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    first, count, _, data = function.args
    args_type = body.argtypes[2]
    frame_type = ir.LiteralStructType([_i64, _i64, _i8p, context.get_value_type(args_type)])
    frame = builder.load(builder.bitcast(data, frame_type.as_pointer()))
    workers, items, queue, arguments = (builder.extract_value(frame, i) for i in range(4))
    start = builder.ptrtoint(builder.load(first), _i64)

    def call(*values: Any) -> None:
        # inlined, the body would lose the attributes that its intrinsics gave it
        declared = context.declare_function(module, body)
        context.call_conv.call_function(builder, declared, body.restype, body.argtypes, [*values, arguments], attrs=("noinline",))

    with cgutils.for_range_slice(builder, start, builder.add(start, builder.load(count)), _i64(1)) as (worker, _):
        calling(builder, call, worker, workers, items, queue)
    builder.ret_void()
    return function


def _call_for_part(builder: Any, call: Callable[..., None], worker: Any, workers: Any, items: Any, queue: Any) -> None:
    begin, end = _part_of(builder, worker, workers, items)
    with builder.if_then(builder.icmp_signed("<", begin, end)):
        call(begin, end)


def _call_with_queue(builder: Any, call: Callable[..., None], worker: Any, workers: Any, items: Any, queue: Any) -> None:
    call(worker, queue)


class _Process:
    """What this process has learned about itself."""

    forked = False
    serial_work = SERIAL_WORK


def _after_fork() -> None:
    _Process.forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _launched() -> int:
    """The number of threads that Numba's layer has once it is started."""
    return int(config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


def quota() -> float:
    """The number of processors that the control group grants, or infinity."""
    root = pathlib.Path("/sys/fs/cgroup")
    try:
        group = next(line for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        folder = root / group[3:].lstrip("/")
    except (OSError, StopIteration):
        folder = root
    found = [math.inf]
    for place in (folder, *folder.parents):
        if place == root.parent:
            break
        found.append(_ratio(place / "cpu.max"))
    found.append(_ratio(root / "cpu/cpu.cfs_quota_us", root / "cpu/cpu.cfs_period_us"))
    return min(found)


def _ratio(*files: pathlib.Path) -> float:
    try:
        quota, period = " ".join(file.read_text() for file in files).split()
        return math.inf if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


@functools.cache
def _default_threads() -> int:
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        return 1
    counts = [_launched(), quota()]
    if hasattr(os, "sched_getaffinity"):
        counts.append(len(os.sched_getaffinity(0)))
    openmp = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if openmp.isdecimal():
        counts.append(int(openmp))
    return max(1, math.ceil(min(counts)))


def threads() -> int:
    """The number of threads that a large call may use here and now."""
    if _Process.forked:
        return 1
    requested = requested_threads()
    return min(_default_threads() if requested is None else min(requested, _launched()), MAX_THREADS)


def workers(items: int, work: float) -> int:
    """The number of workers for a call of `items` independent items and `work` multiply-adds."""
    if items < 2 or work < _Process.serial_work:
        return 1
    return min(items, threads())


class Areas:
    """The parts of a worker's scratch memory.

    It is taken from memory that is kept from call to call.

    Parameters
    ----------
    *sizes : int
        Bytes of each part. They start on cache lines.
    """

    def __init__(self, *sizes: int):
        self._ends = [0, *itertools.accumulate(-(-size // 64) * 64 for size in sizes)]
        self.bytes = self._ends[-1]

    @functools.cached_property
    def offsets(self) -> Any:
        """Where each part begins, and the last one ends: made where they are used, since a plan may find that they are too many."""
        return np.array(self._ends, np.int64)


class Memory:
    """Memory that is kept from call to call, since fresh memory costs a page fault every 4 KiB.

    Parameters
    ----------
    most : int
        Bytes; more are not kept.
    """

    def __init__(self, most: int):
        self._most = most
        self._buffer = np.empty(0, np.uint8)

    def take(self, size: int) -> Any:
        """At least `size` bytes, which the next one who asks gets too."""
        if size > self._most:
            return np.empty(size, np.uint8)
        if self._buffer.size < size:
            self._buffer = np.empty(0, np.uint8)
            # NumPy asks for huge pages from 4 MiB on
            self._buffer = np.empty(max(size, 4 * 2**20), np.uint8)
        return self._buffer


class Kept(threading.local, Memory):
    """Memory of a Python thread."""

    def __init__(self) -> None:
        super().__init__(32 * 2**20)


_kept = Kept()
_shared = Memory(256 * 2**20)
"""Of whoever is inside the region: the scratch memory of all workers, which grows with their number."""


@helper
def area_of(scratch, areas, count, worker):
    """The start of the scratch memory of a worker; `areas` has `count` parts."""
    return address((as_integer(scratch) + 63) & ~63) + worker * areas[count]


@helper
def worker_area(scratch, areas, count, workers, items, begin):
    """The same of the worker whose items start at `begin`."""
    return area_of(scratch, areas, count, -(-begin * workers // items))


@helper
def common_area(scratch, areas, count, workers):
    """The start of the memory that all workers have in common."""
    return address((as_integer(scratch) + 63) & ~63) + workers * areas[count]


def run_with(areas: Areas, compiled: Callable[..., None], items: int, work: float, *args: Any, common: int = 0) -> None:
    """`run` a kernel that takes scratch memory: its parameters go on with (scratch, offsets of the areas).

    `common`: bytes behind the areas of all workers, from `common_area` on.
    """
    if items > 1 and work >= _Process.serial_work:
        team = threads()
        count = min(items, team)
        if team > 1 and _entered.acquire(blocking=False):
            try:
                memory = _shared.take(count * areas.bytes + common + 64)
                compiled(_region_of(team), count, items, memory, areas.offsets, *args)
            finally:
                _entered.release()
            return
    compiled(0, 1, items, _kept.take(areas.bytes + common + 64), areas.offsets, *args)


def run(compiled: Callable[..., None], items: int, work: float, *args: Any) -> None:
    """Call a compiled kernel, whose first parameters are (region, workers, items), in parallel if that pays and is safe.

    Parameters
    ----------
    compiled : callable
        From `Kernel.specialise`.
    items : int
        Number of work items: at most as many workers are used.
    work : float
        Multiply-adds of the whole call, or what takes as long.
    *args
        The kernel's other parameters.
    """
    if items > 1 and work >= _Process.serial_work:
        team = threads()
        if team > 1 and _entered.acquire(blocking=False):
            try:
                compiled(_region_of(team), min(items, team), items, *args)
            finally:
                _entered.release()
            return
    compiled(0, 1, items, *args)


_Body = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)
_Loop = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 5, *[ctypes.c_int64] * 3)
_Asking, _Setting = ctypes.CFUNCTYPE(ctypes.c_int32), ctypes.CFUNCTYPE(None, ctypes.c_int32)


def _enter_with(body: Callable[[], object], count: int, team: int) -> None:
    """Call a Python function that does not raise in so many threads of the region at once, as `_enter` calls a compiled one."""
    entries = _entries()
    if entries is None:
        body()
        return
    loop, asked, set_to = (kind(int(entry)) for kind, entry in zip((_Loop, _Asking, _Setting), entries, strict=True))

    def run_some(first: int, counts: int, steps: int, data: int) -> None:
        for _ in range(ctypes.c_int64.from_address(counts).value):
            body()

    firsts, counts, steps = ctypes.c_void_p(None), ctypes.c_int64(count), ctypes.c_int64(1)
    before = asked()
    set_to(team)
    loop(_Body(run_some), ctypes.addressof(firsts), ctypes.addressof(counts), ctypes.addressof(steps), None, 0, 1, team)
    set_to(before)


def share(items: Sequence[int], seconds: float, most: int, body: Callable[[int], object]) -> None:
    """Call ``body`` with each item, from this thread, and from the others of the region if that pays and is safe.

    For work that goes through libraries which release the GIL. The region's own threads take it, because they go on spinning for
    a while after they computed: other threads would have to wait for their processors.

    Parameters
    ----------
    items : sequence of int
        One for each call; calls begin in this order.
    seconds : float
        Estimate for all calls by one thread.
    most : int
        Calls at a time, as many as there is memory for.
    body : callable
        It waits for no call but those that have begun before.
    """
    team = threads() if seconds >= SHARED_SECONDS else 1
    count = min(team, len(items), most)
    if count < 2 or not _entered.acquire(blocking=False):
        for item in items:
            body(item)
        return
    waiting, errors = iter(items), []  # next() on it is atomic

    def go() -> None:
        try:
            for item in waiting:
                body(item)
        except BaseException as error:  # noqa: BLE001 - no exception passes the region: the caller raises it
            errors.append(error)

    try:
        _enter_with(go, count, team)
    finally:
        _entered.release()
    if errors:
        raise errors[0]


@contextlib.contextmanager
def lent(seconds: float) -> Iterator[int]:
    """How many threads a library may use in the block, for work that takes one of them so long: one where others are at work.

    Whoever has more of them counts as inside the region, as in `share`.
    """
    count = threads() if seconds >= SHARED_SECONDS else 1
    if count < 2 or not _entered.acquire(blocking=False):
        yield 1
        return
    try:
        yield count
    finally:
        _entered.release()


def layer() -> str:
    """The name of Numba's threading layer, or "not started"."""
    try:
        return str(threading_layer())
    except ValueError:
        return "not started"
