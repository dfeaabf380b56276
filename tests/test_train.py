"""`numconv train` and what it is made of: tasks, networks, settings, reports."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import numconv as nc
from numconv import media, nn, training
from numconv.cli import main
from numconv.training import figures

for package in ("soundfile", "PIL.Image", "av", "safetensors"):
    pytest.importorskip(package)

ROOT = pathlib.Path(__file__).parents[1]


def write_tones(folder, count, seed, classes=(300, 900)):
    """Noisy tones of different lengths and phases; the class is the pitch."""
    rng = np.random.default_rng(seed)
    for pitch in classes:
        for i in range(count):
            t = np.arange(rng.integers(1500, 2500)) / 4000
            x = 0.3 * np.sin(2 * np.pi * pitch * t + rng.uniform(0, 6)) + rng.normal(0, 0.05, len(t))
            media.write_sound(folder / f"{pitch} Hz" / f"{i}.wav", x[None], 4000)
    return folder


def write_images(folder, count, seed):
    rng = np.random.default_rng(seed)
    for name, axis in (("lying", 1), ("standing", 0)):
        for i in range(count):
            x = rng.random((3, 12, 12)) * 0.3
            np.moveaxis(x, 1 + axis, 1)[:, :, rng.integers(2, 10)] += 0.7
            media.write_image(folder / name / f"{i}.png", x)
    return folder


@pytest.fixture
def tones(tmp_path):
    return write_tones(tmp_path / "train", 16, seed=0)


def run(capsys, *arguments, command="train"):
    code = main([command, *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- the command


def test_sounds_are_learned(tmp_path, tones, capsys):
    """The promise for scripts: two folders in, a file out, far above chance; strays and a missing class change nothing."""
    (tones / "README.md").write_text("text")
    (tones / "300 Hz" / "notes.txt").write_text("text")
    (tones / "300 Hz" / "broken.wav").write_bytes(b"RIFF")
    test = write_tones(tmp_path / "test", 20, seed=1, classes=(900,))
    code, out, _ = run(capsys, tones, "--test", test, "--json", tmp_path / "new" / "out.json", "--epochs", 12)
    assert code == 0
    found = json.loads((tmp_path / "new" / "out.json").read_text())
    assert found["classes"] == ["300 Hz", "900 Hz"]
    assert found["test_accuracy"] >= 0.95
    assert found["confusion"][0] == [0, 0]
    assert sum(found["confusion"][1]) == found["test_samples"] == 20
    assert found["confusion"][1][1] / 20 == found["test_accuracy"]
    assert (found["train_samples"], found["epochs"], found["sample_rate"]) == (32, 12, 4000)
    assert 1_000 < found["parameters"] < 70_000
    assert found["seconds"] > 0
    assert {pathlib.Path(each["path"]).name for each in found["skipped"]} == {"README.md", "notes.txt", "broken.wav"}
    for line in (
        "32 samples to learn from, 20 to test on",
        "in the last of 12 epochs",
        "broken.wav cannot be decoded as sound",
        "true class | found:",
    ):
        assert line in out


def test_images_and_every_file_of_out(tmp_path, capsys):
    folder = write_images(tmp_path / "images", 20, seed=0)
    code, out, _ = run(capsys, folder, "--out", tmp_path / "out", "--epochs", 10, "--held-out", 0.25, "--threads", 1)
    assert code == 0
    assert "30 samples to learn from, 10 held out at random; each [C, H, W] = [3, 12, 12]" in out
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"learning_curve.png", "confusion.png", "first_layer.png", "model.safetensors", "result.json"}
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert found["test_accuracy"] >= 0.8
    assert len(found["history"]["loss"]) == 10
    assert found["history"]["loss"][-1] < found["history"]["loss"][0]
    model = nn.load(tmp_path / "out" / "model.safetensors")
    assert sum(array.size for array in model.parameters.values()) == found["parameters"]
    for name in ("learning_curve.png", "confusion.png", "first_layer.png"):
        assert media.read_image(tmp_path / "out" / name).std() > 0.01

    # and what the folder is for: files that nobody labelled, of another size
    classifier = training.load_classifier(tmp_path / "out")
    samples = [sample for sample in sorted(folder.rglob("*.png")) if int(sample.stem) < 5]
    found = [classifier.probabilities(sample) for sample in samples]
    assert all(sum(each.values()) == pytest.approx(1) for each in found)
    assert all(list(each.values()) == sorted(each.values(), reverse=True) for each in found)
    assert np.mean([next(iter(each)) == sample.parent.name for each, sample in zip(found, samples, strict=True)]) >= 0.8
    media.write_image(tmp_path / "large.png", np.repeat(np.repeat(media.read_image(samples[0]), 3, axis=1), 3, axis=2))
    (tmp_path / "text.png").write_text("text")
    code, out, err = run(capsys, tmp_path / "out", samples[0], tmp_path / "text.png", tmp_path / "large.png", command="classify")
    assert code == 1
    assert "text.png" in err
    assert [line.split()[1::2] for line in out.splitlines()] == [list(classifier.probabilities(samples[0]))] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not what `numconv train --out` writes: JSONDecodeError"),
        ('{"kind": "image", "shape": [1, 8, 8]}', r"is not what `numconv train --out` writes: KeyError\('sample_rate'\)"),
        (
            '{"kind": "sound", "shape": [1, 8], "sample_rate": null, "classes": []}',
            "is not what `numconv train --out` writes: .*kind 'sound' with shape .* and sample_rate None",
        ),
        ('{"kind": "sound", "shape": [1, 8], "sample_rate": 8, "classes": ["a"]}', r"gives \(2,\) for .* has 1 classes"),
    ],
)
def test_folders_that_hold_no_classifier(tmp_path, content, message):
    with pytest.raises(nc.ProblemError, match=r"has no result.json: give a folder that `numconv train --out` wrote"):
        training.load_classifier(tmp_path)
    (tmp_path / "result.json").write_text(content)
    nn.save(nn.Sequential(nn.GlobalAvgPool(), nn.Linear(2)).build((1, 8)), tmp_path / "model.safetensors")
    with pytest.raises(nc.ProblemError, match=message):
        training.load_classifier(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text here")
def test_classes_of_any_name(tmp_path, capsys):
    """Names that would be formulas to matplotlib, and names that are no text."""
    folder = tmp_path / r"$\wrong{$"
    for name in (r"$\frac$", "5$ or $6", "\udcff", "-x"):
        for i in range(2):
            media.write_image(folder / name / f"{i}\udcfe.png", np.zeros((1, 8, 8)))
    (folder / "-x" / "\udcfd.png").write_text("text")
    code, out, err = run(capsys, folder, "--epochs", 1, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "\\udcff" in out
    assert (tmp_path / "out" / "confusion.png").is_file()
    assert training.load_classifier(tmp_path / "out").classes == ("$\\frac$", "-x", "5$ or $6", "\udcff")


def test_videos_are_recognised(tmp_path, capsys):
    x, labels, classes = training.moving_shapes(16, rng=0)
    for i, (video, label) in enumerate(zip(x, labels, strict=True)):
        media.write_video(tmp_path / "videos" / classes[label] / f"{i}.gif", video, 10)
    code, out, _ = run(capsys, tmp_path / "videos", "--epochs", 1, "--max-frames", 6, "--json", tmp_path / "out.json")
    assert code == 0
    assert "each [C, T, H, W] = [1, 6, 16, 16]" in out
    assert json.loads((tmp_path / "out.json").read_text())["kind"] == "video"


def test_a_model_and_settings_from_toml(tmp_path, tones, capsys):
    (tmp_path / "small.toml").write_text(
        'epochs = 3\nbatch_size = 8\n[[model]]\nlayer = "Conv"\nchannels = 4\nwindow = 8\n[[model]]\nlayer = "GlobalMaxPool"\n'
    )
    code, out, _ = run(capsys, tones, "--model", tmp_path / "small.toml", "--epochs", 2, "--json", tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert code == 0
    assert (found["epochs"], found["batch_size"], found["parameters"]) == (2, 8, 4 * 8 + 4 + 4 * 2 + 2)
    assert "Conv(4, 8)" in out


def test_resuming_ends_where_an_uninterrupted_training_ends(tmp_path, tones):
    task = training.folder_task(tones)
    layers = ({"layer": "Conv", "channels": 4, "window": 9, "stride": 4}, {"layer": "ReLU"}, {"layer": "GlobalAvgPool"})
    settings = training.Settings(epochs=4, batch_size=8, model=layers)
    whole = training.train(task, settings)
    path = tmp_path / "state.safetensors"

    class Stopped(Exception):
        pass

    class Interrupted:
        """The data of the task, until the second epoch is half over."""

        epochs = 0

        def __len__(self):
            return len(task.train)

        def batches(self, batch_size, rng=None):
            self.epochs += 1
            for i, batch in enumerate(task.train.batches(batch_size, rng)):
                if self.epochs == 2 and i == 2:
                    raise Stopped
                yield batch

    from dataclasses import replace

    with pytest.raises(Stopped):
        training.train(replace(task, train=Interrupted()), settings, checkpoint=path)
    resumed = training.train(task, settings, checkpoint=path, resume=True)
    for name, array in whole.model.parameters.items():
        np.testing.assert_array_equal(resumed.model.parameters[name], array)
    assert len(resumed.history.loss) == 4


def test_the_same_seed_gives_the_same_result(tones):
    settings = training.Settings(epochs=2, batch_size=8)
    results = [training.train(training.folder_task(tones, seed=3), settings).as_dict() for _ in range(2)]
    for name in ("test_loss", "confusion", "model"):
        assert results[0][name] == results[1][name]
    assert results[0]["history"]["loss"] == results[1]["history"]["loss"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "absent is not a folder: give one whose subfolders are the classes"),
        (["FOLDER", "--test", "absent"], "absent is not a folder"),
        (["FOLDER", "--checkpoint", "FOLDER"], "is a folder, and a file is to be written"),
        (["FOLDER", "--resume"], "--resume goes on from a file: give --checkpoint FILE"),
        (["digits", "--test", "FOLDER"], "digits is an example that brings its own test data"),
        (["FOLDER", "--held-out", "1.5"], "fraction=1.5 of each class is to be held out"),
        (["FOLDER", "--held-out", "0"], "fraction=0.0 of each class is to be held out"),
        (["digits", "--held-out", "0"], "fraction=0.0 of each class is to be held out"),
        (["shapes", "--held-out", "0"], "fraction=0.0 of each class is to be held out"),
        (["FOLDER", "--test", "FOLDER", "--held-out", "0.5"], "held_out=0.5 is a part of one folder, and all of "),
        (["shapes", "--max-side", "8", "--max-frames", "4"], "samples have one form: leave out --max-side, --max-frames"),
        (["FOLDER", "--rate", "-1"], "rate=-1.0: a number above 0 and below inf"),
        (["FOLDER", "--rate", "0"], "rate=0.0: a number above 0 and below inf"),
        (["FOLDER", "--shift", "1"], "shift=1.0: a number of at least 0 and below 1"),
        (["FOLDER", "--model", "absent.toml"], "absent.toml"),
        (["FOLDER", "--backend", "referense"], "no backend is called 'referense'"),
    ],
)
def test_what_cannot_be_is_said_without_a_traceback(tmp_path, tones, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *[tones if each == "FOLDER" else each for each in arguments], "--json", "out.json")
    assert code == 1
    assert message in err
    assert err.count("numconv train: ") == 1
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("epochs = ", "is no TOML file"),
        ("epoch = 3", "epoch is no setting: epochs, batch_size, rate"),
        ("epochs = 1.5", "epochs=1.5: an integer of at least 1"),
        ("model = 3", "model=3: one table [[model]] for each layer is asked for"),
        ("model = [3]", "one table [[model]] for each layer is asked for"),
        ('[[model]]\nlayer = "Convolution"', "no layer is called 'Convolution'"),
        ('[[model]]\nlayer = "Conv"\nchannels = 4\nwindow = 3', "put Flatten or GlobalAvgPool before it"),
    ],
)
def test_bad_toml(tmp_path, tones, capsys, toml, message):
    (tmp_path / "bad.toml").write_text(toml)
    code, _, err = run(capsys, tones, "--model", tmp_path / "bad.toml")
    assert code == 1
    assert message in err


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "numconv train FOLDER --test FOLDER2 --json result.json" in capsys.readouterr().out


# --- tasks


def test_folders_that_are_no_task(tmp_path, tones):
    only = write_tones(tmp_path / "one", 2, seed=0, classes=(300,))
    with pytest.raises(nc.ProblemError, match="one has one class, 300 Hz"):
        training.folder_task(only)
    other = write_tones(tmp_path / "other", 2, seed=0, classes=(500,))
    with pytest.raises(media.MediaError, match="has the classes 500 Hz, which are not among 300 Hz, 900 Hz"):
        training.folder_task(tones, other)
    for path in only.rglob("*.wav"):
        path.write_bytes(b"text")
    with pytest.raises(nc.ProblemError, match=r"one leaves no file to test on: .*wav cannot be decoded"):
        training.folder_task(tones, only)


def test_a_class_of_one_file_is_learned_from(tmp_path, tones):
    write_tones(tones, 1, seed=0, classes=(600,))
    task = training.folder_task(tones)
    assert task.classes == ("300 Hz", "600 Hz", "900 Hz")
    assert np.bincount(task.train.labels, minlength=3).tolist() == [13, 1, 13]
    assert np.bincount(task.test.labels, minlength=3).tolist() == [3, 0, 3]


def test_voices_are_where_the_source_is(tmp_path, monkeypatch):
    task = training.example_task("voices")
    assert task.classes == ("english", "french", "italian", "russian", "spanish")
    assert (len(task.train), len(task.test), task.shape, task.rate) == (720, 180, (1, 8000), 8000)
    monkeypatch.setattr(nc, "__file__", str(tmp_path / "site-packages" / "numconv" / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(nc.ProblemError, match="the recordings are part of numconv's source"):
        training.example_task("voices")


def test_digits():
    pytest.importorskip("sklearn")
    task = training.example_task("digits")
    assert (task.shape, len(task.classes), len(task.train), len(task.test)) == ((1, 8, 8), 10, 1198, 599)
    x, labels = next(task.train.batches(2000))
    assert (x.dtype, x.min(), x.max(), len(np.unique(labels))) == (np.float32, 0, 1, 10)


def test_no_single_frame_tells_the_motion():
    """Each frame, moved by the motion of another class, is as likely there: the mean picture of every class is flat."""
    x, labels, classes = training.moving_shapes(800, rng=0, noise=0.0)
    assert np.bincount(labels).tolist() == [200] * 4
    means = np.array([x[labels == label, 0].mean(axis=0) for label in range(len(classes))])
    assert means.std(axis=(1, 2, 3)).max() < 0.25 * means.mean()
    steps = dict(zip(classes, ((0, -1), (0, 1), (-1, 0), (1, 0)), strict=True))
    for video, label in zip(x[:20, 0], labels, strict=False):
        np.testing.assert_array_equal(np.roll(video[0], steps[classes[label]], axis=(0, 1)), video[1])
    with pytest.raises(nc.ProblemError, match="no example is called 'faces': there are digits, voices, shapes"):
        training.example_task("faces")


# --- networks


@pytest.mark.parametrize("length", [1, 7, 40, 900, 20_000])
@pytest.mark.parametrize("rate", [500, 8000, 48_000])
def test_sound_networks_fit_every_length(length, rate):
    model = nn.Sequential(*training.layers_for("sound", (1, length), rate), nn.Linear(3))
    assert model.output_shape((1, length)) == (3,)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 8), (3, 9, 70), (3, 32, 32), (3, 64, 64)])
def test_image_networks_fit_every_size(shape):
    assert nn.Sequential(*training.layers_for("image", shape), nn.Linear(3)).output_shape(shape) == (3,)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 9, 70), (1, 8, 16, 16), (3, 16, 32, 32)])
def test_video_networks_fit_every_size(shape):
    assert nn.Sequential(*training.layers_for("video", shape), nn.Linear(3)).output_shape(shape) == (3,)


@pytest.mark.parametrize(
    ("kind", "shape", "rate", "most"), [("sound", (1, 8000), 8000, 70_000), ("image", (1, 8, 8), None, 30_000)]
)
def test_default_networks_are_small(kind, shape, rate, most):
    model = nn.Sequential(*training.layers_for(kind, shape, rate), nn.Linear(10)).build(shape)
    assert sum(array.size for array in model.parameters.values()) < most


# --- shifts


@pytest.mark.parametrize("mode", ["edge", "constant"])
def test_shifts_reach_every_place_and_no_more(mode):
    x = np.zeros((400, 2, 8, 16), "float32")
    x[:, :, 4, 8] = 1
    moved = training.Shift(0.125, mode)(x, np.random.default_rng(0))
    assert moved.shape == x.shape
    assert (moved.sum(axis=(2, 3)) == 1).all()
    places = {tuple(np.argwhere(sample[0])[0]) for sample in moved}
    assert places == {(row, column) for row in (3, 4, 5) for column in (6, 7, 8, 9, 10)}
    np.testing.assert_array_equal(moved[:, 0], moved[:, 1])


def test_what_comes_in_at_the_border():
    x = np.arange(1.0, 9.0)[None, None]
    rng = np.random.default_rng(0)
    ends = {mode: {training.Shift(0.125, mode)(x, rng)[0, 0, 0] for _ in range(30)} for mode in ("edge", "constant")}
    assert ends == {"edge": {1.0, 2.0}, "constant": {0.0, 1.0, 2.0}}
    assert training.Shift(0.0)(x, rng) is x
    with pytest.raises(nc.ProblemError, match=r"shift=1: it is a part of each axis"):
        training.Shift(1)


# --- reports


def test_many_classes_are_told_by_what_was_confused():
    confusion = np.diag(np.full(30, 9))
    confusion[3, 7], confusion[5, 6] = 4, 2
    text = training.draw_confusion(confusion, [f"c{i}" for i in range(30)])
    assert text.splitlines()[1:] == ["     4 of 13 c3 for c7", "     2 of 11 c5 for c6"]
    assert training.draw_confusion(np.diag(np.full(30, 9)), [""] * 30) == "nothing was confused"


def test_a_class_that_was_not_tested_has_no_rate():
    text = training.draw_confusion(np.array([[0, 0], [1, 3]]), ("a class of a very long name", "b"))
    assert re.search(r"a class of ~ \| +\. +\. +-$", text, re.MULTILINE)
    assert text.endswith("75.0%")


def test_missing_matplotlib_is_said_before_the_training(tmp_path, tones, capsys, monkeypatch):
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda name: None)
    code, out, err = run(capsys, tones, "--out", tmp_path / "out")
    assert (code, out) == (1, "")
    assert 'pip install "numconv-nd[plot]"' in err


def test_the_examples_of_the_documentation():
    text = (ROOT / "docs" / "train.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```\n\nIt prints:\n\n```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == text.count("```python") > 0
    for code, said in blocks:
        done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, said), done.stderr
