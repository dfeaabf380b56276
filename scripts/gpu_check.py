#!/usr/bin/env python3
"""Every check that needs a GPU, in one call of less than eight minutes, on a machine where nothing of numconv is installed.

    python scripts/gpu_check.py                      # all backends that compute on a GPU here
    python scripts/gpu_check.py --backend cuda --parts facts,timing --minutes 4 --output check.json

Each part runs in a process of its own with a time limit, so that none hides another. The file is rewritten every few seconds with
what is known by then, so that a run that is stopped from outside leaves its records too.

facts     the device, its clocks, the versions, what `numconv.backends()` says, and rates of products and copies measured by torch
contract  the contract suite on the device, by as many processes as there are cores where pytest-xdist is installed
races     the same bits from twenty runs on outputs filled with different bytes, on problems of many blocks
compile   what `timing` and `use` run, once, by as many processes as there are cores: kernels are then loaded from disk
use       what users do: differentiate through torch's tensors, call with CuPy's arrays, what a call then costs, and train a network
          where the backend pools
torch     seconds of torch, and so of cuDNN, on larger batches and on the rows of `numconv bench`, without and with TF32
timing    seconds of the chosen implementation on the same rows, then of all others

Seconds are those between two events on the device, around calls that are queued behind a sleep of it, so that they are the device's
alone; `host` is what a call takes to return. A call is as slow as the slower of the two.
The contract needs CuPy and pytest, the peers torch; a part whose library is missing says so. What is compiled is kept in a folder
that is removed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("facts", "contract", "compile", "races", "use", "torch", "timing")
LIMITS = {"facts": 40, "contract": 180, "compile": 50, "races": 35, "use": 25, "torch": 50, "timing": 85}
"""Seconds of a part; of each backend where a part runs once a backend."""
MINUTES = 7.8
SHARED = ("facts", "contract", "compile", "torch")
"""Parts that run once for all backends."""
GRACE = 12
"""Seconds before its limit when a part ends its own processes, to tell what is known."""
DEVICE = "cuda"
"""Where torch puts arrays."""
SIZES = {"product": 8192, "copy": 2**28}
"""Of the matrices and the array on which the rates are measured, in elements."""
SHARE = "NUMCONV_CHECK_SHARE"
"""The environment variable that tells a process of `compile` which share of the rows is its own: number/count."""
PACKAGES = ("numba", "numba-cuda", "cuda-core", "numpy", "torch", "cupy-cuda12x", "cupy-cuda13x", "nvidia-cudnn-frontend", "pytest")
MUCH = 0.5
"""Estimated seconds beyond which an implementation that nobody would choose is not timed."""
ENOUGH = 0.005
"""Seconds of a group of calls, of which there are at most `MOST` in each of `GROUPS` groups."""
MOST = 20
GROUPS = 3
LONGEST = 0.03
"""Seconds that the device sleeps at most, at a rate of `CLOCK` cycles a second or less."""
CLOCK = 2e9
ROWS = ("resnet50.conv1", "resnet50.56", "resnet50.28s2", "pointwise.256to64", "depthwise3.144")
BATCHES = {32: ROWS, 256: ("resnet50.56", "depthwise3.144")}
"""Rows of larger batches, which are timed at "fast" too."""
HALVES = {"float16": ROWS, "bfloat16": ("resnet50.56",)}
"""Rows of the smaller of them in other dtypes."""
POOLING = "pool max_pool f32 n32 c32 in8x8 w2x2 s2 p0 d1"
"""What a backend must compute, besides convolutions, to train alone."""
RACES = (
    "conv forward f32 n8 c48 k80 g1 in29x31 w3x3 s1 p1 d1",
    "conv input_grad f32 n8 c48 k80 g1 in29x31 w3x3 s2 p1 d1",
    "conv weight_grad f32 n8 c48 k80 g1 in29x31 w3x3 s1 p1 d1",
    "conv weight_grad f32 n8 c48 k48 g48 in29x31 w3x3 s1 p1 d1 bias=y",
    "conv forward f16 n8 c48 k80 g1 in29x31 w3x3 s1 p1 d1",
    "conv weight_grad bf16 n8 c48 k80 g1 in29x31 w3x3 s1 p1 d1",
    "conv forward i32 n8 c48 k80 g1 in29x31 w3x3 s1 p1 d1",
    "conv forward f32 n8 c48 k80 g1 in28x32 w1x1 s1 p0 d1",
    "conv forward f32 n8 c48 k80 g1 in29x31 w3x3 s1 p1 d1 accuracy=fast",
    "pool max_pool_backward f32 n8 c48 in29x31 w3x3 s2 p1 d1",
    "window max_unpool f32 n8 c48 in32x32 w1x1 s1 p0 d1 target=16x16",
    "window fold f32 n8 c16 in29x31 w3x3 s1 p1 d1",
)


# --- the machine without an installation -----------------------------------------------------------------------------------------


def environment(folder: Path) -> dict[str, str]:
    """The environment of a part: numconv importable, its entry points described by a folder that stands for an installation."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / "numconv_nd-0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0\n", encoding="utf-8")
    lines = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    paths = [str(folder), str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")]
    own = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1",
        "NUMCONV_CACHE_DIR": str(folder / "cache"), "CUPY_CACHE_DIR": str(folder / "cupy"),
    }  # fmt: skip
    return toolkit() | dict(os.environ) | own


