"""Classify picture files with any opened engine."""

from __future__ import annotations

from collections.abc import Sequence

from edgeopt.backends.base import Session
from edgeopt.classify import Prediction as Prediction
from edgeopt.classify import classify as classify
from edgeopt.classify import expand as expand
from edgeopt.preprocess import PreprocessSpec


def predict(
    session: Session,
    paths: Sequence[str],
    spec: PreprocessSpec,
    classes: Sequence[str],
    *,
    top: int = 5,
    batch: int = 8,
    temperature: float = 1.0,
) -> tuple[list[Prediction], list[str]]:
    """Predictions for every readable picture, in order, and one line for each that could not be read.

    ``paths`` are files, folders (searched recursively) and glob patterns; ``temperature`` is what makes probabilities
    honest (:func:`edgeopt.probability.fit_temperature`). Raises DataError when they name no picture,
    or when ``classes`` does not fit the engine.
    """
    return classify(
        lambda pictures: session.infer(session.prepared(pictures[spec], spec)),
        paths,
        [spec],
        classes,
        top=top,
        batch=batch,
        temperature=temperature,
    )
