"""Numbers as people read them, the same in HTML, Markdown and the terminal; absent ones are a dash."""

from __future__ import annotations

from math import ceil, floor, log10

DASH = "–"


def percent(share: float | None, digits: int = 1) -> str:
    """A fraction as ``98.9 %``."""
    return DASH if share is None else f"{100 * share:.{digits}f} %"


def percent_range(pair: tuple[float, float] | None, digits: int = 1) -> str:
    """Two fractions as ``97.2–99.6 %``."""
    return "" if pair is None else f"{100 * pair[0]:.{digits}f}–{100 * pair[1]:.{digits}f} %"


def points(value: float | None, digits: int = 2) -> str:
    """A drop in percentage points with its sign turned to the reader's: ``−0.28`` is worse than the original."""
    if value is None:
        return DASH
    if abs(value) < 0.5 * 10**-digits:
        return f"{0:.{digits}f}"
    return f"{'−' if value > 0 else '+'}{abs(value):.{digits}f}"


def upwards(value: float, digits: int) -> str:
    """A bound, never rounded to less than it is."""
    return f"{ceil(value * 10**digits - 1e-9) / 10**digits:.{digits}f}"


def points_range(pair: tuple[float, float] | None, digits: int = 2) -> str:
    """A drop's interval, worse end first, with the signs of :func:`points`."""
    return "" if pair is None else f"{points(pair[1], digits)} to {points(pair[0], digits)}"


def significant(value: float | None, digits: int = 3) -> str:
    """``value`` with so many significant digits and never an exponent."""
    if value is None:
        return DASH
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - floor(log10(abs(value))))
    return f"{value:.{decimals}f}"


def ms(value: float | None) -> str:
    """Milliseconds, three significant digits, no unit (columns carry it)."""
    return DASH if value is None else significant(value)


def span(pair: tuple[float, float] | None) -> str:
    """Two numbers as ``1.21–1.25``."""
    return "" if pair is None else f"{significant(pair[0])}–{significant(pair[1])}"


def times(value: float | None) -> str:
    """A ratio as ``4.9×``."""
    return DASH if value is None else f"{significant(value, 3 if value >= 10 else 2)}×"


def times_range(pair: tuple[float, float] | None) -> str:
    """A ratio's interval as ``4.7–5.1×``."""
    if pair is None:
        return ""
    low, high = times(pair[0]), times(pair[1])
    if low == high:  # "6.9–6.9" says nothing: show where they part
        low, high = f"{significant(pair[0])}×", f"{significant(pair[1])}×"
    return f"{low[:-1]}–{high}"


def mib(size: float | None) -> str:
    """Bytes as MiB."""
    return DASH if size is None else f"{significant(size / 2**20)} MiB"


def count(value: float | None) -> str:
    """A large number as ``3.4 M``."""
    if value is None:
        return DASH
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{significant(value / scale)} {unit}"
    return f"{value:g}"


def whole(value: float | None) -> str:
    """A number without decimals, thousands separated."""
    return DASH if value is None else f"{value:,.0f}"
