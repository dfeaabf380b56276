"""`fit`, `evaluate`, `predict`: what is learned, the same bits each time, resuming after a kill, errors."""

from __future__ import annotations

import copy
import math
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import safetensors
from sklearn import datasets, model_selection

import numconv as nc
from numconv import nn
from numconv.nn.optimisers import clip_norm

BLOBS = np.random.default_rng(5)
LABELS = BLOBS.integers(3, size=90)
# Three patterns anywhere in a noisy signal.
X = BLOBS.standard_normal((90, 1, 16), dtype="float32") * np.float32(0.3)
for sample, (label, start) in enumerate(zip(LABELS, BLOBS.integers(12, size=90), strict=True)):
    X[sample, 0, start : start + 4] += np.array([[1, 1, 1, 1], [1, -1, 1, -1], [2, 0, 0, -2]], "float32")[label]


def network():
    return nn.Sequential(nn.Conv(8, 4), nn.BatchNorm(), nn.ReLU(), nn.GlobalMaxPool(), nn.Dropout(0.1), nn.Linear(3)).build(
        (1, 16), rng=1
    )


def noisy(x, rng):
    return x + rng.standard_normal(x.shape, dtype="float32") * np.float32(0.1)


def bits(model):
    return {name: array.tobytes() for name, array in (model.parameters | model.state).items()}


def fit(model, **options):
    settings = {"epochs": 4, "batch_size": 16, "optimiser": nn.AdamW(0.03), "progress": False}
    return nn.fit(model, (X, LABELS), **settings | options)


def test_it_learns_and_tells(backend, capsys):
    with nc.using(backend=backend):
        model = network()
        history = fit(model, epochs=15, validation=(X[:20], LABELS[:20]), schedule=nn.cosine(0.1), progress=True)
        found = nn.evaluate(model, (X, LABELS), batch_size=32)
        scores = nn.predict(model, X, batch_size=40)
    assert found.accuracy > 0.95
    assert history.loss[-1] < 0.3 * history.loss[0]
    assert {len(column) for column in (history.loss, history.accuracy, history.validation_accuracy, history.seconds)} == {15}
    assert history.best is None
    assert found.confusion.sum(axis=1).tolist() == np.bincount(LABELS).tolist()
    assert found.confusion.trace() == round(found.accuracy * 90)
    right = scores.argmax(axis=1) == LABELS
    assert found.accuracy == right.mean()
    np.testing.assert_allclose(found.loss, nn.cross_entropy(scores, LABELS)[0], rtol=1e-5)
    first = nn.evaluate(model, (X[:20], LABELS[:20]))
    assert history.validation_accuracy[-1] == first.accuracy
    np.testing.assert_allclose(history.validation_loss[-1], first.loss, rtol=1e-5)
    told = capsys.readouterr().err
    assert "90/90" in told
    assert "validation accuracy" in told


def test_the_same_bits_for_the_same_seed():
    runs = []
    for seed in (3, 3, 4, np.random.default_rng(3), np.random.default_rng(3), None):
        model = network()
        history = fit(model, rng=seed, augment=noisy, clip=1.0)
        runs.append((bits(model), history.loss))
    assert runs[0] == runs[1]
    assert runs[3] == runs[4]
    assert len({run[1] for run in runs}) == 4


