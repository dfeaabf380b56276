"""SciPy's functions for convolution, computed by numconv: the names, arguments, results and errors of `scipy.signal`.

Nothing is computed here: arguments are mapped to `numconv.conv`. What numconv has no kernels for is handed to SciPy: inputs without
dimensions or elements, dtypes such as object and longdouble, and arguments that SciPy refuses, with its errors. See
``docs/signal.md`` for the few differences.
"""

from .broadcasting import fftconvolve, oaconvolve
from .convolving import choose_conv_method, convolve, correlate
from .images import convolve2d, correlate2d

__all__ = ["choose_conv_method", "convolve", "convolve2d", "correlate", "correlate2d", "fftconvolve", "oaconvolve"]
