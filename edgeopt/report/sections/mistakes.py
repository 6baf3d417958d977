"""The most confident mistakes of the best engine and of the original, with their pictures."""

from __future__ import annotations

from edgeopt.report.headline import champion
from edgeopt.report.model import Report
from edgeopt.report.page import fragment


def render(report: Report) -> str:
    """Two rows of pictures; nothing when nothing was answered wrongly."""
    best = champion(report)
    rows = [row for row in (best, report.original) if row is not None and row.mistakes]
    return fragment("mistakes", rows=rows) if rows else ""
