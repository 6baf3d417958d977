"""A console that keeps what is said to it."""

from __future__ import annotations

from edgeopt.console import Silent


class Listening(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """Keep it."""
        self.said.append(text)
