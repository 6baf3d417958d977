"""Whether an engine became slower, less accurate or larger than it was: intervals decide, not single numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, hypot, log
from typing import Any, NamedTuple

import numpy as np

from edgeopt.config import BaselineConfig
from edgeopt.errors import RunError
from edgeopt.metrics import MIN_WINDOWS, paired_drop
from edgeopt.records import Machine
from edgeopt.report.budget import verdict
from edgeopt.report.budget_lines import over_starts, pictures_for_drop, rounded
from edgeopt.report.engine_row import Pair
from edgeopt.report.model import BudgetLine
from edgeopt.report.snapshot import Row, Snapshot

_Z = 1.96  # of the 95 % intervals that reports hold
_MOVED = "another machine measured it"


@dataclass(frozen=True)
class Comparison:
    """``after`` judged against ``before``: a line for each engine and quantity, and what a reader must know."""

    before: Snapshot
    after: Snapshot
    lines: tuple[BudgetLine, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As ``edgeopt compare --json`` prints it."""
        lines = [line.to_json() for line in self.lines]
        names = {"before": self.before.name, "after": self.after.name}
        return {**names, "verdict": verdict(self.lines), "lines": lines, "warnings": list(self.warnings)}

    def text(self) -> str:
        """For a terminal."""
        head = f"{self.after.name} against {self.before.name}: {verdict(self.lines) or 'nothing to judge'}"
        lines = [line.message for line in self.lines] + [f"warning: {text}" for text in self.warnings]
        return "\n".join([head, *(f"  {line}" for line in lines)])


def compare(before: Snapshot, after: Snapshot, allowance: BaselineConfig | None = None) -> Comparison:
    """Judge every engine of ``after`` that ``before`` has: by the same key, or, built on another machine, of the same
    target and variant.

    Speed is the ratio to the same baseline, then and now, because milliseconds of two sessions do not compare; top-1
    is paired, picture by picture, when both were judged on the same test set. A line is met when the whole 95 %
    interval is within ``allowance``, missed when all of it is beyond, else undecided. Raises RunError when the
    reports are of different datasets.
    """
    allowed = allowance or BaselineConfig()
    require_same_pictures(before, after.name, after.fingerprint, after.labels)
    pairs = {key: old for key, row in after.rows.items() if (old := _before(before, row)) is not None}
    if not pairs:
        raise RunError(
            f"{before.name} and {after.name} have no engine in common",
            fix=f"build one of {', '.join(before.rows)}, then edgeopt bench",
        )
    lines: list[BudgetLine] = []
    for key, old in pairs.items():
        new = after.rows[key]
        lines += [
            line for line in (_speed(old, new, allowed), _top1(old, new, allowed), _size(old, new, allowed)) if line
        ]
    # A result that is gone must not pass as unchanged; a float baseline that is gone is only said.
    for key, row in before.rows.items():
        if row not in pairs.values() and row.precision == "int8":
            why = f"{after.name} has no such engine any more"
            lines.append(BudgetLine.of(key, "baseline_speed", 1 - allowed.slower, None, None, "undecided", why))
    return Comparison(before, after, tuple(lines), tuple(_warnings(before, after, pairs)))


def _before(before: Snapshot, row: Row) -> Row | None:
    """What ``row`` was in an earlier report."""
    return before.rows.get(row.key) or next((old for old in before.rows.values() if _called(old) == _called(row)), None)


def _called(row: Row) -> tuple[str, str]:
    """Target and variant; engines of other machines than the run's own have theirs behind an ``@``."""
    return row.target.partition("@")[0], row.variant


def require_same_pictures(before: Snapshot, after: str, fingerprint: str, labels: Sequence[str]) -> None:
    """Raises RunError when the run called ``after`` is of another dataset."""
    if (before.fingerprint, before.labels) != (fingerprint, tuple(labels)):
        raise RunError(
            f"{before.name} and {after} are reports of different datasets",
            fix="compare runs of the same pictures, or make the baseline again with these",
        )


