"""Every timing window of every engine, so that drift, steps and stragglers can be seen."""

from __future__ import annotations

from edgeopt.report.model import Report
from edgeopt.report.page import fragment
from edgeopt.report.svg import Scale, colours, log_ticks

WIDTH, RIGHT, ROW, TOP, BOTTOM = 900, 20, 30, 8, 40


def render(report: Report) -> str:
    """A strip a row: one dot a window, the median as a line; nothing without windows."""
    rows = [row for row in report.rows if row.window_medians_ms and row.p50_ms]
    if not rows:
        return ""
    every = [value for row in rows for value in row.window_medians_ms]
    left = 30 + 6.6 * max(len(row.key) for row in rows)
    x = Scale(min(every) / 1.12, max(every) * 1.12, left, WIDTH - RIGHT, log=True)
    palette = colours([row.backend for row in report.rows])
    strips = [
        {
            "row": row,
            "y": TOP + ROW * index + ROW / 2,
            "colour": palette[row.backend],
            "dots": _dots(row.window_medians_ms, x),
            "median": x(row.p50_ms or 1.0),
        }
        for index, row in enumerate(rows)
    ]
    height = TOP + ROW * len(rows) + BOTTOM
    ticks = [(x(tick), f"{tick:g}") for tick in log_ticks(x.low, x.high)]
    return fragment(
        "timing",
        strips=strips,
        width=WIDTH,
        height=height,
        left=left,
        ticks=ticks,
        axis=height - BOTTOM,
        windows=max(len(row.window_medians_ms) for row in rows),
    )


def _dots(values: tuple[float, ...], x: Scale, most: int = 120) -> list[tuple[float, float]]:
    """(x, offset) of the windows; later ones lower in the strip, so that a slope is a drift."""
    every, last = -(-len(values) // most), max(len(values) - 1, 1)
    return [(x(value), round((n / last - 0.5) * (ROW - 12), 1)) for n, value in list(enumerate(values))[::every]]
