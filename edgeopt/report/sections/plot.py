"""The plot: top-1 against latency, intervals as bars, the best trade-offs joined, the dominated greyed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeopt.report import format as form
from edgeopt.report.model import EngineRow, Report
from edgeopt.report.page import fragment
from edgeopt.report.svg import Scale, colours, linear_ticks, log_ticks

WIDTH, HEIGHT = 900, 430
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 18, 48


@dataclass(frozen=True)
class Mark:
    """One engine's place in the plot, in pixels."""

    row: EngineRow
    x: float
    y: float
    x_bar: tuple[float, float] | None
    y_bar: tuple[float, float] | None
    label_y: float
    label_left: bool
    dominated: bool
    colour: str
    shape: str
    tip: str


def render(report: Report) -> str:
    """An SVG of every engine that has both numbers; nothing with fewer than two."""
    rows = [row for row in report.rows if row.p50_ms and row.top1 is not None]
    if len(rows) < 2:
        return ""
    x, y = _scales(rows)
    palette = colours([row.backend for row in report.rows])
    marks = _place(rows, x, y, palette)
    front = sorted((mark for mark in marks if not mark.dominated), key=lambda mark: mark.x)
    return fragment(
        "plot",
        width=WIDTH,
        height=HEIGHT,
        area=(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
        marks=marks,
        front=" ".join(f"{mark.x},{mark.y}" for mark in front),
        x_ticks=[(x(tick), form.significant(tick, 1)) for tick in log_ticks(x.low, x.high)],
        y_ticks=[(y(tick), f"{tick:g}") for tick in linear_ticks(y.low, y.high)],
        palette=[(name, palette[name]) for name in dict.fromkeys(mark.row.backend for mark in marks)],
        shapes=list(dict.fromkeys((mark.row.precision, mark.shape) for mark in marks)),
    )


def _scales(rows: Sequence[EngineRow]) -> tuple[Scale, Scale]:
    latencies = [row.p50_ms or 1.0 for row in rows]
    low, high = min(latencies), max(latencies)
    margin = max((high / low) ** 0.12, 1.15)
    ends = [100 * share for row in rows for share in (row.top1_ci or (row.top1 or 0.0,))]
    bottom, top = min(ends), max(ends)
    # A spread of hundredths of a point drawn over the whole height would look like a difference.
    room = max((top - bottom) * 0.08, 0.5)
    return (
        Scale(low / margin, high * margin**2, LEFT, WIDTH - RIGHT, log=True),
        Scale(max(0.0, bottom - room), min(100.0 + room / 2, top + room), HEIGHT - BOTTOM, TOP),
    )


def _place(rows: Sequence[EngineRow], x: Scale, y: Scale, palette: dict[str, str]) -> list[Mark]:
    # What a label must not cover: left end, right end, height; first the marks themselves, then labels already set.
    taken = [(px - 9, px + 9, py) for px, py in ((x(row.p50_ms or 1.0), y(100 * (row.top1 or 0.0))) for row in rows)]
    marks = []
    for row in sorted(rows, key=lambda row: row.p50_ms or 0.0):
        px, py = x(row.p50_ms or 1.0), y(100 * (row.top1 or 0.0))
        width = 6.2 * len(_label(row)) + 14
        left = px + width > WIDTH - RIGHT
        begin = px - width if left else px + 10
        label = _free(py, begin, begin + width - 10, taken)
        taken.append((begin, begin + width - 10, label))
        marks.append(
            Mark(
                row=row,
                x=px,
                y=py,
                x_bar=(x(row.p50_ci_ms[0]), x(row.p50_ci_ms[1])) if row.p50_ci_ms else None,
                y_bar=(y(100 * row.top1_ci[0]), y(100 * row.top1_ci[1])) if row.top1_ci else None,
                label_y=label,
                label_left=left,
                dominated=any(_better(other, row) for other in rows),
                colour=palette[row.backend],
                shape={"int8": "square", "fp32": "circle"}.get(row.precision, "diamond"),
                tip=_tip(row),
            )
        )
    return marks


def _free(wanted: float, begin: float, end: float, taken: Sequence[tuple[float, float, float]]) -> float:
    """The height nearest to ``wanted`` at which a label from ``begin`` to ``end`` covers no other."""
    for step in range(40):
        for height in (wanted - 7 * step, wanted + 7 * step):
            clear = all(end < a or b < begin or abs(height - h) >= 14 for a, b, h in taken)
            if clear and TOP + 6 <= height <= HEIGHT - BOTTOM - 4:
                return height
    return wanted


def _better(other: EngineRow, row: EngineRow) -> bool:
    faster = (other.p50_ms or 0.0) <= (row.p50_ms or 0.0)
    as_right = (other.top1 or 0.0) >= (row.top1 or 0.0)
    return faster and as_right and (other.p50_ms, other.top1) != (row.p50_ms, row.top1)


def _label(row: EngineRow) -> str:
    return row.key


def _tip(row: EngineRow) -> str:
    lines = [
        row.key,
        f"{form.percent(row.top1)} top-1 ({form.percent_range(row.top1_ci)})",
        f"{form.ms(row.p50_ms)} ms" + (f" ({form.span(row.p50_ci_ms)})" if row.p50_ci_ms else ""),
    ]
    if row.speedup is not None:
        lines.append(f"{form.times(row.speedup)} as fast as {row.baseline}")
    if row.size_bytes:
        lines.append(form.mib(row.size_bytes))
    return "\n".join(lines)
