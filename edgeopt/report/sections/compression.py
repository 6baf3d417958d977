"""What compression removed: parameters, multiply-accumulates, bytes, memory, against the original."""

from __future__ import annotations

from edgeopt.report.model import EngineRow, Report
from edgeopt.report.page import fragment

_FIGURES = (
    ("size_bytes", "Size on disk", "mib"),
    ("params", "Parameters", "count"),
    ("macs", "Multiply-accumulates", "count"),
    ("peak_memory_bytes", "Peak memory of the process", "mib"),
)


def render(report: Report) -> str:
    """A group of bars a figure; figures nobody has are left out."""
    groups = []
    for name, title, unit in _FIGURES:
        rows = [row for row in report.rows if getattr(row, name) is not None]
        if len(rows) < 2:
            continue
        most = max(getattr(row, name) for row in rows)
        groups.append({"title": title, "unit": unit, "bars": [_bar(row, name, most, report.original) for row in rows]})
    return fragment("compression", groups=groups) if groups else ""


def _bar(row: EngineRow, name: str, most: float, original: EngineRow | None) -> dict[str, object]:
    value = getattr(row, name)
    before = getattr(original, name) if original is not None and row is not original else None
    return {
        "row": row,
        "value": value,
        "share": round(100 * value / most, 1) if most else 0,
        "change": 100 * (value / before - 1) if before else None,
    }
