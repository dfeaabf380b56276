"""`numconv bench`: rows, processes, results, tables, pictures, verdicts."""

import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import re
import shutil
import signal
import sys
import time

import numpy as np
import pytest

import numconv as nc
from numconv.benchmarking import measuring, pictures, results, tables, verdicts
from numconv.benchmarking.measuring import Contender, installed, peers, turns
from numconv.benchmarking.processes import Worker, WorkerDiedError
from numconv.benchmarking.rows import PASSES, Row, all_rows, case_of, select, work_of
from numconv.benchmarking.worker import ours
from numconv.benchmarking.worker.cases import Case, Declined
from numconv.benchmarking.worker.checking import check
from numconv.benchmarking.worker.peers import MAKERS
from numconv.benchmarking.worker.timing import Timer
from numconv.cli import main
from numconv.plugin import parse

# Every kind of geometry that a row has: strides, dilations, groups, unlike sides of padding, one to three dimensions.
TEXTS = [
    "conv forward f64 n2 c4 k6 g2 in9x8 w3x2 s2x1 p1:0x0:1 d1x2",
    "conv forward f32 n1 c3 k3 g3 in20 w5 s1 p2 d1",
    "conv forward f64 n1 c2 k2 g1 in5x6x4 w2x3x2 s1 p1 d1",
]


def case(text, direction):
    problem = parse(text)
    names = ("dtype", "x_shape", "w_shape", "y_shape", "stride", "padding", "dilation", "groups")
    return Case(name=text, direction=direction, **{name: getattr(problem, name) for name in names})


def computed(one):
    """The results of a case by the reference."""
    make, _ = ours.start(backend="reference")
    (call,) = make(one).values()
    return call()


# --- rows


def test_rows_are_forward_problems_with_names_of_their_own():
    rows = all_rows()
    assert len({row.name for row in rows}) == len(rows) > 30
    assert {row.problem.op for row in rows} == {"forward"}
    assert not {row.name for row in rows} & {row.group for row in rows}


def test_select():
    assert select(None) == list(all_rows())
    assert {row.group for row in select(["video"])} == {"video"}
    assert [row.name for row in select(["image11", "digits8"])] == ["image11", "digits8"]
    with pytest.raises(nc.ProblemError, match=r"'resnet5.56'; did you mean 'resnet50.56'"):
        select(["resnet5.56"])
    with pytest.raises(nc.ProblemError, match=r"'zzz'; known are the groups dense, pointwise, .*, and the rows in them: resnet50"):
        select(["zzz"])


def test_work_counts_each_array_once():
    (row,) = select(["f64.sound"])
    x, w, y = 64 * 16000, 64 * 64 * 9, 64 * 16000
    assert work_of(row, "forward") == (2 * y * 64 * 9, 8 * (x + w + y))
    assert work_of(row, "backward") == (4 * y * 64 * 9, 8 * (2 * x + 2 * w + y + 64))


# --- what runs in the processes


@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("text", TEXTS)
def test_check_accepts_what_is_right_and_nothing_else(text, direction):
    one = case(text, direction)
    right = computed(one)
    check(one, right)
    arrays = (right,) if direction == "forward" else right
    for number in range(len(arrays)):
        wrong = [np.array(array) for array in arrays]
        wrong[number] *= 1 + (1e-3 if one.dtype == "float32" else 1e-9)
        with pytest.raises(ValueError, match=r"is .*, and its \d+ terms sum up to"):
            check(one, wrong[0] if direction == "forward" else wrong)
    with pytest.raises(ValueError, match="has the shape"):
        check(one, arrays[0][:, :1] if direction == "forward" else (arrays[0][:, :1], *arrays[1:]))


def test_check_refuses_nan():
    one = case(TEXTS[1], "forward")
    with pytest.raises(ValueError, match="y is nan"):
        check(one, np.full(one.y_shape, np.nan, np.float32))


def test_a_timer_counts_the_calls_of_its_bursts_but_the_first_of_each():
    calls = []
    timer = Timer(lambda: calls.append(time.sleep(0.001)))
    timer.burst(0.01)
    assert timer.calls == len(calls) - 1 >= 2
    timer.burst(0)
    assert timer.calls == len(calls) - 2
    assert 0.001 <= timer.best <= timer.median


