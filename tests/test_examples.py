"""Every script of examples/, run as a user would, and what it must print."""

from __future__ import annotations

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


CHECKS = {check.__name__: check for check in (filter_a_sound, learn_a_filter, deblur)}


def test_every_example_is_checked():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(CHECKS)


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_example(name, tmp_path):
    before = {path for path in EXAMPLES.rglob("*") if "__pycache__" not in path.parts}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / f"{name}.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
    assert {path for path in EXAMPLES.rglob("*") if "__pycache__" not in path.parts} == before
    CHECKS[name](done.stdout)


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_example_says_what_one_sees(name):
    lines = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert 30 <= len(lines) <= 80
    assert lines[0].startswith('"""')
    assert "One sees" in "".join(lines[:12])
