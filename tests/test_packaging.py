"""What a user installs and reads: entry points, versions, the wheel, and the commands and examples of the documents."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import numconv

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()
ENTRY_POINTS = PYPROJECT["project"]["entry-points"]["numconv.backends"]
IGNORED = {"build", "dist", "__pycache__"}


def texts():
    """Every text file that a user may read, errors in the sources included."""
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        hidden = any(p in IGNORED or p.endswith(".egg-info") or (p.startswith(".") and p != ".ci") for p in parts)
        if not hidden and (path.suffix in {".py", ".md", ".toml", ".json"} or parts == (".ci", "run")):
            yield path


def readme_block(mark: str) -> str:
    """The fenced block that follows ``<!-- mark -->``."""
    found = re.search(rf"^<!-- {mark} -->\n```\w+\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no block marked {mark}"
    return found[1]


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_entry_points_name_backends(name):
    module, _, attribute = ENTRY_POINTS[name].partition(":")
    assert getattr(importlib.import_module(module), attribute).name == name


def test_every_backend_folder_is_declared():
    folders = {path.name for path in (ROOT / "backends").iterdir() if (path / "__init__.py").is_file()}
    assert folders == {target.partition(":")[0] for target in ENTRY_POINTS.values()}


def test_installed_entry_points_are_those_declared():
    installed = metadata.distribution("numconv-nd").entry_points.select(group="numconv.backends")
    assert {entry.name: entry.value for entry in installed} == ENTRY_POINTS, "run: pip install -e ."


def test_one_version():
    assert metadata.version("numconv-nd") == numconv.__version__
    assert numconv.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_extras():
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert {"media", "nn", "plot", "demo", "torch", "jax", "dask", "cuda", "cupy", "bench", "docs", "test", "all"} <= set(extras)
    (everything,) = extras["all"]
    included = set(re.findall(r"\w+", everything.removeprefix("numconv-nd"))) | {"media", "nn", "plot"}  # demo includes these
    assert included == set(extras) - {"all"}


def test_nobody_is_sent_to_the_other_numconv():
    # The index's project of this plain name is somebody else's; ours is numconv-nd.
    wrong = re.compile(r"""pip3? install(\s+-[-\w]+)*\s+["'\\]*numconv(?![-\w])""")
    assert wrong.search("pip install -U " + "numconv[demo]")
    assert [path for path in texts() if wrong.search(path.read_text())] == []


@pytest.mark.parametrize(("mark", "extra", "command"), [("run", "demo", "numconv demo"), ("test", "test", "pytest")])
def test_readme_commands_are_one_line_each(mark, extra, command):
    (line,) = readme_block(mark).splitlines()
    assert f'".[{extra}]"' in line
    assert line.endswith(command)


def test_readme_example_prints_what_it_says():
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(readme_block("example"), {})
    said = re.search(r"^It prints:\n\n```text\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert said
    assert printed.getvalue() == said[1]


def test_documents_name_only_what_exists():
    for path in (path for path in texts() if path.suffix == ".md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path} links to {target}"
        for name in re.findall(r"\bnumconv\.([a-z]\w*)", path.read_text()):
            files = (ROOT / f"numconv/{name}.py", ROOT / f"numconv/{name}/__init__.py")  # a bridge need not be importable
            assert any(file.is_file() for file in files) or hasattr(numconv, name) or name == "backends", f"{path}: {name}"
    table = re.search(r"\| functions \|.*?\n\n", README, re.DOTALL)
    assert table
    named = re.findall(r"`(\w+)`", table[0])
    assert [name for name in named if not hasattr(numconv, name.removeprefix("_"))] == ["_backward"]


def test_architecture_describes_every_algorithm():
    text = (ROOT / "docs" / "architecture.md").read_text()
    described = {name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    backend = importlib.import_module("numconv_numba").backend
    assert {each.name for each in backend.implementations()} <= described


def tree_modules():
    """The modules that the tree in CONTRIBUTING.md names: for each what its path may be, as a line may name several folders."""
    tree = (ROOT / "CONTRIBUTING.md").read_text().partition("## The tree")[2].partition("```\n")[2].partition("```")[0]
    above = [(-1, [""])]  # the folders of the lines above, by indentation: a line under that of a module is in its folder
    for line in tree.splitlines():
        names = re.match(r"( *)((?:[\w.]+(?:\.py|/)(?: |$))*)", line)
        indent, words = len(names[1]), names[2].split()
        while words and above[-1][0] >= indent:
            above.pop()
        folders = above[-1][1]
        yield from ({folder + word for folder in folders} for word in words if word.endswith(".py"))
        if words:
            inner = [folder + word for folder in folders for word in words if word.endswith("/")]
            above.append((indent, inner or folders))


def test_the_tree_shows_every_module():
    modules = [path for folder in ("numconv", "backends") for path in (ROOT / folder).rglob("*.py")]
    exist = {str(path.relative_to(ROOT)) for path in modules if path.name not in {"__init__.py", "__main__.py"}}
    named = [paths for paths in tree_modules() if not any(path.endswith("__.py") for path in paths)]
    assert sorted(exist.difference(*named)) == []
    assert [paths for paths in named if paths.isdisjoint(exist) and min(paths).startswith(("numconv/", "backends/"))] == []


def test_wheel_contents(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="the wheel is built without the network")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("numconv", "backends", "tests", "asv_bench"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", ".asv"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, tmp_path], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("numconv_nd-*.whl")
    files = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in files}
    info = f"numconv_nd-{numconv.__version__}.dist-info"
    assert tops == {"numconv", *(target.partition(":")[0] for target in ENTRY_POINTS.values()), info}
    assert {"numconv/py.typed", f"{info}/licenses/LICENSE", f"{info}/entry_points.txt"} <= set(files)
    package_data = [path for path in (ROOT / "numconv").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {str(path.relative_to(ROOT)) for path in package_data} <= set(files)
