"""Calibration: diverse pictures differ in the model's features, and memory does not grow with their number."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeopt import CalibrationRecipe, Run
from edgeopt.data.calibration import draw_calibration
from edgeopt.errors import ModelError
from edgeopt.models.features import classifier_inputs
from edgeopt.preprocess import normalize, prepare
from edgeopt.stages.calibrating import CalibrationBatches, calibration_set
from edgeopt.stages.variants import open_variant
from edgeopt.stages.workspace import open_workspace
from tests.tiny_torch import tiny_net

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
