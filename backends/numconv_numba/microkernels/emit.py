"""Vectors of the host's width: memory access, masks, shuffles; and which register tiles the host's registers hold."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from llvmlite.binding import llvm_version_info
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target

from numconv_numba.compiling.compiler import AddressType, TagType
from numconv_numba.scalar import PAIRS, ROW_PAIRS, value_type

__all__ = [
    "Emitter", "Host", "check_kinds", "emitter_of", "flag_table", "host", "lanes_of", "places_table", "rolled", "rounded_type",
]  # fmt: skip

_i1, _i32, _i64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_LINE = 64
_FITTED_LEVEL = 1024 * 1024  # the second-level cache of the processors on which sizes of blocks were found


class Host(NamedTuple):
    """What the processor's vector registers allow.

    Attributes
    ----------
    width : int
        Bytes of a vector.
    registers : int
        Number of vector registers.
    pixel_tiles : tuple of (vectors, channels)
        Shapes of tiles with the lanes over pixels; those with more channels first.
    channel_tiles : tuple of (vectors, positions)
        Shapes of tiles with the lanes over channels.
    sliding_tiles : tuple of (rows, vectors)
        Shapes of tiles that slide over the rows of one channel.
    dot_tiles : tuple of (positions, rows)
        Shapes of tiles with the lanes over terms: powers of two positions, down to one; before one of these perhaps a tile with a
        position more, for those that would be left alone; and first perhaps one of any number of positions.
    pairs : bool
        Whether there are products of pairs of bfloat16 numbers, two multiply-adds a lane (AVX512-BF16).
    pair_cycles : float
        What such a product takes, against a multiply-add: measured on Zen 5, and elsewhere taken to gain nothing.
    start_cycles : int
        Of the start and the end of a tile with the lanes over pixels, beside its terms: measured with AVX2 and with AVX-512.
    first_level, second_level : int
        Bytes of a core's first-level cache for data, and of its second-level cache, of which no more than 1 MiB is counted.
    transforms : float
        What SciPy's Fourier transforms take, against estimates that were fitted on Zen 5, where the products of others take what is
        estimated: with AVX2 2 to 3, measured on Zen 3.
    """

    width: int
    registers: int
    pixel_tiles: tuple[tuple[int, int], ...]
    channel_tiles: tuple[tuple[int, int], ...]
    sliding_tiles: tuple[tuple[int, int], ...]
    dot_tiles: tuple[tuple[int, int], ...]
    pairs: bool = False
    pair_cycles: float = 2.0
    start_cycles: int = 50
    first_level: int = 32 * 1024
    transforms: float = 1.0
    second_level: int = _FITTED_LEVEL

    def near(self, size: int) -> int:
        """What the second-level cache holds of the kind of which so many bytes were found to be best where it has 1 MiB."""
        return size * self.second_level // _FITTED_LEVEL

    @property
    def resident(self) -> int:
        """Bytes that stay in the first-level cache while others pass through it."""
        return self.first_level * 2 // 3

    def masks(self, item: int, *, write: bool) -> bool:
        """Whether one instruction loads, or stores, some lanes of a vector of elements of `item` bytes, as fast as all of them.

        Without any, LLVM branches for each lane. AVX2 has none for 16 bits; those that store take AMD's processors before Zen 5
        a dozen cycles (Fog, "Instruction tables").
        """
        return self.width > 32 or (self.width == 32 and item >= 4 and not write)

    @property
    def unaligned(self) -> float:
        """Loads that a vector anywhere in memory counts for, on average: one across two cache lines is two."""
        return 1 + (self.width - 4) / _LINE

    @property
    def moving(self) -> float:
        """What a vector on its way through the caches costs, against one of a whole line: most of that is the line's."""
        return 0.25 + 0.75 * self.width / _LINE


# Accumulators, the vectors of one operand and a broadcast fit the registers; and with the lanes over channels, the address of each
# position fits the general ones. Of sixteen registers a tenth position of one vector was found to be spilled, which costs a third.
_WIDE = Host(
    64, 32, ((3, 8), (6, 4), (7, 3), (8, 2), (8, 1)), ((4, 6), (3, 8), (2, 10), (2, 8), (1, 10)),
    ((6, 4), (8, 3), (10, 2), (10, 1)), ((9, 3), (8, 3), (4, 6), (2, 8), (1, 8)),
)  # fmt: skip
_FEW = Host(
    32, 16, ((3, 4), (3, 3), (5, 2), (8, 1)), ((1, 9), (2, 6), (3, 4)), ((4, 3), (6, 2), (10, 1)),
    ((6, 2), (3, 4), (4, 3), (2, 6), (1, 6)),
    start_cycles=35, transforms=2.0,
)  # fmt: skip

