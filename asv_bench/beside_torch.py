#!/usr/bin/env python3
"""Times pooling, windows and transposed convolutions of `windows.json` beside torch's, each library in processes of its own.

    python beside_torch.py --peer-python PYTHON      # an interpreter that has torch; numconv runs in this one
    python beside_torch.py --ops max_pool,fold --rows stem,sound

torch runs on tensors of its own order and on channels_last ones; the better counts. The floor is the time to read the inputs and
to write fresh outputs at the bandwidths below, or to do the arithmetic. Ratios over 1 mean that numconv is faster.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
OPS = {
    "max_pool": ("pool max_pool", ""),
    "max_pool+indices": ("pool max_pool", " indices=1"),
    "max_pool_backward": ("pool max_pool_backward", ""),
    "max_pool_backward+indices": ("pool max_pool_backward", " indices=1"),
    "avg_pool": ("pool avg_pool", ""),
    "avg_pool_backward": ("pool avg_pool_backward", ""),
    "unfold": ("window unfold", ""),
    "fold": ("window fold", ""),
    "pad": ("window pad", ""),
    "pad_backward": ("window pad_backward", ""),
    "max_unpool": ("window max_unpool", ""),
    "max_unpool_backward": ("window max_unpool_backward", ""),
    "conv_transpose": ("conv input_grad", ""),
    "conv_transpose_backward": ("conv input_grad", ""),
}
"""The head of a problem's text form, and what follows the row; each is measured on the rows of one group of `windows.json`."""
GROUPS = {"unpool": "unpool", "pool": "pool", "unfold": "columns", "fold": "columns", "pad": "pad", "transpose": "transpose"}

# Of two cores, measured by copies: bytes read and written a second while all fits the second-level caches, and else; what
# first touching fresh memory takes, which the allocator hands out anew from 32 MiB on; and multiply-adds, in FLOP/s.
NEAR_BYTES, NEAR, FAR, FAULTS, FRESH, PEAK = 32 * 2**20, 50e9, 28e9, 11e9, 32 * 2**20, 360e9


def group_of(op: str) -> str:
    return next(group for word, group in GROUPS.items() if word in op)


