#!/usr/bin/env python3
"""Opens the published page in a browser without a window, and finds its graphs.

    python publish.py && python look.py          # needs Chromium or Chrome: apt install chromium, or CHROME=/path/to/chrome
    python look.py FOLDER                        # a copy of the page elsewhere

asv's page loads jQuery, flot and Bootstrap from the network. Exit: 0; 1 if the grid, a graph over the history, or the summary is
not drawn; 2 without a browser, a page, or those scripts.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading

SITE = pathlib.Path(__file__).resolve().parent / ".asv" / "html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 20
"""Of the page's own clock, which runs ahead while nothing happens."""


class ScriptsMissingError(Exception):
    """The page shows that it could not load its scripts."""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Without a line for each file."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


def rendered(browser: str, url: str) -> str:
    """The document after its scripts have run."""
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--window-size=1400,1000"]
        command = [browser, *options, f"--virtual-time-budget={SECONDS * 1000}", "--dump-dom", url]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def look(browser: str, site: pathlib.Path, address: str) -> list[str]:
    """What is not there."""
    index = json.loads((site / "index.json").read_text(encoding="utf-8"))
    benchmarks = sorted(name for name in index["benchmarks"] if list(site.glob(f"graphs/**/{name}.json")))
    if not benchmarks:
        return ["results of a commit of the branches in asv.conf.json"]
    grid = rendered(browser, f"{address}/index.html#/")
    if "(JavaScript) dependencies" in grid:
        raise ScriptsMissingError
    missing = [f"benchmark {name} in the grid" for name in benchmarks if f'href="#{name}' not in grid]
    graph = rendered(browser, f"{address}/index.html#{benchmarks[0]}")
    canvases = len(re.findall(r'<canvas class="flot-base"', graph))
    if not canvases:
        missing.append(f"a graph of {benchmarks[0]}")
    summary = rendered(browser, f"{address}/summary.html")
    pictures = re.findall(r'<img src="([^"]+)"', summary)
    missing += [f"picture {name}" for name in pictures if not (site / name).is_file()]
    if "<pre>numconv" not in summary or not pictures:
        missing.append("the table and the pictures of summary.html")
    print(f"grid: {len(benchmarks)} benchmarks; {benchmarks[0]}: {canvases} plots; summary: {len(pictures)} pictures")
    return missing


def main() -> int:
    browser = os.environ.get("CHROME") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"look.py needs a browser: one of {', '.join(BROWSERS)}, or CHROME=PATH", file=sys.stderr)
        return 2
    site = pathlib.Path(*sys.argv[1:2]).resolve() if sys.argv[1:] else SITE
    if not (site / "summary.html").is_file():
        print(f"no page in {site}: run publish.py first", file=sys.stderr)
        return 2
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            missing = look(browser, site, f"http://127.0.0.1:{server.server_port}")
        except ScriptsMissingError:
            print("asv's page could not load its scripts from the network", file=sys.stderr)
            return 2
        finally:
            server.shutdown()
    for each in missing:
        print(f"missing: {each}")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
