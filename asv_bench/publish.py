#!/usr/bin/env python3
"""Runs `asv publish`, and puts the kept results of `numconv bench` beside its page: tables and pictures in summary.html.

python publish.py          # then open .asv/html/summary.html, or run `asv preview` for the graphs over the history
"""

from __future__ import annotations

import html
import pathlib
import subprocess
import sys

from numconv.benchmarking.pictures import draw
from numconv.benchmarking.results import load
from numconv.benchmarking.tables import listing

HERE = pathlib.Path(__file__).resolve().parent
SITE = HERE / ".asv" / "html"

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>numconv: speed</title>
<style>body {{ font-family: sans-serif; margin: 2em }} img {{ max-width: 48% }} pre {{ overflow-x: auto }}</style>
<h1>numconv: speed</h1>
<p><a href="index.html">All benchmarks over the history</a>
(served by <code>asv preview</code>; browsers refuse it as a plain file)</p>
{sections}
</html>
"""


def section(path: pathlib.Path) -> str:
    """The table and the pictures of one kept file."""
    results = load(path)
    pictures = draw(results, SITE / "summary" / path.stem)
    images = "\n".join(f'<img src="{each.relative_to(SITE)}" alt="{each.stem}">' for each in pictures)
    return f"<h2>{html.escape(path.stem)}</h2>\n<pre>{html.escape(listing(results))}</pre>\n{images}"


def main() -> int:
    code = subprocess.run([sys.executable, "-m", "asv", "publish", "--no-pull", *sys.argv[1:]], cwd=HERE, check=False).returncode
    if code:
        return code
    sections = "\n".join(section(path) for path in sorted((HERE / "results").glob("*.json")))
    (SITE / "summary.html").write_text(PAGE.format(sections=sections), encoding="utf-8")
    print(SITE / "summary.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
