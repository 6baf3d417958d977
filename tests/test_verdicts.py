"""The statistics of a benchmark on planted windows and a fake clock: intervals and verdicts hold as often as said.

The protocol's own loop decides when to stop (looking more than once at the data), its own intervals and the budget's
own judge decide what is said; only the clock and the windows are planted.
"""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from edgeopt.bench import protocol
from edgeopt.metrics import Interval, percentile_interval, ratio_interval, starts_differ
from edgeopt.report.budget import _judge_line
from edgeopt.report.engine_row import EngineRow

RUNS = 1000
ROUNDS = 60  # as long as the fake clock allows


def windows(shape: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Medians of the windows of two engines that are equally fast, (ROUNDS,) each."""
    own = rng.normal(0, 0.01, (2, ROUNDS))
    if shape == "drift":  # the machine changes speed by factors, and both with it
        own = rng.normal(0, 0.02, (2, ROUNDS)) + np.cumsum(rng.normal(0, 0.05, ROUNDS))
    elif shape == "heavy tail":  # now and then a window is interrupted for long
        own = 0.015 * rng.standard_t(2, (2, ROUNDS))
    elif shape == "bimodal":  # three windows in ten run in a slower mode
        own = own + np.log1p(0.15) * (rng.random((2, ROUNDS)) < 0.3)
    first, second = np.exp(own)
    return first, second


class Planted:
    """What the protocol's loop sees of children: a round adds a window to each and takes time by the fake clock."""

    def __init__(self, slow: np.ndarray, fast: np.ndarray) -> None:
        self.now, self.lost_seconds, self.planted = 0.0, 0.0, {"slow": slow, "fast": fast}
        self.runners = {name: SimpleNamespace(medians=[], starts=[]) for name in self.planted}

    def round(self, seconds: float) -> None:
        for name, runner in self.runners.items():
            runner.medians.append(self.planted[name][len(runner.medians)])
            runner.starts = [len(runner.medians)]
            self.now += seconds


def measure(slow: np.ndarray, fast: np.ndarray, monkeypatch: pytest.MonkeyPatch, width: float) -> tuple[Interval, int]:
    """The ratio and its interval after as many rounds as the protocol wants."""
    group = Planted(slow, fast)
    monkeypatch.setattr(protocol, "monotonic", lambda: group.now)
    seconds = (ROUNDS - 1) * 2 * protocol.LONGEST_WINDOW
    (*_, rounds) = protocol._rounds(group, seconds, width)  # type: ignore[arg-type]
    found = ratio_interval(group.runners["slow"].medians, group.runners["fast"].medians)
    return found, rounds


@pytest.mark.parametrize("shape", ["drift", "bimodal", "heavy tail"])
def test_intervals_and_verdicts_are_right_as_often_as_they_say(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, stopped = np.random.default_rng(len(shape)), Counter[int]()
    for true in (1.0, 1.02, 1.1):
        held, said = 0, Counter[str]()
        for _ in range(RUNS):
            slow, fast = windows(shape, rng)
            ratio, rounds = measure(true * slow, fast, monkeypatch, width=0.04)
            stopped[rounds] += 1
            held += ratio.low <= true <= ratio.high
            row = EngineRow(
                "here/int8", "here", "int8", "tiny", "int8",
                speedup=ratio.value, speedup_ci=ratio[1:], baseline="pytorch/float", baseline_kind="original",
            )  # fmt: skip
            said[_judge_line(row, "min_speedup", 1.0).status] += 1
        # 95 %, give or take what 1,000 runs can tell: a standard deviation is 0.7 points.
        assert 0.93 <= held / RUNS <= 0.97, (true, held)
        if true == 1.0:  # exactly at the limit: whatever is said is wrong, and so said in 5 %
            assert said["met"] + said["missed"] <= 0.07 * RUNS, said
        else:
            assert said["missed"] <= 0.025 * RUNS, said
        if true == 1.1:
            assert said["met"] >= 0.95 * RUNS, said
    assert len(stopped) > 1  # it did stop early, and not always: what is tested above is optional stopping
    assert min(stopped) == protocol.ROUNDS_BEFORE_STOPPING


@pytest.mark.parametrize("count", [6, 8, 12, 24, 60])
def test_intervals_cover_at_every_number_of_windows(count: int) -> None:
    rng = np.random.default_rng(count)
    held = 0
    for _ in range(2000):
        ratio = ratio_interval(np.exp(rng.normal(0, 0.05, count)), np.ones(count))
        held += ratio.low <= 1.0 <= ratio.high
    assert 0.93 <= held / 2000 <= 0.97


@pytest.mark.parametrize(("starts", "own", "least", "most"), [
    (2, 0.0, 0.93, 0.97),  # processes are alike, and being told of two starts changes nothing
    (6, 0.0, 0.95, 0.99),
    (6, 0.05, 0.93, 0.98),  # processes differ as much as windows do: pooled, 60 windows held the truth in 66 %
    (6, 0.2, 0.93, 0.97),  # and by much more: in 50 %
    (12, 0.05, 0.93, 0.98),
])  # fmt: skip
def test_six_starts_hold_the_true_ratio_however_processes_differ(
    starts: int, own: float, least: float, most: float
) -> None:
    rng, each, held, runs = np.random.default_rng(starts), 60 // starts, 0, 2000
    for _ in range(runs):
        dealt = np.repeat(rng.normal(0, own, starts), each)  # what a process was dealt it has in all its windows
        ratio = ratio_interval(np.exp(rng.normal(dealt, 0.05)), np.ones(len(dealt)), starts=[each] * starts)
        held += ratio.low <= 1.0 <= ratio.high
    assert least <= held / runs <= most, held


def test_starts_that_differ_are_told_from_those_that_do_not() -> None:
    rng, told = np.random.default_rng(0), Counter[float]()
    for _ in range(1000):
        for factor in (1.0, 1.02, 1.2):
            windows = np.exp(rng.standard_t(2, 24) * 0.015) * np.repeat([1.0, factor], 12)
            told[factor] += starts_differ(windows, [12, 12])
    assert told[1.0] <= 20  # at the 1 % level
    assert told[1.02] <= 300  # what is less than 3 % does not matter, where heavy tails do not make it seem more
    assert told[1.2] >= 950


def test_starts_of_uneven_windows_differ_by_chance_and_are_not_told_apart() -> None:
    rng, apart, told = np.random.default_rng(0), 0, 0
    for _ in range(1000):
        windows = np.exp(rng.normal(0, 0.1, 24))
        first, second = np.median(windows[:12]), np.median(windows[12:])
        apart += max(first, second) > 1.03 * min(first, second)
        told += starts_differ(windows, [12, 12])
    assert apart > 400, "by more than 3 %"
    assert told <= 20  # at the 1 % level


@pytest.mark.parametrize(
    ("count", "each", "own"), [(24, 50, 0.0), (12, 100, 0.0), (24, 200, 0.01), (24, 50, 0.02), (8, 150, 0.03)]
)
def test_the_interval_of_p99_holds_it_where_windows_differ_too(count: int, each: int, own: float) -> None:
    rng, held, runs = np.random.default_rng(count), 0, 500
    true = float(np.quantile(np.exp(rng.normal(0, own, 400_000) + rng.normal(0, 0.05, 400_000)), 0.99))
    for _ in range(runs):
        dealt = rng.normal(0, own, (count, 1))  # what a window was dealt it has in all its calls
        p99 = percentile_interval(list(np.exp(dealt + rng.normal(0, 0.05, (count, each)))), 99)
        held += bool(p99.low <= true <= p99.high)
    assert 0.93 <= held / runs <= 0.995, held


def line(name: str, limit: float, **figures: object) -> str:
    row = EngineRow("here/int8", "here", "int8", "tiny", "int8", fits_target=True, **figures)  # type: ignore[arg-type]
    return _judge_line(row, name, limit).status


def test_milliseconds_of_starts_that_differ_decide_nothing_near_them() -> None:
    windows = tuple(np.repeat([94.0, 99.0], 12) + np.tile([0.1, -0.1], 12))
    figures = {
        "p50_ms": 96.5, "p50_ci_ms": (94.0, 99.0), "p99_ms": 100.0, "p99_ci_ms": (98.0, 101.0),
        "throughput_ips": 10.3, "throughput_ci_ips": (10.1, 10.6),
        "window_medians_ms": windows, "windows_by_start": (12, 12), "stable": True,
    }  # fmt: skip
    limits = {"max_p50_ms": 99.5, "max_p99_ms": 102.0, "min_throughput_ips": 10.0}
    two = {name: line(name, limit, bench_starts=2, **figures) for name, limit in limits.items()}
    assert set(two.values()) == {"undecided"}
    assert {line(name, limit, bench_starts=6, **figures) for name, limit in limits.items()} == {"met"}
    assert line("max_p50_ms", 110.0, bench_starts=2, **figures) == "met"
    assert line("max_p50_ms", 80.0, bench_starts=2, **figures) == "missed"


def test_a_wide_interval_decides_what_is_far_from_it_and_a_busy_machine_does_not() -> None:
    wide = {"p50_ms": 100.0, "p50_ci_ms": (94.0, 105.0), "stable": False, "other_load_cores": 0.0}
    assert [line("max_p50_ms", limit, **wide) for limit in (5.0, 100.0, 200.0)] == ["missed", "unstable", "met"]
    busy = {**wide, "other_load_cores": 1.0}
    assert [line("max_p50_ms", limit, **busy) for limit in (5.0, 100.0, 200.0)] == ["unstable", "unstable", "met"]
