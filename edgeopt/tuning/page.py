"""The page of a search: how the score rose, what mattered, each parameter's values, and every trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeopt.report import format as form
from edgeopt.report.page import asset, fragment
from edgeopt.report.svg import Scale, linear_ticks, log_ticks
from edgeopt.tuning.crew import shown
from edgeopt.tuning.result import State, TrialRow, TuneResult

WIDTH, HEIGHT = 900, 340
SMALL_WIDTH, SMALL_HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 18, 20, 40
_SHADES: dict[State, str] = {
    "complete": "var(--c1)",
    "pruned": "var(--c3)",
    "failed": "var(--c5)",
    "running": "var(--c0)",
}
#: Values spread over more than this are drawn by logarithm.
_WIDE = 20.0


@dataclass(frozen=True)
class Dot:
    """A trial's place in a chart, in pixels."""

    x: float
    y: float
    state: str
    colour: str
    tip: str


@dataclass(frozen=True)
class Chart:
    """Everything the template draws."""

    title: str
    width: int
    height: int
    area: tuple[int, int, int, int]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    dots: list[Dot]
    line: str = ""


def render(result: TuneResult) -> str:
    """The whole page as HTML."""
    judged = [one for one in result.trials if one.score is not None]
    keys = list(dict.fromkeys(key for one in result.trials for key in one.parameters))
    first = next((one for one in result.trials if one.defaults), None)
    return fragment(
        "tune",
        result=result,
        first=first,
        history=_history(judged) if judged else None,
        importances=[(key, share, form.percent(share, 0)) for key, share in result.importances.items()],
        slices=[chart for key in keys if (chart := _slice(key, judged)) is not None],
        keys=keys,
        rows=[_cells(one, keys, result.best) for one in _ranked(result.trials)],
        ended=[one for one in result.trials if one.reason],
        shades=[(state, shade) for state, shade in _SHADES.items() if result.count(state)],
        changed=_changed(result.best, first),
        shown=shown,
        style=asset("style.css"),
    )


def _changed(best: TrialRow | None, first: TrialRow | None) -> list[str]:
    """Keys whose best value is not the defaults'."""
    if best is None or first is None:
        return []
    return [key for key, value in best.parameters.items() if value != first.parameters.get(key)]


def _ranked(trials: Sequence[TrialRow]) -> list[TrialRow]:
    """Complete ones by score, then the others by how far they came."""
    order = {"complete": 0, "running": 1, "pruned": 2, "failed": 3}
    return sorted(trials, key=lambda one: (order[one.state], -(one.score or 0.0), one.number))


def _cells(one: TrialRow, keys: Sequence[str], best: TrialRow | None) -> dict[str, Any]:
    return {
        "trial": one,
        "best": one is best,
        "score": form.percent(one.score, 2),
        "values": [shown(one.parameters[key]) if key in one.parameters else form.DASH for key in keys],
    }


def _tip(one: TrialRow) -> str:
    head = f"trial {one.number}{' (the defaults)' if one.defaults else ''}: {one.state}"
    score = f"{form.percent(one.score, 2)} after {one.epochs} epochs"
    return "\n".join([head, score, *(f"{key} {shown(value)}" for key, value in one.parameters.items())])


def _height(judged: Sequence[TrialRow], height: int) -> Scale:
    scores = [100 * (one.score or 0.0) for one in judged]
    room = max((max(scores) - min(scores)) * 0.08, 0.5)
    return Scale(max(0.0, min(scores) - room), min(100.0 + room / 2, max(scores) + room), height - BOTTOM, TOP)


def _dot(one: TrialRow, x: float, y: Scale) -> Dot:
    return Dot(x, y(100 * (one.score or 0.0)), one.state, _SHADES[one.state], _tip(one))


def _history(judged: Sequence[TrialRow]) -> Chart:
    """Score by trial, and the best of the completed ones so far as a line."""
    last = max(one.number for one in judged)
    x, y = Scale(-0.5, last + 0.5, LEFT, WIDTH - RIGHT), _height(judged, HEIGHT)
    best = -1.0
    steps: list[tuple[float, float]] = []
    for one in judged:
        if one.state == "complete" and (one.score or 0.0) > best:
            if steps:
                steps.append((x(one.number), y(100 * best)))
            best = one.score or 0.0
            steps.append((x(one.number), y(100 * best)))
    if steps:
        steps.append((x(last + 0.5), y(100 * best)))
    whole = sorted({round(tick) for tick in linear_ticks(0, max(1, last), 8)})
    return Chart(
        title="val score by trial",
        width=WIDTH,
        height=HEIGHT,
        area=(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
        x_ticks=[(x(tick), str(tick)) for tick in whole if tick <= last],
        y_ticks=[(y(tick), f"{tick:g}") for tick in linear_ticks(y.low, y.high)],
        dots=[_dot(one, x(one.number), y) for one in judged],
        line=" ".join(f"{a},{b}" for a, b in steps),
    )


def _slice(key: str, judged: Sequence[TrialRow]) -> Chart | None:
    """Score by one parameter's value; None when it never varied."""
    some = [one for one in judged if key in one.parameters]
    values = [one.parameters[key] for one in some]
    if len({shown(value) for value in values}) < 2:
        return None
    area = (LEFT, TOP, SMALL_WIDTH - RIGHT, SMALL_HEIGHT - BOTTOM)
    if all(isinstance(value, float) for value in values):
        low, high = min(values), max(values)
        log = low > 0 and high / low > _WIDE
        x = Scale(low / 1.15, high * 1.15, LEFT, area[2], log=True) if log else _padded(low, high, area[2])
        ticks = log_ticks(x.low, x.high) if log else linear_ticks(x.low, x.high, 4)
        places, names = [x(value) for value in values], [(x(tick), f"{tick:g}") for tick in ticks]
    else:
        kinds = sorted({shown(value) for value in values}, key=lambda text: (len(text), text))
        x = Scale(-0.5, len(kinds) - 0.5, LEFT, area[2])
        places, names = [x(kinds.index(shown(value))) for value in values], [(x(i), k) for i, k in enumerate(kinds)]
    y = _height(judged, SMALL_HEIGHT)
    return Chart(
        title=key,
        width=SMALL_WIDTH,
        height=SMALL_HEIGHT,
        area=area,
        x_ticks=[(place, name[:18]) for place, name in names],
        y_ticks=[(y(tick), f"{tick:g}") for tick in linear_ticks(y.low, y.high, 4)],
        dots=[_dot(one, place, y) for one, place in zip(some, places, strict=True)],
    )


def _padded(low: float, high: float, end: int) -> Scale:
    room = (high - low) * 0.06
    return Scale(low - room, high + room, LEFT, end)