def test_the_same_bits_for_any_number_of_threads():
    code = f"""
        import sys
        sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
        import hashlib, test_nn_training as t
        model = t.network()
        history = t.fit(model, augment=t.noisy, validation=(t.X, t.LABELS))
        print(hashlib.sha256(repr((sorted(t.bits(model).items()), history.loss, history.validation_loss)).encode()).hexdigest())
    """
    said = set()
    for threads in ("1", "2"):
        variables = {"NUMCONV_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        said.add(run(code, variables))
    assert len(said) == 1


def run(code, variables=None):
    environment = os.environ | (variables or {})
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- going on after an end


OPTIONS = {"augment": noisy, "validation": (X[:30], LABELS[:30]), "patience": 3, "clip": 2.0, "rng": 11, "epochs": 5}


def test_going_on_after_a_kill_in_the_middle_of_an_epoch(tmp_path):
    """A process is killed by SIGKILL in its third epoch; another one goes on, to the bits of a training that never stopped."""
    path, reached = tmp_path / "training.safetensors", tmp_path / "reached"
    code = f"""
        import sys, time
        sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
        import test_nn_training as t
        from pathlib import Path
        calls = 0

        def noisy(x, rng):
            global calls
            calls += 1
            if calls == 16:  # six steps an epoch
                Path({str(reached)!r}).touch()
                time.sleep(600)
            return t.noisy(x, rng)

        noisy.__qualname__ = "noisy"
        t.fit(t.network(), **t.OPTIONS | dict(augment=noisy), checkpoint={str(path)!r}, checkpoint_every=2)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    try:
        for _ in range(6000):
            if reached.exists() or process.poll() is not None:
                break
            time.sleep(0.01)
        assert reached.exists(), "the training came to its third epoch"
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    whole, resumed = network(), network()
    for array in resumed.parameters.values():
        array[...] = 0  # nothing comes from the model that is given
    expected = fit(whole, **OPTIONS)
    steps = []
    history = fit(resumed, **OPTIONS | {"augment": Counting(steps)}, checkpoint=path, resume=True)
    assert bits(resumed) == bits(whole)
    assert [*history_of(history)] == [*history_of(expected)]
    assert len(steps) == 5 * 6 - 14, "from the checkpoint in the third epoch, not from its beginning"


class Counting:
    """`noisy`, with a list of its calls."""

    __qualname__ = "noisy"

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, x, rng):
        self.calls.append(1)
        return noisy(x, rng)


def history_of(history):
    """All but the seconds."""
    return (history.loss, history.accuracy, history.validation_loss, history.validation_accuracy, history.best)


class StopHere(Exception):
    pass


def stopped_after(count):
    calls = []

    def noisily(x, rng):
        if len(calls) == count:
            raise StopHere
        calls.append(1)
        return noisy(x, rng)

    noisily.__qualname__ = "noisy"
    return noisily


@pytest.mark.parametrize("optimiser", [nn.SGD(0.1), nn.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.01), nn.AdamW(0.02)])
@pytest.mark.parametrize("count", [0, 5, 6, 7, 23, 24])
def test_going_on_after_any_step(optimiser, count, tmp_path):
    path = tmp_path / "training.safetensors"
    options = {"augment": noisy, "optimiser": optimiser, "checkpoint": path, "schedule": nn.step(), "validation": (X, LABELS)}
    whole, first, second = network(), network(), network()
    expected = fit(whole, **options)
    path.unlink()
    if count < 24:
        with pytest.raises(StopHere):
            fit(first, **options | {"augment": stopped_after(count)}, resume=True, checkpoint_every=1)
    else:
        fit(first, **options, resume=True)
    history = fit(second, **options, resume=True)
    assert bits(second) == bits(whole)
    assert history_of(history) == history_of(expected)


def test_the_best_weights_come_back(tmp_path):
    """Labels of the training data are shuffled, so that the validation loss rises."""
    wrong = np.random.default_rng(0).permutation(LABELS)
    model, path = network(), tmp_path / "training.safetensors"
    options = {"epochs": 50, "validation": (X, LABELS), "patience": 3, "checkpoint": path, "optimiser": nn.AdamW(0.05)}
    history = nn.fit(model, (X, wrong), progress=False, **options)
    assert len(history.loss) < 50
    assert history.best == len(history.loss) - 4 == int(np.argmin(history.validation_loss))
    assert nn.evaluate(model, (X, LABELS)).loss == history.validation_loss[history.best]
    again = network()
    assert history_of(nn.fit(again, (X, wrong), progress=False, resume=True, **options)) == history_of(history)
    assert bits(again) == bits(model)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "training.safetensors"
    fit(network(), epochs=1, checkpoint=path)
    return path


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 8}, "checkpoint of another training: batch_size was 16 and is 8; give the same, or begin anew"),
        ({"optimiser": nn.AdamW(0.01)}, r"optimiser was AdamW\(rate=0.03.* and is AdamW\(rate=0.01"),
        ({"rng": 5}, "rng was 0 and is 5"),
        ({"augment": noisy}, "augment was None and is noisy"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(3)).build((1, 16))}, "the model was .*Conv.* and is .*Linear"),
        ({"train": (X[:80], LABELS[:80])}, "samples was 90 and is 80"),
        ({"model": network().to("float64"), "train": (X.astype("float64"), LABELS)}, "0.w is float32 .* in the file, and float64"),
    ],
)
def test_checkpoints_of_another_training(options, text, checkpoint):
    options = {"model": network(), "train": (X, LABELS), "epochs": 2, "batch_size": 16, "optimiser": nn.AdamW(0.03)} | options
    before = bits(options["model"])
    with pytest.raises(nc.NumconvError, match=text):
        nn.fit(**options, checkpoint=checkpoint, resume=True, progress=False)
    assert bits(options["model"]) == before


@pytest.mark.parametrize("kept", [0, 5, 100, 0.5, 0.99])
def test_truncated_files(kept, checkpoint, tmp_path):
    content = checkpoint.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(nn.FileError, match=r"cut\.safetensors is no whole safetensors file, perhaps truncated"):
        fit(network(), checkpoint=path, resume=True)


def test_files_of_others(checkpoint, tmp_path):
    import safetensors.numpy

    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"w": np.ones(3)}, path)
    with pytest.raises(nn.FileError, match=r"was not written by numconv\.nn"):
        nn.load(path)
    content = checkpoint.read_bytes()
    path.write_bytes(content.replace(b'format\\": 1', b'format\\": 7'))
    with pytest.raises(nn.FileError, match=f"has format 7, written by numconv {nc.__version__}, and numconv .* reads format 1"):
        fit(network(), checkpoint=path, resume=True)
    with pytest.raises(nn.FileError, match="holds a checkpoint, and a model is asked for"):
        nn.load(checkpoint)
    for metadata, text in (
        ("{", "metadata 'numconv.nn' is no JSON"),
        ('{"format": 1, "kind": "model"}', "say config, dtype, shape"),
    ):
        safetensors.numpy.save_file({"w": np.ones(3)}, path, {"numconv.nn": metadata})
        with pytest.raises(nn.FileError, match=text):
            nn.load(path)
    with pytest.raises(FileNotFoundError):
        nn.load(tmp_path / "nothing.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder, and a file is to be read"):
        nn.load(tmp_path)


def test_numbers_of_numpy_are_numbers(tmp_path):
    """As `labels.max() + 1` is one: what is built and trained with them can be written."""
    classes = LABELS.max() + 1
    two = np.int64(2)
    layers = [nn.Conv(np.int64(8), two, stride=two), nn.MaxPool(two), nn.ConvTranspose(4, two, stride=two)]
    layers += [nn.GroupLift(two, two, group="mirror"), nn.GlobalMaxPool(), nn.Dropout(np.float64(0.1)), nn.Linear(classes)]
    model = nn.Sequential(*layers).build((np.int64(1), 16))
    assert "ConvTranspose" in model.summary()
    path, options = tmp_path / "training.safetensors", {"batch_size": np.int64(16), "clip": np.float32(1), "rng": np.int64(3)}
    nn.fit(model, (X, LABELS), epochs=np.int64(1), checkpoint=path, progress=False, **options)
    history = nn.fit(model, (X, LABELS), epochs=2, checkpoint=path, resume=True, progress=False, **options)
    assert len(history.loss) == 2
    nn.save(model, tmp_path / "model.safetensors")
    assert nn.load(tmp_path / "model.safetensors").config == model.config


def test_a_loss_may_be_a_number_of_python():
    def loss(scores, labels):
        value, grad = nn.cross_entropy(scores, labels)
        return float(value), grad

    model, same = network(), network()
    assert fit(model, loss=loss).loss == fit(same).loss
    assert bits(model) == bits(same)
    assert nn.evaluate(model, (X, LABELS), loss=loss) is not None


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_models_in_files(dtype, tmp_path):
    model = network()
    nn.fit(model, (X, LABELS), epochs=1, progress=False)
    model = model.to(dtype)
    nn.save(model, tmp_path / "model.safetensors")
    again = nn.load(tmp_path / "model.safetensors")
    assert again.config == model.config
    assert bits(again) == bits(model)
    assert list(tmp_path.iterdir()) == [tmp_path / "model.safetensors"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
def test_a_copy_is_trained_by_itself(copied):
    model = network()
    fit(model, epochs=1)
    before = bits(model)
    again = copied(model)
    assert bits(again) == before
    fit(again, epochs=1)
    assert bits(model) == before
    fit(model, epochs=1)
    assert bits(again) == bits(model) != before


def test_a_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    nn.save(network(), path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        nn.save(nn.Sequential(nn.Linear(2)).build((3,)), path)
    assert path.read_bytes() == before
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder is a folder, and a file is to be written"):
        nn.save(network(), tmp_path / "folder")
    assert not (tmp_path / "folder.part").exists()


def test_a_checkpoint_that_cannot_be_written_is_told_before_the_first_step(tmp_path, monkeypatch):
    model = network()
    before = bits(model)
    for path, error, text in (
        (tmp_path / "none" / "training.safetensors", FileNotFoundError, "there is no folder .*none; make it first"),
        (tmp_path, IsADirectoryError, "is a folder, and a file is to be written"),
    ):
        with pytest.raises(error, match=text):
            fit(model, checkpoint=path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(nc.BackendUnavailableError, match=r"safetensors: pip install 'numconv-nd\[nn\]'"):
        fit(model, checkpoint=tmp_path / "training.safetensors")
    assert bits(model) == before


def test_without_tqdm(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    fit(network(), epochs=1, progress=True)
    assert capsys.readouterr().err == ""


# --- data, errors


class Windows:
    """Batches of one's own, which draw more from the generator while they go."""

    def __len__(self):
        return len(X)

    def batches(self, batch_size, rng=None):
        order = np.arange(len(X)) if rng is None else rng.permutation(len(X))
        for start in range(0, len(X), batch_size):
            chosen = order[start : start + batch_size]
            x = X[chosen]
            yield (x if rng is None else x + np.float32(rng.standard_normal())), LABELS[chosen]


def test_batches_of_ones_own(tmp_path):
    whole, first, second = network(), network(), network()
    options = {"epochs": 3, "batch_size": 16, "augment": noisy, "validation": Windows(), "progress": False}
    nn.fit(whole, Windows(), **options)
    options["checkpoint"] = tmp_path / "training.safetensors"
    with pytest.raises(StopHere):
        nn.fit(first, Windows(), **options | {"augment": stopped_after(9)}, checkpoint_every=2)
    nn.fit(second, Windows(), **options, resume=True)
    assert bits(second) == bits(whole)
    assert nn.evaluate(whole, Windows()).loss == nn.evaluate(whole, (X, LABELS)).loss


def test_regression():
    """A filter is learned back from what it did."""
    true = np.array([[[0.5, -1.0, 0.25]]])
    x = np.random.default_rng(0).standard_normal((64, 1, 20))
    y = nc.conv(x, true, padding="same")
    model = nn.Sequential(nn.Conv(1, 3, padding="same")).build((1, 20), dtype="float64")
    options = {"loss": nn.mean_squared_error, "optimiser": nn.SGD(0.2, momentum=0.9), "validation": (x, y), "progress": False}
    history = nn.fit(model, (x, y), epochs=100, **options)
    np.testing.assert_allclose(model.parameters["0.w"], true, atol=1e-4)
    assert history.accuracy[-1] is None
    found = nn.evaluate(model, (x, y), loss=nn.mean_squared_error)
    assert found.accuracy is None
    assert found.confusion is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"train": (X, LABELS[:50])}, "x has 90 samples and targets have 50"),
        ({"train": (X[:0], LABELS[:0])}, "one at least"),
        ({"train": X}, r"train must be \(x, targets\)"),
        ({"train": (X.tolist(), LABELS)}, "x of type list is no array"),
        ({"train": (X[:, 0], LABELS)}, r"train: x of shape \(90, 16\) has no batch axis: .* samples of shape \(1, 16\)"),
        ({"train": (X.astype("float64"), LABELS)}, r"x of dtype float64 and the model is float32; x.astype\('float32'\)"),
        ({"validation": (X.astype("float64"), LABELS)}, "validation has x of dtype float64"),
        ({"train": (X, LABELS + 1)}, r"labels range from 1 to 3, and scores \(16, 3\) have classes 0 to 2"),
        ({"train": (X, LABELS * 1.0)}, "labels have dtype float64, and must be integers"),
        ({"train": (X, LABELS[:, None])}, r"labels must be \(16,\), and are \(16, 1\)"),
        ({"loss": nn.mean_squared_error}, r"y has shape \(16, 3\) and target \(16,\)"),
        ({"epochs": 0}, "epochs=0 must be an integer of at least 1"),
        ({"batch_size": 2.5}, "batch_size=2.5 must be an integer"),
        ({"clip": 0}, "clip=0 must be above 0"),
        ({"patience": 2}, "patience watches the validation loss"),
        ({"checkpoint_every": 2}, "checkpoint_every needs a file"),
        ({"resume": True}, "give checkpoint=path"),
        ({"loss": "mse"}, "loss='mse' must be a function, such as nn.cross_entropy"),
        ({"schedule": 0.5}, r"schedule=0.5 must be a function, such as nn.cosine\(\)"),
        ({"schedule": nn.cosine}, r"schedule=nn.cosine makes schedules; call it: nn.cosine\(\)"),
        ({"rng": "seed"}, "rng='seed' must be an integer of at least 0"),
        ({"rng": -1}, "rng=-1 must be an integer of at least 0"),
        ({"model": noisy}, r"model=<function noisy at .*> is no layer"),
        ({"optimiser": "adam"}, r"optimiser='adam' must be an optimiser, such as nn.AdamW\(3e-3\)"),
        ({"optimiser": nn.SGD}, "must be an optimiser, such as"),
        ({"model": nn.Sequential(nn.Linear(3))}, "the model has no parameters; call model.build"),
        ({"model": nn.Sequential(nn.Linear(3)).build((2,), dtype="float16")}, "float16 are too coarse"),
    ],
)
def test_errors(options, text):
    options = {"model": network(), "train": (X, LABELS), "epochs": 1, "batch_size": 16} | options
    with pytest.raises(nc.ProblemError, match=text):
        nn.fit(**options, progress=False)


