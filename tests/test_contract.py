"""The contract, for every backend that is available."""

import pytest

import numconv
from numconv.plugin import parse
from numconv.testing import CONV_PROBLEMS, POOL_PROBLEMS, WINDOW_PROBLEMS, BackendContract, candidates

for _info in numconv.backends():
    if _info.available:
        _name = f"Test{_info.name.capitalize()}"
        globals()[_name] = type(_name, (BackendContract,), {"backend": _info.name})


def test_our_own_cpu_backends_refuse_nothing(backend):
    info = next(info for info in numconv.backends() if info.name == backend)
    if info.distribution != "numconv-nd" or info.device != "cpu":
        pytest.skip(f"{backend} may decline problems")
    texts = CONV_PROBLEMS + POOL_PROBLEMS + WINDOW_PROBLEMS
    assert [text for text in texts if not any(row.verdict for row in candidates(parse(text), backend))] == []
