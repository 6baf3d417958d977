"""The commands that made this, to be typed again."""

from __future__ import annotations

from edgeopt.report.model import Report
from edgeopt.report.page import fragment


def render(report: Report) -> str:
    """A block to copy, and what to type on devices whose engines cannot be made here."""
    elsewhere = [row for row in report.engines if row.device_command and not row.measured]
    return fragment("commands", commands=report.commands, elsewhere=elsewhere, name=report.name)
