"""How a convolution is cut for fast Fourier transforms: overlapping blocks, phases of stride and dilation, and what they cost.

A transform computes a dense convolution at stride 1. With stride s, dilation d and g = gcd(s, d), every (d/g)-th output reads
positions of x that lie s*d/g apart, and of these every (s/g)-th tap: so phases of the outputs are convolutions of their own, and
phases of the taps are further channels of one sum (the polyphase decomposition; Vaidyanathan, "Multirate systems and filter banks",
section 4.3). No zeros are put between taps, and no output is computed that a stride would drop.

Of a transform of L positions, L - taps + 1 outputs are free of the wrapped-around end; the input blocks overlap by the rest
(overlap-save; Oppenheim and Schafer, "Discrete-time signal processing", section 8.7.3). Where one block holds all outputs, the
zeros of low and high padding may share their places.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

from numconv.plugin import ConvProblem, np_dtype
from numconv_numba.microkernels.emit import host
from numconv_numba.threads import MAX_THREADS, SHARED_SECONDS

__all__ = ["Axis", "Layout", "layout_for", "smooth"]

TASK_BYTES = 512 * 1024
"""Of the input blocks that a task transforms together: with their spectra they fit the second-level cache."""
TASKS = 4
"""At least this many tasks where there is work for them."""
MANY_PAIRS = 256
"""With so many pairs of channels the spectra of w exceed the caches, and a task takes blocks enough to use them several times."""
SPLITS = 16
"""Parts into which the blocks of a weight gradient are split, each with sums of its own."""
LENT_SECONDS = 6e-3
"""Of the only task, from which on SciPy's own threads share its transforms: they take long to start."""
SIDE_BYTES = 2 * 1024 * 1024
"""Of the only task, whose transforms two threads compute with those of the only kernel."""
TASK_SECONDS = 25e-6
"""Of a task's Python, one thread at a time."""
CALL_SECONDS = 60e-6
_HANDING_SECONDS = 150e-6  # between threads: one wakes the other, and they wait for each other
_LENDING_SECONDS = 350e-6  # the same of SciPy's threads, at each transform
_SLOWDOWN = 1.15  # of two threads, as everywhere in the estimates, beside each other
# Operations a second of transforms in vectors, by the bytes of one, and of those computed one by one.
_RATES = {4: ((1 << 18, 14.5e9), (1 << 19, 12.6e9), (1 << 62, 10.5e9)), 8: ((1 << 19, 8.2e9), (1 << 20, 6.6e9), (1 << 62, 5.4e9))}
_SINGLE_RATES = {4: 6.6e9, 8: 5.6e9}


class Axis(NamedTuple):
    """One dimension as dense convolutions.

    Attributes
    ----------
    step : int
        The distance in x of neighbouring positions of a phase.
    out_phases, tap_phases : int
        Into how many phases the outputs and the taps are split.
    taps, outputs : int
        Of a phase; the last phases may have one less.
    shared : int
        Positions at the end of the whole reach that may take the places of those at its start, since both are zeros.
    """

    step: int
    out_phases: int
    tap_phases: int
    taps: int
    outputs: int
    shared: int


class Cut(NamedTuple):
    """One dimension of the blocks: the length of a transform, outputs of a block, and how many blocks there are."""

    length: int
    outputs: int
    blocks: int


