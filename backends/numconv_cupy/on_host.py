"""The kernels run on a host: the same source, compiled by a C++ compiler, with the grid as a loop.

For tests and for debugging where there is no GPU: it checks index arithmetic, arithmetic, barriers and host code, but no speed.
Threads that share nothing are run one after the other; those that meet at barriers take turns.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import pathlib
import shutil
import subprocess
import tempfile
from typing import Any

import numpy as np

from numconv.plugin import cache_dir

from .launching import THREADS, Launch
from .source import Kernel, source_of

__all__ = ["HostKernels", "compiler", "grid_of"]

# No header of the C++ library: they would take most of the time of a compilation.
_BEFORE = """
#define NUMCONV_HOST
#define __global__
#define __device__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
extern "C" {
float fmaf(float, float, float), expf(float), erfcf(float), sqrtf(float), powf(float, float), fabsf(float);
double fma(double, double, double), exp(double), erfc(double), sqrt(double), pow(double, double), fabs(double);
}
template <class T> static inline T min(T a, T b) { return b < a ? b : a; }
template <class T> static inline T max(T a, T b) { return a < b ? b : a; }
struct Index { unsigned x; };
static thread_local Index blockIdx, threadIdx, blockDim, gridDim;
#define __shared__ static thread_local
#define DYNAMIC_MEMORY(TYPE, NAME) static thread_local TYPE NAME[(48 << 10) / sizeof(TYPE)]
static void __syncthreads();
static int __syncthreads_or(int);
"""

_AFTER = """
template <int... I> struct Places {};
template <int N, int... I> struct Count : Count<N - 1, N - 1, I...> {};
template <int... I> struct Count<0, I...> { typedef Places<I...> all; };
template <class... A, int... I> static void call(void (*function)(A...), void **arguments, Places<I...>) {
  function(*static_cast<A *>(arguments[I])...);
}
template <class... A> static void call(void (*function)(A...), void **arguments) {
  call(function, arguments, typename Count<sizeof...(A)>::all());
}
#ifndef NUMCONV_BARRIERS
extern "C" void run_grid(void **arguments, unsigned blocks, unsigned threads) {
  blockDim.x = threads;
  gridDim.x = blocks;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) call(KERNEL, arguments);
}
#else
// A thread of a block is a context of its own, which goes on where it was when all the others have come to the same barrier.
#include <stdlib.h>
#include <ucontext.h>
enum { STACK = 1 << 16 };
static thread_local ucontext_t *contexts, scheduler;
static thread_local void **given;
static thread_local bool *done;
static thread_local int any;
static void __syncthreads() { swapcontext(&contexts[threadIdx.x], &scheduler); }
static int __syncthreads_or(int value) {
  any |= value;
  __syncthreads();
  return any;
}
static void body() {
  call(KERNEL, given);
  done[threadIdx.x] = true;
}
extern "C" void run_grid(void **arguments, unsigned blocks, unsigned threads) {
  given = arguments;
  blockDim.x = threads;
  gridDim.x = blocks;
  contexts = (ucontext_t *)calloc(threads, sizeof(ucontext_t));
  done = (bool *)calloc(threads, 1);
  char *stacks = (char *)malloc((size_t)STACK * threads);
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    any = 0;
    for (unsigned thread = 0; thread < threads; ++thread) {
      getcontext(&contexts[thread]);
      contexts[thread].uc_stack.ss_sp = stacks + (size_t)STACK * thread;
      contexts[thread].uc_stack.ss_size = STACK;
      contexts[thread].uc_link = &scheduler;
      makecontext(&contexts[thread], body, 0);
      done[thread] = false;
    }
    for (bool more = true; more;) {
      more = false;
      for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
        if (!done[threadIdx.x]) {
          swapcontext(&scheduler, &contexts[threadIdx.x]);
          more = more || !done[threadIdx.x];
        }
    }
  }
  free(stacks);
  free(done);
  free(contexts);
}
#endif
"""
_OPTIONS = ("-std=c++17", "-O1", "-march=native", "-ffp-contract=off", "-fPIC", "-shared", "-w")


def compiler() -> str | None:
    """The path of a C++ compiler that knows 16-bit floats, if there is one."""
    return shutil.which("g++") or shutil.which("clang++")


class HostKernels:
    """A `launching.Launcher` for NumPy arrays."""

    capability = (8, 0)
    """Of which what only a device has is replaced in the kernels."""

    def constant(self, value: Any) -> Any:
        """The value."""
        return value

    def prepare(self, kernel: Kernel, threads: int, block: int = THREADS, memory: int = 0) -> Launch:
        """What runs all threads, one after the other."""

        def launch(*arguments: Any) -> None:
            if threads:
                held = [_held(each) for each in arguments]
                pointers = (ctypes.c_void_p * len(held))(*(each.ctypes.data for each in held))
                _compiled(kernel)(pointers, ctypes.c_uint(-(-threads // block)), ctypes.c_uint(block))

        return launch


def _held(argument: Any) -> np.ndarray[Any, Any]:
    """An array that holds the bytes of a kernel's argument: for an array its address."""
    if isinstance(argument, np.ndarray) and argument.dtype.names is None:
        return np.array([argument.ctypes.data], np.uint64)
    return np.atleast_1d(argument)


def _compiled(kernel: Kernel) -> Any:
    return grid_of(kernel.name, source_of(kernel.name), kernel.options)


@functools.lru_cache(maxsize=1024)
def grid_of(name: str, source: str, options: tuple[str, ...]) -> Any:
    """``run_grid(arguments, blocks, threads)`` of a kernel: addresses of the arguments, then two unsigned integers."""
    text = "\n".join((_BEFORE, source, _AFTER.replace("KERNEL", name)))
    command = [str(compiler()), *_OPTIONS, *options]
    key = hashlib.sha256("\n".join((text, *command)).encode()).hexdigest()[:24]
    folder = cache_dir() / "cuda_on_host"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{key}.so"
    if not path.exists():
        _build(text, command, path)
    return ctypes.CDLL(str(path)).run_grid


def _build(text: str, command: list[str], path: pathlib.Path) -> None:
    """Compile beside the target and move it there, so that another process never loads half a file."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        source, built = pathlib.Path(folder, "kernel.cpp"), pathlib.Path(folder, "kernel.so")
        source.write_text(text, encoding="utf-8")
        done = subprocess.run([*command, "-o", str(built), str(source)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the kernel does not compile: {' '.join(command)}\n{done.stderr}")
        built.replace(path)
