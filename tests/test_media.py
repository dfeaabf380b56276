"""Files of sound, images and video: what comes back, and what is refused."""

from __future__ import annotations

import pathlib
import re
import struct
import subprocess
import sys
import wave
import zlib

import numpy as np
import pytest

from numconv import NumconvError, media

soundfile = pytest.importorskip("soundfile")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("av")

READERS = {"sound": media.read_sound, "image": media.read_image, "video": media.read_video}
HEADERS = {"sound": media.sound_header, "image": media.image_header, "video": media.video_header}


@pytest.fixture
def sound(rng):
    """On the steps of 16 bits, so that it comes back exactly."""
    return rng.integers(-(2**15), 2**15, (2, 3001)).astype("float32") / 2**15


@pytest.fixture
def picture(rng):
    return rng.integers(0, 256, (3, 13, 17), dtype="uint8")


def clip(frames=12, height=24, width=32):
    """A colour video, smooth enough for a codec: a bright band that moves."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    band = np.exp(-(((x - 2 * t - 4) / 5.0) ** 2))
    return np.stack([band, 1 - band, y / height]).astype("float32")


def write_any(kind, path):
    if kind == "sound":
        media.write_sound(path, np.zeros((1, 4000)), 8000)
    elif kind == "image":
        media.write_image(path, np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype="uint8"))
    else:
        media.write_video(path, clip(), 25)
    return path


# --- sound


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
def test_sound_comes_back_exactly(tmp_path, sound, suffix):
    media.write_sound(tmp_path / f"a{suffix}", sound, 11_025)
    x, rate = media.read_sound(tmp_path / f"a{suffix}")
    assert (x.dtype, rate) == (np.float32, 11_025)
    np.testing.assert_array_equal(x, sound)
    assert media.sound_header(tmp_path / f"a{suffix}") == (2, 3001, 11_025)


def test_ogg_comes_back_nearly(tmp_path):
    tone = 0.5 * np.sin(np.arange(8000) * 0.3)[None]
    media.write_sound(tmp_path / "a.ogg", tone, 8000)
    assert np.abs(media.read_sound(tmp_path / "a.ogg").x - tone).max() < 0.05


def test_long_ogg(tmp_path):
    """libsndfile crashes where as much is written at once."""
    media.write_sound(tmp_path / "a.ogg", np.zeros((2, 4_800_000), "float32"), 48_000)
    assert media.sound_header(tmp_path / "a.ogg") == (2, 4_800_000, 48_000)


def test_loud_sound_is_clipped(tmp_path):
    media.write_sound(tmp_path / "a.wav", [[-3.0, 0.5, 3.0]], 8000)
    np.testing.assert_array_equal(media.read_sound(tmp_path / "a.wav").x, [[-1, 0.5, 1 - 2**-15]])


@pytest.mark.parametrize(("have", "want"), [(8000, 16_000), (44_100, 8000), (8000, 7999)])
def test_sound_is_resampled(tmp_path, have, want):
    """A tone keeps its frequency and its loudness, away from the ends."""
    seconds, hertz = 0.25, 440
    media.write_sound(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * have)) / have)[None], have)
    x, rate = media.read_sound(tmp_path / "a.wav", rate=want)
    expected = 0.5 * np.sin(2 * np.pi * hertz * np.arange(x.shape[1]) / want)
    inner = slice(want // 20, -want // 20)
    assert rate == want
    assert abs(x.shape[1] - seconds * want) <= 1
    assert x.dtype == np.float32
    assert np.abs(x[0] - expected)[inner].max() < 0.01


def test_sound_channels(tmp_path, sound):
    media.write_sound(tmp_path / "two.wav", sound, 8000)
    np.testing.assert_allclose(media.read_sound(tmp_path / "two.wav", channels=1).x[0], sound.mean(axis=0), atol=1e-7)
    media.write_sound(tmp_path / "one.wav", sound[:1], 8000)
    np.testing.assert_array_equal(media.read_sound(tmp_path / "one.wav", channels=3).x, sound[[0, 0, 0]])
    with pytest.raises(media.MediaError, match=r"two\.wav has 2 channels, and channels=3 is asked for"):
        media.read_sound(tmp_path / "two.wav", channels=3)


def test_a_wav_that_ends_early_is_truncated(tmp_path, sound):
    media.write_sound(tmp_path / "a.wav", sound, 8000)
    data = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(data[: len(data) // 2])
    with pytest.raises(media.MediaError, match=r"a\.wav is truncated: it ends after 1,\d\d\d samples"):
        media.read_sound(tmp_path / "a.wav")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "longdouble", ">f4"])
def test_floats_of_any_size_are_written(tmp_path, dtype):
    x = np.linspace(-1, 1, 9)[None].astype(dtype)
    media.write_sound(tmp_path / "a.wav", x, np.int64(8000))
    np.testing.assert_allclose(media.read_sound(tmp_path / "a.wav").x, x.astype("float64"), atol=2**-15)


@pytest.mark.parametrize("options", [{"rate": 4000.0}, {"rate": 0}, {"channels": 1.0}, {"channels": -1}])
def test_rates_and_channels_are_counts(tmp_path, options):
    path = write_any("sound", tmp_path / "a.wav")
    with pytest.raises(media.MediaError, match=r"is asked for: it must be an integer of at least 1, or None for that of the file"):
        media.read_sound(path, **options)


def test_long_sound_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    media.write_sound(tmp_path / "a.wav", np.zeros((1, 4000)), 1000)
    with monkeypatch.context() as patch:
        patch.setattr(soundfile.SoundFile, "read", None)
        with pytest.raises(media.MediaError, match=r"a\.wav lasts 4\.0 s, more than max_seconds=3.*raise max_seconds="):
            media.read_sound(tmp_path / "a.wav", max_seconds=3)
    assert media.read_sound(tmp_path / "a.wav", max_seconds=4).x.shape == (1, 4000)


def test_many_values_a_second_are_refused_too(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((16, 1, 4_000_000, 0, "NONE", ""))
        file.writeframes(bytes(16 * 8000))
    with pytest.raises(media.MediaError, match=r"holds 128,000 values in 16 channels at 4,000,000 Hz, more than max_seconds=0\.1"):
        media.read_sound(tmp_path / "a.wav", max_seconds=0.1)


def test_sound_that_is_not_finite_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([0, np.nan, np.inf]), 8000, subtype="FLOAT")
    with pytest.raises(media.MediaError, match="holds 2 samples that are NaN or infinite"):
        media.read_sound(tmp_path / "a.wav")
    with pytest.raises(media.MediaError, match="x has 1 values that are NaN or infinite"):
        media.write_sound(tmp_path / "b.wav", [[0, np.nan]], 8000)
    assert not (tmp_path / "b.wav").exists()


# --- images


def test_image_comes_back_exactly(tmp_path, picture):
    media.write_image(tmp_path / "a.png", picture)
    x = media.read_image(tmp_path / "a.png")
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    np.testing.assert_array_equal(x, picture.astype("float32") / np.float32(255))
    media.write_image(tmp_path / "b.png", x)
    np.testing.assert_array_equal(media.read_image(tmp_path / "b.png"), x)
    assert media.image_header(tmp_path / "a.png") == (3, 13, 17, 1)


def test_jpeg_comes_back_nearly(tmp_path):
    x = clip()[:, 3]
    media.write_image(tmp_path / "a.jpg", x)
    assert np.abs(media.read_image(tmp_path / "a.jpg") - x).mean() < 0.05


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_every_mode_becomes_every_number_of_channels(tmp_path, mode, channels):
    image = Image.new("L", (5, 4), 255)
    image = Image.fromarray(np.full((4, 5), 65535, "uint16")) if mode == "I;16" else image.convert(mode)
    image = Image.fromarray(np.ones((4, 5), "float32")) if mode == "F" else image
    path = tmp_path / ("a.tiff" if mode in {"CMYK", "F"} else "a.png")
    image.save(path)
    x = media.read_image(path, channels=channels)
    assert x.shape == (channels or media.image_header(path).channels, 4, 5)
    assert (x == 1).all(), "white stays white"


def test_transparent_pixels_lie_on_white(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (media.read_image(tmp_path / "a.png") == 1).all()
    np.testing.assert_array_equal(media.read_image(tmp_path / "a.png", channels=4)[:, 0, 0], [1, 0, 0, 0])


def test_a_grey_palette_is_grey(tmp_path, picture):
    Image.fromarray(picture[0]).save(tmp_path / "a.gif")
    assert media.image_header(tmp_path / "a.gif").channels == 1
    np.testing.assert_array_equal(media.read_image(tmp_path / "a.gif") * 255, picture[:1])


def test_image_is_turned_as_its_camera_says(tmp_path, picture):
    image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    exif = image.getexif()
    exif[0x0112] = 6  # held clockwise by a quarter turn
    image.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(media.read_image(tmp_path / "a.png") * 255, np.rot90(picture, -1, axes=(1, 2)))
    assert media.image_header(tmp_path / "a.png")[:3] == (3, 17, 13)


def test_size_and_fit(tmp_path):
    x = np.zeros((1, 20, 40), "float32")
    x[:, :, :20] = 1  # the left half is white
    media.write_image(tmp_path / "a.png", x)
    columns = {
        fit: media.read_image(tmp_path / "a.png", size=(10, 10), fit=fit)[0].mean(axis=0) for fit in ("pad", "crop", "stretch")
    }
    for column in columns.values():
        assert (column[:4] == 1).all()
        assert (column[6:] == 0).all()
    padded = media.read_image(tmp_path / "a.png", size=(10, 10))
    np.testing.assert_array_equal(padded[0, 0], padded[0, 5])
    assert media.read_image(tmp_path / "a.png", size=(7, 90), channels=3).shape == (3, 7, 90)
    with pytest.raises(media.MediaError, match="fit='shrink' is asked for: it is one of pad, crop, stretch"):
        media.read_image(tmp_path / "a.png", size=(7, 7), fit="shrink")
    with pytest.raises(media.MediaError, match=r"size=\(0, 7\) is asked for"):
        media.read_image(tmp_path / "a.png", size=(0, 7))
    with pytest.raises(media.MediaError, match="channels=2 is asked for"):
        media.read_image(tmp_path / "a.png", channels=2)


def png_header(width, height):
    """A PNG that promises a size and holds no pixels."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT")
    framed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize(
    ("side", "message"), [(9_000, r"9,000 x 9,000 = 81,000,000 pixels, more than max_pixels"), (30_000, "It is Pillow's own limit")]
)
def test_huge_images_are_refused_by_their_header(tmp_path, side, message):
    (tmp_path / "a.png").write_bytes(png_header(side, side))
    with pytest.raises(media.MediaError, match=message):
        media.read_image(tmp_path / "a.png")


