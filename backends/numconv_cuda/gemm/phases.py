"""The phases of a strided gradient of x: gradients of stride 1, which one kernel computes side by side.

On an axis a tap r lies at o = r d in its window, or at (R - 1 - r) d, and reads i = q s + o - low of an output q. So the taps with
o = f (mod s) reach the elements with i + low = f (mod s), and no others: those of phase f. They are s / gcd(s, d) apart, and for
i = i0 + s j this is q = j + (i0 + low - o) / s, where o / s goes in steps of d / gcd(s, d).
"""

from __future__ import annotations

import functools
import math

from numconv.plugin import ConvProblem
from numconv_cuda.geometry import Geometry, Strides, WeightStrides, coordinates, volume_of
from numconv_cuda.primitives.copies import index_as
from numconv_cuda.primitives.elements import div, mod, replaced
from numconv_cuda.runtime.compiler import device

__all__ = ["largest_phase", "phase_of"]


@functools.lru_cache(maxsize=1024)
def largest_phase(problem: ConvProblem) -> tuple[int, int]:
    """How many elements of an image the largest phase has, and how many taps reach each of them at most, on all axes."""
    sizes = [-(-n // s) for n, s in zip(problem.spatial, problem.stride, strict=True)]
    periods = [s // math.gcd(s, d) for s, d in zip(problem.stride, problem.dilation, strict=True)]
    taps = [-(-r // period) for r, period in zip(problem.kernel, periods, strict=True)]
    return math.prod(sizes), math.prod(taps)


@device
def common_divisor(a, b):
    """The greatest one."""
    while b > 0:
        a, b = b, mod(a, b)
    return a


@device
def axis_phase(g, axis, rest):
    """Of a phase on an axis: its first element and their number, its first tap, their distance and number, and low and dilation."""
    stride, dilation, window, low = g.stride[axis], g.dilation[axis], g.window[axis], g.low[axis]
    common = common_divisor(stride, dilation)
    between, first = div(stride, common), 0
    for tap in range(between - 1, -1, -1):
        place = (window - 1 - tap if g.flip else tap) * dilation
        if tap < window and mod(place, stride) == rest:
            first = tap
    place = (window - 1 - first if g.flip else first) * dilation
    taps = div(window - first - 1, between) + 1 if mod(place, stride) == rest else 0
    start = mod(rest + stride - mod(low, stride), stride)
    least = rest
    if taps > 0:
        least = place - (taps - 1) * between * dilation if g.flip else place
    size = div(g.size[axis] - start + stride - 1, stride)
    shift = start + low - least  # a multiple of the stride
    return start, size, first, between, taps, div(shift, stride) if shift > 0 else -div(-shift, stride), div(dilation, common)


@device
def phase_of(g, number):
    """A phase as a geometry of its own, its offsets in x and w, and how many taps it has: perhaps none."""
    rests = coordinates(number, g.stride)
    size, window, stride, low, dilation = g.size, g.window, g.stride, g.low, g.dilation
    x_steps, w_steps, x_offset, w_offset, taps = g.x.spatial, g.w.spatial, 0, 0, 1
    for axis in range(len(g.size)):
        start, count, first, between, own, shift, apart = axis_phase(g, axis, rests[axis])
        x_offset += start * g.x.spatial[axis]
        w_offset += first * g.w.spatial[axis]
        taps *= own
        size, window = replaced(size, axis, count), replaced(window, axis, max(own, 1))
        stride, low, dilation = replaced(stride, axis, 1), replaced(low, axis, shift), replaced(dilation, axis, apart)
        x_steps = replaced(x_steps, axis, g.x.spatial[axis] * g.stride[axis])
        w_steps = replaced(w_steps, axis, g.w.spatial[axis] * between)
    phase = Geometry(
        g.n, g.groups, g.per_c, g.per_k, g.mode, g.flip, g.option, size, window, g.output, stride, low, dilation,
        index_as(volume_of(size), g.n), index_as(volume_of(window), g.n), g.outputs, g.bias,
        Strides(g.x.n, g.x.group, g.x.channel, x_steps), WeightStrides(g.w.group, g.w.k, g.w.c, w_steps), g.y,
    )  # fmt: skip
    return phase, x_offset, w_offset, taps
