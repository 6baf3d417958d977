"""The promises of the path that take minutes: three architectures entirely in int8, the demo's figures, a real kill."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeopt import CompressConfig, DataConfig, ModelConfig, Run, TrainConfig, api, environment

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "mobilenetv2_100"])
def test_every_compute_layer_of_the_three_models_runs_in_int8(name: str, pictures: Path, tmp_path: Path) -> None:
    trained = api.finetune(
        DataConfig(path=str(pictures), image_size=64),
        ModelConfig(name=name, pretrained=False),
        TrainConfig(epochs=1, batch_size=8, flip=False, ema_decay=0.0),
        run=tmp_path / "run",
    )
    api.compress(trained.run, CompressConfig(epochs=1))
    for target in ("onnxruntime", "openvino", "rtx-desktop"):
        built = [item for item in api.build(trained.run, target, strict=True) if item.record["precision"] == "int8"]
        assert built
        for item in built:
            fusion = json.loads((trained.run.path / "device" / target / item.name / "fusion.json").read_text())
            assert fusion["int8_share"] == 1.0, fusion["float_layers"]


def test_the_compiled_original_is_a_baseline_beside_the_eager_one(path_run: Run, tmp_path: Path) -> None:
    shutil.copytree(path_run.path, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    result = api.bench(run, seconds=12, starts=1, compiled=True)
    assert not result.failures
    assert {"pytorch/float", "pytorch-compiled/float"} <= set(result.engines)
    report = json.loads(api.report(run).json.read_text())
    measured = [row for row in report["engines"] if row["precision"] == "int8" and row["p50_ms"] is not None]
    assert len(measured) >= 2
    for row in measured:
        assert row["compiled_baseline"] == "pytorch-compiled/float"
        assert row["compiled_speedup"] > 0
    # Without it, the next session leaves no milliseconds of another one.
    api.bench(run, seconds=3, starts=1)
    assert not list(run.path.glob("device/pytorch-compiled/*/latency.json"))


@pytest.mark.timeout(1100)
def test_the_demo_meets_its_figures(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgeopt", "demo", "--run", str(tmp_path / "runs/demo")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("report.html")
    report = json.loads((tmp_path / "runs/demo/report/report.json").read_text())
    assert report["original"]["top1"] >= 0.98
    measured = [row for row in report["engines"] if row["precision"] == "int8" and row["p50_ms"] is not None]
    assert {(row["target"], "prune" in row["variant"]) for row in measured} == {
        (target, pruned) for target in ("onnxruntime", "openvino") for pruned in (False, True)
    }
    for row in measured:
        assert row["int8_share"] == 1.0
        assert row["drop_points"] <= 0.5
        assert row["drop_upper_points"] <= 1.5


@pytest.mark.timeout(1100)
def test_the_typed_line_with_tensorrt_as_its_only_target_ends_well(pictures: Path, tmp_path: Path) -> None:
    """Without a GPU the ONNX is checked, the command for the device is said, and the original alone is measured."""
    line = (
        "edgeopt finetune photos/ --epochs 1 --image-size 64 && edgeopt compress --int8 --epochs 1"
        " && edgeopt build --target tensorrt && edgeopt bench --seconds 3"
    )
    (tmp_path / "photos").symlink_to(pictures)
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("report: runs/photos/report/report.html")
    assert "pytorch/float " in done.stdout
    reason = "there is no NVIDIA GPU on this machine; model.onnx "
    if environment.gpus():
        assert reason not in done.stdout + done.stderr
        return
    assert f"tensorrt/int8-s8a8w: no engine here: {reason}" in done.stdout  # build
    assert "on the device: edgeopt build --target tensorrt" in done.stdout
    assert f"not measured here: tensorrt/int8-s8a8w ({reason}" in done.stderr  # bench
    assert f"tensorrt/int8-s8a8w: {reason}" in done.stdout
    if importlib.util.find_spec("tensorrt_rtx"):
        assert f"{reason}passed the parser and builder of TensorRT-RTX" in done.stdout
        fusion = json.loads((tmp_path / "runs/photos/device/tensorrt/int8-s8a8w/fusion.json").read_text())
        assert fusion["int8_share"] == 1.0, fusion["float_layers"]


def _finetune(pictures: Path, run: Path) -> list[str]:
    return [
        sys.executable, "-m", "edgeopt", "finetune", str(pictures), "--model", "resnet18", "--no-pretrained",
        "--image-size", "32", "--epochs", "4", "--batch-size", "8", "--no-flip", "--run", str(run), "--quiet",
    ]  # fmt: skip


def test_a_training_killed_at_any_moment_is_completed_by_the_same_command(pictures: Path, tmp_path: Path) -> None:
    """SIGKILL at three moments of training; the record appears only in the end, and the model is a whole one."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = tmp_path / "run"
    for seconds in (2.0, 6.0, 10.0):
        process = subprocess.Popen(_finetune(pictures, run), env=environment, stdout=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break  # a fast machine was done before the kill
        assert not (run / "host/float/stage.json").exists()
    subprocess.run(_finetune(pictures, run), env=environment, check=True, stdout=subprocess.DEVNULL)
    opened = Run.open(run)
    record = opened.variant("float")
    assert opened.output(record, "model").is_file()
    assert record["metrics"]["training"]["epochs"] == 4
    assert not list((run / "host/float").glob("**/*.tmp*"))
