"""Recall class by class, original and engines, the largest changes first."""

from __future__ import annotations

from typing import Any

from edgeopt.report.model import EngineRow, Report
from edgeopt.report.page import fragment

SHOWN = 40


def render(report: Report) -> str:
    """A table of recalls and their changes; nothing when accuracy was not measured."""
    engines = [row for row in report.engines if row.per_class and row.compressed]
    engines = engines or [row for row in report.engines if row.per_class]
    source = report.original if report.original and report.original.per_class else None
    if not engines and source is None:
        return ""
    names = list((source or engines[0]).per_class)
    lines = [_line(name, source, engines) for name in names]
    if len(lines) > SHOWN:
        lines.sort(key=lambda line: -line["largest"])
    # A class with few pictures moves by many points when one answer changes: the table says how many there are.
    return fragment(
        "classes", lines=lines[:SHOWN], total=len(names), engines=engines, original=source, shown=min(SHOWN, len(names))
    )


def _line(name: str, source: EngineRow | None, engines: list[EngineRow]) -> dict[str, Any]:
    before = source.per_class.get(name, {}) if source else {}
    cells = []
    for row in engines:
        recall = row.per_class.get(name, {}).get("recall")
        known = recall is not None and before.get("recall") is not None
        cells.append({"recall": recall, "change": 100 * (recall - before["recall"]) if known else None})
    n = before.get("n", engines[0].per_class.get(name, {}).get("n") if engines else None)
    return {
        "name": name,
        "n": n,
        "original": before.get("recall"),
        "cells": cells,
        "largest": max((abs(cell["change"] or 0.0) for cell in cells), default=0.0),
    }
