"""Third stop: learn a kernel back from what it did, by gradient descent."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import numconv as nc

from .data import Voices
from .pictures import COLOURS, picture, stems
from .report import Report
from .sound import band_pass

__all__ = ["learn", "show"]

Array = np.ndarray[Any, Any]


class Course(NamedTuple):
    """How the learning went."""

    kernel: Array
    losses: list[float]
    snapshots: dict[int, Array]
    """The kernel after some of the steps."""


def learn(x: Array, h: Array, taps: int, steps: int, momentum: float = 0.98) -> Course:
    """Find the kernel k with conv(x, k) = h: descend the loss L = 1/2 sum over t of (conv(x, k)(t) - h(t))^2.

    The step is the inverse of the largest power in the spectrum of x: no direction of k is steeper.
    """
    power = (np.abs(np.fft.rfft(x)) ** 2).sum(axis=(0, 1)).max()
    step = np.float32(1 / power)
    kernel = np.zeros((1, 1, taps), np.float32)
    velocity = np.zeros_like(kernel)
    losses, snapshots = [], {}
    for i in tqdm(range(steps), desc="  learning", unit=" steps", delay=1, mininterval=1, leave=False, disable=None):
        error = nc.conv(x, kernel) - h
        losses.append(float(np.vdot(error, error)) / 2)
        gradient = nc.conv_weight_grad(error, x, kernel.shape)
        velocity = np.float32(momentum) * velocity - step * gradient
        kernel = kernel + velocity
        if i + 1 in (10, 50, steps):
            snapshots[i + 1] = kernel
    return Course(kernel, losses, snapshots)


def show(report: Report, voices: Voices, steps: int = 1000) -> None:
    """Hide a kernel, learn it from the voices and their filtered versions, and compare."""
    report.section(
        "Learning: the filter from its output",
        f"""Given the voice x and its response h = conv(x, k), find k: {steps} steps of gradient descent with momentum from zero.
        The gradient dL/dk(tau) = sum over t of dL/dh(t) x(t + tau) is one call of conv_weight_grad. Every position of the wave
        teaches every weight.""",
    )
    x, taps = voices.x, 31
    true = band_pass(600, 1400, taps, voices.rate).astype(np.float32)[None, None]
    h = report.run("response", nc.conv, x, true)
    report.run("gradient of the kernel", nc.conv_weight_grad, h, x, true.shape)
    course = learn(x, h, taps, steps)

    error = float(np.linalg.norm(course.kernel - true) / np.linalg.norm(true))
    report.line(f"\n  loss: {course.losses[0]:.3g} before the first step, {course.losses[-1]:.3g} before the last")
    report.line(f"  relative error of the learned kernel: {error:.1e}")
    report.line(f"  {'tap':>6s}{'true':>12s}{'learned':>12s}")
    for tap in range(taps // 2, taps, 5):
        report.line(f"  {tap - taps // 2:6d}{true[0, 0, tap]:12.6f}{course.kernel[0, 0, tap]:12.6f}")
    draw(report, true[0, 0], course)


def draw(report: Report, true: Array, course: Course) -> None:
    """The loss, and the kernel on its way to the true one."""
    taps = np.arange(len(true)) - len(true) // 2
    with picture(report.file("learned_filter.png"), 13, 4.6, "A filter learned back from its output by gradient descent") as figure:
        loss, learned = figure.subplots(1, 2, width_ratios=(2, 3))
        loss.semilogy(range(len(course.losses)), course.losses, color=COLOURS[1])
        loss.set(xlabel="step", ylabel="loss", title="loss")
        stems(learned, taps, true, "silver")
        learned.plot(taps, true, "o", color="silver", markersize=11, label="true kernel")
        for (step, kernel), style in zip(course.snapshots.items(), (":", "--", "o"), strict=True):
            learned.plot(taps, kernel[0, 0], style, color=COLOURS[2], markersize=4, label=f"learned, {step} steps")
        learned.set(xlabel="tap tau (samples)", ylabel="weight", title="kernel, true and learned")
        learned.legend(frameon=False)
