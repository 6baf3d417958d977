"""The report for a terminal: the sentence, a table that fits 100 columns, the budget's lines."""

from __future__ import annotations

from edgeopt.report import format as form
from edgeopt.report.budget import verdict
from edgeopt.report.engine_row import EngineRow
from edgeopt.report.headline import confidence, sentence
from edgeopt.report.model import Report
from edgeopt.report.notes import notes

_HEAD = ("engine", "top-1", "change", "p50 ms", "× original", "× its float", "size", "in int8")


def render_text(report: Report) -> str:
    """Plain text, no colours: it is also what goes into logs."""
    rows = [_HEAD, *(_cells(row, report) for row in report.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [sentence(report), *filter(None, [confidence(report)]), ""]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    against = [
        f"{row.key}: {form.times(row.fp32_speedup)} as fast as {row.fp32_baseline} "
        f"({form.times_range(row.fp32_speedup_ci)})"
        for row in report.rows
        if row.precision == "int8" and row.fp32_speedup is not None
    ]
    if said := [*against, *notes(report)]:
        lines += ["", *said]
    if report.budget:
        lines += ["", f"budget {verdict(report.budget)}:", *(f"  {line.message}" for line in report.budget)]
    lines += [f"warning: {text}" for text in report.warnings]
    return "\n".join(lines)


def _cells(row: EngineRow, report: Report) -> tuple[str, ...]:
    original = report.original is not None and row.key == report.original.key
    against = row.speedup if report.original is not None and row.baseline == report.original.key else None
    return (
        row.key,
        form.percent(row.top1),
        form.DASH if original else form.points(row.drop_points),
        form.ms(row.p50_ms),
        "1×" if original else form.times(against),
        form.times(row.float_speedup),
        form.mib(row.size_bytes),
        form.percent(row.int8_share, 0) if row.precision == "int8" else form.DASH,
    )
