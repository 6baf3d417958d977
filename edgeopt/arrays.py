"""The arrays that numbers come in: their types, logits as probabilities, and the refusal of empty ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.errors import DataError

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


def softmax(logits: Float) -> Float64:
    """float64 probabilities of the same shape; the last axis sums to 1."""
    shifted = np.asarray(logits, dtype=np.float64)
    powers = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), dtype=np.float64)


def require_some(values: npt.NDArray[Any]) -> int:
    """The number of rows; raises DataError for none, which would otherwise become a NaN somewhere downstream."""
    if not len(values):
        raise DataError("nothing to measure: the set is empty", fix="check the split; every class needs pictures")
    return len(values)