@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("sizes", ["c1 k1 g1 in40x31 w3x5 s1 p1x2", "c1 k1 g1 in500 w65 s1 p32", "c3 k3 g3 in9x9x9 w3x3x3 s1 p1"])
def test_scipy_gives_the_same(sizes, direction):
    row = Row("row", "group", parse(f"conv forward f32 n2 {sizes} d1"))
    one = Case.of(json.loads(json.dumps(case_of(row, direction))))
    calls = MAKERS["scipy"][1](one)
    assert set(calls) == {"fftconvolve", "oaconvolve"}
    for call in calls.values():
        check(one, call())


@pytest.mark.parametrize(
    ("peer", "text", "direction", "reason"),
    [
        ("scipy", "n1 c1 k1 g1 in9 w3 s2 p0 d1", "forward", "no stride"),
        ("scipy", "n1 c2 k1 g1 in9 w3 s1 p0 d1", "forward", "no sum over channels"),
        ("scipy", "n1 c1 k1 g1 in9 w3 s1 p5 d1", "forward", "no padding that is wider"),
        ("scipy", "n1 c1 k1 g1 in9 w3 s1 p1:2 d1", "forward", r"pads both sides alike, .*\(1, 2\)"),
        ("opencv", "n1 c1 k1 g1 in9x9 w3x3 s1 p1 d1", "backward", "no gradients"),
        ("opencv", "n1 c1 k2 g1 in9x9 w3x3 s1 p1 d1", "forward", "one filter over one image"),
        ("opencv", "n1 c1 k1 g1 in9x9 w3x3 s1 p0 d1", "forward", "results as large as the image"),
        ("onnxruntime", "n1 c1 k1 g1 in9x9 w3x3 s1 p0 d1", "backward", "inference only"),
    ],
)
def test_peers_decline_what_they_cannot(peer, text, direction, reason):
    with pytest.raises(Declined, match=reason):
        MAKERS[peer][1](case(f"conv forward f32 {text}", direction))


def test_a_process_answers_times_rates_and_reasons():
    (row,) = select(["digits8"])
    request = {"case": case_of(row, "forward"), "seconds": 0.01, "checked": True, "size": 1000}
    with Worker("numconv", {"backend": "numba"}) as worker:
        assert worker.version == nc.__version__
        answer = worker.ask(request)
        assert answer["variant"].startswith("numba ")
        assert 0 < answer["best"] <= answer["seconds"] < 1
        assert answer["multiply_adds"] > 1e8
        assert answer["copies"] > 1e7
        again = worker.ask(request)
        assert again["calls"] > answer["calls"], "a case that is asked again goes on"
        assert again["multiply_adds"] == answer["multiply_adds"], "and is not measured anew"
        broken = request | {"case": request["case"] | {"y_shape": (1, 16, 7, 7)}}
        assert "y has the shape (1, 16, 8, 8)" in worker.ask(broken)["error"]
        fresh = worker.ask(request | {"size": 0})
        assert fresh["calls"] < again["calls"], "an error leaves the process alive"
    with Worker("numconv", {"backend": "numba", "algorithm": "winograd"}) as worker:
        assert "numba winograd" in worker.ask(request)["declined"]


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no processes that are stopped")
def test_a_process_is_stopped_between_its_turns_and_its_end_is_told():
    with Worker("scipy") as worker:
        pid = worker._process.pid
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match=r"scipy: the process ended \(signal SIGKILL\)"):
            worker.ask({})


def test_a_crash_costs_one_answer():
    rows = select(["digits8", "digits8.n256"])
    found = turns([Contender("scipy", "scipy")], rows, ["forward"], rounds=1, seconds=0.01, limits=False)
    first = next(found)
    assert "seconds" in first.answer
    seat = found.gi_frame.f_locals["seat"]
    os.kill(seat._worker._process.pid, signal.SIGKILL)
    assert "the process ended" in next(found).answer["error"]
    assert list(found) == []