def median(call) -> float:
    """The median seconds of calls in a quarter of a second, at least three."""
    call()
    call()
    times, start = [], time.perf_counter()
    while time.perf_counter() - start < 0.25 or len(times) < 3:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return sorted(times)[len(times) // 2]


# --- the rows ------------------------------------------------------------------------------------------------------------------


def describe(op: str, text: str) -> dict:
    """What both sides know of a row, in plain data."""
    from numconv.plugin import parse

    head, options = OPS[op]
    problem = parse(f"{head} f32 {text}{options}")
    names = (
        "n",
        "c",
        "spatial",
        "output",
        "window",
        "kernel",
        "stride",
        "dilation",
        "padding",
        "layout",
        "ceil_mode",
        "groups",
        "k",
    )
    row = {name: getattr(problem, name) for name in (*names, "count_include_pad", "pad_mode") if hasattr(problem, name)}
    return row | {"op": op, "floor": floor(op, problem), "inputs": problem.input_shapes, "outputs": problem.output_shapes}


def floor(op: str, problem) -> float:
    """The least seconds in which a row can be done."""
    read = sum(map(math.prod, problem.input_shapes)) * 4
    written = sum(map(math.prod, problem.output_shapes)) * 4
    places = math.prod(problem.y_shape) * 4
    if op == "max_pool+indices":
        written += places
    if op == "max_pool_backward+indices" or "unpool" in op:
        read += places
    flops = 0.0
    if op.startswith("conv"):
        flops = problem.flops
    if op == "conv_transpose_backward":
        read, written, flops = read + written, read, 2 * flops
    moved = (read + written) / (NEAR if read + written <= NEAR_BYTES else FAR)
    return max(moved + (written / FAULTS if written >= FRESH else 0), flops / PEAK)


# --- numconv -------------------------------------------------------------------------------------------------------------------


def numconv_call(row: dict):
    import numpy as np

    import numconv

    op, indices = row["op"].removesuffix("+indices"), row["op"].endswith("+indices")
    arrays = [_normal(shape, row) for shape in row["inputs"]]
    options = {name: row[name] for name in ("stride", "padding", "dilation", "layout") if name in row}
    if op.startswith("conv"):
        return _numconv_transpose(row, arrays, options)
    if group_of(op) == "pool":
        options |= {"ceil_mode": row["ceil_mode"]}
        if op.startswith("avg"):
            options |= {"count_include_pad": row["count_include_pad"]}
    x_shape, window = _shape(row["outputs"][0], row), row["window"]
    if op == "max_pool":
        return lambda: numconv.max_pool(arrays[0], window, return_indices=indices, **options)
    if op == "max_pool_backward":
        x = _normal(row["outputs"][0], row)
        places = numconv.max_pool(x, window, return_indices=True, **options)[1] if indices else None
        return lambda: numconv.max_pool_backward(arrays[0], x, window, indices=places, **options)
    if op == "avg_pool":
        return lambda: numconv.avg_pool(arrays[0], window, **options)
    if op == "avg_pool_backward":
        return lambda: numconv.avg_pool_backward(arrays[0], x_shape, window, **options)
    if op.startswith("pad"):
        function = getattr(numconv, op)
        return lambda: function(arrays[0], row["padding"], row["pad_mode"])
    if op == "unfold":
        return lambda: numconv.unfold(arrays[0], window, **_without(options, "layout"))
    if op == "fold":
        return lambda: numconv.fold(arrays[0], x_shape, window, **_without(options, "layout"))
    pooled = tuple(s // q for s, q in zip(row["spatial"], row["output"], strict=True))
    x = np.random.default_rng(1).standard_normal((row["n"], row["c"], *row["spatial"]), np.float32)
    places = numconv.max_pool(x, pooled, return_indices=True)[1]
    if op == "max_unpool":
        return lambda: numconv.max_unpool(arrays[0], places, x.shape)
    return lambda: numconv.max_unpool_backward(arrays[0], places)


def _numconv_transpose(row: dict, arrays: list, options: dict):
    import numconv

    options |= {"groups": row["groups"], "output_padding": _output_padding(row)}
    x, w = arrays
    if row["op"] == "conv_transpose":
        return lambda: numconv.conv_transpose(x, w, **options)
    grad_y = _normal(row["outputs"][0], row)
    return lambda: numconv.conv_transpose_backward(grad_y, x, w, needs=("x", "w"), **options)


def _output_padding(row: dict) -> tuple[int, ...]:
    sizes = zip(row["spatial"], row["output"], row["kernel"], row["stride"], row["padding"], row["dilation"], strict=True)
    return tuple(s + low + high - ((q - 1) * t + d * (r - 1) + 1) for s, q, r, t, (low, high), d in sizes)


def _without(options: dict, name: str) -> dict:
    return {key: value for key, value in options.items() if key != name}


def _shape(shape, row: dict) -> tuple[int, ...]:
    return (shape[0], *shape[2:], shape[1]) if row.get("layout") == "channels_last" else tuple(shape)


def _normal(shape, row: dict):
    import numpy as np

    return np.random.default_rng(0).standard_normal(_shape(shape, row), np.float32)


# --- torch ---------------------------------------------------------------------------------------------------------------------


def torch_call(row: dict, last: bool):
    import torch
    import torch.nn.functional as F

    ndim = len(row["spatial"])
    if last and (ndim == 1 or group_of(row["op"]) in ("columns", "unpool")):
        return None

    def normal(shape):
        made = torch.randn(tuple(shape))
        return made.contiguous(memory_format=torch.channels_last if ndim == 2 else torch.channels_last_3d) if last else made

    op, backward = row["op"].removesuffix("+indices"), "backward" in row["op"]
    forward_op = op.removesuffix("_backward")
    function = _torch_function(forward_op, row, F, ndim, normal)
    arrays = [normal(shape) for shape in row["inputs"]]
    if forward_op == "conv_transpose":
        x, w = arrays
        if not backward:
            return _no_grad(torch, lambda: function(x, w))
        return _gradient(torch, lambda: function(x.requires_grad_(), w.requires_grad_()), (x, w), normal)
    if not backward:
        if row["op"] == "max_pool+indices":
            function = _torch_function("max_pool+indices", row, F, ndim, normal)
        return _no_grad(torch, lambda: function(arrays[0]))
    x = normal(row["outputs"][0])
    return _gradient(torch, lambda: function(x.requires_grad_()), (x,), normal)


def _no_grad(torch, call):
    def run():
        with torch.no_grad():
            call()

    return run


def _gradient(torch, forward, arrays: tuple, normal):
    y = forward()
    grad_y = normal(y.shape)
    return lambda: torch.autograd.grad(y, arrays, grad_y, retain_graph=True)


def _torch_function(op: str, row: dict, F, ndim: int, normal):
    lows = [low for low, _ in row["padding"]]
    window, stride, dilation = (row.get(name) for name in ("window", "stride", "dilation"))
    if op.startswith("max_pool"):
        pool = getattr(F, f"max_pool{ndim}d")
        return lambda x: pool(x, window, stride, lows, dilation, row["ceil_mode"], op == "max_pool+indices")
    if op == "avg_pool":
        pool = getattr(F, f"avg_pool{ndim}d")
        return lambda x: pool(x, window, stride, lows, row["ceil_mode"], row["count_include_pad"])
    if op == "unfold":
        return lambda x: F.unfold(x, window, dilation, lows, stride)
    if op == "fold":
        return lambda x: F.fold(x, row["spatial"], window, dilation, lows, stride)
    if op == "pad":
        mode = {"zeros": "constant"}.get(row["pad_mode"], row["pad_mode"])
        widths = [side for pair in row["padding"][::-1] for side in pair]
        return lambda x: F.pad(x, widths, mode)
    if op == "conv_transpose":
        function = getattr(F, f"conv_transpose{ndim}d")
        padding = _output_padding(row)
        return lambda x, w: function(x, w, None, stride, lows, padding, row["groups"], dilation)
    pooled = [s // q for s, q in zip(row["spatial"], row["output"], strict=True)]
    places = getattr(F, f"max_pool{ndim}d")(normal((row["n"], row["c"], *row["spatial"])), pooled, return_indices=True)[1]
    unpool = getattr(F, f"max_unpool{ndim}d")
    return lambda y: unpool(y, places, pooled)


# --- side by side --------------------------------------------------------------------------------------------------------------


def time_rows(library: str) -> None:
    """In a child: the rows come as JSON on the standard input, their seconds go out."""
    for number, row in enumerate(json.load(sys.stdin)):
        call = numconv_call(row) if library == "numconv" else torch_call(row, library == "torch_cl")
        if call is not None:
            print(json.dumps([number, median(call)]), flush=True)


def measure(library: str, python: str, rows: list[dict]) -> dict[int, float]:
    """The seconds of each row, by its place in the list."""
    asked = [python, str(HERE / "beside_torch.py"), "--time", library]
    environment = {name: value for name, value in os.environ.items() if library == "numconv" or name != "PYTHONPATH"}
    done = subprocess.run(asked, input=json.dumps(rows), capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        print(f"{library} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}", file=sys.stderr)
    return dict(json.loads(line) for line in done.stdout.splitlines())


def compare(op: str, texts: dict[str, str], python: str) -> None:
    """Print the rows of one operation."""
    rows = [describe(op, text) for text in texts.values()]
    ours, *theirs = (
        measure(library, sys.executable if library == "numconv" else python, rows) for library in ("numconv", "torch", "torch_cl")
    )
    print(f"{op:26s}{'row':14s}{'floor ms':>9s}{'numconv ms':>11s}{'of floor':>9s}{'torch ms':>10s}{'ratio':>7s}")
    for number, (name, row) in enumerate(zip(texts, rows, strict=True)):
        mine = ours.get(number, math.nan)
        best = min((one[number] for one in theirs if number in one), default=math.nan)
        shown = f"{row['floor'] * 1e3:9.3f}{mine * 1e3:11.3f}{row['floor'] / mine:9.0%}{best * 1e3:10.3f}{best / mine:7.2f}"
        print(f"{'':26s}{name:14s}{shown}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that has torch")
    parser.add_argument("--ops", default=",".join(OPS), help="a comma-separated list; all by default")
    parser.add_argument("--rows", help="a comma-separated list of names; all by default")
    parser.add_argument("--time", choices=["numconv", "torch", "torch_cl"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.time:
        time_rows(options.time)
        return
    groups = json.loads((HERE / "windows.json").read_text())
    for op in options.ops.split(","):
        texts = groups[group_of(op)]
        wanted = options.rows.split(",") if options.rows else texts
        compare(op, {name: text for name, text in texts.items() if name in wanted}, options.peer_python)


if __name__ == "__main__":
    main()