def toolkit() -> dict[str, str]:
    """Where the CUDA toolkit is, for libraries that would look for it in their own folders only."""
    compiler = shutil.which("nvcc")
    places = [Path(compiler).resolve().parents[1]] if compiler else []
    found = next((place for place in [*places, Path("/usr/local/cuda")] if (place / "nvvm").is_dir()), None)
    return {"CUDA_HOME": str(found), "CUDA_PATH": str(found)} if found else {}


def gpu_backends(asked: Sequence[str]) -> list[str]:
    """The available backends that compute on a GPU, or those asked for."""
    import numconv

    return list(asked) or [info.name for info in numconv.backends() if info.device == "gpu" and info.available]


# --- parts: each yields records, (key, value) ----------------------------------------------------------------------------------

Records = Iterator[tuple[str, Any]]


def facts(_: Sequence[str], __: float) -> Records:
    """Versions, backends, the device, its rates."""
    from importlib import metadata

    yield "python", sys.version
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield f"version {name}", metadata.version(name)
    import numconv

    for info in numconv.backends():
        yield f"backend {info.name}", {"available": info.available, "device": info.device, "reason": info.reason}
    yield "clocks", clocks()
    yield from _rates()


def clocks() -> str:
    """What the driver's own program says of the device at this moment."""
    asked = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_throttle_reasons.active"
    try:
        command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: {error}"


def _rates() -> Records:
    torch = _torch()
    yield "device", torch.cuda.get_device_name()
    yield "cudnn", torch.backends.cudnn.version()
    for name, dtype, tf32 in (("f32", torch.float32, False), ("tf32", torch.float32, True), ("f16", torch.float16, False),
                              ("f64", torch.float64, False)):  # fmt: skip
        torch.backends.cuda.matmul.allow_tf32 = tf32
        size = SIZES["product"]
        a = torch.randn(size, size, device=DEVICE, dtype=dtype)
        yield f"flops {name}", 2 * size**3 / seconds(functools.partial(torch.matmul, a, a))["seconds"]
    values = torch.empty(SIZES["copy"], device=DEVICE, dtype=torch.float32)
    target = torch.empty_like(values)
    yield "bytes", 2 * values.nbytes / seconds(lambda: target.copy_(values))["seconds"]


