"""The parts of `scripts/gpu_check.py` that need no GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import types

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
    assert "there are facts, contract, compile, races, use, torch, timing" in capsys.readouterr().err


def test_order_and_limits():
    jobs = gpu_check.plan_of(["timing", "facts", "torch"], ["cuda", "cupy"])
    assert jobs == [("facts", ["cuda", "cupy"]), ("torch", ["cuda", "cupy"]), ("timing", ["cuda"]), ("timing", ["cupy"])]
    assert gpu_check.limit_of(["facts", "torch"], 1000) == gpu_check.LIMITS["facts"]
    wanted = gpu_check.LIMITS["timing"]
    assert gpu_check.limit_of(["timing"] * 3, wanted) == pytest.approx(wanted / 3)
    assert gpu_check.limit_of(["timing"], -5) == 1


def test_one_backend_fits_the_time():
    assert sum(gpu_check.LIMITS.values()) <= 60 * gpu_check.MINUTES < 8 * 60


def test_records_that_were_cut_off(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('["a", 1]\n["b", {"seconds": 2}]\n["c", {"sec')
    assert gpu_check.read_records(path) == {"a": 1, "b": {"seconds": 2}}
    assert gpu_check.read_records(tmp_path / "none") == {}


def test_the_report_tells_times_failures_and_ends():
    key = "resnet50.56 forward"
    took = part(
        **{
            f"{key} default implicit_gemm": {"seconds": 1e-3, "host": 2e-5, "chosen": True},
            f"{key} fast fast": {"seconds": 5e-4, "host": 2e-5, "chosen": False},
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


def test_large_kernels_are_timed_last_and_none_is_lost():
    ordered = gpu_check.fewest_taps_first(gpu_check.rows())
    assert sorted(map(str, ordered)) == sorted(map(str, gpu_check.rows()))
    assert ordered[0][1].kernel == (1, 1)
    assert ordered[-1][0] == "soundreverb16001"


def test_a_part_that_fails_keeps_its_records(tmp_path):
    """Without torch or a device `facts` ends early; what it had found until then is there, and so is the reason."""
    heard = []
    found = gpu_check.run_part("facts", [], 120, tmp_path, heard.append)
    assert "backend reference" in found["records"]
    assert found["records"]["backend reference"]["available"]
    if "device" not in found["records"]:
        assert found["ended"] == "failed with status 1"
        assert any("torch" in line for line in found["log"])
    assert all(each["ended"] == "running" for each in heard)


LOG = """
[gw0] [ 1%] PASSED tests/test_contract.py::TestCuda::test_result[direct: conv forward f32 n1 c5]
tests/test_contract.py::TestCuda::test_result[direct: conv forward f32 n1 c6]
[gw1] [ 2%] FAILED tests/test_contract.py::TestCuda::test_result[fft: conv input_grad f32 n1]
[gw1] [ 3%] PASSED tests/test_contract.py::TestCupy::test_declaration
_ TestCuda.test_result[fft: conv input_grad f32 n1] _
E   7 is not 8
FAILED tests/test_contract.py::TestCuda::test_result[fft: conv input_grad f32 n1] - 7 is not 8
"""


def test_what_the_contract_told():
    """By backend, implementation and operation; a failure with its words, and None for what may be missing."""
    failed = {"tests": 0, "failures": ["::TestCuda::test_result[fft: conv input_grad f32 n1]"], "passed": False}
    found = gpu_check.outcomes(LOG + "1 failed, 2 passed in 3 s", 1)
    assert found["cuda direct forward"] == {"tests": 1, "failures": [], "passed": True}
    assert found["cuda fft input_grad"] == failed
    assert found["cupy general test_declaration"]["passed"]
    assert (found["all"]["passed"], found["all"]["summary"]) == (False, "1 failed, 2 passed in 3 s")
    assert found["all"]["words"][:2] == ["_ TestCuda.test_result[fft: conv input_grad f32 n1] _", "E   7 is not 8"]
    late = gpu_check.outcomes(LOG, -2, late=True)
    assert late["cuda direct forward"]["passed"] is None
    assert late["cuda fft input_grad"] == failed
    assert late["all"]["summary"] == "interrupted after 2 passed"
    broken = gpu_check.outcomes("ImportError: no module", 4)
    assert broken == {"all": {"passed": False, "summary": "ImportError: no module", "words": ["ImportError: no module"]}}
    assert set(gpu_check.bad(part(**found))) == {"all", "cuda fft input_grad"}


def test_a_contract_that_takes_too_long_is_interrupted(monkeypatch):
    monkeypatch.setattr(gpu_check.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(gpu_check, "GRACE", 7)
    found = dict(gpu_check.contract(["reference"], 14))
    assert found["all"]["passed"] is None, found["all"]
    assert found["all"]["summary"].startswith("interrupted after")
    assert sum(entry.get("tests", 0) for entry in found.values()) > 10


def test_a_part_that_takes_too_long_is_ended(tmp_path):
    found = gpu_check.run_part("facts", [], 0.05, tmp_path, lambda so_far: None)
    assert found["ended"].startswith("stopped after")


TORCH = '''
"""As much of torch as gpu_check asks for, on NumPy arrays."""
import time
from types import SimpleNamespace
import numpy as np
import ml_dtypes
float16, float32, float64, int16, int32, int64, uint8 = (np.dtype(n) for n in "f2 f4 f8 i2 i4 i8 u1".split())
bfloat16 = np.dtype(ml_dtypes.bfloat16)
class Tensor(np.ndarray):
    __module__ = "numpy"
    to = lambda self, device: self
    cpu = contiguous = lambda self: self
    numpy = lambda self: np.asarray(self)
    fill_ = lambda self, value: self.fill(value)
    copy_ = lambda self, other: np.copyto(self, other)
def from_numpy(array): return array.view(Tensor)
def empty(shape, dtype, device): return np.empty(np.minimum(shape, 999) if isinstance(shape, int) else shape, dtype).view(Tensor)
def randn(*shape, device, dtype):
    shape = shape[0] if isinstance(shape[0], tuple) else (64, 64)
    return np.zeros(shape, dtype).view(Tensor)
empty_like, matmul = np.empty_like, np.matmul
class Event:
    def __init__(self, enable_timing): pass
    def record(self): self.at = time.perf_counter()
    def elapsed_time(self, other): return 1e3 * (other.at - self.at)
cuda = SimpleNamespace(is_available=lambda: True, synchronize=lambda: None, get_device_name=lambda: "a stand-in", Event=Event,
                       _sleep=lambda cycles: None)
backends = SimpleNamespace(cudnn=SimpleNamespace(version=lambda: 9), cuda=SimpleNamespace(matmul=SimpleNamespace()))
def conv(x, w, *options):
    if x.shape[0] > 32: raise RuntimeError("out of memory")
nn = SimpleNamespace(functional=SimpleNamespace(conv1d=conv, conv2d=conv, conv3d=conv))
ops = SimpleNamespace(aten=SimpleNamespace(convolution_backward=lambda *given: None))
'''


def test_a_rehearsal_without_a_device(tmp_path):
    """The whole script with a stand-in for torch, and the backend `numba` in the place of one on a GPU."""
    (tmp_path / "torch.py").write_text(TORCH)
    output = tmp_path / "check.json"
    command = [sys.executable, str(PATH), "--backend", "numba", "--parts", "facts,races,torch,timing", "--minutes", "0.3",
               "--output", str(output)]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "device: a stand-in" in done.stdout, done.stdout + done.stderr
    found = json.loads(output.read_text())
    assert list(found) == ["facts", "races numba", "torch", "timing numba"]
    assert found["facts"]["ended"] == "done"
    assert found["facts"]["records"]["bytes"] > 0
    assert all(record["passed"] for record in found["races numba"]["records"].values())
    peers = found["torch"]["records"]
    assert peers["resnet50.56.n32 forward default"]["seconds"] >= 0
    assert peers["resnet50.56.n256 forward fast"] == {"passed": False, "error": "RuntimeError: out of memory"}
    assert all(each["chosen"] and each["seconds"] > 0 for key, each in found["timing numba"]["records"].items() if key != "clocks")


def test_the_page_of_a_device(tmp_path, monkeypatch):
    """Ratios are of the chosen implementations, means by group, and what was not measured is a dash."""
    path = PATH.parents[1] / "asv_bench" / "gpu_speed.py"
    spec = importlib.util.spec_from_file_location("gpu_speed", path)
    monkeypatch.syspath_prepend(str(PATH.parent))
    gpu_speed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu_speed)
    key = "resnet50.56 forward default"
    results = {
        "facts": part(python="3.12", clocks="Test 1, 580", **RATES),
        "contract": part(
            **{
                "all": {"passed": True, "summary": "= 9 passed in 3 s ="},
                "cuda direct forward": {"passed": True, "tests": 9, "failures": []},
            }
        ),
        "torch": part(**{key: {"seconds": 3e-5, "host": 2.5e-5}, "depthwise3.144.n32.float16 forward default": {"seconds": 1e-4}}),
        "timing cuda": part(
            **{
                f"{key} implicit_gemm": {"seconds": 2e-5, "host": 1e-5, "chosen": True},
                f"{key} direct": {"seconds": 9e-5, "host": 1e-5, "chosen": False},
                "depthwise3.144.n32.float16 forward default depthwise": {"seconds": 5e-5, "host": 1e-5, "chosen": True},
                "clocks": "Test 1",
            }
        ),
        "use cuda": part(calls={"torch itself": 25.0, "torch": 31.4, "cupy": 28.0}, train={"accuracy": 0.95, "took": 3.0}),
    }
    text = gpu_speed.page(results, "x.json")
    assert "| `resnet50.56` default | 30.0 | 25 | 20.0 | 10 | cuda implicit_gemm | 1.50 | - | - |" in text
    assert "| dense, as in `numconv bench`, default | 1.50 (1) | - | - |" in text
    assert "| batch 32, depthwise, float16, default | 2.00 (1) | - | - |" in text
    assert "9 passed in 3 s. Tests that passed, by backend: cuda 9. Failed: none." in text
    assert "| cuda | 25 | 31 | 28 | 95.0% in 3.0 s |" in text


def test_first_calls_are_told_one_by_one(monkeypatch):
    """Of the chosen implementation at each level; one that fails is told with its words, and the next one has its turn."""
    torch = types.ModuleType("torch")
    exec(TORCH, torch.__dict__)
    monkeypatch.setitem(sys.modules, "torch", torch)
    problem = parse("conv forward f32 n32 c3 k4 g1 in9x8 w3x3 s1 p1 d1")
    found = dict(gpu_check._run_once(["numba"], [("small", problem), ("smaller", problem.replace(n=1))]))
    assert {key.rsplit(" ", 1)[0] for key in found} == {
        "numba small forward default",
        "numba small forward fast",
        "numba smaller forward default",
    }
    assert all(entry["took"] >= 0 for entry in found.values())
    monkeypatch.setattr(gpu_check, "_forms", lambda arrays: 1 / 0)
    failed = dict(gpu_check._run_once(["numba"], [("small", problem)]))
    assert all(entry == {"passed": False, "error": "ZeroDivisionError: division by zero"} for entry in failed.values())


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
    assert list(json.loads((tmp_path / "x.json").read_text())) == ["facts"], "the reasons are on record"


def test_results_are_replaced_in_one_step(tmp_path):
    path = tmp_path / "results.json"
    gpu_check.save({"facts": part(**RATES)}, path)
    assert json.loads(path.read_text())["facts"]["records"]["device"] == "Test 1"
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_use_trains_a_network_and_tells_what_is_missing():
    """A network is trained by the command; what has no library or no GPU here fails in words of its own, and hides nothing."""
    found = dict(gpu_check.use(["numba"], 60))
    assert list(found) == ["torch float32", "torch float16", "cupy", "calls", "train"]
    assert found["train"]["passed"], found["train"]
    assert found["train"]["accuracy"] > 0.9
    assert all("error" in found[name] for name in list(found)[:4])
