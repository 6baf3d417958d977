"""Accuracy of any opened engine on a prepared picture set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt import metrics
from edgeopt.backends.base import Float32, Session
from edgeopt.classify import NOT_FINITE as NOT_FINITE
from edgeopt.classify import checked_logits as checked_logits
from edgeopt.errors import REPORT, BackendError, DataError
from edgeopt.preprocess import PreprocessSpec
from edgeopt.sets import PictureSet

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Evaluation:
    """One engine's answers: ``logits`` float32 (N, classes), ``predictions`` and true ``labels`` int64 (N,)."""

    logits: Float32
    predictions: Int64
    labels: Int64

    @property
    def top1(self) -> float:
        """Share of pictures answered correctly, 0-1."""
        return metrics.top_k_accuracy(self.logits, self.labels, 1)

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """Accuracies (0-1) in all and by class name, and the confusion matrix (rows true, columns predicted)."""
        if len(classes) != self.logits.shape[1]:
            raise DataError(
                f"{len(classes)} class names for {self.logits.shape[1]} logits",
                fix="pass the lines of the labels.txt that the model was trained with",
            )
        return {
            "n": len(self.labels),
            "top1": self.top1,
            "top5": metrics.top_k_accuracy(self.logits, self.labels, 5),
            "per_class": metrics.per_class(self.predictions, self.labels, classes),
            "confusion": metrics.confusion_matrix(self.predictions, self.labels, len(classes)).tolist(),
        }


def evaluate(
    session: Session,
    picture_set: PictureSet,
    spec: PreprocessSpec,
    *,
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Run every picture of the set through the engine; ``progress`` is called with (pictures done, pictures).

    Raises BackendError when the logits have the wrong shape or are not finite, DataError when the set is empty.
    """
    answers = (
        checked_logits(session.infer(session.prepared(pictures, spec)), len(pictures))
        for pictures in picture_set.pieces(batch)
    )
    return judged(answers, picture_set, progress=progress)


def judged(
    answers: Iterable[Float32], picture_set: PictureSet, *, progress: Callable[[int, int], None] | None = None
) -> Evaluation:
    """``answers``, logits (n, classes) piece by piece, against the labels of the set; raises as :func:`evaluate`."""
    if not len(picture_set):
        raise DataError(
            f"the {picture_set.name} set is empty", fix="prepare it where the pictures are: edgeopt export --force"
        )
    parts: list[Float32] = []
    done = 0
    for logits in answers:
        if parts and logits.shape[1] != parts[0].shape[1]:
            raise BackendError(
                f"the engine answered {parts[0].shape[1]} classes, then {logits.shape[1]}",
                fix=f"build it again: edgeopt build --target TARGET --force; if that does not help, {REPORT}",
            )
        parts.append(logits)
        done += len(logits)
        if progress is not None:
            progress(done, len(picture_set))
    every = np.concatenate(parts)
    classes = every.shape[1]
    if picture_set.labels.min() < 0 or picture_set.labels.max() >= classes:
        raise DataError(
            f"the {picture_set.name} set has labels beyond the engine's {classes} classes",
            fix="engine and set must be of one run: copy the run folder again, as a whole",
        )
    return Evaluation(every, every.argmax(axis=1).astype(np.int64), np.asarray(picture_set.labels, np.int64))
