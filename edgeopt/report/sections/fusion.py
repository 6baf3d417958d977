"""The fusion audit: how much of each int8 engine really runs in int8, and the layers that do not, by name."""

from __future__ import annotations

from edgeopt.report.model import Report
from edgeopt.report.page import fragment


def render(report: Report) -> str:
    """A bar an engine; nothing without int8 engines."""
    rows = [row for row in report.engines if row.precision == "int8"]
    return fragment("fusion", rows=rows, original=report.original) if rows else ""