def test_a_loss_that_is_not_finite_stops(tmp_path):
    x = X.copy()
    x[7, 0, 3] = np.nan
    path = tmp_path / "training.safetensors"
    with pytest.raises(nc.NumconvError, match="the loss of epoch 1 is nan; lower the rate, give clip="):
        nn.fit(network(), (x, LABELS), epochs=2, checkpoint=path, progress=False)
    assert not path.exists()


def test_a_checkpoint_holds_no_weights_that_are_not_finite(tmp_path):
    path = tmp_path / "training.safetensors"
    options = {"checkpoint": path, "checkpoint_every": 1, "epochs": 1}
    with np.errstate(all="ignore"), pytest.raises(nc.NumconvError, match="step 4 of epoch 1 left weights that are not finite"):
        fit(network(), schedule=lambda step, steps: 1e60 if step == 3 else 1.0, **options)
    with safetensors.safe_open(path, framework="numpy") as file:
        assert all(np.isfinite(file.get_tensor(name)).all() for name in file.keys())  # noqa: SIM118 - no mapping


@pytest.mark.slow
def test_digits():
    """The network of docs/nn.md, on five splits."""
    digits = datasets.load_digits()
    x = (digits.images[:, None] / 16).astype("float32")
    found = []
    for seed in range(5):
        a, b, a_labels, b_labels = model_selection.train_test_split(
            x, digits.target, test_size=1 / 3, random_state=seed, stratify=digits.target
        )
        model = nn.Sequential(
            nn.Conv(16, 3, padding="same"), nn.ReLU(), nn.Conv(32, 3, padding="same"), nn.ReLU(), nn.MaxPool(2),
            nn.Conv(32, 3, padding="same"), nn.ReLU(), nn.MaxPool(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(10),
        ).build((1, 8, 8), rng=seed)  # fmt: skip
        options = {"optimiser": nn.AdamW(3e-3), "schedule": nn.cosine(warmup=0.1), "rng": seed, "progress": False}
        nn.fit(model, (a, a_labels), epochs=30, **options)
        found.append(nn.evaluate(model, (b, b_labels)).accuracy)
    assert sum(array.size for array in model.parameters.values()) < 30_000
    assert np.mean(found) >= 0.985


def test_predict_nothing():
    with pytest.raises(nc.ProblemError, match="holds no sample"):
        nn.predict(network(), X[:0])


# --- optimisers, schedules


def steps_of(optimiser, gradients, decays=1.0, factor=1.0):
    w = np.array([1.0, -2.0])
    state = optimiser.start(w)
    for step, grad in enumerate(gradients):
        optimiser.update(w, grad.copy(), state, step=step, factor=factor, decays=np.full(2, decays))
    return w


GRADIENTS = np.array([[0.5, -1.0], [0.25, 2.0], [-1.0, 0.125]])


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum(nesterov):
    w, velocity = np.array([1.0, -2.0]), 0
    for grad in GRADIENTS:
        velocity = 0.5 * velocity + grad
        w = w - 0.1 * 0.01 * w - 0.1 * (grad + 0.5 * velocity if nesterov else velocity)
    np.testing.assert_allclose(steps_of(nn.SGD(0.1, 0.5, nesterov, weight_decay=0.01), GRADIENTS), w, rtol=1e-14)
    np.testing.assert_allclose(steps_of(nn.SGD(0.1), GRADIENTS), [1.0, -2.0] - 0.1 * GRADIENTS.sum(axis=0), rtol=1e-14)


@pytest.mark.parametrize("decays", [0.0, 1.0])
def test_adamw(decays):
    """The paper's algorithm 2, line by line."""
    w, m, v = np.array([1.0, -2.0]), 0, 0
    for t, grad in enumerate(GRADIENTS, start=1):
        m = 0.8 * m + 0.2 * grad
        v = 0.9 * v + 0.1 * grad**2
        w = w - 0.5 * (0.1 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8) + 0.1 * 0.2 * decays * w)
    found = steps_of(nn.AdamW(0.1, betas=(0.8, 0.9), weight_decay=0.2), GRADIENTS, decays, factor=0.5)
    np.testing.assert_allclose(found, w, rtol=1e-12)


