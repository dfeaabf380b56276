"""What the benchmarks share: the rows, calls that are warm and checked, and their seconds.

The rows and the code that makes, checks and times calls are those of this checkout (``numconv/benchmarking``), loaded from their
folder: the numconv that is measured is the installed one, perhaps of a commit that has none of them.
"""

import functools
import importlib.util
import json
import pathlib
import sys
import timeit

import numconv
from numconv.plugin import parse

ROOT = pathlib.Path(__file__).parents[2]


def _load(folder):
    """The folder as a package of its own."""
    options = {"submodule_search_locations": [str(folder)]}
    spec = importlib.util.spec_from_file_location("numconv_worker", folder / "__init__.py", **options)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_worker = _load(ROOT / "numconv" / "benchmarking" / "worker")

ROWS: dict[str, str] = {
    name: text
    for rows in json.loads((ROOT / "numconv" / "benchmarking" / "rows.json").read_text()).values()
    for name, text in rows.items()
}
WINDOWS: dict[str, dict[str, str]] = json.loads((ROOT / "asv_bench" / "windows.json").read_text())
TINY = ROWS["digits8"]
# One row of each kind, where all of them would take too long.
CHOSEN = [
    ROWS[name]
    for name in (
        "resnet50.56", "resnet50.28s2", "pointwise.256to64", "depthwise3.144", "grouped32", "image11", "sound9", "soundfir1025",
        "dilated16", "video3.32", "digits8", "f64.56",
    )
]  # fmt: skip
# For each implementation in turn: where more than one has a chance.
CONTESTED = [ROWS[name] for name in ("resnet50.56", "pointwise.256to64", "depthwise3.144", "image11", "sound9", "video3.32")]
PASSES = ["forward", "backward"]
rates = _worker.ours.rates


def case(text, direction):
    """One pass of a row, as the worker takes it."""
    problem = parse(text)
    names = ("dtype", "x_shape", "w_shape", "y_shape", "stride", "padding", "dilation", "groups")
    return _worker.Case(name=text, direction=direction, **{name: getattr(problem, name) for name in names})


@functools.cache
def warm_call(text, direction, implementation="auto"):
    """A call that has run once and whose results were right: asv repeats setup, and `--quick` does not warm up.

    `implementation` is "auto", a backend, or a backend and its algorithm, as "numba winograd". One that is missing (perhaps in
    this commit only), or declines the problem, makes asv skip the benchmark, with the reason; wrong results are an error.
    """
    backend, _, algorithm = implementation.partition(" ")
    try:
        make, _ = _worker.ours.start(None if backend == "auto" else backend, algorithm or None)
        (call,) = make(case(text, direction)).values()
    except (numconv.NumconvError, _worker.Declined) as refusal:
        raise NotImplementedError(str(refusal)) from refusal
    _worker.check(case(text, direction), call())
    return call


def seconds(call) -> float:
    """The best seconds a call of five runs, each of at least a twentieth of a second."""
    call()
    timer = timeit.Timer(call)
    once = timer.timeit(1)
    number = max(1, round(0.05 / max(once, 1e-7)))
    return min(timer.repeat(5, number)) / number
