"""The command line: help, errors, `info` and `warmup`."""

import importlib.util
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import numconv as nc
from numconv import commands, demo, information
from numconv.cli import main


def run(capsys, *arguments):
    """Exit code, stdout and stderr of the command."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "numconv", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"numconv {nc.__version__}\n"


@pytest.mark.parametrize("arguments", [(), *((name,) for name in commands.NAMES)])
def test_help_shows_an_example(capsys, arguments):
    code, out, _ = run(capsys, *arguments, "--help")
    assert code == 0
    assert re.search(r"examples?:\s+numconv \w+", out)


def test_without_a_command_it_shows_what_there_is(capsys):
    assert run(capsys) == run(capsys, "--help")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nonsense",), "invalid choice: 'nonsense'"),
        (("info", "--colour"), "unrecognized arguments: --colour"),
        (("demo", "--threads", "0"), "'0' is not an integer of at least 1"),
        (("demo", "--threads", "many"), "'many' is not an integer of at least 1"),
        (("warmup", "--dtype"), "expected at least one argument"),
        (("equivariance", "--seed", "-5"), "'-5' is not an integer of at least 0"),
        (("train", "folder", "--max-seconds", "0"), "'0' is no number of seconds above 0"),
    ],
)
def test_bad_usage_exits_with_2(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize("command", ["demo", "warmup"])
def test_unknown_backend_is_an_error_without_traceback(capsys, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, command, "--backend", "referense")
    assert (code, out.strip()) == (1, "")
    assert f"numconv {command}: " in err
    assert "no backend is called 'referense'" in err
    assert "did you mean 'reference'?" in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_unsupported_dtype_is_an_error(capsys):
    code, _, err = run(capsys, "warmup", "--dtype", "bool", "--backend", "reference")
    assert code == 1
    assert "dtype bool is not supported" in err


def start(*arguments, **options):
    """The command as a process of its own."""
    return subprocess.Popen([sys.executable, "-m", "numconv", *arguments], stderr=subprocess.PIPE, **options)


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_reader_that_has_seen_enough_is_no_error(buffered):
    reading, writing = os.pipe()
    os.close(reading)
    with start("info", stdout=writing, env=os.environ | {"PYTHONUNBUFFERED": buffered}) as process:
        os.close(writing)
        assert (process.stderr.read(), process.wait()) == (b"", 141)


def test_a_full_disk_is_an_error():
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip(f"no {device}")
    with device.open("w") as full, start("info", stdout=full) as process:
        assert b"No space left on device" in process.stderr.read()
        assert process.wait() == 1


def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "NUMCONV_CACHE_DIR": str(tmp_path / "\u00fcber")}
    with start("info", stdout=subprocess.PIPE, env=environment) as process:
        out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert rb"\xfcber" in out


def test_folder_that_cannot_be_made_is_an_error(capsys, tmp_path):
    file = tmp_path / "file"
    file.touch()
    code, _, err = run(capsys, "demo", "--quick", "--out", str(file / "folder"))
    assert code == 1
    assert str(file) in err


def test_demo_names_the_extra_for_missing_packages(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_NEEDED", {"no_such_module": "no-such-package", "numpy": "numpy"})
    code, out, err = run(capsys, "demo", "--out", str(tmp_path / "out"))
    assert (code, out) == (1, "")
    assert err == 'numconv demo needs no-such-package: pip install "numconv-nd[demo]"\n'
    assert not (tmp_path / "out").exists()


def test_info_lists_every_backend_with_its_reason(capsys):
    code, out, _ = run(capsys, "info")
    assert code == 0
    for row in nc.backends():
        assert re.search(
            rf"^{row.name} +{'(yes|on demand)' if row.available else 'no'} .*{re.escape(row.reason)}$", out, re.MULTILINE
        )
    for heading in ("versions", "machine", "environment", "caches", "backends"):
        assert re.search(rf"^{heading}$", out, re.MULTILINE)
    assert nc.__version__ in out


def test_info_shows_the_environment(capsys, monkeypatch):
    monkeypatch.setenv("NUMCONV_EXAMPLE", "17")
    assert re.search(r"^  NUMCONV_EXAMPLE +17$", run(capsys, "info")[1], re.MULTILINE)


def test_info_lists_implementations_when_asked(capsys):
    _, out, _ = run(capsys, "info", "--implementations")
    listing = out.partition("\nimplementations\n")[2]
    assert re.search(r"reference direct\n    operations  forward, input_grad, weight_grad\n    accuracy    strict", listing)
    assert "\nimplementations\n" not in run(capsys, "info")[1]


class Talkative:
    """A backend as `information` sees it."""

    def __init__(self, answer):
        self.answer = answer

    def information(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_info_measures_the_machine_when_asked(capsys):
    """Rates that are positive numbers; how large they are depends on the machine."""
    from numconv_numba.microkernels.emit import host

    _, out, _ = run(capsys, "info", "--measure")
    section = out.partition("measured by numba\n")[2].partition("\n\n")[0]
    assert len(section.splitlines()) == 3 + host().pairs
    rates = re.findall(r"([\d.]+) (?:GFLOP|GB)/s on (\d+) thread", section)
    assert len(rates) >= 3
    assert all(float(rate) > 0.1 for rate, _ in rates)
    assert "measured by" not in run(capsys, "info")[1]


@pytest.mark.parametrize(
    ("answer", "line"),
    [({"threads": "2"}, "threads  2"), (RuntimeError("no driver"), "failed  RuntimeError: no driver")],
)
def test_info_shows_what_a_backend_tells(capsys, monkeypatch, answer, line):
    class Registry:
        def backend(self, name):
            return Talkative(answer)

    monkeypatch.setattr(information, "default_registry", Registry)
    code, out, _ = run(capsys, "info")
    assert code == 0
    assert f"backend reference\n  {line}" in out


def test_info_says_what_it_cannot_find_out(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    monkeypatch.setattr(information, "cache_dir", lambda: (_ for _ in ()).throw(OSError("no home")))
    code, out, _ = run(capsys, "info")
    assert code == 0
    assert re.search(r"features +unknown: .*llvmlite", out)
    assert "folder  unknown: no home" in out


def test_warmup_prints_a_table(capsys):
    code, out, err = run(capsys, "warmup", "--dtype", "float32", "int32", "--backend", "reference")
    assert code == 0
    header, *rows, summary = out.splitlines()
    assert header.split() == ["backend", "algorithm", "seconds", "problem"]
    assert all(row.startswith("reference ") for row in rows)
    assert any("conv forward f32" in row for row in rows)
    assert any("conv forward i32" in row for row in rows)
    assert summary.startswith(f"{len(rows)} problems")
    assert "\r" not in err, "a file holds no bar"


@pytest.mark.parametrize(("terminal", "installed"), [(False, True), (True, False), (True, True)])
def test_warmup_tells_how_far_it_is(capsys, monkeypatch, terminal, installed):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    if not installed:
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    _, out, err = run(capsys, "warmup", "--backend", "reference")
    if terminal and installed:
        assert "\rwarmup: " in err
        return
    assert len(err.splitlines()) == len(out.splitlines()) - 2
    assert err.startswith("reference direct: conv forward f32")


def test_log_lines_are_shown_and_the_logger_is_left_as_it_was(capsys, monkeypatch):
    logger = logging.getLogger("numconv")
    before = logger.level, list(logger.handlers)
    monkeypatch.setattr(information, "describe", lambda *_: logger.info("compiled kernel %s", "example"))
    assert "compiled kernel example\n" in run(capsys, "info")[2]
    assert (logger.level, logger.handlers) == before
