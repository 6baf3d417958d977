"""What the accuracies of folds say together: mean, spread, and how far the mean can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeopt.metrics import Bool, accuracy_interval

_POINTS = 4001  # of the integral over Student's density


@dataclass(frozen=True)
class FoldFigures:
    """Accuracies (0-1) on held-out pictures: of each fold, their ``mean`` and ``spread`` (standard deviation).

    ``mean_ci`` is the 95 % interval of the mean; ``pooled`` that of all held-out answers together, ``pooled_ci`` its
    Wilson interval, ``n`` how many there are.
    """

    folds: tuple[float, ...]
    mean: float
    spread: float
    mean_ci: tuple[float, float]
    pooled: float
    pooled_ci: tuple[float, float]
    n: int

    def to_json(self) -> dict[str, Any]:
        """For ``stage.json``."""
        return {
            "fold_top1": list(self.folds),
            "mean_top1": self.mean,
            "spread_top1": self.spread,
            "mean_top1_ci": list(self.mean_ci),
            "pooled_top1": self.pooled,
            "pooled_top1_ci": list(self.pooled_ci),
            "n": self.n,
        }

    def summary(self) -> str:
        """One line for a person."""
        return (
            f"{len(self.folds)} folds: top-1 {self.mean:.2%} on pictures held out "
            f"(standard deviation {100 * self.spread:.2f} points, "
            f"95 % interval of the mean {self.mean_ci[0]:.1%} to {self.mean_ci[1]:.1%}); "
            f"pooled {self.pooled:.2%} of {self.n} (95 % interval {self.pooled_ci[0]:.1%} to {self.pooled_ci[1]:.1%})"
        )


def fold_figures(correct: Sequence[Bool]) -> FoldFigures:
    """Figures from bool (n_k,) arrays, one a fold: whether each held-out picture was answered right.

    Trainings of different folds share pictures, so their accuracies vary less than those of new data would, and no
    unbiased estimate of their variance exists (Bengio & Grandvalet, JMLR 5 (2004) 1089-1105). The interval of the mean
    is Student's with the correction of Nadeau & Bengio, Machine Learning 52 (2003) 239-281: the variance of the folds
    times 1/K + n_held_out/n_trained, which is 1/K + 1/(K - 1) here; cut to 0-1.
    """
    tops = np.array([one.mean() for one in correct])
    count, mean, spread = len(tops), float(tops.mean()), float(tops.std(ddof=1))
    half = student_quantile(0.975, count - 1) * spread * math.sqrt(1 / count + 1 / (count - 1))
    everything = np.concatenate(list(correct))
    return FoldFigures(
        folds=tuple(float(top) for top in tops),
        mean=mean,
        spread=spread,
        mean_ci=(max(0.0, mean - half), min(1.0, mean + half)),
        pooled=float(everything.mean()),
        pooled_ci=accuracy_interval(everything),
        n=len(everything),
    )


def student_quantile(probability: float, freedom: int) -> float:
    """The quantile (0.5 to 0.9999) of Student's t with ``freedom`` degrees of freedom, by integrating its density.

    With t = sqrt(freedom) tan(x) the density becomes cos(x)^(freedom - 1), smooth on a bounded interval.
    """

    def integral(upper: float) -> float:
        x = np.linspace(0.0, upper, _POINTS)
        y = np.cos(x) ** (freedom - 1)
        return float((y[:-1] + y[1:]).sum() * (x[1] - x[0]) / 2)

    whole, low, high = integral(math.pi / 2), 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if integral(middle) < (2 * probability - 1) * whole else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)
