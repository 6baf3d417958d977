"""The numbers edgeopt judges by, one implementation for both halves: accuracy, paired drops, ratios, parity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from edgeopt.errors import DataError, ParityError

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

FLOAT_MAX_RELATIVE = 1e-3
INT8_MIN_AGREEMENT = 0.99
INT8_MAX_MEAN_OVER_STD = 0.05
INT8_MIN_DECIDED = 16
_MOST_PICTURES = 10**8


def softmax(logits: Float) -> Float64:
    """float64 probabilities of the same shape; the last axis sums to 1."""
    shifted = np.asarray(logits, dtype=np.float64)
    powers = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), dtype=np.float64)


def top_k_accuracy(logits: Float, labels: Int64, k: int = 1) -> float:
    """Share (0-1) of the N pictures whose label is among the ``k`` largest of (N, classes) logits.

    Equal logits rank by class index, as ``argmax`` does; ``k`` past the number of classes is 1.0 by definition.
    """
    _require_some(labels)
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


def agreement(a_logits: Float, b_logits: Float) -> float:
    """Share (0-1) of pictures to which two models, logits (N, classes) each, give the same answer."""
    _require_some(a_logits)
    return float((a_logits.argmax(axis=1) == b_logits.argmax(axis=1)).mean())


def accuracy_interval(correct: Bool, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval (0-1) of the true share of correct answers: Wilson's score interval (Wilson 1927)."""
    n = _require_some(correct)
    z = _z((1 + confidence) / 2)
    share = float(correct.mean())
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 % and 100 % the formula gives the end itself, but for rounding.
    return (0.0 if share == 0 else centre - half), (1.0 if share == 1 else centre + half)


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
    n = _require_some(reference_correct)
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
        ci_points=(100.0 * _tango(lost, gained, n, -_z(0.975)), 100.0 * _tango(lost, gained, n, _z(0.975))),
        lower_points=100.0 * _tango(lost, gained, n, -_z(0.95)),
        upper_points=100.0 * _tango(lost, gained, n, _z(0.95)),
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
        bound = 100 * _tango(lost * share, gained * share, pictures, _z(0.95 if within else 0.05))
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
            "lower_points": 100.0 * _tango(lost, gained, n, -_z(1 - 0.05 / len(shown))),
            "upper_points": 100.0 * _tango(lost, gained, n, _z(0.95)),
            "mcnemar_p": mcnemar(lost, gained),
        }
    return found


def share_bound(correct: int, n: int, confidence: float, *, upper: bool) -> float:
    """One-sided bound (0-1) of a true share of which ``correct`` of ``n`` were seen: an end of Wilson's interval."""
    low, high = accuracy_interval(np.arange(n) < correct, confidence=2 * confidence - 1)
    return high if upper else low


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
        return (_z(0.95) * math.sqrt(share) + _z(0.8) * math.sqrt(share - delta * delta)) ** 2 - n * delta * delta

    return _decreasing_root(missing, 0.0, 1.0)


def _decreasing_root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where ``function``, positive at ``low``, stops being so, by bisection; ``high`` when it never does."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2


class Interval(NamedTuple):
    """A value with its two-sided 95 % interval; bounds are NaN when there is too little to say."""

    value: float
    low: float
    high: float

    @property
    def relative_width(self) -> float:
        """(high - low) / value; infinite when there is no interval."""
        return (self.high - self.low) / self.value if math.isfinite(self.high - self.low) else math.inf


#: Below this many windows not even smallest-to-largest holds a median with 95 % confidence (2 * 0.5**5 > 0.05).
MIN_WINDOWS = 6


def median_interval(windows: Sequence[float] | Float) -> Interval:
    """The median of window values and its 95 % interval; windows, not the samples in them, are the unit.

    Interpolated order statistics: Hettmansperger & Sheather, Statistics & Probability Letters 4 (1986) 75-79. No shape
    is assumed. Simulated (tests/test_verdicts.py) it holds the median in 94 to 96 % of sessions of 6 to 60 windows,
    with heavy tails and two modes as well; the percentile bootstrap of a median held it in 90 to 95 %.
    """
    values = np.sort(np.asarray(windows, dtype=np.float64))
    n = _require_some(values)
    value = float(np.median(values))
    if n < MIN_WINDOWS:
        return Interval(value, math.nan, math.nan)
    depth, inner = _order(n)
    low = (1 - inner) * values[depth - 1] + inner * values[depth]
    high = (1 - inner) * values[n - depth] + inner * values[n - depth - 1]
    return Interval(value, float(low), float(high))


@lru_cache(maxsize=256)
def _order(n: int) -> tuple[int, float]:
    """Between which order statistics, counted from 1, the interval of ``n`` values ends, and how far to the inner."""
    if n > 1000:  # the normal approximation is exact to a rank
        return max(1, math.floor(n / 2 - 0.5 * _z(0.975) * math.sqrt(n))), 0.0
    # From the depth-th smallest to the depth-th largest: confidence 1 - 2 P(fewer than depth of n below the median).
    term, tail, depth = 0.5**n, 0.0, 0
    while 1 - 2 * (tail + term) >= 0.95:
        tail, depth = tail + term, depth + 1
        term *= (n - depth + 1) / depth
    outer, within = 1 - 2 * tail, 1 - 2 * (tail + term)
    share = (outer - 0.95) / (outer - within)
    return depth, (n - depth) * share / (depth + (n - 2 * depth) * share)