def contract(backends: Sequence[str], limit: float) -> Records:
    """The contract suite by as many processes as there are cores, a record for each implementation and operation.

    What has not ended in time is interrupted, and told as far as it came.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "contract.log"
        process = contract_process(backends, log)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=max(1.0, limit - GRACE))
        late = process.poll() is None
        if late:
            process.send_signal(signal.SIGINT)  # pytest then tells what failed
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=GRACE - 2)
            process.kill()
            process.wait()
        yield from outcomes(log.read_text(encoding="utf-8", errors="replace"), process.returncode, late=late).items()


def contract_process(backends: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """pytest on the contracts of these backends, the one that compiles the longest last; shared out by pytest-xdist."""
    ordered = sorted(backends, key=lambda name: name == "cuda")
    tests = [f"{ROOT / 'tests' / 'test_contract.py'}::Test{name.capitalize()}" for name in ordered]
    asked = [word for name in ordered for word in ("--backend", name)]
    shared = ["-n", str(max(1, (os.cpu_count() or 2) - 1)), "--dist", "load"] if importlib.util.find_spec("xdist") else []
    how = ["-v", "--no-header", "-p", "no:cacheprovider", "-W", "default", "--tb=short", *shared]
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", *how, *asked, *tests], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
        )


_TEST = re.compile(r"::Test(\w+)::(\w+)(?:\[(\w+): \w+ (\w+)[^\]]*\])?")


def outcomes(text: str, status: int, *, late: bool = False) -> dict[str, dict[str, Any]]:
    """What a run of pytest told, by backend, implementation and operation: how many tests passed, and which failed with what words.

    `passed` is None where tests may be missing. The record "all" has how it ended, the words of the first failure and the errors of
    the others.
    """
    found: dict[str, dict[str, Any]] = {}
    lines = text.strip().splitlines()
    for line in lines:
        verdict = re.search(r"(?<![:\w])(PASSED|FAILED|ERROR)(?!\w)", line)
        test = _TEST.search(line)
        if verdict and test:
            backend, name, algorithm, op = test.groups()
            entry = found.setdefault(" ".join((backend.lower(), algorithm or "general", op or name)), {"tests": 0, "failures": []})
            if verdict[1] == "PASSED":
                entry["tests"] += 1
            elif test[0] not in entry["failures"]:
                entry["failures"].append(test[0])
    for entry in found.values():
        entry["passed"] = False if entry["failures"] else None if late else True
    start = next((number for number, line in enumerate(lines) if re.match(r"_+ .* _+$", line)), None)
    ended = status in (0, 1) and not late
    words = lines[start : start + 25] if start is not None else [] if ended else lines[-5:]
    words += list(dict.fromkeys(line[:300] for line in lines if line.startswith("E  ") and line not in words))[:40]
    summary = f"interrupted after {sum(entry['tests'] for entry in found.values())} passed" if late else lines[-1] if lines else ""
    failed = any(entry["failures"] for entry in found.values()) or not (ended or late)
    return {"all": {"passed": False if failed else None if late else True, "summary": summary, "words": words}} | found


def compile_all(backends: Sequence[str], limit: float) -> Records:
    """Run what `timing` and `use` do first once, a share of the rows in each of some processes, which are ended in time."""
    if SHARE in os.environ:
        yield from _run_once(backends, own_share(list(rows())))
    else:
        yield from shared_out("compile", backends, limit, beside="use")


def own_share(some: Sequence[Any]) -> Sequence[Any]:
    """What of it is this process's own."""
    number, count = map(int, os.environ[SHARE].split("/"))
    return some[number::count]


def shared_out(part: str, backends: Sequence[str], limit: float, beside: str = "") -> Records:
    """The records of as many processes as there are cores, each with a share of a part, which are ended in time.

    `beside` is a part that runs at the same time for each backend, for what it compiles.
    """
    end, count = time.monotonic() + limit - GRACE, max(1, (os.cpu_count() or 2) - 1)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.jsonl" for number in range(count)]
        processes = [
            subprocess.Popen(command_of(part, backends, limit, path), env=os.environ | {SHARE: f"{number}/{count}"})
            for number, path in enumerate(paths)
        ]
        processes += [
            subprocess.Popen(command_of(beside, [name], limit, Path(folder) / f"{name}.jsonl"), stdout=subprocess.DEVNULL)
            for name in (backends if beside else ())
        ]
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.1, end - time.monotonic()))
            process.kill()
            process.wait()
        for path in paths:
            yield from read_records(path).items()


