"""The time a training may take, and how much of it is gone: interruptions do not count."""

from __future__ import annotations

import time


def now() -> float:
    """The present as :class:`Clock` takes it."""
    return time.monotonic()


class Clock:
    """Counts seconds from ``begun`` on (None: its making); ``limit`` in seconds bounds them, None does not."""

    def __init__(self, limit: float | None, *, begun: float | None = None) -> None:
        self.limit = limit
        self._start = now() if begun is None else begun

    def add(self, seconds: float) -> None:
        """Count what was spent before an interruption too."""
        self._start -= seconds

    @property
    def elapsed(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._start

    @property
    def left(self) -> float:
        """Seconds until the limit, infinite without one."""
        return float("inf") if self.limit is None else self.limit - self.elapsed

    def share(self, reserved: float) -> float:
        """How much (0-1) is gone of the time before the last ``reserved`` seconds; 0 without a limit."""
        if self.limit is None:
            return 0.0
        return 1.0 if reserved >= self.limit else min(1.0, self.elapsed / (self.limit - reserved))
