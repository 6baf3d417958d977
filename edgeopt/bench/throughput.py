"""The most pictures a second: batches and processes side by side are tried, within a latency that may be capped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from edgeopt.bench.child import Child
from edgeopt.bench.spec import EngineSpec
from edgeopt.errors import BackendError

#: Times the target's own batch.
BATCHES = (1, 2, 4, 8, 16)
#: Each setting is timed this long, s, after a warm-up of half as long.
SECONDS = 0.6
#: A larger batch is not tried when the last one gave less than this share of the best with as many processes.
HOPELESS = 0.8


@dataclass(frozen=True)
class Setting:
    """``streams`` processes at once, ``threads`` each; ``p90_ms`` is of a call of ``batch`` pictures, host to host."""

    batch: int
    streams: int
    threads: int
    throughput_ips: float
    p50_ms: float
    p90_ms: float


@dataclass(frozen=True)
class Search:
    """What was tried, and the best of those whose ``p90_ms`` is at most ``cap_ms`` (None: any latency will do).

    The best of many short measurements was lucky, too: its figures are those of ``again``, where it was measured anew,
    and when it then broke the cap the next best were, until one did not.
    """

    tried: tuple[Setting, ...]
    cap_ms: float | None
    again: tuple[Setting, ...] = ()

    @property
    def best(self) -> Setting | None:
        """None when no setting keeps the cap."""
        found = self.again[-1] if self.again else next(iter(self.ranked()), None)
        return found if found is not None and self.keeps_cap(found) else None

    def ranked(self) -> list[Setting]:
        """Of what was tried, what keeps the cap, the best first."""
        return sorted(filter(self.keeps_cap, self.tried), key=lambda one: -one.throughput_ips)

    def keeps_cap(self, setting: Setting) -> bool:
        """Whether nine calls in ten are within the cap."""
        return self.cap_ms is None or setting.p90_ms <= self.cap_ms

    def to_json(self) -> dict[str, Any]:
        """As in ``latency.json``."""
        best = self.best
        tried = [asdict(one) for one in self.tried]
        again = [asdict(one) for one in self.again]
        return {"cap_ms": self.cap_ms, "best": asdict(best) if best else None, "tried": tried, "again": again}


def search(
    spec: EngineSpec, *, cores: int, cap_ms: float | None = None, seconds: float = SECONDS, timeout: float = 300.0
) -> Search:
    """Try ``spec`` (completed) with 1, 2, 4, ... processes that share ``cores``, each with growing batches.

    Batches stop growing when the cap is broken, throughput falls, or the engine takes no more. Raises BackendError when
    it cannot even be opened once.
    """
    tried: list[Setting] = []
    for streams in _powers(cores):
        threads = max(1, cores // streams)
        try:
            with _children([replace(spec, threads=threads)] * streams, timeout) as children:
                for batch in (spec.target.batch * factor for factor in BATCHES):
                    setting = _try(children, batch, threads, seconds, timeout)
                    tried.append(setting)
                    best = max(one.throughput_ips for one in tried if one.streams == streams)
                    too_slow = cap_ms is not None and setting.p90_ms > cap_ms
                    if too_slow or setting.throughput_ips < HOPELESS * best:
                        break
        except BackendError:  # of a batch the engine does not take, or of memory that ran out with so many of them
            if not tried:
                raise
    return _confirmed(spec, Search(tuple(tried), cap_ms), seconds, timeout)


def _confirmed(spec: EngineSpec, found: Search, seconds: float, timeout: float) -> Search:
    """With the best measured anew, in new processes and twice as long; what then breaks the cap yields to the next."""
    for one in found.ranked():
        try:
            with _children([replace(spec, threads=one.threads)] * one.streams, timeout) as children:
                setting = _try(children, one.batch, one.threads, 2 * seconds, timeout)
        except BackendError:  # of memory, most likely, that sufficed before
            continue
        found = replace(found, again=(*found.again, setting))
        if found.keeps_cap(setting):
            break
    return found


def _powers(cores: int) -> list[int]:
    return sorted({2**power for power in range(cores.bit_length()) if 2**power <= cores} | {cores})


@contextmanager
def _children(specs: Sequence[EngineSpec], timeout: float) -> Iterator[list[Child]]:
    children: list[Child] = []
    try:
        for spec in specs:
            children.append(Child(spec))
            children[-1].open(timeout)
        yield children
    finally:
        for child in children:
            with suppress(OSError):
                child.close()


def _try(children: Sequence[Child], batch: int, threads: int, seconds: float, timeout: float) -> Setting:
    """Time all children at once."""
    answers: list[dict[str, Any]] = []
    for length in (seconds / 2, seconds):
        for child in children:
            child.send({"window": length, "iterations": 3, "batch": batch})
        answers = [child.receive(timeout) for child in children]
    samples = [np.asarray(answer["samples_ms"]) for answer in answers]
    rate = sum(1000.0 * batch * len(one) / float(one.sum()) for one in samples)
    p50, p90 = np.percentile(np.concatenate(samples), [50, 90])
    return Setting(batch, len(children), threads, rate, float(p50), float(p90))
