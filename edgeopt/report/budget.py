"""The gate: judges every compressed engine's bounds, not its luck, against each line of a budget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil

from edgeopt.config import Budget
from edgeopt.errors import BudgetMissedError, EdgeoptError, UndecidedError, UnstableError
from edgeopt.report.model import BudgetLine, EngineRow, Pair, Report

MIB = 2**20
#: The worst decides, in this order.
EXIT_CODES = {"missed": 3, "unstable": 4, "undecided": 5, "not judged": 0, "met": 0}


@dataclass(frozen=True)
class _Found:
    """What was measured for a line: the value, its bounds, and why there is none."""

    value: float | None
    bounds: Pair | None
    missing: str = "it was not measured"
    milliseconds: bool = False  # only true of the device that the target describes
    steady: bool = True  # False: other work on the machine, or drift, may have made this


def judge(report: Report, budget: Budget) -> Report:
    """``report`` with its budget lines and each engine's verdict.

    Every int8 engine is judged (all engines when there is none) by ``budget`` and by its own target's budget, whose
    lines count where ``budget`` has none. A line is met when its bound is on the right side of the limit, missed when
    the whole interval is on the wrong side, else undecided; engines that only a device can run, and those of another
    trained model than the report's original, are left out.
    """
    candidates = [row for row in report.engines if row.comparable and not _only_elsewhere(row)]
    judged = [row for row in candidates if row.compressed] or candidates
    lines: list[BudgetLine] = []
    verdicts: dict[str, str | None] = {}
    for row in judged:
        own = [_judge_line(row, name, limit) for name, limit in _limits(row.profile_budget.merged(budget))]
        verdicts[row.key] = verdict(own)
        lines += own
    engines = tuple(replace(row, verdict=verdicts.get(row.key)) for row in report.engines)
    return replace(report, engines=engines, budget=tuple(lines))


def verdict(lines: Iterable[BudgetLine]) -> str | None:
    """The worst status among ``lines``: missed, unstable, undecided, not judged, met; None without lines."""
    found = {line.status for line in lines}
    return next((status for status in EXIT_CODES if status in found), None)


def exit_code(lines: Iterable[BudgetLine]) -> int:
    """0 when every line is met (or is for another device), 3 missed, 4 unstable, 5 undecided."""
    return EXIT_CODES.get(verdict(lines) or "met", 0)


def failure(lines: Sequence[BudgetLine]) -> EdgeoptError | None:
    """The error that says what is not met, None when all is well."""
    worst = verdict(lines)
    kinds: dict[str, type[EdgeoptError]] = {
        "missed": BudgetMissedError,
        "unstable": UnstableError,
        "undecided": UndecidedError,
    }
    if worst not in kinds:
        return None
    said = "; ".join(line.message for line in lines if line.status == worst)
    return kinds[worst](f"the budget is {worst}: {said}")


def _only_elsewhere(row: EngineRow) -> bool:
    return not row.measured and row.elsewhere


def _limits(budget: Budget) -> list[tuple[str, float]]:
    return [(name, float(limit)) for name, limit in budget.model_dump(exclude_none=True).items()]


def _judge_line(row: EngineRow, name: str, limit: float) -> BudgetLine:
    found = _find(row, name)
    upper = name.startswith("max_")
    value, bounds = found.value, found.bounds

    def line(status: str, why: str = "") -> BudgetLine:
        shown = "not measured" if value is None else f"{value:.4g}"
        if bounds is not None and bounds[0] != bounds[1]:
            shown += f" ({bounds[0]:.4g} to {bounds[1]:.4g})"
        message = f"{row.key}: {name} = {limit:g} is {status}, measured {shown}" + (f"; {why}" if why else "")
        return BudgetLine(row.key, name, limit, value, bounds, status, message)

    if found.milliseconds and row.fits_target is False:
        return line("not judged", "this is not the device that the target describes")
    if value is None:
        return line("undecided", found.missing)
    if name == "min_speedup" and not found.steady:  # a baseline that was disturbed makes any engine look fast
        return line("unstable", "the machine was busy: measure again when it is quiet")
    if bounds is None:
        return line("undecided", "too few windows for an interval: give bench more --seconds")
    good, bad = (bounds[1] <= limit, bounds[0] > limit) if upper else (bounds[0] >= limit, bounds[1] < limit)
    if not good and not found.steady:  # disturbances only slow an engine down: what is met in spite of them is met
        return line("unstable", row.flags[0] if row.flags else "measure again when the machine is quiet")
    if good or bad:
        return line("met" if good else "missed")
    return line("undecided", _what_would_decide(row, name, limit))


def _find(row: EngineRow, name: str) -> _Found:
    def exact(value: float | None, missing: str = "it was not measured") -> _Found:
        return _Found(value, None if value is None else (value, value), missing)

    drop = None
    if row.drop_lower_points is not None and row.drop_upper_points is not None:
        drop = (row.drop_lower_points, row.drop_upper_points)
    steady = row.stable is not False
    no_latency = "its latency was not measured"
    too_few = "p99 needs 1,000 samples: give bench more --seconds" if row.p50_ms is not None else no_latency
    lines = {
        "max_drop_points": _Found(row.drop_points, drop, "the original was not measured on these pictures"),
        "min_top1": _Found(row.top1, row.top1_ci),
        "min_speedup": _Found(
            row.speedup, row.speedup_ci, "it was not timed beside a baseline", steady=row.speedup_quiet is not False
        ),
        "max_p50_ms": _Found(row.p50_ms, row.p50_ci_ms, no_latency, milliseconds=True, steady=steady),
        "max_p99_ms": _Found(row.p99_ms, row.p99_ci_ms, too_few, milliseconds=True, steady=steady),
        "min_throughput_ips": _Found(
            row.throughput_ips, row.throughput_ci_ips, no_latency, milliseconds=True, steady=steady
        ),
        "max_size_mib": exact(None if row.size_bytes is None else row.size_bytes / MIB, "there is no engine"),
        "max_memory_mib": exact(None if row.peak_memory_bytes is None else row.peak_memory_bytes / MIB, no_latency),
        "min_int8_share": exact(row.int8_share, "there is no fusion audit"),
    }
    return lines[name]


def _what_would_decide(row: EngineRow, name: str, limit: float) -> str:
    if name == "max_drop_points" and row.drop_points is not None and row.pictures:
        need = _pictures_for_drop(row, limit)
        return f"about {need:,} test pictures would decide ({row.pictures:,} now)" if need else "it is at the limit"
    if name == "min_top1" and row.top1 is not None and row.pictures:
        gap = abs(row.top1 - limit)
        need = ceil(1.96**2 * row.top1 * (1 - row.top1) / gap**2) if gap else 0
        need = max(need, 2 * row.pictures)
        return f"about {need:,} test pictures would decide ({row.pictures:,} now)" if gap else "it is at the limit"
    return "more measuring time would decide: give bench more --seconds"


def _pictures_for_drop(row: EngineRow, limit: float) -> int:
    """How many pictures put the one-sided 95 % bound on this side of the limit, were the shares to stay as they are."""
    assert row.pictures is not None
    assert row.drop_points is not None
    gap = abs(row.drop_points - limit) / 100
    if not gap:
        return 0
    changed = ((row.lost or 0) + (row.gained or 0)) / row.pictures
    variance = max(changed - (row.drop_points / 100) ** 2, 0.0)
    # With nothing changed the bound is about z^2 / n: Tango's score interval.
    return max(ceil(1.645**2 * (variance / gap**2 + 1 / gap)), row.pictures + 1)