def test_who_is_installed():
    versions, reasons = installed([Contender("scipy", "scipy"), Contender("ours", "numconv", {"backend": "referense"})])
    assert set(versions) == {"scipy"}
    assert "no backend is called 'referense'" in reasons["ours"]
    assert [each.name for each in peers(["jax", "torch"])] == ["torch", "jax"]
    assert peers(["jax"], "/other/python")[0].environment == {"PYTHONPATH": None}
    with pytest.raises(nc.UnknownBackendError, match="no peer is called 'tensor'; known are torch, "):
        peers(["tensor"])


def test_every_contender_has_each_place_once():
    rows, names = select(["digits8"]), ["one", "two", "three"]
    contenders = [Contender(name, "numconv", {"backend": "reference"}) for name in names]
    order = [turn.contender for turn in turns(contenders, rows, ["forward"], rounds=3, seconds=0.001, limits=False)]
    for place in range(3):
        assert {order[place], order[3 + place], order[6 + place]} == set(names)


class Slow:
    """Stands for a contender whose calls take so long; it counts its bursts."""

    contender = Contender("slow", "scipy")

    def __init__(self, seconds):
        self.seconds, self.bursts, self.calls = seconds, 0, 0

    def ask(self, request):
        self.bursts += 1
        self.calls += max(1, math.ceil(request["seconds"] / self.seconds))
        return {"seconds": self.seconds, "calls": self.calls}


@pytest.mark.parametrize(("seconds", "bursts"), [(1e-3, measuring.BURSTS), (0.05, 4), (0.5, 3), (2.0, 1)])
def test_bursts_go_on_until_each_was_timed_for_long_enough(seconds, bursts):
    team = [Slow(seconds), Slow(1e-4)]
    answers = measuring._answers(team, {}, 0.2, 0)
    assert [seat.bursts for seat in team] == [bursts, measuring.BURSTS]
    assert all(answers[seat] == {"seconds": seat.seconds, "calls": seat.calls} for seat in team)


# --- results


def measurement(name="resnet50.56", direction="forward", *, seconds, **changes):
    row = results.Measurement(
        name, "dense", direction, "conv ...", "float32", 200_000_000, 2_000_000, "numba winograd", seconds, {}, 400e9, 40e9
    )
    return dataclasses.replace(row, **changes)


def run_of(*measurements, peers=("torch",), processor="one"):
    about = {"processor": processor, "cores": "2", "features": "avx2", "Python": "3", "NumPy": "2", "Numba": "0.6"}
    return results.Results("0.1", "2026-01-01T00:00:00+00:00", 3, 0.25, about, dict.fromkeys(peers, "1"), measurements)


def test_ratios_are_medians_over_rounds():
    row = measurement(seconds={"numconv": [1e-3, 2e-3, 4e-3], "torch": [3e-3, 2e-3, 8e-3], "jax": [math.nan, 1e-3, 1e-3]})
    assert (row.ours, row.ratio("torch"), row.ratio("jax")) == (2e-3, 2.0, 0.375)
    assert row.best_peer() == "jax"
    assert row.floor == 0.5e-3
    assert dataclasses.replace(row, bytes=80_000_000).floor == 2e-3
    assert math.isnan(row.ratio("scipy"))
    assert math.isnan(dataclasses.replace(row, multiply_adds=math.nan, copies=math.nan).floor)


def test_saved_results_are_those_that_were_measured(tmp_path):
    before = run_of(measurement(seconds={"numconv": [1e-3, math.nan]}, reasons={"jax": "declined"}, copies=math.nan))
    path = tmp_path / "new" / "file.json"
    results.save(before, path)
    after = results.load(path)
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]
    assert repr(after) == repr(before)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "Expecting"), ('{"format": 2}', "format is not 1"), ("[]", "no results"), ('{"format": 1}', "no results")],
)
def test_a_file_of_something_else_is_refused(tmp_path, capsys, text, message):
    path = tmp_path / "file.json"
    path.write_text(text)
    assert main(["bench", "--read", str(path)]) == 1
    error = capsys.readouterr().err
    assert f"numconv bench: {path} holds no results" in error
    assert message in error


def test_listing_shows_floors_ratios_and_failures():
    good = measurement(seconds={"numconv": [1e-3], "torch": [3e-3]})
    bad = measurement("image11", seconds={"numconv": [math.nan]}, reasons={"numconv": "wrong y", "torch": "declined"})
    text = tables.listing(run_of(good, bad))
    assert re.search(r"^resnet50\.56 +0\.5000 +1\.0000 +50% +200\.0  numba winograd +3\.00$", text, re.MULTILINE)
    assert re.search(r"^image11 +0\.5000 +- +- +- .* -$", text, re.MULTILINE)
    assert "image11: numconv: wrong y" in text
    assert "declined" not in text
    assert "geometric mean 3.00, lowest 3.00" in text


