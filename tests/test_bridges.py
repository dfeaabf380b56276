"""The bridges to other libraries, where these are not installed."""

from __future__ import annotations

import importlib
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
