"""The device half on ARM64, really run: under qemu, from a run folder copied there; no timing is taken from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import arm64
import pytest
from conftest import paint

from edgeopt import CompressConfig, DataConfig, ModelConfig, TrainConfig, api


@pytest.fixture(scope="module")
def machine() -> Path:
    """An ARM64 machine, kept in the user's cache between runs; a visible skip where there is no way to have one."""
    if arm64.missing():
        pytest.skip(f"not installed: {', '.join(arm64.missing())}; apt-get install qemu-user-static debootstrap")
    folder = Path(os.environ.get("EDGEOPT_ARM64") or Path.home() / ".cache/edgeopt/arm64")
    try:
        return arm64.prepare(folder)
    except subprocess.CalledProcessError as error:
        said = (error.stderr or b"").decode(errors="replace").strip().splitlines() or [str(error)]
        pytest.skip(f"the ARM64 packages cannot be downloaded: {said[-1]}")


@pytest.mark.slow
@pytest.mark.timeout(1100)
@pytest.mark.parametrize(("target", "cpu"), [("raspberry-pi-5", "cortex-a76"), ("raspberry-pi-4", "cortex-a72")])
def test_arm64_builds_evaluates_and_predicts_as_x86(
    machine: Path, target: str, cpu: str, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The Cortex-A76 has dot products, the A72 has none; both must answer as x86 on 99 % of 200 pictures."""
    folder = tmp_path_factory.getbasetemp() / "arm64"
    if not folder.is_dir():  # shared by both: what is trained does not depend on the device
        train = TrainConfig(epochs=4, batch_size=8, layer_decay=1.0, augment="light", flip=False)
        data = DataConfig(path=str(pictures), image_size=32)
        made = api.finetune(data, ModelConfig(name="test_resnet", pretrained=False), train, run=folder / "run").run
        api.compress(made, CompressConfig(epochs=1, schemes=("u8a8w",)))
        api.build(made, "onnxruntime")
        (folder / "photos").mkdir()
        for index in range(200):
            paint(index % 3, 1000 + index).save(folder / "photos" / f"{index:03d}.png")
    from edgeopt import Run

    run = Run.open(folder / "run")
    expected, failures = api.predict(run, [str(folder / "photos")], engine="onnxruntime/int8-u8a8w")
    assert (len(expected), failures) == (200, [])
    there = shutil.copytree(run.path, folder / target, ignore=shutil.ignore_patterns("device"))
    done = arm64.run(machine, "build", "--target", target, "--run", str(there), "--json", cpu=cpu)
    assert done.returncode == 0, done.stderr
    built = {one["variant"]: one for one in json.loads(done.stdout)}
    assert built["int8-u8a8w"]["parity"]["ok"]
    assert built["int8-u8a8w"]["fusion"]["int8_share"] == 1.0
    done = arm64.run(machine, "eval", "--run", str(there), "--json", cpu=cpu)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n"] > 0
    done = arm64.run(machine, "predict", str(folder / "photos"), "--run", str(there), "--json", cpu=cpu)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    same = sum(one["label"] == other.label for one, other in zip(answers, expected, strict=True))
    assert same >= 198
    assert len({one["label"] for one in answers}) == 3  # a network that answers one class agrees with anything
