"""How often a model is right: top-k, by class, against another model, and how sure a share of pictures is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

from edgeopt.arrays import Bool, Float, Int64, require_some


def top_k_accuracy(logits: Float, labels: Int64, k: int = 1) -> float:
    """Share (0-1) of the N pictures whose label is among the ``k`` largest of (N, classes) logits.

    Equal logits rank by class index, as ``argmax`` does; ``k`` past the number of classes is 1.0 by definition.
    """
    require_some(labels)
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1])[None, :] < labels[:, None]
    rank = (logits > own).sum(axis=1) + ((logits == own) & earlier).sum(axis=1)
    return float((rank < k).mean())


def confusion_matrix(predictions: Int64, labels: Int64, classes: int) -> Int64:
    """int64 (classes, classes): rows are true classes, columns predicted ones."""
    flat = np.bincount(labels * classes + predictions, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def per_class(predictions: Int64, labels: Int64, names: Sequence[str]) -> dict[str, dict[str, float | int | None]]:
    """By class name: ``n`` pictures, ``correct``, ``recall``, ``precision``, ``f1``; None where there is none."""
    matrix = confusion_matrix(predictions, labels, len(names))
    table: dict[str, dict[str, float | int | None]] = {}
    for index, name in enumerate(names):
        correct, n, predicted = int(matrix[index, index]), int(matrix[index].sum()), int(matrix[:, index].sum())
        table[name] = {
            "n": n,
            "correct": correct,
            "recall": correct / n if n else None,
            "precision": correct / predicted if predicted else None,
            "f1": 2 * correct / (n + predicted) if n else None,
        }
    return table


def macro(figures: Mapping[str, Mapping[str, float | int | None]]) -> dict[str, float] | None:
    """Means of ``precision``, ``recall`` and ``f1`` (0-1) of :func:`per_class` over the classes that have pictures.

    Every class weighs alike. The precision of a class that was never answered counts as 0; None where no class has
    pictures.
    """
    shown = [one for one in figures.values() if one.get("n")]
    if not shown:
        return None
    return {name: sum(one.get(name) or 0.0 for one in shown) / len(shown) for name in ("precision", "recall", "f1")}


def agreement(a_logits: Float, b_logits: Float) -> float:
    """Share (0-1) of pictures to which two models, logits (N, classes) each, give the same answer."""
    require_some(a_logits)
    return float((a_logits.argmax(axis=1) == b_logits.argmax(axis=1)).mean())


def accuracy_interval(correct: Bool, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval (0-1) of the true share of correct answers: Wilson's score interval (Wilson 1927)."""
    n = require_some(correct)
    return share_interval(float(correct.mean()), n, confidence)


def share_interval(share: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (0-1) of the true share, where ``share`` was seen of ``n``."""
    z = z_score((1 + confidence) / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 % and 100 % the formula gives the end itself, but for rounding.
    return (0.0 if share == 0 else centre - half), (1.0 if share == 1 else centre + half)


def share_bound(correct: int, n: int, confidence: float, *, upper: bool) -> float:
    """One-sided bound (0-1) of a true share of which ``correct`` of ``n`` were seen: an end of Wilson's interval."""
    low, high = accuracy_interval(np.arange(n) < correct, confidence=2 * confidence - 1)
    return high if upper else low


def z_score(probability: float) -> float:
    """Where the standard normal distribution has reached ``probability``."""
    return NormalDist().inv_cdf(probability)
