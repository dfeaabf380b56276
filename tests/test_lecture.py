"""`numconv lecture`: its claims, its page, its errors."""

import contextlib
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

import numconv as nc
from numconv import demo, nn
from numconv.cli import main
from numconv.demo import missing_packages

pytestmark = pytest.mark.skipif(bool(missing_packages()), reason=f"needs {', '.join(missing_packages())}")

DOCS = Path(__file__).parents[1] / "docs"


def run(capsys, *arguments):
    """Exit code, stdout and stderr of the command."""
    try:
        code = main(["lecture", *map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The folder of one quick run, what it printed, and its figures."""
    folder = tmp_path_factory.mktemp("lecture")
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
        code = main(["lecture", "--quick", "--out", str(folder / "new" / "out"), "--json", str(folder / "figures.json")])
    assert code == 0
    return folder / "new" / "out", out.getvalue(), json.loads((folder / "figures.json").read_text())


@pytest.fixture(scope="module")
def figures(quick):
    return {name: value for chapter in quick[2]["chapters"] for name, value in chapter["figures"].items()}


def test_every_claim_was_checked_and_holds(quick):
    chapters = quick[2]["chapters"]
    assert [chapter["number"] for chapter in chapters] == list(range(1, 13))
    for chapter in chapters:
        assert chapter["holds"], chapter
        assert chapter["checks"]
        assert all(check["holds"] and re.search(r"\d", check["measured"] + check["statement"]) for check in chapter["checks"])
    assert quick[2]["quick"] is True
    assert quick[2]["numconv"] == nc.__version__


def test_figures_of_what_is_exact(figures):
    assert figures["shapes_that_agree"] == figures["shapes_tried"] > 700
    assert figures["relative_difference_float64"] < 1e-13
    assert figures["receptive_field"] == 34
    assert (figures["positions_in"], figures["positions_out"]) == (64**2, 8**2)
    assert figures["mlp_weights_photograph_of_a_megapixel"] == 4096 * (3_000_000 + 1) + 10 * 4097
    assert figures["matrix_nonzero"] == 5 * 64 - 6
    assert figures["error_of_shift"] < 1e-12


def test_figures_of_sound_and_images(figures):
    assert figures["band-pass_keeps_1000_2000"] > 0.9
    assert figures["band-pass_keeps_0_500"] < 0.01
    assert figures["explained_by_neighbours_voice"] > 0.8
    assert figures["explained_by_others_voice"] < 0.1
    assert figures["border_error_replicate"] < figures["border_error_zeros"] / 5


def test_figures_of_what_networks_learn(figures):
    assert figures["cnn_lost_by_shifts"] == pytest.approx(0, abs=0.005)
    assert figures["mlp_lost_by_shifts"] > 0.5
    assert figures["kernel_error_10_examples"] < 0.05 < figures["perceptron_error_100_examples"]
    assert figures["digits_mlp_in_order"] == pytest.approx(figures["digits_mlp_permuted"], abs=0.04)
    assert figures["digits_cnn_permuted"] < figures["digits_cnn_in_order"]
    assert figures["p4_accuracy_turned_by_90_degrees"] == pytest.approx(figures["p4_accuracy_upright"], abs=0.005)
    assert figures["plain_accuracy_turned_by_90_degrees"] < figures["plain_accuracy_upright"] - 0.3
    assert figures["error_of_quarter_turn"] > 0.1
    assert figures["error_p4_quarter_turn"] < 1e-6


def test_what_is_printed(quick):
    text = quick[1]
    for chapter in quick[2]["chapters"]:
        assert f"\n{chapter['number']}. {chapter['title']}\n" in text
        assert re.search(rf"^ *{chapter['number']}  holds  {re.escape(chapter['title'])}$", text, re.MULTILINE)
    assert text.count("HOLDS: ") == sum(len(chapter["checks"]) for chapter in quick[2]["chapters"])
    assert "FAILS" not in text


def test_pictures_show_something(quick):
    from PIL import Image

    pictures = sorted((quick[0] / "lecture").iterdir())
    assert len(pictures) >= 10
    for path in pictures:
        with Image.open(path) as image:
            assert image.format == "PNG"
            pixels = np.asarray(image.convert("RGB"))
        assert pixels.shape[1] > 700
        assert len(np.unique(pixels[::4, ::4].reshape(-1, 3), axis=0)) > 10
        assert 0.01 < (pixels.min(axis=2) < 250).mean() < 0.99


def structure(page):
    """Headings, claims and pictures of a page."""
    headings = re.findall(r"^##? .*$", page, re.MULTILINE)
    claims = re.findall(r"^\*\*Claim\.\*\* .*$", page, re.MULTILINE)
    return headings, claims, re.findall(r"^!\[.*\]\((lecture/\w+\.png)\)$", page, re.MULTILINE)


def test_the_page_in_the_documents_is_what_the_command_writes(quick):
    written, kept = (structure((folder / "lecture.md").read_text(encoding="utf-8")) for folder in (quick[0], DOCS))
    assert kept[:2] == written[:2]
    left_out = {"lecture/voice_filters.png"}  # --quick trains no network on voices
    assert [name for name in kept[2] if name not in left_out] == written[2]
    assert {f"lecture/{path.name}" for path in (DOCS / "lecture").iterdir()} == set(kept[2])
    assert all((DOCS / name).stat().st_size < 62_000 for name in kept[2])


def test_every_claim_holds_in_the_documents():
    page = (DOCS / "lecture.md").read_text(encoding="utf-8")
    table = page.partition("## The claims")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| +(\d+) \| .* \| (yes|NO) \|$", table, re.MULTILINE)
    assert {int(number) for number, _ in rows} == set(range(1, 13))
    assert {answer for _, answer in rows} == {"yes"}
    assert "Fails" not in page


def test_a_claim_that_fails_is_told(capsys, tmp_path, monkeypatch):
    from numconv.lecture import course

    class Chapter:
        TITLE, CLAIM = "The earth", "The earth is flat."

        @staticmethod
        def teach(lesson):
            lesson.check("Ships do not sink behind the horizon", "3 of 3 did", False)

    monkeypatch.setitem(course.CHAPTERS, 4, Chapter)
    code, out, err = run(capsys, "--chapter", 4, "--out", tmp_path)
    assert code == 1
    assert "FAILS: Ships do not sink behind the horizon (3 of 3 did)" in out
    assert "of the claims, 4 did not hold" in err
    assert "| NO |" in (tmp_path / "lecture.md").read_text()


def test_some_chapters(capsys, tmp_path):
    code, out, _ = run(capsys, "--chapter", 10, 4, "--out", tmp_path, "--quick", "--backend", "reference")
    assert code == 0
    assert re.findall(r"^(\d+)\. ", out, re.MULTILINE) == ["4", "10"]
    assert [path.name for path in (tmp_path / "lecture").iterdir()] == ["worked_example.png"]
    page = (tmp_path / "lecture.md").read_text()
    assert f"\nnumconv lecture --out {tmp_path} --quick --chapter 4 10 --backend reference\n" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--chapter", "13"), "invalid choice: 13"), (("--chapter",), "expected at least one"), (("--seed", "-1"), "at least 0")],
)
def test_bad_usage_exits_with_2(capsys, arguments, message):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "referense"), "did you mean 'reference'?"),
        (("--json", "nowhere/figures.json"), "nowhere/figures.json cannot be written"),
        (("--json", "."), ". is a folder, and a file is to be written"),
        (("--voices", "nowhere"), "nowhere"),
    ],
)
def test_errors_come_before_anything_is_computed(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (1, "")
    assert message in err
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_NEEDED", {"no_such_module": "no-such-package"})
    code, out, err = run(capsys, "--out", tmp_path / "out")
    assert (code, out) == (1, "")
    assert err == 'numconv lecture needs no-such-package: pip install "numconv-nd[demo]"\n'


# --- what the chapters are made of


def test_moved_examples_keep_their_values():
    from numconv.lecture.material import framed, moved

    x = framed(np.arange(1.0, 19).reshape(2, 1, 3, 3), 2)
    y = moved(x, np.array([[1, -2], [0, 0]]))
    np.testing.assert_array_equal(y[0], np.roll(x[0], (1, -2), axis=(1, 2)))
    np.testing.assert_array_equal(y[1], x[1])
    left = moved(x, np.array([[3, 0], [0, -3]])).sum(axis=(1, 2, 3))
    assert left.tolist() == [x[0].sum() - (7 + 8 + 9), x[1].sum() - (10 + 13 + 16)]  # a row, a column has left


def test_shuffling_is_one_permutation_for_all():
    from numconv.lecture.material import digits, shuffled

    split = digits(0)
    mixed = shuffled(split, 1)
    assert len(split.x) + len(split.test_x) == 1797
    assert not np.array_equal(mixed.x, split.x)
    for before, after in ((split.x, mixed.x), (split.test_x, mixed.test_x)):
        np.testing.assert_array_equal(np.sort(before.reshape(len(before), -1)), np.sort(after.reshape(len(after), -1)))
    columns = [
        np.concatenate([part.reshape(len(part), -1) for part in parts])
        for parts in ((split.x, split.test_x), (mixed.x, mixed.test_x))
    ]
    assert {column.tobytes() for column in columns[0].T} == {column.tobytes() for column in columns[1].T}


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 10, 12), (2, 300)])
def test_costs_are_those_of_the_models(shape):
    from numconv.lecture import nets, perceptron

    for make in (perceptron.mlp, perceptron.cnn):
        model = make().build(shape)
        computed = perceptron.cost(make(), shape)
        assert computed.weights == nets.count(model)
        assert f"{computed.weights:,} parameters" in model.summary()
        # the summary counts an array for each layer, also for a ReLU
        rectified = sum(math.prod(x_shape) for _, layer, x_shape in model.leaves(shape) if isinstance(layer, nn.ReLU))
        assert f"{8 * (computed.values + rectified):,} bytes a sample" in model.summary()
        assert computed.bytes == 16 * computed.weights + 8 * computed.values


def test_a_digit_moves_and_the_scores_stay():
    from numconv.lecture import material, nets

    model = nets.digit_cnn().build((1, 16, 16))
    x = material.framed(material.digits(0).test_x[:5], 4)
    for shift in ((4, 4), (-4, 3), (0, -4)):
        np.testing.assert_allclose(model(material.moved(x, np.array([shift] * 5))), model(x), rtol=1e-5, atol=1e-6)


def test_definition_by_hand():
    from numconv.lecture.definition import by_hand

    x, k = np.array([1, 2, 3]), np.array([10, 20, 30])
    assert by_hand(x, k).tolist() == [1 * 20 + 2 * 10, 1 * 30 + 2 * 20 + 3 * 10, 2 * 30 + 3 * 20]
    assert by_hand(x, k, sign=1).tolist() == [1 * 20 + 2 * 30, 1 * 10 + 2 * 20 + 3 * 30, 2 * 10 + 3 * 20]


def test_a_value_follows_from_others_or_does_not(rng):
    from numconv.lecture.inputs import explained

    others = rng.standard_normal((3, 4000))
    assert explained(others.sum(axis=0) + 7, others) == pytest.approx(1)
    assert explained(rng.standard_normal(4000), others) == pytest.approx(0, abs=0.02)


def test_a_lesson_without_a_check_does_not_hold(tmp_path, capsys):
    from numconv.lecture.lesson import Lesson, Setting

    lesson = Lesson(1, "Title", "Claim.", Setting(tmp_path, True, 0, None, {}))
    assert not lesson.holds
    lesson.check("a", "1", True)
    assert lesson.holds
    lesson.table(("name", "number", "x"), [("a", 1234567, 0.5), ("b", 2, math.pi)])
    assert "  name     number      x\n  a     1,234,567    0.5\n  b             2  3.142\n" in capsys.readouterr().out
