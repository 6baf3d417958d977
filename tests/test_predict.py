"""Predictions for files, folders and patterns; what cannot be read is listed and the rest is answered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeopt.backends.base import Float32, Session
from edgeopt.classify import with_list
from edgeopt.errors import DataError
from edgeopt.predict import expand, predict
from edgeopt.preprocess import PreprocessSpec

SPEC = PreprocessSpec(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1))
CLASSES = ("red", "green", "blue")


class MeanColour(Session):
    """Logits are ten times a picture's mean red, green and blue: a classifier of colours."""

    def _infer(self, batch: Float32) -> Float32:
        self.largest = max(getattr(self, "largest", 0), len(batch))
        return 10 * batch.mean(axis=(2, 3))


def picture(path: Path, colour: tuple[int, int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 12), colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(tmp_path / "album" / "b.png", (0, 255, 0))
    picture(tmp_path / "album" / "a.png", (255, 0, 0))
    picture(tmp_path / "album" / "deeper" / "c.JPG", (0, 0, 255))
    picture(tmp_path / "album" / ".hidden" / "d.png", (0, 0, 255))
    (tmp_path / "album" / "notes.txt").write_text("not a picture")
    return tmp_path


def test_a_folder_is_answered_in_order(folder: Path) -> None:
    found, failures = predict(MeanColour(), [str(folder / "album")], SPEC, CLASSES)
    assert [Path(item.path).name for item in found] == ["a.png", "b.png", "c.JPG"]
    assert [item.label for item in found] == ["red", "green", "blue"]
    assert failures == []


def test_an_answer_is_best_first_and_its_probabilities_are_softmax(folder: Path) -> None:
    [found], _ = predict(MeanColour(), [str(folder / "album" / "a.png")], SPEC, CLASSES, top=2)
    stated = json.loads(json.dumps(found.to_json()))
    assert stated["label"] == "red"
    best = np.exp(10.0) / (np.exp(10.0) + 2)
    assert stated["probability"] == pytest.approx(best)
    assert [label for label, _ in stated["top"]] == ["red", "green"]
    assert stated["top"][0][1] == stated["probability"]
    assert set(stated) == {"path", "label", "probability", "top"}


def test_unreadable_pictures_are_listed_and_the_rest_is_answered(folder: Path) -> None:
    broken = folder / "album" / "aa.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    absent = str(folder / "nowhere.png")
    found, failures = predict(MeanColour(), [absent, str(folder / "album")], SPEC, CLASSES)
    assert len(found) == 3
    assert len(failures) == 2
    assert failures[0] == f"{absent}: does not exist"
    assert failures[1].startswith(f"{broken}: cannot be read as a picture")


def test_batches_are_of_the_size_asked_and_do_not_change_the_answer(folder: Path) -> None:
    paths = [str(folder / "album")]
    single, triple = MeanColour(), MeanColour()
    assert predict(single, paths, SPEC, CLASSES, batch=1) == predict(triple, paths, SPEC, CLASSES, batch=8)
    assert (single.largest, triple.largest) == (1, 3)


def test_patterns_are_expanded_sorted_and_each_file_once(folder: Path) -> None:
    pattern = str(folder / "album" / "*.png")
    files, failures = expand([str(folder / "album" / "b.png"), pattern, str(folder / "album" / "**" / "*.JPG")])
    assert [Path(name).name for name in files] == ["b.png", "a.png", "c.JPG"]
    assert failures == []


def test_lists_end_their_lines_as_any_system_does_and_stand_where_the_dash_is() -> None:
    assert with_list(["a.png", "-", "b.png"], ["c d.png\r\n", "\n", "\r\n", "e.png"]) == [
        "a.png", "c d.png", "e.png", "b.png"
    ]  # fmt: skip


def test_odd_names_are_just_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["-rf.png", " space .png", "[1].png", "star*.png", "ünï 图.png"]
    for name in names:
        picture(Path(name), (255, 0, 0))
    found, failures = predict(MeanColour(), names, SPEC, CLASSES)
    assert [item.path for item in found] == names
    assert failures == []


def test_what_names_no_picture_or_fits_no_engine_is_an_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no picture in"):
        predict(MeanColour(), [str(tmp_path / "empty")], SPEC, CLASSES)
    with pytest.raises(DataError, match="3 classes, the run names 2"):
        predict(MeanColour(), [str(folder / "album")], SPEC, CLASSES[:2])
    with pytest.raises(DataError, match="at least 1"):
        predict(MeanColour(), [str(folder / "album")], SPEC, CLASSES, top=0)
