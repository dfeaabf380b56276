"""Results as tables of text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from .results import OURS, Measurement, Results, geometric_mean

__all__ = ["comparison", "listing"]

NOTE = (
    "floor: the direct algorithm's operations at the measured rate of multiply-adds, or its bytes at the measured bandwidth; "
    "algorithms with fewer operations (winograd, fft) may pass it. A peer's column is its time over numconv's: above 1, numconv is "
    "faster."
)


def listing(results: Results) -> str:
    """One table a pass: a line a row, with the floor, numconv's time, rate and implementation, and the ratio to each peer."""
    head = [
        (
            f"numconv {results.version} on {results.machine['processor']}, cores: {results.machine['cores']}; {results.date}; "
            f"{results.rounds} rounds, {results.seconds:g} s a row"
        ),
        "peers: " + (", ".join(f"{name} {version}" for name, version in results.peers.items()) or "none"),
    ]
    if "held to" in results.machine:
        head.append(f"{results.machine['held to']}: holds some of the libraries only; `taskset` would hold all of them")
    return "\n".join([*head, *(line for direction in results.passes for line in _table(results, direction)), "", NOTE])


def _table(results: Results, direction: str) -> Iterator[str]:
    rows, peers = results.of(direction), list(results.peers)
    wide = max(len(row.name) for row in rows)
    middle = max(len("implementation"), *(len(row.variant) for row in rows))
    yield ""
    yield (
        f"{direction:{wide}s} {'floor ms':>9s} {'ms':>9s} {'of floor':>8s} {'GFLOP/s':>8s}  {'implementation':{middle}s}"
        + "".join(f" {peer:>{_width(peer)}s}" for peer in peers)
    )
    for row in rows:
        figures = f"{_ms(row.floor)} {_ms(row.ours)} {_percent(row.floor / row.ours)} {_number(row.flops / row.ours / 1e9, 8, 1)}"
        ratios = "".join(f" {_number(row.ratio(peer), _width(peer), 2)}" for peer in peers)
        yield f"{row.name:{wide}s} {figures}  {row.variant:{middle}s}{ratios}"
    if peers:
        means = "".join(f" {_number(geometric_mean([row.ratio(peer) for row in rows]), _width(peer), 2)}" for peer in peers)
        yield f"{'geometric mean':{wide + 40 + middle}s}{means}"
        best = [row.ratio(peer) for row in rows if (peer := row.best_peer()) and not math.isnan(row.ours)]
        if best:
            yield f"against the best peer of each row: geometric mean {geometric_mean(best):.2f}, lowest {min(best):.2f}"
    yield from _failures(rows)


def _failures(rows: Sequence[Measurement]) -> Iterator[str]:
    """What should have given a figure and did not; a peer that declines is no failure."""
    for row in rows:
        for name, reason in row.reasons.items():
            if name == OURS or name in row.seconds:
                yield f"{row.name}: {name}: {reason}"


def comparison(a: Results, b: Results) -> str:
    """Rows that two runs have in common: their seconds, and by how much the second is slower."""
    earlier = {(row.name, row.direction): row for row in a.measurements}
    pairs = [(earlier[key], row) for row in b.measurements if (key := (row.name, row.direction)) in earlier]
    lines = [f"A: numconv {a.version}, {a.date}", f"B: numconv {b.version}, {b.date}"]
    if a.machine != b.machine:
        changed = [name for name in {**a.machine, **b.machine} if a.machine.get(name) != b.machine.get(name)]
        lines.append(f"different machines or packages, so that no ratio tells about numconv alone: {', '.join(changed)}")
    lines.append("")
    lines.append(f"{'row':28s} {'A ms':>9s} {'B ms':>9s} {'B/A':>6s}  {'spread':>6s}  implementation")
    for first, second in pairs:
        ratio = second.ours / first.ours
        spread = max(_spread(first), _spread(second))
        variant = first.variant if first.variant == second.variant else f"{first.variant} -> {second.variant}"
        times = f"{_ms(first.ours)} {_ms(second.ours)} {_number(ratio, 6, 2)}"
        lines.append(f"{second.name + ' ' + second.direction:28s} {times}  {_percent(spread)[2:]}  {variant}")
    if pairs:
        lines.append(f"geometric mean of B/A over {len(pairs)} rows: {geometric_mean([y.ours / x.ours for x, y in pairs]):.3f}")
    else:
        lines.append("no row in common")
    lines.append(
        "spread: between the rounds of one run, as a share of their median, the larger of both runs. Runs of different hours "
        "differ by more than that; asv_bench/gate.py of a checkout runs two commits in turns."
    )
    return "\n".join(lines)


def _spread(row: Measurement) -> float:
    found = [value for value in row.seconds.get(OURS, ()) if not math.isnan(value)]
    return (max(found) - min(found)) / row.ours if found else math.nan


def _width(peer: str) -> int:
    return max(6, len(peer))


def _ms(seconds: float) -> str:
    return _number(seconds * 1e3, 9, 4 if seconds < 1e-2 else 2)


def _percent(share: float) -> str:
    return f"{'-':>8s}" if math.isnan(share) else f"{share:8.0%}"


def _number(value: float, width: int, digits: int) -> str:
    return f"{'-':>{width}s}" if math.isnan(value) else f"{value:{width}.{digits}f}"