def test_pixels_that_are_no_numbers_are_refused(tmp_path):
    Image.fromarray(np.array([[0.5, np.nan], [np.inf, -1]], "float32")).save(tmp_path / "a.tif")
    with pytest.raises(media.MediaError, match=r"a\.tif cannot be decoded as an image \(1 of its pixels are NaN\)"):
        media.read_image(tmp_path / "a.tif")
    Image.fromarray(np.array([[0.5, np.inf, -1]], "float32")).save(tmp_path / "b.tif")
    assert media.read_image(tmp_path / "b.tif").tolist() == [[[0.5, 1, 0]]]


@pytest.mark.parametrize("size", [3, (3,), (3.5, 3), (0, 3), (-1, 3), (3, 3, 3), "ab"])
def test_a_size_is_two_counts(tmp_path, picture, size):
    media.write_image(tmp_path / "a.png", picture)
    with pytest.raises(media.MediaError, match=r"size=.* is asked for: it is \(height, width\), two integers of at least 1"):
        media.read_image(tmp_path / "a.png", size=size)
    assert media.read_image(tmp_path / "a.png", size=np.array([3, 5])).shape == (3, 3, 5)


def test_max_pixels(tmp_path, picture):
    media.write_image(tmp_path / "a.png", picture)
    with pytest.raises(media.MediaError, match=r"17 x 13 = 221 pixels, more than max_pixels=220"):
        media.read_image(tmp_path / "a.png", max_pixels=220)
    assert media.read_image(tmp_path / "a.png", max_pixels=221).shape == picture.shape


