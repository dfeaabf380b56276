"""The contract, for every backend that is available."""

import pytest

import numconv
from numconv.plugin import parse
from numconv.testing import CONV_PROBLEMS, POOL_PROBLEMS, WINDOW_PROBLEMS, BackendContract, candidates

TEXTS = CONV_PROBLEMS + POOL_PROBLEMS + WINDOW_PROBLEMS


def _small(text):
    """The problem with fewer channels, taps and positions, for a simulator that runs each thread of a kernel in Python."""
    problem = parse(text)
    taps = "kernel" if text.startswith("conv") else "window"
    window = tuple(min(r, 3) for r in getattr(problem, taps))
    most = {1: 9, 2: 5}.get(problem.ndim, 3)
    spatial = tuple(
        max(min(size, most), d * (r - 1) + 1 + s - low - high, 1)
        for size, r, s, d, (low, high) in zip(
            problem.spatial, window, problem.stride, problem.dilation, problem.padding, strict=True
        )
    )
    changes = {"n": min(problem.n, 2), "spatial": spatial, taps: window}
    if taps == "kernel":
        groups = min(problem.groups, 3)
        per_c, per_k = (min(channels // problem.groups, 2) for channels in (problem.c, problem.k))
        changes |= {"groups": groups, "c": groups * per_c, "k": groups * per_k}
    elif not problem.op.startswith("max_unpool"):
        changes["c"] = min(problem.c, 2)
    return str(problem.replace(**changes))


def _one_at_a_time(self):
    """In the place of `test_threads`."""
    pytest.skip("the simulator runs one kernel at a time, whatever the threads that ask")


SIMULATED = {
    "problems": tuple(dict.fromkeys(map(_small, TEXTS))), "levels": ("default",), "forms": ("mixed",),
    "test_threads": _one_at_a_time,
}  # fmt: skip

# NumPy takes any strides, and the oracle is slow: one form off every alignment, and one in which each array has another. It
# computes the same at all levels but "strict".
FEWER = {"reference": {"forms": ("unaligned", "mixed"), "levels": ("strict", "default")}}
# On a GPU each execution waits for the device many times, which several processes share.
ON_A_GPU = {"forms": ("C-contiguous", "unaligned", "mixed")}

for _info in numconv.backends():
    if _info.available:
        _name = f"Test{_info.name.capitalize()}"
        _fewer = FEWER.get(_info.name, ON_A_GPU if _info.device == "gpu" else {})
        _less = SIMULATED if _info.reason.startswith("simulated") else _fewer
        globals()[_name] = type(_name, (BackendContract,), {"backend": _info.name, **_less})


def test_our_own_cpu_backends_refuse_nothing(backend):
    info = next(info for info in numconv.backends() if info.name == backend)
    if info.distribution != "numconv-nd" or info.device != "cpu":
        pytest.skip(f"{backend} may decline problems")
    assert [text for text in TEXTS if not any(row.verdict for row in candidates(parse(text), backend))] == []