def command_of(part: str, backends: Sequence[str], limit: float, path: Path) -> list[str]:
    """The command that runs a part and writes its records into a file."""
    command = [sys.executable, __file__, "--child", part, "--records", str(path), "--limit", str(limit)]
    return command + [word for backend in backends for word in ("--backend", backend)]


def _run_once(backends: Sequence[str], some: Sequence[tuple[str, Any]]) -> Records:
    for name, problem in some:
        arrays, outs = [_random(shape, problem.dtype) for shape in problem.input_shapes], _outputs(problem)
        for backend in backends:
            for level, algorithm, implementation in timed(problem, backend, chosen=True):
                key = f"{backend} {name} {problem.op} {level} {algorithm}"
                yield key, told(_first_call, implementation, problem.replace(accuracy=level), outs, arrays)


def _first_call(implementation: Any, problem: Any, outs: Sequence[Any], arrays: Sequence[Any]) -> dict[str, Any]:
    start = time.perf_counter()
    implementation.build(problem)(_forms(outs), _forms(arrays))
    return {"took": round(time.perf_counter() - start, 2)}


def races(backends: Sequence[str], limit: float) -> Records:
    """Whether twenty runs on differently filled outputs give the same bits; the problems are shared out to some processes."""
    if SHARE in os.environ:
        yield from _same_bits(backends[0], own_share(RACES))
    else:
        yield from shared_out("races", backends, limit)


def _same_bits(backend: str, texts: Sequence[str]) -> Records:
    import numpy as np

    from numconv.plugin import parse
    from numconv.testing import candidates, inputs

    for text in texts:
        problem = parse(text)
        arrays = [_on_device(a) for a in inputs(problem, np.random.default_rng(3), False)]
        for row in candidates(problem, backend):
            if row.verdict and row.implementation is not None:
                yield f"{row.algorithm}: {text}", told(_runs, row.implementation, problem, arrays)


def _runs(implementation: Any, problem: Any, arrays: Sequence[Any]) -> dict[str, Any]:
    found = set()
    executor = implementation.build(problem)
    for run in range(20):
        outs = _outputs(problem, fill=run)
        executor(_forms(outs), _forms(arrays))
        found.add(b"".join(_bytes(out) for out in outs))
    return {"passed": len(found) == 1, "results": len(found)}


def use(backends: Sequence[str], limit: float) -> Records:
    """Calls as users make them: their results, and microseconds until they return."""
    from numconv.plugin import parse
    from numconv.testing import candidates

    (backend,) = backends
    for dtype in ("float32", "float16"):
        yield f"torch {dtype}", told(_through_torch, backend, dtype)
    yield "cupy", told(_through_cupy, backend)
    yield "calls", told(_calls, backend)
    if any(row.verdict for row in candidates(parse(POOLING), backend)):
        yield "train", told(_trained, backend, limit)


def _through_torch(backend: str, dtype: str) -> dict[str, Any]:
    """`numconv.torch.conv` and its gradients beside torch's own, in float64, for tensors on the device."""
    import numconv.torch

    torch = _torch()
    x, w = (_random(shape, dtype).requires_grad_() for shape in ((4, 24, 29, 31), (40, 12, 3, 3)))
    options: dict[str, Any] = {"stride": 2, "padding": 1, "groups": 2}
    y = numconv.torch.conv(x, w, backend=backend, **options)
    exact = torch.nn.functional.conv2d(x.double(), w.double(), **options)
    gradient = torch.randn_like(y)
    found = [y, *torch.autograd.grad(y, (x, w), gradient)]
    wanted = [exact, *torch.autograd.grad(exact, (x, w), gradient.double())]
    errors = [float((a.double() - b).detach().abs().max() / b.detach().abs().max()) for a, b in zip(found, wanted, strict=True)]
    return {"passed": max(errors) < {"float32": 1e-4, "float16": 1e-2}[dtype], "errors": errors}


