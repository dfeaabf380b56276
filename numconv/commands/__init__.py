"""One module a command of the command line: adding one is adding its file here and its name to ``NAMES``.

A module offers ``SUMMARY`` (one line), ``EXAMPLES`` (for ``--help``), ``add_arguments(parser)`` and ``run(arguments) -> int``.
It loads nothing heavy at its top: `numconv --help` imports them all.
"""

__all__ = ["NAMES"]

NAMES = ("info", "demo", "lecture", "train", "classify", "equivariance", "bench", "warmup")
