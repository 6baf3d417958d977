"""How right every engine is, by all the figures there are, and how much worse than the original, by two intervals."""

from __future__ import annotations

from edgeopt.report.headline import champion
from edgeopt.report.model import Report
from edgeopt.report.page import fragment


def render(report: Report) -> str:
    """A table, one row an engine; nothing when accuracy was not measured."""
    rows = [row for row in report.rows if row.top1 is not None]
    if not rows:
        return ""
    best = champion(report)
    return fragment(
        "accuracy",
        rows=rows,
        original=report.original,
        best=best.key if best else None,
        top5=any(row.top5 is not None for row in rows),
        compared=any(row.drop_points is not None for row in rows),
        bootstrap=any(row.drop_bootstrap_points is not None for row in rows),
    )