def _through_cupy(backend: str) -> dict[str, Any]:
    """`numconv.conv` on CuPy's arrays and a stream of the caller's, into an array of the caller's."""
    import cupy

    import numconv

    values = cupy.random.default_rng(3)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        x, w = values.standard_normal((4, 24, 29, 31), "float32"), values.standard_normal((40, 24, 3, 3), "float32")
        out = cupy.full((4, 40, 29, 31), cupy.nan, "float32")
        found = numconv.conv(x, w, padding=1, backend=backend, out=out)
        stream.synchronize()
    exact = numconv.conv(x.get().astype("float64"), w.get().astype("float64"), padding=1)
    error = float(abs(out.get() - exact).max() / abs(exact).max())
    return {"passed": error < 1e-5 and found is out, "errors": [error]}


def _calls(backend: str) -> dict[str, Any]:
    """What a small call takes until it returns, by the library of the arrays, beside torch's own."""
    import cupy

    import numconv

    torch = _torch()
    x, w = (_random(shape, "float32") for shape in ((1, 16, 28, 28), (16, 16, 3, 3)))
    calls = {
        "torch itself": functools.partial(torch.nn.functional.conv2d, x, w, padding=1),
        "torch": functools.partial(numconv.conv, x, w, padding=1, backend=backend),
        "cupy": functools.partial(numconv.conv, cupy.from_dlpack(x), cupy.from_dlpack(w), padding=1, backend=backend),
    }
    return {name: round(1e6 * seconds(call)["host"], 1) for name, call in calls.items()}


def training(backend: str, path: Path) -> list[str]:
    """The command that trains a network for the digits of scikit-learn for a few epochs on the device, and writes its result."""
    return [sys.executable, "-m", "numconv", "train", "digits", "--epochs", "4", "--backend", backend, "--json", str(path)]


def _trained(backend: str, limit: float) -> dict[str, Any]:
    """How accurate the network is then."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        start = time.monotonic()
        done = subprocess.run(training(backend, path), capture_output=True, text=True, check=False, timeout=limit)
        took = time.monotonic() - start
        if done.returncode:
            return {"passed": False, "error": done.stderr[-500:]}
        accuracy = json.loads(path.read_text(encoding="utf-8"))["test_accuracy"]
        return {"passed": accuracy > 0.9, "accuracy": accuracy, "took": round(took, 1)}


def told(function: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """What a function gives; if it fails, its words, so that the next one has its turn."""
    try:
        return function(*given)
    except Exception as error:  # noqa: BLE001 - whatever a library raises is a record
        return {"passed": False, "error": f"{type(error).__name__}: {error}"[:500]}


def torch_rows(_: Sequence[str], __: float) -> Records:
    """Seconds of torch on each row, by precision."""
    torch = _torch()
    torch.backends.cudnn.benchmark = True
    for name, problem in fewest_taps_first(rows()):
        for level in levels_of(problem):
            torch.backends.cudnn.allow_tf32 = level == "fast"
            yield f"{name} {problem.op} {level}", told(_torch_seconds, torch, problem)
    yield "clocks", clocks()


def _torch_seconds(torch: Any, problem: Any) -> dict[str, Any]:
    return seconds(_torch_call(torch, problem))


def _torch_call(torch: Any, problem: Any) -> Callable[[], Any]:
    """torch's own call for a problem: zero padding, equal on both sides, as all rows have it."""
    x, w, y = (_random(shape, problem.dtype) for shape in (problem.x_shape, problem.w_shape, problem.y_shape))
    options = (list(problem.stride), [low for low, _ in problem.padding], list(problem.dilation))
    if problem.op == "forward":
        function = getattr(torch.nn.functional, f"conv{problem.ndim}d")
        return lambda: function(x, w, None, *options, problem.groups)
    wanted = [problem.op == "input_grad", problem.op == "weight_grad", False]
    none = [0] * problem.ndim
    return lambda: torch.ops.aten.convolution_backward(y, x, w, None, *options, False, none, problem.groups, wanted)


def timing(backends: Sequence[str], _: float) -> Records:
    """Seconds of the chosen implementation on each row, and then of the others."""
    for chosen in (True, False):
        for name, problem in fewest_taps_first(rows()):
            arrays = [_random(shape, problem.dtype) for shape in problem.input_shapes]
            outs = _outputs(problem)
            for level, algorithm, implementation in timed(problem, backends[0], chosen=chosen):
                key = f"{name} {problem.op} {level} {algorithm}"
                asked = problem.replace(accuracy=level)
                yield key, {"chosen": chosen} | told(_seconds_of, implementation, asked, outs, arrays)
    yield "clocks", clocks()


