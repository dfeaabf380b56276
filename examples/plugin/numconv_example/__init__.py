"""An example backend for numconv: what its entry point names."""

from __future__ import annotations

from collections.abc import Sequence

from numconv.plugin import Implementation, Verdict

__all__ = ["backend"]


class ExampleBackend:
    """Runs wherever NumPy does, and only when it is asked for by name."""

    name = "example"
    device = "cpu"
    automatic = False
    version = "0.1.0"

    def availability(self) -> Verdict:
        """Whether it can run here; it needs nothing but NumPy."""
        return Verdict.yes("needs NumPy only")

    def implementations(self) -> Sequence[Implementation]:
        """All of them; imported here, so that listing the backends stays cheap."""
        from .shifted import ShiftedSum

        return (ShiftedSum(),)


backend = ExampleBackend()
