"""How much of the machine others used while an engine was timed: the commonest reason for milliseconds that lie."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

_STAT = Path("/proc/stat")
_BUSY = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq
_STEAL = 7  # what a hypervisor gave to others


class OtherLoad:
    """Adds up, over windows, the CPU time of everything but the process that is being timed. Linux only."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._others: list[float] = []
        self._stolen: list[float] = []

    @property
    def cores(self) -> float | None:
        """Cores that others kept busy or a hypervisor took, on average; None where it cannot be read."""
        return max(0.0, (sum(self._others) + sum(self._stolen)) / sum(self._seconds)) if sum(self._seconds) else None

    def by_window(self) -> dict[str, list[float]]:
        """Cores that others kept busy, and that a hypervisor took, in each window; empty where it cannot be read."""

        def rates(values: list[float]) -> list[float]:
            return [
                round(max(0.0, one / seconds), 3) for one, seconds in zip(values, self._seconds, strict=True) if seconds
            ]

        return {"other_cores": rates(self._others), "steal_cores": rates(self._stolen)}

    @contextmanager
    def watch(self, own_cpu_seconds: Callable[[], float]) -> Iterator[None]:
        """Count what happens in the block; a block that raises does not count."""
        if not _STAT.is_file():
            yield
            return
        begin, (busy, stolen), own = monotonic(), _busy_seconds(), own_cpu_seconds()
        yield
        # The process is stopped after its answer, so that reading takes place outside what is measured.
        busy_now, stolen_now = _busy_seconds()
        self._others.append((busy_now - busy) - (own_cpu_seconds() - own))
        self._stolen.append(stolen_now - stolen)
        self._seconds.append(monotonic() - begin)


def _busy_seconds() -> tuple[float, float]:
    """CPU seconds that all cores have been busy, and were taken by a hypervisor, since the machine started."""
    with _STAT.open(encoding="utf-8") as handle:
        ticks = [int(one) for one in handle.readline().split()[1:]]
    tick = os.sysconf("SC_CLK_TCK")
    busy = sum(ticks[index] for index in _BUSY if index < len(ticks))
    return busy / tick, (ticks[_STEAL] if len(ticks) > _STEAL else 0) / tick
