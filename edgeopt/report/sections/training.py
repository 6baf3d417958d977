"""How the variants were trained: val top-1 and train loss by epoch, and the learning rate's range test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeopt.report import format as form
from edgeopt.report.model import LrTest, Report, Training
from edgeopt.report.page import fragment
from edgeopt.report.svg import Scale, linear_ticks, log_ticks

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 260, 52, 16, 22, 44
#: A loss of several times the first one is the end of the test, and would flatten what led to it.
_MOST_OF_FIRST_LOSS = 1.5


@dataclass(frozen=True)
class Chart:
    """One line in a frame, in pixels; ``marked`` is the point that was chosen."""

    title: str
    x_title: str
    y_title: str
    points: str
    marked: tuple[float, float] | None
    marked_tip: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def render(report: Report) -> str:
    """Two charts for each variant that took several epochs, one for a range test; nothing where there is neither."""
    charts = [chart for training in report.trainings for chart in _charts(training)]
    damaged = [training for training in report.trainings if training.damaged]
    if not charts and not damaged:
        return ""
    area = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
    return fragment("training", charts=charts, damaged=damaged, width=WIDTH, height=HEIGHT, area=area)


def _charts(training: Training) -> list[Chart]:
    test = [_range_test(training.variant, training.lr_test)] if training.lr_test is not None else []
    if len(training.epochs) < 2:  # a point is no curve
        return test
    epochs = [epoch for epoch, _, _ in training.epochs]
    losses, accuracies = [loss for _, loss, _ in training.epochs], [100 * top1 for _, _, top1 in training.epochs]
    best = training.best_epoch
    by_epoch: dict[str, Any] = {"x_title": "epoch", "chosen": best, "tip": f"epoch {best}, which was kept"}
    charts = [
        _chart(f"{training.variant}: val top-1, %", epochs, accuracies, y_title="%", **by_epoch),
        _chart(f"{training.variant}: train loss", epochs, losses, y_title="loss", **by_epoch),
    ]
    return [*charts, *test]


def _range_test(variant: str, test: LrTest) -> Chart:
    most = _MOST_OF_FIRST_LOSS * max(test.curve[0][1], 1e-9)
    rates, losses = zip(*test.curve, strict=True)
    shown = [min(loss, most) for loss in losses]
    tip = f"{form.significant(test.lr, 2)}, which was taken"
    title = f"{variant}: range test of the learning rate"
    return _chart(
        title, rates, shown, x_title="learning rate (logarithmic)", y_title="loss", chosen=test.lr, tip=tip, log=True
    )


def _chart(
    title: str,
    xs: Sequence[float],
    ys: Sequence[float],
    *,
    x_title: str,
    y_title: str,
    chosen: float | None,
    tip: str,
    log: bool = False,
) -> Chart:
    x = Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT, log=log)
    low, high = min(ys), max(ys)
    margin = 0.05 * (high - low) or max(0.05 * abs(high), 0.5)
    y = Scale(low - margin, high + margin, HEIGHT - BOTTOM, TOP)
    # The point of the line that is nearest to what was chosen; the initial weights (epoch 0) are not on it.
    at = min(range(len(xs)), key=lambda i: abs(xs[i] - chosen)) if chosen else None
    marked = None if at is None else (x(xs[at]), y(ys[at]))
    ticks: Any = log_ticks(x.low, x.high) if log else [t for t in linear_ticks(x.low, x.high) if t == round(t)]
    return Chart(
        title=title,
        x_title=x_title,
        y_title=y_title,
        points=" ".join(f"{x(a)},{y(b)}" for a, b in zip(xs, ys, strict=True)),
        marked=marked,
        marked_tip=tip,
        x_ticks=[(x(tick), f"{tick:g}") for tick in ticks],
        y_ticks=[(y(tick), f"{tick:g}") for tick in linear_ticks(y.low, y.high, 4)],
    )