# --- video


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".mov", ".gif"])
def test_video_comes_back_nearly(tmp_path, suffix):
    x = clip()
    media.write_video(tmp_path / f"a{suffix}", x, 12.5)
    y, rate = media.read_video(tmp_path / f"a{suffix}")
    assert (y.shape, y.dtype, rate) == (x.shape, np.float32, 12.5)
    assert np.abs(y - x).mean() < 0.03
    assert media.video_header(tmp_path / f"a{suffix}").frames in ((0,) if suffix == ".mkv" else (12,))


@pytest.mark.parametrize("size", [(23, 31), (24, 31)])
def test_video_of_odd_sides(tmp_path, size):
    x = clip(4, *size)
    media.write_video(tmp_path / "a.mp4", x, 25)
    assert np.abs(media.read_video(tmp_path / "a.mp4").x - x).mean() < 0.03


def test_grey_video(tmp_path):
    x = clip()[:1]
    media.write_video(tmp_path / "a.gif", x, 10)
    y = media.read_video(tmp_path / "a.gif").x
    assert y.shape == x.shape
    np.testing.assert_allclose(y, x, atol=0.5 / 255 + 1e-6)
    media.write_video(tmp_path / "a.mp4", x, 10)
    assert np.abs(media.read_video(tmp_path / "a.mp4", channels=1).x - x).mean() < 0.03