def _warnings(before: Snapshot, after: Snapshot, pairs: Mapping[str, Row]) -> list[str]:
    said = []
    gone, new = sorted(set(before.rows) - set(after.rows)), sorted(set(after.rows) - set(before.rows))
    if gone:
        said.append(f"only {before.name} has {', '.join(gone)}")
    if new:
        said.append(f"only {after.name} has {', '.join(new)}")
    machines = [
        sorted({one.called(row.measured_on) for row in one.rows.values() if row.measured_on}) for one in (before, after)
    ]
    if any(_moved(old, after.rows[key]) for key, old in pairs.items()):
        said.append(
            f"measured on different machines ({', '.join(machines[0])}; {', '.join(machines[1])}): speed is not judged"
        )
    for machine in sorted(before.machines.keys() & after.machines.keys()):
        if changed := _changed(before.machines[machine], after.machines[machine]):
            said.append(f"not the engines alone changed, so that speed may be of these: {', '.join(changed)}")
    return said


def _changed(was: Machine, now: Machine) -> list[str]:
    """What else than an engine can make it faster or slower, the baseline it is compared with among it."""
    facts = [
        {
            "cores": one.cpu.cores if one.cpu else None,
            "CPU quota": one.cpu_quota,
            "governor": one.governor or None,
            "Python": one.python,
            **(one.versions or {}),
        }
        for one in (was, now)
    ]
    names = [name for name in dict.fromkeys([*facts[0], *facts[1]]) if name != "edgeopt"]
    pairs = [(name, facts[0].get(name), facts[1].get(name)) for name in names]
    return [f"{name} {old or 'none'} → {new or 'none'}" for name, old, new in pairs if old != new]


def _moved(old: Row, new: Row) -> bool:
    return None not in (old.measured_on, new.measured_on) and old.measured_on != new.measured_on


def _speed(old: Row, new: Row, allowed: BaselineConfig) -> BudgetLine | None:
    """How many times as fast as before, by the ratio to a baseline that both were timed beside."""
    pairs = ((a, b) for a in _ratios(old) for b in _ratios(new) if a.baseline is not None and a.baseline == b.baseline)
    shared = next(pairs, None)
    limit = 1 - allowed.slower

    def line(status: str, why: str, value: float | None = None, bounds: Pair | None = None) -> BudgetLine:
        return BudgetLine.of(new.key, "baseline_speed", limit, value, bounds, status, why)

    if shared is None:  # the baseline itself, or what was not timed then either, has nothing to be compared with
        if not old.speedup:
            return None
        if _moved(old, new):
            return line("not judged", _MOVED)
        return line("undecided", "it was not timed beside the same baseline as before")
    was, now = shared
    if was.value is None or now.value is None or was.ci is None or now.ci is None:
        return line("undecided", "too few windows for an interval, then or now")
    value, bounds = now.value / was.value, _ratio_of_ratios(was.value, was.ci, now.value, now.ci)
    if _moved(old, new):
        return line("not judged", _MOVED, value, bounds)
    if (old.batch, old.threads) != (new.batch, new.threads):
        return line("not judged", "batch or threads are others than before", value, bounds)
    if was.quiet is False or now.quiet is False:
        return line("unstable", "the machine was busy, then or now: measure again", value, bounds)
    why, status = f"as fast as before, both against {now.baseline}", _status(bounds, limit, lower=True)
    if status == "undecided" and (was.widened or now.widened):
        why += f"; starts of the processes differ, then or now: edgeopt bench --starts {MIN_WINDOWS} would decide"
    elif status == "undecided":
        why += f"; {_seconds(_spread(was.ci), _spread(now.ci), log(value / limit), new.bench_seconds)}"
    return line(status, why, value, bounds)


class _Ratio(NamedTuple):
    """How many times as fast as ``baseline``; ``widened``: its starts differ, and are too few to tell by how much."""

    value: float | None
    ci: Pair | None
    quiet: bool | None
    baseline: str | None
    widened: bool


