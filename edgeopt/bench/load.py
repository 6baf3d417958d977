"""How much of the machine others used while an engine was timed: the commonest reason for milliseconds that lie."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

_STAT = Path("/proc/stat")
_BUSY = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal


class OtherLoad:
    """Adds up, over windows, the CPU time of everything but the process that is being timed. Linux only."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._others = 0.0

    @property
    def cores(self) -> float | None:
        """Cores that others kept busy, on average; None where it cannot be read."""
        return max(0.0, self._others / self._seconds) if self._seconds else None

    @contextmanager
    def watch(self, own_cpu_seconds: Callable[[], float]) -> Iterator[None]:
        """Count what happens in the block; a block that raises does not count."""
        if not _STAT.is_file():
            yield
            return
        begin, busy, own = monotonic(), _busy_seconds(), own_cpu_seconds()
        yield
        # The process is stopped after its answer, so that reading takes place outside what is measured.
        self._others += (_busy_seconds() - busy) - (own_cpu_seconds() - own)
        self._seconds += monotonic() - begin


def _busy_seconds() -> float:
    """CPU seconds that all cores have been busy since the machine started."""
    with _STAT.open(encoding="utf-8") as handle:
        ticks = handle.readline().split()[1:]
    return sum(int(ticks[index]) for index in _BUSY if index < len(ticks)) / os.sysconf("SC_CLK_TCK")
