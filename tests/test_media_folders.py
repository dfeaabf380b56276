"""Folders of labelled files: what is found, left out, split, and made into batches."""

from __future__ import annotations

import numpy as np
import pytest

from numconv import media

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("PIL.Image")
pytest.importorskip("av")

LENGTHS = {"high": (400, 500, 600), "low": (500, 700)}


@pytest.fixture
def folder(tmp_path):
    """Five sounds in two classes, each constant at a level of its own."""
    level = 0
    for name, lengths in LENGTHS.items():
        for length in lengths:
            level += 1
            media.write_sound(tmp_path / name / f"{level}.wav", np.full((1, length), level / 8), 1000)
    return tmp_path


def names(files):
    return [path.name for path in files.paths]


def test_subfolders_are_the_classes(folder):
    files = media.list_folder(folder)
    assert (files.kind, files.classes) == ("sound", ("high", "low"))
    assert (names(files), files.labels) == (["1.wav", "2.wav", "3.wav", "4.wav", "5.wav"], (0, 0, 0, 1, 1))
    assert (len(files), files.skipped) == (5, ())


def test_what_does_not_belong_is_left_out_and_told(folder):
    before = media.list_folder(folder)
    for name in (
        "README.md",
        ".hidden.wav",
        "high/notes.txt",
        "low/cover.png",
        "low/.DS_Store",
        ".cache/a.wav",
        "__MACOSX/low/._4.wav",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text")
    (folder / "empty").mkdir()
    files = media.list_folder(folder)
    assert (files.paths, files.labels, files.classes) == (before.paths, before.labels, before.classes)
    told = {str(each.path.relative_to(folder)): each.reason for each in files.skipped}
    assert not any(each.unreadable for each in files.skipped)
    assert told == {
        "README.md": "outside the classes",
        "empty": "no sound files in it",
        "high/notes.txt": "no sound file",
        "low/cover.png": "no sound file",
    }


def test_folders_inside_a_class_belong_to_it(folder):
    media.write_sound(folder / "low/more/6.WAV", np.zeros((1, 10)), 1000)
    assert names(media.list_folder(folder))[3:] == ["4.wav", "5.wav", "6.WAV"]


def test_classes_may_be_given(folder):
    files = media.list_folder(folder, classes=("low", "middle", "high"))
    assert (files.classes, files.labels) == (("low", "middle", "high"), (0, 0, 2, 2, 2))
    with pytest.raises(media.MediaError, match=r"has the classes low, which are not among high, middle: rename or remove"):
        media.list_folder(folder, classes=("high", "middle"))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ([], "no subfolder holds a file of a known kind: sound"),
        (["1.wav", "2.wav"], "no subfolder holds a file of a known kind"),
        (["a/1.txt"], "no subfolder holds a file of a known kind"),
        (["train/a/1.wav", "test/a/1.wav"], r"subfolders test, train, which look like parts of a data set.*Give .*test"),
    ],
)
def test_folders_without_classes(tmp_path, layout, message):
    for name in layout:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    with pytest.raises(media.MediaError, match=message):
        media.list_folder(tmp_path)


def test_folders_that_are_none(folder):
    with pytest.raises(NotADirectoryError, match="absent is not a folder: give one whose subfolders are the classes"):
        media.list_folder(folder / "absent")
    with pytest.raises(media.MediaError, match="kind='smell' is asked for: it is one of sound, image, video"):
        media.list_folder(folder, kind="smell")
    with pytest.raises(media.MediaError, match="no subfolder holds image files"):
        media.list_folder(folder, kind="image")


@pytest.mark.parametrize(("moving", "kind"), [(False, "image"), (True, "video")])
def test_gifs_that_do_not_move_are_images(tmp_path, moving, kind):
    x = np.zeros((1, 1 + moving, 8, 8))
    x[:, 1:] = 1
    for name in "ab":
        for i in range(3):
            media.write_video(tmp_path / name / f"{i}.gif", x, 10)
    files = media.list_folder(tmp_path)
    assert files.kind == kind
    form, _ = media.common_form(files)
    assert form.shape == ((1, 2, 8, 8) if moving else (1, 8, 8))


