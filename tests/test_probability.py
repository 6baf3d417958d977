"""ROC, calibration and temperature against scikit-learn and planted truths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import auc, log_loss, roc_auc_score

from edgeopt.metrics import softmax
from edgeopt.probability import (
    area_under_roc,
    calibration,
    fit_temperature,
    one_vs_rest,
    roc_curve,
    worst_mistakes,
)


def honest(n: int, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the very distribution that labels are drawn from."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, classes))
    labels = np.array([rng.choice(classes, p=row) for row in softmax(logits)])
    return logits, labels


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=60))
def test_the_area_is_scikit_learns_ties_included(pairs: list[tuple[int, bool]]) -> None:
    scores, positive = np.array([score for score, _ in pairs], float), np.array([kind for _, kind in pairs])
    found = area_under_roc(scores, positive)
    if positive.all() or not positive.any():
        assert found is None
        assert roc_curve(scores, positive) == []
        return
    assert found == pytest.approx(roc_auc_score(positive, scores))
    curve = np.array(roc_curve(scores, positive))
    assert curve[0].tolist() == [0, 0]
    assert curve[-1].tolist() == [1, 1]
    assert auc(curve[:, 0], curve[:, 1]) == pytest.approx(found)


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(5000) < 0.3
    curve = roc_curve(rng.normal(positive * 1.5, 1), positive)
    assert len(curve) == 64
    assert (curve[0], curve[-1]) == ((0.0, 0.0), (1.0, 1.0))


def test_honest_confidences_have_little_error_and_sharpened_ones_much() -> None:
    logits, labels = honest(20_000)
    assert calibration(logits, labels).ece < 0.015
    assert calibration(3 * logits, labels).ece > 0.08
    assert calibration(logits, labels).nll == pytest.approx(log_loss(labels, softmax(logits)))


def test_the_error_is_the_one_computed_by_hand() -> None:
    # Two pictures answered with confidence 0.8 (one rightly), two with 0.6 (both rightly).
    logits = np.log([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [0.6, 0.4]])
    found = calibration(logits, np.array([0, 1, 0, 0]))
    assert found.ece == pytest.approx((2 * 0.3 + 2 * 0.4) / 4)
    assert [(one.n, round(one.confidence, 6), one.accuracy) for one in found.bins] == [(2, 0.6, 1.0), (2, 0.8, 0.5)]


@pytest.mark.parametrize("planted", [0.4, 1.0, 3.0])
def test_a_planted_temperature_is_found_and_mends_the_calibration(planted: float) -> None:
    logits, labels = honest(8000)
    found = fit_temperature(planted * logits, labels)
    assert found == pytest.approx(planted, rel=0.06)
    held_logits, held_labels = honest(8000, seed=1)
    assert calibration(planted * held_logits, held_labels, temperature=found).ece < 0.02


def test_few_faultless_pictures_do_not_make_every_answer_certain() -> None:
    logits = np.array([[3.0, 0.0], [0.0, 3.0]] * 4)
    labels = np.array([0, 1] * 4)
    assert 0.4 < fit_temperature(logits, labels) < 1.0


def test_one_vs_rest_names_classes_and_leaves_absent_ones_undefined() -> None:
    logits, labels = honest(500, classes=3)
    labels[labels == 2] = 1
    table = one_vs_rest(logits, labels, ["a", "b", "c"])
    assert table["a"]["auc"] == pytest.approx(roc_auc_score(labels == 0, softmax(logits)[:, 0]))
    assert table["c"] == {"auc": None, "roc": []}


def test_the_worst_mistakes_come_first_and_right_answers_never() -> None:
    logits = np.array([[5.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 9.0]])
    found = worst_mistakes(logits, np.array([0, 1, 0, 0]), most=2)
    assert [(one["index"], one["truth"], one["answer"]) for one in found] == [(3, 0, 1), (2, 0, 1)]
    assert found[0]["probability"] > found[1]["probability"]
