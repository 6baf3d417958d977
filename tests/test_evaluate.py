"""Accuracy of a session on a set: the same numbers as by hand, and refusal of answers that are none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_onnx

from edgeopt.backends.base import BuildRequest, Float32, Session
from edgeopt.backends.onnxruntime import OnnxRuntimeBackend
from edgeopt.config import Target
from edgeopt.errors import BackendError, DataError
from edgeopt.evaluate import evaluate
from edgeopt.preprocess import PreprocessSpec, normalize
from edgeopt.sets import PictureSet

SPEC = PreprocessSpec(size=(16, 16))


class Answering(Session):
    """Gives out prepared logits, whatever it is shown."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits, self.at = logits, 0

    def _infer(self, batch: Float32) -> Float32:
        self.at += len(batch)
        return self.logits[self.at - len(batch) : self.at]


def a_set(count: int, labels: list[int] | None = None) -> PictureSet:
    pictures = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)
    return PictureSet("test", pictures, np.asarray(labels or [0] * count, np.int64), tuple(map(str, range(count))))


def test_accuracies_are_those_by_hand() -> None:
    # Truth 0 0 1 2; answered 0 1 1 0; the last one's truth is its second choice.
    logits = np.array([[3, 1, 0], [0, 2, 1], [0, 5, 1], [4, 0, 2]], np.float32)
    found = evaluate(Answering(logits), a_set(4, [0, 0, 1, 2]), SPEC, batch=3)
    assert found.predictions.tolist() == [0, 1, 1, 0]
    assert found.labels.tolist() == [0, 0, 1, 2]
    assert found.top1 == 0.5
    stated = json.loads(json.dumps(found.to_json(("a", "b", "c"))))
    assert (stated["n"], stated["top1"], stated["top5"]) == (4, 0.5, 1.0)
    assert stated["confusion"] == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert stated["per_class"]["a"]["recall"] == 0.5
    assert stated["per_class"]["b"] == {**stated["per_class"]["b"], "n": 1, "recall": 1.0, "precision": 0.5}


def test_a_real_engine_sees_the_pictures_in_order_and_normalized(tmp_path: Path) -> None:
    backend, target = OnnxRuntimeBackend(), Target(schema=1, title="t", backend="onnxruntime")
    source = tiny_onnx.write_float(tmp_path / "a.onnx")
    built = backend.build(BuildRequest(source, tmp_path, target, "fp32", None, tiny_onnx.SHAPE))
    assert built.engine is not None
    pictures = a_set(7)
    seen: list[tuple[int, int]] = []
    with backend.open(tmp_path / built.engine, target, precision="fp32", threads=1) as session:
        found = evaluate(session, pictures, SPEC, batch=3, progress=lambda done, total: seen.append((done, total)))
        at_once = session.infer(normalize(pictures.pictures, SPEC))
    np.testing.assert_allclose(found.logits, at_once, atol=1e-5)
    assert seen == [(3, 7), (6, 7), (7, 7)]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_is_named(bad: float) -> None:
    logits = np.zeros((4, 3), np.float32)
    logits[3, 1] = bad
    with pytest.raises(BackendError, match="not finite"):
        evaluate(Answering(logits), a_set(4), SPEC)


def test_an_answer_of_the_wrong_shape_is_named() -> None:
    with pytest.raises(BackendError, match=r"answered \(3, 2\) for 4 pictures"):
        evaluate(Answering(np.zeros((3, 2), np.float32)), a_set(4), SPEC)
    with pytest.raises(BackendError, match=r"answered \(4, 2, 1\) for 4 pictures"):
        evaluate(Answering(np.zeros((4, 2, 1), np.float32)), a_set(4), SPEC)


def test_an_empty_set_and_too_few_names_are_errors() -> None:
    with pytest.raises(DataError, match="test set is empty"):
        evaluate(Answering(np.zeros((0, 3), np.float32)), a_set(0), SPEC)
    found = evaluate(Answering(np.zeros((2, 3), np.float32)), a_set(2), SPEC)
    with pytest.raises(DataError, match="2 class names for 3 logits"):
        found.to_json(("a", "b"))
