#!/usr/bin/env python3
"""Every check that needs a GPU, in one call of less than eight minutes, on a machine where nothing of numconv is installed.

    python scripts/gpu_check.py                      # all backends that compute on a GPU here
    python scripts/gpu_check.py --backend cuda --parts facts,timing --output check.json

Each part runs in a process of its own with a time limit, so that none hides another, and the file is rewritten after each.

facts     the device, the versions, what `numconv.backends()` says, and rates of multiply-adds and copies measured by torch
contract  the contract suite on the device, every implementation by name, in one process a kind of operation
races     the same bits from twenty runs on outputs filled with different bytes, on problems of many blocks
torch     seconds of torch, and so of cuDNN, on the rows of `numconv bench` and on larger batches, without and with TF32
timing    seconds of every implementation on the same rows, at the default level and at "fast"

The contract needs CuPy, the peers torch; a part whose library is missing says so.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("facts", "contract", "races", "torch", "timing")
LIMITS = {"facts": 60, "contract": 200, "races": 60, "torch": 50, "timing": 90}
"""Seconds of a part; of each backend where a part runs once a backend."""
TOTAL = 470
DEVICE = "cuda"
"""Where torch puts arrays."""
KINDS = ("forward", "input_grad", "weight_grad", "pool and not window", "window")
"""What the names of the contract's tests hold, for a process each."""
BATCHES = (32, 256)
BATCHED = ("resnet50.conv1", "resnet50.56", "resnet50.28s2", "pointwise.256to64", "depthwise3.144")
RACES = (
    "conv forward f32 n8 c48 k80 g1 in29x31 w3x3 s1 p1 d1",
    "conv input_grad f32 n8 c48 k80 g1 in29x31 w3x3 s2 p1 d1",
    "conv weight_grad f32 n8 c48 k80 g1 in29x31 w3x3 s1 p1 d1",
    "conv weight_grad f32 n8 c48 k48 g48 in29x31 w3x3 s1 p1 d1 bias=y",
    "conv forward f16 n8 c48 k80 g1 in29x31 w3x3 s1 p1 d1",
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
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "NUMCONV_CACHE_DIR": str(folder / "cache")}


def gpu_backends(asked: Sequence[str]) -> list[str]:
    """The available backends that compute on a GPU, or those asked for."""
    import numconv

    return list(asked) or [info.name for info in numconv.backends() if info.device == "gpu" and info.available]


# --- parts: each yields records, (key, value) ----------------------------------------------------------------------------------

Records = Iterator[tuple[str, Any]]


def facts(_: str) -> Records:
    """Versions, backends, the device, its rates."""
    from importlib import metadata

    names = ("numba", "numba-cuda", "numpy", "torch", "cupy-cuda12x", "cupy-cuda13x", "nvidia-cudnn-frontend")
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield f"version {name}", metadata.version(name)
    import numconv

    for info in numconv.backends():
        yield f"backend {info.name}", {"available": info.available, "device": info.device, "reason": info.reason}
    yield from _rates()


def _rates() -> Records:
    torch = _torch()
    yield "device", torch.cuda.get_device_name()
    yield "cudnn", torch.backends.cudnn.version()
    for name, dtype, tf32 in (("f32", torch.float32, False), ("tf32", torch.float32, True), ("f16", torch.float16, False),
                              ("f64", torch.float64, False)):  # fmt: skip
        torch.backends.cuda.matmul.allow_tf32 = tf32
        size = 4096
        a = torch.randn(size, size, device=DEVICE, dtype=dtype)
        yield f"flops {name}", 2 * size**3 / seconds(lambda a=a: a @ a)
    values = torch.empty(2**28, device=DEVICE, dtype=torch.float32)
    target = torch.empty_like(values)
    yield "bytes", 2 * values.nbytes / seconds(lambda: target.copy_(values))


def contract(backend: str) -> Records:
    """The contract suite, a process for each kind of operation, told as each ends."""
    with tempfile.TemporaryDirectory() as folder:
        logs = {kind: Path(folder) / f"{number}.log" for number, kind in enumerate(KINDS)}
        running = {kind: _contract_process(backend, kind, log) for kind, log in logs.items()}
        while running:
            time.sleep(0.2)
            for kind in [kind for kind, process in running.items() if process.poll() is not None]:
                lines = logs[kind].read_text(encoding="utf-8", errors="replace").strip().splitlines()
                failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
                passed = running.pop(kind).returncode == 0
                yield kind, {"passed": passed, "summary": lines[-1] if lines else "", "failures": failed[:40]}


def _contract_process(backend: str, kind: str, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-W", "default", "--tb=line",
               "-rfE", "--backend", backend, str(ROOT / "tests" / "test_contract.py"), "-k", kind]  # fmt: skip
    with log.open("wb") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)


