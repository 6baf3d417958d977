"""Beyond a call of one batch: from the picture file to the answer, from a cold start, and as many as possible."""

from __future__ import annotations

from typing import Any

from edgeopt.report.engine_row import EngineRow
from edgeopt.report.model import Report
from edgeopt.report.page import fragment

#: Parts of the way from a file to the answer, in order, and what they are called.
PARTS = (("decode_ms", "decode"), ("preprocess_ms", "preprocess"), ("infer_ms", "infer"))


def render(report: Report) -> str:
    """A table, bars of one scale for the parts; nothing where no scenario was measured."""
    some = ("end_to_end", "cold_start_s", "best_throughput", "cross_check")
    rows = [row for row in report.rows if any(getattr(row, name) for name in some)]
    if not rows:
        return ""
    longest = max((total(row) for row in rows), default=0.0) or 1.0
    return fragment(
        "scenarios",
        rows=[{"row": row, "total": total(row), "parts": _parts(row, longest)} for row in rows],
        end_to_end=any(row.end_to_end for row in rows),
        on_device=any(row.device_p50_ms for row in rows),
        throughput=any(row.best_throughput for row in rows),
        cross_check=any(row.cross_check for row in rows),
        names=[name for _, name in PARTS],
    )


def total(row: EngineRow) -> float:
    """Milliseconds from an encoded picture to the answer; 0 when it was not measured."""
    return sum(float(row.end_to_end.get(key, 0.0)) for key, _ in PARTS)


def _parts(row: EngineRow, longest: float) -> list[dict[str, Any]]:
    if not row.end_to_end:
        return []
    return [
        {"name": name, "ms": row.end_to_end[key], "share": row.end_to_end[key] / (total(row) or 1.0),
         "width": round(100 * row.end_to_end[key] / longest, 2)}
        for key, name in PARTS
    ]  # fmt: skip