def test_comparison_shows_the_rows_in_common():
    first = run_of(measurement(seconds={"numconv": [1e-3, 1.1e-3, 1e-3]}), measurement("image11", seconds={"numconv": [1e-3]}))
    second = run_of(measurement(seconds={"numconv": [2e-3] * 3}, variant="numba tile"))
    text = tables.comparison(first, second)
    assert re.search(r"^resnet50\.56 forward +1\.0000 +2\.0000 +2\.00 +10%  numba winograd -> numba tile$", text, re.MULTILINE)
    assert "image11" not in text
    assert "different machines" not in text
    assert "different machines or packages" in tables.comparison(first, run_of(processor="two"))
    assert "no row in common" in tables.comparison(first, run_of())


def test_pictures_are_the_same_each_time(tmp_path):
    found = run_of(
        *(measurement(direction=each, seconds={"numconv": [1e-3], "torch": [3e-3]}) for each in PASSES),
        measurement("image11", seconds={"numconv": [math.nan]}, reasons={"numconv": "wrong y"}),
    )
    names = [path.name for path in pictures.draw(found, tmp_path / "a")]
    assert names == ["roofline-forward.svg", "ratios-forward.svg", "roofline-backward.svg", "ratios-backward.svg"]
    pictures.draw(found, tmp_path / "b")
    for name in names:
        text = (tmp_path / "a" / name).read_text()
        assert text == (tmp_path / "b" / name).read_text()
        assert "resnet50.56" in text
        assert "image11" not in text


# --- the command