# --- splits


@pytest.mark.parametrize(("fraction", "expected"), [(0.01, (1, 1, 0)), (0.25, (25, 2, 0)), (0.99, (99, 7, 0))])
def test_every_class_is_split(fraction, expected):
    labels = np.repeat([0, 1, 2], [100, 8, 1])
    train, held_out = media.stratified_split(labels, fraction, rng=0)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held_out])), np.arange(109))
    assert tuple(np.bincount(labels[held_out], minlength=3)) == expected


def test_splits_are_random_and_repeatable():
    labels = [0] * 50
    first, second, other = (media.stratified_split(labels, 0.5, rng=seed)[1].tolist() for seed in (0, 0, 1))
    assert first == second != other
    with pytest.raises(media.MediaError, match="fraction=1 of each class"):
        media.stratified_split(labels, 1, rng=0)


def test_files_are_split(folder):
    train, held_out = media.list_folder(folder).split(0.4, rng=0)
    assert sorted(names(train) + names(held_out)) == ["1.wav", "2.wav", "3.wav", "4.wav", "5.wav"]
    assert sorted(held_out.labels) == [0, 1]
    assert train.classes == held_out.classes == ("high", "low")


# --- forms


def test_common_form_of_sounds(folder):
    files = media.list_folder(folder)
    assert media.common_form(files) == (media.SoundForm(1000, 700), files)
    assert media.common_form(files, max_seconds=0.5, max_rate=500)[0] == media.SoundForm(500, 250)
    with pytest.raises(media.MediaError, match=r"max_seconds=0 leaves nothing of a file: it must be above 0"):
        media.common_form(files, max_seconds=0)


def test_common_form_of_images(tmp_path):
    for i, size in enumerate([(30, 60), (30, 60), (10, 10)]):
        media.write_image(tmp_path / "a" / f"{i}.png", np.zeros((3 if i else 1, *size)))
    files = media.list_folder(tmp_path)
    assert media.common_form(files)[0] == media.ImageForm(30, 60, 3)
    assert media.common_form(files, max_side=20)[0] == media.ImageForm(10, 20, 3)
    x, _ = media.Dataset(files, media.ImageForm(10, 20, 3)).arrays()
    assert (x.shape, x.dtype) == ((3, 3, 10, 20), np.float32)


def test_common_form_of_videos_counts_frames_that_no_header_tells(tmp_path):
    for i, frames in enumerate((5, 6, 7)):
        media.write_video(tmp_path / "a" / f"{i}.mkv", np.zeros((3, frames, 16, 24)), 25)
    form, files = media.common_form(media.list_folder(tmp_path))
    assert form == media.VideoForm(6, 16, 24, 3)
    assert media.Dataset(files, form).arrays()[0].shape == (3, 3, 6, 16, 24)


def test_files_whose_header_cannot_be_read_are_left_out(folder):
    (folder / "high" / "0.wav").write_bytes(b"")
    _, files = media.common_form(media.list_folder(folder))
    assert names(files) == ["1.wav", "2.wav", "3.wav", "4.wav", "5.wav"]
    assert files.labels == (0, 0, 0, 1, 1)
    assert [(each.path.name, "is empty (0 bytes)" in each.reason) for each in files.skipped] == [("0.wav", True)]
    for path in files.paths:
        path.write_bytes(b"text" * 100)
    with pytest.raises(media.MediaError, match=r"none of 6 files can be read: .*0\.wav is empty"):
        media.common_form(media.list_folder(folder))


@pytest.mark.parametrize("ndim", [0, 2])
def test_fit_length(rng, ndim):
    x = rng.standard_normal((2, 9) + (3,) * ndim)
    np.testing.assert_array_equal(media.fit_length(x, 5), x[:, 2:7])
    np.testing.assert_array_equal(media.fit_length(x, 9), x)
    padded = media.fit_length(x, 12)
    np.testing.assert_array_equal(padded[:, 1:10], x)
    assert not padded[:, [0, 10, 11]].any()
    np.testing.assert_array_equal(media.fit_length(x, 12, mode="edge")[:, [0, 11]], x[:, [0, 8]])


