"""Precision, recall and F1 class by class, one engine at a time, with what changed against the original."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeopt.report.engine_row import EngineRow
from edgeopt.report.headline import champion
from edgeopt.report.model import Report
from edgeopt.report.page import fragment

SHOWN = 40
FIGURES = ("precision", "recall", "f1")


def render(report: Report) -> str:
    """A table an engine, switched by a menu; nothing when accuracy was not measured."""
    engines = [row for row in report.engines if row.per_class and row.compressed]
    engines = engines or [row for row in report.engines if row.per_class]
    source = report.original if report.original and report.original.per_class else None
    rows = [*([source] if source else []), *engines]
    if not rows:
        return ""
    best = champion(report)
    names = _shown(list(rows[0].per_class), source, engines)
    # A class with few pictures moves by many points when one answer changes: the table says how many there are.
    return fragment(
        "classes",
        tables=[{"row": row, "lines": [_line(name, row, source) for name in names]} for row in rows],
        chosen=best.key if best and best in rows else rows[0].key,
        figures=FIGURES,
        total=len(rows[0].per_class),
        shown=len(names),
        compared=source is not None,
    )


def _shown(names: list[str], source: EngineRow | None, engines: Sequence[EngineRow]) -> list[str]:
    """All classes, or where there are many those of which a figure of any engine changed most."""
    if len(names) <= SHOWN:
        return names

    def largest(name: str) -> float:
        changes = [_change(name, figure, row, source) for row in engines for figure in FIGURES]
        return max((abs(change or 0.0) for change in changes), default=0.0)

    return sorted(names, key=largest, reverse=True)[:SHOWN]


def _line(name: str, row: EngineRow, source: EngineRow | None) -> dict[str, Any]:
    own = row.per_class.get(name, {})
    cells = [{"value": own.get(figure), "change": _change(name, figure, row, source)} for figure in FIGURES]
    return {"name": name, "n": own.get("n"), "cells": cells}


def _change(name: str, figure: str, row: EngineRow, source: EngineRow | None) -> float | None:
    """By how many points a figure of a class is above the original's."""
    after = row.per_class.get(name, {}).get(figure)
    before = source.per_class.get(name, {}).get(figure) if source and source is not row else None
    return None if after is None or before is None else 100 * (after - before)