# A multiply-add of NEON takes its factor from a lane, but LLVM loads the eight broadcasts of a tile of 3 x 8 ahead, and spills.
_NEON = _WIDE._replace(
    width=16, pixel_tiles=((4, 6), (6, 4), (7, 3), (8, 2), (8, 1)), channel_tiles=((4, 6), (2, 10), (2, 8), (1, 10))
)

# Cores of 48 KiB, as LLVM calls them; all others are taken to have 32.
_LARGE_CACHES = (
    "alderlake", "arrowlake", "arrowlake-s", "emeraldrapids", "graniterapids", "graniterapids-d", "icelake-client",
    "icelake-server", "lunarlake", "meteorlake", "raptorlake", "rocketlake", "sapphirerapids", "tigerlake", "znver5",
)  # fmt: skip

# Of a core's second-level cache in KiB, as LLVM calls processors: those with less than others of their vectors, and with more.
_SECOND_LEVELS = {
    256: ("broadwell", "cannonlake", "haswell", "ivybridge", "nehalem", "sandybridge", "skylake", "westmere"),
    512: ("icelake-client", "rocketlake"),
    1024: (
        "alderlake", "apple-m1", "apple-m2", "apple-m3", "apple-m4", "arrowlake", "arrowlake-s", "lunarlake", "meteorlake",
        "neoverse-n1", "neoverse-n2", "neoverse-v1", "neoverse-v2", "raptorlake",
    ),
}  # fmt: skip


def _second_level(processor: str, *, wide: bool) -> int:
    """Bytes of a core's second-level cache; `wide`: of a processor with AVX-512."""
    named = (size for size, names in _SECOND_LEVELS.items() if processor in names)
    return next(named, 1024 if wide else 512) * 1024


@functools.cache
def host() -> Host:
    """Of the processor for which Numba compiles: AVX-512, AVX2, or 128 bits (SSE, NEON)."""
    triple, processor, features = cpu_target.target_context.codegen().magic_tuple()
    words = features.split(",")
    wide = "+avx512f" in words
    if wide:
        found = _WIDE._replace(pairs="+avx512bf16" in words, pair_cycles=1.0 if processor == "znver5" else 2.0)
    elif "+avx2" in words:
        found = _FEW
    else:
        found = _NEON if triple.startswith(("aarch64", "arm64")) else _FEW._replace(width=16)
    first_level = (48 if processor in _LARGE_CACHES else 32) * 1024
    return found._replace(first_level=first_level, second_level=_second_level(processor, wide=wide))


def lanes_of(dtype: str) -> int:
    """Elements of a vector."""
    return host().width // np.dtype(dtype).itemsize


def flag_table(lanes: Any, dtype: str) -> Any:
    """Masks as `Emitter.flags` reads them, from booleans of which the last axis has the lanes of a vector."""
    found = np.asarray(lanes, bool).reshape(-1, lanes_of(dtype))
    if host().width == 64:
        return np.packbits(found, axis=1, bitorder="little")
    return -found.astype(f"int{8 * np.dtype(dtype).itemsize}")


