"""`numconv equivariance`, its report, and its page of the documentation."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import numconv as nc
from numconv import equivariance
from numconv.cli import main
from numconv.equivariance import operations

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "equivariance.md").read_text()
PARTS = ("error", "exact", "stride", "border", "interpolation")


def run(capsys, *arguments):
    """Exit code, stdout and stderr of the command."""
    code = main(("equivariance", *map(str, arguments)))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """What the command writes without further options."""
    folder = tmp_path_factory.mktemp("equivariance")
    files = {name: folder / f"rows.{name}" for name in ("json", "txt", "png")}
    assert main(["equivariance", "--json", str(files["json"]), "--out", str(files["txt"]), "--plot", str(files["png"])]) == 0
    assert {path.name for path in folder.iterdir()} == {path.name for path in files.values()}
    return files


def test_rows_for_scripts(default):
    rows = json.loads(default["json"].read_text())
    assert all(set(row) == {"layer", "transform", *PARTS} for row in rows)
    layers, transforms = ({row[name] for row in rows} for name in ("layer", "transform"))
    assert len(layers) >= 8
    assert len(transforms) >= 8
    assert len(rows) == len(layers) * len(transforms)
    for row in rows:
        assert all(math.isfinite(row[part]) and row[part] >= 0 for part in PARTS)
        assert row["error"] <= sum(row[part] for part in PARTS[1:]) + 1e-12


@pytest.mark.parametrize(
    ("layer", "transform", "part"),
    [
        ("conv circular", "shift 1", None),
        ("conv circular", "shift 2", None),
        ("conv circular", "rotate 90", "exact"),
        ("conv circular", "mirror", "exact"),
        ("conv zeros", "shift 1", "border"),
        ("conv stride 2", "shift 1", "stride"),
        ("conv stride 2", "shift 2", None),
        ("max pool 2", "shift 1", "stride"),
        ("max pool 2", "shift 2", None),
        ("max pool 2", "rotate 90", None),
        ("max pool 2", "mirror", None),
        ("conv transpose", "shift 1", "border"),
        ("net, global pool", "shift 1", "border"),
    ],
)
def test_theory(default, layer, transform, part):
    """The only part that is not exactly 0."""
    (row,) = [row for row in json.loads(default["json"].read_text()) if (row["layer"], row["transform"]) == (layer, transform)]
    assert [name for name in PARTS[1:] if row[name]] == ([part] if part else [])
    assert row["error"] == pytest.approx(row[part] if part else 0)


def test_group_convolutions_follow_their_group(default):
    rows = {(row["layer"], row["transform"]): row["error"] for row in json.loads(default["json"].read_text())}
    for transform in ("rotate 90", "rotate 180"):
        assert max(rows["p4 conv", transform], rows["p4m conv", transform]) < 1e-12
        assert rows["conv circular", transform] > 0.1
    assert rows["p4m conv", "mirror"] < 1e-12
    assert rows["p4 conv", "mirror"] > 0.1


def test_picture_and_table(default):
    assert default["png"].read_bytes().startswith(b"\x89PNG")
    heading, _, header, *rows = default["txt"].read_text().splitlines()
    assert "photograph" in heading
    assert header.split() == ["layer", "transform", *PARTS]
    assert sum("shift 1" in row for row in rows) >= 8


def test_the_table_of_the_documentation(default):
    """To the letter, but for what is rounding."""
    (shown,) = re.findall(r"^```text\n(a photograph.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    rounding = re.compile(r" +\d\.?\d*e-1[0-9]")
    assert rounding.sub(" tiny", shown) == rounding.sub(" tiny", default["txt"].read_text())


def test_the_examples_of_the_documentation():
    blocks = re.findall(r"^```python\n(.*?)^```\n\nIt prints:\n\n```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == PAGE.count("```python")
    for code, said in blocks:
        done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout == said


def test_chosen_layers_transformations_and_backend(capsys):
    chosen = ("--layers", "avg pool 2", "--transforms", "shift:2", "rotate 180", "--data", "digits", "--seed", "3")
    code, out, _ = run(capsys, *chosen, "--backend", "reference")
    assert code == 0
    heading, _, _, *rows = out.splitlines()
    assert "digits" in heading
    assert "seed 3" in heading
    assert [row.split()[:4] for row in rows] == [["avg", "pool", "2", "shift"], ["avg", "pool", "2", "rotate"]]
    assert out == run(capsys, *chosen, "--backend", "reference")[1]


@pytest.mark.parametrize(("shape", "layers"), [((2, 1, 32), 8), ((1, 1, 8, 8, 8), 8)])
def test_sounds_and_volumes_of_the_caller(capsys, tmp_path, rng, shape, layers):
    np.save(tmp_path / "x.npy", rng.standard_normal(shape))
    code, out, _ = run(capsys, "--data", tmp_path / "x.npy", "--transforms", "shift 2", "mirror", "--json", tmp_path / "rows.json")
    assert code == 0
    assert out.startswith(f"x.npy, {list(shape)}; seed 0")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len({row["layer"] for row in rows}) == layers
    assert all(row["error"] == 0 for row in rows if (row["layer"], row["transform"]) == ("conv circular", "shift 2"))


def test_without_scikit_learn_the_command_says_so_and_goes_on(capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "sklearn" else found(name, *rest))
    code, out, err = run(capsys, "--layers", "max pool 2", "--transforms", "shift 2")
    assert code == 0
    assert 'no photograph without sklearn (pip install "numconv-nd[demo]"): random waves instead' in err
    assert out.startswith("random waves")
    code, out, err = run(capsys, "--data", "digits")
    assert (code, out) == (1, "")
    assert 'the digits need sklearn: pip install "numconv-nd[demo]"' in err


def test_a_picture_needs_matplotlib(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = run(
        capsys, "--layers", "max pool 2", "--transforms", "mirror", "--data", "waves", "--plot", tmp_path / "p.png"
    )
    assert (code, out) == (1, ""), "found out before anything is computed"
    assert 'pictures need matplotlib: pip install "numconv-nd[plot]"' in err
    assert not list(tmp_path.iterdir())


def test_list(capsys):
    assert run(capsys, "--list")[1].splitlines() == list(operations.OPERATIONS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layers", "conv"), "no operation is called 'conv'; known are conv circular, "),
        (("--layers", "mirror conv"), "'mirror conv' is for 1 spatial dimensions, and x (1, 1, 32, 32) has 2"),
        (("--transforms", "flip"), "'flip' is no transformation"),
        (("--json", "no/such/folder/rows.json"), "no/such/folder/rows.json cannot be written"),
        (("--json", "."), ". is a folder, and a file is to be written"),
        (("--plot", "rows.foo"), "rows.foo: pictures called *.foo are not written; the format follows the name: "),
        (("--backend", "referense"), "no backend is called 'referense'"),
        (("--data", "photo"), "--data photo: give photograph, digits, waves, or the path of an .npy file"),
        (("--data", "missing.npy"), "missing.npy"),
        (("--data", "flat.npy"), "flat.npy has shape (3,) and dtype float64; it must be real, [N, C, *S]"),
        (("--data", "text.npy"), "text.npy holds no array that can be read"),
        (("--data", "empty.npy"), "empty.npy has shape (1, 1, 0) and 0 values that are NaN or infinite"),
        (("--data", "nan.npy"), "nan.npy has shape (1, 1, 8) and 8 values that are NaN or infinite"),
        (("--transforms", "shift inf"), "give one finite number for each spatial dimension"),
        (("--transforms", "scale 1e-400"), "the factor must be positive and finite"),
    ],
)
def test_bad_input(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    np.save("flat.npy", np.ones(3))
    np.save("empty.npy", np.ones((1, 1, 0)))
    np.save("nan.npy", np.full((1, 1, 8), np.nan))
    Path("text.npy").write_text("no array")
    before = set(tmp_path.iterdir())
    code, out, err = run(capsys, *(arguments if "--data" in arguments else ("--data", "digits", *arguments)))
    assert (code, out) == (1, "")
    assert message in err
    assert set(tmp_path.iterdir()) == before


def test_any_function_in_a_report(rng):
    x = rng.integers(0, 9, (1, 1, 12)).astype(float)
    mine = equivariance.Operation("every third", lambda x: x[:, :, ::3])
    with nc.using(accuracy="strict"):
        rows = equivariance.measure([mine], x, [equivariance.translation(shift) for shift in (1, 3)])
    assert [(row.layer, row.error > 0, row.error == row.stride) for row in rows] == [
        ("every third", True, True),
        ("every third", False, True),
    ]
