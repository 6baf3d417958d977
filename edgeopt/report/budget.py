"""The gate: judges every compressed engine's bounds, not its luck, against each line of a budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from edgeopt.config import Budget
from edgeopt.errors import BudgetMissedError, EdgeoptError, UndecidedError, UnstableError
from edgeopt.report.budget_lines import Found, find
from edgeopt.report.engine_row import EngineRow
from edgeopt.report.model import BudgetLine, Report

#: By key, engines whose figures are not of now and here, and why: their lines are open. None: they have no lines.
Unmeasured: TypeAlias = Mapping[str, str | None]
#: The worst decides, in this order.
EXIT_CODES = {"missed": 3, "unstable": 4, "undecided": 5, "not judged": 0, "met": 0}


def judge(report: Report, budget: Budget, *, unmeasured: Unmeasured | None = None) -> Report:
    """``report`` with its budget lines and each engine's verdict.

    Every int8 engine is judged (all engines when there is none) by ``budget`` and by its own target's budget, whose
    lines count where ``budget`` has none. A line is met when its bound is on the right side of the limit, missed when
    the whole interval is on the wrong side, else undecided; engines that only a device can run, and those of another
    trained model than the report's original, are left out. Where every int8 engine is for a device elsewhere, their
    lines are not judged: that the float ones hold says nothing of them. What earlier figures say of ``unmeasured``
    engines decides nothing.
    """
    candidates = [row for row in report.engines if row.comparable]
    compressed = [row for row in candidates if row.compressed] or candidates
    here = [row for row in compressed if not _only_elsewhere(row)]
    lines: list[BudgetLine] = []
    verdicts: dict[str, str | None] = {}
    for row in here or compressed:
        limits = row.profile_budget.merged(budget).lines().items()
        judged = ((_judge_line if here else _unjudged)(row, name, limit) for name, limit in limits)
        own = list(without(unmeasured or {}, judged))
        verdicts[row.key] = verdict(own)
        lines += own
    engines = tuple(replace(row, verdict=verdicts.get(row.key)) for row in report.engines)
    return replace(report, engines=engines, budget=tuple(lines), allow_undecided=budget.allow_undecided)


def without(unmeasured: Unmeasured, lines: Iterable[BudgetLine]) -> Iterator[BudgetLine]:
    """``lines``, those of ``unmeasured`` engines open or left out."""
    for line in lines:
        if line.engine not in unmeasured:
            yield line
        elif why := unmeasured[line.engine]:
            yield BudgetLine.of(line.engine, line.name, line.limit, None, None, "undecided", why)


def verdict(lines: Iterable[BudgetLine]) -> str | None:
    """The worst status among ``lines``: missed, unstable, undecided, not judged, met; None without lines."""
    found = {line.status for line in lines}
    return next((status for status in EXIT_CODES if status in found), None)


def exit_code(lines: Iterable[BudgetLine], *, allow_undecided: bool = False) -> int:
    """0 when every line is met (or is for another device), 3 missed, 4 unstable, 5 undecided unless that is allowed."""
    counted = [line for line in lines if not (allow_undecided and line.status == "undecided")]
    return EXIT_CODES.get(verdict(counted) or "met", 0)


def failure(lines: Sequence[BudgetLine], *, allow_undecided: bool = False) -> EdgeoptError | None:
    """The error that says what is not met, None when all is well."""
    worst = verdict(lines)
    kinds: dict[str, type[EdgeoptError]] = {"missed": BudgetMissedError, "unstable": UnstableError}
    if not allow_undecided:
        kinds["undecided"] = UndecidedError
    if worst not in kinds:
        return None
    said = "; ".join(line.message for line in lines if line.status == worst)
    return kinds[worst](f"the budget is {worst}: {said}")


def _only_elsewhere(row: EngineRow) -> bool:
    return not row.measured and row.elsewhere


def _unjudged(row: EngineRow, name: str, limit: float) -> BudgetLine:
    return BudgetLine.of(row.key, name, limit, None, None, "not judged", row.reason or "only its device can run it")


def _judge_line(row: EngineRow, name: str, limit: float) -> BudgetLine:
    found = find(row, name)
    status, why = _status(row, name, limit, found)
    return BudgetLine.of(row.key, name, limit, found.value, found.bounds, status, why, note=found.note)


def _status(row: EngineRow, name: str, limit: float, found: Found) -> tuple[str, str]:
    """The line's status, and why it is neither met nor missed."""
    if found.milliseconds and row.fits_target is False:
        return "not judged", "this is not the device that the target describes"
    if found.value is None:
        return "undecided", found.missing
    if found.lifted:  # a baseline that was disturbed makes any engine look fast
        return "unstable", "the machine was busy: measure again when it is quiet"
    if found.bounds is None:
        return "undecided", "too few windows for an interval: give bench more --seconds"
    low, high = found.bounds
    good, bad = (high <= limit, low > limit) if name.startswith("max_") else (low >= limit, high < limit)
    if not good and not found.steady:  # disturbances only slow an engine down: what is met in spite of them is met
        return "unstable", row.flags[0] if row.flags else "measure again when the machine is quiet"
    if good and found.unknown:
        return "undecided", found.unknown
    if good or bad:
        return ("met" if good else "missed"), ""
    if not found.settled:
        return "unstable", row.flags[0] if row.flags else "give bench more --seconds"
    return "undecided", found.decide(limit) if found.decide else "it is at the limit"
