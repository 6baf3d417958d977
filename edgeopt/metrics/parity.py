"""Whether an export or an engine answers as the model it was made from: the differences of their logits, judged."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from edgeopt.arrays import Float, Float64, require_some
from edgeopt.errors import ParityError
from edgeopt.metrics.accuracy import agreement

FLOAT_MAX_RELATIVE = 1e-3
INT8_MIN_AGREEMENT = 0.99
INT8_MAX_MEAN_OVER_STD = 0.05
INT8_MIN_DECIDED = 16
#: However sensitive a network: normal logits that have nothing to do with each other differ by 113 % in the mean.
INT8_MAX_WIDENED = 0.5
#: Where more than 5 % is allowed. Of the most sensitive network here, which differs by 41 %, some 0.9; of unrelated
#: logits 0.
INT8_MIN_CORRELATION = 0.5


@dataclass(frozen=True)
class Parity:
    """Whether an export or engine answers as the model it was made from, on ``n`` pictures.

    ``max_relative`` is the largest |difference| over the largest |reference logit|; ``mean_abs_over_std`` the mean
    |difference| over the standard deviation of the reference logits. ``decided_agreement`` is the agreement on the
    ``decided`` pictures: those whose two highest reference logits lie further apart than two differences of the allowed
    mean could move them; every picture, when fewer than 16 are decided. On the others an int8 network answers by the
    rounding of single activations: float noise of 1e-7 after each BatchNorm moves the logits of a trained
    tf_efficientnet_lite0 by 1.3 % of their spread.

    ``allowed`` is the limit of ``mean_abs_over_std`` that was applied. ``correlation`` is that of the logits over the
    pictures, each class's mean taken away, so that a network that answers every picture alike has none; 0 where fewer
    than 16 pictures, or logits that are all alike, say nothing.
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
    allowed: float = INT8_MAX_MEAN_OVER_STD
    correlation: float | None = None

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

    ``noise_floor`` is the mean |difference| over the spread that rounding alone makes in this network; three times it
    is allowed where that is more (a barely trained network can be so sensitive that no two runtimes agree, and bfloat16
    can move a trained one further), but never more than half the spread, and what differs by more than 5 % must still
    correlate with the reference by at least 0.5. Engines in half precision are judged alike.
    """
    allowed = max(INT8_MAX_MEAN_OVER_STD, min(3 * noise_floor, INT8_MAX_WIDENED))
    return _parity("int8", reference, other, allowed)


def _parity(
    kind: Literal["float", "int8"], reference: Float, other: Float, allowed: float = INT8_MAX_MEAN_OVER_STD
) -> Parity:
    if reference.shape != other.shape or reference.ndim != 2 or not reference.shape[1]:
        raise ParityError(
            f"logits differ in shape: {reference.shape} in the reference, {other.shape} in the other",
            fix="make the ONNX and its reference again with edgeopt export --force, then build again",
        )
    n = require_some(reference)
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
    correlation = _correlation(expected, found)
    count = int(decided.sum())
    sure = agreement(expected[decided], found[decided]) if count else 1.0
    if kind == "float":
        ok = relative <= FLOAT_MAX_RELATIVE
        message = f"largest difference {relative:.2g} of the largest logit, {FLOAT_MAX_RELATIVE:g} allowed"
    else:
        may_differ = max(1, int((1 - INT8_MIN_AGREEMENT) * count + 1e-9))
        related = over_std <= INT8_MAX_MEAN_OVER_STD or correlation >= INT8_MIN_CORRELATION
        ok = round((1 - sure) * count) <= may_differ and over_std <= allowed and related
        message = (
            f"same answer on {sure:.1%} of {count} decided pictures ({may_differ} may differ; {same:.1%} of all {n}), "
            f"mean difference {over_std:.1%} of the logits' spread (at most {allowed:.1%} allowed)"
        )
        if not related:
            message += f", correlation {correlation:.2f} (at least {INT8_MIN_CORRELATION} needed beyond 5 %)"
    return Parity(kind, ok, same, sure, count, relative, over_std, n, message, allowed, correlation)


def _correlation(expected: Float64, found: Float64) -> float:
    """Pearson's, of (N, classes) logits less each class's mean."""
    if len(expected) < INT8_MIN_DECIDED:
        return 0.0
    first, second = expected - expected.mean(axis=0), found - found.mean(axis=0)
    product = math.sqrt(float((first**2).sum()) * float((second**2).sum()))
    return float((first * second).sum()) / product if product > 0 else 0.0


def _margins(logits: Float64) -> Float64:
    """(N,) distance of each row's highest value to the next; infinite where there is one class only."""
    if logits.shape[1] < 2:
        return np.full(len(logits), np.inf)
    top = np.sort(logits, axis=1)
    return np.asarray(top[:, -1] - top[:, -2])
