"""How long work tells what it is doing: the library speaks to a Console, the CLI decides how that looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

#: Called with (done, total).
Progress = Callable[[int, int], None]


class NotedProgress(Protocol):
    """A :data:`Progress` that also shows a few words on how the work goes."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def duration(seconds: float) -> str:
    """As one would say it: ``40 s``, ``12 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Console(Protocol):
    """Where messages and progress go."""

    def say(self, text: str) -> None:
        """One line worth reading."""

    def task(self, title: str) -> AbstractContextManager[NotedProgress]:
        """A context manager that yields a :class:`NotedProgress`."""


class Silent:
    """Says nothing: the library's default."""

    def say(self, text: str) -> None:
        """Nothing."""

    @contextmanager
    def task(self, title: str) -> Iterator[NotedProgress]:
        """Nothing, for as long as the block runs."""
        yield lambda done, total, note="": None