def races(backend: str) -> Records:
    """Whether twenty runs on differently filled outputs give the same bits."""
    import numpy as np

    from numconv.plugin import parse
    from numconv.testing import candidates, inputs

    for text in RACES:
        problem = parse(text)
        arrays = [_on_device(a) for a in inputs(problem, np.random.default_rng(3), False)]
        for row in candidates(problem, backend):
            if not row.verdict or row.implementation is None:
                continue
            found = set()
            executor = row.implementation.build(problem)
            for run in range(20):
                outs = _outputs(problem, fill=run)
                executor(_forms(outs), _forms(arrays))
                found.add(b"".join(_bytes(out) for out in outs))
            yield f"{row.algorithm}: {text}", {"passed": len(found) == 1, "results": len(found)}


def torch_rows(_: str) -> Records:
    """Seconds of torch on each row, by precision."""
    torch = _torch()
    torch.backends.cudnn.benchmark = True
    for name, problem in rows():
        for precision, tf32 in (("default", False), ("fast", True)):
            if tf32 and problem.dtype != "float32":
                continue
            torch.backends.cudnn.allow_tf32 = tf32
            yield f"{name} {problem.op} {precision}", {"seconds": seconds(_torch_call(torch, problem))}


def _torch_call(torch: Any, problem: Any) -> Callable[[], Any]:
    """torch's own call for a problem: zero padding, equal on both sides, as all rows have it."""
    kinds = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16}
    x, w, y = (torch.randn(shape, device=DEVICE, dtype=kinds[problem.dtype])
               for shape in (problem.x_shape, problem.w_shape, problem.y_shape))  # fmt: skip
    options = (list(problem.stride), [low for low, _ in problem.padding], list(problem.dilation))
    if problem.op == "forward":
        function = getattr(torch.nn.functional, f"conv{problem.ndim}d")
        return lambda: function(x, w, None, *options, problem.groups)
    wanted = [problem.op == "input_grad", problem.op == "weight_grad", False]
    none = [0] * problem.ndim
    return lambda: torch.ops.aten.convolution_backward(y, x, w, None, *options, False, none, problem.groups, wanted)


def timing(backend: str) -> Records:
    """Seconds of each implementation on each row."""
    import numpy as np

    from numconv.testing import candidates

    for name, problem in rows():
        arrays = [_on_device(np.random.default_rng(0).standard_normal(s).astype(problem.dtype)) for s in problem.input_shapes]
        outs = _outputs(problem)
        for level in ("default", "fast"):
            asked = problem if level == "default" else problem.replace(accuracy="fast")
            for place, row in enumerate(candidates(asked, backend)):
                if (
                    row.verdict
                    and row.implementation is not None
                    and (level == "default" or row.algorithm not in _plain(backend, problem))
                ):
                    executor = row.implementation.build(asked)
                    took = seconds(functools.partial(_execute, executor, outs, arrays))
                    yield f"{name} {problem.op} {level} {row.algorithm}", {"seconds": took, "chosen": place == 0}


def _execute(executor: Any, outs: Sequence[Any], arrays: Sequence[Any]) -> None:
    executor(_forms(outs), _forms(arrays))


def _plain(backend: str, problem: Any) -> set[str]:
    """The implementations that compute the same at the default level, and are not timed again."""
    from numconv.testing import candidates

    return {row.algorithm for row in candidates(problem, backend) if row.verdict}


def rows() -> Iterator[tuple[str, Any]]:
    """(name, problem) for the rows of the benchmarks, their gradients, and larger batches."""
    from numconv.plugin import CONV_OPS, parse

    groups = json.loads((ROOT / "numconv" / "benchmarking" / "rows.json").read_text(encoding="utf-8"))
    texts = {name: text for group in groups.values() for name, text in group.items()}
    for name, text in texts.items():
        problem = parse(text)
        for op in CONV_OPS:
            yield name, problem.replace(op=op)
    for batch in BATCHES:
        for name in BATCHED:
            for op in CONV_OPS:
                yield f"{name}.n{batch}", parse(texts[name]).replace(op=op, n=batch)


# --- arrays on the device, and time ----------------------------------------------------------------------------------------------


def _torch() -> Any:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("torch is installed and sees no GPU")
    return torch


def _on_device(array: Any) -> Any:
    return _torch().from_numpy(array).to(DEVICE)


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
    found: bytes = array.cpu().numpy().tobytes()
    return found


def seconds(call: Callable[[], Any]) -> float:
    """The least seconds a call of several groups of calls, without waiting inside a group; one warms up and compiles."""
    torch = _torch()
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    once = time.perf_counter() - start
    count = max(1, min(100, int(0.01 / max(once, 1e-6))))
    best = once
    for _ in range(5 if once < 0.05 else 2):
        start = time.perf_counter()
        for _ in range(count):
            call()
        torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - start) / count)
    return best


# --- the parent ------------------------------------------------------------------------------------------------------------------

RUN: dict[str, Callable[[str], Records]] = {
    "facts": facts,
    "contract": contract,
    "races": races,
    "torch": torch_rows,
    "timing": timing,
}


