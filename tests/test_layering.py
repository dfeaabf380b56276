"""The rules of the house: who imports whom, what stays unloaded, and the public names and signatures."""

from __future__ import annotations

import ast
import inspect
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import numconv as nc

ROOT = pathlib.Path(nc.__file__).parents[1]
CORE = sorted((ROOT / "numconv").rglob("*.py"))
PLUGINS = sorted((ROOT / "backends").rglob("*.py"))
PLUGIN_PACKAGES = sorted(path.parent.name for path in (ROOT / "backends").glob("*/__init__.py"))
HEAVY = ("numba", "scipy", "cupy", "torch", "jax", "dask")


def name(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: pathlib.Path, package: str) -> Iterator[tuple[str, ast.stmt]]:
    """The absolute names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = f"{package}.{node.module or ''}".rstrip(".") if node.level else node.module or ""
            yield from ((f"{module}.{alias.name}", node) for alias in node.names)


def test_the_checkout_is_complete():
    assert len(CORE) > 10
    assert {"numconv_numba", "numconv_reference"} <= set(PLUGIN_PACKAGES)


@pytest.mark.parametrize("path", CORE, ids=name)
def test_the_core_imports_no_plugin(path):
    assert not [module for module, _ in imports(path, "numconv") if module.split(".")[0] in PLUGIN_PACKAGES]


@pytest.mark.parametrize("path", PLUGINS, ids=name)
def test_a_plugin_imports_nothing_of_the_core_but_its_plugin_module(path):
    own = path.relative_to(ROOT / "backends").parts[0]
    for module, node in imports(path, own):
        package, *rest = module.split(".")
        assert package not in set(PLUGIN_PACKAGES) - {own}, "a plugin imports no other plugin"
        assert package != "numconv" or rest[:1] == ["plugin"], f"line {node.lineno}: {module}"


@pytest.mark.parametrize("path", CORE, ids=name)
def test_the_core_imports_nothing_heavy_at_its_top(path):
    top = ast.parse(path.read_text()).body
    modules = [alias.name for node in top if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module or "" for node in top if isinstance(node, ast.ImportFrom) and not node.level]
    bridged = {path.stem, path.parent.name}  # numconv.torch is for those who have torch loaded
    assert not {module.split(".")[0] for module in modules} & set(HEAVY) - bridged


def test_listing_backends_loads_no_kernel_code():
    code = f"""
import json, sys
import numconv
before = [m for m in sys.modules if m.startswith("numconv.")]
infos = numconv.backends()
loaded = sorted({{m.split(".")[0] for m in sys.modules}} & set({HEAVY!r}))
parts = [m for m in sys.modules if m.startswith({tuple(f"{p}." for p in PLUGIN_PACKAGES)!r})]
print(json.dumps([before, loaded, parts, [info.name for info in infos if info.available]]))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    before, loaded, parts, available = json.loads(done.stdout)
    assert before == [], "the import itself loads no module of numconv"
    assert loaded == []
    assert parts == []
    assert "reference" in available


def test_py_typed():
    assert (ROOT / "numconv" / "py.typed").is_file()


# --- names


PUBLIC = {
    "conv", "conv_input_grad", "conv_weight_grad", "conv_backward", "conv_transpose", "conv_transpose_backward", "ConvGrads",
    "max_pool", "max_pool_backward", "max_unpool", "max_unpool_backward", "avg_pool", "avg_pool_backward", "lp_pool",
    "lp_pool_backward", "pad", "pad_backward", "unfold", "fold",
    "plan", "output_shape", "receptive_field", "as_matrix", "explain", "backends", "using", "warmup",
    "NumconvError", "ProblemError", "UnsupportedProblemError", "BackendUnavailableError", "UnknownBackendError", "__version__",
    "equivariance", "media", "nn", "signal", "training",
}  # fmt: skip


def test_public_names():
    assert set(nc.__all__) == PUBLIC
    assert len(nc.__all__) == len(PUBLIC)
    assert set(dir(nc)) >= PUBLIC
    for public in PUBLIC:
        assert getattr(nc, public) is not None


def test_unknown_names():
    with pytest.raises(AttributeError, match="module 'numconv' has no attribute 'convolve'"):
        nc.convolve  # noqa: B018 - the access is what is tested


def test_star_import():
    names: dict[str, Any] = {}
    exec("from numconv import *", names)
    assert set(names) >= PUBLIC - {"__version__"}


# --- signatures


CHOICE = "backend=None, algorithm=None, accuracy=None, dtype=None, out=None"
GEOMETRY = "stride=1, padding=0, dilation=1, groups=1, pad_mode='zeros', flip=False, layout='channels_first'"
POOLING = "stride=None, padding=0, dilation=1, ceil_mode=False"
LAYOUT = "layout='channels_first'"
NEEDS = "needs=('x', 'w', 'bias')"

