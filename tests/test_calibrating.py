"""Calibration: diverse pictures differ in the model's features, and memory does not grow with their number."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edgeopt import CalibrationRecipe, CompressConfig, DataConfig, Run
from edgeopt.compress.quantize import named_quantizers
from edgeopt.config import load_calibration
from edgeopt.console import Silent
from edgeopt.data.calibration import draw_calibration
from edgeopt.data.ingest import ingest
from edgeopt.errors import ModelError
from edgeopt.models.features import classifier_inputs
from edgeopt.preprocess import PreprocessSpec, normalize, prepare
from edgeopt.stages import quantizing
from edgeopt.stages.calibrating import CalibrationBatches, calibration_set
from edgeopt.stages.variants import open_variant
from edgeopt.stages.workspace import Workspace, calibration_name, open_workspace
from tests.listening import Listening
from tests.tiny_torch import calibration, tiny_net

_MEASURE = """
import json, sys
import numpy as np, torch
from edgeopt.compress.quantize import quantize
from edgeopt.preprocess import PreprocessSpec
from edgeopt.schemes import get_scheme
from edgeopt.sets import PictureSet
from edgeopt.stages.calibrating import CalibrationBatches
from tests.tiny_torch import tiny_net
pictures = np.load(sys.argv[1], mmap_mode="r")[:int(sys.argv[2])]
count = len(pictures)
spec = PreprocessSpec(size=pictures.shape[1:3])
prepared = PictureSet("calib", pictures, np.zeros(count, np.int64), ("p",) * count)
peak = 0
def look(done, total):
    global peak  # of the process's own memory; pages of the mapped file are the kernel's to drop
    lines = open("/proc/self/status").read().splitlines()
    peak = max(peak, next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")))
batches = CalibrationBatches(prepared, spec)
quantize(tiny_net(), batches, scheme=get_scheme("u8a8w"), range_estimator=sys.argv[3], progress=look)
print(json.dumps(peak))
"""


def test_diverse_calibration_is_drawn_by_what_the_trained_model_sees(path_run: Run, tmp_path: Path) -> None:
    shutil.copytree(path_run.path, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    workspace, original = open_workspace(run), open_variant(run, run.original())
    recipe = CalibrationRecipe(schema=1, count=24, selection="diverse")
    drawn = calibration_set(workspace, recipe, open_variant(run, "int8-s8a8w"))  # goes back to the original's features
    spec, train = original.preprocess, workspace.dataset.of("train")
    images = []
    for item in train:
        with workspace.dataset.open(item) as image:
            images.append(prepare(image, spec))
    features = classifier_inputs(original.load(), 3, [normalize(np.stack(images), spec)])
    assert features.shape == (len(train), 512)
    expected = draw_calibration(workspace.dataset, recipe, features)
    assert drawn.paths == tuple(item.path for item in expected)
    assert drawn.paths != tuple(item.path for item in draw_calibration(workspace.dataset, recipe)), "not by thumbnails"


def test_calibration_batches_are_the_set_in_order(path_run: Run) -> None:
    variant = open_variant(path_run, path_run.original())
    pictures = open_workspace(path_run).prepared("val", variant.preprocess)
    batches = CalibrationBatches(pictures, variant.preprocess)
    whole = torch.from_numpy(np.concatenate(list(pictures.batches(variant.preprocess, 1000))))
    assert torch.equal(torch.cat(list(batches)), whole)
    assert torch.equal(torch.cat(list(batches)), whole), "it can be read again"
    assert len(batches) == len(list(batches))


def test_a_recipes_pictures_are_of_train_listed_and_hashed_and_fewer_than_asked_for_is_said(
    pictures: Path, tmp_path: Path
) -> None:
    dataset = ingest(DataConfig(path=str(pictures)))
    run, console, spec = SimpleNamespace(data=tmp_path, path=tmp_path), Listening(), PreprocessSpec(size=(16, 16))
    workspace = Workspace(run, dataset, DataConfig(path=str(pictures)), console)  # type: ignore[arg-type]
    recipes = {name: load_calibration(name) for name in ("fast", "default", "thorough")}
    assert {name: (one.count, one.selection) for name, one in recipes.items()} == {
        "fast": (64, "stratified"), "default": (300, "stratified"), "thorough": (1000, "diverse"),
    }  # fmt: skip
    train = {item.path for item in dataset.of("train")}
    drawn = {name: workspace.calibration(recipe, spec) for name, recipe in recipes.items()}
    assert {name: len(one) for name, one in drawn.items()} == {"fast": 64, "default": 84, "thorough": 84}
    assert console.said == [
        f"calibration: train has 84 pictures, fewer than the {count} asked for" for count in (300, 1000)
    ]
    for name, one in drawn.items():
        assert set(one.paths) <= train, "never val or test"
        stored = json.loads((tmp_path / "sets" / spec.key / f"{one.name}.json").read_text())
        assert stored["paths"] == list(one.paths)
        assert set(stored["sha256"]) == {f"{one.name}.npy", f"{one.name}.labels.npy"}
        assert one.name == calibration_name(recipes[name])
    assert len({one.name for one in drawn.values()}) == 3
    other = recipes["fast"].model_copy(update={"range": "percentile"})
    assert workspace.calibration(other, spec).name == drawn["fast"].name, "how ranges are read changes no picture"


def test_ranges_are_estimated_as_the_recipe_says_and_what_is_ignored_stays_in_float(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the real quantizer; the set is planted."""
    batches = calibration()
    monkeypatch.setattr(quantizing, "calibration_set", lambda *_: None)
    monkeypatch.setattr(quantizing, "CalibrationBatches", lambda *_: batches)
    job: Any = SimpleNamespace(workspace=None, config=CompressConfig(ignore=("stem",)), console=Silent())
    source: Any = SimpleNamespace(preprocess=PreprocessSpec(size=(16, 16)))

    def ranges(range_: Any, *ignored: str) -> dict[str, float]:
        recipe = CalibrationRecipe(schema=1, range=range_)
        model = quantizing.calibrated(job, tiny_net(), "u8a8w", recipe, source, int8_outputs=False, ignored=ignored)
        return {name: float(one.scale.max()) for name, one in named_quantizers(model)}

    minmax, percentile = ranges("minmax"), ranges("percentile")
    assert sum(percentile[name] < minmax[name] for name in minmax) > len(minmax) / 4
    assert not any("stem/" in name for name in minmax)
    assert any("wide/" in name for name in minmax)
    assert not any("wide/conv2d/0__1" in name for name in ranges("minmax", "wide"))


def test_features_need_a_classifier() -> None:
    with pytest.raises(ModelError, match="no layer with 77 outputs"):
        classifier_inputs(tiny_net(), 77, [])


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["minmax", "percentile", "histogram"])
def test_ten_times_the_calibration_pictures_take_no_more_memory(estimator: str, tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("Linux says what a process holds of its own")
    pictures = np.lib.format.open_memmap(tmp_path / "calib.npy", "w+", np.uint8, (1000, 224, 224, 3))
    rng = np.random.default_rng(0)
    for start in range(0, 1000, 100):
        pictures[start : start + 100] = rng.integers(0, 256, (100, 224, 224, 3), np.uint8)
    pictures.flush()

    def peak(count: int) -> int:
        """Bytes of a fresh process."""
        command = [sys.executable, "-c", _MEASURE, str(tmp_path / "calib.npy"), str(count), estimator]
        root = Path(__file__).resolve().parent.parent
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
        )
        return int(json.loads(done.stdout.splitlines()[-1]))

    few, many = peak(100), peak(1000)
    assert many - few <= max(0.1 * few, 150 * 2**20), (few, many)