def timed(problem: Any, backend: str, *, chosen: bool) -> Iterator[tuple[str, str, Any]]:
    """(level, algorithm, implementation) to time on a row: the chosen one of each level, or all others but those of no use."""
    from numconv.testing import candidates

    for level in levels_of(problem):
        able = [row for row in candidates(problem.replace(accuracy=level), backend) if row.verdict]
        plain = [row.algorithm for row in candidates(problem, backend) if row.verdict] if level == "fast" else []
        for place, row in enumerate(able):
            same = place > 0 and row.algorithm in plain  # computes what it does at the default level
            if (place == 0) is chosen and not same and row.cost < MUCH:
                yield level, row.algorithm, row.implementation


def _seconds_of(implementation: Any, problem: Any, outs: Sequence[Any], arrays: Sequence[Any]) -> dict[str, Any]:
    return seconds(functools.partial(implementation.build(problem), _forms(outs), _forms(arrays)))


def rows() -> Iterator[tuple[str, Any]]:
    """(name, problem) for larger batches, then the rows of the benchmarks, and all their gradients."""
    from numconv.plugin import CONV_OPS, parse

    groups = json.loads((ROOT / "numconv" / "benchmarking" / "rows.json").read_text(encoding="utf-8"))
    texts = {name: text for group in groups.values() for name, text in group.items()}
    for batch, names in BATCHES.items():
        for name in names:
            for op in CONV_OPS:
                yield f"{name}.n{batch}", parse(texts[name]).replace(op=op, n=batch)
    for name, text in texts.items():
        for op in CONV_OPS:
            yield name, parse(text).replace(op=op)
    for dtype, names in HALVES.items():
        for name in names:
            for op in CONV_OPS:
                problem = parse(texts[name]).replace(op=op, n=min(BATCHES), dtype=dtype, out_dtype=dtype)
                yield f"{name}.n{problem.n}.{dtype}", problem


def fewest_taps_first(some: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The rows so that those come last whose large kernels cuDNN tries for many seconds before it chooses."""
    return sorted(some, key=lambda row: math.prod(row[1].kernel))


def levels_of(problem: Any) -> tuple[str, ...]:
    """At which levels a row is timed: what "fast" allows shows on large problems in float32."""
    return ("default", "fast") if problem.dtype == "float32" and problem.n in BATCHES else ("default",)


# --- arrays on the device, and time ----------------------------------------------------------------------------------------------


def _torch() -> Any:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("torch is installed and sees no GPU")
    return torch


def _on_device(array: Any) -> Any:
    """A NumPy array on the device; torch knows NumPy's bfloat16 by its bits."""
    torch = _torch()
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16).to(DEVICE)
    return torch.from_numpy(array).to(DEVICE)


def _random(shape: Sequence[int], dtype: str) -> Any:
    torch = _torch()
    return torch.randn(tuple(shape), device=DEVICE, dtype=getattr(torch, dtype))


def _outputs(problem: Any, fill: int = 0) -> list[Any]:
    torch = _torch()
    kinds = [getattr(torch, problem.out_dtype)] * len(problem.output_shapes)
    if problem.op == "max_pool" and problem.indices:
        kinds[1] = torch.int64
    outs = [torch.empty(shape, dtype=kind, device=DEVICE) for shape, kind in zip(problem.output_shapes, kinds, strict=True)]
    for out in outs:
        out.view(torch.uint8).fill_((fill * 37 + 255) % 256)
    return outs


def _forms(arrays: Sequence[Any]) -> list[Any]:
    from numconv.arrays import as_array

    return [as_array(array, "gpu_check", "array") for array in arrays]


def _bytes(array: Any) -> bytes:
    torch = _torch()
    found: bytes = array.contiguous().view(torch.uint8).cpu().numpy().tobytes()
    return found


