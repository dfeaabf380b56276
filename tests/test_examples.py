"""Every script of examples/, run as a user would, and what it must print."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from numconv.demo import missing_packages

pytestmark = pytest.mark.skipif(bool(missing_packages()), reason=f"needs {', '.join(missing_packages())}")

EXAMPLES = Path(__file__).parents[1] / "examples"


def numbers(pattern: str, text: str) -> list[float]:
    """All numbers that the groups of a pattern find."""
    found = [each for groups in re.findall(pattern, text) for each in (groups if isinstance(groups, tuple) else (groups,))]
    assert found, f"nothing like {pattern!r} in:\n{text}"
    return [float(each.replace(",", "")) for each in found]


def filter_a_sound(text: str) -> None:
    average, difference, band = (numbers(r"([\d.]+)%", re.search(rf"^{name} .*$", text, re.MULTILINE)[0])
                                 for name in ("moving average", "difference", "band-pass"))  # fmt: skip
    assert average == sorted(average, reverse=True)
    assert difference == sorted(difference)
    assert band[2] > 90
    assert max(band[0], band[1], band[3]) < 5


def learn_a_filter(text: str) -> None:
    losses, errors = numbers(r"loss +([\d.]+)", text), numbers(r"error of the weights ([\d.]+)%", text)
    assert losses[0] > 20 * losses[-1]
    assert errors[0] == 100
    assert errors[-1] < 1


def deblur(text: str) -> None:
    forward, backward = numbers(r"(?:<A x, y>|<x, A\^T y>) = (-?[\d.]+)", text)
    assert forward == pytest.approx(backward, rel=1e-3)
    quality = numbers(r"([\d.]+) dB", text)
    assert quality == sorted(quality)
    assert quality[-1] > quality[0] + 2


def shifted_digits(text: str) -> None:
    cnn, mlp = (
        numbers(r"([\d.]+)%", re.search(rf"^{name} .*$", text, re.MULTILINE)[0]) for name in ("convolutional", "perceptron")
    )
    assert cnn[0] > 80
    assert cnn[0] - cnn[-1] < 3
    assert mlp[0] > 80
    assert mlp[0] - mlp[-1] > 50


def equivariance_of_a_net(text: str) -> None:
    before, after = zip(*(re.findall(r"([\d.]+)%", line) for line in text.splitlines()[1:]), strict=True)
    assert len(before) == 7
    assert float(before[0]) > 60
    assert float(after[0]) > 60


def p4_network(text: str) -> None:
    accuracy = {
        name: numbers(r"([\d.]+)%", re.search(rf"^{name}, .* upright .*$", text, re.MULTILINE)[0]) for name in ("p4", "plain")
    }
    upright, quarter_turn = accuracy["p4"][0], accuracy["p4"][2]
    assert upright == quarter_turn
    assert accuracy["plain"][2] < accuracy["plain"][0] - 20


def large_kernels_in_torch(text: str) -> None:
    first, last, _, first_again, last_again, _ = numbers(r"([\d.]+) -> ([\d.]+), ([\d.]+) ms", text)
    assert (first, last) == (first_again, last_again)
    assert last < first


def figures(text: str) -> None:
    """What any example prints."""
    numbers(r"(\d+)", text)


CHECKS = {
    check.__name__: check
    for check in (filter_a_sound, learn_a_filter, deblur, shifted_digits, equivariance_of_a_net, p4_network, large_kernels_in_torch)
}
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def test_the_list_names_every_example():
    assert sorted(re.findall(r"\]\((\w+)\.py\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))) == NAMES


def test_checks_are_of_examples_that_are_there():
    assert set(CHECKS) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_example(name, tmp_path):
    if name.endswith("_in_torch"):
        pytest.importorskip("torch", reason="the package torch is not installed")
    before = listing()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "error", EXAMPLES / f"{name}.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
    assert listing() == before
    CHECKS.get(name, figures)(done.stdout)


def listing() -> set[Path]:
    """All files beside the examples."""
    return {path for path in EXAMPLES.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize("name", NAMES)
def test_example_begins_with_what_it_shows(name):
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert re.search(r"\bone sees\b|\bprints\b|\bshow", ast.get_docstring(ast.parse(text)), re.IGNORECASE)
    assert 30 <= len(text.splitlines()) <= 80
