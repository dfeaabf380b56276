"""The instructions of AMX on a processor that has none: each of them traps, and a signal handler does what it says.

So the machine code runs that a processor with AMX would run, and its operands are checked as such a processor checks them.
Encodings, checks and results are those of Intel's "Architecture Instruction Set Extensions Programming Reference", chapter 3. The
handler is compiled by Numba and touches no Python. It serves Linux on x86-64.
"""

import ctypes
import signal

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["STATES", "install", "report"]

THREADS, TILES, ROWS, ROW_BYTES = 64, 8, 16, 64
NAMES = ("ldtilecfg", "tilerelease", "tilezero", "tileloadd", "tilestored", "tdpbf16ps")
LDTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILESTORED, TDPBF16PS = range(len(NAMES))
MISTAKES = ("none", "a configuration not allowed", "a tile not configured", "sizes of tiles that do not fit", "a tile used twice")
_CONFIGURATION, _MISSING, _UNFIT, _TWICE = range(1, len(MISTAKES))

STATES = np.zeros(
    THREADS,
    np.dtype(
        [
            ("thread", np.int64),
            ("configured", np.int64),
            ("mistake", np.int64),  # the first one: its place in MISTAKES
            ("counts", np.int64, len(NAMES)),
            ("rows", np.int64, TILES),
            ("widths", np.int64, TILES),  # bytes of a row
            ("tiles", np.uint8, (TILES, ROWS, ROW_BYTES)),
        ]
    ),
)
"""What the threads that used a tile have."""
_FIRST, _SIZE, _KIND = STATES.ctypes.data, STATES.itemsize, numba.from_dtype(STATES.dtype)

# Where a signal saves the registers, and among them those that instructions number from 0 to 15, and the instruction's address:
# see arch/x86/include/uapi/asm/sigcontext.h of Linux.
SAVED_AT, SAVED, ADDRESS = 40, 23, 16
ORDER = np.array([13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7])
SIGINFO, NO_DEFER = 4, 0x40000000


@intrinsic
def _pointer(typingctx, address):
    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


@intrinsic
def _state(typingctx, address):
    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

    return types.CPointer(_KIND)(types.int64), codegen


@intrinsic
def _claim(typingctx, address, thread):
    """Write the thread where 0 stands; whether it stood there."""

    def codegen(context, builder, sig, args):
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.extract_value(builder.cmpxchg(place, ir.IntType(64)(0), args[1], "seq_cst", "seq_cst"), 1)

    return types.boolean(types.int64, types.int64), codegen


@intrinsic
def _fma(typingctx, a, b, c):
    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.f32"), args)

    return types.float32(types.float32, types.float32, types.float32), codegen


_this_thread = types.ExternalFunction("pthread_self", types.int64())
_set_handler = types.ExternalFunction("signal", types.int64(types.int32, types.int64))


@numba.njit
def _octets(address, count):
    return numba.carray(_pointer(address), count, np.uint8)


@numba.njit
def _own_state():
    thread = _this_thread()
    for slot in range(THREADS - 1):
        place = _FIRST + slot * _SIZE
        if numba.carray(_pointer(place), 1, np.int64)[0] == thread or _claim(place, thread):
            return place
    return _FIRST + (THREADS - 1) * _SIZE


@numba.njit
def _number(code, at, count):
    """A number with a sign, of so many bytes."""
    found = np.int64(0)
    for i in range(count):
        found |= np.int64(code[at + i]) << 8 * i
    return found - ((found >> (8 * count - 1) & 1) << 8 * count) if count else found


@numba.njit
def _operand(saved, code):
    """Where the operand in memory lies, the value of its index, and the length of the instruction."""
    mode, low, extended = code[4] >> 6, np.int64(code[4] & 7), np.int64(~code[1] >> 5 & 1)
    if low != 4:
        at, index = 5, np.int64(0)
        base = np.int64(0) if mode == 0 and low == 5 else saved[ORDER[low + 8 * extended]]
        relative = mode == 0 and low == 5
    else:
        at, relative, first = 6, False, np.int64(code[5] & 7)
        scaled = np.int64(code[5] >> 3 & 7) + 8 * np.int64(~code[1] >> 6 & 1)
        index = np.int64(0) if scaled == 4 else saved[ORDER[scaled]] << np.int64(code[5] >> 6)
        base = np.int64(0) if mode == 0 and first == 5 else saved[ORDER[first + 8 * extended]]
        low = first
    count = 1 if mode == 1 else 4 if mode == 2 or (mode == 0 and low == 5) else 0
    length = at + count
    if relative:
        base = saved[ADDRESS] + length
    return base + _number(code, at, count), index, length


@numba.njit
def _instruction(code):
    """Its place in NAMES, -1 for others. All have three bytes VEX of the map 0F38, no W and 128 bits; then opcode and ModRM."""
    if code[0] != 0xC4 or code[1] & 31 != 2 or code[2] & 0x84:
        return -1
    prefix, opcode, registers = code[2] & 3, code[3], code[4] >> 6 == 3
    if opcode == 0x49 and prefix == 0:
        return LDTILECFG if not registers else TILERELEASE if code[4] == 0xC0 else -1
    if opcode == 0x49 and prefix == 3 and registers:
        return TILEZERO
    if opcode == 0x4B and prefix in (2, 3) and not registers and code[4] & 7 == 4:
        return TILELOADD if prefix == 3 else TILESTORED
    return TDPBF16PS if opcode == 0x5C and prefix == 2 and registers else -1


