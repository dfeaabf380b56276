"""SciPy's functions, in ``numconv.signal`` and in ``scipy.signal``; both see the same arrays, and must agree."""

import functools

import numpy as np

import numconv.signal

CALLS = {
    "convolve 100000*9": ("convolve", (100_000,), (9,), {}),
    "convolve 100000*1001": ("convolve", (100_000,), (1001,), {}),
    "correlate 8192*4096": ("correlate", (8192,), (4096,), {}),
    "fftconvolve 512x512*33x33": ("fftconvolve", (512, 512), (33, 33), {}),
    "oaconvolve 1000000*501": ("oaconvolve", (1_000_000,), (501,), {}),
    "convolve2d 512x512*7x7 symm": ("convolve2d", (512, 512), (7, 7), {"boundary": "symm"}),
}


class Signal:
    """In single precision, mode "same"."""

    params = (list(CALLS), ["numconv", "scipy"])
    param_names = ("call", "library")

    def setup(self, call, library):
        self.call = _warm_call(call, library)

    def time_call(self, call, library):
        self.call()


@functools.cache
def _warm_call(name, library):
    import scipy.signal

    function, *shapes, options = CALLS[name]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
    calls = {
        module: functools.partial(getattr(home, function), *arrays, mode="same", **options)
        for module, home in (("numconv", numconv.signal), ("scipy", scipy.signal))
    }
    ours, theirs = (calls[module]() for module in ("numconv", "scipy"))
    if not np.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
        raise ValueError(f"{name}: numconv differs from scipy by {np.abs(ours - theirs).max():.1e}")
    return calls[library]
