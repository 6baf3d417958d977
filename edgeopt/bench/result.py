"""What a benchmark found: per engine the samples, window by window, and the numbers made from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeopt.bench.spec import EngineSpec
from edgeopt.errors import BackendError
from edgeopt.metrics import (
    Interval,
    median_interval,
    percentile_interval,
    ratio_interval,
    start_medians,
    starts_differ,
    window_percentile,
)

#: p99 of fewer samples is the luck of a handful.
P99_SAMPLES = 1000
#: Milliseconds whose 95 % interval is wider than this share of the median are called unstable.
STABLE_WIDTH = 0.10
#: Cores that others may keep busy meanwhile; beyond, engines lose turns to them and longer calls lose more.
STABLE_OTHER_LOAD = 0.25
#: Samples kept in a record; more are thinned evenly, after every number was made from all of them.
KEPT_SAMPLES = 20_000


@dataclass(frozen=True)
class EngineResult:
    """One engine's measurement. ``windows`` are arrays of milliseconds a call, in the order they were run."""

    spec: EngineSpec
    windows: tuple[tuple[float, ...], ...]
    load_s: float
    peak_memory_bytes: int
    session: Mapping[str, Any]
    other_load_cores: float | None  # that other processes kept busy while this one was timed
    fits_target: bool  # whether this machine is the device that the target describes
    cold_start_s: float | None = None  # from starting its process to its first answer, of its quickest start
    cpu_ms: tuple[float, ...] = ()  # CPU time of a call, all threads: a window's mean
    end_to_end: Mapping[str, Any] | None = None  # ms a picture: decode_ms, preprocess_ms, infer_ms; pictures
    load_by_window: Mapping[str, Any] = field(default_factory=dict)  # cores: other_cores, steal_cores
    device_ms: tuple[float, ...] = ()  # a call by the device's own clock: a window's median
    starts: tuple[int, ...] = ()  # how many of the windows, in order, each start of its process gave; none: one start

    @property
    def samples_ms(self) -> tuple[float, ...]:
        """Every sample, in order."""
        return tuple(sample for window in self.windows for sample in window)

    @property
    def window_medians_ms(self) -> tuple[float, ...]:
        """The unit of every interval: samples within a window are not independent, windows nearly are."""
        return tuple(float(np.median(window)) for window in self.windows)

    @property
    def p50(self) -> Interval:
        """Median of the window medians, ms, with its interval."""
        return median_interval(self.window_medians_ms, starts=self.starts)

    @property
    def quiet(self) -> bool:
        """Whether nothing else of weight ran on the machine meanwhile, as far as can be told."""
        return (self.other_load_cores or 0.0) <= STABLE_OTHER_LOAD

    @property
    def stable(self) -> bool:
        """Whether the milliseconds are known to within ``STABLE_WIDTH`` and the machine was quiet."""
        return self.quiet and self.p50.relative_width <= STABLE_WIDTH

    def p99(self) -> Interval | None:
        """99th percentile, ms, windows weighing alike, with its interval; None below ``P99_SAMPLES`` samples."""
        return percentile_interval(self.windows, 99) if len(self.samples_ms) >= P99_SAMPLES else None

    def throughput(self) -> Interval:
        """Pictures a second at this batch, one call after another: the median of the windows' own."""
        rates = [1000.0 * self.spec.target.batch / float(np.mean(window)) for window in self.windows]
        return median_interval(rates, starts=self.starts)

    def to_json(self) -> dict[str, Any]:
        """The engine's own part of ``latency.json``; see ``edgeopt.bench.records``."""
        samples, p50, p99, throughput = self.samples_ms, self.p50, self.p99(), self.throughput()
        every = -(-len(samples) // KEPT_SAMPLES)
        return {
            "backend": self.spec.backend,
            "precision": self.spec.precision,
            "batch": self.spec.target.batch,
            "threads": self.spec.threads,
            "p50_ms": p50.value,
            "p50_ci_ms": bounds(p50),
            "p90_ms": window_percentile(self.windows, 90),
            "p99_ms": p99.value if p99 else None,
            "p99_ci_ms": bounds(p99) if p99 else None,
            "device_p50_ms": median_interval(self.device_ms).value if self.device_ms else None,
            "mean_ms": float(np.mean(samples)),
            "throughput_ips": throughput.value,
            "throughput_ci_ips": bounds(throughput),
            "samples": len(samples),
            "window_medians_ms": list(self.window_medians_ms),
            "windows_by_start": list(self.starts) or [len(self.windows)],
            "samples_ms": list(samples[::every]),
            "samples_kept_every": every,
            "load_s": self.load_s,
            "cold_start_s": self.cold_start_s,
            "cpu_ms": float(np.median(self.cpu_ms)) if self.cpu_ms else None,
            "end_to_end": dict(self.end_to_end) if self.end_to_end else None,
            "load_by_window": dict(self.load_by_window),
            "peak_memory_bytes": self.peak_memory_bytes,
            "other_load_cores": self.other_load_cores,
            "stable": self.stable,
            "fits_target": self.fits_target,
            "session": dict(self.session),
        }


@dataclass(frozen=True)
class BenchResult:
    """All engines measured together. ``failures`` names those that could not be, with what they said."""

    id: str  # engines with the same id were interleaved, so their windows pair
    engines: Mapping[str, EngineResult]
    failures: Mapping[str, str]
    starts: int  # of new processes for all, among which the rounds were divided
    rounds: int
    seconds: float
    machine_before: Mapping[str, Any]
    machine_after: Mapping[str, Any]

    def measured(self, key: str) -> EngineResult:
        """What was measured of an engine; raises BackendError with the reason where nothing was."""
        if key not in self.engines:
            reason, _, fix = self.failures.get(key, "it was not in this benchmark").partition("\n  fix: ")
            raise BackendError(
                f"{key} has no measurement: {reason}", fix=fix or f"use one of {', '.join(self.engines)}"
            )
        return self.engines[key]

    def ratio(self, candidate: str, baseline: str) -> Interval:
        """How many times as fast ``candidate`` is: the baseline's milliseconds a picture over its own, by round."""
        starts = self.measured(candidate).starts
        self.measured(baseline)
        return ratio_interval(self._per_picture(baseline), self._per_picture(candidate), starts=starts)

    def ratio_by_start(self, candidate: str, baseline: str) -> tuple[tuple[float, ...], bool]:
        """The ratio in each start of all processes, and whether these differ by more than their windows explain."""
        ratios = np.divide(self._per_picture(baseline), self._per_picture(candidate))
        starts = self.engines[candidate].starts
        return start_medians(ratios, starts), starts_differ(ratios, starts)

    def _per_picture(self, key: str) -> list[float]:
        engine = self.engines[key]
        return [median / engine.spec.target.batch for median in engine.window_medians_ms]


def bounds(interval: Interval) -> list[float] | None:
    """``[low, high]`` for JSON, None where there is no interval."""
    return [interval.low, interval.high] if math.isfinite(interval.high - interval.low) else None