def test_bench_measures_saves_and_shows_again(tmp_path, capsys):
    file = tmp_path / "file.json"
    options = ["--rows", "digits8", "--pass", "forward", "backward", "--peers", "scipy", "--rounds", "2", "--seconds", "0.01"]
    assert main(["bench", *options, "--save", str(file), "--plot", str(tmp_path / "plots")]) == 0
    out = capsys.readouterr().out
    for direction in PASSES:
        assert re.search(rf"^{direction} .*\ndigits8 +[\d.]+ +[\d.]+ +\d+% +[\d.]+  numba \w+.* [\d.]+$", out, re.MULTILINE)
        assert (tmp_path / "plots" / f"ratios-{direction}.svg").is_file()
    assert all(len(times) == 2 for row in results.load(file).measurements for times in row.seconds.values())
    assert main(["bench", "--read", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[3:] == out.splitlines()[3 : -len(list((tmp_path / "plots").iterdir()))]
    assert main(["bench", "--compare", str(file), str(file)]) == 0
    assert capsys.readouterr().out.count(" 1.00 ") == 2


def both_passes():
    return run_of(*(measurement(direction=each, seconds={"numconv": [1e-3], "torch": [3e-3]}) for each in PASSES))


DAMAGES = [
    lambda data: data.update(measurements=5),
    lambda data: data.update(measurements=[3]),
    lambda data: data.update(machine={}),
    lambda data: data.update(machine=[]),
    lambda data: data.update(date=3),
    lambda data: data.update(rounds="three"),
    lambda data: data.update(peers={"scipy": 1}),
    lambda data: data["measurements"][0].update(seconds=3),
    lambda data: data["measurements"][0].update(seconds={"numconv": 0.5}),
    lambda data: data["measurements"][0].update(seconds={"numconv": ["fast"]}),
    lambda data: data["measurements"][0].update(seconds={"numconv": [0]}),
    lambda data: data["measurements"][0].update(flops="many"),
    lambda data: data["measurements"][0].update(bytes=None),
    lambda data: data["measurements"][0].update(multiply_adds="many"),
    lambda data: data["measurements"][0].update(copies=0),
    lambda data: data["measurements"][0].update(reasons={"numconv": 7}),
    lambda data: data["measurements"][0].update(variant=None),
    lambda data: data["measurements"][0].pop("copies"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_told(tmp_path, capsys, damage):
    path = tmp_path / "a.json"
    results.save(both_passes(), path)
    data = json.loads(path.read_text())
    damage(data)
    path.write_text(json.dumps(data))
    assert main(["bench", "--read", str(path)]) == 1
    assert f"{path} holds no results of `numconv bench --save`" in capsys.readouterr().err
    path.write_text("[1, 2")
    assert main(["bench", "--compare", str(path), str(path)]) == 1
    assert "holds no results" in capsys.readouterr().err


def test_runs_of_several_passes_are_one(tmp_path, capsys):
    both = both_passes()
    parts = [dataclasses.replace(both, measurements=tuple(both.of(direction))) for direction in both.passes]
    assert results.joined(parts) == both
    paths = [str(tmp_path / f"{number}.json") for number in range(len(parts))]
    for part, path in zip(parts, paths, strict=True):
        results.save(part, pathlib.Path(path))
    assert main(["bench", "--read", *paths, "--save", str(tmp_path / "both.json")]) == 0
    assert capsys.readouterr().out == tables.listing(both) + "\n"
    assert results.load(tmp_path / "both.json") == results.joined([*map(results.load, map(pathlib.Path, paths))])
    with pytest.raises(nc.ProblemError, match="several of these runs have the row"):
        results.joined([both, parts[0]])
    with pytest.raises(nc.ProblemError, match="they differ in version, rounds; --compare shows two of them"):
        results.joined([parts[0], dataclasses.replace(parts[1], version="0", rounds=99)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "digit8"], "did you mean 'digits8'"),
        (["--backend", "numbaa"], "no backend is called 'numbaa'"),
        (["--peers", "tensor"], "no peer is called 'tensor'"),
        (["--read", "no-such-file.json"], "no-such-file.json"),
        (["--compare", "a", "b", "--plot", "c"], "--compare prints a table"),
        (["--rows", "digits8", "--peers", "scipy", "--peer-python", "/no/python"], "/no/python"),
    ],
)
def test_bench_errors(capsys, arguments, message):
    assert main(["bench", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_files_that_cannot_be_written_are_told_before_anything_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measuring, "installed", lambda *_: pytest.fail("it measures"))
    (tmp_path / "file").touch()
    for option, path, text in (
        ("--save", tmp_path, "is a folder, and a file is to be written"),
        ("--save", tmp_path / "file" / "b.json", "file"),
        ("--plot", tmp_path / "file", "file"),
    ):
        assert main(["bench", option, str(path)]) == 1
        assert text in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "--plot", str(tmp_path / "plots")]) == 1
    assert 'pictures need matplotlib: pip install "numconv-nd[plot]"' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("option", [["--seconds", "0"], ["--seconds", "nan"], ["--rounds", "0"], ["--pass", "both"]])
def test_bench_usage(capsys, option):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", *option])
    assert option[0] in capsys.readouterr().err


# --- verdicts


def rounds(rng, level, noise=0.01, count=8):
    return list(level * (1 + noise * np.abs(rng.standard_normal(count))))


def test_verdicts(rng):
    def judged(factor, noise=0.01):
        a, again, b = rounds(rng, 1, noise), rounds(rng, 1, noise), rounds(rng, factor, noise)
        return verdicts.verdict(a, again, b, rows=76, tolerance=0.05)

    assert judged(1.3).word == "slower"
    assert judged(1.3).ratio == pytest.approx(1.3, rel=0.03)
    assert judged(0.7).word == "faster"
    assert judged(1.0).word == "same"
    assert judged(1.02).word in ("same", "can't tell"), "within the tolerance"
    assert judged(1.3, noise=2).word == "can't tell"


def test_one_stall_hides_no_slow_row_and_makes_none(rng):
    a, again, b = (rounds(rng, level) for level in (1, 1, 1.3))
    a[2] *= 3
    assert verdicts.verdict(a, again, b, rows=10, tolerance=0.05).word == "slower"
    stalled = rounds(rng, 1)
    stalled[5] *= 3
    assert verdicts.verdict(again, again[::-1], stalled, rows=10, tolerance=0.05).word == "same"


def test_noise_alone_is_not_reported(rng):
    """200 runs of 10 rows, at noise that hides nothing; at 1 % of false alarms a run, and more conditions, 8 would be a wonder."""
    alarms = 0
    for _ in range(200):
        rows = (verdicts.verdict(*(rounds(rng, 1, 0.2) for _ in range(3)), rows=10, tolerance=0.05) for _ in range(10))
        alarms += any(each.word in ("slower", "faster") for each in rows)
    assert alarms < 8


def test_too_few_rounds_are_refused():
    assert verdicts.least_rounds(10) == 5
    verdicts.check_rounds(5, 10)
    with pytest.raises(nc.ProblemError, match="4 rounds cannot tell 10 rows apart with 1% of false alarms: 5 rounds could"):
        verdicts.check_rounds(4, 10)


# --- programs of a checkout


def program(name):
    path = pathlib.Path(nc.__file__).parents[1] / "asv_bench" / f"{name}.py"
    if not path.is_file():
        pytest.skip(f"{name}.py is a program of the checkout")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["Product", "Multiply"])
