"""The peak of a process that computes one pass of a row: its arrays, numconv with its kernels, and working memory."""

import functools

import numconv
from numconv.plugin import parse

from . import CHOSEN, PASSES, case


class Memory:
    """Nothing is checked here, since that would need more memory; `forward.py` and `backward.py` check the same rows."""

    params = (CHOSEN, PASSES)
    param_names = ("problem", "direction")

    def setup(self, problem, direction):
        options = {name: getattr(parse(problem), name) for name in ("stride", "padding", "dilation", "groups")}
        x, w, grad_y = case(problem, direction).arrays()
        convolve = (numconv.conv, x, w) if direction == "forward" else (numconv.conv_backward, grad_y, x, w)
        self.call = functools.partial(*convolve, **options)

    def peakmem_pass(self, problem, direction):
        self.call()
