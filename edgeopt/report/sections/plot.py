"""The plots: top-1 against latency, or against size; intervals as bars, the best trade-offs joined, the rest greyed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from edgeopt.report import format as form
from edgeopt.report.engine_row import EngineRow, Pair
from edgeopt.report.model import Report
from edgeopt.report.page import fragment
from edgeopt.report.svg import Scale, colours, linear_ticks, log_ticks

WIDTH, HEIGHT = 900, 430
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 18, 48


@dataclass(frozen=True)
class Axis:
    """What lies on the x axis; smaller is better."""

    name: str
    title: str
    value: Callable[[EngineRow], float | None]
    interval: Callable[[EngineRow], Pair | None]


AXES = (
    Axis(
        "latency", "p50 latency, ms (logarithmic) · left is faster", lambda row: row.p50_ms, lambda row: row.p50_ci_ms
    ),
    Axis(
        "size",
        "size, MiB (logarithmic) · left is smaller",
        lambda row: row.size_bytes / 2**20 if row.size_bytes else None,
        lambda row: None,
    ),
)


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
    radius: float  # its area is in proportion to the engine's size
    tip: str
    label: str


def render(report: Report) -> str:
    """A panel for each axis that two engines or more have; nothing when none has."""
    panels = [panel for axis in AXES if (panel := _panel(report, axis))]
    if not panels:
        return ""
    backends = [row.backend for row in report.rows]
    palette = colours(backends)
    marks = panels[0]["marks"]
    return fragment(
        "plot",
        width=WIDTH,
        height=HEIGHT,
        area=(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
        panels=panels,
        palette=[(name, palette[name]) for name in dict.fromkeys(mark.row.backend for mark in marks)],
        shapes=list(dict.fromkeys((mark.row.precision, mark.shape) for mark in marks)),
        rivals=any(row.variant in report.rivals for row in report.rows),
    )


def _panel(report: Report, axis: Axis) -> dict[str, Any] | None:
    rows = [row for row in report.rows if axis.value(row) and row.top1 is not None]
    if len(rows) < 2:
        return None
    x, y = _scales(rows, axis)
    labels = {row.key: f"{row.key}, the rival" if row.variant in report.rivals else row.key for row in rows}
    marks = _place(rows, x, y, colours([row.backend for row in report.rows]), axis, labels)
    front = sorted((mark for mark in marks if not mark.dominated), key=lambda mark: mark.x)
    return {
        "axis": axis,
        "marks": marks,
        "front": " ".join(f"{mark.x},{mark.y}" for mark in front),
        "x_ticks": [(x(tick), form.significant(tick, 1)) for tick in log_ticks(x.low, x.high)],
        "y_ticks": [(y(tick), f"{tick:g}") for tick in linear_ticks(y.low, y.high)],
    }


def _scales(rows: Sequence[EngineRow], axis: Axis) -> tuple[Scale, Scale]:
    values = [axis.value(row) or 1.0 for row in rows]
    low, high = min(values), max(values)
    margin = max((high / low) ** 0.12, 1.15)
    ends = [100 * share for row in rows for share in (row.top1_ci or (row.top1 or 0.0,))]
    bottom, top = min(ends), max(ends)
    # A spread of hundredths of a point drawn over the whole height would look like a difference.
    room = max((top - bottom) * 0.08, 0.5)
    return (
        Scale(low / margin, high * margin**2, LEFT, WIDTH - RIGHT, log=True),
        Scale(max(0.0, bottom - room), min(100.0 + room / 2, top + room), HEIGHT - BOTTOM, TOP),
    )


def _place(
    rows: Sequence[EngineRow], x: Scale, y: Scale, palette: dict[str, str], axis: Axis, labels: dict[str, str]
) -> list[Mark]:
    def spot(row: EngineRow) -> tuple[float, float]:
        return x(axis.value(row) or 1.0), y(100 * (row.top1 or 0.0))

    # What a label must not cover: left end, right end, height; first the marks themselves, then labels already set.
    taken = [(px - 9, px + 9, py) for px, py in map(spot, rows)]
    largest = max((row.size_bytes or 0 for row in rows), default=0)
    marks = []
    for row in sorted(rows, key=lambda row: axis.value(row) or 0.0):
        px, py = spot(row)
        width = 6.2 * len(labels[row.key]) + 14
        left = px + width > WIDTH - RIGHT
        begin = px - width if left else px + 10
        label = _free(py, begin, begin + width - 10, taken)
        taken.append((begin, begin + width - 10, label))
        interval = axis.interval(row)
        marks.append(
            Mark(
                row=row,
                x=px,
                y=py,
                x_bar=(x(interval[0]), x(interval[1])) if interval else None,
                y_bar=(y(100 * row.top1_ci[0]), y(100 * row.top1_ci[1])) if row.top1_ci else None,
                label_y=label,
                label_left=left,
                dominated=any(_better(other, row, axis) for other in rows),
                colour=palette[row.backend],
                shape={"int8": "square", "fp32": "circle"}.get(row.precision, "diamond"),
                radius=round(max(3.5, 9 * sqrt((row.size_bytes or 0) / largest)), 1) if largest else 6.0,
                tip=_tip(row, labels[row.key]),
                label=labels[row.key],
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


def _better(other: EngineRow, row: EngineRow, axis: Axis) -> bool:
    mine, its = axis.value(row) or 0.0, axis.value(other) or 0.0
    as_right = (other.top1 or 0.0) >= (row.top1 or 0.0)
    return its <= mine and as_right and (its, other.top1) != (mine, row.top1)


def _tip(row: EngineRow, label: str) -> str:
    lines = [
        label,
        f"{form.percent(row.top1)} top-1 ({form.percent_range(row.top1_ci)})",
    ]
    if row.p50_ms is not None:
        lines.append(f"{form.ms(row.p50_ms)} ms" + (f" ({form.span(row.p50_ci_ms)})" if row.p50_ci_ms else ""))
    if row.speedup is not None:
        lines.append(f"{form.times(row.speedup)} as fast as {row.baseline}")
    if row.size_bytes:
        lines.append(form.mib(row.size_bytes))
    return "\n".join(lines)
