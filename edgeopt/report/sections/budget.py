"""The budget: each line, what was measured, and whether it is met."""

from __future__ import annotations

from edgeopt.report.budget import verdict
from edgeopt.report.model import Report
from edgeopt.report.page import fragment


def render(report: Report) -> str:
    """A table of lines; nothing when no budget was given."""
    if not report.budget:
        return ""
    drops = any(line.name.endswith("drop_points") for line in report.budget)
    return fragment(
        "budget", lines=report.budget, verdict=verdict(report.budget), warnings=report.warnings, drops=drops
    )
