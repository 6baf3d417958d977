"""What compression removed: parameters, multiply-accumulates, bytes, memory, against the original."""

from __future__ import annotations

from collections.abc import Sequence

from edgeopt.report.engine_row import EngineRow
from edgeopt.report.model import Report
from edgeopt.report.page import fragment

#: Field, title, unit, and whether it is a figure of the model (the same in all its engines) or of the engine.
_FIGURES = (
    ("size_bytes", "Size on disk", "mib", False),
    ("peak_memory_bytes", "Peak memory of the process", "mib", False),
    ("params", "Parameters", "count", True),
    ("macs", "Multiply-accumulates", "count", True),
)


def render(report: Report) -> str:
    """A group of bars a figure; figures nobody has are left out."""
    groups = []
    for name, title, unit, of_model in _FIGURES:
        rows = [row for row in report.rows if getattr(row, name) is not None]
        if of_model:
            rows = list({row.variant: row for row in reversed(rows)}.values())[::-1]
        if len(rows) >= 2:
            bars = _bars(rows, name, report.original, of_model=of_model)
            groups.append({"title": title, "unit": unit, "bars": bars})
    return fragment("compression", groups=groups) if groups else ""


def _bars(
    rows: Sequence[EngineRow], name: str, original: EngineRow | None, *, of_model: bool
) -> list[dict[str, object]]:
    most = max(getattr(row, name) for row in rows)
    before = getattr(original, name) if original is not None else None
    bars = []
    for row in rows:
        value = getattr(row, name)
        bars.append(
            {
                "name": row.variant if of_model else row.key,
                "value": value,
                "share": round(100 * value / most, 1) if most else 0,
                "change": 100 * (value / before - 1) if before and row is not original else None,
            }
        )
    return bars
