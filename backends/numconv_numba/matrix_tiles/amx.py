"""Whether this process may use AMX, Intel's matrix tiles: the processor, the system's permission, and a product to see it right.

The environment variable NUMCONV_AMX switches it: ``off`` leaves it out; ``emulate`` computes the same results in vectors anywhere,
many times slower, which serves tests: what is emulated is never chosen by its cost.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from typing import Any

import numpy as np
from numba.core.registry import cpu_target

from numconv.plugin import Verdict
from numconv_numba.microkernels.amx import EMULATED, PROCESSOR, ROW_BYTES, ROWS, configuration, configure, release
from numconv_numba.microkernels.amx_gemm import multiply_tiles

__all__ = ["availability", "body", "forget"]

VARIABLE = "NUMCONV_AMX"
_IN_VECTORS = Verdict.yes("AMX is emulated")
NEEDED = ("amx-tile", "amx-bf16", "avx512f")
# of Linux on x86-64: arch/x86/include/uapi/asm/prctl.h, asm/unistd_64.h, and the number of the tiles in XCR0
ARCH_PRCTL, ARCH_GET_XCOMP_PERM, ARCH_REQ_XCOMP_PERM, TILE_DATA = 158, 0x1022, 0x1023, 18


@functools.cache
def availability() -> Verdict:
    """Whether matrix tiles can be used here and now, and why not; asks the system once a process."""
    asked = os.environ.get(VARIABLE, "").strip()
    if asked == "emulate":
        return _IN_VECTORS
    if asked == "off":
        return Verdict.no(f"{VARIABLE}=off switches AMX off")
    if asked:
        return Verdict.no(f"{VARIABLE} is {asked!r}, and may be 'off', 'emulate' or not set")
    for step in (_processor, _permission, _right):
        if not (verdict := step()):
            return verdict
    return Verdict.yes()


def forget() -> None:
    """Find out again: in a forked child, and where the environment has changed."""
    availability.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)


def body() -> str:
    """Which body kernels on matrix tiles have: a tag, see `microkernels.amx`. A later change of the environment does not matter."""
    return EMULATED if availability() == _IN_VECTORS else PROCESSOR


def _processor() -> Verdict:
    """By LLVM's features, which include that the system keeps the registers."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return Verdict.no(f"AMX is used on Linux on x86-64 only, and this is {sys.platform} on {platform.machine()}")
    features = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    missing = [name for name in NEEDED if f"+{name}" not in features]
    return Verdict.no(f"the processor has no AMX for bfloat16: no {', '.join(missing)}") if missing else Verdict.yes()


def _permission() -> Verdict:
    """Linux grants the registers to a process on request, from version 5.16 on; its threads and forked children have them too."""
    call: Any = ctypes.CDLL(None, use_errno=True).syscall
    number, request, tiles = map(ctypes.c_long, (ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, TILE_DATA))
    if call(number, request, tiles) != 0:
        return Verdict.no(f"Linux does not permit AMX to this process: arch_prctl says {os.strerror(ctypes.get_errno())!r}")
    granted = ctypes.c_uint64()
    if call(number, ctypes.c_long(ARCH_GET_XCOMP_PERM), ctypes.byref(granted)) != 0 or not granted.value >> TILE_DATA & 1:
        return Verdict.no("Linux does not permit AMX to this process, though it said so")
    return Verdict.yes()


def _right() -> Verdict:
    """A product of whole numbers, whose exact result is known."""
    wrong = np.count_nonzero(product_errors(PROCESSOR))
    return Verdict.no(f"a product on matrix tiles is wrong in {wrong} of {32 * 32} results") if wrong else Verdict.yes()


def product_errors(kind: str) -> np.ndarray[Any, Any]:
    """What one block of 32 channels, 64 terms and 32 pixels gives, less what is right, ``[channel, pixel]``."""
    channels, pixels, terms, rng = 2 * ROWS, 2 * ROWS, 2 * 2 * ROWS, np.random.default_rng(0)
    w, x = rng.integers(-8, 9, (channels, terms)), rng.integers(-8, 9, (terms, pixels))
    # [step][channel][16 pairs] and [pair][pixel], two numbers each
    weights = _bits(w.reshape(channels, 2, ROW_BYTES // 2).transpose(1, 0, 2))
    panel = _bits(x.reshape(terms // 2, 2, pixels).transpose(0, 2, 1))
    sums, found = np.zeros((channels, pixels), np.float32), np.full((channels, pixels), np.nan, np.float32)
    config, places = configuration(channels), np.array([0, ROW_BYTES], np.int64)
    multiply = multiply_tiles.specialise((kind, 1), "float32")
    configure.specialise(kind, None)(config)
    try:
        multiply(
            2, panel, terms // 2, weights, 4 * channels, ROW_BYTES, 0, 1, sums, 0, 1, found, 4 * pixels, places, pixels, 0, 0,
            panel, panel, panel, 0, 0,
        )  # fmt: skip
    finally:
        release.specialise(kind, None)(config)
    return found - w @ x


def _bits(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Whole numbers as bfloat16, contiguous."""
    return np.ascontiguousarray((numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16))