def seconds(call: Callable[[], Any]) -> dict[str, float]:
    """Seconds of a call on the device, and what it takes to return: the medians of several groups of calls.

    Two calls warm up and compile, so that no group waits for them.
    """
    torch = _torch()
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    once, host = _group(torch, call, 1, 0.0)
    count = max(1, min(MOST, int(ENOUGH / max(once, 1e-6))))
    groups = [_group(torch, call, count, 1.5 * host * count) for _ in range(GROUPS if once < 0.05 else 1)]
    return {"seconds": statistics.median(group[0] for group in groups), "host": statistics.median(group[1] for group in groups)}


def _group(torch: Any, call: Callable[[], Any], count: int, asleep: float) -> tuple[float, float]:
    """Seconds of each of some calls, on the device and on the host; the device sleeps first, while they are queued."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(int(min(asleep, LONGEST) * CLOCK))
    begin.record()
    start = time.perf_counter()
    for _ in range(count):
        call()
    host = time.perf_counter() - start
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / count, host / count


# --- the parent ------------------------------------------------------------------------------------------------------------------

RUN: dict[str, Callable[[Sequence[str], float], Records]] = {
    "facts": facts,
    "contract": contract,
    "compile": compile_all,
    "races": races,
    "use": use,
    "torch": torch_rows,
    "timing": timing,
}


def child(part: str, backends: Sequence[str], path: Path, limit: float) -> int:
    """Run one part, and write each record as soon as it is there."""
    with path.open("a", encoding="utf-8") as file:
        for key, value in RUN[part](backends, limit):
            file.write(json.dumps([key, value]) + "\n")
            file.flush()
    return 0


def read_records(path: Path) -> dict[str, Any]:
    """The whole records of a file; a last one that was cut off is left out."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            key, value = json.loads(line)
            found[key] = value
    return found


def run_part(part: str, backends: Sequence[str], limit: float, folder: Path, tell: Callable[[Any], None]) -> dict[str, Any]:
    """Run one part in a process, end it at the limit, and give its records and how it ended; `tell` hears of them meanwhile."""
    name = f"{part}-{'-'.join(backends) or 'all'}"
    path, log = folder / f"{name}.jsonl", folder / f"{name}.log"
    command = command_of(part, backends, limit, path)
    start = time.monotonic()

    def known(ended: str) -> dict[str, Any]:
        tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-15:]
        return {"ended": ended, "seconds": round(time.monotonic() - start, 1), "records": read_records(path), "log": tail}

    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, env=environment(folder), stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            while (left := start + limit - time.monotonic()) > 0:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = process.wait(timeout=min(left, 3))
                    return known("done" if status == 0 else f"failed with status {status}")
                tell(known("running"))
            return known(f"stopped after {limit:.0f} s")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its own session: the processes of the contract too
            process.wait()


def fraction(problem: Any, took: float, rates: dict[str, Any], level: str) -> float | None:
    """The share of the roofline: the larger of the floors of arithmetic and of memory over the seconds it took."""
    kinds = {"float32": "tf32" if level == "fast" else "f32", "float64": "f64", "float16": "f16", "bfloat16": "f16"}
    kind = kinds[problem.dtype]
    if f"flops {kind}" not in rates or "bytes" not in rates or took <= 0:
        return None
    return float(max(problem.flops / rates[f"flops {kind}"], problem.bytes / rates["bytes"]) / took)


def bad(part: dict[str, Any]) -> dict[str, Any]:
    """The records of a part that tell of a failure (False), or of what was not finished (None)."""
    return {k: v for k, v in part["records"].items() if isinstance(v, dict) and v.get("passed", True) is not True}


