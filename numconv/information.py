"""What `numconv info` shows: versions, machine, environment, caches, backends. What cannot be found out is a line, not an error."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from . import __version__
from .planning import backends
from .plugin import LEVELS, cache_dir
from .registry import default_registry

__all__ = ["describe", "machine", "versions"]

Rows = list[tuple[str, str]]

# The instruction sets that decide which kernel is fast, by LLVM's names.
_FEATURES = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vnni", "avx512bf16", "avx512fp16", "amx-tile", "amx-bf16", "amx-int8",
    "neon", "dotprod", "fullfp16", "bf16", "i8mm", "sve", "sve2", "v",
)  # fmt: skip
_PREFIXES = ("NUMCONV_", "NUMBA_", "OMP_", "KMP_", "MKL_NUM_", "OPENBLAS_NUM_")


def describe(implementations: bool = False, measure: bool = False) -> str:
    """All that `numconv info` prints.

    Parameters
    ----------
    implementations : bool
        Also list each backend's implementations, with their operations and accuracy levels.
    measure : bool
        Also measure the machine through each backend, which takes some seconds.
    """
    parts = [
        _section("versions", versions()),
        _section("machine", machine()),
        _section("environment", _environment()),
        _section("caches", [_cache()]),
        f"backends\n{backends()!r}",
        *(_section(f"backend {name}", rows) for name, rows in _told("information")),
        *(_section(f"measured by {name}", rows) for name, rows in (_told("measurements") if measure else ())),
    ]
    if implementations:
        parts.append("implementations\n" + "\n".join(_implementations()))
    return "\n\n".join(parts)


def _section(title: str, rows: Rows) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:{width}s}  {value}" for name, value in rows)])


def versions() -> Rows:
    """Of numconv and Python, with where they are, and of what numconv is built on."""
    rows = [("numconv", f"{__version__}, in {Path(__file__).parent}"), ("Python", f"{platform.python_version()}, {sys.executable}")]
    return rows + [(name, _version(name.lower())) for name in ("NumPy", "Numba", "llvmlite", "SciPy")]


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def machine() -> Rows:
    """The system, the processor with its features, and the cores."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name, features = _processor()
    return [
        ("system", platform.platform()),
        ("processor", name),
        ("features", features),
        ("cores", f"{os.cpu_count()}, of which this process may use {usable}"),
    ]


def _processor() -> tuple[str, str]:
    """The processor's name, and those of its features that matter here."""
    name = _model_name()
    try:
        from llvmlite import binding

        found = binding.get_host_cpu_features()
        return f"{name} ({binding.get_host_cpu_name()})", ", ".join(
            f for f in _FEATURES if found.get(f)
        ) or "none of those known here"
    except (ImportError, RuntimeError) as error:
        return name, f"unknown: {error}"


def _model_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _environment() -> Rows:
    rows = [(name, value) for name, value in sorted(os.environ.items()) if name.startswith(_PREFIXES)]
    return rows or [("none set", "of " + ", ".join(f"{prefix}*" for prefix in _PREFIXES))]


def _cache() -> tuple[str, str]:
    """The user's cache folder with everything in it; a backend tells where its own kernels are."""
    try:
        folder = cache_dir()
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    except (ImportError, OSError, RuntimeError) as error:
        return "folder", f"unknown: {error}"
    place = next(path for path in (folder, *folder.parents) if path.exists())
    note = "" if os.access(place, os.W_OK) else f", not writable: no permission for {place}"
    return "folder", f"{folder}, {len(sizes)} files, {sum(sizes):,} bytes{note}"


def _told(method: str) -> Iterator[tuple[str, Rows]]:
    """What the available backends tell by an optional method ``() -> Mapping[str, str]``: information, measurements."""
    for row in backends():
        tell = getattr(default_registry().backend(row.name), method, None) if row.available else None
        if tell is None:
            continue
        try:
            rows = [(str(name), str(value)) for name, value in tell().items()]
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything, and the rest is still wanted
            rows = [("failed", f"{type(error).__name__}: {error}")]
        if rows:
            yield row.name, rows


def _implementations() -> Iterator[str]:
    for row in backends():
        if not row.available:
            yield f"  {row.name}: {row.reason}"
            continue
        try:
            found = default_registry().backend(row.name).implementations()
        except Exception as error:  # noqa: BLE001 - as above
            yield f"  {row.name}: failed: {type(error).__name__}: {error}"
            continue
        for each in found:
            yield f"  {row.name} {each.name}"
            yield f"    operations  {', '.join(sorted(each.ops))}"
            yield f"    accuracy    {', '.join(level for level in LEVELS if level in each.levels)}"
