"""What every backend has to keep, as tests: for ours and for anybody's.

A plugin tests itself in five lines::

    from numconv.testing import BackendContract


    class TestExample(BackendContract):
        backend = "example"

`check` compares an implementation with the reference backend on one problem; `bound` is the one table of tolerances.
"""

from .cases import inputs
from .checking import candidates, check
from .contract import BackendContract
from .problems import CONV_PROBLEMS, POOL_PROBLEMS, WINDOW_PROBLEMS
from .tolerances import bound

__all__ = ["CONV_PROBLEMS", "POOL_PROBLEMS", "WINDOW_PROBLEMS", "BackendContract", "bound", "candidates", "check", "inputs"]