def child(part: str, backend: str, path: Path) -> int:
    """Run one part, and write each record as soon as it is there."""
    with path.open("a", encoding="utf-8") as file:
        for key, value in RUN[part](backend):
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


def run_part(part: str, backend: str, limit: float, folder: Path) -> dict[str, Any]:
    """Run one part in a process, end it at the limit, and give its records and how it ended."""
    path, log = folder / f"{part}-{backend or 'all'}.jsonl", folder / f"{part}-{backend or 'all'}.log"
    command = [sys.executable, __file__, "--child", part, "--backend", backend, "--records", str(path)]
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, env=environment(folder), stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            ended = "done" if process.wait(timeout=limit) == 0 else f"failed with status {process.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # its own session: the processes of the contract too
            process.wait()
            ended = f"stopped after {limit:.0f} s"
    tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-15:]
    return {"ended": ended, "seconds": round(time.monotonic() - start, 1), "records": read_records(path), "log": tail}


def fraction(problem: Any, took: float, rates: dict[str, Any], level: str) -> float | None:
    """The share of the roofline: the larger of the floors of arithmetic and of memory over the seconds it took."""
    kind = {"float32": "tf32" if level == "fast" else "f32", "float64": "f64", "float16": "f16"}.get(problem.dtype, "f32")
    if f"flops {kind}" not in rates or "bytes" not in rates or took <= 0:
        return None
    return float(max(problem.flops / rates[f"flops {kind}"], problem.bytes / rates["bytes"]) / took)


def report(results: dict[str, Any]) -> str:
    """The results for people: how each part ended, what failed, and each time beside torch's and the roofline."""
    rates = results.get("facts", {}).get("records", {})
    lines = [f"device: {rates.get('device', 'unknown')}"]
    lines += [f"{name:20s}{part['ended']}, {part['seconds']} s" for name, part in results.items()]
    for name, part in results.items():
        bad = {k: v for k, v in part["records"].items() if isinstance(v, dict) and v.get("passed") is False}
        lines += [f"FAILED {name} {key}: {value}" for key, value in bad.items()]
        if part["ended"] != "done":
            lines += [f"  {name}: {line}" for line in part["log"][-5:]]
    problems = {(name, problem.op): problem for name, problem in rows()}
    peers = results.get("torch", {}).get("records", {})
    for name, part in results.items():
        for key, value in part["records"].items() if name.startswith("timing") else ():
            row, op, level, algorithm = key.rsplit(" ", 3)
            share = fraction(problems[row, op], value["seconds"], rates, level)
            peer = peers.get(f"{row} {op} {level}", {}).get("seconds")
            beside = f"{peer / value['seconds']:6.2f} of torch" if peer else " " * 15
            roof = f"{share:6.1%} of the roofline" if share is not None else ""
            mark = ">" if value["chosen"] else " "
            lines.append(
                f"{mark} {row:22s}{op:12s}{level:8s}{algorithm:14s}{value['seconds'] * 1e6:10.1f} us {beside} {roof}".rstrip()
            )
    return "\n".join(lines)


def save(results: dict[str, Any], path: Path) -> None:
    """Replace the file in one step."""
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(results, indent=1), encoding="utf-8")
    scratch.replace(path)


def plan_of(parts: Sequence[str], backends: Sequence[str]) -> list[tuple[str, str]]:
    """(part, backend) in the order in which they run; facts and torch are of no backend."""
    return [(part, name) for part in PARTS if part in parts for name in ([""] if part in ("facts", "torch") else backends)]


def limit_of(ahead: Sequence[str], left: float) -> float:
    """Seconds for the first of the parts ahead: its own limit, or its share of what is left where all of them have too little."""
    wanted = sum(LIMITS[part] for part in ahead)
    return max(1.0, LIMITS[ahead[0]] * min(1.0, left / wanted))


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", action="append", default=[], help="check this backend only; may be repeated")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"), help="where the results go (gpu_check.json)")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--records", type=Path, help=argparse.SUPPRESS)
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
        return child(asked.child, (asked.backend or [""])[0], asked.records)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environ = environment(folder)
        sys.path[:0] = environ["PYTHONPATH"].split(os.pathsep)
        backends = gpu_backends(asked.backend)
        if not backends:
            import numconv

            print(f"No backend computes on a GPU here:\n{numconv.backends()}")
            return 2
        results: dict[str, Any] = {}
        jobs = plan_of(asked.parts, backends)
        for number, (part, backend) in enumerate(jobs):
            label = f"{part} {backend}".strip()
            print(f"{label} ...", flush=True)
            limit = limit_of([name for name, _ in jobs[number:]], TOTAL - (time.monotonic() - start))
            results[label] = run_part(part, backend, limit, folder)
            save(results, asked.output)
        print(report(results))
    print(f"written: {asked.output}")
    failed = any(v.get("passed") is False for part in results.values() for v in part["records"].values() if isinstance(v, dict))
    return int(failed or any(part["ended"] != "done" for part in results.values()))


if __name__ == "__main__":
    sys.exit(main())
