#!/usr/bin/env python3
"""Writes a page of docs/ and its pictures from results that `numconv bench --save` kept.

    python asv_bench/speed.py asv_bench/results/FILE.json
    python asv_bench/speed.py asv_bench/results/FILE.json --page speed-avx2     # docs/speed-avx2.md: one page a kind of machine

The pages have no other source: change this script, or measure again, and run it.
"""

from __future__ import annotations

import argparse
import math
import pathlib

import numpy as np

from numconv.benchmarking.pictures import draw
from numconv.benchmarking.results import Measurement, Results, geometric_mean, load
from numconv.benchmarking.rows import all_rows
from numconv.benchmarking.worker.peers import MAKERS

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

TEXT = """\
# Speed on {processor}

Written by `{made}` from `{source}`; change neither this page nor its pictures by hand. The figures were measured by

```sh
{command}
```

with numconv {version} on {processor} ({features}), cores: {cores}, Python {python}, NumPy {numpy}, Numba {numba}, on {date}:
{rounds} rounds, each with fresh processes, {seconds:g} s a row. Peers: {peers}. Measure your own machine:
processors differ, and so do the rankings.

- **floor**: the operations of the direct algorithm at the rate of multiply-adds that was measured in the same run, or its bytes at
  the bandwidth of copies, whichever takes longer; `of floor` is its share of numconv's time. Algorithms with fewer operations
  (`winograd`, `fft`) may pass 100 %.
- **A peer's column**: its time over numconv's, the median over the rounds: above 1, numconv is faster. Of torch the better of its
  two memory orders counts, of SciPy the better of `fftconvolve` and `oaconvolve`; onnxruntime packed its weights beforehand,
  numconv did not.
- **backward** computes the gradients of x, w and bias together.

Every result of every library was compared with sums of its terms in double precision before it was timed. In each round the
libraries take turns, one process awake at a time.
"""

SECTION = """
## {title}

{summary}

![{direction}: each peer's time over numconv's, by row]({page}/ratios-{direction}.svg)

![{direction}: operations a second over operations a byte, with the limits of the machine]({page}/roofline-{direction}.svg)

{table}
"""


def text(results: Results, source: pathlib.Path, page: str) -> str:
    """All of a page."""
    machine = results.machine
    head = TEXT.format(
        made="asv_bench/speed.py",
        source=source,
        command=command(results, source),
        version=results.version,
        processor=machine["processor"],
        features=machine["features"],
        cores=machine["cores"].partition(",")[0],
        python=machine["Python"],
        numpy=machine["NumPy"],
        numba=machine["Numba"],
        date=results.date[:10],
        rounds=results.rounds,
        seconds=results.seconds,
        peers=", ".join(f"{name} {version}" for name, version in results.peers.items()) or "none",
    )
    return head + "".join(section(results, direction, page) for direction in results.passes)


def command(results: Results, source: pathlib.Path) -> str:
    """That which makes such results."""
    names = list(dict.fromkeys(row.name for row in results.measurements))
    rows = "" if len(names) == len(all_rows()) else f" --rows {' '.join(names)}"
    passes = " ".join(results.passes)
    timing = f"--rounds {results.rounds} --seconds {results.seconds:g}"
    peers = "" if set(results.peers) == set(MAKERS) else f" --peers {' '.join(results.peers)}"
    return f"numconv bench --pass {passes}{rows} {timing}{peers} --peer-python PYTHON --save {source}"


def section(results: Results, direction: str, page: str) -> str:
    """One pass: summary, pictures, table."""
    rows, peers = results.of(direction), list(results.peers)
    header = ["row", "floor ms", "ms", "of floor", "GFLOP/s", "implementation", *peers]
    lines = [header, ["---", *["---:"] * 4, "---", *["---:"] * len(peers)], *(line(row, peers) for row in rows)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return SECTION.format(title=direction.capitalize(), direction=direction, page=page, summary=summary(rows, peers), table=table)


def line(row: Measurement, peers: list[str]) -> list[str]:
    """The cells of a row."""
    figures = [
        digits(row.floor * 1e3),
        digits(row.ours * 1e3),
        number(row.floor / row.ours, ".0%"),
        digits(row.flops / row.ours / 1e9),
    ]
    return [
        f"`{row.name}`",
        *figures,
        row.variant or row.reasons.get("numconv", "-"),
        *(number(row.ratio(p), ".2f") for p in peers),
    ]


def summary(rows: list[Measurement], peers: list[str]) -> str:
    """Means, and where numconv is slower."""
    best = {row.name: row.ratio(peer) for row in rows if (peer := row.best_peer()) and not math.isnan(row.ours)}
    if not best:
        return f"{len(rows)} rows, no peer."
    means = ", ".join(f"{peer} {number(geometric_mean([row.ratio(peer) for row in rows]), '.2f')}" for peer in peers)
    slower = [f"`{name}` {ratio:.2f}" for name, ratio in sorted(best.items(), key=lambda each: each[1]) if ratio < 1]
    return (
        f"{len(rows)} rows. Against the best peer of each row: geometric mean {geometric_mean(list(best.values())):.2f}, slower on "
        f"{len(slower)} of {len(best)}{': ' + ', '.join(slower) if slower else ''}.\n\n"
        f"Geometric means by peer, over the rows that it computes: {means}."
    )


def number(value: float, form: str) -> str:
    """A figure, or a dash where there is none."""
    return "-" if math.isnan(value) else format(value, form)


def digits(value: float) -> str:
    """Three digits, without an exponent."""
    return "-" if math.isnan(value) else np.format_float_positional(value, precision=3, unique=False, fractional=False, trim="-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("--page", default="speed", help="name of the page in docs/, without .md")
    arguments = parser.parse_args()
    path, page = arguments.results.resolve(), DOCS / f"{arguments.page}.md"
    results = load(path)
    source = path.relative_to(ROOT) if path.is_relative_to(ROOT) else pathlib.Path(path.name)
    page.write_text(text(results, source, page.stem), encoding="utf-8")
    for picture in draw(results, page.with_suffix("")):
        print(picture)
    print(page)


if __name__ == "__main__":
    main()
