"""The errors of numconv. All derive from `NumconvError`, and each also from the built-in class that a caller would expect."""

import difflib
from collections.abc import Iterable


class NumconvError(Exception):
    """Base class of every error that numconv raises on purpose."""


class ProblemError(NumconvError, ValueError):
    """What was asked makes no sense, whoever computes it: shapes, options or dtypes disagree."""


class UnsupportedProblemError(NumconvError, NotImplementedError):
    """The problem is valid, but no backend that may be asked computes it. The text says why, one reason each."""


class BackendUnavailableError(NumconvError, ImportError):
    """A backend that is known cannot run here: a package, a driver or a device is missing, or it failed to load."""


class MissingPackageError(NumconvError, ImportError):
    """An optional package that this needs is not installed. The text says how to get it."""


class UnknownBackendError(NumconvError, ValueError):
    """No installed plugin has this name."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """What an error text about an unknown name ends with: the known name that is most like it, if one is.

    Examples
    --------
    >>> from numconv.errors import did_you_mean
    >>> did_you_mean("winogard", ("blocked", "winograd")), did_you_mean("x", ("blocked", "winograd"))
    ("; did you mean 'winograd'?", '')
    """
    close = difflib.get_close_matches(str(name), list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""
