"""The ladder: every way to int8 that was tried, what it kept of the accuracy, and which layers int8 hurts."""

from __future__ import annotations

from typing import Any

from edgeopt.report.model import Report
from edgeopt.report.page import fragment

_LAYERS = 12


def render(report: Report) -> str:
    """A table of rungs for each variant that climbed one; nothing where none did."""
    ladders = []
    for variant, ladder in report.ladders.items():
        ranked: list[Any] = next((rung["sensitivity"] for rung in ladder["rungs"] if rung.get("sensitivity")), [])
        ladders.append({**ladder, "variant": variant, "sensitivity": ranked[:_LAYERS]})
    return fragment("ladder", ladders=ladders) if ladders else ""