def ratio_interval(
    numerator_windows: Sequence[float] | Float, denominator_windows: Sequence[float] | Float
) -> Interval:
    """Median of numerator/denominator over rounds, and its 95 % interval.

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
    ratios = top / bottom
    ratios = ratios[np.isfinite(ratios)]
    return median_interval(ratios) if len(ratios) else Interval(math.nan, math.nan, math.nan)


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
    _require_some(values)
    return tuple(float(value) for value in np.percentile(values, percents))


@dataclass(frozen=True)
class Parity:
    """Whether an export or engine answers as the model it was made from, on ``n`` pictures.

    ``max_relative`` is the largest |difference| over the largest |reference logit|; ``mean_abs_over_std`` the mean
    |difference| over the standard deviation of the reference logits. ``decided_agreement`` is the agreement on the
    ``decided`` pictures: those whose two highest reference logits lie further apart than two differences of the allowed
    mean could move them; every picture, when fewer than 16 are decided. On the others an int8 network answers by the
    rounding of single activations: float noise of 1e-7 after each BatchNorm moves the logits of a trained
    tf_efficientnet_lite0 by 1.3 % of their spread.
    """

    kind: Literal["float", "int8"]
    ok: bool
    top1_agreement: float
    decided_agreement: float
    decided: int
    max_relative: float
    mean_abs_over_std: float
    n: int
    message: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; a value that is not finite becomes null."""
        values = asdict(self).items()
        return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values}


def float_parity(reference: Float, other: Float) -> Parity:
    """Logits (N, classes) against the reference's: every difference within 1e-3 of the largest reference logit."""
    return _parity("float", reference, other)


def int8_parity(reference: Float, other: Float, *, noise_floor: float = 0.0) -> Parity:
    """Same answer on 99 % of the decided pictures, mean |difference| at most 5 % of the reference logits' spread.

    One picture may differ however few there are: of 48, 99 % would mean all, which an engine that is right on 99 % of
    all pictures would fail in 38 of 100 builds.

    ``noise_floor`` is the mean |difference| over the spread that float noise alone makes in this network; three times
    it is allowed where that is more (a barely trained network can be so sensitive that no two runtimes agree).
    """
    return _parity("int8", reference, other, max(INT8_MAX_MEAN_OVER_STD, 3 * noise_floor))


def _parity(
    kind: Literal["float", "int8"], reference: Float, other: Float, allowed: float = INT8_MAX_MEAN_OVER_STD
) -> Parity:
    if reference.shape != other.shape or reference.ndim != 2 or not reference.shape[1]:
        raise ParityError(
            f"logits differ in shape: {reference.shape} in the reference, {other.shape} in the other",
            fix="make the ONNX and its reference again with edgeopt export --force, then build again",
        )
    n = _require_some(reference)
    expected, found = reference.astype(np.float64), other.astype(np.float64)
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        return Parity(kind, False, 0.0, 0.0, n, math.inf, math.inf, n, "logits are not all finite numbers")
    difference = np.abs(expected - found)
    # The floor keeps an all-zero reference from dividing by zero; real logits are far above it.
    relative = float(difference.max() / max(float(np.abs(expected).max()), 1e-12))
    over_std = float(difference.mean() / max(float(expected.std()), 1e-12))
    same = agreement(expected, found)
    decided = _margins(expected) > 2 * allowed * expected.std()
    if decided.sum() < INT8_MIN_DECIDED and allowed == INT8_MAX_MEAN_OVER_STD:
        decided = np.ones(n, dtype=bool)  # too few to tell anything: every picture counts
    count = int(decided.sum())
    sure = agreement(expected[decided], found[decided]) if count else 1.0
    if kind == "float":
        ok = relative <= FLOAT_MAX_RELATIVE
        message = f"largest difference {relative:.2g} of the largest logit, {FLOAT_MAX_RELATIVE:g} allowed"
    else:
        may_differ = max(1, int((1 - INT8_MIN_AGREEMENT) * count + 1e-9))
        ok = round((1 - sure) * count) <= may_differ and over_std <= allowed
        message = (
            f"same answer on {sure:.1%} of {count} decided pictures ({may_differ} may differ; {same:.1%} of all {n}), "
            f"mean difference {over_std:.1%} of the logits' spread (at most {allowed:.1%} allowed)"
        )
    return Parity(kind, ok, same, sure, count, relative, over_std, n, message)


def _margins(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(N,) distance of each row's highest value to the next; infinite where there is one class only."""
    if logits.shape[1] < 2:
        return np.full(len(logits), np.inf)
    top = np.sort(logits, axis=1)
    return np.asarray(top[:, -1] - top[:, -2])


def _require_some(values: npt.NDArray[Any]) -> int:
    """The number of rows; raises DataError for none, which would otherwise become a NaN somewhere downstream."""
    if not len(values):
        raise DataError("nothing to measure: the set is empty", fix="check the split; every class needs pictures")
    return len(values)


def _z(probability: float) -> float:
    return NormalDist().inv_cdf(probability)
