"""What windows of timings say: medians, ratios of engines measured in turn, their intervals, and what would decide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from edgeopt.arrays import Float, require_some
from edgeopt.errors import DataError
from edgeopt.metrics.accuracy import share_interval, z_score

#: Below this many windows not even smallest-to-largest holds a median with 95 % confidence (2 * 0.5**5 > 0.05).
MIN_WINDOWS = 6
#: Starts of the processes that differ by less do not matter, and beyond that not when chance does it this often.
STARTS_DIFFER_BY, STARTS_DIFFER_LEVEL = 0.03, 0.01


class Interval(NamedTuple):
    """A value with its two-sided 95 % interval; bounds are NaN when there is too little to say."""

    value: float
    low: float
    high: float

    @property
    def relative_width(self) -> float:
        """(high - low) / value; infinite when there is no interval."""
        return (self.high - self.low) / self.value if math.isfinite(self.high - self.low) else math.inf


def median_interval(windows: Sequence[float] | Float, *, starts: Sequence[int] = ()) -> Interval:
    """The median of window values and its 95 % interval; windows, not the samples in them, are the unit.

    Interpolated order statistics: Hettmansperger & Sheather, Statistics & Probability Letters 4 (1986) 75-79. No shape
    is assumed. Simulated (tests/test_verdicts.py) it holds the median in 94 to 96 % of sessions of 6 to 60 windows,
    with heavy tails and two modes as well; the percentile bootstrap of a median held it in 90 to 95 %.

    ``starts`` is how many of the windows, in order, each start of the processes gave; none is one start. Windows of one
    process share what that process was dealt, so the interval reaches over the medians of the starts too: over all of
    them, and from ``MIN_WINDOWS`` starts on over their own 95 % interval. Where processes differ by as much as windows
    do, six starts hold the true median in 95 % of sessions and two, which nothing can help, in 60 %: a ratio of which
    :func:`starts_differ` is true wants more starts. Raises DataError when ``starts`` are not of these windows.
    """
    values = np.asarray(windows, dtype=np.float64)
    require_some(values)
    whole = _of_windows(values)
    medians = start_medians(values, starts)
    if len(medians) < 2 or not math.isfinite(whole.high - whole.low):
        return whole
    low, high = min(medians), max(medians)
    if len(medians) >= MIN_WINDOWS:
        _, low, high = _of_windows(np.asarray(medians))
    return Interval(whole.value, min(whole.low, low), max(whole.high, high))


def start_medians(windows: Sequence[float] | Float, starts: Sequence[int] = ()) -> tuple[float, ...]:
    """The median of each start's windows; see :func:`median_interval`."""
    return tuple(float(np.median(own)) for own in _by_start(windows, starts))


def starts_differ(windows: Sequence[float] | Float, starts: Sequence[int]) -> bool:
    """Whether starts differ by more than 3 %, and by more than their windows explain: Kruskal & Wallis, JASA 47 (1952).

    At the 1 % level, by the chi-squared approximation, whose quantile is that of Wilson & Hilferty, PNAS 17 (1931).
    """
    groups = _by_start(windows, starts)
    if len(groups) < 2:
        return False
    medians = start_medians(windows, starts)
    if max(medians) <= (1 + STARTS_DIFFER_BY) * min(medians):
        return False
    n, freedom = sum(map(len, groups)), len(groups) - 1
    ranks = np.split(_ranks(np.concatenate(groups)), np.cumsum([len(own) for own in groups])[:-1])
    spread = sum(len(own) * (float(own.mean()) - (n + 1) / 2) ** 2 for own in ranks)
    part = 2 / (9 * freedom)
    limit = freedom * (1 - part + z_score(1 - STARTS_DIFFER_LEVEL) * math.sqrt(part)) ** 3
    return 12 / (n * (n + 1)) * spread > limit


def _of_windows(windows: Float) -> Interval:
    """The median of values that are independent of each other."""
    values, n = np.sort(windows), len(windows)
    value = float(np.median(values))
    if n < MIN_WINDOWS:
        return Interval(value, math.nan, math.nan)
    depth, inner = _order(n)
    low = (1 - inner) * values[depth - 1] + inner * values[depth]
    high = (1 - inner) * values[n - depth] + inner * values[n - depth - 1]
    return Interval(value, float(low), float(high))


def ratio_interval(
    numerator_windows: Sequence[float] | Float,
    denominator_windows: Sequence[float] | Float,
    *,
    starts: Sequence[int] = (),
) -> Interval:
    """Median of numerator/denominator over rounds, and its 95 % interval, ``starts`` as in :func:`median_interval`.

    Window i of both was measured in the same round, so what slows the machine down for a while slows both and leaves
    the ratio alone. A round that misses either (NaN) is dropped.
    """
    top = np.asarray(numerator_windows, dtype=np.float64)
    bottom = np.asarray(denominator_windows, dtype=np.float64)
    if top.shape != bottom.shape:
        raise DataError(
            f"paired windows differ in number: {top.shape} and {bottom.shape}",
            fix="pass one number for each round to both, NaN for a round that one of them missed",
        )
    groups = [own[np.isfinite(own)] for own in _by_start(top / bottom, starts)]
    ratios = np.concatenate(groups)
    if not len(ratios):
        return Interval(math.nan, math.nan, math.nan)
    return median_interval(ratios, starts=[len(own) for own in groups])


