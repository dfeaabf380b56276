"""A bar in the terminal, by tqdm where it is installed."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

__all__ = ["Bar"]


class Bar:
    """Steps done of a total, and a text beside them."""

    def __init__(self, total: int, done: int, shown: bool):
        self._bar: Any = None
        if shown:
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=total, initial=done, unit="step", leave=True)

    def step(self) -> None:
        """One more."""
        if self._bar is not None:
            self._bar.update()

    def tell(self, text: str) -> None:
        """Show `text` beside the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
