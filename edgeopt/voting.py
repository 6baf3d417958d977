"""How several classifiers' probabilities become one answer: votes, weights fitted on val, a learned combination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from edgeopt.metrics import Float, Float64, Int64

Vote = Literal["soft", "hard", "weighted", "stacking"]
VOTES: tuple[Vote, ...] = get_args(Vote)

_SMALLEST = 1e-6  # what a probability counts as at least where its logarithm is taken
_TIE = 1e-3  # of a vote: what all members' mean probability adds, so that it decides ties and nothing else
_GAP = 1e-9  # nats that fitted weights may be from the best ones
_MOST_STEPS = 20_000


@dataclass(frozen=True)
class Combination:
    """A rule that makes one answer of several.

    ``soft`` means the mean of the members' probabilities; ``hard`` the share of members whose best class it is, ties
    settled by the mean probability; ``weighted`` the mean with ``weights`` (members,), which are not negative and sum
    to 1; ``stacking`` the softmax of a linear map of all members' log-probabilities, with ``coefficients``
    (members * classes + 1, classes), the last row the intercept.
    """

    vote: Vote
    weights: tuple[float, ...] | None = None
    coefficients: Float64 | None = None

    def log_probabilities(self, members: Sequence[Float]) -> Float64:
        """float64 (N, classes), finite, from the members' probabilities, each (N, classes) in the same order."""
        stacked = np.stack([np.asarray(one, np.float64) for one in members])
        if self.vote == "stacking":
            assert self.coefficients is not None
            scores = features(stacked) @ self.coefficients[:-1] + self.coefficients[-1]
            top = scores.max(axis=1, keepdims=True)
            return np.asarray(scores - top - np.log(np.exp(scores - top).sum(axis=1, keepdims=True)))
        if self.vote == "weighted":
            combined = np.tensordot(np.asarray(self.weights), stacked, axes=1)
        elif self.vote == "hard":
            votes = np.eye(stacked.shape[2])[stacked.argmax(axis=2)].mean(axis=0)
            combined = (votes + _TIE / len(stacked) * stacked.mean(axis=0)) / (1 + _TIE / len(stacked))
        else:
            combined = stacked.mean(axis=0)
        return np.asarray(np.log(np.maximum(combined, 1e-12)))


def features(members: Float64) -> Float64:
    """What stacking learns from: (N, members * classes) log-probabilities of (members, N, classes) probabilities."""
    return np.concatenate(list(np.log(np.maximum(members, _SMALLEST))), axis=1)


def fit_weights(members: Sequence[Float], labels: Int64) -> tuple[float, ...]:
    """Weights, not negative and summing to 1, whose mean of the members' probabilities has the least cross-entropy.

    ``members`` are (N, classes) probabilities of pictures no member was trained on, ``labels`` int64 (N,). The problem
    is convex, so no better weights exist, and no single member is better. Solved by expectation maximization, as
    mixing proportions: Smyth & Wolpert, Machine Learning 36 (1999) 59-83. The mean of a member's probabilities over
    the mixture's bounds how far from the best the weights are.
    """
    own = np.stack([np.asarray(one, np.float64)[np.arange(len(labels)), labels] for one in members])
    own = np.maximum(own, 1e-12)
    weights = np.full(len(own), 1.0 / len(own))
    for _ in range(_MOST_STEPS):
        gains = (own / (weights @ own)).mean(axis=1)
        if gains.max() - 1 < _GAP:
            break
        weights = weights * gains
        weights /= weights.sum()
    return tuple(float(weight) for weight in weights)


def fit_stacking(members: Sequence[Float], labels: Int64, classes: int, *, strength: float) -> Float64:
    """Coefficients (members * classes + 1, classes) of a multinomial logistic regression of log-probabilities.

    ``members`` are probabilities (N, classes) each, out of fold: of pictures the member that answered was not trained
    on (Wolpert, Neural Networks 5 (1992) 241-259; Ting & Witten, JAIR 10 (1999) 271-289). ``strength`` is the inverse
    of the L2 penalty on the coefficients.
    """
    from sklearn.linear_model import LogisticRegression

    inputs = features(np.stack([np.asarray(one, np.float64) for one in members]))
    model = LogisticRegression(C=strength, max_iter=2000).fit(inputs, labels)
    found = np.zeros((inputs.shape[1] + 1, classes))
    # Of two classes scikit-learn keeps the second's coefficients only; a class without pictures has none.
    rows = np.column_stack([model.coef_, model.intercept_])
    if len(model.classes_) == 2:
        rows = np.stack([-rows[0] / 2, rows[0] / 2])
    for label, row in zip(model.classes_, rows, strict=True):
        found[:, label] = row
    return found
