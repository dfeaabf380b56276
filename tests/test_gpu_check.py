"""The parts of `scripts/gpu_check.py` that need no GPU."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from numconv.plugin import parse

PATH = pathlib.Path(__file__).parents[1] / "scripts" / "gpu_check.py"
SPEC = importlib.util.spec_from_file_location("gpu_check", PATH)
assert SPEC is not None
assert SPEC.loader is not None
gpu_check = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(gpu_check)

RATES = {"device": "Test 1", "flops f32": 1e12, "flops tf32": 8e12, "bytes": 1e11}


def part(**records):
    return {"ended": "done", "seconds": 1.0, "records": records, "log": []}


def test_arguments():
    found = gpu_check.arguments(["--backend", "cuda", "--backend", "cupy", "--parts", "facts, timing", "--output", "x.json"])
    assert (found.backend, found.parts, found.output) == (["cuda", "cupy"], ["facts", "timing"], pathlib.Path("x.json"))
    assert gpu_check.arguments([]).parts == list(gpu_check.PARTS)


@pytest.mark.parametrize("parts", ["", "facts,speed"])
def test_parts_that_are_none(parts, capsys):
    with pytest.raises(SystemExit):
        gpu_check.arguments(["--parts", parts])
    assert "there are facts, contract, races, torch, timing" in capsys.readouterr().err


def test_order_and_limits():
    jobs = gpu_check.plan_of(["timing", "facts", "torch"], ["cuda", "cupy"])
    assert jobs == [("facts", ""), ("torch", ""), ("timing", "cuda"), ("timing", "cupy")]
    assert gpu_check.limit_of(["facts", "torch"], 1000) == gpu_check.LIMITS["facts"]
    wanted = gpu_check.LIMITS["timing"]
    assert gpu_check.limit_of(["timing"] * 3, wanted) == pytest.approx(wanted / 3)
    assert gpu_check.limit_of(["timing"], -5) == 1


def test_one_backend_fits_the_time():
    assert sum(gpu_check.LIMITS.values()) <= gpu_check.TOTAL < 8 * 60


def test_records_that_were_cut_off(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('["a", 1]\n["b", {"seconds": 2}]\n["c", {"sec')
    assert gpu_check.read_records(path) == {"a": 1, "b": {"seconds": 2}}
    assert gpu_check.read_records(tmp_path / "none") == {}


def test_the_report_tells_times_failures_and_ends():
    key = "resnet50.56 forward"
    took = part(
        **{
            f"{key} default implicit_gemm": {"seconds": 1e-3, "chosen": True},
            f"{key} fast fast": {"seconds": 5e-4, "chosen": False},
        }
    )
    results = {
        "facts": part(**RATES),
        "races cuda": part(**{"direct: conv": {"passed": False, "results": 2}}),
        "torch": part(**{f"{key} default": {"seconds": 5e-4}}),
        "timing cuda": took | {"ended": "stopped after 90 s", "log": ["the last words"]},
    }
    text = gpu_check.report(results)
    assert text.startswith("device: Test 1\n")
    assert "FAILED races cuda direct: conv: {'passed': False, 'results': 2}" in text
    assert "timing cuda: the last words" in text
    flops = parse(
        json.loads((PATH.parents[1] / "numconv" / "benchmarking" / "rows.json").read_text())["dense"]["resnet50.56"]
    ).flops
    line = next(line for line in text.splitlines() if "implicit_gemm" in line)
    assert line.startswith("> resnet50.56")
    assert f"0.50 of torch {flops / 1e12 / 1e-3:6.1%} of the roofline" in line
    assert "of torch" not in next(line for line in text.splitlines() if " fast " in line)


def test_the_rows_and_the_problems_of_races_parse():
    problems = list(gpu_check.rows())
    assert {problem.n for _, problem in problems} >= {1, *gpu_check.BATCHES}
    assert {problem.op for _, problem in problems} == {"forward", "input_grad", "weight_grad"}
    assert all(low == high for _, problem in problems for low, high in problem.padding)  # as torch's padding is
    assert all(str(parse(text)) == text for text in gpu_check.RACES)


def test_a_part_that_fails_keeps_its_records(tmp_path):
    """Without torch or a device `facts` ends early; what it had found until then is there, and so is the reason."""
    found = gpu_check.run_part("facts", "", 120, tmp_path)
    assert "backend reference" in found["records"]
    assert found["records"]["backend reference"]["available"]
    if "device" not in found["records"]:
        assert found["ended"] == "failed with status 1"
        assert any("torch" in line for line in found["log"])


def test_each_kind_of_operation_is_told(monkeypatch):
    """The contract's processes end on their own; one that fails is told with what failed."""

    def process(backend, kind, log):
        words = (
            f"print('FAILED a test'); print('1 failed on {backend}'); raise SystemExit(1)"
            if kind == "window"
            else "print('3 passed')"
        )
        with log.open("wb") as file:
            return subprocess.Popen([sys.executable, "-c", words], stdout=file)

    monkeypatch.setattr(gpu_check, "_contract_process", process)
    found = dict(gpu_check.contract("cuda"))
    assert set(found) == set(gpu_check.KINDS)
    assert found["forward"] == {"passed": True, "summary": "3 passed", "failures": []}
    assert found["window"] == {"passed": False, "summary": "1 failed on cuda", "failures": ["FAILED a test"]}


def test_the_contract_splits_into_its_kinds(tmp_path):
    """Every test of the contract with a problem belongs to one of the kinds, and to no other."""
    ids = {text for word in ("conv forward x", "conv input_grad x", "conv weight_grad x", "pool max_pool x", "window max_unpool x")
           for text in [f"direct: {word}"]}  # fmt: skip
    rules = {kind: [part.strip() for part in kind.split(" and ")] for kind in gpu_check.KINDS}
    for text in ids:
        kinds = [kind for kind, parts in rules.items()
                 if all((part.removeprefix("not ") in text) != part.startswith("not ") for part in parts)]  # fmt: skip
        assert len(kinds) == 1, text


def test_a_part_that_takes_too_long_is_ended(tmp_path):
    found = gpu_check.run_part("facts", "", 0.05, tmp_path)
    assert found["ended"].startswith("stopped after")


def test_without_a_gpu(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(PATH.parent)!r})
import gpu_check
gpu_check.gpu_backends = lambda asked: []
sys.exit(gpu_check.main(["--output", {str(tmp_path / "x.json")!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "No backend computes on a GPU here" in done.stdout
    assert not (tmp_path / "x.json").exists()


def test_results_are_replaced_in_one_step(tmp_path):
    path = tmp_path / "results.json"
    gpu_check.save({"facts": part(**RATES)}, path)
    assert json.loads(path.read_text())["facts"]["records"]["device"] == "Test 1"
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