@numba.njit
def _configure(state, place):
    config = _octets(place, 64)
    wrong = config[0] != 1 or config[1] != 0
    for i in range(2, 64):
        unused = i < 16 or 16 + 2 * TILES <= i < 48 or i >= 48 + TILES
        wrong |= unused and config[i] != 0
    for tile in range(TILES):
        state.rows[tile] = config[48 + tile]
        state.widths[tile] = np.int64(config[16 + 2 * tile]) | np.int64(config[17 + 2 * tile]) << 8
        wrong |= state.rows[tile] > ROWS or state.widths[tile] > ROW_BYTES or (state.rows[tile] == 0) != (state.widths[tile] == 0)
    state.tiles[:] = 0
    state.configured = 1
    return _CONFIGURATION if wrong else 0


@numba.njit
def _move(state, tile, place, step, load):
    if load:
        state.tiles[tile] = 0
    for row in range(state.rows[tile]):
        memory = _octets(place + row * step, ROW_BYTES)
        for i in range(state.widths[tile]):
            if load:
                state.tiles[tile, row, i] = memory[i]
            else:
                memory[i] = state.tiles[tile, row, i]


@numba.njit
def _flushed(number):
    return np.float32(0) * number if abs(number) < np.float32(2.0**-126) else number


@numba.njit
def _product(state, c, a, b):
    """Two chains, of the first and of the second numbers of pairs; their sum; then that on c."""
    for row in range(ROWS):
        sums = state.tiles[c, row].view(np.float32)
        for column in range(state.widths[c] // 4):
            first = second = np.float32(0)
            for pair in range(state.widths[a] // 4):
                left, right = state.tiles[a, row].view(np.uint32)[pair], state.tiles[b, pair].view(np.uint32)[column]
                first = _flushed(_fma(_low(left), _low(right), first))
                second = _flushed(_fma(_high(left), _high(right), second))
            if row < state.rows[c]:
                sums[column] = _flushed(_flushed(sums[column]) + _flushed(first + second))


@intrinsic
def _float(typingctx, word):
    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@numba.njit
def _low(word):
    return _flushed(_float(np.uint32(word << np.uint32(16))))


@numba.njit
def _high(word):
    return _flushed(_float(np.uint32(word & np.uint32(0xFFFF0000))))


@numba.njit
def _perform(state, which, saved, code):
    """The length of the instruction, and the mistake in it."""
    if which == LDTILECFG:
        place, index, length = _operand(saved, code)
        return length, _configure(state, place + index)
    if which == TILERELEASE:
        state.configured = 0
        state.tiles[:] = 0
        state.rows[:] = 0
        return 5, 0
    tile = np.int64(code[4] >> 3 & 7)
    missing = _MISSING if not state.configured or state.rows[tile] == 0 else 0
    if which == TILEZERO:
        state.tiles[tile] = 0
        return 5, missing
    if which == TDPBF16PS:
        a, b = np.int64(code[4] & 7), np.int64(~code[2] >> 3 & 15)
        if missing or b >= TILES or state.rows[a] == 0 or state.rows[b] == 0:
            return 5, _MISSING
        if tile in (a, b) or a == b:
            return 5, _TWICE
        fits = state.widths[tile] == state.widths[b] and state.rows[tile] == state.rows[a]
        if not fits or state.widths[a] // 4 != state.rows[b] or (state.widths[a] | state.widths[b]) % 4:
            return 5, _UNFIT
        _product(state, tile, a, b)
        return 5, 0
    place, step, length = _operand(saved, code)
    _move(state, tile, place, step, which == TILELOADD)
    return length, missing


@numba.cfunc(types.void(types.int32, types.voidptr, types.CPointer(types.int64)), error_model="numpy")
def _handle(number, info, context):
    saved = numba.carray(context, SAVED_AT // 8 + SAVED)[SAVED_AT // 8 :]
    code = _octets(saved[ADDRESS], 16)
    which = _instruction(code)
    if which < 0:
        # not one of ours: it is tried again and ends the process, as it would have
        _set_handler(number, 0)
        return
    state = numba.carray(_state(_own_state()), 1)[0]
    length, mistake = _perform(state, which, saved, code)
    state.counts[which] += 1
    state.mistake = state.mistake or mistake
    saved[ADDRESS] += length


class _Action(ctypes.Structure):
    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def install():
    """From now on this process does what the instructions say."""
    action = _Action(handler=_handle.address, flags=SIGINFO | NO_DEFER)
    if ctypes.CDLL(None).sigaction(int(signal.SIGILL), ctypes.byref(action), None) != 0:
        raise OSError("sigaction refused the handler of SIGILL")


def report():
    """How often each instruction ran, how many threads have tiles configured still, and the mistakes, which a processor refuses."""
    counts = dict(zip(NAMES, STATES["counts"].sum(axis=0).tolist(), strict=True))
    return counts, int(STATES["configured"].sum()), [MISTAKES[each] for each in STATES["mistake"] if each]
