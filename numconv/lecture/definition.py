"""Claim 4: what a convolution is, as a sum that is written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

import numconv as nc
from numconv.demo import data

from .lesson import Lesson

__all__ = ["CLAIM", "TITLE", "by_hand", "teach"]

TITLE = "Formal definition"
CLAIM = (
    "The convolution of x in R^n with k in R^(2m+1) is h(t) = sum over tau from -m to m of x(t - tau) k(tau); "
    "deep learning computes the sum of x(t + tau) k(tau) and calls it the same."
)

Array = np.ndarray[Any, Any]


def by_hand(x: Array, k: Array, sign: int = -1) -> Array:
    """The sum of x(t + sign tau) k(tau) over tau = -m..m, as it stands in a textbook; x is zero outside."""
    n, m = len(x), len(k) // 2
    h = np.zeros(n, np.result_type(x, k))
    for t in range(n):
        for tau in range(-m, m + 1):
            if 0 <= t + sign * tau < n:
                h[t] += x[t + sign * tau] * k[tau + m]
    return h


def teach(lesson: Lesson) -> None:
    """A small example with all numbers, then a recorded voice, a photograph and a volume against SciPy."""
    worked(lesson)
    on_a_voice(lesson)
    in_more_dimensions(lesson)


def worked(lesson: Lesson) -> None:
    """Six samples, three taps."""
    x, k = np.array([3, 1, 4, 1, 5, 9]), np.array([1, 2, -1])
    lesson.text("""Six samples x and three taps k(-1), k(0), k(1) = 1, 2, -1. Each h(t) is written out; `numconv.conv` with
        flip=True and padding m = 1 gives the same numbers, without flip it gives the cross-correlation.""")
    convolved, correlated = (nc.conv(x[None], k[None, None], padding=1, flip=flip)[0] for flip in (True, False))
    at = {i: int(value) for i, value in enumerate(x)}
    rows = [
        (
            t,
            at[t],
            f"{at.get(t + 1, 0)}·1 + {at[t]}·2 - {at.get(t - 1, 0)}·1",
            convolved[t],
            f"{at.get(t - 1, 0)}·1 + {at[t]}·2 - {at.get(t + 1, 0)}·1",
            correlated[t],
        )
        for t in range(len(x))
    ]
    lesson.table(
        ("t", "x(t)", "x(t+1)k(-1) + x(t)k(0) + x(t-1)k(1)", "flip=True", "x(t-1)k(-1) + x(t)k(0) + x(t+1)k(1)", "flip=False"), rows
    )
    equal = np.array_equal(convolved, by_hand(x, k)) and np.array_equal(correlated, by_hand(x, k, sign=1))
    lesson.check("`conv` with flip=True is the sum written out, without it the cross-correlation", "all 12 numbers equal", equal)


def on_a_voice(lesson: Lesson) -> None:
    """16-bit samples as integers, where equal means equal; and in double precision."""
    from scipy import signal

    wave = data.voices(["italian"]).x[0, 0]
    x = np.rint(wave * 2**15).astype(np.int64)[: 1000 if lesson.setting.quick else None]
    k = np.random.default_rng(lesson.setting.seed).integers(-50, 51, 2 * 8 + 1)
    lesson.text(f"""A recorded voice, {len(x):,} samples of 16 bits as integers, and {len(k)} random integer taps (m = 8): the
        double loop over t and tau, `scipy.signal.convolve` and `numpy.convolve` beside `conv(x, k, padding=8, flip=True)`.""")
    h = nc.conv(x[None], k[None, None], padding=8, flip=True)[0]
    others = {
        "the double loop": by_hand(x, k),
        "scipy.signal.convolve": signal.convolve(x, k, mode="same", method="direct"),
        "numpy.convolve": np.convolve(x, k, mode="same"),
        "conv of the reversed kernel, flip=False": nc.conv(x[None], k[None, None, ::-1], padding=8)[0],
    }
    lesson.table(
        ("computed by", "numbers equal to conv's", "of"),
        [(name, int((h == other).sum()), len(h)) for name, other in others.items()],
    )
    equal = all(np.array_equal(h, other) for other in others.values())
    lesson.check(
        "On integers, `conv` with flip=True equals the double loop, SciPy and NumPy exactly",
        f"{len(h):,} numbers, {len(others)} ways",
        equal,
    )

    exact = signal.convolve(x / 2**15, k / 50, mode="same", method="direct")
    error = np.abs(nc.conv((x / 2**15)[None], (k / 50)[None, None], padding=8, flip=True)[0] - exact).max() / np.abs(exact).max()
    lesson.figure("relative_difference_float64", float(error))
    lesson.check(
        "In double precision they agree within rounding", f"largest difference {error:.0e} of the largest value", error < 1e-13
    )


def in_more_dimensions(lesson: Lesson) -> None:
    """The same sum over two and three variables."""
    from scipy import signal

    rng = np.random.default_rng(lesson.setting.seed)
    photograph = data.photograph(8)[0].astype(np.int64)
    rows = []
    for what, x in (("photograph, red", photograph), ("volume", rng.integers(0, 100, (12, 13, 14)))):
        k = rng.integers(-9, 10, (5,) * x.ndim)
        h = nc.conv(x[None], k[None, None], padding=2, flip=True)[0]
        rows.append(
            (
                what,
                "x".join(map(str, x.shape)),
                "x".join(map(str, k.shape)),
                int((h == signal.convolve(x, k, mode="same", method="direct")).sum()),
                h.size,
            )
        )
    lesson.text("The same definition with t and tau in two and three dimensions, beside `scipy.signal.convolve`, integers again.")
    lesson.table(("input", "size", "kernel", "numbers equal", "of"), rows)
    lesson.check(
        "The definition is the same in two and three dimensions",
        f"{sum(row[-1] for row in rows):,} numbers equal SciPy's",
        all(row[-2] == row[-1] for row in rows),
    )