def seconds_to_decide(interval: Interval, limit: float, seconds: float) -> float | None:
    """How many seconds of windows would put ``interval``, which took ``seconds``, on one side of ``limit``.

    It narrows with the root of the time; a third more at least. None where none would, the value being at the limit,
    or where there were too few windows for an interval.
    """
    at_it = math.isclose(interval.value, limit, abs_tol=1e-9)
    if at_it or not math.isfinite(interval.high - interval.low):
        return None
    reach = abs(interval.value - interval.low if limit < interval.value else interval.high - interval.value)
    return float(seconds * max((reach / (interval.value - limit)) ** 2, 1.3))


def quantiles(samples: Sequence[float] | Float, percents: Sequence[float] = (50, 90, 99)) -> tuple[float, ...]:
    """The given percentiles of ``samples``, linearly interpolated."""
    values = np.asarray(samples, dtype=np.float64)
    require_some(values)
    return tuple(float(value) for value in np.percentile(values, percents))


def window_percentile(windows: Sequence[Sequence[float] | Float], percent: float) -> float:
    """The percentile of the samples of all windows, each window counting as much as any other.

    Windows take the same time, so that a slow one has fewer samples: pooled, a disturbance would hide its own calls,
    and the 90th percentile could be below the median of the windows' medians. Weighted so, none from the 75th on is:
    half of the windows have half of their samples at that median or above. It is the smallest sample that is enough.
    """
    kept = [np.asarray(window, dtype=np.float64) for window in windows if len(window)]
    values = np.concatenate([np.empty(0), *kept])
    require_some(values)
    weights = np.concatenate([np.full(len(window), 1 / len(window)) for window in kept])
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    index = int(np.searchsorted(reached, percent / 100 * len(kept) * (1 - 1e-12)))
    return float(values[order][min(index, len(values) - 1)])


def percentile_interval(windows: Sequence[Sequence[float] | Float], percent: float) -> Interval:
    """:func:`window_percentile`, and its 95 % interval where so many samples have one.

    The percentiles at the ends of the share's own interval (Woodruff, JASA 47 (1952)), for as many independent samples
    as these are worth: samples of one window are alike, and by how much the calls beyond a percentile five times as far
    from the end tell (Kish's design effect). Where the largest of so many is no bound, being below the true percentile
    in more than 2.5 % of sessions, the bound is as far again above it as it is above the median, in ratio. Simulated
    (tests/test_verdicts.py) it holds the true p99 in 94 to 99 % of sessions; the bootstrap over windows in 68 to 93.
    """
    value, share = window_percentile(windows, percent), percent / 100
    kept = [np.asarray(window, dtype=np.float64) for window in windows if len(window)]
    if len(kept) < MIN_WINDOWS:
        return Interval(value, math.nan, math.nan)
    beyond = window_percentile(kept, 100 - 5 * (100 - percent))
    shares = np.asarray([float((window > beyond).mean()) for window in kept])
    total, seen = sum(map(len, kept)), float(shares.mean())
    alone = seen * (1 - seen) * len(kept) / total  # the variance of a window's share were its samples independent
    effect = float(shares.var(ddof=1)) / alone if alone else 1.0
    worth = total / max(1.0, effect)
    low, high = (window_percentile(kept, 100 * end) for end in share_interval(share, worth))
    if share**worth > (1 - 0.95) / 2:
        largest = max(float(window.max()) for window in kept)
        high = largest**2 / window_percentile(kept, 50)
    return Interval(value, low, high)


def _by_start(windows: Sequence[float] | Float, starts: Sequence[int]) -> list[Float]:
    """The windows of each start that has some; all of them where no starts are stated."""
    values = np.asarray(windows, dtype=np.float64)
    if not starts:
        return [values]
    if sum(starts) != len(values):
        raise DataError(
            f"{len(values)} windows are not those of starts with {', '.join(map(str, starts))}",
            fix="pass how many windows each start gave, in order",
        )
    return [own for own in np.split(values, np.cumsum(starts)[:-1]) if len(own)] or [values]


def _ranks(values: Float) -> Float:
    """From 1; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[places], dtype=np.float64)


@lru_cache(maxsize=256)
def _order(n: int) -> tuple[int, float]:
    """Between which order statistics, counted from 1, the interval of ``n`` values ends, and how far to the inner."""
    if n > 1000:  # the normal approximation is exact to a rank
        return max(1, math.floor(n / 2 - 0.5 * z_score(0.975) * math.sqrt(n))), 0.0
    # From the depth-th smallest to the depth-th largest: confidence 1 - 2 P(fewer than depth of n below the median).
    term, tail, depth = 0.5**n, 0.0, 0
    while 1 - 2 * (tail + term) >= 0.95:
        tail, depth = tail + term, depth + 1
        term *= (n - depth + 1) / depth
    outer, within = 1 - 2 * tail, 1 - 2 * (tail + term)
    share = (outer - 0.95) / (outer - within)
    return depth, (n - depth) * share / (depth + (n - 2 * depth) * share)
