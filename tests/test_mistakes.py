"""The report's worst mistakes and confidence: pictures, Grad-CAM over them, diagrams; and a run without them."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hostile import without_torch
from PIL import Image
from small_run import FLOAT, INT8, write_small_run

from edgeopt import api
from edgeopt.files import write_json
from edgeopt.report import assemble, write_report
from edgeopt.run import Run

CALIBRATIONS = ("calibration", "calibration_raw")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_small_run(tmp_path_factory.mktemp("mistakes") / "run")


def _decode(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_mistakes_are_the_recorded_ones_with_their_pictures(run: Run) -> None:
    record = json.loads((run.path / "device" / INT8 / "accuracy.json").read_text())
    wrong = [i for i, (a, b) in enumerate(zip(record["predictions"], record["truth"], strict=True)) if a != b]
    assert wrong
    row = assemble(run.path).row(INT8)
    assert row is not None
    assert {int(one.path.removeprefix("test-").removesuffix(".png")) for one in row.mistakes} <= set(wrong)
    assert [one.probability for one in row.mistakes] == sorted((one.probability for one in row.mistakes), reverse=True)
    pictures = np.load(next(run.data.glob("sets/*/test.npy")))
    first = row.mistakes[0]
    shown = np.asarray(_decode(first.picture).convert("RGB"), float)
    original = pictures[int(first.path.removeprefix("test-").removesuffix(".png"))].astype(float)
    assert shown.shape == original.shape
    assert np.corrcoef(shown.ravel(), original.ravel())[0, 1] > 0.5  # noise in JPEG
    assert first.evidence == ""


def test_grad_cam_is_drawn_over_the_mistake_it_is_of(run: Run) -> None:
    record = json.loads((run.path / "device" / INT8 / "accuracy.json").read_text())
    mistake = record["mistakes"][0]
    folder = run.path / "device/pytorch/int8-u8a7w"
    folder.mkdir(parents=True, exist_ok=True)
    evidence = np.zeros((1, 64, 64), np.uint8)
    evidence[0, :, 32:] = 255
    np.save(folder / "gradcam.npy", evidence)
    write_json(
        folder / "gradcam.json",
        {"schema": 1, "pictures": [{"index": mistake["index"], "answer": mistake["answer"]}]},
    )
    row = assemble(run.path).row(INT8)
    assert row is not None
    drawn = np.asarray(_decode(row.mistakes[0].evidence).convert("RGB"), float)
    redness = drawn[..., 0] - drawn[..., 1]
    assert redness[:, 10:].mean() > 60
    assert abs(redness[:, :6].mean()) < 25
    assert all(one.evidence == "" for one in row.mistakes[1:])


def test_confidence_is_measured_with_the_temperature_of_the_variant(run: Run) -> None:
    report = assemble(run.path)
    row = report.row(INT8)
    assert row is not None
    assert row.temperature == 1.0  # this run's variants state none
    assert row.ece == row.ece_raw
    assert row.auc is not None
    assert 0.5 < row.auc <= 1
    assert sum(n for n, _, _ in row.bins) == row.pictures
    html = write_report(run.path).html.read_text()
    assert 'id="confidence"' in html
    assert 'id="mistakes"' in html
    assert len(re.findall(r"data:image/jpeg;base64,", html)) >= len(row.mistakes)
    assert "<polyline" in html


def test_an_engine_is_judged_and_answers_at_the_temperature_of_its_variant(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    own = Run.open(tmp_path / "run")
    Image.effect_noise((20, 20), 90).save(tmp_path / "noise.png")
    with without_torch():
        ((plain,), _) = api.predict(own, [str(tmp_path / "noise.png")], engine=INT8)
        stated = own.path / "host/int8-u8a7w/stage.json"
        record = json.loads(stated.read_text())
        write_json(stated, {**record, "metrics": {**record["metrics"], "temperature": 4.0}})
        (own.path / "device" / INT8 / "accuracy.json").unlink()
        judged = api.evaluate(own, INT8)
        ((soft,), _) = api.predict(own, [str(tmp_path / "noise.png")], engine=INT8)
    assert judged["temperature"] == 4.0
    surest, surest_raw = (max(one["confidence"] for one in judged[name]["bins"]) for name in CALIBRATIONS)
    assert surest < surest_raw
    assert soft.label == plain.label
    assert soft.probability < plain.probability


def test_a_copy_without_its_test_set_lists_the_mistakes_without_pictures(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("sets"))
    row = assemble(tmp_path / "run").row(INT8)
    assert row is not None
    assert row.mistakes
    assert all(one.picture == "" for one in row.mistakes)
    assert assemble(tmp_path / "run").row(FLOAT) is not None
