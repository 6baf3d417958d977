"""The protocol: every engine in its own process, warmed up, then rounds of one window each until the ratios are known.

Every round goes through the engines in a new order: what always came after the same other was seen 4 % slower for it.
A process keeps the memory it was given, well or badly placed, and with it a time that was seen to be up to 15 % off: so
all are started anew at half-time, all rounds are taken together, and intervals reach over what each start showed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

import numpy as np

from edgeopt import allotment, environment
from edgeopt.bench.child import Child
from edgeopt.bench.load import OtherLoad
from edgeopt.bench.result import BenchResult, EngineResult
from edgeopt.bench.spec import EngineSpec
from edgeopt.errors import REPORT, BackendError, ConfigError
from edgeopt.metrics import ratio_interval

#: Window length, s: long against a scheduler's tick, short against drifts of the machine.
SHORTEST_WINDOW, LONGEST_WINDOW = 0.05, 0.4
#: Rounds a budget of seconds is divided into; fewer, from a start on, before stopping early would make a guess of it.
ROUNDS_WANTED, ROUNDS_BEFORE_STOPPING, ROUNDS_BETWEEN_LOOKS = 24, 12, 12
#: How often all engines are started anew, unless stated otherwise.
STARTS = 2
WARM_UP_SECONDS = 0.5
#: A window may take this much longer, s, and twenty times as long as expected, before its engine counts as hanging.
GRACE_SECONDS = 30.0
#: Least iterations of a window; engines that need over half a second for one get fewer.
ITERATIONS, SLOW_ITERATIONS, SLOW_MS = 10, 3, 500.0


class _Runner:
    """One engine with what was measured so far, and its present process."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.child: Child | None = None
        self.opened: dict[str, Any] = {}
        self.memory_bytes = 0
        self.windows: list[tuple[float, ...]] = []
        self.medians: list[float] = []
        self.starts: list[int] = []  # windows of each
        self.typical_ms = 0.0
        self.device_ms: list[float] = []
        self.cpu_ms: list[float] = []
        self.cold_start_s: float | None = None
        self.end_to_end: dict[str, Any] | None = None
        self.load = OtherLoad()

    def open(self, timeout: float) -> None:
        """In a new process. How long that takes is kept of the quickest: who comes first reads files for all others."""
        started = monotonic()
        self.child = Child(self.spec)
        opened = self.child.open(timeout)
        took = monotonic() - started  # it answered a picture before it said so
        self.starts.append(0)
        if self.cold_start_s is None or took < self.cold_start_s:
            self.cold_start_s, self.opened = took, opened

    def close(self) -> None:
        if self.child is not None:
            self.child.close()
            self.child = None

    def look_at(self, pictures: Path, timeout: float) -> None:
        assert self.child is not None
        self.end_to_end = self.child.end_to_end(pictures, timeout)

    def warm_up(self, timeout: float) -> None:
        assert self.child is not None
        samples = self.child.window(WARM_UP_SECONDS, 1, timeout)["samples_ms"]
        self.typical_ms = float(np.median(samples))

    def measure(self, seconds: float, timeout: float) -> None:
        assert self.child is not None
        least = ITERATIONS if self.typical_ms < SLOW_MS else SLOW_ITERATIONS
        expected = seconds + (least + 3) * self.typical_ms / 1000
        with self.load.watch(self.child.cpu_seconds):
            answer = self.child.window(seconds, least, min(timeout, GRACE_SECONDS + 20 * expected))
        self.starts[-1] += 1
        self.windows.append(tuple(answer["samples_ms"]))
        self.medians.append(float(np.median(answer["samples_ms"])))
        if answer["device_ms"]:
            self.device_ms.append(float(np.median(answer["device_ms"])))
        self.cpu_ms.append(float(answer["cpu_ms"]))
        self.memory_bytes = max(self.memory_bytes, int(answer["memory_bytes"]))

    def result(self) -> EngineResult:
        return EngineResult(
            spec=self.spec,
            windows=tuple(self.windows),
            load_s=float(self.opened["load_s"]),
            peak_memory_bytes=self.memory_bytes,
            session=self.opened["session"],
            other_load_cores=self.load.cores,
            fits_target=environment.matches(self.spec.target.match),
            cold_start_s=self.cold_start_s,
            device_ms=tuple(self.device_ms),
            cpu_ms=tuple(self.cpu_ms),
            end_to_end=self.end_to_end,
            load_by_window=self.load.by_window(),
            starts=tuple(self.starts),
        )