def test_a_gif_shows_still_frames_as_long_as_they_last(tmp_path):
    x = np.zeros((1, 6, 4, 4), "float32")
    x[:, 2:5] = 1
    media.write_video(tmp_path / "a.gif", x, 10)
    y, rate = media.read_video(tmp_path / "a.gif")
    np.testing.assert_array_equal(y[0, :, 0, 0], [0, 0, 1, 1, 1, 0])
    assert rate == 10


def test_video_is_resized_frame_by_frame(tmp_path):
    media.write_video(tmp_path / "a.mp4", clip(), 25)
    assert media.read_video(tmp_path / "a.mp4", size=(12, 12), fit="crop").x.shape == (3, 12, 12, 12)
    # 768 pixels a frame, 12 frames: together too many at full size, few enough at a quarter
    with pytest.raises(media.MediaError, match=r"12 frames or more of 32 x 24 = 768 pixels, and in all 10 such frames"):
        media.read_video(tmp_path / "a.mp4", max_pixels=8_000)
    assert media.read_video(tmp_path / "a.mp4", max_pixels=8_000, size=(12, 16)).x.shape == (3, 12, 12, 16)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".gif"])
def test_long_video_is_refused(tmp_path, suffix):
    media.write_video(tmp_path / f"a{suffix}", clip(), 25)
    with pytest.raises(media.MediaError, match=r"frames or more, and max_frames=7: cut it, or raise max_frames="):
        media.read_video(tmp_path / f"a{suffix}", max_frames=7)
    with pytest.raises(media.MediaError, match=r"32 x 24 = 768 pixels, more than max_pixels=700"):
        media.read_video(tmp_path / f"a{suffix}", max_pixels=700)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".gif"])
