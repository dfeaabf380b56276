#!/usr/bin/env python3
"""Times `numconv.torch` and `numconv.jax` beside torch and JAX: the tables of docs/frameworks.md.

    python bridges.py                     # in an interpreter that has numconv, torch and jax
    python bridges.py --seconds 1

Milliseconds of layers, microseconds of one call; the fastest of the time given. A step is forward and the gradients of x, w and
bias. torch computes channels first and channels last, of which the better counts; numconv computes channels first.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Layer(NamedTuple):
    """A layer with as many output channels as input channels."""

    title: str
    batch: int
    channels: int
    spatial: tuple[int, ...]
    kernel: int
    groups: int = 1
    padding_mode: str = "zeros"
    dtype: str = "float32"


LAYERS = (
    Layer("depthwise 31x31, 384 channels, 28x28", 1, 384, (28, 28), 31, groups=384),
    Layer("1-D, one channel, 1,025 taps, 160,000 samples", 1, 1, (160_000,), 1025),
    Layer("float64, 3x3, 64 channels, 56x56", 1, 64, (56, 56), 3, dtype="float64"),
    Layer("3x3x3, 32 channels, 32x32x32", 1, 32, (32, 32, 32), 3),
    Layer("reflect padding, 3x3, 64 channels, 56x56, batch 4", 4, 64, (56, 56), 3, padding_mode="reflect"),
)


def fastest(call: Callable[[], Any], seconds: float) -> float:
    """Seconds of the fastest call."""
    call()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def layer_times(layer: Layer, library: Any, last: bool, seconds: float) -> tuple[float, float]:
    """Seconds of forward and of a step, with the layer of a library that has those of torch.nn."""
    import torch

    axes = len(layer.spatial)
    memory = [torch.channels_last, torch.channels_last_3d][axes - 2] if last else torch.contiguous_format
    kind = getattr(library, f"Conv{axes}d")
    dtype, options = getattr(torch, layer.dtype), {"groups": layer.groups, "padding_mode": layer.padding_mode}
    net = kind(layer.channels, layer.channels, layer.kernel, padding=layer.kernel // 2, **options)
    net.to(dtype=dtype, memory_format=memory)
    x = torch.randn(layer.batch, layer.channels, *layer.spatial, dtype=dtype).to(memory_format=memory)
    x.requires_grad_()
    inputs = [x, *net.parameters()]
    grad = torch.randn_like(net(x))
    with torch.no_grad():
        forward = fastest(lambda: net(x), seconds)
    return forward, fastest(lambda: torch.autograd.grad(net(x), inputs, grad), seconds)


def print_layers(seconds: float) -> None:
    """The table of layers."""
    import torch

    import numconv.torch

    print("| layer | forward: torch | numconv | | step: torch | numconv | |\n|---|---:|---:|---:|---:|---:|---:|")
    for layer in LAYERS:
        ours = layer_times(layer, numconv.torch, False, seconds)
        orders = (False, True) if len(layer.spatial) > 1 else (False,)
        theirs = map(min, zip(*(layer_times(layer, torch.nn, last, seconds) for last in orders), strict=True))
        cells = [f"{a * 1e3:.3g} | {b * 1e3:.3g} | {a / b:.3g}" for a, b in zip(theirs, ours, strict=True)]
        print(f"| {layer.title} | {' | '.join(cells)} |")


def print_overhead(seconds: float) -> None:
    """What a call costs on 8 samples and 3 taps."""
    import jax
    import torch

    import numconv as nc
    import numconv.jax
    import numconv.torch

    x, w = torch.randn(1, 1, 8), torch.randn(1, 1, 3)
    recorded = [each.clone().requires_grad_() for each in (x, w)]
    arrays = x.numpy(), w.numpy()
    lax = jax.jit(lambda x, w: jax.lax.conv_general_dilated(x, w, (1,), [(0, 0)]))
    ours = jax.jit(numconv.jax.conv)
    on_jax = [jax.numpy.array(each) for each in arrays]

    def step(conv: Callable[..., Any]) -> Any:
        y = conv(*recorded)
        return torch.autograd.grad(y, recorded, y)

    calls = {
        "numconv.conv": lambda: nc.conv(*arrays),
        "numconv.torch.conv": lambda: numconv.torch.conv(x, w),
        "torch conv1d": lambda: torch.nn.functional.conv1d(x, w),
        "numconv.torch.conv and its gradients": lambda: step(numconv.torch.conv),
        "torch conv1d and its gradients": lambda: step(torch.nn.functional.conv1d),
        "numconv.jax.conv": lambda: numconv.jax.conv(*on_jax).block_until_ready(),
        "numconv.jax.conv in jit": lambda: ours(*on_jax).block_until_ready(),
        "jax.lax in jit": lambda: lax(*on_jax).block_until_ready(),
    }
    print("\n| one call | microseconds |\n|---|---:|")
    for title, call in calls.items():
        print(f"| {title} | {fastest(call, seconds) * 1e6:.3g} |")


def waited_for(call: Callable[..., Any], arrays: list[Any]) -> Any:
    """The result of a call of JAX, computed."""
    import jax

    return jax.block_until_ready(call(*arrays))


def print_compiled(seconds: float) -> None:
    """A 3x3 convolution of 64 channels in `jax.jit`, and both gradients."""
    import jax
    import numpy as np

    import numconv.jax

    print("\n| in jit: batch, size | numconv | jax.lax | gradients: numconv | jax.lax |\n|---|---:|---:|---:|---:|")
    convs = (
        lambda x, w: numconv.jax.conv(x, w, padding=1),
        lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), [(1, 1)] * 2),
    )
    for batch, size in ((1, 56), (4, 112)):
        rng = np.random.default_rng(0)
        shapes = (batch, 64, size, size), (64, 64, 3, 3)
        arrays = [jax.numpy.array(rng.standard_normal(shape, dtype=np.float32)) for shape in shapes]
        compiled = [
            *map(jax.jit, convs),
            *(jax.jit(jax.grad(lambda x, w, conv=conv: conv(x, w).sum(), (0, 1))) for conv in convs),
        ]
        times = [fastest(functools.partial(waited_for, call, arrays), seconds) for call in compiled]
        print(f"| {batch}, {size}x{size} | {' | '.join(f'{each * 1e3:.3g}' for each in times)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.25, help="of each measurement")
    seconds = parser.parse_args().seconds
    print_layers(seconds)
    print_overhead(seconds)
    print_compiled(seconds)


if __name__ == "__main__":
    main()
