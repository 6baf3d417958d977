"""Rules of combination on planted tables: votes by hand, optimal weights, stacking that learns who knows what."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt.metrics import softmax
from edgeopt.voting import VOTES, Combination, fit_stacking, fit_weights

A = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
B = np.array([[0.1, 0.8, 0.1], [0.3, 0.4, 0.3]])
C = np.array([[0.4, 0.3, 0.3], [0.7, 0.2, 0.1]])


def combined(vote: str, members: list[np.ndarray], **learned: object) -> np.ndarray:
    return np.exp(Combination(vote, **learned).log_probabilities(members))  # type: ignore[arg-type]


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(probabilities[np.arange(len(labels)), labels]).mean())


def test_a_soft_vote_is_the_mean_of_the_probabilities() -> None:
    expected = [[1.1 / 3, 1.4 / 3, 0.5 / 3], [1.2 / 3, 1.1 / 3, 0.7 / 3]]
    assert combined("soft", [A, B, C]) == pytest.approx(np.array(expected))


def test_a_hard_vote_counts_heads_whatever_their_confidence() -> None:
    found = combined("hard", [A, B, C])
    assert found.argmax(axis=1).tolist() == [0, 1]  # the soft vote says [1, 0]
    assert combined("soft", [A, B, C]).argmax(axis=1).tolist() == [1, 0]
    assert found == pytest.approx(np.array([[2 / 3, 1 / 3, 0], [1 / 3, 2 / 3, 0]]), abs=1e-3)
    assert found.sum(axis=1) == pytest.approx(1)


def test_a_tie_of_a_hard_vote_goes_to_the_higher_mean_probability() -> None:
    assert combined("hard", [A, B]).argmax(axis=1).tolist() == [1, 1]  # 0 against 1, means 0.35 and 0.55
    assert combined("hard", [A, C]).argmax(axis=1).tolist() == [0, 0]  # 1 against 0, means 0.35 and 0.45


def test_a_weighted_vote_is_the_weighted_mean() -> None:
    assert combined("weighted", [A, B], weights=(0.75, 0.25)) == pytest.approx(0.75 * A + 0.25 * B)


def planted(rng: np.random.Generator, labels: np.ndarray, sharpness: float) -> np.ndarray:
    """Probabilities that are right the more often the sharper."""
    return softmax(rng.normal(size=(len(labels), 3)) + sharpness * np.eye(3)[labels])


def test_fitted_weights_are_the_best_there_are_and_never_worse_than_the_best_member() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    members = [planted(rng, labels, sharpness) for sharpness in (2.0, 1.9, 0.0)]
    weights = np.array(fit_weights(members, labels))
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 0
    assert weights[2] < 0.1 < weights[1]
    found = cross_entropy(np.tensordot(weights, members, axes=1), labels)
    assert found <= min(cross_entropy(one, labels) for one in members)
    grid = [
        cross_entropy(np.tensordot([a, b, 1 - a - b], members, axes=1), labels)
        for a in np.linspace(0, 1, 41)
        for b in np.linspace(0, 1 - a, 41)
    ]
    assert found <= min(grid) + 1e-9


def test_a_member_that_knows_better_on_every_picture_gets_all_the_weight() -> None:
    labels = np.array([0, 1, 2, 0])
    good, bad = 0.8 * np.eye(3)[labels] + 0.2 / 3, np.full((4, 3), 1 / 3)
    assert fit_weights([bad, good], labels) == pytest.approx((0.0, 1.0), abs=1e-6)


def test_stacking_learns_which_member_is_to_be_believed_for_which_class() -> None:
    """A tells class 0 from the rest and nothing more, B class 1; whoever does not know says so with confidence."""
    rng = np.random.default_rng(1)

    def answers(labels: np.ndarray, known: int) -> np.ndarray:
        guess = rng.integers(0, 3, len(labels))
        said = np.where(labels == known, known, np.where(guess == known, (known + 1) % 3, guess))
        return 0.85 * np.eye(3)[said] + 0.05

    train, test = rng.integers(0, 3, 600), rng.integers(0, 3, 600)
    learned = fit_stacking([answers(train, 0), answers(train, 1)], train, 3, strength=1.0)
    assert learned.shape == (7, 3)
    members = [answers(test, 0), answers(test, 1)]
    found = combined("stacking", members, coefficients=learned)
    top1 = float((found.argmax(axis=1) == test).mean())
    assert top1 == 1.0  # neither says its own class wrongly, so that together they know everything
    assert max(float((one.argmax(axis=1) == test).mean()) for one in members) < 0.75
    assert float((combined("soft", members).argmax(axis=1) == test).mean()) < 0.9


@pytest.mark.parametrize("classes", [2, 3])
def test_stacking_applied_in_numpy_is_what_scikit_learn_says(classes: int) -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(2)
    labels = rng.integers(0, classes, 90)
    members = [softmax(rng.normal(size=(90, classes)) + np.eye(classes)[labels]) for _ in range(2)]
    inputs = np.log(np.concatenate(members, axis=1))
    expected = LogisticRegression(C=0.5, max_iter=2000).fit(inputs, labels).predict_proba(inputs)
    learned = fit_stacking(members, labels, classes, strength=0.5)
    assert combined("stacking", members, coefficients=learned) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("vote", VOTES)
def test_certain_members_leave_finite_numbers(vote: str) -> None:
    labels = np.array([0, 1, 2])
    certain = np.eye(3)
    learned = {
        "weighted": {"weights": fit_weights([certain, certain[::-1]], labels)},
        "stacking": {"coefficients": fit_stacking([certain, certain[::-1]], labels, 3, strength=1.0)},
    }.get(vote, {})
    assert np.isfinite(Combination(vote, **learned).log_probabilities([certain, certain[::-1]])).all()  # type: ignore[arg-type]