def places_table(places: Any, dtype: str) -> Any:
    """Places of lanes as `Emitter.turned` reads them: those of 4 bytes."""
    words = np.dtype(dtype).itemsize // 4
    return (np.asarray(places)[..., None] * words + np.arange(words)).astype(np.int32).reshape(-1, host().width // 4)


def check_kinds(tags: tuple[Any, ...], addresses: tuple[Any, ...]) -> None:
    """Assert that an intrinsic was called with tags and addresses where it needs them."""
    assert all(isinstance(tag, TagType) for tag in tags), tags
    assert all(isinstance(each, AddressType) for each in addresses), addresses


@contextlib.contextmanager
def rolled(builder: Any, count: Any) -> Iterator[Any]:
    """A loop of `count` turns, and its index, that LLVM does not unroll: it would load the operands of several turns, and spill."""
    module = builder.module
    option = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
    with cgutils.for_range(builder, count) as loop:
        yield loop.index
        last = builder.block
    name = module.add_metadata([option, ir.Constant(_i64, len(module.metadata))])
    name.operands = (name, option)  # a loop's name refers to itself
    last.terminator.set_metadata("llvm.loop", name)


class Emitter:
    """Typed vector access from byte addresses, for one function under construction.

    Parameters
    ----------
    builder : llvmlite.ir.IRBuilder
    dtype : TagType or str
        Of the elements: float32 or float64.
    lanes : int
    """

    def __init__(self, builder: Any, dtype: Any, lanes: int):
        double = value_type(TagType(dtype) if isinstance(dtype, str) else dtype) == types.float64
        self._builder = builder
        self._element = ir.DoubleType() if double else ir.FloatType()
        self._letters = "64" if double else "32"
        self._align = 8 if double else 4
        self.lanes = lanes
        self.width = lanes * self._align
        self.vector = ir.VectorType(self._element, lanes)
        self.zero = ir.Constant(self.vector, None)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c with one rounding."""
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        function = cgutils.get_or_insert_function(self._builder.module, kind, f"llvm.fma.v{self.lanes}f{self._letters}")
        return self._builder.call(function, [a, b, c])

    def accumulator(self) -> Any:
        """A stack slot that starts at zero; the optimiser turns it into a register."""
        return cgutils.alloca_once_value(self._builder, self.zero)

    def opaque(self, value: Any, *, now: bool = False) -> Any:
        """The same address or number, of which LLVM does not see what it comes from, nor, if it is wanted `now`, computes it later.

        It keeps an induction variable for each offset of an address whose steps in a loop it sees.
        """
        kind = ir.FunctionType(value.type, [value.type])
        return self._builder.asm(kind, "", "=r,0", [value], side_effect=now)

    def settled(self, vector: Any) -> Any:
        """The same vector, which LLVM computes now, not where it is needed: until then its operands would take registers."""
        kind = ir.FunctionType(vector.type, [vector.type])
        return self._builder.asm(kind, "", "=v,0", [vector], side_effect=True)

    def at(self, address: Any, offset: Any) -> Any:
        """The address `offset` bytes further."""
        return self._builder.gep(address, [_i64(offset) if isinstance(offset, int) else offset])

    def times(self, step: Any, count: int) -> Any:
        """`count` times a step in bytes."""
        return self._builder.mul(step, _i64(count))

    def offset(self, table: Any, index: Any) -> Any:
        """An entry of an int64 table."""
        place = _i64(index) if isinstance(index, int) else index
        return self._builder.load(self._builder.gep(self._builder.bitcast(table, _i64.as_pointer()), [place]))

    def load(self, address: Any) -> Any:
        """A vector."""
        loaded = self._builder.load(self._builder.bitcast(address, self.vector.as_pointer()))
        loaded.align = self._align
        return loaded

    def store(self, vector: Any, address: Any) -> None:
        """Write a vector."""
        self._builder.store(vector, self._builder.bitcast(address, self.vector.as_pointer())).align = self._align

    def prefetch(self, address: Any, *, write: bool, level: int = 1) -> None:
        """Bring a line of memory into the cache of a level; an address that is not mapped does no harm.

        To `write` it takes it from all other cores: never do that to what several threads read.
        """
        kind = ir.FunctionType(ir.VoidType(), [address.type, _i32, _i32, _i32])
        function = cgutils.get_or_insert_function(self._builder.module, kind, "llvm.prefetch.p0")
        self._builder.call(function, [address, _i32(int(write)), _i32(4 - level), _i32(1)])

    def constant(self, number: float) -> Any:
        """A number in all lanes."""
        return ir.Constant(self.vector, [number] * self.lanes)

    def spread(self, number: Any) -> Any:
        """A value in all lanes."""
        builder, undefined = self._builder, ir.Constant(ir.VectorType(number.type, self.lanes), ir.Undefined)
        zeros = ir.Constant(ir.VectorType(_i32, self.lanes), [0] * self.lanes)
        return builder.shuffle_vector(builder.insert_element(undefined, number, _i32(0)), undefined, zeros)

    def load_one(self, address: Any) -> Any:
        """One element."""
        return self._builder.load(self._builder.bitcast(address, self._element.as_pointer()))

    def store_one(self, value: Any, address: Any) -> None:
        """Write one element."""
        self._builder.store(value, self._builder.bitcast(address, self._element.as_pointer()))

    def broadcast(self, address: Any) -> Any:
        """One element of memory in all lanes."""
        return self.spread(self.load_one(address))

    def first(self, count: Any) -> Any:
        """The mask of the first `count` lanes: all where there are fewer, none where the count is negative."""
        builder, lanes = self._builder, _i64(self.lanes)
        few = builder.select(builder.icmp_signed("<", count, lanes), count, lanes)
        least = builder.trunc(builder.select(builder.icmp_signed(">", few, _i64(0)), few, _i64(0)), _i32)
        numbers = ir.Constant(ir.VectorType(_i32, self.lanes), list(range(self.lanes)))
        return builder.icmp_signed("<", numbers, self.spread(least))

    def flags(self, table: Any, index: Any) -> Any:
        """The mask at an index of a table of `flag_table`."""
        builder = self._builder
        if host().width == 64:
            kind = ir.IntType(self.lanes)
            place = builder.gep(builder.bitcast(table, kind.as_pointer()), [index])
            return builder.bitcast(builder.load(place), ir.VectorType(_i1, self.lanes))
        kind = ir.VectorType(ir.IntType(8 * self._align), self.lanes)
        loaded = builder.load(builder.gep(builder.bitcast(table, kind.as_pointer()), [index]))
        loaded.align = self._align
        return builder.icmp_signed("<", loaded, ir.Constant(kind, None))

    def kept(self, mask: Any) -> Any:
        """A mask as slots keep it, for `noted`: without registers for masks LLVM would pack it at every turn of a loop."""
        if host().width == 64:
            return mask
        return self._builder.sext(mask, ir.VectorType(ir.IntType(8 * self._align), self.lanes))

    def noted(self, kept: Any) -> Any:
        """The mask that `kept` made of one, or of several whose bits were joined."""
        if host().width == 64:
            return kept
        return self._builder.icmp_signed("<", kept, ir.Constant(kept.type, None))

    def nowhere(self) -> Any:
        """No lane, as `kept` has it."""
        return self.kept(ir.Constant(ir.VectorType(_i1, self.lanes), None))

    def both(self, mask: Any, flag: Any) -> Any:
        """The mask, or none of it where a flag is off."""
        return self._builder.and_(mask, self.spread(flag))

    def load_masked(self, address: Any, mask: Any, other: Any = None) -> Any:
        """A vector with zeros, or the lanes of another one, where the mask is off; nothing is read there."""
        pointer = self._builder.bitcast(address, self.vector.as_pointer())
        kind = ir.FunctionType(self.vector, [pointer.type, _i32, mask.type, self.vector])
        name = f"llvm.masked.load.v{self.lanes}f{self._letters}.p0"
        function = cgutils.get_or_insert_function(self._builder.module, kind, name)
        arguments = [pointer, _i32(self._align), mask, self.zero if other is None else other]
        whole = functools.partial(self.load, address)
        return self.whole_or(mask, self._align, whole, lambda: self._builder.call(function, arguments), write=False)

    def store_masked(self, vector: Any, address: Any, mask: Any) -> None:
        """Write the lanes of a mask."""
        pointer = self._builder.bitcast(address, self.vector.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [self.vector, pointer.type, _i32, mask.type])
        name = f"llvm.masked.store.v{self.lanes}f{self._letters}.p0"
        function = cgutils.get_or_insert_function(self._builder.module, kind, name)
        arguments = [vector, pointer, _i32(self._align), mask]
        whole = functools.partial(self.store, vector, address)
        self.whole_or(mask, self._align, whole, lambda: self._builder.call(function, arguments), write=True)

    def whole_or(self, mask: Any, item: int, whole: Callable[[], Any], part: Callable[[], Any], *, write: bool) -> Any:
        """What the masked access `part` to elements of `item` bytes gives; or, where that is slow, `whole` if all lanes are on."""
        if host().masks(item, write=write):
            return part()
        builder = self._builder
        kind = ir.FunctionType(_i1, [mask.type])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.and.v{self.lanes}i1")
        with builder.if_else(builder.call(function, [mask]), likely=True) as (all_on, some_on):
            with all_on:
                found = [(whole(), builder.block)]
            with some_on:
                found.append((part(), builder.block))
        if found[0][0] is None:
            return None
        result = builder.phi(found[0][0].type)
        for value, block in found:
            result.add_incoming(value, block)
        return result

    def shuffle(self, a: Any, b: Any, indices: Sequence[int]) -> Any:
        """The lanes of a, then b, at these indices."""
        return self._builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_i32, len(indices)), list(indices)))

    def turned(self, vector: Any, table: Any, index: Any) -> Any:
        """The lanes of a vector at the places that stand at an index of a table of `places_table`; of AVX2 and AVX-512."""
        count = self.width // 4
        places, floats = ir.VectorType(_i32, count), ir.VectorType(ir.FloatType(), count)
        entry = self._builder.load(self._builder.gep(self._builder.bitcast(table, places.as_pointer()), [index]))
        entry.align = 4
        name = "llvm.x86.avx512.permvar.sf.512" if self.width == 64 else "llvm.x86.avx2.permps"
        function = cgutils.get_or_insert_function(self._builder.module, ir.FunctionType(floats, [floats, places]), name)
        found = self._builder.call(function, [self._builder.bitcast(vector, floats), entry])
        return self._builder.bitcast(found, self.vector)

    def either(self, a: Any, b: Any) -> Any:
        """The lanes of two vectors, in each of which one of them is zero."""
        whole = ir.VectorType(ir.IntType(8 * self._align), self.lanes)
        return self._builder.bitcast(self._builder.or_(*(self._builder.bitcast(each, whole) for each in (a, b))), self.vector)

    def positive(self, vector: Any, relu: Any) -> Any:
        """The positive part where the mask `relu` is on; NaN stays NaN."""
        least = self._builder.select(relu, self.zero, self.constant(-math.inf))
        return self._builder.select(self._builder.fcmp_ordered("<", vector, least), least, vector)

    def not_finite(self, vector: Any) -> Any:
        """The mask of the lanes that hold NaN or an infinity."""
        difference = self._builder.fsub(vector, vector)
        return self._builder.fcmp_unordered("uno", difference, difference)

    def any_not_finite(self, vectors: Sequence[Any]) -> Any:
        """Whether a lane of some vectors holds NaN or an infinity, as an int64: either times zero is NaN, which stays in a sum."""
        sums = [self.zero] * min(4, len(vectors))
        for i, vector in enumerate(vectors):
            sums[i % 4] = self.fma(vector, self.zero, sums[i % 4])
        return self.any(functools.reduce(self._builder.or_, map(self.not_finite, sums)))

    def any(self, mask: Any) -> Any:
        """Whether a lane of a mask is on, as an int64."""
        bits = self._builder.bitcast(mask, ir.IntType(self.lanes))
        return self._builder.zext(self._builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0)), _i64)


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite does not have."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def _named_in_integers() -> bool:
    """Whether LLVM's instructions on bfloat16 take and give integers: before its version 16, of Numba 0.61."""
    return bool(llvm_version_info[0] < 16)


def rounded_type(lanes: int) -> Any:
    """The type of the vector that `vcvtneps2bf16` gives."""
    return ir.VectorType(ir.IntType(16) if _named_in_integers() else _BFloat(), lanes)


def _pairs_type(lanes: int) -> Any:
    """The type of the vectors of pairs that `vdpbf16ps` takes."""
    return ir.VectorType(_i32, lanes) if _named_in_integers() else ir.VectorType(_BFloat(), 2 * lanes)


class _PairEmitter(Emitter):
    """Vectors of pairs of bfloat16 numbers, moved as float32, whose products are summed in float32.

    An instruction rounds each of its two sums to nearest even, and takes and gives zero for what is smaller than 2**-126.
    """

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """c plus both products of each pair."""
        pairs = _pairs_type(self.lanes)
        kind = ir.FunctionType(self.vector, [self.vector, pairs, pairs])
        function = cgutils.get_or_insert_function(self._builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
        return self._builder.call(function, [c, self._builder.bitcast(a, pairs), self._builder.bitcast(b, pairs)])


def emitter_of(builder: Any, factor: str, lanes: int) -> Emitter:
    """The emitter for factors of a dtype, or for pairs."""
    return _PairEmitter(builder, "float32", lanes) if factor in (PAIRS, ROW_PAIRS) else Emitter(builder, factor, lanes)
