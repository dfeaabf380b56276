"""The bridges to other libraries: where these are not installed, and what their page of the documentation says."""

from __future__ import annotations

import importlib
import pathlib
import re
import sys

import pytest

import numconv as nc

BRIDGES = ("dask", "jax", "torch")


@pytest.mark.parametrize("name", BRIDGES)
def test_a_missing_package_is_named(name, monkeypatch):
    for module in [module for module in sys.modules if module.split(".")[:2] == ["numconv", name]]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(nc.NumconvError, match=rf'numconv.{name} needs {name}.*pip install "numconv-nd\[{name}\]"') as caught:
        importlib.import_module(f"numconv.{name}")
    assert isinstance(caught.value, ImportError)


@pytest.mark.parametrize("name", BRIDGES)
def test_bridges_are_attributes_but_not_of_star_imports(name):
    pytest.importorskip(name)
    assert getattr(nc, name).__name__ == f"numconv.{name}"
    assert name not in nc.__all__


PAGE = (pathlib.Path(nc.__file__).parents[1] / "docs" / "frameworks.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"<!-- (\w+) -->\n```python\n(.*?)```\n\nIt prints:\n\n```text\n(.*?)```", PAGE, re.DOTALL)


def test_every_example_is_found():
    assert len(EXAMPLES) == PAGE.count("```python") == 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize(("name", "code", "said"), EXAMPLES, ids=[name for name, *_ in EXAMPLES])
def test_the_examples_of_the_documentation(name, code, said, capsys):
    pytest.importorskip(name)
    exec(compile(code, "frameworks.md", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out == said
