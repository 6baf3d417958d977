"""Pruning to a latency: what was feasible, the plans that were measured, how far predictions were off, the end."""

from __future__ import annotations

from edgeopt.report.model import Report
from edgeopt.report.page import fragment


def render(report: Report) -> str:
    """A table of plans and one of verdicts for each variant pruned to a latency; nothing where none was."""
    return fragment("latency", searches=report.latencies) if report.latencies else ""