def _ratios(row: Row) -> list[_Ratio]:
    """Against the original, or what stands for it, and against the fastest float of its target."""
    found = []
    for prefix in ("", "float_"):
        value, ci, quiet, starts, baseline = (
            getattr(row, f"{prefix}{name}")
            for name in ("speedup", "speedup_ci", "speedup_quiet", "speedup_starts", "baseline")
        )
        wide = over_starts(tuple(ci), starts, row.bench_starts) if ci is not None else None
        found.append(_Ratio(value, wide, quiet, baseline, wide is not None and wide != tuple(ci)))
    return found


def _ratio_of_ratios(was: float, was_ci: Pair, now: float, now_ci: Pair) -> Pair:
    """The 95 % interval of now / was: two independent sessions, errors normal in the logarithm."""
    spread = hypot(_spread(was_ci), _spread(now_ci))
    middle = log(now / was)
    return exp(middle - _Z * spread), exp(middle + _Z * spread)


def _spread(ci: Pair) -> float:
    """The standard error of the logarithm of a ratio."""
    return (log(ci[1]) - log(ci[0])) / (2 * _Z)


def _seconds(was: float, now: float, distance: float, seconds: float | None) -> str:
    """What would decide, given both standard errors, the limit's distance, and the seconds of the later report."""
    room = (distance / _Z) ** 2 - was**2
    if not distance:
        return "it is at the limit"
    if room <= 0:
        return "the earlier report is too uncertain to decide: measure that one with more --seconds and --starts"
    if not seconds:
        return "more measuring time would decide: edgeopt bench --seconds N"
    need = seconds * max(now**2 / room, 1.3)
    return f"about {rounded(need):,} s would decide: edgeopt bench --seconds N ({seconds:.0f} s now)"


def _top1(old: Row, new: Row, allowed: BaselineConfig) -> BudgetLine | None:
    """Points of top-1 lost since, the same pictures paired."""
    if old.top1 is None:
        return None
    name, limit = "baseline_drop_points", allowed.drop_points
    if new.top1 is None:
        return BudgetLine.of(new.key, name, limit, None, None, "undecided", "its accuracy was measured before, not now")
    change = 100 * (old.top1 - new.top1)
    alike = old.test_set == new.test_set and old.test_set is not None and old.pictures == new.pictures
    if not alike or old.wrong is None or new.wrong is None or not new.pictures:
        why = "the test pictures are others than before"
        return BudgetLine.of(new.key, name, limit, change, None, "not judged", why)
    correct = [np.ones(new.pictures, dtype=np.bool_) for _ in range(2)]
    for answers, wrong in zip(correct, (old.wrong, new.wrong), strict=True):
        answers[[index for index in wrong if index < len(answers)]] = False
    drop = paired_drop(correct[0], correct[1], resamples=1)
    bounds = (drop.lower_points, drop.upper_points)
    why = f"{drop.lost} lost and {drop.gained} gained of {drop.n:,}; McNemar's exact test: p = {drop.mcnemar_p:.2g}"
    status = _status(bounds, limit, lower=False)
    if status == "undecided":
        why += f"; {pictures_for_drop(limit, drop.lost, drop.gained, drop.n)}"
    return BudgetLine.of(new.key, name, limit, drop.drop_points, bounds, status, why)


def _size(old: Row, new: Row, allowed: BaselineConfig) -> BudgetLine | None:
    if not old.size_bytes or not new.size_bytes:
        return None
    value, limit = new.size_bytes / old.size_bytes, 1 + allowed.larger
    return BudgetLine.of(
        new.key, "baseline_size", limit, value, (value, value), _status((value, value), limit, lower=False), ""
    )


def _status(bounds: Pair, limit: float, *, lower: bool) -> str:
    good, bad = (bounds[0] >= limit, bounds[1] < limit) if lower else (bounds[1] <= limit, bounds[0] > limit)
    return "met" if good else "missed" if bad else "undecided"
