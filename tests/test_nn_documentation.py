"""The examples of docs/nn.md."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import numconv

TEXT = (pathlib.Path(numconv.__file__).parents[1] / "docs" / "nn.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```\n\nIt prints:\n\n```text\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_every_example_says_what_it_prints():
    assert len(BLOCKS) == TEXT.count("```python") > 0


@pytest.mark.parametrize(("code", "said"), BLOCKS, ids=["digits", "layer", "resuming"])
def test_the_examples_of_the_documentation(code, said, tmp_path):
    (tmp_path / "example.py").write_text(code)  # a dataclass looks for its module
    command = [sys.executable, "-W", "error", "example.py"]
    variables = os.environ | {"NUMCONV_NUM_THREADS": "1"}  # the bits are the same, and other tests may run beside this one
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == said
