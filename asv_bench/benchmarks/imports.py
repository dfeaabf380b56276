"""Import time: each in a process of its own."""


def timeraw_import_numpy():
    """The yardstick: numconv may take a small multiple of it."""
    return "import numpy"


def timeraw_import_and_list_backends():
    return "import numconv; numconv.backends()"


def timeraw_first_convolution():
    """With the kernels compiled before, by an earlier repetition."""
    return "import numconv, numpy as np; numconv.conv(np.ones((1, 1, 8, 8), 'f4'), np.ones((16, 1, 3, 3), 'f4'), padding=1)"
