"""Scales and ticks for the report's own charts, which are drawn as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10


@dataclass(frozen=True)
class Scale:
    """Maps values from [low, high] to pixels from ``start`` to ``end``, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of ``value``, which is held inside the scale."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = (log10(value) - log10(self.low)) / (log10(self.high) - log10(self.low))
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


def linear_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers within [low, high], about ``wanted`` of them."""
    raw = (high - low) / wanted
    power = 10 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    return [round(step * i, 10) for i in range(ceil(low / step), floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1-2-5 numbers within [low, high]; only the decades when there would be many."""
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    factors: Sequence[int] = (1, 2, 5) if log10(high / low) < 2.2 else (1,)
    if log10(high / low) < 0.6:
        factors = range(1, 10)
    ticks = [round(factor * 10.0**decade, 10) for decade in decades for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, in order of first appearance: CSS variables that both themes define."""
    return {name: f"var(--c{index % 6})" for index, name in enumerate(dict.fromkeys(names))}
