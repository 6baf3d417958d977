"""How long work tells what it is doing: the library speaks to a Console, the CLI decides how that looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

#: Called with (done, total).
Progress = Callable[[int, int], None]


class Console(Protocol):
    """Where messages and progress go."""

    def say(self, text: str) -> None:
        """One line worth reading."""

    def task(self, title: str) -> AbstractContextManager[Progress]:
        """A context manager that yields a :data:`Progress`."""


class Silent:
    """Says nothing: the library's default."""

    def say(self, text: str) -> None:
        """Nothing."""

    @contextmanager
    def task(self, title: str) -> Iterator[Progress]:
        """Nothing, for as long as the block runs."""
        yield lambda done, total: None