class _Group:
    """The engines that are still in the race; one that fails is named, ended and left behind."""

    def __init__(self, specs: Sequence[EngineSpec], timeout: float) -> None:
        self.timeout = timeout
        self.errors: dict[str, BackendError] = {}
        self.lost_seconds = 0.0  # waiting for engines that failed; the others shall not pay for it
        self.runners = {spec.key: _Runner(spec) for spec in specs}
        self._order = np.random.default_rng(0)

    def start(self) -> Iterator[str]:
        """New processes for all, opened and warmed up one after another, so that none disturbs the next one's loading.

        Each time in an order of its own: what is opened first has its pick of the memory.
        """
        self.close()
        for runner in self._shuffled():
            if self._try(runner, lambda one: one.open(self.timeout)):
                self._try(runner, lambda one: one.warm_up(self.timeout))
            yield runner.spec.key

    def round(self, seconds: float) -> None:
        """One window of each, in an order of its own."""
        for runner in self._shuffled():
            self._try(runner, lambda one: one.measure(seconds, self.timeout))

    def look_at(self, pictures: Path) -> None:
        """From the encoded picture to the answer, one engine at a time."""
        for runner in self.runners.values():
            with suppress(BackendError):  # it was timed already: a picture that cannot be decoded does not undo that
                runner.look_at(pictures, self.timeout)

    def close(self) -> None:
        for runner in self.runners.values():
            runner.close()

    def _shuffled(self) -> list[_Runner]:
        runners = list(self.runners.values())
        return [runners[place] for place in self._order.permutation(len(runners))]

    def _try(self, runner: _Runner, act: Callable[[_Runner], None]) -> bool:
        begin = monotonic()
        try:
            act(runner)
        except BackendError as error:
            self.lost_seconds += monotonic() - begin
            self.errors[runner.spec.key] = error
            del self.runners[runner.spec.key]
            runner.close()
            return False
        return True


def bench(
    specs: Sequence[EngineSpec],
    *,
    pictures: Path,
    preprocess: Path,
    seconds: float,
    starts: int = STARTS,
    threads: int = 0,
    width: float = 0.03,
    timeout: float = 300.0,
    samples: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> BenchResult:
    """Measure ``specs`` against each other for about ``seconds`` (opening and warming up come on top).

    ``pictures`` is a prepared set's folder (``data/sets/<key>``) and ``preprocess`` the ``preprocess.json`` that goes
    with it. Measuring stops early when every engine's ratio to the first one is known to within ``width`` of itself.
    An engine that fails, dies or gives no answer within ``timeout`` seconds is named in ``failures`` and the rest are
    still measured; BackendError is raised only when none is left. ``samples`` is a folder of encoded pictures, for the
    way from a file to the answer; it is walked when the windows are done. ``progress`` is called with (seconds done,
    seconds).
    """
    twice = [key for key, count in Counter(spec.key for spec in specs).items() if count > 1]
    if not specs:
        raise ConfigError("there is no engine to measure", fix="pass at least one EngineSpec")
    if twice:
        raise ConfigError(f"engines named twice: {', '.join(twice)}", fix="give every EngineSpec a key of its own")
    threads = threads or allotment.usable_cores()
    complete = [spec.completed(pictures=pictures, preprocess=preprocess, threads=threads) for spec in specs]
    tell = progress or (lambda done, total: None)
    total = max(1, round(seconds))
    before, measured = environment.record(), 0.0
    with _group(complete, timeout) as group:
        for measured in _measured(group, seconds, width, starts):
            tell(min(total, int(measured)), total)
        if samples is not None:
            group.look_at(samples.absolute())
        if not group.runners:
            reasons = "; ".join(f"{key}: {error.message}" for key, error in group.errors.items())
            fixes = dict.fromkeys(error.fix for error in group.errors.values() if error.fix)
            raise BackendError(f"no engine could be measured: {reasons}", fix="; ".join(fixes) or REPORT)
        tell(total, total)
        return BenchResult(
            id=uuid4().hex,
            engines={key: runner.result() for key, runner in group.runners.items()},
            failures={key: str(error) for key, error in group.errors.items()},
            starts=starts,
            rounds=max(len(runner.windows) for runner in group.runners.values()),
            seconds=measured,
            machine_before=before,
            machine_after=environment.record(),
        )


@contextmanager
def _group(specs: Sequence[EngineSpec], timeout: float) -> Iterator[_Group]:
    group = _Group(specs, timeout)
    try:
        yield group
    finally:
        group.close()


def _measured(group: _Group, seconds: float, width: float, starts: int) -> Iterator[float]:
    """Start all and run their rounds, so often; gives the seconds measured so far after every opening and round."""
    measured = 0.0
    for _ in range(starts):
        for _ in group.start():
            yield measured
        begin, earlier = monotonic(), measured
        for _ in _rounds(group, seconds, width, starts):
            measured = earlier + monotonic() - begin
            yield measured


def _rounds(group: _Group, seconds: float, width: float, starts: int = 1) -> Iterator[int]:
    """Run whole rounds from one start on, because windows pair, until its time is up or the ratios are known."""
    window = min(max(seconds / (max(1, len(group.runners)) * ROUNDS_WANTED), SHORTEST_WINDOW), LONGEST_WINDOW)
    begin, number, spent = monotonic() - group.lost_seconds, 0, 0.0
    while group.runners:
        group.round(window)
        number += 1
        yield number
        before, spent = spent, monotonic() - begin - group.lost_seconds
        # Stop before a round that would end further past the budget than this one ended short of it.
        if spent + (spent - before) / 2 >= seconds / starts or _known(group.runners, number, width):
            return


def _known(runners: Mapping[str, _Runner], number: int, width: float) -> bool:
    """Whether every ratio to the first engine is narrow; looked at now and then, as each look is a chance to err.

    ``number`` counts the rounds of this start; those before take part in the ratios.
    """
    if len(runners) < 2 or number < ROUNDS_BEFORE_STOPPING or number % ROUNDS_BETWEEN_LOOKS:
        return False
    first, *rest = runners.values()
    ratios = (ratio_interval(first.medians, other.medians, starts=first.starts) for other in rest)
    return all(ratio.relative_width <= width for ratio in ratios)