SIGNATURES = {
    "conv": f"x, w, bias=None, *, {GEOMETRY}, activation=None, {CHOICE}",
    "conv_input_grad": f"grad_y, w, x_shape, *, {GEOMETRY}, {CHOICE}",
    "conv_weight_grad": f"grad_y, x, w_shape, *, {GEOMETRY}, {CHOICE}",
    "conv_backward": f"grad_y, x, w, *, {NEEDS}, {GEOMETRY}, {CHOICE}",
    "conv_transpose": f"x, w, bias=None, *, output_padding=0, {GEOMETRY}, activation=None, {CHOICE}",
    "conv_transpose_backward": f"grad_y, x, w, *, {NEEDS}, output_padding=0, {GEOMETRY}, {CHOICE}",
    "max_pool": f"x, window, *, {POOLING}, {LAYOUT}, return_indices=False, {CHOICE}",
    "max_pool_backward": f"grad_y, x, window, *, indices=None, {POOLING}, {LAYOUT}, {CHOICE}",
    "max_unpool": f"y, indices, x_shape, *, ndim=None, {LAYOUT}, {CHOICE}",
    "max_unpool_backward": f"grad, indices, *, ndim=None, {LAYOUT}, {CHOICE}",
    "avg_pool": f"x, window, *, {POOLING}, count_include_pad=True, {LAYOUT}, {CHOICE}",
    "avg_pool_backward": f"grad_y, x_shape, window, *, {POOLING}, count_include_pad=True, {LAYOUT}, {CHOICE}",
    "lp_pool": f"x, window, *, p=2, {POOLING}, {LAYOUT}, {CHOICE}",
    "lp_pool_backward": f"grad_y, x, window, *, p=2, {POOLING}, {LAYOUT}, {CHOICE}",
    "pad": f"x, width, mode='zeros', *, {LAYOUT}, {CHOICE}",
    "pad_backward": f"grad, width, mode='zeros', *, {LAYOUT}, {CHOICE}",
    "unfold": f"x, window, *, stride=1, padding=0, dilation=1, {CHOICE}",
    "fold": f"columns, x_shape, window, *, stride=1, padding=0, dilation=1, {CHOICE}",
    "plan": f"op, x_shape, w_shape, dtype='float32', *, bias=False, activation=None, like=None, {NEEDS}, backend=None, "
    "algorithm=None, accuracy=None, out_dtype=None, **options",
    "explain": "op, x_shape, w_shape, dtype='float32', *, bias=False, like=None, backend=None, algorithm=None, accuracy=None, "
    "out_dtype=None, **options",
    "output_shape": "op, x_shape, w_shape, **options",
    "receptive_field": "layers",
    "as_matrix": "w, x_shape, *, stride=1, padding=0, dilation=1, groups=1, pad_mode='zeros', flip=False, layout='channels_first'",
    "backends": "",
    "using": "backend=None, algorithm=None, accuracy=None, tune=None, max_workspace=None, threads=None",
    "warmup": "dtypes=('float32',), *, backend=None, progress=None",
}


def parameters(signature: inspect.Signature) -> tuple[list[tuple[Any, ...]], set[tuple[Any, ...]]]:
    """Positional parameters in their order, and keyword-only ones in any: their order means nothing."""
    found = [(p.name, p.kind, p.default) for p in signature.parameters.values()]
    keywords = {each for each in found if each[1] is inspect.Parameter.KEYWORD_ONLY}
    return [each for each in found if each not in keywords], keywords


@pytest.mark.parametrize("function", SIGNATURES)
def test_signatures(function):
    expected: dict[str, Any] = {}
    exec(f"def function({SIGNATURES[function]}): pass", expected)
    assert parameters(inspect.signature(getattr(nc, function))) == parameters(inspect.signature(expected["function"]))


def test_every_function_has_a_signature_here():
    assert set(SIGNATURES) == {public for public in PUBLIC if inspect.isfunction(getattr(nc, public))}


@pytest.mark.parametrize("function", SIGNATURES)
def test_docstrings(function):
    """numpydoc's sections; every parameter is named, and there is an example."""
    text = inspect.getdoc(getattr(nc, function)) or ""
    sections = {
        title for title in ("Parameters", "Returns", "Raises", "Yields", "Examples") if f"\n{title}\n{'-' * len(title)}\n" in text
    }
    names = {p.name for p in inspect.signature(getattr(nc, function)).parameters.values()}
    assert sections >= {"Examples"}
    assert sections & {"Returns", "Yields"}
    assert function == "backends" or sections >= {"Parameters", "Raises"}
    described = text.split("\nParameters\n", maxsplit=1)[-1].split("\nReturns\n", maxsplit=1)[0].split("\nYields\n", maxsplit=1)[0]
    for parameter in names:
        assert parameter in described, parameter


def test_a_type_checker_sees_every_public_name():
    """It is told by imports that never run, beside the table from which the names are loaded."""
    tree = ast.parse(pathlib.Path(nc.__file__).read_text(encoding="utf-8"))
    (told,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {alias.asname for node in told.body for alias in node.names}
    assert seen == set(nc.__all__) - {"__version__"} | {"dask", "jax", "torch"}


def test_results_are_named():
    assert nc.ConvGrads._fields == ("x", "w", "bias")
    assert nc.ConvGrads() == (None, None, None)
