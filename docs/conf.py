"""The site of the documentation: the Markdown files of the repository, and the docstrings. CONTRIBUTING.md has its command."""

from importlib import metadata
from pathlib import Path
from typing import Any

project = "numconv"
author = copyright = "numconv developers"  # noqa: A001 - Sphinx's name
version = release = metadata.version("numconv-nd")

# The repository is the source, so that links between its files are links of the site.
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/*.md",
    "docs/reference/*.md",
    "examples/README.md",
    "examples/plugin/README.md",
    "asv_bench/README.md",
]
exclude_patterns = ["docs/README.md"]  # an index for those who read the files themselves
html_extra_path = ["site"]

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
default_role = "py:obj"
autodoc_member_order = "groupwise"
autodoc_mock_imports = ["torch"]  # the largest of packages, of which the page of numconv.torch needs the names alone
autodoc_typehints = "none"  # shapes and dtypes, which docstrings have, say more
maximum_signature_line_length = 100
myst_heading_anchors = 3
numpydoc_show_class_members = False

html_theme = "pydata_sphinx_theme"
html_theme_options = {"navigation_with_keys": False, "secondary_sidebar_items": ["page-toc"]}
html_copy_source = False

DOCS = Path(__file__).parent
INNER = ["architecture", "speed", "speed-avx2", "gpu-speed", "half", "amx", "gpu", "cupy"]
OTHERS = {path.stem for path in DOCS.glob("reference/*.md")} - {"numconv"}
CONTENTS = {
    "Guides": [
        *sorted(f"docs/{path.stem}" for path in DOCS.glob("*.md") if path.stem not in {*INNER, "README"}),
        "examples/README",
    ],
    "Reference": ["docs/reference/numconv", *sorted(f"docs/reference/{name}" for name in OTHERS)],
    "How it works": [
        *(f"docs/{name}" for name in INNER),
        "examples/plugin/README",
        "asv_bench/README",
        "CONTRIBUTING",
        "CHANGELOG",
    ],
}


def setup(app: Any) -> None:
    """Add the contents to the first page, which is the README of the repository; leave out what is only "Alias for field"."""

    def is_left_out(_app: Any, _what: str, _name: str, found: Any, skip: bool, _options: Any) -> bool:
        return skip or str(getattr(found, "__doc__", "")).startswith("Alias for field number")

    app.connect("autodoc-skip-member", is_left_out)

    def add_contents(_app: Any, page: str, source: list[str]) -> None:
        if page == root_doc:
            for caption, pages in CONTENTS.items():
                source[0] += "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])

    app.connect("source-read", add_contents)