class Layout(NamedTuple):
    """A problem in blocks. A *unit* is a block of one phase of the outputs, of one image and one group, in all channels.

    Attributes
    ----------
    axes, cuts : tuple
        Each dimension.
    item, parts : int
        Bytes of an element, and 2 if it is complex, else 1.
    inputs, outputs : int
        Planes of a unit: channels of x times phases of taps, channels of y.
    groups, of_group : int
        Groups, and units of each.
    batch : int
        Units of a task.
    room : int
        Bytes of working memory that the problem allows.
    gradient : bool
        Whether spectra are summed over all units, for a weight gradient.
    """

    axes: tuple[Axis, ...]
    cuts: tuple[Cut, ...]
    item: int
    parts: int
    inputs: int
    outputs: int
    groups: int
    of_group: int
    batch: int
    room: int
    gradient: bool

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of a transform."""
        return tuple(cut.length for cut in self.cuts)

    @property
    def spectrum(self) -> tuple[int, ...]:
        """The shape of the spectrum of a plane: of a real one, half of it."""
        *outer, last = self.lengths
        return (*outer, last if self.parts == 2 else last // 2 + 1)

    @property
    def units(self) -> int:
        """Of all groups."""
        return self.groups * self.of_group

    @property
    def tasks(self) -> int:
        """Of `batch` units each."""
        return -(-self.units // self.batch)

    @property
    def spectrum_bytes(self) -> int:
        """Of a plane's spectrum."""
        return math.prod(self.spectrum) * self.item * 2 // self.parts

    @property
    def split(self) -> tuple[int, int]:
        """(groups of a part, parts of a group) of a weight gradient: functions of the problem alone, like the order of its sums."""
        groups = max(1, self.batch // max(self.of_group, 1))
        if groups > 1 or self.groups >= SPLITS:
            return groups, 1
        most = max(1, self.room // 4 // (self.groups * self.outputs * self.inputs * self.spectrum_bytes))
        return 1, max(1, min(SPLITS // self.groups, most, -(-self.of_group // self.batch)))

    @property
    def fixed_bytes(self) -> int:
        """Memory beside the tasks: spectra of the weights, twice to count what is not finite; or the sums of all parts."""
        pairs = self.groups * self.outputs * self.inputs * self.spectrum_bytes
        if not self.gradient:
            return 2 * pairs
        splits = self.split[1]
        return pairs * (splits + 2) if splits > 1 else 0

    @property
    def task_bytes(self) -> int:
        """Memory of a task: blocks, spectra, products and results, and what SciPy takes beside them."""
        planes = self.batch * (2 * self.inputs + 2 * self.outputs + 1)
        groups, splits = self.split
        sums = 3 * groups * self.outputs * self.inputs * self.spectrum_bytes if self.gradient and splits == 1 else 0
        return planes * self.spectrum_bytes + sums + 4096

    @property
    def at_once(self) -> int:
        """How many tasks there are, or half of the memory for; two if there is all of it for them."""
        most, pair = ((room - self.fixed_bytes) // self.task_bytes for room in (self.room // 2, self.room))
        return max(1, min(MAX_THREADS, self.tasks, max(most, min(pair, 2))))

    @property
    def bytes(self) -> int:
        """Working memory."""
        return self.fixed_bytes + self.at_once * self.task_bytes

    def batch_seconds(self, many: int) -> float:
        """Estimate for so many transforms by one thread: operations, and a start for each line of each dimension."""
        length, part = math.prod(self.lengths), self.item // self.parts
        rate = next(rate for limit, rate in _RATES[part] if length * self.item <= limit)
        alone = many % lanes_of(len(self.cuts), part) * (rate / min(rate, _SINGLE_RATES[part]) - 1)
        lines = sum(length // cut.length for cut in self.cuts)
        return self.parts * (2.5 * length * math.log2(max(length, 2)) * (many + alone) / rate + many * lines * 1.4e-8)

    @property
    def task_seconds(self) -> float:
        """Estimate for a task by one thread: transforms, products, gathering and scattering; Python's part."""
        moved = self.outputs * 1e-10 + self.inputs * self.outputs * 0.35e-10
        written = self.batch_seconds(self.batch * self.outputs) + self.batch * math.prod(self.lengths) * self.item * moved
        return self.read_seconds + written + TASK_SECONDS

    @property
    def read_seconds(self) -> float:
        """Estimate for gathering and transforming the blocks of a task by one thread."""
        moved = self.batch * math.prod(self.lengths) * self.item * self.inputs * 1e-10
        return self.batch_seconds(self.batch * self.inputs) + moved

    @property
    def weights_seconds(self) -> float:
        """Estimate for the transforms of the weights, or of their gradient, by one thread."""
        pairs = self.groups * self.inputs * self.outputs
        return self.batch_seconds(pairs) + pairs * math.prod(self.lengths) * self.item * 1.5e-10

    @property
    def rows_of_weights(self) -> int:
        """Channels of y whose weights are transformed together."""
        most = TASK_BYTES // max(1, self.inputs * math.prod(self.lengths) * self.item)
        return max(1, min(most, -(-self.groups * self.outputs // TASKS)))

    @property
    def together(self) -> bool:
        """Whether threads go on from weights to tasks without waiting for each other, but for what they need."""
        return self.tasks > 1 or self.side_by_side

    @property
    def seconds(self) -> float:
        """Estimate for a call by two threads, as everywhere."""
        return host().transforms * self._fitted_seconds

    @property
    def _fitted_seconds(self) -> float:
        rows = min(TASKS, self.groups * self.outputs)
        seconds = CALL_SECONDS
        if self.lent_seconds:
            return seconds + self.lent_seconds / 2 * _SLOWDOWN + 3 * _LENDING_SECONDS
        every = self.tasks * self.task_seconds + self.weights_seconds
        if self.tasks > 1 and not self.gradient:
            odd = self.tasks % 2 * self.task_seconds
            return seconds + ((every + odd) / 2 * _SLOWDOWN + _HANDING_SECONDS if every >= SHARED_SECONDS else every)
        for items, each in ((self.tasks, self.task_seconds), (rows, self.weights_seconds / rows)):
            shared = items > 1 and items * each >= SHARED_SECONDS
            seconds += -(-items // 2) * each * _SLOWDOWN + _HANDING_SECONDS if shared else items * each
        if self.side_by_side and self.read_seconds + self.weights_seconds >= SHARED_SECONDS:
            seconds += _HANDING_SECONDS - min(self.read_seconds, self.weights_seconds) * (2 - _SLOWDOWN)
        return seconds

    @property
    def lent_seconds(self) -> float:
        """Estimate by one thread for the only task, if it has several dimensions and SciPy's own threads may share them; else 0."""
        seconds = self.task_seconds + self.weights_seconds
        return seconds if self.tasks == 1 < len(self.cuts) and not self.gradient and seconds >= LENT_SECONDS else 0.0

    @property
    def side_by_side(self) -> bool:
        """Whether the only kernel is transformed beside the only task: long transforms would fight for what caches all share."""
        only = self.tasks == self.groups * self.outputs == 1 and not self.gradient and self.lent_seconds == 0
        return only and math.prod(self.lengths) * self.item <= SIDE_BYTES


def smooth(least: int) -> int:
    """The smallest number of at least `least` without prime factors above 5: lengths at which transforms are fast."""
    best = 1 << max(least - 1, 0).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            best = min(best, three << max(-(-least // three) - 1, 0).bit_length())
            three *= 3
        five *= 5
    return best


def lanes_of(ndim: int, part: int) -> int:
    """How many transforms SciPy computes side by side: in one dimension, vectors of 16 bytes hold a position of several."""
    return 16 // part if ndim == 1 else 1


def _axis(problem: ConvProblem, axis: int) -> Axis:
    s, d, size, low = problem.stride[axis], problem.dilation[axis], problem.spatial[axis], problem.padding[axis][0]
    common = math.gcd(s, d)
    step, out_phases, tap_phases = s * d // common, d // common, s // common
    taps, outputs = -(-problem.kernel[axis] // tap_phases), -(-problem.output[axis] // out_phases)
    shared = 0
    if problem.pad_mode == "zeros":
        latest = s * (out_phases - 1) + d * (tap_phases - 1) - low
        leading, inside = max(0, -(latest // step)), -(-(size + low) // step)
        # no output takes the place of another, and no tap
        shared = max(0, min(leading, outputs + taps - 1 - inside, taps - 1, outputs - 1))
    return Axis(step, out_phases, tap_phases, taps, outputs, shared)


def _batch(units: int, inputs: int, outputs: int, lengths: tuple[int, ...], item: int, part: int) -> int:
    """How many units a task has."""
    elements = math.prod(lengths) * max(inputs, outputs)
    if inputs * outputs >= MANY_PAIRS:
        return max(1, min(units, TASKS))
    count = max(1, min(TASK_BYTES // (elements * item), -(-units // TASKS) if units * elements > 1 << 16 else units))
    lanes = lanes_of(len(lengths), part)
    return max(1, min(units, -(-count // lanes) * lanes if max(inputs, outputs) == 1 else count))


def _choices(axis: Axis, even: bool) -> list[Cut]:
    """One block for all outputs, and smaller ones; `even`: in numbers that make full vectors too."""
    whole = smooth(axis.outputs + axis.taps - 1 - axis.shared)
    found = {Cut(whole, axis.outputs, 1)}
    for factor in (1.3, 1.6, 2, 2.5, 3, 4, 5, 6, 8, 12, 16, 32):
        size = int(axis.taps * (factor - 1)) + 1
        if size < axis.outputs:
            blocks = -(-axis.outputs // size)
            for count in {blocks, -(-blocks // 16) * 16} if even else {blocks}:
                length = smooth(-(-axis.outputs // count) + axis.taps - 1)
                if length < whole:
                    size = length - axis.taps + 1
                    found.add(Cut(length, size, -(-axis.outputs // size)))
    return sorted(found)


@functools.lru_cache(maxsize=256)
def layout_for(problem: ConvProblem, arithmetic: str) -> Layout:
    """The layout with the least estimated time of those that fit the working memory, else the smallest.

    More than half of the memory is taken where that saves a third of the time. It is found one dimension after the other, twice.
    """
    axes = tuple(_axis(problem, axis) for axis in range(problem.ndim))
    inputs = problem.c // problem.groups * math.prod(axis.tap_phases for axis in axes)
    outputs = problem.k // problem.groups
    phases = problem.n * math.prod(axis.out_phases for axis in axes)
    item, parts = np_dtype(arithmetic).itemsize, 2 if arithmetic.startswith("complex") else 1

    def layout(cuts: tuple[Cut, ...]) -> Layout:
        of_group = phases * math.prod(cut.blocks for cut in cuts)
        batch = _batch(of_group * problem.groups, inputs, outputs, tuple(cut.length for cut in cuts), item, item // parts)
        return Layout(
            axes, cuts, item, parts, inputs, outputs, problem.groups, of_group, batch, problem.max_workspace,
            problem.op == "weight_grad",
        )  # fmt: skip

    def order(found: Layout) -> tuple[bool, float]:
        over = found.bytes > problem.max_workspace
        return over, found.bytes if over else found.seconds * (1.5 if found.bytes > problem.max_workspace // 2 else 1)

    choices = [_choices(axis, len(axes) == 1) for axis in axes]
    best = layout(tuple(options[len(options) // 2] for options in choices))
    for _, axis in itertools.product(range(2 if len(axes) > 1 else 1), reversed(range(len(axes)))):
        options = (layout((*best.cuts[:axis], option, *best.cuts[axis + 1 :])) for option in choices[axis])
        best = min(options, key=order)
    return best
