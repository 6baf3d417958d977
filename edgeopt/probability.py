"""What a classifier's probabilities are worth: ROC and its area, calibration error, and a temperature to mend it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.metrics import Bool, Float, Float64, Int64, softmax

BINS = 15
ROC_POINTS = 64
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
#: How far the logarithm of a temperature strays without evidence. Few or faultless val pictures say nothing about
#: confidence (the likelihood alone would make every answer certain), and so leave it near 1.
_PRIOR_SPREAD = 0.5


def area_under_roc(scores: Float, positive: Bool) -> float | None:
    """Probability (0-1) that a positive outranks a negative, ties counting half; None without both kinds.

    The Mann-Whitney statistic over the number of pairs: Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747.
    """
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # from 1, ties sharing their mean
    wins = float(ranks[positive].sum()) - positives * (positives + 1) / 2
    return wins / (positives * negatives)


def roc_curve(scores: Float, positive: Bool, points: int = ROC_POINTS) -> list[tuple[float, float]]:
    """(false positive rate, true positive rate) from (0, 0) to (1, 1), at most ``points`` of them; [] without both."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return []
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    true = np.concatenate([[0.0], np.cumsum(positive[order])[last_of_tie] / positives])
    false = np.concatenate([[0.0], np.cumsum(~positive[order])[last_of_tie] / negatives])
    kept = np.unique(np.linspace(0, len(true) - 1, min(points, len(true))).round().astype(int))
    return [(float(false[index]), float(true[index])) for index in kept]


@dataclass(frozen=True)
class Bin:
    """Pictures answered with about the same confidence: how many, their mean confidence, their accuracy (0-1)."""

    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """How honest the confidences are: ``ece`` (expected calibration error, 0-1), ``nll`` (nats), and the diagram."""

    ece: float
    nll: float
    bins: tuple[Bin, ...]

    def to_json(self) -> dict[str, Any]:
        """For ``accuracy.json``."""
        return {"ece": self.ece, "nll": self.nll, "bins": [asdict(one) for one in self.bins]}


def calibration(logits: Float, labels: Int64, *, temperature: float = 1.0, bins: int = BINS) -> Calibration:
    """Calibration of the softmax of (N, classes) ``logits`` over ``temperature``, in equally wide bins of confidence.

    Guo et al. 2017, arXiv:1706.04599: the error is the mean gap of confidence and accuracy, weighted by pictures.
    """
    probabilities = softmax(np.asarray(logits, np.float64) / temperature)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    found = tuple(
        Bin(int(inside.sum()), float(confidence[inside].mean()), float(correct[inside].mean()))
        for inside in (place == index for index in range(bins))
        if inside.any()
    )
    ece = sum(one.n * abs(one.confidence - one.accuracy) for one in found) / len(labels)
    return Calibration(float(ece), float(nll(logits, labels, temperature).mean()), found)


def fit_temperature(logits: Float, labels: Int64) -> float:
    """What to divide logits by so that confidences on (N, classes) val ``logits`` are honest; answers stay the same.

    The most probable one under the likelihood (Guo et al. 2017, arXiv:1706.04599) and a prior around 1; the objective
    is convex in 1/T, and has one minimum in log T that golden-section search finds.
    """

    def cost(log_temperature: float) -> float:
        likelihood = len(labels) * float(nll(logits, labels, float(np.exp(log_temperature))).mean())
        return likelihood + log_temperature**2 / (2 * _PRIOR_SPREAD**2)

    low, high = float(np.log(MIN_TEMPERATURE)), float(np.log(MAX_TEMPERATURE))
    ratio = (np.sqrt(5) - 1) / 2
    while high - low > 1e-4:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if cost(left) < cost(right):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def one_vs_rest(
    logits: Float, labels: Int64, names: Sequence[str], *, temperature: float = 1.0
) -> dict[str, dict[str, Any]]:
    """By class name ``{"auc", "roc"}`` of that class's probability against all others; None and [] where undefined."""
    probabilities: Float64 = softmax(np.asarray(logits, np.float64) / temperature)
    return {
        name: {
            "auc": area_under_roc(probabilities[:, index], labels == index),
            "roc": roc_curve(probabilities[:, index], labels == index),
        }
        for index, name in enumerate(names)
    }


def worst_mistakes(
    logits: Float, labels: Int64, *, temperature: float = 1.0, most: int = 12
) -> list[dict[str, float | int]]:
    """Wrong answers given with the most confidence: ``index`` in the set, ``truth``, ``answer``, ``probability``."""
    probabilities = softmax(np.asarray(logits, np.float64) / temperature)
    answers: npt.NDArray[np.int64] = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    wrong = np.flatnonzero(answers != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    return [
        {
            "index": int(index),
            "truth": int(labels[index]),
            "answer": int(answers[index]),
            "probability": float(confidence[index]),
        }
        for index in worst
    ]


@dataclass(frozen=True)
class LossDifference:
    """Mean of (candidate's - reference's) negative log-likelihood on the same pictures, nats; ``ci`` is 95 %."""

    mean: float
    ci: tuple[float, float]

    @property
    def clear(self) -> bool:
        """Whether the interval excludes no difference."""
        return not self.ci[0] <= 0 <= self.ci[1]


def loss_difference(reference: Float, candidate: Float, labels: Int64) -> LossDifference:
    """Of two logits (N, classes) for labels (N,): the paired comparison that moves before any answer changes.

    The interval is the mean's normal one, 1.96 standard errors of the differences.
    """
    differences = nll(candidate, labels) - nll(reference, labels)
    error = 1.96 * float(differences.std(ddof=1)) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
    mean = float(differences.mean())
    return LossDifference(mean, (mean - error, mean + error))


def nll(logits: Float, labels: Int64, temperature: float = 1.0) -> Float64:
    """float64 (N,): the negative log-likelihood of each label, nats."""
    scaled = np.asarray(logits, np.float64) / temperature
    top = scaled.max(axis=1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(scaled - top).sum(axis=1))
    own = np.take_along_axis(scaled, labels[:, None], axis=1)[:, 0]
    return np.asarray(log_sum - own)
