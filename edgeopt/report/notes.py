"""What must be said below a table, in a line each: of which engines it is true, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil

from edgeopt.bench.result import STABLE_WIDTH
from edgeopt.metrics import MIN_WINDOWS, starts_differ
from edgeopt.report import format as form
from edgeopt.report.engine_row import EngineRow
from edgeopt.report.model import Report

#: Flags of rows; a report says once what all of them that have one should do.
BUSY, UNSETTLED = "the machine was busy with other work", "the timing did not settle"
STARTS_DIFFER = "its starts differ"
#: A longer measurement than this, s, is not asked for: a machine that needs it should be quieter first.
LONGEST_SECONDS = 600


def notes(report: Report) -> list[str]:
    """Every flag and reason with the engines that have it, one line for all of them, for text and Markdown."""
    said = [*_timing(report), *_starts(report), *_slowed(report)]
    grouped: dict[str, list[str]] = {}
    for row in report.rows:
        for flag in row.flags:
            if flag not in (BUSY, UNSETTLED) and not flag.startswith(STARTS_DIFFER):
                grouped.setdefault(flag, []).append(row.key)
    for row in report.engines:
        if row.reason and row.p50_ms is None:
            grouped.setdefault(row.reason, []).append(row.key)
    return said + [f"{', '.join(keys)}: {text}" for text, keys in grouped.items()]


def advice(report: Report) -> str:
    """What would settle the milliseconds that did not settle, as a clause; empty when all did."""
    rows = _flagged(report, UNSETTLED)
    return f"to settle it: {_command(rows)}, on a quiet machine" if rows else ""


def _timing(report: Report) -> list[str]:
    said = []
    if busy := _flagged(report, BUSY):
        said.append(f"{_keys(busy, report)}: {BUSY}; stop it, then edgeopt bench again")
    if rows := _flagged(report, UNSETTLED):
        wide = f"p50 is uncertain by more than {form.percent(STABLE_WIDTH, 0)}"
        said.append(f"{_keys(rows, report)}: {UNSETTLED}, {wide}; ratios have intervals of their own; {advice(report)}")
    return said


def _starts(report: Report) -> list[str]:
    rows = [row for row in report.rows if row.speedup_starts is not None]
    if not rows:
        return []
    each = ", ".join(f"{row.key} {form.times_range(row.speedup_starts)}" for row in rows)
    said = f"starts of the processes differ by more than chance, as many times as fast were {each}"
    if all((row.bench_starts or 0) >= MIN_WINDOWS for row in rows):
        return [f"{said}; intervals are of {rows[0].bench_starts} starts"]
    return [f"{said}; with fewer than {MIN_WINDOWS} starts an interval is no more than their range: {_command(rows)}"]


def _slowed(report: Report) -> list[str]:
    """Of machines that became too hot, or short of power, while they measured: not that they once had been."""
    said = []
    for machine in report.machines.values():
        if why := (machine.get("after") or {}).get("throttled"):
            name = machine.get("board") or (machine.get("cpu") or {}).get("name")
            said.append(f"{name}: the CPU was slowed down meanwhile ({why}); milliseconds are of a slower machine")
        for gpu in (machine.get("after") or {}).get("gpus") or ():
            if why := gpu.get("slowed"):
                said.append(f"{gpu.get('name')}: the GPU was slowed down meanwhile ({why})")
    return said


def _command(rows: Iterable[EngineRow]) -> str:
    """``edgeopt bench`` with as many seconds, and starts where these differ, as would do."""
    seconds, starts = 0.0, False
    for row in rows:
        now = row.bench_seconds or 20.0
        starts |= starts_differ(row.window_medians_ms, row.windows_by_start) or row.speedup_starts is not None
        low, high = row.p50_ci_ms or (0.0, row.p50_ms or 0.0)
        wide = (high - low) / row.p50_ms if row.p50_ms else 0.0
        # An interval narrows with the root of the time; of more starts each takes as long as of two.
        seconds = max(seconds, now * max((wide / STABLE_WIDTH) ** 2, 3.0 if starts else 1.3))
    more = f" --starts {MIN_WINDOWS}" if starts else ""
    return f"edgeopt bench --seconds {min(LONGEST_SECONDS, 10 * ceil(round(seconds / 10, 6)))}{more}"


def _flagged(report: Report, flag: str) -> list[EngineRow]:
    return [row for row in report.rows if flag in row.flags]


def _keys(rows: Sequence[EngineRow], report: Report) -> str:
    """Their names, or, where that is shorter, those of the others that were timed."""
    others = [row.key for row in report.rows if row.p50_ms is not None and row not in rows]
    if len(others) >= len(rows) or len(rows) == 1:
        return ", ".join(row.key for row in rows)
    return "every engine that was timed" + (f" but {', '.join(others)}" if others else "")
