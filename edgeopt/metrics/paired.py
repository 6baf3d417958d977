"""How much worse one model is than another on the same pictures: the drop, its bounds, and what would decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgeopt.arrays import Bool, Int64, require_some
from edgeopt.errors import DataError
from edgeopt.metrics.accuracy import z_score

_MOST_PICTURES = 10**8


@dataclass(frozen=True)
class PairedDrop:
    """How much worse a candidate is than a reference on the same pictures, in percentage points (positive = worse).

    ``ci_points`` (two-sided 95 %), ``lower_points`` and ``upper_points`` (one-sided 95 % each) are Tango's score
    bounds: unlike the bootstrap they do not collapse to a point when few pictures, or none, changed.
    ``bootstrap_points`` is the two-sided 95 % paired bootstrap, to compare with. ``detectable_points`` is the smallest
    true drop that this test set would show as one (one-sided 5 %) four times in five, given how many pictures change.
    """

    drop_points: float
    ci_points: tuple[float, float]
    lower_points: float
    upper_points: float
    bootstrap_points: tuple[float, float]
    mcnemar_p: float
    detectable_points: float
    n: int
    lost: int  # reference right, candidate wrong
    gained: int  # reference wrong, candidate right

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


def paired_drop(
    reference_correct: Bool, candidate_correct: Bool, *, seed: int = 0, resamples: int = 10_000
) -> PairedDrop:
    """The accuracy drop from two bool (N,) arrays over the same pictures in the same order."""
    n = require_some(reference_correct)
    if reference_correct.shape != candidate_correct.shape:
        raise DataError(
            f"paired answers differ in shape: {reference_correct.shape} and {candidate_correct.shape}",
            fix="pass two bool arrays (N,) over the same pictures in the same order",
        )
    lost = int((reference_correct & ~candidate_correct).sum())
    gained = int((~reference_correct & candidate_correct).sum())
    # Resampling pairs only ever changes these three counts, so drawing the counts is the same bootstrap, faster.
    shares = np.array([lost, gained, n - lost - gained]) / n
    draws = np.random.default_rng(seed).multinomial(n, shares, size=resamples)
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) * (100.0 / n), [0.025, 0.975])
    return PairedDrop(
        drop_points=100.0 * (lost - gained) / n,
        ci_points=(100.0 * _tango(lost, gained, n, -z_score(0.975)), 100.0 * _tango(lost, gained, n, z_score(0.975))),
        lower_points=100.0 * _tango(lost, gained, n, -z_score(0.95)),
        upper_points=100.0 * _tango(lost, gained, n, z_score(0.95)),
        bootstrap_points=(float(low), float(high)),
        mcnemar_p=mcnemar(lost, gained),
        detectable_points=100.0 * _detectable(lost + gained, n),
        n=n,
        lost=lost,
        gained=gained,
    )


def pictures_to_decide(lost: int, gained: int, n: int, limit_points: float) -> int | None:
    """How many pictures would tell whether the true drop is above ``limit_points``, if the shares stay as in ``n``.

    That is where Tango's one-sided 95 % bound reaches the limit. None where no number would: the drop is at the limit.
    """
    within = 100 * (lost - gained) / n <= limit_points

    def decided(pictures: int) -> bool:
        share = pictures / n
        bound = 100 * _tango(lost * share, gained * share, pictures, z_score(0.95 if within else 0.05))
        return bound <= limit_points if within else bound > limit_points

    low, high = n, 2 * n
    while not decided(high):
        low, high = high, 2 * high
        if high > _MOST_PICTURES:
            return None
    while high - low > 1 + low // 100:  # to within 1 %: it is a forecast
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high


def class_drops(
    reference_correct: Bool, candidate_correct: Bool, labels: Int64, names: Sequence[str]
) -> dict[str, dict[str, float | int]]:
    """By class name, for classes with pictures: ``n, lost, gained``, the recall's fall ``drop_points`` and its bounds.

    ``upper_points`` is the one-sided 95 % bound of that class: when all lie within a limit, every class does (the
    intersection-union test needs no correction). ``lower_points`` is one-sided at 1 - 5 % / classes: that any of them
    lies beyond a limit by chance has 5 % (Bonferroni). ``mcnemar_p`` is exact and of that class alone.
    """
    shown = [index for index in range(len(names)) if (labels == index).any()]
    found: dict[str, dict[str, float | int]] = {}
    for index in shown:
        own = labels == index
        lost = int((reference_correct & ~candidate_correct & own).sum())
        gained = int((~reference_correct & candidate_correct & own).sum())
        n = int(own.sum())
        found[names[index]] = {
            "n": n,
            "lost": lost,
            "gained": gained,
            "drop_points": 100.0 * (lost - gained) / n,
            "lower_points": 100.0 * _tango(lost, gained, n, -z_score(1 - 0.05 / len(shown))),
            "upper_points": 100.0 * _tango(lost, gained, n, z_score(0.95)),
            "mcnemar_p": mcnemar(lost, gained),
        }
    return found


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided exact p-value that ``lost`` and ``gained`` differ by chance: binomial(lost + gained, 1/2), doubled."""
    discordant, term, total = lost + gained, 1, 0
    for k in range(min(lost, gained) + 1):
        total += term
        term = term * (discordant - k) // (k + 1)
    return min(1.0, float(2 * total / 2**discordant))


def _tango(lost: float, gained: float, n: int, z: float) -> float:
    """The difference (lost - gained) / n at which the score test reaches ``z``: Tango, Stat. Med. 17 (1998) 891-908."""

    def score(delta: float) -> float:
        b = (2 * n - lost + gained) * delta - lost - gained
        c = -gained * delta * (1 - delta)
        q = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        variance = n * (2 * q + delta * (1 - delta))
        distance = lost - gained - n * delta
        if variance > 0:
            return distance / math.sqrt(variance)
        return math.copysign(math.inf, distance) if distance else 0.0

    return _decreasing_root(lambda delta: score(delta) + z, -1.0, 1.0)


def _detectable(discordant: int, n: int) -> float:
    """Smallest drop found with power 0.8 at one-sided 5 % by McNemar's test: Connor, Biometrics 43 (1987) 207-211."""

    def missing(delta: float) -> float:
        share = max(discordant / n, delta)  # a drop of delta alone changes that many pictures
        needed = z_score(0.95) * math.sqrt(share) + z_score(0.8) * math.sqrt(share - delta * delta)
        return needed**2 - n * delta * delta

    return _decreasing_root(missing, 0.0, 1.0)


def _decreasing_root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where ``function``, positive at ``low``, stops being so, by bisection; ``high`` when it never does."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2