def test_the_benchmark_of_tiles_calls_the_kernels_that_there_are(name, monkeypatch):
    """`setup` compares a first call with its sums."""
    monkeypatch.syspath_prepend(program("speed").__spec__.origin.removesuffix("speed.py"))
    benchmark = getattr(importlib.import_module("benchmarks.tiles"), name)()
    benchmark.setup(benchmark.params[0][0], "float32")


def test_page_of_speed():
    speed = program("speed")
    good = measurement(seconds={"numconv": [1e-3], "torch": [0.5e-3]})
    bad = measurement("image11", seconds={"numconv": [math.nan]}, reasons={"numconv": "wrong y"}, variant="")
    text = speed.text(run_of(good, bad), pathlib.Path("results/one.json"), "speed-other")
    command = "numconv bench --pass forward --rows resnet50.56 image11 --rounds 3 --seconds 0.25 --peers torch --peer-python PYTHON"
    assert command in text
    assert "| `resnet50.56` | 0.5 | 1 | 50% | 200 | numba winograd | 0.50 |" in text
    assert "| `image11` | 0.5 | - | - | - | wrong y | - |" in text
    assert "slower on 1 of 1: `resnet50.56` 0.50" in text
    assert "speed-other/ratios-forward.svg" in text


@pytest.fixture(scope="module")
def gate():
    return program("gate")


def test_gate_reports_the_worst_first_and_what_failed(gate, rng, capsys):
    def answers(factor, variant="numba tile"):
        levels = dict(zip(gate.NAMES, (1, 1, factor), strict=True))
        return {
            name: [{"seconds": 2 * best, "best": best, "variant": variant} for best in rounds(rng, level)]
            for name, level in levels.items()
        }

    failed = answers(1) | {"B": [{"error": "ValueError: wrong y"}] * 8}
    changed = answers(0.5) | {"A": answers(1, "numba direct")["A"]}
    found = {
        ("even", "forward"): answers(1),
        ("worse", "forward"): answers(1.5),
        ("bad", "forward"): failed,
        ("c", "forward"): changed,
    }
    gate.report(*gate.judge(found, 0.05))
    out = capsys.readouterr().out
    assert re.search(
        r"\nworse forward +slower +1\.\d+ .*\nc forward +faster .*  numba direct -> numba tile\neven forward +same", out
    )
    assert "failed: bad forward: B: ValueError: wrong y" in out
    assert out.endswith("1 slower, 1 faster, 0 can't tell, 1 same, 1 failed\n")


def test_gate_takes_commits_and_folders(gate, tmp_path):
    root = pathlib.Path(nc.__file__).parents[1]
    with gate.checkout(str(root)) as folder:
        assert folder == root
    with pytest.raises(nc.NumconvError, match="'no-such-commit' is neither a commit nor a folder that holds numconv"):
        gate.checkout("no-such-commit").__enter__()


def test_gate_measures_the_tree_it_is_given(gate, tmp_path):
    for name in ("numconv", "backends"):
        shutil.copytree(pathlib.Path(nc.__file__).parents[1] / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    module = tmp_path / "numconv" / "__init__.py"
    module.write_text(module.read_text().replace(f'"{nc.__version__}"', '"99.9"'))
    with gate.contender("B", tmp_path).start() as worker:
        assert worker.version == "99.9"
