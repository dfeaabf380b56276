#!/usr/bin/env python3
"""Writes docs/gpu-speed.md from results that `scripts/gpu_check.py` kept.

    python asv_bench/gpu_speed.py asv_bench/gpu/FILE.json

The page has no other source: change this script, or measure again, and run it.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "gpu-speed.md"
sys.path.insert(0, str(ROOT / "scripts"))

import gpu_check  # noqa: E402

from numconv.benchmarking.results import geometric_mean  # noqa: E402

BACKENDS = ("cuda", "cupy", "cudnn")
TEXT = """\
# Speed on a GPU

Written by `{made}` from `{source}`; do not change this page by hand. The figures were measured by
`python scripts/gpu_check.py` on one {device} (driver {driver}), Python {python}, {versions}.

- **us**: microseconds of the device for one call, between events around calls that were queued while it slept, so that launching
  does not show. **host us** is what the call of an implementation (torch's: of its function) takes to return; small problems are
  bound by it.
- **A backend's column**: cuDNN's time through torch over that of the implementation which the backend chooses by itself: above 1,
  numconv is faster. torch chose its own by measurement (`torch.backends.cudnn.benchmark`), with the same precision: TF32 only at
  `accuracy="fast"`. A dash: not computed, or no time left to measure.
- **of roofline**: of the fastest of them, the operations of the direct algorithm at the rate of a large product of that precision
  by cuBLAS ({flops}), or the bytes at the rate of a copy ({bytes}), whichever takes longer, over its time. Algorithms with fewer
  operations may pass 100 %.

{contract}

## Geometric means

{means}
{calls}"""
CALLS = """
## Calls

Microseconds until a small convolution (16 channels, 28 x 28) returns, by the library of the arrays, and what training the digits of
scikit-learn for four epochs gave.

{table}
"""


class Line(NamedTuple):
    """A row at a level of accuracy: torch's time, and the algorithm and time of each backend's own choice, in microseconds."""

    row: str
    op: str
    level: str
    peer: float | None
    peer_host: float | None
    chosen: dict[str, tuple[str, float, float]]
    """Algorithm, on the device, on the host."""

    def ratio(self, backend: str) -> float | None:
        """torch's time over the backend's."""
        return self.peer / self.chosen[backend][1] if self.peer and backend in self.chosen else None


def lines_of(results: dict[str, Any]) -> list[Line]:
    """All rows of which anything was measured, in the order of the check."""
    peers = results.get("torch", {}).get("records", {})
    chosen: dict[tuple[str, str, str], dict[str, tuple[str, float, float]]] = defaultdict(dict)
    for backend in BACKENDS:
        for key, value in results.get(f"timing {backend}", {}).get("records", {}).items():
            if key != "clocks" and value.get("chosen") and "seconds" in value:
                row, op, level, algorithm = key.rsplit(" ", 3)
                chosen[row, op, level][backend] = algorithm, 1e6 * value["seconds"], 1e6 * value["host"]
    found = []
    for name, problem in gpu_check.rows():
        for level in gpu_check.levels_of(problem):
            own = chosen.get((name, problem.op, level))
            if own:
                peer = peers.get(f"{name} {problem.op} {level}", {})
                times = [1e6 * peer[key] if key in peer else None for key in ("seconds", "host")]
                found.append(Line(name, problem.op, level, *times, own))
    return found


def group_of(row: str) -> str:
    """The group of a row: that of `numconv bench`, or the batch and dtype of the larger ones."""
    groups = json.loads((ROOT / "numconv" / "benchmarking" / "rows.json").read_text(encoding="utf-8"))
    known = next((name for name, texts in groups.items() if row in texts), None)
    if known:
        return f"{known}, as in `numconv bench`"
    name, batch, *dtype = row.rsplit(".", 2 if row.endswith(tuple(gpu_check.HALVES)) else 1)
    return f"batch {batch[1:]}, {'depthwise' if name.startswith('depthwise') else 'dense'}{', ' + dtype[0] if dtype else ''}"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """In Markdown; numbers to the right."""
    lines = [list(header), *map(list, rows)]
    rule = ["---" if number == 0 else "---:" for number in range(len(lines[0]))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], rule, *lines[1:]))


def figure(value: float | None, form: str = ".2f") -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def means(lines: list[Line]) -> str:
    """By group and level, for each backend."""
    groups: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in lines:
        groups[group_of(line.row), line.level].append(line)
    rows = []
    for (group, level), members in groups.items():
        cells = [f"{group}, {level}"]
        for backend in BACKENDS:
            ratios = [ratio for line in members if (ratio := line.ratio(backend)) is not None]
            cells.append(f"{geometric_mean(ratios):.2f} ({len(ratios)})" if ratios else "-")
        rows.append(cells)
    return table(["group, level (rows)", *BACKENDS], rows)


def rows_table(lines: list[Line], op: str, rates: dict[str, Any]) -> str:
    """The rows of an operation."""
    problems = {(name, problem.op): problem for name, problem in gpu_check.rows()}
    cells = []
    for line in lines:
        if line.op == op:
            backend = min(line.chosen, key=lambda name: line.chosen[name][1])
            algorithm, took, host = line.chosen[backend]
            share = gpu_check.fraction(problems[line.row, op], took / 1e6, rates, line.level)
            ratios = [figure(line.ratio(name)) for name in BACKENDS]
            peer = figure(line.peer, ".1f"), figure(line.peer_host, ".0f")
            head = [f"`{line.row}` {line.level}", *peer, f"{took:.1f}", f"{host:.0f}", f"{backend} {algorithm}"]
            cells.append([*head, *ratios, figure(share, ".0%")])
    return table(["row", "torch us", "host us", "us", "host us", "fastest", *BACKENDS, "of roofline"], cells)


def calls(results: dict[str, Any]) -> str:
    """What public calls take on the host, and the training; nothing where neither was measured."""
    rows = []
    for backend in BACKENDS:
        records = results.get(f"use {backend}", {}).get("records", {})
        if "calls" in records:
            took, trained = records["calls"], records.get("train", {})
            result = f"{trained['accuracy']:.1%} in {trained['took']} s" if "accuracy" in trained else "-"
            rows.append([backend, *(figure(took.get(name), ".0f") for name in ("torch itself", "torch", "cupy")), result])
    header = ["backend", "torch's own, its tensors", "numconv, torch's tensors", "numconv, CuPy's arrays", "digits"]
    return CALLS.format(table=table(header, rows)) if rows else ""


def contract(results: dict[str, Any]) -> str:
    """How many tests of the contract ran on the device, and what did not end well."""
    records = dict(results.get("contract", {}).get("records", {}))
    ended = records.pop("all", {"summary": "not run"})["summary"].strip("= ")
    counts: dict[str, int] = defaultdict(int)
    for name, each in records.items():
        counts[name.split()[0]] += each["tests"]
    failed = [f"`{test.strip(':')}`" for each in records.values() for test in each["failures"]]
    told = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"The contract on the device: {ended}. Tests that passed, by backend: {told}. Failed: {'; '.join(failed) or 'none'}."


def page(results: dict[str, Any], source: str) -> str:
    """The whole text."""
    facts, lines = results["facts"]["records"], lines_of(results)
    versions = [key.removeprefix("version ") + " " + value for key, value in facts.items() if key.startswith("version ")]
    rates = ", ".join(f"{key.split()[1]} {value / 1e12:.0f} TFLOP/s" for key, value in facts.items() if key.startswith("flops "))
    head = TEXT.format(
        made="asv_bench/gpu_speed.py", source=source, device=facts["device"], driver=facts["clocks"].split(", ")[1],
        python=facts["python"].split()[0], versions=", ".join(versions), flops=rates, bytes=f"{facts['bytes'] / 1e12:.2f} TB/s",
        contract=contract(results), means=means(lines), calls=calls(results),
    )  # fmt: skip
    return head + "".join(f"\n## {op}\n\n{rows_table(lines, op, facts)}\n" for op in ("forward", "input_grad", "weight_grad"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=pathlib.Path)
    path = parser.parse_args().results.resolve()
    source = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    PAGE.write_text(page(json.loads(path.read_text(encoding="utf-8")), source), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
