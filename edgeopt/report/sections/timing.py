"""How long single calls took, and every timing window in order, so that drift, steps and stragglers can be seen."""

from __future__ import annotations

from edgeopt.report import format as form
from edgeopt.report.engine_row import EngineRow
from edgeopt.report.model import Report
from edgeopt.report.page import fragment
from edgeopt.report.svg import Scale, colours, log_ticks

WIDTH, RIGHT, ROW, TOP, BOTTOM = 900, 20, 58, 8, 40
STRIP = 24  # of a row, for its windows; the rest is the distribution of calls


def render(report: Report) -> str:
    """A row an engine: the distribution of calls, below it a dot a window; nothing without windows."""
    rows = [row for row in report.rows if row.window_medians_ms and row.p50_ms]
    if not rows:
        return ""
    every = [value for row in rows for value in row.window_medians_ms]
    every += [ms for row in rows for ms, share in row.density if share > 0.01]
    left = 30 + 6.6 * max(len(row.key) for row in rows)
    x = Scale(min(every) / 1.12, max(every) * 1.12, left, WIDTH - RIGHT, log=True)
    palette = colours([row.backend for row in report.rows])
    strips = [
        {
            "row": row,
            "y": TOP + ROW * (index + 1) - STRIP / 2,
            "colour": palette[row.backend],
            "dots": _dots(row.window_medians_ms, x),
            "median": x(row.p50_ms or 1.0),
            "hill": _hill(row.density, x, TOP + ROW * (index + 1) - STRIP - 2),
            "marks": [(name, x(ms), ms) for name, ms in (("p90", row.p90_ms), ("p99", row.p99_ms)) if ms],
            "tip": _tip(row),
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


def _hill(density: tuple[tuple[float, float], ...], x: Scale, base: float) -> str:
    """The outline of a distribution that stands on ``base``; empty without one."""
    if not density:
        return ""
    points = [(x(ms), round(base - share * (ROW - STRIP - 6), 1)) for ms, share in density]
    return " ".join(f"{a},{b}" for a, b in [(points[0][0], base), *points, (points[-1][0], base)])


def _tip(row: EngineRow) -> str:
    figures = (("p50", row.p50_ms), ("p90", row.p90_ms), ("p99", row.p99_ms))
    return "\n".join([row.key, *(f"{name} {form.ms(value)} ms" for name, value in figures if value is not None)])


def _dots(values: tuple[float, ...], x: Scale, most: int = 120) -> list[tuple[float, float]]:
    """(x, offset) of the windows; later ones lower in the strip, so that a slope is a drift."""
    every, last = -(-len(values) // most), max(len(values) - 1, 1)
    return [(x(value), round((n / last - 0.5) * (STRIP - 8), 1)) for n, value in list(enumerate(values))[::every]]
