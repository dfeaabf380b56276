"""`numconv demo`: what it prints and writes."""

import contextlib
import io
import re
from importlib import resources

import numpy as np
import pytest

import numconv as nc
from numconv.cli import main
from numconv.demo import missing_packages

pytestmark = pytest.mark.skipif(bool(missing_packages()), reason=f"needs {', '.join(missing_packages())}")

PICTURES = ("waveforms.png", "filters.png", "feature_maps.png", "learned_filter.png", "digits.png", "motion.png")


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """The folder of one short tour, and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
        code = main(["demo", "--quick", "--out", str(folder), "--threads", "1"])
    assert code == 0
    return folder, out.getvalue()


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_show_something(tour, name):
    from PIL import Image

    with Image.open(tour[0] / name) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[0] > 400
    assert pixels.shape[1] > 1000
    assert len(np.unique(pixels[::4, ::4].reshape(-1, 3), axis=0)) > 50
    assert 0.01 < (pixels.min(axis=2) < 250).mean() < 0.99


def test_sounds_are_audible_and_differ(tour):
    import soundfile

    names = ["", "-moving-average", "-difference", "-band-pass"]
    waves = [soundfile.read(tour[0] / f"voice-italian{name}.wav") for name in names]
    for wave, rate in waves:
        assert (rate, wave.shape) == (8000, (8000,))
        assert np.abs(wave).max() == pytest.approx(np.abs(waves[0][0]).max(), abs=1e-3)
    assert all(np.abs(wave - waves[0][0]).max() > 0.1 for wave, _ in waves[1:])


def test_every_file_is_listed(tour):
    folder, text = tour
    listed = re.findall(r"[\w-]+\.(?:png|wav)", text.partition("Files in")[2])
    assert sorted(listed) == sorted(path.name for path in folder.iterdir())


def test_energy_goes_where_the_filters_send_it(tour):
    kept = {
        name: [float(share) / 100 for share in re.findall(r"([\d.]+)%", line)]
        for name, line in re.findall(r"^  (moving average|difference|band-pass) (.*%)$", tour[1], re.MULTILINE)
    }
    assert kept["moving average"] == sorted(kept["moving average"], reverse=True)
    assert kept["difference"] == sorted(kept["difference"])
    assert kept["band-pass"][2] > 0.9
    assert max(kept["band-pass"][:2] + kept["band-pass"][3:]) < 0.05


def test_kernel_is_learned(tour):
    assert float(re.search(r"relative error of the learned kernel: (\S+)", tour[1]).group(1)) < 1e-3


def test_gradient_is_the_sum_over_positions(tour):
    by_hand, by_call = re.search(r"positions: ([\d,]+);\s+conv_weight_grad gives ([\d,]+)\.", tour[1]).groups()
    assert by_hand == by_call
    assert "Equal to the last bit: 45 of 45 weights" in tour[1]


def test_motion_filters_tell_directions_apart(tour):
    right, left = map(int, re.search(r"finds (\d+) times as much.*?left (\d+) times", tour[1], re.DOTALL).groups())
    assert right > 5
    assert left > 5


def test_shift_is_exact_and_turn_is_not(tour):
    shifted, turned = re.findall(r"in ([\d,]+) of ([\d,]+) numbers", tour[1])
    assert shifted[0] == shifted[1]
    assert turned[0] != turned[1]


def test_every_call_names_its_backend(tour):
    rows = tour[1].partition("All calls")[2].partition("Files in")[0].splitlines()[3:-1]
    names = "|".join(row.name for row in nc.backends())
    assert len(rows) == 13
    assert all(re.fullmatch(rf".{{26}}({names}) +\w+ +[\d.]+ +[\d.]+  (conv|pool) .*", row) for row in rows)


def test_voices_come_with_their_notice():
    folder = resources.files("numconv.demo") / "voices"
    notice = (folder / "NOTICE").read_text(encoding="utf-8")
    voices = [path.name for path in folder.iterdir() if path.name.endswith(".flac")]
    assert len(voices) == 3
    assert all(name in notice for name in voices)
    assert all(text in notice for text in ("CC-BY-SA 3.0", "Allison Smith", "June Wallack", "Carlo Flora", "asterisk-core-sounds"))
    assert all((folder / name).read_bytes()[:4] == b"fLaC" for name in voices)


def test_motion_filters_hold_a_moving_wave():
    from numconv.demo.video import motion_filters, pan

    w = motion_filters(2)
    assert w.shape == (4, 3, 5, 5, 9)
    np.testing.assert_allclose(w.sum(axis=(1, 2, 3, 4)), 0, atol=1e-6)
    np.testing.assert_allclose(w[2], w[0][..., ::-1], atol=1e-6)
    video = pan(np.arange(2 * 40)[None, None, :].reshape(1, 2, 40), 2, frames=3, height=2, width=20)
    np.testing.assert_array_equal(video[:, 1, :, 2:], video[:, 0, :, :-2])
