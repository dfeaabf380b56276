"""The errors of numconv. All derive from `NumconvError`, and each also from the built-in class that a caller would expect."""


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