def test_fit_length_at_random_reaches_every_place():
    rng = np.random.default_rng(0)
    x = np.arange(1, 6)[None]
    assert {int(media.fit_length(x, 3, rng=rng)[0, 0]) for _ in range(50)} == {1, 2, 3}
    assert {int(media.fit_length(x, 7, rng=rng).argmax()) for _ in range(50)} == {4, 5, 6}


# --- batches


def test_batches_in_order(folder):
    data = media.Dataset(media.list_folder(folder), media.SoundForm(1000, 550))
    assert (len(data), data.shape, data.labels.dtype) == (5, (1, 550), np.int64)
    batches = list(data.batches(2))
    assert [x.shape for x, _ in batches] == [(2, 1, 550), (2, 1, 550), (1, 1, 550)]
    assert np.concatenate([labels for _, labels in batches]).tolist() == [0, 0, 0, 1, 1]
    x, labels = data.arrays()
    np.testing.assert_array_equal(x, np.concatenate([x for x, _ in batches]))
    np.testing.assert_array_equal(labels, data.labels)
    np.testing.assert_array_equal(x[:, 0].max(axis=1) * 8, [1, 2, 3, 4, 5])
    assert np.count_nonzero(x[0]) == 400, "shorter ones lie in silence"
    with pytest.raises(media.MediaError, match="batch_size=0"):
        next(data.batches(0))


def test_shuffled_batches_hold_each_file_once_with_its_label(folder):
    data = media.Dataset(media.list_folder(folder), media.SoundForm(1000, 300))
    first, second, other = (list(data.batches(3, np.random.default_rng(seed))) for seed in (0, 0, 1))
    for (x, labels), (same_x, same_labels) in zip(first, second, strict=True):
        np.testing.assert_array_equal(x, same_x)
        np.testing.assert_array_equal(labels, same_labels)
    order = np.concatenate([x[:, 0, 0] for x, _ in first]) * 8
    assert sorted(order) == [1, 2, 3, 4, 5]
    assert np.concatenate([labels for _, labels in first]).tolist() == [int(level > 3) for level in order]
    assert order.tolist() != (np.concatenate([x[:, 0, 0] for x, _ in other]) * 8).tolist()


@pytest.mark.parametrize(("memory", "reads"), [(1 << 20, 5), (0, 15), (400 * 4 + 500 * 4, 11)])
def test_files_are_kept_as_far_as_memory_allows(folder, monkeypatch, memory, reads):
    data = media.Dataset(media.list_folder(folder), media.SoundForm(1000, 300), memory=memory)
    expected = media.Dataset(media.list_folder(folder), media.SoundForm(1000, 300)).arrays()[0]
    count = []
    load = media.SoundForm.load
    monkeypatch.setattr(media.SoundForm, "load", lambda form, path: (count.append(path), load(form, path))[1])
    for _ in range(3):
        np.testing.assert_array_equal(data.arrays()[0], expected)
    assert len(count) == reads


def test_check_leaves_out_what_cannot_be_read(folder):
    soundfile.write(folder / "high" / "2.wav", np.full(500, np.nan), 1000, subtype="FLOAT")
    data = media.Dataset(media.list_folder(folder), media.SoundForm(1000, 300))
    with pytest.raises(media.MediaError, match=r"2\.wav holds 500 samples that are NaN"):
        data.arrays()
    calls = []
    checked = data.check(lambda: calls.append(1))
    assert (len(calls), len(checked), checked.labels.tolist()) == (5, 4, [0, 0, 1, 1])
    assert [(each.path.name, each.unreadable) for each in checked.files.skipped] == [("2.wav", True)]
    np.testing.assert_array_equal(checked.arrays()[0][:, 0, 0] * 8, [1, 3, 4, 5])
