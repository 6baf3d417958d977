"""Whether confidences can be believed, and how well classes are told apart: reliability diagrams and ROC curves."""

from __future__ import annotations

from typing import Any

from edgeopt.report.engine_row import EngineRow
from edgeopt.report.headline import champion
from edgeopt.report.model import Report
from edgeopt.report.page import fragment
from edgeopt.report.svg import Scale

SIDE, LEFT, TOP, BOTTOM, RIGHT = 300, 44, 12, 40, 12


def render(report: Report) -> str:
    """Two diagrams of the original (or the first engine measured) and the best engine, and a table of all."""
    measured = [row for row in report.rows if row.ece is not None]
    if not measured:
        return ""
    chosen = [row for row in (champion(report), report.original) if row is not None and row.bins] or measured[:1]
    x = Scale(0, 1, LEFT, SIDE - RIGHT)
    y = Scale(0, 1, SIDE - BOTTOM, TOP)
    return fragment(
        "confidence",
        rows=measured,
        diagrams=[_diagram(row, x, y) for row in chosen],
        curves=[_curves(row, x, y) for row in chosen[:1] if row.roc],
        side=SIDE,
        axis=SIDE - BOTTOM,
        left=LEFT,
        ticks=[(x(tick), y(tick), f"{tick:g}") for tick in (0, 0.5, 1)],
        corner=(x(0), y(0), x(1), y(1)),
    )


def _diagram(row: EngineRow, x: Scale, y: Scale) -> dict[str, Any]:
    largest = max(one[0] for one in row.bins)
    dots = [
        {
            "x": x(confidence),
            "y": y(accuracy),
            "r": round(2.5 + 7 * (n / largest) ** 0.5, 1),
            "tip": f"{n} pictures: confidence {confidence:.1%}, right {accuracy:.1%}",
        }
        for n, confidence, accuracy in row.bins
    ]
    return {"row": row, "dots": dots}


def _curves(row: EngineRow, x: Scale, y: Scale) -> dict[str, Any]:
    curves = [
        {
            "name": name,
            "auc": (row.per_class.get(name) or {}).get("auc"),
            "colour": f"var(--c{index % 6})",
            "points": " ".join(f"{x(false)},{y(true)}" for false, true in points),
        }
        for index, (name, points) in enumerate(row.roc.items())
        if points
    ]
    return {"row": row, "curves": curves}
