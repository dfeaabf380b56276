"""Import, cold start and first compilation: each in a process of its own."""

import subprocess
import sys

_CONV = "numconv.conv(np.ones((1, 1, 8, 8), 'f4'), np.ones((16, 1, 3, 3), 'f4'), padding=1)"
_EMPTY_CACHE = """
import os, tempfile
folder = tempfile.TemporaryDirectory()
os.environ["NUMCONV_CACHE_DIR"] = folder.name
import numconv, numpy as np
"""


def timeraw_import_numpy():
    """The yardstick: numconv may take a small multiple of it."""
    return "import numpy"


def timeraw_import_and_list_backends():
    return "import numconv; numconv.backends()"


def timeraw_first_convolution():
    """With the kernels compiled before, by an earlier repetition."""
    return f"import numconv, numpy as np; {_CONV}"


def timeraw_command_line():
    return "import contextlib, io, numconv.cli as cli\nwith contextlib.redirect_stdout(io.StringIO()): cli.main(['info'])"


class FirstCompile:
    """The first call on a machine, into an empty cache."""

    params = ("forward", "backward", "max_pool")
    param_names = ("call",)
    number, repeat = 1, (1, 3, 60)
    timeout = 240

    def timeraw_first_compile(self, call):
        code = {
            "forward": "numconv.conv(np.ones((1, 16, 9, 9), 'f4'), np.ones((16, 16, 3, 3), 'f4'), padding=1)",
            "backward": "x = np.ones((1, 16, 9, 9), 'f4'); numconv.conv_backward(x, x, np.ones((16, 16, 3, 3), 'f4'), padding=1)",
            "max_pool": "numconv.max_pool(np.ones((1, 16, 9, 9), 'f4'), 2)",
        }
        return _EMPTY_CACHE + code[call]


_ALL_ROWS = """
from numconv.benchmarking.rows import all_rows
from numconv_numba.compiling import compiler
for problem in (row.problem for row in all_rows() if row.problem.dtype == "float32"):
    options = {name: getattr(problem, name) for name in ("stride", "padding", "dilation", "groups")}
    x, bias = np.ones(problem.x_shape, "float32"), np.ones(problem.k, "float32")
    w = np.random.default_rng(0).standard_normal(problem.w_shape, "float32")  # of no rank one, which has a way of its own
    numconv.conv_backward(numconv.conv(x, w, bias, **options), x, w, **options)
found = compiler.statistics().values()
print(sum(each.misses for each in found), sum(each.seconds for each in found))
"""


class Compilations:
    """What all rows of float32 compile, forward and backward: how often the compiler runs, and for how long."""

    params = ("runs", "seconds")
    param_names = ("of",)
    timeout = 600

    def setup_cache(self):
        """Both, from a process with an empty cache."""
        done = subprocess.run([sys.executable, "-c", _EMPTY_CACHE + _ALL_ROWS], capture_output=True, text=True, check=True)
        return dict(zip(self.params, map(float, done.stdout.split()), strict=True))

    def track_compilations(self, found, of):
        return found[of]