def test_truncated_video_is_refused(tmp_path, suffix):
    path = write_any("video", tmp_path / f"a{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(media.MediaError, match=r"truncated"):
        media.read_video(path)


def test_a_sound_is_no_video(tmp_path):
    write_any("sound", tmp_path / "a.wav").rename(tmp_path / "a.avi")
    with pytest.raises(media.MediaError, match=r"a\.avi holds no video, only audio"):
        media.read_video(tmp_path / "a.avi")


# --- all kinds


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.png", "a.jpg", "a.webp", "a.mp4", "a.mkv", "a.gif"])
@pytest.mark.parametrize("contents", [b"", b"This is text, whatever its name says.\n" * 100], ids=["empty", "text"])
def test_wrong_files_are_named(tmp_path, name, contents):
    path = tmp_path / name
    path.write_bytes(contents)
    kind = media.kind_of(path)
    for read in (READERS[kind], HEADERS[kind]):
        with pytest.raises(media.MediaError, match="cannot be decoded" if contents else r"is empty \(0 bytes\)") as caught:
            read(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["a.flac", "a.png", "a.jpg"])
def test_truncated_files_are_named(tmp_path, name):
    path = write_any(media.kind_of(name), tmp_path / name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(media.MediaError, match=rf"{name} cannot be decoded .*truncated"):
        READERS[media.kind_of(name)](path)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("name", ["pipe:1", "concat:a", "%03d", "-", "\u00fc \u97f3 \U0001f600", "a\nb", "\udcff"])
def test_any_name_is_a_name(tmp_path, monkeypatch, kind, name):
    """Also one that stands for something else to a reader, or is no text: any bytes are a name to Linux."""
    if "\udcff" in name and sys.platform != "linux":
        pytest.skip("names are text here")
    monkeypatch.chdir(tmp_path)
    path = name + {"sound": ".wav", "image": ".png", "video": ".mp4"}[kind]
    write_any(kind, path)
    found = READERS[kind](path)
    assert np.isfinite(found if kind == "image" else found.x).all()
    assert HEADERS[kind](path).channels in (1, 3)


def test_a_gif_may_be_slow(tmp_path):
    media.write_video(tmp_path / "a.gif", clip(2), 1e-9)
    assert media.video_header(tmp_path / "a.gif").rate == 1 / 655.35


@pytest.mark.parametrize("kind", READERS)
def test_no_file(tmp_path, kind):
    with pytest.raises(FileNotFoundError, match="absent"):
        READERS[kind](tmp_path / "absent")
    with pytest.raises(IsADirectoryError, match="is a folder, and a file is asked for"):
        READERS[kind](tmp_path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: media.write_sound(path / "a.mp3", np.zeros((1, 9)), 8000), r"files called \*\.mp3 are not written"),
        (lambda path: media.write_sound(path / "a.wav", np.zeros(9), 8000), r"x has the shape \[9\], and \[C, T\]"),
        (lambda path: media.write_sound(path / "a.wav", np.zeros((1, 9), int), 8000), "x has dtype int64: give floats"),
        (lambda path: media.write_sound(path / "a.wav", np.zeros((9, 9)), 8000), "has 9 channels, and the format takes 1 to 8"),
        (lambda path: media.write_sound(path / "a.wav", np.zeros((1, 9)), 0), "rate=0 is asked for"),
        (lambda path: media.write_sound(path / "a.wav", np.zeros((1, 9)), 8000.5), "rate=8000.5 is asked for, and an integer"),
        (lambda path: media.write_sound(path / "a.wav", np.zeros((1, 9)), 2**31), "an integer from 1 to 2,147,483,647 is needed"),
        (lambda path: media.write_sound(path / "a.ogg", np.zeros((1, 9)), 1_000_000), "Ogg Vorbis takes at most 200,000"),
        (lambda path: media.write_sound(path / "a.flac", np.zeros((1, 9)), 1_000_000), "at 1,000,000 Hz cannot be written as FLAC"),
        (lambda path: media.write_image(path / "a.jpg", np.zeros((4, 9, 9))), "has 4 channels, and the format takes 1 or 3"),
        (lambda path: media.write_image(path / "a.png", np.zeros((1, 0, 9))), "none of them 0"),
        (lambda path: media.write_video(path / "a.mp4", np.zeros((3, 9, 9)), 25), r"and \[C, T, H, W\]"),
        (lambda path: media.write_video(path / "a.mp4", np.zeros((3, 2, 8, 8)), 0), "rate=0 is asked for"),
        (lambda path: media.write_video(path / "a.mp4", np.zeros((3, 2, 8, 8)), np.inf), "rate=inf is asked for"),
        (lambda path: media.write_video(path / "a.mp4", np.zeros((1, 1, 2, 40_000)), 25), "40,000 x 2 pixels at rate=25 cannot be"),
    ],
)
def test_what_is_not_written(tmp_path, write, message):
    with pytest.raises(media.MediaError, match=message):
        write(tmp_path)
    assert not list(tmp_path.iterdir()), "nothing is left half written"


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_any("sound", tmp_path / "a.wav")
    before = path.read_bytes()
    monkeypatch.setattr(soundfile.SoundFile, "write", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        media.write_sound(path, np.ones((1, 5)), 8000)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize(("kind", "module"), [("sound", "soundfile"), ("image", "PIL.Image"), ("video", "av")])
def test_missing_packages_name_the_extra(tmp_path, monkeypatch, kind, module):
    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(media.MissingPackageError, match=r'pip install "numconv-nd\[media\]"') as caught:
        READERS[kind](tmp_path / "file")
    assert isinstance(caught.value, NumconvError)
    assert isinstance(caught.value, ImportError)


def test_nothing_is_printed_for_broken_films(tmp_path, capfd):
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(300))
    with pytest.raises(media.MediaError):
        media.read_video(tmp_path / "a.mp4")
    assert capfd.readouterr() == ("", "")


def test_the_examples_of_the_documentation():
    text = (pathlib.Path(__file__).parents[1] / "docs" / "media.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```\n\nIt prints:\n\n```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == text.count("```python") > 0
    for code, said in blocks:
        done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, said), done.stderr
