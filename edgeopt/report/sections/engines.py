"""The table: every engine beside the original, with intervals."""

from __future__ import annotations

from edgeopt.report.headline import champion
from edgeopt.report.model import Report
from edgeopt.report.notes import advice
from edgeopt.report.page import fragment


def render(report: Report) -> str:
    """A sortable table, one row an engine; speed-ups drawn to one scale."""
    best = champion(report)
    fastest = max((row.speedup or 0.0 for row in report.engines), default=0.0)
    sessions = {row.bench_id for row in report.rows if row.bench_id}
    return fragment(
        "engines",
        rows=report.rows,
        original=report.original,
        best=best.key if best else None,
        fastest=fastest or 1.0,
        advice=advice(report),
        sessions=len(sessions),
        compiled=any(row.compiled_speedup is not None for row in report.rows),
        machines=len({row.measured_on for row in report.rows if row.measured_on}),
    )
