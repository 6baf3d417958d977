"""metrics: against published values, closed forms and simulated truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.random import default_rng

from edgeopt import metrics
from edgeopt.errors import DataError, ParityError
from edgeopt.metrics import Interval


def answers(lost: int, gained: int, n: int) -> tuple[metrics.Bool, metrics.Bool]:
    """Reference and candidate correctness with so many changes; the rest right in both."""
    reference, candidate = np.ones(n, dtype=bool), np.ones(n, dtype=bool)
    candidate[:lost] = False
    reference[lost : lost + gained] = False
    return reference, candidate


def test_softmax_is_a_distribution_even_for_huge_logits() -> None:
    probabilities = metrics.softmax(np.array([[1e4, 0.0], [1.0, 1.0]], dtype=np.float32))
    assert probabilities == pytest.approx(np.array([[1.0, 0.0], [0.5, 0.5]]))


def test_top_k_counts_labels_among_the_k_largest_and_breaks_ties_as_argmax_does() -> None:
    logits = np.array([[3, 2, 1], [1, 1, 0], [0, 1, 1], [1, 2, 3]], dtype=np.float32)
    labels = np.array([1, 0, 2, 2])
    assert metrics.top_k_accuracy(logits, labels) == (logits.argmax(1) == labels).mean() == 0.5
    assert metrics.top_k_accuracy(logits, labels, k=2) == 1.0
    assert metrics.top_k_accuracy(logits, labels, k=9) == 1.0


def test_confusion_rows_are_true_classes() -> None:
    matrix = metrics.confusion_matrix(np.array([0, 1, 1, 1]), np.array([0, 0, 0, 1]), 3)
    assert matrix.tolist() == [[1, 2, 0], [0, 1, 0], [0, 0, 0]]


def test_per_class_says_none_where_a_class_has_no_pictures() -> None:
    table = metrics.per_class(np.array([0, 1, 1, 1]), np.array([0, 0, 0, 1]), ["a", "b", "c"])
    assert table["a"] == {"n": 3, "correct": 1, "recall": 1 / 3, "precision": 1.0, "f1": 0.5}
    assert table["c"] == {"n": 0, "correct": 0, "recall": None, "precision": None, "f1": None}


def test_accuracy_interval_is_wilsons() -> None:
    # Newcombe, Stat. Med. 17 (1998) 857-872, table I: 81 of 263, and 0 of 20, Wilson without continuity correction.
    low, high = metrics.accuracy_interval(np.arange(263) < 81)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    low, high = metrics.accuracy_interval(np.zeros(20, dtype=bool))
    assert (low, round(high, 4)) == (0.0, 0.1611)
    assert metrics.accuracy_interval(np.ones(20, dtype=bool))[1] == 1.0


@pytest.mark.parametrize(
    ("lost", "gained", "n", "low", "high"),
    [
        # Airway hyper-responsiveness: Fagerland, Lydersen & Laake, Stat. Med. 33 (2014) 2850-2875, "Tango".
        (1, 7, 21, -0.517, -0.026),
        (7, 1, 21, 0.026, 0.517),
        # Nothing changed: z^2 / (n + z^2), from the score equation by hand.
        (0, 0, 30, -0.11351, 0.11351),
    ],
)
def test_paired_interval_is_tangos(lost: int, gained: int, n: int, low: float, high: float) -> None:
    drop = metrics.paired_drop(*answers(lost, gained, n))
    assert drop.ci_points == pytest.approx((100 * low, 100 * high), abs=0.051)


def test_no_changed_picture_still_leaves_room_for_a_drop() -> None:
    drop = metrics.paired_drop(*answers(0, 0, 360))
    assert drop.drop_points == 0
    assert drop.bootstrap_points == (0, 0)  # what the bootstrap alone would claim
    z = 1.6448536
    assert drop.upper_points == pytest.approx(100 * z * z / (360 + z * z), rel=1e-3)
    assert drop.lower_points == pytest.approx(-drop.upper_points)


def test_paired_bounds_agree_with_the_bootstrap_when_many_pictures_change() -> None:
    drop = metrics.paired_drop(*answers(300, 150, 5000))
    assert drop.drop_points == pytest.approx(3.0)
    assert drop.ci_points == pytest.approx(drop.bootstrap_points, abs=0.06)
    assert drop.ci_points[0] < drop.lower_points < drop.drop_points < drop.upper_points < drop.ci_points[1]


def test_the_bootstrap_resamples_pairs_so_that_pictures_both_answer_alike_do_not_widen_it() -> None:
    reference = np.arange(1000) < 910
    candidate = (np.arange(1000) >= 10) & (np.arange(1000) < 920)  # ten lost, ten gained, 900 right in both
    drop = metrics.paired_drop(reference, candidate)
    assert (drop.lost, drop.gained) == (10, 10)
    half = 100 * 1.96 * 20**0.5 / 1000  # unpaired it would be 2.5 points
    assert drop.bootstrap_points == pytest.approx((-half, half), abs=0.11)


def test_upper_bound_holds_the_true_drop_as_often_as_it_says() -> None:
    rng, held = default_rng(0), 0
    for lost, gained, _ in rng.multinomial(360, [0.02, 0.01, 0.97], size=400):
        held += metrics.paired_drop(*answers(lost, gained, 360), resamples=1).upper_points >= 1.0
    assert 0.92 <= held / 400 <= 0.99


def test_the_drops_of_classes_are_bounded_for_all_of_them_together() -> None:
    """Where no class fell, some lower bound is above 0 in at most 5 % of test sets, though there are ten chances."""
    rng, labels, names = default_rng(0), np.repeat(np.arange(10), 60), list("abcdefghij")
    alarms = 0
    for _ in range(300):
        fate = rng.random(600)
        reference, candidate = fate >= 0.05, (fate < 0.05) | (fate >= 0.1)  # as many lost as gained
        drops = metrics.class_drops(reference, candidate, labels, [*names, "no pictures"])
        assert list(drops) == names
        alarms += any(one["lower_points"] > 0 for one in drops.values())
    assert alarms / 300 <= 0.06
    fallen = candidate & ~((labels == 3) & (rng.random(600) < 0.4))
    drops = metrics.class_drops(np.ones(600, dtype=bool), fallen, labels, names)
    assert max(drops, key=lambda name: drops[name]["lower_points"]) == "d"
    assert drops["d"]["lower_points"] > 15
    assert drops["d"]["mcnemar_p"] < 1e-4
    assert drops["d"]["drop_points"] == pytest.approx(100 * drops["d"]["lost"] / 60)


def test_mcnemar_is_the_exact_binomial() -> None:
    assert metrics.mcnemar(0, 0) == 1.0
    assert metrics.mcnemar(5, 0) == 2 / 2**5
    assert metrics.mcnemar(3, 8) == pytest.approx(2 * sum(math.comb(11, k) for k in range(4)) / 2**11)
    assert metrics.mcnemar(6000, 5000) < 1e-20


def test_detectable_drop_is_found_four_times_in_five() -> None:
    n, changed = 1000, 30
    detectable = metrics.paired_drop(*answers(15, 15, n)).detectable_points / 100
    shares = [(changed / n + detectable) / 2, (changed / n - detectable) / 2]
    draws = default_rng(0).multinomial(n, [*shares, 1 - sum(shares)], size=2000)
    z = (draws[:, 0] - draws[:, 1]) / np.sqrt(np.maximum(draws[:, 0] + draws[:, 1], 1))
    assert (z > 1.6449).mean() == pytest.approx(0.8, abs=0.05)


def test_ratio_ignores_what_slows_both_down() -> None:
    rng = default_rng(0)
    drift = np.exp(np.cumsum(rng.normal(0, 0.3, 40)))  # the machine changes speed by factors
    slow = 2.0 * drift * np.exp(rng.normal(0, 0.02, 40))
    fast = drift * np.exp(rng.normal(0, 0.02, 40))
    ratio = metrics.ratio_interval(slow, fast)
    assert ratio.low < 2.0 < ratio.high
    assert ratio.relative_width < 0.03


def test_a_window_that_was_interrupted_for_long_does_not_move_a_ratio() -> None:
    ratio = metrics.ratio_interval([2.0] * 19 + [2000.0], [1.0] * 20)
    assert ratio == pytest.approx((2.0, 2.0, 2.0))


def test_too_few_windows_have_no_interval() -> None:
    ratio = metrics.ratio_interval([2.0] * 5, [1.0] * 5)
    assert ratio.value == 2.0
    assert math.isnan(ratio.low)
    assert ratio.relative_width == math.inf
    assert metrics.ratio_interval([math.nan], [1.0]).value != metrics.ratio_interval([math.nan], [1.0]).value


def test_quantiles_and_relative_width() -> None:
    assert metrics.quantiles(np.arange(101.0)) == (50.0, 90.0, 99.0)
    assert Interval(2.0, 1.9, 2.1).relative_width == pytest.approx(0.1)


def test_percentiles_of_windows_weigh_each_alike_and_are_not_below_the_median_of_their_medians() -> None:
    assert [metrics.window_percentile([np.arange(1.0, 101.0)], percent) for percent in (50, 90, 99, 100)] == [
        50, 90, 99, 100
    ]  # fmt: skip
    quick, slow = np.full(900, 1.0), np.full(100, 9.0)  # as long each: calls of the slow window are fewer
    windows = [quick, slow, slow]
    assert np.percentile(np.concatenate(windows), 80) == 1.0
    assert metrics.window_percentile(windows, 80) == 9.0
    assert metrics.window_percentile([*windows, quick], 49) == 1.0
    rng = default_rng(0)
    for count in (1, 2, 3, 8):
        for _ in range(50):
            drawn = [rng.lognormal(0, 1, rng.integers(1, 40)) * rng.lognormal(0, 1) for _ in range(count)]
            medians = [float(np.median(window)) for window in drawn]
            assert metrics.window_percentile(drawn, 90) >= np.median(medians)
    with pytest.raises(DataError, match="nothing"):
        metrics.window_percentile([], 50)


def test_parity_of_float_is_about_logits_and_of_int8_about_answers() -> None:
    rng = default_rng(0)
    logits = rng.normal(0, 3, (500, 10))
    near, noisy = logits * (1 + 1e-5), logits + rng.normal(0, 0.02, logits.shape)
    assert metrics.float_parity(logits, near).ok
    assert not metrics.float_parity(logits, noisy).ok
    assert metrics.int8_parity(logits, noisy).ok
    parity = metrics.int8_parity(logits, logits + rng.normal(0, 0.3, logits.shape))
    assert not parity.ok
    assert "mean difference 8" in parity.message
    assert metrics.int8_parity(logits, np.roll(logits, 1, axis=0)).top1_agreement < 0.3


def test_int8_parity_needs_the_same_answers_and_near_logits() -> None:
    rng = default_rng(0)
    sure = 10 * np.eye(10)[np.arange(500) % 10]  # wide margins: no noise changes an answer
    far = metrics.int8_parity(sure, sure + rng.normal(0, 0.5, sure.shape))
    assert (far.top1_agreement, far.ok) == (1.0, False)
    swapped = default_rng(1).normal(0, 1, (500, 100))
    swapped[np.arange(500), np.arange(500) % 100] += 5
    other = swapped.copy()
    other[:10, [0, 50]] = other[:10, [50, 0]]  # a few logits change places: hardly any difference in the mean
    other[np.arange(10), np.arange(10)], other[:10, 60] = other[:10, 60].copy(), other[np.arange(10), np.arange(10)]
    few = metrics.int8_parity(swapped, other)
    assert few.mean_abs_over_std < 0.01
    assert few.decided_agreement < 0.99
    assert not few.ok


@pytest.mark.parametrize(("pictures", "flips", "ok"), [(48, 1, True), (48, 2, False), (300, 3, True), (300, 4, False)])
def test_int8_parity_lets_one_picture_differ_however_few_there_are(pictures: int, flips: int, ok: bool) -> None:
    logits = default_rng(0).normal(0, 1, (pictures, 1000))
    rows = np.arange(pictures)
    logits[rows, rows] = 9.0
    other = logits.copy()
    other[rows[:flips], rows[:flips]], other[rows[:flips], 999] = 0.0, 9.0
    parity = metrics.int8_parity(logits, other)
    assert (parity.decided, parity.mean_abs_over_std < 0.05, parity.ok) == (pictures, True, ok)


@pytest.mark.parametrize(("flips", "ok"), [(1, True), (2, False)])
def test_int8_parity_lets_one_in_a_hundred_of_the_decided_pictures_differ_not_of_all(flips: int, ok: bool) -> None:
    """900 ties, which say nothing of either, do not make room for more mistakes."""
    logits = default_rng(0).normal(0, 1, (1000, 100))
    rows = np.arange(1000)
    logits[rows, rows % 100], logits[rows[100:], (rows[100:] + 1) % 100] = 9.0, 8.9999
    other = logits.copy()
    other[rows[:flips], rows[:flips]], other[rows[:flips], 99 - rows[:flips]] = 0.0, 9.0
    parity = metrics.int8_parity(logits, other)
    assert (parity.decided, parity.mean_abs_over_std < 0.05, parity.ok) == (100, True, ok)


def test_int8_parity_where_nothing_is_decided_counts_every_picture() -> None:
    rng = default_rng(0)
    torn = 10 * np.eye(10)[np.arange(500) % 10]
    torn[np.arange(500), (np.arange(500) + 1) % 10] = 9.999  # near ties: the least noise changes them
    near = metrics.int8_parity(torn, torn + rng.normal(0, 0.01, torn.shape))
    assert near.mean_abs_over_std < 0.01
    assert not near.ok


def test_int8_parity_allows_three_times_the_networks_own_noise_and_no_more() -> None:
    rng = default_rng(0)
    logits = rng.normal(0, 1, (500, 10))
    other = logits + rng.normal(0, 0.1, logits.shape)  # 8 % of the spread
    assert not metrics.int8_parity(logits, other).ok
    assert metrics.int8_parity(logits, other, noise_floor=0.04).ok
    assert not metrics.int8_parity(logits, other, noise_floor=0.02).ok


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("kind", ["normal", "sure", "one answer"])
def test_logits_of_another_network_never_pass_however_sensitive_this_one_is(classes: int, kind: str) -> None:
    rng = default_rng(0)
    n = 256
    one, other = rng.normal(0, 1, (n, classes)), rng.normal(0, 1, (n, classes))
    if kind == "sure":  # one high logit a picture, so that the mean difference is small
        for logits in (one, other):
            logits[np.arange(n), rng.integers(0, classes, n)] += 50
    if kind == "one answer":  # a class that both prefer, whatever the picture
        one[:, 0] += 5
        other[:, 0] += 5
    for floor in (0.02, 0.09, 0.38, 10.0):
        assert not metrics.int8_parity(one, other, noise_floor=floor).ok
    dead = np.repeat(one.mean(axis=0, keepdims=True), n, axis=0)  # answers every picture alike
    assert not metrics.int8_parity(one, dead, noise_floor=10.0).ok


def test_the_floors_of_real_and_of_tiny_networks_pass_with_what_they_make() -> None:
    """1.5 to 9 % of the spread in trained networks; 14 % and more in a MobileNetV2 that differs by 41 %."""
    logits = default_rng(0).normal(0, 1, (51, 3))
    for floor, mean in ((0.015, 0.04), (0.09, 0.25), (0.14, 0.41)):
        other = logits + default_rng(1).normal(0, mean / 0.8, logits.shape)  # mean |normal| is 0.8 of its deviation
        parity = metrics.int8_parity(logits, other, noise_floor=floor)
        assert parity.ok, parity.message
        assert parity.allowed == pytest.approx(max(0.05, 3 * floor))
    assert metrics.int8_parity(logits, logits, noise_floor=0.38).allowed == 0.5


def test_int8_parity_does_not_count_ties_that_rounding_decides() -> None:
    """Measured on a hard dataset: 4 of 256 answers differ, all with margins under 7 % of the logits' spread."""
    rng = default_rng(0)
    logits = 10 * np.eye(10)[np.arange(500) % 10]
    logits[:20, 9] = logits[:20].max(axis=1) - 0.01
    parity = metrics.int8_parity(logits, logits + rng.normal(0, 0.05, logits.shape))
    assert parity.top1_agreement < 0.99
    assert parity.decided_agreement == 1.0
    assert parity.decided <= 482
    assert parity.ok


def test_parity_of_numbers_that_are_not_is_refused_and_still_json() -> None:
    logits = np.ones((2, 3), dtype=np.float32)
    broken = logits.copy()
    broken[0, 0] = np.nan
    parity = metrics.int8_parity(logits, broken)
    assert not parity.ok
    assert parity.to_json()["max_relative"] is None
    with pytest.raises(ParityError, match=r"\(2, 3\)"):
        metrics.float_parity(logits, logits[:1])


def test_an_empty_set_is_an_error_not_a_nan() -> None:
    with pytest.raises(DataError, match="empty"):
        metrics.accuracy_interval(np.zeros(0, dtype=bool))
    with pytest.raises(DataError, match="differ in shape"):
        metrics.paired_drop(np.ones(3, dtype=bool), np.ones(4, dtype=bool))