def report(results: dict[str, Any]) -> str:
    """The results for people: how each part ended, what failed, and each time beside torch's and the roofline."""
    rates = results.get("facts", {}).get("records", {})
    lines = [f"device: {rates.get('device', 'unknown')}"]
    lines += [f"{name:20s}{part['ended']}, {part['seconds']} s" for name, part in results.items()]
    for name, part in results.items():
        lines += [
            f"{'FAILED' if value['passed'] is False else 'UNKNOWN'} {name} {key}: {value}" for key, value in bad(part).items()
        ]
        if part["ended"] != "done":
            lines += [f"  {name}: {line}" for line in part["log"][-5:]]
    problems = {(name, problem.op): problem for name, problem in rows()}
    peers = results.get("torch", {}).get("records", {})
    for name, part in results.items():
        lines += [f"  {name} {key}: {value}" for key, value in part["records"].items() if name.startswith("use")]
    for name, part in results.items():
        for key, value in part["records"].items() if name.startswith("timing") else ():
            if key == "clocks" or "seconds" not in value:
                continue
            row, op, level, algorithm = key.rsplit(" ", 3)
            share = fraction(problems[row, op], value["seconds"], rates, level)
            peer = peers.get(f"{row} {op} {level}", {}).get("seconds")
            beside = f"{peer / value['seconds']:6.2f} of torch" if peer else " " * 15
            roof = f"{share:6.1%} of the roofline" if share is not None else ""
            mark = ">" if value["chosen"] else " "
            took = f"{value['seconds'] * 1e6:10.1f} us, host {value['host'] * 1e6:5.0f} us"
            lines.append(f"{mark} {row:30s}{op:12s}{level:8s}{algorithm:14s}{took} {beside} {roof}".rstrip())
    return "\n".join(lines)


def save_with(results: dict[str, Any], label: str, path: Path, so_far: dict[str, Any]) -> None:
    """Replace the file while a part runs."""
    save(results | {label: so_far}, path)


def save(results: dict[str, Any], path: Path) -> None:
    """Replace the file in one step."""
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(results, indent=1), encoding="utf-8")
    scratch.replace(path)


def plan_of(parts: Sequence[str], backends: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(part, backends) in the order in which they run: one process for all backends, or one for each."""
    found: list[tuple[str, list[str]]] = []
    for part in PARTS:
        if part in parts:
            found += [(part, list(backends))] if part in SHARED else [(part, [name]) for name in backends]
    return found


def limit_of(ahead: Sequence[str], left: float) -> float:
    """Seconds for the first of the parts ahead: its own limit, or its share of what is left where all of them have too little."""
    wanted = sum(LIMITS[part] for part in ahead)
    return max(1.0, LIMITS[ahead[0]] * min(1.0, left / wanted))


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", action="append", default=[], help="check this backend only; may be repeated")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for all of it ({MINUTES})")
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"), help="where the results go (gpu_check.json)")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--records", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=0.0, help=argparse.SUPPRESS)
    found = parser.parse_args(given)
    found.parts = [part.strip() for part in found.parts.split(",") if part.strip()]
    unknown = sorted(set(found.parts) - set(PARTS))
    if unknown or not found.parts:
        parser.error(f"--parts: {', '.join(unknown) or 'none'} is no part; there are {', '.join(PARTS)}")
    return found


def main(given: Sequence[str] | None = None) -> int:
    """Run the parts; the status is 0 if every one ran to its end and nothing failed."""
    asked = arguments(given)
    if asked.child:
        return child(asked.child, asked.backend, asked.records, asked.limit)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.update(environment(folder))
        sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
        backends = gpu_backends(asked.backend)
        results: dict[str, Any] = {}
        jobs = plan_of(asked.parts if backends else ["facts"], backends)
        for number, (part, names) in enumerate(jobs):
            label = part if part in SHARED else f"{part} {names[0]}"
            print(f"{label} ... ({time.monotonic() - start:.0f} s)", flush=True)
            limit = limit_of([name for name, _ in jobs[number:]], 60 * asked.minutes - (time.monotonic() - start))
            results[label] = run_part(part, names, limit, folder, functools.partial(save_with, results, label, asked.output))
            save(results, asked.output)
        print(report(results))
    print(f"written: {asked.output}")
    if not backends:
        import numconv

        print(f"No backend computes on a GPU here:\n{numconv.backends()}")
        return 2
    return int(any(bad(part) or part["ended"] != "done" for part in results.values()))


if __name__ == "__main__":
    sys.exit(main())
