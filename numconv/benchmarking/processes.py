"""Processes that time one implementation each, of which only one runs at a time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from numconv.errors import BackendUnavailableError, NumconvError

__all__ = ["Worker", "WorkerDiedError"]

# Loads the folder of the worker as a package of its own: numconv itself must not be on the path of a peer's interpreter, and that
# of the current directory must not come before the one that is to be measured.
LAUNCH = """
import sys
sys.path = [path for path in sys.path if path]
import importlib.util, json
name, folder = "numconv_worker", sys.argv[1]
spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules[name] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.main(sys.argv[2], json.loads(sys.argv[3]))
"""
FOLDER = Path(__file__).parent / "worker"


class WorkerDiedError(NumconvError):
    """A process ended before it answered: a crash, or a signal."""


class Worker:
    """A process that times one implementation; between its turns it is stopped, so that none of its threads spins.

    Two libraries with thread pools of their own in one process, or awake at the same time, slow each other down, by a factor of
    ten in the worst cases.

    Parameters
    ----------
    implementation : str
        ``numconv`` or a peer.
    options : mapping, optional
        For numconv: ``backend``, ``algorithm``.
    python : str, optional
        The interpreter; by default this one.
    environment : mapping, optional
        Variables to set, or to remove where the value is None.

    Raises
    ------
    BackendUnavailableError
        If the interpreter lacks the implementation.
    """

    def __init__(
        self,
        implementation: str,
        options: Mapping[str, Any] | None = None,
        python: str = sys.executable,
        environment: Mapping[str, str | None] | None = None,
    ):
        self.implementation = implementation
        variables = {name: value for name, value in (os.environ | (environment or {})).items() if value is not None}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        command = [python, "-c", LAUNCH, str(FOLDER), implementation, json.dumps(options or {})]
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._errors, text=True, env=variables)
        except OSError:
            self._errors.close()
            raise
        try:
            hello = self._answer()
            if "missing" in hello:
                raise BackendUnavailableError(f"{implementation} is not there for {python}: {hello['missing']}")
        except BaseException:
            self.close()
            raise
        self.version: str = hello["version"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Wake the process for one request, and stop it again."""
        self._signal("SIGCONT")
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died before it could read: `_answer` tells how
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # a request that it did not live to read
                    stream.close()
        self._process.wait()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerDiedError(f"{self.implementation}: {self._end()}")
        self._signal("SIGSTOP")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _signal(self, name: str) -> None:
        if hasattr(signal, name):  # not on Windows, where an idle pool must fall asleep by itself
            self._process.send_signal(getattr(signal, name))

    def _end(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        last = (self._errors.read().decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
        return f"the process ended ({how}): {last}"
