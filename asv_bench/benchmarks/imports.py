"""Import, cold start and first compilation: each in a process of its own."""

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