def test_biases_do_not_decay():
    model = nn.Sequential(nn.Linear(2)).build((3,), dtype="float64")
    model.parameters["0.bias"][...] = 1
    w = model.parameters["0.w"].copy()
    optimiser = nn.SGD(0.1, weight_decay=0.5)
    nn.fit(
        model,
        (np.zeros((4, 3)), np.ones((4, 2))),
        epochs=1,
        batch_size=4,
        loss=nn.mean_squared_error,
        optimiser=optimiser,
        progress=False,
    )
    np.testing.assert_array_equal(model.parameters["0.bias"], 1)
    np.testing.assert_allclose(model.parameters["0.w"], 0.95 * w, rtol=1e-14)


def test_clipping():
    grad = np.array([3.0, -4.0])
    clip_norm(grad, 10.0)
    np.testing.assert_array_equal(grad, [3, -4])
    clip_norm(grad, 1.0)
    np.testing.assert_allclose(grad, [0.6, -0.8], rtol=1e-15)
    zero = np.zeros(2)
    clip_norm(zero, 1.0)
    np.testing.assert_array_equal(zero, 0)


def test_schedules():
    assert [nn.constant()(step, 10) for step in range(10)] == [1.0] * 10
    assert [nn.constant(warmup=0.4)(step, 10) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    cosine = nn.cosine(warmup=0.2, last=0.5)
    values = [cosine(step, 10) for step in range(10)]
    assert values[:3] == [0.5, 1.0, 1.0]
    np.testing.assert_allclose(values[2:], [0.75 + 0.25 * math.cos(math.pi * turn / 8) for turn in range(8)])
    step = nn.step(at=(0.3, 0.5), factor=0.5)
    assert [step(i, 10) for i in range(10)] == [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: nn.AdamW(-1.0), "AdamW: rate=-1.0 is out of range"),
        (lambda: nn.AdamW(math.inf), "AdamW: rate=inf"),
        (lambda: nn.AdamW(betas=(0.9, 1.0)), r"betas\[1\]=1.0"),
        (lambda: nn.AdamW(betas=(0.9,)), r"betas=\(0.9,\) must be two numbers"),
        (lambda: nn.SGD(math.inf), "SGD: rate=inf"),
        (lambda: nn.SGD(0.1, momentum=1.0), "SGD: momentum=1.0"),
        (lambda: nn.cosine(warmup=5), "cosine: warmup=5 must lie between 0 and 1"),
        (lambda: nn.step(at=(10,)), r"step: at\[0\]=10 must lie"),
        (lambda: nn.constant(warmup=-1), "constant: warmup=-1"),
    ],
)
def test_settings_out_of_range(make, text):
    with pytest.raises(nc.ProblemError, match=text):
        make()
